//! `/v1/chat/completions`, whole answers.

use serde_json::{Value, json};
use wardrobe_server::ServerConfig;

use crate::support_http::Bench;

const ALPHABET: &str = "abcdefghijklmnopqrstuvwxyz.";

async fn chat(bench: &Bench, change: Value) -> Value {
    let mut body =
        json!({"model": "fake", "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    bench.post("/v1/chat/completions", &body).await.ok()
}

#[tokio::test]
async fn answers_in_openais_shape() {
    let bench = Bench::new(ServerConfig::default());
    let answer = chat(&bench, json!({})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "fake");
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(answer["system_fingerprint"], "fp_abababababab");
    let choice = &answer["choices"][0];
    let message = json!({"role": "assistant", "content": ALPHABET, "refusal": null});
    assert_eq!(choice["message"], message);
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["logprobs"], Value::Null);
    // `<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n` is 21 tokens; the output ends with `<|im_end|>`.
    let usage = json!({"prompt_tokens": 21, "completion_tokens": 28, "total_tokens": 49,
                       "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(answer["usage"], usage);
    let again = chat(&bench, json!({})).await;
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 16, "a full block is shared");
    let alone = chat(&bench, json!({"cache_prompt": false})).await;
    assert_eq!(alone["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    bench.assert_idle().await;
}

#[tokio::test]
async fn limits_and_stops_are_honoured() {
    let bench = Bench::new(ServerConfig::default());
    for field in ["max_tokens", "max_completion_tokens", "n_predict"] {
        let answer = chat(&bench, json!({field: 3})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "abc", "{field}");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
    let answer = chat(&bench, json!({"max_tokens": 3, "max_completion_tokens": 5})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "abcde");
    for (stop, reason) in [(json!("fg"), json!("fg")), (json!(["zz", "fg"]), json!("fg"))] {
        let answer = chat(&bench, json!({"stop": stop})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "abcde");
        assert_eq!(answer["choices"][0]["stop_reason"], reason);
    }
    let answer = chat(&bench, json!({"stop": "fg", "include_stop_str_in_output": true})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "abcdefg");
    let answer = chat(&bench, json!({"stop_token_ids": [100]})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "abc");
    assert_eq!(answer["choices"][0]["stop_reason"], 100);
    let answer = chat(&bench, json!({"min_tokens": 29, "max_tokens": 29})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 29, "the end is banned until then");
    let answer = chat(&bench, json!({"ignore_eos": true, "max_tokens": 30})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], format!("{ALPHABET}ab"));
    let answer = chat(&bench, json!({"skip_special_tokens": false})).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with(ALPHABET), "{text}");
}

#[tokio::test]
async fn sampling_fields_reach_the_engine() {
    let bench = Bench::new(ServerConfig::default());
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let answer = chat(&bench, json!({"logit_bias": {"98": -100}, "max_tokens": 2})).await;
    assert_ne!(text(&answer), "ab");
    let answer = chat(&bench, json!({"logit_bias": {"65": 100}, "max_tokens": 3})).await;
    assert_eq!(text(&answer), "AAA");
    let answer = chat(&bench, json!({"allowed_token_ids": [66], "max_tokens": 3})).await;
    assert_eq!(text(&answer), "BBB");
    let answer = chat(&bench, json!({"bad_words": ["bc"], "max_tokens": 3})).await;
    assert!(text(&answer).starts_with("ab") && !text(&answer).starts_with("abc"), "{answer}");
    let seeded = json!({"temperature": 1.5, "seed": -7, "max_tokens": 12});
    let (one, two) = (chat(&bench, seeded.clone()).await, chat(&bench, seeded).await);
    assert_eq!(text(&one), text(&two));
    let other = chat(&bench, json!({"temperature": 1.5, "seed": 8, "max_tokens": 12})).await;
    assert_ne!(text(&one), text(&other));
    let several = chat(&bench, json!({"temperature": 1.5, "seed": 8, "max_tokens": 12, "n": 3})).await;
    let texts: std::collections::BTreeSet<_> = several["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(texts.len(), 3);
    assert_eq!(several["choices"][2]["index"], 2);
    for neutral in [
        json!({"top_k": -1, "max_tokens": 2}),
        json!({"top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 2}),
        json!({"frequency_penalty": 0, "presence_penalty": 0, "repeat_penalty": 1, "max_tokens": 2}),
        json!({"seed": u64::MAX, "priority": -3, "user": "u", "metadata": {"a": "b"}, "max_tokens": 2}),
        json!({"seed": null, "stop": null, "logit_bias": null, "tools": null, "top_p": null, "max_tokens": 2}),
    ] {
        assert_eq!(text(&chat(&bench, neutral.clone()).await), "ab", "{neutral}");
    }
}

#[tokio::test]
async fn logprobs_have_openais_shape() {
    let bench = Bench::new(ServerConfig::default());
    let answer = chat(&bench, json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 2})).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["refusal"], Value::Null);
    let content = logprobs["content"].as_array().unwrap();
    assert_eq!(content.len(), 2);
    for (row, letter) in content.iter().zip(["a", "b"]) {
        assert_eq!(row["token"], letter);
        assert_eq!(row["bytes"], json!([letter.as_bytes()[0]]));
        let top = row["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&row["token"], &row["logprob"]));
        assert!(top[0]["logprob"].as_f64() > top[1]["logprob"].as_f64());
        assert!(row["logprob"].as_f64().unwrap() < 0.0);
    }
    let answer = chat(&bench, json!({"logprobs": true, "max_tokens": 1})).await;
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    let answer = chat(&bench, json!({"logprobs": true, "max_tokens": 1, "logprob_token_ids": [90]})).await;
    assert_eq!(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["token"], "Z");
    let ids = json!({"logprobs": true, "max_tokens": 1, "return_tokens_as_token_ids": true});
    assert_eq!(chat(&bench, ids).await["choices"][0]["logprobs"]["content"][0]["token"], "token_id:97");
    let answer = chat(&bench, json!({"prompt_logprobs": 1, "max_tokens": 1})).await;
    let rows = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!((rows.len(), &rows[0]), (21, &Value::Null));
    // The second prompt token is the `u` of `user`.
    let own = &rows[1][b'u'.to_string().as_str()];
    assert_eq!(own["decoded_token"], "u");
    assert!(own["rank"].as_u64().unwrap() >= 1);
    assert_eq!(rows[1].as_object().unwrap().values().filter(|entry| entry["rank"] == 1).count(), 1);
}

#[tokio::test]
async fn messages_take_many_forms() {
    let bench = Bench::new(ServerConfig::default());
    let prompt = async |messages: Value, more: Value| {
        let mut body = json!({"messages": messages});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let tokens = bench.post("/tokenize", &body).await.ok()["tokens"].clone();
        let whole = chat(&bench, {
            body["return_token_ids"] = json!(true);
            body["max_tokens"] = json!(1);
            body
        })
        .await;
        assert_eq!(whole["prompt_token_ids"], tokens, "both routes render alike");
        assert_eq!(whole["choices"][0]["token_ids"].as_array().unwrap().len(), 1);
        bench.post("/detokenize", &json!({"tokens": tokens})).await.ok()["prompt"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(
        prompt(json!([{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]), json!({}))
            .await,
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    );
    let messages = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "so far"}]);
    assert_eq!(
        prompt(messages.clone(), json!({"continue_final_message": true})).await,
        "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\nso far"
    );
    assert!(prompt(messages, json!({"add_generation_prompt": false})).await.ends_with("so far<|im_end|>\n"));
    // A call that an assistant made before, and its result.
    let call = json!([
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function",
         "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]);
    assert!(
        prompt(call, json!({}))
            .await
            .contains("<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>")
    );
    let truncated = chat(&bench, json!({"truncate_prompt_tokens": 5, "max_tokens": 1})).await;
    assert_eq!(truncated["usage"]["prompt_tokens"], 5);
}

#[tokio::test]
async fn long_conversations_are_read_off_the_runtimes_thread() {
    let bench = Bench::with(
        crate::support::Behaviour { num_blocks: 2048, max_context_tokens: 20_000, ..Default::default() },
        ServerConfig { inline_text_bytes: 16, ..ServerConfig::default() },
        |_| {},
    );
    let long = "x".repeat(10_000);
    let answer =
        chat(&bench, json!({"messages": [{"role": "user", "content": long}], "max_tokens": 1})).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 10_019);
}

#[tokio::test]
async fn templates_from_requests_need_leave() {
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "return_token_ids": true,
                      "chat_template": "{{ messages[0]['content'] }}{{ suffix_text }}",
                      "chat_template_kwargs": {"suffix_text": "!"}});
    let refused = Bench::new(ServerConfig::default()).post("/v1/chat/completions", &body).await.error(400);
    assert_eq!(refused["param"], "chat_template");
    let config = ServerConfig { allow_request_chat_template: true, ..ServerConfig::default() };
    let bench = Bench::new(config);
    let answer = bench.post("/v1/chat/completions", &body).await.ok();
    assert_eq!(answer["prompt_token_ids"], json!([b'x', b'!']));
    for template in ["{% for", "{{ raise_exception('no') }}", "{% for i in range(100000000) %}{% endfor %}"] {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "chat_template": template});
        bench.post("/v1/chat/completions", &body).await.error(400);
    }
}

#[tokio::test]
async fn timings_come_when_asked_for() {
    let bench = Bench::new(ServerConfig::default());
    assert!(chat(&bench, json!({})).await.get("timings").is_none());
    let timings = chat(&bench, json!({"timings": true})).await["timings"].clone();
    assert_eq!((&timings["predicted_n"], &timings["cache_n"]), (&json!(28), &json!(16)));
    assert!(timings["prompt_ms"].as_f64().unwrap() >= 0.0);
}
