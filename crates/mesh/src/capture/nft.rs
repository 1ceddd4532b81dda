//! Capture by nftables: one table of ours, replaced as one.

use super::{
    Sorted, Wish,
    tool::{Fault, Tools},
    wish::digest,
};
use std::fmt::Write;

/// The table that holds all that is ours.
pub(super) const TABLE: &str = "inet selvedge";
/// Before those of others at the usual -100: a service address must reach the proxy as it is, not translated.
const PRIORITY: i32 = -110;
/// Before the kernel looks for the connection of a packet (NF_IP_PRI_RAW; it looks at -200).
const RAW: i32 = -300;
/// Of connections that are not captured, in the direction that they were opened. The kernel picks a port for each connection,
/// which is free again as soon as a try to connect is given up, but remembers the try for two minutes. Without a zone of
/// their own, a connection of an application that gets this port to the same place would be taken for that try, and pass by
/// the proxy.
pub(super) const ZONE: u16 = 1337;
/// Chains without rules whose names tell which wish was fulfilled, and what the table looked like thereafter.
const WISH: &str = "wish_";
const SEAL: &str = "seal_";

/// The rules, as input for `nft -f`: in the place of those before, if any.
pub fn script(wish: &Wish) -> String {
    let table = table(wish);
    let body = format!("\tchain {WISH}{} {{\n\t}}\n{table}", digest(&table));
    format!("add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{body}}}\n")
}

fn table(wish: &Wish) -> String {
    let mut out = String::new();
    if wish.outbound.is_some() {
        let apart = |own| format!("{own} meta l4proto tcp ct original zone set {ZONE}");
        let rules: Vec<String> = uncaptured(wish).into_iter().map(apart).collect();
        chain(&mut out, "apart", &format!("filter hook output priority {RAW}"), &rules);
    }
    if wish.outbound.is_some() || wish.dns {
        chain(&mut out, "outbound", &format!("nat hook output priority {PRIORITY}"), &outbound(wish));
    }
    if wish.inbound.is_some() {
        chain(&mut out, "inbound", &format!("nat hook prerouting priority {PRIORITY}"), &inbound(wish));
    }
    out
}

fn chain(out: &mut String, name: &str, what: &str, rules: &[String]) {
    let _ = writeln!(out, "\tchain {name} {{\n\t\ttype {what}; policy accept;");
    for rule in rules {
        let _ = writeln!(out, "\t\t{rule}");
    }
    out.push_str("\t}\n");
}

/// A connection in the middle, from before the rules, is not redirected: only a first packet is.
const FIRST: &str = "tcp flags & (fin | syn | rst | ack) == syn";

/// Whose connections are not captured, wherever they go.
fn uncaptured(wish: &Wish) -> Vec<String> {
    let (mark, mask) = (wish.mark, wish.mask());
    let mut own = vec![format!("meta mark & {mask:#x} == {mark:#x}")];
    if !wish.uids.is_empty() {
        own.push(format!("meta skuid {}", set(&wish.uids)));
    }
    own
}

/// `accept` here means: not captured. A connection that stays as it is passes on to the rules of others.
fn outbound(wish: &Wish) -> Vec<String> {
    let accept = |own| format!("{own} ct mark set {:#x} accept", wish.mark);
    let mut rules: Vec<String> = uncaptured(wish).into_iter().map(accept).collect();
    if !wish.ipv6 {
        rules.push("meta nfproto ipv6 accept".into());
    }
    let chosen = wish.outbound.clone().unwrap_or_default();
    let (include, exclude) = (Sorted::of(&chosen.include), Sorted::of(&chosen.exclude));
    addresses(&mut rules, "daddr", "", &exclude, "accept");
    if wish.dns {
        rules.push(format!("meta l4proto {{ tcp, udp }} th dport 53 counter redirect to :{}", wish.ports.dns));
    }
    if wish.outbound.is_none() {
        return rules;
    }
    let redirect = format!("counter redirect to :{}", wish.ports.outbound);
    ports(&mut rules, "", &exclude, "accept");
    // Before loopback is left alone: who names addresses means them wherever they are.
    addresses(&mut rules, "daddr", &format!("{FIRST} "), &include, &redirect);
    rules.push("oifname \"lo\" accept".into());
    ports(&mut rules, &format!("{FIRST} "), &include, &redirect);
    if chosen.include.is_empty() {
        rules.push(format!("{FIRST} {redirect}"));
    }
    rules
}

fn inbound(wish: &Wish) -> Vec<String> {
    let mut rules = vec!["iifname \"lo\" accept".to_owned()];
    rules.push(format!("ct mark & {:#x} == {:#x} accept", wish.mask(), wish.mark));
    if !wish.ipv6 {
        rules.push("meta nfproto ipv6 accept".into());
    }
    // What is only routed through here is not for a process here.
    rules.push("fib daddr type != local accept".into());
    let chosen = wish.inbound.clone().unwrap_or_default();
    let (include, exclude) = (Sorted::of(&chosen.include), Sorted::of(&wish.direct()));
    addresses(&mut rules, "saddr", "", &exclude, "accept");
    ports(&mut rules, "", &exclude, "accept");
    let redirect = format!("counter redirect to :{}", wish.ports.inbound);
    addresses(&mut rules, "saddr", &format!("{FIRST} "), &include, &redirect);
    ports(&mut rules, &format!("{FIRST} "), &include, &redirect);
    if chosen.include.is_empty() {
        rules.push(format!("{FIRST} {redirect}"));
    }
    rules
}

fn addresses(rules: &mut Vec<String>, side: &str, first: &str, items: &Sorted, verdict: &str) {
    for (family, items) in [("ip", &items.v4), ("ip6", &items.v6)] {
        if !items.is_empty() {
            rules.push(format!("{family} {side} {} {first}{verdict}", set(items)));
        }
    }
}

fn ports(rules: &mut Vec<String>, first: &str, items: &Sorted, verdict: &str) {
    if !items.ports.is_empty() {
        rules.push(format!("tcp dport {} {first}{verdict}", set(&items.ports)));
    }
}

fn set<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    format!("{{ {} }}", items.join(", "))
}

/// What is in the kernel.
pub(super) struct Listed {
    /// As `nft` prints it, with counters.
    pub rules: String,
    /// Of which wish; `None`: nobody knows.
    pub wish: Option<String>,
    /// Nobody changed it since.
    pub intact: bool,
}

/// Without counters, which change by themselves.
const LIST: &[&str] = &["-s", "list", "table", "inet", "selvedge"];

/// Our table, if it is there. Fails when `nft` cannot be used.
pub(super) fn list(tools: &Tools) -> Result<Option<Listed>, Fault> {
    let Some(plain) = listing(tools, LIST)? else { return Ok(None) };
    let rules = listing(tools, &LIST[1..])?.unwrap_or_default();
    let name = |kind: &str| {
        let start = format!("\tchain {kind}");
        plain.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix(" {").map(str::to_owned))
    };
    let intact = name(SEAL).is_some_and(|seal| seal == digest(&unsealed(&plain)));
    Ok(Some(Listed { rules: shown(&rules), wish: name(WISH), intact }))
}

fn listing(tools: &Tools, args: &[&str]) -> Result<Option<String>, Fault> {
    match tools.run("nft", args, "") {
        Ok(listing) => Ok(Some(listing)),
        Err(fault) if fault.says("No such file or directory") => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// A listing without chains whose name begins so.
fn without(listing: &str, kinds: &[&str]) -> String {
    let mut out = String::new();
    let mut lines = listing.lines();
    while let Some(line) = lines.next() {
        if kinds.iter().any(|kind| line.starts_with(&format!("\tchain {kind}"))) {
            lines.by_ref().find(|line| *line == "\t}");
            continue;
        }
        // Empty lines stand between chains, so which are there depends on what was left out.
        if !line.is_empty() {
            let _ = writeln!(out, "{line}");
        }
    }
    out
}

fn unsealed(listing: &str) -> String {
    without(listing, &[SEAL])
}

fn shown(listing: &str) -> String {
    without(listing, &[SEAL, WISH])
}

/// Whether what is there is what this wish asks for.
pub(super) fn fulfils(listed: &Listed, wish: &Wish) -> bool {
    listed.intact && listed.wish.as_deref() == Some(digest(&table(wish)).as_str())
}

/// Replaces what is there in one step. The seal comes second: without it the rules hold as well, but the next `apply` writes
/// them anew, for it cannot know whether they are still ours.
pub(super) fn replace(tools: &Tools, wish: &Wish) -> Result<(), Fault> {
    tools.run("nft", &["-f", "-"], &script(wish))?;
    if let Err(fault) = seal(tools) {
        tracing::warn!("the rules are in effect, but could not be sealed: {fault}");
    }
    Ok(())
}

fn seal(tools: &Tools) -> Result<(), Fault> {
    let plain = tools.run("nft", LIST, "")?;
    let seal = format!("add chain {TABLE} {SEAL}{}\n", digest(&unsealed(&plain)));
    tools.run("nft", &["-f", "-"], &seal).map(drop)
}

pub(super) fn delete(tools: &Tools) -> Result<(), Fault> {
    tools.run("nft", &["delete", "table", "inet", "selvedge"], "").map(drop)
}
