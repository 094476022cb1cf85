//! What tests of made data share.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use wardrobe_data::DataError;
use wardrobe_data::prepare::{Counting, Output, Source};
use wardrobe_text::Tokenizer;

pub fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

pub fn source(paths: &[&Path]) -> Source {
    let files = paths.iter().flat_map(|path| Source::local(path).unwrap()).collect();
    Source { files, ..Source::default() }
}

pub fn output(path: PathBuf) -> Output {
    Output { path, replace: false }
}

pub fn counting(tokenizer: &Tokenizer) -> Counting<'_> {
    Counting { tokenizer, model: "a small vocabulary" }
}

pub fn records(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn manifest(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path.with_extension("manifest.json")).unwrap()).unwrap()
}

pub fn sha256(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The names in a folder, sorted, with those that begin with a dot.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// That the manifest tells the truth about the files.
pub fn check_manifest(path: &Path, inputs: &[(&Path, u64)]) {
    let manifest = manifest(path);
    let told = &manifest["output"];
    assert_eq!(told["sha256"], sha256(path));
    assert_eq!(told["bytes"], std::fs::metadata(path).unwrap().len());
    assert_eq!(told["records"], records(path).len());
    assert_eq!(told["name"], path.file_name().unwrap().to_str().unwrap());
    assert_eq!(manifest["inputs"].as_array().unwrap().len(), inputs.len());
    for (told, (input, records)) in manifest["inputs"].as_array().unwrap().iter().zip(inputs) {
        assert_eq!(told["sha256"], sha256(input));
        assert_eq!(told["bytes"], std::fs::metadata(input).unwrap().len());
        assert_eq!(told["records"], *records, "{}", input.display());
    }
    for beside in manifest["beside"].as_array().unwrap() {
        assert_eq!(beside["sha256"], sha256(&path.with_file_name(beside["name"].as_str().unwrap())));
    }
    assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
}

/// That a command failed with a word, and left nothing.
#[track_caller]
pub fn fails<T: std::fmt::Debug>(folder: &Path, result: Result<T, DataError>, said: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(said), "{error}");
    let left: Vec<String> =
        names(folder).into_iter().filter(|name| name.contains("out") || name.starts_with('.')).collect();
    assert_eq!(left, Vec::<String>::new(), "{error}");
}
