//! How often what a text's past proposes is what comes: by how long the past is, of one sequence, with all of them for a start.
//!
//! Every sampled token is held against the look-up, drafted or not. So a sequence that drafts nothing learns too.

/// Lengths of a common past that are told apart: 1, 2, 3, up to 5, 8, 15, and beyond.
const CLASSES: usize = 7;
/// Observations of one class after which the older ones count half.
const MEMORY: f32 = 48.0;
/// Of all sequences together.
const COMMON_MEMORY: f32 = 512.0;
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

/// Right and all proposals by length of their past.
#[derive(Clone, Debug, Default)]
pub(crate) struct Odds {
    right: [f32; CLASSES],
    all: [f32; CLASSES],
}

impl Odds {
    fn note_within(&mut self, past: usize, was_right: bool, memory: f32) {
        let class = class(past);
        if let (Some(right), Some(all)) = (self.right.get_mut(class), self.all.get_mut(class)) {
            *right += f32::from(u8::from(was_right));
            *all += 1.0;
            if *all > memory {
                *right /= 2.0;
                *all /= 2.0;
            }
        }
    }

    /// Notes a proposal of one sequence.
    pub fn note(&mut self, past: usize, was_right: bool) {
        self.note_within(past, was_right, MEMORY);
    }

    /// Notes a proposal of any sequence.
    pub fn note_common(&mut self, past: usize, was_right: bool) {
        self.note_within(past, was_right, COMMON_MEMORY);
    }

    fn share(&self, past: usize, prior: f32) -> f32 {
        let class = class(past);
        let (right, all) = (self.right.get(class), self.all.get(class));
        (right.unwrap_or(&0.0) + PRIOR * prior) / (all.unwrap_or(&0.0) + PRIOR)
    }

    /// The chance that a proposal with such a past is right, for a sequence among those of `common`.
    pub fn chance(&self, common: &Odds, past: usize) -> f64 {
        f64::from(self.share(past, common.share(past, 0.5)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_starts_as_the_others_and_learns_its_own() {
        let (mut common, mut own) = (Odds::default(), Odds::default());
        assert!((own.chance(&common, 2) - 0.5).abs() < 1e-6);
        (0..200).for_each(|_| common.note_common(2, true));
        assert!(own.chance(&common, 2) > 0.95 && (own.chance(&common, 20) - 0.5).abs() < 1e-6);
        (0..20).for_each(|_| own.note(2, false));
        assert!(own.chance(&common, 2) < 0.2, "its own count more");
        // What was long ago is forgotten.
        (0..200).for_each(|_| own.note(2, true));
        assert!(own.chance(&common, 2) > 0.9);
    }
}
