//! Every error of the engine has its status and code.

use std::path::PathBuf;
use std::time::Duration;

use wardrobe_engine::GenerationId;

use super::*;

fn checked(error: &ApiError) -> (u16, Option<&str>) {
    assert!(!error.message.is_empty());
    (error.status.as_u16(), error.code)
}

#[test]
fn submissions() {
    let text = || "x".to_owned();
    let (expected, actual) = (GenerationId(1), GenerationId(2));
    let invalid = SubmitError::InvalidField { field: "top_p", reason: text() };
    let exceeded = SubmitError::ContextExceeded {
        requested_tokens: 9,
        prompt_tokens: 5,
        output_tokens: 4,
        max_context_tokens: 8,
    };
    let cases = [
        (invalid, 400, None),
        (exceeded, 400, Some("context_length_exceeded")),
        (SubmitError::UnknownAdapter { name: text() }, 404, Some("model_not_found")),
        (
            SubmitError::GenerationMismatch { name: text(), expected, actual },
            409,
            Some("generation_mismatch"),
        ),
        (SubmitError::ShuttingDown, 503, Some("shutting_down")),
        (SubmitError::Unhealthy { reason: text() }, 503, Some("engine_unhealthy")),
        (
            SubmitError::Overloaded { open: 3, retry_after: Duration::from_millis(1500) },
            429,
            Some("rate_limit_exceeded"),
        ),
    ];
    for (error, status, code) in cases {
        assert_eq!(checked(&ApiError::from_submit(error.clone(), Api::Chat)), (status, code), "{error}");
    }
    let field =
        |field, api| ApiError::from_submit(SubmitError::InvalidField { field, reason: text() }, api).param;
    assert_eq!(field("prompt", Api::Chat).as_deref(), Some("messages"));
    assert_eq!(field("prompt", Api::Completions).as_deref(), Some("prompt"));
    assert_eq!(field("logprobs", Api::Chat).as_deref(), Some("top_logprobs"));
    assert_eq!(field("adapter_scale", Api::Completions).as_deref(), Some("lora"));
}

#[test]
fn adapters() {
    let text = || "x".to_owned();
    let generation = GenerationId(1);
    let cases = [
        (AdapterError::InvalidName { name: text(), reason: "is empty" }, 400, "invalid_adapter_name"),
        (AdapterError::AlreadyLoaded { name: text(), generation }, 400, "adapter_already_loaded"),
        (AdapterError::Refused { reason: text() }, 400, "adapter_refused"),
        (AdapterError::NoSlots, 400, "no_adapter_slots"),
        (AdapterError::NotLoaded { name: text() }, 404, "adapter_not_found"),
        (AdapterError::SourceNotFound { path: PathBuf::from("/secret") }, 404, "adapter_path_not_found"),
        (
            AdapterError::GenerationMismatch { name: text(), expected: generation, actual: None },
            409,
            "generation_mismatch",
        ),
        (AdapterError::ContentChanged { name: text(), generation }, 409, "adapter_content_changed"),
        (AdapterError::TooManyPinned { limit: 1, num_slots: 2 }, 409, "too_many_pinned"),
        (AdapterError::TooMany { limit: 1 }, 409, "too_many_adapters"),
        (
            AdapterError::HostMemory { needed_bytes: 2, available_bytes: 1, limit_bytes: 1 },
            507,
            "adapter_memory_full",
        ),
        (
            AdapterError::DeviceMemory { name: text(), needed_bytes: 2, available_bytes: 1, limit_bytes: 1 },
            507,
            "adapter_device_memory_full",
        ),
        (
            AdapterError::PinnedMemory {
                name: text(),
                left_bytes: 1,
                limit_bytes: 2,
                other: text(),
                generation,
                needed_bytes: 2,
            },
            409,
            "pinned_memory_full",
        ),
        (AdapterError::Io { reason: text() }, 500, "adapter_unreadable"),
        (AdapterError::NotRunning { reason: text() }, 503, "engine_not_running"),
    ];
    for (error, status, code) in cases {
        let answer = ApiError::from_adapter(error.clone());
        assert_eq!(checked(&answer), (status, Some(code)), "{error}");
        assert!(!answer.message.contains("secret"), "{}", answer.message);
    }
}

#[test]
fn retries_are_announced_within_what_clients_honour() {
    for (after, seconds, ms) in [
        (Duration::ZERO, "1", "1"),
        (Duration::from_millis(1500), "2", "1500"),
        (Duration::from_secs(10_000), "120", "120000"),
    ] {
        let response = ApiError::overloaded("full", after).into_response();
        assert_eq!(response.headers()["retry-after"], seconds);
        assert_eq!(response.headers()["retry-after-ms"], ms);
    }
}
