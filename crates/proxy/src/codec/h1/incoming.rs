//! A request head becomes a request.

use super::{RawTarget, input::BodyReader, link::Link, reject::Refusal};
use crate::{Body, Request, codec::Informational};
use http::{Method, Uri, Version, header, uri::PathAndQuery};
use selvedge_compile::snapshot::HttpOptions;
use selvedge_wire::{
    hop::accepts_trailers,
    http1::{Expectation, Framing, RequestHead, connection_options, expectation, persistent, request_framing_with},
};
use std::sync::Arc;

/// What the connection must remember of a request that the service has.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) head_only: bool,
    pub(super) connect: bool,
    pub(super) version: Version,
    /// The client will send another request after this one.
    pub(super) keep: bool,
    /// The client can take trailers.
    pub(super) trailers: bool,
    /// What the service has to say while it works; HTTP/1.0 knows no interim responses.
    pub(super) informational: Informational,
}

/// Makes the request that the service is called with.
pub(super) fn request(
    head: RequestHead,
    link: &Arc<Link>,
    options: &HttpOptions,
) -> Result<(Request, Asked), Box<Refusal>> {
    let RequestHead { method, target, version, mut headers } = head;
    let framing = request_framing_with(&method, version, &headers, options.get_bodies)?;
    let expects = match expectation(version, &headers, framing) {
        Expectation::None => false,
        Expectation::Continue => true,
        Expectation::Unknown => return Err(Refusal::new(417, "the expectation is not `100-continue`")),
    };
    headers.remove(header::EXPECT);
    let (uri, raw) = uri(&method, target)?;
    let asked = Asked {
        head_only: method == Method::HEAD,
        connect: method == Method::CONNECT,
        version,
        keep: persistent(version, connection_options(&headers)) && method != Method::CONNECT,
        trailers: version == Version::HTTP_11 && accepts_trailers(&headers),
        informational: Informational::default(),
    };
    let mut request = Request::new(body(framing, expects, link, options));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    request.extensions_mut().insert(asked.informational.clone());
    if let Some(raw) = raw {
        request.extensions_mut().insert(raw);
    }
    Ok((request, asked))
}

/// The target in one of the four forms of RFC 9112 section 3.2; what it says is judged by the normaliser.
fn uri(method: &Method, target: bytes::Bytes) -> Result<(Uri, Option<RawTarget>), Box<Refusal>> {
    let wrong = || Refusal::new(400, "the request target has a form that its method does not allow");
    // A fragment is never sent; `Uri` would drop it silently.
    if target.contains(&b'#') {
        return Err(Refusal::new(400, "the request target has a fragment"));
    }
    if *method == Method::CONNECT {
        let uri = Uri::from_maybe_shared(target).map_err(|_| wrong())?;
        let authority = uri.authority().is_some() && uri.scheme().is_none() && uri.path_and_query().is_none();
        return if authority { Ok((uri, None)) } else { Err(wrong()) };
    }
    match &target[..] {
        [b'/', ..] => Ok(match PathAndQuery::from_maybe_shared(target.clone()) {
            Ok(path) => (Uri::from(path), None),
            Err(_) => (Uri::default(), Some(RawTarget(target))),
        }),
        b"*" if *method == Method::OPTIONS => Ok((Uri::from_static("*"), None)),
        b"*" => Err(wrong()),
        _ if target.windows(3).any(|w| w == b"://") => match Uri::from_maybe_shared(target.clone()) {
            Ok(uri) if uri.scheme().is_some() && uri.authority().is_some() => Ok((uri, None)),
            Ok(_) => Err(wrong()),
            Err(_) => Ok((Uri::default(), Some(RawTarget(target)))),
        },
        _ => Err(wrong()),
    }
}

/// A body that is here already is handed over as it is; the rest is read when somebody asks for it.
fn body(framing: Framing, expects: bool, link: &Arc<Link>, options: &HttpOptions) -> Body {
    let limit = if options.max_body_bytes == 0 { u64::MAX } else { options.max_body_bytes };
    match framing {
        Framing::None | Framing::Length(0) | Framing::Tunnel | Framing::Close => return Body::empty(),
        Framing::Length(length) if length <= limit => {
            let buffer = &mut link.lock().input.bytes;
            if buffer.len() as u64 >= length {
                return Body::full(buffer.split_to(length as usize).freeze());
            }
        }
        Framing::Length(_) | Framing::Chunked => {}
    }
    Body::stream(link.begin(BodyReader::new(framing), expects, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_held_as_sent_or_refused() {
        let uri = |method: &str, target: &'static str| uri(&method.parse().unwrap(), target.into());
        for target in ["/", "/a?b=c", "/a//b/../c;x=y?%41", "//evil/x", "/a?", "/%2e%2e/"] {
            let (uri, raw) = uri("GET", target).unwrap();
            assert_eq!((uri.path_and_query().unwrap().as_str(), raw, uri.authority()), (target, None, None));
        }
        let (absolute, _) = uri("GET", "http://b:1/x?y").unwrap();
        assert_eq!((absolute.host(), absolute.path()), (Some("b"), "/x"));
        assert_eq!(uri("OPTIONS", "*").unwrap().0.path(), "*");
        assert_eq!(uri("CONNECT", "a:443").unwrap().0.authority().unwrap().as_str(), "a:443");
        let (_, raw) = uri("GET", "/a\x08b").unwrap();
        assert_eq!(raw, Some(RawTarget("/a\x08b".into())));
        for (method, target) in [
            ("GET", "admin"),
            ("GET", "*"),
            ("CONNECT", "/"),
            ("CONNECT", "http://a/"),
            ("GET", "/a#b"),
            ("GET", "a:80"),
        ] {
            assert_eq!(uri(method, target).unwrap_err().status, 400, "{method} {target}");
        }
    }
}
