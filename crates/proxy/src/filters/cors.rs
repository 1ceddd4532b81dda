//! Cross-origin resource sharing: preflight answers and response headers (Fetch standard, GEP-1767).

use crate::{Body, Request, Response};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};
use selvedge_compile::snapshot::{Cors, OriginMatch};

/// What a request's origin is allowed.
pub(super) struct Decision<'r> {
    policy: &'r Cors,
    /// The origin, when it is allowed.
    origin: Option<HeaderValue>,
}

pub(super) fn decide<'r>(policy: &'r Cors, request: &Request) -> Decision<'r> {
    let origin = request.headers().get(ORIGIN).filter(|value| {
        value.to_str().is_ok_and(|origin| {
            let origin = origin.to_ascii_lowercase();
            policy.allow_origins.iter().any(|m| origin_matches(m, &origin))
        })
    });
    Decision { policy, origin: origin.cloned() }
}

/// Whether it is a question of a browser before a request.
pub(super) fn is_preflight<B>(request: &http::Request<B>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

fn origin_matches(pattern: &OriginMatch, origin: &str) -> bool {
    match pattern {
        OriginMatch::Any => true,
        OriginMatch::Exact(want) => want == origin,
        OriginMatch::Wildcard { prefix, suffix } => origin
            .strip_prefix(prefix.as_str())
            .and_then(|rest| rest.strip_suffix(suffix.as_str()))
            .is_some_and(|label| {
                let host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
                !label.is_empty() && label.bytes().all(host_byte)
            }),
    }
}

impl Decision<'_> {
    /// The answer to a preflight request; other requests go on. A preflight whose origin is not allowed is answered
    /// without CORS headers, which makes the browser refuse.
    pub(super) fn preflight(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| is_preflight(request))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        if self.origin.is_some() {
            let policy = self.policy;
            let out = response.headers_mut();
            // With credentials a star is taken literally by browsers, so what was asked for is echoed.
            let methods =
                if policy.any_method { asked.to_str().ok().map(str::to_owned) } else { join(&policy.allow_methods) };
            insert(
                out,
                ACCESS_CONTROL_ALLOW_METHODS,
                match (policy.any_method, policy.allow_credentials) {
                    (true, false) => Some("*".to_owned()),
                    _ => methods,
                },
            );
            let wanted = headers.get(ACCESS_CONTROL_REQUEST_HEADERS).and_then(|v| v.to_str().ok()).map(str::to_owned);
            insert(
                out,
                ACCESS_CONTROL_ALLOW_HEADERS,
                match (policy.any_header, policy.allow_credentials) {
                    (true, false) => Some("*".to_owned()),
                    (true, true) => wanted,
                    _ => join(&policy.allow_headers),
                },
            );
            out.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(policy.max_age));
        }
        Some(response)
    }

    pub(super) fn on_response(self, response: &mut Response) {
        let headers = response.headers_mut();
        // Ours decide, not the backend's: two values would make every browser refuse.
        for name in [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_EXPOSE_HEADERS] {
            headers.remove(name);
        }
        let any = matches!(self.policy.allow_origins.as_slice(), [OriginMatch::Any]);
        if !any {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = self.origin else { return };
        let star = any && !self.policy.allow_credentials;
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, if star { HeaderValue::from_static("*") } else { origin });
        if self.policy.allow_credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        insert(headers, ACCESS_CONTROL_EXPOSE_HEADERS, join(&self.policy.expose_headers));
    }
}

fn join(list: &[String]) -> Option<String> {
    (!list.is_empty()).then(|| list.join(", "))
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: Option<String>) {
    if let Some(value) = value.and_then(|v| HeaderValue::try_from(v).ok()) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Cors {
        Cors {
            allow_origins: vec![
                OriginMatch::Exact("https://a.example".into()),
                OriginMatch::Wildcard { prefix: "https://".into(), suffix: ".b.example".into() },
            ],
            allow_credentials: true,
            allow_methods: vec!["GET".into(), "PUT".into()],
            any_method: false,
            allow_headers: vec!["x-a".into()],
            any_header: false,
            expose_headers: vec!["x-b".into()],
            max_age: 5,
        }
    }

    fn preflight(origin: &str) -> Response {
        let policy = policy();
        let request = http::Request::options("/")
            .header(ORIGIN, origin)
            .header(ACCESS_CONTROL_REQUEST_METHOD, "PUT")
            .body(Body::empty())
            .unwrap();
        let decision = decide(&policy, &request);
        let mut response = decision.preflight(&request).unwrap();
        decision.on_response(&mut response);
        response
    }

    #[test]
    fn allowed_origins_are_named() {
        for origin in ["https://a.example", "https://x.b.example", "https://x.y.b.example"] {
            let response = preflight(origin);
            assert_eq!(response.status(), 204);
            assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], origin);
            assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_METHODS], "GET, PUT");
            assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        }
    }

    #[test]
    fn other_origins_get_no_permission() {
        for origin in ["https://b.example", "https://evil/.b.example", "http://a.example", "null", "https://.b.example"]
        {
            assert!(!preflight(origin).headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), "{origin}");
        }
    }
}
