//! What we accept and write again must be Compliant for `http_desync_guardian`, the strictest public judge of requests.

use bytes::BytesMut;
use http_desync_guardian::RequestSafetyTier;
use http_desync_guardian::request_analyzer::HttpRequestData;
use proptest::prelude::*;
use selvedge_wire::http1::{HeadLimits, HeadReader, Persist, UnderscoreNames, request_framing, write_request};
use selvedge_wire::uri::PathOptions;
use selvedge_wire::{host, uri};

/// The head we would forward for the request in `bytes`, if we forward it at all.
fn forwarded(bytes: &[u8]) -> Option<Vec<u8>> {
    let limits = HeadLimits { underscores: UnderscoreNames::Allow, ..HeadLimits::default() };
    let head = HeadReader::default().request(&mut BytesMut::from(bytes), &limits).ok()??;
    let framing = request_framing(&head.method, head.version, &head.headers).ok()?;
    let target = uri::parse(&head.method, &head.target, &PathOptions::default()).ok()?;
    let authority = match (target.authority, head.headers.get(http::header::HOST)) {
        (Some(authority), _) => host::parse(authority).ok()?,
        (None, Some(value)) => host::parse(value.as_bytes()).ok()?,
        (None, None) => host::parse(b"default").ok()?,
    };
    let mut out = BytesMut::new();
    let path = if head.method == http::Method::CONNECT { "a:443" } else { &target.path_and_query };
    let host = authority.text(false);
    write_request(&head.method, path, &host, &head.headers, framing.into(), Persist::Keep, &mut out);
    Some(out.to_vec())
}

fn judge(bytes: &[u8]) -> bool {
    let Some(out) = forwarded(bytes) else { return false };
    let verdict = HttpRequestData::analyze_raw_request(&out);
    assert_eq!(
        verdict.tier,
        RequestSafetyTier::Compliant,
        "{:?}\nfrom {:?}\nto {:?}",
        verdict.message,
        String::from_utf8_lossy(bytes),
        String::from_utf8_lossy(&out)
    );
    true
}

fn method() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "DELETE", "get", "M-SEARCH", "G<T", "",
    ])
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("/".to_owned()),
        Just("*".to_owned()),
        Just("http://b/x".to_owned()),
        Just("a:443".to_owned()),
        "/[a-z%2e.;/\\\\?#|]{0,12}",
        "\\PC{0,6}",
    ]
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        "Content-Length",
        "content-length",
        "Content_Length",
        "ContentLength",
        "Content-Length ",
        " Content-Length",
        "Transfer-Encoding",
        "transfer-encoding",
        "Transfer_Encoding",
        "Transfer-Encoding-",
        "X-Transfer-Encoding",
        "TE",
        "Host",
        "Connection",
        "Upgrade",
        "Expect",
        "X-A",
        "Cookie",
        "",
        "Tr\nansfer-Encoding",
    ]);
    let separator = prop::sample::select(vec![": ", ":", " : ", ":\t", ":\r\n ", "\0:", ""]);
    let value = prop_oneof![
        prop::sample::select(vec![
            "0",
            "5",
            "+5",
            "05",
            "5, 5",
            "5,6",
            "18446744073709551616",
            "chunked",
            "Chunked",
            "chunked, identity",
            ",chunked",
            "xchunked",
            "\"chunked\"",
            "identity",
            "gzip",
            "a",
            "keep-alive",
            "x\rSmuggled: 1",
            "x\nSmuggled: 1",
            "",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,8}",
    ];
    let end = prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n"]);
    (name, separator, value, end).prop_map(|(n, s, v, e)| format!("{n}{s}{v}{e}").into_bytes())
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let version = prop::sample::select(vec!["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/0.9", ""]);
    let mutation = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    let lines = prop::collection::vec(line(), 0..4);
    (method(), target(), version, lines, mutation).prop_map(|(method, target, version, lines, mutation)| {
        let mut bytes = format!("{method} {target} {version}\r\nHost: a\r\n").into_bytes();
        bytes.extend(lines.concat());
        if let Some((at, b)) = mutation {
            let at = at.index(bytes.len());
            bytes[at] = b;
        }
        bytes.extend_from_slice(b"\r\n");
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_forwarded_is_compliant(bytes in request()) {
        judge(&bytes);
    }
}

#[test]
fn usual_requests_are_forwarded() {
    for bytes in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "HEAD /a?b=c HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nX-Obs: \u{e9}\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
    ] {
        assert!(judge(bytes.as_bytes()), "{bytes} was refused");
    }
}
