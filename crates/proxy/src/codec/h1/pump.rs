//! A body on its way out: frames become bytes in the framing that its head announced.

use super::out::Out;
use crate::{Body, Error};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use selvedge_wire::http1::{Framing, chunk_prefix, write_last_chunk};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// Empty frames taken in one go, before other connections of this worker get their turn.
const MOST_EMPTY: usize = 32;

/// A body and what has still to be written of it.
#[derive(Debug)]
pub(super) struct Pump {
    body: Body,
    left: Left,
    /// Whether the peer can take trailers.
    trailers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The head announced so many more bytes.
    Length(u64),
    Chunked,
    /// Until the connection is closed.
    Close,
    /// Nothing: the end, or a message without a body.
    Ended,
}

/// How filling the out buffer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// The body is at its end, and so are its bytes.
    Ended,
    /// The buffer is full; call again when it has been written.
    Full,
    /// The body has nothing at the moment.
    Waiting,
}

/// Why a body cannot be finished. The connection must be cut: its length would be a lie.
#[derive(Debug)]
pub(super) enum PumpError {
    /// The body itself failed.
    Body(Error),
    /// The body is longer than its head announced.
    Long,
    /// The body is shorter than its head announced.
    Short,
}

impl Pump {
    pub(super) fn new(body: Body, framing: Framing, trailers: bool) -> Self {
        let left = match framing {
            Framing::None | Framing::Tunnel => Left::Ended,
            Framing::Length(length) => Left::Length(length),
            Framing::Chunked => Left::Chunked,
            Framing::Close => Left::Close,
        };
        let mut pump = Self { body, left, trailers };
        if left == Left::Ended {
            pump.drop_body();
        }
        pump
    }

    pub(super) fn is_ended(&self) -> bool {
        self.left == Left::Ended
    }

    /// Lets go of what is left of the body.
    pub(super) fn drop_body(&mut self) {
        self.body = Body::empty();
    }

    /// Moves frames into `out` until it is full, or the body waits or ends.
    pub(super) fn poll_fill(&mut self, out: &mut Out, cx: &mut Context<'_>) -> Result<Filled, PumpError> {
        let mut empty = 0;
        while !self.is_ended() {
            if out.is_full() {
                return Ok(Filled::Full);
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if self.frame(frame, out)? {
                        continue;
                    }
                    empty += 1;
                    if empty == MOST_EMPTY {
                        cx.waker().wake_by_ref();
                        return Ok(Filled::Waiting);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Err(PumpError::Body(error)),
                Poll::Ready(None) => self.end(None, out)?,
                Poll::Pending => return Ok(Filled::Waiting),
            }
        }
        Ok(Filled::Ended)
    }

    /// Takes a frame; `false` if there was nothing in it.
    fn frame(&mut self, frame: Frame<Bytes>, out: &mut Out) -> Result<bool, PumpError> {
        match frame.into_data() {
            Ok(data) if data.is_empty() => Ok(false),
            Ok(data) => self.data(data, out).map(|()| true),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => self.end(Some(&trailers), out).map(|()| true),
                Err(_) => Ok(false),
            },
        }
    }

    fn data(&mut self, data: Bytes, out: &mut Out) -> Result<(), PumpError> {
        let last = self.body.is_end_stream();
        match &mut self.left {
            Left::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(PumpError::Long)?;
                if last && *left > 0 {
                    out.data(data, b"");
                    return Err(PumpError::Short);
                }
                out.data(data, b"");
            }
            Left::Chunked => {
                chunk_prefix(data.len(), out.small());
                out.data(data, if last { b"\r\n0\r\n\r\n" } else { b"\r\n" });
            }
            Left::Close => out.data(data, b""),
            Left::Ended => {}
        }
        if last {
            self.left = Left::Ended;
            self.drop_body();
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&HeaderMap>, out: &mut Out) -> Result<(), PumpError> {
        match self.left {
            Left::Length(1..) => return Err(PumpError::Short),
            Left::Chunked => write_last_chunk(trailers.filter(|_| self.trailers), out.small()),
            Left::Length(0) | Left::Close | Left::Ended => {}
        }
        self.left = Left::Ended;
        self.drop_body();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Io;
    use std::{collections::VecDeque, future::poll_fn};
    use tokio::io::AsyncReadExt;

    struct Frames(VecDeque<Frame<Bytes>>);

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Error;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn data(text: &'static str) -> Frame<Bytes> {
        Frame::data(Bytes::from_static(text.as_bytes()))
    }

    async fn pump(frames: Vec<Frame<Bytes>>, framing: Framing, trailers: bool) -> (String, Result<Filled, PumpError>) {
        let mut pump = Pump::new(Body::stream(Frames(frames.into())), framing, trailers);
        let mut out = Out::default();
        let filled = poll_fn(|cx| Poll::Ready(pump.poll_fill(&mut out, cx))).await;
        let (near, mut far) = tokio::io::duplex(4096);
        let mut io = Io::other(near);
        poll_fn(|cx| out.poll_write(&mut io, cx)).await.unwrap();
        drop(io);
        let mut text = String::new();
        far.read_to_string(&mut text).await.unwrap();
        (text, filled)
    }

    #[tokio::test]
    async fn chunks_and_trailers() {
        let mut fields = HeaderMap::new();
        fields.insert("grpc-status", "0".parse().unwrap());
        let frames = || vec![data("abc"), data(""), data("de"), Frame::trailers(fields.clone())];
        let (text, filled) = pump(frames(), Framing::Chunked, true).await;
        assert_eq!(text, "3\r\nabc\r\n2\r\nde\r\n0\r\ngrpc-status: 0\r\n\r\n");
        assert_eq!(filled.unwrap(), Filled::Ended);
        let (text, _) = pump(frames(), Framing::Chunked, false).await;
        assert_eq!(text, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        let (text, _) = pump(frames(), Framing::Length(5), true).await;
        assert_eq!(text, "abcde");
        let (text, _) = pump(frames(), Framing::Close, true).await;
        assert_eq!(text, "abcde");
        let (text, _) = pump(frames(), Framing::None, true).await;
        assert_eq!(text, "");
    }

    #[tokio::test]
    async fn the_announced_length_is_kept() {
        let (text, filled) = pump(vec![data("abc"), data("def")], Framing::Length(5), true).await;
        assert_eq!(text, "abc");
        assert!(matches!(filled, Err(PumpError::Long)));
        let (text, filled) = pump(vec![data("abc")], Framing::Length(5), true).await;
        assert_eq!(text, "abc");
        assert!(matches!(filled, Err(PumpError::Short)));
    }
}
