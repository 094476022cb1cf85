//! Backward kernels that work on one row at a time.

use crate::cpu::isa::Kernel;
use crate::cpu::simd::{LANES, Simd, exp, load, store};

/// Adds the gradient of a row's root-mean-square norm:
/// `d_x += f w d_out - f³ / n x Σ w d_out x`, where `f = 1 / sqrt(mean(x²) + eps)`.
pub(super) struct RmsNormBackward {
    pub(super) x: *const f32,
    pub(super) weight: *const f32,
    pub(super) d_out: *const f32,
    pub(super) d_x: *mut f32,
    pub(super) len: usize,
    pub(super) eps: f32,
}

impl Kernel for RmsNormBackward {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let RmsNormBackward { x, weight, d_out, d_x, len, eps } = self;
        // SAFETY: `len` elements each, by the caller.
        unsafe {
            let (mut squares, mut products) = (S::splat(0.0), S::splat(0.0));
            for i in (0..len).step_by(LANES) {
                let n = LANES.min(len - i);
                let v = load::<S>(x.add(i), n);
                let g = S::mul(load::<S>(weight.add(i), n), load::<S>(d_out.add(i), n));
                squares = S::fma(v, v, squares);
                products = S::fma(g, v, products);
            }
            let factor = 1.0 / (S::reduce_add(squares) / len as f32 + eps).sqrt();
            let back = -factor * factor * factor / len as f32 * S::reduce_add(products);
            let (factor, back) = (S::splat(factor), S::splat(back));
            for i in (0..len).step_by(LANES) {
                let n = LANES.min(len - i);
                let g = S::mul(load::<S>(weight.add(i), n), load::<S>(d_out.add(i), n));
                let sum = S::fma(g, factor, load::<S>(d_x.add(i), n));
                store::<S>(d_x.add(i), S::fma(load::<S>(x.add(i), n), back, sum), n);
            }
        }
    }
}

/// Gradients of `silu(gate) * up`, over any number of elements.
pub(super) struct SiluMulBackward {
    pub(super) gate: *const f32,
    pub(super) up: *const f32,
    pub(super) d_out: *const f32,
    pub(super) d_gate: *mut f32,
    pub(super) d_up: *mut f32,
    pub(super) len: usize,
}

impl Kernel for SiluMulBackward {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let SiluMulBackward { gate, up, d_out, d_gate, d_up, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements each, by the caller.
            unsafe {
                let one = S::splat(1.0);
                let (g, d) = (load::<S>(gate.add(i), n), load::<S>(d_out.add(i), n));
                let sigmoid = S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), g))));
                let silu = S::mul(g, sigmoid);
                // s' = sigmoid (1 + g (1 - sigmoid)) = sigmoid + silu (1 - sigmoid)
                let slope = S::fma(silu, S::sub(one, sigmoid), sigmoid);
                store::<S>(d_up.add(i), S::mul(d, silu), n);
                store::<S>(d_gate.add(i), S::mul(S::mul(d, load::<S>(up.add(i), n)), slope), n);
            }
        }
    }
}

/// Cross-entropy of one row of logits, which become the gradient of `weight` times the loss.
pub(super) struct CrossEntropy<'a> {
    pub(super) logits: *mut f32,
    pub(super) len: usize,
    pub(super) target: usize,
    pub(super) weight: f32,
    pub(super) loss: &'a mut f32,
}

impl Kernel for CrossEntropy<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let CrossEntropy { logits, len, target, weight, loss } = self;
        // SAFETY: `len` elements, of which `target` is one, by the caller.
        unsafe {
            let whole = len - len % LANES;
            let mut max = S::splat(f32::NEG_INFINITY);
            for i in (0..whole).step_by(LANES) {
                max = S::max(max, S::load(logits.add(i)));
            }
            let mut max = S::reduce_max(max);
            for i in whole..len {
                max = max.max(*logits.add(i));
            }
            let at_target = *logits.add(target);
            let (mut sum, maximum) = (S::splat(0.0), S::splat(max));
            for i in (0..whole).step_by(LANES) {
                let e = exp::<S>(S::sub(S::load(logits.add(i)), maximum));
                S::store(logits.add(i), e);
                sum = S::add(sum, e);
            }
            let mut sum = S::reduce_add(sum);
            for i in whole..len {
                let e = (*logits.add(i) - max).exp();
                *logits.add(i) = e;
                sum += e;
            }
            *loss = sum.ln() + max - at_target;
            let factor = weight / sum;
            for i in (0..whole).step_by(LANES) {
                S::store(logits.add(i), S::mul(S::load(logits.add(i)), S::splat(factor)));
            }
            for i in whole..len {
                *logits.add(i) *= factor;
            }
            *logits.add(target) -= weight;
        }
    }
}
