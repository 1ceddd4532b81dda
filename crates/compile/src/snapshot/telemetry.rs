//! Where records go.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Outputs of listeners that have no policy of their own.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Telemetry {
    pub access_log: Vec<Arc<AccessLog>>,
    pub tracing: Option<Arc<Tracing>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessLog {
    pub output: LogOutput,
    pub format: LogFormat,
    /// Of a million records; those with status 500 and above are always written.
    pub per_million: u32,
    pub condition: LogCondition,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum LogOutput {
    Stdout,
    File(String),
    /// `http://host:4317`, OTLP over gRPC.
    Otlp(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum LogFormat {
    /// The documented default fields.
    Json,
    /// Envoy's command operators: `%REQ(:METHOD)% %RESPONSE_CODE% …`, checked by the compiler.
    Text(String),
    /// Field name to operator template.
    JsonFields(Vec<(String, String)>),
}

/// All that are given must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LogCondition {
    pub min_status: Option<u16>,
    pub min_duration_ms: Option<u64>,
    /// Only records with an error flag (upstream failure, timeout, rejected …).
    pub errors_only: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tracing {
    /// OTLP over gRPC endpoint; `None`: contexts are propagated, spans are not exported.
    pub otlp: Option<String>,
    /// Of a million requests without a sampling decision from the caller.
    pub per_million: u32,
    /// Read and write B3 headers next to W3C trace context.
    pub b3: bool,
    /// Whether the caller's sampling decision holds.
    pub follow_caller: bool,
    /// Put on every span.
    pub attributes: BTreeMap<String, String>,
    pub service_name: String,
}
