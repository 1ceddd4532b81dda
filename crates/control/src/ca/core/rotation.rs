//! What takes the place of what, and when.

use super::{Core, intermediate::Intermediate, root::Root};
use crate::ca::{
    authority::{Authority, fingerprint},
    error::Error,
    state::Phase,
    time::{SKEW, seconds},
};
use std::{sync::Arc, time::SystemTime};

/// What to rotate by command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotate {
    Intermediate,
    /// `at_once`: without waiting until every node can know it; nodes that do not yet refuse each other for that long.
    Root {
        at_once: bool,
    },
}

impl Core {
    /// Begins to rotate, by command.
    pub fn rotate(&mut self, what: Rotate, now: SystemTime) -> Result<(), Error> {
        match what {
            Rotate::Intermediate => {
                let root = self.active_root().ok_or(Error::FromFiles)?;
                self.new_intermediate(&root, now)?;
            }
            Rotate::Root { at_once } => {
                if self.active_root().is_none() {
                    return Err(Error::FromFiles);
                }
                let waiting = self.roots.iter().find_map(|r| match r.phase {
                    Phase::Next { from } => Some(from),
                    Phase::Active | Phase::Retiring { .. } => None,
                });
                match waiting {
                    Some(at) if !at_once => return Err(Error::Rotating { at }),
                    Some(_) => {}
                    None => self.prepare_root(now)?,
                }
                if at_once {
                    self.activate_next_root(now, true)?;
                }
            }
        }
        self.advance(now, false)?;
        self.renew_bundle(now)
    }

    /// `sure`: the time is right. A clock that was set back for a moment must not replace a root that everybody else can use.
    pub(super) fn advance(&mut self, now: SystemTime, sure: bool) -> Result<bool, Error> {
        let mut changed = self.activate_next_root(now, false)?;
        for root in self.roots.iter_mut().filter(|r| r.authority.is_none()) {
            if matches!(root.phase, Phase::Next { from } if from <= seconds(now)) {
                (root.phase, changed) = (Phase::Active, true);
            }
        }
        changed |= self.activate_next_intermediate(now);
        let Some(root) = self.active_root() else { return Ok(changed) };
        let preparing = self.roots.iter().any(|r| matches!(r.phase, Phase::Next { .. }));
        if seconds(now) < root.not_before && !sure {
            return Ok(changed);
        }
        if !root.valid(now) {
            if !preparing {
                self.prepare_root(now)?;
            }
            self.activate_next_root(now, true)?;
            return Ok(true);
        }
        if !preparing && self.needs_successor(&root, now) {
            self.prepare_root(now)?;
            changed = true;
        }
        let signs = |i: &Intermediate| i.phase == Phase::Active && i.valid(now);
        let fresh = self.intermediates.iter().find(|i| signs(i));
        if fresh.is_none_or(|i| !i.from_files && worn(i.not_before, i.authority.not_after, now)) {
            // One that ends with its root is not made again and again: the root's successor brings a new one.
            let room = root.not_after > seconds(now) + self.lifetimes.intermediate.as_secs() / 3;
            if fresh.is_none() || room {
                self.new_intermediate(&root, now)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Whether the next root must be made now, so that it is known for all of the overlap before the old one can no longer sign:
    /// with short lives the last third of a root is too short for that. The overlap counts twice, for control planes that are
    /// away just then.
    fn needs_successor(&self, root: &Root, now: SystemTime) -> bool {
        let life = root.not_after.saturating_sub(root.not_before + SKEW.as_secs());
        let time = (self.lifetimes.svid + 2 * self.lifetimes.overlap).as_secs().min(life / 2);
        worn(root.not_before, root.not_after, now) || seconds(now) + time >= root.not_after
    }

    pub(super) fn drop_ended(&mut self, now: SystemTime) -> bool {
        let now = seconds(now);
        let before = (self.roots.len(), self.intermediates.len(), self.revocations.len());
        let stays = |phase: Phase| !matches!(phase, Phase::Retiring { until } if until <= now);
        self.roots.retain(|r| stays(r.phase));
        self.intermediates.retain(|i| stays(i.phase));
        self.revocations.retain(|r| r.until > now);
        before != (self.roots.len(), self.intermediates.len(), self.revocations.len())
    }

    pub(super) fn prepare_root(&mut self, now: SystemTime) -> Result<(), Error> {
        let authority = Authority::root(&self.domain, self.lifetimes.root, now)?;
        let mut from = seconds(now) + self.lifetimes.overlap.as_secs();
        if let Some(old) = self.active_root() {
            // The old one must outlive what is signed under it until then.
            from = from.min(old.not_after.saturating_sub(self.lifetimes.svid.as_secs())).max(seconds(now));
        }
        self.roots.push(Root {
            certificate: authority.certificate().clone(),
            not_before: seconds(now).saturating_sub(SKEW.as_secs()),
            not_after: authority.not_after,
            authority: Some(Arc::new(authority)),
            phase: Phase::Next { from },
        });
        Ok(())
    }

    pub(super) fn activate_next_root(&mut self, now: SystemTime, at_once: bool) -> Result<bool, Error> {
        let due = |r: &Root| matches!(r.phase, Phase::Next { from } if at_once || from <= seconds(now));
        let ours = |r: &Root| due(r) && r.authority.is_some();
        let Some(next) = self.roots.iter().position(ours) else { return Ok(false) };
        // A control plane that the store does not reach goes on to sign under the old one until it does.
        let until = self.last_end(now) + self.lifetimes.overlap.as_secs();
        for root in &mut self.roots {
            if root.phase == Phase::Active {
                // By a clock before its beginning nobody can tell when the last certificate under it ends.
                let until = if seconds(now) < root.not_before { root.not_after } else { until };
                root.phase = Phase::Retiring { until };
            }
        }
        self.roots[next].phase = Phase::Active;
        let root = self.roots[next].clone();
        self.new_intermediate(&root, now)?;
        Ok(true)
    }

    fn activate_next_intermediate(&mut self, now: SystemTime) -> bool {
        let due = |i: &Intermediate| matches!(i.phase, Phase::Next { from } if from <= seconds(now));
        let Some(next) = self.intermediates.iter().position(due) else { return false };
        self.retire_intermediates(self.last_end(now));
        self.intermediates[next].phase = Phase::Active;
        true
    }

    fn new_intermediate(&mut self, root: &Root, now: SystemTime) -> Result<(), Error> {
        let signer = root.authority.as_ref().ok_or(Error::FromFiles)?;
        let authority = signer.intermediate(&self.domain, self.lifetimes.intermediate, now)?;
        self.retire_intermediates(self.last_end(now));
        self.intermediates.push(Intermediate {
            not_before: seconds(now).saturating_sub(SKEW.as_secs()),
            authority: Arc::new(authority),
            root: fingerprint(&root.certificate),
            phase: Phase::Active,
            longest: self.lifetimes.svid.as_secs(),
            from_files: false,
        });
        Ok(())
    }

    pub(super) fn retire_intermediates(&mut self, until: u64) {
        for intermediate in &mut self.intermediates {
            if intermediate.phase == Phase::Active {
                intermediate.phase = Phase::Retiring { until };
            }
        }
    }

    /// The root that signs, if its key is here.
    pub(super) fn active_root(&self) -> Option<Root> {
        self.roots.iter().find(|r| r.phase == Phase::Active && r.authority.is_some()).cloned()
    }

    /// When the last certificate that was issued until `now` has ended, by a late clock.
    pub(super) fn last_end(&self, now: SystemTime) -> u64 {
        let longest = self.intermediates.iter().map(|i| i.longest).max().unwrap_or(0);
        seconds(now) + longest.max(self.lifetimes.svid.as_secs()) + SKEW.as_secs()
    }
}

/// Whether two thirds of a life are over.
fn worn(not_before: u64, not_after: u64, now: SystemTime) -> bool {
    let begin = not_before + SKEW.as_secs();
    let life = not_after.saturating_sub(begin);
    seconds(now) >= begin + life / 3 * 2
}
