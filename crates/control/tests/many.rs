//! Many proxies and one control plane, all of them state machines, in virtual time and from one seed.

use bytes::Bytes;
use selvedge_control::{
    proto::discovery::{ControlMessage, Hello, ProxyMessage, Role, Update, Upsert, control_message::Message},
    publish::{
        hub::{Hub, NodeId, Output},
        version::Version,
    },
    source::stream::machine::{Action, Event, Machine, Me, Outcome},
};
use selvedge_model::{Limits, Resource, ResourceKey, Resources, parse};
use std::collections::{BTreeMap, VecDeque};

/// Milliseconds that a message takes.
const WAY: u64 = 2;
/// Milliseconds that a proxy takes for a change.
const APPLY: u64 = 5;

fn resource(yaml: &str) -> Resource {
    parse("test", yaml.as_bytes(), &Limits::default()).loaded.remove(0).resource.expect("sound")
}

fn fleet(routes: usize) -> Vec<Resource> {
    let mut all = vec![resource(
        "{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: edge, namespace: shop}, spec: {gatewayClassName: selvedge, listeners: [{name: web, port: 80, protocol: HTTP}]}}",
    )];
    all.extend((0..routes).map(|i| route(i, "a.example")));
    all
}

fn route(i: usize, host: &str) -> Resource {
    resource(&format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: r{i}, namespace: shop}}, spec: {{hostnames: [{host}], parentRefs: [{{name: edge}}]}}}}"
    ))
}

#[derive(Debug)]
enum Happens {
    ToControl(usize, u64, ProxyMessage),
    ToProxy(usize, u64, ControlMessage),
    Connected(usize),
    Refused(usize),
    /// The proxy has taken in a change.
    Applied(usize, Outcome),
    Wake(usize),
}

/// A proxy: its machine, and what it has.
struct Proxy {
    machine: Machine,
    has: BTreeMap<String, Version>,
    /// Counts its streams; messages of an old one are lost.
    stream: u64,
    node: NodeId,
    rejects: Option<String>,
}

struct World {
    now: u64,
    /// None while the control plane is away.
    hub: Option<Hub>,
    source: Resources,
    proxies: Vec<Proxy>,
    nodes: BTreeMap<NodeId, usize>,
    next: NodeId,
    agenda: BTreeMap<u64, VecDeque<Happens>>,
    /// Resources sent by control.
    sent: u64,
    /// Large updates that were not yet answered, and the most of them at a time.
    large: i64,
    most_large: i64,
    connects: BTreeMap<u64, usize>,
}

impl World {
    fn new(proxies: usize, seed: u64, resources: &[Resource]) -> Self {
        let proxy = |i: usize| {
            let hello = Hello { id: format!("p{i}"), role: Role::Gateway.into(), ..Hello::default() };
            let me =
                Me { hello, urls: vec!["one".to_owned()], seed: seed ^ (i as u64).wrapping_mul(0x5851_f42d_4c95_7f2d) };
            Proxy {
                machine: Machine::new(0, me, BTreeMap::new()),
                has: BTreeMap::new(),
                stream: 0,
                node: 0,
                rejects: None,
            }
        };
        let mut world = Self {
            now: 0,
            hub: None,
            source: Resources::default(),
            proxies: (0..proxies).map(proxy).collect(),
            nodes: BTreeMap::new(),
            next: 0,
            agenda: BTreeMap::new(),
            sent: 0,
            large: 0,
            most_large: 0,
            connects: BTreeMap::new(),
        };
        world.publish(resources);
        world.start();
        (0..proxies).for_each(|i| world.at(0, Happens::Wake(i)));
        world
    }

    fn start(&mut self) {
        let mut hub = Hub::new(self.now);
        hub.resources(self.now, self.source.iter().map(|r| (r.key(), Some(r))).collect());
        self.hub = Some(hub);
        self.large = 0;
    }

    fn publish(&mut self, resources: &[Resource]) {
        let new: Resources = resources.iter().cloned().collect();
        let delta = self.source.delta(&new);
        let changes = delta
            .into_iter()
            .map(|(key, _)| {
                let r = new.get(&key);
                (key, r)
            })
            .collect::<Vec<(ResourceKey, _)>>();
        self.source = new;
        if let Some(hub) = &mut self.hub {
            hub.resources(self.now, changes);
        }
        self.deliver();
    }

    /// The control plane dies: all streams break.
    fn kill(&mut self) {
        self.hub = None;
        self.nodes.clear();
        for i in 0..self.proxies.len() {
            self.proxies[i].stream += 1;
            self.feed(i, Event::Lost("killed".to_owned()));
        }
    }

    fn at(&mut self, delay: u64, what: Happens) {
        self.agenda.entry(self.now + delay).or_default().push_back(what);
    }

    fn feed(&mut self, i: usize, event: Event) {
        let actions = self.proxies[i].machine.step(self.now, event);
        for action in actions {
            match action {
                Action::Connect(_) => {
                    *self.connects.entry(self.now / 100).or_default() += 1;
                    let up = self.hub.is_some();
                    self.at(WAY, if up { Happens::Connected(i) } else { Happens::Refused(i) });
                }
                Action::Send(message) => {
                    let stream = self.proxies[i].stream;
                    self.at(WAY, Happens::ToControl(i, stream, message));
                }
                Action::Apply(change) => {
                    let proxy = &mut self.proxies[i];
                    let mut outcome = Outcome { number: change.number, ..Outcome::default() };
                    for (key, version, _) in change.upserts {
                        if proxy.rejects.as_ref() == Some(&key) {
                            outcome.rejected.push((key, version, vec!["bad".to_owned()]));
                        } else {
                            proxy.has.insert(key, version);
                        }
                    }
                    change.removals.iter().for_each(|key| _ = proxy.has.remove(key));
                    self.at(APPLY, Happens::Applied(i, outcome));
                }
                Action::Disconnect | Action::Answered(..) | Action::Refused(_) => {}
            }
        }
        let wakes = self.proxies[i].machine.wakes(self.now);
        if !self.proxies[i].machine.is_open() {
            self.at(wakes - self.now, Happens::Wake(i));
        }
    }

    fn deliver(&mut self) {
        let Some(hub) = &mut self.hub else { return };
        for (node, output) in hub.take_output() {
            let Some(&i) = self.nodes.get(&node) else { continue };
            let Output::Group(group) = output else { continue };
            self.sent += (group.upserts.len() + group.removals.len()) as u64;
            if group.upserts.len() > 64 {
                self.large += 1;
                self.most_large = self.most_large.max(self.large);
            }
            let upserts = group.upserts.iter().map(|entry| Upsert {
                key: entry.key.to_string(),
                version: entry.version.to_bytes(),
                resource: Bytes::new(),
            });
            let update = Update {
                nonce: group.nonce,
                system_version: group.version.to_bytes(),
                upserts: upserts.collect(),
                removals: group.removals.iter().map(ToString::to_string).collect(),
                answers: group.answers,
                last: true,
                ..Update::default()
            };
            let stream = self.proxies[i].stream;
            let message = ControlMessage { message: Some(Message::Update(update)) };
            self.agenda.entry(self.now + WAY).or_default().push_back(Happens::ToProxy(i, stream, message));
        }
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Wake(i) => {
                if !self.proxies[i].machine.is_open() && self.proxies[i].machine.wakes(self.now) <= self.now {
                    self.feed(i, Event::Tick);
                }
            }
            Happens::Refused(i) => self.feed(i, Event::Lost("refused".to_owned())),
            Happens::Connected(i) if self.hub.is_none() => self.feed(i, Event::Lost("refused".to_owned())),
            Happens::Connected(i) => {
                self.next += 1;
                self.proxies[i].node = self.next;
                self.nodes.insert(self.next, i);
                if let Some(hub) = &mut self.hub {
                    hub.connected(self.now, self.next, None);
                }
                self.feed(i, Event::Connected);
            }
            Happens::ToControl(i, stream, message) if stream == self.proxies[i].stream => {
                let node = self.proxies[i].node;
                if let Some(hub) = &mut self.hub {
                    hub.message(self.now, node, message);
                }
                self.deliver();
            }
            Happens::ToProxy(i, stream, message) if stream == self.proxies[i].stream => {
                self.feed(i, Event::Message(message));
            }
            Happens::Applied(i, outcome) => {
                self.large = (self.large - 1).max(0);
                self.feed(i, Event::Applied(outcome));
            }
            Happens::ToControl(..) | Happens::ToProxy(..) => {}
        }
    }

    /// Lets time pass until it is so. Returns the milliseconds that took.
    fn until(&mut self, limit: u64, mut so: impl FnMut(&Self) -> bool) -> u64 {
        let began = self.now;
        while !so(self) {
            let Some((&at, _)) = self.agenda.first_key_value() else {
                panic!("nothing happens any more at {}", self.now)
            };
            assert!(at <= began + limit, "not within {limit} ms: {} proxies in sync", self.in_sync());
            // Once a second, as the server does.
            if at / 1_000 != self.now / 1_000 {
                self.now = at;
                if let Some(hub) = &mut self.hub {
                    hub.tick(at);
                }
                self.deliver();
            }
            self.now = at;
            for what in self.agenda.remove(&at).unwrap_or_default() {
                self.happen(what);
            }
        }
        self.now - began
    }

    fn in_sync(&self) -> usize {
        let Some(hub) = &self.hub else { return 0 };
        hub.members().filter(|(_, m, wants)| m.node.acked.is_some_and(|a| Some(a.version) == *wants)).count()
    }

    fn all_in_sync(&self) -> bool {
        self.in_sync() == self.proxies.len() && self.proxies.iter().all(|p| p.has.len() == self.source.len())
    }
}

/// Seeds to try: one that is asked for, or the first ones.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=count).collect(),
    }
}

#[test]
fn a_thousand_proxies_converge_and_nobody_is_overrun() {
    let resources = fleet(100);
    let mut world = World::new(1_000, 1, &resources);
    let first = world.until(60_000, World::all_in_sync);
    assert_eq!(world.sent, 1_000 * 101);
    assert!(world.most_large <= 32, "{} at a time", world.most_large);
    // A restart: they come back spread over time, and nothing is sent again.
    (world.sent, world.most_large) = (0, 0);
    world.kill();
    let down = world.now + 3_000;
    world.until(4_000, |world| world.now >= down);
    world.connects.clear();
    world.start();
    let again = world.until(15_000, World::all_in_sync);
    assert_eq!(world.sent, 0);
    let most = world.connects.values().max().copied().unwrap_or(0);
    assert!(most <= 300, "{most} connections within 100 ms");
    // One route changes: one resource for each.
    let mut changed = resources.clone();
    changed[1] = route(0, "b.example");
    world.publish(&changed);
    let change = world.until(1_000, World::all_in_sync);
    assert_eq!(world.sent, 1_000);
    println!(
        "1000 proxies: {first} ms to the first sync, {again} ms after a restart, at most {most} connections in 100 ms, {change} ms for a change"
    );
}

#[test]
fn whatever_happens_they_converge() {
    for seed in seeds(60) {
        let mut random = seed;
        let mut next = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let mut resources = fleet(20);
        let mut world = World::new(8, seed, &resources);
        for step in 0..40 {
            match next(6) {
                0 => world.kill(),
                1 | 2 => {
                    let which = 1 + usize::try_from(next(20)).unwrap();
                    if which < resources.len() {
                        resources[which] = route(which - 1, &format!("h{step}.example"));
                    }
                    world.publish(&resources);
                }
                3 if resources.len() > 2 => {
                    resources.pop();
                    world.publish(&resources);
                }
                4 => {
                    let who = usize::try_from(next(8)).unwrap();
                    world.proxies[who].rejects = (next(2) == 0).then(|| "HTTPRoute shop/r0".to_owned());
                }
                _ => {}
            }
            if world.hub.is_none() && next(2) == 0 {
                world.start();
            }
            let until = world.now + next(300);
            world.agenda.entry(until).or_default();
            world.until(400, |world| world.now >= until);
        }
        if world.hub.is_none() {
            world.start();
        }
        world.proxies.iter_mut().for_each(|proxy| proxy.rejects = None);
        // Those who had refused it get it anew when it changes.
        resources[1] = route(0, "last.example");
        world.publish(&resources);
        println!("seed {seed}");
        world.until(60_000, World::all_in_sync);
    }
}
