//! What a run tells its job's store.

use std::path::Path;
use std::time::Duration;

use wardrobe_batch::{
    CheckpointMetrics, EarlyStop as JobEarlyStop, EventKind, EventLevel, JobControl, JobFailure, JobProgress,
    Metrics,
};
use wardrobe_train::{Event, Observer};

use super::RUN_DIR;

/// Passes on what happens to the job's store.
pub(super) struct Report<'a> {
    control: &'a JobControl,
    epochs: u32,
    progress: JobProgress,
    steps_per_epoch: usize,
    last_step: Metrics,
    /// A step that was not told of yet, and the time that is left.
    pending: Option<(Metrics, Duration)>,
    valid: Option<(usize, f64)>,
    best: Option<(usize, f64)>,
    pub(super) failed: Option<JobFailure>,
}

impl<'a> Report<'a> {
    pub(super) fn new(control: &'a JobControl, epochs: u32) -> Self {
        Report {
            control,
            epochs,
            progress: JobProgress::default(),
            steps_per_epoch: 1,
            last_step: Metrics::default(),
            pending: None,
            valid: None,
            best: None,
            failed: None,
        }
    }

    /// Tells of the step that waits.
    fn flush(&mut self) -> Result<(), JobFailure> {
        match self.pending.take() {
            Some((metrics, left)) => self.control.step(&metrics, self.progress, Some(left)),
            None => Ok(()),
        }
    }

    fn pass_on(&mut self, event: &Event<'_>) -> Result<(), JobFailure> {
        match event {
            Event::Started { plan, step } => {
                self.steps_per_epoch = plan.steps_per_epoch;
                self.progress.total_steps = Some(plan.total_steps as u64);
                self.progress.steps_completed = *step as u64;
                let message = format!(
                    "Training on {} examples: {} steps of {}, {} trained parameters",
                    plan.num_examples, plan.total_steps, plan.batch_examples, plan.estimate.parameters
                );
                self.control.event(
                    EventLevel::Info,
                    EventKind::TrainingStart,
                    &message,
                    &serde_json::Value::Null,
                )?;
                self.control.progress(&self.progress)
            }
            Event::Step(m) => {
                self.progress.steps_completed = m.step as u64;
                self.progress.trained_tokens = m.total_tokens;
                let epochs = (m.step / self.steps_per_epoch.max(1)) as u64;
                let metrics = Metrics {
                    step: m.step as u64,
                    total_steps: Some(m.total_steps as u64),
                    epoch: Some(m.epoch),
                    train_loss: Some(m.loss),
                    learning_rate: Some(m.learning_rate),
                    grad_norm: Some(m.grad_norm),
                    ..Metrics::default()
                };
                self.last_step = metrics;
                let left = (m.total_steps - m.step) as f64 * m.total_seconds / m.step.max(1) as f64;
                self.flush()?;
                // An evaluation after this step adds to it.
                self.pending = Some((metrics, Duration::from_secs_f64(left.max(0.0))));
                self.control.progress(&self.progress)?;
                if epochs > self.progress.epochs_completed {
                    self.progress.epochs_completed = epochs;
                    let message = format!("Epoch {epochs} of {} is done", self.epochs);
                    self.control.event(
                        EventLevel::Info,
                        EventKind::EpochComplete,
                        &message,
                        &serde_json::Value::Null,
                    )?;
                }
                Ok(())
            }
            Event::Evaluated { step, loss, is_best } => {
                self.valid = Some((*step, *loss));
                if *is_best {
                    self.best = self.valid;
                }
                self.progress.evals_completed += 1;
                if let Some((metrics, _)) = &mut self.pending {
                    metrics.valid_loss = Some(*loss);
                }
                self.control.progress(&self.progress)
            }
            Event::Saved { step, path } => {
                self.flush()?;
                let folder = path.file_name().unwrap_or_default();
                let relative = Path::new(RUN_DIR).join("checkpoints").join(folder);
                let metrics = CheckpointMetrics {
                    train_loss: self.last_step.train_loss,
                    full_valid_loss: self.valid.filter(|(at, _)| at == step).map(|(_, loss)| loss),
                    ..CheckpointMetrics::default()
                };
                self.control.checkpoint(*step as u64, &relative, &metrics)
            }
            Event::StoppedEarly { step } => {
                self.flush()?;
                let (best_step, best_loss) = self.best.unwrap_or((*step, f64::NAN));
                let best_loss = Some(best_loss).filter(|loss| loss.is_finite());
                self.control.early_stopped(&JobEarlyStop { best_step: best_step as u64, best_loss })
            }
            Event::Finished { step } => {
                self.flush()?;
                let message = format!("Training is done after {step} steps");
                self.control.event(
                    EventLevel::Info,
                    EventKind::TrainingComplete,
                    &message,
                    &serde_json::Value::Null,
                )
            }
            _ => Ok(()),
        }
    }
}

impl Observer for Report<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if self.failed.is_none() {
            self.failed = self.pass_on(event).err();
        }
    }

    fn is_cancelled(&self) -> bool {
        self.failed.is_some() || self.control.is_stopped()
    }
}
