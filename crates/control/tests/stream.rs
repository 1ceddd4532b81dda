//! Engines of proxies against a publisher, over real connections.

use selvedge_compile::Options;
use selvedge_control::{
    Current, Engine,
    proto::discovery::{Hello, Role},
    publish::{
        scope::Wanted,
        server::Publisher,
        status::{Condition, NodeStatus},
    },
    source::stream::{Handle, StreamSource, machine::Me},
    transport::{self, Dialer},
};
use selvedge_identity::{Expect, Identities};
use selvedge_model::{Limits, Resource, Resources, parse};
use selvedge_testkit::selvedge::free_port;
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch, task::JoinHandle};

const LIMIT: Duration = Duration::from_secs(60);

fn resource(yaml: &str) -> Resource {
    let parsed = parse("test", yaml.as_bytes(), &Limits::default());
    parsed.loaded.into_iter().next().and_then(|l| l.resource).unwrap_or_else(|| panic!("{:?}", parsed.diagnostics))
}

fn gateway() -> Resource {
    resource(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: edge, namespace: shop}, spec: {gatewayClassName: selvedge, listeners: [{name: web, port: 80, protocol: HTTP}]}}",
    )
}

fn route(name: &str, host: &str) -> Resource {
    resource(&format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}, namespace: shop}}, spec: {{hostnames: [{host}], parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{{name: cart, port: 80}}]}}]}}}}"
    ))
}

fn service(name: &str) -> Resource {
    resource(&format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}}}"
    ))
}

fn workload(name: &str, address: &str) -> Resource {
    resource(&format!(
        "{{apiVersion: selvedge.dev/v1alpha1, kind: Workload, metadata: {{name: {name}, namespace: shop, labels: {{app: cart}}}}, spec: {{addresses: [{address}], ports: [{{port: 80}}]}}}}"
    ))
}

/// A control plane on a port of its own.
struct Control {
    address: SocketAddr,
    publisher: Publisher,
    /// Of its own, so that all of it ends at once, as when the process is killed.
    runtime: Option<Runtime>,
}

impl Control {
    async fn start(at: SocketAddr, resources: &[Resource]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let publisher = Publisher::new("test");
        publisher.publish(&resources.iter().cloned().collect());
        runtime.spawn(publisher.clone().run());
        let service = publisher.service();
        let (bound, address) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            // After a restart the old socket may take a moment to go.
            let listener = loop {
                match TcpListener::bind(at).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            let _ = bound.send(listener.local_addr().unwrap());
            let server = transport::server().add_service(service);
            let _ = server.serve_with_incoming(transport::accept(listener, None)).await;
        });
        Self { address: address.await.unwrap(), publisher, runtime: Some(runtime) }
    }

    async fn any(resources: &[Resource]) -> Self {
        Self::start(free_port(), resources).await
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn nodes(&self, what: &str, mut so: impl FnMut(&[NodeStatus]) -> bool) -> Vec<NodeStatus> {
        let waiting = async {
            loop {
                let nodes = self.publisher.nodes();
                if so(&nodes) {
                    return nodes;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match tokio::time::timeout(LIMIT, waiting).await {
            Ok(nodes) => nodes,
            Err(_) => panic!("never: {what}: {:#?}", self.publisher.nodes()),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Proxy {
    current: watch::Receiver<Arc<Current>>,
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    fn start(id: &str, role: Role, workloads: &[&str], urls: &[String], state: Option<PathBuf>) -> Self {
        let hello = Hello {
            id: id.to_owned(),
            role: role.into(),
            workloads: workloads.iter().map(|w| (*w).to_owned()).collect(),
            ..Hello::default()
        };
        let dialer = Dialer { identities: Arc::<Identities>::default(), own: None, expect: Expect::Known };
        let me = Me { hello, urls: urls.to_vec(), seed: 11 };
        let source = StreamSource::new(me, Arc::new(dialer));
        let handle = source.handle();
        let engine = Engine::with(Box::new(source), state, Options::default(), Box::new(|_| Vec::new()));
        let current = engine.current();
        Self { current, handle, task: tokio::spawn(engine.run(Arc::default())) }
    }

    async fn until(&mut self, what: &str, mut so: impl FnMut(&Resources) -> bool) {
        let waited = tokio::time::timeout(LIMIT, self.current.wait_for(|c| so(&c.resources))).await;
        waited.unwrap_or_else(|_| panic!("never: {what}")).expect("the engine runs");
    }

    async fn has(&mut self, count: usize) {
        self.until(&format!("{count} resources"), |resources| resources.len() == count).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_one_small_message_and_a_reconnect_sends_differences_only() {
    let mut resources: Vec<Resource> = vec![gateway(), service("cart")];
    resources.extend((0..500).map(|i| route(&format!("r{i}"), &format!("h{i}.example"))));
    let mut control = Control::any(&resources).await;
    let (address, state) = (control.address, tempfile::tempdir().unwrap());
    let mut proxy = Proxy::start("edge", Role::Gateway, &[], &[control.url()], Some(state.path().to_path_buf()));
    proxy.has(502).await;
    let sent = control.nodes("in sync", |n| n.len() == 1 && n[0].state == Condition::InSync).await[0].sent;
    assert_eq!(sent, 502);
    resources[2] = route("r0", "changed.example");
    control.publisher.publish(&resources.iter().cloned().collect());
    proxy
        .until("the change", |r| r.http_route("shop", "r0").is_some_and(|r| r.spec.hostnames == ["changed.example"]))
        .await;
    assert_eq!(control.nodes("told", |n| n[0].state == Condition::InSync && n[0].sent > sent).await[0].sent, sent + 1);
    // All control planes are away, then another one comes that knows a little more.
    drop(control);
    resources.push(route("new", "new.example"));
    resources.remove(3);
    control = Control::start(address, &resources).await;
    proxy
        .until("after the restart", |r| r.http_route("shop", "new").is_some() && r.http_route("shop", "r1").is_none())
        .await;
    assert_eq!(control.nodes("in sync", |n| n.len() == 1 && n[0].state == Condition::InSync).await[0].sent, 2);
    // The proxy is restarted while control is away: it begins with what it had.
    drop(control);
    let saved = state.path().join("last-good.json");
    let waiting = async {
        while !std::fs::read_to_string(&saved).is_ok_and(|text| text.contains("new.example")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("saved");
    drop(proxy);
    let url = format!("http://{address}");
    let mut proxy = Proxy::start("edge", Role::Gateway, &[], &[url], Some(state.path().to_path_buf()));
    assert_eq!(proxy.current.borrow().resources.len(), 502);
    let control = Control::start(address, &resources).await;
    assert_eq!(control.nodes("in sync", |n| n.len() == 1 && n[0].state == Condition::InSync).await[0].sent, 0);
    proxy.has(502).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_control_plane_dies_and_the_other_takes_over_without_sending_again() {
    let resources = [gateway(), service("cart"), route("r", "a.example")];
    let (one, two) = (Control::any(&resources).await, Control::any(&resources).await);
    let mut proxy = Proxy::start("edge", Role::Gateway, &[], &[one.url(), two.url()], None);
    proxy.has(3).await;
    let both = [&one, &two];
    let first = usize::from(one.publisher.nodes().is_empty());
    both[first].nodes("in sync", |n| n.len() == 1 && n[0].state == Condition::InSync).await;
    let (dead, alive) = if first == 0 { (one, two) } else { (two, one) };
    drop(dead);
    let nodes = alive.nodes("moved", |n| n.len() == 1 && n[0].state == Condition::InSync).await;
    assert_eq!(nodes[0].sent, 0);
    let more = [gateway(), service("cart"), route("r", "a.example"), route("s", "b.example")];
    alive.publisher.publish(&more.into_iter().collect());
    proxy.has(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_version_is_refused_alone_and_tried_again() {
    let policy = |template: &str| {
        resource(&format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r, namespace: shop}}, spec: {{parentRefs: [{{name: edge}}], rules: [{{filters: [{template}], backendRefs: [{{name: cart, port: 80}}]}}]}}}}"
        ))
    };
    let good = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}";
    // No such extension: the rule cannot work.
    let bad = "{type: ExtensionRef, extensionRef: {group: example.com, kind: Magic, name: m}}";
    let control = Control::any(&[gateway(), service("cart"), policy(good)]).await;
    let mut proxy = Proxy::start("edge", Role::Gateway, &[], &[control.url()], None);
    proxy.has(3).await;
    let served = proxy.current.borrow().resources.http_route("shop", "r").cloned();
    control.publisher.publish(
        &[gateway(), service("cart"), policy(bad), service("other"), route("s", "s.example")].into_iter().collect(),
    );
    proxy.until("the rest of the change", |r| r.http_route("shop", "s").is_some()).await;
    let nodes = control.nodes("refused", |n| n[0].last_nack.is_some() && n[0].state == Condition::Refusing).await;
    assert!(nodes[0].reason.contains("HTTPRoute shop/r"), "{nodes:?}");
    let current = proxy.current.borrow().clone();
    assert_eq!(current.resources.http_route("shop", "r").cloned(), served);
    assert!(current.last_good);
    control.publisher.publish(&[gateway(), service("cart"), policy(good)].into_iter().collect());
    let nodes = control.nodes("good again", |n| n[0].state == Condition::InSync).await;
    assert!(nodes[0].last_nack.is_some() && nodes[0].reason.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_gets_what_it_uses_and_sees_workloads_come_and_go() {
    let mut resources = vec![workload("web", "10.0.0.1")];
    resources.extend((0..200).map(|i| service(&format!("s{i}"))));
    resources.push(service("cart"));
    let control = Control::any(&resources).await;
    let mut proxy = Proxy::start("web", Role::Sidecar, &["shop/web"], &[control.url()], None);
    // Its own, and the one Service that it is behind.
    proxy.has(2).await;
    assert!(proxy.handle.want(Wanted::Host("s7".into())).await);
    assert!(!proxy.handle.want(Wanted::Host("nobody.example".into())).await);
    proxy.has(3).await;
    assert!(proxy.handle.want(Wanted::Host("cart.shop.svc.cluster.local".into())).await);
    let joining = Proxy::start("joins", Role::Sidecar, &["shop/joins"], &[control.url()], None);
    let json = |r: &Resource| bytes::Bytes::from(r.to_value().to_string());
    let joins = workload("joins", "10.0.0.2");
    joining.handle.register(joins.key().to_string(), json(&joins)).await;
    proxy.until("it has joined", |r| r.workload("shop", "joins").is_some()).await;
    // Another cannot take its address.
    let thief = workload("thief", "10.0.0.2");
    joining.handle.register(thief.key().to_string(), json(&thief)).await;
    joining.handle.withdraw(joins.key().to_string()).await;
    proxy.until("unwell", |r| r.workload("shop", "joins").is_none()).await;
    proxy.until("the address is free", |r| r.workload("shop", "thief").is_some()).await;
    joining.handle.withdraw(thief.key().to_string()).await;
    joining.handle.register(joins.key().to_string(), json(&joins)).await;
    proxy.until("well", |r| r.workload("shop", "joins").is_some()).await;
    // Killed.
    let began = std::time::Instant::now();
    drop(joining);
    proxy.until("dead", |r| r.workload("shop", "joins").is_none()).await;
    // At once; a connection that says nothing any more would be given up after five seconds at the earliest.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}
