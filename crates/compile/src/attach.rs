//! Which listeners a route attaches to, and why not to others.

use crate::{
    Context,
    gateways::{GatewayState, SetState},
    hosts, index,
    index::Name,
    listeners::ListenerState,
    mesh::gamma,
    report::did_you_mean,
    secrets,
    status::Fault,
};
use ahash::AHashMap;
use selvedge_model::{
    Code, GATEWAY_GROUP, Kind, ObjectMeta, ResourceKey, gateway::DefaultScope, refs::ParentReference,
};
use std::borrow::Cow;

/// Listeners by the Gateway or ListenerSet that routes name.
#[derive(Default)]
pub(crate) struct Parents<'a> {
    gateways: AHashMap<Name<'a>, usize>,
    sets: AHashMap<Name<'a>, usize>,
    all: Vec<Parent>,
    /// Gateways that take routes which ask for default Gateways.
    defaults: Vec<ParentReference>,
    /// Beside workloads: Service ports are places, and Gateways are nobody's business.
    services: Option<ServicePlaces<'a>>,
}

/// Positions of the ports of Services in the list of all places.
pub(crate) type ServicePlaces<'a> = AHashMap<Name<'a>, Vec<usize>>;

#[derive(Default)]
struct Parent {
    listeners: Vec<usize>,
    rejected: Option<Fault>,
}

/// What became of one parentRef of a route.
pub(crate) struct ParentOutcome<'a> {
    pub(crate) parent: Cow<'a, ParentReference>,
    /// Why the route is not accepted there.
    pub(crate) fault: Option<Fault>,
    pub(crate) listeners: Vec<Attachment>,
}

/// A route on one listener.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    /// Position in the list of all listeners.
    pub(crate) listener: usize,
    /// Hostnames that the route serves there; `None` is every host of the listener.
    pub(crate) hostnames: Vec<Option<String>>,
}

/// What attaching needs to know of a route.
#[derive(Clone, Copy)]
pub(crate) struct RouteHead<'a> {
    pub(crate) kind: Kind,
    pub(crate) meta: &'a ObjectMeta,
    pub(crate) parent_refs: &'a [ParentReference],
    pub(crate) default_gateways: Option<DefaultScope>,
    /// `None` for routes that have no hostnames.
    pub(crate) hostnames: Option<&'a [String]>,
}

impl RouteHead<'_> {
    pub(crate) fn key(&self) -> ResourceKey {
        ResourceKey::new(self.kind, &*self.meta.namespace, &*self.meta.name)
    }
}

impl<'a> Parents<'a> {
    pub(crate) fn new(gateways: &[GatewayState<'a>], sets: &[SetState<'a>], listeners: &[ListenerState<'a>]) -> Self {
        let mut parents = Parents::default();
        for gateway in gateways {
            let meta = &gateway.gateway.metadata;
            parents.gateways.insert(index::name(meta), parents.all.len());
            parents.all.push(Parent { listeners: Vec::new(), rejected: gateway.rejected.clone() });
            if gateway.gateway.spec.default_scope == Some(DefaultScope::All) {
                parents.defaults.push(ParentReference {
                    group: GATEWAY_GROUP.to_owned(),
                    kind: "Gateway".to_owned(),
                    namespace: Some(meta.namespace.clone()),
                    name: meta.name.clone(),
                    section_name: None,
                    port: None,
                });
            }
        }
        for set in sets {
            parents.sets.insert(index::name(&set.set.metadata), parents.all.len());
            parents.all.push(Parent { listeners: Vec::new(), rejected: set.rejected.clone() });
        }
        for (i, listener) in listeners.iter().enumerate() {
            let map = if listener.set.is_some() { &parents.sets } else { &parents.gateways };
            if let Some(&parent) = map.get(&index::name(listener.owner)) {
                parents.all[parent].listeners.push(i);
            }
        }
        parents
    }

    /// Only Services.
    pub(crate) fn of_services(services: ServicePlaces<'a>) -> Self {
        Parents { services: Some(services), ..Parents::default() }
    }

    /// One outcome for each parentRef that names something of ours.
    pub(crate) fn attach<'r>(
        &self,
        cx: &mut Context<'_>,
        listeners: &[ListenerState<'_>],
        route: RouteHead<'r>,
    ) -> Vec<ParentOutcome<'r>> {
        let mut outcomes = Vec::with_capacity(route.parent_refs.len());
        for (i, parent) in route.parent_refs.iter().enumerate() {
            if gamma::is_service(parent) {
                outcomes.extend(gamma::attach(cx, self.services.as_ref(), &route, parent, i));
            } else if self.services.is_some() {
                continue;
            } else if let Some(found) = self.find(cx, &route, parent, i) {
                outcomes.push(self.one(cx, listeners, &route, Cow::Borrowed(parent), &self.all[found], Some(i)));
            }
        }
        if route.default_gateways == Some(DefaultScope::All) {
            for parent in &self.defaults {
                let found = self.gateways.get(&(parent.namespace.as_deref().unwrap_or(""), parent.name.as_str()));
                if let Some(&found) = found {
                    let parent = Cow::Owned(parent.clone());
                    outcomes.push(self.one(cx, listeners, &route, parent, &self.all[found], None));
                }
            }
        }
        outcomes
    }

    /// The Gateway or ListenerSet of ours that a parentRef names. A Gateway of another class is somebody else's.
    fn find(&self, cx: &mut Context<'_>, route: &RouteHead<'_>, parent: &ParentReference, i: usize) -> Option<usize> {
        let namespace = parent.namespace.as_deref().unwrap_or(&route.meta.namespace);
        let at = (namespace, parent.name.as_str());
        let path = || format!("spec.parentRefs[{i}].name");
        let (ours, kind) = match (parent.group.as_str(), parent.kind.as_str()) {
            (GATEWAY_GROUP, "Gateway") => (self.gateways.get(&at).copied(), Kind::Gateway),
            (GATEWAY_GROUP, "ListenerSet") => (self.sets.get(&at).copied(), Kind::ListenerSet),
            (group, kind) => {
                let kind = secrets::qualified(group, kind);
                let message = format!("routes attach to a Gateway or ListenerSet, not to a {kind}");
                cx.report.error(&route.key(), Code::UnsupportedReference, &path(), &message);
                return None;
            }
        };
        let exists = || match kind {
            Kind::Gateway => cx.index.gateways.iter().any(|g| index::name(&g.metadata) == at),
            _ => cx.index.listener_sets.iter().any(|s| index::name(&s.metadata) == at),
        };
        if ours.is_none() && !exists() {
            let names: Vec<&str> = match kind {
                Kind::Gateway => self.gateways.keys().filter(|n| n.0 == namespace).map(|n| n.1).collect(),
                _ => self.sets.keys().filter(|n| n.0 == namespace).map(|n| n.1).collect(),
            };
            let mut near = did_you_mean(&parent.name, names);
            if near.is_empty() {
                near = elsewhere(cx, kind, &parent.name);
            }
            let message = format!("{kind} {namespace}/{} does not exist{near}", parent.name);
            cx.report.error(&route.key(), Code::UnknownParent, &path(), &message);
        }
        ours
    }

    fn one<'r>(
        &self,
        cx: &mut Context<'_>,
        listeners: &[ListenerState<'_>],
        route: &RouteHead<'r>,
        parent: Cow<'r, ParentReference>,
        found: &Parent,
        position: Option<usize>,
    ) -> ParentOutcome<'r> {
        let result = match &found.rejected {
            Some(fault) => {
                let message = format!("{} is not accepted: {}", parent.kind, fault.message);
                Err((Code::UnknownParent, Fault::new("NoMatchingParent", message)))
            }
            None => admitted(cx, listeners, route, &parent, found),
        };
        match result {
            Ok(attachments) => ParentOutcome { parent, fault: None, listeners: attachments },
            Err((code, fault)) => {
                let path =
                    position.map_or_else(|| "spec.useDefaultGateways".to_owned(), |i| format!("spec.parentRefs[{i}]"));
                cx.report.error(&route.key(), code, &path, &fault.message);
                ParentOutcome { parent, fault: Some(fault), listeners: Vec::new() }
            }
        }
    }
}

/// Where else something of that name is.
fn elsewhere(cx: &Context<'_>, kind: Kind, name: &str) -> String {
    let meta = match kind {
        Kind::Gateway => cx.index.gateways.iter().map(|it| &it.metadata).find(|meta| meta.name == name),
        _ => cx.index.listener_sets.iter().map(|it| &it.metadata).find(|meta| meta.name == name),
    };
    meta.map_or_else(String::new, |meta| {
        format!("; there is one in namespace {}: write `namespace: {0}`", meta.namespace)
    })
}

/// The listeners of a parent that take the route: those the parentRef selects, that admit its kind and namespace, and
/// that share a hostname with it. Each step that leaves none has its own reason.
fn admitted(
    cx: &Context<'_>,
    listeners: &[ListenerState<'_>],
    route: &RouteHead<'_>,
    parent: &ParentReference,
    found: &Parent,
) -> Result<Vec<Attachment>, (Code, Fault)> {
    let selected = |l: &ListenerState<'_>| {
        parent.section_name.as_deref().is_none_or(|s| s == l.name.section)
            && parent.port.is_none_or(|p| p == l.spec.port)
    };
    let selected: Vec<usize> = found.listeners.iter().copied().filter(|&i| selected(&listeners[i])).collect();
    if selected.is_empty() {
        return Err((Code::NoMatchingListener, no_listener(listeners, parent, found)));
    }
    let admits = |l: &ListenerState<'_>| {
        let rule = &l.spec.allowed_routes.namespaces;
        l.kinds.contains(&route.kind)
            && cx.index.namespace_allowed(rule.from, rule.selector.as_ref(), &l.owner.namespace, &route.meta.namespace)
    };
    let admitting: Vec<usize> = selected.iter().copied().filter(|&i| admits(&listeners[i])).collect();
    if admitting.is_empty() {
        return Err((Code::NotAllowedByParent, not_allowed(listeners, route, &selected)));
    }
    let mut attachments = Vec::with_capacity(admitting.len());
    for &i in &admitting {
        let hostnames: Vec<Option<String>> = match route.hostnames {
            None => vec![None],
            Some(own) => {
                let own: Vec<String> = own.iter().map(|h| hosts::normal(h)).collect();
                let common = hosts::intersection(listeners[i].hostname.as_deref(), &own);
                common.into_iter().map(|h| h.map(str::to_owned)).collect()
            }
        };
        if !hostnames.is_empty() {
            attachments.push(Attachment { listener: i, hostnames });
        }
    }
    if attachments.is_empty() {
        let theirs: Vec<&str> = admitting.iter().filter_map(|&i| listeners[i].hostname.as_deref()).collect();
        let message = format!(
            "no hostname of the route ({}) falls under a hostname of the listeners ({})",
            route.hostnames.unwrap_or_default().join(", "),
            theirs.join(", ")
        );
        return Err((Code::NoMatchingHostname, Fault::new("NoMatchingListenerHostname", message)));
    }
    Ok(attachments)
}

fn no_listener(listeners: &[ListenerState<'_>], parent: &ParentReference, found: &Parent) -> Fault {
    let names: Vec<String> = found
        .listeners
        .iter()
        .map(|&i| format!("{} (port {})", listeners[i].name.section, listeners[i].spec.port))
        .collect();
    let wanted = match (&parent.section_name, parent.port) {
        (Some(name), Some(port)) => format!("is named {name} on port {port}"),
        (Some(name), None) => format!("is named {name}"),
        (None, Some(port)) => format!("is on port {port}"),
        (None, None) => "is there".to_owned(),
    };
    let have = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Fault::new("NoMatchingParent", format!("no listener of {} {} {wanted}; it has: {have}", parent.kind, parent.name))
}

fn not_allowed(listeners: &[ListenerState<'_>], route: &RouteHead<'_>, selected: &[usize]) -> Fault {
    let takes_kind = selected.iter().any(|&i| listeners[i].kinds.contains(&route.kind));
    let message = if takes_kind {
        format!(
            "no listener admits routes of namespace {}: set allowedRoutes.namespaces of the listener",
            route.meta.namespace
        )
    } else {
        let kinds: Vec<&str> = selected.iter().flat_map(|&i| &listeners[i].kinds).map(|k| k.name()).collect();
        let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
        format!("no listener takes routes of kind {}; kinds taken: {kinds}", route.kind)
    };
    Fault::new("NotAllowedByListeners", message)
}
