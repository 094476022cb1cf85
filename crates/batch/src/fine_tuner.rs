//! What runs a job: the one trait between jobs and training.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::JobControl;
use crate::job::Job;
use crate::spec::{JobSpec, ResolvedSpec};

/// What the records of a training file look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetFormat {
    /// Messages with roles.
    Conversation,
    /// A prompt and its completion, under whichever names.
    Instruction,
    /// Plain text.
    General,
}

/// What is known of a training file after its check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCheck {
    /// Its records.
    pub num_records: u64,
    /// What they look like, if all look alike.
    pub format: Option<DatasetFormat>,
}

/// What is wrong with a line of a training file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1 on; `None` for what is wrong with the whole file.
    pub line: Option<u64>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Why a job cannot run, known before it is queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The field of the request that is at fault, such as `model` or `hyperparameters.n_epochs`.
    pub field: String,
    /// What is wrong with it; a sentence after the field's name.
    pub reason: String,
}

impl Refusal {
    /// A refusal of a field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// A file that a job reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFile {
    /// Its id.
    pub id: String,
    /// The name that it was uploaded under, for its ending and for messages. It is no path.
    pub file_name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// What its check found.
    pub check: FileCheck,
}

/// The files that a job reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFiles {
    /// Training examples.
    pub training: JobFile,
    /// Examples for evaluation.
    pub validation: Option<JobFile>,
}

/// The end of a job that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The adapter's folder, relative to the job's own; it is given out as an archive.
    pub adapter_dir: PathBuf,
    /// Tokens that were trained on, over all epochs.
    pub trained_tokens: u64,
}

/// The end of a job that did not go well.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobFailure {
    /// The request or its files are at fault: the client can mend it.
    User {
        /// For programs, such as `invalid_training_file`.
        code: &'static str,
        /// For people.
        message: String,
        /// The field at fault, such as `training_file`.
        param: Option<String>,
    },
    /// The machine or this program is at fault.
    Internal {
        /// For people; without paths.
        message: String,
    },
    /// [`JobControl::stop`] said so.
    Stopped,
}

/// Limits on the hyperparameters of jobs, for clients that check them before they ask.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelLimits {
    /// Name of the base model.
    pub model: String,
    /// Longest example in tokens.
    pub max_seq_length_tokens: u32,
    /// Least and most examples in a batch.
    pub batch_size: (u32, u32),
    /// Lowest and highest learning rate.
    pub learning_rate: (f64, f64),
    /// Most epochs.
    pub max_epochs: u32,
    /// Most evaluations.
    pub max_evals: u32,
    /// Most checkpoints.
    pub max_checkpoints: u32,
    /// Rank where none is given, and the largest.
    pub lora_rank: (u32, u32),
    /// Layers that may get an adapter.
    pub target_modules: Vec<String>,
}

/// Trains adapters. Calls may come from several threads at once.
pub trait FineTuner: Send + Sync {
    /// Checks an uploaded training file, in its structure only, so that it is quick. `file_name` has the ending; `path`
    /// has none.
    ///
    /// # Errors
    /// What is wrong, with the line; at least one problem.
    fn check_file(&self, path: &Path, file_name: &str) -> Result<FileCheck, Vec<Problem>>;

    /// What jobs over `model` may ask for; `None` if it is not the base model.
    fn limits(&self, model: &str) -> Option<ModelLimits>;

    /// Chooses what the spec leaves open, and refuses a job that cannot run before it is queued. `name` is the one that
    /// the adapter will have.
    ///
    /// # Errors
    /// The field at fault and why.
    fn validate(&self, spec: &JobSpec, files: &JobFiles, name: &str) -> Result<ResolvedSpec, Refusal>;

    /// Runs or resumes a job to its end, on a thread of the runner. `dir` is the job's own folder, which survives
    /// restarts: checkpoints go there. When this returns [`Finished`], the adapter answers requests under
    /// [`Job::name`]. A job that was stopped by a shutdown or a crash is run again.
    ///
    /// # Errors
    /// Why there is no adapter. A panic counts as an internal failure.
    fn run(
        &self,
        job: &Job,
        files: &JobFiles,
        dir: &Path,
        control: &JobControl,
    ) -> Result<Finished, JobFailure>;

    /// Loads the adapter of a job that finished in an earlier process.
    ///
    /// # Errors
    /// Why it cannot be served.
    fn publish(&self, job: &Job, adapter_dir: &Path) -> Result<(), String>;

    /// Takes the adapter of a job that is deleted away from the engine. That it is gone already is no error.
    ///
    /// # Errors
    /// Why it is still served.
    fn retract(&self, job: &Job) -> Result<(), String>;
}
