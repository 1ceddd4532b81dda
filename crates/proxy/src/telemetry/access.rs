//! How often policies denied and marked.

use super::{encode::Encoder, families::Family};
use crate::jwt::Reason;
use arc_swap::ArcSwap;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Counters of all AccessPolicies and AuthPolicies in effect, by `namespace/name`.
#[derive(Debug, Default)]
pub struct AccessCounts {
    /// Of AccessPolicies; `default` is what holds where none decides.
    access: ArcSwap<BTreeMap<String, Arc<Count>>>,
    auth: ArcSwap<BTreeMap<String, Arc<Proofs>>>,
}

#[derive(Debug, Default)]
struct Count {
    denied: AtomicU64,
    audited: AtomicU64,
}

/// Of one AuthPolicy.
#[derive(Debug, Default)]
struct Proofs {
    /// In the order of [`Reason::ALL`].
    refused: [AtomicU64; Reason::ALL.len()],
    verified: AtomicU64,
    cached: AtomicU64,
}

impl AccessCounts {
    /// The AuthPolicies that there are now.
    pub fn set_auth(&self, names: BTreeSet<&str>) {
        let before = self.auth.load();
        let count = |name: &str| before.get(name).cloned().unwrap_or_default();
        self.auth.store(Arc::new(names.into_iter().map(|name| (name.to_owned(), count(name))).collect()));
    }

    /// Somebody has not proven who they are.
    pub fn unproven(&self, policy: &str, reason: Reason) {
        let auth = self.auth.load();
        let number = Reason::ALL.iter().position(|it| *it == reason);
        if let Some(count) = auth.get(policy).and_then(|count| count.refused.get(number?)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// A token was good; `cached`: it was verified before.
    pub fn proven(&self, policy: &str, cached: bool) {
        if let Some(count) = self.auth.load().get(policy) {
            let count = if cached { &count.cached } else { &count.verified };
            count.fetch_add(1, Relaxed);
        }
    }

    /// The policies that there are now; those that were there before keep their counts.
    pub fn set(&self, names: BTreeSet<&str>) {
        let before = self.access.load();
        let count = |name: &str| before.get(name).cloned().unwrap_or_default();
        let now = names.into_iter().chain(["default"]).map(|name| (name.to_owned(), count(name))).collect();
        self.access.store(Arc::new(now));
    }

    pub fn denied(&self, policy: &str) {
        if let Some(count) = self.access.load().get(policy) {
            count.denied.fetch_add(1, Relaxed);
        }
    }

    pub fn audited(&self, policy: &str) {
        if let Some(count) = self.access.load().get(policy) {
            count.audited.fetch_add(1, Relaxed);
        }
    }

    pub fn encode(&self, out: &mut Encoder) {
        for (name, count) in self.access.load().iter() {
            out.nonzero(Family::AccessDenied, &[name], count.denied.load(Relaxed));
            out.nonzero(Family::AccessAudited, &[name], count.audited.load(Relaxed));
        }
        for (name, count) in self.auth.load().iter() {
            for (reason, refused) in Reason::ALL.iter().zip(&count.refused) {
                out.nonzero(Family::AuthRefused, &[name, reason.name()], refused.load(Relaxed));
            }
            out.nonzero(Family::AuthAccepted, &[name, "signature"], count.verified.load(Relaxed));
            out.nonzero(Family::AuthAccepted, &[name, "cache"], count.cached.load(Relaxed));
        }
    }
}
