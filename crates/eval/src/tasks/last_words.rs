//! `last-words`: the end of a text, word for word.
//!
//! The measures are those with which the task was published: `ratio` is Python's `Levenshtein.ratio` of the answer as it
//! came, and the length difference counts words that white space parts.

use super::{Score, Task};
use crate::similarity::indel_ratio;

pub(super) struct LastWords;

const RATIO: &str = "ratio";
const LENGTH_DIFFERENCE: &str = "length_difference_words";
const EXACT: &str = "exact";

impl Task for LastWords {
    fn name(&self) -> &'static str {
        "last-words"
    }

    fn about(&self) -> &'static str {
        "ratio: 2 * LCS / (length of gold + length of answer) over characters, as Python's Levenshtein.ratio; \
         length_difference_words: words that the answer has too many or too few, smaller is better; exact: the answer is \
         the gold, apart from white space around it"
    }

    fn check_gold(&self, gold: &str) -> Result<(), String> {
        if gold.trim().is_empty() { Err("the gold answer is empty".to_owned()) } else { Ok(()) }
    }

    fn score(&self, gold: &str, answer: &str) -> Score {
        let num_words = |text: &str| text.split_whitespace().count();
        Score(vec![
            (RATIO.to_owned(), indel_ratio(gold, answer)),
            (LENGTH_DIFFERENCE.to_owned(), num_words(gold).abs_diff(num_words(answer)) as f64),
            (EXACT.to_owned(), f64::from(u8::from(gold.trim() == answer.trim()))),
        ])
    }

    /// Every text ends differently.
    fn majority_answer(&self, _golds: &[&str]) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_and_too_many_words_differ_alike() {
        let score = |answer: &str| LastWords.score("creating the United Nations .", answer);
        assert_eq!(score("the United Nations .").get(LENGTH_DIFFERENCE), Some(1.0));
        assert_eq!(score("work for creating  the\nUnited Nations .").get(LENGTH_DIFFERENCE), Some(2.0));
        assert_eq!(score("").0, [(RATIO.into(), 0.0), (LENGTH_DIFFERENCE.into(), 5.0), (EXACT.into(), 0.0)]);
        let right = score(" creating the United Nations .\n");
        assert_eq!((right.get(EXACT), right.get(LENGTH_DIFFERENCE)), (Some(1.0), Some(0.0)));
        // As it was published: the white space counts in the ratio.
        assert!(right.get(RATIO).unwrap() < 1.0);
    }
}
