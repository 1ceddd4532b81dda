//! Upstreams: where requests go and how they are spread and guarded there.

use super::{Netns, Peer, UpstreamTls};
use selvedge_wire::spiffe::SpiffeId;
use serde::Serialize;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

/// Index into [`super::Snapshot::clusters`]; only meaningful within its own snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ClusterId(pub u32);

/// One upstream: a Service port (in one flavour of TLS). Live state (pools, health, limits) is kept by `key`
/// across snapshots, so the key holds whatever makes two clusters different to connect to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// `namespace/service:port`, with `@gateway` appended where a Gateway brings its own client certificate.
    pub key: String,
    pub discovery: Discovery,
    pub protocol: UpstreamProtocol,
    pub tls: Option<Arc<UpstreamTls>>,
    /// As whom members of the mesh are called; `None` calls everybody in clear text.
    #[serde(serialize_with = "identity", skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// Where connections are made.
    #[serde(skip_serializing_if = "is_own")]
    pub netns: Netns,
    pub load_balancing: LoadBalancing,
    pub connections: Connections,
    pub health_checks: Vec<HealthCheck>,
    pub outlier_detection: Option<OutlierDetection>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Discovery {
    /// From EndpointSlices; sorted by address.
    Static(Vec<Endpoint>),
    /// ExternalName or a plain host, re-resolved by TTL; the last addresses are kept when that fails.
    Dns { host: String, port: u16 },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Relative share within the cluster, 1 unless told.
    pub weight: u32,
    pub zone: Option<String>,
    /// Endpoints of a higher number take traffic only as far as those of lower ones do not suffice: 0 is the own zone, or no
    /// preference, 1 the own region, 2 the rest.
    pub priority: u8,
    /// A member of the mesh: reached by mutual TLS, as the cluster's `identity`, if that has one.
    pub peer: Option<Arc<Peer>>,
}

impl Endpoint {
    /// One of weight 1, anywhere, outside the mesh.
    pub fn new(address: SocketAddr) -> Self {
        Endpoint { address, weight: 1, zone: None, priority: 0, peer: None }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum UpstreamProtocol {
    /// HTTP/1.1, or by ALPN (h2 preferred) when TLS is on and the backend says `https`.
    Http1,
    /// HTTP/2: prior knowledge (h2c) in plaintext, ALPN h2 under TLS.
    Http2,
    /// Whatever ALPN yields; HTTP/1.1 in plaintext.
    Auto,
    /// Bytes only (TCP, TLS and UDP routes).
    Raw,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadBalancing {
    pub algorithm: Algorithm,
    /// For ring hash and Maglev: the first key that is present wins. Falls back to random.
    pub hash_keys: Vec<HashKey>,
    pub slow_start: Option<SlowStart>,
    /// Below this share of healthy endpoints (percent) health is ignored; 0 turns it off.
    pub panic_threshold: u8,
    pub zone: ZonePreference,
    /// The caller's own zone, where it is another's than the proxy's: that of the workload that calls.
    pub own_zone: Option<String>,
    /// Fewer healthy endpoints than this in the own zone, and it is not preferred.
    pub min_endpoints: u32,
    /// Percent of the own zone's (or region's) endpoints that must be healthy for it to keep all of its traffic.
    pub min_healthy_percent: u8,
}

impl Default for LoadBalancing {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::LeastRequest { choices: 2 },
            hash_keys: Vec::new(),
            slow_start: None,
            panic_threshold: 50,
            zone: ZonePreference::Prefer,
            own_zone: None,
            min_endpoints: 1,
            // Envoy's overprovisioning factor of 1.4.
            min_healthy_percent: 70,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Algorithm {
    RoundRobin,
    Random,
    LeastRequest { choices: u8 },
    PeakEwma { decay: Duration, choices: u8 },
    RingHash { min_size: u32, max_size: u32 },
    Maglev { table_size: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum HashKey {
    Header(#[serde(serialize_with = "super::filter::as_str")] http::HeaderName),
    /// A missing cookie is set with this path and lifetime when `ttl` is given.
    Cookie {
        name: String,
        ttl: Option<Duration>,
        path: String,
    },
    SourceIp,
    Query(String),
    Path,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SlowStart {
    pub window: Duration,
    /// 1.0 grows linearly; larger is slower at first (Envoy's aggression).
    pub aggression: f64,
    pub min_percent: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ZonePreference {
    Off,
    /// The own zone first while it has healthy endpoints.
    Prefer,
    /// Only the own zone.
    Strict,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Connections {
    pub connect_timeout: Duration,
    /// Open connections to the cluster, over all workers.
    pub max_connections: u32,
    /// Requests waiting for a connection.
    pub max_pending: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retries in flight.
    pub max_retries: u32,
    /// Zero = unlimited.
    pub max_requests_per_connection: u32,
    pub idle_timeout: Duration,
    /// A connection older than this is not reused; zero = no limit.
    pub max_age: Duration,
    pub http2_max_streams: u32,
    pub http2_initial_window: u32,
    pub http2_connection_window: u32,
    pub http2_keepalive_interval: Duration,
    pub http2_keepalive_timeout: Duration,
    /// Seconds of idleness before TCP keep-alive probes; zero = off.
    pub tcp_keepalive: Duration,
    /// Between probes.
    pub tcp_keepalive_interval: Duration,
    /// Unanswered probes after which the connection is dead.
    pub tcp_keepalive_probes: u32,
    pub proxy_protocol: Option<ProxyProtocolVersion>,
    /// Fields of a response head, and of its trailers.
    pub max_response_headers: u32,
    /// Bytes of a response head, once decoded.
    pub max_response_header_bytes: u32,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            max_connections: 10_000,
            max_pending: 10_000,
            max_requests: 100_000,
            max_retries: 1000,
            max_requests_per_connection: 0,
            // Below the 60 to 75 s at which common servers close, so that the race is rare.
            idle_timeout: Duration::from_secs(50),
            max_age: Duration::ZERO,
            http2_max_streams: 100,
            http2_initial_window: 256 * 1024,
            // Several streams must be able to wait for slow readers without stopping the others.
            http2_connection_window: 1024 * 1024,
            http2_keepalive_interval: Duration::ZERO,
            http2_keepalive_timeout: Duration::from_secs(10),
            tcp_keepalive: Duration::from_secs(60),
            tcp_keepalive_interval: Duration::from_secs(15),
            tcp_keepalive_probes: 4,
            proxy_protocol: None,
            // As for requests.
            max_response_headers: 100,
            max_response_header_bytes: 60 * 1024,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ProxyProtocolVersion {
    V1,
    V2,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    pub check: Check,
    pub interval: Duration,
    pub timeout: Duration,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    /// Instead of the endpoint's port.
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Check {
    Http {
        method: String,
        path: String,
        host: Option<String>,
        expected: Vec<(u16, u16)>,
        headers: BTreeMap<String, String>,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        service: String,
    },
    Tcp,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutlierDetection {
    /// Zero turns the detector off.
    pub consecutive_5xx: u32,
    /// 502, 503, 504 and connection failures.
    pub consecutive_gateway_errors: u32,
    /// Connect failures, timeouts and resets seen on our side.
    pub consecutive_local_failures: u32,
    pub success_rate: Option<SuccessRate>,
    /// How often success rates are looked at and ejections end.
    pub interval: Duration,
    pub base_ejection_time: Duration,
    pub max_ejection_time: Duration,
    pub max_ejection_percent: u8,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SuccessRate {
    pub minimum_hosts: u32,
    pub request_volume: u32,
    pub stdev_factor: f64,
}

fn identity<S: serde::Serializer>(identity: &Option<SpiffeId>, serializer: S) -> Result<S::Ok, S::Error> {
    identity.as_ref().map(SpiffeId::as_str).serialize(serializer)
}

fn is_own(netns: &Netns) -> bool {
    *netns == Netns::default()
}
