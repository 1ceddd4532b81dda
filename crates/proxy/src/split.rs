//! Weighted choice between the backends of a rule.

use rand::{Rng, RngExt};
use selvedge_compile::snapshot::{Backend, Split};

/// Draws a backend: in expectation each gets exactly `weight / total`. A backend of weight 0 is never drawn.
///
/// A split has a backend with weight: the compiler makes a fixed answer of one that has none.
pub fn pick<'s>(split: &'s Split, rng: &mut impl Rng) -> &'s Backend {
    match split.backends.as_slice() {
        [only] => only,
        backends => at(split, rng.random_range(0..split.total.max(1))).unwrap_or(&backends[0]),
    }
}

/// The backend of one point in `0..total`.
fn at(split: &Split, mut point: u32) -> Option<&Backend> {
    split.backends.iter().find(|backend| match point.checked_sub(backend.weight) {
        Some(rest) => {
            point = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::SmallRng};
    use selvedge_compile::snapshot::{ClusterId, Target};

    fn split(weights: &[u32]) -> Split {
        let backend = |(i, weight): (usize, &u32)| Backend {
            weight: *weight,
            target: Target::Cluster(ClusterId(i as u32)),
            filters: Vec::new(),
        };
        Split { backends: weights.iter().enumerate().map(backend).collect(), total: weights.iter().sum() }
    }

    #[test]
    fn every_point_belongs_to_its_backend() {
        let split = split(&[2, 0, 3]);
        let points: Vec<_> = (0..6).map(|point| at(&split, point).map(|b| b.weight)).collect();
        assert_eq!(points, [Some(2), Some(2), Some(3), Some(3), Some(3), None]);
    }

    #[test]
    fn draws_follow_the_weights() {
        let split = split(&[90, 0, 10]);
        let mut rng = SmallRng::seed_from_u64(7);
        let mut hits = [0; 2];
        for _ in 0..10_000 {
            hits[usize::from(pick(&split, &mut rng).weight == 10)] += 1;
        }
        assert!((8_800..9_200).contains(&hits[0]), "{hits:?}");
    }

    #[test]
    fn a_single_backend_needs_no_draw() {
        assert_eq!(pick(&split(&[1]), &mut SmallRng::seed_from_u64(1)).weight, 1);
    }
}
