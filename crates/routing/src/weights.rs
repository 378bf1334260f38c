//! Shares by weight, from a random number that the caller draws.

/// Weights added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Sum of the weights up to each index.
    sums: Box<[u64]>,
}

impl Weights {
    /// The sums of 2^32 weights of 2^32 fit; a route has 16.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let sums = weights.into_iter().scan(0_u64, |sum, weight| {
            *sum = sum.saturating_add(weight.into());
            Some(*sum)
        });
        Self {
            sums: sums.collect(),
        }
    }

    /// The sum of all.
    pub fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// The index whose share a number drawn evenly from all of `u64` falls into. `None` if there is no weight at all.
    pub fn pick(&self, random: u64) -> Option<usize> {
        let total = self.total();
        (total > 0).then(|| self.at(((u128::from(random) * u128::from(total)) >> 64) as u64))
    }

    /// The index whose share holds this point below the total.
    pub(crate) fn at(&self, point: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= point)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn nothing_is_picked_without_weight() {
        assert_eq!(Weights::new([]).pick(7), None);
        assert_eq!(Weights::new([0, 0]).pick(u64::MAX), None);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let weights = Weights::new([u32::MAX; 16]);
        assert_eq!(weights.pick(0), Some(0));
        assert_eq!(weights.pick(u64::MAX), Some(15));
    }

    #[test]
    fn shares_are_as_the_weights_and_zero_gets_nothing() {
        let (weights, mut rng) = (Weights::new([90, 0, 10]), SmallRng::seed_from_u64(1));
        let mut counts = [0_u32; 3];
        for _ in 0..100_000 {
            counts[weights.pick(rng.random()).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((89_500..90_500).contains(&counts[0]), "{counts:?}");
    }
}
