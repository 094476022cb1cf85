//! The block pool: reference counts, a free list, and cached blocks in the order of their release.

use std::collections::BTreeMap;

use crate::ids::BlockId;

#[derive(Clone, Copy, Default)]
struct Block {
    /// Sequences that hold it.
    holders: u32,
    /// When it was released, if it is cached and has no holder.
    released_at: u64,
}

/// Every block is in exactly one state: *free* (no holder, no content), *cached* (no holder, content worth
/// keeping), or *used* (at least one holder).
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    /// Cached blocks by time of release: the first is evicted first.
    cached: BTreeMap<u64, BlockId>,
    clock: u64,
}

impl BlockPool {
    pub fn new(num_blocks: usize) -> Self {
        // Ids fit: the number of blocks was checked against u32::MAX at start.
        let free = (0..num_blocks).rev().filter_map(|idx| u32::try_from(idx).ok().map(BlockId)).collect();
        Self { blocks: vec![Block::default(); num_blocks], free, cached: BTreeMap::new(), clock: 0 }
    }

    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    pub fn num_cached(&self) -> usize {
        self.cached.len()
    }

    pub fn num_used(&self) -> usize {
        self.blocks.len() - self.num_available()
    }

    /// A block with one holder; its former content is gone. Free blocks first, then the cached block that was
    /// released longest ago.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.cached.pop_first()?.1,
        };
        self.blocks.get_mut(block.0 as usize)?.holders = 1;
        Some(block)
    }

    /// One more holder for a used or cached block.
    pub fn acquire(&mut self, block: BlockId) {
        let Some(state) = self.blocks.get_mut(block.0 as usize) else { return };
        if state.holders == 0 {
            self.cached.remove(&state.released_at);
        }
        state.holders += 1;
    }

    /// One holder less. The last one leaves the block cached or free.
    pub fn release(&mut self, block: BlockId, keep_cached: bool) {
        let Some(state) = self.blocks.get_mut(block.0 as usize) else { return };
        debug_assert!(state.holders > 0, "block {block} released without a holder");
        state.holders = state.holders.saturating_sub(1);
        if state.holders > 0 {
            return;
        }
        if keep_cached {
            self.clock += 1;
            state.released_at = self.clock;
            self.cached.insert(self.clock, block);
        } else {
            self.free.push(block);
        }
    }

    /// Sequences that hold `block`.
    #[cfg(test)]
    pub fn num_holders(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].holders
    }
}
