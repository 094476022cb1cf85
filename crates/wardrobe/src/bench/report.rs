//! What a run found.

use serde::Serialize;

use super::machine::{Limits, Machine};
use super::stats::Percentiles;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Target {
    /// A model in this process.
    Local(ModelInfo),
    /// An endpoint.
    Remote {
        /// Where it is.
        url: String,
        /// The models that were asked in turn.
        models: Vec<String>,
    },
}

/// A model, as far as its size decides its speed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ModelInfo {
    /// Its file or folder; the configuration of a model whose weights are made up.
    pub path: String,
    /// Made-up weights: of which type and seed.
    pub dummy: Option<String>,
    /// Bytes of the weights' files; of made-up weights, of what the files would hold.
    pub file_bytes: u64,
    /// Bytes of the weights in memory.
    pub weight_bytes: usize,
    /// The device and its settings.
    pub device: String,
}

/// From nothing to the first token, with the model on disk (or in the system's cache of it).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StartupResult {
    /// Reading and repacking the model.
    pub open_ms: f64,
    /// Starting the engine.
    pub engine_ms: f64,
    /// From submitting a prompt of 16 tokens to its first token.
    pub first_token_ms: f64,
    /// All of it.
    pub total_ms: f64,
}

/// One kind of step, timed alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StepResult {
    /// A stable name, such as `prefill_512` or `decode_32`.
    pub name: String,
    /// Tokens that one run computes.
    pub num_tokens: usize,
    /// Median time of a run.
    pub median_ms: f64,
    /// Shortest time of a run.
    pub best_ms: f64,
    /// Tokens a second, by the median.
    pub tokens_per_second: f64,
    /// int8 operations of a run: the linear layers' (attention comes on top).
    pub int8_ops: f64,
    /// Bytes of weights that a run must read.
    pub weight_bytes: f64,
    /// Share of the machine's int8 rate that was reached.
    pub int8_share: Option<f64>,
    /// Share of the bandwidth of memory that was reached; above 1 where weights stay in a cache.
    pub memory_share: Option<f64>,
    /// Share of the bandwidth of a buffer that may stay in a last-level cache.
    pub cached_share: Option<f64>,
}

/// What adapters cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AdapterResult {
    /// Rank of the adapters, which adapt every linear layer.
    pub rank: usize,
    /// How many were used at once.
    pub num_adapters: usize,
    /// Sequences over which they were spread.
    pub num_sequences: usize,
    /// Bytes of all of them, as they are held.
    pub adapter_bytes: u64,
    /// Bytes of all of them as they were given: in f32, as PEFT saves them.
    pub given_bytes: u64,
    /// f32 operations that they add to a step.
    pub f32_ops: f64,
    /// Time that they add to a decode step: the median of differences to the step before it.
    pub added_ms: f64,
    /// The least they could add: the larger of reading them from memory, as they are held, and computing them.
    pub least_ms: Option<f64>,
    /// `added_ms / least_ms`.
    pub added_over_least: Option<f64>,
    /// The same with the bytes that they were given in.
    pub added_over_least_as_given: Option<f64>,
    /// Throughput of decoding with adapters in the slots that no sequence uses, over that without any.
    pub unused_ratio: f64,
    /// Putting an adapter that is in memory into an occupied slot.
    pub replace_resident_ms: Percentiles,
    /// Replacing a name by an adapter that is handed over in process, checks and copies included.
    pub replace_in_process_ms: Percentiles,
    /// Replacing a name by an adapter on disk (in the system's cache), checks included.
    pub load_from_disk_ms: Percentiles,
}

/// The engine or endpoint under load.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ServingResult {
    /// Requests at once.
    pub concurrency: usize,
    /// Adapters that the requests took in turn; 0 is the base model alone.
    pub num_adapters: usize,
    /// Requests answered.
    pub num_requests: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Tokens of all answers.
    pub output_tokens: usize,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Tokens of answers a second.
    pub output_tokens_per_second: f64,
    /// Tokens of prompts and answers a second.
    pub total_tokens_per_second: f64,
    /// From a request to the first part of its answer.
    pub time_to_first_token_ms: Percentiles,
    /// Between parts of an answer: tokens, unless a slow reader lets them gather.
    pub inter_token_latency_ms: Percentiles,
}

/// What the process took in memory, up to and with the load, without what the benchmark itself took afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryResult {
    /// The most that was resident.
    pub peak_bytes: u64,
    /// As [`ModelInfo::file_bytes`].
    pub file_bytes: u64,
    /// The limit for keys and values.
    pub kv_limit_bytes: u64,
    /// The most of it that was in use at the end of a load. What was never used is not resident, and would make
    /// [`MemoryResult::rest_bytes`] too small.
    pub kv_touched_bytes: u64,
    /// Loaded adapters.
    pub adapter_bytes: u64,
    /// The peak less file and keys and values that were touched; negative if less is resident.
    pub rest_bytes: i64,
}

/// What a run found. Parts that were not measured are absent or empty.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: String,
    /// What was measured.
    pub target: Target,
    /// Where this program ran.
    pub machine: Machine,
    /// What that machine can do.
    pub limits: Option<Limits>,
    /// From nothing to the first token.
    pub startup: Option<StartupResult>,
    /// Steps, each alone.
    pub steps: Vec<StepResult>,
    /// What adapters cost.
    pub adapters: Option<AdapterResult>,
    /// Under load.
    pub serving: Vec<ServingResult>,
    /// Memory.
    pub memory: Option<MemoryResult>,
}

impl Report {
    /// An empty report.
    pub(super) fn new(target: Target, machine: Machine) -> Self {
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            target,
            machine,
            limits: None,
            startup: None,
            steps: Vec::new(),
            adapters: None,
            serving: Vec::new(),
            memory: None,
        }
    }

    /// Sets the limits, and every result's share of them.
    pub(super) fn set_limits(&mut self, limits: Limits) {
        for step in &mut self.steps {
            let seconds = step.median_ms / 1e3;
            let share = |amount: f64, limit: f64| {
                (amount > 0.0 && seconds > 0.0 && limit > 0.0).then(|| amount / seconds / limit)
            };
            step.int8_share = share(step.int8_ops, limits.int8_ops_per_second);
            step.memory_share = share(step.weight_bytes, limits.memory_bytes_per_second());
            step.cached_share = share(step.weight_bytes, limits.cached_bytes_per_second());
        }
        let (bandwidth, f32_rate) = (limits.memory_bytes_per_second(), limits.f32_ops_per_second);
        if let Some(adapters) = self.adapters.as_mut().filter(|_| bandwidth > 0.0 && f32_rate > 0.0) {
            let least_ms = |bytes: u64| 1e3 * (bytes as f64 / bandwidth).max(adapters.f32_ops / f32_rate);
            let ratio = |least: f64| (least > 0.0).then(|| adapters.added_ms / least);
            let (held, given) = (least_ms(adapters.adapter_bytes), least_ms(adapters.given_bytes));
            (adapters.added_over_least, adapters.added_over_least_as_given) = (ratio(held), ratio(given));
            adapters.least_ms = Some(held);
        }
        self.limits = Some(limits);
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Read;
    use super::*;

    #[test]
    fn shares_are_of_the_limits() {
        let mut report = Report::new(Target::Local(ModelInfo::default()), Machine::default());
        report.steps.push(StepResult {
            median_ms: 10.0,
            int8_ops: 1e9,
            weight_bytes: 1e8,
            ..StepResult::default()
        });
        report.adapters = Some(AdapterResult {
            adapter_bytes: 200_000_000,
            given_bytes: 400_000_000,
            f32_ops: 1e9,
            added_ms: 15.0,
            ..Default::default()
        });
        report.set_limits(Limits {
            device: String::new(),
            read: vec![
                Read { buffer_bytes: 1, bytes_per_second: 40e9 },
                Read { buffer_bytes: 2, bytes_per_second: 20e9 },
            ],
            int8_ops_per_second: 1e12,
            f32_ops_per_second: 2e11,
        });
        let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-9;
        assert!(close(report.steps[0].int8_share, 0.1));
        assert!(close(report.steps[0].memory_share, 0.5));
        assert!(close(report.steps[0].cached_share, 0.25));
        // 200 MB at 20 GB/s are 10 ms; 1 GFLOP at 200 GFLOP/s are 5 ms.
        let adapters = report.adapters.unwrap();
        assert!(close(adapters.least_ms, 10.0) && close(adapters.added_over_least, 1.5));
        assert!(close(adapters.added_over_least_as_given, 0.75));
    }
}
