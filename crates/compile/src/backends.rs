//! From a backend reference to a cluster: references are checked while routes compile, clusters are built once each.

use crate::{
    Context,
    backend_tls::BackendTls,
    endpoints,
    gateways::GatewayState,
    grants::{self, From, To},
    mesh::{self, Declared},
    policy::Policies,
    secrets::qualified,
    snapshot::{
        Cluster, Connections, Discovery, Endpoint, LoadBalancing, Netns, Trust, UpstreamProtocol, UpstreamTls,
        ZonePreference,
    },
    status::Fault,
    traffic,
};
use selvedge_model::{
    Code, Kind, ResourceKey, SELVEDGE_GROUP, Service,
    core::{ServicePort, ServiceType, TransportProtocol},
    refs::{BackendObjectReference, BackendRef},
    traffic::TrafficSettings,
};
use selvedge_wire::spiffe::SpiffeId;
use std::{fmt, sync::Arc};

/// What a route speaks to its backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Wire {
    Http,
    Grpc,
    Tcp,
    /// TLS that the client began: nothing may be added around it.
    Passthrough,
    Udp,
}

/// A backend as some rule uses it: what makes one cluster differ from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClusterUse {
    pub(crate) origin: Origin,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) wire: Wire,
    /// The Gateway whose client certificate is shown.
    pub(crate) gateway: Option<(String, String)>,
    /// Who calls, in a mesh.
    pub(crate) caller: Option<Arc<Caller>>,
}

/// What a cluster is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    Service,
    /// A plain DNS name (`kind: Hostname`).
    Hostname,
    /// One address: the name.
    Address,
    /// An ExternalService, or `NAME/HOST`: one of its hosts, by DNS.
    External,
    /// A local workload, as its own proxy calls it.
    Inbound,
}

/// As whom, and from where, connections are made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Caller {
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) netns: Netns,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = &self.identity {
            match (id.namespace(), id.account()) {
                (Some(namespace), Some(account)) => write!(f, "~{namespace}/{account}")?,
                _ => write!(f, "~{id}")?,
            }
        }
        match self.netns {
            Netns(0) => Ok(()),
            Netns(number) => write!(f, "%{number}"),
        }
    }
}

/// The key of the cluster.
impl fmt::Display for ClusterUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            // Has no `/`, which all others have.
            Origin::Address if self.name.contains(':') => write!(f, "[{}]:{}", self.name, self.port)?,
            Origin::Address => write!(f, "{}:{}", self.name, self.port)?,
            // No Service has a dot in its name.
            Origin::External => match self.name.split_once('/') {
                Some((name, host)) => write!(f, "{}/{name}.external/{host}:{}", self.namespace, self.port)?,
                None => write!(f, "{}/{}.external:{}", self.namespace, self.name, self.port)?,
            },
            Origin::Inbound => write!(f, "inbound|{}/{}:{}", self.namespace, self.name, self.port)?,
            Origin::Service | Origin::Hostname => write!(f, "{}/{}:{}", self.namespace, self.name, self.port)?,
        }
        f.write_str(match self.wire {
            Wire::Http => "",
            Wire::Grpc => "+h2",
            Wire::Tcp => "+tcp",
            Wire::Passthrough => "+tls",
            Wire::Udp => "+udp",
        })?;
        if let Some((namespace, name)) = &self.gateway {
            write!(f, "@{namespace}/{name}")?;
        }
        self.caller.as_ref().map_or(Ok(()), |caller| caller.fmt(f))
    }
}

/// A backend reference of any kind of route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reference<'a> {
    group: &'a str,
    kind: &'a str,
    namespace: Option<&'a str>,
    name: &'a str,
    port: Option<u16>,
}

impl<'a> std::convert::From<&'a BackendRef> for Reference<'a> {
    fn from(it: &'a BackendRef) -> Self {
        Reference {
            group: &it.group,
            kind: &it.kind,
            namespace: it.namespace.as_deref(),
            name: &it.name,
            port: it.port,
        }
    }
}

impl<'a> std::convert::From<&'a BackendObjectReference> for Reference<'a> {
    fn from(it: &'a BackendObjectReference) -> Self {
        Reference {
            group: &it.group,
            kind: &it.kind,
            namespace: it.namespace.as_deref(),
            name: &it.name,
            port: it.port,
        }
    }
}

impl<'a> Reference<'a> {
    pub(crate) fn is_service(&self) -> bool {
        self.group.is_empty() && self.kind == "Service"
    }

    pub(crate) fn namespace_in(&self, own: &'a str) -> &'a str {
        self.namespace.unwrap_or(own)
    }

    pub(crate) fn name(&self) -> &'a str {
        self.name
    }
}

/// Why a backend reference cannot be used: which field, which diagnostic, and the condition it makes.
pub(crate) struct BadBackend {
    pub(crate) code: Code,
    pub(crate) field: &'static str,
    pub(crate) fault: Fault,
}

fn bad(code: Code, field: &'static str, reason: &'static str, message: String) -> BadBackend {
    BadBackend { code, field, fault: Fault::new(reason, message) }
}

/// Checks a reference. `client` is the Gateway that brings a client certificate, if it does.
pub(crate) fn resolve(
    cx: &Context<'_>,
    tls: &BackendTls<'_>,
    from: From<'_>,
    reference: Reference<'_>,
    wire: Wire,
    client: Option<&(String, String)>,
) -> Result<ClusterUse, BadBackend> {
    let namespace = reference.namespace.unwrap_or(from.namespace);
    let hostname = match (reference.group, reference.kind) {
        ("", "Service") => false,
        (SELVEDGE_GROUP, "Hostname") => true,
        (group, kind) => {
            let message = format!(
                "a backend must be a Service, or a Hostname of group {SELVEDGE_GROUP}, not a {}",
                qualified(group, kind)
            );
            return Err(bad(Code::UnsupportedReference, "kind", "InvalidKind", message));
        }
    };
    let to = To { group: reference.group, kind: reference.kind, namespace, name: reference.name };
    // A DNS name belongs to no namespace, so there is nobody to grant it.
    if !hostname && !cx.index.grants.allow(from, to) {
        return Err(bad(Code::ReferenceNotPermitted, "namespace", "RefNotPermitted", grants::advice(from, to)));
    }
    let mut found = ClusterUse {
        origin: if hostname { Origin::Hostname } else { Origin::Service },
        namespace: if hostname { from.namespace } else { namespace }.to_owned(),
        name: reference.name.to_owned(),
        port: 0,
        wire,
        gateway: None,
        caller: cx.mesh.caller.clone(),
    };
    let Some(port) = reference.port else {
        return Err(bad(Code::BackendNotFound, "port", "UnsupportedValue", "a backend needs a port".to_owned()));
    };
    found.port = port;
    if hostname {
        found.name = crate::hosts::normal(reference.name);
        if !crate::hosts::valid(&found.name) || found.name.starts_with("*.") {
            let message = format!("`{}` is no DNS name", reference.name);
            return Err(bad(Code::BackendNotFound, "name", "BackendNotFound", message));
        }
        return Ok(found);
    }
    let service_port = service_port(cx, &found)?;
    check_protocol(cx, &found, service_port)?;
    let policy = tls.policy(&found.namespace, &found.name, service_port.name.as_deref());
    match policy.filter(|_| wire != Wire::Passthrough && wire != Wire::Udp) {
        Some(Err(message)) => {
            let message = format!("its BackendTLSPolicy is not usable: {message}");
            return Err(bad(Code::InvalidCaCertificate, "name", "BackendNotFound", message));
        }
        Some(Ok(_)) => found.gateway = client.cloned(),
        None => {}
    }
    found.wire = normal_wire(cx, service_port, wire);
    Ok(found)
}

/// A Service port that says HTTP/2 by itself is one backend, whoever asks.
pub(crate) fn normal_wire(cx: &Context<'_>, port: &ServicePort, wire: Wire) -> Wire {
    if wire == Wire::Grpc && natural(cx, port) == Some(UpstreamProtocol::Http2) { Wire::Http } else { wire }
}

fn service_port<'a>(cx: &Context<'a>, wanted: &ClusterUse) -> Result<&'a ServicePort, BadBackend> {
    let (namespace, name) = (wanted.namespace.as_str(), wanted.name.as_str());
    let Some(service) = cx.index.service(namespace, name) else {
        let near = cx.index.service_names(namespace);
        let near = selvedge_model::diagnostic::nearest(name, near).map(|n| format!("; did you mean {n}?"));
        let message = format!("Service {namespace}/{name} does not exist{}", near.unwrap_or_default());
        return Err(bad(Code::BackendNotFound, "name", "BackendNotFound", message));
    };
    let transport = if wanted.wire == Wire::Udp { TransportProtocol::Udp } else { TransportProtocol::Tcp };
    let of_number = || service.spec.ports.iter().filter(|p| p.port == wanted.port);
    if let Some(port) = of_number().find(|p| p.protocol == transport) {
        return Ok(port);
    }
    if of_number().next().is_some() {
        let message = format!(
            "port {} of Service {namespace}/{name} is not a {} port",
            wanted.port,
            format!("{transport:?}").to_uppercase()
        );
        return Err(bad(Code::UnsupportedBackendProtocol, "port", "UnsupportedProtocol", message));
    }
    if service.spec.ports.is_empty() {
        let message = format!("Service {namespace}/{name} has no ports; add {} to its `spec.ports`", wanted.port);
        return Err(bad(Code::BackendNotFound, "port", "BackendNotFound", message));
    }
    let ports: Vec<String> = service.spec.ports.iter().map(|p| p.port.to_string()).collect();
    let message = format!("Service {namespace}/{name} has no port {}; it has: {}", wanted.port, ports.join(", "));
    Err(bad(Code::BackendNotFound, "port", "BackendNotFound", message))
}

/// The protocol that `appProtocol` names; `None` for one that is not HTTP. Kubernetes KEP-3726 and IANA names.
fn natural(cx: &Context<'_>, port: &ServicePort) -> Option<UpstreamProtocol> {
    let Some(name) = &port.app_protocol else {
        // Between workloads the name of the port counts too, as it does where they are called without routes.
        let http2 = cx.mesh.beside && Declared::of(None, port.name.as_deref()) == Declared::Http2;
        return Some(if http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 });
    };
    Some(match name.to_ascii_lowercase().as_str() {
        "" | "http" | "kubernetes.io/ws" | "ws" | "kubernetes.io/wss" | "wss" => UpstreamProtocol::Http1,
        "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" | "kubernetes.io/grpc" => UpstreamProtocol::Http2,
        "https" | "kubernetes.io/https" => UpstreamProtocol::Auto,
        _ => return None,
    })
}

/// Whether `appProtocol` asks for TLS.
fn wants_tls(port: &ServicePort) -> bool {
    let name = port.app_protocol.as_deref().unwrap_or("");
    ["https", "kubernetes.io/https", "wss", "kubernetes.io/wss"].iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn check_protocol(cx: &Context<'_>, wanted: &ClusterUse, port: &ServicePort) -> Result<(), BadBackend> {
    if matches!(wanted.wire, Wire::Http | Wire::Grpc) && natural(cx, port).is_none() {
        let message = format!(
            "port {} of Service {}/{} has appProtocol {}, which is no HTTP: http, https, kubernetes.io/h2c, kubernetes.io/ws, kubernetes.io/wss and grpc are",
            wanted.port,
            wanted.namespace,
            wanted.name,
            port.app_protocol.as_deref().unwrap_or("")
        );
        return Err(bad(Code::UnsupportedBackendProtocol, "port", "UnsupportedProtocol", message));
    }
    Ok(())
}

/// Builds the cluster of a use that [`resolve`] has checked.
pub(crate) fn build(
    cx: &mut Context<'_>,
    tls: &BackendTls<'_>,
    policies: &Policies<'_>,
    gateways: &[GatewayState<'_>],
    wanted: &ClusterUse,
) -> Arc<Cluster> {
    let service = cx.index.service(&wanted.namespace, &wanted.name);
    let mut cluster = match (wanted.origin, service) {
        (Origin::Service, Some(service)) => of_service(cx, tls, wanted, service),
        (Origin::Service, None) | (Origin::Inbound, _) => blank(wanted, Discovery::Static(Vec::new())),
        (Origin::Hostname, _) => of_hostname(wanted),
        (Origin::Address, _) => of_address(cx, wanted),
        (Origin::External, _) => mesh::external::cluster(cx, wanted, blank(wanted, Discovery::Static(Vec::new()))),
    };
    if let Some(settings) = settings(cx, policies, wanted) {
        apply(&mut cluster, &settings);
    }
    if cluster.load_balancing.zone == ZonePreference::Strict {
        let locality = cx.mesh.finder(wanted.caller.as_deref()).locality;
        cluster.load_balancing.own_zone = locality.zone.map(str::to_owned);
    }
    if let Discovery::Static(list) = &mut cluster.discovery
        && cluster.load_balancing.zone != ZonePreference::Prefer
    {
        list.iter_mut().for_each(|endpoint| endpoint.priority = 0);
    }
    if let Some((namespace, name)) = &wanted.gateway
        && let Some(upstream) = &mut cluster.tls
    {
        let owner =
            gateways.iter().find(|g| g.gateway.metadata.namespace == *namespace && g.gateway.metadata.name == *name);
        Arc::make_mut(upstream).client_certificate = owner.and_then(|g| g.client_certificate.clone());
    }
    Arc::new(cluster)
}

/// What TrafficPolicies say of its connections.
fn settings(cx: &Context<'_>, policies: &Policies<'_>, wanted: &ClusterUse) -> Option<TrafficSettings> {
    let (namespace, name) = (wanted.namespace.as_str(), wanted.name.as_str());
    match wanted.origin {
        Origin::External => {
            let (name, port) = mesh::external::port_of(cx, wanted).unwrap_or((name, None));
            policies.of_external(namespace, name, port)
        }
        Origin::Service => {
            let port =
                cx.index.service(namespace, name).and_then(|s| s.spec.ports.iter().find(|p| p.port == wanted.port));
            policies.of_service(namespace, name, port.and_then(|p| p.name.as_deref()))
        }
        Origin::Hostname | Origin::Address | Origin::Inbound => policies.of_service(namespace, name, None),
    }
}

fn apply(cluster: &mut Cluster, settings: &TrafficSettings) {
    if let Some(it) = &settings.load_balancing {
        cluster.load_balancing = traffic::load_balancing(it);
    }
    if let Some(it) = &settings.connections {
        cluster.connections = traffic::connections(it);
        if cluster.protocol != UpstreamProtocol::Raw
            && let Some(protocol) = traffic::protocol(it)
        {
            cluster.protocol = protocol;
        }
    }
    cluster.health_checks = settings.health_checks.iter().flatten().map(traffic::health_check).collect();
    cluster.outlier_detection = settings.outlier_detection.as_ref().map(traffic::outlier_detection);
}

fn blank(wanted: &ClusterUse, discovery: Discovery) -> Cluster {
    Cluster {
        key: wanted.to_string(),
        discovery,
        protocol: UpstreamProtocol::Raw,
        tls: None,
        identity: wanted.caller.as_ref().and_then(|caller| caller.identity.clone()),
        netns: wanted.caller.as_ref().map(|caller| caller.netns).unwrap_or_default(),
        load_balancing: LoadBalancing::default(),
        connections: Connections::default(),
        health_checks: Vec::new(),
        outlier_detection: None,
    }
}

/// A single workload, as who has looked it up calls it.
fn of_address(cx: &Context<'_>, wanted: &ClusterUse) -> Cluster {
    let ip: Option<std::net::IpAddr> = wanted.name.parse().ok();
    let address = ip.map(|ip| std::net::SocketAddr::new(ip, wanted.port));
    let finder = cx.mesh.finder(wanted.caller.as_deref());
    let endpoint = address.map(|address| Endpoint { weight: 1, ..finder.endpoint(address, None, None) });
    let mut cluster = blank(wanted, Discovery::Static(endpoint.into_iter().collect()));
    cluster.protocol = match wanted.wire {
        Wire::Http => UpstreamProtocol::Http1,
        Wire::Grpc => UpstreamProtocol::Http2,
        Wire::Tcp | Wire::Passthrough | Wire::Udp => UpstreamProtocol::Raw,
    };
    cluster
}

/// A plain DNS name: port 443 means TLS, as a browser would read it.
fn of_hostname(wanted: &ClusterUse) -> Cluster {
    let mut cluster = blank(wanted, Discovery::Dns { host: wanted.name.clone(), port: wanted.port });
    let secure = wanted.port == 443;
    let http = matches!(wanted.wire, Wire::Http | Wire::Grpc);
    cluster.protocol = match wanted.wire {
        Wire::Http if secure => UpstreamProtocol::Auto,
        Wire::Http => UpstreamProtocol::Http1,
        Wire::Grpc => UpstreamProtocol::Http2,
        Wire::Tcp | Wire::Passthrough | Wire::Udp => UpstreamProtocol::Raw,
    };
    if secure && http {
        cluster.tls = Some(Arc::new(system_tls(wanted.name.clone())));
    }
    cluster
}

fn system_tls(sni: String) -> UpstreamTls {
    UpstreamTls { sni, trust: Trust::System, subject_alt_names: Vec::new(), client_certificate: None }
}

fn of_service(cx: &mut Context<'_>, tls: &BackendTls<'_>, wanted: &ClusterUse, service: &Service) -> Cluster {
    let transport = if wanted.wire == Wire::Udp { TransportProtocol::Udp } else { TransportProtocol::Tcp };
    let port = service.spec.ports.iter().find(|p| p.port == wanted.port && p.protocol == transport);
    let Some(port) = port else { return blank(wanted, Discovery::Static(Vec::new())) };
    let key = ResourceKey::new(Kind::Service, &*wanted.namespace, &*wanted.name);
    let mut cluster = blank(wanted, discovery(cx, &key, wanted, service, port));
    if matches!(wanted.wire, Wire::Http | Wire::Grpc | Wire::Tcp) {
        let policy = tls.policy(&wanted.namespace, &wanted.name, port.name.as_deref());
        if let Some(Ok(upstream)) = policy {
            cluster.tls = Some(Arc::clone(upstream));
        }
    }
    if matches!(wanted.wire, Wire::Http | Wire::Grpc) {
        if cluster.tls.is_none() && wants_tls(port) {
            let sni = service.spec.external_name.as_deref().map(crate::hosts::normal);
            let sni = sni.unwrap_or_else(|| format!("{}.{}.svc", wanted.name, wanted.namespace));
            let message = format!(
                "port {} asks for TLS by its appProtocol, but no BackendTLSPolicy says how it is verified: the name {sni} and the roots of the operating system are used",
                wanted.port
            );
            cx.report.warning(&key, Code::UnverifiedBackendName, "spec.ports", &message);
            cluster.tls = Some(Arc::new(system_tls(sni)));
        }
        cluster.protocol = match (wanted.wire, natural(cx, port)) {
            (Wire::Grpc, _) | (_, Some(UpstreamProtocol::Http2)) => UpstreamProtocol::Http2,
            (_, Some(UpstreamProtocol::Http1)) if cluster.tls.is_some() && port.app_protocol.is_none() => {
                UpstreamProtocol::Auto
            }
            (_, natural) => natural.unwrap_or(UpstreamProtocol::Http1),
        };
    }
    cluster
}

fn discovery(
    cx: &mut Context<'_>,
    key: &ResourceKey,
    wanted: &ClusterUse,
    service: &Service,
    port: &ServicePort,
) -> Discovery {
    if service.spec.service_type == ServiceType::ExternalName {
        let host = service.spec.external_name.as_deref().map(crate::hosts::normal).unwrap_or_default();
        if host.is_empty() {
            cx.report.error(key, Code::NoEndpoints, "spec.externalName", "an ExternalName Service needs a name");
            return Discovery::Static(Vec::new());
        }
        // An address is as good as a name here, and needs no look-up.
        if let Ok(ip) = host.parse() {
            let address = std::net::SocketAddr::new(ip, wanted.port);
            return Discovery::Static(vec![Endpoint::new(address)]);
        }
        return Discovery::Dns { host, port: wanted.port };
    }
    let slices = cx.index.slices(&wanted.namespace, &wanted.name);
    let finder = cx.mesh.finder(wanted.caller.as_deref());
    // Where there are Workloads, a Service that picks by label has those or none.
    let picks = !service.spec.selector.is_empty() && cx.mesh.members.any_in(&wanted.namespace);
    let found = match slices {
        None if !picks => endpoints::of_cluster_ip(service, port),
        slices => finder.of_service(&mut cx.report, slices.unwrap_or_default(), service, port),
    };
    if let Discovery::Static(list) = &found
        && list.is_empty()
    {
        let message = format!("port {} has no endpoints: requests are answered with 503", port.port);
        cx.report.warning(key, Code::NoEndpoints, "spec.ports", &message);
    }
    found
}
