//! A workload that uses us as its HTTP proxy: requests in absolute form, and CONNECT for everything else
//! (RFC 9110 sections 7.1 and 9.3.6, RFC 9112 section 3.2.2).

use crate::{
    Body, Error, Request, Response,
    access::{self, At, Live},
    codec::{
        ExtendedConnect,
        h1::{self, ClientOptions},
    },
    connection::Conn,
    drain::Drain,
    error::{Kind, Side},
    io::Io,
    outbound::{self, LiveOutbound},
    passage,
    port::{LivePort, Site, Visit},
    reply, request,
    scope::{Key, Scope},
    serve,
    table::ListenerTable,
    telemetry::{Flags, Record, Refused},
    tunnel,
};
use http::{Method, StatusCode, header::HOST};
use selvedge_compile::snapshot::Unknown;
use selvedge_wire::host;
use std::{net::SocketAddr, sync::Arc};
use tokio::time::Instant;

/// Answers a request to the proxy.
pub async fn serve(conn: &Conn, request: &mut Request) -> Response {
    let connect = *request.method() == Method::CONNECT && request.extensions().get::<ExtendedConnect>().is_none();
    let key = match destination(request, connect) {
        Ok(key) => key,
        Err(error) => return refuse(conn, request, &error),
    };
    let shared = &conn.shared;
    let found = outbound::acquaint(&conn.listener, &shared.questions, shared.discover.as_ref(), conn.worker, &key);
    let table = found.await;
    if connect {
        return tunnelled(conn, &table, request, key).await;
    }
    // RFC 9112 section 3.2.2: what the target says replaces the Host field.
    if request.uri().authority().is_some() {
        request.headers_mut().remove(HOST);
    }
    serve::answer(conn, table, request).await
}

/// What a request asks for.
fn destination(request: &Request, connect: bool) -> Result<Key, Error> {
    const WANTED: &str = "this is an HTTP proxy for the workload: it takes requests in absolute form \
        (GET http://host/path) and CONNECT host:port; was it called as if it were the server itself?";
    let uri = request.uri();
    let (Some(authority), true) = (uri.authority(), connect || uri.scheme_str() != Some("https")) else {
        let https = uri.scheme_str() == Some("https");
        let message = if https { "https through a proxy needs CONNECT host:port" } else { WANTED };
        return Err(Error::bad_request(400, message));
    };
    let authority = host::parse(authority.as_str().as_bytes()).map_err(|e| Error::bad_request(400, e.to_string()))?;
    match (authority.port, connect) {
        (None, true) => Err(Error::bad_request(400, "the target of CONNECT needs a port: CONNECT host:port")),
        (port, _) => Ok(Key::host(&authority.host, port.unwrap_or(80))),
    }
}

fn refuse(conn: &Conn, request: &Request, error: &Error) -> Response {
    let mut record = Record::start(conn.facts.clone(), request);
    if let Some(live) = conn.listener.table().outbound() {
        live.metrics.refused(conn.worker, Refused::Form);
        record.listener(&live.handle, request.headers());
    }
    record.failed(error);
    record.respond(reply::from_error(error, false))
}

/// CONNECT: what is inside is served as a connection to the destination would be.
async fn tunnelled(conn: &Conn, table: &Arc<ListenerTable>, request: &mut Request, key: Key) -> Response {
    let mut record = Record::start(conn.facts.clone(), request);
    let Some(live) = table.outbound() else { return record.respond(reply::from_error(&gone(), false)) };
    record.listener(&live.handle, request.headers());
    let result = match live.find(&key) {
        Some(port) if port.is_passed() => pass_bytes(conn, table, live, &key, &mut record).await,
        Some(port) => known(conn, table, port, key).await,
        None if live.config.unknown == Unknown::Refuse => Err(unknown(conn, live, &key)),
        None => pass_bytes(conn, table, live, &key, &mut record).await,
    };
    match result {
        Ok(Accepted::Known(response)) => {
            // What is inside has records of its own.
            record.withdraw();
            response
        }
        Ok(Accepted::Passed(response)) => record.respond(response),
        Err(error) => {
            record.failed(&error);
            record.respond(reply::from_error(&error, false))
        }
    }
}

enum Accepted {
    Known(Response),
    Passed(Response),
}

fn gone() -> Error {
    Error::new(Kind::Internal, Side::Us, "the listener serves workloads no more")
}

/// Counts that a destination is refused, and says why.
pub fn unknown(conn: &Conn, live: &LiveOutbound, key: &Key) -> Error {
    live.metrics.refused(conn.worker, Refused::UnknownDestination);
    let message = format!(
        "nothing is known of {key}, and only known destinations are allowed (egress RegistryOnly): declare an ExternalService for it"
    );
    Error::new(Kind::Protocol { status: 502 }, Side::Downstream, message)
}

async fn known(conn: &Conn, table: &Arc<ListenerTable>, port: Arc<LivePort>, key: Key) -> Result<Accepted, Error> {
    let local = match &key {
        Key::Address(ip, port) => SocketAddr::new(*ip, *port),
        Key::Name(_, port) => SocketAddr::new(conn.local.ip(), *port),
        Key::Fixed => conn.local,
    };
    let mut facts = crate::telemetry::ConnectionFacts::clone(&conn.facts);
    facts.local = local;
    let inner = Conn {
        shared: conn.shared.clone(),
        worker: conn.worker,
        listener: conn.listener.clone(),
        peer: conn.peer,
        local,
        facts: facts.into(),
        tls: None,
        scope: Scope::To(key),
    };
    let deadline = Instant::now() + table.config.options.handshake_timeout;
    let drain = conn.listener.drainer.subscribe();
    let site = Site { conn: inner, table: table.clone(), port, direct: None };
    Visit { io: Io::nothing(), site, drain, deadline }
        .accept()
        .await
        .map(|run| Accepted::Known(Response::new(Body::tunnel(run))))
}

/// A tunnel to where nothing is known of.
async fn pass_bytes(
    conn: &Conn,
    table: &Arc<ListenerTable>,
    live: &LiveOutbound,
    key: &Key,
    record: &mut Record,
) -> Result<Accepted, Error> {
    if live.destination(key).is_none() {
        live.metrics.passed(conn.worker);
    }
    let upstream = open(conn, table, key).await?;
    record.connected();
    let progress = record.progress().clone();
    let idle = live.config.streams.idle_timeout;
    let drain: Drain = conn.listener.drainer.subscribe();
    let at = At { shared: &conn.shared, listener: &conn.listener, facts: &conn.facts, table };
    let live = Live::passed(&at, key.clone());
    let run = move |client| async move {
        tunnel::copy_until(client, upstream, idle, &progress, drain, access::denied(Some(live))).await;
    };
    Ok(Accepted::Passed(Response::new(Body::tunnel(run))))
}

async fn open(conn: &Conn, table: &ListenerTable, key: &Key) -> Result<Io, Error> {
    let netns = table.config.bind.netns;
    let tcp = match key {
        Key::Address(ip, port) => passage::connect(&conn.shared, netns, SocketAddr::new(*ip, *port)).await?,
        Key::Name(name, port) => passage::open_host(&conn.shared, netns, name, *port).await?,
        Key::Fixed => return Err(gone()),
    };
    Ok(tcp.into())
}

/// A request to where nothing is known of, on a connection of its own, if that is allowed.
pub async fn pass_request(
    conn: &Conn,
    table: &ListenerTable,
    live: &LiveOutbound,
    key: Key,
    request: &mut Request,
    record: &mut Record,
) -> Result<Response, Error> {
    let passed = live.find(&key).is_some_and(|port| port.is_passed());
    if live.config.unknown == Unknown::Refuse && !passed {
        record.flag(Flags::NO_ROUTE);
        return Err(unknown(conn, live, &key));
    }
    if !passed {
        live.metrics.passed(conn.worker);
    }
    request::sanitise(request, conn, &selvedge_wire::forwarded::Trust::Nobody, None)?;
    *request.body_mut() = record.count_request(std::mem::take(request.body_mut()));
    let connection = h1::Connection::new(open(conn, table, &key).await?, Arc::new(Nowhere));
    record.connected();
    let mut response =
        connection.send(std::mem::take(request), &ClientOptions::default()).await.map_err(|failed| failed.error)?;
    record.first_byte();
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::upstream(Kind::Protocol { status: 502 }, "the server changed the protocol unasked"));
    }
    request::sanitise_response(&mut response);
    Ok(response)
}

/// Connections to unknown destinations are not kept.
struct Nowhere;

impl h1::Home for Nowhere {
    fn give_back(&self, connection: h1::Connection) {
        drop(connection);
    }
}
