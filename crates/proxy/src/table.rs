//! A snapshot linked to live state: what a request reads, once.

use crate::{
    cluster::LiveCluster,
    error::Error,
    inbound::LiveInbound,
    outbound::LiveOutbound,
    request,
    scope::Scope,
    telemetry::{AccessCounts, ListenerHandle, RouteMetrics, SocketMetrics, Telemetry},
    tls, udp,
};
use selvedge_compile::{
    router::HostMap,
    snapshot::{
        ClusterId, HttpListener, HttpOptions, L4Listener, Listener, ListenerName, Protocol, Rule, RuleName, TlsMode,
    },
};
use selvedge_wire::forwarded::Trust;
use std::{collections::BTreeMap, sync::Arc};

/// Everything behind one socket. Connections hold the listener, requests hold this.
pub struct ListenerTable {
    pub config: Arc<Listener>,
    pub clusters: Arc<[Arc<LiveCluster>]>,
    pub protocol: LiveProtocol,
    /// Counters of the socket: connections and handshakes.
    pub socket: Arc<SocketMetrics>,
    /// For records of requests that come to no listener.
    pub nowhere: Arc<ListenerHandle>,
    /// For records of TCP and UDP listeners.
    pub streams: Option<Arc<ListenerHandle>>,
    /// Counters of the route of a TCP or UDP listener.
    pub stream_route: Option<Arc<RouteMetrics>>,
    /// For records of TLS routes, by listener.
    /// How often AccessPolicies denied and marked.
    pub counts: Arc<AccessCounts>,
    /// Which change of the configuration it belongs to.
    pub epoch: u64,
    tls_streams: BTreeMap<ListenerName, Arc<ListenerHandle>>,
    tls_routes: BTreeMap<(ListenerName, RuleName), Arc<RouteMetrics>>,
}

pub enum LiveProtocol {
    Http(HostMap<Arc<LiveHttp>>),
    Tls { acceptor: tls::Acceptor, http: HostMap<Arc<LiveHttp>> },
    Tcp(Arc<L4Listener>),
    Udp(Arc<L4Listener>),
    Outbound(LiveOutbound),
    Inbound(LiveInbound),
}

/// An HTTP listener with the live parts of its rules.
pub struct LiveHttp {
    pub config: Arc<HttpListener>,
    /// By the index that the router gives.
    pub rules: Vec<Arc<RouteMetrics>>,
    pub handle: Arc<ListenerHandle>,
    pub trust: Trust,
}

impl ListenerTable {
    /// Links one listener to live state. A TLS listener whose key cannot be used refuses its handshakes and is told of
    /// in the second value; everything else works. What `before`, the table of the same socket until now, has linked already
    /// is taken from there.
    pub fn link(
        config: &Arc<Listener>,
        clusters: &Arc<[Arc<LiveCluster>]>,
        telemetry: &Arc<Telemetry>,
        nowhere: &Arc<ListenerHandle>,
        store: &tls::Store,
        before: Option<&ListenerTable>,
    ) -> (Self, Vec<Error>) {
        let live = |http: &Arc<HttpListener>| {
            let before = before.and_then(|table| table.http_hosts()?.get_pattern(http.hostname.as_deref()));
            match before.filter(|live| Arc::ptr_eq(&live.config, http)) {
                Some(live) => live.clone(),
                None => Arc::new(LiveHttp::link(http, telemetry, before.map(Arc::as_ref))),
            }
        };
        let (mut problems, mut streams, mut stream_route) = (Vec::new(), None, None);
        let (mut tls_streams, mut tls_routes) = (BTreeMap::new(), BTreeMap::new());
        let protocol = match &config.protocol {
            Protocol::Http(hosts) => LiveProtocol::Http(hosts.clone().map(|http| live(&http))),
            Protocol::Tls(hosts) => {
                let mut http = HostMap::default();
                for (pattern, listener) in hosts.iter() {
                    match &listener.mode {
                        TlsMode::Http { http: config, .. } => {
                            http.insert(pattern.as_deref(), live(config));
                        }
                        TlsMode::Tcp { listener: options, routes, .. }
                        | TlsMode::Passthrough { listener: options, routes } => {
                            tls_streams.insert(listener.name.clone(), telemetry.stream_listener(options));
                            for route in routes.values() {
                                let metrics = telemetry.route(&listener.name, &route.name);
                                tls_routes.insert((listener.name.clone(), route.name.clone()), metrics);
                            }
                        }
                    }
                }
                let (acceptor, found) = tls::Acceptor::new(hosts, store);
                problems = found;
                LiveProtocol::Tls { acceptor, http }
            }
            Protocol::Tcp(listener) | Protocol::Udp(listener) => {
                streams = Some(telemetry.stream_listener(&listener.options));
                let name = &listener.options.name;
                stream_route = listener.route.as_ref().map(|route| telemetry.route(name, &route.name));
                match config.protocol {
                    Protocol::Tcp(_) => LiveProtocol::Tcp(listener.clone()),
                    _ => LiveProtocol::Udp(listener.clone()),
                }
            }
            Protocol::Outbound(outbound) => {
                let before = before.and_then(Self::outbound);
                LiveProtocol::Outbound(LiveOutbound::link(outbound, telemetry, before))
            }
            Protocol::Inbound(inbound) => {
                let before = before.and_then(Self::inbound);
                LiveProtocol::Inbound(LiveInbound::link(inbound, telemetry, before))
            }
        };
        let table = Self {
            config: config.clone(),
            clusters: clusters.clone(),
            protocol,
            socket: telemetry.registry.socket(&config.bind),
            nowhere: nowhere.clone(),
            streams,
            stream_route,
            counts: telemetry.access.clone(),
            epoch: 0,
            tls_streams,
            tls_routes,
        };
        (table, problems)
    }

    /// The HTTP listener that serves a host.
    pub fn http(&self, host: &str) -> Option<&Arc<LiveHttp>> {
        self.http_hosts().and_then(|hosts| hosts.find(host))
    }

    /// The HTTP listener that serves a request: on the sockets of Gateways by its host, else by where its connection
    /// goes. `port` is that of the request's target.
    pub fn serving(&self, scope: &Scope, target: &request::Target) -> Option<Arc<LiveHttp>> {
        match (scope, &self.protocol) {
            (Scope::To(key), LiveProtocol::Outbound(live)) => live.find(key)?.http.clone(),
            (Scope::Named, LiveProtocol::Outbound(live)) => live.find(&target.key())?.http.clone(),
            (Scope::Port(arrived), LiveProtocol::Inbound(live)) => live.port(arrived.to.port()).http.clone(),
            (Scope::Hosts, _) => self.http(&target.host).cloned(),
            _ => None,
        }
    }

    /// What holds for the requests of a connection before their listener is known.
    pub fn options(&self, scope: &Scope) -> Option<Arc<HttpOptions>> {
        match (scope, &self.protocol) {
            (Scope::Named, LiveProtocol::Outbound(live)) => Some(live.config.http.clone()),
            (Scope::To(key), LiveProtocol::Outbound(live)) => {
                let port = live.find(key);
                let http = port.as_ref().and_then(|port| port.http.as_ref());
                Some(http.map_or(&live.config.http, |http| &http.config.options).clone())
            }
            (Scope::Port(arrived), LiveProtocol::Inbound(live)) => {
                live.port(arrived.to.port()).http.as_ref().map(|http| http.config.options.clone())
            }
            _ => self.any_http().map(|http| http.config.options.clone()),
        }
    }

    /// The HTTP listener of a name.
    pub fn by_name(&self, name: &ListenerName) -> Option<&Arc<LiveHttp>> {
        self.http_hosts().and_then(|hosts| hosts.values().find(|live| live.config.name == *name))
    }

    /// Some HTTP listener of this socket, for limits that hold before a host is known.
    pub fn any_http(&self) -> Option<&Arc<LiveHttp>> {
        self.http_hosts().and_then(|hosts| hosts.get_pattern(None).or_else(|| hosts.values().next()))
    }

    fn http_hosts(&self) -> Option<&HostMap<Arc<LiveHttp>>> {
        match &self.protocol {
            LiveProtocol::Http(hosts) | LiveProtocol::Tls { http: hosts, .. } => Some(hosts),
            LiveProtocol::Tcp(_) | LiveProtocol::Udp(_) | LiveProtocol::Outbound(_) | LiveProtocol::Inbound(_) => None,
        }
    }

    /// The protocol, and the listeners of Gateways behind this socket.
    pub fn names(&self) -> (&'static str, Vec<String>) {
        match &self.config.protocol {
            Protocol::Http(hosts) => ("http", hosts.values().map(|l| l.name.to_string()).collect()),
            Protocol::Tls(hosts) => ("tls", hosts.values().map(|l| l.name.to_string()).collect()),
            Protocol::Tcp(listener) => ("tcp", vec![listener.options.name.to_string()]),
            Protocol::Udp(listener) => ("udp", vec![listener.options.name.to_string()]),
            Protocol::Outbound(outbound) => ("outbound", vec![outbound.name.to_string()]),
            Protocol::Inbound(inbound) => ("inbound", vec![inbound.name.to_string()]),
        }
    }

    /// Where the records of a TLS route's listener go.
    pub fn stream_handle(&self, name: &ListenerName) -> Arc<ListenerHandle> {
        self.tls_streams.get(name).unwrap_or(&self.nowhere).clone()
    }

    /// What UDP sessions are served with.
    pub fn udp(&self, listener: &L4Listener) -> udp::Current {
        udp::Current {
            route: listener.route.clone(),
            options: listener.options.clone(),
            clusters: self.clusters.clone(),
            handle: self.streams.clone().unwrap_or_else(|| self.nowhere.clone()),
            metrics: self.stream_route.clone(),
            counts: self.counts.clone(),
            max_sessions: self.config.options.max_connections as usize,
        }
    }

    /// Counters of a TLS route.
    pub fn stream_metrics(&self, listener: &ListenerName, route: &RuleName) -> Option<Arc<RouteMetrics>> {
        self.tls_routes.get(&(listener.clone(), route.clone())).cloned()
    }

    pub fn cluster(&self, id: ClusterId) -> &Arc<LiveCluster> {
        &self.clusters[id.0 as usize]
    }
}

impl LiveHttp {
    /// `before` is what served the same listener: a rule mostly has the index there that it has now.
    pub(crate) fn link(config: &Arc<HttpListener>, telemetry: &Telemetry, before: Option<&Self>) -> Self {
        let known = |i: usize, rule: &Arc<Rule>| {
            let before = before.filter(|before| before.config.name == config.name)?;
            let old = before.config.router.rules().get(i)?;
            let same = Arc::ptr_eq(old, rule) || old.name == rule.name;
            same.then(|| before.rules.get(i).cloned()).flatten()
        };
        let rules = config.router.rules().iter().enumerate();
        let rules = rules.map(|(i, rule)| known(i, rule).unwrap_or_else(|| telemetry.route(&config.name, &rule.name)));
        let rules = rules.collect();
        Self { config: config.clone(), rules, handle: telemetry.listener(config), trust: config.options.trust() }
    }
}
