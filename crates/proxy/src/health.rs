//! Active health: what the checks of an endpoint have found. The checks themselves run in [`probe`].

mod probe;

pub use probe::Checker;
pub(crate) use probe::run;

use selvedge_compile::snapshot::HealthCheck;
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, Ordering},
};

/// What all checks of an endpoint say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Summary {
    /// All passed, or there are none.
    Healthy,
    /// Some check has not had its first result. Such an endpoint is used only while no other is known to be healthy,
    /// so that a new one takes no traffic before it has passed, and a new cluster is not unavailable meanwhile.
    Pending,
    Unhealthy,
}

/// The health of one endpoint.
#[derive(Debug, Default)]
pub struct State {
    summary: AtomicU8,
    checks: Mutex<Vec<Progress>>,
}

/// One check's run of results.
#[derive(Debug, Default, Clone)]
struct Progress {
    healthy: Option<bool>,
    /// Results in a row that contradict `healthy`.
    contrary: u32,
    /// Why it failed last.
    reason: String,
}

impl State {
    pub fn summary(&self) -> Summary {
        match self.summary.load(Ordering::Acquire) {
            0 => Summary::Healthy,
            1 => Summary::Pending,
            _ => Summary::Unhealthy,
        }
    }

    /// Prepares for this many checks. What is known of a check that was there before stays.
    pub(crate) fn expect(&self, checks: usize) {
        let mut progress = self.lock();
        progress.resize(checks, Progress::default());
        self.store(&progress);
    }

    /// Takes one result. The first decides at once, later ones at the check's thresholds. True when the summary
    /// changed.
    pub(crate) fn record(&self, index: usize, config: &HealthCheck, result: Result<(), String>) -> bool {
        let mut checks = self.lock();
        let Some(check) = checks.get_mut(index) else { return false };
        let passed = result.is_ok();
        if let Err(reason) = result {
            check.reason = reason;
        }
        match check.healthy {
            None => check.healthy = Some(passed),
            Some(healthy) if healthy == passed => check.contrary = 0,
            Some(_) => {
                check.contrary += 1;
                let threshold = if passed { config.healthy_threshold } else { config.unhealthy_threshold };
                if check.contrary >= threshold.max(1) {
                    check.healthy = Some(passed);
                    check.contrary = 0;
                }
            }
        }
        let before = self.summary();
        self.store(&checks);
        before != self.summary()
    }

    /// Why it is unhealthy.
    pub fn reason(&self) -> Option<String> {
        self.lock().iter().find(|check| check.healthy == Some(false)).map(|check| check.reason.clone())
    }

    fn store(&self, checks: &[Progress]) {
        let summary = if checks.iter().any(|check| check.healthy == Some(false)) {
            Summary::Unhealthy
        } else if checks.iter().any(|check| check.healthy.is_none()) {
            Summary::Pending
        } else {
            Summary::Healthy
        };
        self.summary.store(summary as u8, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Progress>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_compile::snapshot::Check;
    use std::time::Duration;

    fn config() -> HealthCheck {
        HealthCheck {
            check: Check::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            port: None,
        }
    }

    #[test]
    fn the_first_result_decides_then_thresholds_do() {
        let (state, config) = (State::default(), config());
        assert_eq!(state.summary(), Summary::Healthy, "no checks");
        state.expect(1);
        assert_eq!(state.summary(), Summary::Pending);
        assert!(state.record(0, &config, Ok(())));
        for _ in 0..2 {
            assert!(!state.record(0, &config, Err("refused".to_owned())));
        }
        assert!(!state.record(0, &config, Ok(())), "a success starts the count again");
        for _ in 0..2 {
            assert!(!state.record(0, &config, Err("refused".to_owned())));
        }
        assert!(state.record(0, &config, Err("connection refused".to_owned())));
        assert_eq!(state.summary(), Summary::Unhealthy);
        assert_eq!(state.reason().as_deref(), Some("connection refused"));
        assert!(!state.record(0, &config, Ok(())));
        assert!(state.record(0, &config, Ok(())));
        assert_eq!((state.summary(), state.reason()), (Summary::Healthy, None));
    }

    #[test]
    fn all_checks_must_pass() {
        let (state, config) = (State::default(), config());
        state.expect(2);
        state.record(0, &config, Ok(()));
        assert_eq!(state.summary(), Summary::Pending);
        state.record(1, &config, Err("status 503".to_owned()));
        assert_eq!(state.summary(), Summary::Unhealthy);
        state.expect(1);
        assert_eq!(state.summary(), Summary::Healthy, "a check that is gone holds nothing against it");
        assert!(!state.record(1, &config, Err(String::new())), "nor can it afterwards");
    }
}
