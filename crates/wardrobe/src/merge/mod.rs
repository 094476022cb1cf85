//! An adapter merged into its base model's weights, written as a model of its own: a folder in Hugging Face's layout or a
//! GGUF file.
//!
//! Purpose: for runtimes that serve no adapters, and for a model that is to be trained further.
//! State owned: a temporary file or folder beside the output, which gets its name when it is whole and on disk.
//! Invariants: a few rows are in memory at a time, whatever the model's size; tensors that the adapter does not change are
//! copied bit for bit unless another type was asked for; nothing that is there is replaced without being asked.
//! Not done here: merging several adapters, embeddings' factors and `modules_to_save`, which are refused by name.

mod gguf;
mod hugging_face;
mod tensors;

use std::path::Path;

use wardrobe_formats::{ModelConfig, ModelFiles, PeftAdapter, StorageType};
use wardrobe_models::{MergedTensors, RopeSpec};

use crate::disk::{is_empty, real_path};
use crate::error::{Error, Result};
use tensors::Progress;

/// In what form a merged model is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeFormat {
    /// A folder: `config.json`, tokenizer files, `model.safetensors`.
    Safetensors,
    /// One file.
    Gguf,
}

/// How a merged model's matrices are stored. Vectors are F32 in a GGUF file, and of the matrices' type in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum MergeDtype {
    /// Each as the base stores it; BF16 where a folder is made of quantised weights.
    #[default]
    AsBase,
    F32,
    Bf16,
    F16,
    Q8_0,
    Q4_0,
    Q4_1,
}

impl MergeDtype {
    /// The type, if it is not the base's.
    fn storage(self) -> Option<StorageType> {
        Some(match self {
            MergeDtype::AsBase => return None,
            MergeDtype::F32 => StorageType::F32,
            MergeDtype::Bf16 => StorageType::BF16,
            MergeDtype::F16 => StorageType::F16,
            MergeDtype::Q8_0 => StorageType::Q8_0,
            MergeDtype::Q4_0 => StorageType::Q4_0,
            MergeDtype::Q4_1 => StorageType::Q4_1,
        })
    }
}

/// How to write a merged model.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// In what form; `None`: GGUF if the output's name ends in `.gguf`, else a folder.
    pub format: Option<MergeFormat>,
    /// Types of the tensors.
    pub dtype: MergeDtype,
    /// Largest file of a folder, unless one tensor is larger.
    pub max_shard_bytes: u64,
    /// Replace an output of the same kind that is there.
    pub replace: bool,
    /// Accept an adapter that changes nothing.
    pub allow_noop: bool,
}

impl Default for MergeOptions {
    fn default() -> Self {
        MergeOptions {
            format: None,
            dtype: MergeDtype::AsBase,
            max_shard_bytes: 5_000_000_000,
            replace: false,
            allow_noop: false,
        }
    }
}

/// What was written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MergeReport {
    /// In what form.
    pub format: MergeFormat,
    /// The tensors that the adapter changed.
    pub merged: Vec<MergedWeight>,
    /// Tensors in the output.
    pub num_tensors: usize,
    /// Bytes of all tensors.
    pub size_bytes: u64,
    /// What whoever uses the model should know.
    pub notes: Vec<String>,
}

/// A tensor that the adapter changed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MergedWeight {
    /// Its name in Hugging Face's scheme.
    pub name: String,
    /// How it was written.
    pub storage: StorageType,
    /// `‖W' - W‖ / ‖W‖`: what the adapter changed (Frobenius norms).
    pub change: f64,
    /// `‖round(W') - W'‖ / ‖W'‖`: what was lost by storing it.
    pub rounding: f64,
}

impl MergedWeight {
    /// Whether the error of rounding is larger than the adapter's change.
    pub fn is_drowned(&self) -> bool {
        self.rounding > self.change
    }
}

/// Hears of a merge: bytes written so far, of all.
pub type MergeProgress<'a> = dyn Fn(u64, u64) + 'a;

/// Merges `adapter` into the model at `base`, a folder or a GGUF file, and writes the result to `output`.
///
/// `W + scale B A` for every module, with DoRA `m (W + scale B A) / ‖W + scale B A‖`; summed in f64 and rounded once. An
/// adapter's RoPE scaling becomes the model's.
///
/// # Errors
/// [`Error::Model`] for an adapter that does not fit, naming the module; [`Error::Setting`] for an output that is there or
/// that would overwrite what it is made of, and for types that the form does not have; [`Error::DiskSpace`];
/// [`Error::Format`] and [`Error::Text`] naming file, tensor or key.
pub fn merge(
    base: impl AsRef<Path>,
    adapter: &PeftAdapter,
    output: impl AsRef<Path>,
    options: &MergeOptions,
    progress: &MergeProgress<'_>,
) -> Result<MergeReport> {
    let (base, output) = (base.as_ref(), output.as_ref());
    let is_gguf = output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let format = match options.format {
        Some(MergeFormat::Safetensors) if is_gguf => {
            let output = output.display();
            return Err(Error::Setting(format!(
                "{output} would be a folder of safetensors; name it otherwise"
            )));
        }
        Some(format) => format,
        None if is_gguf => MergeFormat::Gguf,
        None => MergeFormat::Safetensors,
    };
    if format == MergeFormat::Safetensors
        && let Some(storage) = options.dtype.storage().filter(|storage| storage.is_quantized())
    {
        return Err(Error::Setting(format!(
            "safetensors cannot hold {storage}; write a GGUF file, or f32, bf16 or f16"
        )));
    }
    check_output(base, adapter, output, format, options.replace)?;
    let files = ModelFiles::open(base)?;
    let merged = MergedTensors::new(files.tensors.as_ref(), &files.config, adapter, options.allow_noop)?;
    let source = Source { config: merged_config(&files.config, adapter, &merged), files: &files, adapter };
    let progress = Progress::new(progress);
    match format {
        MergeFormat::Safetensors => hugging_face::write(&source, &merged, output, options, progress),
        MergeFormat::Gguf => gguf::write(&source, &merged, output, options, progress),
    }
}

/// What a merged model is made of.
struct Source<'a> {
    files: &'a ModelFiles,
    adapter: &'a PeftAdapter,
    /// The merged model's.
    config: ModelConfig,
}

impl Source<'_> {
    /// The name of the merged model.
    fn name(&self) -> String {
        let adapter = self.adapter.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let own = self.files.gguf_metadata().and_then(|m| m.str("general.name").ok().flatten());
        let base = own.map(str::to_owned).or_else(|| self.files.names().into_iter().next());
        match (base, adapter) {
            (Some(base), Some(adapter)) => format!("{base} + {adapter}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "merged".to_owned(),
        }
    }
}

/// The base's configuration with what the adapter changes in it.
fn merged_config(base: &ModelConfig, adapter: &PeftAdapter, merged: &MergedTensors<'_>) -> ModelConfig {
    let mut config = base.clone();
    config.tie_word_embeddings &= !merged.unties_head();
    if let Some(rope) = adapter.rope() {
        let spec = RopeSpec::of_adapter(base, rope);
        config.rope_theta = spec.theta;
        config.rope_scaling = spec.scaling;
        config.max_position_embeddings = rope.max_position_embeddings;
    }
    config
}

/// Refuses an output that would replace what it should not.
fn check_output(
    base: &Path,
    adapter: &PeftAdapter,
    output: &Path,
    format: MergeFormat,
    replace: bool,
) -> Result<()> {
    let shown = output.display();
    let setting = |text: String| Err(Error::Setting(text));
    if output.file_name().is_none() {
        return setting(format!("{shown} names no file or folder to write"));
    }
    let real = real_path(output);
    for input in [base, adapter.path()] {
        // An adapter from memory has no place on disk.
        let Ok(input) = input.canonicalize() else { continue };
        if input.starts_with(&real) || (input.is_dir() && real.starts_with(&input)) {
            let input = input.display();
            return setting(format!("{shown} is, holds or lies in {input}, which it is made of"));
        }
    }
    let Ok(meta) = output.symlink_metadata() else { return Ok(()) };
    if !replace {
        return setting(format!("{shown} is there already"));
    }
    let is_alike = match format {
        MergeFormat::Gguf => !meta.is_dir(),
        MergeFormat::Safetensors => {
            meta.is_dir() && (is_empty(output) || output.join("config.json").is_file())
        }
    };
    if is_alike {
        return Ok(());
    }
    let expected = match format {
        MergeFormat::Gguf => "a file",
        MergeFormat::Safetensors => "a model's folder",
    };
    setting(format!("{shown} is there and is not {expected}, so it is not replaced"))
}
