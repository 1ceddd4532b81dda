//! The compiled form of all resources that one proxy needs.
//!
//! Everything here is plain data: the proxy links it to live state (sockets, pools, health) when it
//! installs it. `Serialize` exists for golden tests, `/config` and `selvedge diff`; key material is
//! never written by it.

mod access;
mod auth;
mod cluster;
mod filter;
mod listener;
mod mesh;
mod route;
mod telemetry;
mod tls;

pub use access::*;
pub use auth::*;
pub use cluster::*;
pub use filter::*;
pub use listener::*;
pub use mesh::*;
pub use route::*;
pub use telemetry::*;
pub use tls::*;

use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// The compiled configuration of one proxy.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Snapshot {
    /// One entry per socket to bind, sorted by [`Bind`].
    pub listeners: Vec<Arc<Listener>>,
    /// Every upstream that some rule can reach, sorted by key. A [`ClusterId`] is an index into this list.
    pub clusters: Vec<Arc<Cluster>>,
    /// Access log and tracing outputs shared by all listeners that name no other.
    pub telemetry: Telemetry,
    /// Names that workloads look up; empty where none are served.
    pub dns: BTreeMap<Netns, Arc<DnsNames>>,
    /// Roots of other trust domains whose identities are believed, by domain.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub federation: BTreeMap<String, Arc<CaBundle>>,
}

impl Snapshot {
    /// The cluster an id of this same snapshot stands for.
    pub fn cluster(&self, id: ClusterId) -> &Arc<Cluster> {
        &self.clusters[id.0 as usize]
    }
}
