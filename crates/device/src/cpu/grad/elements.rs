//! Parameters and their gradients, element by element.

use super::optimizer::AdamWPart;
use super::{CHUNK, f32s, part};
use crate::cpu::{Cpu, SendPtr};
use crate::error::Result;
use crate::grad::AdamW;
use crate::tensor::Tensor;

/// See [`crate::grad::GradOps::add_scaled`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn add_scaled(cpu: &Cpu, from: &Tensor, factor: f32, to: &Tensor) -> Result<()> {
    let op = "add_scaled";
    let total = from.shape().numel();
    let (from, to) = (f32s(from, op, "from")?, f32s(to, op, "to")?);
    cpu.chunks(total, CHUNK, |at, len| {
        // SAFETY: the trait's contract; tasks have elements of their own.
        let (from, to) = unsafe { (part(from, at, len), part(to, at, len)) };
        to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * *from);
    });
    Ok(())
}

/// See [`crate::grad::GradOps::clear`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn clear(cpu: &Cpu, x: &Tensor) -> Result<()> {
    let (total, x) = (x.shape().numel(), f32s(x, "clear", "x")?);
    // SAFETY: the trait's contract; tasks have elements of their own.
    cpu.chunks(total, CHUNK, |at, len| unsafe { x.get().add(at).write_bytes(0, len) });
    Ok(())
}

/// See [`crate::grad::GradOps::adamw`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn adamw(
    cpu: &Cpu,
    options: &AdamW,
    parameters: &Tensor,
    gradients: &Tensor,
    moments: [&Tensor; 2],
) -> Result<()> {
    let op = "adamw";
    let total = parameters.shape().numel();
    let (p, g) = (f32s(parameters, op, "parameters")?, f32s(gradients, op, "gradients")?);
    let (m, v) = (f32s(moments[0], op, "first moments")?, f32s(moments[1], op, "second moments")?);
    cpu.chunks(total, CHUNK, |at, len| {
        // SAFETY: the trait's contract; tasks have elements of their own.
        unsafe {
            cpu.isa.run(AdamWPart {
                options,
                parameters: part(p, at, len),
                gradients: part(g, at, len),
                first: part(m, at, len),
                second: part(v, at, len),
            });
        }
    });
    Ok(())
}

/// See [`crate::grad::GradOps::sum_of_squares`].
///
/// # Safety
/// The trait's contract.
pub(super) unsafe fn sum_of_squares(cpu: &Cpu, x: &Tensor) -> Result<f64> {
    let (total, x) = (x.shape().numel(), f32s(x, "sum_of_squares", "x")?);
    let mut sums = vec![0.0_f64; total.div_ceil(CHUNK)];
    let to = SendPtr(sums.as_mut_ptr());
    cpu.chunks(total, CHUNK, |at, len| {
        // SAFETY: the trait's contract; tasks have elements, and a sum, of their own.
        unsafe {
            let sum = part(x, at, len).iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            *to.get().add(at / CHUNK) = sum;
        }
    });
    Ok(sums.iter().sum())
}
