//! The CA as a state machine without IO: the clock comes in, what is to be stored goes out. A step is made on a clone,
//! which takes the place of the old one when it is stored.
//!
//! A root goes through three phases: it is *next* (in the bundle, so that every node knows it before it sees a certificate
//! of it), *active* (the intermediate below it signs) and *retiring* (in the bundle until the last certificate under it has
//! ended). An intermediate needs no first phase, for it travels with the certificates that it signed.

use super::{
    alarm::Life,
    authority::{Authority, Der, Leaf, fingerprint},
    bundle::{Bundle, Revoked},
    csr::Request,
    error::Error,
    state::{Phase, SavedIntermediate, SavedRevocation, SavedRoot, State},
    time::{SKEW, at, seconds},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use selvedge_identity::Serial;
use selvedge_wire::{
    log_time::rfc3339,
    spiffe::{SpiffeId, is_trust_domain},
};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How many revocations are kept; the oldest ones go.
pub const MAX_REVOCATIONS: usize = 10_000;

/// How long a signed CRL says that it is good; it is signed anew after half of that.
const CRL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    pub root: Duration,
    pub intermediate: Duration,
    /// Of the certificates of workloads.
    pub svid: Duration,
    /// How long a new root is in the bundle before certificates are signed under it: every node should have asked for the
    /// bundle once in that time.
    pub overlap: Duration,
    /// How long after its end a certificate still gets the next one, for nodes that were away. Zero: not at all.
    pub grace: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { root: 3650 * DAY, intermediate: 365 * DAY, svid: DAY, overlap: DAY, grace: 7 * DAY }
    }
}

impl Lifetimes {
    fn check(&self) -> Result<(), Error> {
        if self.svid < Duration::from_secs(2) {
            return Err(Error::Lifetimes("certificates of workloads must live for at least 2 s"));
        }
        if self.intermediate < 2 * self.svid {
            return Err(Error::Lifetimes("an intermediate must live twice as long as the certificates of workloads"));
        }
        if self.root < 2 * self.intermediate {
            return Err(Error::Lifetimes("a root must live twice as long as an intermediate"));
        }
        Ok(())
    }
}

/// What to rotate by command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotate {
    Intermediate,
    /// `at_once`: without waiting until every node can know it; nodes that do not yet refuse each other for that long.
    Root {
        at_once: bool,
    },
}

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

#[derive(Debug, Clone)]
struct Root {
    certificate: Der,
    not_before: u64,
    not_after: u64,
    /// None when another CA has its key.
    authority: Option<Arc<Authority>>,
    phase: Phase,
}

#[derive(Debug, Clone)]
struct Intermediate {
    authority: Arc<Authority>,
    not_before: u64,
    root: [u8; 32],
    phase: Phase,
    longest: u64,
    /// Whether its key is the user's, in files, and not stored here.
    from_files: bool,
}

/// An intermediate of another CA, with its root.
#[derive(Debug, Clone)]
pub struct FromFiles {
    pub authority: Arc<Authority>,
    pub roots: Vec<Der>,
}

impl FromFiles {
    /// Why it cannot sign now.
    pub(super) fn unusable(&self, now: SystemTime) -> Option<String> {
        let (not_before, not_after) = validity(self.authority.certificate()).ok()?;
        match seconds(now) {
            now if now < not_before => Some(format!("it is not valid before {}", rfc3339(not_before))),
            now if now >= not_after => Some(format!("it has ended at {}", rfc3339(not_after))),
            _ => None,
        }
    }
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

    /// Begins to rotate, by command.
    pub fn rotate(&mut self, what: Rotate, now: SystemTime) -> Result<(), Error> {
        match what {
            Rotate::Intermediate => {
                let root = self.active_root().ok_or(Error::FromFiles)?;
                self.new_intermediate(&root, now)?;
            }
            Rotate::Root { at_once } => {
                if self.active_root().is_none() {
                    return Err(Error::FromFiles);
                }
                let waiting = self.roots.iter().find_map(|r| match r.phase {
                    Phase::Next { from } => Some(from),
                    Phase::Active | Phase::Retiring { .. } => None,
                });
                match waiting {
                    Some(at) if !at_once => return Err(Error::Rotating { at }),
                    Some(_) => {}
                    None => self.prepare_root(now)?,
                }
                if at_once {
                    self.activate_next_root(now, true)?;
                }
            }
        }
        self.advance(now, false)?;
        self.renew_bundle(now)
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

    /// Whether the holder of this certificate may have another one.
    pub fn may_renew(
        &self,
        id: &SpiffeId,
        serial: &Serial,
        not_before: u64,
        not_after: u64,
        now: SystemTime,
    ) -> Result<(), Error> {
        self.may_have_another(id, serial, not_before, (not_after, SKEW), now)
    }

    /// As [`Self::may_renew`], for who was away when the certificate ended.
    pub fn may_return(
        &self,
        id: &SpiffeId,
        serial: &Serial,
        not_before: u64,
        not_after: u64,
        now: SystemTime,
    ) -> Result<(), Error> {
        self.may_have_another(id, serial, not_before, (not_after, self.lifetimes.grace), now)
    }

    fn may_have_another(
        &self,
        id: &SpiffeId,
        serial: &Serial,
        not_before: u64,
        (not_after, grace): (u64, Duration),
        now: SystemTime,
    ) -> Result<(), Error> {
        let now = seconds(now);
        if now > not_after.saturating_add(grace.as_secs()) {
            return Err(Error::Expired { ago: now - not_after });
        }
        match self.bundle.revoked.iter().find(|r| r.concerns(id, serial, not_before)) {
            Some(revoked) => Err(Error::Revoked { id: id.to_string(), since: revoked.at() }),
            None => Ok(()),
        }
    }

    /// Whether a certificate of another CA, that began then, may still become `id`. Who was revoked, or had a certificate
    /// with which it could join again, needs a new one.
    pub fn may_join(&self, id: &SpiffeId, serial: &Serial, not_before: u64) -> Result<(), Error> {
        let concerns = |revoked: &&Revoked| match revoked {
            Revoked::Serial { serial: revoked, .. } => revoked == serial,
            Revoked::Identity { id: revoked, at } => revoked == id && not_before <= *at,
        };
        match self.bundle.revoked.iter().find(concerns) {
            Some(revoked) => Err(Error::JoinRevoked { id: id.to_string(), since: revoked.at() }),
            None => Ok(()),
        }
    }

    /// Revocations from now on are remembered until then at least.
    pub fn remembering(&mut self, until: u64) -> &mut Self {
        self.remember = until;
        self
    }

    /// Revokes one certificate, whoever has it.
    pub fn revoke_serial(&mut self, serial: &Serial, now: SystemTime) -> Result<(), Error> {
        self.revoke([(Some(serial.to_string()), None)], now)
    }

    /// Revokes all certificates that `id` has; `serials` are those known, for the CRL.
    pub fn revoke_identity(&mut self, id: &SpiffeId, serials: &[Serial], now: SystemTime) -> Result<(), Error> {
        if id.trust_domain() != self.domain {
            return Err(Error::Foreign { id: id.to_string(), domain: self.domain.clone() });
        }
        let known = serials.iter().map(|s| (Some(s.to_string()), Some(id.to_string())));
        self.revoke(known.chain([(None, Some(id.to_string()))]), now)
    }

    fn revoke(
        &mut self,
        what: impl IntoIterator<Item = (Option<String>, Option<String>)>,
        now: SystemTime,
    ) -> Result<(), Error> {
        // What has ended may come back in the grace, and must be known as revoked then.
        let until = (self.last_end(now) + self.lifetimes.grace.as_secs()).max(self.remember);
        let now_seconds = seconds(now);
        for (serial, identity) in what {
            let same = |r: &SavedRevocation| (&r.serial, &r.identity) == (&serial, &identity);
            // Who joins between two revocations in one second, or by clocks that differ, is not to outlive the second.
            let recent = |r: &&SavedRevocation| (now_seconds..=now_seconds + SKEW.as_secs()).contains(&r.at);
            let before = self.revocations.iter().filter(|r| same(r)).find(recent).map(|r| r.at + 1);
            self.revocations.retain(|r| !same(r));
            self.revocations.push(SavedRevocation { serial, identity, at: before.unwrap_or(now_seconds), until });
        }
        if self.revocations.len() > MAX_REVOCATIONS {
            return Err(Error::Revocation(format!(
                "there are {MAX_REVOCATIONS} revocations already: rotate the root instead, which ends all certificates"
            )));
        }
        self.renew_bundle(now)
    }

    /// Takes an intermediate from files, in the place of what signs now.
    pub fn take_files(&mut self, files: &FromFiles, now: SystemTime) -> Result<(), Error> {
        self.change_to_files(files, now)?;
        self.advance(now, false)?;
        self.renew_bundle(now)
    }

    /// Whether they were not in use already.
    fn change_to_files(&mut self, files: &FromFiles, now: SystemTime) -> Result<bool, Error> {
        let leads = |certificate: &Der| files.authority.leads_to(certificate);
        let own = files.roots.iter().find(|r| leads(r)).ok_or_else(|| Error::Files {
            file: "the roots".to_owned(),
            why: "none of them has signed the intermediate (or the last certificate of its chain)".to_owned(),
        })?;
        let own = fingerprint(own);
        let same = |i: &Intermediate| i.from_files && i.authority.certificate() == files.authority.certificate();
        if self.intermediates.iter().any(same) {
            return Ok(false);
        }
        // A root that nobody knows yet must be known before it counts, unless nothing else is there to sign.
        let first = !self.intermediates.iter().any(|i| i.phase == Phase::Active && i.valid(now));
        let from = seconds(now) + self.lifetimes.overlap.as_secs();
        let known = self.roots.iter().find(|r| fingerprint(&r.certificate) == own).map(|r| r.phase);
        let phase = match known {
            _ if first => Phase::Active,
            // Another control plane has brought it, not long ago.
            Some(Phase::Next { from }) => Phase::Next { from },
            Some(_) => Phase::Active,
            None => Phase::Next { from },
        };
        let until = self.last_end(now);
        if phase == Phase::Active {
            self.retire_intermediates(until);
        }
        for root in &mut self.roots {
            if !files.roots.contains(&root.certificate) && !matches!(root.phase, Phase::Retiring { .. }) {
                root.phase = Phase::Retiring { until: until + self.lifetimes.overlap.as_secs() };
            }
        }
        for certificate in &files.roots {
            match self.roots.iter_mut().find(|r| r.certificate == *certificate) {
                Some(root) => root.phase = phase,
                None => self.roots.push(Root { phase, ..Root::foreign(certificate)? }),
            }
        }
        self.intermediates.push(Intermediate {
            not_before: validity(files.authority.certificate())?.0,
            authority: Arc::clone(&files.authority),
            root: own,
            phase,
            longest: self.lifetimes.svid.as_secs(),
            from_files: true,
        });
        Ok(true)
    }

    /// Without files: an own root, if there is none.
    fn leave_files(&mut self, now: SystemTime) -> Result<bool, Error> {
        if self.active_root().is_some() {
            return Ok(false);
        }
        let until = self.last_end(now);
        for root in &mut self.roots {
            root.phase = Phase::Retiring { until };
        }
        self.prepare_root(now)?;
        self.activate_next_root(now, true)
    }

    /// `sure`: the time is right. A clock that was set back for a moment must not replace a root that everybody else can use.
    fn advance(&mut self, now: SystemTime, sure: bool) -> Result<bool, Error> {
        let mut changed = self.activate_next_root(now, false)?;
        for root in self.roots.iter_mut().filter(|r| r.authority.is_none()) {
            if matches!(root.phase, Phase::Next { from } if from <= seconds(now)) {
                (root.phase, changed) = (Phase::Active, true);
            }
        }
        changed |= self.activate_next_intermediate(now);
        let Some(root) = self.active_root() else { return Ok(changed) };
        let preparing = self.roots.iter().any(|r| matches!(r.phase, Phase::Next { .. }));
        if seconds(now) < root.not_before && !sure {
            return Ok(changed);
        }
        if !root.valid(now) {
            if !preparing {
                self.prepare_root(now)?;
            }
            self.activate_next_root(now, true)?;
            return Ok(true);
        }
        if !preparing && self.needs_successor(&root, now) {
            self.prepare_root(now)?;
            changed = true;
        }
        let signs = |i: &Intermediate| i.phase == Phase::Active && i.valid(now);
        let fresh = self.intermediates.iter().find(|i| signs(i));
        if fresh.is_none_or(|i| !i.from_files && worn(i.not_before, i.authority.not_after, now)) {
            // One that ends with its root is not made again and again: the root's successor brings a new one.
            let room = root.not_after > seconds(now) + self.lifetimes.intermediate.as_secs() / 3;
            if fresh.is_none() || room {
                self.new_intermediate(&root, now)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Whether the next root must be made now, so that it is known for all of the overlap before the old one can no longer sign:
    /// with short lives the last third of a root is too short for that. The overlap counts twice, for control planes that are
    /// away just then.
    fn needs_successor(&self, root: &Root, now: SystemTime) -> bool {
        let life = root.not_after.saturating_sub(root.not_before + SKEW.as_secs());
        let time = (self.lifetimes.svid + 2 * self.lifetimes.overlap).as_secs().min(life / 2);
        worn(root.not_before, root.not_after, now) || seconds(now) + time >= root.not_after
    }

    fn drop_ended(&mut self, now: SystemTime) -> bool {
        let now = seconds(now);
        let before = (self.roots.len(), self.intermediates.len(), self.revocations.len());
        let stays = |phase: Phase| !matches!(phase, Phase::Retiring { until } if until <= now);
        self.roots.retain(|r| stays(r.phase));
        self.intermediates.retain(|i| stays(i.phase));
        self.revocations.retain(|r| r.until > now);
        before != (self.roots.len(), self.intermediates.len(), self.revocations.len())
    }

    fn prepare_root(&mut self, now: SystemTime) -> Result<(), Error> {
        let authority = Authority::root(&self.domain, self.lifetimes.root, now)?;
        let mut from = seconds(now) + self.lifetimes.overlap.as_secs();
        if let Some(old) = self.active_root() {
            // The old one must outlive what is signed under it until then.
            from = from.min(old.not_after.saturating_sub(self.lifetimes.svid.as_secs())).max(seconds(now));
        }
        self.roots.push(Root {
            certificate: authority.certificate().clone(),
            not_before: seconds(now).saturating_sub(SKEW.as_secs()),
            not_after: authority.not_after,
            authority: Some(Arc::new(authority)),
            phase: Phase::Next { from },
        });
        Ok(())
    }

    fn activate_next_root(&mut self, now: SystemTime, at_once: bool) -> Result<bool, Error> {
        let due = |r: &Root| matches!(r.phase, Phase::Next { from } if at_once || from <= seconds(now));
        let ours = |r: &Root| due(r) && r.authority.is_some();
        let Some(next) = self.roots.iter().position(ours) else { return Ok(false) };
        // A control plane that the store does not reach goes on to sign under the old one until it does.
        let until = self.last_end(now) + self.lifetimes.overlap.as_secs();
        for root in &mut self.roots {
            if root.phase == Phase::Active {
                // By a clock before its beginning nobody can tell when the last certificate under it ends.
                let until = if seconds(now) < root.not_before { root.not_after } else { until };
                root.phase = Phase::Retiring { until };
            }
        }
        self.roots[next].phase = Phase::Active;
        let root = self.roots[next].clone();
        self.new_intermediate(&root, now)?;
        Ok(true)
    }

    fn activate_next_intermediate(&mut self, now: SystemTime) -> bool {
        let due = |i: &Intermediate| matches!(i.phase, Phase::Next { from } if from <= seconds(now));
        let Some(next) = self.intermediates.iter().position(due) else { return false };
        self.retire_intermediates(self.last_end(now));
        self.intermediates[next].phase = Phase::Active;
        true
    }

    fn new_intermediate(&mut self, root: &Root, now: SystemTime) -> Result<(), Error> {
        let signer = root.authority.as_ref().ok_or(Error::FromFiles)?;
        let authority = signer.intermediate(&self.domain, self.lifetimes.intermediate, now)?;
        self.retire_intermediates(self.last_end(now));
        self.intermediates.push(Intermediate {
            not_before: seconds(now).saturating_sub(SKEW.as_secs()),
            authority: Arc::new(authority),
            root: fingerprint(&root.certificate),
            phase: Phase::Active,
            longest: self.lifetimes.svid.as_secs(),
            from_files: false,
        });
        Ok(())
    }

    fn retire_intermediates(&mut self, until: u64) {
        for intermediate in &mut self.intermediates {
            if intermediate.phase == Phase::Active {
                intermediate.phase = Phase::Retiring { until };
            }
        }
    }

    /// The root that signs, if its key is here.
    fn active_root(&self) -> Option<Root> {
        self.roots.iter().find(|r| r.phase == Phase::Active && r.authority.is_some()).cloned()
    }

    /// When the last certificate that was issued until `now` has ended, by a late clock.
    fn last_end(&self, now: SystemTime) -> u64 {
        let longest = self.intermediates.iter().map(|i| i.longest).max().unwrap_or(0);
        seconds(now) + longest.max(self.lifetimes.svid.as_secs()) + SKEW.as_secs()
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

    /// Everything that signs, has signed or will sign.
    pub(super) fn lives(&self) -> Vec<Life> {
        let roots = self.roots.iter().map(|r| Life {
            root: true,
            from_files: r.authority.is_none(),
            phase: r.phase,
            not_before: r.not_before,
            not_after: r.not_after,
        });
        let intermediates = self.intermediates.iter().map(|i| Life {
            root: false,
            from_files: i.from_files,
            phase: i.phase,
            not_before: i.not_before,
            not_after: i.authority.not_after,
        });
        roots.chain(intermediates).collect()
    }

    /// For `status`: each root and intermediate with its phase, its end, and the SHA-256 of its certificate.
    pub fn authorities(&self) -> Vec<AuthorityStatus> {
        let roots = self.roots.iter().map(|r| AuthorityStatus {
            root: true,
            phase: r.phase,
            not_after: at(r.not_after),
            fingerprint: fingerprint(&r.certificate),
        });
        let intermediates = self.intermediates.iter().map(|i| AuthorityStatus {
            root: false,
            phase: i.phase,
            not_after: at(i.authority.not_after),
            fingerprint: i.authority.fingerprint(),
        });
        roots.chain(intermediates).collect()
    }
}

/// One root or intermediate, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorityStatus {
    pub root: bool,
    pub phase: Phase,
    pub not_after: SystemTime,
    pub fingerprint: [u8; 32],
}

/// Whether two thirds of a life are over.
fn worn(not_before: u64, not_after: u64, now: SystemTime) -> bool {
    let begin = not_before + SKEW.as_secs();
    let life = not_after.saturating_sub(begin);
    seconds(now) >= begin + life / 3 * 2
}

fn validity(certificate: &[u8]) -> Result<(u64, u64), Error> {
    let damaged = |why: String| Error::Damaged { what: "a certificate".to_owned(), why };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| damaged(e.to_string()))?;
    let second = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = parsed.validity();
    Ok((second(validity.not_before.timestamp()), second(validity.not_after.timestamp())))
}

impl Root {
    fn foreign(certificate: &Der) -> Result<Self, Error> {
        let (not_before, not_after) = validity(certificate)?;
        Ok(Self { certificate: certificate.clone(), not_before, not_after, authority: None, phase: Phase::Active })
    }

    fn valid(&self, now: SystemTime) -> bool {
        (self.not_before..self.not_after).contains(&seconds(now))
    }

    fn save(&self) -> SavedRoot {
        SavedRoot {
            certificate: BASE64_STANDARD.encode(&self.certificate),
            authority: self.authority.as_ref().map(|a| a.save()),
            phase: self.phase,
        }
    }

    fn restore(saved: &SavedRoot) -> Result<Self, Error> {
        let certificate = BASE64_STANDARD.decode(&saved.certificate);
        let certificate = certificate.map_err(|e| Error::Damaged { what: "a root".to_owned(), why: e.to_string() })?;
        let (not_before, not_after) = validity(&certificate)?;
        let authority = saved.authority.as_ref().map(Authority::restore).transpose()?.map(Arc::new);
        Ok(Self { certificate, not_before, not_after, authority, phase: saved.phase })
    }
}

impl Intermediate {
    fn valid(&self, now: SystemTime) -> bool {
        (self.not_before..self.authority.not_after).contains(&seconds(now))
    }

    fn save(&self) -> SavedIntermediate {
        SavedIntermediate {
            authority: self.authority.save(),
            root: BASE64_STANDARD.encode(self.root),
            phase: self.phase,
            longest: self.longest,
        }
    }

    fn restore(saved: &SavedIntermediate) -> Result<Self, Error> {
        let authority = Arc::new(Authority::restore(&saved.authority)?);
        let root = BASE64_STANDARD.decode(&saved.root).ok().and_then(|r| r.try_into().ok());
        let damaged = || Error::Damaged { what: "an intermediate".to_owned(), why: "its root is unknown".to_owned() };
        let not_before = validity(authority.certificate())?.0;
        let root = root.ok_or_else(damaged)?;
        Ok(Self { authority, not_before, root, phase: saved.phase, longest: saved.longest, from_files: false })
    }
}
