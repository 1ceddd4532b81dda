//! Connections that come.

use super::{CONNECTION_WINDOW, FRAME, KEEPALIVE, KEEPALIVE_TIMEOUT, MAX_STREAMS, STREAM_WINDOW};
use crate::{
    Body, Error, Request, Response,
    codec::{self, ExtendedConnect, Service},
    drain::Drain,
    io::Io,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use selvedge_compile::snapshot::{Http2Options, HttpOptions};
use selvedge_wire::hbone;
use std::{
    borrow::Cow,
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// What a peer asks for.
#[derive(Debug)]
pub struct Asked {
    /// The authority. That it is an address of the workload is for [`Tunnels`] to check.
    pub target: SocketAddr,
    /// `forwarded`, `baggage` and `traceparent` among them; see [`selvedge_wire::hbone`]. Nothing in them is proved.
    pub headers: HeaderMap,
}

/// What is done with a stream that is accepted.
pub struct Tunnel(Body);

impl Tunnel {
    /// `run` is called with the stream's bytes once the peer has been told; when it ends, so does the stream (dropped
    /// before its end, it is reset).
    pub fn new<F, R>(run: F) -> Self
    where
        F: FnOnce(Io) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self(Body::tunnel(run))
    }
}

/// Why a stream is not accepted, as the peer is told it.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: Cow<'static, str>,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into() }
    }
}

/// Decides about the streams of one connection.
pub trait Tunnels: Send + Sync + 'static {
    /// One stream. Dropping the future means that the peer has given it up.
    fn open(&self, asked: Asked) -> impl Future<Output = Result<Tunnel, Refusal>> + Send;

    /// A request that asks for no tunnel, or not in a way that is understood, was answered with `status`.
    fn rejected(&self, status: StatusCode, error: &Error);
}

/// Serves one connection whose TLS is done, with the limits of any HTTP/2 server here, until the peer leaves or `drain`
/// starts: then the peer is told to open no more streams (GOAWAY in two steps), and those that are open finish.
/// Dropping the future resets them.
///
/// # Errors
/// As of [`codec::h2::serve`].
pub async fn serve<T: Tunnels>(io: Io, tunnels: Arc<T>, drain: Drain) -> Result<(), Error> {
    codec::h2::serve(io, Arc::new(Streams(tunnels)), options(), drain).await
}

fn options() -> &'static HttpOptions {
    static OPTIONS: OnceLock<HttpOptions> = OnceLock::new();
    OPTIONS.get_or_init(|| HttpOptions {
        // The pool of the peer closes what is idle; this is for peers that forget to.
        idle_timeout: Duration::from_secs(600),
        http2: Http2Options {
            max_concurrent_streams: MAX_STREAMS,
            initial_stream_window: STREAM_WINDOW,
            initial_connection_window: CONNECTION_WINDOW,
            max_frame_size: FRAME,
            keepalive_interval: KEEPALIVE,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            ..Http2Options::default()
        },
        ..HttpOptions::default()
    })
}

struct Streams<T>(Arc<T>);

impl<T: Tunnels> Streams<T> {
    async fn answer(&self, request: Request) -> Result<Response, Refusal> {
        let (parts, _) = request.into_parts();
        if parts.method != Method::CONNECT || parts.extensions.get::<ExtendedConnect>().is_some() {
            let message = "only tunnels are served here: CONNECT without :protocol";
            return Err(self.reject(StatusCode::METHOD_NOT_ALLOWED, message.to_owned()));
        }
        let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
        let target =
            hbone::authority(authority).map_err(|why| self.reject(StatusCode::BAD_REQUEST, why.to_string()))?;
        let Tunnel(body) = self.0.open(Asked { target, headers: parts.headers }).await?;
        Ok(Response::new(body))
    }

    fn reject(&self, status: StatusCode, message: String) -> Refusal {
        let refusal = Refusal::new(status, message);
        self.0.rejected(status, &Error::bad_request(status.as_u16(), refusal.message.clone()));
        refusal
    }
}

impl<T: Tunnels> Service for Streams<T> {
    async fn call(&self, request: Request) -> Response {
        self.answer(request).await.unwrap_or_else(|refusal| {
            let mut response = Response::new(Body::full(refusal.message.into_owned()));
            *response.status_mut() = refusal.status;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
                headers.insert(header::ALLOW, HeaderValue::from_static("CONNECT"));
            }
            response
        })
    }

    fn rejected(&self, status: StatusCode, error: &Error) {
        self.0.rejected(status, error);
    }
}
