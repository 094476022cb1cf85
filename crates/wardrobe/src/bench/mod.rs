//! Measuring: a model in this process, or an endpoint anywhere, beside what the machine itself can do.
//!
//! [`run_local`] times single steps (prefill, decode, mixed adapters) on an executor, then a whole engine under
//! load through its public interface, how fast adapters are swapped, and what all of it took in memory. [`run_remote`]
//! puts the same load on an endpoint that speaks OpenAI's API. Both give a [`Report`], which prints as a table
//! ([`Report::to_text`]), as JSON (serde), and as a web page with plots ([`Report::to_html`]).
//!
//! State: none beyond the run; adapters are written to a temporary folder that is removed at the end.
//! Deliberately not here: judging. Nothing passes or fails by its time.

pub(crate) mod adapters;
mod html;
mod load;
mod local;
mod machine;
mod memory;
mod remote;
mod report;
mod sse;
pub(crate) mod stats;
pub(crate) mod steps;
mod svg;
mod text;

pub use local::{LocalOptions, Parts, run_local};
pub use machine::{Limits, Machine, Read};
pub use remote::{RemoteOptions, run_remote};
pub use report::{
    AdapterResult, MemoryResult, ModelInfo, Report, ServingResult, StartupResult, StepResult, Target,
};
pub use stats::{Percentiles, percentile};

/// The load on an engine or an endpoint: each of some workers asks again as soon as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Tokens of each prompt; all prompts differ.
    pub prompt_tokens: usize,
    /// Tokens of each answer; ends do not end it.
    pub max_tokens: usize,
    /// Requests at once, one measurement each.
    pub concurrency: Vec<usize>,
    /// Requests that each worker makes in a measurement.
    pub requests_per_worker: usize,
}

impl Default for Load {
    fn default() -> Self {
        Load { prompt_tokens: 512, max_tokens: 64, concurrency: vec![1, 8, 32], requests_per_worker: 2 }
    }
}
