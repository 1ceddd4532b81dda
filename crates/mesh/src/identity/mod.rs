//! Keeps identities: for each one a certificate that is renewed long before it ends, by a key that is made here and never
//! leaves, and the bundle of the trust domain, which counts at once when it changes.
//!
//! A new certificate takes the place of the old one only after it was verified as a peer would do. While none is to be had,
//! the old one stays in use until its end and never longer; tries go on with growing pauses of at most 150 s.
//!
//! When the clock jumps beyond the end of a certificate, nothing is proved any more (fails closed). The certificate is kept:
//! when the clock is put right, it counts again without help. When a node really slept for longer than its certificate, it
//! joins again with its token, if that one is still good; otherwise the message says that a new token is needed.

mod saved;
#[cfg(test)]
mod tests;

use saved::Folder;
pub use selvedge_identity::Alarm;
use selvedge_identity::{Expect, Identities, Issued, Issuer, KeyPair, Life, NotIssued, Role, Span, Svid, Trust};
use selvedge_proxy::telemetry::{encode::Encoder, families::Family};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, task::JoinHandle};
use tracing::{error, info, warn};

/// Tells the time; tests bring their own.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A number evenly between 0 and 1.
pub type Chance = Arc<dyn Fn() -> f64 + Send + Sync>;

/// An issuer that has not answered by then counts as away.
const PATIENCE: Duration = Duration::from_secs(30);

/// The clock is looked at again after this, in case that it was set.
const LOOK: Duration = Duration::from_secs(15);

/// What a keeper needs besides identities and an issuer.
#[derive(Clone)]
pub struct Options {
    /// Where SVIDs and the bundle are kept over restarts.
    pub state: Option<PathBuf>,
    pub clock: Clock,
    pub chance: Chance,
}

impl Options {
    /// With the clock of this machine.
    pub fn new(state: Option<PathBuf>) -> Self {
        Self { state, clock: Arc::new(SystemTime::now), chance: Arc::new(rand::random::<f64>) }
    }
}

/// How one identity is doing; for status and metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct IdentityStatus {
    pub id: SpiffeId,
    /// When its certificate ends; `None` until there is one.
    pub not_after: Option<SystemTime>,
    /// How much of the certificate's life is over, 0 to 1.
    pub age: f64,
    pub alarm: Alarm,
    /// Certificates that were obtained.
    pub renewals: u64,
    /// Tries that failed since the last certificate.
    pub failures: u32,
    pub last_error: Option<String>,
}

/// Keeps identities until it is dropped.
pub struct Keeper {
    shared: Arc<Shared>,
    trust: JoinHandle<()>,
}

struct Shared {
    identities: Arc<Identities>,
    issuer: Arc<dyn Issuer>,
    options: Options,
    folder: Option<Folder>,
    kept: Mutex<BTreeMap<SpiffeId, Kept>>,
    /// The number of the bundle in use, by which older ones are told.
    sequence: Mutex<Option<u64>>,
    changed: watch::Sender<u64>,
}

struct Kept {
    life: Life,
    renewals: u64,
    last_error: Option<String>,
    alarmed: Alarm,
    /// A saved certificate that ended while this process was away: it may still prove who we are to the issuer.
    lapsed: Option<Arc<Svid>>,
    /// The key that was asked for last, until its certificate is in use: should it be the answer that was lost, then the
    /// join token is used up, and for this key alone it still counts.
    asked: Option<Arc<KeyPair>>,
    task: Option<JoinHandle<()>>,
}

impl Keeper {
    /// What was saved before is in use at once. To be called on a runtime.
    ///
    /// # Errors
    /// When the state folder cannot be made.
    pub fn new(identities: Arc<Identities>, issuer: Arc<dyn Issuer>, options: Options) -> io::Result<Self> {
        let folder = options.state.as_deref().map(Folder::new).transpose()?;
        let shared = Arc::new(Shared {
            identities,
            issuer,
            options,
            folder,
            kept: Mutex::default(),
            sequence: Mutex::new(None),
            changed: watch::Sender::new(0),
        });
        if let Some(trust) = shared.folder.as_ref().and_then(Folder::load_trust) {
            shared.trust(&trust, false);
        }
        let trust = tokio::spawn(Arc::clone(&shared).follow_trust());
        Ok(Self { shared, trust })
    }

    /// Keeps this identity from now on.
    pub fn keep(&self, id: &SpiffeId) {
        let mut kept = self.shared.kept();
        if kept.contains_key(id) {
            return;
        }
        let (mut life, mut lapsed) = (Life::default(), None);
        if let Some(svid) = self.shared.folder.as_ref().and_then(|f| f.load_svid(id)) {
            let span = span(&svid);
            if self.shared.usable(&svid).is_ok() {
                info!(%id, "a saved certificate is in use");
                self.shared.identities.set(svid);
                // The process may have ended between saving the one and removing the other.
                self.shared.folder.iter().for_each(|folder| folder.remove_key(id));
                life.holds(span, (self.shared.options.chance)());
            } else if span.not_after <= self.shared.now() {
                info!(%id, "the saved certificate has ended; the issuer is asked whether it will do for another one");
                lapsed = Some(Arc::new(svid));
            }
        }
        let task = tokio::spawn(Arc::clone(&self.shared).keep(id.clone()));
        let (last_error, alarmed) = (None, Alarm::None);
        let entry = Kept { life, renewals: 0, last_error, alarmed, lapsed, asked: None, task: Some(task) };
        kept.insert(id.clone(), entry);
    }

    /// This identity is no longer ours: its certificate is not shown any more.
    pub fn forget(&self, id: &SpiffeId) {
        let gone = self.shared.kept().remove(id);
        if let Some(task) = gone.and_then(|k| k.task) {
            task.abort();
        }
        self.shared.identities.remove(id);
    }

    /// Resolves when there is a certificate for `id`.
    pub async fn ready(&self, id: &SpiffeId) -> Arc<Svid> {
        let mut changed = self.shared.identities.changed();
        loop {
            changed.mark_unchanged();
            if let Some(svid) = self.shared.identities.get(id) {
                return svid;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// All identities that are kept, as they are now.
    pub fn statuses(&self) -> Vec<IdentityStatus> {
        let now = self.shared.now();
        let kept = self.shared.kept();
        let statuses = kept.iter().map(|(id, kept)| IdentityStatus {
            id: id.clone(),
            not_after: kept.life.held().map(|span| span.not_after),
            age: kept.life.held().map_or(1.0, |span| span.age(now)),
            alarm: kept.life.alarm(now),
            renewals: kept.renewals,
            failures: kept.life.failures(),
            last_error: kept.last_error.clone(),
        });
        statuses.collect()
    }

    /// Adds the metrics of all identities.
    pub fn encode(&self, out: &mut Encoder) {
        for status in self.statuses() {
            let id = [status.id.as_str()];
            let since = |end: SystemTime| end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            out.sample(Family::IdentityExpiry, &id, status.not_after.map_or(0, since));
            let alarm: u64 = match status.alarm {
                Alarm::None => 0,
                Alarm::Half => 1,
                Alarm::Urgent => 2,
                Alarm::Without => 3,
            };
            out.sample(Family::IdentityAlarm, &id, alarm);
            out.sample(Family::IdentityRenewals, &id, status.renewals);
            out.sample(Family::IdentityFailures, &id, u64::from(status.failures));
        }
    }

    /// Tells when [`Self::statuses`] should be looked at.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.trust.abort();
        for kept in self.shared.kept().values() {
            if let Some(task) = &kept.task {
                task.abort();
            }
        }
    }
}

fn span(svid: &Svid) -> Span {
    Span { not_before: svid.not_before(), not_after: svid.not_after() }
}

impl Shared {
    fn now(&self) -> SystemTime {
        (self.options.clock)()
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: &SpiffeId, work: impl FnOnce(&mut Kept) -> T) -> Option<T> {
        self.kept().get_mut(id).map(work)
    }

    /// The life of one identity, until its task is aborted.
    async fn keep(self: Arc<Self>, id: SpiffeId) {
        let mut trust = self.identities.changed();
        loop {
            let now = self.now();
            let Some(due) = self.with(&id, |kept| kept.life.due(now)) else { return };
            if due <= now {
                self.obtain(&id).await;
            }
            self.raise(&id);
            let now = self.now();
            let Some(due) = self.with(&id, |kept| kept.life.due(now)) else { return };
            let wait = due.duration_since(now).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(wait.min(LOOK)) => {}
                changed = trust.changed() => if changed.is_err() { return },
            }
            self.look_at_own(&id);
        }
    }

    /// What we hold may have been revoked, or its root may be gone.
    fn look_at_own(&self, id: &SpiffeId) {
        let Some(svid) = self.identities.get(id) else { return };
        let now = self.now();
        if span(&svid).holds(now)
            && let Err(why) = self.usable(&svid)
        {
            let first = self.with(id, |kept| {
                let first = kept.life.failures() == 0;
                if first {
                    kept.life.renew_now();
                }
                first
            });
            if first == Some(true) {
                warn!(%id, %why, "our certificate does not count any more; a new one is asked for");
            }
        }
    }

    async fn obtain(&self, id: &SpiffeId) {
        let result = match tokio::time::timeout(PATIENCE, self.ask(id)).await {
            Ok(result) => result,
            Err(_) => Err(NotIssued::Later("the issuer does not answer".to_owned())),
        };
        let (now, chance) = (self.now(), (self.options.chance)());
        match result {
            Ok(svid) => {
                let (span, serial) = (span(&svid), svid.serial().clone());
                if let Some(folder) = &self.folder {
                    match folder.save_svid(&svid) {
                        Ok(()) => folder.remove_key(id),
                        Err(error) => {
                            warn!(%id, %error, "the certificate cannot be saved; it is in use, but a restart would lose it");
                        }
                    }
                }
                self.identities.set(svid);
                info!(%id, %serial, "a new certificate is in use");
                let why = "the authority that signs it ends when the last certificate does: replace the authority";
                self.with(id, |kept| {
                    let gained = kept.life.renewed(span, now, chance);
                    if !gained && kept.last_error.is_none() {
                        warn!(%id, reason = why, "the new certificate ends no later than the last one");
                    }
                    kept.renewals += 1;
                    (kept.lapsed, kept.asked) = (None, None);
                    kept.last_error = (!gained).then(|| why.to_owned());
                });
            }
            Err(why) => {
                let text = why.to_string();
                self.with(id, |kept| {
                    // The same again is not worth a line each time.
                    if kept.last_error.as_ref() != Some(&text) {
                        match &why {
                            NotIssued::Later(_) => warn!(%id, reason = %text, "no new certificate yet; trying again"),
                            NotIssued::Never(_) => error!(%id, reason = %text, "no new certificate"),
                        }
                    }
                    kept.last_error = Some(text);
                    kept.life.failed(now, chance);
                });
            }
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// A certificate for a new key, verified as a peer would verify it.
    async fn ask(&self, id: &SpiffeId) -> Result<Svid, NotIssued> {
        let ours = |error: selvedge_identity::Error| NotIssued::Later(error.to_string());
        let key = match self.with(id, |kept| kept.asked.clone()).flatten() {
            Some(key) => key,
            None => Arc::new(self.key_to_ask_for(id).map_err(ours)?),
        };
        self.with(id, |kept| kept.asked = Some(Arc::clone(&key)));
        let request = key.request(id).map_err(ours)?;
        let current = self.identities.get(id).or_else(|| self.with(id, |kept| kept.lapsed.clone()).flatten());
        let Issued { chain, trust } = self.issuer.issue(id, current, request).await?;
        self.trust(&trust, true);
        let svid = Svid::new(chain, key.private_key())
            .map_err(|e| NotIssued::Later(format!("what was issued cannot be used: {e}")))?;
        let refused = |why: String| {
            NotIssued::Later(format!(
                "what was issued would not be accepted: {why}; compare the clocks of both machines"
            ))
        };
        self.usable(&svid).map_err(refused)?;
        if svid.id() != id {
            return Err(NotIssued::Later(format!("asked for {id} and got {}", svid.id())));
        }
        Ok(svid)
    }

    /// A new key, or the one that was asked for when this process ended without a certificate. A join token is used up by the
    /// key that is asked for: from then on until its certificate is saved, it must not be lost, and so it is saved first.
    fn key_to_ask_for(&self, id: &SpiffeId) -> Result<KeyPair, selvedge_identity::Error> {
        if let Some(key) = self.folder.as_ref().and_then(|folder| folder.load_key(id)) {
            info!(%id, "the key of before is asked for again: no certificate had come for it when the process ended");
            return Ok(key);
        }
        let key = KeyPair::generate()?;
        if let Some(Err(error)) = self.folder.as_ref().map(|folder| folder.save_key(id, &key)) {
            warn!(%id, %error, "the new key cannot be saved: should the process end before it has its certificate, the join \
                               token is used up");
        }
        Ok(key)
    }

    /// Whether peers with our bundle accept it now, whichever side we are.
    fn usable(&self, svid: &Svid) -> Result<(), String> {
        let since = self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = rustls_pki_types::UnixTime::since_unix_epoch(since);
        for role in [Role::Server, Role::Client] {
            let expect = Expect::Exactly(svid.id().clone());
            self.identities.judge(svid.chain(), &expect, role, now).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Logs each alarm once.
    fn raise(&self, id: &SpiffeId) {
        let now = self.now();
        let risen = self.with(id, |kept| {
            let alarm = kept.life.alarm(now);
            let risen = alarm > kept.alarmed && (kept.life.failures() > 0 || kept.life.held().is_some());
            kept.alarmed = alarm;
            risen.then(|| (alarm, kept.last_error.clone().unwrap_or_default()))
        });
        let Some(Some((alarm, reason))) = risen else { return };
        match alarm {
            Alarm::None => {}
            Alarm::Half => warn!(%id, reason, "half of the certificate's life is over and it could not be renewed"),
            Alarm::Urgent => error!(%id, reason, "the certificate ends soon and could not be renewed"),
            Alarm::Without => error!(%id, reason, "there is no valid certificate: nothing is proved to anybody"),
        }
        self.changed.send_modify(|version| *version += 1);
    }

    async fn follow_trust(self: Arc<Self>) {
        let mut news = self.issuer.trust();
        loop {
            let trust = news.borrow_and_update().clone();
            if let Some(trust) = trust {
                self.trust(&trust, true);
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    }

    /// Trusts this bundle from now on, unless a newer one is in use.
    fn trust(&self, trust: &Trust, save: bool) {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        if sequence.is_some_and(|held| held >= trust.sequence) {
            return;
        }
        if let Err(error) = self.identities.set_bundle(&trust.domain, trust.bundle.clone()) {
            error!(%error, "a bundle cannot be used");
            return;
        }
        *sequence = Some(trust.sequence);
        let folder = self.folder.as_ref().filter(|_| save);
        if let Some(Err(error)) = folder.map(|f| f.save_trust(trust)) {
            warn!(%error, "the bundle cannot be saved; it is in use, but a restart would lose it");
        }
    }
}
