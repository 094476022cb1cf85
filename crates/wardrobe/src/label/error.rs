//! What ends labelling, or keeps it from beginning.

use std::path::PathBuf;

use wardrobe_batch::records::RecordsError;
use wardrobe_data::DataError;
use wardrobe_generator::AskError;
use wardrobe_text::TemplateError;

/// Why records are not labelled. What the output holds stays, and the run can go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The input cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The input has no records.
    #[error("there are no records in {}", path.display())]
    Empty {
        /// The input.
        path: PathBuf,
    },
    /// Records that cannot be asked for.
    #[error("{num} records of {} cannot be asked: {}", path.display(), first.join("; "))]
    BadRecords {
        /// The input.
        path: PathBuf,
        /// How many.
        num: u64,
        /// The first of them: where they stand and what is wrong.
        first: Vec<String>,
    },
    /// The prompt is no template.
    #[error("the prompt: {0}")]
    Prompt(#[from] TemplateError),
    /// The prompt takes nothing from a record.
    #[error("the prompt names no field, so that all records would get the same; write {{{{ field }}}}")]
    SamePrompt,
    /// Input and output are one file.
    #[error("{} is the input as well as the output", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The output, or what ended the run.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// Who should label cannot: the schema is refused, or there is no chat template.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// A setting.
    #[error("`{field}` {reason}")]
    Setting {
        /// The field of [`super::LabelOptions`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The result of labelling.
pub type Result<T, E = LabelError> = std::result::Result<T, E>;
