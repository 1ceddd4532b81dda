//! Export of spans and log records: OTLP over gRPC, in batches, on the control runtime. A request only puts its span
//! into a bounded queue.

use super::{
    access_log::{FieldValue, Format, Values},
    counter::Count,
    encode::Encoder,
    families::Family,
    kept::Kept,
};
use crate::codec::channel;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
        trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    },
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use std::{
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{self, Receiver, Sender},
        oneshot,
    },
    time::{Instant, sleep, timeout, timeout_at},
};
use tonic::{Code, Status, transport::Channel};

/// Spans or log records that wait for one collector: the default of OpenTelemetry's SDKs is half of it.
const QUEUE: usize = 4096;
/// Sent together at most; the default of OpenTelemetry's SDKs.
const BATCH: usize = 512;
/// A batch that is not full is sent after this.
const LINGER: Duration = Duration::from_secs(1);
/// Tries of one batch, and how long each may take.
const TRIES: u32 = 4;
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Before the second try; doubled for each further one.
const BACKOFF: Duration = Duration::from_millis(500);

/// All exporters of the process.
#[derive(Debug)]
pub(super) struct Exports {
    /// Where exporters run; `None` drops (and counts) everything.
    runtime: Option<Handle>,
    ca: Option<Arc<Path>>,
    spans: Kept<Key, Batcher<Span>>,
    logs: Kept<Key, Batcher<LogRecord>>,
    span_counts: Arc<Counts>,
    log_counts: Arc<Counts>,
}

/// Endpoint and service name.
type Key = (String, String);
pub(super) type SpanExport = Arc<Batcher<Span>>;
/// Newtype, so that outputs need not know what a batcher is.
#[derive(Debug)]
pub(super) struct LogExport(Arc<Batcher<LogRecord>>);

#[derive(Debug, Default)]
struct Counts {
    exported: Count,
    dropped: Count,
}

impl Exports {
    /// `ca` is a PEM file of the CAs that collectors are trusted by, instead of the system's.
    pub fn new(runtime: Option<Handle>, ca: Option<&Path>) -> Self {
        Self {
            runtime,
            ca: ca.map(Arc::from),
            spans: Kept::default(),
            logs: Kept::default(),
            span_counts: Arc::default(),
            log_counts: Arc::default(),
        }
    }

    pub fn spans(&self, endpoint: &str, service: &str) -> SpanExport {
        let key = (endpoint.to_owned(), service.to_owned());
        self.spans
            .get_or(&key, || Batcher::start(self.runtime.as_ref(), self.task(endpoint, service, &self.span_counts)))
    }

    pub fn logs(&self, endpoint: &str, service: &str) -> LogExport {
        let key = (endpoint.to_owned(), service.to_owned());
        LogExport(
            self.logs
                .get_or(&key, || Batcher::start(self.runtime.as_ref(), self.task(endpoint, service, &self.log_counts))),
        )
    }

    fn task(&self, endpoint: &str, service: &str, counts: &Arc<Counts>) -> Task {
        let (endpoint, service) = (endpoint.to_owned(), service.to_owned());
        Task { endpoint, service, ca: self.ca.clone(), counts: counts.clone() }
    }

    /// Sends what waits, and returns when it is sent or given up.
    pub async fn flush(&self) {
        for batcher in self.spans.live() {
            batcher.flush().await;
        }
        for batcher in self.logs.live() {
            batcher.flush().await;
        }
    }

    pub fn encode(&self, out: &mut Encoder) {
        for (signal, counts) in [("spans", &self.span_counts), ("logs", &self.log_counts)] {
            out.sample(Family::OtlpExported, &[signal], counts.exported.get());
            out.sample(Family::OtlpDropped, &[signal], counts.dropped.get());
        }
    }
}

impl LogExport {
    /// False: the queue is full.
    pub fn send(&self, format: &Format, values: &Values<'_>) -> bool {
        self.0.send(log_record(format, values))
    }
}

fn log_record(format: &Format, values: &Values<'_>) -> LogRecord {
    let mut record = LogRecord {
        time_unix_nano: unix_nanos(values.started()),
        observed_time_unix_nano: unix_nanos(values.ended),
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        ..LogRecord::default()
    };
    if let Some(context) = values.record.trace_context() {
        record.trace_id = context.trace_id.to_be_bytes().to_vec();
        record.span_id = context.span_id.to_be_bytes().to_vec();
        record.flags = context.sampled.into();
    } else if let Some(id) = values.trace_id() {
        record.trace_id = id.to_be_bytes().to_vec();
    }
    format.fields(values, |name, value| {
        let value = match value {
            Some(FieldValue::Text(text)) => any(text),
            Some(FieldValue::Number(n)) => AnyValue { value: Some(Value::IntValue(n)) },
            None => return,
        };
        if name.is_empty() {
            record.body = Some(value);
        } else {
            record.attributes.push(KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() });
        }
    });
    record
}

/// What can be exported.
pub(super) trait Signal: Send + Sized + 'static {
    type Request: Clone + Send;
    const NAME: &'static str;

    fn request(resource: Resource, batch: Vec<Self>) -> Self::Request;

    /// How many of the batch the collector refused.
    fn export(channel: Channel, request: Self::Request) -> impl Future<Output = Result<u64, Status>> + Send;
}

impl Signal for Span {
    type Request = ExportTraceServiceRequest;
    const NAME: &'static str = "spans";

    fn request(resource: Resource, spans: Vec<Self>) -> Self::Request {
        let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..ScopeSpans::default() }];
        let resource_spans = ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
    }

    async fn export(channel: Channel, request: Self::Request) -> Result<u64, Status> {
        let answer = TraceServiceClient::new(channel).export(request).await?.into_inner();
        Ok(answer.partial_success.map_or(0, |partial| partial.rejected_spans.max(0) as u64))
    }
}

impl Signal for LogRecord {
    type Request = ExportLogsServiceRequest;
    const NAME: &'static str = "log records";

    fn request(resource: Resource, log_records: Vec<Self>) -> Self::Request {
        let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records, ..ScopeLogs::default() }];
        let resource_logs = ResourceLogs { resource: Some(resource), scope_logs, ..ResourceLogs::default() };
        ExportLogsServiceRequest { resource_logs: vec![resource_logs] }
    }

    async fn export(channel: Channel, request: Self::Request) -> Result<u64, Status> {
        let answer = LogsServiceClient::new(channel).export(request).await?.into_inner();
        Ok(answer.partial_success.map_or(0, |partial| partial.rejected_log_records.max(0) as u64))
    }
}

enum Item<T> {
    One(T),
    Flush(oneshot::Sender<()>),
}

/// The queue in front of one collector; its task ends when the last user drops it and the queue is empty.
#[derive(Debug)]
pub(super) struct Batcher<T> {
    queue: Sender<Item<T>>,
    counts: Arc<Counts>,
}

impl<T: Signal> Batcher<T> {
    fn start(runtime: Option<&Handle>, task: Task) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let counts = task.counts.clone();
        match runtime {
            Some(runtime) => drop(runtime.spawn(task.run(receiver))),
            None => tracing::warn!(task.endpoint, "nothing is exported by OTLP: there is no runtime for it"),
        }
        Self { queue, counts }
    }

    /// False: the queue is full. Never blocks.
    pub fn send(&self, item: T) -> bool {
        let accepted = self.queue.try_send(Item::One(item)).is_ok();
        if !accepted {
            self.counts.dropped.inc();
        }
        accepted
    }

    async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).await.is_ok() {
            // An error means that the task is gone, and with it whatever there was to wait for.
            let _ = flushed.await;
        }
    }
}

struct Task {
    endpoint: String,
    service: String,
    ca: Option<Arc<Path>>,
    counts: Arc<Counts>,
}

impl Task {
    async fn run<T: Signal>(self, mut queue: Receiver<Item<T>>) {
        let channel = match channel::lazy(&self.endpoint, TRY_TIMEOUT, self.ca.clone()) {
            Ok(channel) => channel,
            Err(reason) => {
                // The queue closes, so that everything is counted as dropped.
                let endpoint = self.endpoint;
                tracing::warn!(endpoint, reason, "nothing is exported: the OTLP endpoint cannot be used");
                return;
            }
        };
        let mut complained = false;
        let mut batch = Vec::new();
        while let Some(flush) = fill(&mut queue, &mut batch).await {
            if !batch.is_empty() {
                self.deliver(&channel, std::mem::take(&mut batch), &mut complained).await;
            }
            if let Some(done) = flush {
                let _ = done.send(());
            }
        }
    }

    async fn deliver<T: Signal>(&self, channel: &Channel, batch: Vec<T>, complained: &mut bool) {
        let size = batch.len() as u64;
        let request = T::request(resource(&self.service), batch);
        let mut backoff = BACKOFF;
        for tried in 1.. {
            let result = match timeout(TRY_TIMEOUT, T::export(channel.clone(), request.clone())).await {
                Ok(result) => result,
                Err(_) => Err(Status::deadline_exceeded("the collector did not answer in time")),
            };
            match result {
                Ok(rejected) => {
                    let rejected = rejected.min(size);
                    self.counts.exported.add(size - rejected);
                    self.counts.dropped.add(rejected);
                    *complained = false;
                    return;
                }
                Err(status) if tried < TRIES && is_transient(status.code()) => {
                    sleep(backoff).await;
                    backoff *= 2;
                }
                Err(status) => {
                    self.counts.dropped.add(size);
                    if !std::mem::replace(complained, true) {
                        let (what, endpoint) = (T::NAME, &self.endpoint);
                        let message = causes(&status);
                        tracing::warn!(endpoint, code = ?status.code(), message, "{what} are lost: the OTLP collector does not take them");
                    }
                    return;
                }
            }
        }
    }
}

/// What a status says and what it came of: that a certificate is wrong is the innermost.
fn causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut next = std::error::Error::source(status);
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = if text.is_empty() { cause_text } else { format!("{text}: {cause_text}") };
        }
        next = cause.source();
    }
    text
}

/// Waits for a batch. `None`: the queue is closed and nothing is left; `Some(Some(..))`: somebody waits for the batch.
async fn fill<T>(queue: &mut Receiver<Item<T>>, batch: &mut Vec<T>) -> Option<Option<oneshot::Sender<()>>> {
    match queue.recv().await? {
        Item::One(item) => batch.push(item),
        Item::Flush(done) => return Some(Some(done)),
    }
    let deadline = Instant::now() + LINGER;
    while batch.len() < BATCH {
        match timeout_at(deadline, queue.recv()).await {
            Ok(Some(Item::One(item))) => batch.push(item),
            Ok(Some(Item::Flush(done))) => return Some(Some(done)),
            Ok(None) | Err(_) => break,
        }
    }
    Some(None)
}

/// The codes that the OTLP specification calls retryable.
fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}

fn resource(service: &str) -> Resource {
    let attributes = vec![
        text("service.name", service),
        text("service.version", env!("CARGO_PKG_VERSION")),
        text("host.name", super::access_log::hostname()),
        text("telemetry.sdk.name", "selvedge"),
        text("telemetry.sdk.language", "rust"),
        text("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
    ];
    Resource { attributes, ..Resource::default() }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "selvedge".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn any(value: impl Into<String>) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(value.into())) }
}

/// A text attribute.
pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any(value)), ..KeyValue::default() }
}

/// A number attribute.
pub(super) fn number(key: &str, value: impl Into<i64>) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::IntValue(value.into())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

pub(super) fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Body,
        telemetry::{
            Flags, ListenerHandle, Record, Telemetry, encode,
            record::tests::{facts, http_listener},
        },
        tls::Accepted,
        worker::WorkerCount,
    };
    use opentelemetry_proto::tonic::collector::{
        logs::v1::{
            ExportLogsServiceResponse,
            logs_service_server::{LogsService, LogsServiceServer},
        },
        trace::v1::{
            ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    };
    use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
    use selvedge_compile::snapshot::{
        AccessLog, Cluster, Connections, Discovery, LoadBalancing, LogFormat, LogOutput, Tracing, UpstreamProtocol,
    };
    use selvedge_testkit::certs::{Ca, Leaf, Spec};
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use tonic::{Request, Response};

    /// A collector that fails so many times first.
    #[derive(Clone)]
    struct Collector {
        failures: Arc<AtomicU32>,
        spans: mpsc::UnboundedSender<ExportTraceServiceRequest>,
        logs: mpsc::UnboundedSender<ExportLogsServiceRequest>,
    }

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            if self.failures.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Err(Status::unavailable("not yet"));
            }
            self.spans.send(request.into_inner()).unwrap();
            Ok(Response::new(ExportTraceServiceResponse::default()))
        }
    }

    #[tonic::async_trait]
    impl LogsService for Collector {
        async fn export(
            &self,
            request: Request<ExportLogsServiceRequest>,
        ) -> Result<Response<ExportLogsServiceResponse>, Status> {
            self.logs.send(request.into_inner()).unwrap();
            Ok(Response::new(ExportLogsServiceResponse::default()))
        }
    }

    struct Started {
        endpoint: String,
        spans: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
        logs: mpsc::UnboundedReceiver<ExportLogsServiceRequest>,
    }

    fn collector(failures: u32) -> Started {
        let (spans_in, spans) = mpsc::unbounded_channel();
        let (logs_in, logs) = mpsc::unbounded_channel();
        let service = Collector { failures: Arc::new(failures.into()), spans: spans_in, logs: logs_in };
        let incoming = tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = format!("http://{}", incoming.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(service.clone()))
            .add_service(LogsServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
        Started { endpoint, spans, logs }
    }

    impl tonic::transport::server::Connected for crate::io::Io {
        type ConnectInfo = ();
        fn connect_info(&self) {}
    }

    /// The same by TLS, and what it was sent.
    async fn secure(leaf: &Leaf) -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
        let (spans, got) = mpsc::unbounded_channel();
        let (logs, _) = mpsc::unbounded_channel();
        let service = Collector { failures: Arc::default(), spans, logs };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let acceptor = Arc::new(crate::tls::tests::server(leaf, &["localhost"]));
        let incoming = futures_util::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let until = Instant::now() + TRY_TIMEOUT;
                if let Ok(Accepted::Terminated { io, .. }) = acceptor.accept(tcp, Default::default(), until).await {
                    return Some((Ok::<_, std::io::Error>(crate::io::Io::from(*io)), (listener, acceptor)));
                }
            }
        });
        let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
        (endpoint, got)
    }

    #[tokio::test]
    async fn a_collector_is_reached_by_tls_if_its_certificate_is_good() {
        let (ca, other) = (Ca::new("collectors"), Ca::new("others"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, ca.pem()).unwrap();
        let (endpoint, mut spans) = secure(&ca.leaf(&["localhost"])).await;
        let telemetry = Telemetry::on(WorkerCount(1), Handle::try_current().ok(), Some(&file));
        let _table = exchange(&telemetry, &endpoint);
        assert_eq!(spans.recv().await.unwrap().resource_spans.len(), 1);

        let cases = [
            (other.leaf(&["localhost"]), "its certificate comes from an issuer that is not trusted"),
            (ca.issue(&Spec::dns(&["localhost"]).expired()), "its certificate has expired"),
            (ca.leaf(&["elsewhere"]), "its certificate is for another name"),
        ];
        for (leaf, why) in cases {
            let (endpoint, mut spans) = secure(&leaf).await;
            let channel = channel::lazy(&endpoint, TRY_TIMEOUT, Some(Arc::from(file.as_path()))).unwrap();
            let status = Span::export(channel, Span::request(Resource::default(), Vec::new())).await.unwrap_err();
            assert!(causes(&status).contains(&format!("TLS to upstream localhost: {why}")), "{}", causes(&status));
            assert!(is_transient(status.code()), "the certificate may be mended: {status}");
            assert!(spans.try_recv().is_err());
        }
        let missing = channel::lazy(&endpoint, TRY_TIMEOUT, Some(Arc::from(folder.path().join("none")))).unwrap();
        let status = Span::export(missing, Span::request(Resource::default(), Vec::new())).await.unwrap_err();
        assert!(causes(&status).contains("cannot be read"), "{}", causes(&status));
        for bad in ["ftp://a", "collector:4317", "https://"] {
            assert!(channel::lazy(bad, TRY_TIMEOUT, None).is_err(), "{bad}");
        }
    }

    fn cluster() -> Arc<Cluster> {
        Arc::new(Cluster {
            key: "shop/cart:80".to_owned(),
            discovery: Discovery::Static(Vec::new()),
            protocol: UpstreamProtocol::Http1,
            tls: None,
            identity: None,
            netns: Default::default(),
            load_balancing: LoadBalancing::default(),
            connections: Connections::default(),
            health_checks: Vec::new(),
            outlier_detection: None,
        })
    }

    fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
        span.attributes.iter().find(|a| a.key == key)?.value.as_ref()?.value.as_ref()
    }

    /// One traced request with two tries; returns the table's handle, and what went upstream with the second.
    fn exchange(telemetry: &Telemetry, endpoint: &str) -> (Arc<ListenerHandle>, http::HeaderMap) {
        let mut listener = http_listener();
        let service_name = "edge".to_owned();
        let otlp = Some(endpoint.to_owned());
        listener.tracing = Some(Arc::new(Tracing {
            otlp,
            per_million: 0,
            b3: true,
            follow_caller: true,
            attributes: Default::default(),
            service_name,
        }));
        listener.access_log = vec![Arc::new(AccessLog {
            output: LogOutput::Otlp(endpoint.to_owned()),
            format: LogFormat::Json,
            per_million: 1_000_000,
            condition: Default::default(),
        })];
        let handle = telemetry.listener(&listener);
        let mut request = http::Request::get("http://shop.example/cart?x=1")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .header("user-agent", "test/1")
            .body(())
            .unwrap();
        let mut record = Record::start(facts(telemetry), &request);
        record.listener(&handle, request.headers());
        record.begin_trace(request.headers_mut());
        let (one, two) = ("10.1.0.1:80".parse().unwrap(), "10.1.0.2:80".parse().unwrap());
        record.upstream(&cluster(), one);
        record.try_ended(one, 0, Flags::UPSTREAM_CONNECT_FAILURE);
        record.upstream(&cluster(), two);
        record.inject_trace(request.headers_mut());
        record.first_byte();
        drop(record.respond(http::Response::new(Body::full("hello"))));
        (handle, request.headers().clone())
    }

    #[tokio::test]
    async fn spans_and_logs_reach_a_collector_that_fails_at_first() {
        let mut collector = collector(1);
        let telemetry = Telemetry::new(WorkerCount(1));
        let (_table, upstream) = exchange(&telemetry, &collector.endpoint);
        telemetry.flush(Duration::from_secs(30)).await;
        let request = collector.spans.recv().await.unwrap();
        let resource = request.resource_spans[0].resource.as_ref().unwrap();
        assert!(resource.attributes.contains(&text("service.name", "edge")));
        let spans = &request.resource_spans[0].scope_spans[0].spans;
        let [first, second, server] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!(server.kind, SpanKind::Server as i32);
        assert_eq!(server.trace_id, 0x0af7651916cd43dd8448eb211c80319c_u128.to_be_bytes());
        assert_eq!(server.parent_span_id, 0xb7ad6b7169203331_u64.to_be_bytes());
        assert_eq!(attribute(server, "http.response.status_code"), Some(&Value::IntValue(200)));
        assert_eq!(attribute(server, "url.path"), Some(&Value::StringValue("/cart".into())));
        assert_eq!(attribute(server, "user_agent.original"), Some(&Value::StringValue("test/1".into())));
        assert!(server.end_time_unix_nano >= server.start_time_unix_nano);
        assert_eq!((first.kind, second.kind), (SpanKind::Client as i32, SpanKind::Client as i32));
        assert_eq!(attribute(first, "error.type"), Some(&Value::StringValue("UF".into())));
        assert_eq!(attribute(second, "http.request.resend_count"), Some(&Value::IntValue(1)));
        assert_eq!(second.parent_span_id, server.span_id);
        let parent = u64::from_be_bytes(second.span_id.clone().try_into().unwrap());
        let expected = format!("00-0af7651916cd43dd8448eb211c80319c-{parent:016x}-01");
        assert_eq!(upstream["traceparent"], expected);
        assert_eq!(upstream["x-b3-spanid"], format!("{parent:016x}"));
        let log = collector.logs.recv().await.unwrap();
        let record = &log.resource_logs[0].scope_logs[0].log_records[0];
        assert_eq!(record.span_id, server.span_id);
        assert!(record.attributes.contains(&number("status", 200)));
        let metrics = telemetry.registry.encode(encode::Format::Prometheus);
        assert!(metrics.contains("selvedge_otlp_exported_total{signal=\"spans\"} 3"), "{metrics}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_stays_away_costs_spans_and_nothing_else() {
        let port = selvedge_testkit::selvedge::free_port().port();
        let telemetry = Telemetry::new(WorkerCount(1));
        let _table = exchange(&telemetry, &format!("http://127.0.0.1:{port}"));
        telemetry.outputs().flush().await;
        let metrics = telemetry.registry.encode(encode::Format::Prometheus);
        assert!(metrics.contains("selvedge_otlp_dropped_total{signal=\"spans\"} 3"), "{metrics}");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let counts = Arc::<Counts>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // A runtime that is not driven.
        let exports = Exports { span_counts: counts.clone(), ..Exports::new(None, None) };
        let batcher = Batcher::start(Some(runtime.handle()), exports.task("http://127.0.0.1:1", "x", &counts));
        for _ in 0..QUEUE {
            assert!(batcher.send(Span::default()));
        }
        assert!(!batcher.send(Span::default()));
        assert_eq!(counts.dropped.get(), 1);
    }
}
