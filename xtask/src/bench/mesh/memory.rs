//! Memory of a sidecar by the size of the mesh, and by what it knows of it.

use super::{Backend, CLIENT, fleet};
use crate::bench::{
    authority::Authority,
    handshakes,
    peer::address,
    process::{Core, free_port},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

pub const NAME: &str = "memory";
pub const SERVICES: usize = 2_000;
pub const USED: usize = 5;
pub const ENDPOINTS: usize = 5;

pub struct Row {
    pub what: String,
    /// KiB when it is ready, and after it has used its services: resident, and of it its own.
    pub memory: [[u64; 2]; 2],
}

pub fn run(program: &Path, authority: &Authority, dir: &Path, backend: &Backend, quick: bool) -> Result<Vec<Row>> {
    println!("\nMemory of a sidecar");
    let many = if quick { SERVICES / 10 } else { SERVICES };
    let cases = [
        ("alone", USED, false, format!("mesh of {USED} services")),
        ("used", many, false, format!("mesh of {many} services, fetched on first use")),
        ("all", many, true, format!("mesh of {many} services, all known from the start (`Mesh.scope`)")),
    ];
    let mut rows = Vec::new();
    for (label, services, all, what) in cases {
        let memory = measure(program, authority, &dir.join(label), backend, services, all)
            .with_context(|| format!("a sidecar in a {what}"))?;
        let [[ready, own], [after, own_after]] = memory;
        println!(
            "  {what}: {ready} KiB when ready, {own} its own; {after} KiB after using {USED}, {own_after} its own"
        );
        rows.push(Row { what, memory });
    }
    Ok(rows)
}

fn measure(
    program: &Path,
    authority: &Authority,
    dir: &Path,
    backend: &Backend,
    services: usize,
    all: bool,
) -> Result<[[u64; 2]; 2]> {
    let mut resources = vec![fleet::workload("client", CLIENT, json!([]), 15008), mesh(all)];
    for n in 0..services {
        let endpoints: Vec<String> = match n < USED {
            true => vec![backend.http.ip().to_string()],
            false => (1..=ENDPOINTS).map(|e| format!("10.{}.{}.{e}", n / 250, n % 250)).collect(),
        };
        resources.extend(fleet::service("many", &format!("s{n}"), backend.http.port(), &endpoints));
    }
    fleet::write(&dir.join("resources"), &resources)?;
    let control = fleet::Control::start(program, authority, dir, Core::Load)?;
    let to: Vec<(SocketAddr, String)> =
        (0..USED).map(|n| Ok((address(free_port()?), format!("s{n}.many:80")))).collect::<Result<_>>()?;
    let sidecar = fleet::Sidecar { name: "client", hbone: None, to: &to }.start(&control, &dir.join("client"))?;
    settle();
    let before = [sidecar.rss()?, sidecar.own()?];
    for (at, name) in &to {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let head = handshakes::keep_alive(&mut stream)?;
        anyhow::ensure!(head.starts_with("http/1.1 200"), "{name} answered {head}");
    }
    settle();
    Ok([before, [sidecar.rss()?, sidecar.own()?]])
}

fn mesh(all: bool) -> Value {
    let scope = if all { json!(["many"]) } else { json!([]) };
    json!({"apiVersion": "selvedge.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "default"}, "spec": {"scope": scope}})
}

/// What a start leaves behind is given back by then: a sidecar does so 2, 6 and 14 s after it.
fn settle() {
    thread::sleep(Duration::from_secs(8));
}
