//! What a listener's records need, resolved when a table is installed.

use super::{
    AccessCounts,
    access_log::Log,
    kept::Kept,
    log_output::{Output, Sink},
    metrics::{Layer, ListenerMetrics, Registry, RouteMetrics},
    otlp::Exports,
    trace::Tracer,
};
use crate::worker::{WorkerCount, WorkerId};
use http::{HeaderName, header::USER_AGENT};
use selvedge_compile::snapshot::{
    self, AccessLog, HttpListener, L4Options, ListenerName, LogOutput, RuleName, Tracing,
};
use std::{io, path::Path, sync::Arc, time::Duration};
use tokio::runtime::Handle;

/// The telemetry of the process; one, for as long as it lives.
#[derive(Debug)]
pub struct Telemetry {
    pub registry: Arc<Registry>,
    /// How often AccessPolicies denied and marked.
    pub access: Arc<AccessCounts>,
    outputs: Arc<Outputs>,
}

/// Where lines and spans go.
#[derive(Debug)]
struct Outputs {
    logs: Kept<LogOutput, Output>,
    exports: Exports,
}

impl Telemetry {
    /// Exports run on the runtime that this is called in; without one there are none.
    pub fn new(workers: WorkerCount) -> Arc<Self> {
        Self::on(workers, Handle::try_current().ok(), None)
    }

    /// Exports run on `runtime`: the control runtime, so that they never delay a request. `otlp_ca` is a PEM file of the
    /// CAs that collectors are trusted by, instead of the system's.
    pub fn on(workers: WorkerCount, runtime: Option<Handle>, otlp_ca: Option<&Path>) -> Arc<Self> {
        let registry = Registry::new(workers);
        let outputs = Arc::new(Outputs { logs: Kept::default(), exports: Exports::new(runtime, otlp_ca) });
        let source = outputs.clone();
        registry.collect(move |out| {
            source.logs.live().iter().for_each(|output| output.encode(out));
            source.exports.encode(out);
        });
        let access = Arc::<AccessCounts>::default();
        let counts = access.clone();
        registry.collect(move |out| counts.encode(out));
        Arc::new(Self { registry: Arc::new(registry), access, outputs })
    }

    /// To be called for each HTTP listener of a new table; counters are those of the old table's listener.
    pub fn listener(&self, listener: &HttpListener) -> Arc<ListenerHandle> {
        Arc::new(self.handle(&listener.name, &listener.access_log, listener.tracing.as_ref()))
    }

    /// To be called for each TCP, TLS and UDP listener of a new table.
    pub fn stream_listener(&self, options: &L4Options) -> Arc<ListenerHandle> {
        Arc::new(self.handle(&options.name, &options.access_log, None))
    }

    /// For records of requests that came to no listener: no host fits, or the head could not be read.
    /// Connections hold it; their table should keep it, so that its counters live on.
    pub fn nowhere(&self, outputs: &snapshot::Telemetry) -> Arc<ListenerHandle> {
        let name = ListenerName { kind: "", namespace: String::new(), name: String::new(), section: String::new() };
        Arc::new(self.handle(&name, &outputs.access_log, outputs.tracing.as_ref()))
    }

    /// To be called for each rule of each listener of a new table.
    pub fn route(&self, listener: &ListenerName, rule: &RuleName) -> Arc<RouteMetrics> {
        self.registry.route(listener, Some(rule))
    }

    /// Opens the files of all access logs again (SIGHUP, after rotation). Never blocks.
    pub fn reopen(&self) {
        self.outputs.logs.live().iter().for_each(|output| output.reopen());
    }

    /// Writes and exports what waits, for at most this long: the last thing a process does, while its last table is
    /// still there (an output ends with its last user, and is not waited for after that).
    pub async fn flush(&self, limit: Duration) {
        let outputs = self.outputs.clone();
        let deadline = std::time::Instant::now() + limit;
        let lines = tokio::task::spawn_blocking(move || {
            outputs.logs.live().iter().for_each(|output| output.flush(deadline));
        });
        let _ = tokio::time::timeout(limit, async { tokio::join!(lines, self.outputs.exports.flush()) }).await;
    }

    #[cfg(test)]
    pub(super) fn outputs(&self) -> &Exports {
        &self.outputs.exports
    }

    fn handle(&self, name: &ListenerName, logs: &[Arc<AccessLog>], tracing: Option<&Arc<Tracing>>) -> ListenerHandle {
        let tracer = tracing.map(|config| Tracer {
            config: config.clone(),
            export: config.otlp.as_ref().map(|at| self.outputs.exports.spans(at, &config.service_name)),
        });
        let logs: Vec<Log> = logs.iter().filter_map(|log| self.log(name, log)).collect();
        let mut capture = Capture::default();
        logs.iter().for_each(|log| log.capture(&mut capture));
        // Without tracing the caller's trace passes as it is, and is the one that logs name.
        capture.trace = tracer.is_none() && logs.iter().any(Log::names_trace);
        let exports = tracer.as_ref().is_some_and(|tracer| tracer.export.is_some());
        if exports && !capture.request.contains(&USER_AGENT) {
            capture.request.push(USER_AGENT);
        }
        ListenerHandle {
            label: listener_label(name),
            metrics: self.registry.listener(name),
            unmatched: self.registry.route(name, None),
            capture,
            logs,
            tracer,
        }
    }

    /// The compiler has checked the template, and a file that cannot be opened is the writer's trouble; whatever is
    /// wrong nevertheless costs this log and nothing else.
    fn log(&self, listener: &ListenerName, log: &AccessLog) -> Option<Log> {
        let output = self.output(&log.output).map_err(|e| e.to_string());
        let made = output.and_then(|output| Log::new(log, output).map_err(|e| e.to_string()));
        made.inspect_err(|error| tracing::error!(%listener, error, "no access log: it cannot be set up")).ok()
    }

    pub(super) fn output(&self, output: &LogOutput) -> io::Result<Arc<Output>> {
        self.outputs.logs.get(output, || match output {
            LogOutput::Stdout => Output::lines("stdout".to_owned(), Sink::Stdout),
            LogOutput::File(path) => Output::lines(format!("file:{path}"), Sink::File(path.into())),
            LogOutput::Otlp(endpoint) => {
                let export = self.outputs.exports.logs(endpoint, "selvedge");
                Ok(Output::otlp(format!("otlp:{endpoint}"), export))
            }
        })
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
    pub(super) logs: Vec<Log>,
    pub(super) tracer: Option<Tracer>,
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

    pub(super) fn started(&self, worker: WorkerId, layer: Layer) {
        self.metrics.started(worker, layer);
    }
}

/// The header fields that some output names; only these are kept in a record.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Capture {
    pub request: Vec<HeaderName>,
    pub response: Vec<HeaderName>,
    pub trailers: Vec<HeaderName>,
    /// Whether it is kept which trace the caller has named.
    pub trace: bool,
}

impl Capture {
    pub fn len(&self) -> usize {
        self.request.len() + self.response.len() + self.trailers.len()
    }
}
