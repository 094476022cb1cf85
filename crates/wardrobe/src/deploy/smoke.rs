//! The test of a running endpoint: a shell script, so that it runs where the endpoint does.

use serde_json::{Value, json};

use super::Endpoint;
use super::quote::shell_word;

/// The script up to its questions; `@…@` stand for what differs.
const SCRIPT: &str = include_str!("smoke.sh");
/// Budgets of answers: a word or two, and what closes most schemas.
const MAX_TOKENS: usize = 16;
const MAX_SCHEMA_TOKENS: usize = 512;
const PROMPT: &str = "Say hello.";

pub(super) fn text(endpoint: &Endpoint<'_>) -> String {
    let route = if endpoint.chats { "/v1/chat/completions" } else { "/v1/completions" };
    let mut text = SCRIPT.replace("@URL@", &shell_word(&endpoint.url())).replace("@ROUTE@", route);
    let adapters: Vec<(&str, Option<&Value>)> = endpoint
        .adapters
        .iter()
        .map(|adapter| (adapter.deployed.name.as_str(), adapter.schema.as_ref()))
        .collect();
    let base = endpoint.deployment.base_names.first().map(|name| (name.as_str(), None));
    let models: Vec<_> = base.into_iter().chain(adapters).collect();
    let line = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
        format!("{}\n", words.join(" "))
    };
    for (name, _) in &models {
        text.push_str(&line(&["lists", name, &mark("id", name)]));
    }
    text.push('\n');
    for (name, schema) in &models {
        text.push_str(&line(&[
            "answers",
            name,
            &mark("model", name),
            &body(endpoint, name, schema.is_some()),
        ]));
        let Some(schema) = schema else { continue };
        let (kind, required) = expected(schema);
        let mut words = vec!["is_json", kind];
        words.extend(required);
        let call = line(&words);
        let failure = format!("{name}: the answer is not held to its schema");
        text.push_str(&format!(
            "{} || fail {}\"$(said)\"\npassed {}\n",
            call.trim_end(),
            shell_word(&format!("{failure}: ")),
            shell_word(&format!("{name} is held to its schema"))
        ));
    }
    text.push_str("echo \"all is as it should be\"\n");
    text
}

/// How the endpoint writes a field: as compact JSON.
fn mark(field: &str, name: &str) -> String {
    format!("{}:{}", Value::from(field), Value::from(name))
}

fn body(endpoint: &Endpoint<'_>, name: &str, has_schema: bool) -> String {
    let max_tokens = if has_schema { MAX_SCHEMA_TOKENS } else { MAX_TOKENS };
    let mut body = json!({"model": name, "max_tokens": max_tokens, "temperature": 0});
    let (field, value) = match endpoint.chats {
        true => ("messages", json!([{"role": "user", "content": PROMPT}])),
        false => ("prompt", json!(PROMPT)),
    };
    if let Some(fields) = body.as_object_mut() {
        fields.insert(field.to_owned(), value);
    }
    body.to_string()
}

/// What an answer that is held to a schema is at least.
fn expected(schema: &Value) -> (&'static str, Vec<&str>) {
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            let required = schema.get("required").and_then(Value::as_array);
            ("object", required.into_iter().flatten().filter_map(Value::as_str).collect())
        }
        _ => ("any", Vec::new()),
    }
}
