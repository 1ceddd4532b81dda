//! What `h2` leaves to its user about a request head. `h2` itself refuses uppercase names, pseudo-header fields that
//! are unknown, repeated, missing or late, connection fields, `te` other than `trailers`, a `content-length` that is
//! no number or differs from the data, and `:path`, `:scheme` or `:authority` that are no URI.

use super::{HEADER_LIST_SLACK, content_length, has_outer_blanks};
use crate::{
    codec::ExtendedConnect,
    error::{Error, Kind},
    telemetry::Limit,
};
use h2::ext::Protocol;
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use selvedge_compile::snapshot::HttpOptions;
use selvedge_wire::http1::FramingError;

/// The limits of one request, copied out of the options.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadLimits {
    pub(super) max_fields: u32,
    pub(super) max_bytes: u32,
    /// GET and HEAD may have a body.
    pub(super) get_bodies: bool,
}

impl From<&HttpOptions> for HeadLimits {
    fn from(options: &HttpOptions) -> Self {
        Self { max_fields: options.max_headers, max_bytes: options.max_header_bytes, get_bodies: options.get_bodies }
    }
}

impl HeadLimits {
    /// What `h2` is told, and tells the peer.
    pub(super) fn list_size(self) -> u32 {
        self.max_bytes.saturating_add(HEADER_LIST_SLACK)
    }

    /// Checks the head and gives it the form that the rest of the proxy expects: one `cookie` field, and
    /// [`ExtendedConnect`] for `:protocol`. `end` is END_STREAM on the head.
    pub(super) fn accept(self, parts: &mut Parts, end: bool) -> Result<Option<u64>, Error> {
        self.check_size(parts)?;
        if has_outer_blanks(&parts.headers) {
            return Err(Error::bad_request(400, "a header value begins or ends with a blank"));
        }
        let length =
            content_length(&parts.headers).map_err(|()| Error::bad_request(400, "content-length is not one number"))?;
        if end && length.is_some_and(|length| length > 0) {
            return Err(Error::bad_request(400, "content-length announces a body, but the stream ended with the head"));
        }
        if self.is_bodiless(&parts.method) && length.is_some_and(|length| length > 0) {
            return Err(body_refused());
        }
        if parts.method == Method::CONNECT && length.is_some() {
            return Err(Error::bad_request(400, "CONNECT has no content, so it cannot have a content-length"));
        }
        join_cookies(&mut parts.headers);
        if let Some(protocol) = parts.extensions.remove::<Protocol>() {
            parts.extensions.insert(ExtendedConnect(protocol.as_str().to_owned()));
        }
        Ok(length)
    }

    /// Requests whose body some servers do not read: on a shared HTTP/1.1 connection they would take it for the next request.
    /// It is refused over HTTP/2 as it is over HTTP/1.1.
    pub(super) fn is_bodiless(self, method: &Method) -> bool {
        !self.get_bodies && matches!(*method, Method::GET | Method::HEAD)
    }

    fn check_size(self, parts: &Parts) -> Result<(), Error> {
        // Every field counts as it was decoded: each crumb of a cookie, each `host` (CVE-2026-47774).
        if parts.headers.len() > self.max_fields as usize {
            return Err(Error::downstream(
                Kind::TooLarge { status: 431 },
                format!("{} header fields are more than the limit of {}", parts.headers.len(), self.max_fields),
            )
            .over(Limit::HeaderCount));
        }
        let fields: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        let uri = parts.uri.path().len()
            + parts.uri.query().map_or(0, str::len)
            + parts.uri.authority().map_or(0, |a| a.as_str().len());
        if fields + uri > self.max_bytes as usize {
            return Err(Error::downstream(
                Kind::TooLarge { status: 431 },
                format!("{} bytes of header fields are more than the limit of {}", fields + uri, self.max_bytes),
            )
            .over(Limit::HeaderBytes));
        }
        Ok(())
    }
}

pub(super) fn body_refused() -> Error {
    let refused = FramingError::GetBody;
    Error::bad_request(refused.status().as_u16(), refused.to_string())
}

/// RFC 9113 section 8.2.3: before anything that is not HTTP/2 sees them, crumbs become one field.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let mut joined = Vec::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Made of valid values and a valid separator.
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> HeadLimits {
        HeadLimits { max_fields: 4, max_bytes: 400, get_bodies: false }
    }

    fn parts(fields: &[(&'static str, &'static str)]) -> Parts {
        let mut request = http::Request::get("https://a/path");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn cookies_are_joined_but_counted_apart() {
        let mut head = parts(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]);
        limits().accept(&mut head, true).unwrap();
        assert_eq!(head.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);

        let mut head = parts(&[("cookie", "a"), ("cookie", "a"), ("cookie", "a"), ("cookie", "a"), ("cookie", "a")]);
        let error = limits().accept(&mut head, true).unwrap_err();
        assert_eq!(error.kind, Kind::TooLarge { status: 431 });
    }

    #[test]
    fn bytes_are_counted_with_their_overhead() {
        const LONG: &str =
            "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890";
        let mut head = parts(&[("a", LONG), ("b", LONG), ("c", LONG)]);
        assert!(limits().accept(&mut head, true).is_ok());
        let mut head = parts(&[("a", LONG), ("b", LONG), ("c", LONG), ("d", "x")]);
        assert_eq!(limits().accept(&mut head, true).unwrap_err().kind, Kind::TooLarge { status: 431 });
    }

    #[test]
    fn a_body_that_cannot_come_is_refused() {
        let mut head = parts(&[("content-length", "5")]);
        assert!(limits().accept(&mut head, true).is_err());
        assert!(limits().accept(&mut head, false).is_err(), "GET has no body");
        head.method = Method::POST;
        assert_eq!(limits().accept(&mut head, false).unwrap(), Some(5));
        let mut head = parts(&[("x", "a b\tc")]);
        assert!(limits().accept(&mut head, true).is_ok());
        for blank in [" a", "a ", "\ta", "a\t", " "] {
            let mut head = parts(&[("x", blank)]);
            assert!(limits().accept(&mut head, true).is_err(), "{blank:?}");
        }
        let mut head = parts(&[("content-length", "0")]);
        assert_eq!(limits().accept(&mut head, true).unwrap(), Some(0));
    }
}
