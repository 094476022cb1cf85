//! The quantised matrix product in AMX tiles: 16 rows by 16 features by a block of 32 inputs in one instruction.
//!
//! Integer sums are exact, and what follows them is done in the order of [`super::gemm`]: the results are the same
//! bits as AVX-512's. A 4-bit weight leaves room in its byte: one tile holds the quants times 16, for the high parts of the
//! activations, above the quants themselves, for the low parts, so that one product of depth 64 makes the whole sum.
//! `Q8_0` needs two products.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

mod tiles;

use super::activations::TILE_ROWS;
use super::blocks::BlockFormat;
use super::gemm::QuantisedGemm;
use super::simd::avx512::Avx512;
use super::simd::{LANES, Simd};
pub(crate) use tiles::is_available;
use tiles::{Operands, TILE_BYTES, TileConfig, is_nibble, load_first, step};

/// Blocks of a chunk: those of two tiles of activations and of two panels stay in the first-level cache.
const MAX_CHUNK_BLOCKS: usize = 6;
/// How many products are formed before the one that is used.
const AHEAD: usize = 2;
/// Places for products, a power of two above `AHEAD`.
const PLACES: usize = 4;
/// Bytes of a place: one of the high and one of the low parts.
const PLACE_BYTES: usize = 2 * TILE_BYTES;
/// Panels that a chunk of few rows is multiplied by before the next chunk, so that it is fetched less often.
const MAX_GROUP_PANELS: usize = 8;
/// Sums that are kept between chunks: tiles of rows times panels.
const MAX_SUMS: usize = 32;
/// Fewer rows than this are multiplied faster without tiles.
pub(crate) const MIN_ROWS: usize = 6;

/// Whether a format's blocks fit a tile: those with one scale for all 32 inputs.
pub(crate) const fn has_tiles<F: BlockFormat>() -> bool {
    F::PARTS == 1
}

/// Repeats an expression for each row of a tile, its number a constant.
macro_rules! each_row {
    ($m:ident => $body:expr) => {
        each_row!($m ($body) 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($m:ident ($body:expr) $($row:literal)*) => {
        $({
            const $m: usize = $row;
            $body
        })*
    };
}

/// What a task keeps in the first-level cache.
#[repr(C, align(64))]
struct Scratch {
    /// A chunk of a panel, unpacked, and the one after it.
    quants: [[[u8; TILE_BYTES]; MAX_CHUNK_BLOCKS]; 2],
    /// The product that is used, and those that are formed meanwhile.
    products: [[u8; PLACE_BYTES]; PLACES],
    /// Unfinished sums of each panel and tile of rows.
    sums: [[f32; LANES * TILE_ROWS]; MAX_SUMS],
}

/// Runs a product of [`has_tiles`]' formats. Its last tile may have fewer than 16 rows that count.
///
/// # Safety
/// As [`QuantisedGemm`], AMX as [`is_available`] says, and the activations have room for whole tiles of rows.
pub(crate) unsafe fn run<F: BlockFormat>(gemm: QuantisedGemm<F>) {
    let config = TileConfig::new::<F>();
    let num_blocks = gemm.x.num_blocks;
    let chunk_blocks = num_blocks.div_ceil(num_blocks.div_ceil(MAX_CHUNK_BLOCKS));
    // Every part is written before it is read.
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    // SAFETY: the configuration is valid, and nothing else in this program uses tile registers; the rest is the
    // caller's.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly));
        for row in (gemm.rows.0..gemm.rows.1).step_by(MAX_SUMS * TILE_ROWS) {
            let rows = (row, gemm.rows.1.min(row + MAX_SUMS * TILE_ROWS));
            let group = (MAX_SUMS / (rows.1 - rows.0).div_ceil(TILE_ROWS)).clamp(1, MAX_GROUP_PANELS);
            for panel in (gemm.panels.0..gemm.panels.1).step_by(group) {
                let panels = (panel, gemm.panels.1.min(panel + group));
                TileGemm { gemm: &gemm, panels, rows, chunk_blocks, scratch: scratch.as_mut_ptr() }.run();
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// The product of some rows and a group of panels: chunk by chunk, panel by panel, tile by tile.
struct TileGemm<'a, F> {
    gemm: &'a QuantisedGemm<F>,
    panels: (usize, usize),
    rows: (usize, usize),
    /// Blocks of each chunk but perhaps the last.
    chunk_blocks: usize,
    scratch: *mut Scratch,
}

/// A chunk of a panel, times a tile of rows.
#[derive(Clone, Copy)]
struct Part {
    panel: usize,
    /// Its blocks.
    blocks: (usize, usize),
    /// Where its quants are unpacked.
    place: usize,
    /// The tile's first row.
    row: usize,
}

/// The product whose operands are loaded next.
#[derive(Clone, Copy)]
struct Ahead {
    part: Part,
    /// Blocks of the part from this one on.
    left: usize,
    operands: Operands,
}

impl<F: BlockFormat> TileGemm<'_, F> {
    /// Where a chunk is unpacked.
    #[inline(always)]
    unsafe fn quants(&self, place: usize) -> *mut u8 {
        // SAFETY: there are two places.
        unsafe { (&raw mut (*self.scratch).quants).cast::<u8>().add(place * MAX_CHUNK_BLOCKS * TILE_BYTES) }
    }

    #[inline(always)]
    unsafe fn product(&self, idx: usize) -> *mut u8 {
        // SAFETY: the place exists.
        unsafe { (&raw mut (*self.scratch).products).cast::<u8>().add(idx % PLACES * PLACE_BYTES) }
    }

    /// The blocks of the chunk that starts at `first`.
    #[inline(always)]
    fn chunk(&self, first: usize) -> (usize, usize) {
        (first, self.gemm.x.num_blocks.min(first + self.chunk_blocks))
    }

    /// The chunk and panel after these; beyond the last, where the next group starts.
    #[inline(always)]
    fn following(&self, part: Part) -> (usize, (usize, usize)) {
        if part.panel + 1 < self.panels.1 {
            (part.panel + 1, part.blocks)
        } else if part.blocks.1 < self.gemm.x.num_blocks {
            (self.panels.0, self.chunk(part.blocks.1))
        } else {
            (self.panels.1, self.chunk(0))
        }
    }

    /// What is multiplied after `part`.
    #[inline(always)]
    fn next(&self, part: Part) -> Option<Part> {
        if part.row + TILE_ROWS < self.rows.1 {
            return Some(Part { row: part.row + TILE_ROWS, ..part });
        }
        let (panel, blocks) = self.following(part);
        (panel < self.panels.1).then_some(Part { panel, blocks, place: 1 - part.place, row: self.rows.0 })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn run(&self) {
        let first = Part { panel: self.panels.0, blocks: self.chunk(0), place: 0, row: self.rows.0 };
        // SAFETY: the caller's; a chunk has at most the blocks there is room for, panels and rows at most the sums.
        unsafe {
            let mut ahead = self.begin(first);
            self.unpack(&ahead);
            load_first::<F>(ahead.operands);
            self.advance(&mut ahead);
            for idx in 0..AHEAD {
                self.form(idx, &mut ahead);
            }
            let (mut part, mut used) = (Some(first), 0);
            while let Some(now) = part {
                used = if self.rows.1 - now.row <= TILE_ROWS / 2 {
                    self.tile::<{ TILE_ROWS / 2 }>(now, used, &mut ahead)
                } else {
                    self.tile::<TILE_ROWS>(now, used, &mut ahead)
                };
                part = self.next(now);
            }
        }
    }

    /// The first block of a part.
    #[inline(always)]
    unsafe fn begin(&self, part: Part) -> Ahead {
        // SAFETY: row and block exist, by the caller.
        unsafe {
            let activations = self.gemm.x.row(part.row).0.add(part.blocks.0 * TILE_BYTES).cast();
            let operands = Operands { activations, quants: self.quants(part.place) };
            Ahead { part, left: part.blocks.1 - part.blocks.0, operands }
        }
    }

    /// Forms product `idx`, loads the operands of the next, which is at `ahead`, and moves on.
    #[inline(always)]
    unsafe fn form(&self, idx: usize, ahead: &mut Ahead) {
        // SAFETY: the caller's.
        unsafe {
            step::<F>(idx, ahead.operands, self.product(idx.wrapping_sub(1)), self.product(idx));
            self.advance(ahead);
        }
    }

    /// Moves to the next block, and unpacks it; stays at the last.
    #[inline(always)]
    unsafe fn advance(&self, ahead: &mut Ahead) {
        // SAFETY: the caller's; the part has another block.
        unsafe {
            if ahead.left > 1 {
                ahead.left -= 1;
                ahead.operands.activations = ahead.operands.activations.add(TILE_BYTES);
                ahead.operands.quants = ahead.operands.quants.add(TILE_BYTES);
            } else if let Some(next) = self.next(ahead.part) {
                *ahead = self.begin(next);
            } else {
                return;
            }
            if ahead.part.row == self.rows.0 {
                self.unpack(ahead);
            }
        }
    }

    /// Writes a block's quants as a tile, a row of 64 bytes for each group of four inputs, and asks for the block that
    /// has this place in the next chunk.
    #[inline(always)]
    unsafe fn unpack(&self, at: &Ahead) {
        let (part, block) = (at.part, at.part.blocks.1 - at.left);
        let from = (part.panel * self.gemm.x.num_blocks + block) * F::QUANT_BYTES;
        let (panel, (first, _)) = self.following(part);
        self.fetch(panel, first + (block - part.blocks.0));
        // SAFETY: the block exists, and there is room for its tile.
        unsafe {
            let to = at.operands.quants;
            let groups = F::quants::<Avx512>(self.gemm.quants.add(from));
            for (i, w) in groups.into_iter().enumerate() {
                if is_nibble::<F>() {
                    // Neither shift nor offset carries from one byte to the next: quants are 0..=15.
                    let mut by_16 = _mm512_slli_epi16::<4>(w);
                    let mut by_1 = w;
                    if F::OFFSET != 0 {
                        by_16 = _mm512_sub_epi8(by_16, _mm512_set1_epi8((16 * F::OFFSET) as i8));
                        by_1 = _mm512_sub_epi8(by_1, _mm512_set1_epi8(F::OFFSET as i8));
                    }
                    _mm512_store_si512(to.add(64 * i).cast(), by_16);
                    _mm512_store_si512(to.add(64 * (8 + i)).cast(), by_1);
                } else {
                    // Undoes what other dot products need.
                    let w = _mm512_sub_epi8(w, _mm512_set1_epi8(Avx512::I8_BIAS as i8));
                    _mm512_store_si512(to.add(64 * i).cast(), w);
                }
            }
        }
    }

    /// Asks for a block that is unpacked later: meanwhile nothing else is asked of memory.
    #[inline(always)]
    fn fetch(&self, panel: usize, block: usize) {
        let num_blocks = self.gemm.x.num_blocks;
        let quants = self.gemm.quants.wrapping_add((panel * num_blocks + block) * F::QUANT_BYTES);
        let scales = self.gemm.scales.wrapping_add((panel * num_blocks + block) * F::SCALE_BYTES / F::SUPER);
        // SAFETY: a hint; it never faults.
        unsafe {
            for line in (0..F::QUANT_BYTES).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(quants.wrapping_add(line).cast());
            }
            _mm_prefetch::<_MM_HINT_T1>(scales.cast());
        }
    }

    /// Continues the sums of a part, whose first product is `used`; after the last block they are finished. Meanwhile
    /// later products are formed. `ROWS` of the tile's count.
    #[inline(always)]
    unsafe fn tile<const ROWS: usize>(&self, part: Part, mut used: usize, ahead: &mut Ahead) -> usize {
        let num_blocks = self.gemm.x.num_blocks;
        let Part { panel, blocks: (first, end), row, .. } = part;
        // SAFETY: the caller's.
        unsafe {
            let num_tiles = (self.rows.1 - self.rows.0).div_ceil(TILE_ROWS);
            let sum = (panel - self.panels.0) * num_tiles + (row - self.rows.0) / TILE_ROWS;
            let kept = (&raw mut (*self.scratch).sums).cast::<f32>().add(sum * LANES * TILE_ROWS);
            let scales = self.gemm.scales.add(panel * (num_blocks / F::SUPER) * F::SCALE_BYTES);
            let (_, meta) = self.gemm.x.row(row);
            let mut sums = [_mm512_setzero_ps(); ROWS];
            if first > 0 {
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(kept.add(m * LANES));
                }
            }
            // A few at a time: more at once would keep other loads from memory waiting.
            let finished_rows = if end == num_blocks { ROWS.min(self.rows.1 - row) } else { 0 };
            let rows_per_block = ROWS.div_ceil(end - first);
            let mut fetched = 0;
            for b in first..end {
                for _ in 0..rows_per_block {
                    if fetched < finished_rows {
                        self.gemm.epilogue.prefetch(row + fetched, panel);
                        fetched += 1;
                    }
                }
                self.form(used + AHEAD, ahead);
                let product = self.product(used);
                used += 1;
                let scales = scales.add(b / F::SUPER * F::SCALE_BYTES);
                let (parts, min) = F::scales::<Avx512>(scales, b % F::SUPER);
                let meta = meta.add(b * TILE_ROWS);
                // A loop would not be unrolled, and the sums then be in memory.
                each_row!(M => if let Some(sum) = sums.get_mut(M) {
                    let mut dot = _mm512_load_si512(product.add(64 * M).cast());
                    if !is_nibble::<F>() {
                        let low = _mm512_load_si512(product.add(TILE_BYTES + 64 * M).cast());
                        dot = _mm512_add_epi32(_mm512_slli_epi32::<4>(dot), low);
                    }
                    let factor = _mm512_mul_ps(parts[0], _mm512_set1_ps((*meta.add(M)).scale));
                    add_product(sum, _mm512_cvtepi32_ps(dot), factor);
                    if F::HAS_MIN {
                        *sum = _mm512_fmadd_ps(min, _mm512_set1_ps((*meta.add(M)).scaled_sum), *sum);
                    }
                });
            }
            if end < num_blocks {
                for (m, sum) in sums.into_iter().enumerate() {
                    _mm512_storeu_ps(kept.add(m * LANES), sum);
                }
            } else {
                for (m, sum) in sums.into_iter().enumerate() {
                    if row + m < self.rows.1 {
                        self.gemm.epilogue.store::<Avx512>(row + m, panel, sum);
                    }
                }
            }
        }
        used
    }
}

/// `sum += a b`, in the register that `sum` is in: a compiler that takes another has to copy all 16 back.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_product(sum: &mut __m512, a: __m512, b: __m512) {
    // SAFETY: register arithmetic only.
    unsafe {
        asm!(
            "vfmadd231ps {sum}, {a}, {b}",
            sum = inout(zmm_reg) *sum, a = in(zmm_reg) a, b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
}
