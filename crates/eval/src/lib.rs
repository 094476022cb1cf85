//! Evaluation: how good a base model and its adapters are at a task, on the same items, greedily.
//!
//! [`read_items`] reads questions with right answers, [`evaluate`] asks all of them of every [`Target`], whoever answers for
//! it (`wardrobe_generator`), a [`Task`] scores what comes, and the [`Report`] has tables for people, JSON for programs and a
//! web page with every answer. A task finds out in one of two ways ([`Way`]): the model answers and the answer is compared,
//! or it tells how likely texts are. Beside the models stands what always giving the most frequent answer would reach.
//!
//! State: none beyond a run. Invariants: every target gets the same prompts; answers are greedy, so that a run can be
//! repeated; a bad line or an item that cannot be answered is reported by its line and is in no mean.
//!
//! Deliberately not here: opening models and loading adapters, chat templates (both behind the generators), training, models
//! as judges.
#![forbid(unsafe_code)]

mod corpus;
mod error;
mod evaluate;
mod html;
mod items;
mod measures;
mod mistakes;
mod report;
mod settings;
mod statistics;
mod tasks;
mod weighing;

pub use corpus::{read_documents, read_text};
pub use error::EvalError;
pub use evaluate::{EvalOptions, Progress, Target, evaluate};
pub use html::escape as escape_html;
pub use items::{Fields, Item, LineProblem, MAX_LINE_BYTES, Turn, draw, read_items};
pub use measures::{MAX_ROUGE_WORDS, Rouge, indel_ratio, normalized, rouge, token_f1};
pub use mistakes::{Mistake, WordList};
pub use report::{
    Answer, BaselineResult, Cell, CellResult, Cost, Difference, Grouping, ItemShown, MistakeShare, Outcome,
    Price, Range, Report, TargetResult, Worst, parse_price,
};
pub use settings::{Document, Ignored, TaskSettings};
pub use tasks::{Compare, Metric, Score, Scored, TASKS, Task, Way, Weigh, Weighed, task};
pub use weighing::Weighing;
