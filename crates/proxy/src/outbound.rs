//! Connections that leave a workload: where each was going, what is known of that place, and what is done when nothing is.

use crate::{
    Error,
    access::{At, Live},
    connection::{self, Conn, Fresh},
    detect::{self, Guess},
    discover::{Discover, Wanted},
    error::Kind,
    io::Io,
    l4::{self, Refusal, Upstream},
    listener::OpenListener,
    original, passage,
    port::{Linker, LivePort, Site, Visit},
    scope::{Key, Scope},
    table::{ListenerTable, LiveProtocol},
    telemetry::{Discovered, Flags, ListenerHandle, Refused, Telemetry, WorkloadMetrics},
    tunnel,
    worker::WorkerId,
};
use arc_swap::ArcSwap;
use selvedge_compile::snapshot::{Destination, Find, L4Options, Outbound, Unknown};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

/// An outbound listener linked to live state. Destinations are linked when the first connection goes to them: a workload
/// mostly uses few of all that it may reach, and what is not used takes no memory here.
pub struct LiveOutbound {
    pub config: Arc<Outbound>,
    /// For records of connections whose destination is not known.
    pub handle: Arc<ListenerHandle>,
    pub metrics: Arc<WorkloadMetrics>,
    telemetry: Weak<Telemetry>,
    /// By the address of the configuration that they were made from, which they hold.
    linked: ArcSwap<HashMap<usize, Linked>>,
}

#[derive(Clone)]
struct Linked {
    config: Arc<Destination>,
    port: Arc<LivePort>,
}

/// How many questions about unknown destinations may wait for an answer at once. A client that scans addresses gets the
/// rest treated as unknown at once.
const MAX_QUESTIONS: usize = 64;

/// How long an answer is waited for, whatever limit whoever answers has: a connection that nothing is known of should not
/// take longer than a lost packet would cost it.
const ANSWER: Duration = Duration::from_secs(2);

/// Questions that wait for an answer.
#[derive(Debug)]
pub struct Questions(Semaphore);

impl Default for Questions {
    fn default() -> Self {
        Self(Semaphore::new(MAX_QUESTIONS))
    }
}

impl LiveOutbound {
    /// Links a listener. What connections use is linked at once when it has changed, so that its counters go on.
    pub fn link(config: &Arc<Outbound>, telemetry: &Arc<Telemetry>, before: Option<&Self>) -> Self {
        let live = Self {
            config: config.clone(),
            handle: telemetry.stream_listener(&config.streams),
            metrics: telemetry.registry.workload(&config.name),
            telemetry: Arc::downgrade(telemetry),
            linked: ArcSwap::default(),
        };
        let Some(before) = before else { return live };
        let old = before.linked.load();
        if old.is_empty() {
            return live;
        }
        let by_name: HashMap<&str, &Linked> = old.values().map(|l| (l.config.name.as_str(), l)).collect();
        let linker = Linker { telemetry, streams: &config.streams, handle: &live.handle };
        let mut linked = HashMap::new();
        for destination in live.all() {
            let Some(old) = by_name.get(destination.name.as_str()) else { continue };
            linked.entry(id(destination)).or_insert_with(|| {
                let same = Arc::ptr_eq(&old.config, destination);
                let port =
                    if same { old.port.clone() } else { linker.destination(destination, Some(&old.port)).into() };
                Linked { config: destination.clone(), port }
            });
        }
        live.linked.store(linked.into());
        live
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Destination>> {
        let fixed = match &self.config.find {
            Find::Fixed(destination) => Some(destination),
            _ => None,
        };
        let destinations = &self.config.destinations;
        destinations.addresses.values().chain(destinations.names.values()).chain(fixed)
    }

    /// What is known of a destination.
    pub fn destination(&self, key: &Key) -> Option<&Arc<Destination>> {
        let destinations = &self.config.destinations;
        match (key, &self.config.find) {
            (Key::Fixed, Find::Fixed(destination)) => Some(destination),
            (Key::Fixed, _) => None,
            (Key::Address(ip, port), _) => destinations.addresses.get(&(*ip, *port)),
            (Key::Name(name, port), _) => destinations.find_name(name, *port),
        }
    }

    /// The port of a destination, if it is known.
    pub fn find(&self, key: &Key) -> Option<Arc<LivePort>> {
        let destination = self.destination(key)?;
        if let Some(linked) = self.linked.load().get(&id(destination)) {
            return Some(linked.port.clone());
        }
        let telemetry = self.telemetry.upgrade()?;
        let linker = Linker { telemetry: &telemetry, streams: &self.config.streams, handle: &self.handle };
        let made = Linked { config: destination.clone(), port: Arc::new(linker.destination(destination, None)) };
        // Of two that were made at once the first stays.
        self.linked.rcu(|linked| {
            let mut linked = HashMap::clone(linked);
            linked.entry(id(destination)).or_insert_with(|| made.clone());
            linked
        });
        self.linked.load().get(&id(destination)).map(|linked| linked.port.clone())
    }
}

fn id(destination: &Arc<Destination>) -> usize {
    Arc::as_ptr(destination) as usize
}

impl ListenerTable {
    pub fn outbound(&self) -> Option<&LiveOutbound> {
        match &self.protocol {
            LiveProtocol::Outbound(live) => Some(live),
            _ => None,
        }
    }
}

/// Makes a destination known if somebody knows it: asks once, and says which table to look into afterwards.
pub async fn acquaint(
    listener: &OpenListener,
    questions: &Questions,
    discover: Option<&Arc<dyn Discover>>,
    worker: WorkerId,
    key: &Key,
) -> Arc<ListenerTable> {
    let table = listener.table();
    let Some(live) = table.outbound() else { return table };
    let (Some(discover), None) = (discover, live.destination(key)) else { return table };
    let wanted = match key {
        Key::Fixed => return table,
        Key::Address(ip, port) => Wanted::Address(SocketAddr::new(*ip, *port)),
        Key::Name(name, port) => Wanted::Host(name.clone(), *port),
    };
    let Ok(_permit) = questions.0.try_acquire() else {
        live.metrics.discovered(worker, Discovered::Limited);
        return table;
    };
    // No answer in time is as good as none.
    let _ = timeout(ANSWER, discover.wanted(wanted)).await;
    let newest = listener.table();
    let found = newest.outbound().is_some_and(|live| live.destination(key).is_some());
    live.metrics.discovered(worker, if found { Discovered::Found } else { Discovered::Unknown });
    newest
}

/// Serves a connection of a workload.
pub async fn serve(fresh: Fresh, read: bytes::Bytes, peer: SocketAddr, local: SocketAddr) -> Result<(), Error> {
    let table = fresh.table.clone();
    let Some(live) = table.outbound() else { return Ok(()) };
    let find = live.config.find.clone();
    let (key, to) = match &find {
        Find::HttpProxy => return named(fresh, read, peer, local, live).await,
        Find::Fixed(_) => (Key::Fixed, None),
        Find::OriginalDestination => match original::destination(&fresh.tcp) {
            Ok(to) if to != local => (Key::address(to), Some(to)),
            _ => {
                live.metrics.refused(fresh.worker, Refused::NoDestination);
                let error = Error::downstream(Kind::Protocol { status: 400 }, original::NONE);
                return refuse(fresh, live, peer, local, error);
            }
        },
    };
    let netns = table.config.bind.netns;
    if to.is_some_and(|to| fresh.shared.own.is_loop(netns, to)) {
        live.metrics.refused(fresh.worker, Refused::Loop);
        let error = Error::downstream(Kind::Protocol { status: 400 }, "the destination is this proxy's own port");
        return refuse(fresh, live, peer, local, error);
    }
    let shared = fresh.shared.clone();
    let newest = acquaint(&fresh.listener, &shared.questions, shared.discover.as_ref(), fresh.worker, &key).await;
    let Some(live) = newest.outbound() else { return Ok(()) };
    let local = to.unwrap_or(local);
    match live.find(&key) {
        Some(port) => {
            let (io, conn, drain, deadline) = fresh.known(read, peer, local, Scope::To(key), live);
            let direct = to.filter(|_| port.is_passed());
            let site = Site { conn, table: newest.clone(), port, direct };
            Visit { io, site, drain, deadline }.serve().await
        }
        None => unknown(fresh, read, peer, local, key, &newest).await,
    }
}

impl Fresh {
    /// What requests of this connection are served with.
    fn known(
        self,
        read: bytes::Bytes,
        peer: SocketAddr,
        local: SocketAddr,
        scope: Scope,
        live: &LiveOutbound,
    ) -> (Io, Conn, crate::drain::Drain, Instant) {
        let mut facts = connection::facts(self.worker, local, self.direct, peer, None, live.handle.clone());
        facts.source.clone_from(&live.config.identity);
        let mut io = Io::from(self.tcp);
        io.unread(read);
        let conn = Conn {
            shared: self.shared,
            worker: self.worker,
            listener: self.listener,
            peer,
            local,
            facts: facts.into(),
            tls: None,
            scope,
        };
        (io, conn, self.drain, self.deadline)
    }
}

/// An explicit HTTP proxy: what is spoken is HTTP, and each request is looked at on its own.
async fn named(
    fresh: Fresh,
    read: bytes::Bytes,
    peer: SocketAddr,
    local: SocketAddr,
    live: &LiveOutbound,
) -> Result<(), Error> {
    let options = live.config.http.clone();
    let (io, conn, drain, deadline) = fresh.known(read, peer, local, Scope::Named, live);
    let (io, http2) = crate::sniff::http_version(io, deadline).await?;
    connection::http(io, http2 && options.http2_enabled, conn, &options, drain).await
}

/// The account of a connection that is not served, and a reset for its client.
fn refuse(fresh: Fresh, live: &LiveOutbound, peer: SocketAddr, local: SocketAddr, error: Error) -> Result<(), Error> {
    let (io, conn, ..) = fresh.known(bytes::Bytes::new(), peer, local, Scope::Hosts, live);
    let mut record = l4::begin(&conn.facts, &live.handle, None);
    record.failed(&error);
    record.flag(Flags::NO_ROUTE);
    tunnel::reset(&io);
    Err(error)
}

/// A connection to where nothing is known of.
async fn unknown(
    fresh: Fresh,
    read: bytes::Bytes,
    peer: SocketAddr,
    local: SocketAddr,
    key: Key,
    table: &ListenerTable,
) -> Result<(), Error> {
    let Some(live) = table.outbound() else { return Ok(()) };
    let (worker, netns) = (fresh.worker, fresh.table.config.bind.netns);
    let (options, streams) = (live.config.http.clone(), live.config.streams.clone());
    let (mut io, conn, drain, _) = fresh.known(read, peer, local, Scope::To(key.clone()), live);
    let record = l4::begin(&conn.facts, &live.handle, None);
    if live.config.unknown == Unknown::Pass {
        live.metrics.passed(worker);
        let upstream = passage::open(&conn.shared, netns, local).await;
        let (shared, listener, facts) = (&conn.shared, &conn.listener, &conn.facts);
        let passed = Live::passed(&At { shared, listener, facts, table }, key);
        carry(io, &conn, live, (streams, Some(passed)), drain, upstream, record).await;
        return Ok(());
    }
    // Who speaks HTTP is told so; whoever waits for the server's first words gets a reset soon.
    let until = Instant::now() + detect::PATIENCE;
    let spoken = detect::first_words(&mut io, until, READ_AT_MOST, |bytes| match detect::guess(bytes) {
        Guess::Unsure { .. } => None,
        sure => Some(sure),
    });
    match spoken.await {
        Some(guess @ (Guess::Http1 | Guess::Http2)) => {
            record.withdraw();
            // Requests are answered, and counted, one by one: the destination may become known meanwhile.
            let http2 = guess == Guess::Http2 && options.http2_enabled;
            connection::http(io, http2, conn, &options, drain).await
        }
        _ => {
            live.metrics.refused(worker, Refused::UnknownDestination);
            let details = format!("nothing is known of {local}, and only known destinations are allowed");
            let refusal = Refusal::new(Flags::NO_ROUTE, details);
            carry(io, &conn, live, (streams, None), drain, Err(refusal), record).await;
            Ok(())
        }
    }
}

/// What is looked at of a connection that will be refused.
const READ_AT_MOST: usize = 8 * 1024;

async fn carry(
    io: Io,
    conn: &Conn,
    live: &LiveOutbound,
    (options, passed): (Arc<L4Options>, Option<Live>),
    drain: crate::drain::Drain,
    upstream: Result<Upstream, Refusal>,
    record: crate::telemetry::Record,
) {
    let (worker, facts, handle) = (conn.worker, conn.facts.clone(), live.handle.clone());
    let stream = l4::Stream { io, worker, facts, handle, metrics: None, options, drain, live: passed };
    l4::carry(stream, upstream, record).await;
}
