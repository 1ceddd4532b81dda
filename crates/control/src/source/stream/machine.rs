//! The proxy's side of the stream, without IO and without a clock of its own: when to connect where, what to say, what
//! has come.

use crate::{
    proto::discovery::{
        Ack, Alive, Answer, Asked, ControlMessage, Hello, Known, Leave, ProxyMessage, Register, Rejected, Resource,
        Source, Subscribe, Subscription, Update, Withdraw, control_message::Message, proxy_message::Message as Say,
        subscription::What,
    },
    publish::{
        node::Millis,
        scope::Wanted,
        version::{Version, read_key},
    },
};
use bytes::Bytes;
use selvedge_model::Kind;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// First and longest wait between tries to connect; the real one is random between half of it and all of it.
const BACKOFF: (Millis, Millis) = (200, 15_000);
/// A stream that has lived so long was a good one: the next wait is short again.
const GOOD: Millis = 10_000;
/// Known resources per message.
const PER_MESSAGE: usize = 1_000;
/// Things asked for on demand at the same time.
pub const MAX_WANTED: usize = 8_192;
/// Of these, things that are not known. Beyond, the oldest is forgotten: whoever looks up names at random takes no place
/// from what is used, and costs the control plane little.
pub const MAX_UNKNOWN: usize = 1_024;
/// Destinations of an earlier run that are kept up to date from the start. The rest of the room is for what is asked for.
const MAX_REMEMBERED: usize = MAX_WANTED / 2;
/// How often people are told that there are too many.
const TELL: Millis = 60_000;
/// Something that is not known is asked for again after this long, should anybody want it still.
const UNKNOWN: Millis = 30_000;
/// Until a workload that was refused asks again.
const JOIN_AGAIN: Millis = 2_000;
/// How often a proxy with workloads that joined says that it lives: a machine that vanishes says nothing else.
const BEAT: Millis = crate::publish::pace::BEAT;
/// As rarely as that a control plane may ask for at most.
const RAREST_BEAT: Millis = 60_000;
/// Bytes of one update, over all its messages.
const MAX_UPDATE: usize = 256 * 1024 * 1024;

/// Who we are.
#[derive(Clone, Debug)]
pub struct Me {
    pub hello: Hello,
    /// Control planes, one of which is used at a time. Their order says nothing.
    pub urls: Vec<String>,
    /// Spreads proxies over control planes, and their tries over time.
    pub seed: u64,
}

#[derive(Debug)]
pub enum Event {
    /// The stream is there.
    Connected,
    /// It is no more, or could not be made.
    Lost(String),
    Message(ControlMessage),
    /// The update is in effect, but for what is rejected.
    Applied(Outcome),
    /// Somebody wants to use it.
    Want(Wanted),
    /// The workload takes traffic.
    Register {
        key: String,
        json: Bytes,
    },
    /// It does not, for now.
    Withdraw {
        key: String,
    },
    /// This process ends.
    Leave,
    /// Time has passed.
    Tick,
}

#[derive(Debug)]
pub enum Action {
    Connect(String),
    Disconnect,
    Send(ProxyMessage),
    Apply(Change),
    /// What was wanted is in effect, or not known.
    Answered(Wanted, bool),
    /// For people.
    Refused(String),
}

/// A whole update.
#[derive(Debug, Default, PartialEq)]
pub struct Change {
    /// Counts updates of all streams: nonces begin anew with each.
    pub number: u64,
    pub nonce: String,
    pub upserts: Vec<(String, Version, Bytes)>,
    pub removals: Vec<String>,
    /// The state that we have then, where the control plane can tell.
    pub source: Option<Source>,
    /// What is answered by it.
    answers: Vec<Answer>,
    bytes: usize,
}

/// How an update was taken in.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    /// Of the change.
    pub number: u64,
    pub rejected: Vec<(String, Version, Vec<String>)>,
    pub problems: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    me: Me,
    random: u64,
    state: State,
    url: usize,
    backoff: Millis,
    /// What we have, or have rejected: it need not be sent again.
    have: BTreeMap<String, Version>,
    /// An update of which parts have come.
    partial: Option<Change>,
    /// The one that is being applied.
    applying: Option<Change>,
    changes: u64,
    wanted: BTreeMap<Wanted, Want>,
    /// What of it is not known, and since when; the oldest first.
    unknown: VecDeque<(Millis, Wanted)>,
    /// Not asked for since people were told so, and when they were.
    left_out: (u64, Option<Millis>),
    numbers: BTreeMap<u64, Wanted>,
    next: u64,
    registered: BTreeMap<String, Bytes>,
    /// Registrations that wait for their answer.
    asked: BTreeMap<u64, String>,
    /// Those that were refused, and when to ask again: the reason may have gone.
    refused: BTreeMap<String, Millis>,
    leaving: bool,
    /// When it last said over this stream that it lives.
    beat: Option<Millis>,
    /// How often it says so.
    pace: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Millis },
    Connecting,
    Open { since: Millis },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Asked,
    Known,
    Unknown,
}

impl Machine {
    /// `have`: what an earlier run has left. The destinations in it are wanted: they are served, so that nobody asks for them
    /// again, and what nobody asks for the control plane would take away.
    pub fn new(now: Millis, me: Me, have: BTreeMap<String, Version>) -> Self {
        let destinations = have.keys().filter_map(|key| read_key(key)).filter(|key| is_destination(key.kind));
        let wanted = destinations.take(MAX_REMEMBERED).map(|key| (Wanted::Key(key), Want::Known)).collect();
        let mut machine = Self {
            random: me.seed,
            url: 0,
            state: State::Waiting { until: now },
            backoff: BACKOFF.0,
            have,
            partial: None,
            applying: None,
            changes: 0,
            wanted,
            unknown: VecDeque::new(),
            left_out: (0, None),
            numbers: BTreeMap::new(),
            next: 0,
            registered: BTreeMap::new(),
            asked: BTreeMap::new(),
            refused: BTreeMap::new(),
            leaving: false,
            beat: None,
            pace: BEAT,
            me,
        };
        let count = machine.me.urls.len();
        machine.shuffle(count);
        machine
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// The control plane that is used, or tried next.
    pub fn url(&self) -> &str {
        self.me.urls.get(self.url).map_or("", String::as_str)
    }

    /// When a tick has something to do.
    pub fn wakes(&self, now: Millis) -> Millis {
        match self.state {
            State::Waiting { until } => until.max(now),
            State::Open { .. } if self.beats() => self.beat.map_or(now, |beat| (beat + self.pace).max(now)),
            _ => now + 1_000,
        }
    }

    /// Whether a thing was asked for and answered: `Some(true)` when it is known.
    pub fn answer(&self, wanted: &Wanted) -> Option<bool> {
        match self.wanted.get(wanted)? {
            Want::Asked => None,
            Want::Known => Some(true),
            Want::Unknown => Some(false),
        }
    }

    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Connected => self.connected(now, &mut actions),
            Event::Lost(_) => self.lost(now, &mut actions),
            Event::Message(message) => self.message(now, message, &mut actions),
            Event::Applied(outcome) => self.applied(now, outcome, &mut actions),
            Event::Want(wanted) => self.want(now, wanted, &mut actions),
            Event::Register { key, json } => {
                self.registered.insert(key.clone(), json);
                if self.is_open() {
                    self.register(&key, &mut actions);
                }
            }
            Event::Withdraw { key } => {
                self.refused.remove(&key);
                if self.registered.remove(&key).is_some() && self.is_open() {
                    actions.push(say(Say::Withdraw(Withdraw { key })));
                }
            }
            Event::Leave => {
                self.leaving = true;
                if self.is_open() {
                    actions.push(say(Say::Leave(Leave {})));
                }
            }
            Event::Tick => self.tick(now, &mut actions),
        }
        actions
    }

    fn beats(&self) -> bool {
        !self.registered.is_empty() && !self.leaving
    }

    fn tick(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.is_open() && self.beats() && self.beat.is_none_or(|beat| now >= beat + self.pace) {
            self.beat = Some(now);
            actions.push(say(Say::Alive(Alive {})));
        }
        if let State::Waiting { until } = self.state
            && until <= now
            && !self.leaving
        {
            self.state = State::Connecting;
            actions.push(Action::Connect(self.url().to_owned()));
        }
        let again: Vec<String> =
            self.refused.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        let open = self.is_open();
        for key in again.iter().filter(|_| open) {
            self.refused.insert(key.clone(), now + JOIN_AGAIN);
            self.register(key, actions);
        }
        let mut remove = Vec::new();
        while let Some((_, old)) = self.unknown.pop_front_if(|(since, _)| *since + UNKNOWN <= now) {
            remove.extend(self.forget(old));
        }
        if !remove.is_empty() && self.is_open() {
            actions.push(say(Say::Subscribe(Subscribe { add: Vec::new(), remove })));
        }
    }

    /// A thing that was not known is not asked for any more.
    fn forget(&mut self, old: Wanted) -> Option<Subscription> {
        self.wanted.remove(&old).map(|_| subscription(&old))
    }

    fn connected(&mut self, now: Millis, actions: &mut Vec<Action>) {
        (self.beat, self.pace) = (None, BEAT);
        self.state = State::Open { since: now };
        let mut hello = self.me.hello.clone();
        hello.subscriptions.extend(self.wanted.keys().map(subscription));
        actions.push(say(Say::Hello(hello)));
        let have: Vec<Resource> =
            self.have.iter().map(|(key, version)| Resource { key: key.clone(), version: version.to_bytes() }).collect();
        let mut parts: Vec<Known> =
            have.chunks(PER_MESSAGE).map(|part| Known { resources: part.to_vec(), last: false }).collect();
        if parts.is_empty() {
            parts.push(Known::default());
        }
        if let Some(last) = parts.last_mut() {
            last.last = true;
        }
        actions.extend(parts.into_iter().map(|part| say(Say::Known(part))));
        // Asked for again, to hear what became of them.
        self.numbers.clear();
        let open: Vec<Wanted> =
            self.wanted.iter().filter(|(_, want)| **want == Want::Asked).map(|(wanted, _)| wanted.clone()).collect();
        for wanted in open {
            self.ask(wanted, None, actions);
        }
        self.asked.clear();
        for key in self.registered.keys().cloned().collect::<Vec<_>>() {
            self.register(&key, actions);
        }
    }

    fn lost(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let lived = match self.state {
            State::Waiting { .. } => return,
            State::Open { since } => now.saturating_sub(since),
            State::Connecting => 0,
        };
        if lived >= GOOD {
            self.backoff = BACKOFF.0;
        }
        let wait = self.backoff / 2 + self.next_random() % (self.backoff / 2 + 1);
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        self.state = State::Waiting { until: now + wait };
        // An update that is being applied goes on, but nobody waits for the answer.
        (self.partial, self.applying) = (None, None);
        self.next_url(lived >= GOOD);
        actions.push(Action::Disconnect);
    }

    /// All are tried before one is tried again, in an order of this proxy's own: those whose control plane dies spread over all
    /// the others, instead of all going to the one that is written next. It is another order each time, or proxies that came
    /// from one control plane would stay together from then on.
    fn next_url(&mut self, was_good: bool) {
        let count = self.me.urls.len();
        if was_good && count > 0 {
            // The one that is lost is tried last.
            self.me.urls.swap(self.url, count - 1);
            self.shuffle(count - 1);
            self.url = 0;
        } else if self.url + 1 < count {
            self.url += 1;
        } else {
            self.shuffle(count);
            self.url = 0;
        }
    }

    /// Shuffles the first ones of the control planes.
    fn shuffle(&mut self, count: usize) {
        for last in (1..count).rev() {
            let other = usize::try_from(self.next_random() % (last as u64 + 1)).unwrap_or(0);
            self.me.urls.swap(last, other);
        }
    }

    fn message(&mut self, now: Millis, message: ControlMessage, actions: &mut Vec<Action>) {
        match message.message {
            Some(Message::Update(update)) => self.update(now, update, actions),
            Some(Message::Registered(registered)) => {
                let key = self.asked.remove(&registered.number);
                let Some(key) = key else { return };
                if registered.refused.is_empty() {
                    self.refused.remove(&key);
                } else if self.refused.insert(key.clone(), now + JOIN_AGAIN).is_none() {
                    actions.push(Action::Refused(format!("{key} cannot join: {}", registered.refused)));
                }
            }
            Some(Message::Pace(pace)) => self.pace = Millis::from(pace.alive_millis).clamp(BEAT, RAREST_BEAT),
            Some(Message::Welcome(_)) | None => {}
        }
    }

    fn update(&mut self, now: Millis, update: Update, actions: &mut Vec<Action>) {
        let mut change = match self.partial.take() {
            Some(partial) if partial.nonce == update.nonce => partial,
            _ => Change { nonce: update.nonce, ..Change::default() },
        };
        for upsert in update.upserts {
            change.bytes += upsert.key.len() + upsert.resource.len();
            if let Some(version) = Version::read(&upsert.version) {
                change.upserts.push((upsert.key, version, upsert.resource));
            }
        }
        change.bytes += update.removals.iter().map(String::len).sum::<usize>();
        change.removals.extend(update.removals);
        change.answers.extend(update.answers);
        if change.bytes > MAX_UPDATE {
            actions.push(Action::Refused(format!("an update of more than {MAX_UPDATE} bytes; the stream is cut")));
            return self.lost(now, actions);
        }
        if !update.last {
            self.partial = Some(change);
            return;
        }
        change.source = update.source;
        self.me.hello.source.clone_from(&change.source);
        for (key, version, _) in &change.upserts {
            self.have.insert(key.clone(), *version);
        }
        for key in &change.removals {
            self.have.remove(key);
        }
        self.changes += 1;
        change.number = self.changes;
        let (number, nonce, answers) = (change.number, change.nonce.clone(), change.answers.clone());
        let applied = Change { number, nonce, answers, ..Change::default() };
        self.applying = Some(applied);
        actions.push(Action::Apply(change));
    }

    fn applied(&mut self, now: Millis, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(change) = self.applying.take_if(|change| change.number == outcome.number) else { return };
        for answer in change.answers {
            let Some(wanted) = self.numbers.remove(&answer.number) else { continue };
            let want = if answer.known { Want::Known } else { Want::Unknown };
            if !answer.known {
                self.unknown.push_back((now, wanted.clone()));
            }
            self.wanted.insert(wanted.clone(), want);
            actions.push(Action::Answered(wanted, answer.known));
        }
        let rejected = |(key, version, diagnostics): (String, Version, Vec<String>)| Rejected {
            key,
            version: version.to_bytes(),
            diagnostics,
        };
        let ack = Ack {
            nonce: change.nonce,
            rejected: outcome.rejected.into_iter().map(rejected).collect(),
            problems: outcome.problems,
        };
        if self.is_open() {
            actions.push(say(Say::Ack(ack)));
        }
    }

    fn want(&mut self, now: Millis, wanted: Wanted, actions: &mut Vec<Action>) {
        match self.wanted.get(&wanted) {
            Some(Want::Asked) => return,
            Some(known) => return actions.push(Action::Answered(wanted, *known == Want::Known)),
            None if self.wanted.len() >= MAX_WANTED && self.unknown.is_empty() => {
                self.leave_out(now, &wanted, actions);
                return actions.push(Action::Answered(wanted, false));
            }
            // Nobody to ask. It is not remembered, so that it is asked for when there is.
            None if !self.is_open() && self.backoff > BACKOFF.0 * 8 => {
                return actions.push(Action::Answered(wanted, false));
            }
            None => {}
        }
        let full = self.wanted.len() >= MAX_WANTED || self.unknown.len() >= MAX_UNKNOWN;
        let oldest = if full { self.unknown.pop_front() } else { None };
        let gone = oldest.and_then(|(_, old)| self.forget(old));
        self.wanted.insert(wanted.clone(), Want::Asked);
        if self.is_open() {
            self.ask(wanted, gone, actions);
        }
    }

    /// Tells people, but not each time: it may be an application that looks up names at random.
    fn leave_out(&mut self, now: Millis, wanted: &Wanted, actions: &mut Vec<Action>) {
        let (count, told) = &mut self.left_out;
        *count += 1;
        if told.is_none_or(|told| told + TELL <= now) {
            actions.push(Action::Refused(format!(
                "{count} destinations were not asked for, the last one {wanted:?}: {MAX_WANTED} are in use already"
            )));
            self.left_out = (0, Some(now));
        }
    }

    /// Asks for something, in the place of what was there.
    fn ask(&mut self, wanted: Wanted, gone: Option<Subscription>, actions: &mut Vec<Action>) {
        self.next += 1;
        let asked = Asked { number: self.next, subscription: Some(subscription(&wanted)) };
        self.numbers.insert(self.next, wanted);
        let remove = gone.into_iter().collect();
        actions.push(say(Say::Subscribe(Subscribe { add: vec![asked], remove })));
    }

    fn register(&mut self, key: &str, actions: &mut Vec<Action>) {
        let Some(json) = self.registered.get(key) else { return };
        self.next += 1;
        self.asked.insert(self.next, key.to_owned());
        actions.push(say(Say::Register(Register { number: self.next, workload: json.clone() })));
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// What is asked for on demand now.
    pub fn wanted(&self) -> BTreeSet<&Wanted> {
        self.wanted.keys().collect()
    }
}

fn is_destination(kind: Kind) -> bool {
    matches!(kind, Kind::Service | Kind::ExternalService)
}

fn say(message: Say) -> Action {
    Action::Send(ProxyMessage { message: Some(message) })
}

fn subscription(wanted: &Wanted) -> Subscription {
    let what = match wanted {
        Wanted::Key(key) => What::Key(key.to_string()),
        Wanted::Host(host) => What::Host(host.clone()),
        Wanted::Address(address) => What::Address(address.to_string()),
    };
    Subscription { what: Some(what) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::discovery::Pace;

    fn machine(urls: &[&str]) -> Machine {
        let me = Me { hello: Hello::default(), urls: urls.iter().map(|u| (*u).to_owned()).collect(), seed: 7 };
        Machine::new(0, me, BTreeMap::new())
    }

    fn update(nonce: &str, upserts: &[&str], last: bool, answers: Vec<Answer>) -> Event {
        let upserts = upserts.iter().map(|key| crate::proto::discovery::Upsert {
            key: (*key).to_owned(),
            version: vec![1; 16].into(),
            resource: Bytes::from_static(b"{}"),
        });
        let update = Update { nonce: nonce.to_owned(), upserts: upserts.collect(), last, answers, ..Update::default() };
        Event::Message(ControlMessage { message: Some(Message::Update(update)) })
    }

    #[test]
    fn waits_grow_and_control_planes_take_turns() {
        let mut machine = machine(&["a", "b"]);
        let (mut now, mut waits, mut urls) = (0, Vec::new(), BTreeSet::new());
        for _ in 0..12 {
            let actions = machine.step(now, Event::Tick);
            let [Action::Connect(url)] = &actions[..] else { panic!("{actions:?}") };
            urls.insert(url.clone());
            machine.step(now, Event::Lost("refused".into()));
            assert!(machine.step(now, Event::Tick).is_empty());
            waits.push(machine.wakes(now) - now);
            now = machine.wakes(now);
        }
        assert_eq!(urls.len(), 2);
        assert!(waits[0] <= 200 && waits[11] > 7_000 && waits[11] <= 15_000, "{waits:?}");
    }

    #[test]
    fn proxies_spread_over_control_planes_and_again_when_one_is_lost() {
        // However alike their seeds are.
        for step in [1, 1 << 32, 0x5851_f42d_4c95_7f2d_u64] {
            let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
            for i in 0..1_000 {
                let urls = ["a", "b", "c"].map(str::to_owned).to_vec();
                let mut machine =
                    Machine::new(0, Me { hello: Hello::default(), urls, seed: step.wrapping_mul(i) }, BTreeMap::new());
                let from = machine.url().to_owned();
                machine.step(0, Event::Tick);
                machine.step(0, Event::Lost("refused".into()));
                *second.entry((from.clone(), machine.url().to_owned())).or_insert(0) += 1;
                *first.entry(from).or_insert(0) += 1;
            }
            assert!(first.len() == 3 && first.values().all(|n| (250..=420).contains(n)), "{first:?}");
            // From each to both of the others.
            assert!(second.len() == 6 && second.values().all(|n| (110..=230).contains(n)), "{second:?}");
        }
    }

    #[test]
    fn a_change_takes_effect_when_all_of_it_has_come() {
        let mut machine = machine(&["a"]);
        machine.step(0, Event::Tick);
        machine.step(0, Event::Connected);
        assert!(machine.step(1, update("1", &["Service a/b"], false, Vec::new())).is_empty());
        let actions = machine.step(1, update("1", &["Service a/c"], true, Vec::new()));
        let [Action::Apply(change)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(change.upserts.len(), 2);
        let actions = machine.step(2, Event::Applied(Outcome { number: 1, ..Outcome::default() }));
        assert!(matches!(&actions[..], [Action::Send(_)]));
        // What it has goes with the next hello.
        machine.step(3, Event::Lost("reset".into()));
        machine.step(1_000, Event::Tick);
        let actions = machine.step(1_000, Event::Connected);
        let known = actions.iter().find_map(|action| match action {
            Action::Send(ProxyMessage { message: Some(Say::Known(known)) }) => Some(known),
            _ => None,
        });
        assert_eq!(known.map(|k| (k.resources.len(), k.last)), Some((2, true)));
    }

    #[test]
    fn destinations_of_an_earlier_run_are_asked_for() {
        let names = ["Service shop/cart", "Workload shop/cart-1", "ExternalService shop/api", "HTTPRoute shop/cart"];
        let have = names.map(|name| (name.to_owned(), Version::default())).into();
        let me = Me { hello: Hello::default(), urls: vec!["a".into()], seed: 7 };
        let mut machine = Machine::new(0, me, have);
        machine.step(0, Event::Tick);
        let actions = machine.step(0, Event::Connected);
        let Some(Action::Send(ProxyMessage { message: Some(Say::Hello(hello)) })) = actions.first() else {
            panic!("{actions:?}")
        };
        let asked: Vec<_> = hello.subscriptions.iter().filter_map(|s| s.what.clone()).collect();
        assert_eq!(asked, ["ExternalService shop/api", "Service shop/cart"].map(|key| What::Key(key.to_owned())));
    }

    #[test]
    fn what_has_come_of_an_update_goes_with_its_stream() {
        let mut machine = machine(&["a"]);
        machine.step(0, Event::Tick);
        machine.step(0, Event::Connected);
        assert!(machine.step(1, update("1", &["Service a/b"], false, Vec::new())).is_empty());
        machine.step(2, Event::Lost("reset".into()));
        machine.step(1_000, Event::Tick);
        machine.step(1_000, Event::Connected);
        // Nonces count from one on each stream.
        let actions = machine.step(1_001, update("1", &["Service a/c"], true, Vec::new()));
        let [Action::Apply(change)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(change.upserts.iter().map(|(key, ..)| key.as_str()).collect::<Vec<_>>(), ["Service a/c"]);
    }

    #[test]
    fn an_update_of_a_former_stream_is_not_taken_for_one_of_this() {
        let mut machine = machine(&["a"]);
        machine.step(0, Event::Tick);
        machine.step(0, Event::Connected);
        let number = |actions: &[Action]| match actions {
            [Action::Apply(change)] => change.number,
            other => panic!("{other:?}"),
        };
        let first = number(&machine.step(1, update("1", &["Service a/b"], true, Vec::new())));
        machine.step(2, Event::Lost("reset".into()));
        machine.step(1_000, Event::Tick);
        machine.step(1_000, Event::Connected);
        let second = number(&machine.step(1_001, update("1", &["Service a/c"], true, Vec::new())));
        // The first is slow, and in effect only now.
        let done = |number| Event::Applied(Outcome { number, ..Outcome::default() });
        assert!(machine.step(1_002, done(first)).is_empty());
        assert!(matches!(&machine.step(1_003, done(second))[..], [Action::Send(_)]));
    }

    #[test]
    fn who_has_registered_something_says_that_it_lives() {
        let mut machine = machine(&["a"]);
        machine.step(0, Event::Tick);
        machine.step(90, Event::Connected);
        let beats = |actions: &[Action]| {
            let beat = |a: &&Action| matches!(a, Action::Send(ProxyMessage { message: Some(Say::Alive(_)) }));
            actions.iter().filter(beat).count()
        };
        assert_eq!((beats(&machine.step(100, Event::Tick)), machine.wakes(100)), (0, 1_100));
        machine.step(100, Event::Register { key: "Workload a/b".into(), json: Bytes::new() });
        assert_eq!(machine.wakes(100), 100, "at once");
        assert_eq!((beats(&machine.step(100, Event::Tick)), machine.wakes(100)), (1, 100 + BEAT));
        assert_eq!(beats(&machine.step(101, Event::Tick)), 0);
        assert_eq!(beats(&machine.step(100 + BEAT, Event::Tick)), 1);
        let pace = Message::Pace(Pace { alive_millis: 900 });
        machine.step(400, Event::Message(ControlMessage { message: Some(pace) }));
        assert_eq!((beats(&machine.step(401, Event::Tick)), machine.wakes(401)), (0, 100 + BEAT + 900));
        assert_eq!(beats(&machine.step(1_200, Event::Tick)), 1);
        machine.step(1_300, Event::Leave);
        assert_eq!((beats(&machine.step(2_000, Event::Tick)), machine.wakes(2_000)), (0, 3_000));
    }

    #[test]
    fn what_is_wanted_is_asked_for_once_and_again_when_it_was_unknown() {
        let mut machine = machine(&["a"]);
        machine.step(0, Event::Tick);
        machine.step(0, Event::Connected);
        let want = || Event::Want(Wanted::Host("cart".into()));
        assert!(matches!(&machine.step(1, want())[..], [Action::Send(_)]));
        assert!(machine.step(1, want()).is_empty());
        machine.step(2, update("1", &[], true, vec![Answer { number: 1, known: false }]));
        let actions = machine.step(2, Event::Applied(Outcome { number: 1, ..Outcome::default() }));
        assert!(matches!(&actions[..], [Action::Answered(_, false), Action::Send(_)]), "{actions:?}");
        assert!(matches!(&machine.step(3, want())[..], [Action::Answered(_, false)]));
        assert!(matches!(&machine.step(2 + UNKNOWN, Event::Tick)[..], [Action::Send(_)]));
        assert!(matches!(&machine.step(2 + UNKNOWN, want())[..], [Action::Send(_)]));
    }

    /// Asks for a host, and has it answered.
    fn look_up(machine: &mut Machine, now: Millis, host: &str, known: bool) -> Vec<Action> {
        let mut actions = machine.step(now, Event::Want(Wanted::Host(host.to_owned())));
        let Some(number) = actions.iter().find_map(|action| match action {
            Action::Send(ProxyMessage { message: Some(Say::Subscribe(subscribe)) }) => Some(subscribe.add[0].number),
            _ => None,
        }) else {
            return actions;
        };
        let changes = machine.step(now, update(&number.to_string(), &[], true, vec![Answer { number, known }]));
        let [Action::Apply(change)] = &changes[..] else { panic!("{changes:?}") };
        actions.extend(machine.step(now, Event::Applied(Outcome { number: change.number, ..Outcome::default() })));
        actions
    }

    #[test]
    fn names_that_nobody_knows_take_no_place_from_others() {
        let mut machine = machine(&["a"]);
        machine.step(0, Event::Tick);
        machine.step(0, Event::Connected);
        look_up(&mut machine, 1, "cart", true);
        let mut refused = 0;
        for n in 0..20_000 {
            let actions = look_up(&mut machine, 2, &format!("n{n}.example"), false);
            refused += actions.iter().filter(|a| matches!(a, Action::Refused(_))).count();
        }
        assert_eq!((refused, machine.wanted.len()), (0, MAX_UNKNOWN + 1));
        // What the control plane was told is what we remember: each new one came with the end of an old one.
        assert_eq!(machine.unknown.len(), MAX_UNKNOWN);
        let actions = look_up(&mut machine, 3, "orders", true);
        assert!(actions.iter().any(|a| matches!(a, Action::Answered(_, true))), "{actions:?}");
        assert_eq!(machine.answer(&Wanted::Host("cart".into())), Some(true));
        machine.step(2 + UNKNOWN, Event::Tick);
        assert_eq!((machine.wanted.len(), machine.unknown.len()), (2, 0));
    }

    #[test]
    fn too_many_that_are_used_are_told_of_once_a_minute() {
        let mut machine = machine(&["a"]);
        machine.step(0, Event::Tick);
        machine.step(0, Event::Connected);
        for n in 0..MAX_WANTED {
            look_up(&mut machine, 1, &format!("n{n}.example"), true);
        }
        let mut told = Vec::new();
        for n in 0..1_000_u64 {
            let actions = machine.step(1 + n * 100, Event::Want(Wanted::Host(format!("m{n}"))));
            assert!(actions.iter().any(|a| matches!(a, Action::Answered(_, false))));
            told.extend(actions.into_iter().filter_map(|a| match a {
                Action::Refused(why) => Some(why),
                _ => None,
            }));
        }
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].starts_with("600 destinations"), "{told:?}");
    }
}
