//! An open loop: requests leave at a steady rate, however slow the answers are.
//!
//! Latency counts from when a request was meant to leave, so a request that waits for the answer before it on its
//! connection is as late as its user would find it. wrk and h2load are closed loops: they ask less when answers are slow.

use super::{handshakes, load, process};
use anyhow::Result;
use std::{
    net::{SocketAddr, TcpStream},
    num::NonZeroU64,
    process::Command,
    thread,
    time::{Duration, Instant},
};

#[derive(clap::Args, Clone)]
pub struct Args {
    /// The server.
    #[arg(long)]
    pub to: SocketAddr,
    /// Requests per second, over all connections.
    #[arg(long)]
    pub rate: u32,
    #[arg(long)]
    pub seconds: u64,
    /// Connections, a thread each; requests go round.
    #[arg(long, default_value_t = 32)]
    pub connections: u32,
    /// A new connection for each request.
    #[arg(long)]
    pub fresh: bool,
}

impl Args {
    /// Runs it as a process of its own, on the core of the load.
    pub fn measure(&self) -> Result<load::Seen> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["paced", "--to", &self.to.to_string(), "--rate", &self.rate.to_string()]);
        command.args(["--seconds", &self.seconds.to_string(), "--connections", &self.connections.to_string()]);
        if self.fresh {
            command.arg("--fresh");
        }
        load::line(&process::output(&mut command, Duration::from_secs(self.seconds + 60))?)
    }
}

pub fn run(args: &Args) -> Result<()> {
    // Threads connect first, then all start.
    let start = Instant::now() + Duration::from_millis(200);
    let each = u64::from(args.rate) * args.seconds / u64::from(args.connections.max(1));
    let threads: Vec<_> = (0..args.connections)
        .map(|n| {
            let args = args.clone();
            thread::spawn(move || connection(&args, n, each, start))
        })
        .collect();
    let (mut times, mut failed) = (Vec::new(), 0);
    for thread in threads {
        let (t, f) = thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        times.extend(t);
        failed += f;
    }
    load::print(times, start.elapsed(), failed);
    Ok(())
}

/// Latencies of one thread, and how many requests failed.
fn connection(args: &Args, n: u32, requests: u64, start: Instant) -> (Vec<Duration>, u64) {
    exact_timers();
    let interval = Duration::from_secs(1) * args.connections / args.rate.max(1);
    let first = start + Duration::from_secs(1) * n / args.rate.max(1);
    let mut kept = if args.fresh { None } else { open(args.to).ok() };
    let (mut times, mut failed) = (Vec::new(), 0);
    for i in 0..requests {
        let meant = first + interval * u32::try_from(i).unwrap_or(u32::MAX);
        thread::sleep(meant.saturating_duration_since(Instant::now()));
        match once(args, &mut kept) {
            Ok(()) => times.push(meant.elapsed()),
            Err(_) => {
                kept = None;
                failed += 1;
            }
        }
    }
    (times, failed)
}

fn once(args: &Args, kept: &mut Option<TcpStream>) -> Result<()> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => open(args.to)?,
    };
    let head = handshakes::keep_alive(&mut stream)?;
    anyhow::ensure!(head.starts_with("http/1.1 200"), "not a 200");
    if !args.fresh {
        *kept = Some(stream);
    }
    Ok(())
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// The kernel may else wake a thread 50 us late.
fn exact_timers() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}
