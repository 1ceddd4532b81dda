//! HBONE to a workload: an HTTP/2 connection over mutual TLS, each CONNECT stream of which is a connection to one of the
//! workload's ports (RFC 9113 section 8.5).

use crate::{
    Error, Request, Response,
    codec::{self, ExtendedConnect, Service},
    connection::Fresh,
    error::{Kind, Side},
    inbound::{LiveInbound, Proven, Way, prove},
    io::Io,
    reply,
    table::ListenerTable,
    telemetry::{Record, Refused, Security},
};
use bytes::Bytes;
use http::{Method, StatusCode};
use selvedge_compile::snapshot::{Http2Options, HttpOptions, alpn};
use selvedge_wire::host;
use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

/// What holds for HBONE connections. Many tunnels share one; their windows are those of the connections that they stand
/// for, and a member of the mesh gets more of them than a stranger at the edge.
static OPTIONS: LazyLock<HttpOptions> = LazyLock::new(|| HttpOptions {
    http2: Http2Options {
        max_concurrent_streams: 1000,
        initial_stream_window: 256 * 1024,
        initial_connection_window: 4 * 1024 * 1024,
        max_pending_resets: 100,
        // Whoever is at the other end may be gone without a word.
        keepalive_interval: Duration::from_secs(30),
        ..Http2Options::default()
    },
    ..HttpOptions::default()
});

/// Serves an HBONE connection.
pub(crate) async fn serve(fresh: Fresh, read: Bytes, peer: SocketAddr, local: SocketAddr) -> Result<(), Error> {
    let table = fresh.table.clone();
    let Some(live) = table.inbound() else { return Ok(()) };
    let (mut io, way) = fresh.arrived(peer, local);
    io.unread(read);
    let (io, proven) = prove(&way, live, io, alpn::HBONE).await?;
    live.metrics.secured(way.worker, Security::MutualTls);
    let drain = way.drain.clone();
    codec::h2::serve(io, Arc::new(Tunnels { way, proven }), &OPTIONS, drain).await
}

/// The tunnels of one connection.
struct Tunnels {
    way: Way,
    proven: Proven,
}

impl Service for Tunnels {
    async fn call(&self, request: Request) -> Response {
        let table = self.way.listener.table();
        let Some(live) = table.inbound() else {
            return reply::from_status(StatusCode::SERVICE_UNAVAILABLE, "no workload is served here any more", false);
        };
        match self.target(&request, &table, live) {
            Ok(to) => self.tunnel(&request, table.clone(), live, to).await,
            Err(error) => {
                let conn = self.way.conn(Some(&self.proven));
                let mut record = Record::start(conn.facts.clone(), &request);
                record.listener(&live.handle, request.headers());
                record.failed(&error);
                record.respond(reply::from_error(&error, false))
            }
        }
    }

    fn rejected(&self, status: StatusCode, error: &Error) {
        Record::rejected(self.way.conn(Some(&self.proven)).facts, status, error);
    }
}

impl Tunnels {
    /// Where a tunnel shall go: to an address of the workload and nowhere else, for we are no way into its network.
    fn target(&self, request: &Request, table: &ListenerTable, live: &LiveInbound) -> Result<SocketAddr, Error> {
        let refused = |reason, status, message: String| {
            live.metrics.refused(self.way.worker, reason);
            Error::new(Kind::Protocol { status }, Side::Downstream, message)
        };
        if *request.method() != Method::CONNECT || request.extensions().get::<ExtendedConnect>().is_some() {
            return Err(refused(Refused::TunnelTarget, 405, "only CONNECT is taken here (HBONE)".to_owned()));
        }
        let authority = request.uri().authority().map_or("", |authority| authority.as_str());
        let parsed = host::parse(authority.as_bytes()).ok();
        let Some((ip, port)) = parsed.and_then(|authority| authority.ip.zip(authority.port)) else {
            let message = format!("the authority of the CONNECT, {authority:?}, is no IP address with a port");
            return Err(refused(Refused::TunnelTarget, 400, message));
        };
        let to = SocketAddr::new(ip.to_canonical(), port);
        if !live.config.addresses.contains(&to.ip()) {
            let message = format!("{} is no address of this workload", to.ip());
            return Err(refused(Refused::TunnelTarget, 400, message));
        }
        if self.way.shared.own.is_loop(table.config.bind.netns, to) {
            return Err(refused(Refused::Loop, 400, format!("{to} is a port of the proxy itself")));
        }
        Ok(to)
    }

    /// A connection to one port of the workload. Its records are those of what is inside.
    async fn tunnel(
        &self,
        request: &Request,
        table: Arc<ListenerTable>,
        live: &LiveInbound,
        to: SocketAddr,
    ) -> Response {
        let port = live.port(to.port()).clone();
        let deadline = tokio::time::Instant::now() + table.config.options.handshake_timeout;
        let way = Way { to, table, deadline, drain: self.way.listener.drainer.subscribe(), ..self.way.clone() };
        tracing::trace!(peer = %self.proven.peer.id, %to, headers = request.headers().len(), "tunnel");
        match way.visit(Io::nothing(), port, Some(&self.proven)).accept().await {
            Ok(response) => response,
            Err(error) => reply::from_error(&error, false),
        }
    }
}
