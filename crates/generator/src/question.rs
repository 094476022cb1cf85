//! What is asked, and what comes back.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wardrobe_text::Message;

/// An answer that ended by itself.
pub const FINISH_STOP: &str = "stop";
/// An answer whose tokens ran out.
pub const FINISH_LENGTH: &str = "length";

/// What a model goes on from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A conversation, in the model's own chat template.
    Chat(Vec<Message>),
    /// Text as it is, without a template.
    Text(String),
}

/// What an answer is held to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// What the model's adapter says, if it carries a schema.
    #[default]
    AsServed,
    /// Nothing.
    Free,
    /// A JSON schema, each keyword of which is honoured or refused.
    Schema(Value),
}

/// One question.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Question {
    /// What the model goes on from.
    pub prompt: Prompt,
    /// What the answer is held to.
    pub held: Held,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// `0` takes the likeliest token each time.
    pub temperature: f32,
    /// The share of likelihood that tokens are drawn from; `1` is all of it.
    pub top_p: f32,
    /// With a temperature: the same seed, the same answer, of a model that can promise that.
    pub seed: Option<u64>,
}

impl Question {
    /// A conversation, answered greedily with at most `max_tokens`.
    pub fn chat(messages: Vec<Message>, max_tokens: usize) -> Self {
        Self::new(Prompt::Chat(messages), max_tokens)
    }

    /// Any prompt, answered greedily with at most `max_tokens`.
    pub fn new(prompt: Prompt, max_tokens: usize) -> Self {
        Self { prompt, held: Held::default(), max_tokens, temperature: 0.0, top_p: 1.0, seed: None }
    }

    /// The same, held to something else.
    pub fn held(self, held: Held) -> Self {
        Self { held, ..self }
    }
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of the prompt, those that had been computed for others already.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Of the answer.
    #[serde(default)]
    pub completion_tokens: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

/// One answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Its text.
    pub text: String,
    /// [`FINISH_STOP`], [`FINISH_LENGTH`], or what an endpoint calls it.
    pub finish_reason: String,
    /// Its tokens.
    pub usage: Usage,
}

impl Answer {
    /// Whether its tokens ran out.
    pub fn is_cut(&self) -> bool {
        self.finish_reason == FINISH_LENGTH
    }
}

/// How likely a token is after those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Whether no token was likelier.
    pub is_likeliest: bool,
}
