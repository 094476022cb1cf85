//! LoRA adapters as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`; and beside these, if an
//! adapter has RoPE scaling of its own, our `wardrobe.json`.
//!
//! Purpose: read an adapter that nobody vouches for into checked host memory, and write one.
//! State owned: [`PeftAdapter`] holds all tensors of the adapter.
//! Invariants of a [`PeftAdapter`]: every A has its B and both have the rank that the configuration gives; every
//! value is finite; every module with factors is one that the configuration targets; nothing in the configuration
//! that changes what the adapter computes was passed over.
//! Not done here: holding it against a model ([`Targets`] says which of a model's modules it must have), merging,
//! pickled adapters (`adapter_model.bin`).
//!
//! The format follows the sources of PEFT 0.21.

mod config;
mod contents;
mod key;
mod matching;
mod parity;
mod read;
mod record;
mod write;

pub use config::{AdapterConfig, ModuleSelector};
pub use contents::{AdapterTensor, LoraEmbedding, LoraModule, SavedModule};
pub use matching::{Targets, is_head};
pub use parity::{Canary, ParityRecord, tensors_digest};
pub use read::{PeftAdapter, PeftLimits};
pub use record::{AdapterRecord, AdapterRope, SCHEMA_FILE};
pub use write::{PeftContents, write_peft};

/// File name of an adapter's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// File name of an adapter's tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// File name of what an adapter says beyond that: [`AdapterRecord`].
pub const RECORD_FILE: &str = "wardrobe.json";

/// A check of a configuration's text alone, as far as it goes without tensors: parse it and compile its patterns.
///
/// # Errors
/// [`crate::FormatError`] naming the key at fault.
pub fn check_config(path: &std::path::Path, text: &str) -> crate::Result<AdapterConfig> {
    let map = crate::paths::parse_json_object(path, text)?;
    let config = AdapterConfig::from_json(path, &map)?;
    matching::Matcher::new(path, &config)?;
    Ok(config)
}

/// A check of the text of a [`RECORD_FILE`].
///
/// # Errors
/// [`crate::FormatError`] naming the key at fault.
pub fn check_record(path: &std::path::Path, text: &str) -> crate::Result<AdapterRecord> {
    record::parse(path, &crate::paths::parse_json_object(path, text)?)
}

#[cfg(test)]
mod tests;
