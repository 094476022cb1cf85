//! The threads that run jobs.
//!
//! Invariants: a job that a thread has claimed gets exactly one end written, or stays `running` in the store and is queued
//! again at the next start; a trainer that panics fails its job and nothing else.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::batches::BatchEndpoint;
use crate::config::RunnerConfig;
use crate::control::{JobControl, Stop, StopFlags};
use crate::error::{BatchError, Result};
use crate::files::{FilePurpose, Folders, NewFile, StoredFile, Upload};
use crate::fine_tuner::{FineTuner, Finished, JobFailure, JobFile, JobFiles};
use crate::ids::IdSource;
use crate::job::{Job, JobError};
use crate::results;
use crate::spec::JobSpec;
use crate::store::{End, Store};

/// How long a thread waits before it asks a store that failed again.
pub(crate) const RETRY: Duration = Duration::from_secs(1);
/// Steps in the file of a job's metrics.
const MAX_RESULT_STEPS: usize = 100_000;

/// What the runner and its threads share.
pub(crate) struct Shared {
    pub config: RunnerConfig,
    pub store: Arc<Store>,
    pub folders: Folders,
    pub fine_tuner: Arc<dyn FineTuner>,
    pub ids: IdSource,
    pub shutdown: Arc<AtomicBool>,
    /// What answers the requests of batches, once it is known.
    pub batch_endpoint: Mutex<Option<Arc<dyn BatchEndpoint>>>,
    /// Jobs and batches that run here.
    pub running: Mutex<HashMap<String, Arc<StopFlags>>>,
    /// How often there was reason to look into the queue.
    pub signals: Mutex<u64>,
    pub wake: Condvar,
    /// Held for as long as this process has the folder.
    pub _lock: fs::File,
}

impl Shared {
    /// Wakes the threads: there is a job, or an end.
    pub fn signal(&self) {
        *self.signals.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.wake.notify_all();
    }

    /// What was signalled so far.
    pub fn seen(&self) -> u64 {
        *self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_shutting_down(&self) -> bool {
        self.shutdown.load(Ordering::Acquire)
    }

    pub fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<StopFlags>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of a spec, with their places.
    pub fn job_files(&self, spec: &JobSpec) -> Result<JobFiles> {
        let (training, validation) = self.store.files_of(spec)?;
        let place = |file: StoredFile| -> Result<JobFile> {
            let check = file.check.ok_or_else(|| BatchError::UnknownFile { id: file.id.clone() })?;
            let path = self.folders.file(&file.id);
            Ok(JobFile { path, id: file.id, file_name: file.file_name, size_bytes: file.size_bytes, check })
        };
        Ok(JobFiles { training: place(training)?, validation: validation.map(place).transpose()? })
    }

    /// The size that one more file may have.
    pub fn file_room_bytes(&self) -> Result<u64> {
        let config = &self.config;
        let (count, bytes) = self.store.files_total()?;
        if count >= config.max_files {
            return Err(BatchError::StoreFull { what: "the number of files", limit: config.max_files });
        }
        if bytes >= config.max_total_file_bytes {
            let what = "the size of all files in bytes";
            return Err(BatchError::StoreFull { what, limit: config.max_total_file_bytes });
        }
        Ok(config.max_file_bytes.min(config.max_total_file_bytes - bytes))
    }

    /// Starts to write a file of the runner's own or a client's.
    pub fn begin(&self, new: NewFile, limit_bytes: u64) -> Result<Upload> {
        let id = new.id.clone().unwrap_or_else(|| self.ids.next("file-"));
        let path = self.folders.uploads.join(&id);
        let file = fs::File::create_new(&path).map_err(|error| BatchError::io(&path, &error))?;
        Ok(Upload {
            store: self.store.clone(),
            fine_tuner: self.fine_tuner.clone(),
            folders: self.folders.clone(),
            id,
            new,
            limit_bytes,
            path,
            file,
            size_bytes: 0,
            hash: sha2::Digest::new(),
            finished: false,
        })
    }

    /// A thread's life: jobs until the end.
    pub fn work(&self) {
        loop {
            let seen = self.seen();
            if self.is_shutting_down() {
                return;
            }
            match self.store.claim() {
                Ok(Some(job)) => self.run(job),
                Ok(None) => self.wait(seen, None),
                Err(error) => {
                    tracing::error!(%error, "the queue of jobs could not be read");
                    self.wait(seen, Some(RETRY));
                }
            }
        }
    }

    /// Waits until something was signalled after `seen`, or for `limit`.
    pub fn wait(&self, seen: u64, limit: Option<Duration>) {
        let signals = self.signals.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing_new = |signals: &mut u64| *signals == seen && !self.is_shutting_down();
        let limit = limit.unwrap_or(Duration::from_secs(3600));
        drop(self.wake.wait_timeout_while(signals, limit, nothing_new));
    }

    pub(crate) fn run(&self, job: Job) {
        let span = tracing::info_span!("fine_tuning_job", job = job.id, adapter = job.name);
        let _entered = span.entered();
        let flags =
            Arc::new(StopFlags { cancelled: AtomicBool::new(false), shutdown: self.shutdown.clone() });
        self.running().insert(job.id.clone(), flags.clone());
        // Cancelled after it was claimed and before it stood among the running ones.
        if self.store.job(&job.id).is_ok_and(|job| job.cancel_requested) {
            flags.cancelled.store(true, Ordering::Release);
        }
        tracing::info!(run = job.num_runs, "a job runs");
        let control = JobControl { store: self.store.clone(), job_id: job.id.clone(), flags };
        let outcome = match control.stop() {
            Some(_) => Err(JobFailure::Stopped),
            None => self.train(&job, &control),
        };
        let end = self.settle(&job, &control, outcome);
        self.write_end(&job, &end);
        self.running().remove(&job.id);
    }

    fn train(&self, job: &Job, control: &JobControl) -> Result<Finished, JobFailure> {
        let files = self.job_files(&job.spec).map_err(|error| match error {
            BatchError::Refused(refusal) => JobFailure::User {
                code: "invalid_file",
                message: format!("`{}` {}", refusal.field, refusal.reason),
                param: Some(refusal.field),
            },
            error => internal("the job's files could not be read", &error),
        })?;
        let dir = self.work_dir(&job.id);
        fs::create_dir_all(&dir).map_err(|error| internal("the job's folder could not be made", &error))?;
        let run = || self.fine_tuner.run(job, &files, &dir, control);
        let finished = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            tracing::error!(panic = text, "the trainer panicked");
            Err(JobFailure::Internal { message: "the trainer failed unexpectedly".to_owned() })
        })?;
        if !is_below(&finished.adapter_dir) || !dir.join(&finished.adapter_dir).is_dir() {
            tracing::error!(dir = %finished.adapter_dir.display(), "the trainer's adapter is not in its folder");
            return Err(JobFailure::Internal { message: "the trainer left no adapter".to_owned() });
        }
        Ok(finished)
    }

    /// Makes an end of what the trainer said.
    fn settle(&self, job: &Job, control: &JobControl, outcome: Result<Finished, JobFailure>) -> Ending {
        let failed = |code: &str, message: String, param: Option<String>, user_error: bool| {
            Ending::Failed(JobError { code: code.to_owned(), message, param, user_error })
        };
        match (outcome, control.stop()) {
            (Ok(finished), _) => Ending::Succeeded { results: self.write_results(job), finished },
            (Err(JobFailure::User { code, message, param }), _) => failed(code, message, param, true),
            (Err(JobFailure::Stopped), Some(Stop::Cancelled)) => Ending::Cancelled,
            // What else fails while the process goes down may fail because of that.
            (Err(_), Some(Stop::Shutdown)) => Ending::Requeued,
            (Err(JobFailure::Internal { message }), _) => failed("internal_error", message, None, false),
            (Err(JobFailure::Stopped), None) => {
                failed("internal_error", "the trainer stopped without a reason".to_owned(), None, false)
            }
        }
    }

    /// Writes the metrics as a file. A job without one is as good.
    fn write_results(&self, job: &Job) -> Option<StoredFile> {
        let write = || -> Result<StoredFile> {
            let text = results::csv(&self.store.metrics(&job.id, MAX_RESULT_STEPS)?);
            let file_name = format!("{}-metrics.csv", job.id);
            let purpose = FilePurpose::FineTuneResults;
            let mut upload = self.begin(NewFile { id: None, file_name, purpose, sha256: None }, u64::MAX)?;
            upload.write(text.as_bytes())?;
            upload.place()
        };
        write().inspect_err(|error| tracing::error!(%error, "a job's metrics could not be written")).ok()
    }

    /// Writes the end, again and again if the store refuses: nobody else will.
    fn write_end(&self, job: &Job, ending: &Ending) {
        let adapter_dir;
        let end = match ending {
            Ending::Succeeded { finished, results } => {
                adapter_dir = finished.adapter_dir.to_string_lossy();
                let trained_tokens = finished.trained_tokens;
                End::Succeeded { adapter_dir: &adapter_dir, trained_tokens, results: results.as_ref() }
            }
            Ending::Failed(error) => End::Failed(error),
            Ending::Cancelled => End::Cancelled,
            Ending::Requeued => End::Requeued,
        };
        while let Err(error) = self.store.finish(&job.id, &end) {
            tracing::error!(%error, "the end of a job could not be written");
            if self.is_shutting_down() {
                return;
            }
            std::thread::sleep(RETRY);
        }
        tracing::info!(end = ending.name(), "a job ended");
    }

    /// The folder that a job's trainer works in.
    pub fn work_dir(&self, id: &str) -> std::path::PathBuf {
        work_dir(&self.folders, id)
    }
}

/// The folder that a job's trainer works in.
pub(crate) fn work_dir(folders: &Folders, id: &str) -> std::path::PathBuf {
    folders.job(id).join("work")
}

/// [`End`], with what it owns.
enum Ending {
    Succeeded { finished: Finished, results: Option<StoredFile> },
    Failed(JobError),
    Cancelled,
    Requeued,
}

impl Ending {
    fn name(&self) -> &'static str {
        match self {
            Self::Succeeded { .. } => "succeeded",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
            Self::Requeued => "requeued",
        }
    }
}

fn internal(message: &str, error: &dyn std::fmt::Display) -> JobFailure {
    tracing::error!(%error, "{message}");
    JobFailure::Internal { message: message.to_owned() }
}

/// Whether a path stays below the folder that it is relative to.
pub(crate) fn is_below(path: &Path) -> bool {
    let mut parts = path.components();
    parts.clone().next().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}
