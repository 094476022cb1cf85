//! What can be wrong with a spec, and with what is asked of a session.

use std::time::Duration;

use wardrobe_text::TokenId;

/// Result of this crate's functions.
pub type Result<T> = std::result::Result<T, GrammarError>;

/// Why a spec is refused. All of them are the caller's doing, but for [`GrammarError::Engine`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// A keyword that would not be honoured, in a schema that has to be.
    #[error("the schema's keyword `{keyword}` at {path} is not supported{}", explained(.detail))]
    Unsupported {
        /// The keyword.
        keyword: String,
        /// Where it stands: a JSON path such as `$.properties.name`.
        path: String,
        /// What of it is not.
        detail: String,
    },
    /// The spec contradicts itself or its format.
    #[error("the {kind} is not valid: {message}")]
    Invalid {
        /// `schema`, `regular expression`, `grammar` or `choice`.
        kind: &'static str,
        /// What is wrong, and where.
        message: String,
    },
    /// No text at all would do.
    #[error("the {kind} allows no answer: {message}")]
    Unsatisfiable {
        /// As in [`GrammarError::Invalid`].
        kind: &'static str,
        /// Why.
        message: String,
    },
    /// It takes more than is allowed.
    #[error("the {kind} is too large: {message}")]
    TooLarge {
        /// As in [`GrammarError::Invalid`].
        kind: &'static str,
        /// Which limit.
        message: String,
    },
    /// It took longer than is allowed.
    #[error("the grammar could not be compiled within {} ms", .limit.as_millis())]
    Deadline {
        /// The limit.
        limit: Duration,
    },
    /// A token that the session's mask does not have.
    #[error("token {token} is not allowed here")]
    NotAllowed {
        /// The token.
        token: TokenId,
    },
    /// The engine below failed.
    #[error("the grammar failed: {message}")]
    Engine {
        /// What it said.
        message: String,
    },
}

fn explained(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}
