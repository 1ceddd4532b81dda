//! The checks: a task for each, on the control runtime. Each has a connection of its own, which it keeps from one check to
//! the next, as long as the endpoint does: a handshake per check and endpoint would be most of its cost. A TCP check is
//! the connecting, so it makes a new one each time.

use crate::{
    Body, Request, Response,
    cluster::{LiveCluster, Settings},
    codec::{Progress, SendError, h1, h2},
    connect::{Connected, To},
    dial::Dial,
    endpoint::LiveEndpoint,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use http_body::Body as _;
use selvedge_compile::snapshot::{
    Check, Cluster, Connections, Discovery, HealthCheck, LoadBalancing, Netns, Peer, UpstreamProtocol,
};
use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// Bytes of an answer to a gRPC check that are looked at; a real one has seven.
const MAX_ANSWER: usize = 1024;
/// Bytes of an answer to an HTTP check that are read to use its connection again; after more it is closed.
const MAX_PAGE: usize = 64 * 1024;
/// Below this a check would be load.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the check of this index until the endpoint is gone.
pub(crate) async fn run(cluster: Weak<LiveCluster>, endpoint: Weak<LiveEndpoint>, index: usize) {
    // Not all endpoints of all clusters in the same instant, but soon: traffic waits for the first result.
    let mut pause = Duration::from_millis(rand::random_range(0..100));
    let mut kept = Kept::default();
    loop {
        sleep(pause).await;
        let (Some(live), Some(target)) = (cluster.upgrade(), endpoint.upgrade()) else { return };
        let settings = live.settings();
        let Some(config) = settings.config.health_checks.get(index) else { return };
        drop(live);
        let one = One::new(&settings, config, (target.address, &target.others()[..]), target.peer.as_deref());
        let result = one.within_its_time(&mut kept).await;
        let Some(live) = cluster.upgrade() else { return };
        live.counters.health_checks.fetch_add(1, Ordering::Relaxed);
        if let Err(reason) = &result {
            live.counters.health_check_failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(cluster = live.key(), endpoint = %target.address, reason, "health check failed");
        }
        if target.health.record(index, config, result) {
            live.health_changed(&target);
        }
        let interval = config.interval.max(MIN_INTERVAL);
        pause = interval.mul_f64(rand::random_range(0.9..1.1));
    }
}

/// Checks what is in no cluster, such as a workload that is yet to join.
pub struct Checker {
    settings: Settings,
    config: HealthCheck,
    address: SocketAddr,
    kept: Kept,
}

impl Checker {
    /// `name` is for the log. Connections are made in `netns`, with what `dial` lends.
    pub fn new(name: &str, config: HealthCheck, address: SocketAddr, netns: Netns, dial: &Arc<Dial>) -> Self {
        let cluster = Cluster {
            key: name.to_owned(),
            discovery: Discovery::Static(Vec::new()),
            protocol: match config.check {
                Check::Grpc { .. } => UpstreamProtocol::Http2,
                Check::Http { .. } => UpstreamProtocol::Http1,
                Check::Tcp => UpstreamProtocol::Raw,
            },
            tls: None,
            identity: None,
            netns,
            load_balancing: LoadBalancing::default(),
            connections: Connections::default(),
            health_checks: Vec::new(),
            outlier_detection: None,
        };
        Self { settings: Settings::new(Arc::new(cluster), 0, dial), config, address, kept: Kept::default() }
    }

    /// What is checked, how often, and how many results count.
    pub fn config(&self) -> &HealthCheck {
        &self.config
    }

    /// Checks once, within the time that the check has.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn check(&mut self) -> Result<(), String> {
        let one = One::new(&self.settings, &self.config, (self.address, &[]), None);
        one.within_its_time(&mut self.kept).await
    }
}

/// The connection of a check between two of them.
#[derive(Default)]
struct Kept {
    /// Of the settings that it was made by.
    epoch: u64,
    h1: Arc<Slot>,
    h2: Option<(h2::Connection, AbortOnDropHandle<()>)>,
}

/// Where an HTTP/1.1 connection comes back to when its response has been read.
#[derive(Default)]
struct Slot(Mutex<Option<h1::Connection>>);

impl h1::Home for Slot {
    fn give_back(&self, connection: h1::Connection) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }
}

impl Slot {
    fn take(&self) -> Option<h1::Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Kept {
    /// Sends the request on the connection of before. `None`: there is none, or the endpoint closed it meanwhile, which
    /// says nothing about its health.
    async fn send(&mut self, settings: &Settings, request: Request) -> Option<Result<Response, SendError>> {
        if self.epoch != settings.epoch {
            *self = Self { epoch: settings.epoch, ..Self::default() };
        }
        let idle = self.h1.take().and_then(|mut connection| connection.is_reusable().then_some(connection));
        let result = match (idle, &self.h2) {
            (Some(connection), _) => connection.send(request, &settings.h1).await,
            (_, Some((connection, _))) if connection.is_usable() && connection.has_capacity() => {
                connection.send(request).await
            }
            _ => return None,
        };
        Some(result).filter(|result| !matches!(result, Err(failure) if failure.progress < Progress::Answered))
    }

    /// Sends it on a new connection, and keeps that.
    async fn send_first(&mut self, one: &One<'_>, connected: Connected, request: Request) -> Result<Response, String> {
        self.h2 = None;
        let failed = |failure: SendError| failure.error.to_string();
        if !connected.h2 {
            let connection = h1::Connection::new(connected.io, self.h1.clone());
            return connection.send(request, &one.settings.h1).await.map_err(failed);
        }
        let (connection, driver) =
            h2::connect(connected.io, &one.settings.h2).await.map_err(|error| error.to_string())?;
        let (connection, _) = self.h2.insert((connection, AbortOnDropHandle::new(tokio::spawn(driver))));
        connection.send(request).await.map_err(failed)
    }
}

/// One check of one endpoint.
struct One<'s> {
    settings: &'s Settings,
    config: &'s HealthCheck,
    address: SocketAddr,
    others: Vec<SocketAddr>,
    peer: Option<&'s Peer>,
    until: Instant,
}

impl<'s> One<'s> {
    /// `others` are further addresses of the endpoint.
    fn new(
        settings: &'s Settings,
        config: &'s HealthCheck,
        (mut address, others): (SocketAddr, &[SocketAddr]),
        peer: Option<&'s Peer>,
    ) -> Self {
        let mut others = others.to_vec();
        if let Some(port) = config.port {
            address.set_port(port);
            others.iter_mut().for_each(|other| other.set_port(port));
        }
        Self { settings, config, address, others, peer, until: Instant::now() + config.timeout }
    }

    async fn within_its_time(&self, kept: &mut Kept) -> Result<(), String> {
        let result = match timeout_at(self.until, self.check(kept)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", self.config.timeout)),
        };
        if result.is_err() {
            // Whatever was wrong may be wrong with the connection.
            *kept = Kept::default();
        }
        result
    }

    /// The error says what was wrong with the endpoint.
    async fn check(&self, kept: &mut Kept) -> Result<(), String> {
        match &self.config.check {
            Check::Tcp => self.connect().await.map(drop),
            Check::Http { method, path, host, expected, headers } => {
                let host = host.clone().unwrap_or_else(|| self.host());
                let request = || http_request(method, path, &host, headers);
                let response = self.exchange(kept, false, request).await?;
                let status = response.status().as_u16();
                // Read to its end, which brings the connection back. A body that is not done in time fails nobody.
                let _ = timeout_at(self.until, collect(response.into_body(), MAX_PAGE)).await;
                let expected = if expected.is_empty() { &[(200, 299)][..] } else { expected };
                if expected.iter().any(|(low, high)| (*low..=*high).contains(&status)) {
                    Ok(())
                } else {
                    Err(format!("{method} {path} was answered with status {status}"))
                }
            }
            Check::Grpc { service } => self.grpc(kept, service).await,
        }
    }

    fn host(&self) -> String {
        self.settings.config.tls.as_ref().map_or(self.address.to_string(), |tls| tls.sni.clone())
    }

    async fn connect(&self) -> Result<Connected, String> {
        let to = To { address: self.address, others: &self.others, peer: self.peer };
        self.settings.plan.connect(to, None).await.map_err(|error| error.to_string())
    }

    /// `h2`: HTTP/2 even where the cluster is not known to speak it.
    async fn exchange(
        &self,
        kept: &mut Kept,
        h2: bool,
        request: impl Fn() -> Result<Request, String>,
    ) -> Result<Response, String> {
        if let Some(result) = kept.send(self.settings, request()?).await {
            return result.map_err(|failure| failure.error.to_string());
        }
        let mut connected = self.connect().await?;
        connected.h2 |= h2;
        kept.send_first(self, connected, request()?).await
    }

    /// `grpc.health.v1.Health/Check`.
    async fn grpc(&self, kept: &mut Kept, service: &str) -> Result<(), String> {
        let host = self.host();
        let request = || {
            let mut request = http_request("POST", "/grpc.health.v1.Health/Check", &host, &Default::default())?;
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
            *request.body_mut() = Body::full(health_request(service));
            Ok(request)
        };
        let response = self.exchange(kept, true, request).await?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(format!("the gRPC health check was answered with HTTP status {status}"));
        }
        let (head, body) = response.into_parts();
        let (answer, trailers) = collect(body, MAX_ANSWER).await?;
        let grpc_status = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
        match grpc_status.map(HeaderValue::as_bytes) {
            Some(b"0") => {}
            Some(b"5") => return Err(format!("the gRPC health service does not know the service {service:?}")),
            Some(b"12") => return Err("the server has no gRPC health service (UNIMPLEMENTED)".to_owned()),
            Some(code) => return Err(format!("gRPC status {}", String::from_utf8_lossy(code))),
            None => return Err("the answer has no grpc-status".to_owned()),
        }
        match serving_status(&answer) {
            Some(1) => Ok(()),
            Some(2) => Err("NOT_SERVING".to_owned()),
            Some(3) => Err(format!("the service {service:?} is unknown (SERVICE_UNKNOWN)")),
            Some(_) => Err("UNKNOWN".to_owned()),
            None => Err("the answer is not a gRPC health response".to_owned()),
        }
    }
}

fn http_request(
    method: &str,
    path: &str,
    host: &str,
    headers: &std::collections::BTreeMap<String, String>,
) -> Result<Request, String> {
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is not a method"))?;
    let uri: http::Uri = path.parse().map_err(|_| format!("{path:?} is not a path"))?;
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let map = request.headers_mut();
    let host = HeaderValue::from_str(host).map_err(|_| format!("{host:?} is not a host"))?;
    map.insert(header::HOST, host);
    map.insert(header::USER_AGENT, HeaderValue::from_static("selvedge-health"));
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not a header name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| format!("{value:?} is not a header value"))?;
        map.insert(name, value);
    }
    Ok(request)
}

async fn collect(mut body: Body, limit: usize) -> Result<(Bytes, HeaderMap), String> {
    let mut data = BytesMut::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(bytes) if data.len() + bytes.len() > limit => return Err("the answer is too long".to_owned()),
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok((data.freeze(), trailers))
}

/// A length-prefixed `HealthCheckRequest { string service = 1; }`.
fn health_request(service: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(service.len() + 4);
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; zero (UNKNOWN) is not written by encoders.
fn serving_status(answer: &[u8]) -> Option<u8> {
    let (prefix, message) = answer.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    match (prefix[0], message.get(..length)?) {
        (0, []) => Some(0),
        (0, [0x08, status, ..]) => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_protocol_is_encoded_by_hand() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("shop"), b"\x00\x00\x00\x00\x06\x0a\x04shop");
        let long = health_request(&"a".repeat(200));
        assert_eq!(long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        for bad in [&[][..], &[0, 0, 0, 0, 2, 8], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 2, 9, 1]] {
            assert_eq!(serving_status(bad), None, "{bad:?}");
        }
    }
}
