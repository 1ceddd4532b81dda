//! Clusters against real servers on loopback, and against virtual time where only timers matter.

mod auto;
mod checks;
mod swaps;

use super::*;
use crate::{
    codec::Service,
    drain::Drainer,
    health::Summary,
    outlier::Standing,
    resolve::{Found, Lookup},
};
use http::StatusCode;
use http_body_util::BodyExt;
use selvedge_compile::snapshot::{
    Check, Connections, Discovery, Endpoint, HealthCheck, HttpOptions, LoadBalancing, OutlierDetection,
    ProxyProtocolVersion, UpstreamProtocol,
};
use std::{
    collections::VecDeque,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::atomic::AtomicUsize,
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::Semaphore,
    task::{JoinHandle, yield_now},
    time::advance,
};

/// Answers `/` with "hello", `/wait` when a permit is there, `/status/N` with that status; and the gRPC health check.
struct Shop {
    requests: AtomicUsize,
    release: Semaphore,
}

impl Service for Shop {
    async fn call(&self, request: Request) -> Response {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let path = request.uri().path().to_owned();
        if path == "/wait" {
            self.release.acquire().await.expect("open").forget();
        }
        if path == "/grpc.health.v1.Health/Check" {
            return health(request).await;
        }
        let mut response = Response::new(Body::full("hello"));
        if let Some(status) = path.strip_prefix("/status/") {
            *response.status_mut() = status.parse::<StatusCode>().expect("a status");
        }
        response
    }

    fn rejected(&self, status: StatusCode, error: &Error) {
        panic!("the shop refused a request with {status}: {error}");
    }
}

/// Serving for the service "up", not for "down", unknown otherwise.
async fn health(request: Request) -> Response {
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let (answer, status) = match &body[5..] {
        b"\x0a\x02up" => (&b"\0\0\0\0\x02\x08\x01"[..], "0"),
        b"\x0a\x04down" => (&b"\0\0\0\0\x02\x08\x02"[..], "0"),
        _ => (&b""[..], "5"),
    };
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_str(status).expect("a number"),
    )]);
    let data = http_body_util::Full::new(bytes::Bytes::copy_from_slice(answer));
    let body = data.with_trailers(async move { Some(Ok(trailers)) }).map_err(|never| match never {});
    Response::new(Body::stream(body))
}

struct Server {
    address: SocketAddr,
    shop: Arc<Shop>,
    accepted: Arc<AtomicUsize>,
    drainer: Arc<Mutex<Drainer>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server(h2: bool) -> Server {
    // Nobody else's when the server is gone.
    let listener = TcpListener::bind(selvedge_testkit::selvedge::free_port()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let shop = Arc::new(Shop { requests: AtomicUsize::new(0), release: Semaphore::new(0) });
    let (accepted, drainer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Drainer::default())));
    let (service, count, drains) = (shop.clone(), accepted.clone(), drainer.clone());
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let (service, drain) = (service.clone(), drains.lock().unwrap().subscribe());
            tokio::spawn(async move {
                let options = HttpOptions::default();
                let _ = if h2 {
                    h2::serve(stream.into(), service, &options, drain).await
                } else {
                    h1::serve(stream.into(), service, &options, drain).await
                };
            });
        }
    });
    Server { address, shop, accepted, drainer, task }
}

impl Server {
    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Ends all connections of now in good order.
    async fn close_connections(&self) {
        let drainer = std::mem::take(&mut *self.drainer.lock().unwrap());
        drainer.start();
        drainer.done().await;
    }
}

fn config(addresses: &[SocketAddr]) -> Cluster {
    let endpoint = |address: &SocketAddr| Endpoint::new(*address);
    Cluster {
        key: "shop/cart:80".to_owned(),
        discovery: Discovery::Static(addresses.iter().map(endpoint).collect()),
        protocol: UpstreamProtocol::Http1,
        tls: None,
        identity: None,
        netns: Default::default(),
        load_balancing: LoadBalancing::default(),
        connections: Connections::default(),
        health_checks: Vec::new(),
        outlier_detection: None,
    }
}

fn clusters() -> Clusters {
    Clusters::new(WorkerCount(2), None, Handle::current())
}

fn link(clusters: &Clusters, config: &Cluster) -> Arc<LiveCluster> {
    clusters.link(&[Arc::new(config.clone())]).remove(0)
}

fn request(path: &str) -> Request {
    http::Request::builder().uri(path).header("host", "shop.example").body(Body::empty()).unwrap()
}

/// This endpoint, as if it had been picked now.
fn at(cluster: &LiveCluster, endpoint: &Arc<LiveEndpoint>) -> Picked {
    Picked { endpoint: endpoint.clone(), settings: cluster.settings() }
}

async fn get_from(cluster: &Arc<LiveCluster>, worker: usize, mut request: Request) -> Result<Response, SendFailure> {
    let endpoint = cluster.pick(&Pick::default()).expect("an endpoint");
    cluster.send(WorkerId(worker), &endpoint, &mut request).await
}

async fn hello(cluster: &Arc<LiveCluster>, worker: usize) {
    let response = get_from(cluster, worker, request("/")).await.expect("a response");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body, "hello");
}

/// Lets everything that can run do so, without time passing.
async fn settle() {
    for _ in 0..50 {
        yield_now().await;
    }
}

/// Yields to the reactor until the condition holds. For things that happen on the other side of a socket.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

#[test]
fn futures_are_send() {
    fn assert_send<T: Send>(_: T) {}
    fn all(cluster: Arc<LiveCluster>, endpoint: Picked, request: &mut Request) {
        assert_send(cluster.ready());
        assert_send(cluster.connect_raw(&endpoint, None));
        assert_send(cluster.send(WorkerId(0), &endpoint, request));
    }
    let _ = all;
}

#[tokio::test]
async fn connections_are_used_again_by_their_own_worker() {
    let server = server(false).await;
    let clusters = clusters();
    let cluster = link(&clusters, &config(&[server.address]));
    for _ in 0..3 {
        hello(&cluster, 0).await;
    }
    assert_eq!(server.accepted(), 1);
    hello(&cluster, 1).await;
    assert_eq!(server.accepted(), 2, "another worker");
    assert_eq!(cluster.counters.pool_hits.load(Ordering::Relaxed), 2);
    let status = cluster.status();
    assert_eq!((status.endpoints[0].connections, status.endpoints[0].idle_connections), (2, 2));
    assert_eq!((status.endpoints[0].active_requests, status.endpoints[0].requests), (0, 4));
    assert_eq!(status.limits.connections.used, 2);
    clusters.close_idle();
    assert_eq!(cluster.status().limits.connections.used, 0);
}

#[tokio::test]
async fn a_connection_that_the_peer_has_closed_is_never_handed_out() {
    let server = server(false).await;
    let clusters = clusters();
    let cluster = link(&clusters, &config(&[server.address]));
    hello(&cluster, 0).await;
    server.close_connections().await;
    // The server's side is gone; its FIN is in our socket before the connect below is answered.
    hello(&cluster, 0).await;
    assert_eq!((server.accepted(), cluster.counters.pool_hits.load(Ordering::Relaxed)), (2, 0));
}

#[tokio::test]
async fn requests_and_age_per_connection_are_limited() {
    let server = server(false).await;
    let clusters = clusters();
    let mut config = config(&[server.address]);
    config.connections.max_requests_per_connection = 2;
    let cluster = link(&clusters, &config);
    for _ in 0..4 {
        hello(&cluster, 0).await;
    }
    assert_eq!(server.accepted(), 2);
    config.connections.max_requests_per_connection = 0;
    config.connections.max_age = Duration::from_nanos(1);
    let cluster = link(&clusters, &config);
    for _ in 0..2 {
        hello(&cluster, 0).await;
    }
    assert_eq!(server.accepted(), 4, "too old at once");
    config.connections.max_age = Duration::ZERO;
    config.connections.idle_timeout = Duration::ZERO;
    let cluster = link(&clusters, &config);
    for _ in 0..2 {
        hello(&cluster, 0).await;
    }
    assert_eq!(server.accepted(), 6, "idle for too long at once");
}

#[tokio::test]
async fn a_fresh_connection_can_be_asked_for() {
    let server = server(false).await;
    let clusters = clusters();
    let cluster = link(&clusters, &config(&[server.address]));
    hello(&cluster, 0).await;
    let mut again = request("/");
    again.extensions_mut().insert(FreshConnection);
    get_from(&cluster, 0, again).await.unwrap();
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn at_the_limit_requests_wait_their_turn() {
    let server = server(false).await;
    let clusters = clusters();
    let mut config = config(&[server.address]);
    config.connections.max_connections = 1;
    config.connections.max_pending = 2;
    let cluster = link(&clusters, &config);
    let spawn = |path: &'static str, worker| {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            let response = get_from(&cluster, worker, request(path)).await?;
            response.into_body().collect().await.expect("a body");
            Ok::<_, SendFailure>(())
        })
    };
    let first = spawn("/wait", 0);
    until("the request arrives", || server.shop.requests.load(Ordering::SeqCst) == 1).await;
    let (same, other) = (spawn("/", 0), spawn("/", 1));
    until("both wait", || cluster.gate.waiting() == 2).await;
    let refused = spawn("/", 0).await.unwrap().unwrap_err();
    assert_eq!((refused.error.kind, refused.progress), (Kind::Overflow, Progress::Unsent));
    assert_eq!(
        refused.error.to_string(),
        "cluster shop/cart:80 has all of its 1 connections in use and 2 requests waiting for one"
    );
    server.shop.release.add_permits(1);
    for task in [first, same, other] {
        task.await.unwrap().unwrap();
    }
    assert_eq!(server.accepted(), 2, "one was used on by the same worker, the other worker opened its own");
    assert_eq!(cluster.status().limits.connections.used, 1);
    assert_eq!(cluster.status().limits.pending.refused, 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_connection_ends() {
    let gate = Gate::new();
    gate.set_limits(1, 10);
    let held = gate.try_open().unwrap();
    assert!(gate.try_open().is_none());
    let place = crate::gate::Place::nowhere();
    let error = gate.wait("shop/cart:80", place, Duration::from_secs(5), || {}).await.unwrap_err();
    assert_eq!(error.to_string(), "a request waited 5s for one of the 1 connections of cluster shop/cart:80");
    let (gate2, waiter) = (gate.clone(), gate.clone());
    let waiting = tokio::spawn(async move { waiter.wait("", place, Duration::from_secs(5), || {}).await });
    let abandoned = tokio::spawn(async move { gate2.wait("", place, Duration::from_secs(5), || {}).await });
    settle().await;
    assert_eq!(gate.waiting(), 2);
    drop(held);
    let granted = waiting.await.unwrap().unwrap();
    assert_eq!(gate.open(), 1);
    abandoned.abort();
    let _ = abandoned.await;
    drop(granted);
    assert_eq!(gate.open(), 0, "a grant to one who is gone is not lost");
    gate.set_limits(3, 10);
    assert_eq!((0..5).filter_map(|_| gate.try_open()).collect::<Vec<_>>().len(), 3);
}

/// Real threads: a wake-up lost between a worker that gives back and one that waits would time out here.
#[tokio::test]
async fn two_workers_share_a_tight_limit() {
    for h2 in [false, true] {
        let (one, two) = (server(h2).await, server(h2).await);
        let clusters = clusters();
        let mut config = config(&[one.address, two.address]);
        config.protocol = if h2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
        config.load_balancing.algorithm = Algorithm::RoundRobin;
        config.connections.max_connections = 3;
        config.connections.http2_max_streams = 2;
        let cluster = link(&clusters, &config);
        let work = |worker: usize| {
            let cluster = cluster.clone();
            tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut tasks = tokio::task::JoinSet::new();
                    for _ in 0..300 {
                        let cluster = cluster.clone();
                        tasks.spawn(async move { hello(&cluster, worker).await });
                    }
                    while let Some(done) = tasks.join_next().await {
                        done.unwrap();
                    }
                });
            })
        };
        let (first, second) = tokio::join!(work(0), work(1));
        first.unwrap();
        second.unwrap();
        let limits = cluster.limits();
        assert!(limits.connections.used <= 3, "{limits:?}");
        assert_eq!((limits.pending.used, limits.pending.refused), (0, 0));
        assert!(cluster.endpoints().iter().all(|endpoint| endpoint.active() == 0));
        clusters.close_idle();
    }
}

#[tokio::test]
async fn an_idle_connection_elsewhere_makes_room() {
    let (one, two) = (server(false).await, server(false).await);
    let clusters = clusters();
    let mut config = config(&[one.address, two.address]);
    config.connections.max_connections = 1;
    config.connections.max_pending = 0;
    let cluster = link(&clusters, &config);
    for endpoint in cluster.endpoints() {
        let response = cluster.send(WorkerId(0), &at(&cluster, &endpoint), &mut request("/")).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    assert_eq!((one.accepted(), two.accepted()), (1, 1));
    assert_eq!(cluster.status().limits.connections.used, 1);
}

#[tokio::test]
async fn a_request_given_up_frees_its_place() {
    let server = server(false).await;
    let clusters = clusters();
    let cluster = link(&clusters, &config(&[server.address]));
    let endpoint = cluster.pick(&Pick::default()).unwrap();
    let task = {
        let cluster = cluster.clone();
        tokio::spawn(async move { get_from(&cluster, 0, request("/wait")).await.map(drop) })
    };
    until("the request arrives", || server.shop.requests.load(Ordering::SeqCst) == 1).await;
    assert_eq!(endpoint.active(), 1);
    task.abort();
    let _ = task.await;
    assert_eq!((endpoint.active(), cluster.status().limits.connections.used), (0, 0));
}

#[tokio::test]
async fn http2_requests_share_a_connection() {
    let server = server(true).await;
    let clusters = clusters();
    let cluster = link(&clusters, &Cluster { protocol: UpstreamProtocol::Http2, ..config(&[server.address]) });
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move { get_from(&cluster, 0, request("/wait")).await.map(drop) })
        })
        .collect();
    until("all arrive", || server.shop.requests.load(Ordering::SeqCst) == 20).await;
    let endpoint = cluster.pick(&Pick::default()).unwrap();
    assert_eq!((server.accepted(), endpoint.active()), (1, 20));
    server.shop.release.add_permits(20);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(endpoint.active(), 0);
    hello(&cluster, 0).await;
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn full_http2_connections_get_company_up_to_the_limit() {
    let server = server(true).await;
    let clusters = clusters();
    let mut config = Cluster { protocol: UpstreamProtocol::Http2, ..config(&[server.address]) };
    config.connections.http2_max_streams = 2;
    config.connections.max_connections = 2;
    let cluster = link(&clusters, &config);
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let response = get_from(&cluster, 0, request("/wait")).await?;
                response.into_body().collect().await.expect("a body");
                Ok::<_, SendFailure>(())
            })
        })
        .collect();
    until("four are under way", || server.shop.requests.load(Ordering::SeqCst) == 4).await;
    until("two wait", || cluster.gate.waiting() == 2).await;
    assert_eq!(server.accepted(), 2);
    server.shop.release.add_permits(6);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn an_idle_http2_connection_makes_room_for_those_who_wait() {
    let (one, two) = (server(true).await, server(true).await);
    let clusters = clusters();
    let mut config = Cluster { protocol: UpstreamProtocol::Http2, ..config(&[one.address, two.address]) };
    config.connections.max_connections = 1;
    let cluster = link(&clusters, &config);
    let spawn = |address, path: &'static str| {
        let endpoint = cluster.endpoints().into_iter().find(|e| e.address == address).unwrap();
        let (cluster, endpoint) = (cluster.clone(), at(&cluster, &endpoint));
        tokio::spawn(async move { cluster.send(WorkerId(0), &endpoint, &mut request(path)).await.map(drop) })
    };
    let first = spawn(one.address, "/wait");
    until("the request arrives", || one.shop.requests.load(Ordering::SeqCst) == 1).await;
    let second = spawn(two.address, "/");
    until("the other waits", || cluster.gate.waiting() == 1).await;
    one.shop.release.add_permits(1);
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!((one.accepted(), two.accepted(), cluster.limits().connections.used), (1, 1, 1));
}

#[tokio::test]
async fn an_http2_connection_that_goes_away_is_replaced() {
    let server = server(true).await;
    let clusters = clusters();
    let cluster = link(&clusters, &Cluster { protocol: UpstreamProtocol::Http2, ..config(&[server.address]) });
    hello(&cluster, 0).await;
    server.close_connections().await;
    until("we have seen it", || cluster.limits().connections.used == 0).await;
    hello(&cluster, 0).await;
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn connections_that_carry_the_clients_address_are_not_shared() {
    let server = server(false).await;
    let clusters = clusters();
    let mut config = config(&[server.address]);
    config.connections.proxy_protocol = Some(ProxyProtocolVersion::V2);
    let cluster = link(&clusters, &config);
    let endpoint = cluster.pick(&Pick::default()).unwrap();
    let client = ClientAddress { source: "192.0.2.1:9".parse().unwrap(), destination: server.address };
    for _ in 0..2 {
        let (io, held) = cluster.connect_raw(&endpoint, Some(client)).await.unwrap();
        assert_eq!((cluster.limits().connections.used, endpoint.status().connections), (1, 1));
        drop((io, held));
    }
    until("both arrive", || server.accepted() == 2).await;
    assert_eq!(cluster.status().limits.connections.used, 0);
}

#[tokio::test]
async fn connect_failures_are_told_and_counted() {
    let server = server(false).await;
    let address = server.address;
    drop(server);
    settle().await;
    let clusters = clusters();
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let cluster = link(&clusters, &Cluster { protocol, ..config(&[address]) });
        let failure = get_from(&cluster, 0, request("/")).await.unwrap_err();
        assert_eq!((failure.error.kind, failure.progress), (Kind::Connect, Progress::Unsent), "{failure:?}");
        let (Usage { used, .. }, status) = (cluster.limits().connections, cluster.status());
        assert_eq!((used, status.endpoints[0].active_requests), (0, 0));
        assert!(cluster.counters.connect_failures.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test]
async fn a_reload_keeps_what_stays() {
    let (one, two) = (server(false).await, server(false).await);
    let clusters = clusters();
    let before = link(&clusters, &config(&[one.address, two.address]));
    let kept = before.endpoints().into_iter().find(|e| e.address == one.address).unwrap();
    let gone = before.endpoints().into_iter().find(|e| e.address == two.address).unwrap();
    for endpoint in [&kept, &gone] {
        let response = before.send(WorkerId(0), &at(&before, endpoint), &mut request("/")).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(before.limits().connections.used, 2);
    let after = link(&clusters, &config(&[one.address]));
    assert!(Arc::ptr_eq(&before, &after) && Arc::ptr_eq(&kept, &after.pick(&Pick::default()).unwrap()));
    assert!(gone.is_removed());
    assert_eq!(after.limits().connections.used, 1, "the idle connection of the one that left is closed");
    hello(&after, 0).await;
    assert_eq!(one.accepted(), 1);
    let mut other = config(&[one.address]);
    other.connections.proxy_protocol = Some(ProxyProtocolVersion::V1);
    link(&clusters, &other);
    let other = link(&clusters, &config(&[one.address]));
    hello(&other, 0).await;
    assert_eq!(one.accepted(), 2, "connections made under other settings are not used on");
    clusters.link(&[]);
    assert!(after.is_closed());
    assert_eq!(after.limits().connections.used, 0);
    let mut seen = 0;
    clusters.for_each(|_| seen += 1);
    assert_eq!(seen, 0);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_swept() {
    let server = server(false).await;
    let clusters = clusters();
    let mut config = config(&[server.address]);
    config.connections.idle_timeout = Duration::from_secs(5);
    let cluster = link(&clusters, &config);
    hello(&cluster, 0).await;
    advance(Duration::from_millis(4500)).await;
    settle().await;
    assert_eq!(cluster.limits().connections.used, 1);
    advance(Duration::from_secs(2)).await;
    settle().await;
    assert_eq!(cluster.limits().connections.used, 0);
}

#[tokio::test(start_paused = true)]
async fn an_outlier_is_ejected_and_proves_itself() {
    let clusters = clusters();
    let mut config = config(&["10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap()]);
    config.load_balancing.panic_threshold = 0;
    config.outlier_detection = Some(OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway_errors: 0,
        consecutive_local_failures: 0,
        success_rate: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_percent: 100,
    });
    let cluster = link(&clusters, &config);
    let (one, two) = (cluster.endpoints()[0].clone(), cluster.endpoints()[1].clone());
    let fail = |endpoint: &LiveEndpoint, outcome| {
        (0..3).for_each(|_| cluster.report(endpoint, outcome, Duration::from_millis(1)));
    };
    fail(&one, Outcome::Status(503));
    fail(&two, Outcome::Reset);
    assert_eq!((one.outlier.standing(), two.outlier.standing()), (Standing::Ejected, Standing::Active));
    assert_eq!(cluster.counters.ejections_spared.load(Ordering::Relaxed), 1, "never the last one");
    settle().await;
    assert_eq!(cluster.status().available, 1);
    assert_eq!(cluster.pick(&Pick::default()).unwrap().address, two.address);
    let state = serde_json::to_value(&cluster.status().endpoints[0].health).unwrap();
    assert_eq!(state["state"], "ejected");
    advance(Duration::from_secs(31)).await;
    settle().await;
    assert_eq!(cluster.pick(&Pick::default()).unwrap().address, one.address, "one request to prove itself");
    assert_eq!(cluster.pick(&Pick::default()).unwrap().address, two.address);
    cluster.report(&one, Outcome::Status(200), Duration::from_millis(1));
    settle().await;
    assert_eq!(cluster.status().available, 2);
    config.outlier_detection = None;
    fail(&one, Outcome::Status(503));
    assert_eq!(one.outlier.standing(), Standing::Ejected);
    link(&clusters, &config);
    assert_eq!(one.outlier.standing(), Standing::Active, "the detector is off");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_refuses_connections_is_spared_without_a_policy() {
    let clusters = clusters();
    let cluster = link(&clusters, &config(&["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()]));
    let all = cluster.endpoints();
    let (one, two) = (&all[0], &all[1]);
    let fail = |endpoint: &Arc<LiveEndpoint>, outcome| {
        (0..3).for_each(|_| cluster.report(endpoint, outcome, Duration::from_millis(1)));
    };
    for outcome in [Outcome::Timeout, Outcome::Reset, Outcome::Status(503)] {
        fail(one, outcome);
        assert_eq!(one.outlier.standing(), Standing::Active, "{outcome:?}");
    }
    fail(one, Outcome::ConnectFailure);
    assert_eq!(one.outlier.standing(), Standing::Ejected);
    fail(two, Outcome::ConnectFailure);
    assert_eq!(two.outlier.standing(), Standing::Active, "the last one stays");
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    assert_eq!(cluster.pick(&Pick::default()).unwrap().address, one.address, "one request to prove itself");
    cluster.report(one, Outcome::Status(200), Duration::from_millis(1));
    assert_eq!(one.outlier.standing(), Standing::Active);
}

#[tokio::test]
async fn limits_on_requests_retries_and_budget() {
    let clusters = clusters();
    let mut config = config(&["10.0.0.1:80".parse().unwrap()]);
    config.connections.max_requests = 1;
    config.connections.max_retries = 0;
    let cluster = link(&clusters, &config);
    let permit = cluster.start_request().unwrap();
    assert_eq!(cluster.start_request().unwrap_err().kind, Kind::Overflow);
    assert_eq!(cluster.start_retry().unwrap_err().kind, Kind::Overflow);
    drop(permit);
    assert!(cluster.start_request().is_ok());
    assert!(!cluster.budget_try(&RetryBudget { percent: 20, min_per_second: 0, min_concurrency: 0 }));
    assert!(cluster.budget_try(&RetryBudget { percent: 100, min_per_second: 0, min_concurrency: 0 }));
    let status = serde_json::to_value(cluster.status()).unwrap();
    assert_eq!(status["limits"]["requests"]["max"], 1);
    assert_eq!(status["endpoints"][0]["health"]["state"], "healthy");
}

#[derive(Default)]
struct Script(Mutex<VecDeque<Found>>);

impl Lookup for Script {
    fn lookup<'a>(&'a self, _: &'a str) -> Pin<Box<dyn Future<Output = Found> + Send + 'a>> {
        let next = self.0.lock().unwrap().pop_front();
        Box::pin(async move {
            match next {
                Some(found) => found,
                None => std::future::pending().await,
            }
        })
    }
}

#[tokio::test(start_paused = true)]
async fn names_are_resolved_again_and_kept_on_failure() {
    let ips = |list: &[&str]| list.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect::<Vec<_>>();
    let script = Script(Mutex::new(VecDeque::from([
        Err("SERVFAIL".to_owned()),
        Ok((ips(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]), Duration::from_secs(60))),
        Err("SERVFAIL".to_owned()),
        Ok((Vec::new(), Duration::ZERO)),
        Ok((ips(&["10.0.0.3", "10.0.0.1"]), Duration::ZERO)),
    ])));
    let clusters = Clusters::with_lookup(WorkerCount(1), None, Handle::current(), Arc::new(script));
    let discovery = Discovery::Dns { host: "cart.example".to_owned(), port: 8080 };
    let cluster = link(&clusters, &Cluster { discovery, ..config(&[]) });
    let addresses = || cluster.endpoints().iter().map(|e| e.address.to_string()).collect::<Vec<_>>();
    let message = || cluster.pick(&Pick::default()).unwrap_err().to_string();
    assert_eq!(message(), "cluster shop/cart:80 has no endpoints: cart.example is not resolved yet");
    cluster.ready().await;
    assert_eq!(message(), "cluster shop/cart:80 has no endpoints: cart.example cannot be resolved: SERVFAIL");
    advance(Duration::from_millis(1200)).await;
    settle().await;
    assert_eq!(addresses(), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let kept = cluster.endpoints()[0].clone();
    advance(Duration::from_secs(67)).await;
    settle().await;
    let dns = cluster.status().dns.unwrap();
    assert_eq!((addresses().len(), dns.error.as_deref()), (2, Some("SERVFAIL")));
    advance(Duration::from_millis(1200)).await;
    settle().await;
    assert_eq!(cluster.status().dns.unwrap().error.as_deref(), Some("the name has no addresses"));
    advance(Duration::from_millis(2400)).await;
    settle().await;
    assert_eq!(addresses(), ["10.0.0.1:8080", "10.0.0.3:8080"]);
    assert!(Arc::ptr_eq(&kept, &cluster.endpoints()[0]));
    assert_eq!(cluster.status().dns.unwrap().error, None);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_never_answers_is_waited_for_no_longer_than_a_connection() {
    let lookup = Arc::new(Script::default());
    let clusters = Clusters::with_lookup(WorkerCount(1), None, Handle::current(), lookup);
    let discovery = Discovery::Dns { host: "cart.example".to_owned(), port: 8080 };
    let cluster = link(&clusters, &Cluster { discovery, ..config(&[]) });
    let start = Instant::now();
    cluster.ready().await;
    assert_eq!(start.elapsed(), Connections::default().connect_timeout);
}

fn check(check: Check) -> HealthCheck {
    HealthCheck {
        check,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
        unhealthy_threshold: 2,
        healthy_threshold: 1,
        port: None,
    }
}

fn http_check(path: &str) -> Check {
    Check::Http {
        method: "GET".to_owned(),
        path: path.to_owned(),
        host: None,
        expected: vec![(200, 399)],
        headers: [("x-check".to_owned(), "1".to_owned())].into(),
    }
}

async fn first_result(config: &Cluster) -> Result<(), String> {
    let clusters = clusters();
    let cluster = link(&clusters, config);
    let endpoint = cluster.endpoints()[0].clone();
    until("the first result", || endpoint.health.summary() != Summary::Pending).await;
    endpoint.health.reason().map_or(Ok(()), Err)
}

#[tokio::test]
async fn checks_by_http_grpc_and_tcp() {
    let (one, two) = (server(false).await, server(true).await);
    let run = async |check_: Check, protocol, address| {
        let checks = vec![check(check_)];
        first_result(&Cluster { protocol, health_checks: checks, ..config(&[address]) }).await
    };
    let (http1, http2) = (UpstreamProtocol::Http1, UpstreamProtocol::Http2);
    for (protocol, address) in [(http1, one.address), (http2, two.address)] {
        assert_eq!(run(http_check("/"), protocol, address).await, Ok(()));
        assert_eq!(run(http_check("/status/302"), protocol, address).await, Ok(()));
        let failed = run(http_check("/status/503"), protocol, address).await;
        assert_eq!(failed, Err("GET /status/503 was answered with status 503".to_owned()));
        assert_eq!(run(Check::Tcp, protocol, address).await, Ok(()));
    }
    let grpc = |service: &str| Check::Grpc { service: service.to_owned() };
    assert_eq!(run(grpc("up"), http2, two.address).await, Ok(()));
    assert_eq!(run(grpc("up"), http1, two.address).await, Ok(()), "always HTTP/2");
    assert_eq!(run(grpc("down"), http2, two.address).await, Err("NOT_SERVING".to_owned()));
    let unknown = run(grpc("other"), http2, two.address).await.unwrap_err();
    assert_eq!(unknown, "the gRPC health service does not know the service \"other\"");
    let address = one.address;
    drop(one);
    settle().await;
    let refused = run(Check::Tcp, http1, address).await.unwrap_err();
    assert!(refused.starts_with(&format!("cannot connect to {address}: ")), "{refused}");
}

#[tokio::test]
async fn unhealthy_endpoints_are_left_out() {
    let good = server(false).await;
    let bad = selvedge_testkit::tcp::closed_port().await;
    let clusters = clusters();
    let mut config = config(&[good.address, bad]);
    config.load_balancing.panic_threshold = 0;
    config.health_checks = vec![check(Check::Tcp)];
    let cluster = link(&clusters, &config);
    let unhealthy = cluster.endpoints().into_iter().find(|e| e.address == bad).unwrap();
    until("it is found", || unhealthy.health.summary() == Summary::Unhealthy).await;
    for _ in 0..20 {
        assert_eq!(cluster.pick(&Pick::default()).unwrap().address, good.address);
    }
    config.health_checks.clear();
    link(&clusters, &config);
    assert_eq!(unhealthy.health.summary(), Summary::Healthy, "without checks nobody is unhealthy");
    assert_eq!(cluster.status().available, 2);
}
