//! What the machine itself can do: how fast memory is read, and how fast int8 and f32 products are formed when nothing
//! else has to be done. Results of the kernels are judged against these.
//!
//! Measured with the same vectors, instruction set and threads as the kernels. A limit is the best of several trials:
//! what disturbs a trial only ever makes it slower.

use std::hint::black_box;
use std::time::Instant;

use super::isa::Kernel;
use super::simd::{LANES, Simd};
use super::{CpuDevice, SendPtr};
use crate::error::{Result, invalid};

/// Trials of each measurement, of which the best counts.
const TRIALS: usize = 5;
/// Floats that one task reads: small enough for the threads to share the work evenly.
const TASK_FLOATS: usize = 256 * 1024;
/// Rounds of products in one task: some milliseconds.
const ROUNDS: usize = 1_000_000;

/// How fast a buffer of one size is read, again and again, by all threads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadBandwidth {
    /// Size of the buffer.
    pub buffer_bytes: usize,
    /// Bytes a second.
    pub bytes_per_second: f64,
}

/// What a machine can do with all the threads of a [`CpuDevice`].
#[derive(Debug, Clone, PartialEq)]
pub struct MachineLimits {
    /// One entry for each size that was asked for.
    pub read: Vec<ReadBandwidth>,
    /// int8 operations a second, a multiplication and an addition being two, with the operands in registers.
    pub int8_ops_per_second: f64,
    /// f32 operations a second, counted likewise.
    pub f32_ops_per_second: f64,
}

impl CpuDevice {
    /// Measures the machine, reading buffers of these sizes. Takes some tenths of a second, and the largest buffer.
    ///
    /// # Errors
    /// [`crate::DeviceError::Invalid`] if a buffer cannot be had or is smaller than what one task reads (1 MiB).
    pub fn measure_limits(&self, buffer_bytes: &[usize]) -> Result<MachineLimits> {
        let read = buffer_bytes.iter().map(|&bytes| self.read_bandwidth(bytes)).collect::<Result<_>>()?;
        // Few registers spill the longer chain, many need it to hide the instruction's latency.
        let int8 = self.rate::<Int8<6>>(Int8::<6>::OPS).max(self.rate::<Int8<12>>(Int8::<12>::OPS));
        let f32 = self.rate::<Fma<6>>(Fma::<6>::OPS).max(self.rate::<Fma<12>>(Fma::<12>::OPS));
        Ok(MachineLimits { read, int8_ops_per_second: int8, f32_ops_per_second: f32 })
    }

    fn read_bandwidth(&self, buffer_bytes: usize) -> Result<ReadBandwidth> {
        let num_tasks = buffer_bytes / (4 * TASK_FLOATS);
        if num_tasks == 0 {
            return invalid("measure_limits", format!("a buffer of {buffer_bytes} bytes is too small"));
        }
        let len = num_tasks * TASK_FLOATS;
        let mut buffer: Vec<f32> = Vec::new();
        if buffer.try_reserve_exact(len).is_err() {
            return invalid("measure_limits", format!("no memory for a buffer of {buffer_bytes} bytes"));
        }
        // Written, so that every page is one of its own.
        buffer.resize(len, 1.0);
        let from = SendPtr(buffer.as_mut_ptr());
        let best = self.best_seconds(num_tasks, &|task| {
            // SAFETY: the buffer has `num_tasks` such parts and nobody writes it; the device has the instruction set.
            unsafe { self.cpu.isa.run(Read { from: from.get().add(task * TASK_FLOATS), len: TASK_FLOATS }) };
        });
        Ok(ReadBandwidth { buffer_bytes: len * 4, bytes_per_second: (len * 4) as f64 / best })
    }

    fn rate<K: Kernel + Default>(&self, ops_per_round: usize) -> f64 {
        let num_tasks = self.num_threads() * 4;
        let best = self.best_seconds(num_tasks, &|_| {
            // SAFETY: the kernel has no operands; the device has the instruction set.
            unsafe { self.cpu.isa.run(K::default()) };
        });
        (ops_per_round * ROUNDS * num_tasks) as f64 / best
    }

    /// Shortest time of the job.
    fn best_seconds(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) -> f64 {
        let seconds = (0..TRIALS).map(|_| {
            let started = Instant::now();
            self.pool().run(num_tasks, task);
            started.elapsed().as_secs_f64()
        });
        seconds.fold(f64::INFINITY, f64::min).max(1e-9)
    }
}

/// Adds up `len` floats, a multiple of eight vectors.
struct Read {
    from: *const f32,
    len: usize,
}

impl Kernel for Read {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's.
        unsafe {
            let mut sums = [S::splat(0.0); 8];
            for at in (0..self.len).step_by(8 * LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(self.from.add(at + i * LANES)));
                }
            }
            black_box(sums.map(|sum| S::reduce_add(sum)));
        }
    }
}

/// `N` independent chains of int8 dot products.
#[derive(Default)]
struct Int8<const N: usize>;

impl<const N: usize> Int8<N> {
    const OPS: usize = N * LANES * 4 * 2;
}

impl<const N: usize> Kernel for Int8<N> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let bytes = black_box([3_u8; 4 * LANES]);
        let other = black_box([2_i8; 4]);
        // SAFETY: both have the sizes that are read.
        unsafe {
            let w = S::load_w(bytes.as_ptr());
            let mut sums = [S::splat_i32(0); N];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = S::dot_u8(*sum, w, other.as_ptr());
                }
            }
            black_box(sums.map(|sum| S::reduce_add_i32(sum)));
        }
    }
}

/// `N` independent chains of f32 multiply-adds.
#[derive(Default)]
struct Fma<const N: usize>;

impl<const N: usize> Fma<N> {
    const OPS: usize = N * LANES * 2;
}

impl<const N: usize> Kernel for Fma<N> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: register arithmetic; the caller guarantees the CPU features.
        unsafe {
            let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(0.001)));
            let mut sums = [S::splat(0.5); N];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, a, b);
                }
            }
            black_box(sums.map(|sum| S::reduce_add(sum)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::CpuOptions;
    use super::*;

    #[test]
    fn buffers_too_small_or_too_large_are_refused() {
        let device = CpuDevice::new(CpuOptions { threads: Some(1), ..Default::default() }).unwrap();
        assert!(device.read_bandwidth(1000).is_err());
        assert!(device.read_bandwidth(usize::MAX / 2).is_err());
    }

    #[test]
    fn what_is_read_is_what_was_asked_for() {
        let device = CpuDevice::new(CpuOptions { threads: Some(2), ..Default::default() }).unwrap();
        let read = device.read_bandwidth((5 << 20) + 17).unwrap();
        assert_eq!(read.buffer_bytes, 5 << 20);
        assert!(read.bytes_per_second.is_finite() && read.bytes_per_second > 0.0);
    }
}
