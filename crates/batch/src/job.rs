//! Jobs as they are shown: their state, events and checkpoints.

use serde::{Deserialize, Serialize};

use crate::spec::{JobSpec, ResolvedSpec};

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    /// It waits.
    Queued,
    /// It runs.
    Running,
    /// It ended with an adapter.
    Succeeded,
    /// It ended without one.
    Failed,
    /// It was cancelled.
    Cancelled,
}

impl JobStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// Its name, as OpenAI has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }

    /// Whether nothing will change any more.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Whether the client can mend it.
    pub user_error: bool,
}

/// How far a job is. Numbers only grow, but for `total_steps` and the estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct JobProgress {
    /// Optimiser steps that are done.
    pub steps_completed: u64,
    /// All of them, once they are known.
    pub total_steps: Option<u64>,
    /// Whole epochs that are done.
    pub epochs_completed: u64,
    /// Evaluations that are done.
    pub evals_completed: u64,
    /// Tokens that were trained on.
    pub trained_tokens: u64,
    /// The end as it is expected.
    pub estimated_finish_ms: Option<i64>,
}

/// What early stopping chose.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStop {
    /// The step of the checkpoint that was taken.
    pub best_step: u64,
    /// Its loss on the evaluation set.
    pub best_loss: Option<f64>,
}

/// A fine-tuning job. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// `ft-` and 32 hexadecimal digits.
    pub id: String,
    /// What was asked for.
    pub spec: JobSpec,
    /// What the trainer made of it.
    pub resolved: ResolvedSpec,
    /// The name under which its adapter will answer.
    pub name: String,
    /// Where it is.
    pub status: JobStatus,
    /// Whether it was asked to stop, and has not yet.
    pub cancel_requested: bool,
    /// When it was made.
    pub created_at_ms: i64,
    /// When anything about it changed last.
    pub updated_at_ms: i64,
    /// When it was first run.
    pub started_at_ms: Option<i64>,
    /// When it ended.
    pub finished_at_ms: Option<i64>,
    /// How often it was run: more than once after a restart.
    pub num_runs: u64,
    /// Jobs that are to run before it; 0 for all but queued ones.
    pub queue_position: u64,
    /// How far it is.
    pub progress: JobProgress,
    /// Set by early stopping.
    pub early_stop: Option<EarlyStop>,
    /// Records of the training file.
    pub training_records: u64,
    /// Size of the training file.
    pub training_bytes: u64,
    /// Why it failed.
    pub error: Option<JobError>,
    /// The file of its metrics, once it succeeded.
    pub result_file: Option<String>,
    /// The adapter's folder, relative to the job's own, once it succeeded.
    pub adapter_dir: Option<String>,
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLevel {
    /// As expected.
    Info,
    /// Worth a look.
    Warn,
    /// The job's end.
    Error,
}

impl EventLevel {
    /// Its name, as OpenAI has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Info, Self::Warn, Self::Error].into_iter().find(|level| level.name() == name)
    }
}

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// What an event is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum EventKind {
            $($(#[$doc])* $kind,)*
        }

        impl EventKind {
            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            pub(crate) fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }
    };
}

event_kinds! {
    /// The job was made and waits.
    JobPending = "job_pending",
    /// It was taken from the queue.
    JobStart = "job_start",
    /// It goes on after a restart.
    JobRestarted = "job_restarted",
    /// The first step begins.
    TrainingStart = "training_start",
    /// Numbers of a step.
    Metrics = "metrics",
    /// A checkpoint was written.
    CheckpointSave = "checkpoint_save",
    /// An epoch is done.
    EpochComplete = "epoch_complete",
    /// An evaluation is done.
    EvalComplete = "eval_complete",
    /// Early stopping took place.
    EarlyStopped = "early_stopped",
    /// The last step is done.
    TrainingComplete = "training_complete",
    /// The job has its adapter.
    JobComplete = "job_complete",
    /// It failed.
    JobError = "job_error",
    /// It was asked to stop.
    CancelRequested = "cancel_requested",
    /// It was cancelled.
    JobStopped = "job_stopped",
    /// Something that people should know.
    Warning = "warning",
}

/// Something that happened to a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `ftevent-` and a number that grows.
    pub id: String,
    /// When it happened, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// How serious it is.
    pub level: EventLevel,
    /// What it is about.
    pub kind: EventKind,
    /// For people.
    pub message: String,
    /// For programs.
    pub data: serde_json::Value,
}

/// Numbers of one step. Losses are means over tokens, in nats; accuracies are 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The step, from 1 on.
    pub step: u64,
    /// All steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u64>,
    /// Epochs so far, with their part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<f64>,
    /// Loss on this step's batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Part of this batch's tokens that were the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_mean_token_accuracy: Option<f64>,
    /// Loss on the evaluation set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_loss: Option<f64>,
    /// Part of the evaluation set's tokens that were the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_mean_token_accuracy: Option<f64>,
    /// The learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Norm of the gradient before it was scaled down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// Tokens per second of this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
}

/// What is known at a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointMetrics {
    /// Loss on the last batch.
    pub train_loss: Option<f64>,
    /// Token accuracy on the last batch.
    pub train_mean_token_accuracy: Option<f64>,
    /// Loss on the evaluation set.
    pub full_valid_loss: Option<f64>,
    /// Token accuracy on the evaluation set.
    pub full_valid_mean_token_accuracy: Option<f64>,
}

/// A checkpoint of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// `ftckpt-` and a number that grows.
    pub id: String,
    /// The step after which it was written.
    pub step: u64,
    /// When it was written, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// Its adapter's folder, relative to the job's own.
    pub adapter_dir: String,
    /// What is known of it.
    pub metrics: CheckpointMetrics,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The part.
    pub items: Vec<T>,
    /// Whether there is more.
    pub has_more: bool,
}

/// Jobs by status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusCounts {
    /// Number of jobs, in the order of [`JobStatus::ALL`].
    pub jobs: [u64; 5],
}
