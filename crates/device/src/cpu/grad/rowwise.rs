//! Backward kernels that work on one row at a time.

use crate::cpu::isa::Kernel;
use crate::cpu::rowwise::{GELU_TANH, capped, mean_and_factor};
use crate::cpu::simd::{LANES, Simd, erf, exp, load, store, tanh};
use crate::row_ops::GeluKind;

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

/// Adds the gradient of a row's layer norm: with `g = w d_out` and `y = (x - mean) f`,
/// `d_x += f (g - mean(g) - y mean(g y))`.
pub(super) struct LayerNormBackward {
    pub(super) x: *const f32,
    pub(super) weight: *const f32,
    pub(super) d_out: *const f32,
    pub(super) d_x: *mut f32,
    pub(super) len: usize,
    pub(super) eps: f32,
}

impl Kernel for LayerNormBackward {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let LayerNormBackward { x, weight, d_out, d_x, len, eps } = self;
        // SAFETY: `len` elements each, by the caller.
        unsafe {
            let (mean, factor) = mean_and_factor::<S>(x, len, eps);
            let (mean, factor) = (S::splat(mean), S::splat(factor));
            let (mut sum, mut products) = (S::splat(0.0), S::splat(0.0));
            for i in (0..len).step_by(LANES) {
                let n = LANES.min(len - i);
                // Beyond the last element this is 0.
                let g = S::mul(load::<S>(weight.add(i), n), load::<S>(d_out.add(i), n));
                sum = S::add(sum, g);
                products = S::fma(g, S::mul(S::sub(load::<S>(x.add(i), n), mean), factor), products);
            }
            let of_sum = S::splat(S::reduce_add(sum) / len as f32);
            let of_products = S::splat(S::reduce_add(products) / len as f32);
            for i in (0..len).step_by(LANES) {
                let n = LANES.min(len - i);
                let g = S::mul(load::<S>(weight.add(i), n), load::<S>(d_out.add(i), n));
                let y = S::mul(S::sub(load::<S>(x.add(i), n), mean), factor);
                let d = S::sub(S::sub(g, of_sum), S::mul(y, of_products));
                store::<S>(d_x.add(i), S::fma(d, factor, load::<S>(d_x.add(i), n)), n);
            }
        }
    }
}

/// Gradients of `gelu(x) * up`, over any number of elements.
pub(super) struct GeluMulBackward {
    pub(super) x: *const f32,
    /// Null, like `d_up`, if there is nothing to multiply by.
    pub(super) up: *const f32,
    pub(super) kind: GeluKind,
    pub(super) d_out: *const f32,
    pub(super) d_x: *mut f32,
    pub(super) d_up: *mut f32,
    pub(super) len: usize,
}

impl Kernel for GeluMulBackward {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let GeluMulBackward { x, up, kind, d_out, d_x, d_up, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements each, by the caller.
            unsafe {
                let (one, half) = (S::splat(1.0), S::splat(0.5));
                let (x, mut d) = (load::<S>(x.add(i), n), load::<S>(d_out.add(i), n));
                // gelu(x) = x p(x), and x p'(x). The latter is 0 far out, where its factors would not be numbers.
                let near = S::min(S::splat(20.0), S::max(S::splat(-20.0), x));
                let squared = S::mul(near, near);
                let (p, x_slope) = match kind {
                    GeluKind::Erf => {
                        let a = S::mul(S::abs(x), S::splat(std::f32::consts::FRAC_1_SQRT_2));
                        let sign = S::min(one, S::max(S::splat(-1.0), S::mul(x, S::splat(1e38))));
                        let density = exp::<S>(S::mul(squared, S::splat(-0.5)));
                        // 1 / sqrt(2 pi).
                        let x_slope = S::mul(S::mul(near, density), S::splat(0.398_942_3));
                        (S::mul(half, S::fma(sign, erf::<S>(a), one)), x_slope)
                    }
                    GeluKind::Tanh => {
                        let (factor, cube) = (S::splat(GELU_TANH.0), S::splat(GELU_TANH.1));
                        let inner = S::mul(S::mul(x, S::fma(S::mul(x, x), cube, one)), factor);
                        let t = tanh::<S>(inner);
                        let slope = S::mul(factor, S::fma(squared, S::mul(S::splat(3.0), cube), one));
                        let slope = S::mul(S::sub(one, S::mul(t, t)), slope);
                        (S::mul(half, S::add(one, t)), S::mul(S::mul(half, near), slope))
                    }
                };
                if !up.is_null() {
                    let up = load::<S>(up.add(i), n);
                    store::<S>(d_up.add(i), S::mul(d, S::mul(x, p)), n);
                    d = S::mul(d, up);
                }
                store::<S>(d_x.add(i), S::mul(d, S::add(p, x_slope)), n);
            }
        }
    }
}

/// The gradient of `cap * tanh(x / cap)`, over any number of elements.
pub(super) struct SoftCapBackward {
    pub(super) x: *const f32,
    pub(super) cap: f32,
    pub(super) d_out: *const f32,
    pub(super) d_x: *mut f32,
    pub(super) len: usize,
}

impl Kernel for SoftCapBackward {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let SoftCapBackward { x, cap, d_out, d_x, len } = self;
        for i in (0..len).step_by(LANES) {
            let n = LANES.min(len - i);
            // SAFETY: `len` elements each, by the caller.
            unsafe {
                let t = S::mul(capped::<S>(load::<S>(x.add(i), n), cap), S::splat(1.0 / cap));
                let slope = S::sub(S::splat(1.0), S::mul(t, t));
                store::<S>(d_x.add(i), S::mul(load::<S>(d_out.add(i), n), slope), n);
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
