//! Kernels that work on one row at a time.

use super::isa::Kernel;
use super::simd::{LANES, Simd, erf, exp, load, store, tanh};
use crate::row_ops::GeluKind;

/// Root-mean-square norm of a run.
#[derive(Clone, Copy)]
pub(crate) struct RmsNorm {
    pub(crate) x: *const f32,
    pub(crate) weight: *const f32,
    /// Added to the result, unless it is null.
    pub(crate) residual: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
    pub(crate) eps: f32,
}

impl Kernel for RmsNorm {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let RmsNorm { x, weight, residual, out, len, eps } = self;
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
                let mut v = S::mul(S::mul(load::<S>(x.add(i), n), factor), load::<S>(weight.add(i), n));
                if !residual.is_null() {
                    v = S::add(load::<S>(residual.add(i), n), v);
                }
                store::<S>(out.add(i), v, n);
            }
        }
    }
}

/// Layer norm of a row.
#[derive(Clone, Copy)]
pub(crate) struct LayerNorm {
    pub(crate) x: *const f32,
    pub(crate) weight: *const f32,
    pub(crate) bias: *const f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
    pub(crate) eps: f32,
}

/// The mean of `len` elements, and one over the square root of their variance and `eps`.
///
/// # Safety
/// `len` readable floats, and the CPU features of `S`.
#[inline(always)]
pub(crate) unsafe fn mean_and_factor<S: Simd>(x: *const f32, len: usize, eps: f32) -> (f32, f32) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..len).step_by(LANES) {
            sum = S::add(sum, load::<S>(x.add(i), LANES.min(len - i)));
        }
        let mean = S::reduce_add(sum) / len as f32;
        let mut squares = S::splat(0.0);
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            let mut v = S::sub(load::<S>(x.add(i), n), S::splat(mean));
            if n < LANES {
                // Lanes beyond the last element would count too.
                let mut centred = [0.0; LANES];
                S::store_part(centred.as_mut_ptr(), v, n);
                v = S::load(centred.as_ptr());
            }
            squares = S::fma(v, v, squares);
        }
        (mean, 1.0 / (S::reduce_add(squares) / len as f32 + eps).sqrt())
    }
}

impl Kernel for LayerNorm {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let LayerNorm { x, weight, bias, out, len, eps } = self;
        // SAFETY: `len` elements each, by the caller.
        unsafe {
            let (mean, factor) = mean_and_factor::<S>(x, len, eps);
            let (mean, factor) = (S::splat(mean), S::splat(factor));
            for i in (0..len).step_by(LANES) {
                let n = LANES.min(len - i);
                let v = S::mul(S::sub(load::<S>(x.add(i), n), mean), factor);
                let v = S::fma(v, load::<S>(weight.add(i), n), load::<S>(bias.add(i), n));
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

/// `gelu(x) * up` over any number of elements.
#[derive(Clone, Copy)]
pub(crate) struct Gelu {
    pub(crate) x: *const f32,
    /// Null if there is nothing to multiply by.
    pub(crate) up: *const f32,
    pub(crate) kind: GeluKind,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
}

/// `sqrt(2 / pi)`, and the factor of the cube beside it.
pub(crate) const GELU_TANH: (f32, f32) = (0.797_884_6, 0.044_715);

impl Kernel for Gelu {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Gelu { x, up, kind, out, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements each, by the caller.
            unsafe {
                let x = load::<S>(x.add(i), n);
                // x times an odd function of it, which is that of the magnitudes.
                let odd = match kind {
                    GeluKind::Erf => {
                        let a = S::abs(x);
                        S::mul(a, erf::<S>(S::mul(a, S::splat(std::f32::consts::FRAC_1_SQRT_2))))
                    }
                    GeluKind::Tanh => {
                        let cubic = S::fma(S::mul(x, x), S::splat(GELU_TANH.1), S::splat(1.0));
                        S::mul(x, tanh::<S>(S::mul(S::mul(x, cubic), S::splat(GELU_TANH.0))))
                    }
                };
                let mut v = S::mul(S::splat(0.5), S::add(x, odd));
                if !up.is_null() {
                    v = S::mul(v, load::<S>(up.add(i), n));
                }
                store::<S>(out.add(i), v, n);
            }
        }
    }
}

/// `cap * tanh(x / cap)` of a vector.
#[inline(always)]
pub(crate) unsafe fn capped<S: Simd>(x: S::F, cap: f32) -> S::F {
    // SAFETY: register arithmetic only; the caller guarantees the CPU features.
    unsafe { S::mul(S::splat(cap), tanh::<S>(S::mul(x, S::splat(1.0 / cap)))) }
}

/// The same over any number of elements.
#[derive(Clone, Copy)]
pub(crate) struct SoftCap {
    pub(crate) x: *const f32,
    pub(crate) cap: f32,
    pub(crate) out: *mut f32,
    pub(crate) len: usize,
}

impl Kernel for SoftCap {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let SoftCap { x, cap, out, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements each, by the caller.
            unsafe { store::<S>(out.add(i), capped::<S>(load::<S>(x.add(i), n), cap), n) };
        }
    }
}

/// `values *= factor`.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) values: *mut f32,
    pub(crate) factor: f32,
    pub(crate) len: usize,
}

impl Kernel for Scale {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Scale { values, factor, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements, by the caller.
            unsafe {
                let v = S::mul(load::<S>(values.add(i), n), S::splat(factor));
                store::<S>(values.add(i), v, n);
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
