//! The one place where errors become HTTP: status, OpenAI's error object, headers for retries.
//!
//! `error.code` is a string or null, never a number, since strict clients refuse anything else.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use wardrobe_batch::BatchError;
use wardrobe_engine::{AdapterError, SubmitError};
use wardrobe_text::{TemplateError, TextError};

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A field of [`crate::ServerConfig`] or [`crate::ServedModel`] is out of its range.
    #[error("server configuration: `{field}` {reason}")]
    Config {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The adapter root is not a readable folder.
    #[error("adapter root {}: {reason}", path.display())]
    AdapterRoot {
        /// The path as configured.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
}

/// Which API a request came through: names of fields differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completions,
    Inference,
    Tokenize,
}

impl Api {
    fn prompt_field(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completions | Self::Inference | Self::Tokenize => "prompt",
        }
    }
}

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub kind: &'static str,
    pub param: Option<String>,
    pub code: Option<&'static str>,
    /// Sent as `Retry-After` and `retry-after-ms`.
    pub retry_after: Option<Duration>,
    /// Whether clients that retry by themselves are told not to.
    pub no_retry: bool,
}

/// The `error` object.
#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
/// `Retry-After` in milliseconds.
pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

impl ApiError {
    pub fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after: None,
            no_retry: false,
        }
    }

    /// 400 without a field at fault.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// 400 for a field: the message starts with its name.
    pub fn invalid(param: impl Into<String>, reason: impl AsRef<str>) -> Self {
        let param = param.into();
        Self::bad_request(format!("`{param}` {}", reason.as_ref())).with_param(param)
    }

    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// A field that is known and not supported, whose absence would change the answer.
    pub fn unsupported(param: &str, why: &str) -> Self {
        Self::invalid(param, format!("is not supported: {why}")).with_code("unsupported_parameter")
    }

    pub fn invalid_key() -> Self {
        let message = "missing or wrong API key; send it as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message).with_code("invalid_api_key")
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, message)
    }

    pub fn unknown_route(method: &str, path: &str) -> Self {
        Self::not_found(format!("there is no route {method} {path}")).with_code("unknown_url")
    }

    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{path} does not answer {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message).with_code("method_not_allowed")
    }

    pub fn unknown_model(name: &str) -> Self {
        let shown: String = name.chars().take(256).collect();
        Self::not_found(format!("the model `{shown}` does not exist; GET /v1/models lists what is served"))
            .with_param("model")
            .with_code("model_not_found")
    }

    pub fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("the request body is over the limit of {limit_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message).with_code("request_too_large")
    }

    pub fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .with_code("rate_limit_exceeded");
        error.retry_after = Some(retry_after);
        error
    }

    pub fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message).with_code(code)
    }

    /// The server's own failure. What went wrong inside is in the log, by the request's id.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message)
    }

    pub fn timeout() -> Self {
        let message = "the request took longer than this server allows";
        let mut error = Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message).with_code("timeout");
        error.no_retry = true;
        error
    }

    pub fn context_exceeded(max_tokens: usize, detail: &str, api: Api) -> Self {
        Self::bad_request(format!("This model's maximum context length is {max_tokens} tokens, but {detail}"))
            .with_param(api.prompt_field())
            .with_code("context_length_exceeded")
    }

    pub fn from_submit(error: SubmitError, api: Api) -> Self {
        match error {
            SubmitError::InvalidField { field, reason } => {
                let field = match (field, api) {
                    ("prompt", _) => api.prompt_field(),
                    ("logprobs", Api::Chat) => "top_logprobs",
                    ("adapter_scale", _) => "lora",
                    _ => field,
                };
                Self::invalid(field, reason)
            }
            SubmitError::ContextExceeded {
                requested_tokens,
                prompt_tokens,
                output_tokens,
                max_context_tokens,
            } => {
                let detail = format!(
                    "{requested_tokens} were requested ({prompt_tokens} in the prompt, {output_tokens} in the \
                     output). Shorten the prompt or ask for fewer tokens."
                );
                Self::context_exceeded(max_context_tokens, &detail, api)
            }
            SubmitError::UnknownAdapter { name } => Self::unknown_model(&name),
            SubmitError::GenerationMismatch { .. } => {
                Self::new(StatusCode::CONFLICT, INVALID, error.to_string())
                    .with_param("expected_generation")
                    .with_code("generation_mismatch")
            }
            SubmitError::Overloaded { retry_after, .. } => Self::overloaded(error.to_string(), retry_after),
            SubmitError::ShuttingDown => Self::shutting_down(),
            SubmitError::Unhealthy { .. } => Self::unavailable(error.to_string(), "engine_unhealthy"),
            _ => Self::internal(error.to_string()),
        }
    }

    pub fn shutting_down() -> Self {
        let mut error = Self::unavailable("the server is shutting down", "shutting_down");
        error.retry_after = Some(Duration::from_secs(1));
        error
    }

    pub fn from_adapter(error: AdapterError) -> Self {
        let text = error.to_string();
        let invalid = |code| Self::bad_request(text.clone()).with_code(code);
        let conflict = |code| Self::new(StatusCode::CONFLICT, INVALID, text.clone()).with_code(code);
        let full = |code| {
            let error = Self::new(StatusCode::INSUFFICIENT_STORAGE, SERVER, text.clone()).with_code(code);
            Self { no_retry: true, ..error }
        };
        match error {
            AdapterError::InvalidName { .. } => invalid("invalid_adapter_name").with_param("lora_name"),
            AdapterError::AlreadyLoaded { .. } => invalid("adapter_already_loaded").with_param("lora_name"),
            AdapterError::Refused { .. } => invalid("adapter_refused").with_param("lora_path"),
            AdapterError::NoSlots => invalid("no_adapter_slots"),
            AdapterError::NotLoaded { .. } => {
                Self::not_found(text).with_param("lora_name").with_code("adapter_not_found")
            }
            AdapterError::SourceNotFound { .. } => Self::not_found("there is no adapter at this path")
                .with_param("lora_path")
                .with_code("adapter_path_not_found"),
            AdapterError::GenerationMismatch { .. } => {
                conflict("generation_mismatch").with_param("expected_generation")
            }
            AdapterError::ContentChanged { .. } => conflict("adapter_content_changed"),
            AdapterError::TooManyPinned { .. } => conflict("too_many_pinned").with_param("pinned"),
            AdapterError::PinnedMemory { .. } => conflict("pinned_memory_full").with_param("pinned"),
            AdapterError::TooMany { .. } => conflict("too_many_adapters"),
            AdapterError::HostMemory { .. } => full("adapter_memory_full"),
            AdapterError::DeviceMemory { .. } => full("adapter_device_memory_full"),
            AdapterError::NotRunning { .. } => Self::unavailable(text, "engine_not_running"),
            AdapterError::Io { .. } => Self::internal(text).with_code("adapter_unreadable"),
            _ => Self::internal(text),
        }
    }

    pub fn from_batch(error: BatchError) -> Self {
        let text = error.to_string();
        match error {
            BatchError::UnknownFile { .. } => {
                Self::not_found(text).with_param("file_id").with_code("file_not_found")
            }
            BatchError::UnknownJob { .. } => {
                Self::not_found(text).with_param("fine_tuning_job_id").with_code("fine_tuning_job_not_found")
            }
            BatchError::UnknownBatch { .. } => {
                Self::not_found(text).with_param("batch_id").with_code("batch_not_found")
            }
            BatchError::UnknownCursor { .. } => Self::bad_request(text).with_param("after"),
            BatchError::FileInUse { .. } => {
                Self::new(StatusCode::CONFLICT, INVALID, text).with_code("file_in_use")
            }
            BatchError::JobOpen { .. } => {
                Self::new(StatusCode::CONFLICT, INVALID, text).with_code("job_not_ended")
            }
            BatchError::JobEnded { .. } => Self::bad_request(text).with_code("job_ended"),
            BatchError::NoArtifact { .. } => Self::not_found(text).with_code("no_such_artifact"),
            BatchError::FileTooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, text)
                .with_code("file_too_large")
                .with_param("file"),
            BatchError::StoreFull { .. } => Self::overloaded(text, Duration::from_secs(60)),
            BatchError::Checksum { .. } => {
                Self::bad_request(text).with_param("checksum").with_code("checksum_mismatch")
            }
            BatchError::BadFile(_) => {
                Self::bad_request(text).with_param("file").with_code("invalid_training_file")
            }
            BatchError::Refused(refusal) => match refusal.field.as_str() {
                // A name that is not known is what clients expect a 404 for, but only when they use it.
                "model" => Self::invalid("model", refusal.reason).with_code("model_not_available"),
                field => Self::invalid(field, refusal.reason),
            },
            BatchError::ShuttingDown => Self::shutting_down(),
            BatchError::Locked { .. } => {
                tracing::error!(error = text, "the store of jobs is locked");
                let mut error =
                    Self::unavailable("the store of jobs is locked by another process", "store_locked");
                error.retry_after = Some(Duration::from_secs(5));
                error
            }
            BatchError::DiskFull { .. } => {
                tracing::error!(error = text, "the disk is full");
                let status = StatusCode::INSUFFICIENT_STORAGE;
                let error = Self::new(status, SERVER, "the server's disk is full").with_code("disk_full");
                Self { no_retry: true, ..error }
            }
            // The rest names paths of this machine: it is for its owner.
            _ => {
                tracing::error!(error = text, "the store of jobs failed");
                Self::internal("the store of jobs failed").with_code("store_failed")
            }
        }
    }

    pub fn from_template(error: TemplateError) -> Self {
        Self::bad_request(error.to_string()).with_param("messages")
    }

    pub fn from_text(error: TextError, api: Api) -> Self {
        match error {
            TextError::TooManyTokens { limit_tokens } => {
                Self::context_exceeded(limit_tokens, "the prompt alone has more.", api)
            }
            error => Self::bad_request(error.to_string()).with_param(api.prompt_field()),
        }
    }

    /// The error object as JSON, for bodies and for events in a stream.
    pub fn write_json(&self, out: impl std::io::Write) -> serde_json::Result<()> {
        let error = ErrorObject {
            message: &self.message,
            kind: self.kind,
            param: self.param.as_deref(),
            code: self.code,
        };
        serde_json::to_writer(out, &ErrorBody { error })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(256);
        // Writing strings to memory cannot fail.
        let _ = self.write_json(&mut body);
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.no_retry {
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        if let Some(retry_after) = self.retry_after {
            let retry_after = retry_after.min(Duration::from_secs(120));
            let ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
        }
        response
    }
}

pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
