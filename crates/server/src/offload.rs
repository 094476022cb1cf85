//! Work on text that may take long, kept off the runtime's thread.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::{ApiError, Result};

/// Runs short work in place and long work on a few blocking threads. Those who wait for one of these are bounded by
/// the limit on concurrent requests.
pub(crate) struct Offload {
    threads: Arc<Semaphore>,
    inline_bytes: usize,
}

impl Offload {
    pub fn new(max_threads: usize, inline_bytes: usize) -> Self {
        Self { threads: Arc::new(Semaphore::new(max_threads)), inline_bytes }
    }

    /// Runs `work`, whose time grows with `text_bytes`.
    pub async fn run<T: Send + 'static>(
        &self,
        text_bytes: usize,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if text_bytes <= self.inline_bytes {
            return work();
        }
        let permit = self.threads.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::shutting_down())?;
        let span = tracing::Span::current();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            span.in_scope(work)
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "work on text failed");
            Err(ApiError::internal("the text could not be processed"))
        })
    }
}
