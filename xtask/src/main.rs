//! Tasks of the developers of Selvedge: `cargo xtask bench`, `cargo xtask dist`.

mod bench;
mod dist;
mod forward;

use clap::Parser;

/// Tasks around Selvedge that are not part of it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Measure Selvedge next to HAProxy, nginx, Envoy and a bare byte forwarder.
    Bench(bench::Args),
    /// Build the program as it is shipped, optimized by a profile of the benchmarks: target/dist/selvedge.
    Dist,
    /// Pass bytes on to an address without looking at them: the floor of the benchmark.
    Forward(forward::Args),
    /// Answer gRPC unary calls with their own message: a backend of the benchmark.
    #[command(hide = true)]
    GrpcBackend,
    /// Open TLS connections, one request each: a load of the benchmark.
    #[command(hide = true)]
    Handshakes(bench::handshakes::Args),
    /// Send requests at a steady rate, whatever the answers: a load of the benchmark.
    #[command(hide = true)]
    Paced(bench::paced::Args),
    /// Open connections of a mesh, with mutual TLS and no request: a load of the benchmark.
    #[command(hide = true)]
    MutualHandshakes(bench::mutual::Args),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Bench(args) => bench::run(&args),
        Task::Dist => dist::run(),
        Task::Forward(args) => forward::run(&args),
        Task::GrpcBackend => bench::grpc::run(),
        Task::Handshakes(args) => bench::handshakes::run(&args),
        Task::Paced(args) => bench::paced::run(&args),
        Task::MutualHandshakes(args) => bench::mutual::run(&args),
    }
}
