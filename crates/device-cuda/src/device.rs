//! The card as a device: memory, weights, contexts.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use wardrobe_device::{DType, Device, DeviceError, HostTensor, Memory, Ops, Result, Weight, WeightData};

use crate::driver::cuda::CudaDriver;
use crate::driver::{Card, Driver, Image, MemoryInfo, Stream};
use crate::experts::ExpertTable;
use crate::kernels::Kernels;
use crate::loader::Loader;
use crate::memory::DeviceMemory;
use crate::ops::CudaOps;
use crate::source;
use crate::weight::CudaWeight;

/// How to set up the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CudaOptions {
    /// Which card, from 0.
    pub ordinal: usize,
    /// A row's results do not depend on what else is in its step: one algorithm for each layer, our own.
    pub deterministic: bool,
    /// Matrices of floats are rounded to 8 bits (e4m3, with a scale a row) when they are loaded; quantised ones stay as they are.
    pub fp8_weights: bool,
    /// Folder where compiled kernels are kept.
    pub cache: Option<PathBuf>,
}

/// What all contexts of a device share.
#[derive(Debug)]
pub(crate) struct Cuda {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) kernels: Kernels,
    pub(crate) deterministic: bool,
    pub(crate) fp8_weights: bool,
    /// Where weights are uploaded and read.
    transfers: Mutex<Transfers>,
}

/// A stream beside those of contexts.
#[derive(Debug)]
pub(crate) struct Transfers {
    driver: Arc<dyn Driver>,
    stream: Stream,
}

impl Drop for Transfers {
    fn drop(&mut self) {
        self.driver.destroy_stream(self.stream);
    }
}

/// An NVIDIA card.
#[derive(Clone)]
pub struct CudaDevice {
    cuda: Arc<Cuda>,
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDevice({})", self.cuda.driver.card().name)
    }
}

impl CudaDevice {
    /// Opens a card and brings the kernels to it.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] with what is missing; the driver's and the compiler's errors.
    pub fn open(options: &CudaOptions) -> Result<Self> {
        let driver: Arc<dyn Driver> = Arc::new(CudaDriver::open(options.ordinal)?);
        let loader = Loader::new(driver.card().capability, options.cache.as_deref())?;
        let images = images(&loader)?;
        for (source, bytes) in source::files().iter().zip(&images) {
            driver.load(Image { file: source.name, bytes })?;
        }
        Self::over(driver, options)
    }

    /// Over a driver that has the kernels.
    ///
    /// # Errors
    /// The driver's.
    pub fn over(driver: Arc<dyn Driver>, options: &CudaOptions) -> Result<Self> {
        let transfers = Transfers { stream: driver.create_stream()?, driver: driver.clone() };
        let cuda = Cuda {
            kernels: Kernels::new(driver.clone()),
            driver,
            deterministic: options.deterministic,
            fp8_weights: options.fp8_weights,
            transfers: Mutex::new(transfers),
        };
        Ok(CudaDevice { cuda: Arc::new(cuda) })
    }

    /// The card.
    pub fn card(&self) -> &Card {
        self.cuda.driver.card()
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.cuda.driver
    }

    pub(crate) fn with_stream<R>(&self, f: impl FnOnce(Stream) -> Result<R>) -> Result<R> {
        self.cuda.with_stream(f)
    }

    /// How much memory there is.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory_info(&self) -> Result<MemoryInfo> {
        self.cuda.driver.memory_info()
    }
}

/// Machine code of all files, in their order; made on all threads where it has to be compiled.
fn images(loader: &Loader) -> Result<Vec<Vec<u8>>> {
    let files = source::files();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(files.len());
    let next = std::sync::atomic::AtomicUsize::new(0);
    let made: Mutex<Vec<Option<Result<Vec<u8>>>>> = Mutex::new(files.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let idx = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(file) = files.get(idx) else { break };
                    let image = loader.image(file);
                    if let Some(place) = made.lock().unwrap_or_else(PoisonError::into_inner).get_mut(idx) {
                        *place = Some(image);
                    }
                }
            });
        }
    });
    let made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.into_iter()
        .map(|image| {
            image.unwrap_or_else(|| {
                Err(DeviceError::Driver { call: "kernels", reason: "a compiling thread ended".to_owned() })
            })
        })
        .collect()
}

impl Cuda {
    /// Memory with these contents.
    pub(crate) fn upload(&self, what: &'static str, bytes: &[u8]) -> Result<Arc<DeviceMemory>> {
        let memory = DeviceMemory::new(&self.driver, what, bytes.len())?;
        let transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: fresh memory of this length. Nobody else sees it before the copy is done.
        unsafe { self.driver.write(transfers.stream, memory.ptr(), bytes)? };
        self.driver.synchronize(transfers.stream)?;
        Ok(memory)
    }

    /// Runs `f` on the stream of transfers.
    pub(crate) fn with_stream<R>(&self, f: impl FnOnce(Stream) -> Result<R>) -> Result<R> {
        let transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        f(transfers.stream)
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        let Card { name, capability: (major, minor), .. } = self.card();
        format!("cuda ({name}, compute capability {major}.{minor})")
    }

    fn linear_input(&self) -> DType {
        DType::BF16
    }

    fn kv_dtype(&self) -> DType {
        DType::BF16
    }

    fn training_kv_dtype(&self) -> DType {
        // As in serving, and what tensor cores take.
        DType::BF16
    }

    fn holds_kv(&self, dtype: DType) -> bool {
        dtype != DType::U32
    }

    fn free_bytes(&self) -> Option<u64> {
        // A card that does not answer has nothing to give.
        Some(self.memory_info().map_or(0, |memory| memory.free_bytes as u64))
    }

    fn pads_steps(&self) -> bool {
        true
    }

    fn rounds_weights(&self) -> bool {
        self.cuda.fp8_weights
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<Arc<dyn Memory>> {
        let memory = DeviceMemory::new(&self.cuda.driver, what, bytes)?;
        self.cuda.with_stream(|stream| {
            // SAFETY: fresh memory of this length.
            unsafe { self.cuda.driver.clear(stream, memory.ptr(), bytes)? };
            self.cuda.driver.synchronize(stream)
        })?;
        Ok(memory)
    }

    fn load_weight(&self, host: &HostTensor<'_>) -> Result<Weight> {
        Ok(Weight::new(host, Arc::new(CudaWeight::load(&self.cuda, host)?)))
    }

    fn expert_table(&self, weights: &[Weight]) -> Result<Option<Arc<dyn WeightData>>> {
        Ok(Some(Arc::new(ExpertTable::new(&self.cuda, weights)?)))
    }

    fn dequantise_rows(&self, weight: &Weight, first_row: usize, out: &mut [f32]) -> Result<()> {
        CudaWeight::of(weight)?.dequantise_rows(&self.cuda, first_row, out)
    }

    fn update_norms(&self, weight: &Weight, factors: [&[f32]; 2], scale: f32) -> Result<Vec<f32>> {
        CudaWeight::of(weight)?.update_norms(&self.cuda, factors, scale)
    }

    fn with_threads(&self, _: usize) -> Result<Arc<dyn Device>> {
        // Work beside others' is a stream of its own, whatever the number of threads.
        Ok(Arc::new(self.clone()))
    }

    fn open(&self) -> Result<Box<dyn Ops>> {
        Ok(Box::new(CudaOps::new(self.cuda.clone())?))
    }
}
