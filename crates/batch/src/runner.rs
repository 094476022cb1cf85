//! Files and jobs, and the threads that run them: what the endpoint talks to.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::archive::write_tar_gz;
use crate::config::{MAX_SUFFIX_CHARS, RunnerConfig, is_name_part};
use crate::error::{BatchError, Result};
use crate::files::{FilePurpose, Folders, NewFile, StoredFile, Upload, sync_folder};
use crate::fine_tuner::{FineTuner, ModelLimits, Refusal};
use crate::ids::IdSource;
use crate::job::{Checkpoint, Event, EventKind, EventLevel, Job, JobStatus, Page, StatusCounts};
use crate::spec::JobSpec;
use crate::store::{NewJob, Store};
use crate::worker::{Shared, is_below};

/// The database, in the folder.
pub(crate) const DATABASE_FILE: &str = "jobs.sqlite";
/// How much of a base model's name goes into an adapter's.
const MAX_BASE_CHARS: usize = 96;

/// Files and jobs of one folder. Calls block for as long as the disk does.
pub struct JobRunner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    batch_thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for JobRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobRunner").field("root", &self.shared.config.root).finish_non_exhaustive()
    }
}

impl JobRunner {
    /// Opens the folder, removes what broken uploads left, and queues the jobs again that were running when the last
    /// process ended. No job runs before [`JobRunner::start`].
    ///
    /// # Errors
    /// A setting is out of its range; another process has the folder or locks the database; the database is damaged or of
    /// a later version; the file system refuses.
    pub fn open(config: RunnerConfig, fine_tuner: Arc<dyn FineTuner>) -> Result<Self> {
        config.check()?;
        let root = &config.root;
        let io = |error: std::io::Error| BatchError::io(root, &error);
        fs::create_dir_all(root).map_err(io)?;
        // Whatever the process's working folder will be.
        let root = &root.canonicalize().map_err(io)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(root.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BatchError::InUse { path: root.clone() }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let folders = Folders::make(root)?;
        let store = Store::open(&root.join(DATABASE_FILE))?;
        folders.sweep(&store)?;
        for job in store.recover()? {
            tracing::warn!(job, "a job that did not end before the last shutdown is queued again");
        }
        let shared = Shared {
            config,
            store: Arc::new(store),
            folders,
            fine_tuner,
            ids: IdSource::new(),
            shutdown: Arc::new(AtomicBool::new(false)),
            batch_endpoint: Mutex::default(),
            running: Mutex::default(),
            signals: Mutex::new(0),
            wake: std::sync::Condvar::new(),
            _lock: lock,
        };
        Ok(Self { shared: Arc::new(shared), threads: Mutex::default(), batch_thread: Mutex::default() })
    }

    /// Publishes the adapters of finished jobs, then starts to run those that wait. An adapter that cannot be published
    /// is told of in the log and in its job's events.
    ///
    /// # Errors
    /// The store cannot be read, or no thread can be started.
    pub fn start(&self) -> Result<()> {
        let shared = &self.shared;
        for job in shared.store.succeeded_jobs()? {
            let dir = job.adapter_dir.as_deref().unwrap_or("");
            let result = match is_below(Path::new(dir)) {
                true => shared.fine_tuner.publish(&job, &shared.work_dir(&job.id).join(dir)),
                false => Err("its folder is unknown".to_owned()),
            };
            if let Err(reason) = result {
                tracing::error!(job = job.id, adapter = job.name, reason, "a finished adapter is not served");
                let message = format!("After a restart the adapter could not be loaded: {reason}");
                let (level, kind) = (EventLevel::Warn, EventKind::Warning);
                shared.store.add_event(&job.id, level, kind, &message, &Value::Null)?;
            }
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        while threads.len() < shared.config.concurrency {
            let name = format!("fine-tuning-{}", threads.len());
            threads.push(self.spawn(name, Shared::work)?);
        }
        Ok(())
    }

    /// Starts the thread of batches, if it does not run.
    pub(crate) fn start_batch_thread(&self) -> Result<()> {
        let mut thread = self.batch_thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            *thread = Some(self.spawn("batches".to_owned(), Shared::work_on_batches)?);
        }
        Ok(())
    }

    fn spawn(&self, name: String, work: fn(&Shared)) -> Result<JoinHandle<()>> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || work(&shared));
        thread.map_err(|error| BatchError::io(&self.shared.config.root, &error))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Asks running jobs and batches to stop, so that they go on after the next start. Does not wait.
    pub fn request_shutdown(&self) {
        self.shared.shutdown.store(true, Ordering::Release);
        self.shared.signal();
    }

    /// Asks running jobs and batches to stop and waits for them. `false` if they did not in time; they are queued again all the
    /// same, but may lose their last steps.
    pub fn shutdown(&self, limit: Duration) -> bool {
        self.request_shutdown();
        let deadline = Instant::now() + limit;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.extend(self.batch_thread.lock().unwrap_or_else(PoisonError::into_inner).take());
        while threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        threads.drain(..).for_each(|thread| drop(thread.join()));
        true
    }

    /// The settings.
    pub fn config(&self) -> &RunnerConfig {
        &self.shared.config
    }

    /// An id for a file that will arrive later.
    pub fn reserve_file_id(&self) -> String {
        self.shared.ids.next("file-")
    }

    /// A secret for whoever may send a file without a key.
    pub fn new_upload_token(&self) -> String {
        self.shared.ids.next("")
    }

    /// Starts to receive a file.
    ///
    /// # Errors
    /// There are too many files, or the disk refuses.
    pub fn begin_upload(&self, new: NewFile) -> Result<Upload> {
        if self.shared.is_shutting_down() {
            return Err(BatchError::ShuttingDown);
        }
        self.shared.begin(new, self.shared.file_room_bytes()?)
    }

    /// A file.
    ///
    /// # Errors
    /// It does not exist, or the store cannot be read.
    pub fn file(&self, id: &str) -> Result<StoredFile> {
        self.shared.store.file(id)
    }

    /// A page of files in the order of their creation, or against it, after the file `after`.
    ///
    /// # Errors
    /// `after` does not exist, or the store cannot be read.
    pub fn files(
        &self,
        purpose: Option<FilePurpose>,
        after: Option<&str>,
        newest_first: bool,
        limit: usize,
    ) -> Result<Page<StoredFile>> {
        self.shared.store.files(purpose, after, newest_first, limit)
    }

    /// A file, opened for reading; it can be read to its end even if it is deleted meanwhile.
    ///
    /// # Errors
    /// It does not exist or cannot be read.
    pub fn open_file(&self, id: &str) -> Result<(StoredFile, File)> {
        let stored = self.shared.store.file(id)?;
        let path = self.shared.folders.file(&stored.id);
        let file = File::open(&path).map_err(|error| BatchError::io(&path, &error))?;
        Ok((stored, file))
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// It does not exist, or a job that has not ended needs it.
    pub fn delete_file(&self, id: &str) -> Result<()> {
        self.shared.store.remove_file(id)?;
        // Without its row it is swept at the next start, if not now.
        let _ = fs::remove_file(self.shared.folders.file(id));
        Ok(())
    }

    /// What jobs over a model may ask for; `None` if it is not the base model.
    pub fn limits(&self, model: &str) -> Option<ModelLimits> {
        self.shared.fine_tuner.limits(model)
    }

    /// Queues a job.
    ///
    /// # Errors
    /// [`BatchError::Refused`] with the field at fault; the queue is full; the store cannot keep it.
    pub fn create_job(&self, spec: JobSpec) -> Result<Job> {
        let shared = &self.shared;
        if shared.is_shutting_down() {
            return Err(BatchError::ShuttingDown);
        }
        spec.check().map_err(BatchError::Refused)?;
        if let Some(suffix) = spec.suffix.as_ref().filter(|suffix| !is_name_part(suffix)) {
            let shown: String = suffix.chars().take(80).collect();
            let reason = format!(
                "is {shown:?}; it may have letters, digits, `.`, `_` and `-` only, at most {MAX_SUFFIX_CHARS}"
            );
            return Err(BatchError::Refused(Refusal::new("suffix", reason)));
        }
        let files = shared.job_files(&spec)?;
        let id = shared.ids.next("ft-");
        let name = adapter_name(&spec, &shared.config.organization, &id);
        let resolved = shared.fine_tuner.validate(&spec, &files, &name).map_err(BatchError::Refused)?;
        let limits = (shared.config.max_open_jobs, shared.config.max_jobs);
        let new = NewJob { id: &id, name: &name, spec: &spec, resolved: &resolved, limits };
        let job = shared.store.add_job(&new)?;
        shared.signal();
        Ok(job)
    }

    /// A job.
    ///
    /// # Errors
    /// It does not exist, or the store cannot be read.
    pub fn job(&self, id: &str) -> Result<Job> {
        self.shared.store.job(id)
    }

    /// A page of jobs, newest first, after the job `after`; with `metadata`, only those that carry all of it.
    ///
    /// # Errors
    /// `after` does not exist, or the store cannot be read.
    pub fn jobs(
        &self,
        after: Option<&str>,
        limit: usize,
        metadata: &[(String, String)],
    ) -> Result<Page<Job>> {
        self.shared.store.jobs(after, limit, metadata)
    }

    /// Cancels a job: one that waits has ended when this returns, one that runs ends soon. Asking twice is no error while
    /// it runs.
    ///
    /// # Errors
    /// It does not exist or has ended.
    pub fn cancel(&self, id: &str) -> Result<Job> {
        let job = self.shared.store.cancel(id)?;
        if let Some(flags) = self.shared.running().get(id) {
            flags.cancelled.store(true, Ordering::Release);
        }
        Ok(job)
    }

    /// Deletes a job that has ended, its folder, and its adapter.
    ///
    /// # Errors
    /// It does not exist or has not ended, or its adapter cannot be taken away.
    pub fn delete_job(&self, id: &str) -> Result<()> {
        let job = self.shared.store.job(id)?;
        if !job.status.has_ended() {
            let (status, action) = (job.status.name(), "deleting");
            return Err(BatchError::JobOpen { id: job.id, status, action });
        }
        if job.status == JobStatus::Succeeded {
            self.shared.fine_tuner.retract(&job).map_err(|reason| BatchError::Database { reason })?;
        }
        self.shared.store.remove_job(id)?;
        let _ = fs::remove_dir_all(self.shared.folders.job(id));
        Ok(())
    }

    /// A page of a job's events, newest first, after the event `after`.
    ///
    /// # Errors
    /// The job or `after` does not exist, or the store cannot be read.
    pub fn events(&self, job: &str, after: Option<&str>, limit: usize) -> Result<Page<Event>> {
        self.shared.store.events(job, after, limit)
    }

    /// The newest events of a job but for those of single steps, oldest first.
    ///
    /// # Errors
    /// The job does not exist, or the store cannot be read.
    pub fn milestones(&self, job: &str, limit: usize) -> Result<Vec<Event>> {
        self.shared.store.milestones(job, limit)
    }

    /// When each step was reported, in milliseconds since 1970, and [`crate::Metrics`] of it as JSON; in their order, at
    /// most the last `limit`.
    ///
    /// # Errors
    /// The job does not exist, or the store cannot be read.
    pub fn metrics(&self, job: &str, limit: usize) -> Result<Vec<(i64, Value)>> {
        self.shared.store.metrics(job, limit)
    }

    /// A page of a job's checkpoints, newest first, after the checkpoint `after`.
    ///
    /// # Errors
    /// The job or `after` does not exist, or the store cannot be read.
    pub fn checkpoints(&self, job: &str, after: Option<&str>, limit: usize) -> Result<Page<Checkpoint>> {
        self.shared.store.checkpoints(job, after, limit)
    }

    /// Number of jobs by status.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn status_counts(&self) -> Result<StatusCounts> {
        self.shared.store.status_counts()
    }

    /// The adapter of a job, or that of its checkpoint at a step, as an open `.tar.gz`.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn archive(&self, id: &str, step: Option<u64>) -> Result<File> {
        let job = self.shared.store.job(id)?;
        let none = |what: String| BatchError::NoArtifact { id: job.id.clone(), what };
        let (dir, name) = match step {
            None if job.status.has_ended() => {
                (job.adapter_dir.clone().ok_or_else(|| none("adapter".to_owned()))?, "final".to_owned())
            }
            None => {
                let (status, action) = (job.status.name(), "downloading");
                return Err(BatchError::JobOpen { id: job.id, status, action });
            }
            Some(step) => {
                let checkpoint = self.shared.store.checkpoint_at(id, step)?;
                let checkpoint = checkpoint.ok_or_else(|| none(format!("checkpoint at step {step}")))?;
                // A checkpoint may be written again, after a restart.
                (checkpoint.adapter_dir, format!("step-{step}-{}", checkpoint.created_at_ms))
            }
        };
        if !is_below(Path::new(&dir)) {
            return Err(none("adapter".to_owned()));
        }
        let source = self.shared.work_dir(id).join(dir);
        let archives = self.shared.folders.job(id).join("archives");
        let path = archives.join(format!("{name}.tar.gz"));
        if let Ok(file) = File::open(&path) {
            return Ok(file);
        }
        fs::create_dir_all(&archives).map_err(|error| BatchError::io(&archives, &error))?;
        let part = self.shared.folders.uploads.join(self.shared.ids.next("archive-"));
        let write = || -> std::io::Result<()> {
            let file = write_tar_gz(&source, File::create_new(&part)?)?;
            file.sync_all()?;
            fs::rename(&part, &path)
        };
        if let Err(error) = write() {
            let _ = fs::remove_file(&part);
            return Err(BatchError::io(&path, &error));
        }
        sync_folder(&archives)?;
        File::open(&path).map_err(|error| BatchError::io(&path, &error))
    }
}

impl Drop for JobRunner {
    fn drop(&mut self) {
        self.request_shutdown();
    }
}

/// `ft:BASE:ORGANIZATION:SUFFIX:ID`, as OpenAI names what it tunes; the suffix may be empty.
fn adapter_name(spec: &JobSpec, organization: &str, id: &str) -> String {
    let base: String = spec.model.chars().filter(|c| !c.is_control()).take(MAX_BASE_CHARS).collect();
    let short: String = id.trim_start_matches("ft-").chars().take(8).collect();
    format!("ft:{base}:{organization}:{}:{short}", spec.suffix.as_deref().unwrap_or(""))
}

#[cfg(all(test, feature = "simulation"))]
mod tests {
    use super::*;
    use crate::simulation::SimulatedFineTuner;

    #[test]
    fn a_job_cancelled_between_its_claim_and_its_run_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let trainer = Arc::new(SimulatedFineTuner::new("base", Duration::ZERO));
        let runner = JobRunner::open(RunnerConfig::new(folder.path()), trainer).unwrap();
        let (file_name, purpose) = ("a.jsonl".to_owned(), FilePurpose::FineTune);
        let mut upload = runner.begin_upload(NewFile { id: None, file_name, purpose, sha256: None }).unwrap();
        upload.write(b"{\"text\": \"a\"}\n").unwrap();
        let spec = JobSpec {
            api: crate::JobApi::FineTunes,
            model: "base".to_owned(),
            training_file: upload.finish().unwrap().id,
            validation_file: None,
            suffix: None,
            seed: None,
            hyperparameters: crate::Hyperparameters::default(),
            metadata: None,
        };
        let id = runner.create_job(spec).unwrap().id;
        let claimed = runner.shared.store.claim().unwrap().unwrap();
        assert!(runner.cancel(&id).unwrap().cancel_requested);
        runner.shared.run(claimed);
        let job = runner.job(&id).unwrap();
        assert_eq!((job.status, job.progress.steps_completed), (JobStatus::Cancelled, 0));
    }
}
