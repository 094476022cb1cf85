//! The CPU device: runs everywhere, and is the reference for the others.
//!
//! Kernels are written once over sixteen-lane vectors (`simd`) and compiled for each instruction set; the best one
//! that the machine has is chosen at start ([`Isa`]). Work is cut by rows and output features only, never along a
//! sum, so results depend neither on the number of threads nor on what else is in a batch.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod blocks;
mod cache;
mod experts;
mod f32_gemm;
mod gemm;
mod grad;
mod isa;
mod limits;
mod linear;
mod lines;
mod lora;
mod memory;
mod ops;
mod paged;
mod philox;
mod pool;
mod program;
mod routing;
mod rows;
mod rowwise;
mod sample;
mod simd;
mod team;
mod weight;

use std::sync::Arc;

use self::memory::{HostChunks, HostMemory};
use self::ops::CpuOps;
use self::weight::CpuWeight;
use crate::error::{DeviceError, Result, invalid};
use crate::ops::{Device, Ops};
use crate::tensor::{Memory, Tensor};
use crate::weight::{HostTensor, Weight};

pub use self::isa::{ISA_ENV, Isa};
pub use self::limits::{MachineLimits, ReadBandwidth};
pub use self::pool::ThreadPool;

/// How to set up the CPU device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuOptions {
    /// Threads that compute, the calling one included; `None` takes all that the machine offers.
    pub threads: Option<usize>,
    /// Instruction set; `None` takes the best one.
    pub isa: Option<Isa>,
    /// Run every step op by op, as other devices' recorded steps are compared with; else steps of one row a sequence are
    /// kept and run as one program.
    pub op_by_op: bool,
}

/// What kernels need of the device.
#[derive(Debug)]
pub(crate) struct Cpu {
    isa: Isa,
    pool: ThreadPool,
    /// Where weights go.
    weights: HostChunks,
}

/// The CPU as a device.
#[derive(Debug, Clone)]
pub struct CpuDevice {
    cpu: Arc<Cpu>,
    op_by_op: bool,
}

impl CpuDevice {
    /// Starts the threads.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let isa = options.isa.unwrap_or_else(Isa::best);
        if !Isa::available().contains(&isa) {
            return Err(DeviceError::Unsupported {
                device: "this CPU".into(),
                what: format!("the {isa} instruction set"),
            });
        }
        let threads = options
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let pool = ThreadPool::new(threads).map_err(|e| DeviceError::Invalid {
            op: "CpuDevice",
            reason: format!("cannot start {threads} threads: {e}"),
        })?;
        let cpu = Arc::new(Cpu { isa, pool, weights: HostChunks::default() });
        Ok(CpuDevice { cpu, op_by_op: options.op_by_op })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.cpu.isa
    }

    /// Threads that compute, the calling one included.
    pub fn num_threads(&self) -> usize {
        self.cpu.pool.num_threads()
    }

    /// The threads.
    pub fn pool(&self) -> &ThreadPool {
        &self.cpu.pool
    }
}

impl Device for CpuDevice {
    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.cpu.isa, self.num_threads())
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<Arc<dyn Memory>> {
        Ok(HostMemory::new(what, bytes)?)
    }

    fn load_weight(&self, host: &HostTensor<'_>) -> Result<Weight> {
        Ok(Weight::new(host, Arc::new(CpuWeight::pack(host, &self.cpu.weights, &self.cpu.pool)?)))
    }

    fn dequantise_rows(&self, weight: &Weight, first_row: usize, out: &mut [f32]) -> Result<()> {
        let weight = cpu_weight(weight)?;
        let rows = out.len() / weight.cols;
        if !out.len().is_multiple_of(weight.cols) || first_row.saturating_add(rows) > weight.rows {
            let of = (weight.rows, weight.cols);
            return invalid(
                "dequantise_rows",
                format!("{} values from row {first_row} of {of:?}", out.len()),
            );
        }
        for (i, row) in out.chunks_exact_mut(weight.cols).enumerate() {
            weight.row(first_row + i, row);
        }
        Ok(())
    }

    fn update_norms(&self, weight: &Weight, factors: [&[f32]; 2], scale: f32) -> Result<Vec<f32>> {
        let (weight, [a, b]) = (cpu_weight(weight)?, factors);
        let rank = b.len() / weight.rows.max(1);
        if b.len() != rank * weight.rows || a.len() != rank * weight.cols {
            let of = (weight.rows, weight.cols);
            return invalid("update_norms", format!("factors of {} and {} for {of:?}", a.len(), b.len()));
        }
        Ok(grad::update_norms(&self.cpu, weight, factors, scale))
    }

    fn with_threads(&self, num_threads: usize) -> Result<Arc<dyn Device>> {
        // Weights lie in the same order for every instruction set.
        let options =
            CpuOptions { threads: Some(num_threads), isa: Some(self.cpu.isa), op_by_op: self.op_by_op };
        Ok(Arc::new(CpuDevice::new(options)?))
    }

    fn open(&self) -> Result<Box<dyn Ops>> {
        Ok(Box::new(CpuOps::new(self.cpu.clone(), !self.op_by_op)))
    }
}

/// A pointer that tasks on other threads may use, to disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct SendPtr<T>(*mut T);
// SAFETY: tasks write disjoint parts of tensors that outlive the job.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// The pointer; a method, so that closures capture the wrapper.
    fn get(&self) -> *mut T {
        self.0
    }
}

/// Where a tensor's elements are, after the liveness check.
fn ptr<T>(t: &Tensor, op: &'static str, operand: &'static str) -> Result<SendPtr<T>> {
    Ok(SendPtr(std::ptr::with_exposed_provenance_mut(t.addr(op, operand)?)))
}

/// A tensor's elements.
///
/// # Safety
/// The tensor has elements of type `T` and nobody writes them meanwhile.
unsafe fn slice<'a, T>(t: &'a Tensor, op: &'static str, operand: &'static str) -> Result<&'a [T]> {
    // SAFETY: the memory holds this many elements and is initialised (zeroed at first).
    Ok(unsafe { std::slice::from_raw_parts(ptr::<T>(t, op, operand)?.0, t.shape().numel()) })
}

fn cpu_weight(weight: &Weight) -> Result<&CpuWeight> {
    match weight.data().as_any().downcast_ref() {
        Some(weight) => Ok(weight),
        None => invalid("cpu", "a weight of another device"),
    }
}
