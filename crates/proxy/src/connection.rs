//! A connection from accept to its protocol: PROXY header, TLS, then HTTP or bytes.

use crate::{
    Error, Request, Response,
    access::{At, Live},
    codec::{self, Service},
    drain::{Drain, Drainer},
    error::Kind,
    inbound,
    io::Io,
    l4,
    listener::OpenListener,
    outbound,
    proxy::Shared,
    scope::Scope,
    serve, sniff,
    table::{ListenerTable, LiveProtocol},
    telemetry::{ConnectionFacts, Handshake, Limit, ListenerHandle, Record, Rejected, TlsFacts},
    tls::{Accepted, AppProtocol, Session},
    worker::WorkerId,
};
use bytes::Bytes;
use http::StatusCode;
use selvedge_compile::snapshot::{HttpOptions, ListenerName, TlsListener, TlsMode};
use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{net::TcpStream, time::Instant};

/// What the requests of one connection share.
pub struct Conn {
    pub shared: Arc<Shared>,
    pub worker: WorkerId,
    pub listener: Arc<OpenListener>,
    /// The client, or whoever the PROXY header says the client is.
    pub peer: SocketAddr,
    /// The address the client connected to.
    pub local: SocketAddr,
    pub facts: Arc<ConnectionFacts>,
    /// The listener that SNI picked; requests for a host of another one are misdirected.
    pub tls: Option<ListenerName>,
    /// How the listener of a request is found.
    pub scope: Scope,
}

impl Conn {
    pub fn secure(&self) -> bool {
        self.tls.is_some()
    }

    pub fn scheme(&self) -> &'static str {
        if self.secure() { "https" } else { "http" }
    }
}

impl Service for Conn {
    #[allow(clippy::manual_async_fn, reason = "an `async fn` holds its arguments twice")]
    fn call(&self, mut request: Request) -> impl Future<Output = Response> + Send {
        // The request stays where it is until it goes upstream: each step that took it would hold it once more.
        async move { serve::serve(self, &mut request).await }
    }

    fn rejected(&self, status: StatusCode, error: &Error) {
        Record::rejected(self.facts.clone(), Some(status), error);
    }

    fn lost(&self, error: &Error) {
        Record::rejected(self.facts.clone(), None, error);
    }
}

/// Counts a connection on its listener.
struct Active<'a>(&'a AtomicUsize);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// An accepted connection before its protocol is known.
pub(crate) struct Fresh {
    pub tcp: TcpStream,
    pub shared: Arc<Shared>,
    pub worker: WorkerId,
    pub listener: Arc<OpenListener>,
    pub table: Arc<ListenerTable>,
    pub drain: Drain,
    pub direct: SocketAddr,
    pub deadline: Instant,
}

/// Serves one accepted TCP connection until it ends.
pub async fn run(
    tcp: TcpStream,
    direct: SocketAddr,
    listener: Arc<OpenListener>,
    shared: Arc<Shared>,
    worker: WorkerId,
    drain: Drain,
) {
    let table = listener.table();
    let open = listener.active.fetch_add(1, Relaxed);
    let counted = listener.clone();
    let _active = Active(&counted.active);
    let _open = table.socket.opened(worker);
    let options = &table.config.options;
    if open >= options.max_connections as usize {
        listener.refused.fetch_add(1, Relaxed);
        table.socket.rejected(worker, Rejected::ListenerLimit);
        Limit::ListenerConnections.hit();
        tracing::debug!(listener = %listener.bind, "connection refused: max_connections is reached");
        return;
    }
    // Small responses must not wait for an acknowledgement (Nagle).
    let _ = tcp.set_nodelay(true);
    let deadline = Instant::now() + options.handshake_timeout;
    let fresh = Fresh { tcp, shared, worker, listener, table, drain, direct, deadline };
    let way = Box::pin(fresh.open()).await;
    let ended = match way {
        Ok(way) => way.await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(listener = %counted.bind, peer = %direct, %error, "connection ended");
    }
}

/// A connection whose protocol is known, until it ends. Boxed, so that it takes the memory of the way it goes and not of
/// the largest, and none of what it took to find out.
type Way = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

fn way(io: Io, http2: bool, conn: Conn, options: Arc<HttpOptions>, drain: Drain) -> Way {
    let conn = Arc::new(conn);
    let age = options.max_connection_age;
    if !age.is_zero() {
        let serve = move |drain| async move { spoken(io, http2, conn, &options, drain).await };
        return Box::pin(until_old(age, drain, serve));
    }
    Box::pin(async move { spoken(io, http2, conn, &options, drain).await })
}

impl Fresh {
    async fn open(mut self) -> Result<Way, Error> {
        let mode = self.table.config.options.proxy_protocol;
        let proxied = sniff::proxy_header(&mut self.tcp, mode, self.deadline).await?;
        let local = self.tcp.local_addr().unwrap_or(self.listener.local);
        let (peer, local) = proxied.addresses.unwrap_or((self.direct, local));
        let peer = canonical(peer);
        let read = proxied.read;
        let options = match &self.table.protocol {
            LiveProtocol::Http(_) => self.table.any_http().map(|live| live.config.options.clone()),
            _ => None,
        };
        let Some(options) = options else { return Ok(Box::pin(self.serve(peer, local, read))) };
        let mut io = Io::from(self.tcp);
        io.unread(read);
        let (io, http2) = sniff::http_version(io, self.deadline).await?;
        // Refused before their host is known, requests are recorded as those of the listener that is most general.
        let handle = self.table.any_http().map_or_else(|| self.table.nowhere.clone(), |http| http.handle.clone());
        let facts = facts(self.worker, local, self.direct, peer, None, handle).into();
        let conn = Conn {
            shared: self.shared,
            worker: self.worker,
            listener: self.listener,
            peer,
            local,
            facts,
            tls: None,
            scope: Scope::Hosts,
        };
        Ok(way(io, http2 && options.http2_enabled, conn, options, self.drain))
    }

    /// Everything but HTTP in the clear.
    async fn serve(self, peer: SocketAddr, local: SocketAddr, read: Bytes) -> Result<(), Error> {
        match &self.table.protocol {
            LiveProtocol::Tls { .. } => Box::pin(self.tls(peer, local, read)).await,
            LiveProtocol::Tcp(listener) => {
                let mut io = Io::from(self.tcp);
                io.unread(read);
                let handle = self.table.streams.clone().unwrap_or_else(|| self.table.nowhere.clone());
                let facts = Arc::new(facts(self.worker, local, self.direct, peer, None, handle.clone()));
                let metrics = self.table.stream_route.clone();
                let options = listener.options.clone();
                let at = At { shared: &self.shared, listener: &self.listener, facts: &facts, table: &self.table };
                let live = Some(Live::stream(&at, &options, options.access.clone()));
                let (worker, drain) = (self.worker, self.drain);
                let stream = l4::Stream { io, worker, facts, handle, metrics, options, drain, live };
                Box::pin(l4::serve(stream, listener.route.as_deref(), &self.table.clusters)).await;
                Ok(())
            }
            LiveProtocol::Outbound(_) => Box::pin(outbound::serve(self, read, peer, canonical(local))).await,
            LiveProtocol::Inbound(_) => Box::pin(inbound::serve(self, read, peer, canonical(local))).await,
            LiveProtocol::Http(_) | LiveProtocol::Udp(_) => Ok(()),
        }
    }

    async fn tls(self, peer: SocketAddr, local: SocketAddr, read: Bytes) -> Result<(), Error> {
        let table = self.table.clone();
        let LiveProtocol::Tls { acceptor, .. } = &table.protocol else { return Ok(()) };
        let accepted = Box::pin(acceptor.accept(self.tcp, read, self.deadline)).await;
        let socket = &table.socket;
        let place = (&self.shared, &self.listener, &table);
        match accepted {
            Ok(Accepted::Terminated { io, listener, session }) => {
                let kind = if session.resumed { Handshake::Resumed } else { Handshake::Full };
                socket.handshake(self.worker, session.version.trim_start_matches("TLSv"), kind);
                let tls = tls_facts(&session);
                match &listener.mode {
                    TlsMode::Http { .. } => {
                        let http2 = session.alpn == Some(AppProtocol::Http2);
                        let live = table.by_name(&listener.name);
                        let handle = live.map_or_else(|| table.nowhere.clone(), |l| l.handle.clone());
                        let Some(live) = live.or_else(|| table.any_http()) else { return Ok(()) };
                        let options = live.config.options.clone();
                        let facts = facts(self.worker, local, self.direct, peer, Some(tls), handle).into();
                        let name = Some(listener.name.clone());
                        let conn = Conn {
                            shared: self.shared,
                            worker: self.worker,
                            listener: self.listener,
                            peer,
                            local,
                            facts,
                            tls: name,
                            scope: Scope::Hosts,
                        };
                        http(Io::from(*io), http2, conn, &options, self.drain).await
                    }
                    _ => {
                        let stream = (Io::from(*io), tls, session.sni);
                        l4_tls(stream, &listener, place, (self.worker, local, self.direct, peer), self.drain).await;
                        Ok(())
                    }
                }
            }
            Ok(Accepted::Passthrough { io, listener, sni }) => {
                let tls = TlsFacts { sni: sni.clone().map(String::into_boxed_str), ..TlsFacts::default() };
                l4_tls((io, tls, sni), &listener, place, (self.worker, local, self.direct, peer), self.drain).await;
                Ok(())
            }
            Err(error) => {
                let kind = if error.kind == Kind::Timeout { Handshake::Timeout } else { Handshake::Protocol };
                socket.handshake(self.worker, "", kind);
                Err(error)
            }
        }
    }
}

/// A socket for both families knows IPv4 addresses under mapped ones.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A TLS route: by SNI among the routes of the listener that SNI picked.
async fn l4_tls(
    (io, tls, sni): (Io, TlsFacts, Option<String>),
    listener: &TlsListener,
    (shared, open, table): (&Arc<Shared>, &Arc<OpenListener>, &Arc<ListenerTable>),
    (worker, local, direct, peer): (WorkerId, SocketAddr, SocketAddr, SocketAddr),
    drain: Drain,
) {
    let (TlsMode::Tcp { routes, listener: options, .. } | TlsMode::Passthrough { routes, listener: options }) =
        &listener.mode
    else {
        return;
    };
    let route = routes.find(sni.as_deref().unwrap_or(""));
    let handle = table.stream_handle(&listener.name);
    let facts = Arc::new(facts(worker, local, direct, peer, Some(tls), handle.clone()));
    let live =
        Some(Live::stream(&At { shared, listener: open, facts: &facts, table }, options, options.access.clone()));
    let metrics = route.and_then(|route| table.stream_metrics(&listener.name, &route.name));
    let stream = l4::Stream { io, worker, facts, handle, metrics, options: options.clone(), drain, live };
    Box::pin(l4::serve(stream, route.map(Arc::as_ref), &table.clusters)).await;
}

pub(crate) fn facts(
    worker: WorkerId,
    local: SocketAddr,
    direct: SocketAddr,
    client: SocketAddr,
    tls: Option<TlsFacts>,
    listener: Arc<ListenerHandle>,
) -> ConnectionFacts {
    let (local, direct) = (canonical(local), canonical(direct));
    ConnectionFacts { worker, local, peer: direct, client, tls, source: None, destination: None, listener }
}

pub(crate) fn tls_facts(session: &Session) -> TlsFacts {
    let verified = session.peer.as_ref().filter(|p| p.verified);
    TlsFacts {
        version: session.version.trim_start_matches("TLSv"),
        cipher: session.cipher,
        sni: session.sni.clone().map(String::into_boxed_str),
        peer_subject: verified.map(|p| p.subject.clone().into_boxed_str()),
        peer_identity: verified.and_then(|p| p.uris.first()).map(|u| u.clone().into_boxed_str()),
        // Who calls whom in the mesh is told in other words, by who is beside the called.
        forwarded_client_cert: verified.filter(|_| session.identity.is_none()).and_then(|p| p.forwarded()),
        identity: session.identity.clone(),
    }
}

/// Serves the requests of a connection. `options` are those of the connection; its requests may come to other listeners.
pub(crate) async fn http(io: Io, http2: bool, conn: Conn, options: &HttpOptions, drain: Drain) -> Result<(), Error> {
    let conn = Arc::new(conn);
    let age = options.max_connection_age;
    if !age.is_zero() {
        return Box::pin(until_old(age, drain, |drain| spoken(io, http2, conn, options, drain))).await;
    }
    spoken(io, http2, conn, options, drain).await
}

/// The same, told to finish when `over` comes back.
pub(crate) async fn http_until(
    over: impl Future<Output = ()>,
    io: Io,
    http2: bool,
    conn: Conn,
    options: &HttpOptions,
    mut drain: Drain,
) -> Result<(), Error> {
    let own = Drainer::default();
    let mut serving = std::pin::pin!(http(io, http2, conn, options, own.subscribe()));
    tokio::select! {
        result = &mut serving => return result,
        () = drain.draining() => {}
        () = over => {}
    }
    own.start();
    serving.await
}

/// Serves a connection that is told to finish when it is `age` old, or when `drain` says so.
async fn until_old<F>(age: Duration, mut drain: Drain, serve: impl FnOnce(Drain) -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let own = Drainer::default();
    let mut serving = std::pin::pin!(serve(own.subscribe()));
    tokio::select! {
        result = &mut serving => return result,
        () = drain.draining() => {}
        () = tokio::time::sleep(age) => Limit::ConnectionAge.hit(),
    }
    own.start();
    serving.await
}

async fn spoken(io: Io, http2: bool, conn: Arc<Conn>, options: &HttpOptions, drain: Drain) -> Result<(), Error> {
    // Boxed, so that the state of the one does not make the other's idle connections larger.
    if http2 {
        Box::pin(codec::h2::serve(io, conn, options, drain)).await
    } else {
        Box::pin(codec::h1::serve(io, conn, options, drain)).await
    }
}
