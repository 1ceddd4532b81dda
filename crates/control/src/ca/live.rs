//! The CA in a running control plane: [`Core`] with its store, its clock and who listens.

use super::{
    alarm::{self, Alarm, Expiry},
    authority::{Leaf, fingerprint},
    bundle::Bundle,
    core::{AuthorityStatus, Core, Lifetimes, Rotate},
    csr::Request,
    error::Error,
    files::{Contents, Files},
    seal::Sealed,
    state::State,
    store::{Batch, Key, Store, StoreError},
    time::{at, seconds},
    tokens::{Listed, Order, Refused, Token, Tokens},
};
use selvedge_identity::{JoinCertificate, Serial};
use selvedge_model::mesh::DEFAULT_DOMAIN;
use selvedge_wire::{log_time::rfc3339, spiffe::SpiffeId};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// The key of the one record that holds the CA's state.
const STATE: &str = "state";

/// How many certificates are remembered, to name them in a CRL when their identity is revoked.
const REMEMBERED: usize = 50_000;

/// How often a step is made anew when another control plane was quicker.
const TRIES: usize = 5;

/// Tells the time; tests bring their own.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What a CA is opened with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The one that it must be; the one in the store when not given, or else that of the Mesh.
    pub trust_domain: Option<String>,
    /// What the Mesh says, for a new store.
    pub mesh: Option<String>,
    pub lifetimes: Lifetimes,
    /// An intermediate of another CA instead of an own root.
    pub files: Option<Files>,
}

impl Options {
    /// The trust domain of a CA whose store is of this one already, if it is not new.
    fn choose(&self, stored: Option<&str>) -> Result<String, Error> {
        match (&self.trust_domain, &self.mesh, stored) {
            (Some(flag), Some(mesh), None) if flag != mesh => {
                Err(Error::Contradiction { flag: flag.clone(), mesh: mesh.clone() })
            }
            // That the store is of another one is told by who reads it.
            (Some(flag), ..) => Ok(flag.clone()),
            (None, _, Some(stored)) => Ok(stored.to_owned()),
            (None, Some(mesh), None) => Ok(mesh.clone()),
            (None, None, None) => Ok(DEFAULT_DOMAIN.to_owned()),
        }
    }
}

/// Whether the clock goes evenly. What has ended is only forgotten then: a clock that jumps ahead, and is set right again,
/// would have ended revocations and roots too early.
#[derive(Debug, Default)]
struct Steady {
    last: Option<u64>,
    since: u64,
}

impl Steady {
    /// Whether, now, there was no jump of more than `doubt` seconds for that long.
    fn look(&mut self, now: u64, doubt: u64) -> bool {
        let before = self.last.replace(now);
        if before.is_none_or(|last| now.abs_diff(last) > doubt) {
            if let Some(last) = before {
                warn!(
                    from = last,
                    to = now,
                    "the clock has jumped: what has ended is kept for a while, in case it is wrong"
                );
            }
            self.since = now;
        }
        now >= self.since + doubt
    }
}

/// Seconds for which a clock is doubted after a jump: an hour for certificates of a day, for somebody to set it right.
fn doubt(svid: Duration) -> u64 {
    (svid / 24).clamp(Duration::from_secs(2), Duration::from_secs(3600)).as_secs()
}

/// A certificate that somebody has proved to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    pub id: SpiffeId,
    pub serial: Serial,
    /// Seconds since 1970, both.
    pub not_before: u64,
    pub not_after: u64,
}

/// A certificate and what it takes to use it.
#[derive(Debug, Clone)]
pub struct Issued {
    pub id: SpiffeId,
    pub leaf: Leaf,
    pub bundle: Arc<Bundle>,
}

/// The CA of a trust domain. Shared by reference; all methods may be called at the same time.
pub struct Ca {
    core: RwLock<Arc<Core>>,
    /// As of when it is what the store holds, in seconds since 1970.
    as_of: AtomicU64,
    /// Held while a step is made and stored: the sealed state as it is in the store.
    stored: tokio::sync::Mutex<Option<Vec<u8>>>,
    store: Sealed,
    tokens: Tokens,
    trust_domain: String,
    options: Options,
    contents: Mutex<Option<Contents>>,
    bundles: watch::Sender<Arc<Bundle>>,
    issued: Mutex<VecDeque<(SpiffeId, Serial, u64)>>,
    leads: watch::Receiver<bool>,
    clock: Clock,
    steady: Mutex<Steady>,
    remember: AtomicU64,
    /// What was told last of files that cannot be used.
    unusable: Mutex<String>,
    /// Of the intermediate and the root.
    raised: Mutex<[Alarm; 2]>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Ca {
    /// Opens the CA in `store`, or makes one there. On an error nothing was changed that was there.
    pub async fn open(store: Arc<dyn Store>, key: &Key, options: Options, clock: Clock) -> Result<Self, Error> {
        let leads = watch::Sender::new(true).subscribe();
        Self::open_shared(store, key, options, clock, leads).await
    }

    /// Opens the CA in a store that other control planes have open too. What is due by time is only done while `leads` says
    /// so; the others take it over from the store.
    pub async fn open_shared(
        store: Arc<dyn Store>,
        key: &Key,
        options: Options,
        clock: Clock,
        leads: watch::Receiver<bool>,
    ) -> Result<Self, Error> {
        let contents = options.files.as_ref().map(Files::read).transpose()?;
        let from_files = options.files.as_ref().zip(contents.as_ref()).map(|(f, c)| f.parse(c)).transpose()?;
        let store = Sealed::open(store, key).await?;
        let now = clock();
        let found = store.read::<State>(STATE).await?;
        let trust_domain = options.choose(found.as_ref().map(|(state, _)| state.trust_domain.as_str()))?;
        let (domain, lifetimes, leading) = (&trust_domain, options.lifetimes, *leads.borrow());
        let restored = found.as_ref().map(|(state, _)| match leading {
            true => Core::restore(state, domain, lifetimes, from_files.as_ref(), now),
            false => Core::adopt(state, domain, lifetimes, from_files.as_ref(), None, now),
        });
        let adopted = restored.is_some() && !leading;
        let core = restored.unwrap_or_else(|| Core::create(domain, lifetimes, from_files.as_ref(), now))?;
        let before = found.map(|(_, sealed)| sealed);
        let ca = Self {
            bundles: watch::Sender::new(Arc::clone(core.bundle())),
            core: RwLock::new(Arc::new(core.clone())),
            as_of: AtomicU64::new(seconds(now)),
            stored: tokio::sync::Mutex::new(before),
            tokens: Tokens::new(store.clone()),
            store,
            trust_domain,
            options,
            contents: Mutex::new(contents),
            issued: Mutex::default(),
            leads,
            clock,
            steady: Mutex::default(),
            remember: AtomicU64::new(0),
            unusable: Mutex::default(),
            raised: Mutex::default(),
        };
        let mut stored = ca.stored.lock().await;
        if !adopted && !ca.replace(&mut stored, core).await? {
            // Another control plane was quicker; what it has stored counts.
            ca.refresh(&mut stored).await?;
        }
        drop(stored);
        Ok(ca)
    }

    fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Now, as the CA's clock says.
    pub fn now(&self) -> SystemTime {
        (self.clock)()
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Where the store is.
    pub fn place(&self) -> String {
        self.store.place()
    }

    pub fn bundle(&self) -> Arc<Bundle> {
        Arc::clone(self.core().bundle())
    }

    /// Yields each new bundle.
    pub fn bundles(&self) -> watch::Receiver<Arc<Bundle>> {
        self.bundles.subscribe()
    }

    /// Roots and intermediates, for people.
    pub fn authorities(&self) -> Vec<AuthorityStatus> {
        self.core().authorities()
    }

    /// A first certificate for whoever has a token. A `wanted` identity must be the token's.
    pub async fn join(&self, token: &str, wanted: Option<&SpiffeId>, csr: &[u8]) -> Result<Issued, Error> {
        let token: Token = token.parse()?;
        if token.trust_domain != self.trust_domain {
            let domain = self.trust_domain.clone();
            return Err(Refused::OtherDomain { token: token.trust_domain, domain }.into());
        }
        let now = self.now();
        // All that can fail comes before the token is used up.
        let id = self.tokens.look(&token, wanted, now).await?;
        let request = Request::read(csr, &id)?;
        // Nor may it be taken for who had the identity before, and was revoked a moment ago.
        self.refresh(&mut *self.stored.lock().await).await?;
        let core = self.core();
        let leaf = self.sign(&core, &id, &request, now)?;
        let key = rcgen::PublicKeyData::subject_public_key_info(request.key());
        self.tokens.redeem(&token, Some(&id), &key, now).await?;
        info!(%id, serial = %leaf.serial, token = token.id(), "a node has joined");
        Ok(self.issued(id, leaf))
    }

    /// A first certificate of `id` for whoever has proved to hold a certificate of another CA, whose rules give it `id`.
    pub fn join_by_certificate(&self, id: &SpiffeId, shown: &JoinCertificate, csr: &[u8]) -> Result<Issued, Error> {
        let (core, now) = (self.core(), self.now());
        core.may_join(id, &shown.serial, shown.not_before)?;
        let request = Request::read(csr, id)?;
        let leaf = self.sign(&core, id, &request, now)?;
        info!(
            %id, serial = %leaf.serial, ca = shown.cas.join(", "), shown = shown.names(), shown_serial = %shown.serial,
            "a node has joined by a certificate of another CA"
        );
        Ok(self.issued(id.clone(), leaf))
    }

    /// Revocations from now on are remembered until then at least (seconds since 1970): as long as certificates of other
    /// CAs are good for joining again.
    pub fn remember_revocations(&self, until: u64) {
        self.remember.store(until, Ordering::Relaxed);
    }

    /// The next certificate for whoever has proved to hold `current`, for the same identity.
    pub fn renew(&self, current: &Current, csr: &[u8]) -> Result<Issued, Error> {
        let (core, now) = (self.core(), self.now());
        core.may_renew(&current.id, &current.serial, current.not_before, current.not_after, now)?;
        let request = Request::read(csr, &current.id)?;
        let leaf = self.sign(&core, &current.id, &request, now)?;
        info!(id = %current.id, serial = %leaf.serial, "a certificate was renewed");
        Ok(self.issued(current.id.clone(), leaf))
    }

    /// As [`Self::renew`], for who was away when `current` ended. That it holds the key was proved by a signature.
    pub fn come_back(&self, current: &Current, csr: &[u8]) -> Result<Issued, Error> {
        let (core, now) = (self.core(), self.now());
        core.may_return(&current.id, &current.serial, current.not_before, current.not_after, now)?;
        let request = Request::read(csr, &current.id)?;
        let leaf = self.sign(&core, &current.id, &request, now)?;
        info!(id = %current.id, serial = %leaf.serial, ended = current.not_after, "a node has come back after the end of its certificate");
        Ok(self.issued(current.id.clone(), leaf))
    }

    /// A certificate for something in this process, of any identity.
    pub fn issue_local(&self, id: &SpiffeId, csr: &[u8]) -> Result<Issued, Error> {
        let request = Request::read(csr, id)?;
        let leaf = self.sign(&self.core(), id, &request, self.now())?;
        Ok(self.issued(id.clone(), leaf))
    }

    /// A certificate for the control plane itself. The chain ends with the root, so that a node that knows only the root's
    /// SHA-256 from its join token can verify it.
    pub fn issue_own(&self, id: &SpiffeId, csr: &[u8]) -> Result<Issued, Error> {
        let (core, now) = (self.core(), self.now());
        let request = Request::read(csr, id)?;
        let mut leaf = self.sign(&core, id, &request, now)?;
        leaf.chain.push(core.root_of_issue(now)?.clone());
        Ok(self.issued(id.clone(), leaf))
    }

    /// Dated as of when revocations are known here, but by half of a life at most, so that it is not due for renewal at once.
    fn sign(&self, core: &Core, id: &SpiffeId, request: &Request, now: SystemTime) -> Result<Leaf, Error> {
        let oldest = now.checked_sub(self.options.lifetimes.svid / 2).unwrap_or(SystemTime::UNIX_EPOCH);
        let as_of = at(self.as_of.load(Ordering::Relaxed)).max(oldest);
        core.issue_as_of(id, request, None, (as_of, now))
    }

    fn issued(&self, id: SpiffeId, leaf: Leaf) -> Issued {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        let now = seconds(self.now());
        while issued.len() >= REMEMBERED || issued.front().is_some_and(|(_, _, end)| *end < now) {
            issued.pop_front();
        }
        issued.push_back((id.clone(), leaf.serial.clone(), leaf.not_after));
        drop(issued);
        Issued { id, leaf, bundle: self.bundle() }
    }

    /// A join token; its text is shown once.
    pub async fn create_token(&self, order: &Order) -> Result<Token, Error> {
        if order.id.trust_domain() != self.trust_domain || order.id.path().is_empty() {
            let domain = self.trust_domain.clone();
            return Err(Error::Foreign { id: order.id.to_string(), domain });
        }
        let now = self.now();
        let root = fingerprint(self.core().root_of_issue(now)?);
        let token = self.tokens.create(order, root, now).await?;
        info!(id = %order.id, token = token.id(), "a join token was made");
        Ok(token)
    }

    pub async fn list_tokens(&self) -> Result<Vec<Listed>, Error> {
        self.tokens.list().await
    }

    /// Whether there was such a token.
    pub async fn delete_token(&self, id: &str) -> Result<bool, Error> {
        self.tokens.delete(id).await
    }

    /// Begins to rotate.
    pub async fn rotate(&self, what: Rotate) -> Result<(), Error> {
        self.step(|core, now| core.rotate(what, now).map(|()| true)).await?;
        info!(?what, "the CA rotates by command");
        Ok(())
    }

    pub async fn revoke_serial(&self, serial: &Serial) -> Result<(), Error> {
        self.step(|core, now| {
            core.remembering(self.remember.load(Ordering::Relaxed)).revoke_serial(serial, now).map(|()| true)
        })
        .await?;
        warn!(%serial, "a certificate was revoked");
        Ok(())
    }

    /// Revokes what `id` has now; what is issued later (after a join with a new token) is good.
    pub async fn revoke_identity(&self, id: &SpiffeId) -> Result<(), Error> {
        let serials: Vec<Serial> = {
            let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
            issued.iter().filter(|(i, ..)| i == id).map(|(_, serial, _)| serial.clone()).collect()
        };
        // First, so that nobody who has stolen a token or its key comes back by it.
        for token in self.tokens.list().await?.iter().filter(|token| token.identity == id.as_str()) {
            self.tokens.delete(&token.id).await?;
        }
        self.step(|core, now| {
            core.remembering(self.remember.load(Ordering::Relaxed)).revoke_identity(id, &serials, now).map(|()| true)
        })
        .await?;
        warn!(%id, "an identity was revoked, with all join tokens for it");
        Ok(())
    }

    /// What is due now: rotations, changed files, what another control plane has stored.
    pub async fn tick(&self) -> Result<(), Error> {
        let leads = *self.leads.borrow();
        let files = self.changed_files();
        let sure = {
            let mut steady = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
            steady.look(seconds(self.now()), doubt(self.options.lifetimes.svid))
        };
        self.step(|core, now| {
            if let Some((files, _)) = &files {
                core.take_files(files, now)?;
            }
            Ok((leads && core.tick(now, sure)?) || files.is_some())
        })
        .await?;
        if let Some((_, contents)) = files {
            info!("the intermediate from files has changed");
            *self.contents.lock().unwrap_or_else(PoisonError::into_inner) = Some(contents);
        }
        self.raise();
        Ok(())
    }

    /// Makes what is due, for ever. Failures are logged; what was before keeps on.
    pub async fn run(&self) {
        // A sixtieth of a certificate's life is soon enough for all that depends on it.
        let often = (self.options.lifetimes.svid / 60).clamp(Duration::from_millis(200), Duration::from_secs(5));
        let mut ticks = tokio::time::interval(often);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = String::new();
        loop {
            ticks.tick().await;
            match self.tick().await {
                Ok(()) => last.clear(),
                Err(failed) => {
                    let text = failed.to_string();
                    if text != last {
                        error!(error = %text, "the CA cannot make its next step and keeps its state; it tries again");
                        last = text;
                    }
                }
            }
        }
    }

    /// Files that can be used, and differ from those in use. Others are told of once, and left.
    fn changed_files(&self) -> Option<(super::core::FromFiles, Contents)> {
        let files = self.options.files.as_ref()?;
        let found = files.read().and_then(|contents| {
            if self.contents.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&contents) {
                return Ok(None);
            }
            // Chain and key are two files: between their writes they do not fit, which the next look finds mended.
            let parsed = files.parse(&contents)?;
            match parsed.unusable(self.now()) {
                Some(why) if self.core().root_of_issue(self.now()).is_ok() => {
                    Err(Error::Files { file: files.chain.display().to_string(), why })
                }
                _ => Ok(Some((parsed, contents))),
            }
        });
        let mut told = self.unusable.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(found) => {
                told.clear();
                found
            }
            Err(error) => {
                let error = error.to_string();
                if error != *told {
                    warn!(%error, "the CA's files have changed, but cannot be used; the former ones stay");
                    *told = error;
                }
                None
            }
        }
    }

    /// When what signs ends.
    pub fn expiries(&self) -> Vec<Expiry> {
        alarm::of(&self.core(), self.now())
    }

    /// What is wrong with the files of the intermediate, while the former ones stay in use; `None` without files.
    pub fn files_unusable(&self) -> Option<bool> {
        self.options.files.as_ref()?;
        Some(!self.unusable.lock().unwrap_or_else(PoisonError::into_inner).is_empty())
    }

    /// Tells of alarms when they begin, and when they are over.
    fn raise(&self) {
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        for expiry in self.expiries() {
            let (what, until) = (expiry.name(), rfc3339(expiry.not_after));
            let before = std::mem::replace(&mut raised[usize::from(expiry.root)], expiry.alarm);
            let whose = match expiry.from_files {
                true => "replace the files (--ca-intermediate, --ca-roots)",
                false => "see why it is not rotated: is the store writable?",
            };
            match expiry.alarm {
                alarm if alarm == before => {}
                Alarm::None => info!(what, until, "the CA has a fresh authority"),
                Alarm::Half => warn!(what, until, "half of the life of the CA's authority is over: {whose}"),
                Alarm::Urgent => error!(what, until, "four fifths of the life of the CA's authority are over: {whose}"),
                Alarm::Over => error!(what, until, "the CA's authority is not valid, and nothing is issued: {whose}"),
            }
        }
    }

    /// Makes a step on a copy, stores it, and only then lets it count.
    async fn step(&self, work: impl Fn(&mut Core, SystemTime) -> Result<bool, Error>) -> Result<(), Error> {
        let mut stored = self.stored.lock().await;
        for _ in 0..TRIES {
            self.refresh(&mut stored).await?;
            let mut core = Core::clone(&self.core());
            if !work(&mut core, self.now())? {
                return Ok(());
            }
            if self.replace(&mut stored, core).await? {
                return Ok(());
            }
        }
        Err(StoreError::Conflict { place: self.store.place() }.into())
    }

    /// Takes over what another control plane has stored.
    async fn refresh(&self, stored: &mut Option<Vec<u8>>) -> Result<(), Error> {
        let began = seconds(self.now());
        let other = self.store.read_other::<State>(STATE, stored.as_ref()).await?;
        let Some((state, sealed)) = other else {
            self.as_of.store(began, Ordering::Relaxed);
            return Ok(());
        };
        let contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let files = self.options.files.as_ref().zip(contents.as_ref()).map(|(f, c)| f.parse(c)).transpose()?;
        let (domain, lifetimes) = (&self.trust_domain, self.options.lifetimes);
        // What is due is done, and stored, by the step that asked, if it may.
        let core = Core::adopt(&state, domain, lifetimes, files.as_ref(), Some(&self.core()), self.now())?;
        *stored = Some(sealed);
        self.publish(core);
        self.as_of.store(began, Ordering::Relaxed);
        Ok(())
    }

    async fn replace(&self, stored: &mut Option<Vec<u8>>, core: Core) -> Result<bool, Error> {
        let sealed = self.store.seal(STATE, &core.save())?;
        let batch = Batch {
            expect: vec![(STATE.to_owned(), stored.clone())],
            put: vec![(STATE.to_owned(), sealed.clone())],
            delete: Vec::new(),
        };
        if !self.store.write(batch).await? {
            return Ok(false);
        }
        *stored = Some(sealed);
        self.publish(core);
        Ok(true)
    }

    fn publish(&self, core: Core) {
        let bundle = Arc::clone(core.bundle());
        *self.core.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(core);
        self.bundles.send_if_modified(|old| {
            let changed = **old != *bundle;
            *old = bundle;
            changed
        });
    }
}
