//! The CUDA device: the ops of `wardrobe-device` on an NVIDIA card.
//!
//! Nothing of CUDA is needed to build it, and nothing to run on a machine without a card: the driver, NVRTC and cuBLASLt are found when
//! the program runs, and what is missing is an error that says so. The kernels are in the folder `kernels` of the project.
//!
//! - [`driver`] is what the device needs of a driver: the real one, and one that runs the same kernels on the CPU for tests.
//! - [`loader`] makes machine code of the kernels.
//! - [`CudaDevice`] implements [`wardrobe_device::Device`]: memory, weights, contexts. A context's ops queue kernels on one stream; steps
//!   of generation are recorded as graphs.

mod adapters;
mod attention;
mod device;
pub mod driver;
mod experts;
mod grad;
mod kernels;
mod libraries;
mod linear;
pub mod loader;
mod lora;
mod measure;
mod memory;
mod ops;
mod planes;
mod rows;
mod sample;
pub mod source;
mod steps;
mod survey;
mod weight;

pub use device::{CudaDevice, CudaOptions};
pub use libraries::ENV as LIBRARIES_ENV;
pub use measure::CardLimits;
pub use survey::Survey;
