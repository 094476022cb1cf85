//! One way to ask a model, whoever answers: an engine in this process, an endpoint, another runtime.
//!
//! A [`Generator`] takes a [`Question`] and gives an [`Answer`]; what went wrong is sorted by what follows from it
//! ([`AskError`]). Labels, distillation and evaluation are written over it and do not know who answers. [`Endpoint`] asks
//! any OpenAI-compatible server; engines and other runtimes implement the trait where they are known. [`patiently`] asks
//! one question, [`ask_all`] many at once.
//!
//! A generator that can tell how likely a text is, is a [`Scorer`] as well: perplexity and multiple choice need that.
//!
//! State: none but connections. Deliberately not here: models, chat templates, prompts of tasks, files.
#![forbid(unsafe_code)]

mod asking;
mod endpoint;
mod error;
mod question;
mod retry;

pub use asking::{AskAll, ask_all, patiently, run_all};
pub use endpoint::{Endpoint, EndpointOptions, is_on_this_machine};
pub use error::{AskError, EndpointError};
pub use question::{Answer, FINISH_LENGTH, FINISH_STOP, Held, Prompt, Question, TokenScore, Usage};
pub use retry::{RetryPolicy, Tries, wait_unless};
pub use wardrobe_text::{Message, MessageContent};

/// Whether a run stops, so that an answer under way is no longer needed.
pub type Stopped<'a> = dyn Fn() -> bool + Sync + 'a;

/// Who answers. Questions come from many threads at once.
pub trait Generator: Send + Sync {
    /// What it is called: the model's or the adapter's name.
    fn name(&self) -> &str;

    /// What decides its answers, beside the question: pairs of a name and a value, such as digests of the model and the
    /// adapter. A run that goes on, or an answer that was kept, must find the same again.
    fn identity(&self) -> Vec<(&'static str, String)>;

    /// How many questions at once keep it busy.
    fn concurrency(&self) -> usize;

    /// Whether questions like this one can be answered at all, as far as that can be told without asking: the schema is
    /// one that answers can be held to, there is a chat template where one is needed.
    ///
    /// # Errors
    /// [`AskError::Fatal`] or [`AskError::Unsupported`].
    fn check(&self, _question: &Question) -> Result<(), AskError> {
        Ok(())
    }

    /// Asks, and waits for the answer. Once `stopped` says so, it may be given up.
    ///
    /// # Errors
    /// [`AskError`]: which kind says whether to ask again, to ask others, or to end.
    fn generate(&self, question: &Question, stopped: &Stopped<'_>) -> Result<Answer, AskError>;

    /// The same model as one that tells how likely texts are, if it can.
    fn scorer(&self) -> Option<&dyn Scorer> {
        None
    }
}

/// Who tells how likely a text is, token by token.
pub trait Scorer: Send + Sync {
    /// The tokens of a text. With `special` the text begins as the model's texts begin (its BOS token, where it has one).
    ///
    /// # Errors
    /// [`AskError`].
    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<u32>, AskError>;

    /// The tokens of a conversation, up to where the answer begins.
    ///
    /// # Errors
    /// [`AskError`]; [`AskError::Unsupported`] without a chat template.
    fn tokenize_chat(&self, messages: &[Message]) -> Result<Vec<u32>, AskError>;

    /// The longest text that it can look at, in tokens; `None` where nobody says.
    fn max_context_tokens(&self) -> Option<usize>;

    /// How likely each token is after those before it: an entry for each but the first.
    ///
    /// # Errors
    /// [`AskError`].
    fn score(&self, tokens: &[u32], stopped: &Stopped<'_>) -> Result<Vec<TokenScore>, AskError>;

    /// The same for the tokens from the one at `from` on, at least 1: an entry for each. What is before them may have
    /// been computed for another text, where the model can make use of that.
    ///
    /// # Errors
    /// [`AskError`].
    fn score_from(
        &self,
        tokens: &[u32],
        from: usize,
        stopped: &Stopped<'_>,
    ) -> Result<Vec<TokenScore>, AskError> {
        Ok(self.score(tokens, stopped)?.split_off(from.saturating_sub(1).min(tokens.len().saturating_sub(1))))
    }
}
