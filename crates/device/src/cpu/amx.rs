//! The quantised matrix product in AMX tiles: 16 rows by 16 features by a block of 32 inputs in one instruction.
//!
//! Integer sums are exact, and what follows them is done in the order of [`super::gemm`]: the results are the same
//! bits as AVX-512's. A 4-bit weight leaves room in its byte: one tile holds the quants times 16, for the high parts of the
//! activations, above the quants themselves, for the low parts, so that one product of depth 64 makes the whole sum.
//! `Q8_0` needs two products.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1 chapter 18 (tiles), volume 2
//! (`TDPBSSD`, `TDPBSUD`).

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::activations::TILE_ROWS;
use super::blocks::BlockFormat;
use super::gemm::QuantisedGemm;
use super::simd::avx512::Avx512;
use super::simd::{LANES, Simd};

/// Bytes of a full tile: 16 rows of 64.
const TILE_BYTES: usize = 1024;
/// Blocks whose unpacked quants stay in the first-level cache, beside as many of the activations.
const MAX_CHUNK_BLOCKS: usize = 12;
/// Blocks whose products are formed together, since each takes many cycles from its operands to memory.
const RUN_BLOCKS: usize = 4;
/// Room for their products, two each where there are two.
const RUN_BYTES: usize = 2 * RUN_BLOCKS * TILE_BYTES;
/// Tiles of rows whose sums are kept between chunks.
const MAX_ROW_TILES: usize = 32;
/// Fewer rows than this are multiplied faster without tiles.
pub(crate) const MIN_ROWS: usize = 13;

/// Whether a format's blocks fit a tile: those with one scale for all 32 inputs.
pub(crate) const fn has_tiles<F: BlockFormat>() -> bool {
    F::PARTS == 1
}

/// Whether this machine has AMX with int8, and the system lets this process use it: Linux gives the 8 KiB of tile
/// registers only to those who ask (`arch_prctl(2)`, `ARCH_REQ_XCOMP_PERM`).
pub(crate) fn is_available() -> bool {
    #[cfg(target_os = "linux")]
    {
        const TILE_DATA: u64 = 18;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const SYS_ARCH_PRCTL: u64 = 158;
        const AMX_TILE_AND_INT8: u32 = 3 << 24;
        if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & AMX_TILE_AND_INT8 != AMX_TILE_AND_INT8 {
            return false;
        }
        let result: i64;
        // SAFETY: the system call takes two numbers, touches no memory of ours, and fails where it is unknown.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") SYS_ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Both parts of the activations are multiplied at once, by quants times 16 and quants.
const fn is_nibble<F: BlockFormat>() -> bool {
    F::BITS == 4
}

/// Shapes of the tile registers: `LDTILECFG`'s 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Registers 0 to 3 take sums, 4 and 5 activations, 6 and 7 quants.
    fn new<F: BlockFormat>() -> Self {
        let (depth_bytes, depth_rows) = if is_nibble::<F>() { (64, 16) } else { (32, 8) };
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let d = depth_bytes;
        config.row_bytes[..8].copy_from_slice(&[64, 64, 64, 64, d, d, 64, 64]);
        config.rows[..8].copy_from_slice(&[16, 16, 16, 16, 16, 16, depth_rows, depth_rows]);
        config
    }
}

/// What a task keeps in the first-level cache.
#[repr(C, align(64))]
struct Scratch {
    /// A chunk of a panel, unpacked.
    quants: [[u8; TILE_BYTES]; MAX_CHUNK_BLOCKS],
    /// Products of a run of blocks and of the next, which are formed while the former are used.
    products: [[u8; RUN_BYTES]; 2],
    /// Unfinished sums of each tile of rows.
    sums: [[f32; LANES * TILE_ROWS]; MAX_ROW_TILES],
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
        for panel in gemm.panels.0..gemm.panels.1 {
            for row in (gemm.rows.0..gemm.rows.1).step_by(MAX_ROW_TILES * TILE_ROWS) {
                let end = gemm.rows.1.min(row + MAX_ROW_TILES * TILE_ROWS);
                TileGemm { gemm: &gemm, scratch: scratch.as_mut_ptr() }.panel(panel, (row, end));
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}

struct TileGemm<'a, F> {
    gemm: &'a QuantisedGemm<F>,
    scratch: *mut Scratch,
}

/// A run of products that is there.
#[derive(Clone, Copy)]
struct Run {
    /// Which of the two places it is in.
    place: usize,
    blocks: usize,
}

impl<F: BlockFormat> TileGemm<'_, F> {
    /// Where a block of the chunk is unpacked.
    #[inline(always)]
    unsafe fn quants(&self, at: usize) -> *mut u8 {
        // SAFETY: the chunk has the block, by the caller.
        unsafe { (&raw mut (*self.scratch).quants).cast::<u8>().add(at * TILE_BYTES) }
    }

    #[inline(always)]
    unsafe fn products(&self, place: usize) -> *mut u8 {
        // SAFETY: there are two places.
        unsafe { (&raw mut (*self.scratch).products).cast::<u8>().add(place * RUN_BYTES) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn panel(&self, panel: usize, rows: (usize, usize)) {
        let num_blocks = self.gemm.x.num_blocks;
        let num_chunks = num_blocks.div_ceil(MAX_CHUNK_BLOCKS);
        let chunk_blocks = num_blocks.div_ceil(num_chunks.max(1));
        for first in (0..num_blocks).step_by(chunk_blocks.max(1)) {
            let end = num_blocks.min(first + chunk_blocks);
            // SAFETY: the caller's; a chunk has at most the blocks there is room for, `rows` at most the tiles.
            unsafe {
                for b in first..end {
                    self.unpack(panel, b, self.quants(b - first));
                }
                let blocks =
                    multiply::<F>(self.block(rows.0, first), self.quants(0), self.products(0), end - first);
                let mut run = Run { place: 0, blocks };
                for (tile, row) in (rows.0..rows.1).step_by(TILE_ROWS).enumerate() {
                    run = self.tile((panel, row, tile), rows.1, (first, end), run);
                }
            }
        }
    }

    /// The activations of block `block` of the tile that starts at row `row`.
    #[inline(always)]
    unsafe fn block(&self, row: usize, block: usize) -> *const u8 {
        // SAFETY: row and block exist, by the caller.
        unsafe { self.gemm.x.row(row).0.add(block * TILE_BYTES).cast() }
    }

    /// Writes a block's quants as a tile: a row of 64 bytes for each group of four inputs.
    #[inline(always)]
    unsafe fn unpack(&self, panel: usize, block: usize, to: *mut u8) {
        let from = (panel * self.gemm.x.num_blocks + block) * F::QUANT_BYTES;
        // SAFETY: the block exists, and `to` has room for a tile.
        unsafe {
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

    /// Continues the sums of the tile of rows that starts at `row`, over some blocks; after the last block they are
    /// finished. Its first run of products is there; that of the next tile is returned.
    #[inline(always)]
    unsafe fn tile(
        &self,
        (panel, row, tile): (usize, usize, usize),
        end_row: usize,
        (first, end): (usize, usize),
        mut run: Run,
    ) -> Run {
        let num_blocks = self.gemm.x.num_blocks;
        // SAFETY: the caller's.
        unsafe {
            let kept = (&raw mut (*self.scratch).sums).cast::<f32>().add(tile * LANES * TILE_ROWS);
            let scales = self.gemm.scales.add(panel * (num_blocks / F::SUPER) * F::SCALE_BYTES);
            let (_, meta) = self.gemm.x.row(row);
            let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
            if first > 0 {
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(kept.add(m * LANES));
                }
            }
            if end == num_blocks {
                for m in 0..TILE_ROWS.min(end_row - row) {
                    self.gemm.epilogue.prefetch(row + m, panel);
                }
            }
            let mut b = first;
            while b < end {
                let (now, after) = (run, b + run.blocks);
                run.place = 1 - now.place;
                let to = self.products(run.place);
                run.blocks = if after < end {
                    multiply::<F>(self.block(row, after), self.quants(after - first), to, end - after)
                } else if row + TILE_ROWS < end_row {
                    multiply::<F>(self.block(row + TILE_ROWS, first), self.quants(0), to, end - first)
                } else {
                    0
                };
                let now_at = self.products(now.place);
                for i in 0..now.blocks {
                    if row == self.gemm.rows.0 {
                        self.fetch(panel + 1, b + i);
                    }
                    let product = now_at.add(i * product_bytes::<F>());
                    let b = b + i;
                    let scales = scales.add(b / F::SUPER * F::SCALE_BYTES);
                    let (parts, min) = F::scales::<Avx512>(scales, b % F::SUPER);
                    let meta = meta.add(b * TILE_ROWS);
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let mut dot = _mm512_load_si512(product.add(64 * m).cast());
                        if !is_nibble::<F>() {
                            let low = _mm512_load_si512(product.add(TILE_BYTES + 64 * m).cast());
                            dot = _mm512_add_epi32(_mm512_slli_epi32::<4>(dot), low);
                        }
                        let factor = _mm512_mul_ps(parts[0], _mm512_set1_ps((*meta.add(m)).scale));
                        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, *sum);
                        if F::HAS_MIN {
                            *sum = _mm512_fmadd_ps(min, _mm512_set1_ps((*meta.add(m)).scaled_sum), *sum);
                        }
                    }
                }
                b = after;
            }
            if end < num_blocks {
                for (m, sum) in sums.into_iter().enumerate() {
                    _mm512_storeu_ps(kept.add(m * LANES), sum);
                }
            } else {
                for (m, sum) in sums.into_iter().enumerate() {
                    if row + m < end_row {
                        self.gemm.epilogue.store::<Avx512>(row + m, panel, sum);
                    }
                }
            }
        }
        run
    }
}

/// Bytes between the products of two blocks.
const fn product_bytes<F: BlockFormat>() -> usize {
    if is_nibble::<F>() { TILE_BYTES } else { 2 * TILE_BYTES }
}

/// The integer sums of 16 rows (`a`) and 16 features (`b`) over each of the next blocks, to `c`: a tile a block, or
/// one of the high and one of the low parts. Returns for how many of the `left` blocks, at least one.
#[inline(always)]
unsafe fn multiply<F: BlockFormat>(a: *const u8, b: *const u8, c: *mut u8, left: usize) -> usize {
    macro_rules! tiles {
        ($($line:expr),* $(,)?) => {
            asm!(
                $($line,)*
                a = in(reg) a, b = in(reg) b, c = in(reg) c, stride = in(reg) 64_usize, options(nostack),
            )
        };
    }
    /// A product: its sums, activations and quants, and where the block's operands and result are.
    macro_rules! product {
        ($instruction:literal, $c:literal, $a:literal, $b:literal, $at:literal) => {
            concat!(
                "tilezero tmm",
                $c,
                "\n",
                "tileloadd tmm",
                $a,
                ", [{a} + {stride} + ",
                $at,
                "]\n",
                "tileloadd tmm",
                $b,
                ", [{b} + {stride} + ",
                $at,
                "]\n",
                $instruction,
                " tmm",
                $c,
                ", tmm",
                $a,
                ", tmm",
                $b,
            )
        };
    }
    macro_rules! store {
        ($c:literal, $at:literal) => {
            concat!("tilestored [{c} + {stride} + ", $at, "], tmm", $c)
        };
    }
    macro_rules! run {
        ($instruction:literal, 1) => {
            tiles!(product!($instruction, 0, 4, 6, 0), store!(0, 0))
        };
        ($instruction:literal, 2) => {
            tiles!(
                product!($instruction, 0, 4, 6, 0),
                product!($instruction, 1, 5, 7, 1024),
                store!(0, 0),
                store!(1, 1024),
            )
        };
        ($instruction:literal, 3) => {
            tiles!(
                product!($instruction, 0, 4, 6, 0),
                product!($instruction, 1, 5, 7, 1024),
                product!($instruction, 2, 4, 6, 2048),
                store!(0, 0),
                store!(1, 1024),
                store!(2, 2048),
            )
        };
        ($instruction:literal, 4) => {
            tiles!(
                product!($instruction, 0, 4, 6, 0),
                product!($instruction, 1, 5, 7, 1024),
                product!($instruction, 2, 4, 6, 2048),
                product!($instruction, 3, 5, 7, 3072),
                store!(0, 0),
                store!(1, 1024),
                store!(2, 2048),
                store!(3, 3072),
            )
        };
    }
    /// As [`product`] and [`store`], for the high and the low parts.
    macro_rules! products {
        ($c:literal, $d:literal, $b:literal, $at:literal) => {
            concat!(
                "tilezero tmm",
                $c,
                "\n",
                "tileloadd tmm4, [{a} + {stride} + ",
                $at,
                "]\n",
                "tileloadd tmm",
                $b,
                ", [{b} + {stride} + ",
                $at,
                "]\n",
                "tdpbssd tmm",
                $c,
                ", tmm4, tmm",
                $b,
                "\n",
                "tilezero tmm",
                $d,
                "\n",
                "tileloadd tmm5, [{a} + {stride} + ",
                $at,
                " + 32]\n",
                "tdpbssd tmm",
                $d,
                ", tmm5, tmm",
                $b,
            )
        };
    }
    if !is_nibble::<F>() {
        // SAFETY: whole tiles are readable and writable, and tile registers configured, by the caller.
        unsafe {
            if left == 1 {
                tiles!(products!(0, 1, 6, 0), store!(0, 0), store!(1, 1024));
                return 1;
            }
            tiles!(
                products!(0, 1, 6, 0),
                products!(2, 3, 7, 1024),
                store!(0, 0),
                store!(1, 1024),
                store!(2, 2048),
                store!(3, 3072),
            );
        }
        return 2;
    }
    // Five or six are two runs of about the same length.
    let run = match left {
        5 | 6 => 3,
        _ => left.min(RUN_BLOCKS),
    };
    // SAFETY: as above.
    unsafe {
        match (F::OFFSET == 0, run) {
            (true, 1) => run!("tdpbsud", 1),
            (true, 2) => run!("tdpbsud", 2),
            (true, 3) => run!("tdpbsud", 3),
            (true, _) => run!("tdpbsud", 4),
            (false, 1) => run!("tdpbssd", 1),
            (false, 2) => run!("tdpbssd", 2),
            (false, 3) => run!("tdpbssd", 3),
            (false, _) => run!("tdpbssd", 4),
        }
    }
    run
}
