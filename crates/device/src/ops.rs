//! What a device has to offer: memory and weights ([`Device`]), and the op set of one context ([`Ops`]).
//!
//! Models never call [`Ops`]; they call the methods of [`crate::Ctx`], which check shapes, element types and
//! liveness once for every device and allocate the outputs.

use std::fmt;
use std::sync::Arc;

use crate::DType;
use crate::error::{DeviceError, Result};
use crate::experts::{ExpertTarget, Routing};
use crate::grad::GradOps;
use crate::kv::KvLayer;
use crate::lora::{LoraBatch, ModuleIdx};
use crate::row_ops::{Columns, Gelu, LayerNorm, RmsNorm};
use crate::sample::{LogprobRow, SampleRow, Sampled, TokenLogprobs};
use crate::step::{GraphKey, Step};
use crate::tensor::{Memory, Tensor};
use crate::weight::{HostTensor, Weight, WeightData};

/// A place that computes: hands out memory, repacks weights, and opens contexts' op sets.
pub trait Device: Send + Sync + fmt::Debug {
    /// Name for messages, with the instruction set or the card.
    fn name(&self) -> String;

    /// Element type in which what linear layers read is handed to them: what norms, activations and attention give.
    fn linear_input(&self) -> DType {
        DType::F32
    }

    /// Element type of keys and values, unless another is asked for.
    fn kv_dtype(&self) -> DType {
        DType::F16
    }

    /// The same while it trains, where gradients go through them.
    fn training_kv_dtype(&self) -> DType {
        DType::F32
    }

    /// Whether keys and values can be held in this type.
    fn holds_kv(&self, dtype: DType) -> bool {
        matches!(dtype, DType::F16 | DType::F32)
    }

    /// Whether steps are padded to few shapes ([`Ops::padded`]), for which the key-value cache has a block that belongs to nobody.
    fn pads_steps(&self) -> bool {
        false
    }

    /// Whether it rounds weights further than their file did, so that results are those of another quantisation.
    fn rounds_weights(&self) -> bool {
        false
    }

    /// Bytes of the device's own memory that are free; `None` where it computes with the host's.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// Zeroed memory of at least `bytes` bytes; `what` names its purpose in the error.
    fn alloc(&self, what: &'static str, bytes: usize) -> Result<Arc<dyn Memory>>;

    /// Repacks a weight for this device: without loss, and in no more bytes than it had but for rounding up to the
    /// device's tiles. `host` has the right number of bytes.
    fn load_weight(&self, host: &HostTensor<'_>) -> Result<Weight>;

    /// Rows `first_row ..` of a weight of this device, dequantised, `[rows, cols]`; as many as `out` holds.
    fn dequantise_rows(&self, weight: &Weight, first_row: usize, out: &mut [f32]) -> Result<()>;

    /// What ops over these experts' weights, which are of one shape, read besides, if anything.
    fn expert_table(&self, weights: &[Weight]) -> Result<Option<Arc<dyn WeightData>>> {
        let _ = weights;
        Ok(None)
    }

    /// `‖W + scale B A‖` of each row of a weight of this device, for `A` `[rank, in]` and `B` `[out, rank]`: what DoRA
    /// divides by.
    fn update_norms(&self, weight: &Weight, factors: [&[f32]; 2], scale: f32) -> Result<Vec<f32>> {
        let [a, b] = factors;
        let rank = (b.len() / weight.rows().max(1)).max(1);
        let mut row = vec![0.0; weight.cols()];
        let mut norms = Vec::with_capacity(weight.rows());
        for (o, b) in b.chunks(rank).enumerate() {
            self.dequantise_rows(weight, o, &mut row)?;
            for (b, a) in b.iter().zip(a.chunks(weight.cols().max(1))) {
                let factor = scale * b;
                row.iter_mut().zip(a).for_each(|(w, a)| *w += factor * a);
            }
            norms.push(row.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt() as f32);
        }
        Ok(norms)
    }

    /// A device over the same memory and weights whose contexts compute on `num_threads` threads of their own: for work
    /// that runs beside this one's.
    fn with_threads(&self, num_threads: usize) -> Result<Arc<dyn Device>> {
        let _ = num_threads;
        Err(DeviceError::Unsupported { device: self.name(), what: "threads of one's own".to_owned() })
    }

    /// The op set of a new context.
    fn open(&self) -> Result<Box<dyn Ops>>;
}

/// How a step is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepMode {
    /// Run the ops as they are called.
    Run,
    /// Run the ops and record them under the step's key.
    Capture,
    /// Do not call the model: replay what was recorded under the step's key.
    Replay,
}

/// One of the linear layers that share an input.
#[derive(Debug)]
pub struct LinearTarget<'a> {
    /// `[out, in]`.
    pub weight: &'a Weight,
    /// `[out]` F32.
    pub bias: Option<&'a Tensor>,
    /// The layer's index for adapters; `None` if none may touch it.
    pub module: Option<ModuleIdx>,
    /// Added to the result, `[rows, out]` F32.
    pub residual: Option<&'a Tensor>,
    /// What the adapters' part reads in the place of `x`, `[rows, in]` F32: after dropout, in training.
    pub lora_x: Option<&'a Tensor>,
    /// `[rows, out]` F32.
    pub out: &'a Tensor,
}

/// RoPE's cosines and sines (Su et al., arXiv 2104.09864), one table per scaling in use.
#[derive(Debug, Clone, Default)]
pub struct RopeTables {
    /// Each `[positions, rotary_dim / 2, 2]` F32: cosine and sine.
    pub tables: Vec<Tensor>,
}

/// Operands of paged causal attention.
#[derive(Debug)]
pub struct PagedAttention<'a> {
    /// `[rows, heads, head_dim]` F32.
    pub q: &'a Tensor,
    /// `[rows, kv_heads, head_dim]` F32: written into the cache first.
    pub k: &'a Tensor,
    /// As `k`.
    pub v: &'a Tensor,
    /// The layer's cache.
    pub kv: &'a mut KvLayer,
    /// Whose rows these are.
    pub step: &'a Step,
    /// Factor on the scores.
    pub scale: f32,
    /// A row sees only the last `window` positions, its own included.
    pub window: Option<usize>,
    /// Scores `s`, scaled, become `cap * tanh(s / cap)`.
    pub softcap: Option<f32>,
    /// `[rows, heads, head_dim]` F32.
    pub out: &'a Tensor,
    /// Where the logarithm of each softmax' denominator goes, `[rows, heads]` F32, if it is wanted.
    pub lse: Option<&'a Tensor>,
}

/// Operands of [`Ops::combine`].
#[derive(Debug)]
pub struct Combine<'a> {
    /// `[pairs, n]`.
    pub x: &'a Tensor,
    /// Whose pairs these are.
    pub routing: &'a Routing,
    /// Whether each counts by its weight.
    pub weighted: bool,
    /// `[rows, n]`.
    pub residual: Option<&'a Tensor>,
    /// `[rows, n]`.
    pub out: &'a Tensor,
}

/// The ops of one context. Tensors are contiguous; unless said otherwise they are F32 and the first extent is rows. What linear
/// layers read, and norms, activations and attention write, is F32 or of [`Device::linear_input`].
///
/// # Safety
/// Every op is `unsafe` for one and the same reason: it trusts that [`crate::Ctx`] has checked shapes, element types
/// and liveness, that outputs overlap no input, and that the step's contents were checked against their bounds.
#[allow(clippy::missing_safety_doc)]
pub trait Ops: Send {
    /// The backward ops, of a device that can train.
    fn grad(&mut self) -> Option<&mut dyn GradOps> {
        None
    }

    /// The shape in which a step of shape `key` is to be run: no extent smaller, and only for a step of one row a sequence whose
    /// rows all have logits, which then still are so. What is added belongs to nobody.
    fn padded(&self, key: &GraphKey) -> GraphKey {
        *key
    }

    /// Steps that were recorded are to read these tables from now on: `false` if they cannot, and have to be forgotten.
    fn rebind_rope(&mut self, tables: &RopeTables) -> Result<bool> {
        let _ = tables;
        Ok(false)
    }

    /// Decides how the step under `key` runs.
    unsafe fn begin_step(&mut self, key: &GraphKey) -> Result<StepMode> {
        let _ = key;
        Ok(StepMode::Run)
    }

    /// The step that began is complete, or failed (`ok` false: forget what was recorded).
    unsafe fn end_step(&mut self, key: &GraphKey, ok: bool) -> Result<()> {
        let _ = (key, ok);
        Ok(())
    }

    /// Forgets all that was recorded.
    fn forget_steps(&mut self) {}

    /// Runs again what was recorded under `key`.
    unsafe fn replay(&mut self, key: &GraphKey) -> Result<()>;

    /// `out[i] = scale * table[ids[i]]`, dequantised. `ids` U32 `[rows]`, `out` `[rows, cols]`.
    unsafe fn embed(&mut self, ids: &Tensor, table: &Weight, scale: f32, out: &Tensor) -> Result<()>;

    /// `out = x / sqrt(mean(x²) + eps) * weight + residual` per run (Zhang & Sennrich, arXiv 1910.07467).
    unsafe fn rms_norm(&mut self, args: RmsNorm<'_>) -> Result<()>;

    /// `out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` per row (Ba et al., arXiv 1607.06450).
    unsafe fn layer_norm(&mut self, args: LayerNorm<'_>) -> Result<()>;

    /// For each target `out = x Wᵀ + bias + residual + scale (x Aᵀ) Bᵀ`, with each row's own adapter. The order of
    /// additions over the input features is fixed: a row's result does not depend on the other rows.
    unsafe fn linear(
        &mut self,
        x: &Tensor,
        targets: &[LinearTarget<'_>],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()>;

    /// Rotates the first `rotary_dim` of each head in half-split pairs `(i, i + rotary_dim / 2)`; each pair is
    /// `(input, output)`, `[rows, heads, head_dim]`.
    unsafe fn rope(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        positions: &Tensor,
        rope_idx: &Tensor,
        tables: &RopeTables,
    ) -> Result<()>;

    /// Writes keys and values into the cache, then attends: each row to its sequence's positions up to its own.
    unsafe fn paged_attention(&mut self, args: PagedAttention<'_>) -> Result<()>;

    /// `out = gate / (1 + exp(-gate)) * up` (Shazeer, arXiv 2002.05202).
    unsafe fn silu_mul(&mut self, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()>;

    /// `out = gelu(x) * up`.
    unsafe fn gelu(&mut self, args: Gelu<'_>) -> Result<()>;

    /// `out = cap * tanh(x / cap)`.
    unsafe fn softcap(&mut self, x: &Tensor, cap: f32, out: &Tensor) -> Result<()>;

    /// Copies columns; see [`Columns`]. The other columns of `to` stay as they are.
    unsafe fn copy_columns(&mut self, args: Columns<'_>) -> Result<()>;

    /// `out[i] = x[rows[i]]`. `rows` U32.
    unsafe fn gather_rows(&mut self, x: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()>;

    /// Each row's experts: those of the `top_k` largest of `logits` `[rows, num_experts]`, of equal ones the first, and their
    /// softmax, which is that over all experts brought to the sum of one. NaN counts as the smallest. Writes all of `routing`.
    unsafe fn route(&mut self, logits: &Tensor, routing: &Routing) -> Result<()>;

    /// For each target `out[i] = x[i] Wᵀ + scale (x[i] Aᵀ) Bᵀ` with the weight, and the module, of the pair's expert and its
    /// row's adapter; `x` `[pairs, in]`. `lora`'s slots are those of the rows. As in [`Ops::linear`], a pair's result does not
    /// depend on the others.
    unsafe fn expert_linear(
        &mut self,
        x: &Tensor,
        targets: &[ExpertTarget<'_>],
        routing: &Routing,
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()>;

    /// `out[row] = residual[row] + Σ_j weights[row, j] x[places[row, j]]`, in this order; without `weights` each counts once.
    /// `x` `[pairs, n]`, `out` `[rows, n]`.
    unsafe fn combine(&mut self, args: Combine<'_>) -> Result<()>;

    /// Draws a token from each row of `logits` `[rows, vocabulary]`; `logits` is left as it was.
    unsafe fn sample(&mut self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>>;

    /// Log-probabilities of given tokens, one per row of `logits`.
    unsafe fn logprobs(&mut self, logits: &Tensor, rows: &[LogprobRow]) -> Result<Vec<TokenLogprobs>>;

    /// Copies `src` to `dst`, of the same size in bytes and not overlapping.
    unsafe fn copy(&mut self, src: &Tensor, dst: &Tensor) -> Result<()>;

    /// Copies host bytes to the start of `dst`.
    unsafe fn write(&mut self, dst: &Tensor, bytes: &[u8]) -> Result<()>;

    /// What was written so far may be read by other contexts when this returns.
    fn publish(&mut self) -> Result<()> {
        Ok(())
    }

    /// Copies `src` to host bytes of the same length, after all that was queued before.
    unsafe fn read(&mut self, src: &Tensor, bytes: &mut [u8]) -> Result<()>;
}
