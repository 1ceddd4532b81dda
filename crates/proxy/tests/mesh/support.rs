//! Snapshots made by hand, and a data plane that serves them.

use selvedge_compile::{
    router::{Age, Entry, Pattern, RouterBuilder},
    snapshot::{
        Access, AccessLog, Action, Arrive, Backend, Bind, Cluster, ClusterId, Connections, Destination, Destinations,
        Discovery, Endpoint, Find, HttpListener, HttpOptions, Inbound, InboundPort, L4Options, L4Route, Listener,
        ListenerName, LoadBalancing, LogCondition, LogFormat, LogOutput, MtlsMode, Netns, Outbound, Peer, Protocol,
        Rule, RuleName, Snapshot, SocketOptions, Speaks, Split, Target, Timeouts, Transport, Unknown, UpstreamProtocol,
    },
};
use selvedge_identity::{Bundle, Bundles, Identities, Svid};
use selvedge_proxy::{
    proxy::{Proxy, Settings},
    telemetry::encode::Format,
    worker::WorkerCount,
};
use selvedge_testkit::certs::{Ca, Spec};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
};

pub fn start(settings: Settings) -> Proxy {
    Proxy::start(&Settings { workers: WorkerCount(2), ..settings }, Handle::current()).expect("a data plane")
}

/// Collects clusters while a snapshot is made.
#[derive(Default)]
pub struct Make {
    pub snapshot: Snapshot,
    pub log: Vec<Arc<AccessLog>>,
    pub netns: Netns,
    /// Who may come to workloads.
    pub access: Access,
}

pub fn listener_name(section: &str) -> ListenerName {
    ListenerName { kind: "Workload", namespace: "shop".into(), name: "cart".into(), section: section.into() }
}

fn rule_name(kind: &'static str, route: &str) -> RuleName {
    RuleName { kind, namespace: "shop".into(), route: route.into(), index: 0, name: None }
}

impl Make {
    /// Records of everything that is made go to this file, as JSON.
    pub fn log_to(&mut self, path: &str) {
        self.log = vec![Arc::new(AccessLog {
            output: LogOutput::File(path.to_owned()),
            format: LogFormat::Json,
            per_million: 1_000_000,
            condition: LogCondition::default(),
        })];
    }

    pub fn cluster(&mut self, key: &str, protocol: UpstreamProtocol, to: SocketAddr) -> ClusterId {
        self.peer_cluster(key, protocol, to, None, None)
    }

    pub fn peer_cluster(
        &mut self,
        key: &str,
        protocol: UpstreamProtocol,
        to: SocketAddr,
        identity: Option<SpiffeId>,
        peer: Option<Peer>,
    ) -> ClusterId {
        let endpoint = Endpoint { peer: peer.map(Arc::new), ..Endpoint::new(to) };
        self.snapshot.clusters.push(Arc::new(Cluster {
            key: key.to_owned(),
            discovery: Discovery::Static(vec![endpoint]),
            protocol,
            tls: None,
            identity,
            netns: self.netns,
            load_balancing: LoadBalancing::default(),
            connections: Connections::default(),
            health_checks: Vec::new(),
            outlier_detection: None,
        }));
        ClusterId((self.snapshot.clusters.len() - 1) as u32)
    }

    fn split(cluster: ClusterId) -> Split {
        let backend = Backend { weight: 1, target: Target::Cluster(cluster), filters: Vec::new() };
        Split { backends: vec![backend], total: 1 }
    }

    pub fn http(&self, section: &str, cluster: ClusterId) -> Arc<HttpListener> {
        let mut router = RouterBuilder::default();
        let rule = router.rule(Arc::new(Rule {
            name: rule_name("HTTPRoute", "all"),
            grpc: false,
            filters: Vec::new(),
            action: Action::Forward(Self::split(cluster)),
            timeouts: Timeouts::default(),
            retry: None,
            hedging: None,
            session: None,
        }));
        let age = Age { created: String::new(), namespace: "shop".into(), name: "all".into(), rule: 0, position: 0 };
        router.entry(
            None,
            Entry {
                path: Pattern::Prefix(String::new()),
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
                grpc_method: None,
                rule,
                age,
            },
        );
        Arc::new(HttpListener {
            name: listener_name(section),
            hostname: None,
            router: router.build(),
            access: None,
            options: Arc::new(HttpOptions::default()),
            access_log: self.log.clone(),
            tracing: None,
        })
    }

    pub fn tcp(&self, cluster: ClusterId) -> Arc<L4Route> {
        Arc::new(L4Route { name: rule_name("Service", "bytes"), split: Some(Self::split(cluster)) })
    }

    pub fn streams(&self, section: &str) -> Arc<L4Options> {
        let name = listener_name(section);
        Arc::new(L4Options { name, idle_timeout: Duration::from_secs(60), access_log: self.log.clone(), access: None })
    }

    /// A destination at which this server is, reached in clear text.
    pub fn destination(&mut self, name: &str, speaks: Speaks, to: SocketAddr) -> Arc<Destination> {
        let http = self.cluster(&format!("{name}/http"), UpstreamProtocol::Http1, to);
        let tcp = self.cluster(&format!("{name}/tcp"), UpstreamProtocol::Raw, to);
        self.reached_by(name, speaks, http, tcp)
    }

    pub fn reached_by(&mut self, name: &str, speaks: Speaks, http: ClusterId, tcp: ClusterId) -> Arc<Destination> {
        Arc::new(Destination {
            name: name.to_owned(),
            speaks,
            http: (speaks != Speaks::Tcp).then(|| self.http("outbound", http)),
            tcp: Some(self.tcp(tcp)),
            streams: self.streams("outbound"),
        })
    }

    pub fn listen(&mut self, address: Option<IpAddr>, port: u16, protocol: Protocol) {
        let bind = Bind { address, port, transport: Transport::Tcp, netns: self.netns };
        self.snapshot.listeners.push(Arc::new(Listener { bind, options: SocketOptions::default(), protocol }));
        self.snapshot.listeners.sort_by_key(|l| l.bind);
    }

    pub fn outbound(&self, find: Find, destinations: Destinations, unknown: Unknown) -> Protocol {
        Protocol::Outbound(Arc::new(Outbound {
            name: listener_name("outbound"),
            identity: None,
            find,
            destinations: Arc::new(destinations),
            unknown,
            http: Arc::new(HttpOptions::default()),
            streams: self.streams("outbound"),
        }))
    }

    /// A port that passes on to this server.
    pub fn port(&mut self, speaks: Speaks, mtls: MtlsMode, to: SocketAddr) -> Arc<InboundPort> {
        let http = self.cluster(&format!("in/{to}/http"), UpstreamProtocol::Http1, to);
        let tcp = self.cluster(&format!("in/{to}/tcp"), UpstreamProtocol::Raw, to);
        Arc::new(InboundPort {
            speaks,
            mtls,
            http: (speaks != Speaks::Tcp).then(|| self.http("inbound", http)),
            tcp: Some(self.tcp(tcp)),
            streams: self.streams("inbound"),
        })
    }

    /// A port of which nothing is known.
    pub fn other(&self, mtls: MtlsMode) -> Arc<InboundPort> {
        let streams = self.streams("inbound");
        Arc::new(InboundPort { speaks: Speaks::Undeclared, mtls, http: None, tcp: None, streams })
    }

    pub fn inbound(
        &self,
        arrive: Arrive,
        identity: Option<SpiffeId>,
        addresses: Vec<IpAddr>,
        ports: BTreeMap<u16, Arc<InboundPort>>,
        other: Arc<InboundPort>,
    ) -> Protocol {
        let access = Arc::new(self.access.clone());
        let name = listener_name("inbound");
        Protocol::Inbound(Arc::new(Inbound { name, identity, arrive, addresses, ports, other, access }))
    }
}

/// Where a listener of a loopback address listens.
pub fn at(proxy: &Proxy, address: &str) -> SocketAddr {
    let ip: IpAddr = address.parse().expect("an address");
    let found = proxy.listeners().into_iter().find(|l| l.bind.address == Some(ip));
    found.expect("a listener").local
}

pub fn install(proxy: &Proxy, make: Make) {
    let problems = proxy.install(&make.snapshot);
    assert!(problems.is_empty(), "{problems:?}");
}

pub fn metrics(proxy: &Proxy) -> String {
    proxy.shared().telemetry.registry.encode(Format::negotiate(None))
}

/// Whether some line of the metrics begins like this, soon: what has happened may be seen before it is counted. Tests have
/// more than one thread, so that one may wait.
pub fn counted(proxy: &Proxy, line: &str) -> bool {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !metrics(proxy).lines().any(|l| l.starts_with(line)) {
        if std::time::Instant::now() > limit {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    true
}

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::workload("cluster.local", "shop", account).expect("an ID")
}

/// Identities of these accounts, all in one process.
pub fn identities(accounts: &[&str]) -> Arc<Identities> {
    let ca = Ca::new("mesh");
    let identities = Arc::new(Identities::default());
    let bundle = Bundle::from_pem(ca.pem().as_bytes()).expect("a bundle");
    identities.set_bundles(Bundles::of("cluster.local", bundle).expect("bundles"));
    for account in accounts {
        let leaf = ca.issue(&Spec::uri(id(account).as_str()));
        identities.set(Svid::from_pem(leaf.chain_pem().as_bytes(), leaf.key_pem().as_bytes()).expect("an SVID"));
    }
    identities
}

/// Writes, then reads until the other side closes.
pub async fn exchange(to: SocketAddr, words: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(words.as_bytes()).await?;
    stream.shutdown().await?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// One request, whose connection the server closes.
pub async fn request(to: SocketAddr, target: &str, host: &str) -> String {
    let text = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    stream.write_all(text.as_bytes()).await.expect("write");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.expect("an answer");
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until a text was seen.
pub async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&all).contains(text) {
        let n = stream.read(&mut piece).await.expect("read");
        assert!(n > 0, "the end came before {text:?}: {}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&piece[..n]);
    }
    String::from_utf8_lossy(&all).into_owned()
}
