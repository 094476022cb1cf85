//! The line between a running job and the store: what it reports, and whether it shall stop.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{BatchError, Result};
use crate::fine_tuner::JobFailure;
use crate::ids::now_ms;
use crate::job::{CheckpointMetrics, EarlyStop, EventKind, EventLevel, JobProgress, Metrics};
use crate::store::Store;

/// Why a job shall stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was cancelled: it will not go on.
    Cancelled,
    /// The process goes down: it will go on after the next start, so a checkpoint is worth its time.
    Shutdown,
}

/// Flags of one job that runs, and of the runner.
#[derive(Debug, Default)]
pub(crate) struct StopFlags {
    pub cancelled: AtomicBool,
    pub shutdown: Arc<AtomicBool>,
}

/// What a running job talks to. Reports are on the disk when they return.
pub struct JobControl {
    pub(crate) store: Arc<Store>,
    pub(crate) job_id: String,
    pub(crate) flags: Arc<StopFlags>,
}

impl JobControl {
    /// Whether and why the job shall stop; to be asked between steps. The answer then is [`JobFailure::Stopped`].
    pub fn stop(&self) -> Option<Stop> {
        if self.flags.cancelled.load(Ordering::Acquire) {
            return Some(Stop::Cancelled);
        }
        self.flags.shutdown.load(Ordering::Acquire).then_some(Stop::Shutdown)
    }

    /// Whether the job shall stop, for whichever reason.
    pub fn is_stopped(&self) -> bool {
        self.stop().is_some()
    }

    /// Adds an event.
    ///
    /// # Errors
    /// The store cannot keep it, so that the job has to fail.
    pub fn event(
        &self,
        level: EventLevel,
        kind: EventKind,
        message: &str,
        data: &Value,
    ) -> Result<(), JobFailure> {
        kept(self.store.add_event(&self.job_id, level, kind, message, data))
    }

    /// Tells people something that they should know.
    ///
    /// # Errors
    /// As for [`JobControl::event`].
    pub fn warn(&self, message: &str) -> Result<(), JobFailure> {
        self.event(EventLevel::Warn, EventKind::Warning, message, &Value::Null)
    }

    /// Adds the numbers of a step and says how far the job is. `remaining` is the time to the end as it is expected.
    ///
    /// # Errors
    /// As for [`JobControl::event`].
    pub fn step(
        &self,
        metrics: &Metrics,
        progress: JobProgress,
        remaining: Option<Duration>,
    ) -> Result<(), JobFailure> {
        let remaining_ms = remaining.map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        let estimated_finish_ms = remaining_ms.map(|ms| now_ms().saturating_add(ms));
        let progress = JobProgress { estimated_finish_ms, ..progress };
        let mut message = match metrics.total_steps {
            Some(total) => format!("Step {}/{total}", metrics.step),
            None => format!("Step {}", metrics.step),
        };
        for (name, value) in [("training", metrics.train_loss), ("validation", metrics.valid_loss)] {
            if let Some(loss) = value {
                message.push_str(&format!(": {name} loss={loss:.4}"));
            }
        }
        let data = serde_json::to_value(metrics).unwrap_or(Value::Null);
        kept(self.store.add_step(&self.job_id, &message, &data, &progress))
    }

    /// Says how far the job is, without an event.
    ///
    /// # Errors
    /// As for [`JobControl::event`].
    pub fn progress(&self, progress: &JobProgress) -> Result<(), JobFailure> {
        kept(self.store.set_progress(&self.job_id, progress))
    }

    /// Tells of a checkpoint that is complete on the disk. `adapter_dir` is its PEFT folder, relative to the job's own;
    /// it has to stay. Telling of the same step again, after a restart, replaces it.
    ///
    /// # Errors
    /// As for [`JobControl::event`].
    pub fn checkpoint(
        &self,
        step: u64,
        adapter_dir: &Path,
        metrics: &CheckpointMetrics,
    ) -> Result<(), JobFailure> {
        let Some(path) = adapter_dir.to_str().filter(|_| adapter_dir.is_relative()) else {
            return Err(JobFailure::Internal {
                message: "a checkpoint's folder has no usable path".to_owned(),
            });
        };
        kept(self.store.add_checkpoint(&self.job_id, step, path, metrics))
    }

    /// Tells that training stopped early.
    ///
    /// # Errors
    /// As for [`JobControl::event`].
    pub fn early_stopped(&self, stop: &EarlyStop) -> Result<(), JobFailure> {
        kept(self.store.set_early_stop(&self.job_id, stop))?;
        let message = format!("Stopped early; the best checkpoint is that of step {}", stop.best_step);
        let data = json!({"best_step": stop.best_step, "best_loss": stop.best_loss});
        self.event(EventLevel::Info, EventKind::EarlyStopped, &message, &data)
    }
}

/// A job whose reports are lost must not go on.
fn kept(result: Result<()>) -> Result<(), JobFailure> {
    result.map_err(|error| {
        tracing::error!(%error, "a job's report could not be kept");
        let message = match error {
            BatchError::DiskFull { .. } => "the server's disk is full",
            _ => "the server could not keep the job's state",
        };
        JobFailure::Internal { message: message.to_owned() }
    })
}
