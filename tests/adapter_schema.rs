//! Adapters that carry a schema: their answers are held to it unless a request says otherwise, from a folder and in process.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use serde_json::{Map, Value, json};
use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use support::{answer, assert_nothing_is_held};
use tempfile::TempDir;
use wardrobe::{
    AdapterSource, Engine, EngineOptions, LoadOptions, Model, ModelOptions, Request, SubmitError,
    adapter_source,
};

fn schema() -> Map<String, Value> {
    let schema = json!({
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "good": {"type": "boolean"}},
        "required": ["kind", "good"],
        "additionalProperties": false,
    });
    schema.as_object().unwrap().clone()
}

fn fits(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let kind = value["kind"].as_str();
    value.as_object().is_some_and(|o| o.keys().eq(["kind", "good"]))
        && (kind == Some("a") || kind == Some("b"))
        && value["good"].is_boolean()
}

fn open() -> (TempDir, Model, Engine) {
    let dir = TinyModel::default().write();
    let model = Model::open(dir.path(), &ModelOptions::default()).unwrap();
    let options = EngineOptions { kv_bytes: Some(16 << 20), num_slots: 3, ..EngineOptions::default() };
    let engine = model.engine(&options).unwrap();
    (dir, model, engine)
}

fn request(adapter: &str) -> Request {
    let prompt = Rng::new(5).tokens(9, 300);
    Request::new(prompt).with_adapter(adapter).with_max_tokens(60).with_seed(1)
}

#[test]
fn a_carried_schema_holds_answers() {
    let (_dir, model, engine) = open();
    let folder = tempfile::tempdir().unwrap();
    let lora = RandomLora::default();
    lora.write(model.config(), folder.path());
    std::fs::write(folder.path().join("schema.json"), json!(schema()).to_string()).unwrap();
    let from_disk = AdapterSource::Path(folder.path().to_owned());
    let info = engine.load_adapter("disk", from_disk, LoadOptions::default()).unwrap();
    assert!(info.has_schema);
    let in_process = adapter_source(lora.build(model.config()).with_schema(Some(schema())));
    let other = engine.load_adapter("process", in_process, LoadOptions::default()).unwrap();
    assert_eq!(info.digest, other.digest, "the same adapter");
    let plain = adapter_source(lora.build(model.config()));
    let plain = engine.load_adapter("plain", plain, LoadOptions::default()).unwrap();
    assert!(!plain.has_schema && plain.digest != info.digest);

    for name in ["disk", "process"] {
        let held = answer(&engine, request(name)).choices[0].text.clone();
        assert!(fits(&held), "{held:?}");
        // Whoever asks for something else gets it.
        let free = answer(&engine, Request { without_adapter_schema: true, ..request(name) });
        assert_eq!(free.choices[0].token_ids, answer(&engine, request("plain")).choices[0].token_ids);
        let endless = answer(&engine, Request { ignore_eos: true, ..request(name) });
        assert_eq!(endless.choices[0].token_ids.len(), 60);
        let yes = model.compile(&wardrobe::grammar::Spec::Choice(vec!["yes".into()])).unwrap();
        assert_eq!(answer(&engine, request(name).with_constraint(yes)).choices[0].text, "yes");
        let error = engine.submit(request(name).with_max_tokens(3)).err().unwrap();
        assert!(matches!(error, SubmitError::InvalidField { field: "max_tokens", .. }), "{error}");
    }
    assert_nothing_is_held(&engine);
}

#[test]
fn a_schema_that_cannot_hold_is_refused_with_its_adapter() {
    let (_dir, model, engine) = open();
    for (text, says) in [
        ("[]", "schema.json"),
        ("{", "schema.json"),
        (
            r#"{"properties": {"a": {"contains": {}}}}"#,
            "schema.json: the schema's keyword `contains` at $.properties.a",
        ),
        (r#"{"not": {}}"#, "schema.json"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        RandomLora::default().write(model.config(), folder.path());
        std::fs::write(folder.path().join("schema.json"), text).unwrap();
        let source = AdapterSource::Path(folder.path().to_owned());
        let error = engine.load_adapter("bad", source, LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    assert!(engine.adapters().is_empty());
}
