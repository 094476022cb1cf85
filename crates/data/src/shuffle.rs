//! Orders by seed: the same on every machine and in every version.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014); the
//! shuffle is Fisher and Yates', from the last place to the second; a whole number below a bound is drawn by Lemire's
//! multiplication with rejection ("Fast Random Integer Generation in an Interval", 2019), so that every order is equally
//! likely as far as the generator goes.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let product = |number: u64| u128::from(number) * u128::from(bound);
        let mut drawn = product(self.next_u64());
        // The low half; numbers below 2^64 mod bound come once too often.
        if (drawn as u64) < bound {
            let threshold = bound.wrapping_neg() % bound;
            while (drawn as u64) < threshold {
                drawn = product(self.next_u64());
            }
        }
        (drawn >> 64) as u64
    }

    /// Puts a list into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for idx in (1..items.len()).rev() {
            let other = self.below(idx as u64 + 1);
            items.swap(idx, usize::try_from(other).unwrap_or(idx));
        }
    }
}

/// The order of `len` items in an epoch: a shuffle by the generator whose seed is the first number of the seed's own
/// generator, xor `epoch` times an odd constant.
pub fn epoch_order(len: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let own = SplitMix64::new(seed).next_u64();
    let mut generator = SplitMix64::new(own ^ epoch.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let mut order: Vec<usize> = (0..len).collect();
    generator.shuffle(&mut order);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        // From the reference implementation's published sequence for this seed.
        let mut generator = SplitMix64::new(1_234_567);
        let numbers: Vec<u64> = (0..5).map(|_| generator.next_u64()).collect();
        assert_eq!(
            numbers,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
    }

    #[test]
    fn every_order_is_equally_likely() {
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..24_000 {
            *counts.entry(epoch_order(4, seed, 3)).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        // 1,000 expected each, with a standard deviation of 31.
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn epochs_and_seeds_differ() {
        assert_eq!(epoch_order(100, 1, 2), epoch_order(100, 1, 2));
        assert_ne!(epoch_order(100, 1, 2), epoch_order(100, 1, 3));
        assert_ne!(epoch_order(100, 1, 2), epoch_order(100, 2, 2));
        assert_eq!(epoch_order(0, 1, 1), Vec::<usize>::new());
        let mut generator = SplitMix64::new(5);
        assert!((0..1000).all(|_| generator.below(3) < 3));
    }
}
