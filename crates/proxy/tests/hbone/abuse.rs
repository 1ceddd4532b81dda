//! Peers that have proved who they are, and then ask for what they should not.

use crate::support::{CART, Far, ORDERS, id, identities, post, workload};
use http::{Method, Request};
use selvedge_compile::snapshot::alpn;
use selvedge_proxy::{
    Body,
    codec::{ExtendedConnect, h2},
    tls::mesh,
};
use selvedge_testkit::certs::Ca;
use std::sync::atomic::Ordering::SeqCst;
use tokio::net::TcpStream;

async fn connection(ca: &Ca, far: &Far) -> h2::Connection {
    let tcp = TcpStream::connect(far.hbone.address).await.expect("a connection");
    let (stream, proof) =
        mesh::connect(&identities(ca, CART), &id(CART), &id(ORDERS), alpn::HBONE, tcp).await.expect("TLS");
    assert_eq!(proof.peer.id, id(ORDERS));
    let (connection, driver) = h2::connect(stream.into(), &h2::ClientOptions::default()).await.expect("HTTP/2");
    tokio::spawn(driver);
    connection
}

fn connect(authority: &str) -> Request<Body> {
    let uri = http::Uri::builder().authority(authority).build().expect("an authority");
    Request::builder().method(Method::CONNECT).uri(uri).body(Body::empty()).expect("a request")
}

#[tokio::test]
async fn only_tunnels_to_addresses_are_served() {
    let ca = Ca::new("root");
    let behind = workload(false).await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    let connection = connection(&ca, &far).await;
    for bad in [
        "orders.shop:80",
        "localhost:80",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:080",
        "user@127.0.0.1:80",
        "0.0.0.0:80",
        "[::]:80",
        "[ff02::1]:80",
        "224.0.0.1:80",
        "127.1:80",
        "0x7f000001:80",
        "2130706433:80",
    ] {
        let response = connection.send(connect(bad)).await.expect("an answer");
        assert_eq!(response.status(), 400, "{bad}");
    }
    let response = connection.send(post(Body::full("x"))).await.expect("an answer");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["allow"]),
        (405, &http::HeaderValue::from_static("CONNECT"))
    );
    let mut websocket = connect(&behind.address.to_string());
    websocket.extensions_mut().insert(ExtendedConnect("websocket".to_owned()));
    *websocket.uri_mut() = format!("https://{}/", behind.address).parse().expect("a URI");
    let response = connection.send(websocket).await.expect("an answer");
    assert_eq!(response.status(), 405);
    assert_eq!(far.seen.streams.load(SeqCst), 0, "none of them was offered to the workload");
    assert_eq!(far.seen.rejected.lock().unwrap().len(), 15);
    // And the connection is as good as before.
    let response = connection.send(connect(&behind.address.to_string())).await.expect("an answer");
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_header_flood_is_refused() {
    let ca = Ca::new("root");
    let behind = workload(false).await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    let connection = connection(&ca, &far).await;
    let mut flood = connect(&behind.address.to_string());
    for i in 0..150 {
        let name = http::HeaderName::try_from(format!("x-{i}")).expect("a name");
        flood.headers_mut().insert(name, http::HeaderValue::from_static("y"));
    }
    assert_eq!(connection.send(flood).await.expect("an answer").status(), 431);
    assert_eq!(far.seen.streams.load(SeqCst), 0);
}

/// Mutual TLS is not HBONE: who asks for another protocol than is served gets no connection.
#[tokio::test]
async fn the_protocol_must_be_named() {
    let ca = Ca::new("root");
    let behind = workload(false).await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    for (address, alpn) in [(far.hbone.address, alpn::MUTUAL_TLS), (far.mutual.address, alpn::HBONE)] {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        assert!(mesh::connect(&identities(&ca, CART), &id(CART), &id(ORDERS), alpn, tcp).await.is_err());
    }
    assert_eq!(far.connections(), 0);
}
