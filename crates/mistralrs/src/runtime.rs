//! The running model, as one who answers.

use std::time::Duration;

use mistralrs::{
    Constraint, GgufModelBuilder, Model, ModelBuilder, NormalRequest, Request, RequestBuilder, RequestLike,
    RequestMessage, Response, SamplingParams, TextMessageRole,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Receiver, channel};
use wardrobe_generator::{
    Answer, AskError, FINISH_LENGTH, FINISH_STOP, Generator, Held, Message, MessageContent, Prompt, Question,
    Stopped, Usage,
};

use crate::reference::Reference;

/// The release of mistralrs that answers.
pub const VERSION: &str = "0.8.1";
/// Questions that it works on at once.
const MAX_SEQUENCES: usize = 8;
/// How long an answer is waited for before a stop is noticed.
const POLL: Duration = Duration::from_millis(100);

/// Why a model cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("mistralrs cannot run {reference}: {reason}")]
pub struct MistralRsError {
    /// The model, as the user wrote it.
    pub reference: String,
    /// What is wrong with it, in mistralrs' words where those are all there is.
    pub reason: String,
}

/// A model that mistralrs runs.
pub struct MistralRs {
    // Before the runtime, which it needs to end.
    model: Model,
    runtime: Runtime,
    name: String,
    identity: String,
}

impl MistralRs {
    /// Reads a model: a GGUF file, a folder as the hub has its repositories, or one of the hub (`OWNER/NAME`,
    /// `OWNER/NAME/FILE.gguf`).
    ///
    /// # Errors
    /// There is no such model, or mistralrs cannot run it.
    pub fn open(reference: &str) -> Result<Self, MistralRsError> {
        let failed = |reason: String| MistralRsError { reference: reference.to_owned(), reason };
        let found = Reference::parse(reference).map_err(failed)?;
        let identity = found.identity().map_err(|error| failed(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let model = runtime.block_on(build(&found)).map_err(|error| failed(format!("{error:#}")))?;
        Ok(Self { model, runtime, name: found.name(), identity })
    }

    /// Sends a question, and gives where its answer will come.
    fn send(&self, question: &Question) -> Result<Receiver<Response>, AskError> {
        let (response, answer) = channel(1);
        let mut request = NormalRequest::new_simple(
            self.messages(&question.prompt)?,
            sampling(question),
            response,
            self.model.inner().next_request_id(),
            None,
            None,
        );
        if let Held::Schema(schema) = &question.held {
            request.constraint = Constraint::JsonSchema(spaced(schema.clone()));
        }
        let gone = |error: &dyn std::fmt::Display| AskError::Fatal(format!("mistralrs: {error}"));
        let sender = self.model.inner().get_sender(None).map_err(|error| gone(&error))?;
        let sent = self.runtime.block_on(sender.send(Request::Normal(Box::new(request))));
        sent.map_err(|error| gone(&error))?;
        Ok(answer)
    }

    fn messages(&self, prompt: &Prompt) -> Result<RequestMessage, AskError> {
        match prompt {
            Prompt::Text(text) => {
                Ok(RequestMessage::Completion { text: text.clone(), echo_prompt: false, best_of: None })
            }
            Prompt::Chat(messages) => {
                let mut request = RequestBuilder::new();
                for message in messages {
                    request = request.add_message(role(&message.role), self.text(message)?);
                }
                Ok(request.take_messages())
            }
        }
    }

    fn text<'a>(&self, message: &'a Message) -> Result<&'a str, AskError> {
        match &message.content {
            MessageContent::Text(text) => Ok(text),
            _ => Err(AskError::Unsupported {
                who: self.name.clone(),
                what: "only messages of text are given to mistralrs".to_owned(),
            }),
        }
    }
}

/// The schema with white space fixed, in llguidance's own keyword: a small model that may write white space writes little else.
fn spaced(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        let options = json!({"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false});
        object.entry("x-guidance").or_insert(options);
    }
    schema
}

async fn build(reference: &Reference) -> Result<Model, Box<dyn std::error::Error + Send + Sync>> {
    let gguf = |repository: String, file: String| {
        GgufModelBuilder::new(repository, vec![file]).with_force_cpu().with_max_num_seqs(MAX_SEQUENCES)
    };
    let auto =
        |repository: String| ModelBuilder::new(repository).with_force_cpu().with_max_num_seqs(MAX_SEQUENCES);
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    Ok(match reference {
        Reference::File(path) => {
            let path = path.canonicalize()?;
            let folder = path.parent().map(text).unwrap_or_default();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            gguf(folder, file).build().await?
        }
        Reference::Folder(path) => auto(text(path)).build().await?,
        Reference::Repository(repository) => auto(repository.clone()).build().await?,
        Reference::RepositoryFile { repository, file } => {
            gguf(repository.clone(), file.clone()).build().await?
        }
    })
}

fn role(role: &str) -> TextMessageRole {
    match role {
        "user" => TextMessageRole::User,
        "assistant" => TextMessageRole::Assistant,
        "system" => TextMessageRole::System,
        "tool" => TextMessageRole::Tool,
        other => TextMessageRole::Custom(other.to_owned()),
    }
}

fn sampling(question: &Question) -> SamplingParams {
    let how = match question.temperature > 0.0 {
        true => SamplingParams {
            temperature: Some(question.temperature.into()),
            top_p: Some(question.top_p.into()),
            ..SamplingParams::neutral()
        },
        false => SamplingParams::deterministic(),
    };
    SamplingParams { max_len: Some(question.max_tokens), ..how }
}

fn answer(text: Option<String>, finish_reason: String, usage: mistralrs::Usage) -> Answer {
    let finish_reason = match finish_reason.as_str() {
        "stop" | "eos" => FINISH_STOP.to_owned(),
        "length" => FINISH_LENGTH.to_owned(),
        _ => finish_reason,
    };
    let usage = Usage {
        prompt_tokens: usage.prompt_tokens as u64,
        cached_tokens: 0,
        completion_tokens: usage.completion_tokens as u64,
    };
    Answer { text: text.unwrap_or_default(), finish_reason, usage }
}

impl Generator for MistralRs {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Vec<(&'static str, String)> {
        vec![("runtime", format!("mistralrs {VERSION}")), ("model", self.identity.clone())]
    }

    fn concurrency(&self) -> usize {
        MAX_SEQUENCES
    }

    fn generate(&self, question: &Question, stopped: &Stopped<'_>) -> Result<Answer, AskError> {
        let mut response = self.send(question)?;
        let response = loop {
            let next = async { tokio::time::timeout(POLL, response.recv()).await };
            match self.runtime.block_on(next) {
                Ok(Some(response)) => break response,
                Ok(None) => return Err(AskError::Fatal("mistralrs: its engine has ended".to_owned())),
                Err(_) if stopped() => return Err(AskError::Stopped),
                Err(_) => {}
            }
        };
        let failed = |kind, message: String| Err(AskError::Question { kind, message });
        match response {
            Response::Done(mut done) => match done.choices.pop() {
                Some(choice) => Ok(answer(choice.message.content, choice.finish_reason, done.usage)),
                None => failed("engine", "mistralrs gave no answer".to_owned()),
            },
            Response::CompletionDone(mut done) => match done.choices.pop() {
                Some(choice) => Ok(answer(Some(choice.text), choice.finish_reason, done.usage)),
                None => failed("engine", "mistralrs gave no answer".to_owned()),
            },
            Response::ValidationError(error) => failed("bad_prompt", format!("mistralrs: {error}")),
            Response::InternalError(error) => failed("engine", format!("mistralrs: {error}")),
            Response::ModelError(message, _) | Response::CompletionModelError(message, _) => {
                failed("engine", format!("mistralrs: {message}"))
            }
            _ => failed("engine", "mistralrs gave no text".to_owned()),
        }
    }
}
