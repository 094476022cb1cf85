//! What can go wrong with files and jobs.

use std::io;
use std::path::{Path, PathBuf};

use crate::fine_tuner::{Problem, Refusal};
use crate::records::RecordsError;

/// Why files or jobs could not be read, kept or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// A setting is out of its range.
    #[error("job runner configuration: `{field}` {reason}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has the folder.
    #[error("the job folder {} is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// Another process holds the database's lock.
    #[error("the database {} is locked by another process", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// The database was written by a later version.
    #[error("the database {} has schema {found}; this version knows up to {known}", path.display())]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema's version.
        found: i64,
        /// The newest that this version knows.
        known: i64,
    },
    /// The database is damaged or no database.
    #[error("the database {} is damaged or no database: {reason}", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        reason: String,
    },
    /// The disk is full.
    #[error("no space is left on the disk of {}", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// SQLite refused something else.
    #[error("the database: {reason}")]
    Database {
        /// SQLite's reason.
        reason: String,
    },
    /// The file system refused something.
    #[error("{}: {reason}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// There is no such file.
    #[error("there is no file {id:?}")]
    UnknownFile {
        /// The id that was asked for.
        id: String,
    },
    /// There is no such job.
    #[error("there is no fine-tuning job {id:?}")]
    UnknownJob {
        /// The id that was asked for.
        id: String,
    },
    /// There is no such batch.
    #[error("there is no batch {id:?}")]
    UnknownBatch {
        /// The id that was asked for.
        id: String,
    },
    /// A page was to begin after something that is not there.
    #[error("`after` names {id:?}, which is not in the list")]
    UnknownCursor {
        /// The id that was asked for.
        id: String,
    },
    /// The file belongs to a job or batch that has not ended.
    #[error("the file {id:?} is in use by the job {job:?}; cancel it or wait for its end")]
    FileInUse {
        /// The file.
        id: String,
        /// The first job that needs it.
        job: String,
    },
    /// The job has not ended, but what was asked for needs its end.
    #[error("the job {id:?} is {status}; {action} needs a job that has ended")]
    JobOpen {
        /// The job.
        id: String,
        /// Its status.
        status: &'static str,
        /// What was asked for.
        action: &'static str,
    },
    /// The job or batch has ended, or is about to, so that it cannot be cancelled.
    #[error("{id:?} cannot be cancelled any more: it is {status}")]
    JobEnded {
        /// The job.
        id: String,
        /// Its status.
        status: &'static str,
    },
    /// The job has no adapter to give out.
    #[error("the job {id:?} has no {what}")]
    NoArtifact {
        /// The job.
        id: String,
        /// What was asked for.
        what: String,
    },
    /// A file holds more than is allowed.
    #[error("the file is over the limit of {limit_bytes} bytes")]
    FileTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// All files together hold more than is allowed, or there are too many of them or of jobs.
    #[error("{what} is at its limit of {limit}; delete some first")]
    StoreFull {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// The checksum that was announced is not that of what came.
    #[error("the file's SHA-256 is {found}, but {expected} was announced")]
    Checksum {
        /// What was announced.
        expected: String,
        /// What came.
        found: String,
    },
    /// The training file does not hold what it should.
    #[error("{}", problems_text(.0))]
    BadFile(Vec<Problem>),
    /// The job cannot run.
    #[error("`{}` {}", .0.field, .0.reason)]
    Refused(Refusal),
    /// The outcomes of a batch could not be written.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The process is going down.
    #[error("the job runner is shutting down")]
    ShuttingDown,
}

/// Problems as one text for people.
fn problems_text(problems: &[Problem]) -> String {
    const SHOWN: usize = 8;
    let mut text = String::from("the training file is not usable: ");
    for (idx, problem) in problems.iter().take(SHOWN).enumerate() {
        if idx > 0 {
            text.push_str("; ");
        }
        text.push_str(&problem.to_string());
    }
    if problems.len() > SHOWN {
        text.push_str(&format!("; and {} more", problems.len() - SHOWN));
    }
    text
}

impl BatchError {
    /// What the system says about a path.
    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.to_owned() }
            }
            _ => Self::Io { path: path.to_owned(), reason: error.to_string() },
        }
    }
}

pub(crate) type Result<T, E = BatchError> = std::result::Result<T, E>;
