//! What every request carries: its id, its place in a trace, its span.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use wardrobe_engine::BACKGROUND_PRIORITY;

use crate::auth::KeyIdx;
use crate::error::ApiError;
use crate::state::ServerState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The batch that a request belongs to. Set where it is made, never by what comes over a connection.
#[derive(Clone)]
pub(crate) struct OfBatch(pub Arc<str>);

/// Set on every request before it reaches a route.
#[derive(Clone)]
pub(crate) struct RequestContext {
    /// The client's `x-request-id`, or one of ours.
    pub request_id: Arc<str>,
    /// The key it came with, if keys are asked for.
    pub key: Option<KeyIdx>,
    /// The batch it belongs to, which has no key.
    pub batch: Option<Arc<str>>,
    /// The request's span; a stream goes on in it after the handler has returned.
    pub span: Span,
    /// When its header had been read.
    pub started: Instant,
}

impl RequestContext {
    /// The priority in the engine of a request that asks for this one. A batch runs in the background, or a client could
    /// use one to overtake the others.
    pub fn priority(&self, asked: Option<i32>) -> i32 {
        match self.batch {
            None => asked.unwrap_or(0),
            Some(_) => asked.unwrap_or(0).max(BACKGROUND_PRIORITY),
        }
    }

    /// With whom a request may share cached prefixes, where holders of different keys share none: with those of its key,
    /// or with those of its batch, which outlives the key that it was made with.
    pub fn tenant(&self) -> Option<String> {
        match (&self.batch, self.key) {
            (Some(batch), _) => Some(format!("batch:{batch}")),
            (None, Some(key)) => Some(format!("key:{}", key.0)),
            (None, None) => None,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for RequestContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get().cloned().ok_or_else(|| ApiError::internal("the request has no context"))
    }
}

/// A `traceparent` of W3C's Trace Context: `00-<trace id>-<parent id>-<flags>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceParent<'a> {
    pub trace_id: &'a str,
    pub parent_id: &'a str,
}

impl<'a> TraceParent<'a> {
    pub fn parse(value: &'a str) -> Option<Self> {
        let mut parts = value.split('-');
        let (version, trace_id, parent_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, len: usize| {
            text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let valid = hex(version, 2)
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && hex(trace_id, 32)
            && hex(parent_id, 16)
            && hex(flags, 2)
            && trace_id.bytes().any(|b| b != b'0')
            && parent_id.bytes().any(|b| b != b'0');
        valid.then_some(Self { trace_id, parent_id })
    }
}

/// A client's id, if it may stand in logs and headers.
fn given_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = !id.is_empty() && id.len() <= MAX_REQUEST_ID_BYTES;
    (fits && id.bytes().all(|b| b.is_ascii_graphic())).then_some(id)
}

/// The outermost middleware: opens the span, sets the context, echoes the id, logs the answer's status.
pub(crate) async fn with_context(
    State(state): State<Arc<ServerState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let request_id: Arc<str> = match given_id(request.headers()) {
        Some(id) => id.into(),
        None => state.ids.next("req-").into(),
    };
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let span = tracing::info_span!(
        "http_request",
        request_id = &*request_id,
        method = method.as_str(),
        route,
        trace_id = Empty,
        parent_id = Empty,
        batch = Empty,
        model = Empty,
        adapter = Empty,
        generation = Empty,
        prompt_tokens = Empty,
        completion_tokens = Empty,
        cached_tokens = Empty,
        queue_ms = Empty,
        prefill_ms = Empty,
        decode_ms = Empty,
        total_ms = Empty,
        status = Empty,
        finish = Empty
    );
    if let Some(value) = request.headers().get("traceparent").and_then(|value| value.to_str().ok())
        && let Some(parent) = TraceParent::parse(value)
    {
        span.record("trace_id", parent.trace_id).record("parent_id", parent.parent_id);
        #[cfg(feature = "otlp")]
        crate::otlp::set_parent(&span, value);
    }
    let echoed = HeaderValue::from_str(&request_id);
    let batch = request.extensions_mut().remove().map(|OfBatch(batch)| batch);
    if let Some(batch) = &batch {
        span.record("batch", &**batch);
    }
    let is_http = batch.is_none();
    let context = RequestContext { request_id, key: None, batch, span: span.clone(), started };
    request.extensions_mut().insert(context);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("status", status.as_u16());
    if is_http {
        state.metrics.count_response(&method, &route, status);
    }
    tracing::debug!(parent: &span, elapsed_ms = started.elapsed().as_millis() as u64, "answered");
    if let Ok(value) = echoed {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents_are_checked() {
        let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent_id = "00f067aa0ba902b7";
        let parse =
            |text: &str| TraceParent::parse(text).map(|p| (p.trace_id.to_owned(), p.parent_id.to_owned()));
        let valid = format!("00-{trace_id}-{parent_id}-01");
        assert_eq!(parse(&valid), Some((trace_id.to_owned(), parent_id.to_owned())));
        assert!(parse(&format!("01-{trace_id}-{parent_id}-01-more")).is_some());
        for wrong in [
            "".to_owned(),
            format!("{valid}-more"),
            valid.to_uppercase(),
            format!("ff-{trace_id}-{parent_id}-01"),
            format!("00-{}-{parent_id}-01", "0".repeat(32)),
            format!("00-{trace_id}-{}-01", "0".repeat(16)),
            format!("00-{trace_id}-{parent_id}"),
            "é".repeat(28),
        ] {
            assert_eq!(parse(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn ids_of_clients_are_checked() {
        let cases = [("abc-1", true), ("", false), ("a b", false), ("a\tb", false)];
        for (id, valid) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(id).unwrap());
            assert_eq!(given_id(&headers).is_some(), valid, "{id:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_str(&"x".repeat(129)).unwrap());
        assert_eq!(given_id(&headers), None);
    }
}
