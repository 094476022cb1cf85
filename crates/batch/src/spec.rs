//! What a job is asked to do, and what the trainer made of it.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fine_tuner::Refusal;

/// A value, or the word that the trainer shall choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auto<T> {
    /// The trainer chooses.
    #[default]
    Auto,
    /// As given.
    Value(T),
}

impl<T> Auto<T> {
    /// The value, if one was given.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Value(value) => Some(value),
        }
    }

    /// The value that was given, by reference.
    pub fn as_ref(&self) -> Auto<&T> {
        match self {
            Self::Auto => Auto::Auto,
            Self::Value(value) => Auto::Value(value),
        }
    }

    /// The value that was given, or this one.
    pub fn or(self, default: T) -> T {
        self.value().unwrap_or(default)
    }
}

impl<T> From<Option<T>> for Auto<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Auto, Self::Value)
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

/// Reads `"auto"`, null or a value.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form<T> {
            Value(T),
            Word(String),
            Null,
        }
        match Form::<T>::deserialize(deserializer) {
            Ok(Form::Value(value)) => Ok(Self::Value(value)),
            Ok(Form::Null) => Ok(Self::Auto),
            Ok(Form::Word(word)) if word == "auto" => Ok(Self::Auto),
            _ => Err(D::Error::custom("is neither \"auto\" nor a value in its range")),
        }
    }
}

/// Examples in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSize {
    /// So many.
    Examples(u32),
    /// As many as fit into memory.
    Max,
}

impl Serialize for BatchSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Examples(number) => serializer.serialize_u32(*number),
            Self::Max => serializer.serialize_str("max"),
        }
    }
}

impl<'de> Deserialize<'de> for BatchSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u32),
            Word(String),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Number(number)) => Ok(Self::Examples(number)),
            Ok(Form::Word(word)) if word == "max" => Ok(Self::Max),
            _ => Err(D::Error::custom("is neither \"max\" nor a whole number in its range")),
        }
    }
}

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Along a line.
    Linear,
    /// Along a cosine.
    Cosine,
    /// Not at all.
    Constant,
}

/// The schedule of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LrScheduler {
    /// Its shape.
    pub schedule: LrSchedule,
    /// The last learning rate as a part of the highest, 0 to 1.
    #[serde(default)]
    pub min_lr_ratio: f64,
    /// Periods of the cosine; 0.5 goes down once.
    #[serde(default = "half")]
    pub num_cycles: f64,
}

fn half() -> f64 {
    0.5
}

/// When to stop before all epochs are done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    /// Evaluations in a row that may bring nothing.
    pub patience: u32,
    /// A fall of the loss by less than this counts as nothing.
    pub min_delta: f64,
    /// Evaluations at the start that do not count.
    pub warmup_evals: u32,
}

/// What can be set about the training. What is `Auto` or `None` is left to the trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyperparameters {
    /// Passes over the training file.
    pub n_epochs: Auto<u32>,
    /// Examples in a batch.
    pub batch_size: Auto<BatchSize>,
    /// Batches whose gradients are added before a step.
    pub gradient_accumulation_steps: Auto<u32>,
    /// The highest learning rate.
    pub learning_rate: Auto<f64>,
    /// A factor on the learning rate that the trainer would choose.
    pub learning_rate_multiplier: Auto<f64>,
    /// How the learning rate falls.
    pub lr_scheduler: Auto<LrScheduler>,
    /// The part of all steps in which the learning rate rises, 0 to 1.
    pub warmup_ratio: Auto<f64>,
    /// Gradients are scaled down to this norm; 0 leaves them as they are.
    pub max_grad_norm: Auto<f64>,
    /// AdamW's weight decay.
    pub weight_decay: Auto<f64>,
    /// LoRA's rank.
    pub lora_rank: Auto<u32>,
    /// LoRA's alpha; the update is scaled by alpha / rank.
    pub lora_alpha: Auto<f64>,
    /// The part of the adapter's inputs that is dropped while training, 0 to below 1.
    pub lora_dropout: Auto<f64>,
    /// Names of the linear layers that get an adapter; `Auto` is all but the head.
    pub lora_target_modules: Auto<Vec<String>>,
    /// Whether the loss counts prompts too.
    pub train_on_inputs: Auto<bool>,
    /// Whether short examples share a sequence, without seeing each other.
    pub packing: Auto<bool>,
    /// Longest example.
    pub max_seq_length_tokens: Auto<u32>,
    /// Checkpoints over the whole training.
    pub n_checkpoints: Auto<u32>,
    /// Evaluations over the whole training.
    pub n_evals: Auto<u32>,
    /// When to stop early.
    pub early_stopping: Option<EarlyStopping>,
}

/// Through which API a job was made. Both can look at every job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobApi {
    /// `/v1/fine_tuning/jobs`.
    FineTuningJobs,
    /// `/v1/fine-tunes`.
    FineTunes,
}

/// What a job is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Through which API it came.
    pub api: JobApi,
    /// Name of the base model.
    pub model: String,
    /// Id of the file with the training examples.
    pub training_file: String,
    /// Id of the file with examples for evaluation.
    pub validation_file: Option<String>,
    /// Stands in the adapter's name.
    pub suffix: Option<String>,
    /// The same seed, file and hyperparameters give the same adapter.
    pub seed: Option<u64>,
    /// What can be set about the training.
    pub hyperparameters: Hyperparameters,
    /// The client's own notes.
    pub metadata: Option<BTreeMap<String, String>>,
}

impl JobSpec {
    /// Whether every value is in the range that makes sense for any model.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.hyperparameters.check()?;
        check_metadata(self.metadata.as_ref())
    }
}

/// Whether a client's notes are as long as OpenAI's may be.
pub(crate) fn check_metadata(notes: Option<&BTreeMap<String, String>>) -> Result<(), Refusal> {
    const MAX_PAIRS: usize = 16;
    const MAX_KEY_CHARS: usize = 64;
    const MAX_VALUE_CHARS: usize = 512;
    let notes = notes.into_iter().flatten();
    let too_long = |(key, value): (&String, &String)| {
        key.chars().count() > MAX_KEY_CHARS || value.chars().count() > MAX_VALUE_CHARS
    };
    if notes.clone().count() > MAX_PAIRS || notes.into_iter().any(too_long) {
        let reason = format!(
            "may have {MAX_PAIRS} pairs, with keys of {MAX_KEY_CHARS} and values of {MAX_VALUE_CHARS} characters"
        );
        return Err(Refusal::new("metadata", reason));
    }
    Ok(())
}

impl Hyperparameters {
    fn check(&self) -> Result<(), Refusal> {
        let whole = |field: &str, value: Auto<u32>, least: u32| match value {
            Auto::Value(value) if value < least => {
                Err(Refusal::new(field, format!("is {value}, below {least}")))
            }
            _ => Ok(()),
        };
        let batch = match self.batch_size {
            Auto::Value(BatchSize::Examples(number)) => Auto::Value(number),
            _ => Auto::Auto,
        };
        whole("n_epochs", self.n_epochs, 1)?;
        whole("batch_size", batch, 1)?;
        whole("gradient_accumulation_steps", self.gradient_accumulation_steps, 1)?;
        whole("lora_rank", self.lora_rank, 1)?;
        whole("max_seq_length_tokens", self.max_seq_length_tokens, 1)?;
        let positive = |value: f64| value > 0.0;
        let not_negative = |value: f64| value >= 0.0;
        let part = |value: f64| (0.0..=1.0).contains(&value);
        let scheduler = self.lr_scheduler.value();
        let min_lr_ratio: Auto<f64> = scheduler.map(|scheduler| scheduler.min_lr_ratio).into();
        let num_cycles: Auto<f64> = scheduler.map(|scheduler| scheduler.num_cycles).into();
        let below_one = |value: f64| (0.0..1.0).contains(&value);
        for (field, value, fits, range) in [
            ("learning_rate", self.learning_rate, &positive as &dyn Fn(f64) -> bool, "above 0"),
            ("learning_rate_multiplier", self.learning_rate_multiplier, &positive, "above 0"),
            ("lr_scheduler.min_lr_ratio", min_lr_ratio, &part, "in 0 to 1"),
            ("lr_scheduler.num_cycles", num_cycles, &positive, "above 0"),
            ("warmup_ratio", self.warmup_ratio, &part, "in 0 to 1"),
            ("max_grad_norm", self.max_grad_norm, &not_negative, "0 or more"),
            ("weight_decay", self.weight_decay, &not_negative, "0 or more"),
            ("lora_alpha", self.lora_alpha, &positive, "above 0"),
            ("lora_dropout", self.lora_dropout, &below_one, "in 0 to below 1"),
        ] {
            if let Auto::Value(value) = value
                && !(value.is_finite() && fits(value))
            {
                return Err(Refusal::new(field, format!("is {value}, not {range}")));
            }
        }
        const MAX_MODULES: usize = 64;
        const MAX_MODULE_BYTES: usize = 128;
        if let Auto::Value(modules) = &self.lora_target_modules {
            let fits = |name: &String| !name.trim().is_empty() && name.len() <= MAX_MODULE_BYTES;
            if !(1..=MAX_MODULES).contains(&modules.len()) || !modules.iter().all(fits) {
                let reason = format!(
                    "needs 1 to {MAX_MODULES} names, none empty or longer than {MAX_MODULE_BYTES} bytes"
                );
                return Err(Refusal::new("lora_target_modules", reason));
            }
        }
        if let Some(stop) = &self.early_stopping
            && (stop.patience == 0 || !stop.min_delta.is_finite() || stop.min_delta < 0.0)
        {
            return Err(Refusal::new(
                "early_stopping",
                "needs a patience of 1 or more and a delta of 0 or more",
            ));
        }
        Ok(())
    }
}

/// What the trainer makes of a spec: every number that it will use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResolvedSpec {
    /// Passes over the training file.
    pub n_epochs: u32,
    /// Examples in a batch.
    pub batch_size: u32,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// That learning rate, as a multiple of the one that the trainer would choose.
    pub learning_rate_multiplier: f64,
    /// How the learning rate falls.
    pub lr_scheduler: LrScheduler,
    /// The part of all steps in which the learning rate rises.
    pub warmup_ratio: f64,
    /// Gradients are scaled down to this norm; 0 leaves them as they are.
    pub max_grad_norm: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// LoRA's rank.
    pub lora_rank: u32,
    /// LoRA's alpha.
    pub lora_alpha: f64,
    /// LoRA's dropout.
    pub lora_dropout: f64,
    /// Names of the linear layers that get an adapter; empty is all but the head.
    pub lora_target_modules: Vec<String>,
    /// Whether the loss counts prompts too; `Auto` goes by the format of each record.
    pub train_on_inputs: Auto<bool>,
    /// Whether short examples share a sequence.
    pub packing: bool,
    /// Longest example; `None` is the longest of the file.
    pub max_seq_length_tokens: Option<u32>,
    /// Checkpoints over the whole training.
    pub n_checkpoints: u32,
    /// Evaluations over the whole training.
    pub n_evals: u32,
    /// When to stop early.
    pub early_stopping: Option<EarlyStopping>,
    /// The seed.
    pub seed: u64,
    /// Parameters that are trained.
    pub param_count: Option<u64>,
    /// Whatever else the trainer wants to find again when it runs or resumes the job.
    #[serde(default)]
    pub extra: serde_json::Value,
}
