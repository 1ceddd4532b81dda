//! Loads that are the same for every peer, measured in turns.

use super::{
    Effort,
    config::Routes,
    load::{self, Seen, median},
    peer::{self, Peer, Running},
    process::Process,
    world::World,
};
use anyhow::{Context, Result};
use std::time::Duration;

pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    load: Load,
}

enum Load {
    Http1,
    Http2Tls,
    NewTls,
    Grpc,
    Big,
    /// HTTP/1.1 with these numbers of routes.
    Routes(&'static [usize]),
}

/// What one peer did in one scenario: medians over the rounds.
pub struct Row {
    pub peer: Peer,
    /// Number of routes, where it matters.
    pub routes: Option<usize>,
    /// Microseconds of processor per request.
    pub cpu: f64,
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub failed: u64,
    /// Resident memory after the last round, KiB.
    pub rss: u64,
}

const GRPC_MESSAGE: usize = 128;

impl Scenario {
    pub const ALL: [Self; 6] = [
        Self { name: "http1", title: "HTTP/1.1, 128 bytes, 32 kept connections (wrk)", load: Load::Http1 },
        Self {
            name: "h2",
            title: "HTTP/2 over TLS 1.3, 128 bytes, 16 connections of 10 streams (h2load)",
            load: Load::Http2Tls,
        },
        Self {
            name: "tls",
            title: "New TLS 1.3 connections, X25519, P-256, not resumed, one request each",
            load: Load::NewTls,
        },
        Self {
            name: "grpc",
            title: "gRPC unary, 128 bytes each way, 16 connections of 10 streams, HTTP/2 in the clear (h2load)",
            load: Load::Grpc,
        },
        Self { name: "big", title: "HTTP/1.1, 1 MiB bodies, 8 kept connections (wrk)", load: Load::Big },
        Self {
            name: "routes",
            title: "HTTP/1.1 over 1 and 10,000 routes, asked for at random (wrk)",
            load: Load::Routes(&[1, 10_000]),
        },
    ];

    pub fn run(&self, world: &World, effort: Effort) -> Result<Vec<Row>> {
        println!("\n{}", self.title);
        let variants = match self.load {
            Load::Routes(counts) => counts.iter().map(|n| Some(*n)).collect(),
            _ => vec![None],
        };
        let without_forwarder = matches!(self.load, Load::Http2Tls | Load::NewTls | Load::Routes(_));
        let mut running: Vec<(Option<usize>, Running, Vec<Round>)> = Vec::new();
        for routes in variants {
            for peer in world.peers.iter().copied().filter(|p| p.is_proxy() || !without_forwarder) {
                let started = peer::start(world, peer, routes.map_or(Routes::All, Routes::Many), &self.label(routes));
                match started {
                    Ok(started) => running.push((routes, started, Vec::new())),
                    Err(error) => println!("  {peer} is left out: {error:#}"),
                }
            }
        }
        for (routes, peer, _) in &running {
            self.load(world, peer, *routes, 1).with_context(|| format!("warming {} up", peer.peer))?;
        }
        for round in 1..=effort.rounds {
            for (routes, peer, rounds) in &mut running {
                let before = peer.process.cpu()?;
                let seen = self.load(world, peer, *routes, effort.seconds)?;
                let cpu = peer.process.cpu()?.saturating_sub(before);
                let cpu = cpu.as_secs_f64() * 1e6 / seen.requests.max(1) as f64;
                println!(
                    "  round {round}: {:14} {cpu:8.1} us CPU/request, {:9.0}/s, failed {}",
                    peer.peer, seen.per_second, seen.failed
                );
                rounds.push(Round { cpu, seen });
            }
        }
        running.into_iter().map(|(routes, peer, rounds)| row(peer.peer, routes, &rounds, &peer.process)).collect()
    }

    fn label(&self, routes: Option<usize>) -> String {
        routes.map_or_else(|| self.name.to_owned(), |n| format!("{}-{n}", self.name))
    }

    fn load(&self, world: &World, peer: &Running, routes: Option<usize>, seconds: u64) -> Result<Seen> {
        let (http, https) = (peer.http(), peer.https());
        let message = || {
            // A gRPC message: not compressed, its length, its bytes.
            let mut message = vec![0];
            message.extend_from_slice(&(GRPC_MESSAGE as u32).to_be_bytes());
            message.resize(5 + GRPC_MESSAGE, b'x');
            message
        };
        match self.load {
            Load::Http1 | Load::Routes(_) => {
                load::wrk(&world.dir, &format!("http://{http}/"), 32, seconds, routes.unwrap_or(0))
            }
            Load::Big => load::wrk(&world.dir, &format!("http://{http}/big"), 8, seconds, 0),
            Load::Http2Tls => load::h2load(&world.dir, &format!("https://{https}/"), 16, 10, seconds, None),
            Load::NewTls => load::handshakes(https, &world.cert, seconds),
            Load::Grpc => {
                let url = format!("http://{}/bench.Echo/Unary", peer::address(peer.ports.grpc));
                load::h2load(&world.dir, &url, 16, 10, seconds, Some(&message()))
            }
        }
    }
}

struct Round {
    cpu: f64,
    seen: Seen,
}

fn row(peer: Peer, routes: Option<usize>, rounds: &[Round], process: &Process) -> Result<Row> {
    let of = |value: fn(&Round) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
    Ok(Row {
        peer,
        routes,
        cpu: of(|r| r.cpu),
        per_second: of(|r| r.seen.per_second),
        p50: Duration::from_secs_f64(of(|r| r.seen.p50.as_secs_f64())),
        p99: Duration::from_secs_f64(of(|r| r.seen.p99.as_secs_f64())),
        failed: rounds.iter().map(|r| r.seen.failed).sum(),
        rss: process.rss()?,
    })
}
