//! Over TLS, where what is readable may already lie decrypted in the session.

use crate::support::*;
use bytes::Bytes;
use http::header;
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{
    Body,
    codec::h1::{self, ClientOptions, Connection},
    drain::Drainer,
    io::Io,
};
use selvedge_testkit::certs::Ca;
use std::sync::{Arc, Mutex};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, rustls};

/// A served connection over TLS, from the client's side.
async fn connect(drainer: &Drainer) -> client::TlsStream<TcpStream> {
    let ca = Ca::new("test");
    let leaf = ca.leaf(&["localhost"]);
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der()).unwrap();
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let drain = drainer.subscribe();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let stream = TlsAcceptor::from(Arc::new(server)).accept(tcp).await.unwrap();
        let handler = Arc::new(Handler { answer: echo, rejected: Mutex::default() });
        h1::serve(Io::from(stream), handler, &HttpOptions::default(), drain).await
    });
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, tcp).await.unwrap()
}

#[tokio::test]
async fn many_requests_in_one_record() {
    let drainer = Drainer::default();
    let mut client = connect(&drainer).await;
    // More than one read of the server, in one record.
    let many = (100..500).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect::<String>();
    assert!(many.len() < 16_000);
    for _ in 0..3 {
        client.write_all(many.as_bytes()).await.unwrap();
        let all = until(&mut client, "GET /499 [] 0").await;
        assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 400);
    }
    drainer.start();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "");
}

#[tokio::test]
async fn exchanges_with_bodies() {
    let drainer = Drainer::default();
    let pool = Arc::new(Pool::default());
    let mut connection = Connection::new(Io::from(connect(&drainer).await), pool.clone());
    for size in [0, 10, 20_000, 1_000_000] {
        assert!(connection.is_reusable());
        let body = Body::full(Bytes::from(vec![b'x'; size]));
        let request = http::Request::post("/x").header(header::HOST, "a").body(body).unwrap();
        let response = connection.send(request, &ClientOptions::default()).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), "POST /x [] 0".len() + size);
        connection = pool.0.lock().unwrap().pop().unwrap();
    }
}

#[tokio::test]
async fn a_client_that_has_said_goodbye_is_answered() {
    let drainer = Drainer::default();
    let mut client = connect(&drainer).await;
    client.write_all(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    // close_notify, and the end of the TCP connection's half.
    client.shutdown().await.unwrap();
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 OK") && rest.ends_with("GET /last [] 0"), "{rest}");
}
