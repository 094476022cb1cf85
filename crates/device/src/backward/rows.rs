//! The way back through ops that work row by row or element by element.

use super::Backward;
use crate::error::Result;
use crate::grad::GeluBackward;
use crate::row_ops::{Columns, GeluKind};
use crate::tensor::Tensor;

// SAFETY (of all below): shapes are those of the forward ops, which were checked; gradients have their values' shapes.
impl Backward<'_> {
    pub(super) fn rms_norm(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        residual: Option<&Tensor>,
        out: &Tensor,
    ) -> Result<()> {
        let Some(d_out) = self.take(out)? else { return Ok(()) };
        let d_x = self.so_far(x)?;
        // SAFETY: see above.
        unsafe { self.ctx.grad_ops()?.rms_norm_backward(x, weight, eps, &d_out, &d_x)? };
        self.give(x, d_x)?;
        match residual {
            Some(residual) => self.give(residual, d_out),
            None => self.release(&d_out),
        }
    }

    pub(super) fn layer_norm(&mut self, x: &Tensor, weight: &Tensor, eps: f32, out: &Tensor) -> Result<()> {
        let Some(d_out) = self.take(out)? else { return Ok(()) };
        let d_x = self.so_far(x)?;
        // SAFETY: see above.
        unsafe { self.ctx.grad_ops()?.layer_norm_backward(x, weight, eps, &d_out, &d_x)? };
        self.release(&d_out)?;
        self.give(x, d_x)
    }

    pub(super) fn silu_mul(&mut self, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
        let Some(d_out) = self.take(out)? else { return Ok(()) };
        // Elementwise, so that one of the two may lie where the output's gradient lay.
        let (d_gate, d_up) = (d_out.clone(), self.alloc(up.shape())?);
        // SAFETY: see above.
        unsafe { self.ctx.grad_ops()?.silu_mul_backward(gate, up, &d_out, &d_gate, &d_up)? };
        self.give(gate, d_gate)?;
        self.give(up, d_up)
    }

    pub(super) fn gelu(
        &mut self,
        x: &Tensor,
        up: Option<&Tensor>,
        kind: GeluKind,
        out: &Tensor,
    ) -> Result<()> {
        let Some(d_out) = self.take(out)? else { return Ok(()) };
        let d_up = up.map(|up| self.alloc(up.shape())).transpose()?;
        let args = GeluBackward { x, up: up.zip(d_up.as_ref()), kind, d_out: &d_out, d_x: &d_out };
        // SAFETY: see above.
        unsafe { self.ctx.grad_ops()?.gelu_backward(args)? };
        self.give(x, d_out)?;
        up.zip(d_up).map_or(Ok(()), |(up, d_up)| self.give(up, d_up))
    }

    pub(super) fn softcap(&mut self, x: &Tensor, cap: f32, out: &Tensor) -> Result<()> {
        let Some(d_out) = self.take(out)? else { return Ok(()) };
        // SAFETY: see above.
        unsafe { self.ctx.grad_ops()?.softcap_backward(x, cap, &d_out, &d_out)? };
        self.give(x, d_out)
    }

    pub(super) fn split(&mut self, x: &Tensor, groups: usize, parts: &[Tensor]) -> Result<()> {
        let mut gradients = Vec::with_capacity(parts.len());
        for part in parts {
            gradients.push(self.take(part)?);
        }
        if gradients.iter().all(Option::is_none) {
            return Ok(());
        }
        let d_x = self.alloc(x.shape())?;
        if gradients.iter().any(Option::is_none) {
            self.ctx.clear(&d_x)?;
        }
        let mut to_col = 0;
        for (part, gradient) in parts.iter().zip(gradients) {
            let width = part.shape().row_len() / groups.max(1);
            if let Some(gradient) = gradient {
                let args = Columns { from: &gradient, to: &d_x, groups, from_col: 0, to_col, width };
                // SAFETY: see above.
                unsafe { self.ctx.ops_mut().copy_columns(args)? };
                self.release(&gradient)?;
            }
            to_col += width;
        }
        self.give(x, d_x)
    }
}
