//! AVX-512 with VNNI: one register a vector.

use std::arch::x86_64::*;

use super::Simd;

/// The dot products of one group of weights with the bytes at `$at` of eight rows, 64 bytes apart.
macro_rules! group_of_rows {
    ($w:literal, $at:literal) => {
        concat!(
            dot_of_row!("r0", $w, $at, "0"),
            dot_of_row!("r1", $w, $at, "64"),
            dot_of_row!("r2", $w, $at, "128"),
            dot_of_row!("r3", $w, $at, "192"),
            dot_of_row!("r4", $w, $at, "256"),
            dot_of_row!("r5", $w, $at, "320"),
            dot_of_row!("r6", $w, $at, "384"),
            dot_of_row!("r7", $w, $at, "448"),
        )
    };
}
macro_rules! dot_of_row {
    ($sum:literal, $w:literal, $at:literal, $row:literal) => {
        concat!("vpdpbusd {", $sum, "}, {", $w, "}, dword ptr [{a} + ", $row, " + ", $at, "]{{1to16}}\n")
    };
}

/// AVX-512 F, BW, VL, DQ and VNNI (Ice Lake and Zen 4 onwards).
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

// SAFETY (for all blocks): the trait's contract — the caller has checked the CPU features and the pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type W = __m512i;

    const REGISTERS: usize = 32;
    const I8_BIAS: i32 = 128;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps((0xffff_u32 >> (16 - n)) as u16, p) }
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, x: __m512, n: usize) {
        unsafe { _mm512_mask_storeu_ps(p, (0xffff_u32 >> (16 - n)) as u16, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: __m512) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn reduce_add(a: __m512) -> f32 {
        unsafe {
            let high = _mm512_extractf32x8_ps::<1>(a);
            super::avx2::reduce_add_8(_mm256_add_ps(_mm512_castps512_ps256(a), high))
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn to_f32(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn exp2i(a: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(a, _mm512_set1_epi32(127)))) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn add_i32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shl4_i32(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<4>(a) }
    }
    #[inline(always)]
    unsafe fn reduce_add_i32(a: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(a) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, a: __m512i) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(a)) }
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
    unsafe fn load_w(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(w: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            (_mm512_and_si512(w, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(w), mask))
        }
    }
    #[inline(always)]
    unsafe fn join_2bit<const SHIFT: i32>(low: __m512i, high: __m512i) -> __m512i {
        unsafe {
            let two = _mm512_and_si512(_mm512_srl_epi16(high, _mm_cvtsi32_si128(SHIFT)), _mm512_set1_epi8(3));
            _mm512_or_si512(low, _mm512_slli_epi16::<4>(two))
        }
    }
    #[inline(always)]
    unsafe fn bias_i8(w: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: __m512i, w: __m512i, a: *const i8) -> __m512i {
        unsafe { Self::dot_u8(acc, w, a) }
    }

    #[inline(always)]
    unsafe fn dot_rows(w: &[__m512i; 8], a: *const i8, _signed: bool) -> [__m512i; 8] {
        unsafe { dot_rows(w, a) }
    }
}

/// In assembly: eight chains have to advance side by side, each dot product waiting five cycles for the one before it
/// in its chain, and the compiler puts one chain after the other, whatever the order in the source.
///
/// # Safety
/// As [`Simd::dot_rows`].
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_rows(w: &[__m512i; 8], a: *const i8) -> [__m512i; 8] {
    let [mut r0, mut r1, mut r2, mut r3, mut r4, mut r5, mut r6, mut r7] = [_mm512_setzero_si512(); 8];
    // SAFETY: reads the 512 bytes that the caller vouches for.
    unsafe {
        std::arch::asm!(
            group_of_rows!("w0", "0"),
            group_of_rows!("w1", "4"),
            group_of_rows!("w2", "8"),
            group_of_rows!("w3", "12"),
            group_of_rows!("w4", "16"),
            group_of_rows!("w5", "20"),
            group_of_rows!("w6", "24"),
            group_of_rows!("w7", "28"),
            "vpslld {r0}, {r0}, 4",
            "vpslld {r1}, {r1}, 4",
            "vpslld {r2}, {r2}, 4",
            "vpslld {r3}, {r3}, 4",
            "vpslld {r4}, {r4}, 4",
            "vpslld {r5}, {r5}, 4",
            "vpslld {r6}, {r6}, 4",
            "vpslld {r7}, {r7}, 4",
            group_of_rows!("w0", "32"),
            group_of_rows!("w1", "36"),
            group_of_rows!("w2", "40"),
            group_of_rows!("w3", "44"),
            group_of_rows!("w4", "48"),
            group_of_rows!("w5", "52"),
            group_of_rows!("w6", "56"),
            group_of_rows!("w7", "60"),
            a = in(reg) a,
            w0 = in(zmm_reg) w[0], w1 = in(zmm_reg) w[1], w2 = in(zmm_reg) w[2], w3 = in(zmm_reg) w[3],
            w4 = in(zmm_reg) w[4], w5 = in(zmm_reg) w[5], w6 = in(zmm_reg) w[6], w7 = in(zmm_reg) w[7],
            r0 = inout(zmm_reg) r0, r1 = inout(zmm_reg) r1, r2 = inout(zmm_reg) r2, r3 = inout(zmm_reg) r3,
            r4 = inout(zmm_reg) r4, r5 = inout(zmm_reg) r5, r6 = inout(zmm_reg) r6, r7 = inout(zmm_reg) r7,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    [r0, r1, r2, r3, r4, r5, r6, r7]
}
