//! Batches of requests: checked, answered one file after the other, and written out as files.
//!
//! Purpose: run OpenAI's batches over a [`BatchEndpoint`], which answers single requests. It knows no request from the
//! inside but for its name, its route, its model and whether it asks for a stream.
//!
//! State: a row in the store, and for an open batch a folder with one file of outcomes, a line for each request in the
//! order of the input.
//!
//! Invariants: a request that has a whole line in that file is never asked again; output and error files get their rows
//! together with the batch's end; a batch that was open when the process died goes on at the next start.
//!
//! It deliberately does not give up on a request because the endpoint is busy: it waits, until the batch is cancelled or
//! expires.

mod endpoint;
mod input;
mod outcome;
mod requests;
mod run;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{BatchError, Result};

pub use endpoint::{BatchAnswer, BatchEndpoint, BatchReply, BatchRequest, Interrupt};
pub(crate) use input::Checked;

/// Settings of batches.
#[derive(Clone, Debug)]
pub struct BatchSettings {
    /// Requests of a batch that are asked at once.
    pub requests_at_once: usize,
    /// Batches that have not ended; more are refused.
    pub max_open: u64,
    /// Batches that are remembered; of more, the oldest that have ended are forgotten.
    pub max_kept: u64,
    /// Requests in a batch.
    pub max_requests: u64,
    /// The largest input file.
    pub max_input_bytes: u64,
    /// The longest line of an input file.
    pub max_line_bytes: usize,
    /// By which batches expire.
    pub clock: Clock,
}

/// The limits of files and requests are OpenAI's.
impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            requests_at_once: 16,
            max_open: 1000,
            max_kept: 100_000,
            max_requests: 50_000,
            max_input_bytes: 200 << 20,
            max_line_bytes: 1 << 20,
            clock: Clock::default(),
        }
    }
}

impl BatchSettings {
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |field, reason: &str| Err(BatchError::Config { field, reason: reason.to_owned() });
        if self.requests_at_once == 0 || self.requests_at_once > 1024 {
            return bad("batches.requests_at_once", "is not in 1 to 1024");
        }
        for (field, value) in [
            ("batches.max_open", self.max_open),
            ("batches.max_kept", self.max_kept),
            ("batches.max_requests", self.max_requests),
            ("batches.max_input_bytes", self.max_input_bytes),
            ("batches.max_line_bytes", self.max_line_bytes as u64),
        ] {
            if value == 0 {
                return bad(field, "is 0");
            }
        }
        Ok(())
    }
}

/// Which route answers the requests of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchRoute {
    /// `/v1/chat/completions`.
    ChatCompletions,
    /// `/v1/completions`.
    Completions,
}

impl BatchRoute {
    /// Every route.
    pub const ALL: [Self; 2] = [Self::ChatCompletions, Self::Completions];

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
        }
    }

    /// The route with this path.
    pub fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.path() == path)
    }
}

/// How long a batch may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionWindow {
    /// A day, the only one that OpenAI has.
    Day,
}

impl CompletionWindow {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "24h",
        }
    }

    /// The window of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        (name == Self::Day.name()).then_some(Self::Day)
    }

    pub(crate) fn ms(self) -> i64 {
        match self {
            Self::Day => 24 * 60 * 60 * 1000,
        }
    }
}

/// Where a batch is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatchStatus {
    /// Its input waits to be checked, or is.
    Validating,
    /// Its input was refused.
    Failed,
    /// Its requests are answered, or wait for those of another batch.
    InProgress,
    /// Its files are written.
    Finalizing,
    /// Every request has an answer, if only that it was refused.
    Completed,
    /// Time ran out before every request had one.
    Expired,
    /// It was asked to stop.
    Cancelling,
    /// It was cancelled.
    Cancelled,
}

impl BatchStatus {
    /// Every status.
    pub const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// Its name, as OpenAI has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing will change any more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// What is wrong with an input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchProblem {
    /// For programs, such as `duplicate_custom_id`.
    pub code: String,
    /// The line, from 1 on; `None` for what is wrong with the whole file.
    pub line: Option<u64>,
    /// For people.
    pub message: String,
    /// The field at fault, such as `custom_id` or `body.model`.
    pub param: Option<String>,
}

/// Requests of a batch. Those that were never asked count in `total` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// All of them; 0 before the input was checked.
    pub total: u64,
    /// Those that were answered.
    pub completed: u64,
    /// Those that were refused or failed.
    pub failed: u64,
}

/// Tokens that a batch used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchUsage {
    /// In the prompts.
    pub input_tokens: u64,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u64,
    /// In the answers.
    pub output_tokens: u64,
}

/// What a batch is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSpec {
    /// A file of purpose `batch`.
    pub input_file: String,
    /// What all of its requests ask.
    pub route: BatchRoute,
    /// How long it may take.
    pub window: CompletionWindow,
    /// The client's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// A batch. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `batch_` and 32 hexadecimal digits.
    pub id: String,
    /// What was asked for.
    pub spec: BatchSpec,
    /// Where it is.
    pub status: BatchStatus,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it will expire or would have.
    pub expires_at_ms: i64,
    /// When its input was found good.
    pub in_progress_at_ms: Option<i64>,
    /// When its files were begun.
    pub finalizing_at_ms: Option<i64>,
    /// When it was asked to stop.
    pub cancelling_at_ms: Option<i64>,
    /// When it ended.
    pub ended_at_ms: Option<i64>,
    /// Its requests.
    pub counts: RequestCounts,
    /// Why its input was refused.
    pub problems: Vec<BatchProblem>,
    /// The model that all of its requests name, if they name one.
    pub model: Option<String>,
    /// Tokens, once it has ended.
    pub usage: Option<BatchUsage>,
    /// The file of answers.
    pub output_file: Option<String>,
    /// The file of what failed or was not asked.
    pub error_file: Option<String>,
}

/// Batches by status, and their requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchCounts {
    /// Number of batches, in the order of [`BatchStatus::ALL`].
    pub batches: [u64; 8],
    /// Requests of all batches that are remembered.
    pub requests: RequestCounts,
}
