//! `GET /metrics` in OpenMetrics text, under the names that dashboards and adapter-aware routers of vLLM read.
//!
//! Gauges and counters are read from the engine's numbers when they are asked for; histograms are filled by watching it.
//! The watcher runs on the engine thread and only adds to buckets.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use wardrobe_batch::{BatchCounts, BatchStatus, JobStatus, StatusCounts};
use wardrobe_engine::{Engine, EngineObserver, RequestRecord, StepRecord};
use wardrobe_grammar::{Compiler, SpecOutcome};

use crate::error::{ApiError, Result};
use crate::jobs;
use crate::state::ServerState;

/// One HTTP answer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    method: String,
    route: String,
    status: u16,
}

/// Where a job is in its life.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct JobLabels {
    status: &'static str,
}

/// What became of a batch's requests.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// All metrics of a server.
pub(crate) struct Metrics {
    registry: Registry,
    http: Family<HttpLabels, Counter>,
    jobs: Family<JobLabels, Gauge>,
    batches: Family<JobLabels, Gauge>,
    batch_requests: Family<OutcomeLabels, Gauge>,
}

impl Metrics {
    pub fn new(engine: Engine, compiler: Arc<Compiler>, model_name: &str) -> Self {
        let mut registry = Registry::default();
        let http = Family::default();
        registry.register("http_requests", "Answers by route and status", http.clone());
        let jobs = Family::default();
        registry.register("wardrobe:fine_tuning_jobs", "Fine-tuning jobs by status", jobs.clone());
        let batches = Family::default();
        registry.register("wardrobe:batches", "Batches by status", batches.clone());
        let batch_requests = Family::default();
        let help = "Requests of all batches that are remembered";
        registry.register("wardrobe:batch_requests", help, batch_requests.clone());
        let labels =
            [("model_name".into(), model_name.to_owned().into()), ("engine".into(), "0".to_owned().into())];
        let of_engine = registry.sub_registry_with_labels(labels.into_iter());
        let histograms = Arc::new(Histograms::register(of_engine));
        engine.add_observer(histograms);
        of_engine.register_collector(Box::new(EngineNumbers { engine }));
        of_engine.register_collector(Box::new(GrammarNumbers { compiler }));
        Self { registry, http, jobs, batches, batch_requests }
    }

    fn set_jobs(&self, counts: StatusCounts) {
        for (status, count) in JobStatus::ALL.iter().zip(counts.jobs) {
            set(&self.jobs, &JobLabels { status: status.name() }, count);
        }
    }

    fn set_batches(&self, counts: &BatchCounts) {
        for (status, count) in BatchStatus::ALL.iter().zip(counts.batches) {
            set(&self.batches, &JobLabels { status: status.name() }, count);
        }
        for (outcome, count) in [("completed", counts.requests.completed), ("failed", counts.requests.failed)]
        {
            set(&self.batch_requests, &OutcomeLabels { outcome }, count);
        }
    }

    /// Counts an answer. Unknown paths count as one route, or clients could make up labels without end.
    pub fn count_response(&self, method: &Method, route: &str, status: StatusCode) {
        let route = if route.is_empty() { "unknown" } else { route };
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        let labels =
            HttpLabels { method: method.to_owned(), route: route.to_owned(), status: status.as_u16() };
        self.http.get_or_create(&labels).inc();
    }
}

fn set<L: Clone + std::hash::Hash + Eq>(family: &Family<L, Gauge>, labels: &L, count: u64) {
    family.get_or_create(labels).set(i64::try_from(count).unwrap_or(i64::MAX));
}

/// `GET /metrics`.
pub(crate) async fn scrape(State(state): State<Arc<ServerState>>) -> Result<Response> {
    if let Some(runner) = state.model.fine_tuning.clone() {
        let counts = move || Ok((runner.status_counts()?, runner.batch_counts()?));
        let (jobs, batches) = jobs::call(&state, counts).await?;
        state.metrics.set_jobs(jobs);
        state.metrics.set_batches(&batches);
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &state.metrics.registry)
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

const SECONDS: [f64; 22] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0, 640.0,
];
const TOKENS: [f64; 18] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0,
    50_000.0, 100_000.0, 200_000.0, 500_000.0,
];

/// Distributions, filled from the engine's records.
struct Histograms {
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    e2e_request_latency: Histogram,
    request_queue_time: Histogram,
    request_prefill_time: Histogram,
    request_decode_time: Histogram,
    request_inference_time: Histogram,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    iteration_tokens: Histogram,
}

impl Histograms {
    fn register(registry: &mut Registry) -> Self {
        let mut add = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::new(buckets.iter().copied());
            registry.register(name, help, histogram.clone());
            histogram
        };
        Self {
            time_to_first_token: add(
                "vllm:time_to_first_token_seconds",
                "Submission to first token",
                &SECONDS,
            ),
            inter_token_latency: add("vllm:inter_token_latency_seconds", "Time between tokens", &SECONDS),
            e2e_request_latency: add("vllm:e2e_request_latency_seconds", "Submission to end", &SECONDS),
            request_queue_time: add("vllm:request_queue_time_seconds", "Time in the queue", &SECONDS),
            request_prefill_time: add("vllm:request_prefill_time_seconds", "Time in the prompt", &SECONDS),
            request_decode_time: add("vllm:request_decode_time_seconds", "First token to last", &SECONDS),
            request_inference_time: add("vllm:request_inference_time_seconds", "Prompt and output", &SECONDS),
            request_prompt_tokens: add("vllm:request_prompt_tokens", "Tokens of a prompt", &TOKENS),
            request_generation_tokens: add("vllm:request_generation_tokens", "Tokens of an output", &TOKENS),
            iteration_tokens: add("vllm:iteration_tokens_total", "Tokens of a step", &TOKENS),
        }
    }
}

impl EngineObserver for Histograms {
    fn on_request_finished(&self, record: &RequestRecord) {
        let times = &record.timings;
        for (histogram, time) in [
            (&self.e2e_request_latency, times.total),
            (&self.request_queue_time, times.queue),
            (&self.request_prefill_time, times.prefill),
            (&self.request_decode_time, times.decode),
            (&self.request_inference_time, times.prefill.saturating_add(times.decode)),
        ] {
            histogram.observe(time.as_secs_f64());
        }
        self.request_prompt_tokens.observe(record.usage.prompt_tokens as f64);
        self.request_generation_tokens.observe(record.usage.completion_tokens as f64);
    }

    fn on_step(&self, record: &StepRecord) {
        self.iteration_tokens.observe(record.tokens as f64);
        for time in &record.inter_token {
            self.inter_token_latency.observe(time.as_secs_f64());
        }
        for time in &record.time_to_first_token {
            self.time_to_first_token.observe(time.as_secs_f64());
        }
    }
}

/// Gauges and counters, read when they are asked for.
struct EngineNumbers {
    engine: Engine,
}

impl fmt::Debug for EngineNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineNumbers")
    }
}

fn write_one(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Writes a metric of several label sets.
fn write_family<M: Metric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[(Vec<(&str, String)>, M)],
) -> fmt::Result {
    let Some((_, first)) = rows.first() else { return Ok(()) };
    let mut descriptor = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, metric) in rows {
        metric.encode(descriptor.encode_family(labels)?)?;
    }
    Ok(())
}

impl Collector for EngineNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let (stats, limits) = (self.engine.stats(), self.engine.limits());
        let gauges = [
            ("vllm:num_requests_running", "Sequences that run", stats.running_sequences as f64),
            ("vllm:num_requests_waiting", "Sequences that wait", stats.waiting_sequences as f64),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1", stats.kv_usage()),
        ];
        for (name, help, value) in gauges {
            write_one(encoder, name, help, &ConstGauge::new(value))?;
        }
        let counters = [
            ("vllm:prefix_cache_queries", "Prompt tokens looked up", stats.prefix_query_tokens),
            ("vllm:prefix_cache_hits", "Prompt tokens found", stats.prefix_hit_tokens),
            ("vllm:prompt_tokens", "Prompt tokens", stats.prompt_tokens),
            ("vllm:generation_tokens", "Sampled tokens", stats.generation_tokens),
            ("vllm:spec_decode_num_drafts", "Drafts of next tokens", stats.drafts),
            ("vllm:spec_decode_num_draft_tokens", "Tokens of drafts", stats.drafted_tokens),
            ("vllm:spec_decode_num_accepted_tokens", "Those that were right", stats.accepted_tokens),
            ("vllm:num_preemptions", "Sequences that lost their blocks", stats.preemptions),
        ];
        for (name, help, value) in counters {
            write_one(encoder, name, help, &ConstCounter::new(value))?;
        }
        let finished = [
            ("stop", stats.finished_stop),
            ("length", stats.finished_length),
            ("abort", stats.finished_cancelled),
            ("error", stats.finished_error),
        ]
        .map(|(reason, count)| (vec![("finished_reason", reason.to_owned())], ConstCounter::new(count)));
        write_family(encoder, "vllm:request_success", "Choices that ended", &finished)?;
        let cache = vec![
            ("block_size", limits.block_size_tokens.to_string()),
            ("num_gpu_blocks", limits.num_blocks.to_string()),
        ];
        write_family(encoder, "vllm:cache_config_info", "The KV cache", &[(cache, ConstGauge::new(1_i64))])?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64();
        let lora = vec![
            ("max_lora", limits.num_slots.to_string()),
            ("running_lora_adapters", stats.running_adapters.join(",")),
            ("waiting_lora_adapters", stats.waiting_adapters.join(",")),
        ];
        write_family(encoder, "vllm:lora_requests_info", "Adapters in use", &[(lora, ConstGauge::new(now))])?;
        let adapters: Vec<_> = (self.engine.adapters().into_iter())
            .map(|adapter| {
                let labels = vec![
                    ("adapter_name", adapter.name),
                    ("level", adapter.level.name().to_owned()),
                    ("pinned", adapter.pinned.to_string()),
                ];
                (labels, ConstGauge::new(1_i64))
            })
            .collect();
        write_family(encoder, "lora_adapter_loaded", "Loaded adapters", &adapters)
    }
}

/// What answers are held to: which engine computes the masks, and what is kept.
#[derive(Debug)]
struct GrammarNumbers {
    compiler: Arc<Compiler>,
}

impl Collector for GrammarNumbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let stats = self.compiler.stats();
        let by_outcome = |counts: [u64; 3]| {
            let row = |(outcome, count): (SpecOutcome, u64)| {
                (vec![("outcome", outcome.name().to_owned())], ConstCounter::new(count))
            };
            SpecOutcome::ALL.into_iter().zip(counts).map(row).collect::<Vec<_>>()
        };
        let asked = "Constraints that requests asked for: by the engine that holds them, or refused";
        write_family(encoder, "wardrobe:grammars_asked", asked, &by_outcome(stats.asked))?;
        let compiled = "Those that were compiled for it; the others were kept from before";
        write_family(encoder, "wardrobe:grammars_compiled", compiled, &by_outcome(stats.compiled))?;
        let seconds = ConstCounter::new(stats.compile_time.as_secs_f64());
        write_one(encoder, "wardrobe:grammar_compile_seconds", "Time that compiling took", &seconds)?;
        let kept = ConstGauge::new(stats.kept as u64);
        write_one(encoder, "wardrobe:grammars_kept", "Templates and refusals that are kept", &kept)?;
        let bytes = ConstGauge::new(stats.kept_bytes as u64);
        write_one(encoder, "wardrobe:grammars_kept_bytes", "Bytes of what they were made of", &bytes)
    }
}
