//! The configuration compiler: [`Resources`] in, an immutable [`Snapshot`], a [`Status`] and diagnostics out. Pure and
//! total: it reads no clock, file or socket, never panics, and a bad resource is left out alone (DESIGN.md invariant 7).
//!
//! Order of work: `gateways` and `listeners` say what is listened on, `conflicts` who gets which socket, `attach` which
//! routes go where, `http_route`, `grpc_route` and `l4_routes` what a route does, `backends` where it sends, and
//! `assemble` puts the snapshot together.

pub mod access;
pub mod router;
pub mod snapshot;

mod assemble;
mod attach;
mod backend_tls;
mod backends;
mod conflicts;
mod diff;
mod endpoints;
mod explain;
mod filters;
mod front;
mod gateways;
mod grants;
mod grpc_route;
mod hosts;
mod http_route;
mod index;
mod l4_routes;
mod lint;
mod listeners;
mod memory;
mod mesh;
mod policy;
mod position;
mod report;
mod routers;
mod routes;
mod rules;
mod secrets;
mod status;
mod summary;
mod tls;
mod traffic;
mod unopened;
mod words;

pub use access::{Arrival, Question, Ruling, may};
pub use diff::{Change, ChangeKind, diff, diff_to_json};
pub use explain::{Answer, BackendShare, Chosen, Explanation, Lost, Request, explain, explain_outbound};
pub use lint::check;
pub use position::{FixedPort, INBOUND_PORT, LocalWorkload, OUTBOUND_PORT, Ports, Position};
pub use status::*;
pub use summary::summary;
pub use traffic::health_check;

use index::Index;
use report::Report;
use selvedge_model::{Code, Diagnostic, ResourceKey, Resources};
use selvedge_wire::spiffe::SpiffeId;
use snapshot::{Certificate, Snapshot, Telemetry};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What compiling depends on besides the resources.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Gateways whose GatewayClass names this controller are served.
    pub controller_name: String,
    /// Outside Kubernetes: a Gateway of class `selvedge` is served without a GatewayClass.
    pub accept_any_class: bool,
    /// Added to every port that is bound, so that ports below 1024 need no privileges. Ports over 65535 are refused.
    pub port_offset: u16,
    /// Addresses for Gateways that ask for none in particular; the others bind every address of the machine.
    pub assigned_addresses: BTreeMap<ResourceKey, Vec<IpAddr>>,
    /// What `status.addresses` of a Gateway says that binds every address of the machine.
    pub published_addresses: Vec<IpAddr>,
    /// Addresses that Gateways may ask for; `None` allows all.
    pub usable_addresses: Option<Vec<ipnet::IpNet>>,
    /// Where the proxy stands.
    pub position: Position,
    /// As whom a proxy that serves Gateways calls members of the mesh. Beside workloads each has its own.
    pub identity: Option<SpiffeId>,
    /// What a Mesh is of that names no trust domain: that of the certificates; `cluster.local` when not given.
    pub trust_domain: Option<String>,
    /// Identities that the proxy keeps certificates of; `None` where that is not known.
    pub kept: Option<BTreeSet<SpiffeId>>,
    /// Zone of this proxy.
    pub zone: Option<String>,
    /// Region of this proxy.
    pub region: Option<String>,
    /// Seconds since the epoch, to warn of certificates that are expired; 0 checks nothing.
    pub now: i64,
    /// Outputs of listeners that no TrafficPolicy gives any.
    pub telemetry: Telemetry,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            controller_name: CONTROLLER_NAME.to_owned(),
            accept_any_class: true,
            port_offset: 0,
            assigned_addresses: BTreeMap::new(),
            published_addresses: Vec::new(),
            usable_addresses: None,
            position: Position::Gateway,
            identity: None,
            trust_domain: None,
            kept: None,
            zone: None,
            region: None,
            now: 0,
            telemetry: Telemetry::default(),
        }
    }
}

/// What GatewayClasses name to be served by Selvedge.
pub const CONTROLLER_NAME: &str = "selvedge.dev/gateway";

impl Options {
    fn usable(&self, ip: IpAddr) -> bool {
        !ip.is_multicast() && self.usable_addresses.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(&ip)))
    }

    fn bind_port(&self, port: u16) -> Option<u16> {
        port.checked_add(self.port_offset).filter(|&port| port != 0)
    }
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    pub snapshot: Snapshot,
    pub status: Status,
    /// By resource and field.
    pub diagnostics: Vec<Diagnostic>,
}

/// Compiles from scratch. A program that compiles again and again keeps a [`Compiler`].
pub fn compile(resources: &Resources, options: &Options) -> Compiled {
    Compiler::default().compile(resources, options)
}

/// A compiler that remembers what it need not do again. Its results are those of [`compile`].
#[derive(Default)]
pub struct Compiler {
    tls: secrets::TlsCache,
    access: access::Cache,
    memory: memory::Memory,
}

impl Compiler {
    pub fn compile(&mut self, resources: &Resources, options: &Options) -> Compiled {
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
        self.tls.retain(&cx.index);
        self.memory.prepare(resources, options);
        let federation = mesh::federation(&mut cx, &mut self.tls);
        if let Position::Workloads(locals) = &options.position {
            let snapshot = Snapshot { federation, ..mesh::snapshot(&mut cx, self, locals) };
            return Compiled { snapshot, status: cx.status, diagnostics: cx.report.finish() };
        }
        let gateways = gateways::gateways(&mut cx, &mut self.tls);
        let sets = gateways::listener_sets(&mut cx, &gateways);
        let mut listeners = listeners::listeners(&mut cx, &mut self.tls, &gateways, &sets);
        let sockets = conflicts::resolve(&mut cx, &gateways, &mut listeners);
        let access = access::Accesses::new(&mut cx, &mut self.access);
        let snapshot = assemble::snapshot(&mut cx, self, &access, &gateways, &sets, &mut listeners, &sockets);
        let snapshot = Snapshot { federation, ..snapshot };
        front::write(&mut cx, &gateways, &sets, &listeners);
        Compiled { snapshot, status: cx.status, diagnostics: cx.report.finish() }
    }
}

/// What every step of one compilation shares.
struct Context<'a> {
    index: Index<'a>,
    mesh: mesh::State<'a>,
    options: &'a Options,
    report: Report,
    status: Status,
    /// `controllerName` of every status that is written.
    controller: Arc<str>,
}

impl Context<'_> {
    fn controller(&self) -> Arc<str> {
        Arc::clone(&self.controller)
    }

    fn check_validity(&mut self, key: &ResourceKey, path: &str, certificate: &Certificate) {
        let now = self.options.now;
        if now == 0 {
            return;
        }
        let message = if now > certificate.not_after {
            format!("the certificate of Secret {} is expired: clients will refuse it", certificate.secret)
        } else if now < certificate.not_before {
            format!("the certificate of Secret {} is not valid yet: clients will refuse it", certificate.secret)
        } else {
            return;
        };
        self.report.warning(key, Code::CertificateExpired, path, &message);
    }
}
