//! Connections to a workload: mutual TLS, clear text, and tunnels.

use crate::support::{Make, at, counted, exchange, id, identities, install, metrics, request, start, until};
use bytes::Bytes;
use selvedge_compile::snapshot::{Access, Arrive, DefaultAccess, MtlsMode, Speaks, alpn};
use selvedge_identity::{Expect, Identities};
use selvedge_proxy::proxy::{Proxy, Settings};
use selvedge_testkit::tcp::{Server, closed_port};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Where the listeners are; the port they stand for is in the middle.
const PERMISSIVE: &str = "127.0.0.3";
const AUDIT: &str = "127.0.0.4";
const STRICT: &str = "127.0.0.5";
const TUNNELS: &str = "127.0.0.6";
const BYTES: &str = "127.0.0.7";

/// Answers each connection's first request with the head of that request.
async fn mirror() -> Server {
    Server::tcp(|mut stream| async move {
        let head = until(&mut stream, "\r\n\r\n").await;
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

/// Greets its clients, and says what they say. While it may not speak first it greets who has said something.
async fn mail(may_speak: watch::Receiver<bool>) -> Server {
    Server::tcp(move |mut stream| {
        let mut may_speak = may_speak.clone();
        async move {
            tokio::select! {
                _ = may_speak.wait_for(|may| *may) => {}
                _ = stream.readable() => {}
            }
            if stream.write_all(b"220 mail\r\n").await.is_ok() {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            }
        }
    })
    .await
}

struct World {
    proxy: Proxy,
    identities: Arc<Identities>,
    /// Whether the server at [`BYTES`] may speak first. A client that is slow to begin (10 ms) is taken for one that waits
    /// for it.
    speaks: watch::Sender<bool>,
    /// Servers run while this is here.
    _servers: [Server; 2],
    log: std::path::PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.log);
    }
}

async fn world(name: &str) -> World {
    let (speaks, may_speak) = watch::channel(true);
    let (app, mail) = (mirror().await, mail(may_speak).await);
    let identities = identities(&["cart", "web"]);
    let proxy = start(Settings { identities: identities.clone(), ..Settings::default() });
    let log = std::env::temp_dir().join(format!("selvedge-mesh-{name}-{}.log", std::process::id()));
    let mut make = Make::default();
    make.log_to(log.to_str().expect("a path"));
    let own = || Some(id("cart"));
    for (address, mode) in [(PERMISSIVE, MtlsMode::Permissive), (AUDIT, MtlsMode::Audit), (STRICT, MtlsMode::Strict)] {
        let ports = BTreeMap::from([(80, make.port(Speaks::Http, mode, app.address))]);
        let inbound = make.inbound(Arrive::Port(80), own(), Vec::new(), ports, make.other(mode));
        make.listen(address.parse().ok(), 0, inbound);
    }
    let undeclared = make.port(Speaks::Undeclared, MtlsMode::Permissive, mail.address);
    let ports = BTreeMap::from([(25, undeclared)]);
    let inbound = make.inbound(Arrive::Port(25), own(), Vec::new(), ports, make.other(MtlsMode::Permissive));
    make.listen(BYTES.parse().ok(), 0, inbound);
    let mode = MtlsMode::Strict;
    let ports = BTreeMap::from([
        (80, make.port(Speaks::Http, mode, app.address)),
        (25, make.port(Speaks::Tcp, mode, mail.address)),
        (26, make.port(Speaks::Tcp, mode, closed_port().await)),
    ]);
    let addresses = vec!["10.1.2.3".parse().expect("an address"), "127.0.0.1".parse().expect("an address")];
    let inbound = make.inbound(Arrive::Hbone, own(), addresses, ports, make.other(mode));
    make.listen(TUNNELS.parse().ok(), 0, inbound);
    install(&proxy, make);
    World { proxy, identities, speaks, _servers: [app, mail], log }
}

impl World {
    async fn tls(&self, to: &str, protocol: &[u8]) -> TlsStream<TcpStream> {
        let expect = Expect::Exactly(id("cart"));
        let config = self.identities.client_config(&id("web"), &expect, &[protocol]).expect("a configuration");
        let tcp = TcpStream::connect(at(&self.proxy, to)).await.expect("a connection");
        let name = "127.0.0.1".try_into().expect("a name");
        TlsConnector::from(config).connect(name, tcp).await.expect("a handshake")
    }

    /// Waits until the access log has a line with all of these.
    async fn logged(&self, parts: &[&str]) {
        for _ in 0..6000 {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            if text.lines().any(|line| parts.iter().all(|part| line.contains(part))) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{parts:?} is not in {}", std::fs::read_to_string(&self.log).unwrap_or_default());
    }
}

const GET: &str = "GET /path HTTP/1.1\r\nhost: any\r\nx-forwarded-client-cert: URI=spiffe://evil/\r\n\
    x-forwarded-for: 192.0.2.7\r\nconnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls_says_who_called() {
    let world = world("mutual").await;
    for address in [PERMISSIVE, AUDIT, STRICT] {
        let mut stream = world.tls(address, alpn::MUTUAL_TLS).await;
        stream.write_all(GET.as_bytes()).await.expect("write");
        let mut answer = String::new();
        // The end comes with the answer.
        let _ = stream.read_to_string(&mut answer).await;
        let xfcc = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/shop/sa/cart;URI=spiffe://cluster.local/ns/shop/sa/web\r\n";
        assert!(answer.contains(xfcc) && !answer.contains("evil"), "{answer}");
        assert!(answer.contains("x-forwarded-for: 192.0.2.7\r\n"), "{answer}");
    }
    let source = "\"source_principal\":\"spiffe://cluster.local/ns/shop/sa/web\"";
    let destination = "\"destination_principal\":\"spiffe://cluster.local/ns/shop/sa/cart\"";
    world.logged(&[source, destination, "\"path\":\"/path\"", "\"tls_version\":\"TLSv1.3\""]).await;
    let line = "selvedge_mesh_connections_total{listener=\"shop/cart/inbound\",security=\"mutual_tls\"} 3";
    assert!(counted(&world.proxy, line), "{}", metrics(&world.proxy));
    assert!(!metrics(&world.proxy).contains("\nselvedge_mtls_audit_total"), "{}", metrics(&world.proxy));
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_text_is_served_told_of_or_refused() {
    let world = world("clear").await;
    let proxy = &world.proxy;
    for address in [PERMISSIVE, AUDIT] {
        let mut stream = TcpStream::connect(at(proxy, address)).await.expect("a connection");
        stream.write_all(GET.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(!answer.contains("x-forwarded-client-cert"), "{answer}");
    }
    assert!(counted(proxy, "selvedge_mtls_audit_total{listener=\"shop/cart/inbound\"} 1"), "{}", metrics(proxy));
    for words in [GET, "\x16\x03\x01", "SSH-2.0-x\r\n"] {
        exchange(at(proxy, STRICT), words).await.expect_err("a reset");
    }
    let line = "selvedge_mesh_refused_total{listener=\"shop/cart/inbound\",reason=\"clear_text\"} 3";
    assert!(counted(proxy, line), "{}", metrics(proxy));
    world.logged(&["\"flags\":\"CT\"", "mtls mode Strict"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_speak_first_are_heard_with_and_without_tls() {
    let world = world("first").await;
    let mut clear = TcpStream::connect(at(&world.proxy, BYTES)).await.expect("a connection");
    until(&mut clear, "220 mail\r\n").await;
    world.speaks.send_replace(false);
    let mut stream = world.tls(BYTES, alpn::MUTUAL_TLS).await;
    world.speaks.send_replace(true);
    let mut greeting = [0; 10];
    stream.read_exact(&mut greeting).await.expect("a greeting");
    assert_eq!(&greeting, b"220 mail\r\n");
    world.speaks.send_replace(false);
    // TLS of the application is for the application.
    let hello = "\x16\x03\x01\0\x04\x01\0\0\0";
    assert_eq!(exchange(at(&world.proxy, BYTES), hello).await.expect("an echo"), format!("220 mail\r\n{hello}"));
    // HTTP on the same port is seen as such: the server's greeting is no answer to a request.
    let answer = request(at(&world.proxy, BYTES), "/", "any").await;
    assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
}

async fn tunnel(
    send: &mut h2::client::SendRequest<Bytes>,
    to: &str,
) -> (http::StatusCode, h2::SendStream<Bytes>, h2::RecvStream) {
    let mut request = http::Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = to.parse().expect("an authority");
    let (response, stream) = send.send_request(request, false).expect("a stream");
    let response = response.await.expect("an answer");
    (response.status(), stream, response.into_body())
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_lead_to_the_workload_and_nowhere_else() {
    let world = world("tunnels").await;
    let tls = world.tls(TUNNELS, alpn::HBONE).await;
    let (mut send, connection) = h2::client::handshake(tls).await.expect("a handshake");
    let connection = tokio::spawn(connection);
    let (status, mut stream, mut answer) = tunnel(&mut send, "10.1.2.3:80").await;
    assert_eq!(status, 200);
    stream.send_data(GET.into(), false).expect("data");
    let mut text = Vec::new();
    while let Some(Ok(data)) = answer.data().await {
        text.extend_from_slice(&data);
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("URI=spiffe://cluster.local/ns/shop/sa/web\r\n"), "{text}");
    let (status, _stream, mut mail) = tunnel(&mut send, "10.1.2.3:25").await;
    assert_eq!(status, 200);
    assert_eq!(mail.data().await.expect("a greeting").expect("a greeting"), "220 mail\r\n");
    // The application is down, which the client is told before it believes to be connected.
    assert_eq!(tunnel(&mut send, "10.1.2.3:26").await.0, 503);
    let proxy = &world.proxy;
    for wrong in ["10.1.2.4:80", "169.254.169.254:80", "localhost:80"] {
        assert_eq!(tunnel(&mut send, wrong).await.0, 400, "{wrong}");
    }
    let line = "selvedge_mesh_refused_total{listener=\"shop/cart/inbound\",reason=\"tunnel_target\"} 3";
    assert!(counted(proxy, line), "{}", metrics(proxy));
    // Draining: the peer is told, the silent tunnel ends before it would be cut, and nothing is left.
    assert_eq!(proxy.drain(Duration::from_secs(30)).await.cut, 0);
    let _ = connection.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_sees_nothing_of_whom_it_does_not_let_in() {
    let (seen, accepted) = (Arc::new(AtomicUsize::new(0)), Server::echo("220 mail\r\n").await);
    let counter = seen.clone();
    let app = Server::tcp(move |_stream| {
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::ready(())
    })
    .await;
    let proxy = start(Settings::default());
    let snapshot = |default, app| {
        let mut make = Make { access: Access { default, ..Access::default() }, ..Make::default() };
        let ports = BTreeMap::from([(25, make.port(Speaks::Undeclared, MtlsMode::Permissive, app))]);
        let inbound = make.inbound(Arrive::Port(25), None, Vec::new(), ports, make.other(MtlsMode::Permissive));
        make.listen(BYTES.parse().ok(), 0, inbound);
        make
    };
    install(&proxy, snapshot(DefaultAccess::Deny, app.address));
    for words in ["", "\x16\x03\x01\0", "HELO\r\n"] {
        exchange(at(&proxy, BYTES), words).await.expect_err("a reset");
    }
    assert_eq!(seen.load(Ordering::Relaxed), 0);
    // A connection that is open is cut when it is no longer allowed.
    install(&proxy, snapshot(DefaultAccess::Allow, accepted.address));
    let mut stream = TcpStream::connect(at(&proxy, BYTES)).await.expect("a connection");
    until(&mut stream, "220 mail\r\n").await;
    install(&proxy, snapshot(DefaultAccess::Deny, accepted.address));
    let end = stream.read(&mut [0; 8]).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_no_longer_accepted_is_cut() {
    let world = world("revoked").await;
    world.speaks.send_replace(false);
    let mut stream = world.tls(BYTES, alpn::MUTUAL_TLS).await;
    world.speaks.send_replace(true);
    let mut greeting = [0; 10];
    stream.read_exact(&mut greeting).await.expect("a greeting");
    // Other roots take the place of those that the peer's certificate comes from.
    let others = identities(&["other"]);
    world.identities.set_bundles((*others.bundles()).clone());
    let end = stream.read(&mut greeting).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}
