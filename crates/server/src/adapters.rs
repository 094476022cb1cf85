//! Loading, unloading, pinning and listing adapters while requests run.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use wardrobe_engine::{AdapterInfo, AdapterSource, GenerationId, LoadOptions};

use crate::body::{JsonObject, json};
use crate::error::{ApiError, Result};
use crate::models::shown_source;
use crate::state::{ServerState, unix_s};
use crate::wire::adapters::{AdapterCard, AdapterList, LoadAdapter, PinAdapter, UnloadAdapter};

/// A line of text, as clients of these routes expect, with the generation beside it.
fn done(message: String, info: &AdapterInfo) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
        (header::HeaderName::from_static("x-adapter-generation"), HeaderValue::from(info.generation.0)),
    ];
    (headers, message).into_response()
}

fn refuse_base_name(state: &ServerState, name: &str) -> Result<()> {
    if state.is_base_name(name) {
        return Err(
            ApiError::invalid("lora_name", "is a name of the base model").with_code("invalid_adapter_name")
        );
    }
    Ok(())
}

/// `POST /v1/load_lora_adapter`.
pub(crate) async fn load(State(state): State<Arc<ServerState>>, body: JsonObject) -> Result<Response> {
    let fields: LoadAdapter = body.parse()?;
    refuse_base_name(&state, &fields.lora_name)?;
    if state.adapter_root.is_none() {
        let message = "this server was started without an adapter root; adapters cannot be loaded by path";
        return Err(ApiError::forbidden(message).with_code("adapter_root_missing"));
    }
    let place = state.adapter_loads.clone().acquire_owned().await.map_err(|_| ApiError::shutting_down())?;
    // The client may go away; what has begun is finished.
    let task = tokio::task::spawn_blocking(move || {
        let _place = place;
        load_blocking(&state, &fields)
    });
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "loading an adapter failed");
        Err(ApiError::internal("the adapter could not be loaded"))
    })
}

fn load_blocking(state: &ServerState, fields: &LoadAdapter) -> Result<Response> {
    let Some(root) = &state.adapter_root else { return Err(ApiError::internal("the adapter root is gone")) };
    let engine = &state.model.engine;
    let path = root.resolve(&fields.lora_path)?;
    let options = LoadOptions {
        replace: fields.load_inplace.unwrap_or(false),
        pinned: fields.pinned,
        expected_generation: fields.expected_generation.map(GenerationId),
    };
    let source = AdapterSource::Path(path);
    let info = engine.load_adapter(&fields.lora_name, source, options).map_err(|error| {
        let mut error = ApiError::from_adapter(error);
        error.message = root.hide(&error.message);
        error
    })?;
    if let Err(error) = root.resolve(&fields.lora_path)
        && error.status == axum::http::StatusCode::FORBIDDEN
    {
        tracing::error!(
            adapter = fields.lora_name,
            "the adapter's path left the adapter root during the load"
        );
        // Someone else may have replaced it since; then it is theirs.
        let _ = engine.unload_adapter(&fields.lora_name, Some(info.generation));
        return Err(error);
    }
    let message =
        format!("Success: LoRA adapter '{}' added successfully (generation {}).", info.name, info.generation);
    Ok(done(message, &info))
}

/// `POST /v1/pin_lora_adapter`: keeps an adapter in its slot and in memory, or no longer.
pub(crate) async fn pin(State(state): State<Arc<ServerState>>, body: JsonObject) -> Result<Response> {
    let fields: PinAdapter = body.parse()?;
    let pinned = fields.pinned.unwrap_or(true);
    let info = state.model.engine.pin_adapter(&fields.lora_name, pinned).map_err(ApiError::from_adapter)?;
    let done_what = if pinned { "pinned" } else { "unpinned" };
    Ok(done(format!("Success: LoRA adapter '{}' {done_what} successfully.", info.name), &info))
}

/// Clients take away only what they could load again; the rest is for those who started the server.
fn refuse_if_not_loadable(state: &ServerState, name: &str) -> Result<()> {
    let Some(adapter) = state.model.engine.adapters().into_iter().find(|adapter| adapter.name == name) else {
        return Ok(());
    };
    let loadable = match (&adapter.source, &state.adapter_root) {
        (AdapterSource::Path(path), Some(root)) => root.contains(path),
        _ => false,
    };
    if loadable {
        return Ok(());
    }
    let message = "this adapter does not come from the adapter root, so it could not be loaded again";
    Err(ApiError::forbidden(message).with_param("lora_name").with_code("adapter_not_loadable"))
}

/// `POST /v1/unload_lora_adapter`.
pub(crate) async fn unload(State(state): State<Arc<ServerState>>, body: JsonObject) -> Result<Response> {
    let fields: UnloadAdapter = body.parse()?;
    refuse_if_not_loadable(&state, &fields.lora_name)?;
    let expected = fields.expected_generation.map(GenerationId);
    let info =
        state.model.engine.unload_adapter(&fields.lora_name, expected).map_err(ApiError::from_adapter)?;
    Ok(done(format!("Success: LoRA adapter '{}' removed successfully.", info.name), &info))
}

fn card(state: &ServerState, info: AdapterInfo) -> AdapterCard {
    AdapterCard {
        id: info.generation.0,
        source: shown_source(state, &info.source),
        name: info.name,
        generation: info.generation.0,
        digest: info.digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        rank: info.rank,
        num_modules: info.num_modules,
        max_model_len: info.max_context_tokens,
        has_schema: info.has_schema,
        host_bytes: info.host_bytes,
        device_bytes: info.device_bytes,
        level: info.level.name(),
        pinned: info.pinned,
        open_requests: info.open_requests,
        loaded_at: unix_s(info.loaded_at),
    }
}

/// `GET /v1/lora_adapters`.
pub(crate) async fn list(State(state): State<Arc<ServerState>>) -> Response {
    let adapters = state.model.engine.adapters().into_iter();
    json(&AdapterList { object: "list", data: adapters.map(|info| card(&state, info)).collect() })
}
