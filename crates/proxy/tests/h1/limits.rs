//! Limits, timeouts and draining, in virtual time.

use crate::support::*;
use http::header;
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{Response, codec::Informational, error::Kind};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_given_up() {
    let (mut served, handler) = serve_with(HttpOptions::default(), echo);
    served.send(GET).await;
    served.until("] 0").await;
    // The time runs from the first byte of the head.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let start = Instant::now();
    for byte in b"GET / HT" {
        served.send([*byte]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let rest = served.rest().await;
    assert!(rest.starts_with("HTTP/1.1 408 ") && rest.contains("connection: close"), "{rest}");
    assert_eq!(start.elapsed().as_secs(), 10);
    assert_eq!(*handler.rejected.lock().unwrap(), [408]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let options = HttpOptions { idle_timeout: Duration::from_secs(60), ..HttpOptions::default() };
    let (mut served, handler) = serve_with(options, echo);
    let start = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        served.send(GET).await;
        served.until("] 0").await;
    }
    // An empty line is no request.
    served.send("\r\n").await;
    assert_eq!(served.rest().await, "");
    assert_eq!(start.elapsed().as_secs(), 210);
    served.task.await.unwrap().unwrap();
    assert!(handler.rejected.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn heads_over_their_limits() {
    for (bytes, status) in [
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(100)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "y".repeat(60 * 1024)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(17 * 1024)), 414),
        (format!("GET /{}", "y".repeat(100 * 1024)), 414),
    ] {
        let (mut served, handler) = serve_with(HttpOptions::default(), echo);
        served.send(bytes).await;
        let rest = served.rest().await;
        assert!(rest.starts_with(&format!("HTTP/1.1 {status} ")), "{rest}");
        assert_eq!(*handler.rejected.lock().unwrap(), [status]);
    }
}

/// At both ends of what `listener.headers.maxCount` allows.
#[tokio::test(start_paused = true)]
async fn as_many_fields_as_the_listener_says() {
    for max_headers in [8, 1000] {
        let head = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(count - 1));
        let options = || HttpOptions { max_headers, ..HttpOptions::default() };
        let (mut served, handler) = serve_with(options(), echo);
        served.send(head(max_headers as usize)).await;
        served.until("] 0").await;
        served.send(head(max_headers as usize + 1)).await;
        let rest = served.rest().await;
        assert!(rest.starts_with("HTTP/1.1 431 "), "{rest}");
        assert_eq!(*handler.rejected.lock().unwrap(), [431]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_times_out() {
    let options = HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() };
    let (mut served, _) = serve_with(options, echo);
    let start = Instant::now();
    served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    served.send("c").await;
    let rest = served.rest().await;
    assert!(rest.contains("Timeout") && rest.contains("connection: close"), "{rest}");
    assert_eq!(start.elapsed().as_secs(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_answers_is_given_up() {
    let mut served = serve(|_| Box::pin(std::future::pending()));
    served.send(GET).await;
    assert!(served.until("\r\n\r\n").await.starts_with("HTTP/1.1 504 "));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut() {
    let mut served = serve(|_| Box::pin(async { reply(vec![b'x'; 8 * 1024 * 1024]) }));
    let start = Instant::now();
    served.send(GET).await;
    assert_eq!(served.task.await.unwrap().unwrap_err().kind, Kind::Timeout);
    assert_eq!(start.elapsed().as_secs(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_response_body_that_stalls_is_cut() {
    let kept = Arc::new(Mutex::new(None));
    let keep = kept.clone();
    let mut served = serve(move |_| {
        let (sender, body) = channel();
        sender.try_send(data("abc")).unwrap();
        *keep.lock().unwrap() = Some(sender);
        Box::pin(async { Response::new(body) })
    });
    served.send(GET).await;
    assert!(served.rest().await.ends_with("\r\n\r\n3\r\nabc\r\n"));
    assert_eq!(served.task.await.unwrap().unwrap_err().kind, Kind::Timeout);
    assert!(kept.lock().unwrap().as_ref().unwrap().is_closed());
}

#[tokio::test(start_paused = true)]
async fn bodies_over_their_limit() {
    let options = HttpOptions { max_body_bytes: 4, ..HttpOptions::default() };
    for (body, fits) in [
        ("Content-Length: 4\r\n\r\nabcd", true),
        ("Content-Length: 5\r\n\r\nabcde", false),
        ("Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", false),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n", true),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", false),
    ] {
        let (mut served, _) = serve_with(options.clone(), echo);
        served.send(format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{body}")).await;
        let rest = served.rest().await;
        assert_eq!(rest.contains("TooLarge { status: 413 }"), !fits, "{rest}");
        assert!(!rest.contains("100 Continue"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_carries_so_many_requests() {
    let options = HttpOptions { max_requests_per_connection: 2, ..HttpOptions::default() };
    let (mut served, _) = serve_with(options, echo);
    served.send(GET.repeat(3)).await;
    assert!(!served.until("] 0").await.contains("connection: close"));
    let rest = served.rest().await;
    assert!(rest.contains("connection: close") && rest.matches("HTTP/1.1").count() == 1, "{rest}");
}

#[tokio::test(start_paused = true)]
async fn draining() {
    // Idle, new or used: a client in the middle of its work has two seconds for its next request.
    for (used, idle, left) in [(false, 0, 2), (true, 0, 2), (true, 1, 1), (true, 60, 0)] {
        let mut served = serve(echo);
        if used {
            served.send(GET).await;
            served.until("] 0").await;
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_secs(idle)).await;
        let start = Instant::now();
        served.drainer.start();
        assert_eq!(served.rest().await, "");
        assert_eq!(start.elapsed().as_secs(), left);
        served.task.await.unwrap().unwrap();
    }
    // The next request comes: it is the last.
    let mut served = serve(echo);
    served.drainer.start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    served.send(GET).await;
    assert!(served.rest().await.contains("connection: close"));
    // Busy: the response is told to be the last.
    let (go, wait) = oneshot::channel::<()>();
    let wait = Arc::new(Mutex::new(Some(wait)));
    let mut served = serve(move |_| {
        let wait = wait.lock().unwrap().take().unwrap();
        Box::pin(async move {
            wait.await.unwrap();
            reply("done")
        })
    });
    served.send(GET).await;
    tokio::task::yield_now().await;
    served.drainer.start();
    tokio::task::yield_now().await;
    go.send(()).unwrap();
    let rest = served.rest().await;
    assert!(rest.contains("connection: close\r\n") && rest.ends_with("done"), "{rest}");
    served.drainer.done().await;
    // A head that has begun is a request.
    let mut served = serve(echo);
    served.send("GET / HT").await;
    tokio::task::yield_now().await;
    served.drainer.start();
    tokio::task::yield_now().await;
    served.send("TP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(served.rest().await.contains("connection: close"));
}

#[tokio::test(start_paused = true)]
async fn a_response_can_ask_for_the_end() {
    let mut served = serve(|_| {
        Box::pin(async {
            let mut response = reply("bye");
            response.headers_mut().insert(header::CONNECTION, "close".parse().unwrap());
            response
        })
    });
    served.send(GET.repeat(2)).await;
    let rest = served.rest().await;
    assert!(rest.contains("connection: close") && rest.matches("HTTP/1.1").count() == 1, "{rest}");
}

#[tokio::test(start_paused = true)]
async fn a_body_read_by_another_task() {
    let mut served = serve(|request| {
        Box::pin(async move {
            let read = tokio::spawn(async move { request.into_body().collect().await.unwrap().to_bytes() });
            reply(read.await.unwrap())
        })
    });
    served.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    assert_eq!(served.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    served.send("abc").await;
    assert!(served.until("\r\n\r\nabc").await.starts_with("HTTP/1.1 200"));
    // The end of the body is noticed, and so is a client that goes away behind it.
    let options = HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() };
    let (mut served, _) = serve_with(options, |request| {
        Box::pin(async move {
            let read = tokio::spawn(async move { request.into_body().collect().await.is_err() });
            reply(format!("failed {}", read.await.unwrap()))
        })
    });
    served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n").await;
    assert!(served.rest().await.ends_with("failed true"));
}

#[tokio::test]
async fn an_idle_connection_is_small() {
    let drainer = selvedge_proxy::drain::Drainer::default();
    let options = HttpOptions::default();
    let handler = Arc::new(Handler { answer: echo, rejected: Mutex::default() });
    let io = selvedge_proxy::io::Io::other(tokio::io::empty());
    let size = size_of_val(&selvedge_proxy::codec::h1::serve(io, handler, &options, drainer.subscribe()));
    assert!(size <= 1024, "the future of a connection has {size} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_long_upload_leaves_the_answer_its_time() {
    let options = HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() };
    let (mut served, _) = serve_with(options, |request| {
        Box::pin(async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            tokio::time::sleep(Duration::from_secs(20)).await;
            reply(body)
        })
    });
    served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
    for byte in b"abcd" {
        tokio::time::sleep(Duration::from_secs(20)).await;
        served.send([*byte]).await;
    }
    let answer = served.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_route_may_be_more_patient_than_its_connection() {
    let options = HttpOptions { stream_idle_timeout: Duration::from_secs(30), ..HttpOptions::default() };
    let (mut served, _) = serve_with(options, |request| {
        let route = request.extensions().get::<Informational>().cloned();
        let patient = request.uri().path() == "/patient";
        Box::pin(async move {
            if patient {
                route.unwrap().set_stream_idle(Duration::ZERO);
            }
            tokio::time::sleep(Duration::from_secs(500)).await;
            reply("late")
        })
    });
    for version in ["1.1", "1.0"] {
        served.send(format!("GET /patient HTTP/{version}\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")).await;
        assert!(served.until("late").await.starts_with("HTTP/1.1 200 "));
    }
    // Its patience ends with it.
    served.send(GET).await;
    assert!(served.rest().await.starts_with("HTTP/1.1 504 "));
}
