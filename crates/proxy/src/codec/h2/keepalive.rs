//! PING after silence.

use h2::{Ping, PingPong};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// Asks a silent peer whether it is still there.
pub(super) struct KeepAlive {
    interval: Duration,
    timeout: Duration,
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    seen: u64,
}

impl KeepAlive {
    /// `None` when `interval` is zero.
    pub(super) fn new(interval: Duration, timeout: Duration, pings: impl FnOnce() -> Option<PingPong>) -> Option<Self> {
        if interval.is_zero() {
            return None;
        }
        let pings = pings()?;
        Some(Self { interval, timeout, pings, timer: Box::pin(sleep(interval)), waiting: false, seen: 0 })
    }

    /// Ready when the peer is dead. `received` grows with every byte from the peer.
    pub(super) fn poll_dead(&mut self, cx: &mut Context<'_>, received: u64) -> Poll<()> {
        loop {
            if self.waiting {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.arm(self.interval);
                        continue;
                    }
                    // The connection is closing, which its own future tells.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return self.timer.as_mut().poll(cx),
                }
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if received != self.seen {
                self.seen = received;
                self.arm(self.interval);
            } else if self.pings.send_ping(Ping::opaque()).is_ok() {
                self.waiting = true;
                self.arm(self.timeout);
            } else {
                return Poll::Pending;
            }
        }
    }

    fn arm(&mut self, after: Duration) {
        self.timer.as_mut().reset(Instant::now() + after);
    }
}
