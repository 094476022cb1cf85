//! `train`: a LoRA adapter of a model, from a file of examples.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use wardrobe::data::Dataset;
use wardrobe::train::{
    BatchSize, ContextExtension, EarlyStop, Event, LoraConfig, Observer, OptimizerConfig, Plan, Schedule,
    StepMetrics, TrainError,
};
use wardrobe::{Error, TrainConfig, Trainer};

use super::data::{self, EncodeArgs, ReadArgs};
use super::failure::{UsageError, with_hint};
use super::open::{self, ComputeArgs};
use super::output::{self, Style};
use super::values::ByteSize;
use super::{log, signals};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArgs {
    /// A short name, a hub repository, a folder or a .gguf file
    #[arg(value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    encode: EncodeArgs,
    /// Where the adapter goes [default: the file's name and -lora]
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace an adapter that is there
    #[arg(long)]
    force: bool,
    /// Folder of checkpoints and metrics; the same command goes on from it [default: DIR.run]
    #[arg(long, value_name = "DIR")]
    run_folder: Option<PathBuf>,
    /// Begin anew: remove what the run's folder holds
    #[arg(long)]
    restart: bool,
    /// Say what the run will take, and stop
    #[arg(long)]
    dry_run: bool,
    /// Examples to evaluate on, in a file of the same form
    #[arg(long, value_name = "FILE")]
    eval_data: Option<PathBuf>,
    /// Take so many of the examples to evaluate on, chosen by the seed
    #[arg(long, value_name = "N", conflicts_with = "eval_data")]
    eval_size: Option<usize>,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    steps: StepArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Adapter")]
struct LoraArgs {
    /// Rank of every update
    #[arg(long, value_name = "N", default_value_t = 16)]
    rank: usize,
    /// The update is scaled by alpha / rank [default: twice the rank]
    #[arg(long, value_name = "ALPHA")]
    alpha: Option<f64>,
    /// Part of a module's input that is left out of its update while training
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    dropout: f32,
    /// Modules, such as q_proj,v_proj; all-linear takes all but the head [default: all-linear; of a model with experts,
    /// attention's alone]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    target_modules: Vec<String>,
    /// Scale by alpha / sqrt(rank)
    #[arg(long)]
    rslora: bool,
    /// Train magnitudes too (DoRA)
    #[arg(long)]
    dora: bool,
    /// JSON schema that goes with the adapter: its answers are held to it wherever Wardrobe serves it
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct StepArgs {
    /// Passes over the examples
    #[arg(long, value_name = "N", default_value_t = 3)]
    epochs: usize,
    /// End after so many steps
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
    /// Examples of a step, or max: as many as the memory holds
    #[arg(long, value_name = "N", default_value = "8", value_parser = batch_size)]
    batch_size: BatchSize,
    /// Batches whose gradients make one step
    #[arg(long, value_name = "N", default_value_t = 1)]
    gradient_accumulation: usize,
    /// Largest learning rate
    #[arg(long, value_name = "LR", default_value_t = 1e-3)]
    learning_rate: f64,
    /// How the learning rate goes down: linear, cosine or constant
    #[arg(long, value_name = "NAME", default_value = "cosine", value_parser = schedule)]
    schedule: Schedule,
    /// Steps of warm-up, as a part of all
    #[arg(long, value_name = "PART", default_value_t = 0.03)]
    warmup_ratio: f64,
    /// Steps of warm-up
    #[arg(long, value_name = "N")]
    warmup_steps: Option<usize>,
    /// Decoupled weight decay
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    weight_decay: f64,
    /// Longest gradient; 0 leaves gradients as they are
    #[arg(long, value_name = "NORM", default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Of order, parameters and dropout
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Context of the run in tokens, or auto: the longest example's
    #[arg(long, value_name = "TOKENS", default_value = "auto", value_parser = context)]
    context: Context,
    /// For a context longer than the model's: linear, llama3 or yarn
    #[arg(long, value_name = "KIND", value_parser = extension)]
    context_extension: Option<ContextExtension>,
    /// Steps between evaluations [default: an epoch]
    #[arg(long, value_name = "N")]
    eval_steps: Option<usize>,
    /// End after so many evaluations that were no better than the best
    #[arg(long, value_name = "N")]
    early_stop: Option<usize>,
    /// Checkpoints over the run
    #[arg(long, value_name = "N", default_value_t = 1)]
    n_checkpoints: usize,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", conflicts_with = "n_checkpoints")]
    save_steps: Option<usize>,
    /// Checkpoints that are kept, besides the best
    #[arg(long, value_name = "N", default_value_t = 2)]
    save_total_limit: usize,
    /// Memory for training besides the model [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,
}

const EXAMPLES: &str = "\
Ctrl-C ends the run after a checkpoint; the same command goes on from there, to the same adapter, bit for bit.
training.html in the run's folder shows the loss while it runs.

Examples:
  wardrobe train smollm2-135m datasets/biographies/train.jsonl --output biographies
  wardrobe train smollm2-135m train.csv --eval-size 50 --early-stop 3 --epochs 10 --batch-size max
  wardrobe serve smollm2-135m --adapter biographies=biographies";

/// A context as it is written.
#[derive(Debug, Clone, Copy)]
struct Context(Option<usize>);

fn context(text: &str) -> Result<Context, String> {
    match text {
        "auto" => Ok(Context(None)),
        n => n.parse().map(|n| Context(Some(n))).map_err(|_| format!("{n:?} is neither auto nor a number")),
    }
}

fn batch_size(text: &str) -> Result<BatchSize, String> {
    match text {
        "max" => Ok(BatchSize::Max),
        n => n.parse().map(BatchSize::Examples).map_err(|_| format!("{n:?} is neither max nor a number")),
    }
}

fn schedule(text: &str) -> Result<Schedule, String> {
    match text {
        "linear" => Ok(Schedule::Linear),
        "cosine" => Ok(Schedule::Cosine),
        "constant" => Ok(Schedule::Constant),
        _ => Err(format!("{text:?} is none of linear, cosine, constant")),
    }
}

fn extension(text: &str) -> Result<ContextExtension, String> {
    match text {
        "linear" => Ok(ContextExtension::Linear),
        "llama3" => Ok(ContextExtension::Llama3),
        "yarn" => Ok(ContextExtension::Yarn),
        _ => Err(format!("{text:?} is none of linear, llama3, yarn")),
    }
}

impl TrainArgs {
    fn config(&self) -> TrainConfig {
        let (lora, steps) = (&self.lora, &self.steps);
        TrainConfig {
            lora: LoraConfig {
                rank: lora.rank,
                alpha: lora.alpha.unwrap_or(2.0 * lora.rank as f64),
                dropout: lora.dropout,
                target_modules: lora.target_modules.clone(),
                use_rslora: lora.rslora,
                use_dora: lora.dora,
            },
            optimizer: OptimizerConfig {
                learning_rate: steps.learning_rate,
                schedule: steps.schedule,
                warmup_ratio: steps.warmup_ratio,
                warmup_steps: steps.warmup_steps,
                weight_decay: steps.weight_decay,
                max_grad_norm: (steps.max_grad_norm != 0.0).then_some(steps.max_grad_norm),
                ..OptimizerConfig::default()
            },
            batch_size: steps.batch_size,
            gradient_accumulation: steps.gradient_accumulation,
            epochs: steps.epochs,
            max_steps: steps.max_steps,
            context_tokens: steps.context.0,
            context_extension: steps.context_extension,
            seed: steps.seed,
            eval_steps: steps.eval_steps,
            early_stop: steps.early_stop.map(|patience| EarlyStop { patience, min_delta: 0.0 }),
            n_checkpoints: steps.n_checkpoints,
            save_steps: steps.save_steps,
            save_total_limit: steps.save_total_limit,
            threads: self.compute.threads,
            memory_limit_bytes: steps.memory_limit.map(|size| size.0),
            ..TrainConfig::default()
        }
    }

    fn output(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| {
            let stem = self.read.file.file_stem().unwrap_or_default().to_string_lossy();
            PathBuf::from(format!("{stem}-lora"))
        })
    }

    fn run_folder(&self, output: &Path) -> PathBuf {
        self.run_folder.clone().unwrap_or_else(|| {
            let mut name = output.file_name().unwrap_or_default().to_owned();
            name.push(".run");
            output.with_file_name(name)
        })
    }

    fn datasets(&self, model: &wardrobe::Model) -> anyhow::Result<(Dataset, Option<Dataset>)> {
        let options = self.encode.options(&self.read);
        let load = |path: &Path| {
            let template = model.chat_template().map(Arc::as_ref);
            Dataset::load(path, model.tokenizer(), template, &options).map_err(data::hinted)
        };
        let train = load(&self.read.file)?;
        output::note(&format!("{}: {}", self.read.file.display(), train.counts()));
        if let Some(path) = &self.eval_data {
            let eval = load(path)?;
            output::note(&format!("{}: {}", path.display(), eval.counts()));
            return Ok((train, Some(eval)));
        }
        match self.eval_size {
            Some(size) => {
                let (train, eval) = train.split(size, self.steps.seed).map_err(data::hinted)?;
                Ok((train, Some(eval)))
            }
            None => Ok((train, None)),
        }
    }
}

/// Trains, and writes the adapter.
pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    let config = args.config();
    config.check().map_err(|error| UsageError(error.to_string()))?;
    if args.steps.early_stop.is_some() && args.eval_data.is_none() && args.eval_size.is_none() {
        return Err(UsageError("--early-stop needs --eval-data or --eval-size".to_owned()).into());
    }
    let output_dir = args.output();
    if !args.force && !args.dry_run && output_dir.exists() {
        let error = UsageError(format!("{} is there already", output_dir.display()));
        return Err(with_hint(error, "--force replaces it, --output names another place"));
    }
    if !args.read.file.is_file() {
        anyhow::bail!("there is no file {}", args.read.file.display());
    }
    let found = open::find(&args.model)?;
    let model = open::open(&found, &args.compute.model_options())?;
    let schema = args.lora.schema.as_deref().map(|path| open::schema(path, &model)).transpose()?;
    let (train, eval) = args.datasets(&model)?;
    let style = Style::stderr();
    output::note(&train.stats().tokens.histogram_text(40));
    let run_folder = args.run_folder(&output_dir);
    if args.restart && run_folder.join("run.json").is_file() {
        std::fs::remove_dir_all(&run_folder)
            .with_context(|| format!("cannot remove {}", run_folder.display()))?;
    }
    let trainer = Trainer::new(model, config)?;
    let plan = trainer.plan(&train, eval.as_ref())?;
    output::note(&plan_text(&plan));
    if args.dry_run {
        return Ok(());
    }
    let trainer = trainer.with_run_folder(&run_folder);
    let mut shown = Shown::new(style)?;
    let result = trainer.train_with(&train, eval.as_ref(), &mut shown);
    shown.bar.finish_and_clear();
    let trained = match result {
        Err(Error::Train(error)) if matches!(*error, TrainError::Cancelled { .. }) => {
            output::note(&format!("stopped: {error}; the same command goes on from the last checkpoint"));
            std::process::exit(signals::INTERRUPTED);
        }
        Err(Error::Train(error)) if matches!(*error, TrainError::Checkpoint { .. }) => {
            return Err(with_hint(Error::Train(error), "--restart begins anew, --run-folder names another"));
        }
        result => result?,
    };
    let trained = match schema {
        Some((schema, _)) => trained.with_schema(schema),
        None => trained,
    };
    trained.save(&output_dir, args.force)?;
    let loss = trained
        .best_eval()
        .map_or(String::new(), |(step, loss)| format!(", best evaluation loss {loss:.3} after step {step}"));
    output::note(&format!(
        "{} {} steps, {} tokens in {}{loss}",
        style.good("done:"),
        trained.steps(),
        trained.tokens(),
        output::duration(Duration::from_secs_f64(trained.seconds())),
    ));
    if let Some(rope) = trained.adapter().rope() {
        output::note(&format!(
            "{} the adapter has rotary positions of its own ({rope}), in its wardrobe.json; other runtimes need the \
             same setting in their configuration of the base model",
            style.note("note:")
        ));
    }
    output::line(&output_dir.display().to_string())
}

fn plan_text(plan: &Plan) -> String {
    let e = &plan.estimate;
    format!(
        "{} examples, {} to a step, {} steps of which {} warm-up, context {} tokens\n\
         {:.2} M parameters, {:.1} PFLOP, about {} beside the model, {} × {} threads",
        plan.num_examples,
        plan.batch_examples,
        plan.total_steps,
        plan.warmup_steps,
        plan.context_tokens,
        e.parameters as f64 / 1e6,
        e.flops as f64 / 1e15,
        output::size(e.total_bytes()),
        e.num_workers,
        plan.num_threads.div_ceil(e.num_workers.max(1)),
    )
}

/// Shows a run: a bar on a terminal, lines now and then elsewhere.
struct Shown {
    bar: ProgressBar,
    is_terminal: bool,
    style: Style,
    stop: Arc<AtomicBool>,
    last_line: Option<Instant>,
}

const LINE_INTERVAL: Duration = Duration::from_secs(5);

impl Shown {
    fn new(style: Style) -> anyhow::Result<Self> {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len} · {msg} · {eta} left")?);
        let stop = signals::stop_flag("stopping after this step; once more to stop at once")?;
        Ok(Shown { bar, is_terminal, style, stop, last_line: None })
    }

    fn note(&self, text: &str) {
        if self.is_terminal { self.bar.println(text) } else { output::note(text) }
    }

    fn step(&mut self, m: &StepMetrics) {
        let what = format!("loss {:.3} · {:.0} tok/s", m.loss, m.tokens_per_second);
        self.bar.set_position(m.step as u64);
        self.bar.set_message(what.clone());
        let is_due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if !self.is_terminal && (is_due || m.step == m.total_steps) {
            self.last_line = Some(Instant::now());
            let left = (m.total_steps - m.step) as f64 * m.total_seconds / m.step as f64;
            let left = output::duration(Duration::from_secs_f64(left));
            output::note(&format!("step {} of {} · {what} · {left} left", m.step, m.total_steps));
        }
    }
}

impl Observer for Shown {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Started { plan, step } => {
                self.bar.set_length(plan.total_steps as u64);
                self.bar.set_position(*step as u64);
                self.bar.reset_eta();
            }
            Event::Resumed { step } => self.note(&format!("going on after step {step}")),
            Event::Step(metrics) => self.step(metrics),
            Event::Evaluated { step, loss, is_best } => {
                let best = if *is_best { self.style.good(" the best so far") } else { String::new() };
                self.note(&format!("evaluation after step {step}: loss {loss:.4}{best}"));
            }
            Event::StoppedEarly { step } => self.note(&format!("no longer better: stopped at step {step}")),
            _ => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
