//! Files that arrive: places for those that do, and secrets for those that were announced.
//!
//! State: announced files, by the secret in the address that their client was given. They are forgotten after an hour, when
//! their upload begins, and at a restart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use wardrobe_batch::{BatchError, NewFile, Upload};

use crate::error::{ApiError, Result};
use crate::multipart::{Multipart, next_frame};

/// Below this path announced files are sent.
pub(crate) const UPLOAD_PATH: &str = "/v1/files/uploads/";
/// How long an announced file may take to begin.
const PATIENCE: Duration = Duration::from_secs(3600);
const MAX_ANNOUNCED: usize = 1024;
/// Pieces between the network and the disk.
const MAX_PIECES: usize = 4;

/// What arrives and what will.
pub(crate) struct Uploads {
    places: Arc<Semaphore>,
    limit: usize,
    announced: Mutex<HashMap<String, (NewFile, Instant)>>,
}

impl Uploads {
    pub fn new(limit: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(limit)), limit, announced: Mutex::default() }
    }

    fn announced(&self) -> MutexGuard<'_, HashMap<String, (NewFile, Instant)>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a file that arrives.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            ApiError::overloaded(format!("{} files arrive already", self.limit), Duration::from_secs(1))
        })
    }

    /// Expects a file under a secret.
    pub fn announce(&self, token: String, file: NewFile) -> Result<()> {
        let mut announced = self.announced();
        announced.retain(|_, (_, since)| since.elapsed() < PATIENCE);
        if announced.len() >= MAX_ANNOUNCED {
            let message = format!("{MAX_ANNOUNCED} files are announced already");
            return Err(ApiError::overloaded(message, Duration::from_secs(60)));
        }
        announced.insert(token, (file, Instant::now()));
        Ok(())
    }

    /// Whether a path has the secret of an announced file.
    pub fn expects(&self, path: &str) -> bool {
        let Some(token) = path.strip_prefix(UPLOAD_PATH) else { return false };
        self.announced().get(token).is_some_and(|(_, since)| since.elapsed() < PATIENCE)
    }

    /// The announced file of a secret, which is good once.
    pub fn take(&self, token: &str) -> Result<NewFile> {
        let found = self.announced().remove(token).filter(|(_, since)| since.elapsed() < PATIENCE);
        let unknown = || ApiError::not_found("no file is expected here").with_code("upload_not_found");
        found.map(|(file, _)| file).ok_or_else(unknown)
    }
}

/// Where the bytes of a file come from.
pub(crate) enum Source<'a> {
    /// The current part of a form.
    Part(&'a mut Multipart),
    /// A whole body, and the longest wait for more of it.
    Body(Body, Duration),
}

impl Source<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Part(form) => form.chunk().await,
            Self::Body(body, patience) => next_frame(body, *patience).await,
        }
    }
}

/// Writes what the source gives, on a thread that may wait for the disk. Gives the upload back, unfinished.
pub(crate) async fn write_all(mut upload: Upload, mut source: Source<'_>) -> Result<Upload> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(MAX_PIECES);
    let writer = tokio::task::spawn_blocking(move || -> Result<Upload, BatchError> {
        while let Some(bytes) = receiver.blocking_recv() {
            upload.write(&bytes)?;
        }
        Ok(upload)
    });
    let read = async {
        while let Some(bytes) = source.next().await? {
            if sender.send(bytes).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let read = read.await;
    drop(sender);
    let written = writer.await.map_err(|error| {
        tracing::error!(%error, "writing a file failed");
        ApiError::internal("the file could not be written")
    })?;
    // If the writer ended first, it knows why.
    let upload = written.map_err(ApiError::from_batch)?;
    read.map(|()| upload)
}
