//! Why an evaluation could not be run. What is wrong with single items is in the report instead.

use wardrobe_generator::AskError;

/// Failure of a whole run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// There is nothing to ask.
    #[error("there is no item to evaluate{}", first.as_ref().map(|p| format!("; {p}")).unwrap_or_default())]
    NoItems {
        /// What was wrong with the first bad line, where lines were bad.
        first: Option<crate::LineProblem>,
    },
    /// There is nobody to ask.
    #[error("there is no model to evaluate")]
    NoTargets,
    /// Reading the items failed.
    #[error("cannot read the items: {0}")]
    Read(#[from] std::io::Error),
    /// The run was stopped.
    #[error("stopped before every item was answered")]
    Stopped,
    /// A target cannot answer, whatever the item.
    #[error("cannot ask {target}: {source}")]
    Target {
        /// Name of the target.
        target: String,
        /// Its reason.
        source: AskError,
    },
}
