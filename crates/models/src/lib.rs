//! Decoder architectures and adapter kinds, each written once over the ops of `wardrobe-device`.
//!
//! - [`load`] reads a model's weights onto a device and gives a [`Decoder`]; [`arch`] has one file per architecture.
//! - [`load_dummy`] makes the weights up instead, where none are at hand.
//! - [`LoraAdapter`] makes an adapter folder's factors ready for a decoder; [`adapters`] has one file per kind.
//! - [`MergedTensors`] is a model's tensors with an adapter merged into them, computed row by row.
//! - [`rope_table`] computes the cosines and sines of every RoPE scaling.
//!
//! A decoder knows nothing of quantisation, devices, batching or training: the same file serves all of them.
#![forbid(unsafe_code)]

pub mod adapters;
pub mod arch;
mod content;
mod dummy;
mod error;
mod loader;
mod rope;
mod score;
mod source;

use std::sync::Arc;

use wardrobe_device::{Ctx, KvCache, KvLayer, LoraTable, ModuleIdx, RopeTables, Step, Tensor, Weight};

pub use adapters::held::AdapterPrecision;
pub use adapters::lora::{LoraAdapter, LoraOptions, adapter_table};
pub use adapters::merge::{MergedRows, MergedTensor, MergedTensors};
pub use arch::load;
pub use dummy::{DummySize, DummySpec, load_dummy};
pub use error::{ModelError, Result};
pub use loader::{LoadOptions, LoadProgress, WeightPrecision};
pub use rope::{RopeSpec, rope_table};
pub use score::{HEAD_ROWS, arena_bytes, log_probs, logits};
pub use wardrobe_formats::{Digest, ModelConfig};

/// A linear layer that adapters may adapt.
#[derive(Clone, Debug)]
pub struct Module {
    /// Path in Hugging Face's naming, such as `model.layers.3.self_attn.q_proj`.
    pub path: String,
    /// Position in [`Decoder::modules`], and index for the device's adapter table.
    pub idx: ModuleIdx,
    /// The frozen weight, `[out, in]`.
    pub weight: Weight,
}

impl Module {
    /// Whether it is an expert's, through which a few of the tokens go.
    pub fn is_of_expert(&self) -> bool {
        is_of_expert(&self.path)
    }
}

/// Whether a module of this path is an expert's.
pub fn is_of_expert(path: &str) -> bool {
    path.split('.').any(|part| part == "experts")
}

/// What is trained where nobody says otherwise, as `target_modules` has it: every linear layer but the head, and of a model
/// with experts attention's alone, since factors of all experts are many and each learns from few tokens.
pub fn default_target_modules(config: &ModelConfig) -> Vec<String> {
    let names: &[&str] = match config.experts {
        Some(_) => &["q_proj", "k_proj", "v_proj", "o_proj"],
        None => &["all-linear"],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// What a forward pass reads besides the step: state that outlives it.
#[derive(Debug)]
pub struct ForwardState<'a> {
    /// Keys and values of all sequences.
    pub kv: &'a mut KvCache,
    /// One table per RoPE scaling in use.
    pub rope: &'a RopeTables,
    /// Adapter slots; `None` if the step has no adapted row.
    pub lora: Option<&'a Arc<LoraTable>>,
}

/// What one block reads besides the step and its input.
#[derive(Debug)]
pub struct BlockState<'a> {
    /// Keys and values of the block.
    pub kv: &'a mut KvLayer,
    /// As [`ForwardState::rope`].
    pub rope: &'a RopeTables,
    /// As [`ForwardState::lora`].
    pub lora: Option<&'a Arc<LoraTable>>,
}

/// Elements that a row takes on its way through a decoder; callers size their memory by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowElements {
    /// All values that a block makes.
    pub values: usize,
    /// What a block's linear layers give, but for the last.
    pub linears: usize,
    /// A block's gradients, where they are most.
    pub gradients: usize,
    /// What the head makes.
    pub head: usize,
}

/// A decoder-only transformer: an embedding, [`ModelConfig::num_layers`] blocks, a norm and a head. Serving runs them all
/// ([`Decoder::forward`]); training calls the parts, to keep no more than a block's values.
pub trait Decoder: Send + Sync + std::fmt::Debug {
    /// Shape and constants.
    fn config(&self) -> &ModelConfig;

    /// Every layer that adapters may adapt, in the order of [`ModuleIdx`].
    fn modules(&self) -> &[Module];

    /// Digest of the content that it was loaded from: configuration and every tensor in use.
    fn content_digest(&self) -> Digest;

    /// Bytes of all weights on the device.
    fn weight_bytes(&self) -> usize;

    /// What a row takes.
    fn row_elements(&self) -> RowElements;

    /// Embeds the step's tokens, `[rows, hidden_size]`.
    ///
    /// # Errors
    /// Those of the device.
    fn embed(&self, ctx: &mut Ctx, step: &Step) -> wardrobe_device::Result<Tensor>;

    /// Block `block_idx` of `x` `[rows, hidden_size]`, of the same shape; writes the rows' keys and values.
    ///
    /// # Errors
    /// Those of the device.
    fn block(
        &self,
        ctx: &mut Ctx,
        block_idx: usize,
        x: &Tensor,
        step: &Step,
        state: BlockState<'_>,
    ) -> wardrobe_device::Result<Tensor>;

    /// The final norm of the step's logit rows, `[logit rows, hidden_size]`, of the last block's output.
    ///
    /// # Errors
    /// Those of the device.
    fn final_norm(&self, ctx: &mut Ctx, x: &Tensor, step: &Step) -> wardrobe_device::Result<Tensor>;

    /// Computes the step's rows, writing their keys and values, and returns the final normed hidden states of the
    /// step's logit rows, `[logit rows, hidden_size]`.
    ///
    /// # Errors
    /// Those of the device.
    fn forward(
        &self,
        ctx: &mut Ctx,
        step: &Step,
        state: ForwardState<'_>,
    ) -> wardrobe_device::Result<Tensor> {
        let mut x = self.embed(ctx, step)?;
        for block_idx in 0..self.config().num_layers {
            let kv = state.kv.layer_mut(block_idx)?;
            let state = BlockState { kv, rope: state.rope, lora: state.lora };
            x = ctx.scope_into(x, |ctx, x| self.block(ctx, block_idx, x, step, state))?;
        }
        self.final_norm(ctx, &x, step)
    }

    /// Logits of `hidden` `[rows, hidden_size]`: the step's logit rows `first_row ..`. `[rows, vocab_size]`.
    ///
    /// Apart from [`Decoder::forward`], so that a caller can bound memory by taking the rows in chunks.
    ///
    /// # Errors
    /// Those of the device.
    fn head(
        &self,
        ctx: &mut Ctx,
        hidden: &Tensor,
        first_row: usize,
        step: &Step,
        lora: Option<&Arc<LoraTable>>,
    ) -> wardrobe_device::Result<Tensor>;
}
