//! The cases that every device has to pass, on kernels that run on the CPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::sync::Arc;

use support::kernels;
use wardrobe_device::conformance::{Promises, Subject};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};

fn subject(deterministic: bool) -> Vec<Subject> {
    let Some(kernels) = kernels() else { return Vec::new() };
    let driver = EmulatedDriver::new(kernels, 4 << 30);
    let options = CudaOptions { deterministic, ..CudaOptions::default() };
    let device = CudaDevice::over(Arc::new(driver), &options).unwrap();
    let promises = Promises { batch_invariant: deterministic, ..Promises::CUDA };
    vec![Subject { device: Arc::new(device), promises }]
}

/// As it is used. In which order threads run is varied by the kernels' own tests (`kernels/host`).
mod fast {
    wardrobe_device::conformance_suite!(super::subject(false));
}

/// Where a row's result may not depend on what it is computed beside.
mod deterministic {
    wardrobe_device::conformance_suite!(super::subject(true));
}
