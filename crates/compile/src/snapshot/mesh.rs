//! What a proxy beside workloads serves: connections that leave a workload, and connections that come to it.

use super::{Access, HttpListener, HttpOptions, L4Options, L4Route, ListenerName};
use selvedge_wire::spiffe::SpiffeId;
use serde::{Serialize, Serializer};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

/// A network namespace, by a number that whoever embeds the proxy gives it; 0 is the process's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Netns(pub u32);

/// Connections that leave one local workload.
#[derive(Debug, Clone, Serialize)]
pub struct Outbound {
    /// Of kind `Workload`, section `outbound`.
    pub name: ListenerName,
    /// Whose certificate is shown to others; connections of workloads without one leave in clear text.
    #[serde(serialize_with = "optional_id")]
    pub identity: Option<SpiffeId>,
    pub find: Find,
    pub destinations: Arc<Destinations>,
    /// Destinations that nothing is known of.
    pub unknown: Unknown,
    /// For all HTTP connections here, before a destination's own are known.
    pub http: Arc<HttpOptions>,
    /// For connections to unknown destinations.
    pub streams: Arc<L4Options>,
}

/// How the destination of an outbound connection is known.
#[derive(Debug, Clone, Serialize)]
pub enum Find {
    /// By the address it had before it was redirected here (SO_ORIGINAL_DST).
    OriginalDestination,
    /// The workload speaks to us as to an HTTP proxy: absolute-form requests, and CONNECT for everything else
    /// (RFC 9110 section 7.1, 9.3.6).
    HttpProxy,
    /// All connections go to one destination.
    Fixed(Arc<Destination>),
}

/// All that a workload can reach, by the ways to name it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Destinations {
    /// Service addresses (cluster IPs and assigned ones) and addresses of single workloads, with port.
    #[serde(serialize_with = "by_address")]
    pub addresses: BTreeMap<(IpAddr, u16), Arc<Destination>>,
    /// Host names in lower case without trailing dot, in each form that is understood, with port; wildcards of
    /// ExternalServices as `*.example.com`. [`Destinations::find_name`] finds what fits.
    #[serde(serialize_with = "by_name")]
    pub names: BTreeMap<(String, u16), Arc<Destination>>,
}

impl Destinations {
    /// The destination of a host name (lower case, without trailing dot): its own, else that of the longest wildcard.
    pub fn find_name(&self, host: &str, port: u16) -> Option<&Arc<Destination>> {
        if let Some(found) = self.names.get(&(host.to_owned(), port)) {
            return Some(found);
        }
        let mut rest = host;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(found) = self.names.get(&(format!("*.{parent}"), port)) {
                return Some(found);
            }
            rest = parent;
        }
        None
    }
}

/// What is done with connections to destinations that nothing is known of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Unknown {
    /// Bytes are passed on to where they were going.
    #[default]
    Pass,
    /// Refused: 502 for HTTP, a reset otherwise. Counted either way.
    Refuse,
}

/// One port of a Service, workload or ExternalService, as seen by a client of it. Without `http` and `tcp`, as for a wildcard
/// ExternalService, connections and requests are passed on to where they were going, whatever `Outbound.unknown` says.
#[derive(Debug, Clone, Serialize)]
pub struct Destination {
    /// `namespace/name:port`, for records and messages.
    pub name: String,
    pub speaks: Speaks,
    /// Answers HTTP, unless `speaks` is `Tcp`: GAMMA routes, and behind them the Service itself. It takes any host.
    pub http: Option<Arc<HttpListener>>,
    /// For everything that is not HTTP.
    pub tcp: Option<Arc<L4Route>>,
    pub streams: Arc<L4Options>,
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Speaks {
    /// HTTP/1.1, HTTP/2 with prior knowledge, gRPC: told apart by the first bytes.
    Http,
    /// Bytes, also such as TLS of the application and protocols in which the server speaks first.
    Tcp,
    /// Nobody has said: the first bytes of the client tell, for which we wait but shortly.
    #[default]
    Undeclared,
}

/// Connections that come to one local workload.
#[derive(Debug, Clone, Serialize)]
pub struct Inbound {
    /// Of kind `Workload`, section `inbound`.
    pub name: ListenerName,
    /// Whose certificate is shown; without one only clear text is served.
    #[serde(serialize_with = "optional_id")]
    pub identity: Option<SpiffeId>,
    pub arrive: Arrive,
    /// Addresses of the workload: a tunnel may ask for no others.
    pub addresses: Vec<IpAddr>,
    pub ports: BTreeMap<u16, Arc<InboundPort>>,
    /// Ports that nobody has declared.
    pub other: Arc<InboundPort>,
    /// Who may come; for ports and for requests.
    pub access: Arc<Access>,
}

/// How inbound connections reach us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Arrive {
    /// Redirected: the port they were meant for is that of their original destination.
    OriginalDestination,
    /// HBONE: HTTP/2 CONNECT over mutual TLS, the target in `:authority`.
    Hbone,
    /// Meant for one port of the workload.
    Port(u16),
}

/// What holds for one port of a local workload.
#[derive(Debug, Clone, Serialize)]
pub struct InboundPort {
    pub speaks: Speaks,
    pub mtls: MtlsMode,
    /// Takes any host and has one rule for everything; `None` when `speaks` is `Tcp`, or for ports that nobody has declared.
    pub http: Option<Arc<HttpListener>>,
    /// Where bytes go; `None`: to the original destination.
    pub tcp: Option<Arc<L4Route>>,
    pub streams: Arc<L4Options>,
}

/// What is demanded of connections to a workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum MtlsMode {
    /// Mutual TLS or clear text.
    #[default]
    Permissive,
    /// As permissive, and what `Strict` would refuse is logged and counted.
    Audit,
    /// Only mutual TLS.
    Strict,
}

/// Who is at an endpoint and how to get there safely.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Peer {
    /// Its certificate must say this.
    #[serde(serialize_with = "id")]
    pub identity: SpiffeId,
    pub via: Via,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Via {
    /// A stream of an HBONE connection to this address, to the endpoint's own address.
    Hbone(SocketAddr),
    /// Mutual TLS to this address, with our protocol in ALPN and nothing around the bytes.
    MutualTls(SocketAddr),
}

impl Via {
    /// Where its proxy listens.
    pub fn address(self) -> SocketAddr {
        match self {
            Self::Hbone(address) | Self::MutualTls(address) => address,
        }
    }
}

/// Protocol names (ALPN) of connections between members of a mesh.
pub mod alpn {
    /// HBONE is HTTP/2.
    pub const HBONE: &[u8] = b"h2";
    /// Mutual TLS around whatever the application speaks.
    pub const MUTUAL_TLS: &[u8] = b"selvedge";
}

/// Names that the mesh resolves, as those who ask from one network namespace may write them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DnsNames {
    /// By name in lower case, without trailing dot, fully qualified (`orders.shop.svc.cluster.local`, `api.example.com`).
    /// Shared by all network namespaces.
    pub names: Arc<BTreeMap<String, Vec<IpAddr>>>,
    /// Appended to names that are not fully qualified, in this order (`shop.svc.cluster.local`, `svc.cluster.local`, …).
    pub search: Vec<String>,
    pub ttl: Duration,
}

fn id<S: Serializer>(id: &SpiffeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id.as_str())
}

fn optional_id<S: Serializer>(id: &Option<SpiffeId>, serializer: S) -> Result<S::Ok, S::Error> {
    id.as_ref().map(SpiffeId::as_str).serialize(serializer)
}

fn by_address<S: Serializer>(
    map: &BTreeMap<(IpAddr, u16), Arc<Destination>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|((ip, port), to)| (SocketAddr::new(*ip, *port).to_string(), to)))
}

fn by_name<S: Serializer>(map: &BTreeMap<(String, u16), Arc<Destination>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|((name, port), to)| (format!("{name}:{port}"), to)))
}
