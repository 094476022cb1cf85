//! Fine-tuning jobs of `wardrobe serve` with the real trainer: two at once, beside answers that must not change, and a
//! server that is killed in the middle.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use command::{Serving, succeeds, wardrobe};
use serde_json::Value;
use support::tiny::TinyModel;

const KEY: &str = "key";

struct Bench {
    folder: tempfile::TempDir,
    serving: Serving,
}

impl Bench {
    fn start(folder: tempfile::TempDir) -> Self {
        let serving = Self::serve(folder.path());
        Bench { folder, serving }
    }

    fn serve(folder: &Path) -> Serving {
        let mut command = wardrobe(&["serve", "model", "--served-model-name", "tiny", "--port", "0"]);
        command.args(["--job-folder", "jobs", "--api-key-file", "key", "--threads", "2"]).current_dir(folder);
        Serving::start(command)
    }

    fn jobs(&self, args: &[&str]) -> String {
        let mut command = wardrobe(&["jobs"]);
        command.args(args).current_dir(self.folder.path());
        command.env("WARDROBE_JOBS_URL", format!("{}/v1", self.serving.base));
        succeeds(command.env("WARDROBE_JOBS_API_KEY_FILE", "key"))
    }

    fn create(&self, suffix: &str, epochs: &str) -> String {
        let args = ["create", "--model", "tiny", "--file", "data.jsonl", "--suffix", suffix, "--seed", "3"];
        let made: Value =
            serde_json::from_str(&self.jobs(&[&args[..], &["--epochs", epochs, "--json"]].concat())).unwrap();
        made["id"].as_str().unwrap().to_owned()
    }

    /// The job, once it has ended.
    fn wait(&self, id: &str) -> Value {
        let shown = || serde_json::from_str::<Value>(&self.jobs(&["show", id, "--json"])).unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let job = shown();
            if ["succeeded", "failed", "cancelled"].contains(&job["status"].as_str().unwrap()) {
                return job;
            }
            assert!(Instant::now() < deadline, "{job}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn answer(&self, model: &str) -> Value {
        let (status, answer) = self.serving.chat(model, "3 and", KEY);
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].clone()
    }
}

#[test]
fn jobs_run_beside_answers_and_outlive_their_server() {
    let model = TinyModel::default().write();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(model.path(), folder.path().join("model")).unwrap();
    std::fs::write(folder.path().join("key"), KEY).unwrap();
    let mut data = String::new();
    for i in 0..24 {
        writeln!(data, r#"{{"prompt": "{i} and", "completion": "{} then {}"}}"#, i + 1, 2 * i).unwrap();
    }
    std::fs::write(folder.path().join("data.jsonl"), data).unwrap();
    let mut bench = Bench::start(folder);
    let of_base = bench.answer("tiny");

    // Two at once: the base model's answers stay what they are while both train.
    let [first, second] = ["first", "second"].map(|suffix| bench.create(suffix, "20"));
    let mut answers = 0;
    while bench.jobs(&["list"]).contains("running") || answers < 3 {
        assert_eq!(bench.answer("tiny"), of_base);
        answers += 1;
    }
    let adapters = [first, second].map(|id| {
        let job = bench.wait(&id);
        assert_eq!(job["status"], "succeeded", "{job}");
        job["fine_tuned_model"].as_str().unwrap().to_owned()
    });
    // The same data and seed: the same adapter, whatever went on beside it.
    let tuned = bench.answer(&adapters[0]);
    assert_ne!(tuned, of_base);
    assert_eq!(bench.answer(&adapters[1]), tuned);
    assert_eq!(bench.answer("tiny"), of_base);

    // Killed while a third one trains: the server that comes next ends it, and has the adapters of the others.
    let third = bench.create("third", "20");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !bench.jobs(&["events", &third]).contains("training loss=") {
        assert!(Instant::now() < deadline, "it does not begin");
    }
    bench.serving.child.kill().unwrap();
    bench.serving.child.wait().unwrap();
    bench.serving = Bench::serve(bench.folder.path());
    assert_eq!(bench.answer(&adapters[0]), tuned);
    let job = bench.wait(&third);
    assert_eq!(job["status"], "succeeded", "{job}");
    assert_eq!(bench.answer(job["fine_tuned_model"].as_str().unwrap()), tuned);

    // Cancelled: nothing is left of it but the record.
    let fourth = bench.create("fourth", "100");
    bench.jobs(&["cancel", &fourth]);
    let job = bench.wait(&fourth);
    assert_eq!((&job["status"], &job["fine_tuned_model"]), (&Value::from("cancelled"), &Value::Null));
    assert_eq!(bench.answer("tiny"), of_base);
}
