//! Backends whose protocol is agreed on in the TLS handshake.

use super::*;
use crate::{
    endpoint::Protocol,
    tls::{Accepted, Acceptor, AppProtocol, Store},
};
use bytes::Bytes;
use selvedge_compile::{
    router::{HostMap, Router},
    snapshot::{
        CaBundle, Certificate, HttpListener, KeyDer, ListenerName, Termination, TlsListener, TlsMode, TlsVersion,
        Trust, UpstreamTls,
    },
};
use selvedge_testkit::certs::Ca;

fn acceptor(ca: &Ca, http2_enabled: bool) -> Acceptor {
    let leaf = ca.leaf(&["cart.example"]);
    let certificate = Arc::new(Certificate {
        secret: "shop/cart".to_owned(),
        fingerprint: String::new(),
        names: vec!["cart.example".to_owned()],
        not_before: 0,
        not_after: i64::MAX,
        chain: leaf.chain.clone(),
        key: Arc::new(KeyDer(leaf.key.clone_key())),
    });
    let name = ListenerName { kind: "Gateway", namespace: "shop".into(), name: "cart".into(), section: "https".into() };
    let http = Arc::new(HttpListener {
        name: name.clone(),
        hostname: None,
        access: None,
        router: Router::default(),
        options: Arc::new(HttpOptions { http2_enabled, ..HttpOptions::default() }),
        access_log: Vec::new(),
        tracing: None,
    });
    let tls = Termination { certificates: vec![certificate], client: None, min_version: TlsVersion::V1_2 };
    let mut hosts = HostMap::default();
    hosts.insert(None, Arc::new(TlsListener { name, hostname: None, mode: TlsMode::Http { tls, http } }));
    let (acceptor, problems) = Acceptor::new(&hosts, &Store::default());
    assert!(problems.is_empty(), "{problems:?}");
    acceptor
}

async fn tls_server(ca: &Ca, http2_enabled: bool) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shop = Arc::new(Shop { requests: AtomicUsize::new(0), release: Semaphore::new(0) });
    let (accepted, drainer) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Drainer::default())));
    let acceptor = Arc::new(acceptor(ca, http2_enabled));
    let (service, count, drains) = (shop.clone(), accepted.clone(), drainer.clone());
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let (service, acceptor) = (service.clone(), acceptor.clone());
            let drain = drains.lock().unwrap().subscribe();
            tokio::spawn(async move {
                let deadline = Instant::now() + Duration::from_secs(10);
                let Ok(Accepted::Terminated { io, session, .. }) = acceptor.accept(tcp, Bytes::new(), deadline).await
                else {
                    return;
                };
                let options = HttpOptions::default();
                let _ = match session.alpn {
                    Some(AppProtocol::Http2) => h2::serve((*io).into(), service, &options, drain).await,
                    _ => h1::serve((*io).into(), service, &options, drain).await,
                };
            });
        }
    });
    Server { address, shop, accepted, drainer, task }
}

fn tls_config(ca: &Ca, address: SocketAddr, protocol: UpstreamProtocol) -> Cluster {
    let bundle = CaBundle {
        origin: "ConfigMap shop/ca".to_owned(),
        fingerprint: format!("{:x}", xxhash_rust::xxh3::xxh3_128(&ca.der())),
        certificates: vec![ca.der()],
    };
    let tls = UpstreamTls {
        sni: "cart.example".to_owned(),
        trust: Trust::Roots(Arc::new(bundle)),
        subject_alt_names: Vec::new(),
        client_certificate: None,
    };
    Cluster { protocol, tls: Some(Arc::new(tls)), ..config(&[address]) }
}

/// Ten requests at once over a cluster that knows nothing yet.
async fn ten(cluster: &Arc<LiveCluster>, server: &Server) {
    server.shop.release.add_permits(10);
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let cluster = cluster.clone();
            tokio::spawn(async move { get_from(&cluster, 0, request("/wait")).await.map(drop) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn http2_is_found_out_and_shared() {
    let ca = Ca::new("test");
    let server = tls_server(&ca, true).await;
    let clusters = clusters();
    let cluster = link(&clusters, &tls_config(&ca, server.address, UpstreamProtocol::Auto));
    ten(&cluster, &server).await;
    assert_eq!((server.accepted(), cluster.endpoints()[0].protocol()), (1, Protocol::Http2));
    hello(&cluster, 0).await;
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn http1_is_found_out_and_remembered() {
    let ca = Ca::new("test");
    let server = tls_server(&ca, false).await;
    let clusters = clusters();
    let cluster = link(&clusters, &tls_config(&ca, server.address, UpstreamProtocol::Auto));
    ten(&cluster, &server).await;
    assert_eq!(cluster.endpoints()[0].protocol(), Protocol::Http1);
    assert_eq!(server.shop.requests.load(Ordering::SeqCst), 10);
    let before = server.accepted();
    hello(&cluster, 0).await;
    hello(&cluster, 0).await;
    assert!(server.accepted() <= before + 1);
}

#[tokio::test]
async fn untrusted_backends_get_nothing() {
    let ca = Ca::new("test");
    let server = tls_server(&ca, true).await;
    let clusters = clusters();
    let stranger = Ca::new("other");
    for protocol in [UpstreamProtocol::Auto, UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        let cluster = link(&clusters, &tls_config(&stranger, server.address, protocol));
        let failure = get_from(&cluster, 0, request("/")).await.unwrap_err();
        assert_eq!((failure.error.kind, failure.progress), (Kind::Tls, Progress::Unsent), "{failure:?}");
    }
    assert_eq!(server.shop.requests.load(Ordering::SeqCst), 0);
    let mut health = tls_config(&ca, server.address, UpstreamProtocol::Http2);
    health.health_checks = vec![check(Check::Grpc { service: "up".to_owned() })];
    assert_eq!(first_result(&health).await, Ok(()), "checks use the same TLS");
}

#[tokio::test]
async fn an_upgrade_goes_over_http1_whatever_was_agreed_on() {
    let ca = Ca::new("test");
    let server = tls_server(&ca, true).await;
    let clusters = clusters();
    let cluster = link(&clusters, &tls_config(&ca, server.address, UpstreamProtocol::Auto));
    hello(&cluster, 0).await;
    for _ in 0..2 {
        let mut upgrade = request("/");
        upgrade.extensions_mut().insert(crate::connect::Http1Only);
        let response = get_from(&cluster, 0, upgrade).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_11);
    }
    assert_eq!((server.accepted(), cluster.endpoints()[0].protocol()), (2, Protocol::Http2));
    hello(&cluster, 0).await;
    assert_eq!(server.accepted(), 2);
}
