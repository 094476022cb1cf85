//! Jobs from the queue to their end: in turn, cancelled, failing, restarted.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::{Bench, spec};
use wardrobe_batch::{
    Auto, BatchError, BatchSize, EventKind, Hyperparameters, JobRunner, JobSpec, JobStatus, NewFile,
    RunnerConfig,
};

#[test]
fn a_job_runs_to_its_end_and_tells_of_it() {
    let bench = Bench::new();
    let (runner, log) = bench.start();
    let file = bench.upload(&runner, 8);
    let job = runner.create_job(spec(&file, "mine")).unwrap();
    assert_eq!((job.status, job.queue_position), (JobStatus::Queued, 0));
    assert!(job.name.starts_with("ft:base:wardrobe:mine:"), "{}", job.name);
    let job = bench.wait(&runner, &job.id);
    assert_eq!(job.status, JobStatus::Succeeded, "{:?}", job.error);
    assert_eq!((job.progress.steps_completed, job.progress.total_steps), (6, Some(6)));
    assert_eq!((job.progress.trained_tokens, job.progress.epochs_completed), (600, 3));
    assert!(job.finished_at_ms >= job.started_at_ms && job.started_at_ms.unwrap() >= job.created_at_ms);
    assert_eq!(*log.published.lock().unwrap(), [job.name.as_str()]);
    let kinds: Vec<_> = runner.milestones(&job.id, 100).unwrap().iter().map(|event| event.kind).collect();
    use EventKind::*;
    let expected = [
        JobPending,
        JobStart,
        TrainingStart,
        EpochComplete,
        CheckpointSave,
        EpochComplete,
        EpochComplete,
        CheckpointSave,
        TrainingComplete,
        JobComplete,
    ];
    assert_eq!(kinds, expected);
    let steps: Vec<_> =
        runner.metrics(&job.id, 4).unwrap().iter().map(|(_, step)| step["step"].clone()).collect();
    assert_eq!(steps, [3, 4, 5, 6], "the last ones");
    let (results, mut content) = runner.open_file(job.result_file.as_ref().unwrap()).unwrap();
    let text = std::io::read_to_string(&mut content).unwrap();
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(text.starts_with("step,train_loss,train_accuracy,"), "{text}");
    assert_eq!(results.size_bytes, text.len() as u64);
}

#[test]
fn two_jobs_run_in_turn_and_know_their_place() {
    let bench = Bench::new();
    let (runner, log) = bench.start();
    let file = bench.upload(&runner, 8);
    let jobs: Vec<_> = ["slow", "two", "three"]
        .map(|suffix| runner.create_job(spec(&file, suffix)).unwrap())
        .into_iter()
        .collect();
    bench.wait_for(&runner, &jobs[0].id, |job| job.status == JobStatus::Running);
    let places: Vec<_> = jobs[1..].iter().map(|job| runner.job(&job.id).unwrap().queue_position).collect();
    assert_eq!(places, [0, 1]);
    assert_eq!(runner.status_counts().unwrap().jobs, [2, 1, 0, 0, 0]);
    for job in &jobs {
        assert_eq!(bench.wait(&runner, &job.id).status, JobStatus::Succeeded);
    }
    let names: Vec<_> = jobs.iter().map(|job| job.name.clone()).collect();
    assert_eq!(*log.published.lock().unwrap(), names);
    assert_eq!(log.most_at_once.load(Ordering::SeqCst), 1);
}

#[test]
fn waiting_and_running_jobs_are_cancelled_once() {
    let bench = Bench::new();
    let (runner, log) = bench.start();
    let file = bench.upload(&runner, 8);
    let first = runner.create_job(spec(&file, "slow")).unwrap();
    let second = runner.create_job(spec(&file, "second")).unwrap();
    bench.wait_for(&runner, &first.id, |job| job.progress.steps_completed > 0);
    let cancelled = runner.cancel(&second.id).unwrap();
    assert_eq!(cancelled.status, JobStatus::Cancelled);
    assert!(cancelled.finished_at_ms.is_some() && cancelled.started_at_ms.is_none());
    assert!(matches!(runner.cancel(&second.id), Err(BatchError::JobEnded { status: "cancelled", .. })));

    let asked = runner.cancel(&first.id).unwrap();
    assert!(asked.cancel_requested || asked.status == JobStatus::Cancelled);
    // Twice is no error while it has not ended, and leaves one event.
    let _ = runner.cancel(&first.id);
    let ended = bench.wait(&runner, &first.id);
    assert_eq!(ended.status, JobStatus::Cancelled);
    assert!(!ended.cancel_requested && ended.progress.steps_completed < 6);
    let asked_for = runner.milestones(&first.id, 100).unwrap();
    assert_eq!(asked_for.iter().filter(|event| event.kind == EventKind::CancelRequested).count(), 1);
    assert!(log.published.lock().unwrap().is_empty());
    assert!(matches!(runner.cancel("ft-none"), Err(BatchError::UnknownJob { .. })));
}

#[test]
fn cancelling_at_any_moment_gives_one_end() {
    let bench = Bench::new();
    let (runner, _) = bench.start();
    let file = bench.upload(&runner, 4);
    for delay_us in (0..40).map(|round| round * 700) {
        let job = runner.create_job(spec(&file, "race")).unwrap();
        std::thread::sleep(Duration::from_micros(delay_us));
        let asked = runner.cancel(&job.id);
        let ended = bench.wait(&runner, &job.id);
        match ended.status {
            JobStatus::Cancelled => assert!(asked.is_ok()),
            JobStatus::Succeeded => {}
            status => panic!("{status:?} {:?}", ended.error),
        }
        let events = runner.milestones(&job.id, 100).unwrap();
        let ends = [EventKind::JobComplete, EventKind::JobStopped, EventKind::JobError];
        assert_eq!(events.iter().filter(|event| ends.contains(&event.kind)).count(), 1, "{events:?}");
        assert!(ends.contains(&events.last().unwrap().kind), "{events:?}");
    }
}

#[test]
fn failures_and_panics_end_the_job_and_nothing_else() {
    let bench = Bench::new();
    let (runner, _) = bench.start();
    let file = bench.upload(&runner, 8);
    for (suffix, code, user_error) in [
        ("user-error", "invalid_training_file", true),
        ("internal-error", "internal_error", false),
        ("panics", "internal_error", false),
    ] {
        let job = runner.create_job(spec(&file, suffix)).unwrap();
        let job = bench.wait(&runner, &job.id);
        let error = job.error.unwrap();
        assert_eq!(
            (job.status, error.code.as_str(), error.user_error),
            (JobStatus::Failed, code, user_error)
        );
    }
    let job = runner.create_job(spec(&file, "fine")).unwrap();
    assert_eq!(bench.wait(&runner, &job.id).status, JobStatus::Succeeded);
}

#[test]
fn a_job_that_ran_goes_on_after_a_restart_and_finished_ones_are_published() {
    let bench = Bench::new();
    let (runner, _) = bench.start();
    let file = bench.upload(&runner, 8);
    let done = runner.create_job(spec(&file, "done")).unwrap();
    bench.wait(&runner, &done.id);
    let running = runner.create_job(spec(&file, "slow")).unwrap();
    let waiting = runner.create_job(spec(&file, "waiting")).unwrap();
    bench.wait_for(&runner, &running.id, |job| job.progress.steps_completed >= 2);
    assert!(runner.shutdown(Duration::from_secs(10)));
    drop(runner);

    let (runner, log) = bench.start();
    assert_eq!(log.published.lock().unwrap()[0], done.name);
    let ended = bench.wait(&runner, &running.id);
    assert_eq!((ended.status, ended.num_runs), (JobStatus::Succeeded, 2));
    let events = runner.milestones(&running.id, 100).unwrap();
    assert!(events.iter().any(|event| event.kind == EventKind::JobRestarted), "{events:?}");
    let steps: Vec<_> = runner.metrics(&running.id, 100).unwrap();
    assert_eq!(steps.len(), 6, "every step once");
    assert_eq!(bench.wait(&runner, &waiting.id).status, JobStatus::Succeeded);
    let all = runner.events(&running.id, None, 1000).unwrap().items;
    assert!(all.iter().filter(|event| event.kind == EventKind::Metrics).count() <= 7, "it began anew");
}

#[test]
fn jobs_that_cannot_run_are_refused_with_the_field() {
    let bench = Bench::new();
    let (runner, _) = bench.start();
    let file = bench.upload(&runner, 8);
    let results = {
        let job = runner.create_job(spec(&file, "x")).unwrap();
        bench.wait(&runner, &job.id).result_file.unwrap()
    };
    let good = spec(&file, "x");
    let set = |change: &dyn Fn(&mut Hyperparameters)| {
        let mut spec = good.clone();
        change(&mut spec.hyperparameters);
        spec
    };
    let notes: BTreeMap<_, _> = (0..17).map(|idx| (idx.to_string(), String::new())).collect();
    for (spec, field) in [
        (JobSpec { model: "other".into(), ..good.clone() }, "model"),
        (JobSpec { training_file: "file-none".into(), ..good.clone() }, "training_file"),
        (JobSpec { training_file: results.clone(), ..good.clone() }, "training_file"),
        (JobSpec { validation_file: Some(results), ..good.clone() }, "validation_file"),
        (JobSpec { suffix: Some("a:b".into()), ..good.clone() }, "suffix"),
        (JobSpec { suffix: Some("x".repeat(65)), ..good.clone() }, "suffix"),
        (JobSpec { metadata: Some(notes), ..good.clone() }, "metadata"),
        (set(&|h| h.n_epochs = Auto::Value(0)), "n_epochs"),
        (set(&|h| h.batch_size = Auto::Value(BatchSize::Examples(0))), "batch_size"),
        (set(&|h| h.learning_rate = Auto::Value(f64::NAN)), "learning_rate"),
        (set(&|h| h.learning_rate = Auto::Value(-1.0)), "learning_rate"),
        (set(&|h| h.lora_dropout = Auto::Value(1.0)), "lora_dropout"),
        (set(&|h| h.lora_rank = Auto::Value(1000)), "lora_rank"),
        (set(&|h| h.warmup_ratio = Auto::Value(2.0)), "warmup_ratio"),
    ] {
        match runner.create_job(spec) {
            Err(BatchError::Refused(refusal)) => assert_eq!(refusal.field, field, "{}", refusal.reason),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn deleting_takes_what_nobody_needs() {
    let bench = Bench::new();
    let (runner, log) = bench.start();
    let file = bench.upload(&runner, 8);
    let job = runner.create_job(spec(&file, "slow")).unwrap();
    assert!(matches!(runner.delete_file(&file), Err(BatchError::FileInUse { job: by, .. }) if by == job.id));
    assert!(matches!(runner.delete_job(&job.id), Err(BatchError::JobOpen { .. })));
    assert!(matches!(runner.archive(&job.id, None), Err(BatchError::JobOpen { .. })));
    bench.wait(&runner, &job.id);
    runner.delete_file(&file).unwrap();
    assert!(matches!(runner.delete_file(&file), Err(BatchError::UnknownFile { .. })));
    runner.delete_job(&job.id).unwrap();
    assert_eq!(*log.retracted.lock().unwrap(), [job.name]);
    assert!(!bench.root().join("jobs").join(&job.id).exists());
    assert!(matches!(runner.events(&job.id, None, 1), Err(BatchError::UnknownJob { .. })));
}

#[test]
fn pages_cover_everything_once() {
    let bench = Bench::new();
    let (runner, _) = bench.start();
    let file = bench.upload(&runner, 8);
    let mut ids: Vec<_> = (0..5).map(|_| runner.create_job(spec(&file, "page")).unwrap().id).collect();
    ids.iter().for_each(|id| drop(bench.wait(&runner, id)));
    ids.reverse();
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = runner.jobs(after.as_deref(), 2, &[]).unwrap();
        seen.extend(page.items.iter().map(|job| job.id.clone()));
        after = seen.last().cloned();
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seen, ids);
    let (mut events, mut after) = (Vec::new(), None::<String>);
    loop {
        let page = runner.events(&ids[0], after.as_deref(), 3).unwrap();
        events.extend(page.items);
        after = events.last().map(|event| event.id.clone());
        if !page.has_more {
            break;
        }
    }
    assert_eq!(events, runner.events(&ids[0], None, 1000).unwrap().items);
    // An event of another job is no place in this one's list.
    let foreign = runner.events(&ids[1], None, 1).unwrap().items[0].id.clone();
    assert!(matches!(runner.events(&ids[0], Some(&foreign), 3), Err(BatchError::UnknownCursor { .. })));
    let checkpoints = runner.checkpoints(&ids[0], None, 10).unwrap();
    assert_eq!(checkpoints.items.iter().map(|c| c.step).collect::<Vec<_>>(), [6, 3]);
    let rest = runner.checkpoints(&ids[0], Some(&checkpoints.items[0].id), 10).unwrap();
    assert_eq!(rest.items, checkpoints.items[1..]);
}

#[test]
fn the_queue_has_an_end() {
    let bench = Bench::new();
    let config = RunnerConfig { max_open_jobs: 2, max_jobs: 3, ..RunnerConfig::new(bench.root()) };
    let runner = JobRunner::open(config, Arc::new(support::trainer(&support::Log::default()))).unwrap();
    let file = bench.upload(&runner, 1);
    for _ in 0..2 {
        runner.create_job(spec(&file, "x")).unwrap();
    }
    assert!(matches!(runner.create_job(spec(&file, "x")), Err(BatchError::StoreFull { limit: 2, .. })));
    let first = runner.jobs(None, 10, &[]).unwrap().items[1].id.clone();
    runner.cancel(&first).unwrap();
    runner.create_job(spec(&file, "x")).unwrap();
    runner.cancel(&runner.jobs(None, 1, &[]).unwrap().items[0].id).unwrap();
    assert!(matches!(runner.create_job(spec(&file, "x")), Err(BatchError::StoreFull { limit: 3, .. })));
    runner.delete_job(&first).unwrap();
    runner.create_job(spec(&file, "x")).unwrap();
}

#[test]
fn file_limits_hold() {
    let bench = Bench::new();
    let config = RunnerConfig {
        max_file_bytes: 100,
        max_total_file_bytes: 150,
        max_files: 3,
        ..RunnerConfig::new(bench.root())
    };
    let runner = JobRunner::open(config, Arc::new(support::trainer(&support::Log::default()))).unwrap();
    let new = || NewFile {
        id: None,
        file_name: "a.bin".into(),
        purpose: wardrobe_batch::FilePurpose::UserData,
        sha256: None,
    };
    let put = |bytes: usize| {
        let mut upload = runner.begin_upload(new())?;
        upload.write(&vec![7; bytes])?;
        upload.finish()
    };
    assert!(matches!(put(101), Err(BatchError::FileTooLarge { limit_bytes: 100 })));
    put(100).unwrap();
    assert!(matches!(put(51), Err(BatchError::FileTooLarge { limit_bytes: 50 })));
    put(25).unwrap();
    put(24).unwrap();
    assert!(matches!(put(1), Err(BatchError::StoreFull { limit: 3, .. })));
    assert_eq!(std::fs::read_dir(bench.root().join("uploads")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(bench.root().join("files")).unwrap().count(), 3);
}
