//! Every way in which the engine refuses or fails, with the thing at fault named.
//!
//! There is one enum for each thing that a caller can ask: start ([`EngineError`]), submit
//! ([`SubmitError`]), change an adapter ([`AdapterError`]); and one for what the device side answers
//! ([`ExecutorError`]). An expected refusal is data: the HTTP status is decided elsewhere, from the variant.

use std::path::PathBuf;
use std::time::Duration;

use crate::ids::{GenerationId, SequenceId};

/// Why an engine could not start or stop.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum EngineError {
    /// A field of [`crate::EngineConfig`] (or a limit of the executor) is out of its range.
    #[error("engine configuration: `{field}` {reason}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused a thread.
    #[error("cannot start the thread `{name}`: {reason}")]
    Thread {
        /// Name of the thread.
        name: &'static str,
        /// The system's reason.
        reason: String,
    },
}

/// Why a request was not accepted. Nothing of it was started.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum SubmitError {
    /// A field has a value outside its range.
    #[error("`{field}` {reason}")]
    InvalidField {
        /// Name of the field, as users know it (`top_p`, `max_tokens`, …).
        field: &'static str,
        /// What is wrong with the value, with the value and the bound.
        reason: String,
    },
    /// Prompt and requested output do not fit the context.
    #[error(
        "this model's context is {max_context_tokens} tokens, but {requested_tokens} were requested \
         ({prompt_tokens} in the prompt, {output_tokens} in the output)"
    )]
    ContextExceeded {
        /// Prompt and output together.
        requested_tokens: usize,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of output that were asked for (at least 1 when the request left it open).
        output_tokens: usize,
        /// The most that one sequence may have: the smallest of the model's context, the adapter's, and
        /// the KV cache.
        max_context_tokens: usize,
    },
    /// No adapter of this name is loaded.
    #[error("no adapter is loaded under the name `{name}`")]
    UnknownAdapter {
        /// The name that was asked for.
        name: String,
    },
    /// The name is loaded, but with another generation than the request expects.
    #[error("adapter `{name}` is at generation {actual}, not at the expected {expected}")]
    GenerationMismatch {
        /// Name of the adapter.
        name: String,
        /// Generation that the request expects.
        expected: GenerationId,
        /// Generation that new requests get.
        actual: GenerationId,
    },
    /// The queue is full.
    #[error("the queue is full ({open} answers wait or run); try again in {} s", retry_after.as_secs().max(1))]
    Overloaded {
        /// Sequences that wait or run.
        open: usize,
        /// When a retry has a fair chance, from the rate at which requests finish.
        retry_after: Duration,
    },
    /// The engine takes no more requests because it stops.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The device was lost; the engine answers nothing any more.
    #[error("the engine is unhealthy: {reason}")]
    Unhealthy {
        /// What happened.
        reason: String,
    },
}

impl SubmitError {
    /// Name of the request's field at fault, where one is.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::InvalidField { field, .. } => Some(field),
            Self::ContextExceeded { .. } => Some("max_tokens"),
            Self::UnknownAdapter { .. } => Some("adapter"),
            Self::GenerationMismatch { .. } => Some("expected_generation"),
            _ => None,
        }
    }
}

/// Why an adapter could not be loaded, replaced, pinned or unloaded. What was there before is unchanged.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum AdapterError {
    /// The name is empty, too long, or has control characters.
    #[error("adapter name {name:?} {reason}")]
    InvalidName {
        /// The name, shortened.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name is taken and the load did not ask to replace.
    #[error("adapter `{name}` is already loaded (generation {generation}); ask to replace it")]
    AlreadyLoaded {
        /// Name of the adapter.
        name: String,
        /// The generation that is loaded.
        generation: GenerationId,
    },
    /// No adapter of this name is loaded.
    #[error("no adapter is loaded under the name `{name}`")]
    NotLoaded {
        /// The name.
        name: String,
    },
    /// Compare-and-swap failed: the name is not at the expected generation.
    #[error("adapter `{name}` is not at the expected generation {expected}, but {}",
            actual.map_or("not loaded".to_owned(), |a| format!("at {a}")))]
    GenerationMismatch {
        /// Name of the adapter.
        name: String,
        /// Generation that the caller expects.
        expected: GenerationId,
        /// Generation that is there, if any.
        actual: Option<GenerationId>,
    },
    /// The source does not exist.
    #[error("adapter source {} does not exist", path.display())]
    SourceNotFound {
        /// The path.
        path: PathBuf,
    },
    /// The source was read and refused: malformed, for another model, a rank over the limit, NaN, …
    #[error("adapter refused: {reason}")]
    Refused {
        /// The reason, naming file, tensor, expected and actual.
        reason: String,
    },
    /// The source could not be read.
    #[error("adapter could not be read: {reason}")]
    Io {
        /// The system's reason, with the path.
        reason: String,
    },
    /// The content changed on disk since this generation was loaded; it has to be loaded anew.
    #[error("adapter `{name}` (generation {generation}) changed on disk since it was loaded; load it again")]
    ContentChanged {
        /// Name of the adapter.
        name: String,
        /// Generation that was to be read again.
        generation: GenerationId,
    },
    /// The host tier has no room, even after dropping all that may be dropped.
    #[error(
        "adapter needs {needed_bytes} bytes of host memory; {available_bytes} of {limit_bytes} can be freed"
    )]
    HostMemory {
        /// Bytes that this adapter needs.
        needed_bytes: u64,
        /// Bytes that are free or could be freed.
        available_bytes: u64,
        /// The limit of the host tier.
        limit_bytes: u64,
    },
    /// The adapter is larger than what the device may hold of adapters that are not pinned.
    #[error(
        "adapter `{name}` needs {needed_bytes} bytes on the device; pinned adapters leave {available_bytes} of \
         {limit_bytes}"
    )]
    DeviceMemory {
        /// Name of the adapter.
        name: String,
        /// Bytes that this adapter needs.
        needed_bytes: u64,
        /// Bytes that pinned adapters leave.
        available_bytes: u64,
        /// The limit of the device tier.
        limit_bytes: u64,
    },
    /// Pinning this adapter would leave another one no room on the device for ever.
    #[error(
        "pinning adapter `{name}` would leave the others {left_bytes} of {limit_bytes} bytes on the device, and \
         `{other}` (generation {generation}) needs {needed_bytes}"
    )]
    PinnedMemory {
        /// Name of the adapter that was to be pinned.
        name: String,
        /// Bytes that pinned adapters would leave.
        left_bytes: u64,
        /// The limit of the device tier.
        limit_bytes: u64,
        /// Name of the adapter that would not fit; the same name, if requests still hold what is to be replaced.
        other: String,
        /// The other's generation.
        generation: GenerationId,
        /// Bytes that the other needs.
        needed_bytes: u64,
    },
    /// Pinning this adapter would leave no slot for the others.
    #[error("at most {limit} adapters can be pinned with {num_slots} slots")]
    TooManyPinned {
        /// The most that may be pinned.
        limit: usize,
        /// Slots of the device.
        num_slots: usize,
    },
    /// There are as many adapters as the configuration allows.
    #[error("at most {limit} adapters can be loaded")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The engine was started without adapter slots.
    #[error("this engine has no adapter slots")]
    NoSlots,
    /// The engine stops or has lost its device.
    #[error("the engine is not running: {reason}")]
    NotRunning {
        /// Why.
        reason: String,
    },
}

/// What the device side answers when a step fails.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum ExecutorError {
    /// One sequence is at fault; none of the step's results count, and the step can be run without it.
    #[error("sequence {sequence}: {reason}")]
    Sequence {
        /// The sequence at fault.
        sequence: SequenceId,
        /// What is wrong.
        reason: String,
    },
    /// An adapter could not be put into its slot; everything else goes on.
    #[error("adapter slot: {reason}")]
    Slot {
        /// What is wrong.
        reason: String,
    },
    /// The device is lost: nothing can be computed any more.
    #[error("device lost: {reason}")]
    DeviceLost {
        /// What happened.
        reason: String,
    },
}
