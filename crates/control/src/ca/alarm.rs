//! When somebody must be told that the authority which signs comes to its end. What the CA rotates by itself is replaced
//! after two thirds of its life, so that only what is late is told of; files are somebody else's to replace.

use super::{core::Core, state::Phase, time::seconds};
use std::time::SystemTime;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Alarm {
    #[default]
    None,
    /// From files: half of the life is over.
    Half,
    /// Four fifths are.
    Urgent,
    /// It has ended, or has not begun.
    Over,
}

/// The root or the intermediate that signs, or will next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    pub root: bool,
    pub from_files: bool,
    /// Seconds since 1970.
    pub not_after: u64,
    pub alarm: Alarm,
}

impl Expiry {
    pub const fn name(self) -> &'static str {
        if self.root { "root" } else { "intermediate" }
    }
}

pub(super) fn of(core: &Core, now: SystemTime) -> Vec<Expiry> {
    // What comes next is on its way already.
    let rank = |phase: Phase| match phase {
        Phase::Next { .. } => 0,
        Phase::Active => 1,
        Phase::Retiring { .. } => 2,
    };
    let mut all = core.lives();
    all.sort_by_key(|life| rank(life.phase));
    let first = |root: bool| all.iter().find(|life| life.root == root);
    let expiry = |life: &Life| Expiry {
        root: life.root,
        from_files: life.from_files,
        not_after: life.not_after,
        alarm: life.alarm(seconds(now)),
    };
    [true, false].into_iter().filter_map(first).map(expiry).collect()
}

/// From when until when something may sign; in seconds since 1970, without what it was dated back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) root: bool,
    pub(super) from_files: bool,
    pub(super) phase: Phase,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

impl Life {
    fn alarm(&self, now: u64) -> Alarm {
        if now < self.not_before || now >= self.not_after {
            return Alarm::Over;
        }
        let (life, age) = (self.not_after - self.not_before, now - self.not_before);
        if age >= life / 5 * 4 {
            Alarm::Urgent
        } else if self.from_files && age >= life / 2 {
            Alarm::Half
        } else {
            Alarm::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_of_at_half_of_their_life_and_own_ones_when_they_are_late() {
        let life =
            |from_files| Life { root: false, from_files, phase: Phase::Active, not_before: 1000, not_after: 2000 };
        for (now, files, own) in [
            (999, Alarm::Over, Alarm::Over),
            (1000, Alarm::None, Alarm::None),
            (1499, Alarm::None, Alarm::None),
            (1500, Alarm::Half, Alarm::None),
            (1799, Alarm::Half, Alarm::None),
            (1800, Alarm::Urgent, Alarm::Urgent),
            (2000, Alarm::Over, Alarm::Over),
        ] {
            assert_eq!((life(true).alarm(now), life(false).alarm(now)), (files, own), "{now}");
        }
    }
}
