//! What a run tells while it goes on.

use std::path::Path;

use serde::Serialize;

use crate::trainer::Plan;

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// Its number, from 1.
    pub step: usize,
    /// Of so many.
    pub total_steps: usize,
    /// Passes over the examples so far.
    pub epoch: f64,
    /// Mean loss of the step's supervised tokens before the step, in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that were computed.
    pub tokens: usize,
    /// Tokens that were predicted.
    pub supervised_tokens: usize,
    /// Tokens that were computed in all steps.
    pub total_tokens: u64,
    /// Seconds of this step.
    pub seconds: f64,
    /// Seconds of all steps, those before a resumption included.
    pub total_seconds: f64,
    /// Computed tokens a second since this process began.
    pub tokens_per_second: f64,
}

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Everything is ready; `step` steps are done already.
    Started {
        /// What will be done.
        plan: &'a Plan,
        /// Steps of an earlier process.
        step: usize,
    },
    /// A checkpoint was found and read.
    Resumed {
        /// Its step.
        step: usize,
    },
    /// A step was done.
    Step(&'a StepMetrics),
    /// The evaluation set was computed.
    Evaluated {
        /// After this step.
        step: usize,
        /// Mean loss of its supervised tokens, in nats.
        loss: f64,
        /// Whether it is the best so far.
        is_best: bool,
    },
    /// A checkpoint is on disk.
    Saved {
        /// Its step.
        step: usize,
        /// Its folder: a whole adapter.
        path: &'a Path,
    },
    /// Evaluations no longer got better.
    StoppedEarly {
        /// The last step.
        step: usize,
    },
    /// Training is over.
    Finished {
        /// The last step.
        step: usize,
    },
}

/// Hears what happens, and may end a run.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event<'_>);

    /// Whether the run is to end before its next step.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Hears nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn event(&mut self, _: &Event<'_>) {}
}
