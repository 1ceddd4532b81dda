//! Settings of listeners.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::inherit;
use crate::duration::Duration;

/// Settings of listeners. Listeners that share a port must agree on what is decided before the route is known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerSettings {
    /// Whether connections start with a PROXY protocol header (version 1 or 2), which tells the address of the client.
    #[schemars(extend("default" = "Off"))]
    pub proxy_protocol: Option<ProxyProtocolMode>,
    /// How many proxies in front are trusted to tell the address of the client in Forwarded or X-Forwarded-For;
    /// with 0 these headers are replaced.
    #[schemars(range(max = 32), extend("default" = 0))]
    pub trusted_hops: Option<u32>,
    /// Networks of proxies in front that are trusted in the same way, in CIDR notation; takes the place of
    /// `trustedHops`. The client is the rightmost address outside of them.
    #[schemars(length(max = 256))]
    pub trusted_cidrs: Option<Vec<String>>,
    /// The header in which the trusted proxies name the client; the other one is then removed, as it comes from a client.
    /// When this is absent, either is read, and a request in which they name different clients is refused with 400.
    pub forwarded_header: Option<ForwardedHeader>,
    /// Most connections at a time; further ones are closed as soon as they are accepted.
    #[schemars(range(min = 1), extend("default" = 10_000))]
    pub max_connections: Option<u32>,
    /// Limits on request headers, after decoding.
    pub headers: Option<HeaderLimits>,
    /// Limits of time towards clients.
    pub timeouts: Option<ListenerTimeouts>,
    /// HTTP/2 towards clients.
    pub http2: Option<DownstreamHttp2>,
    /// What is done with GET and HEAD requests that have a body. Allow it only where all backends read such bodies, as
    /// Elasticsearch does: one that does not may take it for a request of its own, which no policy has seen.
    #[schemars(extend("default" = "Reject"))]
    pub get_bodies: Option<GetBodyMode>,
    /// How request targets are treated before routing.
    pub normalization: Option<Normalization>,
    /// Requests after which a client connection is closed; 0 is no limit.
    #[schemars(extend("default" = 0))]
    pub max_requests_per_connection: Option<u32>,
}

inherit!(ListenerSettings {
    proxy_protocol, trusted_hops, trusted_cidrs, forwarded_header, max_connections, get_bodies, max_requests_per_connection;
    headers, timeouts, http2, normalization
});

/// A header in which proxies name the client they speak for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Whether connections start with a PROXY protocol header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ProxyProtocolMode {
    /// None is read.
    #[default]
    Off,
    /// It is read if it is there. Only behind a proxy that sends it: otherwise clients can claim any address.
    Optional,
    /// Connections without it are closed.
    Required,
}

/// Limits on request headers, after decoding; requests over them are answered with 431.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderLimits {
    /// Most headers, cookies and repeated ones included.
    #[schemars(range(min = 8, max = 1000), extend("default" = 100))]
    pub max_count: Option<u32>,
    /// Most bytes of all names and values.
    #[schemars(range(min = 1024, max = 1_048_576), extend("default" = 61_440))]
    pub max_bytes: Option<u32>,
    /// What is done with header names that hold an underscore, which some backends take for a hyphen.
    #[schemars(extend("default" = "Drop"))]
    pub underscores: Option<UnderscoreMode>,
}

inherit!(HeaderLimits { max_count, max_bytes, underscores });

/// What is done with header names that hold an underscore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum UnderscoreMode {
    /// They pass, except those that only the gateway may send (`X_Forwarded_For`).
    Allow,
    /// The header is removed.
    #[default]
    Drop,
    /// The request is answered with 400.
    Reject,
}

/// What is done with GET and HEAD requests that have a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum GetBodyMode {
    /// They pass, each to an HTTP/1.1 backend by a connection that is closed after it.
    Allow,
    /// They are answered with 400.
    #[default]
    Reject,
}

/// Limits of time towards clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTimeouts {
    /// From the connection to the end of the TLS handshake and of the PROXY protocol header.
    #[schemars(extend("default" = "10s"))]
    pub handshake: Option<Duration>,
    /// From the first byte of a request to the end of its headers; answered with 408.
    #[schemars(extend("default" = "10s"))]
    pub header: Option<Duration>,
    /// Between requests on one connection.
    #[schemars(extend("default" = "300s"))]
    pub idle: Option<Duration>,
    /// How long a client that has shut its sending side of an HTTP/1.1 connection, as `nc -N` does, is waited for: from then,
    /// and from each part of its answer. Whether it still waits or has left cannot be told before something is sent to it,
    /// and until then a backend works on its request. `0s` is no limit of its own.
    #[schemars(extend("default" = "5s"))]
    pub half_close: Option<Duration>,
    /// Slowest request body, in bytes per second averaged over 10 seconds; slower ones are answered with 408.
    /// 0 is no limit.
    #[schemars(extend("default" = 100))]
    pub body_min_rate: Option<u32>,
    /// Age after which a connection takes no new requests; `0s` is no limit.
    #[schemars(extend("default" = "0s"))]
    pub max_connection_age: Option<Duration>,
}

inherit!(ListenerTimeouts { handshake, header, idle, half_close, body_min_rate, max_connection_age });

/// HTTP/2 towards clients.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DownstreamHttp2 {
    /// Most requests at a time on one connection.
    #[schemars(range(min = 1, max = 10_000), extend("default" = 100))]
    pub max_concurrent_streams: Option<u32>,
    /// Bytes that a client may send on one stream before we take them.
    #[schemars(range(min = 1024, max = 2_147_483_647), extend("default" = 65_536))]
    pub stream_window: Option<u32>,
    /// Bytes that a client may send on one connection before we take them.
    #[schemars(range(min = 65_535, max = 2_147_483_647), extend("default" = 1_048_576))]
    pub connection_window: Option<u32>,
    /// Time without traffic after which a PING is sent; `0s` sends none.
    #[schemars(extend("default" = "0s"))]
    pub ping_interval: Option<Duration>,
    /// Longest time to wait for the answer to a PING before the connection is closed.
    #[schemars(extend("default" = "10s"))]
    pub ping_timeout: Option<Duration>,
}

inherit!(DownstreamHttp2 { max_concurrent_streams, stream_window, connection_window, ping_interval, ping_timeout });

/// How request targets are treated before routing. Dot segments are always resolved and needless percent-encoding
/// is always undone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Normalization {
    /// Whether `//` in paths becomes `/`.
    #[schemars(extend("default" = true))]
    pub merge_slashes: Option<bool>,
    /// What is done with an encoded slash or backslash (`%2F`, `%5C`) in a path.
    #[schemars(extend("default" = "Keep"))]
    pub escaped_slashes: Option<EscapedSlashes>,
}

inherit!(Normalization { merge_slashes, escaped_slashes });

/// What is done with an encoded slash or backslash in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum EscapedSlashes {
    /// It stays encoded.
    #[default]
    Keep,
    /// The request is answered with 400.
    Reject,
    /// It is decoded, before dot segments are resolved.
    Decode,
    /// As with Decode, and the client is redirected (307) to the result, so that nothing in front of the proxy reads
    /// the path differently; gRPC requests are answered with 400.
    Redirect,
}
