//! One of 10,000 routes changes every second while requests run.

use super::{
    Effort,
    config::{self, Routes},
    handshakes,
    load::{self, Seen, percentile},
    peer::{self, Peer},
    world::World,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

pub const NAME: &str = "change";
const ROUTES: usize = 10_000;
const CHANGED: usize = 5_000;
const CONNECTIONS: usize = 32;
/// A change that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(30);

pub struct Outcome {
    pub calm: Seen,
    pub changing: Seen,
    /// Microseconds of processor per request, calm and changing; the work of the change is in the second.
    pub cpu: [f64; 2],
    pub changes: usize,
    /// From the rename of the file to the first answer with the new header.
    pub median: Duration,
    pub longest: Duration,
    /// What Selvedge says a change took it, without reading the file and waiting for the processor: median.
    pub took: Duration,
}

pub fn run(world: &World, effort: Effort) -> Result<Outcome> {
    println!("\nA route change per second among 10,000 routes, under load");
    let running = peer::start(world, Peer::Selvedge, Routes::Many(ROUTES), NAME)?;
    let seconds = effort.seconds * effort.rounds.max(2);
    let url = format!("http://{}/", running.http());
    let load = |seconds| {
        let before = running.process.cpu()?;
        let seen = load::wrk(&world.dir, &url, CONNECTIONS, seconds, ROUTES)?;
        let cpu = running.process.cpu()?.saturating_sub(before);
        anyhow::Ok((seen, cpu.as_secs_f64() * 1e6 / seen.requests.max(1) as f64))
    };
    load(1)?;
    let (calm, calm_cpu) = load(seconds)?;
    let stop = Arc::new(AtomicBool::new(false));
    let changer = {
        let (stop, address) = (stop.clone(), running.http());
        let folder = running.dir.join("resources");
        thread::spawn(move || change(&folder, address, &stop))
    };
    let changing = load(seconds);
    stop.store(true, Ordering::Relaxed);
    let mut times = changer.join().map_err(|_| anyhow::anyhow!("the changer panicked"))??;
    let (changing, changing_cpu) = changing?;
    times.sort_unstable();
    let outcome = Outcome {
        calm,
        changing,
        cpu: [calm_cpu, changing_cpu],
        changes: times.len(),
        median: percentile(&times, 0.5).context("no change was made")?,
        longest: times.last().copied().unwrap_or_default(),
        took: took(&running.dir.join("log"))?,
    };
    println!(
        "  {} changes, effective after {:?} (longest {:?}, the work itself {:?}); p99 {:?}, without changes {:?}; failed {}",
        outcome.changes,
        outcome.median,
        outcome.longest,
        outcome.took,
        outcome.changing.p99,
        outcome.calm.p99,
        outcome.changing.failed
    );
    Ok(outcome)
}

/// The median of `took=12.3ms` over the changes in the log; the first entry is the start.
fn took(log: &Path) -> Result<Duration> {
    let log = fs::read_to_string(log)?;
    let value = |line: &str| {
        let text = line.split("took=").nth(1)?.split_whitespace().next()?;
        let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let scale = match &text[unit..] {
            "s" => 1.0,
            "ms" => 1e-3,
            "µs" => 1e-6,
            _ => return None,
        };
        Some(Duration::from_secs_f64(text[..unit].parse::<f64>().ok()? * scale))
    };
    let mut times: Vec<Duration> = log.lines().filter_map(value).skip(1).collect();
    times.sort_unstable();
    Ok(percentile(&times, 0.5).unwrap_or_default())
}

/// Rewrites one route every second and asks for it until it answers with its new version.
fn change(folder: &Path, address: SocketAddr, stop: &AtomicBool) -> Result<Vec<Duration>> {
    let (name, prefix) = (format!("r{CHANGED:05}"), config::route(CHANGED));
    let (file, fresh) = (folder.join(format!("{name}.json")), folder.with_extension("fresh"));
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut times = Vec::new();
    for version in 1u32.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        fs::write(&fresh, config::selvedge_route(&name, &prefix, Some(version)).to_string())?;
        let began = Instant::now();
        fs::rename(&fresh, &file)?;
        let expected = format!("x-version: {version}");
        while !handshakes::get(&mut stream, &format!("{prefix}/x"))?.lines().any(|l| l == expected) {
            ensure!(began.elapsed() < LIMIT, "a change has no effect after {LIMIT:?}");
            thread::sleep(Duration::from_millis(1));
        }
        times.push(began.elapsed());
        thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
    }
    Ok(times)
}
