//! Request and response heads, on top of `httparse` with the checks it does not make.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use memchr::memchr;

use super::names;

/// The most header fields any limit can allow.
pub const MOST_HEADERS: usize = 1000;
/// The parser keeps room on the stack, 32 bytes for each: for so many unless the limit is higher.
const USUAL_HEADERS: usize = 128;
/// Empty lines a client may send before a request line (RFC 9112 section 2.2 asks for at least one).
const MOST_BLANK_LINES: usize = 2;
/// The longest method.
const MAX_METHOD: usize = 32;

/// Limits of one head, and what to do with names that some servers read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Header fields, counted line by line. Default 100, as Envoy and hyper; at most [`MOST_HEADERS`].
    pub max_headers: usize,
    /// Bytes from the first byte of the start line to the empty line. Default 60 KiB, as Envoy.
    pub max_bytes: usize,
    /// Bytes of the request target. Default 16 KiB: twice what nginx accepts.
    pub max_target: usize,
    /// Default `Reject`, as Envoy recommends for an edge: CGI-style servers read `a_b` as `a-b`.
    pub underscores: UnderscoreNames,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits {
            max_headers: 100,
            max_bytes: 60 * 1024,
            max_target: 16 * 1024,
            underscores: UnderscoreNames::Reject,
        }
    }
}

/// What happens to request fields with an underscore in their name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderscoreNames {
    Allow,
    /// The field is left out, as nginx does.
    Drop,
    Reject,
}

/// A request head; the values share the memory of the read buffer.
#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    /// As received; give it to [`crate::uri::parse`].
    pub target: Bytes,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    pub headers: HeaderMap,
}

/// A response head; the values share the memory of the read buffer. The reason phrase is not kept.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    pub headers: HeaderMap,
}

/// Why a head is refused. After any of them the connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("a line ends in LF without CR")]
    BareLf,
    #[error("the start line or a header field is malformed: {0}")]
    Malformed(&'static str),
    #[error("the HTTP version is not 1.0 or 1.1")]
    Version,
    /// The first line does not so much as name HTTP.
    #[error("this is not HTTP")]
    NotHttp,
    #[error("the request target is longer than the limit")]
    TargetTooLong,
    #[error("the head is longer than the limit")]
    TooLarge,
    #[error("there are more header fields than the limit")]
    TooManyHeaders,
    #[error("the header field `{0}` imitates a framing field")]
    Imitation(String),
    #[error("the header field `{0}` has an underscore in its name, which this listener refuses")]
    Underscore(String),
    #[error("an HTTP/1.1 request must have exactly one Host")]
    Host,
    #[error("the header field `{0}` must not be repeated")]
    Repeated(HeaderName),
}

impl HeadError {
    /// What a client is answered. For a response head, the answer is always 502.
    pub fn status(&self) -> StatusCode {
        match self {
            HeadError::TargetTooLong => StatusCode::URI_TOO_LONG,
            HeadError::TooLarge | HeadError::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            HeadError::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// What the first bytes of a connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preface {
    /// HTTP/2 with prior knowledge (RFC 9113 section 3.4).
    Http2,
    /// Not HTTP/2.
    Http1,
    /// More bytes are needed.
    Incomplete,
}

/// Tells HTTP/2 from HTTP/1 by the first at most 24 bytes.
pub fn preface(bytes: &[u8]) -> Preface {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let seen = bytes.len().min(PREFACE.len());
    if bytes[..seen] != PREFACE[..seen] {
        Preface::Http1
    } else if seen == PREFACE.len() {
        Preface::Http2
    } else {
        Preface::Incomplete
    }
}

/// Reads heads from a buffer that grows. One per direction of a connection; it remembers what it has looked at, so that
/// a head that arrives byte by byte is not scanned again and again.
#[derive(Debug, Default)]
pub struct HeadReader {
    scanned: usize,
    blank_lines: usize,
}

impl HeadReader {
    /// Takes a whole request head from the front of `buffer`, or `None` if it is not complete yet.
    pub fn request(&mut self, buffer: &mut BytesMut, limits: &HeadLimits) -> Result<Option<RequestHead>, HeadError> {
        while self.scanned == 0 && buffer.starts_with(b"\r\n") {
            self.blank_lines += 1;
            if self.blank_lines > MOST_BLANK_LINES {
                return Err(HeadError::Malformed("empty lines before the request line"));
            }
            buffer.advance(2);
        }
        match buffer.first() {
            None => return Ok(None),
            Some(b'\r') if buffer.len() == 1 => return Ok(None),
            Some(&b) if !is_token(b) => return Err(HeadError::Malformed("the request does not begin with a method")),
            _ => {}
        }
        let Some(end) = self.find_end(buffer, limits)? else { return Ok(None) };
        let head = buffer.split_to(end).freeze();
        *self = HeadReader::default();
        let parse = if usual(limits) { parse_request::<USUAL_HEADERS> } else { parse_request::<MOST_HEADERS> };
        parse(&head, limits).map(Some)
    }

    /// Takes a whole response head from the front of `buffer`, or `None` if it is not complete yet.
    pub fn response(&mut self, buffer: &mut BytesMut, limits: &HeadLimits) -> Result<Option<ResponseHead>, HeadError> {
        const START: &[u8] = b"HTTP/1.";
        let seen = buffer.len().min(START.len());
        if buffer[..seen] != START[..seen] {
            return Err(HeadError::Malformed("the response does not begin with HTTP/1."));
        }
        let Some(end) = self.find_end(buffer, limits)? else { return Ok(None) };
        let head = buffer.split_to(end).freeze();
        *self = HeadReader::default();
        let parse = if usual(limits) { parse_response::<USUAL_HEADERS> } else { parse_response::<MOST_HEADERS> };
        parse(&head, limits).map(Some)
    }

    /// Whether a part of a head has been seen: the peer is in the middle of sending one.
    pub fn is_partial(&self) -> bool {
        self.scanned > 0
    }

    /// The length of the head with its empty line.
    pub(super) fn find_end(&mut self, buffer: &[u8], limits: &HeadLimits) -> Result<Option<usize>, HeadError> {
        let window = &buffer[..buffer.len().min(limits.max_bytes)];
        let mut from = self.scanned.min(window.len());
        while let Some(offset) = memchr(b'\n', &window[from..]) {
            let at = from + offset;
            if at == 0 || window[at - 1] != b'\r' {
                return Err(HeadError::BareLf);
            }
            if window[..=at].ends_with(b"\r\n\r\n") {
                return Ok(Some(at + 1));
            }
            from = at + 1;
        }
        self.scanned = window.len();
        if buffer.len() < limits.max_bytes {
            return Ok(None);
        }
        if memchr(b'\n', window).is_none() { Err(HeadError::TargetTooLong) } else { Err(HeadError::TooLarge) }
    }
}

fn usual(limits: &HeadLimits) -> bool {
    limits.max_headers <= USUAL_HEADERS
}

// Not inlined: else the frame of the caller would have room for the largest.
#[inline(never)]
fn parse_request<const ROOM: usize>(head: &Bytes, limits: &HeadLimits) -> Result<RequestHead, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; ROOM];
    let mut request = httparse::Request::new(&mut []);
    let room = limits.max_headers.min(ROOM);
    let parsed = request.parse_with_uninit_headers(head, &mut fields[..room]);
    complete(parsed, head, true)?;
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Malformed("incomplete request line"));
    };
    if target.len() > limits.max_target {
        return Err(HeadError::TargetTooLong);
    }
    if method.len() > MAX_METHOD {
        return Err(HeadError::Malformed("the method is longer than 32 bytes"));
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Malformed("method"))?;
    let target = head.slice_ref(target.as_bytes());
    let version = if version == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    let headers = header_map(head, request.headers, limits.underscores)?;
    check_single(&headers, version)?;
    Ok(RequestHead { method, target, version, headers })
}

#[inline(never)]
fn parse_response<const ROOM: usize>(head: &Bytes, limits: &HeadLimits) -> Result<ResponseHead, HeadError> {
    let mut fields = [const { MaybeUninit::uninit() }; ROOM];
    let mut response = httparse::Response::new(&mut []);
    let room = limits.max_headers.min(ROOM);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, head, &mut fields[..room]);
    complete(parsed, head, false)?;
    let (Some(code), Some(version)) = (response.code, response.version) else {
        return Err(HeadError::Malformed("incomplete status line"));
    };
    let status = StatusCode::from_u16(code).map_err(|_| HeadError::Malformed("status code"))?;
    let version = if version == 1 { Version::HTTP_11 } else { Version::HTTP_10 };
    // A backend's own field names are its affair; only requests can use underscores to get past a policy.
    let headers = header_map(head, response.headers, UnderscoreNames::Allow)?;
    Ok(ResponseHead { status, version, headers })
}

/// The whole head was parsed, or says why not. `head` ends in an empty line, so it is never partial.
fn complete(
    parsed: Result<httparse::Status<usize>, httparse::Error>,
    head: &[u8],
    request: bool,
) -> Result<(), HeadError> {
    use httparse::Error;
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == head.len() => Ok(()),
        Ok(_) => Err(HeadError::Malformed("the head ends before its empty line")),
        Err(Error::TooManyHeaders) => Err(HeadError::TooManyHeaders),
        Err(Error::Version) if request && other_version(head) => Err(HeadError::Version),
        Err(Error::Version) if request && !first_line(head).windows(4).any(|w| w.eq_ignore_ascii_case(b"HTTP")) => {
            Err(HeadError::NotHttp)
        }
        Err(Error::Version) => Err(HeadError::Malformed("HTTP version")),
        Err(Error::HeaderName) => Err(HeadError::Malformed("header field name, or a folded line")),
        Err(Error::HeaderValue) => Err(HeadError::Malformed("header field value")),
        Err(Error::Status) => Err(HeadError::Malformed("status line")),
        Err(Error::NewLine) => Err(HeadError::Malformed("line end")),
        Err(Error::Token) => Err(HeadError::Malformed("start line")),
    }
}

fn first_line(head: &[u8]) -> &[u8] {
    head.split(|&b| b == b'\r').next().unwrap_or_default()
}

/// Whether the request line ends in a well-formed version that is none of ours (RFC 9112 section 2.3).
fn other_version(head: &[u8]) -> bool {
    let mut parts = first_line(head).split(|&b| b == b' ');
    let version = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(target), Some(version), None) if !target.is_empty() => version,
        _ => return false,
    };
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

pub(super) fn header_map(
    head: &Bytes,
    fields: &[httparse::Header<'_>],
    underscores: UnderscoreNames,
) -> Result<HeaderMap, HeadError> {
    let mut headers =
        HeaderMap::try_with_capacity(fields.len().min(MOST_HEADERS)).map_err(|_| HeadError::TooManyHeaders)?;
    for field in fields {
        let raw = field.name.as_bytes();
        let name = match names::shared(raw) {
            Some(name) => name,
            None => {
                if raw.len() >= 13 && names::imitates_framing(raw) {
                    return Err(HeadError::Imitation(printable(raw)));
                }
                if underscores != UnderscoreNames::Allow && raw.contains(&b'_') {
                    if underscores == UnderscoreNames::Drop {
                        continue;
                    }
                    return Err(HeadError::Underscore(printable(raw)));
                }
                HeaderName::from_bytes(raw).map_err(|_| HeadError::Malformed("header field name"))?
            }
        };
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| HeadError::Malformed("header field value"))?;
        headers.try_append(name, value).map_err(|_| HeadError::TooManyHeaders)?;
    }
    Ok(headers)
}

/// At most 64 bytes of a token, for messages.
fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned()
}

fn check_single(headers: &HeaderMap, version: Version) -> Result<(), HeadError> {
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts > 1 || (hosts == 0 && version == Version::HTTP_11) {
        return Err(HeadError::Host);
    }
    // Which of two credentials counts would be the backend's choice.
    if headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some() {
        return Err(HeadError::Repeated(header::AUTHORIZATION));
    }
    Ok(())
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
        HeadReader::default().request(&mut BytesMut::from(bytes), &HeadLimits::default())
    }

    fn response(bytes: &[u8]) -> Result<Option<ResponseHead>, HeadError> {
        HeadReader::default().response(&mut BytesMut::from(bytes), &HeadLimits::default())
    }

    fn refused(bytes: &[u8]) -> HeadError {
        match request(bytes) {
            Err(error) => error,
            Ok(other) => panic!("{:?} was not refused: {other:?}", String::from_utf8_lossy(bytes)),
        }
    }

    #[test]
    fn a_request_is_read_and_the_rest_stays() {
        let mut buffer = BytesMut::from(
            &b"\r\nPOST /a?b HTTP/1.1\r\nHost: x\r\nX-Forwarded-For:  1.2.3.4 \r\nA: 1\r\na: 2\r\nEmpty:\r\n\r\nbody"[..],
        );
        let head = HeadReader::default().request(&mut buffer, &HeadLimits::default()).unwrap().unwrap();
        assert_eq!((head.method, &head.target[..], head.version), (Method::POST, &b"/a?b"[..], Version::HTTP_11));
        assert_eq!(head.headers["x-forwarded-for"], "1.2.3.4");
        assert_eq!(head.headers.get_all("a").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(head.headers["empty"], "");
        assert_eq!(&buffer[..], b"body");
    }

    #[test]
    fn a_head_may_arrive_byte_by_byte() {
        let bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut reader = HeadReader::default();
        let mut buffer = BytesMut::new();
        for (at, b) in bytes.iter().enumerate() {
            assert_eq!(reader.is_partial(), at > 0);
            buffer.extend_from_slice(&[*b]);
            let head = reader.request(&mut buffer, &HeadLimits::default()).unwrap();
            assert_eq!(head.is_some(), at + 1 == bytes.len());
        }
        assert!(!reader.is_partial());
    }

    #[test]
    fn malformed_requests_are_refused() {
        for bad in [
            // Line ends and control characters (catalogue item 7).
            &b"GET / HTTP/1.1\nHost: x\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nHost: x\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rSmuggled: c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x0bc\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x7f\r\n\r\n",
            b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            // Folding, names (item 4).
            b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nTe\nst: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nA\t: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\"A\": b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\xc3\xa9: b\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer_Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\n\x0bTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nsome_name: b\r\n\r\n",
            // Versions and request lines (item 8).
            b"GET / HTTP/1.32\r\nHost: x\r\n\r\n",
            b"GET / HTTP/\r\r1.1\r\nHost: x\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /  HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
            b"GET / http/1.1\r\nHost: x\r\n\r\n",
            b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
            b" GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"G<T / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
            // Host and credentials (items 16 and 18).
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
        ] {
            assert_eq!(refused(bad).status(), StatusCode::BAD_REQUEST, "{:?}", String::from_utf8_lossy(bad));
        }
        assert_eq!(refused(b"GET / HTTP/1.2\r\nHost: x\r\n\r\n").status(), StatusCode::HTTP_VERSION_NOT_SUPPORTED);
        assert_eq!(refused(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n").status(), StatusCode::HTTP_VERSION_NOT_SUPPORTED);
        assert!(request(b"GET / HTTP/1.0\r\n\r\n").unwrap().is_some());
    }

    #[test]
    fn every_byte_around_transfer_encoding_is_refused_or_harmless() {
        for b in 0..=255u8 {
            for (before, after) in [(true, false), (false, true)] {
                let mut bytes = b"POST / HTTP/1.1\r\nHost: x\r\n".to_vec();
                bytes.extend(before.then_some(b));
                bytes.extend_from_slice(b"Transfer-Encoding");
                bytes.extend(after.then_some(b));
                bytes.extend_from_slice(b": chunked\r\n\r\n");
                if let Ok(Some(head)) = request(&bytes) {
                    // Only a letter or digit makes it another field for everyone; a colon makes it a bad value.
                    assert!(b.is_ascii_alphanumeric() || b == b':', "{b:#x}");
                    if b != b':' {
                        assert!(!head.headers.contains_key("transfer-encoding"));
                    } else {
                        assert_eq!(head.headers["transfer-encoding"], ": chunked");
                    }
                }
            }
        }
    }

    #[test]
    fn limits_hold() {
        let limits = HeadLimits { max_headers: 3, max_bytes: 200, max_target: 20, underscores: UnderscoreNames::Drop };
        let read = |bytes: &str| HeadReader::default().request(&mut BytesMut::from(bytes), &limits);
        assert!(read("GET / HTTP/1.1\r\nHost: x\r\na: 1\r\na: 2\r\n\r\n").is_ok());
        let error = read("GET / HTTP/1.1\r\nHost: x\r\na: 1\r\na: 2\r\na: 3\r\n\r\n").unwrap_err();
        assert_eq!(error, HeadError::TooManyHeaders);
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(20));
        assert_eq!(read(&long).unwrap_err(), HeadError::TargetTooLong);
        assert_eq!(read(&"G".repeat(200)).unwrap_err(), HeadError::TargetTooLong);
        let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(200));
        assert_eq!(read(&long).unwrap_err().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        let dropped = read("GET / HTTP/1.1\r\nHost: x\r\nmy_name: 1\r\n\r\n").unwrap().unwrap();
        assert_eq!(dropped.headers.len(), 1);
    }

    /// At both ends of what the options allow, and where the parser takes the larger room.
    #[test]
    fn as_many_fields_as_the_limit_and_not_one_more() {
        for max_headers in [8, USUAL_HEADERS, USUAL_HEADERS + 1, MOST_HEADERS, MOST_HEADERS + 1] {
            let limits = HeadLimits { max_headers, ..HeadLimits::default() };
            let most = max_headers.min(MOST_HEADERS);
            let fields = |count: usize| (0..count).map(|i| format!("x-{i}: {i}\r\n")).collect::<String>();
            let request = |count: usize| {
                let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", fields(count - 1));
                HeadReader::default().request(&mut BytesMut::from(text.as_str()), &limits)
            };
            let response = |count: usize| {
                let text = format!("HTTP/1.1 200 OK\r\n{}\r\n", fields(count));
                HeadReader::default().response(&mut BytesMut::from(text.as_str()), &limits)
            };
            let headers = request(most).unwrap().expect("a request").headers;
            assert_eq!(headers.len(), most);
            assert_eq!(headers[format!("x-{}", most - 2)], (most - 2).to_string());
            assert_eq!(response(most).unwrap().expect("a response").headers.len(), most);
            assert_eq!(request(most + 1).unwrap_err(), HeadError::TooManyHeaders, "{max_headers}");
            assert_eq!(response(most + 1).unwrap_err(), HeadError::TooManyHeaders, "{max_headers}");
        }
    }

    #[test]
    fn responses_are_as_strict() {
        let head = response(b"HTTP/1.1 200 OK\r\nServer: x_y\r\nmy_name: 1\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.status, head.headers.len()), (StatusCode::OK, 2));
        assert!(response(b"HTTP/1.0 404\r\n\r\n").unwrap().is_some());
        assert!(response(b"HTTP/1.").unwrap().is_none());
        for bad in [
            &b"HTTP/1.1 200 OK\nA: b\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nA: b\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"HTTP/1.2 200 OK\r\n\r\n",
            b"\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"junk",
        ] {
            assert!(response(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn prefaces_are_told_apart() {
        assert_eq!(preface(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nx"), Preface::Http2);
        assert_eq!(preface(b"PR"), Preface::Incomplete);
        assert_eq!(preface(b"PUT /"), Preface::Http1);
    }
}
