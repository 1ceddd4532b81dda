//! Fields that belong to one connection and must not be passed on (RFC 9110 section 7.6.1).

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::forwarded;

/// Fields that end at every hop, whether or not `Connection` names them.
pub static HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Fields that `Connection` cannot take away. A client that names one of them tries to make a backend see less than our
/// policies saw, or to remove what we add (CVE-2024-45410).
pub static PROTECTED: [HeaderName; 26] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::ORIGIN,
    header::REFERER,
    header::CACHE_CONTROL,
    header::VARY,
    header::LOCATION,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::FORWARDED,
    header::VIA,
    header::STRICT_TRANSPORT_SECURITY,
    header::CONTENT_SECURITY_POLICY,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("idempotency-key"),
];

/// Whether `Connection` cannot nominate `name`. Besides [`PROTECTED`] these are all fields that say who the client is
/// ([`forwarded::is_internal`]), B3 fields, access control fields and gRPC's.
pub fn is_protected(name: &HeaderName) -> bool {
    const PREFIXES: [&str; 4] = ["x-b3-", "access-control-", "grpc-", "sec-"];
    PROTECTED.contains(name)
        || forwarded::is_internal(name)
        || PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// Removes what ends here from a request: hop-by-hop fields, the fields `Connection` nominates, and of `TE` everything
/// but `trailers`. Upgrades must be looked at before.
pub fn strip_request(headers: &mut HeaderMap) {
    strip_nominated(headers);
    let trailers = accepts_trailers(headers);
    if headers.remove(header::TE).is_some() && trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    strip_listed(headers);
}

/// Removes what ends here from a response.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_nominated(headers);
    strip_listed(headers);
    headers.remove(header::TE);
}

/// Whether the sender of these fields reads trailers.
pub fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| {
        value.as_bytes().split(|&b| b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

fn strip_listed(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

fn strip_nominated(headers: &mut HeaderMap) {
    // Most connections say nothing, or one plain option; only the others need a list of names to remove.
    let mut nominated = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii) {
            if token.is_empty() || token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive") {
                continue;
            }
            if let Ok(name) = HeaderName::from_bytes(token)
                && !is_protected(&name)
            {
                nominated.push(name);
            }
        }
    }
    for name in nominated {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn nominated_fields_go_and_protected_ones_stay() {
        // Catalogue item 19.
        let mut headers = map(&[
            ("connection", "close, X-Custom , X-Forwarded-For, X-Real-IP, Authorization, Host"),
            ("connection", "X-Other, traceparent, x-request-id, cookie, content-length, :path, x y"),
            ("x-custom", "1"),
            ("x-other", "1"),
            ("x-forwarded-for", "1"),
            ("x-real-ip", "1"),
            ("authorization", "1"),
            ("host", "a"),
            ("traceparent", "1"),
            ("x-request-id", "1"),
            ("cookie", "1"),
            ("content-length", "1"),
        ]);
        strip_request(&mut headers);
        let mut left = names(&headers);
        left.sort_unstable();
        assert_eq!(
            left,
            [
                "authorization",
                "content-length",
                "cookie",
                "host",
                "traceparent",
                "x-forwarded-for",
                "x-real-ip",
                "x-request-id"
            ]
        );
    }

    #[test]
    fn listed_fields_go() {
        let mut headers = map(&[
            ("connection", "upgrade, http2-settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "x"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, Trailers;q=0.5, trailers"),
            ("accept", "*/*"),
        ]);
        strip_request(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["te"], "trailers");
        let mut headers = map(&[("te", "gzip"), ("connection", "te")]);
        strip_request(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn responses_too() {
        let mut headers =
            map(&[("connection", "x-a"), ("x-a", "1"), ("keep-alive", "1"), ("trailer", "x"), ("server", "x")]);
        strip_response(&mut headers);
        let mut left = names(&headers);
        left.sort_unstable();
        assert_eq!(left, ["server", "trailer"]);
    }
}
