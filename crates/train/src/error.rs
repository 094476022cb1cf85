//! What can go wrong in training.

use std::path::PathBuf;

/// Failure to train.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting.
    #[error("{field}: {reason}")]
    Config {
        /// Its name.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The examples.
    #[error("the training data: {0}")]
    Data(String),
    /// What was asked for takes more memory than there is.
    #[error("training would take {needed_bytes} bytes, {limit_bytes} are allowed: {advice}")]
    Memory {
        /// What it would take.
        needed_bytes: u64,
        /// The limit.
        limit_bytes: u64,
        /// What would make it fit.
        advice: String,
    },
    /// A checkpoint does not belong to this run, or is damaged.
    #[error("the checkpoint {path}: {reason}")]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// Why it cannot be used.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The loss, or a gradient, is not a number.
    #[error("step {step}: the {what} is not a finite number; a lower learning rate may help")]
    NotFinite {
        /// The optimizer step.
        step: usize,
        /// `loss` or `gradient`.
        what: &'static str,
    },
    /// Somebody asked for the end.
    #[error("cancelled at step {step}")]
    Cancelled {
        /// Steps that were done.
        step: usize,
    },
    /// A worker's thread panicked.
    #[error("a worker of the training run panicked")]
    Worker,
    /// The device.
    #[error(transparent)]
    Device(#[from] wardrobe_device::DeviceError),
    /// A file of the adapter.
    #[error(transparent)]
    Format(#[from] wardrobe_formats::FormatError),
    /// The model.
    #[error(transparent)]
    Model(#[from] wardrobe_models::ModelError),
}

impl TrainError {
    pub(crate) fn config(field: &'static str, reason: impl Into<String>) -> Self {
        TrainError::Config { field, reason: reason.into() }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| TrainError::Io { path, source }
    }
}

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, TrainError>;
