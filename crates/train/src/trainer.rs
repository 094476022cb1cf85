//! The trainer: what a run is to do, and what it will take.

use std::path::PathBuf;
use std::sync::Arc;

use wardrobe_data::{Dataset, Example};
use wardrobe_device::Device;
use wardrobe_formats::PeftAdapter;
use wardrobe_formats::peft::AdapterRope;
use wardrobe_models::Decoder;
use wardrobe_text::TokenId;

use crate::config::{BatchSize, TrainConfig};
use crate::error::{Result, TrainError};
use crate::estimate::{self, Estimate};
use crate::event::{NoObserver, Observer};
use crate::microbatch::num_rows;
use crate::output::TrainedAdapter;
use crate::parameters::Layout;
use crate::session::{Session, micro_batches};

/// Rows of all workers' micro-batches, unless one has more for itself.
const MAX_ROWS_SIDE_BY_SIDE: usize = 2048;
/// Most examples of a batch that takes as many as fit.
pub(crate) const MAX_BATCH: usize = 256;

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
    /// Blocks whose values are kept instead of computed again.
    pub kept_blocks: usize,
    /// Threads in all.
    pub num_threads: usize,
    /// Rotary positions of the adapter's own.
    pub rope: Option<AdapterRope>,
    /// Memory and arithmetic.
    pub estimate: Estimate,
}

/// Trains adapters for a model. See the crate's documentation.
pub struct Trainer {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) model: Arc<dyn Decoder>,
    pub(crate) config: TrainConfig,
    base_name: Option<String>,
    pub(crate) start: Option<PeftAdapter>,
    pub(crate) is_shuffled: bool,
    pub(crate) run_folder: Option<PathBuf>,
    available_bytes: Option<u64>,
    num_threads: usize,
    pub(crate) between: Arc<dyn Fn() + Send + Sync>,
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
    pub fn new(device: Arc<dyn Device>, model: Arc<dyn Decoder>, mut config: TrainConfig) -> Result<Self> {
        config.check()?;
        if config.lora.target_modules.is_empty() {
            config.lora.target_modules = wardrobe_models::default_target_modules(model.config());
        }
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
            start: None,
            is_shuffled: true,
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

    /// Begins with an adapter's values, which must be of the settings' modules, ranks and kind.
    #[must_use]
    pub fn with_start(mut self, adapter: PeftAdapter) -> Self {
        self.start = Some(adapter);
        self
    }

    /// Takes the examples in the order in which they are, in every epoch: for comparisons.
    #[must_use]
    pub fn in_given_order(mut self) -> Self {
        self.is_shuffled = false;
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

    /// Parameters that are trained.
    ///
    /// # Errors
    /// As for [`Trainer::new`].
    pub fn num_parameters(&self) -> Result<u64> {
        Ok(Layout::new(self.model.as_ref(), &self.config.lora)?.len as u64)
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
        let longest_rows = all().map(num_rows).max().unwrap_or(0);
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
        let max_seqs = max_rows.min(batch_examples.max(MAX_BATCH));
        let worker_bytes = |kept_blocks: usize| {
            let size = estimate::worker_size(config, max_rows, max_seqs, kept_blocks);
            estimate::worker_bytes(self.model.as_ref(), &layout, size)
        };
        let parameter_bytes = estimate::parameter_bytes(&layout);
        let total = |workers: usize| parameter_bytes + worker_bytes(0) * workers as u64;
        // Long examples one after the other on all threads: side by side each would need its own memory.
        let beside = (MAX_ROWS_SIDE_BY_SIDE / max_rows.max(1)).max(1);
        let most = self.num_threads.min(batch_examples).min(beside).max(1);
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
        let kept_bytes = config.kept_bytes.min(limit_bytes - total(num_workers));
        let kept_blocks = estimate::kept_blocks(self.model.as_ref(), kept_bytes, max_rows, num_workers);
        let worker_bytes = worker_bytes(kept_blocks);
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
            kept_blocks,
            num_threads: self.num_threads,
            rope,
            estimate: Estimate { parameters, parameter_bytes, worker_bytes, num_workers, flops },
        })
    }

    /// Mean loss over the supervised tokens of all `examples`, and its gradients, where training would begin; nothing is
    /// trained. For comparisons.
    ///
    /// # Errors
    /// Those of [`Trainer::plan`].
    pub fn gradients(&self, examples: &Dataset) -> Result<Gradients> {
        let plan = self.plan(examples, None)?;
        let mut observer = NoObserver;
        let mut session = Session::start(self, &plan, examples, None, &mut observer)?;
        let batches = micro_batches(examples, plan.max_rows, examples.len());
        let losses = session.backward(&batches)?;
        let values = session.ctx.read_f32(&session.parameters.gradients)?;
        let modules = session.parameters.export(&values).map(|module| ModuleGradients {
            path: module.layout.path.clone(),
            a: module.a.to_vec(),
            b: module.b,
            magnitude: module.magnitude.map(<[f32]>::to_vec),
        });
        Ok(Gradients { loss: losses.mean(), modules: modules.collect() })
    }

    /// Logits at every position of `tokens`, `[tokens * vocabulary]`, where training would begin.
    ///
    /// # Errors
    /// Those of [`Trainer::plan`].
    pub fn logits(&self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        let mut loss = vec![true; tokens.len()];
        loss.iter_mut().take(1).for_each(|first| *first = false);
        // The last token predicts nothing that is known; whatever it is, its row is computed.
        let token_ids = tokens.iter().copied().chain(tokens.last().copied()).collect();
        loss.push(true);
        let example = Example { token_ids, loss };
        let examples =
            Dataset::from_examples(vec![example]).map_err(|error| TrainError::Data(error.to_string()))?;
        let plan = self.plan(&examples, None)?;
        let mut observer = NoObserver;
        let mut session = Session::start(self, &plan, &examples, None, &mut observer)?;
        session.logits(tokens)
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

/// Gradients of a module's factors.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleGradients {
    /// The module's path.
    pub path: String,
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// `[out, rank]`.
    pub b: Vec<f32>,
    /// `[out]`, of DoRA's magnitudes.
    pub magnitude: Option<Vec<f32>>,
}

/// What [`Trainer::gradients`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// Mean loss, in nats a supervised token.
    pub loss: f64,
    /// By module.
    pub modules: Vec<ModuleGradients>,
}
