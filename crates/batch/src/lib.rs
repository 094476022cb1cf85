//! Jobs that outlive the process that was asked for them: uploaded files, fine-tuning jobs, and what runs them; in
//! [`records`], records that are answered one by one into a file, and in [`answers`] what models said, kept.
//!
//! Purpose: keep files and jobs in one folder, run the jobs one after the other through a [`FineTuner`], and tell how
//! they are doing. It knows neither models nor HTTP.
//!
//! State: a folder with an SQLite database, the uploaded files, and a folder for each job, in which its trainer keeps
//! what it needs to go on after a restart. One process at a time holds the folder, by a lock on a file in it.
//!
//! Invariants: what a call has returned is on the disk; a file is there whole or not at all; every job reaches exactly
//! one end, and one that was running when the process died is queued again; events are only ever added.
//!
//! It deliberately does not read training data or decide on hyperparameters: the [`FineTuner`] does.
#![forbid(unsafe_code)]

pub mod answers;
mod archive;
mod batches;
mod clock;
mod config;
mod control;
mod error;
mod files;
mod fine_tuner;
mod finished;
mod ids;
mod job;
pub mod records;
mod results;
mod runner;
#[cfg(feature = "simulation")]
pub mod simulation;
mod spec;
mod store;
mod worker;

pub use batches::{
    Batch, BatchAnswer, BatchCounts, BatchEndpoint, BatchProblem, BatchReply, BatchRequest, BatchRoute,
    BatchSettings, BatchSpec, BatchStatus, BatchUsage, CompletionWindow, Interrupt, RequestCounts,
};
pub use clock::Clock;
pub use config::RunnerConfig;
pub use control::{JobControl, Stop};
pub use error::BatchError;
pub use files::{FilePurpose, NewFile, StoredFile, Upload};
pub use fine_tuner::{
    DatasetFormat, FileCheck, FineTuner, Finished, JobFailure, JobFile, JobFiles, ModelLimits, Problem,
    Refusal,
};
pub use finished::FinishedJob;
pub use ids::IdSource;
pub use job::{
    Checkpoint, CheckpointMetrics, EarlyStop, Event, EventKind, EventLevel, Job, JobError, JobProgress,
    JobStatus, Metrics, Page, StatusCounts,
};
pub use runner::JobRunner;
pub use spec::{
    Auto, BatchSize, EarlyStopping, Hyperparameters, JobApi, JobSpec, LrSchedule, LrScheduler, ResolvedSpec,
};
