//! ROUGE (Lin, 2004), as Python's `rouge-score` computes it: F-measures over words, which are runs of `a` to `z` and digits
//! in the text's small letters.

use std::collections::HashMap;

use super::porter::stem;
use super::similarity::longest_common_subsequence;

/// More words of a text are not compared.
pub const MAX_ROUGE_WORDS: usize = 100_000;
/// Cells of all tables that `rougeLsum` fills; a pair of texts that needs more has no such measure.
const MAX_CELLS: usize = 50_000_000;

/// F-measures of two texts, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rouge {
    /// Words.
    pub rouge_1: f64,
    /// Pairs of words next to each other.
    pub rouge_2: f64,
    /// Longest common subsequence of words.
    pub rouge_l: f64,
    /// The same line by line, joined over the lines of the right answer; `None` where that would take too long.
    pub rouge_l_sum: Option<f64>,
}

/// ROUGE of an answer. With `stems` words of more than three letters are compared by their stems. Of a text with more than
/// 100,000 words those are compared.
pub fn rouge(gold: &str, answer: &str, stems: bool) -> Rouge {
    let mut ids = Ids { ids: HashMap::new(), stems };
    let (gold_lines, answer_lines) = (ids.lines(gold), ids.lines(answer));
    let (gold, answer) = (gold_lines.concat(), answer_lines.concat());
    let lcs = longest_common_subsequence(&gold, &answer);
    Rouge {
        rouge_1: ngrams(&gold, &answer, 1),
        rouge_2: ngrams(&gold, &answer, 2),
        rouge_l: f_measure(lcs, gold.len(), answer.len()),
        rouge_l_sum: lines_in_common(&gold_lines, &answer_lines)
            .map(|hits| f_measure(hits, gold.len(), answer.len())),
    }
}

/// Words as numbers: equal ones are equal.
struct Ids {
    ids: HashMap<String, u32>,
    stems: bool,
}

impl Ids {
    /// The words of each line. A line break parts words, so that all lines together have the words of the text.
    fn lines(&mut self, text: &str) -> Vec<Vec<u32>> {
        let text = text.to_lowercase();
        let mut left = MAX_ROUGE_WORDS;
        let mut lines = Vec::new();
        for line in text.split('\n').filter(|line| !line.is_empty()) {
            let words = line.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
            let words: Vec<u32> =
                words.filter(|word| !word.is_empty()).take(left).map(|word| self.id(word)).collect();
            left -= words.len();
            lines.push(words);
            if left == 0 {
                break;
            }
        }
        lines
    }

    fn id(&mut self, word: &str) -> u32 {
        let word = if self.stems && word.len() > 3 { stem(word) } else { word.to_owned() };
        let next = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        *self.ids.entry(word).or_insert(next)
    }
}

fn f_measure(hits: usize, num_gold: usize, num_answer: usize) -> f64 {
    let (precision, recall) = (hits as f64 / num_answer.max(1) as f64, hits as f64 / num_gold.max(1) as f64);
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

fn ngrams(gold: &[u32], answer: &[u32], n: usize) -> f64 {
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for gram in gold.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let mut hits = 0;
    for gram in answer.windows(n) {
        if let Some(left) = counts.get_mut(gram).filter(|left| **left > 0) {
            *left -= 1;
            hits += 1;
        }
    }
    let num = |words: &[u32]| (words.len() + 1).saturating_sub(n);
    f_measure(hits, num(gold), num(answer))
}

/// Words of the gold lines that are on a longest common subsequence with some line of the answer, each as often at most as
/// both texts have it.
fn lines_in_common(gold: &[Vec<u32>], answer: &[Vec<u32>]) -> Option<usize> {
    let total = |lines: &[Vec<u32>]| lines.iter().map(|line| line.len() + 1).sum::<usize>();
    if total(gold).checked_mul(total(answer)).is_none_or(|cells| cells > MAX_CELLS) {
        return None;
    }
    let counts = |lines: &[Vec<u32>]| {
        let mut counts: HashMap<u32, usize> = HashMap::new();
        lines.iter().flatten().for_each(|word| *counts.entry(*word).or_default() += 1);
        counts
    };
    let (mut in_gold, mut in_answer) = (counts(gold), counts(answer));
    let mut hits = 0;
    for line in gold {
        let mut is_hit = vec![false; line.len()];
        answer.iter().for_each(|other| mark_common(line, other, &mut is_hit));
        for (word, _) in line.iter().zip(is_hit).filter(|(_, is)| *is) {
            if let (Some(a @ 1..), Some(b @ 1..)) = (in_gold.get_mut(word), in_answer.get_mut(word)) {
                *a -= 1;
                *b -= 1;
                hits += 1;
            }
        }
    }
    Some(hits)
}

/// Marks the words of `a` on a longest common subsequence with `b`: of several the one that `rouge-score` takes, which from
/// the ends goes back in `b` only where more is in common before it.
fn mark_common(a: &[u32], b: &[u32], is_hit: &mut [bool]) {
    let width = b.len() + 1;
    let mut table = vec![0u32; (a.len() + 1) * width];
    let at = |table: &[u32], i: usize, j: usize| table.get(i * width + j).copied().unwrap_or(0);
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            let value =
                if x == y { at(&table, i, j) + 1 } else { at(&table, i, j + 1).max(at(&table, i + 1, j)) };
            if let Some(cell) = table.get_mut((i + 1) * width + j + 1) {
                *cell = value;
            }
        }
    }
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        if a.get(i - 1) == b.get(j - 1) {
            if let Some(hit) = is_hit.get_mut(i - 1) {
                *hit = true;
            }
            (i, j) = (i - 1, j - 1);
        } else if at(&table, i, j - 1) > at(&table, i - 1, j) {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn measures_by_hand() {
        // the cat sat / the cat lay: 2 of 3 words, 1 of 2 pairs.
        let score = rouge("The cat sat.", "the CAT lay", false);
        assert!((score.rouge_1 - 2.0 / 3.0).abs() < 1e-12 && (score.rouge_2 - 0.5).abs() < 1e-12);
        assert!((score.rouge_l - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(rouge("running dogs", "runs dog", false).rouge_1, 0.0);
        // "dogs" has over three letters, "dog" is left alone.
        assert_eq!(rouge("running dogs", "runs dog", true).rouge_1, 1.0);
        assert_eq!(
            rouge("", "", false),
            Rouge { rouge_1: 0.0, rouge_2: 0.0, rouge_l: 0.0, rouge_l_sum: Some(0.0) }
        );
    }

    #[test]
    fn long_texts_are_bounded_in_time() {
        let started = Instant::now();
        let text = |step: u64| -> String {
            (0..150_000u64).map(|i| format!("w{} ", (i * step + i / 7) % 50_000)).collect()
        };
        let (a, b) = (text(7), text(11));
        let score = rouge(&a, &b, true);
        assert!(score.rouge_l > 0.0 && score.rouge_l_sum.is_none());
        // Few words, each everywhere.
        let same = rouge(&"a b ".repeat(60_000), &"b a ".repeat(60_000), false);
        assert!(same.rouge_l > 0.99);
        // A machine that does much else is slow; what is quadratic in memory or time would not end at all.
        assert!(started.elapsed() < Duration::from_secs(600), "{:?}", started.elapsed());
    }
}
