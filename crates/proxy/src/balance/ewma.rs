//! The latency of an endpoint as peak EWMA sees it (Finagle, linkerd): it jumps up at once and comes down slowly.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Microseconds as `f32` above, milliseconds of the clock below, so that one compare-and-swap updates both.
/// Zero means never measured.
#[derive(Debug, Default)]
pub struct Ewma(AtomicU64);

/// An endpoint that nobody has measured but that has work already is believed to be slow, so that it is not
/// flooded before its first answer.
const UNKNOWN_BUSY: f64 = 1e9;

impl Ewma {
    /// Adds a measurement at `now` (milliseconds of the cluster's clock).
    pub fn observe(&self, latency: Duration, now: u64, decay: Duration) {
        let sample = (latency.as_micros() as f32).max(1.0);
        let update = |packed| Some(pack(next(packed, sample, now, decay), now));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }

    /// Expected microseconds until one more request is answered: latency by queue length.
    pub fn cost(&self, active: u32, now: u64, decay: Duration) -> f64 {
        match self.0.load(Ordering::Relaxed) {
            0 if active == 0 => 0.0,
            0 => UNKNOWN_BUSY + f64::from(active),
            packed => {
                // Without news a bad memory fades, or an endpoint that was slow once would never be asked again.
                let faded = value(packed) * weight(packed, now, decay);
                f64::from(faded.max(1.0)) * f64::from(active + 1)
            }
        }
    }

    /// The last value, for status pages.
    pub fn latency(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            packed => Some(Duration::from_micros(value(packed) as u64)),
        }
    }
}

fn next(packed: u64, sample: f32, now: u64, decay: Duration) -> f32 {
    if packed == 0 || sample >= value(packed) {
        return sample;
    }
    let weight = weight(packed, now, decay);
    value(packed) * weight + sample * (1.0 - weight)
}

fn pack(value: f32, now: u64) -> u64 {
    (u64::from(value.to_bits()) << 32) | (now & 0xffff_ffff)
}

fn value(packed: u64) -> f32 {
    f32::from_bits((packed >> 32) as u32)
}

/// How much of the old value remains: `exp(-elapsed / decay)`.
fn weight(packed: u64, now: u64, decay: Duration) -> f32 {
    // The clock wraps after 49 days; a measurement from the future is one that raced with us.
    let elapsed = (now as u32).wrapping_sub(packed as u32);
    if elapsed > u32::MAX / 2 {
        return 1.0;
    }
    (-(elapsed as f32) / (decay.as_millis() as f32).max(1.0)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    #[test]
    fn peaks_are_taken_at_once_and_fade() {
        let ewma = Ewma::default();
        ewma.observe(Duration::from_millis(10), 1_000, DECAY);
        ewma.observe(Duration::from_millis(500), 1_100, DECAY);
        assert_eq!(ewma.latency(), Some(Duration::from_millis(500)));
        ewma.observe(Duration::from_millis(10), 11_100, DECAY);
        let after = ewma.latency().unwrap().as_millis();
        assert!((185..=195).contains(&after), "one decay later a third of the peak remains: {after}");
    }

    #[test]
    fn cost_counts_the_queue() {
        let ewma = Ewma::default();
        assert_eq!(ewma.cost(0, 0, DECAY), 0.0);
        assert!(ewma.cost(1, 0, DECAY) > 1e8);
        ewma.observe(Duration::from_millis(2), 50, DECAY);
        assert_eq!(ewma.cost(0, 50, DECAY), 2000.0);
        assert_eq!(ewma.cost(3, 50, DECAY), 8000.0);
        assert!(ewma.cost(0, 50 + 20_000, DECAY) < 300.0, "fades without news");
    }

    #[test]
    fn a_measurement_out_of_order_changes_nothing_for_the_worse() {
        let ewma = Ewma::default();
        ewma.observe(Duration::from_millis(100), 5_000, DECAY);
        ewma.observe(Duration::from_millis(1), 4_000, DECAY);
        assert_eq!(ewma.latency(), Some(Duration::from_millis(100)));
    }
}
