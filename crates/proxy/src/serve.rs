//! The life of a request: understood, routed, filtered, sent, answered, recorded.

use crate::{
    Body, Request, Response,
    access::{self, KeptRequest, Live, Proven},
    auth,
    codec::Informational,
    connection::Conn,
    error::{Error, Kind, Side},
    filters::{self, Chain, Facts, Injected},
    forward, outbound, reply,
    request::{self, Target},
    scope::Scope,
    table::{ListenerTable, LiveHttp},
    telemetry::{Flags, Limit, Record},
    upstream,
};
use http::{
    HeaderValue, StatusCode,
    header::{LOCATION, SERVER},
    uri::PathAndQuery,
};
use http_body::Body as _;
use selvedge_compile::{
    router::{Lookup, Matched, Pattern},
    snapshot::{Access, Action, HttpOptions, Rule},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// One request with all that its steps share. The table is loaded once and never re-read.
pub struct Exchange<'a> {
    pub conn: &'a Conn,
    pub table: &'a Arc<ListenerTable>,
    pub http: &'a Arc<LiveHttp>,
    pub rule: &'a Arc<Rule>,
    pub target: &'a Target,
    pub facts: Facts<'a>,
    pub client: std::net::IpAddr,
    pub grpc: bool,
    /// When the whole request, answer included, must be done.
    pub deadline: Option<Instant>,
    /// The client has set that deadline (`grpc-timeout`): no endpoint is to blame for missing it.
    pub hurried: bool,
    pub stream_idle: Duration,
    pub informational: Option<Informational>,
    /// To be judged again when policies change.
    pub live: Option<&'a Live>,
}

/// Answers a request. Errors become responses here and nowhere else.
pub async fn serve(conn: &Conn, request: &mut Request) -> Response {
    if conn.scope == Scope::Named {
        return Box::pin(forward::serve(conn, request)).await;
    }
    answer(conn, conn.listener.table(), request).await
}

/// Answers a request with what this table says.
pub async fn answer(conn: &Conn, table: Arc<ListenerTable>, request: &mut Request) -> Response {
    let mut record = Record::start(conn.facts.clone(), request);
    let grpc = selvedge_wire::grpc::is_grpc(request.headers());
    // Listeners of one socket agree on what is decided before the host is known.
    let any = table.any_http();
    let options = match &conn.scope {
        Scope::Hosts => None,
        scope => table.options(scope),
    };
    let understood = match (any.map(|http| &http.config.options), &options) {
        (_, Some(options)) | (Some(options), None) => request::check_scheme(request, conn, options)
            .and_then(|()| request::understand(request, conn.secure(), options)),
        (None, None) => request::understand(request, conn.secure(), &HttpOptions::default()),
    };
    let result = match understood {
        Ok(target) => route(conn, &table, &target, request, grpc, &mut record).await,
        Err(error) => Err(error),
    };
    let mut response = result.unwrap_or_else(|error| {
        record.failed(&error);
        reply::from_error(&error, grpc)
    });
    // Between workloads answers stay as they were given.
    let server_header = conn.scope == Scope::Hosts && any.is_none_or(|http| http.config.options.server_header);
    if server_header && !response.headers().contains_key(SERVER) {
        response.headers_mut().insert(SERVER, HeaderValue::from_static("selvedge"));
    }
    record.respond(response)
}

/// Finds listener and rule, and passes the request through the rule's filters and back.
async fn route(
    conn: &Conn,
    table: &Arc<ListenerTable>,
    target: &Target,
    request: &mut Request,
    grpc: bool,
    record: &mut Record,
) -> Result<Response, Error> {
    let own;
    let http = match &conn.scope {
        Scope::Hosts => table.http(&target.host),
        scope => {
            own = table.serving(scope, target);
            own.as_ref()
        }
    };
    let Some(http) = http else { return unserved(conn, table, target, request, grpc, record).await };
    record.listener(&http.handle, request.headers());
    if conn.tls.as_ref().is_some_and(|sni| *sni != http.config.name) {
        record.details("the host belongs to another listener than the server name (SNI)");
        return Ok(reply::from_status(
            StatusCode::MISDIRECTED_REQUEST,
            "this connection was made for another host",
            grpc,
        ));
    }
    if conn.shared.overload.shed_request() {
        return Err(Error::new(Kind::Shed, Side::Us, "memory is above its threshold").over(Limit::Memory));
    }
    let request::Sender { client, id } = request::sanitise(request, conn, &http.trust, http.config.options.forwarded)?;
    record.client(client);
    record.request_id(id);
    if target.redirect {
        return Ok(to_normal_form(request, grpc));
    }
    record.begin_trace(request.headers_mut());
    let access = access_of(conn, table, http);
    if let Some(auth) = access.and_then(|access| access.auth.as_deref()) {
        auth::strip(auth, request.headers_mut());
    }
    let uri = request.uri();
    let lookup = Lookup {
        host: &target.host,
        path: uri.path(),
        query: uri.query(),
        method: request.method(),
        headers: request.headers(),
    };
    let found = http.config.router.find(&lookup);
    let mut proven = Proven::default();
    if let Some(access) = access {
        let rule = found.as_ref().map(|found| found.rule);
        let access = rule.map_or(access.as_ref(), |rule| access::of_rule(access, rule));
        if let Some(auth) = &access.auth {
            proven.preflight = rule.is_some_and(|rule| filters::answers_preflight(&rule.filters, request));
            let proofs = (&conn.shared.proofs, conn.facts.worker);
            proven.proof = auth::request(auth, request, proven.preflight, proofs, &table.counts)?;
        }
        let what = (&*request, target.host.as_str(), &proven);
        if let Some(audited) = access::request(access, &conn.facts, client, what, &table.counts)? {
            record.details(audited);
        }
    }
    let Some(Matched { rule, entry }) = found else {
        record.flag(Flags::NO_ROUTE);
        record.details("no route matches");
        return Ok(reply::from_status(StatusCode::NOT_FOUND, "no route matches", grpc));
    };
    record.matched(&http.rules[entry.rule as usize]);
    let facts = Facts {
        scheme: conn.scheme(),
        host: &target.host,
        listener_port: match conn.scope {
            Scope::Hosts => table.config.bind.port,
            Scope::Named => target.port.unwrap_or(80),
            Scope::To(_) | Scope::Port(_) => conn.local.port(),
        },
        prefix: match &entry.path {
            Pattern::Prefix(prefix) => Some(prefix.len()),
            _ => None,
        },
    };
    let options = &http.config.options;
    let live = matches!(conn.scope, Scope::Hosts | Scope::Port(_)).then(|| {
        let at = access::At { shared: &conn.shared, listener: &conn.listener, facts: &conn.facts, table };
        let long = grpc || target.upgrade.is_some() || request.body().size_hint().exact().is_none();
        let kept = KeptRequest::new(request, &target.host, rule, access.map(Arc::as_ref), long, proven)
            .upgraded(target.upgrade.is_some());
        Live::request(&at, access, http, client, kept)
    });
    let timeout = timeout(rule, options.request_timeout, grpc, request);
    let exchange = Exchange {
        conn,
        table,
        http,
        rule,
        target,
        facts,
        client,
        grpc,
        deadline: timeout.and_then(|(timeout, _)| Instant::now().checked_add(timeout)),
        hurried: timeout.is_some_and(|(_, hurried)| hurried),
        stream_idle: rule.timeouts.stream_idle.unwrap_or(options.stream_idle_timeout),
        informational: request.extensions_mut().remove(),
        live: live.as_ref(),
    };
    if let (Some(limit), Some(informational)) = (rule.timeouts.stream_idle, &exchange.informational) {
        informational.set_stream_idle(limit);
    }
    let mut chain = Chain::default();
    if options.max_body_bytes > 0 {
        chain.body_limit = Some(options.max_body_bytes);
    }
    let result = tokio::select! {
        biased;
        result = act(&exchange, request, &mut chain, record) => result,
        denied = access::denied(live.clone()) => Err(denied),
    };
    match chain.fault {
        Some(Injected::Delay) => record.flag(Flags::DELAY_INJECTED),
        Some(Injected::Abort) => record.flag(Flags::FAULT_INJECTED),
        None => {}
    }
    let mut undelivered = false;
    let response = result.unwrap_or_else(|error| {
        undelivered = is_undelivered(conn, &error);
        record.failed(&error);
        reply::from_error(&error, grpc)
    });
    let mut response = chain.on_response(response);
    if undelivered {
        response.headers_mut().insert(&request::UNDELIVERED, HeaderValue::from_static("1"));
    }
    Ok(match live {
        Some(live) => live.watch(response),
        None => response,
    })
}

/// Whether the member of the mesh that called is told that the workload has not seen its request.
fn is_undelivered(conn: &Conn, error: &Error) -> bool {
    let member = matches!(&conn.scope, Scope::Port(arrived) if arrived.peer.is_some());
    member && error.side == Side::Upstream && matches!(error.kind, Kind::Connect | Kind::ConnectTimeout)
}

/// Who may send requests to a listener. Workloads are guarded as a whole, at whichever port; what leaves them is judged
/// where it arrives.
fn access_of<'t>(conn: &Conn, table: &'t ListenerTable, http: &'t LiveHttp) -> Option<&'t Arc<Access>> {
    match conn.scope {
        Scope::Port(_) => table.inbound().map(|live| &live.config.access),
        _ => http.config.access.as_ref(),
    }
}

/// No listener is there for a request.
async fn unserved(
    conn: &Conn,
    table: &Arc<ListenerTable>,
    target: &Target,
    request: &mut Request,
    grpc: bool,
    record: &mut Record,
) -> Result<Response, Error> {
    if let Some(live) = table.outbound() {
        record.listener(&live.handle, request.headers());
        let Scope::To(key) = &conn.scope else {
            return Box::pin(forward::pass_request(conn, table, live, target.key(), request, record)).await;
        };
        // It was known when the connection came, and is no more: as if the connection came now.
        let shared = &conn.shared;
        let found = outbound::acquaint(&conn.listener, &shared.questions, shared.discover.as_ref(), conn.worker, key);
        let newest = found.await;
        if newest.serving(&conn.scope, target).is_some() {
            return Box::pin(route(conn, &newest, target, request, grpc, record)).await;
        }
        return Box::pin(forward::pass_request(conn, table, live, key.clone(), request, record)).await;
    }
    record.flag(Flags::NO_ROUTE);
    record.details("no listener for this host");
    Ok(reply::from_status(StatusCode::NOT_FOUND, "no listener serves this host", grpc))
}

async fn act<'e>(
    exchange: &'e Exchange<'e>,
    request: &mut Request,
    chain: &mut Chain<'e>,
    record: &mut Record,
) -> Result<Response, Error> {
    if let Err(answer) = chain.on_request(&exchange.rule.filters, &exchange.facts, request).await {
        return Ok(answer);
    }
    match &exchange.rule.action {
        Action::Forward(split) => upstream::send(exchange, split, request, chain, record).await,
        Action::Fixed { status, reason } => {
            record.flag(Flags::NO_CLUSTER);
            record.details(reason.clone());
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Ok(reply::from_status(status, "this route has no valid backend", exchange.grpc))
        }
    }
}

/// The shorter of the rule's timeout (or the listener's) and what a gRPC client asked for, and whether it is the client's.
fn timeout(rule: &Rule, listener: Duration, grpc: bool, request: &Request) -> Option<(Duration, bool)> {
    let configured = rule.timeouts.request.or(Some(listener)).filter(|d| !d.is_zero());
    let asked = if grpc { selvedge_wire::grpc::timeout(request.headers()) } else { None };
    match (configured, asked) {
        (Some(ours), Some(theirs)) if theirs < ours => Some((theirs, true)),
        (Some(ours), _) => Some((ours, false)),
        (None, theirs) => theirs.map(|timeout| (timeout, true)),
    }
}

/// Escaped slashes were decoded: the client is told the path that was judged, so that nothing in front of us or
/// behind us reads it differently. gRPC clients follow no redirects.
fn to_normal_form(request: &Request, grpc: bool) -> Response {
    let path = request.uri().path_and_query().map(PathAndQuery::as_str);
    // What begins with two slashes would send the client to another host.
    let location = path.filter(|path| !path.starts_with("//")).and_then(|path| HeaderValue::from_str(path).ok());
    match location {
        Some(location) if !grpc => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            response.headers_mut().insert(LOCATION, location);
            response
        }
        _ => reply::from_status(StatusCode::BAD_REQUEST, "the path has escaped slashes", grpc),
    }
}
