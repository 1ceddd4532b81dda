//! TrafficPolicy: which settings hold where (GEP-713).
//!
//! From the less to the more specific: Namespace of the Gateway, Namespace of the route, Gateway, Service, ListenerSet,
//! listener, route, rule; ExternalServices stand where Services do. The more specific wins field by field. Of several policies for one target the older wins.

use crate::{
    Context,
    index::{self, Name},
    listeners::ListenerState,
    mesh,
    report::did_you_mean,
    status::{Conditions, Fault, PolicyAncestorStatus, PolicyStatus, ResourceStatus},
};
use ahash::AHashMap;
use selvedge_model::{
    Code, Kind, ResourceKey, TrafficPolicy,
    refs::ParentReference,
    traffic::{Inherit, TrafficSettings, TrafficTarget},
};
use serde_json::Value;
use std::{collections::BTreeSet, sync::Arc};

/// All policies by what they apply to.
#[derive(Default)]
pub(crate) struct Policies<'a> {
    targets: AHashMap<(Kind, Name<'a>), Vec<(Option<&'a str>, Arc<TrafficSettings>)>>,
}

/// Settings of a listener that requests through it inherit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Front {
    /// The listener over its ListenerSet.
    high: TrafficSettings,
    gateway: Option<Arc<TrafficSettings>>,
    namespace: Option<Arc<TrafficSettings>>,
}

/// Where a rule is, for [`Policies::of_rule`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct RulePlace<'p> {
    pub(crate) kind: Kind,
    pub(crate) route: Name<'p>,
    pub(crate) rule: Option<&'p str>,
    /// The one Service (namespace, name, port name) that the rule forwards to, if it is one.
    pub(crate) service: Option<(&'p str, &'p str, Option<&'p str>)>,
}

impl<'a> Policies<'a> {
    /// Reads all policies and writes the status of each.
    pub(crate) fn new(cx: &mut Context<'a>) -> Self {
        let mut all = Policies::default();
        // Who was first to set a field of a target, for the words of a conflict.
        let mut owners: AHashMap<(Kind, Name<'a>, Option<&'a str>), Vec<&'a TrafficPolicy>> = AHashMap::new();
        for policy in cx.index.traffic.clone() {
            let settings = Arc::new(policy.spec.settings.clone());
            let (namespace, name) = index::name(&policy.metadata);
            let key = ResourceKey::new(Kind::TrafficPolicy, namespace, name);
            let mut ancestors = Vec::new();
            for (i, target) in policy.spec.target_refs.iter().enumerate() {
                let path = format!("spec.targetRefs[{i}]");
                let fault = if let Some(message) = missing(cx, namespace, target) {
                    cx.report.error(&key, Code::TargetNotFound, &path, &message);
                    Some(Fault::new("TargetNotFound", message))
                } else {
                    warn_without_effect(cx, &key, policy, target);
                    let kind = target.kind.kind();
                    let at = (if kind == Kind::Namespace { "" } else { namespace }, target.name.as_str());
                    let section = target.section_name.as_deref();
                    let older = owners.entry((kind, at, section)).or_default();
                    let fault = conflict(policy, older);
                    if let Some(fault) = &fault {
                        cx.report.warning(&key, Code::PolicyConflict, &path, &fault.message);
                    }
                    older.push(policy);
                    all.enter(kind, at, section, &settings);
                    fault
                };
                ancestors.push(ancestor(cx, policy, target, fault.as_ref()));
            }
            cx.status.set(key, ResourceStatus::Policy(PolicyStatus { ancestors }));
        }
        all
    }

    fn enter(&mut self, kind: Kind, at: Name<'a>, section: Option<&'a str>, settings: &Arc<TrafficSettings>) {
        let list = self.targets.entry((kind, at)).or_default();
        match list.iter_mut().find(|(known, _)| *known == section) {
            Some((_, older)) => Arc::make_mut(older).inherit(settings),
            None => list.push((section, Arc::clone(settings))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    fn at<'s>(&'s self, kind: Kind, at: Name<'s>, section: Option<&str>) -> Option<&'s Arc<TrafficSettings>> {
        let list = self.targets.get(&(kind, at))?;
        list.iter().find(|(known, _)| *known == section).map(|(_, settings)| settings)
    }

    /// A section of a target over the whole of it.
    fn section<'s>(&'s self, kind: Kind, at: Name<'s>, section: Option<&str>) -> [Option<&'s Arc<TrafficSettings>>; 2] {
        [section.and_then(|s| self.at(kind, at, Some(s))), self.at(kind, at, None)]
    }

    /// What a listener brings to the requests that come through it.
    pub(crate) fn front(&self, listener: &ListenerState<'_>, gateway: Name<'_>) -> Option<Front> {
        if self.is_empty() {
            return None;
        }
        let owner = index::name(listener.owner);
        let section = Some(listener.name.section.as_str());
        let high = match listener.set {
            Some(_) => merged(self.section(Kind::ListenerSet, owner, section)),
            None => merged([self.at(Kind::Gateway, owner, section)]),
        };
        let front = Front {
            high: high.unwrap_or_default(),
            gateway: self.at(Kind::Gateway, gateway, None).cloned(),
            namespace: self.at(Kind::Namespace, ("", gateway.0), None).cloned(),
        };
        let empty = front.gateway.is_none() && front.namespace.is_none() && front.high == TrafficSettings::default();
        (!empty).then_some(front)
    }

    /// What a Service port brings to the routes that it is the parent of.
    pub(crate) fn service_front(&self, namespace: &str, name: &str, port: Option<&str>) -> Option<Front> {
        let gateway = self.of_service(namespace, name, port).map(Arc::new);
        gateway.is_some().then(|| Front { high: TrafficSettings::default(), gateway, namespace: None })
    }

    /// What the policies for a whole namespace say, for what is in it and has no Gateway.
    pub(crate) fn of_namespace<'s>(&'s self, namespace: &'s str) -> Option<&'s TrafficSettings> {
        self.at(Kind::Namespace, ("", namespace), None).map(Arc::as_ref)
    }

    /// What holds for a rule; nothing when no policy says anything.
    pub(crate) fn of_rule(&self, place: RulePlace<'_>, front: Option<&Front>) -> Option<TrafficSettings> {
        if self.is_empty() {
            return None;
        }
        let [rule, route] = self.section(place.kind, place.route, place.rule);
        let [port, service] = match place.service {
            Some((namespace, name, port)) => self.section(Kind::Service, (namespace, name), port),
            None => [None, None],
        };
        let mut chain: Vec<&TrafficSettings> = Vec::with_capacity(8);
        chain.extend(rule.into_iter().chain(route).map(Arc::as_ref));
        chain.extend(front.map(|f| &f.high));
        chain.extend(port.into_iter().chain(service).map(Arc::as_ref));
        chain.extend(front.and_then(|f| f.gateway.as_deref()));
        chain.extend(self.at(Kind::Namespace, ("", place.route.0), None).map(Arc::as_ref));
        chain.extend(front.and_then(|f| f.namespace.as_deref()));
        fold(chain.into_iter())
    }

    /// What holds for the connections to a Service port.
    pub(crate) fn of_service(&self, namespace: &str, name: &str, port: Option<&str>) -> Option<TrafficSettings> {
        self.of_backend(Kind::Service, (namespace, name), port)
    }

    /// What holds for the connections to a port of an ExternalService.
    pub(crate) fn of_external(&self, namespace: &str, name: &str, port: Option<&str>) -> Option<TrafficSettings> {
        self.of_backend(Kind::ExternalService, (namespace, name), port)
    }

    fn of_backend(&self, kind: Kind, at: Name<'_>, port: Option<&str>) -> Option<TrafficSettings> {
        if self.is_empty() {
            return None;
        }
        let [port, whole] = self.section(kind, at, port);
        merged([port, whole, self.at(Kind::Namespace, ("", at.0), None)])
    }
}

impl Front {
    /// What holds for the listener itself.
    pub(crate) fn listener(&self) -> TrafficSettings {
        let chain = [Some(&self.high), self.gateway.as_deref(), self.namespace.as_deref()];
        fold(chain.into_iter().flatten()).unwrap_or_default()
    }
}

fn merged<const N: usize>(chain: [Option<&Arc<TrafficSettings>>; N]) -> Option<TrafficSettings> {
    fold(chain.into_iter().flatten().map(Arc::as_ref))
}

/// The first is the most specific.
fn fold<'s>(mut chain: impl Iterator<Item = &'s TrafficSettings>) -> Option<TrafficSettings> {
    let mut settings = chain.next()?.clone();
    for parent in chain {
        settings.inherit(parent);
    }
    Some(settings)
}

/// Why a target is not there, if so.
fn missing(cx: &Context<'_>, namespace: &str, target: &TrafficTarget) -> Option<String> {
    let kind = target.kind.kind();
    let at = (namespace, target.name.as_str());
    let section = target.section_name.as_deref();
    let index = &cx.index;
    // Whether the target exists, and whether the section does.
    let found: Option<bool> = match kind {
        // A namespace needs no resource of its own.
        Kind::Namespace => {
            return (target.name != namespace).then(|| format!("a policy applies to its own namespace, {namespace}"));
        }
        Kind::Gateway => index
            .gateways
            .iter()
            .find(|g| index::name(&g.metadata) == at)
            .map(|g| section.is_none_or(|s| g.spec.listeners.iter().any(|l| l.name == s))),
        Kind::ListenerSet => index
            .listener_sets
            .iter()
            .find(|g| index::name(&g.metadata) == at)
            .map(|g| section.is_none_or(|s| g.spec.listeners.iter().any(|l| l.name == s))),
        Kind::Service => index
            .service(at.0, at.1)
            .map(|service| section.is_none_or(|s| service.spec.ports.iter().any(|p| p.name.as_deref() == Some(s)))),
        Kind::ExternalService => index
            .external_services()
            .get(at.0, at.1)
            .map(|service| section.is_none_or(|s| service.spec.ports.iter().any(|p| p.name.as_deref() == Some(s)))),
        Kind::HttpRoute => index
            .http_routes
            .iter()
            .find(|r| index::name(&r.metadata) == at)
            .map(|r| section.is_none_or(|s| r.spec.rules.iter().any(|rule| rule.name.as_deref() == Some(s)))),
        Kind::GrpcRoute => index
            .grpc_routes
            .iter()
            .find(|r| index::name(&r.metadata) == at)
            .map(|r| section.is_none_or(|s| r.spec.rules.iter().any(|rule| rule.name.as_deref() == Some(s)))),
        Kind::TlsRoute => index
            .tls_routes
            .iter()
            .find(|r| index::name(&r.metadata) == at)
            .map(|r| section.is_none_or(|s| r.spec.rules.iter().any(|rule| rule.name.as_deref() == Some(s)))),
        Kind::TcpRoute => index
            .tcp_routes
            .iter()
            .find(|r| index::name(&r.metadata) == at)
            .map(|r| section.is_none_or(|s| r.spec.rules.iter().any(|rule| rule.name.as_deref() == Some(s)))),
        Kind::UdpRoute => index
            .udp_routes
            .iter()
            .find(|r| index::name(&r.metadata) == at)
            .map(|r| section.is_none_or(|s| r.spec.rules.iter().any(|rule| rule.name.as_deref() == Some(s)))),
        _ => None,
    };
    match found {
        Some(true) => None,
        Some(false) => {
            Some(format!("{kind} {namespace}/{} has no section named {}", target.name, section.unwrap_or_default()))
        }
        None => {
            let near = did_you_mean(&target.name, index.names(kind, namespace));
            Some(format!("{kind} {namespace}/{} does not exist{near}", target.name))
        }
    }
}

/// Settings of connections to backends are kept per backend, so that only policies on backends can set them.
fn warn_without_effect(cx: &mut Context<'_>, key: &ResourceKey, policy: &TrafficPolicy, target: &TrafficTarget) {
    let kind = target.kind.kind();
    if kind == Kind::ExternalService
        && let Some(service) = cx.index.external_services().get(key.namespace.as_str(), &target.name)
        && mesh::external::is_passed_on(service)
    {
        let message = format!(
            "all hosts of ExternalService {}/{} are wildcards, whose connections are passed on to where they were going: \
             nothing of this policy holds for them; name the hosts, or use `resolution: Static`",
            key.namespace, target.name
        );
        cx.report.warning(key, Code::NoEffect, "spec.targetRefs", &message);
    }
    if matches!(kind, Kind::Service | Kind::ExternalService | Kind::Namespace) {
        return;
    }
    let it = &policy.spec.settings;
    let fields = [
        ("loadBalancing", it.load_balancing.is_some()),
        ("connections", it.connections.is_some()),
        ("healthChecks", it.health_checks.is_some()),
        ("outlierDetection", it.outlier_detection.is_some()),
    ];
    for (name, _) in fields.into_iter().filter(|(_, set)| *set) {
        let message = format!(
            "{name} has no effect on a {kind}: it belongs to backends; target a Service, an ExternalService or the Namespace"
        );
        cx.report.warning(key, Code::NoEffect, &format!("spec.{name}"), &message);
    }
    if it.timeouts.is_some() && matches!(kind, Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute) {
        let message = format!("timeouts have no effect on a {kind}: target its Gateway, ListenerSet or listener");
        cx.report.warning(key, Code::NoEffect, "spec.timeouts", &message);
    }
    let outputs = it.telemetry.is_some() && !matches!(kind, Kind::Gateway | Kind::ListenerSet);
    if outputs {
        let message = format!("telemetry has no effect on a {kind}: target a Gateway, a ListenerSet or the Namespace");
        cx.report.warning(key, Code::NoEffect, "spec.telemetry", &message);
    }
}

/// Fields that an older policy for the same target has set to something else.
fn conflict(policy: &TrafficPolicy, older: &[&TrafficPolicy]) -> Option<Fault> {
    let own = leaves(&policy.spec.settings);
    older.iter().find_map(|other| {
        let theirs = leaves(&other.spec.settings);
        let both: Vec<&str> = own
            .iter()
            .filter(|(path, value)| theirs.iter().any(|(p, v)| p == path && v != value))
            .map(|(path, _)| path.as_str())
            .collect();
        (!both.is_empty()).then(|| {
            let message = format!("the older TrafficPolicy {} already sets {}", other.metadata.name, both.join(", "));
            Fault::new("Conflicted", message)
        })
    })
}

/// What is set, by dotted name. Lists count as one value, as they are inherited whole.
fn leaves(settings: &TrafficSettings) -> BTreeSet<(String, String)> {
    fn walk(value: &Value, path: &str, into: &mut BTreeSet<(String, String)>) {
        match value {
            Value::Null => {}
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(value, &path, into);
                }
            }
            other => {
                into.insert((path.to_owned(), other.to_string()));
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(&serde_json::to_value(settings).unwrap_or(Value::Null), "", &mut found);
    found
}

fn ancestor(
    cx: &Context<'_>,
    policy: &TrafficPolicy,
    target: &TrafficTarget,
    fault: Option<&Fault>,
) -> PolicyAncestorStatus {
    PolicyAncestorStatus {
        ancestor_ref: ParentReference {
            group: target.group().to_owned(),
            kind: target.kind.kind().name().to_owned(),
            namespace: Some(policy.metadata.namespace.clone()).filter(|_| target.kind.kind().namespaced()),
            name: target.name.clone(),
            section_name: target.section_name.clone(),
            port: None,
        },
        controller_name: cx.controller(),
        conditions: vec![Conditions(policy.metadata.generation).check("Accepted", fault)],
    }
}
