//! WebSocket through us, whichever HTTP version each side speaks (RFC 6455, RFC 8441).

use super::{hash, report, timed_out};
use crate::{
    Body, Error, Request, Response, access,
    balance::Pick,
    breaker::Permit,
    cluster::LiveCluster,
    codec::{ExtendedConnect, Progress},
    connect::{ClientAddress, Http1Only},
    error::Kind,
    pool::Held,
    reply,
    request::{Upgrade, sanitise_response},
    serve::Exchange,
    telemetry::{Limit, Record},
    tunnel,
};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use selvedge_compile::snapshot::UpstreamProtocol;
use selvedge_wire::websocket;
use std::{net::SocketAddr, sync::Arc};
use tokio::time::Instant;

/// Endpoints tried before giving up: the handshake carries no body, and nothing has been done when a connection fails.
const ATTEMPTS: usize = 3;

/// Performs the handshake with an upstream and joins the two connections.
pub(super) async fn send(
    exchange: &Exchange<'_>,
    cluster: &Arc<LiveCluster>,
    request: &mut Request,
    record: &mut Record,
    permit: Permit,
    sticky: Option<SocketAddr>,
) -> Result<Response, Error> {
    let mut handshake = Handshake::new(exchange, request.headers());
    let mut tried: smallvec::SmallVec<[SocketAddr; ATTEMPTS]> = smallvec::SmallVec::new();
    let (parts, _) = std::mem::take(request).into_parts();
    let hash = hash(&cluster.current().config.load_balancing.hash_keys, &parts, exchange);
    let (mut response, endpoint) = loop {
        let endpoint = cluster.pick(&Pick { hash, tried: &tried, sticky: sticky.filter(|_| tried.is_empty()) })?;
        record.upstream(endpoint.config(), endpoint.address);
        handshake.http2 = endpoint.config().protocol == UpstreamProtocol::Http2;
        let mut request = Request::from_parts(parts.clone(), Body::empty());
        handshake.prepare(&mut request);
        request.extensions_mut().insert(ClientAddress { source: exchange.conn.peer, destination: exchange.conn.local });
        let start = Instant::now();
        let sending = cluster.send(exchange.conn.worker, &endpoint, &mut request);
        let result = match exchange.deadline {
            Some(at) => tokio::time::timeout_at(at, sending).await.unwrap_or_else(|_| {
                Limit::RequestTimeout.hit();
                Err(timed_out("the request timeout ran out"))
            }),
            None => sending.await,
        };
        report(cluster, &endpoint, &result, start);
        match result {
            Ok(response) => break (response, endpoint),
            Err(failure) => {
                tried.push(endpoint.address);
                let unsent = failure.progress == Progress::Unsent;
                // As for requests: a refused connection needs no budget.
                let allowed =
                    || failure.error.kind == Kind::Connect || cluster.budget_try(&super::retry::BUILT_IN_BUDGET);
                if !unsent || tried.len() >= ATTEMPTS || !allowed() {
                    return Err(failure.error);
                }
            }
        }
    };
    record.first_byte();
    if !handshake.accepted(&response) {
        if response.status().as_u16() == 101 {
            let message = "the upstream's answer to the WebSocket handshake is not valid";
            return Err(Error::upstream(Kind::Protocol { status: 502 }, message));
        }
        // A refusal is an ordinary response.
        sanitise_response(&mut response);
        return Ok(
            response.map(|body| crate::stream::Held::wrap(body, exchange.deadline, Some(exchange.stream_idle), permit))
        );
    }
    let held = response.extensions_mut().remove::<Held>();
    let Some(upstream) = response.body_mut().take_upgraded() else {
        return Err(Error::upstream(
            Kind::Protocol { status: 502 },
            "the upstream switched protocols without a connection",
        ));
    };
    tracing::debug!(cluster = cluster.key(), endpoint = %endpoint.address, "websocket established");
    let mut response = handshake.answer(response);
    let idle = exchange.stream_idle;
    let progress = record.progress().clone();
    let drain = exchange.conn.listener.drainer.subscribe();
    let live = exchange.live.cloned();
    *response.body_mut() = Body::tunnel(move |client| async move {
        tunnel::copy_until(client, upstream, idle, &progress, drain, access::denied(live)).await;
        drop((permit, held));
    });
    Ok(response)
}

/// The two forms of one handshake.
struct Handshake {
    client: Upgrade,
    /// The client's `Sec-WebSocket-Key` (HTTP/1.1).
    client_key: Option<HeaderValue>,
    /// What is sent upstream over HTTP/1.1.
    upstream_key: HeaderValue,
    /// Of the backend that is tried.
    http2: bool,
    host: Option<String>,
    scheme: &'static str,
}

impl Handshake {
    fn new(exchange: &Exchange<'_>, headers: &HeaderMap) -> Self {
        let client_key = headers.get("sec-websocket-key").cloned();
        let made = || HeaderValue::try_from(websocket::key(rand::random())).unwrap_or(HeaderValue::from_static(""));
        Self {
            client: exchange.target.upgrade.unwrap_or(Upgrade::WebSocket),
            upstream_key: client_key.clone().unwrap_or_else(made),
            client_key,
            http2: false,
            host: headers.get(http::header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned),
            scheme: exchange.conn.scheme(),
        }
    }

    /// Brings a request into the form the upstream understands.
    fn prepare(&self, request: &mut Request) {
        let headers = request.headers_mut();
        if self.http2 {
            websocket::request_to_h2(headers);
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(ExtendedConnect("websocket".to_owned()));
            if let (Some(host), Some(path)) = (&self.host, request.uri().path_and_query().cloned()) {
                let uri =
                    http::Uri::builder().scheme(self.scheme).authority(host.as_str()).path_and_query(path).build();
                if let Ok(uri) = uri {
                    *request.uri_mut() = uri;
                }
            }
            return;
        }
        headers.insert("sec-websocket-key", self.upstream_key.clone());
        if !headers.contains_key("sec-websocket-version") {
            headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        }
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        // An endpoint that chose HTTP/2 would know nothing of an upgrade.
        request.extensions_mut().insert(Http1Only);
    }

    fn accepted(&self, response: &Response) -> bool {
        if self.http2 {
            return response.status().is_success();
        }
        websocket::check_response(response.status(), response.headers(), self.upstream_key.as_bytes()).is_ok()
    }

    /// Brings the upstream's answer into the form the client understands.
    fn answer(&self, mut response: Response) -> Response {
        sanitise_response(&mut response);
        let headers = response.headers_mut();
        match (self.client, &self.client_key) {
            (Upgrade::WebSocket, Some(key)) => {
                websocket::response_to_h1(headers, key.as_bytes());
                headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            }
            (Upgrade::ExtendedWebSocket, _) => {
                websocket::response_to_h2(headers);
                *response.status_mut() = StatusCode::OK;
            }
            (Upgrade::WebSocket, None) => {
                return reply::from_status(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing", false);
            }
        }
        response
    }
}
