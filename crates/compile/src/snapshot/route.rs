//! What a matched rule does.

use super::{ClusterId, Filter};
use serde::Serialize;
use std::{fmt, time::Duration};

/// Names a rule in records, metrics and explanations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RuleName {
    /// `HTTPRoute`, `GRPCRoute`, …
    pub kind: &'static str,
    pub namespace: String,
    pub route: String,
    /// Index in `spec.rules`.
    pub index: u32,
    /// `spec.rules[].name`.
    pub name: Option<String>,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}/{}#{}", self.namespace, self.route, name),
            None => write!(f, "{}/{}#{}", self.namespace, self.route, self.index),
        }
    }
}

/// One compiled rule of an HTTPRoute or GRPCRoute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rule {
    pub name: RuleName,
    /// Errors are answered as gRPC (HTTP 200 with `grpc-status`) for gRPC requests.
    pub grpc: bool,
    /// In declared order; responses pass them in reverse.
    pub filters: Vec<Filter>,
    pub action: Action,
    pub timeouts: Timeouts,
    pub retry: Option<Retry>,
    pub hedging: Option<Hedging>,
    pub session: Option<SessionPersistence>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Action {
    Forward(Split),
    /// A rule without valid backends, or a configuration that must fail closed: always this status.
    Fixed {
        status: u16,
        reason: String,
    },
}

/// Weighted choice between backends; weights are exact over `total` draws in expectation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Split {
    pub backends: Vec<Backend>,
    /// Sum of the weights, more than zero.
    pub total: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backend {
    pub weight: u32,
    pub target: Target,
    pub filters: Vec<Filter>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Target {
    Cluster(ClusterId),
    /// A reference that does not resolve takes its share of requests with this status (500 by the standard,
    /// 503 for a Service without endpoints is decided at run time).
    Invalid {
        status: u16,
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// Whole request including retries: 504. `None` = the listener's.
    pub request: Option<Duration>,
    /// One try at one backend.
    pub backend_request: Option<Duration>,
    pub stream_idle: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retry {
    /// Tries after the first.
    pub attempts: u32,
    /// Statuses that are retried.
    pub codes: Vec<u16>,
    pub on: RetryOn,
    /// What may be sent again once an upstream may have seen it; `None` is what RFC 9110 section 9.2.2 calls
    /// idempotent, and gRPC for its status codes.
    #[serde(serialize_with = "methods")]
    pub methods: Option<Vec<http::Method>>,
    pub per_try_timeout: Option<Duration>,
    pub backoff_base: Duration,
    pub backoff_max: Duration,
    pub budget: RetryBudget,
    /// A body larger than this is not kept for replay, so the request is not retried once it was sent.
    pub max_body_bytes: u32,
    /// gRPC status codes that are retried.
    pub grpc_codes: Vec<u8>,
}

fn methods<S: serde::Serializer>(methods: &Option<Vec<http::Method>>, serializer: S) -> Result<S::Ok, S::Error> {
    methods.as_ref().map(|list| list.iter().map(http::Method::as_str).collect::<Vec<_>>()).serialize(serializer)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RetryOn {
    /// The connection could not be made: nothing was sent.
    pub connect_failure: bool,
    /// Reset before response headers.
    pub reset: bool,
    pub refused_stream: bool,
    pub timeout: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RetryBudget {
    /// Retries may be this share of requests in the last 10 s …
    pub percent: u8,
    /// … but at least this many a second …
    pub min_per_second: u32,
    /// … and at least this many at a time.
    pub min_concurrency: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Hedging {
    /// A second try starts when the first has not answered after this.
    pub delay: Duration,
    /// All tries at once, 2 or more.
    pub max_attempts: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionPersistence {
    pub name: String,
    pub kind: SessionKind,
    pub absolute_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// Cookie path.
    pub path: String,
    /// Permanent cookies carry Max-Age.
    pub permanent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SessionKind {
    Cookie,
    Header,
}

/// A TCP, TLS or UDP route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct L4Route {
    pub name: RuleName,
    /// `None`: no valid backend, so the connection is closed (UDP: dropped).
    pub split: Option<Split>,
}

/// Times a request is sent again, without any policy, while no upstream can have seen it (or a kept connection died under
/// a request that may be repeated).
///
/// Four, because two endpoints that restart one after the other can take them all: the kept connection to the first
/// dies, a new one to it is refused, and then the same at the second, which has just come back.
pub const BUILT_IN_ATTEMPTS: u32 = 4;
