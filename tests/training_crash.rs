//! `wardrobe train` killed at random instants, again and again: it goes on to the adapter that a run without a pause gives.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::random::Rng;
use support::tiny::TinyModel;
use wardrobe::PeftAdapter;

const KILLS: usize = 25;

fn train(folder: &Path, output: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wardrobe"));
    command.current_dir(folder).arg("train").arg("model").arg("data.jsonl");
    command.args([
        "--output",
        output,
        "--epochs",
        "12",
        "--batch-size",
        "4",
        "--save-steps",
        "1",
        "--rank",
        "4",
    ]);
    command.args(["--eval-size", "4", "--dropout", "0.1", "--dora", "--threads", "2"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(folder: &Path, output: &str) -> String {
    let done = train(folder, output).output().unwrap();
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{text}");
    text
}

#[test]
fn a_run_that_is_killed_again_and_again_gives_the_same_adapter() {
    let model = TinyModel::default().write();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(model.path(), folder.path().join("model")).unwrap();
    let mut data = String::new();
    for i in 0..24 {
        writeln!(data, r#"{{"prompt": "{i} and", "completion": "{} then {}"}}"#, i + 1, 2 * i).unwrap();
    }
    std::fs::write(folder.path().join("data.jsonl"), data).unwrap();
    finish(folder.path(), "whole");

    let mut rng = Rng::new(1);
    let mut killed = 0;
    while killed < KILLS && !folder.path().join("pieces").exists() {
        let mut child = train(folder.path(), "pieces").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(30 + rng.below(250) as u64));
        // SIGKILL: nothing can be caught.
        child.kill().unwrap();
        let done = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!text.contains("error:"), "{text}");
        killed += 1;
    }
    if !folder.path().join("pieces").exists() {
        let text = finish(folder.path(), "pieces");
        assert!(text.contains("going on after step"), "no kill came after a checkpoint: {text}");
    }
    let read = |name: &str| PeftAdapter::open(&folder.path().join(name)).unwrap();
    assert_eq!(read("pieces").digest(), read("whole").digest());
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.len() <= 1, "more than what one kill leaves of the adapter: {left:?}");
}
