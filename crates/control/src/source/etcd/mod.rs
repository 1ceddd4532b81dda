//! Resources from etcd: one key each, as YAML or JSON, under `PREFIX/resources/KIND/NAMESPACE/NAME`; and workloads that
//! have joined through any of the control planes that share it, under `PREFIX/joined/NAMESPACE/NAME`.

mod client;
mod follow;
mod lease;

pub use client::{Client, Everything};
pub use lease::{Alone, Keeper, Leader};

use super::{Mark, Source};
use crate::saved::Saved;
use follow::Batch;
use selvedge_model::{Code, Diagnostic, Limits, Location, Resource, ResourceKey, Resources, fill_locations, parse};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
};
use tokio::sync::{Notify, mpsc};

/// Changes that the engine has not yet taken; then etcd keeps them.
const BATCHES: usize = 16;
/// The one file in the saved state.
const FILE: &str = "etcd";

/// See the module.
pub struct EtcdSource {
    client: Arc<Client>,
    batches: Option<mpsc::Receiver<Batch>>,
    pending: Vec<Batch>,
    /// By path.
    values: BTreeMap<String, Value>,
    resources: Resources,
    limits: Limits,
    down: Option<String>,
    /// Everything has been read since the start.
    complete: bool,
    mark: Option<Mark>,
    /// Asks for everything once more.
    again: Arc<Notify>,
}

/// What is written at one path.
struct Value {
    text: Vec<u8>,
    key: Option<ResourceKey>,
    /// The last version that was good.
    resource: Option<Resource>,
    /// It is from before: what is written now is broken.
    kept: bool,
    diagnostics: Vec<Diagnostic>,
}

impl EtcdSource {
    pub fn new(client: &Client) -> Self {
        Self {
            client: Arc::new(client.apart()),
            batches: None,
            pending: Vec::new(),
            values: BTreeMap::new(),
            resources: Resources::default(),
            limits: Limits::default(),
            down: None,
            complete: false,
            mark: None,
            again: Arc::default(),
        }
    }

    fn take(&mut self, batch: Batch) -> bool {
        match batch {
            Batch::Everything(Everything { revision, cluster, mut kvs }) => {
                self.mark = Some(Mark {
                    origin: format!("etcd {cluster:x}{}", self.client.prefix()).into(),
                    revision: revision.unsigned_abs(),
                    looks: self.mark.as_ref().map_or(0, |mark| mark.looks) + 1,
                });
                kvs.retain(|kv| !self.of_authority(&kv.key));
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let now: BTreeSet<String> = kvs.iter().map(|kv| text(&kv.key)).collect();
                let gone: Vec<String> = self.values.keys().filter(|path| !now.contains(*path)).cloned().collect();
                gone.iter().for_each(|path| self.remove(path));
                if !self.complete {
                    // What an earlier run remembered, and nobody has written since.
                    let written: BTreeSet<ResourceKey> = now.iter().filter_map(|path| self.client.key(path)).collect();
                    let old: Vec<_> =
                        self.resources.iter().map(|r| r.key()).filter(|key| !written.contains(key)).collect();
                    old.iter().for_each(|key| _ = self.resources.remove(key));
                    self.complete = true;
                }
                kvs.into_iter().for_each(|kv| self.put(text(&kv.key), kv.value));
                true
            }
            Batch::Changes(mut changes, revision) => {
                if let Some(mark) = &mut self.mark {
                    mark.revision = mark.revision.max(revision.unsigned_abs());
                }
                changes.retain(|(path, _)| !self.of_authority(path));
                let any = !changes.is_empty();
                for (path, value) in changes {
                    let path = String::from_utf8_lossy(&path).into_owned();
                    match value {
                        Some(value) => self.put(path, value),
                        None => self.remove(&path),
                    }
                }
                any
            }
            Batch::Down(down) => {
                if let Some(why) = down.as_ref().filter(|why| self.down.as_ref() != Some(why)) {
                    tracing::warn!("{why}; serving what is known, and trying again");
                } else if down.is_none() && self.down.is_some() {
                    tracing::info!("etcd answers again");
                }
                std::mem::replace(&mut self.down, down.clone()) != down
            }
        }
    }

    /// Whether the CA keeps it, which every new node changes and resources have nothing to do with.
    fn of_authority(&self, path: &[u8]) -> bool {
        path.strip_prefix(self.client.prefix().as_bytes()).is_some_and(|below| below.starts_with(b"/ca/"))
    }

    /// Takes in one change as if etcd had told of it: a value, or that there is none any more.
    pub fn told(&mut self, path: &[u8], value: Option<Vec<u8>>) {
        self.take(Batch::Changes(vec![(path.to_vec(), value)], 0));
    }

    fn put(&mut self, path: String, text: Vec<u8>) {
        if self.values.get(&path).is_some_and(|before| before.text == text) {
            return;
        }
        let before = self.values.remove(&path);
        let mut value = self.read(&path, text);
        if value.resource.is_none()
            && let Some(key) = &value.key
        {
            // From this run, or an earlier one.
            value.resource = before.and_then(|before| before.resource).or_else(|| self.resources.get(key));
            value.kept = value.resource.is_some();
        }
        self.resources.extend(value.resource.clone());
        self.values.insert(path, value);
    }

    fn remove(&mut self, path: &str) {
        let Some(value) = self.values.remove(path) else { return };
        let Some(key) = value.key else { return };
        // The same workload may be written twice: as a resource, and as one that has joined.
        let other = self.values.values().find(|other| other.key.as_ref() == Some(&key));
        match other.and_then(|other| other.resource.clone()) {
            Some(resource) => _ = self.resources.upsert(resource),
            None => _ = self.resources.remove(&key),
        }
    }

    fn read(&self, path: &str, text: Vec<u8>) -> Value {
        let key = self.client.key(path);
        let mut value = Value { text, key, resource: None, kept: false, diagnostics: Vec::new() };
        let place = || Location { file: path.into(), line: 1, column: 1 };
        let Some(key) = &value.key else {
            // The leader, for one, is written beside resources.
            if path.strip_prefix(self.client.prefix()).is_some_and(|below| below.starts_with("/resources/")) {
                let message = "the path is not resources/KIND/NAMESPACE/NAME of a known kind";
                value.diagnostics.push(Diagnostic::file_error(Code::UnknownKind, place(), message));
            }
            return value;
        };
        let parsed = parse(path, &value.text, &self.limits);
        let mut loaded = parsed.loaded.into_iter();
        let (first, more) = (loaded.next(), loaded.next().is_some());
        value.diagnostics = parsed.diagnostics;
        match first {
            Some(first) if first.key.as_ref() == Some(key) && !more => value.resource = first.resource,
            Some(first) => {
                let found = first.key.map_or_else(|| "something else".to_owned(), |key| key.to_string());
                let message = format!("the path says {key}, and what is written there is {found}");
                value.diagnostics.push(Diagnostic::file_error(Code::InvalidName, place(), message));
            }
            None if value.diagnostics.is_empty() => {
                let message = "nothing is written there";
                value.diagnostics.push(Diagnostic::file_error(Code::NotAnObject, place(), message));
            }
            None => {}
        }
        value
    }
}

impl Source for EtcdSource {
    fn remember(&mut self, saved: &Saved) {
        self.resources = saved.files.get(&PathBuf::from(FILE)).into_iter().flatten().cloned().collect();
        self.mark.clone_from(&saved.mark);
    }

    fn follow(&mut self) {
        let (sender, batches) = mpsc::channel(BATCHES);
        self.batches = Some(batches);
        tokio::spawn(follow::follow(self.client.clone(), sender, self.again.clone()));
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let next = match self.batches.as_mut() {
                _ if !self.pending.is_empty() => return,
                Some(batches) => batches.recv().await,
                None => None,
            };
            match next {
                Some(batch) => self.pending.push(batch),
                None => std::future::pending().await,
            }
        })
    }

    fn refresh(&mut self, everywhere: bool) -> bool {
        if everywhere && self.complete {
            self.again.notify_one();
        }
        let spoke = self.has_spoken();
        let mut all = std::mem::take(&mut self.pending);
        while let Some(batch) = self.batches.as_mut().and_then(|batches| batches.try_recv().ok()) {
            all.push(batch);
        }
        let changed: Vec<bool> = all.into_iter().map(|batch| self.take(batch)).collect();
        // That there is nothing is news, too, to those who wait for what there is.
        changed.contains(&true) || self.has_spoken() != spoke
    }

    fn has_spoken(&self) -> bool {
        self.complete || !self.resources.is_empty()
    }

    fn resources(&self) -> &Resources {
        &self.resources
    }

    fn mark(&self) -> Option<Mark> {
        self.mark.clone()
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        let place = Location { file: self.client.prefix().into(), line: 1, column: 1 };
        let down =
            self.down.iter().map(|why| Diagnostic::file_error(Code::UnreadableFile, place.clone(), why.as_str()));
        down.chain(self.values.values().flat_map(|value| value.diagnostics.iter().cloned())).collect()
    }

    fn locate(&self, diagnostics: &mut [Diagnostic]) {
        for diagnostic in diagnostics.iter_mut().filter(|d| d.location.is_none()) {
            let Some(key) = &diagnostic.resource else { continue };
            let path = self.client.path(key);
            let Some(value) = self.values.get(&path) else { continue };
            let parsed = parse(&path, &value.text, &self.limits);
            let origins = parsed.loaded.into_iter().filter_map(|l| Some((l.key?, l.origin))).collect();
            let one = std::slice::from_mut(diagnostic);
            fill_locations(one, &origins, &self.limits, |_| Some(value.text.clone()));
        }
    }

    fn is_last_good(&self) -> bool {
        self.down.is_some() || self.values.values().any(|value| value.kept)
    }

    fn to_saved(&self) -> Option<Saved> {
        let files = || [(PathBuf::from(FILE), self.resources.iter().collect())].into();
        self.complete.then(|| Saved { files: files(), mark: self.mark.clone() })
    }
}
