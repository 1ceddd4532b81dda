//! Keeping a cluster's live state in step: with the configuration, with DNS, with health and with time.

use super::{Counters, LiveCluster, Resolution, Settings, view::View};
use crate::{
    balance::Picker,
    breaker::{Budget, Limit},
    codec::{h1, h2},
    connect::Plan,
    dial::Dial,
    endpoint::{Clock, LiveEndpoint, Protocol},
    eyeballs,
    gate::Gate,
    health,
    outlier::{self, Standing},
    resolve::{self, Lookup},
    telemetry,
    worker::WorkerCount,
};
use arc_swap::ArcSwap;
use selvedge_compile::snapshot::{Cluster, Discovery, Endpoint};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

/// The endpoints of a cluster and the tasks that watch them; both end together.
#[derive(Default)]
pub(super) struct Members {
    by_address: BTreeMap<SocketAddr, Member>,
    resolver: Option<AbortOnDropHandle<()>>,
    pub(super) resolution: Option<Resolution>,
    /// When success rates were looked at.
    looked: Option<Instant>,
}

struct Member {
    endpoint: Arc<LiveEndpoint>,
    /// Empty until they are started, which is when their settings are those of the cluster.
    checks: Vec<AbortOnDropHandle<()>>,
}

/// What a cluster needs of the process around it.
pub(super) struct Surroundings {
    pub(super) workers: WorkerCount,
    pub(super) zone: Option<String>,
    pub(super) runtime: Handle,
    pub(super) lookup: Arc<dyn Lookup>,
    pub(super) keeper: Arc<Notify>,
    pub(super) dial: Arc<Dial>,
}

impl Members {
    pub(super) fn list(&self) -> Vec<Arc<LiveEndpoint>> {
        self.by_address.values().map(|member| member.endpoint.clone()).collect()
    }

    /// How many are ejected (or on probation), usable, and there at all.
    pub(super) fn census(&self) -> (usize, usize, usize) {
        let count = |f: fn(&LiveEndpoint) -> bool| self.by_address.values().filter(|m| f(&m.endpoint)).count();
        let ejected = count(|e| e.outlier.standing() != Standing::Active);
        (ejected, count(LiveEndpoint::is_usable), self.by_address.len())
    }
}

impl LiveCluster {
    pub(super) fn new(config: &Arc<Cluster>, around: &Surroundings) -> Arc<Self> {
        let clock = Clock::default();
        let settings = Arc::new(Settings::new(config.clone(), 0, &around.dial));
        let picker = Picker::build(&[], &config.load_balancing, None, clock);
        let cluster = Arc::new(Self {
            key: config.key.clone(),
            view: ArcSwap::from_pointee(View { settings: settings.clone(), picker }),
            members: Mutex::default(),
            requests: Limit::new("requests in flight", 0, telemetry::Limit::ClusterRequests),
            retries: Limit::new("retries in flight", 0, telemetry::Limit::ClusterRetries),
            budget: Budget::default(),
            gate: Gate::new(),
            counters: Arc::new(Counters::default()),
            workers: around.workers,
            zone: around.zone.clone(),
            clock,
            dirty: AtomicBool::new(false),
            keeper: around.keeper.clone(),
            ready: watch::Sender::new(false),
            closed: AtomicBool::new(false),
        });
        cluster.apply(settings, around, None);
        cluster
    }

    /// Takes a new configuration over; `before` is none when the cluster is new.
    pub(super) fn link(self: &Arc<Self>, config: &Arc<Cluster>, around: &Surroundings) {
        let before = self.settings();
        if before.config == *config {
            return;
        }
        let same = before.config.protocol == config.protocol
            && before.config.tls == config.tls
            && before.config.identity == config.identity
            && before.config.netns == config.netns
            && before.config.connections.proxy_protocol == config.connections.proxy_protocol;
        let epoch = before.epoch + u64::from(!same);
        let settings = Arc::new(Settings::new(config.clone(), epoch, &around.dial));
        self.apply(settings, around, Some(&before));
        if !same {
            let endpoints = self.members().list();
            endpoints.iter().for_each(|endpoint| endpoint.set_protocol(Protocol::Unknown));
        }
    }

    /// Brings limits, members and what watches them in step with `settings`, then shows settings and endpoints to requests
    /// in one swap.
    fn apply(self: &Arc<Self>, settings: Arc<Settings>, around: &Surroundings, before: Option<&Settings>) {
        let config = settings.config.clone();
        self.requests.set_max(config.connections.max_requests);
        self.retries.set_max(config.connections.max_retries);
        self.gate.set_limits(config.connections.max_connections, config.connections.max_pending);
        let before = before.map(|settings| &*settings.config);
        let mut members = self.members();
        let checks_change = before.is_some_and(|b| {
            b.health_checks != config.health_checks
                || b.tls != config.tls
                || b.protocol != config.protocol
                || b.identity != config.identity
        });
        if checks_change {
            for member in members.by_address.values_mut() {
                member.endpoint.health.expect(config.health_checks.len());
                member.checks.clear();
            }
        }
        if config.outlier_detection.is_none() && before.is_some_and(|b| b.outlier_detection.is_some()) {
            members.by_address.values().for_each(|member| member.endpoint.outlier.restore());
        }
        let ready = match &config.discovery {
            Discovery::Static(endpoints) => {
                members.resolver = None;
                members.resolution = None;
                self.replace(&mut members, endpoints, &config);
                true
            }
            Discovery::Dns { host, port } => {
                if before.is_none_or(|b| b.discovery != config.discovery) {
                    self.ready.send_replace(!members.by_address.is_empty());
                    members.resolution = Some(Resolution::of(host));
                    let (host, lookup, runtime) = (host.clone(), around.lookup.clone(), around.runtime.clone());
                    let task = resolve::run(Arc::downgrade(self), lookup, host, *port, runtime);
                    members.resolver = Some(AbortOnDropHandle::new(around.runtime.spawn(task)));
                }
                false
            }
        };
        self.show(&members, settings);
        self.start_checks(&mut members, &config, &around.runtime);
        if ready {
            self.ready.send_replace(true);
        }
    }

    /// Addresses that DNS has given, or why it has not: then those of before stay. Each address of the better family is
    /// an endpoint; those of the other family are where its connections are tried second.
    pub(crate) fn resolved(self: &Arc<Self>, name: (&str, u16), found: Result<Vec<IpAddr>, String>, rt: &Handle) {
        let mut members = self.members();
        // Nobody changes them while the members are locked.
        let settings = self.settings();
        let current =
            matches!(&settings.config.discovery, Discovery::Dns { host, port } if (host.as_str(), *port) == name);
        if !current || self.is_closed() {
            // The answer came while the configuration was replaced by one that does not ask for it.
            return;
        }
        let (_, port) = name;
        let found = found.map(|addresses| eyeballs::families(&addresses, |ip| settings.plan.reaches(ip)));
        self.counters.dns_resolutions.fetch_add(1, Ordering::Relaxed);
        match found {
            Ok((first, other)) => {
                let socket = |ip| SocketAddr::new(ip, port);
                let first: Vec<SocketAddr> = first.into_iter().take(resolve::MAX_ADDRESSES).map(socket).collect();
                let other: Vec<SocketAddr> = other.into_iter().take(resolve::MAX_ADDRESSES).map(socket).collect();
                let list: Vec<Endpoint> = first.iter().copied().map(Endpoint::new).collect();
                if let Some(resolution) = &mut members.resolution {
                    resolution.succeeded(list.len());
                }
                self.replace(&mut members, &list, &settings.config);
                for (i, address) in first.iter().enumerate() {
                    if let Some(member) = members.by_address.get(address) {
                        member.endpoint.set_others(eyeballs::others(i, &other));
                    }
                }
                self.rebuild(&members);
                self.start_checks(&mut members, &settings.config, rt);
            }
            Err(reason) => {
                self.counters.dns_failures.fetch_add(1, Ordering::Relaxed);
                let kept = members.by_address.len();
                tracing::warn!(cluster = self.key, reason, kept, "DNS failed; the addresses of before stay in use");
                if let Some(resolution) = &mut members.resolution {
                    resolution.failed(reason);
                }
            }
        }
        drop(members);
        self.ready.send_replace(true);
    }

    /// Why there are no endpoints, when DNS is to blame; for messages.
    pub(super) fn unresolved(&self) -> String {
        let members = self.members();
        match &members.resolution {
            Some(resolution) if members.by_address.is_empty() => resolution.complaint(),
            _ => String::new(),
        }
    }

    /// Exactly these endpoints from now on; those whose address, zone and peer stay keep their state. Neither shows them
    /// nor starts their checks.
    fn replace(&self, members: &mut Members, list: &[Endpoint], config: &Cluster) {
        let mut old = std::mem::take(&mut members.by_address);
        for wanted in list {
            let kept = old.remove(&wanted.address).or_else(|| members.by_address.remove(&wanted.address));
            let member = match kept {
                Some(member) if member.endpoint.zone == wanted.zone && member.endpoint.peer == wanted.peer => {
                    member.endpoint.set_weight(wanted.weight);
                    member.endpoint.set_priority(wanted.priority);
                    member
                }
                other => {
                    other.iter().for_each(|member| self.retire(&member.endpoint));
                    let (zone, now) = (wanted.zone.clone(), self.clock.millis());
                    let endpoint =
                        LiveEndpoint::new(wanted.address, wanted.weight, zone, now).with_peer(wanted.peer.clone());
                    endpoint.set_priority(wanted.priority);
                    let endpoint = Arc::new(endpoint);
                    endpoint.health.expect(config.health_checks.len());
                    Member { endpoint, checks: Vec::new() }
                }
            };
            members.by_address.insert(wanted.address, member);
        }
        old.values().for_each(|member| self.retire(&member.endpoint));
    }

    fn retire(&self, endpoint: &LiveEndpoint) {
        endpoint.remove();
        endpoint.shelves.sweep(&self.settings(), Instant::now(), true);
    }

    /// Starts the checks of those who have none yet. They read the settings of the cluster: to be called after
    /// [`show`](Self::show), or they would find those of before.
    fn start_checks(self: &Arc<Self>, members: &mut Members, config: &Cluster, runtime: &Handle) {
        for member in members.by_address.values_mut().filter(|member| member.checks.is_empty()) {
            let start = |index| {
                let task = health::run(Arc::downgrade(self), Arc::downgrade(&member.endpoint), index);
                AbortOnDropHandle::new(runtime.spawn(task))
            };
            member.checks = (0..config.health_checks.len()).map(start).collect();
        }
    }

    /// The health of an endpoint has changed.
    pub(crate) fn health_changed(&self, endpoint: &LiveEndpoint) {
        if endpoint.health.summary() == health::Summary::Healthy {
            endpoint.warm_from(self.clock.millis());
            tracing::info!(cluster = self.key, endpoint = %endpoint.address, "endpoint is healthy");
        } else if let Some(reason) = endpoint.health.reason() {
            tracing::warn!(cluster = self.key, endpoint = %endpoint.address, reason, "endpoint is unhealthy");
        }
        self.rebuild(&self.members());
    }

    /// Shows the endpoints as they are now to those who pick.
    fn rebuild(&self, members: &Members) {
        self.show(members, self.settings());
    }

    /// Shows these settings and the endpoints as they are now, together, to those who pick.
    fn show(&self, members: &Members, settings: Arc<Settings>) {
        self.dirty.store(false, Ordering::Release);
        let zone = self.zone.as_deref();
        let picker = Picker::build(&members.list(), &settings.config.load_balancing, zone, self.clock);
        self.view.store(Arc::new(View { settings, picker }));
    }

    /// Does what is due; called by the keeper, at least once a second.
    pub(super) fn keep(&self, sweep: bool) {
        let now = Instant::now();
        let settings = self.settings();
        let mut members = self.members();
        let mut changed = self.dirty.load(Ordering::Acquire);
        {
            let config = settings.outlier();
            let looked = *members.looked.get_or_insert(now);
            let interval_over = now.saturating_duration_since(looked) >= config.interval;
            if interval_over {
                members.looked = Some(now);
            }
            let millis = self.clock.at(now);
            for member in members.by_address.values() {
                changed |= member.endpoint.outlier.tick(now, millis, interval_over);
            }
            if interval_over && config.success_rate.is_some() {
                let endpoints = members.list();
                drop(members);
                self.look_at_success_rates(&endpoints, config);
                members = self.members();
                changed |= self.dirty.load(Ordering::Acquire);
            }
        }
        if changed {
            self.rebuild(&members);
        }
        let endpoints = if sweep { members.list() } else { Vec::new() };
        drop(members);
        endpoints.iter().for_each(|endpoint| endpoint.shelves.sweep(&settings, now, false));
    }

    fn look_at_success_rates(
        &self,
        endpoints: &[Arc<LiveEndpoint>],
        config: &selvedge_compile::snapshot::OutlierDetection,
    ) {
        let rates: Vec<(u32, u32)> = endpoints.iter().map(|e| e.outlier.take_rate()).collect();
        for index in outlier::success_rate_outliers(&rates, config) {
            if endpoints[index].outlier.standing() == Standing::Active {
                self.eject(&endpoints[index], outlier::Detector::SuccessRate, config);
            }
        }
    }

    /// Whether some ejection may end soon.
    pub(super) fn has_ejected(&self) -> bool {
        self.members().census().0 > 0
    }

    /// Stops what watches it and closes what is idle. Requests that still hold it finish.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let endpoints = {
            let mut members = self.members();
            let endpoints = members.list();
            *members = Members::default();
            endpoints
        };
        endpoints.iter().for_each(|endpoint| self.retire(endpoint));
    }

    /// Closes idle connections; the cluster stays in use.
    pub(super) fn close_idle(&self) {
        let endpoints = self.members().list();
        let (settings, now) = (self.settings(), Instant::now());
        endpoints.iter().for_each(|endpoint| endpoint.shelves.sweep(&settings, now, true));
    }
}

impl Settings {
    pub(crate) fn new(config: Arc<Cluster>, epoch: u64, dial: &Arc<Dial>) -> Self {
        let mut h2 = h2::ClientOptions::from(&config.connections);
        if config.tls.is_some() {
            h2.scheme = http::uri::Scheme::HTTPS;
        }
        let h1 = h1::ClientOptions::from(&config.connections);
        Self { plan: Plan::new(&config, dial.clone()), h1, h2, config, epoch }
    }
}
