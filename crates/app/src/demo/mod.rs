//! `selvedge demo`: a small shop on loopback, all of it in a mesh, the gateway in front of it, a trickle of traffic, and what
//! to try.

mod certificate;
pub mod children;
mod client;
mod fleet;
mod folder;
mod identities;
mod netns;
mod paint;
mod ports;
mod services;
mod spaces;
mod summary;
mod traffic;

use crate::logging;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args as ClapArgs;
use fleet::Fleet;
use folder::Folder;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use ports::Ports;
use spaces::Spaces;
use std::{
    ffi::OsString,
    io::Write,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    signal::unix::{Signal, SignalKind, signal},
};

/// What this process says of itself, unless `--log` asks for something; the others write files.
const LOG: &str = "warn";
/// Longest time for the gateway to answer its first request.
const START: Duration = Duration::from_secs(20);
/// Between looks at whether it does.
const LOOK: Duration = Duration::from_millis(20);
/// Between looks at whether all processes are alive.
const ALIVE: Duration = Duration::from_millis(500);
/// Seconds that open connections have to finish at the end.
const DRAIN: &str = "2";

#[derive(Debug, Clone, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// First of 20 ports in a row: HTTP here, HTTPS at +1, TCP at +2, admin at +3, control plane
    /// at +4, the sample services from +10.
    #[arg(long, default_value_t = ports::DEFAULT_BASE, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65_500))]
    port_base: u16,
    /// New or empty folder for the resources, which stays afterwards; a temporary one when not given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Seconds that certificates of the mesh live; they are renewed at half of that.
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(4..=86_400))]
    svid_ttl: u64,
    /// Show programs that know nothing of the mesh instead, each in a network namespace, with their connections captured;
    /// needs root.
    #[arg(long)]
    netns: bool,
    /// Send no traffic of its own.
    #[arg(long)]
    no_traffic: bool,
    #[command(subcommand)]
    attempt: Option<client::Attempt>,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When a port is busy or the folder cannot be written.
pub fn run(args: &Args, log: &str) -> Result<ExitCode> {
    if let Some(attempt) = &args.attempt {
        return client::run(attempt);
    }
    let ports = Ports::new(args.port_base);
    ports.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("selvedge-shop")
        .enable_all()
        .build()
        .context("cannot start the runtime of the sample services")?;
    // Before there is anything to clean up: from here on a signal does not end the process on the spot.
    let end = runtime.block_on(async { End::watch() }).context("signals cannot be received")?;
    logging::start(if log_is_asked_for() { log } else { LOG })?;
    let spaces = args.netns.then(Spaces::create).transpose()?;
    let folder = Folder::create(args.dir.as_deref(), ports, args.netns)?;
    let services = if args.netns { None } else { Some(runtime.block_on(services::start(ports))?) };
    let mut fleet = Fleet::new(args, ports, &folder, log);
    // On this thread: the others end with it.
    let ended = runtime.block_on(async {
        match args.netns {
            true => netns::accompany(&mut fleet, end).await,
            false => accompany(args, &mut fleet, end).await,
        }
    });
    runtime.block_on(fleet.children.end());
    drop((services, spaces));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map(|()| ExitCode::SUCCESS)
}

fn log_is_asked_for() -> bool {
    let flag = |argument: OsString| argument.to_string_lossy().starts_with("--log");
    std::env::var_os("SELVEDGE_LOG").is_some() || std::env::args_os().any(flag)
}

/// The signals that end the demo.
struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn watch() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Starts the mesh, says what there is, sends traffic until the end.
async fn accompany(args: &Args, fleet: &mut Fleet<'_>, mut end: End) -> Result<()> {
    let (ports, folder) = (fleet.ports, fleet.folder);
    let started = async {
        fleet.start().await?;
        ready(fleet).await
    };
    tokio::select! {
        started = started => started?,
        () = end.asked() => return Ok(()),
    }
    say(&summary::text(ports, folder));
    let sending = (!args.no_traffic).then(|| traffic::start(ports));
    stay(fleet, &mut end).await?;
    drop(sending);
    say("\nEnding: open requests finish, then the demo is gone.");
    Ok(())
}

/// Until the end, or until a process has failed.
async fn stay(fleet: &mut Fleet<'_>, end: &mut End) -> Result<()> {
    loop {
        tokio::select! {
            () = end.asked() => return Ok(()),
            () = tokio::time::sleep(ALIVE) => fleet.children.check()?,
        }
    }
}

/// Waits until the gateway is ready and reaches the services, and each service has its proxy.
async fn ready(fleet: &mut Fleet<'_>) -> Result<()> {
    let ports = fleet.ports;
    let mut waiting: Vec<(SocketAddr, &str)> = vec![(ports.admin(), "/ready")];
    waiting.extend(["/catalog", "/cart", "/audit"].map(|path| (ports.http(), path)));
    let mut places: Vec<SocketAddr> = ports.places().flat_map(|p| [p.hbone(), p.http_proxy()]).collect();
    let began = Instant::now();
    loop {
        fleet.children.check()?;
        while let Some(address) = places.first()
            && TcpStream::connect(address).await.is_ok()
        {
            places.remove(0);
        }
        // A request before would count as a failure of the service.
        while places.is_empty()
            && let Some((address, path)) = waiting.first()
            && answers(*address, path).await.is_ok_and(|ok| ok)
        {
            waiting.remove(0);
        }
        if waiting.is_empty() && places.is_empty() {
            return Ok(());
        }
        if began.elapsed() > START {
            let what = places.first().map(ToString::to_string);
            let what = what.or_else(|| waiting.first().map(|(address, path)| format!("http://{address}{path}")));
            let what = what.unwrap_or_default();
            bail!(
                "{what} does not answer within {} s; the logs are in {}",
                START.as_secs(),
                fleet.folder.logs().display()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn answers(address: SocketAddr, path: &str) -> Result<bool> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let ask = sender.send_request(request);
    tokio::select! {
        answer = ask => Ok(answer?.status().is_success()),
        _ = connection => Ok(false),
    }
}

/// A line for the user; when nobody reads any more, the demo goes on.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}
