//! The settings of a run.

use serde::{Deserialize, Serialize};
use wardrobe_formats::RopeScaling;
use wardrobe_formats::peft::{AdapterRope, ModuleSelector, is_head};
use wardrobe_models::{ModelConfig, RopeSpec};

use crate::error::{Result, TrainError};
use crate::schedule::Schedule;

/// What is trained. Only LoRA: the base stays as it is, quantised or not, and serves on unchanged while adapters of it
/// are trained, loaded and replaced. Full fine-tuning is deliberately not here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of every module's update.
    pub rank: usize,
    /// The update is multiplied by `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub alpha: f64,
    /// Probability of a value of a module's input to be left out of its update while training.
    pub dropout: f32,
    /// Names of modules, each the end of a path (`q_proj`), or `all-linear` alone: every linear layer but the head. None are
    /// the model's usual ones ([`wardrobe_models::default_target_modules`]).
    pub target_modules: Vec<String>,
    /// Rank-stabilised scale (Kalajdzievski, arXiv 2312.03732).
    pub use_rslora: bool,
    /// Weight-decomposed adaptation (Liu et al., arXiv 2402.09353).
    pub use_dora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: Vec::new(),
            use_rslora: false,
            use_dora: false,
        }
    }
}

const ALL_LINEAR: &str = "all-linear";

impl LoraConfig {
    /// What the update is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        if self.use_rslora { self.alpha / rank.sqrt() } else { self.alpha / rank }
    }

    /// As `adapter_config.json` names the modules.
    pub fn selector(&self) -> ModuleSelector {
        match self.target_modules.as_slice() {
            [one] if one == ALL_LINEAR => ModuleSelector::AllLinear,
            names => ModuleSelector::List(names.to_vec()),
        }
    }

    /// Whether the module of this path is to be trained.
    pub(crate) fn targets(&self, path: &str) -> bool {
        match self.selector() {
            ModuleSelector::AllLinear => !is_head(path),
            _ => self.target_modules.iter().any(|name| {
                path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }

    fn check(&self) -> Result<()> {
        const MAX_RANK: usize = 1024;
        let fail = |field, reason: String| Err(TrainError::config(field, reason));
        if !(1..=MAX_RANK).contains(&self.rank) {
            return fail("rank", format!("{} is not from 1 to {MAX_RANK}", self.rank));
        }
        if !(self.alpha > 0.0 && self.alpha <= 1e6) {
            return fail("alpha", format!("{} is not over 0 and up to 1e6", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail("dropout", format!("{} is not from 0 to below 1", self.dropout));
        }
        if self.target_modules.iter().any(|m| m.trim().is_empty()) {
            return fail("target_modules", "names no module".to_owned());
        }
        if self.target_modules.len() > 1 && self.target_modules.iter().any(|m| m == ALL_LINEAR) {
            return fail("target_modules", format!("{ALL_LINEAR} stands alone"));
        }
        Ok(())
    }
}

/// The optimizer: AdamW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Largest learning rate of the schedule.
    pub learning_rate: f64,
    /// How it goes up and down.
    pub schedule: Schedule,
    /// The last learning rate as a part of the largest.
    pub min_lr_ratio: f64,
    /// Steps of warm-up as a part of all steps; `warmup_steps` counts more.
    pub warmup_ratio: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: Option<usize>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Gradients longer than this are shortened to it; `None` leaves them.
    pub max_grad_norm: Option<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            learning_rate: 1e-3,
            schedule: Schedule::Cosine,
            min_lr_ratio: 0.0,
            warmup_ratio: 0.03,
            warmup_steps: None,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            max_grad_norm: Some(1.0),
        }
    }
}

impl OptimizerConfig {
    fn check(&self) -> Result<()> {
        let within = |field, value: f64, ok: bool, expected: &str| {
            if ok { Ok(()) } else { Err(TrainError::config(field, format!("{value} is not {expected}"))) }
        };
        let lr = self.learning_rate;
        within("learning_rate", lr, lr > 0.0 && lr <= 10.0, "over 0 and up to 10")?;
        within("warmup_ratio", self.warmup_ratio, (0.0..=1.0).contains(&self.warmup_ratio), "from 0 to 1")?;
        within("min_lr_ratio", self.min_lr_ratio, (0.0..=1.0).contains(&self.min_lr_ratio), "from 0 to 1")?;
        within("weight_decay", self.weight_decay, (0.0..=10.0).contains(&self.weight_decay), "from 0 to 10")?;
        within("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "from 0 to below 1")?;
        within("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "from 0 to below 1")?;
        within("epsilon", self.epsilon, self.epsilon > 0.0 && self.epsilon < 1.0, "over 0 and below 1")?;
        let clip = self.max_grad_norm.unwrap_or(1.0);
        within("max_grad_norm", clip, clip > 0.0 && clip.is_finite(), "over 0")
    }
}

/// Examples of an optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchSize {
    /// So many.
    Examples(usize),
    /// As many of the longest as the memory limit holds at once.
    Max,
}

/// How a context longer than the base model's is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContextExtension {
    /// Position interpolation (Chen et al., arXiv 2306.15595).
    Linear,
    /// As Llama 3.1.
    Llama3,
    /// YaRN (Peng et al., arXiv 2309.00071).
    Yarn,
}

impl ContextExtension {
    /// Rotary positions for `context_tokens`, of a model whose own are unscaled.
    fn rope(self, model: &ModelConfig, context_tokens: usize) -> Result<AdapterRope> {
        if model.rope_scaling != RopeScaling::None {
            let reason = "the base model's rotary positions are scaled already";
            return Err(TrainError::config("context_extension", reason));
        }
        let original_max_position = model.max_position_embeddings;
        let factor = (context_tokens as f64 / original_max_position as f64).max(1.0);
        let scaling = match self {
            ContextExtension::Linear => RopeScaling::Linear { factor },
            ContextExtension::Llama3 => RopeScaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position,
            },
            ContextExtension::Yarn => RopeScaling::Yarn {
                factor,
                original_max_position,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: 0.1 * factor.ln() + 1.0,
                truncate: true,
            },
        };
        Ok(AdapterRope { theta: None, scaling, max_position_embeddings: context_tokens })
    }
}

/// When training ends before its last step because it no longer helps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    /// Evaluations in a row that may fail to be better than the best.
    pub patience: usize,
    /// By how much, in nats a token, an evaluation must be better.
    pub min_delta: f64,
}

/// All settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// What is trained.
    pub lora: LoraConfig,
    /// How.
    pub optimizer: OptimizerConfig,
    /// Examples of an optimizer step.
    pub batch_size: BatchSize,
    /// Batches whose gradients make one step: the step has `batch_size` times as many examples.
    pub gradient_accumulation: usize,
    /// Passes over the examples.
    pub epochs: usize,
    /// Ends after so many steps, whatever `epochs` says.
    pub max_steps: Option<usize>,
    /// Longest example in tokens; `None` takes the longest there is.
    pub context_tokens: Option<usize>,
    /// What to do where that is longer than the base model's context.
    pub context_extension: Option<ContextExtension>,
    /// Rows that a worker computes at once, unless a single example has more.
    pub micro_batch_tokens: usize,
    /// Bytes for values that are kept instead of computed again, over all workers.
    pub kept_bytes: u64,
    /// Of parameters, order and dropout.
    pub seed: u64,
    /// Steps between evaluations; `None`: at each epoch's end.
    pub eval_steps: Option<usize>,
    /// When to end early; needs an evaluation set.
    pub early_stop: Option<EarlyStop>,
    /// Checkpoints evenly over the run.
    pub n_checkpoints: usize,
    /// Steps between checkpoints, in place of `n_checkpoints`.
    pub save_steps: Option<usize>,
    /// Checkpoints that are kept: the newest, and the best.
    pub save_total_limit: usize,
    /// Threads; `None` takes all of the model's device.
    pub threads: Option<usize>,
    /// Bytes that training may take beside the base model; `None` takes what the system says is free.
    pub memory_limit_bytes: Option<u64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            lora: LoraConfig::default(),
            optimizer: OptimizerConfig::default(),
            batch_size: BatchSize::Examples(4),
            gradient_accumulation: 1,
            epochs: 1,
            max_steps: None,
            context_tokens: None,
            context_extension: None,
            micro_batch_tokens: 256,
            kept_bytes: 320 << 20,
            seed: 0,
            eval_steps: None,
            early_stop: None,
            n_checkpoints: 1,
            save_steps: None,
            save_total_limit: 2,
            threads: None,
            memory_limit_bytes: None,
        }
    }
}

impl TrainConfig {
    /// Whether every setting is within its bounds.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the first that is not.
    pub fn check(&self) -> Result<()> {
        self.lora.check()?;
        self.optimizer.check()?;
        let at_least_one = |field, value: usize| {
            if value == 0 { Err(TrainError::config(field, "must be at least 1")) } else { Ok(()) }
        };
        if let BatchSize::Examples(n) = self.batch_size {
            at_least_one("batch_size", n)?;
        }
        at_least_one("gradient_accumulation", self.gradient_accumulation)?;
        at_least_one("epochs", self.epochs)?;
        at_least_one("max_steps", self.max_steps.unwrap_or(1))?;
        at_least_one("context", self.context_tokens.unwrap_or(1))?;
        at_least_one("micro_batch_tokens", self.micro_batch_tokens)?;
        at_least_one("eval_steps", self.eval_steps.unwrap_or(1))?;
        at_least_one("save_steps", self.save_steps.unwrap_or(1))?;
        at_least_one("save_total_limit", self.save_total_limit)?;
        at_least_one("threads", self.threads.unwrap_or(1))?;
        match self.early_stop {
            Some(EarlyStop { patience: 0, .. }) => {
                Err(TrainError::config("early_stop", "the patience must be at least 1"))
            }
            Some(EarlyStop { min_delta, .. }) if !(min_delta >= 0.0 && min_delta.is_finite()) => {
                Err(TrainError::config("early_stop", "the least gain must be 0 or more"))
            }
            _ => Ok(()),
        }
    }

    /// The rotary positions of a run with examples of up to `longest_tokens`: the adapter's own where the base model's
    /// context is too short.
    ///
    /// # Errors
    /// [`TrainError::Config`] where it is too short and no extension is set.
    pub fn rope(&self, model: &ModelConfig, longest_tokens: usize) -> Result<Option<AdapterRope>> {
        let context = self.context_tokens.unwrap_or(longest_tokens);
        match self.context_extension {
            _ if context <= model.max_position_embeddings => Ok(None),
            Some(extension) => extension.rope(model, context).map(Some),
            None => Err(TrainError::config(
                "context",
                format!(
                    "{context} tokens exceed the base model's {}: shorten the examples, or extend the context \
                     (linear, llama3 or yarn)",
                    model.max_position_embeddings
                ),
            )),
        }
    }

    pub(crate) fn rope_spec(model: &ModelConfig, rope: Option<&AdapterRope>) -> RopeSpec {
        rope.map_or_else(|| RopeSpec::of(model), |rope| RopeSpec::of_adapter(model, rope))
    }
}
