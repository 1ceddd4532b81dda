//! The one binary: API gateway and service mesh.

#[macro_use]
mod output;
mod authority;
mod capture;
mod control;
mod demo;
mod duration;
mod etcd;
mod fleet;
mod join;
mod logging;
mod memory;
mod offline;
mod plane;
mod proxy;
mod run;
mod status;
mod time;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

// Without huge pages for itself (feature `no_thp`): with them a sidecar takes 44 MiB instead of 32 and a control plane of
// 1,000 proxies 215 instead of 188, and no request costs measurably less.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Selvedge: the API gateway and the service mesh in one binary.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    after_help = "To begin:
  selvedge demo                  everything at once, on this machine
  selvedge check -f DIR          what is wrong with a folder of resources
  selvedge run -f DIR            serve it
`selvedge COMMAND --help` says more of a command."
)]
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
    /// Publish resources to proxies: a control plane.
    Control(control::Args),
    /// Serve what a control plane publishes: a gateway, or a proxy beside workloads.
    Proxy(proxy::Args),
    /// Show the proxies of a control plane: in sync, or why not; exits with 1 when one is not.
    Status(status::Args),
    /// Write resources to the etcd of control planes.
    Apply(etcd::ApplyArgs),
    /// Show resources in the etcd of control planes.
    Get(etcd::GetArgs),
    /// Remove a resource from the etcd of control planes.
    Delete(etcd::DeleteArgs),
    /// Make, list and delete join tokens, by which nodes get their first certificate from a control plane.
    Token(authority::TokenArgs),
    /// Show the certificate authority of a control plane, rotate it, revoke certificates.
    Ca(authority::CaArgs),
    /// Let the binary that is now at the path of a running `selvedge run` take over from it, without losing a connection.
    Upgrade {
        /// Process id of the one that runs.
        #[arg(long, value_name = "PID")]
        pid: i32,
    },
    /// Say what is wrong with resources; exits with 1 on errors.
    Check(offline::check::Args),
    /// Say what a request would meet and why, or what the code of a diagnostic means.
    Explain(offline::explain::Args),
    /// Say whether one workload may call another, and which rule decides; exits with 1 when it may not.
    May(offline::may::Args),
    /// Say what would change for traffic from one folder to another.
    Diff(offline::diff::Args),
    /// Print the JSON Schema of a kind, or of all.
    Schema(offline::schema::Args),
    /// Hand the connections of a machine, container or network namespace to the proxy, or no longer.
    Capture(capture::Args),
    /// Try it: a small shop on this machine, its services in a mesh and the gateway in front, and commands to paste.
    Demo(demo::Args),
}

fn main() -> ExitCode {
    demo::children::end_with_parent();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(&args, &cli.log),
        Command::Control(args) => {
            small_pages();
            control::run(&args, &cli.log)
        }
        Command::Proxy(args) => {
            if args.role == proxy::Role::Sidecar {
                small_pages();
            }
            proxy::run(&args, &cli.log)
        }
        Command::Status(args) => status::run(&args),
        Command::Apply(args) => etcd::apply(&args),
        Command::Get(args) => etcd::get(&args),
        Command::Delete(args) => etcd::delete(&args),
        Command::Token(args) => authority::token(&args),
        Command::Ca(args) => authority::ca(&args),
        Command::Upgrade { pid } => run::handover::ask(pid).map(|()| {
            say!("asked process {pid} to upgrade; its log says how it goes");
            ExitCode::SUCCESS
        }),
        Command::Check(args) => offline::check::run(&args),
        Command::Explain(args) => offline::explain::run(&args),
        Command::May(args) => offline::may::run(&args),
        Command::Diff(args) => Ok(offline::diff::run(&args)),
        Command::Schema(args) => offline::schema::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Demo(args) => demo::run(&args, &cli.log),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(1)
    })
}

/// There are as many sidecars as workloads, and much of a control plane is small and short-lived: neither is to be given
/// 2 MiB for each first byte where the kernel would do so unasked (`always` in `transparent_hugepage/enabled`).
fn small_pages() {
    // Without it only more memory is taken.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Names of arguments and groups are unique, and what they refer to exists.
    #[test]
    fn the_command_line_fits_together() {
        Cli::command().debug_assert();
    }
}
