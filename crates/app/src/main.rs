//! The one binary: API gateway and service mesh.

mod logging;
mod run;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Selvedge: the API gateway and the service mesh in one binary.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    /// What to log: error, warn, info, debug, trace, or filters such as `info,selvedge_proxy=debug`.
    #[arg(long, global = true, env = "SELVEDGE_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a folder of resources: control plane and proxy in one process.
    Run(run::Args),
    /// Let the binary that is now at the path of a running `selvedge run` take over from it, without losing a connection.
    Upgrade {
        /// Process id of the one that runs.
        #[arg(long, value_name = "PID")]
        pid: i32,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(&args, &cli.log),
        Command::Upgrade { pid } => run::handover::ask(pid).map(|()| {
            println!("asked process {pid} to upgrade; its log says how it goes");
            ExitCode::SUCCESS
        }),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(1)
    })
}
