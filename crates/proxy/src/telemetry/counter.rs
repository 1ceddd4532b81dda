//! Counters and histograms that cost a few nanoseconds: sharded by worker, on their own cache lines, relaxed.

use crate::worker::{WorkerCount, WorkerId};
use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// A count that one shard holds.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn inc(&self) {
        self.add(1);
    }

    /// For gauges. A gauge may go up on one worker and down on another: only the sum over all shards means anything,
    /// and wrapping arithmetic keeps it exact.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
}

/// Kept apart from its neighbours, so that workers do not fight over a cache line (128: adjacent-line prefetch).
#[repr(align(128))]
#[derive(Debug, Default)]
struct Padded<T>(T);

/// One `T` per worker, made when a worker first touches it: what is idle costs a pointer.
#[derive(Debug)]
pub struct Sharded<T>(Box<[OnceLock<Box<Padded<T>>>]>);

impl<T: Default> Sharded<T> {
    pub fn new(workers: WorkerCount) -> Self {
        Self((0..workers.0.max(1)).map(|_| OnceLock::new()).collect())
    }

    pub fn shard(&self, worker: WorkerId) -> &T {
        // The control runtime has no shard of its own; sharing one is merely slower.
        &self.0[worker.0 % self.0.len()].get_or_init(Box::default).0
    }

    pub fn shards(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(|shard| shard.get().map(|s| &s.0))
    }

    /// The sum of one count over all shards.
    pub fn sum(&self, field: impl Fn(&T) -> &Count) -> u64 {
        self.shards().fold(0, |sum, shard| sum.wrapping_add(field(shard).get()))
    }
}

/// Upper bounds of the duration buckets in microseconds; one more bucket holds what is longer.
pub const DURATION_BOUNDS: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// [`DURATION_BOUNDS`] as `le` labels, in seconds.
pub const DURATION_LABELS: [&str; 16] = [
    "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30",
    "60",
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Count; DURATION_BOUNDS.len() + 1],
    sum_micros: Count,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[DURATION_BOUNDS.partition_point(|bound| *bound < micros)].inc();
        self.sum_micros.add(micros);
    }

    /// Adds this shard to `counts` and returns its sum in seconds.
    pub fn add_to(&self, counts: &mut [u64; DURATION_BOUNDS.len() + 1]) -> f64 {
        for (total, bucket) in counts.iter_mut().zip(&self.buckets) {
            *total += bucket.get();
        }
        self.sum_micros.get() as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_labels_agree() {
        for (bound, label) in DURATION_BOUNDS.iter().zip(DURATION_LABELS) {
            assert_eq!(*bound as f64 / 1e6, label.parse::<f64>().unwrap());
        }
        let h = Histogram::default();
        for d in [0, 500, 501, 60_000_000, 60_000_001, u64::MAX] {
            h.observe(Duration::from_micros(d));
        }
        let mut counts = [0; 17];
        h.add_to(&mut counts);
        assert_eq!((counts[0], counts[1], counts[15], counts[16]), (2, 1, 1, 2));
    }

    #[test]
    fn shards_sum_up_and_idle_ones_are_not_made() {
        let s = Sharded::<Count>::new(WorkerCount(4));
        s.shard(WorkerId(1)).inc();
        s.shard(WorkerId(3)).inc();
        s.shard(WorkerId(2)).dec();
        assert_eq!(s.shards().count(), 3);
        assert_eq!(s.sum(|c| c), 1);
        s.shard(WorkerId(usize::MAX)).inc();
        assert_eq!(s.sum(|c| c), 2);
    }
}
