//! One sequence, as the scheduler sees it: tokens, how many of them are computed, and the blocks they are in.

use std::ops::Deref;
use std::sync::Arc;

use crate::adapter::generation::Lease;
use crate::config::BLOCK_SIZE_TOKENS;
use crate::ids::{BlockId, SequenceId, SlotIdx, TokenId};
use crate::kv::prefix::PrefixKey;

/// The order in which sequences are served: priority, then age.
pub(crate) type Rank = (i32, SequenceId);

/// There are no phases: `computed` chases `tokens.len()`. A prompt is many tokens behind, a decoding sequence one.
/// Text, sampling and stop conditions are not the scheduler's matter.
pub(crate) struct Sequence {
    pub id: SequenceId,
    pub priority: i32,
    /// Prompt and output.
    pub tokens: Tokens,
    pub num_prompt_tokens: usize,
    /// Tokens whose keys and values are in the blocks.
    pub computed: usize,
    pub blocks: Vec<BlockId>,
    /// Blocks at the front of `blocks` that are findable by others (or found).
    pub published: usize,
    /// Keys of full blocks, as far as they were needed; the chain goes on from the last.
    keys: Vec<PrefixKey>,
    root: PrefixKey,
    pub lease: Option<Arc<Lease>>,
    /// The slot, while it runs with an adapter.
    pub slot: Option<SlotIdx>,
    /// Not to be computed now: its reader is slow, its sibling computes their prompt first, or others come before it.
    pub held: bool,
    /// How many of its first tokens may come from the prefix cache: those of which no log-probabilities are due.
    pub readable_prefix_tokens: usize,
    /// Prompt tokens found in the prefix cache when it first started; `None` before.
    pub cached_tokens: Option<usize>,
    /// Times that a later sequence got a slot while this one waited for one.
    pub slot_skips: u32,
    pub preemptions: u32,
}

/// A sequence's tokens: the request's prompt, shared, until there is output to append.
pub(crate) enum Tokens {
    Prompt(Arc<[TokenId]>),
    WithOutput(Vec<TokenId>),
}

impl Tokens {
    pub fn push(&mut self, token: TokenId) {
        if let Self::Prompt(prompt) = self {
            *self = Self::WithOutput(prompt.to_vec());
        }
        if let Self::WithOutput(tokens) = self {
            tokens.push(token);
        }
    }
}

impl Deref for Tokens {
    type Target = [TokenId];

    fn deref(&self) -> &[TokenId] {
        match self {
            Self::Prompt(tokens) => tokens,
            Self::WithOutput(tokens) => tokens,
        }
    }
}

/// What a new sequence starts with.
pub(crate) struct NewSequence {
    pub id: SequenceId,
    pub priority: i32,
    pub prompt: Arc<[TokenId]>,
    pub root: PrefixKey,
    pub lease: Option<Arc<Lease>>,
    pub readable_prefix_tokens: usize,
}

impl Sequence {
    pub fn new(new: NewSequence) -> Self {
        Self {
            id: new.id,
            priority: new.priority,
            num_prompt_tokens: new.prompt.len(),
            tokens: Tokens::Prompt(new.prompt),
            computed: 0,
            blocks: Vec::new(),
            published: 0,
            keys: Vec::new(),
            root: new.root,
            lease: new.lease,
            slot: None,
            held: false,
            readable_prefix_tokens: new.readable_prefix_tokens,
            cached_tokens: None,
            slot_skips: 0,
            preemptions: 0,
        }
    }

    pub fn rank(&self) -> Rank {
        (self.priority, self.id)
    }

    /// Tokens still to be computed before the next can be sampled.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Keys of the first `num_blocks` blocks, all full.
    pub fn keys_until(&mut self, num_blocks: usize) -> &[PrefixKey] {
        let known = self.keys.len();
        for tokens in self.tokens.chunks_exact(BLOCK_SIZE_TOKENS).take(num_blocks).skip(known) {
            self.keys.push(self.keys.last().unwrap_or(&self.root).child(tokens));
        }
        self.keys.get(..num_blocks).unwrap_or(&self.keys)
    }

    /// Tokens of the block with this index, if it is full.
    pub fn block_tokens(&self, block_idx: usize) -> &[TokenId] {
        self.tokens.chunks_exact(BLOCK_SIZE_TOKENS).nth(block_idx).unwrap_or_default()
    }
}

/// Blocks that hold `num_tokens` tokens.
pub(crate) fn blocks_for(num_tokens: usize) -> usize {
    num_tokens.div_ceil(BLOCK_SIZE_TOKENS)
}
