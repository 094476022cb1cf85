//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use bytes::BytesMut;
use wardrobe_engine::{Completion, Event, Request, Summary, Update};
use wardrobe_text::{ChatInput, ChatTemplate, Message, MessageContent, TemplateLimits};

use crate::admission::GenerationPlace;
use crate::body::{JsonObject, json};
use crate::constraint;
use crate::context::RequestContext;
use crate::error::{Api, ApiError, Result};
use crate::generate::{Admitted, Generation, PromptOptions, engine_request, finish_reason};
use crate::shape::{AnswerShape, refuse_unsupported};
use crate::sse::{ChunkFrame, ChunkNames, ChunkWriter, SseStream};
use crate::state::{ServerState, unix_s};
use crate::target;
use crate::wire::chat::{AssistantMessage, ChatChoice, ChatCompletion, ChatDelta, ChatFields, Delta};
use crate::wire::logprobs::{ChatLogprobs, PromptLogprobs, TokenStyle};
use crate::wire::request::GenerationFields;
use crate::wire::usage::{WireTimings, WireUsage};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// `POST /v1/chat/completions`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    context: RequestContext,
    place: GenerationPlace,
    body: JsonObject,
) -> Result<Response> {
    refuse_unsupported(&body)?;
    let mut fields: GenerationFields = body.parse()?;
    let chat: ChatFields = body.parse()?;
    let target = target::resolve(&state, &fields)?;
    let mut admitted = Admitted::new(place, &context, &target);
    let shape = AnswerShape::new(&fields, chat.logprobs == Some(true), TokenStyle::Text)?;
    let mut request = engine_request(&state, &context, &target, &mut fields, Api::Chat)?;
    request.constraint = constraint::resolve(&state, &body).await?;
    request.logprobs = match (chat.logprobs, chat.top_logprobs) {
        (Some(true), top) => Some(top.unwrap_or(0)),
        (_, None | Some(0)) => None,
        _ => return Err(ApiError::invalid("top_logprobs", "is set without `logprobs`")),
    };
    let options = PromptOptions::new(&state, &target, &fields, false, Api::Chat)?;
    let conversation = Conversation::new(&state, chat)?;
    let shared = state.clone();
    let (text_bytes, share) = (body.len_bytes(), body.into_share());
    request.prompt_token_ids = state
        .offload
        .run(text_bytes, move || {
            let _share = share;
            let text = conversation.render(&shared)?;
            options.encode(&shared.model.tokenizer, &text)
        })
        .await?
        .into();
    admitted.log.start([request.prompt_token_ids.len()]);
    let names = ChunkNames {
        id: state.ids.next("chatcmpl-"),
        object: "chat.completion.chunk",
        created: unix_s(SystemTime::now()),
        model: target.model,
    };
    answer(&state, &context, Prepared { request, names, shape, admitted }, fields.stream == Some(true)).await
}

/// A checked request, ready for the engine.
struct Prepared {
    request: Request,
    names: ChunkNames,
    shape: AnswerShape,
    admitted: Admitted,
}

async fn answer(
    state: &Arc<ServerState>,
    context: &RequestContext,
    prepared: Prepared,
    stream: bool,
) -> Result<Response> {
    let Prepared { request, names, shape, admitted } = prepared;
    let prompt_token_ids = shape.ids(&request.prompt_token_ids);
    let generation = Generation::submit(state, context, [request], admitted, Api::Chat)?;
    if stream {
        let writer = ChatWriter {
            frame: ChunkFrame::new(&names, shape.include_usage)?,
            names,
            state: state.clone(),
            shape,
            prompt_token_ids,
            started: Vec::new(),
            summary: Summary::default(),
        };
        return Ok(SseStream::new(generation, writer, state.config.keep_alive_interval).into_response());
    }
    let completions = generation.collect(1).await?;
    let completion = completions.into_iter().next().unwrap_or_default();
    whole_answer(state, &names, shape, prompt_token_ids, &completion)
}

fn whole_answer(
    state: &ServerState,
    names: &ChunkNames,
    shape: AnswerShape,
    prompt_token_ids: Option<Vec<u32>>,
    completion: &Completion,
) -> Result<Response> {
    let mut usage = WireUsage::default();
    usage.add(&completion.summary.usage);
    let choices = completion.choices.iter().enumerate().map(|(index, choice)| {
        let (finish_reason, stop_reason) = finish_reason(choice.finish.as_ref())?;
        Ok(ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content: &choice.text, refusal: None },
            logprobs: shape.logprobs.then(|| ChatLogprobs::new(&choice.logprobs, shape.style)),
            finish_reason,
            stop_reason,
            token_ids: shape.ids(&choice.token_ids),
        })
    });
    Ok(json(&ChatCompletion {
        id: &names.id,
        object: "chat.completion",
        created: names.created,
        model: &names.model,
        system_fingerprint: state.fingerprint(&completion.summary),
        choices: choices.collect::<Result<_>>()?,
        usage,
        prompt_logprobs: completion.prompt_logprobs.as_deref().map(PromptLogprobs::new),
        prompt_token_ids,
        timings: shape.timings.then(|| WireTimings::new(&completion.summary)),
    }))
}

/// A checked conversation with the template that renders it.
pub(crate) struct Conversation {
    fields: ChatFields,
    template: Option<ChatTemplate>,
}

impl Conversation {
    pub fn new(state: &ServerState, mut fields: ChatFields) -> Result<Self> {
        if fields.messages.is_empty() {
            return Err(ApiError::invalid("messages", "is empty"));
        }
        let template = match fields.chat_template.take() {
            None if state.model.chat_template.is_some() => None,
            None => {
                let message = "this model has no chat template; use /v1/completions";
                return Err(ApiError::bad_request(message).with_code("no_chat_template"));
            }
            Some(_) if !state.config.allow_request_chat_template => {
                let why = "this server does not take chat templates from requests";
                return Err(ApiError::unsupported("chat_template", why));
            }
            Some(source) => Some(
                ChatTemplate::new(&source, TemplateLimits::default())
                    .map_err(|error| ApiError::from_template(error).with_param("chat_template"))?,
            ),
        };
        let shown = template.as_ref().or(state.model.chat_template.as_ref());
        let knows_developer = shown.is_some_and(|template| template.source().contains("developer"));
        for (idx, message) in fields.messages.iter_mut().enumerate() {
            check_message(idx, message, knows_developer)?;
        }
        Ok(Self { fields, template })
    }

    pub fn render(&self, state: &ServerState) -> Result<String> {
        let fields = &self.fields;
        let continue_final_message = fields.continue_final_message.unwrap_or(false);
        let input = ChatInput {
            messages: &fields.messages,
            documents: fields.documents.as_ref(),
            add_generation_prompt: fields.add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            bos_token: state.bos_token.as_deref(),
            eos_token: state.eos_token.as_deref(),
            kwargs: fields.chat_template_kwargs.as_ref(),
            ..ChatInput::default()
        };
        let template = self.template.as_ref().or(state.model.chat_template.as_ref());
        let template = template.ok_or_else(|| ApiError::internal("the chat template is gone"))?;
        template.render(&input).map_err(ApiError::from_template)
    }
}

/// Checks a message and brings it into the form that templates expect.
fn check_message(idx: usize, message: &mut Message, knows_developer: bool) -> Result<()> {
    let at = |field: &str| format!("messages[{idx}].{field}");
    if !ROLES.contains(&message.role.as_str()) {
        let shown: String = message.role.chars().take(32).collect();
        return Err(ApiError::invalid(at("role"), format!("is {shown:?}, not one of {ROLES:?}")));
    }
    if message.role == "developer" && !knows_developer {
        "system".clone_into(&mut message.role);
    }
    message.join_text_parts().map_err(|kind| {
        let kind: String = kind.chars().take(32).collect();
        ApiError::invalid(at("content"), format!("has a part of type {kind:?}; this model reads text only"))
    })?;
    message.parse_tool_arguments();
    let calls = message.role == "assistant" && message.tool_calls.is_some();
    match message.content {
        MessageContent::Text(_) => Ok(()),
        _ if calls => Ok(()),
        _ => Err(ApiError::invalid(at("content"), "is missing")),
    }
}

/// Writes the chunks of a chat.
struct ChatWriter {
    frame: ChunkFrame,
    names: ChunkNames,
    state: Arc<ServerState>,
    shape: AnswerShape,
    prompt_token_ids: Option<Vec<u32>>,
    /// Which choices have had their first delta.
    started: Vec<bool>,
    summary: Summary,
}

#[derive(serde::Serialize)]
struct FirstDelta<'a> {
    #[serde(flatten)]
    delta: ChatDelta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

impl ChatWriter {
    fn first(&mut self, index: usize, out: &mut BytesMut) -> Result<()> {
        if self.started.len() <= index {
            self.started.resize(index + 1, false);
        }
        match self.started.get_mut(index) {
            Some(started) if !*started => *started = true,
            _ => return Ok(()),
        }
        let delta = Delta { role: Some("assistant"), content: Some("") };
        let prompt_token_ids = self.prompt_token_ids.take();
        self.frame.write(&FirstDelta { delta: chat_delta(index, delta), prompt_token_ids }, out)
    }

    fn update(&mut self, update: &Update, out: &mut BytesMut) -> Result<()> {
        let index = update.choice;
        self.first(index, out)?;
        let logprobs = self.shape.logprobs && !update.logprobs.is_empty();
        let token_ids = self.shape.ids(&update.token_ids).filter(|ids| !ids.is_empty());
        if !update.text.is_empty() || logprobs || token_ids.is_some() {
            let delta = Delta { role: None, content: Some(&update.text) };
            let logprobs = logprobs.then(|| ChatLogprobs::new(&update.logprobs, self.shape.style));
            self.frame.write(&ChatDelta { logprobs, token_ids, ..chat_delta(index, delta) }, out)?;
        }
        if update.finish.is_some() {
            let (finish_reason, stop_reason) = finish_reason(update.finish.as_ref())?;
            let last = ChatDelta {
                finish_reason: Some(finish_reason),
                stop_reason,
                ..chat_delta(index, Delta::default())
            };
            self.frame.write(&last, out)?;
        }
        Ok(())
    }
}

fn chat_delta(index: usize, delta: Delta<'_>) -> ChatDelta<'_> {
    ChatDelta { index, delta, logprobs: None, finish_reason: None, stop_reason: None, token_ids: None }
}

impl ChunkWriter for ChatWriter {
    fn event(&mut self, _: usize, event: Event, out: &mut BytesMut) -> Result<()> {
        match event {
            Event::Update(update) => self.update(&update, out),
            Event::Summary(summary) => {
                self.summary = *summary;
                Ok(())
            }
            // vLLM does not stream these either.
            Event::PromptLogprobs(_) => Ok(()),
        }
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<()> {
        if !self.shape.include_usage {
            return Ok(());
        }
        let mut usage = WireUsage::default();
        usage.add(&self.summary.usage);
        let fingerprint = self.state.fingerprint(&self.summary);
        let timings = self.shape.timings.then(|| WireTimings::new(&self.summary));
        self.names.write_usage(&fingerprint, usage, timings, out)
    }
}
