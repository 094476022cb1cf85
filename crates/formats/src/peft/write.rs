//! Writing an adapter folder.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::AdapterConfig;
use super::contents::{AdapterTensor, LoraEmbedding, LoraModule, SavedModule};
use super::key::PREFIX;
use super::parity::ParityRecord;
use super::record::{self, AdapterRope};
use super::{CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE};
use crate::error::{FormatError, Result};
use crate::paths;
use crate::safetensors::{self, TensorData};
use crate::staging::{Staging, write_file, write_json};

/// Everything that goes into an adapter folder.
#[derive(Clone, Copy, Debug)]
pub struct PeftContents<'a> {
    /// The configuration.
    pub config: &'a AdapterConfig,
    /// Factors of linear modules.
    pub modules: &'a [LoraModule],
    /// Factors of embeddings.
    pub embeddings: &'a [LoraEmbedding],
    /// Parameters stored whole.
    pub saved: &'a [SavedModule],
    /// Rotary positions of its own.
    pub rope: Option<&'a AdapterRope>,
    /// What its trainer vouches for.
    pub parity: Option<&'a ParityRecord>,
    /// Further files of the folder: plain names and contents.
    pub extra_files: &'a [(&'a str, &'a [u8])],
}

/// The tensors of an adapter under PEFT's names.
pub(super) fn named_tensors<'a>(
    contents: &PeftContents<'a>,
) -> impl Iterator<Item = (String, &'a AdapterTensor)> + use<'a> {
    let modules = contents.modules.iter().flat_map(|m| {
        let name = |suffix: &str| format!("{PREFIX}{}.{suffix}", m.module_path);
        let factors = [(name("lora_A.weight"), &m.a), (name("lora_B.weight"), &m.b)];
        let magnitude = m.magnitude.as_ref().map(|t| (name("lora_magnitude_vector"), t));
        factors.into_iter().chain(magnitude)
    });
    let embeddings = contents.embeddings.iter().flat_map(|e| {
        let name = |suffix: &str| format!("{PREFIX}{}.{suffix}", e.module_path);
        [(name("lora_embedding_A"), &e.a), (name("lora_embedding_B"), &e.b)]
    });
    let saved = contents.saved.iter().map(|s| {
        let below = if s.is_base_layer { ".base_layer" } else { "" };
        (format!("{PREFIX}{}{below}.{}", s.module_path, s.parameter), &s.tensor)
    });
    modules.chain(embeddings).chain(saved)
}

/// Writes the folder `dir` as PEFT does, by way of a temporary folder beside it, so that `dir` is never seen half
/// written. All files are on disk before the folder gets its name. With `replace` a folder that is there is moved
/// aside, then removed; between its move and the rename of the new one `dir` is missing for a moment.
///
/// # Errors
/// [`FormatError::Io`]; without `replace` that `dir` exists; [`FormatError::Escapes`] for an extra file whose name is
/// no plain name; [`FormatError::Tensor`] for a name that is there twice.
pub fn write_peft(dir: &Path, contents: &PeftContents<'_>, replace: bool) -> Result<()> {
    let staging = Staging::folder(dir, replace)?;
    write_files(staging.path(), contents)?;
    staging.publish()
}

fn write_files(dir: &Path, contents: &PeftContents<'_>) -> Result<()> {
    write_json(&dir.join(CONFIG_FILE), &contents.config.to_json())?;
    if let Some(record) = record::to_json(contents.rope, contents.parity) {
        write_json(&dir.join(RECORD_FILE), &record)?;
    }
    for (name, bytes) in contents.extra_files {
        paths::check_relative(dir, name)?;
        if name.contains('/') || [CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE].contains(name) {
            return Err(FormatError::Escapes { path: dir.to_owned(), name: (*name).to_owned() });
        }
        write_file(&dir.join(name), bytes)?;
    }
    let named: Vec<(String, &AdapterTensor)> = named_tensors(contents).collect();
    let tensors: Vec<TensorData<'_>> = named
        .iter()
        .map(|(name, t)| TensorData { name, storage: t.storage(), shape: t.shape(), bytes: t.bytes() })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::write(&dir.join(WEIGHTS_FILE), &tensors, &metadata)
}
