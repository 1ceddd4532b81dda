//! The one account of one request or connection. Whatever happens to it, its [`Record`] is dropped exactly once, and
//! dropping it is what counts, logs and traces it.

use super::{
    Flags, Layer, ListenerHandle, RouteMetrics, access_log::Values, handle::Capture, metrics::Outcome, recorded,
    trace::Trace,
};
use crate::{
    Body, Error, Response,
    error::{Kind, Side},
    worker::WorkerId,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, uri::PathAndQuery};
use selvedge_compile::snapshot::{Cluster, Discovery};
use selvedge_wire::{spiffe::SpiffeId, trace};
use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// What a record knows of the connection it came by; made once per connection.
#[derive(Debug, Clone)]
pub struct ConnectionFacts {
    pub worker: WorkerId,
    /// The address that the client connected to (the PROXY header's, where there is one).
    pub local: SocketAddr,
    /// Who holds the other end of the socket.
    pub peer: SocketAddr,
    /// The client as the PROXY header names it; without one the same as `peer`.
    pub client: SocketAddr,
    pub tls: Option<TlsFacts>,
    /// Who called, as its certificate says: on inbound connections of workloads the peer, on outbound ones the workload.
    pub source: Option<SpiffeId>,
    /// Who was called: the workload of an inbound connection. Of outbound ones it is known only with the endpoint.
    pub destination: Option<SpiffeId>,
    /// Where records go whose request came to no listener: the one that SNI picked, else [`super::Telemetry::nowhere`].
    pub listener: Arc<ListenerHandle>,
}

/// What was agreed in a TLS handshake (or, with passthrough, what the ClientHello said).
#[derive(Debug, Clone, Default)]
pub struct TlsFacts {
    /// `1.2` or `1.3`; empty when we did not terminate.
    pub version: &'static str,
    /// IANA name of the cipher suite; empty when we did not terminate.
    pub cipher: &'static str,
    pub sni: Option<Box<str>>,
    /// Subject of the client's verified certificate, RFC 4514.
    pub peer_subject: Option<Box<str>>,
    /// First URI SAN of the client's verified certificate (SPIFFE ID).
    pub peer_identity: Option<Box<str>>,
    /// What backends of a gateway are told of the client's verified certificate.
    pub forwarded_client_cert: Option<HeaderValue>,
    /// Of a member of the mesh: what access is decided by. A certificate of any other authority proves none.
    pub identity: Option<SpiffeId>,
}

/// A request's id: ours are formatted only when they are sent or logged.
#[derive(Clone, PartialEq, Eq)]
pub enum RequestId {
    /// A random (version 4) UUID.
    Made(u128),
    /// The client's, from a trusted peer.
    Given(HeaderValue),
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(value) => f.write_str(&String::from_utf8_lossy(value.as_bytes())),
            Self::Made(n) => {
                let (a, b, c, d, e) =
                    (n >> 96, n >> 80 & 0xffff, n >> 64 & 0xffff, n >> 48 & 0xffff, n & 0xffff_ffff_ffff);
                write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
            }
        }
    }
}

/// Byte counts that go on while a record is elsewhere: request bodies and tunnels.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    sent: AtomicU64,
    /// Microseconds from the start to the end of the request body; 0: not yet.
    pub(super) request_end: AtomicU32,
}

impl Progress {
    /// Bytes from the client.
    pub fn received(&self, n: u64) {
        self.received.fetch_add(n, Relaxed);
    }

    /// Bytes to the client.
    pub fn sent(&self, n: u64) {
        self.sent.fetch_add(n, Relaxed);
    }

    /// Bytes from and to the client so far.
    pub fn totals(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}

/// Microseconds since the start, at most 71 minutes; 0 is "did not happen".
pub(super) type Offset = u32;

/// The account of one request (or one L4 connection).
///
/// ```text
/// let mut record = Record::start(facts, &request);      // then, as they become known:
/// record.listener(&handle, request.headers());
/// record.matched(&route_metrics);
/// record.upstream(&cluster, address);
/// return record.respond(response);                      // ends with the body
/// ```
///
/// Dropped without an answer (the client went away) it carries [`Flags::DOWNSTREAM_CLOSED`] and status 0.
pub struct Record {
    pub(super) layer: Layer,
    withdrawn: bool,
    pub(super) version: Version,
    pub(super) flags: Flags,
    /// 0: no answer was given.
    pub(super) status: u16,
    pub(super) grpc_status: Option<u8>,
    pub(super) attempts: u16,
    pub(super) retries: u8,
    pub(super) hedges: u8,
    pub(super) connected: Offset,
    pub(super) first_byte: Offset,
    pub(super) head_sent: Offset,
    pub(super) request_header_bytes: u32,
    pub(super) start: Instant,
    pub(super) facts: Arc<ConnectionFacts>,
    pub(super) listener: Option<Arc<ListenerHandle>>,
    pub(super) route: Option<Arc<RouteMetrics>>,
    pub(super) cluster: Option<Arc<Cluster>>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) client: IpAddr,
    pub(super) method: Method,
    pub(super) authority: Option<HeaderValue>,
    pub(super) path: Option<PathAndQuery>,
    pub(super) request_id: Option<RequestId>,
    pub(super) details: Cow<'static, str>,
    /// Values of the listener's [`Capture`]: request, response, trailers.
    pub(super) captured: Box<[Option<HeaderValue>]>,
    /// The trace that the caller has named, if the listener's [`Capture`] asks for it: two halves, so that the record is
    /// not aligned to 16 bytes; zero for none, which is no trace's number.
    told: [u64; 2],
    /// Of a request body that was whole.
    received: u64,
    pub(super) sent: u64,
    pub(super) progress: Option<Arc<Progress>>,
    pub(super) rare: Option<Box<Rare>>,
}

/// What few records have.
#[derive(Debug, Default)]
pub(super) struct Rare {
    pub rewritten: Option<PathAndQuery>,
    pub trace: Option<Trace>,
}

impl Record {
    /// Begins the account of an HTTP request. `authority` is taken from the target, else from `Host`.
    pub fn start<B>(facts: Arc<ConnectionFacts>, request: &http::Request<B>) -> Self {
        let mut record = Self::empty(facts, Layer::Http);
        record.version = request.version();
        record.method = request.method().clone();
        record.path = request.uri().path_and_query().cloned();
        record.authority = match request.headers().get(http::header::HOST) {
            Some(host) => Some(host.clone()),
            None => request.uri().authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok()),
        };
        record
    }

    /// The whole account of a request that was refused before it became one (bad framing, limits, timeouts), or (without a
    /// status) whose client left before it had become one.
    pub fn rejected(facts: Arc<ConnectionFacts>, status: Option<StatusCode>, error: &Error) {
        let mut record = Self::empty(facts, Layer::Http);
        record.failed(error);
        record.status = status.map_or(0, |status| status.as_u16());
    }

    /// Begins the account of a TCP or TLS connection or UDP session.
    pub fn stream(facts: Arc<ConnectionFacts>) -> Self {
        Self::empty(facts, Layer::Stream)
    }

    fn empty(facts: Arc<ConnectionFacts>, layer: Layer) -> Self {
        Self {
            layer,
            withdrawn: false,
            version: Version::HTTP_11,
            flags: Flags::NONE,
            status: 0,
            grpc_status: None,
            attempts: 0,
            retries: 0,
            hedges: 0,
            connected: 0,
            first_byte: 0,
            head_sent: 0,
            request_header_bytes: 0,
            start: Instant::now(),
            client: facts.client.ip(),
            facts,
            listener: None,
            route: None,
            cluster: None,
            upstream: None,
            method: Method::default(),
            authority: None,
            path: None,
            request_id: None,
            details: Cow::Borrowed(""),
            captured: Box::default(),
            told: [0; 2],
            received: 0,
            sent: 0,
            progress: None,
            rare: None,
        }
    }

    /// The trace that the caller has named, where it is kept.
    pub(super) fn told_trace(&self) -> Option<u128> {
        let [high, low] = self.told.map(u128::from);
        Some(high << 64 | low).filter(|id| *id != 0)
    }

    /// The listener is known: its gauge counts this record, and what its outputs name is kept from the headers, which
    /// should be as the client sent them. Only the first call counts.
    pub fn listener(&mut self, handle: &Arc<ListenerHandle>, headers: &HeaderMap) {
        if self.listener.is_some() {
            return;
        }
        handle.started(self.facts.worker, self.layer);
        if !handle.logs.is_empty() {
            self.request_header_bytes(headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum());
        }
        let capture = &handle.capture;
        if capture.len() > 0 {
            self.captured = vec![None; capture.len()].into_boxed_slice();
            for (slot, name) in self.captured.iter_mut().zip(&capture.request) {
                *slot = headers.get(name).cloned();
            }
        }
        if capture.trace
            && let Some(id) = trace::trace_id(headers)
        {
            self.told = [(id >> 64) as u64, id as u64];
        }
        self.listener = Some(handle.clone());
    }

    /// The rule that the request met.
    pub fn matched(&mut self, route: &Arc<RouteMetrics>) {
        self.route = Some(route.clone());
    }

    /// The client's address after trusted hops have been taken into account.
    pub fn facts(&self) -> &ConnectionFacts {
        &self.facts
    }

    pub fn client(&mut self, ip: IpAddr) {
        self.client = ip;
    }

    pub fn request_id(&mut self, id: RequestId) {
        self.request_id = Some(id);
    }

    /// Bytes of the names and values of the request's header fields.
    fn request_header_bytes(&mut self, bytes: usize) {
        self.request_header_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// The path as it is sent upstream, when a filter changed it.
    pub fn rewritten(&mut self, path: PathAndQuery) {
        self.rare().rewritten = Some(path);
    }

    /// A try begins at this endpoint. Tries after the first count as retries, unless [`Record::hedged`] says otherwise.
    pub fn upstream(&mut self, cluster: &Arc<Cluster>, address: SocketAddr) {
        if self.attempts > 0 {
            self.retries = self.retries.saturating_add(1);
        }
        self.attempts = self.attempts.saturating_add(1);
        let at = self.offset();
        if let Some(trace) = self.rare.as_mut().and_then(|rare| rare.trace.as_mut()) {
            trace.tried(cluster, address, at);
        }
        self.answered_by(cluster, address);
    }

    /// The cluster is chosen, but no endpoint (none is healthy, or a limit is reached).
    pub fn cluster(&mut self, cluster: &Arc<Cluster>) {
        self.cluster = Some(cluster.clone());
    }

    /// Of several concurrent tries this one's answer is used.
    pub fn answered_by(&mut self, cluster: &Arc<Cluster>, address: SocketAddr) {
        self.cluster = Some(cluster.clone());
        self.upstream = Some(address);
    }

    /// The last try was started beside another one that still runs.
    pub fn hedged(&mut self) {
        self.retries = self.retries.saturating_sub(1);
        self.hedges = self.hedges.saturating_add(1);
    }

    /// Tries so far.
    pub fn attempts(&self) -> u16 {
        self.attempts
    }

    /// A connection to the upstream is there (fresh or reused).
    pub fn connected(&mut self) {
        self.connected = self.offset();
    }

    /// The head of the upstream's final response is there.
    pub fn first_byte(&mut self) {
        self.first_byte = self.offset();
    }

    pub fn flag(&mut self, flags: Flags) {
        self.flags |= flags;
    }

    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// Why the answer is what it is, for `%RESPONSE_CODE_DETAILS%`; the last one stays.
    pub fn details(&mut self, details: impl Into<Cow<'static, str>>) {
        self.details = details.into();
    }

    /// Takes flags and details from an error.
    pub fn failed(&mut self, error: &Error) {
        self.flag(Flags::of(error));
        self.details = error.message.clone();
    }

    /// The request's body, counted as it is read. For tunnels take [`Record::progress`].
    pub fn count_request(&mut self, body: Body) -> Body {
        if body.is_whole() {
            self.received += body.whole_len();
            return body;
        }
        Body::stream(recorded::RequestBody::new(body, self.progress().clone(), self.start))
    }

    /// Counters for bytes that pass elsewhere; what is added until the record ends is in it.
    pub fn progress(&mut self) -> &Arc<Progress> {
        self.progress.get_or_insert_default()
    }

    /// Takes status and headers of the final response into account and lets the record end with its body (or tunnel):
    /// at once when the body is already whole, as then there is nothing left to wait for.
    pub fn respond(mut self, response: Response) -> Response {
        self.answered(response.status(), response.headers());
        response.map(|body| recorded::observe(self, body))
    }

    /// The head of the response; [`Record::respond`] calls it.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = status.as_u16();
        self.head_sent = self.offset();
        self.grpc_trailers(headers);
        let Some(handle) = &self.listener else { return };
        let Capture { request, response, .. } = &handle.capture;
        for (slot, name) in self.captured.iter_mut().skip(request.len()).zip(response) {
            *slot = headers.get(name).cloned();
        }
    }

    /// Trailers (or trailers-only headers) passed.
    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        self.grpc_trailers(trailers);
        let Some(handle) = &self.listener else { return };
        let Capture { request, response, trailers: names, .. } = &handle.capture;
        for (slot, name) in self.captured.iter_mut().skip(request.len() + response.len()).zip(names) {
            *slot = trailers.get(name).cloned();
        }
    }

    fn grpc_trailers(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get("grpc-status") {
            let status = value.to_str().ok().and_then(|v| v.parse::<u8>().ok());
            self.grpc_status = Some(status.unwrap_or(u8::MAX));
        }
    }

    /// The connection is accounted for by other records (its bytes were HTTP after all): this one says nothing.
    pub(crate) fn withdraw(mut self) {
        self.withdrawn = true;
    }

    /// Who was called.
    pub(super) fn destination(&self) -> Option<&SpiffeId> {
        if let Some(destination) = &self.facts.destination {
            return Some(destination);
        }
        let (cluster, upstream) = (self.cluster.as_ref()?, self.upstream?);
        // Without a certificate of our own nobody proves an identity to us.
        cluster.identity.as_ref()?;
        let Discovery::Static(endpoints) = &cluster.discovery else { return None };
        let at = endpoints.binary_search_by_key(&upstream, |endpoint| endpoint.address).ok()?;
        endpoints[at].peer.as_ref().map(|peer| &peer.identity)
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn offset(&self) -> Offset {
        offset_since(self.start)
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.received + self.progress.as_ref().map_or(0, |p| p.received.load(Relaxed))
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent + self.progress.as_ref().map_or(0, |p| p.sent.load(Relaxed))
    }
}

pub(super) fn offset_since(start: Instant) -> Offset {
    u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX).max(1)
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.withdrawn {
            if let Some(listener) = &self.listener {
                listener.metrics.ended(self.facts.worker, self.layer, Flags::NONE);
            }
            return;
        }
        if self.layer == Layer::Http && self.status == 0 {
            self.flags |= Flags::DOWNSTREAM_CLOSED;
        }
        let duration = self.start.elapsed();
        let listener = match self.listener.take() {
            Some(listener) => listener,
            None => {
                self.facts.listener.started(self.facts.worker, self.layer);
                self.facts.listener.clone()
            }
        };
        listener.metrics.ended(self.facts.worker, self.layer, self.flags);
        self.route.as_ref().unwrap_or(&listener.unmatched).ended(
            self.facts.worker,
            &Outcome {
                layer: self.layer,
                status: self.status,
                version: self.version,
                duration,
                received: self.received_bytes(),
                sent: self.sent_bytes(),
                retries: u32::from(self.retries) + u32::from(self.hedges),
                grpc: self.grpc_status,
            },
        );
        self.write(&listener, duration);
    }
}

impl Record {
    /// Logs and spans.
    fn write(&self, listener: &ListenerHandle, duration: Duration) {
        let trace = self.trace().filter(|trace| trace.context.sampled);
        let export = trace.zip(listener.tracer.as_ref().filter(|tracer| tracer.export.is_some()));
        if listener.logs.is_empty() && export.is_none() {
            return;
        }
        let values = Values {
            record: self,
            capture: &listener.capture,
            listener: &listener.label,
            route: self.route.as_ref().map_or("", |route| route.name()),
            duration,
            ended: SystemTime::now(),
        };
        for log in &listener.logs {
            log.write(&values);
        }
        if let Some((trace, tracer)) = export {
            trace.export(&values, tracer);
        }
    }
}

impl Flags {
    /// The flags that tell an error's kind and side.
    pub fn of(error: &Error) -> Flags {
        match (error.kind, error.side) {
            (Kind::Protocol { .. }, Side::Upstream) => Flags::UPSTREAM_PROTOCOL,
            (Kind::Protocol { .. }, _) => Flags::DOWNSTREAM_PROTOCOL,
            (Kind::Connect | Kind::Tls, Side::Upstream) => Flags::UPSTREAM_CONNECT_FAILURE,
            (Kind::ConnectTimeout, _) => Flags::UPSTREAM_CONNECT_FAILURE,
            (Kind::Tls, Side::Us) => Flags::OWN_TLS,
            (Kind::Connect | Kind::Tls, _) => Flags::DOWNSTREAM_PROTOCOL,
            (Kind::Reset, Side::Upstream) => Flags::UPSTREAM_CLOSED,
            (Kind::Refused, Side::Upstream) => Flags::UPSTREAM_RESET,
            (Kind::Reset | Kind::Refused | Kind::Cancelled, Side::Downstream) => Flags::DOWNSTREAM_CLOSED,
            (Kind::Reset | Kind::Refused | Kind::Cancelled, _) => Flags::LOCAL_RESET,
            (Kind::Timeout, Side::Upstream) => Flags::UPSTREAM_TIMEOUT,
            (Kind::Timeout, Side::Downstream) => Flags::STREAM_IDLE,
            (Kind::Timeout, Side::Us) => Flags::DURATION_TIMEOUT,
            (Kind::TooLarge { .. }, _) => Flags::TOO_LARGE,
            (Kind::Overflow, _) => Flags::UPSTREAM_OVERFLOW,
            (Kind::NoEndpoint, _) => Flags::NO_HEALTHY_UPSTREAM,
            (Kind::Shed, _) => Flags::OVERLOAD,
            (Kind::Denied | Kind::Unproven(_), _) => Flags::UNAUTHORIZED,
            (Kind::Internal, _) => Flags::NONE,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        telemetry::{Telemetry, encode::Format},
        worker::WorkerCount,
    };
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::BodyExt;
    use selvedge_compile::snapshot::{HttpListener, ListenerName};

    pub(crate) fn facts(telemetry: &Telemetry) -> Arc<ConnectionFacts> {
        Arc::new(ConnectionFacts {
            worker: WorkerId(0),
            local: "10.0.0.1:443".parse().unwrap(),
            peer: "192.0.2.7:1000".parse().unwrap(),
            client: "198.51.100.9:2000".parse().unwrap(),
            tls: Some(TlsFacts { version: "1.3", sni: Some("shop.example".into()), ..TlsFacts::default() }),
            source: None,
            destination: None,
            listener: telemetry.nowhere(&Default::default()),
        })
    }

    pub(crate) fn http_listener() -> HttpListener {
        HttpListener {
            name: ListenerName { kind: "Gateway", namespace: "ns".into(), name: "gw".into(), section: "web".into() },
            hostname: None,
            access: None,
            router: Default::default(),
            options: Default::default(),
            access_log: Vec::new(),
            tracing: None,
        }
    }

    /// Counters live as long as the table that uses them.
    struct Installed {
        telemetry: Arc<Telemetry>,
        _table: Arc<ListenerHandle>,
    }

    impl std::ops::Deref for Installed {
        type Target = Telemetry;
        fn deref(&self) -> &Telemetry {
            &self.telemetry
        }
    }

    fn fixture() -> (Installed, Record) {
        let telemetry = Telemetry::new(WorkerCount(1));
        let request = http::Request::get("http://shop.example/cart?x=1").body(()).unwrap();
        let mut record = Record::start(facts(&telemetry), &request);
        let handle = telemetry.listener(&http_listener());
        record.listener(&handle, request.headers());
        (Installed { telemetry, _table: handle }, record)
    }

    /// Requests by code, and letters of flags, as a scrape shows them.
    fn counted(telemetry: &Telemetry) -> Vec<String> {
        let text = telemetry.registry.encode(Format::Prometheus);
        let wanted = ["selvedge_http_requests_total", "selvedge_http_request_flags_total"];
        text.lines()
            .filter(|l| wanted.iter().any(|w| l.starts_with(w)))
            .map(|l| {
                let label = |name: &str| {
                    l.split_once(&format!("{name}=\"")).and_then(|(_, r)| r.split_once('"')).map(|(v, _)| v.to_owned())
                };
                let value = l.rsplit_once(' ').unwrap().1;
                format!("{}={value}", label("code").or_else(|| label("flag")).unwrap())
            })
            .collect()
    }

    fn stream(frames: Vec<Result<Frame<Bytes>, Error>>) -> Body {
        struct Stream(std::collections::VecDeque<Result<Frame<Bytes>, Error>>);
        impl http_body::Body for Stream {
            type Data = Bytes;
            type Error = Error;
            fn poll_frame(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<Frame<Bytes>, Error>>> {
                std::task::Poll::Ready(self.0.pop_front())
            }
        }
        Body::stream(Stream(frames.into()))
    }

    #[test]
    fn a_record_stays_small() {
        assert!(size_of::<Record>() <= 400, "{}", size_of::<Record>());
    }

    #[test]
    fn a_whole_body_ends_the_record_at_once() {
        let (telemetry, record) = fixture();
        let response = record.respond(http::Response::new(Body::full("hello")));
        assert_eq!(counted(&telemetry), ["200=1"]);
        drop(response);
        assert_eq!(counted(&telemetry), ["200=1"]);
    }

    #[test]
    fn an_unanswered_record_says_that_the_client_left() {
        let (telemetry, record) = fixture();
        drop(record);
        assert_eq!(counted(&telemetry), ["0=1", "DC=1"]);
    }

    #[tokio::test]
    async fn a_streamed_body_ends_the_record_with_its_last_frame() {
        let (telemetry, record) = fixture();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "5".parse().unwrap());
        let body = stream(vec![Ok(Frame::data("abc".into())), Ok(Frame::trailers(trailers))]);
        let response = record.respond(http::Response::new(body));
        assert!(counted(&telemetry).is_empty());
        response.into_body().collect().await.unwrap();
        assert_eq!(counted(&telemetry), ["200=1"]);
        let text = telemetry.registry.encode(Format::Prometheus);
        assert!(text.contains(r#"grpc_status="5"} 1"#), "{text}");
        assert!(text.contains(r#"selvedge_http_response_bytes_total{listener="ns/gw/web",route=""} 3"#));
        assert!(text.contains(r#"selvedge_http_requests_active{listener="ns/gw/web"} 0"#), "{text}");
    }

    #[tokio::test]
    async fn a_body_dropped_early_says_that_the_client_left() {
        let (telemetry, record) = fixture();
        let body = stream(vec![Ok(Frame::data("abc".into())), Ok(Frame::data("def".into()))]);
        let mut response = record.respond(http::Response::new(body));
        response.body_mut().frame().await.unwrap().unwrap();
        drop(response);
        assert_eq!(counted(&telemetry), ["200=1", "DC=1"]);
    }

    #[tokio::test]
    async fn a_body_that_breaks_says_why() {
        let (telemetry, record) = fixture();
        let body = stream(vec![Err(Error::upstream(Kind::Reset, "closed in the middle of the body"))]);
        let mut response = record.respond(http::Response::new(body));
        assert!(response.body_mut().frame().await.unwrap().is_err());
        assert_eq!(counted(&telemetry), ["200=1", "UC=1"]);
        drop(response);
        assert_eq!(counted(&telemetry), ["200=1", "UC=1"]);
    }

    #[tokio::test]
    async fn a_tunnel_keeps_its_record_until_it_ends() {
        let (telemetry, mut record) = fixture();
        let progress = record.progress().clone();
        let body = Body::tunnel(move |_io| async move {
            progress.received(10);
            progress.sent(20);
        });
        let mut response = record.respond(http::Response::builder().status(101).body(body).unwrap());
        assert!(counted(&telemetry).is_empty());
        let tunnel = response.body_mut().take_tunnel().unwrap();
        tunnel(crate::io::Io::other(tokio::io::duplex(1).0)).await;
        assert_eq!(counted(&telemetry), ["101=1"]);
        let text = telemetry.registry.encode(Format::Prometheus);
        assert!(text.contains(r#"selvedge_http_response_bytes_total{listener="ns/gw/web",route=""} 20"#), "{text}");
    }

    #[tokio::test]
    async fn request_bodies_are_counted_as_they_are_read() {
        let (telemetry, mut record) = fixture();
        let body = record.count_request(stream(vec![Ok(Frame::data("12345".into()))]));
        body.collect().await.unwrap();
        drop(record.respond(http::Response::new(Body::empty())));
        let text = telemetry.registry.encode(Format::Prometheus);
        assert!(text.contains(r#"selvedge_http_request_bytes_total{listener="ns/gw/web",route=""} 5"#), "{text}");
    }

    #[test]
    fn refused_requests_are_counted_where_the_connection_says() {
        let telemetry = Telemetry::new(WorkerCount(1));
        let facts = facts(&telemetry);
        Record::rejected(facts, Some(StatusCode::BAD_REQUEST), &Error::bad_request(400, "two Content-Length fields"));
        assert_eq!(counted(&telemetry).len(), 0, "its listener handle is gone with the connection");
        let facts = tests::facts(&telemetry);
        Record::rejected(facts.clone(), Some(StatusCode::BAD_REQUEST), &Error::bad_request(400, "bad"));
        assert_eq!(counted(&telemetry), ["400=1", "DPE=1"]);
    }

    #[test]
    fn our_own_trouble_with_tls_is_neither_sides() {
        let own = Error::new(Kind::Tls, Side::Us, "the certificate has expired");
        assert_eq!(Flags::of(&own), Flags::OWN_TLS);
        assert_eq!(crate::reply::status(&own), StatusCode::SERVICE_UNAVAILABLE);
        let theirs = Error::upstream(Kind::Tls, "unknown issuer");
        assert_eq!(Flags::of(&theirs), Flags::UPSTREAM_CONNECT_FAILURE);
    }

    #[test]
    fn request_ids_look_like_uuids() {
        let id = RequestId::Made(0x0123_4567_89ab_4def_8123_4567_89ab_cdef);
        assert_eq!(id.to_string(), "01234567-89ab-4def-8123-456789abcdef");
    }
}
