//! Scratch memory of kernels: f32 on cache lines, since a vector would else lie in two.

use super::simd::LANES;

/// Bytes of a cache line.
pub(crate) const LINE_BYTES: usize = 64;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read through pointers")] [f32; LANES]);

/// Values, in whole lines.
#[derive(Default)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Self {
        Lines(vec![Line([0.0; LANES]); len.div_ceil(LANES)])
    }

    /// Makes them `len` at least; what is in them is of no account.
    pub(crate) fn grow_to(&mut self, len: usize) {
        if self.0.len() * LANES < len {
            *self = Lines::new(len);
        }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: a line is 16 floats and nothing else, and every one of them was written.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.0.len() * LANES) }
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}
