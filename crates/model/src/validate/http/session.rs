//! Rules of session persistence (GEP-1619).

use super::super::{Report, cookie_name, header_name};
use crate::diagnostic::Code;
use crate::duration::Duration;
use crate::field_path::At;
use crate::http::{CookieLifetime, SessionPersistence, SessionPersistenceType};

/// Headers that mean something of their own: a session kept in one would break messages, or never come back.
const TAKEN: [&str; 20] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
];

pub(super) fn session_persistence(report: &mut Report, session: &SessionPersistence, at: &At<'_>) {
    if let Some(name) = &session.session_name {
        session_name(report, name, session.persistence_type, &at.field("sessionName"));
    }
    for (field, limit) in [("absoluteTimeout", session.absolute_timeout), ("idleTimeout", session.idle_timeout)] {
        // Sessions count whole seconds.
        if let Some(limit) = limit.filter(|limit| *limit < Duration::from_secs(1)) {
            let message = format!("{limit} ends every session at once; write 1s or more");
            report.error(Code::OutOfRange, &at.field(field), message);
        }
    }
    if let (Some(idle), Some(absolute)) = (session.idle_timeout, session.absolute_timeout)
        && idle > absolute
    {
        let message = format!("{idle} is longer than `absoluteTimeout`, {absolute}, which ends the session before");
        report.error(Code::InvalidTimeout, &at.field("idleTimeout"), message);
    }
    let Some(cookie) = &session.cookie_config else { return };
    if session.persistence_type == SessionPersistenceType::Header {
        let message = "`cookieConfig` is only for type Cookie";
        report.error(Code::InconsistentUnion, &at.field("cookieConfig"), message);
    }
    if cookie.lifetime_type == CookieLifetime::Permanent && session.absolute_timeout.is_none() {
        let message = "a permanent cookie needs `absoluteTimeout`";
        report.error(Code::MissingField, &at.field("absoluteTimeout"), message);
    }
}

fn session_name(report: &mut Report, name: &str, kind: SessionPersistenceType, at: &At<'_>) {
    if name.is_empty() {
        return report.error(Code::WrongLength, at, "must not be empty; leave it out to get a name made up");
    }
    match kind {
        SessionPersistenceType::Cookie => report.check(Code::WrongFormat, at, cookie_name(name)),
        SessionPersistenceType::Header => {
            report.check(Code::InvalidHeaderName, at, header_name(name));
            if TAKEN.iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
                let message = format!("the header {name} has a meaning of its own; use one such as `x-session`");
                report.error(Code::InvalidHeaderName, at, message);
            }
        }
    }
}
