//! What a card can do at most, measured: the speed of its memory and of its matrix products, against which steps are held.

use wardrobe_device::Result;

use crate::device::CudaDevice;
use crate::driver::{Addend, DevicePtr, Driver, Gemm, GemmOperands, GemmType, Stream};
use crate::memory::DeviceMemory;

/// A card's speed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CardLimits {
    /// Bytes read and written per second by a large copy within its memory.
    pub copy_bytes_per_second: f64,
    /// Operations per second of a large bf16 product with cuBLASLt; `None` without it.
    pub gemm_ops_per_second: Option<f64>,
}

/// Bytes of the copy: far more than any cache.
const COPY_BYTES: usize = 1 << 30;
/// Rows and columns of the product's matrices.
const GEMM_SIZE: usize = 8192;
const WORKSPACE_BYTES: usize = 32 << 20;
/// Repetitions, of which the median counts.
const TIMES: usize = 15;

impl CudaDevice {
    /// Measures it; takes about 3 GiB of memory meanwhile.
    ///
    /// # Errors
    /// The driver's.
    pub fn limits(&self) -> Result<CardLimits> {
        let driver = self.driver();
        self.with_stream(|stream| {
            let from = DeviceMemory::new(driver, "a measurement", COPY_BYTES)?;
            let to = DeviceMemory::new(driver, "a measurement", COPY_BYTES)?;
            // Small numbers: products of zeros would be faster than real ones, and of NaN may be.
            fill(driver.as_ref(), stream, from.ptr())?;
            let copy_ms = median_ms(driver.as_ref(), stream, || {
                // SAFETY: two allocations of these bytes.
                unsafe { driver.copy(stream, from.ptr(), to.ptr(), COPY_BYTES) }.map(|()| true)
            })?;
            let n = GEMM_SIZE;
            let out = DeviceMemory::new(driver, "a measurement", 4 * n * n)?;
            let workspace = DeviceMemory::new(driver, "a measurement", WORKSPACE_BYTES)?;
            let gemm = Gemm {
                rows: n,
                n,
                k: n,
                element: GemmType::BF16,
                transposed: true,
                x_stride: n,
                w_stride: n,
                out_stride: n,
                addend: Addend::None,
                with_bias: false,
            };
            let operands = GemmOperands {
                x: from.ptr(),
                w: from.ptr().offset(2 * n * n),
                bias: DevicePtr::NULL,
                residual: DevicePtr::NULL,
                out: out.ptr(),
            };
            let gemm_ms = median_ms(driver.as_ref(), stream, || {
                // SAFETY: matrices of these sizes.
                unsafe { driver.gemm(stream, &gemm, operands, (workspace.ptr(), WORKSPACE_BYTES)) }
            })?;
            let per_second = |amount: f64, ms: f64| amount / (ms / 1e3);
            Ok(CardLimits {
                copy_bytes_per_second: copy_ms.map_or(0.0, |ms| per_second(2.0 * COPY_BYTES as f64, ms)),
                gemm_ops_per_second: gemm_ms.map(|ms| per_second(2.0 * (n as f64).powi(3), ms)),
            })
        })
    }
}

/// Fills the memory of a copy with bf16 numbers between -1 and 1.
fn fill(driver: &dyn Driver, stream: Stream, to: DevicePtr) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    let mut state = 1u32;
    let mut block = Vec::with_capacity(2 * BLOCK);
    for _ in 0..BLOCK {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        block.extend_from_slice(&half::bf16::from_f32(value).to_le_bytes());
    }
    for at in (0..COPY_BYTES).step_by(block.len()) {
        // SAFETY: the memory is a multiple of the block.
        unsafe { driver.write(stream, to.offset(at), &block)? };
    }
    Ok(())
}

/// Milliseconds on the card that `queue` takes; `None` if it says that it cannot.
fn median_ms(
    driver: &dyn Driver,
    stream: Stream,
    mut queue: impl FnMut() -> Result<bool>,
) -> Result<Option<f64>> {
    let [begin, end] = [driver.create_event()?, driver.create_event()?];
    let mut times = Vec::with_capacity(TIMES);
    for turn in 0..=TIMES {
        driver.record_event(stream, begin)?;
        if !queue()? {
            // Nothing was timed.
            break;
        }
        driver.record_event(stream, end)?;
        driver.synchronize(stream)?;
        // The first one warms up.
        if turn > 0 {
            times.push(f64::from(driver.elapsed_ms(begin, end)?));
        }
    }
    driver.destroy_event(begin);
    driver.destroy_event(end);
    times.sort_by(f64::total_cmp);
    Ok(times.get(TIMES / 2).copied())
}
