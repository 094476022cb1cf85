//! Ops that work row by row or element by element; their kernels are in `rowwise` and `dropout`.

use super::dropout::DropoutRow;
use super::rowwise::{
    CrossEntropy, GeluMulBackward, LayerNormBackward, RmsNormBackward, SiluMulBackward, SoftCapBackward,
};
use super::{CHUNK, f32s, part};
use crate::cpu::rows::RopeInputs;
use crate::cpu::rowwise::Rope;
use crate::cpu::{Cpu, SendPtr, ptr, slice};
use crate::error::{Result, invalid};
use crate::grad::{DropoutArgs, GeluBackward};
use crate::ops::RopeTables;
use crate::step::Step;
use crate::tensor::Tensor;

/// See [`crate::grad::GradOps::rms_norm_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn rms_norm_backward(
    cpu: &Cpu,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    d_out: &Tensor,
    d_x: &Tensor,
) -> Result<()> {
    let op = "rms_norm_backward";
    let len = weight.shape().numel();
    let rows = x.shape().numel() / len.max(1);
    let (x, weight) = (f32s(x, op, "x")?, f32s(weight, op, "weight")?);
    let (d_out, d_x) = (f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
    cpu.chunks(rows, CHUNK / len.max(1), |first, rows| {
        for at in (first..first + rows).map(|row| row * len) {
            // SAFETY: the trait's contract; tasks have rows of their own.
            unsafe {
                cpu.isa.run(RmsNormBackward {
                    x: x.get().add(at),
                    weight: weight.get(),
                    d_out: d_out.get().add(at),
                    d_x: d_x.get().add(at),
                    len,
                    eps,
                });
            }
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::layer_norm_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn layer_norm_backward(
    cpu: &Cpu,
    x: &Tensor,
    weight: &Tensor,
    eps: f32,
    d_out: &Tensor,
    d_x: &Tensor,
) -> Result<()> {
    let op = "layer_norm_backward";
    let (rows, len) = (x.shape().rows(), x.shape().row_len());
    let (x, weight) = (f32s(x, op, "x")?, f32s(weight, op, "weight")?);
    let (d_out, d_x) = (f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
    cpu.chunks(rows, CHUNK / len.max(1), |first, rows| {
        for at in (first..first + rows).map(|row| row * len) {
            // SAFETY: the trait's contract; tasks have rows of their own.
            unsafe {
                cpu.isa.run(LayerNormBackward {
                    x: x.get().add(at),
                    weight: weight.get(),
                    d_out: d_out.get().add(at),
                    d_x: d_x.get().add(at),
                    len,
                    eps,
                });
            }
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::gelu_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn gelu_backward(cpu: &Cpu, args: GeluBackward<'_>) -> Result<()> {
    let op = "gelu_backward";
    let (total, kind) = (args.x.shape().numel(), args.kind);
    let (x, d_out, d_x) =
        (f32s(args.x, op, "x")?, f32s(args.d_out, op, "d_out")?, f32s(args.d_x, op, "d_x")?);
    let up = args.up.map(|(up, d_up)| Ok((f32s(up, op, "up")?, f32s(d_up, op, "d_up")?))).transpose()?;
    cpu.chunks(total, CHUNK, |at, len| {
        // SAFETY: the trait's contract; tasks have elements of their own.
        unsafe {
            let (up, d_up) = match up {
                Some((up, d_up)) => (up.get().cast_const().add(at), d_up.get().add(at)),
                None => (std::ptr::null(), std::ptr::null_mut()),
            };
            let (d_out, d_x) = (d_out.get().add(at), d_x.get().add(at));
            cpu.isa.run(GeluMulBackward { x: x.get().add(at), up, kind, d_out, d_x, d_up, len });
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::softcap_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn softcap_backward(
    cpu: &Cpu,
    x: &Tensor,
    cap: f32,
    d_out: &Tensor,
    d_x: &Tensor,
) -> Result<()> {
    let op = "softcap_backward";
    let total = x.shape().numel();
    let (x, d_out, d_x) = (f32s(x, op, "x")?, f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
    cpu.chunks(total, CHUNK, |at, len| {
        // SAFETY: the trait's contract; tasks have elements of their own.
        unsafe {
            let (x, d_out, d_x) = (x.get().add(at), d_out.get().add(at), d_x.get().add(at));
            cpu.isa.run(SoftCapBackward { x, cap, d_out, d_x, len });
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::rope_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn rope_backward(
    cpu: &Cpu,
    pairs: &[(&Tensor, &Tensor)],
    step: &Step,
    tables: &RopeTables,
) -> Result<()> {
    let op = "rope_backward";
    let inputs = RopeInputs {
        positions: ptr::<u32>(&step.positions, op, "positions")?.0,
        rope_idx: ptr::<u32>(&step.rope_idx, op, "table index")?.0,
        tables: tables.tables.clone(),
    };
    for &(d_out, d_x) in pairs {
        let &[rows, heads, head_dim] = d_out.shape().dims() else {
            return invalid(op, "gradients must be [rows, heads, head_dim]");
        };
        let len = heads * head_dim;
        let (d_out, d_x) = (f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
        cpu.chunks(rows, CHUNK / len.max(1), |first, rows| {
            for row in first..first + rows {
                // SAFETY: the trait's contract; tasks have rows of their own.
                unsafe {
                    let Some(angles) = inputs.angles(row) else { return };
                    let (d_out, d_x) = (d_out.get().add(row * len), d_x.get().add(row * len));
                    cpu.isa.run(Rope { x: d_out, out: d_x, heads, head_dim, angles, back: true });
                }
            }
        });
    }
    Ok(())
}

/// See [`crate::grad::GradOps::silu_mul_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn silu_mul_backward(
    cpu: &Cpu,
    gate: &Tensor,
    up: &Tensor,
    d_out: &Tensor,
    d_gate: &Tensor,
    d_up: &Tensor,
) -> Result<()> {
    let op = "silu_mul_backward";
    let total = gate.shape().numel();
    let (gate, up, d_out) = (f32s(gate, op, "gate")?, f32s(up, op, "up")?, f32s(d_out, op, "d_out")?);
    let (d_gate, d_up) = (f32s(d_gate, op, "d_gate")?, f32s(d_up, op, "d_up")?);
    cpu.chunks(total, CHUNK, |at, len| {
        // SAFETY: the trait's contract; tasks have elements of their own.
        unsafe {
            cpu.isa.run(SiluMulBackward {
                gate: gate.get().add(at),
                up: up.get().add(at),
                d_out: d_out.get().add(at),
                d_gate: d_gate.get().add(at),
                d_up: d_up.get().add(at),
                len,
            });
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::gather_rows_backward`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn gather_rows_backward(d_out: &Tensor, rows: &Tensor, d_x: &Tensor) -> Result<()> {
    let op = "gather_rows_backward";
    let len = d_out.shape().row_len();
    // SAFETY: the trait's contract.
    let rows = unsafe { slice::<u32>(rows, op, "rows")? };
    let (d_out, d_x) = (f32s(d_out, op, "d_out")?, f32s(d_x, op, "d_x")?);
    for (i, &row) in rows.iter().enumerate() {
        // SAFETY: the trait's contract: the rows exist.
        let (from, to) = unsafe { (part(d_out, i * len, len), part(d_x, row as usize * len, len)) };
        to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
    }
    Ok(())
}

/// See [`crate::grad::GradOps::cross_entropy`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn cross_entropy(
    cpu: &Cpu,
    logits: &Tensor,
    targets: &[u32],
    weights: &[f32],
    losses: &mut [f32],
) -> Result<()> {
    let op = "cross_entropy";
    let (rows, len) = (logits.shape().rows(), logits.shape().row_len());
    let (logits, losses) = (f32s(logits, op, "logits")?, SendPtr(losses.as_mut_ptr()));
    cpu.each(rows, |row| {
        let (Some(&target), Some(&weight)) = (targets.get(row), weights.get(row)) else { return };
        // SAFETY: the trait's contract: a loss for each row, targets in the vocabulary; tasks have rows of their own.
        unsafe {
            let loss = &mut *losses.get().add(row);
            let logits = logits.get().add(row * len);
            cpu.isa.run(CrossEntropy { logits, len, target: target as usize, weight, loss });
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::dropout`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn dropout(cpu: &Cpu, args: DropoutArgs<'_>) -> Result<()> {
    let op = "dropout";
    let (rows, len) = (args.x.shape().rows(), args.x.shape().row_len());
    let (x, out) = (f32s(args.x, op, "x")?, f32s(args.out, op, "out")?);
    // SAFETY: the trait's contract.
    let (examples, positions) = unsafe {
        (slice::<u32>(args.example_idx, op, "examples")?, slice::<u32>(args.positions, op, "positions")?)
    };
    cpu.chunks(rows, CHUNK / len.max(1), |first, rows| {
        for row in first..first + rows {
            let (Some(&example), Some(&position)) = (examples.get(row), positions.get(row)) else {
                return;
            };
            // SAFETY: the trait's contract; tasks have rows of their own.
            unsafe {
                cpu.isa.run(DropoutRow {
                    dropout: args.dropout,
                    place: [position, example, args.module],
                    x: part(x, row * len, len),
                    out: part(out, row * len, len),
                    accumulate: args.accumulate,
                });
            }
        }
    });
    Ok(())
}
