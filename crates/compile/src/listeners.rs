//! Listeners of Gateways and ListenerSets: what each may serve, its certificates, and its conditions.

use crate::{
    Context,
    gateways::{GatewayState, SetState},
    grants::From,
    secrets::{self, CaFault, TlsCache},
    snapshot::{CertificateRef, ClientValidation, ListenerName},
    status::Fault,
    tls,
};
use selvedge_model::{
    Code, GATEWAY_GROUP, Kind, ObjectMeta, ResourceKey,
    gateway::{FrontendTlsConfig, FrontendValidationMode, Listener, ListenerProtocol, TlsMode},
};

/// What a listener speaks, once its `protocol` and `tls.mode` are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http,
    Https,
    TlsTerminate,
    TlsPassthrough,
    Tcp,
    Udp,
    Unknown,
}

/// Listeners of one family can share a socket when their hostnames differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Http,
    Tls,
    Tcp,
    Udp,
}

impl Speaks {
    fn of(listener: &Listener) -> Self {
        let passthrough = listener.tls.as_ref().is_some_and(|t| t.mode == TlsMode::Passthrough);
        match listener.protocol {
            ListenerProtocol::Http => Speaks::Http,
            ListenerProtocol::Https => Speaks::Https,
            ListenerProtocol::Tls if passthrough => Speaks::TlsPassthrough,
            ListenerProtocol::Tls => Speaks::TlsTerminate,
            ListenerProtocol::Tcp => Speaks::Tcp,
            ListenerProtocol::Udp => Speaks::Udp,
            ListenerProtocol::Other(_) => Speaks::Unknown,
        }
    }

    pub(crate) fn family(self) -> Option<Family> {
        Some(match self {
            Speaks::Http => Family::Http,
            Speaks::Https | Speaks::TlsTerminate | Speaks::TlsPassthrough => Family::Tls,
            Speaks::Tcp => Family::Tcp,
            Speaks::Udp => Family::Udp,
            Speaks::Unknown => return None,
        })
    }

    pub(crate) fn terminates(self) -> bool {
        matches!(self, Speaks::Https | Speaks::TlsTerminate)
    }

    /// Kinds of routes that can attach.
    fn kinds(self) -> &'static [Kind] {
        match self {
            Speaks::Http | Speaks::Https => &[Kind::HttpRoute, Kind::GrpcRoute],
            Speaks::TlsTerminate => &[Kind::TlsRoute, Kind::TcpRoute],
            Speaks::TlsPassthrough => &[Kind::TlsRoute],
            Speaks::Tcp => &[Kind::TcpRoute],
            Speaks::Udp => &[Kind::UdpRoute],
            Speaks::Unknown => &[],
        }
    }
}

/// One listener, with what became of it.
pub(crate) struct ListenerState<'a> {
    /// Index of the Gateway that serves it.
    pub(crate) gateway: usize,
    /// Index of the ListenerSet that brings it, if one does.
    pub(crate) set: Option<usize>,
    /// Position in `spec.listeners` of its owner.
    pub(crate) index: usize,
    pub(crate) spec: &'a Listener,
    /// Metadata of the Gateway or ListenerSet.
    pub(crate) owner: &'a ObjectMeta,
    pub(crate) name: ListenerName,
    pub(crate) speaks: Speaks,
    /// Lower case.
    pub(crate) hostname: Option<String>,
    /// Kinds of routes that may attach.
    pub(crate) kinds: Vec<Kind>,
    /// Why it is not accepted.
    pub(crate) rejected: Option<Fault>,
    /// Why a reference of it does not resolve.
    pub(crate) refs: Option<Fault>,
    /// Which other listener it cannot live beside.
    pub(crate) conflict: Option<Fault>,
    /// Which other TLS listener it overlaps.
    pub(crate) overlap: Option<Fault>,
    pub(crate) certificates: Vec<CertificateRef>,
    pub(crate) client: Option<ClientValidation>,
    /// Routes that it admits.
    pub(crate) attached: u32,
}

impl ListenerState<'_> {
    pub(crate) fn owner_key(&self) -> ResourceKey {
        let kind = if self.set.is_some() { Kind::ListenerSet } else { Kind::Gateway };
        ResourceKey::new(kind, &*self.owner.namespace, &*self.owner.name)
    }

    pub(crate) fn path(&self, field: &str) -> String {
        format!("spec.listeners[{}]{field}", self.index)
    }

    /// Why nothing is served on it, if so.
    pub(crate) fn unserved(&self) -> Option<Fault> {
        if let Some(fault) = self.conflict.as_ref() {
            return Some(fault.clone());
        }
        if let Some(fault) = &self.rejected {
            return Some(Fault::new("Invalid", fault.message.clone()));
        }
        let no_certificate = self.speaks.terminates() && self.certificates.is_empty();
        if no_certificate || self.kinds.is_empty() {
            let why = self.refs.as_ref().map_or("no kind of route can attach", |f| f.message.as_str());
            return Some(Fault::new("Invalid", why));
        }
        None
    }
}

/// Every listener of the Gateways, each followed by those of its ListenerSets, in order of precedence.
pub(crate) fn listeners<'a>(
    cx: &mut Context<'a>,
    cache: &mut TlsCache,
    gateways: &[GatewayState<'a>],
    sets: &[SetState<'a>],
) -> Vec<ListenerState<'a>> {
    let mut all = Vec::new();
    for (g, gateway) in gateways.iter().enumerate() {
        for (i, spec) in gateway.gateway.spec.listeners.iter().enumerate() {
            let owner = &gateway.gateway.metadata;
            all.push(listener(cx, cache, gateway, (g, None, i), spec, owner));
        }
        for (s, set) in sets.iter().enumerate().filter(|(_, set)| set.gateway == g) {
            for (i, spec) in set.set.spec.listeners.iter().enumerate() {
                let mut state = listener(cx, cache, gateway, (g, Some(s), i), spec, &set.set.metadata);
                if let Some(fault) = &set.rejected {
                    state.rejected.get_or_insert_with(|| Fault::new("Invalid", fault.message.clone()));
                }
                all.push(state);
            }
        }
    }
    all
}

fn listener<'a>(
    cx: &mut Context<'a>,
    cache: &mut TlsCache,
    gateway: &GatewayState<'a>,
    (g, set, index): (usize, Option<usize>, usize),
    spec: &'a Listener,
    owner: &'a ObjectMeta,
) -> ListenerState<'a> {
    let kind = if set.is_some() { "ListenerSet" } else { "Gateway" };
    let speaks = Speaks::of(spec);
    let named = !matches!(speaks, Speaks::Tcp | Speaks::Udp | Speaks::Unknown);
    let mut state = ListenerState {
        gateway: g,
        set,
        index,
        spec,
        owner,
        name: ListenerName {
            kind,
            namespace: owner.namespace.clone(),
            name: owner.name.clone(),
            section: spec.name.clone(),
        },
        speaks,
        hostname: spec.hostname.as_deref().filter(|h| named && !h.is_empty()).map(crate::hosts::normal),
        kinds: Vec::new(),
        rejected: None,
        refs: None,
        conflict: None,
        overlap: None,
        certificates: Vec::new(),
        client: None,
        attached: 0,
    };
    check_protocol(cx, &mut state);
    check_kinds(cx, &mut state);
    if state.speaks.terminates() {
        check_certificates(cx, cache, &mut state);
        check_frontend(cx, cache, gateway, &mut state);
    }
    state
}

fn check_protocol(cx: &mut Context<'_>, state: &mut ListenerState<'_>) {
    let fault = if state.speaks == Speaks::Unknown {
        let protocol = state.spec.protocol.as_str();
        let message = format!("protocol {protocol} is not supported: HTTP, HTTPS, TLS, TCP and UDP are");
        Some((".protocol", Fault::new("UnsupportedProtocol", message)))
    } else if state.speaks == Speaks::Https && state.spec.tls.as_ref().is_some_and(|t| t.mode == TlsMode::Passthrough) {
        let message = "an HTTPS listener ends TLS itself: use protocol TLS to pass it through";
        Some((".tls.mode", Fault::new("UnsupportedValue", message)))
    } else if state.hostname.as_deref().is_some_and(|h| !crate::hosts::valid(h)) {
        let message =
            format!("`{}` is no hostname, with or without a leading `*.`", state.hostname.as_deref().unwrap_or(""));
        Some((".hostname", Fault::new("UnsupportedValue", message)))
    } else {
        None
    };
    if let Some((field, fault)) = fault {
        cx.report.error(&state.owner_key(), Code::UnsupportedListener, &state.path(field), &fault.message);
        state.rejected = Some(fault);
    }
}

fn check_kinds(cx: &mut Context<'_>, state: &mut ListenerState<'_>) {
    let possible = state.speaks.kinds();
    if state.spec.allowed_routes.kinds.is_empty() {
        state.kinds = possible.to_vec();
        return;
    }
    for (i, wanted) in state.spec.allowed_routes.kinds.iter().enumerate() {
        let found = possible.iter().find(|k| k.group() == wanted.group && k.name() == wanted.kind);
        match found {
            Some(kind) if !state.kinds.contains(kind) => state.kinds.push(*kind),
            Some(_) => {}
            None => {
                let kind = secrets::qualified(&wanted.group, &wanted.kind);
                let names: Vec<&str> = possible.iter().map(|k| k.name()).collect();
                let message = format!(
                    "routes of kind {kind} cannot attach to a {} listener: {} can",
                    state.spec.protocol.as_str(),
                    if names.is_empty() { "none".to_owned() } else { names.join(" and ") }
                );
                let path = state.path(&format!(".allowedRoutes.kinds[{i}]"));
                cx.report.error(&state.owner_key(), Code::UnsupportedRouteKind, &path, &message);
                state.refs.get_or_insert(Fault::new("InvalidRouteKinds", message));
            }
        }
    }
}

fn check_certificates(cx: &mut Context<'_>, cache: &mut TlsCache, state: &mut ListenerState<'_>) {
    let refs = state.spec.tls.as_ref().map_or(&[][..], |t| &t.certificate_refs);
    if refs.is_empty() {
        let message = "a listener that ends TLS needs a certificate: name a Secret in tls.certificateRefs";
        cx.report.error(&state.owner_key(), Code::MissingCertificate, &state.path(".tls.certificateRefs"), message);
        state.refs.get_or_insert(Fault::new("InvalidCertificateRef", message));
    }
    let from = From { group: GATEWAY_GROUP, kind: state.name.kind, namespace: &state.owner.namespace };
    for (i, reference) in refs.iter().enumerate() {
        let path = state.path(&format!(".tls.certificateRefs[{i}]"));
        match secrets::certificate(cache, &cx.index, from, reference, "InvalidCertificateRef") {
            Ok(certificate) => {
                let key = state.owner_key();
                cx.check_validity(&key, &path, &certificate);
                if let Some(hostname) = &state.hostname
                    && !certificate.names.iter().any(|name| crate::hosts::covers(name, hostname))
                {
                    let message = format!(
                        "the certificate of Secret {} is for {}, not for the listener's hostname {hostname}",
                        certificate.secret,
                        if certificate.names.is_empty() { "no name".to_owned() } else { certificate.names.join(", ") }
                    );
                    cx.report.warning(&key, Code::CertificateNameMismatch, &path, &message);
                }
                state.certificates.push(certificate);
            }
            Err(fault) => {
                cx.report.error(&state.owner_key(), Code::InvalidCertificate, &path, &fault.message);
                state.refs.get_or_insert(fault);
            }
        }
    }
}

/// Client certificates (`Gateway.spec.tls.frontend`): the port's own setting, else the default.
fn check_frontend(
    cx: &mut Context<'_>,
    cache: &mut TlsCache,
    gateway: &GatewayState<'_>,
    state: &mut ListenerState<'_>,
) {
    let Some(frontend) = gateway.gateway.spec.tls.as_ref().and_then(|t| t.frontend.as_ref()) else { return };
    let per_port = frontend.per_port.iter().enumerate().find(|(_, p)| p.port == state.spec.port);
    let (config, base): (&FrontendTlsConfig, String) = match per_port {
        Some((i, port)) => (&port.tls, format!("spec.tls.frontend.perPort[{i}].tls.validation")),
        None => (&frontend.default, "spec.tls.frontend.default.validation".to_owned()),
    };
    let Some(validation) = &config.validation else { return };
    let from = From { group: GATEWAY_GROUP, kind: "Gateway", namespace: &gateway.gateway.metadata.namespace };
    let mut bundles = Vec::new();
    let mut broken: Option<Fault> = None;
    for (i, reference) in validation.ca_certificate_refs.iter().enumerate() {
        let fault = match secrets::ca(cache, &cx.index, from, reference) {
            Ok(bundle) => {
                bundles.push(bundle);
                continue;
            }
            Err(CaFault::Kind(message)) => Fault::new("InvalidCACertificateKind", message),
            Err(CaFault::NotPermitted(message)) => Fault::new("RefNotPermitted", message),
            Err(CaFault::Invalid(message)) => Fault::new("InvalidCACertificateRef", message),
        };
        let path = format!("{base}.caCertificateRefs[{i}]");
        cx.report.error(&gateway.key(), Code::InvalidCaCertificate, &path, &fault.message);
        broken.get_or_insert(fault);
    }
    let trust = tls::join(bundles);
    if trust.is_none() {
        let why = broken.as_ref().map_or("no CA certificate is named", |f| f.message.as_str()).to_owned();
        state.rejected.get_or_insert(Fault::new("NoValidCACertificate", why));
    }
    if let Some(fault) = broken {
        state.refs.get_or_insert(fault);
    }
    let insecure_fallback = validation.mode == FrontendValidationMode::AllowInsecureFallback;
    state.client = Some(ClientValidation { trust, insecure_fallback });
}
