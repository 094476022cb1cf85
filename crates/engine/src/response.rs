//! What a caller receives: text and tokens as they come, one end per choice, one summary per request.

use std::time::Duration;

use crate::ids::{Digest, GenerationId, TokenId};

/// One thing that a [`crate::ResponseStream`] yields.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Log-probabilities of the prompt, once, before the first update, if they were asked for: one entry
    /// per prompt token, the first `None`.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// What one choice gained since its last update.
    Update(Update),
    /// The last event: all choices have ended.
    Summary(Box<Summary>),
}

/// What one choice gained since its last update. Updates of a choice, put together, are its output.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// Which choice, `0..n`.
    pub choice: usize,
    /// New text: whole characters only, and nothing that could still become a stop string.
    pub text: String,
    /// New tokens, end and stop tokens included. Text may lag behind them.
    pub token_ids: Vec<TokenId>,
    /// One entry per token id, if log-probabilities were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// Set on the choice's last update, exactly once.
    pub finish: Option<Finish>,
}

/// A token's log-probability under the raw distribution (before penalties, mask and temperature).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub token: TokenId,
    /// Its bytes: not always whole characters.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
    /// Its rank, `1` for the likeliest.
    pub rank: u32,
    /// The likeliest tokens, likeliest first, as many as were asked for, then the tokens asked for by id.
    pub top: Vec<TopLogprob>,
}

/// One alternative at a position.
#[derive(Clone, Debug, PartialEq)]
pub struct TopLogprob {
    /// The token.
    pub token: TokenId,
    /// Its bytes: not always whole characters.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
}

impl Update {
    /// Adds what the same choice gained after this.
    pub(crate) fn extend(&mut self, next: Update) {
        self.text.push_str(&next.text);
        self.token_ids.extend(next.token_ids);
        self.logprobs.extend(next.logprobs);
        self.finish = next.finish;
    }
}

/// Why and how a choice ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Finish {
    /// It ended by itself: a stop string, a stop token or an end token.
    Stop(StopCause),
    /// `max_tokens` or the context was reached.
    Length,
    /// It was cancelled: the stream was dropped or not read for too long, or the engine stopped.
    Cancelled {
        /// Which of them.
        reason: String,
    },
    /// It could not go on.
    Error {
        /// What happened.
        message: String,
    },
}

/// What made a choice stop.
#[derive(Clone, Debug, PartialEq)]
pub enum StopCause {
    /// A stop string, as given in the request.
    String(String),
    /// A token of the request's `stop_token_ids`.
    Token(TokenId),
    /// One of the model's end ids.
    Eos(TokenId),
    /// What it was held to allows no more.
    Complete,
}

impl Finish {
    /// A short stable name: `stop`, `length`, `cancelled` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
            Self::Cancelled { .. } => "cancelled",
            Self::Error { .. } => "error",
        }
    }
}

/// Tokens that a request used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of output, over all choices.
    pub completion_tokens: usize,
    /// Tokens of the prompt whose keys and values were found in the prefix cache.
    pub cached_tokens: usize,
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission until its first sequence ran.
    pub queue: Duration,
    /// From there to the first token (or the end of the prompt).
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// From submission to the first token; `None` if there was none.
    pub time_to_first_token: Option<Duration>,
    /// From submission to the end.
    pub total: Duration,
}

/// The end of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Tokens used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// The adapter generation that answered; `None` for the base model.
    pub generation: Option<GenerationId>,
    /// Digest of that generation's content.
    pub adapter_digest: Option<Digest>,
    /// The seed that was used, drawn or given.
    pub seed: u64,
}

/// A whole answer, collected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// The choices, in order.
    pub choices: Vec<Choice>,
    /// Log-probabilities of the prompt, if they were asked for.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// Usage, timings, generation and seed.
    pub summary: Summary,
}

/// One collected choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub token_ids: Vec<TokenId>,
    /// One entry per token, if asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// How it ended. `None` only in a completion that is still being collected.
    pub finish: Option<Finish>,
}

impl Completion {
    /// Adds an event. Events of a stream, in order, give the whole answer.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::PromptLogprobs(rows) => self.prompt_logprobs = Some(rows),
            Event::Summary(summary) => self.summary = *summary,
            Event::Update(update) => {
                if self.choices.len() <= update.choice {
                    self.choices.resize_with(update.choice + 1, Choice::default);
                }
                if let Some(choice) = self.choices.get_mut(update.choice) {
                    choice.text.push_str(&update.text);
                    choice.token_ids.extend(update.token_ids);
                    choice.logprobs.extend(update.logprobs);
                    choice.finish = update.finish.or(choice.finish.take());
                }
            }
        }
    }
}
