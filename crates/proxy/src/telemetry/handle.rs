//! What a listener's records need, resolved when a table is installed.

use super::metrics::{Layer, ListenerMetrics, Registry, RouteMetrics};
use crate::worker::WorkerCount;
use http::HeaderName;
use selvedge_compile::snapshot::{self, HttpListener, L4Options, ListenerName, RuleName};
use std::sync::Arc;

/// The telemetry of the process; one, for as long as it lives.
#[derive(Debug)]
pub struct Telemetry {
    pub registry: Arc<Registry>,
}

impl Telemetry {
    pub fn new(workers: WorkerCount) -> Arc<Self> {
        Arc::new(Self { registry: Arc::new(Registry::new(workers)) })
    }

    /// To be called for each HTTP listener of a new table; counters are those of the old table's listener.
    pub fn listener(&self, listener: &HttpListener) -> Arc<ListenerHandle> {
        Arc::new(self.handle(&listener.name))
    }

    /// To be called for each TCP, TLS and UDP listener of a new table.
    pub fn stream_listener(&self, options: &L4Options) -> Arc<ListenerHandle> {
        Arc::new(self.handle(&options.name))
    }

    /// For records of requests that came to no listener: no host fits, or the head could not be read.
    /// Connections hold it; their table should keep it, so that its counters live on.
    pub fn nowhere(&self, outputs: &snapshot::Telemetry) -> Arc<ListenerHandle> {
        let _ = outputs;
        let name = ListenerName { kind: "", namespace: String::new(), name: String::new(), section: String::new() };
        Arc::new(self.handle(&name))
    }

    /// To be called for each rule of each listener of a new table.
    pub fn route(&self, listener: &ListenerName, rule: &RuleName) -> Arc<RouteMetrics> {
        self.registry.route(listener, Some(rule))
    }

    fn handle(&self, name: &ListenerName) -> ListenerHandle {
        ListenerHandle {
            label: listener_label(name),
            metrics: self.registry.listener(name),
            unmatched: self.registry.route(name, None),
            capture: Capture::default(),
        }
    }
}

/// `namespace/name/section`; empty for [`Telemetry::nowhere`].
pub(super) fn listener_label(name: &ListenerName) -> String {
    if name.section.is_empty() { String::new() } else { name.to_string() }
}

/// Where the records of one listener go.
#[derive(Debug)]
pub struct ListenerHandle {
    /// `namespace/name/section`.
    pub label: String,
    pub(super) metrics: Arc<ListenerMetrics>,
    pub(super) unmatched: Arc<RouteMetrics>,
    pub(super) capture: Capture,
}

impl ListenerHandle {
    /// Requests in progress.
    pub fn active(&self) -> u64 {
        self.metrics.active()
    }

    /// Counters of what this listener's router did not match.
    pub fn unmatched(&self) -> &Arc<RouteMetrics> {
        &self.unmatched
    }

    pub(super) fn started(&self, worker: crate::worker::WorkerId, layer: Layer) {
        self.metrics.started(worker, layer);
    }
}

/// The header fields that some output names; only these are kept in a record.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Capture {
    pub request: Vec<HeaderName>,
    pub response: Vec<HeaderName>,
    pub trailers: Vec<HeaderName>,
}

impl Capture {
    pub fn len(&self) -> usize {
        self.request.len() + self.response.len() + self.trailers.len()
    }
}
