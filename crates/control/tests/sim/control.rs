//! One control plane of the simulation: the real hub, and a second opinion about what each of its proxies should see.

use crate::plan::Millis;
use crate::world::Change;
use selvedge_control::proto::discovery::{ProxyMessage, proxy_message::Message};
use selvedge_control::publish::{
    graph::Graph,
    hub::{Hub, NodeId, wanted},
    scope::{Interest, Wanted, scope},
    version::{Version, canonical},
};
use selvedge_control::source::Mark;
use selvedge_model::{Kind, Resource, ResourceKey};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub type ConnId = usize;
/// What a proxy should have.
pub type Sight = BTreeMap<ResourceKey, Version>;

/// See the module.
pub struct Control {
    pub boot: u32,
    pub up: bool,
    /// Nothing comes from the store, and nothing goes there.
    pub cut: bool,
    pub began: Millis,
    pub hub: Hub,
    /// Commits of the store that it has taken in.
    pub seen: usize,
    /// Up to where it has been told, or will be.
    pub told: Millis,
    pub tick: Millis,
    pub streams: BTreeMap<NodeId, ConnId>,
    pub next: NodeId,
    /// What the store is to be told when it is reached again.
    pub unshared: Vec<Change>,
    graph: Graph,
    joined: BTreeMap<ResourceKey, Resource>,
    /// Workloads of which the store says that they are there.
    stored: BTreeMap<ResourceKey, Resource>,
    sights: BTreeMap<Interest, Arc<Sight>>,
    /// Workloads that it has heard of since it started, as there or as gone.
    pub met: BTreeSet<ResourceKey>,
}

impl Control {
    pub fn new(boot: u32, now: Millis) -> Self {
        Self {
            boot,
            up: false,
            cut: false,
            began: now,
            hub: Hub::new(0),
            seen: 0,
            told: now,
            tick: 0,
            streams: BTreeMap::new(),
            next: 0,
            unshared: Vec::new(),
            graph: Graph::default(),
            joined: BTreeMap::new(),
            stored: BTreeMap::new(),
            sights: BTreeMap::new(),
            met: BTreeSet::new(),
        }
    }

    /// Takes in what the store says.
    pub fn resources(&mut self, now: Millis, changes: Vec<Change>) {
        for (key, resource) in &changes {
            match resource {
                Some(resource) if key.kind == Kind::Workload => _ = self.stored.insert(key.clone(), resource.clone()),
                _ => _ = self.stored.remove(key),
            }
            match (self.joined.get(key), resource) {
                (Some(_), None) => continue,
                (Some(joined), Some(resource)) if joined == resource => continue,
                (Some(_), Some(_)) => _ = self.joined.remove(key),
                (None, _) => {}
            }
            self.put(key, resource.as_ref());
        }
        let mark = Mark { origin: "store".into(), revision: self.seen as u64, looks: 0 };
        self.hub.resources_at(now - self.began, changes, Some(mark));
    }

    fn put(&mut self, key: &ResourceKey, resource: Option<&Resource>) {
        if key.kind == Kind::Workload {
            self.met.insert(key.clone());
        }
        match resource {
            Some(resource) => _ = self.graph.upsert(resource),
            None => _ = self.graph.remove(key),
        }
        self.sights.clear();
    }

    /// Workloads that have joined here or left, to be told to the store. Those that left may be elsewhere by now.
    pub fn take_joined(&mut self) -> Vec<Change> {
        let read = |json: Vec<u8>| {
            let value: Value = serde_json::from_slice(&json).unwrap_or_default();
            Resource::from_value(&value).ok()
        };
        let changes: Vec<Change> =
            self.hub.take_joined().into_iter().map(|(key, json)| (key, json.and_then(read))).collect();
        for (key, resource) in &changes {
            match resource {
                Some(resource) => _ = self.joined.insert(key.clone(), resource.clone()),
                None if self.joined.remove(key).is_none() => continue,
                None => {}
            }
            let stored = self.stored.get(key).cloned();
            self.put(key, resource.as_ref().or(stored.as_ref()));
        }
        changes
    }

    /// What is registered here now.
    pub fn joined(&self) -> Vec<Change> {
        self.joined.iter().map(|(key, resource)| (key.clone(), Some(resource.clone()))).collect()
    }

    pub fn knows(&self, key: &ResourceKey) -> bool {
        self.graph.get(key).is_some()
    }

    /// What a proxy of this interest should have.
    pub fn sight(&mut self, interest: &Interest) -> Arc<Sight> {
        if let Some(sight) = self.sights.get(interest) {
            return sight.clone();
        }
        let scope = scope(&self.graph, interest);
        let version = |key: &Arc<ResourceKey>| Some(((**key).clone(), self.graph.get(key)?.version));
        let sight = Arc::new(scope.keys.iter().filter_map(version).collect::<Sight>());
        self.sights.insert(interest.clone(), sight.clone());
        sight
    }
}

/// What a message to a control plane changes of what is wanted.
pub fn follow_wanted(all: &mut std::collections::BTreeSet<Wanted>, message: &ProxyMessage) {
    match &message.message {
        Some(Message::Hello(hello)) => all.extend(hello.subscriptions.iter().filter_map(wanted)),
        Some(Message::Subscribe(subscribe)) => {
            subscribe.remove.iter().filter_map(wanted).for_each(|w| _ = all.remove(&w));
            all.extend(subscribe.add.iter().filter_map(|a| a.subscription.as_ref()).filter_map(wanted));
        }
        _ => {}
    }
}

/// The version of a resource that joins.
pub fn version(resource: &Resource) -> Version {
    canonical(resource).1
}
