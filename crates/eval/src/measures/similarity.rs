//! How alike two sequences are.

use std::collections::HashMap;
use std::hash::Hash;

/// More characters of a text are not compared: the time is their product.
const MAX_CHARS: usize = 200_000;

/// The normalised Indel similarity: `2 * LCS / (len a + len b)` over characters, `1` for two empty texts.
///
/// It is what `Levenshtein.ratio` of Python gives (and `rapidfuzz.distance.Indel.normalized_similarity`), and not one minus
/// the edit distance over the length: a substitution counts as a deletion and an insertion, so that kitten and sitting are
/// alike by 8/13 = 0.615. Of longer texts the first 200,000 characters are compared.
pub fn indel_ratio(a: &str, b: &str) -> f64 {
    let chars = |text: &str| text.chars().take(MAX_CHARS).collect::<Vec<_>>();
    let (a, b) = (chars(a), chars(b));
    match a.len() + b.len() {
        0 => 1.0,
        total => 2.0 * longest_common_subsequence(&a, &b) as f64 / total as f64,
    }
}

/// Where a symbol is in the pattern.
enum Places {
    /// Its positions, ascending: for symbols that are rare.
    Few(Vec<usize>),
    /// A bit for each position.
    Many(Vec<u64>),
}

/// Length of the longest common subsequence, 64 symbols of the shorter at a time (Hyyrö, "Bit-parallel LCS-length
/// computation revisited", 2004): zero bits of the row are places at which the subsequence grows. Where a symbol is rare,
/// only the words are looked at that it is in. Memory is linear, whatever the symbols.
pub(crate) fn longest_common_subsequence<T: Eq + Hash>(a: &[T], b: &[T]) -> usize {
    let (pattern, text) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let num_words = pattern.len().div_ceil(64);
    let mut positions: HashMap<&T, Vec<usize>> = HashMap::new();
    for (at, symbol) in pattern.iter().enumerate() {
        positions.entry(symbol).or_default().push(at);
    }
    let places: HashMap<&T, Places> = positions
        .into_iter()
        .map(|(symbol, own)| {
            // A mask takes the memory of as many positions at most as it stands for.
            if own.len() < num_words {
                return (symbol, Places::Few(own));
            }
            let mut mask = vec![0u64; num_words];
            for at in own {
                if let Some(word) = mask.get_mut(at / 64) {
                    *word |= 1 << (at % 64);
                }
            }
            (symbol, Places::Many(mask))
        })
        .collect();
    let mut row = vec![u64::MAX; num_words];
    for symbol in text {
        match places.get(symbol) {
            None => {}
            Some(Places::Many(mask)) => {
                let mut carry = false;
                for (word, matches) in row.iter_mut().zip(mask) {
                    carry = grow(word, *matches, carry);
                }
            }
            Some(Places::Few(own)) => grow_few(&mut row, own),
        }
    }
    // Bits beyond the pattern have no place in any mask and stay set.
    row.iter().map(|word| word.count_zeros() as usize).sum()
}

/// Grows the row at a few places. Words without a place change only by a carry.
fn grow_few(row: &mut [u64], places: &[usize]) {
    let mut places = places.iter().copied().peekable();
    let mut carry_to = None;
    loop {
        let word_idx = match (carry_to, places.peek().map(|at| at / 64)) {
            (Some(carried), _) => carried,
            (None, Some(next)) => next,
            (None, None) => return,
        };
        let mut matches = 0;
        while let Some(at) = places.next_if(|at| at / 64 == word_idx) {
            matches |= 1 << (at % 64);
        }
        let Some(word) = row.get_mut(word_idx) else { return };
        carry_to = grow(word, matches, carry_to.is_some()).then_some(word_idx + 1);
    }
}

/// One word of the row; says whether it carries into the next.
fn grow(word: &mut u64, matches: u64, carry: bool) -> bool {
    let matches = *word & matches;
    let (sum, first) = word.overflowing_add(matches);
    let (sum, second) = sum.overflowing_add(u64::from(carry));
    *word = sum | (*word - matches);
    first || second
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
        // Symbols that are rare in long patterns, and carries over many words.
        for round in 0..20u64 {
            let mut text = |letters: u64| -> String {
                (0..900).map(|_| char::from_u32(0x4e00 + next(letters) as u32).unwrap()).collect()
            };
            let (a, b) = (text(1 + 40 * round), text(1 + 40 * round));
            assert!((indel_ratio(&a, &b) - plain(&a, &b)).abs() < 1e-12, "{round}");
        }
        let (a, b) = (format!("x{}", "a".repeat(1000)), format!("{}x", "a".repeat(900)));
        assert_eq!(indel_ratio(&a, &b), plain(&a, &b));
        let (a, b) = ("ab".repeat(200), "ba".repeat(190));
        assert_eq!(indel_ratio(&a, &b), plain(&a, &b));
    }
}
