//! Sixteen lanes of f32, or 64 bytes, whatever the machine's registers are.
//!
//! Kernels are written once over [`Simd`] and compiled once per instruction set. Every instruction set works on the
//! same logical vectors in the same order, so where it has fused multiply-add the results are the same bits.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
#[cfg(test)]
mod tests;

/// Lanes of a vector, and rows of a weight panel.
pub(crate) const LANES: usize = 16;

/// An instruction set.
///
/// # Safety
/// All functions need the CPU features of the instruction set. Loads and stores need their pointers valid for 16
/// elements (64 bytes for `load_w`, `n` elements for the `_part` forms); none needs alignment.
#[allow(clippy::missing_safety_doc)]
pub(crate) trait Simd: Copy + 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 16 groups of 4 bytes.
    type W: Copy;

    /// Vectors of 16 lanes that the registers hold: tiles are cut to fit.
    const REGISTERS: usize;
    /// What `bias_i8` adds to signed bytes to make them fit `dot_i8`.
    const I8_BIAS: i32;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    /// The first `n` lanes (1 to 16), the others 0.
    unsafe fn load_part(p: *const f32, n: usize) -> Self::F;
    /// The first `n` lanes (1 to 16).
    unsafe fn store_part(p: *mut f32, x: Self::F, n: usize);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Rounds to the nearest binary16, ties to even.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    /// 16 signed bytes to f32.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sum of the lanes: halves are added until one is left.
    unsafe fn reduce_add(a: Self::F) -> f32;
    unsafe fn reduce_max(a: Self::F) -> f32;

    /// Nearest integers, ties to even.
    unsafe fn round(a: Self::F) -> Self::I;
    unsafe fn to_f32(a: Self::I) -> Self::F;
    /// `2^a` for `a` in -127..=127; exactly 0 at -127.
    unsafe fn exp2i(a: Self::I) -> Self::F;
    unsafe fn splat_i32(x: i32) -> Self::I;
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I;
    /// `16 a`.
    unsafe fn shl4_i32(a: Self::I) -> Self::I;
    /// Sum of the lanes.
    unsafe fn reduce_add_i32(a: Self::I) -> i32;
    /// Stores the lanes, which are within -128..=127, as bytes.
    unsafe fn store_i8(p: *mut i8, a: Self::I);

    /// Asks memory for the cache line at `p`, which need not be valid.
    unsafe fn prefetch(p: *const u8);
    /// As `prefetch`, into the second-level cache only.
    unsafe fn prefetch_far(p: *const u8);
    /// As `prefetch`, for writing: another core may have the line.
    unsafe fn prefetch_write(p: *const f32);
    unsafe fn load_w(p: *const u8) -> Self::W;
    /// The low four bits of each byte, and the high four.
    unsafe fn nibbles(w: Self::W) -> (Self::W, Self::W);
    /// `low | ((high >> SHIFT) & 3) << 4`: joins 4 low bits with 2 high ones.
    unsafe fn join_2bit<const SHIFT: i32>(low: Self::W, high: Self::W) -> Self::W;
    /// Adds `I8_BIAS` to each signed byte.
    unsafe fn bias_i8(w: Self::W) -> Self::W;
    /// Per lane `acc + Σ w[4 i + j] * a[j]`: `w` unsigned and at most 127, `a` the four signed bytes at `a`, in
    /// -127..=127.
    unsafe fn dot_u8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I;
    /// As `dot_u8` for what `bias_i8` returned.
    unsafe fn dot_i8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I;

    /// `Σ_g 16 dot(w[g], high + 4 g) + dot(w[g], low + 4 g)` of eight rows of activations: a row's 32 high bytes are at
    /// `a + 64 row`, its low bytes after them. `w` is what `bias_i8` returned where it is `signed`.
    #[inline(always)]
    unsafe fn dot_rows(w: &[Self::W; 8], a: *const i8, signed: bool) -> [Self::I; 8] {
        // SAFETY: the caller's: 512 readable bytes at `a`.
        unsafe {
            let mut sums = [Self::splat_i32(0); 8];
            for (row, sum) in sums.iter_mut().enumerate() {
                let mut low = Self::splat_i32(0);
                for (g, &w) in w.iter().enumerate() {
                    let a = a.add(64 * row + 4 * g);
                    *sum = if signed { Self::dot_i8(*sum, w, a) } else { Self::dot_u8(*sum, w, a) };
                    let a = a.add(32);
                    low = if signed { Self::dot_i8(low, w, a) } else { Self::dot_u8(low, w, a) };
                }
                *sum = Self::add_i32(Self::shl4_i32(*sum), low);
            }
            sums
        }
    }
}

/// The intrinsic's hint for writing gives a plain prefetch. Processors that lack the instruction take it as none.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetchw(p: *const f32) {
    // SAFETY: a prefetch of any address is harmless.
    unsafe { std::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, preserves_flags)) };
}

/// The first `n` of 16 floats (1 to 16), the others 0.
///
/// # Safety
/// `n` readable floats, and the CPU features of `S`.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::F {
    // SAFETY: the caller's.
    unsafe { if n == LANES { S::load(p) } else { S::load_part(p, n) } }
}

/// Stores the first `n` of 16 floats (1 to 16).
///
/// # Safety
/// As [`load`], writable.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(p: *mut f32, x: S::F, n: usize) {
    // SAFETY: the caller's.
    unsafe { if n == LANES { S::store(p, x) } else { S::store_part(p, x, n) } }
}

/// `e^x` to about 1e-7 relative; exactly 0 below -87.7, so that a masked score of -inf weighs nothing.
///
/// Cody-Waite reduction and the Taylor polynomial of degree 7 on `|r| <= ln 2 / 2` (truncation 5e-9).
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: register arithmetic only; the caller guarantees the CPU features.
    unsafe {
        let x = S::min(S::max(x, S::splat(-88.02)), S::splat(88.02));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let nf = S::to_f32(n);
        let r = S::fma(nf, S::splat(-0.693_359_4), x);
        let r = S::fma(nf, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        S::mul(p, S::exp2i(n))
    }
}

/// `tanh(x)` to about 2e-7 relative: `e / (e + 2)` with `e = exp(2 x) - 1`, in which nothing cancels for small `x`.
#[inline(always)]
pub(crate) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: register arithmetic only; the caller guarantees the CPU features.
    unsafe {
        // From 9 on it is 1 in f32. What is no number stays one, being the second operand.
        let x = S::min(S::splat(9.0), S::max(S::splat(-9.0), x));
        let x = S::add(x, x);
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let nf = S::to_f32(n);
        let r = S::fma(nf, S::splat(-0.693_359_4), x);
        let r = S::fma(nf, S::splat(2.121_944_4e-4), r);
        // exp(r) - 1, then 2^n exp(r) - 1.
        let mut p = S::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0] {
            p = S::fma(p, r, S::splat(c));
        }
        let scale = S::exp2i(n);
        let e = S::fma(S::mul(p, r), scale, S::sub(scale, S::splat(1.0)));
        S::div(e, S::add(e, S::splat(2.0)))
    }
}

/// `erf(x)` for `x` of 0 and more, to about 2e-7 absolute (Abramowitz & Stegun, formula 7.1.26).
#[inline(always)]
pub(crate) unsafe fn erf<S: Simd>(x: S::F) -> S::F {
    // SAFETY: register arithmetic only; the caller guarantees the CPU features.
    unsafe {
        let one = S::splat(1.0);
        let t = S::div(one, S::fma(x, S::splat(0.327_591_1), one));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
            p = S::fma(p, t, S::splat(c));
        }
        S::sub(one, S::mul(p, exp::<S>(S::sub(S::splat(0.0), S::mul(x, x)))))
    }
}
