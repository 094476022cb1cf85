//! The CUDA device.

pub mod driver;
pub mod loader;
pub mod source;
