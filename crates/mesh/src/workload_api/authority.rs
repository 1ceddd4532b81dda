//! Makes `:authority` readable for `h2`, whatever the client has put there.
//!
//! gRPC's C core (Python, C++, Ruby …) sends the path of a Unix socket as authority, percent-encoded
//! (`run%2Fspire%2Fagent.sock`). That is no authority of a URI, and `h2` resets such streams. On a socket with one service
//! the authority means nothing, so each literal value of it (RFC 7541 section 6.2) is replaced by one letter.
//! Both ends' tables stay in step: entries keep their order, and ours are smaller, so that none is evicted that the client
//! still refers to.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What stands for every authority.
const INSTEAD: &[u8] = &[1, b'w'];

/// `:authority` as a string of its own, plain and in Huffman code, each with its length.
const NAMES: [&[u8]; 2] = [b"\x0a:authority", &[0x88, 0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f]];

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// Larger frames are passed on as they are, for `h2` to refuse (RFC 9113 section 4.2).
const MAX_FRAME: usize = 16 * 1024;

const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A connection whose client may say anything as authority.
pub(super) struct AnyAuthority<T> {
    io: T,
    rewriter: Rewriter,
    read: Vec<u8>,
}

impl<T> AnyAuthority<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, rewriter: Rewriter::new(), read: vec![0; 4096] }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for AnyAuthority<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.rewriter.give(buf) {
                return Poll::Ready(Ok(()));
            }
            let mut read = ReadBuf::new(&mut this.read);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // Half a frame at the end is of no use to anybody.
                return Poll::Ready(Ok(()));
            }
            this.rewriter.take(read.filled());
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: Connected> Connected for AnyAuthority<T> {
    type ConnectInfo = T::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

/// Frames in, frames out.
struct Rewriter {
    /// Bytes that go through as they come.
    pass: usize,
    /// The beginning of a frame; at most one whole frame and what was read with it.
    held: Vec<u8>,
    out: Vec<u8>,
    given: usize,
}

impl Rewriter {
    fn new() -> Self {
        Self { pass: PREFACE, held: Vec::new(), out: Vec::new(), given: 0 }
    }

    /// Fills `buf` with what is done; false when nothing is.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let left = &self.out[self.given..];
        if left.is_empty() {
            return false;
        }
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        self.given += count;
        if self.given == self.out.len() {
            self.out.clear();
            self.given = 0;
        }
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        loop {
            let through = self.pass.min(self.held.len());
            self.out.extend(self.held.drain(..through));
            self.pass -= through;
            if self.pass > 0 || self.held.len() < FRAME_HEADER {
                return;
            }
            let length = usize::from(self.held[0]) << 16 | usize::from(self.held[1]) << 8 | usize::from(self.held[2]);
            let (kind, flags) = (self.held[3], self.held[4]);
            if kind != HEADERS || flags & END_HEADERS == 0 || length > MAX_FRAME {
                self.pass = FRAME_HEADER + length;
                continue;
            }
            if self.held.len() < FRAME_HEADER + length {
                return;
            }
            let frame: Vec<u8> = self.held.drain(..FRAME_HEADER + length).collect();
            match rewrite_frame(&frame, flags) {
                Some(frame) => self.out.extend(frame),
                // Broken: `h2` says so.
                None => self.out.extend(frame),
            }
        }
    }
}

/// What comes out when bytes come in these pieces: for fuzzing.
pub fn rewritten<'b>(pieces: impl IntoIterator<Item = &'b [u8]>) -> Vec<u8> {
    let (mut rewriter, mut out) = (Rewriter::new(), Vec::new());
    for piece in pieces {
        rewriter.take(piece);
        out.append(&mut rewriter.out);
    }
    out
}

/// A HEADERS frame without padding, and with another authority.
fn rewrite_frame(frame: &[u8], flags: u8) -> Option<Vec<u8>> {
    let mut payload = &frame[FRAME_HEADER..];
    let mut padding = 0;
    if flags & PADDED != 0 {
        let (first, rest) = payload.split_first()?;
        (padding, payload) = (usize::from(*first), rest);
    }
    let priority;
    (priority, payload) = payload.split_at_checked(if flags & PRIORITY == 0 { 0 } else { 5 })?;
    let block = rewrite_block(payload.get(..payload.len().checked_sub(padding)?)?)?;
    let length = u32::try_from(priority.len() + block.len()).ok()?.to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([HEADERS, flags & !PADDED]);
    out.extend(&frame[5..FRAME_HEADER]);
    out.extend(priority);
    out.extend(block);
    Some(out)
}

/// RFC 7541 section 6: all representations of a header block.
fn rewrite_block(block: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::with_capacity(block.len()), block);
    while let Some(first) = rest.first() {
        let before = rest;
        let (name, after) = match first {
            0x80.. => (None, integer(rest, 7)?.1),
            0x40..0x80 => literal(rest, 6)?,
            0x20..0x40 => (None, integer(rest, 5)?.1),
            _ => literal(rest, 4)?,
        };
        rest = after;
        let whole = &before[..before.len() - rest.len()];
        match name {
            // The value begins where the integer has ended.
            Some(value) if !is_empty(value) => {
                out.extend(&whole[..before.len() - value.len()]);
                out.extend(INSTEAD);
            }
            _ => out.extend(whole),
        }
    }
    Some(out)
}

fn is_empty(string: &[u8]) -> bool {
    string.first().is_some_and(|b| b & 0x7f == 0)
}

/// A literal field: if it is an authority, where its value begins; and what follows the field.
fn literal(bytes: &[u8], prefix: u8) -> Option<(Option<&[u8]>, &[u8])> {
    let (name, rest) = integer(bytes, prefix)?;
    let (authority, rest) = match name {
        0 => {
            let after = skip_string(rest)?;
            (NAMES.contains(&&rest[..rest.len() - after.len()]), after)
        }
        index => (index == 1, rest),
    };
    Some((authority.then_some(rest), skip_string(rest)?))
}

fn skip_string(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = integer(bytes, 7)?;
    rest.get(length..)
}

/// RFC 7541 section 5.1; up to 21 bits and the prefix, which is more than a frame holds.
fn integer(bytes: &[u8], prefix: u8) -> Option<(usize, &[u8])> {
    let (first, mut rest) = bytes.split_first()?;
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*first) & most;
    if value < most {
        return Some((value, rest));
    }
    for shift in [0, 7, 14] {
        let next;
        (next, rest) = rest.split_first()?;
        value += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Some((value, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([HEADERS, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    /// Passes bytes through in pieces of `size`.
    fn through(bytes: &[u8], size: usize) -> Vec<u8> {
        let (mut rewriter, mut out) = (Rewriter::new(), Vec::new());
        for piece in bytes.chunks(size) {
            rewriter.take(piece);
            let mut space = [0; 64];
            let mut buf = ReadBuf::new(&mut space);
            while rewriter.give(&mut buf) {
                out.extend(buf.filled());
                buf.clear();
            }
        }
        out
    }

    #[test]
    fn the_authority_is_replaced_and_nothing_else() {
        let mut authority = vec![0x41, 9];
        authority.extend(b"tmp%2Fa.s");
        // :method POST (indexed), a literal name and value, an authority without indexing, a size update.
        let block = [
            &[0x83][..],
            &authority,
            b"@\x0a:authority\x05a%2Fb",
            &[0, 1, b'a', 1, b'b', 0x01, 0x82, 0xff, 0xff, 0x3f, 0x00],
        ]
        .concat();
        let instead =
            [&[0x83, 0x41, 1, b'w'][..], b"@\x0a:authority\x01w", &[0, 1, b'a', 1, b'b', 0x01, 1, b'w', 0x3f, 0x00]]
                .concat();
        assert_eq!(rewrite_block(&block).unwrap(), instead);
        let mut stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut wanted = stream.clone();
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 9];
        let priority = [0, 0, 0, 0, 5];
        let padded = [&[3][..], &priority, &block, &[0; 3]].concat();
        for (sent, seen) in [
            (settings.to_vec(), settings.to_vec()),
            (frame(END_HEADERS, &block), frame(END_HEADERS, &instead)),
            (
                frame(END_HEADERS | PADDED | PRIORITY, &padded),
                frame(END_HEADERS | PRIORITY, &[&priority[..], &instead].concat()),
            ),
            (frame(0, &block), frame(0, &block)),
        ] {
            stream.extend(sent);
            wanted.extend(seen);
        }
        for size in [1, 2, 7, 64, stream.len()] {
            assert_eq!(through(&stream, size), wanted, "in pieces of {size}");
        }
    }

    #[test]
    fn broken_blocks_go_through_as_they_are() {
        for block in [&[0x41][..], &[0x41, 0x7f, 0xff, 0xff, 0xff], &[0x41, 5, b'a'], &[0x00, 9, b'a'], &[0xff]] {
            assert_eq!(rewrite_block(block), None);
            let stream = [&[b'x'; PREFACE][..], &frame(END_HEADERS, block)].concat();
            assert_eq!(through(&stream, 5), stream);
        }
        let padding = frame(END_HEADERS | PADDED, &[9, 0x83]);
        let stream = [&[b'x'; PREFACE][..], &padding].concat();
        assert_eq!(through(&stream, 3), stream);
    }
}
