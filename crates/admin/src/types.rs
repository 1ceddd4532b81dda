//! The shapes of what is answered; they are stable, and described in `openapi.json`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// `GET /ready`
#[derive(Debug, Clone, Serialize)]
pub struct Readiness {
    pub ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Readiness {
    pub fn yes() -> Self {
        Self { ready: true, reason: None }
    }

    pub fn no(reason: impl Into<String>) -> Self {
        Self { ready: false, reason: Some(reason.into()) }
    }
}

/// `GET /live`
#[derive(Debug, Serialize)]
pub(crate) struct Liveness {
    pub live: bool,
}

/// `GET /status`
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Version of the binary.
    pub version: String,
    /// Number of the configuration that serves; 0 before the first.
    pub revision: u64,
    /// Seconds since the epoch when it was installed; 0 before the first.
    pub installed: i64,
    /// Milliseconds from reading it to serving it.
    pub took_ms: u64,
    /// Something is served that the sources do not (readably) say any more.
    pub last_good: bool,
    /// Diagnostics of each severity.
    pub errors: usize,
    pub warnings: usize,
    pub diagnostics: Vec<Diagnostic>,
    /// Listeners that cannot be served as configured.
    pub problems: Vec<Problem>,
    /// `status` of each resource that has one, by `Kind namespace/name`: conditions as the Gateway API words them.
    pub resources: BTreeMap<String, Value>,
}

impl Status {
    /// Takes diagnostics over and counts them.
    pub fn with_diagnostics<'a>(mut self, all: impl IntoIterator<Item = &'a selvedge_model::Diagnostic>) -> Self {
        self.diagnostics = all.into_iter().map(Diagnostic::from).collect();
        let count = |severity| self.diagnostics.iter().filter(|d| d.severity == severity).count();
        (self.errors, self.warnings) = (count(Severity::Error), count(Severity::Warning));
        self
    }

    /// Takes the compiler's conditions over.
    pub fn with_resources(mut self, status: &selvedge_compile::Status) -> Self {
        let shown = |s| serde_json::to_value(s).unwrap_or_default();
        self.resources = status.resources.iter().map(|(key, s)| (key.to_string(), shown(&**s))).collect();
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
    Info,
}

/// One finding about one resource or file.
#[derive(Debug, Clone, Serialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// `SELV0123`
    pub code: String,
    /// `Kind namespace/name`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Path of the field.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
}

impl From<&selvedge_model::Diagnostic> for Diagnostic {
    fn from(d: &selvedge_model::Diagnostic) -> Self {
        Self {
            severity: match d.severity {
                selvedge_model::Severity::Error => Severity::Error,
                selvedge_model::Severity::Warning => Severity::Warning,
                selvedge_model::Severity::Info => Severity::Info,
            },
            code: d.code.to_string(),
            resource: d.resource.as_ref().map(ToString::to_string),
            path: d.path.to_string(),
            message: d.message.clone(),
            help: d.help.clone(),
            file: d.location.as_ref().map(|l| l.file.to_string()),
            line: d.location.as_ref().map(|l| l.line),
            column: d.location.as_ref().map(|l| l.column),
        }
    }
}

/// A listener that cannot be served as configured.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// `tcp://*:80`
    pub listener: String,
    pub message: String,
}

/// One open socket.
#[derive(Debug, Clone, Serialize)]
pub struct Listener {
    /// `tcp://*:80`
    pub bind: String,
    /// `http`, `tls`, `tcp` or `udp`.
    pub protocol: String,
    /// Listeners of Gateways served on it: `namespace/gateway/section`.
    pub listeners: Vec<String>,
    /// Connections open now.
    pub connections: u64,
    /// Connections accepted so far.
    pub accepted: u64,
    /// It is closed, and its connections finish.
    pub draining: bool,
}

/// `POST /drain`
#[derive(Debug, Serialize)]
pub(crate) struct Draining {
    pub draining: bool,
}

/// `GET|PUT /log-level`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Level {
    /// `info`, or a filter such as `info,selvedge_proxy=debug`.
    pub level: String,
}
