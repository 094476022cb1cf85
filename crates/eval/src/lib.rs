//! Evaluation: how good a base model and its adapters are at a task, on the same items, greedily.
//!
//! [`read_items`] reads questions with gold answers, [`evaluate`] asks all of them of every [`Target`] in one batch of a
//! running engine, a [`Task`] scores the answers, and the [`Report`] has a table for people, JSON for programs and a web
//! page with every answer. Beside the models stands what always giving the most frequent answer would reach.
//!
//! State: none beyond a run. Invariants: every target gets the same prompts; answers are greedy, so that a run can be
//! repeated; a bad line or an item that cannot be answered is reported by its line and is in no mean.
//!
//! Deliberately not here: opening models and loading adapters (the caller's engine has them), chat templates (the caller
//! renders prompts), training.
//!
//! ```
//! use std::sync::Arc;
//! use wardrobe_engine::simulation::{SimCodec, SimExecutor, SimLoader};
//! use wardrobe_engine::{Engine, EngineConfig, TokenId};
//! use wardrobe_eval::{EvalOptions, Target, evaluate, read_items, task};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let executor = SimExecutor::new(/* blocks */ 64, /* slots */ 2, /* vocabulary */ 1000, /* context */ 512);
//! let engine =
//!     Engine::start(Box::new(executor), Arc::new(SimLoader::new()), Arc::new(SimCodec), EngineConfig::default())?;
//! let task = task("last-words").ok_or("no such task")?;
//! let lines = br#"{"prompt": "Return last 1 words from this text: \n\na b c", "completion": "c"}"#;
//! let (items, problems) = read_items(lines.as_slice(), task)?;
//! assert!(problems.is_empty());
//!
//! let render = |turns: &[wardrobe_eval::Turn]| Ok(turns[0].content.bytes().map(|b| TokenId(b.into())).collect());
//! let report = evaluate(&engine, &render, &items, task, &[Target::base("simulated")], EvalOptions::default())?;
//! assert_eq!(report.results[0].num_scored, 1);
//! println!("{}", report.to_text());
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod asking;
mod error;
mod evaluate;
mod html;
mod items;
mod report;
mod similarity;
mod tasks;

pub use error::EvalError;
pub use evaluate::{EvalOptions, Held, Progress, RenderPrompt, Target, evaluate};
pub use html::escape as escape_html;
pub use items::{Item, LineProblem, MAX_LINE_BYTES, Turn, draw, read_items};
pub use report::{Answer, BaselineResult, ItemShown, Outcome, Report, TargetResult};
pub use similarity::indel_ratio;
pub use tasks::{Metric, Score, Scored, TASKS, Task, task};
