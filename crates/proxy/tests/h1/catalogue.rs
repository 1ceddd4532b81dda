//! The attacks of the reliability catalogue, as raw bytes: nothing ambiguous reaches the upstream, and no answer goes
//! to the wrong request.

use crate::support::*;
use http_body_util::BodyExt;
use http_desync_guardian::{RequestSafetyTier, request_analyzer::HttpRequestData};
use selvedge_compile::snapshot::HttpOptions;
use selvedge_proxy::{Body, Request};
use tokio::io::AsyncWriteExt;

/// Sends bytes to a server in front of a recording upstream, and ends the client's side. Returns what the client and the
/// upstream got.
async fn through(bytes: &[u8], upstream: Upstream) -> (String, String) {
    let behind = upstream.clone();
    let (mut served, _) = serve_with(HttpOptions::default(), move |request| {
        let upstream = behind.clone();
        Box::pin(async move { forward(request, &upstream).await })
    });
    served.send(bytes).await;
    // Long enough for every complete request to be answered; virtual time passes only when nothing else can happen.
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    served.client.shutdown().await.unwrap();
    (served.rest().await, upstream.seen())
}

async fn refused(bytes: impl AsRef<[u8]>, status: &[u16]) {
    let bytes = bytes.as_ref();
    let (got, seen) = through(bytes, Upstream::default()).await;
    let code = got.get(9..12).unwrap_or_default().parse().unwrap_or(0);
    assert!(status.contains(&code), "{:?} was answered {got:?}", text(bytes));
    assert!(got.contains("connection: close\r\n"), "{:?} kept the connection", text(bytes));
    assert_eq!(got.matches("connection: close\r\n").count(), 1, "{:?}", text(bytes));
    assert_eq!(seen, "", "{:?} reached the upstream", text(bytes));
}

const B: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

#[tokio::test(start_paused = true)]
async fn lengths_and_codings() {
    // Items 1 to 5.
    for head in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nX",
        "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding:\r\n\r\n0\r\n\r\n",
        "Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content_Length: 3\r\n\r\nabc",
        "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "Te\nst: x\r\n\r\n",
        "Test\r\n\r\n",
        ": x\r\n\r\n",
        "A\x00B: x\r\n\r\n",
        "Content-Length: +5\r\n\r\nabcde",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 0x5\r\n\r\nabcde",
        "Content-Length: 5_0\r\n\r\nabcde",
        "Content-Length: 5 5\r\n\r\nabcde",
        "Content-Length: 5,5\r\n\r\nabcde",
        "Content-Length: 5, 6\r\n\r\nabcde",
        "Content-Length: 010\r\n\r\n0123456789",
        "Content-Length:\r\n\r\n",
        "Content-Length: 18446744073709551616\r\n\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    ] {
        refused(format!("{B}{head}"), &[400]).await;
    }
    refused(format!("{B}Transfer-Encoding: gzip\r\n\r\n"), &[501]).await;
    refused("POST / HTTP/1.1\r\n Host: a\r\n\r\n", &[400]).await;
    // Item 3: every byte before, after and around the one accepted coding.
    for byte in 0..=255u8 {
        for (before, after) in [
            (&b"Transfer-Encoding: "[..], &b"chunked"[..]),
            (b"Transfer-Encoding: chunked", b""),
            (b"", b"Transfer-Encoding: chunked"),
        ] {
            let fields = [before, &[byte], after].concat();
            let bytes = [B.as_bytes(), &fields, b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"].concat();
            let (got, seen) = through(&bytes, Upstream::default()).await;
            // Spaces and tabs around a value are no part of it; a name with another byte in it is another name, and then
            // there is no body: the rest is refused as a request of its own.
            let number = got.matches("HTTP/1.1 200 OK").count();
            let whole = seen.contains("transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
                || seen.contains("content-length: 3\r\n\r\nabc");
            assert!(number == 0 || whole || (before.is_empty() && !seen.contains("abc")), "{byte:#x} {seen:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn chunks() {
    // Item 6: the request has begun, so the upstream may have seen its head; never an end of it.
    for body in [
        "0x2\r\nab\r\n0\r\n\r\n",
        "+2\r\nab\r\n0\r\n\r\n",
        "-0\r\n\r\n",
        "0_2e\r\nab\r\n0\r\n\r\n",
        " 2\r\nab\r\n0\r\n\r\n",
        "2 \r\nab\r\n0\r\n\r\n",
        "\r\nab\r\n0\r\n\r\n",
        "00000000000000002\r\nab\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nab\r\n0\r\n\r\n",
        "2\nab\r\n0\r\n\r\n",
        "2;a\nab\r\n0\r\n\r\n",
        "2\r\r;a\r\nab\r\n0\r\n\r\n",
        "2;a\0b\r\nab\r\n0\r\n\r\n",
        "2\r\nabXY0\r\n\r\n",
        "2\r\nab\r\n\r\n0\r\n\r\n",
        "2\r\nab\r\n0\r\n\n",
        "2\r\nab\r\n0\r\nA : b\r\n\r\n",
    ] {
        let (got, seen) = through(
            format!("{B}Transfer-Encoding: chunked\r\n\r\n{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
            Upstream::default(),
        )
        .await;
        assert!(!got.contains("HTTP/1.1 200"), "{body:?} was answered {got:?}");
        assert!(message_length(seen.as_bytes()).is_none() && !seen.contains("smuggled"), "{body:?} became {seen:?}");
    }
    let long = format!("2;{}\r\nab\r\n0\r\n\r\n", "x".repeat(64 * 1024));
    let (got, _) =
        through(format!("{B}Transfer-Encoding: chunked\r\n\r\n{long}").as_bytes(), Upstream::default()).await;
    assert!(!got.contains("HTTP/1.1 200"));
    // Without the last CRLF it is not over.
    let (got, seen) =
        through(format!("{B}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n").as_bytes(), Upstream::default()).await;
    assert!(!got.contains("200") && message_length(seen.as_bytes()).is_none(), "{got:?} {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn line_ends_versions_and_targets() {
    // Items 7, 8, 12.
    for bytes in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nA: b\rSmuggled: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n",
        "GET / HTTP/1.1\rHost: a\r\n\r\n",
        "GET / HTTP/\r\r1.1\r\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET admin HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c",
    ] {
        refused(bytes, &[400]).await;
    }
    for version in ["HTTP/1.32", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.1 "] {
        refused(format!("GET / {version}\r\nHost: a\r\n\r\n"), &[400, 505]).await;
    }
    refused("POST / HTTP/1.0\r\nHost: a\r\n\r\nabc", &[411]).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_forwarded_is_compliant() {
    for (bytes, requests) in [
        ("GET /x?y=%41 HTTP/1.1\r\nHost: a:81\r\nAccept: */*\r\nX-A: 1\r\nX-A: 2\r\n\r\n", 1),
        // Items 8, 9.
        ("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 1),
        ("OPTIONS / HTTP/1.1\r\nHost: a\r\nContent-Length: 31\r\n\r\nGET /smuggled HTTP/1.1\r\nA: b\r\n\r\n", 1),
        ("DELETE /d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", 1),
        // Item 10.
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", 1),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", 1),
        // Item 13: trailers.
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nContent-Length: 9\r\nHost: b\r\nAuthorization: x\r\n\r\n",
            1,
        ),
        // Item 19.
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close, X-Evil, Host, Content-Length\r\nX-Evil: 1\r\n\r\n", 1),
        (
            "PUT /1 HTTP/1.1\r\nHost: a\r\nContent-Length: \t2 \r\n\r\nabPUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            3,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip, trailers\r\nHTTP2-Settings: x\r\n\r\n",
            1,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}\r\n\r\n", 1),
    ] {
        let (got, seen) = through(bytes.as_bytes(), Upstream::default()).await;
        assert_eq!(got.matches("HTTP/1.1 200 OK").count(), requests, "{bytes:?} was answered {got:?}");
        let mut rest = seen.as_bytes();
        let mut number = 0;
        while let Some(length) = message_length(rest) {
            let head = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            let result = HttpRequestData::analyze_raw_request(&rest[..head]);
            assert_eq!(result.tier, RequestSafetyTier::Compliant, "{:?}: {result}", text(&rest[..head]));
            for banned in ["x-evil", "keep-alive", "proxy-connection", "http2-settings", "expect", "authorization"] {
                assert!(!text(rest).contains(banned), "{seen:?}");
            }
            rest = &rest[length..];
            number += 1;
        }
        assert_eq!((number, rest.len()), (requests, 0), "{seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_bytes_are_split_changes_nothing() {
    let bytes = "\r\nPOST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n\
                 PUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nfghi\
                 GET /3 HTTP/1.1\r\nHost: a\r\n\r\n";
    for at in 0..bytes.len() {
        let upstream = Upstream::default();
        let behind = upstream.clone();
        let mut served = serve(move |request| {
            let upstream = behind.clone();
            Box::pin(async move {
                // Whole, so that what the upstream sees does not depend on when it came.
                let (parts, body) = request.into_parts();
                let body = Body::full(body.collect().await.unwrap().to_bytes());
                forward(Request::from_parts(parts, body), &upstream).await
            })
        });
        served.send(&bytes[..at]).await;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        served.send(&bytes[at..]).await;
        served.until("#3").await;
        assert_eq!(
            upstream.seen(),
            "POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nabcde\
             PUT /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nfghi\
             GET /3 HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        assert_eq!(upstream.pool.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_an_upgrade() {
    // Item 11: a refused upgrade, and the bytes behind it are a request of their own.
    let bytes = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n";
    let upstream = Upstream::default();
    let (got, seen) = through(bytes, upstream.clone()).await;
    assert!(got.contains("#1") && got.contains("#2"), "{got:?}");
    assert_eq!(
        seen,
        "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n"
    );
    // The connection of the first was not used for the second.
    assert_eq!(upstream.pool.len(), 1);
    assert_eq!(upstream.pool.0.lock().unwrap()[0].requests(), 1);
    // Accepted: the bytes are the new protocol's, and none of them was sent before the 101.
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n";
    let upstream = Upstream { answer: Some(answer), ..Upstream::default() };
    let (got, seen) = through(bytes, upstream.clone()).await;
    assert!(
        got.starts_with("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: foo\r\n\r\n"),
        "{got:?}"
    );
    assert!(seen.ends_with("\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n"), "{seen:?}");
    assert_eq!(upstream.pool.len(), 0);
    // An upgrade with a body that is not there yet cannot switch.
    let bytes = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\nContent-Length: 9\r\n\r\nabc";
    let upstream = Upstream { answer: Some(answer), ..Upstream::default() };
    let (got, _) = through(bytes, upstream).await;
    assert!(!got.contains("101"), "{got:?}");
}

#[tokio::test(start_paused = true)]
async fn upstreams_that_break_the_rules() {
    // Item 30: what a client gets of it, and that its next request is answered by a new connection.
    for (answer, want) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
            "\r\n\r\nok",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\npoison", "HTTP/1.1 204 No Content\r\n"),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison", "HTTP/1.1 304 Not Modified\r\n"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\npoison", "HTTP/1.1 502 "),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\npoison", "HTTP/1.1 502 "),
        ("HTTP/1.1 200 OK\r\nx: a\nset-cookie: poison\r\n\r\n", "HTTP/1.1 502 "),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\npoison", "HTTP/1.1 502 "),
        ("poison", "HTTP/1.1 502 "),
    ] {
        let upstream = Upstream { answer: Some(answer), ..Upstream::default() };
        let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let (got, seen) = through(request.repeat(2).as_bytes(), upstream.clone()).await;
        assert_eq!(got.matches(want).count(), 2, "{answer:?} became {got:?}");
        assert!(!got.contains("poison"), "{got:?}");
        assert_eq!(seen.matches("GET / ").count(), 2);
        assert_eq!(upstream.pool.len(), 0);
    }
}
