//! The training loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use wardrobe_data::{Dataset, Example};
use wardrobe_device::{AdamW, Ctx, CtxConfig, Device, Dropout, StepLimits};
use wardrobe_formats::peft::AdapterRope;
use wardrobe_models::Decoder;

use crate::checkpoint::{self, Progress, Run};
use crate::config::{BatchSize, TrainConfig};
use crate::error::{Result, TrainError};
use crate::estimate::{self, Estimate};
use crate::event::{Event, Observer, StepMetrics};
use crate::microbatch::{MicroBatch, divide, num_rows};
use crate::output::{Origin, TrainedAdapter};
use crate::parameters::{Layout, Parameters};
use crate::team::{BackwardOptions, Team};

/// A batch is divided into so many micro-batches at least: work for so many threads side by side.
const MIN_PARTS: usize = 4;
/// Most examples of a batch that takes as many as fit.
const MAX_BATCH: usize = 256;

/// What is known of a run before it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Examples that will be used: those with something to predict.
    pub num_examples: usize,
    /// Examples of an optimizer step.
    pub batch_examples: usize,
    /// Optimizer steps in a pass over the examples.
    pub steps_per_epoch: usize,
    /// Optimizer steps in all.
    pub total_steps: usize,
    /// Steps while the learning rate goes up.
    pub warmup_steps: usize,
    /// Tokens of the longest example.
    pub context_tokens: usize,
    /// Rows of a worker's largest micro-batch.
    pub max_rows: usize,
    /// Threads in all.
    pub num_threads: usize,
    /// Rotary positions of the adapter's own.
    pub rope: Option<AdapterRope>,
    /// Memory and arithmetic.
    pub estimate: Estimate,
}

/// Trains adapters for a model. See the crate's documentation.
pub struct Trainer {
    device: Arc<dyn Device>,
    model: Arc<dyn Decoder>,
    config: TrainConfig,
    base_name: Option<String>,
    run_folder: Option<PathBuf>,
    available_bytes: Option<u64>,
    num_threads: usize,
    between: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Trainer {
    /// A trainer for adapters of `model`, whose weights lie on `device`.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the setting at fault.
    pub fn new(device: Arc<dyn Device>, model: Arc<dyn Decoder>, config: TrainConfig) -> Result<Self> {
        config.check()?;
        // Settings that do not fit the model are found before any example is read.
        Layout::new(model.as_ref(), &config.lora)?;
        let num_threads = config
            .threads
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        Ok(Trainer {
            device,
            model,
            config,
            base_name: None,
            run_folder: None,
            available_bytes: None,
            num_threads,
            between: Arc::new(|| ()),
        })
    }

    /// Names the base model, for the adapter's configuration.
    #[must_use]
    pub fn with_base_name(mut self, name: impl Into<String>) -> Self {
        self.base_name = Some(name.into());
        self
    }

    /// Keeps checkpoints and metrics in a folder. A run that is there already, of the same settings and examples, is
    /// resumed.
    #[must_use]
    pub fn with_run_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.run_folder = Some(folder.into());
        self
    }

    /// Tells how much memory is free, for the limit where the settings have none.
    #[must_use]
    pub fn with_available_bytes(mut self, bytes: u64) -> Self {
        self.available_bytes = Some(bytes);
        self
    }

    /// Is called before every block, forth and back, on every worker's thread: whoever shares the machine may wait there.
    #[must_use]
    pub fn with_pause(mut self, between: Arc<dyn Fn() + Send + Sync>) -> Self {
        self.between = between;
        self
    }

    pub(crate) fn base_name(&self) -> Option<&str> {
        self.base_name.as_deref()
    }

    /// The settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Looks at the examples and says what a run will take.
    ///
    /// # Errors
    /// [`TrainError::Data`] without anything to learn, [`TrainError::Config`] for examples that are too long, and
    /// [`TrainError::Memory`] for a run that does not fit.
    pub fn plan(&self, train: &Dataset, eval: Option<&Dataset>) -> Result<Plan> {
        let config = &self.config;
        let c = self.model.config();
        let useful: Vec<_> = train.examples().iter().filter(|e| num_rows(e) > 0).collect();
        let num_examples = useful.len();
        if num_examples == 0 {
            let n = train.examples().len();
            return Err(TrainError::Data(format!("{n} examples, none of which has a token to predict")));
        }
        let all = || train.examples().iter().chain(eval.into_iter().flat_map(Dataset::examples));
        if let Some(token) = all().flat_map(|e| &e.token_ids).find(|t| t.0 as usize >= c.vocab_size) {
            let reason =
                format!("token {token} of a vocabulary of {}: another model's tokenizer?", c.vocab_size);
            return Err(TrainError::Data(reason));
        }
        let context_tokens = all().map(|e| e.token_ids.len()).max().unwrap_or(0);
        if let Some(limit) = config.context_tokens
            && context_tokens > limit
        {
            let reason = format!("an example has {context_tokens} tokens, the context is {limit}");
            return Err(TrainError::Data(reason));
        }
        let rope = config.rope(c, context_tokens)?;
        let longest_rows = all().map(|e| num_rows(e)).max().unwrap_or(0);
        let layout = Layout::new(self.model.as_ref(), &config.lora)?;
        let limit_bytes = config.memory_limit_bytes.or(self.available_bytes).unwrap_or(u64::MAX);

        let (batch_size, mut max_rows) = match config.batch_size {
            BatchSize::Examples(n) => (n, config.micro_batch_tokens.max(longest_rows)),
            BatchSize::Max => {
                let rows =
                    estimate::most_rows(self.model.as_ref(), &layout, config, self.num_threads, limit_bytes);
                let each = (rows / longest_rows.max(1)).min(MAX_BATCH.div_ceil(self.num_threads)).max(1);
                (each * self.num_threads, each * longest_rows)
            }
        };
        let batch_examples = batch_size.saturating_mul(config.gradient_accumulation).min(num_examples);
        max_rows = max_rows.min(useful.iter().map(|e| num_rows(e)).sum::<usize>().max(longest_rows));
        let size = estimate::worker_size(config, max_rows, max_rows.min(batch_examples.max(MAX_BATCH)));
        let parameter_bytes = estimate::parameter_bytes(&layout);
        let worker_bytes = estimate::worker_bytes(self.model.as_ref(), &layout, size);
        let most = self.num_threads.min(batch_examples).max(1);
        let total = |workers: usize| parameter_bytes + worker_bytes * workers as u64;
        let Some(num_workers) = (1..=most).rev().find(|&n| total(n) <= limit_bytes) else {
            let advice = if longest_rows > config.micro_batch_tokens {
                "shorten the longest example, or allow more"
            } else {
                "set fewer tokens to a micro-batch, or allow more"
            };
            return Err(TrainError::Memory {
                needed_bytes: total(1),
                limit_bytes,
                advice: advice.to_owned(),
            });
        };
        let steps_per_epoch = num_examples.div_ceil(batch_examples);
        let all_steps = steps_per_epoch.saturating_mul(config.epochs);
        let total_steps = config.max_steps.map_or(all_steps, |max| max.min(all_steps));
        let by_ratio = (config.optimizer.warmup_ratio * total_steps as f64).round() as usize;
        let warmup_steps = config.optimizer.warmup_steps.unwrap_or(by_ratio).min(total_steps);
        let flops_of = |e: &&Example| {
            estimate::example_flops(self.model.as_ref(), &layout, num_rows(e), e.num_supervised_tokens())
        };
        let an_epoch: u64 = useful.iter().map(flops_of).sum();
        let flops = (an_epoch as f64 * total_steps as f64 / steps_per_epoch as f64) as u64;
        let parameters = layout.len as u64;
        Ok(Plan {
            num_examples,
            batch_examples,
            steps_per_epoch,
            total_steps,
            warmup_steps,
            context_tokens,
            max_rows,
            num_threads: self.num_threads,
            rope,
            estimate: Estimate { parameters, parameter_bytes, worker_bytes, num_workers, flops },
        })
    }

    /// Trains. `observer` hears of every step, and may end the run.
    ///
    /// # Errors
    /// Those of [`Trainer::plan`]; [`TrainError::NotFinite`], [`TrainError::Cancelled`], and what files and device say.
    pub fn train(
        &self,
        train: &Dataset,
        eval: Option<&Dataset>,
        observer: &mut dyn Observer,
    ) -> Result<TrainedAdapter> {
        let plan = self.plan(train, eval)?;
        let mut session = Session::start(self, &plan, train, eval, observer)?;
        session.run()?;
        session.finish()
    }
}

/// A run under way.
struct Session<'a> {
    trainer: &'a Trainer,
    plan: &'a Plan,
    train: &'a Dataset,
    /// Examples with something to predict, by epoch's order.
    useful: Vec<bool>,
    eval: Vec<MicroBatch>,
    observer: &'a mut dyn Observer,
    ctx: Ctx,
    parameters: Parameters,
    team: Team,
    run: Option<Run>,
    progress: Progress,
    started: Instant,
    /// Rows computed since the start of this process.
    rows_done: u64,
}

impl<'a> Session<'a> {
    fn start(
        trainer: &'a Trainer,
        plan: &'a Plan,
        train: &'a Dataset,
        eval: Option<&'a Dataset>,
        observer: &'a mut dyn Observer,
    ) -> Result<Self> {
        let config = &trainer.config;
        let model = &trainer.model;
        let device = trainer.device.with_threads(plan.num_threads)?;
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(device, CtxConfig { arena_bytes: 0, step })?;
        let parameters = Parameters::new(&mut ctx, model.as_ref(), &config.lora, config.seed)?;
        let rope = TrainConfig::rope_spec(model.config(), plan.rope.as_ref());
        let max_seqs = plan.max_rows.min(plan.batch_examples.max(MAX_BATCH));
        let size = estimate::worker_size(config, plan.max_rows, max_seqs);
        let workers = (plan.estimate.num_workers, plan.num_threads);
        let team = Team::new(&trainer.device, model, &rope, &parameters, size, workers)?;
        let eval_set = eval;
        let eval = eval.map_or(Vec::new(), |eval| micro_batches(eval, plan.max_rows, max_seqs));
        let mut session = Session {
            trainer,
            plan,
            train,
            useful: train.examples().iter().map(|e| num_rows(e) > 0).collect(),
            eval,
            observer,
            ctx,
            parameters,
            team,
            run: None,
            progress: Progress::default(),
            started: Instant::now(),
            rows_done: 0,
        };
        if let Some(folder) = &trainer.run_folder {
            let identity =
                checkpoint::identity(config, model.content_digest(), [Some(train), eval_set], plan);
            let mut run = Run::open(folder, &identity)?;
            if let Some(progress) = run.resume(&mut session.ctx, &session.parameters)? {
                session.parameters.pack(&mut session.ctx, model.as_ref())?;
                session.observer.event(&Event::Resumed { step: progress.step });
                session.progress = progress;
            }
            session.run = Some(run);
        }
        session.observer.event(&Event::Started { plan, step: session.progress.step });
        Ok(session)
    }

    fn run(&mut self) -> Result<()> {
        while self.progress.step < self.plan.total_steps && !self.progress.is_stopped {
            if self.observer.is_cancelled() {
                // What was done is not lost.
                self.save()?;
                return Err(TrainError::Cancelled { step: self.progress.step });
            }
            self.step()?;
            let step = self.progress.step;
            let is_evaluated = self.is_due(step, self.eval_steps()) && !self.eval.is_empty();
            let is_best = is_evaluated && self.evaluate()?;
            if is_best || self.is_due(step, self.save_steps()) || self.progress.is_stopped {
                self.save()?;
            }
        }
        Ok(())
    }

    /// At each multiple of `every`, and at the end.
    fn is_due(&self, step: usize, every: usize) -> bool {
        step.is_multiple_of(every.max(1)) || step == self.plan.total_steps
    }

    fn eval_steps(&self) -> usize {
        self.trainer.config.eval_steps.unwrap_or(self.plan.steps_per_epoch)
    }

    fn save_steps(&self) -> usize {
        let config = &self.trainer.config;
        config.save_steps.unwrap_or_else(|| self.plan.total_steps.div_ceil(config.n_checkpoints.max(1)))
    }

    /// The examples of the next step, with their numbers.
    fn next_examples(&self) -> Vec<usize> {
        let (step, plan) = (self.progress.step, self.plan);
        let (epoch, in_epoch) = (step / plan.steps_per_epoch, step % plan.steps_per_epoch);
        let order = self.train.epoch_order(self.trainer.config.seed, epoch as u64);
        let useful = order.into_iter().filter(|&i| self.useful.get(i).copied().unwrap_or(false));
        useful.skip(in_epoch * plan.batch_examples).take(plan.batch_examples).collect()
    }

    fn step(&mut self) -> Result<()> {
        let started = Instant::now();
        let config = &self.trainer.config;
        let step = self.progress.step;
        let examples = self.next_examples();
        let all = self.train.examples();
        let of_step: Vec<_> = examples.iter().filter_map(|&i| Some((i as u32, all.get(i)?))).collect();
        let rows: Vec<usize> = of_step.iter().map(|(_, e)| num_rows(e)).collect();
        let supervised: usize = of_step.iter().map(|(_, e)| e.num_supervised_tokens()).sum();
        let batches: Vec<MicroBatch> = divide(&rows, self.plan.max_rows, MIN_PARTS)
            .into_iter()
            .map(|part| MicroBatch::new(part.into_iter().filter_map(|i| of_step.get(i).copied())))
            .collect();
        let dropout = (config.lora.dropout > 0.0).then_some(Dropout {
            probability: config.lora.dropout,
            seed: config.seed,
            step: step as u32,
        });
        self.ctx.clear(&self.parameters.gradients)?;
        let options = BackwardOptions { weight: 1.0 / supervised.max(1) as f32, dropout };
        let losses = self.team.run(
            &batches,
            Some(&self.parameters.table),
            Some((&self.parameters.gradients, options)),
            self.trainer.between.as_ref(),
        )?;
        let loss = losses.sum / losses.tokens.max(1) as f64;
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step: step + 1, what: "loss" });
        }
        let norm = self.ctx.sum_of_squares(&self.parameters.gradients)?.sqrt();
        if !norm.is_finite() {
            return Err(TrainError::NotFinite { step: step + 1, what: "gradient" });
        }
        let optimizer = &config.optimizer;
        let factor = optimizer.schedule.factor(step, self.plan.warmup_steps, self.plan.total_steps);
        let learning_rate = optimizer.learning_rate * factor;
        let gradient_scale = match optimizer.max_grad_norm {
            Some(max) if norm > max => max / norm,
            _ => 1.0,
        };
        let options = AdamW {
            learning_rate: learning_rate as f32,
            beta1: optimizer.beta1 as f32,
            beta2: optimizer.beta2 as f32,
            epsilon: optimizer.epsilon as f32,
            weight_decay: optimizer.weight_decay as f32,
            step: step as u32 + 1,
            gradient_scale: gradient_scale as f32,
        };
        let Parameters { values, gradients, moments: [first, second], .. } = &self.parameters;
        self.ctx.adamw(&options, values, gradients, [first, second])?;
        self.parameters.pack(&mut self.ctx, self.trainer.model.as_ref())?;
        self.progress.step += 1;
        self.progress.tokens += losses.rows as u64;
        self.progress.supervised_tokens += losses.tokens as u64;
        self.rows_done += losses.rows as u64;
        let seconds = started.elapsed().as_secs_f64();
        self.progress.seconds += seconds;
        let metrics = StepMetrics {
            step: self.progress.step,
            total_steps: self.plan.total_steps,
            epoch: self.progress.step as f64 / self.plan.steps_per_epoch as f64,
            loss,
            learning_rate,
            grad_norm: norm,
            tokens: losses.rows,
            supervised_tokens: losses.tokens,
            seconds,
            total_seconds: self.progress.seconds,
            tokens_per_second: self.rows_done as f64 / self.started.elapsed().as_secs_f64(),
        };
        if let Some(run) = &mut self.run {
            run.log_step(&metrics)?;
        }
        self.observer.event(&Event::Step(&metrics));
        Ok(())
    }

    /// Whether it is the best so far.
    fn evaluate(&mut self) -> Result<bool> {
        let losses =
            self.team.run(&self.eval, Some(&self.parameters.table), None, self.trainer.between.as_ref())?;
        let loss = losses.sum / losses.tokens.max(1) as f64;
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step: self.progress.step, what: "loss" });
        }
        let least = self.trainer.config.early_stop.map_or(0.0, |e| e.min_delta);
        let is_best = self.progress.best.is_none_or(|(_, best)| loss < best - least);
        if is_best {
            self.progress.best = Some((self.progress.step, loss));
            self.progress.evals_since_best = 0;
        } else {
            self.progress.evals_since_best += 1;
        }
        if let Some(run) = &mut self.run {
            run.log_eval(self.progress.step, loss)?;
        }
        self.observer.event(&Event::Evaluated { step: self.progress.step, loss, is_best });
        if is_best && self.run.is_none() {
            self.progress.best_values = Some(self.ctx.read_f32(&self.parameters.values)?);
        }
        if let Some(early) = self.trainer.config.early_stop
            && self.progress.evals_since_best >= early.patience
        {
            self.progress.is_stopped = true;
            self.observer.event(&Event::StoppedEarly { step: self.progress.step });
        }
        Ok(is_best)
    }

    fn save(&mut self) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        let origin = Origin::new(self.trainer, self.plan);
        let path = run.save(&mut self.ctx, &self.parameters, &self.progress, &origin)?;
        run.prune(&self.progress, self.trainer.config.save_total_limit)?;
        self.observer.event(&Event::Saved { step: self.progress.step, path: &path });
        Ok(())
    }

    /// The adapter: of the best evaluation where there were some, else of the last step.
    fn finish(mut self) -> Result<TrainedAdapter> {
        let best = self.progress.best.filter(|(step, _)| *step != self.progress.step);
        if let Some((step, _)) = best {
            let values = match (self.progress.best_values.take(), &self.run) {
                (Some(values), _) => Some(values),
                (None, Some(run)) => Some(run.values_of(step, &self.parameters)?),
                (None, None) => None,
            };
            if let Some(values) = values {
                self.ctx.write_f32(&self.parameters.values, &values)?;
                self.parameters.pack(&mut self.ctx, self.trainer.model.as_ref())?;
            }
        }
        let values = self.ctx.read_f32(&self.parameters.values)?;
        let origin = Origin::new(self.trainer, self.plan);
        let adapter = TrainedAdapter::new(&origin, &self.parameters, &values, &self.progress)?;
        if let Some(run) = &mut self.run {
            run.close()?;
        }
        self.observer.event(&Event::Finished { step: self.progress.step });
        Ok(adapter)
    }
}

/// All examples, some at a time.
fn micro_batches(examples: &Dataset, max_rows: usize, max_seqs: usize) -> Vec<MicroBatch> {
    let all = examples.examples();
    let numbered: Vec<_> = all.iter().enumerate().map(|(i, e)| (i as u32, e)).collect();
    let mut batches = Vec::new();
    for group in numbered.chunks(max_seqs.max(1)) {
        let rows: Vec<usize> = group.iter().map(|(_, e)| num_rows(e)).collect();
        for part in divide(&rows, max_rows, MIN_PARTS) {
            batches.push(MicroBatch::new(part.into_iter().filter_map(|i| group.get(i).copied())));
        }
    }
    batches
}
