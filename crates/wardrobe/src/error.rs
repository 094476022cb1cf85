//! The facade's error: which part refused, and why.

/// Failure to open a model, a device or an engine, or to compute with them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file on disk.
    #[error(transparent)]
    Format(#[from] wardrobe_formats::FormatError),
    /// The model, or an adapter for it.
    #[error(transparent)]
    Model(#[from] wardrobe_models::ModelError),
    /// The device.
    #[error(transparent)]
    Device(#[from] wardrobe_device::DeviceError),
    /// The tokenizer.
    #[error("tokenizer: {0}")]
    Text(#[from] wardrobe_text::TextError),
    /// The chat template.
    #[error("chat template: {0}")]
    Template(#[from] wardrobe_text::TemplateError),
    /// The engine's settings.
    #[error(transparent)]
    Engine(#[from] wardrobe_engine::EngineError),
    /// A request was refused.
    #[error(transparent)]
    Submit(#[from] wardrobe_engine::SubmitError),
    /// An adapter was refused.
    #[error(transparent)]
    Adapter(#[from] wardrobe_engine::AdapterError),
    /// What an answer was to be held to.
    #[error(transparent)]
    Grammar(#[from] wardrobe_grammar::GrammarError),
    /// An answer is no value of the type.
    #[error("the answer {text:?} is no value of the type: {reason}")]
    Answer {
        /// The answer.
        text: String,
        /// Why.
        reason: String,
    },
    /// A candle tensor.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The engine would take more memory than is free.
    #[error(
        "the engine would take {kv_bytes} bytes for keys and values and {arena_bytes} of scratch memory; \
         {available_bytes} bytes are free"
    )]
    Memory {
        /// Keys and values.
        kv_bytes: u64,
        /// Intermediate results of one step.
        arena_bytes: u64,
        /// What the system says is free.
        available_bytes: u64,
    },
    /// Weights that would be made up take more memory than is free.
    #[error(
        "the weights would take {weight_bytes} bytes, and {staging_bytes} more while they are made; \
         {available_bytes} bytes are free"
    )]
    WeightMemory {
        /// The weights.
        weight_bytes: u64,
        /// Host memory beside them while they are made.
        staging_bytes: u64,
        /// What is free, on the device if it has memory of its own and that is too little, else on this machine.
        available_bytes: u64,
    },
    /// The disk has no room for what would be written.
    #[error("{}: {needed_bytes} bytes would be written, {free_bytes} are free", path.display())]
    DiskSpace {
        /// Folder of the file system.
        path: std::path::PathBuf,
        /// What would be written.
        needed_bytes: u64,
        /// What the system says is free.
        free_bytes: u64,
    },
    /// Training.
    #[error(transparent)]
    Train(Box<wardrobe_train::TrainError>),
    /// Data for training.
    #[error(transparent)]
    Data(Box<wardrobe_data::DataError>),
    /// A setting.
    #[error("{0}")]
    Setting(String),
}

/// Result of the facade's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<wardrobe_data::DataError> for Error {
    fn from(error: wardrobe_data::DataError) -> Self {
        Error::Data(Box::new(error))
    }
}

impl From<wardrobe_train::TrainError> for Error {
    fn from(error: wardrobe_train::TrainError) -> Self {
        Error::Train(Box::new(error))
    }
}
