//! What HTTPRoute and GRPCRoute rules share while they compile.

use crate::{
    Context,
    attach::{Attachment, ParentOutcome, RouteHead},
    backend_tls::BackendTls,
    backends::{self, ClusterUse, Reference, Wire},
    grants::From,
    mesh::gamma,
    policy::{Front, Policies, RulePlace},
    router::{Age, Entry},
    snapshot::{Action, Backend, ClusterId, Filter, Rule, RuleName, Split, Target},
    status::{Conditions, Fault, RouteParentStatus, RouteStatus},
    traffic,
};
use selvedge_model::{
    Code, Duration, GATEWAY_GROUP, ObjectMeta, http::HttpRouteRetry, refs::ParentReference, traffic::TrafficSettings,
};
use std::sync::Arc;

/// What differs between listeners in how the rules of one route are compiled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Situation {
    /// The Gateway, when it brings a certificate to show to backends.
    pub(crate) client: Option<(String, String)>,
    /// Position in the list of what listeners bring by TrafficPolicies.
    pub(crate) front: Option<usize>,
}

/// A compiled route. [`ClusterId`]s in it are positions in `uses` until the snapshot is put together.
pub(crate) struct RouteOutcome {
    /// Listeners that it is on, each once, with the variant of the rules that holds there.
    pub(crate) attachments: Vec<(Attachment, usize)>,
    pub(crate) variants: Vec<Vec<Rule>>,
    /// `Entry::rule` is a position in each variant.
    pub(crate) entries: Vec<Entry>,
    pub(crate) uses: Vec<ClusterUse>,
    pub(crate) status: RouteStatus,
    /// Services with a BackendTLSPolicy that it refers to, and the Gateways it is on.
    pub(crate) policed: Vec<(String, String)>,
}

/// Compiles the rules of one route in one situation.
pub(crate) struct RuleBuilder<'c, 'a, 'r> {
    pub(crate) cx: &'c mut Context<'a>,
    pub(crate) tls: &'c BackendTls<'a>,
    pub(crate) policies: &'c Policies<'a>,
    pub(crate) front: Option<&'c Front>,
    pub(crate) head: RouteHead<'r>,
    pub(crate) wire: Wire,
    pub(crate) situation: Situation,
    pub(crate) uses: Vec<ClusterUse>,
    pub(crate) policed: Vec<(String, String)>,
    /// The first reference that does not resolve.
    pub(crate) refs: Option<Fault>,
}

/// A rule that is left out, and why.
pub(crate) struct Dropped {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Dropped {
    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Dropped { reason: "UnsupportedValue", message: message.into() }
    }
}

impl RuleBuilder<'_, '_, '_> {
    pub(crate) fn error(&mut self, code: Code, path: &str, message: &str) {
        self.cx.report.error(&self.head.key(), code, path, message);
    }

    pub(crate) fn warning(&mut self, code: Code, path: &str, message: &str) {
        self.cx.report.warning(&self.head.key(), code, path, message);
    }

    /// The cluster of a backend reference, or the message why there is none.
    pub(crate) fn cluster(&mut self, reference: Reference<'_>, path: &str) -> Result<ClusterId, String> {
        let own = self.head.meta.namespace.as_str();
        let mut from = From { group: GATEWAY_GROUP, kind: self.head.kind.name(), namespace: own };
        let namespace = reference.namespace_in(own);
        // A consumer's route may leave at the Service what its clients send there anyway (GEP-1426); a gateway may not.
        let parents = &self.head.parent_refs;
        let of_mesh = self.cx.mesh.beside || parents.iter().all(gamma::is_service);
        let is_parent = |p: &ParentReference| {
            gamma::is_service(p) && p.name == reference.name() && p.namespace.as_deref().unwrap_or(own) == namespace
        };
        if of_mesh && reference.is_service() && namespace != own && parents.iter().any(is_parent) {
            from.namespace = namespace;
        }
        if !self.tls.is_empty() && reference.is_service() {
            let service = (reference.namespace_in(&self.head.meta.namespace).to_owned(), reference.name().to_owned());
            if self.tls.knows(&service) && !self.policed.contains(&service) {
                self.policed.push(service);
            }
        }
        let client = self.situation.client.as_ref();
        match backends::resolve(self.cx, self.tls, from, reference, self.wire, client) {
            Ok(wanted) => {
                let at = self.uses.iter().position(|known| *known == wanted).unwrap_or_else(|| {
                    self.uses.push(wanted);
                    self.uses.len() - 1
                });
                Ok(ClusterId(u32::try_from(at).unwrap_or(u32::MAX)))
            }
            Err(bad) => {
                self.error(bad.code, &format!("{path}.{}", bad.field), &bad.fault.message);
                let message = bad.fault.message.clone();
                self.refs.get_or_insert(bad.fault);
                Err(message)
            }
        }
    }

    /// Forwards by weight. A broken reference keeps its share and answers it with 500, so that a typo in a canary does
    /// not move its traffic elsewhere unseen (HTTPRoute.backendRefs).
    pub(crate) fn action(&mut self, backends: Vec<Backend>) -> Action {
        let total = backends.iter().fold(0u32, |sum, b| sum.saturating_add(b.weight));
        if backends.is_empty() {
            return Action::Fixed { status: 500, reason: "the rule has no backend".to_owned() };
        }
        if total == 0 {
            return Action::Fixed { status: 500, reason: "all backends of the rule have weight 0".to_owned() };
        }
        Action::Forward(Split { backends, total })
    }

    pub(crate) fn backend(&mut self, reference: Reference<'_>, weight: u32, path: &str) -> Backend {
        let target = match self.cluster(reference, path) {
            Ok(id) => Target::Cluster(id),
            Err(reason) => Target::Invalid { status: 500, reason },
        };
        Backend { weight, target, filters: Vec::new() }
    }

    /// Adds what policies say, and the defaults.
    pub(crate) fn finish(&self, rule: &mut Rule, own_retry: Option<&HttpRouteRetry>) {
        let place = RulePlace {
            kind: self.head.kind,
            route: (&self.head.meta.namespace, &self.head.meta.name),
            rule: rule.name.name.as_deref(),
            service: self.only_service(&rule.action),
        };
        settle(rule, self.policies.of_rule(place, self.front).as_ref(), own_retry);
    }
    /// The Service that all backends are of, with the name of its port if that is one too.
    fn only_service<'s>(&'s self, action: &Action) -> Option<(&'s str, &'s str, Option<&'s str>)> {
        if self.policies.is_empty() {
            return None;
        }
        let Action::Forward(split) = action else { return None };
        let mut found: Option<&ClusterUse> = None;
        let mut ports_agree = true;
        for backend in &split.backends {
            let Target::Cluster(id) = backend.target else { continue };
            let wanted = self.uses.get(id.0 as usize)?;
            match found {
                None => found = Some(wanted),
                Some(known) if (&known.namespace, &known.name) != (&wanted.namespace, &wanted.name) => return None,
                Some(known) => ports_agree &= known.port == wanted.port,
            }
        }
        let wanted = found?;
        let service = self.cx.index.service(&wanted.namespace, &wanted.name);
        let port = service.and_then(|s| s.spec.ports.iter().find(|p| p.port == wanted.port)).filter(|_| ports_agree);
        Some((&wanted.namespace, &wanted.name, port.and_then(|p| p.name.as_deref())))
    }

    pub(crate) fn name(&self, index: usize, name: Option<&String>) -> RuleName {
        RuleName {
            kind: self.head.kind.name(),
            namespace: self.head.meta.namespace.clone(),
            route: self.head.meta.name.clone(),
            index: u32::try_from(index).unwrap_or(u32::MAX),
            name: name.cloned(),
        }
    }
}

/// Adds what policies say to a rule, and the defaults.
pub(crate) fn settle(rule: &mut Rule, settings: Option<&TrafficSettings>, own_retry: Option<&HttpRouteRetry>) {
    let mut policy_retry = None;
    if let Some(settings) = settings {
        let (mut filters, behind) = traffic::filters(settings);
        if !matches!(rule.action, Action::Fixed { .. }) || !behind.is_empty() || !rule.filters.is_empty() {
            filters.append(&mut rule.filters);
            filters.extend(behind);
            rule.filters = filters;
        }
        let times = settings.timeouts.clone().unwrap_or_default();
        let own = &mut rule.timeouts;
        own.request = own.request.or(times.request.map(Duration::as_std));
        own.backend_request = own.backend_request.or(times.backend_request.map(Duration::as_std));
        own.stream_idle = times.stream_idle.map(Duration::as_std);
        rule.hedging = settings.hedging.as_ref().and_then(traffic::hedging);
        policy_retry = settings.retry.as_ref();
    }
    if matches!(rule.action, Action::Forward(_)) {
        rule.retry = traffic::retry(policy_retry, own_retry, None);
    }
}

/// Why nobody gets more than an error from a rule that is in order, if so.
pub(crate) fn unanswered(rule: &Rule) -> Option<String> {
    let Action::Fixed { status, reason } = &rule.action else { return None };
    let answers = |filter: &Filter| matches!(filter, Filter::Redirect(_) | Filter::Direct(_));
    if rule.filters.iter().any(answers) {
        return None;
    }
    let what = if rule.grpc {
        "calls fail with UNAVAILABLE".to_owned()
    } else {
        format!("requests are answered with {status}")
    };
    Some(format!("{reason}: {what}"))
}

/// The answer of a rule that must not let anything through.
pub(crate) fn closed(rule: &mut Rule, reason: String) {
    rule.filters = Vec::<Filter>::new();
    rule.action = Action::Fixed { status: 500, reason };
}

/// The tie breaker of a match.
pub(crate) fn age(meta: &ObjectMeta, rule: usize, position: usize) -> Age {
    Age {
        created: meta.creation_timestamp.clone().unwrap_or_default(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        rule: u32::try_from(rule).unwrap_or(u32::MAX),
        position: u32::try_from(position).unwrap_or(u32::MAX),
    }
}

/// What of a route works: all rules, some, or none.
pub(crate) struct RuleFaults {
    pub(crate) dropped: Vec<(usize, Dropped)>,
    /// Rules that answer 500 because of a value that is not supported.
    pub(crate) closed: Vec<(usize, String)>,
    pub(crate) rules: usize,
}

/// Status of a route for each of its parents.
pub(crate) fn status(
    controller: &Arc<str>,
    meta: &ObjectMeta,
    parents: Vec<ParentOutcome<'_>>,
    refs: Option<&Fault>,
    faults: &RuleFaults,
) -> RouteStatus {
    let make = Conditions(meta.generation);
    let list = |indexes: &mut dyn Iterator<Item = (usize, &str)>| {
        indexes.map(|(i, why)| format!("rules[{i}]: {why}")).collect::<Vec<_>>().join("; ")
    };
    let whole = (faults.rules > 0 && faults.dropped.len() == faults.rules).then(|| {
        let message = list(&mut faults.dropped.iter().map(|(i, d)| (*i, d.message.as_str())));
        Fault::new(faults.dropped[0].1.reason, message)
    });
    let partial = if whole.is_some() || (faults.dropped.is_empty() && faults.closed.is_empty()) {
        None
    } else {
        let dropped = faults.dropped.iter().map(|(i, d)| (*i, d.message.as_str()));
        let all = list(&mut dropped.chain(faults.closed.iter().map(|(i, why)| (*i, why.as_str()))));
        Some(Fault::new("UnsupportedValue", format!("Dropped Rule(s) {all}")))
    };
    let parents = parents.into_iter().map(|outcome| {
        let fault = outcome.fault.as_ref().or(whole.as_ref());
        let mut conditions = vec![make.check("Accepted", fault), make.check("ResolvedRefs", refs)];
        if let (None, Some(partial)) = (fault, &partial) {
            conditions.push(make.yes_but("PartiallyInvalid", partial));
        }
        RouteParentStatus {
            parent_ref: outcome.parent.into_owned(),
            controller_name: Arc::clone(controller),
            conditions,
        }
    });
    RouteStatus { parents: parents.collect() }
}

/// The listeners of all parents, each once: a route that names a listener twice is on it once.
pub(crate) fn merged(parents: &mut [ParentOutcome<'_>]) -> Vec<Attachment> {
    let mut merged: Vec<Attachment> = Vec::new();
    for attachment in parents.iter_mut().flat_map(|p| std::mem::take(&mut p.listeners)) {
        if !merged.iter().any(|known| known.listener == attachment.listener) {
            merged.push(attachment);
        }
    }
    merged
}
