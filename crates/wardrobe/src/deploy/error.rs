//! Why no endpoint is written.

use std::path::{Path, PathBuf};

use wardrobe_engine::AdapterError;
use wardrobe_formats::FormatError;

/// Why an endpoint's folder is not written. What was there is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// The folder has something in it.
    #[error("{} is there already and is not empty", dir.display())]
    NotEmpty {
        /// The folder.
        dir: PathBuf,
    },
    /// The output cannot be a folder of this name.
    #[error("{} {reason}", dir.display())]
    Output {
        /// What was asked for.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The output lies in what it is made of.
    #[error("{} is or lies in the adapter {}, which it is made of", dir.display(), adapter.display())]
    Inside {
        /// The output.
        dir: PathBuf,
        /// The adapter's folder.
        adapter: PathBuf,
    },
    /// A setting.
    #[error("{0}")]
    Setting(String),
    /// The adapter's files.
    #[error("the adapter {name}: {source}")]
    Files {
        /// Its name.
        name: String,
        /// What is wrong with them.
        source: Box<FormatError>,
    },
    /// The adapter is not what it should be.
    #[error("the adapter {name} {reason}")]
    Adapter {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The adapter does not fit its base model.
    #[error("the adapter {name} is refused: {source}")]
    Refused {
        /// Its name.
        name: String,
        /// Why.
        source: AdapterError,
    },
    /// The file system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The same, by way of a writer of files.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// There is too little room on the disk.
    #[error(transparent)]
    Facade(Box<crate::Error>),
}

impl From<crate::Error> for DeployError {
    fn from(error: crate::Error) -> Self {
        Self::Facade(Box::new(error))
    }
}

impl DeployError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

pub(super) type Result<T> = std::result::Result<T, DeployError>;
