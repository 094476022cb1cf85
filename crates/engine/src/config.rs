//! The engine's settings: what may run at once, what a request may ask, how long a slow reader is borne.

use std::time::Duration;

use crate::error::EngineError;
use crate::ids::TokenId;

/// Tokens in one block of the KV cache.
pub const BLOCK_SIZE_TOKENS: usize = 16;

/// Settings of an [`crate::Engine`]. `Default` is right for a small machine; every field is checked at start.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// Sequences that run at once (rows of a decode step), `1..=65536`.
    pub max_num_sequences: usize,
    /// Tokens computed in one step, over all sequences; at least `max_num_sequences`.
    pub max_batch_tokens: usize,
    /// The most tokens of one prompt in one step, so that several prompts advance together and decoding
    /// rows are not held up. At least 1.
    pub max_chunk_tokens: usize,
    /// Sequences that may wait beside those that run before [`crate::SubmitError::Overloaded`]. At least 1. A
    /// request is as many sequences as it has choices.
    pub queue_capacity: usize,
    /// Whether the keys and values of full blocks are kept and shared between requests.
    pub prefix_cache: bool,
    /// Whether several tokens of a sequence are computed in one step on the chance that it goes on as its own text did
    /// before.
    pub speculation: Speculation,
    /// Ids that end a sequence unless the request ignores them (end of text, end of turn).
    pub eos_token_ids: Vec<TokenId>,
    /// What a single request may ask at most.
    pub limits: RequestLimits,
    /// The most adapter slots to use; `None` uses all that the executor has.
    pub num_slots: Option<usize>,
    /// Bytes of adapters kept in host memory, pinned ones included.
    pub max_adapters_host_bytes: u64,
    /// Bytes of adapters in slots at once, pinned ones included, at least 1; `None` leaves that to the number of slots.
    /// On the CPU a slot refers to what the host tier holds: an adapter in one counts towards both limits and takes its
    /// memory once, so the limit saves none there, but bounds how much of it steps read.
    pub max_adapters_device_bytes: Option<u64>,
    /// Adapters that may be loaded at once, in all tiers.
    pub max_adapters: usize,
    /// Times that a sequence which waits for a slot is overtaken by others that get one, before no
    /// later sequence gets a slot ahead of it.
    pub max_slot_skips: u32,
    /// Tokens that a stream holds for a slow reader before its sequences pause. At least 1.
    pub stream_buffer_tokens: usize,
    /// How long a stream may stay full before its sequences are cancelled.
    pub stream_stall_timeout: Duration,
}

/// Whether a sequence's next tokens are drafted from its own text (prompt look-up decoding: Saxena, 2023) and verified in one
/// step. Every drafted position is sampled as it would be without, so that answers are the same; where a row's bits depend on
/// what is computed beside it, they may differ by as much as that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Speculation {
    /// Never.
    Off,
    /// Where it pays, by the times of steps that the engine measures and by how often a sequence's drafts are right.
    #[default]
    Auto,
    /// Whatever is found, for tests and measurements.
    Always,
}

/// What a single request may ask at most.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestLimits {
    /// Choices (`n`).
    pub max_n: usize,
    /// Alternatives per token in `logprobs`, `prompt_logprobs` and `logprob_token_ids`.
    pub max_logprobs: usize,
    /// Stop strings.
    pub max_stop_strings: usize,
    /// Bytes of one stop string.
    pub max_stop_string_bytes: usize,
    /// Stop token ids.
    pub max_stop_token_ids: usize,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Sequences in `bad_words`, and tokens in one of them.
    pub max_bad_words: usize,
    /// Bytes of a cache salt, a request id or an adapter name.
    pub max_name_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_n: 32,
            max_logprobs: 20,
            max_stop_strings: 16,
            max_stop_string_bytes: 1024,
            max_stop_token_ids: 128,
            max_logit_bias: 1024,
            max_bad_words: 256,
            max_name_bytes: 256,
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_sequences: 64,
            max_batch_tokens: 512,
            max_chunk_tokens: 256,
            queue_capacity: 1024,
            prefix_cache: true,
            speculation: Speculation::default(),
            eos_token_ids: Vec::new(),
            limits: RequestLimits::default(),
            num_slots: None,
            max_adapters_host_bytes: 1 << 30,
            max_adapters_device_bytes: None,
            max_adapters: 4096,
            max_slot_skips: 64,
            stream_buffer_tokens: 4096,
            stream_stall_timeout: Duration::from_secs(30),
        }
    }
}

impl EngineConfig {
    /// The most sequences that are open at once: those that run and those that wait.
    pub fn max_open_sequences(&self) -> usize {
        self.max_num_sequences.saturating_add(self.queue_capacity)
    }

    /// Checks every field against its documented range.
    pub fn validate(&self) -> Result<(), EngineError> {
        let in_range = |field, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(EngineError::Config { field, reason: format!("is {value}, not in {min}..={max}") })
        };
        in_range("max_num_sequences", self.max_num_sequences, 1, 65_536)?;
        in_range("max_batch_tokens", self.max_batch_tokens, self.max_num_sequences, 1 << 20)?;
        in_range("max_chunk_tokens", self.max_chunk_tokens, 1, 1 << 20)?;
        in_range("queue_capacity", self.queue_capacity, 1, 1 << 20)?;
        in_range("stream_buffer_tokens", self.stream_buffer_tokens, 1, 1 << 24)?;
        in_range("max_adapters", self.max_adapters, 0, 1 << 20)?;
        if self.max_adapters_device_bytes == Some(0) {
            let reason = "is 0, which refuses every adapter".to_owned();
            return Err(EngineError::Config { field: "max_adapters_device_bytes", reason });
        }
        in_range("limits.max_n", self.limits.max_n, 1, 1024)?;
        in_range("limits.max_logprobs", self.limits.max_logprobs, 0, 1024)?;
        in_range("limits.max_stop_strings", self.limits.max_stop_strings, 0, 1024)?;
        in_range("limits.max_stop_string_bytes", self.limits.max_stop_string_bytes, 1, 1 << 16)?;
        in_range("limits.max_stop_token_ids", self.limits.max_stop_token_ids, 0, 1 << 16)?;
        in_range("limits.max_logit_bias", self.limits.max_logit_bias, 0, 1 << 20)?;
        in_range("limits.max_bad_words", self.limits.max_bad_words, 0, 1 << 16)?;
        in_range("limits.max_name_bytes", self.limits.max_name_bytes, 1, 1 << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(EngineConfig::default().validate(), Ok(()));
    }

    #[test]
    fn a_field_out_of_range_is_named() {
        let config = EngineConfig { max_batch_tokens: 3, max_num_sequences: 4, ..EngineConfig::default() };
        let error = config.validate().unwrap_err();
        assert!(matches!(error, EngineError::Config { field: "max_batch_tokens", .. }), "{error}");
        let config = EngineConfig { max_adapters_device_bytes: Some(0), ..EngineConfig::default() };
        let error = config.validate().unwrap_err();
        assert!(matches!(error, EngineError::Config { field: "max_adapters_device_bytes", .. }), "{error}");
    }
}
