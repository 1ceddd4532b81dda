//! Enforcing AccessPolicies: each connection and request when it begins, and again while it lives when policies change.

use crate::{
    Body, Error, Response,
    error::{Kind, Side},
    jwt::{Proof, Reason},
    listener::OpenListener,
    proxy::Shared,
    scope::Key,
    table::{ListenerTable, LiveHttp},
    telemetry::{AccessCounts, ConnectionFacts, Refused},
    worker::{WorkerCount, WorkerId},
};
use bytes::Bytes;
use http::{HeaderMap, Method, uri::PathAndQuery};
use http_body::{Body as HttpBody, Frame, SizeHint};
use selvedge_compile::{
    access::{Asked, By, Layer7, Subject, Verdict},
    snapshot::{Access, Bind, L4Options, ListenerName, MtlsMode, Protocol, Rule, Snapshot, TlsMode, Unknown},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

/// Tells what is in progress that policies have changed.
pub struct Watch {
    /// Grows with each snapshot, after tables have been swapped.
    epoch: AtomicU64,
    /// One for each worker, so that nobody waits for another's.
    waiting: Box<[Notify]>,
    /// What held where, after the last change.
    places: Mutex<Places>,
    /// Told of each change, for whoever watches a connection as a whole.
    changes: watch::Sender<u64>,
}

/// What is judged by, but for tables.
#[derive(Default, PartialEq)]
struct Places {
    access: BTreeMap<(Bind, ListenerName), Arc<Access>>,
    /// Ports of workloads that demand mutual TLS; `None` is any other port.
    strict: BTreeSet<(Bind, ListenerName, Option<u16>)>,
    /// Outbound listeners that refuse unknown destinations.
    closed: BTreeSet<(Bind, ListenerName)>,
}

impl Watch {
    pub fn new(workers: WorkerCount) -> Self {
        let waiting = (0..workers.0.max(1)).map(|_| Notify::new()).collect();
        Self { epoch: AtomicU64::new(0), waiting, places: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// The epoch of the tables that are made next.
    pub fn next(&self) -> u64 {
        self.epoch.load(SeqCst) + 1
    }

    /// To be called when the tables of an epoch are in their places.
    pub fn installed(&self, epoch: u64, snapshot: &Snapshot, counts: &AccessCounts) {
        let now = places(snapshot);
        self.epoch.store(epoch, SeqCst);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if *places == now {
            return;
        }
        let all = now.access.values().flat_map(|access| std::iter::once(access).chain(access.routes.values()));
        let all: Vec<&Arc<Access>> = all.collect();
        counts.set(all.iter().flat_map(|access| &access.policies).map(|policy| policy.name.as_str()).collect());
        counts.set_auth(all.iter().filter_map(|access| Some(access.auth.as_ref()?.name.as_str())).collect());
        *places = now;
        drop(places);
        self.waiting.iter().for_each(Notify::notify_waiters);
        self.changes.send_replace(epoch);
    }

    fn of(&self, worker: WorkerId) -> &Notify {
        &self.waiting[worker.0 % self.waiting.len()]
    }
}

fn places(snapshot: &Snapshot) -> Places {
    let mut places = Places::default();
    for listener in &snapshot.listeners {
        match &listener.protocol {
            Protocol::Inbound(inbound) => {
                let ports = inbound.ports.iter().map(|(number, port)| (Some(*number), port));
                let strict = ports.chain([(None, &inbound.other)]).filter(|(_, port)| port.mtls == MtlsMode::Strict);
                places.strict.extend(strict.map(|(number, _)| (listener.bind, inbound.name.clone(), number)));
            }
            Protocol::Outbound(outbound) if outbound.unknown == Unknown::Refuse => {
                places.closed.insert((listener.bind, outbound.name.clone()));
            }
            _ => {}
        }
        let mut add = |name: &ListenerName, access: Option<&Arc<Access>>| {
            if let Some(access) = access {
                places.access.insert((listener.bind, name.clone()), access.clone());
            }
        };
        match &listener.protocol {
            Protocol::Http(hosts) => hosts.values().for_each(|http| add(&http.name, http.access.as_ref())),
            Protocol::Tls(hosts) => {
                for tls in hosts.values() {
                    let access = match &tls.mode {
                        TlsMode::Http { http, .. } => http.access.as_ref(),
                        TlsMode::Tcp { listener, .. } | TlsMode::Passthrough { listener, .. } => {
                            listener.access.as_ref()
                        }
                    };
                    add(&tls.name, access);
                }
            }
            Protocol::Tcp(l4) | Protocol::Udp(l4) => add(&l4.options.name, l4.options.access.as_ref()),
            Protocol::Inbound(inbound) => add(&inbound.name, Some(&inbound.access)),
            Protocol::Outbound(_) => {}
        }
    }
    places
}

/// What holds now for a listener of a socket; for an inbound one, whichever of its ports.
fn current(table: &ListenerTable, name: &ListenerName) -> Option<Arc<Access>> {
    match &table.config.protocol {
        Protocol::Http(hosts) => hosts.values().find(|http| http.name == *name)?.access.clone(),
        Protocol::Tls(hosts) => match &hosts.values().find(|tls| tls.name == *name)?.mode {
            TlsMode::Http { http, .. } => http.access.clone(),
            TlsMode::Tcp { listener, .. } | TlsMode::Passthrough { listener, .. } => listener.access.clone(),
        },
        Protocol::Tcp(l4) | Protocol::Udp(l4) => l4.options.access.clone(),
        Protocol::Inbound(inbound) => Some(inbound.access.clone()),
        Protocol::Outbound(_) => None,
    }
}

/// Judges a connection before anything is passed on. With `http`, requests will come and be judged each: only what none of
/// them could change is decided.
///
/// # Errors
/// It must be reset; the error says which rule wants that.
pub fn connection(access: &Access, facts: &ConnectionFacts, http: bool, counts: &AccessCounts) -> Result<(), Error> {
    let layer7 = if http { Layer7::Later } else { Layer7::Bytes };
    judge(access, &subject(access, facts, facts.client.ip(), layer7, None), counts).map(drop)
}

/// Whether a connection may be prepared for before it is known what it carries. Nothing is counted: it is judged later.
pub fn may_prepare(access: &Access, facts: &ConnectionFacts, http: bool) -> bool {
    let layer7 = if http { Layer7::Later } else { Layer7::Bytes };
    access.decide(&subject(access, facts, facts.client.ip(), layer7, None)).allowed
}

fn subject<'a>(
    access: &Access,
    facts: &'a ConnectionFacts,
    client: IpAddr,
    layer7: Layer7<'a>,
    proven: Option<&'a Proven>,
) -> Subject<'a> {
    let tls = facts.tls.as_ref();
    // Who is believed no more has said nothing.
    let proof = proven.and_then(|proven| proven.proof.as_ref());
    let believed = proof.filter(|proof| access.auth.as_ref().is_some_and(|auth| auth.believes(&proof.issuer)));
    Subject {
        identity: tls.and_then(|tls| tls.identity.as_ref()),
        mtls: tls.is_some_and(|tls| tls.identity.is_some() || tls.peer_subject.is_some()),
        peer: facts.peer.ip(),
        client,
        port: access.port.unwrap_or(facts.local.port()),
        claims: believed.map(|proof| &proof.claims),
        preflight: proven.is_some_and(|proven| proven.preflight),
        layer7,
    }
}

/// What a request has proven of who sends it.
#[derive(Clone, Default)]
pub struct Proven {
    pub proof: Option<Arc<Proof>>,
    /// It is a question of a browser that is answered here, and comes without a token.
    pub preflight: bool,
}

/// What holds for the requests that a rule takes.
pub fn of_rule<'a>(access: &'a Access, rule: &Rule) -> &'a Access {
    let name = &rule.name;
    if access.routes.is_empty() { access } else { access.of_route(name.kind, &name.namespace, &name.route) }
}

/// Judges a request in the form in which a backend is going to see it, by what holds for its rule. Yields what audit policies
/// have to say.
///
/// # Errors
/// It must not pass; the error says which rule wants that.
pub fn request<B>(
    access: &Access,
    facts: &ConnectionFacts,
    client: IpAddr,
    (request, host, proven): (&http::Request<B>, &str, &Proven),
    counts: &AccessCounts,
) -> Result<Option<String>, Error> {
    let (method, uri) = (request.method().as_str(), request.uri());
    let asked = Asked { method, host, path: uri.path(), query: uri.query(), headers: Some(request.headers()) };
    judge(access, &subject(access, facts, client, Layer7::Request(asked), Some(proven)), counts)
}

/// Decides and counts. What audit policies mark is told by name.
fn judge(access: &Access, subject: &Subject<'_>, counts: &AccessCounts) -> Result<Option<String>, Error> {
    let verdict = access.decide(subject);
    if !matches!(subject.layer7, Layer7::Later) {
        verdict.audited.iter().for_each(|policy| counts.audited(&policy.name));
        if verdict.default_audit() {
            counts.audited("default");
        }
    }
    if !verdict.allowed {
        match verdict.by {
            By::Unproven(auth) => {
                let bytes = matches!(subject.layer7, Layer7::Bytes);
                let reason = if bytes { Reason::NotHttp } else { Reason::Missing };
                counts.unproven(&auth.name, if auth.broken.is_some() { Reason::Broken } else { reason });
            }
            _ => counts.denied(verdict.policy()),
        }
        return Err(Error::new(Kind::Denied, Side::Us, format!("access {}", verdict.by)));
    }
    Ok(marks(&verdict))
}

fn marks(verdict: &Verdict<'_>) -> Option<String> {
    let mut names: Vec<&str> = verdict.audited.iter().map(|policy| policy.name.as_str()).collect();
    if verdict.default_audit() {
        names.push("default");
    }
    (!names.is_empty()).then(|| format!("access audited by {}", names.join(", ")))
}

/// A connection in clear text ends where mutual TLS is demanded by now.
fn still_clear(table: &ListenerTable, facts: &ConnectionFacts) -> Result<(), Error> {
    let Some(live) = table.inbound() else { return Ok(()) };
    if facts.source.is_some() || live.mtls(facts.local.port()) != MtlsMode::Strict {
        return Ok(());
    }
    live.metrics.refused(facts.worker, Refused::ClearText);
    let message = "the connection is in clear text, and this port demands mutual TLS by now (mtls mode Strict)";
    Err(Error::new(Kind::Denied, Side::Us, message))
}

/// A connection to where nothing is known of ends where only known destinations are allowed by now.
fn still_passed(table: &ListenerTable, to: &Key) -> Result<(), Error> {
    let Some(live) = table.outbound() else { return Ok(()) };
    if live.config.unknown == Unknown::Pass || live.destination(to).is_some() {
        return Ok(());
    }
    let message = "nothing is known of the destination, and only known destinations are allowed by now";
    Err(Error::new(Kind::Denied, Side::Us, message))
}

/// Comes back when a connection in clear text may be one no longer: then no request may follow the one in progress.
pub(crate) async fn until_strict(shared: &Shared, listener: &OpenListener, facts: &ConnectionFacts) {
    let mut changes = shared.access.changes.subscribe();
    loop {
        let strict = still_clear(&listener.table(), facts).is_err();
        if strict || changes.changed().await.is_err() {
            return;
        }
    }
}

/// Comes back when what is in progress is denied.
pub async fn denied(live: Option<Live>) -> Error {
    match live {
        Some(live) => live.revoked().await,
        None => std::future::pending().await,
    }
}

/// A connection or request in progress: who wants what, so that it can be judged again.
#[derive(Clone)]
pub struct Live {
    shared: Arc<Shared>,
    listener: Arc<OpenListener>,
    /// The epoch that it was last judged in.
    seen: u64,
    judged: Option<Arc<Access>>,
    kept: Arc<Kept>,
}

struct Kept {
    facts: Arc<ConnectionFacts>,
    place: Place,
    since: Instant,
    client: IpAddr,
    request: Option<KeptRequest>,
}

enum Place {
    Http(Arc<LiveHttp>),
    Stream(Arc<L4Options>),
    /// Passed on to where it was going, as nothing was known of it.
    Passed(Key),
}

/// What is kept of a request.
pub struct KeptRequest {
    method: Method,
    host: String,
    path: PathAndQuery,
    /// Not of every request, as a copy costs time.
    headers: Option<HeaderMap>,
    rule: Arc<Rule>,
    proven: Proven,
    /// What follows is no answer to be waited for, but a connection of its own.
    upgraded: bool,
}

/// A request whose headers were not kept, and that is younger than this, is let finish when policies begin to ask for them: it is likely
/// to be done soon. An older one is judged as if they said the worst.
const YOUNG: Duration = Duration::from_secs(5);

/// A response of known length up to this is on its way already; it is not worth to be watched.
const SMALL: u64 = 64 * 1024;

impl KeptRequest {
    /// `long`: the request is one that may live long, such as a WebSocket.
    pub fn new<B>(
        request: &http::Request<B>,
        host: &str,
        rule: &Arc<Rule>,
        access: Option<&Access>,
        long: bool,
        proven: Proven,
    ) -> Self {
        let path = request.uri().path_and_query().cloned();
        let headers = long || access.is_some_and(|access| access.reads_headers());
        Self {
            method: request.method().clone(),
            host: host.to_owned(),
            path: path.unwrap_or_else(|| PathAndQuery::from_static("/")),
            headers: headers.then(|| request.headers().clone()),
            rule: rule.clone(),
            proven,
            upgraded: false,
        }
    }

    pub fn upgraded(self, upgraded: bool) -> Self {
        Self { upgraded, ..self }
    }
}

/// Where a connection is served.
pub struct At<'a> {
    pub shared: &'a Arc<Shared>,
    pub listener: &'a Arc<OpenListener>,
    pub facts: &'a Arc<ConnectionFacts>,
    /// What it is served by.
    pub table: &'a ListenerTable,
}

impl Live {
    /// A request, as the backend is going to see it, with the client that trusted hops have named.
    pub fn request(
        at: &At<'_>,
        access: Option<&Arc<Access>>,
        http: &Arc<LiveHttp>,
        client: IpAddr,
        request: KeptRequest,
    ) -> Self {
        let place = Place::Http(http.clone());
        Self::new(
            at,
            access.cloned(),
            Kept { facts: at.facts.clone(), place, since: Instant::now(), client, request: Some(request) },
        )
    }

    /// A connection whose bytes are passed on.
    pub fn stream(at: &At<'_>, options: &Arc<L4Options>, access: Option<Arc<Access>>) -> Self {
        let place = Place::Stream(options.clone());
        let (facts, client) = (at.facts.clone(), at.facts.client.ip());
        Self::new(at, access, Kept { facts, place, since: Instant::now(), client, request: None })
    }

    /// A connection that is passed on to where it was going, as nothing is known of its destination and that is allowed.
    pub fn passed(at: &At<'_>, to: Key) -> Self {
        let (facts, client) = (at.facts.clone(), at.facts.client.ip());
        let kept = Kept { facts, place: Place::Passed(to), since: Instant::now(), client, request: None };
        Self::new(at, None, kept)
    }

    fn new(at: &At<'_>, judged: Option<Arc<Access>>, kept: Kept) -> Self {
        Self {
            shared: at.shared.clone(),
            listener: at.listener.clone(),
            seen: at.table.epoch,
            judged,
            kept: Arc::new(kept),
        }
    }

    /// Judges by what held when it began. Yields what audit policies have to say.
    ///
    /// # Errors
    /// It is denied.
    pub fn begin(&self) -> Result<Option<String>, Error> {
        match &self.judged {
            Some(access) => self.by(access, self.kept.request.as_ref().and_then(|r| r.headers.as_ref())),
            None => Ok(None),
        }
    }

    fn by(&self, access: &Access, headers: Option<&HeaderMap>) -> Result<Option<String>, Error> {
        let Kept { facts, client, request, .. } = &*self.kept;
        let access = request.as_ref().map_or(access, |request| of_rule(access, &request.rule));
        let layer7 = match request {
            None => Layer7::Bytes,
            Some(request) => Layer7::Request(Asked {
                method: request.method.as_str(),
                host: &request.host,
                path: request.path.path(),
                query: request.path.query(),
                headers,
            }),
        };
        let proven = request.as_ref().map(|request| &request.proven);
        judge(access, &subject(access, facts, *client, layer7, proven), &self.shared.telemetry.access)
    }

    /// Comes back when a change of policies denies it.
    pub async fn revoked(mut self) -> Error {
        let shared = self.shared.clone();
        let watch = &shared.access;
        loop {
            let mut change = std::pin::pin!(watch.of(self.kept.facts.worker).notified());
            change.as_mut().enable();
            let epoch = watch.epoch.load(SeqCst);
            if epoch <= self.seen {
                change.await;
                continue;
            }
            self.seen = epoch;
            if let Err(error) = self.again() {
                return error;
            }
        }
    }

    /// Judges by what holds now, if that is something else than before. A listener that is gone finishes what it has.
    fn again(&mut self) -> Result<(), Error> {
        let table = self.listener.table();
        let name = match &self.kept.place {
            Place::Http(http) => &http.config.name,
            Place::Stream(options) => &options.name,
            Place::Passed(key) => return still_passed(&table, key),
        };
        // A request in progress finishes; its connection is told to end by whoever serves it.
        if self.kept.request.as_ref().is_none_or(|request| request.upgraded) {
            still_clear(&table, &self.kept.facts)?;
        }
        let now = current(&table, name);
        if now == self.judged {
            return Ok(());
        }
        self.judged = now;
        let Some(access) = &self.judged else { return Ok(()) };
        let headers = self.kept.request.as_ref().and_then(|request| request.headers.as_ref());
        let young = self.kept.since.elapsed() < YOUNG;
        if self.kept.request.is_some() && headers.is_none() && young && access.reads_headers() {
            return Ok(());
        }
        self.by(access, headers).map(drop)
    }

    /// Ends the body of a response when its request is denied while it lasts.
    pub fn watch(self, response: Response) -> Response {
        response.map(|body| {
            let small = body.is_whole() || body.size_hint().exact().is_some_and(|size| size <= SMALL);
            if small {
                return body;
            }
            Body::stream(Watched { body: Box::pin(body), revoked: Box::pin(self.revoked()), over: false })
        })
    }
}

/// A body that ends with an error when its request is denied.
struct Watched {
    body: Pin<Box<Body>>,
    revoked: Pin<Box<dyn Future<Output = Error> + Send>>,
    over: bool,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(error) = this.revoked.as_mut().poll(cx) {
            this.over = true;
            return Poll::Ready(Some(Err(error)));
        }
        this.body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
