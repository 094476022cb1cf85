//! Embeds the kernels: their sources always, and where nvcc is at hand a fatbin of each, which needs no compiler at run time.
//!
//! `WARDROBE_NVCC` is the path of nvcc, or `off`; else it is looked for in `CUDA_HOME`, `CUDA_PATH`, `PATH` and `/usr/local/cuda`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What machine code is made for; the twin of `ARCHITECTURES` in `src/source.rs`, which the tests compile.
const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];

fn main() -> Result<(), String> {
    for variable in ["WARDROBE_NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let mut files = sources(&kernels, "", "cu");
    files.extend(sources(&kernels, "backward", "cu"));
    let headers = sources(&kernels, "lib", "cuh");
    let mut text = String::new();
    list(&mut text, "FILES", &kernels, &files, "cu");
    list(&mut text, "HEADERS", &kernels, &headers, "cuh");
    text.push_str("/// Machine code by file, for all architectures in one.\npub(crate) static FATBINS: &[(&str, &[u8])] = &[\n");
    if let Some(nvcc) = nvcc() {
        for file in &files {
            let fatbin = out.join(format!("{}.fatbin", file.replace('/', "-")));
            compile(&nvcc, &kernels.join(format!("{file}.cu")), &fatbin)?;
            let _ = writeln!(text, "    ({file:?}, include_bytes!({fatbin:?})),");
        }
    }
    text.push_str("];\n");
    fs::write(out.join("sources.rs"), text).map_err(|e| format!("sources.rs: {e}"))
}

/// Names of a folder's files without their ending, in order.
fn sources(kernels: &Path, folder: &str, ending: &str) -> Vec<String> {
    let path = kernels.join(folder);
    println!("cargo:rerun-if-changed={}", path.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
        let file = entry.path();
        if file.extension().is_some_and(|e| e == ending) {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            names.push(if folder.is_empty() { stem } else { format!("{folder}/{stem}") });
        }
    }
    names.sort();
    names
}

fn list(text: &mut String, name: &str, kernels: &Path, files: &[String], ending: &str) {
    let _ = writeln!(text, "/// From `kernels/`, by name.\npub(crate) static {name}: &[Source] = &[");
    for file in files {
        let path = kernels.join(format!("{file}.{ending}"));
        println!("cargo:rerun-if-changed={}", path.display());
        let _ = writeln!(text, "    Source {{ name: {file:?}, text: include_str!({path:?}) }},");
    }
    text.push_str("];\n");
}

fn nvcc() -> Option<PathBuf> {
    if let Some(given) = env::var_os("WARDROBE_NVCC") {
        return (given != "off").then(|| given.into());
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(env::var_os);
    let in_homes = homes.map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path: Vec<PathBuf> = env::split_paths(&path).map(|folder| folder.join("nvcc")).collect();
    let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
    in_homes.chain(in_path).chain([usual]).find(|nvcc| nvcc.exists())
}

fn compile(nvcc: &Path, file: &Path, fatbin: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "--fatbin", "-Xfatbin", "-compress-all", "-t", "0"]);
    for arch in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    let output = command.arg("-o").arg(fatbin).arg(file).output();
    let output = output.map_err(|e| format!("{}: {e}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", file.display(), String::from_utf8_lossy(&output.stderr)))
}
