//! The mesh: who is in it, and what a proxy beside workloads serves.
//!
//! `members` knows the Workloads, `places` the Service ports that routes attach to, `gamma` which routes do, `view` each
//! local workload, `destinations` all that it can reach (`plan` with provisional numbers of clusters), `external` what is
//! outside of the mesh, `inbound` what comes to it, `dns` the names that it can look up, `federation` which other trust
//! domains are believed.

pub(crate) mod destinations;
mod dns;
pub(crate) mod external;
mod federation;
pub(crate) mod gamma;
mod inbound;
pub(crate) mod locality;
pub(crate) mod members;
mod outbound;
mod places;
mod plan;
mod protocol;
mod settings;
mod view;
mod virtual_addresses;

pub(crate) use federation::federation;
pub(crate) use outbound::snapshot;
pub(crate) use protocol::Declared;

use crate::{
    Options, Position,
    backends::Caller,
    endpoints::Finder,
    index::Index,
    report::Report,
    snapshot::{Netns, UpstreamTls},
};
use ahash::AHashMap;
use locality::Locality;
use members::Members;
use selvedge_model::{
    Code, Kind, ResourceKey,
    mesh::{DEFAULT_DOMAIN, MeshSpec},
};
use std::sync::{Arc, LazyLock};

/// What compiling needs to know of the mesh, at gateways too.
pub(crate) struct State<'a> {
    pub(crate) members: Members<'a>,
    /// Of the Mesh, or the defaults.
    pub(crate) spec: &'a MeshSpec,
    /// First part of all identities of the mesh.
    pub(crate) trust_domain: &'a str,
    /// Whoever calls backends, at a gateway; beside workloads each of them does.
    pub(crate) caller: Option<Arc<Caller>>,
    /// The proxy stands beside workloads.
    pub(crate) beside: bool,
    home: Locality<'a>,
    /// Of callers beside workloads.
    localities: AHashMap<Arc<Caller>, Locality<'a>>,
    /// By namespace, ExternalService and port; why not, where it cannot be used.
    external_tls: AHashMap<(&'a str, &'a str, u16), Result<Arc<UpstreamTls>, String>>,
}

impl<'a> State<'a> {
    pub(crate) fn new(index: &Index<'a>, report: &mut Report, options: &'a Options) -> Self {
        static DEFAULT: LazyLock<MeshSpec> = LazyLock::new(MeshSpec::default);
        let spec = settings::mesh(index, report).unwrap_or(&DEFAULT);
        let identity = options.identity.clone();
        let named = spec.trust_domain.as_deref().or(options.trust_domain.as_deref());
        let trust_domain = named.unwrap_or(DEFAULT_DOMAIN);
        State {
            members: Members::new(index, report, trust_domain),
            spec,
            trust_domain,
            caller: identity.map(|id| Arc::new(Caller { identity: Some(id), netns: Netns::default() })),
            beside: matches!(options.position, Position::Workloads(_)),
            home: Locality { zone: options.zone.as_deref(), region: options.region.as_deref() },
            localities: AHashMap::new(),
            external_tls: AHashMap::new(),
        }
    }

    /// Finds endpoints as one caller sees them.
    pub(crate) fn finder(&self, caller: Option<&Caller>) -> Finder<'_, 'a> {
        let locality = caller.and_then(|caller| self.localities.get(caller)).copied().unwrap_or(self.home);
        Finder { members: &self.members, locality }
    }
}

/// The key of a Workload, for diagnostics.
fn workload_key(namespace: &str, name: &str) -> ResourceKey {
    ResourceKey::new(Kind::Workload, namespace, name)
}

/// A diagnostic about a local workload.
fn complain(report: &mut Report, namespace: &str, name: &str, code: Code, message: &str) {
    report.error(&workload_key(namespace, name), code, "", message);
}
