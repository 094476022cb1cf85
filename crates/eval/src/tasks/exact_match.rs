//! `exact-match`: the answer is a right one, as it is and without what does not matter.

use super::{Compare, Score, Task, Way, best_of_each, number, question_with_text_golds};
use crate::items::{Fields, Item};
use crate::measures::normalized;
use crate::settings::{Ignored, TaskSettings};

pub(super) struct ExactMatch;

const EXACT: &str = "exact";
const NORMALIZED: &str = "normalized";

impl Task for ExactMatch {
    fn name(&self) -> &'static str {
        "exact-match"
    }

    fn purpose(&self) -> &'static str {
        "short answers that are right or wrong"
    }

    fn about(&self) -> &'static str {
        "exact: the answer is a right one, apart from white space around it; normalized: it is one without what is ignored \
         (case, ASCII punctuation, articles and how much white space there is, as in SQuAD's evaluation, unless told \
         otherwise)"
    }

    fn main_measure(&self) -> &'static str {
        NORMALIZED
    }

    fn read(&self, fields: &Fields, _: &TaskSettings) -> Result<Vec<Item>, String> {
        question_with_text_golds(fields)
    }

    fn way(&self) -> Way<'_> {
        Way::Answers(self)
    }

    fn groups(&self) -> &'static [&'static [&'static str]] {
        &[&["length", "depth"], &["length"], &["depth"]]
    }
}

impl Compare for ExactMatch {
    fn compare(&self, item: &Item, answer: &str, settings: &TaskSettings) -> Score {
        let exact = normalized(answer, Ignored::NOTHING);
        let answer = normalized(answer, settings.ignored);
        best_of_each(item, |gold| {
            Score::of([
                (EXACT, number(normalized(gold, Ignored::NOTHING) == exact)),
                (NORMALIZED, number(normalized(gold, settings.ignored) == answer)),
            ])
        })
    }

    fn majority_answer(&self, golds: &[&str]) -> Option<String> {
        let mut counts: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
        golds.iter().for_each(|gold| *counts.entry(gold).or_default() += 1);
        let most = counts.values().copied().max().filter(|most| *most > 1)?;
        // The first of equals, so that the order of the file decides and not that of a hash.
        golds.iter().find(|gold| counts.get(**gold) == Some(&most)).map(|gold| (*gold).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_right_answer_counts() {
        let item = Item::new(1, "", vec!["The Beatles".to_owned(), "1,000".to_owned()]);
        let score = |answer: &str| {
            let score = ExactMatch.compare(&item, answer, &TaskSettings::default());
            (score.get(EXACT).unwrap(), score.get(NORMALIZED).unwrap())
        };
        assert_eq!(score("The Beatles\n"), (1.0, 1.0));
        assert_eq!(score("beatles!"), (0.0, 1.0));
        assert_eq!(score("1000"), (0.0, 1.0));
        assert_eq!(score("Beatle"), (0.0, 0.0));
        let strict = TaskSettings { ignored: Ignored::NOTHING, ..TaskSettings::default() };
        assert_eq!(ExactMatch.compare(&item, "beatles", &strict).get(NORMALIZED), Some(0.0));
        assert_eq!(ExactMatch.majority_answer(&["b", "a", "a", "b"]).as_deref(), Some("b"));
        assert_eq!(ExactMatch.majority_answer(&["a", "b"]), None);
    }
}
