//! Endpoints of a Service port: out of its EndpointSlices, and the Workloads that it picks.

use crate::{
    index,
    mesh::{
        locality::{self, Locality},
        members::{self, Members},
    },
    report::Report,
    snapshot::{Discovery, Endpoint},
};
use selvedge_model::{
    Code, EndpointSlice, Kind, ResourceKey, Service, Workload,
    core::{EndpointAddressType, PortOrName, ServicePort},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// What one endpoint adds: ready endpoints are used; when there are none, those that end but still serve.
struct Found {
    endpoint: Endpoint,
    ready: bool,
    /// Ready, or ending but still serving.
    used: bool,
}

/// Finds endpoints for one caller.
#[derive(Clone, Copy)]
pub(crate) struct Finder<'f, 'a> {
    pub(crate) members: &'f Members<'a>,
    /// Of the caller.
    pub(crate) locality: Locality<'f>,
}

impl Finder<'_, '_> {
    /// Merges all slices of a Service and the Workloads that it picks. An address that is in several slices counts once,
    /// ready if any says so; what a slice says of an address holds for the Workload there too.
    pub(crate) fn of_service(
        &self,
        report: &mut Report,
        slices: &[&Arc<EndpointSlice>],
        service: &Service,
        port: &ServicePort,
    ) -> Discovery {
        let mut all: BTreeMap<SocketAddr, Found> = BTreeMap::new();
        let mut name: Option<(String, u16)> = None;
        let namespace = Some(service.metadata.namespace.as_str());
        for slice in slices {
            self.of_slice(report, slice, service, port, &mut all, &mut name);
        }
        for workload in self.members.of_service(service) {
            let Some(number) = members::target(workload, port) else { continue };
            let Some(ip) = members::addresses(workload).first().copied() else { continue };
            let address = SocketAddr::new(ip, number);
            all.entry(address).or_insert_with(|| Found {
                endpoint: self.endpoint(address, None, namespace),
                ready: true,
                used: true,
            });
        }
        all.retain(|_, found| found.used);
        if all.is_empty()
            && let Some((host, port)) = name
        {
            return Discovery::Dns { host, port };
        }
        let any_ready = all.values().any(|found| found.ready);
        Discovery::Static(all.into_values().filter(|f| f.ready == any_ready).map(|f| f.endpoint).collect())
    }

    fn of_slice(
        &self,
        report: &mut Report,
        slice: &EndpointSlice,
        service: &Service,
        port: &ServicePort,
        all: &mut BTreeMap<SocketAddr, Found>,
        name: &mut Option<(String, u16)>,
    ) {
        let Some(number) = port_number(slice, service, port) else { return };
        let (namespace, slice_name) = index::name(&slice.metadata);
        let key = || ResourceKey::new(Kind::EndpointSlice, namespace, slice_name);
        for (i, endpoint) in slice.endpoints.iter().enumerate() {
            let conditions = &endpoint.conditions;
            let ready = conditions.is_ready() || service.spec.publish_not_ready_addresses;
            let ends_but_serves = conditions.is_serving() && conditions.is_terminating();
            let Some(address) = endpoint.addresses.first() else { continue };
            if slice.address_type == EndpointAddressType::Fqdn {
                if ready || ends_but_serves {
                    name.get_or_insert((crate::hosts::normal(address), number));
                }
                continue;
            }
            let Ok(ip) = address.parse::<IpAddr>() else {
                let message = format!("`{address}` is no IP address: the endpoint is left out");
                report.error(&key(), Code::InvalidEndpoint, &format!("endpoints[{i}].addresses[0]"), &message);
                continue;
            };
            let address = SocketAddr::new(ip, number);
            let new = || Found {
                endpoint: self.endpoint(address, endpoint.zone.as_deref(), Some(namespace)),
                ready: false,
                used: false,
            };
            // What is not used is entered too, to keep its Workload from coming in.
            let known = all.entry(address).or_insert_with(new);
            known.ready |= ready;
            known.used |= ready || ends_but_serves;
        }
    }

    /// An endpoint with what its Workload says, if there is one. `namespace` is that of whoever names the address: a Workload
    /// of another one is taken at that address only, so that it cannot draw the traffic away to a tunnel elsewhere.
    pub(crate) fn endpoint(&self, address: SocketAddr, zone: Option<&str>, namespace: Option<&str>) -> Endpoint {
        let workload: Option<&Workload> = self.members.at(address.ip()).map(Arc::as_ref);
        let own = workload.is_some_and(|w| namespace.is_none_or(|namespace| w.metadata.namespace == namespace));
        let zone = workload.and_then(|w| w.spec.zone.as_deref()).or(zone);
        Endpoint {
            address,
            weight: workload.map_or(1, |w| w.spec.weight),
            zone: zone.map(str::to_owned),
            priority: self.locality.priority(zone, locality::region(self.members, address.ip())),
            peer: self.members.peer(address).filter(|peer| own || peer.via.address().ip() == address.ip()),
        }
    }
}

/// Slices carry the name of the Service port and the number at the endpoints. By hand one often leaves the name out of one
/// of the two, which can only mean one thing when there is only one port; two names that differ mean two ports.
pub(crate) fn port_number(slice: &EndpointSlice, service: &Service, port: &ServicePort) -> Option<u16> {
    let wanted = port.name.as_deref().unwrap_or("");
    let named = slice.ports.iter().find(|p| p.name.as_deref().unwrap_or("") == wanted && p.protocol == port.protocol);
    if let Some(found) = named {
        return found.port.or_else(|| target(port));
    }
    match slice.ports.as_slice() {
        [] => target(port),
        [only] if service.spec.ports.len() == 1 && only.protocol == port.protocol => {
            let unnamed = |name: &Option<String>| name.as_deref().unwrap_or("").is_empty();
            only.port.filter(|_| unnamed(&only.name) || unnamed(&port.name))
        }
        _ => None,
    }
}

fn target(port: &ServicePort) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(PortOrName::Number(number)) => Some(*number),
        Some(PortOrName::Name(_)) => None,
    }
}

/// Without any EndpointSlice the virtual address of the Service is all there is.
pub(crate) fn of_cluster_ip(service: &Service, port: &ServicePort) -> Discovery {
    let endpoint = cluster_ips(service).first().map(|ip| Endpoint::new(SocketAddr::new(*ip, port.port)));
    Discovery::Static(endpoint.into_iter().collect())
}

/// The virtual addresses of a Service, each once.
pub(crate) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for text in service.spec.cluster_ip.iter().chain(&service.spec.cluster_ips) {
        if let Ok(ip) = text.parse()
            && !ips.contains(&ip)
        {
            ips.push(ip);
        }
    }
    ips
}
