//! Resources that nothing leads to, or that lead nowhere. A running proxy does not ask: what is missing may come.

use super::key;
use crate::{
    gateways::STANDALONE_CLASS,
    report::{Report, did_you_mean},
};
use selvedge_model::{
    Code, Gateway, Kind, ObjectMeta, Resources,
    diagnostic::nearest,
    gateway::{DefaultScope, Listener, ListenerProtocol, TlsMode},
    refs::ParentReference,
};

pub(super) fn all(resources: &Resources, controller: &str, report: &mut Report) {
    endpoint_slices(resources, report);
    routes(resources, report);
    classes(resources, controller, report);
    for gateway in resources.gateways().iter() {
        client_certificates(resources, gateway, report);
    }
}

/// EndpointSlices whose Service is not there, and those with ports that it does not have.
fn endpoint_slices(resources: &Resources, report: &mut Report) {
    const LABEL: &str = "metadata.labels[\"kubernetes.io/service-name\"]";
    for slice in resources.endpoint_slices().iter() {
        let meta = &slice.metadata;
        let key = key(Kind::EndpointSlice, meta);
        let Some(name) = slice.service_name() else {
            let message = "without the label kubernetes.io/service-name it belongs to no Service, and its endpoints get no \
                           traffic; add the label with the name of the Service";
            report.warning(&key, Code::OrphanEndpoints, "metadata", message);
            continue;
        };
        let Some(service) = resources.service(&meta.namespace, name) else {
            let names = resources.services().of_namespace(&meta.namespace).map(|it| it.metadata.name.as_str());
            let near = did_you_mean(name, names);
            let message = format!(
                "Service {}/{name} does not exist, so that these endpoints get no traffic{near}",
                meta.namespace
            );
            report.warning(&key, Code::OrphanEndpoints, LABEL, &message);
            continue;
        };
        // One port without a name is the only one, whatever it is called there.
        if service.spec.ports.len() < 2 && slice.ports.len() < 2 {
            continue;
        }
        for (i, port) in slice.ports.iter().enumerate() {
            let name = port.name.as_deref().unwrap_or_default();
            if !service.spec.ports.iter().any(|it| it.name.as_deref().unwrap_or_default() == name) {
                let names: Vec<&str> = service.spec.ports.iter().filter_map(|it| it.name.as_deref()).collect();
                let known = if names.is_empty() { "none with a name".to_owned() } else { names.join(", ") };
                let message = format!("Service {} has no port named `{name}`; it has: {known}", service.metadata.name);
                report.warning(&key, Code::OrphanEndpoints, &format!("ports[{i}].name"), &message);
            }
        }
    }
}

/// Routes that attach to nothing.
fn routes(resources: &Resources, report: &mut Report) {
    let mut one = |kind: Kind, meta: &ObjectMeta, parents: &[ParentReference], scope: Option<DefaultScope>| {
        if parents.is_empty() && scope != Some(DefaultScope::All) {
            let message = "the route attaches to nothing and gets no traffic; name a Gateway in `parentRefs`";
            report.warning(&key(kind, meta), Code::UnknownParent, "spec", message);
        }
    };
    for it in resources.http_routes().iter() {
        one(Kind::HttpRoute, &it.metadata, &it.spec.parent_refs, it.spec.use_default_gateways);
    }
    for it in resources.grpc_routes().iter() {
        one(Kind::GrpcRoute, &it.metadata, &it.spec.parent_refs, it.spec.use_default_gateways);
    }
    for it in resources.tls_routes().iter() {
        one(Kind::TlsRoute, &it.metadata, &it.spec.parent_refs, it.spec.use_default_gateways);
    }
    for it in resources.tcp_routes().iter() {
        one(Kind::TcpRoute, &it.metadata, &it.spec.parent_refs, it.spec.use_default_gateways);
    }
    for it in resources.udp_routes().iter() {
        one(Kind::UdpRoute, &it.metadata, &it.spec.parent_refs, it.spec.use_default_gateways);
    }
    for it in resources.grpc_routes().iter().filter(|it| it.spec.rules.is_empty()) {
        let message = "without `rules` every call is taken and fails with UNAVAILABLE; add a rule with `backendRefs`";
        report.warning(&key(Kind::GrpcRoute, &it.metadata), Code::NothingAnswers, "spec", message);
    }
}

/// Gateways of other controllers' classes are theirs to serve, unless the name of ours is misspelt.
fn classes(resources: &Resources, controller: &str, report: &mut Report) {
    for class in resources.gateway_classes().iter() {
        let theirs = class.spec.controller_name.as_str();
        if theirs != controller && nearest(theirs, [controller]).is_some() {
            let message = format!(
                "`{theirs}` is not this controller, so that its Gateways are not served; did you mean `{controller}`?"
            );
            report.warning(
                &key(Kind::GatewayClass, &class.metadata),
                Code::UnknownClass,
                "spec.controllerName",
                &message,
            );
        }
    }
    for gateway in resources.gateways().iter() {
        let class = resources.gateway_class("", &gateway.spec.gateway_class_name);
        if let Some(theirs) = class.map(|it| it.spec.controller_name.as_str()).filter(|theirs| *theirs != controller) {
            let message = format!(
                "it is for the controller `{theirs}`, not for Selvedge (`{controller}`), and is not served here; for that write \
                 `gatewayClassName: {STANDALONE_CLASS}`"
            );
            report.info(&key(Kind::Gateway, &gateway.metadata), Code::UnknownClass, "spec.gatewayClassName", &message);
        }
    }
}

/// Client certificates are asked for where TLS ends.
fn client_certificates(resources: &Resources, gateway: &Gateway, report: &mut Report) {
    let Some(frontend) = gateway.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref()) else { return };
    let meta = &gateway.metadata;
    let ours = |set: &selvedge_model::ListenerSet| {
        let parent = &set.spec.parent_ref;
        parent.name == meta.name && parent.namespace.as_ref().unwrap_or(&set.metadata.namespace) == &meta.namespace
    };
    let sets = resources.listener_sets().iter().filter(|set| ours(set));
    let ends_tls = |listener: &&Listener| {
        let mode = listener.tls.as_ref().map(|tls| tls.mode).unwrap_or_default();
        matches!(listener.protocol, ListenerProtocol::Https | ListenerProtocol::Tls) && mode == TlsMode::Terminate
    };
    let all = gateway.spec.listeners.iter().chain(sets.flat_map(|set| set.spec.listeners.iter()));
    let ports: Vec<u16> = all.filter(ends_tls).map(|listener| listener.port).collect();
    let key = key(Kind::Gateway, meta);
    for (i, port) in frontend.per_port.iter().enumerate().filter(|(_, port)| !ports.contains(&port.port)) {
        let message =
            format!("no listener ends TLS on port {}, so that this has no effect; correct or remove it", port.port);
        report.warning(&key, Code::NoEffect, &format!("spec.tls.frontend.perPort[{i}].port"), &message);
    }
    if ports.is_empty() && frontend.default.validation.is_some() {
        let message = "no listener ends TLS, so that no client is asked for a certificate; use protocol HTTPS or TLS";
        report.warning(&key, Code::NoEffect, "spec.tls.frontend.default.validation", message);
    }
}
