//! Rules of Service, EndpointSlice and ConfigMap.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Report, dns_label, hostname};
use crate::core::{ConfigMap, EndpointAddressType, EndpointSlice, PortOrName, Service, ServiceType};
use crate::diagnostic::Code;
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
}

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
        }
    }
    let ports = At::ROOT.field("ports");
    let names: Vec<(&str, _)> =
        slice.ports.iter().map(|port| (port.name.as_deref().unwrap_or_default(), port.protocol)).collect();
    report.unique(&ports, &names, "port name", |(name, _)| (*name).to_owned());
}

pub(super) fn config_map(report: &mut Report, map: &ConfigMap) {
    let at = At::ROOT.field("binaryData");
    for key in map.binary_data.keys().filter(|key| map.data.contains_key(*key)) {
        report.error(Code::DuplicateItem, &at.field(key), format!("`{key}` is in `data` too"));
    }
}
