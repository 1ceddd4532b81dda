//! "May A call B?", by resources alone.

use super::{Accesses, Asked, Cache, Layer7, Subject, WorkloadPlace};
use crate::{Context, Options, endpoints, index::Index, mesh, report::Report, status::Status};
use http::{HeaderMap, Method};
use selvedge_model::{Resources, Service, core::PortOrName, mesh::Workload};
use selvedge_wire::{
    host,
    spiffe::SpiffeId,
    uri::{self, EscapedSlashes, PathOptions},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// Who wants to call what.
#[derive(Debug, Clone)]
pub struct Question {
    /// `None` is whoever comes without mutual TLS.
    pub identity: Option<SpiffeId>,
    pub from: Option<IpAddr>,
    pub method: Method,
    /// Of a Service: `http://orders.shop/orders/7`, or `tcp://db.shop:5432` for bytes.
    pub url: String,
    /// Where it arrives, when a route sent it elsewhere than its URL says.
    pub at: Option<Arrival>,
    pub headers: HeaderMap,
    /// What a verified token of the caller says; `None` is who comes without.
    pub claims: Option<serde_json::Value>,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub namespace: String,
    pub service: String,
    pub port: u16,
}

/// What one workload says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ruling {
    /// `Workload shop/orders-1`.
    pub place: String,
    pub allowed: bool,
    pub why: String,
    /// Policies with action Audit that match.
    pub audited: Vec<String>,
}

/// Asks every workload behind the Service that the URL names; one without Workloads is judged by the labels that it selects.
///
/// # Errors
/// The URL names no Service, or cannot be understood.
pub fn may(resources: &Resources, options: &Options, question: &Question) -> Result<Vec<Ruling>, String> {
    let wanted = Wanted::parse(question)?;
    let address = wanted.ip().filter(|_| question.at.is_none());
    let index = Index::new(resources);
    let mut report = Report::default();
    let mut cx = Context {
        mesh: mesh::State::new(&index, &mut report, options),
        index,
        options,
        report,
        status: Status::default(),
        controller: Arc::from(options.controller_name.as_str()),
    };
    let accesses = Accesses::new(&mut cx, &mut Cache::default());
    if let Some(workload) = address.and_then(|ip| cx.mesh.members.at(ip)) {
        let meta = &workload.metadata;
        let picks = |service: &&Arc<Service>| mesh::members::picks(service, workload);
        let services = resources.services().of_namespace(&meta.namespace).filter(picks);
        let services: Vec<&str> = services.map(|service| service.metadata.name.as_str()).collect();
        let place =
            WorkloadPlace { namespace: &meta.namespace, name: &meta.name, labels: &meta.labels, services: &services };
        let access = accesses.for_workload(place);
        let verdict = access.decide(&wanted.subject(question, wanted.port));
        let audited = verdict.audited.iter().map(|policy| policy.name.clone()).collect();
        let place = format!("Workload {}/{}", meta.namespace, meta.name);
        return Ok(vec![Ruling { place, allowed: verdict.allowed, why: verdict.by.to_string(), audited }]);
    }
    let domain = cx.mesh.spec.cluster_domain();
    let service = wanted.service(resources, question, domain)?;
    let meta = &service.metadata;
    let namespace = meta.namespace.as_str();
    let selected = |labels: &BTreeMap<String, String>| {
        let selector = &service.spec.selector;
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let endpoints: Vec<&String> = cx
        .index
        .slices(namespace, &meta.name)
        .unwrap_or_default()
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .flat_map(|endpoint| &endpoint.addresses)
        .collect();
    let behind = |workload: &&Arc<Workload>| {
        selected(&workload.metadata.labels) || workload.spec.addresses.iter().any(|ip| endpoints.contains(&ip))
    };
    let workloads: Vec<_> = resources.workloads().of_namespace(namespace).filter(behind).collect();
    let judge = |place: String, name: &str, labels: &BTreeMap<String, String>, port: u16| {
        let services: Vec<&str> = resources
            .services()
            .of_namespace(namespace)
            .filter(|other| {
                other.metadata.name == meta.name || {
                    let selector = &other.spec.selector;
                    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
                }
            })
            .map(|other| other.metadata.name.as_str())
            .collect();
        let access = accesses.for_workload(WorkloadPlace { namespace, name, labels, services: &services });
        let verdict = access.decide(&wanted.subject(question, port));
        let audited = verdict.audited.iter().map(|policy| policy.name.clone()).collect();
        Ruling { place, allowed: verdict.allowed, why: verdict.by.to_string(), audited }
    };
    if workloads.is_empty() {
        let port = wanted.port_of(service, None)?;
        let place = format!("Service {namespace}/{}", meta.name);
        return Ok(vec![judge(place, "", &service.spec.selector, port)]);
    }
    let one = |workload: &Arc<Workload>| {
        let (name, labels) = (&workload.metadata.name, &workload.metadata.labels);
        let port = wanted.port_of(service, Some(workload))?;
        Ok(judge(format!("Workload {namespace}/{name}"), name, labels, port))
    };
    workloads.into_iter().map(one).collect()
}

/// What the URL says.
struct Wanted {
    host: String,
    port: u16,
    /// Path and query of a request; `None` for bytes.
    request: Option<(String, Option<String>)>,
}

impl Wanted {
    fn parse(question: &Question) -> Result<Self, String> {
        let url = question.url.as_str();
        if let Some(authority) = url.strip_prefix("tcp://") {
            let authority = host::parse(authority.as_bytes()).map_err(|error| error.to_string())?;
            let port = question.at.as_ref().map(|at| at.port).or(authority.port);
            let port = port.ok_or("name the port, as in tcp://db.shop:5432")?;
            return Ok(Wanted { host: authority.host.into_owned(), port, request: None });
        }
        let options = PathOptions { escaped_slashes: EscapedSlashes::Keep, ..PathOptions::default() };
        let target = uri::parse(&question.method, url.as_bytes(), &options).map_err(|error| error.to_string())?;
        let (Some(secure), Some(authority)) = (target.secure, target.authority) else {
            return Err("write the whole URL, as in http://orders.shop/orders/7".to_owned());
        };
        let authority = host::parse(authority).map_err(|error| error.to_string())?;
        let request = Some((target.path().to_owned(), target.query().map(str::to_owned)));
        let port = question.at.as_ref().map_or(authority.effective_port(secure), |at| at.port);
        Ok(Wanted { port, host: authority.host.into_owned(), request })
    }

    /// The address, where the URL has one instead of a name.
    fn ip(&self) -> Option<IpAddr> {
        self.host.trim_matches(['[', ']']).parse().ok()
    }

    /// `orders`, `orders.shop`, `orders.shop.svc`, `orders.shop.svc.cluster.local`; the namespace of a bare name is the caller's.
    fn service<'r>(
        &self,
        resources: &'r Resources,
        question: &Question,
        domain: &str,
    ) -> Result<&'r Arc<Service>, String> {
        if let Some(Arrival { namespace, service, .. }) = &question.at {
            let found = resources.services().get(namespace, service);
            return found.ok_or_else(|| format!("there is no Service {namespace}/{service}"));
        }
        if let Some(ip) = self.ip() {
            let found = resources.services().iter().find(|service| endpoints::cluster_ips(service).contains(&ip));
            return found.ok_or_else(|| format!("{ip} is the address of no Service and of no Workload"));
        }
        let host = self.host.strip_suffix(&format!(".{domain}")).unwrap_or(&self.host);
        let host = host.strip_suffix(".svc").unwrap_or(host);
        let own = question.identity.as_ref().and_then(SpiffeId::namespace).unwrap_or("default");
        let (name, namespace) = host.split_once('.').unwrap_or((host, own));
        resources.services().get(namespace, name).ok_or_else(|| {
            format!(
                "there is no Service {namespace}/{name}: name one as in http://orders.shop/; for what comes through a \
                 Gateway ask `selvedge explain --from-identity`"
            )
        })
    }

    /// The port of the workload that the Service leads to.
    fn port_of(&self, service: &Service, workload: Option<&Arc<Workload>>) -> Result<u16, String> {
        let ports = &service.spec.ports;
        let port = ports.iter().find(|port| port.port == self.port).ok_or_else(|| {
            let all: Vec<String> = ports.iter().map(|port| port.port.to_string()).collect();
            format!("Service {} has no port {}; it has {}", service.metadata.name, self.port, all.join(", "))
        })?;
        Ok(match &port.target_port {
            None => port.port,
            Some(PortOrName::Number(number)) => *number,
            Some(PortOrName::Name(name)) => workload
                .and_then(|it| it.spec.ports.iter().find(|port| port.name.as_ref() == Some(name)))
                .map_or(port.port, |port| port.port),
        })
    }

    fn subject<'a>(&'a self, question: &'a Question, port: u16) -> Subject<'a> {
        let from = question.from.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let layer7 = match &self.request {
            None => Layer7::Bytes,
            Some((path, query)) => Layer7::Request(Asked {
                method: question.method.as_str(),
                host: &self.host,
                path,
                query: query.as_deref(),
                headers: Some(&question.headers),
            }),
        };
        let identity = question.identity.as_ref();
        Subject {
            identity,
            mtls: identity.is_some(),
            peer: from,
            client: from,
            port,
            claims: question.claims.as_ref(),
            preflight: false,
            layer7,
        }
    }
}
