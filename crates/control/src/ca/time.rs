//! Seconds since 1970, as certificates count them.

use std::time::{Duration, SystemTime};

/// How much earlier than its issue a certificate says that it begins, for nodes whose clocks are late.
pub const SKEW: Duration = Duration::from_secs(120);

/// Seconds since 1970; 0 for what lies before.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The time that many seconds after 1970.
pub fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))
}

/// The last second that X.509 can say (RFC 5280 section 4.1.2.5): 9999-12-31 23:59:59.
pub(super) const LAST: u64 = 253_402_300_799;
