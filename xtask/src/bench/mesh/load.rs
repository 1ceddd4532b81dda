//! Loads that are the same for every way from client to backend, in turns.

use super::Way;
use crate::bench::{
    Effort,
    load::{self, Seen, median},
    mutual, paced,
};
use anyhow::{Context, Result};
use std::{path::Path, time::Duration};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Requests over kept connections.
    Http,
    /// A new connection from the client for each request.
    Fresh,
    /// As `Http`, but the proxies pass bytes on.
    Tcp,
    /// As `Fresh`, but the proxies pass bytes on.
    TcpFresh,
    /// Large bodies; the proxies pass bytes on.
    Big,
    /// Connections to the inbound proxy.
    Handshakes,
}

/// What one way did: medians over the rounds.
pub struct Row {
    pub name: &'static str,
    /// Microseconds of processor per request, both proxies together.
    pub cpu: f64,
    pub per_second: f64,
    pub p50: Duration,
    pub p90: Duration,
    pub p99: Duration,
    pub failed: u64,
    /// Memory after the last round, KiB: of the outbound proxy and of the inbound one, resident, and of it their own.
    pub memory: Vec<[u64; 2]>,
}

impl Load {
    pub const ALL: [Self; 6] = [Self::Http, Self::Fresh, Self::Tcp, Self::TcpFresh, Self::Big, Self::Handshakes];
    pub const LAYER_4: [Self; 3] = [Self::Tcp, Self::TcpFresh, Self::Big];

    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Fresh => "fresh",
            Self::Tcp => "tcp",
            Self::TcpFresh => "tcp-fresh",
            Self::Big => "big",
            Self::Handshakes => "handshakes",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1.1, 1 KB, 1,000 requests/s over 32 kept connections",
            Self::Fresh => "HTTP/1.1, 1 KB, 500 requests/s, each on a new connection of the client",
            Self::Tcp => "Layer 4, 1 KB, 1,000 exchanges/s over 32 kept connections",
            Self::TcpFresh => "Layer 4, 1 KB, 200 exchanges/s, each on a new connection of the client",
            Self::Big => "Layer 4, 1 MiB, 8 kept connections (wrk)",
            Self::Handshakes => {
                "New connections with mutual TLS to the inbound proxy, X25519, not resumed, one after the other"
            }
        }
    }

    pub fn run(self, dir: &Path, ways: &[Way], effort: Effort) -> Result<Vec<Row>> {
        println!("\n{}", self.title());
        let ways: Vec<&Way> = ways.iter().filter(|way| self.suits(way)).collect();
        let mut rounds: Vec<Vec<(f64, Seen)>> = vec![Vec::new(); ways.len()];
        for way in &ways {
            let seen = self.load(dir, way, 1).with_context(|| format!("warming {} up", way.name))?;
            anyhow::ensure!(seen.requests > 0, "{}: all {} requests failed ({})", way.name, seen.failed, self.title());
        }
        for round in 1..=effort.rounds {
            for (way, rounds) in ways.iter().zip(&mut rounds) {
                let before = cpu(way)?;
                let seen = self.load(dir, way, effort.seconds)?;
                let cpu = cpu(way)?.saturating_sub(before).as_secs_f64() * 1e6 / seen.requests.max(1) as f64;
                println!(
                    "  round {round}: {:22} {cpu:8.1} us CPU, p50 {:?}, p90 {:?}, p99 {:?}, {:.0}/s, failed {}",
                    way.name, seen.p50, seen.p90, seen.p99, seen.per_second, seen.failed
                );
                rounds.push((cpu, seen));
            }
        }
        ways.iter().zip(rounds).map(|(way, rounds)| row(way, &rounds)).collect()
    }

    /// The forwarders are the floor for what a proxy that sleeps between requests costs; with large bodies or new connections
    /// they would only show what TLS costs. Node proxies are there for layer 4.
    fn suits(self, way: &Way) -> bool {
        match self {
            Self::Handshakes => way.inbound.is_some(),
            _ if way.name == super::NODES => Self::LAYER_4.contains(&self),
            Self::Http => true,
            _ => way.name != super::FORWARD,
        }
    }

    fn load(self, dir: &Path, way: &Way, seconds: u64) -> Result<Seen> {
        let paced = |to, rate, fresh| paced::Args { to, rate, seconds, connections: 32, fresh }.measure();
        match self {
            Self::Http => paced(way.http, 1_000, false),
            Self::Fresh => paced(way.http, 500, true),
            Self::Tcp => paced(way.tcp, 1_000, false),
            Self::TcpFresh => paced(way.tcp, 200, true),
            Self::Big => load::wrk(dir, &format!("http://{}/big", way.tcp), 8, seconds, 0),
            Self::Handshakes => {
                let (to, svid) = way.inbound.as_ref().context("nothing to connect to")?;
                mutual::measure(*to, svid, seconds)
            }
        }
    }
}

fn cpu(way: &Way) -> Result<Duration> {
    way.proxies.iter().map(|p| p.cpu()).sum()
}

fn row(way: &Way, rounds: &[(f64, Seen)]) -> Result<Row> {
    let of = |value: fn(&(f64, Seen)) -> f64| median(&rounds.iter().map(value).collect::<Vec<_>>());
    Ok(Row {
        name: way.name,
        cpu: of(|r| r.0),
        per_second: of(|r| r.1.per_second),
        p50: Duration::from_secs_f64(of(|r| r.1.p50.as_secs_f64())),
        p90: Duration::from_secs_f64(of(|r| r.1.p90.as_secs_f64())),
        p99: Duration::from_secs_f64(of(|r| r.1.p99.as_secs_f64())),
        failed: rounds.iter().map(|r| r.1.failed).sum(),
        memory: way.proxies.iter().map(|p| Ok([p.rss()?, p.own()?])).collect::<Result<_>>()?,
    })
}
