//! What upstreams see, and what they may answer.

use crate::support::*;
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt;
use selvedge_proxy::{
    Body, Request, Response,
    codec::{Informational, Progress, SendError, h1::ClientOptions},
    error::{Kind, Side},
};
use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const OPTIONS: ClientOptions = ClientOptions { max_headers: 100, max_header_bytes: 60 * 1024, max_interim: 32 };
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn body(response: Response) -> String {
    text(&response.into_body().collect().await.unwrap().to_bytes())
}

fn post(body: Body) -> Request {
    http::Request::post("/p").header(header::HOST, "a").body(body).unwrap()
}

/// What the upstream got of a request, which it answers with `OK`.
async fn written(request: Request, end: &str) -> String {
    let pool = Arc::new(Pool::default());
    let (connection, mut far) = connection(&pool);
    let send = connection.send(request, &OPTIONS);
    let upstream = async {
        let seen = until(&mut far, end).await;
        far.write_all(OK.as_bytes()).await.unwrap();
        seen
    };
    let (response, seen) = tokio::join!(send, upstream);
    assert_eq!(body(response.unwrap()).await, "ok");
    assert_eq!(pool.len(), 1);
    seen
}

#[tokio::test]
async fn requests_are_framed_by_what_is_known() {
    assert_eq!(written(get("/x?y"), "\r\n\r\n").await, "GET /x?y HTTP/1.1\r\nhost: a\r\n\r\n");
    let absolute = http::Request::get("http://b:81/z").body(Body::empty()).unwrap();
    assert_eq!(written(absolute, "\r\n\r\n").await, "GET /z HTTP/1.1\r\nhost: b:81\r\n\r\n");
    let head = "POST /p HTTP/1.1\r\nhost: a\r\n";
    assert_eq!(written(post(Body::empty()), "\r\n\r\n").await, format!("{head}content-length: 0\r\n\r\n"));
    assert_eq!(written(post(Body::full("abc")), "abc").await, format!("{head}content-length: 3\r\n\r\nabc"));
    let (sender, stream) = channel();
    sender.try_send(data("abc")).unwrap();
    let mut fields = HeaderMap::new();
    fields.insert("x-sum", "1".parse().unwrap());
    sender.try_send(Ok(http_body::Frame::trailers(fields))).unwrap();
    assert_eq!(
        written(post(stream), "1\r\n\r\n").await,
        format!("{head}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n")
    );
    let (sender, stream) = channel();
    sender.try_send(data("abc")).unwrap();
    drop(sender);
    let mut request = post(stream);
    request.headers_mut().insert(header::CONTENT_LENGTH, 3.into());
    request.headers_mut().insert(header::TRANSFER_ENCODING, "gzip".parse().unwrap());
    request.headers_mut().insert(header::CONNECTION, "x".parse().unwrap());
    assert_eq!(written(request, "abc").await, format!("{head}content-length: 3\r\n\r\nabc"));
    let options = http::Request::options("*").header(header::HOST, "a").body(Body::empty()).unwrap();
    assert_eq!(written(options, "\r\n\r\n").await, "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n");
}

#[tokio::test]
async fn clean_connections_go_home_and_others_do_not() {
    for (answer, want, home) in [
        (OK, "ok", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "ok", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nx: y\r\n\r\n", "ok", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: y\r\n\r\n", "", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", true),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", "", true),
        ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", "ok", true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok", false),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", "ok", false),
        ("HTTP/1.1 200 OK\r\n\r\nok", "ok", false),
        // More than the response.
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokX", "ok", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n", "ok", false),
        ("HTTP/1.1 204 No Content\r\n\r\nbody", "", false),
        ("HTTP/1.1 304 Not Modified\r\n\r\nbody", "", false),
    ] {
        let (response, pool) = exchange(get("/"), answer).await;
        assert_eq!(body(response.unwrap()).await, want, "{answer:?}");
        assert_eq!(pool.len(), usize::from(home), "{answer:?}");
    }
    let mut head = get("/");
    *head.method_mut() = Method::HEAD;
    let (response, pool) = exchange(head, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    let response = response.unwrap();
    assert_eq!((&response.headers()["content-length"], response.body().is_empty()), (&"5".parse().unwrap(), true));
    assert_eq!(pool.len(), 0);
}

/// An upstream that does not read it would take it for the next request, if there could be one.
#[tokio::test]
async fn a_get_with_a_body_is_the_last_on_its_connection() {
    let pool = Arc::new(Pool::default());
    let (connection, mut far) = connection(&pool);
    let sent = Body::full(&b"GET /x HTTP/1.1\r\n\r\n"[..]);
    let request = http::Request::get("/").header(header::HOST, "a").body(sent).unwrap();
    let upstream = async {
        let seen = until(&mut far, "GET /x HTTP/1.1\r\n\r\n").await;
        far.write_all(OK.as_bytes()).await.unwrap();
        seen
    };
    let (response, seen) = tokio::join!(connection.send(request, &OPTIONS), upstream);
    assert_eq!(body(response.unwrap()).await, "ok");
    assert!(seen.contains("\r\nconnection: close\r\n") && seen.contains("\r\ncontent-length: 19\r\n"), "{seen}");
    assert_eq!(pool.len(), 0, "it may answer to what it took for a request");
}

#[tokio::test]
async fn trailers_come_through() {
    let answer =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\ngrpc-status: 0\r\ncontent-length: 4\r\n\r\n";
    let (response, pool) = exchange(get("/"), answer).await;
    let body = response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap().len(), 1);
    assert_eq!(pool.len(), 1);
}

#[tokio::test]
async fn what_no_upstream_may_answer() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
        "HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nx: a\nb: c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\rb: c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "<html>hello</html>",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let (response, pool) = exchange(get("/"), answer).await;
        let SendError { error, progress } = response.unwrap_err();
        assert_eq!((error.kind, error.side), (Kind::Protocol { status: 502 }, Side::Upstream), "{answer:?}");
        assert_eq!(progress, Progress::Answered);
        assert_eq!(pool.len(), 0);
    }
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(60 * 1024));
    assert!(exchange(get("/"), long).await.0.is_err());
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
    assert!(exchange(get("/"), many).await.0.is_err());
}

#[tokio::test]
async fn bodies_that_end_badly() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nx\r\n",
    ] {
        let (response, pool) = exchange(get("/"), answer).await;
        let error = response.unwrap().into_body().collect().await.unwrap_err();
        assert_eq!(error.side, Side::Upstream, "{answer:?}");
        assert_eq!(pool.len(), 0);
    }
}

#[tokio::test]
async fn interim_responses_are_passed_on_up_to_a_limit() {
    let informational = Informational::default();
    let mut request = get("/");
    request.extensions_mut().insert(informational.clone());
    let (response, pool) =
        exchange(request, format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{OK}"))
            .await;
    assert_eq!(body(response.unwrap()).await, "ok");
    assert_eq!(pool.len(), 1);
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(interim) = informational.poll_next(&mut cx) else { panic!("nothing came") };
    assert_eq!((interim.status(), &interim.headers()["link"]), (StatusCode::EARLY_HINTS, &"x".parse().unwrap()));
    assert!(informational.poll_next(&mut cx).is_pending());
    let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(33);
    let error = exchange(get("/"), flood + OK).await.0.unwrap_err();
    assert_eq!(error.error.kind, Kind::Protocol { status: 502 });
}

fn upgrade() -> Request {
    http::Request::get("/chat")
        .header(header::HOST, "a")
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "foo")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn upgrades_are_never_pooled() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: foo\r\nconnection: upgrade\r\n\r\nhello";
    let (response, pool) = exchange(upgrade(), answer).await;
    let mut response = response.unwrap();
    let mut io = response.body_mut().take_upgraded().unwrap();
    let mut hello = String::new();
    io.read_to_string(&mut hello).await.unwrap();
    assert_eq!((hello.as_str(), pool.len()), ("hello", 0));
    let (response, pool) = exchange(upgrade(), OK).await;
    assert_eq!(body(response.unwrap()).await, "ok");
    assert_eq!(pool.len(), 0);
    let connect = http::Request::connect("b:443").body(Body::empty()).unwrap();
    let (response, pool) = exchange(connect, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhello").await;
    let mut io = response.unwrap().body_mut().take_upgraded().unwrap();
    let mut hello = String::new();
    io.read_to_string(&mut hello).await.unwrap();
    assert_eq!((hello.as_str(), pool.len()), ("hello", 0));
}

#[tokio::test]
async fn an_early_answer_ends_the_request() {
    let pool = Arc::new(Pool::default());
    let (connection, mut far) = connection(&pool);
    let (sender, stream) = channel();
    sender.send(data("first")).await.unwrap();
    let send = connection.send(post(stream), &OPTIONS);
    let upstream = async {
        until(&mut far, "first\r\n").await;
        far.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig").await.unwrap();
    };
    let (response, ()) = tokio::join!(send, upstream);
    let response = response.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(body(response).await, "big");
    assert_eq!(pool.len(), 0);
    assert!(sender.is_closed());
}

#[tokio::test]
async fn both_directions_move_at_once() {
    let pool = Arc::new(Pool::default());
    let (connection, mut far) = connection(&pool);
    let (sender, stream) = channel();
    let mut send = pin!(connection.send(post(stream), &OPTIONS));
    tokio::select! {
        _ = &mut send => panic!("nothing was answered"),
        _ = until(&mut far, "\r\n\r\n") => {}
    }
    far.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let mut body = send.await.unwrap().into_body();
    for word in ["one", "two"] {
        sender.send(data(word)).await.unwrap();
        let upstream = async {
            let chunk = until(&mut far, &format!("{word}\r\n")).await;
            far.write_all(chunk.as_bytes()).await.unwrap();
        };
        let (frame, ()) = tokio::join!(body.frame(), upstream);
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), word);
    }
    drop(sender);
    let upstream = async {
        until(&mut far, "0\r\n\r\n").await;
        far.write_all(b"0\r\n\r\n").await.unwrap();
    };
    let (end, ()) = tokio::join!(body.frame(), upstream);
    assert!(end.is_none());
    assert_eq!(pool.len(), 1);
}

#[tokio::test]
async fn how_far_a_failed_exchange_came() {
    let pool = Arc::new(Pool::default());
    // Nothing could be written.
    let (near, far) = connection(&pool);
    drop(far);
    let error = near.send(get("/"), &OPTIONS).await.unwrap_err();
    assert_eq!((error.progress, error.error.kind), (Progress::Unsent, Kind::Reset));
    // Closed behind the request.
    let (response, _) = exchange(get("/"), "").await;
    let error = response.unwrap_err();
    assert_eq!((error.progress, error.error.kind), (Progress::Sent, Kind::Reset));
    let (response, _) = exchange(get("/"), "HTT").await;
    assert_eq!(response.unwrap_err().progress, Progress::Answered);
    // The client went away while it sent.
    let (near, _far) = connection(&pool);
    let (sender, stream) = channel();
    sender.send(Err(selvedge_proxy::Error::downstream(Kind::Reset, "gone"))).await.unwrap();
    let error = near.send(post(stream), &OPTIONS).await.unwrap_err().error;
    assert_eq!((error.side, error.kind), (Side::Downstream, Kind::Cancelled));
}

#[tokio::test]
async fn connections_are_reused_until_something_comes() {
    let pool = Arc::new(Pool::default());
    let (connection, mut far) = connection(&pool);
    let mut connection = Some(connection);
    for number in 1..=3 {
        let mut near = connection.take().unwrap();
        assert!(near.is_reusable());
        let send = near.send(get("/"), &OPTIONS);
        let upstream = async {
            until(&mut far, "\r\n\r\n").await;
            far.write_all(OK.as_bytes()).await.unwrap();
        };
        let (response, ()) = tokio::join!(send, upstream);
        assert_eq!(body(response.unwrap()).await, "ok");
        let back = pool.0.lock().unwrap().pop().unwrap();
        assert_eq!(back.requests(), number);
        connection = Some(back);
    }
    far.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n").await.unwrap();
    assert!(!connection.unwrap().is_reusable());
}
