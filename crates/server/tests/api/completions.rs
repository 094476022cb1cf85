//! `/v1/completions`, whole answers, and the routes around it: tokenizer, models.

use serde_json::{Value, json};
use wardrobe_server::ServerConfig;

use crate::support_http::Bench;

async fn complete(bench: &Bench, change: Value) -> Value {
    let mut body = json!({"model": "fake", "temperature": 0, "prompt": "x", "max_tokens": 3});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    bench.post("/v1/completions", &body).await.ok()
}

fn texts(answer: &Value) -> Vec<&str> {
    answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn prompts_take_four_shapes() {
    let bench = Bench::new(ServerConfig::default());
    let cases = [
        (json!("a"), vec!["bcd"]),
        (json!(["a", "m"]), vec!["bcd", "nop"]),
        (json!([97]), vec!["bcd"]),
        (json!([[97], [109]]), vec!["bcd", "nop"]),
    ];
    for (prompt, expected) in cases {
        let answer = complete(&bench, json!({"prompt": prompt})).await;
        assert_eq!(texts(&answer), expected);
        assert_eq!(answer["object"], "text_completion");
        for (index, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
            assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(index), &json!("length")));
            assert_eq!(choice["logprobs"], Value::Null);
        }
        assert_eq!(answer["usage"]["completion_tokens"], 3 * expected.len());
        assert_eq!(answer["usage"]["prompt_tokens"], expected.len());
    }
    let answer = complete(&bench, json!({"prompt": ["a", "m"], "n": 2})).await;
    assert_eq!(texts(&answer), ["bcd", "bcd", "nop", "nop"]);
    let body = json!({"prompt": "a", "temperature": 0});
    let answer = bench.post("/v1/completions", &body).await.ok();
    assert_eq!(answer["usage"]["completion_tokens"], 16, "the API's default");
    bench.assert_idle().await;
}

#[tokio::test]
async fn many_long_prompts_are_read_side_by_side() {
    // Streams hold 4 tokens and may stay full for a moment only: a reader that takes them one after another loses.
    let bench = Bench::with(crate::support::Behaviour::default(), ServerConfig::default(), |config| {
        config.stream_buffer_tokens = 4;
        config.stream_stall_timeout = std::time::Duration::from_millis(300);
    });
    let prompts: Vec<_> = (0..24).map(|_| "a").collect();
    let answer = complete(&bench, json!({"prompt": prompts, "max_tokens": 60, "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 24 * 60);
    bench.assert_idle().await;
}

#[tokio::test]
async fn echo_with_logprobs_is_what_lm_eval_reads() {
    let bench = Bench::new(ServerConfig::default());
    let prompts: [&[u32]; 2] = [&[120, 97, 98, 99], &[97, 122, 98]];
    let answer = complete(
        &bench,
        json!({"prompt": prompts, "max_tokens": 1, "logprobs": 1, "echo": true, "seed": 1234}),
    )
    .await;
    for (choice, prompt) in answer["choices"].as_array().unwrap().iter().zip(prompts) {
        let logprobs = &choice["logprobs"];
        let rows = logprobs["token_logprobs"].as_array().unwrap();
        let tops = logprobs["top_logprobs"].as_array().unwrap();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[name].as_array().unwrap().len(), prompt.len() + 1, "{name}");
        }
        assert_eq!((&rows[0], &tops[0]), (&Value::Null, &Value::Null));
        let mut last = prompt[0];
        for (idx, token) in prompt.iter().skip(1).enumerate() {
            let logprob = rows[idx + 1].as_f64().unwrap();
            let top = tops[idx + 1].as_object().unwrap();
            let max = top.values().map(|value| value.as_f64().unwrap()).fold(f64::MIN, f64::max);
            let follows = *token == last + 1 || (last == 120 && *token == 121);
            assert_eq!(logprob == max, follows, "after {last} comes {token}: {top:?}");
            assert!(
                top.contains_key(&char::from(*token as u8).to_string()),
                "the token itself is there: {top:?}"
            );
            assert_eq!(top.len(), if follows { 1 } else { 2 });
            last = *token;
        }
        assert_eq!(logprobs["text_offset"], json!((0..=prompt.len()).collect::<Vec<_>>()));
        let text: String =
            logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!(choice["text"], text);
    }
    // Log-probabilities of the answer agree with those of the same text as a prompt.
    let generated = complete(&bench, json!({"prompt": [120], "logprobs": 2})).await;
    let echoed = complete(
        &bench,
        json!({"prompt": [120, 121, 122, 46], "logprobs": 2, "echo": true, "max_tokens": 0}),
    )
    .await;
    assert_eq!(texts(&generated), ["yz."]);
    assert_eq!(texts(&echoed), ["xyz."]);
    let rows =
        |answer: &Value| answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    assert_eq!(rows(&echoed)[1..], rows(&generated)[..]);
    assert_eq!(echoed["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn offsets_count_characters() {
    let bench = Bench::new(ServerConfig::default());
    let answer =
        complete(&bench, json!({"prompt": "é\u{1f642}x", "echo": true, "logprobs": 0, "max_tokens": 2}))
            .await;
    assert_eq!(texts(&answer), ["é\u{1f642}xyz"]);
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["text_offset"], json!([0, 1, 1, 2, 2, 2, 2, 3, 4]));
    assert_eq!(logprobs["tokens"][0], "bytes:\\xc3");
    assert_eq!(logprobs["tokens"][6], "x");
}

#[tokio::test]
async fn best_of_keeps_the_likeliest() {
    let bench = Bench::new(ServerConfig::default());
    let base = json!({"temperature": 1.2, "seed": 3, "logprobs": 0, "max_tokens": 8});
    let with = |more: Value| {
        let mut body = base.clone();
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    let all = complete(&bench, with(json!({"n": 6}))).await;
    let mean = |choice: &Value| {
        let rows = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        rows.iter().map(|row| row.as_f64().unwrap()).sum::<f64>() / rows.len() as f64
    };
    let mut ranked: Vec<_> = all["choices"].as_array().unwrap().iter().collect();
    ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let best = complete(&bench, with(json!({"n": 2, "best_of": 6}))).await;
    assert_eq!(texts(&best), [ranked[0]["text"].as_str().unwrap(), ranked[1]["text"].as_str().unwrap()]);
    assert_eq!(best["choices"][1]["index"], 1);
    assert_eq!(best["usage"]["completion_tokens"], all["usage"]["completion_tokens"]);
    let mut silent = with(json!({"best_of": 6}));
    silent["logprobs"] = Value::Null;
    let silent = complete(&bench, silent).await;
    assert_eq!((texts(&silent)[0], &silent["choices"][0]["logprobs"]), (texts(&best)[0], &Value::Null));
}

#[tokio::test]
async fn token_ids_come_back() {
    let bench = Bench::new(ServerConfig::default());
    let answer = complete(&bench, json!({"prompt": ["a", "QQ"], "return_token_ids": true})).await;
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!([97]));
    assert_eq!(answer["choices"][0]["token_ids"], json!([98, 99, 100]));
    assert_eq!(answer["choices"][1]["prompt_token_ids"], json!([256]));
    let answer = complete(
        &bench,
        json!({"prompt": [97, 98, 99], "truncate_prompt_tokens": 2, "return_token_ids": true,
                                         "echo": true}),
    )
    .await;
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!([98, 99]));
    assert_eq!(texts(&answer), ["bcdef"]);
    let answer = complete(&bench, json!({"prompt": "ab", "prompt_logprobs": 0})).await;
    let rows = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!((rows.len(), rows[1]["98"]["rank"].as_u64()), (2, Some(1)));
}

#[tokio::test]
async fn the_tokenizer_is_served() {
    let bench = Bench::new(ServerConfig::default());
    let info = bench.get("/tokenizer_info").await.ok();
    assert_eq!((&info["eos_token"], &info["bos_token"]), (&json!("<|im_end|>"), &json!("<|im_start|>")));
    assert_eq!(info["chat_template"], crate::support::TEMPLATE);
    let body = json!({"prompt": "<|im_end|>é", "add_special_tokens": false, "return_token_strs": true});
    let answer = bench.post("/tokenize", &body).await.ok();
    assert_eq!(answer["tokens"], json!([259, 0xc3, 0xa9]));
    assert_eq!((&answer["count"], &answer["max_model_len"]), (&json!(3), &json!(1024)));
    assert_eq!(answer["token_strs"][0], "<|im_end|>");
    let answer = bench.post("/detokenize", &json!({"tokens": [259, 0xc3, 0xa9]})).await.ok();
    assert_eq!(answer["prompt"], "<|im_end|>é");
    bench.post("/detokenize", &json!({"tokens": [260]})).await.error(400);
    bench.post("/detokenize", &json!({"tokens": [-1]})).await.error(400);
    bench.post("/tokenize", &json!({})).await.error(400);
}

#[tokio::test]
async fn models_are_listed_under_all_names() {
    let bench = Bench::new(ServerConfig::default());
    let list = bench.get("/v1/models").await.ok();
    let ids: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec!["fake", "org/fake-alias"]));
    for (path, id) in [
        ("/v1/models/fake", "fake"),
        ("/v1/v1/models/fake", "fake"),
        ("/v1/models/org/fake-alias", "org/fake-alias"),
        ("/v1/models/org%2Ffake-alias", "org/fake-alias"),
    ] {
        let card = bench.get(path).await.ok();
        assert_eq!(card["id"], id);
        assert_eq!((&card["object"], &card["max_model_len"]), (&json!("model"), &json!(1024)));
        assert_eq!((&card["root"], &card["parent"]), (&json!("fake"), &Value::Null));
        assert_eq!(card["created"], 1_700_000_000);
    }
    assert_eq!(bench.get("/v1/models/other").await.error(404)["code"], "model_not_found");
    bench.get("/v1/models/%ff").await.error(400);
    let answer = complete(&bench, json!({"model": "org/fake-alias"})).await;
    assert_eq!(answer["model"], "org/fake-alias");
    let answer = complete(&bench, json!({"model": null})).await;
    assert_eq!(answer["model"], "fake");
}

#[tokio::test]
async fn probes_and_metrics_answer() {
    let bench = Bench::new(ServerConfig::default());
    assert_eq!(bench.get("/health").await.ok()["status"], "ok");
    assert_eq!(bench.get("/ready").await.ok()["status"], "ready");
    assert_eq!(bench.get("/version").await.ok()["version"], env!("CARGO_PKG_VERSION"));
    complete(&bench, json!({"prompt": ["a", "b"]})).await;
    bench.assert_idle().await;
    let answer = bench.get("/metrics").await;
    let text = answer.text();
    assert!(text.ends_with("# EOF\n"));
    let value = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let labels = r#"{model_name="fake",engine="0"}"#;
    for (name, expected) in [
        (format!("vllm:num_requests_running{labels}"), 0.0),
        (format!("vllm:num_requests_waiting{labels}"), 0.0),
        (format!("vllm:kv_cache_usage_perc{labels}"), 0.0),
        (format!("vllm:prompt_tokens_total{labels}"), 2.0),
        (format!("vllm:generation_tokens_total{labels}"), 6.0),
        (format!("vllm:num_preemptions_total{labels}"), 0.0),
        (format!("vllm:e2e_request_latency_seconds_count{labels}"), 2.0),
        (format!("vllm:time_to_first_token_seconds_count{labels}"), 2.0),
        (format!("vllm:inter_token_latency_seconds_count{labels}"), 4.0),
        (format!("vllm:request_generation_tokens_sum{labels}"), 6.0),
        (
            r#"vllm:request_success_total{model_name="fake",engine="0",finished_reason="length"}"#.to_owned(),
            2.0,
        ),
        (
            r#"vllm:cache_config_info{model_name="fake",engine="0",block_size="16",num_gpu_blocks="256"}"#
                .to_owned(),
            1.0,
        ),
        (r#"http_requests_total{method="POST",route="/v1/completions",status="200"}"#.to_owned(), 1.0),
    ] {
        assert_eq!(value(&name), expected, "{name}");
    }
    for name in ["queue", "prefill", "decode", "inference"] {
        assert_eq!(value(&format!("vllm:request_{name}_time_seconds_count{labels}")), 2.0);
    }
    assert!(value("vllm:iteration_tokens_total_count") >= 3.0);
    assert!(value("vllm:lora_requests_info{model_name=\"fake\",engine=\"0\",max_lora=\"8\"") > 1.7e9);
    for name in ["vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"] {
        assert!(value(name) >= 0.0);
    }
}
