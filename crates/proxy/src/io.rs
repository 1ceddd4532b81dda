//! One byte stream type for everything that carries a connection.

use crate::tls;
use bytes::{Buf, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::SockRef;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Anything else that can be read and written: an HTTP/2 stream, an in-memory pipe in tests.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connection's bytes. Bytes that were read too far (a sniffed preface, data behind an upgrade) go back in front
/// with [`Io::unread`].
pub struct Io {
    prefix: Bytes,
    kind: Kind,
}

enum Kind {
    Tcp(TcpStream),
    ServerTls(Box<tls::ServerStream>),
    ClientTls(Box<tls::ClientStream>),
    Other(Pin<Box<dyn Duplex>>),
}

/// What an idle connection shows without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Open and silent.
    Idle,
    /// Unsolicited bytes are there.
    Data,
    /// Closed or broken.
    Closed,
}

impl From<TcpStream> for Io {
    fn from(stream: TcpStream) -> Self {
        Self { prefix: Bytes::new(), kind: Kind::Tcp(stream) }
    }
}

impl From<tls::ServerStream> for Io {
    fn from(stream: tls::ServerStream) -> Self {
        Self { prefix: Bytes::new(), kind: Kind::ServerTls(Box::new(stream)) }
    }
}

impl From<tls::ClientStream> for Io {
    fn from(stream: tls::ClientStream) -> Self {
        Self { prefix: Bytes::new(), kind: Kind::ClientTls(Box::new(stream)) }
    }
}

impl Io {
    pub fn other(stream: impl Duplex + 'static) -> Self {
        Self { prefix: Bytes::new(), kind: Kind::Other(Box::pin(stream)) }
    }

    /// Nothing: ends at once, and forgets what is written. Stands where a connection is taken out for a moment.
    pub(crate) fn nothing() -> Self {
        Self::other(tokio::io::join(tokio::io::empty(), tokio::io::sink()))
    }

    /// A plain TCP connection, and what was read of it and put back.
    pub(crate) fn into_tcp(self) -> Option<(TcpStream, Bytes)> {
        match self.kind {
            Kind::Tcp(tcp) => Some((tcp, self.prefix)),
            _ => None,
        }
    }

    /// Puts bytes back in front of what is read next.
    pub fn unread(&mut self, bytes: Bytes) {
        if self.prefix.is_empty() {
            self.prefix = bytes;
        } else {
            self.prefix = [bytes.as_ref(), self.prefix.as_ref()].concat().into();
        }
    }

    /// The socket below, for options and addresses; `None` for in-memory and HTTP/2 streams.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match &self.kind {
            Kind::Tcp(tcp) => Some(tcp),
            Kind::ServerTls(tls) => Some(tls.get_ref().0),
            Kind::ClientTls(tls) => Some(tls.get_ref().0),
            Kind::Other(_) => None,
        }
    }

    /// The plain TCP stream, when there is nothing in between (for splice and half-close).
    pub fn is_plain_tcp(&self) -> bool {
        matches!(self.kind, Kind::Tcp(_))
    }

    /// Has the kernel acknowledge at once what was read, instead of with what is sent next (TCP_QUICKACK).
    pub(crate) fn acknowledge(&self) {
        if let Some(tcp) = self.tcp() {
            // Without it the peer waits for a moment.
            let _ = SockRef::from(tcp).set_tcp_quickack(true);
        }
    }

    /// Ready when a read would make progress, without a buffer being held meanwhile. Spurious readiness is allowed.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match &mut self.kind {
            Kind::Tcp(tcp) => tcp.poll_read_ready(cx),
            // Plaintext may already be decrypted inside the session, so readiness of the socket is not the whole
            // answer: whoever waits here has read until Pending before, which empties the session.
            Kind::ServerTls(tls) => tls.get_ref().0.poll_read_ready(cx),
            Kind::ClientTls(tls) => tls.get_ref().0.poll_read_ready(cx),
            Kind::Other(_) => Poll::Ready(Ok(())),
        }
    }

    /// Looks at an idle connection. Bytes that are there are consumed, so only [`Probe::Idle`] may be used on.
    pub fn probe(&mut self) -> Probe {
        if !self.prefix.is_empty() {
            return Probe::Data;
        }
        let mut byte = [0u8; 1];
        let mut buf = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(self).poll_read(&mut cx, &mut buf) {
            Poll::Pending => Probe::Idle,
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => Probe::Data,
            Poll::Ready(_) => Probe::Closed,
        }
    }
}

/// What the kernel knows of the peer, whether or not all that it sent has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// It may send more, or nothing is known.
    There,
    /// It has ended its side.
    Ended,
    /// The connection is broken.
    Gone,
}

impl Io {
    /// Looks at the socket without reading. An in-memory or HTTP/2 stream is [`Peer::There`].
    pub fn peer(&self) -> Peer {
        let Some(tcp) = self.tcp() else { return Peer::There };
        let mut sockets = [PollFd::new(tcp, PollFlags::RDHUP)];
        let flags = match rustix::event::poll(&mut sockets, Some(&Timespec::default())) {
            Ok(_) => sockets[0].revents(),
            Err(_) => return Peer::There,
        };
        if flags.intersects(PollFlags::ERR | PollFlags::HUP) {
            Peer::Gone
        } else if flags.contains(PollFlags::RDHUP) {
            Peer::Ended
        } else {
            Peer::There
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.prefix.is_empty() {
            let n = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix[..n]);
            self.prefix.advance(n);
            return Poll::Ready(Ok(()));
        }
        match &mut self.kind {
            Kind::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Kind::ServerTls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            Kind::ClientTls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
            Kind::Other(s) => s.as_mut().poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Kind::ServerTls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            Kind::ClientTls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
            Kind::Other(s) => s.as_mut().poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Tcp(s) => Pin::new(s).poll_write_vectored(cx, bufs),
            Kind::ServerTls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
            Kind::ClientTls(s) => Pin::new(s.as_mut()).poll_write_vectored(cx, bufs),
            Kind::Other(s) => s.as_mut().poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.kind {
            Kind::Tcp(s) => s.is_write_vectored(),
            Kind::ServerTls(s) => s.is_write_vectored(),
            Kind::ClientTls(s) => s.is_write_vectored(),
            Kind::Other(s) => s.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Tcp(s) => Pin::new(s).poll_flush(cx),
            Kind::ServerTls(s) => Pin::new(s.as_mut()).poll_flush(cx),
            Kind::ClientTls(s) => Pin::new(s.as_mut()).poll_flush(cx),
            Kind::Other(s) => s.as_mut().poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Tcp(s) => ready!(Pin::new(s).poll_shutdown(cx))?,
            Kind::ServerTls(s) => ready!(Pin::new(s.as_mut()).poll_shutdown(cx))?,
            Kind::ClientTls(s) => ready!(Pin::new(s.as_mut()).poll_shutdown(cx))?,
            Kind::Other(s) => ready!(s.as_mut().poll_shutdown(cx))?,
        }
        Poll::Ready(Ok(()))
    }
}
