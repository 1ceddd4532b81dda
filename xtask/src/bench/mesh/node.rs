//! Two node proxies: each stands beside two workloads of its host, with the identity and the network namespace of each.

use super::{Backend, NODES, SERVER, Way, fleet, resources};
use crate::bench::{
    authority::Authority,
    peer::address,
    process::{Core, Process, free_port},
};
use anyhow::{Context, Result};
use serde_json::json;
use std::{net::SocketAddr, path::Path, process::Command};

/// Why they may be missing, and what helps.
pub const MISSING: &str = "a node proxy has a network namespace for each workload, and none could be made. Run the benchmark as \
     root, or as another user with `unshare --map-current-user --keep-caps --net` around it, where `ip link set lo up` comes first";

/// The workloads that share the node proxies with those that take part in the load.
const CLIENT_2: (&str, &str) = ("client-2", "127.0.0.4");
const SERVER_2: (&str, &str) = ("server-2", "127.0.0.5");

/// Starts both; none when network namespaces cannot be made.
///
/// One workload of each is in the namespace of the benchmark, as the sidecars are, and carries the load; the other one is in a
/// namespace of its own, where its proxy has the same ports open for it.
pub fn start(program: &Path, authority: &Authority, dir: &Path, backend: &Backend) -> Result<Option<Way>> {
    let Some(caller) = space(CLIENT_2.0)? else { return Ok(None) };
    let Some(called) = space(SERVER_2.0)? else { return Ok(None) };
    let hbone: SocketAddr = format!("{SERVER}:{}", free_port()?).parse()?;
    let mut resources = resources(backend, hbone.port());
    for (name, ip) in [CLIENT_2, SERVER_2] {
        resources.push(fleet::workload(name, ip, json!([]), hbone.port()));
    }
    fleet::write(&dir.join("resources"), &resources)?;
    let control = fleet::Control::start(program, authority, dir, Core::Load)?;
    let server = node(&control, dir, ["server", SERVER_2.0], &called, Some(hbone), &[]).context("the called node")?;
    let (http, tcp) = (address(free_port()?), address(free_port()?));
    let to = [(http, "server.bench:80".to_owned()), (tcp, "server.bench:81".to_owned())];
    let client = node(&control, dir, ["client", CLIENT_2.0], &caller, None, &to).context("the calling node")?;
    Ok(Some(Way {
        name: NODES,
        proxies: vec![client, server],
        http,
        tcp,
        inbound: None,
        _others: vec![control.process, caller, called],
    }))
}

/// A process in a network namespace of its own, with a loopback interface: stands for a workload.
fn space(name: &str) -> Result<Option<Process>> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"]);
    let (process, line) = Process::saying(name, &mut command, Core::Load)?;
    Ok((line == "ready").then_some(process))
}

fn node(
    control: &fleet::Control,
    dir: &Path,
    [first, second]: [&str; 2],
    apart: &Process,
    hbone: Option<SocketAddr>,
    to: &[(SocketAddr, String)],
) -> Result<Process> {
    let id = format!("node-{first}");
    let workloads = [format!("bench/{first}"), format!("bench/{second}@{}", apart.id())];
    let identities = ["selvedge-system/node".to_owned(), format!("bench/{first}"), format!("bench/{second}")];
    fleet::Beside { role: "node", id: &id, workloads: &workloads, identities: &identities, hbone, to }
        .start(control, &dir.join(&id))
}
