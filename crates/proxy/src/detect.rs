//! What a connection speaks of which nobody has said it: judged by its first bytes, without ever making anybody wait
//! who waits for the other side to speak first.
//!
//! Neither side is held up. As long as the client is silent the connection to the server is made and kept beside it;
//! whoever speaks first decides. A server that does (SMTP, MySQL, FTP, SSH) is passed on at once and the connection is
//! bytes from then on. A client that does (HTTP, TLS, PostgreSQL, Redis) is judged by what it says; when that is HTTP, the
//! connection to the server, on which nothing was sent, is closed again.

use crate::io::Io;
use bytes::{Bytes, BytesMut};
use selvedge_wire::client_hello::{self, Sniff};
use std::{future::Future, io, pin::pin, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, sleep_until},
};

/// How long first bytes that could still become HTTP may stay without a continuation before they are passed on as what
/// they are. A client writes its first line with one call, so that it is here whole, or as soon as lost packets have
/// been sent again, which takes little more than a round trip inside a data centre; and a protocol whose first message
/// looks like the beginning of an HTTP request is delayed by no more than this, once.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// How long the client may be silent before the connection to the server is made. Clients that speak first have sent
/// something by then, and mostly before we have accepted their connection; so that of HTTP connections few cost a
/// connection to the server that is closed unused, and clients of servers that speak first do not notice it.
pub const AHEAD: Duration = Duration::from_millis(10);

/// After so long a silence of both sides the connection is one of bytes: until then a client that has opened its HTTP
/// connection ahead of need is still recognised.
pub const SILENCE: Duration = Duration::from_secs(30);

/// How long the rest of a ClientHello is waited for, as listeners do by default.
const HELLO: Duration = Duration::from_secs(10);

/// The longest beginning that is looked at: a request line of 8 KiB, the longest that listeners take by default, or a
/// ClientHello.
const MOST: usize = client_hello::MAX_BYTES;
/// The longest first line that could still become one of HTTP.
const MAX_LINE: usize = 8 * 1024;

/// What the first bytes of a client are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    Http1,
    /// With prior knowledge (RFC 9113 section 3.3).
    Http2,
    /// Mutual TLS that is meant for us.
    Mutual,
    /// Anything else, such as TLS of the application.
    Bytes,
    /// A TLS ClientHello that is not complete: its client waits for an answer, and its server for the rest.
    Hello,
    /// More bytes are needed. Should none come: whether what is here is more likely HTTP/1.1 than not.
    Unsure {
        http: bool,
    },
}

/// The connection preface of HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest method that is taken for one.
const MAX_METHOD: usize = 24;

/// Judges the first bytes. Whatever has a method and a target in its first line, and `HTTP/1.` behind them, is HTTP/1.1.
pub fn guess(bytes: &[u8]) -> Guess {
    if PREFACE.starts_with(bytes) {
        return Guess::Unsure { http: false };
    }
    if bytes.starts_with(PREFACE) {
        return Guess::Http2;
    }
    let line = &bytes[..bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len())];
    let whole = line.len() < bytes.len();
    let mut words = line.splitn(3, |b| *b == b' ');
    let method = words.next().unwrap_or_default();
    if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|b| b.is_ascii_uppercase() || *b == b'-') {
        return Guess::Bytes;
    }
    let Some(target) = words.next() else { return if whole { Guess::Bytes } else { Guess::Unsure { http: false } } };
    if !target.iter().all(|b| b.is_ascii_graphic() || *b >= 0x80) {
        return Guess::Bytes;
    }
    const VERSION: &[u8] = b"HTTP/1.";
    match words.next() {
        Some(version) if version.starts_with(VERSION) => Guess::Http1,
        Some(version) if !whole && VERSION.starts_with(version) => Guess::Unsure { http: likely(target) },
        None if !whole && bytes.len() < MAX_LINE => Guess::Unsure { http: likely(target) },
        None if !whole && likely(target) => Guess::Http1,
        _ => Guess::Bytes,
    }
}

fn likely(target: &[u8]) -> bool {
    target.first() == Some(&b'/') || target.starts_with(b"http://")
}

/// Judges the first bytes of a connection to a workload, where mutual TLS may come: a ClientHello that offers `alpn`.
pub fn guess_mutual(bytes: &[u8], alpn: &[u8]) -> Guess {
    match client_hello::sniff(bytes) {
        Ok(Sniff::Done(hello)) if hello.alpn.iter().any(|offered| offered == alpn) => Guess::Mutual,
        Ok(Sniff::Incomplete) if bytes.is_empty() => Guess::Unsure { http: false },
        Ok(Sniff::Incomplete) => Guess::Hello,
        // A hello that we cannot read may be one that the application can.
        Ok(Sniff::Done(_)) | Err(_) => Guess::Bytes,
        Ok(Sniff::NotTls) => guess(bytes),
    }
}

/// What a connection turned out to be. `U` is what the way to the server yields.
pub enum Detected<U> {
    Http {
        http2: bool,
    },
    Mutual,
    /// With the way to the server, if that was begun (and succeeded or failed) meanwhile.
    Bytes(Option<U>),
}

/// An open way to a server, on which its first bytes can be seen.
pub trait Ahead {
    /// `None`: the way could not be opened, so there is nothing to be seen.
    fn io(&mut self) -> Option<&mut Io>;
}

/// Listens to both sides until one has spoken. What was read is put back in front of the side that it came from.
/// `open` makes the way to the server; it is not begun before the client has been silent for [`AHEAD`], and not at all
/// unless `ahead`.
pub async fn detect<U: Ahead>(
    client: &mut Io,
    judge: impl Fn(&[u8]) -> Guess,
    ahead: bool,
    open: impl Future<Output = U>,
) -> Detected<U> {
    let mut read = BytesMut::new();
    let detected = listen(client, &mut read, judge, ahead, open).await;
    if !read.is_empty() {
        client.unread(read.freeze());
    }
    detected
}

/// What a client says that has to speak first, judged by `judge` until it is sure (`Some`), the client has ended, or
/// `until` has passed (`None`).
pub async fn first_words<T>(
    client: &mut Io,
    until: Instant,
    most: usize,
    mut judge: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut read = BytesMut::new();
    let mut found = None;
    let mut timer = pin!(sleep_until(until));
    while found.is_none() && read.len() < most {
        tokio::select! {
            biased;
            more = more(client, &mut read) => match more {
                Ok(1..) => found = judge(&read),
                _ => break,
            },
            () = timer.as_mut() => break,
        }
    }
    if !read.is_empty() {
        client.unread(read.freeze());
    }
    found
}

async fn listen<U: Ahead>(
    client: &mut Io,
    read: &mut BytesMut,
    judge: impl Fn(&[u8]) -> Guess,
    ahead: bool,
    open: impl Future<Output = U>,
) -> Detected<U> {
    let start = Instant::now();
    let mut open = pin!(open);
    let mut upstream: Option<U> = None;
    let mut timer = pin!(sleep_until(start + AHEAD));
    let (mut began, mut silent) = (false, false);
    let mut unsure = None;
    loop {
        tokio::select! {
            biased;
            more = more(client, read) => match more {
                Ok(1..) => match judge(read) {
                    Guess::Http1 => return Detected::Http { http2: false },
                    Guess::Http2 => return Detected::Http { http2: true },
                    Guess::Mutual => return Detected::Mutual,
                    Guess::Unsure { .. } | Guess::Hello if read.len() >= MOST => break,
                    Guess::Unsure { http } => {
                        if unsure.is_none() {
                            timer.as_mut().reset(Instant::now() + PATIENCE);
                        }
                        unsure = Some(http);
                    }
                    Guess::Hello => {
                        timer.as_mut().reset(start + HELLO);
                        unsure = Some(false);
                    }
                    Guess::Bytes => break,
                },
                // The end, or an error, is found again by whoever reads next.
                _ => break,
            },
            first = spoken(upstream.as_mut()), if upstream.is_some() && unsure.is_none() => {
                if let Some(io) = upstream.as_mut().and_then(Ahead::io) {
                    io.unread(first);
                }
                break;
            }
            opened = open.as_mut(), if began && upstream.is_none() => {
                let mut opened = opened;
                let failed = opened.io().is_none();
                upstream = Some(opened);
                if failed && unsure.is_none() {
                    break;
                }
            }
            () = timer.as_mut() => match unsure {
                Some(true) => return Detected::Http { http2: false },
                Some(false) => break,
                None if silent => break,
                None => {
                    (began, silent) = (ahead, true);
                    timer.as_mut().reset(start + SILENCE);
                }
            },
        }
    }
    if began && upstream.is_none() {
        upstream = Some(open.await);
    }
    Detected::Bytes(upstream)
}

/// The first bytes of the server; none are its end. Never resolves when there is no server.
async fn spoken<U: Ahead>(upstream: Option<&mut U>) -> Bytes {
    let Some(io) = upstream.and_then(Ahead::io) else { return std::future::pending().await };
    let mut read = BytesMut::new();
    // An error shows again when the tunnel reads.
    let _ = more(io, &mut read).await;
    read.freeze()
}

/// Bytes read at once: a request line and its first fields mostly fit.
const READ: usize = 1024;

async fn more(io: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> io::Result<usize> {
    read.reserve(READ);
    io.take(READ as u64).read_buf(read).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    struct Way(Option<Io>);

    impl Ahead for Way {
        fn io(&mut self) -> Option<&mut Io> {
            self.0.as_mut()
        }
    }

    fn pipe() -> (DuplexStream, Io) {
        let (a, b) = duplex(64 * 1024);
        (a, Io::other(b))
    }

    #[test]
    fn first_bytes_are_judged() {
        let unsure = |http| Guess::Unsure { http };
        let cases: [(&[u8], Guess); 24] = [
            (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", Guess::Http1),
            (b"GET / HTTP/1.", Guess::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Guess::Http2),
            (b"PRI * HTTP/1.1\r\n", Guess::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Guess::Http1),
            (b"CONNECT a:1 HTTP/1.1\r\n", Guess::Http1),
            (b"GET http://a/ HTTP/1.0\r\n", Guess::Http1),
            (b"P", unsure(false)),
            (b"PRI * HTTP/2.0\r\n", unsure(false)),
            (b"PO", unsure(false)),
            (b"POST ", unsure(false)),
            (b"POST /a", unsure(true)),
            (b"POST /a HTT", unsure(true)),
            (b"OPTIONS *", unsure(false)),
            (b"\x16\x03\x01\x02\0\x01", Guess::Bytes),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Guess::Bytes),
            (b"*1\r\n$4\r\nPING\r\n", Guess::Bytes),
            (b"PING\r\n", Guess::Bytes),
            (b"SET a b\r\n", Guess::Bytes),
            (b"get a\r\n", Guess::Bytes),
            (b"NICK me\r\n", Guess::Bytes),
            (b"OPTIONS rtsp://a RTSP/1.0\r\n", Guess::Bytes),
            (b"GET /\r\n", Guess::Bytes),
            (b"\x10\x0c\0\x04MQTT", Guess::Bytes),
        ];
        for (bytes, expected) in cases {
            assert_eq!(guess(bytes), expected, "{:?}", bytes.escape_ascii().to_string());
            // No shorter beginning is judged otherwise.
            for end in 1..bytes.len() {
                let early = guess(&bytes[..end]);
                assert!(early == expected || matches!(early, Guess::Unsure { .. }), "{bytes:?} {end} {early:?}");
            }
        }
        assert_eq!(guess(&[b"GET /".as_slice(), &[b'a'; MAX_LINE]].concat()), Guess::Http1);
    }

    #[tokio::test(start_paused = true)]
    async fn http_is_seen_at_once_and_nothing_of_it_is_lost() {
        let (mut client, mut io) = pipe();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
        drop(client);
        let never = async { panic!("the server is not needed") };
        let detected = detect::<Way>(&mut io, guess, true, never).await;
        assert!(matches!(detected, Detected::Http { http2: false }));
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.expect("read");
        assert_eq!(all, b"GET / HTTP/1.1\r\n\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_speaks_first_is_heard_without_delay() {
        let (_client, mut io) = pipe();
        let (mut server, upstream) = pipe();
        server.write_all(b"220 mail\r\n").await.expect("write");
        let start = Instant::now();
        let Detected::Bytes(Some(Way(Some(mut upstream)))) =
            detect(&mut io, guess, true, ready(Way(Some(upstream)))).await
        else {
            panic!("bytes");
        };
        assert!(start.elapsed() <= AHEAD + Duration::from_millis(1), "{:?}", start.elapsed());
        let mut got = [0; 10];
        upstream.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"220 mail\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_connection_is_still_http() {
        let (mut client, mut io) = pipe();
        let (_server, upstream) = pipe();
        let late = async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("write");
        };
        let (detected, ()) = tokio::join!(detect(&mut io, guess, true, ready(Way(Some(upstream)))), late);
        assert!(matches!(detected, Detected::Http { http2: false }));
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_unclear_waits_no_longer_than_patience() {
        for (words, http) in [("PO", false), ("POST /half", true)] {
            let (mut client, mut io) = pipe();
            client.write_all(words.as_bytes()).await.expect("write");
            let start = Instant::now();
            let detected = detect::<Way>(&mut io, guess, true, pending()).await;
            assert_eq!(matches!(detected, Detected::Http { .. }), http, "{words}");
            assert!(start.elapsed() <= PATIENCE + Duration::from_millis(1), "{:?}", start.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_ends_are_bytes() {
        let (_client, mut io) = pipe();
        let (_server, upstream) = pipe();
        assert!(matches!(detect(&mut io, guess, true, ready(Way(Some(upstream)))).await, Detected::Bytes(Some(_))));
        let (client, mut io) = pipe();
        drop(client);
        assert!(matches!(detect::<Way>(&mut io, guess, true, pending()).await, Detected::Bytes(None)));
        let (_client, mut io) = pipe();
        assert!(matches!(detect(&mut io, guess, true, ready(Way(None))).await, Detected::Bytes(Some(Way(None)))));
    }
}
