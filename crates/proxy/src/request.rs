//! From what a client sent to what routing, policies and backends see: one canonical host and path, hop-by-hop and
//! internal headers gone, the client's address known.

use crate::{
    Error, Request, Response,
    codec::{ExtendedConnect, h1::RawTarget},
    connection::Conn,
    error::{Kind, Side},
    scope::{Key, Scope},
    telemetry::{Limit, RequestId},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST},
    uri::PathAndQuery,
};
use selvedge_compile::snapshot::{HttpOptions, Underscores};
use selvedge_wire::{
    forwarded::{self, Hop, Source, Trust},
    hop,
    host::{self, Authority},
    http1::{Framing, imitates_framing},
    spiffe::SpiffeId,
    uri::{self, Form},
    websocket,
};
use std::net::{IpAddr, SocketAddr};

/// What a request asks for, once its target has been understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Canonical host, without port. Empty for HTTP/1.0 without `Host`.
    pub host: String,
    pub port: Option<u16>,
    /// The client must be sent to the normalised path first (escaped slashes were decoded).
    pub redirect: bool,
    pub upgrade: Option<Upgrade>,
}

impl Target {
    /// The destination, for a request to a proxy.
    pub fn key(&self) -> Key {
        Key::host(&self.host, self.port.unwrap_or(80))
    }
}

/// A wish to change the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// HTTP/1.1 `Upgrade: websocket`.
    WebSocket,
    /// RFC 8441 CONNECT with `:protocol: websocket`.
    ExtendedWebSocket,
}

/// Understands the request target and host, and puts their canonical form into the request.
pub fn understand(request: &mut Request, secure: bool, options: &HttpOptions) -> Result<Target, Error> {
    if request.version() == Version::HTTP_2 {
        // HTTP/1.1 has done so while it read.
        names(request.headers_mut(), options.underscores)?;
    }
    let upgrade = upgrade(request)?;
    match *request.method() {
        Method::CONNECT => return Err(refused_method("CONNECT is refused: this is not a forward proxy")),
        Method::TRACE => return Err(refused_method("TRACE is refused")),
        _ => {}
    }
    let (authority, redirect) = canonical_path(request, secure, options)?;
    let host = single_host(request)?;
    let named = match (authority, host) {
        (Some(authority), Some(host)) if !authority.agrees(&host, secure) => {
            return Err(Error::bad_request(400, "the request target and the Host header name different hosts"));
        }
        (Some(authority), _) => Some(authority),
        (None, host) => host,
    };
    let Some(named) = named else {
        if request.version() >= Version::HTTP_11 {
            return Err(Error::bad_request(400, "the Host header is missing"));
        }
        return Ok(Target { host: String::new(), port: None, redirect, upgrade });
    };
    // The backend gets the same spelling that routing saw.
    let text = named.text(secure);
    if request.headers().get(HOST).is_none_or(|h| h.as_bytes() != text.as_bytes()) {
        let value = HeaderValue::from_str(&text).map_err(|_| Error::bad_request(400, "the host is not valid"))?;
        request.headers_mut().insert(HOST, value);
    }
    Ok(Target { port: named.port, host: named.host.into_owned(), redirect, upgrade })
}

fn refused_method(message: &'static str) -> Error {
    Error::bad_request(StatusCode::METHOD_NOT_ALLOWED.as_u16(), message)
}

/// Recognises WebSocket handshakes; other upgrades are not taken up, which RFC 9110 7.8 always allows.
fn upgrade(request: &mut Request) -> Result<Option<Upgrade>, Error> {
    if let Some(protocol) = request.extensions_mut().remove::<ExtendedConnect>() {
        if protocol.0 != "websocket" {
            return Err(Error::bad_request(501, "only websocket is supported in extended CONNECT"));
        }
        *request.method_mut() = Method::GET;
        return Ok(Some(Upgrade::ExtendedWebSocket));
    }
    if websocket::requested(request.version(), request.headers()) != websocket::Upgrade::WebSocket {
        return Ok(None);
    }
    let framing = if request.body().is_empty() { Framing::Length(0) } else { Framing::Chunked };
    match websocket::check_request(request.method(), request.version(), request.headers(), framing) {
        Ok(_) => Ok(Some(Upgrade::WebSocket)),
        Err(error) => Err(Error::bad_request(error.status().as_u16(), error.to_string())),
    }
}

/// Refuses names that backends could take for fields of HTTP/1.1 framing, and treats those with underscores as wanted.
fn names(headers: &mut HeaderMap, wanted: Underscores) -> Result<(), Error> {
    if headers.keys().any(|name| name.as_str().len() >= 13 && imitates_framing(name.as_str().as_bytes())) {
        return Err(Error::bad_request(400, "a header name imitates Content-Length or Transfer-Encoding"));
    }
    if wanted == Underscores::Allow {
        return Ok(());
    }
    let named: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    if wanted == Underscores::Reject && !named.is_empty() {
        return Err(Error::bad_request(400, "a header name holds an underscore, which this listener refuses"));
    }
    for name in named {
        headers.remove(name);
    }
    Ok(())
}

/// Normalises path and query in place. Returns the authority of the target, and whether to redirect.
fn canonical_path(
    request: &mut Request,
    secure: bool,
    options: &HttpOptions,
) -> Result<(Option<Authority<'static>>, bool), Error> {
    let bad = |e: uri::UriError| Error::bad_request(400, e.to_string());
    let exact = request.extensions_mut().remove::<RawTarget>();
    let given = request.uri();
    let authority = match given.authority() {
        Some(authority) => Some(
            host::parse(authority.as_str().as_bytes())
                .map_err(|e| Error::bad_request(400, e.to_string()))?
                .into_owned(),
        ),
        None => None,
    };
    if given.scheme_str().is_some_and(|s| s != "http" && s != "https") {
        return Err(Error::bad_request(400, "the scheme must be http or https"));
    }
    if request.version() < Version::HTTP_2 && given.scheme_str().is_some_and(|s| (s == "https") != secure) {
        return Err(misdirected_scheme());
    }
    // What `http::Uri` cannot hold byte for byte comes beside it.
    let rooted;
    let raw: &[u8] = match (&exact, given.path_and_query()) {
        (Some(exact), _) => &exact.0,
        // `http://host?query`: an empty path is `/` (RFC 9110 section 4.2.3).
        (None, Some(path)) if path.as_str().starts_with('?') => {
            rooted = format!("/{path}");
            rooted.as_bytes()
        }
        (None, Some(path)) if !path.as_str().is_empty() => path.as_str().as_bytes(),
        (None, _) => b"/",
    };
    if raw.len() > options.max_target_bytes as usize {
        return Err(Error::bad_request(StatusCode::URI_TOO_LONG.as_u16(), "the request target is too long")
            .over(Limit::TargetBytes));
    }
    let target = uri::parse(request.method(), raw, &options.path()).map_err(bad)?;
    let authority = match (authority, target.authority) {
        (None, Some(named)) if target.form == Form::Absolute => {
            Some(host::parse(named).map_err(|e| Error::bad_request(400, e.to_string()))?.into_owned())
        }
        (_, Some(_)) => return Err(Error::bad_request(400, "the request target is not a path")),
        (authority, None) => authority,
    };
    if request.version() < Version::HTTP_2 && target.secure.is_some_and(|s| s != secure) {
        return Err(misdirected_scheme());
    }
    let redirect = target.redirect;
    if exact.is_none() && target.is_clean() && authority.is_none() && given.scheme().is_none() {
        return Ok((None, redirect));
    }
    let path: PathAndQuery =
        target.path_and_query.into_owned().try_into().map_err(|_| Error::bad_request(400, "the path is not valid"))?;
    *request.uri_mut() = Uri::from(path);
    Ok((authority, redirect))
}

/// A request over HTTP/2 must name the scheme of its connection, as an absolute target over HTTP/1.1 must; proxies in
/// front of us that are believed may name the one their client used.
pub fn check_scheme(request: &Request, conn: &Conn, options: &HttpOptions) -> Result<(), Error> {
    let other = request.uri().scheme().is_some_and(|scheme| scheme.as_str() != conn.scheme());
    if conn.scope == Scope::Hosts && other && !options.trust().trusts(conn.peer.ip()) {
        return Err(misdirected_scheme());
    }
    Ok(())
}

fn misdirected_scheme() -> Error {
    let message = "the scheme of the target is not that of this connection";
    Error::new(Kind::Protocol { status: 421 }, Side::Downstream, message)
}

fn single_host(request: &Request) -> Result<Option<Authority<'static>>, Error> {
    let mut values = request.headers().get_all(HOST).iter();
    let Some(first) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::bad_request(400, "there is more than one Host header"));
    }
    if first.is_empty() {
        return Err(Error::bad_request(400, "the Host header is empty"));
    }
    let host = host::parse(first.as_bytes()).map_err(|e| Error::bad_request(400, e.to_string()))?;
    Ok(Some(host.into_owned()))
}

/// Who sent a request, and how it is called from here on.
pub struct Sender {
    pub client: IpAddr,
    pub id: RequestId,
}

/// Removes what must not pass and tells the backend about the client.
///
/// `written` is the field in which the proxies in front name the client, if that was said.
pub fn sanitise(request: &mut Request, conn: &Conn, trust: &Trust, written: Option<Source>) -> Result<Sender, Error> {
    let headers = request.headers_mut();
    if headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err(Error::bad_request(400, "there is more than one Authorization header"));
    }
    hop::strip_request(headers);
    // The codec has answered it.
    headers.remove(EXPECT);
    // Who somebody is says their certificate, to us, and no header.
    headers.remove(&X_FORWARDED_CLIENT_CERT);
    if matches!(conn.scope, Scope::Hosts | Scope::Port(_)) {
        forwarded::strip_imitations(headers);
    }
    if !headers.contains_key(HOST) {
        // HTTP/1.0 may say nothing; whatever comes behind us may not. The client meant the address it connected to.
        let local = SocketAddr::new(conn.local.ip().to_canonical(), conn.local.port());
        headers.insert(HOST, HeaderValue::try_from(local.to_string()).unwrap_or(HeaderValue::from_static("")));
    }
    let peer = conn.peer.ip().to_canonical();
    let (client, trusted) = match &conn.scope {
        Scope::Hosts => {
            let said = forwarded(headers, conn, trust, written)?;
            if let Some(told) = conn.facts.tls.as_ref().and_then(|tls| tls.forwarded_client_cert.clone()) {
                headers.insert(&X_FORWARDED_CLIENT_CERT, told);
            }
            said
        }
        // Between workloads nobody notices us: what the gateway has written about the client stays as it is.
        Scope::To(_) | Scope::Named => (peer, true),
        Scope::Port(arrived) => {
            if let Some(peer) = &arrived.peer {
                client_cert(headers, arrived.own.as_ref(), peer);
            }
            (peer, true)
        }
    };
    let id = match headers.get(&X_REQUEST_ID).filter(|id| trusted && is_sane(id)) {
        Some(id) => RequestId::Given(id.clone()),
        None => {
            let id = RequestId::Made(uuid_v4(rand::random()));
            if let Ok(value) = HeaderValue::try_from(id.to_string()) {
                headers.insert(&X_REQUEST_ID, value);
            }
            id
        }
    };
    Ok(Sender { client, id })
}

/// What the edge says about a client, and whether that client is believed.
fn forwarded(
    headers: &mut HeaderMap,
    conn: &Conn,
    trust: &Trust,
    written: Option<Source>,
) -> Result<(IpAddr, bool), Error> {
    let peer = conn.peer.ip().to_canonical();
    let trusted = trust.trusts(peer);
    if !trusted {
        forwarded::strip_internal(headers);
    }
    let client = forwarded::client(peer, headers, written, trust)
        .map_err(|contradiction| Error::bad_request(400, contradiction.to_string()))?;
    // With its port, as backends make links of it.
    let host = headers.get(HOST).cloned();
    let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
    let hop = Hop { peer, host, secure: conn.secure(), port: conn.local.port() };
    forwarded::write_x_forwarded(headers, &hop);
    if headers.contains_key("forwarded") {
        forwarded::append_forwarded(headers, &hop);
    }
    Ok((client, trusted))
}

/// Tells the application who called, in the words of Envoy.
fn client_cert(headers: &mut HeaderMap, own: Option<&SpiffeId>, peer: &SpiffeId) {
    // A SPIFFE ID has no byte that would need quotes.
    let text = match own {
        Some(own) => format!("By={own};URI={peer}"),
        None => format!("URI={peer}"),
    };
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(&X_FORWARDED_CLIENT_CERT, value);
    }
}

static X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Version and variant bits of RFC 9562 section 5.4.
fn uuid_v4(random: u128) -> u128 {
    random & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62
}

/// An id that others made is kept when it is short and cannot confuse a log.
fn is_sane(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Whether sending a request twice has the effect of sending it once (RFC 9110 9.2.2).
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// How the proxy of a workload tells a member of the mesh that a request has not reached the workload, as no connection to it
/// could be made, so that another endpoint may be tried whatever the method. It ends at the proxy that called, and is never
/// passed on from an application.
pub static UNDELIVERED: HeaderName = HeaderName::from_static("x-selvedge-undelivered");

/// Headers that no response may carry past us.
pub fn sanitise_response(response: &mut Response) {
    let status = response.status();
    let headers = response.headers_mut();
    hop::strip_response(headers);
    headers.remove(&UNDELIVERED);
    // RFC 9110 section 8.6; clients of HTTP/2 take it for a broken message.
    if status == StatusCode::NO_CONTENT || status.is_informational() {
        headers.remove(CONTENT_LENGTH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Body;
    use selvedge_compile::snapshot::EscapedSlashes;

    fn understand(request: &mut Request, secure: bool) -> Result<Target, Error> {
        super::understand(request, secure, &HttpOptions::default())
    }

    fn get(uri: &str, host: &[&str]) -> Request {
        let mut builder = http::Request::get(uri);
        for h in host {
            builder = builder.header(HOST, *h);
        }
        builder.body(Body::empty()).unwrap()
    }

    #[test]
    fn one_host_and_path_for_all() {
        let mut request = get("/a/../b/%7Ec?x=1", &["SHOP.example.:80"]);
        let target = understand(&mut request, false).unwrap();
        assert_eq!((target.host.as_str(), target.port), ("shop.example", Some(80)));
        assert_eq!(request.uri(), "/b/~c?x=1");
        assert_eq!(request.headers()[HOST], "shop.example");
    }

    #[test]
    fn the_target_and_host_must_agree() {
        let mut request = get("http://a.example/x", &["a.example"]);
        assert_eq!(understand(&mut request, false).unwrap().host, "a.example");
        assert_eq!(request.uri(), "/x");
        let mut request = get("http://b.example/x", &["a.example"]);
        assert!(understand(&mut request, false).is_err());
        assert!(understand(&mut get("/", &["a", "a"]), false).is_err());
        assert!(understand(&mut get("/", &[]), false).is_err());
        assert!(understand(&mut get("/", &["a,b"]), false).is_err());
    }

    #[test]
    fn connect_and_trace_are_refused() {
        for method in [Method::CONNECT, Method::TRACE] {
            let mut request = get("/", &["a"]);
            *request.method_mut() = method;
            let error = understand(&mut request, false).unwrap_err();
            assert_eq!(error.kind, Kind::Protocol { status: 405 });
        }
    }

    #[test]
    fn targets_and_names_are_treated_as_the_listener_says() {
        let strict = HttpOptions {
            escaped_slashes: EscapedSlashes::Reject,
            underscores: Underscores::Reject,
            max_target_bytes: 64,
            merge_slashes: false,
            ..HttpOptions::default()
        };
        let status = |uri: &str, options: &HttpOptions| {
            let mut request = get(uri, &["a"]);
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().insert("x-a", HeaderValue::from_static("1"));
            super::understand(&mut request, false, options).map(|_| request.uri().to_string()).map_err(|e| e.kind)
        };
        assert_eq!(status("/a//b%2fc", &HttpOptions::default()), Ok("/a/b%2Fc".to_owned()));
        assert_eq!(status("/a//b", &strict), Ok("/a//b".to_owned()));
        assert_eq!(status("/a%2fb", &strict), Err(Kind::Protocol { status: 400 }));
        assert_eq!(status(&format!("/{}", "a".repeat(64)), &strict), Err(Kind::Protocol { status: 414 }));
        let decode = HttpOptions { escaped_slashes: EscapedSlashes::Decode, ..HttpOptions::default() };
        assert_eq!(status("/a%2f..%2fb", &decode), Ok("/b".to_owned()));
        let named = |underscores| {
            let mut request = get("/", &["a"]);
            request.headers_mut().insert("x_a", HeaderValue::from_static("1"));
            *request.version_mut() = Version::HTTP_2;
            let options = HttpOptions { underscores, ..HttpOptions::default() };
            super::understand(&mut request, false, &options).map(|_| request.headers().contains_key("x_a")).ok()
        };
        assert_eq!(
            [Underscores::Allow, Underscores::Drop, Underscores::Reject].map(named),
            [Some(true), Some(false), None]
        );
    }
}
