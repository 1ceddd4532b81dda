//! One stream of a client's connection, from the accepted head to its end.

use super::{
    bare,
    duplex::H2Stream,
    head::body_refused,
    incoming::{Incoming, Upload},
    pump::{Pump, Stop},
    server::{Limits, OpenStream},
    strip_connection_fields,
};
use crate::{
    Body, Response,
    codec::{Informational, Service, h1::date},
    error::{Error, Side},
    io::Io,
    telemetry::Limit,
};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{Method, StatusCode, header, request::Parts};
use http_body::Body as _;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// Interim responses passed on for one request; an upstream that sends more is not our client's problem.
const MAX_INTERIM: u32 = 16;

pub(super) struct Exchange<S> {
    service: Arc<S>,
    open: OpenStream,
    limits: Limits,
    respond: SendResponse<Bytes>,
}

/// What is still read of a request body that is not wanted any more, so that clients which would take the reset of
/// their stream for the loss of the answer (grpcio, curl) get to read it: bytes, and time without an answer to wait for.
const DRAIN_BYTES: usize = 256 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Reads on where the service stopped; dropping the stream then resets it with NO_ERROR (RFC 9113 section 8.1).
pub(super) async fn drain(mut recv: RecvStream) {
    let rest = async {
        let mut read = 0;
        while let Some(Ok(data)) = recv.data().await {
            read += data.len();
            let _ = recv.flow_control().release_capacity(data.len());
            if read > DRAIN_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}

/// What came where no body may come.
enum Ended {
    Empty,
    Data,
    /// The client reset the stream or is gone.
    Gone,
    Late,
}

/// How waiting for the service ended.
enum Outcome {
    Answered(Response),
    /// The client reset the stream or is gone.
    Gone,
    Idle,
}

impl<S: Service> Exchange<S> {
    pub(super) fn new(service: Arc<S>, open: OpenStream, limits: Limits, respond: SendResponse<Bytes>) -> Self {
        Self { service, open, limits, respond }
    }

    /// `length` is the content-length of the request.
    pub(super) async fn run(mut self, mut parts: Parts, mut recv: RecvStream, length: Option<u64>) {
        let method = parts.method.clone();
        let mut upload = None;
        let mut tunnel = None;
        let expects =
            parts.headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        // Some clients say that there is no body by an empty DATA frame.
        let mut empty = recv.is_end_stream();
        if self.limits.head.is_bodiless(&method) && !empty {
            match self.end_of(&mut recv).await {
                Ended::Empty => empty = true,
                Ended::Data => {
                    self.refuse(&body_refused());
                    return drain(recv).await;
                }
                Ended::Gone => return self.open.cancelled(),
                Ended::Late => return self.time_out(Some(Arc::default())),
            }
        }
        let body = if method == Method::CONNECT {
            tunnel = Some(recv);
            Body::empty()
        } else if empty {
            Body::empty()
        } else {
            let incoming =
                Incoming::new(recv, Side::Downstream, length, self.limits.head.max_fields).on(self.open.wire().clone());
            // Who waits for `100 Continue` has sent nothing yet: to read is to ask for it.
            let now = if expects { Err(incoming) } else { incoming.now(&mut Context::from_waker(Waker::noop())) };
            now.unwrap_or_else(|incoming| {
                let watch = Arc::new(Upload::default());
                upload = Some(watch.clone());
                incoming.watched(watch).into_body()
            })
        };
        let informational = Informational::default();
        parts.extensions.insert(informational.clone());
        let request = http::Request::from_parts(parts, body);

        let mut wait = Wait {
            idle: self.limits.stream_idle,
            informational,
            interim_left: MAX_INTERIM,
            continues: if expects { upload.clone() } else { None },
            upload,
        };
        let outcome = {
            let service = self.service.clone();
            self.answer(pin!(service.call(request)), &mut wait).await
        };
        match outcome {
            Outcome::Answered(response) => {
                self.limits.stream_idle = wait.limit();
                self.respond(response, &method, tunnel, wait.upload).await;
            }
            Outcome::Gone => self.open.cancelled(),
            Outcome::Idle => self.time_out(wait.upload),
        }
    }

    /// Waits for the end of a body that must be empty.
    async fn end_of(&mut self, recv: &mut RecvStream) -> Ended {
        let timer = pin!(sleep(self.limits.stream_idle));
        let mut idle = Idle::new(timer, self.limits.stream_idle);
        poll_fn(|cx| {
            if self.respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Ended::Gone);
            }
            while let Poll::Ready(data) = recv.poll_data(cx) {
                match data {
                    Some(Ok(data)) if data.is_empty() => {}
                    Some(Ok(_)) => return Poll::Ready(Ended::Data),
                    Some(Err(_)) => return Poll::Ready(Ended::Gone),
                    None => return Poll::Ready(Ended::Empty),
                }
            }
            idle.poll(false, cx).map(|()| Ended::Late)
        })
        .await
    }

    /// Answers instead of the service.
    fn refuse(&mut self, error: &Error) {
        let status = crate::reply::status(error);
        self.service.rejected(status, error);
        if self.respond.send_response(bare(status), true).is_err() {
            self.respond.send_reset(Reason::PROTOCOL_ERROR);
        }
    }

    async fn answer(&mut self, mut call: Pin<&mut impl Future<Output = Response>>, wait: &mut Wait) -> Outcome {
        let timer = pin!(sleep(wait.idle));
        let mut idle = Idle::new(timer, wait.idle);
        let respond = &mut self.respond;
        poll_fn(|cx| {
            // First, so that a request that was already given up never reaches the service.
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(Outcome::Gone);
            }
            if let Poll::Ready(response) = call.as_mut().poll(cx) {
                wait.pass_interim(respond, cx);
                return Poll::Ready(Outcome::Answered(response));
            }
            wait.pass_interim(respond, cx);
            let moved = wait.upload.as_ref().is_some_and(|upload| upload.moved());
            idle.change(wait.limit());
            idle.poll(moved, cx).map(|()| Outcome::Idle)
        })
        .await
    }

    /// Nothing moved for too long and there is no response yet.
    fn time_out(mut self, upload: Option<Arc<Upload>>) {
        Limit::StreamIdle.hit();
        let complete = upload.is_none_or(|upload| upload.is_finished());
        let status = if complete { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::REQUEST_TIMEOUT };
        if self.respond.send_response(bare(status), true).is_err() {
            self.respond.send_reset(Reason::CANCEL);
        }
    }

    async fn respond(
        mut self,
        response: Response,
        method: &Method,
        tunnel: Option<RecvStream>,
        upload: Option<Arc<Upload>>,
    ) {
        if upload.as_ref().is_some_and(|upload| upload.is_malformed()) {
            return self.respond.send_reset(Reason::PROTOCOL_ERROR);
        }
        let (mut parts, mut body) = response.into_parts();
        if parts.status == StatusCode::SWITCHING_PROTOCOLS && tunnel.is_some() {
            // What an HTTP/1.1 upstream says to the upgrade that an extended CONNECT became (RFC 8441 section 5).
            parts.status = StatusCode::OK;
            parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        }
        if parts.status.is_informational() {
            tracing::debug!(status = %parts.status, "a final response with an informational status; stream reset");
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        }
        strip_connection_fields(&mut parts.headers);
        if !parts.headers.contains_key(header::DATE) {
            parts.headers.insert(header::DATE, date::now());
        }
        parts.extensions.clear();
        let status = parts.status;
        let accepted = tunnel.filter(|_| status.is_success()).zip(body.take_tunnel());
        if accepted.is_some() {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let no_body = *method == Method::HEAD || matches!(status.as_u16(), 204 | 205 | 304);
        let length = if no_body { None } else { super::content_length(&parts.headers).unwrap_or(None) };
        let end = accepted.is_none() && (no_body || body.is_end_stream());
        if end && length.is_some_and(|length| length > 0) {
            tracing::debug!("a response ended before its content-length; stream reset");
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        }
        let send = match self.respond.send_response(http::Response::from_parts(parts, ()), end) {
            Ok(send) => send,
            Err(error) => {
                tracing::debug!(%error, "a response could not be sent");
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                return self.open.cancelled();
            }
        };
        if let Some((recv, run)) = accepted {
            drop(self.respond);
            run(Io::other(H2Stream::new(send, recv, None))).await;
        } else if !end {
            if self.send_body(body, send, length, upload.clone()).await
                && let Some(left) = upload.and_then(|upload| upload.take_left())
            {
                drain(left).await;
            }
        } else if let Some(left) = upload.and_then(|upload| upload.take_left()) {
            drain(left).await;
        }
    }

    /// Whether the body was sent to its end.
    async fn send_body(
        &self,
        body: Body,
        send: SendStream<Bytes>,
        length: Option<u64>,
        upload: Option<Arc<Upload>>,
    ) -> bool {
        let mut pump = Pump::new(body, send, length);
        let limit = self.limits.stream_idle;
        let timer = pin!(sleep(limit));
        let mut idle = Idle::new(timer, limit);
        let stop = poll_fn(|cx| {
            let polled = pump.poll(cx);
            if upload.as_ref().is_some_and(|upload| upload.is_malformed()) {
                pump.reset(Reason::PROTOCOL_ERROR);
                return Poll::Ready(Err(None));
            }
            if let Poll::Ready(result) = polled {
                return Poll::Ready(result.map_err(Some));
            }
            let moved = pump.moved() | upload.as_ref().is_some_and(|upload| upload.moved());
            if idle.poll(moved, cx).is_ready() {
                tracing::debug!("nothing moved on a stream for {limit:?}; stream reset");
                Limit::StreamIdle.hit();
                pump.reset(Reason::CANCEL);
                return Poll::Ready(Err(None));
            }
            Poll::Pending
        })
        .await;
        match &stop {
            Err(Some(Stop::Gone)) => self.open.cancelled(),
            Err(Some(Stop::Body(error))) => tracing::debug!(%error, "a response body broke off; stream reset"),
            _ => {}
        }
        stop.is_ok()
    }
}

/// What is looked after while the service works.
struct Wait {
    idle: Duration,
    informational: Informational,
    interim_left: u32,
    continues: Option<Arc<Upload>>,
    upload: Option<Arc<Upload>>,
}

impl Wait {
    /// How long the exchange may be silent: its route may know better than its connection.
    fn limit(&self) -> Duration {
        self.informational.stream_idle().unwrap_or(self.idle)
    }

    fn pass_interim(&mut self, respond: &mut SendResponse<Bytes>, cx: &mut Context<'_>) {
        if self.continues.as_ref().is_some_and(|upload| upload.poll_wanted(cx).is_ready()) {
            self.continues = None;
            self.send_interim(respond, http::Response::new(()), StatusCode::CONTINUE);
        }
        while let Poll::Ready(response) = self.informational.poll_next(cx) {
            let status = response.status();
            self.send_interim(respond, response, status);
        }
    }

    fn send_interim(
        &mut self,
        respond: &mut SendResponse<Bytes>,
        mut response: http::Response<()>,
        status: StatusCode,
    ) {
        if self.interim_left == 0 {
            Limit::InterimResponses.hit();
            return;
        }
        self.interim_left -= 1;
        *response.status_mut() = status;
        strip_connection_fields(response.headers_mut());
        response.headers_mut().remove(header::CONTENT_LENGTH);
        // Fails only when the stream is gone, which the next poll tells.
        let _ = respond.send_informational(response);
    }
}

/// Fires when nothing moved for `limit` (zero: never). The timer is only touched when it fires, so a busy stream pays
/// one registration; silence is thus noticed after one to two times the limit.
struct Idle<'a> {
    sleep: Pin<&'a mut Sleep>,
    limit: Duration,
    moved: bool,
}

impl<'a> Idle<'a> {
    fn new(sleep: Pin<&'a mut Sleep>, limit: Duration) -> Self {
        Self { sleep, limit, moved: false }
    }

    fn change(&mut self, limit: Duration) {
        if limit != self.limit {
            self.limit = limit;
            self.sleep.as_mut().reset(Instant::now() + limit);
        }
    }

    fn poll(&mut self, moved: bool, cx: &mut Context<'_>) -> Poll<()> {
        if self.limit.is_zero() {
            return Poll::Pending;
        }
        self.moved |= moved;
        while self.sleep.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.moved) {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(Instant::now() + self.limit);
        }
        Poll::Pending
    }
}
