//! The walk back through mixtures of experts.
//!
//! An expert's pairs are adjacent rows, so that its layers go back as any other layer does, an expert after the other.

use crate::backward::Backward;
use crate::error::Result;
use crate::experts::Routing;
use crate::grad::CombineBackward;
use crate::ops::Combine;
use crate::tape::{RecordedExperts, RecordedTarget};
use crate::tensor::Tensor;
use crate::weight::Weight;

impl Backward<'_> {
    pub(crate) fn route(&mut self, logits: &Tensor, routing: &Routing) -> Result<()> {
        let Some(d_weights) = self.take(&routing.weights)? else { return Ok(()) };
        let d_logits = self.alloc(logits.shape())?;
        // SAFETY: shapes are those of the forward op, which were checked; gradients have their values' shapes.
        unsafe { self.ctx.grad_ops()?.route_backward(routing, &d_weights, &d_logits)? };
        self.release(&d_weights)?;
        self.give(logits, d_logits)
    }

    pub(crate) fn dispatch(&mut self, x: &Tensor, routing: &Routing, out: &Tensor) -> Result<()> {
        let Some(d_out) = self.take(out)? else { return Ok(()) };
        let d_x = self.alloc(x.shape())?;
        let args = Combine { x: &d_out, routing, weighted: false, residual: None, out: &d_x };
        // SAFETY: as above.
        unsafe { self.ctx.ops_mut().combine(args)? };
        self.release(&d_out)?;
        self.give(x, d_x)
    }

    pub(crate) fn combine(
        &mut self,
        x: &Tensor,
        routing: &Routing,
        residual: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        let Some(d_out) = self.take(out)? else { return Ok(()) };
        let (d_x, d_weights) = (self.alloc(x.shape())?, self.alloc(routing.shape())?);
        let args = CombineBackward { x, routing, d_out: &d_out, d_x: &d_x, d_weights: &d_weights };
        // SAFETY: as above.
        unsafe { self.ctx.grad_ops()?.combine_backward(args)? };
        self.give(x, d_x)?;
        self.give(&routing.weights, d_weights)?;
        self.give(residual, d_out)
    }

    pub(crate) fn experts(
        &mut self,
        x: &Tensor,
        layers: &[RecordedExperts],
        routing: &Routing,
        with_lora: bool,
    ) -> Result<()> {
        let mut reached = Vec::new();
        for layer in layers {
            if let Some(d_out) = self.take(&layer.out)? {
                reached.push((layer, d_out));
            }
        }
        if reached.is_empty() {
            return Ok(());
        }
        let pairs = self.ctx.expert_pairs(routing)?;
        let dropout = self.ctx.training.dropout.take();
        let of_pairs = match &dropout {
            Some(dropout) => Some(dropout.of_pairs(self.ctx, routing)?),
            None => None,
        };
        let d_x = self.alloc(x.shape())?;
        let mut result = Ok(());
        for (expert, &(first, len)) in pairs.iter().enumerate() {
            if len == 0 || result.is_err() {
                continue;
            }
            // What is left out of these pairs, which are rows of their own here.
            self.ctx.training.dropout = of_pairs.as_ref().map(|d| d.rows(first, len)).transpose()?;
            result = self.expert(expert, (first, len), (x, &d_x), &reached, with_lora);
        }
        self.ctx.training.dropout = dropout;
        result?;
        for (_, d_out) in reached {
            self.release(&d_out)?;
        }
        self.give(x, d_x)
    }

    /// One expert's layers: writes its part of `d_x`.
    fn expert(
        &mut self,
        expert: usize,
        (first, len): (usize, usize),
        (x, d_x): (&Tensor, &Tensor),
        layers: &[(&RecordedExperts, Tensor)],
        with_lora: bool,
    ) -> Result<()> {
        let (x, d_x) = (x.rows(first, len)?, d_x.rows(first, len)?);
        let mut own = Vec::new();
        for (layer, d_out) in layers {
            let Some(weight) = layer.experts.weights().get(expert) else { continue };
            let target = RecordedTarget {
                weight: weight.clone(),
                bias: None,
                module: layer.experts.modules().map(|modules| modules.of(expert)),
                residual: None,
                lora_x: layer.lora_x.as_ref().map(|x| x.rows(first, len)).transpose()?,
                out: layer.out.rows(first, len)?,
            };
            let module = target.module.filter(|_| with_lora);
            let module = module.and_then(|m| self.modules.get(m.0 as usize)?.clone());
            let d_out = d_out.rows(first, len)?;
            let scaled = match &module {
                Some(module) => self.dora(module, &target, &d_out)?,
                None => None,
            };
            own.push((target, module, d_out, scaled));
        }
        let of_weights: Vec<(&Weight, &Tensor)> = own
            .iter()
            .map(|(target, _, d_out, scaled)| (&target.weight, scaled.as_ref().unwrap_or(d_out)))
            .collect();
        // SAFETY: as in `route`.
        unsafe { self.ctx.grad_ops()?.linear_backward(&of_weights, &d_x, false)? };
        for (target, module, d_out, scaled) in &own {
            if let Some(module) = module {
                self.lora(module, target, &x, scaled.as_ref().unwrap_or(d_out), &d_x)?;
            }
            if let Some(scaled) = scaled {
                self.release(scaled)?;
            }
        }
        Ok(())
    }
}
