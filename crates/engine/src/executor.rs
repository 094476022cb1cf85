//! The seam to the device: a step's plan goes in, sampled tokens come out.
//!
//! The engine decides *what* is computed; an [`Executor`] knows *how*. Neither names a model, a device or an
//! architecture to the other. The executor runs on the engine thread and owns the KV cache's memory and the
//! adapter slots; the engine owns their bookkeeping: which block belongs to whom, what is in which slot.

use std::sync::Arc;

use crate::adapter::PreparedAdapter;
use crate::constraint::Allowed;
use crate::error::ExecutorError;
use crate::ids::{BlockId, Digest, SequenceId, SlotIdx, TokenId};

/// What an executor can hold. Constant over its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorLimits {
    /// Blocks that the engine may hand out, ids `0..num_blocks`. A block that the device keeps for padding
    /// rows is not among them.
    pub num_blocks: usize,
    /// Tokens in a block; must be [`crate::BLOCK_SIZE_TOKENS`].
    pub block_size_tokens: usize,
    /// Size of the vocabulary; token ids are below it.
    pub vocab_size: usize,
    /// The base model's context.
    pub max_context_tokens: usize,
    /// Adapter slots; `0` if there are none.
    pub num_slots: usize,
    /// Identity of the weights *and* of how they are computed (file, KV type): the seed of the prefix cache.
    pub model_digest: Digest,
}

/// Computes steps. Called from the engine thread only; a panic is caught there and counts as a lost device.
pub trait Executor: Send {
    /// What it can hold.
    fn limits(&self) -> ExecutorLimits;

    /// Computes the plan's tokens, writes their keys and values, and samples where a chunk asks for it.
    ///
    /// Returns one [`ChunkOutput`] per chunk, in order. After an error nothing of the step counts: the engine
    /// may plan the same positions again, into the same or other blocks. A chunk whose first sample has no token to choose
    /// (`allowed` without `banned` is empty, or no logit is a number) is an [`ExecutorError::Sequence`], and so is whatever
    /// can be laid to one sequence; [`ExecutorError::DeviceLost`] is for what no later step could get over.
    fn execute(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError>;

    /// Puts an adapter into a slot that is empty. Should return at once; an upload may go on behind it, as
    /// long as chunks of the slot are computed after it. After an error the slot is empty.
    fn bind_slot(&mut self, slot: SlotIdx, adapter: &Arc<dyn PreparedAdapter>) -> Result<(), ExecutorError>;

    /// Empties a slot. No later chunk names it until it is bound again.
    fn clear_slot(&mut self, slot: SlotIdx);
}

/// What one step computes: any mix of prompt chunks and decode rows, of the base and of adapters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// At most one chunk per sequence, ordered by slot (base first), so that rows of one adapter are
    /// contiguous.
    pub chunks: Vec<SequenceChunk>,
}

/// Consecutive tokens of one sequence, computed in this step.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceChunk {
    /// The sequence.
    pub sequence: SequenceId,
    /// The tokens to compute; never empty.
    pub token_ids: Vec<TokenId>,
    /// Position of the first of them. Positions before it are computed and in the blocks.
    pub start: usize,
    /// The blocks of positions `0..start + token_ids.len()`, in order. Blocks that hold positions from `start`
    /// on belong to this sequence alone.
    pub block_table: Vec<BlockId>,
    /// Slot of the adapter; `None` is the base model.
    pub slot: Option<SlotIdx>,
    /// Multiplies the adapter's own scale.
    pub adapter_scale: f32,
    /// Which RoPE table, `0` is the base's; from the adapter's [`PreparedAdapter::rope_idx`].
    pub rope_idx: u32,
    /// What to sample, by ascending row; the last follows the chunk's last token. Empty unless the chunk reaches the
    /// sequence's end. More than one if the chunk ends in a draft: tokens that are not the sequence's yet.
    pub samples: Vec<SampleAt>,
    /// Report log-probabilities of prompt tokens.
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// Which log-probabilities of the prompt a chunk reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptLogprobs {
    /// Likeliest tokens per row.
    pub top: u32,
    /// The first row is that of the chunk's token with this index; rows follow one another.
    pub first_row: usize,
    /// One row each: the token that follows in the prompt, whose log-probability is asked for.
    pub targets: Vec<TokenId>,
}

/// Where in a chunk to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleAt {
    /// Index in the chunk of the token that the sampled one follows.
    pub row: usize,
    /// How.
    pub spec: SampleSpec,
}

/// How the token after another is sampled.
///
/// Order: `logit_bias`, penalties from `history`, `allowed` and `banned`, temperature, `top_k`, `top_p`, `min_p`, then one
/// Philox draw keyed by (`seed`, `choice`, `position`).
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSpec {
    /// `0` is greedy (ties: the smallest id).
    pub temperature: f32,
    /// `0` is off.
    pub top_k: u32,
    /// `1` is off.
    pub top_p: f32,
    /// `0` is off.
    pub min_p: f32,
    /// `1` is off.
    pub repetition_penalty: f32,
    /// `0` is off.
    pub presence_penalty: f32,
    /// `0` is off.
    pub frequency_penalty: f32,
    /// Tokens of prompt and output with their counts, by ascending id; empty when no penalty is on.
    pub history: Vec<TokenCount>,
    /// Added to the logits, before everything else.
    pub logit_bias: Arc<[(TokenId, f32)]>,
    /// Tokens that must not be sampled: end and stop ids before `min_tokens`, ends of bad words.
    pub banned: Vec<TokenId>,
    /// Tokens that may be sampled.
    pub allowed: Allowed,
    /// Key of the random stream.
    pub seed: u64,
    /// Which choice of the request.
    pub choice: u32,
    /// Index of the token in the output, from 0: the random stream's counter.
    pub position: u64,
    /// Report the likeliest tokens of the raw distribution; `None` reports no log-probabilities at all.
    pub top_logprobs: Option<u32>,
    /// Report these tokens' log-probabilities too.
    pub logprob_token_ids: Arc<[TokenId]>,
}

/// How often a token has appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCount {
    /// The token.
    pub token: TokenId,
    /// Times in the output.
    pub output_count: u32,
    /// Whether it is in the prompt.
    pub in_prompt: bool,
}

/// A step's results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One per chunk of the plan, in its order.
    pub chunks: Vec<ChunkOutput>,
}

/// A chunk's results.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChunkOutput {
    /// One for each of the chunk's samples, in order, up to the first whose mask is late (see [`Allowed::Awaited`]); after
    /// the first also up to one that has no token to choose.
    pub sampled: Vec<Sampled>,
    /// One row per target of the chunk's [`PromptLogprobs`].
    pub prompt_logprobs: Vec<Sampled>,
}

/// A token with what the raw distribution (before bias, penalties, mask and temperature) says about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The sampled token; the target, in a prompt row.
    pub token: TokenId,
    /// Its log-probability; `0` if no log-probabilities were asked for.
    pub logprob: f32,
    /// Its rank, `1` for the likeliest; `0` if no log-probabilities were asked for.
    pub rank: u32,
    /// The likeliest tokens, likeliest first, then the tokens asked for by id.
    pub top: Vec<(TokenId, f32)>,
}

impl Sampled {
    /// With another token in the place of the sampled one: its log-probability is known if it is among the likeliest.
    pub(crate) fn replaced_by(mut self, token: TokenId) -> Self {
        let known = self.top.iter().enumerate().find(|(_, (id, _))| *id == token);
        (self.rank, self.logprob) = match known {
            Some((place, (_, logprob))) => (place as u32 + 1, *logprob),
            None => (0, f32::NEG_INFINITY),
        };
        self.token = token;
        self
    }
}
