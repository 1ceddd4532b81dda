//! A connection to an upstream.

use super::{
    DATA_FRAME_BUDGET, HANDSHAKE_TIMEOUT, MAX_LOCAL_RESETS, MAX_REMEMBERED_RESETS, MAX_SEND_BUFFER, content_length,
    duplex::H2Stream,
    error_of,
    head::HeadLimits,
    incoming::Incoming,
    keepalive::KeepAlive,
    pump::{Pump, Stop},
    server::{MAX_FRAME_SIZE, MAX_WINDOW, MIN_FRAME_SIZE},
    strip_connection_fields,
    wire::{Wire, WireState},
};
use crate::{
    Body, Request, Response,
    codec::{ExtendedConnect, Informational, Progress, SendError},
    error::{Error, Kind, Side},
    io::Io,
    telemetry::Limit,
};
use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
    ext::Protocol,
};
use http::{HeaderMap, Method, Uri, Version, header, request::Parts, uri::Scheme};
use http_body::Body as _;
use selvedge_compile::snapshot::Connections;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Interim responses taken for one request; more than this is an attack.
const MAX_INTERIM: u32 = 100;

/// `h2` reports this as the peer's limit until the peer's first SETTINGS.
const UNKNOWN: usize = usize::MAX - 1;

/// How a connection to an upstream behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Streams at once, however many the peer allows.
    pub max_streams: u32,
    /// Bytes the peer may send on one stream before we have read them.
    pub stream_window: u32,
    /// The same for all streams together.
    pub connection_window: u32,
    pub max_frame_size: u32,
    /// Fields and bytes (names + values + 32 each) of a response head.
    pub max_headers: u32,
    pub max_header_bytes: u32,
    /// PING after this long without a byte; zero = off.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    /// For requests whose target does not say.
    pub scheme: Scheme,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self::from(&Connections::default())
    }
}

impl From<&Connections> for ClientOptions {
    fn from(options: &Connections) -> Self {
        Self {
            max_streams: options.http2_max_streams.max(1),
            stream_window: options.http2_initial_window,
            connection_window: options.http2_connection_window,
            max_frame_size: MIN_FRAME_SIZE,
            max_headers: options.max_response_headers,
            max_header_bytes: options.max_response_header_bytes,
            keepalive_interval: options.http2_keepalive_interval,
            keepalive_timeout: options.http2_keepalive_timeout,
            scheme: Scheme::HTTP,
        }
    }
}

/// Whether a response head is within its limits, in fields and in decoded bytes.
fn fits(headers: &HeaderMap, options: &ClientOptions) -> Result<(), String> {
    if headers.len() > options.max_headers as usize {
        return Err(format!(
            "{} response header fields are more than the limit of {}",
            headers.len(),
            options.max_headers
        ));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if bytes > options.max_header_bytes as usize {
        return Err(format!(
            "{bytes} bytes of response header fields are more than the limit of {}",
            options.max_header_bytes
        ));
    }
    Ok(())
}

/// A handle on a connection: any number of clones, any number of requests at once up to the limits. When the last
/// one is dropped the connection ends with its last stream.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    sender: Mutex<SendRequest<Bytes>>,
    options: ClientOptions,
    state: Arc<State>,
    created: Instant,
}

/// Shared with the driver and with what outlives a request.
#[derive(Debug)]
struct State {
    closed: AtomicBool,
    active: AtomicUsize,
    requests: AtomicU64,
    /// What the peer allows; [`UNKNOWN`] until it has said so.
    peer_max: AtomicUsize,
    settings: Notify,
}

/// Starts HTTP/2 on a connection. The second value drives it: it must be polled (spawned) for anything to happen, and
/// ends with the connection.
///
/// # Errors
/// When our preface cannot be written within 10 seconds. The peer's preface is not waited for.
pub async fn connect(
    io: Io,
    options: &ClientOptions,
) -> Result<(Connection, impl Future<Output = ()> + Send + use<>), Error> {
    let (wire, watch) = Wire::client(io);
    let handshake = builder(options).handshake::<_, Bytes>(wire);
    let (sender, mut h2) = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(error_of(error, Side::Upstream, "the HTTP/2 handshake failed")),
        Err(_) => {
            return Err(Error::upstream(Kind::ConnectTimeout, "the upstream did not take the HTTP/2 preface in time"));
        }
    };
    let state = Arc::new(State {
        closed: AtomicBool::new(false),
        active: AtomicUsize::new(0),
        requests: AtomicU64::new(0),
        peer_max: AtomicUsize::new(UNKNOWN),
        settings: Notify::new(),
    });
    let keepalive = KeepAlive::new(options.keepalive_interval, options.keepalive_timeout, || h2.ping_pong());
    let driver = Driver { h2, keepalive, watch, state: Closer(state.clone()) };
    let inner = Inner { sender: Mutex::new(sender), options: options.clone(), state, created: Instant::now() };
    Ok((Connection(Arc::new(inner)), driver.run()))
}

fn builder(options: &ClientOptions) -> h2::client::Builder {
    let head = HeadLimits { max_fields: options.max_headers, max_bytes: options.max_header_bytes, get_bodies: false };
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .max_concurrent_streams(0)
        .initial_max_send_streams(UNKNOWN)
        .initial_window_size(options.stream_window.min(MAX_WINDOW))
        .initial_connection_window_size(options.connection_window.min(MAX_WINDOW))
        .max_frame_size(options.max_frame_size.clamp(MIN_FRAME_SIZE, MAX_FRAME_SIZE))
        .max_header_list_size(head.list_size())
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET);
    builder
}

struct Driver {
    h2: h2::client::Connection<Wire, Bytes>,
    keepalive: Option<KeepAlive>,
    watch: Arc<WireState>,
    state: Closer,
}

/// Marks the connection as closed however its driver ends.
struct Closer(Arc<State>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.closed.store(true, Relaxed);
        self.0.settings.notify_waiters();
    }
}

impl Driver {
    async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let done = match Pin::new(&mut self.h2).poll(cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "an upstream HTTP/2 connection broke");
                true
            }
            Poll::Pending => false,
        };
        let State { peer_max, settings, .. } = &*self.state.0;
        let max = self.h2.max_concurrent_send_streams();
        if peer_max.swap(max, Relaxed) == UNKNOWN && max != UNKNOWN {
            settings.notify_waiters();
        }
        if done {
            return Poll::Ready(());
        }
        let received = self.watch.received();
        if self.keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx, received).is_ready()) {
            tracing::debug!("an upstream did not answer a keep-alive PING; connection closed");
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// One stream of the count of active ones.
struct Slot(Arc<State>);

impl Slot {
    fn take(inner: &Inner) -> Option<Self> {
        let limit = inner.limit();
        inner
            .state
            .active
            .fetch_update(Relaxed, Relaxed, |active| (active < limit).then_some(active + 1))
            .ok()
            .map(|_| Self(inner.state.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl Inner {
    /// Streams at once: ours and the peer's limit, whichever is lower.
    fn limit(&self) -> usize {
        self.state.peer_max.load(Relaxed).min(self.options.max_streams as usize)
    }

    fn sender(&self) -> SendRequest<Bytes> {
        self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Connection {
    /// Neither closed nor told by GOAWAY to send nothing new.
    pub fn is_usable(&self) -> bool {
        if self.0.state.closed.load(Relaxed) {
            return false;
        }
        let mut sender = self.0.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        !matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// Another request could be sent now.
    pub fn has_capacity(&self) -> bool {
        self.active() < self.0.limit()
    }

    /// Open streams.
    pub fn active(&self) -> usize {
        self.0.state.active.load(Relaxed)
    }

    /// Requests sent so far.
    pub fn requests(&self) -> u64 {
        self.0.state.requests.load(Relaxed)
    }

    /// When the connection was made.
    pub fn created(&self) -> Instant {
        self.0.created
    }

    /// Sends a request and waits for the head of its response. The request body is sent at the same time, and goes on
    /// being sent while the response is read; dropping the future or the response body resets the stream.
    ///
    /// # Errors
    /// [`Progress::Unsent`] when the peer certainly did nothing with it: no free stream, GOAWAY, REFUSED_STREAM.
    pub fn send(&self, request: Request) -> Sending {
        let Some(slot) = Slot::take(&self.0) else {
            return Sending::failed(unsent(Kind::Refused, "no free stream on this HTTP/2 connection"));
        };
        if request.extensions().get::<ExtendedConnect>().is_some() {
            return Sending(Stage::Extended(Box::pin(self.clone().extended(request, slot))));
        }
        self.begin(request, slot).unwrap_or_else(Sending::failed)
    }

    async fn extended(self, mut request: Request, slot: Slot) -> Result<Response, SendError> {
        self.extended_connect_allowed().await?;
        if let Some(ExtendedConnect(protocol)) = request.extensions_mut().remove() {
            request.extensions_mut().insert(Protocol::from(protocol.as_str()));
        }
        self.begin(request, slot)?.await
    }

    fn begin(&self, request: Request, slot: Slot) -> Result<Sending, SendError> {
        let (mut parts, body) = request.into_parts();
        let informational = parts.extensions.remove::<Informational>();
        let connect = parts.method == Method::CONNECT;
        let is_head = parts.method == Method::HEAD;
        let length = prepare(&mut parts, &self.0.options.scheme)?;
        let end = !connect && body.is_end_stream();
        if end && length.is_some_and(|length| length > 0) {
            return Err(unsent(Kind::Internal, "the request announces a body that is not there"));
        }
        let sent = self.0.sender().send_request(http::Request::from_parts(parts, ()), end);
        let (response, stream) = sent.map_err(|error| {
            // A connection that is closing says so; anything else is a head that cannot be sent.
            let kind = if error.is_go_away() || error.is_io() { Kind::Refused } else { Kind::Internal };
            let message = "the request could not be put on the HTTP/2 connection";
            SendError { error: Error::upstream(kind, message).with_source(error), progress: Progress::Unsent }
        })?;
        self.0.state.requests.fetch_add(1, Relaxed);
        let upload = match (connect, end) {
            (true, _) => Upload::Tunnel(stream),
            (false, true) => Upload::Done,
            (false, false) => Upload::Body(Pump::new(body, stream, length)),
        };
        let exchange = Exchange { response, upload, informational, interim: 0 };
        Ok(Sending(Stage::Waiting(Some(Waiting { connection: self.clone(), exchange, is_head, slot }))))
    }

    fn response(
        &self,
        response: http::Response<RecvStream>,
        is_head: bool,
        upload: Upload,
        slot: Slot,
        cx: &mut Context<'_>,
    ) -> Result<Response, SendError> {
        let pump = match upload {
            Upload::Tunnel(stream) => return Ok(self.tunnel(response, stream, slot)),
            Upload::Body(pump) => Some(pump),
            Upload::Done => None,
        };
        let (parts, recv) = response.into_parts();
        let options = &self.0.options;
        if let Err(message) = fits(&parts.headers, options) {
            let error = Error::upstream(Kind::TooLarge { status: 502 }, message).over(Limit::ResponseHead);
            return Err(SendError { error, progress: Progress::Answered });
        }
        if recv.is_end_stream() {
            return Ok(http::Response::from_parts(parts, Body::empty()));
        }
        // Some servers end the stream of a response without content in a frame of its own.
        let no_body = is_head || matches!(parts.status.as_u16(), 204 | 304);
        let length = if no_body { Some(0) } else { content_length(&parts.headers).unwrap_or(None) };
        let body = Incoming::new(recv, Side::Upstream, length, options.max_headers);
        // A request that is still on its way may be longer than its answer, and is to be sent to its end.
        let body = match pump {
            None => body.now(cx).unwrap_or_else(|body| body.holding(Box::new(slot), None).into_body()),
            Some(pump) => body.holding(Box::new(slot), Some(Box::new(Background::spawn(pump)))).into_body(),
        };
        Ok(http::Response::from_parts(parts, body))
    }

    fn tunnel(&self, response: http::Response<RecvStream>, stream: SendStream<Bytes>, slot: Slot) -> Response {
        let (parts, recv) = response.into_parts();
        let body = if parts.status.is_success() {
            Body::upgraded(Io::other(H2Stream::new(stream, recv, Some(Box::new(slot)))))
        } else if recv.is_end_stream() {
            Body::empty()
        } else {
            let length = content_length(&parts.headers).unwrap_or(None);
            // The half that is open for writing must not be reset before the answer has been read.
            let hold: Box<dyn std::any::Any + Send> = Box::new(Mutex::new(stream));
            let max = self.0.options.max_headers;
            Incoming::new(recv, Side::Upstream, length, max).holding(Box::new(slot), Some(hold)).into_body()
        };
        http::Response::from_parts(parts, body)
    }

    /// Waits for the peer's SETTINGS if need be.
    async fn extended_connect_allowed(&self) -> Result<(), SendError> {
        let state = &self.0.state;
        let known = async {
            loop {
                let mut changed = pin!(state.settings.notified());
                changed.as_mut().enable();
                if state.closed.load(Relaxed) || state.peer_max.load(Relaxed) != UNKNOWN {
                    return;
                }
                changed.await;
            }
        };
        if timeout(HANDSHAKE_TIMEOUT, known).await.is_err() {
            return Err(unsent(Kind::Timeout, "the upstream did not send its HTTP/2 SETTINGS in time"));
        }
        if self.0.sender().is_extended_connect_protocol_enabled() {
            return Ok(());
        }
        Err(unsent(
            Kind::Protocol { status: 502 },
            "the upstream does not accept extended CONNECT (RFC 8441) on HTTP/2; use HTTP/1.1 for WebSocket to it",
        ))
    }
}

fn unsent(kind: Kind, message: &'static str) -> SendError {
    SendError { error: Error::upstream(kind, message), progress: Progress::Unsent }
}

/// Gives a head the form of HTTP/2; returns the content-length.
fn prepare(parts: &mut Parts, scheme: &Scheme) -> Result<Option<u64>, SendError> {
    strip_connection_fields(&mut parts.headers);
    let length = content_length(&parts.headers)
        .map_err(|()| unsent(Kind::Internal, "the request's content-length is not one number"))?;
    let host = parts.headers.remove(header::HOST);
    let connect = parts.method == Method::CONNECT && parts.extensions.get::<Protocol>().is_none();
    let incomplete = parts.uri.authority().is_none() || (parts.uri.scheme().is_none() && !connect);
    if incomplete {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        if uri.authority.is_none() {
            uri.authority = host.and_then(|host| host.as_bytes().try_into().ok());
        }
        if uri.authority.is_none() {
            return Err(unsent(Kind::Internal, "the request has no authority, which HTTP/2 needs"));
        }
        if !connect {
            uri.scheme.get_or_insert_with(|| scheme.clone());
            uri.path_and_query.get_or_insert_with(|| http::uri::PathAndQuery::from_static("/"));
        }
        parts.uri = Uri::from_parts(uri)
            .map_err(|_| unsent(Kind::Internal, "the request's target cannot be written in HTTP/2"))?;
    }
    parts.version = Version::HTTP_2;
    Ok(length)
}

/// A request that has been sent, until the head of its response. Not an `async fn`, whose state would hold the request twice.
pub struct Sending(Stage);

#[expect(
    clippy::large_enum_variant,
    reason = "it is made once for each request, and a box would be one more allocation"
)]
enum Stage {
    Failed(Option<SendError>),
    /// RFC 8441: the peer has to allow it first.
    Extended(Pin<Box<dyn Future<Output = Result<Response, SendError>> + Send>>),
    Waiting(Option<Waiting>),
}

struct Waiting {
    connection: Connection,
    exchange: Exchange,
    is_head: bool,
    slot: Slot,
}

impl Sending {
    fn failed(error: SendError) -> Self {
        Self(Stage::Failed(Some(error)))
    }
}

impl Future for Sending {
    type Output = Result<Response, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let done = || unsent(Kind::Internal, "a request was asked for after its answer");
        match &mut self.0 {
            Stage::Failed(error) => Poll::Ready(Err(error.take().unwrap_or_else(done))),
            Stage::Extended(future) => future.as_mut().poll(cx),
            Stage::Waiting(waiting) => {
                let Some(sent) = waiting else { return Poll::Ready(Err(done())) };
                let head = ready!(sent.exchange.poll(cx));
                let Some(Waiting { connection, exchange, is_head, slot }) = waiting.take() else {
                    return Poll::Ready(Err(done()));
                };
                Poll::Ready(head.and_then(|head| connection.response(head, is_head, exchange.upload, slot, cx)))
            }
        }
    }
}

/// What still goes to the upstream on a stream.
enum Upload {
    Done,
    Body(Pump),
    /// CONNECT: both directions are the answer's.
    Tunnel(SendStream<Bytes>),
}

/// From the sent head to the head of the response, with the request body under way.
struct Exchange {
    response: ResponseFuture,
    upload: Upload,
    informational: Option<Informational>,
    interim: u32,
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<http::Response<RecvStream>, SendError>> {
        while let Poll::Ready(Some(interim)) = self.response.poll_informational(cx) {
            let Ok(interim) = interim else { break };
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                let message = "the upstream sends interim responses without end";
                let error = Error::upstream(Kind::Protocol { status: 502 }, message).over(Limit::InterimResponses);
                return Poll::Ready(Err(SendError { error, progress: Progress::Answered }));
            }
            if let Some(informational) = &self.informational {
                informational.send(interim);
            }
        }
        if let Poll::Ready(result) = Pin::new(&mut self.response).poll(cx) {
            return Poll::Ready(result.map_err(failed));
        }
        if let Upload::Body(pump) = &mut self.upload {
            match pump.poll(cx) {
                Poll::Pending => {}
                // The response says why, if the peer gave one: it may refuse the rest of a request it has answered.
                Poll::Ready(Ok(()) | Err(Stop::Gone)) => self.upload = Upload::Done,
                Poll::Ready(Err(Stop::Body(error))) => {
                    return Poll::Ready(Err(SendError { error, progress: Progress::Sent }));
                }
            }
        }
        Poll::Pending
    }
}

/// No response head came.
fn failed(error: h2::Error) -> SendError {
    // A GOAWAY reaches only streams above its last stream id, which the peer has not looked at.
    let refused = error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
    if refused {
        let error = Error::upstream(Kind::Refused, "the upstream refused the stream").with_source(error);
        return SendError { error, progress: Progress::Unsent };
    }
    SendError { error: error_of(error, Side::Upstream, "no response on the HTTP/2 stream"), progress: Progress::Sent }
}

/// A request body that is still being sent while the response is read.
struct Background(JoinHandle<()>);

impl Background {
    fn spawn(mut pump: Pump) -> Self {
        Self(tokio::spawn(async move {
            if let Err(Stop::Body(error)) = poll_fn(|cx| pump.poll(cx)).await {
                tracing::debug!(%error, "a request body broke off; stream reset");
            }
        }))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}
