//! TLSRoute, TCPRoute and UDPRoute.

use crate::{
    Context,
    attach::{Attachment, Parents, RouteHead},
    backend_tls::BackendTls,
    backends::{Reference, Wire},
    listeners::{ListenerState, Speaks},
    policy::Policies,
    rules::{self, RuleBuilder, RuleFaults, Situation},
    snapshot::{Action, L4Route},
    status::{ResourceStatus, RouteStatus},
};
use selvedge_model::{Code, Kind, ObjectMeta, gateway::DefaultScope, refs::ParentReference, stream::StreamRule};
use std::collections::BTreeSet;

/// A compiled stream route on one listener, with positions in `uses` for clusters.
pub(crate) struct L4Outcome {
    pub(crate) attachment: Attachment,
    pub(crate) route: L4Route,
    pub(crate) uses: Vec<crate::backends::ClusterUse>,
    pub(crate) policed: Vec<(String, String)>,
}

struct StreamRoute<'a> {
    kind: Kind,
    meta: &'a ObjectMeta,
    parent_refs: &'a [ParentReference],
    default_gateways: Option<DefaultScope>,
    hostnames: Option<&'a [String]>,
    rules: &'a [StreamRule],
}

/// How a listener uses its stream routes.
pub(crate) fn way(listener: &ListenerState<'_>) -> Wire {
    match listener.speaks {
        Speaks::TlsPassthrough => Wire::Passthrough,
        Speaks::Udp => Wire::Udp,
        _ => Wire::Tcp,
    }
}

/// Compiles all stream routes, the oldest of each kind first, and writes their status. `ways` and `situations` are those of
/// each place that routes attach to.
pub(crate) fn all<'a>(
    cx: &mut Context<'a>,
    tls: &BackendTls<'a>,
    policies: &Policies<'a>,
    parents: &Parents<'_>,
    listeners: &[ListenerState<'_>],
    ways: &[Wire],
    situations: &[Situation],
) -> Vec<L4Outcome> {
    let mut routes: Vec<StreamRoute<'_>> = Vec::new();
    routes.extend(cx.index.tls_routes.iter().map(|r| StreamRoute {
        kind: Kind::TlsRoute,
        meta: &r.metadata,
        parent_refs: &r.spec.parent_refs,
        default_gateways: r.spec.use_default_gateways,
        hostnames: Some(&r.spec.hostnames),
        rules: &r.spec.rules,
    }));
    routes.extend(cx.index.tcp_routes.iter().map(|r| StreamRoute {
        kind: Kind::TcpRoute,
        meta: &r.metadata,
        parent_refs: &r.spec.parent_refs,
        default_gateways: r.spec.use_default_gateways,
        hostnames: None,
        rules: &r.spec.rules,
    }));
    routes.extend(cx.index.udp_routes.iter().map(|r| StreamRoute {
        kind: Kind::UdpRoute,
        meta: &r.metadata,
        parent_refs: &r.spec.parent_refs,
        default_gateways: r.spec.use_default_gateways,
        hostnames: None,
        rules: &r.spec.rules,
    }));
    let mut outcomes = Vec::new();
    for route in routes {
        one(cx, tls, policies, parents, listeners, (ways, situations), &route, &mut outcomes);
    }
    outcomes
}

fn one<'a>(
    cx: &mut Context<'a>,
    tls: &BackendTls<'a>,
    policies: &Policies<'a>,
    parents: &Parents<'_>,
    listeners: &[ListenerState<'_>],
    (ways, situations): (&[Wire], &[Situation]),
    route: &StreamRoute<'_>,
    outcomes: &mut Vec<L4Outcome>,
) {
    let head = RouteHead {
        kind: route.kind,
        meta: route.meta,
        parent_refs: route.parent_refs,
        default_gateways: route.default_gateways,
        hostnames: route.hostnames,
    };
    let mut attached = parents.attach(cx, listeners, head);
    let merged = rules::merged(&mut attached);
    // Compiled once for each way in which its listeners use it; without listeners once, for the status.
    let mut needed: BTreeSet<(Wire, Situation)> =
        merged.iter().map(|a| (ways[a.listener], situations[a.listener].clone())).collect();
    if needed.is_empty() {
        needed.insert((if route.kind == Kind::UdpRoute { Wire::Udp } else { Wire::Tcp }, Situation::default()));
    }
    let mut refs = None;
    for (wire, situation) in needed {
        let mut builder = RuleBuilder {
            cx,
            tls,
            policies,
            front: None,
            head,
            wire,
            situation: situation.clone(),
            uses: Vec::new(),
            policed: Vec::new(),
            refs: None,
        };
        let compiled = stream(&mut builder, route.rules);
        let (uses, policed) = (builder.uses, builder.policed);
        refs = refs.or(builder.refs);
        for attachment in &merged {
            if ways[attachment.listener] == wire && situations[attachment.listener] == situation {
                outcomes.push(L4Outcome {
                    attachment: attachment.clone(),
                    route: compiled.clone(),
                    uses: uses.clone(),
                    policed: policed.clone(),
                });
            }
        }
    }
    let faults = RuleFaults { dropped: Vec::new(), closed: Vec::new(), rules: route.rules.len() };
    let status: RouteStatus = rules::status(&cx.controller(), route.meta, attached, refs.as_ref(), &faults);
    if !status.parents.is_empty() {
        cx.status.set(head.key(), ResourceStatus::Route(status));
    }
}

/// The first rule is used; the others are checked all the same, so that their mistakes show.
fn stream(builder: &mut RuleBuilder<'_, '_, '_>, rules: &[StreamRule]) -> L4Route {
    let mut first = None;
    for (i, rule) in rules.iter().enumerate() {
        let backends = rule.backend_refs.iter().enumerate().map(|(j, backend)| {
            builder.backend(Reference::from(backend), backend.weight, &format!("spec.rules[{i}].backendRefs[{j}]"))
        });
        let backends = backends.collect();
        let split = match builder.action(backends) {
            Action::Forward(split) => Some(split),
            Action::Fixed { reason, .. } => {
                let message = format!("{reason}: connections are refused");
                builder.warning(Code::NothingAnswers, &format!("spec.rules[{i}].backendRefs"), &message);
                None
            }
        };
        if first.is_none() {
            first = Some(L4Route { name: builder.name(i, rule.name.as_ref()), split });
        } else {
            let message = "only the first rule of a TCPRoute, TLSRoute or UDPRoute is used";
            builder.warning(Code::NoEffect, &format!("spec.rules[{i}]"), message);
        }
    }
    first.unwrap_or_else(|| L4Route { name: builder.name(0, None), split: None })
}
