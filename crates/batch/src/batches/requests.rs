//! What clients ask of batches.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::endpoint::BatchEndpoint;
use super::{Batch, BatchCounts, BatchSpec};
use crate::error::{BatchError, Result};
use crate::job::Page;
use crate::runner::JobRunner;
use crate::spec::check_metadata;
use crate::store::NewBatch;

impl JobRunner {
    /// Starts to work on batches, with what answers their requests from now on. Asking again replaces that.
    ///
    /// # Errors
    /// No thread can be started, or the process is going down.
    pub fn start_batches(&self, endpoint: Arc<dyn BatchEndpoint>) -> Result<()> {
        let shared = self.shared();
        if shared.is_shutting_down() {
            return Err(BatchError::ShuttingDown);
        }
        *shared.batch_endpoint.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoint);
        self.start_batch_thread()
    }

    /// Queues a batch. What is wrong with its input is told by the batch, later.
    ///
    /// # Errors
    /// [`BatchError::Refused`] with the field at fault; the queue is full, or the store of files; the store cannot keep it.
    pub fn create_batch(&self, spec: &BatchSpec) -> Result<Batch> {
        let shared = self.shared();
        if shared.is_shutting_down() {
            return Err(BatchError::ShuttingDown);
        }
        check_metadata(spec.metadata.as_ref()).map_err(BatchError::Refused)?;
        // Its answers will need room.
        shared.file_room_bytes()?;
        let settings = &shared.config.batches;
        let id = shared.ids.next("batch_");
        let now_ms = settings.clock.now_ms();
        let limits = (settings.max_open, settings.max_kept);
        let batch = shared.store.add_batch(&NewBatch { id: &id, spec, now_ms, limits })?;
        shared.signal();
        Ok(batch)
    }

    /// A batch.
    ///
    /// # Errors
    /// It does not exist, or the store cannot be read.
    pub fn batch(&self, id: &str) -> Result<Batch> {
        self.shared().store.batch(id)
    }

    /// A page of batches, newest first, after the batch `after`.
    ///
    /// # Errors
    /// `after` does not exist, or the store cannot be read.
    pub fn batches(&self, after: Option<&str>, limit: usize) -> Result<Page<Batch>> {
        self.shared().store.batches(after, limit)
    }

    /// Cancels a batch: one that waits to be checked has ended when this returns, another ends soon, with the answers that
    /// it has. Asking twice is no error.
    ///
    /// # Errors
    /// It does not exist, has ended, or is about to.
    pub fn cancel_batch(&self, id: &str) -> Result<Batch> {
        let shared = self.shared();
        let now_ms = shared.config.batches.clock.now_ms();
        // Held, so that nobody begins to work on it between the look and the change.
        let running = shared.running();
        let flags = running.get(id);
        let batch = shared.store.cancel_batch(id, flags.is_some(), now_ms)?;
        if let Some(flags) = flags {
            flags.cancelled.store(true, Ordering::Release);
        }
        Ok(batch)
    }

    /// Number of batches by status, and of their requests.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn batch_counts(&self) -> Result<BatchCounts> {
        self.shared().store.batch_counts()
    }
}
