//! A client's connection.

use super::{
    DATA_FRAME_BUDGET, HANDSHAKE_TIMEOUT, MAX_LOCAL_RESETS, MAX_REMEMBERED_RESETS, MAX_SEND_BUFFER, bare, error_of,
    exchange::{Exchange, drain},
    head::HeadLimits,
    keepalive::KeepAlive,
    wire::{Wire, WireState},
};
use crate::{
    codec::Service,
    drain::Drain,
    error::{Error, Kind, Side},
    io::Io,
    telemetry::Limit,
};
use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Request, StatusCode};
use selvedge_compile::snapshot::HttpOptions;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// A client that resets more than half of at least this many streams within [`EARLY`] of opening them works us, not
/// itself (rapid reset, CVE-2023-44487; the numbers are Envoy's).
const RESET_SAMPLE: u32 = 500;
const EARLY: Duration = Duration::from_secs(1);

/// How long a connection that has nothing left to do waits for its client to take the GOAWAY.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves one HTTP/2 connection whose TLS, if any, is done: until the client leaves, the connection idles too long,
/// or `drain` starts and the open streams have finished. Dropping the future cancels its streams.
///
/// # Errors
/// What ended the connection, other than its orderly end: a breach of the protocol (the client was sent a GOAWAY
/// that says which), abuse, a timeout, or the loss of the connection while streams were open.
pub async fn serve<S: Service>(io: Io, service: Arc<S>, options: &HttpOptions, drain: Drain) -> Result<(), Error> {
    let (wire, state) = Wire::server(io);
    let limit = if options.header_timeout.is_zero() {
        HANDSHAKE_TIMEOUT
    } else {
        HANDSHAKE_TIMEOUT.min(options.header_timeout)
    };
    let h2 = match timeout(limit, builder(options).handshake::<_, Bytes>(wire)).await {
        Ok(Ok(h2)) => h2,
        Ok(Err(error)) => return Err(error_of(error, Side::Downstream, "the HTTP/2 handshake failed")),
        Err(_) => {
            let message = "the client did not send the HTTP/2 preface in time";
            return Err(Error::downstream(Kind::Timeout, message).over(Limit::HandshakeTimeout));
        }
    };
    Server::new(h2, service, options, state).run(drain).await
}

fn builder(options: &HttpOptions) -> h2::server::Builder {
    let limits = &options.http2;
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.max_concurrent_streams)
        .initial_window_size(limits.initial_stream_window.min(MAX_WINDOW))
        .initial_connection_window_size(limits.initial_connection_window.min(MAX_WINDOW))
        .max_frame_size(limits.max_frame_size.clamp(MIN_FRAME_SIZE, MAX_FRAME_SIZE))
        .max_header_list_size(HeadLimits::from(options).list_size())
        .max_pending_accept_reset_streams(limits.max_pending_resets as usize)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .max_concurrent_reset_streams(MAX_REMEMBERED_RESETS)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .enable_connect_protocol();
    builder
}

/// Outside these `h2` panics (RFC 9113 sections 6.5.2 and 6.9.1).
pub(super) const MAX_WINDOW: u32 = (1 << 31) - 1;
pub(super) const MIN_FRAME_SIZE: u32 = 1 << 14;
pub(super) const MAX_FRAME_SIZE: u32 = (1 << 24) - 1;

/// What an exchange needs of the options.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) head: HeadLimits,
    pub(super) stream_idle: Duration,
}

/// What the streams of a connection tell it. The connection needs no waker of its own: whatever ends a stream makes
/// `h2` poll the connection.
#[derive(Debug)]
pub(super) struct Shared {
    born: Instant,
    active: AtomicUsize,
    /// Milliseconds after `born` at which the last stream ended.
    last_end: AtomicU64,
    opened: AtomicU32,
    early_resets: AtomicU32,
    wire: Arc<WireState>,
}

impl Shared {
    fn new(wire: Arc<WireState>) -> Self {
        Self {
            born: Instant::now(),
            active: AtomicUsize::new(0),
            last_end: AtomicU64::new(0),
            opened: AtomicU32::new(0),
            early_resets: AtomicU32::new(0),
            wire,
        }
    }

    fn is_abused(&self) -> bool {
        let opened = self.opened.load(Relaxed);
        opened >= RESET_SAMPLE && self.early_resets.load(Relaxed) > opened / 2
    }

    fn idle_since(&self) -> Instant {
        self.born + Duration::from_millis(self.last_end.load(Relaxed))
    }
}

/// One open stream of the count.
#[derive(Debug)]
pub(super) struct OpenStream {
    shared: Arc<Shared>,
    since: Instant,
}

impl OpenStream {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.active.fetch_add(1, Relaxed);
        shared.opened.fetch_add(1, Relaxed);
        Self { shared: shared.clone(), since: Instant::now() }
    }

    pub(super) fn wire(&self) -> &Arc<WireState> {
        &self.shared.wire
    }

    /// The client took its request back before it had the whole response.
    pub(super) fn cancelled(&self) {
        if self.since.elapsed() < EARLY {
            self.shared.early_resets.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.shared.last_end.store(self.shared.born.elapsed().as_millis() as u64, Relaxed);
        self.shared.active.fetch_sub(1, Relaxed);
    }
}

struct Server<S> {
    h2: h2::server::Connection<Wire, Bytes>,
    service: Arc<S>,
    shared: Arc<Shared>,
    wire: Arc<WireState>,
    limits: Limits,
    header_timeout: Duration,
    /// Twice the streams at once: `h2` counts a stream only until it is closed, but the service, or the other side of
    /// a tunnel, may need a moment more to notice.
    max_exchanges: usize,
    /// Requests until GOAWAY; `None` is unlimited.
    requests_left: Option<u32>,
    keepalive: Option<KeepAlive>,
    idle_timeout: Duration,
    idle: Option<Pin<Box<Sleep>>>,
    /// The header block that was incomplete when the timer was set.
    block: Option<(u64, Pin<Box<Sleep>>)>,
    ending: Ending,
}

enum Ending {
    No,
    /// GOAWAY is sent; open streams finish. The timer runs while there are none.
    Draining(Option<Pin<Box<Sleep>>>),
    /// The connection is being cut for a reason.
    Cut(Error, Pin<Box<Sleep>>),
}

impl<S: Service> Server<S> {
    fn new(
        mut h2: h2::server::Connection<Wire, Bytes>,
        service: Arc<S>,
        options: &HttpOptions,
        wire: Arc<WireState>,
    ) -> Self {
        let http2 = &options.http2;
        let keepalive = KeepAlive::new(http2.keepalive_interval, http2.keepalive_timeout, || h2.ping_pong());
        Self {
            h2,
            service,
            shared: Arc::new(Shared::new(wire.clone())),
            wire,
            limits: Limits { head: HeadLimits::from(options), stream_idle: options.stream_idle_timeout },
            header_timeout: options.header_timeout,
            max_exchanges: (http2.max_concurrent_streams as usize).saturating_mul(2).max(1),
            requests_left: (options.max_requests_per_connection > 0).then_some(options.max_requests_per_connection),
            keepalive,
            idle_timeout: options.idle_timeout,
            idle: None,
            block: None,
            ending: Ending::No,
        }
    }

    async fn run(mut self, mut drain: Drain) -> Result<(), Error> {
        let mut draining = pin!(drain.draining());
        let mut told = false;
        poll_fn(|cx| {
            if !told && draining.as_mut().poll(cx).is_ready() {
                told = true;
                self.drain();
            }
            self.poll(cx)
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.verdict(Some(error)))),
                Poll::Ready(None) => {
                    return Poll::Ready(match &self.ending {
                        Ending::Cut(..) => Err(self.verdict(None)),
                        _ => Ok(()),
                    });
                }
                Poll::Pending => {}
            }
            if matches!(self.ending, Ending::No | Ending::Draining(_))
                && let Some((reason, error)) = self.poll_offence(cx)
            {
                self.cut(reason, error);
                continue;
            }
            return match &mut self.ending {
                Ending::No => {
                    ready!(self.poll_idle(cx));
                    Limit::IdleTimeout.hit();
                    self.drain();
                    continue;
                }
                Ending::Draining(timer) => {
                    if self.shared.active.load(Relaxed) > 0 {
                        *timer = None;
                        return Poll::Pending;
                    }
                    let timer = timer.get_or_insert_with(|| Box::pin(sleep(FAREWELL)));
                    timer.as_mut().poll(cx).map(|()| Ok(()))
                }
                Ending::Cut(_, timer) => {
                    ready!(timer.as_mut().poll(cx));
                    Poll::Ready(Err(self.verdict(None)))
                }
            };
        }
    }

    /// The reason the connection was cut for, or else what `h2` says.
    fn verdict(&mut self, error: Option<h2::Error>) -> Error {
        match (std::mem::replace(&mut self.ending, Ending::No), error) {
            (Ending::Cut(error, _), _) => error,
            (_, Some(error)) => error_of(error, Side::Downstream, "the HTTP/2 connection broke"),
            (_, None) => Error::downstream(Kind::Reset, "the HTTP/2 connection broke"),
        }
    }

    fn accept(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        if self.shared.active.load(Relaxed) >= self.max_exchanges {
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        let open = OpenStream::new(&self.shared);
        let (mut parts, recv) = request.into_parts();
        match self.limits.head.accept(&mut parts, recv.is_end_stream()) {
            Ok(length) => {
                let exchange = Exchange::new(self.service.clone(), open, self.limits, respond);
                tokio::spawn(exchange.run(parts, recv, length));
            }
            Err(error) => {
                let status = match error.kind {
                    Kind::TooLarge { status } | Kind::Protocol { status } => status,
                    _ => 400,
                };
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
                self.service.rejected(status, &error);
                if respond.send_response(bare(status), true).is_err() {
                    respond.send_reset(Reason::PROTOCOL_ERROR);
                } else if !recv.is_end_stream() {
                    tokio::spawn(async move {
                        drain(recv).await;
                        drop(open);
                    });
                }
            }
        }
        if let Some(left) = &mut self.requests_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                Limit::RequestsPerConnection.hit();
                self.drain();
            }
        }
    }

    /// GOAWAY in two steps: first "no more", then, after a round trip, which requests were taken. None that the
    /// client sent in between is lost.
    fn drain(&mut self) {
        if matches!(self.ending, Ending::No) {
            self.h2.graceful_shutdown();
            self.ending = Ending::Draining(None);
        }
    }

    fn cut(&mut self, reason: Reason, error: Error) {
        self.h2.abrupt_shutdown(reason);
        self.ending = Ending::Cut(error, Box::pin(sleep(FAREWELL)));
    }

    /// What the client does, or fails to do, that ends its connection.
    fn poll_offence(&mut self, cx: &mut Context<'_>) -> Option<(Reason, Error)> {
        if self.shared.is_abused() {
            let error = Error::downstream(
                Kind::Shed,
                "the client reset most of its streams as soon as it had opened them (rapid reset)",
            )
            .over(Limit::StreamResets);
            return Some((Reason::ENHANCE_YOUR_CALM, error));
        }
        if self.poll_block(cx).is_ready() {
            let error = Error::downstream(Kind::Timeout, "a header block did not end within the header timeout")
                .over(Limit::HeaderTimeout);
            return Some((Reason::ENHANCE_YOUR_CALM, error));
        }
        let received = self.wire.received();
        if self.keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx, received).is_ready()) {
            let error = Error::downstream(Kind::Timeout, "the client did not answer a keep-alive PING")
                .over(Limit::KeepaliveTimeout);
            return Some((Reason::NO_ERROR, error));
        }
        None
    }

    /// Ready when one header block has been incomplete for the header timeout.
    fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(open) = self.wire.open_block().filter(|_| !self.header_timeout.is_zero()) else {
            self.block = None;
            return Poll::Pending;
        };
        match &mut self.block {
            Some((block, timer)) if *block == open => timer.as_mut().poll(cx),
            block => {
                let (_, timer) = block.insert((open, Box::pin(sleep(self.header_timeout))));
                timer.as_mut().poll(cx)
            }
        }
    }

    /// Ready when there has been no open stream for the idle timeout.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.idle_timeout.is_zero() {
            return Poll::Pending;
        }
        let limit = self.idle_timeout;
        let timer = self.idle.get_or_insert_with(|| Box::pin(sleep(limit)));
        while timer.as_mut().poll(cx).is_ready() {
            let busy = self.shared.active.load(Relaxed) > 0;
            let since = if busy { Instant::now() } else { self.shared.idle_since() };
            if !busy && since.elapsed() >= limit {
                return Poll::Ready(());
            }
            timer.as_mut().reset(since + limit);
        }
        Poll::Pending
    }
}
