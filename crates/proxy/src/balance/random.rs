//! Draws: a small generator that can be seeded, and weighted sampling in constant time.

use std::cell::Cell;

/// SplitMix64. Good enough to spread load, cheap enough for every request, and repeatable in tests.
#[derive(Debug, Clone)]
pub struct Random(u64);

thread_local! {
    static LOCAL: Cell<u64> = Cell::new(rand::random());
}

impl Random {
    pub const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// Runs `f` with this thread's generator, which the operating system has seeded.
    pub fn with_local<T>(f: impl FnOnce(&mut Self) -> T) -> T {
        LOCAL.with(|state| {
            let mut random = Self(state.get());
            let result = f(&mut random);
            state.set(random.0);
            result
        })
    }

    /// 64 random bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound` (0 for a bound of 0). The bias is below `bound / 2^64`.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.draw()) * bound as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws indices in proportion to their weights in constant time (Vose's alias method).
#[derive(Debug)]
pub struct Sampler {
    len: usize,
    /// Empty when all weights are equal: then every index is as likely. Otherwise for each column the share of
    /// 2^32 that keeps the column, and where the rest goes.
    columns: Box<[(u32, u32)]>,
}

impl Sampler {
    /// Weights of zero count as one: whoever takes no traffic is left out before.
    pub fn new(weights: &[u32]) -> Self {
        let len = weights.len();
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self { len, columns: Box::default() };
        }
        let total: f64 = weights.iter().map(|w| f64::from((*w).max(1))).sum();
        let mut share: Vec<f64> = weights.iter().map(|w| f64::from((*w).max(1)) * len as f64 / total).collect();
        let mut columns: Vec<(u32, u32)> = (0..len as u32).map(|i| (u32::MAX, i)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..len).partition(|i| share[*i] < 1.0);
        while let (Some(s), Some(l)) = (small.pop(), large.last().copied()) {
            columns[s] = ((share[s] * f64::from(u32::MAX)) as u32, l as u32);
            share[l] -= 1.0 - share[s];
            if share[l] < 1.0 {
                large.pop();
                small.push(l);
            }
        }
        Self { len, columns: columns.into() }
    }

    /// An index; 0 when there are none.
    pub fn draw(&self, random: &mut Random) -> usize {
        let column = random.below(self.len);
        match self.columns.get(column) {
            Some((keep, other)) if (random.draw() >> 32) as u32 > *keep => *other as usize,
            _ => column,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alias_table_follows_the_weights() {
        let weights = [1, 2, 3, 10, 84];
        let sampler = Sampler::new(&weights);
        let mut random = Random::seeded(7);
        let mut hits = [0u32; 5];
        for _ in 0..200_000 {
            hits[sampler.draw(&mut random)] += 1;
        }
        for (weight, hits) in weights.iter().zip(hits) {
            let expected = f64::from(*weight) * 2000.0;
            assert!((f64::from(hits) - expected).abs() < expected * 0.08 + 60.0, "{hits} instead of {expected}");
        }
    }

    #[test]
    fn one_and_none() {
        let mut random = Random::seeded(1);
        assert_eq!(Sampler::new(&[5]).draw(&mut random), 0);
        assert_eq!(Sampler::new(&[]).draw(&mut random), 0);
    }
}
