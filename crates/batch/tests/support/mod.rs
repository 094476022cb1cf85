//! A folder, a trainer that computes nothing, and what it was asked to do.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wardrobe_batch::simulation::SimulatedFineTuner;
use wardrobe_batch::{
    Auto, FilePurpose, Hyperparameters, Job, JobApi, JobRunner, JobSpec, NewFile, RunnerConfig,
};

pub const STEP: Duration = Duration::from_millis(2);

/// What the trainer's hooks saw.
#[derive(Clone, Default)]
pub struct Log {
    pub published: Arc<Mutex<Vec<String>>>,
    pub retracted: Arc<Mutex<Vec<String>>>,
    at_once: Arc<AtomicUsize>,
    pub most_at_once: Arc<AtomicUsize>,
}

pub fn trainer(log: &Log) -> SimulatedFineTuner {
    let (to_publish, to_retract) = (log.clone(), log.clone());
    SimulatedFineTuner {
        publish: Box::new(move |job, dir| {
            assert!(dir.join("letter").is_file());
            let now = to_publish.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            to_publish.most_at_once.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            to_publish.published.lock().unwrap().push(job.name.clone());
            to_publish.at_once.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }),
        retract: Box::new(move |job| {
            to_retract.retracted.lock().unwrap().push(job.name.clone());
            Ok(())
        }),
        ..SimulatedFineTuner::new("base", STEP)
    }
}

/// Two checkpoints, three epochs of batches of four.
pub fn spec(file: &str, suffix: &str) -> JobSpec {
    let hyperparameters = Hyperparameters {
        n_epochs: Auto::Value(3),
        n_checkpoints: Auto::Value(2),
        ..Hyperparameters::default()
    };
    JobSpec {
        api: JobApi::FineTuningJobs,
        model: "base".to_owned(),
        training_file: file.to_owned(),
        validation_file: None,
        suffix: Some(suffix.to_owned()),
        seed: Some(7),
        hyperparameters,
        metadata: None,
    }
}

pub fn records(number: usize) -> String {
    (0..number).map(|idx| format!("{{\"prompt\": \"p{idx}\", \"completion\": \"c{idx}\"}}\n")).collect()
}

/// Uploads so many records; gives the id.
pub fn upload(runner: &JobRunner, number: usize) -> String {
    let new = NewFile {
        id: None,
        file_name: "train.jsonl".to_owned(),
        purpose: FilePurpose::FineTune,
        sha256: None,
    };
    let mut upload = runner.begin_upload(new).unwrap();
    upload.write(records(number).as_bytes()).unwrap();
    upload.finish().unwrap().id
}

pub struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("jobs")
    }

    pub fn start(&self) -> (JobRunner, Log) {
        start(&self.root())
    }

    pub fn upload(&self, runner: &JobRunner, number: usize) -> String {
        upload(runner, number)
    }

    /// Waits for a job's end.
    pub fn wait(&self, runner: &JobRunner, id: &str) -> Job {
        self.wait_for(runner, id, |job| job.status.has_ended())
    }

    pub fn wait_for(&self, runner: &JobRunner, id: &str, what: impl Fn(&Job) -> bool) -> Job {
        wait_for(runner, id, what)
    }
}

pub fn start(root: &Path) -> (JobRunner, Log) {
    let log = Log::default();
    let runner = JobRunner::open(RunnerConfig::new(root), Arc::new(trainer(&log))).unwrap();
    runner.start().unwrap();
    (runner, log)
}

pub fn wait_for(runner: &JobRunner, id: &str, what: impl Fn(&Job) -> bool) -> Job {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let job = runner.job(id).unwrap();
        if what(&job) {
            return job;
        }
        assert!(Instant::now() < deadline, "{job:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
