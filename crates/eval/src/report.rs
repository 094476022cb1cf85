//! What an evaluation found: a table for people, JSON for programs. The web page is in `html`.

use std::fmt::Write as _;

use serde::Serialize;

use crate::items::{Item, LineProblem};
use crate::tasks::{Metric, Score};

/// The result of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of this crate.
    pub version: String,
    /// Name of the task.
    pub task: String,
    /// What its measures are.
    pub about: String,
    /// What the caller calls the base model.
    pub model: Option<String>,
    /// Where the items came from, if the caller says so.
    pub data: Option<String>,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Wall time of the run.
    pub seconds: f64,
    /// Lines of the data that were no items.
    pub problems: Vec<LineProblem>,
    /// What the most frequent answer reaches, where the task has one.
    pub baseline: Option<BaselineResult>,
    /// One result for each target, in their order.
    pub results: Vec<TargetResult>,
    /// The items, in the order of the outcomes.
    pub items: Vec<ItemShown>,
}

/// An item as a report has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ItemShown {
    /// Line of the file.
    pub line: usize,
    /// The question, its messages one after the other.
    pub question: String,
    /// The right answer.
    pub gold: String,
}

impl ItemShown {
    pub(crate) fn of(item: &Item) -> Self {
        let texts: Vec<&str> = item.turns.iter().map(|turn| turn.content.as_str()).collect();
        Self { line: item.line, question: texts.join("\n\n"), gold: item.gold.clone() }
    }
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
    /// Tokens of all answers.
    pub completion_tokens: u64,
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
    /// The answer, if there is one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answered(answer) => Some(answer),
            Self::Failed { .. } => None,
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// What it is worth.
    pub score: Score,
    /// Whether it was cut off at the limit of tokens.
    pub is_cut: bool,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

impl Report {
    /// A table: a row for each target and one for the baseline, a column for each measure; then what went wrong.
    pub fn to_text(&self) -> String {
        let mut text = columns(&self.rows());
        let mut notes = Vec::new();
        if let Some(baseline) = &self.baseline {
            notes.push(format!("majority ({}): {}", baseline.source(), one_line(&baseline.answer)));
        }
        for result in &self.results {
            if result.num_cut > 0 {
                notes.push(format!(
                    "{}: {} answers cut off at {} tokens",
                    result.name, result.num_cut, self.max_tokens
                ));
            }
            if let Some(first) = result.failed.first() {
                notes.push(format!(
                    "{}: {} items failed, the first at {first}",
                    result.name,
                    result.failed.len()
                ));
            }
        }
        if let Some(first) = self.problems.first() {
            notes.push(format!("{} lines are no items, the first is {first}", self.problems.len()));
        }
        for note in notes {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{note}");
        }
        text
    }

    /// Cells of the table, with a head.
    pub(crate) fn rows(&self) -> Vec<Vec<String>> {
        let baseline = self.baseline.as_ref();
        let all = self.results.iter().map(|r| &r.metrics).chain(baseline.map(|b| &b.metrics));
        let mut names: Vec<&str> = Vec::new();
        for metric in all.flatten() {
            if !names.contains(&metric.name.as_str()) {
                names.push(&metric.name);
            }
        }
        let row = |name: &str, num_items: usize, metrics: &[Metric]| {
            let cell = |name: &&str| {
                let value = metrics.iter().find(|metric| metric.name == *name).map(|metric| metric.value);
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
            };
            [name.to_owned(), num_items.to_string()].into_iter().chain(names.iter().map(cell)).collect()
        };
        let head = ["model", "n"].into_iter().chain(names.iter().copied()).map(str::to_owned).collect();
        let mut rows: Vec<Vec<String>> = vec![head];
        rows.extend(self.results.iter().map(|r| row(&r.name, r.num_scored, &r.metrics)));
        rows.extend(baseline.map(|b| row("majority", b.num_items, &b.metrics)));
        rows
    }
}

impl BaselineResult {
    /// Which answers are counted.
    pub(crate) fn source(&self) -> &'static str {
        if self.from_train { "of the training set" } else { "of these items" }
    }
}

/// Control characters of an answer do not reach a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn columns(rows: &[Vec<String>]) -> String {
    let num_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..num_columns).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            let _ = if at == 0 { write!(text, "{cell:width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}
