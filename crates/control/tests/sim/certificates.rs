//! The simulation of certificates, in steps of a minute of virtual time. Keys and serials are random, as the CA takes them from
//! the operating system; nothing that depends on them is in the history.

use crate::authority::{Authority, Cert, LIVES, Member, START, Verdicts, drive, id, names, request, run};
use crate::rng::Rng;
use selvedge_control::ca::{Bundle, Error, Issued, Memory, Order, Rotate, Token};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const STEP: i64 = 60;
const HOUR: i64 = 3600;
/// How far clocks may be apart from true time, so that two of them are at most two minutes apart.
const TOLERATED: u64 = 50;

struct Node {
    member: Member,
    /// Where it hears of bundles.
    watches: usize,
    cut: bool,
    /// What was revoked while it held it, and when that was.
    revoked: Option<(Cert, i64)>,
    /// A control plane that is up and that it reaches, for how many steps in a row.
    reached: i64,
    /// When its clock was last wrong.
    odd: i64,
    /// When it was last revoked: what it joins with after that begins then, and not two minutes before.
    barred: i64,
}

/// See the module.
pub struct Certificates {
    now: i64,
    rng: Rng,
    loud: bool,
    trace: DefaultHasher,
    pub lines: u64,
    pub failed: Option<String>,
    pub most: BTreeMap<&'static str, usize>,
    folder: tempfile::TempDir,
    controls: Vec<Authority>,
    nodes: Vec<Node>,
    /// What is mended when.
    mends: Vec<(i64, Mend)>,
    /// Each bundle by its number.
    bundles: BTreeMap<u64, Arc<Bundle>>,
    /// When a root was first in a bundle, by its name.
    roots: BTreeMap<String, i64>,
    /// Steps of the last hours in which no control plane could lead.
    unled: Vec<i64>,
    tokens: Vec<(Token, i64)>,
    /// A clock of a control plane has jumped by then.
    jumped: i64,
}

enum Mend {
    Node(usize),
    Control(usize),
    Line(usize),
    Clock(usize),
    NodeClock(usize),
}

impl Certificates {
    pub fn new(seed: u64, loud: bool) -> Self {
        let mut rng = Rng::new(seed ^ 0x0ca0_0ca0);
        let memory = Arc::new(Memory::new());
        let control = selvedge_identity::control_id(crate::authority::DOMAIN).unwrap_or_else(|e| panic!("{e}"));
        let count = rng.between(1, 3);
        let nodes = rng.between(3, 5);
        let verdicts = Verdicts::default();
        let member = |n| Member::new(id(&format!("n{n}")), &verdicts);
        let node = |n| Node { member: member(n), watches: 0, cut: false, revoked: None, reached: 0, odd: 0, barred: 0 };
        let mut sim = Self {
            now: START,
            loud,
            trace: DefaultHasher::new(),
            lines: 0,
            failed: None,
            most: BTreeMap::new(),
            folder: tempfile::tempdir().unwrap_or_else(|e| panic!("{e}")),
            controls: (0..count)
                .map(|c| Authority::new(&memory, Member::new(control.clone(), &verdicts), c == 0))
                .collect(),
            nodes: (0..nodes).map(node).collect(),
            mends: Vec::new(),
            bundles: BTreeMap::new(),
            roots: BTreeMap::new(),
            unled: Vec::new(),
            tokens: Vec::new(),
            jumped: 0,
            rng,
        };
        for c in 0..sim.controls.len() {
            sim.controls[c].member.skew = sim.skew();
            sim.start(c);
        }
        for n in 0..sim.nodes.len() {
            sim.nodes[n].member.skew = sim.skew();
        }
        sim
    }

    fn skew(&mut self) -> i64 {
        i64::try_from(self.rng.below(2 * TOLERATED + 1)).unwrap_or(0) - TOLERATED as i64
    }

    fn chance(&mut self) -> f64 {
        self.rng.below(101) as f64 / 100.0
    }

    fn trace(&mut self, line: impl FnOnce() -> String) {
        let line = line();
        self.lines += 1;
        (self.now, &line).hash(&mut self.trace);
        if self.loud {
            println!("{:>7} {line}", self.now - START);
        }
    }

    pub fn hash(&self) -> u64 {
        self.trace.finish()
    }

    fn fail(&mut self, why: String) {
        if self.failed.is_none() {
            self.trace(|| format!("WRONG: {why}"));
            self.failed = Some(format!("certificates, after {} s: {why}", self.now - START));
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.most.entry(what).or_default() += 1;
    }

    /// Eight hours of storm, and two in which all is well: a root lives for five, a certificate for one.
    pub fn run(mut self) -> Self {
        let (heal, end) = (START + 8 * HOUR, START + 10 * HOUR);
        while self.now < end && self.failed.is_none() {
            self.now += STEP;
            self.mend(self.now >= heal);
            if self.now < heal {
                self.fault();
            }
            // At the end nothing new comes, so that all can have the same.
            let last = self.now >= end - 10 * STEP;
            for c in 0..self.controls.len() {
                if !last || !*self.controls[c].leads.borrow() {
                    self.control(c);
                }
            }
            (0..self.nodes.len()).for_each(|n| self.node(n));
            self.check();
        }
        if self.failed.is_none() {
            self.converged();
        }
        self
    }

    fn start(&mut self, c: usize) {
        let key = self.folder.path().join("key");
        let control = &mut self.controls[c];
        control.clock.store(self.now + control.member.skew, Ordering::Relaxed);
        if let Err(error) = control.start(&key) {
            let why = error.to_string();
            if !control.is_cut() {
                self.fail(format!("control {c} does not start: {why}"));
            }
            return;
        }
        self.trace(|| format!("control {c} starts"));
    }

    /// A control plane's minute.
    fn control(&mut self, c: usize) {
        let (now, chance) = (self.now, self.chance());
        let control = &mut self.controls[c];
        control.clock.store(now + control.member.skew, Ordering::Relaxed);
        let Some(ca) = &control.ca else { return };
        let writes = control.line.writes.load(Ordering::Relaxed);
        if run(ca.tick()).is_ok() {
            control.member.fresh = now;
        }
        let wrote = control.line.writes.load(Ordering::Relaxed) > writes;
        let follows = wrote && !*control.leads.borrow();
        let (before, bundle) = (control.member.sequence(), ca.bundle());
        control.member.set(&bundle);
        if control.member.wants_another(now) {
            let issued = ca.issue_own(&control.member.id, &request(&control.member.id, self.lines));
            let got =
                issued.is_ok_and(|issued| control.member.uses(Cert::new(&issued, now, true), now, chance).is_ok());
            if !got {
                control.member.failed(now, chance);
            }
        }
        if follows {
            self.fail(format!("control {c} does what is due, and does not lead"));
        }
        if bundle.sequence < before {
            self.fail(format!("control {c} goes back from bundle {before} to {}", bundle.sequence));
        }
        self.seen(&bundle);
    }

    /// There is one bundle of each number.
    fn seen(&mut self, bundle: &Arc<Bundle>) {
        if !self.bundles.contains_key(&bundle.sequence) {
            for root in &bundle.roots {
                self.roots.entry(names(root).1).or_insert(self.now);
            }
        }
        let first = self.bundles.entry(bundle.sequence).or_insert_with(|| bundle.clone());
        if (&first.roots, &first.revoked) != (&bundle.roots, &bundle.revoked) {
            let number = bundle.sequence;
            self.fail(format!("two bundles have the number {number}"));
        }
    }

    fn reaches(&self, n: usize, c: usize) -> bool {
        !self.nodes[n].cut && self.controls[c].ca.is_some()
    }

    /// A node's minute.
    fn node(&mut self, n: usize) {
        let watched = self.nodes[n].watches;
        let any = (0..self.controls.len()).any(|c| self.reaches(n, c) && self.controls[c].member.cert.is_some());
        self.nodes[n].reached = if any { self.nodes[n].reached + 1 } else { 0 };
        if self.nodes[n].member.skew.unsigned_abs() > TOLERATED {
            self.nodes[n].odd = self.now;
        }
        if self.reaches(n, watched) && self.nodes[n].member.cert.is_some() {
            // A stream is cut, and made again, only between those who accept each other.
            if self.rng.percent(80) && self.greet(n, watched).is_ok() {
                self.hear(n, watched);
            }
        } else {
            self.nodes[n].watches = (watched + 1) % self.controls.len();
        }
        if self.nodes[n].member.cert.is_none() {
            return self.join(n);
        }
        if self.nodes[n].member.wants_another(self.now) {
            self.renew(n);
        }
    }

    fn hear(&mut self, n: usize, c: usize) {
        let Some(bundle) = self.controls[c].ca.as_ref().map(selvedge_control::ca::Ca::bundle) else { return };
        let (before, member) = (self.nodes[n].member.sequence(), &mut self.nodes[n].member);
        member.take(&bundle);
        // Who already had something newer is as fresh as that.
        if bundle.sequence >= before {
            member.fresh = member.fresh.max(self.controls[c].member.fresh);
        }
        if self.nodes[n].member.sequence() < before {
            self.fail(format!("n{n} goes back to an older bundle"));
        }
        self.seen(&bundle);
    }

    /// Mutual TLS with a control plane.
    fn greet(&self, n: usize, c: usize) -> Result<(), String> {
        let (node, control) = (&self.nodes[n].member, &self.controls[c].member);
        let (ours, theirs) = (node.cert.as_ref().ok_or("none")?, control.cert.as_ref().ok_or("none")?);
        control.accepts(ours, self.now).map_err(|e| format!("control {c} refuses it: {e}"))?;
        node.accepts(theirs, self.now).map_err(|e| format!("it refuses control {c}: {e}"))
    }

    fn renew(&mut self, n: usize) {
        let node = &self.nodes[n];
        let ended = node.member.cert.as_ref().is_some_and(|cert| !cert.holds(self.now + node.member.skew));
        let well = node.reached > 30 && self.now > node.odd.max(self.jumped) + HOUR && node.revoked.is_none();
        if ended && well {
            self.fail(format!("n{n} asks for a certificate only when the last one has ended"));
        }
        let (first, chance) = (self.rng.index(self.controls.len()), self.chance());
        let mut why = String::new();
        for turn in 0..self.controls.len() {
            let c = (first + turn) % self.controls.len();
            let Some(cert) = self.nodes[n].member.cert.clone().filter(|_| self.reaches(n, c)) else { continue };
            let lapsed = !cert.holds(self.now + self.nodes[n].member.skew);
            if !lapsed && let Err(refused) = self.greet(n, c) {
                why = refused;
                continue;
            }
            let Some(ca) = &self.controls[c].ca else { continue };
            let csr = request(&cert.current.id, self.lines);
            let issued = if lapsed { ca.come_back(&cert.current, &csr) } else { ca.renew(&cert.current, &csr) };
            match issued {
                Ok(issued) if self.nodes[n].revoked.is_some() && self.told(c, n) => {
                    let id = issued.id.to_string();
                    return self.fail(format!("control {c} renews a revoked certificate of {id}"));
                }
                Ok(issued) => match self.got(n, c, &issued, chance) {
                    Ok(()) => return,
                    Err(_) => why = "what was issued cannot be used".to_owned(),
                },
                Err(error) => why = error.to_string().chars().take(60).collect(),
            }
        }
        let now = self.now;
        self.nodes[n].member.failed(now, chance);
        if self.nodes[n].revoked.is_some() || why.contains("ended") {
            // The administrator makes it join anew.
            self.nodes[n].member.forget();
        }
        let short = why.split(':').next().unwrap_or_default().to_owned();
        self.trace(|| format!("n{n} gets no certificate: {short}"));
    }

    /// Whether a control plane must know that what this node holds is revoked.
    fn told(&self, c: usize, n: usize) -> bool {
        let at = self.nodes[n].revoked.as_ref().map_or(i64::MAX, |(_, at)| *at);
        self.controls[c].member.fresh > at
    }

    fn got(&mut self, n: usize, c: usize, issued: &Issued, chance: f64) -> Result<(), String> {
        self.hear(n, c);
        let cert = Cert::new(issued, self.now, false);
        self.overlaps(&cert);
        let now = self.now;
        let done = self.nodes[n].member.uses(cert, now, chance);
        let well = [&self.nodes[n].member, &self.controls[c].member].iter().all(|m| m.skew.unsigned_abs() <= TOLERATED);
        if let Err(why) = &done
            && well
            && now >= self.jumped
            && self.nodes[n].revoked.is_none()
            && now > self.nodes[n].barred + 4 * STEP
        {
            self.fail(format!("n{n} cannot use what control {c} has issued to it: {why}"));
        }
        self.count(if done.is_ok() { "certificates" } else { "certificates that cannot be used yet" });
        self.trace(|| format!("n{n} gets a certificate of control {c}, usable: {}", done.is_ok()));
        done
    }

    /// With a token, which somebody else tries, too, at the same time and maybe elsewhere.
    fn join(&mut self, n: usize) {
        let up: Vec<usize> = (0..self.controls.len()).filter(|c| self.reaches(n, *c)).collect();
        let (Some(makes), Some(at), Some(thief)) = (self.rng.pick(&up), self.rng.pick(&up), self.rng.pick(&up)) else {
            return;
        };
        let who = self.nodes[n].member.id.clone();
        let life = self.rng.between(1, 30) * 60;
        let uses = if self.rng.percent(80) { 1 } else { 2 };
        let order = Order { id: who.clone(), life: Duration::from_secs(life), uses };
        let Some(Ok(token)) = self.controls[makes].ca.as_ref().map(|ca| run(ca.create_token(&order))) else { return };
        let expires = self.controls[makes].clock.load(Ordering::Relaxed) + life as i64;
        self.tokens.push((token.clone(), expires));
        let text = token.reveal();
        let (ours, theirs) = (request(&who, life), request(&who, life + 1));
        // The answer is lost, and asked for again, with the same key: that is no other use.
        let mut asks: Vec<(usize, &[u8])> = vec![(at, &ours)];
        if self.rng.percent(60) {
            asks.extend([(thief, &*theirs), (at, &*ours)]);
        }
        let mut order: Vec<usize> = (0..64).map(|_| self.rng.next() as usize % 4096).collect();
        let calls = asks.iter().filter_map(|(c, csr)| {
            let ca = self.controls[*c].ca.as_ref()?;
            Some(Box::pin(ca.join(&text, Some(&who), csr)) as std::pin::Pin<Box<dyn Future<Output = _> + '_>>)
        });
        let results: Vec<Result<Issued, Error>> = drive(calls.collect(), |open| order.pop().unwrap_or(0) % open);
        let keys: std::collections::BTreeSet<&[u8]> =
            asks.iter().zip(&results).filter(|(_, r)| r.is_ok()).map(|((_, csr), _)| *csr).collect();
        let (used, any) = (keys.len(), results.first().and_then(|r| r.as_ref().ok().cloned()));
        if used > uses as usize {
            self.fail(format!("a token for {uses} is accepted {used} times"));
        }
        let accepted: Vec<bool> = results.iter().map(Result::is_ok).collect();
        self.trace(|| format!("n{n} joins at {at}, made at {makes}: {accepted:?}"));
        if let Some(issued) = any {
            self.nodes[n].revoked = None;
            let _ = self.got(n, at, &issued, 0.5);
        }
    }

    /// Tokens that are over are tried again.
    fn replay(&mut self) {
        let up: Vec<usize> = (0..self.controls.len()).filter(|c| self.controls[*c].ca.is_some()).collect();
        let (Some((token, expires)), Some(c)) = (self.rng.pick(&self.tokens), self.rng.pick(&up)) else { return };
        let control = &self.controls[c];
        let over = control.clock.load(Ordering::Relaxed) >= expires;
        let Some(ca) = &control.ca else { return };
        if over && run(ca.join(&token.reveal(), None, &request(&id("n0"), 0))).is_ok() {
            self.fail(format!("control {c} accepts a token that expired"));
        }
        self.count("tokens tried again");
    }

    /// Who has stolen a key asks for the next certificate, past the handshake that would refuse it.
    fn steal(&mut self) {
        let (n, c) = (self.rng.index(self.nodes.len()), self.rng.index(self.controls.len()));
        let (Some((cert, _)), Some(ca)) = (&self.nodes[n].revoked, &self.controls[c].ca) else { return };
        let csr = request(&cert.current.id, 1);
        let given = ca.renew(&cert.current, &csr).or_else(|_| ca.come_back(&cert.current, &csr));
        let Ok(next) = given else { return };
        if self.told(c, n) {
            return self.fail(format!("control {c} gives another certificate for one of n{n} that is revoked"));
        }
        // Who has not heard of it dates what it gives as of when it last heard; at most half of a life back.
        let short = self.now - self.controls[c].member.fresh < HOUR / 2;
        let next = Cert::new(&next, self.now, false).current;
        let tricked = |other: &usize| {
            let ca = self.controls[*other].ca.as_ref();
            self.told(*other, n) && ca.is_some_and(|ca| ca.renew(&next, &csr).is_ok())
        };
        let found = (0..self.controls.len()).find(tricked);
        if let Some(other) = found.filter(|_| short && self.now >= self.jumped) {
            self.fail(format!("control {other} renews a revoked certificate of n{n}, which control {c} had renewed"));
        }
    }

    fn fault(&mut self) {
        if self.rng.percent(20) {
            self.replay();
            self.steal();
        }
        if !self.rng.percent(12) {
            return;
        }
        let (n, c) = (self.rng.index(self.nodes.len()), self.rng.index(self.controls.len()));
        let minutes = |rng: &mut Rng, most: u64| 60 * rng.between(1, most) as i64;
        let (now, short, long) = (self.now, minutes(&mut self.rng, 25), minutes(&mut self.rng, 100));
        match self.rng.below(12) {
            0 | 1 => {
                self.trace(|| format!("n{n} is cut off for {long} s"));
                self.nodes[n].cut = true;
                self.mends.push((now + long, Mend::Node(n)));
            }
            2 | 3 => {
                self.trace(|| format!("control {c} is down for {short} s"));
                self.controls[c].ca = None;
                self.lead();
                self.mends.push((now + short, Mend::Control(c)));
            }
            4 => {
                self.trace(|| format!("all control planes are down for {long} s"));
                for c in 0..self.controls.len() {
                    self.controls[c].ca = None;
                    self.mends.push((now + long, Mend::Control(c)));
                }
            }
            5 | 6 => {
                let full = self.rng.percent(40);
                self.trace(|| format!("control {c} is cut off the store for {short} s, from writing alone: {full}"));
                let line = &self.controls[c].line;
                if full { &line.full } else { &line.cut }.store(true, Ordering::Relaxed);
                self.lead();
                self.mends.push((now + short, Mend::Line(c)));
            }
            // Beyond what is tolerated, a node for long, and a control plane until somebody sets its clock right.
            7 => {
                let ahead = if self.rng.percent(50) { HOUR } else { -3 * HOUR };
                self.trace(|| format!("the clock of control {c} jumps by {ahead} s"));
                self.controls[c].member.skew = ahead;
                self.jumped = now + 2 * HOUR;
                self.mends.push((now + 120, Mend::Clock(c)));
            }
            8 => {
                let ahead = if self.rng.percent(50) { long } else { -long };
                self.trace(|| format!("the clock of n{n} jumps by {ahead} s"));
                self.nodes[n].member.skew = ahead;
                self.mends.push((now + short, Mend::NodeClock(n)));
            }
            9 | 10 => {
                let what = if self.rng.percent(50) { Rotate::Intermediate } else { Rotate::Root { at_once: false } };
                let done = self.controls[c].ca.as_ref().is_some_and(|ca| run(ca.rotate(what)).is_ok());
                self.trace(|| format!("{what:?} is rotated at control {c}: {done}"));
            }
            _ => self.revoke(n, c),
        }
    }

    fn revoke(&mut self, n: usize, c: usize) {
        let Some(cert) = self.nodes[n].member.cert.clone() else { return };
        let Some(ca) = self.controls[c].ca.as_ref() else { return };
        // What another clock has issued in the last minutes may begin after that.
        if self.now - cert.issued <= 2 * 60 || cert.issued + HOUR < self.now || self.jumped > self.now {
            return;
        }
        if run(ca.revoke_identity(&cert.current.id)).is_ok() {
            self.nodes[n].revoked = Some((cert, self.now));
            self.nodes[n].barred = self.now;
            self.count("revocations");
            // Until its certificate has ended, so that it can come back by the grace alone.
            if self.rng.percent(30) {
                self.nodes[n].cut = true;
                self.mends.push((self.now + self.rng.between(40, 110) as i64 * 60, Mend::Node(n)));
            } else if self.rng.percent(30) {
                // It is mended at once, and joins anew in the same minute, maybe by a clock that is late.
                self.nodes[n].member.forget();
            }
            self.trace(|| format!("n{n} is revoked at control {c}"));
        }
    }

    /// One that is up and reaches the store leads, if there is one.
    fn lead(&mut self) {
        let able = |a: &Authority| a.ca.is_some() && !a.is_cut();
        if self.controls.iter().any(|a| able(a) && *a.leads.borrow()) {
            return;
        }
        let next = self.controls.iter().position(able);
        if next.is_none() && self.unled.last() != Some(&self.now) {
            self.unled.push(self.now);
        }
        for (c, control) in self.controls.iter().enumerate() {
            control.leads.send_replace(Some(c) == next);
        }
    }

    fn mend(&mut self, all: bool) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.mends).into_iter().partition(|(at, _)| all || *at <= now);
        self.mends = later;
        for (_, what) in due {
            match what {
                Mend::Node(n) => self.nodes[n].cut = false,
                Mend::Line(c) => {
                    let line = &self.controls[c].line;
                    [&line.cut, &line.full].iter().for_each(|fault| fault.store(false, Ordering::Relaxed));
                }
                Mend::Clock(c) => self.controls[c].member.skew = self.skew(),
                Mend::NodeClock(n) => self.nodes[n].member.skew = self.skew(),
                Mend::Control(c) => {
                    if self.controls[c].ca.is_none() {
                        self.start(c);
                    }
                    if self.controls[c].ca.is_none() {
                        self.mends.push((now + STEP, Mend::Control(c)));
                    }
                }
            }
        }
        self.lead();
    }

    fn members(&self) -> Vec<(String, &Member)> {
        let up = self.controls.iter().enumerate().filter(|(_, c)| c.ca.is_some());
        let controls = up.map(|(c, control)| (format!("control {c}"), &control.member));
        let well = self.nodes.iter().enumerate().filter(|(_, node)| node.revoked.is_none());
        controls.chain(well.map(|(n, node)| (format!("n{n}"), &node.member))).collect()
    }

    fn check(&mut self) {
        let now = self.now;
        let mut wrong = Vec::new();
        let members = self.members();
        // A clock beyond what is tolerated may have made a root of its own.
        let lost = now < self.jumped - 2 * HOUR + 10 * STEP;
        for (name, member) in &members {
            let Some(cert) = &member.cert else { continue };
            for (other, judge) in &members {
                let clock = now + judge.skew;
                let result = judge.accepts(cert, now);
                if result.is_ok() && !cert.holds(clock) {
                    wrong.push(format!("{other} accepts a certificate of {name} that does not hold"));
                }
                let known = self.roots.get(&cert.root).copied().unwrap_or(i64::MAX);
                let apart = |m: &Member| m.skew.unsigned_abs() > TOLERATED || m.bundle.is_none() || m.fresh <= known;
                if lost || apart(member) || apart(judge) || !cert.holds(clock) || !cert.holds(now + member.skew) {
                    continue;
                }
                if let Err(why) = result {
                    wrong.push(format!("{other} refuses a valid certificate of {name}: {why}"));
                }
            }
        }
        for (n, node) in self.nodes.iter().enumerate() {
            if let Some((cert, at)) = &node.revoked {
                let told = |m: &Member| m.fresh > *at + STEP && m.accepts(cert, now).is_ok();
                wrong.extend(
                    members
                        .iter()
                        .find(|(_, m)| told(m))
                        .map(|(who, _)| format!("{who} accepts n{n}, which is revoked")),
                );
            }
            let member = &node.member;
            let over = member.cert.as_ref().is_some_and(|c| !c.holds(now + member.skew));
            let lately = member.skew.unsigned_abs() <= TOLERATED && now >= self.jumped && node.revoked.is_none();
            if over && lately && node.reached > 30 {
                wrong.push(format!(
                    "n{n} has no certificate that holds, with a control plane at hand for {} minutes",
                    node.reached
                ));
            }
        }
        if let Some(why) = wrong.into_iter().next() {
            self.fail(why);
        }
    }

    /// New roots are known for an hour before they sign; less when a clock has said that the hour is over, or when nobody
    /// could make the next one in time.
    fn overlaps(&mut self, cert: &Cert) {
        let known = self.roots.get(&cert.root).copied().unwrap_or(START);
        let (first, since) = (self.roots.values().all(|at| *at >= known), self.now - known);
        let late = self.unled.iter().filter(|at| **at > self.now - 4 * HOUR).count() > 20;
        if !first && !late && self.now >= self.jumped && since < LIVES.overlap.as_secs() as i64 - 5 * STEP {
            self.fail(format!("a root signs {since} s after it is first heard of"));
        }
    }

    fn converged(&mut self) {
        let mut wrong = Vec::new();
        let numbers: std::collections::BTreeSet<u64> = self.members().iter().map(|(_, m)| m.sequence()).collect();
        if numbers.len() != 1 {
            wrong.push(format!("{} bundles are in use", numbers.len()));
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let holds = node.member.cert.as_ref().is_some_and(|c| c.holds(self.now + node.member.skew));
            if !holds || node.revoked.is_some() {
                wrong.push(format!("n{n} has no certificate that counts"));
            }
        }
        if let Some(why) = wrong.into_iter().next() {
            self.fail(format!("not converged: {why}"));
        }
    }
}
