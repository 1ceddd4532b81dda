//! Two meshes, each with its own trust domain and CA, that believe each other's identities.

use selvedge_compile::{
    FixedPort, LocalWorkload, Options, Ports, Position, compile,
    snapshot::{Netns, Snapshot},
};
use selvedge_identity::{Bundle, Bundles, Identities, Svid};
use selvedge_model::{Limits, Resources, parse};
use selvedge_proxy::proxy::{Proxy, Settings};
use selvedge_testkit::{
    backend::Backend,
    certs::{Ca, Spec},
    selvedge::free_port,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
};

const LIMIT: Duration = Duration::from_secs(60);

fn snapshot(text: &str, workload: &str, ports: Ports) -> Snapshot {
    let parsed = parse("mesh.yaml", text.as_bytes(), &Limits::default());
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let mut resources = Resources::default();
    resources.extend(parsed.loaded.into_iter().filter_map(|loaded| loaded.resource));
    let local = LocalWorkload {
        namespace: "shop".to_owned(),
        workload: workload.to_owned(),
        own: None,
        netns: Netns::default(),
        ports,
    };
    let options = Options { position: Position::Workloads(vec![local]), ..Options::default() };
    let compiled = compile(&resources, &options);
    assert!(compiled.diagnostics.iter().all(|d| !d.is_error()), "{:?}", compiled.diagnostics);
    compiled.snapshot
}

/// The sidecar of one account of a trust domain.
fn sidecar(ca: &Ca, domain: &str, account: &str) -> Proxy {
    let identities = Arc::<Identities>::default();
    let leaf = ca.issue(&Spec::uri(&format!("spiffe://{domain}/ns/shop/sa/{account}")));
    identities.set(Svid::new(leaf.chain, leaf.key).expect("an SVID"));
    let bundle = Bundle::from_pem(ca.pem().as_bytes()).expect("a bundle");
    identities.set_bundles(Bundles::of(domain, bundle).expect("a trust domain"));
    Proxy::start(&Settings { identities, ..Settings::default() }, Handle::current()).expect("a proxy")
}

fn install(proxy: &Proxy, snapshot: &Snapshot) {
    let problems = proxy.install(snapshot);
    assert!(problems.is_empty(), "{problems:?}");
}

async fn status(at: SocketAddr) -> u16 {
    let mut stream = TcpStream::connect(at).await.expect("a connection");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

async fn becomes(at: SocketAddr, expected: u16) {
    let limit = Instant::now() + LIMIT;
    loop {
        let now = status(at).await;
        if now == expected {
            return;
        }
        assert!(Instant::now() < limit, "still {now}, not {expected}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn indented(pem: &str) -> String {
    pem.lines().map(|line| format!("      {line}\n")).collect()
}

/// Of the mesh of `orders`, which lets in whom its policy names.
fn theirs(app: SocketAddr, believed: Option<&Ca>, allowed: &str) -> String {
    let federation = match believed {
        Some(_) => {
            "[{trustDomain: a.example, bundle: {configMap: {namespace: selvedge-system, name: roots, key: a.pem}}}]"
        }
        None => "[]",
    };
    let pem = believed.map_or_else(|| "      none\n".to_owned(), |ca| indented(&ca.pem()));
    format!(
        "apiVersion: selvedge.dev/v1alpha1
kind: Mesh
metadata: {{name: default}}
spec:
  trustDomain: b.example
  mtls: {{mode: Strict}}
  access: {{default: Deny}}
  federation: {federation}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: roots, namespace: selvedge-system}}
data:
  a.pem: |
{pem}---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {{name: orders, namespace: shop}}
spec:
  addresses: [127.0.0.2]
  serviceAccount: orders
  ports: [{{name: http, port: {port}}}]
---
apiVersion: selvedge.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: from-afar, namespace: shop}}
spec:
  rules:
  - from: [{{trustDomains: [{allowed}]}}]
",
        port = app.port()
    )
}

/// Of the mesh of `cart`, which knows the workload of the other one.
fn ours(app: SocketAddr, tunnel: SocketAddr, believed: &Ca) -> String {
    format!(
        "apiVersion: selvedge.dev/v1alpha1
kind: Mesh
metadata: {{name: default}}
spec:
  trustDomain: a.example
  federation:
  - trustDomain: b.example
    bundle:
     pem: |
{pem}---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {{name: cart, namespace: shop}}
spec: {{addresses: [127.0.0.1], serviceAccount: cart}}
---
apiVersion: selvedge.dev/v1alpha1
kind: Workload
metadata: {{name: orders, namespace: shop, labels: {{app: orders}}}}
spec:
  addresses: [127.0.0.2]
  serviceAccount: orders
  trustDomain: b.example
  ports: [{{name: http, port: {port}}}]
  tunnel: {{protocol: HBONE, port: {tunnel}}}
---
apiVersion: v1
kind: Service
metadata: {{name: orders, namespace: shop}}
spec: {{selector: {{app: orders}}, ports: [{{name: http, port: 80, targetPort: {port}}}]}}
",
        pem = indented(&believed.pem()),
        port = app.port(),
        tunnel = tunnel.port(),
    )
}

#[tokio::test]
async fn another_trust_domain_is_believed_while_the_mesh_says_so() {
    let (a, b, impostor) = (Ca::new("root of a"), Ca::new("root of b"), Ca::new("another root"));
    let there = |port: SocketAddr| SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port.port()));
    let (app, hbone, front) = (there(free_port()), there(free_port()), free_port());
    let _backend = Backend::start_at(app, "orders").await;
    let (cart, orders) = (sidecar(&a, "a.example", "cart"), sidecar(&b, "b.example", "orders"));
    let beside_orders = |believed: Option<&Ca>, allowed: &str| {
        let ports = Ports { hbone: Some(hbone), ..Ports::default() };
        install(&orders, &snapshot(&theirs(app, believed, allowed), "orders", ports));
    };
    let beside_cart = |believed: &Ca| {
        let fixed = vec![FixedPort { listen: front, host: "orders.shop".to_owned(), port: 80 }];
        install(&cart, &snapshot(&ours(app, hbone, believed), "cart", Ports { fixed, ..Ports::default() }));
    };
    beside_cart(&b);

    beside_orders(Some(&a), "a.example");
    becomes(front, 200).await;
    // What the policy says holds at once, for the connection that lives too.
    beside_orders(Some(&a), "c.example");
    becomes(front, 403).await;
    beside_orders(Some(&a), "a.example");
    becomes(front, 200).await;
    // And so does whom the mesh believes, on both sides.
    beside_orders(None, "a.example");
    becomes(front, 503).await;
    beside_orders(Some(&impostor), "a.example");
    assert_eq!(status(front).await, 503);
    beside_orders(Some(&a), "a.example");
    becomes(front, 200).await;
    beside_cart(&impostor);
    becomes(front, 503).await;
    beside_cart(&b);
    becomes(front, 200).await;
}
