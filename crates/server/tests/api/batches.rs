//! `/v1/batches`: a whole life, refused inputs, cancellation, expiry, restarts, and what batches leave to others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};
use wardrobe_batch::{Clock, RunnerConfig};
use wardrobe_engine::{AdapterSource, LoadOptions};
use wardrobe_server::ServerConfig;

use crate::support::{Behaviour, engine, write_adapter};
use crate::support_http::Bench;
use crate::support_jobs::{JobBench, RECORDS, form, upload as upload_training};

const BATCHES: &str = "/v1/batches";
const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn line(name: &str, url: &str, body: &Value) -> String {
    json!({"custom_id": name, "method": "POST", "url": url, "body": body}).to_string() + "\n"
}

fn text(name: &str, prompt: &str, max_tokens: u64) -> String {
    line(name, TEXT, &json!({"model": "fake", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}))
}

async fn upload(bench: &Bench, input: &str) -> Value {
    bench.send(form(&[("purpose", "batch")], Some(("input.jsonl", input)))).await.ok()["id"].clone()
}

async fn create(bench: &Bench, url: &str, input: &str) -> String {
    let body =
        json!({"input_file_id": upload(bench, input).await, "endpoint": url, "completion_window": "24h"});
    bench.post(BATCHES, &body).await.ok()["id"].as_str().unwrap().to_owned()
}

async fn show(bench: &Bench, id: &str) -> Value {
    bench.get(&format!("{BATCHES}/{id}")).await.ok()
}

async fn wait_for(bench: &Bench, id: &str, what: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..4000 {
        let batch = show(bench, id).await;
        if what(&batch) {
            return batch;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it does not come: {}", show(bench, id).await);
}

async fn wait(bench: &Bench, id: &str) -> Value {
    let ends = ["completed", "failed", "cancelled", "expired"];
    wait_for(bench, id, |batch| ends.contains(&batch["status"].as_str().unwrap())).await
}

/// The lines of a file by the names of their requests.
async fn lines(bench: &Bench, file: &Value) -> BTreeMap<String, Value> {
    let Some(id) = file.as_str() else { return BTreeMap::new() };
    let answer = bench.get(&format!("/v1/files/{id}/content")).await;
    assert_eq!(answer.status, 200);
    let lines = answer.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line)).collect()
}

fn slow() -> Behaviour {
    Behaviour { step: Duration::from_millis(5), ..Behaviour::default() }
}

#[tokio::test]
async fn requests_are_answered_as_over_http() {
    let adapters = tempfile::tempdir().unwrap();
    write_adapter(adapters.path(), "letters", 'm');
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let source = AdapterSource::Path(adapters.path().join("letters"));
    bench.engine.load_adapter("letters", source, LoadOptions::default()).unwrap();
    let ask = |change: Value| {
        let mut body = json!({"model": "fake", "temperature": 0, "max_tokens": 40, "seed": 18446744073709551615_u64,
            "messages": [{"role": "user", "content": "x"}]});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    // Not in the order of the alphabet: that of the schema counts.
    let schema = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["x", "y"]}},
        "required": ["b", "a"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "r", "strict": true, "schema": schema}});
    let asked = [
        ("plain", ask(json!({}))),
        ("adapter", ask(json!({"model": "letters", "logprobs": true, "top_logprobs": 2}))),
        ("schema", ask(json!({"response_format": format, "temperature": 1.3, "max_tokens": 60}))),
        ("unnamed", ask(json!({"model": null, "stream": false, "n": 2}))),
        ("long", ask(json!({"messages": [{"role": "user", "content": "x".repeat(20_000)}]}))),
        ("hot", ask(json!({"temperature": -1}))),
        ("empty", json!({"model": "fake"})),
    ];
    let input: String = asked.iter().map(|(name, body)| line(name, CHAT, body)).collect();
    let id = create(bench, CHAT, &input).await;
    let batch = wait(bench, &id).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    let keys: Vec<_> = batch.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 22, "{keys:?}");
    assert_eq!(batch["request_counts"], json!({"total": 7, "completed": 4, "failed": 3}));
    assert_eq!((&batch["object"], &batch["endpoint"]), (&json!("batch"), &json!(CHAT)));
    for time in ["created_at", "in_progress_at", "finalizing_at", "completed_at"] {
        assert!(batch[time].as_i64().is_some_and(|time| time > 1_700_000_000), "{time}: {batch}");
    }
    for time in ["failed_at", "expired_at", "cancelling_at", "cancelled_at", "errors", "model", "metadata"] {
        assert!(batch[time].is_null(), "{time}: {batch}");
    }
    assert_eq!(batch["expires_at"].as_i64(), batch["created_at"].as_i64().map(|time| time + 86_400));

    let answers = lines(bench, &batch["output_file_id"]).await;
    let errors = lines(bench, &batch["error_file_id"]).await;
    assert!(answers.keys().eq(["adapter", "plain", "schema", "unnamed"]) && errors.len() == 3);
    let (mut prompt_tokens, mut completion_tokens) = (0, 0);
    for (name, body) in &asked {
        let direct = bench.post(CHAT, body).await;
        let line = answers.get(*name).or_else(|| errors.get(*name)).unwrap();
        let mut found = line["response"]["body"].clone();
        let mut expected = direct.json();
        for varying in ["id", "created", "usage"] {
            for body in [&mut found, &mut expected] {
                if let Some(body) = body.as_object_mut() {
                    body.shift_remove(varying);
                }
            }
        }
        assert_eq!(found, expected, "{name}");
        assert_eq!(line["response"]["status_code"], direct.status.as_u16(), "{name}");
        assert!(line["error"].is_null() && line["id"].as_str().unwrap().starts_with("batch_req_"), "{line}");
        assert!(line["response"]["request_id"].as_str().unwrap().starts_with("req-"), "{line}");
        let usage = &line["response"]["body"]["usage"];
        prompt_tokens += usage["prompt_tokens"].as_u64().unwrap_or(0);
        completion_tokens += usage["completion_tokens"].as_u64().unwrap_or(0);
    }
    assert_eq!(errors["long"]["response"]["body"]["error"]["code"], "context_length_exceeded");
    let text = answers["adapter"]["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with("mno"), "{text}");
    let record = answers["schema"]["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        serde_json::from_str::<Value>(record).unwrap().as_object().unwrap().keys().eq(["b", "a"]),
        "{record}"
    );
    let usage = &batch["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"]),
        (&json!(prompt_tokens), &json!(completion_tokens))
    );
    assert_eq!(usage["total_tokens"], json!(prompt_tokens + completion_tokens));
    assert_eq!(usage["output_tokens_details"], json!({"reasoning_tokens": 0}));

    let metrics = bench.get("/metrics").await;
    for row in [
        "wardrobe:batches{status=\"completed\"} 1",
        "wardrobe:batches{status=\"failed\"} 0",
        "wardrobe:batch_requests{outcome=\"completed\"} 4",
        "wardrobe:batch_requests{outcome=\"failed\"} 3",
        // Those over HTTP, to compare with.
        "http_requests_total{method=\"POST\",route=\"/v1/chat/completions\",status=\"200\"} 4",
    ] {
        assert!(metrics.text().contains(row), "{row}: {}", metrics.text());
    }
    let file = bench.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())).await.ok();
    assert_eq!(file["purpose"], "batch_output");
    assert_eq!(file["filename"], format!("{id}_output.jsonl"));
    let listed = bench.get("/v1/files?purpose=batch_output").await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    let error = bench.send(form(&[("purpose", "batch_output")], Some(("a", "a")))).await.error(400);
    assert_eq!(error["param"], "purpose");
}

#[tokio::test]
async fn inputs_are_checked_line_by_line() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let good = text("a", "x", 2);
    let cases = [
        ("{\n".to_owned(), "invalid_json_line", json!(null)),
        (good.replace("\"custom_id\":\"a\",", ""), "missing_required_parameter", json!("custom_id")),
        (good.clone(), "duplicate_custom_id", json!("custom_id")),
        (text("b", "x", 2).replace("POST", "PUT"), "invalid_method", json!("method")),
        (text("b", "x", 2).replace(TEXT, CHAT), "url_mismatch", json!("url")),
        (
            text("b", "x", 2).replace("\"prompt\"", "\"stream\":true,\"prompt\""),
            "invalid_value",
            json!("body.stream"),
        ),
        (text("b", "x", 2).replace("\"fake\"", "\"none\""), "model_not_found", json!("body.model")),
    ];
    for (bad, code, param) in cases {
        let id = create(bench, TEXT, &(good.clone() + &bad)).await;
        let batch = wait(bench, &id).await;
        assert_eq!(batch["status"], "failed", "{batch}");
        assert_eq!(batch["errors"]["object"], "list");
        let [error] = batch["errors"]["data"].as_array().unwrap().as_slice() else { panic!("{batch}") };
        assert_eq!(
            (&error["code"], &error["line"], &error["param"]),
            (&json!(code), &json!(2), &param),
            "{batch}"
        );
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(batch["failed_at"].is_i64() && batch["output_file_id"].is_null());
        assert_eq!(batch["request_counts"], json!({"total": 0, "completed": 0, "failed": 0}));
    }
    let id = create(bench, TEXT, "").await;
    assert_eq!(wait(bench, &id).await["errors"]["data"][0]["code"], "empty_file");
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_by_the_field() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let file = upload(bench, &text("a", "x", 2)).await;
    let other = bench.send(form(&[("purpose", "user_data")], Some(("a", "a")))).await.ok()["id"].clone();
    for (change, param) in [
        (json!({"input_file_id": "file-none"}), "input_file_id"),
        (json!({"input_file_id": "../../etc/passwd"}), "input_file_id"),
        (json!({"input_file_id": other}), "input_file_id"),
        (json!({"input_file_id": null}), "input_file_id"),
        (json!({"endpoint": "/v1/embeddings"}), "endpoint"),
        (json!({"completion_window": "1h"}), "completion_window"),
        (json!({"metadata": {"k": "v".repeat(513)}}), "metadata"),
        (json!({"metadata": {"k": 1}}), "metadata.k"),
        (json!({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}), "output_expires_after"),
    ] {
        let mut body = json!({"input_file_id": file, "endpoint": TEXT, "completion_window": "24h"});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        assert_eq!(bench.post(BATCHES, &body).await.error(400)["param"], param, "{change}");
    }
    for field in ["input_file_id", "endpoint", "completion_window"] {
        let mut body = json!({"input_file_id": file, "endpoint": TEXT, "completion_window": "24h"});
        body.as_object_mut().unwrap().remove(field);
        assert_eq!(bench.post(BATCHES, &body).await.error(400)["param"], field);
    }
    assert_eq!(bench.get(&format!("{BATCHES}/batch_none")).await.error(404)["code"], "batch_not_found");
    bench.post(&format!("{BATCHES}/batch_none/cancel"), &json!({})).await.error(404);
    assert_eq!(bench.get(&format!("{BATCHES}?limit=101")).await.error(400)["param"], "limit");
    assert_eq!(bench.get(&format!("{BATCHES}?after=batch_none")).await.error(400)["param"], "after");
    assert_eq!(bench.get(BATCHES).await.ok()["data"], json!([]));

    let bench = Bench::new(ServerConfig::default());
    for (method, path) in
        [(Method::GET, BATCHES), (Method::POST, BATCHES), (Method::GET, "/v1/batches/batch_1")]
    {
        assert_eq!(bench.call(&method, path, &[]).await.error(403)["code"], "job_folder_missing", "{path}");
    }
}

#[tokio::test]
async fn pages_of_batches() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(create(bench, TEXT, &text("a", "x", 2)).await);
    }
    ids.reverse();
    let page = bench.get(&format!("{BATCHES}?limit=3")).await.ok();
    assert_eq!((&page["object"], &page["has_more"]), (&json!("list"), &json!(true)));
    assert_eq!((&page["first_id"], &page["last_id"]), (&json!(ids[0]), &json!(ids[2])));
    let rest = bench.get(&format!("{BATCHES}?limit=3&after={}", ids[2])).await.ok();
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (2, &json!(false)));
    assert_eq!(rest["data"][1]["id"], json!(ids[4]));
}

#[tokio::test]
async fn a_cancelled_batch_stops_its_requests_and_keeps_its_answers() {
    let few = |config: &mut RunnerConfig| config.batches.requests_at_once = 3;
    let jobs = JobBench::over(engine(slow(), |_| {}), ServerConfig::default(), few);
    let bench = &jobs.bench;
    let input: String =
        (0..40).map(|idx| text(&format!("r-{idx}"), "x", if idx % 4 == 1 { 900 } else { 4 })).collect();
    // Answers that do not end by themselves.
    let input = input.replace("\"max_tokens\":900", "\"max_tokens\":900,\"ignore_eos\":true");
    let id = create(bench, TEXT, &input).await;
    let waiting = create(bench, TEXT, &text("a", "x", 2)).await;
    let batch = wait_for(bench, &id, |batch| batch["request_counts"]["completed"] != 0).await;
    assert_eq!((&batch["status"], &batch["request_counts"]["total"]), (&json!("in_progress"), &json!(40)));
    let file = format!("/v1/files/{}", batch["input_file_id"].as_str().unwrap());
    assert_eq!(bench.call(&Method::DELETE, &file, &[]).await.error(409)["code"], "file_in_use");
    let cancelled = bench.post(&format!("{BATCHES}/{waiting}/cancel"), &json!({})).await.ok();
    assert_eq!(cancelled["status"], "cancelled");
    let cancelling = bench.post(&format!("{BATCHES}/{id}/cancel"), &json!({})).await.ok();
    assert_eq!(cancelling["status"], "cancelling");
    assert!(cancelling["cancelling_at"].is_i64() && cancelling["cancelled_at"].is_null());
    let batch = wait(bench, &id).await;
    assert_eq!(batch["status"], "cancelled");
    assert!(batch["cancelled_at"].is_i64() && batch["completed_at"].is_null());
    bench.assert_idle().await;
    let answers = lines(bench, &batch["output_file_id"]).await;
    let errors = lines(bench, &batch["error_file_id"]).await;
    assert_eq!(answers.len() + errors.len(), 40);
    assert_eq!(batch["request_counts"], json!({"total": 40, "completed": answers.len(), "failed": 0}));
    assert!(
        errors.values().all(|line| line["error"]["code"] == "batch_cancelled" && line["response"].is_null())
    );
    let again = bench.post(&format!("{BATCHES}/{id}/cancel"), &json!({})).await.error(400);
    assert_eq!(again["code"], "job_ended");
    bench.call(&Method::DELETE, &file, &[]).await.ok();
}

#[tokio::test]
async fn a_batch_expires_by_its_clock() {
    let now_ms = Arc::new(AtomicI64::new(1_700_000_000_000));
    let shown = now_ms.clone();
    let jobs = JobBench::over(engine(slow(), |_| {}), ServerConfig::default(), |config| {
        config.batches.clock = Clock::new(move || shown.load(Ordering::SeqCst));
        config.batches.requests_at_once = 2;
    });
    let bench = &jobs.bench;
    let endless = text("b", "x", 900).replace("\"max_tokens\"", "\"ignore_eos\":true,\"max_tokens\"");
    let id = create(bench, TEXT, &(text("a", "x", 2) + &endless + &text("c", "x", 2))).await;
    wait_for(bench, &id, |batch| batch["request_counts"]["completed"] == 1).await;
    now_ms.fetch_add(86_400_000, Ordering::SeqCst);
    let batch = wait(bench, &id).await;
    assert_eq!((&batch["status"], &batch["expired_at"]), (&json!("expired"), &batch["expires_at"]));
    assert!(lines(bench, &batch["output_file_id"]).await.keys().eq(["a", "c"]));
    let errors = lines(bench, &batch["error_file_id"]).await;
    assert_eq!(errors["b"]["error"]["code"], "batch_expired", "{errors:?}");
    bench.assert_idle().await;
}

#[tokio::test]
async fn a_batch_goes_on_in_the_next_server() {
    let few = |config: &mut RunnerConfig| config.batches.requests_at_once = 2;
    let jobs = JobBench::over(engine(slow(), |_| {}), ServerConfig::default(), few);
    let input: String = (0..30).map(|idx| text(&format!("r-{idx}"), "x", 10)).collect();
    let id = create(&jobs.bench, TEXT, &input).await;
    wait_for(&jobs.bench, &id, |batch| batch["request_counts"]["completed"] != 0).await;
    let JobBench { bench, runner, folder } = jobs;
    bench.server.start_draining();
    let stopping = runner.clone();
    assert!(tokio::task::spawn_blocking(move || stopping.shutdown(Duration::from_secs(5))).await.unwrap());
    bench.assert_idle().await;
    drop((bench, runner));

    let jobs =
        JobBench::in_folder(folder, engine(Behaviour::default(), |_| {}), ServerConfig::default(), few);
    let batch = wait(&jobs.bench, &id).await;
    assert_eq!(batch["request_counts"], json!({"total": 30, "completed": 30, "failed": 0}), "{batch}");
    assert_eq!(lines(&jobs.bench, &batch["output_file_id"]).await.len(), 30);
}

#[tokio::test]
async fn a_full_server_delays_a_batch_and_fails_none_of_it() {
    let config = ServerConfig {
        max_concurrent_requests: 2,
        request_timeout: Some(Duration::from_millis(40)),
        ..ServerConfig::default()
    };
    let many = |config: &mut RunnerConfig| config.batches.requests_at_once = 12;
    let jobs = JobBench::over(engine(slow(), |_| {}), config, many);
    let bench = &jobs.bench;
    // Longer than a client's request may take.
    let input: String = (0..24).map(|idx| text(&format!("r-{idx}"), "x", 20)).collect();
    let batch = wait(bench, &create(bench, TEXT, &input).await).await;
    assert_eq!(batch["request_counts"], json!({"total": 24, "completed": 24, "failed": 0}), "{batch}");
}

#[tokio::test]
async fn clients_come_first() {
    let many = |config: &mut RunnerConfig| config.batches.requests_at_once = 32;
    let busy = engine(slow(), |config| config.max_num_sequences = 4);
    let jobs = JobBench::over(busy, ServerConfig::default(), many);
    let bench = &jobs.bench;
    let input: String = (0..64).map(|idx| text(&format!("r-{idx}"), "x", 25)).collect();
    let id = create(bench, TEXT, &input).await;
    wait_for(bench, &id, |batch| batch["status"] == "in_progress").await;
    while bench.engine.stats().waiting_sequences < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Twenty-eight wait, and this one is next.
    let body = json!({"model": "fake", "prompt": "x", "max_tokens": 3, "temperature": 0});
    bench.post(TEXT, &body).await.ok();
    assert!(bench.engine.stats().waiting_sequences >= 8, "{:?}", bench.engine.stats());
    assert_eq!(show(bench, &id).await["status"], "in_progress");
    assert_eq!(wait(bench, &id).await["request_counts"]["completed"], 64);
}

#[tokio::test]
async fn a_batch_shares_prefixes_with_itself_alone() {
    let keys = ["key-one", "key-two"].map(str::to_owned).to_vec();
    let one = |config: &mut RunnerConfig| config.batches.requests_at_once = 1;
    let jobs = JobBench::with(ServerConfig { api_keys: keys, ..ServerConfig::default() }, one);
    let bench = &jobs.bench;
    let with_key = |mut request: axum::http::Request<axum::body::Body>| {
        request.headers_mut().insert("authorization", "Bearer key-one".parse().unwrap());
        request
    };
    let prompt = "p".repeat(64);
    let input = text("a", &prompt, 2) + &text("b", &prompt, 2);
    let file = bench.send(with_key(form(&[("purpose", "batch")], Some(("a.jsonl", &input))))).await.ok();
    let post = |path: &str, body: &Value| {
        let request = axum::http::Request::post(path).header("content-type", "application/json");
        with_key(request.body(axum::body::Body::from(body.to_string())).unwrap())
    };
    let body = json!({"input_file_id": file["id"], "endpoint": TEXT, "completion_window": "24h"});
    bench.send(post(BATCHES, &body)).await.ok();
    let runner = jobs.runner.clone();
    for _ in 0..2000 {
        if runner.batch_counts().unwrap().batches[4] == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let batch = runner.batches(None, 1).unwrap().items.remove(0);
    assert!(batch.usage.unwrap().cached_tokens >= 48, "{batch:?}");
    let body = json!({"model": "fake", "prompt": prompt, "max_tokens": 2});
    let answer = bench.send(post(TEXT, &body)).await.ok();
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn jobs_and_batches_do_not_wait_for_each_other() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let file = upload_training(bench, "train.jsonl", RECORDS).await.ok()["id"].clone();
    let body = json!({"model": "fake", "training_file": file, "suffix": "slow",
        "hyperparameters": {"n_epochs": 100}});
    let job = bench.post("/v1/fine_tuning/jobs", &body).await.ok();
    let path = format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap());
    while bench.get(&path).await.ok()["status"] != "running" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let batch = wait(bench, &create(bench, TEXT, &text("a", "x", 2)).await).await;
    assert_eq!(batch["status"], "completed");
    assert_eq!(bench.get(&path).await.ok()["status"], "running");

    let endless = text("b", "x", 900).replace("\"max_tokens\"", "\"ignore_eos\":true,\"max_tokens\"");
    let slow = JobBench::over(engine(slow(), |_| {}), ServerConfig::default(), |_| {});
    let bench = &slow.bench;
    let id = create(bench, TEXT, &endless).await;
    wait_for(bench, &id, |batch| batch["status"] == "in_progress").await;
    let file = upload_training(bench, "train.jsonl", RECORDS).await.ok()["id"].clone();
    let job = bench.post("/v1/fine_tuning/jobs", &json!({"model": "fake", "training_file": file})).await.ok();
    let path = format!("/v1/fine_tuning/jobs/{}", job["id"].as_str().unwrap());
    while bench.get(&path).await.ok()["status"] != "succeeded" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(show(bench, &id).await["status"], "in_progress");
}
