//! Fine-tuning jobs over an open model: what the endpoint's jobs are run by.
//!
//! Training shares the machine with the engine that serves; a finished adapter is loaded from its job's folder, so that it
//! may be dropped from memory and read again, and is there again after a restart.

mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wardrobe_batch::{
    Auto, BatchSize as JobBatchSize, DatasetFormat, FileCheck, FineTuner, Finished, Job, JobControl,
    JobFailure, JobFile, JobFiles, JobSpec, LrSchedule, LrScheduler, ModelLimits, Problem, Refusal,
    ResolvedSpec,
};
use wardrobe_data::{CheckOptions, DataOptions, Dataset, Format, LossOn, ReadOptions};
use wardrobe_engine::{AdapterError, AdapterSource, Engine, LoadOptions};
use wardrobe_formats::peft::is_head;
use wardrobe_train::{BatchSize, EarlyStop, LoraConfig, OptimizerConfig, Schedule, TrainConfig, TrainError};

use self::report::Report;
use crate::error::Error;
use crate::model::Model;
use crate::training::{Sharing, Trainer};

const DEFAULT_EPOCHS: u32 = 3;
const DEFAULT_BATCH_SIZE: u32 = 8;
const DEFAULT_RANK: u32 = 16;
const MAX_RANK: u32 = 256;
const MAX_BATCH_SIZE: u32 = 1024;
const MAX_EPOCHS: u32 = 100;
const ALL_LINEAR: &str = "all-linear";
/// Errors of a file that are told.
const MAX_PROBLEMS: usize = 50;
const ADAPTER_DIR: &str = "adapter";
const RUN_DIR: &str = "run";

/// Runs fine-tuning jobs.
pub struct ModelFineTuner {
    model: Arc<Model>,
    engine: Engine,
    names: Vec<String>,
    threads: Option<usize>,
    sharing: Sharing,
}

impl std::fmt::Debug for ModelFineTuner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFineTuner").field("names", &self.names).finish_non_exhaustive()
    }
}

/// What is kept with a job besides what its API names.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Extra {
    gradient_accumulation: u32,
    max_batch: bool,
    /// The time that chat templates see, so that a resumed job has the same tokens.
    now_unix_s: i64,
}

impl ModelFineTuner {
    /// For jobs over `model`, which requests call by one of `names`, beside the engine that serves it.
    pub fn new(model: impl Into<Arc<Model>>, engine: Engine, names: Vec<String>) -> Self {
        ModelFineTuner { model: model.into(), engine, names, threads: None, sharing: Sharing::default() }
    }

    /// Sets how many threads train, and how they share the machine with the engine.
    #[must_use]
    pub fn with_sharing(mut self, threads: Option<usize>, sharing: Sharing) -> Self {
        (self.threads, self.sharing) = (threads, sharing);
        self
    }

    fn config(&self, resolved: &ResolvedSpec) -> TrainConfig {
        let extra = extra(resolved);
        let warmup_ratio = resolved.warmup_ratio;
        TrainConfig {
            lora: LoraConfig {
                rank: resolved.lora_rank as usize,
                alpha: resolved.lora_alpha,
                dropout: resolved.lora_dropout as f32,
                target_modules: if resolved.lora_target_modules.is_empty() {
                    vec![ALL_LINEAR.to_owned()]
                } else {
                    resolved.lora_target_modules.clone()
                },
                ..LoraConfig::default()
            },
            optimizer: OptimizerConfig {
                learning_rate: resolved.learning_rate,
                schedule: match resolved.lr_scheduler.schedule {
                    LrSchedule::Linear => Schedule::Linear,
                    LrSchedule::Cosine => Schedule::Cosine,
                    LrSchedule::Constant => Schedule::Constant,
                },
                min_lr_ratio: resolved.lr_scheduler.min_lr_ratio,
                warmup_ratio,
                weight_decay: resolved.weight_decay,
                max_grad_norm: (resolved.max_grad_norm > 0.0).then_some(resolved.max_grad_norm),
                ..OptimizerConfig::default()
            },
            batch_size: if extra.max_batch {
                BatchSize::Max
            } else {
                BatchSize::Examples(resolved.batch_size as usize)
            },
            gradient_accumulation: extra.gradient_accumulation.max(1) as usize,
            epochs: resolved.n_epochs as usize,
            seed: resolved.seed,
            early_stop: resolved
                .early_stopping
                .map(|e| EarlyStop { patience: e.patience as usize, min_delta: e.min_delta }),
            n_checkpoints: resolved.n_checkpoints.max(1) as usize,
            // What was told of stays.
            save_total_limit: usize::MAX,
            threads: self.threads,
            ..TrainConfig::default()
        }
    }

    fn dataset(&self, file: &JobFile, resolved: &ResolvedSpec, param: &str) -> Result<Dataset, JobFailure> {
        let options = DataOptions {
            read: read_options(&file.file_name),
            loss: match resolved.train_on_inputs {
                Auto::Value(true) => LossOn::Everything,
                _ => LossOn::Completions,
            },
            max_tokens: Some(
                resolved
                    .max_seq_length_tokens
                    .map_or(self.model.config().max_position_embeddings, |n| n as usize),
            ),
            now_unix_s: Some(extra(resolved).now_unix_s),
            ..DataOptions::default()
        };
        self.model.dataset(&file.path, &options).map_err(|error| {
            let at = file.path.display().to_string();
            JobFailure::User {
                code: "invalid_training_file",
                message: error.to_string().replace(&at, &file.file_name),
                param: Some(param.to_owned()),
            }
        })
    }

    fn load(&self, job: &Job, path: PathBuf) -> Result<(), AdapterError> {
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        self.engine.load_adapter(&job.name, AdapterSource::Path(path), options).map(|_| ())
    }
}

fn extra(resolved: &ResolvedSpec) -> Extra {
    serde_json::from_value(resolved.extra.clone()).unwrap_or_default()
}

fn read_options(file_name: &str) -> ReadOptions {
    let ending = Path::new(file_name).extension().map(|e| e.to_string_lossy().to_lowercase());
    let format = match ending.as_deref() {
        Some("csv") => Format::Csv,
        // Pages of a hostile Parquet file can claim more memory than an upload should.
        _ => Format::Jsonl,
    };
    ReadOptions { format: Some(format), ..ReadOptions::default() }
}

fn now_unix_s() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0))
}

impl FineTuner for ModelFineTuner {
    fn check_file(&self, path: &Path, file_name: &str) -> Result<FileCheck, Vec<Problem>> {
        let whole = |message: String| vec![Problem { line: None, message }];
        if file_name.to_lowercase().ends_with(".parquet") {
            return Err(whole("is Parquet; upload JSONL or CSV".to_owned()));
        }
        let options = CheckOptions { read: read_options(file_name), max_findings: MAX_PROBLEMS };
        let report = wardrobe_data::check(path, &options)
            .map_err(|error| whole(error.to_string().replace(&path.display().to_string(), "the file")))?;
        if !report.is_ok() {
            let problem = |finding: &wardrobe_data::Finding| Problem {
                line: match finding.place {
                    Some(wardrobe_data::Place::Line(n) | wardrobe_data::Place::Row(n)) => Some(n),
                    _ => None,
                },
                message: match &finding.key {
                    Some(key) => format!("{key}: {}", finding.message),
                    None => finding.message.clone(),
                },
            };
            return Err(report.errors.iter().map(problem).collect());
        }
        if report.num_records == 0 {
            return Err(whole("has no records".to_owned()));
        }
        let format = report.layout.as_deref().map(|layout| match layout {
            l if l.starts_with("messages") || l.starts_with("conversations") => DatasetFormat::Conversation,
            l if l.starts_with("text") => DatasetFormat::General,
            _ => DatasetFormat::Instruction,
        });
        Ok(FileCheck { num_records: report.num_records, format })
    }

    fn limits(&self, model: &str) -> Option<ModelLimits> {
        let config = self.model.config();
        let mut modules: Vec<String> = self
            .model
            .decoder()
            .modules()
            .iter()
            .filter_map(|m| m.path.rsplit('.').next().map(str::to_owned))
            .filter(|name| !is_head(name))
            .collect();
        modules.sort();
        modules.dedup();
        self.names.iter().any(|name| name == model).then(|| ModelLimits {
            model: model.to_owned(),
            max_seq_length_tokens: config.max_position_embeddings as u32,
            batch_size: (1, MAX_BATCH_SIZE),
            learning_rate: (1e-8, 1.0),
            max_epochs: MAX_EPOCHS,
            max_evals: 1000,
            max_checkpoints: 1000,
            lora_rank: (DEFAULT_RANK, MAX_RANK.min(config.kv_size() as u32)),
            target_modules: modules,
        })
    }

    fn validate(&self, spec: &JobSpec, files: &JobFiles, _name: &str) -> Result<ResolvedSpec, Refusal> {
        let Some(limits) = self.limits(&spec.model) else {
            let known = self.names.join(", ");
            return Err(Refusal::new("model", format!("is not served here; the base model is {known}")));
        };
        let h = &spec.hyperparameters;
        let within = |field: &str, value: Auto<u32>, default: u32, most: u32| match value.or(default) {
            value if value > most => Err(Refusal::new(field, format!("is {value}, over {most}"))),
            value => Ok(value),
        };
        let scheduler = h.lr_scheduler.or(LrScheduler {
            schedule: LrSchedule::Cosine,
            min_lr_ratio: 0.0,
            num_cycles: 0.5,
        });
        if scheduler.schedule == LrSchedule::Cosine && (scheduler.num_cycles - 0.5).abs() > 1e-9 {
            return Err(Refusal::new("lr_scheduler.num_cycles", "other than 0.5 is not supported"));
        }
        if h.early_stopping.is_some_and(|e| e.warmup_evals > 0) {
            return Err(Refusal::new("early_stopping.warmup_evals", "is not supported"));
        }
        if h.early_stopping.is_some() && files.validation.is_none() {
            return Err(Refusal::new("early_stopping", "needs a validation file"));
        }
        let default_rate = OptimizerConfig::default().learning_rate;
        let multiplier = h.learning_rate_multiplier.or(1.0);
        let learning_rate = h.learning_rate.or(default_rate * multiplier);
        let (max_batch, batch_size) = match h.batch_size {
            Auto::Value(JobBatchSize::Max) => (true, DEFAULT_BATCH_SIZE),
            Auto::Value(JobBatchSize::Examples(n)) => (false, n),
            Auto::Auto => (false, DEFAULT_BATCH_SIZE),
        };
        if batch_size > MAX_BATCH_SIZE {
            return Err(Refusal::new("batch_size", format!("is {batch_size}, over {MAX_BATCH_SIZE}")));
        }
        let lora_rank = within("lora_rank", h.lora_rank, DEFAULT_RANK, limits.lora_rank.1)?;
        let max_seq_length_tokens = match h.max_seq_length_tokens.value() {
            Some(n) if n > limits.max_seq_length_tokens => {
                let most = limits.max_seq_length_tokens;
                return Err(Refusal::new("max_seq_length", format!("is {n}, over the model's {most}")));
            }
            n => n,
        };
        let extra = Extra {
            gradient_accumulation: h.gradient_accumulation_steps.or(1),
            max_batch,
            now_unix_s: now_unix_s(),
        };
        let mut resolved = ResolvedSpec {
            n_epochs: within("n_epochs", h.n_epochs, DEFAULT_EPOCHS, limits.max_epochs)?,
            batch_size,
            learning_rate,
            learning_rate_multiplier: learning_rate / default_rate,
            lr_scheduler: scheduler,
            warmup_ratio: h.warmup_ratio.or(OptimizerConfig::default().warmup_ratio),
            max_grad_norm: h.max_grad_norm.or(1.0),
            weight_decay: h.weight_decay.or(0.0),
            lora_rank,
            lora_alpha: h.lora_alpha.or(2.0 * f64::from(lora_rank)),
            lora_dropout: h.lora_dropout.or(0.0),
            lora_target_modules: {
                let given = h.lora_target_modules.as_ref().value().cloned();
                let names =
                    given.unwrap_or_else(|| wardrobe_models::default_target_modules(self.model.config()));
                // All of them are told by none.
                if names == [ALL_LINEAR] { Vec::new() } else { names }
            },
            train_on_inputs: h.train_on_inputs,
            packing: h.packing.or(true),
            max_seq_length_tokens,
            n_checkpoints: within("n_checkpoints", h.n_checkpoints, 1, limits.max_checkpoints)?.max(1),
            n_evals: within("n_evals", h.n_evals, u32::from(files.validation.is_some()), limits.max_evals)?,
            early_stopping: h.early_stopping,
            seed: spec.seed.unwrap_or(0),
            param_count: None,
            extra: serde_json::to_value(extra).unwrap_or_default(),
        };
        let trainer =
            Trainer::new(self.model.clone(), self.config(&resolved)).map_err(|error| match error {
                Error::Train(error) => match *error {
                    TrainError::Config { field, reason } => Refusal::new(field_of(field), reason),
                    error => Refusal::new("hyperparameters", error.to_string()),
                },
                error => Refusal::new("hyperparameters", error.to_string()),
            })?;
        resolved.param_count = Some(trainer.num_parameters());
        Ok(resolved)
    }

    fn run(
        &self,
        job: &Job,
        files: &JobFiles,
        dir: &Path,
        control: &JobControl,
    ) -> Result<Finished, JobFailure> {
        let train = self.dataset(&files.training, &job.resolved, "training_file")?;
        let eval = files.validation.as_ref().map(|file| self.dataset(file, &job.resolved, "validation_file"));
        let eval = eval.transpose()?;
        if train.counts().num_dropped() > 0 {
            control.warn(&format!("The training file: {}", train.counts()))?;
        }
        let mut config = self.config(&job.resolved);
        let trainer = |config: &TrainConfig| {
            let trainer = Trainer::new(self.model.clone(), config.clone()).map_err(failure)?;
            Ok(trainer.beside(&self.engine, self.sharing).with_run_folder(dir.join(RUN_DIR)))
        };
        if job.resolved.n_evals > 0 && eval.is_some() {
            let plan = trainer(&config)?.plan(&train, eval.as_ref()).map_err(failure)?;
            config.eval_steps = Some(plan.total_steps.div_ceil(job.resolved.n_evals as usize).max(1));
        }
        let trainer = trainer(&config)?;
        let mut report = Report::new(control, job.resolved.n_epochs);
        let result = trainer.train_with(&train, eval.as_ref(), &mut report);
        report.failed.map_or(Ok(()), Err)?;
        let trained = result.map_err(failure)?;
        let path = dir.join(ADAPTER_DIR);
        trained.save(&path, true).map_err(|error| failure(error.into()))?;
        self.load(job, path).map_err(|error| JobFailure::Internal { message: error.to_string() })?;
        Ok(Finished { adapter_dir: PathBuf::from(ADAPTER_DIR), trained_tokens: trained.tokens() })
    }

    fn publish(&self, job: &Job, adapter_dir: &Path) -> Result<(), String> {
        self.load(job, adapter_dir.to_owned()).map_err(|error| error.to_string())
    }

    fn retract(&self, job: &Job) -> Result<(), String> {
        match self.engine.unload_adapter(&job.name, None) {
            Ok(_) | Err(AdapterError::NotLoaded { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The request's name for a setting.
fn field_of(setting: &str) -> String {
    match setting {
        "rank" => "lora_rank",
        "alpha" => "lora_alpha",
        "dropout" => "lora_dropout",
        "target_modules" => "lora_target_modules",
        "epochs" => "n_epochs",
        other => other,
    }
    .to_owned()
}

fn failure(error: Error) -> JobFailure {
    let message = error.to_string();
    let user = |code, param: Option<&str>, message| JobFailure::User {
        code,
        message,
        param: param.map(str::to_owned),
    };
    match error {
        Error::Train(error) => match *error {
            TrainError::Cancelled { .. } => JobFailure::Stopped,
            TrainError::Data(_) => user("invalid_training_file", Some("training_file"), message),
            TrainError::Config { field, .. } => {
                user("invalid_hyperparameter", Some(&field_of(field)), message)
            }
            TrainError::Memory { .. } => user("too_large", Some("training_file"), message),
            TrainError::NotFinite { .. } => user("diverged", Some("learning_rate"), message),
            _ => JobFailure::Internal { message },
        },
        _ => JobFailure::Internal { message },
    }
}
