//! All that a local workload can reach: Services, single workloads and what is outside of the mesh.

use super::{
    Declared, external, members,
    places::Place,
    plan::{Plan, RuleSet, StreamPlan, Uses, all_to, forward},
    view::View,
    virtual_addresses::VirtualAddresses,
};
use crate::{
    Context,
    backends::{self, ClusterUse, Origin, Wire},
    endpoints,
    l4_routes::L4Outcome,
    memory::CompiledRoute,
    policy::Policies,
    router::{Age, Entry, HeaderMatch, Pattern, ValueMatch},
    rules,
    snapshot::{L4Route, RuleName, Speaks},
};
use selvedge_model::{core::ServiceType, traffic::TrafficSettings};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

/// A compiled route on one place: route, and which of its variants.
pub(super) type Attached<'r> = (&'r CompiledRoute, usize);

/// What all views share.
pub(super) struct World<'w, 'a> {
    pub(super) places: &'w [Place<'a>],
    /// For each place.
    pub(super) routes: Vec<Vec<Attached<'w>>>,
    /// For each place: TLSRoutes before TCPRoutes, the oldest first.
    pub(super) streams: Vec<Vec<&'w L4Outcome>>,
    /// For each place: where clients connect to.
    pub(super) addresses: Vec<Vec<IpAddr>>,
    /// Ports of all Workloads and endpoints that something is known of, with the namespace they are in.
    pub(super) ports: BTreeMap<SocketAddr, (&'a str, Declared)>,
    pub(super) externals: Vec<external::Host<'a>>,
}

impl<'w, 'a> World<'w, 'a> {
    pub(super) fn new(
        cx: &mut Context<'a>,
        places: &'w [Place<'a>],
        routes: &'w [Box<CompiledRoute>],
        streams: &'w [L4Outcome],
    ) -> Self {
        let mut on: Vec<Vec<Attached<'w>>> = places.iter().map(|_| Vec::new()).collect();
        for route in routes {
            for (attachment, variant) in &route.outcome.attachments {
                on[attachment.listener].push((route, *variant));
            }
        }
        let mut streams_on: Vec<Vec<&'w L4Outcome>> = places.iter().map(|_| Vec::new()).collect();
        for stream in streams {
            streams_on[stream.attachment.listener].push(stream);
        }
        let mut virtual_addresses = VirtualAddresses::default();
        let addresses = places.iter().map(|place| service_addresses(place, &mut virtual_addresses)).collect();
        World {
            places,
            routes: on,
            streams: streams_on,
            addresses,
            ports: endpoint_ports(cx, places),
            externals: external::hosts(cx, &mut virtual_addresses),
        }
    }
}

/// Where clients connect to: cluster IPs, or an address that exists only in the mesh. A headless Service is reached at its
/// endpoints.
fn service_addresses(place: &Place<'_>, virtual_addresses: &mut VirtualAddresses) -> Vec<IpAddr> {
    if is_headless(place) {
        return Vec::new();
    }
    let ips = endpoints::cluster_ips(place.service);
    if !ips.is_empty() {
        return ips;
    }
    vec![virtual_addresses.assign(&format!("{}/{}", place.namespace(), place.name())).into()]
}

pub(super) fn is_headless(place: &Place<'_>) -> bool {
    let spec = &place.service.spec;
    spec.service_type != ServiceType::ExternalName && spec.cluster_ip.as_deref() == Some("None")
}

/// What Services say of the ports of their endpoints, and in which namespace those are.
fn endpoint_ports<'a>(cx: &Context<'a>, places: &[Place<'a>]) -> BTreeMap<SocketAddr, (&'a str, Declared)> {
    let mut ports: BTreeMap<SocketAddr, (&'a str, Declared)> = BTreeMap::new();
    let mut add = |address: SocketAddr, place: &Place<'a>| {
        let owner = cx.mesh.members.at(address.ip()).map_or(place.namespace(), |w| w.metadata.namespace.as_str());
        let known = ports.entry(address).or_insert((owner, Declared::Nothing));
        if known.1 == Declared::Nothing {
            known.1 = place.declared;
        }
    };
    for place in places {
        for workload in cx.mesh.members.of_service(place.service) {
            let Some(port) = members::target(workload, place.port) else { continue };
            members::addresses(workload).into_iter().for_each(|ip| add(SocketAddr::new(ip, port), place));
        }
        for slice in cx.index.slices(place.namespace(), place.name()).unwrap_or_default() {
            let Some(port) = endpoints::port_number(slice, place.service, place.port) else { continue };
            for text in slice.endpoints.iter().filter_map(|e| e.addresses.first()) {
                if let Ok(ip) = text.parse() {
                    add(SocketAddr::new(ip, port), place);
                }
            }
        }
    }
    for workload in cx.mesh.members.all() {
        for ip in members::addresses(workload) {
            for port in &workload.spec.ports {
                let own = Declared::of(port.app_protocol.as_deref(), port.name.as_deref());
                let at = SocketAddr::new(ip, port.port);
                let known = ports.entry(at).or_insert((&workload.metadata.namespace, Declared::Nothing));
                if own != Declared::Nothing {
                    known.1 = own;
                }
            }
        }
    }
    ports
}

/// The destinations of one workload to be.
#[derive(Default)]
pub(super) struct Planned<'r> {
    pub(super) plans: Vec<Plan<'r>>,
    /// Positions in `plans`.
    pub(super) addresses: BTreeMap<(IpAddr, u16), usize>,
    pub(super) names: BTreeMap<(String, u16), usize>,
}

impl<'r> Planned<'r> {
    fn add(&mut self, plan: Plan<'r>) -> usize {
        self.plans.push(plan);
        self.plans.len() - 1
    }
}

/// Plans what one workload can reach.
pub(super) fn plan<'w, 'c>(
    cx: &Context<'c>,
    world: &World<'w, '_>,
    policies: &Policies<'c>,
    view: &View<'_>,
    uses: &mut Uses,
) -> Planned<'w> {
    let mut planner = Planner { cx, policies, view, uses, planned: Planned::default() };
    for (i, place) in world.places.iter().enumerate() {
        planner.service(world, i, place);
    }
    for (address, (namespace, declared)) in &world.ports {
        if !planner.planned.addresses.contains_key(&(address.ip(), address.port())) {
            planner.single(namespace, *address, *declared);
        }
    }
    for place in world.places {
        planner.hostnames(place);
    }
    for host in &world.externals {
        planner.external(host);
    }
    planner.planned
}

struct Planner<'p, 'c, 'w> {
    cx: &'p Context<'c>,
    policies: &'p Policies<'c>,
    view: &'p View<'p>,
    uses: &'p mut Uses,
    planned: Planned<'w>,
}

impl<'w> Planner<'_, '_, 'w> {
    fn service(&mut self, world: &World<'w, '_>, i: usize, place: &Place<'_>) {
        let port = place.port.port;
        let http = self.routes_of(world, i, place);
        let tcp = self.streams_of(world, i, place);
        // Who attaches only a route of bytes to a port of which nothing is known means that it carries bytes.
        let speaks = match place.declared.speaks() {
            Speaks::Undeclared if http.is_empty() && tcp.is_some() => Speaks::Tcp,
            speaks => speaks,
        };
        let (http, tcp) = match speaks {
            Speaks::Tcp => (Vec::new(), Some(tcp.unwrap_or_else(|| self.own_stream(place)))),
            Speaks::Http => (if http.is_empty() { vec![self.own_rules(place)] } else { http }, None),
            Speaks::Undeclared => (
                if http.is_empty() { vec![self.own_rules(place)] } else { http },
                Some(tcp.unwrap_or_else(|| self.own_stream(place))),
            ),
        };
        let name = format!("{}/{}:{port}", place.namespace(), place.name());
        let at = self.planned.add(Plan { name, speaks, http, tcp });
        for ip in &world.addresses[i] {
            self.planned.addresses.entry((*ip, port)).or_insert(at);
        }
        for name in self.names(place.namespace(), place.name()) {
            self.planned.names.entry((name, port)).or_insert(at);
        }
    }

    /// The forms in which this workload may name a Service.
    fn names(&self, namespace: &str, name: &str) -> Vec<String> {
        let mut names = vec![
            format!("{name}.{namespace}.svc.{}", self.cx.mesh.spec.cluster_domain()),
            format!("{name}.{namespace}.svc"),
            format!("{name}.{namespace}"),
        ];
        if namespace == self.view.local.namespace {
            names.push(name.to_owned());
        }
        names
    }

    /// Rules of the routes that hold for this client: a consumer's own, else the producer's.
    fn routes_of(&mut self, world: &World<'w, '_>, i: usize, place: &Place<'_>) -> Vec<RuleSet<'w>> {
        let all = &world.routes[i];
        let namespaces = all.iter().map(|(route, _)| route.key.namespace.as_str());
        let from = in_effect(namespaces, place.namespace(), &self.view.local.namespace);
        let mut sets = Vec::new();
        for &(route, variant) in all.iter().filter(|(route, _)| Some(route.key.namespace.as_str()) == from) {
            let Some(rules) = route.outcome.variants.get(variant) else { continue };
            let ids = self.uses.ids(&route.outcome.uses, &self.view.caller);
            sets.push(RuleSet { rules: Cow::Borrowed(rules), entries: Cow::Borrowed(&route.outcome.entries), ids });
        }
        sets
    }

    fn streams_of(&mut self, world: &World<'w, '_>, i: usize, place: &Place<'_>) -> Option<StreamPlan<'w>> {
        let all = &world.streams[i];
        let namespaces = all.iter().map(|stream| stream.route.name.namespace.as_str());
        let from = in_effect(namespaces, place.namespace(), &self.view.local.namespace)?;
        let stream = all.iter().find(|s| s.route.name.namespace == from)?;
        let ids = self.uses.ids(&stream.uses, &self.view.caller);
        Some(StreamPlan { route: Cow::Borrowed(&stream.route), ids })
    }

    fn use_of(&self, place: &Place<'_>, wire: Wire) -> ClusterUse {
        ClusterUse {
            origin: Origin::Service,
            namespace: place.namespace().to_owned(),
            name: place.name().to_owned(),
            port: place.port.port,
            wire: backends::normal_wire(self.cx, place.port, wire),
            gateway: None,
            caller: Some(self.view.caller.clone()),
        }
    }

    /// A Service without routes goes to itself.
    fn own_rules(&mut self, place: &Place<'_>) -> RuleSet<'w> {
        let settings = self.policies.of_service(place.namespace(), place.name(), place.port.name.as_deref());
        let name = rule_name("Service", place.namespace(), place.name());
        let plain = self.use_of(place, Wire::Http);
        let grpc = self.use_of(place, Wire::Grpc);
        self.default_rules(&name, place.declared, settings.as_ref(), plain, grpc)
    }

    fn default_rules(
        &mut self,
        name: &RuleName,
        declared: Declared,
        settings: Option<&TrafficSettings>,
        plain: ClusterUse,
        grpc: ClusterUse,
    ) -> RuleSet<'w> {
        let ids = match declared {
            Declared::Http2 => vec![self.uses.id(grpc)],
            Declared::Http => vec![self.uses.id(plain)],
            _ => vec![self.uses.id(plain), self.uses.id(grpc)],
        };
        default_rules(name, declared, settings, ids)
    }

    fn own_stream(&mut self, place: &Place<'_>) -> StreamPlan<'w> {
        let wanted = self.use_of(place, Wire::Tcp);
        let name = rule_name("Service", place.namespace(), place.name());
        StreamPlan { route: Cow::Owned(L4Route { name, split: Some(all_to(0)) }), ids: vec![self.uses.id(wanted)] }
    }

    /// Hostnames of the endpoints of a headless Service, as those of a StatefulSet.
    fn hostnames(&mut self, place: &Place<'_>) {
        if !is_headless(place) {
            return;
        }
        for slice in self.cx.index.slices(place.namespace(), place.name()).unwrap_or_default() {
            let Some(port) = endpoints::port_number(slice, place.service, place.port) else { continue };
            for endpoint in &slice.endpoints {
                let (Some(host), Some(text)) = (&endpoint.hostname, endpoint.addresses.first()) else { continue };
                let at = text.parse().ok().and_then(|ip: IpAddr| self.planned.addresses.get(&(ip, port)).copied());
                let Some(at) = at else { continue };
                for name in self.names(place.namespace(), place.name()) {
                    self.planned.names.entry((format!("{host}.{name}"), place.port.port)).or_insert(at);
                }
            }
        }
    }

    /// One address: not subject to routes of any Service (GEP-1426).
    fn single(&mut self, namespace: &str, address: SocketAddr, declared: Declared) -> usize {
        let wanted = |wire| ClusterUse {
            origin: Origin::Address,
            namespace: namespace.to_owned(),
            name: address.ip().to_string(),
            port: address.port(),
            wire,
            gateway: None,
            caller: Some(self.view.caller.clone()),
        };
        let (plain, grpc, tcp) = (wanted(Wire::Http), wanted(Wire::Grpc), wanted(Wire::Tcp));
        let settings = self.policies.of_service(namespace, "", None);
        let name = rule_name("Workload", namespace, &address.ip().to_string());
        let speaks = declared.speaks();
        let http = match speaks {
            Speaks::Tcp => Vec::new(),
            _ => vec![self.default_rules(&name, declared, settings.as_ref(), plain, grpc)],
        };
        let tcp = (speaks != Speaks::Http).then(|| StreamPlan {
            route: Cow::Owned(L4Route { name, split: Some(all_to(0)) }),
            ids: vec![self.uses.id(tcp)],
        });
        let at = self.planned.add(Plan { name: format!("{namespace}/{address}"), speaks, http, tcp });
        self.planned.addresses.insert((address.ip(), address.port()), at);
        at
    }

    fn external(&mut self, host: &external::Host<'_>) {
        let (namespace, name) = (host.namespace, host.service);
        for port in host.ports {
            let declared = external::declared(port);
            let speaks = declared.speaks();
            let rule = rule_name("ExternalService", namespace, name);
            let (mut http, mut tcp) = (Vec::new(), None);
            // Without a place of its own, what is sent to a wildcard goes to where it was going.
            if let Some(to) = &host.cluster {
                let wanted = |wire| ClusterUse {
                    origin: Origin::External,
                    namespace: namespace.to_owned(),
                    name: to.clone(),
                    port: port.port,
                    wire,
                    gateway: None,
                    caller: Some(self.view.caller.clone()),
                };
                let (plain, grpc, stream) = (wanted(Wire::Http), wanted(Wire::Grpc), wanted(Wire::Tcp));
                let settings = self.policies.of_external(namespace, name, port.name.as_deref());
                if speaks != Speaks::Tcp {
                    http.push(self.default_rules(&rule, declared, settings.as_ref(), plain, grpc));
                }
                tcp = (speaks != Speaks::Http).then(|| StreamPlan {
                    route: Cow::Owned(L4Route { name: rule, split: Some(all_to(0)) }),
                    ids: vec![self.uses.id(stream)],
                });
            }
            let name = format!("{namespace}/{name}:{}", port.port);
            let at = self.planned.add(Plan { name, speaks, http, tcp });
            for ip in &host.addresses {
                self.planned.addresses.entry((*ip, port.port)).or_insert(at);
            }
            self.planned.names.entry((host.host.clone(), port.port)).or_insert(at);
        }
    }
}

/// Of all namespaces with routes on a place, the one whose routes hold for a client.
fn in_effect<'n>(all: impl Iterator<Item = &'n str> + Clone, producer: &'n str, client: &str) -> Option<&'n str> {
    let of = |wanted: &str| all.clone().find(|namespace| *namespace == wanted);
    if client == producer { of(producer) } else { of(client).or_else(|| of(producer)) }
}

pub(super) fn rule_name(kind: &'static str, namespace: &str, name: &str) -> RuleName {
    RuleName { kind, namespace: namespace.to_owned(), route: name.to_owned(), index: 0, name: None }
}

/// Everything to one cluster; where nobody has said which version of HTTP is spoken, gRPC, which needs HTTP/2, to a second.
pub(super) fn default_rules(
    name: &RuleName,
    declared: Declared,
    settings: Option<&TrafficSettings>,
    ids: Vec<u32>,
) -> RuleSet<'static> {
    let mut rules = Vec::with_capacity(ids.len());
    let mut entries = Vec::with_capacity(ids.len());
    for position in 0..u32::try_from(ids.len()).unwrap_or(0) {
        let grpc = position == 1;
        let mut rule = forward(name.clone(), grpc || declared == Declared::Http2, position);
        rules::settle(&mut rule, settings, None);
        rules.push(rule);
        entries.push(Entry {
            path: Pattern::Prefix(String::new()),
            method: None,
            headers: if grpc { GRPC.clone() } else { Vec::new() },
            query: Vec::new(),
            grpc_method: None,
            rule: position,
            age: Age {
                created: String::new(),
                namespace: name.namespace.clone(),
                name: name.route.clone(),
                rule: position,
                position: 0,
            },
        });
    }
    RuleSet { rules: Cow::Owned(rules), entries: Cow::Owned(entries), ids }
}

static GRPC: LazyLock<Vec<HeaderMatch>> = LazyLock::new(|| {
    let value = regex::Regex::new("^(?:application/grpc([+;].*)?)$").map(ValueMatch::Regex);
    let name = http::header::CONTENT_TYPE;
    value.into_iter().map(|value| HeaderMatch { name: name.clone(), value }).collect()
});
