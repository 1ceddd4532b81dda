//! One request and its response on a connection to an upstream.

use super::{Connection, write_head};
use crate::{
    Body, Error, Request,
    codec::{
        Informational, Progress, SendError,
        h1::{
            input::Input,
            out::Out,
            pump::{Filled, Pump, PumpError},
        },
    },
    error::{Kind, Side},
    telemetry::Limit,
};
use http::{Method, StatusCode};
use selvedge_wire::http1::{Framing, HeadLimits, HeadReader, ResponseHead};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

pub(super) struct Exchange {
    pub(super) connection: Connection,
    pub(super) input: Input,
    pub(super) method: Method,
    /// The request asked for a change of protocol.
    pub(super) upgrade: bool,
    /// Its connection is not to be used again.
    pub(super) last: bool,
    head: HeadReader,
    out: Out,
    pump: Pump,
    sending: Sending,
    informational: Option<Informational>,
    interim: u32,
    /// A byte of a response has come.
    answered: bool,
}

enum Sending {
    Underway,
    Done,
    /// The upstream takes nothing more; it may have answered before.
    Broken(io::Error),
}

impl Exchange {
    /// Prepares the request; nothing is sent yet.
    pub(super) fn begin(connection: Connection, request: Request) -> Result<Self, Error> {
        let (mut parts, body) = request.into_parts();
        let mut out = Out::default();
        let plan = write_head(&parts, &body, out.small())?;
        let body = if plan.framing == Framing::None { Body::empty() } else { body };
        Ok(Self {
            connection,
            input: Input::default(),
            method: parts.method,
            upgrade: plan.upgrade,
            last: plan.last,
            head: HeadReader::default(),
            out,
            pump: Pump::new(body, plan.framing, true),
            sending: Sending::Underway,
            informational: parts.extensions.remove(),
            interim: 0,
            answered: false,
        })
    }

    /// Sends what can be sent, and waits for the head of the final response.
    pub(super) fn poll_head(
        &mut self,
        limits: &HeadLimits,
        max_interim: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, SendError>> {
        if let Err(error) = self.send(cx) {
            return Poll::Ready(Err(self.failed(error)));
        }
        loop {
            match self.head.response(&mut self.input.bytes, limits) {
                Ok(None) => {}
                Ok(Some(head)) => match self.is_final(head, max_interim) {
                    Ok(Some(head)) => return Poll::Ready(Ok(head)),
                    Ok(None) => continue,
                    Err(error) => return Poll::Ready(Err(self.failed(error))),
                },
                Err(error) => {
                    let refused = if super::super::reject::limit(&error).is_some() {
                        Limit::ResponseHead.hit();
                        let (fields, bytes) = (limits.max_headers, limits.max_bytes);
                        let message = format!(
                            "the upstream's response head is over a limit (at most {fields} fields and {bytes} bytes)"
                        );
                        Error::upstream(Kind::Protocol { status: 502 }, message)
                    } else {
                        protocol("the upstream's response head is refused")
                    };
                    let refused = refused.with_source(error);
                    return Poll::Ready(Err(self.failed(refused)));
                }
            }
            let error = match ready!(self.input.poll_rest(&mut self.connection.io, cx)) {
                Ok(1..) => {
                    self.answered = true;
                    continue;
                }
                Ok(0) => None,
                Err(error) => Some(error),
            };
            let lost = self.lost(error, "before it had answered");
            return Poll::Ready(Err(self.failed(lost)));
        }
    }

    /// Passes interim responses on.
    fn is_final(&mut self, head: ResponseHead, max_interim: u32) -> Result<Option<ResponseHead>, Error> {
        match head.status {
            StatusCode::SWITCHING_PROTOCOLS if !self.upgrade => {
                return Err(protocol("the upstream switched protocols without being asked"));
            }
            StatusCode::SWITCHING_PROTOCOLS => return Ok(Some(head)),
            status if !status.is_informational() => return Ok(Some(head)),
            _ => {}
        }
        self.interim += 1;
        if self.interim > max_interim {
            return Err(
                protocol("the upstream sent more interim responses than the limit").over(Limit::InterimResponses)
            );
        }
        if let Some(informational) = &self.informational {
            let mut interim = http::Response::new(());
            *interim.status_mut() = head.status;
            *interim.headers_mut() = head.headers;
            informational.send(interim);
        }
        Ok(None)
    }

    /// Sends what can be sent now. An error is the request's own; a connection that breaks only ends the sending, for
    /// an answer may have come before.
    pub(super) fn send(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while matches!(self.sending, Sending::Underway) {
            let filled = self.pump.poll_fill(&mut self.out, cx).map_err(body_failed)?;
            let io = &mut self.connection.io;
            let wrote = match self.out.poll_write(io, cx) {
                Poll::Ready(Ok(())) if filled == Filled::Full => continue,
                Poll::Ready(Ok(())) => Pin::new(io).poll_flush(cx),
                unfinished => unfinished,
            };
            match wrote {
                Poll::Ready(Ok(())) if filled == Filled::Ended => self.sending = Sending::Done,
                Poll::Ready(Ok(())) | Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) => {
                    self.pump.drop_body();
                    self.sending = Sending::Broken(error);
                }
            }
        }
        Ok(())
    }

    /// Whether the whole request has been sent.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.sending, Sending::Done)
    }

    /// The connection ended too early.
    pub(super) fn lost(&mut self, error: Option<io::Error>, when: &'static str) -> Error {
        let lost = Error::upstream(Kind::Reset, format!("the upstream closed the connection {when}"));
        let error = error.or_else(|| match std::mem::replace(&mut self.sending, Sending::Underway) {
            Sending::Broken(error) => Some(error),
            _ => None,
        });
        match error {
            Some(error) => lost.with_source(error),
            None => lost,
        }
    }

    pub(super) fn failed(&self, error: Error) -> SendError {
        let progress = if self.answered {
            Progress::Answered
        } else if self.out.written() > 0 {
            Progress::Sent
        } else {
            Progress::Unsent
        };
        SendError { error, progress }
    }

    /// The connection at the end of a clean exchange: goes home if it can be used again.
    pub(super) fn finish(self, keep: bool) {
        if keep && self.is_sent() && !self.upgrade && self.input.is_empty() {
            let home = self.connection.home.clone();
            home.give_back(self.connection);
        }
    }
}

pub(super) fn protocol(message: &'static str) -> Error {
    Error::upstream(Kind::Protocol { status: 502 }, message)
}

/// A request body that cannot be sent to its end. What is wrong with the request itself keeps its kind and so its
/// status; a client that is gone cancels the exchange.
fn body_failed(error: PumpError) -> Error {
    match error {
        PumpError::Body(error) if error.side == Side::Downstream && error.kind == Kind::Reset => {
            Error::downstream(Kind::Cancelled, "the client went away while its request was sent").with_source(error)
        }
        PumpError::Body(error) => error,
        PumpError::Long => Error::new(Kind::Internal, Side::Us, "the request body is longer than announced"),
        PumpError::Short => Error::new(Kind::Internal, Side::Us, "the request body is shorter than announced"),
    }
}
