//! Dropout with a counter-based generator: what is left out depends on the place alone.

use crate::cpu::isa::Kernel;
use crate::cpu::philox::philox4x32_10;
use crate::cpu::simd::Simd;
use crate::grad::Dropout;

/// One row.
pub(super) struct DropoutRow<'a> {
    pub(super) dropout: Dropout,
    /// Position, example and module.
    pub(super) place: [u32; 3],
    pub(super) x: &'a [f32],
    pub(super) out: &'a mut [f32],
    pub(super) accumulate: bool,
}

impl Kernel for DropoutRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Dropout { probability, seed, step } = self.dropout;
        let [position, example, module] = self.place;
        // A word below the threshold leaves its value out; with probability 1 nothing is kept.
        let threshold = (f64::from(probability) * 2f64.powi(32)) as u64;
        let keep = if probability < 1.0 { 1.0 / (1.0 - probability) } else { 0.0 };
        // The step changes the key, so that no two steps share a stream.
        let key = [seed as u32 ^ step.wrapping_mul(0x9E37_79B9), (seed >> 32) as u32];
        for (i, (x, out)) in self.x.chunks(4).zip(self.out.chunks_mut(4)).enumerate() {
            let words = philox4x32_10([i as u32, position, example, module], key);
            for ((x, out), word) in x.iter().zip(out).zip(words) {
                let value = if u64::from(word) < threshold { 0.0 } else { x * keep };
                *out = if self.accumulate { *out + value } else { value };
            }
        }
    }
}
