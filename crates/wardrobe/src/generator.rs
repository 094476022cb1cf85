//! An engine in this process as a generator.

use std::sync::Arc;
use std::time::Duration;

use wardrobe_engine::{
    AdapterError, Completion, Constraint, Engine, Event, Finish, Request, SamplingParams, SubmitError,
    TokenId,
};
use wardrobe_generator::{
    Answer, AskError, Generator, Held, Prompt, Question, Scorer, Stopped, TokenScore, Usage,
};
use wardrobe_grammar::Spec;
use wardrobe_text::Message;

use crate::error::Result;
use crate::model::Model;

/// How long an answer is waited for before a stop is noticed.
const POLL: Duration = Duration::from_millis(100);

/// Asks a running engine: the base model, or one adapter of it.
#[derive(Clone)]
pub struct EngineGenerator {
    model: Model,
    engine: Engine,
    name: String,
    adapter: Option<String>,
    /// Digest of what the adapter's name means.
    adapter_digest: Option<[u8; 32]>,
}

impl EngineGenerator {
    /// The base model of an engine, under a name for reports.
    pub fn base(model: &Model, engine: &Engine, name: impl Into<String>) -> Self {
        let (model, engine) = (model.clone(), engine.clone());
        Self { model, engine, name: name.into(), adapter: None, adapter_digest: None }
    }

    /// An adapter that is loaded in the engine.
    ///
    /// # Errors
    /// It is not loaded.
    pub fn adapter(model: &Model, engine: &Engine, name: &str) -> Result<Self> {
        let loaded = engine.adapters().into_iter().find(|adapter| adapter.name == name);
        let loaded = loaded.ok_or_else(|| AdapterError::NotLoaded { name: name.to_owned() })?;
        let (adapter, adapter_digest) = (Some(name.to_owned()), Some(loaded.digest));
        Ok(Self { adapter, adapter_digest, ..Self::base(model, engine, name) })
    }

    fn prompt(&self, prompt: &Prompt) -> Result<Vec<TokenId>> {
        match prompt {
            Prompt::Text(text) => Ok(self.model.tokenizer().encode(text, true)?),
            Prompt::Chat(messages) => self.model.chat_prompt(messages),
        }
    }

    fn constraint(&self, held: &Held) -> Result<Option<Constraint>, AskError> {
        let Held::Schema(schema) = held else { return Ok(None) };
        let spec = Spec::JsonSchema { schema: schema.clone(), strict: true };
        let template = self.model.compile(&spec);
        template
            .map(|template| Some(Constraint(template)))
            .map_err(|error| AskError::Fatal(error.to_string()))
    }

    /// Submits a request and waits for its end.
    fn run(&self, request: Request, stopped: &Stopped<'_>) -> Result<Completion, AskError> {
        let mut stream = self.engine.submit(request).map_err(refused)?;
        let mut completion = Completion::default();
        loop {
            match stream.next_timeout(POLL) {
                Some(event) => {
                    let is_end = matches!(event, Event::Summary(_));
                    completion.apply(event);
                    if is_end {
                        return Ok(completion);
                    }
                }
                // Dropping the stream cancels what is computed for it.
                None if stopped() => return Err(AskError::Stopped),
                None => self.check_health()?,
            }
        }
    }

    fn check_health(&self) -> Result<(), AskError> {
        match self.engine.stats().unhealthy {
            Some(reason) => Err(AskError::Fatal(reason.to_string())),
            None => Ok(()),
        }
    }

    /// Why an answer is none, where it ended by something else than itself or its length.
    fn ended(&self, finish: Option<&Finish>) -> Result<String, AskError> {
        let failed = |message: &str| AskError::Question { kind: "engine", message: message.to_owned() };
        match finish {
            Some(finish @ (Finish::Stop(_) | Finish::Length)) => Ok(finish.name().to_owned()),
            Some(Finish::Error { message }) => {
                self.check_health()?;
                Err(failed(message))
            }
            Some(Finish::Cancelled { reason }) => Err(AskError::Fatal(reason.clone())),
            _ => Err(failed("the answer has no end")),
        }
    }
}

/// What a refusal means: some concern one question, others all.
fn refused(error: SubmitError) -> AskError {
    match error {
        SubmitError::ContextExceeded { .. } => {
            AskError::Question { kind: "context_length_exceeded", message: error.to_string() }
        }
        SubmitError::Overloaded { retry_after, .. } => {
            AskError::Again { after: Some(retry_after), reason: error.to_string() }
        }
        _ => AskError::Fatal(error.to_string()),
    }
}

fn bad_prompt(error: impl std::fmt::Display) -> AskError {
    AskError::Question { kind: "bad_prompt", message: error.to_string() }
}

impl Generator for EngineGenerator {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Vec<(&'static str, String)> {
        let chat = self.model.chat_template().map_or("none", |chat| chat.source());
        let hex = |digest: &[u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
        vec![
            ("model", self.model.decoder().content_digest().to_string()),
            ("chat template", chat.to_owned()),
            ("adapter", self.adapter_digest.as_ref().map_or_else(|| "none".to_owned(), hex)),
        ]
    }

    /// As many as run at once, and some more, so that one is ready whenever one ends.
    fn concurrency(&self) -> usize {
        let at_once = self.engine.config().max_num_sequences;
        at_once + at_once.div_ceil(4).min(self.engine.config().queue_capacity)
    }

    fn check(&self, question: &Question) -> Result<(), AskError> {
        if matches!(question.prompt, Prompt::Chat(_)) && self.model.chat_template().is_none() {
            let what = "the model has no chat template".to_owned();
            return Err(AskError::Unsupported { who: self.name.clone(), what });
        }
        self.constraint(&question.held).map(drop)
    }

    fn generate(&self, question: &Question, stopped: &Stopped<'_>) -> Result<Answer, AskError> {
        let request = Request {
            prompt_token_ids: self.prompt(&question.prompt).map_err(bad_prompt)?.into(),
            adapter: self.adapter.clone(),
            sampling: SamplingParams {
                temperature: question.temperature,
                top_p: question.top_p,
                seed: question.seed,
                ..SamplingParams::default()
            },
            constraint: self.constraint(&question.held)?,
            without_adapter_schema: question.held == Held::Free,
            max_tokens: Some(question.max_tokens),
            ..Request::default()
        };
        let completion = self.run(request, stopped)?;
        let usage = completion.summary.usage;
        let choice = completion.choices.into_iter().next().unwrap_or_default();
        Ok(Answer {
            finish_reason: self.ended(choice.finish.as_ref())?,
            text: choice.text,
            usage: Usage {
                prompt_tokens: usage.prompt_tokens as u64,
                cached_tokens: usage.cached_tokens as u64,
                completion_tokens: usage.completion_tokens as u64,
            },
        })
    }

    fn scorer(&self) -> Option<&dyn Scorer> {
        Some(self)
    }
}

impl Scorer for EngineGenerator {
    fn tokenize(&self, text: &str, special: bool) -> Result<Vec<u32>, AskError> {
        let ids = self.model.tokenizer().encode(text, special).map_err(bad_prompt)?;
        Ok(ids.into_iter().map(|id| id.0).collect())
    }

    fn tokenize_chat(&self, messages: &[Message]) -> Result<Vec<u32>, AskError> {
        let ids = self.model.chat_prompt(messages).map_err(bad_prompt)?;
        Ok(ids.into_iter().map(|id| id.0).collect())
    }

    fn max_context_tokens(&self) -> Option<usize> {
        let own = self.adapter.as_ref().and_then(|name| {
            let loaded = self.engine.adapters();
            loaded.into_iter().find(|adapter| adapter.name == *name)?.max_context_tokens
        });
        Some(own.unwrap_or_else(|| self.engine.max_context_tokens()))
    }

    fn score(&self, tokens: &[u32], stopped: &Stopped<'_>) -> Result<Vec<TokenScore>, AskError> {
        self.score_from(tokens, 1, stopped)
    }

    fn score_from(
        &self,
        tokens: &[u32],
        from: usize,
        stopped: &Stopped<'_>,
    ) -> Result<Vec<TokenScore>, AskError> {
        let from = from.max(1);
        let request = Request {
            prompt_token_ids: tokens.iter().map(|id| TokenId(*id)).collect::<Arc<[_]>>(),
            adapter: self.adapter.clone(),
            without_adapter_schema: true,
            max_tokens: Some(0),
            prompt_logprobs: Some(0),
            prompt_logprobs_from: from,
            ..Request::default()
        };
        let completion = self.run(request, stopped)?;
        self.ended(completion.choices.first().and_then(|choice| choice.finish.as_ref()))?;
        let rows = completion.prompt_logprobs.unwrap_or_default();
        let scores = rows.iter().skip(from).map(|row| {
            let row = row.as_ref()?;
            Some(TokenScore { logprob: f64::from(row.logprob), is_likeliest: row.rank == 1 })
        });
        let scores = scores
            .collect::<Option<Vec<_>>>()
            .filter(|scores| scores.len() == tokens.len().saturating_sub(from));
        scores.ok_or_else(|| AskError::Question {
            kind: "engine",
            message: "the prompt's log-probabilities are not whole".to_owned(),
        })
    }
}
