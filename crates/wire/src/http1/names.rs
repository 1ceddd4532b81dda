//! Field names that are common but unknown to the `http` crate, so that reading them does not allocate.

use http::HeaderName;

/// The shared name for `name`, in any case, if it is one of the common ones.
pub(super) fn shared(name: &[u8]) -> Option<HeaderName> {
    // The first letter sorts out most names before anything is compared.
    let candidates: &[HeaderName] = match name.first()?.to_ascii_lowercase() {
        b'x' => &X,
        b's' => &SEC,
        b't' | b'b' | b'p' | b'k' | b'g' | b'i' | b'd' => &OTHER,
        _ => return None,
    };
    candidates
        .iter()
        .find(|c| c.as_str().len() == name.len() && c.as_str().as_bytes().eq_ignore_ascii_case(name))
        .cloned()
}

static X: [HeaderName; 15] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-requested-with"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-sampled"),
    HeaderName::from_static("x-correlation-id"),
    HeaderName::from_static("x-csrf-token"),
    HeaderName::from_static("x-powered-by"),
    HeaderName::from_static("x-response-time"),
];

static SEC: [HeaderName; 8] = [
    HeaderName::from_static("sec-fetch-dest"),
    HeaderName::from_static("sec-fetch-mode"),
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("sec-fetch-user"),
    HeaderName::from_static("sec-ch-ua"),
    HeaderName::from_static("sec-ch-ua-mobile"),
    HeaderName::from_static("sec-ch-ua-platform"),
    HeaderName::from_static("server-timing"),
];

static OTHER: [HeaderName; 12] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("priority"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("device-memory"),
];

/// Whether `name` has the letters and digits of `Content-Length` or `Transfer-Encoding` without being it: some servers
/// take `Content_Length` or `Transfer-Encoding-` for the real one.
pub(super) fn imitates_framing(name: &[u8]) -> bool {
    let first = name.iter().find(|b| b.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase);
    let (real, letters): (&[u8], &[u8]) = match first {
        Some(b'c') => (b"content-length", b"contentlength"),
        Some(b't') => (b"transfer-encoding", b"transferencoding"),
        _ => return false,
    };
    if name.len() < letters.len() || name.eq_ignore_ascii_case(real) {
        return false;
    }
    let mut rest = letters.iter();
    name.iter().filter(|b| b.is_ascii_alphanumeric()).all(|b| rest.next() == Some(&b.to_ascii_lowercase()))
        && rest.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names_are_shared() {
        assert_eq!(shared(b"X-Request-ID").unwrap(), "x-request-id");
        assert_eq!(shared(b"sec-fetch-mode").unwrap(), "sec-fetch-mode");
        assert_eq!(shared(b"x-unknown"), None);
        assert_eq!(shared(b""), None);
    }

    #[test]
    fn imitations_are_seen() {
        for name in [
            "content_length",
            "Content--Length",
            "contentLength",
            "Transfer_Encoding",
            "transfer-encoding-",
            "-content-length",
        ] {
            assert!(imitates_framing(name.as_bytes()), "{name}");
        }
        for name in
            ["Content-Length", "transfer-encoding", "content-type", "x-content-length", "content-length-2", "te"]
        {
            assert!(!imitates_framing(name.as_bytes()), "{name}");
        }
    }
}
