//! What a caller asks: a prompt in token ids, an adapter by name, how to sample, when to stop.

use std::sync::Arc;

use wardrobe_grammar::Template;

use crate::constraint::Constraint;
use crate::ids::{GenerationId, TokenId};

/// How the next token is chosen. The default is plain sampling from the model's distribution.
///
/// Order: bias, penalties, mask, temperature, `top_k`, `top_p`, `min_p`, then one draw from a counter-based
/// generator keyed by seed, choice and position, so that load and batching cannot change it.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// `0` is greedy; otherwise the logits are divided by it. `0..=100`.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; `0` keeps all.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probability reaches `top_p`. In `(0, 1]`.
    pub top_p: f32,
    /// Keep tokens with at least `min_p` times the likeliest token's probability. `0..=1`.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output. `1` is off. In `(0, 100]`.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the output. `-2..=2`.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence in the output. `-2..=2`.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens. Finite, each id once.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Only these tokens may be sampled. `None` allows all.
    pub allowed_token_ids: Option<Vec<TokenId>>,
    /// Token sequences that must not appear in the output: the last id is banned where the ids before it
    /// have just been produced.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Same request and seed, same output. `None` draws one, which [`crate::Summary`] reports.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// The priority from which on requests are done in the background: while others want to be computed, no more sequences of
/// these are than of the others. A step takes longer with every sequence, whatever its priority.
pub const BACKGROUND_PRIORITY: i32 = 1_000_000;

/// One request. Build it with [`Request::new`] and struct update, or with the `with_…` methods.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The prompt, at least one token. Shared by the choices, and by whoever keeps a copy of the request.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// Name of the adapter; `None` is the base model.
    pub adapter: Option<String>,
    /// Multiplies the adapter's own scale. Must be `1` without an adapter.
    pub adapter_scale: f32,
    /// Refuse the request unless the adapter's name is at this generation.
    pub expected_generation: Option<GenerationId>,
    /// How to sample.
    pub sampling: SamplingParams,
    /// What the output is held to. It ends where that says, and stop strings and stop ids have no say in it; what
    /// `max_tokens` ends is still what the constraint allows. Log-probabilities are of the tokens that it allows.
    ///
    /// `None` leaves it to the adapter: one that carries a schema has its answers held to it, unless the request asks for
    /// what no such answer can give ([`Request::ignore_eos`], [`SamplingParams::allowed_token_ids`]).
    pub constraint: Option<Constraint>,
    /// Leave the adapter's own schema aside.
    pub without_adapter_schema: bool,
    /// The most tokens of output, per choice. `None` is as many as the context holds. `0` computes the
    /// prompt only.
    pub max_tokens: Option<usize>,
    /// End ids, stop ids and stop strings count only after this many tokens.
    pub min_tokens: usize,
    /// Go on after an end id.
    pub ignore_eos: bool,
    /// Strings that end the output; text from the match on is cut off.
    pub stop_strings: Vec<String>,
    /// Token ids that end the output, beside the model's end ids.
    pub stop_token_ids: Vec<TokenId>,
    /// Keep the matched stop string (or the stop token's text) in the output.
    pub include_stop_str_in_output: bool,
    /// Choices, each with its own random stream.
    pub n: usize,
    /// Report every output token's log-probability, and those of this many likeliest tokens.
    pub logprobs: Option<u32>,
    /// Report in addition the log-probabilities of these tokens at every output position.
    pub logprob_token_ids: Vec<TokenId>,
    /// The same for every prompt token after the first.
    pub prompt_logprobs: Option<u32>,
    /// Report no prompt token before this position. The prompt is computed in full from there on; what is before it may
    /// come from the prefix cache.
    pub prompt_logprobs_from: usize,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Smaller runs earlier, and preempts larger when memory is short. From [`BACKGROUND_PRIORITY`] on it is work in the
    /// background.
    pub priority: i32,
    /// Tenants with different salts share no cached prefix, so that none can time another's prompts.
    pub cache_salt: Option<String>,
    /// An id for logs and traces, chosen by the caller.
    pub request_id: Option<String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            prompt_token_ids: Arc::default(),
            adapter: None,
            adapter_scale: 1.0,
            expected_generation: None,
            sampling: SamplingParams::default(),
            constraint: None,
            without_adapter_schema: false,
            max_tokens: None,
            min_tokens: 0,
            ignore_eos: false,
            stop_strings: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            n: 1,
            logprobs: None,
            logprob_token_ids: Vec::new(),
            prompt_logprobs: None,
            prompt_logprobs_from: 0,
            skip_special_tokens: true,
            priority: 0,
            cache_salt: None,
            request_id: None,
        }
    }
}

impl Request {
    /// A request with this prompt and every other field at its default.
    pub fn new(prompt_token_ids: impl Into<Arc<[TokenId]>>) -> Self {
        Self { prompt_token_ids: prompt_token_ids.into(), ..Self::default() }
    }

    /// Answers with the adapter of this name.
    pub fn with_adapter(mut self, name: impl Into<String>) -> Self {
        self.adapter = Some(name.into());
        self
    }

    /// Replaces the sampling parameters.
    pub fn with_sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Holds the output to a template.
    pub fn with_constraint(mut self, template: Arc<Template>) -> Self {
        self.constraint = Some(Constraint(template));
        self
    }

    /// Bounds the output.
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// Fixes the seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.sampling.seed = Some(seed);
        self
    }

    /// Adds a stop string.
    pub fn with_stop(mut self, stop: impl Into<String>) -> Self {
        self.stop_strings.push(stop.into());
        self
    }

    /// Asks for several choices.
    pub fn with_n(mut self, n: usize) -> Self {
        self.n = n;
        self
    }
}
