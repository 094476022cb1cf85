//! Low-rank updates: gradients of their factors and inputs, and of DoRA's magnitudes.

use super::unpack::TILE_COLS;
use super::{CHUNK, f32s};
use crate::DType;
use crate::cpu::f32_gemm::{Gemm, Onto};
use crate::cpu::lora::{ExpandArgs, ShrinkArgs, expand, shrink};
use crate::cpu::simd::LANES;
use crate::cpu::{Cpu, SendPtr, ptr};
use crate::error::Result;
use crate::grad::{DoraBackward, LoraGrads, TrainedModule};
use crate::tensor::Tensor;

/// Rows of a task of a low-rank product.
const LORA_ROWS: usize = 64;

/// `low = scale x A ᵀ` for `[cols, rank]` factors.
unsafe fn low_rank(
    cpu: &Cpu,
    x: SendPtr<f32>,
    a: &Tensor,
    scale: f32,
    rows: usize,
    low: SendPtr<f32>,
) -> Result<()> {
    let (cols, rank) = (a.shape().rows(), a.shape().row_len());
    let a = ptr::<u8>(a, "lora_backward", "factor")?;
    let ones = vec![1.0; LORA_ROWS];
    let scales = SendPtr(ones.as_ptr().cast_mut());
    cpu.chunks(rows, LORA_ROWS, |first, rows| {
        let args = ShrinkArgs {
            x: x.get().wrapping_add(first * cols),
            cols,
            a: a.get(),
            scales: scales.get(),
            scale,
            low: low.get().wrapping_add(first * rank),
            rank,
            rows,
            next: std::ptr::null(),
        };
        // SAFETY: the caller's; tasks have rows of their own.
        unsafe { shrink(cpu.isa, DType::F32, args) };
    });
    Ok(())
}

/// `grad[r, n] += Σ_row low[row, r] x[row, n]`.
unsafe fn outer(
    cpu: &Cpu,
    low: SendPtr<f32>,
    rank: usize,
    x: SendPtr<f32>,
    rows: usize,
    grad: &Tensor,
) -> Result<()> {
    let n = grad.shape().row_len();
    let grad = f32s(grad, "lora_backward", "gradient")?;
    cpu.chunks(n, TILE_COLS, |first, len| {
        let gemm = Gemm {
            a: low.get(),
            a_row: 1,
            a_step: rank,
            b: x.get().wrapping_add(first),
            b_row: n,
            c: grad.get().wrapping_add(first),
            c_row: n,
            m: rank,
            n: len,
            k: rows,
            onto: Onto::Sum,
        };
        // SAFETY: the caller's; tasks have columns of their own.
        unsafe { cpu.isa.run(gemm) };
    });
    Ok(())
}

/// See [`crate::grad::GradOps::lora_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn lora_backward(
    cpu: &Cpu,
    module: &TrainedModule,
    x: &Tensor,
    d_out: &Tensor,
    low: &Tensor,
    d_x: &Tensor,
) -> Result<()> {
    let op = "lora_backward";
    let (rows, cols) = (x.shape().rows(), x.shape().row_len());
    let rank = module.factors.rank();
    let LoraGrads { a: grad_a, b: grad_b, .. } = &module.grads;
    let (x, d_out) = (f32s(x, op, "x")?, f32s(d_out, op, "d_out")?);
    let (of_a, of_b) = (f32s(&low.rows(0, 1)?, op, "low")?, f32s(&low.rows(1, 1)?, op, "low")?);
    let (panels, d_x) = (ptr::<u8>(&module.a_panels, op, "A")?, f32s(d_x, op, "d_x")?);
    let scale = module.factors.scale;
    // SAFETY: the trait's contract.
    unsafe {
        low_rank(cpu, x, &module.factors.a, scale, rows, of_a)?;
        low_rank(cpu, d_out, &module.b_rows, scale, rows, of_b)?;
        outer(cpu, of_b, rank, x, rows, grad_a)?;
        outer(cpu, of_a, rank, d_out, rows, grad_b)?;
    }
    cpu.chunks(rows, LORA_ROWS, |first, rows| {
        let args = ExpandArgs {
            low: of_b.get().wrapping_add(first * rank),
            rank,
            b: panels.get(),
            out_scale: std::ptr::null(),
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            out: d_x.get().wrapping_add(first * cols),
            features: cols,
            rows,
            piece: (0, cols),
            next: std::ptr::null(),
        };
        // SAFETY: the trait's contract; tasks have rows of their own.
        unsafe { expand(cpu.isa, DType::F32, args) };
    });
    Ok(())
}

/// See [`crate::grad::GradOps::dora_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn dora_backward(cpu: &Cpu, args: DoraBackward<'_>) -> Result<()> {
    let op = "dora_backward";
    let (rows, len) = (args.out.shape().rows(), args.out.shape().row_len());
    let optional = |t: Option<&Tensor>, name| match t {
        Some(t) => f32s(t, op, name).map(Some),
        None => Ok(None),
    };
    let (bias, residual) = (optional(args.bias, "bias")?, optional(args.residual, "residual")?);
    let [out, out_scale, magnitude] =
        [(args.out, "out"), (args.out_scale, "output scale"), (args.magnitude, "magnitude")]
            .map(|(t, name)| f32s(t, op, name));
    let (out, out_scale, magnitude) = (out?, out_scale?, magnitude?);
    let [d_out, scaled, d_magnitude] =
        [(args.d_out, "d_out"), (args.scaled, "scaled"), (args.d_magnitude, "d_magnitude")]
            .map(|(t, name)| f32s(t, op, name));
    let (d_out, scaled, d_magnitude) = (d_out?, scaled?, d_magnitude?);
    cpu.chunks(len, TILE_COLS, |first, num| {
        for o in first..first + num {
            // SAFETY: the trait's contract; tasks have outputs of their own.
            unsafe {
                let base = bias.map_or(0.0, |b| *b.get().add(o));
                let scale = *out_scale.get().add(o);
                let mut sum = 0.0;
                for row in 0..rows {
                    let at = row * len + o;
                    let d = *d_out.get().add(at);
                    let before = base + residual.map_or(0.0, |r| *r.get().add(at));
                    sum += d * (*out.get().add(at) - before);
                    *scaled.get().add(at) = d * scale;
                }
                let m = *magnitude.get().add(o);
                if m != 0.0 {
                    *d_magnitude.get().add(o) += sum / m;
                }
            }
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::transpose`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn transpose(cpu: &Cpu, x: &Tensor, out: &Tensor) -> Result<()> {
    let op = "transpose";
    let (rows, cols) = (x.shape().rows(), x.shape().row_len());
    let (x, out) = (f32s(x, op, "x")?, f32s(out, op, "out")?);
    cpu.chunks(cols, CHUNK / rows.max(1), |first, num| {
        for col in first..first + num {
            for row in 0..rows {
                // SAFETY: the trait's contract; tasks have columns of their own.
                unsafe { *out.get().add(col * rows + row) = *x.get().add(row * cols + col) };
            }
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::transpose_panels`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn transpose_panels(cpu: &Cpu, x: &Tensor, out: &Tensor) -> Result<()> {
    let op = "transpose_panels";
    let (rank, n) = (x.shape().rows(), x.shape().row_len());
    let (x, out) = (f32s(x, op, "x")?, f32s(out, op, "out")?);
    cpu.chunks(n, LANES, |first, num| {
        for r in 0..rank {
            // SAFETY: the trait's contract; tasks have panels of their own.
            unsafe {
                let to = out.get().add(first * rank + r * num);
                to.copy_from_nonoverlapping(x.get().add(r * n + first), num);
            }
        }
    });
    Ok(())
}
