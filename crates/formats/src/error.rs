//! The one error type of this crate.
//!
//! Every variant names the file at fault, and where there is one the tensor or key, with what was expected and
//! what was found: a refusal that a person can act on. Nothing in this crate panics on the content of a file.

use std::path::{Path, PathBuf};

use crate::StorageType;

/// Result alias of this crate.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;

/// Why a model, adapter or configuration could not be read, converted or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file that has to be there is not.
    #[error("{}: {what} not found", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// The file ends before what its header promises, at open or because it shrank afterwards.
    #[error("{}: truncated while reading {what}: {expected} bytes needed, {actual} there", path.display())]
    Truncated {
        /// File.
        path: PathBuf,
        /// The part being read.
        what: String,
        /// Bytes that the part needs, counted from the start of the file.
        expected: u64,
        /// Bytes that the file has.
        actual: u64,
    },
    /// The file breaks the rules of its format.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// File.
        path: PathBuf,
        /// The rule and how it was broken.
        problem: String,
    },
    /// A count or size over the limit this crate sets for hostile files.
    #[error("{}: {what} is {actual}, over the limit of {limit}", path.display())]
    Limit {
        /// File.
        path: PathBuf,
        /// What was counted.
        what: String,
        /// The limit.
        limit: u64,
        /// The value found.
        actual: u64,
    },
    /// A well-formed file of a kind that this crate does not read.
    #[error("{}: unsupported: {what}", path.display())]
    Unsupported {
        /// File.
        path: PathBuf,
        /// What is not supported, by name.
        what: String,
    },
    /// A path inside a folder or index leads out of the folder.
    #[error("{}: refused: {name:?} leads outside the folder", path.display())]
    Escapes {
        /// The folder.
        path: PathBuf,
        /// The name at fault.
        name: String,
    },
    /// JSON that does not parse.
    #[error("{}: invalid JSON: {source}", path.display())]
    Json {
        /// File.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// A configuration key with a value that makes no sense or that is not supported.
    #[error("{}: key `{key}`: expected {expected}, found {actual}", path.display())]
    Key {
        /// File.
        path: PathBuf,
        /// Full name of the key.
        key: String,
        /// What would be accepted.
        expected: String,
        /// What the file says (shortened).
        actual: String,
    },
    /// A tensor that is described or filled wrongly.
    #[error("{}: tensor `{tensor}`: {problem}", path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor name as the file spells it.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor with another shape than its place demands.
    #[error("{}: tensor `{tensor}`: expected shape {expected:?}, found {actual:?}", path.display())]
    Shape {
        /// File.
        path: PathBuf,
        /// Tensor name.
        tensor: String,
        /// Shape that fits.
        expected: Vec<usize>,
        /// Shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor that was asked for and is not there.
    #[error("{}: tensor `{tensor}` is missing", path.display())]
    MissingTensor {
        /// File or folder.
        path: PathBuf,
        /// Tensor name.
        tensor: String,
    },
    /// A byte buffer whose length does not fit its element count.
    #[error("{storage}: {numel} elements need {expected} bytes, found {actual}")]
    ByteLength {
        /// Storage type of the buffer.
        storage: StorageType,
        /// Number of elements.
        numel: usize,
        /// Bytes that they need.
        expected: u64,
        /// Bytes given.
        actual: u64,
    },
    /// A conversion between storage types that cannot be done.
    #[error("cannot convert {from} to {to}: {problem}")]
    Conversion {
        /// Storage type given.
        from: StorageType,
        /// Storage type wanted.
        to: StorageType,
        /// Why not.
        problem: String,
    },
    /// Memory for a buffer could not be had.
    #[error("not enough memory for {bytes} bytes ({what})")]
    OutOfMemory {
        /// Size of the buffer.
        bytes: u64,
        /// What it was for.
        what: String,
    },
}

impl FormatError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into() }
    }

    pub(crate) fn limit(path: &Path, what: impl Into<String>, limit: u64, actual: u64) -> Self {
        Self::Limit { path: path.to_owned(), what: what.into(), limit, actual }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: shorten(tensor), problem: problem.into() }
    }

    pub(crate) fn key(
        path: &Path,
        key: impl Into<String>,
        expected: impl Into<String>,
        actual: impl std::fmt::Display,
    ) -> Self {
        let actual = shorten(&actual.to_string());
        Self::Key { path: path.to_owned(), key: key.into(), expected: expected.into(), actual }
    }
}

/// At most 200 characters of a string from a file, so that a hostile file cannot fill a log.
pub(crate) fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    if text.chars().nth(MAX_CHARS).is_none() {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(MAX_CHARS).collect();
    short.push('…');
    short
}
