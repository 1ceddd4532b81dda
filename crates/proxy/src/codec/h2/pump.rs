//! A body into a stream. Never more than the peer's windows and [`MAX_SEND_BUFFER`](super::MAX_SEND_BUFFER) allow,
//! and the last DATA frame carries END_STREAM whenever the end is known in time.

use super::strip_connection_fields;
use crate::{
    Body, Error,
    error::{Kind, Side},
};
use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as _, Frame};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

pub(super) struct Pump {
    body: Body,
    send: SendStream<Bytes>,
    /// Taken from the body, not yet sent.
    data: Bytes,
    /// What the body yielded when it was asked whether `data` is the last.
    next: Option<Option<Result<Frame<Bytes>, Error>>>,
    remaining: Option<u64>,
    moved: bool,
}

/// Why a body was not sent to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The peer reset the stream, or the connection is gone.
    Gone,
    /// The body failed or was not as long as it should be: the stream has been reset.
    Body(Error),
}

impl Pump {
    /// `length` is what `content-length` promises.
    pub(super) fn new(body: Body, send: SendStream<Bytes>, length: Option<u64>) -> Self {
        Self { body, send, data: Bytes::new(), next: None, remaining: length, moved: false }
    }

    /// Whether anything was sent since the last question.
    pub(super) fn moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    pub(super) fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
    }

    /// Ready when everything including END_STREAM is in `h2`'s hands.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        loop {
            if !self.data.is_empty() {
                match self.poll_send(cx) {
                    Poll::Ready(Ok(false)) => continue,
                    Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Err(stop)) => return Poll::Ready(Err(stop)),
                    Poll::Pending => return self.poll_gone(cx),
                }
            }
            let frame = match self.next.take() {
                Some(frame) => frame,
                None => match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => return self.poll_gone(cx),
                },
            };
            match frame {
                None => return Poll::Ready(self.end(None)),
                Some(Err(error)) => return Poll::Ready(Err(self.fail(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Err(error) = self.count(data.len()) {
                            return Poll::Ready(Err(self.fail(error)));
                        }
                        self.data = data;
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return Poll::Ready(self.end(Some(trailers)));
                        }
                    }
                },
            }
        }
    }

    /// Sends what the windows allow; true when that was the end.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Stop>> {
        self.send.reserve_capacity(self.data.len().min(super::MAX_SEND_BUFFER));
        let mut capacity = self.send.capacity();
        while capacity == 0 {
            match self.send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(n))) => capacity = n,
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Stop::Gone)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let chunk = self.data.split_to(capacity.min(self.data.len()));
        let last = self.data.is_empty() && self.ends_here(cx);
        if last && self.remaining.is_some_and(|left| left > 0) {
            return Poll::Ready(Err(self.short()));
        }
        self.moved = true;
        match self.send.send_data(chunk, last) {
            Ok(()) => Poll::Ready(Ok(last)),
            Err(_) => Poll::Ready(Err(Stop::Gone)),
        }
    }

    /// Whether the body has nothing more, asked without waiting.
    fn ends_here(&mut self, cx: &mut Context<'_>) -> bool {
        if self.body.is_end_stream() {
            return true;
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(None) => true,
            Poll::Ready(frame) => {
                self.next = Some(frame);
                false
            }
            Poll::Pending => false,
        }
    }

    fn count(&mut self, n: usize) -> Result<(), Error> {
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.checked_sub(n as u64).ok_or_else(|| {
                Error::new(Kind::Internal, Side::Us, "a body is longer than its content-length, so it was cut off")
            })?;
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<http::HeaderMap>) -> Result<(), Stop> {
        if self.remaining.is_some_and(|left| left > 0) {
            return Err(self.short());
        }
        self.moved = true;
        let sent = match trailers {
            Some(mut trailers) => {
                strip_connection_fields(&mut trailers);
                if trailers.is_empty() {
                    self.send.send_data(Bytes::new(), true)
                } else {
                    self.send.send_trailers(trailers)
                }
            }
            None => self.send.send_data(Bytes::new(), true),
        };
        sent.map_err(|_| Stop::Gone)
    }

    fn short(&mut self) -> Stop {
        self.fail(Error::new(Kind::Internal, Side::Us, "a body ended before its content-length, so it was reset"))
    }

    fn fail(&mut self, error: Error) -> Stop {
        let reason = if error.kind == Kind::Cancelled { Reason::CANCEL } else { Reason::INTERNAL_ERROR };
        self.send.send_reset(reason);
        Stop::Body(error)
    }

    /// While there is nothing else to do: whether the peer still wants it.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        self.send.poll_reset(cx).map(|_| Err(Stop::Gone))
    }
}
