//! From one workload to another: out of one listener, into another, with mutual TLS in between.

use crate::support::{Make, at, counted, id, identities, install, metrics, request, start, until};
use selvedge_compile::snapshot::{
    Arrive, Destination, Destinations, Find, MtlsMode, Outbound, Peer, Protocol, Speaks, Unknown, UpstreamProtocol, Via,
};
use selvedge_proxy::proxy::{Proxy, Settings};
use selvedge_testkit::tcp::Server;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tokio::{io::AsyncWriteExt, net::TcpStream};

const OUT: &str = "127.0.0.1";
const HBONE: &str = "127.0.0.2";
const MUTUAL: &str = "127.0.0.3";

/// Answers each connection's first request with its head, and greets nobody.
async fn mirror() -> Server {
    Server::tcp(|mut stream| async move {
        let head = until(&mut stream, "\r\n\r\n").await;
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

/// The workload `cart`, reached both ways, and where its listeners are.
fn inbound(app: SocketAddr, mail: SocketAddr) -> Make {
    let mut make = Make::default();
    let ports = |make: &mut Make| {
        BTreeMap::from([
            (app.port(), make.port(Speaks::Http, MtlsMode::Strict, app)),
            (mail.port(), make.port(Speaks::Undeclared, MtlsMode::Strict, mail)),
        ])
    };
    let hbone = ports(&mut make);
    let other = make.other(MtlsMode::Strict);
    let hbone = make.inbound(Arrive::Hbone, Some(id("cart")), vec![app.ip()], hbone, other.clone());
    make.listen(HBONE.parse().ok(), 0, hbone);
    let mutual = ports(&mut make);
    let mutual = make.inbound(Arrive::Port(app.port()), Some(id("cart")), vec![app.ip()], mutual, other);
    make.listen(MUTUAL.parse().ok(), 0, mutual);
    make
}

/// The workload `web`, which calls `cart` by several names; `expected` is who must be there.
fn outbound(app: SocketAddr, mail: SocketAddr, ways: [(&str, Via); 2], expected: &str) -> Make {
    let mut make = Make::default();
    let mut to = Destinations::default();
    for (name, via) in ways {
        for (port, server, speaks) in [(80, app, Speaks::Http), (25, mail, Speaks::Undeclared)] {
            let peer = || Some(Peer { identity: id(expected), via });
            let own = Some(id("web"));
            let key = format!("{name}:{port}");
            let http = make.peer_cluster(&format!("{key}/http"), UpstreamProtocol::Http1, server, own.clone(), peer());
            let tcp = make.peer_cluster(&format!("{key}/tcp"), UpstreamProtocol::Raw, server, own, peer());
            let destination: Arc<Destination> = make.reached_by(&key, speaks, http, tcp);
            to.names.insert((name.to_owned(), port), destination);
        }
    }
    let Protocol::Outbound(outbound) = make.outbound(Find::HttpProxy, to, Unknown::Refuse) else { unreachable!() };
    let outbound = Outbound { identity: Some(id("web")), ..Outbound::clone(&outbound) };
    make.listen(OUT.parse().ok(), 0, Protocol::Outbound(outbound.into()));
    make
}

struct World {
    cart: Proxy,
    web: Proxy,
    app: Server,
    mail: Server,
}

impl World {
    async fn new() -> Self {
        let (app, mail) = (mirror().await, Server::echo("220 mail\r\n").await);
        let identities = identities(&["cart", "web", "thief"]);
        let settings = || Settings { identities: identities.clone(), ..Settings::default() };
        let world = Self { cart: start(settings()), web: start(settings()), app, mail };
        install(&world.cart, inbound(world.app.address, world.mail.address));
        world.expect("cart");
        world
    }

    fn expect(&self, account: &str) {
        let ways = [("hbone", Via::Hbone(at(&self.cart, HBONE))), ("mutual", Via::MutualTls(at(&self.cart, MUTUAL)))];
        install(&self.web, outbound(self.app.address, self.mail.address, ways, account));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_arrive_with_the_identity_of_who_sent_them() {
    let world = World::new().await;
    let to = at(&world.web, OUT);
    for name in ["hbone", "mutual"] {
        for _ in 0..3 {
            let answer = request(to, &format!("http://{name}/path"), name).await;
            let xfcc = "By=spiffe://cluster.local/ns/shop/sa/cart;URI=spiffe://cluster.local/ns/shop/sa/web";
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(xfcc), "{name}: {answer}");
        }
    }
    let line = "selvedge_http_requests_total{listener=\"shop/cart/inbound\",route=\"shop/all#0\",code=\"200\",protocol=\"http/1\"} 6";
    assert!(counted(&world.cart, line), "{}", metrics(&world.cart));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_through_both() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(at(&world.web, OUT)).await.expect("a connection");
    stream.write_all(b"CONNECT hbone:25 HTTP/1.1\r\nhost: hbone:25\r\n\r\n").await.expect("write");
    until(&mut stream, "220 mail\r\n").await;
    stream.write_all(b"QUIT\r\n").await.expect("write");
    until(&mut stream, "QUIT\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_there_must_be_who_is_expected() {
    let world = World::new().await;
    world.expect("thief");
    for name in ["hbone", "mutual"] {
        let answer = request(at(&world.web, OUT), &format!("http://{name}/"), name).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{name}: {answer}");
    }
}
