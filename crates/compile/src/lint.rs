//! What is judged of all resources at once, wherever a proxy may stand: for `selvedge check`.

mod alone;
mod claims;
mod effect;

use crate::{
    Compiled, Context, LocalWorkload, Options, Ports, Position, compile, endpoints, index, index::Index, mesh,
    report::Report, snapshot::Netns, status::Status,
};
use ahash::{AHashMap, AHashSet};
use selvedge_model::{AccessPolicy, Code, Kind, ResourceKey, Resources, access::AccessTargetKind, meta::ObjectMeta};
use std::{net::IpAddr, sync::Arc};

/// Workloads whose proxies are thought of at most: one of each namespace first, then others. What is wrong with a shared
/// resource shows at any of them.
const MAX_POSITIONS: usize = 64;

/// What a gateway makes of the resources, with the findings of the proxies beside workloads and those that nobody has who
/// sees a part only.
pub fn check(resources: &Resources, options: &Options) -> Compiled {
    let mut compiled = compile(resources, options);
    let mut report = Report(std::mem::take(&mut compiled.diagnostics));
    let index = Index::new(resources);
    alone::all(resources, &options.controller_name, &mut report);
    effect::all(resources, &mut report);
    claims::all(&compiled.snapshot, &mut report);
    if index.is_mesh() || !resources.external_services().is_empty() {
        let beside = Options { position: Position::Workloads(positions(resources)), ..options.clone() };
        let beside = compile(resources, &beside);
        report.0.extend(beside.diagnostics);
        claims::all(&beside.snapshot, &mut report);
        let mut cx = Context {
            mesh: mesh::State::new(&index, &mut Report::default(), options),
            index,
            options,
            report: Report::default(),
            status: Status::default(),
            controller: Arc::from(options.controller_name.as_str()),
        };
        mesh::external::read_tls(&mut cx, &mut crate::Compiler::default());
        trust_domains(&mut cx);
        targets(&mut cx);
        cluster_ips(&mut cx);
        report.0.append(&mut cx.report.0);
    }
    compiled.diagnostics = report.finish();
    compiled
}

/// A proxy beside each of some workloads, with all of its listeners.
fn positions(resources: &Resources) -> Vec<LocalWorkload> {
    let mut seen = AHashSet::new();
    let (first, others): (Vec<_>, Vec<_>) =
        resources.workloads().iter().partition(|workload| seen.insert(workload.metadata.namespace.as_str()));
    let chosen = first.into_iter().chain(others).take(MAX_POSITIONS);
    let numbered = (1..).zip(chosen);
    let local = |(number, workload): (u32, &Arc<selvedge_model::Workload>)| LocalWorkload {
        namespace: workload.metadata.namespace.clone(),
        workload: workload.metadata.name.clone(),
        own: None,
        netns: Netns(number),
        ports: Ports { capture: true, ..Ports::default() },
    };
    numbered.map(local).collect()
}

/// Workloads of other meshes that nobody believes.
fn trust_domains(cx: &mut Context<'_>) {
    let spec = cx.mesh.spec;
    for workload in cx.index.workloads().iter() {
        let Some(domain) = &workload.spec.trust_domain else { continue };
        if domain == cx.mesh.members.trust_domain || spec.federation.iter().any(|other| other.trust_domain == *domain) {
            continue;
        }
        let message = format!(
            "trust domain {domain} is neither the Mesh's own nor in its `federation`: nobody believes this Workload, so that \
             connections to and from it fail"
        );
        let key = key(Kind::Workload, &workload.metadata);
        cx.report.error(&key, Code::UntrustedDomain, "spec.trustDomain", &message);
    }
}

/// Workloads that policies name and that are not there. A running proxy does not ask: they come and go.
fn targets(cx: &mut Context<'_>) {
    let policies: Vec<&Arc<AccessPolicy>> = cx.index.access.clone();
    for policy in policies {
        for (i, target) in policy.spec.target_refs.iter().enumerate() {
            let namespace = policy.metadata.namespace.as_str();
            let there = cx.index.workloads().get(namespace, &target.name).is_some();
            if target.kind == AccessTargetKind::Workload && !there {
                let message = format!(
                    "Workload {namespace}/{} is not among these resources; it may register itself",
                    target.name
                );
                let key = key(Kind::AccessPolicy, &policy.metadata);
                cx.report.warning(&key, Code::TargetNotFound, &format!("spec.targetRefs[{i}]"), &message);
            }
        }
    }
}

/// Services that clients cannot tell apart.
fn cluster_ips(cx: &mut Context<'_>) {
    let mut by_age: Vec<_> = cx.index.services().iter().collect();
    by_age.sort_by(|a, b| index::age(&a.metadata).cmp(&index::age(&b.metadata)));
    let mut owners: AHashMap<IpAddr, &ObjectMeta> = AHashMap::new();
    for service in by_age {
        for ip in endpoints::cluster_ips(service) {
            let owner = *owners.entry(ip).or_insert(&service.metadata);
            if std::ptr::eq(owner, &service.metadata) {
                continue;
            }
            let message = format!(
                "{ip} is also the address of Service {}/{}: of ports that both have, connections to it reach only one",
                owner.namespace, owner.name
            );
            cx.report.error(&key(Kind::Service, &service.metadata), Code::DuplicateHost, "spec.clusterIP", &message);
        }
    }
}

fn key(kind: Kind, meta: &ObjectMeta) -> ResourceKey {
    ResourceKey::new(kind, meta.namespace.as_str(), meta.name.as_str())
}
