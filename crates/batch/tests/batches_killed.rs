//! Batches of processes that are killed. Alone in its file: a lock that another test takes would be the killed ones' too,
//! between their fork and their start.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/batches.rs"]
mod support;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use support::{Bench, Endpoint, by_name, config, create, lines, open, wait_for};
use wardrobe_batch::{BatchStatus, RequestCounts};

const NAMES: usize = 40;

fn names() -> Vec<String> {
    (0..NAMES).map(|idx| if idx % 7 == 3 { format!("refused-{idx}") } else { format!("a-{idx}") }).collect()
}

/// Not a test of its own: the process that the test below kills. It makes batches without end.
#[test]
fn child() {
    let Some(root) = std::env::var_os("WARDROBE_TEST_BATCHES") else { return };
    let runner = open(config(root.as_ref()));
    runner
        .start_batches(Arc::new(Endpoint { delay: Duration::from_millis(3), ..Endpoint::default() }))
        .unwrap();
    loop {
        let id = create(&runner, &lines(names()));
        wait_for(&runner, &id, |batch| batch.status.has_ended());
    }
}

/// A process is killed at many moments, and in the end every request of every batch has one line.
#[test]
fn a_process_killed_at_any_moment_loses_no_line_and_doubles_none() {
    let bench = Bench::new();
    let root = bench.root();
    for delay_ms in (30..).step_by(23).take(14) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env("WARDROBE_TEST_BATCHES", &root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let runner = open(config(&root));
    runner.start_batches(Arc::new(Endpoint::default())).unwrap();
    let batches = runner.batches(None, 10_000).unwrap().items;
    assert!(batches.len() > 5, "the processes did nothing: {} batches", batches.len());
    let mut expected = names();
    expected.sort();
    for batch in batches {
        let batch = wait_for(&runner, &batch.id, |batch| batch.status.has_ended());
        assert_eq!(batch.status, BatchStatus::Completed, "{batch:?}");
        let (answers, errors) = (by_name(&runner, &batch.output_file), by_name(&runner, &batch.error_file));
        assert!(errors.keys().all(|name| name.starts_with("refused")));
        let mut found: Vec<_> = answers.into_keys().chain(errors.into_keys()).collect();
        found.sort();
        assert_eq!(found, expected);
        assert_eq!(batch.counts, RequestCounts { total: 40, completed: 34, failed: 6 });
    }
    let files = runner.files(None, None, true, 10_000).unwrap().items;
    assert_eq!(std::fs::read_dir(root.join("files")).unwrap().count(), files.len());
}
