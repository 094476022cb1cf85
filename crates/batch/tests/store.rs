//! The folder: locked, damaged, of a later version, full; and processes that are killed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use support::{Bench, records, spec, start, trainer, upload, wait_for};
use wardrobe_batch::{BatchError, EventKind, FilePurpose, JobRunner, JobStatus, NewFile, RunnerConfig};

fn open(root: &Path) -> Result<JobRunner, BatchError> {
    JobRunner::open(RunnerConfig::new(root), Arc::new(trainer(&support::Log::default())))
}

#[test]
fn a_folder_has_one_process() {
    let bench = Bench::new();
    let (runner, _) = bench.start();
    assert!(matches!(open(&bench.root()), Err(BatchError::InUse { .. })));
    assert!(runner.shutdown(Duration::from_secs(5)));
    drop(runner);
    open(&bench.root()).unwrap();
}

#[test]
fn a_locked_damaged_foreign_or_newer_database_is_named_at_start() {
    let bench = Bench::new();
    drop(open(&bench.root()).unwrap());
    let path = bench.root().join("jobs.sqlite");
    {
        let other = Connection::open(&path).unwrap();
        other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE;").unwrap();
        assert!(matches!(open(&bench.root()), Err(BatchError::Locked { .. })));
    }
    drop(open(&bench.root()).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(open(&bench.root()), Err(BatchError::TooNew { found: 99, known: 2, .. })));
    fs::write(&path, "no database ".repeat(1000)).unwrap();
    let error = open(&bench.root()).unwrap_err();
    assert!(matches!(&error, BatchError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("jobs.sqlite"), "{error}");
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE other (a)").unwrap();
    assert!(matches!(open(&bench.root()), Err(BatchError::Corrupt { .. })));
}

#[test]
fn a_page_that_was_overwritten_is_found_at_start() {
    let bench = Bench::new();
    {
        let runner = open(&bench.root()).unwrap();
        for _ in 0..20 {
            upload(&runner, 3);
        }
    }
    let path = bench.root().join("jobs.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    assert!(bytes.len() > 3 * 4096);
    bytes[4096..].iter_mut().for_each(|byte| *byte = 0xa5);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(open(&bench.root()), Err(BatchError::Corrupt { .. })));
}

#[test]
fn uploads_are_checked_and_leave_nothing_when_they_fail() {
    let bench = Bench::new();
    let runner = open(&bench.root()).unwrap();
    let new = |sha256: Option<&str>| NewFile {
        id: None,
        file_name: "../../escape.jsonl".to_owned(),
        purpose: FilePurpose::FineTune,
        sha256: sha256.map(str::to_owned),
    };
    let put = |sha256: Option<&str>, text: &str| {
        let mut upload = runner.begin_upload(new(sha256)).unwrap();
        upload.write(text.as_bytes()).unwrap();
        upload.finish()
    };
    let text = "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": 7}\nnonsense\n";
    let Err(BatchError::BadFile(problems)) = put(None, text) else { panic!("it was taken") };
    assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [Some(2), Some(3)]);
    assert!(matches!(put(None, ""), Err(BatchError::BadFile(_))));
    assert!(matches!(put(Some(&"0".repeat(64)), &records(1)), Err(BatchError::Checksum { .. })));
    drop(runner.begin_upload(new(None)).unwrap());
    for folder in ["uploads", "files"] {
        assert_eq!(fs::read_dir(bench.root().join(folder)).unwrap().count(), 0, "{folder}");
    }
    // `printf 'abc' | sha256sum`, so that the digest is not ours.
    let abc = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
    let mut upload =
        runner.begin_upload(NewFile { purpose: FilePurpose::UserData, ..new(Some(abc)) }).unwrap();
    upload.write(b"a").unwrap();
    upload.write(b"bc").unwrap();
    let stored = upload.finish().unwrap();
    assert_eq!((stored.file_name.as_str(), stored.size_bytes), ("escape.jsonl", 3));
    assert_eq!(fs::read(bench.root().join("files").join(&stored.id)).unwrap(), b"abc");
}

/// A file system of 512 KiB, unmounted at the end.
struct SmallDisk<'a>(&'a Path);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing_half_written() {
    let bench = Bench::new();
    let root = bench.root();
    fs::create_dir_all(&root).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(&root).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED a_full_disk_is_named_and_leaves_nothing_half_written: mounting a tmpfs needs root"
        );
        return;
    }
    let _disk = SmallDisk(&root);
    // With hardly any room the database does not open, whichever of its files finds none.
    let filler = root.join("filler");
    for room in [0, 4096, 8192, 16384] {
        fs::write(&filler, vec![1; (512 << 10) - room]).unwrap();
        let error = open(&root).unwrap_err();
        assert!(matches!(error, BatchError::DiskFull { .. }), "{room}: {error:?}");
        for entry in fs::read_dir(&root).unwrap() {
            let path = entry.unwrap().path();
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
    let runner = open(&root).unwrap();
    let new = NewFile { id: None, file_name: "a".to_owned(), purpose: FilePurpose::UserData, sha256: None };
    let mut big = runner.begin_upload(new).unwrap();
    let error = loop {
        if let Err(error) = big.write(&[1; 10_000]) {
            break error;
        }
    };
    assert!(matches!(error, BatchError::DiskFull { .. }), "{error:?}");
    drop(big);
    // With room again, all works.
    let file = upload(&runner, 10);
    runner.create_job(spec(&file, "x")).unwrap();
}

/// The body of the processes below: jobs in the folder that the parent names, until it is killed.
#[test]
fn child() {
    let Ok(root) = std::env::var("WARDROBE_TEST_JOBS") else { return };
    let (runner, _) = start(Path::new(&root));
    for round in 0.. {
        let file = upload(&runner, 40);
        let job = runner.create_job(spec(&file, &format!("round-{round}"))).unwrap();
        wait_for(&runner, &job.id, |job| job.status.has_ended());
        if round % 3 == 0 {
            runner.delete_file(&file).unwrap();
        }
    }
}

fn spawn(root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("WARDROBE_TEST_JOBS", root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A process is killed at many moments. After each, the folder opens, holds whole files only, and no event is lost.
#[test]
fn a_process_killed_at_any_moment_loses_nothing() {
    let bench = Bench::new();
    let root = bench.root();
    let mut seen_events = 0;
    for delay_ms in (40..).step_by(37).take(12) {
        let mut child = spawn(&root);
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        let runner = open(&root).unwrap();
        let files = runner.files(None, None, true, 10_000).unwrap().items;
        for file in &files {
            let (_, content) = runner.open_file(&file.id).unwrap();
            let text = std::io::read_to_string(content).unwrap();
            if file.purpose == FilePurpose::FineTune {
                assert_eq!(text, records(40));
            }
        }
        assert_eq!(fs::read_dir(root.join("files")).unwrap().count(), files.len());
        assert_eq!(fs::read_dir(root.join("uploads")).unwrap().count(), 0);
        let mut num_events = 0;
        for job in runner.jobs(None, 10_000, &[]).unwrap().items {
            assert!(matches!(job.status, JobStatus::Queued | JobStatus::Succeeded), "{job:?}");
            let events = runner.events(&job.id, None, 10_000).unwrap().items;
            num_events += events.len();
            let first = events.last().unwrap();
            assert_eq!(first.kind, EventKind::JobPending);
            let steps = events.iter().filter(|event| event.kind == EventKind::Metrics).count();
            assert!(steps as u64 >= job.progress.steps_completed, "{job:?}");
        }
        assert!(num_events >= seen_events, "{num_events} of {seen_events} events are left");
        seen_events = num_events;
    }
    assert!(seen_events > 50, "the processes did nothing: {seen_events} events");
    // What was cut off goes on and ends.
    let (runner, _) = start(&root);
    for job in runner.jobs(None, 10_000, &[]).unwrap().items {
        let job = wait_for(&runner, &job.id, |job| job.status.has_ended());
        assert_eq!(job.status, JobStatus::Succeeded, "{:?}", job.error);
        assert_eq!(runner.metrics(&job.id, 1000).unwrap().len(), 30, "every step once");
    }
}
