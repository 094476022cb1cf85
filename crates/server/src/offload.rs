//! Work on text that may take long, kept off the runtime's thread.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::{ApiError, Result};

/// Runs short work in place and long work on a few blocking threads. Those who wait for one of these have a place among
/// the open requests, of which there is a limit.
///
/// Work whose only purpose is tokens, or which is done in the background, has a queue of its own in front of the threads,
/// so that a request to generate waits for one such piece of work at most.
pub(crate) struct Offload {
    threads: Arc<Semaphore>,
    /// Held by the one piece of less urgent work that waits for a thread or has one.
    less_urgent: Arc<Semaphore>,
    inline_bytes: usize,
}

tokio::task_local! {
    /// Set around what is done in the background.
    static BACKGROUND: ();
}

/// Marks work as done in the background.
pub(crate) fn in_background<F: Future>(work: F) -> impl Future<Output = F::Output> {
    BACKGROUND.scope((), work)
}

impl Offload {
    pub fn new(max_threads: usize, inline_bytes: usize) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { threads: semaphore(max_threads), less_urgent: semaphore(1), inline_bytes }
    }

    /// Runs `work`, whose time grows with `text_bytes`.
    pub async fn run<T: Send + 'static>(
        &self,
        text_bytes: usize,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match BACKGROUND.try_with(|()| ()) {
            Ok(()) => self.run_less_urgent(text_bytes, work).await,
            Err(_) => self.run_now(text_bytes, work).await,
        }
    }

    /// Runs work behind what [`Offload::run`] runs for clients: of a request that wants tokens and no answer, or in the
    /// background.
    pub async fn run_less_urgent<T: Send + 'static>(
        &self,
        text_bytes: usize,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if text_bytes <= self.inline_bytes {
            return work();
        }
        let turn = self.less_urgent.clone().acquire_owned().await;
        let turn = turn.map_err(|_| ApiError::shutting_down())?;
        self.run_now(text_bytes, move || {
            let _turn = turn;
            work()
        })
        .await
    }

    async fn run_now<T: Send + 'static>(
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn generation_waits_for_one_tokenization_at_most() {
        let offload = Arc::new(Offload::new(1, 0));
        let order: Arc<Mutex<Vec<&str>>> = Arc::default();
        let work = |name: &'static str| {
            let order = order.clone();
            move || {
                std::thread::sleep(Duration::from_millis(20));
                order.lock().unwrap().push(name);
                Ok(())
            }
        };
        let mut tasks = Vec::new();
        for _ in 0..6 {
            let (offload, work) = (offload.clone(), work("tokenize"));
            tasks.push(tokio::spawn(async move { offload.run_less_urgent(1, work).await }));
        }
        tokio::task::yield_now().await;
        offload.run(1, work("generate")).await.unwrap();
        let before = order.lock().unwrap().len();
        assert!(before <= 3, "{:?}", order.lock().unwrap());
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(order.lock().unwrap().len(), 7);
    }
}
