//! The kernels, built for the CPU, for all tests that run them there.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use wardrobe_device_cuda::driver::emulated::HostKernels;

/// The kernels; without a C++ compiler tests are skipped, unless `REQUIRE_HOST_CXX` is set.
pub fn kernels() -> Option<Arc<HostKernels>> {
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
