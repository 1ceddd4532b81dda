//! One timer per connection whose deadline moves with every message.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// What "no timeout" is for a timer.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// A timer that is armed seldom: a deadline that moves back is only noticed when the timer fires, so that a busy
/// connection does not touch the timer wheel for each message.
pub(super) struct Timer(Pin<Box<Sleep>>);

impl Timer {
    pub(super) fn new(due: Instant) -> Self {
        Self(Box::pin(sleep_until(due)))
    }

    /// Ready when `due` has passed; otherwise the task is woken at `due` at the latest.
    pub(super) fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if due < self.0.deadline() {
            self.0.as_mut().reset(due);
        }
        loop {
            ready!(self.0.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(due);
        }
    }
}

/// The deadline `after` `from`; zero is none.
pub(super) fn due(from: Instant, after: Duration) -> Instant {
    from + if after.is_zero() { NEVER } else { after.min(NEVER) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_is_kept() {
        let start = Instant::now();
        let mut timer = Timer::new(start + Duration::from_secs(1));
        poll_fn(|cx| timer.poll(start + Duration::from_secs(5), cx)).await;
        assert_eq!(start.elapsed().as_secs(), 5);
        poll_fn(|cx| timer.poll(start + Duration::from_secs(9), cx)).await;
        assert_eq!(start.elapsed().as_secs(), 9);
        let mut timer = Timer::new(due(start, Duration::ZERO));
        poll_fn(|cx| timer.poll(start + Duration::from_secs(10), cx)).await;
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}
