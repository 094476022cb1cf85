//! The tensors of an adapter in host memory.

use std::path::Path;

use crate::convert;
use crate::error::{FormatError, Result};
use crate::finite;
use crate::storage::StorageType;

/// A tensor in host memory: F32, F16 or BF16, little-endian, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterTensor {
    storage: StorageType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl AdapterTensor {
    /// A tensor from its bytes; `name` and `path` are for messages.
    ///
    /// # Errors
    /// [`FormatError::Tensor`] for another storage type than F32, F16, BF16, for bytes that do not fit the shape, and
    /// for values that are not finite.
    pub fn new(
        path: &Path,
        name: &str,
        storage: StorageType,
        shape: Vec<usize>,
        bytes: Vec<u8>,
    ) -> Result<Self> {
        let fail = |problem: String| FormatError::tensor(path, name, problem);
        if !matches!(storage, StorageType::F32 | StorageType::F16 | StorageType::BF16) {
            return Err(fail(format!("dtype {storage}, expected F32, F16 or BF16")));
        }
        let size = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| storage.bytes_for(n));
        if size != Some(bytes.len()) {
            return Err(fail(format!("{} bytes do not fill shape {shape:?} of {storage}", bytes.len())));
        }
        finite::check(path, name, storage, &bytes)?;
        Ok(Self { storage, shape, bytes })
    }

    /// An F32 tensor from its values; `name` is for messages.
    ///
    /// # Errors
    /// As [`AdapterTensor::new`].
    pub fn from_f32(name: &str, shape: Vec<usize>, values: &[f32]) -> Result<Self> {
        let bytes = convert::from_f32(StorageType::F32, values, 1)?;
        Self::new(Path::new("memory"), name, StorageType::F32, shape, bytes)
    }

    /// How elements are stored.
    pub fn storage(&self) -> StorageType {
        self.storage
    }

    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Little-endian elements.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.bytes.len() / self.storage.block_bytes()
    }

    /// The elements as f32; exact.
    ///
    /// # Errors
    /// [`FormatError::OutOfMemory`].
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        convert::to_f32(self.storage, &self.bytes, self.numel())
    }

    /// Whether every element is zero.
    pub fn is_zero(&self) -> bool {
        let element = self.storage.block_bytes();
        // The sign bit is the uppermost of the last byte.
        self.bytes
            .iter()
            .enumerate()
            .all(|(i, b)| if i % element == element - 1 { b & 0x7f == 0 } else { *b == 0 })
    }
}

/// Factors of one linear module: it computes `W x + scale * B (A x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Path in the model, such as `model.layers.3.self_attn.q_proj`.
    pub module_path: String,
    /// `[rank, in]`.
    pub a: AdapterTensor,
    /// `[out, rank]`.
    pub b: AdapterTensor,
    /// DoRA's magnitudes, `[out]`.
    pub magnitude: Option<AdapterTensor>,
    /// Rank of the factors.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scale: f64,
}

/// Factors of an embedding: token `t` is embedded as `W[t] + scale * B A[:, t]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraEmbedding {
    /// Path in the model, such as `model.embed_tokens`.
    pub module_path: String,
    /// `[rank, vocab]`.
    pub a: AdapterTensor,
    /// `[dim, rank]`.
    pub b: AdapterTensor,
    /// Rank of the factors.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scale: f64,
}

/// A parameter that the adapter brings whole, in place of the base model's.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedModule {
    /// Path of the module in the model, such as `lm_head`.
    pub module_path: String,
    /// `weight` or `bias`.
    pub parameter: String,
    /// Whether it was stored as the weight below a module with factors (`base_layer`), which then apply on top.
    pub is_base_layer: bool,
    /// The values.
    pub tensor: AdapterTensor,
}
