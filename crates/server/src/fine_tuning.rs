//! `/v1/fine_tuning/jobs`: OpenAI's view of the jobs.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use wardrobe_batch::{BatchError, Job, JobApi, JobSpec};

use crate::body::{JsonObject, json};
use crate::error::{ApiError, Result};
use crate::jobs::{Id, Runner, call};
use crate::query::Query;
use crate::state::ServerState;
use crate::wire::fine_tuning::{CheckpointObject, CreateJob, EventObject, JobObject, List};

const MAX_PAGE: usize = 1000;
/// How long a cancellation waits for the job to stop, and how often it looks.
const CANCEL_LOOKS: u32 = 20;
const CANCEL_PAUSE: Duration = Duration::from_millis(50);

fn shown(runner: &Runner, job: &Job) -> Response {
    json(&JobObject::new(job, &runner.0.config().organization))
}

/// Where a hyperparameter stands in OpenAI's requests.
fn field_of(field: &str, place: &str) -> String {
    match field {
        "model" | "training_file" | "validation_file" | "suffix" | "seed" | "metadata" => field.to_owned(),
        field => format!("{place}.{field}"),
    }
}

/// `POST /v1/fine_tuning/jobs`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    runner: Runner,
    body: JsonObject,
) -> Result<Response> {
    let fields: CreateJob = body.parse()?;
    if fields.integrations.is_some_and(|list| !list.is_empty()) {
        return Err(ApiError::unsupported("integrations", "metrics are in the job's events and result file"));
    }
    let mut place = "hyperparameters";
    let mut hyperparameters = fields.hyperparameters;
    if let Some(method) = fields.method {
        match method.kind.as_str() {
            "supervised" => {}
            "dpo" | "reinforcement" => {
                let why = format!("jobs are `supervised`, not `{}`", method.kind);
                return Err(ApiError::unsupported("method.type", &why));
            }
            _ => return Err(ApiError::invalid("method.type", "is not a known method; use `supervised`")),
        }
        if let Some(newer) = method.supervised.and_then(|supervised| supervised.hyperparameters) {
            if hyperparameters.is_some() {
                let reason = "stands beside `method.supervised.hyperparameters`; use one of them";
                return Err(ApiError::invalid("hyperparameters", reason));
            }
            place = "method.supervised.hyperparameters";
            hyperparameters = Some(newer);
        }
    }
    let spec = JobSpec {
        api: JobApi::FineTuningJobs,
        model: fields.model,
        training_file: fields.training_file,
        validation_file: fields.validation_file,
        suffix: fields.suffix.filter(|suffix| !suffix.is_empty()),
        seed: fields.seed.map(|seed| seed.0),
        hyperparameters: hyperparameters.unwrap_or_default(),
        metadata: fields.metadata,
    };
    let jobs = runner.0.clone();
    let job = call(&state, move || {
        jobs.create_job(spec).map_err(|error| match error {
            BatchError::Refused(mut refusal) => {
                refusal.field = field_of(&refusal.field, place);
                BatchError::Refused(refusal)
            }
            error => error,
        })
    })
    .await?;
    Ok(shown(&runner, &job))
}

/// `GET /v1/fine_tuning/jobs`.
pub(crate) async fn list(
    State(state): State<Arc<ServerState>>,
    runner: Runner,
    query: Query,
) -> Result<Response> {
    let limit = query.limit(20, MAX_PAGE)?;
    let (after, metadata) = (query.get("after").map(str::to_owned), query.map("metadata"));
    let jobs = runner.0.clone();
    let page = call(&state, move || jobs.jobs(after.as_deref(), limit, &metadata)).await?;
    let organization = &runner.0.config().organization;
    Ok(json(&List::new(&page, |job| JobObject::new(job, organization))))
}

/// `GET /v1/fine_tuning/jobs/{id}`.
pub(crate) async fn retrieve(
    State(state): State<Arc<ServerState>>,
    runner: Runner,
    Id(id): Id,
) -> Result<Response> {
    let jobs = runner.0.clone();
    let job = call(&state, move || jobs.job(&id)).await?;
    Ok(shown(&runner, &job))
}

/// Cancels a job and gives it a moment to stop, so that the answer mostly shows its end.
pub(crate) async fn cancel_and_wait(state: &ServerState, runner: &Runner, id: String) -> Result<Job> {
    let (jobs, name) = (runner.0.clone(), id.clone());
    let mut job = call(state, move || jobs.cancel(&name)).await?;
    for _ in 0..CANCEL_LOOKS {
        if job.status.has_ended() {
            break;
        }
        tokio::time::sleep(CANCEL_PAUSE).await;
        let (jobs, name) = (runner.0.clone(), id.clone());
        job = call(state, move || jobs.job(&name)).await?;
    }
    Ok(job)
}

/// `POST /v1/fine_tuning/jobs/{id}/cancel`.
pub(crate) async fn cancel(
    State(state): State<Arc<ServerState>>,
    runner: Runner,
    Id(id): Id,
) -> Result<Response> {
    let job = cancel_and_wait(&state, &runner, id).await?;
    Ok(shown(&runner, &job))
}

/// `POST /v1/fine_tuning/jobs/{id}/pause` and `/resume`: refused by name.
pub(crate) async fn pause(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
) -> Result<Response> {
    call(&state, move || runner.job(&id)).await?;
    let message = "jobs cannot be paused or resumed; one that a restart interrupts goes on by itself";
    Err(ApiError::bad_request(message).with_code("unsupported_operation"))
}

/// `GET /v1/fine_tuning/jobs/{id}/events`, newest first.
pub(crate) async fn events(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
    query: Query,
) -> Result<Response> {
    let limit = query.limit(20, MAX_PAGE)?;
    let after = query.get("after").map(str::to_owned);
    let page = call(&state, move || runner.events(&id, after.as_deref(), limit)).await?;
    Ok(json(&List::new(&page, EventObject::new)))
}

/// `GET /v1/fine_tuning/jobs/{id}/checkpoints`, newest first.
pub(crate) async fn checkpoints(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
    query: Query,
) -> Result<Response> {
    let limit = query.limit(10, MAX_PAGE)?;
    let after = query.get("after").map(str::to_owned);
    let work = move || Ok((runner.job(&id)?, runner.checkpoints(&id, after.as_deref(), limit)?));
    let (job, page) = call(&state, work).await?;
    Ok(json(&List::new(&page, |checkpoint| CheckpointObject::new(&job, checkpoint))))
}
