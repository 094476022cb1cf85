//! `/v1/fine-tunes`: Together's view of the same jobs.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Value, json as value};
use wardrobe_batch::{
    Auto, BatchError, EarlyStopping, Hyperparameters, Job, JobApi, JobSpec, LrSchedule, LrScheduler,
};

use crate::body::{JsonObject, json};
use crate::download;
use crate::error::{ApiError, Result};
use crate::fine_tuning::cancel_and_wait;
use crate::jobs::{Id, Runner, call};
use crate::query::Query;
use crate::state::ServerState;
use crate::wire::fine_tunes::{
    self as wire, CreateFineTune, EstimatePrice, EventNames, Limits, SchedulerFields,
};

/// What one answer holds: these lists have no pages.
const MAX_JOBS: usize = 1000;
const MAX_EVENTS: usize = 1000;
const MAX_METRICS: usize = 100_000;

/// Where a hyperparameter stands in Together's requests.
fn field_of(field: &str) -> &str {
    match field {
        "lora_rank" => "training_type.lora_r",
        "lora_alpha" => "training_type.lora_alpha",
        "lora_dropout" => "training_type.lora_dropout",
        "lora_target_modules" => "training_type.lora_trainable_modules",
        "max_seq_length_tokens" => "max_seq_length",
        "lr_scheduler.min_lr_ratio" => "lr_scheduler.lr_scheduler_args.min_lr_ratio",
        "lr_scheduler.num_cycles" => "lr_scheduler.lr_scheduler_args.num_cycles",
        "early_stopping" => "early_stopping_enabled",
        "seed" => "random_seed",
        field => field,
    }
}

fn scheduler(fields: SchedulerFields) -> Result<LrScheduler> {
    let schedule = match fields.lr_scheduler_type.as_str() {
        "linear" => LrSchedule::Linear,
        "cosine" => LrSchedule::Cosine,
        "constant" => LrSchedule::Constant,
        _ => {
            let reason = "is neither `linear`, `cosine` nor `constant`";
            return Err(ApiError::invalid("lr_scheduler.lr_scheduler_type", reason));
        }
    };
    let arguments = fields.lr_scheduler_args.unwrap_or_default();
    let (min_lr_ratio, num_cycles) = (arguments.min_lr_ratio, arguments.num_cycles);
    Ok(LrScheduler {
        schedule,
        min_lr_ratio: min_lr_ratio.unwrap_or(0.0),
        num_cycles: num_cycles.unwrap_or(0.5),
    })
}

/// Refuses by name what would change the result and is not done here.
fn refuse_unsupported(fields: &CreateFineTune) -> Result<()> {
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if fields.training_type.as_ref().is_some_and(|kind| kind.kind != "Lora") {
        return Err(ApiError::unsupported("training_type.type", "only `Lora` is trained"));
    }
    if fields.training_method.as_ref().is_some_and(|method| method.method != "sft") {
        return Err(ApiError::unsupported("training_method.method", "only `sft` is done"));
    }
    if fields.multimodal_params.as_ref().is_some_and(|multimodal| multimodal.train_vision) {
        return Err(ApiError::unsupported("multimodal_params.train_vision", "there is no vision encoder"));
    }
    for (name, is_set, why) in [
        ("from_checkpoint", set(&fields.from_checkpoint), "jobs start from the base model"),
        ("from_hf_model", set(&fields.from_hf_model), "jobs start from the base model"),
        ("hf_output_repo_name", set(&fields.hf_output_repo_name), "download the adapter instead"),
        ("wandb_key", set(&fields.wandb_key), "metrics are in the job's events and result file"),
    ] {
        if is_set {
            return Err(ApiError::unsupported(name, why));
        }
    }
    Ok(())
}

fn spec(fields: CreateFineTune) -> Result<JobSpec> {
    refuse_unsupported(&fields)?;
    let not_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
    let missing = |field: &str| ApiError::invalid(field, "is missing");
    let early_stopping = fields.early_stopping_enabled.unwrap_or(false).then(|| EarlyStopping {
        patience: fields.early_stopping_patience.unwrap_or(2),
        min_delta: fields.early_stopping_min_delta.unwrap_or(0.0),
        warmup_evals: fields.early_stopping_warmup_evals.unwrap_or(1),
    });
    let method = fields.training_method.map_or(Auto::Auto, |method| method.train_on_inputs);
    let mut hyperparameters = Hyperparameters {
        n_epochs: fields.n_epochs.into(),
        batch_size: fields.batch_size.into(),
        gradient_accumulation_steps: fields.gradient_accumulation_steps.filter(|steps| *steps > 0).into(),
        learning_rate: fields.learning_rate.into(),
        lr_scheduler: fields.lr_scheduler.map(scheduler).transpose()?.into(),
        warmup_ratio: fields.warmup_ratio.into(),
        max_grad_norm: fields.max_grad_norm.into(),
        weight_decay: fields.weight_decay.into(),
        train_on_inputs: fields.train_on_inputs.value().or(method.value()).into(),
        packing: fields.packing.into(),
        max_seq_length_tokens: fields.max_seq_length.into(),
        n_checkpoints: fields.n_checkpoints.into(),
        n_evals: fields.n_evals.into(),
        early_stopping,
        ..Hyperparameters::default()
    };
    if let Some(lora) = fields.training_type {
        hyperparameters.lora_rank = lora.lora_r.into();
        hyperparameters.lora_alpha = lora.lora_alpha.into();
        hyperparameters.lora_dropout = lora.lora_dropout.into();
        let modules = not_empty(lora.lora_trainable_modules);
        let split = |names: String| names.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>();
        hyperparameters.lora_target_modules = modules.map(split).into();
    }
    Ok(JobSpec {
        api: JobApi::FineTunes,
        model: not_empty(fields.model).ok_or_else(|| missing("model"))?,
        training_file: not_empty(Some(fields.training_file)).ok_or_else(|| missing("training_file"))?,
        validation_file: not_empty(fields.validation_file),
        suffix: not_empty(fields.suffix),
        seed: fields.random_seed.map(|seed| seed.0),
        hyperparameters,
        metadata: None,
    })
}

fn shown(runner: &Runner, job: &Job) -> Value {
    wire::job(job, &runner.0.config().organization, None)
}

/// `POST /v1/fine-tunes`.
pub(crate) async fn create(
    State(state): State<Arc<ServerState>>,
    runner: Runner,
    body: JsonObject,
) -> Result<Response> {
    let spec = spec(body.parse()?)?;
    let jobs = runner.0.clone();
    let job = call(&state, move || {
        jobs.create_job(spec).map_err(|error| match error {
            BatchError::Refused(mut refusal) => {
                refusal.field = field_of(&refusal.field).to_owned();
                BatchError::Refused(refusal)
            }
            error => error,
        })
    })
    .await?;
    Ok(json(&shown(&runner, &job)))
}

/// `GET /v1/fine-tunes`.
pub(crate) async fn list(State(state): State<Arc<ServerState>>, runner: Runner) -> Result<Response> {
    let jobs = runner.0.clone();
    let page = call(&state, move || jobs.jobs(None, MAX_JOBS, &[])).await?;
    let data: Vec<_> = page.items.iter().map(|job| shown(&runner, job)).collect();
    Ok(json(&value!({"object": "list", "data": data})))
}

/// `GET /v1/fine-tunes/{id}`, with its events.
pub(crate) async fn retrieve(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response> {
    let jobs = runner.clone();
    let work = move || Ok((jobs.job(&id)?, jobs.milestones(&id, MAX_EVENTS)?));
    let (job, events) = call(&state, work).await?;
    let events = Some((events.as_slice(), EventNames::of(&headers)));
    Ok(json(&wire::job(&job, &runner.config().organization, events)))
}

/// `POST /v1/fine-tunes/{id}/cancel`.
pub(crate) async fn cancel(
    State(state): State<Arc<ServerState>>,
    runner: Runner,
    Id(id): Id,
) -> Result<Response> {
    let job = cancel_and_wait(&state, &runner, id).await?;
    Ok(json(&shown(&runner, &job)))
}

/// `DELETE /v1/fine-tunes/{id}`.
pub(crate) async fn remove(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
) -> Result<Response> {
    let name = id.clone();
    call(&state, move || runner.delete_job(&name)).await?;
    Ok(json(&value!({"id": id, "deleted": true, "message": "the job and its adapter were deleted"})))
}

/// `GET /v1/fine-tunes/{id}/events`, oldest first.
pub(crate) async fn events(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response> {
    let work = move || Ok((runner.job(&id)?, runner.milestones(&id, MAX_EVENTS)?));
    let (job, events) = call(&state, work).await?;
    let names = EventNames::of(&headers);
    let data: Vec<_> = events.iter().map(|event| wire::event(&job, event, names)).collect();
    Ok(json(&value!({"object": "list", "data": data})))
}

/// `GET /v1/fine-tunes/{id}/checkpoints`, newest first.
pub(crate) async fn checkpoints(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
) -> Result<Response> {
    let work = move || Ok((runner.job(&id)?, runner.checkpoints(&id, None, MAX_EVENTS)?));
    let (job, page) = call(&state, work).await?;
    let data: Vec<_> = page.items.iter().map(|checkpoint| wire::checkpoint(&job, checkpoint)).collect();
    Ok(json(&value!({"object": "list", "data": data})))
}

/// `GET /v1/fine-tunes/{id}/metrics`, in the order of the steps.
pub(crate) async fn metrics(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    Id(id): Id,
    query: Query,
) -> Result<Response> {
    for name in ["logged_at_from", "logged_at_to"] {
        if query.get(name).is_some() {
            return Err(ApiError::unsupported(name, "use global_step_from and global_step_to"));
        }
    }
    let from = query.number("global_step_from", 0, u64::MAX)?.unwrap_or(0);
    let to = query.number("global_step_to", 0, u64::MAX)?.unwrap_or(u64::MAX);
    let resolution = query.number("resolution", 1, MAX_METRICS as u64)?;
    let steps = call(&state, move || runner.metrics(&id, MAX_METRICS)).await?;
    let mut shown = Vec::new();
    for (at_ms, step) in steps {
        let Value::Object(mut fields) = step else { continue };
        let number = fields.remove("step").and_then(|step| step.as_u64()).unwrap_or(0);
        if (from..=to).contains(&number) {
            fields.insert("global_step".to_owned(), value!(number));
            fields.insert("logged_at".to_owned(), value!(at_ms as f64 / 1000.0));
            shown.push(Value::Object(fields));
        }
    }
    if let Some(resolution) = resolution.and_then(|number| usize::try_from(number).ok()) {
        // Spread evenly; the last step is among them.
        let (len, mut idx) = (shown.len(), 0);
        shown.retain(|_| {
            idx += 1;
            len <= resolution || idx * resolution / len > (idx - 1) * resolution / len
        });
    }
    Ok(json(&value!({"metrics": shown})))
}

/// `GET /v1/fine-tunes/models/limits`.
pub(crate) async fn limits(Runner(runner): Runner, query: Query) -> Result<Response> {
    let name = query.get("model_name").ok_or_else(|| ApiError::invalid("model_name", "is missing"))?;
    match runner.limits(name) {
        Some(limits) => Ok(json(&Limits::new(&limits))),
        None => {
            let shown: String = name.chars().take(256).collect();
            let message = format!("the model `{shown}` cannot be fine-tuned here; the base model can");
            Err(ApiError::not_found(message).with_param("model_name").with_code("model_not_found"))
        }
    }
}

/// `POST /v1/fine-tunes/estimate-price`: nothing costs anything; the tokens are estimated from the file's size.
pub(crate) async fn estimate_price(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    body: JsonObject,
) -> Result<Response> {
    const BYTES_A_TOKEN: u64 = 4;
    let fields: EstimatePrice = body.parse()?;
    let file = call(&state, move || runner.file(&fields.training_file)).await?;
    let tokens = file.size_bytes / BYTES_A_TOKEN * u64::from(fields.n_epochs.unwrap_or(1));
    Ok(json(&value!({
        "estimation_available": true,
        "allowed_to_proceed": true,
        "estimated_total_price": 0.0,
        "estimated_train_token_count": tokens,
        "estimated_eval_token_count": 0,
        "user_limit": 0.0,
    })))
}

/// `GET /v1/finetune/download`: the adapter of a job or of one of its checkpoints, as `.tar.gz`.
pub(crate) async fn download(
    State(state): State<Arc<ServerState>>,
    Runner(runner): Runner,
    query: Query,
    headers: HeaderMap,
) -> Result<Response> {
    let id = query.get("ft_id").ok_or_else(|| ApiError::invalid("ft_id", "is missing"))?.to_owned();
    let step = query.number("checkpoint_step", 0, u64::MAX)?.filter(|step| *step > 0);
    match query.get("checkpoint") {
        _ if step.is_some() => {}
        None | Some("adapter" | "model_output_path" | "default") => {}
        Some("merged") => {
            let why = "adapters are not merged into the base's weights; ask for `adapter`";
            return Err(ApiError::unsupported("checkpoint", why));
        }
        Some(_) => return Err(ApiError::invalid("checkpoint", "is not `adapter`")),
    }
    let name = format!("{id}.tar.gz");
    let file = call(&state, move || runner.archive(&id, step)).await?;
    download::answer(&headers, file, "application/x-tar", &name)
}
