//! How often what a text's past proposes is what comes: by how long the past is, of one sequence, with all of them for a start,
//! and by the token that it ends with, of all of them.
//!
//! Every sampled token is held against the look-up, drafted or not. So a sequence that drafts nothing learns too. Answers of one
//! form, such as records, are alike in where they copy: after a comma the next key comes as it came before, within a year
//! anything does. That is what the last token tells, and a single answer is too short to learn it.

use crate::ids::TokenId;

/// Lengths of a common past that are told apart: 1, 2, 3, up to 5, 8, 15, and beyond.
const CLASSES: usize = 7;
/// Observations of one class after which the older ones count half.
const MEMORY: f32 = 48.0;
/// Of all sequences together.
const COMMON_MEMORY: f32 = 512.0;
/// Of all sequences together after one token.
const TOKEN_MEMORY: f32 = 32.0;
/// Tokens that are told apart, with the length of the past; those that fall together are taken for the same.
const TOKEN_SLOTS: usize = 4096;
/// As many observations of its own a sequence is given of those of all, or of a coin.
const PRIOR: f32 = 3.0;

fn class(past: usize) -> usize {
    match past {
        0..=1 => 0,
        2 => 1,
        3 => 2,
        4..=5 => 3,
        6..=8 => 4,
        9..=15 => 5,
        _ => 6,
    }
}

/// Proposals, all and those that were right.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    right: f32,
    all: f32,
}

impl Tally {
    fn note(&mut self, was_right: bool, memory: f32) {
        self.right += f32::from(u8::from(was_right));
        self.all += 1.0;
        if self.all > memory {
            self.right /= 2.0;
            self.all /= 2.0;
        }
    }

    fn and(self, other: Self) -> Self {
        Self { right: self.right + other.right, all: self.all + other.all }
    }

    /// The share that is right, if as many as [`PRIOR`] more had it as `prior` says.
    fn share(self, prior: f32) -> f32 {
        (self.right + PRIOR * prior) / (self.all + PRIOR)
    }
}

/// A sequence's own, by length of the past.
#[derive(Clone, Debug, Default)]
pub(crate) struct Odds([Tally; CLASSES]);

impl Odds {
    fn of(&self, past: usize) -> Tally {
        self.0.get(class(past)).copied().unwrap_or_default()
    }

    fn note_within(&mut self, past: usize, was_right: bool, memory: f32) {
        if let Some(tally) = self.0.get_mut(class(past)) {
            tally.note(was_right, memory);
        }
    }

    /// Notes a proposal.
    pub fn note(&mut self, past: usize, was_right: bool) {
        self.note_within(past, was_right, MEMORY);
    }

    /// The chance that a proposal with such a past, which ends with `last`, is right, for a sequence among those of `common`.
    pub fn chance(&self, common: &CommonOdds, last: TokenId, past: usize) -> f64 {
        let prior = common.lengths.of(past).share(0.5);
        f64::from(self.of(past).and(common.after(last, past)).share(prior))
    }
}

/// Those of all sequences.
#[derive(Debug)]
pub(crate) struct CommonOdds {
    lengths: Odds,
    tokens: Box<[Tally]>,
}

impl Default for CommonOdds {
    fn default() -> Self {
        Self { lengths: Odds::default(), tokens: vec![Tally::default(); TOKEN_SLOTS].into() }
    }
}

fn slot(last: TokenId, past: usize) -> usize {
    // Fibonacci hashing: the upper bits of a product with 2^64 over the golden ratio.
    let key = u64::from(last.0) * CLASSES as u64 + class(past) as u64;
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TOKEN_SLOTS.trailing_zeros())) as usize
}

impl CommonOdds {
    fn after(&self, last: TokenId, past: usize) -> Tally {
        self.tokens.get(slot(last, past)).copied().unwrap_or_default()
    }

    /// Notes a proposal of any sequence.
    pub fn note(&mut self, last: TokenId, past: usize, was_right: bool) {
        self.lengths.note_within(past, was_right, COMMON_MEMORY);
        if let Some(tally) = self.tokens.get_mut(slot(last, past)) {
            tally.note(was_right, TOKEN_MEMORY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TokenId = TokenId(7);
    const B: TokenId = TokenId(8);

    #[test]
    fn a_sequence_starts_as_the_others_and_learns_its_own() {
        let (mut common, mut own) = (CommonOdds::default(), Odds::default());
        assert!((own.chance(&common, A, 2) - 0.5).abs() < 1e-6);
        (0..200).for_each(|i| common.note(TokenId(i), 2, true));
        assert!(own.chance(&common, A, 2) > 0.9 && (own.chance(&common, A, 20) - 0.5).abs() < 1e-6);
        (0..20).for_each(|_| own.note(2, false));
        assert!(own.chance(&common, A, 2) < 0.3, "its own count more");
        // What was long ago is forgotten.
        (0..200).for_each(|_| own.note(2, true));
        assert!(own.chance(&common, A, 2) > 0.9);
    }

    #[test]
    fn where_others_copied_it_copies_and_where_not_it_does_not() {
        let (mut common, mut own) = (CommonOdds::default(), Odds::default());
        for _ in 0..100 {
            common.note(A, 1, true);
            common.note(B, 1, false);
        }
        assert!(own.chance(&common, A, 1) > 0.9 && own.chance(&common, B, 1) < 0.1);
        assert!((own.chance(&common, A, 9) - 0.5).abs() < 1e-6, "another length is another matter");
        (0..6).for_each(|_| own.note(1, false));
        assert!(own.chance(&common, A, 1) > 0.6, "a few of its own do not undo it");
        (0..48).for_each(|_| own.note(1, false));
        assert!(own.chance(&common, A, 1) < 0.5, "many do");
    }
}
