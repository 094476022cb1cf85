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

use super::activations::{GROUP_BLOCKS, TILE_ROWS};
use super::blocks::BlockFormat;
use super::gemm::QuantisedGemm;
use super::simd::avx512::Avx512;
use super::simd::{LANES, Simd};
pub(crate) use tiles::is_available;
use tiles::{Operands, TILE_BYTES, TileConfig, is_nibble, load_first, step};

/// Blocks of a chunk, whose sums have one scale: those of two tiles of activations and of two panels stay in the
/// first-level cache.
const CHUNK_BLOCKS: usize = GROUP_BLOCKS;
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
    quants: [[[u8; TILE_BYTES]; CHUNK_BLOCKS]; 2],
    /// The products of a chunk's blocks; a place is free again as soon as its product is added.
    products: [[u8; PLACE_BYTES]; CHUNK_BLOCKS],
    /// Unfinished sums of each panel and tile of rows.
    sums: [[f32; LANES * TILE_ROWS]; MAX_SUMS],
}

/// Runs a product of [`has_tiles`]' formats. Its last tile may have fewer than 16 rows that count.
///
/// # Safety
/// As [`QuantisedGemm`], AMX as [`is_available`] says, and the activations have room for whole tiles of rows.
pub(crate) unsafe fn run<F: BlockFormat>(gemm: QuantisedGemm<F>) {
    let config = TileConfig::new::<F>();
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
                TileGemm { gemm: &gemm, panels, rows, scratch: scratch.as_mut_ptr() }.run();
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
    /// The first block's activations.
    activations: *const u8,
    /// Of the chunk that is unpacked after this one: its first block's quants and scales.
    fetch: [*const u8; 2],
}

impl<F: BlockFormat> TileGemm<'_, F> {
    #[inline(always)]
    unsafe fn product(&self, block: usize) -> *mut u8 {
        // SAFETY: the place exists.
        unsafe { (&raw mut (*self.scratch).products).cast::<u8>().add(block % CHUNK_BLOCKS * PLACE_BYTES) }
    }

    /// The unfinished sums of a panel and a tile of rows.
    #[inline(always)]
    unsafe fn kept_sums(&self, panel: usize, row: usize) -> *mut f32 {
        let num_tiles = (self.rows.1 - self.rows.0).div_ceil(TILE_ROWS);
        let tile = (panel - self.panels.0) * num_tiles + (row - self.rows.0) / TILE_ROWS;
        // SAFETY: there are as many as panels times tiles, by the caller.
        unsafe { (&raw mut (*self.scratch).sums).cast::<f32>().add(tile * LANES * TILE_ROWS) }
    }

    /// The chunk that starts at block `first`, times the tile that starts at `row`.
    #[inline(always)]
    unsafe fn part(&self, panel: usize, first: usize, place: usize, row: usize) -> Part {
        let num_blocks = self.gemm.x.num_blocks;
        let blocks = (first, num_blocks.min(first + CHUNK_BLOCKS));
        // Beyond the last, where the next group of panels starts.
        let (panel_after, first_after) = if panel + 1 < self.panels.1 {
            (panel + 1, first)
        } else if blocks.1 < num_blocks {
            (self.panels.0, blocks.1)
        } else {
            (self.panels.1, 0)
        };
        let at = panel_after * num_blocks + first_after;
        let fetch = [
            self.gemm.quants.wrapping_add(at * F::QUANT_BYTES),
            self.gemm.scales.wrapping_add(at * F::SCALE_BYTES / F::SUPER),
        ];
        // SAFETY: row and block exist, by the caller.
        let activations = unsafe { self.gemm.x.row(row).0.add(first * TILE_BYTES).cast() };
        Part { panel, blocks, place, row, activations, fetch }
    }

    /// What is multiplied after `part`.
    #[inline(always)]
    unsafe fn next(&self, part: Part) -> Option<Part> {
        let Part { panel, blocks: (first, end), place, row, .. } = part;
        // SAFETY: rows, panels and blocks exist.
        unsafe {
            if row + TILE_ROWS < self.rows.1 {
                Some(self.part(panel, first, place, row + TILE_ROWS))
            } else if panel + 1 < self.panels.1 {
                Some(self.part(panel + 1, first, 1 - place, self.rows.0))
            } else if end < self.gemm.x.num_blocks {
                Some(self.part(self.panels.0, end, 1 - place, self.rows.0))
            } else {
                None
            }
        }
    }

    /// The operands of a part's block. A chunk that is short has its last activations again, with whatever quants: those
    /// products are formed and not used.
    #[inline(always)]
    unsafe fn operands(&self, part: &Part, block: usize) -> Operands {
        let last = part.blocks.1 - part.blocks.0 - 1;
        // SAFETY: the block exists, and there are two places.
        unsafe {
            let quants = (&raw mut (*self.scratch).quants).cast::<u8>();
            Operands {
                activations: part.activations.add(block.min(last) * TILE_BYTES),
                quants: quants.add((part.place * CHUNK_BLOCKS + block) * TILE_BYTES),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn run(&self) {
        // SAFETY: the caller's; panels and rows are at most those that there are sums for.
        unsafe {
            // Not between the tiles: while they are busy, the processor has half its units for floats.
            for panel in self.panels.0..self.panels.1 {
                for row in (self.rows.0..self.rows.1).step_by(TILE_ROWS) {
                    if self.rows.1 - row <= TILE_ROWS / 2 {
                        self.begin::<{ TILE_ROWS / 2 }>(panel, row);
                    } else {
                        self.begin::<TILE_ROWS>(panel, row);
                    }
                }
            }
            let mut part = self.part(self.panels.0, 0, 0, self.rows.0);
            for block in 0..CHUNK_BLOCKS {
                self.unpack(&part, block);
            }
            load_first::<F>(self.operands(&part, 0));
            self.form::<0>(&part, 1);
            self.form::<1>(&part, 2);
            loop {
                let next = self.next(part);
                if self.rows.1 - part.row <= TILE_ROWS / 2 {
                    self.tile::<{ TILE_ROWS / 2 }>(&part, next.as_ref());
                } else {
                    self.tile::<TILE_ROWS>(&part, next.as_ref());
                }
                match next {
                    Some(next) => part = next,
                    None => break,
                }
            }
        }
    }

    /// Starts the sums of a tile.
    #[inline(always)]
    unsafe fn begin<const ROWS: usize>(&self, panel: usize, row: usize) {
        // SAFETY: the caller's.
        unsafe {
            let kept = self.kept_sums(panel, row);
            let sums = self.gemm.minimums::<Avx512, ROWS>(row, panel);
            for (m, sum) in sums.into_iter().enumerate() {
                _mm512_store_ps(kept.add(m * LANES), sum);
            }
        }
    }

    /// Forms the product of block `BLOCK` of a part, whose operands are loaded, and loads those of block `load` of
    /// `part`, which is the same or the next one.
    #[inline(always)]
    unsafe fn form<const BLOCK: usize>(&self, part: &Part, load: usize) {
        // SAFETY: the caller's.
        unsafe {
            let previous = self.product((BLOCK + CHUNK_BLOCKS - 1) % CHUNK_BLOCKS);
            step::<F>(BLOCK, self.operands(part, load), previous, self.product(BLOCK));
        }
    }

    /// Writes a block's quants as a tile, a row of 64 bytes for each group of four inputs, and asks for the block that
    /// has this place in the chunk after.
    #[inline(always)]
    unsafe fn unpack(&self, part: &Part, block: usize) {
        if part.blocks.0 + block >= part.blocks.1 {
            return;
        }
        let from = (part.panel * self.gemm.x.num_blocks + part.blocks.0 + block) * F::QUANT_BYTES;
        // SAFETY: the block exists, and there is room for its tile; the rest are hints, which never fault.
        unsafe {
            let [quants, scales] = part.fetch;
            let quants = quants.wrapping_add(block * F::QUANT_BYTES);
            for line in (0..F::QUANT_BYTES).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(quants.wrapping_add(line).cast());
            }
            _mm_prefetch::<_MM_HINT_T1>(scales.wrapping_add(block * F::SCALE_BYTES / F::SUPER).cast());
            let to = self.operands(part, block).quants;
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

    /// Adds the products of a part, of which the first two are formed; forms the others, and the first two of the next
    /// part, whose chunk is unpacked if it is another. `ROWS` of the tile's count.
    #[inline(always)]
    unsafe fn tile<const ROWS: usize>(&self, part: &Part, next: Option<&Part>) {
        let num_blocks = self.gemm.x.num_blocks;
        let &Part { panel, blocks: (first, end), row, .. } = part;
        let finished = end == num_blocks;
        let unpacked = next.filter(|next| next.place != part.place);
        let next = next.unwrap_or(part);
        // SAFETY: the caller's.
        unsafe {
            let scales = self.gemm.scales(panel);
            let mut sums = [_mm512_setzero_ps(); ROWS];
            macro_rules! block {
                ($block:literal, $loaded:expr) => {
                    self.form::<{ ($block + 2) % CHUNK_BLOCKS }>($loaded, ($block + 3) % CHUNK_BLOCKS);
                    if let Some(next) = unpacked {
                        self.unpack(next, $block);
                    }
                    if finished {
                        // A few at a time: more at once would keep other loads from memory waiting.
                        for m in ROWS / CHUNK_BLOCKS * $block..ROWS / CHUNK_BLOCKS * ($block + 1) {
                            self.gemm.epilogue.prefetch(row + m, panel);
                        }
                    }
                    let block = first + $block;
                    if block < end {
                        let scales = scales.add(block / F::SUPER * F::SCALE_BYTES);
                        let [factor, _] = F::scales::<Avx512>(scales, block % F::SUPER);
                        self.add::<ROWS>(&mut sums, self.product($block), factor);
                    }
                };
            }
            block!(0, part);
            block!(1, next);
            block!(2, next);
            block!(3, next);
            let kept = self.kept_sums(panel, row);
            let meta = self.gemm.x.row(row).1.add(first * TILE_ROWS);
            // Loops would not be unrolled, and the sums then be in memory.
            each_row!(M => if let Some(sum) = sums.get_mut(M) {
                let scale = _mm512_set1_ps((*meta.add(M)).scale);
                *sum = _mm512_fmadd_ps(*sum, scale, _mm512_load_ps(kept.add(M * LANES)));
            });
            if finished {
                for (m, sum) in sums.into_iter().enumerate() {
                    if row + m < self.rows.1 {
                        self.gemm.epilogue.store::<Avx512>(row + m, panel, sum);
                    }
                }
            } else {
                each_row!(M => if let Some(sum) = sums.get(M) {
                    _mm512_store_ps(kept.add(M * LANES), *sum);
                });
            }
        }
    }

    /// Adds a product, times the weights' scales, to the sums.
    #[inline(always)]
    unsafe fn add<const ROWS: usize>(&self, sums: &mut [__m512; ROWS], product: *const u8, factor: __m512) {
        // SAFETY: the product is whole.
        unsafe {
            each_row!(M => if let Some(sum) = sums.get_mut(M) {
                let mut dot = _mm512_load_si512(product.add(64 * M).cast());
                if !is_nibble::<F>() {
                    let low = _mm512_load_si512(product.add(TILE_BYTES + 64 * M).cast());
                    dot = _mm512_add_epi32(_mm512_slli_epi32::<4>(dot), low);
                }
                add_product(sum, _mm512_cvtepi32_ps(dot), factor);
            });
        }
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
