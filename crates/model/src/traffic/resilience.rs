//! Timeouts, retries, hedging, faults, direct responses, compression and limits of requests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inherit;
use crate::duration::Duration;

/// Limits of time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// From the first byte of a request to the last of its response, retries included; `0s` is no limit.
    /// Not for upgraded connections.
    #[schemars(extend("default" = "0s"))]
    pub request: Option<Duration>,
    /// For one try at one endpoint, from sending to the last byte of the response; `0s` is no limit.
    #[schemars(extend("default" = "0s"))]
    pub backend_request: Option<Duration>,
    /// Without a byte in either direction, on requests, upgraded connections and TCP (Envoy stream_idle_timeout);
    /// `0s` is no limit. For TCP and TLS routes it is an hour, for UDP sessions a minute, unless it is set here.
    #[schemars(extend("default" = "300s"))]
    pub stream_idle: Option<Duration>,
}

inherit!(Timeouts { request, backend_request, stream_idle });

/// When failed requests are sent again. A retry goes to another endpoint if there is one, and only happens while
/// nothing of the response has reached the client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How many times a request is sent again for what `retryOn` and `codes` name; 0: not at all. Whatever is set here, a
    /// request is sent again up to four times while no upstream can have seen it (the connection failed, the stream was
    /// refused), or when a kept connection died under one that may be repeated, and once when a new connection did.
    #[schemars(range(max = 100), extend("default" = 1))]
    pub attempts: Option<u32>,
    /// Status codes that are retried, 400 to 599.
    #[schemars(length(max = 64), inner(range(min = 400, max = 599)))]
    pub codes: Option<Vec<u16>>,
    /// What is retried (Envoy retry_on).
    #[schemars(length(max = 16), extend("default" = ["connect-failure", "refused-stream"]))]
    pub retry_on: Option<Vec<RetryCondition>>,
    /// The methods, and no others, whose requests may be sent again once a backend may have seen them; connection
    /// failures and refused streams are retried whatever the method. Without the list, gRPC requests may be too, for the
    /// gRPC status codes of `retryOn`.
    #[schemars(length(max = 16), extend("default" = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]))]
    pub methods: Option<Vec<String>>,
    /// Longest time for one try; without it, `timeouts.backendRequest`.
    pub per_try_timeout: Option<Duration>,
    /// Waiting time before a retry: at random between 0 and base x 2^(n-1), at most max. `Retry-After` is respected up to max.
    pub backoff: Option<Backoff>,
    /// Keeps retries a small share of all requests, so that they cannot bring a struggling backend down.
    pub budget: Option<RetryBudget>,
    /// Most bytes of a request body that are kept for a retry; requests with a longer one are not retried once their
    /// body has begun.
    #[schemars(range(max = 16_777_216), extend("default" = 65_536))]
    pub max_body_bytes: Option<u64>,
}

inherit!(Retry { attempts, codes, retry_on, methods, per_try_timeout, max_body_bytes; backoff, budget });

/// Something that is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryCondition {
    /// The connection could not be opened.
    ConnectFailure,
    /// The connection was lost, or no response came in time.
    Reset,
    /// The backend refused the HTTP/2 stream, so that it did not see the request.
    RefusedStream,
    /// Status 502, 503 or 504.
    GatewayError,
    /// Any status of 5xx, connection failure or reset.
    #[serde(rename = "5xx")]
    ServerError,
    /// Status 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// gRPC status CANCELLED.
    GrpcCancelled,
    /// gRPC status DEADLINE_EXCEEDED.
    GrpcDeadlineExceeded,
    /// gRPC status INTERNAL.
    GrpcInternal,
    /// gRPC status RESOURCE_EXHAUSTED.
    GrpcResourceExhausted,
    /// gRPC status UNAVAILABLE.
    GrpcUnavailable,
}

/// Waiting time before a retry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// Base.
    #[schemars(extend("default" = "25ms"))]
    pub base: Option<Duration>,
    /// Most.
    #[schemars(extend("default" = "250ms"))]
    pub max: Option<Duration>,
}

inherit!(Backoff { base, max });

/// Keeps retries a share of all requests (linkerd retry budget, Envoy retry_budget).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Most retries, in percent of the requests of the last 10 seconds.
    #[schemars(range(max = 100), extend("default" = 20))]
    pub percent: Option<u32>,
    /// Retries per second that are allowed in any case.
    #[schemars(extend("default" = 10))]
    pub min_retries_per_second: Option<u32>,
    /// Retries at a time that are allowed in any case.
    #[schemars(extend("default" = 3))]
    pub min_concurrency: Option<u32>,
}

inherit!(RetryBudget { percent, min_retries_per_second, min_concurrency });

/// Sends a second copy of slow requests to another endpoint and uses the first answer. Only requests that may be
/// repeated are hedged, within the retry budget.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hedging {
    /// Time without an answer after which a further copy is sent. Nothing is hedged without it.
    pub delay: Option<Duration>,
    /// Most copies of one request, the first included.
    #[schemars(range(min = 1, max = 5), extend("default" = 2))]
    pub max_attempts: Option<u32>,
}

inherit!(Hedging { delay, max_attempts });

/// Delays or fails a share of the requests on purpose (Envoy fault filter).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Delays requests.
    pub delay: Option<FaultDelay>,
    /// Answers requests with an error.
    pub abort: Option<FaultAbort>,
}

inherit!(Fault { delay, abort });

/// Delays requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultDelay {
    /// How long.
    pub fixed: Duration,
    /// Share of the requests, in percent.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
}

/// Answers requests with an error; one of `status` and `grpcStatus` is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultAbort {
    /// HTTP status.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// gRPC status.
    #[schemars(range(max = 16))]
    pub grpc_status: Option<u32>,
    /// Share of the requests, in percent.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: f64,
}

fn all() -> f64 {
    100.0
}

/// Answers requests here instead of forwarding them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// Status.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Body, at most 64 KiB.
    #[schemars(length(max = 65_536))]
    pub body: Option<String>,
    /// Content type of the body, such as `application/json`.
    #[schemars(length(min = 1, max = 256), extend("default" = "text/plain; charset=utf-8"))]
    pub content_type: Option<String>,
}

/// Compresses responses that clients accept compressed. Responses that are compressed already, partial, or marked
/// `no-transform` are left alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Compression {
    /// Algorithms, the preferred first; an empty list switches compression off.
    #[schemars(length(max = 3), extend("default" = ["zstd", "br", "gzip"]))]
    pub algorithms: Option<Vec<CompressionAlgorithm>>,
    /// Smallest body that is compressed, in bytes.
    #[schemars(extend("default" = 1024))]
    pub min_bytes: Option<u64>,
    /// Content types that are compressed; `text/*` is a family.
    #[schemars(length(max = 64), extend("default" = ["text/*", "application/json", "application/javascript", "application/xml", "application/wasm", "image/svg+xml"]))]
    pub content_types: Option<Vec<String>>,
}

inherit!(Compression { algorithms, min_bytes, content_types });

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CompressionAlgorithm {
    /// RFC 1952.
    Gzip,
    /// Brotli, RFC 7932.
    Br,
    /// Zstandard, RFC 8878.
    Zstd,
}

/// Limits on single requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestLimits {
    /// Longest request body, in bytes; longer ones are answered with 413. 0 is no limit.
    #[schemars(extend("default" = 0))]
    pub max_body_bytes: Option<u64>,
    /// Longest path and query, in bytes; longer ones are answered with 414.
    #[schemars(range(min = 64, max = 65_536), extend("default" = 8192))]
    pub max_target_bytes: Option<u32>,
}

inherit!(RequestLimits { max_body_bytes, max_target_bytes });
