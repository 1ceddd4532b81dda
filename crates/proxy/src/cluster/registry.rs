//! All clusters by key, and the task that keeps them.

use super::{LiveCluster, members::Surroundings};
use crate::{
    dial::Dial,
    resolve::{Lookup, SystemLookup},
    worker::WorkerCount,
};
use ahash::AHashMap;
use selvedge_compile::snapshot::Cluster;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

/// The live clusters of the process.
pub struct Clusters {
    registry: Arc<Registry>,
    _keeper: AbortOnDropHandle<()>,
}

struct Registry {
    by_key: Mutex<AHashMap<String, Arc<LiveCluster>>>,
    /// What was linked last, in the order of its snapshot.
    last: Mutex<Vec<(Arc<Cluster>, Arc<LiveCluster>)>>,
    around: Surroundings,
}

/// How often idle connections are looked at, and how long an ended ejection may go unnoticed at most.
const TICK: Duration = Duration::from_secs(1);
/// The same while something is ejected.
const SHORT_TICK: Duration = Duration::from_millis(200);

impl Clusters {
    /// `runtime` runs health checks, DNS and upkeep; `zone` is where this proxy runs.
    pub fn new(workers: WorkerCount, zone: Option<String>, runtime: Handle) -> Self {
        Self::with_lookup(workers, zone, runtime, Arc::new(SystemLookup::default()))
    }

    /// As [`Clusters::new`], with DNS given.
    pub fn with_lookup(workers: WorkerCount, zone: Option<String>, runtime: Handle, lookup: Arc<dyn Lookup>) -> Self {
        Self::start(Surroundings { workers, zone, runtime, lookup, keeper: Arc::default(), dial: Arc::default() })
    }

    /// As [`Clusters::new`], with the identities, mark and namespaces of the process, and the DNS servers that it asks
    /// (none: those of the system).
    pub fn with_dial(
        workers: WorkerCount,
        zone: Option<String>,
        runtime: Handle,
        dial: Arc<Dial>,
        name_servers: Vec<SocketAddr>,
    ) -> Self {
        let lookup = Arc::new(SystemLookup::new(name_servers, dial.socket_mark()));
        Self::start(Surroundings { workers, zone, runtime, lookup, keeper: Arc::default(), dial })
    }

    fn start(around: Surroundings) -> Self {
        let runtime = around.runtime.clone();
        let registry = Arc::new(Registry { by_key: Mutex::default(), last: Mutex::default(), around });
        let task = runtime.spawn(keep(Arc::downgrade(&registry), registry.around.keeper.clone()));
        Self { registry, _keeper: AbortOnDropHandle::new(task) }
    }

    /// The live clusters of a snapshot, in its order. Those that were there before keep their state; those that the
    /// snapshot does not name are closed, and requests that still hold them finish.
    pub fn link(&self, clusters: &[Arc<Cluster>]) -> Vec<Arc<LiveCluster>> {
        let mut last = self.registry.last.lock().unwrap_or_else(PoisonError::into_inner);
        let same_keys = last.len() == clusters.len()
            && last.iter().zip(clusters).all(|((old, _), new)| Arc::ptr_eq(old, new) || old.key == new.key);
        if same_keys {
            for ((old, live), config) in last.iter_mut().zip(clusters).filter(|((old, _), c)| !Arc::ptr_eq(old, c)) {
                live.link(config, &self.registry.around);
                *old = config.clone();
            }
            return last.iter().map(|(_, live)| live.clone()).collect();
        }
        let mut by_key = self.registry.lock();
        let mut old = std::mem::take(&mut *by_key);
        let mut linked = Vec::with_capacity(clusters.len());
        for config in clusters {
            let known = old.remove(&config.key).or_else(|| by_key.get(&config.key).cloned());
            let live = match known {
                Some(live) => {
                    live.link(config, &self.registry.around);
                    live
                }
                None => LiveCluster::new(config, &self.registry.around),
            };
            by_key.insert(config.key.clone(), live.clone());
            linked.push(live);
        }
        drop(by_key);
        old.values().for_each(|cluster| cluster.close());
        *last = clusters.iter().cloned().zip(linked.iter().cloned()).collect();
        linked
    }

    /// Visits all clusters, by key.
    pub fn for_each(&self, visit: impl FnMut(&Arc<LiveCluster>)) {
        let mut clusters = self.registry.all();
        clusters.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        clusters.iter().for_each(visit);
    }

    /// Closes all idle connections, when the process ends.
    pub fn close_idle(&self) {
        self.registry.all().iter().for_each(|cluster| cluster.close_idle());
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, AHashMap<String, Arc<LiveCluster>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<LiveCluster>> {
        self.lock().values().cloned().collect()
    }
}

/// Rebuilds what has changed as soon as it has, and looks after everything once in a while.
async fn keep(registry: Weak<Registry>, wake: Arc<Notify>) {
    let mut swept = Instant::now();
    let mut tick = TICK;
    loop {
        tokio::select! {
            () = wake.notified() => {}
            () = sleep(tick) => {}
        }
        let Some(registry) = registry.upgrade() else { return };
        let now = Instant::now();
        let sweep = now.saturating_duration_since(swept) >= TICK;
        if sweep {
            swept = now;
        }
        tick = TICK;
        for cluster in registry.all() {
            cluster.keep(sweep);
            if cluster.has_ejected() {
                tick = SHORT_TICK;
            }
        }
    }
}
