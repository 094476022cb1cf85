//! Fine-tuning jobs over HTTP: one table seen through two APIs.

use axum::http::Method;
use serde_json::{Value, json};
use wardrobe_server::ServerConfig;

use crate::support_http::Bench;
use crate::support_jobs::{JobBench, RECORDS, upload};

const JOBS: &str = "/v1/fine_tuning/jobs";

async fn create(bench: &Bench, change: Value) -> Value {
    let file = upload(bench, "train.jsonl", RECORDS).await.ok()["id"].clone();
    let mut body = json!({"model": "fake", "training_file": file, "seed": 3});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    bench.post(JOBS, &body).await.ok()
}

async fn wait(bench: &Bench, id: &Value) -> Value {
    let path = format!("{JOBS}/{}", id.as_str().unwrap());
    for _ in 0..2000 {
        let job = bench.get(&path).await.ok();
        if ["succeeded", "failed", "cancelled"].contains(&job["status"].as_str().unwrap()) {
            return job;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("the job does not end");
}

#[tokio::test]
async fn both_apis_show_the_same_job_and_its_adapter_answers() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let made = create(bench, json!({"suffix": "mine", "hyperparameters": {"n_epochs": 2}})).await;
    assert!(made["fine_tuned_model"].is_null() && made["finished_at"].is_null(), "{made}");
    let job = wait(bench, &made["id"]).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    let name = job["fine_tuned_model"].as_str().unwrap();
    assert_eq!(made["output_name"], name);
    let id = job["id"].as_str().unwrap();
    let other = bench.get(&format!("/v1/fine-tunes/{id}")).await.ok();
    assert_eq!((&other["status"], &other["model_output_name"]), (&json!("completed"), &json!(name)));
    assert_eq!(bench.get("/v1/fine-tunes").await.ok()["data"][0]["id"], id);
    // Doubled, and with the name's colons written as clients write them.
    assert_eq!(bench.get(&format!("/v1/v1/fine_tuning/jobs/{id}")).await.ok(), job);
    let escaped = name.replace(':', "%3A");
    assert_eq!(bench.get(&format!("/v1/models/{escaped}")).await.ok()["id"], name);
    let body = json!({"model": name, "prompt": " ", "max_tokens": 3, "temperature": 0});
    let answer = bench.post("/v1/completions", &body).await.ok();
    // Its letter is that of the seed: b and three on.
    assert_eq!(answer["choices"][0]["text"], "efg", "{answer}");

    let metrics = bench.get("/metrics").await;
    assert!(
        metrics.text().contains("wardrobe:fine_tuning_jobs{status=\"succeeded\"} 1"),
        "{}",
        metrics.text()
    );
    let gone = bench.call(&Method::DELETE, &format!("/v1/fine-tunes/{id}"), &[]).await.ok();
    assert_eq!(gone["deleted"], true);
    bench.get(&format!("{JOBS}/{id}")).await.error(404);
    bench.post("/v1/completions", &body).await.error(404);
}

#[tokio::test]
async fn pages_of_jobs_and_events() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let mut ids = Vec::new();
    for idx in 0..3 {
        ids.push(create(bench, json!({"metadata": {"n": idx.to_string()}})).await["id"].clone());
    }
    for id in &ids {
        wait(bench, id).await;
    }
    let page = bench.get(&format!("{JOBS}?limit=2")).await.ok();
    assert_eq!((&page["data"][0]["id"], &page["has_more"]), (&ids[2], &json!(true)));
    let after = page["data"][1]["id"].as_str().unwrap();
    let rest = bench.get(&format!("{JOBS}?limit=2&after={after}")).await.ok();
    assert_eq!((&rest["data"][0]["id"], &rest["has_more"]), (&ids[0], &json!(false)));
    let found = bench.get(&format!("{JOBS}?metadata%5Bn%5D=1")).await.ok();
    assert_eq!(found["data"].as_array().unwrap().len(), 1);
    assert_eq!(found["data"][0]["id"], ids[1]);
    let events = format!("{JOBS}/{}/events", ids[0].as_str().unwrap());
    let all = bench.get(&format!("{events}?limit=1000")).await.ok()["data"].as_array().unwrap().clone();
    let (mut seen, mut path) = (Vec::new(), format!("{events}?limit=2"));
    loop {
        let page = bench.get(&path).await.ok();
        seen.extend(page["data"].as_array().unwrap().iter().cloned());
        if page["has_more"] == false {
            break;
        }
        path = format!("{events}?limit=2&after={}", seen.last().unwrap()["id"].as_str().unwrap());
    }
    assert_eq!(seen, all);
    for (path, param) in [
        (format!("{JOBS}?limit=0"), "limit"),
        (format!("{JOBS}?limit=x"), "limit"),
        (format!("{JOBS}?after=ft-none"), "after"),
        (format!("{events}?after=ftevent-999999"), "after"),
        (format!("{events}?after=' OR 1=1 --").replace(' ', "%20"), "after"),
    ] {
        assert_eq!(bench.get(&path).await.error(400)["param"], param, "{path}");
    }
}

#[tokio::test]
async fn cancelling_waits_for_the_end() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let long = json!({"hyperparameters": {"n_epochs": 100}, "suffix": "slow"});
    let running = create(bench, long.clone()).await;
    let waiting = create(bench, long).await;
    let cancel = async |job: &Value| {
        bench.post(&format!("{JOBS}/{}/cancel", job["id"].as_str().unwrap()), &json!({})).await
    };
    assert_eq!(cancel(&waiting).await.ok()["status"], "cancelled");
    assert_eq!(cancel(&running).await.ok()["status"], "cancelled");
    assert_eq!(cancel(&running).await.error(400)["code"], "job_ended");
}

#[tokio::test]
async fn requests_that_cannot_be_met_are_refused_by_the_field() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let file = upload(bench, "train.jsonl", RECORDS).await.ok()["id"].clone();
    let refused = async |path: &str, change: Value| {
        let mut body = json!({"model": "fake", "training_file": file});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        bench.post(path, &body).await.error(400)
    };
    for (change, param) in [
        (json!({"model": "other"}), "model"),
        (json!({"training_file": 7}), "training_file"),
        (json!({"training_file": "../../etc/passwd"}), "training_file"),
        (json!({"hyperparameters": {"n_epochs": "many"}}), "hyperparameters.n_epochs"),
        (json!({"hyperparameters": {"n_epochs": 1e300}}), "hyperparameters.n_epochs"),
        (json!({"hyperparameters": {"batch_size": -1}}), "hyperparameters.batch_size"),
        (json!({"hyperparameters": {"unknown": 1}}), "hyperparameters.unknown"),
        (json!({"hyperparameters": {"lora_dropout": 2}}), "hyperparameters.lora_dropout"),
        (
            json!({"hyperparameters": {}, "method": {"type": "supervised", "supervised": {"hyperparameters": {}}}}),
            "hyperparameters",
        ),
        (
            json!({"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}}),
            "method.supervised.hyperparameters.n_epochs",
        ),
        (json!({"method": {"type": "dpo"}}), "method.type"),
        (json!({"method": {"type": "magic"}}), "method.type"),
        (json!({"integrations": [{"type": "wandb"}]}), "integrations"),
        (json!({"metadata": {"k": "v".repeat(513)}}), "metadata"),
    ] {
        assert_eq!(refused(JOBS, change.clone()).await["param"], param, "{change}");
    }
    for (change, param) in [
        (json!({"training_type": {"type": "Full"}}), "training_type.type"),
        (json!({"training_type": {"type": "Lora", "lora_r": 0}}), "training_type.lora_r"),
        (json!({"training_method": {"method": "dpo"}}), "training_method.method"),
        (json!({"from_checkpoint": "ft-1"}), "from_checkpoint"),
        (json!({"lr_scheduler": {"lr_scheduler_type": "magic"}}), "lr_scheduler.lr_scheduler_type"),
        (json!({"model": ""}), "model"),
        (json!({"batch_size": "min"}), "batch_size"),
    ] {
        assert_eq!(refused("/v1/fine-tunes", change.clone()).await["param"], param, "{change}");
    }
    for path in ["pause", "resume"] {
        bench.post(&format!("{JOBS}/ft-none/{path}"), &json!({})).await.error(404);
    }
    assert!(bench.get(JOBS).await.ok()["data"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_without_a_runner_says_so() {
    let bench = Bench::new(ServerConfig::default());
    for (method, path) in [
        (Method::GET, "/v1/files"),
        (Method::POST, "/v1/files"),
        (Method::GET, JOBS),
        (Method::POST, JOBS),
        (Method::DELETE, "/v1/fine-tunes/ft-1"),
        (Method::PUT, "/v1/files/uploads/token"),
    ] {
        assert_eq!(bench.call(&method, path, &[]).await.error(403)["code"], "job_folder_missing", "{path}");
    }
    assert!(!bench.get("/metrics").await.text().contains("status=\"queued\""));
}
