//! What a machine has for this device, and what it lacks: for people who ask why it is not used.

use std::path::PathBuf;

use cudarc::cublaslt;

use crate::driver::Card;
use crate::driver::cuda::{self, Absent};
use crate::loader::Compiler;
use crate::{libraries, source};

/// What was found.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The cards, or why there are none to use.
    pub cards: Result<Vec<Card>, Absent>,
    /// The version of CUDA that the driver has, such as 13000.
    pub driver_cuda: Option<u32>,
    /// Whether the program was built with machine code of the kernels.
    pub has_kernels: bool,
    /// NVRTC's version, if it is there.
    pub nvrtc: Option<(u32, u32)>,
    /// Whether the vendor's library of matrix products is there.
    pub has_blas: bool,
    /// Files in the folders that [`crate::LIBRARIES_ENV`] names that did not load, and why.
    pub failed_libraries: Vec<(PathBuf, String)>,
}

impl Survey {
    /// Looks.
    pub fn new() -> Self {
        let failed_libraries = libraries::preload().to_vec();
        Survey {
            cards: cuda::cards(),
            driver_cuda: cuda::driver_version(),
            has_kernels: !source::FATBINS.is_empty(),
            nvrtc: Compiler::find().ok().flatten().map(|compiler| compiler.version),
            // SAFETY: looks for a library by its usual names.
            has_blas: unsafe { cublaslt::sys::is_culib_present() },
            failed_libraries,
        }
    }
}

impl Default for Survey {
    fn default() -> Self {
        Self::new()
    }
}
