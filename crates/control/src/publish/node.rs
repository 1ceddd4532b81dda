//! The state of one proxy's stream, without IO and without a clock of its own: what it has, what it must be told, and
//! what it said to that.
//!
//! At most one update is under way; what changes meanwhile is remembered by name only and sent as it is when the proxy
//! has answered. So a slow proxy costs no memory, and skips states instead of lagging behind through all of them.

use super::{
    graph::Entry,
    version::{Version, read_key},
};
use crate::{
    proto::discovery::{Ack, Answer},
    source::Mark,
};
use ahash::AHashMap;
use selvedge_model::ResourceKey;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Milliseconds since some moment.
pub type Millis = u64;

/// Resources that a proxy may say it has.
const MAX_KNOWN: usize = 1_000_000;
/// Rejected resources and problems that are kept for people.
const MAX_TOLD: usize = 100;
/// Characters of one diagnostic that are kept.
const MAX_TEXT: usize = 1_000;
/// An update of more resources than this waits for its turn when the stream is new.
const SMALL: usize = 64;
/// A proxy that has not answered an update for so long is cut; it comes back with what it has.
pub const ANSWER: Millis = 60_000;

/// What a proxy may see at the moment.
pub trait Sight {
    /// A resource, if the proxy gets it.
    fn get(&self, key: &ResourceKey) -> Option<&Arc<Entry>>;
    /// All that it gets.
    fn all(&self) -> Vec<(Arc<ResourceKey>, Version)>;
    fn version(&self) -> Version;
    /// A resource that the proxy has, and that is not here, may still come: it must not be removed yet.
    fn may_come(&self, key: &ResourceKey) -> bool;
}

/// What happens to a stream.
#[derive(Debug)]
pub enum Event<'a> {
    /// The proxy has these already.
    Known(Vec<(ResourceKey, Version)>, bool),
    /// It is its turn to get everything.
    Turn,
    /// These are other than before, or there no more.
    Changed(&'a [Arc<ResourceKey>]),
    /// Answers that go with the next update.
    Answers(Vec<Answer>),
    Ack(Ack),
    /// What may have come has come.
    Settled,
    /// The control plane is no longer behind what the proxy has seen.
    CaughtUp,
    /// Time has passed.
    Tick,
}

/// What is to be done about it.
#[derive(Debug)]
pub enum Action {
    Send(Group),
    /// It wants to be told when it is its turn.
    WantTurn,
    /// It has had its turn.
    TurnDone,
    Close(String),
}

/// An update: takes effect as a whole.
#[derive(Debug)]
pub struct Group {
    pub nonce: String,
    pub version: Version,
    pub upserts: Vec<Arc<Entry>>,
    pub removals: Vec<Arc<ResourceKey>>,
    pub answers: Vec<Answer>,
    /// How new it is; the hub knows.
    pub mark: Option<Mark>,
}

/// What a proxy does not serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    pub key: String,
    pub version: Option<Version>,
    pub diagnostics: Vec<String>,
}

/// One stream.
#[derive(Debug, Default)]
pub struct Node {
    phase: Phase,
    /// The proxy has seen something newer than what is known here: it is sent nothing.
    behind: bool,
    /// Until the first update.
    has: AHashMap<ResourceKey, Version>,
    changed: BTreeSet<Arc<ResourceKey>>,
    /// Not here, but may come.
    held: BTreeSet<Arc<ResourceKey>>,
    answers: Vec<Answer>,
    flight: Option<Flight>,
    sequence: u64,
    pub acked: Option<Acked>,
    pub rejected: Vec<Rejected>,
    pub problems: Vec<String>,
    /// The last update that was not taken in whole.
    pub last_nack: Option<Nack>,
    /// Resources sent so far, removals included.
    pub sent: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Greeting,
    /// It has said what it has, and this control plane must catch up.
    Behind,
    Waiting,
    /// Has its turn; the first update is not yet answered.
    First,
    Live,
}

#[derive(Debug)]
struct Flight {
    nonce: String,
    version: Version,
    since: Millis,
}

/// The newest state that the proxy has taken in.
#[derive(Clone, Copy, Debug)]
pub struct Acked {
    pub version: Version,
    pub at: Millis,
}

#[derive(Clone, Debug)]
pub struct Nack {
    pub at: Millis,
    pub text: String,
}

impl Node {
    pub fn step(&mut self, now: Millis, event: Event<'_>, sight: &dyn Sight) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Known(resources, last) => self.known(resources, last, sight, &mut actions),
            Event::Turn if self.phase == Phase::Waiting => self.phase = Phase::First,
            Event::Turn => actions.push(Action::TurnDone),
            Event::Changed(keys) => self.note(keys),
            Event::Answers(answers) => self.answers.extend(answers),
            Event::Ack(ack) => self.ack(now, ack, &mut actions),
            Event::Settled => self.changed.append(&mut self.held),
            Event::CaughtUp => {
                self.behind = false;
                if self.phase == Phase::Behind {
                    self.compare(sight, &mut actions);
                }
            }
            Event::Tick => {
                if let Some(flight) = self.flight.as_ref().filter(|flight| now >= flight.since + ANSWER) {
                    let text = format!("update {} was not answered for {} s", flight.nonce, ANSWER / 1000);
                    actions.push(Action::Close(text));
                }
            }
        }
        self.send(now, sight, &mut actions);
        actions
    }

    /// Remembers what changed, to go with what [`Node::step`] is told next.
    pub fn note(&mut self, changed: &[Arc<ResourceKey>]) {
        // Before, all is compared anyway.
        if !matches!(self.phase, Phase::Greeting | Phase::Behind) {
            self.changed.extend(changed.iter().cloned());
        }
    }

    /// What the proxy has is newer than what is known here: it is told nothing until [`Event::CaughtUp`].
    pub fn fall_behind(&mut self) {
        self.behind = true;
    }

    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Since when an update waits for its answer.
    pub fn waits_since(&self) -> Option<Millis> {
        self.flight.as_ref().map(|flight| flight.since)
    }

    /// Names that must be told about, but are not under way.
    pub fn behind(&self) -> usize {
        self.changed.len()
    }

    pub fn is_waiting_for_turn(&self) -> bool {
        self.phase == Phase::Waiting
    }

    pub fn is_greeting(&self) -> bool {
        self.phase == Phase::Greeting
    }

    fn known(
        &mut self,
        resources: Vec<(ResourceKey, Version)>,
        last: bool,
        sight: &dyn Sight,
        actions: &mut Vec<Action>,
    ) {
        if self.phase != Phase::Greeting {
            return actions.push(Action::Close("`known` came after its last message".to_owned()));
        }
        self.has.extend(resources);
        if self.has.len() > MAX_KNOWN {
            return actions.push(Action::Close(format!("more than {MAX_KNOWN} resources are known")));
        }
        match (last, self.behind) {
            (false, _) => {}
            (true, true) => self.phase = Phase::Behind,
            (true, false) => self.compare(sight, actions),
        }
    }

    /// What the proxy has with what it should have.
    fn compare(&mut self, sight: &dyn Sight, actions: &mut Vec<Action>) {
        let mut has = std::mem::take(&mut self.has);
        for (key, version) in sight.all() {
            if has.remove(&*key) != Some(version) {
                self.changed.insert(key);
            }
        }
        self.changed.extend(has.into_keys().map(Arc::new));
        self.phase = Phase::Live;
        if self.changed.len() > SMALL {
            self.phase = Phase::Waiting;
            actions.push(Action::WantTurn);
        }
    }

    fn send(&mut self, now: Millis, sight: &dyn Sight, actions: &mut Vec<Action>) {
        let ready = matches!(self.phase, Phase::First | Phase::Live) && self.flight.is_none();
        let first = self.sequence == 0;
        if !ready || (!first && self.changed.is_empty() && self.answers.is_empty()) {
            return;
        }
        let (mut upserts, mut removals) = (Vec::new(), Vec::new());
        for key in std::mem::take(&mut self.changed) {
            match sight.get(&key) {
                Some(entry) => upserts.push(entry.clone()),
                None if sight.may_come(&key) => _ = self.held.insert(key),
                None => removals.push(key),
            }
        }
        if upserts.is_empty() && removals.is_empty() && self.answers.is_empty() && !first {
            return;
        }
        self.sequence += 1;
        self.sent += (upserts.len() + removals.len()) as u64;
        let (nonce, version) = (self.sequence.to_string(), sight.version());
        self.flight = Some(Flight { nonce: nonce.clone(), version, since: now });
        let answers = std::mem::take(&mut self.answers);
        actions.push(Action::Send(Group { nonce, version, upserts, removals, answers, mark: None }));
    }

    /// An answer to anything but the update under way is an old one.
    fn ack(&mut self, now: Millis, ack: Ack, actions: &mut Vec<Action>) {
        let Some(flight) = self.flight.take_if(|flight| flight.nonce == ack.nonce) else { return };
        self.acked = Some(Acked { version: flight.version, at: now });
        if self.phase == Phase::First {
            self.phase = Phase::Live;
            actions.push(Action::TurnDone);
        }
        let short = |text: String| text.chars().take(MAX_TEXT).collect::<String>();
        let before = std::mem::take(&mut self.rejected);
        self.rejected = ack
            .rejected
            .into_iter()
            .take(MAX_TOLD)
            .filter_map(|rejected| {
                let key = read_key(&rejected.key)?.to_string();
                let diagnostics = rejected.diagnostics.into_iter().take(MAX_TOLD).map(short).collect();
                Some(Rejected { key, version: Version::read(&rejected.version), diagnostics })
            })
            .collect();
        self.problems = ack.problems.into_iter().take(MAX_TOLD).map(short).collect();
        let new: BTreeMap<&str, &str> = self
            .rejected
            .iter()
            .filter(|r| !before.contains(r))
            .map(|rejected| {
                (rejected.key.as_str(), rejected.diagnostics.first().map_or("no reason given", String::as_str))
            })
            .collect();
        if !new.is_empty() {
            let text = new.iter().map(|(key, why)| format!("{key}: {why}")).collect::<Vec<_>>().join("; ");
            self.last_nack = Some(Nack { at: now, text: short(text) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::{
        graph::Graph,
        testing::{secret, service},
        version::Sum,
    };
    use selvedge_model::{Kind, Resource};

    /// Whether all has come that may.
    struct All(Graph, bool);

    impl Sight for All {
        fn get(&self, key: &ResourceKey) -> Option<&Arc<Entry>> {
            self.0.get(key)
        }

        fn all(&self) -> Vec<(Arc<ResourceKey>, Version)> {
            let keys = [Kind::Service, Kind::Secret].map(super::super::graph::Token::All);
            let keys = keys.iter().flat_map(|token| self.0.find(token));
            keys.filter_map(|key| self.0.get(key)).map(|e| (e.key.clone(), e.version)).collect()
        }

        fn version(&self) -> Version {
            let mut sum = Sum::default();
            self.all().iter().for_each(|(key, version)| sum.add(key, *version));
            sum.version()
        }

        fn may_come(&self, key: &ResourceKey) -> bool {
            key.name == "late" && !self.1
        }
    }

    fn all(resources: &[Resource]) -> All {
        let mut graph = Graph::default();
        resources.iter().for_each(|r| _ = graph.upsert(r));
        All(graph, false)
    }

    fn group(actions: &[Action]) -> &Group {
        let [Action::Send(group)] = actions else { panic!("{actions:?}") };
        group
    }

    fn told(group: &Group) -> (Vec<String>, Vec<String>) {
        (
            group.upserts.iter().map(|e| e.key.to_string()).collect(),
            group.removals.iter().map(ToString::to_string).collect(),
        )
    }

    fn ack(nonce: &str) -> Event<'static> {
        Event::Ack(Ack { nonce: nonce.to_owned(), ..Ack::default() })
    }

    #[test]
    fn after_a_reconnect_only_differences_are_sent() {
        let mut sight = all(&[service("a", "same", "10.0.0.1"), service("a", "new", "10.0.0.2"), secret("a", "other")]);
        let mut node = Node::default();
        let key = |kind, name: &str| ResourceKey::new(kind, "a", name);
        let same = sight.get(&key(Kind::Service, "same")).unwrap().version;
        let known = vec![
            (key(Kind::Service, "same"), same),
            (key(Kind::Service, "gone"), same),
            (key(Kind::Service, "late"), same),
        ];
        assert!(node.step(0, Event::Known(known, false), &sight).is_empty());
        let known = vec![(key(Kind::Secret, "other"), same)];
        let actions = node.step(0, Event::Known(known, true), &sight);
        let expected =
            (vec!["Service a/new".to_owned(), "Secret a/other".to_owned()], vec!["Service a/gone".to_owned()]);
        assert_eq!(told(group(&actions)), expected);
        node.step(1, ack("1"), &sight);
        sight.1 = true;
        let actions = node.step(2, Event::Settled, &sight);
        assert_eq!(told(group(&actions)).1, ["Service a/late"]);
    }

    #[test]
    fn a_slow_proxy_gets_one_update_at_a_time_and_the_newest_state() {
        let mut sight = all(&[service("a", "s", "10.0.0.1")]);
        let mut node = Node::default();
        assert_eq!(group(&node.step(0, Event::Known(Vec::new(), true), &sight)).nonce, "1");
        for i in 2..200 {
            let service = service("a", "s", &format!("10.0.0.{i}"));
            sight.0.upsert(&service);
            assert!(node.step(i, Event::Changed(&[Arc::new(service.key())]), &sight).is_empty());
        }
        assert_eq!(node.behind(), 1);
        assert!(node.step(300, ack("0"), &sight).is_empty(), "an old answer");
        let actions = node.step(301, ack("1"), &sight);
        let group = group(&actions);
        assert!(String::from_utf8_lossy(&group.upserts[0].json).contains("10.0.0.199"));
        assert!(node.step(302, ack("2"), &sight).is_empty());
        assert_eq!(node.acked.unwrap().version, sight.version());
    }

    #[test]
    fn one_who_does_not_answer_is_cut() {
        let sight = all(&[]);
        let mut node = Node::default();
        node.step(5, Event::Known(Vec::new(), true), &sight);
        assert!(node.step(ANSWER, Event::Tick, &sight).is_empty());
        assert!(matches!(node.step(ANSWER + 5, Event::Tick, &sight)[..], [Action::Close(_)]));
    }

    #[test]
    fn much_waits_for_its_turn() {
        let many: Vec<_> = (0..=SMALL).map(|i| service("a", &format!("s{i}"), "10.0.0.1")).collect();
        let sight = all(&many);
        let mut node = Node::default();
        assert!(matches!(node.step(0, Event::Known(Vec::new(), true), &sight)[..], [Action::WantTurn]));
        assert_eq!(group(&node.step(1, Event::Turn, &sight)).upserts.len(), SMALL + 1);
        assert!(matches!(node.step(2, ack("1"), &sight)[..], [Action::TurnDone]));
    }

    #[test]
    fn what_is_rejected_is_remembered_until_it_no_longer_is() {
        let sight = all(&[service("a", "s", "10.0.0.1")]);
        let mut node = Node::default();
        node.step(0, Event::Known(Vec::new(), true), &sight);
        let rejected = crate::proto::discovery::Rejected {
            key: "Service a/s".into(),
            version: vec![1; 16].into(),
            diagnostics: vec!["bad".into()],
        };
        let nack = Ack { nonce: "1".into(), rejected: vec![rejected], problems: vec!["port".into()] };
        node.step(7, Event::Ack(nack), &sight);
        assert_eq!(node.rejected[0].diagnostics, ["bad"]);
        assert_eq!(node.last_nack.as_ref().map(|n| (n.at, n.text.as_str())), Some((7, "Service a/s: bad")));
        node.step(8, Event::Changed(&[Arc::new(ResourceKey::new(Kind::Service, "a", "s"))]), &sight);
        node.step(9, ack("2"), &sight);
        assert!(node.rejected.is_empty() && node.problems.is_empty() && node.last_nack.is_some());
    }
}
