//! Reproducible random operands.

use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Runs `f` with other operands than those of the tests: all that is random in a case follows from this number too.
pub fn with_seed<R>(seed: u64, f: impl FnOnce() -> R) -> R {
    let before = SEED.replace(seed);
    let result = f();
    SEED.set(before);
    result
}

/// SplitMix64 (Steele et al., OOPSLA 2014).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed ^ SEED.get().rotate_left(32))
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// In `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    pub(super) fn range(&mut self, range: Range<f64>) -> f32 {
        (range.start + self.unit() * (range.end - range.start)) as f32
    }

    /// Near enough normal, of standard deviation 1: the sum of eight bytes.
    pub(super) fn normal(&mut self) -> f32 {
        let sum: u32 = self.bits().to_le_bytes().iter().map(|&b| u32::from(b)).sum();
        // Each byte has mean 127.5 and variance (256² - 1) / 12.
        (sum as f32 - 1020.0) / 209.023
    }

    pub(super) fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(super) fn shuffled(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }
}
