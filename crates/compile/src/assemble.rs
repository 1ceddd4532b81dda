//! Puts the snapshot together: routes onto listeners, listeners onto sockets, clusters in order.

use crate::{
    Compiler, Context,
    access::Accesses,
    attach::Parents,
    backend_tls::BackendTls,
    backends::{self, ClusterUse, Wire},
    conflicts::Sockets,
    gateways::{GatewayState, SetState},
    index,
    l4_routes::{self, L4Outcome},
    listeners::{Family, ListenerState, Speaks},
    memory::{self, CompiledRoute, Kept, Memory, Routes},
    policy::{Front, Policies},
    router::{HostMap, Router},
    routers::{Routing, number, routers},
    routes::{self, Surroundings},
    rules::{RouteOutcome, Situation},
    snapshot::{
        Access, AccessLog, Cluster, ClusterId, HttpListener, HttpOptions, L4Listener, L4Options, L4Route, Listener,
        Protocol, Snapshot, SocketOptions, Termination, TlsListener, TlsMode, TlsVersion, Tracing,
    },
    traffic,
};
use ahash::AHashMap;
use selvedge_model::{Code, Diagnostic, Kind, ObjectMeta, ResourceKey, traffic::TrafficSettings};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub(crate) fn snapshot<'a>(
    cx: &mut Context<'a>,
    compiler: &mut Compiler,
    access: &Accesses<'a>,
    gateways: &[GatewayState<'a>],
    sets: &[SetState<'a>],
    listeners: &mut [ListenerState<'a>],
    sockets: &Sockets,
) -> Snapshot {
    let tls = BackendTls::new(cx, &mut compiler.tls);
    let parents = Parents::new(gateways, sets, listeners);
    let policies = Policies::new(cx);
    let mut fronts: Vec<Front> = Vec::new();
    let situations: Vec<Situation> =
        listeners.iter().map(|l| situation(l, &gateways[l.gateway], &policies, &mut fronts)).collect();
    let around = Surroundings {
        tls: &tls,
        policies: &policies,
        fronts: &fronts,
        parents: &parents,
        listeners,
        situations: &situations,
    };
    let mut routes = compile_routes(cx, around, &mut compiler.memory);
    for (attachment, _) in routes.all.iter().flat_map(|r| &r.outcome.attachments) {
        listeners[attachment.listener].attached += 1;
    }
    let ways: Vec<Wire> = listeners.iter().map(l4_routes::way).collect();
    let streams = l4_routes::all(cx, &tls, &policies, &parents, listeners, &ways, &situations);
    for stream in &streams {
        listeners[stream.attachment.listener].attached += 1;
    }
    let (clusters, same) =
        Clusters::kept_or_new(cx, &mut compiler.memory, (&tls, &policies), gateways, &routes, &streams);
    if !tls.is_empty() {
        let reached = reached(gateways, listeners, &routes.all, &streams);
        tls.write_status(cx, &reached);
    }
    let mut routers = routers(listeners.len(), &mut routes, &clusters, same, &compiler.memory);
    keep(&mut compiler.memory, cx, routes.all);
    let streams = stream_routes(cx, listeners, streams, &clusters);
    let settings: Vec<Settings> = fronts.iter().map(|front| Settings::new(&front.listener(), cx.options)).collect();
    let fallback = Settings::new(&TrafficSettings::default(), cx.options);
    let settings = situations.iter().map(|s| s.front.map_or(&fallback, |f| &settings[f])).collect();
    let kept = std::mem::take(&mut compiler.memory.listeners);
    let mut sheet = Sheet {
        access,
        gateways,
        listeners,
        settings,
        routers: &mut routers,
        streams: &streams,
        kept,
        made: AHashMap::new(),
    };
    let mut list = Vec::with_capacity(sockets.len());
    for (bind, on) in sockets {
        let options = sheet.socket(cx, on);
        list.push(Arc::new(Listener { bind: *bind, options, protocol: sheet.protocol(on) }));
    }
    warn_of_shadows(cx, &sheet.made);
    compiler.memory.listeners = sheet.made;
    Snapshot {
        listeners: list,
        clusters: clusters.list.clone(),
        telemetry: cx.options.telemetry.clone(),
        dns: BTreeMap::new(),
        federation: BTreeMap::new(),
    }
}

/// Tells the owners of matches that another route keeps from ever being met. Within one route it may be on purpose.
fn warn_of_shadows(cx: &mut Context<'_>, made: &AHashMap<usize, Arc<HttpListener>>) {
    for http in made.values() {
        for (winner, loser) in http.router.shadowed() {
            let (own, other) = (&loser.age, &winner.age);
            if (&own.namespace, &own.name) == (&other.namespace, &other.name) {
                continue;
            }
            let rule = &http.router.rules()[loser.rule as usize];
            let kind: Kind = rule.name.kind.parse().unwrap_or(Kind::HttpRoute);
            let key = ResourceKey::new(kind, &*own.namespace, &*own.name);
            let message = format!(
                "the same match of the older route {}/{} wins on listener {}, so that this one is never met there",
                other.namespace, other.name, http.name
            );
            cx.report.warning(
                &key,
                Code::ShadowedMatch,
                &format!("spec.rules[{}].matches[{}]", own.rule, own.position),
                &message,
            );
        }
    }
}

/// What the listener brings by policies is entered once in `fronts`, for listeners mostly have the same.
fn situation(
    listener: &ListenerState<'_>,
    gateway: &GatewayState<'_>,
    policies: &Policies<'_>,
    fronts: &mut Vec<Front>,
) -> Situation {
    let (namespace, name) = index::name(&gateway.gateway.metadata);
    let client = gateway.client_certificate.as_ref().map(|_| (namespace.to_owned(), name.to_owned()));
    let front = policies.front(listener, (namespace, name)).map(|front| {
        fronts.iter().position(|known| *known == front).unwrap_or_else(|| {
            fronts.push(front);
            fronts.len() - 1
        })
    });
    Situation { client, front }
}

/// Every HTTPRoute, then every GRPCRoute, in the order of the index; those that were compiled before are taken over.
pub(crate) fn compile_routes<'a>(cx: &mut Context<'a>, around: Surroundings<'_, 'a>, memory: &mut Memory) -> Routes {
    let http = cx.index.http_routes.clone();
    let grpc = cx.index.grpc_routes.clone();
    let mut routes = Routes::default();
    routes.all.reserve(http.len() + grpc.len());
    routes.take(
        std::mem::take(&mut memory.http),
        &http,
        |route| &route.metadata,
        |route| fresh(cx, Kind::HttpRoute, &route.metadata, |cx| routes::http(cx, around, route)),
    );
    routes.take(
        std::mem::take(&mut memory.grpc),
        &grpc,
        |route| &route.metadata,
        |route| fresh(cx, Kind::GrpcRoute, &route.metadata, |cx| routes::grpc(cx, around, route)),
    );
    // Sorted by key already, which makes this one pass.
    let status = routes.all.iter().filter_map(|r| Some((Arc::clone(&r.key), Arc::clone(r.status.as_ref()?))));
    let mut status: BTreeMap<Arc<ResourceKey>, Arc<crate::ResourceStatus>> = status.collect();
    cx.status.resources.append(&mut status);
    cx.report.0.extend(routes.all.iter().flat_map(|r| &r.diagnostics).cloned());
    routes
}

fn fresh<'a>(
    cx: &mut Context<'a>,
    kind: Kind,
    meta: &ObjectMeta,
    compile: impl FnOnce(&mut Context<'a>) -> RouteOutcome,
) -> CompiledRoute {
    let mark = cx.report.0.len();
    let outcome = compile(cx);
    let diagnostics = cx.report.0.split_off(mark);
    CompiledRoute::new(ResourceKey::new(kind, &*meta.namespace, &*meta.name), outcome, diagnostics)
}

/// Remembers the routes for the next compilation; they are in the order of [`compile_routes`].
#[expect(clippy::vec_box, reason = "they are kept as they are in `Routes`")]
pub(crate) fn keep(memory: &mut Memory, cx: &Context<'_>, routes: Vec<Box<CompiledRoute>>) {
    let mut routes = routes.into_iter();
    let http = cx.index.http_routes.iter().zip(routes.by_ref());
    memory.http = http.map(|(&r, compiled)| Kept { route: Arc::clone(r), compiled }).collect();
    let grpc = cx.index.grpc_routes.iter().zip(routes);
    memory.grpc = grpc.map(|(&r, compiled)| Kept { route: Arc::clone(r), compiled }).collect();
}

/// The clusters of a snapshot, and where each use of one is.
pub(crate) struct Clusters {
    list: Vec<Arc<Cluster>>,
    ids: AHashMap<ClusterUse, ClusterId>,
    diagnostics: Vec<Diagnostic>,
    streams: Vec<ClusterUse>,
}

impl Clusters {
    /// Those of the last compilation and true, if nothing that they are made from has changed.
    fn kept_or_new(
        cx: &mut Context<'_>,
        memory: &mut Memory,
        around: (&BackendTls<'_>, &Policies<'_>),
        gateways: &[GatewayState<'_>],
        routes: &Routes,
        streams: &[L4Outcome],
    ) -> (Arc<Self>, bool) {
        let uses = |route: &CompiledRoute| match route.outcome.attachments.as_slice() {
            // A route that is attached nowhere reaches nothing.
            [] => Vec::new(),
            _ => route.outcome.uses.clone(),
        };
        let same_uses = !routes.removed
            && routes
                .changed
                .iter()
                .all(|(i, before)| before.as_deref().map(uses).unwrap_or_default() == uses(&routes.all[*i]));
        if let Some(kept) = memory.all_clusters.as_ref().filter(|_| same_uses && memory.same_endpoints)
            && kept.streams.iter().eq(streams.iter().flat_map(|s| &s.uses))
        {
            cx.report.0.extend_from_slice(&kept.diagnostics);
            return (Arc::clone(kept), true);
        }
        let mark = cx.report.0.len();
        let mut clusters = Clusters::new(cx, memory, around, gateways, &routes.all, streams);
        clusters.diagnostics = cx.report.0[mark..].to_vec();
        memory.retain_clusters(|wanted| clusters.ids.contains_key(wanted), clusters.list.len());
        let same_ids = memory.all_clusters.as_ref().is_some_and(|kept| kept.ids == clusters.ids);
        let clusters = Arc::new(clusters);
        memory.all_clusters = Some(Arc::clone(&clusters));
        (clusters, same_ids)
    }

    fn new(
        cx: &mut Context<'_>,
        memory: &mut Memory,
        (tls, policies): (&BackendTls<'_>, &Policies<'_>),
        gateways: &[GatewayState<'_>],
        routes: &[Box<CompiledRoute>],
        streams: &[L4Outcome],
    ) -> Self {
        let of_routes = routes.iter().map(|r| &r.outcome).filter(|r| !r.attachments.is_empty()).flat_map(|r| &r.uses);
        let uses = of_routes.chain(streams.iter().flat_map(|s| &s.uses));
        let mut ids: AHashMap<ClusterUse, ClusterId> = AHashMap::with_capacity(routes.len());
        let mut built: Vec<(&ClusterUse, Arc<Cluster>)> = Vec::with_capacity(routes.len());
        for wanted in uses {
            if ids.contains_key(wanted) {
                continue;
            }
            ids.insert(wanted.clone(), ClusterId(0));
            built.push((wanted, kept_or_built(cx, memory, (tls, policies), gateways, wanted)));
        }
        built.sort_unstable_by(|a, b| a.1.key.cmp(&b.1.key));
        for (i, (wanted, _)) in built.iter().enumerate() {
            if let Some(place) = ids.get_mut(*wanted) {
                *place = id(i);
            }
        }
        Clusters {
            list: built.into_iter().map(|(_, cluster)| cluster).collect(),
            ids,
            diagnostics: Vec::new(),
            streams: streams.iter().flat_map(|s| &s.uses).cloned().collect(),
        }
    }

    /// Final ids for positions in a list of uses.
    pub(crate) fn of(&self, uses: &[ClusterUse]) -> Vec<ClusterId> {
        uses.iter().map(|wanted| self.ids.get(wanted).copied().unwrap_or(ClusterId(u32::MAX))).collect()
    }
}

/// The cluster of a use: that of the last compilation, if nothing that it is made from has changed.
pub(crate) fn kept_or_built(
    cx: &mut Context<'_>,
    memory: &mut Memory,
    (tls, policies): (&BackendTls<'_>, &Policies<'_>),
    gateways: &[GatewayState<'_>],
    wanted: &ClusterUse,
) -> Arc<Cluster> {
    let inputs = memory::Inputs::of(cx, wanted);
    if let Some((cluster, diagnostics)) = memory.cluster(wanted, &inputs) {
        cx.report.0.extend_from_slice(diagnostics);
        return cluster;
    }
    let mark = cx.report.0.len();
    let cluster = backends::build(cx, tls, policies, gateways, wanted);
    memory.keep_cluster(wanted, inputs, &cluster, cx.report.0[mark..].to_vec());
    cluster
}

fn id(position: usize) -> ClusterId {
    ClusterId(u32::try_from(position).unwrap_or(u32::MAX))
}

/// Services with the Gateways that reach them, for the status of policies.
fn reached(
    gateways: &[GatewayState<'_>],
    listeners: &[ListenerState<'_>],
    routes: &[Box<CompiledRoute>],
    streams: &[L4Outcome],
) -> BTreeSet<((String, String), (String, String))> {
    let mut reached = BTreeSet::new();
    let mut add = |policed: &[(String, String)], listener: usize| {
        let (namespace, name) = index::name(&gateways[listeners[listener].gateway].gateway.metadata);
        for service in policed {
            reached.insert((service.clone(), (namespace.to_owned(), name.to_owned())));
        }
    };
    for route in routes.iter().map(|r| &r.outcome) {
        for (attachment, _) in &route.attachments {
            add(&route.policed, attachment.listener);
        }
    }
    for stream in streams {
        add(&stream.policed, stream.attachment.listener);
    }
    reached
}

/// The stream route that serves each hostname of each listener: the oldest.
fn stream_routes(
    cx: &mut Context<'_>,
    listeners: &[ListenerState<'_>],
    streams: Vec<L4Outcome>,
    clusters: &Clusters,
) -> Vec<HostMap<Arc<L4Route>>> {
    let mut maps: Vec<HostMap<Arc<L4Route>>> = listeners.iter().map(|_| HostMap::default()).collect();
    for mut stream in streams {
        let ids = clusters.of(&stream.uses);
        if let Some(split) = &mut stream.route.split {
            number(&mut split.backends, &ids);
        }
        let listener = &listeners[stream.attachment.listener];
        let route = Arc::new(stream.route);
        for hostname in &stream.attachment.hostnames {
            // A TCPRoute on a TLS listener serves all of the listener's names.
            let hostname = hostname.as_deref();
            let map = &mut maps[stream.attachment.listener];
            if let Some(winner) = map.get_pattern(hostname) {
                let key = ResourceKey::new(kind_of(&route), &*route.name.namespace, &*route.name.route);
                let message = format!(
                    "the older route {}/{} serves {} of listener {}, so that this one gets no traffic there",
                    winner.name.namespace,
                    winner.name.route,
                    hostname.unwrap_or("everything"),
                    listener.name
                );
                cx.report.warning(&key, Code::ShadowedRoute, "spec.parentRefs", &message);
            } else {
                map.insert(hostname, Arc::clone(&route));
            }
        }
    }
    maps
}

fn kind_of(route: &L4Route) -> Kind {
    route.name.kind.parse().unwrap_or(Kind::TcpRoute)
}

/// Idle time of TCP connections and UDP sessions.
const TCP_IDLE: Duration = Duration::from_secs(3600);
const UDP_IDLE: Duration = Duration::from_secs(60);

/// What policies say about one listener.
struct Settings {
    socket: SocketOptions,
    http: Arc<HttpOptions>,
    idle: Option<Duration>,
    access_log: Vec<Arc<AccessLog>>,
    tracing: Option<Arc<Tracing>>,
}

impl Settings {
    fn new(settings: &TrafficSettings, options: &crate::Options) -> Self {
        let own = &options.telemetry;
        let asked = settings.telemetry.as_ref();
        Settings {
            socket: settings.listener.as_ref().map(traffic::socket).unwrap_or_default(),
            http: Arc::new(traffic::http_options(settings)),
            idle: settings.timeouts.as_ref().and_then(|t| t.stream_idle).map(selvedge_model::Duration::as_std),
            access_log: asked.and_then(traffic::access_log).unwrap_or_else(|| own.access_log.clone()),
            tracing: asked.and_then(|t| traffic::tracing(t, own.tracing.as_ref())).or_else(|| own.tracing.clone()),
        }
    }
}

struct Sheet<'s, 'a> {
    access: &'s Accesses<'a>,
    gateways: &'s [GatewayState<'a>],
    listeners: &'s [ListenerState<'a>],
    /// For each listener.
    settings: Vec<&'s Settings>,
    routers: &'s mut [Routing],
    streams: &'s [HostMap<Arc<L4Route>>],
    /// Of the last compilation.
    kept: AHashMap<usize, Arc<HttpListener>>,
    made: AHashMap<usize, Arc<HttpListener>>,
}

impl Sheet<'_, '_> {
    /// What is decided before the listener is known must be the same for all on the socket: the first decides.
    fn socket(&self, cx: &mut Context<'_>, on: &[usize]) -> SocketOptions {
        let first = on.first().map(|&i| &self.settings[i].socket);
        for &i in on.iter().skip(1) {
            if Some(&self.settings[i].socket) != first {
                let listener = &self.listeners[i];
                let message = "PROXY protocol, connection limit and handshake timeout differ from those of an older listener of this port, which hold for all";
                cx.report.warning(&listener.owner_key(), Code::PolicyConflict, &listener.path(""), message);
            }
        }
        first.cloned().unwrap_or_default()
    }

    /// What a socket serves. All its listeners are of one family, which `conflicts` has seen to.
    fn protocol(&mut self, on: &[usize]) -> Protocol {
        let family = on.first().and_then(|&i| self.listeners[i].speaks.family());
        match family {
            Some(Family::Http) => {
                let mut map = HostMap::default();
                for &i in on {
                    map.insert(self.listeners[i].hostname.as_deref(), self.http(i));
                }
                Protocol::Http(map)
            }
            Some(Family::Tls) => {
                let mut map = HostMap::default();
                for &i in on {
                    map.insert(self.listeners[i].hostname.as_deref(), Arc::new(self.tls(i)));
                }
                Protocol::Tls(map)
            }
            Some(Family::Udp) => Protocol::Udp(self.stream(on, UDP_IDLE)),
            Some(Family::Tcp) | None => Protocol::Tcp(self.stream(on, TCP_IDLE)),
        }
    }

    fn stream(&self, on: &[usize], idle: Duration) -> Arc<L4Listener> {
        let i = on.first().copied().unwrap_or(0);
        let route = self.streams[i].get_pattern(None).cloned();
        Arc::new(L4Listener { route, options: self.l4_options(i, idle) })
    }

    fn l4_options(&self, i: usize, idle_timeout: Duration) -> Arc<L4Options> {
        let settings = self.settings[i];
        Arc::new(L4Options {
            name: self.listeners[i].name.clone(),
            idle_timeout: settings.idle.unwrap_or(idle_timeout),
            access: self.access(i, None),
            access_log: settings.access_log.clone(),
        })
    }

    /// Who may come through a listener.
    fn access(&self, i: usize, router: Option<&Router>) -> Option<Arc<Access>> {
        let listener = &self.listeners[i];
        let gateway = index::name(&self.gateways[listener.gateway].gateway.metadata);
        let rules = router.filter(|_| self.access.has_routes()).map(Router::rules).unwrap_or_default();
        let routes = rules.iter().map(|r| (r.name.kind, r.name.namespace.clone(), r.name.route.clone()));
        self.access.for_listener(gateway, &listener.name, listener.spec.port, routes)
    }

    /// A Gateway with several addresses has the very same listener on each of its sockets.
    fn http(&mut self, i: usize) -> Arc<HttpListener> {
        if let Some(made) = self.made.get(&i) {
            return Arc::clone(made);
        }
        let routing = std::mem::take(&mut self.routers[i]);
        if let (Routing::Same, Some(kept)) = (&routing, self.kept.remove(&i)) {
            let access = self.access(i, Some(&kept.router));
            let same = kept.access == access;
            let kept = if same { kept } else { Arc::new(HttpListener { access, ..HttpListener::clone(&kept) }) };
            self.made.insert(i, Arc::clone(&kept));
            return kept;
        }
        let router = routing.build();
        let access = self.access(i, Some(&router));
        let (listener, settings) = (&self.listeners[i], self.settings[i]);
        let made = Arc::new(HttpListener {
            name: listener.name.clone(),
            hostname: listener.hostname.clone(),
            router,
            access,
            options: Arc::clone(&settings.http),
            access_log: settings.access_log.clone(),
            tracing: settings.tracing.clone(),
        });
        self.made.insert(i, Arc::clone(&made));
        made
    }

    fn tls(&mut self, i: usize) -> TlsListener {
        let listener = &self.listeners[i];
        let termination = || Termination {
            certificates: listener.certificates.clone(),
            client: listener.client.clone(),
            min_version: TlsVersion::V1_2,
        };
        let mode = match listener.speaks {
            Speaks::Https => TlsMode::Http { tls: termination(), http: self.http(i) },
            Speaks::TlsTerminate => TlsMode::Tcp {
                tls: termination(),
                routes: self.streams[i].clone(),
                listener: self.l4_options(i, TCP_IDLE),
            },
            _ => TlsMode::Passthrough { routes: self.streams[i].clone(), listener: self.l4_options(i, TCP_IDLE) },
        };
        TlsListener { name: self.listeners[i].name.clone(), hostname: self.listeners[i].hostname.clone(), mode }
    }
}
