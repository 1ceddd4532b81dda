//! Network namespaces of the demo: made at start, gone at the end, also those of a demo that was killed.

use anyhow::{Context, Result, bail, ensure};
use selvedge_mesh::spaces::Space;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    process::Command,
    time::Duration,
};

/// How all of them begin.
const PREFIX: &str = "sv-demo-";
/// Where the wires of the others meet.
pub const HUB: &str = "sv-demo-hub";
/// A program's host number in 10.83.0.0/24, and its name.
pub const PROGRAMS: [(u8, &str); 3] = [(11, "web"), (12, "orders"), (13, "guest")];
/// Connections inside of one machine.
const REACH: Duration = Duration::from_millis(500);

pub fn name(program: &str) -> String {
    format!("{PREFIX}{program}")
}

pub fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 83, 0, host), port))
}

/// All of them; removed when dropped.
pub struct Spaces {
    /// Taken for as long as the namespaces are ours; the kernel lets go of it when the process ends, however it does.
    _lock: UnixListener,
}

impl Spaces {
    /// Makes them, with a wire from each to the hub.
    ///
    /// # Errors
    /// Without the right to, without the tool to, or while another demo has them.
    pub fn create() -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "--netns makes network namespaces, which needs root: run it with sudo, or leave --netns out"
        );
        let lock = UnixAddr::from_abstract_name("selvedge-demo-netns")?;
        let lock =
            UnixListener::bind_addr(&lock).context("another `selvedge demo --netns` is running on this machine")?;
        remove();
        let made = Self { _lock: lock };
        made.fill()?;
        Ok(made)
    }

    fn fill(&self) -> Result<()> {
        add(HUB)?;
        ip(&["-n", HUB, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", HUB, "link", "set", "br0", "up"])?;
        ip(&["-n", HUB, "address", "add", "10.83.0.1/24", "dev", "br0"])?;
        for (host, program) in PROGRAMS {
            let (space, wire, address) = (name(program), format!("to-{program}"), format!("10.83.0.{host}/24"));
            add(&space)?;
            ip(&["-n", HUB, "link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["-n", HUB, "link", "set", &wire, "master", "br0", "up"])?;
            ip(&["-n", &space, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
            // The kernel wants a route before it redirects.
            ip(&["-n", &space, "route", "add", "default", "via", "10.83.0.1"])?;
        }
        Ok(())
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        remove();
    }
}

/// Whether something listens there, inside of a namespace. Blocks.
pub fn reaches(space: &str, address: SocketAddr) -> bool {
    let connect = || TcpStream::connect_timeout(&address, REACH).is_ok();
    Space::open(space).is_ok_and(|space| space.within(connect).unwrap_or(false))
}

fn add(space: &str) -> Result<()> {
    ip(&["netns", "add", space])?;
    ip(&["-n", space, "link", "set", "lo", "up"])
}

/// Removes all that are called so.
fn remove() {
    let Ok(all) = fs::read_dir("/run/netns") else { return };
    for space in all.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()) {
        if space.starts_with(PREFIX)
            && let Err(error) = ip(&["netns", "delete", &space])
        {
            tracing::warn!("{error:#}");
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output().context("cannot run `ip`: install the package iproute2")?;
    if !output.status.success() {
        bail!("`ip {}`: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
