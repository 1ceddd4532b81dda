//! HBONE to a workload: an HTTP/2 connection over mutual TLS, each stream of which is a connection to one of the
//! workload's ports.

use crate::{
    Error,
    connection::Fresh,
    error::{Kind, Side},
    hbone::{self, Asked, Refusal, Tunnel, Tunnels},
    inbound::{LiveInbound, Proven, Way, prove},
    io::Io,
    l4, reply,
    table::ListenerTable,
    telemetry::{Flags, Record, Refused, Security},
    tls::mesh,
};
use bytes::Bytes;
use http::StatusCode;
use selvedge_compile::snapshot::alpn;
use std::{net::SocketAddr, sync::Arc};
use tokio::time::Instant;

/// Serves an HBONE connection.
pub(crate) async fn serve(fresh: Fresh, read: Bytes, peer: SocketAddr, local: SocketAddr) -> Result<(), Error> {
    let table = fresh.table.clone();
    let Some(live) = table.inbound() else { return Ok(()) };
    let (mut io, way) = fresh.arrived(peer, local);
    io.unread(read);
    let (io, proven) = prove(&way, live, io, alpn::HBONE).await?;
    live.metrics.secured(way.worker, Security::MutualTls);
    let (shared, drain) = (way.shared.clone(), way.drain.clone());
    let peer = proven.peer.clone();
    let serving = hbone::serve(io, Arc::new(Workload { way, proven }), drain);
    mesh::while_accepted(&shared.dial.identities, &peer, Side::Downstream, serving).await
}

/// The tunnels of one connection.
struct Workload {
    way: Way,
    proven: Proven,
}

impl Tunnels for Workload {
    /// The records of a tunnel are those of what is inside.
    async fn open(&self, asked: Asked) -> Result<Tunnel, Refusal> {
        let to = SocketAddr::new(asked.target.ip().to_canonical(), asked.target.port());
        let table = self.way.listener.table();
        let Some(live) = table.inbound() else {
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no workload is served here any more"));
        };
        self.allowed(&table, live, to)?;
        let port = live.port(to.port()).clone();
        let deadline = Instant::now() + table.config.options.handshake_timeout;
        let drain = self.way.listener.drainer.subscribe();
        let way = Way { to, table: table.clone(), deadline, drain, ..self.way.clone() };
        let accepted = way.visit(Io::nothing(), port, Some(&self.proven)).accept().await;
        accepted.map(Tunnel::new).map_err(|error| Refusal::new(reply::status(&error), error.message))
    }

    fn rejected(&self, status: StatusCode, error: &Error) {
        if let Some(live) = self.way.listener.table().inbound() {
            live.metrics.refused(self.way.worker, Refused::TunnelTarget);
        }
        Record::rejected(self.way.conn(Some(&self.proven)).facts, Some(status), error);
    }
}

impl Workload {
    /// A tunnel goes to an address of the workload and nowhere else: we are no way into its network.
    fn allowed(&self, table: &ListenerTable, live: &LiveInbound, to: SocketAddr) -> Result<(), Refusal> {
        let (reason, message) = if !live.config.addresses.contains(&to.ip()) {
            (Refused::TunnelTarget, format!("{} is no address of this workload", to.ip()))
        } else if self.way.shared.own.is_loop(table.config.bind.netns, to) {
            (Refused::Loop, format!("{to} is a port of the proxy itself"))
        } else {
            return Ok(());
        };
        live.metrics.refused(self.way.worker, reason);
        let mut record = l4::begin(&self.way.conn(Some(&self.proven)).facts, &live.handle, None);
        record.failed(&Error::new(Kind::Protocol { status: 400 }, Side::Downstream, message.clone()));
        record.flag(Flags::NO_ROUTE);
        Err(Refusal::new(StatusCode::BAD_REQUEST, message))
    }
}
