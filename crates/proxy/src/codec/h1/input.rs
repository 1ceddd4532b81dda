//! Reading: a buffer that grows with what comes, and the bodies in it.

use crate::io::Io;
use bytes::BytesMut;
use selvedge_wire::http1::{ChunkError, ChunkedDecoder, Decoded, Framing};
use std::{
    future::Future,
    io,
    pin::pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncReadExt;

/// What the first read of a message makes room for: most messages fit, body and all.
const FIRST_READ: usize = 8 * 1024;
/// What a read of a body that keeps filling the buffer makes room for: fewer system calls; more gains nothing.
const MOST_READ: usize = 64 * 1024;

/// A read buffer. Bytes taken out of it share its memory.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) bytes: BytesMut,
    /// Room for the next read.
    room: usize,
    /// What was read last was acknowledged to the peer.
    acknowledged: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), room: FIRST_READ, acknowledged: true }
    }
}

impl Input {
    /// Reads once; 0 is the end. What may be in the buffer at once is up to the caller.
    pub(super) fn poll_read(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // No buffer is made before there is something to put into it, where the socket can tell.
        if self.bytes.capacity() == 0 && io.is_plain_tcp() {
            ready!(io.poll_readable(cx))?;
        }
        if self.bytes.capacity() - self.bytes.len() < self.room / 2 {
            self.bytes.reserve(self.room);
        }
        // Reading once into a buffer keeps nothing in its future, so it can be made anew for each poll.
        let read = {
            let read = pin!(io.read_buf(&mut self.bytes));
            ready!(read.poll(cx))
        };
        if self.bytes.len() == self.bytes.capacity() {
            self.room = (self.room * 2).min(MOST_READ);
        }
        self.acknowledged = false;
        Poll::Ready(read)
    }

    /// As `poll_read`, when the rest of a message is waited for. A peer that writes a message in pieces and has not set
    /// TCP_NODELAY sends none before the last is acknowledged (Nagle, RFC 9293 3.7.4), and the kernel would take 40 ms to.
    pub(super) fn poll_rest(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = self.poll_read(io, cx);
        if read.is_pending() && !std::mem::replace(&mut self.acknowledged, true) {
            io.acknowledge();
        }
        read
    }

    /// Gives the memory back, unless there is something in it.
    pub(super) fn release(&mut self) {
        if self.bytes.is_empty() {
            *self = Self::default();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A body that is being read.
#[derive(Debug)]
pub(super) enum BodyReader {
    /// So many bytes are to come.
    Length(u64),
    Chunked(ChunkedDecoder),
    /// Everything until the connection ends.
    Close,
}

impl BodyReader {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Tunnel => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(ChunkedDecoder::new()),
            Framing::Close => Self::Close,
        }
    }

    /// Takes the next piece from the front of `buffer`.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, ChunkError> {
        match self {
            Self::Length(0) => Ok(Decoded::Done(None)),
            Self::Chunked(decoder) => decoder.decode(buffer),
            _ if buffer.is_empty() => Ok(Decoded::Incomplete),
            Self::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= take as u64;
                Ok(Decoded::Data(buffer.split_to(take).freeze()))
            }
            Self::Close => Ok(Decoded::Data(buffer.split().freeze())),
        }
    }

    /// Whether everything has been taken, so that the buffer begins with what follows the body.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.is_done(),
            Self::Close => false,
        }
    }

    /// The bytes that are still to come, when that was announced.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Close => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::future::poll_fn;
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    #[tokio::test]
    async fn a_piece_of_a_message_is_acknowledged_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, peer) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut io, mut peer) = (Io::from(ours.unwrap()), peer.unwrap().0);
        let prompt = |io: &Io| SockRef::from(io.tcp().unwrap()).tcp_quickack().unwrap();
        let mut input = Input::default();
        // Until the kernel takes it for a conversation, in which what is sent acknowledges what was read.
        let talk = async {
            while prompt(&io) {
                peer.write_all(b"?").await.unwrap();
                assert_eq!(poll_fn(|cx| input.poll_read(&mut io, cx)).await.unwrap(), 1);
                io.write_all(b"!").await.unwrap();
                peer.read_u8().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), talk).await.expect("it does so at some time");
        peer.write_all(b"HTTP/1.1 200 OK").await.unwrap();
        poll_fn(|cx| input.poll_read(&mut io, cx)).await.unwrap();
        let waiting = poll_fn(|cx| Poll::Ready(input.poll_read(&mut io, cx).is_pending())).await;
        assert!(waiting && !prompt(&io), "nothing more is expected");
        let waiting = poll_fn(|cx| Poll::Ready(input.poll_rest(&mut io, cx).is_pending())).await;
        assert!(waiting && prompt(&io), "the rest is expected");
    }
}
