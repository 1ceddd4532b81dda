//! AccessPolicy: what holds where, and the pure decision of who may do what.
//!
//! `build` compiles one policy, `decide` judges by several, `pattern` and `expression` are what conditions are made of.

mod build;
mod decide;
mod expression;
mod may;
mod pattern;
#[cfg(test)]
mod tests;

pub use decide::{Asked, By, Layer7, Subject, Verdict};
pub use expression::Expression;
pub use may::{Question, Ruling, may};
pub use pattern::{PathPart, PathPattern, TextPattern};

use crate::{
    Context,
    index::{self, Name},
    report::did_you_mean,
    snapshot::{Access, AccessPolicy, DefaultAccess, ListenerName, RouteKey},
    status::{Conditions, Fault, PolicyAncestorStatus, PolicyStatus, ResourceStatus},
};
use ahash::AHashMap;
use selvedge_model::{
    self as model, Code, Diagnostic, Kind, ResourceKey,
    access::{AccessTarget, AccessTargetKind},
    mesh::{self, ROOT_NAMESPACE},
    refs::{LabelSelector, ParentReference},
    validate,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Compiled policies by the resources they were made from, so that an unchanged one is not compiled again.
#[derive(Default)]
pub(crate) struct Cache(AHashMap<(String, String), Built>);

struct Built {
    from: Arc<model::AccessPolicy>,
    /// Trust domain of the mesh.
    domain: String,
    policy: Arc<AccessPolicy>,
    diagnostics: Vec<Diagnostic>,
}

/// A workload, as policies select it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkloadPlace<'p> {
    pub(crate) namespace: &'p str,
    pub(crate) name: &'p str,
    pub(crate) labels: &'p BTreeMap<String, String>,
    /// Names of the Services of its namespace that it serves.
    pub(crate) services: &'p [&'p str],
}

/// All policies by where they hold.
#[derive(Default)]
pub(crate) struct Accesses<'a> {
    default: DefaultAccess,
    /// The whole mesh and all Gateways.
    everywhere: Vec<Arc<AccessPolicy>>,
    namespaces: AHashMap<&'a str, Vec<Arc<AccessPolicy>>>,
    /// By the namespace of the workloads; without one, of all namespaces.
    selectors: Vec<(Option<&'a str>, &'a LabelSelector, Arc<AccessPolicy>)>,
    targets: AHashMap<(AccessTargetKind, Name<'a>), Vec<(Option<&'a str>, Arc<AccessPolicy>)>>,
}

impl<'a> Accesses<'a> {
    /// Compiles all policies and writes the status of each.
    pub(crate) fn new(cx: &mut Context<'a>, cache: &mut Cache) -> Self {
        let default = match cx.mesh.spec.access.as_ref().and_then(|access| access.default) {
            Some(mesh::DefaultAccess::Deny) => DefaultAccess::Deny,
            Some(mesh::DefaultAccess::Audit) => DefaultAccess::Audit,
            Some(mesh::DefaultAccess::Allow) | None => DefaultAccess::Allow,
        };
        let mut all = Accesses { default, ..Accesses::default() };
        let policies = cx.index.access.clone();
        let mut kept = std::mem::take(&mut cache.0);
        for policy in policies {
            let at = (policy.metadata.namespace.clone(), policy.metadata.name.clone());
            let domain = cx.mesh.trust_domain;
            let same = |built: &Built| Arc::ptr_eq(&built.from, policy) && built.domain == domain;
            let built = match kept.remove(&at).filter(same) {
                Some(built) => built,
                None => {
                    let (compiled, diagnostics) = build::policy(policy, domain);
                    let (from, domain) = (Arc::clone(policy), domain.to_owned());
                    Built { from, domain, policy: Arc::new(compiled), diagnostics }
                }
            };
            cx.report.0.extend(built.diagnostics.iter().cloned());
            let broken = built.policy.broken.as_ref().map(|why| Fault::new("Invalid", why.clone()));
            all.enter(cx, policy, &built.policy, broken.as_ref());
            cache.0.insert(at, built);
        }
        all
    }

    fn enter(
        &mut self,
        cx: &mut Context<'a>,
        policy: &'a model::AccessPolicy,
        compiled: &Arc<AccessPolicy>,
        broken: Option<&Fault>,
    ) {
        let (namespace, name) = index::name(&policy.metadata);
        let key = ResourceKey::new(Kind::AccessPolicy, namespace, name);
        let compiled = || Arc::clone(compiled);
        let spec = &policy.spec;
        let root = namespace == ROOT_NAMESPACE;
        let mut ancestors = Vec::new();
        for (i, target) in spec.target_refs.iter().enumerate() {
            let path = format!("spec.targetRefs[{i}]");
            let fault = wrong_target(cx, namespace, target);
            if let Some(fault) = &fault {
                cx.report.error(&key, Code::TargetNotFound, &path, &fault.message);
            }
            let at = (namespace, target.name.as_str());
            if target.kind == AccessTargetKind::Namespace {
                self.namespaces.entry(namespace).or_default().push(compiled());
            } else {
                let list = self.targets.entry((target.kind, at)).or_default();
                list.push((target.section_name.as_deref(), compiled()));
            }
            ancestors.push(ancestor(cx, policy, target, fault.as_ref().or(broken)));
        }
        // One that is broken may select nobody, and what the policy keeps out must not come in: it holds everywhere here.
        let sound = |selector: &&LabelSelector| validate::label_selector(selector).is_ok();
        if let Some(selector) = spec.selector.as_ref().filter(|_| spec.target_refs.is_empty()).filter(sound) {
            self.selectors.push(((!root).then_some(namespace), selector, compiled()));
        } else if spec.target_refs.is_empty() && root {
            self.everywhere.push(compiled());
        } else if spec.target_refs.is_empty() {
            self.namespaces.entry(namespace).or_default().push(compiled());
        }
        if spec.target_refs.is_empty() {
            let whole = AccessTarget {
                group: None,
                kind: AccessTargetKind::Namespace,
                name: namespace.to_owned(),
                section_name: None,
            };
            ancestors.push(ancestor(cx, policy, &whole, broken));
        }
        cx.status.set(key, ResourceStatus::Policy(PolicyStatus { ancestors }));
    }

    /// What holds for connections to a workload.
    pub(crate) fn for_workload(&self, place: WorkloadPlace<'_>) -> Arc<Access> {
        let mut list: Vec<Arc<AccessPolicy>> = self.everywhere.clone();
        list.extend(self.namespaces.get(place.namespace).into_iter().flatten().cloned());
        let selected = self.selectors.iter().filter(|(namespace, selector, _)| {
            namespace.is_none_or(|namespace| namespace == place.namespace) && selector.matches(place.labels)
        });
        list.extend(selected.map(|(_, _, policy)| Arc::clone(policy)));
        list.extend(self.of_target(AccessTargetKind::Workload, (place.namespace, place.name), None));
        for service in place.services {
            list.extend(self.of_target(AccessTargetKind::Service, (place.namespace, service), None));
        }
        Arc::new(self.access(list, None))
    }

    /// What holds for a listener of a Gateway; `None` when everything is open.
    pub(crate) fn for_listener(
        &self,
        gateway: Name<'_>,
        listener: &ListenerName,
        port: u16,
        routes: impl IntoIterator<Item = RouteKey>,
    ) -> Option<Arc<Access>> {
        let mut list: Vec<Arc<AccessPolicy>> = self.everywhere.clone();
        list.extend(self.namespaces.get(gateway.0).into_iter().flatten().cloned());
        // Sections of a ListenerSet are not the Gateway's.
        let section = (listener.kind == "Gateway").then_some(listener.section.as_str());
        list.extend(self.of_target(AccessTargetKind::Gateway, gateway, section));
        let mut access = self.access(list.clone(), Some(port));
        if self.has_routes() {
            let unique: BTreeSet<RouteKey> = routes.into_iter().collect();
            for key in unique {
                let kind = match key.0 {
                    "GRPCRoute" => AccessTargetKind::GrpcRoute,
                    _ => AccessTargetKind::HttpRoute,
                };
                let own: Vec<_> = self.of_target(kind, (key.1.as_str(), key.2.as_str()), None).collect();
                if !own.is_empty() {
                    let both = list.iter().cloned().chain(own).collect();
                    access.routes.insert(key, Arc::new(self.access(both, Some(port))));
                }
            }
        }
        (!access.is_open()).then(|| Arc::new(access))
    }

    /// Whether some policy targets a route.
    pub(crate) fn has_routes(&self) -> bool {
        self.targets.keys().any(|(kind, _)| matches!(kind, AccessTargetKind::HttpRoute | AccessTargetKind::GrpcRoute))
    }

    /// Policies of a target, and those of one section of it.
    fn of_target<'s>(
        &'s self,
        kind: AccessTargetKind,
        at: Name<'s>,
        section: Option<&'s str>,
    ) -> impl Iterator<Item = Arc<AccessPolicy>> + 's {
        let list = self.targets.get(&(kind, at)).into_iter().flatten();
        list.filter(move |(only, _)| only.is_none() || *only == section).map(|(_, policy)| Arc::clone(policy))
    }

    fn access(&self, mut policies: Vec<Arc<AccessPolicy>>, port: Option<u16>) -> Access {
        policies.sort_by(|a, b| (a.action, &a.name).cmp(&(b.action, &b.name)));
        policies.dedup_by(|a, b| Arc::ptr_eq(a, b));
        Access { default: self.default, port, policies, routes: BTreeMap::new() }
    }
}

/// Why a target cannot be one, if so.
fn wrong_target(cx: &Context<'_>, namespace: &str, target: &AccessTarget) -> Option<Fault> {
    let section = target.section_name.as_deref();
    let at = (namespace, target.name.as_str());
    let missing = || {
        let kind: Option<Kind> = target.kind.name().parse().ok();
        let names = kind.map(|kind| cx.index.names(kind, namespace)).unwrap_or_default();
        let near = did_you_mean(&target.name, names);
        let message = format!("{} {namespace}/{} does not exist{near}", target.kind.name(), target.name);
        Some(Fault::new("TargetNotFound", message))
    };
    let invalid = |message: String| Some(Fault::new("Invalid", message));
    if target.group() != target.kind.group() && !target.group().is_empty() {
        return invalid(format!("the group of {} is `{}`", target.kind.name(), target.kind.group()));
    }
    if section.is_some() && target.kind != AccessTargetKind::Gateway {
        return invalid(format!("only a Gateway has sections here, not a {}: it is not looked at", target.kind.name()));
    }
    match target.kind {
        AccessTargetKind::Namespace if target.name != namespace => {
            invalid(format!("a policy applies to its own namespace, {namespace}: it holds there"))
        }
        // Whether a Workload is there changes from second to second.
        AccessTargetKind::Namespace | AccessTargetKind::Workload => None,
        AccessTargetKind::Service => cx.index.service(at.0, at.1).is_none().then(missing).flatten(),
        AccessTargetKind::Gateway => {
            let gateway = cx.index.gateways.iter().find(|g| index::name(&g.metadata) == at);
            match (gateway, section) {
                (None, _) => missing(),
                (Some(gateway), Some(section)) if !gateway.spec.listeners.iter().any(|l| l.name == section) => {
                    invalid(format!("Gateway {namespace}/{} has no listener {section}", target.name))
                }
                _ => None,
            }
        }
        AccessTargetKind::HttpRoute => {
            let found = cx.index.http_routes.iter().any(|r| index::name(&r.metadata) == at);
            if found { None } else { missing() }
        }
        AccessTargetKind::GrpcRoute => {
            let found = cx.index.grpc_routes.iter().any(|r| index::name(&r.metadata) == at);
            if found { None } else { missing() }
        }
    }
}

fn ancestor(
    cx: &Context<'_>,
    policy: &model::AccessPolicy,
    target: &AccessTarget,
    fault: Option<&Fault>,
) -> PolicyAncestorStatus {
    let namespaced = target.kind != AccessTargetKind::Namespace;
    PolicyAncestorStatus {
        ancestor_ref: ParentReference {
            group: target.group().to_owned(),
            kind: target.kind.name().to_owned(),
            namespace: namespaced.then(|| policy.metadata.namespace.clone()),
            name: target.name.clone(),
            section_name: target.section_name.clone(),
            port: None,
        },
        controller_name: cx.controller(),
        conditions: vec![Conditions(policy.metadata.generation).check("Accepted", fault)],
    }
}
