//! UDP listeners: one session per client address, each with a socket of its own towards its endpoint.

mod local;

use crate::{
    access,
    cluster::{LiveCluster, Picked},
    drain::Drain,
    endpoint::LiveEndpoint,
    l4::{self, Active},
    outlier::Outcome,
    telemetry::{AccessCounts, ConnectionFacts, Flags, Limit, ListenerHandle, Progress, Record, RouteMetrics},
    tunnel::{DRAIN_QUIET, Scratch},
    worker::WorkerId,
};
use ahash::AHashMap;
use http::HeaderMap;
use local::{LocalSocket, Received};
use selvedge_compile::snapshot::{L4Options, L4Route};
use socket2::SockRef;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    sync::Notify,
    time::{Instant, sleep_until},
};

/// The largest datagram: UDP has no larger ones.
const MAX_DATAGRAM: usize = 64 * 1024;

/// What a new session is made from: the table of the moment. Sessions outlive it.
pub struct Current {
    pub route: Option<Arc<L4Route>>,
    pub options: Arc<L4Options>,
    pub clusters: Arc<[Arc<LiveCluster>]>,
    pub handle: Arc<ListenerHandle>,
    /// Of the route.
    pub metrics: Option<Arc<RouteMetrics>>,
    /// How often policies denied.
    pub counts: Arc<AccessCounts>,
    /// Sessions at once; datagrams of more clients are dropped.
    pub max_sessions: usize,
}

/// Serves a listening socket until draining begins.
///
/// From then on nothing is read from it: a new process may share the socket and shall get all of it. Sessions go on
/// to pass answers on until they are silent; each holds a clone of `drain`.
pub async fn serve(socket: UdpSocket, worker: WorkerId, current: impl Fn() -> Current, mut drain: Drain) {
    let socket = match LocalSocket::new(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => {
            tracing::error!(%error, "a UDP listener cannot be served");
            return;
        }
    };
    let server = Server { sessions: Arc::default(), socket, worker, current, drain: drain.clone() };
    let mut buf = vec![0; MAX_DATAGRAM];
    loop {
        let received = tokio::select! {
            biased;
            () = drain.draining() => return,
            received = server.socket.receive(&mut buf) => received,
        };
        match received {
            Ok(received) => server.datagram(&received, &buf[..received.length]),
            // Errors of single datagrams, such as an ICMP answer to a reply of ours.
            Err(error) => tracing::debug!(%error, "receiving from a UDP listener"),
        }
    }
}

/// Who talks to which of our addresses.
type Key = (SocketAddr, Option<IpAddr>);
type Sessions = Mutex<AHashMap<Key, Arc<Session>>>;

struct Server<F> {
    sessions: Arc<Sessions>,
    socket: Arc<LocalSocket>,
    worker: WorkerId,
    current: F,
    drain: Drain,
}

/// One client and its endpoint.
struct Session {
    key: Key,
    endpoint: SocketAddr,
    upstream: UdpSocket,
    started: Instant,
    /// Milliseconds after `started` at which a byte moved last.
    last: AtomicU64,
    progress: Arc<Progress>,
    /// The endpoint's host says that nobody receives there.
    gone: Notify,
}

fn lock(sessions: &Sessions) -> MutexGuard<'_, AHashMap<Key, Arc<Session>>> {
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Fn() -> Current> Server<F> {
    fn datagram(&self, received: &Received, bytes: &[u8]) {
        let key = (received.from, received.to);
        let known = lock(&self.sessions).get(&key).cloned();
        let Some(session) = known.or_else(|| self.begin(key, &[])) else { return };
        if session.forward(bytes) {
            return;
        }
        // This is how the answer "port unreachable" to an earlier datagram shows: nothing was sent now.
        session.gone.notify_one();
        lock(&self.sessions).remove(&key);
        if let Some(session) = self.begin(key, &[session.endpoint]) {
            session.forward(bytes);
        }
    }

    /// A session for a new client; `None` when there is none to be had, and the datagram is dropped.
    fn begin(&self, key: Key, tried: &[SocketAddr]) -> Option<Arc<Session>> {
        let current = (self.current)();
        if lock(&self.sessions).len() >= current.max_sessions {
            Limit::UdpSessions.hit();
            tracing::debug!(listener = %current.options.name, client = %key.0, "datagram dropped: too many sessions");
            return None;
        }
        let mut record = self.record(&current, key);
        let access = current.options.access.as_ref();
        let judged = access.map_or(Ok(()), |access| access::connection(access, record.facts(), false, &current.counts));
        if let Err(error) = judged {
            record.failed(&error);
            return None;
        }
        let (cluster, endpoint) = match self.choose(&current, key, tried) {
            Ok(chosen) => chosen,
            Err(refusal) => {
                refusal.note(&mut record);
                return None;
            }
        };
        record.upstream(endpoint.config(), endpoint.address);
        let upstream = match endpoint.settings.plan.udp(endpoint.address).and_then(UdpSocket::from_std) {
            Ok(upstream) => upstream,
            Err(error) => {
                record.flag(Flags::UPSTREAM_CONNECT_FAILURE);
                record.details(format!("no socket towards {}: {error}", endpoint.address));
                return None;
            }
        };
        record.connected();
        let progress = record.progress().clone();
        let session = Arc::new(Session {
            key,
            endpoint: endpoint.address,
            upstream,
            started: Instant::now(),
            last: AtomicU64::new(0),
            progress,
            gone: Notify::new(),
        });
        lock(&self.sessions).insert(key, session.clone());
        let run = Run {
            session: session.clone(),
            sessions: self.sessions.clone(),
            socket: self.socket.clone(),
            idle: current.options.idle_timeout,
            drain: self.drain.clone(),
            record,
        };
        tokio::spawn(run.run(cluster, endpoint.endpoint));
        Some(session)
    }

    fn choose(
        &self,
        current: &Current,
        key: Key,
        tried: &[SocketAddr],
    ) -> Result<(Arc<LiveCluster>, Picked), l4::Refusal> {
        let cluster = l4::cluster(current.route.as_deref(), &current.clusters)?;
        let endpoint = l4::pick(cluster, key.0.ip(), tried)?;
        Ok((cluster.clone(), endpoint))
    }

    fn record(&self, current: &Current, (client, to): Key) -> Record {
        let mut local = self.socket.address().unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        if let Some(to) = to {
            local.set_ip(to);
        }
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        let listener = current.handle.clone();
        let facts = ConnectionFacts {
            worker: self.worker,
            local,
            peer: client,
            client,
            tls: None,
            source: None,
            destination: None,
            listener,
        };
        let mut record = Record::stream(Arc::new(facts));
        record.listener(&current.handle, &HeaderMap::new());
        if let Some(metrics) = &current.metrics {
            record.matched(metrics);
        }
        record
    }
}

impl Session {
    /// Sends on what the client sent. What does not fit the socket's buffer is lost, as it would be on the wire.
    /// `false`: nobody receives there.
    fn forward(&self, bytes: &[u8]) -> bool {
        self.touch();
        // Straight to the system: the runtime does not know yet that a new socket can be written to.
        match SockRef::from(&self.upstream).send(bytes) {
            Ok(_) => self.progress.received(bytes.len() as u64),
            Err(error) => return error.kind() != io::ErrorKind::ConnectionRefused,
        }
        true
    }

    fn touch(&self) {
        self.last.store(self.started.elapsed().as_millis() as u64, Relaxed);
    }

    fn silent_until(&self, idle: Duration) -> Instant {
        self.started + Duration::from_millis(self.last.load(Relaxed)) + idle
    }
}

/// A session's task: answers, and its end.
struct Run {
    session: Arc<Session>,
    sessions: Arc<Sessions>,
    socket: Arc<LocalSocket>,
    idle: Duration,
    drain: Drain,
    record: Record,
}

impl Run {
    async fn run(mut self, cluster: Arc<LiveCluster>, endpoint: Arc<LiveEndpoint>) {
        let _active = Active::begin(&endpoint);
        let result = self.answers().await;
        let mut sessions = lock(&self.sessions);
        if sessions.get(&self.session.key).is_some_and(|there| Arc::ptr_eq(there, &self.session)) {
            sessions.remove(&self.session.key);
        }
        drop(sessions);
        match result {
            Ok(()) => cluster.report(&endpoint, Outcome::Ok, self.record.elapsed()),
            // Nobody listens there: the client's next datagram goes to another endpoint.
            Err(error) => {
                cluster.report(&endpoint, Outcome::ConnectFailure, self.record.elapsed());
                self.record.flag(Flags::UPSTREAM_CONNECT_FAILURE);
                self.record.details(format!("{} does not receive: {error}", endpoint.address));
            }
        }
    }

    /// Passes answers on until nothing moves in either direction for the idle timeout.
    async fn answers(&mut self) -> io::Result<()> {
        let (client, source) = self.session.key;
        let mut draining = false;
        loop {
            let upstream = &self.session.upstream;
            tokio::select! {
                ready = upstream.ready(Interest::READABLE | Interest::ERROR) => if ready?.is_error() {
                    if let Some(error) = upstream.take_error()? {
                        return Err(error);
                    }
                    // Somebody else has taken the error; wait for the next.
                    let _ = upstream.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                },
                () = self.session.gone.notified() => return Err(io::ErrorKind::ConnectionRefused.into()),
                () = sleep_until(self.session.silent_until(self.idle)) => {
                    if Instant::now() >= self.session.silent_until(self.idle) {
                        return Ok(());
                    }
                    continue;
                }
                () = self.drain.draining(), if !draining => {
                    draining = true;
                    self.idle = self.idle.min(DRAIN_QUIET);
                    continue;
                }
            }
            // Held only while there is something to read, so that silent sessions cost no buffer.
            let mut scratch = Scratch::take();
            let buf = &mut scratch.0;
            loop {
                match self.session.upstream.try_recv(buf) {
                    Ok(length) => {
                        self.session.touch();
                        if self.socket.send(&buf[..length], client, source).await.is_ok() {
                            self.session.progress.sent(length as u64);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l4::tests::{Bench, config, options, route};
    use selvedge_testkit::tcp::Server;
    use std::collections::BTreeMap;
    use tokio::time::timeout;

    async fn bind(address: &str) -> UdpSocket {
        UdpSocket::bind(address).await.expect("a port")
    }

    /// Serves a route on `address`; gives the port.
    async fn listen(bench: &Bench, address: &str, route: L4Route, idle: Duration, max_sessions: usize) -> u16 {
        let socket = bind(address).await;
        let port = socket.local_addr().expect("an address").port();
        let (clusters, handle, options) = (bench.clusters.clone(), bench.handle.clone(), options(idle));
        let route = Some(Arc::new(route));
        let current = move || Current {
            route: route.clone(),
            options: options.clone(),
            clusters: clusters.clone(),
            handle: handle.clone(),
            metrics: None,
            counts: Arc::default(),
            max_sessions,
        };
        tokio::spawn(serve(socket, WorkerId(0), current, bench.drainer.subscribe()));
        port
    }

    async fn ask(client: &UdpSocket, bytes: &[u8]) -> Option<Vec<u8>> {
        client.send(bytes).await.expect("send");
        let mut buf = vec![0; MAX_DATAGRAM];
        let length = timeout(Duration::from_secs(60), client.recv(&mut buf)).await.ok()?.ok()?;
        Some(buf[..length].to_vec())
    }

    async fn client(to: (&str, u16)) -> UdpSocket {
        let client = bind(if to.0.contains(':') { "[::1]:0" } else { "127.0.0.1:0" }).await;
        client.connect(to).await.expect("an address");
        client
    }

    #[tokio::test]
    async fn answers_come_from_the_address_that_was_asked() {
        let server = Server::udp_echo("re: ").await;
        let bench = Bench::new(vec![config("default/dns:53", &[server.address])]);
        for (bound, asked) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.7"),
            ("[::]:0", "127.0.0.7"),
            ("[::]:0", "::1"),
        ] {
            if asked == "::1" && UdpSocket::bind("[::1]:0").await.is_err() {
                continue;
            }
            let port = listen(&bench, bound, route([(1, Some(0))]), Duration::from_secs(60), 10).await;
            // Connected: the kernel drops answers from elsewhere.
            let client = client((asked, port)).await;
            assert_eq!(ask(&client, b"who?").await.as_deref(), Some(&b"re: who?"[..]), "{bound} {asked}");
            assert_eq!(ask(&client, b"").await.as_deref(), Some(&b"re: "[..]), "empty datagrams are datagrams");
            let large = vec![7; 60_000];
            assert_eq!(ask(&client, &large).await.map(|a| a.len()), Some(60_004));
        }
    }

    #[tokio::test]
    async fn sessions_stay_with_their_backend_and_follow_weights() {
        let (a, b) = (Server::udp_echo("a").await, Server::udp_echo("b").await);
        let bench = Bench::new(vec![config("default/a:1", &[a.address]), config("default/b:1", &[b.address])]);
        let port =
            listen(&bench, "127.0.0.1:0", route([(70, Some(0)), (30, Some(1))]), Duration::from_secs(60), 1000).await;
        let mut hits: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        for _ in 0..100 {
            let client = client(("127.0.0.1", port)).await;
            let first = ask(&client, b"").await.expect("an answer");
            assert_eq!(ask(&client, b"").await, Some(first.clone()));
            *hits.entry(first).or_default() += 1;
        }
        let b = hits.get(&b"b"[..]).copied().unwrap_or(0);
        assert!((5..=60).contains(&b), "{hits:?}");
    }

    #[tokio::test]
    async fn sessions_are_limited_and_end_when_silent() {
        let server = Server::udp_echo("").await;
        let bench = Bench::new(vec![config("default/dns:53", &[server.address])]);
        let port = listen(&bench, "127.0.0.1:0", route([(1, Some(0))]), Duration::from_secs(1), 1).await;
        let (first, second) = (client(("127.0.0.1", port)).await, client(("127.0.0.1", port)).await);
        assert!(ask(&first, b"x").await.is_some());
        // Dropped until the first session has ended by silence.
        let mut buf = [0; 8];
        let answered = timeout(Duration::from_secs(60), async {
            loop {
                second.send(b"y").await.expect("send");
                if timeout(Duration::from_millis(20), second.recv(&mut buf)).await.is_ok() {
                    break;
                }
            }
        });
        answered.await.expect("an answer in the end");
    }

    #[tokio::test]
    async fn a_dead_endpoint_ends_the_session() {
        let (gone, _held) = selvedge_testkit::tcp::closed_udp_port().await;
        let server = Server::udp_echo("ok").await;
        let bench = Bench::new(vec![config("default/dns:53", &[gone, server.address])]);
        let port = listen(&bench, "127.0.0.1:0", route([(1, Some(0))]), Duration::from_secs(60), 10).await;
        for _ in 0..8 {
            let client = client(("127.0.0.1", port)).await;
            let mut buf = [0; 8];
            let answered = timeout(Duration::from_secs(60), async {
                loop {
                    client.send(b"").await.expect("send");
                    if timeout(Duration::from_millis(20), client.recv(&mut buf)).await.is_ok() {
                        break;
                    }
                }
            });
            answered.await.expect("the living endpoint's answer");
        }
    }

    #[tokio::test]
    async fn draining_ends_the_listener_and_silent_sessions() {
        let server = Server::udp_echo("").await;
        let bench = Bench::new(vec![config("default/dns:53", &[server.address])]);
        let port = listen(&bench, "127.0.0.1:0", route([(1, Some(0))]), Duration::from_secs(1), 10).await;
        let client = client(("127.0.0.1", port)).await;
        assert!(ask(&client, b"x").await.is_some());
        bench.drainer.start();
        timeout(Duration::from_secs(60), bench.drainer.done()).await.expect("everything has ended");
    }
}
