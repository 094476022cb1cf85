//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::response::Response;
use bytes::BytesMut;
use wardrobe_engine::{Completion, Event, Request, Summary, Update};

use crate::admission::GenerationPlace;
use crate::body::{JsonObject, json};
use crate::constraint::{self, BodyConstraint, Held};
use crate::context::RequestContext;
use crate::conversation::Conversation;
use crate::error::{Api, ApiError, Result};
use crate::generate::{Admitted, Generation, PromptOptions, engine_request, finish_reason};
use crate::loose::LooseSchemas;
use crate::shape::{AnswerShape, refuse_unsupported};
use crate::sse::{ChunkFrame, ChunkNames, ChunkWriter, SseStream};
use crate::state::{ServerState, unix_s};
use crate::target;
use crate::tools::{AnswerReader, ChoicePart, ChoiceReader, OfferedTools, read_whole};
use crate::wire::chat::{AssistantMessage, ChatChoice, ChatCompletion, ChatDelta, ChatFields, Delta};
use crate::wire::logprobs::{ChatLogprobs, PromptLogprobs, TokenStyle};
use crate::wire::request::GenerationFields;
use crate::wire::tools::ToolCall;
use crate::wire::usage::{WireTimings, WireUsage};

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
    let tools = conversation.write_tools(&state, &offered)?;
    let BodyConstraint { mut asked, is_text } = BodyConstraint::new(&body)?;
    request.without_adapter_schema = is_text;
    let mut reader = None;
    if let Some(tools) = tools {
        asked = offered.hold(&tools, asked)?;
        reader = offered.reader(&tools);
    }
    request.skip_special_tokens &= !reader.as_ref().is_some_and(|reader| reader.shows_special_tokens);
    let Held { constraint, loose } = constraint::compile(&state, asked).await?;
    request.constraint = constraint;
    let reading = Reading { calls: reader, loose };
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
        Prepared { request, names, shape, reading, admitted },
        fields.stream == Some(true),
    )
    .await
}

/// A checked request, ready for the engine.
struct Prepared {
    request: Request,
    names: ChunkNames,
    shape: AnswerShape,
    reading: Reading,
    admitted: Admitted,
}

async fn answer(
    state: &Arc<ServerState>,
    context: &RequestContext,
    prepared: Prepared,
    stream: bool,
) -> Result<Response> {
    let Prepared { request, names, shape, reading, admitted } = prepared;
    let prompt_token_ids = shape.ids(&request.prompt_token_ids);
    let generation = Generation::submit(state, context, [request], admitted, Api::Chat)?;
    if stream {
        let writer = ChatWriter {
            frame: ChunkFrame::new(&names, shape.include_usage)?,
            names,
            state: state.clone(),
            shape,
            prompt_token_ids,
            reading,
            choices: Vec::new(),
            summary: Summary::default(),
        };
        return Ok(SseStream::new(generation, writer, state.config.keep_alive_interval).into_response());
    }
    let completions = generation.collect(1).await?;
    let completion = completions.into_iter().next().unwrap_or_default();
    whole_answer(state, &names, (shape, reading), prompt_token_ids, &completion)
}

fn whole_answer(
    state: &ServerState,
    names: &ChunkNames,
    (shape, reading): (AnswerShape, Reading),
    prompt_token_ids: Option<Vec<u32>>,
    completion: &Completion,
) -> Result<Response> {
    let mut usage = WireUsage::default();
    usage.add(&completion.summary.usage);
    let choices = completion.choices.iter().enumerate().map(|(index, choice)| {
        let (mut finish_reason, stop_reason) = finish_reason(choice.finish.as_ref())?;
        let (mut text, mut tool_calls) = (choice.text.clone(), Vec::new());
        if let Some(mut reader) = reading.calls.as_ref().map(AnswerReader::choice) {
            (text, tool_calls) = read_whole(state, &mut reader, &choice.text);
            finish_reason = reader.finish_reason(choice.finish.as_ref(), finish_reason);
        }
        let warnings = reading.warnings(&text, &tool_calls);
        let content = (tool_calls.is_empty() || !text.is_empty()).then_some(text);
        Ok(ChatChoice {
            index,
            message: AssistantMessage { role: "assistant", content, refusal: None, tool_calls },
            logprobs: shape.logprobs.then(|| ChatLogprobs::new(&choice.logprobs, shape.style)),
            finish_reason,
            stop_reason,
            token_ids: shape.ids(&choice.token_ids),
            warnings,
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

/// Writes the chunks of a chat.
struct ChatWriter {
    frame: ChunkFrame,
    names: ChunkNames,
    state: Arc<ServerState>,
    shape: AnswerShape,
    prompt_token_ids: Option<Vec<u32>>,
    reading: Reading,
    /// Choices that have had their first delta.
    choices: Vec<Option<ChoiceState>>,
    summary: Summary,
}

/// How the answers of a request are read.
struct Reading {
    /// Set where they may call functions.
    calls: Option<AnswerReader>,
    /// Set where they are checked.
    loose: Option<Arc<LooseSchemas>>,
}

impl Reading {
    /// What is to be said of a whole choice.
    fn warnings(&self, text: &str, calls: &[ToolCall]) -> Vec<String> {
        match &self.loose {
            None => Vec::new(),
            Some(loose) if calls.is_empty() => loose.of_text(text),
            Some(loose) => {
                loose.of_calls(calls.iter().map(|call| (&*call.function.name, &*call.function.arguments)))
            }
        }
    }
}

/// A choice that has begun.
struct ChoiceState {
    /// What reads its calls, if there may be any.
    reader: Option<ChoiceReader>,
    /// What it has brought so far, where that is checked at the end.
    text: String,
    calls: Vec<ToolCall>,
}

impl ChoiceState {
    fn keep(&mut self, parts: &[ChoicePart]) {
        for part in parts {
            part.add_to(&mut self.text, &mut self.calls);
        }
    }
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
        if self.choices.len() <= index {
            self.choices.resize_with(index + 1, || None);
        }
        match self.choices.get_mut(index) {
            Some(choice @ None) => {
                let reader = self.reading.calls.as_ref().map(AnswerReader::choice);
                *choice = Some(ChoiceState { reader, text: String::new(), calls: Vec::new() });
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
        let is_end = update.finish.is_some();
        let Some(choice) = self.choices.get_mut(index).and_then(Option::as_mut) else { return Ok(()) };
        let parts = match &mut choice.reader {
            Some(reader) => reader.read(&self.state, &update.text, is_end),
            None if update.text.is_empty() => Vec::new(),
            None => vec![ChoicePart::Text(update.text.clone())],
        };
        if self.reading.loose.is_some() {
            choice.keep(&parts);
        }
        // What belongs to the update's tokens goes with the first of its parts.
        let deltas = parts.iter().map(|part| match part {
            ChoicePart::Text(text) => Delta { content: Some(text), ..Delta::default() },
            ChoicePart::Call(call) => Delta { tool_calls: Some([call]), ..Delta::default() },
        });
        let mut deltas: Vec<Delta<'_>> = deltas.collect();
        if deltas.is_empty() && (logprobs.is_some() || token_ids.is_some()) {
            deltas.push(Delta { content: Some(""), ..Delta::default() });
        }
        for delta in deltas {
            let (logprobs, token_ids) = (logprobs.take(), token_ids.take());
            self.frame.write(&ChatDelta { logprobs, token_ids, ..chat_delta(index, delta) }, out)?;
        }
        if is_end {
            let (mut finish_reason, stop_reason) = finish_reason(update.finish.as_ref())?;
            if let Some(reader) = &choice.reader {
                finish_reason = reader.finish_reason(update.finish.as_ref(), finish_reason);
            }
            let warnings = self.reading.warnings(&choice.text, &choice.calls);
            let last = ChatDelta {
                finish_reason: Some(finish_reason),
                stop_reason,
                warnings,
                ..chat_delta(index, Delta::default())
            };
            self.frame.write(&last, out)?;
        }
        Ok(())
    }
}

fn chat_delta(index: usize, delta: Delta<'_>) -> ChatDelta<'_> {
    ChatDelta {
        index,
        delta,
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
        warnings: Vec::new(),
    }
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
