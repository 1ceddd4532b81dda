//! Where a proxy stands: at the edge, or beside workloads.

use crate::snapshot::Netns;
use selvedge_model::Workload;
use std::{net::SocketAddr, sync::Arc};

/// Where the proxy stands that is compiled for.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Position {
    /// It serves Gateways.
    #[default]
    Gateway,
    /// It serves connections that leave and reach these workloads, and no Gateways.
    Workloads(Vec<LocalWorkload>),
}

/// A workload that the proxy stands beside.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalWorkload {
    pub namespace: String,
    /// Name of the Workload resource.
    pub workload: String,
    /// What it has registered as: holds while the resource is not there, as when it is unwell and taken out of the mesh,
    /// so that its own connections go on.
    pub own: Option<Arc<Workload>>,
    /// Where its sockets are opened, and where connections on its behalf are made.
    pub netns: Netns,
    pub ports: Ports,
}

/// Where connections of one workload are taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ports {
    /// Connections that are redirected here: outbound to [`OUTBOUND_PORT`], inbound to [`INBOUND_PORT`], on all addresses.
    pub capture: bool,
    /// Where HBONE of others arrives; an unspecified address is all addresses.
    pub hbone: Option<SocketAddr>,
    /// Where the workload can use us as an HTTP proxy.
    pub http_proxy: Option<SocketAddr>,
    /// Each leads to one destination.
    pub fixed: Vec<FixedPort>,
}

/// A listener that leads to one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedPort {
    pub listen: SocketAddr,
    /// As the workload would say it: `orders`, `orders.shop`, `api.example.com`, `10.0.0.1`.
    pub host: String,
    pub port: u16,
}

/// Where captured connections that leave a workload arrive (as in Istio).
pub const OUTBOUND_PORT: u16 = 15001;

/// Where captured connections to a workload arrive (as in Istio).
pub const INBOUND_PORT: u16 = 15006;
