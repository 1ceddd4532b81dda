//! Many proxies and a few control planes, all of them state machines, in virtual time and from one seed.

use bytes::Bytes;
use selvedge_control::{
    proto::discovery::{ControlMessage, Hello, ProxyMessage, Role, Update, Upsert, control_message::Message},
    publish::{
        hub::{Hub, NodeId, Output},
        node::Group,
        version::Version,
    },
    source::{
        Mark,
        stream::machine::{Action, Change, Event, Machine, Me, Outcome},
    },
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
    /// A proxy's connection to a control plane is there, or not.
    Reached(usize, usize),
    /// The proxy has taken in a change that came over that stream.
    Applied(usize, u64, Outcome),
    Wake(usize),
}

/// A proxy: its machine, and what it has.
struct Proxy {
    machine: Machine,
    has: BTreeMap<String, Version>,
    /// Revision of the source that it has.
    revision: u64,
    /// The control plane that it uses.
    control: usize,
    /// Counts its streams; messages of an old one are lost.
    stream: u64,
    node: NodeId,
    rejects: Option<String>,
}

/// A control plane.
#[derive(Default)]
struct Control {
    /// None while it is away.
    hub: Option<Hub>,
    /// What it knows of the source.
    knows: Resources,
    /// It does not reach the source: it goes on with what it knows.
    cut_off: bool,
    looks: u64,
    /// Large updates that were not yet answered, and the most of them at a time.
    large: i64,
    most_large: i64,
    /// When proxies tried to connect.
    tried: Vec<u64>,
}

struct World {
    now: u64,
    controls: Vec<Control>,
    source: Resources,
    /// Counts changes of the source.
    revision: u64,
    proxies: Vec<Proxy>,
    nodes: BTreeMap<NodeId, usize>,
    next: NodeId,
    agenda: BTreeMap<u64, VecDeque<Happens>>,
    /// Resources sent by control.
    sent: u64,
}

impl World {
    fn new(proxies: usize, controls: usize, seed: u64, resources: &[Resource]) -> Self {
        let proxy = |i: usize| {
            let hello = Hello { id: format!("p{i}"), role: Role::Gateway.into(), ..Hello::default() };
            let urls = (0..controls).map(|control| control.to_string()).collect();
            let me = Me { hello, urls, seed: seed ^ (i as u64).wrapping_mul(0x5851_f42d_4c95_7f2d) };
            Proxy {
                machine: Machine::new(0, me, BTreeMap::new()),
                has: BTreeMap::new(),
                revision: 0,
                control: 0,
                stream: 0,
                node: 0,
                rejects: None,
            }
        };
        let mut world = Self {
            now: 0,
            controls: (0..controls).map(|_| Control::default()).collect(),
            source: Resources::default(),
            revision: 0,
            proxies: (0..proxies).map(proxy).collect(),
            nodes: BTreeMap::new(),
            next: 0,
            agenda: BTreeMap::new(),
            sent: 0,
        };
        world.publish(resources);
        (0..controls).for_each(|control| world.start(control));
        (0..proxies).for_each(|i| world.at(0, Happens::Wake(i)));
        world
    }

    /// A control plane starts, and reads the source.
    fn start(&mut self, control: usize) {
        let Control { tried, most_large, .. } = std::mem::take(&mut self.controls[control]);
        self.controls[control] = Control { hub: Some(Hub::new(self.now)), tried, most_large, ..Control::default() };
        self.look(control);
    }

    /// The source is other than before.
    fn publish(&mut self, resources: &[Resource]) {
        let new: Resources = resources.iter().cloned().collect();
        self.revision += u64::from(!self.source.delta(&new).is_empty());
        self.source = new;
        for control in 0..self.controls.len() {
            if !self.controls[control].cut_off {
                self.look(control);
            }
        }
    }

    /// A control plane loses its way to the source, or has it again.
    fn cut_off(&mut self, control: usize, cut_off: bool) {
        self.controls[control].cut_off = cut_off;
        if !cut_off {
            self.look(control);
        }
    }

    /// A control plane reads what is other than it knows.
    fn look(&mut self, control: usize) {
        let (source, control) = (&self.source, &mut self.controls[control]);
        let changes = control.knows.delta(source).into_iter().map(|(key, _)| {
            let resource = source.get(&key);
            (key, resource)
        });
        let changes = changes.collect::<Vec<(ResourceKey, _)>>();
        control.knows = source.clone();
        control.looks += 1;
        let mark = Mark { origin: "source".into(), revision: self.revision, looks: control.looks };
        if let Some(hub) = &mut control.hub {
            hub.resources_at(self.now, changes, Some(mark));
        }
        self.deliver();
    }

    /// A control plane dies: its streams break.
    fn kill(&mut self, control: usize) {
        self.controls[control].hub = None;
        for i in 0..self.proxies.len() {
            let proxy = &mut self.proxies[i];
            if proxy.control == control && proxy.machine.is_open() {
                proxy.stream += 1;
                self.nodes.remove(&proxy.node);
                self.feed(i, Event::Lost("killed".to_owned()));
            }
        }
    }

    fn kill_all(&mut self) {
        (0..self.controls.len()).for_each(|control| self.kill(control));
    }

    fn start_all(&mut self) {
        (0..self.controls.len()).for_each(|control| self.start(control));
    }

    fn at(&mut self, delay: u64, what: Happens) {
        self.agenda.entry(self.now + delay).or_default().push_back(what);
    }

    fn feed(&mut self, i: usize, event: Event) {
        let actions = self.proxies[i].machine.step(self.now, event);
        let stream = self.proxies[i].stream;
        for action in actions {
            match action {
                Action::Connect(url) => {
                    let control: usize = url.parse().expect("its number");
                    self.controls[control].tried.push(self.now);
                    self.at(WAY, Happens::Reached(i, control));
                }
                Action::Send(message) => self.at(WAY, Happens::ToControl(i, stream, message)),
                Action::Apply(change) => {
                    let outcome = self.proxies[i].take_in(change);
                    self.at(APPLY, Happens::Applied(i, stream, outcome));
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
        for control in &mut self.controls {
            for (node, output) in control.hub.as_mut().map(Hub::take_output).unwrap_or_default() {
                let Some(&i) = self.nodes.get(&node) else { continue };
                let Output::Group(group) = output else { continue };
                self.sent += (group.upserts.len() + group.removals.len()) as u64;
                if group.upserts.len() > 64 {
                    control.large += 1;
                    control.most_large = control.most_large.max(control.large);
                }
                let message = ControlMessage { message: Some(Message::Update(update(group))) };
                let happens = Happens::ToProxy(i, self.proxies[i].stream, message);
                self.agenda.entry(self.now + WAY).or_default().push_back(happens);
            }
        }
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Wake(i) => {
                if !self.proxies[i].machine.is_open() && self.proxies[i].machine.wakes(self.now) <= self.now {
                    self.feed(i, Event::Tick);
                }
            }
            Happens::Reached(i, control) => {
                let Some(hub) = &mut self.controls[control].hub else {
                    return self.feed(i, Event::Lost("refused".to_owned()));
                };
                self.next += 1;
                (self.proxies[i].node, self.proxies[i].control) = (self.next, control);
                self.nodes.insert(self.next, i);
                hub.connected(self.now, self.next, None);
                self.feed(i, Event::Connected);
            }
            Happens::ToControl(i, stream, message) if stream == self.proxies[i].stream => {
                let Proxy { node, control, .. } = self.proxies[i];
                if let Some(hub) = &mut self.controls[control].hub {
                    hub.message(self.now, node, message);
                }
                self.deliver();
            }
            Happens::ToProxy(i, stream, message) if stream == self.proxies[i].stream => {
                self.feed(i, Event::Message(message));
            }
            Happens::Applied(i, stream, outcome) => {
                if stream == self.proxies[i].stream {
                    let control = &mut self.controls[self.proxies[i].control];
                    control.large = (control.large - 1).max(0);
                }
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
                self.controls.iter_mut().filter_map(|c| c.hub.as_mut()).for_each(|hub| hub.tick(at));
                self.deliver();
            }
            self.now = at;
            for what in self.agenda.remove(&at).unwrap_or_default() {
                self.happen(what);
            }
        }
        self.now - began
    }

    /// Lets so many milliseconds pass.
    fn pass(&mut self, time: u64) {
        let until = self.now + time;
        self.agenda.entry(until).or_default();
        self.until(time, |world| world.now >= until);
    }

    /// Proxies that have all that their control plane knows, as it sees them.
    fn in_sync(&self) -> usize {
        let hubs = self.controls.iter().filter_map(|c| c.hub.as_ref());
        let in_sync =
            |hub: &Hub| hub.members().filter(|(_, m, v)| m.node.acked.is_some_and(|a| Some(a.version) == *v)).count();
        hubs.map(in_sync).sum()
    }

    fn all_in_sync(&self) -> bool {
        let has_all = |p: &Proxy| p.revision == self.revision && p.has.len() == self.source.len();
        self.in_sync() == self.proxies.len() && self.proxies.iter().all(has_all)
    }

    /// Proxies of each control plane.
    fn share(&self) -> Vec<usize> {
        self.controls.iter().map(|c| c.hub.as_ref().map_or(0, |hub| hub.members().count())).collect()
    }

    /// The most tries to connect to one control plane within 100 ms, since it was last asked.
    fn crowd(&mut self) -> usize {
        let most = |tried: Vec<u64>| {
            let within = |(i, from): (usize, &u64)| tried[i..].partition_point(|at| *at < from + 100);
            tried.iter().enumerate().map(within).max().unwrap_or(0)
        };
        self.controls.iter_mut().map(|c| most(std::mem::take(&mut c.tried))).max().unwrap_or(0)
    }
}

impl Proxy {
    /// A change takes effect: never one that is older than what it has.
    fn take_in(&mut self, change: Change) -> Outcome {
        let revision = change.source.map_or(0, |source| source.revision);
        assert!(revision >= self.revision, "taken back from {} to {revision}", self.revision);
        self.revision = revision;
        let mut outcome = Outcome { number: change.number, ..Outcome::default() };
        for (key, version, _) in change.upserts {
            if self.rejects.as_ref() == Some(&key) {
                outcome.rejected.push((key, version, vec!["bad".to_owned()]));
            } else {
                self.has.insert(key, version);
            }
        }
        change.removals.iter().for_each(|key| _ = self.has.remove(key));
        outcome
    }
}

/// As it goes over the wire, without the resources themselves.
fn update(group: Group) -> Update {
    let upserts = group.upserts.iter().map(|entry| Upsert {
        key: entry.key.to_string(),
        version: entry.version.to_bytes(),
        resource: Bytes::new(),
    });
    Update {
        nonce: group.nonce,
        system_version: group.version.to_bytes(),
        upserts: upserts.collect(),
        removals: group.removals.iter().map(ToString::to_string).collect(),
        answers: group.answers,
        last: true,
        source: group.mark.as_ref().map(Mark::to_wire),
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
    let mut world = World::new(1_000, 1, 1, &resources);
    let first = world.until(60_000, World::all_in_sync);
    assert_eq!(world.sent, 1_000 * 101);
    assert!(world.controls[0].most_large <= 32, "{} at a time", world.controls[0].most_large);
    // A restart: they come back spread over time, and nothing is sent again.
    world.sent = 0;
    world.kill_all();
    world.pass(3_000);
    world.crowd();
    world.start_all();
    let again = world.until(15_000, World::all_in_sync);
    assert_eq!(world.sent, 0);
    let most = world.crowd();
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
fn a_thousand_proxies_spread_over_the_control_planes_that_live() {
    let mut world = World::new(1_000, 3, 1, &fleet(100));
    world.until(60_000, World::all_in_sync);
    let first = world.share();
    assert!(first.iter().all(|n| (250..=420).contains(n)), "{first:?}");
    world.pass(10_000);
    world.crowd();
    world.sent = 0;
    // One dies: its proxies go to both of the others at once, and are sent nothing that they have.
    world.kill(0);
    let moved = world.until(5_000, World::all_in_sync);
    let (second, one) = (world.share(), world.crowd());
    assert!(second[0] == 0 && second[1..].iter().all(|n| (420..=580).contains(n)), "{second:?}");
    assert!(one <= 230, "{one} connections to one within 100 ms");
    world.start(0);
    // All die, and come back after some seconds.
    world.pass(10_000);
    world.kill_all();
    world.pass(3_000);
    world.crowd();
    world.start_all();
    let again = world.until(15_000, World::all_in_sync);
    let (third, all) = (world.share(), world.crowd());
    assert!(third.iter().all(|n| (250..=420).contains(n)), "{third:?}");
    assert!(all <= 120, "{all} connections to one within 100 ms");
    assert_eq!(world.sent, 0);
    println!(
        "1000 proxies: {first:?}, {second:?} {moved} ms after one died ({one} in 100 ms), {third:?} {again} ms after all came back ({all} in 100 ms)"
    );
}

/// As when one control plane loses its way to etcd. [`Proxy::take_in`] looks at each change.
#[test]
fn who_knows_less_takes_nothing_back_and_serves_on() {
    let mut resources = fleet(100);
    let mut world = World::new(1_000, 3, 1, &resources);
    world.until(60_000, World::all_in_sync);
    world.sent = 0;
    world.cut_off(0, true);
    let served = world.share();
    resources[1] = route(0, "b.example");
    world.publish(&resources);
    world.pass(1_000);
    let old = |world: &World| world.proxies.iter().filter(|p| p.revision < world.revision).count();
    assert_eq!(old(&world), served[0], "those of the one that is cut off have what it knows");
    assert_eq!(world.in_sync(), 1_000, "and are served");
    // Another dies: those who come from there have seen more, and keep it.
    world.kill(1);
    world.pass(5_000);
    let behind = world.controls[0].hub.as_ref().map(Hub::behind);
    let (now, moved) = (world.share(), world.share()[0] - served[0]);
    assert!(moved > 110 && now[0] + now[2] == 1_000, "{now:?}");
    assert_eq!((behind, old(&world)), (Some(moved), served[0]));
    // It catches up: only those who lack the change are sent it.
    world.cut_off(0, false);
    let caught_up = world.until(5_000, World::all_in_sync);
    assert_eq!(world.sent, 1_000);
    println!(
        "{moved} proxies waited for a control plane that was behind; all in sync {caught_up} ms after it had caught up"
    );
}

#[test]
fn whatever_happens_they_converge() {
    for seed in seeds(60) {
        println!("seed {seed}");
        let mut random = seed;
        let mut next = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        let mut resources = fleet(20);
        let controls = 1 + seed % 3;
        let mut world = World::new(8, controls as usize, seed, &resources);
        for step in 0..40 {
            let which = next(controls) as usize;
            match next(7) {
                0 => world.kill(which),
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
                5 if world.controls[which].hub.is_some() => world.cut_off(which, next(2) == 0),
                _ => {}
            }
            let which = next(controls) as usize;
            if world.controls[which].hub.is_none() && next(2) == 0 {
                world.start(which);
            }
            let time = next(300);
            world.pass(time);
        }
        for control in 0..controls as usize {
            match world.controls[control].hub {
                Some(_) => world.cut_off(control, false),
                None => world.start(control),
            }
        }
        world.proxies.iter_mut().for_each(|proxy| proxy.rejects = None);
        // Those who had refused it get it anew when it changes.
        resources[1] = route(0, "last.example");
        world.publish(&resources);
        world.until(60_000, World::all_in_sync);
    }
}
