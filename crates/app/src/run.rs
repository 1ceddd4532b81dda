//! `selvedge run`: everything in one process; and what `selvedge proxy` shares with it, which is all but where resources
//! come from.

pub mod admin;
pub mod handover;
mod publish;
pub mod service_manager;
pub mod signals;

use crate::{
    logging::{self, Level},
    memory,
    proxy::beside::Beside,
};
use admin::{Address, Parts, Phase};
use anyhow::{Context, Result, anyhow, ensure};
use clap::Args as ClapArgs;
use handover::{Inherited, Origin};
use publish::Publishing;
use selvedge_compile::{Options, snapshot::Snapshot};
use selvedge_control::{
    Engine, Install, Problem, domain, saved,
    source::{FolderSource, Source, WithJoined},
};
use selvedge_identity::Identities;
use selvedge_mesh::{dns::Dns, identity::Keeper};
use selvedge_proxy::{
    discover::Discover,
    overload::Limits,
    proxy::{Proxy, Settings},
    session_key::SessionKey,
    worker::WorkerCount,
};
use signals::{Asked, Signals};
use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    pin::Pin,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::sync::{Notify, watch};

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Folder or file of YAML or JSON resources; may be given several times.
    #[arg(short = 'f', long = "file", required = true, value_name = "DIR")]
    pub files: Vec<PathBuf>,
    #[command(flatten)]
    pub publish: publish::Args,
    #[command(flatten)]
    pub common: Common,
}

/// Settings of every process that serves.
#[derive(Debug, Clone, ClapArgs)]
pub struct Common {
    /// Where the last good configuration is kept, for a start with broken files.
    #[arg(long, default_value = ".selvedge", value_name = "DIR")]
    pub state: PathBuf,
    /// Keep no last good configuration on disk.
    #[arg(long)]
    pub no_state: bool,
    /// Worker threads; the number of cores when not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Added to every listener port, so that ports below 1024 need no privileges.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub port_offset: u16,
    /// Zone of this proxy, for zone preference.
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// Connections over all listeners.
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    pub max_connections: usize,
    /// Bytes of memory that count as full (0: the limit of the cgroup, if any): at 95 % requests, at 98 % connections are shed.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub max_memory: u64,
    /// Seconds that connections have to finish after SIGTERM.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub drain: u64,
    /// Seconds between the end of readiness and the end of accepting, for load balancers to notice.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub drain_delay: u64,
    /// A secret of at least 16 bytes that session cookies are signed with; the same at all replicas.
    #[arg(long, value_name = "FILE", env = "SELVEDGE_SESSION_KEY_FILE")]
    pub session_key: Option<PathBuf>,
    /// CA certificates (PEM) that OTLP collectors at https:// addresses are trusted by, instead of the system's.
    #[arg(long, value_name = "FILE", env = "OTEL_EXPORTER_OTLP_CERTIFICATE")]
    pub otlp_ca: Option<PathBuf>,
    /// Address of the admin listener (moved by --port-offset), or `off`.
    #[arg(long, default_value = "127.0.0.1:15000", value_name = "ADDRESS")]
    pub admin: Address,
}

/// Connections were cut at the deadline of the drain.
const CUT: u8 = 3;
/// A second signal ended the process while it drained.
const INTERRUPTED: u8 = 130;
/// What waits to be written or exported at the end gets so long.
const FLUSH: Duration = Duration::from_secs(2);

/// What a process serves, and as whom.
pub struct Feed {
    pub source: Box<dyn Source>,
    pub options: Options,
    pub identities: Arc<Identities>,
    pub discover: Option<Arc<dyn Discover>>,
    /// Renews what is in `identities`; for its metrics.
    pub keeper: Option<Arc<Keeper>>,
    /// What only a proxy beside workloads has.
    pub beside: Beside,
    /// Is told when the process ends, before it drains.
    pub leave: Option<Leave>,
    /// The control plane in this process.
    pub publishing: Option<Arc<Publishing>>,
}

pub type Leave = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Leaving must not hold up the end of the process.
const LEAVE: Duration = Duration::from_secs(1);

pub fn run(args: &Args, log: &str) -> Result<ExitCode> {
    let common = &args.common;
    let saved = !common.no_state && common.state.join(saved::FILE).exists();
    for path in &args.files {
        ensure!(path.exists() || saved, "{} does not exist, and no last good configuration is kept", path.display());
    }
    args.publish.check()?;
    process(common, log, async |inherited| match args.publish.listen {
        Some(listen) => publishing(args, listen, inherited).await,
        None => Ok(Feed {
            source: Box::new(FolderSource::new(args.files.clone())),
            options: common.options(),
            identities: Arc::default(),
            discover: None,
            keeper: None,
            beside: Beside::default(),
            leave: None,
            publishing: None,
        }),
    })
}

/// The gateway, as a member of the mesh whose control plane is in this process.
async fn publishing(args: &Args, listen: SocketAddr, inherited: Option<TcpListener>) -> Result<Feed> {
    let common = &args.common;
    let state = (!common.no_state).then(|| common.state.clone());
    let source = || FolderSource::new(args.files.clone());
    let mesh = {
        // Before anything is compiled: who the gateway is depends on it.
        let mut source = source();
        if let Some(Ok(Some(saved))) = state.as_deref().map(saved::Saved::load) {
            source.remember(&saved);
        }
        source.refresh(true);
        domain::declared(source.resources()).map(str::to_owned)
    };
    let (publishing, member, joined) = Publishing::open(&args.publish, listen, state, mesh, inherited).await?;
    let options = Options {
        identity: Some(member.identity),
        trust_domain: Some(publishing.domain().name.clone()),
        ..common.options()
    };
    Ok(Feed {
        source: Box::new(WithJoined::new(source(), joined)),
        options,
        identities: member.identities,
        discover: None,
        keeper: Some(member.keeper),
        beside: Beside::default(),
        leave: None,
        publishing: Some(Arc::new(publishing)),
    })
}

impl Common {
    /// Of the compiler.
    pub fn options(&self) -> Options {
        Options { port_offset: self.port_offset, zone: self.zone.clone(), ..Options::default() }
    }
}

/// Serves until the process is asked to end. `feed` is called on the control runtime, with the socket for proxies of the process
/// that this one takes over from.
pub fn process(
    args: &Common,
    log: &str,
    feed: impl AsyncFnOnce(Option<TcpListener>) -> Result<Feed>,
) -> Result<ExitCode> {
    let level = logging::start(log)?;
    let origin = Origin::find()?;
    let inherited = Inherited::take()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("selvedge-control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let code = runtime.block_on(serve(args, level, &origin, inherited, feed));
    // Whatever still runs is not waited for.
    runtime.shutdown_background();
    code
}

async fn serve(
    args: &Common,
    level: Level,
    origin: &Origin,
    inherited: Option<Inherited>,
    feed: impl AsyncFnOnce(Option<TcpListener>) -> Result<Feed>,
) -> Result<ExitCode> {
    let (mut inherited, mut old_admin, mut old_control) = (inherited, None, None);
    if let Some(inherited) = &mut inherited {
        (old_admin, old_control) = (inherited.admin.take(), inherited.control.take());
    }
    let mut feed = feed(old_control).await?;
    let leave = feed.leave.take();
    let drain = Arc::new(Notify::new());
    let mut signals = Signals::new(drain.clone()).context("signals cannot be received")?;
    let settings = settings(args, &feed)?;
    let proxy =
        Arc::new(Proxy::start(&settings, tokio::runtime::Handle::current()).context("cannot start the workers")?);
    if let Some(keeper) = feed.keeper.take() {
        proxy.shared().telemetry.registry.collect(move |out| keeper.encode(out));
    }
    let publishing = feed.publishing.clone();
    if let Some(publishing) = publishing.clone() {
        proxy.shared().telemetry.registry.collect(move |out| publishing.encode(out));
    }
    let parts = Parts {
        proxy,
        phase: Arc::new(Phase::default()),
        current: Arc::new(OnceLock::new()),
        publisher: publishing.as_ref().map(|publishing| publishing.publisher().clone()),
        drain,
        level,
    };
    let (sockets, old) = inherited.map(Inherited::split).map_or((Vec::new(), None), |(s, o)| (s, Some(o)));
    parts.proxy.inherit(sockets);
    let admin = match old_admin {
        Some(socket) => Some(socket),
        None => args.admin.open(args.port_offset)?,
    };
    if let Some(admin) = &admin {
        parts.proxy.keep_private(admin.local_addr().context("the admin listener has no address")?);
    }
    let admin_end = watch::Sender::new(false);
    // As long as the old process serves, questions are for it.
    if old.is_none() {
        serve_admin(&parts, admin.as_ref(), &admin_end)?;
    }
    let reload = Arc::new(Notify::new());
    let looks = start_engine(args, feed, &parts, &reload);
    if let (Some(publishing), Some(current)) = (&publishing, parts.current.get()) {
        publishing.serve(current.clone()).await?;
        if let Some(socket) = publishing.socket() {
            parts.proxy.keep_private(socket.local_addr()?);
        }
    }
    parts.phase.serving();
    if let Some(old) = old {
        serve_admin(&parts, admin.as_ref(), &admin_end)?;
        match Inherited::ready(old) {
            Ok(()) => tracing::info!("serving; the old process drains"),
            // It will not drain because of us, but it may be gone altogether: the sockets are ours in any case.
            Err(error) => tracing::warn!("{error:#}; serving"),
        }
    }
    service_manager::ready();
    tokio::spawn(memory::give_back());
    let upgrade = Upgrade { origin, proxy: &parts.proxy, admin: admin.as_ref(), publishing: publishing.as_deref() };
    let ended = until_end(&parts, &mut signals, &upgrade, (&reload, looks)).await;
    if let (Ended::Asked, Some(leave)) = (&ended, leave) {
        let _ = tokio::time::timeout(LEAVE, leave).await;
    }
    Ok(finish(args, &parts, &mut signals, ended, &admin_end).await)
}

fn settings(args: &Common, feed: &Feed) -> Result<Settings> {
    let mut settings = Settings {
        zone: args.zone.clone(),
        otlp_ca: args.otlp_ca.clone(),
        session_key: args.session_key.as_deref().map(session_key).transpose()?,
        identities: feed.identities.clone(),
        discover: feed.discover.clone(),
        mark: feed.beside.mark,
        spaces: Some(feed.beside.spaces.clone()),
        name_servers: feed.beside.name_servers.clone(),
        ..Settings::default()
    };
    if let Some(workers) = args.workers {
        settings.workers = WorkerCount(usize::from(workers));
    }
    settings.limits =
        Limits { max_connections: args.max_connections, max_memory: args.max_memory, ..Limits::default() };
    Ok(settings)
}

fn session_key(file: &Path) -> Result<SessionKey> {
    let secret = std::fs::read(file).with_context(|| format!("cannot read the session key {}", file.display()))?;
    SessionKey::new(&secret).map_err(|error| anyhow!("{}: {error}", file.display()))
}

fn serve_admin(parts: &Parts, socket: Option<&TcpListener>, end: &watch::Sender<bool>) -> Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    let mut end = end.subscribe();
    parts.serve(socket.try_clone()?, async move {
        let _ = end.wait_for(|end| *end).await;
    })
}

/// Installs the first configuration and follows the source from then on.
fn start_engine(args: &Common, feed: Feed, parts: &Parts, reload: &Arc<Notify>) -> watch::Receiver<u64> {
    let target = parts.proxy.clone();
    let names = feed.beside.names.clone();
    let servers: Vec<&Dns> = names.iter().map(|(_, server)| server).collect();
    target.shared().telemetry.registry.collect(Dns::samples_of(&servers));
    let install: Install = Box::new(move |snapshot: &Snapshot| {
        for (netns, server) in names.iter() {
            server.set(snapshot.dns.get(netns).cloned().unwrap_or_default());
        }
        let problem = |p: selvedge_proxy::proxy::ListenerProblem| Problem {
            listener: p.bind.to_string(),
            message: p.message,
            transient: p.transient,
        };
        target.install(snapshot).into_iter().map(problem).collect()
    });
    let state = (!args.no_state).then(|| args.state.clone());
    let domain = feed.publishing.as_ref().map(|publishing| publishing.domain().clone());
    let domain = watch::Sender::new(domain).subscribe();
    let engine = Engine::of_domain(feed.source, state, feed.options, install, domain);
    let (current, looks) = (engine.current(), engine.looks());
    // Set once, here.
    let _ = parts.current.set(current.clone());
    tokio::spawn(admin::measure(parts.proxy.clone(), current));
    tokio::spawn(engine.run(reload.clone()));
    looks
}

/// Why the process ends.
enum Ended {
    Asked,
    /// The new process serves.
    Replaced(tokio::process::Child),
}

/// What the new binary is handed.
struct Upgrade<'p> {
    origin: &'p Origin,
    proxy: &'p Proxy,
    admin: Option<&'p TcpListener>,
    publishing: Option<&'p Publishing>,
}

impl Upgrade<'_> {
    /// Returns when the new process serves. When it does not come to that, everything is as before.
    async fn run(&self) -> Result<tokio::process::Child> {
        // One process at a time has the certificate authority.
        if let Some(publishing) = self.publishing {
            publishing.check_upgrade()?;
            publishing.pause().await;
        }
        let control = self.publishing.and_then(Publishing::socket);
        let child = self.origin.hand_over(self.proxy, self.admin, control).await;
        if let (Err(_), Some(publishing)) = (&child, self.publishing) {
            publishing.resume().await;
        }
        child
    }
}

/// Reloads and upgrades when asked to, until the process is to end.
async fn until_end(
    parts: &Parts,
    signals: &mut Signals,
    new: &Upgrade<'_>,
    (reload, mut looks): (&Notify, watch::Receiver<u64>),
) -> Ended {
    let mut upgrade = std::pin::pin!(None);
    let mut reloading = false;
    loop {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            Ok(()) = looks.changed(), if reloading => {
                reloading = false;
                service_manager::ready();
                continue;
            }
            result = poll_option(upgrade.as_mut()) => {
                upgrade.set(None);
                match result {
                    Ok(child) => return Ended::Replaced(child),
                    Err(error) => {
                        let error: anyhow::Error = error;
                        tracing::error!("the upgrade has failed, this process serves on: {error:#}");
                        continue;
                    }
                }
            }
        };
        match asked {
            Asked::End => return Ended::Asked,
            Asked::Reload => {
                tracing::info!("SIGHUP: looking at the files and opening access logs again");
                service_manager::reloading();
                looks.mark_unchanged();
                reloading = true;
                reload.notify_one();
                parts.proxy.shared().telemetry.reopen();
            }
            Asked::Upgrade if upgrade.is_some() => tracing::warn!("SIGUSR2: an upgrade is under way already"),
            Asked::Upgrade => {
                tracing::info!("SIGUSR2: starting the new binary");
                upgrade.set(Some(new.run()));
            }
        }
    }
}

/// The future that is there; without one, never.
async fn poll_option<F: Future>(mut future: std::pin::Pin<&mut Option<F>>) -> F::Output {
    std::future::poll_fn(|cx| match future.as_mut().as_pin_mut() {
        Some(future) => future.poll(cx),
        None => std::task::Poll::Pending,
    })
    .await
}

/// Drains. Another signal, or the failure to drain in time, ends it.
async fn finish(
    args: &Common,
    parts: &Parts,
    signals: &mut Signals,
    ended: Ended,
    admin_end: &watch::Sender<bool>,
) -> ExitCode {
    match &ended {
        Ended::Asked => parts.phase.ending(),
        // Questions are for the new process. Traffic is welcome: who is still answered here is told nothing else.
        Ended::Replaced(_) => _ = admin_end.send_replace(true),
    }
    let proxy = &parts.proxy;
    proxy.shared().telemetry.registry.process.set_draining(true);
    let deadline = Duration::from_secs(args.drain);
    let draining = async {
        match ended {
            Ended::Asked => {
                service_manager::stopping();
                if args.drain_delay > 0 {
                    tracing::info!(
                        seconds = args.drain_delay,
                        "no longer ready; serving on until load balancers have noticed"
                    );
                    tokio::time::sleep(Duration::from_secs(args.drain_delay)).await;
                }
                tracing::info!(seconds = args.drain, "draining");
                proxy.drain(deadline).await
            }
            Ended::Replaced(child) => {
                let pid = child.id().unwrap_or_default();
                tracing::info!(pid, seconds = args.drain, "the new process serves; draining");
                service_manager::main_process(pid);
                let drained = proxy.hand_over(deadline).await;
                drop(child);
                drained
            }
        }
    };
    let drained = tokio::select! {
        drained = draining => drained,
        () = signals.end() => {
            tracing::warn!("asked to end again: ending at once");
            return ExitCode::from(INTERRUPTED);
        }
    };
    proxy.shared().telemetry.flush(FLUSH).await;
    if drained.cut > 0 {
        tracing::warn!(connections = drained.cut, "the drain deadline has passed: connections were cut");
        return ExitCode::from(CUT);
    }
    tracing::info!("every connection has finished");
    ExitCode::SUCCESS
}
