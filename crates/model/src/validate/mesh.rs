//! Rules of Mesh, Workload and ExternalService.

use std::net::IpAddr;

use selvedge_wire::spiffe;

use super::core::app_protocol;
use super::traffic::health_check;
use super::{Report, dns_label, dns_subdomain, hostname, wildcard_hostname};
use crate::diagnostic::Code;
use crate::field_path::At;
use crate::mesh::{ExternalService, ExternalTlsMode, Mesh, Resolution, TunnelProtocol, Workload};

pub(super) fn mesh(report: &mut Report, mesh: &Mesh, spec: &At<'_>) {
    let own = &mesh.spec;
    trust_domain(report, own.trust_domain(), &spec.field("trustDomain"));
    report.check(Code::InvalidHostname, &spec.field("clusterDomain"), hostname(own.cluster_domain()));
    report.unique(&spec.field("scope"), &own.scope, "namespace", Clone::clone);
    let all = spec.field("federation");
    for (index, other) in own.federation.iter().enumerate() {
        let at = all.index(index);
        trust_domain(report, &other.trust_domain, &at.field("trustDomain"));
        if other.trust_domain == own.trust_domain() {
            let message = "the mesh's own trust domain needs no federation";
            report.error(Code::DuplicateItem, &at.field("trustDomain"), message);
        }
        if own.federation[..index].iter().any(|known| known.trust_domain == other.trust_domain) {
            let message = format!("trust domain `{}` is given twice", other.trust_domain);
            report.error(Code::DuplicateItem, &at.field("trustDomain"), message);
        }
        let bundle = at.field("bundle");
        match (&other.bundle.config_map, &other.bundle.pem) {
            (None, None) => report.error(Code::MissingField, &bundle, "a bundle needs `configMap` or `pem`"),
            (Some(_), Some(_)) => {
                report.error(Code::ConflictingFields, &bundle, "`configMap` and `pem` exclude each other");
            }
            _ => {}
        }
        if other.bundle.pem.as_ref().is_some_and(|pem| !pem.contains("-----BEGIN CERTIFICATE-----")) {
            report.error(Code::WrongFormat, &bundle.field("pem"), "this is no PEM of certificates");
        }
    }
}

fn trust_domain(report: &mut Report, name: &str, at: &At<'_>) {
    if !spiffe::is_trust_domain(name) {
        let message = format!(
            "`{name}` is no trust domain: 1 to 255 lower-case letters, digits, dots, dashes and underscores, as in `prod.example.com`"
        );
        report.error(Code::InvalidName, at, message);
    }
}

pub(super) fn workload(report: &mut Report, workload: &Workload, spec: &At<'_>) {
    let own = &workload.spec;
    if let Some(domain) = &own.trust_domain {
        trust_domain(report, domain, &spec.field("trustDomain"));
    }
    let addresses = spec.field("addresses");
    let mut known: Vec<IpAddr> = Vec::new();
    for (index, text) in own.addresses.iter().enumerate() {
        let Some(ip) = unicast(report, text, &addresses.index(index)) else { continue };
        if known.iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
            let message = "two addresses must be of different families: one IPv4, one IPv6";
            report.error(Code::InvalidAddress, &addresses.index(index), message);
        }
        known.push(ip);
    }
    let ports = spec.field("ports");
    for (index, port) in own.ports.iter().enumerate() {
        let item = ports.index(index);
        port_of(report, &item, port.port, port.name.as_deref(), own.ports[..index].iter().map(|p| (p.port, &p.name)));
        app_protocol(report, port.app_protocol.as_deref(), &item.field("appProtocol"));
    }
    report.check(Code::InvalidName, &spec.field("serviceAccount"), dns_subdomain(&own.service_account));
    let tunnel = spec.field("tunnel");
    if let Some(text) = &own.tunnel.address {
        unicast(report, text, &tunnel.field("address"));
    }
    if own.tunnel.protocol == TunnelProtocol::None && (own.tunnel.port.is_some() || own.tunnel.address.is_some()) {
        report.error(Code::InconsistentUnion, &tunnel, "a tunnel of protocol None has no port and no address");
    }
    if let Some(check) = &own.health_check {
        health_check(report, check, &spec.field("healthCheck"));
    }
}

fn port_of<'p>(
    report: &mut Report,
    at: &At<'_>,
    port: u16,
    name: Option<&str>,
    before: impl Iterator<Item = (u16, &'p Option<String>)>,
) {
    if let Some(name) = name {
        report.check(Code::InvalidName, &at.field("name"), dns_label(name));
    }
    for (other, other_name) in before {
        if other == port {
            report.error(Code::DuplicateItem, &at.field("port"), format!("port {port} is given twice"));
        }
        if let Some(name) = name.filter(|name| other_name.as_deref() == Some(*name)) {
            report.error(Code::DuplicateItem, &at.field("name"), format!("port name `{name}` is given twice"));
        }
    }
}

/// An address that somebody can be at.
fn unicast(report: &mut Report, text: &str, at: &At<'_>) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
            report.error(Code::InvalidAddress, at, format!("nobody can be at `{text}`"));
            None
        }
        Ok(ip) => Some(ip),
        Err(_) => {
            report.error(Code::InvalidAddress, at, format!("`{text}` is no IP address"));
            None
        }
    }
}

pub(super) fn external_service(report: &mut Report, service: &ExternalService, spec: &At<'_>) {
    let own = &service.spec;
    let hosts = spec.field("hosts");
    for (index, host) in own.hosts.iter().enumerate() {
        report.check(Code::InvalidHostname, &hosts.index(index), wildcard_hostname(host));
    }
    report.unique(&hosts, &own.hosts, "host", Clone::clone);
    let addresses = spec.field("addresses");
    for (index, text) in own.addresses.iter().enumerate() {
        unicast(report, text, &addresses.index(index));
    }
    report.unique(&addresses, &own.addresses, "address", Clone::clone);
    let ports = spec.field("ports");
    for (index, port) in own.ports.iter().enumerate() {
        let item = ports.index(index);
        port_of(report, &item, port.port, port.name.as_deref(), own.ports[..index].iter().map(|p| (p.port, &p.name)));
        app_protocol(report, port.app_protocol.as_deref(), &item.field("appProtocol"));
        let Some(tls) = &port.tls else { continue };
        let at = item.field("tls");
        if let Some(sni) = &tls.sni {
            report.check(Code::InvalidHostname, &at.field("sni"), hostname(sni));
        }
        let set = tls.sni.is_some() || tls.ca_certificate.is_some() || tls.client_certificate.is_some();
        if tls.mode == ExternalTlsMode::None && set {
            report.error(Code::InconsistentUnion, &at, "TLS of mode None has no other settings");
        }
        let speaks = port.app_protocol.as_deref().unwrap_or_default().to_ascii_lowercase();
        if tls.mode == ExternalTlsMode::Originate && matches!(speaks.as_str(), "https" | "tls" | "wss") {
            let message = format!(
                "clients speak `{speaks}` to it, around which TLS would be added once more; write what is inside \
                 (`appProtocol: http`), or remove `tls`"
            );
            report.warning(Code::ConflictingFields, &at, message);
        }
        let only_wildcards = own.hosts.iter().all(|host| host.starts_with("*."));
        if tls.mode == ExternalTlsMode::Originate && tls.sni.is_none() && only_wildcards {
            let message = "no host is a full name, so `sni` must say which name is verified";
            report.error(Code::MissingField, &at.field("sni"), message);
        }
    }
    let endpoints = spec.field("endpoints");
    for (index, endpoint) in own.endpoints.iter().enumerate() {
        unicast(report, &endpoint.address, &endpoints.index(index).field("address"));
    }
    match own.resolution {
        Resolution::Dns if !own.endpoints.is_empty() => {
            report.error(Code::ConflictingFields, &endpoints, "`endpoints` need `resolution: Static`");
        }
        Resolution::Static if own.endpoints.is_empty() && own.addresses.is_empty() => {
            report.error(Code::MissingField, &endpoints, "`resolution: Static` needs `endpoints` or `addresses`");
        }
        _ => {}
    }
}
