//! Constrained decoding: what a text may be held to, as a mask over the tokens at every step.
//!
//! Purpose: a [`Spec`] (JSON schema, regular expression, choice, grammar) is compiled to a [`Template`]; each sequence has a
//! [`Session`] of it, which says what tokens may come next, and follows those that do.
//!
//! State: a [`Vocabulary`] and a [`Template`] are immutable and shared; a session belongs to one sequence and is used by one
//! thread at a time.
//!
//! Invariants: a text whose tokens were all in their masks, and that ends where [`Session::may_end`] holds, is one that the
//! spec allows. From every state that a session reaches, [`Session::shortest_end`] finds a way to the end, or says that it
//! found none: a number may have as many digits as numbers get and no multiple of what it has to be one of. Who asks after
//! every token, and takes back one that leaves no way, meets no empty mask. No spec takes more time or memory to compile than its limits.
//!
//! This crate samples nothing and knows no model.
#![forbid(unsafe_code)]

mod closed;
mod closing;
mod compiler;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod gbnf;
mod guidance;
mod schema;
mod spec;
mod stats;
mod template;
mod tools;
mod vocabulary;

pub use closing::close_objects;
pub use compiler::{Compiler, Limits};
pub use error::{GrammarError, Result};
pub use spec::{Beside, Function, Spec, ToolCalls, Whitespace};
pub use stats::{CompilerStats, SpecOutcome};
pub use template::{EngineKind, SessionSource, Template};
pub use vocabulary::Vocabulary;

use std::sync::Arc;

use wardrobe_text::TokenId;

/// A text in the making.
pub trait Session: Send {
    /// Writes the tokens that may come next: bit `t % 32` of word `t / 32`; the others are 0. Tokens that end the text are
    /// among them exactly where it may end.
    ///
    /// # Errors
    /// The engine failed; the session is of no use any more.
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<()>;

    /// The mask of where the session is, of [`Vocabulary::mask_len`] words, if it was computed before: for nothing.
    fn known_mask(&mut self) -> Option<Arc<[u32]>> {
        None
    }

    /// Follows a token. One that ends the text changes nothing.
    ///
    /// # Errors
    /// [`GrammarError::NotAllowed`], and the session is as it was; or the engine failed.
    fn accept(&mut self, token: TokenId) -> Result<()>;

    /// How many of the tokens could be accepted one after the other.
    ///
    /// # Errors
    /// The engine failed.
    fn validate(&mut self, draft: &[TokenId]) -> Result<usize>;

    /// Takes the last `num_tokens` accepted tokens back.
    ///
    /// # Errors
    /// There are not so many, or the engine failed.
    fn rollback(&mut self, num_tokens: usize) -> Result<()>;

    /// The tokens that have to come next, as far as there is no choice, in the tokenizer's own way to spell them.
    fn forced_tokens(&mut self) -> Vec<TokenId>;

    /// Whether the text may end here.
    ///
    /// # Errors
    /// The engine failed.
    fn may_end(&mut self) -> Result<bool>;

    /// Whether it may end here, and nothing may follow.
    ///
    /// # Errors
    /// The engine failed.
    fn is_done(&mut self) -> Result<bool>;

    /// Whether the text so far is one that the spec asks nothing of, so that the caller's own stops may end it.
    fn is_free(&self) -> bool {
        false
    }

    /// A short way to where the text may end, of `max_tokens` at most; the shortest where the engine knows it. `None`: none
    /// was found.
    ///
    /// # Errors
    /// The engine failed.
    fn shortest_end(&mut self, max_tokens: usize) -> Result<Option<Vec<TokenId>>>;
}
