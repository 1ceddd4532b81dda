//! Rules that all routes share, and those of TLSRoute, TCPRoute and UDPRoute.

use super::{Report, dns_subdomain, wildcard_hostname};
use crate::diagnostic::Code;
use crate::field_path::At;
use crate::meta::GATEWAY_GROUP;
use crate::refs::{BackendObjectReference, BackendRef, ParentReference};
use crate::stream::{StreamRouteSpec, StreamRule, TlsRoute};

pub(super) fn tls_route(report: &mut Report, route: &TlsRoute, spec: &At<'_>) {
    parents(report, &route.spec.parent_refs, &spec.field("parentRefs"));
    hostnames(report, &route.spec.hostnames, &spec.field("hostnames"));
    stream_rules(report, &route.spec.rules, &spec.field("rules"));
}

pub(super) fn stream_route(report: &mut Report, route: &StreamRouteSpec, spec: &At<'_>) {
    parents(report, &route.parent_refs, &spec.field("parentRefs"));
    stream_rules(report, &route.rules, &spec.field("rules"));
}

fn stream_rules(report: &mut Report, rules: &[StreamRule], at: &At<'_>) {
    rule_names(report, rules.iter().map(|rule| rule.name.as_deref()), at);
    for (index, rule) in rules.iter().enumerate() {
        let item = at.index(index);
        let backends = item.field("backendRefs");
        for (index, one) in rule.backend_refs.iter().enumerate() {
            backend(report, one, &backends.index(index));
        }
    }
}

/// Several references to one parent must differ by the same of `sectionName` and `port`.
pub(super) fn parents(report: &mut Report, parents: &[ParentReference], at: &At<'_>) {
    for (index, parent) in parents.iter().enumerate() {
        let item = at.index(index);
        report.check(Code::InvalidName, &item.field("name"), dns_subdomain(&parent.name));
        let known = match parent.group.as_str() {
            GATEWAY_GROUP => ["Gateway", "ListenerSet"].contains(&parent.kind.as_str()),
            "" => parent.kind == "Service",
            _ => true,
        };
        if !known {
            let message = format!("routes cannot attach to a {}", parent.kind);
            report.warning(Code::UnknownValue, &item.field("kind"), message);
        }
        for other in &parents[..index] {
            let same = (&parent.group, &parent.kind, &parent.namespace, &parent.name)
                == (&other.group, &other.kind, &other.namespace, &other.name);
            if !same {
                continue;
            }
            let alike = parent.section_name.is_some() == other.section_name.is_some()
                && parent.port.is_some() == other.port.is_some();
            let bare = parent.section_name.is_none() && parent.port.is_none();
            if !alike || bare {
                let message = "several references to one parent must all have `sectionName`, `port` or both";
                report.error(Code::DuplicateItem, &item, message);
                break;
            }
            if parent == other {
                report.error(Code::DuplicateItem, &item, "the same reference is given twice");
                break;
            }
        }
    }
}

pub(super) fn hostnames(report: &mut Report, hostnames: &[String], at: &At<'_>) {
    for (index, hostname) in hostnames.iter().enumerate() {
        let item = at.index(index);
        report.check(Code::InvalidHostname, &item, wildcard_hostname(hostname));
        // The standard does not forbid it, and the route works as if it were there once.
        if hostnames[..index].contains(hostname) {
            let message = format!("hostname `{hostname}` is given twice; remove one, or correct it");
            report.warning(Code::DuplicateItem, &item, message);
        }
    }
}

pub(super) fn rule_names<'a>(report: &mut Report, names: impl Iterator<Item = Option<&'a str>>, at: &At<'_>) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, name) in names.enumerate() {
        let Some(name) = name else { continue };
        let item = at.index(index);
        report.check(Code::InvalidName, &item.field("name"), dns_subdomain(name));
        if seen.contains(&name) {
            report.error(Code::DuplicateItem, &item.field("name"), format!("rule name `{name}` is given twice"));
        }
        seen.push(name);
    }
}

pub(super) fn backend(report: &mut Report, backend: &BackendRef, at: &At<'_>) {
    target(report, (&backend.group, &backend.kind, &backend.name, backend.port), at);
}

pub(super) fn backend_object(report: &mut Report, backend: &BackendObjectReference, at: &At<'_>) {
    target(report, (&backend.group, &backend.kind, &backend.name, backend.port), at);
}

fn target(report: &mut Report, (group, kind, name, port): (&str, &str, &str, Option<u16>), at: &At<'_>) {
    report.check(Code::InvalidName, &at.field("name"), dns_subdomain(name));
    if group.is_empty() && kind == "Service" && port.is_none() {
        report.error(
            Code::MissingField,
            &at.field("port"),
            format!("the reference to Service `{name}` needs a `port`"),
        );
    }
}
