//! What the device needs of a CUDA driver, behind a trait: the real one ([`cuda`]), and one that runs the same kernels on the
//! CPU ([`emulated`]), with which the whole device is tested where there is no GPU.

mod blas;
pub mod cuda;
#[cfg(feature = "emulation")]
pub mod emulated;

use std::fmt;

use wardrobe_device::Result;

/// An address in the device's memory.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No memory: what a kernel takes for an operand that is not there.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        DevicePtr(self.0 + bytes as u64)
    }
}

/// A queue of work, done in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream(pub u64);

/// A kernel that can be launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

/// A recorded sequence of launches, ready to run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Graph(pub u64);

/// A point in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Event(pub u64);

/// How many threads a kernel gets, and how they are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// What a card is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// The driver's name for it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_multiprocessors: u32,
    /// Most dynamic shared memory of a block.
    pub max_shared_bytes: u32,
    /// All of its memory.
    pub memory_bytes: usize,
}

/// Memory of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Not in use by anyone.
    pub free_bytes: usize,
    /// In all.
    pub total_bytes: usize,
}

/// Element types of a product's 16-bit or 32-bit operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GemmType {
    /// bfloat16, sums in f32.
    BF16,
    /// binary16, sums in f32.
    F16,
    /// binary32 throughout.
    F32,
}

/// A product with a vendor's library: `out[rows, n] = x[rows, k] w[n, k]ᵀ + beta * residual + bias`, or with `w` `[k, n]` not
/// transposed. All matrices are row-major; strides are in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// Rows of `x` and `out`.
    pub rows: usize,
    /// Columns of `out`.
    pub n: usize,
    /// Length of the dot products.
    pub k: usize,
    /// Type of `x` and `w`; `out` is F32.
    pub element: GemmType,
    /// Whether `w` is `[n, k]`.
    pub transposed: bool,
    /// Distance of rows of `x`.
    pub x_stride: usize,
    /// Distance of rows of `w`.
    pub w_stride: usize,
    /// Distance of rows of `out` and of what is added to it.
    pub out_stride: usize,
    /// What is added.
    pub addend: Addend,
    /// Whether there is a bias.
    pub with_bias: bool,
}

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Addend {
    /// Nothing.
    None,
    /// Another matrix.
    Residual,
    /// What `out` holds.
    Out,
}

/// Operands of a [`Gemm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmOperands {
    /// `[rows, k]`.
    pub x: DevicePtr,
    /// `[n, k]` or `[k, n]`.
    pub w: DevicePtr,
    /// `[n]` F32, or null.
    pub bias: DevicePtr,
    /// `[rows, n]` F32, or null.
    pub residual: DevicePtr,
    /// `[rows, n]` F32.
    pub out: DevicePtr,
}

/// A compiled kernel file.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// The file's name.
    pub file: &'a str,
    /// CUBIN or fatbin; empty for a driver that brings its kernels.
    pub bytes: &'a [u8],
}

/// What a CUDA driver can do. Every call may come from any thread.
///
/// # Safety
/// The methods that are `unsafe` trust their pointers, and that whoever launches a kernel gives it the arguments that it
/// expects. Work on a stream goes on after the call: memory must live until the stream has been waited for.
#[allow(clippy::missing_safety_doc)]
pub trait Driver: Send + Sync + fmt::Debug {
    /// The card.
    fn card(&self) -> &Card;

    /// How much memory there is.
    fn memory_info(&self) -> Result<MemoryInfo>;

    /// Memory with any contents; `what` names its purpose in the error.
    fn alloc(&self, what: &'static str, bytes: usize) -> Result<DevicePtr>;

    /// Gives memory back, as soon as what was queued before on any stream is done with it.
    unsafe fn free(&self, ptr: DevicePtr);

    /// A new stream, which waits for no other.
    fn create_stream(&self) -> Result<Stream>;

    /// Gives a stream back, once what is queued on it is done.
    fn destroy_stream(&self, stream: Stream);

    /// Waits until all that was queued is done.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// Queues a copy from the host. `bytes` may be reused when this returns.
    unsafe fn write(&self, stream: Stream, to: DevicePtr, bytes: &[u8]) -> Result<()>;

    /// Copies to the host, after all that was queued before, and waits for it.
    unsafe fn read(&self, stream: Stream, from: DevicePtr, bytes: &mut [u8]) -> Result<()>;

    /// Queues a copy within the device.
    unsafe fn copy(&self, stream: Stream, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()>;

    /// Queues the filling of memory with zeros.
    unsafe fn clear(&self, stream: Stream, to: DevicePtr, bytes: usize) -> Result<()>;

    /// Makes a compiled file's kernels known.
    fn load(&self, image: Image<'_>) -> Result<()>;

    /// A kernel of a file that was loaded; `args_bytes` is the size of its struct of arguments, `max_shared_bytes` what its
    /// launches will ask for at most.
    fn function(&self, file: &str, name: &str, args_bytes: usize, max_shared_bytes: u32) -> Result<Function>;

    /// Queues a kernel. `args` is its struct of arguments.
    unsafe fn launch(&self, stream: Stream, function: Function, launch: Launch, args: &[u8]) -> Result<()>;

    /// Queues a product, if there is a vendor's library that has it: `false` if not. `workspace` is room for it.
    unsafe fn gemm(
        &self,
        stream: Stream,
        gemm: &Gemm,
        operands: GemmOperands,
        workspace: (DevicePtr, usize),
    ) -> Result<bool>;

    /// From here on, work on `stream` is recorded and not done.
    fn begin_capture(&self, stream: Stream) -> Result<()>;

    /// Ends the recording; `None` if it was to be dropped or has failed.
    fn end_capture(&self, stream: Stream, keep: bool) -> Result<Option<Graph>>;

    /// Queues what was recorded.
    unsafe fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()>;

    /// Forgets a recording; it may be running.
    fn destroy_graph(&self, graph: Graph);

    /// A new event.
    fn create_event(&self) -> Result<Event>;

    /// Gives an event back.
    fn destroy_event(&self, event: Event);

    /// Queues an event.
    fn record_event(&self, stream: Stream, event: Event) -> Result<()>;

    /// Milliseconds between two events that have happened.
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32>;
}
