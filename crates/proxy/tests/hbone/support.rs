//! Two members of a mesh on loopback: one calls through its clusters, the other serves tunnels to what is behind it.

use http::StatusCode;
use http_body_util::BodyExt;
use selvedge_compile::snapshot::{
    Cluster, Connections, Discovery, Endpoint, HttpOptions, LoadBalancing, Peer, UpstreamProtocol, Via, alpn,
};
use selvedge_identity::{Bundle, Bundles, Identities, Serial, Svid};
use selvedge_proxy::{
    Body, Error, Request, Response,
    balance::Pick,
    cluster::{Clusters, LiveCluster, Picked, SendFailure},
    codec::{Service, h1, h2},
    dial::Dial,
    drain::Drainer,
    error::Side,
    hbone::{self, Asked, Refusal, Tunnel, Tunnels},
    io::Io,
    pool::Held,
    tls::mesh,
    worker::{WorkerCount, WorkerId},
};
use selvedge_testkit::{
    certs::{Ca, Spec},
    tcp::Server,
};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    runtime::Handle,
    task::yield_now,
    time::{Instant, timeout},
};

pub const CART: &str = "spiffe://mesh.example/ns/shop/sa/cart";
pub const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";

pub fn id(text: &str) -> SpiffeId {
    text.parse().expect("a SPIFFE ID")
}

pub fn svid(ca: &Ca, id: &str) -> Svid {
    let leaf = ca.issue(&Spec::uri(id));
    Svid::new(leaf.chain, leaf.key).expect("an SVID")
}

pub fn trust(identities: &Identities, roots: &[&Ca], revoked: impl IntoIterator<Item = Serial>) {
    let bundle = Bundle::new(roots.iter().map(|ca| ca.der())).expect("roots").with_revoked(revoked);
    identities.set_bundles(Bundles::of("mesh.example", bundle).expect("a trust domain"));
}

pub fn identities(ca: &Ca, own: &str) -> Arc<Identities> {
    let identities = Identities::default();
    identities.set(svid(ca, own));
    trust(&identities, &[ca], []);
    Arc::new(identities)
}

/// The proxy of a workload: tunnels and mutual TLS in, plain TCP to the workload.
pub struct Far {
    pub hbone: Server,
    pub mutual: Server,
    pub identities: Arc<Identities>,
    pub seen: Arc<Seen>,
    pub drainer: Arc<Mutex<Drainer>>,
}

#[derive(Default)]
pub struct Seen {
    pub connections: AtomicUsize,
    pub streams: AtomicUsize,
    pub rejected: Mutex<Vec<StatusCode>>,
    pub baggage: Mutex<String>,
}

impl Tunnels for Seen {
    async fn open(&self, asked: Asked) -> Result<Tunnel, Refusal> {
        self.streams.fetch_add(1, SeqCst);
        let baggage = asked.headers.get("baggage").and_then(|value| value.to_str().ok()).unwrap_or_default();
        *self.baggage.lock().unwrap() = baggage.to_owned();
        let mut workload = TcpStream::connect(asked.target).await.map_err(|error| {
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, format!("the workload does not listen: {error}"))
        })?;
        Ok(Tunnel::new(move |mut io| async move {
            let _ = tokio::io::copy_bidirectional(&mut io, &mut workload).await;
        }))
    }

    fn rejected(&self, status: StatusCode, _: &Error) {
        self.rejected.lock().unwrap().push(status);
    }
}

impl Far {
    /// `behind` is where mutual TLS leads; tunnels say where.
    pub async fn start(ca: &Ca, own: &'static str, behind: SocketAddr) -> Self {
        let identities = identities(ca, own);
        let (seen, drainer) = (Arc::<Seen>::default(), Arc::<Mutex<Drainer>>::default());
        let (ids, counts, drains) = (identities.clone(), seen.clone(), drainer.clone());
        let hbone = Server::tcp(move |tcp| {
            let (identities, seen, drain) = (ids.clone(), counts.clone(), drains.lock().unwrap().subscribe());
            async move {
                let deadline = Instant::now() + Duration::from_secs(60);
                let offer = [alpn::HBONE];
                let Ok(member) = mesh::accept(&identities, &id(own), &offer, (tcp, Default::default()), deadline).await
                else {
                    return;
                };
                seen.connections.fetch_add(1, SeqCst);
                let serve = hbone::serve((*member.io).into(), seen, drain);
                let _ = mesh::while_accepted(&identities, &member.peer, Side::Downstream, serve).await;
            }
        })
        .await;
        let (ids, counts) = (identities.clone(), seen.clone());
        let mutual = Server::tcp(move |tcp| {
            let (identities, seen) = (ids.clone(), counts.clone());
            async move {
                let deadline = Instant::now() + Duration::from_secs(60);
                let offer = [alpn::MUTUAL_TLS];
                let Ok(member) = mesh::accept(&identities, &id(own), &offer, (tcp, Default::default()), deadline).await
                else {
                    return;
                };
                seen.connections.fetch_add(1, SeqCst);
                let serve = async {
                    let (mut io, mut workload) =
                        (Io::from(*member.io), TcpStream::connect(behind).await.expect("the workload"));
                    let _ = tokio::io::copy_bidirectional(&mut io, &mut workload).await;
                    Ok(())
                };
                let _ = mesh::while_accepted(&identities, &member.peer, Side::Downstream, serve).await;
            }
        })
        .await;
        Self { hbone, mutual, identities, seen, drainer }
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(SeqCst)
    }

    pub fn peer(&self, hbone: bool) -> Arc<Peer> {
        let via = if hbone { Via::Hbone(self.hbone.address) } else { Via::MutualTls(self.mutual.address) };
        Arc::new(Peer { identity: id(ORDERS), via })
    }
}

/// The proxy of a caller.
pub struct Near {
    pub identities: Arc<Identities>,
    pub cluster: Arc<LiveCluster>,
    _keep: Clusters,
}

pub fn config(workload: SocketAddr, protocol: UpstreamProtocol, peer: Arc<Peer>) -> Cluster {
    Cluster {
        key: "shop/orders:80".to_owned(),
        discovery: Discovery::Static(vec![Endpoint {
            address: workload,
            weight: 1,
            zone: None,
            priority: 0,
            peer: Some(peer),
        }]),
        protocol,
        tls: None,
        identity: Some(id(CART)),
        netns: Default::default(),
        load_balancing: LoadBalancing::default(),
        connections: Connections::default(),
        health_checks: Vec::new(),
        outlier_detection: None,
    }
}

impl Near {
    pub fn new(ca: &Ca, config: Cluster) -> Self {
        let identities = identities(ca, CART);
        let dial = Arc::new(Dial::new(identities.clone(), None, None));
        let clusters = Clusters::with_dial(WorkerCount(1), None, Handle::current(), dial, Vec::new());
        let cluster = clusters.link(&[Arc::new(config)]).remove(0);
        Self { identities, cluster, _keep: clusters }
    }

    pub fn endpoint(&self) -> Picked {
        self.cluster.pick(&Pick::default()).expect("an endpoint")
    }

    pub async fn send(&self, mut request: Request) -> Result<Response, SendFailure> {
        self.cluster.send(WorkerId(0), &self.endpoint(), &mut request).await
    }

    pub async fn raw(&self) -> Result<(Io, Held), Error> {
        self.cluster.connect_raw(&self.endpoint(), None).await
    }
}

/// Answers with the request's body, and a trailer.
pub struct Echo;

impl Service for Echo {
    async fn call(&self, request: Request) -> Response {
        Response::new(request.into_body())
    }

    fn rejected(&self, _: StatusCode, error: &Error) {
        panic!("rejected: {error}");
    }
}

/// A workload that speaks HTTP/1.1 or HTTP/2.
pub async fn workload(h2: bool) -> Server {
    Server::tcp(move |tcp| async move {
        let (options, drainer) = (HttpOptions::default(), Drainer::default());
        let drain = drainer.subscribe();
        let _ = if h2 {
            h2::serve(tcp.into(), Arc::new(Echo), &options, drain).await
        } else {
            h1::serve(tcp.into(), Arc::new(Echo), &options, drain).await
        };
    })
    .await
}

pub fn post(body: Body) -> Request {
    http::Request::post("/orders").header("host", "orders.shop").body(body).expect("a request")
}

/// The whole of a response.
pub async fn read(response: Response) -> Result<(StatusCode, http_body_util::Collected<bytes::Bytes>), Error> {
    let (head, body) = response.into_parts();
    Ok((head.status, body.collect().await?))
}

/// Yields to the reactor until the condition holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}
