//! Field names that are common but unknown to the `http` crate, so that reading them does not allocate.

use http::HeaderName;

/// The shared name for `name`, in any case, if it is one of the common ones.
pub(super) fn shared(name: &[u8]) -> Option<HeaderName> {
    // The first letter sorts out most names before anything is compared.
    let candidates: &[Common] = match name.first()?.to_ascii_lowercase() {
        b'x' => &X,
        b's' => &SEC,
        b't' | b'b' | b'p' | b'k' | b'g' | b'i' | b'd' => &OTHER,
        _ => return None,
    };
    let found = candidates.iter().find(|c| c.0.len() == name.len() && c.0.as_bytes().eq_ignore_ascii_case(name));
    found.map(|c| c.1.clone())
}

/// The text beside the name, for it is quicker to compare than what the name keeps.
type Common = (&'static str, HeaderName);

const fn common(name: &'static str) -> Common {
    (name, HeaderName::from_static(name))
}

static X: [Common; 15] = [
    common("x-forwarded-for"),
    common("x-forwarded-proto"),
    common("x-forwarded-host"),
    common("x-forwarded-port"),
    common("x-request-id"),
    common("x-real-ip"),
    common("x-requested-with"),
    common("x-api-key"),
    common("x-b3-traceid"),
    common("x-b3-spanid"),
    common("x-b3-sampled"),
    common("x-correlation-id"),
    common("x-csrf-token"),
    common("x-powered-by"),
    common("x-response-time"),
];

static SEC: [Common; 8] = [
    common("sec-fetch-dest"),
    common("sec-fetch-mode"),
    common("sec-fetch-site"),
    common("sec-fetch-user"),
    common("sec-ch-ua"),
    common("sec-ch-ua-mobile"),
    common("sec-ch-ua-platform"),
    common("server-timing"),
];

static OTHER: [Common; 12] = [
    common("traceparent"),
    common("tracestate"),
    common("baggage"),
    common("b3"),
    common("priority"),
    common("proxy-connection"),
    common("keep-alive"),
    common("grpc-status"),
    common("grpc-message"),
    common("grpc-timeout"),
    common("idempotency-key"),
    common("device-memory"),
];

/// Whether `name` could be taken for `Content-Length` or `Transfer-Encoding` without being it: the same letters with other
/// or more separators, with one strange character where the hyphen belongs, or cut short and padded with separators. Some
/// servers and gateways normalise such names.
pub fn imitates_framing(name: &[u8]) -> bool {
    let first = name.iter().find(|b| b.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase);
    let (real, letters, hyphen): (&[u8], &[u8], usize) = match first {
        Some(b'c') => (b"content-length", b"contentlength", 7),
        Some(b't') => (b"transfer-encoding", b"transferencoding", 8),
        _ => return false,
    };
    if name.len() < letters.len() || name.eq_ignore_ascii_case(real) {
        return false;
    }
    let padded = name.last().is_some_and(|b| !b.is_ascii_alphanumeric());
    let given = || name.iter().filter(|b| b.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase);
    spells(given(), letters, padded) || spells(given().take(hyphen).chain(given().skip(hyphen + 1)), letters, padded)
}

/// Whether `given` is `letters`, or a beginning of it if that is enough.
fn spells(mut given: impl Iterator<Item = u8>, letters: &[u8], beginning: bool) -> bool {
    let mut rest = letters.iter();
    given.all(|b| rest.next() == Some(&b)) && (beginning || rest.next().is_none())
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
            "Transferq-Encoding",
            "contentxlength",
            "content-lengt~",
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
