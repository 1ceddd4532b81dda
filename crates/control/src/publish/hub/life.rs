//! Who says that it lives: what silence means, and how often each is asked to say it.

use super::{Hub, NodeId};
use crate::publish::{node::Millis, pace::Pace};

/// This control plane itself was held up for longer than this: nobody is to blame for what it has not heard meanwhile.
const STALL: Millis = 50;

impl Hub {
    /// Takes out what those have brought that were not heard of in time.
    pub(super) fn silent(&mut self, now: Millis) {
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
    pub(super) fn repace(&mut self, now: Millis) {
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
}
