//! The side that talks to upstreams.
//!
//! An exchange has no task of its own: it is driven by whoever waits for the response head, and then by whoever reads
//! the response body, which owns the connection and what is left of the request body. Each poll moves both directions.
//! A reader that stops reading the response therefore also stops what is left of the request.

mod answer;
mod exchange;

use crate::{
    Error, Request, Response,
    codec::{Progress, SendError},
    error::{Kind, Side},
    io::{Io, Probe},
};
use exchange::Exchange;
use http::{HeaderMap, Method, header};
use http_body::Body as _;
use selvedge_compile::snapshot::Connections;
use selvedge_wire::http1::{Framing, HeadLimits, Persist, UnderscoreNames, connection_options, write_request};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{net::TcpStream, time::Instant};

/// A connection to an upstream between two requests. Nothing of a response is buffered in it.
pub struct Connection {
    io: Io,
    home: Arc<dyn Home>,
    requests: u32,
    created: Instant,
}

/// Where a connection goes when its response has ended cleanly and it can be used again: the pool.
pub trait Home: Send + Sync {
    fn give_back(&self, connection: Connection);
}

/// Limits of what an upstream may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOptions {
    /// Header fields of a response, at most 1000. Default 100, as for requests.
    pub max_headers: u32,
    /// Bytes of a response head. Default 60 KiB, as for requests.
    pub max_header_bytes: u32,
    /// Interim (1xx) responses to one request. Default 32: more is a flood, not a conversation.
    pub max_interim: u32,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { max_headers: 100, max_header_bytes: 60 * 1024, max_interim: 32 }
    }
}

impl From<&Connections> for ClientOptions {
    fn from(options: &Connections) -> Self {
        Self {
            max_headers: options.max_response_headers,
            max_header_bytes: options.max_response_header_bytes,
            ..Self::default()
        }
    }
}

impl ClientOptions {
    fn limits(&self) -> HeadLimits {
        HeadLimits {
            max_headers: self.max_headers as usize,
            max_bytes: self.max_header_bytes as usize,
            underscores: UnderscoreNames::Allow,
            ..HeadLimits::default()
        }
    }
}

impl Connection {
    pub fn new(io: Io, home: Arc<dyn Home>) -> Self {
        Self { io, home, requests: 0, created: Instant::now() }
    }

    /// Requests that were sent on it so far.
    pub fn requests(&self) -> u32 {
        self.requests
    }

    pub fn created(&self) -> Instant {
        self.created
    }

    pub fn tcp(&self) -> Option<&TcpStream> {
        self.io.tcp()
    }

    /// Open and silent. A connection on which anything has come must be dropped: it would be taken for the answer to
    /// the next request.
    pub fn is_reusable(&mut self) -> bool {
        self.io.probe() == Probe::Idle
    }

    /// Sends a request and waits for the head of its response. Dropping the future or the response's body closes the
    /// connection.
    ///
    /// The target is the URI's path and query (for CONNECT its authority), the host is the `Host` field or else the
    /// URI's authority. Framing and connection fields of the header map are ignored, except `Connection: upgrade` with
    /// `Upgrade`, which asks for a change of protocol. Interim responses go to the request's
    /// [`Informational`](crate::codec::Informational). A response to a change of protocol has
    /// [`Body::upgraded`](crate::Body::upgraded).
    pub fn send(mut self, request: Request, options: &ClientOptions) -> Sending {
        self.requests = self.requests.saturating_add(1);
        let (exchange, refused) = match Exchange::begin(self, request) {
            Ok(exchange) => (Some(exchange), None),
            Err(error) => (None, Some(SendError { error, progress: Progress::Unsent })),
        };
        Sending { exchange, refused, limits: options.limits(), max_interim: options.max_interim }
    }
}

/// A request under way, until the head of its response. Not an `async fn`, whose state would hold the request twice.
pub struct Sending {
    /// Until its response has begun.
    exchange: Option<Exchange>,
    refused: Option<SendError>,
    limits: HeadLimits,
    max_interim: u32,
}

impl Future for Sending {
    type Output = Result<Response, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let head = match &mut this.exchange {
            Some(exchange) => ready!(exchange.poll_head(&this.limits, this.max_interim, cx)),
            None => Err(this.refused.take().unwrap_or_else(done)),
        };
        let Some(exchange) = this.exchange.take() else { return Poll::Ready(Err(head.err().unwrap_or_else(done))) };
        Poll::Ready(head.and_then(|head| answer::response(exchange, head)))
    }
}

fn done() -> SendError {
    let error = Error::new(Kind::Internal, Side::Us, "a request was asked for after its answer");
    SendError { error, progress: Progress::Answered }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("requests", &self.requests).finish_non_exhaustive()
    }
}

/// How a request goes out.
struct Plan {
    framing: Framing,
    upgrade: bool,
    /// Nothing may follow on its connection.
    last: bool,
}

/// Writes the head of a request.
fn write_head(request: &http::request::Parts, body: &crate::Body, out: &mut bytes::BytesMut) -> Result<Plan, Error> {
    let headers = &request.headers;
    let uri = &request.uri;
    let authority = uri.authority().map(|authority| authority.as_str());
    let host = match headers.get(header::HOST) {
        Some(host) => host.to_str().map_err(|_| unsendable("the Host field has bytes that no host has"))?,
        None => authority.unwrap_or_default(),
    };
    let connect = request.method == Method::CONNECT;
    let target = if connect {
        authority.ok_or_else(|| unsendable("a CONNECT request has no authority"))?
    } else {
        uri.path_and_query().map_or("/", |path| path.as_str())
    };
    let upgrade = headers.contains_key(header::UPGRADE) && connection_options(headers).upgrade;
    let framing = framing(&request.method, headers, body);
    // Who does not read such a body would take it for the next request, were there to be one.
    let last = matches!(request.method, Method::GET | Method::HEAD) && framing != Framing::None;
    let persist = match (last, upgrade) {
        (true, _) => Persist::Close,
        (_, true) => Persist::Upgrade,
        _ => Persist::Keep,
    };
    write_request(&request.method, target, host, headers, framing.into(), persist, out);
    Ok(Plan { framing, upgrade: upgrade && !connect && !last, last })
}

/// The length of the body if it is known, else chunks. A length in the header map counts only where the body does not
/// know better.
fn framing(method: &Method, headers: &HeaderMap, body: &crate::Body) -> Framing {
    let announced = || headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    match body.size_hint().exact() {
        // Servers take a POST without a length for one that forgot it.
        Some(0) if *method == Method::POST || *method == Method::PUT || *method == Method::PATCH => Framing::Length(0),
        Some(0) => Framing::None,
        Some(length) => Framing::Length(length),
        None => announced().map_or(Framing::Chunked, Framing::Length),
    }
}

fn unsendable(message: &'static str) -> Error {
    Error::new(Kind::Internal, Side::Us, message)
}
