//! The LoRA trainer.
#![forbid(unsafe_code)]

mod checkpoint;
mod config;
mod error;
mod estimate;
mod event;
mod metrics;
mod microbatch;
mod output;
mod parameters;
mod schedule;
mod session;
mod team;
mod trainer;
mod worker;

pub use config::{BatchSize, ContextExtension, EarlyStop, LoraConfig, OptimizerConfig, TrainConfig};
pub use error::{Result, TrainError};
pub use estimate::Estimate;
pub use event::{Event, NoObserver, Observer, StepMetrics};
pub use output::TrainedAdapter;
pub use schedule::Schedule;
pub use trainer::{Gradients, ModuleGradients, Plan, Trainer};
