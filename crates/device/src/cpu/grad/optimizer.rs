//! Kernels of the optimizer. Plain loops: the compiler makes vectors of them.

use crate::cpu::isa::Kernel;
use crate::cpu::simd::Simd;
use crate::grad::AdamW;

/// [`AdamW`] over a part of the parameters.
pub(super) struct AdamWPart<'a> {
    pub(super) options: &'a AdamW,
    pub(super) parameters: &'a mut [f32],
    pub(super) gradients: &'a [f32],
    pub(super) first: &'a mut [f32],
    pub(super) second: &'a mut [f32],
}

impl Kernel for AdamWPart<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let AdamW { learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale } =
            *self.options;
        let step = f64::from(step);
        // The corrections of the moments' start at zero.
        let first_correction = (1.0 - f64::from(beta1).powf(step)) as f32;
        let second_correction = (1.0 - f64::from(beta2).powf(step)).sqrt() as f32;
        let keep = 1.0 - learning_rate * weight_decay;
        let rate = learning_rate / first_correction;
        let moments = self.first.iter_mut().zip(self.second);
        for ((p, g), (m, v)) in self.parameters.iter_mut().zip(self.gradients).zip(moments) {
            let g = g * gradient_scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *p = *p * keep - rate * *m / (v.sqrt() / second_correction + epsilon);
        }
    }
}
