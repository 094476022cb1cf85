//! Batches of `wardrobe serve` over a real model: the server is killed in the middle, and the next one ends the batch.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use command::{Serving, wardrobe};
use serde_json::{Value, json};
use support::tiny::TinyModel;

const KEY: &str = "Bearer key";
const NUM_REQUESTS: usize = 300;

fn serve(folder: &Path) -> Serving {
    let mut command = wardrobe(&["serve", "model", "--served-model-name", "tiny", "--port", "0"]);
    command.args(["--job-folder", "jobs", "--api-key-file", "key", "--threads", "2"]).current_dir(folder);
    Serving::start(command)
}

fn get(serving: &Serving, path: &str) -> String {
    let request = Serving::agent().get(format!("{}{path}", serving.base)).header("authorization", KEY);
    let mut response = request.call().unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.body_mut().read_to_string().unwrap()
}

fn post(serving: &Serving, path: &str, content_type: &str, body: &str) -> Value {
    let request = Serving::agent().post(format!("{}{path}", serving.base)).header("authorization", KEY);
    let mut response = request.header("content-type", content_type).send(body).unwrap();
    let answer: Value = response.body_mut().read_json().unwrap();
    assert_eq!(response.status(), 200, "{path}: {answer}");
    answer
}

fn wait(serving: &Serving, id: &str, what: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let batch: Value = serde_json::from_str(&get(serving, &format!("/v1/batches/{id}"))).unwrap();
        if what(&batch) {
            return batch;
        }
        assert!(Instant::now() < deadline, "{batch}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_server_s_batch_is_ended_by_the_next() {
    let model = TinyModel::default().write();
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(model.path(), folder.path().join("model")).unwrap();
    std::fs::write(folder.path().join("key"), "key").unwrap();
    let mut serving = serve(folder.path());

    let body = |idx: usize| json!({"model": "tiny", "prompt": format!("{idx} and"), "max_tokens": 64, "temperature": 0, "ignore_eos": true});
    let lines = (0..NUM_REQUESTS).map(|idx| {
        let (name, url) = (format!("r-{idx}"), "/v1/completions");
        json!({"custom_id": name, "method": "POST", "url": url, "body": body(idx)}).to_string() + "\n"
    });
    let form = format!(
        "--XX\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--XX\r\nContent-Disposition: \
         form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{}\r\n--XX--\r\n",
        lines.collect::<String>()
    );
    let file = post(&serving, "/v1/files", "multipart/form-data; boundary=XX", &form);
    let asked =
        json!({"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"});
    let made = post(&serving, "/v1/batches", "application/json", &asked.to_string());
    let id = made["id"].as_str().unwrap();

    let batch = wait(&serving, id, |batch| batch["request_counts"]["completed"] != 0);
    assert_eq!(batch["status"], "in_progress", "{batch}");
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    serving = serve(folder.path());
    let batch = wait(&serving, id, |batch| batch["status"] == "completed");
    let total = NUM_REQUESTS as u64;
    assert_eq!(batch["request_counts"], json!({"total": total, "completed": total, "failed": 0}), "{batch}");
    assert_eq!(batch["usage"]["output_tokens"], json!(64 * total));

    let output = get(&serving, &format!("/v1/files/{}/content", batch["output_file_id"].as_str().unwrap()));
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_name: BTreeMap<_, _> =
        lines.iter().map(|line| (line["custom_id"].as_str().unwrap(), line)).collect();
    assert_eq!((lines.len(), by_name.len()), (NUM_REQUESTS, NUM_REQUESTS));
    for idx in [0, 37, NUM_REQUESTS - 1] {
        let direct = post(&serving, "/v1/completions", "application/json", &body(idx).to_string());
        let found = &by_name[format!("r-{idx}").as_str()]["response"]["body"];
        assert_eq!(found["choices"], direct["choices"], "{idx}");
    }
}
