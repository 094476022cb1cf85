//! The real driver: `libcuda`, found when the program runs (CUDA driver API reference).
//!
//! Memory comes from the driver's pool in stream order: taking and giving back costs microseconds, and nobody waits for work
//! that has nothing to do with it. All of it goes through one stream of its own, which on giving back waits for what the others
//! have queued so far.

mod cards;
mod memory;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{self, CUresult};
use wardrobe_device::{DeviceError, Result};

use self::cards::{MIN_CAPABILITY, card};
use self::memory::Memory;
use super::blas::Blas;
use super::{
    Card, DevicePtr, Driver, Event, Function, Gemm, GemmOperands, Graph, Image, Launch, MemoryInfo, Stream,
};

/// One card.
pub struct CudaDriver {
    context: sys::CUcontext,
    card: Card,
    driver_version: u32,
    memory: Mutex<Memory>,
    modules: Mutex<HashMap<String, Module>>,
    blas: Option<Blas>,
}

struct Module(sys::CUmodule);

// SAFETY: handles of the driver may be used from any thread (CUDA driver API, section 2.1); ours are behind locks where calls
// change them.
unsafe impl Send for CudaDriver {}
// SAFETY: as above.
unsafe impl Sync for CudaDriver {}

impl fmt::Debug for CudaDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDriver({})", self.card.name)
    }
}

/// Error of a call of the driver; `Ok` if it succeeded.
fn check(call: &'static str, result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let reason = describe(result);
    // After these the context is of no use any more (CUDA driver API, CUresult).
    use CUresult as R;
    let is_lost = matches!(
        result,
        R::CUDA_ERROR_DEINITIALIZED
            | R::CUDA_ERROR_DEVICE_UNAVAILABLE
            | R::CUDA_ERROR_ECC_UNCORRECTABLE
            | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | R::CUDA_ERROR_ILLEGAL_ADDRESS
            | R::CUDA_ERROR_LAUNCH_TIMEOUT
            | R::CUDA_ERROR_ASSERT
            | R::CUDA_ERROR_HARDWARE_STACK_ERROR
            | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | R::CUDA_ERROR_MISALIGNED_ADDRESS
            | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | R::CUDA_ERROR_INVALID_PC
            | R::CUDA_ERROR_LAUNCH_FAILED
            | R::CUDA_ERROR_UNKNOWN
    );
    if is_lost {
        return Err(DeviceError::Lost { reason: format!("{call}: {reason}") });
    }
    Err(DeviceError::Driver { call, reason })
}

fn describe(result: CUresult) -> String {
    let mut words = std::ptr::null();
    // SAFETY: the driver gives a static string, or null for a result that it does not know.
    let words = unsafe {
        if sys::cuGetErrorString(result, &raw mut words) == CUresult::CUDA_SUCCESS && !words.is_null() {
            CStr::from_ptr(words).to_string_lossy().into_owned()
        } else {
            "an unknown error".to_owned()
        }
    };
    format!("{result:?}: {words}")
}

macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        check(stringify!($function), sys::$function($($argument),*))
    };
}
use call;

pub use self::cards::{Absent, cards, driver_version, num_cards};

impl CudaDriver {
    /// Opens a card.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] with [`Absent`]'s words, or what the driver says.
    pub fn open(ordinal: usize) -> Result<Self> {
        let absent = |absent: Absent| DeviceError::Unsupported {
            device: "this machine".to_owned(),
            what: format!("CUDA: {absent}"),
        };
        let have = num_cards().map_err(absent)?;
        if ordinal >= have {
            return Err(absent(Absent::NoSuchCard { wanted: ordinal, have }));
        }
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: the driver was initialised; each call writes what it is given room for.
        unsafe {
            call!(cuDeviceGet(&raw mut device, ordinal as c_int))?;
            call!(cuDevicePrimaryCtxRetain(&raw mut context, device))?;
            call!(cuCtxSetCurrent(context))?;
        }
        let card = card(device)?;
        if card.capability < MIN_CAPABILITY {
            let ((major, minor), (least_major, least_minor)) = (card.capability, MIN_CAPABILITY);
            let least = format!("{least_major}.{least_minor} is the least");
            return Err(DeviceError::Unsupported {
                device: card.name,
                what: format!("the kernels: compute capability {major}.{minor}, and {least}"),
            });
        }
        let mut stream = std::ptr::null_mut();
        // SAFETY: as above; the attribute is a 64-bit number (cuMemPoolSetAttribute).
        unsafe {
            call!(cuStreamCreate(&raw mut stream, NON_BLOCKING))?;
            let mut pool = std::ptr::null_mut();
            call!(cuDeviceGetDefaultMemPool(&raw mut pool, device))?;
            // Keep what was given back: the next adapter is as large as the last.
            let mut keep = u64::MAX;
            let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            call!(cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast()))?;
        }
        let memory = Memory { stream, users: Vec::new(), num_captures: 0, deferred: Vec::new() };
        let blas = Blas::open()?;
        let driver_version = driver_version().unwrap_or(0);
        Ok(CudaDriver {
            context,
            card,
            driver_version,
            memory: Mutex::new(memory),
            modules: Mutex::default(),
            blas,
        })
    }

    /// Whether the vendor's library of matrix products was found.
    pub fn has_blas(&self) -> bool {
        self.blas.is_some()
    }

    /// The driver's calls work on the calling thread's current context.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is ours and lives as long as the process.
        unsafe { call!(cuCtxSetCurrent(self.context)) }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From here on kernels may be launched before those ahead of them have ended.
const DEPENDENT_LAUNCH: (u32, u32) = (9, 0);

/// A stream that does not wait for the default one.
const NON_BLOCKING: u32 = 1;

impl Driver for CudaDriver {
    fn card(&self) -> &Card {
        &self.card
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        self.enter()?;
        let (mut free_bytes, mut total_bytes) = (0, 0);
        // SAFETY: writes two numbers.
        unsafe { call!(cuMemGetInfo_v2(&raw mut free_bytes, &raw mut total_bytes))? };
        Ok(MemoryInfo { free_bytes, total_bytes })
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<DevicePtr> {
        self.enter()?;
        let memory = self.memory();
        let mut ptr = 0;
        // SAFETY: writes an address, which is valid for every stream once this one has come so far.
        let taken = unsafe {
            call!(cuMemAllocAsync(&raw mut ptr, bytes.max(1), memory.stream))
                .and_then(|()| call!(cuStreamSynchronize(memory.stream)))
        };
        match taken {
            Ok(()) => Ok(DevicePtr(ptr)),
            Err(DeviceError::Driver { reason, .. }) if reason.contains("OUT_OF_MEMORY") => {
                Err(DeviceError::OutOfMemory { what, bytes })
            }
            Err(error) => Err(error),
        }
    }

    unsafe fn free(&self, ptr: DevicePtr) {
        let mut memory = self.memory();
        memory.deferred.push(ptr.0);
        // A lost card has no memory to give back.
        if let Err(error) = self.enter().and_then(|()| memory.flush()) {
            tracing::debug!(%error, "giving memory back");
        }
    }

    fn create_stream(&self) -> Result<Stream> {
        self.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: writes a handle.
        unsafe { call!(cuStreamCreate(&raw mut stream, NON_BLOCKING))? };
        self.memory().users.push(stream);
        Ok(Stream(stream as u64))
    }

    fn destroy_stream(&self, stream: Stream) {
        let handle = stream.0 as sys::CUstream;
        // What it uses may be given back next, and nobody would ask this stream whether it is done.
        if let Err(error) = self.synchronize(stream) {
            tracing::debug!(%error, "waiting for a stream that is given back");
        }
        self.memory().users.retain(|&user| user != handle);
        // SAFETY: ours, and used no more.
        let done = self.enter().and_then(|()| unsafe { call!(cuStreamDestroy_v2(handle)) });
        if let Err(error) = done {
            tracing::debug!(%error, "giving a stream back");
        }
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        // SAFETY: a stream of ours.
        unsafe { call!(cuStreamSynchronize(stream.0 as sys::CUstream)) }
    }

    unsafe fn write(&self, stream: Stream, to: DevicePtr, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's. Pageable memory has been read when the call returns (CUDA driver API, "API synchronization
        // behavior").
        unsafe {
            call!(cuMemcpyHtoDAsync_v2(to.0, bytes.as_ptr().cast(), bytes.len(), stream.0 as sys::CUstream))
        }
    }

    unsafe fn read(&self, stream: Stream, from: DevicePtr, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        let stream = stream.0 as sys::CUstream;
        // SAFETY: the caller's; `bytes` outlives the copy, which is waited for.
        unsafe {
            if !bytes.is_empty() {
                call!(cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from.0, bytes.len(), stream))?;
            }
            call!(cuStreamSynchronize(stream))
        }
    }

    unsafe fn copy(&self, stream: Stream, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { call!(cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, stream.0 as sys::CUstream)) }
    }

    unsafe fn clear(&self, stream: Stream, to: DevicePtr, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { call!(cuMemsetD8Async(to.0, 0, bytes, stream.0 as sys::CUstream)) }
    }

    fn load(&self, image: Image<'_>) -> Result<()> {
        self.enter()?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is a whole ELF or fatbin file, whose length its headers tell.
        unsafe { call!(cuModuleLoadData(&raw mut module, image.bytes.as_ptr().cast()))? };
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.insert(image.file.to_owned(), Module(module));
        Ok(())
    }

    fn function(&self, file: &str, name: &str, _: usize, max_shared_bytes: u32) -> Result<Function> {
        self.enter()?;
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |reason: String| DeviceError::Driver { call: "cuModuleGetFunction", reason };
        let Some(Module(module)) = modules.get(file) else {
            return Err(missing(format!("{file} is not loaded")));
        };
        let c_name = CString::new(name).map_err(|_| missing(format!("{name:?} is no name")))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: a loaded module and a C string.
        unsafe {
            call!(cuModuleGetFunction(&raw mut function, *module, c_name.as_ptr()))
                .map_err(|e| missing(format!("{file}, {name}: {e}")))?;
            // More than 48 KiB has to be asked for beforehand.
            if max_shared_bytes > 48 << 10 {
                let attribute =
                    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                call!(cuFuncSetAttribute(function, attribute, max_shared_bytes as c_int))?;
            }
        }
        Ok(Function(function as u64))
    }

    unsafe fn launch(&self, stream: Stream, function: Function, launch: Launch, args: &[u8]) -> Result<()> {
        self.enter()?;
        let [x, y, z] = launch.grid;
        // The one parameter is the struct itself, which the driver copies.
        let mut parameters = [args.as_ptr().cast_mut().cast::<c_void>()];
        // It may come to the card before the kernels ahead of it have ended: `wait_for_inputs` in kernel.cuh.
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: Default::default(),
            value: sys::CUlaunchAttributeValue_union { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: stream.0 as sys::CUstream,
            attrs: &raw mut early,
            numAttrs: u32::from(self.card.capability >= DEPENDENT_LAUNCH),
        };
        let function = function.0 as sys::CUfunction;
        // SAFETY: the caller's.
        unsafe {
            call!(cuLaunchKernelEx(
                &raw const config,
                function,
                parameters.as_mut_ptr(),
                std::ptr::null_mut()
            ))
        }
    }

    unsafe fn gemm(
        &self,
        stream: Stream,
        gemm: &Gemm,
        operands: GemmOperands,
        workspace: (DevicePtr, usize),
    ) -> Result<bool> {
        let Some(blas) = &self.blas else { return Ok(false) };
        self.enter()?;
        // SAFETY: the caller's.
        unsafe { blas.gemm(self, stream, gemm, operands, workspace) }
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.enter()?;
        let mut memory = self.memory();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream of ours.
        unsafe { call!(cuStreamBeginCapture_v2(stream.0 as sys::CUstream, mode))? };
        memory.num_captures += 1;
        Ok(())
    }

    fn end_capture(&self, stream: Stream, keep: bool) -> Result<Option<Graph>> {
        self.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: writes a handle, null if the recording was spoilt.
        let ended = unsafe { call!(cuStreamEndCapture(stream.0 as sys::CUstream, &raw mut graph)) };
        {
            let mut memory = self.memory();
            memory.num_captures = memory.num_captures.saturating_sub(1);
            memory.flush()?;
        }
        if graph.is_null() {
            return ended.map(|()| None);
        }
        let mut executable = std::ptr::null_mut();
        // SAFETY: a graph of ours, which the executable one does not need.
        unsafe {
            let instantiated = if keep && ended.is_ok() {
                call!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0))
            } else {
                ended
            };
            call!(cuGraphDestroy(graph))?;
            instantiated?;
        }
        Ok((!executable.is_null()).then_some(Graph(executable as u64)))
    }

    unsafe fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's.
        unsafe { call!(cuGraphLaunch(graph.0 as sys::CUgraphExec, stream.0 as sys::CUstream)) }
    }

    fn destroy_graph(&self, graph: Graph) {
        // SAFETY: ours, and launched no more; a run that is under way ends first (cuGraphExecDestroy).
        let done =
            self.enter().and_then(|()| unsafe { call!(cuGraphExecDestroy(graph.0 as sys::CUgraphExec)) });
        if let Err(error) = done {
            tracing::debug!(%error, "forgetting a graph");
        }
    }

    fn create_event(&self) -> Result<Event> {
        self.enter()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: writes a handle.
        unsafe { call!(cuEventCreate(&raw mut event, 0))? };
        Ok(Event(event as u64))
    }

    fn destroy_event(&self, event: Event) {
        // SAFETY: ours, and used no more.
        let done = self.enter().and_then(|()| unsafe { call!(cuEventDestroy_v2(event.0 as sys::CUevent)) });
        if let Err(error) = done {
            tracing::debug!(%error, "giving an event back");
        }
    }

    fn record_event(&self, stream: Stream, event: Event) -> Result<()> {
        self.enter()?;
        // SAFETY: handles of ours.
        unsafe { call!(cuEventRecord(event.0 as sys::CUevent, stream.0 as sys::CUstream)) }
    }

    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32> {
        self.enter()?;
        // The driver's older call of this name has been withdrawn.
        if self.driver_version < 12_080 {
            let reason =
                format!("the driver has CUDA {}, and times are told since 12080", self.driver_version);
            return Err(DeviceError::Driver { call: "cuEventElapsedTime_v2", reason });
        }
        let mut ms = 0.0;
        // SAFETY: handles of ours; writes a float.
        unsafe { call!(cuEventElapsedTime_v2(&raw mut ms, from.0 as sys::CUevent, to.0 as sys::CUevent))? };
        Ok(ms)
    }
}
