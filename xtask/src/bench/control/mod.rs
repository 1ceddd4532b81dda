//! `cargo xtask bench control`: a control plane with thousands of proxies while endpoints change.

mod deaths;
mod etcd;
mod faults;
mod messages;
mod proxies;
mod resources;

use super::{
    Effort,
    authority::Authority,
    load::percentile,
    mesh::fleet::{self, Control},
    mutual,
    process::Core,
    report::{self, Report, ms},
    world::World,
};
use anyhow::{Context, Result};
use proxies::Proxies;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub struct Args {
    /// 100 proxies, 5 changes and 3 deaths of each kind: whether everything works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Numbers of proxies.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 5_000], value_name = "N")]
    proxies: Vec<usize>,
    /// Changes of endpoints, one a second.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    changes: u64,
    /// The program to measure; without it, one is built as `cargo xtask dist` does.
    #[arg(long, env = "SELVEDGE_BIN", value_name = "PATH")]
    bin: Option<PathBuf>,
    /// Writes the tables into this file, between its marks.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// Between changes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Handshakes of simulated proxies at the same time, where they are not counted.
const PLACES: usize = 64;
/// All proxies must have something by then.
const LIMIT: Duration = Duration::from_secs(300);

/// What happened with one number of proxies.
struct Outcome {
    proxies: usize,
    /// From the start of the control plane until each proxy had everything.
    connected: Duration,
    connected_cpu: Duration,
    /// Resources sent to them at first, and memory then, KiB.
    sent: u64,
    rss: u64,
    /// From a change of a file until the last proxy has it; sorted.
    all: Vec<Duration>,
    /// The same, for each proxy and change.
    each: Vec<Duration>,
    /// By change.
    cpu: Duration,
    bytes: u64,
    /// Memory after all changes, KiB.
    rss_after: u64,
    /// From the start of another process until each proxy is back and up to date.
    restarted: Duration,
    restarted_cpu: Duration,
    restarted_rss: u64,
    /// Resources that were sent again.
    resent: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let (counts, changes) = if args.quick { (vec![100], 5) } else { (args.proxies.clone(), args.changes) };
    let machine = report::machine(Effort { seconds: changes, rounds: 1 }, args.bin.as_deref());
    let world = World::new(args.bin.clone(), true)?;
    let dir = world.dir.join("control");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let authority = Authority::new(&dir)?;
    let version = world.versions.iter().filter(|v| v.starts_with("Selvedge"));
    let mut report = Report::new(report::CONTROL, machine, &version.cloned().collect::<Vec<_>>());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut outcomes = Vec::new();
    for &count in &counts {
        println!("\n{count} proxies");
        let dir = dir.join(count.to_string());
        let outcome = runtime.block_on(measure(&world.selvedge, &authority, &dir, count, changes as usize));
        outcomes.push(outcome.with_context(|| format!("{count} proxies; logs in {}", dir.display()))?);
    }
    tables(&mut report, &outcomes, changes);
    drop(runtime);
    faults(&mut report, args, &world, &authority, &dir)?;
    report.targets();
    match &args.save {
        Some(path) => report.save(path),
        None => Ok(()),
    }
}

/// What goes wrong, with fewer proxies if it is to be quick.
fn faults(report: &mut Report, args: &Args, world: &World, authority: &Authority, dir: &Path) -> Result<()> {
    let (proxies, deaths, seconds) = if args.quick { (100, 3, 12) } else { (1_000, 20, 20) };
    let dir = dir.join("faults");
    let ground =
        faults::Ground { program: &world.selvedge, authority, dir: &dir, web: world.web, proxies, deaths, seconds };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(faults::run(&ground));
    let outcome = outcome.with_context(|| format!("what goes wrong; logs in {}", dir.display()))?;
    report.add(&deaths::table(proxies, &outcome.deaths));
    report.add(&faults::table(proxies, &outcome.faults));
    let died = outcome.deaths.iter().filter(|row| row.end != deaths::End::Leaves);
    let longest = died.filter_map(|row| row.times.last()).max().copied().unwrap_or_default();
    let what = "a workload that dies is out of all proxies, longest";
    report.target(what, "< 1 s", ms(longest), longest < Duration::from_secs(1));
    let failed: u64 = outcome.faults.iter().map(|fault| fault.seen.failed).sum();
    let what = "failed requests while control planes and etcd are killed";
    report.target(what, "0", failed.to_string(), failed == 0);
    let longest = outcome.faults.iter().map(|fault| fault.back).max().unwrap_or_default();
    let what = "… until all proxies are up to date again, longest";
    report.target(what, "< 10 s", format!("{:.2} s", longest.as_secs_f64()), longest < Duration::from_secs(10));
    Ok(())
}

async fn measure(program: &Path, authority: &Authority, dir: &Path, count: usize, changes: usize) -> Result<Outcome> {
    let folder = dir.join("resources");
    fleet::write(&folder, &resources::all(count))?;
    let tls = mutual::config(&authority.issue("proxy")?)?;
    let began = Instant::now();
    let control = Control::start(program, authority, dir, Core::Proxy)?;
    println!("  the control plane is ready after {:?}", began.elapsed());
    let proxies = Proxies::start(count, &[control.at], &[], PLACES, tls);
    proxies.until("everything at first", LIMIT, |seen| seen.incomplete()).await?;
    let (connected, connected_cpu) = (began.elapsed(), control.process.cpu()?);
    println!("  all connected after {connected:?}, {connected_cpu:?} of processor");
    let (sent, rss) = (proxies.seen().resources, control.process.rss()?);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let (cpu, bytes) = (control.process.cpu()?, proxies.seen().bytes);
    let starts = churn(&proxies, &folder, changes).await?;
    let cpu = (control.process.cpu()? - cpu) / changes as u32;
    let bytes = (proxies.seen().bytes - bytes) / changes as u64;
    let (all, each) = times(&proxies, &starts);
    let rss_after = control.process.rss()?;
    let median = percentile(&all, 0.5).unwrap_or_default();
    println!("  {changes} changes: {cpu:?} of processor each; at all after {median:?} (median)");

    let ports = [control.at, control.admin];
    drop(control);
    proxies.until("the end of all streams", LIMIT, |seen| seen.updates.len() - seen.incomplete()).await?;
    let resources = proxies.seen().resources;
    let began = Instant::now();
    let control = Control::start_at(program, authority, dir, Core::Proxy, ports)?;
    proxies.until("everything after the restart", LIMIT, |seen| seen.incomplete()).await?;
    let (restarted, restarted_cpu) = (began.elapsed(), control.process.cpu()?);
    println!("  restarted: all are back after {restarted:?}, {restarted_cpu:?} of processor");
    Ok(Outcome {
        proxies: count,
        connected,
        connected_cpu,
        sent,
        rss,
        all,
        each,
        cpu,
        bytes,
        rss_after,
        restarted,
        restarted_cpu,
        restarted_rss: control.process.rss()?,
        resent: proxies.seen().resources - resources,
    })
}

/// Changes one endpoint after the other; when each change was made.
async fn churn(proxies: &Proxies, folder: &Path, changes: usize) -> Result<Vec<Instant>> {
    let mut starts = Vec::new();
    let first = Instant::now();
    for change in 0..changes {
        tokio::time::sleep_until((first + INTERVAL * change as u32).into()).await;
        starts.push(Instant::now());
        fleet::replace(folder, &resources::changed(change))?;
    }
    proxies.until("the last change", LIMIT, |seen| seen.without(changes - 1)).await?;
    Ok(starts)
}

fn times(proxies: &Proxies, starts: &[Instant]) -> (Vec<Duration>, Vec<Duration>) {
    let seen = proxies.seen();
    let (mut all, mut each) = (Vec::new(), Vec::new());
    for (change, start) in starts.iter().enumerate() {
        let times: Vec<Duration> = seen.times(change).map(|t| t.saturating_duration_since(*start)).collect();
        all.extend(times.iter().max());
        each.extend(times);
    }
    all.sort_unstable();
    each.sort_unstable();
    (all, each)
}

fn tables(report: &mut Report, outcomes: &[Outcome], changes: u64) {
    let at = |times: &[Duration], q| ms(percentile(times, q).unwrap_or_default());
    let mib = |kib: u64| kib as f64 / 1024.0;
    let mut table = format!(
        "### An endpoint of a Service that all proxies use changes every second; {} endpoints, {changes} changes\n\n\
         | proxies | at a proxy p50 | p99 | at all proxies p50 | p99 | CPU ms/change | KiB/change, all proxies | bytes/change, one proxy | RSS MiB |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        resources::SERVICES * resources::ENDPOINTS,
    );
    for o in outcomes {
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {:.0} | {:.0} | {} | {:.1} |",
            o.proxies,
            at(&o.each, 0.5),
            at(&o.each, 0.99),
            at(&o.all, 0.5),
            at(&o.all, 0.99),
            o.cpu.as_secs_f64() * 1e3,
            o.bytes as f64 / 1024.0,
            o.bytes / o.proxies.max(1) as u64,
            mib(o.rss_after),
        );
    }
    report.add(&table);
    let mut table =
        "### All proxies connect: to a new control plane with nothing, then to a restarted one with what they have\n\n\
        | proxies | | all have everything after | CPU s | resources sent | RSS MiB |\n|--:|---|--:|--:|--:|--:|\n"
            .to_owned();
    for o in outcomes {
        let rows = [
            ("first", o.connected, o.connected_cpu, o.sent, o.rss),
            ("restarted", o.restarted, o.restarted_cpu, o.resent, o.restarted_rss),
        ];
        for (what, time, cpu, sent, rss) in rows {
            let (time, cpu) = (time.as_secs_f64(), cpu.as_secs_f64());
            let _ = writeln!(table, "| {} | {what} | {time:.2} s | {cpu:.2} | {sent} | {:.1} |", o.proxies, mib(rss));
        }
    }
    report.add(&table);
    if let Some(o) = outcomes.iter().find(|o| o.proxies == 1_000) {
        let p99 = percentile(&o.all, 0.99).unwrap_or_default();
        let what = "1,000 proxies, 10,000 endpoints: a change at all proxies, p99";
        report.target(what, "< 1 s", ms(p99), p99 < Duration::from_secs(1));
        let rss = mib(o.rss.max(o.rss_after));
        report.target("… memory of the control plane", "<= 200 MiB", format!("{rss:.1} MiB"), rss <= 200.0);
    }
}
