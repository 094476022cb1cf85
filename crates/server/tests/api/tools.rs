//! Tools: offered in the prompt, called in the answer, whole and streamed, in several notations.

use std::sync::Arc;

use serde_json::{Value, json};
use wardrobe_server::{Server, ServerConfig};
use wardrobe_text::{ChatTemplate, TemplateLimits};

use crate::support::{Behaviour, engine, served};
use crate::support_http::Bench;

const CHAT: &str = "/v1/chat/completions";

/// A template that shows tools and writes calls as bare objects.
const BARE: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}\
    {\"name\": \"{{ m.tool_calls[0].function.name }}\", \"parameters\": {{ m.tool_calls[0].function.arguments | tojson }}}\
    {% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

/// A template that writes calls after a special token, with ids.
const LISTED: &str = "{{ (tools or []) | tojson }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls %}<|endoftext|> [\
    {% for c in m.tool_calls %}{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}, \"id\": \"{{ c.id }}\"}\
    {% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

fn bench_with(template: Option<&str>) -> Bench {
    let template = template.map(|source| ChatTemplate::new(source, TemplateLimits::default()).unwrap());
    bench_of(template)
}

fn bench_of(template: Option<ChatTemplate>) -> Bench {
    let engine = engine(Behaviour::default(), |_| {});
    let mut model = served(engine.clone());
    if template.is_some() {
        model.chat_template = template.map(Arc::new);
    }
    let server = Server::new(model, ServerConfig::default()).unwrap();
    Bench { router: server.router(), engine, server }
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "weather", "description": "How the weather is.", "strict": true, "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer"}},
            "required": ["city", "days"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn body(change: Value) -> Value {
    let mut body = json!({"model": "fake", "temperature": 1.5, "max_tokens": 300, "tools": tools(),
        "messages": [{"role": "user", "content": "x"}]});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Calls of a message, checked for their shape and against the functions.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().len() >= 9, "{call}");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        let name = call["function"]["name"].as_str().unwrap().to_owned();
        let members = arguments.as_object().unwrap();
        match name.as_str() {
            "weather" => {
                assert!(members.keys().eq(["city", "days"]) && arguments["days"].is_i64(), "{arguments}");
                assert!(arguments["city"] == "Rome" || arguments["city"] == "Oslo", "{arguments}");
            }
            "now" => assert!(members.is_empty()),
            other => panic!("{other}"),
        }
        (name, arguments)
    };
    let ids: std::collections::BTreeSet<&str> =
        calls.iter().map(|call| call["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), calls.len(), "ids are of one call each");
    calls.iter().map(call).collect()
}

#[tokio::test]
async fn required_calls_are_made_whatever_ends_the_answer() {
    for template in [None, Some(BARE), Some(LISTED)] {
        let bench = bench_with(template);
        let (mut ends, mut most) = ([0, 0], 0);
        for seed in 0..40 {
            let max_tokens = if seed % 2 == 0 { 120 + seed } else { 300 };
            let asked = body(json!({"tool_choice": "required", "seed": seed, "max_tokens": max_tokens}));
            let answer = bench.post(CHAT, &asked).await.ok();
            let choice = &answer["choices"][0];
            assert!(choice["message"]["content"].is_null(), "{answer}");
            most = most.max(calls(&choice["message"]).len());
            assert!(!calls(&choice["message"]).is_empty());
            match choice["finish_reason"].as_str().unwrap() {
                "tool_calls" => ends[0] += 1,
                "length" => ends[1] += 1,
                other => panic!("{other}"),
            }
        }
        assert!(ends[0] > 0 && (most > 1 || template == Some(BARE)), "{template:?}: {ends:?}, {most}");
        bench.assert_idle().await;
    }
}

#[tokio::test]
async fn a_named_function_is_called_once() {
    let bench = bench_with(None);
    for name in ["weather", "now"] {
        let asked = body(json!({"tool_choice": {"type": "function", "function": {"name": name}}}));
        let answer = bench.post(CHAT, &asked).await.ok();
        let choice = &answer["choices"][0];
        assert_eq!(
            calls(&choice["message"]).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            [name]
        );
        assert_eq!(choice["finish_reason"], "stop", "the client's choice, not the model's");
    }
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required",
        "tools": [{"type": "function", "function": {"name": "now"}}]}});
    let one = body(json!({"tool_choice": allowed, "parallel_tool_calls": false}));
    let answer = bench.post(CHAT, &one).await.ok();
    assert_eq!(calls(&answer["choices"][0]["message"]), [("now".to_owned(), json!({}))]);
}

#[tokio::test]
async fn a_model_may_answer_with_text() {
    let bench = bench_with(None);
    let plain = json!({"temperature": 0, "max_tokens": 20});
    let answer = bench.post(CHAT, &body(plain.clone())).await.ok();
    let message = &answer["choices"][0]["message"];
    assert!(message["content"].as_str().is_some_and(|text| !text.is_empty()), "{answer}");
    assert!(message.get("tool_calls").is_none() && answer["choices"][0]["finish_reason"] != "tool_calls");
    // A stop string ends such a text, as it does without tools.
    let mut stopped = body(plain);
    let text = message["content"].as_str().unwrap();
    stopped["stop"] = json!([&text[2..4]]);
    let answer = bench.post(CHAT, &stopped).await.ok();
    assert_eq!(answer["choices"][0]["message"]["content"], json!(text[..2]));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn streams_bring_what_whole_answers_have() {
    for template in [None, Some(BARE), Some(LISTED)] {
        let bench = bench_with(template);
        for (seed, choice) in [(1, "required"), (2, "required"), (3, "auto")] {
            for change in [json!({}), json!({"logprobs": true, "top_logprobs": 1, "return_token_ids": true})]
            {
                let mut asked = body(json!({"tool_choice": choice, "seed": seed}));
                for (key, value) in change.as_object().unwrap() {
                    asked[key] = value.clone();
                }
                let whole = bench.post(CHAT, &asked).await.ok();
                asked["stream"] = json!(true);
                let chunks = bench.post(CHAT, &asked).await.chunks();
                let mut text = String::new();
                let mut streamed: Vec<Value> = Vec::new();
                let (mut ids, mut finish) = (Vec::new(), Value::Null);
                for chunk in &chunks {
                    let choice = &chunk["choices"][0];
                    ids.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
                    if !choice["finish_reason"].is_null() {
                        finish = choice["finish_reason"].clone();
                    }
                    text += choice["delta"]["content"].as_str().unwrap_or_default();
                    for part in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                        let index = usize::try_from(part["index"].as_u64().unwrap()).unwrap();
                        if index == streamed.len() {
                            let mut first = part.clone();
                            first.as_object_mut().unwrap().remove("index");
                            streamed.push(first);
                        } else {
                            assert!(
                                part.get("id").is_none() && part["function"].get("name").is_none(),
                                "{part}"
                            );
                            let more = part["function"]["arguments"].as_str().unwrap();
                            let so_far =
                                streamed[index]["function"]["arguments"].as_str().unwrap().to_owned();
                            streamed[index]["function"]["arguments"] = json!(so_far + more);
                        }
                    }
                }
                let message = &whole["choices"][0]["message"];
                assert_eq!(message["content"].as_str().unwrap_or_default(), text);
                assert_eq!(calls(&json!({"tool_calls": streamed})), calls(message));
                assert_eq!(finish, whole["choices"][0]["finish_reason"]);
                if change.get("return_token_ids").is_some() {
                    assert_eq!(json!(ids), whole["choices"][0]["token_ids"]);
                }
            }
        }
    }
}

/// The prompt that the model is given.
async fn prompt(bench: &Bench, mut asked: Value) -> String {
    asked["return_token_ids"] = json!(true);
    asked["temperature"] = json!(0);
    let answer = bench.post(CHAT, &asked).await.ok();
    let ids: Vec<u32> = serde_json::from_value(answer["prompt_token_ids"].clone()).unwrap();
    let bytes = ids.iter().flat_map(|&id| match id {
        0..=255 => vec![u8::try_from(id).unwrap()],
        256 => b"QQ".to_vec(),
        257 => b"<|endoftext|>".to_vec(),
        258 => b"<|im_start|>".to_vec(),
        _ => b"<|im_end|>".to_vec(),
    });
    String::from_utf8(bytes.collect()).unwrap()
}

#[tokio::test]
async fn prompts_tell_of_tools_calls_and_results() {
    let history = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call00001", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"Rome\", \"days\": 2}"}}]},
        {"role": "tool", "tool_call_id": "call00001", "content": "sunny"},
    ]);
    let plain = bench_with(None);
    let told = prompt(&plain, body(json!({"messages": history.clone()}))).await;
    for part in [
        "<|im_start|>system\nYou can call functions.",
        "\"name\":\"weather\"",
        "<|im_start|>assistant\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}\n</tool_call><|im_end|>",
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    // History alone is written too, and what may not be called is not offered.
    for change in [json!({"tools": null}), json!({"tool_choice": "none"})] {
        let mut asked = body(change);
        asked["messages"] = history.clone();
        let told = prompt(&plain, asked).await;
        assert!(told.contains("</tool_call>") && !told.contains("You can call"), "{told}");
    }
    let own = bench_with(Some(BARE));
    let told = prompt(&own, body(json!({"messages": history}))).await;
    assert!(told.starts_with("[{\"type\": \"function\", \"function\": {\"name\": \"weather\""), "{told}");
    assert!(
        told.contains(
            "[assistant]{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\", \"days\": 2}}<|im_end|>"
        ),
        "{told}"
    );
}

/// A model with a template for tools beside the default one, which knows none.
#[tokio::test]
async fn tools_have_a_template_of_their_own() {
    let default = "{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}(assistant)";
    let both = ChatTemplate::new(default, TemplateLimits::default()).unwrap().with_tool_use(BARE).unwrap();
    let bench = bench_of(Some(both));
    assert_eq!(prompt(&bench, body(json!({"tools": null}))).await, "(user)x(assistant)");
    let told = prompt(&bench, body(json!({}))).await;
    assert!(told.starts_with("[{\"type\"") && told.ends_with("[user]x<|im_end|>[assistant]"), "{told}");
    // Calls are in that template's notation.
    let answer = bench.post(CHAT, &body(json!({"tool_choice": "required"}))).await.ok();
    let made = calls(&answer["choices"][0]["message"]);
    assert!(!made.is_empty() && made.len() == 1, "one call alone: {answer}");
    // Where none are offered, earlier ones are told in a way that the default template can write.
    let history = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call00001", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"Rome\", \"days\": 2}"}}]},
        {"role": "tool", "tool_call_id": "call00001", "content": "sunny"},
    ]);
    let told = prompt(&bench, body(json!({"tools": null, "messages": history}))).await;
    assert!(told.starts_with("(user)x(assistant)<tool_call>") && told.contains("sunny"), "{told}");
}

#[tokio::test]
async fn a_schema_may_stand_beside_tools() {
    let bench = bench_with(None);
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true,
        "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}}});
    let (mut texts, mut called) = (0, 0);
    for seed in 0..20 {
        let answer = bench.post(CHAT, &body(json!({"response_format": format, "seed": seed}))).await.ok();
        let message = &answer["choices"][0]["message"];
        match message["content"].as_str() {
            Some(text) => {
                assert!(text == "{\"a\": true}" || text == "{\"a\": false}", "{text}");
                texts += 1;
            }
            None => called += calls(message).len().min(1),
        }
    }
    assert!(texts > 0 && called > 0, "{texts} texts, {called} with calls");
}

#[tokio::test]
async fn refusals_name_the_tool() {
    let bench = bench_with(None);
    let function = |change: Value| {
        let mut function = json!({"name": "f", "strict": true});
        for (key, value) in change.as_object().unwrap() {
            function[key] = value.clone();
        }
        json!({"tools": [{"type": "function", "function": function}]})
    };
    let contains = json!({"parameters": {"type": "object", "properties": {"a": {"contains": {}}}}});
    for (change, param, says) in [
        (json!({"tools": null, "tool_choice": "required"}), "tool_choice", "without `tools`"),
        (json!({"tool_choice": "always"}), "tool_choice", "\"always\""),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "other"}}}),
            "tool_choice",
            "\"other\"",
        ),
        (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type", "retrieval"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", "missing"),
        (json!({"tools": [{"type": "function", "function": {}}]}), "tools[0].function", "name"),
        (function(json!({"name": "a b"})), "tools", "a b"),
        (function(contains.clone()), "tools", "`contains` at $.properties.a of the parameters of function f"),
        (json!({"guided_regex": "a"}), "guided_regex", "beside `tools`"),
    ] {
        let error = bench.post(CHAT, &body(change.clone())).await.error(400);
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    // Not strict: what cannot be honoured is left out.
    let mut loose = function(contains);
    loose["tools"][0]["function"]["strict"] = json!(false);
    loose["tool_choice"] = json!("required");
    bench.post(CHAT, &body(loose)).await.ok();
    let plain = json!({"model": "fake", "prompt": "x", "tools": tools()});
    assert_eq!(bench.post("/v1/completions", &plain).await.error(400)["param"], "tools");
    bench.assert_idle().await;
}
