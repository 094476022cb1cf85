//! What is asked for, and what an answer is worth. A task is one file and one line of [`TASKS`].

mod choices;
mod exact_match;
mod last_words;
mod mqa;
mod perplexity;
mod record;
mod rouge;

use serde::Serialize;
use wardrobe_generator::AskError;

use crate::items::{Fields, Item};
use crate::settings::TaskSettings;
use crate::statistics::means;
use crate::weighing::Weighing;
pub(crate) use mqa::document;

/// All tasks.
pub const TASKS: [&dyn Task; 8] = [
    &record::RECORD,
    &record::NEEDLE,
    &last_words::LastWords,
    &exact_match::ExactMatch,
    &mqa::Mqa,
    &rouge::RougeTask,
    &choices::ChoicesTask,
    &perplexity::Perplexity,
];

/// The task of this name, or of this other name.
pub fn task(name: &str) -> Option<&'static dyn Task> {
    TASKS.into_iter().find(|task| task.name() == name || task.other_names().contains(&name))
}

/// What one answer is worth: measures by name, in the order in which they are shown. A measure that does not apply to an
/// item is missing; all others are finite.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Score(pub Vec<(String, f64)>);

impl Score {
    /// The value of one measure.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| *value)
    }

    fn of<const N: usize>(measures: [(&str, f64); N]) -> Self {
        Self(measures.map(|(name, value)| (name.to_owned(), value)).into())
    }
}

/// An item, what was answered, and its score.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// The item.
    pub item: &'a Item,
    /// The answer.
    pub answer: &'a str,
    /// What it is worth.
    pub score: &'a Score,
}

/// One measure over all items.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// Standard error of the value. Items of one line count as one observation.
    pub standard_error: Option<f64>,
    /// Items that it is over.
    pub num_items: usize,
}

/// How a task finds out what a model can do.
pub enum Way<'a> {
    /// The model answers, and the answer is compared with the right ones.
    Answers(&'a dyn Compare),
    /// The model tells how likely texts are.
    Likelihoods(&'a dyn Weigh),
}

/// A kind of question: how its items are read, how answers come to a score, and how scores are put together.
pub trait Task: Send + Sync {
    /// Its name on the command line and in reports.
    fn name(&self) -> &'static str;

    /// Other names that it answers to.
    fn other_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// What it is for, in a few words.
    fn purpose(&self) -> &'static str;

    /// What its measures are, in one paragraph.
    fn about(&self) -> &'static str;

    /// The measure that stands for the others where there is room for one. An item need not have it.
    fn main_measure(&self) -> &'static str;

    /// Measures of which less is better.
    fn less_is_better(&self) -> &'static [&'static str] {
        &[]
    }

    /// The items of a line: several where the same question is asked in several ways.
    ///
    /// # Errors
    /// What is wrong with it.
    fn read(&self, fields: &Fields, settings: &TaskSettings) -> Result<Vec<Item>, String>;

    /// How it finds out.
    fn way(&self) -> Way<'_>;

    /// By which numbers of items its measures are grouped: one number, or two for a map. `prompt_tokens`, the tokens of an
    /// item's prompt as the first target counts them, is one that all items have. Groups whose numbers no item has are left
    /// out.
    fn groups(&self) -> &'static [&'static [&'static str]] {
        &[]
    }

    /// The measures over all items: by default their means.
    fn summarise(&self, scored: &[Scored<'_>]) -> Vec<Metric> {
        means(scored)
    }

    /// What an answer is worth, where answers are compared.
    fn score(&self, item: &Item, answer: &str, settings: &TaskSettings) -> Option<Score> {
        match self.way() {
            Way::Answers(compare) => Some(compare.compare(item, answer, settings)),
            Way::Likelihoods(_) => None,
        }
    }
}

/// How answers are compared. It never fails: what cannot be read as an answer is worth nothing.
pub trait Compare: Send + Sync {
    /// What an answer is worth.
    fn compare(&self, item: &Item, answer: &str, settings: &TaskSettings) -> Score;

    /// The one answer that is right most often, field by field, if these are the right ones; `None` where no such answer
    /// makes sense.
    fn majority_answer(&self, _golds: &[&str]) -> Option<String> {
        None
    }

    /// Whether right answers are texts, so that an answer's length and words can be held against theirs.
    fn has_text_golds(&self) -> bool {
        true
    }
}

/// How likelihoods come to a score.
pub trait Weigh: Send + Sync {
    /// Asks how likely the item's texts are.
    ///
    /// # Errors
    /// The scorer's; [`AskError::Question`] for an item that cannot be weighed.
    fn weigh(&self, item: &Item, weighing: &Weighing<'_>) -> Result<Weighed, AskError>;
}

/// What came of weighing an item.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weighed {
    /// What it amounts to, such as the likeliest choice; may be empty.
    pub text: String,
    /// What it is worth.
    pub score: Score,
    /// Log-probabilities that it is made of, where these are of interest: one for each choice.
    pub likelihoods: Vec<f64>,
}

/// For tasks that read questions with text golds: the shapes that all of them read, and golds that are not blank.
fn question_with_text_golds(fields: &Fields) -> Result<Vec<Item>, String> {
    let item = fields.question()?;
    if item.golds.iter().any(|gold| gold.trim().is_empty()) {
        return Err("a right answer is empty".to_owned());
    }
    Ok(vec![item])
}

/// For each measure the best of those that right answers give.
fn best_of_each(item: &Item, score: impl Fn(&str) -> Score) -> Score {
    let mut best = Score::default();
    for (name, value) in item.golds.iter().flat_map(|gold| score(gold).0) {
        match best.0.iter_mut().find(|(own, _)| *own == name) {
            Some((_, own)) => *own = own.max(value),
            None => best.0.push((name, value)),
        }
    }
    best
}

/// The score of the right answer that is met best, by one measure; of equals that of the first.
fn best_by(item: &Item, measure: &str, score: impl Fn(&str) -> Score) -> Score {
    let mut scores = item.golds.iter().map(|gold| score(gold));
    let first = scores.next().unwrap_or_default();
    scores.fold(first, |best, other| if other.get(measure) > best.get(measure) { other } else { best })
}

fn number(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        let mut names: Vec<&str> = Vec::new();
        for one in TASKS {
            names.extend([&[one.name()], one.other_names()].concat());
            for name in [&[one.name()], one.other_names()].concat() {
                assert_eq!(task(name).map(Task::name), Some(one.name()));
            }
        }
        let num = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), num);
        assert!(task("no such task").is_none());
    }
}
