//! Workloads that have joined by themselves, added to what another source says: a control plane that serves Gateways too
//! sends them traffic like all others.

use super::{Mark, Source};
use crate::{Current, publish::server::Share, saved::Saved};
use selvedge_compile::Compiled;
use selvedge_model::{Diagnostic, Resource, ResourceKey, Resources};
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Those that have joined, as they are told of. Cheap to clone. How many there are is limited where they join.
#[derive(Clone, Default)]
pub struct Joined {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    all: Mutex<BTreeMap<ResourceKey, Resource>>,
    changed: Notify,
}

impl Joined {
    /// Takes what [`crate::publish::server::Publisher::share`] tells.
    pub fn share(&self) -> Share {
        let joined = self.clone();
        Box::new(move |key, json| {
            let resource = json.and_then(|json| {
                let value = serde_json::from_slice(&json).ok()?;
                Resource::from_value(&value).ok()
            });
            match resource {
                Some(resource) => _ = joined.all().insert(key, resource),
                None => _ = joined.all().remove(&key),
            }
            joined.shared.changed.notify_one();
        })
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ResourceKey, Resource>> {
        self.shared.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A source and those that have joined.
pub struct WithJoined<S> {
    inner: S,
    joined: Joined,
    resources: Resources,
}

impl<S: Source> WithJoined<S> {
    pub fn new(inner: S, joined: Joined) -> Self {
        Self { inner, joined, resources: Resources::default() }
    }

    /// What is written wins over who joins, who was refused then.
    fn merge(&mut self) {
        self.resources = self.inner.resources().clone();
        for (key, resource) in self.joined.all().iter() {
            if self.resources.get(key).is_none() {
                self.resources.upsert(resource.clone());
            }
        }
    }
}

impl<S: Source> Source for WithJoined<S> {
    fn remember(&mut self, saved: &Saved) {
        self.inner.remember(saved);
        self.merge();
    }

    fn follow(&mut self) {
        self.inner.follow();
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            tokio::select! {
                () = self.inner.changed() => {}
                () = self.joined.shared.changed.notified() => {}
            }
        })
    }

    fn refresh(&mut self, everywhere: bool) -> bool {
        let told = self.inner.refresh(everywhere);
        let before = self.resources.clone();
        self.merge();
        told || before != self.resources
    }

    fn resources(&self) -> &Resources {
        &self.resources
    }

    fn mark(&self) -> Option<Mark> {
        self.inner.mark()
    }

    fn has_spoken(&self) -> bool {
        self.inner.has_spoken()
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        self.inner.diagnostics()
    }

    fn locate(&self, diagnostics: &mut [Diagnostic]) {
        self.inner.locate(diagnostics);
    }

    fn is_last_good(&self) -> bool {
        self.inner.is_last_good()
    }

    fn to_saved(&self) -> Option<Saved> {
        self.inner.to_saved()
    }

    fn judge(&mut self, compiled: &Compiled) -> bool {
        let back = self.inner.judge(compiled);
        self.merge();
        back
    }

    fn installed(&mut self, current: &Current) {
        self.inner.installed(current);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FolderSource;
    use std::fs;

    const WRITTEN: &str = "apiVersion: selvedge.dev/v1alpha1\nkind: Workload\nmetadata: {name: a, namespace: shop}\nspec: {addresses: [10.0.0.1]}\n";

    fn workload(name: &str, ip: &str) -> (ResourceKey, Option<Vec<u8>>) {
        let text = WRITTEN.replace("name: a", &format!("name: {name}")).replace("10.0.0.1", ip);
        let loaded = selvedge_model::parse("test", text.as_bytes(), &Default::default()).loaded;
        let resource = loaded.into_iter().find_map(|l| l.resource).unwrap();
        (resource.key(), Some(crate::publish::version::canonical(&resource).0.to_vec()))
    }

    #[tokio::test]
    async fn who_joins_is_there_until_it_leaves() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), WRITTEN).unwrap();
        let joined = Joined::default();
        let mut source = WithJoined::new(FolderSource::new(vec![folder.path().to_owned()]), joined.clone());
        source.refresh(true);
        let share = joined.share();
        let (key, json) = workload("b", "10.0.0.2");
        share(key.clone(), json);
        source.changed().await;
        assert!(source.refresh(false));
        assert_eq!(source.resources().workloads().len(), 2);
        // What is written stays as it is written.
        let (written, other) = workload("a", "10.0.0.9");
        share(written, other);
        share(key, None);
        source.changed().await;
        assert!(source.refresh(false));
        let left: Vec<_> = source.resources().workloads().iter().map(|w| w.spec.addresses.clone()).collect();
        assert_eq!(left, [["10.0.0.1"]]);
        assert!(source.to_saved().is_some_and(|saved| saved.files.len() == 1));
    }
}
