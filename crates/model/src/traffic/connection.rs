//! Connections to backends and limits on them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inherit;
use crate::duration::Duration;

/// Connections to backends and limits on them. Limits are per backend (a Service port) and proxy process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// Longest time to open a connection, TLS handshake included.
    #[schemars(extend("default" = "5s"))]
    pub connect_timeout: Option<Duration>,
    /// Most connections at a time (Envoy circuit breaker max_connections).
    #[schemars(range(min = 1), extend("default" = 10_000))]
    pub max_connections: Option<u32>,
    /// Most requests that wait for a connection; more are answered with 503 (Envoy max_pending_requests).
    #[schemars(extend("default" = 10_000))]
    pub max_pending_requests: Option<u32>,
    /// Most requests at a time; more are answered with 503 (Envoy max_requests).
    #[schemars(range(min = 1), extend("default" = 100_000))]
    pub max_requests: Option<u32>,
    /// Most retries at a time, besides the retry budget (Envoy max_retries).
    #[schemars(extend("default" = 1000))]
    pub max_retries: Option<u32>,
    /// Requests after which a connection is closed; 0 is no limit.
    #[schemars(extend("default" = 0))]
    pub max_requests_per_connection: Option<u32>,
    /// Idle time after which a connection is closed. Keep it below the idle timeout of the backend.
    #[schemars(extend("default" = "50s"))]
    pub idle_timeout: Option<Duration>,
    /// Age after which a connection takes no new requests; `0s` is no limit.
    #[schemars(extend("default" = "0s"))]
    pub max_age: Option<Duration>,
    /// Limits on the headers of responses.
    pub response_headers: Option<ResponseHeaderLimits>,
    /// Probes that find dead connections.
    pub keepalive: Option<Keepalive>,
    /// Sends the address of the client in a PROXY protocol header at the start of each connection. HTTP requests of
    /// different clients then never share a connection.
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// HTTP/2 towards backends.
    pub http2: Option<UpstreamHttp2>,
    /// HTTP version towards backends.
    #[schemars(extend("default" = "Auto"))]
    pub protocol: Option<UpstreamProtocol>,
}

inherit!(Connections {
    connect_timeout, max_connections, max_pending_requests, max_requests, max_retries,
    max_requests_per_connection, idle_timeout, max_age, proxy_protocol, protocol; response_headers, keepalive, http2
});

/// Limits on the headers of responses, after decoding; those over them are answered with 502 in their place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseHeaderLimits {
    /// Most headers, and most trailers.
    #[schemars(range(min = 8, max = 1000), extend("default" = 100))]
    pub max_count: Option<u32>,
    /// Most bytes of all names and values.
    #[schemars(range(min = 1024, max = 1_048_576), extend("default" = 61_440))]
    pub max_bytes: Option<u32>,
}

inherit!(ResponseHeaderLimits { max_count, max_bytes });

/// Probes that find dead connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Keepalive {
    /// TCP keep-alive probes by the kernel.
    pub tcp: Option<TcpKeepalive>,
    /// Time without traffic after which an HTTP/2 PING is sent; `0s` sends none.
    #[schemars(extend("default" = "0s"))]
    pub http2_ping_interval: Option<Duration>,
    /// Longest time to wait for the answer to a PING before the connection is closed.
    #[schemars(extend("default" = "10s"))]
    pub http2_ping_timeout: Option<Duration>,
}

inherit!(Keepalive { http2_ping_interval, http2_ping_timeout; tcp });

/// TCP keep-alive probes by the kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TcpKeepalive {
    /// Idle time before the first probe; `0s` switches probes off.
    #[schemars(extend("default" = "60s"))]
    pub time: Option<Duration>,
    /// Time between probes.
    #[schemars(extend("default" = "15s"))]
    pub interval: Option<Duration>,
    /// Unanswered probes after which the connection is dead.
    #[schemars(range(min = 1, max = 127), extend("default" = 4))]
    pub probes: Option<u32>,
}

inherit!(TcpKeepalive { time, interval, probes });

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ProxyProtocolVersion {
    /// Version 1, text.
    V1,
    /// Version 2, binary.
    V2,
}

/// HTTP/2 towards backends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamHttp2 {
    /// Most requests at a time on one connection; the backend may allow fewer.
    #[schemars(range(min = 1, max = 2_147_483_647), extend("default" = 100))]
    pub max_concurrent_streams: Option<u32>,
    /// Bytes that a backend may send on one stream before we take them.
    #[schemars(range(min = 65_535, max = 2_147_483_647), extend("default" = 262_144))]
    pub stream_window: Option<u32>,
    /// Bytes that a backend may send on one connection before we take them.
    #[schemars(range(min = 65_535, max = 2_147_483_647), extend("default" = 1_048_576))]
    pub connection_window: Option<u32>,
}

inherit!(UpstreamHttp2 { max_concurrent_streams, stream_window, connection_window });

/// HTTP version towards backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum UpstreamProtocol {
    /// As `appProtocol` of the Service port and ALPN say; HTTP/2 for gRPC; else HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    #[serde(rename = "HTTP1")]
    Http1,
    /// HTTP/2: by ALPN over TLS, with prior knowledge in clear text.
    #[serde(rename = "HTTP2")]
    Http2,
}
