//! What the routes of files, jobs and batches share: the runner, if there is one, and a thread to ask it on.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use wardrobe_batch::{BatchError, JobRunner};

use crate::error::{ApiError, Result};
use crate::query::Query;
use crate::state::ServerState;

/// The runner of this server.
pub(crate) struct Runner(pub Arc<JobRunner>);

impl FromRequestParts<Arc<ServerState>> for Runner {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, state: &Arc<ServerState>) -> Result<Self> {
        let missing = || {
            let message =
                "this server was started without a job folder; it keeps no files and runs no jobs or batches";
            ApiError::forbidden(message).with_code("job_folder_missing")
        };
        state.model.fine_tuning.clone().map(Self).ok_or_else(missing)
    }
}

impl FromRequestParts<Arc<ServerState>> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<ServerState>) -> Result<Self> {
        Self::parse(parts.uri.query())
    }
}

/// The id in a path.
pub(crate) struct Id(pub String);

impl FromRequestParts<Arc<ServerState>> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ServerState>) -> Result<Self> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(id)| Self(id))
            .map_err(|_| ApiError::bad_request("the id in the path is not valid UTF-8"))
    }
}

/// Asks the store, away from the runtime's thread. What has begun is finished, also when the client goes away.
pub(crate) async fn call<T: Send + 'static>(
    state: &ServerState,
    work: impl FnOnce() -> Result<T, BatchError> + Send + 'static,
) -> Result<T> {
    let place = state.job_calls.clone().acquire_owned().await.map_err(|_| ApiError::shutting_down())?;
    let span = tracing::Span::current();
    let task = tokio::task::spawn_blocking(move || {
        let _place = place;
        span.in_scope(work)
    });
    match task.await {
        Ok(result) => result.map_err(ApiError::from_batch),
        Err(error) => {
            tracing::error!(%error, "a call to the store of jobs failed");
            Err(ApiError::internal("the store of jobs failed"))
        }
    }
}
