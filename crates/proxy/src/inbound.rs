//! Connections that come to a workload: how they are secured, who may come, and the way to the application.

use crate::{
    Error,
    connection::{self, Conn, Fresh},
    detect::{self, Guess},
    drain::Drain,
    error::{Kind, Side},
    io::Io,
    l4,
    listener::OpenListener,
    original,
    port::{Judged, Linker, LivePort, Site, Visit},
    proxy::Shared,
    scope::{Arrived, Scope},
    table::{ListenerTable, LiveProtocol},
    telemetry::{Flags, Handshake, ListenerHandle, Refused, Security, Telemetry, TlsFacts, WorkloadMetrics},
    tls::mesh::{self, Member},
    tunnel, tunnels,
    worker::WorkerId,
};
use bytes::Bytes;
use selvedge_compile::snapshot::{Arrive, Inbound, InboundPort, MtlsMode, alpn};
use selvedge_identity::Peer;
use selvedge_wire::client_hello::MAX_BYTES;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::Instant;

/// An inbound listener linked to live state.
pub struct LiveInbound {
    pub config: Arc<Inbound>,
    /// For records of connections that come to no port.
    pub handle: Arc<ListenerHandle>,
    pub metrics: Arc<WorkloadMetrics>,
    ports: BTreeMap<u16, Arc<LivePort>>,
    other: Arc<LivePort>,
}

impl LiveInbound {
    pub fn link(config: &Arc<Inbound>, telemetry: &Arc<Telemetry>, before: Option<&Self>) -> Self {
        let streams = &config.other.streams;
        let handle = telemetry.stream_listener(streams);
        let linker = Linker { telemetry, streams, handle: &handle };
        let link = |port: &Arc<InboundPort>, old: Option<(&Arc<InboundPort>, &Arc<LivePort>)>| match old {
            Some((old, live)) if Arc::ptr_eq(old, port) => live.clone(),
            old => Arc::new(linker.port(port, old.map(|(_, live)| live.as_ref()))),
        };
        let ports = config.ports.iter().map(|(number, port)| {
            let old = before.and_then(|b| b.config.ports.get(number).zip(b.ports.get(number)));
            (*number, link(port, old))
        });
        let ports = ports.collect();
        let other = link(&config.other, before.map(|b| (&b.config.other, &b.other)));
        let metrics = telemetry.registry.workload(&config.name);
        Self { config: config.clone(), metrics, ports, other, handle: handle.clone() }
    }

    pub fn port(&self, number: u16) -> &Arc<LivePort> {
        self.ports.get(&number).unwrap_or(&self.other)
    }

    pub(crate) fn mtls(&self, number: u16) -> MtlsMode {
        self.config.ports.get(&number).unwrap_or(&self.config.other).mtls
    }
}

impl ListenerTable {
    pub fn inbound(&self) -> Option<&LiveInbound> {
        match &self.protocol {
            LiveProtocol::Inbound(live) => Some(live),
            _ => None,
        }
    }
}

/// Serves a connection to a workload.
pub(crate) async fn serve(fresh: Fresh, read: Bytes, peer: SocketAddr, local: SocketAddr) -> Result<(), Error> {
    let table = fresh.table.clone();
    let Some(live) = table.inbound() else { return Ok(()) };
    let to = match live.config.arrive {
        Arrive::Hbone => return tunnels::serve(fresh, read, peer, local).await,
        Arrive::Port(port) => SocketAddr::new(local.ip().to_canonical(), port),
        Arrive::OriginalDestination => match original::destination(&fresh.tcp) {
            Ok(to) if to != local => to,
            _ => return refuse(fresh, live, (peer, local), Refused::NoDestination, original::NONE),
        },
    };
    let netns = table.config.bind.netns;
    if fresh.shared.own.is_loop(netns, to) {
        return refuse(fresh, live, (peer, to), Refused::Loop, "the destination is this proxy's own port");
    }
    let (mut io, way) = fresh.arrived(peer, to);
    io.unread(read);
    let arriving = Arriving { way, port: live.port(to.port()).clone() };
    match live.mtls(to.port()) {
        MtlsMode::Strict => arriving.strict(live, io).await,
        mode => arriving.permissive(live, io, mode == MtlsMode::Audit).await,
    }
}

/// The account of a connection that is not served, and a reset for its client.
fn refuse(
    fresh: Fresh,
    live: &LiveInbound,
    (peer, local): (SocketAddr, SocketAddr),
    reason: Refused,
    message: &'static str,
) -> Result<(), Error> {
    live.metrics.refused(fresh.worker, reason);
    let facts = connection::facts(fresh.worker, local, fresh.direct, peer, None, live.handle.clone());
    let mut record = l4::begin(&facts.into(), &live.handle, None);
    record.flag(Flags::NO_ROUTE);
    record.details(message);
    tunnel::reset(&Io::from(fresh.tcp));
    Err(Error::downstream(Kind::Protocol { status: 400 }, message))
}

/// All that is known of a connection to the workload beside its bytes.
#[derive(Clone)]
pub(crate) struct Way {
    pub shared: Arc<Shared>,
    pub worker: WorkerId,
    pub listener: Arc<OpenListener>,
    pub drain: Drain,
    pub table: Arc<ListenerTable>,
    pub direct: SocketAddr,
    pub peer: SocketAddr,
    /// Address and port of the workload.
    pub to: SocketAddr,
    pub deadline: Instant,
}

impl Fresh {
    pub(crate) fn arrived(self, peer: SocketAddr, to: SocketAddr) -> (Io, Way) {
        let Fresh { tcp, shared, worker, listener, table, drain, direct, deadline } = self;
        (tcp.into(), Way { shared, worker, listener, drain, table, direct, peer, to, deadline })
    }
}

impl Way {
    /// What requests of the connection are served with.
    pub fn conn(&self, proven: Option<&Proven>) -> Conn {
        let inbound = self.table.inbound();
        let handle = inbound.map_or_else(|| self.table.nowhere.clone(), |live| live.handle.clone());
        let tls = proven.map(|proven| proven.tls.clone());
        let mut facts = connection::facts(self.worker, self.to, self.direct, self.peer, tls, handle);
        let own = inbound.and_then(|live| live.config.identity.clone());
        let peer = proven.map(|proven| proven.peer.id.clone());
        facts.source.clone_from(&peer);
        facts.destination.clone_from(&own);
        Conn {
            shared: self.shared.clone(),
            worker: self.worker,
            listener: self.listener.clone(),
            peer: self.peer,
            local: self.to,
            facts: facts.into(),
            tls: None,
            scope: Scope::Port(Arrived { to: self.to, peer, own }),
        }
    }

    /// The connection at its port.
    pub fn visit(&self, io: Io, port: Arc<LivePort>, proven: Option<&Proven>) -> Visit {
        let (conn, table, drain) = (self.conn(proven), self.table.clone(), self.drain.clone());
        let site = Site { conn, table, port, direct: Some(self.to) };
        Visit { io, site, drain, deadline: self.deadline }
    }
}

/// How long a client that must speak TLS may be silent: for a lost packet to be sent again, and a busy client to come to it.
const SILENCE: Duration = Duration::from_secs(1);

/// What mutual TLS has proven.
pub(crate) struct Proven {
    pub peer: Arc<Peer>,
    pub tls: TlsFacts,
}

/// Does the handshake as the workload.
pub(crate) async fn prove(way: &Way, live: &LiveInbound, io: Io, alpn: &[u8]) -> Result<(Io, Proven), Error> {
    let refused = |why: String| Error::new(Kind::Tls, Side::Us, why);
    let result = match (&live.config.identity, io.into_tcp()) {
        (Some(own), Some(tcp)) => mesh::accept(&way.shared.dial.identities, own, &[alpn], tcp, way.deadline).await,
        (None, _) => Err(refused(format!("{} has no identity, so that mutual TLS cannot be served", live.config.name))),
        (_, None) => Err(refused("mutual TLS inside of another connection is not served".to_owned())),
    };
    let socket = &way.table.socket;
    match result {
        Ok(Member { io, peer, session }) => {
            let tls = connection::tls_facts(&session);
            let kind = if session.resumed { Handshake::Resumed } else { Handshake::Full };
            socket.handshake(way.worker, tls.version, kind);
            Ok(((*io).into(), Proven { peer, tls }))
        }
        Err(error) => {
            let kind = if error.kind == Kind::Timeout { Handshake::Timeout } else { Handshake::Protocol };
            socket.handshake(way.worker, "", kind);
            live.metrics.refused(way.worker, Refused::Handshake);
            let mut record = l4::begin(&way.conn(None).facts, &live.handle, None);
            record.failed(&error);
            record.details(error.to_string());
            Err(error)
        }
    }
}

/// A connection to a port of the workload before it is known how it is secured.
struct Arriving {
    way: Way,
    port: Arc<LivePort>,
}

impl Arriving {
    /// Only mutual TLS is served. Servers that speak first are no exception: nobody hears them without it.
    async fn strict(self, live: &LiveInbound, mut io: Io) -> Result<(), Error> {
        let judge = |bytes: &[u8]| match detect::guess_mutual(bytes, alpn::MUTUAL_TLS) {
            Guess::Hello => None,
            guess => Some(guess == Guess::Mutual),
        };
        // Whoever speaks TLS does so at once. Who is silent waits for a server that would speak first, in vain.
        let soon = self.way.deadline.min(Instant::now() + SILENCE);
        let spoken = detect::first_words(&mut io, soon, 1, |bytes| (!bytes.is_empty()).then_some(())).await;
        let mutual = match spoken {
            Some(()) => detect::first_words(&mut io, self.way.deadline, MAX_BYTES, judge).await,
            None => None,
        };
        if mutual == Some(true) {
            return self.mutual(live, io).await;
        }
        live.metrics.refused(self.way.worker, Refused::ClearText);
        let message = "the connection is in clear text, and this port demands mutual TLS (mtls mode Strict)";
        let mut record = l4::begin(&self.way.conn(None).facts, &self.port.handle, self.port.route.as_ref());
        record.flag(Flags::CLEAR_TEXT);
        record.details(message);
        tunnel::reset(&io);
        Err(Error::downstream(Kind::Protocol { status: 400 }, message))
    }

    /// Mutual TLS or clear text, told apart by the first bytes of the client.
    async fn permissive(self, live: &LiveInbound, io: Io, audit: bool) -> Result<(), Error> {
        let mut visit = self.way.visit(io, self.port.clone(), None);
        let judged = visit.judge(Some(alpn::MUTUAL_TLS)).await?;
        if matches!(judged, Judged::Mutual) {
            return self.mutual(live, visit.io).await;
        }
        live.metrics.secured(self.way.worker, Security::ClearText);
        if audit {
            live.metrics.audited(self.way.worker);
            let (listener, from, to) = (&live.config.name, self.way.peer, self.way.to);
            tracing::warn!(%listener, %from, %to, "a connection in clear text, which mtls mode Strict would refuse");
        }
        visit.go_on(judged).await
    }

    /// Proves who we are, and serves what is inside.
    async fn mutual(self, live: &LiveInbound, io: Io) -> Result<(), Error> {
        let (io, proven) = prove(&self.way, live, io, alpn::MUTUAL_TLS).await?;
        live.metrics.secured(self.way.worker, Security::MutualTls);
        let visit = self.way.visit(io, self.port, Some(&proven));
        mesh::while_accepted(&self.way.shared.dial.identities, &proven.peer, Side::Downstream, visit.serve()).await
    }
}
