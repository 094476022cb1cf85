//! All routes, in one table: the router is made from it, and tests walk over it.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};
use wardrobe_batch::BatchRoute;

use crate::error::ApiError;
use crate::state::ServerState;
use crate::{
    adapters, auth, batches, chat, completions, context, cors, files, fine_tunes, fine_tuning, inference,
    instances, metrics, models, probes, tokenization,
};

/// A route, for those who list them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouteInfo {
    /// `GET`, `POST`, `PUT` or `DELETE`.
    pub method: Method,
    /// Its path, with `{…}` for parameters.
    pub path: String,
}

struct Route {
    method: Method,
    path: &'static str,
    handler: MethodRouter<Arc<ServerState>>,
}

fn table() -> Vec<Route> {
    let at_get = |path, handler| Route { method: Method::GET, path, handler };
    let at_post = |path, handler| Route { method: Method::POST, path, handler };
    let at_put = |path, handler| Route { method: Method::PUT, path, handler };
    let at_delete = |path, handler| Route { method: Method::DELETE, path, handler };
    vec![
        at_get("/v1/models", get(models::list)),
        at_get("/v1/models/{*id}", get(models::retrieve)),
        at_post("/v1/chat/completions", post(chat::create)),
        at_post("/v1/completions", post(completions::create)),
        at_get("/v1/lora_adapters", get(adapters::list)),
        at_post("/v1/load_lora_adapter", post(adapters::load)),
        at_post("/v1/unload_lora_adapter", post(adapters::unload)),
        at_post("/v1/pin_lora_adapter", post(adapters::pin)),
        at_post("/v1/files", post(files::create)),
        at_get("/v1/files", get(files::list)),
        at_put("/v1/files/uploads/{token}", put(files::receive)),
        at_get("/v1/files/{id}", get(files::retrieve)),
        at_delete("/v1/files/{id}", delete(files::remove)),
        at_get("/v1/files/{id}/content", get(files::content)),
        at_post("/v1/files/{id}/preprocess", post(files::preprocess)),
        at_post("/v1/batches", post(batches::create)),
        at_get("/v1/batches", get(batches::list)),
        at_get("/v1/batches/{id}", get(batches::retrieve)),
        at_post("/v1/batches/{id}/cancel", post(batches::cancel)),
        at_post("/v1/fine_tuning/jobs", post(fine_tuning::create)),
        at_get("/v1/fine_tuning/jobs", get(fine_tuning::list)),
        at_get("/v1/fine_tuning/jobs/{id}", get(fine_tuning::retrieve)),
        at_post("/v1/fine_tuning/jobs/{id}/cancel", post(fine_tuning::cancel)),
        at_post("/v1/fine_tuning/jobs/{id}/pause", post(fine_tuning::pause)),
        at_post("/v1/fine_tuning/jobs/{id}/resume", post(fine_tuning::pause)),
        at_get("/v1/fine_tuning/jobs/{id}/events", get(fine_tuning::events)),
        at_get("/v1/fine_tuning/jobs/{id}/checkpoints", get(fine_tuning::checkpoints)),
        at_post("/v1/fine-tunes", post(fine_tunes::create)),
        at_get("/v1/fine-tunes", get(fine_tunes::list)),
        at_get("/v1/fine-tunes/models/limits", get(fine_tunes::limits)),
        at_post("/v1/fine-tunes/estimate-price", post(fine_tunes::estimate_price)),
        at_get("/v1/fine-tunes/{id}", get(fine_tunes::retrieve)),
        at_delete("/v1/fine-tunes/{id}", delete(fine_tunes::remove)),
        at_post("/v1/fine-tunes/{id}/cancel", post(fine_tunes::cancel)),
        at_get("/v1/fine-tunes/{id}/events", get(fine_tunes::events)),
        at_get("/v1/fine-tunes/{id}/checkpoints", get(fine_tunes::checkpoints)),
        at_get("/v1/fine-tunes/{id}/metrics", get(fine_tunes::metrics)),
        at_get("/v1/finetune/download", get(fine_tunes::download)),
        at_post("/tokenize", post(tokenization::tokenize)),
        at_post("/detokenize", post(tokenization::detokenize)),
        at_get("/tokenizer_info", get(tokenization::info)),
        // Together's API of 2023, beside its job routes.
        at_post("/inference", post(inference::create)),
        at_post("/api/inference", post(inference::create)),
        at_get("/models/info", get(instances::info)),
        at_get("/instances", get(instances::list)),
        at_get("/instances/", get(instances::list)),
        at_post("/instances/start", post(instances::start)),
        at_post("/instances/stop", post(instances::stop)),
        at_get("/v1/files/", get(files::list)),
        at_post("/v1/fine-tunes/", post(fine_tunes::create)),
        at_get("/v1/fine-tunes/", get(fine_tunes::list)),
        at_get("/api/finetune/downloadfinetunefile", get(fine_tunes::download)),
        at_get("/health", get(probes::health)),
        at_get("/ready", get(probes::ready)),
        at_get("/metrics", get(metrics::scrape)),
        at_get("/version", get(probes::version)),
    ]
}

/// The second path of a route. Clients that put `/v1` before every path, also when the base address ends with it,
/// ask for `/v1/v1/…`.
fn doubled(path: &str) -> Option<String> {
    path.starts_with("/v1/").then(|| format!("/v1{path}"))
}

/// Every route that a server answers, doubled paths included.
pub fn routes() -> Vec<RouteInfo> {
    let info = |method: &Method, path: String| RouteInfo { method: method.clone(), path };
    let table = table();
    let plain = table.iter().map(|route| info(&route.method, route.path.to_owned()));
    let twice = table.iter().filter_map(|route| Some(info(&route.method, doubled(route.path)?)));
    plain.chain(twice).collect()
}

/// The router with all middleware. What is added last runs first; all of it covers unknown paths too.
pub(crate) fn router(state: Arc<ServerState>) -> Router {
    let mut router = Router::new();
    for route in table() {
        if let Some(path) = doubled(route.path) {
            router = router.route(&path, route.handler.clone());
        }
        router = router.route(route.path, route.handler);
    }
    router
        .fallback(async |request: Request| {
            ApiError::unknown_route(request.method().as_str(), request.uri().path())
        })
        .method_not_allowed_fallback(async |request: Request| {
            ApiError::method_not_allowed(request.method().as_str(), request.uri().path())
        })
        .layer(from_fn_with_state(state.clone(), auth::require_key))
        .layer(from_fn_with_state(state.clone(), cors::allow_origins))
        .layer(from_fn_with_state(state.clone(), context::with_context))
        .with_state(state)
}

/// The routes of batches' requests, without keys: who may ask was decided when the batch was made.
pub(crate) fn batch_router(state: Arc<ServerState>) -> Router {
    let handler = |route| match route {
        BatchRoute::ChatCompletions => post(chat::create),
        BatchRoute::Completions => post(completions::create),
    };
    let routes = BatchRoute::ALL.map(|route| (route.path(), handler(route)));
    let router =
        routes.into_iter().fold(Router::new(), |router, (path, handler)| router.route(path, handler));
    router.layer(from_fn_with_state(state.clone(), context::with_context)).with_state(state)
}
