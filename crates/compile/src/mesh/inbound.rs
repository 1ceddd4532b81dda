//! What comes to a local workload.

use super::{
    Declared,
    destinations::{World, default_rules, rule_name},
    members,
    plan::{Shared, StreamPlan, Uses, all_to, l4},
    settings::mtls,
    view::View,
};
use crate::{
    Context,
    access::{Accesses, WorkloadPlace},
    backends::{ClusterUse, Origin, Wire},
    snapshot::{
        Access, Action, Arrive, Cluster, ClusterId, Connections, Discovery, Endpoint, Inbound, InboundPort, L4Route,
        LoadBalancing, MtlsMode, Speaks, UpstreamProtocol,
    },
};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// What comes to one workload, to be.
pub(super) struct Planned {
    addresses: Vec<IpAddr>,
    ports: Vec<PlannedPort>,
    /// For ports that nobody has declared.
    mtls: MtlsMode,
    access: Arc<Access>,
}

struct PlannedPort {
    port: u16,
    declared: Declared,
    mtls: MtlsMode,
    /// Of requests (one, or one more for gRPC) and of bytes.
    http: Vec<u32>,
    tcp: Option<u32>,
}

/// Ports that the workload declares, and those that Services say it has.
pub(super) fn plan(
    cx: &Context<'_>,
    world: &World<'_, '_>,
    accesses: &Accesses<'_>,
    view: &View<'_>,
    uses: &mut Uses,
) -> Planned {
    let spec = &view.workload.spec;
    let of_mesh = mtls(cx.mesh.spec.mtls.as_ref(), MtlsMode::default());
    let of_workload = mtls(spec.mtls.as_ref(), of_mesh);
    let addresses = members::addresses(view.workload);
    let mut declared: BTreeMap<u16, (Declared, MtlsMode)> = BTreeMap::new();
    for (address, (_, said)) in world.ports.iter().filter(|(address, _)| addresses.contains(&address.ip())) {
        let known = declared.entry(address.port()).or_insert((Declared::Nothing, of_workload));
        if known.0 == Declared::Nothing {
            known.0 = *said;
        }
    }
    for port in &spec.ports {
        let own = Declared::of(port.app_protocol.as_deref(), port.name.as_deref());
        let known = declared.entry(port.port).or_insert((own, of_workload));
        if own != Declared::Nothing {
            known.0 = own;
        }
        known.1 = mtls(port.mtls.as_ref(), of_workload);
    }
    let ports = declared.into_iter().map(|(port, (declared, mtls))| {
        let mut id = |wire| uses.id(own_port(view, port, wire));
        let http = match declared {
            Declared::Http => vec![id(Wire::Http)],
            Declared::Http2 => vec![id(Wire::Grpc)],
            Declared::Nothing => vec![id(Wire::Http), id(Wire::Grpc)],
            Declared::Tls | Declared::Tcp => Vec::new(),
        };
        let tcp = (declared.speaks() != Speaks::Http).then(|| id(Wire::Tcp));
        PlannedPort { port, declared, mtls, http, tcp }
    });
    Planned { addresses, ports: ports.collect(), mtls: of_workload, access: access(world, accesses, view) }
}

/// Who may come: policies for the workload, and for the Services that it is behind.
fn access(world: &World<'_, '_>, accesses: &Accesses<'_>, view: &View<'_>) -> Arc<Access> {
    let meta = &view.workload.metadata;
    let namespace = view.local.namespace.as_str();
    let mut services: Vec<&str> = Vec::new();
    for place in world.places.iter().filter(|place| place.namespace() == namespace) {
        if services.last() != Some(&place.name()) && members::picks(place.service, view.workload) {
            services.push(place.name());
        }
    }
    accesses.for_workload(WorkloadPlace {
        namespace,
        name: &view.local.workload,
        labels: &meta.labels,
        services: &services,
    })
}

/// A port of the workload itself, as its own proxy calls it.
fn own_port(view: &View<'_>, port: u16, wire: Wire) -> ClusterUse {
    ClusterUse {
        origin: Origin::Inbound,
        namespace: view.local.namespace.clone(),
        name: view.local.workload.clone(),
        port,
        wire,
        gateway: None,
        // In clear text: it is the last step.
        caller: Some(Arc::new(crate::backends::Caller { identity: None, netns: view.local.netns })),
    }
}

/// Limits are those of the application, and the caller's.
pub(super) fn cluster(view: &View<'_>, wanted: &ClusterUse) -> Cluster {
    let ip = members::addresses(view.workload).first().copied();
    let endpoint = ip.map(|ip| Endpoint::new(SocketAddr::new(ip, wanted.port)));
    Cluster {
        key: wanted.to_string(),
        discovery: Discovery::Static(endpoint.into_iter().collect()),
        protocol: match wanted.wire {
            Wire::Http => UpstreamProtocol::Http1,
            Wire::Grpc => UpstreamProtocol::Http2,
            Wire::Tcp | Wire::Passthrough | Wire::Udp => UpstreamProtocol::Raw,
        },
        tls: None,
        identity: None,
        netns: view.local.netns,
        load_balancing: LoadBalancing::default(),
        connections: Connections {
            max_connections: UNLIMITED,
            max_pending: UNLIMITED,
            max_requests: UNLIMITED,
            ..Connections::default()
        },
        health_checks: Vec::new(),
        outlier_detection: None,
    }
}

/// More than one process can have.
const UNLIMITED: u32 = 1 << 20;

impl Planned {
    pub(super) fn finish(&self, view: &View<'_>, shared: &Shared, numbers: &[ClusterId], arrive: Arrive) -> Inbound {
        let ports = self.ports.iter().map(|port| (port.port, Arc::new(port.finish(view, shared, numbers))));
        let other = InboundPort {
            speaks: Speaks::Undeclared,
            mtls: self.mtls,
            http: None,
            tcp: None,
            streams: Arc::clone(&shared.streams),
        };
        Inbound {
            name: shared.name.clone(),
            identity: view.identity.clone(),
            arrive,
            addresses: self.addresses.clone(),
            ports: ports.collect(),
            other: Arc::new(other),
            access: Arc::clone(&self.access),
        }
    }
}

impl PlannedPort {
    fn finish(&self, view: &View<'_>, shared: &Shared, numbers: &[ClusterId]) -> InboundPort {
        let name = rule_name("Workload", &view.local.namespace, &view.local.workload);
        let http = (!self.http.is_empty()).then(|| {
            let mut set = default_rules(&name, self.declared, None, self.http.clone());
            set.rules.to_mut().iter_mut().for_each(quiet);
            shared.http(&[set], numbers)
        });
        let tcp = self.tcp.map(|id| {
            let route = L4Route { name, split: Some(all_to(0)) };
            Arc::new(l4(&StreamPlan { route: Cow::Owned(route), ids: vec![id] }, numbers))
        });
        InboundPort { speaks: self.declared.speaks(), mtls: self.mtls, http, tcp, streams: Arc::clone(&shared.streams) }
    }
}

/// The caller's proxy retries and has timeouts; here only a connection that could not be made is tried again.
fn quiet(rule: &mut crate::snapshot::Rule) {
    if !matches!(rule.action, Action::Forward(_)) {
        return;
    }
    rule.timeouts.request = Some(Duration::ZERO);
    rule.timeouts.backend_request = Some(Duration::ZERO);
    if let Some(retry) = &mut rule.retry {
        retry.on = crate::snapshot::RetryOn { connect_failure: true, ..Default::default() };
    }
}
