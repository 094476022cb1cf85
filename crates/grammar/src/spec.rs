//! What a text may be held to.

use serde_json::Value;
use wardrobe_text::ToolNotation;

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
    /// Calls of functions, in a model's own notation.
    ToolCalls(Box<ToolCalls>),
}

/// What calls of functions are held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCalls {
    /// How calls are written.
    pub notation: ToolNotation,
    /// The functions that may be called, at least one.
    pub functions: Vec<Function>,
    /// What else an answer may be.
    pub beside: Beside,
    /// The most calls of an answer, at least one.
    pub max_calls: usize,
}

/// A function that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// The schema of its arguments, an object. Objects in it that name properties and do not speak of others have no
    /// others ([`close_objects`](crate::close_objects)): nobody would read them.
    pub parameters: Value,
    /// As in [`Spec::JsonSchema`].
    pub strict: bool,
}

/// What an answer may be beside calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beside {
    /// Nothing: there is a call at least.
    Nothing,
    /// Any text, also before calls.
    Text,
    /// JSON that a schema allows, in the place of calls.
    Json {
        /// The schema.
        schema: Value,
        /// As in [`Spec::JsonSchema`].
        strict: bool,
    },
}

impl Spec {
    /// What errors call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Spec::JsonSchema { .. } | Spec::JsonObject => "schema",
            Spec::Regex(_) => "regular expression",
            Spec::Choice(_) => "choice",
            Spec::Lark(_) | Spec::Gbnf(_) => "grammar",
            Spec::ToolCalls(_) => "set of functions",
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
