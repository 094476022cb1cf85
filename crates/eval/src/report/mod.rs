//! What an evaluation found. JSON for programs is this, key by key; the table for people is in `text`, the web page in `html`.

mod groups;
mod prices;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

pub use groups::{Cell, CellResult, Grouping, Range, Worst};
pub use prices::{Cost, Price, parse_price};
pub(crate) use text::{difference, rounded};

use crate::items::{Item, LineProblem};
use crate::mistakes::Mistake;
use crate::statistics::{differences, summarised};
use crate::tasks::{Metric, Score, Scored, Task, Way};

/// More of a question is not in a report.
const MAX_QUESTION_CHARS: usize = 20_000;

/// The result of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of this crate.
    pub version: String,
    /// Name of the task.
    pub task: String,
    /// What its measures are.
    pub about: String,
    /// The measure that stands for the others.
    pub main_measure: String,
    /// Measures of which less is better.
    pub less_is_better: Vec<String>,
    /// What the caller calls the base model.
    pub model: Option<String>,
    /// Where the items came from, if the caller says so.
    pub data: Option<String>,
    /// The most tokens of an answer; `None` where nothing was generated.
    pub max_tokens: Option<usize>,
    /// Wall time of the run.
    pub seconds: f64,
    /// Lines of the data that were no items.
    pub problems: Vec<LineProblem>,
    /// What the most frequent answer reaches, where the task has one.
    pub baseline: Option<BaselineResult>,
    /// One result for each target, in their order. The first is what others are compared with.
    pub results: Vec<TargetResult>,
    /// What each other target has more than the first, on the items that both answered.
    pub differences: Vec<Difference>,
    /// Measures by numbers of the items.
    pub groups: Vec<Grouping>,
    /// The items, in the order of the outcomes.
    pub items: Vec<ItemShown>,
}

/// An item as a report has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ItemShown {
    /// Line of the file.
    pub line: usize,
    /// The question, its messages one after the other. Of a long one the beginning and the end, with `[…]` between them.
    pub question: String,
    /// Characters of the whole question.
    pub question_chars: usize,
    /// The right answers.
    pub golds: Vec<String>,
    /// What a multiple choice is between.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// The item's numbers.
    pub numbers: BTreeMap<String, f64>,
}

impl ItemShown {
    fn of(item: &Item) -> Self {
        let question = item.question();
        Self {
            line: item.line,
            question_chars: question.chars().count(),
            question: shortened(question, MAX_QUESTION_CHARS),
            golds: item.golds.clone(),
            choices: item.choices.clone(),
            numbers: item.numbers.iter().cloned().collect(),
        }
    }
}

/// A text, or the beginning and the end of a long one.
pub(crate) fn shortened(text: String, max_chars: usize) -> String {
    const GAP: &str = "\n[…]\n";
    let num = text.chars().count();
    if num <= max_chars {
        return text;
    }
    let (head, tail) = (max_chars - max_chars / 3, max_chars / 3);
    let at = |nth: usize| text.char_indices().nth(nth).map_or(text.len(), |(at, _)| at);
    let (head, tail) = (text.get(..at(head)), text.get(at(num - tail)..));
    [head.unwrap_or_default(), GAP, tail.unwrap_or_default()].concat()
}

/// What one target has more than the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The target.
    pub name: String,
    /// The one that it is compared with.
    pub base: String,
    /// Items that both answered.
    pub num_items: usize,
    /// The differences. Standard errors are of the differences, item by item.
    pub metrics: Vec<Metric>,
}

/// How often a mistake was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MistakeShare {
    /// Which.
    pub mistake: Mistake,
    /// Answers with it.
    pub num: usize,
    /// Their share of the scored answers.
    pub share: f64,
}

/// What always giving the most frequent answer reaches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BaselineResult {
    /// Whether the frequencies are those of the training set; else they are those of the items themselves.
    pub from_train: bool,
    /// That answer.
    pub answer: String,
    /// Items.
    pub num_items: usize,
    /// Its measures.
    pub metrics: Vec<Metric>,
}

/// What one target reached.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TargetResult {
    /// Its name.
    pub name: String,
    /// Items in the means.
    pub num_scored: usize,
    /// Answers that were cut off at the limit of tokens.
    pub num_cut: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of prompts that had been computed for others already, as far as they are told.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// From the first question to the last answer. The next target's first questions are asked beside the last answers.
    pub seconds: f64,
    /// What it cost, where there is a price.
    pub cost: Option<Cost>,
    /// What is wrong with answers, where the task's right answers are texts.
    pub mistakes: Vec<MistakeShare>,
    /// The task's measures.
    pub metrics: Vec<Metric>,
    /// Items that could not be answered.
    pub failed: Vec<LineProblem>,
    /// What came of each item, in the order of the report's items.
    pub outcomes: Vec<Outcome>,
}

impl TargetResult {
    /// The value of one measure.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value)
    }
}

/// What came of one item.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There is an answer.
    Answered(Answer),
    /// There is none.
    Failed {
        /// Why.
        message: String,
    },
}

impl Outcome {
    pub(crate) fn not_asked() -> Self {
        Self::Failed { message: "was not asked".to_owned() }
    }

    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::Failed { .. } => None,
        }
    }
}

/// One answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Answer {
    /// Its text; of a very long one the beginning and the end. For a multiple choice the likeliest choice.
    pub text: String,
    /// What it is worth.
    pub score: Score,
    /// Log-probability of each choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub likelihoods: Vec<f64>,
    /// Whether it was cut off at the limit of tokens.
    pub is_cut: bool,
    /// What is wrong with it.
    pub mistakes: Vec<Mistake>,
    /// Tokens of the prompt; where likelihoods were asked for, of all texts.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that had been computed for others already, as far as they are told.
    pub cached_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// From the question to the answer, beside others.
    pub seconds: f64,
}

/// What came of a target's questions.
pub(crate) struct Asked {
    pub name: String,
    pub outcomes: Vec<Outcome>,
    pub seconds: f64,
}

/// What a report says of the run.
pub(crate) struct Run<'a> {
    pub max_tokens: usize,
    pub seconds: f64,
    pub group_by: &'a [Vec<String>],
}

impl Report {
    pub(crate) fn of(task: &dyn Task, items: &[Item], asked: Vec<Asked>, run: &Run<'_>) -> Self {
        let less_is_better = task.less_is_better().iter().map(|name| (*name).to_owned()).collect();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            task: task.name().to_owned(),
            about: task.about().to_owned(),
            main_measure: task.main_measure().to_owned(),
            less_is_better,
            model: None,
            data: None,
            max_tokens: matches!(task.way(), Way::Answers(_)).then_some(run.max_tokens),
            seconds: run.seconds,
            problems: Vec::new(),
            baseline: None,
            differences: all_differences(task, items, &asked),
            groups: groups::groups(task, items, &asked, run.group_by),
            results: asked.into_iter().map(|asked| TargetResult::of(task, items, asked)).collect(),
            items: items.iter().map(ItemShown::of).collect(),
        }
    }

    /// Whether less of a measure is better.
    pub fn is_less_better(&self, measure: &str) -> bool {
        self.less_is_better.iter().any(|own| own == measure)
    }
}

/// The items that have an answer.
pub(crate) fn scored<'a>(items: &'a [Item], outcomes: &'a [Outcome]) -> Vec<Scored<'a>> {
    let pairs = items.iter().zip(outcomes);
    pairs.filter_map(|(item, outcome)| Some(of_answer(item, outcome.answer()?))).collect()
}

fn of_answer<'a>(item: &'a Item, answer: &'a Answer) -> Scored<'a> {
    Scored { item, answer: &answer.text, score: &answer.score }
}

fn all_differences(task: &dyn Task, items: &[Item], asked: &[Asked]) -> Vec<Difference> {
    let Some((base, others)) = asked.split_first() else { return Vec::new() };
    let of = |other: &Asked| {
        let pairs = items.iter().zip(base.outcomes.iter().zip(&other.outcomes));
        let both = pairs.filter_map(|(item, (old, new))| {
            Some((of_answer(item, old.answer()?), of_answer(item, new.answer()?)))
        });
        let (old, new): (Vec<_>, Vec<_>) = both.unzip();
        Difference {
            name: other.name.clone(),
            base: base.name.clone(),
            num_items: old.len(),
            metrics: differences(task, &old, &new),
        }
    };
    others.iter().map(of).collect()
}

impl TargetResult {
    fn of(task: &dyn Task, items: &[Item], asked: Asked) -> Self {
        let Asked { name, outcomes, seconds } = asked;
        let answers: Vec<&Answer> = outcomes.iter().filter_map(Outcome::answer).collect();
        let has_text_golds = matches!(task.way(), Way::Answers(compare) if compare.has_text_golds());
        let share = |mistake: Mistake| {
            let num = answers.iter().filter(|answer| answer.mistakes.contains(&mistake)).count();
            MistakeShare { mistake, num, share: num as f64 / answers.len().max(1) as f64 }
        };
        // What an endpoint counts may be anything.
        let sum =
            |of: fn(&Answer) -> u64| answers.iter().map(|answer| of(answer)).fold(0, u64::saturating_add);
        let failed = items.iter().zip(&outcomes).filter_map(|(item, outcome)| match outcome {
            Outcome::Failed { message } => Some(LineProblem { line: item.line, message: message.clone() }),
            Outcome::Answered(_) => None,
        });
        Self {
            name,
            num_scored: answers.len(),
            num_cut: answers.iter().filter(|answer| answer.is_cut).count(),
            prompt_tokens: sum(|answer| answer.prompt_tokens),
            cached_tokens: sum(|answer| answer.cached_tokens),
            completion_tokens: sum(|answer| answer.completion_tokens),
            seconds,
            cost: None,
            mistakes: Mistake::ALL.into_iter().filter(|_| has_text_golds).map(share).collect(),
            metrics: summarised(task, &scored(items, &outcomes)),
            failed: failed.collect(),
            outcomes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_keep_their_ends_and_are_cut_between_characters() {
        assert_eq!(shortened("äöü".to_owned(), 3), "äöü");
        assert_eq!(shortened("äöüxyz漢".to_owned(), 3), "äö\n[…]\n漢");
    }
}
