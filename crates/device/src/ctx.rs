//! A context: an arena for scratch tensors, the buffers of a step, and the checked front of a device's ops.
//!
//! The arena is sized at start and never grows. Allocations stack up; [`Ctx::scratch`] and
//! [`Ctx::scope_into`] release what was allocated in them. Every op here checks liveness, shapes and element types,
//! allocates its output and then calls the device, so a device's ops see only sound operands.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::arena::{ALIGN, Arena, Reservation};
use crate::error::{DeviceError, Result, invalid};
use crate::kv::{BLOCK_SIZE, KvCache, KvConfig, KvLayer};
use crate::lora::{LoraBatch, ModuleIdx};
use crate::ops::{Device, LinearTarget, Ops, PagedAttention, RopeTables, StepMode};
use crate::step::{GraphKey, Step, StepBounds, StepBuffers, StepInputs, StepLimits};
use crate::tape::{Recorded, RecordedAttention, RecordedTarget, Training};
use crate::tensor::{Life, Tensor, expect};
use crate::weight::{HostTensor, Weight};
use crate::{DType, Shape};

/// Sizes of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CtxConfig {
    /// Bytes of scratch memory.
    pub arena_bytes: usize,
    /// Largest step.
    pub step: StepLimits,
}

/// One of the linear layers that share an input, as a model asks for it.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// `[out, in]`.
    pub weight: &'a Weight,
    /// `[out]` F32.
    pub bias: Option<&'a Tensor>,
    /// Index for adapters; `None` if none may touch it.
    pub module: Option<ModuleIdx>,
    /// Added to the result, `[rows, out]`.
    pub residual: Option<&'a Tensor>,
}

/// Heads and scaling of an attention op.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads; a multiple of the key-value heads.
    pub num_heads: usize,
    /// Key-value heads.
    pub num_kv_heads: usize,
    /// Length of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Sliding window in tokens.
    pub window: Option<usize>,
    /// Bound on the scores; see [`PagedAttention::softcap`].
    pub softcap: Option<f32>,
}

/// A context on a device.
pub struct Ctx {
    device: Arc<dyn Device>,
    ops: Box<dyn Ops>,
    arena: Arena,
    step_buffers: StepBuffers,
    step: Option<Step>,
    pub(crate) training: Training,
    /// Place in the arena and shape of the output of each recorded step.
    recorded: HashMap<GraphKey, (usize, Shape, DType)>,
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ctx({}, {} arena bytes)", self.device.name(), self.arena.capacity_bytes())
    }
}

impl Ctx {
    /// Opens a context and takes all the memory it will ever use.
    pub fn new(device: Arc<dyn Device>, config: CtxConfig) -> Result<Self> {
        let ops = device.open()?;
        let memory = device.alloc("the arena", config.arena_bytes)?;
        let words = StepBuffers::len_words(&config.step);
        let step_memory = device.alloc("the step's inputs", words.saturating_mul(4))?;
        Ok(Ctx {
            device,
            ops,
            arena: Arena::new(memory),
            step_buffers: StepBuffers::new(step_memory, config.step),
            step: None,
            training: Training::default(),
            recorded: HashMap::new(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Most bytes of the arena ever in use at once.
    pub fn arena_peak_bytes(&self) -> usize {
        self.arena.peak_bytes()
    }

    /// Bytes of the arena in use.
    pub fn arena_used_bytes(&self) -> usize {
        self.arena.used_bytes()
    }

    /// An uninitialised scratch tensor. Private: outside, tensors come out of ops, fully written.
    pub(crate) fn alloc(&mut self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        self.arena.alloc(shape.into(), dtype)
    }

    /// Runs `f`, copies its result over `x`, which has the same shape and type, and releases every scratch tensor that
    /// `f` allocated. So a stack of blocks needs the memory of one.
    pub fn scope_into(
        &mut self,
        x: Tensor,
        f: impl FnOnce(&mut Ctx, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.scratch(|ctx| {
            let result = f(ctx, &x)?;
            expect("scope_into", "result", &result, x.shape, x.dtype)?;
            expect("scope_into", "x", &x, x.shape, x.dtype)?;
            if result.addr("scope_into", "result")? != x.addr("scope_into", "x")? {
                // SAFETY: both are live and of one size; allocations of an arena never overlap.
                unsafe { ctx.ops.copy(&result, &x)? };
            }
            Ok(())
        })?;
        Ok(x)
    }

    /// Runs `f` and releases every scratch tensor that it allocated.
    pub fn scratch<R>(&mut self, f: impl FnOnce(&mut Ctx) -> Result<R>) -> Result<R> {
        let mark = self.arena.mark();
        let result = f(self);
        self.arena.release_to(mark);
        result
    }

    /// A persistent, zeroed tensor.
    pub fn persistent(&self, what: &'static str, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let memory = self.device.alloc(what, shape.numel().saturating_mul(dtype.size_bytes()))?;
        Tensor::persistent(memory, shape, dtype)
    }

    /// A persistent tensor with the given contents, little-endian.
    pub fn upload(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
        bytes: &[u8],
    ) -> Result<Tensor> {
        let tensor = self.persistent(what, shape, dtype)?;
        if bytes.len() != tensor.size_bytes() {
            return invalid("upload", format!("{} bytes for {tensor:?}", bytes.len()));
        }
        // SAFETY: a fresh tensor of just this many bytes.
        unsafe { self.ops.write(&tensor, bytes)? };
        self.ops.publish()?;
        Ok(tensor)
    }

    /// What was computed and written so far may be read by other contexts when this returns.
    pub fn publish(&mut self) -> Result<()> {
        self.ops.publish()
    }

    /// Memory for tensors that are used, and dropped, together: side by side they are read faster.
    pub fn reserve(&self, what: &'static str, bytes: usize) -> Result<Reservation> {
        Ok(Reservation { memory: self.device.alloc(what, bytes)?, used_bytes: 0 })
    }

    /// As [`Ctx::upload`], in the next free part of a reservation.
    ///
    /// # Errors
    /// [`crate::DeviceError::Invalid`] if it does not fit.
    pub fn upload_to(
        &mut self,
        reservation: &mut Reservation,
        shape: impl Into<Shape>,
        dtype: DType,
        bytes: &[u8],
    ) -> Result<Tensor> {
        let tensor = reservation.take(shape.into(), dtype)?;
        if bytes.len() != tensor.size_bytes() {
            return invalid("upload_to", format!("{} bytes for {tensor:?}", bytes.len()));
        }
        // SAFETY: a part of just this many bytes that no other tensor has.
        unsafe { self.ops.write(&tensor, bytes)? };
        self.ops.publish()?;
        Ok(tensor)
    }

    /// A persistent F32 tensor.
    pub fn upload_f32(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        values: &[f32],
    ) -> Result<Tensor> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.upload(what, shape, DType::F32, &bytes)
    }

    /// Repacks a weight for the device. The host copy can be dropped afterwards.
    pub fn load_weight(&mut self, host: &HostTensor<'_>) -> Result<Weight> {
        let wanted = host.format.row_bytes(host.cols).and_then(|row| row.checked_mul(host.rows));
        if host.rows == 0 || host.cols == 0 || wanted != Some(host.bytes.len()) {
            return invalid("load_weight", format!("{} bytes for {host:?}", host.bytes.len()));
        }
        self.device.load_weight(host)
    }

    /// A zeroed key-value cache.
    pub fn kv_cache(&self, config: KvConfig) -> Result<KvCache> {
        if !self.device.holds_kv(config.dtype) {
            return invalid("KvCache", format!("element type {:?}", config.dtype));
        }
        // Padding reads and writes the block after the last.
        let padding = usize::from(self.device.pads_steps());
        let shape = KvConfig { num_blocks: config.num_blocks + padding, ..config }.layer_shape()?;
        let layers = (0..config.num_layers)
            .map(|_| {
                let part = || self.persistent("the key-value cache", shape, config.dtype);
                Ok(KvLayer { k: part()?, v: part()? })
            })
            .collect::<Result<_>>()?;
        Ok(KvCache { config, layers })
    }

    /// Copies a tensor of floats to the host.
    pub fn read_f32(&mut self, t: &Tensor) -> Result<Vec<f32>> {
        let op = "read_f32";
        if t.dtype == DType::U32 {
            return Err(DeviceError::DType { op, operand: "tensor", expected: DType::F32, actual: t.dtype });
        }
        expect(op, "tensor", t, t.shape, t.dtype)?;
        let mut bytes = vec![0; t.size_bytes()];
        // SAFETY: live, and `bytes` has its length.
        unsafe { self.ops.read(t, &mut bytes)? };
        let halves = || bytes.as_chunks::<2>().0.iter();
        Ok(match t.dtype {
            DType::BF16 => halves().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            DType::F16 => halves().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        })
    }

    /// Runs one step: writes `inputs` into the fixed buffers, then runs, records or replays `forward` under the
    /// step's key. `forward` must depend on nothing but the key and what is on the device. All scratch tensors of
    /// earlier steps are released; the result stays valid until the next step. Its inputs are
    /// [`Ctx::step`] until then.
    pub fn run_step(
        &mut self,
        inputs: &StepInputs,
        bounds: &StepBounds,
        forward: impl FnOnce(&mut Ctx, &Step) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let own = inputs.key();
        let padded = if self.training.is_active() { own } else { self.ops.padded(&own) };
        let step = self.stage_padded(inputs, bounds, padded)?;
        // SAFETY: the step's contents were checked by `stage`.
        let mode = unsafe { self.ops.begin_step(&step.key)? };
        if mode == StepMode::Replay
            && let Some(&(offset_bytes, shape, dtype)) = self.recorded.get(&step.key)
        {
            // The replayed ops write where the recorded ones did.
            let out = self.arena.alloc_at(offset_bytes, shape, dtype)?;
            // SAFETY: as `begin_step`; addresses are those of the recording.
            unsafe { self.ops.replay(&step.key)? };
            return without_padding(out, inputs, &step.key);
        }
        let result = forward(self, &step).and_then(|out| match out.life {
            // A replay has nothing but place and shape to find the result by.
            Life::Scratch { .. } if out.offset_bytes.is_multiple_of(ALIGN) => Ok(out),
            _ => invalid("run_step", format!("the result {out:?} is no scratch tensor of its own")),
        });
        // SAFETY: the step began above.
        unsafe { self.ops.end_step(&step.key, result.is_ok())? };
        let out = result?;
        if mode == StepMode::Capture {
            self.recorded.insert(step.key, (out.offset_bytes, out.shape, out.dtype));
        }
        without_padding(out, inputs, &step.key)
    }

    /// Writes a step's inputs, to compute it op by op: nothing is padded, kept or replayed. All scratch tensors of earlier
    /// steps are released.
    pub fn stage(&mut self, inputs: &StepInputs, bounds: &StepBounds) -> Result<Step> {
        self.stage_padded(inputs, bounds, inputs.key())
    }

    fn stage_padded(&mut self, inputs: &StepInputs, bounds: &StepBounds, padded: GraphKey) -> Result<Step> {
        self.arena.release_to(0);
        let (step, buffer, words) = self.step_buffers.stage(inputs, bounds, padded)?;
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        // SAFETY: the fixed buffer is persistent and has room for the staged words.
        unsafe { self.ops.write(&buffer, &bytes)? };
        self.step = Some(step.clone());
        Ok(step)
    }

    pub(crate) fn ops_mut(&mut self) -> &mut dyn Ops {
        self.ops.as_mut()
    }

    /// Tells recorded steps of other RoPE tables. Where they cannot be told they are forgotten.
    pub fn rebind_rope(&mut self, tables: &RopeTables) -> Result<()> {
        if !self.ops.rebind_rope(tables)? {
            self.forget_steps();
        }
        Ok(())
    }

    /// Element type of what linear layers read. A trainer's values are kept in f32 and rounded, if at all, by the layers.
    pub(crate) fn linear_input(&self) -> DType {
        if self.training.is_active() { DType::F32 } else { self.device.linear_input() }
    }

    /// Forgets the steps that were recorded. They refer to weights, RoPE tables and cache as they were: whoever
    /// exchanges one of these calls this. Adapters are found anew at each step.
    pub fn forget_steps(&mut self) {
        self.recorded.clear();
        self.ops.forget_steps();
    }

    /// The inputs of the step that ran last.
    pub fn step(&self) -> Option<&Step> {
        self.step.as_ref()
    }

    /// Linear layers that share the input `x` `[rows, in]`; see [`Ops::linear`].
    pub fn linear<const N: usize>(
        &mut self,
        x: &Tensor,
        projections: [Projection<'_>; N],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<[Tensor; N]> {
        let op = "linear";
        let rows = x.shape.rows();
        let given = if x.dtype == self.device.linear_input() { x.dtype } else { DType::F32 };
        expect(op, "x", x, Shape::from([rows, x.shape.row_len()]), given)?;
        if let Some(lora) = lora {
            expect(op, "adapter slots", lora.slots, Shape::from([rows]), DType::U32)?;
            expect(op, "adapter scales", lora.scales, Shape::from([rows]), DType::F32)?;
        }
        let (mut outs, mut are_kept) = (Vec::with_capacity(N), true);
        for p in &projections {
            if p.weight.cols() != x.shape.row_len() {
                let expected = Shape::from([rows, p.weight.cols()]);
                return Err(DeviceError::Shape { op, operand: "x", expected, actual: x.shape });
            }
            let shape = Shape::from([rows, p.weight.rows()]);
            if let Some(bias) = p.bias {
                expect(op, "bias", bias, Shape::from([p.weight.rows()]), DType::F32)?;
            }
            if let Some(residual) = p.residual {
                expect(op, "residual", residual, shape, DType::F32)?;
            }
            if let (Some(lora), Some(module)) = (lora, p.module) {
                lora.check(module, p.weight)?;
            }
            let (out, kept) = self.linear_out(shape, 1)?;
            are_kept &= kept;
            outs.push(out);
        }
        let lora_xs = self.lora_inputs(x, &projections, lora)?;
        let targets: Vec<LinearTarget<'_>> = projections
            .iter()
            .zip(&outs)
            .zip(&lora_xs)
            .map(|((p, out), lora_x)| LinearTarget {
                weight: p.weight,
                bias: p.bias,
                module: p.module,
                residual: p.residual,
                lora_x: lora_x.as_ref(),
                out,
            })
            .collect();
        if !(are_kept && self.training.recalls()) {
            // SAFETY: checked above; outputs are fresh, or nobody else's.
            unsafe { self.ops.linear(x, &targets, lora)? };
        }
        self.training.record(|| Recorded::Linear {
            x: x.clone(),
            targets: (projections.iter().zip(&lora_xs).zip(&outs))
                .map(|((p, lora_x), out)| RecordedTarget::new(p, lora_x.as_ref(), out))
                .collect(),
            with_lora: lora.is_some(),
        });
        outs.try_into().or_else(|_| invalid(op, "as many outputs as projections"))
    }

    /// Rotary embedding of each tensor `[rows, heads * head_dim]`; see [`Ops::rope`].
    pub fn rope<const N: usize>(
        &mut self,
        xs: [&Tensor; N],
        head_dim: usize,
        step: &Step,
        tables: &RopeTables,
    ) -> Result<[Tensor; N]> {
        let op = "rope";
        let rows = step.key.num_rows;
        if step.bounds.num_rope_tables > tables.tables.len() {
            return invalid(
                op,
                format!("{} tables for a step of {}", tables.tables.len(), step.bounds.num_rope_tables),
            );
        }
        for table in &tables.tables {
            if step.bounds.max_positions > table.shape.rows() {
                let positions = (table.shape.rows(), step.bounds.max_positions);
                return invalid(
                    op,
                    format!("a table of {} positions for a step of {}", positions.0, positions.1),
                );
            }
            let half = table.shape.dims().get(1).copied().unwrap_or(0);
            expect(op, "table", table, Shape::from([table.shape.rows(), half, 2]), DType::F32)?;
            if half == 0 || 2 * half > head_dim {
                return invalid(op, format!("a table for {half} pairs with heads of {head_dim}"));
            }
        }
        let mut outs = Vec::with_capacity(N);
        let mut ins = Vec::with_capacity(N);
        for x in xs {
            expect(op, "x", x, Shape::from([rows, x.shape.row_len()]), DType::F32)?;
            if head_dim == 0 || x.shape.row_len() % head_dim != 0 {
                return invalid(op, format!("rows of {} with heads of {head_dim}", x.shape.row_len()));
            }
            let heads = Shape::from([rows, x.shape.row_len() / head_dim, head_dim]);
            ins.push(x.reshape(heads)?);
            outs.push(self.alloc(heads, DType::F32)?);
        }
        let pairs: Vec<(&Tensor, &Tensor)> = ins.iter().zip(&outs).collect();
        // SAFETY: checked above; positions and table indices were checked when the step was staged.
        unsafe { self.ops.rope(&pairs, &step.positions, &step.rope_idx, tables)? };
        self.training.record(|| Recorded::Rope {
            pairs: ins.iter().cloned().zip(outs.iter().cloned()).collect(),
            step: Box::new(step.clone()),
            tables: tables.clone(),
        });
        outs.try_into().or_else(|_| invalid(op, "as many outputs as inputs"))
    }

    /// Causal attention over the paged cache. `q` `[rows, heads * head_dim]`, `k` and `v`
    /// `[rows, kv_heads * head_dim]` in any shape of that size; the result is `[rows, heads * head_dim]`.
    pub fn paged_attention(
        &mut self,
        qkv: [&Tensor; 3],
        spec: &AttentionSpec,
        kv: &mut KvLayer,
        step: &Step,
    ) -> Result<Tensor> {
        let op = "paged_attention";
        let rows = step.key.num_rows;
        let (h, hk, d) = (spec.num_heads, spec.num_kv_heads, spec.head_dim);
        let is_capped = spec.softcap.is_none_or(|cap| cap > 0.0 && cap.is_finite());
        if h == 0 || hk == 0 || h % hk != 0 || d == 0 || spec.window == Some(0) || !is_capped {
            return invalid(op, format!("{spec:?}"));
        }
        let [q, k, v] = qkv;
        let q = q.reshape([rows, h, d])?;
        let (k, v) = (k.reshape([rows, hk, d])?, v.reshape([rows, hk, d])?);
        for (name, t) in [("q", &q), ("k", &k), ("v", &v)] {
            expect(op, name, t, t.shape, DType::F32)?;
        }
        let cache = Shape::from([kv.k.shape.rows(), hk, BLOCK_SIZE * d]);
        let padding = usize::from(self.device.pads_steps());
        expect(op, "cache", &kv.k, cache, kv.k.dtype)?;
        expect(op, "cache", &kv.v, cache, kv.k.dtype)?;
        if step.bounds.num_blocks + padding > cache.rows() || step.bounds.block_size != BLOCK_SIZE {
            let checked = (step.bounds.num_blocks, step.bounds.block_size);
            return invalid(op, format!("the step was checked for {checked:?} blocks, the cache is {cache}"));
        }
        let memo = self.training.attention_memo().cloned();
        if memo.is_none() && self.training.is_recording() {
            return invalid(op, "attention is recorded only with what it gave (Ctx::with_memo)");
        }
        let (out, lse) = match &memo {
            Some(memo) => {
                expect(op, "kept output", &memo.out, Shape::from([rows, h * d]), DType::F32)?;
                expect(op, "kept lse", &memo.lse, Shape::from([rows, h]), DType::F32)?;
                (memo.out.reshape([rows, h, d])?, Some(&memo.lse))
            }
            None => (self.alloc([rows, h, d], self.linear_input())?, None),
        };
        if !self.training.recalls() {
            let AttentionSpec { scale, window, softcap, .. } = *spec;
            let args =
                PagedAttention { q: &q, k: &k, v: &v, kv, step, scale, window, softcap, out: &out, lse };
            // SAFETY: checked above; the step's tables were checked against the cache when it was staged.
            unsafe { self.ops.paged_attention(args)? };
        }
        if let Some(memo) = memo {
            let (qkv, spec, step) = ([q, k, v], *spec, step.clone());
            let attention = RecordedAttention { qkv, memo, spec, step };
            self.training.record(|| Recorded::Attention(Box::new(attention)));
        }
        out.reshape([rows, h * d])
    }

    /// The step's logit rows of `x` `[rows, n]`.
    pub fn gather_logit_rows(&mut self, x: &Tensor, step: &Step) -> Result<Tensor> {
        expect("gather_rows", "x", x, Shape::from([step.key.num_rows, x.shape.row_len()]), DType::F32)?;
        let out = self.alloc([step.key.num_logit_rows, x.shape.row_len()], DType::F32)?;
        // SAFETY: checked above; the row numbers were checked when the step was staged.
        unsafe { self.ops.gather_rows(x, &step.logit_rows, &out)? };
        self.training.record(|| Recorded::Gather {
            x: x.clone(),
            rows: step.logit_rows.clone(),
            out: out.clone(),
        });
        Ok(out)
    }
}

/// The rows of a step's result that were asked for.
fn without_padding(out: Tensor, inputs: &StepInputs, padded: &GraphKey) -> Result<Tensor> {
    let own = inputs.key();
    if own.num_rows == padded.num_rows {
        return Ok(out);
    }
    if out.shape.rows() != padded.num_rows {
        return invalid("run_step", format!("the result {out:?} of a step of {} rows", padded.num_rows));
    }
    out.rows(0, own.num_rows)
}
