//! Batches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wardrobe_batch::{Batch, BatchProblem, BatchStatus, BatchUsage, Page};

/// `POST /v1/batches`.
#[derive(Debug, Deserialize)]
pub(crate) struct CreateBatch {
    pub input_file_id: String,
    pub endpoint: String,
    pub completion_window: String,
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub output_expires_after: Option<Value>,
}

#[derive(Serialize)]
struct Errors<'a> {
    object: &'static str,
    data: Vec<ErrorShown<'a>>,
}

#[derive(Serialize)]
struct ErrorShown<'a> {
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
    line: Option<u64>,
}

impl<'a> ErrorShown<'a> {
    fn new(problem: &'a BatchProblem) -> Self {
        let BatchProblem { code, line, message, param } = problem;
        Self { code, message, param: param.as_deref(), line: *line }
    }
}

#[derive(Serialize)]
struct RequestCounts {
    total: u64,
    completed: u64,
    failed: u64,
}

#[derive(Serialize)]
struct Usage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl Usage {
    fn new(usage: &BatchUsage) -> Self {
        Self {
            input_tokens: usage.input_tokens,
            input_tokens_details: InputDetails { cached_tokens: usage.cached_tokens },
            output_tokens: usage.output_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: usage.input_tokens.saturating_add(usage.output_tokens),
        }
    }
}

/// A batch.
#[derive(Serialize)]
pub(crate) struct BatchObject<'a> {
    id: &'a str,
    object: &'static str,
    endpoint: &'static str,
    model: Option<&'a str>,
    errors: Option<Errors<'a>>,
    input_file_id: &'a str,
    completion_window: &'static str,
    status: &'static str,
    output_file_id: Option<&'a str>,
    error_file_id: Option<&'a str>,
    created_at: i64,
    in_progress_at: Option<i64>,
    expires_at: i64,
    finalizing_at: Option<i64>,
    completed_at: Option<i64>,
    failed_at: Option<i64>,
    expired_at: Option<i64>,
    cancelling_at: Option<i64>,
    cancelled_at: Option<i64>,
    request_counts: RequestCounts,
    usage: Option<Usage>,
    metadata: Option<&'a BTreeMap<String, String>>,
}

impl<'a> BatchObject<'a> {
    pub fn new(batch: &'a Batch) -> Self {
        let seconds = |ms: Option<i64>| ms.map(|ms| ms / 1000);
        let ended_as = |status| seconds(batch.ended_at_ms).filter(|_| batch.status == status);
        let problems = &batch.problems;
        let errors = || Errors { object: "list", data: problems.iter().map(ErrorShown::new).collect() };
        Self {
            id: &batch.id,
            object: "batch",
            endpoint: batch.spec.route.path(),
            model: batch.model.as_deref(),
            errors: (!problems.is_empty()).then(errors),
            input_file_id: &batch.spec.input_file,
            completion_window: batch.spec.window.name(),
            status: batch.status.name(),
            output_file_id: batch.output_file.as_deref(),
            error_file_id: batch.error_file.as_deref(),
            created_at: batch.created_at_ms / 1000,
            in_progress_at: seconds(batch.in_progress_at_ms),
            expires_at: batch.expires_at_ms / 1000,
            finalizing_at: seconds(batch.finalizing_at_ms),
            completed_at: ended_as(BatchStatus::Completed),
            failed_at: ended_as(BatchStatus::Failed),
            expired_at: ended_as(BatchStatus::Expired),
            cancelling_at: seconds(batch.cancelling_at_ms),
            cancelled_at: ended_as(BatchStatus::Cancelled),
            request_counts: RequestCounts {
                total: batch.counts.total,
                completed: batch.counts.completed,
                failed: batch.counts.failed,
            },
            usage: batch.usage.as_ref().map(Usage::new),
            metadata: batch.spec.metadata.as_ref(),
        }
    }
}

/// A page of batches.
#[derive(Serialize)]
pub(crate) struct BatchList<'a> {
    object: &'static str,
    data: Vec<BatchObject<'a>>,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
    has_more: bool,
}

impl<'a> BatchList<'a> {
    pub fn new(page: &'a Page<Batch>) -> Self {
        Self {
            object: "list",
            data: page.items.iter().map(BatchObject::new).collect(),
            first_id: page.items.first().map(|batch| batch.id.as_str()),
            last_id: page.items.last().map(|batch| batch.id.as_str()),
            has_more: page.has_more,
        }
    }
}
