//! Together's API of 2023: the inference call, the job routes, and what its client asks around them.

use axum::body::Body;
use axum::http::{Method, Request, header};
use serde_json::{Value, json};
use wardrobe_engine::{AdapterSource, LoadOptions};
use wardrobe_server::ServerConfig;

use crate::support::{Behaviour, write_adapter};
use crate::support_http::Bench;
use crate::support_jobs::{JobBench, RECORDS, upload};

/// How the client of 2023 calls itself.
const AGENT: (&str, &str) = ("user-agent", "TogetherPythonOfficial/0.2.10");

#[tokio::test]
async fn the_inference_call_answers() {
    let bench = Bench::new(ServerConfig::default());
    let body = json!({"model": "fake", "prompt": "a", "max_tokens": 4, "temperature": 0, "top_p": 1, "top_k": 50,
                      "repetition_penalty": 1, "stop": ["zz"], "request_type": "language-model-inference"});
    for path in ["/inference", "/api/inference"] {
        let answer = bench.post(path, &body).await.ok();
        assert_eq!((&answer["status"], &answer["model"]), (&json!("finished"), &json!("fake")));
        assert_eq!((&answer["args"], &answer["prompt"]), (&body, &json!(["a"])));
        assert_eq!(
            (&answer["num_returns"], &answer["subjobs"], &answer["tags"]),
            (&json!(1), &json!([]), &json!({}))
        );
        assert_eq!(answer["output"]["result_type"], "language-model-inference");
        let choice = json!({"index": 0, "text": "bcde", "finish_reason": "length"});
        assert_eq!(answer["output"]["choices"], json!([choice]));
    }
    // All that the client sends, most of it null.
    let body = json!({"model": "fake", "prompt": "x", "max_tokens": 128, "temperature": 0, "top_p": 0.7, "top_k": 50,
                      "repetition_penalty": null, "logprobs": null, "safety_model": null, "stop": []});
    let answer = bench.post("/api/inference", &body).await.ok();
    assert_eq!(
        answer["output"]["choices"],
        json!([{"index": 0, "text": "yz.", "finish_reason": "eos_token"}])
    );
    let stopped = json!({"prompt": "a", "temperature": 0, "stop": ["e"]});
    let choice = &bench.post("/api/inference", &stopped).await.ok()["output"]["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("bcd"), &json!("stop_sequence")));
    assert!(choice.get("logprobs").is_none() && choice.get("tokens").is_none(), "{choice}");
    let two = json!({"prompt": "a", "temperature": 0, "max_tokens": 1, "n": 2});
    let answer = bench.post("/api/inference", &two).await.ok();
    assert_eq!((&answer["num_returns"], &answer["output"]["choices"][1]["index"]), (&json!(2), &json!(1)));
}

#[tokio::test]
async fn log_probabilities_are_those_of_a_completion() {
    let bench = Bench::new(ServerConfig::default());
    let body = json!({"prompt": "a", "max_tokens": 3, "temperature": 0, "logprobs": 1});
    let of_completion = bench.post("/v1/completions", &body).await.ok()["choices"][0]["logprobs"].clone();
    let choice = bench.post("/api/inference", &body).await.ok()["output"]["choices"][0].clone();
    assert_eq!(choice["tokens"], json!(["b", "c", "d"]));
    assert_eq!(choice["logprobs"], of_completion["token_logprobs"]);
    assert!(choice["logprobs"][0].as_f64().unwrap() < 0.0, "{choice}");
}

#[tokio::test]
async fn it_streams() {
    let bench = Bench::new(ServerConfig::default());
    for (extra, seed) in
        [(json!({"stream_tokens": true}), Value::Null), (json!({"stream": true, "seed": 7}), json!(7))]
    {
        let mut body = json!({"model": "fake", "prompt": "v", "max_tokens": 128, "temperature": 0});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let events = bench.post("/api/inference", &body).await.events();
        let (last, chunks) = events.split_last().unwrap();
        assert_eq!(last, "[DONE]");
        let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
        let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(text, "wxyz.");
        assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]), "{chunks:?}");
        let (end, before) = chunks.split_last().unwrap();
        assert!(before.iter().all(|chunk| chunk["generated_text"].is_null() && chunk["details"].is_null()));
        assert_eq!(end["generated_text"], "wxyz.");
        let details = json!({"finish_reason": "eos_token", "generated_tokens": 6, "seed": seed});
        assert_eq!(end["details"], details, "{end}");
    }
    // Not only text: a stop string, and more than one choice.
    let body = json!({"prompt": "a", "temperature": 0, "stop": ["c"], "n": 2, "stream_tokens": true});
    let events = bench.post("/inference", &body).await.events();
    let ends: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|chunk| serde_json::from_str::<Value>(chunk).unwrap())
        .filter(|chunk| !chunk["details"].is_null())
        .collect();
    let mut indices: Vec<u64> = ends.iter().map(|end| end["choices"][0]["index"].as_u64().unwrap()).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1]);
    assert!(
        ends.iter()
            .all(|end| end["generated_text"] == "b" && end["details"]["finish_reason"] == "stop_sequence")
    );
    bench.assert_idle().await;
}

#[tokio::test]
async fn a_failure_is_a_status_or_an_event_with_the_requests_id() {
    let failing = Behaviour { fail_at: Some(2), ..Behaviour::default() };
    let bench = Bench::with(failing, ServerConfig::default(), |_| {});
    let body = json!({"prompt": "a", "temperature": 0, "max_tokens": 8});
    bench.post("/api/inference", &body).await.error(500);
    let mut body = body;
    body["stream_tokens"] = json!(true);
    let answer = bench.post("/api/inference", &body).await;
    let events = answer.events();
    let [.., error, done] = events.as_slice() else { panic!("{events:?}") };
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!(error["error"]["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    assert!(error["error"]["message"].is_string() && error["error"]["type"] == "server_error", "{error}");
    assert_eq!(done, "[DONE]");
}

#[tokio::test]
async fn what_it_cannot_do_is_refused_by_name() {
    let bench = Bench::new(ServerConfig::default());
    for (change, field) in [
        (json!({"request_type": "image-model-inference"}), "request_type"),
        (json!({"mode": "text2img"}), "mode"),
        (json!({"safety_model": "judge"}), "safety_model"),
        (json!({"async": true}), "async"),
        (json!({"prompt": ["a", "b"]}), "prompt"),
        (json!({"prompt": ["a", "b"], "stream_tokens": true}), "prompt"),
        (json!({"prompt": null}), "prompt"),
        (json!({"stream_tokens": "yes"}), "stream_tokens"),
        (json!({"stream_tokens": true, "best_of": 3}), "best_of"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"top_k": -5}), "top_k"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"stop": [1]}), "stop"),
        (json!({"repetition_penalty": -2}), "repetition_penalty"),
    ] {
        let mut body = json!({"model": "fake", "prompt": "a"});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let error = bench.post("/api/inference", &body).await.error(400);
        let param = error["param"].as_str().unwrap_or_default();
        assert!(param.starts_with(field), "{change}: {error}");
    }
    let unknown = json!({"model": "other", "prompt": "a"});
    assert_eq!(bench.post("/api/inference", &unknown).await.error(404)["code"], "model_not_found");
    bench.assert_idle().await;
}

#[tokio::test]
async fn models_are_described_and_all_of_them_run() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    write_adapter(jobs.folder.path(), "tuned", 'c');
    let source = AdapterSource::Path(jobs.folder.path().join("tuned"));
    bench.engine.load_adapter("org/tuned model", source, LoadOptions::default()).unwrap();
    // As the client writes it.
    let infos = bench.get("/models/info?=").await.ok();
    let names: Vec<_> = infos.as_array().unwrap().iter().map(|info| info["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["fake", "org/fake-alias", "org/tuned model"]);
    let (base, tuned) = (&infos[0], &infos[2]);
    assert_eq!((&base["finetuning_supported"], &base["context_length"]), (&json!(true), &json!(1024)));
    assert_eq!((&tuned["finetuning_supported"], &tuned["base"]), (&json!(false), &json!("fake")));
    let one = bench.get("/models/info?name=org/tuned%20model").await.ok();
    assert_eq!(one, json!([tuned]));
    assert_eq!(bench.get("/models/info?name=none").await.ok(), json!([]));
    for path in ["/instances", "/instances/"] {
        let running = bench.get(path).await.ok();
        assert_eq!(running, json!({"fake": true, "org/fake-alias": true, "org/tuned model": true}));
    }
    let ask = |path: &'static str| bench.call(&Method::POST, path, &[]);
    assert_eq!(ask("/instances/start?model=org/tuned+model").await.ok()["success"], true);
    for path in ["/instances/start?model=none", "/instances/stop?model=none"] {
        assert_eq!(ask(path).await.error(404)["param"], "model", "{path}");
    }
    assert_eq!(ask("/instances/start").await.error(400)["param"], "model");
    assert_eq!(ask("/instances/stop?model=fake").await.error(400)["code"], "unsupported_operation");
    // Without jobs nothing can be fine-tuned.
    let bench = Bench::new(ServerConfig::default());
    assert_eq!(bench.get("/models/info").await.ok()[0]["finetuning_supported"], false);
}

#[tokio::test]
async fn a_file_is_announced_by_a_form_without_a_file() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let announce = |form: String| {
        let request = Request::post("/v1/files").header(header::HOST, "wardrobe.test");
        let kind = "application/x-www-form-urlencoded";
        bench.send(request.header(header::CONTENT_TYPE, kind).body(Body::from(form)).unwrap())
    };
    let answer = announce("purpose=fine-tune&file_name=two+words.jsonl&extra=1".to_owned()).await;
    assert_eq!(answer.status, 302, "{}", answer.text());
    let id = answer.headers["x-together-file-id"].to_str().unwrap().to_owned();
    let place = answer.headers["location"].to_str().unwrap().strip_prefix("http://wardrobe.test").unwrap();
    let sent = bench.send(Request::put(place).body(Body::from(RECORDS)).unwrap()).await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    let preprocessed = bench.call(&Method::POST, &format!("/v1/files/{id}/preprocess"), &[]).await;
    assert_eq!(preprocessed.status, 200, "{}", preprocessed.text());
    assert_eq!(bench.get(&format!("/v1/files/{id}")).await.ok()["filename"], "two words.jsonl");
    for (form, param) in [
        (String::new(), "purpose"),
        ("purpose=fine-tune".to_owned(), "file_name"),
        ("purpose=theft&file_name=a".to_owned(), "purpose"),
        ("purpose=fine-tune&file_name=a&checksum=12".to_owned(), "checksum"),
        (format!("purpose=fine-tune&file_name={}", "a".repeat(2000)), "file_name"),
    ] {
        assert_eq!(announce(form).await.error(400)["param"], param);
    }
    announce("purpose=%ff".to_owned()).await.error(400);
    announce("a".repeat(20_000)).await.error(413);
    announce("a&".repeat(200)).await.error(400);
}

#[tokio::test]
async fn jobs_have_the_fields_and_events_of_2023() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let file = upload(bench, "train.jsonl", RECORDS).await.ok()["id"].clone();
    assert_eq!(bench.get("/v1/files/").await.ok()["data"][0]["id"], file);
    // As the client sends it.
    let body = json!({"training_file": file, "model": "fake", "n_epochs": 2, "n_checkpoints": 1, "batch_size": 4,
                      "learning_rate": 1e-5, "suffix": "mine", "wandb_key": null});
    let made = bench.post("/v1/fine-tunes/", &body).await.ok();
    let path = format!("/v1/fine-tunes/{}", made["id"].as_str().unwrap());
    let mut job = made.clone();
    for _ in 0..2000 {
        job = bench.call(&Method::GET, &path, &[AGENT]).await.ok();
        if job["status"] == "completed" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(job["status"], "completed", "{job}");
    for field in [
        "training_file",
        "model_output_name",
        "model_output_path",
        "Suffix",
        "model",
        "n_epochs",
        "batch_size",
        "learning_rate",
        "user_id",
        "created_at",
        "updated_at",
        "status",
        "owner_address",
        "id",
        "job_id",
        "token_count",
        "param_count",
        "total_price",
        "epochs_completed",
        "events",
        "queue_depth",
        "wandb_project_name",
    ] {
        assert!(!job[field].is_null(), "{field}: {job}");
        // A job that waits has them too, but for what is not there yet.
        let later = ["model_output_path", "events"].contains(&field);
        assert!(later || !made[field].is_null(), "{field}: {made}");
    }
    assert_eq!(
        (&job["Suffix"], &job["n_epochs"], &job["batch_size"]),
        (&json!("mine"), &json!(2), &json!(4))
    );
    assert_eq!((&job["job_id"], &job["epochs_completed"]), (&job["id"], &json!(2)));

    let events = job["events"].as_array().unwrap();
    for event in events {
        for field in [
            "object",
            "created_at",
            "level",
            "message",
            "type",
            "param_count",
            "token_count",
            "checkpoint_path",
            "model_path",
        ] {
            assert!(!event[field].is_null(), "{field}: {event}");
        }
        assert_eq!(event["object"], "fine-tune-event");
    }
    let of = |kind: &str| {
        events.iter().find(|event| event["type"] == kind).unwrap_or_else(|| panic!("{kind}: {job}"))
    };
    // The client takes the last model for there when this has no checkpoint.
    let end = of("JOB_COMPLETE");
    assert_eq!((&end["checkpoint_path"], &end["model_path"]), (&json!(""), &job["model_output_path"]));
    assert_eq!(end["token_count"], job["token_count"]);
    let saved = of("CHECKPOINT_SAVE");
    assert_eq!(saved["checkpoint_path"], format!("{}:{}", job["id"].as_str().unwrap(), saved["step"]));
    let listed = bench.call(&Method::GET, &format!("{path}/events"), &[AGENT]).await.ok();
    assert_eq!(listed["data"], job["events"]);
    // The first versions of 1 know capitals too, and today's client does not.
    let kind = |agent: &'static str| {
        let path = format!("{path}/events");
        async move {
            let answer = bench.call(&Method::GET, &path, &[("user-agent", agent)]).await.ok();
            answer["data"][0]["type"].as_str().unwrap().to_owned()
        }
    };
    assert_eq!(kind("Together/v1 PythonBindings/1.5.35").await, "JOB_PENDING");
    for agent in ["Together/Python 3.1.1", "curl/8", ""] {
        assert_eq!(kind(agent).await, "job_pending");
    }
    assert_eq!(bench.get("/v1/fine-tunes/").await.ok()["data"][0]["id"], job["id"]);

    // The adapter, where the client of 2023 looks for it.
    let id = job["id"].as_str().unwrap();
    let path = "/api/finetune/downloadfinetunefile";
    let adapter = bench.get(&format!("{path}?ft_id={id}")).await;
    assert_eq!((adapter.status.as_u16(), &adapter.body[..2]), (200, &[0x1f, 0x8b][..]));
    assert_eq!(adapter.headers["content-type"], "application/x-tar");
    let step = saved["step"].as_u64().unwrap();
    assert_eq!(bench.get(&format!("{path}?ft_id={id}&checkpoint_step={step}")).await.status, 200);
    bench.get(&format!("{path}?ft_id={id}&checkpoint_step=999")).await.error(404);
    bench.get(&format!("{path}?ft_id=ft-none")).await.error(404);
    assert_eq!(bench.get(path).await.error(400)["param"], "ft_id");
    let tracked = json!({"training_file": file, "model": "fake", "wandb_key": "secret"});
    let error = bench.post("/v1/fine-tunes/", &tracked).await.error(400);
    assert_eq!(error["param"], "wandb_key");
    assert!(!error["message"].as_str().unwrap().contains("secret"), "{error}");
}
