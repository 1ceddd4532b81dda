//! A request is served by one version of the configuration, whatever is installed meanwhile: listener, route, filters and
//! cluster of each version are told apart by what is seen on both sides.

use http::{HeaderName, HeaderValue, Method};
use selvedge_compile::{
    router::{Age, Entry, HostMap, Pattern, RouterBuilder},
    snapshot::{
        Action, Backend, Bind, Cluster, ClusterId, Connections, Discovery, Endpoint, Fault, FaultDelay, Filter,
        HeaderChange, HttpListener, HttpOptions, Listener, ListenerName, LoadBalancing, Netns, Protocol, Retry,
        RetryBudget, RetryOn, Rule, RuleName, Snapshot, SocketOptions, Split, Target, Timeouts, Transport,
        UpstreamProtocol,
    },
};
use selvedge_proxy::{
    proxy::{Proxy, Settings},
    worker::WorkerCount,
};
use selvedge_testkit::http1::{Answer, Connection};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Handle,
    sync::mpsc,
};

/// Versions that are installed one after the other, and more until a quarter of so many have served.
const VERSIONS: usize = 300;
/// Backends; a version uses one of them, at another place in its list of clusters than its neighbours.
const BACKENDS: usize = 4;
const CLIENTS: usize = 6;

fn set(name: &'static str, version: usize) -> HeaderChange {
    let value = HeaderValue::from_str(&version.to_string()).expect("a number");
    HeaderChange { set: vec![(HeaderName::from_static(name), value)], ..HeaderChange::default() }
}

fn cluster(number: usize, to: SocketAddr) -> Arc<Cluster> {
    Arc::new(Cluster {
        key: format!("shop/cart{number}:80"),
        discovery: Discovery::Static(vec![Endpoint::new(to)]),
        protocol: UpstreamProtocol::Http1,
        tls: None,
        identity: None,
        netns: Netns::default(),
        load_balancing: LoadBalancing::default(),
        connections: Connections::default(),
        health_checks: Vec::new(),
        outlier_detection: None,
    })
}

/// A header before and one after a pause, so that a version that is installed in between would show in the second.
fn rule(version: usize, cluster: usize) -> Rule {
    let name = RuleName {
        kind: "HTTPRoute",
        namespace: "shop".into(),
        route: format!("route-{version}"),
        index: 0,
        name: None,
    };
    let pause = FaultDelay { fixed: Duration::from_millis(version as u64 % 4), per_million: 1_000_000 };
    let backend = Backend {
        weight: 1,
        target: Target::Cluster(ClusterId(u32::try_from(cluster).expect("few"))),
        filters: vec![Filter::RequestHeaders(set("x-backend", version))],
    };
    Rule {
        name,
        grpc: false,
        filters: vec![
            Filter::RequestHeaders(set("x-before", version)),
            Filter::Fault(Fault { delay: Some(pause), abort: None }),
            Filter::RequestHeaders(set("x-after", version)),
            Filter::ResponseHeaders(set("x-answer", version)),
        ],
        action: Action::Forward(Split { backends: vec![backend], total: 1 }),
        timeouts: Timeouts::default(),
        retry: Some(Retry {
            attempts: 1,
            codes: vec![503],
            on: RetryOn::default(),
            methods: Some(vec![Method::GET]),
            per_try_timeout: None,
            backoff_base: Duration::from_millis(2),
            backoff_max: Duration::from_millis(4),
            budget: RetryBudget { percent: 100, min_per_second: 10_000, min_concurrency: 100 },
            max_body_bytes: 1024,
            grpc_codes: Vec::new(),
        }),
        hedging: None,
        session: None,
    }
}

fn snapshot(version: usize, bind: Bind, backends: &[SocketAddr]) -> Snapshot {
    let clusters = (0..BACKENDS).map(|place| (place + version / 3) % BACKENDS);
    let place = clusters.clone().position(|number| number == version % BACKENDS).expect("all are there");
    let mut router = RouterBuilder::default();
    // Rules of other hosts before it: the index of the rule differs from version to version, too.
    for other in 0..=version % 3 {
        let mut unused = rule(version, place);
        unused.name.route = format!("other-{other}");
        let number = router.rule(Arc::new(unused));
        entry(&mut router, "/other", number);
    }
    let number = router.rule(Arc::new(rule(version, place)));
    entry(&mut router, "", number);
    let options = HttpOptions { server_header: version % 2 == 1, ..HttpOptions::default() };
    let section = format!("http-{version}");
    let http = HttpListener {
        name: ListenerName { kind: "Gateway", namespace: "shop".into(), name: "edge".into(), section },
        hostname: None,
        router: router.build(),
        access: None,
        options: Arc::new(options),
        access_log: Vec::new(),
        tracing: None,
    };
    let mut hosts = HostMap::default();
    hosts.insert(None, Arc::new(http));
    let clusters = clusters.map(|number| cluster(number, backends[number])).collect();
    let listener = Listener { bind, options: SocketOptions::default(), protocol: Protocol::Http(hosts) };
    Snapshot { clusters, listeners: vec![Arc::new(listener)], ..Snapshot::default() }
}

fn entry(router: &mut RouterBuilder, prefix: &str, rule: u32) {
    let age = Age { created: String::new(), namespace: "shop".into(), name: "cart".into(), rule, position: 0 };
    let path = Pattern::Prefix(prefix.to_owned());
    let (method, headers, query, grpc_method) = (None, Vec::new(), Vec::new(), None);
    router.entry(None, Entry { path, method, headers, query, grpc_method, rule, age });
}

/// Tells which backend it is and what it was sent. Every third answer is a 503, for which the request is tried again.
async fn backend(number: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicU64::new(0));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                loop {
                    while !head.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let text = String::from_utf8_lossy(&head).into_owned();
                    let header = |name: &str| {
                        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                        line.unwrap_or("none").to_owned()
                    };
                    let body = format!("{number} {} {} {}", header("x-before"), header("x-after"), header("x-backend"));
                    let status = if count.fetch_add(1, Relaxed).is_multiple_of(3) {
                        "503 Service Unavailable"
                    } else {
                        "200 OK"
                    };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    head.clear();
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The version of an answer, which all of it must be of.
fn version(answer: &Answer) -> Result<usize, String> {
    let told = format!("{} {:?} {}", answer.status, answer.headers, answer.body);
    let mut parts = answer.body.split(' ').map(str::parse::<usize>);
    let (Some(Ok(backend)), Some(Ok(before)), Some(Ok(after)), Some(Ok(of_backend))) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(format!("not the backend's: {told}"));
    };
    let answered = answer.header("x-answer").and_then(|v| v.parse().ok());
    let listener = usize::from(answer.header("server").is_some());
    let one = after == before && of_backend == before && answered == Some(before);
    match one && backend == before % BACKENDS && listener == before % 2 {
        true => Ok(before),
        false => Err(format!("of several versions: {told}")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_served_by_one_version() {
    let mut backends = Vec::new();
    for number in 0..BACKENDS {
        backends.push(backend(number).await);
    }
    let address = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let bind = Bind { address, port: 0, transport: Transport::Tcp, netns: Netns::default() };
    let settings = Settings { workers: WorkerCount(2), ..Settings::default() };
    let proxy = Proxy::start(&settings, Handle::current()).expect("a data plane");
    assert!(proxy.install(&snapshot(0, bind, &backends)).is_empty());
    let front = proxy.listeners()[0].local;
    let (done, mut answers) = mpsc::channel(CLIENTS);
    for _ in 0..CLIENTS {
        let done = done.clone();
        tokio::spawn(async move {
            let mut connection = Connection::open(front).await.expect("a connection");
            loop {
                let answer = connection.get("shop.example", "/").await;
                if done.send(answer).await.is_err() {
                    return;
                }
            }
        });
    }
    let mut seen = std::collections::BTreeSet::new();
    for installed in 1.. {
        if installed > VERSIONS && seen.len() > VERSIONS / 4 {
            break;
        }
        assert!(installed < 10 * VERSIONS, "only {} versions have served", seen.len());
        // Requests are at all places of their lives: answers come as they do.
        for _ in 0..1 + installed % 4 {
            let answer = answers.recv().await.expect("clients go on").expect("an answer");
            let version = version(&answer).unwrap_or_else(|why| panic!("{why}"));
            assert!(version < installed, "{version} before it was installed");
            seen.insert(version);
        }
        assert!(proxy.install(&snapshot(installed, bind, &backends)).is_empty());
    }
}
