//! Request bodies that are wrong: the field at fault is named, in the words of JSON.

use serde_json::json;
use wardrobe_server::ServerConfig;

use crate::support_http::Bench;

#[tokio::test]
async fn bodies_are_explained_in_the_words_of_json() {
    let bench = Bench::new(ServerConfig::default());
    let chat = r#"{"messages": [{"role": "user", "content": "a"}], "#;
    for (path, body, param, words) in [
        ("/v1/completions", r#"{"model": "fake"}"#.to_owned(), "prompt", "is missing"),
        ("/v1/completions", r#"{"prompt": "a", "prompt": "b"}"#.to_owned(), "prompt", "is given twice"),
        ("/v1/completions", r#"{"prompt": "a", "n": 1, "n": 2}"#.to_owned(), "n", "is given twice"),
        (
            "/v1/completions",
            r#"{"prompt": "a", "max_tokens": "9"}"#.to_owned(),
            "max_tokens",
            "not a whole number",
        ),
        (
            "/v1/completions",
            r#"{"prompt": "a", "max_tokens": 1.5}"#.to_owned(),
            "max_tokens",
            "not a whole number",
        ),
        (
            "/v1/completions",
            r#"{"prompt": "a", "max_tokens": -1}"#.to_owned(),
            "max_tokens",
            "is integer `-1`",
        ),
        (
            "/v1/completions",
            r#"{"prompt": "a", "temperature": "hot"}"#.to_owned(),
            "temperature",
            "not a number",
        ),
        ("/v1/completions", r#"{"prompt": "a", "stream": 1}"#.to_owned(), "stream", "not true or false"),
        ("/v1/chat/completions", format!("{chat}\"logit_bias\": []}}"), "logit_bias", "not an object"),
        (
            "/v1/chat/completions",
            r#"{"messages": [{"content": "a"}]}"#.to_owned(),
            "messages[0].role",
            "is missing",
        ),
        ("/v1/load_lora_adapter", r#"{"lora_name": "a"}"#.to_owned(), "lora_path", "is missing"),
        ("/tokenize", "{}".to_owned(), "prompt", "is missing"),
    ] {
        let error = bench.post_text(path, &body).await.error(400);
        let message = error["message"].as_str().unwrap();
        assert_eq!(error["param"], param, "{body}: {message}");
        assert!(message.contains(words), "{body}: {message}");
        for word in ["u64", "u32", "i64", "f64", "line 1", "struct"] {
            assert!(!message.contains(word), "{body}: {message}");
        }
    }
    let broken = bench.post_text("/v1/completions", r#"{"prompt": "a",}"#).await.error(400);
    assert!(broken["message"].as_str().unwrap().contains("line 1"), "{broken}");
}

#[tokio::test]
async fn whole_numbers_may_be_written_with_a_point() {
    let bench = Bench::new(ServerConfig::default());
    let body =
        r#"{"prompt": " ", "max_tokens": 3.0, "n": 1.0, "top_k": -1.0, "temperature": 0, "logprobs": 1.0}"#;
    let answer = bench.post_text("/v1/completions", body).await.ok();
    assert_eq!(answer["choices"][0]["text"], "abc");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    for wrong in ["1e300", "-1.0", "18446744073709551616"] {
        let body = format!(r#"{{"prompt": "a", "max_tokens": {wrong}}}"#);
        assert_eq!(
            bench.post_text("/v1/completions", &body).await.error(400)["param"],
            "max_tokens",
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn a_model_that_is_not_served_is_not_tokenized_for() {
    let bench = Bench::new(ServerConfig::default());
    for (path, body) in [("/tokenize", json!({"prompt": "a"})), ("/detokenize", json!({"tokens": [97]}))] {
        for (model, status) in [("fake", 200), ("org/fake-alias", 200), ("nobody", 404)] {
            let mut body = body.clone();
            body["model"] = json!(model);
            let answer = bench.post(path, &body).await;
            assert_eq!(answer.status, status, "{path} {model}");
            if status == 404 {
                assert_eq!(answer.error(404)["code"], "model_not_found");
            }
        }
    }
}
