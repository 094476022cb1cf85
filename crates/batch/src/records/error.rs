//! What ends a run of records.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no next record.
pub type InputError = Box<dyn std::error::Error + Send + Sync>;

/// Why records could not be answered, or an output not be used. What the output holds stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// A setting is out of its range.
    #[error("`{field}` {reason}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder of the output is not there.
    #[error("the folder of the output {} does not exist", path.display())]
    NoFolder {
        /// The output.
        path: PathBuf,
    },
    /// Another process writes the output.
    #[error("the output {} is in use by another process", path.display())]
    InUse {
        /// The output.
        path: PathBuf,
    },
    /// The output is there, and no run of records has begun it.
    #[error("the output {} exists and was not begun by such a run ({} is missing)", path.display(), side.display())]
    Foreign {
        /// The output.
        path: PathBuf,
        /// The file that would say so.
        side: PathBuf,
    },
    /// The output was begun on other terms.
    #[error("the output {} was begun with {}", path.display(), differences.join("; "))]
    OtherTerms {
        /// The output.
        path: PathBuf,
        /// Each term that differs, with both values.
        differences: Vec<String>,
    },
    /// A line in the output is not what a run writes.
    #[error("line {number} of the output {} {reason}", path.display())]
    Damaged {
        /// The output.
        path: PathBuf,
        /// Which line, from 1.
        number: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The output has lines for more records than there are.
    #[error("the output {} has {num_lines} lines, and there are {num_records} records", path.display())]
    TooManyLines {
        /// The output.
        path: PathBuf,
        /// Its lines.
        num_lines: u64,
        /// The records.
        num_records: u64,
    },
    /// The disk is full.
    #[error("no space is left on the disk of {}", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// The file system refused something.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The records cannot be read on.
    #[error("{0}")]
    Input(#[source] InputError),
    /// No record can be answered any more.
    #[error("{0}")]
    Fatal(String),
    /// Asking again and again did not help.
    #[error("{reason} (given up after {tries} tries)")]
    GaveUp {
        /// What the last try gave.
        reason: String,
        /// How often one record was asked.
        tries: u32,
    },
}

impl RecordsError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { path: path.to_owned() }
            }
            _ => Self::Io { path: path.to_owned(), source },
        }
    }
}

pub(crate) type Result<T, E = RecordsError> = std::result::Result<T, E>;
