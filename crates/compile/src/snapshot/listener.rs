//! Sockets and what is served on them.

use super::{Access, AccessLog, CertificateRef, ClientValidation, Inbound, L4Route, Netns, Outbound, Tracing};
use crate::router::{HostMap, Router};
use selvedge_wire::{
    forwarded::{Source, Trust},
    uri::{self, PathOptions},
};
use serde::{Serialize, Serializer};
use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

/// The identity of a socket. Two snapshots that both contain an equal `Bind` keep the open socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Bind {
    /// `None` binds all addresses (dual-stack `[::]`, or `0.0.0.0` where IPv6 is off).
    pub address: Option<IpAddr>,
    pub port: u16,
    pub transport: Transport,
    /// Where the socket is opened.
    pub netns: Netns,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        match self.address {
            Some(IpAddr::V6(a)) => write!(f, "{scheme}://[{a}]:{}", self.port)?,
            Some(a) => write!(f, "{scheme}://{a}:{}", self.port)?,
            None => write!(f, "{scheme}://*:{}", self.port)?,
        }
        match self.netns {
            Netns(0) => Ok(()),
            Netns(number) => write!(f, " in namespace {number}"),
        }
    }
}

/// One socket and everything served behind it.
#[derive(Debug, Clone, Serialize)]
pub struct Listener {
    pub bind: Bind,
    pub options: SocketOptions,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, Serialize)]
pub enum Protocol {
    /// Plaintext HTTP/1.1 and h2c (prior knowledge); the `Host` picks the [`HttpListener`].
    Http(HostMap<Arc<HttpListener>>),
    /// TLS; the SNI picks the entry.
    Tls(HostMap<Arc<TlsListener>>),
    Tcp(Arc<L4Listener>),
    Udp(Arc<L4Listener>),
    /// From a local workload to anywhere.
    Outbound(Arc<Outbound>),
    /// From anywhere to a local workload.
    Inbound(Arc<Inbound>),
}

/// What holds for a whole socket, before a byte of the protocol is read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SocketOptions {
    pub proxy_protocol: ProxyProtocolIn,
    /// Connections open at once on this listener; more are closed at accept and counted.
    pub max_connections: u32,
    /// Time for PROXY header, TLS handshake or ClientHello.
    pub handshake_timeout: Duration,
}

impl Default for SocketOptions {
    fn default() -> Self {
        // 10 000 per listener and 10 s: Envoy's edge best practice, reference reliability.md section 1.
        Self {
            proxy_protocol: ProxyProtocolIn::Off,
            max_connections: 10_000,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ProxyProtocolIn {
    /// A PROXY header is not looked for (and so is a malformed request).
    Off,
    /// Read if it is there: only for networks where every peer is trusted.
    Optional,
    /// A connection without it is closed.
    Required,
}

/// Names a Gateway (or ListenerSet) listener in records, metrics and diagnostics.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ListenerName {
    /// `Gateway` or `ListenerSet`.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    /// `spec.listeners[].name`.
    pub section: String,
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.name, self.section)
    }
}

/// One HTTP or HTTPS listener: a hostname and the routes attached to it.
#[derive(Debug, Clone, Serialize)]
pub struct HttpListener {
    pub name: ListenerName,
    /// `None` matches every host; may be a wildcard `*.example.com`.
    pub hostname: Option<String>,
    pub router: Router,
    /// Who may send requests; judged before filters.
    pub access: Option<Arc<Access>>,
    pub options: Arc<HttpOptions>,
    /// Where this listener's records go.
    pub access_log: Vec<Arc<AccessLog>>,
    pub tracing: Option<Arc<Tracing>>,
}

/// Limits and timeouts of HTTP connections. Defaults are those of a safe edge (reliability.md section 1).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpOptions {
    /// From the first byte of a request to the end of its header block.
    pub header_timeout: Duration,
    /// A keep-alive connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// No byte moved in either direction of a request for this long: 408 or reset.
    pub stream_idle_timeout: Duration,
    /// HTTP/1.1: nothing could be written for this long to a client that has shut its sending side: it has left; zero = it
    /// is waited for as any other.
    pub half_close_timeout: Duration,
    /// Whole request, zero = none; routes may set their own.
    pub request_timeout: Duration,
    pub max_headers: u32,
    /// Bytes of the decoded header block (names + values + 32 each for HTTP/2).
    pub max_header_bytes: u32,
    /// Request body, zero = unlimited.
    pub max_body_bytes: u64,
    pub http2: Http2Options,
    /// Requests per connection, zero = unlimited; then `Connection: close` or GOAWAY.
    pub max_requests_per_connection: u32,
    /// Proxies in front of us whose X-Forwarded-For entries are believed.
    pub trusted_hops: u8,
    /// The field in which trusted proxies name the client; without it both are read, and must agree.
    #[serde(serialize_with = "source")]
    pub forwarded: Option<Source>,
    /// Peers whose forwarded headers are believed; empty with `trusted_hops == 0` means none.
    pub trusted_cidrs: Vec<ipnet::IpNet>,
    /// Send `server: selvedge` on answers made by us.
    pub server_header: bool,
    /// Advertise HTTP/2 (ALPN h2, h2c prior knowledge).
    pub http2_enabled: bool,
    /// Longest path and query in bytes: 414.
    pub max_target_bytes: u32,
    /// Slowest request body in bytes per second averaged over 10 s: 408; zero = no limit.
    pub body_min_rate: u32,
    /// A connection older than this takes no new requests; zero = no limit.
    pub max_connection_age: Duration,
    pub underscores: Underscores,
    /// GET and HEAD may have a body; else 400.
    pub get_bodies: bool,
    /// `//` in paths becomes `/` before routing.
    pub merge_slashes: bool,
    pub escaped_slashes: EscapedSlashes,
}

fn source<S: Serializer>(source: &Option<Source>, serializer: S) -> Result<S::Ok, S::Error> {
    let name = source.map(|source| match source {
        Source::XForwardedFor => "XForwardedFor",
        Source::Forwarded => "Forwarded",
    });
    name.serialize(serializer)
}

impl HttpOptions {
    /// Which proxies in front of a listener are believed.
    pub fn trust(&self) -> Trust {
        match (self.trusted_hops, self.trusted_cidrs.as_slice()) {
            (0, []) => Trust::Nobody,
            (hops, []) => Trust::Hops(hops),
            // Whoever names networks does not want peers outside of them to be believed.
            (_, networks) => Trust::Networks(networks.to_vec()),
        }
    }

    /// How request targets are made canonical.
    pub fn path(&self) -> PathOptions {
        PathOptions {
            merge_slashes: self.merge_slashes,
            escaped_slashes: match self.escaped_slashes {
                EscapedSlashes::Keep => uri::EscapedSlashes::Keep,
                EscapedSlashes::Reject => uri::EscapedSlashes::Reject,
                EscapedSlashes::Decode => uri::EscapedSlashes::Unescape,
                EscapedSlashes::Redirect => uri::EscapedSlashes::UnescapeAndRedirect,
            },
            ..PathOptions::default()
        }
    }
}

/// What is done with header names that hold an underscore, which some backends take for a hyphen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Underscores {
    Allow,
    /// The header is removed.
    #[default]
    Drop,
    /// 400.
    Reject,
}

/// What is done with `%2F` and `%5C` in paths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum EscapedSlashes {
    #[default]
    Keep,
    /// 400.
    Reject,
    /// Decoded before dot segments are removed.
    Decode,
    /// As `Decode`, and the client is sent to the result.
    Redirect,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            stream_idle_timeout: Duration::from_secs(300),
            half_close_timeout: Duration::from_secs(5),
            request_timeout: Duration::ZERO,
            max_headers: 100,
            max_header_bytes: 60 * 1024,
            max_body_bytes: 0,
            http2: Http2Options::default(),
            max_requests_per_connection: 0,
            trusted_hops: 0,
            forwarded: None,
            trusted_cidrs: Vec::new(),
            server_header: true,
            http2_enabled: true,
            max_target_bytes: 8192,
            body_min_rate: 100,
            max_connection_age: Duration::ZERO,
            underscores: Underscores::Drop,
            get_bodies: false,
            merge_slashes: true,
            escaped_slashes: EscapedSlashes::Keep,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Http2Options {
    pub max_concurrent_streams: u32,
    pub initial_stream_window: u32,
    pub initial_connection_window: u32,
    pub max_frame_size: u32,
    /// Streams reset by the peer before we answered, waiting to be forgotten; more ends the connection (rapid reset).
    pub max_pending_resets: u32,
    /// PING the peer after this long without a frame; zero = off.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 100,
            initial_stream_window: 64 * 1024,
            initial_connection_window: 1024 * 1024,
            max_frame_size: 16 * 1024,
            max_pending_resets: 20,
            keepalive_interval: Duration::ZERO,
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// One listener (by SNI) of a TLS socket.
#[derive(Debug, Clone, Serialize)]
pub struct TlsListener {
    pub name: ListenerName,
    pub hostname: Option<String>,
    pub mode: TlsMode,
}

#[derive(Debug, Clone, Serialize)]
pub enum TlsMode {
    /// HTTPS listener.
    Http { tls: Termination, http: Arc<HttpListener> },
    /// TLS listener, `mode: Terminate`: TLSRoute by SNI or TCPRoute.
    Tcp { tls: Termination, routes: HostMap<Arc<L4Route>>, listener: Arc<L4Options> },
    /// TLS listener, `mode: Passthrough`.
    Passthrough { routes: HostMap<Arc<L4Route>>, listener: Arc<L4Options> },
}

/// How we are a TLS server.
#[derive(Debug, Clone, Serialize)]
pub struct Termination {
    /// The first that fits SNI and signature schemes is used, else the first.
    pub certificates: Vec<CertificateRef>,
    pub client: Option<ClientValidation>,
    /// `1.2` or `1.3`.
    pub min_version: TlsVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// A TCP or UDP listener.
#[derive(Debug, Clone, Serialize)]
pub struct L4Listener {
    pub route: Option<Arc<L4Route>>,
    pub options: Arc<L4Options>,
}

#[derive(Debug, Clone, Serialize)]
pub struct L4Options {
    pub name: ListenerName,
    /// A connection (or UDP session) without a byte either way is closed after this.
    pub idle_timeout: Duration,
    /// Who may connect, at a Gateway.
    pub access: Option<Arc<Access>>,
    pub access_log: Vec<Arc<AccessLog>>,
}
