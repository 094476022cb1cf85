//! Adapters over HTTP: loading, replacing, unloading, choosing, and paths that try to escape.

use serde_json::{Value, json};
use tempfile::TempDir;
use wardrobe_engine::{AdapterSource, LoadOptions};
use wardrobe_server::{Server, ServerConfig, ServerError};

use crate::support::write_adapter;
use crate::support_http::{Answer, Bench};

fn bench() -> (Bench, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("adapters");
    for (name, letter) in [("first", 'm'), ("second", 'q')] {
        write_adapter(&root, name, letter);
    }
    write_adapter(&root, "broken", '7');
    write_adapter(folder.path(), "outside", 'c');
    std::os::unix::fs::symlink(folder.path().join("outside"), root.join("escape")).unwrap();
    (Bench::new(ServerConfig { adapter_root: Some(root), ..ServerConfig::default() }), folder)
}

async fn load(bench: &Bench, body: Value) -> Answer {
    bench.post("/v1/load_lora_adapter", &body).await
}

async fn text(bench: &Bench, model: &str, more: Value) -> String {
    let mut body = json!({"model": model, "prompt": " ", "max_tokens": 2, "temperature": 0});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    bench.post("/v1/completions", &body).await.ok()["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_name_lives_through_load_replace_and_unload() {
    let (bench, _folder) = bench();
    let answer = load(&bench, json!({"lora_name": "x", "lora_path": "first"})).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers["x-adapter-generation"], "1");
    assert!(answer.text().contains("'x'"), "{}", answer.text());
    assert_eq!(text(&bench, "x", json!({})).await, "mn");
    assert_eq!(text(&bench, "fake", json!({})).await, "ab");

    let card = bench.get("/v1/models/x").await.ok();
    assert_eq!((&card["root"], &card["parent"]), (&json!("first"), &json!("fake")));
    assert_eq!(bench.get("/v1/models").await.ok()["data"].as_array().unwrap().len(), 3);
    let listed = bench.get("/v1/lora_adapters").await.ok()["data"][0].clone();
    assert_eq!(
        (&listed["name"], &listed["generation"], &listed["rank"]),
        (&json!("x"), &json!(1), &json!(8))
    );
    assert_eq!(listed["digest"], "6d".repeat(32));
    let metrics = bench.get("/metrics").await;
    assert!(
        metrics
            .text()
            .contains(r#"lora_adapter_loaded{model_name="fake",engine="0",adapter_name="x",level="#),
        "{}",
        metrics.text()
    );

    let again = load(&bench, json!({"lora_name": "x", "lora_path": "second"})).await.error(400);
    assert_eq!(again["code"], "adapter_already_loaded");
    let replace =
        json!({"lora_name": "x", "lora_path": "second", "load_inplace": true, "expected_generation": 1});
    assert_eq!(load(&bench, replace.clone()).await.headers["x-adapter-generation"], "2");
    assert_eq!(load(&bench, replace).await.error(409)["code"], "generation_mismatch");
    assert_eq!(text(&bench, "x", json!({})).await, "qr");

    let unload = json!({"lora_name": "x", "expected_generation": 1});
    assert_eq!(
        bench.post("/v1/unload_lora_adapter", &unload).await.error(409)["code"],
        "generation_mismatch"
    );
    let answer = bench.post("/v1/unload_lora_adapter", &json!({"lora_name": "x"})).await;
    assert_eq!(
        (answer.status.as_u16(), answer.headers["content-type"].as_bytes()),
        (200, &b"text/plain; charset=utf-8"[..])
    );
    assert_eq!(
        bench.post("/v1/unload_lora_adapter", &json!({"lora_name": "x"})).await.error(404)["code"],
        "adapter_not_found"
    );
    let gone = bench.post("/v1/completions", &json!({"model": "x", "prompt": "a"})).await.error(404);
    assert_eq!((&gone["code"], &gone["param"]), (&json!("model_not_found"), &json!("model")));
    bench.assert_idle().await;
}

#[tokio::test]
async fn the_generation_that_answered_shows() {
    let (bench, _folder) = bench();
    load(&bench, json!({"lora_name": "x", "lora_path": "first"})).await;
    let body = json!({"model": "x", "messages": [{"role": "user", "content": "u"}], "max_tokens": 1});
    let answer = bench.post("/v1/chat/completions", &body).await.ok();
    // By content: "m" is 6d.
    assert_eq!(
        (&answer["system_fingerprint"], &answer["model"]),
        (&json!("fp_abababababab-6d6d6d6d6d6d"), &json!("x"))
    );
    let replace = json!({"lora_name": "x", "lora_path": "first", "load_inplace": true});
    assert_eq!(load(&bench, replace).await.headers["x-adapter-generation"], "2");
    let again = bench.post("/v1/chat/completions", &body).await.ok();
    assert_eq!(again["system_fingerprint"], answer["system_fingerprint"]);
    let replace = json!({"lora_name": "x", "lora_path": "second", "load_inplace": true});
    load(&bench, replace).await;
    let other = bench.post("/v1/chat/completions", &body).await.ok();
    assert_eq!(other["system_fingerprint"], "fp_abababababab-717171717171");
    let replace = json!({"lora_name": "x", "lora_path": "first", "load_inplace": true});
    load(&bench, replace).await;
    assert_eq!(text(&bench, "x", json!({"expected_generation": 4})).await, "mn");
    let stale = json!({"model": "x", "prompt": "a", "expected_generation": 7});
    assert_eq!(bench.post("/v1/completions", &stale).await.error(409)["param"], "expected_generation");
}

#[tokio::test]
async fn llama_cpps_field_chooses_one_adapter() {
    let (bench, _folder) = bench();
    for name in ["first", "second"] {
        load(&bench, json!({"lora_name": name, "lora_path": name})).await;
    }
    for (lora, expected) in [
        (json!([]), "ab"),
        (json!([{"id": "second"}]), "qr"),
        (json!([{"id": 1, "scale": 0.5}]), "mn"),
        (json!([{"id": 2, "scale": 1}]), "qr"),
    ] {
        assert_eq!(text(&bench, "fake", json!({"lora": lora})).await, expected, "{lora}");
    }
    assert_eq!(text(&bench, "second", json!({"lora": [{"id": "second", "scale": 2}]})).await, "qr");
    for (model, lora, status) in [
        ("fake", json!([{"id": 1}, {"id": 2}]), 400),
        ("first", json!([{"id": "second"}]), 400),
        ("fake", json!([{"id": 9}]), 404),
        ("fake", json!([{"id": "nobody"}]), 404),
        ("fake", json!([{"id": 1, "scale": 1e300}]), 400),
        ("fake", json!([{"id": -1}]), 400),
        ("fake", json!([{"scale": 1}]), 400),
        ("fake", json!({"id": 1}), 400),
    ] {
        let body = json!({"model": model, "prompt": "a", "lora": lora});
        bench.post("/v1/completions", &body).await.error(status);
    }
}

#[tokio::test]
async fn paths_stay_in_the_root() {
    let (bench, folder) = bench();
    let outside = folder.path().join("outside").display().to_string();
    let dotted = folder.path().join("adapters/../outside").display().to_string();
    for (path, status) in [
        (outside.as_str(), 403),
        (dotted.as_str(), 403),
        ("../outside", 403),
        ("first/../../outside", 403),
        ("escape", 403),
        ("/etc", 403),
        (".", 403),
        ("missing", 404),
        ("", 400),
        ("a\0b", 400),
    ] {
        let error = load(&bench, json!({"lora_name": "x", "lora_path": path})).await.error(status);
        assert_eq!(error["param"], "lora_path", "{path:?}");
        assert!(!error["message"].as_str().unwrap().contains("outside/"), "{error}");
    }
    let inside = folder.path().join("adapters/first").display().to_string();
    assert_eq!(load(&bench, json!({"lora_name": "x", "lora_path": inside})).await.status, 200);
}

#[tokio::test]
async fn bad_loads_say_what_is_wrong() {
    let (bench, _folder) = bench();
    let refused = load(&bench, json!({"lora_name": "x", "lora_path": "broken"})).await.error(400);
    assert_eq!(refused["code"], "adapter_refused");
    assert!(
        refused["message"].as_str().unwrap().contains("'7'")
            || refused["message"].as_str().unwrap().contains('7')
    );
    for name in ["fake", "org/fake-alias", "", " ", "a\nb"] {
        let error = load(&bench, json!({"lora_name": name, "lora_path": "first"})).await.error(400);
        assert_eq!(error["param"], "lora_name", "{name:?}");
    }
    for body in [json!({}), json!({"lora_name": "x"}), json!({"lora_name": 1, "lora_path": "first"})] {
        load(&bench, body).await.error(400);
    }
    assert_eq!(bench.engine.adapters().len(), 0);

    let closed = Bench::new(ServerConfig::default());
    let error = load(&closed, json!({"lora_name": "x", "lora_path": "first"})).await.error(403);
    assert_eq!(error["code"], "adapter_root_missing");
}

#[tokio::test]
async fn files_are_no_adapters_and_the_roots_place_is_not_told() {
    let (bench, folder) = bench();
    let error = load(&bench, json!({"lora_name": "x", "lora_path": "first/letter"})).await.error(400);
    assert_eq!((&error["param"], &error["code"]), (&json!("lora_path"), &json!("adapter_refused")));
    let root = std::fs::canonicalize(folder.path()).unwrap().display().to_string();
    std::fs::create_dir(folder.path().join("adapters/empty")).unwrap();
    for path in ["broken", "empty"] {
        let error = load(&bench, json!({"lora_name": "x", "lora_path": path})).await.error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("letter") && !message.contains(&root), "{message}");
    }
}

async fn pinned(bench: &Bench, name: &str) -> bool {
    let listed = bench.get("/v1/lora_adapters").await.ok();
    let data = listed["data"].as_array().unwrap();
    data.iter().find(|card| card["name"] == name).unwrap()["pinned"].as_bool().unwrap()
}

#[tokio::test]
async fn pins_come_and_go_and_outlive_a_replacement() {
    let (bench, _folder) = bench();
    load(&bench, json!({"lora_name": "x", "lora_path": "first", "pinned": true})).await;
    assert!(pinned(&bench, "x").await);
    let replace = |more: Value| {
        let mut body = json!({"lora_name": "x", "lora_path": "second", "load_inplace": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(load(&bench, replace(json!({}))).await.status, 200);
    assert!(pinned(&bench, "x").await, "nothing was said about the pin");
    load(&bench, replace(json!({"pinned": false}))).await;
    assert!(!pinned(&bench, "x").await);
    load(&bench, replace(json!({}))).await;
    assert!(!pinned(&bench, "x").await);

    let pin = async |body: Value| bench.post("/v1/pin_lora_adapter", &body).await;
    let answer = pin(json!({"lora_name": "x"})).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["x-adapter-generation"]),
        (200, &"4".parse().unwrap())
    );
    assert!(pinned(&bench, "x").await);
    assert_eq!(pin(json!({"lora_name": "x", "pinned": false})).await.status, 200);
    assert!(!pinned(&bench, "x").await);
    assert_eq!(pin(json!({"lora_name": "nobody"})).await.error(404)["code"], "adapter_not_found");
    assert_eq!(pin(json!({"pinned": true})).await.error(400)["param"], "lora_name");

    // Of eight slots, one stays for the others.
    for idx in 0..7 {
        let name = format!("p{idx}");
        let body = json!({"lora_name": name, "lora_path": "first", "pinned": true});
        assert_eq!(load(&bench, body).await.status, 200);
    }
    let full = pin(json!({"lora_name": "x"})).await.error(409);
    assert_eq!((&full["code"], &full["param"]), (&json!("too_many_pinned"), &json!("pinned")));
}

#[tokio::test]
async fn clients_take_away_only_what_they_can_load_again() {
    let (bench, folder) = bench();
    let load_here = |bench: &Bench, name: &str, path: &str| {
        let source = AdapterSource::Path(folder.path().join(path));
        bench.engine.load_adapter(name, source, LoadOptions::default()).unwrap();
    };
    let unload = async |bench: &Bench, name: &str| {
        bench.post("/v1/unload_lora_adapter", &json!({"lora_name": name})).await
    };
    load_here(&bench, "inside", "adapters/first");
    load_here(&bench, "outside", "outside");
    assert_eq!(unload(&bench, "inside").await.status, 200);
    let error = unload(&bench, "outside").await.error(403);
    assert_eq!((&error["code"], &error["param"]), (&json!("adapter_not_loadable"), &json!("lora_name")));
    let rootless = Bench::new(ServerConfig::default());
    load_here(&rootless, "inside", "adapters/first");
    assert_eq!(unload(&rootless, "inside").await.error(403)["code"], "adapter_not_loadable");
    assert_eq!(rootless.engine.adapters().len(), 1);
    assert_eq!(unload(&rootless, "nobody").await.error(404)["code"], "adapter_not_found");
}

#[tokio::test]
async fn a_loaded_adapter_with_a_name_of_the_base_model_is_refused_at_start() {
    let engine = crate::support::engine(crate::support::Behaviour::default(), |_| {});
    let folder = tempfile::tempdir().unwrap();
    write_adapter(folder.path(), "a", 'c');
    let source = AdapterSource::Path(folder.path().join("a"));
    engine.load_adapter("org/fake-alias", source, LoadOptions::default()).unwrap();
    let error = Server::new(crate::support::served(engine), ServerConfig::default()).err().unwrap();
    assert!(matches!(error, ServerError::Config { field: "model_id", .. }), "{error}");
}
