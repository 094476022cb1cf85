//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use bytes::BytesMut;
use serde_json::Value;
use wardrobe_engine::{Completion, Event, Request, Summary, Update};
use wardrobe_text::{ChatInput, ChatTemplate, Message, MessageContent, TemplateLimits};

use crate::admission::GenerationPlace;
use crate::body::{JsonObject, json};
use crate::constraint::{self, BodyConstraint};
use crate::context::RequestContext;
use crate::error::{Api, ApiError, Result};
use crate::generate::{Admitted, Generation, PromptOptions, engine_request, finish_reason};
use crate::shape::{AnswerShape, refuse_unsupported};
use crate::sse::{ChunkFrame, ChunkNames, ChunkWriter, SseStream};
use crate::state::{ServerState, unix_s};
use crate::target;
use crate::tools::{AnswerReader, ChoicePart, ChoiceReader, OfferedTools, TemplateTools, read_whole};
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
    request.logprobs = match (chat.logprobs, chat.top_logprobs) {
        (Some(true), top) => Some(top.unwrap_or(0)),
        (_, None | Some(0)) => None,
        _ => return Err(ApiError::invalid("top_logprobs", "is set without `logprobs`")),
    };
    let options = PromptOptions::new(&state, &target, &fields, false, Api::Chat)?;
    let offered = OfferedTools::new(body.parse()?)?;
    let mut conversation = Conversation::new(&state, chat)?;
    let BodyConstraint { mut asked, is_text } = BodyConstraint::new(&body)?;
    request.without_adapter_schema = is_text;
    let mut reader = None;
    if let Some(tools) = conversation.tools(&state, &offered)? {
        asked = offered.hold(&tools, asked)?;
        reader = offered.reader(&tools);
        conversation.write_tools(&tools, offered.for_prompt);
    }
    request.skip_special_tokens &= !reader.as_ref().is_some_and(|reader| reader.shows_special_tokens);
    request.constraint = constraint::compile(&state, asked).await?;
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
    answer(
        &state,
        &context,
        Prepared { request, names, shape, reader, admitted },
        fields.stream == Some(true),
    )
    .await
}

/// A checked request, ready for the engine.
struct Prepared {
    request: Request,
    names: ChunkNames,
    shape: AnswerShape,
    /// Set where answers may call functions.
    reader: Option<AnswerReader>,
    admitted: Admitted,
}

async fn answer(
    state: &Arc<ServerState>,
    context: &RequestContext,
    prepared: Prepared,
    stream: bool,
) -> Result<Response> {
    let Prepared { request, names, shape, reader, admitted } = prepared;
    let prompt_token_ids = shape.ids(&request.prompt_token_ids);
    let generation = Generation::submit(state, context, [request], admitted, Api::Chat)?;
    if stream {
        let writer = ChatWriter {
            frame: ChunkFrame::new(&names, shape.include_usage)?,
            names,
            state: state.clone(),
            shape,
            prompt_token_ids,
            reader,
            choices: Vec::new(),
            summary: Summary::default(),
        };
        return Ok(SseStream::new(generation, writer, state.config.keep_alive_interval).into_response());
    }
    let completions = generation.collect(1).await?;
    let completion = completions.into_iter().next().unwrap_or_default();
    whole_answer(state, &names, (shape, reader), prompt_token_ids, &completion)
}

fn whole_answer(
    state: &ServerState,
    names: &ChunkNames,
    (shape, reader): (AnswerShape, Option<AnswerReader>),
    prompt_token_ids: Option<Vec<u32>>,
    completion: &Completion,
) -> Result<Response> {
    let mut usage = WireUsage::default();
    usage.add(&completion.summary.usage);
    let choices = completion.choices.iter().enumerate().map(|(index, choice)| {
        let (mut finish_reason, stop_reason) = finish_reason(choice.finish.as_ref())?;
        let (mut content, mut tool_calls) = (Some(choice.text.clone()), Vec::new());
        if let Some(mut reader) = reader.as_ref().map(AnswerReader::choice) {
            let (text, calls) = read_whole(state, &mut reader, &choice.text);
            content = (calls.is_empty() || !text.is_empty()).then_some(text);
            tool_calls = calls;
            finish_reason = reader.finish_reason(choice.finish.as_ref(), finish_reason);
        }
        Ok(ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content, refusal: None, tool_calls },
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
    /// For the template.
    tools: Option<Value>,
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
        Ok(Self { fields, template, tools: None })
    }

    fn template<'a>(&'a self, state: &'a ServerState) -> Result<&'a ChatTemplate> {
        let template = self.template.as_ref().or(state.model.chat_template.as_ref());
        template.ok_or_else(|| ApiError::internal("the chat template is gone"))
    }

    /// How the template has tools, if there are any, or were in earlier turns.
    pub fn tools(&self, state: &ServerState, offered: &OfferedTools) -> Result<Option<Arc<TemplateTools>>> {
        let earlier = |message: &Message| message.tool_calls.is_some() || message.role == "tool";
        if offered.for_prompt.is_none() && !self.fields.messages.iter().any(earlier) {
            return Ok(None);
        }
        let template = self.template(state)?;
        Ok(Some(match self.template {
            Some(_) => Arc::new(TemplateTools::new(state, template)),
            None => {
                state.template_tools.get_or_init(|| Arc::new(TemplateTools::new(state, template))).clone()
            }
        }))
    }

    /// Has the rendering tell of tools.
    pub fn write_tools(&mut self, tools: &TemplateTools, for_prompt: Option<Value>) {
        self.tools = tools.style.prepare(&mut self.fields.messages, for_prompt);
    }

    pub fn render(&self, state: &ServerState) -> Result<String> {
        let fields = &self.fields;
        let continue_final_message = fields.continue_final_message.unwrap_or(false);
        let input = ChatInput {
            messages: &fields.messages,
            tools: self.tools.as_ref(),
            documents: fields.documents.as_ref(),
            add_generation_prompt: fields.add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            bos_token: state.bos_token.as_deref(),
            eos_token: state.eos_token.as_deref(),
            kwargs: fields.chat_template_kwargs.as_ref(),
            ..ChatInput::default()
        };
        self.template(state)?.render(&input).map_err(ApiError::from_template)
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
    reader: Option<AnswerReader>,
    /// Of choices that have had their first delta, what reads their calls.
    choices: Vec<Option<ChoiceState>>,
    summary: Summary,
}

/// A choice that has begun, with what reads its calls if there may be any.
struct ChoiceState(Option<ChoiceReader>);

#[derive(serde::Serialize)]
struct FirstDelta<'a> {
    #[serde(flatten)]
    delta: ChatDelta<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

impl ChatWriter {
    fn first(&mut self, index: usize, out: &mut BytesMut) -> Result<()> {
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, || None);
        }
        match self.choices.get_mut(index) {
            Some(choice @ None) => {
                *choice = Some(ChoiceState(self.reader.as_ref().map(AnswerReader::choice)))
            }
            _ => return Ok(()),
        }
        let delta = Delta { role: Some("assistant"), content: Some(""), tool_calls: None };
        let prompt_token_ids = self.prompt_token_ids.take();
        self.frame.write(&FirstDelta { delta: chat_delta(index, delta), prompt_token_ids }, out)
    }

    fn update(&mut self, update: &Update, out: &mut BytesMut) -> Result<()> {
        let index = update.choice;
        self.first(index, out)?;
        let mut logprobs = (self.shape.logprobs && !update.logprobs.is_empty())
            .then(|| ChatLogprobs::new(&update.logprobs, self.shape.style));
        let mut token_ids = self.shape.ids(&update.token_ids).filter(|ids| !ids.is_empty());
        let reader =
            self.choices.get_mut(index).and_then(Option::as_mut).and_then(|choice| choice.0.as_mut());
        let is_end = update.finish.is_some();
        let parts = match reader {
            Some(reader) => reader.read(&self.state, &update.text, is_end),
            None if update.text.is_empty() => Vec::new(),
            None => vec![ChoicePart::Text(update.text.clone())],
        };
        // What belongs to the update's tokens goes with the first of its parts.
        let parts = parts.iter().map(|part| match part {
            ChoicePart::Text(text) => Delta { content: Some(text), ..Delta::default() },
            ChoicePart::Call(call) => Delta { tool_calls: Some([call]), ..Delta::default() },
        });
        let has_more = |parts: &[Delta<'_>]| parts.is_empty() && (logprobs.is_some() || token_ids.is_some());
        let mut parts: Vec<Delta<'_>> = parts.collect();
        if has_more(&parts) {
            parts.push(Delta { content: Some(""), ..Delta::default() });
        }
        for delta in parts {
            let (logprobs, token_ids) = (logprobs.take(), token_ids.take());
            self.frame.write(&ChatDelta { logprobs, token_ids, ..chat_delta(index, delta) }, out)?;
        }
        if is_end {
            let (mut finish_reason, stop_reason) = finish_reason(update.finish.as_ref())?;
            let choice = self.choices.get(index).and_then(Option::as_ref);
            if let Some(reader) = choice.and_then(|choice| choice.0.as_ref()) {
                finish_reason = reader.finish_reason(update.finish.as_ref(), finish_reason);
            }
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
