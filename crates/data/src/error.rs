//! What can go wrong with data: where it stands, and what is wrong there.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of an operation on data.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Place {
    /// The line of a text file on which the record begins, from 1.
    Line(u64),
    /// The row of a Parquet file, from 1.
    Row(u64),
    /// A record that came from no file, counted from 1.
    Record(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::Row(number) => write!(f, "row {number}"),
            Self::Record(number) => write!(f, "record {number}"),
        }
    }
}

/// Something that is wrong, or doubtful, with one record or with the whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where; `None`: the file as a whole.
    pub place: Option<Place>,
    /// The key at fault, such as `messages[2].role`.
    pub key: Option<String>,
    /// What is wrong, with the key in it.
    pub message: String,
}

impl Finding {
    /// About a record as a whole.
    pub(crate) fn at(place: Place, message: impl Into<String>) -> Self {
        Self { place: Some(place), key: None, message: message.into() }
    }

    /// About the file as a whole.
    pub(crate) fn of_file(message: impl Into<String>) -> Self {
        Self { place: None, key: None, message: message.into() }
    }

    /// `path:7: what`, as editors and compilers have it.
    pub fn in_file(&self, path: &Path) -> String {
        let path = path.display();
        match self.place {
            Some(Place::Line(number)) => format!("{path}:{number}: {}", self.message),
            Some(place) => format!("{path}: {place}: {}", self.message),
            None => format!("{path}: {}", self.message),
        }
    }
}

/// What is wrong with a key of a record whose place the caller knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub key: Option<String>,
    pub message: String,
}

impl Fault {
    pub fn key(key: impl Into<String>, problem: impl fmt::Display) -> Self {
        let key = key.into();
        Self { message: format!("key {key:?} {problem}"), key: Some(key) }
    }

    pub fn record(message: impl Into<String>) -> Self {
        Self { key: None, message: message.into() }
    }

    pub fn at(self, place: Place) -> Finding {
        Finding { place: Some(place), key: self.key, message: self.message }
    }
}

/// Failure to read, check or prepare data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The system refused to read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file as a whole, or one record in it.
    #[error("{}", finding.in_file(path))]
    Record {
        /// The file.
        path: PathBuf,
        /// Where and what.
        finding: Finding,
    },
    /// A record that came from no file.
    #[error("record {number}: {message}")]
    InProcess {
        /// Which one, from 1.
        number: u64,
        /// What is wrong.
        message: String,
    },
    /// Settings that cannot be used, or not with this model.
    #[error("{0}")]
    Options(String),
    /// Nothing is left to train on.
    #[error("no example to train on: {0}")]
    NoExamples(String),
    /// A ready example that cannot be one.
    #[error("example {idx}: {message}")]
    Example {
        /// Its index.
        idx: usize,
        /// What is wrong.
        message: String,
    },
    /// A file that is elsewhere could not be brought here.
    #[error("cannot get {name}: {source}")]
    Fetch {
        /// What it is called.
        name: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was read does not suffice for what was asked for.
    #[error("{0}")]
    Insufficient(String),
    /// An output that is there already.
    #[error("{} exists", .0.display())]
    OutputExists(PathBuf),
}

impl DataError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::Record { path: path.to_owned(), finding: Finding::of_file(message) }
    }
}
