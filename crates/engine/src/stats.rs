//! What the engine tells about itself: a snapshot to poll, and records to observe.
//!
//! Gauges and counters are read from [`EngineStats`]; histograms are made by an [`EngineObserver`] from the
//! records it is given. Records come from the engine thread: an observer must be quick and must not wait.

use std::time::Duration;

use crate::ids::GenerationId;
use crate::response::{Timings, Usage};

/// A snapshot, as of the end of the last step. Gauges first, then counters since the start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// `None` while all is well; the reason once the device is lost.
    pub unhealthy: Option<String>,
    /// Sequences that run.
    pub running_sequences: usize,
    /// Sequences that wait, those preempted included.
    pub waiting_sequences: usize,
    /// Requests submitted and not ended.
    pub open_requests: usize,
    /// Blocks in the pool.
    pub total_blocks: usize,
    /// Blocks that sequences hold.
    pub used_blocks: usize,
    /// Blocks that hold a reusable prefix and belong to no sequence.
    pub cached_blocks: usize,
    /// Adapter slots.
    pub total_slots: usize,
    /// Slots that hold an adapter.
    pub bound_slots: usize,
    /// Bytes on the device of the adapters in slots.
    pub bound_bytes: u64,
    /// Slots whose adapter has running sequences.
    pub leased_slots: usize,
    /// Names of adapters with running sequences, sorted, each once.
    pub running_adapters: Vec<String>,
    /// Names of adapters with waiting sequences, sorted, each once.
    pub waiting_adapters: Vec<String>,
    /// Tokens of the last step.
    pub last_step_tokens: usize,
    /// Steps run.
    pub steps: u64,
    /// Tokens of prompts looked up in the prefix cache.
    pub prefix_query_tokens: u64,
    /// Tokens of prompts found in the prefix cache.
    pub prefix_hit_tokens: u64,
    /// Times that a running sequence lost its blocks.
    pub preemptions: u64,
    /// Tokens of the prompts of requests that started.
    pub prompt_tokens: u64,
    /// Tokens sampled.
    pub generation_tokens: u64,
    /// Times that a sequence's next tokens were drafted.
    pub drafts: u64,
    /// Tokens of drafts that were computed.
    pub drafted_tokens: u64,
    /// Those of them that were right.
    pub accepted_tokens: u64,
    /// Choices that ended by a stop string, stop token or end token.
    pub finished_stop: u64,
    /// Choices that ended by length.
    pub finished_length: u64,
    /// Choices that were cancelled.
    pub finished_cancelled: u64,
    /// Choices that ended by an error.
    pub finished_error: u64,
}

impl EngineStats {
    /// Share of the pool that sequences hold, `0..=1`.
    pub fn kv_usage(&self) -> f64 {
        if self.total_blocks == 0 { 0.0 } else { self.used_blocks as f64 / self.total_blocks as f64 }
    }
}

/// One request that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestRecord {
    /// The caller's id, if it gave one.
    pub request_id: Option<String>,
    /// Name of the adapter, if one answered.
    pub adapter: Option<String>,
    /// Its generation.
    pub generation: Option<GenerationId>,
    /// Tokens used.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// [`crate::Finish::name`] of every choice.
    pub finished: Vec<&'static str>,
    /// Times that its sequences were preempted.
    pub preemptions: u32,
}

/// One step that has run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Tokens computed.
    pub tokens: usize,
    /// Those of them that belong to chunks of more than one token, drafts not counted, or that did not sample.
    pub prefill_tokens: usize,
    /// Those of them that were drafted.
    pub drafted_tokens: usize,
    /// Sequences in the step.
    pub sequences: usize,
    /// How long the executor took.
    pub execute: Duration,
    /// For every sequence that sampled and had sampled before: the time since.
    pub inter_token: Vec<Duration>,
    /// For every request whose first token was sampled: the time since submission.
    pub time_to_first_token: Vec<Duration>,
}

/// Watches the engine, for metrics. Called from the engine thread, so it must be quick; a panic in it ends the engine.
pub trait EngineObserver: Send + Sync {
    /// A request has ended, whichever way.
    fn on_request_finished(&self, record: &RequestRecord);
    /// A step has run.
    fn on_step(&self, record: &StepRecord);
}
