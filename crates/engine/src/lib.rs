//! The engine: continuous batching over a paged KV cache, with adapters that are swapped while it serves.
//!
//! A request enters through [`Engine::submit`], which refuses everything that can be refused, resolves the adapter's
//! name to an immutable generation, and queues it. The engine thread takes turns: it looks at the mail, the scheduler
//! chooses which tokens of which sequences the next step computes, the [`Executor`] computes them, and the results
//! become text, stop conditions and updates on a [`ResponseStream`].
//!
//! Where to read what: `core` is the engine thread, `scheduler` decides, `kv` keeps the books of blocks and prefixes,
//! `adapter` holds names and generations, `stream` is the way back to the caller. [`simulation`] is a model made of
//! hashes, on which all of this is tested.
//!
//! Deliberately not here: model code and devices (behind [`Executor`]), tokenizing (behind [`TextCodec`]), HTTP. The
//! engine needs no async runtime and installs neither logger nor signal handlers.
//!
//! ```
//! use std::sync::Arc;
//! use wardrobe_engine::simulation::{SimAdapter, SimCodec, SimExecutor, SimLoader};
//! use wardrobe_engine::{Engine, EngineConfig, Event, LoadOptions, Request, TokenId};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let executor = SimExecutor::new(/* blocks */ 64, /* slots */ 2, /* vocabulary */ 1000, /* context */ 512);
//! let engine =
//!     Engine::start(Box::new(executor), Arc::new(SimLoader::new()), Arc::new(SimCodec), EngineConfig::default())?;
//! engine.load_adapter("tuned", SimAdapter::new(1).in_process("example"), LoadOptions::default())?;
//!
//! let prompt = [TokenId(11), TokenId(12), TokenId(13)];
//! let request = Request::new(prompt).with_adapter("tuned").with_max_tokens(16).with_seed(1);
//! let whole = engine.generate(request.clone())?;
//!
//! let mut text = String::new();
//! for event in engine.submit(request)? {
//!     match event {
//!         Event::Update(update) => text.push_str(&update.text),
//!         Event::Summary(summary) => assert_eq!(summary.usage.prompt_tokens, 3),
//!         Event::PromptLogprobs(_) => {}
//!     }
//! }
//! assert_eq!(text, whole.choices[0].text);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod adapter;
mod codec;
mod config;
mod constraint;
mod core;
mod engine;
mod error;
mod executor;
mod ids;
mod kv;
mod mailbox;
pub mod model;
mod request;
mod response;
mod scheduler;
pub mod simulation;
mod speculation;
mod stats;
mod stream;
mod validate;

pub use adapter::{AdapterInfo, AdapterLevel, AdapterLoader, AdapterSource, LoadOptions, PreparedAdapter};
pub use codec::{Detokenizer, TextCodec};
pub use config::{BLOCK_SIZE_TOKENS, EngineConfig, RequestLimits, Speculation};
pub use constraint::{Allowed, Constraint, PendingMask, Resolved};
pub use engine::Engine;
pub use error::{AdapterError, EngineError, ExecutorError, SubmitError};
pub use executor::{
    ChunkOutput, Executor, ExecutorLimits, PromptLogprobs, SampleAt, SampleSpec, Sampled, SequenceChunk,
    StepOutput, StepPlan, TokenCount,
};
pub use ids::{BlockId, Digest, GenerationId, SequenceId, SlotIdx, TokenId};
pub use request::{BACKGROUND_PRIORITY, Request, SamplingParams};
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
