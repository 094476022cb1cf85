//! The cases that every device has to pass, on kernels that run on the CPU.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use wardrobe_device::conformance::{Promises, Subject};
use wardrobe_device_cuda::driver::emulated::{EmulatedDriver, HostKernels};
use wardrobe_device_cuda::{CudaDevice, CudaOptions};

/// The kernels; without a C++ compiler tests are skipped, unless `REQUIRE_HOST_CXX` is set.
fn kernels() -> Option<Arc<HostKernels>> {
    static KERNELS: OnceLock<Option<Arc<HostKernels>>> = OnceLock::new();
    let built = KERNELS.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("host_kernels");
        let built = HostKernels::build(&folder).unwrap_or_else(|e| panic!("{e}"));
        let required = std::env::var_os("REQUIRE_HOST_CXX").is_some_and(|v| v != "0" && !v.is_empty());
        assert!(built.is_some() || !required, "REQUIRE_HOST_CXX is set, and there is no C++ compiler");
        if built.is_none() {
            eprintln!("SKIPPED: there is no C++ compiler to run the kernels with");
        }
        built
    });
    built.clone()
}

fn subject(deterministic: bool, order: u32) -> Option<Subject> {
    let driver = EmulatedDriver::new(kernels()?, 4 << 30);
    driver.set_order(order);
    let options = CudaOptions { deterministic, ..CudaOptions::default() };
    let device = CudaDevice::over(Arc::new(driver), &options).unwrap();
    let promises = Promises { batch_invariant: deterministic, ..Promises::CUDA };
    Some(Subject { device: Arc::new(device), promises })
}

/// As it is used, and with threads in random orders.
mod fast {
    wardrobe_device::conformance_suite!([super::subject(false, 0), super::subject(false, 7)].into_iter().flatten());
}

/// Where a row's result may not depend on what it is computed beside.
mod deterministic {
    wardrobe_device::conformance_suite!(super::subject(true, 0));
}
