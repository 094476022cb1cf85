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

/// Rotates the heads of one row, or turns them back; pair `i` is elements `i` and `i + half`. What lies beyond `2 * half` is copied.
#[derive(Clone, Copy)]
pub(crate) struct Rope<'a> {
    /// `[heads, head_dim]`.
    pub(crate) x: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// `[half][2]`: cosines and sines.
    pub(crate) angles: &'a [f32],
    /// Turns the other way, as gradients do.
    pub(crate) back: bool,
}

impl Kernel for Rope<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rope { x, out, heads, head_dim, angles, back } = self;
        let half = angles.len() / 2;
        let (mut cos, mut sin) = ([0.0; LANES], [0.0; LANES]);
        for (piece, angles) in angles.chunks(2 * LANES).enumerate() {
            let n = angles.len() / 2;
            for ((cos, sin), pair) in cos.iter_mut().zip(&mut sin).zip(angles.as_chunks::<2>().0) {
                [*cos, *sin] = *pair;
                *sin = if back { -*sin } else { *sin };
            }
            for head in 0..heads {
                let at = head * head_dim + piece * LANES;
                // SAFETY: `heads * head_dim` elements each, by the caller.
                unsafe {
                    let (cos, sin) = (S::load(cos.as_ptr()), S::load(sin.as_ptr()));
                    let (a, b) = (load::<S>(x.add(at), n), load::<S>(x.add(at + half), n));
                    store::<S>(out.add(at), S::sub(S::mul(a, cos), S::mul(b, sin)), n);
                    store::<S>(out.add(at + half), S::add(S::mul(b, cos), S::mul(a, sin)), n);
                }
            }
        }
        for head in 0..heads {
            for i in head * head_dim + 2 * half..(head + 1) * head_dim {
                // SAFETY: as above.
                unsafe { *out.add(i) = *x.add(i) };
            }
        }
    }
}
