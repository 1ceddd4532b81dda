//! Capture by iptables and ip6tables, where nftables is not to be had: chains of ours in the tables `raw` and `nat`, each family
//! replaced as one.

use super::{
    Sorted, Wish,
    nft::ZONE,
    tool::{Fault, Tools},
    wish::{Item, digest},
};
use std::{fmt::Write, fs, path::Path};

/// All chains of ours begin so; iptables takes names of up to 28 bytes.
const OURS: &str = "SELVEDGE_";
const OUT: &str = "SELVEDGE_OUT";
const IN: &str = "SELVEDGE_IN";
/// The one in the table `raw`. All lines with this name are of that table, and all others of ours of `nat`.
const RAW: &str = "SELVEDGE_RAW";
/// Chains without rules whose names tell which wish was fulfilled, and what our rules looked like thereafter.
const WISH: &str = "SELVEDGE_W_";
const SEAL: &str = "SELVEDGE_S_";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Programs of one family: those that the system prefers, then those for the interface of old kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Programs {
    pub family: Family,
    save: &'static str,
    restore: &'static str,
}

const V4: [Programs; 2] = [
    Programs { family: Family::V4, save: "iptables-save", restore: "iptables-restore" },
    Programs { family: Family::V4, save: "iptables-legacy-save", restore: "iptables-legacy-restore" },
];
const V6: [Programs; 2] = [
    Programs { family: Family::V6, save: "ip6tables-save", restore: "ip6tables-restore" },
    Programs { family: Family::V6, save: "ip6tables-legacy-save", restore: "ip6tables-legacy-restore" },
];

/// The rules of a wish, as input for `iptables-restore --noflush`, where nothing of ours is.
pub fn script(wish: &Wish, family: Family) -> String {
    replacing(wish, family, "")
}

/// The same where `before` is.
fn replacing(wish: &Wish, family: Family, before: &str) -> String {
    let rules = rules(wish, family);
    let name = format!("{WISH}{}", digest(&rules));
    let jumps = [
        (wish.outbound.is_some()).then(|| format!("-I OUTPUT 1 -j {RAW}\n")),
        (wish.outbound.is_some() || wish.dns).then(|| format!("-I OUTPUT 1 -j {OUT}\n")),
        wish.inbound.is_some().then(|| format!("-I PREROUTING 1 -j {IN}\n")),
    ];
    let mut chains = vec![OUT, IN, &name];
    chains.extend(wish.outbound.is_some().then_some(RAW));
    sections(&chains, before, &(jumps.into_iter().flatten().collect::<String>() + &rules))
}

/// Input for `iptables-restore`: makes chains, empty if they are there, takes out all else of `before`, and adds rules.
fn sections(chains: &[&str], before: &str, rules: &str) -> String {
    // What is not captured is set apart before anything is captured.
    [("raw", true), ("nat", false)].into_iter().fold(String::new(), |mut out, (table, raw)| {
        let of_table = |text: &str| {
            text.lines().filter(|line| line.contains(RAW) == raw).fold(String::new(), |out, line| out + line + "\n")
        };
        let chains: Vec<&str> = chains.iter().copied().filter(|chain| (*chain == RAW) == raw).collect();
        let (before, rules) = (of_table(before), of_table(rules));
        if chains.is_empty() && before.is_empty() && rules.is_empty() {
            return out;
        }
        let _ = writeln!(out, "*{table}");
        for chain in &chains {
            let _ = writeln!(out, ":{chain} - [0:0]");
        }
        removals(&mut out, &before, &chains);
        out + &rules + "COMMIT\n"
    })
}

/// Takes out what is there, but for chains that are `kept`: those were emptied when they were named.
fn removals(out: &mut String, before: &str, kept: &[&str]) {
    for line in before.lines() {
        if let Some(rule) = line.strip_prefix("-A ")
            && !rule.starts_with(OURS)
        {
            let _ = writeln!(out, "-D {rule}");
        }
    }
    let chains = before.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    let chains: Vec<&str> = chains.filter(|chain| !kept.contains(chain)).collect();
    for verb in ["-F", "-X"] {
        for chain in &chains {
            let _ = writeln!(out, "{verb} {chain}");
        }
    }
}

/// A connection in the middle, from before the rules, is not redirected: only a first packet is.
const FIRST: &str = "-p tcp --syn";

fn rules(wish: &Wish, family: Family) -> String {
    let mut rules = Rules { out: String::new(), family };
    if wish.outbound.is_some() || wish.dns {
        outbound(&mut rules, wish);
    }
    if wish.inbound.is_some() {
        inbound(&mut rules, wish);
    }
    rules.out
}

/// Whose connections are not captured, wherever they go.
fn uncaptured(wish: &Wish) -> Vec<String> {
    let mut own = vec![format!("-m mark --mark {:#x}/{:#x}", wish.mark, wish.mask())];
    own.extend(wish.uids.iter().map(|uid| format!("-m owner --uid-owner {uid}")));
    own
}

/// `RETURN` here means: not captured.
fn outbound(rules: &mut Rules, wish: &Wish) {
    for own in uncaptured(wish) {
        if wish.outbound.is_some() {
            rules.add(RAW, &format!("-p tcp {own}"), &format!("CT --zone-orig {ZONE}"));
        }
        rules.add(OUT, &own, &format!("CONNMARK --set-xmark {:#x}/0xffffffff", wish.mark));
        rules.add(OUT, &own, "RETURN");
    }
    let chosen = wish.outbound.clone().unwrap_or_default();
    let (include, exclude) = (Sorted::of(&chosen.include), Sorted::of(&chosen.exclude));
    rules.addresses(OUT, "-d", "", &exclude, "RETURN");
    if wish.dns {
        for protocol in ["udp", "tcp"] {
            let to = format!("REDIRECT --to-ports {}", wish.ports.dns);
            rules.add(OUT, &format!("-p {protocol} -m {protocol} --dport 53"), &to);
        }
    }
    if wish.outbound.is_none() {
        return;
    }
    let redirect = format!("REDIRECT --to-ports {}", wish.ports.outbound);
    rules.ports(OUT, "-p tcp", &exclude, "RETURN");
    // Before loopback is left alone: who names addresses means them wherever they are.
    rules.addresses(OUT, "-d", FIRST, &include, &redirect);
    rules.add(OUT, "-o lo", "RETURN");
    rules.ports(OUT, FIRST, &include, &redirect);
    if chosen.include.is_empty() {
        rules.add(OUT, FIRST, &redirect);
    }
}

fn inbound(rules: &mut Rules, wish: &Wish) {
    rules.add(IN, "-i lo", "RETURN");
    rules.add(IN, &format!("-m connmark --mark {:#x}/{:#x}", wish.mark, wish.mask()), "RETURN");
    // What is only routed through here is not for a process here.
    rules.add(IN, "-m addrtype ! --dst-type LOCAL", "RETURN");
    let chosen = wish.inbound.clone().unwrap_or_default();
    let (include, exclude) = (Sorted::of(&chosen.include), Sorted::of(&wish.direct()));
    rules.addresses(IN, "-s", "", &exclude, "RETURN");
    rules.ports(IN, "-p tcp", &exclude, "RETURN");
    let redirect = format!("REDIRECT --to-ports {}", wish.ports.inbound);
    rules.addresses(IN, "-s", FIRST, &include, &redirect);
    rules.ports(IN, FIRST, &include, &redirect);
    if chosen.include.is_empty() {
        rules.add(IN, FIRST, &redirect);
    }
}

struct Rules {
    out: String,
    family: Family,
}

impl Rules {
    fn add(&mut self, chain: &str, what: &str, verdict: &str) {
        let space = if what.is_empty() { "" } else { " " };
        let _ = writeln!(self.out, "-A {chain}{space}{what} -j {verdict}");
    }

    fn addresses(&mut self, chain: &str, side: &str, what: &str, items: &Sorted, verdict: &str) {
        let items = if self.family == Family::V4 { &items.v4 } else { &items.v6 };
        for item in items {
            // A block of all addresses is not written in lists of rules; it matches without being named.
            let item = match item {
                Item::V4(_, 0) | Item::V6(_, 0) => String::new(),
                item => format!("{side} {item}"),
            };
            self.add(chain, format!("{item} {what}").trim(), verdict);
        }
    }

    fn ports(&mut self, chain: &str, what: &str, items: &Sorted, verdict: &str) {
        for item in &items.ports {
            if let Item::Ports(first, last) = item {
                let range = if first == last { first.to_string() } else { format!("{first}:{last}") };
                self.add(chain, &format!("{what} --dport {range}"), verdict);
            }
        }
    }
}

/// What is in the kernel of one family.
pub(super) struct Listed {
    pub programs: Programs,
    /// As `iptables-save` prints it.
    pub rules: String,
    raw: String,
    wish: Option<String>,
    pub intact: bool,
}

/// Our rules, by whichever programs they were made. Fails when there are none that work.
pub(super) fn list(tools: &Tools, family: Family) -> Result<Option<Listed>, Fault> {
    let mut fault = None;
    let mut worked = false;
    for programs in candidates(family) {
        match saved(tools, programs) {
            Ok(raw) if !raw.is_empty() => return Ok(Some(listed(programs, raw))),
            Ok(_) => worked = true,
            Err(Fault::Missing(_)) if fault.is_some() => {}
            Err(other) => fault = Some(other),
        }
    }
    match fault {
        Some(fault) if !worked => Err(fault),
        _ => Ok(None),
    }
}

fn candidates(family: Family) -> [Programs; 2] {
    if family == Family::V4 { V4 } else { V6 }
}

fn listed(programs: Programs, raw: String) -> Listed {
    let name = |kind: &str| {
        let start = format!(":{kind}");
        raw.lines().find_map(|line| Some(line.strip_prefix(&start)?.split(' ').next()?.to_owned()))
    };
    let intact = name(SEAL).is_some_and(|seal| seal == digest(&without(&raw, &[SEAL])));
    Listed { programs, rules: without(&raw, &[SEAL, WISH]), wish: name(WISH), intact, raw }
}

fn without(raw: &str, kinds: &[&str]) -> String {
    let kept = raw.lines().filter(|line| !kinds.iter().any(|kind| line.starts_with(&format!(":{kind}"))));
    kept.fold(String::new(), |out, line| out + line + "\n")
}

/// What `iptables-save` says of chains of ours; counters of chains left out.
fn saved(tools: &Tools, programs: Programs) -> Result<String, Fault> {
    // Merely being asked makes the old interface set up its table, and with it hooks on every packet.
    let version = tools.run(programs.save, &["-V"], "")?;
    let modern = version.contains("nf_tables");
    let mut all = String::new();
    for table in ["raw", "nat"] {
        if modern || has_legacy_table(programs.family, table) {
            all += &tools.run(programs.save, &["-t", table], "")?;
        }
    }
    let ours = all.lines().filter(|line| line.starts_with([':', '-']) && line.contains(OURS));
    Ok(ours.fold(String::new(), |mut out, line| {
        let line = if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line };
        out.push_str(line);
        out.push('\n');
        out
    }))
}

fn has_legacy_table(family: Family, table: &str) -> bool {
    let file = if family == Family::V4 { "ip_tables_names" } else { "ip6_tables_names" };
    let names = fs::read_to_string(Path::new(NET).join(file)).unwrap_or_default();
    names.lines().any(|name| name == table)
}

/// What the kernel says of the namespace of this thread; `/proc/net` would be that of the main thread.
const NET: &str = "/proc/thread-self/net";

pub(super) fn fulfils(listed: &Listed, wish: &Wish) -> bool {
    listed.intact && listed.wish.as_deref() == Some(digest(&rules(wish, listed.programs.family)).as_str())
}

/// Whether this machine speaks IPv6 at all: then what cannot be captured of it would pass by the proxy.
pub(super) fn has_ipv6() -> bool {
    Path::new(NET).join("if_inet6").exists()
}

/// Replaces what is there: IPv4, then IPv6. When one cannot be done, what was there before is put back.
pub(super) fn replace(tools: &Tools, wish: &Wish) -> Result<(), Fault> {
    let before = put(tools, wish, Family::V4)?;
    let v6 = match wish.ipv6 && has_ipv6() {
        true => put(tools, wish, Family::V6).map(drop),
        false => list(tools, Family::V6).ok().flatten().map_or(Ok(()), |found| delete(tools, found)),
    };
    v6.inspect_err(|_| restore(tools, &before))
}

/// How to undo.
struct Before {
    programs: Programs,
    raw: String,
}

fn put(tools: &Tools, wish: &Wish, family: Family) -> Result<Before, Fault> {
    let before = list(tools, family)?;
    if let Some(before) = before.as_ref().filter(|before| fulfils(before, wish)) {
        return Ok(Before { programs: before.programs, raw: before.raw.clone() });
    }
    let raw = before.as_ref().map(|before| before.raw.clone()).unwrap_or_default();
    let mut fault = None;
    let candidates = before.map_or(candidates(family).to_vec(), |before| vec![before.programs]);
    for programs in candidates {
        match tools.run(programs.restore, RESTORE, &replacing(wish, family, &raw)) {
            Ok(_) => {
                let before = Before { programs, raw };
                seal(tools, programs).inspect_err(|_| restore(tools, &before))?;
                return Ok(before);
            }
            // What the first said is what the user can mend.
            Err(other) => fault = fault.or(Some(other)),
        }
    }
    Err(fault.unwrap_or(Fault::Missing("iptables-restore")))
}

/// Waits for others that hold the lock of iptables, for so many seconds.
const RESTORE: &[&str] = &["--noflush", "-w", "5"];

fn seal(tools: &Tools, programs: Programs) -> Result<(), Fault> {
    let seal = digest(&saved(tools, programs)?);
    tools.run(programs.restore, RESTORE, &format!("*nat\n:{SEAL}{seal} - [0:0]\nCOMMIT\n")).map(drop)
}

/// Puts back what was there; that this fails too is not to be expected, and the first error says more.
fn restore(tools: &Tools, before: &Before) {
    let now = saved(tools, before.programs).unwrap_or_default();
    let names: Vec<&str> = before.raw.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
    let mut rules = String::new();
    for rule in before.raw.lines().filter_map(|line| line.strip_prefix("-A ")) {
        let _ = match rule.starts_with(OURS) {
            true => writeln!(rules, "-A {rule}"),
            false => writeln!(rules, "-I {}", rule.replacen(' ', " 1 ", 1)),
        };
    }
    let input = sections(&names, &now, &rules);
    if let Err(error) = tools.run(before.programs.restore, RESTORE, &input) {
        tracing::error!("the rules from before could not be put back: {error}");
    }
}

/// Removes what was found.
pub(super) fn delete(tools: &Tools, found: Listed) -> Result<(), Fault> {
    tools.run(found.programs.restore, RESTORE, &sections(&[], &found.raw, "")).map(drop)
}

/// Our rules of both families. Where there are no programs for IPv6 there are no rules for it.
pub(super) fn list_all(tools: &Tools) -> Result<Vec<Listed>, Fault> {
    let mut all = Vec::from_iter(list(tools, Family::V4)?);
    all.extend(list(tools, Family::V6).ok().flatten());
    Ok(all)
}
