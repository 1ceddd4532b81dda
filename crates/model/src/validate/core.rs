//! Rules of Service, EndpointSlice and ConfigMap.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Report, dns_label, hostname};
use crate::core::{ConfigMap, EndpointAddressType, EndpointSlice, PortOrName, Service, ServiceType};
use crate::diagnostic::{Code, nearest};
use crate::field_path::At;

pub(super) fn service(report: &mut Report, service: &Service, spec: &At<'_>) {
    let ports = spec.field("ports");
    for (index, port) in service.spec.ports.iter().enumerate() {
        let item = ports.index(index);
        let before = &service.spec.ports[..index];
        match port.name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => {
                report.check(Code::InvalidName, &item.field("name"), dns_label(name));
                if before.iter().any(|other| other.name == port.name) {
                    report.error(
                        Code::DuplicateItem,
                        &item.field("name"),
                        format!("port name `{name}` is given twice"),
                    );
                }
            }
            None if service.spec.ports.len() > 1 => {
                report.error(Code::MissingField, &item.field("name"), "ports need names when there are several");
            }
            None => {}
        }
        if before.iter().any(|other| other.port == port.port && other.protocol == port.protocol) {
            report.error(Code::DuplicateItem, &item.field("port"), format!("port {} is given twice", port.port));
        }
        app_protocol(report, port.app_protocol.as_deref(), &item.field("appProtocol"));
        match &port.target_port {
            Some(PortOrName::Number(0)) => {
                report.error(Code::OutOfRange, &item.field("targetPort"), "0 is not a port");
            }
            Some(PortOrName::Name(name)) => report.check(Code::InvalidName, &item.field("targetPort"), dns_label(name)),
            _ => {}
        }
    }
    if service.spec.service_type == ServiceType::ExternalName {
        let at = spec.field("externalName");
        match service.spec.external_name.as_deref().map(|name| name.trim_end_matches('.')) {
            None | Some("") => {
                report.error(Code::MissingField, &at, "a Service of type ExternalName needs `externalName`")
            }
            Some(name) => {
                if name.parse::<IpAddr>().is_err() {
                    report.check(Code::InvalidHostname, &at, hostname(&name.to_ascii_lowercase()));
                }
            }
        }
    }
    if let Some(address) = service.spec.cluster_ip.as_deref()
        && !matches!(address, "" | "None")
        && address.parse::<IpAddr>().is_err()
    {
        let message = format!("`{address}` is neither an IP address nor `None`");
        report.error(Code::InvalidAddress, &spec.field("clusterIP"), message);
    }
    service_addresses(report, service, spec);
}

/// What the fields about addresses say beside `clusterIP`.
fn service_addresses(report: &mut Report, service: &Service, spec: &At<'_>) {
    let all = spec.field("clusterIPs");
    for (index, address) in service.spec.cluster_ips.iter().enumerate() {
        if address != "None" && address.parse::<IpAddr>().is_err() {
            let message = format!("`{address}` is neither an IP address nor `None`");
            report.error(Code::InvalidAddress, &all.index(index), message);
        }
    }
    if service.spec.service_type != ServiceType::ExternalName && service.spec.external_name.is_some() {
        let message = "`externalName` has no effect without `type: ExternalName`; write it, or remove the name";
        report.warning(Code::NoEffect, &spec.field("externalName"), message);
    }
    const NEAR: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    if let Some(text) = service.spec.traffic_distribution.as_deref().filter(|text| !NEAR.contains(text)) {
        let help = nearest(text, NEAR).map_or_else(|| NEAR.join(", "), |near| format!("`{near}`"));
        let message = format!("`{text}` is not known and has no effect; write {help}");
        report.warning(Code::UnknownValue, &spec.field("trafficDistribution"), message);
    }
}

/// What declares a protocol on ports; names of others mean something elsewhere.
const PROTOCOLS: [&str; 14] = [
    "http",
    "https",
    "http2",
    "h2c",
    "grpc",
    "grpc-web",
    "ws",
    "wss",
    "tls",
    "tcp",
    "kubernetes.io/h2c",
    "kubernetes.io/ws",
    "kubernetes.io/wss",
    "kubernetes.io/grpc",
];

/// Doubts an `appProtocol` that looks like one of those known and is none.
pub(super) fn app_protocol(report: &mut Report, text: Option<&str>, at: &At<'_>) {
    let Some(text) = text.filter(|text| text.len() > 3) else { return };
    let lower = text.to_ascii_lowercase();
    if PROTOCOLS.contains(&lower.as_str()) || OTHERS.contains(&lower.as_str()) {
        return;
    }
    if let Some(near) = nearest(&lower, PROTOCOLS) {
        let message = format!("`{text}` declares no protocol that is known here; did you mean `{near}`?");
        report.warning(Code::UnknownValue, at, message);
    }
}

/// Protocols with names like those above.
const OTHERS: [&str; 6] = ["ftp", "nats", "htcp", "sctp", "udp", "kubernetes.io/https"];

pub(super) fn endpoint_slice(report: &mut Report, slice: &EndpointSlice) {
    let endpoints = At::ROOT.field("endpoints");
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let item = endpoints.index(index);
        let addresses = item.field("addresses");
        for (index, address) in endpoint.addresses.iter().enumerate() {
            let (fits, wanted) = match slice.address_type {
                EndpointAddressType::Ipv4 => (address.parse::<Ipv4Addr>().is_ok(), "an IPv4 address"),
                EndpointAddressType::Ipv6 => (address.parse::<Ipv6Addr>().is_ok(), "an IPv6 address"),
                EndpointAddressType::Fqdn => (hostname(address).is_ok(), "a hostname"),
            };
            if !fits {
                report.error(Code::InvalidAddress, &addresses.index(index), format!("`{address}` is not {wanted}"));
            }
            if address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
                let message = format!("nobody can be at `{address}`; write the address of the endpoint");
                report.error(Code::InvalidAddress, &addresses.index(index), message);
            }
        }
    }
    let ports = At::ROOT.field("ports");
    let names: Vec<(&str, _)> =
        slice.ports.iter().map(|port| (port.name.as_deref().unwrap_or_default(), port.protocol)).collect();
    report.unique(&ports, &names, "port name", |(name, _)| (*name).to_owned());
    for (index, port) in slice.ports.iter().enumerate() {
        if port.port == Some(0) {
            report.error(
                Code::OutOfRange,
                &ports.index(index).field("port"),
                "0 is not a port; write one from 1 to 65535",
            );
        }
    }
}

pub(super) fn config_map(report: &mut Report, map: &ConfigMap) {
    let at = At::ROOT.field("binaryData");
    for key in map.binary_data.keys().filter(|key| map.data.contains_key(*key)) {
        report.error(Code::DuplicateItem, &at.field(key), format!("`{key}` is in `data` too"));
    }
}
