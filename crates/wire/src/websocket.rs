//! The opening handshake of WebSocket over HTTP/1.1 (RFC 6455 section 4) and HTTP/2 (RFC 8441), and the way between them.
//! What follows the handshake is passed on as it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use sha1::{Digest, Sha1};

use crate::http1::{Framing, connection_options};

/// What a client wants to change the connection to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// Nothing; or `h2c`, which is never done (h2c smuggling); or the message may not upgrade.
    None,
    WebSocket,
    /// Something else: refused, or ignored by leaving `Upgrade` out (RFC 9110 section 7.8). Never passed on: the upstream
    /// connection would carry what nobody parses (CVE-2026-73548).
    Other,
}

/// Why a handshake fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("a WebSocket handshake must be a GET without body over HTTP/1.1")]
    Request,
    #[error("Sec-WebSocket-Version must be 13")]
    Version,
    #[error("Sec-WebSocket-Key must be 16 bytes in base64, once")]
    Key,
    #[error("the server did not answer 101 with Upgrade: websocket and Connection: upgrade")]
    Refused,
    #[error("Sec-WebSocket-Accept does not fit the key")]
    Accept,
}

impl HandshakeError {
    /// What the client is answered: 426 with `Sec-WebSocket-Version: 13` for another version, 400 for a bad request, 502
    /// for a bad answer of the server.
    pub fn status(self) -> StatusCode {
        match self {
            HandshakeError::Request | HandshakeError::Key => StatusCode::BAD_REQUEST,
            HandshakeError::Version => StatusCode::UPGRADE_REQUIRED,
            HandshakeError::Refused | HandshakeError::Accept => StatusCode::BAD_GATEWAY,
        }
    }
}

/// What an HTTP/1.1 request asks for.
pub fn requested(version: Version, headers: &HeaderMap) -> Upgrade {
    if version != Version::HTTP_11 || !connection_options(headers).upgrade {
        return Upgrade::None;
    }
    let mut upgrade = Upgrade::None;
    for value in headers.get_all(header::UPGRADE) {
        for token in value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty()) {
            if token.eq_ignore_ascii_case(b"websocket") {
                return Upgrade::WebSocket;
            } else if !token.eq_ignore_ascii_case(b"h2c") {
                upgrade = Upgrade::Other;
            }
        }
    }
    upgrade
}

/// Checks the handshake of an HTTP/1.1 client and gives its key back.
pub fn check_request<'a>(
    method: &Method,
    version: Version,
    headers: &'a HeaderMap,
    framing: Framing,
) -> Result<&'a HeaderValue, HandshakeError> {
    if *method != Method::GET || version != Version::HTTP_11 || !framing.is_empty() {
        return Err(HandshakeError::Request);
    }
    check_version(headers)?;
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16) => Ok(key),
        _ => Err(HandshakeError::Key),
    }
}

/// Checks `Sec-WebSocket-Version`; for HTTP/2, where there is no key, this is all there is to check.
pub fn check_version(headers: &HeaderMap) -> Result<(), HandshakeError> {
    let mut versions = headers.get_all(header::SEC_WEBSOCKET_VERSION).iter();
    match (versions.next(), versions.next()) {
        (Some(version), None) if version == "13" => Ok(()),
        _ => Err(HandshakeError::Version),
    }
}

/// Checks the answer of an HTTP/1.1 server to the handshake with `key`.
pub fn check_response(status: StatusCode, headers: &HeaderMap, key: &[u8]) -> Result<(), HandshakeError> {
    let mut upgrades = headers.get_all(header::UPGRADE).iter();
    let upgraded = matches!((upgrades.next(), upgrades.next()),
        (Some(value), None) if value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"));
    if status != StatusCode::SWITCHING_PROTOCOLS || !upgraded || !connection_options(headers).upgrade {
        return Err(HandshakeError::Refused);
    }
    let mut accepts = headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter();
    match (accepts.next(), accepts.next()) {
        (Some(value), None) if value.as_bytes() == accept(key).as_bytes() => Ok(()),
        _ => Err(HandshakeError::Accept),
    }
}

/// `Sec-WebSocket-Accept` for a key.
pub fn accept(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// `Sec-WebSocket-Key` from random bytes.
pub fn key(random: [u8; 16]) -> String {
    STANDARD.encode(random)
}

/// Turns the fields of an HTTP/1.1 handshake into those of an extended CONNECT, whose pseudo-fields are
/// `:method: CONNECT` and `:protocol: websocket`. Gives back the client's key, which its answer needs.
pub fn request_to_h2(headers: &mut HeaderMap) -> Option<HeaderValue> {
    for name in [header::CONNECTION, header::UPGRADE, header::HOST] {
        headers.remove(name);
    }
    headers.remove(header::SEC_WEBSOCKET_KEY)
}

/// Turns the fields of a 200 answer to an extended CONNECT into those of the 101 answer to the client with `key`.
pub fn response_to_h1(headers: &mut HeaderMap, key: &[u8]) {
    upgrade_fields(headers);
    put(headers, header::SEC_WEBSOCKET_ACCEPT, accept(key));
}

/// Turns the fields of an extended CONNECT into those of a GET with `key`, which [`key`] makes.
pub fn request_to_h1(headers: &mut HeaderMap, key: &str) {
    upgrade_fields(headers);
    put(headers, header::SEC_WEBSOCKET_KEY, key.to_owned());
}

/// Turns the fields of a 101 answer into those of the 200 answer to an extended CONNECT.
pub fn response_to_h2(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT] {
        headers.remove(name);
    }
}

fn upgrade_fields(headers: &mut HeaderMap) {
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

fn put(headers: &mut HeaderMap, name: http::HeaderName, value: String) {
    // Base64 is always a valid value.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn client() -> HeaderMap {
        map(&[
            ("host", "a"),
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", KEY),
            ("sec-websocket-protocol", "chat"),
        ])
    }

    #[test]
    fn the_sample_of_the_rfc_is_accepted() {
        assert_eq!(accept(KEY.as_bytes()), ACCEPT);
        assert_eq!(key(*b"the sample nonce"), KEY);
        let headers = client();
        assert_eq!(requested(Version::HTTP_11, &headers), Upgrade::WebSocket);
        assert_eq!(check_request(&Method::GET, Version::HTTP_11, &headers, Framing::None).unwrap(), KEY);
        let answer = map(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", ACCEPT)]);
        assert_eq!(check_response(StatusCode::SWITCHING_PROTOCOLS, &answer, KEY.as_bytes()), Ok(()));
        assert_eq!(check_response(StatusCode::OK, &answer, KEY.as_bytes()), Err(HandshakeError::Refused));
        assert_eq!(check_response(StatusCode::SWITCHING_PROTOCOLS, &answer, b"x"), Err(HandshakeError::Accept));
    }

    #[test]
    fn other_upgrades_are_told_apart() {
        // Catalogue item 11.
        let of = |connection, upgrade| {
            requested(Version::HTTP_11, &map(&[("connection", connection), ("upgrade", upgrade)]))
        };
        assert_eq!(of("Upgrade, HTTP2-Settings", "h2c"), Upgrade::None);
        assert_eq!(of("upgrade", "foo"), Upgrade::Other);
        assert_eq!(of("close", "websocket"), Upgrade::None);
        assert_eq!(requested(Version::HTTP_10, &client()), Upgrade::None);
    }

    #[test]
    fn bad_handshakes_are_refused() {
        let check = |headers: &HeaderMap| {
            check_request(&Method::GET, Version::HTTP_11, headers, Framing::None).map(|_| ()).unwrap_err()
        };
        let with = |name: &'static str, value: &'static str| {
            let mut headers = client();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        assert_eq!(check(&with("sec-websocket-version", "12")).status(), StatusCode::UPGRADE_REQUIRED);
        assert_eq!(check(&with("sec-websocket-key", "short")), HandshakeError::Key);
        assert_eq!(check(&with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ")), HandshakeError::Key);
        let mut twice = client();
        twice.append("sec-websocket-key", KEY.parse().unwrap());
        assert_eq!(check(&twice), HandshakeError::Key);
        let headers = client();
        assert!(check_request(&Method::POST, Version::HTTP_11, &headers, Framing::None).is_err());
        assert!(check_request(&Method::GET, Version::HTTP_11, &headers, Framing::Length(1)).is_err());
        assert!(check_request(&Method::GET, Version::HTTP_10, &headers, Framing::None).is_err());
    }

    #[test]
    fn both_ways_between_the_versions() {
        let mut headers = client();
        let key_of_client = request_to_h2(&mut headers).unwrap();
        assert_eq!(headers.len(), 2);
        assert!(headers.contains_key("sec-websocket-protocol") && check_version(&headers).is_ok());
        let mut answer = map(&[("sec-websocket-protocol", "chat")]);
        response_to_h1(&mut answer, key_of_client.as_bytes());
        assert_eq!(check_response(StatusCode::SWITCHING_PROTOCOLS, &answer, KEY.as_bytes()), Ok(()));

        let mut headers = map(&[("sec-websocket-version", "13"), ("origin", "x")]);
        request_to_h1(&mut headers, KEY);
        assert!(check_request(&Method::GET, Version::HTTP_11, &headers, Framing::None).is_ok());
        let mut answer =
            map(&[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", ACCEPT), ("x", "y")]);
        response_to_h2(&mut answer);
        assert_eq!(answer.len(), 1);
    }
}
