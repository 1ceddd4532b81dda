//! How often proxies that have registered something say that they live, and after how much silence they are taken for dead.
//!
//! Each time costs a control plane some 15 µs of a processor, half of it in the kernel and next to nothing in the hub. Up to [`MANY`]
//! proxies say it as often as they can; with more each is asked to say it less often, so that all together cost about what
//! those do: a fifth of one. With 5,000 a machine that vanishes is still out in less than a second.

use super::node::Millis;

/// So many proxies may say it as often as they can.
pub const MANY: usize = 2_500;
/// As often as that.
pub const BEAT: Millis = 200;
/// And no less often than that, with however many.
const RAREST: Millis = 5_000;
/// The kernel of a machine that is gone does not close its connections, and keepalive of HTTP/2 for all would cost more and
/// be slower.
pub const SILENCE: Millis = silence(BEAT);

/// What is lost TCP sends again after some 200 ms; the rest is for the network and a busy machine.
const fn silence(beat: Millis) -> Millis {
    beat + 500
}

/// What one proxy was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    beat: Millis,
    silence: Millis,
    /// When the proxy can have heard of a quicker one.
    heard: Millis,
}

impl Default for Pace {
    fn default() -> Self {
        Self { beat: BEAT, silence: SILENCE, heard: 0 }
    }
}

impl Pace {
    /// How often each of so many says it.
    pub fn wanted(proxies: usize) -> Millis {
        (BEAT * proxies as Millis / MANY as Millis).clamp(BEAT, RAREST)
    }

    /// What the proxy must be told, if that is other than before by enough.
    pub fn change(&mut self, now: Millis, wanted: Millis) -> Option<Millis> {
        if now >= self.heard {
            self.silence = silence(self.beat);
        }
        let far = wanted > self.beat + self.beat / 4 || wanted + wanted / 8 < self.beat;
        if !far && (wanted != BEAT || self.beat == BEAT) {
            return None;
        }
        // Until it has heard of a quicker pace it is silent as before.
        (self.heard, self.silence) = (now + 2 * self.silence, self.silence.max(silence(wanted)));
        self.beat = wanted;
        Some(wanted)
    }

    /// It is dead after so long.
    pub const fn silence(&self) -> Millis {
        self.silence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_proxies_say_it_less_often_and_all_together_no_more() {
        for (proxies, beat) in
            [(0, 200), (1, 200), (2_500, 200), (5_000, 400), (20_000, 1_600), (50_000, 4_000), (90_000, 5_000)]
        {
            assert_eq!(Pace::wanted(proxies), beat, "{proxies}");
        }
        assert_eq!(SILENCE, 700);
        let mut pace = Pace::default();
        assert_eq!((pace.change(0, 200), pace.change(0, 240), pace.silence()), (None, None, 700));
        assert_eq!((pace.change(10, 400), pace.silence()), (Some(400), 900), "slower at once");
        assert_eq!((pace.change(20, 500), pace.change(20, 360)), (None, None));
        assert_eq!((pace.change(5_000, 200), pace.silence()), (Some(200), 900), "quicker when it has heard of it");
        assert_eq!((pace.change(6_800, 200), pace.silence()), (None, 700));
        assert_eq!(pace.change(8_000, 251), Some(251));
        assert_eq!(pace.change(9_000, 200), Some(200), "back to what it was");
    }

    /// Whether there were fewer before or more.
    #[test]
    fn five_thousand_are_out_within_a_second() {
        for before in [BEAT, 350, 480, RAREST] {
            let mut pace = Pace::default();
            pace.change(0, before);
            pace.change(100_000, Pace::wanted(5_000));
            pace.change(200_000, Pace::wanted(5_000));
            assert!(pace.silence() <= 950, "{before}: {}", pace.silence());
        }
    }
}
