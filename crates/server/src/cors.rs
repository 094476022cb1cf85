//! Calls from web pages of other origins: refused by browsers unless the configuration names the origin.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::state::ServerState;

/// Origins that may call.
pub(crate) struct Cors {
    any: bool,
    origins: Vec<HeaderValue>,
}

impl Cors {
    /// `None` if an origin is no header value.
    pub fn new(origins: &[String]) -> Option<Self> {
        let any = origins.iter().any(|origin| origin == "*");
        let origins: Result<_, _> = origins.iter().map(|origin| HeaderValue::from_str(origin)).collect();
        Some(Self { any, origins: origins.ok()? })
    }

    /// The value of `access-control-allow-origin` for a request.
    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        (self.any || self.origins.contains(origin)).then(|| origin.clone())
    }
}

/// Middleware: answers preflights and marks answers, for allowed origins.
pub(crate) async fn allow_origins(
    State(state): State<Arc<ServerState>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(origin) = state.cors.allowed(request.headers()) else { return next.run(request).await };
    // A browser's question before the call; it carries no key.
    let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let preflight = asks && request.method() == Method::OPTIONS;
    let mut response = match preflight {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    if preflight {
        let allowed = HeaderValue::from_static("authorization, content-type, x-request-id, traceparent");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers
            .insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers
        .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    response
}
