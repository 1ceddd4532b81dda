//! Control planes that share a real etcd, one of which does not reach it: it takes nothing back from proxies.

use selvedge_compile::Options;
use selvedge_control::{
    Current, Engine,
    proto::discovery::{Hello, Role, Source},
    publish::{
        server::Publisher,
        status::{Condition, NodeStatus},
        version::canonical,
    },
    source::{
        etcd::{Client, EtcdSource},
        stream::{StreamSource, machine::Me},
    },
    transport::{self, Dialer},
};
use selvedge_identity::{Expect, Identities};
use selvedge_model::{Limits, Resource, parse};
use selvedge_testkit::{etcd::Etcd, selvedge::free_port};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
};

const LIMIT: Duration = Duration::from_secs(60);

fn gateway(port: u16) -> Resource {
    let yaml = format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: edge, namespace: shop}}, spec: {{gatewayClassName: selvedge, listeners: [{{name: web, port: {port}, protocol: HTTP}}]}}}}"
    );
    parse("test", yaml.as_bytes(), &Limits::default()).loaded.remove(0).resource.expect("sound")
}

/// Writes the Gateway, once etcd answers.
async fn put(etcd: &Etcd, port: u16) {
    let client = Client::new(vec![etcd.url()], "/selvedge");
    let resource = gateway(port);
    let json = canonical(&resource).0.to_vec();
    let written = async {
        loop {
            if let Ok(channel) = client.connect().await
                && client.put(&channel, &client.path(&resource.key()), json.clone(), 0).await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, written).await.expect("etcd answers");
}

/// A way there that can be cut.
struct Way {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Way {
    async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, open) = (listener.local_addr().unwrap(), watch::Sender::new(true));
        let mut state = open.subscribe();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cut = state.clone();
                if !*state.borrow_and_update() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, open }
    }
}

struct Control {
    publisher: Publisher,
    current: watch::Receiver<Arc<Current>>,
    listen: SocketAddr,
}

impl Control {
    /// Follows etcd at that address; proxies are refused until it serves.
    fn start(etcd: SocketAddr) -> Self {
        let source = EtcdSource::new(&Client::new(vec![format!("http://{etcd}")], "/selvedge"));
        let engine = Engine::with(Box::new(source), None, Options::default(), Box::new(|_| Vec::new()));
        let (publisher, current, look) = (Publisher::new("test"), engine.current(), Arc::new(Notify::new()));
        let asked = look.clone();
        publisher.look(Box::new(move || asked.notify_one()));
        tokio::spawn(publisher.clone().follow(current.clone()));
        tokio::spawn(publisher.clone().run());
        tokio::spawn(engine.run(look));
        Self { publisher, current, listen: free_port() }
    }

    async fn serve(&self) {
        let listener = TcpListener::bind(self.listen).await.unwrap();
        let service = self.publisher.service();
        tokio::spawn(async move {
            let server = transport::server().add_service(service);
            let _ = server.serve_with_incoming(transport::accept(listener, None)).await;
        });
    }

    async fn knows(&mut self, port: i32) {
        let waited = tokio::time::timeout(LIMIT, self.current.wait_for(|c| has(c, port))).await;
        waited.unwrap_or_else(|_| panic!("never: {port}")).expect("the engine runs");
    }

    async fn node(&self, what: &str, mut so: impl FnMut(&NodeStatus) -> bool) {
        let waiting = async {
            while !self.publisher.nodes().iter().any(&mut so) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(LIMIT, waiting).await;
        assert!(waited.is_ok(), "never: {what}: {:#?}", self.publisher.nodes());
    }
}

fn has(current: &Current, port: i32) -> bool {
    current.resources.gateway("shop", "edge").is_some_and(|g| i32::from(g.spec.listeners[0].port) == port)
}

fn proxy(controls: &[SocketAddr], source: Option<Source>) -> watch::Receiver<Arc<Current>> {
    let hello = Hello { id: "edge".to_owned(), role: Role::Gateway.into(), source, ..Hello::default() };
    let dialer = Dialer { identities: Arc::<Identities>::default(), own: None, expect: Expect::Known };
    let urls = controls.iter().map(|c| format!("http://{c}")).collect();
    let source = StreamSource::new(Me { hello, urls, seed: 5 }, Arc::new(dialer));
    let engine = Engine::with(Box::new(source), None, Options::default(), Box::new(|_| Vec::new()));
    let current = engine.current();
    tokio::spawn(engine.run(Arc::default()));
    current
}

async fn serves(current: &mut watch::Receiver<Arc<Current>>, port: i32) {
    let waited = tokio::time::timeout(LIMIT, current.wait_for(|c| has(c, port))).await;
    waited.unwrap_or_else(|_| panic!("never: {port}")).expect("the engine runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_cut_off_takes_nothing_back() {
    let Some(etcd) = Etcd::start() else { return };
    put(&etcd, 81).await;
    let way = Way::to(etcd.client).await;
    let (mut late, mut good) = (Control::start(way.address), Control::start(etcd.client));
    late.knows(81).await;
    good.knows(81).await;
    way.open.send_replace(false);
    put(&etcd, 82).await;
    good.serve().await;
    let to_good = Way::to(good.listen).await;
    let mut proxy = proxy(&[late.listen, to_good.address], None);
    serves(&mut proxy, 82).await;
    // It moves to the one that is cut off, which knows 81 only.
    late.serve().await;
    to_good.open.send_replace(false);
    let revision = |c: &Control| c.current.borrow().mark.as_ref().map(|mark| mark.revision);
    assert!(revision(&late) < revision(&good));
    late.node("it waits", |n| n.state == Condition::Stale && n.reason.contains("until this one has caught up")).await;
    assert_eq!(late.publisher.behind(), 1);
    assert!(has(&proxy.borrow(), 82), "nothing is taken back");
    way.open.send_replace(true);
    late.node("in sync", |n| n.state == Condition::InSync).await;
    assert_eq!((late.publisher.behind(), late.publisher.nodes()[0].sent), (0, 0), "it had everything");
    put(&etcd, 83).await;
    serves(&mut proxy, 83).await;
}

/// As after a restore from a backup: what proxies have seen never happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_looked_again_is_believed() {
    let Some(etcd) = Etcd::start() else { return };
    put(&etcd, 81).await;
    let mut control = Control::start(etcd.client);
    control.knows(81).await;
    control.serve().await;
    let origin = control.current.borrow().mark.as_ref().map(|mark| mark.origin.to_string()).expect("etcd's");
    let mut proxy = proxy(&[control.listen], Some(Source { origin, revision: 1_000_000 }));
    control.node("it waits at first", |n| n.reason.contains("1000000")).await;
    serves(&mut proxy, 81).await;
    control.node("in sync", |n| n.state == Condition::InSync).await;
}
