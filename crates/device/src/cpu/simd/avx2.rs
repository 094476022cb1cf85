//! AVX2 with FMA and F16C: two registers a vector.

use std::arch::x86_64::*;

use super::Simd;

/// AVX2, FMA and F16C (Haswell and Zen onwards).
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Sum of eight lanes: halves are added until one is left.
#[inline(always)]
pub(super) unsafe fn reduce_add_8(a: __m256) -> f32 {
    // SAFETY: register arithmetic only; the caller guarantees AVX2.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
    }
}

/// All ones in the first `n` lanes, from lane `first` on.
#[inline(always)]
unsafe fn mask(first: usize, n: usize) -> __m256i {
    // SAFETY: register arithmetic only; the caller guarantees AVX2.
    unsafe {
        let lanes =
            _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first as i32));
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes)
    }
}

#[inline(always)]
unsafe fn dot_8(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: register arithmetic only. Pairs sum to at most 2 * 128 * 127 < 2^15, so nothing saturates.
    unsafe {
        let pairs = _mm256_maddubs_epi16(w, a);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

#[inline(always)]
unsafe fn join<const SHIFT: i32>(low: __m256i, high: __m256i) -> __m256i {
    // SAFETY: register arithmetic only; the caller guarantees AVX2.
    unsafe {
        let two = _mm256_and_si256(_mm256_srl_epi16(high, _mm_cvtsi32_si128(SHIFT)), _mm256_set1_epi8(3));
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(two))
    }
}

macro_rules! pairwise {
    ($($name:ident($($arg:ident),*) -> $ret:ty = $f:ident;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: Self::F),*) -> $ret {
            unsafe { [$f($($arg[0]),*), $f($($arg[1]),*)] }
        }
    )*};
}

// SAFETY (for all blocks): the trait's contract — the caller has checked the CPU features and the pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type W = [__m256i; 2];

    const REGISTERS: usize = 8;
    const I8_BIAS: i32 = 0;

    pairwise! {
        add(a, b) -> Self::F = _mm256_add_ps;
        sub(a, b) -> Self::F = _mm256_sub_ps;
        mul(a, b) -> Self::F = _mm256_mul_ps;
        div(a, b) -> Self::F = _mm256_div_ps;
        max(a, b) -> Self::F = _mm256_max_ps;
        min(a, b) -> Self::F = _mm256_min_ps;
        fma(a, b, c) -> Self::F = _mm256_fmadd_ps;
        round(a) -> Self::I = _mm256_cvtps_epi32;
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::F {
        unsafe { [_mm256_maskload_ps(p, mask(0, n)), _mm256_maskload_ps(p.wrapping_add(8), mask(8, n))] }
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, x: Self::F, n: usize) {
        unsafe {
            _mm256_maskstore_ps(p, mask(0, n), x[0]);
            _mm256_maskstore_ps(p.wrapping_add(8), mask(8, n), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8).cast()));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(a: Self::F) -> f32 {
        unsafe { reduce_add_8(_mm256_add_ps(a[0], a[1])) }
    }
    #[inline(always)]
    unsafe fn reduce_max(a: Self::F) -> f32 {
        unsafe {
            let x = _mm256_max_ps(a[0], a[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
    }
    #[inline(always)]
    unsafe fn exp2i(a: Self::I) -> Self::F {
        unsafe {
            let part =
                |a| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(a, _mm256_set1_epi32(127))));
            [part(a[0]), part(a[1])]
        }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn shl4_i32(a: Self::I) -> Self::I {
        unsafe { [_mm256_slli_epi32::<4>(a[0]), _mm256_slli_epi32::<4>(a[1])] }
    }
    #[inline(always)]
    unsafe fn reduce_add_i32(a: Self::I) -> i32 {
        unsafe {
            let x = _mm256_add_epi32(a[0], a[1]);
            let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b1110>(x));
            _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<1>(x)))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, a: Self::I) {
        unsafe {
            // Packing works within 128-bit lanes: put the quarters back in order afterwards.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a[0], a[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T2>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_write(p: *const f32) {
        super::prefetchw(p);
    }
    #[inline(always)]
    unsafe fn load_w(p: *const u8) -> Self::W {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn nibbles(w: Self::W) -> (Self::W, Self::W) {
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let low = [_mm256_and_si256(w[0], mask), _mm256_and_si256(w[1], mask)];
            let (a, b) = (_mm256_srli_epi16::<4>(w[0]), _mm256_srli_epi16::<4>(w[1]));
            (low, [_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)])
        }
    }
    #[inline(always)]
    unsafe fn join_2bit<const SHIFT: i32>(low: Self::W, high: Self::W) -> Self::W {
        unsafe { [join::<SHIFT>(low[0], high[0]), join::<SHIFT>(low[1], high[1])] }
    }
    #[inline(always)]
    unsafe fn bias_i8(w: Self::W) -> Self::W {
        w
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I {
        unsafe {
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            [dot_8(acc[0], w[0], a), dot_8(acc[1], w[1], a)]
        }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I {
        unsafe {
            // One factor has to be unsigned: move the weights' signs over to the activations.
            let a = _mm256_set1_epi32(a.cast::<i32>().read_unaligned());
            [
                dot_8(acc[0], _mm256_abs_epi8(w[0]), _mm256_sign_epi8(a, w[0])),
                dot_8(acc[1], _mm256_abs_epi8(w[1]), _mm256_sign_epi8(a, w[1])),
            ]
        }
    }
}
