//! The tile instructions: permission, configuration, and the products of a few blocks.
//!
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1 chapter 18 (tiles), volume 2
//! (`TDPBSSD`, `TDPBSUD`).

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use super::super::blocks::BlockFormat;

/// Bytes of a full tile: 16 rows of 64.
pub(super) const TILE_BYTES: usize = 1024;
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
pub(super) const fn is_nibble<F: BlockFormat>() -> bool {
    F::BITS == 4
}

/// Shapes of the tile registers: `LDTILECFG`'s 64 bytes.
#[repr(C, align(64))]
pub(super) struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Registers 0 to 3 take sums, 4 and 5 activations, 6 and 7 quants.
    pub(super) fn new<F: BlockFormat>() -> Self {
        let (depth_bytes, depth_rows) = if is_nibble::<F>() { (64, 16) } else { (32, 8) };
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let d = depth_bytes;
        config.row_bytes[..8].copy_from_slice(&[64, 64, 64, 64, d, d, 64, 64]);
        config.rows[..8].copy_from_slice(&[16, 16, 16, 16, 16, 16, depth_rows, depth_rows]);
        config
    }
}

/// Where a product's operands are: 16 rows' activations and 16 features' quants of a block.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) activations: *const u8,
    pub(super) quants: *mut u8,
}

/// Loads the operands of the first product.
///
/// # Safety
/// As [`step`].
#[inline(always)]
pub(super) unsafe fn load_first<F: BlockFormat>(operands: Operands) {
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm6, [{b} + {stride}]",
            a = in(reg) operands.activations, b = in(reg) operands.quants, stride = in(reg) 64_usize,
            options(nostack),
        );
        if !is_nibble::<F>() {
            asm!(
                "tileloadd tmm5, [{a} + {stride} + 32]",
                a = in(reg) operands.activations, stride = in(reg) 64_usize,
                options(nostack),
            );
        }
    }
}

/// A step of the pipeline: forms product `idx`, whose operands are loaded, loads the `next` one's, and stores product
/// `idx - 1` where its place is. A product takes many cycles from its operands to memory, and where two threads share
/// a core there are no spare registers to rename: so one product's registers are not the next one's.
///
/// A product is one tile, or, where there are two, one of the high and one of the low parts. `now` is the place of
/// product `idx`, whose high parts are stored already.
///
/// # Safety
/// Whole tiles are readable and writable, and the tile registers are configured for `F`.
#[inline(always)]
pub(super) unsafe fn step<F: BlockFormat>(idx: usize, next: Operands, previous: *mut u8, now: *mut u8) {
    // Numbers of tile registers: the product's sums and operands, the next one's operands, the previous one's sums.
    macro_rules! whole {
        ($dot:literal, $c:literal, $a:literal, $b:literal, $next_a:literal, $next_b:literal, $previous:literal) => {
            asm!(
                concat!("tilezero tmm", $c),
                concat!($dot, " tmm", $c, ", tmm", $a, ", tmm", $b),
                concat!("tileloadd tmm", $next_a, ", [{a} + {stride}]"),
                concat!("tileloadd tmm", $next_b, ", [{b} + {stride}]"),
                concat!("tilestored [{previous} + {stride}], tmm", $previous),
                a = in(reg) next.activations, b = in(reg) next.quants, previous = in(reg) previous,
                stride = in(reg) 64_usize,
                options(nostack),
            )
        };
    }
    // The same for two parts, whose activations take turns in one pair of registers.
    macro_rules! parts {
        ($high:literal, $low:literal, $b:literal, $next_b:literal, $previous_low:literal) => {
            asm!(
                concat!("tilezero tmm", $high),
                concat!("tdpbssd tmm", $high, ", tmm4, tmm", $b),
                concat!("tilestored [{previous} + {stride} + 1024], tmm", $previous_low),
                concat!("tilezero tmm", $low),
                concat!("tdpbssd tmm", $low, ", tmm5, tmm", $b),
                "tileloadd tmm4, [{a} + {stride}]",
                "tileloadd tmm5, [{a} + {stride} + 32]",
                concat!("tileloadd tmm", $next_b, ", [{b} + {stride}]"),
                concat!("tilestored [{now} + {stride}], tmm", $high),
                a = in(reg) next.activations, b = in(reg) next.quants, previous = in(reg) previous,
                now = in(reg) now, stride = in(reg) 64_usize,
                options(nostack),
            )
        };
    }
    // SAFETY: the caller's.
    unsafe {
        match (is_nibble::<F>(), F::OFFSET == 0, idx.is_multiple_of(2)) {
            (true, true, true) => whole!("tdpbsud", 0, 4, 6, 5, 7, 1),
            (true, true, false) => whole!("tdpbsud", 1, 5, 7, 4, 6, 0),
            (true, false, true) => whole!("tdpbssd", 0, 4, 6, 5, 7, 1),
            (true, false, false) => whole!("tdpbssd", 1, 5, 7, 4, 6, 0),
            (false, _, true) => parts!(0, 1, 6, 7, 3),
            (false, _, false) => parts!(2, 3, 7, 6, 1),
        }
    }
}
