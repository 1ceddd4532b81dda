//! What is counted, by whom, and how a scrape reads it. Handles are resolved when a table is installed, so that a
//! request never looks one up; they live as long as the table (and its requests), and their series end with them.

use super::{
    Flags,
    counter::{Count, DURATION_BOUNDS, DURATION_LABELS, Histogram, Sharded},
    encode::{Encoder, Format},
    families::Family,
    handle::listener_label,
    kept::{Kept, lock},
    limits, process,
    workload::WorkloadMetrics,
};
use crate::worker::{WorkerCount, WorkerId};
use selvedge_compile::snapshot::{Bind, ListenerName, RuleName};
use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where all metrics of the process are found.
pub struct Registry {
    workers: WorkerCount,
    sockets: Kept<Bind, SocketMetrics>,
    listeners: Kept<ListenerName, ListenerMetrics>,
    routes: Kept<RouteKey, RouteMetrics>,
    workloads: Kept<ListenerName, WorkloadMetrics>,
    collectors: Mutex<Vec<Collector>>,
    pub process: ProcessMetrics,
}

type Collector = Box<dyn Fn(&mut Encoder) + Send + Sync>;
/// `None` stands for requests that no rule matched.
type RouteKey = (ListenerName, Option<RuleName>);

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registry")
    }
}

impl Registry {
    pub fn new(workers: WorkerCount) -> Self {
        Self {
            workers,
            sockets: Kept::default(),
            listeners: Kept::default(),
            routes: Kept::default(),
            workloads: Kept::default(),
            collectors: Mutex::default(),
            process: ProcessMetrics::default(),
        }
    }

    /// Counters of a socket: connections and handshakes. The same for the same [`Bind`] across reloads.
    pub fn socket(&self, bind: &Bind) -> Arc<SocketMetrics> {
        self.sockets.get_or(bind, || SocketMetrics { bind: bind.to_string(), shards: Sharded::new(self.workers) })
    }

    pub fn listener(&self, name: &ListenerName) -> Arc<ListenerMetrics> {
        self.listeners
            .get_or(name, || ListenerMetrics { name: listener_label(name), shards: Sharded::new(self.workers) })
    }

    /// Counters of a rule (`None`: of what matched no rule) as seen through one listener.
    pub fn route(&self, listener: &ListenerName, rule: Option<&RuleName>) -> Arc<RouteMetrics> {
        self.routes.get_or(&(listener.clone(), rule.cloned()), || RouteMetrics {
            listener: listener_label(listener),
            rule: rule.cloned(),
            name: rule.map(RuleName::to_string).unwrap_or_default(),
            shards: Sharded::new(self.workers),
        })
    }

    /// Counters of an outbound or inbound listener of a workload.
    pub fn workload(&self, name: &ListenerName) -> Arc<WorkloadMetrics> {
        self.workloads.get_or(name, || WorkloadMetrics::new(listener_label(name), self.workers))
    }

    /// Adds a source of samples that are kept elsewhere; called at each scrape, so it must not block.
    pub fn collect(&self, collector: impl Fn(&mut Encoder) + Send + Sync + 'static) {
        lock(&self.collectors).push(Box::new(collector));
    }

    /// All metrics as text.
    pub fn encode(&self, format: Format) -> String {
        let mut out = Encoder::default();
        self.sockets.live().iter().for_each(|s| s.encode(&mut out));
        self.listeners.live().iter().for_each(|l| l.encode(&mut out));
        self.routes.live().iter().for_each(|r| r.encode(&mut out));
        self.workloads.live().iter().for_each(|w| w.encode(&mut out));
        lock(&self.collectors).iter().for_each(|collect| collect(&mut out));
        self.process.encode(&mut out);
        process::encode(&mut out);
        out.finish(format)
    }
}

/// Why a connection was closed before it carried a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    ListenerLimit,
    ProcessLimit,
    Overload,
    ProxyProtocol,
    HandshakeTimeout,
    NoListener,
    Draining,
}

const REJECTED: [&str; 7] =
    ["listener_limit", "process_limit", "overload", "proxy_protocol", "handshake_timeout", "no_listener", "draining"];

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    Full,
    Resumed,
    /// The client closed the connection.
    Closed,
    Timeout,
    /// No certificate for the name that was asked for.
    NoCertificate,
    /// The client's certificate is missing or not valid.
    ClientCertificate,
    /// Anything else that TLS forbids or the sides do not share.
    Protocol,
}

const HANDSHAKE: [&str; 7] =
    ["full", "resumed", "closed", "timeout", "no_certificate", "client_certificate", "protocol"];
/// Index 0: none was agreed.
const TLS_VERSIONS: [&str; 3] = ["none", "1.2", "1.3"];

#[derive(Debug, Default)]
struct SocketShard {
    opened: Count,
    active: Count,
    rejected: [Count; REJECTED.len()],
    handshakes: [[Count; HANDSHAKE.len()]; TLS_VERSIONS.len()],
}

/// Counters of one socket.
#[derive(Debug)]
pub struct SocketMetrics {
    bind: String,
    shards: Sharded<SocketShard>,
}

impl SocketMetrics {
    /// Counts a connection as opened, and as active until the guard is dropped.
    pub fn opened(self: &Arc<Self>, worker: WorkerId) -> OpenConnection {
        let shard = self.shards.shard(worker);
        shard.opened.inc();
        shard.active.inc();
        OpenConnection { socket: self.clone(), worker }
    }

    pub fn rejected(&self, worker: WorkerId, reason: Rejected) {
        self.shards.shard(worker).rejected[reason as usize].inc();
    }

    /// `version` is `1.2`, `1.3`, or anything else when none was agreed.
    pub fn handshake(&self, worker: WorkerId, version: &str, outcome: Handshake) {
        let version = TLS_VERSIONS.iter().position(|v| *v == version).unwrap_or(0);
        self.shards.shard(worker).handshakes[version][outcome as usize].inc();
    }

    /// Connections open now.
    pub fn active(&self) -> u64 {
        self.shards.sum(|s| &s.active)
    }

    /// Connections accepted since the socket was opened.
    pub fn total(&self) -> u64 {
        self.shards.sum(|s| &s.opened)
    }

    fn encode(&self, out: &mut Encoder) {
        let bind = self.bind.as_str();
        out.sample(Family::ConnectionsOpened, &[bind], self.total());
        out.sample(Family::ConnectionsActive, &[bind], self.active());
        for (i, reason) in REJECTED.iter().enumerate() {
            out.nonzero(Family::ConnectionsRejected, &[bind, reason], self.shards.sum(|s| &s.rejected[i]));
        }
        for (v, version) in TLS_VERSIONS.iter().enumerate() {
            for (o, outcome) in HANDSHAKE.iter().enumerate() {
                let count = self.shards.sum(|s| &s.handshakes[v][o]);
                out.nonzero(Family::TlsHandshakes, &[bind, version, outcome], count);
            }
        }
    }
}

/// An open connection in the gauges; dropping it closes it there.
#[derive(Debug)]
pub struct OpenConnection {
    socket: Arc<SocketMetrics>,
    worker: WorkerId,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.socket.shards.shard(self.worker).active.dec();
    }
}

#[derive(Debug, Default)]
struct ListenerShard {
    http_active: Count,
    stream_active: Count,
    flags: [Count; Flags::ALL.len()],
}

/// Counters of one listener of a Gateway.
#[derive(Debug)]
pub struct ListenerMetrics {
    name: String,
    shards: Sharded<ListenerShard>,
}

impl ListenerMetrics {
    pub(super) fn started(&self, worker: WorkerId, layer: Layer) {
        self.active_gauge(worker, layer).inc();
    }

    pub(super) fn ended(&self, worker: WorkerId, layer: Layer, flags: Flags) {
        self.active_gauge(worker, layer).dec();
        let mut bits = flags.bits();
        while bits != 0 {
            self.shards.shard(worker).flags[bits.trailing_zeros() as usize].inc();
            bits &= bits - 1;
        }
    }

    fn active_gauge(&self, worker: WorkerId, layer: Layer) -> &Count {
        let shard = self.shards.shard(worker);
        match layer {
            Layer::Http => &shard.http_active,
            Layer::Stream => &shard.stream_active,
        }
    }

    /// Requests in progress.
    pub fn active(&self) -> u64 {
        self.shards.sum(|s| &s.http_active)
    }

    fn encode(&self, out: &mut Encoder) {
        let name = self.name.as_str();
        out.sample(Family::RequestsActive, &[name], self.active());
        out.nonzero(Family::StreamActive, &[name], self.shards.sum(|s| &s.stream_active));
        for (i, (_, letters, ..)) in Flags::ALL.iter().enumerate() {
            out.nonzero(Family::RequestFlags, &[name, letters], self.shards.sum(|s| &s.flags[i]));
        }
    }
}

/// What a record accounts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// One HTTP request.
    Http,
    /// One TCP or TLS connection or UDP session.
    Stream,
}

/// Statuses with a series of their own; the others are counted by class.
const EXACT: [u16; 33] = [
    101, 200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 408, 409, 410, 412, 413, 415,
    421, 422, 426, 429, 431, 500, 501, 502, 503, 504,
];
const CLASSES: [&str; 6] = ["0", "1xx", "2xx", "3xx", "4xx", "5xx"];
const CODES: usize = EXACT.len() + CLASSES.len();

/// Status to index: exact ones first, then by class.
const CODE_INDEX: [u8; 600] = {
    let mut table = [0u8; 600];
    let mut status = 0;
    while status < 600 {
        table[status] = (EXACT.len() + status / 100) as u8;
        status += 1;
    }
    let mut i = 0;
    while i < EXACT.len() {
        table[EXACT[i] as usize] = i as u8;
        i += 1;
    }
    table
};

fn code_index(status: u16) -> usize {
    CODE_INDEX.get(status as usize).map_or(EXACT.len(), |i| *i as usize)
}

fn code_label(index: usize) -> String {
    match EXACT.get(index) {
        Some(status) => status.to_string(),
        None => CLASSES[index - EXACT.len()].to_owned(),
    }
}

const PROTOCOLS: [&str; 3] = ["http/1", "http/2", "http/3"];
/// gRPC status 0 to 16, and one for everything else.
const GRPC: usize = 18;

#[derive(Debug)]
struct RouteShard {
    codes: [[Count; CODES]; PROTOCOLS.len()],
    duration: Histogram,
    received: Count,
    sent: Count,
    retries: Count,
    grpc: [Count; GRPC],
}

impl Default for RouteShard {
    fn default() -> Self {
        Self {
            codes: std::array::from_fn(|_| std::array::from_fn(|_| Count::default())),
            duration: Histogram::default(),
            received: Count::default(),
            sent: Count::default(),
            retries: Count::default(),
            grpc: Default::default(),
        }
    }
}

/// Counters of one rule through one listener.
#[derive(Debug)]
pub struct RouteMetrics {
    listener: String,
    rule: Option<RuleName>,
    name: String,
    shards: Sharded<RouteShard>,
}

/// What a finished record adds to its route.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub layer: Layer,
    /// 0: no answer was given.
    pub status: u16,
    pub version: http::Version,
    pub duration: Duration,
    pub received: u64,
    pub sent: u64,
    pub retries: u32,
    pub grpc: Option<u8>,
}

impl RouteMetrics {
    /// `None`: what matched no rule.
    pub fn rule(&self) -> Option<&RuleName> {
        self.rule.as_ref()
    }

    /// `namespace/route#rule`; empty when there is no rule.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn ended(&self, worker: WorkerId, outcome: &Outcome) {
        let shard = self.shards.shard(worker);
        shard.duration.observe(outcome.duration);
        if outcome.layer == Layer::Http {
            let protocol = match outcome.version {
                http::Version::HTTP_2 => 1,
                http::Version::HTTP_3 => 2,
                _ => 0,
            };
            shard.codes[protocol][code_index(outcome.status)].inc();
        }
        for (count, n) in [(&shard.received, outcome.received), (&shard.sent, outcome.sent)] {
            if n > 0 {
                count.add(n);
            }
        }
        if outcome.retries > 0 {
            shard.retries.add(outcome.retries.into());
        }
        if let Some(status) = outcome.grpc {
            shard.grpc[usize::from(status).min(GRPC - 1)].inc();
        }
    }

    fn encode(&self, out: &mut Encoder) {
        let labels = [self.listener.as_str(), self.name.as_str()];
        let [listener, route] = labels;
        let mut counts = [0; DURATION_BOUNDS.len() + 1];
        let sum: f64 = self.shards.shards().map(|s| s.duration.add_to(&mut counts)).sum();
        let ended: u64 = counts.iter().sum();
        if ended == 0 {
            return;
        }
        let mut http = 0;
        for (p, protocol) in PROTOCOLS.iter().enumerate() {
            for code in 0..CODES {
                let n = self.shards.sum(|s| &s.codes[p][code]);
                http += n;
                if n > 0 {
                    out.sample(Family::Requests, &[listener, route, &code_label(code), protocol], n);
                }
            }
        }
        let (duration, received, sent) = if http > 0 {
            (Family::RequestDuration, Family::RequestBytes, Family::ResponseBytes)
        } else {
            out.sample(Family::StreamConnections, &labels, ended);
            (Family::StreamDuration, Family::StreamReceived, Family::StreamSent)
        };
        out.histogram(duration, &labels, &DURATION_LABELS, &counts, sum);
        out.sample(received, &labels, self.shards.sum(|s| &s.received));
        out.sample(sent, &labels, self.shards.sum(|s| &s.sent));
        out.nonzero(Family::RequestRetries, &labels, self.shards.sum(|s| &s.retries));
        for status in 0..GRPC {
            let label = if status == GRPC - 1 { "other".to_owned() } else { status.to_string() };
            out.nonzero(Family::GrpcResponses, &[listener, route, &label], self.shards.sum(|s| &s.grpc[status]));
        }
    }
}

/// Counters and gauges of the whole process.
#[derive(Debug, Default)]
pub struct ProcessMetrics {
    reload_success: Count,
    reload_failure: Count,
    revision: Count,
    last_good: Count,
    last_success: Count,
    draining: Count,
}

impl ProcessMetrics {
    /// A configuration was installed.
    pub fn installed(&self, revision: u64) {
        self.revision.set(revision);
        self.reload_success.inc();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(now.as_secs());
    }

    /// A configuration could not be used; what served before still serves.
    pub fn reload_failed(&self) {
        self.reload_failure.inc();
    }

    /// Whether an older configuration serves because the newest is unusable.
    pub fn set_last_good(&self, last_good: bool) {
        self.last_good.set(last_good.into());
    }

    pub fn last_good(&self) -> bool {
        self.last_good.get() == 1
    }

    pub fn revision(&self) -> u64 {
        self.revision.get()
    }

    pub fn set_draining(&self, draining: bool) {
        self.draining.set(draining.into());
    }

    fn encode(&self, out: &mut Encoder) {
        limits::encode(out);
        out.sample(Family::ConfigReloads, &["success"], self.reload_success.get());
        out.sample(Family::ConfigReloads, &["failure"], self.reload_failure.get());
        out.sample(Family::ConfigRevision, &[], self.revision.get());
        out.sample(Family::ConfigLastGood, &[], self.last_good.get());
        out.sample(Family::ConfigLastSuccess, &[], self.last_success.get());
        out.sample(Family::Draining, &[], self.draining.get());
        out.sample(Family::BuildInfo, &[env!("CARGO_PKG_VERSION")], 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use selvedge_compile::snapshot::Transport;

    fn listener() -> ListenerName {
        ListenerName { kind: "Gateway", namespace: "ns".into(), name: "gw".into(), section: "web".into() }
    }

    fn outcome(status: u16) -> Outcome {
        Outcome {
            layer: Layer::Http,
            status,
            version: http::Version::HTTP_2,
            duration: Duration::from_millis(3),
            received: 5,
            sent: 7,
            retries: 1,
            grpc: Some(14),
        }
    }

    #[test]
    fn statuses_are_exact_or_by_class() {
        let labels = [0, 99, 200, 218, 404, 418, 504, 599, 600, u16::MAX].map(|s| code_label(code_index(s)));
        assert_eq!(labels, ["0", "0", "200", "2xx", "404", "4xx", "504", "5xx", "0", "0"]);
    }

    #[test]
    fn a_route_keeps_its_counters_while_it_is_used_and_its_series_end_with_it() {
        let registry = Registry::new(WorkerCount(2));
        let name = listener();
        let first = registry.route(&name, None);
        first.ended(WorkerId(0), &outcome(200));
        let second = registry.route(&name, None);
        drop(first);
        second.ended(WorkerId(1), &outcome(200));
        let text = registry.encode(Format::Prometheus);
        let want = r#"selvedge_http_requests_total{listener="ns/gw/web",route="",code="200",protocol="http/2"} 2"#;
        assert!(text.contains(want), "{text}");
        assert!(text.contains(r#"selvedge_grpc_responses_total{listener="ns/gw/web",route="",grpc_status="14"} 2"#));
        assert!(
            text.contains(
                r#"selvedge_http_request_duration_seconds_bucket{listener="ns/gw/web",route="",le="0.005"} 2"#
            )
        );
        drop(second);
        assert!(!registry.encode(Format::Prometheus).contains("selvedge_http_requests_total{"));
    }

    #[test]
    fn sockets_count_connections_and_handshakes() {
        let registry = Registry::new(WorkerCount(1));
        let bind = Bind { address: None, port: 80, transport: Transport::Tcp, netns: Default::default() };
        let socket = registry.socket(&bind);
        let open = socket.opened(WorkerId(0));
        socket.handshake(WorkerId(0), "1.3", Handshake::Full);
        socket.rejected(WorkerId(0), Rejected::Overload);
        assert_eq!(socket.active(), 1);
        drop(open);
        assert_eq!((socket.active(), socket.total()), (0, 1));
        let text = registry.encode(Format::OpenMetrics);
        assert!(text.contains(r#"tls_handshakes_total{bind="tcp://*:80",version="1.3",outcome="full"} 1"#), "{text}");
        assert!(text.contains(r#"rejected_total{bind="tcp://*:80",reason="overload"} 1"#));
    }
}
