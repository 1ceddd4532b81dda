//! A received stream as a body.

use super::{error_of, has_outer_blanks, wire::WireState};
use crate::{
    Body, Error,
    error::{Kind, Side},
    telemetry::Limit,
};
use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use selvedge_wire::http1::{strip_request_trailers, strip_trailers};
use std::{
    any::Any,
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

/// DATA and trailers of a stream. Windows open as frames are taken, so a reader that waits makes the sender wait.
pub(super) struct Incoming {
    /// Taken from the stream already, at most two.
    ahead: VecDeque<Result<Frame<Bytes>, Error>>,
    /// `None` only once dropped.
    recv: Option<RecvStream>,
    side: Side,
    /// What `content-length` says is still to come.
    remaining: Option<u64>,
    max_trailers: usize,
    data_done: bool,
    upload: Option<Arc<Upload>>,
    /// What RFC 9113 section 8.1.1 calls malformed has come.
    malformed: bool,
    /// Where trailers with pseudo-header fields are seen.
    wire: Option<Arc<WireState>>,
    /// Kept until the end of the stream.
    slot: Option<Box<dyn Any + Send>>,
    /// Kept until the body is dropped.
    _hold: Option<Box<dyn Any + Send>>,
}

/// What the exchange of a stream needs to know of its request body.
#[derive(Debug, Default)]
pub(super) struct Upload {
    moved: AtomicBool,
    finished: AtomicBool,
    wanted: AtomicBool,
    /// What RFC 9113 section 8.1.1 calls malformed: the stream ends with PROTOCOL_ERROR.
    malformed: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// The rest of a body that nobody wanted to read to its end.
    left: Mutex<Option<RecvStream>>,
}

impl Upload {
    /// Whether anything was read since the last question.
    pub(super) fn moved(&self) -> bool {
        self.moved.swap(false, Relaxed)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Relaxed)
    }

    pub(super) fn is_malformed(&self) -> bool {
        self.malformed.load(Relaxed)
    }

    /// Ready (once) when the body is read for the first time: the moment for `100 Continue`.
    pub(super) fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<()> {
        if let Ok(mut waker) = self.waker.lock()
            && !self.wanted.load(Relaxed)
        {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// What was left unread when the body was dropped.
    pub(super) fn take_left(&self) -> Option<RecvStream> {
        self.left.lock().ok().and_then(|mut left| left.take())
    }

    fn want(&self) {
        if !self.wanted.load(Relaxed) {
            let waker = self.waker.lock().ok().and_then(|mut waker| {
                self.wanted.store(true, Relaxed);
                waker.take()
            });
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Incoming {
    pub(super) fn new(recv: RecvStream, side: Side, remaining: Option<u64>, max_trailers: u32) -> Self {
        let max_trailers = max_trailers as usize;
        Self {
            ahead: VecDeque::new(),
            recv: Some(recv),
            side,
            remaining,
            max_trailers,
            data_done: false,
            upload: None,
            malformed: false,
            wire: None,
            slot: None,
            _hold: None,
        }
    }

    pub(super) fn watched(mut self, upload: Arc<Upload>) -> Self {
        upload.malformed.store(self.malformed, Relaxed);
        self.upload = Some(upload);
        self
    }

    /// Where the connection is seen from below.
    pub(super) fn on(mut self, wire: Arc<WireState>) -> Self {
        self.wire = Some(wire);
        self
    }

    fn pseudo_trailers(&self) -> bool {
        let (Some(wire), Some(recv)) = (&self.wire, &self.recv) else { return false };
        wire.take_malformed(recv.stream_id().as_u32())
    }

    /// `slot` lives until the stream ends, `hold` until the body is dropped.
    pub(super) fn holding(mut self, slot: Box<dyn Any + Send>, hold: Option<Box<dyn Any + Send>>) -> Self {
        self.slot = Some(slot);
        self._hold = hold;
        self
    }

    /// The body when all of it has come already, in one piece at most, with its trailers: most small messages come so, and
    /// nothing has to be watched or held for them. `Err` is what has to be waited for.
    #[expect(clippy::result_large_err, reason = "what is not whole goes on as it was, without a box")]
    pub(super) fn now(mut self, cx: &mut Context<'_>) -> Result<Body, Self> {
        let data = match self.next_now(cx) {
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    return Ok(frame.into_trailers().map_or(Body::empty(), |t| Body::trailed(Bytes::new(), t)));
                }
            },
            Some(Some(Err(error))) => return Err(self.keeping([Err(error)])),
            Some(None) => return Ok(Body::empty()),
            None => return Err(self),
        };
        if self.is_end_stream() {
            return Ok(Body::full(data));
        }
        match self.next_now(cx) {
            Some(None) => Ok(Body::full(data)),
            Some(Some(Ok(frame))) => match frame.into_trailers() {
                Ok(trailers) => Ok(Body::trailed(data, trailers)),
                Err(frame) => Err(self.keeping([Ok(Frame::data(data)), Ok(frame)])),
            },
            Some(Some(Err(error))) => Err(self.keeping([Ok(Frame::data(data)), Err(error)])),
            None => Err(self.keeping([Ok(Frame::data(data))])),
        }
    }

    /// What is there without waiting; `Some(None)` is the end.
    fn next_now(&mut self, cx: &mut Context<'_>) -> Option<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(self).poll_frame(cx) {
            Poll::Ready(frame) => Some(frame),
            Poll::Pending => None,
        }
    }

    fn keeping(mut self, frames: impl IntoIterator<Item = Result<Frame<Bytes>, Error>>) -> Self {
        self.ahead.extend(frames);
        self
    }

    pub(super) fn into_body(self) -> Body {
        Body::stream(self)
    }

    fn finish(&mut self) {
        self.slot = None;
        if let Some(upload) = &self.upload {
            upload.finished.store(true, Relaxed);
        }
    }

    fn fail(&mut self, error: h2::Error) -> Error {
        self.finish();
        error_of(error, self.side, "the peer broke its message off")
    }

    fn trailers(&mut self, mut trailers: HeaderMap) -> Result<HeaderMap, Error> {
        if trailers.len() > self.max_trailers {
            let message = "more trailer fields than the limit of header fields";
            let limit = if self.side == Side::Downstream { Limit::HeaderCount } else { Limit::ResponseHead };
            return Err(Error::new(Kind::TooLarge { status: 431 }, self.side, message).over(limit));
        }
        if has_outer_blanks(&trailers) || self.pseudo_trailers() {
            self.malformed = true;
            if let Some(upload) = &self.upload {
                upload.malformed.store(true, Relaxed);
            }
            let message = "the trailers have a pseudo-header field, or a value that begins or ends with a blank";
            let status = if self.side == Side::Downstream { 400 } else { 502 };
            return Err(Error::new(Kind::Protocol { status }, self.side, message));
        }
        if self.side == Side::Downstream {
            strip_request_trailers(&mut trailers);
        } else {
            strip_trailers(&mut trailers);
        }
        Ok(trailers)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let (Some(upload), Some(recv)) = (&self.upload, self.recv.take())
            && !upload.is_finished()
            && let Ok(mut left) = upload.left.lock()
        {
            *left = Some(recv);
        }
    }
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Some(upload) = &this.upload {
            upload.want();
        }
        if let Some(frame) = this.ahead.pop_front() {
            return Poll::Ready(Some(frame));
        }
        let Some(recv) = &mut this.recv else { return Poll::Ready(None) };
        while !this.data_done {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only when the stream is gone, which the next poll tells.
                    let _ = recv.flow_control().release_capacity(data.len());
                    if let Some(upload) = &this.upload {
                        upload.moved.store(true, Relaxed);
                    }
                    if let Some(remaining) = &mut this.remaining {
                        *remaining = remaining.saturating_sub(data.len() as u64);
                    }
                    if recv.is_end_stream() {
                        this.slot = None;
                        if let Some(upload) = &this.upload {
                            upload.finished.store(true, Relaxed);
                        }
                    }
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(this.fail(error)))),
                None => this.data_done = true,
            }
        }
        let trailers = ready!(recv.poll_trailers(cx));
        this.finish();
        match trailers {
            Ok(None) => Poll::Ready(None),
            Ok(Some(trailers)) => match this.trailers(trailers) {
                Ok(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Err(error) => Poll::Ready(Some(Err(error))),
            },
            Err(error) => Poll::Ready(Some(Err(this.fail(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.recv.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let ahead =
            self.ahead.iter().filter_map(|frame| frame.as_ref().ok()?.data_ref()).map(Bytes::len).sum::<usize>();
        self.remaining.map_or_else(SizeHint::default, |rest| SizeHint::with_exact(rest + ahead as u64))
    }
}
