//! Who says that it lives: what silence means, and how often each is asked to say it.

use super::{Hub, NodeId};
use crate::publish::{node::Millis, pace::Pace};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// This control plane itself was held up for longer than this: nobody is to blame for what it has not heard meanwhile.
const STALL: Millis = 50;

/// When a proxy was last heard of, if it says that it lives. Who reads its stream writes that down without the hub, which
/// looks at it when silence may have lasted too long: of all that thousands of proxies say this is by far the most.
#[derive(Debug, Default)]
pub struct Heard(
    /// 0 for who does not say so; otherwise the time and one.
    AtomicU64,
);

impl Heard {
    /// It is heard of, and from now on has to be.
    pub fn begin(&self, now: Millis) {
        self.0.fetch_max(now + 1, Relaxed);
    }

    /// It is heard of. Whether it says that it lives; who does not is left alone.
    pub fn again(&self, now: Millis) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |at| (at != 0).then(|| at.max(now + 1))).is_ok()
    }

    pub(super) fn at(&self) -> Option<Millis> {
        self.0.load(Relaxed).checked_sub(1)
    }

    /// It is dead, unless it was heard of since then.
    fn end(&self, at: Millis) -> bool {
        self.0.compare_exchange(at + 1, 0, Relaxed, Relaxed).is_ok()
    }
}

impl Hub {
    /// Takes out what those have brought that were not heard of in time.
    pub(super) fn silent(&mut self, now: Millis) {
        let late = now.saturating_sub(self.due);
        let mut silent = Vec::new();
        for (node, member) in &self.members {
            if late > STALL {
                member.heard.again(now);
            }
            let Some(at) = member.heard.at() else { continue };
            if now >= at + member.pace.silence() && member.heard.end(at) {
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
        let wanted = Pace::wanted(self.members.values().filter(|member| member.heard.at().is_some()).count());
        let living = self.members.iter_mut().filter(|(_, member)| member.heard.at().is_some());
        self.paces.extend(living.filter_map(|(node, member)| Some((*node, member.pace.change(now, wanted)?))));
    }

    /// How often proxies are to say that they live, in milliseconds, since it was last asked.
    pub fn take_paces(&mut self) -> Vec<(NodeId, Millis)> {
        std::mem::take(&mut self.paces)
    }

    /// When [`Hub::tick`] has something to do, at the latest.
    pub fn wakes(&self, now: Millis) -> Millis {
        let silent = self.members.values().filter_map(|m| Some(m.heard.at()? + m.pace.silence())).min();
        [self.joined.next_expiry(), silent].into_iter().flatten().fold(now + 1_000, Millis::min)
    }
}
