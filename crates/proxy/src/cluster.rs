//! Clusters as they live: endpoints with their health and load, connections, limits. A cluster keeps its state under
//! its key for as long as some snapshot names it.

mod members;
mod registry;
mod status;
mod view;

pub use registry::Clusters;
pub use status::{ClusterStatus, EndpointStatus, Health, Limits, Resolution, Usage};
pub use view::Picked;

use crate::{
    Body, Error, Request, Response,
    balance::Pick,
    breaker::{Budget, Limit, Permit},
    codec::{Progress, SendError, h1, h2},
    connect::{ClientAddress, FreshConnection, Http1Only, Plan},
    endpoint::{Clock, LiveEndpoint},
    error::Kind,
    gate::Gate,
    io::Io,
    outlier::{self, Outcome, Standing, Verdict},
    pool::{self, Counted, Held, Lease, Seeker},
    request::UNDELIVERED,
    worker::{WorkerCount, WorkerId},
};
use arc_swap::ArcSwap;
use members::Members;
use selvedge_compile::snapshot::{Algorithm, Cluster, OutlierDetection, RetryBudget};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use view::{Current, View};

/// A cluster with its live state. Requests hold it through their table; it survives reloads.
pub struct LiveCluster {
    key: String,
    /// Settings and endpoints in one: who loads it once has what belongs together.
    view: ArcSwap<View>,
    members: Mutex<Members>,
    requests: Arc<Limit>,
    retries: Arc<Limit>,
    budget: Budget,
    pub(crate) gate: Arc<Gate>,
    pub counters: Arc<Counters>,
    pub(crate) workers: WorkerCount,
    zone: Option<String>,
    clock: Clock,
    /// The view does not show the endpoints as they are.
    dirty: AtomicBool,
    keeper: Arc<Notify>,
    /// Whether endpoints have been looked for at least once.
    ready: watch::Sender<bool>,
    closed: AtomicBool,
}

/// What the configuration says, prepared for use.
#[derive(Debug)]
pub struct Settings {
    pub config: Arc<Cluster>,
    pub(crate) plan: Plan,
    pub(crate) h1: h1::ClientOptions,
    pub(crate) h2: h2::ClientOptions,
    /// Changes when connections of before must not be used on.
    pub(crate) epoch: u64,
}

/// Events since the cluster appeared.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub retries: AtomicU64,
    pub connect_failures: AtomicU64,
    pub connections_opened: AtomicU64,
    pub connections_closed: AtomicU64,
    /// Requests that found their connection in the pool.
    pub pool_hits: AtomicU64,
    pub ejections: AtomicU64,
    /// Outliers that were not ejected because too many are already.
    pub ejections_spared: AtomicU64,
    pub health_checks: AtomicU64,
    pub health_check_failures: AtomicU64,
    pub dns_resolutions: AtomicU64,
    pub dns_failures: AtomicU64,
    /// Requests that no endpoint could take.
    pub no_endpoint: AtomicU64,
    /// Tries by how they went, in the order of [`OUTCOMES`].
    pub outcomes: [AtomicU64; OUTCOMES.len()],
    /// Of tries, to the response head or the failure.
    pub latency: crate::telemetry::counter::Histogram,
}

/// Names of [`Counters::outcomes`].
pub const OUTCOMES: [&str; 9] = ["1xx", "2xx", "3xx", "4xx", "5xx", "connect_failure", "timeout", "reset", "ok"];

impl Counters {
    fn tried(&self, outcome: Outcome, latency: Duration) {
        let index = match outcome {
            Outcome::Status(status) => usize::from(status / 100).clamp(1, 5) - 1,
            Outcome::ConnectFailure => 5,
            Outcome::Timeout => 6,
            Outcome::Reset => 7,
            Outcome::Ok => 8,
        };
        self.outcomes[index].fetch_add(1, Ordering::Relaxed);
        self.latency.observe(latency);
    }
}

/// A request that could not be sent, or died before a response came.
#[derive(Debug)]
pub struct SendFailure {
    pub error: Error,
    pub progress: Progress,
    /// It went out on a connection that had carried requests before. Together with [`Progress::Unsent`], or with
    /// `Sent` and a safe request, that is worth a replay with [`FreshConnection`].
    pub reused: bool,
}

impl LiveCluster {
    /// `namespace/service:port`, as in the snapshot.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The settings of now. A request takes those that come with its endpoint ([`pick`](Self::pick)).
    pub fn settings(&self) -> Arc<Settings> {
        self.view.load().settings.clone()
    }

    /// The same, for a moment and without an `await` in it.
    pub(crate) fn current(&self) -> Current {
        Current(self.view.load())
    }

    /// Waits until endpoints have been looked for once (DNS), at most for the connect timeout. Returns at once in
    /// all other cases; to be called before [`pick`](Self::pick).
    pub async fn ready(&self) {
        if !*self.ready.borrow() {
            let limit = self.current().plan.timeout();
            let _ = timeout(limit, self.ready.subscribe().wait_for(|ready| *ready)).await;
        }
    }

    /// The endpoint for a try of a request, with the settings to reach it by. Takes no lock and allocates only for the
    /// error.
    ///
    /// # Errors
    /// [`Kind::NoEndpoint`] with the reason.
    pub fn pick(&self, pick: &Pick<'_>) -> Result<Picked, Error> {
        let view = self.view.load();
        match view.picker.pick(pick) {
            Ok(endpoint) => Ok(Picked { endpoint, settings: view.settings.clone() }),
            Err(reason) => {
                self.counters.no_endpoint.fetch_add(1, Ordering::Relaxed);
                let message = format!("cluster {} {reason}{}", self.key, self.unresolved());
                Err(Error::upstream(Kind::NoEndpoint, message))
            }
        }
    }

    /// Counts a request; [`Kind::Overflow`] when too many are in flight.
    pub fn start_request(&self) -> Result<Permit, Error> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        self.budget.request();
        self.requests.acquire(&self.key)
    }

    /// Counts a retry; [`Kind::Overflow`] when too many are in flight.
    pub fn start_retry(&self) -> Result<Permit, Error> {
        let permit = self.retries.acquire(&self.key)?;
        self.counters.retries.fetch_add(1, Ordering::Relaxed);
        Ok(permit)
    }

    /// Takes one retry from the budget; false when it is used up.
    pub fn budget_try(&self, budget: &RetryBudget) -> bool {
        self.budget.try_retry(budget, self.retries.used())
    }

    /// One exchange with the endpoint that was picked, on a connection of this worker's pool or a new one.
    ///
    /// Of the request's extensions [`ClientAddress`], [`FreshConnection`] and [`Http1Only`] are looked at. A response
    /// whose connection has changed its protocol carries [`Held`] in its extensions, to be kept with the tunnel. Nothing
    /// is replayed here: the request is taken once there is a connection, and what is safe is known to the caller.
    pub async fn send(
        self: &Arc<Self>,
        worker: WorkerId,
        picked: &Picked,
        request: &mut Request,
    ) -> Result<Response, SendFailure> {
        let Picked { endpoint, settings } = picked;
        let seeker = Seeker {
            cluster: self,
            settings,
            worker,
            endpoint,
            client: request.extensions().get().copied(),
            fresh: request.extensions().get::<FreshConnection>().is_some(),
            http1: request.extensions().get::<Http1Only>().is_some(),
        };
        let unsent = |error| SendFailure { error, progress: Progress::Unsent, reused: false };
        // Only a member of the mesh that has proven to be the endpoint's own proxy is believed.
        let member = settings.config.identity.is_some() && endpoint.peer.is_some();
        let lease = pool::lease(seeker).await.map_err(unsent)?;
        let request = std::mem::take(request);
        match lease {
            Lease::Http1 { connection, ticket, reused } => {
                ticket.begin(endpoint);
                let sent = connection.send(request, &settings.h1).await;
                let response = sent.map_err(|e| SendFailure::new(e, reused))?;
                let mut response = undelivered(response, member).map_err(unsent)?;
                if is_upgraded(&mut response) {
                    response.extensions_mut().insert(Held::new(ticket));
                }
                Ok(response)
            }
            Lease::Http2 { connection, busy, reused } => {
                let sent = connection.send(request).await;
                let response = sent.map_err(|e| SendFailure::new(e, reused))?;
                let mut response = undelivered(response, member).map_err(unsent)?;
                if is_upgraded(&mut response) {
                    response.extensions_mut().insert(Held::new(Arc::new((busy, connection))));
                } else if !response.body().is_whole() {
                    let body = std::mem::take(response.body_mut());
                    *response.body_mut() = Body::stream(Counted { body, busy: Some(busy) });
                }
                Ok(response)
            }
        }
    }

    /// A connection for bytes (TCP and TLS routes). Counts as open until the second value is dropped; whether it is
    /// a request in flight to the endpoint is the caller's to count.
    pub async fn connect_raw(
        self: &Arc<Self>,
        picked: &Picked,
        client: Option<ClientAddress>,
    ) -> Result<(Io, Held), Error> {
        let (Picked { endpoint, settings }, worker) = (picked, WorkerId(0));
        let seeker = Seeker { cluster: self, settings, worker, endpoint, client, fresh: true, http1: false };
        pool::raw(seeker).await
    }

    /// Tells how a request to an endpoint went: for outlier detection and latency. `latency` runs from sending to
    /// the response head, or to the failure.
    pub fn report(&self, endpoint: &LiveEndpoint, outcome: Outcome, latency: Duration) {
        let settings = self.current();
        self.counters.tried(outcome, latency);
        if outcome.is_failure() {
            endpoint.counters.failures.fetch_add(1, Ordering::Relaxed);
            if outcome == Outcome::Timeout {
                endpoint.counters.timeouts.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Algorithm::PeakEwma { decay, .. } = settings.config.load_balancing.algorithm {
            // A refused connection is quick; it must not look like a quick endpoint.
            let latency = if outcome.is_failure() { latency.max(FAILURE_LATENCY) } else { latency };
            endpoint.ewma.observe(latency, self.clock.millis(), decay);
        }
        let config = settings.outlier();
        let built_in = settings.config.outlier_detection.is_none();
        let verdict = match (endpoint.outlier.standing(), outcome) {
            (Standing::Active, Outcome::Timeout | Outcome::Reset) if built_in => return,
            // It was ejected because it refused connections, and it no longer does.
            (Standing::Ejected, Outcome::Status(_) | Outcome::Ok) if built_in => Verdict::Restore,
            _ => endpoint.outlier.observe(outcome, config),
        };
        match verdict {
            Verdict::Nothing => {}
            Verdict::Eject(detector) => self.eject(endpoint, detector, config),
            Verdict::Restore => {
                endpoint.outlier.restore();
                endpoint.warm_from(self.clock.millis());
                tracing::info!(cluster = self.key, endpoint = %endpoint.address, "endpoint is back from its ejection");
                self.mark_dirty();
            }
        }
    }

    /// No snapshot names it any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn eject(&self, endpoint: &LiveEndpoint, detector: outlier::Detector, config: &OutlierDetection) {
        let (ejected, usable, total) = self.members().census();
        let again = detector == outlier::Detector::Probation;
        if !again && !outlier::may_eject(ejected, usable, total, config) {
            self.counters.ejections_spared.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let Some(time) = endpoint.outlier.eject(detector, Instant::now(), config) else { return };
        self.counters.ejections.fetch_add(1, Ordering::Relaxed);
        endpoint.counters.ejections.fetch_add(1, Ordering::Relaxed);
        let reason = detector.describe();
        tracing::warn!(cluster = self.key, endpoint = %endpoint.address, reason, ?time, "endpoint ejected");
        self.mark_dirty();
    }

    /// Closes one idle connection anywhere in the cluster, so that another may be opened.
    pub(crate) fn evict_idle(&self) -> bool {
        let endpoints = self.members().list();
        endpoints.iter().any(|endpoint| endpoint.shelves.evict())
    }

    fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Release);
        self.keeper.notify_one();
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is done without a policy: an endpoint that refuses connections (its process is being restarted, say) is spared
/// for a moment, so that not every other request has to be tried twice, which the budget would end. No answer and no
/// timeout counts, and the last endpoint stays.
static REFUSING: OutlierDetection = OutlierDetection {
    consecutive_5xx: 0,
    consecutive_gateway_errors: 0,
    consecutive_local_failures: 2,
    success_rate: None,
    interval: Duration::from_secs(10),
    base_ejection_time: Duration::from_secs(1),
    max_ejection_time: Duration::from_secs(5),
    max_ejection_percent: 100,
};

impl Settings {
    /// The outlier detection of the policy, or else the built-in one.
    pub(crate) fn outlier(&self) -> &OutlierDetection {
        self.config.outlier_detection.as_ref().unwrap_or(&REFUSING)
    }
}

/// What a failed request counts for at least in the latency of its endpoint.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// The answer of a workload's proxy that could not connect to the workload says so: nothing was done, and the workload is to
/// blame as if it had refused the connection itself.
fn undelivered(response: Response, member: bool) -> Result<Response, Error> {
    if !member || !response.headers().contains_key(&UNDELIVERED) {
        return Ok(response);
    }
    let message = "the proxy of the workload could not connect to the workload";
    Err(Error::upstream(Kind::Connect, message))
}

fn is_upgraded(response: &mut Response) -> bool {
    match response.body_mut().take_upgraded() {
        Some(io) => {
            *response.body_mut() = Body::upgraded(io);
            true
        }
        None => false,
    }
}

impl SendFailure {
    fn new(error: SendError, reused: bool) -> Self {
        Self { error: error.error, progress: error.progress, reused }
    }
}

impl From<SendFailure> for Error {
    fn from(failure: SendFailure) -> Self {
        failure.error
    }
}

impl fmt::Debug for LiveCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LiveCluster({})", self.key)
    }
}

#[cfg(test)]
mod tests;
