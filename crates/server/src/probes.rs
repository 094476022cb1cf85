//! Whether the server lives, whether it takes work, which version it is.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::body::json;
use crate::error::{ApiError, Result};
use crate::state::ServerState;

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

fn check_engine(state: &ServerState) -> Result<()> {
    match state.model.engine.stats().unhealthy {
        None => Ok(()),
        Some(reason) => {
            tracing::warn!(%reason, "the engine is unhealthy");
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the engine is unhealthy")
                .with_code("engine_unhealthy"))
        }
    }
}

/// `GET /health`: 200 while the engine can compute, also when the server drains.
pub(crate) async fn health(State(state): State<Arc<ServerState>>) -> Result<Response> {
    check_engine(&state)?;
    Ok(json(&Status { status: "ok" }))
}

/// `GET /ready`: 200 while new requests are taken.
pub(crate) async fn ready(State(state): State<Arc<ServerState>>) -> Result<Response> {
    if state.is_draining() {
        return Err(ApiError::shutting_down());
    }
    check_engine(&state)?;
    Ok(json(&Status { status: "ready" }))
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

/// `GET /version`.
pub(crate) async fn version() -> Response {
    json(&Version { version: env!("CARGO_PKG_VERSION") })
}
