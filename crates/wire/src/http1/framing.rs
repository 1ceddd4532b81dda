//! Where a message body ends (RFC 9112 section 6), decided once and strictly.

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};

/// How long the body of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body and none was announced, or there can be none.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// A response that ends when the connection does; the connection cannot be used again.
    Close,
    /// A response to CONNECT or an upgrade: what follows is no longer HTTP.
    Tunnel,
}

impl Framing {
    /// Whether no body byte will follow.
    pub fn is_empty(self) -> bool {
        matches!(self, Framing::None | Framing::Length(0))
    }
}

/// Why the end of a body cannot be told for certain. The connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("the message has both Content-Length and Transfer-Encoding")]
    Both,
    #[error("Transfer-Encoding must be one field with the value `chunked`")]
    TransferEncoding,
    #[error("the transfer coding is not supported; only `chunked` is")]
    Coding,
    #[error("Transfer-Encoding in an HTTP/1.0 message")]
    Http10,
    #[error("Content-Length must be one field with one decimal number below 2^63, without sign or leading zeros")]
    ContentLength,
    #[error("an HTTP/1.0 request with a body must have a Content-Length")]
    LengthRequired,
    /// Some servers do not read such a body and take it for the next request.
    #[error("a GET or HEAD request has a body, which is refused")]
    GetBody,
}

impl FramingError {
    /// What a client is answered. For a response, the answer is always 502.
    pub fn status(self) -> StatusCode {
        match self {
            FramingError::Coding => StatusCode::NOT_IMPLEMENTED,
            FramingError::LengthRequired => StatusCode::LENGTH_REQUIRED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// The framing of a request body. GET and HEAD have none.
pub fn request_framing(method: &Method, version: Version, headers: &HeaderMap) -> Result<Framing, FramingError> {
    request_framing_with(method, version, headers, false)
}

/// The same; `get_bodies` is whether GET and HEAD may have one.
pub fn request_framing_with(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
    get_bodies: bool,
) -> Result<Framing, FramingError> {
    let get = *method == Method::GET || *method == Method::HEAD;
    match announced(version, headers)? {
        // RFC 1945 section 7.2.2; otherwise the body would be taken for the next request (CVE-2026-2835).
        Framing::None
            if version == Version::HTTP_10
                && (*method == Method::POST || *method == Method::PUT || *method == Method::PATCH) =>
        {
            Err(FramingError::LengthRequired)
        }
        Framing::Length(0) if get => Ok(Framing::None),
        Framing::Length(_) | Framing::Chunked if get && !get_bodies => Err(FramingError::GetBody),
        // RFC 9110 section 9.3.6: CONNECT has no body; bytes after the head belong to the tunnel.
        Framing::None if *method == Method::CONNECT => Ok(Framing::None),
        _ if *method == Method::CONNECT => Err(FramingError::ContentLength),
        framing => Ok(framing),
    }
}

/// The framing of the response to a request with `method`. A malformed length is an error even where there can be no
/// body, for a client behind us might trust it.
pub fn response_framing(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
) -> Result<Framing, FramingError> {
    if status == StatusCode::SWITCHING_PROTOCOLS || (*method == Method::CONNECT && status.is_success()) {
        return Ok(Framing::Tunnel);
    }
    let announced = announced(version, headers)?;
    if *method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Ok(Framing::None);
    }
    Ok(match announced {
        Framing::None => Framing::Close,
        framing => framing,
    })
}

/// What the framing fields say: none, length or chunked.
fn announced(version: Version, headers: &HeaderMap) -> Result<Framing, FramingError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::None),
        (Some(_), Some(_)) => Err(FramingError::Both),
        (Some(_), None) if version == Version::HTTP_10 => Err(FramingError::Http10),
        (Some(coding), None) => {
            if codings.next().is_some() {
                return Err(FramingError::TransferEncoding);
            }
            transfer_coding(coding)
        }
        (None, Some(length)) => {
            if lengths.next().is_some() {
                return Err(FramingError::ContentLength);
            }
            content_length(length.as_bytes()).map(Framing::Length).ok_or(FramingError::ContentLength)
        }
    }
}

fn transfer_coding(value: &HeaderValue) -> Result<Framing, FramingError> {
    let value = value.as_bytes();
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(Framing::Chunked);
    }
    let known: [&[u8]; 5] = [b"gzip", b"x-gzip", b"deflate", b"compress", b"identity"];
    if known.iter().any(|k| value.eq_ignore_ascii_case(k)) {
        return Err(FramingError::Coding);
    }
    Err(FramingError::TransferEncoding)
}

fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || (value.len() > 1 && value[0] == b'0') {
        return None;
    }
    let length = value.iter().try_fold(0u64, |sum, d| match d {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(d - b'0')),
        _ => None,
    })?;
    // Many servers keep lengths in signed numbers.
    (length <= i64::MAX as u64).then_some(length)
}

/// What a client expects before it sends the body (RFC 9110 section 10.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// Nothing, or nothing that matters: HTTP/1.0, or no body.
    None,
    /// It waits for `100 Continue`.
    Continue,
    /// Something else: answer 417 and close. It is never passed on.
    Unknown,
}

/// Reads `Expect`. The field itself should be removed; the codec asks for 100 on its own account.
pub fn expectation(version: Version, headers: &HeaderMap, framing: Framing) -> Expectation {
    let mut values = headers.get_all(header::EXPECT).iter();
    match (values.next(), values.next()) {
        (None, _) => Expectation::None,
        (Some(value), None) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            if version == Version::HTTP_10 || framing.is_empty() { Expectation::None } else { Expectation::Continue }
        }
        _ => Expectation::Unknown,
    }
}

/// The connection options that decide whether a connection lives on (RFC 9112 section 9.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
}

/// Reads every `Connection` line.
pub fn connection_options(headers: &HeaderMap) -> ConnectionOptions {
    let mut options = ConnectionOptions::default();
    for value in headers.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            options.close |= token.eq_ignore_ascii_case(b"close");
            options.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            options.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
        }
    }
    options
}

/// Whether the sender of a message with these options will keep the connection open.
pub fn persistent(version: Version, options: ConnectionOptions) -> bool {
    !options.close && (version == Version::HTTP_11 || options.keep_alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        map
    }

    fn post(lines: &[(&'static str, &'static [u8])]) -> Result<Framing, FramingError> {
        request_framing(&Method::POST, Version::HTTP_11, &headers(lines))
    }

    fn answer(code: u16, lines: &[(&'static str, &'static [u8])]) -> Result<Framing, FramingError> {
        response_framing(&Method::GET, StatusCode::from_u16(code).unwrap(), Version::HTTP_11, &headers(lines))
    }

    const TE: &str = "transfer-encoding";
    const CL: &str = "content-length";

    #[test]
    fn requests_have_one_clear_end() {
        assert_eq!(post(&[]), Ok(Framing::None));
        assert_eq!(post(&[(CL, b"0")]), Ok(Framing::Length(0)));
        assert_eq!(post(&[(CL, b"5")]), Ok(Framing::Length(5)));
        assert_eq!(post(&[(CL, b"9223372036854775807")]), Ok(Framing::Length(i64::MAX as u64)));
        assert_eq!(post(&[(TE, b"Chunked")]), Ok(Framing::Chunked));
    }

    #[test]
    fn transfer_encoding_anomalies_are_refused() {
        // Catalogue items 1, 2 and 3.
        assert_eq!(post(&[(CL, b"6"), (TE, b"chunked")]), Err(FramingError::Both));
        assert_eq!(post(&[(TE, b"chunked"), (CL, b"6")]), Err(FramingError::Both));
        assert_eq!(post(&[(TE, b"chunked"), (TE, b"chunked")]), Err(FramingError::TransferEncoding));
        assert_eq!(post(&[(TE, b"chunked"), (TE, b"identity")]), Err(FramingError::TransferEncoding));
        for value in [
            &b""[..],
            b",chunked",
            b"chunked,",
            b"xchunked",
            b"chunked, identity",
            b"identity, chunked",
            b"gzip, chunked",
            b"\"chunked\"",
            b"chunked;q=1",
            b"chunked chunked",
            b"chunk\xc3\xa9d",
            b"chunked\t;",
            b"cow",
        ] {
            assert_eq!(
                post(&[(TE, value)]),
                Err(FramingError::TransferEncoding),
                "{:?}",
                String::from_utf8_lossy(value)
            );
        }
        assert_eq!(post(&[(TE, b"gzip")]).unwrap_err().status(), StatusCode::NOT_IMPLEMENTED);
        assert_eq!(post(&[(TE, b"identity")]).unwrap_err().status(), StatusCode::NOT_IMPLEMENTED);
        let old = request_framing(&Method::POST, Version::HTTP_10, &headers(&[(TE, b"chunked")]));
        assert_eq!(old, Err(FramingError::Http10));
    }

    #[test]
    fn content_length_anomalies_are_refused() {
        // Catalogue item 5.
        for value in [
            &b""[..],
            b"+5",
            b"-1",
            b"0x5",
            b"5_0",
            b"5 5",
            b"5,5",
            b"5,6",
            b"5, 5",
            b"010",
            b"00",
            b"18446744073709551616",
            b"9223372036854775808",
            b"99999999999999999999999",
            b"5.",
            b"five",
            b"\xd9\xa5",
        ] {
            assert_eq!(post(&[(CL, value)]), Err(FramingError::ContentLength), "{:?}", String::from_utf8_lossy(value));
        }
        assert_eq!(post(&[(CL, b"5"), (CL, b"5")]), Err(FramingError::ContentLength));
        assert_eq!(post(&[(CL, b"5"), (CL, b"6")]), Err(FramingError::ContentLength));
    }

    #[test]
    fn methods_and_versions_matter() {
        let of = |method, version, lines: &[(&'static str, &'static [u8])]| {
            request_framing(&method, version, &headers(lines))
        };
        assert_eq!(of(Method::GET, Version::HTTP_11, &[(CL, b"0")]), Ok(Framing::None));
        assert_eq!(of(Method::GET, Version::HTTP_11, &[(CL, b"5")]), Err(FramingError::GetBody));
        assert_eq!(of(Method::HEAD, Version::HTTP_11, &[(TE, b"chunked")]), Err(FramingError::GetBody));
        assert_eq!(of(Method::POST, Version::HTTP_10, &[]), Err(FramingError::LengthRequired));
        assert_eq!(of(Method::POST, Version::HTTP_10, &[(CL, b"5")]), Ok(Framing::Length(5)));
        assert!(of(Method::CONNECT, Version::HTTP_11, &[(CL, b"5")]).is_err());
        assert_eq!(of(Method::CONNECT, Version::HTTP_11, &[]), Ok(Framing::None));
    }

    #[test]
    fn responses_follow_the_request() {
        assert_eq!(answer(200, &[]), Ok(Framing::Close));
        assert_eq!(answer(200, &[(CL, b"3")]), Ok(Framing::Length(3)));
        assert_eq!(answer(200, &[(TE, b"chunked")]), Ok(Framing::Chunked));
        assert_eq!(answer(101, &[]), Ok(Framing::Tunnel));
        for code in [100, 103, 204, 304] {
            assert_eq!(answer(code, &[]), Ok(Framing::None));
            assert_eq!(answer(code, &[(CL, b"3")]), Ok(Framing::None));
        }
        let head = |lines: &[(&'static str, &'static [u8])]| {
            response_framing(&Method::HEAD, StatusCode::OK, Version::HTTP_11, &headers(lines))
        };
        assert_eq!(head(&[(CL, b"3")]), Ok(Framing::None));
        assert!(head(&[(CL, b"3"), (CL, b"3")]).is_err());
        let connect = |code| response_framing(&Method::CONNECT, code, Version::HTTP_11, &headers(&[(CL, b"3")]));
        assert_eq!(connect(StatusCode::OK), Ok(Framing::Tunnel));
        assert_eq!(connect(StatusCode::FORBIDDEN), Ok(Framing::Length(3)));
        for bad in [
            &[(CL, &b"3"[..]), (CL, b"3")][..],
            &[(CL, b"3"), (TE, b"chunked")],
            &[(TE, b"gzip, chunked")],
            &[(CL, b"3,3")],
        ] {
            assert!(answer(200, bad).is_err());
        }
        let old = response_framing(&Method::GET, StatusCode::OK, Version::HTTP_10, &headers(&[(TE, b"chunked")]));
        assert_eq!(old, Err(FramingError::Http10));
    }

    #[test]
    fn only_100_continue_is_an_expectation() {
        // Catalogue item 10.
        let of =
            |lines: &[(&'static str, &'static [u8])], framing| expectation(Version::HTTP_11, &headers(lines), framing);
        let body = Framing::Length(1);
        assert_eq!(of(&[], body), Expectation::None);
        assert_eq!(of(&[("expect", b"100-Continue")], body), Expectation::Continue);
        assert_eq!(of(&[("expect", b"100-continue")], Framing::None), Expectation::None);
        assert_eq!(of(&[("expect", b"y 100-continue")], body), Expectation::Unknown);
        assert_eq!(of(&[("expect", b"100-continue"), ("expect", b"100-continue")], body), Expectation::Unknown);
        assert_eq!(of(&[("expect", b"")], body), Expectation::Unknown);
    }

    #[test]
    fn connections_persist_by_version_and_option() {
        let options =
            connection_options(&headers(&[("connection", b"Upgrade , CLOSE"), ("connection", b"keep-alive")]));
        assert_eq!(options, ConnectionOptions { close: true, keep_alive: true, upgrade: true });
        assert!(!persistent(Version::HTTP_11, options));
        assert!(persistent(Version::HTTP_11, ConnectionOptions::default()));
        assert!(!persistent(Version::HTTP_10, ConnectionOptions::default()));
        assert!(persistent(Version::HTTP_10, ConnectionOptions { keep_alive: true, ..Default::default() }));
    }
}
