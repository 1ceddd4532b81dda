//! What must hold at every moment, and what must hold when all is well again.

use crate::control::{ConnId, Control, Sight};
use crate::plan::{Millis, Spec};
use crate::proxy::{News, Table, rejected, request};
use crate::sim::Sim;
use crate::world::{ROOT, grant};
use selvedge_control::publish::hub::SETTLE;
use selvedge_control::publish::scope::{Role, Wanted};
use selvedge_control::publish::version::Version;
use selvedge_control::source::stream::machine::Outcome;
use selvedge_model::{Kind, ResourceKey};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Streams that may get a large first update at the same time, as in the hub.
const TURNS: usize = 32;
/// An update of more than so many is a large one, as in the node.
const SMALL: usize = 64;

/// What was sent at once, and what the proxy should have after it.
pub struct Group {
    pub upserts: Vec<(ResourceKey, Version)>,
    pub removals: Vec<ResourceKey>,
    pub should: Arc<Sight>,
    /// Commits that the control plane knew.
    pub seen: usize,
}

/// The history, as far as it is needed.
pub struct Checks {
    pub now: Millis,
    pub failed: Option<String>,
    loud: bool,
    trace: DefaultHasher,
    pub lines: u64,
    groups: HashMap<(ConnId, String), Group>,
    /// Streams whose large first update is not yet answered, by control plane.
    firsts: BTreeMap<usize, BTreeSet<ConnId>>,
    dials: VecDeque<Millis>,
    pub most: BTreeMap<&'static str, usize>,
}

impl Checks {
    pub fn new(loud: bool) -> Self {
        Self {
            now: 0,
            failed: None,
            loud,
            trace: DefaultHasher::new(),
            lines: 0,
            groups: HashMap::new(),
            firsts: BTreeMap::new(),
            dials: VecDeque::new(),
            most: BTreeMap::new(),
        }
    }

    /// One line of the history.
    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        let line = line();
        self.lines += 1;
        (self.now, &line).hash(&mut self.trace);
        if self.loud {
            println!("{:>8.3} {line}", self.now as f64 / 1_000.0);
        }
    }

    /// Tells two histories apart.
    pub fn hash(&self) -> u64 {
        self.trace.finish()
    }

    pub fn fail(&mut self, why: String) {
        if self.failed.is_none() {
            self.trace(|| format!("WRONG: {why}"));
            self.failed = Some(format!("at {:.3} s: {why}", self.now as f64 / 1_000.0));
        }
    }

    pub fn at_most(&mut self, what: &'static str, count: usize, most: usize) {
        let highest = self.most.entry(what).or_default();
        *highest = (*highest).max(count);
        if count > most {
            self.fail(format!("{count} {what}: more than {most}"));
        }
    }

    /// A proxy tries to connect; it did so before at `before`.
    pub fn dialed(&mut self, before: Millis) {
        self.dials.push_back(self.now);
        while self.dials.front().is_some_and(|at| at + 100 <= self.now) {
            self.dials.pop_front();
        }
        let count = self.dials.len();
        self.at_most("tries to connect within 100 ms", count, 50);
        if before != 0 && self.now < before + 100 {
            self.fail(format!("a proxy tries again after {} ms", self.now - before));
        }
    }

    pub fn acked(&mut self, conn: ConnId, control: usize, nonce: &str) {
        self.trace(|| format!("{conn} acknowledges {nonce}"));
        self.ended(conn, control);
    }

    /// It no longer holds a turn.
    pub fn ended(&mut self, conn: ConnId, control: usize) {
        self.firsts.entry(control).or_default().remove(&conn);
    }
}

/// A control plane sends an update.
pub fn sent(sim: &mut Sim, conn: ConnId, control: usize, nonce: &str, group: Group) {
    let proxy = sim.conns[conn].proxy;
    let (up, down) = (group.upserts.len(), group.removals.len());
    let of: Vec<String> = group.upserts.iter().map(|(key, version)| format!("{key} {version}")).collect();
    let gone: Vec<String> = group.removals.iter().map(ToString::to_string).collect();
    sim.checks.trace(|| {
        format!(
            "control {control} sends p{proxy} {nonce} of {conn}: {up} up, {down} gone: {} -{}",
            of.join(", "),
            gone.join(", ")
        )
    });
    let spec = sim.proxies[proxy].spec.clone();
    if spec.rogue {
        sim.checks.fail(format!("p{proxy} is not what it says, and gets an update"));
    }
    for (key, _) in &group.upserts {
        let may = match key.kind {
            Kind::Secret => may_have(&sim.controls[control], &spec, key),
            Kind::Gateway => spec.role == Role::Gateway && [&*key.namespace, ROOT].contains(&&*spec.namespace),
            _ => true,
        };
        if !may {
            sim.checks.fail(format!("p{proxy} of {} must not see {key}", spec.namespace));
        }
    }
    // Who has not come back to a control plane that has just started is not gone.
    let own = &sim.controls[control];
    let lost = group.removals.iter().find(|key| key.kind == Kind::Workload && !own.met.contains(*key));
    if let Some(lost) = lost.filter(|_| sim.now < own.began + SETTLE) {
        sim.checks.fail(format!("control {control} takes {lost} from p{proxy}, which may yet come to it"));
    }
    if nonce == "1" && up + down > SMALL {
        let firsts = sim.checks.firsts.entry(control).or_default();
        firsts.insert(conn);
        let count = firsts.len();
        sim.checks.at_most("large first updates under way", count, TURNS);
    }
    let (behind, resources) = {
        let control = &sim.controls[control];
        let member = control.hub.members().find(|(id, ..)| *id == sim.conns[conn].node);
        member.map_or((0, 0), |(_, member, _)| (member.node.behind(), control.hub.sees(member)))
    };
    sim.checks.at_most("changes that wait for one proxy", behind, resources + 1_000);
    sim.checks.groups.insert((conn, nonce.to_owned()), group);
}

/// Secrets are for those who serve or call what is of their namespace, and for Gateways of another one that is let.
fn may_have(control: &Control, spec: &Spec, secret: &ResourceKey) -> bool {
    let beside = spec.workload.as_deref().and_then(|name| Some(name.split_once('/')?.0));
    let home = match spec.role {
        Role::Gateway => spec.namespace == secret.namespace || spec.namespace == ROOT,
        Role::Sidecar | Role::Node => beside == Some(&secret.namespace),
    };
    let granted = spec.role == Role::Gateway && control.knows(&grant(&secret.namespace));
    secret.name == "cert" && (home || granted)
}

/// A proxy has made an update effective.
pub fn installed(
    sim: &mut Sim,
    proxy: usize,
    (conn, nonce): &(ConnId, String),
    before: &Table,
    news: &News,
    outcome: &Outcome,
) {
    let (conn, nonce) = (*conn, nonce.as_str());
    let not: Vec<&str> = outcome.rejected.iter().map(|(key, ..)| key.as_str()).collect();
    sim.checks.trace(|| format!("p{proxy} has {nonce} of {conn} in effect, but for {not:?}"));
    if !sim.is_of_now(conn) {
        return;
    }
    let Some(group) = sim.checks.groups.remove(&(conn, nonce.to_owned())) else {
        return sim.checks.fail(format!("p{proxy} has made {nonce} of {conn} effective, which nobody sent"));
    };
    in_order(sim, proxy, &group, &news.upserts);
    let own = &sim.proxies[proxy];
    let mut wrong = Vec::new();
    // Of a former stream there may be parts, of an update with the same nonce.
    if news.upserts != group.upserts || news.removals != group.removals {
        wrong.push("has something else in effect than was sent".to_owned());
    }
    wrong.extend(not_tried_again(news, &rejected(&own.intake)));
    // One state of the control plane, and nothing of another.
    for (key, version) in group.should.iter() {
        if own.has.get(key) != Some(version) {
            wrong.push(format!("has {key} {:?}, but should have {version}", own.has.get(key)));
        }
    }
    let extra = own.has.keys().filter(|key| !group.should.contains_key(key) && key.kind != Kind::Workload);
    wrong.extend(extra.map(|key| format!("has {key}, which it should not")));
    wrong.extend(served(sim, proxy, before));
    if let Some(wrong) = wrong.first() {
        sim.checks.fail(format!("p{proxy} {wrong} (after {nonce} of {conn})"));
    }
}

/// What was refused is tried again with each update. A Secret is refused when it comes with a complaint about certificates
/// that was not there before: it is taken with the next update that makes nobody complain.
fn not_tried_again(news: &News, refused: &BTreeMap<ResourceKey, Version>) -> Option<String> {
    let harmless = |kind: Kind| matches!(kind.name(), "EndpointSlice" | "HTTPRoute" | "AccessPolicy" | "Workload");
    let all = news.upserts.iter().map(|(key, _)| key).chain(&news.removals);
    let secrets =
        refused.iter().filter(|(key, version)| key.kind == Kind::Secret && news.refused.get(*key) == Some(*version));
    let still = secrets.map(|(key, _)| format!("has not tried {key} again")).next();
    still.filter(|_| all.map(|key| key.kind).all(harmless))
}

/// Only what was committed, and never back.
fn in_order(sim: &mut Sim, proxy: usize, group: &Group, news: &[(ResourceKey, Version)]) {
    let own = &mut sim.proxies[proxy];
    // A control plane that is cut off the store knows less than the one before, and must not take it back.
    if group.seen < own.seen {
        let why = format!("p{proxy} has seen commit {}, and is told how it was at {}", own.seen, group.seen);
        return sim.checks.fail(why);
    }
    own.seen = group.seen;
    for (key, version) in news {
        let ever = sim.editor.ever.get(key).map(Vec::as_slice).unwrap_or_default();
        let reached = own.reached.get(key).copied().unwrap_or(0);
        match ever.iter().skip(reached).position(|v| v == version) {
            Some(further) => _ = own.reached.insert(key.clone(), reached + further),
            None if !ever.contains(version) => {
                sim.checks.fail(format!("p{proxy} has {key} {version}, which was never committed"));
            }
            None => sim.checks.fail(format!("p{proxy} goes back to {key} {version}")),
        }
    }
}

/// What is served is what it has, but for what is bad; and it works.
fn served(sim: &Sim, proxy: usize, before: &Table) -> Vec<String> {
    let own = &sim.proxies[proxy];
    let (versions, rejected) = (&own.table.versions, rejected(&own.intake));
    let mut wrong = Vec::new();
    for (key, version) in &own.has {
        if versions.get(key) != Some(version) && rejected.get(key) != Some(version) {
            wrong.push(format!("serves {:?} of {key}, and has {version}", versions.get(key)));
        }
    }
    let gone = versions.keys().filter(|key| !own.has.contains_key(key));
    wrong.extend(gone.map(|key| format!("serves {key}, which is gone")));
    let broken = |key: &ResourceKey, version: Version| sim.editor.broken.contains(&(key.clone(), version));
    for (key, version) in versions {
        let refused = rejected.get(key) == Some(version) || broken(key, *version);
        let good = before.versions.get(key).filter(|v| *v != version && !broken(key, **v));
        if let Some(good) = good.filter(|_| refused) {
            wrong.push(format!("serves {key} {version}, which is bad, instead of {good}"));
        }
    }
    wrong.extend(request(&own.table.compiled.snapshot).map(|why| format!("cannot answer: {why}")));
    wrong
}

/// At the end, everything is as it should be.
pub fn converged(sim: &mut Sim) {
    let mut wrong = Vec::new();
    let dead = sim.dead;
    for proxy in (0..sim.proxies.len()).filter(|proxy| dead != Some(*proxy)) {
        wrong.extend(settled(sim, proxy).into_iter().map(|why| format!("p{proxy} {why}")));
    }
    let sidecars = sim.proxies.iter().filter(|p| p.spec.role == Role::Sidecar && !p.spec.rogue);
    let dead = sim.dead.and_then(|dead| sim.proxies[dead].spec.workload.clone());
    for name in sidecars.filter_map(|p| p.spec.workload.as_deref()) {
        let Some((namespace, short)) = name.split_once('/') else { continue };
        let key = ResourceKey::new(Kind::Workload, namespace, short);
        if dead.as_deref() == Some(name) {
            let knows = (0..sim.controls.len()).filter(|c| sim.controls[*c].knows(&key));
            wrong.extend(knows.map(|control| format!("control {control} knows {key}, which is dead")));
            continue;
        }
        let lacks = (0..sim.controls.len()).filter(|c| !sim.controls[*c].knows(&key));
        wrong.extend(lacks.map(|control| format!("control {control} does not know {key}")));
    }
    for proxy in sim.proxies.iter().take(2) {
        if !sim.shop.is_whole(proxy) {
            wrong.push(format!("{} serves something else than compiling at once gives", proxy.spec.id));
        }
    }
    if let Some(why) = wrong.first() {
        sim.checks.fail(format!("not converged: {why}"));
    }
}

/// What nobody but this says: policies about who may come are where they are enforced, and what was asked for has its
/// endpoints.
fn needs(sim: &Sim, proxy: usize) -> Vec<ResourceKey> {
    let own = &sim.proxies[proxy];
    let gateways = own.has.keys().filter(|key| key.kind.name() == "Gateway").map(|key| key.namespace.as_str());
    let workloads = own.spec.workload.iter().filter(|_| own.spec.role == Role::Sidecar);
    let workloads = workloads.filter_map(|name| Some(name.split_once('/')?.0));
    let mut guarded: BTreeSet<&str> = gateways.chain(workloads).collect();
    if !guarded.is_empty() {
        guarded.insert(ROOT);
    }
    let policies = |key: &&ResourceKey| key.kind.name() == "AccessPolicy" && guarded.contains(key.namespace.as_str());
    let mut all: Vec<ResourceKey> = sim.editor.now.keys().filter(policies).cloned().collect();
    for wanted in own.machine.wanted() {
        let Wanted::Host(host) = wanted else { continue };
        let mut labels = host.split('.');
        let (Some(name), Some(namespace)) = (labels.next(), labels.next()) else { continue };
        let service = ResourceKey::new(Kind::Service, namespace, name);
        if sim.editor.now.contains_key(&service) {
            all.extend([service, ResourceKey::new(Kind::EndpointSlice, namespace, name)]);
        }
    }
    all.retain(|key| sim.editor.now.contains_key(key));
    all
}

fn settled(sim: &mut Sim, proxy: usize) -> Vec<String> {
    let own = &sim.proxies[proxy];
    if own.spec.rogue {
        return if own.has.is_empty() { Vec::new() } else { vec!["has what it must not see".to_owned()] };
    }
    let Some(conn) = own.conn.filter(|_| own.machine.is_open()) else { return vec!["has no stream".to_owned()] };
    let mut wrong = Vec::new();
    if !own.queue.is_empty() {
        wrong.push("has not made everything effective".to_owned());
    }
    let open = own.machine.wanted().into_iter().find(|w| own.machine.answer(w).is_none());
    wrong.extend(open.map(|wanted| format!("was never answered about {wanted:?}")));
    let interest = own.interest(&own.machine.wanted().into_iter().cloned().collect());
    let end = &sim.conns[conn];
    let (control, node) = (end.control, end.node);
    let should = sim.controls[control].sight(&interest);
    let own = &sim.proxies[proxy];
    for key in should.keys().chain(own.has.keys()) {
        let (should, has) = (should.get(key), own.has.get(key));
        if should != has {
            wrong.push(format!("has {has:?} of {key}, and should have {should:?}"));
        }
    }
    let lacks = needs(sim, proxy).into_iter().filter(|key| !own.has.contains_key(key));
    wrong.extend(lacks.map(|key| format!("lacks {key}")));
    let table = Table::default();
    wrong.extend(served(sim, proxy, &table));
    let hub = &sim.controls[control].hub;
    let Some((_, member, wants)) = hub.members().find(|(id, ..)| *id == node) else {
        return vec!["is not known to its control plane".to_owned()];
    };
    if member.node.acked.map(|a| a.version) != wants {
        wrong.push("is not in sync, its control plane says".to_owned());
    }
    let told: BTreeMap<String, Option<Version>> =
        member.node.rejected.iter().map(|r| (r.key.clone(), r.version)).collect();
    let rejects: BTreeMap<String, Option<Version>> =
        rejected(&own.intake).iter().map(|(key, version)| (key.to_string(), Some(*version))).collect();
    if told != rejects {
        wrong.push(format!("rejects {rejects:?}, and its control plane knows of {told:?}"));
    }
    wrong
}
