//! What the admin API shows of a cluster.

use super::LiveCluster;
use crate::{
    endpoint::{LiveEndpoint, Protocol},
    health::Summary,
    outlier::Standing,
};
use serde::Serialize;
use std::{net::SocketAddr, sync::atomic::Ordering};
use tokio::time::Instant;

#[derive(Debug, Serialize)]
pub struct ClusterStatus {
    pub key: String,
    pub endpoints: Vec<EndpointStatus>,
    /// Requests may go to this many endpoints.
    pub available: usize,
    /// Health is ignored because so few endpoints are healthy.
    pub panic: bool,
    pub limits: Limits,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Resolution>,
}

#[derive(Debug, Serialize)]
pub struct EndpointStatus {
    pub address: SocketAddr,
    pub weight: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub health: Health,
    pub protocol: Protocol,
    pub active_requests: u32,
    pub connections: u32,
    pub idle_connections: usize,
    pub requests: u64,
    pub failures: u64,
    pub ejections: u64,
    /// Milliseconds, with peak EWMA only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewma_ms: Option<f64>,
}

#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Health {
    Healthy,
    /// No check has looked yet.
    Pending,
    Unhealthy {
        reason: String,
    },
    Ejected {
        reason: &'static str,
        seconds_left: f64,
    },
    /// One request decides.
    Probation,
}

#[derive(Debug, Serialize)]
pub struct Limits {
    pub connections: Usage,
    pub pending: Usage,
    pub requests: Usage,
    pub retries: Usage,
    /// Retries that the budget did not allow.
    pub retry_budget_refused: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub used: u32,
    pub max: u32,
    /// Times that the limit refused one more.
    pub refused: u64,
}

/// How DNS stands.
#[derive(Debug, Clone, Serialize)]
pub struct Resolution {
    pub host: String,
    pub addresses: usize,
    /// Why the last attempt failed; addresses are then those of before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip)]
    attempts: u64,
}

impl Resolution {
    pub(super) fn of(host: &str) -> Self {
        Self { host: host.to_owned(), addresses: 0, error: None, attempts: 0 }
    }

    pub(super) fn succeeded(&mut self, addresses: usize) {
        (self.addresses, self.error) = (addresses, None);
        self.attempts += 1;
    }

    pub(super) fn failed(&mut self, reason: String) {
        self.error = Some(reason);
        self.attempts += 1;
    }

    pub(super) fn complaint(&self) -> String {
        match &self.error {
            Some(error) => format!(": {} cannot be resolved: {error}", self.host),
            None if self.attempts == 0 => format!(": {} is not resolved yet", self.host),
            None => String::new(),
        }
    }
}

impl LiveCluster {
    pub fn status(&self) -> ClusterStatus {
        let view = self.view.load();
        let (endpoints, dns) = {
            let members = self.members();
            (members.list(), members.resolution.clone())
        };
        ClusterStatus {
            key: self.key.clone(),
            endpoints: endpoints.iter().map(|endpoint| endpoint.status()).collect(),
            available: view.picker.available(),
            panic: view.picker.is_panicking(),
            limits: self.limits(),
            dns,
        }
    }

    pub fn limits(&self) -> Limits {
        let usage =
            |limit: &crate::breaker::Limit| Usage { used: limit.used(), max: limit.max(), refused: limit.refused() };
        Limits {
            connections: Usage { used: self.gate.open(), max: self.gate.max_open(), refused: 0 },
            pending: Usage { used: self.gate.waiting(), max: self.gate.max_waiting(), refused: self.gate.refused() },
            requests: usage(&self.requests),
            retries: usage(&self.retries),
            retry_budget_refused: self.budget.refused(),
        }
    }

    /// The endpoints of now, by address.
    pub fn endpoints(&self) -> Vec<std::sync::Arc<LiveEndpoint>> {
        self.members().list()
    }
}

impl LiveEndpoint {
    pub fn status(&self) -> EndpointStatus {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        EndpointStatus {
            address: self.address,
            weight: self.weight(),
            zone: self.zone.clone(),
            health: self.health_status(),
            protocol: self.protocol(),
            active_requests: self.active(),
            connections: self.counters.connections.load(Ordering::Relaxed),
            idle_connections: self.shelves.idle(),
            requests: count(&self.counters.requests),
            failures: count(&self.counters.failures),
            ejections: count(&self.counters.ejections),
            ewma_ms: self.ewma.latency().map(|latency| latency.as_secs_f64() * 1000.0),
        }
    }

    fn health_status(&self) -> Health {
        match (self.health.summary(), self.outlier.standing()) {
            (Summary::Unhealthy, _) => Health::Unhealthy { reason: self.health.reason().unwrap_or_default() },
            (_, Standing::Ejected) => {
                let (left, reason) = self.outlier.ejected(Instant::now()).unwrap_or_default();
                Health::Ejected { reason, seconds_left: left.as_secs_f64() }
            }
            (_, Standing::Probation | Standing::Probing) => Health::Probation,
            (Summary::Pending, Standing::Active) => Health::Pending,
            (Summary::Healthy, Standing::Active) => Health::Healthy,
        }
    }
}
