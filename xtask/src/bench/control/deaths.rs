//! Workloads that leave, and that die: until every proxy that uses their Service knows.

use super::{
    LIMIT,
    messages::{Ack, Alive, FromProxy, Known, Leave, Register},
    proxies::{self, Proxies, Stream},
};
use crate::bench::load::percentile;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinHandle, time::MissedTickBehavior};

/// The host that all proxies use, and behind which those are that die.
pub const HOST: &str = "mortal.bench";
const KEY: &str = "Workload bench/mortal-";
/// How often a proxy with a workload that joined says that it lives.
const BEAT: Duration = Duration::from_millis(200);

/// How a workload ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It says so.
    Leaves,
    /// As a process that is killed: the kernel closes its connections.
    Dies,
    /// As a machine without power: nothing comes any more, and nobody closes anything.
    Vanishes,
}

impl End {
    const ALL: [Self; 3] = [Self::Leaves, Self::Dies, Self::Vanishes];
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaves => "leaves",
            Self::Dies => "dies with its process",
            Self::Vanishes => "vanishes with its machine",
        })
    }
}

/// How long it took until the last proxy knew: sorted.
pub struct Row {
    pub end: End,
    pub times: Vec<Duration>,
}

/// The Service whose endpoints they are.
pub fn service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mortal", "namespace": "bench"},
        "spec": {"selector": {"app": "mortal"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http"}]}})
}

pub fn is_mortal(key: &str) -> bool {
    key.starts_with(KEY)
}

/// One after the other ends, so many in each way.
pub async fn run(proxies: &Proxies, control: SocketAddr, count: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (kind, end) in End::ALL.into_iter().enumerate() {
        let mut mortals = Vec::new();
        for n in kind * count..(kind + 1) * count {
            mortals.push(Mortal::join(proxies, control, n).await.with_context(|| format!("workload {n} joins"))?);
        }
        let mut times = Vec::new();
        for mortal in mortals {
            let key = mortal.key.clone();
            proxies.until(&format!("{key} has joined"), LIMIT, |seen| seen.unaware(&key, true)).await?;
            let began = Instant::now();
            let rest = mortal.end(end).await;
            proxies.until(&format!("{key} is out"), LIMIT, |seen| seen.unaware(&key, false)).await?;
            let last = proxies.seen().last_heard(&key).context("nobody heard of it")?;
            times.push(last.saturating_duration_since(began));
            drop(rest);
        }
        times.sort_unstable();
        println!(
            "  a workload {end}: out of all proxies after {:?} at most",
            times.last().copied().unwrap_or_default()
        );
        rows.push(Row { end, times });
    }
    Ok(rows)
}

pub fn table(proxies: usize, rows: &[Row]) -> String {
    let mut table = format!(
        "### A workload leaves or dies: until the last of {proxies} proxies that use its Service has heard of it\n\n\
         | a workload that has joined … | times | p50 | p99 | longest |\n|---|--:|--:|--:|--:|\n"
    );
    for row in rows {
        let at = |q| percentile(&row.times, q).unwrap_or_default().as_secs_f64() * 1e3;
        let (p50, p99, longest) = (at(0.5), at(0.99), at(1.0));
        let _ = writeln!(table, "| {} | {} | {p50:.0} ms | {p99:.0} ms | {longest:.0} ms |", row.end, row.times.len());
    }
    table
}

/// The stream of a proxy beside a workload that has joined by it.
struct Mortal {
    key: String,
    ends: mpsc::Sender<End>,
    task: JoinHandle<Option<Stream>>,
}

impl Mortal {
    async fn join(proxies: &Proxies, control: SocketAddr, n: usize) -> Result<Self> {
        let name = format!("mortal-{n}");
        let workload = json!({"apiVersion": "selvedge.dev/v1alpha1", "kind": "Workload",
            "metadata": {"name": name, "namespace": "bench", "labels": {"app": "mortal"}},
            "spec": {"addresses": [format!("10.250.{}.{}", n / 250, n % 250 + 1)], "serviceAccount": "proxy",
                "ports": [{"name": "http", "port": 8080}], "tunnel": {"port": 15008}}});
        let known = Known { resources: Vec::new(), last: true };
        let mut stream = proxies.open(control, proxies::hello(&name), known).await?;
        stream.send(FromProxy::Register(Register { number: 1, workload: workload.to_string().into() }))?;
        stream.send(FromProxy::Alive(Alive {}))?;
        loop {
            let message = stream.next(proxies).await?;
            if let Some(update) = message.update.filter(|update| update.last) {
                stream.send(FromProxy::Ack(Ack { nonce: update.nonce }))?;
            }
            if let Some(registered) = message.registered {
                ensure!(registered.refused.is_empty(), "{}", registered.refused);
                break;
            }
        }
        let (ends, end) = mpsc::channel(1);
        let task = tokio::spawn(live(stream, proxies.clone(), end));
        Ok(Self { key: format!("Workload bench/{name}"), ends, task })
    }

    /// What is returned is to be kept until it is out.
    async fn end(self, how: End) -> Option<Stream> {
        let _ = self.ends.send(how).await;
        self.task.await.ok().flatten()
    }
}

/// Until it ends, or its stream does. Who vanishes leaves the connection behind.
async fn live(mut stream: Stream, proxies: Proxies, mut end: mpsc::Receiver<End>) -> Option<Stream> {
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            how = end.recv() => match how? {
                End::Dies => return None,
                End::Vanishes => return Some(stream),
                End::Leaves => {
                    stream.send(FromProxy::Leave(Leave {})).ok()?;
                    return Some(stream);
                }
            },
            _ = beat.tick() => stream.send(FromProxy::Alive(Alive {})).ok()?,
            message = stream.next(&proxies) => {
                if let Some(update) = message.ok()?.update.filter(|update| update.last) {
                    stream.send(FromProxy::Ack(Ack { nonce: update.nonce })).ok()?;
                }
            }
        }
    }
}
