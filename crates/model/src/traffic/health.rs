//! Active health checks and outlier detection.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inherit;
use crate::duration::Duration;

/// An active health check: a probe at intervals. Health is kept per backend, never per route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// What is probed.
    #[serde(rename = "type", default)]
    pub check_type: HealthCheckType,
    /// Time between probes of one endpoint, plus or minus a tenth at random.
    #[schemars(extend("default" = "10s"))]
    pub interval: Option<Duration>,
    /// Longest time to wait for the answer.
    #[schemars(extend("default" = "2s"))]
    pub timeout: Option<Duration>,
    /// Failures in a row after which an endpoint is unhealthy.
    #[schemars(range(min = 1, max = 1000), extend("default" = 3))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row after which an endpoint is healthy again. The first probe of a new endpoint counts at once.
    #[schemars(range(min = 1, max = 1000), extend("default" = 2))]
    pub healthy_threshold: Option<u32>,
    /// Path to request, for `HTTP`.
    #[schemars(length(max = 1024), extend("default" = "/"))]
    pub path: Option<String>,
    /// Host header, for `HTTP`, or authority, for `GRPC`; without it, the name of the backend.
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
    /// Method, for `HTTP`.
    #[schemars(length(min = 1, max = 32), extend("default" = "GET"))]
    pub method: Option<String>,
    /// Statuses that are healthy, for `HTTP`: codes and ranges such as `200` and `200-399`.
    #[schemars(length(max = 16), extend("default" = ["200-299"]))]
    pub expected_statuses: Option<Vec<StatusRange>>,
    /// Service name in the request of `grpc.health.v1.Health/Check`, for `GRPC`; empty asks for the whole server.
    #[schemars(length(max = 1024), extend("default" = ""))]
    pub service: Option<String>,
    /// Port to probe; without it, the port of the endpoint.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
}

/// What a health check probes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum HealthCheckType {
    /// An HTTP request, with the protocol and TLS of the backend.
    #[default]
    #[serde(rename = "HTTP")]
    Http,
    /// The gRPC health checking protocol.
    #[serde(rename = "GRPC")]
    Grpc,
    /// Opening a TCP connection.
    #[serde(rename = "TCP")]
    Tcp,
}

/// A status code or a range of them: `200` or `200-299`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "StatusText", into = "String")]
#[schemars(with = "StatusText", inline)]
pub struct StatusRange {
    /// First status code.
    pub first: u16,
    /// Last status code.
    pub last: u16,
}

impl StatusRange {
    /// Whether the range holds the code.
    pub const fn contains(self, status: u16) -> bool {
        self.first <= status && status <= self.last
    }
}

/// Form of a status code or a range of them.
pub(crate) const STATUS_PATTERN: &str = "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$";

#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum StatusText {
    Code(#[schemars(range(min = 100, max = 599))] u16),
    Range(#[schemars(regex(pattern = crate::traffic::STATUS_PATTERN))] String),
}

impl TryFrom<StatusText> for StatusRange {
    type Error = String;

    fn try_from(text: StatusText) -> Result<Self, String> {
        let (first, last) = match &text {
            StatusText::Code(code) => (Some(*code), Some(*code)),
            StatusText::Range(text) => {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                (first.trim().parse().ok(), last.trim().parse().ok())
            }
        };
        match (first, last) {
            (Some(first), Some(last)) if (100..=599).contains(&first) && first <= last && last <= 599 => {
                Ok(StatusRange { first, last })
            }
            _ => Err("not a status code or a range of them: write 200 or 200-299, within 100 to 599".to_owned()),
        }
    }
}

impl From<StatusRange> for String {
    fn from(range: StatusRange) -> Self {
        if range.first == range.last { range.first.to_string() } else { format!("{}-{}", range.first, range.last) }
    }
}

/// Takes endpoints out that fail real requests (Envoy outlier_detection). An endpoint comes back when one real
/// request, let through after its ejection time, succeeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Responses of 5xx in a row, connection failures included, that eject; 0 switches it off.
    #[schemars(extend("default" = 5))]
    pub consecutive5xx: Option<u32>,
    /// Responses of 502, 503 or 504 in a row that eject; 0 switches it off.
    #[schemars(extend("default" = 0))]
    pub consecutive_gateway_errors: Option<u32>,
    /// Failures to connect, resets and timeouts in a row that eject; 0 switches it off.
    #[schemars(extend("default" = 5))]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Ejects endpoints whose success rate is far below the others'.
    pub success_rate: Option<SuccessRate>,
    /// Time between sweeps that compare success rates and end ejections.
    #[schemars(extend("default" = "10s"))]
    pub interval: Option<Duration>,
    /// First ejection time; it grows with every further ejection.
    #[schemars(extend("default" = "30s"))]
    pub base_ejection_time: Option<Duration>,
    /// Longest ejection time.
    #[schemars(extend("default" = "300s"))]
    pub max_ejection_time: Option<Duration>,
    /// Most endpoints ejected at a time, in percent; one may always be, if there are others.
    #[schemars(range(max = 100), extend("default" = 10))]
    pub max_ejection_percent: Option<u32>,
}

inherit!(OutlierDetection {
    consecutive5xx, consecutive_gateway_errors, consecutive_local_origin_failures, interval,
    base_ejection_time, max_ejection_time, max_ejection_percent; success_rate
});

/// Ejects endpoints whose success rate is below average - stdevFactor x standard deviation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// Fewest endpoints with enough requests for a comparison.
    #[schemars(range(min = 2), extend("default" = 5))]
    pub minimum_hosts: Option<u32>,
    /// Fewest requests of an endpoint in one interval to be compared.
    #[schemars(range(min = 1), extend("default" = 100))]
    pub request_volume: Option<u32>,
    /// How many standard deviations below the average is too low.
    #[schemars(range(min = 0.1, max = 10.0), extend("default" = 1.9))]
    pub stdev_factor: Option<f64>,
}

inherit!(SuccessRate { minimum_hosts, request_volume, stdev_factor });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_codes_or_ranges() {
        let read = |text: &str| serde_json::from_str::<StatusRange>(text).ok();
        assert_eq!(read("204"), Some(StatusRange { first: 204, last: 204 }));
        assert_eq!(read("\"204\""), Some(StatusRange { first: 204, last: 204 }));
        assert_eq!(read("\"200-399\""), Some(StatusRange { first: 200, last: 399 }));
        for bad in ["99", "600", "\"399-200\"", "\"\"", "\"2xx\"", "\"200-\""] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
