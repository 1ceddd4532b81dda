//! What is outside of the mesh: ExternalServices.

use super::{Declared, virtual_addresses::VirtualAddresses};
use crate::{
    Compiler, Context,
    backends::{ClusterUse, Wire},
    index,
    snapshot::{Cluster, Discovery, Endpoint, Trust, UpstreamProtocol, UpstreamTls},
};
use ahash::AHashMap;
use selvedge_model::{
    Code, ExternalService, Kind, ResourceKey,
    mesh::{ExternalPort, ExternalTls, ExternalTlsMode, Resolution},
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// One host of an ExternalService.
pub(super) struct Host<'a> {
    pub(super) namespace: &'a str,
    pub(super) service: &'a str,
    /// In normal form; may be a wildcard.
    pub(super) host: String,
    pub(super) ports: &'a [ExternalPort],
    /// Where clients connect to.
    pub(super) addresses: Vec<IpAddr>,
    /// Name of its cluster; none for a wildcard that goes to where it was going.
    pub(super) cluster: Option<String>,
}

/// What clients speak on a port. TLS that the mesh adds means that they speak in clear text.
pub(super) fn declared(port: &ExternalPort) -> Declared {
    let declared = Declared::of(port.app_protocol.as_deref(), port.name.as_deref());
    match declared {
        Declared::Tls if originates(port).is_some() => Declared::Http,
        declared => declared,
    }
}

/// Whether no host of it has a cluster: wildcards that are not looked up go to where they were going.
pub(crate) fn is_passed_on(service: &ExternalService) -> bool {
    service.spec.resolution == Resolution::Dns && service.spec.hosts.iter().all(|host| host.starts_with("*."))
}

/// The name of the port that a cluster leads to, and of the ExternalService that it belongs to.
pub(crate) fn port_of<'a>(cx: &Context<'a>, wanted: &ClusterUse) -> Option<(&'a str, Option<&'a str>)> {
    let name = wanted.name.split_once('/').map_or(wanted.name.as_str(), |(name, _)| name);
    let service = cx.index.external_services().get(&wanted.namespace, name)?;
    let port = service.spec.ports.iter().find(|p| p.port == wanted.port);
    Some((service.metadata.name.as_str(), port.and_then(|p| p.name.as_deref())))
}

fn originates(port: &ExternalPort) -> Option<&ExternalTls> {
    port.tls.as_ref().filter(|tls| tls.mode == ExternalTlsMode::Originate)
}

/// All hosts, by namespace, name and position. A host that is another's already is left out, and its owner told.
pub(super) fn hosts<'a>(cx: &mut Context<'a>, virtual_addresses: &mut VirtualAddresses) -> Vec<Host<'a>> {
    let mut by_age: Vec<&'a Arc<ExternalService>> = cx.index.external_services().iter().collect();
    by_age.sort_by(|a, b| index::age(&a.metadata).cmp(&index::age(&b.metadata)));
    let mut owners: AHashMap<(String, u16), (&str, &str)> = AHashMap::new();
    let mut hosts = Vec::new();
    for service in by_age {
        let (namespace, name) = index::name(&service.metadata);
        let own: Vec<IpAddr> = service.spec.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        for (i, host) in service.spec.hosts.iter().enumerate() {
            let host = crate::hosts::normal(host);
            let ports = || service.spec.ports.iter().map(|p| (host.clone(), p.port));
            if let Some((other_namespace, other)) = ports().find_map(|place| owners.get(&place).copied()) {
                let message = format!(
                    "{host} belongs to the older ExternalService {other_namespace}/{other}: it is left out here"
                );
                let key = ResourceKey::new(Kind::ExternalService, namespace, name);
                cx.report.error(&key, Code::DuplicateHost, &format!("spec.hosts[{i}]"), &message);
                continue;
            }
            owners.extend(ports().map(|place| (place, (namespace, name))));
            let wildcard = host.starts_with("*.");
            let addresses = match (own.is_empty(), wildcard) {
                (false, _) => own.clone(),
                (true, true) => Vec::new(),
                (true, false) => vec![virtual_addresses.assign(&format!("external {host}")).into()],
            };
            let cluster = match (service.spec.resolution, wildcard) {
                (Resolution::Static, _) => Some(name.to_owned()),
                (Resolution::Dns, true) => None,
                (Resolution::Dns, false) => Some(format!("{name}/{host}")),
            };
            hosts.push(Host { namespace, service: name, host, ports: &service.spec.ports, addresses, cluster });
        }
    }
    hosts
}

/// Reads the certificates that TLS to external services needs.
pub(crate) fn read_tls<'a>(cx: &mut Context<'a>, compiler: &mut Compiler) {
    for service in cx.index.external_services().iter() {
        let (namespace, name) = index::name(&service.metadata);
        for (i, port) in service.spec.ports.iter().enumerate() {
            let Some(tls) = originates(port) else { continue };
            let made = upstream_tls(cx, compiler, service, tls);
            if let Err(message) = &made {
                let key = ResourceKey::new(Kind::ExternalService, namespace, name);
                let message = format!("{message}: connections to this port are refused");
                cx.report.error(&key, Code::InvalidCaCertificate, &format!("spec.ports[{i}].tls"), &message);
            }
            cx.mesh.external_tls.insert((namespace, name, port.port), made.map(Arc::new));
        }
    }
}

fn upstream_tls(
    cx: &Context<'_>,
    compiler: &mut Compiler,
    service: &ExternalService,
    tls: &ExternalTls,
) -> Result<UpstreamTls, String> {
    let namespace = service.metadata.namespace.as_str();
    let first = || service.spec.hosts.iter().find(|host| !host.starts_with("*.")).cloned();
    let sni = tls.sni.clone().or_else(first).ok_or("no name says what is verified: set `sni`")?;
    let trust = match &tls.ca_certificate {
        None => Trust::System,
        Some(name) => {
            let map = cx.index.config_maps.get(&(namespace, name.as_str()));
            let map = map.ok_or_else(|| format!("ConfigMap {namespace}/{name} does not exist"))?;
            Trust::Roots(compiler.tls.ca_of_config_map(map)?)
        }
    };
    let client_certificate = match &tls.client_certificate {
        None => None,
        Some(name) => {
            let secret = cx.index.secrets.get(&(namespace, name.as_str()));
            let secret = secret.ok_or_else(|| format!("Secret {namespace}/{name} does not exist"))?;
            Some(compiler.tls.certificate(secret)?)
        }
    };
    Ok(UpstreamTls { sni: crate::hosts::normal(&sni), trust, subject_alt_names: Vec::new(), client_certificate })
}

/// The cluster of a host; `blank` has the key and whatever all clusters have.
pub(crate) fn cluster(cx: &Context<'_>, wanted: &ClusterUse, blank: Cluster) -> Cluster {
    let mut cluster = blank;
    let (name, host) = match wanted.name.split_once('/') {
        Some((name, host)) => (name, Some(host)),
        None => (wanted.name.as_str(), None),
    };
    let Some(service) = cx.index.external_services().get(&wanted.namespace, name) else { return cluster };
    let Some(port) = service.spec.ports.iter().find(|p| p.port == wanted.port) else { return cluster };
    let number = port.target_port.unwrap_or(port.port);
    let tls = cx.mesh.external_tls.get(&(service.metadata.namespace.as_str(), name, port.port));
    cluster.protocol = match wanted.wire {
        Wire::Http if tls.is_some() => UpstreamProtocol::Auto,
        Wire::Http => UpstreamProtocol::Http1,
        Wire::Grpc => UpstreamProtocol::Http2,
        Wire::Tcp | Wire::Passthrough | Wire::Udp => UpstreamProtocol::Raw,
    };
    match tls {
        None => {}
        // The name that is called, unless another is given.
        Some(Ok(tls)) => match host.filter(|_| port.tls.as_ref().is_none_or(|tls| tls.sni.is_none())) {
            Some(host) => cluster.tls = Some(Arc::new(UpstreamTls { sni: host.to_owned(), ..(**tls).clone() })),
            None => cluster.tls = Some(Arc::clone(tls)),
        },
        // In clear text would be worse: no endpoints.
        Some(Err(_)) => return cluster,
    }
    cluster.discovery = match host {
        Some(host) => Discovery::Dns { host: host.to_owned(), port: number },
        None => Discovery::Static(listed(cx, wanted, service, number)),
    };
    cluster
}

fn listed(cx: &Context<'_>, wanted: &ClusterUse, service: &ExternalService, port: u16) -> Vec<Endpoint> {
    let finder = cx.mesh.finder(wanted.caller.as_deref());
    let mut list: Vec<Endpoint> = Vec::new();
    for endpoint in &service.spec.endpoints {
        let Ok(ip) = endpoint.address.parse::<IpAddr>() else { continue };
        let priority = finder.locality.priority(endpoint.zone.as_deref(), endpoint.region.as_deref());
        let address = SocketAddr::new(ip, port);
        list.push(Endpoint { address, weight: endpoint.weight, zone: endpoint.zone.clone(), priority, peer: None });
    }
    if service.spec.endpoints.is_empty() {
        let ips = service.spec.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok());
        list.extend(ips.map(|ip| Endpoint::new(SocketAddr::new(ip, port))));
    }
    list.sort();
    list.dedup_by_key(|e| e.address);
    list
}
