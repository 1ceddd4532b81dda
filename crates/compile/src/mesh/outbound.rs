//! Puts the snapshot of a proxy beside workloads together.

use super::{
    complain,
    destinations::{self, World},
    dns, external, inbound, places,
    plan::{Shared, Uses},
    settings,
    view::{self, View},
};
use crate::{
    Compiler, Context, INBOUND_PORT, LocalWorkload, OUTBOUND_PORT,
    access::Accesses,
    assemble::{compile_routes, keep, kept_or_built},
    backend_tls::BackendTls,
    backends::{ClusterUse, Origin, Wire},
    l4_routes,
    policy::Policies,
    routes::Surroundings,
    snapshot::{
        Arrive, Bind, Cluster, ClusterId, Destination, Destinations, Find, Listener, Netns, Outbound, Protocol,
        Snapshot, SocketOptions, Speaks, Transport,
    },
    traffic,
};
use selvedge_model::Code;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Everything for these workloads.
pub(crate) fn snapshot<'a>(cx: &mut Context<'a>, compiler: &mut Compiler, locals: &'a [LocalWorkload]) -> Snapshot {
    external::read_tls(cx, compiler);
    let tls = BackendTls::new(cx, &mut compiler.tls);
    let policies = Policies::new(cx);
    let accesses = Accesses::new(cx, &mut compiler.access);
    let places = places::all(cx);
    let (situations, fronts) = places::situations(&places, &policies);
    let parents = places::parents(&places);
    let around = Surroundings {
        tls: &tls,
        policies: &policies,
        fronts: &fronts,
        parents: &parents,
        listeners: &[],
        situations: &situations,
    };
    let routes = compile_routes(cx, around, &mut compiler.memory);
    let ways = vec![Wire::Tcp; places.len()];
    let streams = l4_routes::all(cx, &tls, &policies, &parents, &[], &ways, &situations);
    let views = view::all(cx, locals);
    let world = World::new(cx, &places, &routes.all, &streams);
    let mut uses = Uses::default();
    let planned: Vec<_> = views
        .iter()
        .map(|view| {
            let out = destinations::plan(cx, &world, &policies, view, &mut uses);
            (out, inbound::plan(cx, &world, &accesses, view, &mut uses))
        })
        .collect();
    let (clusters, numbers) = clusters(cx, compiler, (&tls, &policies), &views, &uses.list);
    let mut sockets = Sockets::default();
    for (view, (out, incoming)) in views.iter().zip(&planned) {
        let shared = shared(cx, &policies, view, "outbound");
        let destinations = Arc::new(finish(out, &shared, &numbers));
        sockets.outbound(cx, view, &shared, &destinations);
        let shared = self::shared(cx, &policies, view, "inbound");
        sockets.inbound(cx, view, |arrive| incoming.finish(view, &shared, &numbers, arrive));
    }
    let dns = dns::all(cx, &world, locals);
    drop((world, planned));
    keep(&mut compiler.memory, cx, routes.all);
    Snapshot {
        listeners: sockets.0.into_values().map(Arc::new).collect(),
        clusters,
        telemetry: cx.options.telemetry.clone(),
        dns,
        federation: BTreeMap::new(),
    }
}

/// Access logs and traces are as the proxy's own, or as the policies of the workload's namespace say.
fn shared(cx: &Context<'_>, policies: &Policies<'_>, view: &View<'_>, section: &str) -> Shared {
    let name = view.name(section);
    let own = &cx.options.telemetry;
    let asked = policies.of_namespace(&view.local.namespace).and_then(|settings| settings.telemetry.as_ref());
    let access_log = asked.and_then(traffic::access_log).unwrap_or_else(|| own.access_log.clone());
    Shared {
        options: Arc::new(settings::http_options()),
        streams: Arc::new(settings::streams(&name, access_log.clone())),
        name,
        access_log,
        tracing: asked.and_then(|t| traffic::tracing(t, own.tracing.as_ref())).or_else(|| own.tracing.clone()),
    }
}

/// All clusters by key, and for each use its number.
fn clusters(
    cx: &mut Context<'_>,
    compiler: &mut Compiler,
    around: (&BackendTls<'_>, &Policies<'_>),
    views: &[View<'_>],
    uses: &[Arc<ClusterUse>],
) -> (Vec<Arc<Cluster>>, Vec<ClusterId>) {
    let memory = &mut compiler.memory;
    let mut built: Vec<(usize, Arc<Cluster>)> = Vec::with_capacity(uses.len());
    for (i, wanted) in uses.iter().enumerate() {
        let cluster = match wanted.origin {
            Origin::Inbound => {
                let own = |v: &&View<'_>| v.local.namespace == wanted.namespace && v.local.workload == wanted.name;
                let Some(view) = views.iter().find(own) else { continue };
                Arc::new(inbound::cluster(view, wanted))
            }
            _ => kept_or_built(cx, memory, around, &[], wanted),
        };
        built.push((i, cluster));
    }
    let reached: ahash::AHashSet<&ClusterUse> = uses.iter().map(Arc::as_ref).collect();
    memory.retain_clusters(|wanted| reached.contains(wanted), uses.len());
    built.sort_unstable_by(|a, b| a.1.key.cmp(&b.1.key));
    let mut numbers = vec![ClusterId(u32::MAX); uses.len()];
    for (position, (i, _)) in built.iter().enumerate() {
        numbers[*i] = ClusterId(u32::try_from(position).unwrap_or(u32::MAX));
    }
    (built.into_iter().map(|(_, cluster)| cluster).collect(), numbers)
}

fn finish(planned: &destinations::Planned<'_>, shared: &Shared, numbers: &[ClusterId]) -> Destinations {
    let made: Vec<Arc<Destination>> =
        planned.plans.iter().map(|plan| Arc::new(shared.destination(plan, numbers))).collect();
    Destinations {
        addresses: planned.addresses.iter().map(|(place, &at)| (*place, Arc::clone(&made[at]))).collect(),
        names: planned.names.iter().map(|(place, &at)| (place.clone(), Arc::clone(&made[at]))).collect(),
    }
}

/// One listener for each socket; of two that want the same one, the first has it.
#[derive(Default)]
struct Sockets(BTreeMap<Bind, Listener>);

impl Sockets {
    fn add(&mut self, cx: &mut Context<'_>, view: &View<'_>, bind: Bind, protocol: Protocol) {
        match self.0.entry(bind) {
            Entry::Vacant(place) => {
                place.insert(Listener { bind, options: SocketOptions::default(), protocol });
            }
            Entry::Occupied(_) => {
                let message = format!("{bind} is taken by another listener of this proxy: it is left out here");
                let (namespace, name) = (&view.local.namespace, &view.local.workload);
                complain(&mut cx.report, namespace, name, Code::ListenerConflict, &message);
            }
        }
    }

    fn outbound(&mut self, cx: &mut Context<'_>, view: &View<'_>, shared: &Shared, all: &Arc<Destinations>) {
        let ports = &view.local.ports;
        let mut wanted: Vec<(Bind, Find)> = Vec::new();
        if ports.capture {
            wanted.push((everywhere(OUTBOUND_PORT, view.local.netns), Find::OriginalDestination));
        }
        wanted.extend(ports.http_proxy.map(|address| (bind(address, view.local.netns), Find::HttpProxy)));
        for fixed in &ports.fixed {
            let to = find(all, &fixed.host, fixed.port).unwrap_or_else(|| {
                let (namespace, name) = (&view.local.namespace, &view.local.workload);
                let message = format!(
                    "nothing is known of {}:{}, to which {} leads: connections there are closed",
                    fixed.host, fixed.port, fixed.listen
                );
                complain(&mut cx.report, namespace, name, Code::BackendNotFound, &message);
                Arc::new(nowhere(&fixed.host, fixed.port, shared))
            });
            wanted.push((bind(fixed.listen, view.local.netns), Find::Fixed(to)));
        }
        for (bind, find) in wanted {
            let outbound = Outbound {
                name: shared.name.clone(),
                identity: view.identity.clone(),
                find,
                destinations: Arc::clone(all),
                unknown: settings::unknown(cx.mesh.spec),
                http: Arc::clone(&shared.options),
                streams: Arc::clone(&shared.streams),
            };
            self.add(cx, view, bind, Protocol::Outbound(Arc::new(outbound)));
        }
    }

    fn inbound(&mut self, cx: &mut Context<'_>, view: &View<'_>, make: impl Fn(Arrive) -> crate::snapshot::Inbound) {
        let ports = &view.local.ports;
        let captured = ports.capture.then(|| (everywhere(INBOUND_PORT, view.local.netns), Arrive::OriginalDestination));
        let hbone = ports.hbone.map(|address| (bind(address, view.local.netns), Arrive::Hbone));
        for (bind, arrive) in captured.into_iter().chain(hbone) {
            self.add(cx, view, bind, Protocol::Inbound(Arc::new(make(arrive))));
        }
    }
}

fn everywhere(port: u16, netns: Netns) -> Bind {
    Bind { address: None, port, transport: Transport::Tcp, netns }
}

fn bind(address: SocketAddr, netns: Netns) -> Bind {
    let ip = Some(address.ip()).filter(|ip| !ip.is_unspecified());
    Bind { address: ip, port: address.port(), transport: Transport::Tcp, netns }
}

/// As the workload would find it.
fn find(all: &Destinations, host: &str, port: u16) -> Option<Arc<Destination>> {
    let host = crate::hosts::normal(host);
    if let Ok(ip) = host.parse::<IpAddr>() {
        return all.addresses.get(&(ip, port)).cloned();
    }
    all.find_name(&host, port).cloned()
}

fn nowhere(host: &str, port: u16, shared: &Shared) -> Destination {
    let name = destinations::rule_name("Workload", &shared.name.namespace, &shared.name.name);
    Destination {
        name: format!("{host}:{port}"),
        speaks: Speaks::Tcp,
        http: None,
        tcp: Some(Arc::new(crate::snapshot::L4Route { name, split: None })),
        streams: Arc::clone(&shared.streams),
    }
}
