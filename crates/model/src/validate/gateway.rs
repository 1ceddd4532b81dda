//! Rules of GatewayClass, Gateway and ListenerSet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::text::requirement_values;
use super::{Report, dns_subdomain, hostname, label, wildcard_hostname};
use crate::diagnostic::Code;
use crate::field_path::At;
use crate::gateway::{
    AddressType, FromNamespaces, Gateway, GatewayClass, Listener, ListenerProtocol, ListenerSet, ListenerTls, TlsMode,
};
use crate::refs::LabelSelector;

pub(super) fn class(report: &mut Report, class: &GatewayClass, spec: &At<'_>) {
    let name = &class.spec.controller_name;
    let fits = name.split_once('/').is_some_and(|(domain, path)| {
        dns_subdomain(domain).is_ok() && !path.is_empty() && !path.contains(char::is_whitespace)
    });
    if !fits {
        let message = format!("`{name}` must be a domain and a path, such as `selvedge.dev/gateway`");
        report.error(Code::InvalidName, &spec.field("controllerName"), message);
    }
}

pub(super) fn gateway(report: &mut Report, gateway: &Gateway, spec: &At<'_>) {
    listeners(report, &gateway.spec.listeners, &spec.field("listeners"));
    addresses(report, gateway, &spec.field("addresses"));
    if let Some(allowed) = &gateway.spec.allowed_listeners {
        let at = spec.field("allowedListeners");
        let at = at.field("namespaces");
        namespaces(report, allowed.namespaces.from, allowed.namespaces.selector.as_ref(), &at);
    }
    if let Some(infrastructure) = &gateway.spec.infrastructure {
        let at = spec.field("infrastructure");
        for key in infrastructure.labels.keys() {
            report.check(Code::InvalidLabel, &at.field("labels").field(key), label(key, ""));
        }
        for key in infrastructure.annotations.keys() {
            report.check(Code::InvalidLabel, &at.field("annotations").field(key), label(key, ""));
        }
        for (name, map) in [("labels", &infrastructure.labels), ("annotations", &infrastructure.annotations)] {
            if map.len() > 8 {
                report.error(
                    Code::WrongLength,
                    &at.field(name),
                    format!("{} are too many; at most 8 are allowed", map.len()),
                );
            }
        }
    }
    if let Some(frontend) = gateway.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref()) {
        let at = spec.field("tls");
        let at = at.field("frontend");
        let ports: Vec<u16> = frontend.per_port.iter().map(|port| port.port).collect();
        report.unique(&at.field("perPort"), &ports, "port", u16::to_string);
    }
}

fn addresses(report: &mut Report, gateway: &Gateway, at: &At<'_>) {
    for (index, address) in gateway.spec.addresses.iter().enumerate() {
        let item = at.index(index);
        let value = address.value.as_deref().unwrap_or_default();
        if value.is_empty() {
            continue;
        }
        if gateway.spec.addresses[..index].contains(address) {
            report.error(Code::DuplicateItem, &item, format!("address `{value}` is given twice"));
        }
        match &address.address_type {
            AddressType::IpAddress if value.parse::<IpAddr>().is_err() => {
                report.error(Code::InvalidAddress, &item.field("value"), format!("`{value}` is not an IP address"));
            }
            AddressType::Hostname => report.check(Code::InvalidHostname, &item.field("value"), hostname(value)),
            _ => {}
        }
    }
}

pub(super) fn listener_set(report: &mut Report, set: &ListenerSet, spec: &At<'_>) {
    listeners(report, &set.spec.listeners, &spec.field("listeners"));
}

fn listeners(report: &mut Report, listeners: &[Listener], at: &At<'_>) {
    let names: Vec<&str> = listeners.iter().map(|listener| listener.name.as_str()).collect();
    report.unique(at, &names, "listener name", |name| (*name).to_owned());
    for (index, one) in listeners.iter().enumerate() {
        let item = at.index(index);
        listener(report, one, &item);
        let same = |other: &&Listener| {
            other.port == one.port && other.protocol == one.protocol && other.hostname == one.hostname
        };
        if let Some(other) = listeners[..index].iter().find(same) {
            let message = format!("port, protocol and hostname are the same as those of listener `{}`", other.name);
            report.error(Code::DuplicateItem, &item, message);
        }
    }
}

fn listener(report: &mut Report, listener: &Listener, at: &At<'_>) {
    report.check(Code::InvalidName, &at.field("name"), dns_subdomain(&listener.name));
    protocol(report, &listener.protocol, &at.field("protocol"));
    if let Some(hostname) = &listener.hostname {
        let field = at.field("hostname");
        report.check(Code::InvalidHostname, &field, wildcard_hostname(hostname));
        if matches!(listener.protocol, ListenerProtocol::Tcp | ListenerProtocol::Udp) {
            let message = format!("a {} listener cannot have a hostname", listener.protocol.as_str());
            report.error(Code::ConflictingFields, &field, message);
        }
    }
    tls(report, &listener.protocol, listener.tls.as_ref(), &at.field("tls"));
    let routes = at.field("allowedRoutes");
    let namespaces = routes.field("namespaces");
    if listener.allowed_routes.namespaces.from == FromNamespaces::None {
        let message = "`None` is not allowed here; write All, Selector or Same";
        report.error(Code::UnknownValue, &namespaces.field("from"), message);
    }
    self::namespaces(
        report,
        listener.allowed_routes.namespaces.from,
        listener.allowed_routes.namespaces.selector.as_ref(),
        &namespaces,
    );
    options(report, listener.tls.as_ref().map(|tls| &tls.options), &at.field("tls").field("options"));
}

/// Options are other implementations': none is known here.
pub(super) fn options(report: &mut Report, options: Option<&BTreeMap<String, String>>, at: &At<'_>) {
    for name in options.into_iter().flatten().map(|(name, _)| name) {
        let message = "Selvedge knows no options; remove it";
        report.warning(Code::NoEffect, &at.field(name), message);
    }
}

/// `from: Selector` and `selector` belong together.
fn namespaces(report: &mut Report, from: FromNamespaces, selector: Option<&LabelSelector>, at: &At<'_>) {
    let field = at.field("selector");
    match (from, selector) {
        (FromNamespaces::Selector, None) => {
            let message = "`from: Selector` needs a `selector`; without one no namespace is selected";
            report.error(Code::MissingField, &field, message);
        }
        (FromNamespaces::Selector, Some(selector)) => self::selector(report, selector, &field),
        (from, Some(selector)) => {
            let message =
                format!("the selector has no effect with `from: {from:?}`; write `from: Selector`, or remove it");
            report.warning(Code::NoEffect, &field, message);
            self::selector(report, selector, &field);
        }
        (_, None) => {}
    }
}

fn protocol(report: &mut Report, protocol: &ListenerProtocol, at: &At<'_>) {
    let ListenerProtocol::Other(text) = protocol else { return };
    let is_name =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let fits = match text.split_once('/') {
        Some((domain, name)) => dns_subdomain(domain).is_ok() && is_name(name),
        None => is_name(text),
    };
    if !fits || text.len() > 255 {
        let message =
            format!("`{text}` is not a protocol: write HTTP, HTTPS, TLS, TCP, UDP or one with a domain prefix");
        report.error(Code::UnknownValue, at, message);
    }
}

fn tls(report: &mut Report, protocol: &ListenerProtocol, tls: Option<&ListenerTls>, at: &At<'_>) {
    let code = Code::InvalidTlsCombination;
    match (protocol, tls) {
        (ListenerProtocol::Http | ListenerProtocol::Tcp | ListenerProtocol::Udp, Some(_)) => {
            report.error(code, at, format!("a {} listener cannot have `tls`", protocol.as_str()));
        }
        (ListenerProtocol::Tls, None) => report.error(code, at, "a TLS listener needs `tls`"),
        (ListenerProtocol::Https, Some(tls)) if tls.mode != TlsMode::Terminate => {
            report.error(code, &at.field("mode"), "the mode of an HTTPS listener must be Terminate");
        }
        (_, Some(tls))
            if tls.mode == TlsMode::Terminate && tls.certificate_refs.is_empty() && tls.options.is_empty() =>
        {
            report.error(code, at, "mode Terminate needs `certificateRefs`");
        }
        _ => {}
    }
}

pub(super) fn selector(report: &mut Report, selector: &LabelSelector, at: &At<'_>) {
    let labels = at.field("matchLabels");
    for (key, value) in &selector.match_labels {
        report.check(Code::InvalidLabel, &labels.field(key), label(key, value));
    }
    let expressions = at.field("matchExpressions");
    for (index, requirement) in selector.match_expressions.iter().enumerate() {
        let item = expressions.index(index);
        report.check(Code::InvalidLabel, &item.field("key"), label(&requirement.key, ""));
        for (index, value) in requirement.values.iter().enumerate() {
            report.check(Code::InvalidLabel, &item.field("values").index(index), label(&requirement.key, value));
        }
        report.check(Code::InvalidLabel, &item.field("values"), requirement_values(requirement));
    }
}
