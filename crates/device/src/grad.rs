//! The backward ops of one context, and what LoRA training reads and writes beside them.
//!
//! Only LoRA factors (and DoRA's magnitudes) are trained. A frozen weight has no gradient and never gets one: its linear
//! layer passes the gradient of its output on to its input, with the exactly dequantised weight, whatever the forward
//! op rounded its activations to (straight-through estimation: Bengio et al., arXiv 1308.3432).
//!
//! Models never call these: [`crate::Ctx::backward`] does, from what a [`crate::Tape`] has recorded.

use crate::error::Result;
use crate::experts::Routing;
use crate::lora::LoraFactors;
use crate::ops::RopeTables;
use crate::row_ops::GeluKind;
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weight::Weight;

/// One module's factors in training: in the layouts that forward and backward read, and their gradients.
#[derive(Clone, Debug)]
pub struct TrainedModule {
    /// What the forward pass reads; F32.
    pub factors: LoraFactors,
    /// A as `[in, rank]` in panels of 16 inputs (see [`LoraFactors::pack_b`]).
    pub a_panels: Tensor,
    /// B, `[out, rank]`.
    pub b_rows: Tensor,
    /// DoRA's magnitudes, `[out]`, where the factors have an output scale.
    pub magnitude: Option<Tensor>,
    /// Where gradients are added.
    pub grads: LoraGrads,
}

/// Gradients of a module's factors. Ops add to them.
#[derive(Clone, Debug)]
pub struct LoraGrads {
    /// Of A, `[rank, in]`.
    pub a: Tensor,
    /// Of B transposed, `[rank, out]`.
    pub b: Tensor,
    /// Of DoRA's magnitudes, `[out]`.
    pub magnitude: Option<Tensor>,
}

/// Operands of attention's backward op.
#[derive(Debug)]
pub struct AttentionBackward<'a> {
    /// `[rows, heads, head_dim]`.
    pub q: &'a Tensor,
    /// `[rows, kv_heads, head_dim]`.
    pub k: &'a Tensor,
    /// As `k`.
    pub v: &'a Tensor,
    /// What the forward op gave, `[rows, heads, head_dim]`.
    pub out: &'a Tensor,
    /// Logarithm of each softmax' denominator, `[rows, heads]`.
    pub lse: &'a Tensor,
    /// Gradient of `out`.
    pub d_out: &'a Tensor,
    /// Written.
    pub d_q: &'a Tensor,
    /// Written.
    pub d_k: &'a Tensor,
    /// Written.
    pub d_v: &'a Tensor,
    /// Room for a part of `d_q`, `[rows, heads, head_dim]`.
    pub partial: &'a Tensor,
    /// Whose rows these are; each sequence's rows are its whole context.
    pub step: &'a Step,
    /// Factor on the scores.
    pub scale: f32,
    /// Sliding window in tokens.
    pub window: Option<usize>,
    /// As [`crate::PagedAttention::softcap`].
    pub softcap: Option<f32>,
}

/// Which values dropout leaves out: a function of these numbers and of the place alone, so that a recomputation leaves
/// out the same ones, and another split into micro-batches too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability of a value to be left out; the others are divided by one minus it (Srivastava et al., JMLR 15, 2014).
    pub probability: f32,
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step.
    pub step: u32,
}

/// One step of AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate at this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub epsilon: f32,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f32,
    /// Number of this step, from 1.
    pub step: u32,
    /// Factor on the gradient: what clipping leaves of it.
    pub gradient_scale: f32,
}

/// The backward ops. All tensors are F32 and contiguous; `d_` names a gradient.
///
/// # Safety
/// As [`crate::Ops`]: operands were checked by [`crate::Ctx`].
#[allow(clippy::missing_safety_doc)]
pub trait GradOps {
    /// Adds to `d_x` the gradient of [`crate::Ops::rms_norm`]; a residual's is `d_out`.
    unsafe fn rms_norm_backward(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()>;

    /// Adds to `d_x` the gradient of [`crate::Ops::layer_norm`].
    unsafe fn layer_norm_backward(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()>;

    /// `d_x = Σ d_out W` over the layers, or added to `d_x`.
    unsafe fn linear_backward(
        &mut self,
        layers: &[(&Weight, &Tensor)],
        d_x: &Tensor,
        accumulate: bool,
    ) -> Result<()>;

    /// Adds a module's update: its gradients to `module.grads`, and that of its input `x` `[rows, in]` to `d_x`. `d_out`
    /// `[rows, out]` is the gradient of what the update is added to. `low` `[2, rows, rank]` is room for the products with
    /// A and with B.
    unsafe fn lora_backward(
        &mut self,
        module: &TrainedModule,
        x: &Tensor,
        d_out: &Tensor,
        low: &Tensor,
        d_x: &Tensor,
    ) -> Result<()>;

    /// DoRA: `scaled = d_out * out_scale` per output, and adds to the magnitudes' gradient
    /// `Σ_rows d_out * (out - bias - residual) / magnitude`. The norm below the magnitude counts as a constant (Liu et
    /// al., arXiv 2402.09353, section 4.3).
    unsafe fn dora_backward(&mut self, args: DoraBackward<'_>) -> Result<()>;

    /// The gradient of [`crate::Ops::rope`]: each pair is (gradient of the output, gradient of the input).
    unsafe fn rope_backward(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        step: &Step,
        tables: &RopeTables,
    ) -> Result<()>;

    /// The gradient of causal attention within each sequence (Dao, arXiv 2307.08691, algorithm 2): scores are computed
    /// again tile by tile, so that memory does not grow with the square of the length.
    unsafe fn attention_backward(&mut self, args: AttentionBackward<'_>) -> Result<()>;

    /// Writes the gradients of [`crate::Ops::silu_mul`]. `d_gate` may be `d_out`.
    unsafe fn silu_mul_backward(
        &mut self,
        gate: &Tensor,
        up: &Tensor,
        d_out: &Tensor,
        d_gate: &Tensor,
        d_up: &Tensor,
    ) -> Result<()>;

    /// Writes the gradients of [`crate::Ops::gelu`].
    unsafe fn gelu_backward(&mut self, args: GeluBackward<'_>) -> Result<()>;

    /// Writes the gradient of [`crate::Ops::softcap`]. `d_x` may be `d_out`.
    unsafe fn softcap_backward(&mut self, x: &Tensor, cap: f32, d_out: &Tensor, d_x: &Tensor) -> Result<()>;

    /// `d_x[rows[i]] += d_out[i]`. `rows` U32, ascending, none twice.
    unsafe fn gather_rows_backward(&mut self, d_out: &Tensor, rows: &Tensor, d_x: &Tensor) -> Result<()>;

    /// Writes the gradient of the logits that [`crate::Ops::route`] read, from that of its weights. Experts that were not taken
    /// have none.
    unsafe fn route_backward(
        &mut self,
        routing: &Routing,
        d_weights: &Tensor,
        d_logits: &Tensor,
    ) -> Result<()>;

    /// Writes the gradients of [`crate::Ops::combine`] by weights: `d_x[places[row, j]] = weights[row, j] d_out[row]`, and
    /// `d_weights[row, j] = x[places[row, j]] · d_out[row]`.
    unsafe fn combine_backward(&mut self, args: CombineBackward<'_>) -> Result<()>;

    /// `to += factor * from`.
    unsafe fn add_scaled(&mut self, from: &Tensor, factor: f32, to: &Tensor) -> Result<()>;

    /// Zeroes a tensor.
    unsafe fn clear(&mut self, x: &Tensor) -> Result<()>;

    /// `-log softmax(logits[i])[targets[i]]` of each row, and `logits[i] = weights[i] (softmax(logits[i]) - onehot)`: the
    /// gradient of the weighted sum of losses.
    unsafe fn cross_entropy(
        &mut self,
        logits: &Tensor,
        targets: &[u32],
        weights: &[f32],
        losses: &mut [f32],
    ) -> Result<()>;

    /// `out = x` with some values left out, see [`Dropout`]; `example_idx` and `positions` `[rows]` U32 say which rows
    /// these are. With `accumulate` it is added to `out`: the gradient.
    unsafe fn dropout(&mut self, args: DropoutArgs<'_>) -> Result<()>;

    /// One optimizer step over all parameters.
    unsafe fn adamw(
        &mut self,
        options: &AdamW,
        parameters: &Tensor,
        gradients: &Tensor,
        moments: [&Tensor; 2],
    ) -> Result<()>;

    /// `Σ x²`, in an order that depends on the length alone.
    unsafe fn sum_of_squares(&mut self, x: &Tensor) -> Result<f64>;

    /// `out = xᵀ`, of a matrix.
    unsafe fn transpose(&mut self, x: &Tensor, out: &Tensor) -> Result<()>;

    /// `xᵀ` in panels of 16 of its rows (see [`LoraFactors::pack_b`]): `x` `[rank, n]`, `out` `[n, rank]`.
    unsafe fn transpose_panels(&mut self, x: &Tensor, out: &Tensor) -> Result<()>;
}

/// Operands of [`GradOps::combine_backward`].
#[derive(Debug)]
pub struct CombineBackward<'a> {
    /// `[pairs, n]`.
    pub x: &'a Tensor,
    /// Whose pairs these are.
    pub routing: &'a Routing,
    /// `[rows, n]`.
    pub d_out: &'a Tensor,
    /// Written, `[pairs, n]`.
    pub d_x: &'a Tensor,
    /// Written, `[rows, top_k]`.
    pub d_weights: &'a Tensor,
}

/// Operands of [`GradOps::gelu_backward`], all of one shape.
#[derive(Debug)]
pub struct GeluBackward<'a> {
    /// What the forward op read.
    pub x: &'a Tensor,
    /// What its result was multiplied by, if anything, and where the gradient of that goes.
    pub up: Option<(&'a Tensor, &'a Tensor)>,
    /// How it was computed.
    pub kind: GeluKind,
    /// Gradient of the result.
    pub d_out: &'a Tensor,
    /// Written; may be `d_out`.
    pub d_x: &'a Tensor,
}

/// Operands of [`GradOps::dora_backward`].
#[derive(Debug)]
pub struct DoraBackward<'a> {
    /// What the layer gave, `[rows, out]`.
    pub out: &'a Tensor,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
    /// `[rows, out]`.
    pub residual: Option<&'a Tensor>,
    /// `[out]`.
    pub out_scale: &'a Tensor,
    /// `[out]`.
    pub magnitude: &'a Tensor,
    /// `[rows, out]`.
    pub d_out: &'a Tensor,
    /// Written, `[rows, out]`.
    pub scaled: &'a Tensor,
    /// Added to, `[out]`.
    pub d_magnitude: &'a Tensor,
}

/// Operands of [`GradOps::dropout`].
#[derive(Debug)]
pub struct DropoutArgs<'a> {
    /// Probability, seed and step.
    pub dropout: Dropout,
    /// Number of the module.
    pub module: u32,
    /// `[rows]` U32: number of each row's example.
    pub example_idx: &'a Tensor,
    /// `[rows]` U32: position of each row in its example.
    pub positions: &'a Tensor,
    /// `[rows, n]`.
    pub x: &'a Tensor,
    /// `[rows, n]`.
    pub out: &'a Tensor,
    /// Whether it is added to `out`.
    pub accumulate: bool,
}
