//! A run under way: its state, and the loop over its steps.

use std::time::Instant;

use wardrobe_data::Dataset;
use wardrobe_device::{AdamW, Ctx, CtxConfig, Dropout, StepLimits};

use wardrobe_formats::peft::Canary;
use wardrobe_models::log_probs;
use wardrobe_text::TokenId;

use crate::checkpoint::{self, Progress, Run};
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::estimate;
use crate::event::{Event, Observer, StepMetrics};
use crate::microbatch::{MicroBatch, divide, num_rows};
use crate::output::{Origin, TrainedAdapter, canary_text};
use crate::parameters::Parameters;
use crate::team::{BackwardOptions, Team};
use crate::trainer::{MAX_BATCH, Plan, Trainer};
use crate::worker::Losses;

/// A batch is divided into so many micro-batches at least: work for so many threads side by side.
const MIN_PARTS: usize = 4;

/// A run under way.
pub(crate) struct Session<'a> {
    trainer: &'a Trainer,
    plan: &'a Plan,
    train: &'a Dataset,
    /// Examples with something to predict, by epoch's order.
    useful: Vec<bool>,
    eval: Vec<MicroBatch>,
    observer: &'a mut dyn Observer,
    pub(crate) ctx: Ctx,
    pub(crate) parameters: Parameters,
    team: Team,
    run: Option<Run>,
    progress: Progress,
    started: Instant,
    /// Rows computed since the start of this process.
    rows_done: u64,
}

impl<'a> Session<'a> {
    pub(crate) fn start(
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
        if let Some(start) = &trainer.start {
            parameters.set(&mut ctx, model.as_ref(), start)?;
        }
        let rope = TrainConfig::rope_spec(model.config(), plan.rope.as_ref());
        let max_seqs = plan.max_rows.min(plan.batch_examples.max(MAX_BATCH));
        let size = estimate::worker_size(config, plan.max_rows, max_seqs, plan.kept_blocks);
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

    pub(crate) fn run(&mut self) -> Result<()> {
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
        let order = if self.trainer.is_shuffled {
            self.train.epoch_order(self.trainer.config.seed, epoch as u64)
        } else {
            (0..self.train.len()).collect()
        };
        let useful = order.into_iter().filter(|&i| self.useful.get(i).copied().unwrap_or(false));
        useful.skip(in_epoch * plan.batch_examples).take(plan.batch_examples).collect()
    }

    /// Logits at every position of a text.
    pub(crate) fn logits(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        let inputs = MicroBatch::text(tokens).inputs;
        let table = self.parameters.table.clone();
        match self.team.first() {
            Some(worker) => Ok(worker.logits(&inputs, Some(&table))?),
            None => Ok(Vec::new()),
        }
    }

    /// What the tuned model makes of a text, for whoever loads the adapter.
    fn canaries(&mut self) -> Result<Vec<Canary>> {
        let vocab_size = self.trainer.model.config().vocab_size;
        let token_ids = canary_text(vocab_size, self.plan.max_rows);
        let text: Vec<TokenId> = token_ids.iter().map(|&id| TokenId(id)).collect();
        let (predicted, log_probs) = log_probs(&self.logits(&text)?, vocab_size, None);
        Ok(vec![Canary { token_ids, predicted, log_probs }])
    }

    /// The gradients of the mean loss over the batches' supervised tokens.
    pub(crate) fn backward(&mut self, batches: &[MicroBatch]) -> Result<Losses> {
        let config = &self.trainer.config;
        let supervised: usize = batches.iter().map(|b| b.targets.len()).sum();
        let dropout = (config.lora.dropout > 0.0).then_some(Dropout {
            probability: config.lora.dropout,
            seed: config.seed,
            step: self.progress.step as u32,
        });
        self.ctx.clear(&self.parameters.gradients)?;
        self.ctx.publish()?;
        let options = BackwardOptions { weight: 1.0 / supervised.max(1) as f32, dropout };
        self.team.run(
            batches,
            Some(&self.parameters.table),
            Some((&self.parameters.gradients, options)),
            self.trainer.between.as_ref(),
        )
    }

    fn step(&mut self) -> Result<()> {
        let started = Instant::now();
        let config = &self.trainer.config;
        let step = self.progress.step;
        let examples = self.next_examples();
        let all = self.train.examples();
        let of_step: Vec<_> = examples.iter().filter_map(|&i| Some((i as u32, all.get(i)?))).collect();
        let rows: Vec<usize> = of_step.iter().map(|(_, e)| num_rows(e)).collect();
        let batches: Vec<MicroBatch> = divide(&rows, self.plan.max_rows, MIN_PARTS)
            .into_iter()
            .map(|part| MicroBatch::new(part.into_iter().filter_map(|i| of_step.get(i).copied())))
            .collect();
        let losses = self.backward(&batches)?;
        let loss = losses.mean();
        if !loss.is_finite() {
            return Err(TrainError::NotFinite { step: step + 1, what: "loss" });
        }
        let norm = self.ctx.sum_of_squares(&self.parameters.gradients)?.sqrt();
        if !norm.is_finite() {
            return Err(TrainError::NotFinite { step: step + 1, what: "gradient" });
        }
        let optimizer = &config.optimizer;
        let factor = optimizer.schedule.factor(step, self.plan.warmup_steps, self.plan.total_steps);
        let is_warm = step >= self.plan.warmup_steps;
        let least = if is_warm { optimizer.min_lr_ratio } else { 0.0 };
        let learning_rate = optimizer.learning_rate * (least + (1.0 - least) * factor);
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
            total_tokens: self.progress.tokens,
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
        self.ctx.publish()?;
        let losses =
            self.team.run(&self.eval, Some(&self.parameters.table), None, self.trainer.between.as_ref())?;
        let loss = losses.mean();
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
    pub(crate) fn finish(mut self) -> Result<TrainedAdapter> {
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
        let canaries = self.canaries()?;
        let adapter = TrainedAdapter::new(&origin, &self.parameters, &values, canaries, &self.progress)?;
        if let Some(run) = &mut self.run {
            run.close()?;
        }
        self.observer.event(&Event::Finished { step: self.progress.step });
        Ok(adapter)
    }
}

/// All examples, some at a time.
pub(crate) fn micro_batches(examples: &Dataset, max_rows: usize, max_seqs: usize) -> Vec<MicroBatch> {
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
