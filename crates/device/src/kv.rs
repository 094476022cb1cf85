//! The paged key-value cache (Kwon et al., arXiv 2309.06180): memory for the blocks that attention reads and writes.
//!
//! Which block belongs to whom is the engine's business; here blocks are only numbers. The layout inside is the
//! device's own.

use crate::error::{Result, invalid};
use crate::{DType, Shape, Tensor};

/// Extents of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvConfig {
    /// Layers of the model.
    pub num_layers: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Key-value heads.
    pub num_kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// F16, BF16 or F32.
    pub dtype: DType,
}

/// Tokens in a block.
pub const BLOCK_SIZE: usize = 16;

impl KvConfig {
    /// Bytes of one block over all layers, keys and values.
    pub fn block_bytes(&self) -> usize {
        [self.num_layers, 2, self.num_kv_heads, BLOCK_SIZE, self.head_dim, self.dtype.size_bytes()]
            .iter()
            .fold(1, |n, &f| n.saturating_mul(f))
    }

    /// Bytes of the whole cache.
    pub fn size_bytes(&self) -> usize {
        self.block_bytes().saturating_mul(self.num_blocks)
    }

    /// Shape of the keys or values of one layer, in whatever order the device keeps a block.
    pub(crate) fn layer_shape(&self) -> Result<Shape> {
        if self.num_kv_heads == 0 || self.head_dim == 0 || self.num_blocks == 0 || self.num_layers == 0 {
            return invalid("KvConfig", format!("empty cache: {self:?}"));
        }
        Ok(Shape::from([self.num_blocks, self.num_kv_heads, BLOCK_SIZE * self.head_dim]))
    }
}

/// Keys and values of one layer. Not cloneable: one owner writes.
#[derive(Debug)]
pub struct KvLayer {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

/// The cache of all layers.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) config: KvConfig,
    pub(crate) layers: Vec<KvLayer>,
}

impl KvLayer {
    /// Keys, `[blocks, kv_heads, BLOCK_SIZE * head_dim]` in the device's order, for a device.
    pub fn keys(&self) -> &Tensor {
        &self.k
    }

    /// Values, as [`KvLayer::keys`].
    pub fn values(&self) -> &Tensor {
        &self.v
    }
}

impl KvCache {
    /// Extents.
    pub fn config(&self) -> &KvConfig {
        &self.config
    }

    /// One layer's keys and values.
    pub fn layer_mut(&mut self, layer_idx: usize) -> Result<&mut KvLayer> {
        let num_layers = self.layers.len();
        match self.layers.get_mut(layer_idx) {
            Some(layer) => Ok(layer),
            None => invalid("KvCache", format!("layer {layer_idx} of {num_layers}")),
        }
    }
}
