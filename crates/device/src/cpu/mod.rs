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
mod gemm;
mod isa;
mod limits;
mod linear;
mod lora;
mod memory;
mod paged;
mod philox;
mod pool;
mod rowwise;
mod sample;
mod simd;
mod weight;

use std::sync::{Arc, Mutex};

use self::isa::Kernel;
use self::linear::{LinearScratch, linear, rows_per_task};
use self::memory::{HostChunks, HostMemory};
use self::paged::paged_attention;
use self::rowwise::{RmsNorm, Rope, SiluMul};
use self::sample::{SampleScratch, logprobs_row, sample_row};
use self::simd::LANES;
use self::weight::CpuWeight;
use crate::Shape;
use crate::error::{DeviceError, Result, invalid};
use crate::lora::LoraBatch;
use crate::ops::{Device, LinearTarget, Ops, PagedAttention, RopeTables};
use crate::sample::{LogprobRow, SampleRow, Sampled, TokenLogprobs};
use crate::step::GraphKey;
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
}

/// What kernels need of the device.
#[derive(Debug)]
pub(crate) struct Cpu {
    isa: Isa,
    pool: ThreadPool,
    /// Where weights go.
    weights: HostChunks,
}

impl Cpu {
    /// Runs `f(row)` for all rows, in parallel when there is enough work.
    fn for_rows(&self, rows: usize, row_len: usize, f: impl Fn(usize) + Sync) {
        let piece = rows_per_task(rows, row_len, self.pool.num_threads());
        self.pool.run(rows.div_ceil(piece), &|i| (i * piece..rows.min((i + 1) * piece)).for_each(&f));
    }

    /// Runs `f(row, first, end)` for all rows and ranges of columns that make up a row: in parallel when there is enough
    /// work, and then each thread has the columns that a linear op gave it, which are in its cache.
    fn for_columns(&self, rows: usize, cols: usize, f: impl Fn(usize, usize, usize) + Sync) {
        let num_threads = self.pool.num_threads();
        let piece = rows_per_task(rows, cols, num_threads);
        let shares = if piece < rows { num_threads } else { 1 };
        let num_pieces = rows.div_ceil(piece * shares);
        self.pool.run(shares * num_pieces, &|i| {
            let (share, first) = (i / num_pieces, i % num_pieces * piece * shares);
            let panels = cols.div_ceil(LANES);
            let at = |share: usize| cols.min(share * panels / shares * LANES);
            for row in first..rows.min(first + piece * shares) {
                f(row, at(share), at(share + 1));
            }
        });
    }
}

/// The CPU as a device.
#[derive(Debug, Clone)]
pub struct CpuDevice {
    cpu: Arc<Cpu>,
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
        Ok(CpuDevice { cpu: Arc::new(Cpu { isa, pool, weights: HostChunks::default() }) })
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

    fn open(&self) -> Result<Box<dyn Ops>> {
        let sampling = (0..self.num_threads()).map(|_| SampleScratch::default()).collect();
        Ok(Box::new(CpuOps { cpu: self.cpu.clone(), linear: LinearScratch::default(), sampling }))
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

/// The CPU's ops for one context.
struct CpuOps {
    cpu: Arc<Cpu>,
    linear: LinearScratch,
    sampling: Vec<SampleScratch>,
}

impl Ops for CpuOps {
    unsafe fn replay(&mut self, _key: &GraphKey) -> Result<()> {
        invalid("replay", "the CPU device records no steps")
    }

    unsafe fn embed(&mut self, ids: &Tensor, table: &Weight, out: &Tensor) -> Result<()> {
        let weight = cpu_weight(table)?;
        // SAFETY: the trait's contract.
        let ids = unsafe { slice::<u32>(ids, "embed", "ids")? };
        let out = ptr::<f32>(out, "embed", "out")?;
        let cols = weight.cols;
        self.cpu.for_rows(ids.len(), cols, |i| {
            let Some(&id) = ids.get(i) else { return };
            // SAFETY: row `i` of the output is this task's alone.
            let row = unsafe { std::slice::from_raw_parts_mut(out.get().add(i * cols), cols) };
            if (id as usize) < weight.rows {
                weight.row(id as usize, row);
            }
        });
        Ok(())
    }

    unsafe fn rms_norm(&mut self, x: &Tensor, weight: &Tensor, eps: f32, out: &Tensor) -> Result<()> {
        let (rows, len) = (x.shape().rows(), x.shape().row_len());
        let [x, weight, out] =
            [(x, "x"), (weight, "weight"), (out, "out")].map(|(t, n)| ptr::<f32>(t, "rms_norm", n));
        let (x, weight, out) = (x?, weight?, out?);
        self.cpu.for_rows(rows, len, |row| {
            // SAFETY: the trait's contract; each task writes its own rows.
            unsafe {
                let (x, out) = (x.get().add(row * len), out.get().add(row * len));
                self.cpu.isa.run(RmsNorm { x, weight: weight.get(), out, len, eps });
            }
        });
        Ok(())
    }

    unsafe fn linear(
        &mut self,
        x: &Tensor,
        targets: &[LinearTarget<'_>],
        lora: Option<&LoraBatch<'_>>,
    ) -> Result<()> {
        // SAFETY: the trait's contract.
        unsafe { linear(&self.cpu, &mut self.linear, x, targets, lora) }
    }

    unsafe fn rope(
        &mut self,
        pairs: &[(&Tensor, &Tensor)],
        positions: &Tensor,
        rope_idx: &Tensor,
        tables: &RopeTables,
    ) -> Result<()> {
        let op = "rope";
        // SAFETY: the trait's contract.
        let (positions, rope_idx) = unsafe {
            (slice::<u32>(positions, op, "positions")?, slice::<u32>(rope_idx, op, "table index")?)
        };
        let mut table_slices = Vec::with_capacity(tables.tables.len());
        for table in &tables.tables {
            // SAFETY: tables are F32 and written only before they are used.
            table_slices.push((unsafe { slice::<f32>(table, op, "table")? }, table.shape().row_len()));
        }
        let mut projections = Vec::with_capacity(pairs.len());
        for &(x, out) in pairs {
            let &[_, heads, head_dim] = x.shape().dims() else {
                return invalid(op, "x must be [rows, heads, head_dim]");
            };
            projections.push((ptr::<f32>(x, op, "x")?, ptr::<f32>(out, op, "out")?, heads, head_dim));
        }
        let row_len = projections.iter().map(|&(.., heads, head_dim)| heads * head_dim).sum();
        self.cpu.for_rows(positions.len(), row_len, |row| {
            let (Some(&position), Some(&table)) = (positions.get(row), rope_idx.get(row)) else { return };
            let Some((table, width)) = table_slices.get(table as usize) else { return };
            let Some(angles) = table.get(position as usize * width..(position as usize + 1) * width) else {
                return;
            };
            for (x, out, heads, head_dim) in &projections {
                let (heads, head_dim) = (*heads, *head_dim);
                // SAFETY: the trait's contract; each task writes its own rows.
                unsafe {
                    let at = row * heads * head_dim;
                    let (x, out) = (x.get().add(at), out.get().add(at));
                    self.cpu.isa.run(Rope { x, out, heads, head_dim, angles });
                }
            }
        });
        Ok(())
    }

    unsafe fn paged_attention(&mut self, args: PagedAttention<'_>) -> Result<()> {
        // SAFETY: the trait's contract.
        unsafe { paged_attention(&self.cpu, args) }
    }

    unsafe fn silu_mul(&mut self, gate: &Tensor, up: &Tensor, out: &Tensor) -> Result<()> {
        let (rows, len) = (gate.shape().rows(), gate.shape().row_len());
        let [gate, up, out] =
            [(gate, "gate"), (up, "up"), (out, "out")].map(|(t, n)| ptr::<f32>(t, "silu_mul", n));
        let (gate, up, out) = (gate?, up?, out?);
        self.cpu.for_columns(rows, len, |row, first, end| {
            // SAFETY: the trait's contract; each task writes its own part of a row.
            unsafe {
                let at = row * len + first;
                let (gate, up, out) = (gate.get().add(at), up.get().add(at), out.get().add(at));
                self.cpu.isa.run(SiluMul { gate, up, out, len: end - first });
            }
        });
        Ok(())
    }

    unsafe fn gather_rows(&mut self, x: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
        let len = x.shape().row_len();
        // SAFETY: the trait's contract.
        let (from, indices) =
            unsafe { (slice::<f32>(x, "gather_rows", "x")?, slice::<u32>(rows, "gather_rows", "rows")?) };
        let out = ptr::<f32>(out, "gather_rows", "out")?;
        for (i, &row) in indices.iter().enumerate() {
            let row = row as usize * len;
            if let Some(row) = from.get(row..row + len) {
                // SAFETY: the trait's contract.
                unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), out.get().add(i * len), len) };
            }
        }
        Ok(())
    }

    unsafe fn sample(&mut self, logits: &Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>> {
        // SAFETY: the trait's contract.
        let values = unsafe { slice::<f32>(logits, "sample", "logits")? };
        Ok(self.for_logits(values, logits.shape(), rows, sample_row))
    }

    unsafe fn logprobs(&mut self, logits: &Tensor, rows: &[LogprobRow]) -> Result<Vec<TokenLogprobs>> {
        // SAFETY: the trait's contract.
        let values = unsafe { slice::<f32>(logits, "logprobs", "logits")? };
        Ok(self.for_logits(values, logits.shape(), rows, logprobs_row))
    }

    unsafe fn copy(&mut self, src: &Tensor, dst: &Tensor) -> Result<()> {
        let (from, to) = (ptr::<u8>(src, "copy", "src")?, ptr::<u8>(dst, "copy", "dst")?);
        // SAFETY: the trait's contract: equal sizes, no overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.0, to.0, src.size_bytes().min(dst.size_bytes())) };
        Ok(())
    }

    unsafe fn write(&mut self, dst: &Tensor, bytes: &[u8]) -> Result<()> {
        let to = ptr::<u8>(dst, "write", "dst")?;
        // SAFETY: the trait's contract; a host slice cannot overlap device memory that no slice refers to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.0, bytes.len().min(dst.size_bytes())) };
        Ok(())
    }

    unsafe fn read(&mut self, src: &Tensor, bytes: &mut [u8]) -> Result<()> {
        let from = ptr::<u8>(src, "read", "src")?;
        // SAFETY: as `write`.
        unsafe {
            std::ptr::copy_nonoverlapping(from.0, bytes.as_mut_ptr(), bytes.len().min(src.size_bytes()))
        };
        Ok(())
    }
}

impl CpuOps {
    /// Maps rows of logits in parallel, each thread with a scratch space of its own.
    fn for_logits<A: Sync, B: Send>(
        &mut self,
        values: &[f32],
        shape: Shape,
        rows: &[A],
        f: impl Fn(&[f32], &A, &mut SampleScratch) -> B + Sync,
    ) -> Vec<B> {
        let vocab = shape.row_len().max(1);
        let num_parts = self.sampling.len().min(rows.len()).max(1);
        let per_part = rows.len().div_ceil(num_parts).max(1);
        let parts: Vec<_> = values
            .chunks(vocab * per_part)
            .zip(rows.chunks(per_part))
            .zip(&mut self.sampling)
            .map(|((values, rows), scratch)| {
                Mutex::new(LogitRows { values, vocab, rows, scratch, f: &f, out: Vec::new() })
            })
            .collect();
        self.cpu.pool.run(parts.len(), &|i| {
            let Some(mut part) = parts.get(i).and_then(|p| p.lock().ok()) else { return };
            // SAFETY: plain Rust, compiled for the instruction set.
            unsafe { self.cpu.isa.run(&mut *part) };
        });
        parts.into_iter().filter_map(|p| p.into_inner().ok()).flat_map(|part| part.out).collect()
    }
}

/// Some rows of logits and what each is mapped by.
struct LogitRows<'a, A, B, F> {
    values: &'a [f32],
    vocab: usize,
    rows: &'a [A],
    scratch: &'a mut SampleScratch,
    f: &'a F,
    out: Vec<B>,
}

impl<A, B, F: Fn(&[f32], &A, &mut SampleScratch) -> B> Kernel for &mut LogitRows<'_, A, B, F> {
    #[inline(always)]
    unsafe fn run<S: simd::Simd>(self) {
        for (values, row) in self.values.chunks(self.vocab).zip(self.rows) {
            self.out.push((self.f)(values, row, self.scratch));
        }
    }
}
