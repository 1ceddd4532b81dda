//! Bodies that are counted as they pass, and the response body's end as the end of its record.

use super::record::{Progress, Record, offset_since};
use crate::{Body, Error};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::time::Instant;

/// Lets `record` end with `body`.
pub(super) fn observe(mut record: Record, mut body: Body) -> Body {
    if let Some(tunnel) = body.take_tunnel() {
        return Body::tunnel(move |io| async move {
            tunnel(io).await;
            drop(record);
        });
    }
    if body.is_whole() {
        record.sent = body.whole_len();
        if let Some(trailers) = body.trailers() {
            record.trailers(trailers);
        }
        return body;
    }
    let expected = body.size_hint().exact();
    Body::stream(RecordedBody { record: Some(record), body, expected })
}

/// A response body on its way to the client.
struct RecordedBody {
    /// Until the end.
    record: Option<Record>,
    body: Body,
    expected: Option<u64>,
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(record) = &mut self.record else { return Poll::Ready(frame) };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    record.sent += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    record.trailers(trailers);
                    self.record = None;
                }
            }
            Some(Err(error)) => {
                record.failed(error);
                self.record = None;
            }
            None => self.record = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            // A codec may stop as soon as it has all that it announced, without asking for the end.
            let complete = self.body.is_end_stream() || self.expected == Some(record.sent);
            if !complete {
                record.flag(super::Flags::DOWNSTREAM_CLOSED);
            }
        }
    }
}

/// A request body on its way to the upstream.
pub(super) struct RequestBody {
    body: Body,
    progress: Arc<Progress>,
    start: Instant,
}

impl RequestBody {
    pub fn new(body: Body, progress: Arc<Progress>, start: Instant) -> Self {
        Self { body, progress, start }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.progress.received(data.len() as u64);
                }
            }
            Some(Err(_)) => {}
            None => self.progress.request_end.store(offset_since(self.start), Relaxed),
        }
        if self.body.is_end_stream() {
            self.progress.request_end.store(offset_since(self.start), Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
