//! Our own listening ports: what would connect to them from inside would go round in circles.

use arc_swap::ArcSwap;
use selvedge_compile::snapshot::{Netns, Protocol, Snapshot, Transport};
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

/// Where connections of workloads come in, by namespace.
#[derive(Debug, Default)]
pub struct Own(ArcSwap<Ports>);

#[derive(Debug, Default)]
struct Ports {
    /// On all addresses of a namespace.
    ports: HashSet<(Netns, u16)>,
    /// On one address.
    bound: HashSet<(Netns, SocketAddr)>,
    /// Addresses of the workloads in a namespace, which with `ports` are sockets of ours.
    local: HashSet<(Netns, IpAddr)>,
}

impl Own {
    /// Takes over what a snapshot listens on.
    pub fn set(&self, snapshot: &Snapshot) {
        let mut own = Ports::default();
        for listener in &snapshot.listeners {
            let bind = listener.bind;
            if let Protocol::Inbound(inbound) = &listener.protocol {
                own.local.extend(inbound.addresses.iter().map(|ip| (bind.netns, *ip)));
            }
            let meshed = matches!(listener.protocol, Protocol::Inbound(_) | Protocol::Outbound(_));
            if bind.transport == Transport::Tcp && meshed {
                match bind.address {
                    None => drop(own.ports.insert((bind.netns, bind.port))),
                    Some(ip) => drop(own.bound.insert((bind.netns, SocketAddr::new(ip, bind.port)))),
                }
            }
        }
        self.0.store(own.into());
    }

    /// Whether a connection made inside this namespace would come to one of our own sockets for workloads.
    pub fn is_loop(&self, netns: Netns, to: SocketAddr) -> bool {
        let own = self.0.load();
        let ip = to.ip().to_canonical();
        let here = || ip.is_loopback() || ip.is_unspecified() || own.local.contains(&(netns, ip));
        own.bound.contains(&(netns, SocketAddr::new(ip, to.port())))
            || own.ports.contains(&(netns, to.port())) && here()
    }
}
