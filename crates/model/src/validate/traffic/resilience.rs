//! Rules of timeouts, retries, hedging, faults, direct responses and compression.

use super::super::http::codes;
use super::super::{Report, media_type, method};
use super::{case_of_method, no_effect, not_longer, not_zero};
use crate::check::short;
use crate::diagnostic::Code;
use crate::duration::Duration;
use crate::field_path::At;
use crate::traffic::{Compression, DirectResponse, Fault, Retry, Timeouts, TrafficSettings};

pub(super) fn settings(report: &mut Report, settings: &TrafficSettings, spec: &At<'_>) {
    if let Some(one) = &settings.timeouts {
        timeouts(report, one, &spec.field("timeouts"));
    }
    if let Some(again) = &settings.retry {
        retry(report, again, settings.timeouts.as_ref(), &spec.field("retry"));
    }
    if let Some(hedging) = &settings.hedging {
        not_zero(report, hedging.delay, &spec.field("hedging").field("delay"));
    }
    if let Some(one) = &settings.fault {
        fault(report, one, &spec.field("fault"));
    }
    if let Some(one) = &settings.direct_response {
        direct_response(report, one, &spec.field("directResponse"));
    }
    if let Some(one) = &settings.compression {
        compression(report, one, &spec.field("compression"));
    }
}

fn timeouts(report: &mut Report, timeouts: &Timeouts, at: &At<'_>) {
    not_longer(report, timeouts.backend_request, timeouts.request, "request", &at.field("backendRequest"));
}

fn retry(report: &mut Report, retry: &Retry, timeouts: Option<&Timeouts>, at: &At<'_>) {
    if let Some(list) = &retry.codes {
        codes(report, list, &at.field("codes"));
    }
    if let Some(conditions) = &retry.retry_on {
        report.unique(&at.field("retryOn"), conditions, "condition", |one| format!("{one:?}"));
    }
    let methods = at.field("methods");
    report.unique(&methods, retry.methods.as_deref().unwrap_or_default(), "method", String::clone);
    for (index, name) in retry.methods.iter().flatten().enumerate() {
        report.check(Code::WrongFormat, &methods.index(index), method(name));
        case_of_method(report, name, &methods.index(index));
    }
    if let Some(backoff) = &retry.backoff {
        not_longer(report, backoff.base, backoff.max, "max", &at.field("backoff").field("base"));
    }
    let whole = timeouts.and_then(|timeouts| timeouts.request);
    not_longer(report, retry.per_try_timeout, whole, "timeouts.request", &at.field("perTryTimeout"));
    let backend = timeouts.and_then(|timeouts| timeouts.backend_request).filter(|limit| !limit.is_zero());
    if let Some(limit) = backend.filter(|_| retry.per_try_timeout.is_some_and(Duration::is_zero)) {
        let message = format!(
            "0s is no limit for a try and goes before `timeouts.backendRequest`, so that its {limit} never count; write how \
             long a try may take, or remove one of the two"
        );
        report.warning(Code::InvalidTimeout, &at.field("perTryTimeout"), message);
    }
}

fn fault(report: &mut Report, fault: &Fault, at: &At<'_>) {
    if let Some(abort) = &fault.abort
        && abort.status.is_some() == abort.grpc_status.is_some()
    {
        let message = "exactly one of `status` and `grpcStatus` must be given";
        report.error(Code::ConflictingFields, &at.field("abort"), message);
    }
    if fault.delay.is_none() && fault.abort.is_none() {
        no_effect(report, at, "it says neither `delay` nor `abort`, so that nothing happens; add one, or remove it");
    }
    if fault.delay.as_ref().is_some_and(|delay| delay.fixed.is_zero()) {
        no_effect(
            report,
            &at.field("delay").field("fixed"),
            "a delay of 0s does nothing; write how long, or remove it",
        );
    }
}

fn direct_response(report: &mut Report, direct: &DirectResponse, at: &At<'_>) {
    if let Some(text) = &direct.content_type {
        report.check(Code::InvalidHeaderValue, &at.field("contentType"), media_type(text));
    }
    let bodiless = matches!(direct.status, 204 | 205 | 304);
    if bodiless && direct.body.as_ref().is_some_and(|body| !body.is_empty()) {
        let message = format!("a response of status {} has no body; remove it, or use another status", direct.status);
        no_effect(report, &at.field("body"), &message);
    }
}

fn compression(report: &mut Report, compression: &Compression, at: &At<'_>) {
    if let Some(algorithms) = &compression.algorithms {
        report.unique(&at.field("algorithms"), algorithms, "algorithm", |one| format!("{one:?}").to_lowercase());
    }
    let Some(types) = &compression.content_types else { return };
    let at = at.field("contentTypes");
    report.unique(&at, types, "content type", String::clone);
    for (index, text) in types.iter().enumerate() {
        report.check(Code::WrongFormat, &at.index(index), content_type(text));
    }
    if types.is_empty() {
        no_effect(
            report,
            &at,
            "nothing is compressed; name types, or write `algorithms: []` to switch compression off",
        );
    }
}

/// A media type without parameters, a family (`text/*`), or `*`. They are compared in lower case.
fn content_type(text: &str) -> Result<(), String> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("`{}` must be in lower case", short(text)));
    }
    let fits = match text.strip_suffix('*') {
        Some("") => true,
        Some(family) => !family.contains(['*', ';']) && media_type(&format!("{family}x")).is_ok(),
        None => !text.contains(['*', ';']) && media_type(text).is_ok(),
    };
    if fits {
        return Ok(());
    }
    Err(format!(
        "`{}` is not a content type; write one such as `application/json`, or a family such as `text/*`",
        short(text)
    ))
}
