//! All streams of one control plane, without IO: who sees what, who must be told, whose turn it is.

use super::{
    gone::{Departed, Name},
    graph::{Entry, Graph, Token, Touched},
    join::{Joined, Workloads},
    node::{Action, Event, Group, Millis, Node, Sight},
    pace::Pace,
    scope::{Interest, Role, Wanted, scope},
    version::{Sum, Version, canonical, read_key},
};
use crate::{
    proto::discovery::{
        Answer, Hello, Known, ProxyMessage, Register, Subscribe, Subscription, proxy_message::Message,
        subscription::What,
    },
    source::Mark,
};
use ahash::{AHashMap, AHashSet};
use selvedge_model::{Kind, Resource, ResourceKey};
use selvedge_wire::spiffe::SpiffeId;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

/// One stream.
pub type NodeId = u64;
type ViewId = u64;

/// New streams that get everything at the same time; the others wait for their turn.
const TURNS: usize = 32;
/// Streams of one control plane.
pub const MAX_NODES: usize = 50_000;
/// Subscriptions of one proxy.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;
/// Workloads or Gateways of one proxy.
const MAX_NAMES: usize = 1_000;
/// A view that may have looked up so many addresses in vain is found anew: see [`Hub::endpoints`].
const MAX_STALE: usize = 256;
/// A stream that has not said who it is and what it has by then is cut: it takes the place of a proxy.
const GREETING: Millis = 60_000;
/// This control plane itself was held up for longer than this: nobody is to blame for what it has not heard meanwhile.
const STALL: Millis = 50;
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

/// What proxies of one interest see.
struct View {
    interest: Arc<Interest>,
    keys: BTreeMap<Arc<ResourceKey>, Version>,
    /// What it has looked up: the keys of `Hub::by_token`.
    tokens: AHashSet<Arc<Token>>,
    /// Of them, those that it may need no more.
    stale: usize,
    known: BTreeSet<Wanted>,
    sum: Sum,
    members: BTreeSet<NodeId>,
}

/// A proxy and who it is.
pub struct Member {
    pub hello: Hello,
    pub role: Option<Role>,
    pub identity: Option<SpiffeId>,
    /// Whether identities are proven at all on this listener.
    proves: bool,
    pub since: Millis,
    view: Option<ViewId>,
    /// What it has seen that is newer than what is known here, with the looks at the source until then.
    ahead: Option<Mark>,
    /// When it was last heard of, if it says that it lives.
    alive: Option<Millis>,
    pace: Pace,
    /// It has said goodbye.
    pub left: bool,
    pub node: Node,
}

impl Member {
    /// The newer state that it has seen, and that this control plane must reach first.
    pub fn ahead(&self) -> Option<&Mark> {
        self.ahead.as_ref()
    }
}

struct Seen<'a> {
    graph: &'a Graph,
    view: &'a View,
    settled: bool,
    went: &'a BTreeSet<ResourceKey>,
}

impl Sight for Seen<'_> {
    fn get(&self, key: &ResourceKey) -> Option<&Arc<Entry>> {
        self.view.keys.contains_key(key).then(|| self.graph.get(key)).flatten()
    }

    fn all(&self) -> Vec<(Arc<ResourceKey>, Version)> {
        self.view.keys.iter().map(|(key, version)| (key.clone(), *version)).collect()
    }

    fn version(&self) -> Version {
        self.view.sum.version()
    }

    fn may_come(&self, key: &ResourceKey) -> bool {
        !self.settled && key.kind == Kind::Workload && self.graph.get(key).is_none() && !self.went.contains(key)
    }
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

    /// A stream begins. `proven` is what its certificate says; `None` when the listener asks for none.
    pub fn connected(&mut self, now: Millis, node: NodeId, proven: Option<Option<SpiffeId>>) {
        let proves = proven.is_some();
        let member = Member {
            hello: Hello::default(),
            role: None,
            identity: proven.flatten(),
            proves,
            since: now,
            view: None,
            ahead: None,
            alive: None,
            pace: Pace::default(),
            left: false,
            node: Node::default(),
        };
        self.members.insert(node, member);
        if self.members.len() > MAX_NODES {
            self.close(node, format!("this control plane serves {MAX_NODES} proxies at most"));
        }
    }

    pub fn message(&mut self, now: Millis, node: NodeId, message: ProxyMessage) {
        let Some(member) = self.members.get_mut(&node) else { return };
        let greeted = member.role.is_some();
        if member.alive.is_some() || matches!(message.message, Some(Message::Alive(_))) {
            member.alive = Some(now);
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

    /// Takes out what those have brought that were not heard of in time.
    fn silent(&mut self, now: Millis) {
        let late = now.saturating_sub(self.due);
        let mut silent = Vec::new();
        for (node, member) in &mut self.members {
            let Some(alive) = &mut member.alive else { continue };
            if late > STALL {
                *alive = now;
            }
            if now >= *alive + member.pace.silence() {
                member.alive = None;
                silent.push((*node, member.pace.silence()));
            }
        }
        for (node, silence) in silent {
            let gone = self.joined.leave(node);
            if !gone.is_empty() {
                tracing::warn!(
                    count = gone.len(),
                    "a proxy says nothing any more: the workloads that joined with it are out"
                );
                self.change(now, gone);
            }
            self.close(node, format!("nothing was heard of the proxy for {silence} ms"));
        }
    }

    /// Asks proxies to say more or less often that they live, as there are more or fewer of them.
    fn repace(&mut self, now: Millis) {
        let wanted = Pace::wanted(self.members.values().filter(|member| member.alive.is_some()).count());
        let living = self.members.iter_mut().filter(|(_, member)| member.alive.is_some());
        self.paces.extend(living.filter_map(|(node, member)| Some((*node, member.pace.change(now, wanted)?))));
    }

    /// How often proxies are to say that they live, in milliseconds, since it was last asked.
    pub fn take_paces(&mut self) -> Vec<(NodeId, Millis)> {
        std::mem::take(&mut self.paces)
    }

    /// When [`Hub::tick`] has something to do, at the latest.
    pub fn wakes(&self, now: Millis) -> Millis {
        let silent = self.members.values().filter_map(|m| Some(m.alive? + m.pace.silence())).min();
        [self.joined.next_expiry(), silent].into_iter().flatten().fold(now + 1_000, Millis::min)
    }

    fn hello(&mut self, node: NodeId, hello: Hello) -> Result<(), String> {
        let role = match hello.role() {
            crate::proto::discovery::Role::Gateway => Role::Gateway,
            crate::proto::discovery::Role::Sidecar => Role::Sidecar,
            crate::proto::discovery::Role::Node => Role::Node,
            crate::proto::discovery::Role::Unspecified => return Err("hello names no role".to_owned()),
        };
        if hello.id.is_empty() || hello.id.len() > 256 {
            return Err("the id of a proxy has 1 to 256 characters".to_owned());
        }
        let Some(member) = self.members.get_mut(&node) else { return Ok(()) };
        let identity = member.identity.clone();
        let proven = match (&identity, member.proves) {
            (_, false) => None,
            (None, true) => return Err("the discovery stream needs a client certificate: join first".to_owned()),
            (Some(id), true) => match (id.namespace(), id.account()) {
                (Some(namespace), Some(account)) => Some((namespace.to_owned(), account.to_owned())),
                _ => return Err(format!("{} is not the identity of a workload", id.as_str())),
            },
        };
        let interest = Interest {
            role,
            proven,
            workloads: names(&hello.workloads)?,
            gateways: names(&hello.gateways)?,
            wanted: hello.subscriptions.iter().take(MAX_SUBSCRIPTIONS).filter_map(wanted).collect(),
        };
        self.allowed(&interest, identity.as_ref())?;
        // A name counts within an identity: nobody can take another's, and so keep it out.
        let name = (hello.id.clone(), identity.clone());
        self.departed.back(&name);
        if let Some(twin) = self.names.insert(name, node) {
            self.joined.inherit(twin, node);
            self.close(twin, "the proxy has opened another stream".to_owned());
        }
        let ahead = hello.source.as_ref().map(Mark::from_wire).zip(self.mark.as_ref());
        let ahead = ahead.filter(|(theirs, ours)| ours.is_behind(theirs));
        let ahead = ahead.map(|(theirs, ours)| Mark { looks: ours.looks, ..theirs });
        if let Some(member) = self.members.get_mut(&node) {
            if let Some(ahead) = &ahead {
                tracing::warn!(
                    proxy = hello.id,
                    revision = ahead.revision,
                    "this proxy has seen something newer of the source than this control plane: it keeps that until this one has caught up"
                );
                member.node.fall_behind();
            }
            (member.hello, member.role, member.ahead) = (hello, Some(role), ahead);
        }
        self.enter_view(node, interest);
        let identity = identity.map(|id| id.as_str().to_owned()).unwrap_or_default();
        self.out.push((node, Output::Welcome { identity }));
        Ok(())
    }

    /// Whether the proxy may be what it says.
    fn allowed(&self, interest: &Interest, identity: Option<&SpiffeId>) -> Result<(), String> {
        let me = identity.map_or("nobody", SpiffeId::as_str);
        for (namespace, name) in &interest.workloads {
            let key = ResourceKey::new(Kind::Workload, namespace, name);
            let account = self.graph.get(&key).and_then(|w| w.links.account.clone());
            if !interest.may_be(&key, account.as_deref()) {
                let account = account.unwrap_or_else(|| "…".to_owned());
                return Err(format!("{me} may not stand beside {key}, whose identity is ns/{namespace}/sa/{account}"));
            }
        }
        match interest.gateways.iter().find(|(namespace, _)| !interest.may_serve(namespace)) {
            Some((namespace, name)) => Err(format!(
                "{me} may not serve Gateway {namespace}/{name}: use an identity of namespace `{namespace}` or `{}`",
                super::graph::ROOT_NAMESPACE
            )),
            None => Ok(()),
        }
    }

    fn known(&mut self, now: Millis, node: NodeId, known: &Known) -> Result<(), String> {
        let read = |r: &crate::proto::discovery::Resource| {
            Some((read_key(&r.key)?, Version::read(&r.version).unwrap_or_default()))
        };
        let resources = known.resources.iter().filter_map(read).collect();
        self.step(now, node, Event::Known(resources, known.last));
        Ok(())
    }

    fn subscribe(&mut self, now: Millis, node: NodeId, subscribe: Subscribe) -> Result<(), String> {
        let Some(view) = self.members.get(&node).and_then(|m| m.view).and_then(|v| self.views.get(&v)) else {
            return Ok(());
        };
        let mut interest = (*view.interest).clone();
        for gone in subscribe.remove.iter().filter_map(wanted) {
            interest.wanted.remove(&gone);
        }
        let asked: Vec<_> =
            subscribe.add.iter().map(|a| (a.number, a.subscription.as_ref().and_then(wanted))).collect();
        interest.wanted.extend(asked.iter().filter_map(|(_, wanted)| wanted.clone()));
        if interest.wanted.len() > MAX_SUBSCRIPTIONS {
            return Err(format!("more than {MAX_SUBSCRIPTIONS} subscriptions"));
        }
        let before = view.keys.clone();
        self.enter_view(node, interest);
        let Some(view) = self.members.get(&node).and_then(|m| m.view).and_then(|v| self.views.get(&v)) else {
            return Ok(());
        };
        let changed = differences(&before, &view.keys);
        let known = |wanted: &Option<Wanted>| wanted.as_ref().is_some_and(|w| view.known.contains(w));
        let answers = asked.iter().map(|(number, wanted)| Answer { number: *number, known: known(wanted) }).collect();
        if let Some(member) = self.members.get_mut(&node) {
            let seen = Seen { graph: &self.graph, view, settled: self.settled, went: &self.went };
            // Both in one update.
            member.node.note(&changed);
            let actions = member.node.step(now, Event::Answers(answers), &seen);
            self.act(now, node, actions);
        }
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

    /// Takes changes in and tells those that they concern.
    fn change(&mut self, now: Millis, changes: Vec<(ResourceKey, Option<Resource>)>) {
        let mut rescope = BTreeSet::new();
        let mut content: BTreeMap<ViewId, Vec<Arc<ResourceKey>>> = BTreeMap::new();
        for (key, resource) in changes {
            let touched = match &resource {
                Some(resource) => self.graph.upsert(resource),
                None => {
                    if !self.settled && key.kind == Kind::Workload {
                        self.went.insert(key.clone());
                    }
                    self.graph.remove(&key)
                }
            };
            if touched.same {
                continue;
            }
            for token in &touched.tokens {
                rescope.extend(self.by_token.get(token).into_iter().flatten());
            }
            let key = Arc::new(key);
            let near = self.by_token.get(&Token::Key((*key).clone())).into_iter().flatten().copied();
            let sees = |view: &ViewId| self.views.get(view).is_some_and(|view| view.keys.contains_key(&key));
            let near: Vec<ViewId> = near.filter(sees).collect();
            for view in &near {
                content.entry(*view).or_default().push(key.clone());
            }
            if touched.relinked {
                rescope.extend(&near);
            } else if !touched.appeared.is_empty() || touched.vanished > 0 {
                self.endpoints(&near, &touched, &mut rescope);
            }
        }
        for view in &rescope {
            let changed = self.rescope(*view);
            self.tell(now, *view, &changed);
        }
        for (id, changed) in content.into_iter().filter(|(id, _)| !rescope.contains(id)) {
            let Some(view) = self.views.get_mut(&id) else { continue };
            for key in &changed {
                let (Some(entry), Some(version)) = (self.graph.get(key), view.keys.get_mut(key)) else { continue };
                view.sum.remove(key, *version);
                view.sum.add(key, entry.version);
                *version = entry.version;
            }
            self.tell(now, id, &changed);
        }
    }

    /// Views see an EndpointSlice whose addresses are other than before, and no Workload's. They look the new ones up, as
    /// they would when found anew: with thousands of views that is most of the work of such a change. Whether the old ones
    /// are needed for something else is not known, so they are looked up further, until they are many.
    fn endpoints(&mut self, views: &[ViewId], touched: &Touched, rescope: &mut BTreeSet<ViewId>) {
        let tokens: Vec<Arc<Token>> = touched.appeared.iter().map(|a| self.shared(Token::Address(*a))).collect();
        for token in &tokens {
            self.by_token.entry(token.clone()).or_default().extend(views);
        }
        for id in views {
            let Some(view) = self.views.get_mut(id) else { continue };
            view.tokens.extend(tokens.iter().cloned());
            view.stale += touched.vanished;
            if view.stale > MAX_STALE {
                rescope.insert(*id);
            }
        }
    }

    /// The one that others look up already.
    fn shared(&self, token: Token) -> Arc<Token> {
        match self.by_token.get_key_value(&token) {
            Some((shared, _)) => shared.clone(),
            None => Arc::new(token),
        }
    }

    /// Finds anew what a view sees. Returns what is other than before.
    fn rescope(&mut self, id: ViewId) -> Vec<Arc<ResourceKey>> {
        let Some(view) = self.views.get(&id) else { return Vec::new() };
        let scope = scope(&self.graph, &view.interest);
        let tokens: AHashSet<Arc<Token>> = scope.tokens.into_iter().map(|token| self.shared(token)).collect();
        let Some(view) = self.views.get_mut(&id) else { return Vec::new() };
        for token in view.tokens.difference(&tokens) {
            if let Some(views) = self.by_token.get_mut(token) {
                views.remove(&id);
                if views.is_empty() {
                    self.by_token.remove(token);
                }
            }
        }
        for token in tokens.difference(&view.tokens) {
            self.by_token.entry(token.clone()).or_default().insert(id);
        }
        let keys: BTreeMap<Arc<ResourceKey>, Version> =
            scope.keys.iter().filter_map(|key| Some((key.clone(), self.graph.get(key)?.version))).collect();
        let changed = differences(&view.keys, &keys);
        for key in &changed {
            if let Some(version) = view.keys.get(key) {
                view.sum.remove(key, *version);
            }
            if let Some(version) = keys.get(key) {
                view.sum.add(key, *version);
            }
        }
        (view.keys, view.tokens, view.known, view.stale) = (keys, tokens, scope.known, 0);
        changed
    }

    fn tell(&mut self, now: Millis, view: ViewId, changed: &[Arc<ResourceKey>]) {
        if changed.is_empty() {
            return;
        }
        let members = self.views.get(&view).map(|view| view.members.clone()).unwrap_or_default();
        for node in members {
            self.step(now, node, Event::Changed(changed));
        }
    }

    fn enter_view(&mut self, node: NodeId, interest: Interest) {
        let before = self.members.get(&node).and_then(|m| m.view);
        let id = match self.by_interest.get(&interest) {
            Some(id) => *id,
            None => {
                let interest = Arc::new(interest);
                self.next_view += 1;
                let id = self.next_view;
                self.by_interest.insert(interest.clone(), id);
                self.views.insert(id, View::new(interest));
                self.rescope(id);
                id
            }
        };
        if before == Some(id) {
            return;
        }
        if let Some(view) = self.views.get_mut(&id) {
            view.members.insert(node);
        }
        if let Some(member) = self.members.get_mut(&node) {
            member.view = Some(id);
        }
        self.leave_view(node, before);
    }

    fn leave_view(&mut self, node: NodeId, view: Option<ViewId>) {
        let Some(id) = view else { return };
        let Some(view) = self.views.get_mut(&id) else { return };
        view.members.remove(&node);
        if !view.members.is_empty() {
            return;
        }
        let Some(view) = self.views.remove(&id) else { return };
        self.by_interest.remove(&view.interest);
        for token in &view.tokens {
            if let Some(views) = self.by_token.get_mut(token) {
                views.remove(&id);
                if views.is_empty() {
                    self.by_token.remove(token);
                }
            }
        }
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

impl View {
    fn new(interest: Arc<Interest>) -> Self {
        Self {
            interest,
            keys: BTreeMap::new(),
            tokens: AHashSet::new(),
            stale: 0,
            known: BTreeSet::new(),
            sum: Sum::default(),
            members: BTreeSet::new(),
        }
    }
}

fn differences(
    before: &BTreeMap<Arc<ResourceKey>, Version>,
    after: &BTreeMap<Arc<ResourceKey>, Version>,
) -> Vec<Arc<ResourceKey>> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let changed = after.iter().filter(|(key, version)| before.get(*key) != Some(version)).map(|(key, _)| key);
    gone.chain(changed).cloned().collect()
}

/// `namespace/name` each.
fn names(list: &[String]) -> Result<BTreeSet<(String, String)>, String> {
    if list.len() > MAX_NAMES {
        return Err(format!("more than {MAX_NAMES} workloads or gateways"));
    }
    let read = |text: &String| match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(format!("`{text}` is not `namespace/name`")),
    };
    list.iter().map(read).collect()
}

/// What a subscription asks for, if it can be understood.
pub fn wanted(subscription: &Subscription) -> Option<Wanted> {
    match subscription.what.as_ref()? {
        What::Key(key) => read_key(key).map(Wanted::Key),
        What::Host(host) if host.len() <= 253 => Some(Wanted::Host(host.trim_end_matches('.').to_ascii_lowercase()))
            .filter(|w| *w != Wanted::Host(String::new())),
        What::Host(_) => None,
        What::Address(address) => address.parse().ok().map(Wanted::Address),
    }
}

#[cfg(test)]
mod tests;
