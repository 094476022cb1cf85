//! Loads PEFT adapters for a model: off the engine thread, whole, checked.

use std::sync::Arc;

use wardrobe_device::{Ctx, CtxConfig, Device, StepLimits};
use wardrobe_formats::peft::PeftLimits;
use wardrobe_formats::{FormatError, PeftAdapter};
use wardrobe_models::{Decoder, LoraAdapter, LoraLimits, ModelError};

use crate::adapter::{AdapterLoader, AdapterSource, PreparedAdapter};
use crate::error::AdapterError;
use crate::ids::Digest;

/// Reads adapter folders, or a [`PeftAdapter`] handed over in process.
#[derive(Debug)]
pub struct PeftLoader {
    device: Arc<dyn Device>,
    model: Arc<dyn Decoder>,
    files: PeftLimits,
    limits: LoraLimits,
}

impl PeftLoader {
    /// A loader for adapters of `model` on `device`.
    pub fn new(device: Arc<dyn Device>, model: Arc<dyn Decoder>, limits: LoraLimits) -> Self {
        let files = PeftLimits { max_rank: limits.max_rank, ..PeftLimits::default() };
        PeftLoader { device, model, files, limits }
    }
}

impl AdapterLoader for PeftLoader {
    fn load(&self, source: &AdapterSource) -> Result<Arc<dyn PreparedAdapter>, AdapterError> {
        let read;
        let adapter = match source {
            AdapterSource::Path(path) => {
                read = PeftAdapter::open_within(path, &self.files).map_err(format_error)?;
                &read
            }
            AdapterSource::InProcess { label, payload } => payload
                .downcast_ref::<PeftAdapter>()
                .ok_or_else(|| AdapterError::Refused { reason: format!("{label} is not a PEFT adapter") })?,
        };
        // A context of its own, since the engine's belongs to the engine thread; it needs no scratch memory.
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(self.device.clone(), CtxConfig { arena_bytes: 0, step })
            .map_err(|e| AdapterError::Io { reason: e.to_string() })?;
        let lora = LoraAdapter::new(&mut ctx, self.model.as_ref(), adapter, &self.limits);
        Ok(Arc::new(PreparedLora(lora.map_err(model_error)?)))
    }
}

fn format_error(error: FormatError) -> AdapterError {
    match error {
        FormatError::NotFound { path, .. } => AdapterError::SourceNotFound { path },
        FormatError::Io { .. } => AdapterError::Io { reason: error.to_string() },
        _ => AdapterError::Refused { reason: error.to_string() },
    }
}

fn model_error(error: ModelError) -> AdapterError {
    match error {
        ModelError::Format(error) => format_error(error),
        _ => AdapterError::Refused { reason: error.to_string() },
    }
}

/// A LoRA adapter ready to be bound.
pub(super) struct PreparedLora(pub(super) LoraAdapter);

impl PreparedAdapter for PreparedLora {
    fn host_bytes(&self) -> u64 {
        self.0.size_bytes() as u64
    }

    fn digest(&self) -> Digest {
        *self.0.digest().as_bytes()
    }

    fn rank(&self) -> usize {
        self.0.max_rank()
    }

    fn num_modules(&self) -> usize {
        self.0.num_modules()
    }
}
