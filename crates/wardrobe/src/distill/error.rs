//! What ends distillation, or keeps it from beginning.

use std::path::PathBuf;

use wardrobe_batch::BatchError;
use wardrobe_batch::records::RecordsError;
use wardrobe_data::DataError;
use wardrobe_generator::AskError;

/// Why no data is made. Answers that came are kept, and the run can go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistillError {
    /// The input cannot be read, or the data not be written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The input has no records.
    #[error("there are no records in {}", path.display())]
    Empty {
        /// The input.
        path: PathBuf,
    },
    /// Records that ask nothing.
    #[error("{num} records of {} cannot be asked: {}", path.display(), first.join("; "))]
    BadRecords {
        /// The input.
        path: PathBuf,
        /// How many.
        num: u64,
        /// The first of them: where they stand and what is wrong.
        first: Vec<String>,
    },
    /// One file in two parts: input, output or kept answers.
    #[error("{} cannot be two of input, output and kept answers at once", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The output, or what ended the run.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The kept answers.
    #[error("the kept answers: {0}")]
    Answers(#[from] BatchError),
    /// Who should teach cannot: the schema is refused, or there is no chat template.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// A setting.
    #[error("`{field}` {reason}")]
    Setting {
        /// The field of [`super::DistillOptions`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The result of distillation.
pub type Result<T, E = DistillError> = std::result::Result<T, E>;
