//! `/v1/batches`: OpenAI's batches of requests.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use wardrobe_batch::{BatchRoute, BatchSpec, CompletionWindow};

use crate::body::{JsonObject, json};
use crate::error::{ApiError, Result};
use crate::jobs::{Id, Runner, call};
use crate::query::Query;
use crate::state::ServerState;
use crate::wire::batches::{BatchList, BatchObject, CreateBatch};

const MAX_PAGE: usize = 100;

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// `POST /v1/batches`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    body: JsonObject,
) -> Result<Response> {
    let fields: CreateBatch = body.parse()?;
    if fields.output_expires_after.is_some() {
        return Err(ApiError::unsupported("output_expires_after", "files stay until they are deleted"));
    }
    let route = BatchRoute::from_path(&fields.endpoint).ok_or_else(|| {
        let [first, second] = BatchRoute::ALL.map(BatchRoute::path);
        ApiError::invalid("endpoint", format!("is {:?}; use {first} or {second}", shown(&fields.endpoint)))
    })?;
    let window = CompletionWindow::from_name(&fields.completion_window).ok_or_else(|| {
        let day = CompletionWindow::Day.name();
        ApiError::invalid(
            "completion_window",
            format!("is {:?}, not {day:?}", shown(&fields.completion_window)),
        )
    })?;
    let spec = BatchSpec { input_file: fields.input_file_id, route, window, metadata: fields.metadata };
    let batch = call(&state, move || runner.create_batch(&spec)).await?;
    tracing::info!(batch = batch.id, input = batch.spec.input_file, "a batch was made");
    Ok(json(&BatchObject::new(&batch)))
}

/// `GET /v1/batches`, newest first.
pub(crate) async fn list(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    query: Query,
) -> Result<Response> {
    let limit = query.limit(20, MAX_PAGE)?;
    let after = query.get("after").map(str::to_owned);
    let page = call(&state, move || runner.batches(after.as_deref(), limit)).await?;
    Ok(json(&BatchList::new(&page)))
}

/// `GET /v1/batches/{id}`.
pub(crate) async fn retrieve(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
) -> Result<Response> {
    let batch = call(&state, move || runner.batch(&id)).await?;
    Ok(json(&BatchObject::new(&batch)))
}

/// `POST /v1/batches/{id}/cancel`. The batch ends soon after.
pub(crate) async fn cancel(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
) -> Result<Response> {
    let batch = call(&state, move || runner.cancel_batch(&id)).await?;
    Ok(json(&BatchObject::new(&batch)))
}
