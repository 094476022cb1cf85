//! What an engine over a model takes in memory, told before it is taken.

use wardrobe_device::{BLOCK_SIZE, KvConfig};
use wardrobe_engine::model::arena_bytes;

use crate::model::{EngineOptions, Model};

/// Memory of a model and an engine over it. Tokenizer, tables and the program itself come on top: some ten MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The model's weights.
    pub weight_bytes: u64,
    /// Keys and values.
    pub kv_bytes: u64,
    /// Tokens whose keys and values fit, over all sequences.
    pub kv_tokens: u64,
    /// Intermediate results of one step.
    pub arena_bytes: u64,
    /// The most that loaded adapters may take.
    pub max_adapters_bytes: u64,
}

impl Model {
    /// What [`Model::engine`] with these options would take.
    pub fn memory_plan(&self, options: &EngineOptions) -> MemoryPlan {
        let config = self.config();
        let kv = KvConfig {
            num_layers: config.num_layers,
            num_blocks: 1,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            dtype: options.kv_dtype,
        };
        let num_blocks = options.kv_bytes / kv.block_bytes().max(1);
        let max_rows = options.config.max_batch_tokens;
        MemoryPlan {
            weight_bytes: self.decoder().weight_bytes() as u64,
            kv_bytes: num_blocks.saturating_mul(kv.block_bytes()) as u64,
            kv_tokens: num_blocks.saturating_mul(BLOCK_SIZE) as u64,
            arena_bytes: arena_bytes(self.decoder().as_ref(), max_rows) as u64,
            max_adapters_bytes: options.config.max_adapters_host_bytes,
        }
    }
}
