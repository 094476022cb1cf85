//! Requests of batches, answered by the same routes as those that come over HTTP, in process.
//!
//! They run behind the clients' own: at a priority below theirs, with one of their long texts at most before the threads
//! that tokenize, and without a deadline but the batch's. What a full or stopping server says to them is passed on as
//! [`BatchReply::Busy`], for another try.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use futures_util::FutureExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::runtime::Handle;
use wardrobe_batch::{BatchAnswer, BatchEndpoint, BatchReply, BatchRequest, Interrupt};

use crate::context::OfBatch;
use crate::error::RETRY_AFTER_MS;
use crate::offload::in_background;
use crate::router::batch_router;
use crate::state::ServerState;

/// How often a request that runs looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);

/// The endpoint of a server, for as long as that is there.
pub(crate) struct RouterEndpoint {
    /// The server has the runner, and the runner this.
    state: Weak<ServerState>,
    runtime: Handle,
}

impl RouterEndpoint {
    pub fn new(state: &Arc<ServerState>, runtime: Handle) -> Self {
        Self { state: Arc::downgrade(state), runtime }
    }
}

impl BatchEndpoint for RouterEndpoint {
    fn has_model(&self, name: &str) -> bool {
        let Some(state) = self.state.upgrade() else { return false };
        let adapters = || state.model.engine.adapters();
        state.is_base_name(name) || adapters().iter().any(|adapter| adapter.name == name)
    }

    fn answer(&self, batch: &str, request: &BatchRequest, interrupt: &Interrupt<'_>) -> BatchReply {
        let Some(state) = self.state.upgrade() else { return BatchReply::Interrupted };
        let body = serde_json::to_vec(&request.body).unwrap_or_default();
        let mut http = Request::new(Body::from(body));
        *http.method_mut() = axum::http::Method::POST;
        *http.uri_mut() = axum::http::Uri::from_static(request.route.path());
        let json = axum::http::HeaderValue::from_static("application/json");
        http.headers_mut().insert(header::CONTENT_TYPE, json);
        http.extensions_mut().insert(OfBatch(batch.into()));
        let (sender, receiver) = sync_channel(1);
        let answering = in_background(AssertUnwindSafe(ask(state, http)).catch_unwind());
        let task = self.runtime.spawn(async move {
            // Nobody waits any more: then nobody needs it.
            let _ = sender.send(answering.await);
        });
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(Ok(reply)) => return reply,
                // The runner knows which request it was.
                Ok(Err(panic)) => resume_unwind(panic),
                Err(RecvTimeoutError::Timeout) if interrupt() => {
                    task.abort();
                    return BatchReply::Interrupted;
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The runtime has ended.
                Err(RecvTimeoutError::Disconnected) => return BatchReply::Interrupted,
            }
        }
    }
}

/// Asks a route and reads its answer.
async fn ask(state: Arc<ServerState>, request: Request<Body>) -> BatchReply {
    let router = TowerToHyperService::new(batch_router(state));
    let response = match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    if matches!(parts.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return BatchReply::Busy(retry_after(&parts.headers));
    }
    // Whole answers are made in memory, within the engine's limits.
    let Ok(bytes) = to_bytes(body, usize::MAX).await else { return BatchReply::Busy(None) };
    let request_id =
        parts.headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("").to_owned();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    BatchReply::Answered(BatchAnswer { status: parts.status.as_u16(), request_id, body })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER_MS)?.to_str().ok()?;
    text.parse().ok().map(Duration::from_millis)
}
