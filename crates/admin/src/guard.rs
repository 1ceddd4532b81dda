//! Keeps web pages out. A browser on the operator's machine reaches loopback for any site: directly (cross-site
//! requests), or by a name of the site's that is made to resolve to 127.0.0.1 (DNS rebinding).

use crate::error::Error;
use axum::{
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::net::IpAddr;

pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let authority = request.uri().authority().map(|authority| authority.as_str());
    match check(authority, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(authority: Option<&str>, headers: &HeaderMap) -> Result<(), Error> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = authority.or(text(header::HOST)).unwrap_or_default();
    if !is_local(host) {
        return Err(Error::new(
            StatusCode::FORBIDDEN,
            format!("the host `{}` is not allowed", host.escape_debug()),
            "use an address or `localhost` in the URL: other names are refused so that no web page can reach this listener",
        ));
    }
    let origin = headers.contains_key(header::ORIGIN).then(|| text(header::ORIGIN).unwrap_or_default());
    let foreign = origin.is_some_and(|origin| origin.split_once("://").is_none_or(|(_, from)| from != host));
    let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
    if foreign || cross_site {
        return Err(Error::new(
            StatusCode::FORBIDDEN,
            "requests from web pages of other origins are not allowed",
            "call this listener from a terminal, or from a page that it served itself",
        ));
    }
    Ok(())
}

/// `localhost`, a name below it (RFC 6761) or an IP address, with or without a port.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((v6, rest)) if rest.is_empty() || is_port(rest) => return v6.parse::<IpAddr>().is_ok(),
            _ => return false,
        },
        None => match host.rfind(':') {
            Some(colon) if is_port(&host[colon..]) => &host[..colon],
            Some(_) => return false,
            None => host,
        },
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<std::net::Ipv4Addr>().is_ok()
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_loopback_names_are_local() {
        for good in ["localhost", "LOCALHOST:9901", "a.localhost.", "127.0.0.1:9901", "10.1.2.3", "[::1]", "[::1]:80"] {
            assert!(is_local(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost:x",
            "[::1",
            "[::1]x",
            "::1",
            "localhost@evil",
            "1.2.3.4:",
        ] {
            assert!(!is_local(bad), "{bad}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let try_with = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            lines.iter().for_each(|(n, v)| drop(headers.insert(*n, v.parse().unwrap())));
            check(None, &headers).is_ok()
        };
        assert!(try_with(&[("host", "localhost:1")]));
        assert!(try_with(&[("host", "localhost:1"), ("origin", "http://localhost:1")]));
        assert!(!try_with(&[("host", "localhost:1"), ("origin", "http://localhost:2")]));
        assert!(!try_with(&[("host", "localhost:1"), ("origin", "null")]));
        assert!(!try_with(&[("host", "localhost:1"), ("sec-fetch-site", "cross-site")]));
        assert!(!try_with(&[]));
    }
}
