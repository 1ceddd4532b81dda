//! Connections between members of a mesh, proxy to proxy over real sockets.

mod abuse;
mod change;
mod support;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame};
use selvedge_compile::snapshot::{Check, HealthCheck, UpstreamProtocol};
use selvedge_proxy::{
    Body, Error,
    error::{Kind, Side},
    health::Summary,
};
use selvedge_testkit::{
    certs::Ca,
    tcp::{self, Server},
};
use selvedge_wire::hbone::Baggage;
use std::{
    cmp::Ordering::{Equal, Greater, Less},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use support::{CART, Far, Near, ORDERS, config, id, post, read, until, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;

/// Chunks of a size, each of its number, then trailers as in gRPC.
struct Chunks {
    next: u8,
    count: u8,
    size: usize,
}

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let next = self.next;
        self.next += 1;
        Poll::Ready(match next.cmp(&self.count) {
            Less => Some(Ok(Frame::data(vec![next; self.size].into()))),
            Equal => {
                let status = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(HeaderMap::from_iter([status]))))
            }
            Greater => None,
        })
    }
}

fn streamed(count: u8, size: usize) -> Body {
    Body::stream(Chunks { next: 0, count, size })
}

#[tokio::test]
async fn http_1_and_2_run_inside() {
    let ca = Ca::new("root");
    for hbone in [true, false] {
        for (protocol, h2) in [(UpstreamProtocol::Http1, false), (UpstreamProtocol::Http2, true)] {
            let behind = workload(h2).await;
            let far = Far::start(&ca, ORDERS, behind.address).await;
            let near = Near::new(&ca, config(behind.address, protocol, far.peer(hbone)));
            for _ in 0..3 {
                let response = near.send(post(streamed(64, 64 * 1024))).await.expect("a response");
                let (status, body) = read(response).await.expect("a body");
                assert_eq!(status, 200);
                assert_eq!(body.trailers().is_some_and(|t| t["grpc-status"] == "0"), h2);
                let bytes = body.to_bytes();
                assert!(bytes.len() == 4 * MIB && bytes[..64 * 1024] == [0; 64 * 1024] && bytes[4 * MIB - 1] == 63);
            }
            assert_eq!(far.connections(), 1, "hbone {hbone} {protocol:?}");
            if hbone {
                assert_eq!(far.seen.streams.load(SeqCst), 1, "requests share the pooled connection in the tunnel");
                let mut headers = HeaderMap::new();
                headers.insert("baggage", far.seen.baggage.lock().unwrap().parse().expect("a value"));
                assert_eq!(Baggage::read(&headers).get("k8s.namespace.name"), Some("shop"));
            }
        }
    }
}

#[tokio::test]
async fn a_hundred_streams_share_a_connection_and_more_take_another() {
    let ca = Ca::new("root");
    let behind = Server::echo("hi").await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    let near = Arc::new(Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(true))));
    let opening: Vec<_> = (0..100)
        .map(|_| {
            let near = near.clone();
            tokio::spawn(async move { near.raw().await.expect("a stream") })
        })
        .collect();
    let mut streams = Vec::new();
    for opened in opening {
        streams.push(opened.await.expect("no panic"));
    }
    assert_eq!((far.connections(), far.seen.streams.load(SeqCst)), (1, 100));
    streams.push(near.raw().await.expect("one more"));
    assert_eq!(far.connections(), 2);
    for (i, (io, _)) in streams.iter_mut().enumerate() {
        io.write_all(&[i as u8; 1000]).await.expect("write");
    }
    for (i, (mut io, _held)) in streams.into_iter().enumerate() {
        io.shutdown().await.expect("shutdown");
        let mut got = Vec::new();
        io.read_to_end(&mut got).await.expect("read");
        assert!(got[..2] == *b"hi" && got[2..] == [i as u8; 1000], "{i} {}", got.len());
    }
}

#[tokio::test]
async fn either_side_may_end_first() {
    let ca = Ca::new("root");
    for hbone in [true, false] {
        // The client ends; what the server says after that arrives.
        let behind = Server::echo_at_end().await;
        let far = Far::start(&ca, ORDERS, behind.address).await;
        let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(hbone)));
        let (mut io, _held) = near.raw().await.expect("a stream");
        io.write_all(&[7; 300_000]).await.expect("write");
        io.shutdown().await.expect("shutdown");
        let mut got = Vec::new();
        io.read_to_end(&mut got).await.expect("read");
        assert!(got == [7; 300_000]);
        // The server ends; what the client says after that arrives.
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let behind = Server::tcp(move |mut stream| {
            let tell = tell.clone();
            async move {
                stream.write_all(b"bye").await.expect("write");
                stream.shutdown().await.expect("shutdown");
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.expect("read");
                tell.send(got).expect("the test");
            }
        })
        .await;
        let far = Far::start(&ca, ORDERS, behind.address).await;
        let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(hbone)));
        let (mut io, _held) = near.raw().await.expect("a stream");
        let mut got = Vec::new();
        io.read_to_end(&mut got).await.expect("read");
        assert_eq!(got, b"bye");
        io.write_all(&[8; 300_000]).await.expect("write");
        io.shutdown().await.expect("shutdown");
        assert!(told.recv().await.expect("what arrived") == [8; 300_000]);
    }
}

/// Readers that do not read hold what fits the window, and stop nobody else on the same connection.
#[tokio::test]
async fn slow_readers_stop_only_their_own_stream() {
    const SIZE: usize = 16 * MIB;
    let ca = Ca::new("root");
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let behind = Server::tcp(move |mut stream| {
        let count = count.clone();
        async move {
            let mut asked = [0];
            if stream.read_exact(&mut asked).await.is_err() || asked[0] == b'e' {
                let _ = stream.write_all(b"echo").await;
                return;
            }
            for _ in 0..SIZE / 16_384 {
                if stream.write_all(&[1; 16_384]).await.is_err() {
                    return;
                }
                count.fetch_add(16_384, SeqCst);
            }
        }
    })
    .await;
    let far = Far::start(&ca, ORDERS, behind.address).await;
    let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Raw, far.peer(true)));
    let mut slow = Vec::new();
    for _ in 0..8 {
        let (mut io, held) = near.raw().await.expect("a stream");
        io.write_all(b"s").await.expect("write");
        slow.push((io, held));
    }
    let mut before = 0;
    loop {
        let (mut io, _held) = near.raw().await.expect("a stream");
        io.write_all(b"e").await.expect("write");
        let mut got = String::new();
        io.read_to_string(&mut got).await.expect("read");
        assert_eq!(got, "echo");
        let now = written.load(SeqCst);
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    // The window, and what sockets and copying hold on either side.
    assert!(before / slow.len() < 8 * MIB, "{} bytes on their way in each stream", before / slow.len());
    assert_eq!(far.connections(), 1);
    let (mut io, _held) = slow.pop().expect("a stream");
    let mut got = Vec::new();
    io.read_to_end(&mut got).await.expect("read");
    assert!(got.len() == SIZE && got.iter().all(|b| *b == 1));
}

#[tokio::test]
async fn the_wrong_identity_is_not_spoken_to() {
    let ca = Ca::new("root");
    let behind = workload(false).await;
    let other = "spiffe://mesh.example/ns/shop/sa/other";
    let far = Far::start(&ca, other, behind.address).await;
    for hbone in [true, false] {
        let near = Near::new(&ca, config(behind.address, UpstreamProtocol::Http1, far.peer(hbone)));
        let error = near.send(post(Body::empty())).await.expect_err("refused").error;
        assert_eq!((error.kind, error.side), (Kind::Tls, Side::Upstream));
        let message = error.to_string();
        assert!(message.contains(&format!("expected {ORDERS}, but the peer presented {other}")), "{message}");
        // Without a certificate of ours nothing is sent either.
        near.identities.remove(&id(CART));
        let error = near.send(post(Body::empty())).await.expect_err("refused").error;
        assert_eq!((error.kind, error.side), (Kind::Tls, Side::Us));
        assert!(error.to_string().contains("there is no certificate for"), "{error}");
    }
    assert_eq!(far.connections(), 0);
    // Whoever is no member of a mesh calls members in clear text.
    let mut clear = config(behind.address, UpstreamProtocol::Http1, far.peer(true));
    clear.identity = None;
    let near = Near::new(&ca, clear);
    assert_eq!(read(near.send(post(Body::full("x"))).await.expect("a response")).await.expect("a body").0, 200);
}

#[tokio::test]
async fn refusals_are_told() {
    let ca = Ca::new("root");
    let nowhere = tcp::closed_port().await;
    let far = Far::start(&ca, ORDERS, nowhere).await;
    let near = Near::new(&ca, config(nowhere, UpstreamProtocol::Http1, far.peer(true)));
    let error = near.send(post(Body::empty())).await.expect_err("refused").error;
    assert_eq!(error.kind, Kind::Connect);
    let message = error.to_string();
    assert!(message.contains("503") && message.contains("the workload does not listen"), "{message}");
    assert!(message.contains(&nowhere.to_string()) && message.contains(ORDERS), "{message}");
    // And where there is no proxy.
    let mut peer = (*far.peer(true)).clone();
    peer.via = selvedge_compile::snapshot::Via::Hbone(nowhere);
    let near = Near::new(&ca, config(nowhere, UpstreamProtocol::Http1, Arc::new(peer)));
    let error = near.send(post(Body::empty())).await.expect_err("refused").error;
    assert_eq!(error.kind, Kind::Connect);
    assert!(error.to_string().contains(&format!("cannot connect to {ORDERS} at {nowhere}")), "{error}");
}

#[tokio::test]
async fn health_checks_go_the_same_way() {
    let ca = Ca::new("root");
    for hbone in [true, false] {
        let behind = workload(false).await;
        let far = Far::start(&ca, ORDERS, behind.address).await;
        let mut config = config(behind.address, UpstreamProtocol::Http1, far.peer(hbone));
        config.health_checks = vec![HealthCheck {
            check: Check::Http {
                method: "GET".to_owned(),
                path: "/".to_owned(),
                host: None,
                expected: Vec::new(),
                headers: Default::default(),
            },
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(5),
            unhealthy_threshold: 1,
            healthy_threshold: 1,
            port: None,
        }];
        let near = Near::new(&ca, config);
        let endpoint = near.endpoint();
        until("the first check", || endpoint.health.summary() != Summary::Pending).await;
        assert_eq!(endpoint.health.summary(), Summary::Healthy, "{:?}", endpoint.health.reason());
        until("a connection", || far.connections() > 0).await;
        // A peer whose root we do not know is not healthy.
        support::trust(&near.identities, &[&Ca::new("other")], []);
        until("a failed check", || endpoint.health.summary() == Summary::Unhealthy).await;
    }
}
