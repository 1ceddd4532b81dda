//! Our own listening ports: what would connect to them from inside would go round in circles.

use arc_swap::ArcSwap;
use selvedge_compile::snapshot::{Netns, Protocol, Snapshot, Transport};
use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

/// Where connections of workloads come in, by namespace.
#[derive(Debug, Default)]
pub struct Own {
    listeners: ArcSwap<Ports>,
    /// Sockets of the process that are none of ours, in its own namespace.
    private: ArcSwap<Vec<SocketAddr>>,
}

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
        self.listeners.store(own.into());
    }

    /// Nobody is to come to this socket of the process through us, as to the admin listener: who may use the machine's
    /// loopback may, members of a mesh may not.
    pub fn keep_private(&self, socket: SocketAddr) {
        self.private.rcu(|all| {
            let mut all = Vec::clone(all);
            all.push(socket);
            all
        });
    }

    /// Whether a connection made inside this namespace would come to one of our own sockets for workloads, or to one that
    /// is kept private.
    pub fn is_loop(&self, netns: Netns, to: SocketAddr) -> bool {
        let own = self.listeners.load();
        let ip = to.ip().to_canonical();
        let here = || ip.is_loopback() || ip.is_unspecified() || own.local.contains(&(netns, ip));
        let is = |private: &SocketAddr| {
            let any = private.ip().is_unspecified() && here();
            private.port() == to.port() && (any || private.ip().to_canonical() == ip || ip.is_unspecified())
        };
        if netns == Netns::default() && self.private.load().iter().any(is) {
            return true;
        }
        own.bound.contains(&(netns, SocketAddr::new(ip, to.port())))
            || own.ports.contains(&(netns, to.port())) && here()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_is_not_reached_through_us() {
        let own = Own::default();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        own.keep_private(address("127.0.0.1:15000"));
        own.keep_private(address("0.0.0.0:15014"));
        for (to, private) in [
            ("127.0.0.1:15000", true),
            ("[::ffff:127.0.0.1]:15000", true),
            ("0.0.0.0:15000", true),
            ("127.0.0.1:15001", false),
            ("10.0.0.1:15000", false),
            ("127.0.0.2:15014", true),
            ("10.0.0.1:15014", false),
        ] {
            assert_eq!(own.is_loop(Netns::default(), address(to)), private, "{to}");
            assert!(!own.is_loop(Netns(1), address(to)), "another namespace has another loopback");
        }
    }
}
