//! Plain Rust, for machines without any of the other instruction sets, and as the model of what they do.

use super::{LANES, Simd};
use half::{bf16, f16};

/// Arrays and loops.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Halves are combined until one lane is left, as the other instruction sets do.
#[inline(always)]
fn reduce(mut a: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            a[i] = f(a[i], a[i + n]);
        }
        n /= 2;
    }
    a[0]
}

#[inline(always)]
fn dot(acc: [i32; LANES], w: [u8; 64], a: *const i8, widen: impl Fn(u8) -> i32) -> [i32; LANES] {
    // SAFETY: the trait's contract gives four readable bytes.
    let a: [i8; 4] = unsafe { a.cast::<[i8; 4]>().read_unaligned() };
    std::array::from_fn(|i| acc[i] + (0..4).map(|j| widen(w[4 * i + j]) * i32::from(a[j])).sum::<i32>())
}

// SAFETY (for all blocks): the trait's contract — the caller has checked the pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type W = [u8; 64];

    const REGISTERS: usize = 4;
    const I8_BIAS: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe { p.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::F {
        std::array::from_fn(|i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, x: Self::F, n: usize) {
        for (i, x) in x.iter().enumerate().take(n) {
            unsafe { p.add(i).write_unaligned(*x) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        std::array::from_fn(|i| f16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { p.add(i).write_unaligned(f16::from_f32(x).to_bits()) };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        std::array::from_fn(|i| bf16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        std::array::from_fn(|i| f32::from(unsafe { p.add(i).read() }))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Not `mul_add`: without the instruction that is a library call.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn reduce_add(a: Self::F) -> f32 {
        reduce(a, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn reduce_max(a: Self::F) -> f32 {
        reduce(a, f32::max)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::I {
        // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits; wide of that range saturate.
        a.map(|x| if x.abs() < 4_194_304.0 { (x + 12_582_912.0 - 12_582_912.0) as i32 } else { x as i32 })
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I) -> Self::F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn exp2i(a: Self::I) -> Self::F {
        a.map(|n| f32::from_bits(((n + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn shl4_i32(a: Self::I) -> Self::I {
        a.map(|x| x << 4)
    }
    #[inline(always)]
    unsafe fn reduce_add_i32(a: Self::I) -> i32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, a: Self::I) {
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(a.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_p: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_write(_p: *const f32) {}
    #[inline(always)]
    unsafe fn load_w(p: *const u8) -> Self::W {
        unsafe { p.cast::<Self::W>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn nibbles(w: Self::W) -> (Self::W, Self::W) {
        (w.map(|b| b & 15), w.map(|b| b >> 4))
    }
    #[inline(always)]
    unsafe fn join_2bit<const SHIFT: i32>(low: Self::W, high: Self::W) -> Self::W {
        std::array::from_fn(|i| low[i] | ((high[i] >> SHIFT) & 3) << 4)
    }
    #[inline(always)]
    unsafe fn bias_i8(w: Self::W) -> Self::W {
        w
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I {
        dot(acc, w, a, i32::from)
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: Self::I, w: Self::W, a: *const i8) -> Self::I {
        dot(acc, w, a, |b| i32::from(b as i8))
    }
}
