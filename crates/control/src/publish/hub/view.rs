//! What proxies of one interest see, and finding that anew when resources change.

use super::{Hub, NodeId, ViewId};
use crate::publish::{
    graph::{Entry, Graph, Token, Touched},
    node::{Event, Millis, Sight},
    scope::{Interest, Wanted, scope},
    version::{Sum, Version},
};
use ahash::AHashSet;
use selvedge_model::{Kind, Resource, ResourceKey};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A view that may have looked up so many addresses in vain is found anew: see [`Hub::endpoints`].
pub(super) const MAX_STALE: usize = 256;

/// What proxies of one interest see.
pub(super) struct View {
    pub(super) interest: Arc<Interest>,
    pub(super) keys: BTreeMap<Arc<ResourceKey>, Version>,
    /// What it has looked up: the keys of `Hub::by_token`.
    tokens: AHashSet<Arc<Token>>,
    /// Of them, those that it may need no more.
    stale: usize,
    pub(super) known: BTreeSet<Wanted>,
    pub(super) sum: Sum,
    pub(super) members: BTreeSet<NodeId>,
}

impl View {
    fn new(interest: Arc<Interest>) -> Self {
        Self {
            interest,
            keys: BTreeMap::new(),
            tokens: AHashSet::new(),
            stale: 0,
            known: BTreeSet::new(),
            sum: Sum::default(),
            members: BTreeSet::new(),
        }
    }
}

/// A view as one of its proxies sees it.
pub(super) struct Seen<'a> {
    pub(super) graph: &'a Graph,
    pub(super) view: &'a View,
    pub(super) settled: bool,
    pub(super) went: &'a BTreeSet<ResourceKey>,
}

impl Sight for Seen<'_> {
    fn get(&self, key: &ResourceKey) -> Option<&Arc<Entry>> {
        self.view.keys.contains_key(key).then(|| self.graph.get(key)).flatten()
    }

    fn all(&self) -> Vec<(Arc<ResourceKey>, Version)> {
        self.view.keys.iter().map(|(key, version)| (key.clone(), *version)).collect()
    }

    fn version(&self) -> Version {
        self.view.sum.version()
    }

    fn may_come(&self, key: &ResourceKey) -> bool {
        !self.settled && key.kind == Kind::Workload && self.graph.get(key).is_none() && !self.went.contains(key)
    }
}

impl Hub {
    /// Takes changes in and tells those that they concern.
    pub(super) fn change(&mut self, now: Millis, changes: Vec<(ResourceKey, Option<Resource>)>) {
        let mut rescope = BTreeSet::new();
        let mut content: BTreeMap<ViewId, Vec<Arc<ResourceKey>>> = BTreeMap::new();
        for (key, resource) in changes {
            let touched = match &resource {
                Some(resource) => self.graph.upsert(resource),
                None => {
                    if !self.settled && key.kind == Kind::Workload {
                        self.went.insert(key.clone());
                    }
                    self.graph.remove(&key)
                }
            };
            if touched.same {
                continue;
            }
            for token in &touched.tokens {
                rescope.extend(self.by_token.get(token).into_iter().flatten());
            }
            let key = Arc::new(key);
            let near = self.by_token.get(&Token::Key((*key).clone())).into_iter().flatten().copied();
            let sees = |view: &ViewId| self.views.get(view).is_some_and(|view| view.keys.contains_key(&key));
            let near: Vec<ViewId> = near.filter(sees).collect();
            for view in &near {
                content.entry(*view).or_default().push(key.clone());
            }
            if touched.relinked {
                rescope.extend(&near);
            } else if !touched.appeared.is_empty() || touched.vanished > 0 {
                self.endpoints(&near, &touched, &mut rescope);
            }
        }
        for view in &rescope {
            let changed = self.rescope(*view);
            self.tell(now, *view, &changed);
        }
        for (id, changed) in content.into_iter().filter(|(id, _)| !rescope.contains(id)) {
            let Some(view) = self.views.get_mut(&id) else { continue };
            for key in &changed {
                let (Some(entry), Some(version)) = (self.graph.get(key), view.keys.get_mut(key)) else { continue };
                view.sum.remove(key, *version);
                view.sum.add(key, entry.version);
                *version = entry.version;
            }
            self.tell(now, id, &changed);
        }
    }

    /// Views see an EndpointSlice whose addresses are other than before, and no Workload's. They look the new ones up, as
    /// they would when found anew: with thousands of views that is most of the work of such a change. Whether the old ones
    /// are needed for something else is not known, so they are looked up further, until they are many.
    fn endpoints(&mut self, views: &[ViewId], touched: &Touched, rescope: &mut BTreeSet<ViewId>) {
        let tokens: Vec<Arc<Token>> = touched.appeared.iter().map(|a| self.shared(Token::Address(*a))).collect();
        for token in &tokens {
            self.by_token.entry(token.clone()).or_default().extend(views);
        }
        for id in views {
            let Some(view) = self.views.get_mut(id) else { continue };
            view.tokens.extend(tokens.iter().cloned());
            view.stale += touched.vanished;
            if view.stale > MAX_STALE {
                rescope.insert(*id);
            }
        }
    }

    /// The one that others look up already.
    fn shared(&self, token: Token) -> Arc<Token> {
        match self.by_token.get_key_value(&token) {
            Some((shared, _)) => shared.clone(),
            None => Arc::new(token),
        }
    }

    /// Finds anew what a view sees. Returns what is other than before.
    fn rescope(&mut self, id: ViewId) -> Vec<Arc<ResourceKey>> {
        let Some(view) = self.views.get(&id) else { return Vec::new() };
        let scope = scope(&self.graph, &view.interest);
        let tokens: AHashSet<Arc<Token>> = scope.tokens.into_iter().map(|token| self.shared(token)).collect();
        let Some(view) = self.views.get_mut(&id) else { return Vec::new() };
        for token in view.tokens.difference(&tokens) {
            if let Some(views) = self.by_token.get_mut(token) {
                views.remove(&id);
                if views.is_empty() {
                    self.by_token.remove(token);
                }
            }
        }
        for token in tokens.difference(&view.tokens) {
            self.by_token.entry(token.clone()).or_default().insert(id);
        }
        let keys: BTreeMap<Arc<ResourceKey>, Version> =
            scope.keys.iter().filter_map(|key| Some((key.clone(), self.graph.get(key)?.version))).collect();
        let changed = differences(&view.keys, &keys);
        for key in &changed {
            if let Some(version) = view.keys.get(key) {
                view.sum.remove(key, *version);
            }
            if let Some(version) = keys.get(key) {
                view.sum.add(key, *version);
            }
        }
        (view.keys, view.tokens, view.known, view.stale) = (keys, tokens, scope.known, 0);
        changed
    }

    fn tell(&mut self, now: Millis, view: ViewId, changed: &[Arc<ResourceKey>]) {
        if changed.is_empty() {
            return;
        }
        let members = self.views.get(&view).map(|view| view.members.clone()).unwrap_or_default();
        for node in members {
            self.step(now, node, Event::Changed(changed));
        }
    }

    pub(super) fn enter_view(&mut self, node: NodeId, interest: Interest) {
        let before = self.members.get(&node).and_then(|m| m.view);
        let id = match self.by_interest.get(&interest) {
            Some(id) => *id,
            None => {
                let interest = Arc::new(interest);
                self.next_view += 1;
                let id = self.next_view;
                self.by_interest.insert(interest.clone(), id);
                self.views.insert(id, View::new(interest));
                self.rescope(id);
                id
            }
        };
        if before == Some(id) {
            return;
        }
        if let Some(view) = self.views.get_mut(&id) {
            view.members.insert(node);
        }
        if let Some(member) = self.members.get_mut(&node) {
            member.view = Some(id);
        }
        self.leave_view(node, before);
    }

    pub(super) fn leave_view(&mut self, node: NodeId, view: Option<ViewId>) {
        let Some(id) = view else { return };
        let Some(view) = self.views.get_mut(&id) else { return };
        view.members.remove(&node);
        if !view.members.is_empty() {
            return;
        }
        let Some(view) = self.views.remove(&id) else { return };
        self.by_interest.remove(&view.interest);
        for token in &view.tokens {
            if let Some(views) = self.by_token.get_mut(token) {
                views.remove(&id);
                if views.is_empty() {
                    self.by_token.remove(token);
                }
            }
        }
    }
}

pub(super) fn differences(
    before: &BTreeMap<Arc<ResourceKey>, Version>,
    after: &BTreeMap<Arc<ResourceKey>, Version>,
) -> Vec<Arc<ResourceKey>> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let changed = after.iter().filter(|(key, version)| before.get(*key) != Some(version)).map(|(key, _)| key);
    gone.chain(changed).cloned().collect()
}
