//! Every kernel file compiles to machine code for every architecture. PTX would prove nothing: much of it is refused only later.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};
use wardrobe_device_cuda::loader::Compiler;
use wardrobe_device_cuda::source::{self, ARCHITECTURES, Source};

/// NVRTC; without it the test is skipped, unless `REQUIRE_NVRTC` is set.
fn compiler() -> Option<Compiler> {
    let found = Compiler::find().unwrap();
    let required = std::env::var_os("REQUIRE_NVRTC").is_some_and(|v| v != "0" && !v.is_empty());
    assert!(
        found.is_some() || !required,
        "REQUIRE_NVRTC is set, and NVRTC was not found; WARDROBE_CUDA_LIBRARIES may name its folder"
    );
    if found.is_none() {
        eprintln!("SKIPPED: NVRTC was not found, so nothing is known of the kernels' machine code");
    }
    found
}

/// A file that says that this source has compiled for this architecture with this compiler.
fn mark(folder: &Path, compiler: &Compiler, file: &Source, architecture: &str) -> std::path::PathBuf {
    let mut hash = Sha256::new();
    source::headers().iter().for_each(|header| hash.update(header.text));
    hash.update(format!("{:?} {architecture} {}", compiler.version, file.text));
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    folder.join(format!("{}-{architecture}-{digest}", file.name.replace('/', "-")))
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let Some(compiler) = compiler() else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("machine_code");
    std::fs::create_dir_all(&folder).unwrap();
    let jobs: Vec<(&Source, &str)> =
        source::files().iter().flat_map(|file| ARCHITECTURES.iter().map(move |a| (file, *a))).collect();
    assert!(jobs.len() >= 6 * 10, "the kernels are not there");
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some((file, architecture)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mark = mark(&folder, &compiler, file, architecture);
                    if mark.exists() {
                        continue;
                    }
                    let code = compiler.compile(file, architecture).unwrap_or_else(|e| panic!("{e}"));
                    // An ELF file for NVIDIA's machines (ELF specification; EM_CUDA is 190).
                    assert!(
                        code.starts_with(b"\x7fELF") && code[18..20] == 190u16.to_le_bytes(),
                        "{}",
                        file.name
                    );
                    std::fs::write(mark, []).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_compilers_error_names_file_and_place() {
    let Some(compiler) = compiler() else { return };
    let broken =
        Source { name: "broken", text: "#include \"lib/kernel.cuh\"\nint f() { return nothing; }\n" };
    let error = compiler.compile(&broken, "80").unwrap_err().to_string();
    assert!(error.contains("broken(2)") && error.contains("nothing"), "{error}");
}
