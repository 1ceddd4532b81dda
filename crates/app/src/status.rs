//! `selvedge status`: the proxies of a control plane.

use crate::time::{ago, rfc3339};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Args as ClapArgs;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use selvedge_control::publish::status::{Condition, NodeStatus};
use std::{
    collections::BTreeMap,
    fmt::Write,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::net::TcpStream;

#[derive(Debug, Clone, ClapArgs)]
#[command(
    after_help = "A `selvedge run` without --listen has no proxies to show: what it serves, and what is wrong with it, says \
                  `curl http://127.0.0.1:15000/status` (its --admin)."
)]
pub struct Args {
    /// Admin listener of the control plane: HOST:PORT, or http://HOST:PORT. Of several, all: a proxy that has gone from one
    /// to another is then not shown as gone.
    #[arg(long, default_value = "127.0.0.1:15014", value_name = "ADDRESS", value_delimiter = ',')]
    pub control: Vec<String>,
    /// As JSON.
    #[arg(long)]
    pub json: bool,
}

/// Longest time to wait for the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Longest answer that is read: some 100,000 proxies.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

pub fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut nodes = Vec::new();
    for control in &args.control {
        let address = address(control)?;
        let body = runtime.block_on(async {
            tokio::time::timeout(LIMIT, get(address)).await.with_context(|| format!("{address} does not answer"))?
        })?;
        let some: Vec<NodeStatus> =
            serde_json::from_slice(&body).context("the answer is not that of a control plane's admin listener")?;
        nodes.extend(some);
    }
    let nodes = newest(nodes);
    if args.json {
        say!("{}", serde_json::to_string_pretty(&nodes)?);
    } else {
        say!("{}", table(&nodes, now()).trim_end());
    }
    let fine = nodes.iter().all(|node| matches!(node.state, Condition::InSync | Condition::Left));
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Each proxy once: as it is where it is connected, or else as where it went from last.
fn newest(nodes: Vec<NodeStatus>) -> Vec<NodeStatus> {
    let mut by_name: BTreeMap<(String, String), NodeStatus> = BTreeMap::new();
    for node in nodes {
        let name = (node.id.clone(), node.identity.clone());
        let newer = |held: &NodeStatus| match (held.gone_since, node.gone_since) {
            (Some(held), Some(this)) => this > held,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (None, None) => node.connected > held.connected,
        };
        if by_name.get(&name).is_none_or(newer) {
            by_name.insert(name, node);
        }
    }
    by_name.into_values().collect()
}

/// HOST:PORT of what was given, as a URL or not.
fn address(given: &str) -> Result<&str> {
    ensure!(
        !given.starts_with("https://"),
        "--control {given}: the admin listener speaks clear text; write HOST:PORT or http://HOST:PORT"
    );
    Ok(given.strip_prefix("http://").unwrap_or(given).trim_end_matches('/'))
}

async fn get(address: &str) -> Result<Bytes> {
    let help = "is the control plane running? Its admin listener is named by --control ADDRESS";
    let stream = TcpStream::connect(address).await.with_context(|| format!("{address} cannot be reached; {help}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::get("/nodes").header("host", address).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(|e| anyhow::anyhow!(e))?;
    ensure!(status.is_success(), "{address} answers {status}");
    Ok(body.to_bytes())
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0))
}

/// One line for each proxy, and below it what is wrong.
fn table(nodes: &[NodeStatus], now: i64) -> String {
    let head = ["PROXY", "ROLE", "STATE", "VERSION", "RESOURCES", "CONNECTED", "IDENTITY"].map(str::to_owned);
    let mut rows = vec![head];
    for node in nodes {
        // What somebody should look at is in capitals.
        let state = match node.state {
            Condition::InSync => "in sync",
            Condition::Updating => "updating",
            Condition::Stale => "STALE",
            Condition::Refusing => "REFUSING",
            Condition::Errors => "ERRORS",
            Condition::Gone => "GONE",
            Condition::Left => "left",
        };
        let identity = if node.identity.is_empty() { "not proven" } else { &node.identity };
        rows.push([
            node.id.clone(),
            node.role.clone(),
            state.to_owned(),
            node.has.clone(),
            node.resources.to_string(),
            node.gone_since.map_or_else(|| ago(now - node.connected), |_| "-".to_owned()),
            identity.to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
        let Some(node) = index.checked_sub(1).and_then(|index| nodes.get(index)) else { continue };
        if !node.reason.is_empty() {
            let _ = writeln!(text, "    {}", node.reason);
        }
        if let Some(since) = node.gone_since {
            let how = if node.state == Condition::Left { "said goodbye" } else { "went without a word" };
            let _ = writeln!(
                text,
                "    gone since {} ({} ago), {how}; it was on {}",
                rfc3339(since),
                ago(now - since),
                node.host
            );
        }
        if let (Some(at), Some(nack)) = (node.last_nack, &node.last_nack_text) {
            let _ = writeln!(text, "    last refusal {} ago: {nack}", ago(now - at));
        }
    }
    let here: Vec<&NodeStatus> = nodes.iter().filter(|n| n.gone_since.is_none()).collect();
    let _ = write!(
        text,
        "{} proxies, {} in sync",
        here.len(),
        here.iter().filter(|n| n.state == Condition::InSync).count()
    );
    let gone = nodes.len() - here.len();
    let _ = if gone == 0 { writeln!(text) } else { writeln!(text, "; {gone} gone within the last hour") };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_elsewhere_is_not_gone() {
        let node = |gone_since: Option<i64>| NodeStatus {
            id: "web".to_owned(),
            state: if gone_since.is_none() { Condition::InSync } else { Condition::Gone },
            gone_since,
            host: "vm-7".to_owned(),
            ..NodeStatus::default()
        };
        let text = table(&newest(vec![node(Some(1_700_000_000)), node(None)]), 1_700_000_100);
        assert!(text.contains("in sync") && !text.contains("gone"), "{text}");
        let text = table(&newest(vec![node(Some(1_600_000_000)), node(Some(1_700_000_000))]), 1_700_000_100);
        assert!(text.contains("GONE") && text.contains("gone since 2023-11-14T22:13:20Z (1 min ago)"), "{text}");
        assert!(
            text.contains("it was on vm-7") && text.ends_with("0 proxies, 0 in sync; 1 gone within the last hour\n")
        );
    }

    #[test]
    fn the_control_plane_is_an_address_or_a_url() {
        assert_eq!(address("127.0.0.1:15014").expect("an address"), "127.0.0.1:15014");
        assert_eq!(address("http://control.example:15014/").expect("a URL"), "control.example:15014");
        assert!(address("https://control.example").expect_err("TLS").to_string().contains("clear text"));
    }
}
