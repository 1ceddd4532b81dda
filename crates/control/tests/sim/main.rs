//! A deterministic simulation of control planes and proxies: the real state machines, without sockets and without real
//! time. A seed gives the topology, the edits, the faults and the order of everything; the same seed gives the same run.
//!
//! `SIM_SEEDS=1000 cargo test -p selvedge-control --test sim` runs that many seeds; `SIM_SEED=7` runs one and prints its
//! history.

mod authority;
mod certificates;
mod checks;
mod control;
mod plan;
mod proxy;
mod rng;
mod sim;
mod world;

use certificates::Certificates;
use sim::Sim;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Seeds that have once found something.
const REGRESSIONS: &[u64] = &[11, 31, 81, 84, 355];

/// Seeds that are run if nobody says how many.
const SEEDS: u64 = 200;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs one seed. Says what is wrong.
fn run(seed: u64, loud: bool) -> Result<Sim, String> {
    let done = std::panic::catch_unwind(|| Sim::new(seed, loud).run());
    match done {
        Ok(sim) => match sim.checks.failed.clone() {
            None => Ok(sim),
            Some(why) => Err(why),
        },
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Err(text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
        }
    }
}

/// Runs seeds on a few threads; those that fail, with what is wrong.
fn run_all(seeds: &[u64], run: impl Fn(u64) -> Option<String> + Sync) -> Vec<(u64, String)> {
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) =
                    seeds.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX))
                {
                    if let Some(why) = run(*seed) {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push((*seed, why));
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort();
    failed
}

fn report(what: &str, failed: &[(u64, String)]) {
    let all: Vec<String> = failed
        .iter()
        .map(|(seed, why)| {
            format!(
                "seed {seed}: {why}\n  SIM_SEED={seed} cargo test -p selvedge-control --test sim {what} -- --nocapture"
            )
        })
        .collect();
    assert!(failed.is_empty(), "{} seeds fail\n{}", failed.len(), all.join("\n"));
}

#[test]
fn fleets_of_many_seeds() {
    if let Some(seed) = number("SIM_SEED") {
        let done = run(seed, true);
        println!("{:?}", done.as_ref().map(|sim| (sim.checks.lines, sim.shop.compiled, &sim.checks.most)));
        return report("fleets", &done.err().map(|why| (seed, why)).into_iter().collect::<Vec<_>>());
    }
    let seeds: Vec<u64> = REGRESSIONS.iter().copied().chain(0..number("SIM_SEEDS").unwrap_or(SEEDS)).collect();
    report("fleets", &run_all(&seeds, |seed| run(seed, false).err()));
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 17] {
        let hash = || run(seed, false).map(|sim| (sim.checks.hash(), sim.checks.lines));
        assert_eq!(hash(), hash(), "seed {seed}");
    }
    let hash = |seed| run(seed, false).map(|sim| sim.checks.hash());
    assert_ne!(hash(3), hash(17));
}

/// Seeds of certificates that are run if nobody says how many.
const CERTIFICATE_SEEDS: u64 = 200;

/// Seeds of certificates that have once found something.
const CERTIFICATES: &[u64] = &[];

fn run_certificates(seed: u64, loud: bool) -> Result<Certificates, String> {
    let done = Certificates::new(seed, loud).run();
    match done.failed.clone() {
        None => Ok(done),
        Some(why) => Err(why),
    }
}

#[test]
fn certificates_of_many_seeds() {
    if let Some(seed) = number("SIM_SEED") {
        let done = run_certificates(seed, true);
        println!("{:?}", done.as_ref().map(|sim| (sim.lines, &sim.most)));
        return report("certificates", &done.err().map(|why| (seed, why)).into_iter().collect::<Vec<_>>());
    }
    let seeds = CERTIFICATES.iter().copied().chain(0..number("SIM_SEEDS").unwrap_or(CERTIFICATE_SEEDS));
    let seeds: Vec<u64> = seeds.collect();
    report("certificates", &run_all(&seeds, |seed| run_certificates(seed, false).err()));
}

#[test]
fn the_same_seed_gives_the_same_history_of_certificates() {
    let hash = |seed| run_certificates(seed, false).map(|sim| (sim.hash(), sim.lines));
    assert_eq!(hash(5), hash(5));
    assert_ne!(hash(5), hash(6));
}
