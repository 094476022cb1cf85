//! From what a person writes to an open model.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Map, Value};
use wardrobe::grammar::{Spec, Template};
use wardrobe::{CpuOptions, Engine, EngineConfig, EngineOptions, Model, ModelOptions};
use wardrobe_hub::{ModelRef, PullOptions};

use super::check;
use super::failure::{UsageError, with_hint};
use super::progress::{OpenProgress, PullProgress};
use super::values::{ByteSize, Device, Drafts, Weights};

/// The largest schema that is read.
const MAX_SCHEMA_BYTES: u64 = 4 << 20;

/// Where and how to compute, for commands that open a model.
#[derive(Debug, clap::Args)]
pub struct ComputeArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", env = "WARDROBE_DEVICE", hide_env = true, default_value = "auto")]
    pub device: Device,
    /// Threads that compute [default: all that the machine has]
    #[arg(long, value_name = "N", env = "WARDROBE_THREADS", hide_env = true)]
    pub threads: Option<usize>,
    /// On a GPU: what is computed beside a request changes no bit of its answer, at the price of speed [default: false]
    #[arg(long, value_name = "BOOL", env = "WARDROBE_DETERMINISTIC", hide_env = true, num_args = 0..=1,
        require_equals = true, default_missing_value = "true")]
    pub deterministic: Option<bool>,
    /// Precision of the weights: as-stored, f32 for comparisons, or fp8, on a GPU, which rounds floats to 8 bits
    #[arg(
        long,
        value_name = "PRECISION",
        env = "WARDROBE_WEIGHTS",
        hide_env = true,
        default_value = "as-stored"
    )]
    pub weights: Weights,
}

/// The same, for commands that also run an engine.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Memory for keys and values [default: 512MiB, 256MiB for the quickstart, on a GPU what is free]
    #[arg(long, value_name = "SIZE", env = "WARDROBE_KV_MEMORY", hide_env = true)]
    pub kv_memory: Option<ByteSize>,
    /// Whether the next tokens of a text are drafted from itself and verified in one step: auto where it pays, off, or always;
    /// answers stay the same [default: auto, off for bench, whose texts are made up]
    #[arg(long, value_name = "WHEN", env = "WARDROBE_SPECULATION", hide_env = true)]
    pub speculation: Option<Drafts>,
}

impl ComputeArgs {
    /// How to open the model.
    pub fn model_options(&self) -> ModelOptions {
        ModelOptions {
            device: self.device.0,
            cpu: CpuOptions { threads: self.threads, ..Default::default() },
            deterministic: self.deterministic.unwrap_or_default(),
            fp8: self.weights == Weights::Fp8,
            precision: self.weights.precision(),
        }
    }
}

impl ModelArgs {
    /// Refuses what cannot hold before a model is pulled and opened.
    pub fn check(&self) -> anyhow::Result<()> {
        self.kv_memory.map_or(Ok(()), check::kv_memory)
    }

    /// How to open the model.
    pub fn model_options(&self) -> ModelOptions {
        self.compute.model_options()
    }

    /// Bytes for keys and values, unless others were asked for.
    pub fn kv_bytes(&self, default: Option<usize>) -> Option<usize> {
        self.kv_memory.map(ByteSize::to_usize).or(default)
    }

    /// An engine for one conversation.
    pub fn engine_options(&self) -> EngineOptions {
        let base = EngineOptions::default();
        EngineOptions {
            config: EngineConfig {
                max_num_sequences: 1,
                speculation: self.speculation.unwrap_or_default().0,
                ..EngineConfig::default()
            },
            kv_bytes: self.kv_bytes(base.kv_bytes),
            ..base
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

/// The short name of a model that a person wrote.
pub fn name(model: &str) -> anyhow::Result<String> {
    Ok(match ModelRef::parse(model)? {
        ModelRef::Local(path) => {
            let path = path.canonicalize().unwrap_or(path);
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
        }
        other => other.to_string().replace("@main", ""),
    })
}

/// Finds a model, and pulls it if it is not here.
pub fn find(model: &str) -> anyhow::Result<Found> {
    let (reference, name) = (ModelRef::parse(model)?, name(model)?);
    let path = wardrobe_hub::pull(&reference, &PullOptions::default(), &PullProgress::new(false))?;
    Ok(Found { path, name })
}

/// Starts an engine over a model.
pub fn engine(model: &Model, options: &EngineOptions) -> anyhow::Result<Engine> {
    model.engine(options).map_err(check::engine_error)
}

/// Opens a model that was found, and shows on a terminal how far it is.
pub fn open(found: &Found, options: &ModelOptions) -> anyhow::Result<Model> {
    if found.path.is_dir()
        && found.path.join("adapter_config.json").exists()
        && !found.path.join("config.json").exists()
    {
        let error = UsageError(format!("{} is an adapter and no model", found.path.display()));
        return Err(with_hint(error, "give its base model, and the adapter with --adapter"));
    }
    let progress = OpenProgress::new(&found.name);
    Model::open_with_progress(&found.path, options, &|read, total| progress.at(read, total))
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
/// Reads a JSON schema.
pub fn read_schema(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = read_text(path, MAX_SCHEMA_BYTES).context("the schema")?;
    serde_json::from_str(&text).with_context(|| format!("the schema {} is no JSON object", path.display()))
}

/// Reads a JSON schema that answers can be held to, strictly, and compiles it for a model.
pub fn schema(path: &Path, model: &Model) -> anyhow::Result<(Map<String, Value>, Arc<Template>)> {
    let schema = read_schema(path)?;
    let spec = Spec::JsonSchema { schema: schema.clone().into(), strict: true };
    let template =
        model.compile(&spec).with_context(|| format!("the schema {} is refused", path.display()))?;
    Ok((schema, template))
}
