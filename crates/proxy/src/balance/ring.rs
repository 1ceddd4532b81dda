//! Consistent hashing on a ring (ketama style), with Envoy's bounds on its size.

use super::random::Random;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Points on the ring: whoever owns the first point at or after the hash takes the request.
#[derive(Debug)]
pub struct Ring {
    points: Box<[(u64, u32)]>,
}

/// However large a configuration asks for: 8 M points are 128 MB.
const MAX_POINTS: u32 = 8 * 1024 * 1024;

impl Ring {
    /// `nodes` are name and weight. The lightest node gets a whole number of points, about `min_size` in all
    /// are shared by weight, and never more than `max_size` (but one for each node).
    pub fn new(nodes: &[(String, u32)], min_size: u32, max_size: u32) -> Self {
        let total: f64 = nodes.iter().map(|(_, w)| f64::from((*w).max(1))).sum();
        let lightest = nodes.iter().map(|(_, w)| f64::from((*w).max(1)) / total).fold(1.0, f64::min);
        let max_size = max_size.clamp(1, MAX_POINTS);
        let min_size = min_size.clamp(1, max_size);
        // A power of two for the lightest: then the others keep all of their points when one comes or goes, except
        // where the number of nodes passes such a step.
        let replicas = ((lightest * f64::from(min_size)).ceil() as u32).max(1).next_power_of_two();
        let size = (f64::from(replicas) / lightest).min(f64::from(max_size));
        let mut points = Vec::with_capacity(size as usize + nodes.len());
        let (mut target, mut placed) = (0.0, 0u32);
        for (index, (name, weight)) in nodes.iter().enumerate() {
            target += size * f64::from((*weight).max(1)) / total;
            let mut replica = 0u64;
            while f64::from(placed) < target - 1e-9 || replica == 0 {
                points.push((xxh3_64_with_seed(name.as_bytes(), replica), index as u32));
                replica += 1;
                placed += 1;
            }
        }
        points.sort_unstable();
        Self { points: points.into() }
    }

    /// Owners from the hash onwards, around the ring once, with repetitions.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let start = self.points.partition_point(|(point, _)| *point < hash);
        self.points[start..].iter().chain(&self.points[..start]).map(|(_, owner)| *owner as usize)
    }

    /// For requests without a key.
    pub fn draw(&self, random: &mut Random) -> usize {
        self.points.get(random.below(self.points.len())).map_or(0, |(_, owner)| *owner as usize)
    }

    pub fn size(&self) -> usize {
        self.points.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(n: usize) -> Vec<(String, u32)> {
        (0..n).map(|i| (format!("10.0.0.{i}:80"), 1)).collect()
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(Ring::new(&nodes(10), 1024, 8192).size(), 1280);
        assert_eq!(Ring::new(&nodes(3), 1, 1).size(), 3);
        let heavy = vec![("a".to_owned(), 1), ("b".to_owned(), 1_000_000)];
        assert!(Ring::new(&heavy, 1024, 4096).size() <= 4097);
        assert_eq!(Ring::new(&[], 1024, 4096).walk(7).next(), None);
    }

    #[test]
    fn weights_decide_the_share() {
        let ring = Ring::new(&[("a".to_owned(), 1), ("b".to_owned(), 3)], 4096, 65536);
        let mut random = Random::seeded(5);
        let hits = (0..100_000).filter(|_| ring.walk(random.draw()).next() == Some(1)).count();
        assert!((70_000..80_000).contains(&hits), "{hits}");
    }

    #[test]
    fn removing_a_node_moves_only_its_keys() {
        let all = nodes(10);
        let (before, after) = (Ring::new(&all, 1024, 8192), Ring::new(&all[..9], 1024, 8192));
        let mut random = Random::seeded(9);
        let (mut moved, mut owned) = (0, 0);
        for _ in 0..20_000 {
            let hash = random.draw();
            let (b, a) = (before.walk(hash).next(), after.walk(hash).next());
            owned += usize::from(b == Some(9));
            moved += usize::from(b != a);
        }
        assert_eq!(moved, owned);
    }
}
