//! What each fuzz target checks. Also compiled into a plain test of `selvedge-wire`, which runs every file of the corpus,
//! so that an input that once broke something is a test from then on.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_desync_guardian::RequestSafetyTier;
use http_desync_guardian::request_analyzer::HttpRequestData;
use selvedge_wire::http1::{
    ChunkedDecoder, Decoded, HeadLimits, HeadReader, Persist, RequestHead, ResponseHead, WriteLength, chunk_prefix,
    expectation, persistent, request_framing, response_framing, write_last_chunk, write_request, write_response,
};
use selvedge_wire::uri::{Backslash, EscapedSlashes, PathOptions, PathParams};
use selvedge_wire::{client_hello, forwarded, grpc, hbone as tunnel, hop, host, proxy_protocol, trace, uri, websocket};

pub type Body = fn(&[u8]);

/// Every target by name.
pub const ALL: [(&str, Body); 10] = [
    ("h1_request_head", h1_request_head),
    ("h1_response_head", h1_response_head),
    ("chunked", chunked),
    ("uri", uri),
    ("host", host),
    ("proxy_protocol", proxy_protocol),
    ("client_hello", client_hello),
    ("forwarded", forwarded),
    ("hbone", hbone),
    ("trace", trace),
];

fn read_request(bytes: &[u8], step: usize, limits: &HeadLimits) -> Option<(RequestHead, usize)> {
    let (mut reader, mut buffer) = (HeadReader::default(), BytesMut::new());
    let mut fed = 0;
    for part in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(part);
        fed += part.len();
        if let Some(head) = reader.request(&mut buffer, limits).ok()? {
            return Some((head, fed - buffer.len()));
        }
    }
    None
}

fn read_response(bytes: &[u8], step: usize, limits: &HeadLimits) -> Option<(ResponseHead, usize)> {
    let (mut reader, mut buffer) = (HeadReader::default(), BytesMut::new());
    let mut fed = 0;
    for part in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(part);
        fed += part.len();
        if let Some(head) = reader.response(&mut buffer, limits).ok()? {
            return Some((head, fed - buffer.len()));
        }
    }
    None
}

/// For what we wrote ourselves: a head that is at the limits when read has a few fields more when it is written, such as
/// `connection`, and a target that began without a path has one.
fn with_room() -> HeadLimits {
    let limits = HeadLimits::default();
    HeadLimits {
        max_headers: limits.max_headers + 4,
        max_bytes: limits.max_bytes * 2,
        max_target: limits.max_target * 2,
        ..limits
    }
}

/// However a head is cut, it is read the same; what we accept and write is read again as the same, and is Compliant.
pub fn h1_request_head(data: &[u8]) {
    let whole = read_request(data, data.len(), &HeadLimits::default());
    let cut = read_request(data, 7, &HeadLimits::default());
    // A whole buffer may be refused for what follows in it only if it is refused in parts, too.
    assert_eq!(whole.as_ref().map(|(_, n)| *n), cut.map(|(_, n)| n));
    let Some((mut head, _)) = whole else { return };
    let Ok(framing) = request_framing(&head.method, head.version, &head.headers) else {
        return;
    };
    expectation(head.version, &head.headers, framing);
    websocket::requested(head.version, &head.headers);
    let _ = websocket::check_request(&head.method, head.version, &head.headers, framing);
    let Ok(target) = uri::parse(&head.method, &head.target, &PathOptions::default()) else { return };
    hop::strip_request(&mut head.headers);
    let path = if head.method == Method::CONNECT { "a:1" } else { &*target.path_and_query };
    let mut out = BytesMut::new();
    write_request(&head.method, path, "host", &head.headers, framing.into(), Persist::Keep, &mut out);
    let verdict = HttpRequestData::analyze_raw_request(&out);
    assert_eq!(verdict.tier, RequestSafetyTier::Compliant, "{:?}", verdict.message);
    let (again, length) = read_request(&out, out.len(), &with_room()).expect("what we write is a request");
    assert_eq!(length, out.len());
    assert_eq!((&again.method, &again.target[..]), (&head.method, path.as_bytes()));
    assert_eq!(request_framing(&again.method, again.version, &again.headers), Ok(framing));
    assert_same_fields(&head.headers, &again.headers);
}

/// As for requests.
pub fn h1_response_head(data: &[u8]) {
    let whole = read_response(data, data.len(), &HeadLimits::default());
    assert_eq!(whole.as_ref().map(|(_, n)| *n), read_response(data, 7, &HeadLimits::default()).map(|(_, n)| n));
    let Some((mut head, _)) = whole else { return };
    let Ok(framing) = response_framing(&Method::GET, head.status, head.version, &head.headers) else { return };
    persistent(head.version, selvedge_wire::http1::connection_options(&head.headers));
    let _ = grpc::status(&head.headers);
    hop::strip_response(&mut head.headers);
    let mut out = BytesMut::new();
    write_response(head.status, &head.headers, WriteLength::from(framing), Persist::Close, &mut out);
    let (again, length) = read_response(&out, out.len(), &with_room()).expect("what we write is a response");
    assert_eq!((length, again.status), (out.len(), head.status));
    assert_eq!(response_framing(&Method::GET, again.status, again.version, &again.headers), Ok(framing));
    assert_same_fields(&head.headers, &again.headers);
}

/// All fields but those that only the writer decides.
fn assert_same_fields(before: &HeaderMap, after: &HeaderMap) {
    for name in before.keys() {
        if matches!(name.as_str(), "host" | "content-length" | "transfer-encoding" | "connection" | "upgrade") {
            continue;
        }
        let values = |map: &HeaderMap| map.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert_eq!(values(before), values(after), "{name}");
    }
}

/// The body and the trailers, or `None` for an error; `Some` with `false` when incomplete.
fn decode(bytes: &[u8], step: usize) -> Option<(Vec<u8>, Option<HeaderMap>, bool)> {
    let (mut decoder, mut buffer, mut body) = (ChunkedDecoder::new(), BytesMut::new(), Vec::new());
    for part in bytes.chunks(step.max(1)) {
        buffer.extend_from_slice(part);
        loop {
            match decoder.decode(&mut buffer).ok()? {
                Decoded::Data(data) => {
                    assert!(!data.is_empty());
                    body.extend_from_slice(&data);
                }
                Decoded::Done(trailers) => return Some((body, trailers, true)),
                Decoded::Incomplete => break,
            }
        }
    }
    Some((body, None, false))
}

/// However a body is cut, it is decoded the same; what we encode is decoded as the same.
pub fn chunked(data: &[u8]) {
    let whole = decode(data, data.len());
    assert_eq!(whole, decode(data, 1));
    let Some((body, trailers, true)) = whole else { return };
    let mut out = BytesMut::new();
    for part in body.chunks(13) {
        chunk_prefix(part.len(), &mut out);
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    write_last_chunk(trailers.as_ref(), &mut out);
    assert_eq!(decode(&out, out.len()), Some((body, trailers, true)));
}

/// The normal form is a fixed point and has nothing in it that a server could read as another path.
pub fn uri(data: &[u8]) {
    let Some((&choice, target)) = data.split_first() else { return };
    let pick = |shift: u8| usize::from(choice >> shift & 3);
    let slashes =
        [EscapedSlashes::Keep, EscapedSlashes::Reject, EscapedSlashes::Unescape, EscapedSlashes::UnescapeAndRedirect];
    let params = [PathParams::Keep, PathParams::Strip, PathParams::Reject, PathParams::Keep];
    let options = PathOptions {
        escaped_slashes: slashes[pick(0)],
        path_params: params[pick(2)],
        backslash: if choice & 16 == 0 { Backslash::Reject } else { Backslash::Slash },
        normalize: choice & 32 == 0,
        merge_slashes: choice & 64 == 0,
    };
    let method = if choice & 128 == 0 { Method::GET } else { Method::CONNECT };
    let Ok(once) = uri::parse(&method, target, &options) else { return };
    if method == Method::CONNECT || &*once.path_and_query == "*" {
        return;
    }
    let twice = uri::parse(&method, once.path_and_query.as_bytes(), &options).expect("the normal form is valid");
    assert_eq!(twice.path_and_query, once.path_and_query);
    assert_eq!((twice.path(), twice.query()), (once.path(), once.query()));
    assert!(twice.is_clean() && !twice.redirect);
    let path = once.path();
    assert!(path.starts_with('/'));
    assert!(once.path_and_query.bytes().all(|b| b.is_ascii_graphic() && !b"#\\\"<>^`{|}".contains(&b)));
    if options.normalize {
        assert!(!path.split('/').any(|segment| {
            matches!(segment, "." | "..") || segment.starts_with("..;") || segment.starts_with(".;")
        }));
        let lower = path.to_ascii_lowercase();
        assert!(!lower.contains("%2e") && !lower.contains("%61") && !lower.contains("%00"));
    }
    if options.merge_slashes {
        assert!(!path.contains("//"));
    }
    if options.escaped_slashes != EscapedSlashes::Keep {
        assert!(!path.contains("%2F") && !path.contains("%5C"));
    }
    assert!(http::uri::PathAndQuery::try_from(&*once.path_and_query).is_ok());
}

/// The canonical form is a fixed point that other parsers read the same.
pub fn host(data: &[u8]) {
    let Ok(once) = host::parse(data) else { return };
    for secure in [false, true] {
        let text = once.text(secure).into_owned();
        let twice = host::parse(text.as_bytes()).expect("the canonical form is valid");
        assert!(twice.agrees(&once, secure));
        assert_eq!(twice.text(secure), text);
        let authority: http::uri::Authority = text.parse().expect("an authority");
        assert_eq!(authority.host(), &*once.host);
    }
}

/// A header is decided by its own bytes alone, and what we write is read as the same.
pub fn proxy_protocol(data: &[u8]) {
    use proxy_protocol::{Command, Parse, parse, write_v1, write_v2};
    let Ok(Parse::Done(header, length)) = parse(data) else { return };
    assert_eq!(parse(&data[..length]), Ok(Parse::Done(header.clone(), length)));
    assert_eq!(parse(&data[..length - 1]), Ok(Parse::Incomplete));
    let addresses = header.source.zip(header.destination);
    let mut out = Vec::new();
    write_v1(addresses, &mut out);
    assert!(out.len() <= proxy_protocol::MAX_V1);
    let read = |bytes: &[u8]| match parse(bytes) {
        Ok(Parse::Done(header, length)) if length == bytes.len() => *header,
        other => panic!("{other:?}"),
    };
    assert_eq!(read(&out).source, header.source);
    out.clear();
    if header.command == Command::Proxy && addresses.is_some() && write_v2(addresses, &header.tlvs, &mut out).is_ok() {
        let again = read(&out);
        assert_eq!((again.source, again.destination, again.tlvs), (header.source, header.destination, header.tlvs));
    }
}

/// A hello is decided by its own bytes alone.
pub fn client_hello(data: &[u8]) {
    use client_hello::{Sniff, sniff};
    let result = sniff(data);
    if let Ok(Sniff::Done(hello)) = &result {
        let mut longer = data.to_vec();
        longer.extend_from_slice(b"more");
        assert_eq!(sniff(&longer), result);
        if let Some(name) = &hello.server_name {
            assert_eq!(host::parse_name(name.as_bytes()).as_deref(), Ok(name.as_str()));
        }
    }
    if data.len() > client_hello::MAX_BYTES {
        assert_ne!(result, Ok(Sniff::Incomplete));
    }
}

/// A head of lines `name: value`, as far as they are valid.
fn fields(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|&b| b == b'\n').take(64) {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// Strangers are never believed, and what is stripped is gone.
pub fn forwarded(data: &[u8]) {
    use forwarded::{Hop, Source, Trust, client_ip};
    let mut headers = fields(data);
    let peer = std::net::IpAddr::from([10, 0, 0, 1]);
    let networks = Trust::Networks(vec!["10.0.0.0/8".parse().expect("a network")]);
    for source in [Source::XForwardedFor, Source::Forwarded] {
        assert_eq!(client_ip(peer, &headers, source, &Trust::Nobody), peer);
        client_ip(peer, &headers, source, &Trust::Hops(2));
        let client = client_ip(peer, &headers, source, &networks);
        assert_eq!(client, client.to_canonical());
    }
    let hop = Hop { peer: [9, 9, 9, 9].into(), host: "a:81", secure: true, port: 81 };
    forwarded::write_x_forwarded(&mut headers, &hop);
    forwarded::append_forwarded(&mut headers, &hop);
    assert_eq!(client_ip(peer, &headers, Source::XForwardedFor, &networks), hop.peer);
    assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
    hop::strip_request(&mut headers);
    assert!(headers.contains_key("x-forwarded-for") && !headers.contains_key("connection"));
    forwarded::strip_internal(&mut headers);
    assert!(!headers.keys().any(forwarded::is_internal));
}

/// What is injected is extracted again.
pub fn trace(data: &[u8]) {
    use trace::Format;
    let mut headers = fields(data);
    let incoming = trace::extract(&headers);
    trace::check_tracestate(&mut headers, &incoming);
    trace::check_baggage(&mut headers);
    grpc::timeout(&headers);
    let _ = grpc::status(&headers);
    let Some(context) = incoming.context else { return };
    for format in [Format::W3c, Format::B3Single, Format::B3Multi] {
        let mut headers = HeaderMap::new();
        context.inject(format, &mut headers);
        let again = trace::extract(&headers);
        let read = again.context.expect("what we write is a context");
        assert_eq!((read.trace_id, read.span_id), (context.trace_id, context.span_id));
        assert_eq!((again.sampled, again.format), (Some(context.sampled), Some(format)));
    }
}

/// The first line is an authority, the rest fields. A target that is accepted is written as it was read, and baggage
/// survives being written.
pub fn hbone(data: &[u8]) {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    if let Ok(text) = std::str::from_utf8(&data[..end])
        && let Ok(target) = tunnel::authority(text)
    {
        assert!(target.port() > 0 && !target.ip().is_unspecified());
        assert_eq!(tunnel::authority(&target.to_string()), Ok(target));
    }
    let mut headers = fields(data.get(end + 1..).unwrap_or_default());
    let read = tunnel::Baggage::read(&headers);
    assert!(read.iter().count() <= tunnel::MAX_MEMBERS);
    if let Some(value) = tunnel::Baggage::write(read.iter()) {
        headers.insert(&tunnel::BAGGAGE, value);
        assert_eq!(tunnel::Baggage::read(&headers), read);
    }
    if let Some(ip) = tunnel::origin(&headers) {
        headers.insert("forwarded", tunnel::forwarded(ip));
        assert_eq!(tunnel::origin(&headers), Some(ip));
    }
}
