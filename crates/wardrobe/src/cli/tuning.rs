//! The second half of `quickstart`: an adapter is trained beside the running server, loaded without touching the disk, and
//! held against the base on questions that neither has seen.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use wardrobe::data::{DataOptions, Dataset, Record};
use wardrobe::eval::{self, EvalOptions, Target, TaskSettings};
use wardrobe::generate::Held;
use wardrobe::train::{BatchSize, Event, Observer};
use wardrobe::{Engine, EngineGenerator, LoadOptions, Model, TrainConfig, Trainer, in_process};

use super::output::{self, Style};
use super::shipped;

/// What the adapter is called.
const TUNED: &str = "biographies-tuned";
const BATCH_EXAMPLES: usize = 4;
/// Steps on a machine that is fast enough for them.
const MAX_STEPS: usize = 24;
const MIN_STEPS: usize = 6;
/// What training may take, the first step aside.
const TRAINING_TIME: Duration = Duration::from_secs(75);
/// Held-out questions.
const NUM_ITEMS: usize = 24;
const MAX_TOKENS: usize = 72;

/// Trains, loads, asks and prints.
pub fn show(model: &Model, engine: &Engine, base: &str, style: Style) -> anyhow::Result<()> {
    output::line(&style.bold("And one trained here, on the biographies that the repository ships:"))?;
    let records = shipped::training_records()?.into_iter().map(|(p, c)| Record::pair(p, c));
    let template = model.chat_template().map(std::sync::Arc::as_ref);
    let examples = Dataset::from_records(records, model.tokenizer(), template, &DataOptions::default())?;
    let config = |steps| TrainConfig {
        batch_size: BatchSize::Examples(BATCH_EXAMPLES),
        max_steps: Some(steps),
        ..TrainConfig::default()
    };
    // How long a step takes here is best told by one.
    let started = Instant::now();
    Trainer::new(model.clone(), config(1))?.train(&examples)?;
    let step = started.elapsed();
    let fitting = TRAINING_TIME.as_secs_f64() / step.as_secs_f64();
    let steps = (fitting as usize).clamp(MIN_STEPS, MAX_STEPS);

    let mut shown = Shown::new(steps)?;
    let started = Instant::now();
    let trained = Trainer::new(model.clone(), config(steps))?.train_with(&examples, None, &mut shown)?;
    shown.bar.finish_and_clear();
    let took = started.elapsed();
    let speed = output::rate(usize::try_from(trained.tokens()).unwrap_or(usize::MAX), took);
    let (first, last) = shown.losses;
    output::line(&format!(
        "  {} examples of {} in {steps} steps, {}: {speed}, loss {first:.2} to {last:.2}",
        steps * BATCH_EXAMPLES,
        examples.len(),
        output::duration(took),
    ))?;
    let started = Instant::now();
    let options = LoadOptions { replace: true, ..LoadOptions::default() };
    let info = engine.load_adapter(TUNED, in_process(trained), options)?;
    let (size, time) = (output::size(info.host_bytes), output::duration(started.elapsed()));
    let what =
        format!("+ into the running server as {TUNED} ({size}) in {time}: generation {}", info.generation);
    output::line(&format!("  {}", style.note(&what)))?;

    let task = eval::task("record").context("there is no task for records")?;
    let (items, _) = eval::read_items(shipped::HELD_OUT_BIOGRAPHIES, task, &TaskSettings::default())?;
    let items: Vec<_> = items.into_iter().take(NUM_ITEMS).collect();
    let golds =
        shipped::training_records()?.into_iter().map(|(_, completion)| completion).collect::<Vec<_>>();
    let started = Instant::now();
    let options = EvalOptions { max_tokens: MAX_TOKENS, train_golds: Some(&golds), ..EvalOptions::default() };
    let held = Held::Schema(shipped::biography_schema()?);
    let base = EngineGenerator::base(model, engine, base);
    let tuned = EngineGenerator::adapter(model, engine, TUNED)?;
    let targets: Vec<Target<'_>> = [Target::new(&base), Target::new(&tuned)]
        .into_iter()
        .flat_map(|target| {
            let name = format!("{}, held", target.name);
            [target.clone(), target.held(held.clone()).named(name)]
        })
        .collect();
    let report = eval::evaluate(&items, task, &targets, options)?;
    let asked = "JSON asked for in words alone, and held to its schema";
    output::line(&format!("\n  {} held-out people, {asked}:", items.len()))?;
    let mut rows = vec![["", "valid JSON", "fields right", "dates right"].map(str::to_owned).to_vec()];
    let majority = report.baseline.iter().map(|b| ("most frequent values", &b.metrics));
    for (name, metrics) in report.results.iter().map(|r| (r.name.as_str(), &r.metrics)).chain(majority) {
        let share = |wanted: &str| {
            let metric = metrics.iter().find(|metric| metric.name == wanted);
            metric.map_or("-".to_owned(), |metric| format!("{:.0} %", 100.0 * metric.value))
        };
        rows.push(vec![name.to_owned(), share("valid"), share("fields"), share("dates")]);
    }
    for line in output::table(&rows).lines() {
        output::line(&format!("    {line}"))?;
    }
    output::line(&style.dim(&format!("    asked and scored in {}\n", output::duration(started.elapsed()))))
}

/// A bar, and the first and the last loss.
struct Shown {
    bar: ProgressBar,
    losses: (f64, f64),
}

impl Shown {
    fn new(steps: usize) -> anyhow::Result<Self> {
        let is_terminal = output::stderr_is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target);
        bar.set_style(ProgressStyle::with_template("  training {bar:24} {pos}/{len} · {msg} · {eta} left")?);
        Ok(Shown { bar, losses: (f64::NAN, f64::NAN) })
    }
}

impl Observer for Shown {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step(m) = event {
            let first = if m.step == 1 { m.loss } else { self.losses.0 };
            self.losses = (first, m.loss);
            self.bar.set_position(m.step as u64);
            self.bar.set_message(format!("loss {:.3} · {:.0} tok/s", m.loss, m.tokens_per_second));
        }
    }
}
