//! Matrix products of cuBLASLt, found when the program runs (cuBLAS reference, chapter "Using the cuBLASLt API").
//!
//! Descriptors and the algorithm are kept for each shape. The algorithm is the fastest of those that the library proposes, timed with
//! the weight out of the cache, as a step finds it; once for all numbers of rows between two powers of two. The library counts in
//! columns: a row-major `[rows, n]` is its `[n, rows]`, so that our `w` is its A and our `x` its B.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::sys::{self, cublasStatus_t};
use wardrobe_device::{DeviceError, Result};

use super::{Addend, DevicePtr, Driver, Event, Gemm, GemmOperands, GemmType, Stream};
use crate::libraries;

/// Proposals that are timed.
const MAX_CANDIDATES: usize = 8;
/// What is written between two timings, to push the weight out of the cache; no card's is larger than half of it.
const FLUSH_BYTES: usize = 256 << 20;
/// `CUBLAS_OP_T` of cublasOperation_t.
const OP_T: i32 = 1;
/// Timings of a proposal, of which the median counts.
const TIMINGS: usize = 5;

/// The library.
#[derive(Debug)]
pub(super) struct Blas {
    handle: Handle,
    plans: Mutex<HashMap<Gemm, Plan>>,
    algorithms: Mutex<HashMap<Gemm, sys::cublasLtMatmulAlgo_t>>,
}

#[derive(Debug, Clone, Copy)]
struct Handle(sys::cublasLtHandle_t);
// SAFETY: the library may be called from any thread with one handle (cuBLAS reference, "Thread safety").
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// Descriptors of one shape; they live as long as the process.
#[derive(Debug, Clone, Copy)]
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}
// SAFETY: only used under the lock of `plans`.
unsafe impl Send for Plan {}

fn check(call: &'static str, status: cublasStatus_t) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        other => Err(DeviceError::Driver { call, reason: format!("{other:?}") }),
    }
}

macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        check(stringify!($function), sys::$function($($argument),*))
    };
}

impl Blas {
    /// `None` if the library is not installed.
    pub(super) fn open() -> Result<Option<Self>> {
        libraries::preload();
        // SAFETY: looks for a library by its usual names.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes a handle.
        unsafe { call!(cublasLtCreate(&raw mut handle))? };
        Ok(Some(Blas { handle: Handle(handle), plans: Mutex::default(), algorithms: Mutex::default() }))
    }

    /// See [`Driver::gemm`]. `driver` is the one whose library this is.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn gemm(
        &self,
        driver: &dyn Driver,
        stream: Stream,
        gemm: &Gemm,
        operands: GemmOperands,
        workspace: (DevicePtr, usize),
    ) -> Result<bool> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let run = Run { handle: self.handle, stream, operands, workspace };
        let plan = match plans.get(gemm) {
            Some(plan) => *plan,
            None => {
                let Some(plan) = self.plan(driver, gemm, &run)? else { return Ok(false) };
                plans.insert(*gemm, plan);
                plan
            }
        };
        // SAFETY: the caller's.
        unsafe { run.enqueue(&plan, gemm)? };
        Ok(true)
    }

    /// Descriptors and algorithm for a shape; `None` if the library has none.
    fn plan(&self, driver: &dyn Driver, gemm: &Gemm, run: &Run) -> Result<Option<Plan>> {
        let mut plan = describe(gemm)?;
        let class = Gemm { rows: gemm.rows.next_power_of_two(), ..*gemm };
        let mut algorithms = self.algorithms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = algorithms.get(&class)
            && self.is_possible(&plan, algorithm, run.workspace.1)
        {
            plan.algorithm = *algorithm;
            return Ok(Some(plan));
        }
        let proposals = self.proposals(&plan, run.workspace.1)?;
        let Some(first) = proposals.first() else { return Ok(None) };
        // A product that adds to its own result cannot be tried; nor is anything timed while a step is recorded.
        let best = match gemm.addend {
            Addend::Out => None,
            _ => fastest(driver, &plan, gemm, &proposals, run).ok(),
        };
        plan.algorithm = best.unwrap_or(*first);
        algorithms.insert(class, plan.algorithm);
        Ok(Some(plan))
    }

    fn is_possible(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        workspace_bytes: usize,
    ) -> bool {
        let mut result = std::mem::MaybeUninit::uninit();
        // SAFETY: descriptors that are alive; the result is read only if the call succeeded.
        unsafe {
            let checked = call!(cublasLtMatmulAlgoCheck(
                self.handle.0,
                plan.operation,
                plan.w,
                plan.x,
                plan.out,
                plan.out,
                algorithm,
                result.as_mut_ptr(),
            ));
            checked.is_ok() && result.assume_init().workspaceSize <= workspace_bytes
        }
    }

    fn proposals(&self, plan: &Plan, workspace_bytes: usize) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let mut preference = std::ptr::null_mut();
        let mut results =
            [std::mem::MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); MAX_CANDIDATES];
        let mut count = 0;
        // SAFETY: descriptors that are alive, a preference that is given back, and room for as many results as are asked for.
        let status = unsafe {
            call!(cublasLtMatmulPreferenceCreate(&raw mut preference))?;
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            call!(cublasLtMatmulPreferenceSetAttribute(
                preference,
                attribute,
                (&raw const workspace_bytes).cast(),
                size_of::<usize>(),
            ))?;
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                plan.operation,
                plan.w,
                plan.x,
                plan.out,
                plan.out,
                preference,
                MAX_CANDIDATES as i32,
                results.as_mut_ptr().cast(),
                &raw mut count,
            );
            call!(cublasLtMatmulPreferenceDestroy(preference))?;
            status
        };
        if status == cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        // SAFETY: so many were written.
        let results = results.iter().take(count.max(0) as usize).map(|r| unsafe { r.assume_init() });
        Ok(results.filter(|r| r.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS).map(|r| r.algo).collect())
    }
}

/// Operands and stream of one call.
struct Run {
    handle: Handle,
    stream: Stream,
    operands: GemmOperands,
    workspace: (DevicePtr, usize),
}

impl Run {
    /// # Safety
    /// Operands as the shape says.
    unsafe fn enqueue(&self, plan: &Plan, gemm: &Gemm) -> Result<()> {
        let GemmOperands { x, w, bias, residual, out } = self.operands;
        let (alpha, beta) = (1.0f32, if gemm.addend == Addend::None { 0.0f32 } else { 1.0 });
        let added = if gemm.addend == Addend::Residual { residual } else { out };
        // SAFETY: the caller's; descriptors are alive.
        unsafe {
            if gemm.with_bias {
                let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
                set(plan.operation, attribute, &bias.0)?;
            }
            call!(cublasLtMatmul(
                self.handle.0,
                plan.operation,
                (&raw const alpha).cast(),
                w.0 as *const c_void,
                plan.w,
                x.0 as *const c_void,
                plan.x,
                (&raw const beta).cast(),
                added.0 as *const c_void,
                plan.out,
                out.0 as *mut c_void,
                plan.out,
                &raw const plan.algorithm,
                self.workspace.0.0 as *mut c_void,
                self.workspace.1,
                self.stream.0 as sys::cudaStream_t,
            ))
        }
    }
}

/// # Safety
/// The attribute is of this type.
unsafe fn set<T>(
    operation: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the caller's.
    unsafe { call!(cublasLtMatmulDescSetAttribute(operation, attribute, value, size_of::<T>())) }
}

fn describe(gemm: &Gemm) -> Result<Plan> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let element = match gemm.element {
        GemmType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        GemmType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        GemmType::F32 => sys::cudaDataType_t::CUDA_R_32F,
    };
    let float = sys::cudaDataType_t::CUDA_R_32F;
    let layout = |element, rows: usize, cols: usize, stride: usize| -> Result<sys::cublasLtMatrixLayout_t> {
        let mut layout = std::ptr::null_mut();
        // SAFETY: writes a handle.
        unsafe {
            call!(cublasLtMatrixLayoutCreate(
                &raw mut layout,
                element,
                rows as u64,
                cols as u64,
                stride as i64
            ))?
        };
        Ok(layout)
    };
    let mut operation = std::ptr::null_mut();
    // SAFETY: writes a handle; the attributes have these types.
    unsafe {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        call!(cublasLtMatmulDescCreate(&raw mut operation, compute, float))?;
        if gemm.transposed {
            set(operation, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &OP_T)?;
        }
        if gemm.with_bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            set(operation, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
    }
    let w = if gemm.transposed { (gemm.k, gemm.n) } else { (gemm.n, gemm.k) };
    Ok(Plan {
        operation,
        w: layout(element, w.0, w.1, gemm.w_stride)?,
        x: layout(element, gemm.k, gemm.rows, gemm.x_stride)?,
        out: layout(float, gemm.n, gemm.rows, gemm.out_stride)?,
        // SAFETY: plain numbers; replaced before use.
        algorithm: unsafe { std::mem::zeroed() },
    })
}

/// The proposal that takes the least time.
fn fastest(
    driver: &dyn Driver,
    plan: &Plan,
    gemm: &Gemm,
    proposals: &[sys::cublasLtMatmulAlgo_t],
    run: &Run,
) -> Result<sys::cublasLtMatmulAlgo_t> {
    let flush = driver.alloc("timing of matrix products", FLUSH_BYTES)?;
    let events = [driver.create_event()?, driver.create_event()?];
    let mut best: Option<(f32, sys::cublasLtMatmulAlgo_t)> = None;
    for algorithm in proposals {
        let tried = Plan { algorithm: *algorithm, ..*plan };
        // SAFETY: the operands are the caller's, and it is allowed to write the result more than once.
        let Ok(ms) = (unsafe { time(driver, &tried, gemm, run, flush, events) }) else { continue };
        if best.as_ref().is_none_or(|(least, _)| ms < *least) {
            best = Some((ms, *algorithm));
        }
    }
    for event in events {
        driver.destroy_event(event);
    }
    // SAFETY: ours, and used no more.
    unsafe { driver.free(flush) };
    let none = DeviceError::Driver { call: "cublasLtMatmul", reason: "no algorithm works".to_owned() };
    best.map(|(_, algorithm)| algorithm).ok_or(none)
}

/// Milliseconds of a product, the weight not being in the cache.
///
/// # Safety
/// As [`Run::enqueue`].
unsafe fn time(
    driver: &dyn Driver,
    plan: &Plan,
    gemm: &Gemm,
    run: &Run,
    flush: DevicePtr,
    [begin, end]: [Event; 2],
) -> Result<f32> {
    let mut times = Vec::with_capacity(TIMINGS);
    for _ in 0..TIMINGS {
        // SAFETY: the caller's; `flush` has these bytes.
        unsafe {
            driver.clear(run.stream, flush, FLUSH_BYTES)?;
            driver.record_event(run.stream, begin)?;
            run.enqueue(plan, gemm)?;
        }
        driver.record_event(run.stream, end)?;
        driver.synchronize(run.stream)?;
        times.push(driver.elapsed_ms(begin, end)?);
    }
    times.sort_by(f32::total_cmp);
    Ok(times.get(TIMINGS / 2).copied().unwrap_or(f32::MAX))
}
