//! `GET /v1/models`: the base model under its names, and every loaded adapter.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use wardrobe_engine::{AdapterInfo, AdapterSource};

use crate::body::json;
use crate::error::{ApiError, Result};
use crate::state::{ServerState, unix_s};
use crate::wire::models::{ModelCard, ModelList};

fn base_card(state: &ServerState, id: &str) -> ModelCard {
    ModelCard {
        id: id.to_owned(),
        object: "model",
        created: unix_s(state.model.created),
        owned_by: "wardrobe",
        root: state.model.root.clone().unwrap_or_else(|| state.model.model_id.clone()),
        parent: None,
        max_model_len: Some(state.model.engine.max_context_tokens()),
        generation: None,
    }
}

fn adapter_card(state: &ServerState, adapter: &AdapterInfo) -> ModelCard {
    ModelCard {
        id: adapter.name.clone(),
        object: "model",
        created: unix_s(adapter.loaded_at),
        owned_by: "wardrobe",
        root: shown_source(state, &adapter.source),
        parent: Some(state.model.model_id.clone()),
        max_model_len: adapter.max_context_tokens,
        generation: Some(adapter.generation.0),
    }
}

/// An adapter's source as clients see it: relative to the adapter root where it is inside.
pub(crate) fn shown_source(state: &ServerState, source: &AdapterSource) -> String {
    match (source, &state.adapter_root) {
        (AdapterSource::Path(path), Some(root)) => root.shown(path),
        _ => source.to_string(),
    }
}

/// `GET /v1/models`.
pub(crate) async fn list(State(state): State<Arc<ServerState>>) -> Response {
    let names = std::iter::once(&state.model.model_id).chain(&state.model.aliases);
    let mut data: Vec<_> = names.map(|name| base_card(&state, name)).collect();
    data.extend(state.model.engine.adapters().iter().map(|adapter| adapter_card(&state, adapter)));
    json(&ModelList { object: "list", data })
}

/// `GET /v1/models/{id}`; an id may have slashes.
pub(crate) async fn retrieve(
    State(state): State<Arc<ServerState>>,
    path: Result<Path<String>, axum::extract::rejection::PathRejection>,
) -> Result<Response> {
    let Path(id) = path.map_err(|_| ApiError::bad_request("the model's name is not valid UTF-8"))?;
    if state.is_base_name(&id) {
        return Ok(json(&base_card(&state, &id)));
    }
    let adapters = state.model.engine.adapters();
    match adapters.iter().find(|adapter| adapter.name == id) {
        Some(adapter) => Ok(json(&adapter_card(&state, adapter))),
        None => Err(ApiError::unknown_model(&id)),
    }
}
