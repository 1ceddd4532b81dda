//! Sending a request on: backend by weight, endpoint by balance, again when that is safe and worth it.

mod mirror;
mod retry;
mod session;
mod upgrade;

use crate::{
    Body, Error, Request, Response,
    balance::Pick,
    breaker::Permit,
    cluster::{LiveCluster, Picked, SendFailure},
    codec::Progress,
    connect::{ClientAddress, FreshConnection},
    endpoint::LiveEndpoint,
    error::{Kind, Side},
    filters::Chain,
    outlier::Outcome,
    reply,
    request::sanitise_response,
    serve::Exchange,
    split,
    stream::{self, Held, Replay},
    telemetry::{Flags, Limit, Record},
};
use http::{StatusCode, request::Parts};
use retry::{Verdict, Wish};
use selvedge_compile::snapshot::{self, HashKey, Split, Target};
use std::{
    hash::{BuildHasher, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Forwards a request to one backend of `split` and returns its answer.
pub async fn send<'e>(
    exchange: &'e Exchange<'e>,
    split: &'e Split,
    request: &mut Request,
    chain: &mut Chain<'e>,
    record: &mut Record,
) -> Result<Response, Error> {
    let session = session::read(exchange, request);
    let sticky = session.and_then(|s| session::endpoint(exchange, split, s));
    let backend = match &sticky {
        Some((backend, _)) => backend,
        None => split::pick(split, &mut rand::rng()),
    };
    let cluster = match &backend.target {
        Target::Cluster(id) => exchange.table.cluster(*id),
        Target::Invalid { status, reason } => {
            record.flag(Flags::NO_CLUSTER);
            record.details(reason.clone());
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Ok(reply::from_status(status, "this backend is not valid", exchange.grpc));
        }
    };
    if let Err(answer) = chain.on_request(&backend.filters, &exchange.facts, request).await {
        return Ok(answer);
    }
    record.cluster(&cluster.current().config);
    cluster.ready().await;
    if let Some(limit) = chain.body_limit {
        *request.body_mut() = stream::limited(std::mem::take(request.body_mut()), limit)?;
    }
    // Messages of a gRPC stream come when there is something to say.
    if !exchange.grpc {
        let rate = exchange.http.config.options.body_min_rate;
        *request.body_mut() = stream::paced(std::mem::take(request.body_mut()), rate);
    }
    let permit = cluster.start_request()?;
    let upload = (!request.body().is_whole()).then(|| record.progress().clone());
    *request.body_mut() = record.count_request(std::mem::take(request.body_mut()));
    if exchange.target.upgrade.is_some() {
        let sticky = sticky.map(|(_, address)| address);
        return Box::pin(upgrade::send(exchange, cluster, request, record, permit, sticky)).await;
    }
    mirror::copy(exchange, &chain.mirrors, request);
    let mut tries = Tries::new(exchange, cluster, request, sticky.map(|(_, address)| address));
    let deadline = exchange.deadline;
    let answered = match deadline {
        Some(at) => match tokio::time::timeout_at(at, tries.run(record)).await {
            Ok(result) => result,
            Err(_) => {
                let error = Error::new(Kind::Timeout, Side::Upstream, "the request timeout ran out");
                Err(error.over(Limit::RequestTimeout))
            }
        },
        None => tries.run(record).await,
    };
    let answer = answered?;
    let mut response = answer.response;
    sanitise_response(&mut response);
    session::write(exchange, cluster, &answer.picked, session, &mut response);
    if let Some(cookie) = answer.cookie {
        cookie.set(exchange, &mut response);
    }
    let deadline = match (deadline, answer.until) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Ok(response.map(|body| Held::both_ways(body, deadline, exchange.stream_idle, upload, permit)))
}

/// A response head and who sent it.
struct Answer {
    response: Response,
    picked: Picked,
    /// When its try must be over, body included.
    until: Option<Instant>,
    /// The hash key the client did not have yet.
    cookie: Option<session::HashCookie>,
}

/// All tries of one request at one cluster.
struct Tries<'e> {
    exchange: &'e Exchange<'e>,
    cluster: &'e Arc<LiveCluster>,
    parts: Parts,
    body: Source,
    /// The next try is the replay of one that died on a connection from the pool.
    fresh: bool,
    retrying: Option<Permit>,
    hash: Option<u64>,
    cookie: Option<session::HashCookie>,
    sticky: Option<SocketAddr>,
    policy: Option<&'e snapshot::Retry>,
}

/// Where the body of the next try comes from.
enum Source {
    /// Whole and in memory.
    Whole(Body, bytes::Bytes),
    Replay(Replay),
}

/// Bodies are kept for the built-in replay up to this size when no policy says otherwise.
const DEFAULT_REPLAY: usize = 64 * 1024;

impl<'e> Tries<'e> {
    fn new(
        exchange: &'e Exchange<'e>,
        cluster: &'e Arc<LiveCluster>,
        request: &mut Request,
        sticky: Option<SocketAddr>,
    ) -> Self {
        let (parts, body) = std::mem::take(request).into_parts();
        let policy = exchange.rule.retry.as_ref();
        let limit = policy.map_or(DEFAULT_REPLAY, |p| p.max_body_bytes as usize);
        let body = match body.as_full().filter(|bytes| bytes.len() <= limit) {
            Some(bytes) => Source::Whole(body, bytes),
            None => Source::Replay(Replay::new(body, limit)),
        };
        let settings = cluster.current();
        let keys = &settings.config.load_balancing.hash_keys;
        let mut hash = hash(keys, &parts, exchange);
        let cookie = if hash.is_none() { session::HashCookie::make(keys) } else { None };
        hash = hash.or(cookie.as_ref().map(session::HashCookie::hash));
        Self { exchange, cluster, parts, body, fresh: false, retrying: None, hash, cookie, sticky, policy }
    }

    // What is rare on the way of a request is boxed: the state of every request would be as large as the largest of all
    // ways, and is moved and forgotten with each.
    async fn run(&mut self, record: &mut Record) -> Result<Answer, Error> {
        let mut tried = Vec::new();
        let mut wish = Wish::new(self.policy);
        loop {
            let result = self.attempt(&tried, record).await;
            let replayable = self.replayable();
            let verdict = match self.exchange.deadline {
                Some(at) if Instant::now() >= at => Verdict::Done,
                _ => wish.judge(&result, &self.parts.method, replayable, self.exchange.grpc),
            };
            let reason = match (verdict, result) {
                (Verdict::Done, Ok((mut answer, _))) => {
                    if wish.exhausted(&answer.response) {
                        record.flag(Flags::RETRIES_EXCEEDED);
                    }
                    answer.cookie = self.cookie.take();
                    return Ok(answer);
                }
                (Verdict::Done, Err((failure, _))) => {
                    if wish.retried() {
                        record.flag(Flags::RETRIES_EXCEEDED);
                    }
                    return Err(failure.error);
                }
                (Verdict::Retry(reason), Ok((mut answer, address))) => {
                    self.fresh = false;
                    tried.push(address);
                    if !self.allowed(None) {
                        record.flag(Flags::UPSTREAM_OVERFLOW);
                        answer.cookie = self.cookie.take();
                        return Ok(answer);
                    }
                    reason
                }
                (Verdict::Retry(reason), Err((failure, address))) => {
                    // A connection that was closed while idle says nothing about its endpoint.
                    self.fresh = failure.reused;
                    if !failure.reused {
                        tried.extend(address);
                    }
                    if !self.allowed(Some(failure.error.kind)) {
                        record.flag(Flags::UPSTREAM_OVERFLOW);
                        return Err(failure.error);
                    }
                    reason
                }
            };
            // A sticky endpoint that failed is not tried again.
            self.sticky = None;
            tracing::debug!(cluster = self.cluster.key(), reason, "retrying");
            if let Some(pause) = wish.backoff() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// Whether budget and retry limit of the cluster leave room for one more try; held until the request is answered.
    /// A refused connection has cost its upstream nothing, and the next try is for another endpoint: the built-in tries
    /// after it need no budget.
    fn allowed(&mut self, failed: Option<Kind>) -> bool {
        let free = self.policy.is_none() && failed == Some(Kind::Connect);
        let budget = self.policy.map_or(&retry::BUILT_IN_BUDGET, |p| &p.budget);
        // The retry before this one is over.
        self.retrying = None;
        if !free && !self.cluster.budget_try(budget) {
            return false;
        }
        match self.cluster.start_retry() {
            Ok(permit) => {
                self.retrying = Some(permit);
                true
            }
            Err(_) => false,
        }
    }

    fn replayable(&self) -> bool {
        match &self.body {
            Source::Whole(..) => true,
            Source::Replay(replay) => replay.possible(),
        }
    }

    /// The request of one more try.
    fn request(&mut self) -> Request {
        let body = match &mut self.body {
            Source::Whole(first, bytes) => match std::mem::take(first) {
                body if !body.is_empty() => body,
                _ => Body::full(bytes.clone()),
            },
            Source::Replay(replay) => replay.body(),
        };
        let mut parts = self.parts.clone();
        if let Some(informational) = &self.exchange.informational {
            parts.extensions.insert(informational.clone());
        }
        if self.fresh {
            parts.extensions.insert(FreshConnection);
        }
        parts
            .extensions
            .insert(ClientAddress { source: self.exchange.conn.peer, destination: self.exchange.conn.local });
        Request::from_parts(parts, body)
    }

    async fn attempt(&mut self, tried: &[SocketAddr], record: &mut Record) -> Attempt {
        let hedging = self.exchange.rule.hedging.filter(|_| self.can_hedge());
        match hedging {
            Some(hedging) => Box::pin(self.hedged(tried, hedging, record)).await,
            None => {
                let mut request = self.request();
                let one = One::start(self.exchange, self.cluster, self.hash, self.sticky, tried)?;
                record.upstream(one.picked.config(), one.picked.address);
                record.inject_trace(request.headers_mut());
                let result = one.finish(&mut request, self.per_try()).await;
                ended(record, &result);
                result
            }
        }
    }

    fn per_try(&self) -> Option<Duration> {
        let rule = &self.exchange.rule.timeouts;
        self.policy.and_then(|p| p.per_try_timeout).or(rule.backend_request).filter(|d| !d.is_zero())
    }

    /// Hedging sends two copies at once, so the body must be here in full, and the method safe to repeat.
    fn can_hedge(&self) -> bool {
        let whole = match &self.body {
            Source::Whole(..) => true,
            Source::Replay(replay) => replay.complete(),
        };
        whole && crate::request::is_idempotent(&self.parts.method)
    }

    /// Starts another try each time `delay` passes without an answer; the first good answer wins.
    async fn hedged(&mut self, tried: &[SocketAddr], hedging: snapshot::Hedging, record: &mut Record) -> Attempt {
        let mut used: smallvec::SmallVec<[SocketAddr; 4]> = tried.into();
        let mut running = Vec::new();
        let mut last: Option<Attempt> = None;
        let most = hedging.max_attempts.max(1);
        let mut started = 0;
        loop {
            if started < most && (running.is_empty() || self.allowed(None)) {
                match One::start(self.exchange, self.cluster, self.hash, self.sticky.filter(|_| started == 0), &used) {
                    Ok(one) => {
                        record.upstream(one.picked.config(), one.picked.address);
                        if !running.is_empty() {
                            record.hedged();
                        }
                        used.push(one.picked.address);
                        started += 1;
                        let mut request = self.request();
                        record.inject_trace(request.headers_mut());
                        let per_try = self.per_try();
                        running.push(Box::pin(async move { one.finish(&mut request, per_try).await }));
                    }
                    Err(failure) if running.is_empty() => return last.unwrap_or(Err(failure)),
                    Err(_) => {}
                }
            }
            let next = std::future::poll_fn(|cx| {
                for (index, one) in running.iter_mut().enumerate() {
                    if let std::task::Poll::Ready(result) = one.as_mut().poll(cx) {
                        return std::task::Poll::Ready((index, result));
                    }
                }
                std::task::Poll::Pending
            });
            tokio::select! {
                (index, result) = next => {
                    drop(running.swap_remove(index));
                    ended(record, &result);
                    let good = result.as_ref().is_ok_and(|(a, _)| !a.response.status().is_server_error());
                    if good || running.is_empty() {
                        if let Ok((answer, _)) = &result {
                            record.answered_by(answer.picked.config(), answer.picked.address);
                        }
                        return result;
                    }
                    last = Some(result);
                }
                () = tokio::time::sleep(hedging.delay.max(MIN_HEDGING_DELAY)), if started < most => {}
            }
        }
    }
}

/// Keeps copies that may not be started yet, for lack of budget, from being asked for all the time.
const MIN_HEDGING_DELAY: Duration = Duration::from_millis(1);

/// How one try ended, with the address it went to (if it got so far).
type Attempt = Result<(Answer, SocketAddr), (SendFailure, Option<SocketAddr>)>;

/// One try at one endpoint.
struct One<'e> {
    exchange: &'e Exchange<'e>,
    cluster: &'e Arc<LiveCluster>,
    picked: Picked,
}

impl<'e> One<'e> {
    fn start(
        exchange: &'e Exchange<'e>,
        cluster: &'e Arc<LiveCluster>,
        hash: Option<u64>,
        sticky: Option<SocketAddr>,
        tried: &[SocketAddr],
    ) -> Result<Self, (SendFailure, Option<SocketAddr>)> {
        match cluster.pick(&Pick { hash, tried, sticky }) {
            Ok(picked) => Ok(Self { exchange, cluster, picked }),
            Err(error) => Err((SendFailure { error, progress: Progress::Unsent, reused: false }, None)),
        }
    }

    async fn finish(self, request: &mut Request, per_try: Option<Duration>) -> Attempt {
        let address = self.picked.address;
        let start = Instant::now();
        let sending = self.cluster.send(self.exchange.conn.worker, &self.picked, request);
        let own = per_try.and_then(|limit| start.checked_add(limit));
        // The end of the whole request ends its last try too: who had not answered by then has to hear of it.
        let whole = self.exchange.deadline.filter(|at| !self.exchange.hurried && own.is_none_or(|own| *at <= own));
        let result = match whole.or(own) {
            Some(at) => match tokio::time::timeout_at(at, sending).await {
                Ok(result) => result,
                Err(_) if whole.is_some() => {
                    Limit::RequestTimeout.hit();
                    Err(timed_out("the request timeout ran out"))
                }
                Err(_) => {
                    Limit::BackendRequestTimeout.hit();
                    Err(timed_out("the backend request timeout ran out"))
                }
            },
            None => sending.await,
        };
        report(self.cluster, &self.picked, &result, start);
        match result {
            Ok(response) => {
                let until = per_try.and_then(|limit| Instant::now().checked_add(limit.saturating_sub(start.elapsed())));
                Ok((Answer { response, picked: self.picked, until, cookie: None }, address))
            }
            Err(failure) => Err((failure, Some(address))),
        }
    }
}

/// Tells the record how a try went.
fn ended(record: &mut Record, result: &Attempt) {
    match result {
        Ok((answer, address)) => {
            record.first_byte();
            record.try_ended(*address, answer.response.status().as_u16(), Flags::NONE);
        }
        Err((failure, Some(address))) => record.try_ended(*address, 0, Flags::of(&failure.error)),
        Err((_, None)) => {}
    }
}

/// The key for ring hash and Maglev: the first that is present.
fn hash(keys: &[HashKey], parts: &Parts, exchange: &Exchange<'_>) -> Option<u64> {
    keys.iter().find_map(|key| match key {
        HashKey::Header(name) => parts.headers.get(name).map(|v| hashed(v.as_bytes())),
        HashKey::Cookie { name, .. } => session::cookie(&parts.headers, name).map(|v| hashed(v.as_bytes())),
        HashKey::SourceIp => Some(match exchange.client {
            std::net::IpAddr::V4(ip) => hashed(&ip.octets()),
            std::net::IpAddr::V6(ip) => hashed(&ip.octets()),
        }),
        HashKey::Query(name) => {
            let query = parts.uri.query()?;
            let value = query.split('&').find_map(|p| p.strip_prefix(name.as_str())?.strip_prefix('='))?;
            Some(hashed(value.as_bytes()))
        }
        HashKey::Path => Some(hashed(parts.uri.path().as_bytes())),
    })
}

/// The same on every worker, process and machine, so that all proxies agree on an endpoint.
pub(crate) fn hashed(bytes: &[u8]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Builder::new().build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

fn timed_out(message: &'static str) -> SendFailure {
    SendFailure { error: Error::new(Kind::Timeout, Side::Upstream, message), progress: Progress::Sent, reused: false }
}

/// Tells health and balance how a try went. What is not the endpoint's doing is not told.
fn report(cluster: &LiveCluster, endpoint: &LiveEndpoint, result: &Result<Response, SendFailure>, start: Instant) {
    let outcome = match result {
        Ok(response) => Outcome::Status(response.status().as_u16()),
        Err(failure) if failure.error.side != Side::Upstream => return,
        Err(failure) => match failure.error.kind {
            Kind::Connect | Kind::ConnectTimeout | Kind::Tls => Outcome::ConnectFailure,
            Kind::Timeout => Outcome::Timeout,
            Kind::Overflow | Kind::NoEndpoint | Kind::Cancelled | Kind::Refused | Kind::Denied => return,
            // An idle connection that the endpoint closed is no failure of the endpoint.
            _ if failure.reused && failure.progress != Progress::Answered => return,
            _ => Outcome::Reset,
        },
    };
    cluster.report(endpoint, outcome, start.elapsed());
}
