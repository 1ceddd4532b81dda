//! The scheduler: one clock, one queue of events, the network between the parts, and what is done to them.

mod faults;

use crate::checks::{Checks, Group};
use crate::control::{ConnId, Control, follow_wanted, version};
use crate::plan::{Millis, Plan};
use crate::proxy::{Proxy, Shop};
use crate::rng::Rng;
use crate::world::{Change, Editor, NAMESPACES, resource, workload};
use selvedge_control::proto::discovery::{
    ControlMessage, ProxyMessage, Registered, Source, Update, Upsert, Welcome, control_message::Message,
    proxy_message::Message as Say,
};
use selvedge_control::publish::{
    hub::Output,
    node,
    scope::{Role, Wanted},
};
use selvedge_control::source::Mark;
use selvedge_control::source::stream::machine::{Action, Event as Step};
use selvedge_model::{ResourceKey, Resources};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// From everything being well until everything must be as it should.
pub const HEALED: Millis = 60_000;
/// As in the link.
const CONNECT: Millis = 5_000;
/// As of the lease in the store.
const LEASE: Millis = 6_000;

#[derive(Debug)]
// Events are moved, not kept in great numbers: boxing the large ones would only hide them.
#[allow(clippy::large_enum_variant)]
enum Event {
    Dial { proxy: usize, dial: u64, control: usize },
    Dialed { proxy: usize, dial: u64, conn: Option<ConnId> },
    ToControl { conn: ConnId, message: ProxyMessage },
    ToProxy { conn: ConnId, message: ControlMessage },
    LostAtControl { conn: ConnId },
    LostAtProxy { conn: ConnId },
    Deaf { conn: ConnId },
    Applied { proxy: usize, boot: u32 },
    ProxyTick { proxy: usize, at: Millis },
    ControlTick { control: usize, boot: u32, at: Millis },
    Told { control: usize, boot: u32, commits: usize },
    Share { control: usize, boot: u32, changes: Vec<Change> },
    LeaseEnds { control: usize, boot: u32 },
    Save { proxy: usize, boot: u32, resources: Resources, mark: Option<Source> },
    Edit,
    Want,
    Fault,
    StartControl { control: usize },
    StartProxy { proxy: usize },
    Mend { proxy: usize, control: usize },
    MendStore { control: usize },
    Heal,
    Die,
    End,
}

/// A message under way, or held up by a partition.
enum Held {
    Up(ProxyMessage),
    Down(ControlMessage),
    Closed,
}

pub struct Conn {
    pub proxy: usize,
    boot: u32,
    pub control: usize,
    pub node: u64,
    proxy_end: bool,
    pub control_end: bool,
    /// When the last message arrives: to the control plane, to the proxy.
    last: [Millis; 2],
    held: [Vec<Held>; 2],
    pub under_way: usize,
    pub wanted: BTreeSet<Wanted>,
}

/// The store that the control planes share.
#[derive(Default)]
struct Store {
    log: Vec<(Millis, Vec<Change>)>,
    /// Workloads that a control plane's lease holds.
    leased: BTreeMap<ResourceKey, (usize, u32)>,
}

pub struct Sim {
    pub now: Millis,
    pub plan: Plan,
    pub rng: Rng,
    queue: BinaryHeap<Reverse<(Millis, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    pub editor: Editor,
    store: Store,
    pub controls: Vec<Control>,
    pub proxies: Vec<Proxy>,
    pub conns: Vec<Conn>,
    /// To the control plane, to the proxy.
    blocked: BTreeMap<(usize, usize), [bool; 2]>,
    pub shop: Shop,
    pub healed: bool,
    /// The sidecar that dies when all else is well, and does not come back.
    pub dead: Option<usize>,
    pub checks: Checks,
}

impl Sim {
    pub fn new(seed: u64, loud: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng);
        let editor = Editor::new(plan.services, plan.wide, &mut rng);
        let mut shop = Shop::default();
        let first = editor.now.iter().map(|(key, resource)| (key.clone(), Some(resource.clone()))).collect();
        let proxies = plan.proxies.iter().map(|spec| Proxy::new(spec.clone(), plan.controls, &mut shop)).collect();
        let mut sim = Self {
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            editor,
            store: Store { log: vec![(0, first)], leased: BTreeMap::new() },
            controls: (0..plan.controls).map(|_| Control::new(0, 0)).collect(),
            proxies,
            conns: Vec::new(),
            blocked: BTreeMap::new(),
            shop,
            healed: false,
            dead: None,
            checks: Checks::new(loud),
            plan,
        };
        sim.begin();
        sim
    }

    fn begin(&mut self) {
        for control in 0..self.plan.controls {
            self.start_control(control);
        }
        for proxy in 0..self.proxies.len() {
            let at = self.rng.below(self.plan.starts);
            self.push(at, Event::StartProxy { proxy });
        }
        for _ in 0..self.plan.edits {
            let at = self.rng.below(self.plan.storm);
            self.push(at, Event::Edit);
        }
        for _ in 0..self.plan.proxies.len() * 2 {
            let at = self.rng.below(self.plan.storm);
            self.push(at, Event::Want);
        }
        if self.plan.faults {
            self.push(2_000, Event::Fault);
        }
        self.push(self.plan.storm, Event::Heal);
        self.push(self.plan.storm + HEALED / 2, Event::Die);
        self.push(self.plan.storm + HEALED, Event::End);
    }

    /// Runs to the end.
    pub fn run(mut self) -> Self {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            let Some(event) = self.events.remove(&number) else { continue };
            self.now = at;
            self.checks.now = at;
            if matches!(event, Event::End) || self.checks.failed.is_some() {
                break;
            }
            self.event(event);
        }
        if self.checks.failed.is_none() {
            crate::checks::converged(&mut self);
        }
        self
    }

    fn push(&mut self, at: Millis, event: Event) {
        self.next += 1;
        self.queue.push(Reverse((at.max(self.now), self.next)));
        self.events.insert(self.next, event);
    }

    fn latency(&mut self) -> Millis {
        // Later than who says that it lives may be: where all is well nothing is held up for so long.
        if !self.healed && self.rng.percent(3) { self.rng.between(100, 800) } else { self.rng.between(1, 20) }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Dial { proxy, dial, control } => self.dial(proxy, dial, control),
            Event::Dialed { proxy, dial, conn } => self.dialed(proxy, dial, conn),
            Event::ToControl { conn, message } => self.tell_control(conn, message),
            Event::ToProxy { conn, message } => {
                self.conns[conn].under_way -= 1;
                if self.conns[conn].proxy_end {
                    self.step(self.conns[conn].proxy, Step::Message(message));
                }
            }
            Event::LostAtControl { conn } => self.lost_at_control(conn),
            Event::LostAtProxy { conn } => self.lost_at_proxy(conn),
            Event::Deaf { conn } => {
                if self.blocked.contains_key(&(self.conns[conn].proxy, self.conns[conn].control)) {
                    self.lost_at_control(conn);
                    self.lost_at_proxy(conn);
                }
            }
            Event::Applied { proxy, boot } if self.is_running(proxy, boot) => self.applied(proxy),
            Event::ProxyTick { proxy, at } if self.proxies[proxy].up && self.proxies[proxy].tick == at => {
                self.step(proxy, Step::Tick);
            }
            Event::ControlTick { control, boot, at } => self.control_tick(control, boot, at),
            Event::Told { control, boot, commits } => self.told(control, boot, commits),
            Event::Share { control, boot, changes } => self.share(control, boot, changes),
            Event::LeaseEnds { control, boot } => self.lease_ends(control, boot),
            Event::Save { proxy, boot, resources, mark } if self.is_running(proxy, boot) => {
                (self.proxies[proxy].disk, self.proxies[proxy].marked) = (resources, mark);
            }
            Event::Edit => {
                let changes = self.editor.edit(&mut self.rng);
                self.commit(changes);
            }
            Event::Want => self.want(),
            Event::Fault => self.fault(),
            Event::StartControl { control } if !self.controls[control].up => self.start_control(control),
            Event::StartProxy { proxy } => self.start_proxy(proxy),
            Event::Mend { proxy, control } => self.mend(proxy, control),
            Event::MendStore { control } => self.mend_store(control),
            Event::Heal => self.heal(),
            Event::Die => self.die(),
            Event::Applied { .. }
            | Event::ProxyTick { .. }
            | Event::Save { .. }
            | Event::StartControl { .. }
            | Event::End => {}
        }
    }

    fn is_running(&self, proxy: usize, boot: u32) -> bool {
        self.proxies[proxy].up && self.proxies[proxy].boot == boot
    }

    // The store.

    fn commit(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let names: Vec<String> = changes
            .iter()
            .map(|(key, r)| format!("{key} {}", r.as_ref().map_or("-".into(), |r| version(r).to_string())))
            .collect();
        self.checks.trace(|| format!("commit {}: {}", self.store.log.len(), names.join(", ")));
        self.store.log.push((self.now, changes));
        for control in 0..self.controls.len() {
            self.tell(control);
        }
    }

    /// Lets a control plane hear of what is new in the store.
    fn tell(&mut self, control: usize) {
        let lag = self.latency();
        let target = &mut self.controls[control];
        if target.cut {
            return;
        }
        target.told = target.told.max(self.now + lag);
        let event = Event::Told { control, boot: target.boot, commits: self.store.log.len() };
        let at = target.told;
        self.push(at, event);
    }

    fn told(&mut self, control: usize, boot: u32, commits: usize) {
        let target = &mut self.controls[control];
        if target.boot != boot || target.cut || target.seen >= commits {
            return;
        }
        let mut all: BTreeMap<ResourceKey, _> = BTreeMap::new();
        let first = target.seen == 0;
        for (_, changes) in &self.store.log[target.seen..commits] {
            all.extend(changes.iter().cloned());
        }
        target.seen = commits;
        target.up = true;
        target.resources(self.now, all.into_iter().collect());
        if first {
            self.checks.trace(|| format!("control {control} is ready"));
            self.control_tick_at(control, self.now);
        }
        self.deliver(control);
    }

    fn share(&mut self, control: usize, boot: u32, changes: Vec<Change>) {
        if self.controls[control].boot != boot {
            return;
        }
        if self.controls[control].cut {
            return self.controls[control].unshared.extend(changes);
        }
        let leased = &mut self.store.leased;
        let mut news = Vec::new();
        for (key, resource) in changes {
            match &resource {
                Some(_) => _ = leased.insert(key.clone(), (control, boot)),
                // Another one has it now.
                None if leased.get(&key) != Some(&(control, boot)) => continue,
                None => _ = leased.remove(&key),
            }
            news.push((key, resource));
        }
        self.commit(news);
    }

    fn lease_ends(&mut self, control: usize, boot: u32) {
        if self.controls[control].boot == boot && self.controls[control].up && !self.controls[control].cut {
            return;
        }
        let mine = self.store.leased.iter().filter(|(_, owner)| **owner == (control, boot));
        let gone: Vec<ResourceKey> = mine.map(|(key, _)| key.clone()).collect();
        gone.iter().for_each(|key| _ = self.store.leased.remove(key));
        self.commit(gone.into_iter().map(|key| (key, None)).collect());
    }

    // Control planes.

    fn start_control(&mut self, control: usize) {
        let boot = self.controls[control].boot + 1;
        self.controls[control] = Control::new(boot, self.now);
        self.tell(control);
    }

    fn kill_control(&mut self, control: usize) {
        let boot = self.controls[control].boot;
        self.checks.trace(|| format!("control {control} is killed"));
        let conns: Vec<ConnId> = self.controls[control].streams.values().copied().collect();
        self.controls[control] = Control::new(boot + 1, self.now);
        for conn in conns {
            self.conns[conn].control_end = false;
            self.checks.ended(conn, control);
            self.send_down(conn, Held::Closed);
        }
        let at = self.now + LEASE;
        self.push(at, Event::LeaseEnds { control, boot });
    }

    fn control_tick_at(&mut self, control: usize, at: Millis) {
        let boot = self.controls[control].boot;
        self.controls[control].tick = at;
        self.push(at, Event::ControlTick { control, boot, at });
    }

    fn control_tick(&mut self, control: usize, boot: u32, at: Millis) {
        let now = self.now;
        let target = &mut self.controls[control];
        if target.boot != boot || !target.up || target.tick != at {
            return;
        }
        target.hub.tick(now - target.began);
        let wakes = target.hub.wakes(now - target.began) + target.began;
        self.deliver(control);
        self.control_tick_at(control, wakes.max(now + 5));
    }

    fn tell_control(&mut self, conn: ConnId, message: ProxyMessage) {
        let end = &mut self.conns[conn];
        if !end.control_end {
            return;
        }
        follow_wanted(&mut end.wanted, &message);
        let (control, node) = (end.control, end.node);
        if let Some(Say::Ack(ack)) = &message.message {
            self.checks.acked(conn, control, &ack.nonce);
        }
        let now = self.now;
        let target = &mut self.controls[control];
        target.hub.message(now - target.began, node, message);
        self.deliver(control);
    }

    fn lost_at_control(&mut self, conn: ConnId) {
        if !std::mem::replace(&mut self.conns[conn].control_end, false) {
            return;
        }
        let (control, node, now) = (self.conns[conn].control, self.conns[conn].node, self.now);
        self.checks.ended(conn, control);
        let target = &mut self.controls[control];
        target.streams.remove(&node);
        target.hub.gone(now - target.began, node);
        self.deliver(control);
        self.control_tick_at(control, now);
    }

    /// Sends what the hub wants to say.
    fn deliver(&mut self, control: usize) {
        let joined = self.controls[control].take_joined();
        if self.controls[control].cut {
            self.controls[control].unshared.extend(joined);
        } else if !joined.is_empty() {
            let (boot, at) = (self.controls[control].boot, self.now + self.rng.between(1, 30));
            self.push(at, Event::Share { control, boot, changes: joined });
        }
        for (node, output) in self.controls[control].hub.take_output() {
            let Some(conn) = self.controls[control].streams.get(&node).copied() else { continue };
            match output {
                Output::Welcome { identity } => {
                    let welcome = Welcome { identity, ..Welcome::default() };
                    self.say(conn, Message::Welcome(welcome));
                }
                Output::Registered { number, refused } => {
                    if !refused.is_empty() {
                        self.checks.trace(|| format!("refused: {refused}"));
                    }
                    self.say(conn, Message::Registered(Registered { number, refused }));
                }
                Output::Group(group) => self.group(conn, group),
                Output::Close(why) => {
                    self.checks.trace(|| format!("control {control} closes p{}: {why}", self.conns[conn].proxy));
                    self.send_down(conn, Held::Closed);
                    self.push(self.now, Event::LostAtControl { conn });
                }
            }
        }
    }

    fn group(&mut self, conn: ConnId, group: node::Group) {
        let (proxy, control) = (self.conns[conn].proxy, self.conns[conn].control);
        let interest = self.proxies[proxy].interest(&self.conns[conn].wanted);
        let should = self.controls[control].sight(&interest);
        let versions = group.upserts.iter().map(|e| ((*e.key).clone(), e.version)).collect();
        let removals = group.removals.iter().map(|key| (**key).clone()).collect();
        let seen = self.controls[control].seen;
        let told = Group { upserts: versions, removals, should, seen };
        crate::checks::sent(self, conn, control, &group.nonce, told);
        // In messages of a few resources each.
        let size = self.rng.between(1, 40) as usize;
        let mut update = Update { nonce: group.nonce, system_version: group.version.to_bytes(), ..Update::default() };
        let begin = update.clone();
        let source = group.mark.as_ref().map(Mark::to_wire);
        for entry in group.upserts {
            let (key, version) = (entry.key.to_string(), entry.version.to_bytes());
            update.upserts.push(Upsert { key, version, resource: entry.json.clone() });
            if update.upserts.len() == size {
                let full = std::mem::replace(&mut update, begin.clone());
                self.say(conn, Message::Update(full));
                self.maybe_break(conn);
            }
        }
        update.removals = group.removals.iter().map(ToString::to_string).collect();
        (update.answers, update.last, update.source) = (group.answers, true, source);
        self.say(conn, Message::Update(update));
    }

    // The network.

    fn say(&mut self, conn: ConnId, message: Message) {
        self.conns[conn].under_way += 1;
        self.checks.at_most("messages on one connection", self.conns[conn].under_way, 400);
        self.send_down(conn, Held::Down(ControlMessage { message: Some(message) }));
    }

    fn send_down(&mut self, conn: ConnId, what: Held) {
        self.send(conn, 1, what);
    }

    /// In order on one connection, with a latency of its own for each message.
    fn send(&mut self, conn: ConnId, way: usize, what: Held) {
        let latency = self.latency();
        let end = &mut self.conns[conn];
        if self.blocked.get(&(end.proxy, end.control)).is_some_and(|blocked| blocked[way]) {
            return end.held[way].push(what);
        }
        end.last[way] = end.last[way].max(self.now + latency);
        let at = end.last[way];
        let event = match (what, way) {
            (Held::Up(message), _) => Event::ToControl { conn, message },
            (Held::Down(message), _) => Event::ToProxy { conn, message },
            (Held::Closed, 0) => Event::LostAtControl { conn },
            (Held::Closed, _) => Event::LostAtProxy { conn },
        };
        self.push(at, event);
    }

    fn dial(&mut self, proxy: usize, dial: u64, control: usize) {
        let blocked = self.blocked.contains_key(&(proxy, control));
        let latency = self.latency();
        if blocked || !self.controls[control].up {
            let wait = if blocked { CONNECT } else { latency };
            return self.push(self.now + wait, Event::Dialed { proxy, dial, conn: None });
        }
        let conn = self.conns.len();
        let proven = Some(Some(self.proxies[proxy].identity()));
        let now = self.now;
        let target = &mut self.controls[control];
        target.next += 1;
        let node = target.next;
        target.streams.insert(node, conn);
        target.hub.connected(now - target.began, node, proven);
        let last = [now, now + latency];
        self.conns.push(Conn {
            proxy,
            boot: self.proxies[proxy].boot,
            control,
            node,
            proxy_end: false,
            control_end: true,
            last,
            held: [Vec::new(), Vec::new()],
            under_way: 0,
            wanted: BTreeSet::new(),
        });
        self.push(now + latency, Event::Dialed { proxy, dial, conn: Some(conn) });
        self.deliver(control);
    }

    // Proxies.

    fn dialed(&mut self, proxy: usize, dial: u64, conn: Option<ConnId>) {
        let waits = self.proxies[proxy].up && self.proxies[proxy].dials == dial;
        match conn {
            Some(conn) if waits && self.conns[conn].control_end => {
                self.conns[conn].proxy_end = true;
                self.proxies[proxy].conn = Some(conn);
                self.checks.trace(|| format!("p{proxy} is connected to {} as {conn}", self.conns[conn].control));
                self.step(proxy, Step::Connected);
            }
            _ if waits => self.step(proxy, Step::Lost("refused".to_owned())),
            Some(conn) => self.push(self.now, Event::LostAtControl { conn }),
            None => {}
        }
    }

    fn lost_at_proxy(&mut self, conn: ConnId) {
        if std::mem::replace(&mut self.conns[conn].proxy_end, false) {
            let proxy = self.conns[conn].proxy;
            self.proxies[proxy].conn = None;
            self.step(proxy, Step::Lost("broken".to_owned()));
        }
    }

    fn step(&mut self, proxy: usize, event: Step) {
        let now = self.now;
        let actions = self.proxies[proxy].machine.step(now, event);
        for action in actions {
            self.act(proxy, action);
        }
        let wakes = self.proxies[proxy].machine.wakes(now);
        // As the link does: at least a moment later.
        let at = wakes.max(now + 1);
        if self.proxies[proxy].tick != at {
            self.proxies[proxy].tick = at;
            self.push(at, Event::ProxyTick { proxy, at });
        }
    }

    fn act(&mut self, proxy: usize, action: Action) {
        match action {
            Action::Connect(url) => {
                let control = url.parse().unwrap_or(0);
                let target = &mut self.proxies[proxy];
                target.dials += 1;
                let (dial, before) = (target.dials, std::mem::replace(&mut target.dialed, self.now));
                self.checks.dialed(before);
                let at = self.now + self.latency();
                self.push(at, Event::Dial { proxy, dial, control });
            }
            Action::Disconnect => {
                if let Some(conn) = self.proxies[proxy].conn.take() {
                    self.conns[conn].proxy_end = false;
                    self.send(conn, 0, Held::Closed);
                }
            }
            Action::Send(message) => {
                let Some(conn) = self.proxies[proxy].conn else {
                    return self.checks.fail(format!("p{proxy} speaks without a stream"));
                };
                if let Some(Say::Ack(ack)) = &message.message
                    && !self.proxies[proxy].applied.contains(&(conn, ack.nonce.clone()))
                {
                    let nonce = &ack.nonce;
                    self.checks.fail(format!("p{proxy} acknowledges update {nonce} of {conn}, which is not in effect"));
                }
                self.send(conn, 0, Held::Up(message));
            }
            Action::Apply(change) => {
                let Some(conn) = self.proxies[proxy].conn else { return };
                self.proxies[proxy].queue.push_back((conn, change));
                let length = self.proxies[proxy].queue.len();
                self.checks.at_most("updates that wait in a proxy", length, 16);
                if length == 1 {
                    self.begin_apply(proxy);
                }
            }
            Action::Answered(wanted, known) => self.checks.trace(|| format!("p{proxy}: {wanted:?} is known: {known}")),
            Action::Refused(why) => self.checks.trace(|| format!("p{proxy}: {why}")),
        }
    }

    fn begin_apply(&mut self, proxy: usize) {
        let slow = if self.healed { 200 } else { self.proxies[proxy].spec.slow };
        let at = self.now + self.rng.between(2, slow.max(3));
        let boot = self.proxies[proxy].boot;
        self.push(at, Event::Applied { proxy, boot });
    }

    fn applied(&mut self, proxy: usize) {
        let before = self.proxies[proxy].table.clone();
        let Some((by, news, outcome)) = self.proxies[proxy].apply(&mut self.shop) else { return };
        crate::checks::installed(self, proxy, &by, &before, &news, &outcome);
        let own = &self.proxies[proxy];
        let (boot, resources, mark) = (own.boot, own.table.resources.clone(), own.mark.clone());
        let at = self.now + self.rng.below(2_000);
        self.push(at, Event::Save { proxy, boot, resources, mark });
        if !self.proxies[proxy].queue.is_empty() {
            self.begin_apply(proxy);
        }
        self.step(proxy, Step::Applied(outcome));
    }

    fn start_proxy(&mut self, proxy: usize) {
        if self.proxies[proxy].up {
            return;
        }
        let now = self.now;
        self.proxies[proxy].start(now, self.plan.controls, &mut self.shop);
        self.checks.trace(|| format!("p{proxy} starts"));
        self.step(proxy, Step::Tick);
        let spec = &self.proxies[proxy].spec;
        if let (Role::Sidecar, Some((namespace, name))) =
            (spec.role, spec.workload.as_deref().and_then(|w| w.split_once('/')))
        {
            let value = workload(namespace, name, proxy);
            let ours = resource(&value);
            let key = ours.key();
            self.editor.ever.entry(key.clone()).or_default().push(version(&ours));
            self.step(proxy, Step::Register { key: key.to_string(), json: value.to_string().into_bytes().into() });
        }
    }

    fn stop_proxy(&mut self, proxy: usize, clean: bool) {
        if clean {
            self.step(proxy, Step::Leave);
        }
        self.checks.trace(|| format!("p{proxy} ends, cleanly: {clean}"));
        let target = &mut self.proxies[proxy];
        (target.up, target.dials) = (false, target.dials + 1);
        if let Some(conn) = target.conn.take() {
            self.conns[conn].proxy_end = false;
            self.send(conn, 0, Held::Closed);
        }
    }

    fn want(&mut self) {
        let proxy = self.rng.index(self.proxies.len());
        let target = &self.proxies[proxy];
        if !target.up || target.spec.role == Role::Gateway {
            return;
        }
        let namespace = self.rng.pick(&NAMESPACES).unwrap_or_default();
        let number = self.rng.below(self.plan.services as u64 + 1);
        let wanted = match self.rng.below(5) {
            0 => Wanted::Host(format!("pair.{namespace}")),
            2 => Wanted::Host(format!("ext.{namespace}.example")),
            1 => {
                let key = ResourceKey::new(selvedge_model::Kind::Service, namespace, format!("s{number}"));
                let resource = self.editor.now.get(&key).map(selvedge_model::Resource::to_value);
                let address = resource.as_ref().and_then(|r| r["spec"]["clusterIP"].as_str()?.parse().ok());
                match address {
                    Some(address) => Wanted::Address(address),
                    None => return,
                }
            }
            _ => Wanted::Host(format!("s{number}.{namespace}.svc.cluster.local")),
        };
        self.step(proxy, Step::Want(wanted));
    }

    /// Whether a stream belongs to the running proxy.
    pub fn is_of_now(&self, conn: ConnId) -> bool {
        self.proxies[self.conns[conn].proxy].boot == self.conns[conn].boot
    }
}
