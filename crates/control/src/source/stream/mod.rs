//! Resources from a control plane's stream: `machine` decides, `link` does the IO, and the source here takes changes in,
//! refuses what is bad, and keeps what was good.

mod link;
pub mod machine;

pub use link::{Dial, Dialed, Handle, Link, State};

use super::Source;
use crate::{
    Current,
    publish::version::{Version, canonical, read_key},
    saved::Saved,
};
use machine::{Change, Me, Outcome};
use selvedge_compile::Compiled;
use selvedge_model::{Code, Diagnostic, Kind, Resource, ResourceKey, Resources};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
};
use tokio::sync::{mpsc, watch};

/// The one file in the saved state.
const FILE: &str = "stream";

/// See the module.
pub struct StreamSource {
    me: Me,
    dial: Arc<dyn Dial>,
    resources: Resources,
    /// Newer versions that are not served, because they are bad.
    rejected: BTreeMap<ResourceKey, Rejected>,
    link: Option<Ends>,
    pending: Option<Change>,
    round: Option<Round>,
    /// Errors about certificates before this round.
    certificates: BTreeSet<String>,
    state: watch::Sender<State>,
    handle: Handle,
    inputs: Option<mpsc::Receiver<link::Input>>,
}

struct Ends {
    changes: mpsc::Receiver<Change>,
    outcomes: mpsc::Sender<Outcome>,
}

/// A version that is not served.
struct Rejected {
    version: Version,
    /// It can be read: it is tried again when something else has changed, which may be what it lacked.
    resource: Option<Resource>,
    why: Vec<String>,
}

/// A change that is being taken in.
#[derive(Default)]
struct Round {
    nonce: String,
    /// What it touched, with what was there before.
    before: BTreeMap<ResourceKey, (Version, Option<Resource>)>,
    judged: bool,
}

impl StreamSource {
    pub fn new(me: Me, dial: Arc<dyn Dial>) -> Self {
        let (handle, inputs) = Handle::new();
        Self {
            me,
            dial,
            resources: Resources::default(),
            rejected: BTreeMap::new(),
            link: None,
            pending: None,
            round: None,
            certificates: BTreeSet::new(),
            state: watch::Sender::default(),
            handle,
            inputs: Some(inputs),
        }
    }

    /// To ask for more, and to register workloads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Whether the stream is there.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    fn take_in(&mut self, change: Change) {
        let mut round = Round { nonce: change.nonce, ..Round::default() };
        let again: Vec<(ResourceKey, Version, Resource)> = self
            .rejected
            .iter()
            .filter_map(|(key, rejected)| Some((key.clone(), rejected.version, rejected.resource.clone()?)))
            .collect();
        for (key, version, resource) in again {
            self.put(&mut round, key, version, resource);
        }
        for (name, version, json) in change.upserts {
            let Some(key) = read_key(&name) else {
                tracing::warn!(
                    resource = name,
                    "the control plane sends a kind that this version does not know; update this proxy"
                );
                continue;
            };
            match read(&key, &json) {
                Ok(resource) => self.put(&mut round, key, version, resource),
                Err(why) => _ = self.rejected.insert(key, Rejected { version, resource: None, why }),
            }
        }
        for key in change.removals.iter().filter_map(|name| read_key(name)) {
            self.resources.remove(&key);
            self.rejected.remove(&key);
            round.before.remove(&key);
        }
        self.round = Some(round);
    }

    fn put(&mut self, round: &mut Round, key: ResourceKey, version: Version, resource: Resource) {
        let before = match round.before.remove(&key) {
            Some((_, before)) => before,
            None => self.resources.get(&key),
        };
        self.rejected.remove(&key);
        self.resources.upsert(resource);
        round.before.insert(key, (version, before));
    }

    /// Puts back what was served before, if there was something else.
    fn reject(&mut self, key: &ResourceKey, version: Version, before: Option<Resource>, why: Vec<String>) -> bool {
        let resource = self.resources.get(key);
        let reverts = before.is_some() && before != resource;
        if let Some(before) = before {
            self.resources.upsert(before);
        }
        self.rejected.insert(key.clone(), Rejected { version, resource, why });
        reverts
    }
}

/// Reads one resource, which must be the one that it is called.
fn read(key: &ResourceKey, json: &[u8]) -> Result<Resource, Vec<String>> {
    let value = serde_json::from_slice(json).map_err(|error| vec![format!("not JSON: {error}")])?;
    let resource = Resource::from_value(&value)
        .map_err(|findings| findings.iter().map(|f| format!("{}: {}", f.path, f.message)).collect::<Vec<_>>())?;
    if resource.key() == *key { Ok(resource) } else { Err(vec![format!("it is called {}", resource.key())]) }
}

/// Errors in a resource itself, for which its last good version is better. What it refers to may be missing for other
/// reasons, and the Gateway API says what is served then.
fn is_fault(code: Code) -> bool {
    use Code::*;
    matches!(code, UnsupportedReference | UnsupportedValue | DroppedRule | UnsupportedListener | InvalidPolicyValue)
}

fn is_about_certificates(code: Code) -> bool {
    matches!(code, Code::InvalidCertificate | Code::InvalidCaCertificate)
}

impl Source for StreamSource {
    fn remember(&mut self, saved: &Saved) {
        let saved = saved.files.get(&PathBuf::from(FILE)).into_iter().flatten();
        self.resources = saved.cloned().collect();
    }

    fn follow(&mut self) {
        let Some(inputs) = self.inputs.take() else { return };
        let have = self.resources.iter().map(|resource| (resource.key().to_string(), canonical(&resource).1)).collect();
        // One update is under way at a time.
        let ((to_changes, changes), (outcomes, from_outcomes)) = (mpsc::channel(1), mpsc::channel(4));
        self.link = Some(Ends { changes, outcomes });
        let link = Link::new(self.me.clone(), have, self.dial.clone(), self.state.clone());
        tokio::spawn(link.run(inputs, to_changes, from_outcomes));
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if self.pending.is_some() {
                return;
            }
            match self.link.as_mut() {
                Some(link) => match link.changes.recv().await {
                    Some(change) => self.pending = Some(change),
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        })
    }

    fn refresh(&mut self, _everywhere: bool) -> bool {
        let pending = self.pending.take().or_else(|| self.link.as_mut()?.changes.try_recv().ok());
        let Some(change) = pending else { return false };
        self.take_in(change);
        true
    }

    fn resources(&self) -> &Resources {
        &self.resources
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        let about = |(key, rejected): (&ResourceKey, &Rejected)| {
            let message = format!("the newest version is not served: {}", rejected.why.join("; "));
            Diagnostic::error(Code::InvalidPolicyValue, key.clone(), selvedge_model::FieldPath::root(), message)
        };
        self.rejected.iter().map(about).collect()
    }

    fn is_last_good(&self) -> bool {
        self.rejected.keys().any(|key| self.resources.get(key).is_some())
    }

    fn to_saved(&self) -> Option<Saved> {
        Some(Saved { files: [(PathBuf::from(FILE), self.resources.iter().collect())].into() })
    }

    fn judge(&mut self, compiled: &Compiled) -> bool {
        let errors = || compiled.diagnostics.iter().filter(|d| d.is_error());
        let certificates: BTreeSet<String> =
            errors().filter(|d| is_about_certificates(d.code)).map(ToString::to_string).collect();
        let new_about_certificates: Vec<String> = certificates.difference(&self.certificates).cloned().collect();
        self.certificates = certificates;
        let Some(round) = self.round.as_mut().filter(|round| !round.judged) else { return false };
        round.judged = true;
        let before = std::mem::take(&mut round.before);
        let mut faults: BTreeMap<&ResourceKey, Vec<String>> = BTreeMap::new();
        for fault in errors().filter(|d| is_fault(d.code)) {
            if let Some((key, _)) = fault.resource.as_ref().and_then(|key| before.get_key_value(key)) {
                faults.entry(key).or_default().push(fault.to_string());
            }
        }
        if !new_about_certificates.is_empty() {
            for key in before.keys().filter(|key| matches!(key.kind, Kind::Secret | Kind::ConfigMap)) {
                faults.entry(key).or_default().extend(new_about_certificates.iter().cloned());
            }
        }
        let mut reverts = false;
        for (key, why) in faults {
            if let Some((version, good)) = before.get(key) {
                reverts |= self.reject(key, *version, good.clone(), why);
            }
        }
        reverts
    }

    fn installed(&mut self, current: &Current) {
        let Some(round) = self.round.take() else { return };
        let rejected = self.rejected.iter().map(|(key, r)| (key.to_string(), r.version, r.why.clone())).collect();
        let problems = current.problems.iter().map(|p| format!("{}: {}", p.listener, p.message)).collect();
        let outcome = Outcome { nonce: round.nonce, rejected, problems };
        if let Some(link) = &self.link
            && link.outcomes.try_send(outcome).is_err()
        {
            tracing::error!("the stream's task has ended: this proxy serves what it has, and hears of no change");
        }
    }
}
