//! Routes into the routers of their listeners. Who has routers of the last compilation changes them; they share the rest.

use crate::{
    assemble::Clusters,
    attach::Attachment,
    memory::{CompiledRoute, Memory, Routes},
    router::{Entry, Router, RouterBuilder},
    snapshot::{Action, Backend, ClusterId, Filter, Rule, Target},
};
use std::sync::Arc;

/// What becomes of the router of one listener.
#[derive(Default)]
pub(crate) enum Routing {
    /// It stays as it was.
    #[default]
    Same,
    New(RouterBuilder),
}

impl Routing {
    pub(crate) fn build(self) -> Router {
        match self {
            Routing::Same => Router::default(),
            Routing::New(builder) => builder.build(),
        }
    }
}

/// A router for each listener; none for those without HTTP routes. `same` says that the ids of clusters are those of
/// the last compilation.
pub(crate) fn routers(
    count: usize,
    routes: &mut Routes,
    clusters: &Clusters,
    same: bool,
    memory: &Memory,
) -> Vec<Routing> {
    let mut renumbered = Vec::new();
    let mut changed = routes.changed.iter().map(|(i, _)| *i).peekable();
    for (i, route) in routes.all.iter_mut().enumerate() {
        let fresh = changed.next_if_eq(&i).is_some();
        if (same && !fresh) || route.outcome.attachments.is_empty() {
            continue;
        }
        let moved = route.number(clusters.of(&route.outcome.uses), |rule, ids| with_ids(rule.clone(), ids));
        if moved && !fresh {
            renumbered.push(i);
        }
    }
    if let Some(routers) = changed_routers(count, routes, &renumbered, memory) {
        return routers;
    }
    let mut routers: Vec<Option<RouterBuilder>> = (0..count).map(|_| None).collect();
    for route in &mut routes.all {
        route.places.clear();
        for i in 0..route.outcome.attachments.len() {
            let router = routers[route.outcome.attachments[i].0.listener].get_or_insert_default();
            let first = add(router, route, i);
            route.places.push(first);
        }
    }
    routers.into_iter().map(|router| Routing::New(router.unwrap_or_default())).collect()
}

/// The rules and entries of a route on its `i`th listener, behind all others. Returns the index of the first rule.
fn add(router: &mut RouterBuilder, route: &CompiledRoute, i: usize) -> u32 {
    let (attachment, variant) = &route.outcome.attachments[i];
    let mut first = None;
    for rule in &route.rules()[*variant] {
        let index = router.rule(Arc::clone(rule));
        first.get_or_insert(index);
    }
    let first = first.unwrap_or(0);
    enter(router, route, attachment, first);
    first
}

fn enter(router: &mut RouterBuilder, route: &CompiledRoute, attachment: &Attachment, first: u32) {
    for hostname in &attachment.hostnames {
        for entry in &route.outcome.entries {
            router.entry(hostname.as_deref(), Entry { rule: first + entry.rule, ..entry.clone() });
        }
    }
}

/// The routers of the last compilation with what is different. Indexes of rules have no gaps: when rules would leave one,
/// it is better to begin anew.
fn changed_routers(count: usize, routes: &mut Routes, renumbered: &[usize], memory: &Memory) -> Option<Vec<Routing>> {
    if routes.removed || memory.listeners.is_empty() {
        return None;
    }
    let fits = |i: usize, before: &CompiledRoute| {
        let now = &routes.all[i];
        before.outcome.attachments.iter().all(|(old, variant)| {
            let new = now.outcome.attachments.iter().find(|(new, _)| new.listener == old.listener);
            new.is_some_and(|(_, v)| now.rules()[*v].len() == before.rules()[*variant].len())
        })
    };
    if !routes.changed.iter().all(|(i, before)| before.as_ref().is_none_or(|before| fits(*i, before))) {
        return None;
    }
    let mut routers: Vec<Routing> = (0..count).map(|_| Routing::Same).collect();
    for &i in renumbered {
        let route = &routes.all[i];
        for ((attachment, variant), &first) in route.outcome.attachments.iter().zip(&route.places) {
            let router = begun(&mut routers, attachment.listener, memory);
            for (rule, index) in route.rules()[*variant].iter().zip(first..) {
                router.replace_rule(index, Arc::clone(rule));
            }
        }
    }
    for (i, before) in &routes.changed {
        let places = replace(&mut routers, &routes.all[*i], before.as_deref(), memory);
        routes.all[*i].places = places;
    }
    Some(routers)
}

/// Puts a route in the place of what it was before; returns its new places.
fn replace(
    routers: &mut [Routing],
    route: &CompiledRoute,
    before: Option<&CompiledRoute>,
    memory: &Memory,
) -> Vec<u32> {
    let mut places = Vec::with_capacity(route.outcome.attachments.len());
    for (i, (attachment, variant)) in route.outcome.attachments.iter().enumerate() {
        let router = begun(routers, attachment.listener, memory);
        let old = before.and_then(|before| {
            let mut all = before.outcome.attachments.iter().zip(&before.places);
            all.find(|((old, _), _)| old.listener == attachment.listener).map(|((old, _), &first)| (before, old, first))
        });
        let Some((before, old, first)) = old else {
            places.push(add(router, route, i));
            continue;
        };
        let rules = &route.rules()[*variant];
        let range = first..first + u32::try_from(rules.len()).unwrap_or(u32::MAX);
        for hostname in &old.hostnames {
            for entry in &before.outcome.entries {
                router.remove(hostname.as_deref(), &entry.path, &range);
            }
        }
        for (rule, index) in rules.iter().zip(range) {
            router.replace_rule(index, Arc::clone(rule));
        }
        enter(router, route, attachment, first);
        places.push(first);
    }
    places
}

/// The router of a listener, to be changed.
fn begun<'r>(routers: &'r mut [Routing], listener: usize, memory: &Memory) -> &'r mut RouterBuilder {
    let routing = &mut routers[listener];
    if let Routing::Same = routing {
        let kept = memory.listeners.get(&listener);
        *routing = Routing::New(kept.map(|kept| RouterBuilder::from_router(&kept.router)).unwrap_or_default());
    }
    match routing {
        Routing::New(builder) => builder,
        Routing::Same => unreachable!("it was begun above"),
    }
}

pub(crate) fn with_ids(mut rule: Rule, ids: &[ClusterId]) -> Rule {
    number_filters(&mut rule.filters, ids);
    if let Action::Forward(split) = &mut rule.action {
        number(&mut split.backends, ids);
    }
    rule
}

pub(crate) fn number(backends: &mut [Backend], ids: &[ClusterId]) {
    for backend in backends {
        if let Target::Cluster(id) = &mut backend.target {
            *id = ids[id.0 as usize];
        }
        number_filters(&mut backend.filters, ids);
    }
}

fn number_filters(filters: &mut [Filter], ids: &[ClusterId]) {
    for filter in filters {
        if let Filter::Mirror(mirror) = filter
            && let Some(id) = &mut mirror.cluster
        {
            *id = ids[id.0 as usize];
        }
    }
}
