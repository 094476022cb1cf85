//! Trains on given tokens and tells the speed and the loss of each step: the counterpart of `peft_train.py`, whose
//! `--dump-tokens` and `--dump-adapter` it takes, so that both run the very same steps.
//!
//! `cargo run --release --example train_speed -- MODEL TOKENS.json [ADAPTER] [THREADS]`

use wardrobe::data::{Dataset, Example};
use wardrobe::train::{BatchSize, Event, Observer, OptimizerConfig, Schedule};
use wardrobe::{Model, ModelOptions, PeftAdapter, TokenId, TrainConfig};

/// Steps that are not counted.
const WARM_UP: usize = 2;

#[derive(Default)]
struct Steps {
    losses: Vec<f64>,
    tokens_per_second: Vec<f64>,
}

impl Observer for Steps {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step(m) = event {
            self.losses.push(m.loss);
            self.tokens_per_second.push((m.tokens as f64) / m.seconds);
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, rest @ ..] = args.as_slice() else {
        return Err("usage: train_speed MODEL TOKENS.json [ADAPTER|-] [THREADS]".into());
    };
    let steps: Vec<Vec<Vec<u32>>> = serde_json::from_slice(&std::fs::read(tokens)?)?;
    let batch = steps.first().map_or(1, Vec::len);
    let examples = steps.iter().flatten().map(|ids| Example {
        token_ids: ids.iter().map(|&id| TokenId(id)).collect(),
        loss: (0..ids.len()).map(|i| i > 0).collect(),
    });
    let examples: Vec<Example> = examples.collect();
    let model = Model::open(model, &ModelOptions::default())?;
    let config = TrainConfig {
        batch_size: BatchSize::Examples(batch),
        optimizer: OptimizerConfig { schedule: Schedule::Constant, warmup_ratio: 0.0, ..Default::default() },
        threads: rest.get(1).map(|n| n.parse()).transpose()?,
        ..TrainConfig::default()
    };
    let mut trainer = wardrobe::train::Trainer::new(model.device().clone(), model.decoder().clone(), config)?
        .in_given_order();
    if let Some(adapter) = rest.first().filter(|a| *a != "-") {
        trainer = trainer.with_start(PeftAdapter::open(adapter.as_ref())?);
    }
    let mut shown = Steps::default();
    trainer.train(&Dataset::from_examples(examples)?, None, &mut shown)?;
    let mut speeds = shown.tokens_per_second.get(WARM_UP..).unwrap_or(&[]).to_vec();
    speeds.sort_by(f64::total_cmp);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown").trim();
    println!(
        "{}",
        serde_json::json!({
            "device": model.device().name(),
            "tokens_per_second": speeds.get(speeds.len() / 2),
            "peak_rss": peak,
            "losses": shown.losses,
        })
    );
    Ok(())
}
