//! Fine-tuning jobs in Together's shapes, of its first API and of today's.

use axum::http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wardrobe_batch::{
    Auto, BatchSize, Checkpoint, Event, EventKind, EventLevel, Job, JobStatus, LrSchedule, ModelLimits,
};

use super::request::Seed;

/// `POST /v1/fine-tunes`. Numbers have the trainer's defaults where they are left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CreateFineTune {
    pub training_file: String,
    pub validation_file: Option<String>,
    pub model: Option<String>,
    pub suffix: Option<String>,
    pub random_seed: Option<Seed>,
    pub n_epochs: Option<u32>,
    pub n_checkpoints: Option<u32>,
    pub n_evals: Option<u32>,
    pub batch_size: Option<BatchSize>,
    pub gradient_accumulation_steps: Option<u32>,
    pub learning_rate: Option<f64>,
    pub lr_scheduler: Option<SchedulerFields>,
    pub warmup_ratio: Option<f64>,
    pub max_grad_norm: Option<f64>,
    pub weight_decay: Option<f64>,
    pub packing: Option<bool>,
    pub max_seq_length: Option<u32>,
    pub train_on_inputs: Auto<bool>,
    pub training_type: Option<TypeFields>,
    pub training_method: Option<MethodFields>,
    pub early_stopping_enabled: Option<bool>,
    pub early_stopping_patience: Option<u32>,
    pub early_stopping_min_delta: Option<f64>,
    pub early_stopping_warmup_evals: Option<u32>,
    pub multimodal_params: Option<MultimodalFields>,
    pub from_checkpoint: Option<String>,
    pub from_hf_model: Option<String>,
    pub hf_output_repo_name: Option<String>,
    pub wandb_key: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SchedulerFields {
    pub lr_scheduler_type: String,
    #[serde(default)]
    pub lr_scheduler_args: Option<SchedulerArguments>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SchedulerArguments {
    pub min_lr_ratio: Option<f64>,
    pub num_cycles: Option<f64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct TypeFields {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub lora_r: Option<u32>,
    #[serde(default)]
    pub lora_alpha: Option<f64>,
    #[serde(default)]
    pub lora_dropout: Option<f64>,
    #[serde(default)]
    pub lora_trainable_modules: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MethodFields {
    pub method: String,
    #[serde(default)]
    pub train_on_inputs: Auto<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MultimodalFields {
    pub train_vision: bool,
}

/// `POST /v1/fine-tunes/estimate-price`.
#[derive(Debug, Deserialize)]
pub(crate) struct EstimatePrice {
    pub training_file: String,
    #[serde(default)]
    pub n_epochs: Option<u32>,
}

/// A time as ISO 8601 has it, in UTC.
pub(crate) fn iso_time(ms: i64) -> String {
    let (days, in_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Years that begin in March have their odd day at the end; 400 of them have 146,097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (seconds, ms) = (in_day / 1000, in_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// A job's status in Together's words.
fn status(job: &Job) -> &'static str {
    match job.status {
        JobStatus::Queued => "queued",
        JobStatus::Running if job.cancel_requested => "cancel_requested",
        JobStatus::Running => "running",
        JobStatus::Succeeded => "completed",
        JobStatus::Failed if job.error.as_ref().is_some_and(|error| error.user_error) => "user_error",
        JobStatus::Failed => "error",
        JobStatus::Cancelled => "cancelled",
    }
}

/// How events are called: clients up to the first versions of 1 know names in capitals, and some refuse others; those of
/// today know them in small letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventNames {
    Small,
    Capitals,
}

impl EventNames {
    /// By what the client calls itself.
    pub fn of(headers: &HeaderMap) -> Self {
        let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
        let is_older = agent.starts_with("TogetherPythonOfficial/") || agent.contains("PythonBindings/");
        if is_older { Self::Capitals } else { Self::Small }
    }

    fn show(self, name: &str) -> String {
        match self {
            Self::Small => name.to_owned(),
            Self::Capitals => name.to_uppercase(),
        }
    }
}

/// An event of a job.
pub(crate) fn event(job: &Job, event: &Event, names: EventNames) -> Value {
    let step = event.data.get("step");
    let checkpoint_path = match (event.kind, step) {
        (EventKind::CheckpointSave, Some(step)) => format!("{}:{step}", job.id),
        _ => String::new(),
    };
    let has_adapter = event.kind == EventKind::JobComplete;
    let model_path = if has_adapter { adapter_path(job) } else { String::new() };
    // What is known by then.
    let trained = matches!(event.kind, EventKind::TrainingComplete | EventKind::JobComplete);
    let mut shown = json!({
        "object": "fine-tune-event",
        "created_at": iso_time(event.created_at_ms),
        "level": match event.level {
            EventLevel::Info => "info",
            EventLevel::Warn => "warning",
            EventLevel::Error => "error",
        },
        "message": event.message,
        "type": names.show(event.kind.name()),
        "param_count": job.resolved.param_count.unwrap_or(0),
        "token_count": if trained { job.progress.trained_tokens } else { 0 },
        "wandb_url": "",
        "checkpoint_path": checkpoint_path,
        "model_path": model_path,
        "hash": "",
    });
    if let (Some(fields), Some(step)) = (shown.as_object_mut(), step) {
        fields.insert("step".to_owned(), step.clone());
    }
    shown
}

/// Where the adapter of a job is, as far as clients are told.
fn adapter_path(job: &Job) -> String {
    format!("{}/adapter", job.id)
}

fn schedule(schedule: LrSchedule) -> &'static str {
    match schedule {
        LrSchedule::Linear => "linear",
        LrSchedule::Cosine => "cosine",
        LrSchedule::Constant => "constant",
    }
}

/// A job. The events go with a single job only, not with a list.
pub(crate) fn job(job: &Job, organization: &str, events: Option<(&[Event], EventNames)>) -> Value {
    let (resolved, progress) = (&job.resolved, &job.progress);
    let now_or_end = job.finished_at_ms.unwrap_or(job.updated_at_ms);
    let remaining_s = progress.estimated_finish_ms.map_or(0, |end| (end - now_or_end).max(0) / 1000);
    let modules = match resolved.lora_target_modules.as_slice() {
        [] => "all-linear".to_owned(),
        names => names.join(","),
    };
    let train_on_inputs = json!(resolved.train_on_inputs);
    let succeeded = job.status == JobStatus::Succeeded;
    let state = json!({
        "id": job.id,
        "job_id": job.id,
        "object": "fine-tune",
        "status": status(job),
        "created_at": iso_time(job.created_at_ms),
        "updated_at": iso_time(job.updated_at_ms),
        "started_at": job.started_at_ms.map(iso_time),
        "user_id": organization,
        "owner_address": organization,
        "model": job.spec.model,
        "model_output_name": job.name,
        "output_name": job.name,
        "adapter_output_name": job.name,
        "model_output_path": succeeded.then(|| adapter_path(job)),
        "adapter_output_path": succeeded.then(|| adapter_path(job)),
        "suffix": job.spec.suffix,
        "Suffix": job.spec.suffix,
        "training_file": job.spec.training_file,
        "validation_file": job.spec.validation_file.as_deref().unwrap_or(""),
        "TrainingFileNumLines": job.training_records,
        "TrainingFileSize": job.training_bytes,
        "trainingfile_numlines": job.training_records,
        "trainingfile_size": job.training_bytes,
        "token_count": progress.trained_tokens,
        "param_count": resolved.param_count.unwrap_or(0),
        "total_price": 0,
        "total_steps": progress.total_steps,
        "steps_completed": progress.steps_completed,
        "epochs_completed": progress.epochs_completed,
        "evals_completed": progress.evals_completed,
        "queue_depth": job.queue_position,
        "error": job.error.as_ref().map(|error| &error.message),
        "events": events.map(|(events, names)| {
            events.iter().map(|of_job| event(job, of_job, names)).collect::<Vec<_>>()
        }),
    });
    let settings = json!({
        "n_epochs": resolved.n_epochs,
        "n_checkpoints": resolved.n_checkpoints,
        "n_evals": resolved.n_evals,
        "batch_size": resolved.batch_size,
        "learning_rate": resolved.learning_rate,
        "lr_scheduler": {
            "lr_scheduler_type": schedule(resolved.lr_scheduler.schedule),
            "lr_scheduler_args": {
                "min_lr_ratio": resolved.lr_scheduler.min_lr_ratio,
                "num_cycles": resolved.lr_scheduler.num_cycles,
            },
        },
        "warmup_ratio": resolved.warmup_ratio,
        "max_grad_norm": resolved.max_grad_norm,
        "weight_decay": resolved.weight_decay,
        "packing": resolved.packing,
        "max_seq_length": resolved.max_seq_length_tokens,
        "random_seed": resolved.seed,
        "train_on_inputs": train_on_inputs,
        "training_type": {
            "type": "Lora",
            "lora_r": resolved.lora_rank,
            "lora_alpha": whole_if_it_is(resolved.lora_alpha),
            "lora_dropout": resolved.lora_dropout,
            "lora_trainable_modules": modules,
        },
        "training_method": {"method": "sft", "train_on_inputs": train_on_inputs},
        "progress": {
            "estimate_available": progress.estimated_finish_ms.is_some(),
            "seconds_remaining": remaining_s,
        },
        "early_stopped": job.early_stop.is_some(),
        "early_stopping_best_step": job.early_stop.map(|stop| stop.best_step),
        "early_stopping_best_metric": job.early_stop.and_then(|stop| stop.best_loss),
        "from_checkpoint": "",
        "wandb_project_name": "",
        "wandb_url": "",
    });
    let fields = [state, settings].into_iter().filter_map(|part| match part {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    Value::Object(fields.flatten().collect())
}

/// Clients read alpha as a whole number.
fn whole_if_it_is(value: f64) -> Value {
    match value {
        value if value.fract() == 0.0 && value.abs() < 9.0e15 => json!(value as i64),
        value => json!(value),
    }
}

/// A checkpoint.
pub(crate) fn checkpoint(job: &Job, checkpoint: &Checkpoint) -> Value {
    let last = job.status == JobStatus::Succeeded && job.progress.steps_completed == checkpoint.step;
    let kind = if last { "Final" } else { "Intermediate" };
    json!({
        "checkpoint_type": format!("{kind} (step {})", checkpoint.step),
        "checkpoint": "adapter",
        "created_at": iso_time(checkpoint.created_at_ms),
        "path": format!("{}:{}", job.id, checkpoint.step),
        "step": checkpoint.step,
    })
}

#[derive(Serialize)]
struct LoraLimits<'a> {
    default_rank: u32,
    max_rank: u32,
    min_batch_size: u32,
    max_batch_size: u32,
    max_batch_size_dpo: u32,
    target_modules: &'a [String],
}

/// What a model's jobs may ask for. Everything but LoRA on plain text is absent.
#[derive(Serialize)]
pub(crate) struct Limits<'a> {
    model_name: &'a str,
    max_num_epochs: u32,
    max_num_evals: u32,
    max_num_checkpoints: u32,
    min_learning_rate: f64,
    max_learning_rate: f64,
    min_max_seq_length: u32,
    max_seq_length_sft: u32,
    max_seq_length_dpo: u32,
    default_gradient_accumulation_steps: u32,
    merge_output_lora: bool,
    supports_full_training: bool,
    supports_reasoning: bool,
    supports_tools: bool,
    supports_vision: bool,
    full_training: Option<()>,
    lora_training: LoraLimits<'a>,
}

impl<'a> Limits<'a> {
    pub fn new(limits: &'a ModelLimits) -> Self {
        Self {
            model_name: &limits.model,
            max_num_epochs: limits.max_epochs,
            max_num_evals: limits.max_evals,
            max_num_checkpoints: limits.max_checkpoints,
            min_learning_rate: limits.learning_rate.0,
            max_learning_rate: limits.learning_rate.1,
            min_max_seq_length: 1,
            max_seq_length_sft: limits.max_seq_length_tokens,
            max_seq_length_dpo: 0,
            default_gradient_accumulation_steps: 1,
            merge_output_lora: false,
            supports_full_training: false,
            supports_reasoning: false,
            supports_tools: false,
            supports_vision: false,
            full_training: None,
            lora_training: LoraLimits {
                default_rank: limits.lora_rank.0,
                max_rank: limits.lora_rank.1,
                min_batch_size: limits.batch_size.0,
                max_batch_size: limits.batch_size.1,
                max_batch_size_dpo: 0,
                target_modules: &limits.target_modules,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::iso_time;

    #[test]
    fn times_are_those_of_the_calendar() {
        // From Python's datetime.
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(iso_time(ms), text);
        }
    }
}
