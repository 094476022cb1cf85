//! Request bodies: read within limits of size and time, then parsed with the field at fault named.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::admission::{BodyBudget, BodyShare};
use crate::error::{ApiError, Result};
use crate::state::ServerState;

/// The bytes of a JSON object, with their share of the budget for bodies.
pub(crate) struct JsonObject {
    bytes: Bytes,
    share: BodyShare,
}

impl FromRequest<Arc<ServerState>> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<ServerState>) -> Result<Self> {
        check_content_type(request.headers())?;
        let limit_bytes = state.config.body_limit_bytes;
        let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if declared.and_then(|text| text.parse::<u64>().ok()).is_some_and(|n| n > limit_bytes as u64) {
            return Err(ApiError::body_too_large(limit_bytes));
        }
        let (bytes, share) = read_in_time(request.into_body(), state, limit_bytes).await?;
        match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Ok(Self { bytes, share }),
            _ => Err(ApiError::bad_request("the request body must be a JSON object")),
        }
    }
}

/// Reads a body, within its limit, what is left of the budget, and the time that clients have.
pub(crate) async fn read_in_time(
    body: Body,
    state: &ServerState,
    limit_bytes: usize,
) -> Result<(Bytes, BodyShare)> {
    let read = read(body, &state.bodies, limit_bytes);
    match tokio::time::timeout(state.config.read_timeout, read).await {
        Ok(read) => read,
        Err(_) => {
            let message = "the request body did not arrive in time";
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message))
        }
    }
}

/// Reads a body, within its limit and what is left of the budget.
async fn read(mut body: Body, budget: &BodyBudget, limit_bytes: usize) -> Result<(Bytes, BodyShare)> {
    let (mut bytes, mut share) = (BytesMut::new(), budget.share());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::bad_request("the request body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        let total = bytes.len().saturating_add(data.len());
        if total > limit_bytes {
            return Err(ApiError::body_too_large(limit_bytes));
        }
        budget.grow(&mut share, total)?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), share))
}

/// A page of another origin can post text without asking first, but not JSON; so JSON has to be declared.
fn check_content_type(headers: &HeaderMap) -> Result<()> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json")) {
        return Ok(());
    }
    let message = "the request body must be sent with `Content-Type: application/json`";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message))
}

impl JsonObject {
    /// Reads some of the object's fields. Other fields are skipped; call it once per topic.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.bytes).map_err(|error| {
            // Read once more to learn which field it was.
            let mut reader = serde_json::Deserializer::from_slice(&self.bytes);
            let traced = serde_path_to_error::deserialize::<_, T>(&mut reader);
            let path = traced.err().map(|traced| traced.path().to_string()).unwrap_or_default();
            refused(&error, if path == "." { "" } else { &path })
        })
    }

    /// Length of the object's text.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Gives the bytes back. What was made of them still counts until the share is dropped.
    pub fn into_share(self) -> BodyShare {
        self.share
    }
}

/// What is wrong with a body, in the words of JSON and not of the types that it is read into.
fn refused(error: &serde_json::Error, path: &str) -> ApiError {
    if !error.is_data() {
        return ApiError::bad_request(format!("the request body is not valid JSON: {error}"));
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    for (start, reason) in [("missing field `", "is missing"), ("duplicate field `", "is given twice")] {
        if let Some(name) = text.strip_prefix(start).and_then(|rest| rest.split('`').next()) {
            let field = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            return ApiError::invalid(field, reason);
        }
    }
    let (found, expected) = text.split_once(", expected ").unwrap_or((text, ""));
    let found = found.strip_prefix("invalid type: ").or(found.strip_prefix("invalid value: "));
    let reason = match (found, expected) {
        (Some(found), expected) if !expected.is_empty() => format!("is {found}, not {}", in_json(expected)),
        _ => format!("is invalid: {text}"),
    };
    match path {
        "" => ApiError::bad_request(format!("the request body {reason}")),
        path => ApiError::invalid(path, reason),
    }
}

/// The name of a type as people who write JSON know it.
fn in_json(expected: &str) -> &str {
    match expected {
        "u64" | "u32" | "usize" => "a whole number that is not negative",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
}

/// A JSON answer.
pub(crate) fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            ApiError::internal("the answer could not be written").into_response()
        }
    }
}
