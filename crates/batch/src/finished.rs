//! The adapter of a job that has ended, for whoever takes it out of a job folder that another process may have open.
//!
//! Nothing is changed, also not the database's version, and no lock is taken.

use std::path::{Path, PathBuf};

use crate::error::{BatchError, Result};
use crate::files::Folders;
use crate::job::{Job, JobStatus};
use crate::runner::DATABASE_FILE;
use crate::store::Store;
use crate::worker::{is_below, work_dir};

/// A job that has succeeded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FinishedJob {
    /// The job.
    pub job: Job,
    /// The folder of its adapter.
    pub adapter_dir: PathBuf,
}

impl FinishedJob {
    /// The job `id` of the job folder `root`. The job's adapter may be asked for by its own name too.
    ///
    /// # Errors
    /// There is no such job, it has not ended or has ended without an adapter, its adapter's folder is gone, or `root` is
    /// no job folder that this version can read.
    pub fn find(root: &Path, id: &str) -> Result<Self> {
        let root = &root.canonicalize().map_err(|error| BatchError::io(root, &error))?;
        let store = Store::open_to_read(&root.join(DATABASE_FILE))?;
        let job = match store.job(id) {
            Err(BatchError::UnknownJob { .. }) => {
                let named = store.succeeded_jobs()?.into_iter().find(|job| job.name == id);
                named.ok_or_else(|| BatchError::UnknownJob { id: id.to_owned() })?
            }
            found => found?,
        };
        if !job.status.has_ended() {
            let (status, action) = (job.status.name(), "taking its adapter");
            return Err(BatchError::JobOpen { id: job.id, status, action });
        }
        let none = |what: String| BatchError::NoArtifact { id: job.id.clone(), what };
        let dir = match &job.adapter_dir {
            Some(dir) if job.status == JobStatus::Succeeded && is_below(Path::new(dir)) => dir,
            _ => return Err(none(format!("adapter: it is {}", job.status.name()))),
        };
        let adapter_dir = work_dir(&Folders::below(root), &job.id).join(dir);
        if !adapter_dir.is_dir() {
            return Err(none(format!("adapter any more: {} is gone", adapter_dir.display())));
        }
        Ok(Self { job, adapter_dir })
    }
}

#[cfg(all(test, feature = "simulation"))]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::simulation::SimulatedFineTuner;
    use crate::{FilePurpose, Hyperparameters, JobApi, JobRunner, JobSpec, NewFile, RunnerConfig};

    fn runner(root: &Path) -> JobRunner {
        let trainer = Arc::new(SimulatedFineTuner::new("base", Duration::ZERO));
        JobRunner::open(RunnerConfig::new(root), trainer).unwrap()
    }

    fn job(runner: &JobRunner) -> String {
        let (file_name, purpose) = ("a.jsonl".to_owned(), FilePurpose::FineTune);
        let mut upload = runner.begin_upload(NewFile { id: None, file_name, purpose, sha256: None }).unwrap();
        upload.write(b"{\"text\": \"a\"}\n").unwrap();
        let spec = JobSpec {
            api: JobApi::FineTunes,
            model: "base".to_owned(),
            training_file: upload.finish().unwrap().id,
            validation_file: None,
            suffix: None,
            seed: None,
            hyperparameters: Hyperparameters::default(),
            metadata: None,
        };
        runner.create_job(spec).unwrap().id
    }

    #[test]
    fn an_adapter_is_found_while_the_folder_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let runner = runner(folder.path());
        let id = job(&runner);
        let error = FinishedJob::find(folder.path(), &id).unwrap_err();
        assert!(matches!(error, BatchError::JobOpen { .. }), "{error}");
        runner.start().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !runner.job(&id).unwrap().status.has_ended() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        let found = FinishedJob::find(folder.path(), &id).unwrap();
        assert!(found.adapter_dir.is_dir() && found.job.id == id, "{found:?}");
        let by_name = FinishedJob::find(folder.path(), &found.job.name).unwrap();
        assert_eq!(by_name.adapter_dir, found.adapter_dir);
        std::fs::remove_dir_all(&found.adapter_dir).unwrap();
        let error = FinishedJob::find(folder.path(), &id).unwrap_err();
        assert!(error.to_string().contains("is gone"), "{error}");
    }

    #[test]
    fn a_job_without_an_adapter_and_a_folder_without_jobs_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = FinishedJob::find(folder.path(), "ft-1").unwrap_err();
        assert!(error.to_string().contains(DATABASE_FILE), "{error}");
        assert!(FinishedJob::find(&folder.path().join("none"), "ft-1").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was made");
        let runner = runner(folder.path());
        let id = job(&runner);
        runner.cancel(&id).unwrap();
        for (id, said) in [(id.as_str(), "it is cancelled"), ("ft-1", "no fine-tuning job \"ft-1\"")] {
            let error = FinishedJob::find(folder.path(), id).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        drop(runner);
        std::fs::write(folder.path().join(DATABASE_FILE), b"not a database, but some other text").unwrap();
        let error = FinishedJob::find(folder.path(), &id).unwrap_err();
        assert!(matches!(error, BatchError::Corrupt { .. }), "{error}");
    }
}
