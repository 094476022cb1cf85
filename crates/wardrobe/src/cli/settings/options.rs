//! What the settings mean to the model, the engine and the endpoint.

use std::time::Duration;

use wardrobe::{CpuOptions, EngineConfig, EngineOptions, LoraOptions, ModelOptions};
use wardrobe_server::ServerConfig;

use super::Settings;
use crate::cli::dummy::{Asked, Chosen};
use crate::cli::values::{ByteSize, Weights};

/// Connections beside those whose requests run or wait: for probes, metrics and adapters.
const SPARE_CONNECTIONS: usize = 64;

impl Settings {
    /// Which model to serve, `None` if none is named.
    pub fn choose(&self) -> anyhow::Result<Option<Chosen>> {
        Asked {
            model: self.model.as_deref(),
            format: self.load_format.unwrap_or_default(),
            config: self.model_config.as_deref(),
            dtype: self.dummy_dtype,
            seed: self.dummy_seed,
        }
        .choose()
    }

    /// How to open the model.
    pub fn model_options(&self) -> ModelOptions {
        ModelOptions {
            device: self.device.unwrap_or_default().0,
            cpu: CpuOptions { threads: self.threads, ..Default::default() },
            deterministic: self.deterministic.unwrap_or_default(),
            fp8: self.weights == Some(Weights::Fp8),
            precision: self.weights.unwrap_or_default().precision(),
        }
    }

    /// How to run the engine.
    pub fn engine_options(&self) -> EngineOptions {
        let base = EngineOptions::default();
        let config = EngineConfig::default();
        EngineOptions {
            config: EngineConfig {
                max_num_sequences: self.max_num_seqs.unwrap_or(config.max_num_sequences),
                max_batch_tokens: self.max_batch_tokens.unwrap_or(config.max_batch_tokens),
                queue_capacity: self.queue.unwrap_or(config.queue_capacity),
                prefix_cache: self.prefix_cache.unwrap_or(config.prefix_cache),
                speculation: self.speculation.map_or(config.speculation, |drafts| drafts.0),
                max_adapters_host_bytes: self
                    .max_adapters_memory
                    .map_or(config.max_adapters_host_bytes, |s| s.0),
                max_adapters_device_bytes: self.max_adapters_device_memory.map(|s| s.0),
                ..config
            },
            kv_bytes: self.kv_memory.map(ByteSize::to_usize).or(base.kv_bytes),
            kv_dtype: self.kv_dtype.map(|dtype| dtype.0).or(base.kv_dtype),
            num_slots: self.max_slots.unwrap_or(base.num_slots),
            max_context_tokens: self.max_context,
            lora: LoraOptions {
                max_rank: self.max_rank.unwrap_or(base.lora.max_rank),
                allow_noop: self.allow_noop.unwrap_or(base.lora.allow_noop),
                precision: self.adapter_precision.unwrap_or_default().0,
            },
        }
    }

    /// How to run the endpoint.
    pub fn server_config(&self, api_keys: Vec<String>) -> ServerConfig {
        let base = ServerConfig::default();
        let engine = self.engine_options().config;
        // What the engine would take, the endpoint lets in.
        let concurrent = engine.queue_capacity.saturating_add(engine.max_num_sequences);
        let body_limit_bytes = self.max_body.map_or(base.body_limit_bytes, ByteSize::to_usize);
        ServerConfig {
            api_keys,
            max_concurrent_requests: concurrent,
            max_connections: base.max_connections.max(concurrent.saturating_add(SPARE_CONNECTIONS)),
            body_limit_bytes,
            total_body_bytes: base.total_body_bytes.max(body_limit_bytes.saturating_mul(2)),
            adapter_root: self.adapter_root.clone(),
            request_timeout: self.request_timeout_seconds.map(Duration::from_secs),
            drain_limit: self.drain_seconds.map_or(base.drain_limit, Duration::from_secs),
            drain_delay: self.drain_delay_seconds.map_or(base.drain_delay, Duration::from_secs),
            cors_allow_origins: self.cors_origin.clone(),
            ..base
        }
    }
}
