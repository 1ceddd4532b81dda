//! `selvedge demo`: a small shop on loopback, the gateway in front of it, a trickle of traffic, and what to try.

mod certificate;
mod client;
mod folder;
mod paint;
mod ports;
mod services;
mod summary;
mod traffic;

use crate::run;
use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Args as ClapArgs, Parser};
use folder::Folder;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use ports::Ports;
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

/// What the process says of itself during the demo, unless `--log` asks for something: warnings, and reloads.
const LOG: &str = "warn,selvedge_control=info";
/// Longest time for the gateway to answer its first request.
const START: Duration = Duration::from_secs(20);
/// Between looks at whether it does.
const LOOK: Duration = Duration::from_millis(20);
/// Between signals to a gateway that was not up yet at the first.
const AGAIN: Duration = Duration::from_millis(100);
/// Seconds that open connections have to finish at the end.
const DRAIN: &str = "2";

#[derive(Debug, Clone, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// First of 20 ports in a row: HTTP here, HTTPS at +1, TCP at +2, admin at +3, the sample services from +10.
    #[arg(long, default_value_t = ports::DEFAULT_BASE, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65_500))]
    port_base: u16,
    /// New or empty folder for the resources, which stays afterwards; a temporary one when not given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Send no traffic of its own.
    #[arg(long)]
    no_traffic: bool,
    #[command(subcommand)]
    attempt: Option<client::Attempt>,
}

/// The arguments of `selvedge run`, with its own defaults.
#[derive(Debug, Parser)]
struct Gateway {
    #[command(flatten)]
    args: run::Args,
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
    let folder = Folder::create(args.dir.as_deref(), ports)?;
    let services = runtime.block_on(services::start(ports))?;
    runtime.spawn(accompany(ports, end, summary::text(ports, &folder), !args.no_traffic));
    // Connections that a client holds open at the end are cut: that is no failure of a demo.
    let ended = run::run(&gateway(ports, &folder)?, if log_is_asked_for() { log } else { LOG });
    drop(services);
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map(|_| ExitCode::SUCCESS)
}

fn gateway(ports: Ports, folder: &Folder) -> Result<run::Args> {
    let mut line: Vec<OsString> = vec!["selvedge".into(), "--file".into(), folder.resources().into()];
    line.extend(["--no-state", "--drain", DRAIN, "--admin", &ports.admin().to_string()].map(OsString::from));
    Ok(Gateway::try_parse_from(line)?.args)
}

fn log_is_asked_for() -> bool {
    let flag = |argument: OsString| argument.to_string_lossy().starts_with("--log");
    std::env::var_os("SELVEDGE_LOG").is_some() || std::env::args_os().any(flag)
}

/// The signals that end the demo. The gateway watches them too, for its own end.
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

/// What happens beside the gateway: the summary once it serves, traffic until the end.
async fn accompany(ports: Ports, mut end: End, summary: String, traffic: bool) {
    let ready = tokio::select! {
        ready = ready(ports) => ready,
        () = end.asked() => loop {
            // The gateway may not have been watching yet when the signal came: it gets another one.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT);
            tokio::time::sleep(AGAIN).await;
        },
    };
    if !ready {
        tracing::error!("the gateway does not answer on {}: see the messages above", ports.http());
    }
    say(&summary);
    let sending = traffic.then(|| traffic::start(ports));
    end.asked().await;
    drop(sending);
    say("\nEnding: open requests finish, then the demo is gone.");
}

/// Whether the gateway says that it is ready, and answers, in time.
async fn ready(ports: Ports) -> bool {
    let began = Instant::now();
    while began.elapsed() < START {
        let ready = answers(ports.admin(), "/ready").await.is_ok_and(|ok| ok);
        if ready && answers(ports.http(), "/catalog").await.is_ok_and(|ok| ok) {
            return true;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
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
