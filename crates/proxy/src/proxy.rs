//! The data plane as a whole: installs snapshots, keeps sockets, drains.

use crate::{
    access,
    auth::Proofs,
    cluster::Clusters,
    dial::Dial,
    discover::Discover,
    listener::{self, OpenListener, OpenSocket},
    outbound::Questions,
    overload::{Limits, Overload},
    own::Own,
    session_key::SessionKey,
    spaces::Spaces,
    table::ListenerTable,
    telemetry::{self, ListenerHandle, Telemetry},
    tls,
    worker::{WorkerCount, Workers},
};
use selvedge_compile::snapshot::{Bind, Snapshot};
use selvedge_identity::{Bundle, Identities};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::runtime::Handle;

/// What the process decides, as opposed to its configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    pub workers: WorkerCount,
    pub limits: Limits,
    /// Where this proxy runs, for zone preference.
    pub zone: Option<String>,
    /// Certificates to show to members of a mesh, and whom to trust among them; filled by others.
    pub identities: Arc<Identities>,
    /// SO_MARK of every socket towards upstreams, by which whoever redirects connections tells ours from those of
    /// applications. Needs CAP_NET_ADMIN; without it connections fail.
    pub mark: Option<u32>,
    /// How sockets are made in other network namespaces.
    pub spaces: Option<Arc<dyn Spaces>>,
    /// Who is asked about destinations that are not known.
    pub discover: Option<Arc<dyn Discover>>,
    /// Signs session cookies; the same at all replicas.
    pub session_key: Option<SessionKey>,
    /// PEM file of the CAs that OTLP collectors are trusted by, instead of the system's.
    pub otlp_ca: Option<PathBuf>,
    /// DNS servers that are asked for names of backends; none: those of the system.
    pub name_servers: Vec<SocketAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            workers: WorkerCount(cores),
            limits: Limits::default(),
            zone: None,
            identities: Arc::default(),
            mark: None,
            spaces: None,
            discover: None,
            session_key: None,
            otlp_ca: None,
            name_servers: Vec::new(),
        }
    }
}

/// What all workers share.
pub struct Shared {
    pub workers: Workers,
    pub overload: Arc<Overload>,
    pub clusters: Clusters,
    pub telemetry: Arc<Telemetry>,
    tls: tls::Store,
    /// How sockets towards upstreams are made, and who we are to members of a mesh.
    pub dial: Arc<Dial>,
    pub discover: Option<Arc<dyn Discover>>,
    /// Asked of `discover` and not yet answered.
    pub(crate) questions: Questions,
    pub(crate) session_key: Option<SessionKey>,
    /// Tells what is in progress that AccessPolicies have changed.
    pub(crate) access: access::Watch,
    /// Tokens that were verified.
    pub(crate) proofs: Proofs,
    /// Where connections of workloads come in.
    pub(crate) own: Own,
    /// Where health checks, DNS and exports run.
    pub control: Handle,
}

/// The running data plane.
pub struct Proxy {
    shared: Arc<Shared>,
    open: Mutex<BTreeMap<Bind, Arc<OpenListener>>>,
    /// Closed listeners whose connections are not yet finished.
    closing: Mutex<Vec<Arc<OpenListener>>>,
    /// Sockets from the process before this one, until a snapshot asks for them.
    inherited: Mutex<BTreeMap<Bind, OpenSocket>>,
    /// Nothing is opened any more.
    draining: AtomicBool,
}

/// A listener that could not be served as configured.
#[derive(Debug)]
pub struct ListenerProblem {
    pub bind: Bind,
    pub message: String,
    /// The same snapshot may be served at another time: its address may become free.
    pub transient: bool,
}

/// How long a socket that is being closed may keep its address from another listener.
const CLOSING: Duration = Duration::from_secs(1);

/// How often it is looked whether a table that was replaced is still in use.
const RETIRING: Duration = Duration::from_secs(1);

/// How draining ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still open at the deadline and have been cut.
    pub cut: usize,
}

impl Proxy {
    /// Starts the workers. Background work runs on `control`.
    pub fn start(settings: &Settings, control: Handle) -> io::Result<Self> {
        let workers = Workers::start(settings.workers)?;
        let count = workers.count();
        let overload = Overload::new(settings.limits);
        control.spawn(overload.clone().watch());
        let dial = Arc::new(Dial::new(settings.identities.clone(), settings.mark, settings.spaces.clone()));
        let shared = Arc::new(Shared {
            clusters: Clusters::with_dial(
                count,
                settings.zone.clone(),
                control.clone(),
                dial.clone(),
                settings.name_servers.clone(),
            ),
            telemetry: Telemetry::on(count, Some(control.clone()), settings.otlp_ca.as_deref()),
            tls: tls::Store::default(),
            dial,
            discover: settings.discover.clone(),
            questions: Questions::default(),
            session_key: settings.session_key.clone(),
            access: access::Watch::new(count),
            proofs: Proofs::new(count),
            own: Own::default(),
            workers,
            overload,
            control,
        });
        let weak = Arc::downgrade(&shared);
        shared.telemetry.registry.collect(move |out| {
            if let Some(shared) = weak.upgrade() {
                telemetry::encode_clusters(&shared.clusters, out);
                shared.dial.tunnels.encode(out);
                shared.overload.encode(out);
            }
        });
        Ok(Self {
            shared,
            open: Mutex::default(),
            closing: Mutex::default(),
            inherited: Mutex::default(),
            draining: AtomicBool::new(false),
        })
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Nobody is to come to this socket of the process through the proxy.
    pub fn keep_private(&self, socket: std::net::SocketAddr) {
        self.shared.own.keep_private(socket);
    }

    /// Sockets handed over by another process; a snapshot that wants the same address takes them instead of binding.
    pub fn inherit(&self, sockets: impl IntoIterator<Item = (Bind, OpenSocket)>) {
        lock(&self.inherited).extend(sockets);
    }

    /// The open listeners.
    pub fn listeners(&self) -> Vec<Arc<OpenListener>> {
        lock(&self.open).values().cloned().collect()
    }

    /// Closed listeners whose connections are not yet finished.
    pub fn closing(&self) -> Vec<Arc<OpenListener>> {
        lock(&self.closing).clone()
    }

    /// Makes a snapshot effective: opens what is new, swaps what stays, closes what is gone. Listeners that cannot be
    /// served are reported; what they served before goes on. While draining, connections that are left are served by
    /// the new snapshot, and nothing is opened.
    pub fn install(&self, snapshot: &Snapshot) -> Vec<ListenerProblem> {
        self.believe(snapshot);
        let clusters: Arc<[_]> = self.shared.clusters.link(&snapshot.clusters).into();
        let mut problems = Vec::new();
        let mut open = lock(&self.open);
        if !self.draining.load(Relaxed) {
            self.close_gone(&mut open, snapshot);
        }
        self.shared.own.set(snapshot);
        let epoch = self.shared.access.next();
        let nowhere: Arc<ListenerHandle> = self.shared.telemetry.nowhere(&snapshot.telemetry);
        for config in &snapshot.listeners {
            let bind = config.bind;
            let shared = &self.shared;
            let before = open.get(&bind).map(|listener| listener.table());
            let before = before.as_deref();
            let (mut table, errors) =
                ListenerTable::link(config, &clusters, &shared.telemetry, &nowhere, &shared.tls, before);
            table.epoch = epoch;
            problems.extend(errors.iter().map(|e| ListenerProblem { bind, message: e.to_string(), transient: false }));
            if let Err(message) = self.serve(&mut open, bind, Arc::new(table)) {
                problems.push(ListenerProblem { bind, message, transient: true });
            }
        }
        self.shared.access.installed(epoch, snapshot, &self.shared.telemetry.access);
        // What the new configuration did not want of the old process's sockets is closed.
        lock(&self.inherited).clear();
        problems
    }

    /// Takes over which other trust domains are believed; connections of those that are not any more end.
    fn believe(&self, snapshot: &Snapshot) {
        let mut others = BTreeMap::new();
        for (domain, ca) in &snapshot.federation {
            match Bundle::new(ca.certificates.iter().cloned()) {
                Ok(bundle) => _ = others.insert(domain.clone(), bundle),
                Err(error) => tracing::warn!(domain, %error, "identities of this trust domain are not believed"),
            }
        }
        if let Err(error) = self.shared.dial.identities.federate(others) {
            tracing::warn!(%error, "other trust domains stay as they were");
        }
    }

    /// Sockets that are gone are closed first, as a listener may move to another address of the same port; that one
    /// then waits for the old one's backlog to be accepted.
    fn close_gone(&self, open: &mut BTreeMap<Bind, Arc<OpenListener>>, snapshot: &Snapshot) {
        let wanted: BTreeSet<Bind> = snapshot.listeners.iter().map(|l| l.bind).collect();
        let opened: Vec<Bind> = wanted.iter().filter(|bind| !open.contains_key(bind)).copied().collect();
        let mut closing = lock(&self.closing);
        let gone: Vec<_> = open.extract_if(.., |bind, _| !wanted.contains(bind)).collect();
        for (bind, listener) in &gone {
            tracing::info!(listener = %bind, "closing the listener; its connections finish");
            listener.close();
            closing.push(listener.clone());
        }
        closing.retain(|listener| listener.drainer.open() > 0);
        drop(closing);
        for (bind, listener) in gone {
            if opened.iter().any(|new| new.port == bind.port && new.transport == bind.transport) {
                listener.wait_gone(CLOSING);
            }
        }
    }

    /// Lets go of a table when nobody else has it any more: to free 10,000 routes takes milliseconds, which the last request
    /// that was served by them, and all others of its worker, would wait.
    fn retire(&self, table: Arc<ListenerTable>) {
        self.shared.control.spawn(async move {
            while Arc::strong_count(&table) > 1 {
                tokio::time::sleep(RETIRING).await;
            }
        });
    }

    fn serve(
        &self,
        open: &mut BTreeMap<Bind, Arc<OpenListener>>,
        bind: Bind,
        table: Arc<ListenerTable>,
    ) -> Result<(), String> {
        if let Some(listener) = open.get(&bind) {
            self.retire(listener.set_table(table));
            return Ok(());
        }
        if self.draining.load(Relaxed) {
            lock(&self.closing).iter().filter(|l| l.bind == bind).for_each(|l| drop(l.set_table(table.clone())));
            return Ok(());
        }
        let inherited = lock(&self.inherited).remove(&bind);
        let socket = match inherited {
            Some(socket) => socket,
            None => listener::open(bind, self.shared.dial.spaces()).map_err(|e| bind_error(bind, &e))?,
        };
        let listener = OpenListener::new(bind, socket, table).map_err(|e| bind_error(bind, &e))?;
        listener.start(&self.shared).map_err(|e| bind_error(bind, &e))?;
        tracing::info!(listener = %bind, "listening");
        open.insert(bind, listener);
        Ok(())
    }

    /// Stops accepting (what waits in the backlogs is accepted first) and waits until every connection is finished, or
    /// until `deadline` has passed.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.finish(deadline, OpenListener::close).await
    }

    /// As [`Proxy::drain`], when another process has the sockets and has begun to accept: the backlogs are left to it.
    pub async fn hand_over(&self, deadline: Duration) -> Drained {
        self.finish(deadline, OpenListener::hand_over).await
    }

    async fn finish(&self, deadline: Duration, end: fn(&OpenListener)) -> Drained {
        // Kept among `closing`: their tables hold the outputs of the access logs, which are written to until the end.
        let listeners = {
            let mut open = lock(&self.open);
            self.draining.store(true, Relaxed);
            let mut closing = lock(&self.closing);
            closing.extend(std::mem::take(&mut *open).into_values());
            closing.clone()
        };
        self.shared.telemetry.registry.process.set_draining(true);
        listeners.iter().for_each(|listener| end(listener));
        let all = async {
            for listener in &listeners {
                listener.drainer.done().await;
            }
        };
        let cut = match tokio::time::timeout(deadline, all).await {
            Ok(()) => 0,
            Err(_) => listeners.iter().map(|l| l.drainer.open()).sum(),
        };
        Drained { cut }
    }
}

fn bind_error(bind: Bind, error: &io::Error) -> String {
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process (or another listener) has this port: find it with `ss -ltnp`, or choose another port"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or CAP_NET_BIND_SERVICE, or choose a higher port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have the address: correct spec.addresses of the Gateway"
        }
        _ => "see the error of the operating system",
    };
    format!("cannot listen on {bind}: {error}; {help}")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
