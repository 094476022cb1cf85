//! Settings of a runner.

use std::path::PathBuf;

use crate::batches::BatchSettings;
use crate::error::{BatchError, Result};

/// Longest suffix, in characters.
pub(crate) const MAX_SUFFIX_CHARS: usize = 64;

/// Settings of a [`crate::JobRunner`].
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// The folder of files and jobs; made if it is not there. One process at a time has it.
    pub root: PathBuf,
    /// Stands in the names of adapters and as the owner of jobs.
    pub organization: String,
    /// Jobs that run at once.
    pub concurrency: usize,
    /// Jobs that wait or run; more are refused.
    pub max_open_jobs: u64,
    /// Jobs in all, with those that have ended; more are refused.
    pub max_jobs: u64,
    /// The largest file.
    pub max_file_bytes: u64,
    /// All files together; more are refused.
    pub max_total_file_bytes: u64,
    /// Number of files; more are refused.
    pub max_files: u64,
    /// What is of batches alone.
    pub batches: BatchSettings,
}

impl RunnerConfig {
    /// The default settings, over a folder.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            organization: "wardrobe".to_owned(),
            concurrency: 1,
            max_open_jobs: 1000,
            max_jobs: 100_000,
            max_file_bytes: 512 << 20,
            max_total_file_bytes: 16 << 30,
            max_files: 10_000,
            batches: BatchSettings::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let bad = |field, reason: &str| Err(BatchError::Config { field, reason: reason.to_owned() });
        if !is_name_part(&self.organization) {
            return bad("organization", "may have letters, digits, `.`, `_` and `-` only, at most 64");
        }
        if self.concurrency == 0 || self.concurrency > 64 {
            return bad("concurrency", "is not in 1 to 64");
        }
        for (field, value) in [
            ("max_open_jobs", self.max_open_jobs),
            ("max_jobs", self.max_jobs),
            ("max_file_bytes", self.max_file_bytes),
            ("max_total_file_bytes", self.max_total_file_bytes),
            ("max_files", self.max_files),
        ] {
            if value == 0 {
                return bad(field, "is 0");
            }
        }
        self.batches.check()
    }
}

/// Whether a text can be a part of an adapter's name between colons.
pub(crate) fn is_name_part(text: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.chars().count() <= MAX_SUFFIX_CHARS && text.chars().all(fits)
}
