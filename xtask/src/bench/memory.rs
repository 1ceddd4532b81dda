//! Memory of idle connections: each has had one request and is kept. It is what a process has of its own that counts, as pages of its
//! program come and go.

use super::{
    config::Routes,
    handshakes,
    peer::{self, Peer, Running},
    world::World,
};
use anyhow::{Context, Result};
use std::{net::TcpStream, thread, time::Duration};

pub const NAME: &str = "memory";
pub const PLAIN: usize = 2_000;
pub const TLS: usize = 1_000;

pub struct Row {
    pub peer: Peer,
    /// Resident memory before the connections, KiB.
    pub idle: u64,
    /// KiB per connection.
    pub plain: f64,
    /// KiB per connection.
    pub tls: f64,
}

pub fn run(world: &World) -> Result<Vec<Row>> {
    println!("\nMemory of idle connections");
    let mut rows = Vec::new();
    for peer in world.peers.iter().copied().filter(|p| p.is_proxy()) {
        let row = measure(world, peer).with_context(|| format!("idle connections of {peer}"))?;
        println!(
            "  {peer:14} idle {} KiB, {:.2} KiB per plain connection, {:.2} KiB per TLS connection",
            row.idle, row.plain, row.tls
        );
        rows.push(row);
    }
    Ok(rows)
}

fn measure(world: &World, peer: Peer) -> Result<Row> {
    let config = handshakes::config(&world.cert)?;
    let plain = |running: &Running| {
        let mut stream = TcpStream::connect(running.http())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        handshakes::keep_alive(&mut stream)?;
        Ok(stream)
    };
    let tls = |running: &Running| {
        let mut stream = handshakes::connect(running.https(), config.clone())?;
        handshakes::keep_alive(&mut stream)?;
        Ok(stream)
    };
    // A process each, so that memory which the one kind leaves behind does not hide what the other takes.
    let (idle, plain) = per_connection(world, peer, "memory-plain", PLAIN, plain)?;
    let (_, tls) = per_connection(world, peer, "memory-tls", TLS, tls)?;
    Ok(Row { peer, idle, plain, tls })
}

/// Memory before, and per connection.
fn per_connection<S>(
    world: &World,
    peer: Peer,
    label: &str,
    count: usize,
    open: impl Fn(&Running) -> Result<S>,
) -> Result<(u64, f64)> {
    let running = peer::start(world, peer, Routes::All, label)?;
    for _ in 0..20 {
        open(&running)?;
    }
    thread::sleep(Duration::from_secs(1));
    let before = running.process.own()?;
    let kept = (0..count).map(|_| open(&running)).collect::<Result<Vec<_>>>()?;
    thread::sleep(Duration::from_secs(1));
    let after = running.process.own()?;
    drop(kept);
    Ok((before, after.saturating_sub(before) as f64 / count as f64))
}
