//! HTTP/2 towards clients, driven by the `h2` crate's client and by raw frames.

mod h2_common;

use bytes::Bytes;
use h2_common::*;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{
    Body, Response,
    codec::{ExtendedConnect, Informational},
    error::Kind,
};
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, oneshot},
};

fn get(path: &str) -> http::Request<()> {
    http::Request::get(format!("http://a{path}")).body(()).unwrap()
}

fn post() -> http::Request<()> {
    http::Request::post("http://a/").body(()).unwrap()
}

async fn collect(mut body: h2::RecvStream) -> Result<(Bytes, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((all.into(), body.trailers().await?))
}

#[tokio::test(start_paused = true)]
async fn echoes_a_body_and_its_trailers() {
    let served = serve(echo(), HttpOptions::default());
    let (mut sender, _connection) = client(served.io).await;
    let (response, mut stream) = sender.send_request(post(), false).unwrap();
    stream.send_data("hello ".into(), false).unwrap();
    stream.send_data("world".into(), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("content-length", HeaderValue::from_static("5"));
    stream.send_trailers(trailers).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let (body, trailers) = collect(response.into_body()).await.unwrap();
    assert_eq!(body, "hello world");
    let trailers = trailers.unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(!trailers.contains_key("content-length"), "framing fields are no trailers");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_known_body_is_on_its_last_data_frame() {
    let served = serve(
        service(|request| async move {
            let mut response = Response::new(Body::full("hello"));
            if request.uri().path() == "/empty" {
                *response.body_mut() = Body::empty();
            }
            response.headers_mut().insert("connection", HeaderValue::from_static("x-internal"));
            response.headers_mut().insert("x-internal", HeaderValue::from_static("1"));
            response
        }),
        HttpOptions::default(),
    );
    let mut raw = Raw::client(served.io, &[]).await;
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head("GET"))).await;
    let headers = raw.next(&[kind::HEADERS, kind::DATA]).await.unwrap();
    assert_eq!((headers.kind, headers.flags & END_STREAM), (kind::HEADERS, 0));
    let data = raw.next(&[kind::HEADERS, kind::DATA]).await.unwrap();
    assert_eq!((data.kind, data.flags & END_STREAM, &data.payload[..]), (kind::DATA, END_STREAM, &b"hello"[..]));

    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 3, &head("HEAD"))).await;
    let headers = raw.next(&[kind::HEADERS, kind::DATA]).await.unwrap();
    assert_eq!((headers.kind, headers.flags & END_STREAM), (kind::HEADERS, END_STREAM), "HEAD has no body");
}

#[tokio::test(start_paused = true)]
async fn streams_both_ways_at_once() {
    let served = serve(echo(), HttpOptions::default());
    let (mut sender, _connection) = client(served.io).await;
    let (response, mut stream) = sender.send_request(post(), false).unwrap();
    let mut body = response.await.unwrap().into_body();
    for round in 0..100 {
        let message = Bytes::from(format!("message {round}"));
        stream.send_data(message.clone(), false).unwrap();
        let data = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        assert_eq!(data, message);
    }
    stream.send_data(Bytes::new(), true).unwrap();
    assert!(collect(body).await.unwrap().0.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_holds_back_the_body() {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    let served = serve(
        service(move |_| {
            let (sender, body) = channel();
            let count = count.clone();
            tokio::spawn(async move {
                while sender.send(Frame::data(Bytes::from(vec![0; 16 * 1024]))).await.is_ok() {
                    count.fetch_add(16 * 1024, SeqCst);
                }
            });
            async move { Response::new(body) }
        }),
        HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() },
    );
    let (mut sender, _connection) = client(served.io).await;
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    // Nothing is released, so the window of 65,535 bytes is all there is.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let taken = taken.load(SeqCst);
    assert!(taken <= 128 * 1024, "{taken} bytes were taken from the upstream for a client that reads nothing");
    // And the stall ends with the stream, not with the connection.
    let mut received = 0;
    let error = loop {
        match body.data().await.unwrap() {
            Ok(data) => received += data.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(received, 65_535);
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_reset_drops_the_service() {
    let (guard, dropped) = OnDrop::new();
    let guard = std::sync::Mutex::new(Some(guard));
    let called = Arc::new(Notify::new());
    let call = called.clone();
    let served = serve(
        service(move |_| {
            let guard = guard.lock().unwrap().take();
            call.notify_one();
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        }),
        HttpOptions::default(),
    );
    let (mut sender, _connection) = client(served.io).await;
    let (response, mut stream) = sender.send_request(post(), false).unwrap();
    called.notified().await;
    stream.send_reset(h2::Reason::CANCEL);
    dropped.await.unwrap();
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn losing_the_connection_drops_the_service() {
    let (guard, dropped) = OnDrop::new();
    let guard = std::sync::Mutex::new(Some(guard));
    let called = Arc::new(Notify::new());
    let call = called.clone();
    let served = serve(
        service(move |_| {
            let guard = guard.lock().unwrap().take();
            call.notify_one();
            async move {
                let _guard = guard;
                std::future::pending().await
            }
        }),
        HttpOptions::default(),
    );
    let mut raw = Raw::client(served.io, &[]).await;
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head("GET"))).await;
    called.notified().await;
    served.done.abort();
    dropped.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn interim_responses_come_first() {
    let served = serve(
        service(|request| async move {
            let informational = request.extensions().get::<Informational>().unwrap().clone();
            let mut hints = http::Response::new(());
            *hints.status_mut() = StatusCode::EARLY_HINTS;
            hints.headers_mut().insert("link", HeaderValue::from_static("</a>"));
            informational.send(hints);
            tokio::task::yield_now().await;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(Body::full(body))
        }),
        HttpOptions::default(),
    );
    let (mut sender, _connection) = client(served.io).await;
    let mut request = post();
    request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
    let (mut response, mut stream) = sender.send_request(request, false).unwrap();
    let mut interim = Vec::new();
    for _ in 0..2 {
        interim.push(poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap().status().as_u16());
    }
    interim.sort();
    assert_eq!(interim, [100, 103]);
    stream.send_data("x".into(), true).unwrap();
    assert_eq!(collect(response.await.unwrap().into_body()).await.unwrap().0, "x");
}

#[tokio::test(start_paused = true)]
async fn draining_loses_nothing() {
    let release = Arc::new(Notify::new());
    let called = Arc::new(Notify::new());
    let (wait, call) = (release.clone(), called.clone());
    let served = serve(
        service(move |_| {
            let (wait, call) = (wait.clone(), call.clone());
            async move {
                call.notify_one();
                wait.notified().await;
                Response::new(Body::full("done"))
            }
        }),
        HttpOptions::default(),
    );
    let mut raw = Raw::client(served.io, &[]).await;
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head("GET"))).await;
    called.notified().await;
    served.drainer.start();
    // First step: no more please, and a PING to learn when that has arrived.
    let goaway = raw.next(&[kind::GOAWAY]).await.unwrap();
    assert_eq!(&goaway.payload[..8], &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    // A request that crossed the GOAWAY is served.
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 3, &head("GET"))).await;
    called.notified().await;
    let goaway = raw.next(&[kind::GOAWAY]).await.unwrap();
    assert_eq!(&goaway.payload[..8], &[0, 0, 0, 3, 0, 0, 0, 0]);
    release.notify_waiters();
    let mut ended = Vec::new();
    while let Some(frame) = raw.next(&[kind::DATA]).await {
        assert_eq!(&frame.payload[..], b"done");
        ended.push(frame.stream);
    }
    ended.sort();
    assert_eq!(ended, [1, 3]);
    served.done.await.unwrap().unwrap();
    served.drainer.done().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_told_and_closed() {
    let served = serve(echo(), HttpOptions { idle_timeout: Duration::from_secs(60), ..HttpOptions::default() });
    let started = tokio::time::Instant::now();
    let mut raw = Raw::client(served.io, &[]).await;
    let goaway = raw.next(&[kind::GOAWAY]).await.unwrap();
    assert_eq!(goaway.code(), 0);
    while raw.next(&[]).await.is_some() {}
    served.done.await.unwrap().unwrap();
    assert!((60..62).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dead_client_is_noticed_by_ping() {
    let mut options = HttpOptions::default();
    options.http2.keepalive_interval = Duration::from_secs(10);
    options.http2.keepalive_timeout = Duration::from_secs(5);
    let served = serve(service(|_| std::future::pending()), options);
    let mut raw = Raw::client(served.io, &[]).await;
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &head("GET"))).await;
    let started = tokio::time::Instant::now();
    let error = served.done.await.unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Timeout);
    assert!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_request_limit_of_a_connection_ends_it_gracefully() {
    let served = serve(echo(), HttpOptions { max_requests_per_connection: 2, ..HttpOptions::default() });
    let (mut sender, connection) = client(served.io).await;
    for _ in 0..2 {
        let (response, _) = sender.send_request(get("/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    }
    connection.await.unwrap().unwrap();
    served.done.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn header_limits_count_decoded_fields() {
    let echo = echo();
    let served = serve(echo.clone(), HttpOptions::default());
    let (mut sender, _connection) = client(served.io).await;
    let mut request = get("/");
    for _ in 0..101 {
        request.headers_mut().append("cookie", HeaderValue::from_static("a=b"));
    }
    let (response, _) = sender.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    let mut request = get("/");
    let long = "x".repeat(61 * 1024);
    request.headers_mut().append("x", HeaderValue::from_str(&long).unwrap());
    let (response, _) = sender.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 431);
    assert_eq!(*echo.rejected.lock().unwrap(), [431, 431]);
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn cookies_arrive_as_one_field_beside_authority_and_host() {
    let (sender, receiver) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let served = serve(
        service(move |request| {
            let _ = sender.lock().unwrap().take().unwrap().send(request.into_parts().0);
            async { Response::new(Body::empty()) }
        }),
        HttpOptions::default(),
    );
    let mut raw = Raw::client(served.io, &[]).await;
    let mut block = head("GET");
    block.extend(hpack(&[("cookie", "a=1"), ("host", "b"), ("cookie", "b=2")]));
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
    let parts = receiver.await.unwrap();
    assert_eq!(parts.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    assert_eq!(parts.headers["host"], "b");
    assert_eq!(parts.uri.authority().unwrap(), "a");
    assert_eq!(parts.version, http::Version::HTTP_2);
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_never_reach_the_service() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let service = service(move |_| {
        count.fetch_add(1, SeqCst);
        async { Response::new(Body::empty()) }
    });
    let mut served = serve(service.clone(), HttpOptions::default());
    let mut raw = Raw::client(served.io, &[]).await;
    let bad: &[&[(&str, &str)]] = &[
        &[("connection", "close")],
        &[("transfer-encoding", "chunked")],
        &[("upgrade", "h2c")],
        &[("te", "gzip")],
        &[("Upper", "x")],
        &[("x", "a\r\nb: c")],
        &[("x", "a\0b")],
        &[("a b", "x")],
        &[(":path", "/again")],
        &[("x", "y"), (":authority", "b")],
        &[(":unknown", "x")],
        &[("content-length", "5")],
        &[("content-length", "0, 0")],
        &[("content-length", "+0")],
    ];
    for (at, fields) in bad.iter().enumerate() {
        let stream = 1 + 2 * at as u32;
        let mut block = head("POST");
        block.extend(hpack(fields));
        raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &block)).await;
        let answer = raw.next(&[kind::RST_STREAM, kind::HEADERS, kind::GOAWAY]).await;
        match answer {
            Some(frame) if frame.kind == kind::RST_STREAM => assert_eq!(frame.code(), 1, "{fields:?}"),
            // Names and values that are none at all are a connection error in `h2`.
            Some(frame) if frame.kind == kind::GOAWAY => {
                assert_eq!(frame.code(), 1, "{fields:?}");
                served = serve(service.clone(), HttpOptions::default());
                raw = Raw::client(served.io, &[]).await;
            }
            _ => panic!("{fields:?} was answered"),
        }
    }
    assert_eq!(calls.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_get_has_no_body_as_over_http1() {
    let served = serve(
        service(|request| async move { Response::new(Body::full(format!("empty {}", request.body().is_empty()))) }),
        HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() },
    );
    let (mut sender, _connection) = client(served.io).await;
    let (ended, mut stream) = sender.send_request(get("/"), false).unwrap();
    stream.send_data(Bytes::new(), true).unwrap();
    let (body, _) = collect(ended.await.unwrap().into_body()).await.unwrap();
    assert_eq!(body, "empty true", "an empty frame is no body");
    let (ended, mut stream) = sender.send_request(get("/"), false).unwrap();
    stream.send_trailers(HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))])).unwrap();
    let (body, _) = collect(ended.await.unwrap().into_body()).await.unwrap();
    assert_eq!(body, "empty true");
    // A server that does not read it would take it for the next request of the connection it came by.
    let (refused, mut stream) = sender.send_request(get("/"), false).unwrap();
    stream.send_data("GET /admin HTTP/1.1\r\n".into(), false).unwrap();
    assert_eq!(refused.await.unwrap().status(), 400);
    // The rest of it is read: some clients take the reset of a stream on which they send for the loss of the answer.
    stream.send_data("Host: a\r\n\r\n".into(), true).expect("open still");
    let announced = http::Request::get("http://a/").header("content-length", "1").body(()).unwrap();
    let (refused, mut stream) = sender.send_request(announced, false).unwrap();
    assert_eq!(refused.await.unwrap().status(), 400);
    stream.send_data("x".into(), true).expect("open still");
    let (late, _stream) = sender.send_request(get("/"), false).unwrap();
    assert_eq!(late.await.unwrap().status(), 408);
}

#[tokio::test(start_paused = true)]
async fn data_must_be_as_long_as_announced() {
    let served = serve(echo(), HttpOptions::default());
    let mut raw = Raw::client(served.io, &[]).await;
    let mut block = head("POST");
    block.extend(hpack(&[("content-length", "5")]));
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &block)).await;
    raw.send(&frame(kind::DATA, END_STREAM, 1, b"four")).await;
    let reset = raw.next(&[kind::RST_STREAM]).await.unwrap();
    assert_eq!((reset.stream, reset.code()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_response_of_the_wrong_length_is_reset() {
    let served = serve(
        service(|request| async move {
            let body = if request.uri().path() == "/short" { "four" } else { "sixsix" };
            let (sender, stream) = channel();
            tokio::spawn(async move { sender.send(Frame::data(Bytes::from(body))).await });
            let mut response = Response::new(stream);
            response.headers_mut().insert("content-length", HeaderValue::from_static("5"));
            response
        }),
        HttpOptions::default(),
    );
    let (mut sender, _connection) = client(served.io).await;
    for path in ["/short", "/long"] {
        let (response, _) = sender.send_request(get(path), true).unwrap();
        let error = match response.await {
            Ok(response) => collect(response.into_body()).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn extended_connect_becomes_a_tunnel() {
    let served = serve(
        service(|request| async move {
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.extensions().get(), Some(&ExtendedConnect("websocket".to_owned())));
            assert_eq!(request.uri().path(), "/chat");
            Response::new(Body::tunnel(|mut io| async move {
                let mut all = Vec::new();
                let mut buf = [0; 1000];
                loop {
                    match io.read(&mut buf).await.unwrap() {
                        0 => break,
                        n => {
                            io.write_all(&buf[..n]).await.unwrap();
                            all.extend_from_slice(&buf[..n]);
                        }
                    }
                }
                // The client has closed its half; ours is still open.
                io.write_all(format!("; {} bytes", all.len()).as_bytes()).await.unwrap();
                io.shutdown().await.unwrap();
            }))
        }),
        HttpOptions::default(),
    );
    let (mut sender, _connection) = client(served.io).await;
    // The first SETTINGS must have come.
    while !sender.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    let mut request = http::Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "http://a/chat".parse().unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from("websocket"));
    let (response, mut stream) = sender.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    let payload = Bytes::from(vec![7; 200_000]);
    let sent = payload.clone();
    let writer = tokio::spawn(async move {
        stream.send_data(sent, true).unwrap();
        stream
    });
    let (body, _) = collect(response.into_body()).await.unwrap();
    assert_eq!(body.len(), 200_000 + "; 200000 bytes".len());
    assert_eq!(body[..200_000], payload[..]);
    writer.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_101_to_extended_connect_is_a_200() {
    let served = serve(
        service(|_| async {
            let mut response = Response::new(Body::tunnel(|mut io| async move {
                io.write_all(b"hi").await.unwrap();
                io.shutdown().await.unwrap();
            }));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            for (name, value) in [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", "x")] {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            response
        }),
        HttpOptions::default(),
    );
    let (mut sender, _connection) = client(served.io).await;
    while !sender.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    let mut request = http::Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "http://a/chat".parse().unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from("websocket"));
    let (response, _stream) = sender.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!((response.status(), response.headers().len()), (StatusCode::OK, 1), "only the date");
    assert_eq!(collect(response.into_body()).await.unwrap().0, "hi");
}

#[tokio::test(start_paused = true)]
async fn a_refused_connect_is_an_ordinary_response() {
    let served = serve(
        service(|_| async {
            let mut response = Response::new(Body::full("no"));
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response
        }),
        HttpOptions::default(),
    );
    let (mut sender, _connection) = client(served.io).await;
    let mut request = http::Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = "a:443".parse().unwrap();
    let (response, _stream) = sender.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(collect(response.into_body()).await.unwrap().0, "no");
}

#[tokio::test(start_paused = true)]
async fn an_early_response_lets_go_of_the_upload() {
    let served = serve(service(|_| async { Response::new(Body::full("enough")) }), HttpOptions::default());
    let mut raw = Raw::client(served.io, &[]).await;
    raw.send(&frame(kind::HEADERS, END_HEADERS, 1, &head("POST"))).await;
    let data = raw.next(&[kind::DATA]).await.unwrap();
    assert_eq!(data.flags & END_STREAM, END_STREAM);
    let reset = raw.next(&[kind::RST_STREAM]).await.unwrap();
    assert_eq!(reset.code(), 0, "NO_ERROR: the response stands");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_stalls_is_timed_out() {
    let served = serve(
        service(|request| async move {
            let body = request.into_body().collect().await.unwrap();
            Response::new(Body::full(body.to_bytes()))
        }),
        HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() },
    );
    let (mut sender, _connection) = client(served.io).await;
    let (response, mut stream) = sender.send_request(post(), false).unwrap();
    stream.send_data("a".into(), false).unwrap();
    assert_eq!(response.await.unwrap().status(), 408);
}

#[tokio::test(start_paused = true)]
async fn a_route_may_be_more_patient_than_its_connection() {
    let served = serve(
        service(|request| async move {
            if request.uri().path() == "/patient" {
                request.extensions().get::<Informational>().unwrap().set_stream_idle(Duration::ZERO);
            }
            tokio::time::sleep(Duration::from_secs(500)).await;
            Response::new(Body::full("late"))
        }),
        HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() },
    );
    let (mut sender, _connection) = client(served.io).await;
    let (patient, _) = sender.send_request(get("/patient"), true).unwrap();
    let (other, _) = sender.send_request(get("/"), true).unwrap();
    assert_eq!(other.await.unwrap().status(), 504);
    assert_eq!(patient.await.unwrap().status(), 200);
}

#[test]
fn size_hints_follow_content_length() {
    // Filters decide by it whether to buffer.
    assert_eq!(Body::full("abc").size_hint().exact(), Some(3));
}

#[tokio::test(start_paused = true)]
async fn malformed_trailers_reset_the_stream() {
    let served = serve(
        service(|request| async move {
            let result = request.into_body().collect().await;
            let mut response = Response::new(Body::full("read"));
            if result.is_err() {
                *response.status_mut() = StatusCode::BAD_REQUEST;
            }
            response
        }),
        HttpOptions::default(),
    );
    let mut raw = Raw::client(served.io, &[]).await;
    for (stream, trailers) in [(1, hpack(&[(":path", "/x")])), (3, vec![0x83]), (5, hpack(&[("x-a", " blank")]))] {
        raw.send(&frame(kind::HEADERS, END_HEADERS, stream, &head("POST"))).await;
        raw.send(&frame(kind::DATA, 0, stream, b"body")).await;
        raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &trailers)).await;
        let answer = raw.next(&[kind::HEADERS, kind::RST_STREAM]).await.unwrap();
        assert_eq!((answer.kind, answer.stream), (kind::RST_STREAM, stream));
        assert_eq!(answer.code(), 1, "PROTOCOL_ERROR");
    }
    raw.send(&frame(kind::HEADERS, END_HEADERS, 7, &head("POST"))).await;
    raw.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 7, &hpack(&[("x-a", "fine")]))).await;
    let answer = raw.next(&[kind::HEADERS, kind::RST_STREAM]).await.unwrap();
    assert_eq!((answer.kind, answer.stream), (kind::HEADERS, 7), "the connection lives on");
}

#[tokio::test(start_paused = true)]
async fn every_response_has_a_date() {
    let served = serve(service(|_| async { Response::new(Body::empty()) }), HttpOptions::default());
    let (mut sender, _connection) = client(served.io).await;
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    assert_eq!(response.await.unwrap().headers()["date"].len(), 29);
    let mut blank = get("/");
    blank.headers_mut().insert("x-a", HeaderValue::from_bytes(b"a ").unwrap());
    let (response, _) = sender.send_request(blank, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 400, "a value that ends in a blank");
    assert!(response.headers().contains_key("date"));
}
