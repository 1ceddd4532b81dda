//! How often policies denied and marked.

use super::{encode::Encoder, families::Family};
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Counters of all AccessPolicies in effect, by `namespace/name`; `default` is what holds where none decides.
#[derive(Debug, Default)]
pub struct AccessCounts(ArcSwap<BTreeMap<String, Arc<Count>>>);

#[derive(Debug, Default)]
struct Count {
    denied: AtomicU64,
    audited: AtomicU64,
}

impl AccessCounts {
    /// The policies that there are now; those that were there before keep their counts.
    pub fn set(&self, names: BTreeSet<&str>) {
        let before = self.0.load();
        let count = |name: &str| before.get(name).cloned().unwrap_or_default();
        let now = names.into_iter().chain(["default"]).map(|name| (name.to_owned(), count(name))).collect();
        self.0.store(Arc::new(now));
    }

    pub fn denied(&self, policy: &str) {
        if let Some(count) = self.0.load().get(policy) {
            count.denied.fetch_add(1, Relaxed);
        }
    }

    pub fn audited(&self, policy: &str) {
        if let Some(count) = self.0.load().get(policy) {
            count.audited.fetch_add(1, Relaxed);
        }
    }

    pub fn encode(&self, out: &mut Encoder) {
        for (name, count) in self.0.load().iter() {
            out.nonzero(Family::AccessDenied, &[name], count.denied.load(Relaxed));
            out.nonzero(Family::AccessAudited, &[name], count.audited.load(Relaxed));
        }
    }
}
