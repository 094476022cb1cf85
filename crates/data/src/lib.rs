//! Data sets for training: read, check, template, tokenize, filter, split.
//!
//! Purpose: from files as people have them (JSONL, CSV, Parquet; messages, prompts with completions, instructions,
//! questions, text) to [`Example`]s, which are tokens and a mask of what is learnt.
//!
//! State: a [`Dataset`] owns its tokens and is immutable; an [`Encoder`] borrows the model's tokenizer and template;
//! readers own their place in a file.
//!
//! Invariants: the tokens of a prompt are those that serving gives; no token lies across the border of prompt and answer;
//! every learnt answer ends with one token that says so. The same file, settings and seed give the same examples in the
//! same order. Nothing in a file panics, and a file is never in memory as a whole.
//!
//! Making data sets is in [`prepare`].
//!
//! It knows no model and no weights, and evaluates nothing.
#![forbid(unsafe_code)]

mod check;
mod columns;
mod conversation;
mod dataset;
mod encode;
mod error;
mod example;
mod filter;
mod formats;
mod inst;
mod options;
mod output;
pub mod prepare;
mod questions;
mod record;
mod records;
mod shuffle;
mod split;
mod stats;
mod template;

pub use check::{CheckOptions, Report, check, check_encoded};
pub use columns::{ColumnMap, Layout};
pub use dataset::{Counts, DataStats, Dataset, measure};
pub use encode::Encoder;
pub use error::{DataError, Finding, Place, Result};
pub use example::{DropReason, Encoded, Example};
pub use filter::{FilterOptions, FilterReport, content_tokens, filter};
pub use formats::{Format, Limits, Row, RowError, Rows};
pub use inst::text as inst_text;
pub use options::{DataOptions, LossOn, Truncation};
pub use output::Output;
pub use questions::questions;
pub use record::{Conversation, MAX_MESSAGES, Pair, Record, Turn};
pub use records::{Entry, ReadOptions, Records};
pub use shuffle::{SplitMix64, epoch_order};
pub use split::{SplitOptions, SplitReport, TestSize, split};
pub use stats::{Bucket, LengthStats};
pub use template::{CustomTemplate, PromptTemplate};
