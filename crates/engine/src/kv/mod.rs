//! Bookkeeping of the KV cache: who holds which block, and which blocks hold a reusable prefix.
//!
//! [`KvCache`] joins the two halves: [`pool::BlockPool`] counts holders and hands out blocks, [`prefix::PrefixCache`]
//! knows the content of full ones. Block memory itself belongs to the executor.
//!
//! Invariants: a block that a sequence writes has that sequence as its only holder; only full, computed blocks
//! are ever found by a look-up; `free + cached + used` is the whole pool after every call.

pub(crate) mod pool;
pub(crate) mod prefix;

use crate::config::BLOCK_SIZE_TOKENS;
use crate::ids::{BlockId, TokenId};
use pool::BlockPool;
use prefix::{PrefixCache, PrefixKey};

pub(crate) struct KvCache {
    pool: BlockPool,
    prefix: PrefixCache,
    share_prefixes: bool,
}

impl KvCache {
    pub fn new(num_blocks: usize, share_prefixes: bool) -> Self {
        Self { pool: BlockPool::new(num_blocks), prefix: PrefixCache::default(), share_prefixes }
    }

    /// Holds and returns the longest run of cached blocks for the first `keys.len()` blocks of `tokens`.
    pub fn acquire_prefix(&mut self, keys: &[PrefixKey], tokens: &[TokenId]) -> Vec<BlockId> {
        let mut found = Vec::new();
        if self.share_prefixes {
            for (key, block_tokens) in keys.iter().zip(tokens.chunks_exact(BLOCK_SIZE_TOKENS)) {
                let Some(block) = self.prefix.get(key, block_tokens) else { break };
                self.pool.acquire(block);
                found.push(block);
            }
        }
        found
    }

    /// Appends `num_blocks` empty blocks, held once, to `table`: all of them or none.
    pub fn allocate(&mut self, num_blocks: usize, table: &mut Vec<BlockId>) -> bool {
        if num_blocks > self.pool.num_available() {
            return false;
        }
        for _ in 0..num_blocks {
            let Some(block) = self.pool.allocate() else { return false };
            self.prefix.forget(block);
            table.push(block);
        }
        true
    }

    /// Makes a full, computed block findable. Without effect if its content is there already.
    pub fn publish(&mut self, key: PrefixKey, tokens: &[TokenId], block: BlockId) {
        if self.share_prefixes {
            self.prefix.insert(key, tokens, block);
        }
    }

    /// Gives up a sequence's hold on its blocks, last first, so that of a prefix the end is evicted first.
    pub fn release(&mut self, table: &[BlockId]) {
        for block in table.iter().rev() {
            self.pool.release(*block, self.prefix.contains(*block));
        }
    }

    /// Blocks that could be allocated now.
    pub fn num_available(&self) -> usize {
        self.pool.num_available()
    }

    /// Blocks that sequences hold.
    pub fn num_used(&self) -> usize {
        self.pool.num_used()
    }

    /// Blocks that hold a prefix and have no holder.
    pub fn num_cached(&self) -> usize {
        self.pool.num_cached()
    }

    /// Blocks in the pool.
    pub fn num_blocks(&self) -> usize {
        self.pool.num_blocks()
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
