//! `wardrobe train` killed at random instants, again and again, and on a disk that becomes full: it goes on to the adapter
//! that a run without a pause gives.
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

/// A folder with a model and examples.
fn prepare(model: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(model, folder.path().join("model")).unwrap();
    let mut data = String::new();
    for i in 0..24 {
        writeln!(data, r#"{{"prompt": "{i} and", "completion": "{} then {}"}}"#, i + 1, 2 * i).unwrap();
    }
    std::fs::write(folder.path().join("data.jsonl"), data).unwrap();
    folder
}

fn digest(folder: &Path, name: &str) -> String {
    format!("{:?}", PeftAdapter::open(&folder.join(name)).unwrap().digest())
}

#[test]
fn a_run_that_is_killed_again_and_again_gives_the_same_adapter() {
    let model = TinyModel::default().write();
    let folder = prepare(model.path());
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
    assert_eq!(digest(folder.path(), "pieces"), digest(folder.path(), "whole"));
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.len() <= 1, "more than what one kill leaves of the adapter: {left:?}");
}

/// Bytes of all files below a folder, in whole pages.
#[cfg(target_os = "linux")]
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
    let of = |e: std::fs::DirEntry| {
        let metadata = e.metadata().unwrap();
        if metadata.is_dir() { size(&e.path()) } else { metadata.len().next_multiple_of(4096) }
    };
    entries.map(of).sum()
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_costs_nothing() {
    // A small disk of its own, in a namespace that ends with the command.
    let alone = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script]);
        command.stdin(Stdio::null());
        command
    };
    let model = TinyModel::default().write();
    let folder = prepare(model.path());
    let can = alone("mkdir -p small && mount -t tmpfs tmpfs small").current_dir(folder.path()).output();
    if !can.is_ok_and(|can| can.status.success()) {
        eprintln!(
            "SKIPPED a_full_disk_is_named_and_costs_nothing: no mounts in namespaces of one's own here"
        );
        return;
    }
    finish(folder.path(), "whole");
    // Room for a checkpoint, and not for all that are kept.
    let room = size(&folder.path().join("whole.run")) / 2;
    let train = train(folder.path(), "small/pieces");
    let words: Vec<_> = train.get_args().map(|a| a.to_str().unwrap()).collect();
    let train = format!("{} {}", env!("CARGO_BIN_EXE_wardrobe"), words.join(" "));
    let script = format!(
        "mount -t tmpfs -o size={room} tmpfs small; if {train} 2>first; then exit 9; fi
        mount -o remount,size=64m small; {train} 2>second; cp -r small/pieces pieces"
    );
    let done = alone(&script).current_dir(folder.path()).output().unwrap();
    let said = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    let (first, second) = (said("first"), said("second"));
    assert!(done.status.success(), "{done:?}\n{first}\n{second}");
    let error = first.lines().find(|line| line.starts_with("error:")).unwrap_or_default();
    assert!(error.contains("small/pieces") && error.contains("No space left"), "{first}");
    assert!(second.contains("going on after step"), "{second}");
    assert_eq!(digest(folder.path(), "pieces"), digest(folder.path(), "whole"));
}
