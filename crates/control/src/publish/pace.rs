//! How often proxies that have registered something say that they live, and after how much silence they are taken for dead.
//!
//! Each time costs a control plane some 15 µs. Up to [`MANY`] proxies a machine that vanishes is out in less than a second;
//! with more they are asked to say it less often, so that all together cost no more than they do.

use super::node::Millis;

/// So many proxies may say it as often as they can.
pub const MANY: usize = 2_000;
/// As often as that.
pub const BEAT: Millis = 200;
/// And no less often than that, with however many.
const RAREST: Millis = 5_000;
/// The kernel of a machine that is gone does not close its connections, and keepalive of HTTP/2 for all would cost more and
/// be slower.
pub const SILENCE: Millis = silence(BEAT);

/// Two that are lost, and what the network and a busy machine may add.
const fn silence(beat: Millis) -> Millis {
    2 * beat + 300
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
        let far = wanted > self.beat + self.beat / 4 || wanted + wanted / 4 < self.beat;
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
            [(0, 200), (1, 200), (2_000, 200), (5_000, 500), (20_000, 2_000), (50_000, 5_000), (90_000, 5_000)]
        {
            assert_eq!(Pace::wanted(proxies), beat, "{proxies}");
        }
        assert_eq!(SILENCE, 700);
        let mut pace = Pace::default();
        assert_eq!((pace.change(0, 200), pace.change(0, 240), pace.silence()), (None, None, 700));
        assert_eq!((pace.change(10, 500), pace.silence()), (Some(500), 1_300), "slower at once");
        assert_eq!((pace.change(20, 550), pace.change(20, 450)), (None, None));
        assert_eq!((pace.change(5_000, 200), pace.silence()), (Some(200), 1_300), "quicker when it has heard of it");
        assert_eq!((pace.change(7_600, 200), pace.silence()), (None, 700));
        assert_eq!(pace.change(8_000, 251), Some(251));
        assert_eq!(pace.change(9_000, 200), Some(200), "back to what it was");
    }
}
