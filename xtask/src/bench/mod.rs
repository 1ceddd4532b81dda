//! `cargo xtask bench`: Selvedge next to its peers on one machine. `docs/benchmarks.md` says how and what came out.

mod authority;
mod change;
mod config;
mod control;
pub mod grpc;
pub mod handshakes;
mod load;
mod memory;
mod mesh;
pub mod mutual;
pub mod paced;
mod peer;
mod process;
mod report;
mod scenario;
mod world;

use anyhow::{Result, ensure};
use scenario::Scenario;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Without one: the gateway.
    #[command(subcommand)]
    part: Option<Part>,
    /// One round of one second each: whether everything works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Only these, by name: http1, h2, tls, grpc, big, routes, memory, change.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Length of each measurement.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Measurements of each peer, in turns; the median counts.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// The program to measure; without it, one is built as `cargo xtask dist` does.
    #[arg(long, env = "SELVEDGE_BIN", value_name = "PATH")]
    bin: Option<PathBuf>,
    /// Without the peers that it is measured against.
    #[arg(long)]
    alone: bool,
    /// Writes the tables into this file, between its marks.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// Parts that have a benchmark of their own.
#[derive(clap::Subcommand)]
enum Part {
    /// Two sidecars with mutual TLS next to two Envoys with mutual TLS and no mesh.
    Mesh(mesh::Args),
    /// The control plane with thousands of proxies and changing endpoints.
    Control(control::Args),
}

/// How long and how often to measure.
#[derive(Clone, Copy)]
pub struct Effort {
    pub seconds: u64,
    pub rounds: u64,
}

pub fn run(args: &Args) -> Result<()> {
    match &args.part {
        Some(Part::Mesh(args)) => return mesh::run(args),
        Some(Part::Control(args)) => return control::run(args),
        None => {}
    }
    let names: Vec<&str> = Scenario::ALL.iter().map(|s| s.name).chain([memory::NAME, change::NAME]).collect();
    for only in &args.only {
        ensure!(names.contains(&only.as_str()), "there is no benchmark {only}; there are {}", names.join(", "));
    }
    let effort = if args.quick {
        Effort { seconds: 1, rounds: 1 }
    } else {
        Effort { seconds: args.seconds, rounds: args.rounds }
    };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|o| o == name);
    let machine = report::machine(effort, args.bin.as_deref());
    let world = world::World::new(args.bin.clone(), args.alone)?;
    let mut report = report::Report::new(report::GATEWAY, machine, &world.versions);
    for scenario in Scenario::ALL.iter().filter(|s| wanted(s.name)) {
        let rows = scenario.run(&world, effort)?;
        report.scenario(scenario, &rows);
    }
    if wanted(memory::NAME) {
        report.memory(&memory::run(&world)?);
    }
    if wanted(change::NAME) {
        report.change(&change::run(&world, effort)?);
    }
    report.targets();
    match &args.save {
        Some(path) => report.save(path),
        None => Ok(()),
    }
}
