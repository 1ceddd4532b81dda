//! The proxies of a control plane as people and metrics are shown them.

use super::{
    gone::{Gone, Name},
    hub::{Hub, Member},
    node::Millis,
    scope::Role,
    version::Version,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// What a proxy has not taken in after so long, it is late with. A change takes milliseconds, with thousands of proxies a second.
const LATE: Millis = 5_000;
/// Workloads and Gateways that are named in one text.
const MAX_NAMED: usize = 5;

/// One proxy, as people are shown it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct NodeStatus {
    pub id: String,
    pub role: String,
    /// SPIFFE ID that it has proven; empty without mutual TLS.
    pub identity: String,
    /// Of its software.
    pub version: String,
    pub host: String,
    pub workloads: Vec<String>,
    pub state: Condition,
    /// Why it is not in sync, or what it does not serve.
    pub reason: String,
    /// Resources that it sees.
    pub resources: usize,
    /// Resources sent to it over this stream.
    pub sent: u64,
    /// What it has, and what it should have.
    pub has: String,
    pub wants: String,
    /// Seconds since the epoch.
    pub connected: i64,
    pub last_ack: Option<i64>,
    pub last_nack: Option<i64>,
    pub last_nack_text: Option<String>,
    /// Since when it is not connected any more; seconds since the epoch.
    #[serde(default)]
    pub gone_since: Option<i64>,
}

/// How a proxy is, in one word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It has all that it should have, and serves it.
    #[default]
    InSync,
    /// What it does not have yet is on its way, as it is for a moment at each change.
    Updating,
    /// It does not have the newest, and should have by now.
    Stale,
    /// It serves an older version of something that it refuses (NACK).
    Refusing,
    /// It has all, but not all of it works: a port that is in use, a workload that nothing is known of.
    Errors,
    /// It was connected in the last hour, and went without a word.
    Gone,
    /// It has said goodbye in the last hour.
    Left,
}

impl Condition {
    pub const ALL: [Self; 7] =
        [Self::InSync, Self::Updating, Self::Stale, Self::Refusing, Self::Errors, Self::Gone, Self::Left];

    pub const fn name(self) -> &'static str {
        match self {
            Self::InSync => "in_sync",
            Self::Updating => "updating",
            Self::Stale => "stale",
            Self::Refusing => "refusing",
            Self::Errors => "errors",
            Self::Gone => "gone",
            Self::Left => "left",
        }
    }
}

/// Those that are connected, by id.
pub(super) fn connected(hub: &Hub, now: Millis) -> Vec<NodeStatus> {
    let greeted = hub.members().filter(|(_, member, _)| member.role.is_some());
    let mut nodes: Vec<_> = greeted.map(|(_, m, wants)| one(hub, now, m, wants)).collect();
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    nodes
}

/// Those that were connected not long ago.
pub(super) fn gone(hub: &Hub, now: Millis) -> impl Iterator<Item = NodeStatus> {
    hub.departed().iter().map(move |(name, gone)| departed(now, name, gone))
}

/// How many proxies there are of each role in each state.
pub(super) fn count(hub: &Hub, now: Millis) -> BTreeMap<(&'static str, Condition), u64> {
    let roles = [Role::Gateway, Role::Sidecar, Role::Node].map(Role::name);
    let mut counted: BTreeMap<_, u64> =
        roles.iter().flat_map(|role| Condition::ALL.map(|condition| ((*role, condition), 0))).collect();
    for (_, member, wants) in hub.members() {
        let Some(role) = member.role else { continue };
        *counted.entry((role.name(), condition(hub, now, member, wants))).or_default() += 1;
    }
    for (_, gone) in hub.departed().iter() {
        let condition = if gone.left { Condition::Left } else { Condition::Gone };
        *counted.entry((gone.role.map_or("", Role::name), condition)).or_default() += 1;
    }
    counted
}

fn condition(hub: &Hub, now: Millis, member: &Member, wants: Option<Version>) -> Condition {
    let node = &member.node;
    let has = node.acked.map(|acked| acked.version);
    if has.is_none() || has != wants || member.ahead().is_some() {
        // What is yet to be sent goes out at once: only an answer, or a turn, is waited for.
        let waits = node.is_greeting() || node.is_waiting_for_turn();
        let since = node.waits_since().unwrap_or(if waits { member.since } else { now });
        let on_its_way = member.ahead().is_none() && now.saturating_sub(since) < LATE;
        if on_its_way { Condition::Updating } else { Condition::Stale }
    } else if !node.rejected.is_empty() {
        Condition::Refusing
    } else if !node.problems.is_empty() || !hub.missing(member).is_empty() {
        Condition::Errors
    } else {
        Condition::InSync
    }
}

/// Seconds since the epoch.
fn epoch(now: Millis, then: Millis) -> i64 {
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(epoch.saturating_sub(now.saturating_sub(then) / 1_000)).unwrap_or(0)
}

fn departed(now: Millis, (id, identity): &Name, gone: &Gone) -> NodeStatus {
    NodeStatus {
        id: id.clone(),
        role: gone.role.map_or("", Role::name).to_owned(),
        identity: identity.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
        version: gone.software.clone(),
        host: gone.host.clone(),
        workloads: gone.workloads.clone(),
        state: if gone.left { Condition::Left } else { Condition::Gone },
        reason: String::new(),
        resources: 0,
        sent: 0,
        has: gone.version.map(|v| v.to_string()).unwrap_or_default(),
        wants: String::new(),
        connected: epoch(now, gone.connected),
        last_ack: None,
        last_nack: None,
        last_nack_text: None,
        gone_since: Some(epoch(now, gone.at)),
    }
}

/// What to do about workloads or Gateways that a proxy names, and that there are not.
fn unknown(member: &Member, missing: &[String]) -> String {
    let named = missing.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = missing.len().saturating_sub(MAX_NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    match member.role {
        Some(Role::Gateway) => format!(
            "there is no Gateway {named}{more} in the configuration, so that it serves none: write it, or correct --gateway"
        ),
        _ => format!(
            "there is no Workload {named}{more} in the configuration, so that nothing is served for it: write it, let the \
             proxy bring it with --register, or correct --workload"
        ),
    }
}

fn one(hub: &Hub, now: Millis, member: &Member, wants: Option<Version>) -> NodeStatus {
    let at = |then: Millis| epoch(now, then);
    let node = &member.node;
    let has = node.acked.map(|acked| acked.version);
    let state = condition(hub, now, member, wants);
    let ago = |then: Millis| format!("{:.1} s", now.saturating_sub(then) as f64 / 1_000.0);
    let mut reason = match (state, node.waits_since()) {
        (Condition::InSync | Condition::Errors, _) => node.problems.join("; "),
        (Condition::Refusing, _) => {
            let all: Vec<_> =
                node.rejected.iter().map(|r| format!("{}: {}", r.key, r.diagnostics.join("; "))).collect();
            format!("does not serve the newest of {} resources: {}", all.len(), all.join("; "))
        }
        (_, Some(since)) => format!("has not answered an update for {}", ago(since)),
        _ if member.ahead().is_some() => behind(hub, member),
        _ if node.is_greeting() => "is still saying what it has".to_owned(),
        _ if node.is_waiting_for_turn() => "waits for its turn to get everything".to_owned(),
        _ => format!("{} changes are yet to be sent", node.behind()),
    };
    // That it has all there is for it says nothing if there is nothing.
    let missing = hub.missing(member);
    if !missing.is_empty() {
        let before = if reason.is_empty() { String::new() } else { format!("{reason}; ") };
        reason = format!("{before}{}", unknown(member, &missing));
    }
    let shown = |version: Option<Version>| version.map(|v| v.to_string()).unwrap_or_default();
    NodeStatus {
        id: member.hello.id.clone(),
        role: member.role.map_or("", Role::name).to_owned(),
        identity: member.identity.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
        version: member.hello.version.clone(),
        host: member.hello.host.clone(),
        workloads: member.hello.workloads.clone(),
        state,
        reason,
        resources: hub.sees(member),
        sent: node.sent,
        has: shown(has),
        wants: shown(wants),
        connected: at(member.since),
        last_ack: node.acked.map(|acked| at(acked.at)),
        last_nack: node.last_nack.as_ref().map(|nack| at(nack.at)),
        last_nack_text: node.last_nack.as_ref().map(|nack| nack.text.clone()),
        gone_since: None,
    }
}

fn behind(hub: &Hub, member: &Member) -> String {
    let (theirs, ours) = (member.ahead().map_or(0, |m| m.revision), hub.mark().map_or(0, |m| m.revision));
    format!(
        "has revision {theirs} of the source and this control plane only {ours}: it keeps what it has until this one has caught up (is etcd reachable from here?)"
    )
}
