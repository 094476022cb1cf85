//! The few tokens that may pass the filters, and the cuts through them.

use std::cmp::Reverse;

use super::scan::{BLOCK, Scale};

/// Below this many, sorting beats partitioning.
const SORT_LEN: usize = 32;

/// A token in the running.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Greater is better: the logit's bits in an order-preserving form, then the lower id.
    key: u64,
    /// Probability relative to the best token.
    mass: f32,
}

impl Candidate {
    fn new(token: u32, logit: f32, mass: f32) -> Self {
        // Adding 0 makes one of the two zeros.
        let bits = (logit + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Candidate { key: u64::from(ordered) << 32 | u64::from(!token), mass }
    }

    fn token(self) -> u32 {
        !(self.key as u32)
    }
}

/// Candidates in the order of ids, with the key of the last one kept.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    by_id: Vec<Candidate>,
    /// The kept ones, in an order of their own.
    ranked: Vec<Candidate>,
    cut_key: u64,
    maxima: Vec<f32>,
}

impl Candidates {
    /// A bound that at least `k` values reach, if as many are above minus infinity: the `k`-th largest maximum of a
    /// block.
    pub(super) fn kth_largest(&mut self, maxima: &[f32], k: usize) -> f32 {
        if k == 0 || k > maxima.len() {
            return f32::NEG_INFINITY;
        }
        self.maxima.clear();
        self.maxima.extend_from_slice(maxima);
        *self.maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Takes in every token whose logit reaches `bound` and is above minus infinity; returns their mass.
    #[inline(always)]
    pub(super) fn collect(&mut self, values: &[f32], maxima: &[f32], bound: f32, scale: Scale) -> f64 {
        self.by_id.clear();
        self.cut_key = 0;
        let mut total = 0.0;
        for (block_idx, (block, &maximum)) in values.chunks(BLOCK).zip(maxima).enumerate() {
            if maximum < bound || maximum == f32::NEG_INFINITY {
                continue;
            }
            for (offset, &v) in block.iter().enumerate() {
                if v >= bound && v > f32::NEG_INFINITY {
                    let mass = scale.mass(v);
                    total += f64::from(mass);
                    self.by_id.push(Candidate::new((block_idx * BLOCK + offset) as u32, v, mass));
                }
            }
        }
        self.ranked.clear();
        self.ranked.extend_from_slice(&self.by_id);
        total
    }

    /// Keeps the `k` best; returns their mass.
    pub(super) fn cut_to_count(&mut self, k: usize) -> f64 {
        if k > 0 && k < self.ranked.len() {
            self.cut_key = self.ranked.select_nth_unstable_by_key(k - 1, |c| Reverse(c.key)).1.key;
            self.ranked.truncate(k);
        }
        self.kept(0.0).map(|c| f64::from(c.mass)).sum()
    }

    /// Keeps as few of the best as have at least `wanted` mass, but at least one.
    pub(super) fn cut_to_mass(&mut self, mut wanted: f64) {
        let mut rest = self.ranked.as_mut_slice();
        while rest.len() > SORT_LEN {
            let middle = rest.len() / 2;
            rest.select_nth_unstable_by_key(middle, |c| Reverse(c.key));
            let (better, worse) = rest.split_at_mut(middle);
            let mass: f64 = better.iter().map(|c| f64::from(c.mass)).sum();
            rest = if mass >= wanted {
                better
            } else {
                wanted -= mass;
                worse
            };
        }
        rest.sort_unstable_by_key(|c| Reverse(c.key));
        for candidate in rest {
            self.cut_key = candidate.key;
            wanted -= f64::from(candidate.mass);
            if wanted <= 0.0 {
                break;
            }
        }
    }

    /// The kept ones in the order of ids.
    fn kept(&self, min_mass: f32) -> impl Iterator<Item = &Candidate> {
        let cut_key = self.cut_key;
        self.by_id.iter().filter(move |c| c.key >= cut_key && c.mass >= min_mass)
    }

    /// Inverts the cumulative distribution of what is kept and has at least `min_mass`, at `u` in `[0, 1)`.
    pub(super) fn draw(&self, min_mass: f32, u: f64) -> Option<u32> {
        let total: f64 = self.kept(min_mass).map(|c| f64::from(c.mass)).sum();
        let target = u * total;
        let mut below = 0.0;
        let mut last = None;
        for candidate in self.kept(min_mass).filter(|c| c.mass > 0.0) {
            last = Some(candidate.token());
            below += f64::from(candidate.mass);
            if below > target {
                break;
            }
        }
        last
    }

    /// Tokens of the kept ones with their logits' places, best first.
    pub(super) fn best_first(&mut self) -> impl Iterator<Item = u32> {
        self.ranked.sort_unstable_by_key(|c| Reverse(c.key));
        self.ranked.iter().map(|c| c.token())
    }
}
