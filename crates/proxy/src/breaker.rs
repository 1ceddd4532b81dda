//! The limits of a cluster (circuit breaker): requests and retries in flight, connections, and the retry budget.
//! All of it is shared by the workers and made of atomics; only waiting for a connection at the limit takes a lock.

use crate::{Error, error::Kind, error::Side, telemetry};
use selvedge_compile::snapshot::RetryBudget;
use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
use tokio::time::Instant;

/// Something of which only so many may exist at once.
#[derive(Debug)]
pub struct Limit {
    used: AtomicU32,
    max: AtomicU32,
    /// Times it was refused.
    refused: AtomicU64,
    /// For messages, in the plural: `requests`.
    what: &'static str,
    counted: telemetry::Limit,
}

/// One of a [`Limit`]; gives it back when dropped.
#[derive(Debug)]
pub struct Permit(Arc<Limit>);

impl Limit {
    pub fn new(what: &'static str, max: u32, counted: telemetry::Limit) -> Arc<Self> {
        Arc::new(Self { used: AtomicU32::new(0), max: AtomicU32::new(max), refused: AtomicU64::new(0), what, counted })
    }

    /// A lower limit refuses new ones; those that exist stay.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    pub fn acquire(self: &Arc<Self>, cluster: &str) -> Result<Permit, Error> {
        let max = self.max.load(Ordering::Relaxed);
        if self.used.fetch_add(1, Ordering::Relaxed) < max {
            return Ok(Permit(self.clone()));
        }
        self.used.fetch_sub(1, Ordering::Relaxed);
        Err(self.refuse(cluster))
    }

    /// Counts a refusal and says so.
    pub fn refuse(&self, cluster: &str) -> Error {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.counted.hit();
        let message = format!("cluster {cluster} is at its limit of {} {}", self.max(), self.what);
        Error::new(Kind::Overflow, Side::Us, message)
    }

    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Seconds over which requests are counted for the retry budget.
const WINDOW: u64 = 10;

/// Requests and retries of the last ten seconds.
#[derive(Debug)]
pub struct Budget {
    start: Instant,
    requests: Window,
    retries: Window,
    refused: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        let (requests, retries) = Default::default();
        Self { start: Instant::now(), requests, retries, refused: AtomicU64::new(0) }
    }
}

impl Budget {
    pub fn request(&self) {
        self.requests.add(self.second());
    }

    /// Takes a retry from the budget: retries stay below `percent` of the requests in the window, plus
    /// `min_per_second` for clusters with little traffic; `in_flight` of fewer than `min_concurrency` always leaves
    /// room for one.
    pub fn try_retry(&self, budget: &RetryBudget, in_flight: u32) -> bool {
        let second = self.second();
        let share = self.requests.sum(second) * u64::from(budget.percent) / 100;
        let allowed = share + u64::from(budget.min_per_second) * WINDOW;
        if in_flight >= budget.min_concurrency && self.retries.sum(second) >= allowed {
            self.refused.fetch_add(1, Ordering::Relaxed);
            telemetry::Limit::RetryBudget.hit();
            return false;
        }
        self.retries.add(second);
        true
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn second(&self) -> u64 {
        self.start.elapsed().as_secs()
    }
}

/// One slot per second, each tagged with its second (upper half), so that nobody has to clear old ones.
#[derive(Debug, Default)]
struct Window([AtomicU64; WINDOW as usize]);

impl Window {
    fn add(&self, second: u64) {
        let slot = &self.0[(second % WINDOW) as usize];
        let value = slot.load(Ordering::Relaxed);
        if value >> 32 == second & 0xffff_ffff {
            slot.fetch_add(1, Ordering::Relaxed);
        } else {
            // Who loses this race is not counted: one request a second at most.
            let fresh = (second << 32) | 1;
            let _ = slot.compare_exchange(value, fresh, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn sum(&self, second: u64) -> u64 {
        let recent = |value: &u64| second.wrapping_sub(value >> 32) & 0xffff_ffff < WINDOW;
        self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(recent).map(|value| value & 0xffff_ffff).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn permits_come_back() {
        let limit = Limit::new("requests", 2, telemetry::Limit::ClusterRequests);
        let (first, _second) = (limit.acquire("a").unwrap(), limit.acquire("a").unwrap());
        let error = limit.acquire("shop/cart:80").unwrap_err();
        assert_eq!(error.to_string(), "cluster shop/cart:80 is at its limit of 2 requests");
        drop(first);
        assert!(limit.acquire("a").is_ok());
        assert_eq!((limit.used(), limit.refused()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_follows_the_requests_of_ten_seconds() {
        let budget = Budget::default();
        let config = RetryBudget { percent: 20, min_per_second: 0, min_concurrency: 0 };
        assert!(!budget.try_retry(&config, 0));
        (0..100).for_each(|_| budget.request());
        assert_eq!((0..50).filter(|_| budget.try_retry(&config, 0)).count(), 20);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(!budget.try_retry(&config, 0));
        (0..5).for_each(|_| budget.request());
        assert!(budget.try_retry(&config, 0));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(!budget.try_retry(&config, 0), "the hundred are forgotten, as are their retries, one is used");
        let three = RetryBudget { min_concurrency: 3, ..config };
        assert_eq!([0, 2, 3].map(|in_flight| budget.try_retry(&three, in_flight)), [true, true, false]);
        assert!(budget.try_retry(&RetryBudget { percent: 0, min_per_second: 1, min_concurrency: 0 }, 0));
    }
}
