//! When to ask for the next certificate, and when to raise the alarm. Decides without IO; time and chance come in.

use std::time::{Duration, SystemTime};

/// How much earlier than their issue certificates say that they begin.
const SKEW: Duration = Duration::from_secs(120);

/// The longest wait between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(150);

/// The first wait after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The shortest: short lives, of tests say, leave no time for long pauses.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// How bad it is that there is no newer certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Alarm {
    #[default]
    None,
    /// Renewing fails, and half of the life is over.
    Half,
    /// Renewing fails, and four fifths of the life are over.
    Urgent,
    /// There is no certificate that is valid now.
    Without,
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Span {
    /// Whether it is valid at `now`.
    pub fn holds(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Without what it was dated back.
    fn life(&self) -> Duration {
        self.not_after.duration_since(self.begin()).unwrap_or_default()
    }

    fn begin(&self) -> SystemTime {
        // Soon after a revocation certificates are not dated back.
        let begin = self.not_before + SKEW;
        if begin < self.not_after { begin } else { self.not_before }
    }

    /// How much of its life is over: 0 at the issue, 1 at the end and after.
    pub fn age(&self, now: SystemTime) -> f64 {
        let gone = now.duration_since(self.begin()).unwrap_or_default();
        let life = self.life();
        if life.is_zero() { 1.0 } else { (gone.as_secs_f64() / life.as_secs_f64()).min(1.0) }
    }
}

/// The certificate of one identity over time.
#[derive(Debug, Default)]
pub struct Life {
    held: Option<Span>,
    /// What part of the life passes before renewal: 0.5, a tenth of the life more or less.
    renew_at: f64,
    failures: u32,
    /// Not before then, after a failure.
    pause: Option<SystemTime>,
    /// Ask at once: what we have does not count any more.
    at_once: bool,
}

impl Life {
    /// A certificate is in use from now on. `chance` is evenly between 0 and 1. Says whether anything was gained: one that
    /// ends when the last one does (its authority ends then) is no renewal, and the next is asked for as after a failure.
    pub fn renewed(&mut self, span: Span, now: SystemTime, chance: f64) -> bool {
        let gained = match self.held {
            Some(held) if held.holds(now) && !self.at_once => span.not_after > held.not_after,
            _ => true,
        };
        match gained {
            true => self.holds(span, chance),
            false => self.failed(now, chance),
        }
        gained
    }

    /// A certificate is in use from now on.
    pub fn holds(&mut self, span: Span, chance: f64) {
        *self = Self { held: Some(span), renew_at: 0.4 + 0.2 * chance, ..Self::default() };
    }

    /// None was to be had at `now`.
    pub fn failed(&mut self, now: SystemTime, chance: f64) {
        let exponential = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        let share = self.held.map_or(LONGEST_PAUSE, |h| h.life() / 20).max(SHORTEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.pause = Some(now + exponential.min(share).mul_f64(0.5 + chance / 2.0));
    }

    /// What is held does not count any more, although it has not ended.
    pub fn renew_now(&mut self) {
        self.at_once = true;
        self.pause = None;
    }

    /// When to ask for the next one; a past time means now.
    pub fn due(&self, now: SystemTime) -> SystemTime {
        let due = match self.held {
            Some(span) if span.holds(now) && !self.at_once => span.begin() + span.life().mul_f64(self.renew_at),
            _ => now,
        };
        match self.pause {
            // A clock that was set back must not stretch the pause.
            Some(pause) if pause <= now + LONGEST_PAUSE => due.max(pause),
            _ => due,
        }
    }

    /// How bad it is at `now`.
    pub fn alarm(&self, now: SystemTime) -> Alarm {
        match self.held {
            None => Alarm::Without,
            Some(span) if !span.holds(now) => Alarm::Without,
            Some(_) if self.failures == 0 => Alarm::None,
            // Nobody accepts it any more.
            Some(_) if self.at_once => Alarm::Without,
            Some(span) if span.age(now) >= 0.8 => Alarm::Urgent,
            Some(span) if span.age(now) >= 0.5 => Alarm::Half,
            Some(_) => Alarm::None,
        }
    }

    /// From when until when the last certificate is valid.
    pub fn held(&self) -> Option<Span> {
        self.held
    }

    /// Tries in vain since the last certificate.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
    }

    fn day() -> Span {
        Span { not_before: at(0) - SKEW, not_after: at(86_400) }
    }

    #[test]
    fn renewal_is_at_half_of_the_life_give_or_take_a_tenth() {
        let mut life = Life::default();
        assert_eq!(life.due(at(5)), at(5), "without a certificate at once");
        for (chance, due) in [(0.0, 34_560), (0.5, 43_200), (1.0, 51_840)] {
            life.holds(day(), chance);
            assert_eq!(life.due(at(5)), at(due));
        }
    }

    #[test]
    fn a_short_one_that_is_not_dated_back_has_a_life() {
        let mut life = Life::default();
        life.holds(Span { not_before: at(0), not_after: at(10) }, 0.5);
        assert_eq!((life.due(at(1)), life.alarm(at(1))), (at(5), Alarm::None));
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly() {
        let mut life = Life::default();
        life.holds(day(), 0.5);
        let mut now = at(43_200);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            life.failed(now, 1.0);
            pauses.push(life.due(now).duration_since(now).unwrap().as_secs());
            now = life.due(now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150, 150]);
        life.failed(now, 0.0);
        assert_eq!(life.due(now), now + Duration::from_secs(75), "spread by chance");
    }

    #[test]
    fn alarms() {
        let mut life = Life::default();
        assert_eq!(life.alarm(at(0)), Alarm::Without);
        life.holds(day(), 0.5);
        assert_eq!(life.alarm(at(80_000)), Alarm::None, "nothing has failed");
        life.failed(at(43_000), 0.5);
        let seen = [43_000, 43_200, 69_000, 69_120, 86_399, 86_400].map(|s| life.alarm(at(s)));
        use Alarm::{Half, None, Urgent, Without};
        assert_eq!(seen, [None, Half, Half, Urgent, Urgent, Without]);
    }

    #[test]
    fn what_does_not_count_any_more_is_an_alarm_at_once() {
        let mut life = Life::default();
        life.holds(day(), 0.5);
        life.renew_now();
        assert_eq!((life.due(at(100)), life.alarm(at(100))), (at(100), Alarm::None), "asked for, not refused yet");
        life.failed(at(100), 0.5);
        assert_eq!(life.alarm(at(100)), Alarm::Without);
        life.holds(day(), 0.5);
        assert_eq!(life.alarm(at(101)), Alarm::None);
    }

    #[test]
    fn an_authority_that_ends_is_not_stormed() {
        let mut life = Life::default();
        life.holds(day(), 0.5);
        let (mut now, mut asked) = (at(43_200), 0);
        while now < at(86_400) {
            let cut = Span { not_before: now - SKEW, not_after: at(86_400) };
            assert!(!life.renewed(cut, now, 1.0));
            now = life.due(now);
            asked += 1;
        }
        assert!(asked < 300, "{asked} times");
        assert_eq!((life.alarm(at(50_000)), life.alarm(at(70_000))), (Alarm::Half, Alarm::Urgent));
        let new = Span { not_before: at(80_000) - SKEW, not_after: at(160_000) };
        assert!(life.renewed(new, at(80_000), 0.5));
        assert_eq!((life.alarm(at(80_000)), life.due(at(80_000))), (Alarm::None, at(120_000)));
    }

    #[test]
    fn a_clock_that_jumps() {
        let mut life = Life::default();
        life.holds(day(), 0.5);
        let jumped = at(100_000);
        assert_eq!((life.due(jumped), life.alarm(jumped)), (jumped, Alarm::Without));
        life.failed(jumped, 1.0);
        assert!(life.due(jumped) > jumped);
        // Back again: the certificate is good, and the pause of the other time does not matter.
        assert_eq!((life.due(at(1000)), life.alarm(at(1000))), (at(43_200), Alarm::None));
        // Back before its issue by more than two minutes.
        assert_eq!(life.alarm(at(0) - SKEW - Duration::from_secs(1)), Alarm::Without);
        assert_eq!(life.alarm(at(0) - SKEW), Alarm::None);
    }
}
