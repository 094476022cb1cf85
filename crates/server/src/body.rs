//! Request bodies: read within limits of size and time, then parsed with the field at fault named.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::error::{ApiError, Result};
use crate::state::ServerState;

/// The bytes of a JSON object.
pub(crate) struct JsonObject(Bytes);

impl FromRequest<Arc<ServerState>> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<ServerState>) -> Result<Self> {
        check_content_type(request.headers())?;
        let limit_bytes = state.config.body_limit_bytes;
        let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if declared.and_then(|text| text.parse::<u64>().ok()).is_some_and(|n| n > limit_bytes as u64) {
            return Err(ApiError::body_too_large(limit_bytes));
        }
        let body = Limited::new(request.into_body(), limit_bytes);
        let bytes = match tokio::time::timeout(state.config.read_timeout, body.collect()).await {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(ApiError::body_too_large(limit_bytes));
            }
            Ok(Err(_)) => return Err(ApiError::bad_request("the request body could not be read")),
            Err(_) => {
                let message = "the request body did not arrive in time";
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message));
            }
        };
        match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => Ok(Self(bytes)),
            _ => Err(ApiError::bad_request("the request body must be a JSON object")),
        }
    }
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
        serde_json::from_slice(&self.0).map_err(|error| {
            // Read once more to learn which field it was.
            let mut reader = serde_json::Deserializer::from_slice(&self.0);
            let traced = serde_path_to_error::deserialize::<_, T>(&mut reader);
            match traced.map_err(|traced| traced.path().to_string()) {
                Err(path) if path != "." && error.is_data() => {
                    ApiError::invalid(path, format!("is invalid: {error}"))
                }
                _ => ApiError::bad_request(format!("the request body is not valid: {error}")),
            }
        })
    }

    /// Length of the object's text.
    pub fn len_bytes(&self) -> usize {
        self.0.len()
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
