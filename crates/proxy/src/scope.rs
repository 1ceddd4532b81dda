//! What decides which HTTP listener answers the requests of a connection.

use selvedge_wire::spiffe::SpiffeId;
use std::net::{IpAddr, SocketAddr};

/// How the listener of a request is found. It is found anew for each request, so that a reload reaches connections that
/// are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// On the socket of a Gateway: by host.
    Hosts,
    /// On the connection of a workload to one destination: that destination, whatever the host.
    To(Key),
    /// On the connection of a workload that uses us as its HTTP proxy: each request names its destination.
    Named,
    /// On a connection to a workload: the port, whatever the host.
    Port(Arrived),
}

/// A connection to a workload, as far as policies look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Address and port of the workload.
    pub to: SocketAddr,
    /// Who called, proven by mutual TLS.
    pub peer: Option<SpiffeId>,
    /// The workload that was called.
    pub own: Option<SpiffeId>,
}

/// How a destination is found among those of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// The one that all connections of the listener go to.
    Fixed,
    Address(IpAddr, u16),
    /// In lower case, without trailing dot.
    Name(String, u16),
}

impl Key {
    pub fn address(to: SocketAddr) -> Self {
        Self::Address(to.ip().to_canonical(), to.port())
    }

    /// Of a canonical host, which may be an IP address.
    pub fn host(host: &str, port: u16) -> Self {
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => Self::Address(ip.to_canonical(), port),
            Err(_) => Self::Name(host.trim_end_matches('.').to_ascii_lowercase(), port),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed => f.write_str("the destination of this listener"),
            Self::Address(ip, port) => write!(f, "{}", SocketAddr::new(*ip, *port)),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}
