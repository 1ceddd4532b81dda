//! Writing: what is small is gathered, what is big is written from where it lies, in one system call.

use crate::io::Io;
use bytes::{Buf, Bytes, BytesMut};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Body data up to this size is copied behind what is already waiting; copying it is cheaper than another slice.
const COPY: usize = 4 * 1024;
/// Gathered bytes beyond which nothing more is taken before they are written.
const GATHER: usize = 16 * 1024;

/// Bytes that wait to be written, in this order: `small`, `big`, `tail`.
#[derive(Debug, Default)]
pub(super) struct Out {
    small: BytesMut,
    big: Bytes,
    tail: &'static [u8],
    written: u64,
}

impl Out {
    /// Where heads and other small things go. Must not be called while [`Out::is_full`].
    pub(super) fn small(&mut self) -> &mut BytesMut {
        debug_assert!(self.big.is_empty() && self.tail.is_empty());
        &mut self.small
    }

    /// Appends body data and what follows it. Must not be called while [`Out::is_full`].
    pub(super) fn data(&mut self, data: Bytes, tail: &'static [u8]) {
        debug_assert!(self.big.is_empty() && self.tail.is_empty());
        if data.len() <= COPY {
            self.small.reserve(data.len() + tail.len());
            self.small.extend_from_slice(&data);
            self.small.extend_from_slice(tail);
        } else {
            self.big = data;
            self.tail = tail;
        }
    }

    /// Nothing may be added before something has been written.
    pub(super) fn is_full(&self) -> bool {
        !self.big.is_empty() || !self.tail.is_empty() || self.small.len() >= GATHER
    }

    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.big.is_empty() && self.tail.is_empty()
    }

    /// Bytes that were accepted by the connection since this was made.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Writes until nothing waits.
    pub(super) fn poll_write(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = if self.big.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.small))?
            } else {
                let slices = [IoSlice::new(&self.small), IoSlice::new(&self.big), IoSlice::new(self.tail)];
                let slices = if self.small.is_empty() { &slices[1..] } else { &slices[..] };
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, slices))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written as u64;
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        let small = written.min(self.small.len());
        self.small.advance(small);
        written -= small;
        let big = written.min(self.big.len());
        self.big.advance(big);
        if self.big.is_empty() {
            // The memory goes back to its read buffer at once.
            self.big = Bytes::new();
        }
        self.tail = &self.tail[written - big..];
    }

    /// Gives the memory back, unless something waits.
    pub(super) fn release(&mut self) {
        if self.is_empty() {
            self.small = BytesMut::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn order_is_kept_through_a_narrow_pipe() {
        let (near, mut far) = tokio::io::duplex(7);
        let mut io = Io::other(near);
        let mut out = Out::default();
        out.small().extend_from_slice(b"head ");
        out.data(Bytes::from_static(b"small "), b"tail ");
        assert!(!out.is_full());
        out.data(Bytes::from(vec![b'x'; COPY + 1]), b" end");
        assert!(out.is_full());
        let write = async move {
            poll_fn(|cx| out.poll_write(&mut io, cx)).await.unwrap();
            assert!(out.is_empty());
            out.written()
        };
        let mut got = Vec::new();
        let (written, read) = tokio::join!(write, far.read_to_end(&mut got));
        read.unwrap();
        let want = [b"head small tail ".as_slice(), &vec![b'x'; COPY + 1], b" end"].concat();
        assert_eq!(got, want);
        assert_eq!(written, want.len() as u64);
    }
}
