//! Routes whose parent is a Service (GEP-1324, GEP-1426).
//!
//! A route in the namespace of the Service is the producer's and holds for all clients. A route in another namespace is a
//! consumer's: it holds for clients of that namespace, where it takes the place of the producer's routes. Hostnames of
//! such routes mean nothing: they take whatever is sent to the Service.

use crate::{
    Context,
    attach::{Attachment, ParentOutcome, RouteHead, ServicePlaces},
    snapshot::Speaks,
    status::Fault,
};
use selvedge_model::{
    Code, Kind, Service,
    core::{ServicePort, TransportProtocol},
    diagnostic,
    refs::ParentReference,
};
use std::borrow::Cow;

pub(crate) fn is_service(parent: &ParentReference) -> bool {
    parent.group.is_empty() && parent.kind == "Service"
}

/// What becomes of a parentRef that names a Service. Without `places` (at a gateway) only its status is made.
pub(crate) fn attach<'r>(
    cx: &mut Context<'_>,
    places: Option<&ServicePlaces<'_>>,
    route: &RouteHead<'r>,
    parent: &'r ParentReference,
    i: usize,
) -> Option<ParentOutcome<'r>> {
    let path = format!("spec.parentRefs[{i}]");
    if places.is_none() && !cx.index.is_mesh() {
        let message = "a route to a Service as parent is for a mesh, but there is neither a Mesh nor a Workload";
        cx.report.warning(&route.key(), Code::UnsupportedReference, &path, message);
        return None;
    }
    if route.kind == Kind::UdpRoute {
        let message = "the mesh carries no UDP: a UDPRoute with a Service as parent has no effect";
        cx.report.warning(&route.key(), Code::NoEffect, &path, message);
        return None;
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&route.meta.namespace);
    let outcome = |fault, listeners| ParentOutcome { parent: Cow::Borrowed(parent), fault, listeners };
    let selected = cx.index.service(namespace, &parent.name).map(|service| (service, selected(service, parent)));
    let (service, ports) = match selected {
        Some((service, ports)) if !ports.is_empty() => (service, ports),
        found => {
            let (code, message) = match found {
                Some((service, _)) => (Code::NoMatchingListener, no_port(service, parent)),
                None => (Code::UnknownParent, no_service(cx, namespace, &parent.name)),
            };
            cx.report.error(&route.key(), code, &path, &message);
            return Some(outcome(Some(Fault::new("NoMatchingParent", message)), Vec::new()));
        }
    };
    warn_of_other_protocols(cx, route, &ports, &path);
    let of_service = places.and_then(|all| all.get(&(namespace, parent.name.as_str()))).map(Vec::as_slice);
    let tcp = service.spec.ports.iter().filter(|p| p.protocol == TransportProtocol::Tcp);
    let on =
        of_service.unwrap_or_default().iter().zip(tcp).filter(|(_, port)| ports.iter().any(|p| p.port == port.port));
    let listeners = on.map(|(&listener, _)| Attachment { listener, hostnames: vec![None] }).collect();
    Some(outcome(None, listeners))
}

/// The TCP ports that a parentRef means.
fn selected<'s>(service: &'s Service, parent: &ParentReference) -> Vec<&'s ServicePort> {
    let fits = |port: &&ServicePort| {
        port.protocol == TransportProtocol::Tcp
            && parent.port.is_none_or(|number| number == port.port)
            && parent.section_name.as_deref().is_none_or(|name| port.name.as_deref() == Some(name))
    };
    service.spec.ports.iter().filter(fits).collect()
}

fn no_port(service: &Service, parent: &ParentReference) -> String {
    let all: Vec<String> = service
        .spec
        .ports
        .iter()
        .map(|p| format!("{} (port {})", p.name.as_deref().unwrap_or("without name"), p.port))
        .collect();
    let wanted = match (&parent.section_name, parent.port) {
        (Some(name), Some(port)) => format!("is named {name} on port {port}"),
        (Some(name), None) => format!("is named {name}"),
        (None, Some(port)) => format!("is on port {port}"),
        (None, None) => "is TCP".to_owned(),
    };
    let have = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
    format!("no port of Service {} {wanted}; it has: {have}", parent.name)
}

fn no_service(cx: &Context<'_>, namespace: &str, name: &str) -> String {
    let near = diagnostic::nearest(name, cx.index.service_names(namespace)).map(|n| format!("; did you mean {n}?"));
    format!("Service {namespace}/{name} does not exist{}", near.unwrap_or_default())
}

/// A route of requests on a port that is declared to carry none.
fn warn_of_other_protocols(cx: &mut Context<'_>, route: &RouteHead<'_>, ports: &[&ServicePort], path: &str) {
    for port in ports {
        let declared = super::protocol::Declared::of(port.app_protocol.as_deref(), port.name.as_deref());
        let needs_http = matches!(route.kind, Kind::HttpRoute | Kind::GrpcRoute);
        let wrong = match declared.speaks() {
            Speaks::Tcp => needs_http,
            Speaks::Http => !needs_http,
            Speaks::Undeclared => false,
        };
        if wrong {
            let spoken = if needs_http { "no HTTP" } else { "HTTP" };
            let message = format!(
                "port {} is declared to speak {spoken} by its appProtocol or name, so that a {} has no effect there",
                port.port, route.kind
            );
            cx.report.warning(&route.key(), Code::NoEffect, path, &message);
        }
    }
}
