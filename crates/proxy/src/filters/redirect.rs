//! RequestRedirect.

use super::{Facts, rewrite::rewritten};
use crate::{Body, Request, Response};
use http::{HeaderValue, StatusCode, header::LOCATION};
use selvedge_compile::snapshot::Redirect;

pub(super) fn answer(redirect: &Redirect, facts: &Facts<'_>, request: &Request) -> Response {
    let mut response = Response::new(Body::empty());
    match HeaderValue::try_from(location(redirect, facts, request)) {
        Ok(value) => {
            *response.status_mut() = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
            response.headers_mut().insert(LOCATION, value);
        }
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}

fn location(redirect: &Redirect, facts: &Facts<'_>, request: &Request) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(facts.scheme);
    let host = redirect.host.as_deref().unwrap_or(facts.host);
    // Without a port of its own: that of the new scheme if one is given, else the listener's.
    let port = redirect.port.or(if redirect.scheme.is_some() { None } else { Some(facts.listener_port) });
    let port = port.filter(|p| !matches!((scheme, p), ("http", 80) | ("https", 443)));
    let uri = request.uri();
    let path = match &redirect.path {
        Some(change) => rewritten(change, uri.path(), facts.prefix),
        None => uri.path().to_owned(),
    };
    let mut out = format!("{scheme}://{host}");
    if let Some(port) = port {
        out.push_str(&format!(":{port}"));
    }
    out.push_str(&path);
    if let Some(query) = uri.query() {
        out.push('?');
        out.push_str(query);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(scheme: &'static str, listener_port: u16) -> Facts<'static> {
        Facts { scheme, host: "a.example", listener_port, prefix: Some(0) }
    }

    fn to(redirect: Redirect, facts: &Facts<'_>) -> String {
        let request = http::Request::get("/p?q=1").body(Body::empty()).unwrap();
        answer(&redirect, facts, &request).headers()[LOCATION].to_str().unwrap().to_owned()
    }

    fn empty() -> Redirect {
        Redirect { scheme: None, host: None, path: None, port: None, status: 302 }
    }

    #[test]
    fn ports_follow_the_standard() {
        assert_eq!(to(empty(), &facts("http", 8080)), "http://a.example:8080/p?q=1");
        assert_eq!(to(empty(), &facts("http", 80)), "http://a.example/p?q=1");
        let https = Redirect { scheme: Some("https".into()), ..empty() };
        assert_eq!(to(https, &facts("http", 8080)), "https://a.example/p?q=1");
        let port = Redirect { port: Some(443), ..empty() };
        assert_eq!(to(port, &facts("http", 80)), "http://a.example:443/p?q=1");
        let both =
            Redirect { port: Some(443), scheme: Some("https".into()), host: Some("b.example".into()), ..empty() };
        assert_eq!(to(both, &facts("http", 80)), "https://b.example/p?q=1");
    }
}
