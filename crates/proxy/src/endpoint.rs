//! One address of a cluster with everything that is known about it. It lives as long as its cluster names the
//! address, across reloads, so that health, load and pooled connections survive a change elsewhere.

use crate::{
    balance::ewma::Ewma,
    connect::To,
    health,
    outlier::{self, Standing},
    pool::Shelves,
};
use arc_swap::ArcSwap;
use selvedge_compile::snapshot::Peer;
use serde::Serialize;
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};
use tokio::time::Instant;

/// Milliseconds since an arbitrary start; fits atomics, and follows virtual time in tests.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    pub fn millis(&self) -> u64 {
        self.at(Instant::now())
    }

    pub fn at(&self, instant: Instant) -> u64 {
        // One and not zero at the start: zero means "never" in the atomics that hold such values.
        instant.saturating_duration_since(self.0).as_millis() as u64 + 1
    }
}

/// What an endpoint spoke when we last connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Unknown,
    Http1,
    Http2,
}

pub struct LiveEndpoint {
    pub address: SocketAddr,
    /// Addresses of the other family, of an endpoint that DNS named.
    others: ArcSwap<Vec<SocketAddr>>,
    /// What it is called in session cookies; worked out when it is first asked for.
    session: OnceLock<u64>,
    pub zone: Option<String>,
    /// The member of a mesh that is there.
    pub peer: Option<Arc<Peer>>,
    pub ewma: Ewma,
    pub health: health::State,
    pub outlier: outlier::Watch,
    pub counters: EndpointCounters,
    pub(crate) shelves: Shelves,
    weight: AtomicU32,
    priority: AtomicU8,
    active: AtomicU32,
    /// When it last became able to take traffic, for slow start.
    warm_since: AtomicU64,
    protocol: AtomicU8,
    removed: AtomicBool,
}

/// Counted since the endpoint appeared.
#[derive(Debug, Default)]
pub struct EndpointCounters {
    pub requests: AtomicU64,
    pub failures: AtomicU64,
    pub connect_failures: AtomicU64,
    pub timeouts: AtomicU64,
    pub ejections: AtomicU64,
    /// Connections that are open now.
    pub connections: AtomicU32,
}

impl LiveEndpoint {
    pub fn new(address: SocketAddr, weight: u32, zone: Option<String>, now: u64) -> Self {
        Self {
            address,
            others: ArcSwap::default(),
            session: OnceLock::new(),
            zone,
            peer: None,
            ewma: Ewma::default(),
            health: health::State::default(),
            outlier: outlier::Watch::default(),
            counters: EndpointCounters::default(),
            shelves: Shelves::default(),
            weight: AtomicU32::new(weight),
            priority: AtomicU8::new(0),
            active: AtomicU32::new(0),
            warm_since: AtomicU64::new(now),
            protocol: AtomicU8::new(0),
            removed: AtomicBool::new(false),
        }
    }

    /// At which this member of a mesh is.
    pub(crate) fn with_peer(self, peer: Option<Arc<Peer>>) -> Self {
        Self { peer, ..self }
    }

    pub(crate) fn set_others(&self, others: Vec<SocketAddr>) {
        if **self.others.load() != others {
            self.others.store(Arc::new(others));
        }
    }

    /// Addresses of the other family, of an endpoint that DNS named.
    pub fn others(&self) -> Arc<Vec<SocketAddr>> {
        self.others.load_full()
    }

    pub(crate) fn session_name(&self, name: impl FnOnce() -> u64) -> u64 {
        *self.session.get_or_init(name)
    }

    /// Where connections lead.
    pub(crate) fn to<'a>(&'a self, others: &'a [SocketAddr]) -> To<'a> {
        To { address: self.address, others, peer: self.peer.as_deref() }
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// How far away it is; see [`selvedge_compile::snapshot::Endpoint`].
    pub(crate) fn priority(&self) -> u8 {
        self.priority.load(Ordering::Relaxed)
    }

    pub(crate) fn set_priority(&self, priority: u8) {
        self.priority.store(priority, Ordering::Relaxed);
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// Requests sent to it whose responses have not ended.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// Neither failed its health checks nor ejected.
    pub fn is_usable(&self) -> bool {
        self.health.summary() != health::Summary::Unhealthy && self.outlier.standing() == Standing::Active
    }

    /// No longer named by its cluster: nothing is pooled for it any more.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
    }

    pub(crate) fn warm_since(&self) -> u64 {
        self.warm_since.load(Ordering::Relaxed)
    }

    /// Traffic begins (again): slow start counts from here.
    pub(crate) fn warm_from(&self, now: u64) {
        self.warm_since.store(now, Ordering::Relaxed);
    }

    pub fn protocol(&self) -> Protocol {
        match self.protocol.load(Ordering::Relaxed) {
            1 => Protocol::Http1,
            2 => Protocol::Http2,
            _ => Protocol::Unknown,
        }
    }

    pub(crate) fn set_protocol(&self, protocol: Protocol) {
        self.protocol.store(protocol as u8, Ordering::Relaxed);
    }
}

impl fmt::Debug for LiveEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveEndpoint({} weight {} active {})", self.address, self.weight(), self.active())
    }
}
