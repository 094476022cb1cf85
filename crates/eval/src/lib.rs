//! Evaluation: how good a base model and its adapters are at a task, on the same items, greedily.
//!
//! [`read_items`] reads questions with gold answers, [`evaluate`] asks all of them of every [`Target`], whoever answers for it
//! (`wardrobe_generator`), a [`Task`] scores the answers, and the [`Report`] has a table for people, JSON for programs and a
//! web page with every answer. Beside the models stands what always giving the most frequent answer would reach.
//!
//! State: none beyond a run. Invariants: every target gets the same prompts; answers are greedy, so that a run can be
//! repeated; a bad line or an item that cannot be answered is reported by its line and is in no mean.
//!
//! Deliberately not here: opening models and loading adapters, chat templates (both behind the generators), training.
#![forbid(unsafe_code)]

mod error;
mod evaluate;
mod html;
mod items;
mod report;
mod similarity;
mod tasks;

pub use error::EvalError;
pub use evaluate::{EvalOptions, Progress, Target, evaluate};
pub use html::escape as escape_html;
pub use items::{Item, LineProblem, MAX_LINE_BYTES, Turn, draw, read_items};
pub use report::{Answer, BaselineResult, ItemShown, Outcome, Report, TargetResult};
pub use similarity::indel_ratio;
pub use tasks::{Metric, Score, Scored, TASKS, Task, task};
