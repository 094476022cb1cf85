//! NVIDIA's libraries in folders that the system's linker does not search, such as those of Python packages.
//!
//! `WARDROBE_CUDA_LIBRARIES` names the folders, separated as in `PATH`. What is loaded from there once is found by its name afterwards.

use std::path::PathBuf;
use std::sync::OnceLock;

/// The environment variable.
pub const ENV: &str = "WARDROBE_CUDA_LIBRARIES";

/// Beginnings of the names of files to load, in this order: each needs those before it.
const LIBRARIES: [&str; 3] = ["libnvrtc-builtins.so.", "libnvrtc.so.", "libcublasLt.so."];

/// Loads what is there, once; for each file that did not load, why.
pub fn preload() -> &'static [(PathBuf, String)] {
    static FAILED: OnceLock<Vec<(PathBuf, String)>> = OnceLock::new();
    FAILED.get_or_init(|| {
        let folders = std::env::var_os(ENV).unwrap_or_default();
        let files: Vec<PathBuf> = std::env::split_paths(&folders)
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let mut failed = Vec::new();
        for library in LIBRARIES {
            let is_wanted = |file: &&PathBuf| {
                file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(library))
            };
            for file in files.iter().filter(is_wanted) {
                // SAFETY: a library of NVIDIA's, whose constructors ask nothing of us.
                match unsafe { libloading::Library::new(file) } {
                    // It stays for as long as the process runs.
                    Ok(library) => std::mem::forget(library),
                    Err(error) => failed.push((file.clone(), error.to_string())),
                }
            }
        }
        failed
    })
}
