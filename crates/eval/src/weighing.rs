//! How a task asks for likelihoods: patiently, and counting tokens.

use std::cell::Cell;

use wardrobe_generator::{AskError, RetryPolicy, Scorer, Stopped, TokenScore, patiently};

use crate::settings::TaskSettings;

/// Who is asked for likelihoods, on behalf of one item.
pub struct Weighing<'a> {
    /// Who tells how likely texts are.
    pub(crate) scorer: &'a dyn Scorer,
    /// What the task was told.
    pub(crate) settings: &'a TaskSettings,
    pub(crate) retry: RetryPolicy,
    /// Of this item's waits.
    pub(crate) salt: u64,
    pub(crate) stopped: &'a Stopped<'a>,
    /// Tokens that were looked at.
    pub(crate) num_tokens: Cell<u64>,
}

impl Weighing<'_> {
    fn ask<R>(&self, ask: impl Fn() -> Result<R, AskError>) -> Result<R, AskError> {
        patiently(self.retry.start(self.salt), self.stopped, ask)
    }

    /// The tokens of a text, which begins as the model's texts do unless the settings say otherwise.
    pub(crate) fn tokenize(&self, text: &str) -> Result<Vec<u32>, AskError> {
        self.ask(|| self.scorer.tokenize(text, self.settings.begin))
    }

    /// How likely the tokens are from the one at `from` on, at least 1.
    pub(crate) fn score_from(&self, tokens: &[u32], from: usize) -> Result<Vec<TokenScore>, AskError> {
        let scores = self.ask(|| self.scorer.score_from(tokens, from, self.stopped))?;
        self.num_tokens.set(self.num_tokens.get() + tokens.len() as u64);
        if scores.len() == tokens.len().saturating_sub(from) {
            return Ok(scores);
        }
        let message = format!("{} of {} tokens have a likelihood", scores.len(), tokens.len() - from);
        Err(AskError::Question { kind: "endpoint", message })
    }
}

/// An item that cannot be weighed.
pub(crate) fn unfit(message: impl Into<String>) -> AskError {
    AskError::Question { kind: "bad_prompt", message: message.into() }
}
