//! `POST /inference`: completions in the shape of Together's API of 2023, whole answers only.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value};

use crate::admission::GenerationPlace;
use crate::body::{JsonObject, json};
use crate::completions::Prepared;
use crate::context::RequestContext;
use crate::error::{Api, ApiError, Result};
use crate::generate::finish_reason;
use crate::state::ServerState;
use crate::wire::inference::{InferenceAnswer, InferenceChoice, InferenceOutput};
use crate::wire::usage::WireUsage;

/// `POST /inference`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    context: RequestContext,
    place: GenerationPlace,
    body: JsonObject,
) -> Result<Response> {
    let args: Map<String, Value> = body.parse()?;
    let prepared = Prepared::new(&state, &context, place, body, Api::Inference).await?;
    if prepared.shape.stream {
        return Err(ApiError::unsupported("stream", "this route gives whole answers; use /v1/completions"));
    }
    if prepared.prompts.len() != 1 {
        return Err(ApiError::invalid("prompt", "must be a single prompt on this route"));
    }
    let (generation, answer) = prepared.submit(&state, &context, Api::Inference)?;
    let completion = generation.collect(1).await?.into_iter().next().unwrap_or_default();
    let mut usage = WireUsage::default();
    usage.add(&completion.summary.usage);
    let choices = answer.best(&completion).into_iter().enumerate().map(|(index, choice)| {
        let (finish_reason, _) = finish_reason(choice.finish.as_ref())?;
        Ok(InferenceChoice { index, text: &choice.text, finish_reason })
    });
    let choices = choices.collect::<Result<Vec<_>>>()?;
    let prompt = args.get("prompt").cloned().unwrap_or_default();
    Ok(json(&InferenceAnswer {
        id: &state.ids.next("inf-"),
        status: "finished",
        model: &answer.model,
        args,
        prompt: [&prompt],
        num_returns: choices.len(),
        subjobs: [],
        tags: Map::new(),
        output: InferenceOutput { result_type: "language-model-inference", choices, usage },
    }))
}
