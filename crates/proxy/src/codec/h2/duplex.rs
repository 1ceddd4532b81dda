//! A stream as a byte stream: CONNECT and extended CONNECT (RFC 9113 section 8.5, RFC 8441).

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use std::{
    any::Any,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes taken from a writer at once.
const MAX_WRITE: usize = 64 * 1024;

/// DATA frames in both directions. Shutdown is END_STREAM and leaves the other direction open; dropping an open
/// stream resets it.
pub(super) struct H2Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    unread: Bytes,
    shut: bool,
    _hold: Option<Box<dyn Any + Send>>,
}

impl H2Stream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, hold: Option<Box<dyn Any + Send>>) -> Self {
        Self { send, recv, unread: Bytes::new(), shut: false, _hold: hold }
    }

    /// Why nothing can be sent any more.
    fn broken(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED)) | Poll::Pending => {
                io::ErrorKind::BrokenPipe.into()
            }
            Poll::Ready(Ok(reason)) => io::Error::new(io::ErrorKind::ConnectionReset, reason.description()),
            Poll::Ready(Err(error)) => to_io(error),
        }
    }
}

fn to_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.unread.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(data)) => this.unread = data,
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
            }
        }
        let n = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..n]);
        this.unread.advance(n);
        // Fails only when the stream is gone, which the next read tells.
        let _ = this.recv.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if this.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        this.send.reserve_capacity(buf.len().min(MAX_WRITE));
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Err(this.broken(cx))),
            }
        }
        let n = this.send.capacity().min(buf.len());
        match this.send.send_data(Bytes::copy_from_slice(&buf[..n]), false) {
            Ok(()) => Poll::Ready(Ok(n)),
            Err(_) => Poll::Ready(Err(this.broken(cx))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.shut, true) {
            return Poll::Ready(Ok(()));
        }
        match self.send.send_data(Bytes::new(), true) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(_) => Poll::Ready(Err(self.broken(cx))),
        }
    }
}
