//! Rules of access logs and traces.

use selvedge_wire::{host, log_template::Template};

use super::super::Report;
use super::no_effect;
use crate::check::short;
use crate::diagnostic::Code;
use crate::field_path::At;
use crate::traffic::{AccessLog, AccessLogFormat, Telemetry};

pub(super) fn telemetry(report: &mut Report, telemetry: &Telemetry, at: &At<'_>) {
    if let Some(log) = &telemetry.access_log {
        access_log(report, log, &at.field("accessLog"));
    }
    let Some(tracing) = &telemetry.tracing else { return };
    let at = at.field("tracing");
    if let Some(url) = &tracing.otlp {
        collector(report, url, &at.field("otlp"));
    }
    let attributes = at.field("attributes");
    for name in tracing.attributes.iter().flatten().map(|(name, _)| name).filter(|name| name.trim().is_empty()) {
        report.error(Code::WrongLength, &attributes.field(name), "an attribute needs a name");
    }
}

/// Templates are checked by the parser that the proxy evaluates them with.
fn access_log(report: &mut Report, log: &AccessLog, at: &At<'_>) {
    let fields = at.field("fields");
    let mut check = |template: &str, at: &At<'_>| {
        if let Err(error) = Template::parse(template) {
            report.error(Code::InvalidTemplate, at, error.to_string());
        }
    };
    if let Some(template) = &log.template {
        check(template, &at.field("template"));
    }
    for (name, template) in log.fields.iter().flatten() {
        check(template, &fields.field(name));
    }
    for name in log.fields.iter().flatten().map(|(name, _)| name).filter(|name| name.trim().is_empty()) {
        report.error(Code::WrongLength, &fields.field(name), "a field needs a name");
    }
    match log.format {
        Some(AccessLogFormat::Text) if log.fields.is_some() => {
            no_effect(report, &fields, "`fields` are of format Json, and the format is Text; use `template` instead");
        }
        Some(AccessLogFormat::Json) if log.template.is_some() => {
            let message =
                "`template` is of format Text, and the format is Json; use `fields` instead, or `format: Text`";
            no_effect(report, &at.field("template"), message);
        }
        _ => {}
    }
    if let Some(url) = &log.otlp {
        collector(report, url, &at.field("otlp"));
        if log.path.is_some() {
            let message = "lines go to the collector (`otlp`) and not to this file; remove one of the two";
            no_effect(report, &at.field("path"), message);
        }
    }
    if log.path.as_ref().is_some_and(|path| path.ends_with('/') || path.contains('\0')) {
        report.error(
            Code::WrongFormat,
            &at.field("path"),
            "this is no path of a file; write one such as /var/log/selvedge.log",
        );
    }
}

/// A URL that OTLP over gRPC can be sent to.
fn collector(report: &mut Report, url: &str, at: &At<'_>) {
    let wanted = "write `http://HOST:4317` or `https://HOST:4317`";
    let Some((secure, rest)) = url
        .strip_prefix("http://")
        .map(|rest| (false, rest))
        .or_else(|| url.strip_prefix("https://").map(|rest| (true, rest)))
    else {
        let message = format!("`{}` does not begin with http:// or https://; {wanted}", short(url));
        return report.error(Code::WrongFormat, at, message);
    };
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |end| rest.split_at(end));
    match host::parse(authority.as_bytes()) {
        Err(error) => {
            let message = format!("`{}` is no URL of a collector: {error}; {wanted}", short(url));
            report.error(Code::WrongFormat, at, message);
        }
        Ok(parsed) if parsed.port.is_none() => {
            let port = host::default_port(secure);
            let message =
                format!("without a port {port} is used, while collectors take OTLP over gRPC at 4317; write the port");
            report.warning(Code::WrongFormat, at, message);
        }
        Ok(_) => {}
    }
    if !matches!(path, "" | "/") {
        let message = format!("`{}` is not used: OTLP over gRPC has no path of its own; {wanted}", short(path));
        report.warning(Code::WrongFormat, at, message);
    }
}
