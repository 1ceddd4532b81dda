//! Over real sockets.

use crate::support::*;
use bytes::Bytes;
use http::header;
use http_body::Frame;
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{
    Body, Response,
    codec::h1::{self, ClientOptions, Connection},
    drain::Drainer,
    error::Kind,
    io::Io,
};
use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

/// Serves connections until the test ends.
async fn listen<F>(answer: F) -> SocketAddr
where
    F: Fn(selvedge_proxy::Request) -> Answer + Clone + Send + Sync + 'static,
{
    listen_with(HttpOptions::default(), answer).await
}

async fn listen_with<F>(options: HttpOptions, answer: F) -> SocketAddr
where
    F: Fn(selvedge_proxy::Request) -> Answer + Clone + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let drainer = Drainer::default();
        while let Ok((stream, _)) = listener.accept().await {
            let handler = Arc::new(Handler { answer: answer.clone(), rejected: Mutex::default() });
            let (drain, options) = (drainer.subscribe(), options.clone());
            tokio::spawn(async move { h1::serve(stream.into(), handler, &options, drain).await });
        }
    });
    address
}

async fn connect(address: SocketAddr, pool: &Arc<Pool>) -> Connection {
    Connection::new(Io::from(TcpStream::connect(address).await.unwrap()), pool.clone())
}

/// A proxy in front of `upstream`, with the pool of its connections.
async fn proxy(upstream: SocketAddr) -> (SocketAddr, Arc<Pool>) {
    let pool = Arc::new(Pool::default());
    let kept = pool.clone();
    let address = listen(move |request| {
        let pool = kept.clone();
        Box::pin(async move {
            let idle = pool.0.lock().unwrap().pop();
            let connection = match idle {
                Some(connection) => connection,
                None => connect(upstream, &pool).await,
            };
            let (mut parts, body) = request.into_parts();
            selvedge_wire::hop::strip_request(&mut parts.headers);
            let request = selvedge_proxy::Request::from_parts(parts, body);
            let mut response = connection.send(request, &ClientOptions::default()).await.unwrap();
            selvedge_wire::hop::strip_response(response.headers_mut());
            response
        })
    })
    .await;
    (address, pool)
}

fn echo_body(request: selvedge_proxy::Request) -> Answer {
    Box::pin(async { Response::new(request.into_body()) })
}

#[tokio::test]
async fn requests_of_every_framing_and_size() {
    let (address, pool) = proxy(listen(echo_body).await).await;
    let clients = Arc::new(Pool::default());
    let mut connection = connect(address, &clients).await;
    for size in [0, 1, 100, 5_000, 70_000, 3_000_000] {
        for chunked in [false, true] {
            let bytes = Bytes::from((0..size).map(|i| (i % 251) as u8).collect::<Vec<_>>());
            let body = if chunked {
                let (sender, body) = channel();
                let mut bytes = bytes.clone();
                tokio::spawn(async move {
                    while !bytes.is_empty() {
                        let piece = bytes.split_to(bytes.len().min(33_333));
                        sender.send(data(piece)).await.unwrap();
                    }
                });
                body
            } else {
                Body::full(bytes.clone())
            };
            let request = http::Request::post("/x").header(header::HOST, "a").body(body).unwrap();
            let response = connection.send(request, &ClientOptions::default()).await.unwrap();
            assert!(response.headers().contains_key(header::DATE));
            let got = response.into_body().collect().await.unwrap().to_bytes();
            assert!(got == bytes, "{size} {chunked}: {} bytes came back", got.len());
            connection = clients.0.lock().unwrap().pop().unwrap();
        }
    }
    assert_eq!(connection.requests(), 12);
    assert_eq!(pool.len(), 1);
    assert_eq!(pool.0.lock().unwrap()[0].requests(), 12);
}

#[tokio::test]
async fn a_reset_upstream_cuts_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await.unwrap();
        // Until the client has it.
        let _ = stream.readable().await;
        stream.set_zero_linger().unwrap();
    });
    let (address, pool) = proxy(upstream).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    until(&mut client, "abc").await;
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!((rest.len(), pool.len()), (0, 0));
}

#[tokio::test]
async fn a_reset_client_cancels_the_upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, _) = proxy(listener.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut upstream, _) = listener.accept().await.unwrap();
    until(&mut upstream, "\r\n\r\n").await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(upstream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

/// It had shut its sending side, so that reading tells nothing more of it.
#[tokio::test]
async fn a_reset_after_the_end_is_noticed() {
    let (dropped, mut gone) = oneshot::channel::<()>();
    let dropped = Arc::new(Mutex::new(Some(dropped)));
    let waits = HttpOptions { half_close_timeout: Duration::ZERO, ..HttpOptions::default() };
    let address = listen_with(waits, move |_| {
        let dropped = dropped.lock().unwrap().take();
        Box::pin(async move {
            let _dropped = dropped;
            std::future::pending().await
        })
    })
    .await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(timeout(Duration::from_millis(300), &mut gone).await.is_err());
    client.set_zero_linger().unwrap();
    drop(client);
    assert!(timeout(Duration::from_secs(20), gone).await.unwrap().is_err());
}

/// A response that has begun and does not go on, with the request it answers.
struct Stuck(oneshot::Sender<()>, selvedge_proxy::Request);

impl http_body::Body for Stuck {
    type Data = Bytes;
    type Error = selvedge_proxy::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let _ = (&self.0, &self.1);
        Poll::Pending
    }
}

/// Its end lies behind bytes of its body that nobody reads.
#[tokio::test]
async fn a_client_that_leaves_in_its_body_is_noticed() {
    for (answered, reset) in [(false, false), (false, true), (true, false), (true, true)] {
        let (dropped, gone) = oneshot::channel();
        let dropped = Arc::new(Mutex::new(Some(dropped)));
        let address = listen(move |request| {
            let stuck = Stuck(dropped.lock().unwrap().take().unwrap(), request);
            Box::pin(async move {
                if answered {
                    return Response::new(Body::stream(stuck));
                }
                let _stuck = stuck;
                std::future::pending().await
            })
        })
        .await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
        if answered {
            until(&mut client, "\r\n\r\n").await;
        }
        // Less than the buffers of the kernel hold: an end behind bytes that the client's own kernel still has does not
        // reach us, only a reset does.
        client.write_all(&[b'x'; 16 * 1024]).await.unwrap();
        if reset {
            while let Ok(written) = timeout(Duration::from_millis(200), client.write(&[b'x'; 1 << 16])).await {
                written.unwrap();
            }
            client.set_zero_linger().unwrap();
        }
        drop(client);
        // Without looking, only the idle timeout would tell, after a minute.
        assert!(timeout(Duration::from_secs(40), gone).await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_refused_client_gets_its_answer_whole() {
    let address = listen(echo_body).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    // What is still under way when the socket is closed must not reset it.
    let body = vec![b'x'; 200_000];
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    client.write_all(&body).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_closed_idle_connection_is_not_reusable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pool = Arc::new(Pool::default());
    let mut connection = connect(listener.local_addr().unwrap(), &pool).await;
    assert!(connection.is_reusable() && connection.tcp().is_some());
    let (stream, _) = listener.accept().await.unwrap();
    drop(stream);
    connection.tcp().unwrap().readable().await.unwrap();
    assert!(!connection.is_reusable());
    let error = connection.send(get("/"), &ClientOptions::default()).await.unwrap_err();
    assert_eq!(error.error.kind, Kind::Reset);
}
