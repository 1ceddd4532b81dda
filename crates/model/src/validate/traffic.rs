//! Rules of TrafficPolicy.

use super::http::codes;
use super::{Report, header_name, hostname, match_path, method};
use crate::diagnostic::Code;
use crate::duration::Duration;
use crate::field_path::At;
use crate::traffic::{
    Algorithm, Fault, HashKey, HashKeyType, HealthCheck, HealthCheckType, LoadBalancing, OutlierDetection, Retry,
    TrafficPolicy, TrafficSettings, TrafficTarget, TrafficTargetKind,
};

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
    if let Some(again) = &settings.retry {
        retry(report, again, &spec.field("retry"));
    }
    if let Some(one) = &settings.fault {
        fault(report, one, &spec.field("fault"));
    }
    if let Some(timeouts) = &settings.timeouts {
        not_longer(
            report,
            timeouts.backend_request,
            timeouts.request,
            "request",
            &spec.field("timeouts").field("backendRequest"),
        );
    }
    if let Some(connect) = settings.connections.as_ref().and_then(|connections| connections.connect_timeout) {
        not_zero(report, Some(connect), &spec.field("connections").field("connectTimeout"));
    }
    if let Some(algorithms) = settings.compression.as_ref().and_then(|compression| compression.algorithms.as_ref()) {
        let at = spec.field("compression");
        report.unique(&at.field("algorithms"), algorithms, "algorithm", |one| format!("{one:?}").to_lowercase());
    }
    let cidrs = settings.listener.as_ref().and_then(|listener| listener.trusted_cidrs.as_ref());
    if let Some(cidrs) = cidrs {
        let listener = spec.field("listener");
        let at = listener.field("trustedCidrs");
        report.unique(&at, cidrs, "network", String::clone);
        for (index, text) in cidrs.iter().enumerate() {
            if let Err(message) = network(text) {
                report.error(Code::WrongFormat, &at.index(index), message);
            }
        }
    }
    templates(report, settings, spec);
}

/// A network in CIDR notation, written as its first address.
fn network(text: &str) -> Result<(), String> {
    let net: ipnet::IpNet =
        text.parse().map_err(|_| format!("`{text}` is no network in CIDR notation, as 10.0.0.0/8 or fd00::/8 is"))?;
    if net.trunc() != net {
        return Err(format!("`{text}` has bits behind its prefix length; write `{}`", net.trunc()));
    }
    Ok(())
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

fn load_balancing(report: &mut Report, balancing: &LoadBalancing, at: &At<'_>) {
    let keys = at.field("hashKeys");
    for (index, key) in balancing.hash_keys.iter().flatten().enumerate() {
        hash_key(report, key, &keys.index(index));
    }
    let hashes = matches!(balancing.algorithm, Some(Algorithm::RingHash | Algorithm::Maglev));
    if balancing.algorithm.is_some() && !hashes && balancing.hash_keys.is_some() {
        report.warning(Code::ConflictingFields, &keys, "hash keys have no effect: the algorithm does not hash");
    }
    if let Some(ring) = &balancing.ring
        && let (Some(min), Some(max)) = (ring.min, ring.max)
        && min > max
    {
        report.error(Code::OutOfRange, &at.field("ring").field("min"), format!("{min} is more than `max`, {max}"));
    }
    if let Some(size) = balancing.maglev_table_size
        && !is_prime(size)
    {
        report.error(Code::OutOfRange, &at.field("maglevTableSize"), format!("{size} is not a prime number"));
    }
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

fn hash_key(report: &mut Report, key: &HashKey, at: &At<'_>) {
    let named = matches!(key.key_type, HashKeyType::Header | HashKeyType::Query);
    let fields =
        [("name", named, key.name.is_some()), ("cookie", key.key_type == HashKeyType::Cookie, key.cookie.is_some())];
    for (name, wanted, set) in fields {
        if wanted != set {
            let message = if set { "does not fit the type" } else { "must be set for this type" };
            report.error(Code::InconsistentUnion, &at.field(name), format!("`{name}` {message}"));
        }
    }
    if let (HashKeyType::Header, Some(name)) = (key.key_type, &key.name) {
        report.check(Code::InvalidHeaderName, &at.field("name"), header_name(name));
    }
    if let Some(cookie) = &key.cookie {
        report.check(Code::WrongFormat, &at.field("cookie").field("name"), header_name(&cookie.name));
    }
}

pub(super) fn health_check(report: &mut Report, check: &HealthCheck, at: &At<'_>) {
    not_zero(report, check.interval, &at.field("interval"));
    not_zero(report, check.timeout, &at.field("timeout"));
    let fields = [
        ("path", check.path.is_some(), check.check_type == HealthCheckType::Http),
        ("method", check.method.is_some(), check.check_type == HealthCheckType::Http),
        ("expectedStatuses", check.expected_statuses.is_some(), check.check_type == HealthCheckType::Http),
        ("host", check.host.is_some(), check.check_type != HealthCheckType::Tcp),
        ("service", check.service.is_some(), check.check_type == HealthCheckType::Grpc),
    ];
    for (name, set, allowed) in fields {
        if set && !allowed {
            report.error(
                Code::InconsistentUnion,
                &at.field(name),
                format!("`{name}` does not fit the type of the check"),
            );
        }
    }
    if let Some(path) = &check.path {
        let path = path.split('?').next().unwrap_or_default();
        report.check(Code::InvalidPath, &at.field("path"), match_path(path));
    }
    if let Some(name) = &check.method {
        report.check(Code::WrongFormat, &at.field("method"), method(name));
    }
    if let Some(host) = &check.host {
        let name = host.split(':').next().unwrap_or_default();
        report.check(Code::InvalidHostname, &at.field("host"), hostname(name));
    }
}

fn outlier_detection(report: &mut Report, outliers: &OutlierDetection, at: &At<'_>) {
    not_zero(report, outliers.interval, &at.field("interval"));
    not_zero(report, outliers.base_ejection_time, &at.field("baseEjectionTime"));
    let base = outliers.base_ejection_time;
    not_longer(report, base, outliers.max_ejection_time, "maxEjectionTime", &at.field("baseEjectionTime"));
}

fn retry(report: &mut Report, retry: &Retry, at: &At<'_>) {
    if let Some(list) = &retry.codes {
        codes(report, list, &at.field("codes"));
    }
    if let Some(conditions) = &retry.retry_on {
        report.unique(&at.field("retryOn"), conditions, "condition", |one| format!("{one:?}"));
    }
    let methods = at.field("methods");
    for (index, name) in retry.methods.iter().flatten().enumerate() {
        report.check(Code::WrongFormat, &methods.index(index), method(name));
    }
    if let Some(backoff) = &retry.backoff {
        not_longer(report, backoff.base, backoff.max, "max", &at.field("backoff").field("base"));
    }
}

fn fault(report: &mut Report, fault: &Fault, at: &At<'_>) {
    if let Some(abort) = &fault.abort
        && abort.status.is_some() == abort.grpc_status.is_some()
    {
        let message = "exactly one of `status` and `grpcStatus` must be given";
        report.error(Code::ConflictingFields, &at.field("abort"), message);
    }
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

/// Templates are checked by the parser that the proxy evaluates them with.
fn templates(report: &mut Report, settings: &TrafficSettings, spec: &At<'_>) {
    let Some(log) = settings.telemetry.as_ref().and_then(|telemetry| telemetry.access_log.as_ref()) else { return };
    let at = spec.field("telemetry");
    let at = at.field("accessLog");
    let fields = at.field("fields");
    let mut check = |template: &str, at: &At<'_>| {
        if let Err(error) = selvedge_wire::log_template::Template::parse(template) {
            report.error(Code::InvalidTemplate, at, error.to_string());
        }
    };
    if let Some(template) = &log.template {
        check(template, &at.field("template"));
    }
    for (name, template) in log.fields.iter().flatten() {
        check(template, &fields.field(name));
    }
}
