//! What is measured: Selvedge, the proxies it is compared with, and the floor.

use super::{
    config::{self, Ports, Routes},
    process::{Core, Process, free_port},
    world::World,
};
use anyhow::{Context, Result};
use std::{
    fmt, fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Forward,
    Haproxy,
    Nginx,
    Envoy,
    Selvedge,
}

impl Peer {
    pub const ALL: [Self; 5] = [Self::Forward, Self::Haproxy, Self::Nginx, Self::Envoy, Self::Selvedge];

    /// Whether it speaks HTTP and TLS; the forwarder only moves bytes.
    pub fn is_proxy(self) -> bool {
        self != Self::Forward
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forward => "byte forwarder",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
            Self::Selvedge => "Selvedge",
        })
    }
}

/// A started peer.
pub struct Running {
    pub peer: Peer,
    pub process: Process,
    pub ports: Ports,
    /// Folder with its configuration.
    pub dir: PathBuf,
}

impl Running {
    pub fn http(&self) -> SocketAddr {
        address(self.ports.http)
    }

    pub fn https(&self) -> SocketAddr {
        address(self.ports.https)
    }
}

pub fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Starts a peer on the proxy core and waits until it listens.
pub fn start(world: &World, peer: Peer, routes: Routes, label: &str) -> Result<Running> {
    let dir = world.dir.join(format!("{label}-{peer:?}").to_lowercase());
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir)?;
    if peer == Peer::Forward {
        let backend = if label == "grpc" { world.grpc } else { world.web };
        let args = ["forward".to_owned(), "--to".to_owned(), backend.to_string()];
        let (process, at) = Process::helper_on(&args, Core::Proxy)?;
        let ports = Ports { http: at.port(), https: at.port(), grpc: at.port() };
        return Ok(Running { peer, process, ports, dir });
    }
    let mut ports = Ports { http: free_port()?, https: free_port()?, grpc: free_port()? };
    let mut command = match peer {
        Peer::Haproxy => {
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(config::haproxy(&dir, world, ports, routes)?);
            command
        }
        Peer::Nginx => {
            let mut command = Command::new("nginx");
            command.arg("-p").arg(&dir).arg("-c").arg(config::nginx(&dir, world, ports, routes)?);
            command
        }
        Peer::Envoy => {
            let mut command = Command::new(world.envoy.as_ref().context("Envoy is not there")?);
            command.arg("-c").arg(config::envoy(&dir, world, ports, routes)?);
            command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
            command
        }
        _ => {
            ports.grpc = ports.http;
            let mut command = Command::new(&world.selvedge);
            command
                .args([
                    "run",
                    "--no-state",
                    "--admin",
                    "off",
                    "--workers",
                    "1",
                    "--log",
                    "warn,selvedge_control=info",
                    "-f",
                ])
                .env("NO_COLOR", "1");
            command.arg(config::selvedge(&dir, world, ports, routes)?);
            command
        }
    };
    let log = dir.join("log");
    let mut process = Process::start(&peer.to_string(), &mut command, Core::Proxy, &log)?;
    for port in [ports.http, ports.https] {
        process.wait_for(address(port), Duration::from_secs(120))?;
    }
    Ok(Running { peer, process, ports, dir })
}
