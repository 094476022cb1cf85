//! What can be wrong with a model or an adapter, by name.

use wardrobe_device::DeviceError;
use wardrobe_formats::{FormatError, StorageType};

/// Failure to load a model or to fit an adapter to one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file is malformed.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No file in `arch` knows this architecture.
    #[error("architecture {name:?} is not supported; supported are {supported}")]
    UnknownArchitecture {
        /// As the model's configuration names it.
        name: String,
        /// Comma-separated.
        supported: String,
    },
    /// The configuration asks for something that the architecture does not have.
    #[error("{what} is not supported for {architecture}")]
    Unsupported {
        /// The architecture.
        architecture: String,
        /// What was asked for.
        what: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {name} has shape {actual:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// From the configuration.
        expected: Vec<usize>,
        /// In the file.
        actual: Vec<usize>,
    },
    /// The operating system refused a thread, or one ended by itself.
    #[error("cannot compute the model's digest: {reason}")]
    Thread {
        /// What happened.
        reason: String,
    },
    /// A tensor's elements are no weights.
    #[error("tensor {name} is {storage}, which weights are not stored as")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its storage type.
        storage: StorageType,
    },
    /// A tensor cannot be made up in a type of blocks.
    #[error("tensor {name}: rows of {cols} numbers are no whole blocks of {block_size}, which {storage} has")]
    RowBlocks {
        /// The tensor.
        name: String,
        /// The type.
        storage: StorageType,
        /// Numbers in a block of it.
        block_size: usize,
        /// Numbers in a row of the tensor.
        cols: usize,
    },
    /// The file has a tensor that the architecture has no place for.
    #[error("tensor {name} belongs to nothing in a {architecture}")]
    UnusedTensor {
        /// The tensor.
        name: String,
        /// The architecture.
        architecture: String,
    },
    /// An adapter does not fit the model.
    #[error("adapter {adapter}: {reason}")]
    Adapter {
        /// Where it came from.
        adapter: String,
        /// What does not fit, with the tensor or module at fault.
        reason: String,
    },
}

/// Result of this crate's functions.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;
