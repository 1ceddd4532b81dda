//! Where policies about callers hold: AccessPolicies and AuthPolicies attach in the same way.

use super::WorkloadPlace;
use crate::{
    Context,
    index::{self, Name},
    report::did_you_mean,
    snapshot::ListenerName,
    status::{Conditions, Fault, PolicyAncestorStatus, PolicyStatus, ResourceStatus},
};
use ahash::AHashMap;
use selvedge_model::{
    Code, Kind, ObjectMeta, ResourceKey,
    access::{AccessTarget, AccessTargetKind},
    mesh::ROOT_NAMESPACE,
    refs::{LabelSelector, ParentReference},
    validate,
};

/// A policy as it was written: what says where it holds.
#[derive(Clone, Copy)]
pub(super) struct Written<'a> {
    pub(super) kind: Kind,
    pub(super) metadata: &'a ObjectMeta,
    pub(super) targets: &'a [AccessTarget],
    pub(super) selector: Option<&'a LabelSelector>,
    /// Only one policy of this kind holds for a target: the one that was entered first.
    pub(super) alone: bool,
}

/// All policies of a kind by where they hold, in the order in which they were entered.
pub(super) struct Attached<'a, T> {
    /// The whole mesh and all Gateways.
    everywhere: Vec<T>,
    namespaces: AHashMap<&'a str, Vec<T>>,
    /// By the namespace of the workloads; without one, of all namespaces.
    selectors: Vec<(Option<&'a str>, &'a LabelSelector, T)>,
    targets: AHashMap<(AccessTargetKind, Name<'a>), Vec<(Option<&'a str>, T)>>,
}

impl<T> Default for Attached<'_, T> {
    fn default() -> Self {
        let (everywhere, namespaces, selectors, targets) = Default::default();
        Attached { everywhere, namespaces, selectors, targets }
    }
}

impl<'a, T: Clone> Attached<'a, T> {
    /// Puts a policy where it holds, and writes its status.
    pub(super) fn enter(&mut self, cx: &mut Context<'a>, written: Written<'a>, policy: &T, broken: Option<&Fault>) {
        let (namespace, name) = index::name(written.metadata);
        let key = ResourceKey::new(written.kind, namespace, name);
        let root = namespace == ROOT_NAMESPACE;
        let mut ancestors = Vec::new();
        for (i, target) in written.targets.iter().enumerate() {
            let path = format!("spec.targetRefs[{i}]");
            let mut fault = wrong_target(cx, namespace, target);
            if let Some(fault) = &fault {
                cx.report.error(&key, Code::TargetNotFound, &path, &fault.message);
            }
            let at = (namespace, target.name.as_str());
            let taken = if target.kind == AccessTargetKind::Namespace {
                put(self.namespaces.entry(namespace).or_default(), policy.clone(), written.alone, |_| true)
            } else {
                let list = self.targets.entry((target.kind, at)).or_default();
                let section = target.section_name.as_deref();
                put(list, (section, policy.clone()), written.alone, |(other, _)| *other == section)
            };
            if taken {
                let message = conflict(written.kind);
                cx.report.warning(&key, Code::PolicyConflict, &path, &message);
                fault = fault.or_else(|| Some(Fault::new("Conflicted", message)));
            }
            ancestors.push(ancestor(cx, written.metadata, target, fault.as_ref().or(broken)));
        }
        // One that is broken may select nobody, and what the policy keeps out must not come in: it holds everywhere here.
        let sound = |selector: &&LabelSelector| validate::label_selector(selector).is_ok();
        if written.targets.is_empty() {
            let taken = if let Some(selector) = written.selector.filter(sound) {
                let own = (!root).then_some(namespace);
                let same = |(other, known, _): &(Option<&str>, &LabelSelector, T)| *other == own && *known == selector;
                put(&mut self.selectors, (own, selector, policy.clone()), written.alone, same)
            } else if root {
                put(&mut self.everywhere, policy.clone(), written.alone, |_| true)
            } else {
                put(self.namespaces.entry(namespace).or_default(), policy.clone(), written.alone, |_| true)
            };
            let fault = taken.then(|| Fault::new("Conflicted", conflict(written.kind)));
            if let Some(fault) = &fault {
                cx.report.warning(&key, Code::PolicyConflict, "spec", &fault.message);
            }
            let whole = AccessTarget {
                group: None,
                kind: AccessTargetKind::Namespace,
                name: namespace.to_owned(),
                section_name: None,
            };
            ancestors.push(ancestor(cx, written.metadata, &whole, fault.as_ref().or(broken)));
        }
        cx.status.set(key, ResourceStatus::Policy(PolicyStatus { ancestors }));
    }

    /// What holds for a workload, the least specific first, by level.
    pub(super) fn of_workload<'s>(&'s self, place: WorkloadPlace<'s>) -> [Vec<&'s T>; 6] {
        let selected = |own: bool| {
            let here = self.selectors.iter().filter(move |(namespace, _, _)| {
                if own { *namespace == Some(place.namespace) } else { namespace.is_none() }
            });
            here.filter(|(_, selector, _)| selector.matches(place.labels)).map(|(_, _, policy)| policy).collect()
        };
        let services = place.services.iter();
        [
            self.everywhere.iter().collect(),
            self.namespaces.get(place.namespace).into_iter().flatten().collect(),
            selected(false),
            selected(true),
            services
                .flat_map(|service| self.of_target(AccessTargetKind::Service, (place.namespace, service), None))
                .collect(),
            self.of_target(AccessTargetKind::Workload, (place.namespace, place.name), None).collect(),
        ]
    }

    /// What holds for a listener of a Gateway, the least specific first, by level.
    pub(super) fn of_listener<'s>(&'s self, gateway: Name<'s>, listener: &'s ListenerName) -> [Vec<&'s T>; 4] {
        // Sections of a ListenerSet are not the Gateway's.
        let section = (listener.kind == "Gateway").then_some(listener.section.as_str());
        [
            self.everywhere.iter().collect(),
            self.namespaces.get(gateway.0).into_iter().flatten().collect(),
            self.of_target(AccessTargetKind::Gateway, gateway, None).collect(),
            section.map_or_else(Vec::new, |section| {
                self.of_target(AccessTargetKind::Gateway, gateway, Some(section)).collect()
            }),
        ]
    }

    /// What holds for the requests that a route takes, besides.
    pub(super) fn of_route<'s>(&'s self, kind: AccessTargetKind, route: Name<'s>) -> impl Iterator<Item = &'s T> {
        self.of_target(kind, route, None)
    }

    /// Whether some policy targets a route.
    pub(super) fn has_routes(&self) -> bool {
        self.targets.keys().any(|(kind, _)| matches!(kind, AccessTargetKind::HttpRoute | AccessTargetKind::GrpcRoute))
    }

    /// Policies of one section of a target, or of the whole of it.
    fn of_target<'s>(
        &'s self,
        kind: AccessTargetKind,
        at: Name<'s>,
        section: Option<&'s str>,
    ) -> impl Iterator<Item = &'s T> {
        let list = self.targets.get(&(kind, at)).into_iter().flatten();
        // What is no section of anything is not looked at: the policy holds for the whole.
        let whole = kind != AccessTargetKind::Gateway;
        list.filter(move |(only, _)| whole || *only == section).map(|(_, policy)| policy)
    }
}

/// Whether the place is taken, when there is room for one only.
fn put<E>(list: &mut Vec<E>, entry: E, alone: bool, same: impl Fn(&E) -> bool) -> bool {
    let taken = alone && list.iter().any(same);
    if !taken {
        list.push(entry);
    }
    taken
}

fn conflict(kind: Kind) -> String {
    format!("an older {} holds for the same target, and this one does not hold there", kind.name())
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
    metadata: &ObjectMeta,
    target: &AccessTarget,
    fault: Option<&Fault>,
) -> PolicyAncestorStatus {
    let namespaced = target.kind != AccessTargetKind::Namespace;
    PolicyAncestorStatus {
        ancestor_ref: ParentReference {
            group: target.group().to_owned(),
            kind: target.kind.name().to_owned(),
            namespace: namespaced.then(|| metadata.namespace.clone()),
            name: target.name.clone(),
            section_name: target.section_name.clone(),
            port: None,
        },
        controller_name: cx.controller(),
        conditions: vec![Conditions(metadata.generation).check("Accepted", fault)],
    }
}
