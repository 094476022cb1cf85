//! The engine: continuous batching over a paged KV cache, with adapters that are swapped while it serves.
#![forbid(unsafe_code)]

mod adapter;
mod codec;
mod config;
mod core;
mod engine;
mod error;
mod executor;
mod ids;
mod kv;
mod mailbox;
mod request;
mod response;
mod scheduler;
pub mod simulation;
mod stats;
mod stream;
mod validate;

pub use adapter::{AdapterInfo, AdapterLevel, AdapterLoader, AdapterSource, LoadOptions, PreparedAdapter};
pub use codec::{Detokenizer, TextCodec};
pub use config::{BLOCK_SIZE_TOKENS, EngineConfig, RequestLimits};
pub use engine::Engine;
pub use error::{AdapterError, EngineError, ExecutorError, SubmitError};
pub use executor::{
    ChunkOutput, Executor, ExecutorLimits, PromptLogprobs, SampleSpec, Sampled, SequenceChunk, StepOutput,
    StepPlan, TokenCount,
};
pub use ids::{BlockId, Digest, GenerationId, RequestId, SequenceId, SlotIdx, TokenId};
pub use request::{Request, SamplingParams};
pub use response::{
    Choice, Completion, Event, Finish, StopCause, Summary, Timings, TokenLogprobs, TopLogprob, Update, Usage,
};
pub use stats::{EngineObserver, EngineStats, RequestRecord, StepRecord};
pub use stream::ResponseStream;

/// The message of a panic, for an error.
fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}
