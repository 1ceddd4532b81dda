//! An edge listener as a whole: a snapshot made by hand, a data plane that serves it, and raw sockets on both sides.

use selvedge_compile::{
    router::{Age, Entry, HostMap, Pattern, RouterBuilder},
    snapshot::{
        Action, Backend, Bind, Cluster, ClusterId, Connections, Discovery, Endpoint, EscapedSlashes, HttpListener,
        HttpOptions, Listener, ListenerName, LoadBalancing, Netns, Protocol, Rule, RuleName, Snapshot, SocketOptions,
        Split, Target, Timeouts, Transport, UpstreamProtocol,
    },
};
use selvedge_proxy::{
    endpoint::LiveEndpoint,
    proxy::{Proxy, Settings},
    worker::WorkerCount,
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
};

/// A data plane with one listener, whose one rule sends everything to `to`.
fn edge(to: SocketAddr, timeouts: Timeouts, options: HttpOptions) -> (Proxy, SocketAddr) {
    let cluster = Cluster {
        key: "shop/cart:80".to_owned(),
        discovery: Discovery::Static(vec![Endpoint::new(to)]),
        protocol: UpstreamProtocol::Http1,
        tls: None,
        identity: None,
        netns: Netns::default(),
        load_balancing: LoadBalancing::default(),
        connections: Connections::default(),
        health_checks: Vec::new(),
        outlier_detection: None,
    };
    let backend = Backend { weight: 1, target: Target::Cluster(ClusterId(0)), filters: Vec::new() };
    let name = "cart".to_owned();
    let mut router = RouterBuilder::default();
    let rule = router.rule(Arc::new(Rule {
        name: RuleName {
            kind: "HTTPRoute",
            namespace: "shop".into(),
            route: name.as_str().into(),
            index: 0,
            name: None,
        },
        grpc: false,
        filters: Vec::new(),
        action: Action::Forward(Split { backends: vec![backend], total: 1 }),
        timeouts,
        retry: None,
        hedging: None,
        session: None,
    }));
    let age = Age { created: String::new(), namespace: "shop".into(), name: "cart".into(), rule: 0, position: 0 };
    let path = Pattern::Prefix(String::new());
    let (method, headers, query, grpc_method) = (None, Vec::new(), Vec::new(), None);
    router.entry(None, Entry { path, method, headers, query, grpc_method, rule, age });
    let mut hosts = HostMap::default();
    let http = HttpListener {
        name: ListenerName { kind: "Gateway", namespace: "shop".into(), name: "edge".into(), section: "http".into() },
        hostname: None,
        router: router.build(),
        access: None,
        options: Arc::new(options),
        access_log: Vec::new(),
        tracing: None,
    };
    hosts.insert(None, Arc::new(http));
    let address = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let bind = Bind { address, port: 0, transport: Transport::Tcp, netns: Netns::default() };
    let mut snapshot = Snapshot { clusters: vec![Arc::new(cluster)], ..Snapshot::default() };
    let (options, protocol) = (SocketOptions::default(), Protocol::Http(hosts));
    snapshot.listeners.push(Arc::new(Listener { bind, options, protocol }));
    let settings = Settings { workers: WorkerCount(1), ..Settings::default() };
    let proxy = Proxy::start(&settings, Handle::current()).expect("a data plane");
    let problems = proxy.install(&snapshot);
    assert!(problems.is_empty(), "{problems:?}");
    let local = proxy.listeners()[0].local;
    (proxy, local)
}

fn endpoint(proxy: &Proxy) -> Arc<LiveEndpoint> {
    let mut found = None;
    proxy.shared().clusters.for_each(|cluster| found = cluster.endpoints().first().cloned());
    found.expect("an endpoint")
}

/// Sends this, and gives back what comes until the connection ends.
async fn ask(to: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.expect("an answer");
    String::from_utf8_lossy(&all).into_owned()
}

/// Takes connections and answers each request after so long; `None`: never.
async fn upstream(after: Option<Duration>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    match after {
                        Some(after) => tokio::time::sleep(after).await,
                        None => continue,
                    }
                    if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn times(request: Option<Duration>, stream_idle: Option<Duration>) -> Timeouts {
    Timeouts { request, stream_idle, ..Timeouts::default() }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_hears_of_the_request_timeout_it_caused() {
    let to = upstream(None).await;
    let (proxy, local) = edge(to, times(Some(Duration::from_secs(1)), None), HttpOptions::default());
    let answer = ask(local, GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert_eq!(endpoint(&proxy).counters.timeouts.load(Relaxed), 1);
    // What a client is in a hurry about says nothing of the endpoint: nobody may have it ejected that way.
    let hurried = "POST /a/b HTTP/1.1\r\nhost: shop.example\r\ncontent-type: application/grpc\r\ngrpc-timeout: 20m\r\n\
                   connection: close\r\ncontent-length: 0\r\n\r\n";
    let answer = ask(local, hurried).await;
    assert!(answer.contains("grpc-status: 4"), "{answer}");
    assert_eq!(endpoint(&proxy).counters.timeouts.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idle_timeout_of_a_route_holds_instead_of_the_listeners() {
    let (silent, slow) = (upstream(None).await, upstream(Some(Duration::from_millis(400))).await);
    let impatient = || HttpOptions {
        stream_idle_timeout: Duration::from_millis(100),
        request_timeout: Duration::ZERO,
        ..HttpOptions::default()
    };
    let (_proxy, local) = edge(silent, times(None, None), impatient());
    let answer = ask(local, GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    let (_proxy, local) = edge(slow, times(None, Some(Duration::from_secs(60))), impatient());
    let answer = ask(local, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_normal_form_of_a_path_leads_nowhere_else() {
    let to = upstream(Some(Duration::ZERO)).await;
    let escaped_slashes = EscapedSlashes::Redirect;
    let options = HttpOptions { merge_slashes: false, escaped_slashes, ..HttpOptions::default() };
    let (_proxy, local) = edge(to, times(None, None), options);
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n");
    let answer = ask(local, &get("/a%2fb")).await;
    assert!(answer.starts_with("HTTP/1.1 307 ") && answer.contains("location: /a/b\r\n"), "{answer}");
    let answer = ask(local, &get("/%2fevil.example/x")).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("location"), "{answer}");
}
