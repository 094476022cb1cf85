//! `last-words`, also `repetition`: the end of a text, word for word.
//!
//! The measures are those with which the task was published: `ratio` is Python's `Levenshtein.ratio` of the answer as it
//! came, and the length difference counts words that white space parts.

use super::{Compare, Score, Task, Way, best_by, number, question_with_text_golds};
use crate::items::{Fields, Item};
use crate::measures::indel_ratio;
use crate::settings::TaskSettings;

pub(super) struct LastWords;

const RATIO: &str = "ratio";
const LENGTH_DIFFERENCE: &str = "length_difference_words";
const EXACT: &str = "exact";

impl Task for LastWords {
    fn name(&self) -> &'static str {
        "last-words"
    }

    fn other_names(&self) -> &'static [&'static str] {
        &["repetition"]
    }

    fn purpose(&self) -> &'static str {
        "the end of a text, word for word"
    }

    fn about(&self) -> &'static str {
        "ratio: 2 * LCS / (length of gold + length of answer) over characters, as Python's Levenshtein.ratio; \
         length_difference_words: words that the answer has too many or too few, smaller is better; exact: the answer is \
         the gold, apart from white space around it"
    }

    fn main_measure(&self) -> &'static str {
        RATIO
    }

    fn less_is_better(&self) -> &'static [&'static str] {
        &[LENGTH_DIFFERENCE]
    }

    fn read(&self, fields: &Fields, _: &TaskSettings) -> Result<Vec<Item>, String> {
        question_with_text_golds(fields)
    }

    fn way(&self) -> Way<'_> {
        Way::Answers(self)
    }

    fn groups(&self) -> &'static [&'static [&'static str]] {
        &[&["n"], &["tokens"], &["prompt_tokens"]]
    }
}

impl Compare for LastWords {
    fn compare(&self, item: &Item, answer: &str, _: &TaskSettings) -> Score {
        let num_words = |text: &str| text.split_whitespace().count();
        best_by(item, RATIO, |gold| {
            Score::of([
                (RATIO, indel_ratio(gold, answer)),
                (LENGTH_DIFFERENCE, num_words(gold).abs_diff(num_words(answer)) as f64),
                (EXACT, number(gold.trim() == answer.trim())),
            ])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_and_too_many_words_differ_alike() {
        let item = Item::new(1, "", vec!["creating the United Nations .".to_owned()]);
        let score = |answer: &str| LastWords.compare(&item, answer, &TaskSettings::default());
        assert_eq!(score("the United Nations .").get(LENGTH_DIFFERENCE), Some(1.0));
        assert_eq!(score("work for creating  the\nUnited Nations .").get(LENGTH_DIFFERENCE), Some(2.0));
        assert_eq!(score("").0, [(RATIO.into(), 0.0), (LENGTH_DIFFERENCE.into(), 5.0), (EXACT.into(), 0.0)]);
        let right = score(" creating the United Nations .\n");
        assert_eq!((right.get(EXACT), right.get(LENGTH_DIFFERENCE)), (Some(1.0), Some(0.0)));
        // As it was published: the white space counts in the ratio.
        assert!(right.get(RATIO).unwrap() < 1.0);
    }
}
