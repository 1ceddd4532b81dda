//! The side that talks to clients.
//!
//! A client may end its side of the connection (FIN) behind a whole request and is still answered; see `watch` for how
//! long. What it has sent by then is served, further requests included.

use super::{
    date,
    incoming::{self, Asked},
    link::Link,
    out::Out,
    pump::{Filled, Pump, PumpError},
    reject::Refusal,
    timer::due,
    watch::{Watch, gone},
};
use crate::{
    Body, Error, Response,
    codec::Service,
    drain::Drain,
    error::{Kind, Side},
    io::Io,
    telemetry::Limit,
};
use http::{StatusCode, Version, header};
use http_body::Body as _;
use selvedge_compile::snapshot::{HttpOptions, Underscores};
use selvedge_wire::http1::{
    Framing, HeadError, HeadLimits, HeadReader, Persist, RequestHead, UnderscoreNames, WriteLength, connection_options,
    write_continue, write_response,
};
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};

/// While draining, a connection without a request ends when it has been idle for so long. A client that is in the middle
/// of its work has sent its next request by then: it is answered, with `Connection: close`, where a connection closed at
/// once would cross that request on its way.
const DRAIN_IDLE: Duration = Duration::from_secs(2);
/// What is read of a request body that nobody wanted, to keep the connection; as nginx's default buffer for it.
const MOST_DISCARDED: u64 = 64 * 1024;
/// How long that may take, and how long a client has to read its last response before the socket is closed under it.
const LINGER: Duration = Duration::from_secs(1);
/// What is read and dropped of a connection that is being closed.
const MOST_LINGERED: u64 = 1024 * 1024;

/// Serves the requests of a connection, one after the other, until it ends.
///
/// An error means that an exchange was cut; a connection that ends between requests, or with a refusal that the client
/// was told about, is no error.
pub fn serve<S: Service>(
    io: Io,
    service: Arc<S>,
    options: &HttpOptions,
    drain: Drain,
) -> impl Future<Output = Result<(), Error>> + Send {
    // Made here, and requests and responses passed on by functions, so that an idle connection has room for none of it.
    let mut server = Server::new(io, options, drain);
    async move {
        loop {
            let asked = match server.next_head().await {
                Ok(Some(head)) => server.call(&*service, head),
                Ok(None) => {
                    Box::pin(server.goodbye(false)).await;
                    return Ok(());
                }
                Err(Stop::Refused(refusal)) => Err(refusal),
                Err(Stop::Lost(error)) => {
                    service.lost(&error);
                    return Err(error);
                }
            };
            let (mut call, asked) = match asked {
                Ok(called) => called,
                Err(refusal) => return Box::pin(server.refuse(&*service, *refusal)).await,
            };
            let begun = poll_fn(|cx| server.poll_answer(call.as_mut(), &asked, cx)).await?;
            drop(call);
            match begun {
                Begun::Body(mut reply) => {
                    poll_fn(|cx| server.poll_respond(&mut reply, cx)).await?;
                    if !server.finish(reply, &asked).await {
                        return Ok(());
                    }
                }
                Begun::Tunnel(tunnel) => return Box::pin(server.tunnel(tunnel)).await,
            }
        }
    }
}

struct Server<'a> {
    link: Arc<Link>,
    options: &'a HttpOptions,
    limits: HeadLimits,
    head: HeadReader,
    out: Out,
    watch: Watch,
    drain: Signal,
    /// Requests so far.
    requests: u32,
    /// The request at hand came with a body that was not all there.
    streams: bool,
    /// Since when the connection waits for what it waits for.
    since: Instant,
    /// How long the request at hand may be silent.
    stream_idle: Duration,
}

/// A response that is being written.
struct Reply {
    pump: Pump,
    framing: Framing,
    keep: bool,
    /// The error of the body, until what came before it has been written.
    failed: Option<Error>,
}

enum Begun {
    Body(Reply),
    Tunnel(TunnelFn),
}

type TunnelFn = Box<dyn FnOnce(Io) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Why there is no next request.
enum Stop {
    Refused(Box<Refusal>),
    Lost(Error),
}

impl From<HeadError> for Stop {
    fn from(error: HeadError) -> Self {
        Self::Refused(error.into())
    }
}

impl<'a> Server<'a> {
    fn new(io: Io, options: &'a HttpOptions, drain: Drain) -> Self {
        let max_bytes = options.max_header_bytes as usize;
        let limits = HeadLimits {
            max_headers: options.max_headers as usize,
            max_bytes,
            max_target: (options.max_target_bytes as usize).min(max_bytes),
            underscores: match options.underscores {
                Underscores::Allow => UnderscoreNames::Allow,
                Underscores::Drop => UnderscoreNames::Drop,
                Underscores::Reject => UnderscoreNames::Reject,
            },
        };
        let since = Instant::now();
        Self {
            link: Link::new(io),
            options,
            limits,
            head: HeadReader::default(),
            out: Out::default(),
            watch: Watch::new(since, due(since, options.idle_timeout), options.half_close_timeout),
            drain: Signal::new(drain),
            requests: 0,
            streams: false,
            since,
            stream_idle: options.stream_idle_timeout,
        }
    }

    /// Waits for a request; `None` when the connection ends before one begins.
    async fn next_head(&mut self) -> Result<Option<RequestHead>, Stop> {
        self.since = Instant::now();
        let mut begun = None;
        poll_fn(|cx| self.poll_head(&mut begun, cx)).await
    }

    /// `begun` is when the first byte of the head came.
    fn poll_head(
        &mut self,
        begun: &mut Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<RequestHead>, Stop>> {
        let mut wire = self.link.lock();
        let wire = &mut *wire;
        loop {
            if !wire.input.is_empty()
                && let Some(head) = self.head.request(&mut wire.input.bytes, &self.limits)?
            {
                return Poll::Ready(Ok(Some(head)));
            }
            // Empty lines that old clients send behind a body have been taken out by now.
            let idle = wire.input.is_empty();
            let draining = idle && self.drain.poll(cx);
            let read =
                if idle { wire.input.poll_read(&mut wire.io, cx) } else { wire.input.poll_rest(&mut wire.io, cx) };
            let lost = match read {
                Poll::Ready(Ok(1..)) => continue,
                Poll::Ready(Ok(0)) => None,
                Poll::Ready(Err(error)) => Some(error),
                Poll::Pending => {
                    let (from, limit) = if idle {
                        wire.input.release();
                        self.out.release();
                        (self.since, idle_limit(self.options.idle_timeout, draining))
                    } else {
                        (*begun.get_or_insert_with(Instant::now), self.options.header_timeout)
                    };
                    ready!(self.watch.timer.poll(due(from, limit), cx));
                    if idle && !draining {
                        Limit::IdleTimeout.hit();
                    }
                    return Poll::Ready(if idle { Ok(None) } else { Err(slow_head()) });
                }
            };
            wire.ended = true;
            return Poll::Ready(if idle { Ok(None) } else { Err(Stop::Lost(lost_in("its request head", lost))) });
        }
    }

    /// Calls the service. The call is on the heap, so that an idle connection does not keep the room that it needs.
    fn call<'s, S: Service>(
        &mut self,
        service: &'s S,
        head: RequestHead,
    ) -> Result<(Pin<Box<impl Future<Output = Response> + Send + use<'s, S>>>, Asked), Box<Refusal>> {
        let (request, asked) = incoming::request(head, &self.link, self.options)?;
        self.requests = self.requests.saturating_add(1);
        self.streams = self.link.lock().is_open();
        self.since = Instant::now();
        self.stream_idle = self.options.stream_idle_timeout;
        Ok((Box::pin(service.call(request)), asked))
    }

    /// Waits for the service, and meanwhile passes interim responses on and watches the client.
    fn poll_answer<F: Future<Output = Response>>(
        &mut self,
        mut call: Pin<&mut F>,
        asked: &Asked,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Begun, Error>> {
        if self.streams {
            self.link.lock().driven_by(cx.waker());
        }
        loop {
            let answer = call.as_mut().poll(cx);
            self.interim(asked, cx);
            if let Some(limit) = asked.informational.stream_idle() {
                self.stream_idle = limit;
            }
            if let Poll::Ready(response) = answer {
                return Poll::Ready(Ok(self.begin(response, asked)));
            }
            let mut wire = self.link.lock();
            let wire = &mut *wire;
            if !self.out.is_full() && wire.take_continue() {
                write_continue(self.out.small());
            }
            if !self.out.is_empty()
                && let Poll::Ready(Err(error)) = write(&mut self.out, &mut wire.io, cx)
            {
                return Poll::Ready(Err(lost_in("an interim response", Some(error))));
            }
            if wire.is_open() {
                let moved = wire.moved();
                ready!(self.watch.poll(wire, moved, due(moved, self.stream_idle), cx))?;
                // The body fails, and the service answers to that.
                wire.time_out();
                self.since = Instant::now();
                continue;
            }
            if let Poll::Ready(Err(error)) = wire.poll_end(self.limits.max_bytes, cx) {
                return Poll::Ready(Err(gone(Some(error))));
            }
            // A body that took its time to come must not have used up the time of the answer.
            let since = self.since.max(wire.moved());
            ready!(self.watch.poll(wire, since, due(since, self.stream_idle), cx))?;
            break;
        }
        Limit::StreamIdle.hit();
        Poll::Ready(Ok(self.begin(empty(StatusCode::GATEWAY_TIMEOUT), asked)))
    }

    /// Takes the interim responses that wait.
    fn interim(&mut self, asked: &Asked, cx: &mut Context<'_>) {
        while let Poll::Ready(interim) = asked.informational.poll_next(cx) {
            if !self.out.is_full() && asked.version == Version::HTTP_11 {
                let (status, headers) = (interim.status(), interim.headers());
                write_response(status, headers, WriteLength::Omit, Persist::Keep, self.out.small());
            }
        }
    }

    /// Puts the head of a response where it will be written from.
    fn begin(&mut self, mut response: Response, asked: &Asked) -> Begun {
        let status = response.status();
        let switches = status == StatusCode::SWITCHING_PROTOCOLS || (asked.connect && status.is_success());
        match response.body_mut().take_tunnel() {
            Some(tunnel) if switches && !self.link.lock().is_open() => {
                let switching = status == StatusCode::SWITCHING_PROTOCOLS;
                let persist = if switching { Persist::Upgrade } else { Persist::Keep };
                write_response(status, response.headers(), WriteLength::Omit, persist, self.out.small());
                return Begun::Tunnel(tunnel);
            }
            None if !switches && !status.is_informational() => {}
            // A change of protocol that nobody carries out, or one that did not happen.
            _ => response = empty(StatusCode::BAD_GATEWAY),
        }
        let (framing, length) = framing(&response, asked);
        if self.is_shared() && self.link.lock().take_withheld() {
            // The response was made before the body was read, and has it still.
            write_continue(self.out.small());
        }
        let keep = self.keeps(&response, asked, framing);
        let persist = match (keep, asked.version) {
            (false, _) => Persist::Close,
            (true, Version::HTTP_10) => Persist::KeepAlive,
            (true, _) => Persist::Keep,
        };
        let (mut parts, body) = response.into_parts();
        if !parts.headers.contains_key(header::DATE) {
            parts.headers.insert(header::DATE, date::now());
        }
        write_response(parts.status, &parts.headers, length, persist, self.out.small());
        self.since = Instant::now();
        Begun::Body(Reply { pump: Pump::new(body, framing, asked.trailers), framing, keep, failed: None })
    }

    /// Ends an exchange whose response has been written; `false` if the connection is over.
    async fn finish(&mut self, reply: Reply, asked: &Asked) -> bool {
        let keep = reply.keep;
        drop(reply);
        self.link.lock().next_request();
        let keep = keep && self.is_clear().await;
        if !keep {
            Box::pin(self.goodbye(asked.keep)).await;
        }
        keep
    }

    /// Whether the connection can have another request after this response.
    fn keeps(&self, response: &Response, asked: &Asked, framing: Framing) -> bool {
        if !asked.keep
            || framing == Framing::Close
            || self.drain.is_draining()
            || connection_options(response.headers()).close
        {
            return false;
        }
        let last = self.options.max_requests_per_connection;
        if last > 0 && self.requests >= last {
            Limit::RequestsPerConnection.hit();
            return false;
        }
        let wire = self.link.lock();
        // A body that nobody has asked for may come or not; one that nobody reads any more is read only if it is small.
        let unread = wire.is_withheld()
            || (wire.is_open() && !self.is_shared() && wire.left().is_some_and(|left| left > MOST_DISCARDED));
        !wire.is_over() && !wire.is_failed() && !unread
    }

    /// Whether somebody still has the body of the request.
    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.link) > 1
    }

    /// Writes the response.
    fn poll_respond(&mut self, reply: &mut Reply, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Reply { pump, failed, .. } = reply;
        if self.streams {
            self.link.lock().driven_by(cx.waker());
        }
        loop {
            let before = self.out.written();
            let filled = if failed.is_some() {
                Filled::Ended
            } else {
                pump.poll_fill(&mut self.out, cx).unwrap_or_else(|error| {
                    pump.drop_body();
                    *failed = Some(body_failed(error));
                    Filled::Ended
                })
            };
            let mut wire = self.link.lock();
            let wire = &mut *wire;
            let wrote = write(&mut self.out, &mut wire.io, cx);
            if self.out.written() != before {
                self.since = Instant::now();
            }
            match (wrote, filled) {
                (Poll::Ready(Err(error)), _) => return Poll::Ready(Err(lost_in("its response", Some(error)))),
                (Poll::Ready(Ok(())), Filled::Ended) => {
                    let Some(error) = failed.take() else { return Poll::Ready(Ok(())) };
                    if reply.framing == Framing::Close {
                        reset(&wire.io);
                    }
                    return Poll::Ready(Err(error));
                }
                (Poll::Ready(Ok(())), Filled::Full) => continue,
                (Poll::Ready(Ok(())), Filled::Waiting) | (Poll::Pending, _) => {}
            }
            if !wire.is_open()
                && let Poll::Ready(Err(error)) = wire.poll_end(self.limits.max_bytes, cx)
            {
                return Poll::Ready(Err(gone(Some(error))));
            }
            let since = self.since.max(wire.moved());
            ready!(self.watch.poll(wire, since, due(since, self.stream_idle), cx))?;
            return Poll::Ready(Err(stalled()));
        }
    }

    /// Reads what is left of the request body, if it is little and comes soon; whether a next request can follow.
    async fn is_clear(&mut self) -> bool {
        {
            let wire = self.link.lock();
            if !wire.is_open() {
                return !wire.is_failed() && !wire.is_over();
            }
        }
        Box::pin(async {
            let mut limit = MOST_DISCARDED;
            let discard = poll_fn(|cx| self.link.lock().poll_discard(&mut limit, cx));
            timeout(LINGER, discard).await.unwrap_or(false)
        })
        .await
    }

    /// Hands the connection over once the head is written.
    async fn tunnel(&mut self, tunnel: TunnelFn) -> Result<(), Error> {
        self.write_all("its response").await?;
        let io = {
            let mut wire = self.link.lock();
            let mut io = std::mem::replace(&mut wire.io, Io::other(tokio::io::empty()));
            let input = std::mem::take(&mut wire.input);
            if !input.is_empty() {
                io.unread(input.bytes.freeze());
            }
            io
        };
        self.out.release();
        tunnel(io).await;
        Ok(())
    }

    async fn refuse<S: Service>(&mut self, service: &S, refusal: Refusal) -> Result<(), Error> {
        service.rejected(refusal.status, &refusal.error);
        if !refusal.silent {
            refusal.write(&mut self.out);
        }
        self.write_all("a refusal").await?;
        self.goodbye(true).await;
        Ok(())
    }

    /// Writes what waits, within the time that a stalled client is given.
    async fn write_all(&mut self, what: &'static str) -> Result<(), Error> {
        let due = due(Instant::now(), self.options.stream_idle_timeout);
        poll_fn(|cx| {
            let mut wire = self.link.lock();
            match write(&mut self.out, &mut wire.io, cx) {
                Poll::Pending => self.watch.timer.poll(due, cx).map(|()| Err(stalled())),
                Poll::Ready(wrote) => Poll::Ready(wrote.map_err(|error| lost_in(what, Some(error)))),
            }
        })
        .await
    }

    /// Closes the connection so that the client gets all that was written: a socket that is closed with unread bytes
    /// in it is reset, which takes the response away from the client. `waits` is whether it may still be sending.
    async fn goodbye(&mut self, waits: bool) {
        let (mut io, lingers) = self.take_io(waits);
        if !lingers {
            let _ = timeout(LINGER, io.shutdown()).await;
            return;
        }
        let _ = timeout(LINGER, async {
            io.shutdown().await?;
            let mut limit = MOST_LINGERED;
            let mut input = super::input::Input::default();
            loop {
                let read = poll_fn(|cx| input.poll_read(&mut io, cx)).await? as u64;
                input.bytes.clear();
                if read == 0 || read > limit {
                    return Ok::<(), std::io::Error>(());
                }
                limit -= read;
            }
        })
        .await;
    }

    /// The connection, and whether it may have unread bytes in it.
    fn take_io(&self, waits: bool) -> (Io, bool) {
        let mut wire = self.link.lock();
        let unread = wire.is_open() || wire.is_failed() || !wire.input.is_empty();
        let io = std::mem::replace(&mut wire.io, Io::other(tokio::io::empty()));
        wire.input.bytes.clear();
        (io, !wire.ended && (waits || unread))
    }
}

/// Makes the end of the connection a reset: the only way to tell a client that a body without length is cut short.
fn reset(io: &Io) {
    if let Some(tcp) = io.tcp() {
        let _ = tcp.set_zero_linger();
    }
}

/// Writes and flushes; a flush that has to wait for TLS is taken up again by the next call.
fn write(out: &mut Out, io: &mut Io, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
    ready!(out.poll_write(io, cx))?;
    tokio::io::AsyncWrite::poll_flush(Pin::new(io), cx)
}

/// How long a connection may be idle; zero is for ever.
fn idle_limit(limit: Duration, draining: bool) -> Duration {
    match draining {
        true if limit.is_zero() => DRAIN_IDLE,
        true => limit.min(DRAIN_IDLE),
        false => limit,
    }
}

/// How the body is framed, and what the head says about its length.
fn framing(response: &Response, asked: &Asked) -> (Framing, WriteLength) {
    let announced = response.headers().get(header::CONTENT_LENGTH);
    let exact = response.body().size_hint().exact();
    match response.status() {
        StatusCode::NO_CONTENT => return (Framing::None, WriteLength::Omit),
        status if asked.head_only || status == StatusCode::NOT_MODIFIED => {
            let length = match exact {
                _ if announced.is_some() => WriteLength::Keep,
                Some(length @ 1..) => WriteLength::Length(length),
                _ => WriteLength::Omit,
            };
            return (Framing::None, length);
        }
        _ => {}
    }
    let announced = || announced?.to_str().ok()?.parse().ok();
    match exact.or_else(announced) {
        Some(length) => (Framing::Length(length), WriteLength::Length(length)),
        None if asked.version == Version::HTTP_11 => (Framing::Chunked, WriteLength::Chunked),
        None => (Framing::Close, WriteLength::Omit),
    }
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
    response
}

/// The drain as one connection sees it.
struct Signal {
    draining: Arc<AtomicBool>,
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Who is woken already when draining begins.
    known: Option<Waker>,
}

impl Signal {
    fn new(mut drain: Drain) -> Self {
        let draining = drain.flag();
        Self { draining, wait: Box::pin(async move { drain.draining().await }), known: None }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether draining has begun; if not, the task is woken when it does.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.is_draining() {
            return true;
        }
        // The list of who waits is shared by all connections: it is touched once, not for each request.
        if !self.known.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            if self.wait.as_mut().poll(cx).is_ready() {
                return true;
            }
            self.known = Some(cx.waker().clone());
        }
        false
    }
}

fn slow_head() -> Stop {
    let message = "the request head was not complete within header_timeout";
    Stop::Refused(Box::new(Refusal {
        status: StatusCode::REQUEST_TIMEOUT,
        error: Error::downstream(Kind::Timeout, message).over(Limit::HeaderTimeout),
        silent: false,
    }))
}

fn lost_in(what: &'static str, error: Option<std::io::Error>) -> Error {
    let lost = Error::downstream(Kind::Reset, format!("the client closed the connection in the middle of {what}"));
    match error {
        Some(error) => lost.with_source(error),
        None => lost,
    }
}

fn stalled() -> Error {
    Error::downstream(Kind::Timeout, "no byte of the exchange moved for stream_idle_timeout").over(Limit::StreamIdle)
}

fn body_failed(error: PumpError) -> Error {
    match error {
        PumpError::Body(error) => error,
        PumpError::Long => {
            Error::new(Kind::Protocol { status: 502 }, Side::Us, "the response body is longer than announced")
        }
        PumpError::Short => {
            Error::new(Kind::Protocol { status: 502 }, Side::Us, "the response body is shorter than announced")
        }
    }
}
