//! Weights that are made up: a model without its files, for measurements and for planning.
//!
//! What a step costs depends on shapes and types and not on numbers, so these are cheap. One pattern of random numbers
//! is made, and each matrix is read from it, from a place that depends on its name and on the seed, beginning again where
//! it ends: to make up a model costs little more than to copy it. The numbers are bell-shaped, of the deviation with
//! which most models begin, so that activations stay of a sane size; norms are ones.
//!
//! All of it follows from configuration, type and seed, on every device. So the digest is of these: gigabytes that follow
//! from a page of text need neither be hashed nor searched for numbers that are none.

use std::sync::Arc;

use wardrobe_device::Ctx;
use wardrobe_formats::{ContentDigest, Digest, FormatError, ModelConfig, StorageType, TensorInfo, convert};

use crate::error::{ModelError, Result};
use crate::loader::{LoadOptions, Loader, WeightPrecision};
use crate::source::WeightSource;
use crate::{Decoder, arch};

/// `initializer_range` of most configurations.
const STANDARD_DEVIATION: f32 = 0.02;
/// Numbers that are made at once: whole blocks of every type.
const CHUNK_ELEMENTS: usize = 64 * 256;

/// What a model's weights are made up of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DummySpec {
    /// How matrices are stored: a type that devices hold without converting it. Vectors are F32.
    pub storage: StorageType,
    /// What the random numbers follow from.
    pub seed: u64,
}

/// How large a made-up model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DummySize {
    /// All weights as they are held.
    pub weight_bytes: u64,
    /// The most that is in host memory beside them while they are made.
    pub staging_bytes: u64,
}

impl DummySpec {
    /// What a model of this shape takes; saturates where a configuration is absurd. To be asked before anything is made.
    pub fn size(&self, config: &ModelConfig, precision: WeightPrecision) -> DummySize {
        let held = match precision {
            WeightPrecision::AsStored => self.storage,
            WeightPrecision::F32 => StorageType::F32,
        };
        let (mut weight_bytes, mut largest_bytes) = (vector_bytes(config), 0);
        for (count, numel) in matrices(config) {
            weight_bytes = weight_bytes.saturating_add(bytes_of(held, numel).saturating_mul(count));
            // A conversion has the numbers as values and as bytes.
            let converted = if held == self.storage { 0 } else { bytes_of(held, numel).saturating_mul(2) };
            largest_bytes = largest_bytes.max(bytes_of(self.storage, numel).saturating_add(converted));
        }
        let pattern_bytes = (pattern_blocks(self.storage) * self.storage.block_bytes()) as u64;
        DummySize { weight_bytes, staging_bytes: largest_bytes.saturating_add(pattern_bytes) }
    }
}

fn bytes_of(storage: StorageType, numel: u64) -> u64 {
    numel.div_ceil(storage.block_size() as u64).saturating_mul(storage.block_bytes() as u64)
}

/// How many matrices there are, of how many numbers each. An architecture that has others is to be counted here.
fn matrices(config: &ModelConfig) -> Vec<(u64, u64)> {
    let layers = config.num_layers as u64;
    let of = |rows: usize| (rows as u64).saturating_mul(config.hidden_size as u64);
    let ends = (1 + u64::from(!config.tie_word_embeddings), of(config.vocab_size));
    let qkv = of(config.q_size().saturating_add(config.kv_size().saturating_mul(2)));
    let (q, inner) = (of(config.q_size()), of(config.intermediate_size));
    match config.architecture.as_str() {
        // The gate and its counterpart are one.
        "Phi3ForCausalLM" => {
            vec![ends, (layers, qkv), (layers, q), (layers, inner.saturating_mul(2)), (layers, inner)]
        }
        // The router, and each expert's.
        "MixtralForCausalLM" => {
            let num_experts = config.experts.map_or(0, |experts| experts.num_experts);
            vec![
                ends,
                (2 * layers, q),
                (2 * layers, of(config.kv_size())),
                (3 * layers * num_experts as u64, inner),
                (layers, of(num_experts)),
            ]
        }
        "GPTNeoXForCausalLM" => vec![ends, (layers, qkv), (layers, q), (2 * layers, inner)],
        // Queries and what attention gives; keys and values; the MLP's three.
        _ => vec![ends, (2 * layers, q), (2 * layers, of(config.kv_size())), (3 * layers, inner)],
    }
}

/// Norms and biases, in f32. Within a configuration's bounds nothing here overflows.
fn vector_bytes(config: &ModelConfig) -> u64 {
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let qkv = config.q_size() as u64 + 2 * config.kv_size() as u64;
    let biased = |of: u64| of * u64::from(config.attention_bias);
    let of_mlp = |of: u64| of * u64::from(config.mlp_bias);
    let (of_layer, of_end) = match config.architecture.as_str() {
        "Qwen2ForCausalLM" => (2 * hidden + qkv, hidden),
        "Qwen3ForCausalLM" => (2 * hidden + 2 * config.head_dim as u64 + biased(qkv + hidden), hidden),
        "Phi3ForCausalLM" => (2 * hidden, hidden),
        // Experts have none.
        "MixtralForCausalLM" => (2 * hidden + biased(qkv + hidden), hidden),
        "GPTNeoXForCausalLM" => (4 * hidden + biased(qkv + hidden) + of_mlp(inner + hidden), 2 * hidden),
        "Gemma2ForCausalLM" => (4 * hidden + biased(qkv + hidden), hidden),
        _ => (2 * hidden + biased(qkv + hidden) + of_mlp(2 * inner + hidden), hidden),
    };
    4 * (config.num_layers as u64 * of_layer + of_end)
}

/// Makes up a model on the context's device.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], [`ModelError::Unsupported`] for a type that devices do not hold,
/// [`ModelError::RowBlocks`] where rows are no whole blocks of it, [`ModelError::Device`] without memory.
pub fn load_dummy(
    ctx: &mut Ctx,
    config: &ModelConfig,
    spec: &DummySpec,
    options: &LoadOptions<'_>,
) -> Result<Arc<dyn Decoder>> {
    let load = arch::find(config)?;
    if !spec.storage.is_device_native() {
        return Err(ModelError::Unsupported {
            architecture: config.architecture.clone(),
            what: format!("a dummy model in {}", spec.storage),
        });
    }
    let weights = DummyWeights::new(config, spec)?;
    load(Loader::new(ctx, Box::new(weights), options), config.clone())
}

/// Tensors that are made when they are asked for.
struct DummyWeights {
    config: ModelConfig,
    spec: DummySpec,
    pattern: Vec<u8>,
    /// The last tensor's memory, for the next one: the system hands out fresh pages slower than they are filled.
    spare: Vec<u8>,
}

impl DummyWeights {
    fn new(config: &ModelConfig, spec: &DummySpec) -> Result<Self> {
        Ok(Self { config: config.clone(), spec: *spec, pattern: pattern(spec)?, spare: Vec::new() })
    }

    fn matrix(&mut self, info: &TensorInfo) -> Result<Vec<u8>> {
        let storage = info.storage;
        let (Some(_), Some(len)) = (info.row_bytes(), info.size_bytes()) else {
            return Err(ModelError::RowBlocks {
                name: info.name.clone(),
                storage,
                block_size: storage.block_size(),
                cols: info.row_numel(),
            });
        };
        let mut bytes = std::mem::take(&mut self.spare);
        bytes.clear();
        bytes.try_reserve_exact(len).map_err(|_| out_of_memory(len, &info.name))?;
        let num_blocks = pattern_blocks(storage) as u64;
        let first_block = Random::named(self.spec.seed, &info.name).next() % num_blocks;
        let mut from = first_block as usize * storage.block_bytes();
        while bytes.len() < len {
            let part = self.pattern.get(from..).unwrap_or_default();
            let part = part.get(..len - bytes.len()).unwrap_or(part);
            if part.is_empty() {
                return Err(out_of_memory(len, &info.name));
            }
            bytes.extend_from_slice(part);
            from = 0;
        }
        Ok(bytes)
    }
}

impl WeightSource for DummyWeights {
    /// What a configuration asks for, of what a model may lack.
    fn has(&self, name: &str) -> bool {
        match name.strip_suffix(".bias") {
            // Qwen2 has them on what its loader asks for without a question.
            Some(_) if self.config.architecture == "Qwen2ForCausalLM" => false,
            Some(module) if module.contains(".self_attn.") || module.contains(".attention.") => {
                self.config.attention_bias
            }
            Some(module) if module.contains(".mlp.") => self.config.mlp_bias,
            Some(_) => false,
            None => name == "lm_head.weight" && !self.config.tie_word_embeddings,
        }
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<(TensorInfo, Vec<u8>)> {
        let storage = if shape.len() > 1 { self.spec.storage } else { StorageType::F32 };
        let info = TensorInfo { name: name.to_owned(), storage, shape: shape.to_vec() };
        let bytes = match shape {
            [len] if name.ends_with(".bias") => {
                let mut random = Random::named(self.spec.seed, name);
                (0..*len).flat_map(|_| random.bell().to_le_bytes()).collect()
            }
            [len] => {
                // Gemma's norms multiply by one more than this.
                let one = if self.config.architecture == "Gemma2ForCausalLM" { 0.0_f32 } else { 1.0 };
                std::iter::repeat_n(one.to_le_bytes(), *len).flatten().collect()
            }
            _ => self.matrix(&info)?,
        };
        Ok((info, bytes))
    }

    fn used(&mut self, _info: TensorInfo, bytes: Vec<u8>) {
        if bytes.capacity() > self.spare.capacity() {
            self.spare = bytes;
        }
    }

    fn total_bytes(&self) -> u64 {
        self.spec.size(&self.config, WeightPrecision::AsStored).weight_bytes
    }

    fn finish(self: Box<Self>, config: &ModelConfig, _ignored: &dyn Fn(&str) -> bool) -> Result<Digest> {
        let mut digest = ContentDigest::new(config);
        let name = "made up of a pattern, 1".to_owned();
        let info = TensorInfo { name, storage: self.spec.storage, shape: Vec::new() };
        digest.tensor(&info, &self.spec.seed.to_le_bytes());
        Ok(digest.finish())
    }
}

fn out_of_memory(bytes: usize, what: &str) -> ModelError {
    FormatError::OutOfMemory { bytes: bytes as u64, what: what.to_owned() }.into()
}

/// Blocks of a pattern: a prime number, so that a tensor's rows, whose lengths have other factors, begin at a different
/// place each until as many were read. Some eight million numbers.
fn pattern_blocks(storage: StorageType) -> usize {
    match storage.block_size() {
        1 => 8_388_593,
        32 => 262_139,
        _ => 32_749,
    }
}

fn pattern(spec: &DummySpec) -> Result<Vec<u8>> {
    let storage = spec.storage;
    let (num_blocks, block_size) = (pattern_blocks(storage), storage.block_size());
    let len = num_blocks * storage.block_bytes();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| out_of_memory(len, "random numbers"))?;
    let mut random = Random(spec.seed);
    let mut left = num_blocks * block_size;
    while left > 0 {
        let numel = left.min(CHUNK_ELEMENTS);
        let values: Vec<f32> = (0..numel).map(|_| random.bell()).collect();
        bytes.extend_from_slice(&convert::from_f32(storage, &values, block_size)?);
        left -= numel;
    }
    Ok(bytes)
}

/// SplitMix64 (Steele, Lea and Flood 2014). Whole numbers and one product of floats: the same bits on every machine.
struct Random(u64);

impl Random {
    /// One of its own for a tensor (FNV-1a of the name beside the seed).
    fn named(seed: u64, name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash ^ Random(seed).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Bell-shaped around zero: the sum of four even numbers, of which each has a deviation of 2^16 / sqrt(12).
    fn bell(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|i| (bits >> (16 * i)) & 0xffff).sum();
        // sqrt(12) / sqrt(4) / 2^16.
        const UNIT: f32 = 1.732_050_8 / 65_536.0;
        (sum as f32 - 2.0 * 65_535.0) * (UNIT * STANDARD_DEVIATION)
    }
}

#[cfg(test)]
mod tests;
