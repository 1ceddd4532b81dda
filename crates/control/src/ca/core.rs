//! The CA as a state machine without IO: the clock comes in, what is to be stored goes out. A step is made on a clone,
//! which takes the place of the old one when it is stored.
//!
//! A root goes through three phases: it is *next* (in the bundle, so that every node knows it before it sees a certificate
//! of it), *active* (the intermediate below it signs) and *retiring* (in the bundle until the last certificate under it has
//! ended). An intermediate needs no first phase, for it travels with the certificates that it signed.

mod from_files;
mod intermediate;
mod lifetimes;
mod revocation;
mod root;
mod rotation;
mod status;

pub use from_files::FromFiles;
pub use lifetimes::Lifetimes;
pub use revocation::MAX_REVOCATIONS;
pub use rotation::Rotate;
pub use status::AuthorityStatus;

use super::{
    authority::{Der, Leaf, fingerprint},
    bundle::{Bundle, Revoked},
    csr::Request,
    error::Error,
    state::{Phase, SavedRevocation, State},
    time::{SKEW, at, seconds},
};
use intermediate::Intermediate;
use root::Root;
use selvedge_wire::{
    log_time::rfc3339,
    spiffe::{SpiffeId, is_trust_domain},
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long a signed CRL says that it is good; it is signed anew after half of that.
const CRL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A CA's keys, certificates and revocations at one time.
#[derive(Debug, Clone)]
pub struct Core {
    domain: String,
    lifetimes: Lifetimes,
    sequence: u64,
    roots: Vec<Root>,
    intermediates: Vec<Intermediate>,
    revocations: Vec<SavedRevocation>,
    bundle: Arc<Bundle>,
    /// When the bundle's CRLs were signed.
    signed: u64,
    /// Revocations are remembered until then at least.
    remember: u64,
}

impl Core {
    /// A new CA. Without `files` it has a root of its own.
    pub fn create(
        domain: &str,
        lifetimes: Lifetimes,
        files: Option<&FromFiles>,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let state = State {
            trust_domain: domain.to_owned(),
            sequence: 0,
            roots: Vec::new(),
            intermediates: Vec::new(),
            revocations: Vec::new(),
        };
        Self::restore(&state, domain, lifetimes, files, now)
    }

    /// From what is stored, brought up to `now`.
    pub fn restore(
        state: &State,
        domain: &str,
        lifetimes: Lifetimes,
        files: Option<&FromFiles>,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let mut core = Self::read(state, domain, lifetimes)?;
        let mut changed = match files {
            Some(files) => core.change_to_files(files, now)?,
            None => core.leave_files(now)?,
        };
        changed |= core.advance(now, false)?;
        if changed {
            core.count(now);
        }
        core.sign_bundle(now)?;
        Ok(core)
    }

    /// From what another control plane has stored, as it is: what is due is that one's to do. An intermediate from files is
    /// not stored: it goes on as it was in `former`, for one whose root nodes do not know yet must not sign.
    pub fn adopt(
        state: &State,
        domain: &str,
        lifetimes: Lifetimes,
        files: Option<&FromFiles>,
        former: Option<&Self>,
        now: SystemTime,
    ) -> Result<Self, Error> {
        let mut core = Self::read(state, domain, lifetimes)?;
        if let Some(files) = files {
            let known: BTreeSet<[u8; 32]> = core.roots.iter().map(|r| fingerprint(&r.certificate)).collect();
            let held = former.into_iter().flat_map(|former| &former.intermediates);
            core.intermediates.extend(held.filter(|i| i.from_files && known.contains(&i.root)).cloned());
            core.change_to_files(files, now)?;
        }
        core.sign_bundle(now)?;
        Ok(core)
    }

    fn read(state: &State, domain: &str, lifetimes: Lifetimes) -> Result<Self, Error> {
        lifetimes.check()?;
        if !is_trust_domain(domain) {
            return Err(Error::Domain(domain.to_owned()));
        }
        if state.trust_domain != domain {
            return Err(Error::OtherDomain { stored: state.trust_domain.clone(), wanted: domain.to_owned() });
        }
        let roots: Result<Vec<Root>, Error> = state.roots.iter().map(Root::restore).collect();
        let intermediates: Result<Vec<_>, Error> = state.intermediates.iter().map(Intermediate::restore).collect();
        let mut core = Self {
            domain: domain.to_owned(),
            lifetimes,
            sequence: state.sequence,
            roots: roots?,
            intermediates: intermediates?,
            revocations: state.revocations.clone(),
            bundle: Arc::new(Bundle::empty(domain)),
            signed: 0,
            remember: 0,
        };
        for intermediate in &mut core.intermediates {
            intermediate.longest = intermediate.longest.max(lifetimes.svid.as_secs());
        }
        Ok(core)
    }

    /// What to store.
    pub fn save(&self) -> State {
        let own = self.intermediates.iter().filter(|i| !i.from_files);
        State {
            trust_domain: self.domain.clone(),
            sequence: self.sequence,
            roots: self.roots.iter().map(Root::save).collect(),
            intermediates: own.map(Intermediate::save).collect(),
            revocations: self.revocations.clone(),
        }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn lifetimes(&self) -> Lifetimes {
        self.lifetimes
    }

    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// What is due at `now`: rotations, CRLs and, when the time is `sure`, forgetting what has ended. Whether anything
    /// changed, so that it must be stored.
    pub fn tick(&mut self, now: SystemTime, sure: bool) -> Result<bool, Error> {
        let mut changed = sure && self.drop_ended(now);
        changed |= self.advance(now, sure)?;
        let stale = !self.bundle.crls.is_empty() && seconds(now) >= self.signed + CRL_LIFE.as_secs() / 2;
        if changed || stale {
            self.renew_bundle(now)?;
        }
        Ok(changed || stale)
    }

    /// Signs a certificate of `id` for the key in `request`.
    pub fn issue(
        &self,
        id: &SpiffeId,
        request: &Request,
        life: Option<Duration>,
        now: SystemTime,
    ) -> Result<Leaf, Error> {
        self.issue_as_of(id, request, life, (now, now))
    }

    /// The same, where revocations are known as of a time before `now`. The certificate begins then: who is revoked in the
    /// meantime does not escape that by a renewal where it is not yet known.
    pub fn issue_as_of(
        &self,
        id: &SpiffeId,
        request: &Request,
        life: Option<Duration>,
        (as_of, now): (SystemTime, SystemTime),
    ) -> Result<Leaf, Error> {
        if id.trust_domain() != self.domain || id.path().is_empty() {
            return Err(Error::Foreign { id: id.to_string(), domain: self.domain.clone() });
        }
        let life = life.unwrap_or(self.lifetimes.svid).min(self.lifetimes.svid);
        // Who joins again must not be taken for who was revoked, though it is dated back, and clocks differ. A revocation in
        // a future farther than that is of a clock that was wrong, and ends nobody's certificates for ever.
        let revoked = self.revocations.iter().filter(|r| r.identity.as_deref() == Some(id.as_str())).map(|r| r.at);
        let soon = seconds(now) + SKEW.as_secs();
        let earliest = revoked.filter(|from| *from <= soon).max().unwrap_or(0);
        let from = as_of.min(now).max(at(earliest) + SKEW);
        self.signer(now)?.authority.sign(request, id, life, (from, now))
    }

    /// The root that a certificate issued now leads to.
    pub fn root_of_issue(&self, now: SystemTime) -> Result<&Der, Error> {
        let signer = self.signer(now)?;
        let root = self.roots.iter().find(|r| fingerprint(&r.certificate) == signer.root);
        root.map(|r| &r.certificate).ok_or_else(|| Error::NoAuthority { why: "its root is missing".to_owned() })
    }

    fn signer(&self, now: SystemTime) -> Result<&Intermediate, Error> {
        let valid = |phase: &dyn Fn(Phase) -> bool| self.intermediates.iter().find(|i| phase(i.phase) && i.valid(now));
        // One from files is due by itself: who does not lead stores no step, and files are not stored.
        let found = valid(&|p| matches!(p, Phase::Next { from } if from <= seconds(now)))
            .or_else(|| valid(&|p| p == Phase::Active))
            .or_else(|| valid(&|p| matches!(p, Phase::Retiring { .. })));
        found.ok_or_else(|| {
            let active = self.intermediates.iter().find(|i| i.phase == Phase::Active);
            let why = active.map_or("there is no intermediate".to_owned(), |i| {
                format!(
                    "the intermediate is valid from {} to {}",
                    rfc3339(i.not_before),
                    rfc3339(i.authority.not_after)
                )
            });
            Error::NoAuthority { why }
        })
    }

    /// The bundle of what there is now, with a higher number.
    fn renew_bundle(&mut self, now: SystemTime) -> Result<(), Error> {
        self.count(now);
        self.sign_bundle(now)
    }

    /// The next number of the bundle. The time is in it, so that a CA that was begun anew, or restored from a backup, is
    /// not behind what its nodes have seen.
    fn count(&mut self, now: SystemTime) {
        self.sequence = (self.sequence + 1).max(seconds(now));
    }

    fn sign_bundle(&mut self, now: SystemTime) -> Result<(), Error> {
        let revoked: Vec<Revoked> = self.revocations.iter().filter_map(Revoked::from_saved).collect();
        let by_serial: Vec<&SavedRevocation> = self.revocations.iter().filter(|r| r.serial.is_some()).collect();
        let mut crls = Vec::new();
        if !by_serial.is_empty() {
            let next = seconds(now) + CRL_LIFE.as_secs();
            for intermediate in &self.intermediates {
                let authority = &intermediate.authority;
                crls.push(authority.revocation_list(self.sequence, &by_serial, seconds(now), next)?);
            }
        }
        self.signed = seconds(now);
        self.bundle = Arc::new(Bundle {
            trust_domain: self.domain.clone(),
            sequence: self.sequence,
            roots: self.roots.iter().map(|r| r.certificate.clone()).collect(),
            revoked,
            crls,
        });
        Ok(())
    }
}

fn validity(certificate: &[u8]) -> Result<(u64, u64), Error> {
    let damaged = |why: String| Error::Damaged { what: "a certificate".to_owned(), why };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| damaged(e.to_string()))?;
    let second = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = parsed.validity();
    Ok((second(validity.not_before.timestamp()), second(validity.not_after.timestamp())))
}
