//! `selvedge run`: everything in one process.

use anyhow::{Context, Result, ensure};
use clap::Args as ClapArgs;
use selvedge_control::{Engine, Problem};
use selvedge_proxy::{
    overload::Limits,
    proxy::{Proxy, Settings},
    worker::WorkerCount,
};
use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Folder or file of YAML or JSON resources; may be given several times.
    #[arg(short = 'f', long = "file", required = true, value_name = "DIR")]
    pub files: Vec<PathBuf>,
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
}

pub fn run(args: &Args, log: &str) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(log).context("--log is not a valid filter")?)
        .with_writer(std::io::stderr)
        .init();
    for path in &args.files {
        ensure!(path.exists() || !args.no_state, "{} does not exist", path.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("selvedge-control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: &Args) -> Result<ExitCode> {
    let mut settings = Settings { zone: args.zone.clone(), ..Settings::default() };
    if let Some(workers) = args.workers {
        settings.workers = WorkerCount(usize::from(workers));
    }
    settings.limits = Limits { max_connections: args.max_connections, max_memory: args.max_memory, ..Limits::default() };
    let proxy = Arc::new(Proxy::start(&settings, tokio::runtime::Handle::current()).context("cannot start the workers")?);
    let target = proxy.clone();
    let install = Box::new(move |snapshot: &selvedge_compile::snapshot::Snapshot| {
        let problems = target.install(snapshot);
        problems.into_iter().map(|p| Problem { listener: p.bind.to_string(), message: p.message }).collect()
    });
    let options = selvedge_compile::Options { port_offset: args.port_offset, zone: args.zone.clone(), ..Default::default() };
    let state = (!args.no_state).then(|| args.state.clone());
    let engine = Engine::start(selvedge_control::Settings { roots: args.files.clone(), state, options }, install);
    let reload = Arc::new(Notify::new());
    tokio::spawn(engine.run(reload.clone()));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload.notify_one(),
        }
    }
    tracing::info!(seconds = args.drain, "draining");
    let drained = proxy.drain(Duration::from_secs(args.drain)).await;
    if drained.cut > 0 {
        tracing::warn!(connections = drained.cut, "the drain deadline has passed: connections were cut");
        return Ok(ExitCode::from(3));
    }
    Ok(ExitCode::SUCCESS)
}
