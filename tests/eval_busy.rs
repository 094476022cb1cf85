//! While an evaluation runs, the engine computes: tokenizing, asking, waiting and scoring go on beside it.
#![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

#[allow(dead_code, reason = "only its path is needed")]
#[path = "support/smollm2.rs"]
mod smollm2;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use wardrobe::eval::{EvalOptions, Target, TaskSettings, evaluate, read_items, task};
use wardrobe::{EngineConfig, EngineGenerator, EngineOptions, Model, ModelOptions};
use wardrobe_engine::{EngineObserver, RequestRecord, StepRecord};

/// Time in which the executor ran, and steps.
#[derive(Default)]
struct Busy {
    nanos: AtomicU64,
    num_steps: AtomicU64,
}

impl EngineObserver for Busy {
    fn on_request_finished(&self, _: &RequestRecord) {}

    fn on_step(&self, record: &StepRecord) {
        self.nanos.fetch_add(u64::try_from(record.execute.as_nanos()).unwrap(), Ordering::Relaxed);
        self.num_steps.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "takes minutes, and measures time: for a machine that does nothing else"]
fn the_engine_is_busy_for_nine_tenths_of_an_evaluation_of_short_items() {
    let name = "the_engine_is_busy_for_nine_tenths_of_an_evaluation_of_short_items";
    let Some(path) = smollm2::path(name) else { return };
    let num_items: usize = std::env::var("WARDROBE_EVAL_ITEMS").map_or(1000, |num| num.parse().unwrap());
    let model = Model::open(&path, &ModelOptions::default()).unwrap();
    let mut options = EngineOptions::default();
    options.config.max_num_sequences = EngineConfig::default().max_num_sequences;
    let engine = model.engine(&options).unwrap();
    let busy = Arc::new(Busy::default());
    engine.add_observer(busy.clone());
    let generator = EngineGenerator::base(&model, &engine, "base");
    let (text, settings) = (task("exact-match").unwrap(), TaskSettings::default());
    let lines: String = (0..num_items)
        .map(|at| {
            let prompt = format!("{} plus {} is", at % 37, at % 91);
            serde_json::json!({"prompt": prompt, "completion": (at % 37 + at % 91).to_string()}).to_string()
                + "\n"
        })
        .collect();
    let (items, _) = read_items(lines.as_bytes(), text, &settings).unwrap();
    for max_tokens in [1, 8] {
        busy.nanos.store(0, Ordering::Relaxed);
        busy.num_steps.store(0, Ordering::Relaxed);
        let started = Instant::now();
        let options = EvalOptions { max_tokens, ..EvalOptions::default() };
        let report = evaluate(&items, text, &[Target::new(&generator)], options).unwrap();
        let wall = started.elapsed().as_secs_f64();
        let share = busy.nanos.load(Ordering::Relaxed) as f64 / 1e9 / wall;
        let result = &report.results[0];
        assert_eq!(result.num_scored, num_items);
        println!(
            "{num_items} items of at most {max_tokens} tokens: {wall:.2} s, {} prompt ({} cached) and {} answer tokens in {} \
             steps, the engine busy {:.1} % of the time",
            result.prompt_tokens,
            result.cached_tokens,
            result.completion_tokens,
            busy.num_steps.load(Ordering::Relaxed),
            100.0 * share
        );
        assert!(share >= 0.9, "{share}");
    }
}
