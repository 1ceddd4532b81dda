//! Weighted round robin without a lock: gRPC's static stride scheduler (proposal A58).

use super::random::Random;
use std::sync::atomic::{AtomicU64, Ordering};

const MAX_WEIGHT: u64 = u16::MAX as u64;
/// Spreads the turns of endpoints of equal small weight over the generations.
const OFFSET: u64 = MAX_WEIGHT / 2;

/// Hands out indices so that over any longer run each gets its share, evenly interleaved.
#[derive(Debug)]
pub struct Stride {
    /// Scaled so that the largest is `MAX_WEIGHT`.
    weights: Box<[u16]>,
    next: AtomicU64,
}

impl Stride {
    /// Starts at a random place, so that many proxies that start together do not all begin with the same endpoint.
    pub fn new(weights: &[u32], random: &mut Random) -> Self {
        let max = u64::from(weights.iter().copied().max().unwrap_or(1).max(1));
        let scaled = weights.iter().map(|w| (u64::from((*w).max(1)) * MAX_WEIGHT).div_ceil(max) as u16);
        Self { weights: scaled.collect(), next: AtomicU64::new(random.draw() >> 16) }
    }

    /// The next index; 0 when there are none. An endpoint takes its turn in as many generations as its weight says.
    pub fn next(&self) -> usize {
        let len = self.weights.len() as u64;
        if len < 2 {
            return 0;
        }
        loop {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            let (generation, index) = (turn / len, turn % len);
            let weight = u64::from(self.weights[index as usize]);
            // The endpoint of the largest weight always takes its turn, so this ends within one generation.
            if (weight * generation + index * OFFSET) % MAX_WEIGHT >= MAX_WEIGHT - weight {
                return index as usize;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_take_turns() {
        let stride = Stride::new(&[3, 3, 3], &mut Random::seeded(1));
        let first: Vec<usize> = (0..6).map(|_| stride.next()).collect();
        assert_eq!(first[..3], first[3..]);
        let mut sorted = first[..3].to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2]);
    }

    #[test]
    fn weights_are_kept_closely_and_interleaved() {
        let stride = Stride::new(&[5, 1, 1], &mut Random::seeded(3));
        let run: Vec<usize> = (0..700).map(|_| stride.next()).collect();
        let count = |i| run.iter().filter(|x| **x == i).count();
        assert!((495..=505).contains(&count(0)), "{}", count(0));
        assert!((95..=105).contains(&count(1)), "{}", count(1));
        // Never a long burst of one that could be spread: five sevenths are at most 5 or 6 in a row.
        assert!(!run.windows(8).any(|w| w.iter().all(|x| *x == 0)), "a burst");
    }
}
