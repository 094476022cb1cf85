//! The checked front of the ops that a trainer calls itself: losses, the optimizer, and what lies around them.

use crate::ctx::Ctx;
use crate::error::{Result, invalid};
use crate::grad::AdamW;
use crate::tensor::{Tensor, expect};
use crate::{DType, Shape};

impl Ctx {
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
