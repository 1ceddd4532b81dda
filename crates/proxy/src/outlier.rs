//! Passive health: endpoints that fail real requests are ejected for a while, and come back through one request that
//! proves them (linkerd's probation). Counting is lock-free and belongs to the request path; deciding is rare, and
//! knows time only as a parameter.

use selvedge_compile::snapshot::OutlierDetection;
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How a request to an endpoint ended, as far as the endpoint's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer with this status.
    Status(u16),
    /// A TCP connection or TLS session could not be made.
    ConnectFailure,
    /// No answer in time.
    Timeout,
    /// The connection or stream died.
    Reset,
    /// Success that has no status (a TCP tunnel).
    Ok,
}

impl Outcome {
    fn is_local_failure(self) -> bool {
        matches!(self, Self::ConnectFailure | Self::Timeout | Self::Reset)
    }

    fn is_gateway_error(self) -> bool {
        matches!(self, Self::Status(502..=504)) || self.is_local_failure()
    }

    /// Counts as an error of the endpoint.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Status(500..)) || self.is_local_failure()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    Active,
    Ejected,
    /// The ejection is over; the next request decides.
    Probation,
    /// That request is on its way.
    Probing,
}

/// Which detector found an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detector {
    Consecutive5xx,
    ConsecutiveGatewayErrors,
    ConsecutiveLocalFailures,
    SuccessRate,
    /// The one request of the probation failed.
    Probation,
}

impl Detector {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive 5xx answers",
            Self::ConsecutiveGatewayErrors => "consecutive gateway errors",
            Self::ConsecutiveLocalFailures => "consecutive connection failures",
            Self::SuccessRate => "a success rate far below the others'",
            Self::Probation => "the request that was to prove it failed",
        }
    }
}

/// What an outcome calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    /// Eject, if the cluster can spare it.
    Eject(Detector),
    /// The probation is passed.
    Restore,
}

/// The counters and the standing of one endpoint.
#[derive(Debug, Default)]
pub struct Watch {
    standing: AtomicU8,
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Since the last interval.
    requests: AtomicU32,
    successes: AtomicU32,
    /// When the probing request was let through, in milliseconds of the cluster's clock.
    probing_since: AtomicU64,
    ejection: Mutex<Ejection>,
}

#[derive(Debug, Default)]
struct Ejection {
    until: Option<Instant>,
    /// Ejections that are still held against it; one is forgiven in each quiet interval.
    times: u32,
    detector: Option<Detector>,
}

impl Watch {
    pub fn standing(&self) -> Standing {
        match self.standing.load(Ordering::Acquire) {
            1 => Standing::Ejected,
            2 => Standing::Probation,
            3 => Standing::Probing,
            _ => Standing::Active,
        }
    }

    /// Counts an outcome. The common case, success without failures before it, writes nothing but the volume.
    pub fn observe(&self, outcome: Outcome, config: &OutlierDetection) -> Verdict {
        match self.standing() {
            Standing::Active => {}
            // Requests from before the ejection, or let through in a panic.
            Standing::Ejected | Standing::Probation => return Verdict::Nothing,
            Standing::Probing if outcome.is_failure() => return Verdict::Eject(Detector::Probation),
            Standing::Probing => return Verdict::Restore,
        }
        if config.success_rate.is_some() {
            self.requests.fetch_add(1, Ordering::Relaxed);
            if !outcome.is_failure() {
                self.successes.fetch_add(1, Ordering::Relaxed);
            }
        }
        let detectors = [
            (&self.consecutive_local, outcome.is_local_failure(), config.consecutive_local_failures),
            (&self.consecutive_gateway, outcome.is_gateway_error(), config.consecutive_gateway_errors),
            (&self.consecutive_5xx, outcome.is_failure(), config.consecutive_5xx),
        ];
        let names = [Detector::ConsecutiveLocalFailures, Detector::ConsecutiveGatewayErrors, Detector::Consecutive5xx];
        for ((counter, failed, threshold), detector) in detectors.into_iter().zip(names) {
            if !failed {
                if counter.load(Ordering::Relaxed) != 0 {
                    counter.store(0, Ordering::Relaxed);
                }
            } else if counter.fetch_add(1, Ordering::Relaxed) + 1 >= threshold && threshold > 0 {
                counter.store(0, Ordering::Relaxed);
                return Verdict::Eject(detector);
            }
        }
        Verdict::Nothing
    }

    /// Ejects for `base * 2^times`, up to the maximum. `None` when it is ejected already.
    pub fn eject(&self, detector: Detector, now: Instant, config: &OutlierDetection) -> Option<Duration> {
        let mut ejection = self.lock();
        if self.standing() == Standing::Ejected {
            return None;
        }
        let time = ejection_time(ejection.times, config);
        ejection.until = Some(now + time);
        ejection.times = ejection.times.saturating_add(1);
        ejection.detector = Some(detector);
        self.reset_counters();
        self.set(Standing::Ejected);
        Some(time)
    }

    pub fn restore(&self) {
        let mut ejection = self.lock();
        ejection.until = None;
        self.reset_counters();
        self.set(Standing::Active);
    }

    /// Takes the one request of the probation; only one caller gets it.
    pub fn claim_probe(&self, now: u64) -> bool {
        if self.standing.load(Ordering::Relaxed) != Standing::Probation as u8 {
            return false;
        }
        self.probing_since.store(now, Ordering::Relaxed);
        let (from, to) = (Standing::Probation as u8, Standing::Probing as u8);
        self.standing.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// What time alone changes: ejections end, probing requests that never reported are given up, old ejections are
    /// forgiven once per interval. True when the standing changed. `millis` is `now` on the cluster's clock.
    pub fn tick(&self, now: Instant, millis: u64, interval_over: bool) -> bool {
        match self.standing() {
            Standing::Active => {
                if interval_over {
                    let mut ejection = self.lock();
                    ejection.times = ejection.times.saturating_sub(1);
                }
                false
            }
            Standing::Ejected if self.lock().until.is_none_or(|until| now >= until) => {
                self.set(Standing::Probation);
                true
            }
            Standing::Probing if millis.saturating_sub(self.probing_since.load(Ordering::Relaxed)) > PROBE_LOST => {
                let (from, to) = (Standing::Probing as u8, Standing::Probation as u8);
                self.standing.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
            _ => false,
        }
    }

    /// Time left of an ejection, and what caused it.
    pub fn ejected(&self, now: Instant) -> Option<(Duration, &'static str)> {
        let ejection = self.lock();
        let left = ejection.until?.saturating_duration_since(now);
        Some((left, ejection.detector.map_or("unknown", Detector::describe)))
    }

    /// Successes and requests since the last call.
    pub fn take_rate(&self) -> (u32, u32) {
        (self.successes.swap(0, Ordering::Relaxed), self.requests.swap(0, Ordering::Relaxed))
    }

    fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
    }

    fn reset_counters(&self) {
        for counter in [&self.consecutive_5xx, &self.consecutive_gateway, &self.consecutive_local] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ejection> {
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds after which a probing request that has not reported is taken for lost.
const PROBE_LOST: u64 = 30_000;

fn ejection_time(times: u32, config: &OutlierDetection) -> Duration {
    let max = config.max_ejection_time.max(config.base_ejection_time);
    config.base_ejection_time.saturating_mul(1 << times.min(20)).min(max)
}

/// Whether one more of `total` endpoints may be ejected. At least one always may, but never the last that takes
/// traffic.
pub fn may_eject(ejected: usize, usable: usize, total: usize, config: &OutlierDetection) -> bool {
    let allowed = (total * usize::from(config.max_ejection_percent.min(100)) / 100).max(1);
    usable > 1 && ejected < allowed
}

/// Indices of those whose success rate is more than `stdev_factor` standard deviations below the mean. Rates are of
/// endpoints with enough volume only: `(successes, requests)`.
pub fn success_rate_outliers(rates: &[(u32, u32)], config: &OutlierDetection) -> Vec<usize> {
    let Some(config) = &config.success_rate else { return Vec::new() };
    let enough = |(_, requests): &(u32, u32)| *requests >= config.request_volume.max(1);
    let rate = |(successes, requests): &(u32, u32)| f64::from(*successes) / f64::from(*requests);
    let sample: Vec<f64> = rates.iter().filter(|r| enough(r)).map(rate).collect();
    if sample.is_empty() || sample.len() < config.minimum_hosts as usize {
        return Vec::new();
    }
    let mean = sample.iter().sum::<f64>() / sample.len() as f64;
    let variance = sample.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / sample.len() as f64;
    let least = mean - config.stdev_factor * variance.sqrt();
    (0..rates.len()).filter(|i| enough(&rates[*i]) && rate(&rates[*i]) < least).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_compile::snapshot::SuccessRate;

    fn config() -> OutlierDetection {
        OutlierDetection {
            consecutive_5xx: 3,
            consecutive_gateway_errors: 0,
            consecutive_local_failures: 2,
            success_rate: None,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(100),
            max_ejection_percent: 50,
        }
    }

    #[test]
    fn consecutive_failures_trip_and_success_resets() {
        let (watch, config) = (Watch::default(), config());
        for _ in 0..2 {
            assert_eq!(watch.observe(Outcome::Status(500), &config), Verdict::Nothing);
        }
        assert_eq!(watch.observe(Outcome::Status(200), &config), Verdict::Nothing);
        for _ in 0..2 {
            assert_eq!(watch.observe(Outcome::Status(503), &config), Verdict::Nothing);
        }
        assert_eq!(watch.observe(Outcome::Status(500), &config), Verdict::Eject(Detector::Consecutive5xx));
        assert_eq!(watch.observe(Outcome::Reset, &config), Verdict::Nothing);
        let verdict = watch.observe(Outcome::ConnectFailure, &config);
        assert_eq!(verdict, Verdict::Eject(Detector::ConsecutiveLocalFailures));
    }

    #[test]
    fn gateway_errors_are_their_own_detector() {
        let config = OutlierDetection { consecutive_gateway_errors: 2, consecutive_5xx: 10, ..config() };
        let watch = Watch::default();
        assert_eq!(watch.observe(Outcome::Status(502), &config), Verdict::Nothing);
        assert_eq!(watch.observe(Outcome::Status(500), &config), Verdict::Nothing, "a 500 ends the run");
        assert_eq!(watch.observe(Outcome::Status(503), &config), Verdict::Nothing);
        let verdict = watch.observe(Outcome::Timeout, &config);
        assert_eq!(verdict, Verdict::Eject(Detector::ConsecutiveGatewayErrors));
    }

    #[test]
    fn one_request_decides_the_probation() {
        let (watch, config, start) = (Watch::default(), config(), Instant::now());
        assert_eq!(watch.eject(Detector::Consecutive5xx, start, &config), Some(Duration::from_secs(30)));
        assert_eq!(watch.eject(Detector::Consecutive5xx, start, &config), None);
        assert_eq!(watch.observe(Outcome::Status(200), &config), Verdict::Nothing, "too late to matter");
        assert!(!watch.tick(start + Duration::from_secs(29), 29_000, true));
        assert!(!watch.claim_probe(29_000));
        assert!(watch.tick(start + Duration::from_secs(30), 30_000, true));
        assert!(watch.claim_probe(30_000) && !watch.claim_probe(30_000), "one only");
        assert_eq!(watch.observe(Outcome::Status(503), &config), Verdict::Eject(Detector::Probation));
        let now = start + Duration::from_secs(31);
        assert_eq!(watch.eject(Detector::Probation, now, &config), Some(Duration::from_secs(60)));
        assert!(watch.tick(now + Duration::from_secs(60), 91_000, true));
        assert!(watch.claim_probe(91_000));
        assert_eq!(watch.observe(Outcome::Status(404), &config), Verdict::Restore);
        watch.restore();
        assert_eq!(watch.standing(), Standing::Active);
        let now = start + Duration::from_secs(92);
        assert_eq!(watch.eject(Detector::Consecutive5xx, now, &config), Some(Duration::from_secs(100)), "capped");
    }

    #[test]
    fn a_lost_probe_is_repeated_and_quiet_intervals_forgive() {
        let (watch, config, start) = (Watch::default(), config(), Instant::now());
        watch.eject(Detector::SuccessRate, start, &config);
        watch.tick(start + Duration::from_secs(30), 30_000, true);
        assert!(watch.claim_probe(30_000));
        assert!(!watch.tick(start, 50_000, true));
        assert!(watch.tick(start, 60_001, true), "given up");
        assert!(watch.claim_probe(60_001));
        watch.restore();
        watch.tick(start, 70_000, true);
        assert_eq!(watch.eject(Detector::SuccessRate, start, &config), Some(Duration::from_secs(30)));
    }

    #[test]
    fn some_must_stay() {
        let config = config();
        assert!(!may_eject(0, 1, 1, &config), "never the last");
        assert!(may_eject(0, 2, 2, &config));
        assert!(!may_eject(1, 1, 2, &config));
        assert!(may_eject(4, 6, 10, &config) && !may_eject(5, 5, 10, &config));
        assert!(may_eject(0, 3, 3, &OutlierDetection { max_ejection_percent: 0, ..config }), "one always may be");
    }

    #[test]
    fn success_rates_far_below_the_mean_stand_out() {
        let rate = SuccessRate { minimum_hosts: 5, request_volume: 100, stdev_factor: 1.9 };
        let config = OutlierDetection { success_rate: Some(rate), ..config() };
        let mut rates = vec![(100, 100); 9];
        rates.push((40, 100));
        assert_eq!(success_rate_outliers(&rates, &config), [9]);
        rates[9] = (4, 10);
        assert!(success_rate_outliers(&rates, &config).is_empty(), "too little volume");
        assert!(success_rate_outliers(&rates[..4], &config).is_empty(), "too few hosts");
        assert!(success_rate_outliers(&[(100, 100); 9], &config).is_empty(), "all equal");
    }
}
