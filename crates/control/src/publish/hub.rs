//! All streams of one control plane, without IO: who sees what, who must be told, whose turn it is.

mod greeting;
mod life;
mod member;
mod subscription;
mod view;

pub use life::Heard;
pub use member::Member;
pub use subscription::{MAX_SUBSCRIPTIONS, wanted};

use super::{
    gone::{Departed, Name},
    graph::{Graph, Token},
    join::{Joined, Workloads},
    node::{Action, Event, Group, Millis, Node},
    pace::Pace,
    scope::{Interest, Role},
    version::{Version, canonical, read_key},
};
use crate::{
    proto::discovery::{Hello, Known, ProxyMessage, Register, proxy_message::Message},
    source::Mark,
};
use ahash::AHashMap;
use selvedge_model::{Kind, Resource, ResourceKey};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use view::{Seen, View};

/// One stream.
pub type NodeId = u64;
type ViewId = u64;

/// New streams that get everything at the same time; the others wait for their turn.
const TURNS: usize = 32;
/// Streams of one control plane.
pub const MAX_NODES: usize = 50_000;
/// A stream that has not said who it is and what it has by then is cut: it takes the place of a proxy.
const GREETING: Millis = 60_000;
/// Looks at all of the source, begun after a proxy has told of something newer there, until it is not believed.
const LOOKS: u64 = 2;
/// After a start, workloads that have not yet come back are not taken from proxies for so long.
pub const SETTLE: Millis = 10_000;

/// What is to be sent to a proxy.
#[derive(Debug)]
pub enum Output {
    Welcome { identity: String },
    Group(Group),
    Registered { number: u64, refused: String },
    Close(String),
}

/// See the module.
pub struct Hub {
    graph: Graph,
    views: BTreeMap<ViewId, View>,
    by_interest: BTreeMap<Arc<Interest>, ViewId>,
    by_token: AHashMap<Arc<Token>, BTreeSet<ViewId>>,
    next_view: ViewId,
    members: BTreeMap<NodeId, Member>,
    /// The newest stream of each.
    names: AHashMap<Name, NodeId>,
    departed: Departed,
    waiting: VecDeque<NodeId>,
    turns: BTreeSet<NodeId>,
    joined: Workloads,
    settles: Millis,
    settled: bool,
    /// Workloads that went since the start, until it has settled: they do not come back.
    went: BTreeSet<ResourceKey>,
    /// How new the resources are, where their source can tell.
    mark: Option<Mark>,
    /// When the next tick is due.
    due: Millis,
    out: Vec<(NodeId, Output)>,
    paces: Vec<(NodeId, Millis)>,
}

impl Hub {
    pub fn new(now: Millis) -> Self {
        Self {
            graph: Graph::default(),
            views: BTreeMap::new(),
            by_interest: BTreeMap::new(),
            by_token: AHashMap::new(),
            next_view: 0,
            members: BTreeMap::new(),
            names: AHashMap::new(),
            departed: Departed::default(),
            waiting: VecDeque::new(),
            turns: BTreeSet::new(),
            joined: Workloads::default(),
            settles: now + SETTLE,
            settled: false,
            went: BTreeSet::new(),
            mark: None,
            due: now,
            out: Vec::new(),
            paces: Vec::new(),
        }
    }

    /// The proxies, and what each of them should have.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member, Option<Version>)> {
        let version = |m: &Member| m.view.and_then(|view| self.views.get(&view)).map(|view| view.sum.version());
        self.members.iter().map(move |(id, member)| (*id, member, version(member)))
    }

    /// Number of resources that a proxy sees.
    pub fn sees(&self, member: &Member) -> usize {
        member.view.and_then(|view| self.views.get(&view)).map_or(0, |view| view.keys.len())
    }

    /// Proxies that were connected not long ago.
    pub fn departed(&self) -> &Departed {
        &self.departed
    }

    /// Workloads, or Gateways, that a proxy names and that there are not.
    pub fn missing(&self, member: &Member) -> Vec<String> {
        let (kind, names) = match member.role {
            None => return Vec::new(),
            Some(Role::Gateway) => (Kind::Gateway, &member.hello.gateways),
            Some(Role::Sidecar | Role::Node) => (Kind::Workload, &member.hello.workloads),
        };
        let there = |name: &&String| {
            let key = name.split_once('/').map(|(namespace, name)| ResourceKey::new(kind, namespace, name));
            key.is_some_and(|key| self.graph.get(&key).is_some())
        };
        names.iter().filter(|name| !there(name)).cloned().collect()
    }

    /// Workloads that have joined or left, since it was last asked.
    pub fn take_joined(&mut self) -> BTreeMap<ResourceKey, Option<Vec<u8>>> {
        self.joined.take_changed()
    }

    /// What is to be sent, since it was last asked.
    pub fn take_output(&mut self) -> Vec<(NodeId, Output)> {
        std::mem::take(&mut self.out)
    }

    /// Resources of the source that are new, other than before (`Some`), or gone.
    pub fn resources(&mut self, now: Millis, changes: Vec<(ResourceKey, Option<Resource>)>) {
        let mark = self.mark.clone();
        self.resources_at(now, changes, mark);
    }

    /// As [`Hub::resources`], with how new they are after that. Proxies that have seen something newer, at another control
    /// plane, are told nothing until this one has caught up.
    pub fn resources_at(&mut self, now: Millis, changes: Vec<(ResourceKey, Option<Resource>)>, mark: Option<Mark>) {
        self.mark = mark;
        let changes = self.joined.shadow(changes);
        self.change(now, changes);
        let mark = self.mark.as_ref();
        let caught_up = |ahead: &Mark| mark.is_none_or(|m| !m.is_behind(ahead) || m.looks >= ahead.looks + LOOKS);
        let up = self.members.iter_mut().filter_map(|(node, member)| {
            let ahead = member.ahead.take_if(|ahead| caught_up(ahead))?;
            if mark.is_some_and(|m| m.is_behind(&ahead)) {
                let (revision, proxy) = (ahead.revision, &member.hello.id);
                tracing::warn!(proxy, revision, "the source has gone back behind what this proxy has seen: it follows");
            }
            Some(*node)
        });
        for node in up.collect::<Vec<_>>() {
            self.step(now, node, Event::CaughtUp);
        }
    }

    /// Proxies that have seen something newer than what is known here, and wait until it is.
    pub fn behind(&self) -> usize {
        self.members.values().filter(|member| member.ahead.is_some()).count()
    }

    /// How new the resources are.
    pub fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// A stream begins. `proven` is what its certificate says; `None` when the listener asks for none. Returns where it may
    /// be written down that the proxy was heard of, once it says that it lives.
    pub fn connected(&mut self, now: Millis, node: NodeId, proven: Option<Option<SpiffeId>>) -> Arc<Heard> {
        let heard = Arc::<Heard>::default();
        let proves = proven.is_some();
        let member = Member {
            hello: Hello::default(),
            role: None,
            identity: proven.flatten(),
            proves,
            since: now,
            view: None,
            ahead: None,
            heard: heard.clone(),
            pace: Pace::default(),
            left: false,
            node: Node::default(),
        };
        self.members.insert(node, member);
        if self.members.len() > MAX_NODES {
            self.close(node, format!("this control plane serves {MAX_NODES} proxies at most"));
        }
        heard
    }

    pub fn message(&mut self, now: Millis, node: NodeId, message: ProxyMessage) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let greeted = member.role.is_some();
        match &message.message {
            Some(Message::Alive(_)) => member.heard.begin(now),
            _ => _ = member.heard.again(now),
        }
        let result = match message.message {
            Some(Message::Hello(hello)) if !greeted => self.hello(node, hello),
            Some(Message::Hello(_)) => Err("a second hello".to_owned()),
            Some(_) if !greeted => Err("the first message must be hello".to_owned()),
            Some(Message::Known(known)) => self.known(now, node, &known),
            Some(Message::Subscribe(subscribe)) => self.subscribe(now, node, subscribe),
            Some(Message::Ack(ack)) => {
                self.step(now, node, Event::Ack(ack));
                Ok(())
            }
            Some(Message::Register(register)) => {
                self.register(now, node, &register);
                Ok(())
            }
            Some(Message::Withdraw(withdraw)) => {
                let gone = read_key(&withdraw.key).and_then(|key| self.joined.withdraw(node, &key));
                self.change(now, gone.into_iter().collect());
                Ok(())
            }
            Some(Message::Leave(_)) => {
                member.left = true;
                let gone = self.joined.leave(node);
                self.change(now, gone);
                Ok(())
            }
            // None is something newer than this.
            Some(Message::Alive(_)) | None => Ok(()),
        };
        if let Err(why) = result {
            self.close(node, why);
        }
    }

    /// The stream has ended.
    pub fn gone(&mut self, now: Millis, node: NodeId) {
        let Some(member) = self.members.remove(&node) else { return };
        let name = (member.hello.id.clone(), member.identity.clone());
        if self.names.get(&name) == Some(&node) {
            self.names.remove(&name);
            self.departed.add(now, &member);
        }
        self.leave_view(node, member.view);
        self.joined.lost(now, node);
        self.waiting.retain(|waiting| *waiting != node);
        self.turn_done(now, node);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Millis) {
        let settled = !self.settled && now >= self.settles;
        if settled {
            self.settled = true;
            self.went.clear();
        }
        self.departed.forget(now);
        let gone = self.joined.expired(now);
        self.change(now, gone);
        self.silent(now);
        self.repace(now);
        for node in self.members.keys().copied().collect::<Vec<_>>() {
            if settled {
                self.step(now, node, Event::Settled);
            }
            self.step(now, node, Event::Tick);
            let silent = |m: &Member| m.node.is_greeting() && now >= m.since + GREETING;
            if self.members.get(&node).is_some_and(silent) {
                self.close(node, format!("it has not said in {} s who it is and what it has", GREETING / 1000));
            }
        }
        self.due = self.wakes(now);
    }

    fn known(&mut self, now: Millis, node: NodeId, known: &Known) -> Result<(), String> {
        let read = |r: &crate::proto::discovery::Resource| {
            Some((read_key(&r.key)?, Version::read(&r.version).unwrap_or_default()))
        };
        let resources = known.resources.iter().filter_map(read).collect();
        self.step(now, node, Event::Known(resources, known.last));
        Ok(())
    }

    fn register(&mut self, now: Millis, node: NodeId, register: &Register) {
        let Some(member) = self.members.get(&node) else { return };
        let identity = member.proves.then(|| member.identity.clone()).flatten();
        // What another control plane knows of the same workload is no other one.
        let known = |resource: &Resource| {
            self.graph.get(&resource.key()).is_some_and(|entry| entry.version != canonical(resource).1)
        };
        let taken = |address| {
            let tokens = [Token::Address(address), Token::Endpoint(address)];
            tokens.iter().flat_map(|token| self.graph.find(token)).cloned().collect::<Vec<_>>()
        };
        let (refused, changes) = match self.joined.register(node, identity.as_ref(), &register.workload, known, taken) {
            Ok(Joined::New(resource)) => (String::new(), vec![(resource.key(), Some(resource))]),
            Ok(Joined::Same) => (String::new(), Vec::new()),
            Err(why) => (why, Vec::new()),
        };
        self.out.push((node, Output::Registered { number: register.number, refused }));
        self.change(now, changes);
    }

    fn step(&mut self, now: Millis, node: NodeId, event: Event<'_>) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let Some(view) = member.view.and_then(|view| self.views.get(&view)) else { return };
        let seen = Seen { graph: &self.graph, view, settled: self.settled, went: &self.went };
        let actions = member.node.step(now, event, &seen);
        self.act(now, node, actions);
    }

    fn act(&mut self, now: Millis, node: NodeId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(mut group) => {
                    group.mark.clone_from(&self.mark);
                    self.out.push((node, Output::Group(group)));
                }
                Action::WantTurn => {
                    self.waiting.push_back(node);
                    self.next_turns(now);
                }
                Action::TurnDone => self.turn_done(now, node),
                Action::Close(why) => self.close(node, why),
            }
        }
    }

    fn turn_done(&mut self, now: Millis, node: NodeId) {
        if self.turns.remove(&node) {
            self.next_turns(now);
        }
    }

    fn next_turns(&mut self, now: Millis) {
        while self.turns.len() < TURNS
            && let Some(next) = self.waiting.pop_front()
        {
            self.turns.insert(next);
            self.step(now, next, Event::Turn);
        }
    }

    fn close(&mut self, node: NodeId, why: String) {
        self.out.push((node, Output::Close(why)));
    }
}

#[cfg(test)]
mod tests;
