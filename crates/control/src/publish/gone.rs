//! Proxies that were connected here and are no more, for people.

use super::{hub::Member, node::Millis, scope::Role, version::Version};
use selvedge_wire::spiffe::SpiffeId;
use std::collections::{BTreeMap, BTreeSet};

/// For so long they are remembered.
pub const GONE: Millis = 3_600_000;
/// So many at most; the oldest are forgotten.
pub const MAX_GONE: usize = 1_000;
/// Of the workloads of each, so many.
const MAX_WORKLOADS: usize = 10;

/// What a proxy is known by: nobody can take the name of another identity.
pub type Name = (String, Option<SpiffeId>);

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Gone {
    pub role: Option<Role>,
    pub software: String,
    pub host: String,
    pub workloads: Vec<String>,
    /// What it had.
    pub version: Option<Version>,
    pub connected: Millis,
    pub at: Millis,
    /// It has said goodbye.
    pub left: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Departed {
    by_name: BTreeMap<Name, Gone>,
    by_time: BTreeSet<(Millis, Name)>,
}

impl Departed {
    pub(super) fn add(&mut self, now: Millis, member: &Member) {
        let name = (member.hello.id.clone(), member.identity.clone());
        self.back(&name);
        let gone = Gone {
            role: member.role,
            software: member.hello.version.clone(),
            host: member.hello.host.clone(),
            workloads: member.hello.workloads.iter().take(MAX_WORKLOADS).cloned().collect(),
            version: member.node.acked.map(|acked| acked.version),
            connected: member.since,
            at: now,
            left: member.left,
        };
        self.by_time.insert((now, name.clone()));
        self.by_name.insert(name, gone);
        while self.by_name.len() > MAX_GONE
            && let Some((_, oldest)) = self.by_time.pop_first()
        {
            self.by_name.remove(&oldest);
        }
    }

    /// It is here again.
    pub(super) fn back(&mut self, name: &Name) {
        if let Some(gone) = self.by_name.remove(name) {
            self.by_time.remove(&(gone.at, name.clone()));
        }
    }

    pub(super) fn forget(&mut self, now: Millis) {
        while let Some((at, _)) = self.by_time.first()
            && *at + GONE <= now
            && let Some((_, name)) = self.by_time.pop_first()
        {
            self.by_name.remove(&name);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Gone)> {
        self.by_name.iter()
    }
}
