//! A driver that runs the kernels on the CPU (`kernels/host`): what the device does with memory, streams, graphs and arguments
//! is then tested for what it computes, without a GPU.
//!
//! It is as asynchronous as a card may be: work lies in its stream's queue until somebody waits for it, and streams run in no
//! order among each other. Fresh memory is full of NaN. Writing past the end of an allocation is found when it is freed or waited
//! for. A card can be made small, or lost.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use wardrobe_device::{DeviceError, Result};

use super::{
    Card, DevicePtr, Driver, Event, Function, Gemm, GemmOperands, Graph, Image, Launch, MemoryInfo, Stream,
};
use crate::source::{self, Source};

/// What [`Driver::launch`] calls.
type Kernel = unsafe extern "C" fn(Dim3, Dim3, usize, *const c_void, u32);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Dim3 {
    x: u32,
    y: u32,
    z: u32,
}

/// Bytes after each allocation that nobody may write.
const GUARD_BYTES: usize = 64;
const GUARD: u8 = 0xA5;

/// The kernels, compiled for the CPU: a library for each file, since what files call by one name need not be the same.
#[derive(Debug)]
pub struct HostKernels {
    libraries: Vec<(&'static str, libloading::Library)>,
}

impl HostKernels {
    /// Compiles all kernel files with the C++ compiler `$CXX` or `c++`, in `folder`, where they stay for the next time. `None`
    /// without a compiler.
    ///
    /// # Errors
    /// The compiler's words.
    pub fn build(folder: &Path) -> std::result::Result<Option<Arc<Self>>, String> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        if Command::new(&compiler).arg("--version").output().is_err() {
            return Ok(None);
        }
        std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
        let mut common = Sha256::new();
        for header in source::HEADERS {
            common.update(header.text);
        }
        for file in ["host/simt.hpp", "host/builtins.hpp", "host/fiber.hpp"] {
            common.update(std::fs::read(kernels.join(file)).map_err(|e| format!("{file}: {e}"))?);
        }
        let libraries: Vec<(&Source, PathBuf)> = source::FILES
            .iter()
            .map(|file| {
                let digest = digest(common.clone().chain_update(file.text));
                (file, folder.join(format!("{}-{digest}.so", file.name.replace('/', "-"))))
            })
            .collect();
        let missing: Vec<&(&Source, PathBuf)> = libraries.iter().filter(|(_, path)| !path.exists()).collect();
        let compile = |(file, library): &(&Source, PathBuf)| -> std::result::Result<(), String> {
            // Under a name of its own, and renamed when it is whole: tests of several programs may come here at once.
            let partial = library.with_extension(format!("{}.partial", std::process::id()));
            let mut command = Command::new(&compiler);
            command.args(["-x", "c++", "-std=c++17", "-O2", "-fPIC", "-fno-gnu-unique", "-shared"]);
            command.arg("-DWARDROBE_HOST").arg(kernels.join(format!("{}.cu", file.name)));
            run(command.arg("-o").arg(&partial))?;
            std::fs::rename(&partial, library).map_err(|e| e.to_string())
        };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|t| {
                    let jobs = missing.iter().skip(t).step_by(threads);
                    scope.spawn(move || jobs.copied().try_for_each(compile))
                })
                .collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| Err("a worker panicked".into())))
        })?;
        let libraries = libraries
            .iter()
            .map(|(file, path)| {
                // SAFETY: the library is ours; loading it runs constructors of empty containers only.
                let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
                Ok((file.name, library))
            })
            .collect::<std::result::Result<_, String>>()?;
        Ok(Some(Arc::new(HostKernels { libraries })))
    }

    fn kernel(&self, file: &str, name: &str) -> Option<(Kernel, usize)> {
        let (_, library) = self.libraries.iter().find(|(of, _)| *of == file)?;
        let args_bytes = format!("{name}_args_bytes");
        // SAFETY: `KERNEL` in simt.hpp defines both with these types.
        unsafe {
            let kernel = library.get::<Kernel>(name.as_bytes()).ok()?;
            let args_bytes = library.get::<extern "C" fn() -> usize>(args_bytes.as_bytes()).ok()?;
            Some((*kernel, args_bytes()))
        }
    }
}

fn digest(hash: Sha256) -> String {
    hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn run(command: &mut Command) -> std::result::Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// A piece of work in a stream.
#[derive(Debug, Clone)]
enum Work {
    Write { to: u64, bytes: Vec<u8> },
    Copy { from: u64, to: u64, len: usize },
    Clear { to: u64, len: usize },
    Launch { function: Function, launch: Launch, args: Vec<u8> },
    Graph(Arc<Vec<Work>>),
}

#[derive(Debug, Default)]
struct Queue {
    work: VecDeque<Work>,
    capture: Option<Vec<Work>>,
}

#[derive(Debug)]
struct Allocation {
    memory: Box<[u128]>,
    len: usize,
}

#[derive(Debug, Default)]
struct State {
    functions: Vec<(String, Kernel, usize, u32)>,
    allocations: BTreeMap<u64, Allocation>,
    queues: HashMap<u64, Queue>,
    graphs: HashMap<u64, Arc<Vec<Work>>>,
    next_handle: u64,
    used_bytes: usize,
    launches: u64,
    /// Launches that are left until the card is lost.
    lost_after: Option<u64>,
    order: u32,
}

/// See the module's head.
#[derive(Debug)]
pub struct EmulatedDriver {
    kernels: Arc<HostKernels>,
    card: Card,
    state: Mutex<State>,
}

impl EmulatedDriver {
    /// A card with so much memory.
    pub fn new(kernels: Arc<HostKernels>, memory_bytes: usize) -> Self {
        let card = Card {
            name: "emulated card".to_owned(),
            capability: (9, 0),
            num_multiprocessors: 8,
            max_shared_bytes: 227 << 10,
            memory_bytes,
        };
        EmulatedDriver { kernels, card, state: Mutex::default() }
    }

    /// From the `n`th launch on, every call fails as it does on a card that has fallen off the bus.
    pub fn lose_after(&self, launches: u64) {
        self.state().lost_after = Some(launches);
    }

    /// Kernels that have run.
    pub fn launches(&self) -> u64 {
        self.state().launches
    }

    /// Bytes in use.
    pub fn used_bytes(&self) -> usize {
        self.state().used_bytes
    }

    /// Graphs that are kept.
    pub fn num_graphs(&self) -> usize {
        self.state().graphs.len()
    }

    /// In which order threads run: 0 plainly, else at random.
    pub fn set_order(&self, order: u32) {
        self.state().order = order;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost() -> DeviceError {
    DeviceError::Lost { reason: "the emulated card was taken away".to_owned() }
}

fn refuse<T>(op: &'static str, reason: impl Into<String>) -> Result<T> {
    Err(DeviceError::Invalid { op, reason: reason.into() })
}

impl State {
    fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    fn check(&self) -> Result<()> {
        if self.lost_after == Some(0) { Err(lost()) } else { Ok(()) }
    }

    fn push(&mut self, stream: Stream, work: Work) -> Result<()> {
        self.check()?;
        let Some(queue) = self.queues.get_mut(&stream.0) else { return refuse("stream", "no such stream") };
        match &mut queue.capture {
            Some(recorded) => recorded.push(work),
            None => queue.work.push_back(work),
        }
        Ok(())
    }

    /// Whether a range lies within one allocation.
    fn check_range(&self, op: &'static str, at: u64, len: usize) -> Result<()> {
        let found = self.allocations.range(..=at).next_back();
        match found {
            Some((start, allocation)) if at + len as u64 <= start + allocation.len as u64 => Ok(()),
            _ => refuse(op, format!("{len} bytes at {at:#x} are not within an allocation")),
        }
    }

    fn perform(&mut self, work: &Work) -> Result<()> {
        self.check()?;
        match work {
            Work::Write { to, bytes } => {
                self.check_range("write", *to, bytes.len())?;
                // SAFETY: the range was checked; nothing else runs meanwhile.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), *to as *mut u8, bytes.len()) };
            }
            Work::Copy { from, to, len } => {
                self.check_range("copy", *from, *len)?;
                self.check_range("copy", *to, *len)?;
                // SAFETY: as above.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *len) };
            }
            Work::Clear { to, len } => {
                self.check_range("clear", *to, *len)?;
                // SAFETY: as above.
                unsafe { std::ptr::write_bytes(*to as *mut u8, 0, *len) };
            }
            Work::Launch { function, launch, args } => {
                let Some((_, kernel, ..)) = self.functions.get(function.0 as usize) else {
                    return refuse("launch", "no such kernel");
                };
                if let Some(left) = &mut self.lost_after {
                    *left -= 1;
                }
                self.launches += 1;
                let [x, y, z] = launch.grid;
                let block = Dim3 { x: launch.block, y: 1, z: 1 };
                // Aligned as the struct is.
                let mut aligned = vec![0u128; args.len().div_ceil(16)];
                // SAFETY: `aligned` has room; the kernel gets what `Driver::launch` was promised.
                unsafe {
                    std::ptr::copy_nonoverlapping(args.as_ptr(), aligned.as_mut_ptr().cast(), args.len());
                    kernel(
                        Dim3 { x, y, z },
                        block,
                        launch.shared_bytes as usize,
                        aligned.as_ptr().cast(),
                        self.order,
                    );
                }
            }
            Work::Graph(recorded) => recorded.iter().try_for_each(|work| self.perform(work))?,
        }
        Ok(())
    }

    fn drain(&mut self, stream: u64) -> Result<()> {
        while let Some(work) = self.queues.get_mut(&stream).and_then(|q| q.work.pop_front()) {
            self.perform(&work)?;
        }
        self.check_guards()
    }

    fn check_guards(&self) -> Result<()> {
        for (at, allocation) in &self.allocations {
            // SAFETY: the guard is part of the allocation's memory.
            let guard = unsafe {
                let memory = allocation.memory.as_ptr().cast::<u8>();
                std::slice::from_raw_parts(memory.add(allocation.len), GUARD_BYTES)
            };
            if guard.iter().any(|&b| b != GUARD) {
                return refuse("emulated card", format!("written past {} bytes at {at:#x}", allocation.len));
            }
        }
        Ok(())
    }
}

impl Driver for EmulatedDriver {
    fn card(&self) -> &Card {
        &self.card
    }

    fn memory_info(&self) -> Result<MemoryInfo> {
        let state = self.state();
        state.check()?;
        let free_bytes = self.card.memory_bytes.saturating_sub(state.used_bytes);
        Ok(MemoryInfo { free_bytes, total_bytes: self.card.memory_bytes })
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<DevicePtr> {
        let mut state = self.state();
        state.check()?;
        if bytes > self.card.memory_bytes.saturating_sub(state.used_bytes) {
            return Err(DeviceError::OutOfMemory { what, bytes });
        }
        let mut memory = vec![u128::MAX; (bytes + GUARD_BYTES).div_ceil(16)].into_boxed_slice();
        // SAFETY: the memory has these bytes.
        unsafe { memory.as_mut_ptr().cast::<u8>().add(bytes).write_bytes(GUARD, GUARD_BYTES) };
        let ptr = memory.as_ptr() as u64;
        state.used_bytes += bytes;
        state.allocations.insert(ptr, Allocation { memory, len: bytes });
        Ok(DevicePtr(ptr))
    }

    unsafe fn free(&self, ptr: DevicePtr) {
        let mut state = self.state();
        let streams: Vec<u64> = state.queues.keys().copied().collect();
        for stream in streams {
            if let Err(error) = state.drain(stream) {
                tracing::error!(%error, "work before memory was freed");
            }
        }
        if let Some(allocation) = state.allocations.remove(&ptr.0) {
            state.used_bytes -= allocation.len;
        }
    }

    fn create_stream(&self) -> Result<Stream> {
        let mut state = self.state();
        state.check()?;
        let handle = state.handle();
        state.queues.insert(handle, Queue::default());
        Ok(Stream(handle))
    }

    fn destroy_stream(&self, stream: Stream) {
        let mut state = self.state();
        // A lost card does not finish its work.
        let _ = state.drain(stream.0);
        state.queues.remove(&stream.0);
    }

    fn synchronize(&self, stream: Stream) -> Result<()> {
        let mut state = self.state();
        if state.queues.get(&stream.0).is_none_or(|q| q.capture.is_some()) {
            return refuse("synchronize", "the stream is being recorded, or is none");
        }
        state.drain(stream.0)?;
        state.check()
    }

    unsafe fn write(&self, stream: Stream, to: DevicePtr, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        if state.queues.get(&stream.0).is_some_and(|q| q.capture.is_some()) {
            return refuse("write", "the stream is being recorded");
        }
        state.push(stream, Work::Write { to: to.0, bytes: bytes.to_vec() })
    }

    unsafe fn read(&self, stream: Stream, from: DevicePtr, bytes: &mut [u8]) -> Result<()> {
        self.synchronize(stream)?;
        self.state().check_range("read", from.0, bytes.len())?;
        // SAFETY: the range was checked, and nothing is running.
        unsafe { std::ptr::copy_nonoverlapping(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, stream: Stream, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        self.state().push(stream, Work::Copy { from: from.0, to: to.0, len: bytes })
    }

    unsafe fn clear(&self, stream: Stream, to: DevicePtr, bytes: usize) -> Result<()> {
        self.state().push(stream, Work::Clear { to: to.0, len: bytes })
    }

    fn load(&self, _: Image<'_>) -> Result<()> {
        Ok(())
    }

    fn function(&self, file: &str, name: &str, args_bytes: usize, max_shared_bytes: u32) -> Result<Function> {
        let Some((kernel, own_bytes)) = self.kernels.kernel(file, name) else {
            return refuse("function", format!("there is no kernel {name} in {file}"));
        };
        if own_bytes != args_bytes {
            let sizes = format!("{own_bytes} bytes of arguments, and is given {args_bytes}");
            return refuse("function", format!("the kernel {name} takes {sizes}"));
        }
        let mut state = self.state();
        state.functions.push((name.to_owned(), kernel, args_bytes, max_shared_bytes));
        Ok(Function(state.functions.len() as u64 - 1))
    }

    unsafe fn launch(&self, stream: Stream, function: Function, launch: Launch, args: &[u8]) -> Result<()> {
        let mut state = self.state();
        let Some((name, _, args_bytes, max_shared_bytes)) = state.functions.get(function.0 as usize) else {
            return refuse("launch", "no such kernel");
        };
        // What CUDA refuses (CUDA C++ programming guide, "Technical specifications per compute capability").
        let [x, y, z] = launch.grid;
        let grid_fits = (1..1 << 31).contains(&x) && (1..65_536).contains(&y) && (1..65_536).contains(&z);
        if !grid_fits
            || !(1..=1024).contains(&launch.block)
            || launch.shared_bytes > *max_shared_bytes
            || args.len() != *args_bytes
        {
            return refuse("launch", format!("{name}: {launch:?} with {} bytes of arguments", args.len()));
        }
        state.push(stream, Work::Launch { function, launch, args: args.to_vec() })
    }

    unsafe fn gemm(&self, _: Stream, _: &Gemm, _: GemmOperands, _: (DevicePtr, usize)) -> Result<bool> {
        Ok(false)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        let mut state = self.state();
        state.check()?;
        match state.queues.get_mut(&stream.0) {
            Some(queue) if queue.capture.is_none() => {
                queue.capture = Some(Vec::new());
                Ok(())
            }
            _ => refuse("begin_capture", "the stream is being recorded, or is none"),
        }
    }

    fn end_capture(&self, stream: Stream, keep: bool) -> Result<Option<Graph>> {
        let mut state = self.state();
        let recorded = state.queues.get_mut(&stream.0).and_then(|queue| queue.capture.take());
        let Some(recorded) = recorded else { return refuse("end_capture", "nothing is being recorded") };
        state.check()?;
        if !keep {
            return Ok(None);
        }
        let handle = state.handle();
        state.graphs.insert(handle, Arc::new(recorded));
        Ok(Some(Graph(handle)))
    }

    unsafe fn launch_graph(&self, stream: Stream, graph: Graph) -> Result<()> {
        let mut state = self.state();
        let Some(recorded) = state.graphs.get(&graph.0).cloned() else {
            return refuse("launch_graph", "no such graph");
        };
        state.push(stream, Work::Graph(recorded))
    }

    fn destroy_graph(&self, graph: Graph) {
        self.state().graphs.remove(&graph.0);
    }

    fn create_event(&self) -> Result<Event> {
        Ok(Event(self.state().handle()))
    }

    fn destroy_event(&self, _: Event) {}

    fn record_event(&self, _: Stream, _: Event) -> Result<()> {
        self.state().check()
    }

    fn elapsed_ms(&self, _: Event, _: Event) -> Result<f32> {
        Ok(0.0)
    }
}
