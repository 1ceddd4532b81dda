//! Server and client against each other and against bare rustls, over loopback.

use super::*;
use crate::{
    Error,
    error::Kind,
    l4::{self, tests::Bench},
};
use bytes::Bytes;
use rustls::{ClientConfig, RootCertStore, version::TLS12};
use rustls_pki_types::ServerName;
use selvedge_compile::{
    router::{HostMap, Router},
    snapshot::{
        CaBundle, Certificate, CertificateRef, ClientValidation, HttpListener, HttpOptions, KeyDer, L4Options,
        ListenerName, SubjectAltName, Termination, TlsListener, TlsMode, TlsVersion, Trust, UpstreamTls,
    },
};
use selvedge_testkit::{
    certs::{Ca, Leaf, Spec},
    tcp,
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

fn certificate(leaf: &Leaf, names: &[&str]) -> CertificateRef {
    Arc::new(Certificate {
        secret: format!("default/{}", names.first().unwrap_or(&"client")),
        fingerprint: format!("{:x}", xxhash_rust::xxh3::xxh3_128(&leaf.chain[0])),
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        not_before: 0,
        not_after: i64::MAX,
        chain: leaf.chain.clone(),
        key: Arc::new(KeyDer(leaf.key.clone_key())),
    })
}

fn issued(ca: &Ca, names: &[&str]) -> CertificateRef {
    certificate(&ca.leaf(names), names)
}

fn bundle(ca: &Ca) -> Arc<CaBundle> {
    let der = ca.der();
    let fingerprint = format!("{:x}", xxhash_rust::xxh3::xxh3_128(&der));
    Arc::new(CaBundle { origin: "ConfigMap default/ca".to_owned(), fingerprint, certificates: vec![der] })
}

fn name(section: &str) -> ListenerName {
    ListenerName { kind: "Gateway", namespace: "default".into(), name: "edge".into(), section: section.into() }
}

fn http(
    hostname: Option<&str>,
    certificates: Vec<CertificateRef>,
    client: Option<ClientValidation>,
) -> Arc<TlsListener> {
    let name = name(hostname.unwrap_or("any"));
    let http = Arc::new(HttpListener {
        name: name.clone(),
        hostname: hostname.map(str::to_owned),
        access: None,
        router: Router::default(),
        options: Arc::new(HttpOptions::default()),
        access_log: Vec::new(),
        tracing: None,
    });
    let tls = Termination { certificates, client, min_version: TlsVersion::V1_2 };
    Arc::new(TlsListener { name, hostname: hostname.map(str::to_owned), mode: TlsMode::Http { tls, http } })
}

fn passthrough(hostname: &str) -> Arc<TlsListener> {
    let options =
        L4Options { name: name("pass"), idle_timeout: Duration::from_secs(60), access: None, access_log: Vec::new() };
    let mode = TlsMode::Passthrough { routes: HostMap::default(), listener: Arc::new(options) };
    Arc::new(TlsListener { name: name("pass"), hostname: Some(hostname.to_owned()), mode })
}

fn hosts(listeners: impl IntoIterator<Item = Arc<TlsListener>>) -> HostMap<Arc<TlsListener>> {
    let mut hosts = HostMap::default();
    for listener in listeners {
        let hostname = listener.hostname.clone();
        hosts.insert(hostname.as_deref(), listener);
    }
    hosts
}

fn acceptor(listeners: impl IntoIterator<Item = Arc<TlsListener>>) -> Acceptor {
    let (acceptor, problems) = Acceptor::new(&hosts(listeners), &Store::default());
    assert!(problems.is_empty(), "{problems:?}");
    acceptor
}

/// For HTTP, with a certificate of this CA.
pub(crate) fn server(leaf: &Leaf, names: &[&str]) -> Acceptor {
    acceptor([http(None, vec![certificate(leaf, names)], None)])
}

fn upstream(ca: &Ca, sni: &str) -> UpstreamTls {
    UpstreamTls {
        sni: sni.to_owned(),
        trust: Trust::Roots(bundle(ca)),
        subject_alt_names: Vec::new(),
        client_certificate: None,
    }
}

struct Served {
    io: ServerStream,
    session: Session,
    listener: Arc<TlsListener>,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn serve(acceptor: &Acceptor, tcp: TcpStream) -> Result<Served, Error> {
    match acceptor.accept(tcp, Bytes::new(), soon()).await? {
        Accepted::Terminated { io, listener, session } => Ok(Served { io: *io, session, listener }),
        Accepted::Passthrough { .. } => panic!("not a passthrough listener"),
    }
}

/// A handshake between our two sides, with a byte each way so that TLS 1.3 client certificates are judged and
/// tickets arrive.
async fn handshake(
    acceptor: &Acceptor,
    connector: &Connector,
) -> (Result<Served, Error>, Result<(ClientStream, Negotiated), Error>) {
    let (client, server) = tcp::pair().await;
    let server = async {
        let mut served = serve(acceptor, server).await?;
        served.io.write_all(b"!").await.map_err(|e| Error::downstream(Kind::Reset, "write").with_source(e))?;
        Ok(served)
    };
    let client = async {
        let (mut io, negotiated) = connector.connect(client).await?;
        let mut byte = [0];
        io.read_exact(&mut byte).await.map_err(|e| Error::upstream(Kind::Reset, "read").with_source(e))?;
        Ok((io, negotiated))
    };
    tokio::join!(server, client)
}

async fn succeed(acceptor: &Acceptor, connector: &Connector) -> (Served, ClientStream, Negotiated) {
    let (server, client) = handshake(acceptor, connector).await;
    let (stream, negotiated) = client.expect("client");
    (server.expect("server"), stream, negotiated)
}

fn leaf_of(stream: &ClientStream) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().expect("a chain")[0].to_vec()
}

#[tokio::test]
async fn post_quantum_http2_and_resumption() {
    let ca = Ca::new("root");
    let acceptor = acceptor([http(Some("shop.example"), vec![issued(&ca, &["shop.example"])], None)]);
    let connector = Connector::new(&upstream(&ca, "shop.example"), Alpn::Both).expect("connector");
    let (served, client, negotiated) = succeed(&acceptor, &connector).await;
    assert!(negotiated.h2);
    assert_eq!(served.session.alpn, Some(AppProtocol::Http2));
    assert_eq!(served.session.sni.as_deref(), Some("shop.example"));
    assert_eq!(served.session.version, "TLSv1.3");
    assert_eq!(served.session.group, Some("X25519MLKEM768"));
    assert_eq!(
        client.get_ref().1.negotiated_key_exchange_group().map(|g| g.name()),
        Some(rustls::NamedGroup::X25519MLKEM768)
    );
    assert!(!served.session.resumed);
    assert!(served.session.peer.is_none());
    let (served, ..) = succeed(&acceptor, &connector).await;
    assert!(served.session.resumed, "the second connection resumes");
}

#[tokio::test]
async fn sni_picks_the_listener() {
    let ca = Ca::new("root");
    let exact = issued(&ca, &["a.shop.example"]);
    let wild = issued(&ca, &["*.shop.example"]);
    let any = issued(&ca, &["other.example"]);
    let acceptor = acceptor([
        http(Some("a.shop.example"), vec![exact.clone()], None),
        http(Some("*.shop.example"), vec![wild.clone()], None),
        http(None, vec![any.clone()], None),
    ]);
    for (sni, listener, certificate) in [
        ("a.shop.example", Some("a.shop.example"), &exact),
        ("b.shop.example", Some("*.shop.example"), &wild),
        ("other.example", None, &any),
    ] {
        let connector = Connector::new(&upstream(&ca, sni), Alpn::Http1).expect("connector");
        let (served, client, negotiated) = succeed(&acceptor, &connector).await;
        assert_eq!(served.listener.hostname.as_deref(), listener, "{sni}");
        assert_eq!(leaf_of(&client), certificate.chain[0].to_vec(), "{sni}");
        assert!(!negotiated.h2);
        assert_eq!(served.session.alpn, Some(AppProtocol::Http1));
    }
}

#[tokio::test]
async fn unknown_names_are_refused() {
    let ca = Ca::new("root");
    let acceptor = acceptor([http(Some("a.example"), vec![issued(&ca, &["a.example", "b.example"])], None)]);
    let connector = Connector::new(&upstream(&ca, "b.example"), Alpn::Both).expect("connector");
    let (server, client) = handshake(&acceptor, &connector).await;
    let message = server.map(|_| ()).expect_err("refused").to_string();
    assert!(message.contains("no listener for the server name b.example"), "{message}");
    let message = client.map(|_| ()).expect_err("refused").to_string();
    assert!(message.contains("UnrecognizedName") || message.contains("UnrecognisedName"), "{message}");
    // An address is never sent as SNI.
    let connector = Connector::new(&upstream(&ca, "127.0.0.1"), Alpn::Both).expect("connector");
    let (server, _) = handshake(&acceptor, &connector).await;
    let message = server.map(|_| ()).expect_err("refused").to_string();
    assert!(message.contains("sent no server name"), "{message}");
}

fn plain_client(ca: &Ca, change: impl FnOnce(&mut rustls::crypto::CryptoProvider)) -> tokio_rustls::TlsConnector {
    plain_client_with(ca, &[&TLS12, &rustls::version::TLS13], change)
}

fn plain_client_with(
    ca: &Ca,
    versions: &[&'static rustls::SupportedProtocolVersion],
    change: impl FnOnce(&mut rustls::crypto::CryptoProvider),
) -> tokio_rustls::TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der()).expect("a root");
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    change(&mut provider);
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config).into()
}

fn server_name(name: &str) -> ServerName<'static> {
    ServerName::try_from(name.to_owned()).expect("a name")
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_key_type() {
    let ca = Ca::new("root");
    let ecdsa = issued(&ca, &["a.example"]);
    let rsa = certificate(&ca.issue(&Spec::dns(&["a.example"]).rsa()), &["a.example"]);
    let other = issued(&ca, &["*.b.example"]);
    let acceptor = acceptor([http(None, vec![other.clone(), ecdsa.clone(), rsa.clone()], None)]);
    let only_rsa = |provider: &mut rustls::crypto::CryptoProvider| {
        let suite = |s: &rustls::SupportedCipherSuite| s.suite().as_str().is_some_and(|n| n.contains("_RSA_"));
        provider.cipher_suites.retain(suite);
        let mapping = provider.signature_verification_algorithms.mapping;
        let rsa: Vec<_> =
            mapping.iter().copied().filter(|(scheme, _)| format!("{scheme:?}").starts_with("RSA")).collect();
        provider.signature_verification_algorithms.mapping = rsa.leak();
    };
    let tls12: &[&'static rustls::SupportedProtocolVersion] = &[&TLS12];
    for (sni, client, expected, version) in [
        ("a.example", plain_client(&ca, |_| ()), &ecdsa, "TLSv1.3"),
        ("x.b.example", plain_client(&ca, |_| ()), &other, "TLSv1.3"),
        ("a.example", plain_client_with(&ca, tls12, |_| ()), &ecdsa, "TLSv1.2"),
        // The CA's own signature is ECDSA, so that this client could not verify the chain, but the choice shows.
        ("a.example", plain_client_with(&ca, tls12, only_rsa), &rsa, "TLSv1.2"),
    ] {
        let (connected, accepted) = tcp::pair().await;
        let (server, client) =
            tokio::join!(serve(&acceptor, accepted), client.connect(server_name(sni), connected).into_fallible());
        let (Ok(server), Ok(client)) = (server, client) else { panic!("{sni} {version}") };
        assert_eq!(leaf_of(&client), expected.chain[0].to_vec(), "{sni}");
        assert_eq!(server.session.version, version);
        assert_eq!(server.session.alpn, None);
    }
}

#[tokio::test]
async fn client_certificates_are_demanded() {
    let ca = Ca::new("root");
    let clients = Ca::new("clients");
    let middle = clients.intermediate("middle");
    let validation = ClientValidation { trust: Some(bundle(&clients)), insecure_fallback: false };
    let acceptor = acceptor([http(None, vec![issued(&ca, &["a.example"])], Some(validation))]);
    let show = |leaf: Option<&Leaf>| {
        let mut tls = upstream(&ca, "a.example");
        tls.client_certificate = leaf.map(|leaf| certificate(leaf, &[]));
        Connector::new(&tls, Alpn::Both).expect("connector")
    };
    let id = "spiffe://cluster.local/ns/default/sa/cart";
    let good = show(Some(&middle.issue(&Spec::dns(&["cart.example"]).with_uri(id).only_client())));
    for resumed in [false, true] {
        let (served, ..) = succeed(&acceptor, &good).await;
        assert_eq!(served.session.resumed, resumed);
        let peer = served.session.peer.expect("a peer");
        assert!(peer.verified);
        assert_eq!(peer.chain.len(), 2);
        assert_eq!(peer.subject, "CN=cart.example");
        assert_eq!(peer.dns_names, ["cart.example"]);
        assert_eq!(peer.spiffe_id(), Some(id));
    }
    for (why, leaf) in [
        ("no certificate", None),
        ("UnknownIssuer", Some(ca.leaf(&["cart.example"]))),
        ("expired", Some(clients.issue(&Spec::dns(&["cart.example"]).expired()))),
        ("not valid yet", Some(clients.issue(&Spec::dns(&["cart.example"]).not_yet_valid()))),
        ("not accepted", Some(clients.issue(&Spec::dns(&["cart.example"]).only_server()))),
    ] {
        let (server, client) = handshake(&acceptor, &show(leaf.as_ref())).await;
        let error = server.err().unwrap_or_else(|| panic!("{why}: accepted"));
        assert_eq!(error.kind, Kind::Tls);
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert!(client.is_err(), "{why}");
    }
}

#[tokio::test]
async fn fallback_accepts_and_marks() {
    let ca = Ca::new("root");
    let clients = Ca::new("clients");
    let validation = |trust| Some(ClientValidation { trust, insecure_fallback: true });
    let own = || vec![issued(&ca, &["a.example"])];
    let acceptor_ok = acceptor([http(None, own(), validation(Some(bundle(&clients))))]);
    let no_trust = acceptor([http(None, own(), validation(None))]);
    let show = |leaf: Option<Leaf>| {
        let mut tls = upstream(&ca, "a.example");
        tls.client_certificate = leaf.map(|leaf| certificate(&leaf, &[]));
        Connector::new(&tls, Alpn::Both).expect("connector")
    };
    for (acceptor, leaf, verified) in [
        (&acceptor_ok, Some(clients.leaf(&["c.example"])), Some(true)),
        (&acceptor_ok, Some(ca.leaf(&["c.example"])), Some(false)),
        (&acceptor_ok, Some(clients.issue(&Spec::dns(&["c.example"]).expired())), Some(false)),
        (&acceptor_ok, None, None),
        (&no_trust, Some(clients.leaf(&["c.example"])), Some(false)),
        (&no_trust, None, None),
    ] {
        let (served, ..) = succeed(acceptor, &show(leaf)).await;
        assert_eq!(served.session.peer.map(|p| p.verified), verified);
    }
}

#[tokio::test]
async fn broken_trust_refuses_everybody() {
    let ca = Ca::new("root");
    let validation = ClientValidation { trust: None, insecure_fallback: false };
    let acceptor = acceptor([http(None, vec![issued(&ca, &["a.example"])], Some(validation))]);
    for leaf in [None, Some(ca.leaf(&["c.example"]))] {
        let mut tls = upstream(&ca, "a.example");
        tls.client_certificate = leaf.map(|leaf| certificate(&leaf, &[]));
        let (server, client) = handshake(&acceptor, &Connector::new(&tls, Alpn::Both).expect("connector")).await;
        assert!(server.is_err() && client.is_err());
    }
}

/// A session of a listener that demands nothing must not open one that demands a certificate.
#[tokio::test]
async fn sessions_do_not_cross_client_validation() {
    let ca = Ca::new("root");
    let own = issued(&ca, &["a.example"]);
    let store = Store::default();
    let (open, _) = Acceptor::new(&hosts([http(None, vec![own.clone()], None)]), &store);
    let validation = ClientValidation { trust: Some(bundle(&ca)), insecure_fallback: false };
    let (closed, _) = Acceptor::new(&hosts([http(None, vec![own], Some(validation))]), &store);
    let connector = Connector::new(&upstream(&ca, "a.example"), Alpn::Both).expect("connector");
    succeed(&open, &connector).await;
    let (server, client) = handshake(&closed, &connector).await;
    assert!(server.is_err() && client.is_err());
}

#[tokio::test]
async fn reload_keeps_connections_and_sessions() {
    let ca = Ca::new("root");
    let store = Store::default();
    let (old, new) = (issued(&ca, &["a.example"]), issued(&ca, &["a.example"]));
    let kept = issued(&ca, &["b.example"]);
    let make = |certificate: &CertificateRef| {
        let listeners = [
            http(Some("a.example"), vec![certificate.clone()], None),
            http(Some("b.example"), vec![kept.clone()], None),
        ];
        Acceptor::new(&hosts(listeners), &store).0
    };
    let before = make(&old);
    let a = Connector::new(&upstream(&ca, "a.example"), Alpn::Both).expect("connector");
    let b = Connector::new(&upstream(&ca, "b.example"), Alpn::Both).expect("connector");
    let (mut served, mut client, _) = succeed(&before, &a).await;
    succeed(&before, &b).await;
    let after = make(&new);
    drop(before);
    let fresh = Connector::new(&upstream(&ca, "a.example"), Alpn::Http1).expect("connector");
    let (_, second, _) = succeed(&after, &fresh).await;
    assert_eq!(leaf_of(&second), new.chain[0].to_vec(), "new connections get the new certificate");
    let (resumed, ..) = succeed(&after, &b).await;
    assert!(resumed.session.resumed, "sessions survive a reload");
    client.write_all(b"still here").await.expect("write");
    client.flush().await.expect("flush");
    let mut got = [0; 10];
    served.io.read_exact(&mut got).await.expect("read");
    assert_eq!(&got, b"still here");
}

#[tokio::test]
async fn upstream_certificates_are_verified() {
    let ca = Ca::new("root");
    let id = "spiffe://cluster.local/ns/default/sa/cart";
    let hostname = |name: &str| SubjectAltName::Hostname(name.to_owned());
    let uri = |name: &str| SubjectAltName::Uri(name.to_owned());
    let good = || ca.issue(&Spec::dns(&["a.example", "*.w.example"]).with_uri(id));
    let cases = [
        (good(), vec![], None),
        (ca.intermediate("m").intermediate("n").leaf(&["a.example"]), vec![], None),
        (good(), vec![uri(id)], None),
        (good(), vec![hostname("b.example"), hostname("x.w.example")], None),
        (good(), vec![hostname("*.w.example")], None),
        (good(), vec![hostname("x.y.w.example")], Some("a.example, *.w.example, spiffe://")),
        (good(), vec![uri("spiffe://cluster.local/ns/default/sa/car")], Some("carries none of")),
        (good(), vec![hostname(id)], Some("carries none of")),
        (ca.leaf(&["b.example"]), vec![], Some("is for another name")),
        (ca.issue(&Spec::dns(&["a.example"]).expired()), vec![], Some("has expired")),
        (ca.issue(&Spec::dns(&["a.example"]).not_yet_valid()), vec![], Some("not valid yet")),
        (ca.issue(&Spec::dns(&["a.example"]).only_client()), vec![], Some("not for servers")),
        (Ca::new("stranger").leaf(&["a.example"]), vec![], Some("issuer that is not trusted")),
        (ca.issue(&Spec::raw_dns(b"a.example\0.evil.example")), vec![], Some("certificate")),
        (ca.issue(&Spec::raw_dns(b"a.example\0.evil.example")), vec![hostname("a.example")], Some("carries none of")),
    ];
    for (leaf, subject_alt_names, problem) in cases {
        let acceptor = acceptor([http(None, vec![certificate(&leaf, &["a.example"])], None)]);
        let mut tls = upstream(&ca, "a.example");
        tls.subject_alt_names = subject_alt_names.clone();
        let (_, client) = handshake(&acceptor, &Connector::new(&tls, Alpn::Both).expect("connector")).await;
        match (client, problem) {
            (Ok(_), None) => {}
            (Err(error), Some(problem)) => assert!(error.to_string().contains(problem), "{problem}: {error}"),
            (Ok(_), Some(problem)) => panic!("accepted, expected {problem} {subject_alt_names:?}"),
            (Err(error), None) => panic!("{error} {subject_alt_names:?}"),
        }
    }
}

/// The backend shows the very certificate that is trusted, as it does where that is self-signed.
#[tokio::test]
async fn a_certificate_that_is_trusted_as_such_needs_no_chain() {
    let ca = Ca::new("root");
    let own = || Spec::dns(&["a.example"]).authority();
    let cases = [
        (ca.issue(&own()), true, None),
        (ca.leaf(&["a.example"]), true, None),
        (ca.issue(&Spec::dns(&["b.example"]).authority()), true, Some("is for another name")),
        (ca.issue(&own().expired()), true, Some("has expired")),
        (ca.issue(&own().not_yet_valid()), true, Some("not valid yet")),
        (ca.issue(&own().only_client()), true, Some("not for servers")),
        // Of the same name, but another one.
        (ca.issue(&own()), false, Some("not one that is trusted")),
    ];
    for (leaf, pinned, problem) in cases {
        let acceptor = acceptor([http(None, vec![certificate(&leaf, &["a.example"])], None)]);
        let trusted = if pinned { leaf } else { ca.issue(&own()) };
        let mut tls = upstream(&ca, "a.example");
        let fingerprint = format!("{:x}", xxhash_rust::xxh3::xxh3_128(&trusted.chain[0]));
        let certificates = vec![trusted.chain[0].clone()];
        tls.trust = Trust::Roots(Arc::new(CaBundle { origin: "a test".to_owned(), fingerprint, certificates }));
        let (_, client) = handshake(&acceptor, &Connector::new(&tls, Alpn::Both).expect("connector")).await;
        match (client, problem) {
            (Ok(_), None) => {}
            (Err(error), Some(problem)) => assert!(error.to_string().contains(problem), "{problem}: {error}"),
            (Ok(_), Some(problem)) => panic!("accepted, expected {problem}"),
            (Err(error), None) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn http2_must_be_chosen_when_it_is_the_only_offer() {
    let ca = Ca::new("root");
    let server = acceptor_for_bytes(&ca);
    let connector = Connector::new(&upstream(&ca, "a.example"), Alpn::Http2).expect("connector");
    let (_, client) = handshake(&server, &connector).await;
    let message = client.map(|_| ()).expect_err("refused").to_string();
    assert!(message.contains("did not choose HTTP/2"), "{message}");
    let connector = Connector::new(&upstream(&ca, "a.example"), Alpn::None).expect("connector");
    let (served, ..) = succeed(&server, &connector).await;
    assert_eq!(served.session.alpn, None);
}

fn acceptor_for_bytes(ca: &Ca) -> Acceptor {
    let options =
        L4Options { name: name("tcp"), idle_timeout: Duration::from_secs(60), access: None, access_log: Vec::new() };
    let tls =
        Termination { certificates: vec![issued(ca, &["a.example"])], client: None, min_version: TlsVersion::V1_3 };
    let mode = TlsMode::Tcp { tls, routes: HostMap::default(), listener: Arc::new(options) };
    acceptor([Arc::new(TlsListener { name: name("tcp"), hostname: None, mode })])
}

#[tokio::test]
async fn old_versions_are_refused() {
    let ca = Ca::new("root");
    let server = acceptor_for_bytes(&ca);
    let (connected, accepted) = tcp::pair().await;
    let client = plain_client_with(&ca, &[&TLS12], |_| ());
    let (server, client) = tokio::join!(serve(&server, accepted), client.connect(server_name("a.example"), connected));
    assert!(server.is_err());
    assert!(client.expect_err("refused").to_string().contains("ProtocolVersion"));
}

#[tokio::test]
async fn passthrough_bytes_are_identical() {
    let ca = Ca::new("root");
    let acceptor = acceptor([passthrough("*.pass.example"), http(None, vec![issued(&ca, &["a.example"])], None)]);
    // A hello as rustls writes it, cut into pieces by the network.
    let mut hello = Vec::new();
    let config = plain_client(&ca, |_| ()).config().clone();
    let mut client = rustls::ClientConnection::new(config, server_name("X.pass.example")).expect("client");
    client.write_tls(&mut hello).expect("hello");
    hello.extend_from_slice(b"whatever comes next");
    let (mut connected, accepted) = tcp::pair().await;
    connected.set_nodelay(true).expect("nodelay");
    let (first, rest) = hello.split_at(7);
    let accept = acceptor.accept(accepted, Bytes::copy_from_slice(first), soon());
    let write = async {
        for piece in rest.chunks(400) {
            connected.write_all(piece).await.expect("write");
            tokio::task::yield_now().await;
        }
        connected.shutdown().await.expect("shutdown");
    };
    let (accepted, ()) = tokio::join!(accept, write);
    let Ok(Accepted::Passthrough { mut io, listener, sni }) = accepted else { panic!("not passed through") };
    assert_eq!(listener.hostname.as_deref(), Some("*.pass.example"));
    assert_eq!(sni.as_deref(), Some("x.pass.example"));
    let mut got = Vec::new();
    io.read_to_end(&mut got).await.expect("read");
    assert_eq!(got, hello);
}

async fn send_raw(acceptor: &Acceptor, bytes: &[u8]) -> (Error, Vec<u8>) {
    let (mut connected, accepted) = tcp::pair().await;
    let client = async {
        connected.write_all(bytes).await.expect("write");
        let mut answer = Vec::new();
        // A reset because of unread bytes is as good as an end.
        let _ = connected.read_to_end(&mut answer).await;
        answer
    };
    let (accepted, answer) = tokio::join!(acceptor.accept(accepted, Bytes::new(), soon()), client);
    (accepted.err().expect("refused"), answer)
}

#[tokio::test]
async fn bad_hellos_are_refused() {
    let ca = Ca::new("root");
    let acceptor = acceptor([http(None, vec![issued(&ca, &["a.example"])], None)]);
    let (error, answer) = send_raw(&acceptor, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(error.to_string().contains("plain HTTP"), "{error}");
    assert_eq!(answer.first(), Some(&21), "an alert");
    // A handshake record with a ClientHello of zeros.
    let (error, _) = send_raw(&acceptor, &[&[22, 3, 1, 0, 44, 1, 0, 0, 40][..], &[0; 40]].concat()).await;
    assert_eq!(error.kind, Kind::Tls);
    // A ClientHello that says it has 60 KB and goes on in full records.
    let record = [&[22, 3, 1, 0x40, 0][..], &[0; 0x4000]].concat();
    let mut long = [record.clone(), record].concat();
    long[5..9].copy_from_slice(&[1, 0, 0xf0, 0]);
    let (error, _) = send_raw(&acceptor, &long).await;
    assert!(error.to_string().contains("longer than 16 KiB"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline() {
    let ca = Ca::new("root");
    let acceptor = acceptor([http(None, vec![issued(&ca, &["a.example"])], None)]);
    let (_client, server) = tcp::pair().await;
    let error = acceptor.accept(server, Bytes::new(), soon()).await.err().expect("refused");
    assert_eq!(error.kind, Kind::Timeout);
}

/// A chain of 50 KB fits a handshake message (64 KiB); more is refused, and so is a chain of more than six
/// intermediates, each of which would cost a signature.
#[tokio::test]
async fn long_client_chains() {
    let ca = Ca::new("root");
    let clients = Ca::new("clients");
    let validation = ClientValidation { trust: Some(bundle(&clients)), insecure_fallback: false };
    let acceptor = acceptor([http(None, vec![issued(&ca, &["a.example"])], Some(validation))]);
    let below = |depth| (0..depth).fold(clients.intermediate("0"), |ca, i| ca.intermediate(&format!("level {i}")));
    for (depth, padding, copies, accepted) in
        [(4, 50_000, 0, true), (0, 50_000, 60, false), (9, 0, 0, false), (9, 50_000, 10, false)]
    {
        let mut leaf = below(depth).issue(&Spec::dns(&["c.example"]).padded(padding));
        let last = leaf.chain[1].clone();
        leaf.chain.extend(std::iter::repeat_n(last, copies));
        let mut tls = upstream(&ca, "a.example");
        tls.client_certificate = Some(certificate(&leaf, &[]));
        let (server, _) = handshake(&acceptor, &Connector::new(&tls, Alpn::Both).expect("connector")).await;
        assert_eq!(server.is_ok(), accepted, "{depth} {padding} {copies} {:?}", server.err());
    }
}

#[tokio::test]
async fn ten_thousand_hostnames() {
    let ca = Ca::new("root");
    let own = issued(&ca, &["*.many.example"]);
    let listeners = (0..10_000).map(|i| http(Some(&format!("h{i}.many.example")), vec![own.clone()], None));
    let acceptor = acceptor(listeners);
    let connector = Connector::new(&upstream(&ca, "h7777.many.example"), Alpn::Both).expect("connector");
    let (served, ..) = succeed(&acceptor, &connector).await;
    assert_eq!(served.listener.hostname.as_deref(), Some("h7777.many.example"));
}

#[test]
fn problems_name_the_listener_and_the_secret() {
    let ca = Ca::new("root");
    let mut mixed = (*issued(&ca, &["a.example"])).clone();
    mixed.key = issued(&ca, &["b.example"]).key.clone();
    let listeners = hosts([http(Some("a.example"), vec![Arc::new(mixed)], None)]);
    let (_, problems) = Acceptor::new(&listeners, &Store::default());
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    let message = problem.to_string();
    assert!(message.contains("default/edge/a.example") && message.contains("Secret default/a.example"), "{message}");
}

/// An echo server over TLS.
async fn tls_echo(acceptor: Acceptor) -> tcp::Server {
    let acceptor = Arc::new(acceptor);
    tcp::Server::tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(served) = serve(&acceptor, stream).await else { return };
            let (mut read, mut write) = tokio::io::split(served.io);
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                let _ = write.shutdown().await;
            }
        }
    })
    .await
}

/// Sends `bytes` through a stream and gives back everything that comes until the end.
async fn echo(mut io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, bytes: &[u8]) -> Vec<u8> {
    io.write_all(bytes).await.expect("write");
    io.shutdown().await.expect("shutdown");
    let mut got = Vec::new();
    io.read_to_end(&mut got).await.expect("read");
    got
}

/// TLS ends at the listener and begins anew towards the upstream, half-close included.
#[tokio::test]
async fn streams_are_terminated_and_originated() {
    let (front_ca, back_ca) = (Ca::new("front"), Ca::new("back"));
    let server = tls_echo(acceptor([http(None, vec![issued(&back_ca, &["db.internal"])], None)])).await;
    let mut cluster = l4::tests::config("default/db:5432", &[server.address]);
    cluster.tls = Some(Arc::new(upstream(&back_ca, "db.internal")));
    let bench = Bench::new(vec![cluster]);
    let front = acceptor_for_bytes(&front_ca);
    let connector = Connector::new(&upstream(&front_ca, "a.example"), Alpn::None).expect("connector");
    let (connected, accepted) = tcp::pair().await;
    let client = async {
        let (io, _) = connector.connect(connected).await.expect("client");
        echo(io, &[9; 200_000]).await
    };
    let gateway = async {
        let served = serve(&front, accepted).await.expect("server");
        bench.serve(served.io.into(), Some(l4::tests::route([(1, Some(0))]))).await;
    };
    let (got, ()) = tokio::join!(client, gateway);
    assert!(got == [9; 200_000]);
}

/// The client's handshake is with the upstream, and nobody in between.
#[tokio::test]
async fn streams_are_passed_through() {
    let ca = Ca::new("back");
    let server = tls_echo(acceptor([http(None, vec![issued(&ca, &["db.pass.example"])], None)])).await;
    let bench = Bench::new(vec![l4::tests::config("default/db:5432", &[server.address])]);
    let front = acceptor([passthrough("*.pass.example")]);
    let connector = Connector::new(&upstream(&ca, "db.pass.example"), Alpn::Http2).expect("connector");
    let (connected, accepted) = tcp::pair().await;
    let client = async {
        let (io, negotiated) = connector.connect(connected).await.expect("client");
        assert!(negotiated.h2, "ALPN is settled with the upstream");
        echo(io, b"through").await
    };
    let gateway = async {
        match front.accept(accepted, Bytes::new(), soon()).await {
            Ok(Accepted::Passthrough { io, .. }) => bench.serve(io, Some(l4::tests::route([(1, Some(0))]))).await,
            _ => panic!("not passed through"),
        }
    };
    let (got, ()) = tokio::join!(client, gateway);
    assert_eq!(got, b"through");
}

/// A TLS cluster is never reached in plaintext, and its certificate decides.
#[tokio::test]
async fn streams_end_when_the_upstream_cannot_be_trusted() {
    let (good, other) = (Ca::new("good"), Ca::new("other"));
    let server = tls_echo(acceptor([http(None, vec![issued(&other, &["db.internal"])], None)])).await;
    let mut cluster = l4::tests::config("default/db:5432", &[server.address]);
    cluster.tls = Some(Arc::new(upstream(&good, "db.internal")));
    let bench = Bench::new(vec![cluster]);
    let (mut client, accepted) = tcp::pair().await;
    bench.serve(accepted.into(), Some(l4::tests::route([(1, Some(0))]))).await;
    assert!(client.read(&mut [0; 8]).await.is_err(), "a reset");
}
