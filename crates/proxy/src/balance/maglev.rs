//! Maglev hashing (Eisenbud et al., NSDI 2016), weighted as Envoy does it.

use super::random::Random;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A table in which every node owns its share of the slots, and most slots keep their owner when nodes change.
#[derive(Debug)]
pub struct Maglev {
    slots: Box<[u32]>,
}

/// As in Envoy; 20 MB.
const MAX_SIZE: u32 = 5_000_011;

impl Maglev {
    /// `table_size` is raised to the next prime, which the permutations need.
    pub fn new(nodes: &[(String, u32)], table_size: u32) -> Self {
        if nodes.is_empty() {
            return Self { slots: Box::default() };
        }
        let size = u64::from(next_prime(table_size.clamp(2, MAX_SIZE).max(nodes.len() as u32)));
        let heaviest = nodes.iter().map(|(_, w)| (*w).max(1)).max().map_or(1.0, f64::from);
        let mut builders: Vec<Builder> = nodes.iter().map(|(name, w)| Builder::new(name, *w, heaviest, size)).collect();
        let mut slots = vec![u32::MAX; size as usize];
        let mut filled = 0;
        let mut round = 1u32;
        while filled < size {
            for (index, builder) in builders.iter_mut().enumerate() {
                // The heaviest node takes a slot each round, the others in the rounds their weight gives them.
                if f64::from(round) * builder.weight < builder.target {
                    continue;
                }
                builder.target += 1.0;
                builder.take(&mut slots, index as u32, size);
                filled += 1;
                if filled == size {
                    break;
                }
            }
            round += 1;
        }
        Self { slots: slots.into() }
    }

    /// Owners from the hash's slot onwards, around the table once, with repetitions.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = if self.slots.is_empty() { 0 } else { (hash % self.slots.len() as u64) as usize };
        self.slots[start..].iter().chain(&self.slots[..start]).map(|owner| *owner as usize)
    }

    /// For requests without a key.
    pub fn draw(&self, random: &mut Random) -> usize {
        self.slots.get(random.below(self.slots.len())).map_or(0, |owner| *owner as usize)
    }

    pub fn size(&self) -> usize {
        self.slots.len()
    }
}

struct Builder {
    at: u64,
    skip: u64,
    /// In `(0, 1]`.
    weight: f64,
    target: f64,
}

impl Builder {
    fn new(name: &str, weight: u32, heaviest: f64, size: u64) -> Self {
        let at = xxh3_64_with_seed(name.as_bytes(), 0) % size;
        let skip = xxh3_64_with_seed(name.as_bytes(), 1) % (size - 1) + 1;
        Self { at, skip, weight: f64::from(weight.max(1)) / heaviest, target: 1.0 }
    }

    /// Takes the first free slot of this node's permutation. There is one, for the caller counts.
    fn take(&mut self, slots: &mut [u32], index: u32, size: u64) {
        while slots[self.at as usize] != u32::MAX {
            self.at = (self.at + self.skip) % size;
        }
        slots[self.at as usize] = index;
    }
}

fn next_prime(n: u32) -> u32 {
    (n..).find(|n| is_prime(*n)).unwrap_or(MAX_SIZE)
}

fn is_prime(n: u32) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: usize) -> Vec<(String, u32)> {
        (0..n).map(|i| (format!("10.0.{}.{}:8080", i / 250, i % 250), 1)).collect()
    }

    fn shares(table: &Maglev, n: usize) -> Vec<usize> {
        let mut shares = vec![0; n];
        table.slots.iter().for_each(|owner| shares[*owner as usize] += 1);
        shares
    }

    #[test]
    fn shares_are_even() {
        let table = Maglev::new(&nodes(50), 65537);
        let shares = shares(&table, 50);
        let (min, max) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert_eq!(table.size(), 65537);
        assert!(max - min <= 1, "{min}..{max}");
    }

    #[test]
    fn shares_follow_weights() {
        let table = Maglev::new(&[("a".to_owned(), 1), ("b".to_owned(), 2), ("c".to_owned(), 7)], 65537);
        let shares = shares(&table, 3);
        for (share, weight) in shares.iter().zip([1.0, 2.0, 7.0]) {
            assert!((*share as f64 - 6553.7 * weight).abs() < 60.0, "{shares:?}");
        }
    }

    #[test]
    fn losing_a_node_disturbs_little_more_than_its_share() {
        let all = nodes(100);
        let before = Maglev::new(&all, 65537);
        let after = Maglev::new(&all[..99], 65537);
        let moved = before.slots.iter().zip(&after.slots).filter(|(b, a)| b != a).count();
        let least = before.slots.iter().filter(|owner| **owner == 99).count();
        // The paper reports a few percent over the minimum at this ratio of table to nodes.
        assert!(moved >= least && moved < least + 65537 * 3 / 100, "{moved} slots moved, {least} had to");
    }

    #[test]
    fn sizes_become_prime() {
        assert_eq!(Maglev::new(&nodes(3), 0).size(), 3);
        assert_eq!(Maglev::new(&nodes(3), 100).size(), 101);
        assert_eq!(Maglev::new(&nodes(1), 7).walk(u64::MAX).next(), Some(0));
        assert_eq!(Maglev::new(&[], 65537).walk(3).next(), None);
    }
}
