//! What clients see.

use crate::support::*;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{Body, Request, Response, codec::Informational, error::Kind};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};

#[tokio::test]
async fn keep_alive_and_pipelining() {
    let mut served = serve(echo);
    served.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let first = dateless(&served.until("] 0").await);
    assert_eq!(first, "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nGET /1 [] 0");
    // Two in one, with bodies, and empty lines between.
    served
        .send(
            "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\n\
             POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\nX-A: 1\r\n\r\n\
             GET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .await;
    let rest = served.rest().await;
    let bodies: Vec<_> = rest.split("HTTP/1.1 200 OK").filter_map(|r| r.split_once("\r\n\r\n")).collect();
    assert_eq!(bodies.iter().map(|b| b.1).collect::<Vec<_>>(), ["POST /2 [abc] 0", "POST /3 [def] 1", "GET /4 [] 0"]);
    assert!(bodies[2].0.contains("connection: close") && !bodies[1].0.contains("connection"));
    served.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_body_that_comes_in_pieces() {
    let mut served = serve(echo);
    for byte in b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" {
        served.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert!(served.until("] 0").await.ends_with("POST /x [hello] 0"));
    for piece in
        ["POST /y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "5", "\r\nhe", "llo\r", "\n0\r\n\r\n"]
    {
        served.send(piece).await;
        tokio::task::yield_now().await;
    }
    assert!(served.until("] 0").await.ends_with("POST /y [hello] 0"));
}

#[tokio::test]
async fn http_1_0_is_kept_only_when_asked() {
    let mut served = serve(echo);
    served.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert!(served.until("] 0").await.contains("connection: keep-alive\r\n"));
    served.send("GET / HTTP/1.0\r\n\r\n").await;
    assert!(served.rest().await.contains("connection: close\r\n"));
    // A body of unknown length ends with the connection.
    let mut served = serve(|_| {
        Box::pin(async {
            let (sender, body) = channel();
            sender.send(data("abc")).await.unwrap();
            Response::new(body)
        })
    });
    served.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    assert_eq!(dateless(&served.rest().await), "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
}

#[tokio::test]
async fn heads_without_bodies() {
    let mut served = serve(|request| {
        Box::pin(async move {
            let mut response = reply("hello");
            match request.uri().path() {
                "/204" => *response.status_mut() = StatusCode::NO_CONTENT,
                "/304" => {
                    *response.status_mut() = StatusCode::NOT_MODIFIED;
                    response.headers_mut().insert(header::CONTENT_LENGTH, 99.into());
                }
                "/announced" => {
                    *response.body_mut() = Body::empty();
                    response.headers_mut().insert(header::CONTENT_LENGTH, 77.into());
                }
                _ => {}
            }
            response
        })
    });
    let mut ask = async |line: &str| {
        served.send(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        dateless(&served.until("\r\n\r\n").await)
    };
    assert_eq!(ask("HEAD /").await, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(ask("HEAD /announced").await, "HTTP/1.1 200 OK\r\ncontent-length: 77\r\n\r\n");
    assert_eq!(ask("GET /announced").await, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(ask("GET /204").await, "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(ask("GET /304").await, "HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n");
}

#[tokio::test]
async fn streams_trailers_and_lengths() {
    let respond = |length: Option<u64>, trailers: bool| {
        move |_| -> Answer {
            Box::pin(async move {
                let (sender, body) = channel();
                sender.send(data("abc")).await.unwrap();
                sender.send(data("")).await.unwrap();
                sender.send(data("de")).await.unwrap();
                if trailers {
                    let mut map = HeaderMap::new();
                    map.insert("grpc-status", "0".parse().unwrap());
                    sender.send(Ok(http_body::Frame::trailers(map))).await.unwrap();
                }
                let mut response = Response::new(body);
                if let Some(length) = length {
                    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
                }
                response
            })
        }
    };
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut served = serve(respond(None, true));
    served.send(plain).await;
    let chunks = "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n";
    assert!(served.until("0\r\n\r\n").await.ends_with(&format!("{chunks}\r\n")));
    served.send("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n").await;
    assert!(served.until(": 0\r\n\r\n").await.ends_with(&format!("{chunks}grpc-status: 0\r\n\r\n")));
    let mut served = serve(respond(Some(5), false));
    served.send(plain).await;
    assert!(served.until("abcde").await.contains("content-length: 5\r\n"));
    served.send(plain).await;
    served.until("abcde").await;
    // Too long or too short a body must never become the beginning of the next response, or wait for it.
    for length in [4, 6] {
        let mut served = serve(respond(Some(length), false));
        served.send(format!("{plain}{plain}")).await;
        let rest = served.rest().await;
        assert!(rest.ends_with(if length == 4 { "\r\n\r\nabc" } else { "\r\n\r\nabcde" }), "{rest}");
        assert_eq!(served.task.await.unwrap().unwrap_err().kind, Kind::Protocol { status: 502 });
    }
}

#[tokio::test]
async fn a_big_body_through_a_slow_reader() {
    let body = Bytes::from(vec![b'x'; 4 * 1024 * 1024]);
    let want = body.len();
    let mut served = serve(move |_| {
        let body = body.clone();
        Box::pin(async move { reply(body) })
    });
    served.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let head = served.until("\r\n\r\n").await;
    assert!(head.contains(&format!("content-length: {want}\r\n")));
    assert_eq!(served.rest().await.len(), want);
}

#[tokio::test]
async fn a_failed_body_cuts_the_connection_behind_what_came() {
    let mut served = serve(|_| {
        Box::pin(async {
            let (sender, body) = channel();
            sender.send(data("abc")).await.unwrap();
            sender.send(Err(selvedge_proxy::Error::upstream(Kind::Reset, "gone"))).await.unwrap();
            Response::new(body)
        })
    });
    served.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(served.rest().await.ends_with("\r\n\r\n3\r\nabc\r\n"));
    assert_eq!(served.task.await.unwrap().unwrap_err().kind, Kind::Reset);
}

#[tokio::test]
async fn expect_100_continue() {
    let mut served = serve(echo);
    served.send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n").await;
    assert_eq!(served.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    served.send("abc").await;
    assert!(served.until("] 0").await.ends_with("POST /x [abc] 0"));
    // The body is there already: no word is needed.
    served.send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc").await;
    assert!(served.until("] 0").await.starts_with("HTTP/1.1 200 OK"));
    // Nobody wants the body: the client need not send it, and the connection ends.
    let mut served = serve(|request| {
        assert!(!request.headers().contains_key(header::EXPECT));
        Box::pin(async { reply("no") })
    });
    served.send("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n").await;
    let rest = served.rest().await;
    assert!(rest.starts_with("HTTP/1.1 200 OK") && rest.contains("connection: close"), "{rest}");
    for unknown in ["y 100-continue", "100-continue, x", "x"] {
        let (mut served, handler) = serve_with(HttpOptions::default(), echo);
        served.send(format!("POST / HTTP/1.1\r\nHost: a\r\nExpect: {unknown}\r\nContent-Length: 1\r\n\r\na")).await;
        assert!(served.rest().await.starts_with("HTTP/1.1 417 "));
        assert_eq!(*handler.rejected.lock().unwrap(), [417]);
    }
}

#[tokio::test]
async fn a_response_that_reads_the_body_while_it_is_written() {
    let mut served = serve(|request| Box::pin(async { Response::new(request.into_body()) }));
    served.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    assert_eq!(served.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    served.until("\r\n\r\n").await;
    for word in ["one", "two", "six"] {
        served.send(format!("3\r\n{word}\r\n")).await;
        assert_eq!(served.until(&format!("{word}\r\n")).await, format!("3\r\n{word}\r\n"));
    }
    served.send("0\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    let rest = served.rest().await;
    assert!(rest.starts_with("0\r\n\r\nHTTP/1.1 200 OK\r\n") && rest.contains("content-length: 0"), "{rest}");
}

#[tokio::test]
async fn interim_responses() {
    let (go, wait) = oneshot::channel::<()>();
    let wait = Arc::new(Mutex::new(Some(wait)));
    let mut served = serve(move |request| {
        let wait = wait.lock().unwrap().take();
        Box::pin(async move {
            let interim =
                |status: u16| http::Response::builder().status(status).header("link", "</a>").body(()).unwrap();
            match request.extensions().get::<Informational>() {
                Some(informational) => {
                    informational.send(interim(103));
                    informational.send(interim(101));
                    if let Some(wait) = wait {
                        wait.await.unwrap();
                    }
                    informational.send(interim(102));
                }
                None => assert_eq!(request.version(), http::Version::HTTP_10),
            }
            reply("x")
        })
    });
    served.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(served.until("\r\n\r\n").await, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
    go.send(()).unwrap();
    assert_eq!(served.until("\r\n\r\n").await, "HTTP/1.1 102 Processing\r\nlink: </a>\r\n\r\n");
    assert!(served.until("\r\n\r\nx").await.starts_with("HTTP/1.1 200 OK"));
    served.send("GET / HTTP/1.0\r\n\r\n").await;
    assert!(served.rest().await.starts_with("HTTP/1.1 200 OK"));
}

/// A service that answers `late` after so many seconds; the channel ends when it is given up.
fn late(after: u64) -> (impl Fn(Request) -> Answer + Send + Sync + 'static, oneshot::Receiver<()>) {
    let (dropped, gone) = oneshot::channel::<()>();
    let dropped = Mutex::new(Some(dropped));
    let answer = move |_| -> Answer {
        let dropped = dropped.lock().unwrap().take();
        Box::pin(async move {
            let _dropped = dropped;
            tokio::time::sleep(Duration::from_secs(after)).await;
            reply("late")
        })
    };
    (answer, gone)
}

const HEADS: [&str; 3] = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
];

#[tokio::test(start_paused = true)]
async fn a_client_that_shuts_its_side_is_answered() {
    for head in HEADS {
        let mut served = serve(late(4).0);
        served.send(head).await;
        served.client.shutdown().await.unwrap();
        let answer = served.rest().await;
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("late"), "{answer}");
        served.task.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_may_have_left_is_waited_for_so_long() {
    for head in HEADS {
        for (half_close, after) in [(5, 5), (1, 1), (0, 100)] {
            let (answer, gone) = late(100);
            let options = HttpOptions { half_close_timeout: Duration::from_secs(half_close), ..HttpOptions::default() };
            let (mut served, _) = serve_with(options, answer);
            let start = tokio::time::Instant::now();
            served.send(head).await;
            served.client.shutdown().await.unwrap();
            assert!(gone.await.is_err());
            assert_eq!(start.elapsed().as_secs(), after);
            let end = served.task.await.unwrap();
            assert_eq!(end.err().map(|error| error.kind), (half_close > 0).then_some(Kind::Cancelled));
        }
    }
}

/// Each part of an answer that is taken shows that the client is there.
#[tokio::test(start_paused = true)]
async fn an_answer_in_parts_may_take_its_time() {
    let (sender, body) = channel();
    let body = Mutex::new(Some(body));
    let mut served = serve(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        Box::pin(async move { Response::new(body) })
    });
    served.send(HEADS[0]).await;
    served.client.shutdown().await.unwrap();
    for part in 0..5 {
        tokio::time::sleep(Duration::from_secs(4)).await;
        sender.send(data(format!("part {part}"))).await.unwrap();
        served.until(&format!("part {part}\r\n")).await;
    }
    let silent = tokio::time::Instant::now();
    assert!(!served.rest().await.ends_with("0\r\n\r\n"));
    assert_eq!(silent.elapsed().as_secs(), 5);
    assert_eq!(served.task.await.unwrap().unwrap_err().kind, Kind::Cancelled);
}

#[tokio::test]
async fn all_that_came_before_the_end_is_answered() {
    let mut served = serve(echo);
    let post = "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    served.send(format!("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n{post}GET /3 HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    served.client.shutdown().await.unwrap();
    let answer = served.rest().await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
    assert!(answer.contains("GET /1 [] 0") && answer.contains("POST /2 [abc] 0") && answer.ends_with("GET /3 [] 0"));
    served.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn tunnels() {
    let mut served = serve(|request| {
        Box::pin(async move {
            let mut response = Response::new(Body::tunnel(|mut io| async move {
                let mut word = [0; 4];
                io.read_exact(&mut word).await.unwrap();
                io.write_all(b"echo ").await.unwrap();
                io.write_all(&word).await.unwrap();
                io.shutdown().await.unwrap();
            }));
            if request.method() != http::Method::CONNECT {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert(header::UPGRADE, "foo".parse().unwrap());
            }
            response
        })
    });
    // What comes behind the head belongs to the new protocol.
    served.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nGE").await;
    let head = served.until("\r\n\r\n").await;
    assert_eq!(head, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n");
    served.send("T ").await;
    assert_eq!(served.rest().await, "echo GET ");
    served.task.await.unwrap().unwrap();

    let mut served = serve(|_| Box::pin(async { Response::new(Body::tunnel(|_| async {})) }));
    served.send("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n").await;
    assert_eq!(served.rest().await, "HTTP/1.1 200 OK\r\n\r\n");
    // A refused CONNECT ends the connection: who can tell what the bytes behind it are?
    let mut served = serve(|_| {
        Box::pin(async {
            let mut response = reply("no");
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response
        })
    });
    served.send("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let rest = served.rest().await;
    assert!(rest.starts_with("HTTP/1.1 405 ") && rest.ends_with("\r\n\r\nno"), "{rest}");
}

#[tokio::test]
async fn a_change_of_protocol_that_nobody_carries_out_is_a_bad_gateway() {
    for (status, tunnel) in [(101, false), (200, true), (102, false)] {
        let mut served = serve(move |_| {
            Box::pin(async move {
                let body = if tunnel { Body::tunnel(|_| async {}) } else { Body::empty() };
                let mut response = Response::new(body);
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                response
            })
        });
        served.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(served.rest().await.starts_with("HTTP/1.1 502 "), "{status}");
    }
}

#[tokio::test]
async fn unread_bodies_are_drained_or_the_connection_ends() {
    let answer = |_| -> Answer { Box::pin(async { reply("no") }) };
    // Small: drained, the next request is read from behind it.
    let mut served = serve(answer);
    served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n").await;
    served.until("\r\n\r\nno").await;
    served.send("x".repeat(30_000)).await;
    served.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!served.until("\r\n\r\nno").await.contains("connection: close"));
    // Announced to be big: said at once.
    let mut served = serve(answer);
    served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65537\r\n\r\n").await;
    assert!(served.until("\r\n\r\nno").await.contains("connection: close"));
    served.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    served.client.shutdown().await.unwrap();
    assert_eq!(served.rest().await, "");
    // Chunks that turn out to be too many.
    let mut served = serve(answer);
    served.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    served.until("\r\n\r\nno").await;
    served.send(format!("11000\r\n{}\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(0x11000))).await;
    served.client.shutdown().await.unwrap();
    assert_eq!(served.rest().await, "");
}

#[tokio::test]
async fn a_body_kept_too_long_cannot_read_from_the_next_request() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = kept.clone();
    let mut served = serve(move |request| {
        keep.lock().unwrap().push(request.into_body());
        Box::pin(async { reply("no") })
    });
    served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n").await;
    served.until("\r\n\r\nno").await;
    served.send("123456789POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\nabc").await;
    served.until("\r\n\r\nno").await;
    let body = kept.lock().unwrap().remove(0);
    assert_eq!(body.collect().await.unwrap_err().kind, Kind::Cancelled);
}
