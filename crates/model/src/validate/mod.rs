//! Rules that the schema cannot say: forms of names, hostnames and paths, fields that must fit each other.
//!
//! These are the rules that the resource definitions of the Gateway API v1.6 carry in CEL, as far as one object alone
//! decides them, and those of our own kinds. What depends on other resources is the compiler's.

mod backend_tls;
mod core;
mod gateway;
mod grant;
mod http;
mod mesh;
mod route;
mod text;
mod traffic;

pub use text::*;

use crate::Resource;
use crate::diagnostic::{Code, Finding};
use crate::field_path::At;
use crate::meta::{Kind, ObjectMeta};

/// Most findings about one resource.
const MAX_FINDINGS: usize = 64;

/// What is wrong with a resource on its own. Resources with a finding of severity error must not be used.
pub fn validate(resource: &Resource) -> Vec<Finding> {
    let mut report = Report::default();
    metadata(&mut report, resource.kind(), resource.metadata());
    let spec = At::ROOT.field("spec");
    match resource {
        Resource::GatewayClass(class) => gateway::class(&mut report, class, &spec),
        Resource::Gateway(gateway) => gateway::gateway(&mut report, gateway, &spec),
        Resource::ListenerSet(set) => gateway::listener_set(&mut report, set, &spec),
        Resource::HttpRoute(route) => http::http_route(&mut report, route, &spec),
        Resource::GrpcRoute(route) => http::grpc_route(&mut report, route, &spec),
        Resource::TlsRoute(route) => route::tls_route(&mut report, route, &spec),
        Resource::TcpRoute(route) => route::stream_route(&mut report, &route.spec, &spec),
        Resource::UdpRoute(route) => route::stream_route(&mut report, &route.spec, &spec),
        // What is wrong in one is found by compiling: its target then denies, while a resource with errors is not used.
        Resource::AccessPolicy(_) | Resource::AuthPolicy(_) => {}
        Resource::ReferenceGrant(one) => grant::grant(&mut report, one, &spec),
        Resource::Namespace(_) | Resource::Secret(_) => {}
        Resource::BackendTlsPolicy(policy) => backend_tls::policy(&mut report, policy, &spec),
        Resource::TrafficPolicy(policy) => traffic::policy(&mut report, policy, &spec),
        Resource::Mesh(mesh) => mesh::mesh(&mut report, mesh, &spec),
        Resource::Workload(workload) => mesh::workload(&mut report, workload, &spec),
        Resource::ExternalService(service) => mesh::external_service(&mut report, service, &spec),
        Resource::Service(service) => core::service(&mut report, service, &spec),
        Resource::EndpointSlice(slice) => core::endpoint_slice(&mut report, slice),
        Resource::ConfigMap(map) => core::config_map(&mut report, map),
    }
    report.findings
}

fn metadata(report: &mut Report, kind: Kind, metadata: &ObjectMeta) {
    let at = At::ROOT.field("metadata");
    let name = at.field("name");
    match kind {
        Kind::Namespace | Kind::Service => report.check(Code::InvalidName, &name, dns_label(&metadata.name)),
        _ => report.check(Code::InvalidName, &name, dns_subdomain(&metadata.name)),
    }
    if !metadata.namespace.is_empty() {
        report.check(Code::InvalidName, &at.field("namespace"), dns_label(&metadata.namespace));
    }
    let labels = at.field("labels");
    for (key, value) in &metadata.labels {
        report.check(Code::InvalidLabel, &labels.field(key), label(key, value));
    }
    if let Some(time) = &metadata.creation_timestamp {
        report.check(Code::WrongFormat, &at.field("creationTimestamp"), timestamp(time));
    }
}

/// Collects findings.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn push(&mut self, finding: Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    fn error(&mut self, code: Code, at: &At<'_>, message: impl Into<String>) {
        self.push(Finding::error(code, at.path(), message));
    }

    fn warning(&mut self, code: Code, at: &At<'_>, message: impl Into<String>) {
        self.push(Finding::warning(code, at.path(), message));
    }

    fn check(&mut self, code: Code, at: &At<'_>, result: Result<(), String>) {
        if let Err(message) = result {
            self.error(code, at, message);
        }
    }

    /// Reports every item that equals an earlier one.
    fn unique<T: PartialEq>(&mut self, at: &At<'_>, items: &[T], what: &str, show: impl Fn(&T) -> String) {
        for (index, item) in items.iter().enumerate() {
            if items[..index].contains(item) {
                self.error(Code::DuplicateItem, &at.index(index), format!("{what} `{}` is given twice", show(item)));
            }
        }
    }
}
