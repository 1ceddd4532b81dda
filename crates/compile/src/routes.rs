//! Compiles HTTPRoutes and GRPCRoutes: attachment, rules in each situation, status.

use crate::{
    Context,
    attach::{Parents, RouteHead},
    backend_tls::BackendTls,
    backends::Wire,
    grpc_route, http_route,
    listeners::ListenerState,
    policy::{Front, Policies},
    router::Entry,
    rules::{self, Dropped, RouteOutcome, RuleBuilder, RuleFaults, Situation},
    snapshot::Rule,
};
use selvedge_model::{Code, GrpcRoute, HttpRoute, Kind};

/// What a route is compiled against.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'s, 'a> {
    pub(crate) tls: &'s BackendTls<'a>,
    pub(crate) policies: &'s Policies<'a>,
    pub(crate) fronts: &'s [Front],
    pub(crate) parents: &'s Parents<'a>,
    pub(crate) listeners: &'s [ListenerState<'a>],
    /// For each listener.
    pub(crate) situations: &'s [Situation],
}

pub(crate) fn http<'a>(cx: &mut Context<'a>, around: Surroundings<'_, 'a>, route: &HttpRoute) -> RouteOutcome {
    let head = RouteHead {
        kind: Kind::HttpRoute,
        meta: &route.metadata,
        parent_refs: &route.spec.parent_refs,
        default_gateways: route.spec.use_default_gateways,
        hostnames: Some(&route.spec.hostnames),
    };
    let all = route.spec.rules.as_slice();
    let entries = |i: usize| http_route::entries(&route.metadata, i, &all[i]);
    compile(cx, around, head, Wire::Http, all.len(), entries, |builder, i| http_route::rule(builder, i, &all[i]))
}

pub(crate) fn grpc<'a>(cx: &mut Context<'a>, around: Surroundings<'_, 'a>, route: &GrpcRoute) -> RouteOutcome {
    let head = RouteHead {
        kind: Kind::GrpcRoute,
        meta: &route.metadata,
        parent_refs: &route.spec.parent_refs,
        default_gateways: route.spec.use_default_gateways,
        hostnames: Some(&route.spec.hostnames),
    };
    let all = route.spec.rules.as_slice();
    let entries = |i: usize| grpc_route::entries(&route.metadata, i, &all[i]);
    compile(cx, around, head, Wire::Grpc, all.len(), entries, |builder, i| grpc_route::rule(builder, i, &all[i]))
}

fn compile<'a>(
    cx: &mut Context<'a>,
    around: Surroundings<'_, 'a>,
    head: RouteHead<'_>,
    wire: Wire,
    count: usize,
    entries_of: impl Fn(usize) -> Result<Vec<Entry>, Dropped>,
    rule_of: impl Fn(&mut RuleBuilder<'_, 'a, '_>, usize) -> Result<(Rule, Option<String>), Dropped>,
) -> RouteOutcome {
    let mut attached = around.parents.attach(cx, around.listeners, head);
    let merged = rules::merged(&mut attached);
    let mut faults = RuleFaults { dropped: Vec::new(), closed: Vec::new(), rules: count };
    let matches: Vec<Result<Vec<Entry>, Dropped>> = (0..count).map(entries_of).collect();
    let mut situations: Vec<Situation> = merged.iter().map(|a| around.situations[a.listener].clone()).collect();
    situations.sort_unstable();
    situations.dedup();
    if situations.is_empty() {
        // Attached nowhere: compiled once all the same, so that its mistakes show.
        situations.push(Situation::default());
    }
    let mut outcome = RouteOutcome {
        attachments: Vec::with_capacity(merged.len()),
        variants: Vec::with_capacity(situations.len()),
        entries: Vec::new(),
        uses: Vec::new(),
        status: crate::RouteStatus { parents: Vec::new() },
        policed: Vec::new(),
    };
    let mut refs = None;
    for (v, situation) in situations.iter().enumerate() {
        let (uses, policed) = (std::mem::take(&mut outcome.uses), std::mem::take(&mut outcome.policed));
        let mut builder = RuleBuilder {
            cx: &mut *cx,
            tls: around.tls,
            policies: around.policies,
            front: situation.front.and_then(|f| around.fronts.get(f)),
            head,
            wire,
            situation: situation.clone(),
            uses,
            policed,
            refs,
        };
        let mut variant = Vec::with_capacity(count);
        for (i, found) in matches.iter().enumerate() {
            let made = match found {
                Ok(entries) => rule_of(&mut builder, i).map(|made| (entries, made)),
                Err(dropped) => Err(Dropped { reason: dropped.reason, message: dropped.message.clone() }),
            };
            match made {
                Ok((entries, (rule, closed))) => {
                    if closed.is_none()
                        && let Some(why) = rules::unanswered(&rule)
                    {
                        builder.warning(Code::NothingAnswers, &format!("spec.rules[{i}].backendRefs"), &why);
                    }
                    let position = u32::try_from(variant.len()).unwrap_or(u32::MAX);
                    variant.push(rule);
                    if v == 0 {
                        outcome.entries.extend(entries.iter().cloned().map(|e| Entry { rule: position, ..e }));
                        faults.closed.extend(closed.map(|why| (i, why)));
                    }
                }
                // A rule is dropped for what it says, which is the same in every situation.
                Err(dropped) if v == 0 => {
                    let path = format!("spec.rules[{i}]");
                    builder.error(Code::DroppedRule, &path, &format!("the rule is left out: {}", dropped.message));
                    faults.dropped.push((i, dropped));
                }
                Err(_) => {}
            }
        }
        (outcome.uses, outcome.policed, refs) = (builder.uses, builder.policed, builder.refs);
        outcome.variants.push(variant);
    }
    for attachment in merged {
        let variant = situations.iter().position(|s| *s == around.situations[attachment.listener]).unwrap_or(0);
        outcome.attachments.push((attachment, variant));
    }
    outcome.status = rules::status(&cx.controller(), head.meta, attached, refs.as_ref(), &faults);
    outcome
}
