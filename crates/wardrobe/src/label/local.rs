//! Labels of a model in this process.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use wardrobe_batch::records::{Control, Outcome, Terms};
use wardrobe_engine::{
    AdapterError, Completion, Constraint, Engine, Event, Finish, Request, SamplingParams, SubmitError,
    TokenId,
};
use wardrobe_grammar::{Spec, Template};

use super::LabelOptions;
use super::asking::{Answered, Ask, Question, messages};
use super::line::LineUsage;
use crate::error::{Error, Result};
use crate::model::Model;

/// How long an answer is waited for before a stop is noticed.
const POLL: Duration = Duration::from_millis(100);

/// Asks an engine, and holds its answers to a schema.
pub struct EngineLabeller {
    model: Model,
    engine: Engine,
    adapter: Option<String>,
    /// Digest of what the name means, which a resumption must find again.
    adapter_digest: Option<[u8; 32]>,
    template: Arc<Template>,
    raw: bool,
}

impl EngineLabeller {
    /// Over a running engine of this model, with an adapter that is loaded in it, or with the base alone. Every keyword of
    /// the schema is held, or the schema is refused. With `raw` prompts go to the model as they are, without its chat
    /// template.
    ///
    /// # Errors
    /// The schema is refused, the adapter is not loaded, or the model has no chat template.
    pub fn new(
        model: &Model,
        engine: &Engine,
        adapter: Option<&str>,
        schema: &Value,
        raw: bool,
    ) -> Result<Self> {
        let template = model.compile(&Spec::JsonSchema { schema: schema.clone(), strict: true })?;
        if !raw && model.chat_template().is_none() {
            return Err(Error::Setting("the model has no chat template".to_owned()));
        }
        let adapter_digest = match adapter {
            None => None,
            Some(name) => {
                let loaded = engine.adapters().into_iter().find(|adapter| adapter.name == name);
                let unknown = || AdapterError::NotLoaded { name: name.to_owned() };
                Some(loaded.ok_or_else(unknown)?.digest)
            }
        };
        let (model, engine) = (model.clone(), engine.clone());
        Ok(Self { model, engine, adapter: adapter.map(str::to_owned), adapter_digest, template, raw })
    }

    fn prompt(&self, options: &LabelOptions, prompt: &str) -> Result<Vec<TokenId>> {
        match self.raw {
            true => Ok(self.model.tokenizer().encode(prompt, true)?),
            false => self.model.chat_prompt(&messages(options, prompt)),
        }
    }

    /// Whether the engine can answer no one any more, and why.
    fn unhealthy(&self) -> Option<Answered> {
        self.engine.stats().unhealthy.map(|reason| Answered::Run(Outcome::Fatal(reason.to_string())))
    }

    fn ended(&self, completion: Completion) -> Answered {
        let failed = |message: String| Answered::Failed { kind: "engine", message };
        let Some(choice) = completion.choices.into_iter().next() else {
            return failed("there is no answer".to_owned());
        };
        let usage = completion.summary.usage;
        match choice.finish {
            Some(finish @ (Finish::Stop(_) | Finish::Length)) => Answered::Text {
                text: choice.text,
                finish_reason: finish.name().to_owned(),
                usage: LineUsage {
                    prompt_tokens: usage.prompt_tokens as u64,
                    cached_tokens: usage.cached_tokens as u64,
                    completion_tokens: usage.completion_tokens as u64,
                },
            },
            Some(Finish::Error { message }) => self.unhealthy().unwrap_or_else(|| failed(message)),
            Some(Finish::Cancelled { reason }) => Answered::Run(Outcome::Fatal(reason)),
            _ => failed("the answer has no end".to_owned()),
        }
    }
}

/// What a refusal means: some concern one record, others all.
fn refused(error: SubmitError) -> Answered {
    match error {
        SubmitError::ContextExceeded { .. } => {
            Answered::Failed { kind: "context_length_exceeded", message: error.to_string() }
        }
        SubmitError::Overloaded { retry_after, .. } => {
            Answered::Run(Outcome::Again { after: Some(retry_after), reason: error.to_string() })
        }
        _ => Answered::Run(Outcome::Fatal(error.to_string())),
    }
}

impl Ask for EngineLabeller {
    fn terms(&self, terms: Terms) -> Terms {
        let base = self.model.decoder().content_digest();
        let chat = self.model.chat_template().filter(|_| !self.raw);
        let terms =
            terms.with("model", base).with("chat template", chat.map_or("none", |chat| chat.source()));
        match &self.adapter_digest {
            None => terms.with("adapter", "none"),
            Some(digest) => {
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                terms.with("adapter", hex)
            }
        }
    }

    /// As many as run at once, and some more, so that one is ready whenever one ends.
    fn default_concurrency(&self) -> usize {
        let at_once = self.engine.config().max_num_sequences;
        at_once + at_once.div_ceil(4).min(self.engine.config().queue_capacity)
    }

    fn ask(&self, options: &LabelOptions, question: &Question, control: &Control<'_>) -> Answered {
        let prompt = match self.prompt(options, &question.prompt) {
            Ok(prompt) => prompt,
            Err(error) => return Answered::Failed { kind: "bad_record", message: error.to_string() },
        };
        let request = Request {
            prompt_token_ids: prompt.into(),
            adapter: self.adapter.clone(),
            sampling: SamplingParams {
                temperature: options.temperature,
                seed: options.seed_of(question.index),
                ..SamplingParams::default()
            },
            constraint: Some(Constraint(self.template.clone())),
            max_tokens: Some(options.max_tokens),
            ..Request::default()
        };
        let mut stream = match self.engine.submit(request) {
            Ok(stream) => stream,
            Err(error) => return refused(error),
        };
        let mut completion = Completion::default();
        loop {
            match stream.next_timeout(POLL) {
                Some(event) => {
                    let is_end = matches!(event, Event::Summary(_));
                    completion.apply(event);
                    if is_end {
                        return self.ended(completion);
                    }
                }
                // Dropping the stream cancels what is computed for it.
                None if control.is_stopped() => return Answered::Run(Outcome::Stopped),
                None => {
                    if let Some(fatal) = self.unhealthy() {
                        return fatal;
                    }
                }
            }
        }
    }
}
