//! Bodies of the fuzz targets: read bytes as a file of each format, as far as a caller would go.
//!
//! Public so that `fuzz/` and the smoke test run the same code; no part of the interface for applications. A body
//! returns whether the bytes were accepted; it must never panic, whatever they are.

use std::path::Path;

use crate::convert;
use crate::error::Result;
use crate::gguf::{GgufFile, GgufTensors};
use crate::safetensors::SafetensorsFile;
use crate::source::TensorSource;
use crate::{ModelConfig, peft};

/// Largest tensor that a body converts, in elements.
const MAX_CONVERTED: usize = 1 << 16;

fn read_all(source: &dyn TensorSource) -> Result<()> {
    for info in source.tensors() {
        let bytes = source.read(&info.name)?;
        if info.numel() <= MAX_CONVERTED {
            convert::to_f32(info.storage, &bytes, info.numel())?;
        }
        source.read_rows(&info.name, 0..info.rows().min(1))?;
    }
    Ok(())
}

/// Opens the file at `path` as GGUF, reads all tensors, its configuration and its Hugging Face layout.
pub fn gguf(path: &Path) -> bool {
    let body = || -> Result<()> {
        let file = std::sync::Arc::new(GgufFile::open(path)?);
        read_all(file.as_ref())?;
        let config = ModelConfig::from_gguf(&file)?;
        read_all(&GgufTensors::new(file, &config)?)
    };
    body().is_ok()
}

/// Opens the file at `path` as safetensors and reads all tensors.
pub fn safetensors(path: &Path) -> bool {
    SafetensorsFile::open(path).and_then(|file| read_all(&file)).is_ok()
}

/// Reads `text` as an adapter's configuration, and writes what was read.
pub fn peft_config(text: &str) -> bool {
    match peft::check_config(Path::new("adapter_config.json"), text) {
        Ok(config) => config.to_json().is_object(),
        Err(_) => false,
    }
}

/// Reads `text` as an adapter's `wardrobe.json`, and writes what was read.
pub fn adapter_record(text: &str) -> bool {
    match peft::check_record(Path::new(peft::RECORD_FILE), text) {
        Ok(record) => record.rope.is_none_or(|rope| rope.to_json().is_object()),
        Err(_) => false,
    }
}
