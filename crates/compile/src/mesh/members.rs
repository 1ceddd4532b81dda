//! The members of the mesh: Workloads by address and by the Services that pick them.

use crate::{
    index::{self, Index},
    report::Report,
    snapshot::{Peer, Via},
};
use ahash::{AHashMap, AHashSet};
use selvedge_model::{
    Code, Kind, ResourceKey, Service, Workload,
    core::{PortOrName, ServicePort, ServiceType, TransportProtocol},
    mesh::{HBONE_PORT, TunnelProtocol},
};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// All Workloads that have their addresses for themselves.
#[derive(Default)]
pub(crate) struct Members<'a> {
    by_address: AHashMap<IpAddr, &'a Arc<Workload>>,
    /// Sorted by name.
    by_namespace: AHashMap<&'a str, Vec<&'a Arc<Workload>>>,
    /// Of the Mesh.
    pub(crate) trust_domain: &'a str,
}

impl<'a> Members<'a> {
    /// Of two with one address the older has it (the first by name, where nobody knows the age); the younger is told, and is
    /// no member.
    pub(crate) fn new(index: &Index<'a>, report: &mut Report, trust_domain: &'a str) -> Self {
        let mut members = Members { trust_domain, ..Members::default() };
        let mut by_age: Vec<&'a Arc<Workload>> = index.workloads().iter().collect();
        by_age.sort_by(|a, b| index::age(&a.metadata).cmp(&index::age(&b.metadata)));
        let mut losers = AHashSet::new();
        for workload in by_age {
            let addresses = addresses(workload);
            let taken = addresses.iter().find_map(|ip| members.by_address.get(ip).map(|owner| (*ip, *owner)));
            let key = || ResourceKey::new(Kind::Workload, &*workload.metadata.namespace, &*workload.metadata.name);
            if let Some((ip, owner)) = taken {
                let message = format!(
                    "{ip} is the address of the older Workload {}/{}: this one is left out of the mesh until its address is changed",
                    owner.metadata.namespace, owner.metadata.name
                );
                report.error(&key(), Code::DuplicateAddress, "spec.addresses", &message);
                losers.insert(index::name(&workload.metadata));
                continue;
            }
            for ip in addresses {
                members.by_address.insert(ip, workload);
            }
        }
        for workload in index.workloads().iter().filter(|w| !losers.contains(&index::name(&w.metadata))) {
            members.by_namespace.entry(workload.metadata.namespace.as_str()).or_default().push(workload);
        }
        members
    }

    /// The Workload of that name, if it has its addresses for itself.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&'a Arc<Workload>> {
        let list = self.by_namespace.get(namespace)?;
        list.binary_search_by(|w| w.metadata.name.as_str().cmp(name)).ok().map(|at| list[at])
    }

    /// The Workload that has the address.
    pub(crate) fn at(&self, ip: IpAddr) -> Option<&'a Arc<Workload>> {
        self.by_address.get(&ip).copied()
    }

    /// All, by namespace in no order, then name.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.by_namespace.values().flatten().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Whether a namespace has any.
    pub(crate) fn any_in(&self, namespace: &str) -> bool {
        self.by_namespace.contains_key(namespace)
    }

    /// Those that a Service picks by label, sorted by name.
    pub(crate) fn of_service(&self, service: &Service) -> impl Iterator<Item = &'a Arc<Workload>> {
        let namespace = self.by_namespace.get(service.metadata.namespace.as_str()).filter(|_| selects(service));
        let all = namespace.map(Vec::as_slice).unwrap_or_default();
        all.iter().copied().filter(move |workload| picks(service, workload))
    }

    /// Who is at an endpoint, and how to get there safely; nothing without a tunnel.
    pub(crate) fn peer(&self, endpoint: SocketAddr) -> Option<Arc<Peer>> {
        let workload = self.at(endpoint.ip())?;
        let tunnel = &workload.spec.tunnel;
        let ip = tunnel.address.as_deref().and_then(|text| text.parse().ok()).unwrap_or(endpoint.ip());
        let via = match tunnel.protocol {
            TunnelProtocol::Hbone => Via::Hbone(SocketAddr::new(ip, tunnel.port.unwrap_or(HBONE_PORT))),
            TunnelProtocol::MutualTls => Via::MutualTls(SocketAddr::new(ip, tunnel.port.unwrap_or(endpoint.port()))),
            TunnelProtocol::None => return None,
        };
        Some(Arc::new(Peer { identity: self.identity(workload)?, via }))
    }

    /// Nothing when namespace or service account cannot be part of an identity, which validation has told.
    pub(crate) fn identity(&self, workload: &Workload) -> Option<SpiffeId> {
        let domain = workload.spec.trust_domain.as_deref().unwrap_or(self.trust_domain);
        SpiffeId::workload(domain, &workload.metadata.namespace, &workload.spec.service_account).ok()
    }
}

/// Whether a Service picks Workloads at all.
fn selects(service: &Service) -> bool {
    !service.spec.selector.is_empty() && service.spec.service_type != ServiceType::ExternalName
}

/// Whether a Service picks a Workload of its namespace by label.
pub(crate) fn picks(service: &Service, workload: &Workload) -> bool {
    let has = |(label, value): (&String, &String)| workload.metadata.labels.get(label) == Some(value);
    selects(service) && service.spec.selector.iter().all(has)
}

/// Its addresses; what is no address has been told by validation.
pub(crate) fn addresses(workload: &Workload) -> Vec<IpAddr> {
    workload.spec.addresses.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The port of a Workload that a Service port means.
pub(crate) fn target(workload: &Workload, port: &ServicePort) -> Option<u16> {
    if port.protocol != TransportProtocol::Tcp {
        return None;
    }
    match &port.target_port {
        None => Some(port.port),
        Some(PortOrName::Number(number)) => Some(*number).filter(|&n| n != 0),
        Some(PortOrName::Name(name)) => {
            workload.spec.ports.iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.port)
        }
    }
}
