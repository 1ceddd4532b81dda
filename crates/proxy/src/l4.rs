//! TCP connections and TLS connections that are not HTTP: a backend by weight, an endpoint by balance, then bytes.

use crate::{
    Error,
    access::{self, Live},
    balance::Pick,
    cluster::{LiveCluster, Picked},
    connect::ClientAddress,
    drain::Drain,
    endpoint::LiveEndpoint,
    error::Kind,
    io::Io,
    outlier::Outcome,
    pool::Held,
    split,
    telemetry::{ConnectionFacts, Flags, ListenerHandle, Record, RouteMetrics},
    tunnel::{self, End},
    worker::WorkerId,
};
use http::HeaderMap;
use selvedge_compile::snapshot::{HashKey, L4Options, L4Route, Target};
use smallvec::SmallVec;
use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use tokio::time::Instant;

/// An accepted connection whose bytes are to be passed on.
pub struct Stream {
    pub io: Io,
    pub worker: WorkerId,
    pub facts: Arc<ConnectionFacts>,
    pub handle: Arc<ListenerHandle>,
    /// Of the route.
    pub metrics: Option<Arc<RouteMetrics>>,
    pub options: Arc<L4Options>,
    pub drain: Drain,
    /// Who connects, to be judged now and when policies change; `None` lets everybody.
    pub live: Option<Live>,
}

/// Endpoints tried for one connection.
const MAX_TRIES: usize = 3;

/// Serves a connection until it ends. A connection that cannot be served is reset, so that its client notices at once
/// and does not take it for an empty answer.
pub async fn serve(stream: Stream, route: Option<&L4Route>, clusters: &[Arc<LiveCluster>]) {
    let mut record = begin(&stream.facts, &stream.handle, stream.metrics.as_ref());
    if !admitted(&stream, &mut record) {
        return;
    }
    let upstream = open(route, clusters, &stream.facts, &mut record).await;
    carry(stream, upstream, record).await;
}

/// Whether the client may connect; otherwise its connection is reset.
pub(crate) fn admitted(stream: &Stream, record: &mut Record) -> bool {
    match stream.live.as_ref().map_or(Ok(None), Live::begin) {
        Ok(audited) => {
            if let Some(audited) = audited {
                record.details(audited);
            }
            true
        }
        Err(error) => {
            record.failed(&error);
            tunnel::reset(&stream.io);
            false
        }
    }
}

/// A connection to a server, with what counts it.
pub(crate) struct Upstream {
    pub io: Io,
    _held: Option<Held>,
    _active: Option<Active>,
}

impl From<Io> for Upstream {
    /// A connection that belongs to no cluster.
    fn from(io: Io) -> Self {
        Self { io, _held: None, _active: None }
    }
}

/// Begins the account of a connection.
pub(crate) fn begin(
    facts: &Arc<ConnectionFacts>,
    handle: &Arc<ListenerHandle>,
    route: Option<&Arc<RouteMetrics>>,
) -> Record {
    let mut record = Record::stream(facts.clone());
    record.listener(handle, &HeaderMap::new());
    if let Some(route) = route {
        record.matched(route);
    }
    record
}

/// A connection to some backend of a route.
pub(crate) async fn open(
    route: Option<&L4Route>,
    clusters: &[Arc<LiveCluster>],
    facts: &ConnectionFacts,
    record: &mut Record,
) -> Result<Upstream, Refusal> {
    let (io, held, active) = connect(cluster(route, clusters)?, facts, record).await?;
    Ok(Upstream { io, _held: Some(held), _active: Some(active) })
}

/// Passes bytes both ways until the connection ends.
pub(crate) async fn carry(stream: Stream, upstream: Result<Upstream, Refusal>, mut record: Record) {
    let Upstream { io: upstream, _held, _active } = match upstream {
        Ok(upstream) => upstream,
        Err(refusal) => {
            refusal.note(&mut record);
            tunnel::reset(&stream.io);
            return;
        }
    };
    record.connected();
    let progress = record.progress().clone();
    let mut denied = None;
    let cut = async { denied = Some(access::denied(stream.live).await) };
    let idle = stream.options.idle_timeout;
    let outcome = tunnel::copy_until(stream.io, upstream, idle, &progress, stream.drain, cut).await;
    if let Some(error) = &denied {
        record.failed(error);
    }
    match outcome.end {
        End::Closed | End::Cut => {}
        End::DownstreamReset => record.flag(Flags::DOWNSTREAM_CLOSED),
        End::UpstreamReset => record.flag(Flags::UPSTREAM_CLOSED),
        End::Idle => record.flag(Flags::STREAM_IDLE),
        End::Drained => record.details("closed while draining"),
    }
    if let Some(error) = outcome.error {
        record.details(error.to_string());
    }
}

/// Why a connection or session is not served.
pub(crate) struct Refusal {
    flags: Flags,
    details: Cow<'static, str>,
    error: Option<Error>,
}

impl Refusal {
    pub(crate) fn new(flags: Flags, details: impl Into<Cow<'static, str>>) -> Self {
        Self { flags, details: details.into(), error: None }
    }

    pub(crate) fn note(self, record: &mut Record) {
        match self.error {
            Some(error) => record.failed(&error),
            None => {
                record.flag(self.flags);
                record.details(self.details);
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            Some(error) => error.fmt(f),
            None => f.write_str(&self.details),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { flags: Flags::NONE, details: Cow::Borrowed(""), error: Some(error) }
    }
}

/// The cluster for a new connection: a draw by weight among the route's backends.
pub(crate) fn cluster<'c>(
    route: Option<&L4Route>,
    clusters: &'c [Arc<LiveCluster>],
) -> Result<&'c Arc<LiveCluster>, Refusal> {
    let route = route.ok_or_else(|| Refusal::new(Flags::NO_ROUTE, "no route is attached for this connection"))?;
    let none = || Refusal::new(Flags::NO_CLUSTER, "the route has no valid backend");
    let split = route.split.as_ref().ok_or_else(none)?;
    match &split::pick(split, &mut rand::rng()).target {
        Target::Cluster(id) => clusters.get(id.0 as usize).ok_or_else(none),
        Target::Invalid { reason, .. } => Err(Refusal::new(Flags::NO_CLUSTER, reason.clone())),
    }
}

/// An endpoint; of hash keys only the client's address exists here.
pub(crate) fn pick(cluster: &LiveCluster, client: IpAddr, tried: &[SocketAddr]) -> Result<Picked, Error> {
    let by_source = cluster.current().config.load_balancing.hash_keys.contains(&HashKey::SourceIp);
    let hash = by_source.then(|| match client.to_canonical() {
        IpAddr::V4(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
        IpAddr::V6(ip) => xxhash_rust::xxh3::xxh3_64(&ip.octets()),
    });
    cluster.pick(&Pick { hash, tried, sticky: None })
}

/// A connection to some endpoint: when one cannot be reached, another is tried, as nothing was sent yet.
async fn connect(
    cluster: &Arc<LiveCluster>,
    facts: &ConnectionFacts,
    record: &mut Record,
) -> Result<(Io, Held, Active), Refusal> {
    cluster.ready().await;
    record.cluster(&cluster.current().config);
    let client = ClientAddress { source: facts.client, destination: facts.local };
    let mut tried: SmallVec<[SocketAddr; MAX_TRIES]> = SmallVec::new();
    loop {
        let endpoint = pick(cluster, facts.client.ip(), &tried)?;
        record.upstream(endpoint.config(), endpoint.address);
        let start = Instant::now();
        let error = match cluster.connect_raw(&endpoint, Some(client)).await {
            Ok((io, held)) => {
                cluster.report(&endpoint, Outcome::Ok, start.elapsed());
                return Ok((io, held, Active::begin(&endpoint)));
            }
            Err(error) => error,
        };
        match error.kind {
            Kind::Connect | Kind::ConnectTimeout | Kind::Tls | Kind::Reset => {
                cluster.report(&endpoint, Outcome::ConnectFailure, start.elapsed());
            }
            // A limit of ours: another endpoint would not help.
            _ => return Err(error.into()),
        }
        let again = tried.contains(&endpoint.address);
        tried.push(endpoint.address);
        if again || tried.len() == MAX_TRIES {
            return Err(error.into());
        }
        tracing::debug!(cluster = cluster.key(), endpoint = %endpoint.address, %error, "trying another endpoint");
    }
}

/// Counts as load of an endpoint while it exists.
pub(crate) struct Active(Arc<LiveEndpoint>);

impl Active {
    pub(crate) fn begin(endpoint: &Arc<LiveEndpoint>) -> Self {
        endpoint.begin();
        Self(endpoint.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{cluster::Clusters, drain::Drainer, telemetry::Telemetry, worker::WorkerCount};
    use selvedge_compile::snapshot::{
        Backend, Cluster, ClusterId, Connections, Discovery, Endpoint, ListenerName, LoadBalancing,
        ProxyProtocolVersion, RuleName, Split, UpstreamProtocol,
    };
    use selvedge_testkit::tcp::{self, Server};
    use std::time::Duration;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        runtime::Handle,
        task::JoinHandle,
    };

    /// A cluster with these endpoints.
    pub(crate) fn config(key: &str, addresses: &[SocketAddr]) -> Cluster {
        let mut endpoints: Vec<_> = addresses.iter().map(|address| Endpoint::new(*address)).collect();
        endpoints.sort();
        Cluster {
            key: key.to_owned(),
            discovery: Discovery::Static(endpoints),
            protocol: UpstreamProtocol::Raw,
            tls: None,
            identity: None,
            netns: Default::default(),
            load_balancing: LoadBalancing::default(),
            connections: Connections::default(),
            health_checks: Vec::new(),
            outlier_detection: None,
        }
    }

    pub(crate) fn route(targets: impl IntoIterator<Item = (u32, Option<u32>)>) -> L4Route {
        let name = RuleName { kind: "TCPRoute", namespace: "default".into(), route: "db".into(), index: 0, name: None };
        let backend = |(weight, target): (u32, Option<u32>)| Backend {
            weight,
            target: match target {
                Some(id) => Target::Cluster(ClusterId(id)),
                None => Target::Invalid { status: 500, reason: "Service default/gone does not exist".into() },
            },
            filters: Vec::new(),
        };
        let backends: Vec<_> = targets.into_iter().map(backend).collect();
        let total = backends.iter().map(|b| b.weight).sum();
        L4Route { name, split: Some(Split { backends, total }) }
    }

    pub(crate) fn options(idle: Duration) -> Arc<L4Options> {
        let name =
            ListenerName { kind: "Gateway", namespace: "default".into(), name: "edge".into(), section: "l4".into() };
        Arc::new(L4Options { name, idle_timeout: idle, access: None, access_log: Vec::new() })
    }

    pub(crate) struct Bench {
        pub clusters: Arc<[Arc<LiveCluster>]>,
        pub telemetry: Arc<Telemetry>,
        pub handle: Arc<ListenerHandle>,
        pub drainer: Drainer,
        _keep: Clusters,
    }

    impl Bench {
        pub(crate) fn new(configs: Vec<Cluster>) -> Self {
            let keep = Clusters::new(WorkerCount(1), None, Handle::current());
            let configs: Vec<_> = configs.into_iter().map(Arc::new).collect();
            let telemetry = Telemetry::new(WorkerCount(1));
            let handle = telemetry.stream_listener(&options(Duration::ZERO));
            Self { clusters: keep.link(&configs).into(), telemetry, handle, drainer: Drainer::default(), _keep: keep }
        }

        /// A client whose connection is served by `route`.
        async fn connect(&self, route: Option<L4Route>) -> (TcpStream, JoinHandle<()>) {
            let (client, server) = tcp::pair().await;
            (client, tokio::spawn(self.serve(server.into(), route)))
        }

        /// Serves one connection by `route`.
        pub(crate) fn serve(&self, io: Io, route: Option<L4Route>) -> impl Future<Output = ()> + use<> {
            let client = "192.0.2.1:5000".parse().expect("an address");
            let facts = ConnectionFacts {
                worker: WorkerId(0),
                local: "192.0.2.9:443".parse().expect("an address"),
                peer: client,
                client,
                tls: None,
                source: None,
                destination: None,
                listener: self.handle.clone(),
            };
            let stream = Stream {
                io,
                worker: WorkerId(0),
                facts: Arc::new(facts),
                handle: self.handle.clone(),
                metrics: None,
                options: options(Duration::from_secs(60)),
                drain: self.drainer.subscribe(),
                live: None,
            };
            let clusters = self.clusters.clone();
            async move { serve(stream, route.as_ref(), &clusters).await }
        }

        pub(crate) fn metrics(&self) -> String {
            self.telemetry.registry.encode(crate::telemetry::encode::Format::negotiate(None))
        }
    }

    async fn all(mut client: TcpStream, send: &[u8]) -> std::io::Result<String> {
        client.write_all(send).await?;
        client.shutdown().await?;
        let mut got = String::new();
        client.read_to_string(&mut got).await?;
        Ok(got)
    }

    #[tokio::test]
    async fn bytes_pass_and_are_counted() {
        let server = Server::echo("hi ").await;
        let bench = Bench::new(vec![config("default/db:5432", &[server.address])]);
        let (client, served) = bench.connect(Some(route([(1, Some(0))]))).await;
        assert_eq!(all(client, b"there").await.expect("an answer"), "hi there");
        served.await.expect("an end");
        let metrics = bench.metrics();
        for line in ["selvedge_stream_received_bytes_total{", "selvedge_stream_sent_bytes_total{"] {
            assert!(metrics.contains(line), "{metrics}");
        }
    }

    #[tokio::test]
    async fn another_endpoint_is_tried() {
        let server = Server::echo("").await;
        let dead = [tcp::closed_port().await, tcp::closed_port().await];
        let bench = Bench::new(vec![config("default/db:5432", &[dead[0], server.address, dead[1]])]);
        for _ in 0..10 {
            let (client, _served) = bench.connect(Some(route([(1, Some(0))]))).await;
            assert_eq!(all(client, b"x").await.expect("an answer"), "x");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_served_is_reset() {
        let bench =
            Bench::new(vec![config("default/db:5432", &[tcp::closed_port().await]), config("default/no:1", &[])]);
        for route in [None, Some(route([(1, None)])), Some(route([(1, Some(0))])), Some(route([(1, Some(1))]))] {
            let (client, served) = bench.connect(route).await;
            let error = all(client, b"").await.expect_err("a reset");
            assert!(matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::NotConnected | std::io::ErrorKind::BrokenPipe
            ));
            served.await.expect("an end");
        }
    }

    #[tokio::test]
    async fn weights_are_followed() {
        let (a, b) = (Server::echo("a").await, Server::echo("b").await);
        let bench = Bench::new(vec![config("default/a:1", &[a.address]), config("default/b:1", &[b.address])]);
        let mut hits = 0;
        for _ in 0..100 {
            let (client, _served) = bench.connect(Some(route([(80, Some(0)), (20, Some(1))]))).await;
            hits += u32::from(all(client, b"").await.expect("an answer") == "b");
        }
        // Outside of this once in ten million runs.
        assert!((2..=45).contains(&hits), "{hits}");
    }

    #[tokio::test]
    async fn the_client_is_announced() {
        let server = Server::echo("").await;
        let mut cluster = config("default/db:5432", &[server.address]);
        cluster.connections.proxy_protocol = Some(ProxyProtocolVersion::V1);
        let bench = Bench::new(vec![cluster]);
        let (client, _served) = bench.connect(Some(route([(1, Some(0))]))).await;
        let expected = "PROXY TCP4 192.0.2.1 192.0.2.9 5000 443\r\nx";
        assert_eq!(all(client, b"x").await.expect("an answer"), expected);
    }
}
