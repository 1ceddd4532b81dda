//! Waiting for an exchange to move on, with an eye on whether its client is still there.
//!
//! The end of a client's sending side (FIN, or close_notify in TLS) does not tell whether it has only nothing more to say,
//! or has closed the connection: only the answer to something that is written would. So such a client is given time for its
//! response ([`HttpOptions::half_close_timeout`]), counted anew whenever some of it is written, as a client that has left
//! answers that with a reset.
//!
//! [`HttpOptions::half_close_timeout`]: selvedge_compile::snapshot::HttpOptions

use super::{
    link::Wire,
    timer::{Timer, due},
};
use crate::{Error, error::Kind, io::Peer, telemetry::Limit};
use std::{
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// How often a client is looked at that reading tells nothing about: its end lies behind bytes that nobody reads at the
/// moment, or it has been read, and a reset may follow.
const LOOK: Duration = Duration::from_secs(1);

/// The timer of a connection, and what is known of its client.
pub(super) struct Watch {
    pub(super) timer: Timer,
    /// How long a client that has ended its side is waited for.
    patience: Duration,
    /// When the client was last looked at without reading.
    looked: Instant,
}

impl Watch {
    /// A watch over a connection that may be idle until `idle`.
    pub(super) fn new(now: Instant, idle: Instant, patience: Duration) -> Self {
        Self { timer: Timer::new(idle), patience, looked: now }
    }

    /// Ready when `over` has come, or with an error when the client has left, or may have and had time enough. Something
    /// has moved at `from` for the last time.
    pub(super) fn poll(
        &mut self,
        wire: &mut Wire,
        from: Instant,
        over: Instant,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        loop {
            let leave = wire.ended_at().map(|ended| due(from.max(ended), self.patience));
            let mut next = over.min(leave.unwrap_or(over));
            if wire.is_open() || leave.is_some() {
                next = next.min(self.looked.max(from) + LOOK);
            }
            ready!(self.timer.poll(next, cx));
            let now = Instant::now();
            if now >= over {
                return Poll::Ready(Ok(()));
            }
            if leave.is_some_and(|leave| now >= leave) {
                Limit::HalfClose.hit();
                return Poll::Ready(Err(gone(None)));
            }
            self.looked = now;
            match wire.io.peer() {
                Peer::There => {}
                Peer::Ended => wire.end_seen(now),
                Peer::Gone => return Poll::Ready(Err(gone(None))),
            }
        }
    }
}

/// The client has left.
pub(super) fn gone(error: Option<std::io::Error>) -> Error {
    let lost = Error::downstream(Kind::Cancelled, "the client closed the connection before it had its response");
    match error {
        Some(error) => lost.with_source(error),
        None => lost,
    }
}
