//! Rules of health checks.

use selvedge_wire::host;

use super::super::{Report, hostname, match_path, method};
use super::not_zero;
use crate::diagnostic::Code;
use crate::duration::Duration;
use crate::field_path::At;
use crate::traffic::{HealthCheck, HealthCheckType};

/// Of checks that say none.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

pub(in super::super) fn health_check(report: &mut Report, check: &HealthCheck, at: &At<'_>) {
    not_zero(report, check.interval, &at.field("interval"));
    not_zero(report, check.timeout, &at.field("timeout"));
    slow_check(report, check, at);
    let fields = [
        ("path", check.path.is_some(), check.check_type == HealthCheckType::Http),
        ("method", check.method.is_some(), check.check_type == HealthCheckType::Http),
        ("expectedStatuses", check.expected_statuses.is_some(), check.check_type == HealthCheckType::Http),
        ("host", check.host.is_some(), check.check_type != HealthCheckType::Tcp),
        ("service", check.service.is_some(), check.check_type == HealthCheckType::Grpc),
    ];
    for (name, set, allowed) in fields {
        if set && !allowed {
            let message = format!("`{name}` does not fit the type of the check; remove it, or change `type`");
            report.error(Code::InconsistentUnion, &at.field(name), message);
        }
    }
    if let Some(path) = &check.path {
        report.check(Code::InvalidPath, &at.field("path"), target(path));
    }
    if let Some(name) = &check.method {
        report.check(Code::WrongFormat, &at.field("method"), method(name));
        super::case_of_method(report, name, &at.field("method"));
    }
    if let Some(text) = &check.host {
        report.check(Code::InvalidHostname, &at.field("host"), with_port(text));
    }
    if check.expected_statuses.as_ref().is_some_and(Vec::is_empty) {
        let message = "no status would be healthy; name some, such as 200-299, or leave the field out";
        report.error(Code::WrongLength, &at.field("expectedStatuses"), message);
    }
}

/// Envoy and Kubernetes allow it, and so do we: a check begins when the one before has ended and the interval has passed, so
/// that none overlap. But an endpoint that hangs is looked at, and found, more slowly than the interval tells.
fn slow_check(report: &mut Report, check: &HealthCheck, at: &At<'_>) {
    let interval = check.interval.unwrap_or(DEFAULT_INTERVAL);
    let Some(timeout) = check.timeout.filter(|timeout| *timeout > interval) else { return };
    let message = format!(
        "{timeout} is longer than the interval, {interval}: checks of an endpoint that hangs begin only {interval} after the one \
         before has timed out; lower it, or raise `interval`"
    );
    report.warning(Code::InvalidTimeout, &at.field("timeout"), message);
}

/// A path, maybe with a query.
fn target(text: &str) -> Result<(), String> {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    match_path(path)?;
    let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`');
    if query.bytes().all(fits) {
        return Ok(());
    }
    Err(format!(
        "the query of `{}` holds characters that it cannot have; encode them as %XX",
        crate::check::short(text)
    ))
}

/// A hostname, maybe with a port.
fn with_port(text: &str) -> Result<(), String> {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    hostname(name)?;
    match port {
        Some(_) => host::parse(text.as_bytes())
            .map(|_| ())
            .map_err(|error| format!("`{}`: {error}", crate::check::short(text))),
        None => Ok(()),
    }
}
