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

/// Blocks of a chunk, whose sums have one scale.
const CHUNK_BLOCKS: usize = GROUP_BLOCKS;
/// Bytes of a place: one of the high and one of the low parts.
const PLACE_BYTES: usize = 2 * TILE_BYTES;
/// Tiles of rows that are multiplied by a chunk of a panel once it is unpacked: their activations stay in the
/// first-level cache from panel to panel.
const MAX_TILES: usize = 4;
/// Panels that a chunk of activations is multiplied by before the next chunk.
const MAX_PANELS: usize = 8;
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
    sums: [[f32; LANES * TILE_ROWS]; MAX_TILES * MAX_PANELS],
}

/// Runs a product of [`has_tiles`]' formats. Its last tile may have fewer than 16 rows that count.
///
/// # Safety
/// As [`QuantisedGemm`], AMX as [`is_available`] says, and the activations have room as
/// [`super::activations::Activations::stored_blocks`] says.
pub(crate) unsafe fn run<F: BlockFormat>(gemm: QuantisedGemm<F>) {
    let config = TileConfig::new::<F>();
    // What counts is written before it is read.
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    // SAFETY: the configuration is valid, and nothing else in this program uses tile registers; the rest is the
    // caller's.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly));
        for panel in (gemm.panels.0..gemm.panels.1).step_by(MAX_PANELS) {
            let panels = (panel, gemm.panels.1.min(panel + MAX_PANELS));
            for row in (gemm.rows.0..gemm.rows.1).step_by(MAX_TILES * TILE_ROWS) {
                let rows = (row, gemm.rows.1.min(row + MAX_TILES * TILE_ROWS));
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

/// Four products: a chunk of a panel times a tile of rows, or, where only two blocks or one are left, those times two
/// tiles.
#[derive(Clone, Copy)]
struct Part {
    panel: usize,
    /// Its first block.
    first: usize,
    /// Blocks of a tile's that count.
    len: usize,
    /// Whether it is of two tiles.
    is_split: bool,
    /// Where the chunk's quants are unpacked.
    place: usize,
    /// The first tile's first row.
    row: usize,
    /// Operands of the first and the third product; those of the second and the fourth lie behind them.
    activations: [*const u8; 2],
    quants: [*mut u8; 2],
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
        let tile = (panel - self.panels.0) * MAX_TILES + (row - self.rows.0) / TILE_ROWS;
        // SAFETY: there are as many as panels times tiles, by the caller.
        unsafe { (&raw mut (*self.scratch).sums).cast::<f32>().add(tile * LANES * TILE_ROWS) }
    }

    /// The chunk that starts at block `first`, times the tile that starts at `row`. A short chunk takes what lies behind
    /// its operands, and one without a second tile its own again: those products are formed and not used.
    #[inline(always)]
    unsafe fn part(&self, panel: usize, first: usize, place: usize, row: usize) -> Part {
        let num_blocks = self.gemm.x.num_blocks;
        let len = CHUNK_BLOCKS.min(num_blocks - first);
        let is_split = len <= CHUNK_BLOCKS / 2;
        // SAFETY: row and block exist, by the caller, and activations of whole tiles and one more; there are two places.
        unsafe {
            let activations: *const u8 = self.gemm.x.row(row).0.add(first * TILE_BYTES).cast();
            let quants =
                (&raw mut (*self.scratch).quants).cast::<u8>().add(place * CHUNK_BLOCKS * TILE_BYTES);
            let half = CHUNK_BLOCKS / 2 * TILE_BYTES;
            let (activations, quants) = if !is_split {
                ([activations, activations.add(half)], [quants, quants.add(half)])
            } else if row + TILE_ROWS < self.rows.1 {
                ([activations, activations.add(num_blocks * TILE_BYTES)], [quants, quants])
            } else {
                ([activations, activations], [quants, quants])
            };
            Part { panel, first, len, is_split, place, row, activations, quants }
        }
    }

    /// What is multiplied after `part`.
    #[inline(always)]
    unsafe fn next(&self, part: &Part) -> Option<Part> {
        let &Part { panel, first, place, row, .. } = part;
        let tiles = if part.is_split { 2 } else { 1 };
        // SAFETY: rows, panels and blocks exist.
        unsafe {
            if row + tiles * TILE_ROWS < self.rows.1 {
                Some(self.part(panel, first, place, row + tiles * TILE_ROWS))
            } else if panel + 1 < self.panels.1 {
                Some(self.part(panel + 1, first, 1 - place, self.rows.0))
            } else if first + part.len < self.gemm.x.num_blocks {
                Some(self.part(self.panels.0, first + part.len, 1 - place, self.rows.0))
            } else {
                None
            }
        }
    }

    /// Operands of a part's product.
    #[inline(always)]
    unsafe fn operands(&self, part: &Part, product: usize) -> Operands {
        let (half, offset) = (product / 2 % 2, product % 2 * TILE_BYTES);
        // SAFETY: within a chunk.
        unsafe {
            Operands {
                activations: part.activations[half].add(offset),
                quants: part.quants[half].add(offset),
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
                    // A second tile is added whole, see `split`.
                    if self.rows.1 - self.rows.0 <= TILE_ROWS / 2 {
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
            self.form::<0>(self.operands(&part, 1));
            self.form::<1>(self.operands(&part, 2));
            loop {
                let next = self.next(&part);
                match (part.is_split, self.rows.1 - part.row <= TILE_ROWS / 2) {
                    (false, false) => self.whole::<TILE_ROWS>(&part, next.as_ref()),
                    (false, true) => self.whole::<{ TILE_ROWS / 2 }>(&part, next.as_ref()),
                    (true, false) => self.split::<TILE_ROWS>(&part, next.as_ref()),
                    (true, true) => self.split::<{ TILE_ROWS / 2 }>(&part, next.as_ref()),
                }
                match next {
                    Some(next) => part = next,
                    None => break,
                }
            }
            for panel in self.panels.0..self.panels.1 {
                for row in self.rows.0..self.rows.1 {
                    let sum = self.kept_sums(panel, row).add(row % TILE_ROWS * LANES);
                    self.gemm.epilogue.store::<Avx512>(row, panel, _mm512_load_ps(sum));
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

    /// Forms product `PRODUCT` of a part, whose operands are loaded, and loads those of the one after it.
    #[inline(always)]
    unsafe fn form<const PRODUCT: usize>(&self, after: Operands) {
        // SAFETY: the caller's.
        unsafe {
            let previous = self.product((PRODUCT + CHUNK_BLOCKS - 1) % CHUNK_BLOCKS);
            step::<F>(PRODUCT, after, previous, self.product(PRODUCT));
        }
    }

    /// Writes a block's quants as a tile, a row of 64 bytes for each group of four inputs, and asks for the block that
    /// has this place in the chunk after.
    #[inline(always)]
    unsafe fn unpack(&self, part: &Part, block: usize) {
        if block >= part.len {
            return;
        }
        let num_blocks = self.gemm.x.num_blocks;
        let at = part.panel * num_blocks + part.first + block;
        // Beyond the last, where the next group of panels starts.
        let after = if part.panel + 1 < self.panels.1 {
            at + num_blocks
        } else if part.first + CHUNK_BLOCKS < num_blocks {
            self.panels.0 * num_blocks + part.first + CHUNK_BLOCKS + block
        } else {
            self.panels.1 * num_blocks + block
        };
        // SAFETY: the block exists, and there is room for its tile; the rest are hints, which never fault.
        unsafe {
            let ahead = self.gemm.quants.wrapping_add(after * F::QUANT_BYTES);
            for line in (0..F::QUANT_BYTES).step_by(64) {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast());
            }
            let ahead = self.gemm.scales.wrapping_add(after / F::SUPER * F::SCALE_BYTES);
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            let to = part.quants[0].add(block * TILE_BYTES);
            let groups = F::quants::<Avx512>(self.gemm.quants.add(at * F::QUANT_BYTES));
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

    /// A step of the pipeline: adds product `PRODUCT` of a part to `sums`, two products after it was formed. Beside that
    /// forms the next but one, loads the operands of the one after it, and unpacks a block of the next chunk.
    #[inline(always)]
    unsafe fn product_step<const ROWS: usize, const PRODUCT: usize>(
        &self,
        part: &Part,
        next: Option<&Part>,
        block: usize,
        sums: &mut [__m512; ROWS],
    ) {
        // SAFETY: the caller's.
        unsafe {
            let load = if PRODUCT == 0 { part } else { next.unwrap_or(part) };
            match PRODUCT {
                0 => self.form::<2>(self.operands(load, 3)),
                1 => self.form::<3>(self.operands(load, 0)),
                2 => self.form::<0>(self.operands(load, 1)),
                _ => self.form::<1>(self.operands(load, 2)),
            }
            if let Some(next) = next
                && next.place != part.place
            {
                self.unpack(next, PRODUCT);
            }
            if part.first + part.len == self.gemm.x.num_blocks {
                // A few at a time: more at once would keep other loads from memory waiting.
                let share = ROWS / CHUNK_BLOCKS;
                for m in share * PRODUCT..share * (PRODUCT + 1) {
                    self.gemm.epilogue.prefetch(part.row + m, part.panel);
                }
            }
            if block < part.len {
                let block = part.first + block;
                let scales = self.gemm.scales(part.panel).add(block / F::SUPER * F::SCALE_BYTES);
                let [factor, _] = F::scales::<Avx512>(scales, block % F::SUPER);
                self.add::<ROWS>(sums, self.product(PRODUCT), factor);
            }
        }
    }

    /// Adds a part of one tile, `ROWS` of which count.
    #[inline(always)]
    unsafe fn whole<const ROWS: usize>(&self, part: &Part, next: Option<&Part>) {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); ROWS];
            self.product_step::<ROWS, 0>(part, next, 0, &mut sums);
            self.product_step::<ROWS, 1>(part, next, 1, &mut sums);
            self.product_step::<ROWS, 2>(part, next, 2, &mut sums);
            self.product_step::<ROWS, 3>(part, next, 3, &mut sums);
            self.keep::<ROWS>(part, part.row, &sums);
        }
    }

    /// Adds a part of two tiles.
    #[inline(always)]
    unsafe fn split<const ROWS: usize>(&self, part: &Part, next: Option<&Part>) {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); ROWS];
            self.product_step::<ROWS, 0>(part, next, 0, &mut sums);
            self.product_step::<ROWS, 1>(part, next, 1, &mut sums);
            self.keep::<ROWS>(part, part.row, &sums);
            let mut sums = [_mm512_setzero_ps(); ROWS];
            self.product_step::<ROWS, 2>(part, next, 0, &mut sums);
            self.product_step::<ROWS, 3>(part, next, 1, &mut sums);
            if part.row + TILE_ROWS < self.rows.1 {
                self.keep::<ROWS>(part, part.row + TILE_ROWS, &sums);
            }
        }
    }

    /// Adds the sums of a chunk, times the activations' scales, to those that are kept.
    #[inline(always)]
    unsafe fn keep<const ROWS: usize>(&self, part: &Part, row: usize, sums: &[__m512; ROWS]) {
        // SAFETY: the caller's.
        unsafe {
            let kept = self.kept_sums(part.panel, row);
            let meta = self.gemm.x.row(row).1.add(part.first * TILE_ROWS);
            // A loop would not be unrolled, and the sums then be in memory.
            each_row!(M => if let Some(&sum) = sums.get(M) {
                let scale = _mm512_set1_ps((*meta.add(M)).scale);
                let sum = _mm512_fmadd_ps(sum, scale, _mm512_load_ps(kept.add(M * LANES)));
                _mm512_store_ps(kept.add(M * LANES), sum);
            });
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
