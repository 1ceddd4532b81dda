//! Rules of TrafficPolicy.

mod balance;
mod connection;
mod health;
mod listener;
mod resilience;
mod telemetry;

pub(super) use health::health_check;

use balance::load_balancing;

use super::Report;
use crate::diagnostic::Code;
use crate::duration::Duration;
use crate::field_path::At;
use crate::traffic::{OutlierDetection, TrafficPolicy, TrafficSettings, TrafficTarget, TrafficTargetKind};

pub(super) fn policy(report: &mut Report, policy: &TrafficPolicy, spec: &At<'_>) {
    let targets = spec.field("targetRefs");
    let all = &policy.spec.target_refs;
    report.unique(&targets, all, "target", |target| target.name.clone());
    for (index, one) in all.iter().enumerate() {
        target(report, one, &policy.metadata.namespace, &targets.index(index));
    }
    let settings = &policy.spec.settings;
    suits_targets(report, settings, all, spec);
    if let Some(balancing) = &settings.load_balancing {
        load_balancing(report, balancing, &spec.field("loadBalancing"));
    }
    let checks = spec.field("healthChecks");
    for (index, check) in settings.health_checks.iter().flatten().enumerate() {
        health_check(report, check, &checks.index(index));
    }
    if let Some(outliers) = &settings.outlier_detection {
        outlier_detection(report, outliers, &spec.field("outlierDetection"));
    }
    resilience::settings(report, settings, spec);
    if let Some(one) = &settings.connections {
        connection::connections(report, one, &spec.field("connections"));
    }
    if let Some(one) = &settings.listener {
        listener::listener(report, one, &spec.field("listener"));
    }
    if let Some(one) = &settings.telemetry {
        telemetry::telemetry(report, one, &spec.field("telemetry"));
    }
    if *settings == TrafficSettings::default() {
        report.warning(Code::NoEffect, spec, "the policy sets nothing; add settings, or remove it");
    }
}

fn target(report: &mut Report, target: &TrafficTarget, namespace: &str, at: &At<'_>) {
    if !target.group_fits() {
        let message = format!("the group of {} is `{}`", target.kind.kind(), target.kind.kind().group());
        report.error(Code::WrongTarget, &at.field("group"), message);
    }
    if target.kind == TrafficTargetKind::Namespace {
        if target.section_name.is_some() {
            report.error(Code::WrongTarget, &at.field("sectionName"), "a Namespace has no sections");
        }
        if target.name != namespace {
            let message = format!("a policy can target only its own namespace, `{namespace}`");
            report.error(Code::WrongTarget, &at.field("name"), message);
        }
    }
}

/// Settings that mean nothing for a kind of target would silently do nothing.
fn suits_targets(report: &mut Report, settings: &TrafficSettings, targets: &[TrafficTarget], spec: &At<'_>) {
    use TrafficTargetKind::{Gateway, GrpcRoute, HttpRoute, ListenerSet, TcpRoute, TlsRoute, UdpRoute};
    let is_stream = |kind| matches!(kind, TlsRoute | TcpRoute | UdpRoute);
    let http_only = [
        ("retry", settings.retry.is_some()),
        ("hedging", settings.hedging.is_some()),
        ("fault", settings.fault.is_some()),
        ("compression", settings.compression.is_some()),
        ("requestLimits", settings.request_limits.is_some()),
    ];
    for target in targets {
        let kind = target.kind;
        let mut wrong = |name: &str| {
            let message = format!("`{name}` does not apply to a {}", kind.kind());
            report.error(Code::WrongTarget, &spec.field(name), message);
        };
        if settings.listener.is_some() && !matches!(kind, Gateway | ListenerSet) {
            wrong("listener");
        }
        if settings.direct_response.is_some() && !matches!(kind, HttpRoute | GrpcRoute) {
            wrong("directResponse");
        }
        for (name, set) in http_only {
            if set && is_stream(kind) {
                wrong(name);
            }
        }
    }
}

fn outlier_detection(report: &mut Report, outliers: &OutlierDetection, at: &At<'_>) {
    not_zero(report, outliers.interval, &at.field("interval"));
    not_zero(report, outliers.base_ejection_time, &at.field("baseEjectionTime"));
    not_zero(report, outliers.max_ejection_time, &at.field("maxEjectionTime"));
    let base = outliers.base_ejection_time;
    not_longer(report, base, outliers.max_ejection_time, "maxEjectionTime", &at.field("baseEjectionTime"));
}

fn not_zero(report: &mut Report, duration: Option<Duration>, at: &At<'_>) {
    if duration.is_some_and(Duration::is_zero) {
        report.error(Code::OutOfRange, at, "must be longer than 0s");
    }
}

/// Zero of the longer one means that there is no limit.
fn not_longer(report: &mut Report, short: Option<Duration>, long: Option<Duration>, name: &str, at: &At<'_>) {
    if let (Some(short), Some(long)) = (short, long)
        && !long.is_zero()
        && short > long
    {
        report.error(Code::InvalidTimeout, at, format!("{short} is longer than `{name}`, {long}"));
    }
}

/// A setting that does nothing beside others of the same object.
fn no_effect(report: &mut Report, at: &At<'_>, message: &str) {
    report.warning(Code::NoEffect, at, message);
}

/// Methods are compared with case (RFC 9110 section 9.1).
fn case_of_method(report: &mut Report, name: &str, at: &At<'_>) {
    let upper = name.to_ascii_uppercase();
    if name != upper {
        let message = format!("methods are case-sensitive, and `{name}` is another than `{upper}`; write `{upper}`");
        report.warning(Code::WrongFormat, at, message);
    }
}
