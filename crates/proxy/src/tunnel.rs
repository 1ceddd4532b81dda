//! Bytes both ways between two connections: TCP and TLS routes, WebSocket and other upgrades, CONNECT.

use crate::{
    drain::Drain,
    io::Io,
    telemetry::{Limit, Progress},
    tls,
};
use socket2::SockRef;
use std::{
    cell::Cell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Instant, sleep_until, timeout},
};

/// How a tunnel ended.
#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    /// What the operating system said, for resets.
    pub error: Option<io::Error>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides have closed.
    Closed,
    /// The client (first connection) broke off.
    DownstreamReset,
    /// The upstream (second connection) broke off.
    UpstreamReset,
    /// No byte moved for the idle timeout.
    Idle,
    /// No byte moved for [`DRAIN_QUIET`] while draining.
    Drained,
    /// It is not allowed any more.
    Cut,
}

/// While draining, a tunnel that is silent for this long is closed: its end is then as gentle as it gets, while at the
/// deadline of the drain it might be cut in the middle of something.
pub const DRAIN_QUIET: Duration = Duration::from_secs(5);

/// Bytes read at once: with the head of its DATA frame, what was read fills two records of TLS, which is what a session holds
/// (`tls::BUFFER_LIMIT`). One buffer per thread serves all tunnels; a tunnel owns memory only for what its reader has not taken
/// yet.
pub(crate) const BUFFER: usize = 2 * 16 * 1024 - 9;

/// Moves this often per turn at most, so that one fast tunnel does not hold up its worker.
const MAX_MOVES: usize = 16;

/// What is tried to end both sides in an orderly way after a timeout may take this long.
const GOODBYE: Duration = Duration::from_secs(1);

/// Copies until both sides have closed, one has broken off, or nothing moves for `idle` (zero: no limit).
///
/// The end of one direction is passed on as such (half-close), and so is a reset. Bytes are counted in `progress` when
/// they have been written.
pub async fn copy(downstream: Io, upstream: Io, idle: Duration, progress: &Progress, drain: Drain) -> Outcome {
    copy_until(downstream, upstream, idle, progress, drain, std::future::pending::<()>()).await
}

/// As [`copy`], until `cut` comes back: both sides are reset then.
pub async fn copy_until<T>(
    downstream: Io,
    upstream: Io,
    idle: Duration,
    progress: &Progress,
    mut drain: Drain,
    cut: impl Future<Output = T>,
) -> Outcome {
    let mut cut = std::pin::pin!(cut);
    // A year stands for ever: timers cannot hold more than that everywhere.
    let idle = if idle.is_zero() { Duration::from_secs(365 * 24 * 3600) } else { idle };
    let mut tunnel = Tunnel { downstream, upstream, up: Pump::default(), down: Pump::default(), moved: false };
    let mut last = Instant::now();
    let mut limit = (idle, End::Idle);
    let mut timer = std::pin::pin!(sleep_until(last + idle));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            outcome = poll_fn(|cx| tunnel.poll(cx, progress, &mut last)) => return tunnel.finish(outcome).await,
            _ = cut.as_mut() => return tunnel.finish(Outcome { end: End::Cut, error: None }).await,
            () = timer.as_mut() => {
                if Instant::now() >= last + limit.0 {
                    if limit.1 == End::Idle {
                        Limit::StreamIdle.hit();
                    }
                    return tunnel.finish(Outcome { end: limit.1, error: None }).await;
                }
                timer.as_mut().reset(last + limit.0);
            }
            () = drain.draining(), if !draining => {
                draining = true;
                if DRAIN_QUIET < idle {
                    limit = (DRAIN_QUIET, End::Drained);
                }
                timer.as_mut().reset(last + limit.0);
            }
        }
    }
}

struct Tunnel {
    downstream: Io,
    upstream: Io,
    up: Pump,
    down: Pump,
    moved: bool,
}

impl Tunnel {
    fn poll(&mut self, cx: &mut Context<'_>, progress: &Progress, last: &mut Instant) -> Poll<Outcome> {
        self.moved = false;
        let up = self.up.poll(cx, &mut self.downstream, &mut self.upstream, &mut self.moved, |n| progress.received(n));
        let down = self.down.poll(cx, &mut self.upstream, &mut self.downstream, &mut self.moved, |n| progress.sent(n));
        if self.moved {
            *last = Instant::now();
        }
        let end = match (up, down) {
            (Poll::Ready(Err(error)), _) => Outcome { end: End::DownstreamReset, error: Some(error) },
            (_, Poll::Ready(Err(error))) => Outcome { end: End::UpstreamReset, error: Some(error) },
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => self.closed(),
            _ => return Poll::Pending,
        };
        Poll::Ready(end)
    }

    /// Both directions have ended; one that could not be written to its end was broken off by its reader.
    fn closed(&mut self) -> Outcome {
        if let Some(error) = self.up.refused.take() {
            return Outcome { end: End::UpstreamReset, error: Some(error) };
        }
        match self.down.refused.take() {
            Some(error) => Outcome { end: End::DownstreamReset, error: Some(error) },
            None => Outcome { end: End::Closed, error: None },
        }
    }

    /// Passes the end on to whoever has not caused it.
    async fn finish(mut self, outcome: Outcome) -> Outcome {
        match outcome.end {
            End::Closed => {}
            End::DownstreamReset => reset(&self.upstream),
            End::UpstreamReset => reset(&self.downstream),
            End::Cut => {
                reset(&self.upstream);
                reset(&self.downstream);
            }
            End::Idle | End::Drained => {
                let both = async { tokio::join!(self.downstream.shutdown(), self.upstream.shutdown()) };
                // Who does not take the goodbye is dropped without.
                let _ = timeout(GOODBYE, both).await;
            }
        }
        outcome
    }
}

/// Lets the connection end with a reset when it is dropped, as its counterpart did: a client that sees an orderly end
/// would take half an answer for a whole one.
pub(crate) fn reset(io: &Io) {
    if let Some(tcp) = io.tcp() {
        // Where it cannot be set the connection ends in an orderly way.
        let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
    }
}

/// One direction.
#[derive(Default)]
struct Pump {
    /// Read but not yet written, from `written` on.
    rest: Vec<u8>,
    written: usize,
    /// Written but perhaps not flushed.
    dirty: bool,
    stage: Stage,
    /// The writing side does not take any more.
    refused: Option<io::Error>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The reading side has ended; the writing side is to be told.
    Closing,
    Done,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// The thread's buffer, taken out while it is in use; large enough for any datagram.
pub(crate) struct Scratch(pub Box<[u8]>);

impl Scratch {
    pub(crate) fn take() -> Self {
        Self(SCRATCH.take().unwrap_or_else(|| vec![0; 64 * 1024].into_boxed_slice()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A thread that is about to end may have no place for it.
        let _ = SCRATCH.try_with(|slot| slot.set(Some(std::mem::take(&mut self.0))));
    }
}

impl Pump {
    /// Moves what can be moved. An error is one of the reading side.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Io,
        to: &mut Io,
        moved: &mut bool,
        count: impl Fn(u64),
    ) -> Poll<io::Result<()>> {
        if self.stage == Stage::Done {
            return Poll::Ready(Ok(()));
        }
        let mut scratch = Scratch::take();
        for _ in 0..MAX_MOVES {
            while self.written < self.rest.len() {
                let n = match ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.written..])) {
                    Ok(0) => return self.refuse(io::ErrorKind::WriteZero.into()),
                    Ok(n) => n,
                    Err(error) => return self.refuse(error),
                };
                self.written += n;
                self.dirty = true;
                *moved = true;
                count(n as u64);
            }
            (self.rest, self.written) = (Vec::new(), 0);
            if self.stage == Stage::Closing {
                let shut = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.stage = Stage::Done;
                // Somebody who is already gone need not be told.
                drop(shut);
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scratch.0[..BUFFER]);
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Pending => return self.flush(cx, to),
                Poll::Ready(Ok(())) if buf.filled().is_empty() => self.stage = Stage::Closing,
                Poll::Ready(Ok(())) => self.pass(cx, to, buf.filled(), moved, &count),
                Poll::Ready(Err(error)) if tls::is_unclean_close(&error) => self.stage = Stage::Closing,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes at once what was read, and keeps only what is not taken.
    fn pass(&mut self, cx: &mut Context<'_>, to: &mut Io, bytes: &[u8], moved: &mut bool, count: &impl Fn(u64)) {
        *moved = true;
        let taken = match Pin::new(to).poll_write(cx, bytes) {
            Poll::Ready(Ok(n)) => n,
            // An error comes again when the rest is written.
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        count(taken as u64);
        self.dirty |= taken > 0;
        if taken < bytes.len() {
            self.rest = bytes[taken..].to_vec();
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Poll<io::Result<()>> {
        if self.dirty {
            match ready!(Pin::new(to).poll_flush(cx)) {
                Ok(()) => self.dirty = false,
                Err(error) => return self.refuse(error),
            }
        }
        Poll::Pending
    }

    /// The writing side is gone. What it has sent before is still passed on: the other direction decides the end.
    fn refuse(&mut self, error: io::Error) -> Poll<io::Result<()>> {
        (self.rest, self.written) = (Vec::new(), 0);
        self.stage = Stage::Done;
        self.refused = Some(error);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain::Drainer;
    use selvedge_testkit::tcp::{self, Server};
    use std::sync::Arc;
    use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinHandle};

    const LONG: Duration = Duration::from_secs(3600);

    /// A client whose bytes are tunnelled to `server`.
    async fn tunnel(server: &Server, idle: Duration) -> (TcpStream, JoinHandle<Outcome>, Arc<Progress>, Drainer) {
        let (client, downstream) = tcp::pair().await;
        let upstream = TcpStream::connect(server.address).await.expect("a connection");
        let drainer = Drainer::default();
        let (progress, drain) = (Arc::new(Progress::default()), drainer.subscribe());
        let counted = progress.clone();
        let task = tokio::spawn(async move { copy(downstream.into(), upstream.into(), idle, &counted, drain).await });
        (client, task, progress, drainer)
    }

    #[tokio::test]
    async fn half_close_lets_the_answer_through() {
        let server = Server::echo_at_end().await;
        let (mut client, task, progress, _drainer) = tunnel(&server, LONG).await;
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
        client.write_all(&sent).await.expect("write");
        client.shutdown().await.expect("shutdown");
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("read");
        assert!(got == sent);
        assert_eq!(task.await.expect("an outcome").end, End::Closed);
        assert_eq!(progress.totals(), (3_000_000, 3_000_000));
    }

    #[tokio::test]
    async fn large_streams_cross_in_both_directions() {
        let server = Server::echo("hello").await;
        let (client, task, ..) = tunnel(&server, LONG).await;
        let (mut read, mut write) = client.into_split();
        let write = async move {
            for _ in 0..100 {
                write.write_all(&[7; 50_000]).await.expect("write");
            }
            write.shutdown().await.expect("shutdown");
        };
        let mut got = Vec::new();
        let (read, ()) = tokio::join!(read.read_to_end(&mut got), write);
        assert_eq!(read.expect("read"), 5_000_005);
        assert!(got.starts_with(b"hello\x07"));
        assert_eq!(task.await.expect("an outcome").end, End::Closed);
    }

    #[tokio::test]
    async fn resets_are_passed_on() {
        let server = Server::tcp(|mut stream| async move {
            let mut byte = [0];
            let _ = stream.read(&mut byte).await;
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        })
        .await;
        let (mut client, task, ..) = tunnel(&server, LONG).await;
        client.write_all(b"x").await.expect("write");
        let error = client.read(&mut [0; 8]).await.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(task.await.expect("an outcome").end, End::UpstreamReset);
        let server = Server::echo("").await;
        let (client, task, ..) = tunnel(&server, LONG).await;
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("linger");
        drop(client);
        assert_eq!(task.await.expect("an outcome").end, End::DownstreamReset);
    }

    #[tokio::test]
    async fn silence_ends_after_the_idle_timeout() {
        let server = Server::echo("").await;
        let (mut client, task, ..) = tunnel(&server, Duration::from_secs(1)).await;
        client.write_all(b"x").await.expect("write");
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("an orderly end");
        assert_eq!(got, b"x");
        assert_eq!(task.await.expect("an outcome").end, End::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_ends_silent_tunnels() {
        let (_a, downstream) = tokio::io::duplex(8);
        let (_b, upstream) = tokio::io::duplex(8);
        let drainer = Drainer::default();
        let drain = drainer.subscribe();
        let start = Instant::now();
        let progress = Progress::default();
        let tunnel = copy(Io::other(downstream), Io::other(upstream), LONG, &progress, drain);
        let later = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drainer.start();
        };
        let (outcome, ()) = tokio::join!(tunnel, later);
        assert_eq!(outcome.end, End::Drained);
        assert!(start.elapsed() < Duration::from_secs(70), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_everything() {
        let (mut a, downstream) = tokio::io::duplex(16);
        let (mut b, upstream) = tokio::io::duplex(64 * 1024);
        let drainer = Drainer::default();
        let progress = Progress::default();
        let tunnel = copy(Io::other(downstream), Io::other(upstream), LONG, &progress, drainer.subscribe());
        let talk = async move {
            b.write_all(&[5; 40_000]).await.expect("write");
            drop(b);
            let mut got = Vec::new();
            let mut piece = [0; 7];
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                match a.read(&mut piece).await.expect("read") {
                    0 => break got.len(),
                    n => got.extend_from_slice(&piece[..n]),
                }
            }
        };
        let (outcome, got) = tokio::join!(tunnel, talk);
        assert_eq!(got, 40_000);
        assert_eq!(outcome.end, End::Closed);
    }
}
