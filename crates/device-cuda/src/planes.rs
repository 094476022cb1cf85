//! Weights as they lie in the card's memory, for `kernels/lib/weight.cuh`, which says how: up to four planes,
//! each row-major over the output features. Packing is without loss, and in no more bytes than the file had
//! but for rounding rows up to whole units.
//!
//! [`PlaneFormat::F8`] is no format of files: it is made of floats, and rounds them.

use std::ops::Range;

use half::{bf16, f16};
use wardrobe_device::WeightFormat;

/// Planes of a weight: elements, scales, and what [`PlaneFormat::Q6K`] has besides, upper bits and super-
/// blocks' scales.
pub const PLANES: usize = 4;

/// Columns that quantised rows are rounded up to: what four lanes of a kernel read at a time.
const UNIT: usize = 128;
/// Columns with a scale of their own, four to a unit.
const BLOCK: usize = 32;
/// Columns of a block that one of four lanes takes.
const LANE_COLS: usize = 8;
/// Columns that rows of floats are rounded up to.
const FLOATS: usize = 8;
/// Where planes begin is a multiple of this.
const ALIGNMENT: usize = 256;
/// Largest e4m3 number.
const E4M3_MAX: f32 = 448.0;
/// Bytes that are worth a thread.
const THREAD_BYTES: usize = 4 << 20;

/// How a weight is held; the numbers are those of `WeightFormat` in `kernels/lib/weight.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum PlaneFormat {
    /// As [`WeightFormat::F32`].
    F32 = 0,
    /// As [`WeightFormat::F16`].
    F16 = 1,
    /// As [`WeightFormat::BF16`].
    BF16 = 2,
    /// As [`WeightFormat::Q4_0`].
    Q4_0 = 3,
    /// As [`WeightFormat::Q4_1`].
    Q4_1 = 4,
    /// As [`WeightFormat::Q8_0`].
    Q8_0 = 5,
    /// As [`WeightFormat::Q4K`].
    Q4K = 6,
    /// As [`WeightFormat::Q6K`].
    Q6K = 7,
    /// 8-bit floats e4m3 (Micikevicius et al., arXiv 2209.05433) with an F32 scale a row.
    F8 = 8,
}

impl From<WeightFormat> for PlaneFormat {
    fn from(format: WeightFormat) -> Self {
        match format {
            WeightFormat::F32 => PlaneFormat::F32,
            WeightFormat::F16 => PlaneFormat::F16,
            WeightFormat::BF16 => PlaneFormat::BF16,
            WeightFormat::Q4_0 => PlaneFormat::Q4_0,
            WeightFormat::Q4_1 => PlaneFormat::Q4_1,
            WeightFormat::Q8_0 => PlaneFormat::Q8_0,
            WeightFormat::Q4K => PlaneFormat::Q4K,
            WeightFormat::Q6K => PlaneFormat::Q6K,
        }
    }
}

impl PlaneFormat {
    /// Bytes of a row in each plane.
    fn row_bytes(self, cols: usize) -> [usize; PLANES] {
        let floats = cols.next_multiple_of(FLOATS);
        let units = cols.div_ceil(UNIT);
        match self {
            PlaneFormat::F32 => [4 * floats, 0, 0, 0],
            PlaneFormat::F16 | PlaneFormat::BF16 => [2 * floats, 0, 0, 0],
            PlaneFormat::Q4_0 => [64 * units, 8 * units, 0, 0],
            PlaneFormat::Q4_1 => [64 * units, 16 * units, 0, 0],
            PlaneFormat::Q8_0 => [128 * units, 8 * units, 0, 0],
            PlaneFormat::Q4K => [64 * units, 8 * units, 0, 0],
            PlaneFormat::Q6K => [64 * units, 8 * units, 32 * units, units],
            PlaneFormat::F8 => [128 * units, 4, 0, 0],
        }
    }

    /// Whether rows may have so many columns.
    fn allows(self, cols: usize) -> bool {
        match self {
            PlaneFormat::F32 | PlaneFormat::F16 | PlaneFormat::BF16 | PlaneFormat::F8 => true,
            PlaneFormat::Q4_0 | PlaneFormat::Q4_1 | PlaneFormat::Q8_0 => cols.is_multiple_of(BLOCK),
            PlaneFormat::Q4K | PlaneFormat::Q6K => cols.is_multiple_of(2 * UNIT),
        }
    }
}

/// Where the planes of a weight are in its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How it is held.
    pub format: PlaneFormat,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Where each plane begins, a multiple of 256; those that the format has not are empty.
    pub offsets: [usize; PLANES],
    /// Bytes of a row in each.
    pub row_bytes: [usize; PLANES],
    /// Bytes of all.
    pub size_bytes: usize,
}

impl Layout {
    /// `None` if rows would be no whole number of blocks, or the size overflows.
    pub fn new(format: PlaneFormat, rows: usize, cols: usize) -> Option<Self> {
        // No plane's row takes more than 8 bytes a column; kernels count a row's pieces in 32 bits.
        let pieces = rows.checked_mul(cols.checked_next_multiple_of(UNIT)?)?;
        if !format.allows(cols) || pieces.checked_mul(8).is_none() || pieces / 4 > u32::MAX as usize {
            return None;
        }
        let row_bytes = format.row_bytes(cols);
        let mut offsets = [0; PLANES];
        let mut size_bytes = 0usize;
        for (offset, row_bytes) in offsets.iter_mut().zip(row_bytes) {
            *offset = size_bytes;
            size_bytes = (size_bytes + rows * row_bytes).checked_next_multiple_of(ALIGNMENT)?;
        }
        Some(Layout { format, rows, cols, offsets, row_bytes, size_bytes })
    }

    /// The bytes of some rows in each plane.
    pub fn ranges(&self, rows: Range<usize>) -> [Range<usize>; PLANES] {
        let mut at = self.offsets.iter().zip(self.row_bytes);
        std::array::from_fn(|_| {
            let (offset, row_bytes) = at.next().unwrap_or((&0, 0));
            offset + rows.start * row_bytes..offset + rows.end * row_bytes
        })
    }
}

/// A packed weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Where its planes are.
    pub layout: Layout,
    /// What the card's memory is to hold.
    pub bytes: Vec<u8>,
}

/// Packs a weight as it lies in a file. `None` if it has another number of bytes than its format, rows and
/// columns ask for.
pub fn pack(format: WeightFormat, rows: usize, cols: usize, bytes: &[u8]) -> Option<Packed> {
    pack_as(format.into(), format, rows, cols, bytes)
}

/// Rounds floats to e4m3: each row's scale takes its largest magnitude to 448; to nearest, of two the even
/// one. A row with anything in it that is not finite becomes NaN.
pub fn pack_f8(format: WeightFormat, rows: usize, cols: usize, bytes: &[u8]) -> Option<Packed> {
    if format.is_quantised() {
        return None;
    }
    pack_as(PlaneFormat::F8, format, rows, cols, bytes)
}

fn pack_as(to: PlaneFormat, from: WeightFormat, rows: usize, cols: usize, bytes: &[u8]) -> Option<Packed> {
    let layout = Layout::new(to, rows, cols)?;
    let file_row_bytes = from.row_bytes(cols)?;
    if file_row_bytes.checked_mul(rows) != Some(bytes.len()) {
        return None;
    }
    let mut packed = vec![0; layout.size_bytes];
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let part = rows.div_ceil(threads.min(1 + bytes.len() / THREAD_BYTES)).max(1);
    std::thread::scope(|scope| {
        let mut rest = planes_of(&layout, &mut packed);
        for file in bytes.chunks((part * file_row_bytes).max(1)) {
            let of_part = rest.each_mut().map(std::mem::take);
            let mut sizes = layout.row_bytes.iter().map(|row_bytes| part * row_bytes);
            let mut of_part =
                of_part.map(|plane| plane.split_at_mut(sizes.next().unwrap_or(0).min(plane.len())));
            rest = of_part.each_mut().map(|(_, after)| std::mem::take(after));
            let planes = of_part.map(|(before, _)| before);
            let work = move || pack_rows(to, from, cols, file.chunks(file_row_bytes.max(1)), planes);
            if part < rows {
                scope.spawn(work);
            } else {
                work();
            }
        }
    });
    Some(Packed { layout, bytes: packed })
}

/// The planes in their memory.
fn planes_of<'a>(layout: &Layout, mut bytes: &'a mut [u8]) -> [&'a mut [u8]; PLANES] {
    let mut at = 0;
    layout.ranges(0..layout.rows).map(|range| {
        let after = std::mem::take(&mut bytes);
        let (_, after) = after.split_at_mut((range.start - at).min(after.len()));
        let (plane, after) = after.split_at_mut(range.len().min(after.len()));
        (bytes, at) = (after, range.end);
        plane
    })
}

/// Packs rows of a file, one after the other, into their places in the planes.
fn pack_rows<'a>(
    to: PlaneFormat,
    from: WeightFormat,
    cols: usize,
    rows: impl Iterator<Item = &'a [u8]>,
    mut planes: [&mut [u8]; PLANES],
) {
    let mut row_bytes = to.row_bytes(cols);
    for file in rows {
        let mut sizes = row_bytes.iter_mut();
        let row = planes.each_mut().map(|plane| {
            let (row, after) = std::mem::take(plane).split_at_mut(sizes.next().map_or(0, |bytes| *bytes));
            *plane = after;
            row
        });
        pack_row(to, from, cols, file, row);
    }
}

/// Packs a row into planes that are zero.
fn pack_row(to: PlaneFormat, from: WeightFormat, cols: usize, file: &[u8], planes: [&mut [u8]; PLANES]) {
    let [elements, scales, high, supers] = planes;
    let blocks = file.chunks_exact(from.block_bytes()).enumerate();
    match to {
        PlaneFormat::F32 | PlaneFormat::F16 | PlaneFormat::BF16 => put(elements, 0, file),
        PlaneFormat::Q4_0 => blocks.for_each(|(b, block)| {
            put(scales, 2 * b, &block[..2]);
            put_nibbles(elements, b, |c| nibbles(&block[2 + 8 * (c % 2)..], c / 2));
        }),
        PlaneFormat::Q4_1 => blocks.for_each(|(b, block)| {
            put(scales, 4 * b, &block[..4]);
            put_nibbles(elements, b, |c| nibbles(&block[4 + 8 * (c % 2)..], c / 2));
        }),
        PlaneFormat::Q8_0 => blocks.for_each(|(b, block)| {
            put(scales, 2 * b, &block[..2]);
            put_bytes(elements, b, |c| eight(&block[2 + 8 * c..]));
        }),
        PlaneFormat::Q4K => blocks.for_each(|(s, block)| {
            put(scales, 16 * s, &block[..16]);
            for sub in 0..8 {
                // Two blocks share 32 bytes: one has the low nibbles, the next the high ones.
                put_nibbles(elements, 8 * s + sub, |c| {
                    nibbles(&block[16 + 32 * (sub / 2) + 8 * c..], sub % 2)
                });
            }
        }),
        PlaneFormat::Q6K => blocks.for_each(|(s, block)| {
            put(scales, 16 * s, &block[192..208]);
            put(supers, 2 * s, &block[208..]);
            for sub in 0..8 {
                // Halves of 128: quarter `sub % 4` has its low bits in nibble `quarter / 2` of 32 bytes, its
                // upper ones at bit `2 quarter` of 32 others.
                let (half, quarter) = (sub / 4, sub % 4);
                let low = |c| two_fours(&block[64 * half + 32 * (quarter % 2) + 4 * c..]);
                put_nibbles(elements, 8 * s + sub, |c| low(c) >> (4 * (quarter / 2)) & 0x0f0f_0f0f_0f0f_0f0f);
                put_upper_bits(high, 8 * s + sub, |c| {
                    two_fours(&block[128 + 32 * half + 4 * c..]) >> (2 * quarter)
                });
            }
        }),
        PlaneFormat::F8 => pack_f8_row(from, cols, file, elements, scales),
    }
}

fn pack_f8_row(from: WeightFormat, cols: usize, file: &[u8], elements: &mut [u8], scales: &mut [u8]) {
    let mut values = vec![0.0; cols];
    dequantise_floats(from, file, &mut values);
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = if values.iter().all(|v| v.is_finite()) {
        (largest / E4M3_MAX).max(f32::MIN_POSITIVE)
    } else {
        values.fill(0.0);
        f32::NAN
    };
    put(scales, 0, &scale.to_le_bytes());
    for (b, block) in values.chunks(BLOCK).enumerate() {
        put_bytes(elements, b, |c| {
            let lane = block.iter().skip(LANE_COLS * c).take(LANE_COLS);
            lane.enumerate().fold(0, |bytes, (i, v)| bytes | u64::from(e4m3_of(v / scale)) << (8 * i))
        });
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = to.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// Eight bytes as a number.
fn eight(from: &[u8]) -> u64 {
    from.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Four bytes and the four that come 16 later.
fn two_fours(from: &[u8]) -> u64 {
    let four = |at: usize| from.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b));
    u64::from(four(0)) | u64::from(four(16)) << 32
}

/// Low or high nibbles of eight bytes, as bytes.
fn nibbles(from: &[u8], high: usize) -> u64 {
    eight(from) >> (4 * high) & 0x0f0f_0f0f_0f0f_0f0f
}

/// A lane's eight elements of some bits each, as bytes, made a word: `e(2j)` at bit `bits j`, `e(2j + 1)` 16
/// bits further up.
fn pairs(elements: u64, bits: u32) -> u32 {
    let mask = 0x0001_0001_0001_0001 * ((1 << bits) - 1);
    let gather = |e: u64| {
        let e = e & mask;
        let step = 16 - bits;
        (e | e >> step | e >> (2 * step) | e >> (3 * step)) as u32 & ((1 << (4 * bits)) - 1)
    };
    gather(elements) | gather(elements >> 8) << 16
}

/// The reverse of [`pairs`].
fn apart(word: u32, bits: u32) -> [u8; LANE_COLS] {
    std::array::from_fn(|i| {
        (word >> (16 * (i % 2) as u32 + bits * (i / 2) as u32)) as u8 & ((1 << bits) - 1) as u8
    })
}

/// Puts a block's 4-bit elements into their places; `lane` gives those of lane `c`.
fn put_nibbles(elements: &mut [u8], block: usize, lane: impl Fn(usize) -> u64) {
    for c in 0..4 {
        put(elements, 64 * (block / 4) + 16 * c + 4 * (block % 4), &pairs(lane(c), 4).to_le_bytes());
    }
}

/// As [`put_nibbles`], for two bits above them.
fn put_upper_bits(high: &mut [u8], block: usize, lane: impl Fn(usize) -> u64) {
    for c in 0..4 {
        let word = pairs(lane(c) & 0x0303_0303_0303_0303, 2);
        let at = upper_bits_at(block, c);
        put(high, at, &[word as u8]);
        put(high, at + 2, &[(word >> 16) as u8]);
    }
}

/// Where the upper bits of a block's lane stand: a byte, and another two bytes on.
fn upper_bits_at(block: usize, c: usize) -> usize {
    32 * (block / 4) + 8 * c + 4 * (block % 4 / 2) + block % 2
}

/// Where the eight bytes of a block's lane stand.
fn bytes_at(block: usize, c: usize) -> usize {
    128 * (block / 4) + 64 * (block % 4 / 2) + 16 * c + 8 * (block % 2)
}

/// Puts a block's 8-bit elements into their places.
fn put_bytes(elements: &mut [u8], block: usize, lane: impl Fn(usize) -> u64) {
    for c in 0..4 {
        let [e0, e1, e2, e3, e4, e5, e6, e7] = lane(c).to_le_bytes();
        put(elements, bytes_at(block, c), &[e0, e2, e1, e3, e4, e6, e5, e7]);
    }
}

/// The nearest e4m3 number, of two the even one, and 448 for what is larger. Not of NaN.
fn e4m3_of(v: f32) -> u8 {
    let sign = if v.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = v.abs().min(E4M3_MAX);
    // Below 2^-6 numbers are multiples of 2^-9; above, three bits of the fraction are left, and the
    // exponent's bias is 7.
    let bits = if magnitude < 0.015_625 {
        (magnitude * 512.0).round_ties_even() as u32
    } else {
        let bits = magnitude.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)
    };
    sign | bits as u8
}

/// The value of an e4m3 number.
fn e4m3_value(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude =
        if exponent == 0 { fraction / 512.0 } else { (8.0 + fraction) * 2f32.powi(exponent - 10) };
    if bits >> 7 == 1 { -magnitude } else { magnitude }
}

// --- The way back.

fn dequantise_floats(format: WeightFormat, bytes: &[u8], out: &mut [f32]) {
    match format {
        WeightFormat::F32 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, b)| *out = f32::from_le_bytes(*b));
        }
        WeightFormat::BF16 => {
            out.iter_mut()
                .zip(bytes.as_chunks().0)
                .for_each(|(out, b)| *out = bf16::from_le_bytes(*b).to_f32());
        }
        _ => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(out, b)| *out = f16::from_le_bytes(*b).to_f32()),
    }
}

fn byte(from: &[u8], at: usize) -> u8 {
    from.get(at).copied().unwrap_or(0)
}

fn half_at(from: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([byte(from, at), byte(from, at + 1)]).to_f32()
}

/// Dequantises a row from its bytes in each plane (see [`Layout::ranges`]): the very values that ggml's
/// definitions give.
pub fn dequantise_row(layout: &Layout, planes: [&[u8]; PLANES], out: &mut [f32]) {
    let [elements, scales, high, supers] = planes;
    let nibbles = |b: usize, c: usize| {
        let at = 64 * (b / 4) + 16 * c + 4 * (b % 4);
        apart(u32::from_le_bytes([0, 1, 2, 3].map(|i| byte(elements, at + i))), 4)
    };
    let bytes = |b: usize, c: usize| [0, 2, 1, 3, 4, 6, 5, 7].map(|i| byte(elements, bytes_at(b, c) + i));
    // Products are exact in f32: all of these round once at most.
    match layout.format {
        PlaneFormat::F32 => dequantise_floats(WeightFormat::F32, elements, out),
        PlaneFormat::F16 => dequantise_floats(WeightFormat::F16, elements, out),
        PlaneFormat::BF16 => dequantise_floats(WeightFormat::BF16, elements, out),
        PlaneFormat::Q4_0 => each_lane(out, |b, c| {
            let d = half_at(scales, 2 * b);
            nibbles(b, c).map(|q| d * (f32::from(q) - 8.0))
        }),
        PlaneFormat::Q4_1 => each_lane(out, |b, c| {
            let (d, m) = (half_at(scales, 4 * b), half_at(scales, 4 * b + 2));
            nibbles(b, c).map(|q| d * f32::from(q) + m)
        }),
        PlaneFormat::Q8_0 => each_lane(out, |b, c| {
            let d = half_at(scales, 2 * b);
            bytes(b, c).map(|q| d * f32::from(q as i8))
        }),
        PlaneFormat::Q4K => each_lane(out, |b, c| {
            let head = scales.get(16 * (b / 8)..).unwrap_or(&[]);
            let (scale, min) = scale_min(head.get(4..).unwrap_or(&[]), b % 8);
            let (scale, min) = (half_at(head, 0) * f32::from(scale), half_at(head, 2) * f32::from(min));
            nibbles(b, c).map(|q| scale * f32::from(q) - min)
        }),
        PlaneFormat::Q6K => each_lane(out, |b, c| {
            let d = half_at(supers, 2 * (b / 8));
            let low = nibbles(b, c);
            let at = upper_bits_at(b, c);
            let upper = apart(u32::from(byte(high, at)) | u32::from(byte(high, at + 2)) << 16, 2);
            std::array::from_fn(|i| {
                let q = f32::from(byte(&low, i) | byte(&upper, i) << 4) - 32.0;
                d * f32::from(byte(scales, 2 * b + i / 4) as i8) * q
            })
        }),
        PlaneFormat::F8 => {
            let scale = f32::from_le_bytes([0, 1, 2, 3].map(|i| byte(scales, i)));
            each_lane(out, |b, c| bytes(b, c).map(|e| scale * e4m3_value(e)));
        }
    }
    if layout.format == PlaneFormat::Q6K {
        // Lanes took four columns of each half of a block.
        for block in out.chunks_exact_mut(BLOCK) {
            let by_lane: Vec<f32> = block.to_vec();
            for (col, v) in block.iter_mut().enumerate() {
                *v = by_lane
                    .get(LANE_COLS * (col % 16 / 4) + 4 * (col / 16) + col % 4)
                    .copied()
                    .unwrap_or(0.0);
            }
        }
    }
}

/// Fills each lane's columns of each block.
fn each_lane(out: &mut [f32], values: impl Fn(usize, usize) -> [f32; LANE_COLS]) {
    for (lane, out) in out.chunks_mut(LANE_COLS).enumerate() {
        out.iter_mut().zip(values(lane / 4, lane % 4)).for_each(|(out, v)| *out = v);
    }
}

/// Scale and minimum `j` of a super-block's 12 bytes (`get_scale_min_k4` of ggml).
fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    let at = |i| byte(packed, i);
    if j < 4 {
        (at(j) & 63, at(j + 4) & 63)
    } else {
        (at(j + 4) & 15 | (at(j - 4) >> 6) << 4, at(j + 4) >> 4 | (at(j) >> 6) << 4)
    }
}

#[cfg(test)]
mod tests;
