//! HTTP/2 towards upstreams: against our own server, and against raw frames.

mod h2_common;

use bytes::Bytes;
use h2_common::*;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{
    Body, Error, Request, Response,
    codec::{
        ExtendedConnect, Informational, Progress,
        h2::{ClientOptions, Connection, connect},
    },
    error::Kind,
    io::Io,
};
use std::{future::poll_fn, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Notify,
    task::JoinHandle,
};

async fn open(io: DuplexStream, options: &ClientOptions) -> (Connection, JoinHandle<()>) {
    let (connection, driver) = connect(Io::other(io), options).await.unwrap();
    (connection, tokio::spawn(driver))
}

async fn upstream(service: Arc<TestService>) -> (Connection, Served2) {
    let served = serve(service, HttpOptions::default());
    let (connection, driver) = open(served.io, &ClientOptions::default()).await;
    (connection, Served2 { driver, _server: served.done, drainer: served.drainer })
}

struct Served2 {
    driver: JoinHandle<()>,
    _server: JoinHandle<Result<(), Error>>,
    drainer: Arc<selvedge_proxy::drain::Drainer>,
}

async fn raw(settings: &[(u16, u32)], options: &ClientOptions) -> (Connection, Raw<DuplexStream>) {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (connection, _) = open(near, options).await;
    (connection, Raw::server(far, settings).await)
}

fn get() -> Request {
    http::Request::get("http://a/").body(Body::empty()).unwrap()
}

fn post(body: Body) -> Request {
    http::Request::post("http://a/").body(body).unwrap()
}

/// Until the driver has read what is there.
async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// A 200 without fields: entry 8 of the static table.
const OK: [u8; 1] = [0x88];

#[tokio::test(start_paused = true)]
async fn sends_a_body_and_trailers_and_gets_them_back() {
    let (connection, _served) = upstream(echo()).await;
    let (sender, body) = channel();
    tokio::spawn(async move {
        sender.send(Frame::data("hello ".into())).await.unwrap();
        sender.send(Frame::data("world".into())).await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        sender.send(Frame::trailers(trailers)).await.unwrap();
    });
    let response = connection.send(post(body)).await.unwrap();
    assert_eq!(connection.active(), 1);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "hello world");
    assert_eq!((connection.active(), connection.requests()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_request_goes_on_while_the_response_is_read() {
    let (connection, _served) = upstream(echo()).await;
    let (sender, body) = channel();
    let mut body = connection.send(post(body)).await.unwrap().into_body();
    for round in 0..100 {
        let message = Bytes::from(format!("message {round}"));
        sender.send(Frame::data(message.clone())).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, message);
    }
    drop(sender);
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_response_stops_the_request() {
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let (sender, body) = channel();
    let send = tokio::spawn({
        let connection = connection.clone();
        async move { connection.send(post(body)).await }
    });
    raw.next(&[kind::HEADERS]).await.unwrap();
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &OK)).await;
    let response = send.await.unwrap().unwrap();
    sender.send(Frame::data("x".into())).await.unwrap();
    assert_eq!(&raw.next(&[kind::DATA]).await.unwrap().payload[..], b"x");
    drop(response);
    let reset = raw.next(&[kind::RST_STREAM]).await.unwrap();
    assert_eq!((reset.stream, reset.code()), (1, 8));
    sender.closed().await;
    assert_eq!(connection.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_request_future_resets_the_stream() {
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let (sender, body) = channel();
    let send = tokio::spawn({
        let connection = connection.clone();
        async move { connection.send(post(body)).await.map(|_| ()) }
    });
    raw.next(&[kind::HEADERS]).await.unwrap();
    send.abort();
    assert_eq!(raw.next(&[kind::RST_STREAM]).await.unwrap().code(), 8);
    sender.closed().await;
    assert_eq!(connection.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failing_request_body_resets_the_stream() {
    struct Fails;
    impl http_body::Body for Fails {
        type Data = Bytes;
        type Error = Error;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Error>>> {
            std::task::Poll::Ready(Some(Err(Error::downstream(Kind::Cancelled, "the client is gone"))))
        }
    }
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let error = connection.send(post(Body::stream(Fails))).await.unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Cancelled, Progress::Sent));
    assert_eq!(raw.next(&[kind::RST_STREAM]).await.unwrap().code(), 8);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_unsent() {
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let (first, second, third) = (connection.clone(), connection.clone(), connection.clone());
    let first = tokio::spawn(async move { first.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    let second = tokio::spawn(async move { second.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    let third = tokio::spawn(async move { third.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    assert!(connection.is_usable());

    raw.send(&frame(kind::RST_STREAM, 0, 1, &7u32.to_be_bytes())).await;
    let error = first.await.unwrap().unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Refused, Progress::Unsent), "REFUSED_STREAM");

    // Stream 3 was taken, stream 5 was not.
    raw.send(&frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0])).await;
    let error = third.await.unwrap().unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Refused, Progress::Unsent), "above the GOAWAY");
    assert!(!connection.is_usable());
    let error = connection.send(get()).await.unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Refused, Progress::Unsent), "after the GOAWAY");

    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 3, &OK)).await;
    assert_eq!(second.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_reset_before_the_response_is_sent() {
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let sender = connection.clone();
    let send = tokio::spawn(async move { sender.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    raw.send(&frame(kind::RST_STREAM, 0, 1, &2u32.to_be_bytes())).await;
    let error = send.await.unwrap().unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Reset, Progress::Sent));

    let sender = connection.clone();
    let send = tokio::spawn(async move { sender.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    drop(raw);
    let error = send.await.unwrap().unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Reset, Progress::Sent));
    until(|| !connection.is_usable()).await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_in_the_response_is_an_error_of_its_body() {
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let sender = connection.clone();
    let send = tokio::spawn(async move { sender.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &OK)).await;
    raw.send(&frame(kind::DATA, 0, 1, b"half")).await;
    let mut body = send.await.unwrap().unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    raw.send(&frame(kind::RST_STREAM, 0, 1, &2u32.to_be_bytes())).await;
    assert_eq!(body.frame().await.unwrap().unwrap_err().kind, Kind::Reset);
}

#[tokio::test(start_paused = true)]
async fn never_more_streams_than_the_peer_allows() {
    // SETTINGS_MAX_CONCURRENT_STREAMS = 1
    let (connection, mut raw) = raw(&[(3, 1)], &ClientOptions::default()).await;
    let sender = connection.clone();
    let send = tokio::spawn(async move { sender.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    until(|| !connection.has_capacity()).await;
    let error = connection.send(get()).await.unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Refused, Progress::Unsent));
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &OK)).await;
    drop(send.await.unwrap().unwrap());
    assert!(connection.has_capacity());

    let options = ClientOptions { max_streams: 2, ..ClientOptions::default() };
    let (connection, _raw) = self::raw(&[(3, 100)], &options).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let sender = connection.clone();
        waiting.push(tokio::spawn(async move { sender.send(get()).await }));
        let want = waiting.len();
        until(|| connection.active() == want).await;
    }
    assert!(!connection.has_capacity());
}

#[tokio::test(start_paused = true)]
async fn draining_upstreams_are_left_without_loss() {
    let called = Arc::new(Notify::new());
    let release = Arc::new(Notify::new());
    let (call, wait) = (called.clone(), release.clone());
    let (connection, served) = upstream(service(move |_| {
        let (call, wait) = (call.clone(), wait.clone());
        async move {
            call.notify_one();
            wait.notified().await;
            Response::new(Body::full("done"))
        }
    }))
    .await;
    let sender = connection.clone();
    let send = tokio::spawn(async move { sender.send(get()).await });
    called.notified().await;
    served.drainer.start();
    until(|| !connection.is_usable()).await;
    release.notify_one();
    let response = send.await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
    served.driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_connection_ends_with_its_last_handle() {
    let (connection, served) = upstream(echo()).await;
    let response = connection.send(post(Body::full("x"))).await.unwrap();
    drop(connection);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "x");
    served.driver.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn heads_take_the_form_of_http2() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let see = seen.clone();
    let (connection, _served) = upstream(service(move |request| {
        let (parts, _) = request.into_parts();
        see.lock().unwrap().push((parts.uri.to_string(), parts.headers));
        async { Response::new(Body::empty()) }
    }))
    .await;
    let request = http::Request::post("/path?q")
        .header("host", "shop.example:8080")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .header("keep-alive", "1")
        .header("transfer-encoding", "chunked")
        .header("te", "trailers")
        .body(Body::full("x"))
        .unwrap();
    connection.send(request).await.unwrap();
    let (uri, headers) = seen.lock().unwrap().pop().unwrap();
    assert_eq!(uri, "http://shop.example:8080/path?q");
    assert_eq!(
        headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect::<Vec<_>>(),
        [("te", "trailers")]
    );

    let error = connection.send(http::Request::get("/").body(Body::empty()).unwrap()).await.unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Internal, Progress::Unsent));
}

#[tokio::test(start_paused = true)]
async fn interim_responses_are_passed_on() {
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let informational = Informational::default();
    let mut request = get();
    request.extensions_mut().insert(informational.clone());
    let sender = connection.clone();
    let send = tokio::spawn(async move { sender.send(request).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &hpack(&[(":status", "103"), ("link", "</a>")]))).await;
    let interim = poll_fn(|cx| informational.poll_next(cx)).await;
    assert_eq!(
        (interim.status(), &interim.headers()["link"]),
        (StatusCode::EARLY_HINTS, &HeaderValue::from_static("</a>"))
    );
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &OK)).await;
    assert_eq!(send.await.unwrap().unwrap().status(), 200);

    // But not without end.
    let sender = connection.clone();
    let send = tokio::spawn(async move { sender.send(get()).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    for _ in 0..1000 {
        raw.send(&frame(kind::HEADERS, END_HEADERS, 3, &hpack(&[(":status", "103")]))).await;
    }
    assert!(matches!(send.await.unwrap().unwrap_err().error.kind, Kind::Protocol { .. }));
}

#[tokio::test(start_paused = true)]
async fn response_heads_have_limits() {
    let (connection, _served) = upstream(service(|request| async move {
        let mut response = Response::new(Body::empty());
        let (count, length) = if request.uri().path() == "/many" { (101, 1) } else { (1, 200_000) };
        for _ in 0..count {
            response.headers_mut().append("x", HeaderValue::from_str(&"y".repeat(length)).unwrap());
        }
        response
    }))
    .await;
    for path in ["/many", "/long"] {
        let request = http::Request::get(format!("http://a{path}")).body(Body::empty()).unwrap();
        let error = connection.send(request).await.unwrap_err();
        let refused = matches!(error.error.kind, Kind::TooLarge { .. } | Kind::Protocol { .. });
        assert!(refused && error.progress > Progress::Unsent, "{path}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_length_in_an_answer_to_head_is_not_that_of_its_body() {
    let (connection, mut raw) = raw(&[], &ClientOptions::default()).await;
    let request = http::Request::head("http://a/").body(Body::empty()).unwrap();
    let send = tokio::spawn(async move { connection.send(request).await });
    raw.next(&[kind::HEADERS]).await.unwrap();
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &hpack(&[(":status", "200"), ("content-length", "5")]))).await;
    let response = send.await.unwrap().unwrap();
    assert_eq!(response.headers()["content-length"], "5");
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(0));
    raw.send(&frame(kind::DATA, END_STREAM, 1, b"")).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
}

fn websocket() -> Request {
    let mut request = http::Request::new(Body::empty());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "http://a/chat".parse().unwrap();
    request.extensions_mut().insert(ExtendedConnect("websocket".to_owned()));
    request
}

#[tokio::test(start_paused = true)]
async fn extended_connect_gives_a_connection() {
    let (connection, _served) = upstream(service(|request| async move {
        assert_eq!(request.extensions().get(), Some(&ExtendedConnect("websocket".to_owned())));
        Response::new(Body::tunnel(|mut io| async move {
            let mut all = Vec::new();
            io.read_to_end(&mut all).await.unwrap();
            io.write_all(&all).await.unwrap();
            io.shutdown().await.unwrap();
        }))
    }))
    .await;
    let mut response = connection.send(websocket()).await.unwrap();
    assert_eq!(response.status(), 200);
    let io = response.body_mut().take_upgraded().unwrap();
    assert_eq!(connection.active(), 1);
    let payload = vec![5; 300_000];
    let (mut reader, mut writer) = tokio::io::split(io);
    let ((), read) = tokio::join!(
        async {
            writer.write_all(&payload).await.unwrap();
            writer.shutdown().await.unwrap();
        },
        async {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.unwrap();
            all
        }
    );
    assert_eq!(read, payload);
    drop((reader, writer));
    assert_eq!(connection.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn extended_connect_needs_the_peers_consent() {
    let (connection, _raw) = raw(&[], &ClientOptions::default()).await;
    let error = connection.send(websocket()).await.unwrap_err();
    assert_eq!(error.progress, Progress::Unsent);
    assert!(error.error.message.contains("extended CONNECT"), "{error:?}");
    assert_eq!(connection.active(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dead_upstream_is_noticed_by_ping() {
    let options = ClientOptions {
        keepalive_interval: Duration::from_secs(10),
        keepalive_timeout: Duration::from_secs(5),
        ..ClientOptions::default()
    };
    let (connection, raw) = raw(&[], &options).await;
    let started = tokio::time::Instant::now();
    let error = connection.send(get()).await.unwrap_err();
    assert_eq!((error.error.kind, error.progress), (Kind::Reset, Progress::Sent));
    assert!(started.elapsed() < Duration::from_secs(40));
    assert!(!connection.is_usable());
    drop(raw);
}

#[tokio::test(start_paused = true)]
async fn a_slow_upstream_holds_back_the_request_body() {
    // SETTINGS_INITIAL_WINDOW_SIZE = 10
    let (connection, mut raw) = raw(&[(4, 10)], &ClientOptions::default()).await;
    let (sender, body) = channel();
    let send = tokio::spawn(async move { connection.send(post(body)).await });
    let pushed = tokio::spawn(async move {
        let mut pushed = 0;
        while sender.send(Frame::data(Bytes::from_static(&[0; 1000]))).await.is_ok() {
            pushed += 1;
        }
        pushed
    });
    raw.next(&[kind::HEADERS]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    raw.send(&frame(kind::RST_STREAM, 0, 1, &8u32.to_be_bytes())).await;
    assert!(send.await.unwrap().is_err());
    let pushed = pushed.await.unwrap();
    // 65,535 bytes are allowed until the SETTINGS arrive.
    assert!(pushed <= 70, "{pushed} kB were taken for an upstream that accepts 10 bytes");
}
