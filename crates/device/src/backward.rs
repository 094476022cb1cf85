//! The walk back through a tape.

mod rows;

use std::collections::HashMap;

use crate::ctx::Ctx;
use crate::error::{Result, invalid};
use crate::grad::{AttentionBackward, DoraBackward, TrainedModule};
use crate::tape::{Recorded, RecordedAttention, RecordedTarget, Seed, Tape};
use crate::tensor::{Tensor, expect};
use crate::weight::Weight;
use crate::{DType, Shape};

impl Ctx {
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
}

/// A walk back. Gradients are found by their values' places; what a gradient no longer needs is lent again.
pub(crate) struct Backward<'a> {
    pub(crate) ctx: &'a mut Ctx,
    pub(crate) modules: &'a [Option<TrainedModule>],
    gradients: HashMap<usize, Tensor>,
    free: Vec<Tensor>,
    /// What was lent, whole, by its place.
    lent: HashMap<usize, Tensor>,
}

const OP: &str = "backward";

impl Backward<'_> {
    /// A tensor that holds anything.
    pub(crate) fn alloc(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
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
    pub(crate) fn release(&mut self, t: &Tensor) -> Result<()> {
        self.free.extend(self.lent.remove(&t.addr(OP, "gradient")?));
        Ok(())
    }

    pub(crate) fn take(&mut self, value: &Tensor) -> Result<Option<Tensor>> {
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
    pub(crate) fn give(&mut self, value: &Tensor, gradient: Tensor) -> Result<()> {
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
            Recorded::RmsNorm { x, weight, eps, residual, out } => {
                self.rms_norm(&x, &weight, eps, residual.as_ref(), &out)
            }
            Recorded::LayerNorm { x, weight, eps, out } => self.layer_norm(&x, &weight, eps, &out),
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
            Recorded::Attention(attention) => {
                let RecordedAttention { qkv: [q, k, v], memo, spec, step } = *attention;
                let Some(d_out) = self.take(&memo.out)? else { return Ok(()) };
                let (d_q, d_k, d_v) =
                    (self.alloc(q.shape())?, self.alloc(k.shape())?, self.alloc(v.shape())?);
                let partial = self.alloc(q.shape())?;
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
                    softcap: spec.softcap,
                };
                // SAFETY: as above.
                unsafe { self.ctx.grad_ops()?.attention_backward(args)? };
                self.release(&partial)?;
                self.release(&d_out)?;
                self.give(&q, d_q)?;
                self.give(&k, d_k)?;
                self.give(&v, d_v)
            }
            Recorded::SiluMul { gate, up, out } => self.silu_mul(&gate, &up, &out),
            Recorded::Gelu { x, up, kind, out } => self.gelu(&x, up.as_ref(), kind, &out),
            Recorded::SoftCap { x, cap, out } => self.softcap(&x, cap, &out),
            Recorded::Split { x, groups, parts } => self.split(&x, groups, &parts),
            Recorded::Gather { x, rows, out } => {
                let Some(d_out) = self.take(&out)? else { return Ok(()) };
                let d_x = self.so_far(&x)?;
                // SAFETY: as above; the row numbers were checked when the step was staged.
                unsafe { self.ctx.grad_ops()?.gather_rows_backward(&d_out, &rows, &d_x)? };
                self.release(&d_out)?;
                self.give(&x, d_x)
            }
            Recorded::Route { logits, routing } => self.route(&logits, &routing),
            Recorded::Dispatch { x, routing, out } => self.dispatch(&x, &routing, &out),
            Recorded::Experts { x, layers, routing, with_lora } => {
                self.experts(&x, &layers, &routing, with_lora)
            }
            Recorded::Combine { x, routing, residual, out } => self.combine(&x, &routing, &residual, &out),
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
    pub(crate) fn dora(
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

    pub(crate) fn lora(
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
