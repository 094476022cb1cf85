//! The LoRA trainer, over the very model code that serves.
//!
//! Purpose: from examples to an adapter: [`Trainer`] plans a run, refuses what will not fit, trains, keeps checkpoints and
//! gives a [`TrainedAdapter`], which an engine loads in process and which is written as a PEFT folder.
//!
//! State: a trainer is immutable; a run's state is its parameters, moments and how far it is, in memory and, with
//! a folder, on disk.
//!
//! Invariants: examples, settings and seed alone determine the adapter, bit for bit, on any number of threads and however
//! often the run was stopped; the frozen weights are read and never written, and have no gradients; what is under a
//! checkpoint's name is whole.
//!
//! It deliberately trains LoRA alone: the base stays as it is, quantised or not, and serves on while adapters of it are
//! trained. It knows neither engines nor HTTP, and reads no data files: `wardrobe-data` does.
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
