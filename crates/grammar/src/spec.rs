//! What a text may be held to.

use serde_json::Value;

/// A constraint on a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// JSON that a schema allows.
    JsonSchema {
        /// The schema, in the order of its properties.
        schema: Value,
        /// Refuse it if a keyword cannot be honoured, instead of leaving that out with a warning.
        strict: bool,
    },
    /// Any JSON object.
    JsonObject,
    /// A text that matches as a whole, in the syntax of the `regex` crate.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's variant of Lark.
    Lark(String),
    /// A grammar in GBNF, as llama.cpp takes it.
    Gbnf(String),
}

impl Spec {
    /// What errors call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Spec::JsonSchema { .. } | Spec::JsonObject => "schema",
            Spec::Regex(_) => "regular expression",
            Spec::Choice(_) => "choice",
            Spec::Lark(_) | Spec::Gbnf(_) => "grammar",
        }
    }
}

/// White space between the tokens of JSON. It has a bound in every style: a model that may go on with blanks for ever
/// sometimes does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Whitespace {
    /// `{"a": 1, "b": [2, 3]}`, as most JSON that models have read, and as Python writes it.
    #[default]
    Spaced,
    /// `{"a":1,"b":[2,3]}`.
    Compact,
    /// Up to a line break and some blanks of indentation between any two.
    Flexible,
}
