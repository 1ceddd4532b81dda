//! Access logs and traces.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inherit;

/// Access logs and traces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// One line per request or connection.
    pub access_log: Option<AccessLog>,
    /// Distributed traces.
    pub tracing: Option<Tracing>,
}

inherit!(Telemetry {; access_log, tracing });

/// One line per request or connection. Lines are dropped and counted, never waited for, when the log cannot keep up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// Whether lines are written.
    #[schemars(extend("default" = true))]
    pub enabled: Option<bool>,
    /// JSON object or text.
    #[schemars(extend("default" = "Json"))]
    pub format: Option<AccessLogFormat>,
    /// Template of a text line, with operators such as `%REQ(:METHOD)%`, `%REQ(user-agent)%` and `%DURATION%`;
    /// without it, a line much like the combined log format. For format `Text`.
    #[schemars(length(min = 1, max = 4096))]
    pub template: Option<String>,
    /// Further JSON fields: name and template. For format `Json`.
    pub fields: Option<BTreeMap<String, String>>,
    /// File to append to; without it, standard output. It is opened anew after SIGHUP. Not together with `otlp`.
    #[schemars(length(min = 1, max = 4096))]
    pub path: Option<String>,
    /// Collector that lines are sent to by OTLP over gRPC, instead of a file: `http://HOST:4317`, or `https://HOST:4317`
    /// with a certificate that the system (or `--otlp-ca`) trusts.
    #[schemars(length(min = 1, max = 2048))]
    pub otlp: Option<String>,
    /// Which requests are logged; without any condition, all. All given conditions must hold.
    pub condition: Option<AccessLogCondition>,
    /// Share of the requests that are logged, in percent; those with status 500 and above always are.
    #[schemars(range(min = 0.0, max = 100.0), extend("default" = 100.0))]
    pub sampling: Option<f64>,
}

inherit!(AccessLog { enabled, format, template, fields, path, otlp, condition, sampling });

/// Format of access log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessLogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// Text by a template.
    Text,
}

/// Which requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessLogCondition {
    /// Lowest status.
    #[schemars(range(min = 100, max = 599))]
    pub min_status: Option<u16>,
    /// Shortest duration.
    pub min_duration: Option<crate::duration::Duration>,
    /// Only requests that failed: those with a response flag, injected delays aside. A redirect or `directResponse` is no
    /// failure.
    pub errors_only: Option<bool>,
}

/// Distributed traces: W3C trace context and B3 are read and passed on in any case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Share of the requests without a sampling decision that are traced, in percent.
    #[schemars(range(min = 0.0, max = 100.0), extend("default" = 1.0))]
    pub sampling: Option<f64>,
    /// Whether the sampling decision of the caller is followed; switch it off where callers are not trusted.
    #[schemars(extend("default" = true))]
    pub follow_caller: Option<bool>,
    /// Attributes put on every span.
    pub attributes: Option<BTreeMap<String, String>>,
    /// Collector that spans are sent to by OTLP over gRPC: `http://HOST:4317`, or `https://HOST:4317` with a certificate that
    /// the system (or `--otlp-ca`) trusts. Without it, none are sent.
    #[schemars(length(min = 1, max = 2048))]
    pub otlp: Option<String>,
}

inherit!(Tracing { sampling, follow_caller, attributes, otlp });
