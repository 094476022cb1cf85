//! The prefix cache: which block holds which tokens, after which tokens, computed how.
//!
//! A block's key is the SHA-256 of its parent's key and its own tokens. The chain starts at a root made of everything
//! that changes keys and values: the model's digest, the adapter generation's digest and scale, the RoPE table,
//! and the tenant's salt; never a name. So a reload under the same name finds nothing of the old weights, and
//! one tenant nothing of another's. The tokens are compared as well on a hit.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::ids::{BlockId, Digest, TokenId};

/// What a chain of blocks starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PrefixRoot<'a> {
    pub model_digest: Digest,
    /// Digest and scale of the adapter.
    pub adapter: Option<(Digest, f32)>,
    pub rope_idx: u32,
    pub salt: Option<&'a str>,
}

/// Identity of the keys and values in a full block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PrefixKey(Digest);

impl PrefixKey {
    /// The key that a chain starts from. Every part has a fixed length or its length before it.
    pub fn root(root: &PrefixRoot<'_>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"prefix");
        hash.update(root.model_digest);
        match root.adapter {
            None => hash.update([0]),
            Some((digest, scale)) => {
                hash.update([1]);
                hash.update(digest);
                hash.update(scale.to_bits().to_le_bytes());
            }
        }
        hash.update(root.rope_idx.to_le_bytes());
        match root.salt {
            None => hash.update([0]),
            Some(salt) => {
                hash.update([1]);
                hash.update((salt.len() as u64).to_le_bytes());
                hash.update(salt.as_bytes());
            }
        }
        Self(hash.finalize().into())
    }

    /// The key of a block with these tokens that follows the block (or root) with this key.
    pub fn child(&self, tokens: &[TokenId]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            hash.update(token.0.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

struct Entry {
    block: BlockId,
    tokens: Box<[TokenId]>,
}

/// Which block holds which content. Does not count holders.
#[derive(Default)]
pub(crate) struct PrefixCache {
    entries: HashMap<PrefixKey, Entry>,
    key_of_block: HashMap<BlockId, PrefixKey>,
}

impl PrefixCache {
    /// The block with this content.
    pub fn get(&self, key: &PrefixKey, tokens: &[TokenId]) -> Option<BlockId> {
        self.entries.get(key).filter(|entry| *entry.tokens == *tokens).map(|entry| entry.block)
    }

    /// Whether the block's content can be found.
    pub fn contains(&self, block: BlockId) -> bool {
        self.key_of_block.contains_key(&block)
    }

    /// Makes the block's content findable, unless another block has the same.
    pub fn insert(&mut self, key: PrefixKey, tokens: &[TokenId], block: BlockId) {
        if self.entries.contains_key(&key) || self.key_of_block.contains_key(&block) {
            return;
        }
        self.entries.insert(key, Entry { block, tokens: tokens.into() });
        self.key_of_block.insert(block, key);
    }

    /// The block gets other content.
    pub fn forget(&mut self, block: BlockId) {
        if let Some(key) = self.key_of_block.remove(&block) {
            self.entries.remove(&key);
        }
    }
}
