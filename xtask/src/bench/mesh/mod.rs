//! `cargo xtask bench mesh`: what a mesh adds. Client, sidecar, mutual TLS, sidecar, backend.

mod envoy;
pub mod fleet;
mod load;
mod memory;
mod node;
mod tables;

use super::{
    Effort,
    authority::{Authority, Svid},
    config,
    peer::address,
    process::{Core, Process, free_port},
    report::{self, Report},
    world::World,
};
use anyhow::{Context, Result};
use load::Load;
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

#[derive(clap::Args)]
pub struct Args {
    /// One round of one second each: whether everything works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Only these, by name: http, fresh, tcp, tcp-fresh, big, handshakes, memory.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Length of each measurement.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
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

/// The address of the workload that calls, and of the one that is called.
const CLIENT: &str = "127.0.0.2";
const SERVER: &str = "127.0.0.3";

/// nginx as the workload that is called: 1 KB, and 1 MiB at `/big`, on a port for HTTP and one for bytes.
pub struct Backend {
    pub http: SocketAddr,
    pub tcp: SocketAddr,
    _process: Process,
}

/// What is between client and backend.
pub struct Way {
    pub name: &'static str,
    /// Both proxies, the outbound one first; none without a mesh.
    pub proxies: Vec<Process>,
    pub http: SocketAddr,
    pub tcp: SocketAddr,
    /// Where connections from other members arrive, and who may open them.
    pub inbound: Option<(SocketAddr, Svid)>,
    /// What the proxies need: a control plane, workloads.
    _others: Vec<Process>,
}

pub const DIRECT: &str = "no mesh";
pub const SELVEDGE: &str = "Selvedge";
/// One proxy per host, shared by its workloads, instead of one per workload.
pub const NODES: &str = "Selvedge, node proxies";
pub const ENVOY: &str = "Envoy";
pub const FORWARD: &str = "two byte forwarders";

pub fn run(args: &Args) -> Result<()> {
    let names: Vec<&str> = Load::ALL.iter().map(|l| l.name()).chain([memory::NAME]).collect();
    for only in &args.only {
        anyhow::ensure!(names.contains(&only.as_str()), "there is no benchmark {only}; there are {}", names.join(", "));
    }
    let effort = match args.quick {
        true => Effort { seconds: 1, rounds: 1 },
        false => Effort { seconds: args.seconds, rounds: args.rounds },
    };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|o| o == name);
    let machine = report::machine(effort, args.bin.as_deref());
    let world = World::new(args.bin.clone(), args.alone)?;
    let dir = world.dir.join("mesh");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    let authority = Authority::new(&dir)?;
    let backend = Backend::start(&dir.join("backend"))?;
    let used = world.versions.iter().filter(|v| ["Selvedge", "Envoy", "nginx", "wrk"].iter().any(|n| v.starts_with(n)));
    let mut report = Report::new(report::MESH, machine, &used.cloned().collect::<Vec<_>>());
    if Load::ALL.iter().any(|l| wanted(l.name())) {
        let mut ways = vec![direct(&backend)];
        if !args.alone {
            ways.push(forwarders(&backend)?);
        }
        ways.push(selvedge(&world.selvedge, &authority, &dir.join("selvedge"), &backend)?);
        if Load::LAYER_4.iter().any(|l| wanted(l.name())) {
            match node::start(&world.selvedge, &authority, &dir.join("nodes"), &backend).context("two node proxies")? {
                Some(way) => ways.push(way),
                None => report.add(&format!("Without node proxies: {}\n", node::MISSING)),
            }
        }
        if let Some(envoy) = &world.envoy {
            ways.push(envoys(envoy, &authority, &dir.join("envoy"), &backend)?);
        }
        for load in Load::ALL.into_iter().filter(|l| wanted(l.name())) {
            tables::load(&mut report, load, &load.run(&world.dir, &ways, effort)?);
        }
    }
    if wanted(memory::NAME) {
        tables::memory(
            &mut report,
            &memory::run(&world.selvedge, &authority, &dir.join("memory"), &backend, args.quick)?,
        );
    }
    report.targets();
    match &args.save {
        Some(path) => report.save(path),
        None => Ok(()),
    }
}

impl Backend {
    fn start(dir: &Path) -> Result<Self> {
        let ports = [free_port()?, free_port()?].map(|port| (SERVER, port));
        let at = ports.map(|(ip, port)| format!("{ip}:{port}").parse::<SocketAddr>());
        let [http, tcp] = at;
        let (http, tcp) = (http?, tcp?);
        let config = config::mesh_backend(dir, &[http, tcp])?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir).arg("-c").arg(config);
        let mut process = Process::start("the backend", &mut command, Core::Load, &dir.join("log"))?;
        process.wait_for(http, Duration::from_secs(20))?;
        Ok(Self { http, tcp, _process: process })
    }
}

fn direct(backend: &Backend) -> Way {
    Way { name: DIRECT, proxies: Vec::new(), http: backend.http, tcp: backend.tcp, inbound: None, _others: Vec::new() }
}

/// The floor: two processes in a row that read and write without looking, and without TLS.
fn forwarders(backend: &Backend) -> Result<Way> {
    let forward = |to: SocketAddr| {
        let args = ["forward".to_owned(), "--to".to_owned(), to.to_string()];
        Process::helper_on(&args, Core::Proxy)
    };
    let (second, at) = forward(backend.http)?;
    let (first, http) = forward(at)?;
    Ok(Way { name: FORWARD, proxies: vec![first, second], http, tcp: backend.tcp, inbound: None, _others: Vec::new() })
}

fn envoys(envoy: &Path, authority: &Authority, dir: &Path, backend: &Backend) -> Result<Way> {
    let (proxies, [http, tcp, inbound]) = envoy::start(envoy, authority, dir, backend).context("two Envoys")?;
    let inbound = Some((inbound, authority.issue("client")?));
    Ok(Way { name: ENVOY, proxies: proxies.into(), http, tcp, inbound, _others: Vec::new() })
}

fn selvedge(program: &Path, authority: &Authority, dir: &Path, backend: &Backend) -> Result<Way> {
    let hbone: SocketAddr = format!("{SERVER}:{}", free_port()?).parse()?;
    fleet::write(&dir.join("resources"), &resources(backend, hbone.port()))?;
    let control = fleet::Control::start(program, authority, dir, Core::Load)?;
    let server = fleet::Sidecar { name: "server", hbone: Some(hbone), to: &[] }.start(&control, &dir.join("server"))?;
    let (http, tcp) = (address(free_port()?), address(free_port()?));
    let to = [(http, "server.bench:80".to_owned()), (tcp, "server.bench:81".to_owned())];
    let client = fleet::Sidecar { name: "client", hbone: None, to: &to }.start(&control, &dir.join("client"))?;
    let inbound = Some((hbone, authority.issue("client")?));
    Ok(Way { name: SELVEDGE, proxies: vec![client, server], http, tcp, inbound, _others: vec![control.process] })
}

/// A mesh where one workload calls another.
fn resources(backend: &Backend, hbone: u16) -> Vec<Value> {
    let ports = json!([
        {"name": "http", "port": backend.http.port(), "appProtocol": "http"},
        {"name": "tcp", "port": backend.tcp.port(), "appProtocol": "tcp"},
    ]);
    vec![
        json!({"apiVersion": "selvedge.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "default"},
            "spec": {"mtls": {"mode": "Strict"}}}),
        fleet::workload("client", CLIENT, json!([]), hbone),
        fleet::workload("server", SERVER, ports, hbone),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server", "namespace": "bench"},
        "spec": {"selector": {"app": "server"}, "ports": [
            {"name": "http", "port": 80, "appProtocol": "http", "targetPort": backend.http.port()},
            {"name": "tcp", "port": 81, "appProtocol": "tcp", "targetPort": backend.tcp.port()},
        ]}}),
    ]
}
