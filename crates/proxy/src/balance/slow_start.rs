//! A new endpoint's share grows over a window, as Envoy computes it.

use selvedge_compile::snapshot::SlowStart;

/// The share in `[min_percent, 1]` of its weight that an endpoint gets `age` milliseconds after it began to take
/// traffic: `max(min_percent, (age / window) ^ (1 / aggression))`.
pub fn factor(config: &SlowStart, age: u64) -> f64 {
    let window = config.window.as_millis() as f64;
    if age as f64 >= window {
        return 1.0;
    }
    let aggression = if config.aggression > 0.0 { config.aggression } else { 1.0 };
    // Envoy starts at one second, so that an endpoint is not left without any request.
    let progress = (age.max(1) as f64 / window).powf(1.0 / aggression);
    progress.max(f64::from(config.min_percent.clamp(1, 100)) / 100.0).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn grows_to_one() {
        let config = SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_percent: 10 };
        assert_eq!(factor(&config, 0), 0.1);
        assert_eq!(factor(&config, 50_000), 0.5);
        assert_eq!(factor(&config, 100_000), 1.0);
        let slow = SlowStart { aggression: 0.5, ..config };
        assert_eq!(factor(&slow, 50_000), 0.25);
        let none = SlowStart { window: Duration::ZERO, ..config };
        assert_eq!(factor(&none, 0), 1.0);
    }
}
