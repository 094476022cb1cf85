//! Settings that cannot hold, told by the name of the flag: before anything is pulled, opened or allocated.

use std::ops::RangeInclusive;

use wardrobe_engine::EngineError;
use wardrobe_server::ServerError;

use super::failure::{UsageError, with_hint};
use super::open;
use super::output;
use super::settings::Settings;
use super::values::ByteSize;

/// The flag behind a field of the library's settings.
fn flag(field: &str) -> Option<&'static str> {
    Some(match field {
        "max_num_sequences" => "--max-num-seqs",
        "max_batch_tokens" => "--max-batch-tokens",
        "queue_capacity" => "--queue",
        "kv_memory" | "executor.num_blocks" => "--kv-memory",
        "executor.max_context_tokens" => "--max-context",
        "executor.num_slots" => "--max-slots",
        "max_adapters_device_bytes" => "--max-adapters-device-memory",
        "body_limit_bytes" => "--max-body",
        "request_timeout" => "--request-timeout-seconds",
        "api_keys" => "--api-key-file",
        "cors_allow_origins" => "--cors-origin",
        "model_id" => "--served-model-name",
        _ => return None,
    })
}

/// The engine's refusal, in the words of the command line where it has some.
pub fn engine_error(error: wardrobe::Error) -> anyhow::Error {
    match &error {
        wardrobe::Error::Engine(EngineError::Config { field, reason }) => match flag(field) {
            Some(flag) => UsageError(format!("{flag} {reason}")).into(),
            None => error.into(),
        },
        wardrobe::Error::Memory { .. } => with_hint(error, "lower --kv-memory or --max-batch-tokens"),
        _ => error.into(),
    }
}

/// The endpoint's refusal, likewise.
pub fn server_error(error: ServerError) -> anyhow::Error {
    match &error {
        ServerError::Config { field, reason } => match flag(field) {
            Some(flag) => UsageError(format!("{flag} {reason}")).into(),
            None => error.into(),
        },
        _ => error.into(),
    }
}

/// Refuses memory for keys and values that this machine does not have.
pub fn kv_memory(size: ByteSize) -> anyhow::Result<()> {
    match wardrobe::available_memory_bytes() {
        Some(free) if size.0 > free => {
            let (size, free) = (output::size(size.0), output::size(free));
            Err(UsageError(format!("--kv-memory is {size}, more than the {free} that are free")).into())
        }
        _ => Ok(()),
    }
}

/// Checks all of `serve`'s settings, and its adapters against the names of the base model.
pub fn settings(settings: &Settings, base_names: &[String]) -> anyhow::Result<()> {
    let usage = |text: String| anyhow::Error::from(UsageError(text));
    let engine = settings.engine_options();
    engine.config.validate().map_err(|error| engine_error(error.into()))?;
    settings.server_config(Vec::new()).validate().map_err(server_error)?;
    within("--max-context", settings.max_context, 1..=u32::MAX as usize)?;
    within("--threads", settings.threads, 1..=4096)?;
    within("--max-slots", settings.max_slots, 0..=1 << 16)?;
    if settings.max_rank == Some(0) {
        let error = usage("--max-rank is 0, which refuses every adapter".to_owned());
        return Err(with_hint(error, "--max-slots 0 serves the base model alone"));
    }
    if let Some(size) = settings.kv_memory {
        kv_memory(size)?;
    }
    if let Some(root) = &settings.adapter_root {
        std::fs::read_dir(root)
            .map_err(|error| usage(format!("--adapter-root {}: {error}", root.display())))?;
    }
    adapters(settings, base_names)
}

fn within(flag: &str, value: Option<usize>, range: RangeInclusive<usize>) -> anyhow::Result<()> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (min, max) = range.into_inner();
            Err(UsageError(format!("{flag} is {value}, not in {min}..={max}")).into())
        }
        _ => Ok(()),
    }
}

fn adapters(settings: &Settings, base_names: &[String]) -> anyhow::Result<()> {
    let adapters = &settings.adapter;
    for (idx, spec) in adapters.iter().enumerate() {
        if adapters.iter().take(idx).any(|other| other.name == spec.name) {
            return Err(UsageError(format!("two adapters have the name {}", spec.name)).into());
        }
        if base_names.contains(&spec.name) {
            let error = UsageError(format!("--adapter {spec}: {} is a name of the base model", spec.name));
            let hint = "give the adapter another name, or the base model with --served-model-name";
            return Err(with_hint(error, hint));
        }
        open::check_adapter(&spec.path)?;
    }
    match settings.pin.iter().find(|name| !adapters.iter().any(|spec| spec.name == **name)) {
        Some(name) => Err(UsageError(format!("--pin {name}: no --adapter has this name")).into()),
        None => Ok(()),
    }
}
