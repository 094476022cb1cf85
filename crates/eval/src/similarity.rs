//! How alike two texts are.

use std::collections::HashMap;

/// The normalised Indel similarity: `2 * LCS / (len a + len b)` over characters, `1` for two empty texts.
///
/// It is what `Levenshtein.ratio` of Python gives (and `rapidfuzz.distance.Indel.normalized_similarity`), and not one minus
/// the edit distance over the length: a substitution counts as a deletion and an insertion, so that kitten and sitting are
/// alike by 8/13 = 0.615.
pub fn indel_ratio(a: &str, b: &str) -> f64 {
    let (mut a, mut b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let total = a.len() + b.len();
    if total == 0 {
        return 1.0;
    }
    if a.len() > b.len() {
        std::mem::swap(&mut a, &mut b);
    }
    2.0 * longest_common_subsequence(&a, &b) as f64 / total as f64
}

/// Its length, 64 characters of `pattern` at a time (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004): zero
/// bits of the row are places at which the subsequence grows.
fn longest_common_subsequence(pattern: &[char], text: &[char]) -> usize {
    let num_words = pattern.len().div_ceil(64);
    let mut places: HashMap<char, Vec<u64>> = HashMap::new();
    for (at, character) in pattern.iter().enumerate() {
        let words = places.entry(*character).or_insert_with(|| vec![0; num_words]);
        if let Some(word) = words.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }
    let mut row = vec![u64::MAX; num_words];
    for character in text {
        let Some(places) = places.get(character) else { continue };
        let mut carry = false;
        for (word, place) in row.iter_mut().zip(places) {
            let matches = *word & place;
            let (sum, first) = word.overflowing_add(matches);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first || second;
            *word = sum | (*word - matches);
        }
    }
    // Bits beyond the pattern have no place in any mask and stay set.
    row.iter().map(|word| word.count_zeros() as usize).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The textbook's table.
    fn plain(a: &str, b: &str) -> f64 {
        let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
        let mut table = vec![vec![0usize; b.len() + 1]; a.len() + 1];
        for i in 0..a.len() {
            for j in 0..b.len() {
                table[i + 1][j + 1] =
                    if a[i] == b[j] { table[i][j] + 1 } else { table[i][j + 1].max(table[i + 1][j]) };
            }
        }
        if a.len() + b.len() == 0 {
            1.0
        } else {
            2.0 * table[a.len()][b.len()] as f64 / (a.len() + b.len()) as f64
        }
    }

    #[test]
    fn published_values() {
        assert!((indel_ratio("kitten", "sitting") - 8.0 / 13.0).abs() < 1e-12);
        assert!((indel_ratio("lewenstein", "levenshtein") - 0.857_142_857_142_857_2).abs() < 1e-12);
        assert_eq!(indel_ratio("", ""), 1.0);
        assert_eq!(indel_ratio("", "a"), 0.0);
        assert_eq!(indel_ratio("größe", "größe"), 1.0);
    }

    #[test]
    fn the_fast_way_equals_the_table() {
        let mut state = 1u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..300 {
            let letters = 2 + round % 6;
            let mut text = || -> String {
                (0..next(200))
                    .map(|_| ['a', 'b', 'ß', '漢', ' ', 'z', '🙂', 'c'][next(letters) as usize])
                    .collect()
            };
            let (a, b) = (text(), text());
            assert!((indel_ratio(&a, &b) - plain(&a, &b)).abs() < 1e-12, "{a:?} {b:?}");
        }
        // Carries run over words only in long patterns.
        let (a, b) = ("ab".repeat(200), "ba".repeat(190));
        assert_eq!(indel_ratio(&a, &b), plain(&a, &b));
    }
}
