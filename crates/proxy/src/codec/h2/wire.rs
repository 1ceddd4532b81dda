//! What can be seen of a connection below `h2`: whether anything arrives, and whether a header block has begun and
//! does not end (a slow sequence of CONTINUATION frames, invisible above `h2`). Closing lingers, so that the last
//! GOAWAY reaches a peer that is still sending instead of being destroyed by a TCP reset.

use crate::{io::Io, telemetry::Limit};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long and how much is read and thrown away after our last byte.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// What a client sends before its first frame (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) struct Wire {
    io: Io,
    state: Arc<WireState>,
    frames: Option<Frames>,
    /// What is still to come of the preface. `h2` checks it too, but drops the connection without a farewell.
    preface: &'static [u8],
    /// What `h2` refuses by itself shows in what it writes only.
    refusals: Refusals,
    closing: Option<Closing>,
}

/// Read by the connection's task; written by the same task below `h2`.
#[derive(Debug, Default)]
pub(super) struct WireState {
    received: AtomicU64,
    /// Twice the number of header blocks that have begun, minus one while the last is incomplete.
    block: AtomicU64,
    /// Streams whose trailers begin with a pseudo-header field (RFC 9113 section 8.1), which `h2` passes over.
    malformed: Mutex<Vec<u32>>,
}

/// Streams with such trailers that nobody has read yet; more are not remembered.
const MOST_MALFORMED: usize = 1024;

struct Closing {
    timer: Pin<Box<Sleep>>,
    left: usize,
    shut: bool,
}

impl WireState {
    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Whether the trailers of a stream have been seen to be malformed.
    pub(super) fn take_malformed(&self, stream: u32) -> bool {
        let mut streams = self.malformed.lock().unwrap_or_else(PoisonError::into_inner);
        streams.iter().position(|seen| *seen == stream).map(|at| streams.swap_remove(at)).is_some()
    }

    fn malformed(&self, stream: u32) {
        let mut streams = self.malformed.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() < MOST_MALFORMED {
            streams.push(stream);
        }
    }

    /// Which header block is incomplete, if one is.
    pub(super) fn open_block(&self) -> Option<u64> {
        let block = self.block.load(Relaxed);
        (block % 2 == 1).then_some(block)
    }
}

impl Wire {
    /// A client's connection: watches for stalled header blocks and lingers on close.
    pub(super) fn server(io: Io) -> (Self, Arc<WireState>) {
        Self::new(io, PREFACE, Some(Frames::default()))
    }

    /// A connection to an upstream.
    pub(super) fn client(io: Io) -> (Self, Arc<WireState>) {
        Self::new(io, &[], None)
    }

    fn new(io: Io, preface: &'static [u8], frames: Option<Frames>) -> (Self, Arc<WireState>) {
        let state = Arc::new(WireState::default());
        (Self { io, state: state.clone(), frames, preface, refusals: Refusals::default(), closing: None }, state)
    }

    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closing = self.closing.get_or_insert_with(|| Closing {
            timer: Box::pin(sleep(LINGER)),
            left: LINGER_BYTES,
            shut: false,
        });
        // The deadline covers the shutdown as well: a TLS peer that does not read must not hold us.
        if closing.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !closing.shut {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            closing.shut = true;
        }
        let mut sink = [0u8; 8 * 1024];
        while closing.left > 0 {
            let mut buf = ReadBuf::new(&mut sink);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    closing.left = closing.left.saturating_sub(buf.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_some() {
            return this.poll_linger(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let mut new = &buf.filled()[before..];
        this.state.received.store(this.state.received.load(Relaxed).wrapping_add(new.len() as u64), Relaxed);
        if !this.preface.is_empty() {
            let n = this.preface.len().min(new.len());
            if new[..n] != this.preface[..n] {
                // Not HTTP/2: to `h2` this is the end of the connection.
                buf.set_filled(before);
                return this.poll_linger(cx);
            }
            this.preface = &this.preface[n..];
            new = &new[n..];
        }
        if let Some(frames) = &mut this.frames {
            frames.advance(new, &this.state);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        if this.frames.is_some() {
            this.refusals.advance(&buf[..written.min(buf.len())]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        if this.frames.is_some() {
            let mut left = written;
            for buf in bufs {
                let n = left.min(buf.len());
                this.refusals.advance(&buf[..n]);
                left -= n;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.frames.is_some() { self.poll_linger(cx) } else { Pin::new(&mut self.io).poll_shutdown(cx) }
    }
}

/// Follows frame boundaries (RFC 9113 section 4.1); judges nothing, which is the business of `h2`.
#[derive(Debug, Default)]
struct Frames {
    /// Bytes of payload still to pass over.
    skip: u32,
    head: [u8; HEAD],
    /// Bytes of `head` that are there.
    have: usize,
    /// The frame being passed over belongs to a header block, and whether it ends it.
    block: Option<bool>,
    /// The highest stream that the client has opened: another header block on one up to it is trailers.
    opened: u32,
    /// A trailer section that has just begun.
    trailers: Option<Trailers>,
}

const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// The first bytes of a trailer section.
#[derive(Debug)]
struct Trailers {
    stream: u32,
    /// Bytes of padding length and priority before it.
    before: u32,
    seen: [u8; 3],
    have: usize,
}

impl Trailers {
    /// Looks at the next bytes of the frame's payload; whether more are wanted.
    fn wants(&mut self, bytes: &[u8]) -> bool {
        let skipped = (self.before as usize).min(bytes.len());
        self.before -= skipped as u32;
        for &byte in bytes[skipped..].iter().take(self.seen.len() - self.have) {
            self.seen[self.have] = byte;
            self.have += 1;
        }
        self.have < self.seen.len()
    }

    /// Whether the first field (RFC 7541 section 6) is a pseudo-header field: those are the first 14 entries of the static
    /// table, and begin with a colon when they are spelled out (`0x5c` in seven bits of the Huffman code). One from the
    /// dynamic table is not recognised.
    fn is_pseudo(&self) -> bool {
        let [first, _, letter] = self.seen;
        let spelled = self.have == self.seen.len() && (letter == b':' || letter >> 1 == 0x5c);
        let index = match first {
            0x80.. => first & 0x7f,
            0x00 | 0x10 | 0x40 => return spelled,
            0x40.. => first & 0x3f,
            // A change of the table's size, which comes before any field.
            0x20.. => 0,
            _ => first & 0x0f,
        };
        (1..=14).contains(&index)
    }
}

impl Frames {
    fn advance(&mut self, mut bytes: &[u8], state: &WireState) {
        let block = &state.block;
        loop {
            let n = (self.skip as usize).min(bytes.len());
            if let Some(mut trailers) = self.trailers.take() {
                if trailers.wants(&bytes[..n]) && self.skip > n as u32 {
                    self.trailers = Some(trailers);
                } else if trailers.is_pseudo() {
                    state.malformed(trailers.stream);
                }
            }
            bytes = &bytes[n..];
            self.skip -= n as u32;
            if self.skip > 0 {
                return;
            }
            if self.block.take() == Some(true) {
                close(block);
            }
            if bytes.is_empty() {
                return;
            }
            let n = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have < HEAD {
                return;
            }
            self.have = 0;
            let [high, middle, low, kind, flags, id @ ..] = self.head;
            self.skip = u32::from_be_bytes([0, high, middle, low]);
            if matches!(kind, HEADERS | CONTINUATION) {
                if kind == HEADERS {
                    open(block);
                    self.begin(u32::from_be_bytes(id) & 0x7fff_ffff, flags);
                }
                self.block = Some(flags & END_HEADERS != 0);
            }
        }
    }

    fn begin(&mut self, stream: u32, flags: u8) {
        if stream > self.opened {
            self.opened = stream;
        } else {
            let padding = u32::from(flags & PADDED != 0);
            let priority = if flags & PRIORITY != 0 { 5 } else { 0 };
            self.trailers = Some(Trailers { stream, before: padding + priority, seen: [0; 3], have: 0 });
        }
    }
}

/// Counts what `h2` refuses by itself, which shows nowhere but in the frames it writes: streams, since the client has
/// as many open as it may (RFC 9113 section 5.1.2), and connections, with ENHANCE_YOUR_CALM and a word on why.
#[derive(Debug, Default)]
struct Refusals {
    /// Bytes of payload still to pass over.
    skip: u32,
    /// The frame's head, and for the frames of interest the first bytes of its payload.
    seen: [u8; HEAD + GOAWAY_SEEN],
    have: usize,
}

const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;
/// Last stream, error code, and enough of the debug data to tell one reason from another.
const GOAWAY_SEEN: usize = 8 + 15;

impl Refusals {
    fn advance(&mut self, bytes: &[u8]) {
        self.walk(bytes, &mut |limit| limit.hit());
    }

    fn walk(&mut self, mut bytes: &[u8], found: &mut impl FnMut(Limit)) {
        loop {
            let n = (self.skip as usize).min(bytes.len());
            self.skip -= n as u32;
            bytes = &bytes[n..];
            if bytes.is_empty() {
                return;
            }
            let n = (self.wanted() - self.have).min(bytes.len());
            self.seen[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            // Twice: with the head alone it was not known yet how much of the payload is wanted.
            if self.have < HEAD || self.have < self.wanted() {
                continue;
            }
            self.skip = self.length() - (self.have - HEAD) as u32;
            if let Some(limit) = self.limit() {
                found(limit);
            }
            self.have = 0;
        }
    }

    fn length(&self) -> u32 {
        let [high, middle, low, ..] = self.seen;
        u32::from_be_bytes([0, high, middle, low])
    }

    /// Bytes of this frame that are looked at, its head included.
    fn wanted(&self) -> usize {
        let most = match self.seen[3] {
            _ if self.have < HEAD => 0,
            RST_STREAM => 4,
            GOAWAY => GOAWAY_SEEN,
            _ => 0,
        };
        HEAD + most.min(self.length() as usize)
    }

    fn limit(&self) -> Option<Limit> {
        let payload = &self.seen[HEAD..self.have];
        let code = |at: usize| Some(u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?));
        match self.seen[3] {
            RST_STREAM if code(0)? == REFUSED_STREAM => Some(Limit::ConcurrentStreams),
            // Those without a word are ours, and counted where they are decided.
            GOAWAY if code(4)? == ENHANCE_YOUR_CALM && payload.len() > 8 => {
                let resets = [&b"too_many_resets"[..], b"too_many_intern"].contains(&&payload[8..]);
                Some(if resets { Limit::StreamResets } else { Limit::Http2Flood })
            }
            _ => None,
        }
    }
}

fn open(block: &AtomicU64) {
    let now = block.load(Relaxed);
    block.store(now + 1 + now % 2, Relaxed);
}

fn close(block: &AtomicU64) {
    let now = block.load(Relaxed);
    block.store(now + now % 2, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags, 0, 0, 0, 1]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn refusals_are_seen_whatever_the_pieces() {
        let goaway = |reason: u32, why: &[u8]| frame(GOAWAY, 0, &[&[0; 4], &reason.to_be_bytes()[..], why].concat());
        let mut bytes = frame(4, 0, b"");
        bytes.extend(frame(0, 0, b"data that is long enough to be skipped, more than is looked at of any frame"));
        bytes.extend(frame(RST_STREAM, 0, &REFUSED_STREAM.to_be_bytes()));
        bytes.extend(frame(RST_STREAM, 0, &8u32.to_be_bytes()));
        bytes.extend(frame(HEADERS, END_HEADERS, b"abc"));
        bytes.extend(goaway(ENHANCE_YOUR_CALM, b""));
        bytes.extend(goaway(0, b"too_many_resets"));
        bytes.extend(goaway(ENHANCE_YOUR_CALM, b"too_many_resets"));
        bytes.extend(goaway(ENHANCE_YOUR_CALM, b"something else that is longer than what is looked at"));
        bytes.extend(frame(RST_STREAM, 0, &REFUSED_STREAM.to_be_bytes()));
        let expected = [Limit::ConcurrentStreams, Limit::StreamResets, Limit::Http2Flood, Limit::ConcurrentStreams];
        for step in [1, 4, 7, bytes.len()] {
            let (mut refusals, mut found) = (Refusals::default(), Vec::new());
            bytes.chunks(step).for_each(|chunk| refusals.walk(chunk, &mut |limit| found.push(limit)));
            assert_eq!(found, expected, "in pieces of {step}");
        }
    }

    #[test]
    fn trailers_that_begin_with_a_pseudo_header_field_are_seen() {
        let block = |first: &[u8]| [&[0u8][..], first].concat();
        let cases: [(&[u8], bool); 10] = [
            (&[0x83], true),
            (&[0x02, 3, b'2', b'0', b'0'], true),
            (&[0x42, 3, b'2', b'0', b'0'], true),
            (b"\x00\x05:path\x01/", true),
            (b"\x40\x05:path\x01/", true),
            (&[0x00, 0x84, 0xb9, 0x58, 0x33, 0xff, 1, b'/'], true),
            (&[0x8f], false),
            (&[0xbe], false),
            (b"\x00\x01x\x01y", false),
            (b"", false),
        ];
        for (first, expected) in cases {
            for (flags, payload) in [(END_HEADERS | 1, first.to_vec()), (END_HEADERS | PADDED, block(first))] {
                let mut bytes = frame(HEADERS, END_HEADERS, &[0x83]);
                bytes.extend(frame(0, 0, b"data"));
                bytes.extend(frame(HEADERS, flags, &payload));
                bytes.extend(frame(0, 0, b"\x83"));
                for step in [1, 5, bytes.len()] {
                    let (state, mut frames) = (WireState::default(), Frames::default());
                    bytes.chunks(step).for_each(|chunk| frames.advance(chunk, &state));
                    assert_eq!(state.take_malformed(1), expected, "{first:x?} in pieces of {step}");
                    assert!(!state.take_malformed(1));
                }
            }
        }
    }

    #[test]
    fn header_blocks_are_followed_byte_by_byte() {
        let mut bytes = frame(4, 0, b"");
        bytes.extend(frame(0, 0, b"data"));
        bytes.extend(frame(HEADERS, 0, b"a"));
        bytes.extend(frame(CONTINUATION, 0, b""));
        let open_until = bytes.len() + HEAD + 2;
        bytes.extend(frame(CONTINUATION, END_HEADERS, b"xyz"));
        bytes.extend(frame(HEADERS, END_HEADERS | 1, b""));
        for step in [1, 7, bytes.len()] {
            let state = WireState::default();
            let mut frames = Frames::default();
            let mut opened = false;
            for (at, chunk) in bytes.chunks(step).enumerate() {
                frames.advance(chunk, &state);
                opened |= state.open_block().is_some();
                if step == 1 && at == open_until - 1 {
                    assert!(state.open_block().is_some(), "the block ends with its last byte, not before");
                }
            }
            assert_eq!(state.open_block(), None);
            assert_eq!(state.block.load(Relaxed), 4);
            assert_eq!(opened, step != bytes.len());
        }
    }
}
