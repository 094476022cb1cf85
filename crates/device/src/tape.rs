//! Recording a forward pass, and going back through it.
//!
//! The ops of a context are written down while it records ([`Ctx::record`]); [`Ctx::backward`] walks them in reverse. So
//! models are written once and know nothing of gradients. Recorded values lie in the arena: a tape is used up in the
//! scope in which it was made. To keep memory small, trainers keep the input of each block alone and record one block at
//! a time (Chen et al., arXiv 1604.06174); what attention gave is kept beside it, since it costs most to compute again
//! (Korthikanti et al., arXiv 2205.05198, section 5).

use std::collections::HashMap;

use crate::ctx::{AttentionSpec, Ctx, Projection};
use crate::error::{DeviceError, Result, invalid};
use crate::grad::{AdamW, AttentionBackward, DoraBackward, Dropout, DropoutArgs, GradOps, TrainedModule};
use crate::lora::{LoraBatch, ModuleIdx};
use crate::ops::RopeTables;
use crate::step::Step;
use crate::tensor::{Tensor, expect};
use crate::weight::Weight;
use crate::{DType, Shape};

/// What attention gave in a block, kept from the first computation for the second.
#[derive(Clone, Debug)]
pub struct AttentionMemo {
    /// `[rows, heads * head_dim]`.
    pub out: Tensor,
    /// Logarithms of the softmax' denominators, `[rows, heads]`.
    pub lse: Tensor,
}

/// A value and its gradient, from which [`Ctx::backward`] starts.
#[derive(Clone, Debug)]
pub struct Seed<'a> {
    /// What the recorded ops gave.
    pub value: &'a Tensor,
    /// Its gradient, of the same shape. It may be overwritten.
    pub gradient: Tensor,
}

/// Ops that were recorded, in order.
#[derive(Debug, Default)]
pub struct Tape {
    ops: Vec<Recorded>,
}

/// An op with its operands.
#[derive(Debug)]
pub(crate) enum Recorded {
    RmsNorm { x: Tensor, weight: Tensor, eps: f32, out: Tensor },
    Linear { x: Tensor, targets: Vec<RecordedTarget>, with_lora: bool },
    Rope { pairs: Vec<(Tensor, Tensor)>, step: Step, tables: RopeTables },
    Attention { qkv: [Tensor; 3], memo: AttentionMemo, spec: AttentionSpec, step: Step },
    SiluMul { gate: Tensor, up: Tensor, out: Tensor },
    Gather { x: Tensor, rows: Tensor, out: Tensor },
}

#[derive(Debug)]
pub(crate) struct RecordedTarget {
    weight: Weight,
    bias: Option<Tensor>,
    module: Option<ModuleIdx>,
    residual: Option<Tensor>,
    lora_x: Option<Tensor>,
    out: Tensor,
}

impl RecordedTarget {
    pub(crate) fn new(projection: &Projection<'_>, lora_x: Option<&Tensor>, out: &Tensor) -> Self {
        RecordedTarget {
            weight: projection.weight.clone(),
            bias: projection.bias.cloned(),
            module: projection.module,
            residual: projection.residual.cloned(),
            lora_x: lora_x.cloned(),
            out: out.clone(),
        }
    }
}

/// What a context does beside computing, while it trains.
#[derive(Debug, Default)]
pub(crate) struct Training {
    tape: Option<Tape>,
    memo: Option<(AttentionMemo, MemoUse)>,
    dropout: Option<RowDropout>,
}

/// Whether attention is computed and kept, or taken from what was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoUse {
    /// Compute, and write.
    Keep,
    /// Do not compute.
    Recall,
}

/// Dropout, and whose rows a step has.
#[derive(Debug, Clone)]
struct RowDropout {
    dropout: Dropout,
    example_idx: Tensor,
    positions: Tensor,
}

impl Training {
    pub(crate) fn record(&mut self, op: impl FnOnce() -> Recorded) {
        if let Some(tape) = &mut self.tape {
            tape.ops.push(op());
        }
    }

    pub(crate) fn is_recording(&self) -> bool {
        self.tape.is_some()
    }

    pub(crate) fn memo(&self) -> Option<&(AttentionMemo, MemoUse)> {
        self.memo.as_ref()
    }
}

impl Ctx {
    /// Runs `f` and records the ops that it calls.
    ///
    /// # Errors
    /// Those of `f`; [`DeviceError::Unsupported`] for a device without backward ops.
    pub fn record<R>(&mut self, f: impl FnOnce(&mut Ctx) -> Result<R>) -> Result<(R, Tape)> {
        self.grad_ops()?;
        let outer = self.training.tape.replace(Tape::default());
        let result = f(self);
        let tape = std::mem::replace(&mut self.training.tape, outer);
        Ok((result?, tape.unwrap_or_default()))
    }

    /// Runs `f`, a block with one attention op at most, which writes to `memo` or is replaced by it.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn with_attention<R>(
        &mut self,
        memo: &AttentionMemo,
        use_: MemoUse,
        f: impl FnOnce(&mut Ctx) -> Result<R>,
    ) -> Result<R> {
        self.training.memo = Some((memo.clone(), use_));
        let result = f(self);
        self.training.memo = None;
        result
    }

    /// Sets dropout on what adapters read, for the step that was staged last: `example_idx` `[rows]` U32 numbers the rows'
    /// examples. `None` ends it.
    ///
    /// # Errors
    /// [`DeviceError`] for a probability outside `0 .. 1` or a tensor of another shape; without a staged step.
    pub fn set_dropout(&mut self, dropout: Option<(Dropout, &Tensor)>) -> Result<()> {
        let op = "set_dropout";
        self.training.dropout = match dropout {
            Some((dropout, _)) if !(0.0..1.0).contains(&dropout.probability) => {
                return invalid(op, format!("probability {}", dropout.probability));
            }
            Some((dropout, example_idx)) if dropout.probability > 0.0 => {
                let Some(step) = self.step() else { return invalid(op, "no step was staged") };
                let positions = step.positions.clone();
                expect(op, "examples", example_idx, positions.shape(), DType::U32)?;
                Some(RowDropout { dropout, example_idx: example_idx.clone(), positions })
            }
            _ => None,
        };
        Ok(())
    }

    /// Runs `f` without dropout.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn without_dropout<R>(&mut self, f: impl FnOnce(&mut Ctx) -> Result<R>) -> Result<R> {
        let dropout = self.training.dropout.take();
        let result = f(self);
        self.training.dropout = dropout;
        result
    }

    /// What the adapters of a linear op read in the place of `x`: with dropout a tensor for each projection.
    pub(crate) fn lora_inputs(
        &mut self,
        x: &Tensor,
        projections: &[Projection<'_>],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut inputs = vec![None; projections.len()];
        let Some(rows) = self.training.dropout.clone().filter(|_| lora.is_some()) else { return Ok(inputs) };
        for (input, projection) in inputs.iter_mut().zip(projections) {
            let Some(module) = projection.module else { continue };
            expect(
                "dropout",
                "x",
                x,
                Shape::from([rows.positions.shape().rows(), x.shape().row_len()]),
                DType::F32,
            )?;
            let out = self.alloc(x.shape(), DType::F32)?;
            let args = rows.args(module, x, &out, false);
            // SAFETY: checked above; `out` is fresh.
            unsafe { self.grad_ops()?.dropout(args)? };
            *input = Some(out);
        }
        Ok(inputs)
    }

    pub(crate) fn grad_ops(&mut self) -> Result<&mut dyn GradOps> {
        let device = self.device().clone();
        self.ops_mut()
            .grad()
            .ok_or_else(|| DeviceError::Unsupported { device: device.name(), what: "training".to_owned() })
    }

    /// Goes back through `tape` from `seed`: writes the gradient of `of` to `d_of` (which may be the seed's gradient) and
    /// adds the gradients of the modules' factors to what these hold, `modules` being by [`ModuleIdx`].
    ///
    /// # Errors
    /// [`DeviceError`] for a value that was not recorded, or one that no gradient reaches.
    pub fn backward(
        &mut self,
        tape: Tape,
        seed: Seed<'_>,
        of: &Tensor,
        d_of: &Tensor,
        modules: &[Option<TrainedModule>],
    ) -> Result<()> {
        let op = "backward";
        expect(op, "gradient", &seed.gradient, seed.value.shape(), DType::F32)?;
        expect(op, "gradient of the input", d_of, of.shape(), DType::F32)?;
        self.scratch(|ctx| {
            let mut pass =
                Backward { ctx, modules, gradients: HashMap::new(), free: Vec::new(), lent: HashMap::new() };
            pass.give(seed.value, seed.gradient)?;
            for recorded in tape.ops.into_iter().rev() {
                pass.op(recorded)?;
            }
            let Some(gradient) = pass.take(of)? else {
                return invalid(op, "no gradient reaches the input");
            };
            if gradient.addr(op, "gradient")? != d_of.addr(op, "gradient of the input")? {
                // SAFETY: both are live and of one size; they do not overlap, being two allocations.
                unsafe { ctx.ops_mut().copy(&gradient, d_of)? };
            }
            Ok(())
        })
    }

    /// Losses of rows of `logits` `[rows, vocabulary]`, which become the gradient of the losses' sum, weighted; see
    /// [`GradOps::cross_entropy`].
    ///
    /// # Errors
    /// [`DeviceError`] for a target outside the vocabulary or other lengths.
    pub fn cross_entropy(&mut self, logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Vec<f32>> {
        let op = "cross_entropy";
        let vocab = logits.shape().row_len();
        expect(op, "logits", logits, Shape::from([targets.len(), vocab]), DType::F32)?;
        if weights.len() != targets.len() || targets.iter().any(|&t| t as usize >= vocab) {
            return invalid(op, format!("targets outside a vocabulary of {vocab}, or without a weight"));
        }
        let mut losses = vec![0.0; targets.len()];
        // SAFETY: checked above.
        unsafe { self.grad_ops()?.cross_entropy(logits, targets, weights, &mut losses)? };
        Ok(losses)
    }

    /// `to += factor * from`.
    ///
    /// # Errors
    /// [`DeviceError`] for different shapes.
    pub fn add_scaled(&mut self, from: &Tensor, factor: f32, to: &Tensor) -> Result<()> {
        expect("add_scaled", "from", from, from.shape(), DType::F32)?;
        expect("add_scaled", "to", to, from.shape(), DType::F32)?;
        // SAFETY: checked above.
        unsafe { self.grad_ops()?.add_scaled(from, factor, to) }
    }

    /// Zeroes an F32 tensor.
    ///
    /// # Errors
    /// [`DeviceError`] for one that is not live.
    pub fn clear(&mut self, x: &Tensor) -> Result<()> {
        expect("clear", "x", x, x.shape(), DType::F32)?;
        // SAFETY: checked above.
        unsafe { self.grad_ops()?.clear(x) }
    }

    /// Copies an F32 tensor over another.
    ///
    /// # Errors
    /// [`DeviceError`] for different shapes.
    pub fn copy(&mut self, from: &Tensor, to: &Tensor) -> Result<()> {
        expect("copy", "from", from, from.shape(), DType::F32)?;
        expect("copy", "to", to, from.shape(), DType::F32)?;
        if from.addr("copy", "from")? == to.addr("copy", "to")? {
            return Ok(());
        }
        // SAFETY: of one size; two tensors of one shape that begin at different places do not overlap.
        unsafe { self.ops_mut().copy(from, to) }
    }

    /// Writes an F32 tensor.
    ///
    /// # Errors
    /// [`DeviceError`] for another number of values.
    pub fn write_f32(&mut self, to: &Tensor, values: &[f32]) -> Result<()> {
        expect("write_f32", "tensor", to, to.shape(), DType::F32)?;
        if values.len() != to.shape().numel() {
            return invalid("write_f32", format!("{} values for {to:?}", values.len()));
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        // SAFETY: live, and of this many bytes.
        unsafe { self.ops_mut().write(to, &bytes) }
    }

    /// One optimizer step; all tensors of one shape.
    ///
    /// # Errors
    /// [`DeviceError`] for different shapes.
    pub fn adamw(
        &mut self,
        options: &AdamW,
        parameters: &Tensor,
        gradients: &Tensor,
        moments: [&Tensor; 2],
    ) -> Result<()> {
        for (name, t) in [
            ("parameters", parameters),
            ("gradients", gradients),
            ("moments", moments[0]),
            ("moments", moments[1]),
        ] {
            expect("adamw", name, t, parameters.shape(), DType::F32)?;
        }
        // SAFETY: checked above.
        unsafe { self.grad_ops()?.adamw(options, parameters, gradients, moments) }
    }

    /// `Σ x²`; see [`GradOps::sum_of_squares`].
    ///
    /// # Errors
    /// [`DeviceError`] for a tensor that is not live.
    pub fn sum_of_squares(&mut self, x: &Tensor) -> Result<f64> {
        expect("sum_of_squares", "x", x, x.shape(), DType::F32)?;
        // SAFETY: checked above.
        unsafe { self.grad_ops()?.sum_of_squares(x) }
    }

    /// Brings a factor `[rank, n]` into both layouts that ops read: transposed `[n, rank]`, and that in panels.
    ///
    /// # Errors
    /// [`DeviceError`] for other shapes.
    pub fn pack_factor(&mut self, factor: &Tensor, transposed: &Tensor, panels: &Tensor) -> Result<()> {
        let op = "pack_factor";
        let (rank, n) = (factor.shape().rows(), factor.shape().row_len());
        expect(op, "factor", factor, Shape::from([rank, n]), DType::F32)?;
        expect(op, "transposed", transposed, Shape::from([n, rank]), DType::F32)?;
        expect(op, "panels", panels, Shape::from([n, rank]), DType::F32)?;
        let ops = self.grad_ops()?;
        // SAFETY: checked above.
        unsafe {
            ops.transpose(factor, transposed)?;
            ops.transpose_panels(factor, panels)
        }
    }
}

impl RowDropout {
    fn args<'a>(
        &'a self,
        module: ModuleIdx,
        x: &'a Tensor,
        out: &'a Tensor,
        accumulate: bool,
    ) -> DropoutArgs<'a> {
        DropoutArgs {
            dropout: self.dropout,
            module: module.0,
            example_idx: &self.example_idx,
            positions: &self.positions,
            x,
            out,
            accumulate,
        }
    }
}

/// A walk back. Gradients are found by their values' places; what a gradient no longer needs is lent again.
struct Backward<'a> {
    ctx: &'a mut Ctx,
    modules: &'a [Option<TrainedModule>],
    gradients: HashMap<usize, Tensor>,
    free: Vec<Tensor>,
    /// What was lent, whole, by its place.
    lent: HashMap<usize, Tensor>,
}

const OP: &str = "backward";

impl Backward<'_> {
    /// A tensor that holds anything.
    fn alloc(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let wanted = shape.numel();
        let fits = |t: &Tensor| t.shape().numel() >= wanted;
        let smallest = (0..self.free.len())
            .filter(|&i| self.free.get(i).is_some_and(fits))
            .min_by_key(|&i| self.free.get(i).map_or(0, |t| t.shape().numel()));
        let whole = match smallest {
            Some(i) => self.free.swap_remove(i),
            None => self.ctx.alloc([wanted], DType::F32)?,
        };
        let view = whole.rows(0, wanted)?.reshape(shape)?;
        self.lent.insert(view.addr(OP, "gradient")?, whole);
        Ok(view)
    }

    fn zeroed(&mut self, shape: Shape) -> Result<Tensor> {
        let t = self.alloc(shape)?;
        self.ctx.clear(&t)?;
        Ok(t)
    }

    /// Takes back what is no longer needed; a seed's memory belongs to others.
    fn release(&mut self, t: &Tensor) -> Result<()> {
        self.free.extend(self.lent.remove(&t.addr(OP, "gradient")?));
        Ok(())
    }

    fn take(&mut self, value: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.gradients.remove(&value.addr(OP, "value")?);
        gradient.map(|g| g.reshape(value.shape())).transpose()
    }

    /// The value's gradient so far, or zeros.
    fn so_far(&mut self, value: &Tensor) -> Result<Tensor> {
        match self.take(value)? {
            Some(gradient) => Ok(gradient),
            None => self.zeroed(value.shape()),
        }
    }

    /// Adds to a value's gradient.
    fn give(&mut self, value: &Tensor, gradient: Tensor) -> Result<()> {
        let gradient = match self.take(value)? {
            Some(so_far) => {
                self.ctx.add_scaled(&gradient.reshape(value.shape())?, 1.0, &so_far)?;
                self.release(&gradient)?;
                so_far
            }
            None => gradient,
        };
        self.gradients.insert(value.addr(OP, "value")?, gradient);
        Ok(())
    }

    fn op(&mut self, recorded: Recorded) -> Result<()> {
        match recorded {
            Recorded::RmsNorm { x, weight, eps, out } => {
                let Some(d_out) = self.take(&out)? else { return Ok(()) };
                let d_x = self.so_far(&x)?;
                // SAFETY: shapes are those of the forward op, which were checked; gradients have their values' shapes.
                unsafe { self.ctx.grad_ops()?.rms_norm_backward(&x, &weight, eps, &d_out, &d_x)? };
                self.release(&d_out)?;
                self.give(&x, d_x)
            }
            Recorded::Linear { x, targets, with_lora } => self.linear(&x, &targets, with_lora),
            Recorded::Rope { pairs, step, tables } => {
                for (x, out) in pairs {
                    let Some(d_out) = self.take(&out)? else { continue };
                    let d_x = self.alloc(out.shape())?;
                    // SAFETY: as above.
                    unsafe { self.ctx.grad_ops()?.rope_backward(&[(&d_out, &d_x)], &step, &tables)? };
                    self.release(&d_out)?;
                    self.give(&x, d_x)?;
                }
                Ok(())
            }
            Recorded::Attention { qkv: [q, k, v], memo, spec, step } => {
                let Some(d_out) = self.take(&memo.out)? else { return Ok(()) };
                let (d_q, d_k, d_v) =
                    (self.alloc(q.shape())?, self.alloc(k.shape())?, self.alloc(v.shape())?);
                let rows = q.shape().rows();
                let partial = self.alloc([2, rows, spec.num_heads, spec.head_dim])?;
                let args = AttentionBackward {
                    q: &q,
                    k: &k,
                    v: &v,
                    out: &memo.out,
                    lse: &memo.lse,
                    d_out: &d_out,
                    d_q: &d_q,
                    d_k: &d_k,
                    d_v: &d_v,
                    partial: &partial,
                    step: &step,
                    scale: spec.scale,
                    window: spec.window,
                };
                // SAFETY: as above.
                unsafe { self.ctx.grad_ops()?.attention_backward(args)? };
                self.release(&partial)?;
                self.release(&d_out)?;
                self.give(&q, d_q)?;
                self.give(&k, d_k)?;
                self.give(&v, d_v)
            }
            Recorded::SiluMul { gate, up, out } => {
                let Some(d_out) = self.take(&out)? else { return Ok(()) };
                let (d_gate, d_up) = (self.alloc(gate.shape())?, self.alloc(up.shape())?);
                // SAFETY: as above.
                unsafe { self.ctx.grad_ops()?.silu_mul_backward(&gate, &up, &d_out, &d_gate, &d_up)? };
                self.release(&d_out)?;
                self.give(&gate, d_gate)?;
                self.give(&up, d_up)
            }
            Recorded::Gather { x, rows, out } => {
                let Some(d_out) = self.take(&out)? else { return Ok(()) };
                let d_x = self.so_far(&x)?;
                // SAFETY: as above; the row numbers were checked when the step was staged.
                unsafe { self.ctx.grad_ops()?.gather_rows_backward(&d_out, &rows, &d_x)? };
                self.release(&d_out)?;
                self.give(&x, d_x)
            }
        }
    }

    fn linear(&mut self, x: &Tensor, targets: &[RecordedTarget], with_lora: bool) -> Result<()> {
        let mut layers = Vec::new();
        for target in targets {
            let Some(d_out) = self.take(&target.out)? else { continue };
            let module = target.module.filter(|_| with_lora);
            let module = module.and_then(|m| self.modules.get(m.0 as usize)?.clone());
            let scaled = match &module {
                Some(module) => self.dora(module, target, &d_out)?,
                None => None,
            };
            layers.push((target, module, d_out, scaled));
        }
        if layers.is_empty() {
            return Ok(());
        }
        let (d_x, accumulate) = match self.take(x)? {
            Some(d_x) => (d_x, true),
            None => (self.alloc(x.shape())?, false),
        };
        let of_weights: Vec<(&Weight, &Tensor)> = layers
            .iter()
            .map(|(target, _, d_out, scaled)| (&target.weight, scaled.as_ref().unwrap_or(d_out)))
            .collect();
        // SAFETY: as in `op`.
        unsafe { self.ctx.grad_ops()?.linear_backward(&of_weights, &d_x, accumulate)? };
        for (target, module, d_out, scaled) in layers {
            if let Some(module) = &module {
                self.lora(module, target, x, scaled.as_ref().unwrap_or(&d_out), &d_x)?;
            }
            if let Some(scaled) = &scaled {
                self.release(scaled)?;
            }
            match &target.residual {
                Some(residual) => self.give(residual, d_out)?,
                None => self.release(&d_out)?,
            }
        }
        self.give(x, d_x)
    }

    /// The gradient of what DoRA scales, where it does.
    fn dora(
        &mut self,
        module: &TrainedModule,
        target: &RecordedTarget,
        d_out: &Tensor,
    ) -> Result<Option<Tensor>> {
        let (Some(out_scale), Some(magnitude), Some(d_magnitude)) =
            (&module.factors.out_scale, &module.magnitude, &module.grads.magnitude)
        else {
            return Ok(None);
        };
        let scaled = self.alloc(d_out.shape())?;
        let args = DoraBackward {
            out: &target.out,
            bias: target.bias.as_ref(),
            residual: target.residual.as_ref(),
            out_scale,
            magnitude,
            d_out,
            scaled: &scaled,
            d_magnitude,
        };
        // SAFETY: as in `op`.
        unsafe { self.ctx.grad_ops()?.dora_backward(args)? };
        Ok(Some(scaled))
    }

    fn lora(
        &mut self,
        module: &TrainedModule,
        target: &RecordedTarget,
        x: &Tensor,
        d_out: &Tensor,
        d_x: &Tensor,
    ) -> Result<()> {
        let low = self.alloc([2, x.shape().rows(), module.factors.rank()])?;
        let dropout = self.ctx.training.dropout.clone();
        match (&target.lora_x, dropout, target.module) {
            (Some(lora_x), Some(dropout), Some(module_idx)) => {
                let d_lora_x = self.zeroed(x.shape())?;
                let args = dropout.args(module_idx, &d_lora_x, d_x, true);
                let ops = self.ctx.grad_ops()?;
                // SAFETY: as in `op`.
                unsafe {
                    ops.lora_backward(module, lora_x, d_out, &low, &d_lora_x)?;
                    ops.dropout(args)?;
                }
                self.release(&d_lora_x)?;
            }
            // SAFETY: as in `op`.
            _ => unsafe { self.ctx.grad_ops()?.lora_backward(module, x, d_out, &low, d_x)? },
        }
        self.release(&low)
    }
}
