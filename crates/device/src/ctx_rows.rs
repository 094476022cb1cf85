//! The checked front of the ops that work row by row or element by element.

use crate::ctx::Ctx;
use crate::error::{DeviceError, Result, invalid};
use crate::row_ops::{Columns, Gelu, GeluKind, LayerNorm, RmsNorm};
use crate::tape::Recorded;
use crate::tensor::{Tensor, expect};
use crate::weight::Weight;
use crate::{DType, Shape};

impl Ctx {
    /// Embedding look-up: `[rows]` token ids to `[rows, cols]`.
    pub fn embed(&mut self, ids: &Tensor, table: &Weight) -> Result<Tensor> {
        self.embed_scaled(ids, table, 1.0)
    }

    /// As [`Ctx::embed`], times `scale`.
    pub fn embed_scaled(&mut self, ids: &Tensor, table: &Weight, scale: f32) -> Result<Tensor> {
        expect("embed", "ids", ids, Shape::from([ids.shape.rows()]), DType::U32)?;
        let out = self.alloc([ids.shape.rows(), table.cols()], DType::F32)?;
        // SAFETY: checked above; ids were checked against the vocabulary when the step was staged.
        unsafe { self.ops_mut().embed(ids, table, scale, &out)? };
        Ok(out)
    }

    /// Root-mean-square norm of each row of `x` `[rows, n]`, times `weight` `[n]`, for a linear layer.
    pub fn rms_norm(&mut self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        expect("rms_norm", "weight", weight, Shape::from([x.shape.row_len()]), DType::F32)?;
        self.norm_runs(x, weight, eps, None, self.linear_input())
    }

    /// The same of each head of `x` `[rows, heads * head_dim]`, with one `weight` `[head_dim]` for all; F32.
    pub fn rms_norm_heads(&mut self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        self.norm_runs(x, weight, eps, None, DType::F32)
    }

    /// `residual` and the norm of each row of `x`, both `[rows, n]`, added up; F32.
    pub fn rms_norm_add(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        residual: &Tensor,
    ) -> Result<Tensor> {
        expect("rms_norm", "weight", weight, Shape::from([x.shape.row_len()]), DType::F32)?;
        expect("rms_norm", "residual", residual, x.shape, DType::F32)?;
        self.norm_runs(x, weight, eps, Some(residual), DType::F32)
    }

    fn norm_runs(
        &mut self,
        x: &Tensor,
        weight: &Tensor,
        eps: f32,
        residual: Option<&Tensor>,
        dtype: DType,
    ) -> Result<Tensor> {
        let op = "rms_norm";
        expect(op, "x", x, x.shape, DType::F32)?;
        expect(op, "weight", weight, Shape::from([weight.shape.numel()]), DType::F32)?;
        if weight.shape.numel() == 0 || !x.shape.row_len().is_multiple_of(weight.shape.numel()) {
            return invalid(op, format!("rows of {} in runs of {}", x.shape.row_len(), weight.shape));
        }
        let out = self.alloc(x.shape, dtype)?;
        // SAFETY: checked above.
        unsafe { self.ops_mut().rms_norm(RmsNorm { x, weight, eps, residual, out: &out })? };
        self.training.record(|| Recorded::RmsNorm {
            x: x.clone(),
            weight: weight.clone(),
            eps,
            residual: residual.cloned(),
            out: out.clone(),
        });
        Ok(out)
    }

    /// Layer norm of each row of `x` `[rows, n]`, with `weight` and `bias` `[n]`, for a linear layer.
    pub fn layer_norm(&mut self, x: &Tensor, [weight, bias]: [&Tensor; 2], eps: f32) -> Result<Tensor> {
        let op = "layer_norm";
        expect(op, "x", x, x.shape, DType::F32)?;
        for (name, t) in [("weight", weight), ("bias", bias)] {
            expect(op, name, t, Shape::from([x.shape.row_len()]), DType::F32)?;
        }
        let out = self.alloc(x.shape, self.linear_input())?;
        // SAFETY: checked above.
        unsafe { self.ops_mut().layer_norm(LayerNorm { x, weight, bias, eps, out: &out })? };
        self.training.record(|| Recorded::LayerNorm {
            x: x.clone(),
            weight: weight.clone(),
            eps,
            out: out.clone(),
        });
        Ok(out)
    }

    /// `silu(gate) * up`, elementwise.
    pub fn silu_mul(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        expect("silu_mul", "gate", gate, gate.shape, DType::F32)?;
        expect("silu_mul", "up", up, gate.shape, DType::F32)?;
        let out = self.alloc(gate.shape, self.linear_input())?;
        // SAFETY: checked above.
        unsafe { self.ops_mut().silu_mul(gate, up, &out)? };
        self.training.record(|| Recorded::SiluMul { gate: gate.clone(), up: up.clone(), out: out.clone() });
        Ok(out)
    }

    /// `gelu(x)`, elementwise.
    pub fn gelu(&mut self, x: &Tensor, kind: GeluKind) -> Result<Tensor> {
        self.gelu_of(x, None, kind)
    }

    /// `gelu(gate) * up`, elementwise.
    pub fn gelu_mul(&mut self, gate: &Tensor, up: &Tensor, kind: GeluKind) -> Result<Tensor> {
        self.gelu_of(gate, Some(up), kind)
    }

    fn gelu_of(&mut self, x: &Tensor, up: Option<&Tensor>, kind: GeluKind) -> Result<Tensor> {
        expect("gelu", "x", x, x.shape, DType::F32)?;
        if let Some(up) = up {
            expect("gelu", "up", up, x.shape, DType::F32)?;
        }
        let out = self.alloc(x.shape, self.linear_input())?;
        // SAFETY: checked above.
        unsafe { self.ops_mut().gelu(Gelu { x, up, kind, out: &out })? };
        self.training.record(|| Recorded::Gelu { x: x.clone(), up: up.cloned(), kind, out: out.clone() });
        Ok(out)
    }

    /// `cap * tanh(x / cap)`, elementwise: bounds `x` to `-cap ..= cap`.
    pub fn softcap(&mut self, x: &Tensor, cap: f32) -> Result<Tensor> {
        expect("softcap", "x", x, x.shape, DType::F32)?;
        if !(cap > 0.0 && cap.is_finite()) {
            return invalid("softcap", format!("a bound of {cap}"));
        }
        let out = self.alloc(x.shape, DType::F32)?;
        // SAFETY: checked above.
        unsafe { self.ops_mut().softcap(x, cap, &out)? };
        self.training.record(|| Recorded::SoftCap { x: x.clone(), cap, out: out.clone() });
        Ok(out)
    }

    /// The parts of each row of `x` `[rows, groups * Σ widths]`: a row is `groups` groups, each of which has the parts side
    /// by side. Part `i` is `[rows, groups * widths[i]]`.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] for rows of another length.
    pub fn split<const N: usize>(
        &mut self,
        x: &Tensor,
        groups: usize,
        widths: [usize; N],
    ) -> Result<[Tensor; N]> {
        let (op, rows) = ("split", x.shape.rows());
        let len = widths.iter().fold(0, |sum: usize, &w| sum.saturating_add(w)).saturating_mul(groups);
        if len != x.shape.row_len() || len == 0 || widths.contains(&0) {
            let expected = Shape::from([rows, len]);
            return Err(DeviceError::Shape { op, operand: "x", expected, actual: x.shape });
        }
        expect(op, "x", x, x.shape, DType::F32)?;
        let mut parts = Vec::with_capacity(N);
        let mut from_col = 0;
        for width in widths {
            let part = self.alloc([rows, groups * width], DType::F32)?;
            let args = Columns { from: x, to: &part, groups, from_col, to_col: 0, width };
            // SAFETY: checked above; a group of `x` has all of the widths.
            unsafe { self.ops_mut().copy_columns(args)? };
            from_col += width;
            parts.push(part);
        }
        self.training.record(|| Recorded::Split { x: x.clone(), groups, parts: parts.clone() });
        parts.try_into().or_else(|_| invalid(op, "as many parts as widths"))
    }
}
