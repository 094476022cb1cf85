//! `/models/info` and `/instances`: what clients of Together's API of 2023 ask before they use a model or fine-tune it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value};

use crate::body::json;
use crate::error::{ApiError, Result};
use crate::query::Query;
use crate::state::ServerState;
use crate::wire::instances::ModelInfo;

/// The names that requests may use.
fn names(state: &ServerState) -> Vec<String> {
    let base = std::iter::once(&state.model.model_id).chain(&state.model.aliases).cloned();
    base.chain(state.model.engine.adapters().into_iter().map(|adapter| adapter.name)).collect()
}

/// `GET /models/info`; with `name`, of that model alone.
pub(crate) async fn info(State(state): State<Arc<ServerState>>, query: Query) -> Response {
    let model = &state.model;
    let adapters = model.engine.adapters();
    let asked = query.get("name");
    let infos: Vec<ModelInfo<'_>> = std::iter::once(&model.model_id)
        .chain(&model.aliases)
        .map(|name| ModelInfo {
            name,
            display_name: name,
            display_type: "chat",
            base: None,
            context_length: Some(model.engine.max_context_tokens()),
            finetuning_supported: model.fine_tuning.as_ref().is_some_and(|jobs| jobs.limits(name).is_some()),
        })
        .chain(adapters.iter().map(|adapter| ModelInfo {
            name: &adapter.name,
            display_name: &adapter.name,
            display_type: "chat",
            base: Some(model.model_id.as_str()),
            context_length: adapter.max_context_tokens,
            finetuning_supported: false,
        }))
        .filter(|info| asked.is_none_or(|asked| asked == info.name))
        .collect();
    json(&infos)
}

/// `GET /instances`: which models run. All do.
pub(crate) async fn list(State(state): State<Arc<ServerState>>) -> Response {
    let running: Map<String, Value> =
        names(&state).into_iter().map(|name| (name, Value::Bool(true))).collect();
    json(&running)
}

fn running(state: &ServerState, query: &Query) -> Result<String> {
    let name = query.get("model").ok_or_else(|| ApiError::invalid("model", "is missing"))?;
    match names(state).into_iter().find(|known| known == name) {
        Some(name) => Ok(name),
        None => Err(ApiError::unknown_model(name)),
    }
}

/// `POST /instances/start`: a model that is served runs already.
pub(crate) async fn start(State(state): State<Arc<ServerState>>, query: Query) -> Result<Response> {
    let name = running(&state, &query)?;
    Ok(json(&serde_json::json!({"success": true, "value": name})))
}

/// `POST /instances/stop`: refused by name.
pub(crate) async fn stop(State(state): State<Arc<ServerState>>, query: Query) -> Result<Response> {
    running(&state, &query)?;
    let message = "models do not stop one by one; /v1/unload_lora_adapter takes an adapter away";
    Err(ApiError::bad_request(message).with_param("model").with_code("unsupported_operation"))
}
