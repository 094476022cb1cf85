//! Kernels that work on one row at a time.

use super::isa::Kernel;
use super::simd::{LANES, Simd, exp, load, store};

/// Root-mean-square norm of a row.
#[derive(Clone, Copy)]
pub(crate) struct RmsNorm {
    pub(crate) x: *const f32,
    pub(crate) weight: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
    pub(crate) eps: f32,
}

impl Kernel for RmsNorm {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let RmsNorm { x, weight, out, len, eps } = self;
        // SAFETY: `len` elements each, by the caller.
        unsafe {
            let mut sum = S::splat(0.0);
            for i in (0..len).step_by(LANES) {
                let v = load::<S>(x.add(i), LANES.min(len - i));
                sum = S::fma(v, v, sum);
            }
            let factor = S::splat(1.0 / (S::reduce_add(sum) / len as f32 + eps).sqrt());
            for i in (0..len).step_by(LANES) {
                let n = LANES.min(len - i);
                let v = S::mul(S::mul(load::<S>(x.add(i), n), factor), load::<S>(weight.add(i), n));
                store::<S>(out.add(i), v, n);
            }
        }
    }
}

/// `silu(gate) * up` over any number of elements.
#[derive(Clone, Copy)]
pub(crate) struct SiluMul {
    pub(crate) gate: *const f32,
    pub(crate) up: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
}

impl Kernel for SiluMul {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let SiluMul { gate, up, out, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements each, by the caller.
            unsafe {
                let g = load::<S>(gate.add(i), n);
                let denominator = S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), g)));
                store::<S>(out.add(i), S::mul(S::div(g, denominator), load::<S>(up.add(i), n)), n);
            }
        }
    }
}

/// Rotates the heads of one row; pair `i` is elements `i` and `i + half`. What lies beyond `2 * half` is copied.
///
/// # Safety
/// `heads * head_dim` elements each, and `[half][2]` cosines and sines.
pub(crate) unsafe fn rope_row(x: *const f32, out: *mut f32, heads: usize, head_dim: usize, table: &[f32]) {
    let half = table.len() / 2;
    for head in 0..heads {
        for (i, pair) in table.as_chunks::<2>().0.iter().enumerate() {
            let [cos, sin] = *pair;
            // SAFETY: by the caller.
            unsafe {
                let (a, b) = (*x.add(head * head_dim + i), *x.add(head * head_dim + i + half));
                *out.add(head * head_dim + i) = a * cos - b * sin;
                *out.add(head * head_dim + i + half) = b * cos + a * sin;
            }
        }
        for i in 2 * half..head_dim {
            // SAFETY: by the caller.
            unsafe { *out.add(head * head_dim + i) = *x.add(head * head_dim + i) };
        }
    }
}
