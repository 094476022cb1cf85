//! Quantised weights as panels of 16 rows.
//!
//! A panel holds 16 output features side by side, so that one vector lane belongs to one feature and nothing is ever
//! summed across lanes: a feature's dot product is one chain of additions over blocks of 32 inputs, in order, on
//! every instruction set and for any number of activations. Within a block the quants stand in eight groups of four
//! inputs; a group of a panel is 64 bytes, what one 8-bit dot product instruction takes:
//!
//! - 4-bit formats: 64-byte chunk `j` holds group `j` in the low and group `j + 4` in the high nibbles;
//! - `Q8_0`: chunk `j` holds group `j`;
//! - `Q6_K`: four chunks of low nibbles as above, then two chunks with the upper two bits of groups 0-3 and 4-7, group
//!   `j` at bit `2 (j % 4)`.
//!
//! The quants of all panels come first; the scales, in the precision of the file, lie in a range of their own.

use super::simd::{LANES, Simd};

/// Inputs in a block: activations have one scale per block, weights one or two.
pub(crate) const BLOCK: usize = 32;

/// How one format's panels are decoded. `SUPER` blocks share a range of scales.
pub(crate) trait BlockFormat: Copy + Send + Sync + 'static {
    /// Bytes of quants per panel and block.
    const QUANT_BYTES: usize;
    /// Bytes of scales per panel and super-block.
    const SCALE_BYTES: usize;
    /// Blocks of 32 in a super-block.
    const SUPER: usize;
    /// Scales per block: 1, or 2 for halves of 16.
    const PARTS: usize;
    /// Bits of a quant.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AMX tiles ask"))]
    const BITS: u32;
    /// Subtracted from the stored quants.
    const OFFSET: i32;
    /// Quants are signed bytes.
    const SIGNED: bool;
    /// Blocks have a minimum too.
    const HAS_MIN: bool;

    /// The eight groups of a block.
    unsafe fn quants<S: Simd>(p: *const u8) -> [S::W; 8];

    /// Adds a group's products to the accumulators.
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::I, w: S::W, a: *const i8) -> S::I {
        // SAFETY: four readable bytes, by the caller.
        unsafe { if Self::SIGNED { S::dot_i8(acc, w, a) } else { S::dot_u8(acc, w, a) } }
    }

    /// Scales (one or two) of block `sub` of the super-block whose scales start at `p`.
    unsafe fn scales<S: Simd>(p: *const u8, sub: usize) -> [S::F; 2];

    /// Its minimum, where [`BlockFormat::HAS_MIN`].
    unsafe fn minimum<S: Simd>(p: *const u8, sub: usize) -> S::F {
        let _ = (p, sub);
        // SAFETY: the caller's: the CPU features.
        unsafe { S::splat(0.0) }
    }

    /// Fills a panel's quants and scales of one super-block from 16 rows' blocks on disk (`None` past the last row).
    fn pack(rows: &[Option<&[u8]>; LANES], quants: &mut [u8], scales: &mut [u8]);
}

#[inline(always)]
unsafe fn nibble_groups<S: Simd>(p: *const u8) -> [S::W; 8] {
    // SAFETY: 256 readable bytes, by the caller.
    unsafe {
        let (a0, b0) = S::nibbles(S::load_w(p));
        let (a1, b1) = S::nibbles(S::load_w(p.add(64)));
        let (a2, b2) = S::nibbles(S::load_w(p.add(128)));
        let (a3, b3) = S::nibbles(S::load_w(p.add(192)));
        [a0, a1, a2, a3, b0, b1, b2, b3]
    }
}

/// Writes one row's 32 4-bit quants into its lane of a block's nibble chunks.
fn put_nibbles(block: &mut [u8], lane: usize, quant: impl Fn(usize) -> u8) {
    for group in 0..4 {
        for i in 0..4 {
            let k = 4 * group + i;
            if let Some(byte) = block.get_mut(64 * group + 4 * lane + i) {
                *byte = quant(k) & 15 | quant(k + 16) << 4;
            }
        }
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = to.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn byte(from: &[u8], at: usize) -> u8 {
    from.get(at).copied().unwrap_or(0)
}

/// Lanes and their rows' bytes, those that exist.
fn lanes<'a>(rows: &[Option<&'a [u8]>; LANES]) -> impl Iterator<Item = (usize, &'a [u8])> {
    rows.iter().enumerate().filter_map(|(lane, row)| row.map(|r| (lane, r)))
}

/// 18 bytes on disk: f16 scale, 16 bytes with quant `i` low and `i + 16` high.
#[derive(Clone, Copy)]
pub(crate) struct Q4_0;

impl BlockFormat for Q4_0 {
    const QUANT_BYTES: usize = 256;
    const SCALE_BYTES: usize = 32;
    const SUPER: usize = 1;
    const PARTS: usize = 1;
    const BITS: u32 = 4;
    const OFFSET: i32 = 8;
    const SIGNED: bool = false;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn quants<S: Simd>(p: *const u8) -> [S::W; 8] {
        // SAFETY: the caller's.
        unsafe { nibble_groups::<S>(p) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(p: *const u8, _sub: usize) -> [S::F; 2] {
        // SAFETY: 32 readable bytes, by the caller.
        unsafe { [S::load_f16(p.cast()); 2] }
    }

    fn pack(rows: &[Option<&[u8]>; LANES], quants: &mut [u8], scales: &mut [u8]) {
        for (lane, row) in lanes(rows) {
            put(scales, 2 * lane, row.get(..2).unwrap_or(&[]));
            put_nibbles(quants, lane, |k| byte(row, 2 + k % 16) >> (4 * (k / 16)));
        }
    }
}

/// 20 bytes on disk: f16 scale, f16 minimum, 16 bytes of quants as `Q4_0`.
#[derive(Clone, Copy)]
pub(crate) struct Q4_1;

impl BlockFormat for Q4_1 {
    const QUANT_BYTES: usize = 256;
    const SCALE_BYTES: usize = 64;
    const SUPER: usize = 1;
    const PARTS: usize = 1;
    const BITS: u32 = 4;
    const OFFSET: i32 = 0;
    const SIGNED: bool = false;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn quants<S: Simd>(p: *const u8) -> [S::W; 8] {
        // SAFETY: the caller's.
        unsafe { nibble_groups::<S>(p) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(p: *const u8, _sub: usize) -> [S::F; 2] {
        // SAFETY: 64 readable bytes, by the caller.
        unsafe { [S::load_f16(p.cast()); 2] }
    }

    #[inline(always)]
    unsafe fn minimum<S: Simd>(p: *const u8, _sub: usize) -> S::F {
        // SAFETY: as above.
        unsafe { S::load_f16(p.add(32).cast()) }
    }

    fn pack(rows: &[Option<&[u8]>; LANES], quants: &mut [u8], scales: &mut [u8]) {
        for (lane, row) in lanes(rows) {
            put(scales, 2 * lane, row.get(..2).unwrap_or(&[]));
            put(scales, 32 + 2 * lane, row.get(2..4).unwrap_or(&[]));
            put_nibbles(quants, lane, |k| byte(row, 4 + k % 16) >> (4 * (k / 16)));
        }
    }
}

/// 34 bytes on disk: f16 scale, 32 signed bytes.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl BlockFormat for Q8_0 {
    const QUANT_BYTES: usize = 512;
    const SCALE_BYTES: usize = 32;
    const SUPER: usize = 1;
    const PARTS: usize = 1;
    const BITS: u32 = 8;
    const OFFSET: i32 = 0;
    const SIGNED: bool = true;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn quants<S: Simd>(p: *const u8) -> [S::W; 8] {
        // SAFETY: 512 readable bytes, by the caller.
        unsafe {
            [
                S::bias_i8(S::load_w(p)),
                S::bias_i8(S::load_w(p.add(64))),
                S::bias_i8(S::load_w(p.add(128))),
                S::bias_i8(S::load_w(p.add(192))),
                S::bias_i8(S::load_w(p.add(256))),
                S::bias_i8(S::load_w(p.add(320))),
                S::bias_i8(S::load_w(p.add(384))),
                S::bias_i8(S::load_w(p.add(448))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(p: *const u8, _sub: usize) -> [S::F; 2] {
        // SAFETY: 32 readable bytes, by the caller.
        unsafe { [S::load_f16(p.cast()); 2] }
    }

    fn pack(rows: &[Option<&[u8]>; LANES], quants: &mut [u8], scales: &mut [u8]) {
        for (lane, row) in lanes(rows) {
            put(scales, 2 * lane, row.get(..2).unwrap_or(&[]));
            for group in 0..8 {
                put(quants, 64 * group + 4 * lane, row.get(2 + 4 * group..6 + 4 * group).unwrap_or(&[]));
            }
        }
    }
}

/// 144 bytes on disk for 256 weights: f16 `d` and `dmin`, 12 bytes of 6-bit scales and minimums, 128 bytes of quants,
/// 32 inputs low and the next 32 high. `w = d sc q - dmin m`.
///
/// Scales of a panel: 16 `d`, 16 `dmin`, then per block 16 bytes with the scale and the minimum's low two bits, and 8
/// bytes with the minimum's high four bits, lanes `i` low and `i + 8` high.
#[derive(Clone, Copy)]
pub(crate) struct Q4K;

impl Q4K {
    /// Scale and minimum `j` of the 12 packed bytes (`get_scale_min_k4` of the GGUF reference).
    fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
        let at = |i| byte(packed, i);
        if j < 4 {
            (at(j) & 63, at(j + 4) & 63)
        } else {
            (at(j + 4) & 15 | (at(j - 4) >> 6) << 4, at(j + 4) >> 4 | (at(j) >> 6) << 4)
        }
    }
}

impl BlockFormat for Q4K {
    const QUANT_BYTES: usize = 256;
    const SCALE_BYTES: usize = 64 + 8 * 24;
    const SUPER: usize = 8;
    const PARTS: usize = 1;
    const BITS: u32 = 4;
    const OFFSET: i32 = 0;
    const SIGNED: bool = false;
    const HAS_MIN: bool = true;

    #[inline(always)]
    unsafe fn quants<S: Simd>(p: *const u8) -> [S::W; 8] {
        // SAFETY: the caller's.
        unsafe { nibble_groups::<S>(p) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(p: *const u8, sub: usize) -> [S::F; 2] {
        // SAFETY: 256 readable bytes, by the caller.
        unsafe {
            let packed = p.add(64 + 24 * sub);
            let mut sc = [0_i8; LANES];
            for (lane, sc) in sc.iter_mut().enumerate() {
                *sc = (*packed.add(lane) & 63) as i8;
            }
            [S::mul(S::load_f16(p.cast()), S::load_i8(sc.as_ptr())); 2]
        }
    }

    #[inline(always)]
    unsafe fn minimum<S: Simd>(p: *const u8, sub: usize) -> S::F {
        // SAFETY: as above.
        unsafe {
            let packed = p.add(64 + 24 * sub);
            let mut mn = [0_i8; LANES];
            for (lane, mn) in mn.iter_mut().enumerate() {
                let high = *packed.add(16 + lane % 8) >> (4 * (lane / 8)) & 15;
                *mn = (*packed.add(lane) >> 6 | high << 2) as i8;
            }
            let dmin = S::mul(S::load_f16(p.add(32).cast()), S::load_i8(mn.as_ptr()));
            S::sub(S::splat(0.0), dmin)
        }
    }

    fn pack(rows: &[Option<&[u8]>; LANES], quants: &mut [u8], scales: &mut [u8]) {
        for (lane, row) in lanes(rows) {
            put(scales, 2 * lane, row.get(..2).unwrap_or(&[]));
            put(scales, 32 + 2 * lane, row.get(2..4).unwrap_or(&[]));
            for (sub, block) in quants.chunks_exact_mut(Self::QUANT_BYTES).enumerate() {
                let (sc, mn) = Self::scale_min(row.get(4..16).unwrap_or(&[]), sub);
                let at = 64 + 24 * sub;
                put(scales, at + lane, &[sc | mn << 6]);
                if let Some(high) = scales.get_mut(at + 16 + lane % 8) {
                    *high |= (mn >> 2) << (4 * (lane / 8));
                }
                put_nibbles(block, lane, |k| byte(row, 16 + 32 * (sub / 2) + k) >> (4 * (sub % 2)));
            }
        }
    }
}

/// 210 bytes on disk for 256 weights: 128 bytes of low nibbles, 64 of upper two bits, 16 signed scales, f16 `d`.
///
/// Scales of a panel: 16 `d`, then per block 16 + 16 signed bytes, for its two halves.
#[derive(Clone, Copy)]
pub(crate) struct Q6K;

impl Q6K {
    /// Quant `k` of 0..256, before the offset (`dequantize_row_q6_K` of the GGUF reference: halves of 128, in which
    /// input `32 j + l` has its low bits in nibble `j / 2` of byte `32 (j % 2) + l`).
    fn quant(row: &[u8], k: usize) -> u8 {
        let (half, j, l) = (k / 128, k % 128 / 32, k % 32);
        let low = byte(row, 64 * half + 32 * (j % 2) + l) >> (4 * (j / 2)) & 15;
        let high = byte(row, 128 + 32 * half + l) >> (2 * j) & 3;
        low | high << 4
    }
}

impl BlockFormat for Q6K {
    const QUANT_BYTES: usize = 384;
    const SCALE_BYTES: usize = 32 + 8 * 32;
    const SUPER: usize = 8;
    const PARTS: usize = 2;
    const BITS: u32 = 6;
    const OFFSET: i32 = 32;
    const SIGNED: bool = false;
    const HAS_MIN: bool = false;

    #[inline(always)]
    unsafe fn quants<S: Simd>(p: *const u8) -> [S::W; 8] {
        // SAFETY: 384 readable bytes, by the caller.
        unsafe {
            let low = nibble_groups::<S>(p);
            let (a, b) = (S::load_w(p.add(256)), S::load_w(p.add(320)));
            [
                S::join_2bit::<0>(low[0], a),
                S::join_2bit::<2>(low[1], a),
                S::join_2bit::<4>(low[2], a),
                S::join_2bit::<6>(low[3], a),
                S::join_2bit::<0>(low[4], b),
                S::join_2bit::<2>(low[5], b),
                S::join_2bit::<4>(low[6], b),
                S::join_2bit::<6>(low[7], b),
            ]
        }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(p: *const u8, sub: usize) -> [S::F; 2] {
        // SAFETY: 288 readable bytes, by the caller.
        unsafe {
            let d = S::load_f16(p.cast());
            let sc: *const i8 = p.add(32 + 32 * sub).cast();
            [S::mul(d, S::load_i8(sc)), S::mul(d, S::load_i8(sc.add(16)))]
        }
    }

    fn pack(rows: &[Option<&[u8]>; LANES], quants: &mut [u8], scales: &mut [u8]) {
        for (lane, row) in lanes(rows) {
            put(scales, 2 * lane, row.get(208..210).unwrap_or(&[]));
            for (sub, block) in quants.chunks_exact_mut(Self::QUANT_BYTES).enumerate() {
                put(scales, 32 + 32 * sub + lane, &[byte(row, 192 + 2 * sub)]);
                put(scales, 48 + 32 * sub + lane, &[byte(row, 193 + 2 * sub)]);
                put_nibbles(block, lane, |k| Self::quant(row, 32 * sub + k));
                for k in 0..BLOCK {
                    let at = 256 + 64 * (k / 16) + 4 * lane + k % 4;
                    if let Some(bits) = block.get_mut(at) {
                        *bits |= (Self::quant(row, 32 * sub + k) >> 4) << (2 * (k % 16 / 4));
                    }
                }
            }
        }
    }
}

/// Dequantises lane `lane` of a panel's block (its quants at `quants`, its super-block's scales at `scales`).
pub(crate) fn dequantise<F: BlockFormat>(
    quants: &[u8],
    scales: &[u8],
    sub: usize,
    lane: usize,
    out: &mut [f32; BLOCK],
) {
    use super::simd::portable::Portable as P;
    if quants.len() < F::QUANT_BYTES || scales.len() < F::SCALE_BYTES {
        return;
    }
    // SAFETY: lengths checked above; the portable instruction set needs no CPU feature.
    let (groups, parts, min) = unsafe {
        let scales = scales.as_ptr();
        (F::quants::<P>(quants.as_ptr()), F::scales::<P>(scales, sub), F::minimum::<P>(scales, sub))
    };
    let min = if F::HAS_MIN { min.get(lane).copied().unwrap_or(0.0) } else { 0.0 };
    for (k, out) in out.iter_mut().enumerate() {
        let raw = groups.get(k / 4).map_or(0, |group| byte(group, 4 * lane + k % 4));
        let quant = if F::SIGNED { i32::from(raw as i8) } else { i32::from(raw) } - F::OFFSET;
        let part = if F::PARTS == 2 { k / 16 } else { 0 };
        let scale = parts.get(part).and_then(|p| p.get(lane)).copied().unwrap_or(0.0);
        *out = scale * quant as f32 + min;
    }
}
