//! Settings of `serve`: flags over environment over file over defaults.
//!
//! One struct, [`Settings`], is read from the command line, the environment and a TOML file; every field of it is
//! optional. [`resolve`] lays them over each other and fills in what is left.

mod file;
mod options;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wardrobe::{EngineConfig, EngineOptions};
use wardrobe_server::ServerConfig;

use self::file::{adapter_list, one_or_many};
use super::dummy::{DummyDtype, LoadFormat};
use super::values::{AdapterSpec, Adapters, ByteSize, Device, Drafts, KvDtype, TrainingRest, Weights};

/// What can be set, wherever it is set.
#[derive(Debug, Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A short name (smollm2-135m), a hub repository (owner/name[@revision][:file.gguf]), a folder or a .gguf file; it is
    /// pulled if it is not here yet
    #[arg(value_name = "MODEL", env = "WARDROBE_MODEL", hide_env = true)]
    pub model: Option<String>,
    /// Where weights come from: auto reads those of MODEL, dummy makes them up for the model that --model-config describes
    /// [default: auto]
    #[arg(long, value_name = "FORMAT", env = "WARDROBE_LOAD_FORMAT", hide_env = true)]
    pub load_format: Option<LoadFormat>,
    /// With --load-format dummy: the config.json of the model, as Hugging Face has it; --config takes one too
    #[arg(long, value_name = "FILE", env = "WARDROBE_MODEL_CONFIG", hide_env = true)]
    pub model_config: Option<PathBuf>,
    /// With --load-format dummy: how matrices are stored: f32, f16, bf16, q8_0, q4_0, q4_1, q4_k or q6_k [default: as the
    /// configuration says, else bf16]
    #[arg(long, value_name = "TYPE", env = "WARDROBE_DUMMY_DTYPE", hide_env = true)]
    pub dummy_dtype: Option<DummyDtype>,
    /// With --load-format dummy: what the random weights follow from [default: 0]
    #[arg(long, value_name = "N", env = "WARDROBE_DUMMY_SEED", hide_env = true)]
    pub dummy_seed: Option<u64>,
    /// Name under which clients ask for the base model; more than one is allowed [default: from MODEL]
    #[arg(
        long,
        value_name = "NAME",
        env = "WARDROBE_SERVED_MODEL_NAME",
        hide_env = true,
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub served_model_name: Vec<String>,

    /// Address to listen on; 0.0.0.0 for all [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS", env = "WARDROBE_HOST", hide_env = true, help_heading = "Endpoint")]
    pub host: Option<String>,
    /// Port to listen on; 0 takes a free one and prints it [default: 8000]
    #[arg(long, value_name = "PORT", env = "WARDROBE_PORT", hide_env = true, help_heading = "Endpoint")]
    pub port: Option<u16>,
    /// File of API keys, one a line; every route but /health then asks for one
    #[arg(
        long,
        value_name = "FILE",
        env = "WARDROBE_API_KEY_FILE",
        hide_env = true,
        help_heading = "Endpoint"
    )]
    pub api_key_file: Option<PathBuf>,
    /// Origin whose web pages may call the endpoint, or *; repeatable
    #[arg(
        long,
        value_name = "ORIGIN",
        env = "WARDROBE_CORS_ORIGIN",
        hide_env = true,
        value_delimiter = ',',
        help_heading = "Endpoint"
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub cors_origin: Vec<String>,
    /// Largest request body [default: 8MiB]
    #[arg(long, value_name = "SIZE", env = "WARDROBE_MAX_BODY", hide_env = true, help_heading = "Endpoint")]
    pub max_body: Option<ByteSize>,
    /// Sequences of requests (prompts times choices) that may wait; more get 429 [default: 1024]
    #[arg(long, value_name = "N", env = "WARDROBE_QUEUE", hide_env = true, help_heading = "Endpoint")]
    pub queue: Option<usize>,
    /// Longest time for one request [default: no limit]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "WARDROBE_REQUEST_TIMEOUT_SECONDS",
        hide_env = true,
        help_heading = "Endpoint"
    )]
    pub request_timeout_seconds: Option<u64>,
    /// How long running requests may take to finish after SIGTERM or Ctrl-C [default: 30]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "WARDROBE_DRAIN_SECONDS",
        hide_env = true,
        help_heading = "Endpoint"
    )]
    pub drain_seconds: Option<u64>,
    /// How long /ready says 503 after SIGTERM or Ctrl-C before connections are refused, so that a balancer can turn away
    /// [default: 0]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "WARDROBE_DRAIN_DELAY_SECONDS",
        hide_env = true,
        help_heading = "Endpoint"
    )]
    pub drain_delay_seconds: Option<u64>,

    /// Adapter to load at start; repeatable (in the environment: parted by commas; in the file: a table `[adapters]` or a
    /// list)
    #[arg(
        long,
        value_name = "NAME=PATH",
        env = "WARDROBE_ADAPTER",
        hide_env = true,
        value_delimiter = ',',
        help_heading = "Adapters"
    )]
    #[serde(alias = "adapters", deserialize_with = "adapter_list")]
    pub adapter: Vec<AdapterSpec>,
    /// Name of an adapter given by --adapter that never makes room for others; repeatable
    #[arg(
        long,
        value_name = "NAME",
        env = "WARDROBE_PIN",
        hide_env = true,
        value_delimiter = ',',
        help_heading = "Adapters"
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub pin: Vec<String>,
    /// Folder from which clients may load adapters at run time [default: none: they can neither load nor unload any]
    #[arg(
        long,
        value_name = "DIR",
        env = "WARDROBE_ADAPTER_ROOT",
        hide_env = true,
        help_heading = "Adapters"
    )]
    pub adapter_root: Option<PathBuf>,
    /// Folder of uploaded files, fine-tuning jobs and batches, which opens those routes [default: none: they are closed]
    #[arg(
        long,
        value_name = "DIR",
        env = "WARDROBE_JOB_FOLDER",
        hide_env = true,
        help_heading = "Fine-tuning"
    )]
    pub job_folder: Option<PathBuf>,
    /// Threads that train [default: as many as compute]
    #[arg(
        long,
        value_name = "N",
        env = "WARDROBE_TRAINING_THREADS",
        hide_env = true,
        help_heading = "Fine-tuning"
    )]
    pub training_threads: Option<usize>,
    /// While requests run, the part of its time in which training rests: from 0 to below 1, or `serving-first`, to wait for
    /// them at every layer [default: serving-first]
    #[arg(
        long,
        value_name = "PART",
        env = "WARDROBE_TRAINING_REST",
        hide_env = true,
        help_heading = "Fine-tuning"
    )]
    pub training_rest: Option<TrainingRest>,
    /// Different adapters in one step [default: 16]
    #[arg(long, value_name = "N", env = "WARDROBE_MAX_SLOTS", hide_env = true, help_heading = "Adapters")]
    pub max_slots: Option<usize>,
    /// Memory for loaded adapters; beyond it the least used are read from disk again [default: 1GiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "WARDROBE_MAX_ADAPTERS_MEMORY",
        hide_env = true,
        help_heading = "Adapters"
    )]
    pub max_adapters_memory: Option<ByteSize>,
    /// Memory for adapters on the device, where --max-slots alone would let in more; on the CPU it is a part of
    /// --max-adapters-memory [default: no limit]
    #[arg(
        long,
        value_name = "SIZE",
        env = "WARDROBE_MAX_ADAPTERS_DEVICE_MEMORY",
        hide_env = true,
        help_heading = "Adapters"
    )]
    pub max_adapters_device_memory: Option<ByteSize>,
    /// Largest rank of an adapter [default: 256]
    #[arg(long, value_name = "N", env = "WARDROBE_MAX_RANK", hide_env = true, help_heading = "Adapters")]
    pub max_rank: Option<usize>,
    /// Precision of their factors: f16 halves what steps read, as-stored is exact, auto is f16 but beside weights or keys
    /// and values in f32 [default: auto]
    #[arg(
        long,
        value_name = "PRECISION",
        env = "WARDROBE_ADAPTER_PRECISION",
        hide_env = true,
        help_heading = "Adapters"
    )]
    pub adapter_precision: Option<Adapters>,
    /// Accept adapters that change nothing (all B factors zero) [default: false]
    #[arg(long, value_name = "BOOL", env = "WARDROBE_ALLOW_NOOP", hide_env = true, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", help_heading = "Adapters")]
    pub allow_noop: Option<bool>,

    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE", env = "WARDROBE_DEVICE", hide_env = true, help_heading = "Engine")]
    pub device: Option<Device>,
    /// Threads that compute [default: all that the machine has]
    #[arg(long, value_name = "N", env = "WARDROBE_THREADS", hide_env = true, help_heading = "Engine")]
    pub threads: Option<usize>,
    /// Precision of the weights: as-stored, f32 for comparisons, or fp8, on a GPU, which rounds floats to 8 bits [default:
    /// as-stored]
    #[arg(
        long,
        value_name = "PRECISION",
        env = "WARDROBE_WEIGHTS",
        hide_env = true,
        help_heading = "Engine"
    )]
    pub weights: Option<Weights>,
    /// On a GPU: what is computed beside a request changes no bit of its answer, at the price of speed [default: false]
    #[arg(long, value_name = "BOOL", env = "WARDROBE_DETERMINISTIC", hide_env = true, num_args = 0..=1,
        require_equals = true, default_missing_value = "true", help_heading = "Engine")]
    pub deterministic: Option<bool>,
    /// Memory for keys and values [default: 512MiB, on a GPU what is free]
    #[arg(long, value_name = "SIZE", env = "WARDROBE_KV_MEMORY", hide_env = true, help_heading = "Engine")]
    pub kv_memory: Option<ByteSize>,
    /// Element type of keys and values: f16, bf16 or f32 [default: f16, on a GPU bf16]
    #[arg(long, value_name = "TYPE", env = "WARDROBE_KV_DTYPE", hide_env = true, help_heading = "Engine")]
    pub kv_dtype: Option<KvDtype>,
    /// Longest context, prompt and answer together; beyond the model's for adapters with RoPE scaling [default: the model's]
    #[arg(
        long,
        value_name = "TOKENS",
        env = "WARDROBE_MAX_CONTEXT",
        hide_env = true,
        help_heading = "Engine"
    )]
    pub max_context: Option<usize>,
    /// Sequences that run at once [default: 64]
    #[arg(long, value_name = "N", env = "WARDROBE_MAX_NUM_SEQS", hide_env = true, help_heading = "Engine")]
    pub max_num_seqs: Option<usize>,
    /// Tokens computed in one step [default: 512]
    #[arg(
        long,
        value_name = "TOKENS",
        env = "WARDROBE_MAX_BATCH_TOKENS",
        hide_env = true,
        help_heading = "Engine"
    )]
    pub max_batch_tokens: Option<usize>,
    /// Whether requests share the keys and values of common beginnings [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        env = "WARDROBE_PREFIX_CACHE",
        hide_env = true,
        help_heading = "Engine"
    )]
    pub prefix_cache: Option<bool>,

    /// Whether the next tokens of a text are drafted from itself and verified in one step: auto where it pays, off, or always.
    /// Answers stay the same [default: auto]
    #[arg(long, value_name = "WHEN", env = "WARDROBE_SPECULATION", hide_env = true, help_heading = "Engine")]
    pub speculation: Option<Drafts>,

    /// What to log to stderr: error, warn, info, debug, or wardrobe_engine=debug,warn [default: info]
    #[arg(long, value_name = "FILTER", env = "WARDROBE_LOG", hide_env = true)]
    pub log: Option<String>,
    /// OpenTelemetry collector that gets the requests' spans, such as http://localhost:4318/v1/traces (needs a build
    /// with the feature `otlp`) [default: none]
    #[arg(long, value_name = "URL", env = "WARDROBE_OTLP_ENDPOINT", hide_env = true)]
    pub otlp_endpoint: Option<String>,
}

impl Settings {
    /// These, and where they say nothing, those.
    pub fn or(self, other: Self) -> Self {
        fn list<T>(ours: Vec<T>, theirs: Vec<T>) -> Vec<T> {
            if ours.is_empty() { theirs } else { ours }
        }
        Self {
            model: self.model.or(other.model),
            load_format: self.load_format.or(other.load_format),
            model_config: self.model_config.or(other.model_config),
            dummy_dtype: self.dummy_dtype.or(other.dummy_dtype),
            dummy_seed: self.dummy_seed.or(other.dummy_seed),
            served_model_name: list(self.served_model_name, other.served_model_name),
            host: self.host.or(other.host),
            port: self.port.or(other.port),
            api_key_file: self.api_key_file.or(other.api_key_file),
            cors_origin: list(self.cors_origin, other.cors_origin),
            max_body: self.max_body.or(other.max_body),
            queue: self.queue.or(other.queue),
            request_timeout_seconds: self.request_timeout_seconds.or(other.request_timeout_seconds),
            drain_seconds: self.drain_seconds.or(other.drain_seconds),
            drain_delay_seconds: self.drain_delay_seconds.or(other.drain_delay_seconds),
            adapter: list(self.adapter, other.adapter),
            pin: list(self.pin, other.pin),
            adapter_root: self.adapter_root.or(other.adapter_root),
            job_folder: self.job_folder.or(other.job_folder),
            training_threads: self.training_threads.or(other.training_threads),
            training_rest: self.training_rest.or(other.training_rest),
            max_slots: self.max_slots.or(other.max_slots),
            max_adapters_memory: self.max_adapters_memory.or(other.max_adapters_memory),
            max_adapters_device_memory: self.max_adapters_device_memory.or(other.max_adapters_device_memory),
            max_rank: self.max_rank.or(other.max_rank),
            adapter_precision: self.adapter_precision.or(other.adapter_precision),
            allow_noop: self.allow_noop.or(other.allow_noop),
            device: self.device.or(other.device),
            threads: self.threads.or(other.threads),
            deterministic: self.deterministic.or(other.deterministic),
            weights: self.weights.or(other.weights),
            kv_memory: self.kv_memory.or(other.kv_memory),
            kv_dtype: self.kv_dtype.or(other.kv_dtype),
            max_context: self.max_context.or(other.max_context),
            max_num_seqs: self.max_num_seqs.or(other.max_num_seqs),
            max_batch_tokens: self.max_batch_tokens.or(other.max_batch_tokens),
            prefix_cache: self.prefix_cache.or(other.prefix_cache),
            speculation: self.speculation.or(other.speculation),
            log: self.log.or(other.log),
            otlp_endpoint: self.otlp_endpoint.or(other.otlp_endpoint),
        }
    }

    /// What holds where nothing is set. The help texts name the same values.
    pub fn defaults() -> Self {
        let engine = EngineOptions::default();
        let config = EngineConfig::default();
        let server = ServerConfig::default();
        Self {
            load_format: Some(LoadFormat::default()),
            host: Some("127.0.0.1".to_owned()),
            port: Some(8000),
            max_body: Some(ByteSize(server.body_limit_bytes as u64)),
            queue: Some(config.queue_capacity),
            drain_seconds: Some(server.drain_limit.as_secs()),
            drain_delay_seconds: Some(server.drain_delay.as_secs()),
            max_slots: Some(engine.num_slots),
            max_adapters_memory: Some(ByteSize(config.max_adapters_host_bytes)),
            max_rank: Some(engine.lora.max_rank),
            adapter_precision: Some(Adapters(engine.lora.precision)),
            allow_noop: Some(engine.lora.allow_noop),
            device: Some(Device::default()),
            deterministic: Some(false),
            weights: Some(Weights::default()),
            kv_memory: engine.kv_bytes.map(|bytes| ByteSize(bytes as u64)),
            kv_dtype: engine.kv_dtype.map(KvDtype),
            max_num_seqs: Some(config.max_num_sequences),
            max_batch_tokens: Some(config.max_batch_tokens),
            prefix_cache: Some(config.prefix_cache),
            speculation: Some(Drafts(config.speculation)),
            log: Some("info".to_owned()),
            ..Self::default()
        }
    }

    /// Lays `self`, from command line and environment, over the file's settings and the defaults.
    pub fn resolve(self, file: Self) -> Self {
        self.or(file).or(Self::defaults())
    }
}

#[cfg(test)]
mod tests;
