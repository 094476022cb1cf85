//! Why there is no answer, sorted by what follows from it.

use std::time::Duration;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// This question cannot be answered; others can.
    #[error("{message}")]
    Question {
        /// A short stable name: `bad_prompt`, `context_length_exceeded`, `refusal`, `engine`, `endpoint`.
        kind: &'static str,
        /// What happened.
        message: String,
    },
    /// Not now: ask again, after this time where the other side named one.
    #[error("{reason}")]
    Again {
        /// The least time to wait.
        after: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// No question can be answered any more.
    #[error("{0}")]
    Fatal(String),
    /// It was given up, since the run stops.
    #[error("stopped")]
    Stopped,
    /// Who was asked cannot do such a thing at all.
    #[error("{who}: {what}")]
    Unsupported {
        /// Its name.
        who: String,
        /// What it cannot do, and why.
        what: String,
    },
}

impl AskError {
    /// Whether no other question of the same kind would fare better.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Fatal(_) | Self::Unsupported { .. })
    }
}

/// Why an endpoint cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct EndpointError {
    /// Its address.
    pub url: String,
    /// What it said, or why it could not be asked.
    pub reason: String,
}
