//! Drawing by seed.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::shuffle::SplitMix64;

/// The generator of a seed for one purpose: of another purpose, another one.
pub(super) fn generator(seed: u64, purpose: &str) -> SplitMix64 {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(purpose).finalize();
    let mut first = [0; 8];
    first.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    SplitMix64::new(u64::from_le_bytes(first))
}

/// A number from `min` to `max`, both of them possible.
pub(super) fn between(generator: &mut SplitMix64, min: usize, max: usize) -> usize {
    let width = (max.saturating_sub(min) as u64).saturating_add(1);
    min.saturating_add(usize::try_from(generator.below(width)).unwrap_or(0))
}

/// A sample of a stream of unknown length, each subset as likely as any other (Vitter, "Random Sampling with a
/// Reservoir", 1985, algorithm R).
#[derive(Debug)]
pub(super) struct Reservoir {
    generator: SplitMix64,
    room: usize,
    seen: u64,
    kept: Vec<u64>,
}

impl Reservoir {
    pub fn new(room: usize, generator: SplitMix64) -> Self {
        Self { generator, room, seen: 0, kept: Vec::new() }
    }

    /// Offers the next item, by its number.
    pub fn offer(&mut self, number: u64) {
        self.seen += 1;
        if self.kept.len() < self.room {
            self.kept.push(number);
            return;
        }
        let at = self.generator.below(self.seen);
        if let Some(place) = usize::try_from(at).ok().and_then(|at| self.kept.get_mut(at)) {
            *place = number;
        }
    }

    /// The numbers that were kept, in their order.
    pub fn finish(mut self) -> Vec<u64> {
        self.kept.sort_unstable();
        self.kept
    }
}

/// `count` of the numbers below `all`, in a random order; all of them if there are no more. The first steps of a
/// shuffle by Fisher and Yates, of which only the places that moved are remembered.
pub(super) fn subset(all: u64, count: u64, generator: &mut SplitMix64) -> Vec<u64> {
    let mut moved: HashMap<u64, u64> = HashMap::new();
    (0..count.min(all))
        .map(|at| {
            let other = at + generator.below(all - at);
            let here = moved.get(&at).copied().unwrap_or(at);
            moved.insert(other, here).unwrap_or(other)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_sample_of_a_stream_is_equally_likely() {
        let mut counts: BTreeMap<Vec<u64>, u32> = BTreeMap::new();
        for seed in 0..20_000 {
            let mut reservoir = Reservoir::new(3, generator(seed, "test"));
            (0..6).for_each(|number| reservoir.offer(number));
            *counts.entry(reservoir.finish()).or_default() += 1;
        }
        // 20 subsets of 1,000 expected each, with a standard deviation of 31.
        assert_eq!(counts.len(), 20);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
        let mut short = Reservoir::new(5, generator(1, "test"));
        (0..3).for_each(|number| short.offer(number));
        assert_eq!(short.finish(), [0, 1, 2]);
    }

    #[test]
    fn every_ordered_subset_is_equally_likely() {
        let mut counts: BTreeMap<Vec<u64>, u32> = BTreeMap::new();
        for seed in 0..20_000 {
            let drawn = subset(5, 2, &mut generator(seed, "test"));
            assert!(drawn[0] != drawn[1] && drawn.iter().all(|number| *number < 5));
            *counts.entry(drawn).or_default() += 1;
        }
        assert_eq!(counts.len(), 20);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
        let mut all = subset(9, 20, &mut generator(3, "test"));
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn purposes_and_seeds_differ() {
        let first = |seed, purpose| generator(seed, purpose).next_u64();
        assert_eq!(first(1, "a"), first(1, "a"));
        assert_ne!(first(1, "a"), first(1, "b"));
        assert_ne!(first(1, "a"), first(2, "a"));
        let mut numbers = generator(1, "a");
        assert!((0..500).all(|_| (3..=5).contains(&between(&mut numbers, 3, 5))));
    }
}
