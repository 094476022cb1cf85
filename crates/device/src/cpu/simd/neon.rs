//! NEON: four registers a vector; 8-bit dot products by `sdot` where the machine has it.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LANES, Simd};

/// Advanced SIMD, which every 64-bit Arm has; `DOTPROD` adds the dot products of Armv8.2 (`FEAT_DotProd`:
/// Cortex-A76, Neoverse N1 and Apple M1 onwards).
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOTPROD: bool>;

/// Lanes of a register.
const QUAD: usize = 4;

/// Four f16 to f32, the low or the high half of a register. Not the intrinsics: they came after our oldest compiler.
#[inline(always)]
unsafe fn widen_f16(bits: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: register arithmetic only; every 64-bit Arm has these conversions.
    unsafe {
        asm!("fcvtl {y:v}.4s, {x:v}.4h", x = in(vreg) bits, y = lateout(vreg) low,
            options(pure, nomem, nostack, preserves_flags));
        asm!("fcvtl2 {y:v}.4s, {x:v}.8h", x = in(vreg) bits, y = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

/// Eight floats as binary16; see [`widen_f16`].
#[inline(always)]
unsafe fn narrow_f16(low: float32x4_t, high: float32x4_t) -> uint16x8_t {
    let bits: uint16x8_t;
    // SAFETY: register arithmetic only; every 64-bit Arm has these conversions.
    unsafe {
        asm!("fcvtn {y:v}.4h, {x:v}.4s", "fcvtn2 {y:v}.8h, {z:v}.4s", x = in(vreg) low, z = in(vreg) high,
            y = out(vreg) bits, options(pure, nomem, nostack, preserves_flags));
    }
    bits
}

/// Stores four floats. Not the intrinsic, which newer compilers leave a function of its own in large kernels.
#[inline(always)]
unsafe fn store_quad(p: *mut f32, x: float32x4_t) {
    // SAFETY: the caller's.
    unsafe { p.cast::<float32x4_t>().write_unaligned(x) };
}

/// The first `n` of four floats (0 to 4), the others 0.
#[inline(always)]
unsafe fn load_first(p: *const f32, n: usize) -> float32x4_t {
    // SAFETY: only the first `n` floats are read, which the caller vouches for.
    unsafe {
        let zero = vdup_n_f32(0.0);
        match n {
            0 => vdupq_n_f32(0.0),
            1 => vcombine_f32(vld1_lane_f32::<0>(p, zero), zero),
            2 => vcombine_f32(vld1_f32(p), zero),
            3 => vcombine_f32(vld1_f32(p), vld1_lane_f32::<0>(p.add(2), zero)),
            _ => vld1q_f32(p),
        }
    }
}

/// Stores the first `n` of four floats (0 to 4).
#[inline(always)]
unsafe fn store_first(p: *mut f32, x: float32x4_t, n: usize) {
    // SAFETY: only the first `n` floats are written, which the caller vouches for.
    unsafe {
        match n {
            0 => {}
            1 => vst1q_lane_f32::<0>(p, x),
            2 => vst1_f32(p, vget_low_f32(x)),
            3 => {
                vst1_f32(p, vget_low_f32(x));
                vst1q_lane_f32::<2>(p.add(2), x);
            }
            _ => store_quad(p, x),
        }
    }
}

/// Per lane the sum of four products of signed bytes, not both of them -128, added to `acc`.
#[inline(always)]
unsafe fn dot_quad<const DOTPROD: bool>(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: register arithmetic only; the caller guarantees the dot products if it asks for them.
    unsafe {
        if DOTPROD {
            // No intrinsic: it is not stable. Outside a function that enables the feature this does not assemble.
            let mut sum = acc;
            asm!("sdot {sum:v}.4s, {w:v}.16b, {a:v}.16b", sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags));
            sum
        } else {
            // Pairs sum to at most 2 * 128 * 127 < 2^15.
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(a));
            let high = vmull_high_s8(w, a);
            vpadalq_s16(acc, vpaddq_s16(low, high))
        }
    }
}

/// Four signed bytes, in every lane.
#[inline(always)]
unsafe fn splat_bytes(a: *const i8) -> int8x16_t {
    // SAFETY: four readable bytes, by the caller.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned())) }
}

#[inline(always)]
unsafe fn join<const SHIFT: i32>(low: uint8x16_t, high: uint8x16_t) -> uint8x16_t {
    const { assert!(SHIFT % 2 == 0 && SHIFT >= 0 && SHIFT <= 6) };
    // SAFETY: register arithmetic only.
    unsafe {
        let two = match SHIFT {
            2 => vshrq_n_u8::<2>(high),
            4 => vshrq_n_u8::<4>(high),
            6 => vshrq_n_u8::<6>(high),
            _ => high,
        };
        vorrq_u8(low, vshlq_n_u8::<4>(vandq_u8(two, vdupq_n_u8(3))))
    }
}

/// The larger lane, and `b` where they do not compare, as in the other instruction sets: `fmax` would keep NaN.
#[inline(always)]
unsafe fn max_quad(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic only.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// The smaller lane, and `b` where they do not compare.
#[inline(always)]
unsafe fn min_quad(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic only.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

/// `a * b + c`, rounded once.
#[inline(always)]
unsafe fn fma_quad(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic only.
    unsafe { vfmaq_f32(c, a, b) }
}

#[inline(always)]
unsafe fn exp2i_quad(a: int32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic only.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(a, vdupq_n_s32(127)))) }
}

macro_rules! quadwise {
    ($($name:ident($($arg:ident: $arg_type:ty),*) -> $ret:ty = $f:path;)*) => {$(
        #[inline(always)]
        unsafe fn $name($($arg: $arg_type),*) -> $ret {
            unsafe { [$f($($arg[0]),*), $f($($arg[1]),*), $f($($arg[2]),*), $f($($arg[3]),*)] }
        }
    )*};
}

// SAFETY (for all blocks): the trait's contract — the caller has checked the CPU features and the pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOTPROD: bool> Simd for Neon<DOTPROD> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type W = [uint8x16_t; 4];

    const REGISTERS: usize = 8;
    const I8_BIAS: i32 = 0;

    quadwise! {
        add(a: Self::F, b: Self::F) -> Self::F = vaddq_f32;
        sub(a: Self::F, b: Self::F) -> Self::F = vsubq_f32;
        mul(a: Self::F, b: Self::F) -> Self::F = vmulq_f32;
        div(a: Self::F, b: Self::F) -> Self::F = vdivq_f32;
        max(a: Self::F, b: Self::F) -> Self::F = max_quad;
        min(a: Self::F, b: Self::F) -> Self::F = min_quad;
        abs(a: Self::F) -> Self::F = vabsq_f32;
        fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F = fma_quad;
        round(a: Self::F) -> Self::I = vcvtnq_s32_f32;
        to_f32(a: Self::I) -> Self::F = vcvtq_f32_s32;
        exp2i(a: Self::I) -> Self::F = exp2i_quad;
        add_i32(a: Self::I, b: Self::I) -> Self::I = vaddq_s32;
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            store_quad(p, x[0]);
            store_quad(p.add(4), x[1]);
            store_quad(p.add(8), x[2]);
            store_quad(p.add(12), x[3]);
        }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::F {
        let mut x = unsafe { Self::splat(0.0) };
        for (i, x) in x.iter_mut().enumerate() {
            *x = unsafe { load_first(p.wrapping_add(QUAD * i), n.saturating_sub(QUAD * i)) };
        }
        x
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, x: Self::F, n: usize) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { store_first(p.wrapping_add(QUAD * i), x, n.saturating_sub(QUAD * i)) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe {
            let [a, b] = widen_f16(vld1q_u16(p));
            let [c, d] = widen_f16(vld1q_u16(p.add(8)));
            [a, b, c, d]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        unsafe {
            vst1q_u16(p, narrow_f16(x[0], x[1]));
            vst1q_u16(p.add(8), narrow_f16(x[2], x[3]));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let (low, high) = (vld1q_u16(p), vld1q_u16(p.add(8)));
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(low)),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Self::to_f32([
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ])
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(a: Self::F) -> f32 {
        unsafe {
            let x = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let x = vadd_f32(vget_low_f32(x), vget_high_f32(x));
            vpadds_f32(x)
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(a: Self::F) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(a[0], a[2]), vmaxnmq_f32(a[1], a[3]))) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn shl4_i32(a: Self::I) -> Self::I {
        unsafe {
            [vshlq_n_s32::<4>(a[0]), vshlq_n_s32::<4>(a[1]), vshlq_n_s32::<4>(a[2]), vshlq_n_s32::<4>(a[3])]
        }
    }
    #[inline(always)]
    unsafe fn reduce_add_i32(a: Self::I) -> i32 {
        unsafe { vaddvq_s32(vaddq_s32(vaddq_s32(a[0], a[1]), vaddq_s32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, a: Self::I) {
        unsafe {
            let low = vmovn_high_s32(vmovn_s32(a[0]), a[1]);
            let high = vmovn_high_s32(vmovn_s32(a[2]), a[3]);
            vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high));
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // The intrinsic is not stable.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) };
    }
    #[inline(always)]
    unsafe fn prefetch_far(p: *const u8) {
        unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) };
    }
    #[inline(always)]
    unsafe fn prefetch_write(p: *const f32) {
        unsafe { asm!("prfm pstl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags)) };
    }
    #[inline(always)]
    unsafe fn load_w(p: *const u8) -> Self::W {
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }
    #[inline(always)]
    unsafe fn nibbles(w: Self::W) -> (Self::W, Self::W) {
        unsafe {
            let mask = vdupq_n_u8(15);
            (
                [vandq_u8(w[0], mask), vandq_u8(w[1], mask), vandq_u8(w[2], mask), vandq_u8(w[3], mask)],
                [vshrq_n_u8::<4>(w[0]), vshrq_n_u8::<4>(w[1]), vshrq_n_u8::<4>(w[2]), vshrq_n_u8::<4>(w[3])],
            )
        }
    }
    #[inline(always)]
    unsafe fn join_2bit<const SHIFT: i32>(low: Self::W, high: Self::W) -> Self::W {
        unsafe {
            [
                join::<SHIFT>(low[0], high[0]),
                join::<SHIFT>(low[1], high[1]),
                join::<SHIFT>(low[2], high[2]),
                join::<SHIFT>(low[3], high[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn bias_i8(w: Self::W) -> Self::W {
        w
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I {
        // Unsigned, but at most 127, so signed bytes as well.
        unsafe { Self::dot_i8(acc, w, a) }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I {
        unsafe {
            let a = splat_bytes(a);
            [
                dot_quad::<DOTPROD>(acc[0], vreinterpretq_s8_u8(w[0]), a),
                dot_quad::<DOTPROD>(acc[1], vreinterpretq_s8_u8(w[1]), a),
                dot_quad::<DOTPROD>(acc[2], vreinterpretq_s8_u8(w[2]), a),
                dot_quad::<DOTPROD>(acc[3], vreinterpretq_s8_u8(w[3]), a),
            ]
        }
    }
}

const _: () = assert!(LANES == 4 * QUAD);
