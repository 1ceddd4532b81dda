//! Endpoints of a Service port out of its EndpointSlices.

use crate::{
    index,
    report::Report,
    snapshot::{Discovery, Endpoint},
};
use selvedge_model::{
    Code, EndpointSlice, Kind, ResourceKey, Service,
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
}

/// Merges all slices of a Service. An address that is in several slices counts once, ready if any says so.
pub(crate) fn of_slices(
    report: &mut Report,
    slices: &[&Arc<EndpointSlice>],
    service: &Service,
    port: &ServicePort,
) -> Discovery {
    let mut all: BTreeMap<SocketAddr, Found> = BTreeMap::new();
    let mut name: Option<(String, u16)> = None;
    for slice in slices {
        let Some(number) = port_number(slice, service, port) else { continue };
        let (namespace, slice_name) = index::name(&slice.metadata);
        let key = || ResourceKey::new(Kind::EndpointSlice, namespace, slice_name);
        for (i, endpoint) in slice.endpoints.iter().enumerate() {
            let conditions = &endpoint.conditions;
            let ready = conditions.is_ready() || service.spec.publish_not_ready_addresses;
            let ends_but_serves = conditions.is_serving() && conditions.is_terminating();
            if !ready && !ends_but_serves {
                continue;
            }
            let Some(address) = endpoint.addresses.first() else { continue };
            if slice.address_type == EndpointAddressType::Fqdn {
                name.get_or_insert((crate::hosts::normal(address), number));
                continue;
            }
            let Ok(ip) = address.parse::<IpAddr>() else {
                let message = format!("`{address}` is no IP address: the endpoint is left out");
                report.error(&key(), Code::InvalidEndpoint, &format!("endpoints[{i}].addresses[0]"), &message);
                continue;
            };
            let address = SocketAddr::new(ip, number);
            let endpoint = Endpoint { address, weight: 1, zone: endpoint.zone.clone(), peer: None };
            let known = all.entry(address).or_insert(Found { endpoint, ready });
            known.ready |= ready;
        }
    }
    if all.is_empty()
        && let Some((host, port)) = name
    {
        return Discovery::Dns { host, port };
    }
    let any_ready = all.values().any(|found| found.ready);
    Discovery::Static(all.into_values().filter(|f| f.ready == any_ready).map(|f| f.endpoint).collect())
}

/// Slices carry the name of the Service port and the number at the endpoints. By hand one often leaves the name out,
/// which can only mean one thing when there is only one port.
fn port_number(slice: &EndpointSlice, service: &Service, port: &ServicePort) -> Option<u16> {
    let wanted = port.name.as_deref().unwrap_or("");
    let named = slice.ports.iter().find(|p| p.name.as_deref().unwrap_or("") == wanted && p.protocol == port.protocol);
    if let Some(found) = named {
        return found.port.or_else(|| target(port));
    }
    match slice.ports.as_slice() {
        [] => target(port),
        [only] if service.spec.ports.len() == 1 && only.protocol == port.protocol => only.port,
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
    let ips = service.spec.cluster_ip.iter().chain(&service.spec.cluster_ips);
    let ip = ips.filter_map(|ip| ip.parse::<IpAddr>().ok()).next();
    let endpoint = ip.map(|ip| Endpoint { address: SocketAddr::new(ip, port.port), weight: 1, zone: None, peer: None });
    Discovery::Static(endpoint.into_iter().collect())
}
