//! Times as people read them.

use selvedge_wire::log_time;

/// So much ago.
pub fn ago(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{} s", seconds.max(0)),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A moment, in seconds since the epoch, as RFC 3339 in UTC.
pub fn rfc3339(seconds: i64) -> String {
    log_time::rfc3339(u64::try_from(seconds).unwrap_or(0))
}
