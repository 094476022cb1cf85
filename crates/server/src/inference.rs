//! `POST /inference`: completions in the shape of Together's API of 2023.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::{BufMut, BytesMut};
use serde_json::{Map, Value};
use wardrobe_engine::{Event, Update};

use crate::admission::GenerationPlace;
use crate::body::{JsonObject, json};
use crate::completions::{Answer, Prepared};
use crate::context::RequestContext;
use crate::error::{Api, ApiError, Result};
use crate::generate::finish_reason;
use crate::sse::{ChunkWriter, SseStream, write_event};
use crate::state::ServerState;
use crate::wire::inference::{
    self as wire, InferenceAnswer, InferenceChoice, InferenceChunk, InferenceDelta, InferenceDetails,
    InferenceOutput,
};
use crate::wire::usage::WireUsage;

/// `POST /inference` and `POST /api/inference`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    context: RequestContext,
    place: GenerationPlace,
    body: JsonObject,
) -> Result<Response> {
    let args: Map<String, Value> = body.parse()?;
    let prepared = Prepared::new(&state, &context, place, body, Api::Inference).await?;
    if prepared.prompts.len() != 1 {
        return Err(ApiError::invalid("prompt", "must be a single prompt on this route"));
    }
    let (generation, answer) = prepared.submit(&state, &context, Api::Inference)?;
    let id = state.ids.next("inf-");
    if answer.shape.stream {
        let writer = InferenceWriter {
            id,
            request_id: context.request_id.clone(),
            texts: vec![String::new(); answer.n],
            tokens: vec![0; answer.n],
            seed: args.get("seed").and_then(Value::as_u64),
        };
        return Ok(SseStream::new(generation, writer, state.config.keep_alive_interval).into_response());
    }
    let completion = generation.collect(1).await?.into_iter().next().unwrap_or_default();
    let mut usage = WireUsage::default();
    usage.add(&completion.summary.usage);
    let choices = choices(&answer, &completion)?;
    let prompt = args.get("prompt").cloned().unwrap_or_default();
    Ok(json(&InferenceAnswer {
        id: &id,
        status: "finished",
        model: &answer.model,
        args,
        prompt: [&prompt],
        num_returns: choices.len(),
        subjobs: [],
        tags: Map::new(),
        output: InferenceOutput { result_type: wire::KIND, choices, usage },
    }))
}

fn choices<'a>(
    answer: &Answer,
    completion: &'a wardrobe_engine::Completion,
) -> Result<Vec<InferenceChoice<'a>>> {
    let choices = answer.best(completion).into_iter().enumerate().map(|(index, choice)| {
        let (reason, _) = finish_reason(choice.finish.as_ref())?;
        let (tokens, logprobs) = match answer.shape.logprobs {
            true => Some(wire::logprobs(&choice.logprobs)).unzip(),
            false => (None, None),
        };
        let finish_reason = wire::finish_reason(choice.finish.as_ref(), reason);
        Ok(InferenceChoice { index, text: &choice.text, finish_reason, tokens, logprobs })
    });
    choices.collect()
}

/// Writes the events of a streamed answer.
struct InferenceWriter {
    id: String,
    request_id: Arc<str>,
    /// Per choice: its text, and how many tokens it has.
    texts: Vec<String>,
    tokens: Vec<u64>,
    seed: Option<u64>,
}

impl InferenceWriter {
    fn update(&mut self, update: &Update, out: &mut BytesMut) -> Result<()> {
        let index = update.choice;
        let (Some(text), Some(tokens)) = (self.texts.get_mut(index), self.tokens.get_mut(index)) else {
            return Ok(());
        };
        text.push_str(&update.text);
        *tokens += update.token_ids.len() as u64;
        let choices = [InferenceDelta { index, text: &update.text }];
        let (mut details, mut failure) = (None, None);
        if update.finish.is_some() {
            match finish_reason(update.finish.as_ref()) {
                Ok((reason, _)) => {
                    let finish_reason = wire::finish_reason(update.finish.as_ref(), reason);
                    details =
                        Some(InferenceDetails { finish_reason, generated_tokens: *tokens, seed: self.seed });
                }
                Err(error) => failure = Some(error),
            }
        }
        if !update.text.is_empty() || details.is_some() {
            let generated_text = details.is_some().then_some(text.as_str());
            write_event(&InferenceChunk { id: &self.id, choices, generated_text, details }, out)?;
        }
        failure.map_or(Ok(()), Err)
    }
}

impl ChunkWriter for InferenceWriter {
    fn event(&mut self, _prompt_idx: usize, event: Event, out: &mut BytesMut) -> Result<()> {
        match event {
            Event::Update(update) => self.update(&update, out),
            Event::PromptLogprobs(_) | Event::Summary(_) => Ok(()),
        }
    }

    fn end(&mut self, _out: &mut BytesMut) -> Result<()> {
        Ok(())
    }

    /// The client of that API looks for the request's id in the error.
    fn error(&mut self, error: &ApiError, out: &mut BytesMut) {
        let mut text = Vec::new();
        // Writing strings to memory cannot fail.
        let _ = error.write_json(&mut text);
        let mut body: Value = serde_json::from_slice(&text).unwrap_or_default();
        if let Some(fields) = body.get_mut("error").and_then(Value::as_object_mut) {
            fields.insert("request_id".to_owned(), Value::from(&*self.request_id));
        }
        let _ = serde_json::to_writer(out.writer(), &body);
    }
}
