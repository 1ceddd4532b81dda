//! What a proxy asks for beyond what it sees anyway.

use super::{
    Hub, NodeId,
    view::{Seen, differences},
};
use crate::{
    proto::discovery::{Answer, Subscribe, Subscription, subscription::What},
    publish::{
        node::{Event, Millis},
        scope::Wanted,
        version::read_key,
    },
};

/// Subscriptions of one proxy.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;

impl Hub {
    pub(super) fn subscribe(&mut self, now: Millis, node: NodeId, subscribe: Subscribe) -> Result<(), String> {
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
