//! Connections to endpoints, kept per worker. HTTP/1.1 connections rest on a stack, the most recent on top; HTTP/2
//! connections are shared, and one is opened at a time. A connection carries its [`Ticket`] for life: where it
//! belongs, what it counts for, and when it is too old.

mod lease;

pub(crate) use lease::{Lease, Seeker, lease, raw};

use crate::{
    Body, Error,
    cluster::{Counters, LiveCluster, Settings},
    codec::{h1, h2},
    endpoint::LiveEndpoint,
    error::{Kind, Side},
    gate::{Open, Place},
    tls::mesh::Proof,
    worker::{WorkerCount, WorkerId},
};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};
use tokio::{sync::watch, time::Instant};

/// Idle HTTP/1.1 connections to one endpoint on one worker; more are closed. What a burst has opened beyond it
/// would hardly be used again before it times out.
const MAX_IDLE: usize = 256;

/// One endpoint's connections, a shelf for each worker; made when the first is needed.
#[derive(Default)]
pub struct Shelves(OnceLock<Box<[Mutex<Shelf>]>>);

/// Locked by its own worker for moments, and by the sweeper now and then.
#[derive(Default)]
pub(crate) struct Shelf {
    idle: Vec<Idle>,
    shared: Vec<Shared>,
    /// The connection that is being opened and that all wait for.
    flight: Option<watch::Receiver<Landing>>,
}

/// How a flight ended: `None` while it is on its way.
type Landing = Option<Result<(), Missed>>;

/// An error that all who waited get a copy of.
#[derive(Debug, Clone)]
struct Missed {
    kind: Kind,
    side: Side,
    message: String,
}

struct Idle {
    connection: h1::Connection,
    ticket: Arc<Ticket>,
    since: Instant,
}

struct Shared {
    connection: h2::Connection,
    ticket: Arc<Ticket>,
    last_used: Instant,
}

impl Shelves {
    pub(crate) fn of(&self, worker: WorkerId, workers: WorkerCount) -> MutexGuard<'_, Shelf> {
        let shelves = self.0.get_or_init(|| (0..workers.0.max(1)).map(|_| Mutex::default()).collect());
        shelves[worker.0 % shelves.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that exist.
    fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Shelf>> {
        let shelves = self.0.get().map_or(&[][..], |shelves| shelves);
        shelves.iter().map(|shelf| shelf.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Closes what has been idle or lived for too long, or is closed; with `all`, everything that is idle.
    /// HTTP/2 connections that are in use end with their last stream.
    pub(crate) fn sweep(&self, settings: &Settings, now: Instant, all: bool) {
        let timeout = settings.config.connections.idle_timeout;
        for mut shelf in self.all() {
            let old = |since: Instant| all || now.saturating_duration_since(since) >= timeout;
            let idle: Vec<Idle> =
                shelf.idle.extract_if(.., |i| old(i.since) || i.ticket.is_expired(settings, now)).collect();
            let unused = |s: &mut Shared| {
                if s.connection.active() > 0 {
                    s.last_used = now;
                }
                !s.connection.is_usable() || old(s.last_used) || s.ticket.is_expired(settings, now)
            };
            let shared: Vec<Shared> = shelf.shared.extract_if(.., unused).collect();
            // Closing frees a place at the gate, which may wake others: not under the lock.
            drop(shelf);
            drop((idle, shared));
        }
    }

    /// Closes one idle connection, the one that has waited longest on its shelf. False when there is none.
    pub(crate) fn evict(&self) -> bool {
        for mut shelf in self.all() {
            if !shelf.idle.is_empty() {
                let idle = shelf.idle.remove(0);
                drop(shelf);
                drop(idle);
                return true;
            }
            if let Some(index) = shelf.shared.iter().position(|shared| shared.connection.active() == 0) {
                let shared = shelf.shared.swap_remove(index);
                drop(shelf);
                drop(shared);
                return true;
            }
        }
        false
    }

    pub(crate) fn idle(&self) -> usize {
        self.all().map(|shelf| shelf.idle.len()).sum()
    }
}

impl Shelf {
    /// The connection that was used last and that is still good.
    fn take_idle(&mut self, settings: &Settings) -> (Option<(h1::Connection, Arc<Ticket>)>, Vec<Idle>) {
        let mut dead = Vec::new();
        let now = Instant::now();
        while let Some(mut idle) = self.idle.pop() {
            let fresh = now.saturating_duration_since(idle.since) < settings.config.connections.idle_timeout;
            if fresh && !idle.ticket.is_expired(settings, now) && idle.connection.is_reusable() {
                return (Some((idle.connection, idle.ticket)), dead);
            }
            dead.push(idle);
        }
        (None, dead)
    }

    fn take_shared(&mut self, settings: &Settings) -> (Option<(h2::Connection, Arc<Ticket>)>, Vec<Shared>) {
        let now = Instant::now();
        let mut gone = Vec::new();
        let most = settings.config.connections.max_requests_per_connection;
        let mut index = 0;
        while index < self.shared.len() {
            let shared = &mut self.shared[index];
            let spent = most > 0 && shared.connection.requests() >= u64::from(most);
            if spent || !shared.connection.is_usable() || shared.ticket.is_expired(settings, now) {
                gone.push(self.shared.swap_remove(index));
                continue;
            }
            if shared.connection.has_capacity() {
                shared.last_used = now;
                return (Some((shared.connection.clone(), shared.ticket.clone())), gone);
            }
            index += 1;
        }
        (None, gone)
    }
}

/// What a connection counts for and where it belongs, for as long as it is open.
pub struct Ticket {
    cluster: Weak<LiveCluster>,
    endpoint: Weak<LiveEndpoint>,
    counters: Arc<Counters>,
    worker: WorkerId,
    place: Place,
    /// Of the settings it was opened with: others may demand other certificates.
    epoch: u64,
    opened: Instant,
    /// Who was at the other end, when that was proved.
    proof: Option<Proof>,
    /// May be used by another request.
    pooled: bool,
    /// An HTTP/1.1 request is on its way, which the endpoint counts.
    busy: AtomicBool,
    me: Weak<Ticket>,
    _open: Open,
}

impl Ticket {
    fn new(
        cluster: &Arc<LiveCluster>,
        endpoint: &Arc<LiveEndpoint>,
        settings: &Settings,
        place: (Place, WorkerId),
        proof: Option<Proof>,
        open: Open,
    ) -> Arc<Self> {
        cluster.counters.connections_opened.fetch_add(1, Ordering::Relaxed);
        endpoint.counters.connections.fetch_add(1, Ordering::Relaxed);
        Arc::new_cyclic(|me| Self {
            cluster: Arc::downgrade(cluster),
            endpoint: Arc::downgrade(endpoint),
            counters: cluster.counters.clone(),
            worker: place.1,
            place: place.0,
            epoch: settings.epoch,
            opened: Instant::now(),
            proof,
            pooled: !settings.plan.is_per_client(),
            busy: AtomicBool::new(false),
            me: me.clone(),
            _open: open,
        })
    }

    fn is_expired(&self, settings: &Settings, now: Instant) -> bool {
        let max_age = settings.config.connections.max_age;
        let old = !max_age.is_zero() && now.saturating_duration_since(self.opened) >= max_age;
        let outdated = self.proof.as_ref().is_some_and(|proof| !proof.is_current());
        old || outdated || self.epoch != settings.epoch || !self.pooled
    }

    /// A request begins on this HTTP/1.1 connection.
    pub(crate) fn begin(&self, endpoint: &LiveEndpoint) {
        endpoint.begin();
        self.busy.store(true, Ordering::Release);
    }

    fn end(&self) {
        if self.busy.swap(false, Ordering::AcqRel)
            && let Some(endpoint) = self.endpoint.upgrade()
        {
            endpoint.end();
        }
    }
}

impl h1::Home for Ticket {
    /// The response has ended, and the connection may be used again.
    fn give_back(&self, connection: h1::Connection) {
        self.end();
        let (Some(cluster), Some(endpoint), Some(me)) =
            (self.cluster.upgrade(), self.endpoint.upgrade(), self.me.upgrade())
        else {
            return;
        };
        let settings = cluster.current();
        let now = Instant::now();
        let most = settings.config.connections.max_requests_per_connection;
        let spent = most > 0 && connection.requests() >= most;
        if spent || endpoint.is_removed() || cluster.is_closed() || self.is_expired(&settings, now) {
            return;
        }
        let Some(connection) = cluster.gate.offer(self.place, connection, &me) else { return };
        let mut shelf = endpoint.shelves.of(self.worker, cluster.workers);
        if shelf.idle.len() < MAX_IDLE {
            shelf.idle.push(Idle { connection, ticket: me, since: now });
        }
        drop(shelf);
        // Somebody of another worker who has begun to wait in between may have looked too early to find it.
        if cluster.gate.waiting() > 0 {
            cluster.evict_idle();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end();
        self.counters.connections_closed.fetch_add(1, Ordering::Relaxed);
        if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.counters.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({:?} epoch {})", self.place, self.epoch)
    }
}

/// What a connection that has left HTTP still counts for. In the extensions of a response with an upgraded body;
/// to be kept for as long as the tunnel is open.
#[derive(Clone)]
pub struct Held(#[allow(dead_code, reason = "held for its Drop")] Arc<dyn Any + Send + Sync>);

impl Held {
    pub(crate) fn new(what: Arc<impl Any + Send + Sync>) -> Self {
        Self(what)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// A request on a shared connection, until its response has ended.
pub(crate) struct Busy {
    cluster: Arc<LiveCluster>,
    endpoint: Arc<LiveEndpoint>,
    ticket: Arc<Ticket>,
}

impl Busy {
    pub(crate) fn new(cluster: Arc<LiveCluster>, endpoint: Arc<LiveEndpoint>, ticket: Arc<Ticket>) -> Self {
        endpoint.begin();
        Self { cluster, endpoint, ticket }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.endpoint.end();
        if self.cluster.gate.capacity(self.ticket.place) {
            // Where this connection, or another, has become idle by it, somebody else may open one instead.
            self.cluster.evict_idle();
        }
    }
}

/// A response body that counts as a request in flight until it ends.
pub(crate) struct Counted {
    pub(crate) body: Body,
    pub(crate) busy: Option<Busy>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(poll, Poll::Ready(None | Some(Err(_)))) {
            // The stream's own handle goes with the body; what waits for capacity may look now.
            self.body = Body::empty();
            self.busy = None;
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
