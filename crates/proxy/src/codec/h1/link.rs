//! What a connection to a client shares with the body of the request it is on: the byte stream and its read buffer.
//!
//! The lock is taken for one read or write at a time and is uncontended: the body is nearly always polled by the task
//! that drives the connection. It must never be held while a service or a body is polled.

use super::input::{BodyReader, Input};
use crate::{
    Error,
    error::{Kind, Side},
    io::Io,
    telemetry::Limit,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use selvedge_wire::http1::{ChunkError, Decoded, strip_request_trailers};
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Link(Mutex<Wire>);

/// The connection, and how far the body of its current request has been read.
pub(super) struct Wire {
    pub(super) io: Io,
    pub(super) input: Input,
    /// The client has ended its side, and everything that it had sent before has been read.
    pub(super) ended: bool,
    /// When that, or an end behind bytes that are still to be read, was noticed while a request was served.
    ended_at: Option<Instant>,
    body: State,
    /// Counts requests, so that a body that was kept too long cannot read from the next one.
    request: u32,
    /// Body bytes that are still allowed.
    allowed: u64,
    expect: Expect,
    /// When a byte of the body came last.
    moved: Instant,
    /// Who drives the connection; woken when the body needs it.
    server: Option<Waker>,
    /// Who waits for the body; woken when it has failed.
    reader: Option<Waker>,
}

enum State {
    /// There is none, or it has been read to its end.
    Done,
    Open(BodyReader),
    /// Nothing more can be read; whatever comes from the client must not be taken for a request.
    Failed,
}

/// Where `Expect: 100-continue` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// Not asked for, or settled.
    Settled,
    /// The client waits for a word.
    Waiting,
    /// The body is wanted: 100 is to be written.
    Wanted,
}

impl Link {
    pub(super) fn new(io: Io) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Wire {
            io,
            input: Input::default(),
            ended: false,
            ended_at: None,
            body: State::Done,
            request: 0,
            allowed: u64::MAX,
            expect: Expect::Settled,
            moved: Instant::now(),
            server: None,
            reader: None,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the body of a request that does not lie whole in the buffer. `limit` is in bytes.
    pub(super) fn begin(self: &Arc<Self>, reader: BodyReader, expects: bool, limit: u64) -> RequestBody {
        let mut wire = self.lock();
        let left = reader.left();
        wire.body = State::Open(reader);
        wire.allowed = limit;
        wire.expect = if expects { Expect::Waiting } else { Expect::Settled };
        wire.moved = Instant::now();
        RequestBody { link: self.clone(), request: wire.request, left, ended: false }
    }
}

impl Wire {
    /// Whether a body is being sent by the client.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.body, State::Open(_))
    }

    /// Whether the body has failed, so that this connection cannot have another request.
    pub(super) fn is_failed(&self) -> bool {
        matches!(self.body, State::Failed)
    }

    /// Whether the client was never told to send the body it has announced.
    pub(super) fn is_withheld(&self) -> bool {
        self.is_open() && self.expect != Expect::Settled
    }

    /// Bytes of the body that are still to come, when they were announced.
    pub(super) fn left(&self) -> Option<u64> {
        match &self.body {
            State::Done => Some(0),
            State::Open(reader) => reader.left(),
            State::Failed => None,
        }
    }

    pub(super) fn moved(&self) -> Instant {
        self.moved
    }

    /// Whether `100 Continue` is to be written now; says so once.
    pub(super) fn take_continue(&mut self) -> bool {
        let wanted = self.expect == Expect::Wanted;
        if wanted {
            self.expect = Expect::Settled;
        }
        wanted
    }

    /// Settles an `Expect` that nobody has asked about yet; whether there was one.
    pub(super) fn take_withheld(&mut self) -> bool {
        let withheld = self.is_withheld();
        self.expect = Expect::Settled;
        withheld
    }

    /// The task that is to be woken for `100 Continue` and at the end of the body.
    pub(super) fn driven_by(&mut self, waker: &Waker) {
        remember(&mut self.server, waker);
    }

    /// Ends the wait for a body that does not come; whoever reads it sees a timeout.
    pub(super) fn time_out(&mut self) {
        self.body = State::Failed;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Ends the request: its body cannot be read any more by whoever still has it. What is left of it stays open, for
    /// [`Wire::poll_discard`].
    pub(super) fn next_request(&mut self) {
        self.request = self.request.wrapping_add(1);
        self.reader = None;
    }

    /// Reads what is left of a body and drops it; ready with whether its end was reached within `limit` bytes.
    pub(super) fn poll_discard(&mut self, limit: &mut u64, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match self.poll_decode(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Decoded::Data(data))) => match limit.checked_sub(data.len() as u64) {
                    Some(left) => *limit = left,
                    None => return Poll::Ready(false),
                },
                Poll::Ready(Ok(_)) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => return Poll::Ready(false),
            }
        }
    }

    /// Looks whether the client ends its side while its request is served. Reads what it pipelines, up to `limit` bytes in
    /// the buffer. Ready when it has, or with the error that ends both sides.
    pub(super) fn poll_end(&mut self, limit: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        while self.input.bytes.len() < limit {
            if ready!(self.input.poll_read(&mut self.io, cx))? == 0 {
                self.ended = true;
                self.end_seen(Instant::now());
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }

    /// Remembers when the end of the client's side was noticed first.
    pub(super) fn end_seen(&mut self, now: Instant) {
        self.ended_at.get_or_insert(now);
    }

    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.ended_at
    }

    /// Whether no further request can come.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.input.is_empty()
    }

    /// The next piece of the body; never [`Decoded::Incomplete`].
    fn poll_decode(&mut self, cx: &mut Context<'_>) -> Poll<Result<Decoded, Error>> {
        let decoded = loop {
            let State::Open(reader) = &mut self.body else {
                return Poll::Ready(match self.body {
                    State::Failed => Err(timed_out()),
                    _ => Ok(Decoded::Done(None)),
                });
            };
            match reader.decode(&mut self.input.bytes) {
                Ok(Decoded::Incomplete) => {}
                Ok(decoded) => break decoded,
                Err(error) => return Poll::Ready(Err(self.fail(malformed(error)))),
            }
            match ready!(self.input.poll_rest(&mut self.io, cx)) {
                Ok(0) => {
                    self.ended = true;
                    self.end_seen(Instant::now());
                    return Poll::Ready(Err(self.fail(cut(None))));
                }
                Ok(_) => self.moved = Instant::now(),
                Err(error) => return Poll::Ready(Err(self.fail(cut(Some(error))))),
            }
        };
        if matches!(&self.body, State::Open(reader) if reader.is_done()) {
            self.body = State::Done;
            self.expect = Expect::Settled;
        }
        Poll::Ready(Ok(decoded))
    }

    /// For [`RequestBody`]: the limit and `Expect` on top of [`Wire::poll_decode`].
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Decoded, Error>> {
        if self.left().is_some_and(|left| left > self.allowed) {
            return Poll::Ready(Err(too_large()));
        }
        if self.expect == Expect::Waiting {
            self.expect = Expect::Wanted;
            self.wake_server(cx);
        }
        let Poll::Ready(decoded) = self.poll_decode(cx) else {
            remember(&mut self.reader, cx.waker());
            return Poll::Pending;
        };
        let decoded = decoded?;
        if let Decoded::Data(data) = &decoded {
            match self.allowed.checked_sub(data.len() as u64) {
                Some(allowed) => self.allowed = allowed,
                None => return Poll::Ready(Err(self.fail(too_large()))),
            }
        }
        if !self.is_open() {
            self.wake_server(cx);
        }
        Poll::Ready(Ok(decoded))
    }

    fn fail(&mut self, error: Error) -> Error {
        self.body = State::Failed;
        error
    }

    /// Wakes the task that drives the connection, unless it is the one that polls: it looks again anyway.
    fn wake_server(&mut self, cx: &Context<'_>) {
        if let Some(server) = self.server.take_if(|server| !server.will_wake(cx.waker())) {
            server.wake();
        }
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("request", &self.request).field("ended", &self.ended).finish_non_exhaustive()
    }
}

fn remember(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(known) if known.will_wake(waker) => {}
        _ => *slot = Some(waker.clone()),
    }
}

fn malformed(error: ChunkError) -> Error {
    let limit = match &error {
        ChunkError::ExtensionsTooLong => Some(Limit::ChunkExtensions),
        ChunkError::Trailers(error) => super::reject::limit(error),
        _ => None,
    };
    if let Some(limit) = limit {
        limit.hit();
    }
    Error::bad_request(400, "the chunked request body is malformed").with_source(error)
}

fn cut(error: Option<io::Error>) -> Error {
    let gone = Error::downstream(Kind::Reset, "the client closed the connection in the middle of its request body");
    match error {
        Some(error) => gone.with_source(error),
        None => gone,
    }
}

fn timed_out() -> Error {
    Error::downstream(Kind::Timeout, "no byte of the request body came for stream_idle_timeout").over(Limit::StreamIdle)
}

fn too_large() -> Error {
    Error::new(Kind::TooLarge { status: 413 }, Side::Downstream, "the request body is larger than max_body_bytes")
        .over(Limit::BodyBytes)
}

/// The body of a request, read from the connection by whoever polls it.
#[derive(Debug)]
pub(super) struct RequestBody {
    link: Arc<Link>,
    request: u32,
    /// What is to come, when it was announced.
    left: Option<u64>,
    ended: bool,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let mut wire = this.link.lock();
        if wire.request != this.request {
            this.ended = true;
            let message = "the request was answered before its body had been read";
            return Poll::Ready(Some(Err(Error::downstream(Kind::Cancelled, message))));
        }
        let decoded = ready!(wire.poll_body(cx));
        this.ended = !matches!(decoded, Ok(Decoded::Data(_))) || !wire.is_open();
        this.left = wire.left();
        Poll::Ready(match decoded {
            Ok(Decoded::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(Decoded::Done(Some(mut trailers))) => {
                strip_request_trailers(&mut trailers);
                (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
            }
            Ok(Decoded::Done(None) | Decoded::Incomplete) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map(SizeHint::with_exact).unwrap_or_default()
    }
}
