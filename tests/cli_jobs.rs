//! `wardrobe jobs` against a server whose trainer computes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
#[path = "../crates/server/tests/support/mod.rs"]
mod fake;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use command::{fails, output, stderr, succeeds, wardrobe};
use serde_json::Value;
use wardrobe_batch::{JobRunner, RunnerConfig};
use wardrobe_server::{Server, ServerConfig};

/// A server on a thread of its own, for as long as the test runs; gives its address.
fn serve(folder: &Path) -> String {
    let folder = folder.join("jobs");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let engine = fake::engine(fake::Behaviour::default(), |_| {});
        let trainer = fake::fine_tuner(&engine, Duration::from_millis(5));
        let runner = Arc::new(JobRunner::open(RunnerConfig::new(folder), Arc::new(trainer)).unwrap());
        runner.start().unwrap();
        let mut model = fake::served(engine);
        model.fine_tuning = Some(runner);
        let config = ServerConfig { api_keys: vec!["key".to_owned()], ..ServerConfig::default() };
        let server = Server::new(model, config).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            sender.send(format!("http://{}/v1", listener.local_addr().unwrap())).unwrap();
            server.serve(listener, std::future::pending()).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}

#[test]
fn jobs_are_made_watched_and_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let url = serve(folder.path());
    let (data, key) = (folder.path().join("train.jsonl"), folder.path().join("key"));
    std::fs::write(&data, "{\"prompt\": \"a\", \"completion\": \"b\"}\n".repeat(8)).unwrap();
    std::fs::write(&key, "key\n").unwrap();
    let (data, key) = (data.to_str().unwrap(), key.to_str().unwrap());
    let jobs = |args: &[&str]| {
        let mut command = wardrobe(&["jobs"]);
        command.args(args).env("WARDROBE_JOBS_URL", &url).env("WARDROBE_JOBS_API_KEY_FILE", key);
        command
    };
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(succeeds(&mut jobs(&["list"])), "no jobs\n");

    let create =
        ["create", "--model", "fake", "--file", data, "--suffix", "mine", "--epochs", "2", "--seed", "5"];
    let made = json(&succeeds(jobs(&create).args(["--wait", "--json"])));
    assert_eq!((&made["status"], &made["seed"]), (&Value::from("succeeded"), &Value::from(5)));
    assert_eq!(made["hyperparameters"]["n_epochs"], 2);
    let id = made["id"].as_str().unwrap();
    let listed = succeeds(&mut jobs(&["list"]));
    assert!(listed.contains(id) && listed.contains("succeeded") && listed.contains(":mine:"), "{listed}");
    let shown = succeeds(&mut jobs(&["show", id]));
    assert!(shown.contains("n_epochs 2") && shown.contains("trained tokens"), "{shown}");
    let events = succeeds(&mut jobs(&["events", id]));
    let lines: Vec<_> = events.lines().collect();
    assert!(lines[0].contains("waits") && lines.last().unwrap().contains("its adapter answers"), "{events}");
    assert!(events.contains("training loss="), "{events}");

    // An uploaded file by its id; followed until it is cancelled.
    let file = made["training_file"].as_str().unwrap();
    let slow = ["create", "--model", "fake", "--file", file, "--suffix", "slow", "--epochs", "100", "--json"];
    let slow = json(&succeeds(&mut jobs(&slow)))["id"].as_str().unwrap().to_owned();
    let following = {
        let mut command = jobs(&["events", &slow, "--follow", "--json"]);
        std::thread::spawn(move || succeeds(&mut command))
    };
    std::thread::sleep(Duration::from_millis(700));
    assert!(succeeds(&mut jobs(&["cancel", &slow])).contains("cancelled"));
    let followed: Vec<_> = following.join().unwrap().lines().map(json).collect();
    assert!(followed.last().unwrap()["message"].as_str().unwrap().contains("cancelled"), "{followed:?}");
    let number = |event: &Value| event["id"].as_str().unwrap()["ftevent-".len()..].parse::<u64>().unwrap();
    assert!(followed.iter().map(number).is_sorted_by(|a, b| a < b), "an event came twice or out of order");
    assert!(fails(&mut jobs(&["wait", &slow]), 1).contains("cancelled"));

    let failing = ["create", "--model", "fake", "--file", file, "--suffix", "user-error", "--wait"];
    // It says how far it is before it says why it fails.
    let failed = output(&mut jobs(&failing));
    assert_eq!(failed.status.code(), Some(1));
    assert!(stderr(&failed).contains("failed: the training file is of no use"), "{}", stderr(&failed));
    assert!(fails(&mut jobs(&["show", "ft-none"]), 1).contains("there is no fine-tuning job"));
    assert!(fails(&mut jobs(&["show", "../../models"]), 1).contains("there is no"));
    std::fs::write(folder.path().join("bad.jsonl"), "{}\n").unwrap();
    let bad = folder.path().join("bad.jsonl");
    let bad = ["create", "--model", "fake", "--file", bad.to_str().unwrap()];
    assert!(fails(&mut jobs(&bad), 1).contains("line 1: "));
    let mut no_key = jobs(&["list"]);
    assert!(fails(no_key.env_remove("WARDROBE_JOBS_API_KEY_FILE"), 1).contains("API key"));
    let closed = ["list", "--url", "http://127.0.0.1:9"];
    assert!(fails(&mut jobs(&closed), 1).contains("cannot ask http://127.0.0.1:9"));
}
