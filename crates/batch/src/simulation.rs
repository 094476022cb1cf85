//! A trainer that computes nothing: for tests of jobs and for trying clients of the endpoint.
//!
//! It reads its files line by line, counts steps, writes a checkpoint with the number of the step, and goes on from there
//! when it is run again. Its adapter is a folder with a file `letter`. A suffix that begins with one of these words changes
//! what it does: `user-error`, `internal-error`, `panics`, `slow`, `deaf` (does not look whether it shall stop).

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::control::JobControl;
use crate::fine_tuner::{
    DatasetFormat, FileCheck, FineTuner, Finished, JobFailure, JobFiles, ModelLimits, Problem, Refusal,
};
use crate::job::{CheckpointMetrics, EventKind, EventLevel, Job, JobProgress, Metrics};
use crate::spec::{Auto, BatchSize, JobSpec, LrSchedule, LrScheduler, ResolvedSpec};

/// Called with a job and its adapter's folder.
pub type PublishHook = Box<dyn Fn(&Job, &Path) -> Result<(), String> + Send + Sync>;
/// Called with a job whose adapter is to go.
pub type RetractHook = Box<dyn Fn(&Job) -> Result<(), String> + Send + Sync>;

/// The trainer that computes nothing.
pub struct SimulatedFineTuner {
    /// Name of the base model.
    pub model: String,
    /// How long a step takes.
    pub step_time: Duration,
    /// Makes an adapter answer.
    pub publish: PublishHook,
    /// Takes it away.
    pub retract: RetractHook,
}

const MAX_STEPS: u64 = 100_000;
const MAX_PROBLEMS: usize = 100;
const BASE_LEARNING_RATE: f64 = 2e-4;

impl SimulatedFineTuner {
    /// A trainer over a base model whose adapters go nowhere.
    pub fn new(model: &str, step_time: Duration) -> Self {
        Self {
            model: model.to_owned(),
            step_time,
            publish: Box::new(|_, _| Ok(())),
            retract: Box::new(|_| Ok(())),
        }
    }
}

/// What a line of a training file is, or what is wrong with it.
fn check_line(line: &str) -> Result<DatasetFormat, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("is not JSON: {error}"))?;
    let Value::Object(fields) = value else { return Err("is not a JSON object".to_owned()) };
    if let Some(messages) = fields.get("messages") {
        let Some(messages) = messages.as_array().filter(|list| !list.is_empty()) else {
            return Err("`messages` is not a list with messages".to_owned());
        };
        for (idx, message) in messages.iter().enumerate() {
            let role = message.get("role").and_then(Value::as_str).unwrap_or("");
            if !["system", "user", "assistant", "tool"].contains(&role) {
                return Err(format!("`messages[{idx}].role` is not a known role"));
            }
        }
        return Ok(DatasetFormat::Conversation);
    }
    let text = |key: &str| fields.get(key).is_some_and(Value::is_string);
    match (text("prompt") && text("completion"), text("text")) {
        (true, _) => Ok(DatasetFormat::Instruction),
        (_, true) => Ok(DatasetFormat::General),
        _ => Err("has neither `messages` nor `prompt` and `completion` nor `text`".to_owned()),
    }
}

fn io(error: std::io::Error) -> JobFailure {
    JobFailure::Internal { message: format!("the simulation could not write: {:?}", error.kind()) }
}

/// Writes a file whole or not at all.
fn write_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension("part");
    let mut file = fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)
}

/// Writes an adapter's folder.
fn write_adapter(dir: &Path, job: &Job, step: u64) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let letter = b'b' + u8::try_from(job.resolved.seed % 20).unwrap_or(0);
    write_file(&dir.join("letter"), &[letter])?;
    write_file(
        &dir.join("adapter_config.json"),
        format!("{{\"peft_type\": \"LORA\", \"step\": {step}}}").as_bytes(),
    )
}

/// Ends the job as its suffix asks for.
fn misbehave(manner: &str) -> Result<(), JobFailure> {
    if manner.starts_with("user-error") {
        return Err(JobFailure::User {
            code: "invalid_training_file",
            message: "the training file is of no use".to_owned(),
            param: Some("training_file".to_owned()),
        });
    }
    if manner.starts_with("internal-error") {
        return Err(JobFailure::Internal { message: "the simulation gave up".to_owned() });
    }
    if manner.starts_with("panics") {
        std::panic::resume_unwind(Box::new("the simulation panics"));
    }
    Ok(())
}

/// The last step that is on the disk.
fn saved_step(dir: &Path) -> u64 {
    fs::read_to_string(dir.join("step")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl FineTuner for SimulatedFineTuner {
    fn check_file(&self, path: &Path, file_name: &str) -> Result<FileCheck, Vec<Problem>> {
        let whole = |message: String| vec![Problem { line: None, message }];
        if !file_name.ends_with(".jsonl") {
            return Err(whole(format!("{file_name} does not end in .jsonl")));
        }
        let file = fs::File::open(path).map_err(|error| whole(error.to_string()))?;
        let (mut problems, mut check) = (Vec::new(), FileCheck { num_records: 0, format: None });
        for (idx, line) in BufReader::new(file).lines().enumerate() {
            let number = idx as u64 + 1;
            let checked = match line {
                Ok(line) if line.trim().is_empty() => continue,
                Ok(line) => check_line(&line),
                Err(error) => Err(error.to_string()),
            };
            match checked {
                Ok(format) => {
                    check.num_records += 1;
                    check.format = Some(format);
                }
                Err(message) => problems.push(Problem { line: Some(number), message }),
            }
            if problems.len() >= MAX_PROBLEMS {
                break;
            }
        }
        if problems.is_empty() && check.num_records == 0 {
            return Err(whole("the file has no records".to_owned()));
        }
        if problems.is_empty() { Ok(check) } else { Err(problems) }
    }

    fn limits(&self, model: &str) -> Option<ModelLimits> {
        (model == self.model).then(|| ModelLimits {
            model: self.model.clone(),
            max_seq_length_tokens: 1024,
            batch_size: (1, 64),
            learning_rate: (1e-8, 1.0),
            max_epochs: 100,
            max_evals: 100,
            max_checkpoints: 100,
            lora_rank: (16, 64),
            target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).to_vec(),
        })
    }

    fn validate(&self, spec: &JobSpec, _: &JobFiles, _: &str) -> Result<ResolvedSpec, Refusal> {
        let Some(limits) = self.limits(&spec.model) else {
            return Err(Refusal::new("model", format!("is not the base model {:?}", self.model)));
        };
        let given = &spec.hyperparameters;
        let (default_rank, max_rank) = limits.lora_rank;
        let lora_rank = given.lora_rank.or(default_rank);
        if lora_rank > max_rank {
            return Err(Refusal::new("lora_rank", format!("is {lora_rank}, above {max_rank}")));
        }
        let multiplier = given.learning_rate_multiplier.or(1.0);
        let learning_rate = given.learning_rate.or(BASE_LEARNING_RATE * multiplier);
        let cosine = LrScheduler { schedule: LrSchedule::Cosine, min_lr_ratio: 0.0, num_cycles: 0.5 };
        let batch_size = match given.batch_size {
            Auto::Auto => 4,
            Auto::Value(BatchSize::Max) => limits.batch_size.1,
            Auto::Value(BatchSize::Examples(number)) => number,
        };
        Ok(ResolvedSpec {
            n_epochs: given.n_epochs.or(3),
            batch_size,
            learning_rate,
            learning_rate_multiplier: learning_rate / BASE_LEARNING_RATE,
            lr_scheduler: given.lr_scheduler.or(cosine),
            warmup_ratio: given.warmup_ratio.or(0.0),
            max_grad_norm: given.max_grad_norm.or(1.0),
            weight_decay: given.weight_decay.or(0.0),
            lora_rank,
            lora_alpha: given.lora_alpha.or(f64::from(lora_rank) * 2.0),
            lora_dropout: given.lora_dropout.or(0.0),
            lora_target_modules: given.lora_target_modules.clone().or(Vec::new()),
            train_on_inputs: given.train_on_inputs,
            packing: given.packing.or(true),
            max_seq_length_tokens: given.max_seq_length_tokens.value(),
            n_checkpoints: given.n_checkpoints.or(1),
            n_evals: given.n_evals.or(0),
            early_stopping: given.early_stopping,
            seed: spec.seed.unwrap_or(42),
            param_count: Some(4_884_480),
            extra: Value::Null,
        })
    }

    fn run(
        &self,
        job: &Job,
        files: &JobFiles,
        dir: &Path,
        control: &JobControl,
    ) -> Result<Finished, JobFailure> {
        let manner = job.spec.suffix.as_deref().unwrap_or("");
        let records = files.training.check.num_records;
        let steps_per_epoch = records.div_ceil(u64::from(job.resolved.batch_size)).max(1);
        let total = (steps_per_epoch * u64::from(job.resolved.n_epochs)).min(MAX_STEPS);
        let start = saved_step(dir);
        control.event(EventLevel::Info, EventKind::TrainingStart, "Training started", &Value::Null)?;
        let checkpoints = u64::from(job.resolved.n_checkpoints.max(1));
        for step in start + 1..=total {
            if !manner.starts_with("deaf") && control.is_stopped() {
                return Err(JobFailure::Stopped);
            }
            std::thread::sleep(if manner.starts_with("slow") { self.step_time * 20 } else { self.step_time });
            if step * 2 >= total {
                misbehave(manner)?;
            }
            let loss = 2.0 / (step as f64).sqrt();
            let metrics = Metrics {
                step,
                total_steps: Some(total),
                epoch: Some(step as f64 / steps_per_epoch as f64),
                train_loss: Some(loss),
                train_mean_token_accuracy: Some(1.0 - loss / 4.0),
                valid_loss: files.validation.as_ref().filter(|_| step == total).map(|_| loss + 0.1),
                learning_rate: Some(job.resolved.learning_rate),
                ..Metrics::default()
            };
            let progress = JobProgress {
                steps_completed: step,
                total_steps: Some(total),
                epochs_completed: step / steps_per_epoch,
                evals_completed: 0,
                trained_tokens: step * 100,
                estimated_finish_ms: None,
            };
            let remaining = u32::try_from(total - step).map(|steps| self.step_time * steps).ok();
            control.step(&metrics, progress, remaining)?;
            if step % steps_per_epoch == 0 {
                let text = format!("Epoch {} is done", step / steps_per_epoch);
                control.event(EventLevel::Info, EventKind::EpochComplete, &text, &Value::Null)?;
            }
            // The last one, and others spread evenly before it.
            if step * checkpoints / total > (step - 1) * checkpoints / total {
                let name = format!("checkpoint-{step}");
                write_adapter(&dir.join(&name), job, step).map_err(io)?;
                let at = CheckpointMetrics { train_loss: Some(loss), ..CheckpointMetrics::default() };
                control.checkpoint(step, Path::new(&name), &at)?;
            }
            write_file(&dir.join("step"), step.to_string().as_bytes()).map_err(io)?;
        }
        let adapter_dir = PathBuf::from("adapter");
        write_adapter(&dir.join(&adapter_dir), job, total).map_err(io)?;
        control.event(EventLevel::Info, EventKind::TrainingComplete, "Training is done", &Value::Null)?;
        (self.publish)(job, &dir.join(&adapter_dir)).map_err(|message| JobFailure::Internal { message })?;
        Ok(Finished { adapter_dir, trained_tokens: total * 100 })
    }

    fn publish(&self, job: &Job, adapter_dir: &Path) -> Result<(), String> {
        (self.publish)(job, adapter_dir)
    }

    fn retract(&self, job: &Job) -> Result<(), String> {
        (self.retract)(job)
    }
}
