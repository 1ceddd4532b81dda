//! Settings of TrafficPolicies, with their defaults, as the snapshot has them.

use crate::snapshot::{
    AccessLog, Algorithm, Check, Coding, Compression, Connections, DirectResponse, EscapedSlashes, Fault, FaultAbort,
    FaultDelay, Filter, HashKey, HealthCheck, Hedging, HttpOptions, LoadBalancing, LogCondition, LogFormat, LogOutput,
    OutlierDetection, ProxyProtocolIn, ProxyProtocolVersion, Retry, RetryBudget, RetryOn, SlowStart, SocketOptions,
    SuccessRate, Tracing, Underscores, UpstreamProtocol, ZonePreference,
};
use http::{HeaderName, Method, StatusCode};
use selvedge_model::{
    Duration as Span,
    http::HttpRouteRetry,
    traffic::{self as spec, TrafficSettings},
};
use selvedge_wire::{forwarded::Source, log_template::DEFAULT_JSON};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

fn span(value: Option<Span>, default: Duration) -> Duration {
    value.map_or(default, Span::as_std)
}

fn share(percent: f64) -> u32 {
    // Written so that NaN becomes nothing.
    (percent.clamp(0.0, 100.0) * 10_000.0) as u32
}

fn small(value: Option<u32>, default: u8) -> u8 {
    value.map_or(default, |v| u8::try_from(v).unwrap_or(u8::MAX))
}

/// Filters that policies put around those of the rule: those in front, and those behind.
pub(crate) fn filters(settings: &TrafficSettings) -> (Vec<Filter>, Vec<Filter>) {
    let mut front = Vec::new();
    let mut back = Vec::new();
    if let Some(compression) = settings.compression.as_ref().and_then(compression) {
        front.push(Filter::Compression(Arc::new(compression)));
    }
    let limit = settings.request_limits.as_ref().and_then(|l| l.max_body_bytes).filter(|&n| n > 0);
    front.extend(limit.map(Filter::BodyLimit));
    back.extend(settings.fault.as_ref().and_then(fault).map(Filter::Fault));
    back.extend(settings.direct_response.as_ref().and_then(direct).map(Filter::Direct));
    (front, back)
}

fn compression(it: &spec::Compression) -> Option<Compression> {
    let default =
        || vec![spec::CompressionAlgorithm::Zstd, spec::CompressionAlgorithm::Br, spec::CompressionAlgorithm::Gzip];
    let algorithms: Vec<Coding> = it
        .algorithms
        .clone()
        .unwrap_or_else(default)
        .into_iter()
        .map(|a| match a {
            spec::CompressionAlgorithm::Gzip => Coding::Gzip,
            spec::CompressionAlgorithm::Br => Coding::Brotli,
            spec::CompressionAlgorithm::Zstd => Coding::Zstd,
        })
        .collect();
    const TYPES: [&str; 6] = [
        "text/*",
        "application/json",
        "application/javascript",
        "application/xml",
        "application/wasm",
        "image/svg+xml",
    ];
    (!algorithms.is_empty()).then(|| Compression {
        algorithms,
        min_bytes: it.min_bytes.unwrap_or(1024),
        content_types: it.content_types.clone().unwrap_or_else(|| TYPES.map(str::to_owned).to_vec()),
    })
}

fn fault(it: &spec::Fault) -> Option<Fault> {
    let delay = it.delay.as_ref().map(|d| FaultDelay { fixed: d.fixed.as_std(), per_million: share(d.percent) });
    let abort = it.abort.as_ref().map(|a| FaultAbort {
        status: a.status.unwrap_or(503),
        grpc_status: a.grpc_status.and_then(|code| u8::try_from(code).ok()),
        per_million: share(a.percent),
    });
    (delay.is_some() || abort.is_some()).then_some(Fault { delay, abort })
}

fn direct(it: &spec::DirectResponse) -> Option<DirectResponse> {
    Some(DirectResponse {
        status: StatusCode::from_u16(it.status).ok()?,
        body: it.body.clone().unwrap_or_default(),
        content_type: it.content_type.clone().unwrap_or_else(|| "text/plain; charset=utf-8".to_owned()),
    })
}

pub(crate) fn hedging(it: &spec::Hedging) -> Option<Hedging> {
    let max_attempts = it.max_attempts.unwrap_or(2);
    let delay = it.delay?.as_std();
    (max_attempts >= 2).then_some(Hedging { delay, max_attempts })
}

/// How failed requests are sent again: what the rule says over what policies say over the defaults. Connection failures
/// and refused streams are retried once unless told otherwise, for no backend has seen those requests.
pub(crate) fn retry(
    policy: Option<&spec::Retry>,
    rule: Option<&HttpRouteRetry>,
    per_try: Option<Duration>,
) -> Option<Retry> {
    let attempts = rule.and_then(|r| r.attempts).or(policy.and_then(|p| p.attempts)).unwrap_or(1);
    if attempts == 0 {
        return None;
    }
    let mut on = RetryOn { connect_failure: true, refused_stream: true, ..RetryOn::default() };
    let mut codes: Vec<u16> = Vec::new();
    let mut grpc_codes: Vec<u8> = Vec::new();
    match policy.and_then(|p| p.retry_on.as_ref()) {
        Some(list) => {
            on = RetryOn::default();
            for condition in list {
                retried(*condition, &mut on, &mut codes, &mut grpc_codes);
            }
        }
        // Who asks for retries on a route means failures to get an answer too (GEP-1731).
        None if rule.is_some() => (on.reset, on.timeout) = (true, true),
        None => {}
    }
    let listed = rule.map(|r| &r.codes).filter(|c| !c.is_empty()).or(policy.and_then(|p| p.codes.as_ref()));
    codes.extend(listed.into_iter().flatten());
    codes.sort_unstable();
    codes.dedup();
    let methods = policy.and_then(|p| p.methods.as_ref());
    let methods = methods.map(|list| list.iter().filter_map(|m| Method::from_bytes(m.as_bytes()).ok()).collect());
    let backoff = policy.and_then(|p| p.backoff.as_ref());
    let backoff_base = span(rule.and_then(|r| r.backoff).or(backoff.and_then(|b| b.base)), Duration::from_millis(25));
    let backoff_max = span(backoff.and_then(|b| b.max), Duration::from_millis(250).max(backoff_base * 10));
    let budget = policy.and_then(|p| p.budget.as_ref());
    Some(Retry {
        attempts,
        codes,
        on,
        methods,
        per_try_timeout: policy.and_then(|p| p.per_try_timeout).map(Span::as_std).or(per_try),
        backoff_base,
        backoff_max: backoff_max.max(backoff_base),
        budget: RetryBudget {
            percent: small(budget.and_then(|b| b.percent), 20),
            min_per_second: budget.and_then(|b| b.min_retries_per_second).unwrap_or(10),
            min_concurrency: budget.and_then(|b| b.min_concurrency).unwrap_or(3),
        },
        max_body_bytes: policy.and_then(|p| p.max_body_bytes).map_or(65_536, |n| u32::try_from(n).unwrap_or(u32::MAX)),
        grpc_codes,
    })
}

fn retried(condition: spec::RetryCondition, on: &mut RetryOn, codes: &mut Vec<u16>, grpc: &mut Vec<u8>) {
    use spec::RetryCondition as On;
    match condition {
        On::ConnectFailure => on.connect_failure = true,
        On::Reset => (on.reset, on.timeout) = (true, true),
        On::RefusedStream => on.refused_stream = true,
        On::GatewayError => codes.extend([502, 503, 504]),
        On::ServerError => {
            codes.extend(500..=599);
            (on.connect_failure, on.reset, on.timeout, on.refused_stream) = (true, true, true, true);
        }
        On::Retriable4xx => codes.push(409),
        On::GrpcCancelled => grpc.push(1),
        On::GrpcDeadlineExceeded => grpc.push(4),
        On::GrpcResourceExhausted => grpc.push(8),
        On::GrpcInternal => grpc.push(13),
        On::GrpcUnavailable => grpc.push(14),
    }
}

pub(crate) fn load_balancing(it: &spec::LoadBalancing) -> LoadBalancing {
    let default = LoadBalancing::default();
    let choices = small(it.choices, 2).max(2);
    let ring = it.ring.clone().unwrap_or_default();
    LoadBalancing {
        algorithm: match it.algorithm.unwrap_or_default() {
            spec::Algorithm::RoundRobin => Algorithm::RoundRobin,
            spec::Algorithm::Random => Algorithm::Random,
            spec::Algorithm::LeastRequest => Algorithm::LeastRequest { choices },
            // 10 s: what Finagle and linkerd let old latencies count for.
            spec::Algorithm::PeakEwma => Algorithm::PeakEwma { decay: Duration::from_secs(10), choices },
            spec::Algorithm::RingHash => Algorithm::RingHash {
                min_size: ring.min.unwrap_or(1024),
                max_size: ring.max.unwrap_or(65_536).max(ring.min.unwrap_or(1024)),
            },
            spec::Algorithm::Maglev => Algorithm::Maglev { table_size: it.maglev_table_size.unwrap_or(65_537) },
        },
        hash_keys: it.hash_keys.iter().flatten().filter_map(hash_key).collect(),
        slow_start: it.slow_start.as_ref().and_then(slow_start),
        panic_threshold: small(it.panic_threshold, default.panic_threshold).min(100),
        zone: match it.zone.as_ref().and_then(|z| z.preference).unwrap_or_default() {
            spec::ZoneMode::Prefer => ZonePreference::Prefer,
            spec::ZoneMode::Strict => ZonePreference::Strict,
            spec::ZoneMode::Off => ZonePreference::Off,
        },
        own_zone: None,
        min_endpoints: it.zone.as_ref().and_then(|z| z.min_endpoints).unwrap_or(default.min_endpoints),
        min_healthy_percent: small(it.zone.as_ref().and_then(|z| z.min_healthy_percent), default.min_healthy_percent)
            .min(100),
    }
}

fn hash_key(it: &spec::HashKey) -> Option<HashKey> {
    Some(match it.key_type {
        spec::HashKeyType::Header => HashKey::Header(HeaderName::from_bytes(it.name.as_deref()?.as_bytes()).ok()?),
        spec::HashKeyType::Query => HashKey::Query(it.name.clone()?),
        spec::HashKeyType::SourceIp => HashKey::SourceIp,
        spec::HashKeyType::Path => HashKey::Path,
        spec::HashKeyType::Cookie => {
            let cookie = it.cookie.as_ref()?;
            HashKey::Cookie {
                name: cookie.name.clone(),
                ttl: cookie.ttl.map(Span::as_std),
                path: cookie.path.clone().unwrap_or_else(|| "/".to_owned()),
            }
        }
    })
}

fn slow_start(it: &spec::SlowStart) -> Option<SlowStart> {
    let window = span(it.window, Duration::ZERO);
    (!window.is_zero()).then(|| SlowStart {
        window,
        aggression: it.aggression.unwrap_or(1.0),
        min_percent: small(it.min_percent, 10).min(100),
    })
}

pub(crate) fn connections(it: &spec::Connections) -> Connections {
    let default = Connections::default();
    let keepalive = it.keepalive.clone().unwrap_or_default();
    let http2 = it.http2.clone().unwrap_or_default();
    let tcp = keepalive.tcp.unwrap_or_default();
    let heads = it.response_headers.clone().unwrap_or_default();
    Connections {
        connect_timeout: span(it.connect_timeout, default.connect_timeout),
        max_connections: it.max_connections.unwrap_or(default.max_connections),
        max_pending: it.max_pending_requests.unwrap_or(default.max_pending),
        max_requests: it.max_requests.unwrap_or(default.max_requests),
        max_retries: it.max_retries.unwrap_or(default.max_retries),
        max_requests_per_connection: it.max_requests_per_connection.unwrap_or(default.max_requests_per_connection),
        idle_timeout: span(it.idle_timeout, default.idle_timeout),
        max_age: span(it.max_age, default.max_age),
        http2_max_streams: http2.max_concurrent_streams.unwrap_or(default.http2_max_streams),
        http2_initial_window: http2.stream_window.unwrap_or(default.http2_initial_window),
        http2_connection_window: http2.connection_window.unwrap_or(default.http2_connection_window),
        http2_keepalive_interval: span(keepalive.http2_ping_interval, default.http2_keepalive_interval),
        http2_keepalive_timeout: span(keepalive.http2_ping_timeout, default.http2_keepalive_timeout),
        tcp_keepalive: span(tcp.time, default.tcp_keepalive),
        tcp_keepalive_interval: span(tcp.interval, default.tcp_keepalive_interval),
        tcp_keepalive_probes: tcp.probes.unwrap_or(default.tcp_keepalive_probes),
        proxy_protocol: it.proxy_protocol.map(|version| match version {
            spec::ProxyProtocolVersion::V1 => ProxyProtocolVersion::V1,
            spec::ProxyProtocolVersion::V2 => ProxyProtocolVersion::V2,
        }),
        max_response_headers: heads.max_count.unwrap_or(default.max_response_headers),
        max_response_header_bytes: heads.max_bytes.unwrap_or(default.max_response_header_bytes),
    }
}

/// The protocol that a policy asks for instead of the Service's.
pub(crate) fn protocol(it: &spec::Connections) -> Option<UpstreamProtocol> {
    match it.protocol? {
        spec::UpstreamProtocol::Auto => None,
        spec::UpstreamProtocol::Http1 => Some(UpstreamProtocol::Http1),
        spec::UpstreamProtocol::Http2 => Some(UpstreamProtocol::Http2),
    }
}

/// A health check with its defaults.
pub fn health_check(it: &spec::HealthCheck) -> HealthCheck {
    let ranges = it.expected_statuses.as_deref().unwrap_or(&[spec::StatusRange { first: 200, last: 299 }]);
    HealthCheck {
        check: match it.check_type {
            spec::HealthCheckType::Http => Check::Http {
                method: it.method.clone().unwrap_or_else(|| "GET".to_owned()),
                path: it.path.clone().unwrap_or_else(|| "/".to_owned()),
                host: it.host.clone(),
                expected: ranges.iter().map(|r| (r.first, r.last)).collect(),
                headers: BTreeMap::new(),
            },
            spec::HealthCheckType::Grpc => Check::Grpc { service: it.service.clone().unwrap_or_default() },
            spec::HealthCheckType::Tcp => Check::Tcp,
        },
        interval: span(it.interval, Duration::from_secs(10)),
        timeout: span(it.timeout, Duration::from_secs(2)),
        unhealthy_threshold: it.unhealthy_threshold.unwrap_or(3),
        healthy_threshold: it.healthy_threshold.unwrap_or(2),
        port: it.port,
    }
}

pub(crate) fn outlier_detection(it: &spec::OutlierDetection) -> OutlierDetection {
    OutlierDetection {
        consecutive_5xx: it.consecutive5xx.unwrap_or(5),
        consecutive_gateway_errors: it.consecutive_gateway_errors.unwrap_or(0),
        consecutive_local_failures: it.consecutive_local_origin_failures.unwrap_or(5),
        success_rate: it.success_rate.as_ref().map(|s| SuccessRate {
            minimum_hosts: s.minimum_hosts.unwrap_or(5),
            request_volume: s.request_volume.unwrap_or(100),
            stdev_factor: s.stdev_factor.unwrap_or(1.9),
        }),
        interval: span(it.interval, Duration::from_secs(10)),
        base_ejection_time: span(it.base_ejection_time, Duration::from_secs(30)),
        max_ejection_time: span(it.max_ejection_time, Duration::from_secs(300)),
        max_ejection_percent: small(it.max_ejection_percent, 10).min(100),
    }
}

/// Settings of a whole socket.
pub(crate) fn socket(it: &spec::ListenerSettings) -> SocketOptions {
    let default = SocketOptions::default();
    SocketOptions {
        proxy_protocol: match it.proxy_protocol.unwrap_or_default() {
            spec::ProxyProtocolMode::Off => ProxyProtocolIn::Off,
            spec::ProxyProtocolMode::Optional => ProxyProtocolIn::Optional,
            spec::ProxyProtocolMode::Required => ProxyProtocolIn::Required,
        },
        max_connections: it.max_connections.unwrap_or(default.max_connections),
        handshake_timeout: span(it.timeouts.as_ref().and_then(|t| t.handshake), default.handshake_timeout),
    }
}

/// Settings of HTTP connections through a listener.
pub(crate) fn http_options(settings: &TrafficSettings) -> HttpOptions {
    let mut options = HttpOptions::default();
    if let Some(idle) = settings.timeouts.as_ref().and_then(|t| t.stream_idle) {
        options.stream_idle_timeout = idle.as_std();
    }
    if let Some(bytes) = settings.request_limits.as_ref().and_then(|l| l.max_target_bytes) {
        options.max_target_bytes = bytes;
    }
    let Some(it) = &settings.listener else { return options };
    let times = it.timeouts.clone().unwrap_or_default();
    let headers = it.headers.clone().unwrap_or_default();
    let http2 = it.http2.clone().unwrap_or_default();
    let path = it.normalization.clone().unwrap_or_default();
    options.header_timeout = span(times.header, options.header_timeout);
    options.idle_timeout = span(times.idle, options.idle_timeout);
    options.half_close_timeout = span(times.half_close, options.half_close_timeout);
    options.body_min_rate = times.body_min_rate.unwrap_or(options.body_min_rate);
    options.max_connection_age = span(times.max_connection_age, options.max_connection_age);
    options.max_headers = headers.max_count.unwrap_or(options.max_headers);
    options.max_header_bytes = headers.max_bytes.unwrap_or(options.max_header_bytes);
    options.underscores = match headers.underscores.unwrap_or_default() {
        spec::UnderscoreMode::Allow => Underscores::Allow,
        spec::UnderscoreMode::Drop => Underscores::Drop,
        spec::UnderscoreMode::Reject => Underscores::Reject,
    };
    options.get_bodies = it.get_bodies.unwrap_or_default() == spec::GetBodyMode::Allow;
    let own = &mut options.http2;
    own.max_concurrent_streams = http2.max_concurrent_streams.unwrap_or(own.max_concurrent_streams);
    own.initial_stream_window = http2.stream_window.unwrap_or(own.initial_stream_window);
    own.initial_connection_window = http2.connection_window.unwrap_or(own.initial_connection_window);
    own.keepalive_interval = span(http2.ping_interval, own.keepalive_interval);
    own.keepalive_timeout = span(http2.ping_timeout, own.keepalive_timeout);
    options.max_requests_per_connection = it.max_requests_per_connection.unwrap_or(options.max_requests_per_connection);
    options.trusted_hops = small(it.trusted_hops, options.trusted_hops);
    options.forwarded = it.forwarded_header.map(|header| match header {
        spec::ForwardedHeader::XForwardedFor => Source::XForwardedFor,
        spec::ForwardedHeader::Forwarded => Source::Forwarded,
    });
    // Those that are no networks were told about when they were read.
    options.trusted_cidrs = it.trusted_cidrs.iter().flatten().filter_map(|text| text.parse().ok()).collect();
    options.merge_slashes = path.merge_slashes.unwrap_or(options.merge_slashes);
    options.escaped_slashes = match path.escaped_slashes.unwrap_or_default() {
        spec::EscapedSlashes::Keep => EscapedSlashes::Keep,
        spec::EscapedSlashes::Reject => EscapedSlashes::Reject,
        spec::EscapedSlashes::Decode => EscapedSlashes::Decode,
        spec::EscapedSlashes::Redirect => EscapedSlashes::Redirect,
    };
    options
}

/// The access log that policies ask for: `None` leaves the proxy's own, an empty list writes none.
pub(crate) fn access_log(it: &spec::Telemetry) -> Option<Vec<Arc<AccessLog>>> {
    let log = it.access_log.as_ref()?;
    if log.enabled == Some(false) {
        return Some(Vec::new());
    }
    let condition = log.condition.clone().unwrap_or_default();
    let format = match (log.format.unwrap_or_default(), &log.template, &log.fields) {
        (spec::AccessLogFormat::Text, Some(template), _) => LogFormat::Text(template.clone()),
        (spec::AccessLogFormat::Text, None, _) => LogFormat::Text(COMBINED.to_owned()),
        (spec::AccessLogFormat::Json, _, Some(fields)) if !fields.is_empty() => {
            // A field of the user's takes the place of the default one of that name.
            let defaults = DEFAULT_JSON.iter().filter(|(name, _)| !fields.contains_key(*name));
            let defaults = defaults.map(|(name, template)| ((*name).to_owned(), (*template).to_owned()));
            LogFormat::JsonFields(defaults.chain(fields.iter().map(|(k, v)| (k.clone(), v.clone()))).collect())
        }
        (spec::AccessLogFormat::Json, ..) => LogFormat::Json,
    };
    Some(vec![Arc::new(AccessLog {
        output: match (&log.otlp, &log.path) {
            (Some(collector), _) => LogOutput::Otlp(collector.clone()),
            (None, Some(path)) => LogOutput::File(path.clone()),
            (None, None) => LogOutput::Stdout,
        },
        format,
        per_million: share(log.sampling.unwrap_or(100.0)),
        condition: LogCondition {
            min_status: condition.min_status,
            min_duration_ms: condition.min_duration.map(Span::as_millis),
            errors_only: condition.errors_only.unwrap_or(false),
        },
    })])
}

/// Much like the combined log format of Apache and nginx.
const COMBINED: &str = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% - [%START_TIME%] \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %BYTES_SENT% \"%REQ(REFERER)%\" \"%REQ(USER-AGENT)%\" %DURATION%";

/// Tracing that policies ask for, over the proxy's own.
pub(crate) fn tracing(it: &spec::Telemetry, own: Option<&Arc<Tracing>>) -> Option<Arc<Tracing>> {
    let asked = it.tracing.as_ref()?;
    let base = own.map(|t| (**t).clone()).unwrap_or(Tracing {
        otlp: None,
        per_million: 10_000,
        b3: true,
        follow_caller: true,
        attributes: Default::default(),
        service_name: "selvedge".to_owned(),
    });
    Some(Arc::new(Tracing {
        per_million: asked.sampling.map_or(base.per_million, share),
        follow_caller: asked.follow_caller.unwrap_or(base.follow_caller),
        attributes: asked.attributes.clone().unwrap_or(base.attributes),
        otlp: asked.otlp.clone().or(base.otlp),
        ..base
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_model::{Kind, schema};
    use serde::de::DeserializeOwned;
    use serde_json::{Map, Value};

    /// An object of one type of the schema with every default that the reference names.
    fn documented<T: DeserializeOwned>(name: &str) -> T {
        let schema = schema::schema(Kind::TrafficPolicy);
        let value = defaults(schema, &schema["$defs"][name]);
        serde_json::from_value(value).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn defaults(schema: &Value, of: &Value) -> Value {
        let fields = of["properties"].as_object().expect("an object");
        let entry = |(name, field): (&String, &Value)| {
            let inner = field["$ref"].as_str().and_then(|r| r.strip_prefix("#/$defs/")).map(|n| &schema["$defs"][n]);
            let value = match (field.get("default"), inner) {
                (Some(default), _) => default.clone(),
                (None, Some(inner)) if inner["properties"].is_object() => defaults(schema, inner),
                _ => return None,
            };
            Some((name.clone(), value))
        };
        Value::Object(fields.iter().filter_map(entry).collect::<Map<_, _>>())
    }

    /// What the reference calls a default is what happens without the field.
    #[test]
    fn defaults_are_those_of_the_reference() {
        let named: spec::Connections = documented("Connections");
        assert!(
            named.keepalive.as_ref().is_some_and(|k| k.tcp.as_ref().is_some_and(|t| t.probes.is_some())),
            "{named:?}"
        );
        assert_eq!(connections(&named), Connections::default());
        let listener: spec::ListenerSettings = documented("ListenerSettings");
        assert_eq!(socket(&listener), SocketOptions::default());
        let settings = TrafficSettings {
            listener: Some(listener),
            timeouts: Some(documented("Timeouts")),
            request_limits: Some(documented("RequestLimits")),
            ..TrafficSettings::default()
        };
        assert_eq!(http_options(&settings), HttpOptions::default());
        let balancing: spec::LoadBalancing = documented("LoadBalancing");
        let balancing = spec::LoadBalancing { slow_start: None, ..balancing };
        assert_eq!(load_balancing(&balancing), LoadBalancing::default());
        let named = retry(Some(&documented("Retry")), None, None).expect("a retry");
        let own = retry(Some(&spec::Retry::default()), None, None).expect("a retry");
        let idempotent = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
        assert_eq!(named.methods.as_deref(), Some(&idempotent[..]));
        assert_eq!(Retry { methods: None, ..named }, own);
    }
}
