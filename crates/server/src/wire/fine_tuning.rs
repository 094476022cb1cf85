//! Fine-tuning jobs in OpenAI's shapes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wardrobe_batch::{Checkpoint, Event, EventKind, Hyperparameters, Job, JobStatus, Page};

use super::request::Seed;

/// `POST /v1/fine_tuning/jobs`. The hyperparameters are OpenAI's and all others that the trainer knows.
#[derive(Debug, Deserialize)]
pub(crate) struct CreateJob {
    pub model: String,
    pub training_file: String,
    #[serde(default)]
    pub validation_file: Option<String>,
    #[serde(default)]
    pub suffix: Option<String>,
    #[serde(default)]
    pub seed: Option<Seed>,
    /// The older place; `method` is the newer.
    #[serde(default)]
    pub hyperparameters: Option<Hyperparameters>,
    #[serde(default)]
    pub method: Option<MethodFields>,
    #[serde(default)]
    pub integrations: Option<Vec<Value>>,
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MethodFields {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub supervised: Option<SupervisedFields>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SupervisedFields {
    #[serde(default)]
    pub hyperparameters: Option<Hyperparameters>,
}

/// Hyperparameters as they were chosen, in OpenAI's terms.
#[derive(Clone, Copy, Serialize)]
struct ShownHyperparameters {
    n_epochs: u32,
    batch_size: u32,
    learning_rate_multiplier: f64,
}

#[derive(Serialize)]
struct Method {
    #[serde(rename = "type")]
    kind: &'static str,
    supervised: Supervised,
}

#[derive(Serialize)]
struct Supervised {
    hyperparameters: ShownHyperparameters,
}

#[derive(Serialize)]
struct ErrorShown<'a> {
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
}

/// A job.
#[derive(Serialize)]
pub(crate) struct JobObject<'a> {
    id: &'a str,
    object: &'static str,
    created_at: i64,
    finished_at: Option<i64>,
    estimated_finish: Option<i64>,
    status: &'static str,
    model: &'a str,
    fine_tuned_model: Option<&'a str>,
    organization_id: &'a str,
    training_file: &'a str,
    validation_file: Option<&'a str>,
    result_files: Vec<&'a str>,
    trained_tokens: Option<u64>,
    error: Option<ErrorShown<'a>>,
    hyperparameters: ShownHyperparameters,
    method: Method,
    seed: u64,
    integrations: Option<Vec<Value>>,
    metadata: Option<&'a BTreeMap<String, String>>,
    user_provided_suffix: Option<&'a str>,
    /// Not OpenAI's: jobs that are to run before it.
    queue_position: u64,
    /// Not OpenAI's: the name that the adapter will have.
    output_name: &'a str,
    /// Not OpenAI's: whether it was asked to stop and has not yet.
    cancel_requested: bool,
    steps_completed: u64,
    total_steps: Option<u64>,
}

impl<'a> JobObject<'a> {
    pub fn new(job: &'a Job, organization: &'a str) -> Self {
        let succeeded = job.status == JobStatus::Succeeded;
        let hyperparameters = ShownHyperparameters {
            n_epochs: job.resolved.n_epochs,
            batch_size: job.resolved.batch_size,
            learning_rate_multiplier: job.resolved.learning_rate_multiplier,
        };
        Self {
            id: &job.id,
            object: "fine_tuning.job",
            created_at: job.created_at_ms / 1000,
            finished_at: job.finished_at_ms.map(|ms| ms / 1000),
            estimated_finish: job.progress.estimated_finish_ms.map(|ms| ms / 1000),
            status: job.status.name(),
            model: &job.spec.model,
            fine_tuned_model: succeeded.then_some(job.name.as_str()),
            organization_id: organization,
            training_file: &job.spec.training_file,
            validation_file: job.spec.validation_file.as_deref(),
            result_files: job.result_file.iter().map(String::as_str).collect(),
            trained_tokens: job.status.has_ended().then_some(job.progress.trained_tokens),
            error: job.error.as_ref().map(|error| ErrorShown {
                code: &error.code,
                message: &error.message,
                param: error.param.as_deref(),
            }),
            hyperparameters,
            method: Method { kind: "supervised", supervised: Supervised { hyperparameters } },
            seed: job.resolved.seed,
            integrations: None,
            metadata: job.spec.metadata.as_ref(),
            user_provided_suffix: job.spec.suffix.as_deref(),
            queue_position: job.queue_position,
            output_name: &job.name,
            cancel_requested: job.cancel_requested,
            steps_completed: job.progress.steps_completed,
            total_steps: job.progress.total_steps,
        }
    }
}

/// An event.
#[derive(Serialize)]
pub(crate) struct EventObject<'a> {
    id: &'a str,
    object: &'static str,
    created_at: i64,
    level: &'static str,
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    data: Option<&'a Value>,
}

impl<'a> EventObject<'a> {
    pub fn new(event: &'a Event) -> Self {
        Self {
            id: &event.id,
            object: "fine_tuning.job.event",
            created_at: event.created_at_ms / 1000,
            level: event.level.name(),
            message: &event.message,
            kind: if event.kind == EventKind::Metrics { "metrics" } else { "message" },
            data: Some(&event.data).filter(|data| !data.is_null()),
        }
    }
}

#[derive(Serialize)]
struct CheckpointMetrics {
    step: u64,
    train_loss: Option<f64>,
    train_mean_token_accuracy: Option<f64>,
    full_valid_loss: Option<f64>,
    full_valid_mean_token_accuracy: Option<f64>,
}

/// A checkpoint. Its name says which it is; only the last one answers requests, under the job's name.
#[derive(Serialize)]
pub(crate) struct CheckpointObject<'a> {
    id: &'a str,
    object: &'static str,
    created_at: i64,
    fine_tuning_job_id: &'a str,
    fine_tuned_model_checkpoint: String,
    step_number: u64,
    metrics: CheckpointMetrics,
}

impl<'a> CheckpointObject<'a> {
    pub fn new(job: &'a Job, checkpoint: &'a Checkpoint) -> Self {
        let last = job.status == JobStatus::Succeeded && job.progress.steps_completed == checkpoint.step;
        Self {
            id: &checkpoint.id,
            object: "fine_tuning.job.checkpoint",
            created_at: checkpoint.created_at_ms / 1000,
            fine_tuning_job_id: &job.id,
            fine_tuned_model_checkpoint: match last {
                true => job.name.clone(),
                false => format!("{}:ckpt-step-{}", job.name, checkpoint.step),
            },
            step_number: checkpoint.step,
            metrics: CheckpointMetrics {
                step: checkpoint.step,
                train_loss: checkpoint.metrics.train_loss,
                train_mean_token_accuracy: checkpoint.metrics.train_mean_token_accuracy,
                full_valid_loss: checkpoint.metrics.full_valid_loss,
                full_valid_mean_token_accuracy: checkpoint.metrics.full_valid_mean_token_accuracy,
            },
        }
    }
}

/// A page of anything.
#[derive(Serialize)]
pub(crate) struct List<T> {
    object: &'static str,
    data: Vec<T>,
    has_more: bool,
}

impl<T> List<T> {
    pub fn new<'a, U>(page: &'a Page<U>, shown: impl FnMut(&'a U) -> T) -> Self {
        Self { object: "list", data: page.items.iter().map(shown).collect(), has_more: page.has_more }
    }
}
