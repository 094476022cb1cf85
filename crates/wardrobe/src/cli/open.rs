//! From what a person writes to an open model.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use wardrobe::{CpuOptions, EngineConfig, EngineOptions, Model, ModelOptions};
use wardrobe_hub::{ModelRef, PullOptions};

use super::failure::{UsageError, with_hint};
use super::progress::PullProgress;
use super::values::{ByteSize, Device, Weights};

/// Where and how to compute, for commands that open a model for one person.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Where to compute: auto or cpu
    #[arg(long, value_name = "DEVICE", env = "WARDROBE_DEVICE", hide_env = true, default_value = "auto")]
    pub device: Device,
    /// Threads that compute [default: all that the machine has]
    #[arg(long, value_name = "N", env = "WARDROBE_THREADS", hide_env = true)]
    pub threads: Option<usize>,
    /// Precision of the weights: as-stored, or f32 for comparisons
    #[arg(
        long,
        value_name = "PRECISION",
        env = "WARDROBE_WEIGHTS",
        hide_env = true,
        default_value = "as-stored"
    )]
    pub weights: Weights,
    /// Memory for keys and values
    #[arg(long, value_name = "SIZE", env = "WARDROBE_KV_MEMORY", hide_env = true, default_value = "512MiB")]
    pub kv_memory: ByteSize,
}

impl ModelArgs {
    /// How to open the model.
    pub fn model_options(&self) -> ModelOptions {
        ModelOptions {
            device: self.device.0,
            cpu: CpuOptions { threads: self.threads, isa: None },
            precision: self.weights.0,
        }
    }

    /// An engine for one conversation.
    pub fn engine_options(&self) -> EngineOptions {
        EngineOptions {
            config: EngineConfig { max_num_sequences: 1, ..EngineConfig::default() },
            kv_bytes: self.kv_memory.to_usize(),
            ..EngineOptions::default()
        }
    }
}

/// A model on this machine.
#[derive(Debug)]
pub struct Found {
    /// What a loader opens.
    pub path: PathBuf,
    /// A short name for it.
    pub name: String,
}

/// Finds a model, and pulls it if it is not here.
pub fn find(model: &str) -> anyhow::Result<Found> {
    let reference = ModelRef::parse(model)?;
    let name = match &reference {
        ModelRef::Local(path) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
        other => other.to_string().replace("@main", ""),
    };
    let path = wardrobe_hub::pull(&reference, &PullOptions::default(), &PullProgress::new(false))?;
    Ok(Found { path, name })
}

/// Opens a model that was found.
pub fn open(found: &Found, options: &ModelOptions) -> anyhow::Result<Model> {
    if found.path.is_dir()
        && found.path.join("adapter_config.json").exists()
        && !found.path.join("config.json").exists()
    {
        let error = UsageError(format!("{} is an adapter and no model", found.path.display()));
        return Err(with_hint(error, "give its base model, and the adapter with --adapter"));
    }
    Model::open(&found.path, options)
        .with_context(|| format!("cannot open the model {}", found.path.display()))
}

/// Whether a path can be an adapter, so that one that cannot is told with what would be right.
pub fn check_adapter(path: &Path) -> anyhow::Result<()> {
    if path.join("adapter_config.json").is_file() {
        return Ok(());
    }
    let error = match path.exists() {
        true => anyhow::anyhow!("{} is no adapter: it has no adapter_config.json", path.display()),
        false => anyhow::anyhow!("there is no adapter at {}", path.display()),
    };
    Err(with_hint(error, "give a folder as PEFT's save_pretrained writes it"))
}

/// Reads a text file of at most `max_bytes`.
pub fn read_text(path: &Path, max_bytes: u64) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > max_bytes {
        anyhow::bail!("{} is over {max_bytes} bytes", path.display());
    }
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))
}
