//! How long things of a CA live.

use crate::ca::error::Error;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    pub root: Duration,
    pub intermediate: Duration,
    /// Of the certificates of workloads.
    pub svid: Duration,
    /// How long a new root is in the bundle before certificates are signed under it: every node should have asked for the
    /// bundle once in that time.
    pub overlap: Duration,
    /// How long after its end a certificate still gets the next one, for nodes that were away. Zero: not at all.
    pub grace: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { root: 3650 * DAY, intermediate: 365 * DAY, svid: DAY, overlap: DAY, grace: 7 * DAY }
    }
}

impl Lifetimes {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.svid < Duration::from_secs(2) {
            return Err(Error::Lifetimes("certificates of workloads must live for at least 2 s"));
        }
        if self.intermediate < 2 * self.svid {
            return Err(Error::Lifetimes("an intermediate must live twice as long as the certificates of workloads"));
        }
        if self.root < 2 * self.intermediate {
            return Err(Error::Lifetimes("a root must live twice as long as an intermediate"));
        }
        Ok(())
    }
}
