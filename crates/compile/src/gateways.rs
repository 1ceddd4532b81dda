//! GatewayClasses, and what of a Gateway is not about single listeners: class, addresses, parameters, certificates.

use crate::{
    Context,
    grants::From,
    index,
    report::did_you_mean,
    secrets::{self, TlsCache},
    snapshot::CertificateRef,
    status::{
        Condition, Conditions, Fault, Feature, GatewayAddress, GatewayClassStatus, ResourceStatus, SUPPORTED_FEATURES,
    },
};
use selvedge_model::{
    Code, GATEWAY_GROUP, Gateway, Kind, ListenerSet, ResourceKey,
    gateway::{AddressType, FrontendValidationMode, GatewayTls},
};
use std::net::IpAddr;

/// The class name that needs no GatewayClass outside Kubernetes ([`crate::Options::accept_any_class`]).
pub(crate) const STANDALONE_CLASS: &str = "selvedge";

/// A Gateway that is ours to serve.
pub(crate) struct GatewayState<'a> {
    pub(crate) gateway: &'a Gateway,
    /// Why none of it is served.
    pub(crate) rejected: Option<Fault>,
    /// Addresses to bind; `None` is every address of the machine.
    pub(crate) binds: Vec<Option<IpAddr>>,
    /// Addresses that cannot be used, which makes the Gateway accepted but not programmed.
    pub(crate) unusable: Option<Fault>,
    /// What `status.addresses` says.
    pub(crate) addresses: Vec<GatewayAddress>,
    /// Shown to backends that ask for a certificate.
    pub(crate) client_certificate: Option<CertificateRef>,
    pub(crate) refs: Option<Fault>,
    pub(crate) insecure_frontend: bool,
}

/// A ListenerSet whose Gateway is ours.
pub(crate) struct SetState<'a> {
    pub(crate) set: &'a ListenerSet,
    pub(crate) gateway: usize,
    /// Why the Gateway does not take it.
    pub(crate) rejected: Option<Fault>,
}

impl GatewayState<'_> {
    pub(crate) fn key(&self) -> ResourceKey {
        let (namespace, name) = index::name(&self.gateway.metadata);
        ResourceKey::new(Kind::Gateway, namespace, name)
    }
}

/// Writes the status of every class that names us, and lists the Gateways of those classes, oldest first.
pub(crate) fn gateways<'a>(cx: &mut Context<'a>, tls: &mut TlsCache) -> Vec<GatewayState<'a>> {
    for class in cx.index.classes.values() {
        if class.spec.controller_name == cx.options.controller_name {
            let key = ResourceKey::new(Kind::GatewayClass, "", &class.metadata.name);
            let fault = class.spec.parameters_ref.as_ref().map(|p| {
                let kind = secrets::qualified(&p.group, &p.kind);
                Fault::new(
                    "InvalidParameters",
                    format!("parameters of kind {kind} are not supported: remove parametersRef"),
                )
            });
            let conditions = Conditions(class.metadata.generation);
            if let Some(fault) = &fault {
                cx.report.error(&key, Code::UnsupportedParameters, "spec.parametersRef", &fault.message);
            }
            let supported_features = SUPPORTED_FEATURES.iter().map(|&name| Feature { name }).collect();
            let conditions: Vec<Condition> = vec![conditions.check("Accepted", fault.as_ref())];
            cx.status.set(key, ResourceStatus::GatewayClass(GatewayClassStatus { conditions, supported_features }));
        }
    }
    let all: Vec<&'a Gateway> = cx.index.gateways.clone();
    let mut states = Vec::new();
    for gateway in all {
        if ours(cx, gateway) {
            states.push(state(cx, tls, gateway));
        }
    }
    states
}

/// Whether the class of a Gateway is served here; says so when no class of that name exists at all.
fn ours(cx: &mut Context<'_>, gateway: &Gateway) -> bool {
    let wanted = gateway.spec.gateway_class_name.as_str();
    match cx.index.classes.get(wanted) {
        Some(class) => class.spec.controller_name == cx.options.controller_name,
        None if cx.options.accept_any_class && wanted == STANDALONE_CLASS => true,
        None => {
            let (namespace, name) = index::name(&gateway.metadata);
            let key = ResourceKey::new(Kind::Gateway, namespace, name);
            let hint = if cx.options.accept_any_class {
                format!(
                    "write `{STANDALONE_CLASS}`, or add a GatewayClass with controllerName {}",
                    cx.options.controller_name
                )
            } else {
                format!("add a GatewayClass with controllerName {}", cx.options.controller_name)
            };
            let message = format!("GatewayClass {wanted} does not exist, so that nothing serves this Gateway: {hint}");
            cx.report.error(&key, Code::UnknownClass, "spec.gatewayClassName", &message);
            false
        }
    }
}

fn state<'a>(cx: &mut Context<'a>, tls: &mut TlsCache, gateway: &'a Gateway) -> GatewayState<'a> {
    let (namespace, name) = index::name(&gateway.metadata);
    let key = ResourceKey::new(Kind::Gateway, namespace, name);
    let mut state = GatewayState {
        gateway,
        rejected: None,
        binds: Vec::new(),
        unusable: None,
        addresses: Vec::new(),
        client_certificate: None,
        refs: None,
        insecure_frontend: gateway.spec.tls.as_ref().is_some_and(insecure_frontend),
    };
    addresses(cx, &mut state, &key);
    let parameters = gateway.spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref());
    if let Some(parameters) = parameters {
        let kind = secrets::qualified(&parameters.group, &parameters.kind);
        let message = format!("parameters of kind {kind} are not supported: remove parametersRef");
        cx.report.error(&key, Code::UnsupportedParameters, "spec.infrastructure.parametersRef", &message);
        state.rejected = Some(Fault::new("InvalidParameters", message));
    }
    let class = cx.index.classes.get(gateway.spec.gateway_class_name.as_str());
    if class.is_some_and(|class| class.spec.parameters_ref.is_some()) {
        let message = format!("GatewayClass {} is not accepted", gateway.spec.gateway_class_name);
        state.rejected.get_or_insert(Fault::new("InvalidParameters", message));
    }
    let backend = gateway.spec.tls.as_ref().and_then(|t| t.backend.as_ref());
    if let Some(reference) = backend.and_then(|b| b.client_certificate_ref.as_ref()) {
        let from = From { group: GATEWAY_GROUP, kind: "Gateway", namespace };
        match secrets::certificate(tls, &cx.index, from, reference, "InvalidClientCertificateRef") {
            Ok(certificate) => {
                cx.check_validity(&key, "spec.tls.backend.clientCertificateRef", &certificate);
                state.client_certificate = Some(certificate);
            }
            Err(fault) => {
                cx.report.error(
                    &key,
                    Code::InvalidCertificate,
                    "spec.tls.backend.clientCertificateRef",
                    &fault.message,
                );
                state.refs = Some(fault);
            }
        }
    }
    state
}

fn insecure_frontend(tls: &GatewayTls) -> bool {
    let Some(frontend) = &tls.frontend else { return false };
    let all = frontend.per_port.iter().map(|p| &p.tls).chain(std::iter::once(&frontend.default));
    all.filter_map(|t| t.validation.as_ref()).any(|v| v.mode == FrontendValidationMode::AllowInsecureFallback)
}

/// Turns `spec.addresses` into addresses to bind. An IPAddress without value, like no address at all, takes what was
/// assigned to the Gateway from outside, else every address of the machine.
fn addresses(cx: &mut Context<'_>, state: &mut GatewayState<'_>, key: &ResourceKey) {
    let mut any = state.gateway.spec.addresses.is_empty();
    for (i, address) in state.gateway.spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{i}]");
        let value = address.value.as_deref().unwrap_or("");
        if address.address_type != AddressType::IpAddress {
            let kind = String::from(address.address_type.clone());
            let message = format!("addresses of type {kind} are not supported: write an IPAddress");
            cx.report.error(key, Code::UnusableAddress, &path, &message);
            state.rejected.get_or_insert(Fault::new("UnsupportedAddress", message));
        } else if value.is_empty() {
            any = true;
        } else {
            let usable = value.parse::<IpAddr>().ok().filter(|ip| cx.options.usable(*ip));
            match usable {
                Some(ip) => {
                    state.binds.push(Some(ip));
                    state.addresses.push(GatewayAddress { address_type: "IPAddress", value: ip.to_string() });
                }
                None => {
                    let message = format!("address {value} cannot be used on this machine");
                    cx.report.error(key, Code::UnusableAddress, &path, &message);
                    state.unusable.get_or_insert(Fault::new("AddressNotUsable", message));
                }
            }
        }
    }
    if any {
        let assigned = cx.options.assigned_addresses.get(key).cloned().unwrap_or_default();
        for ip in &assigned {
            state.binds.push(Some(*ip));
            state.addresses.push(GatewayAddress { address_type: "IPAddress", value: ip.to_string() });
        }
        if assigned.is_empty() {
            state.binds.push(None);
            let published = cx.options.published_addresses.iter();
            state
                .addresses
                .extend(published.map(|ip| GatewayAddress { address_type: "IPAddress", value: ip.to_string() }));
        }
    }
    state.binds.sort_unstable();
    state.binds.dedup();
}

/// ListenerSets whose Gateway is ours, oldest first, and whether the Gateway takes them (`allowedListeners`).
pub(crate) fn listener_sets<'a>(cx: &mut Context<'a>, gateways: &[GatewayState<'a>]) -> Vec<SetState<'a>> {
    let mut sets = Vec::new();
    for set in cx.index.listener_sets.clone() {
        let (namespace, name) = index::name(&set.metadata);
        let key = ResourceKey::new(Kind::ListenerSet, namespace, name);
        let parent = &set.spec.parent_ref;
        if parent.group != GATEWAY_GROUP || parent.kind != "Gateway" {
            let kind = secrets::qualified(&parent.group, &parent.kind);
            cx.report.error(
                &key,
                Code::UnsupportedReference,
                "spec.parentRef",
                &format!("the parent must be a Gateway, not a {kind}"),
            );
            continue;
        }
        let at = (parent.namespace.as_deref().unwrap_or(namespace), parent.name.as_str());
        let Some(gateway) = gateways.iter().position(|g| index::name(&g.gateway.metadata) == at) else {
            if !cx.index.gateways.iter().any(|g| index::name(&g.metadata) == at) {
                let near = did_you_mean(at.1, cx.index.names(Kind::Gateway, at.0));
                let message = format!("Gateway {}/{} does not exist{near}", at.0, at.1);
                cx.report.error(&key, Code::UnknownParent, "spec.parentRef.name", &message);
            }
            continue;
        };
        let owner = gateways[gateway].gateway;
        let allowed = owner.spec.allowed_listeners.as_ref().is_some_and(|allowed| {
            let rule = &allowed.namespaces;
            cx.index.namespace_allowed(rule.from, rule.selector.as_ref(), &owner.metadata.namespace, namespace)
        });
        let rejected = if !allowed {
            let message = format!(
                "Gateway {}/{} does not allow ListenerSets of namespace {namespace}: set its spec.allowedListeners",
                at.0, at.1
            );
            cx.report.error(&key, Code::NotAllowedByParent, "spec.parentRef", &message);
            Some(Fault::new("NotAllowed", message))
        } else {
            gateways[gateway].rejected.as_ref().map(|fault| {
                Fault::new("ParentNotAccepted", format!("Gateway {}/{} is not accepted: {}", at.0, at.1, fault.message))
            })
        };
        sets.push(SetState { set, gateway, rejected });
    }
    sets
}
