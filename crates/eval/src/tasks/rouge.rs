//! `rouge`: how much of a summary's wording is that of a right one.

use super::{Compare, Score, Task, Way, best_of_each, question_with_text_golds};
use crate::items::{Fields, Item};
use crate::measures::rouge;
use crate::settings::TaskSettings;

pub(super) struct RougeTask;

const ROUGE_L: &str = "rougeL";

impl Task for RougeTask {
    fn name(&self) -> &'static str {
        "rouge"
    }

    fn purpose(&self) -> &'static str {
        "summaries, by the words that they share with right ones"
    }

    fn about(&self) -> &'static str {
        "F-measures as Python's rouge-score computes them. rouge1: words; rouge2: pairs of words; rougeL: the longest common \
         subsequence of words; rougeLsum: the same line by line, missing for texts of several thousand words. Of a text \
         with more than 100,000 words those are compared"
    }

    fn main_measure(&self) -> &'static str {
        ROUGE_L
    }

    fn read(&self, fields: &Fields, _: &TaskSettings) -> Result<Vec<Item>, String> {
        question_with_text_golds(fields)
    }

    fn way(&self) -> Way<'_> {
        Way::Answers(self)
    }
}

impl Compare for RougeTask {
    fn compare(&self, item: &Item, answer: &str, settings: &TaskSettings) -> Score {
        best_of_each(item, |gold| {
            let found = rouge(gold, answer, settings.stem);
            let mut score =
                Score::of([("rouge1", found.rouge_1), ("rouge2", found.rouge_2), (ROUGE_L, found.rouge_l)]);
            score.0.extend(found.rouge_l_sum.map(|value| ("rougeLsum".to_owned(), value)));
            score
        })
    }
}
