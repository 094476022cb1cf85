//! `wardrobe eval` as a person runs it: what is wrong is told before a model is opened, reports are written whole, and with
//! SmolLM2 an adapter is better at its task than the base.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
#[allow(dead_code, reason = "the tiny model uses a part of it")]
#[path = "support/random.rs"]
mod random;
#[allow(dead_code, reason = "only its path is needed")]
#[path = "support/smollm2.rs"]
mod smollm2;
#[path = "support/tiny.rs"]
mod tiny;

use command::*;
use serde_json::Value;
use tiny::TinyModel;

fn data(name: &str) -> String {
    format!("{}/datasets/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn what_is_wrong_is_told_before_a_model_is_opened() {
    let biographies = data("biographies/test.jsonl");
    let eval =
        |args: &[&str]| wardrobe(&[&["eval", "./no-model.gguf", "--data", &biographies], args].concat());
    for (args, code, named) in [
        (&["--task", "chess"][..], 2, "last-words"),
        (&["--contexts", "512"], 2, "perplexity"),
        (&["--task", "perplexity", "--contexts", "1"], 2, "--contexts"),
        (&["--task", "perplexity", "--contexts", "64,128", "--stride", "64"], 2, "--stride"),
        (&["--task", "choices", "--schema", "x.json"], 2, "--schema"),
        (&["--task", "rouge", "--documents", "20"], 2, "mqa"),
        (&["--task", "exact-match", "--ignore", "nothing,case"], 2, "--ignore"),
        (&["--price", "base=free"], 2, "--price"),
        (&["--prices", "/nonexistent.json"], 1, "/nonexistent.json"),
        (&["--group-by", "a,b,c"], 2, "--group-by"),
        (&["--report", "out.txt"], 2, "out.txt"),
        (&["--limit", "0"], 2, "--limit"),
        (&["--seed", "1"], 2, "--limit"),
        (&["--max-tokens", "0"], 2, "--max-tokens"),
        (&["--no-base"], 2, "--adapter"),
        (&["--adapter", "x=/nonexistent"], 1, "/nonexistent"),
        (&["--train-data", "/nonexistent.jsonl"], 1, "/nonexistent.jsonl"),
        (&[], 1, "no-model.gguf"),
    ] {
        let said = fails(&mut eval(args), code);
        assert!(said.contains(named), "{args:?}: {said}");
    }
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"prompt\": \"q\"}\nnot json\n").unwrap();
    let output = output(&mut wardrobe(&["eval", "./no-model.gguf", "--data", bad.to_str().unwrap()]));
    let said = stderr(&output);
    assert!(!output.status.success() && said.contains("line 1") && said.contains("line 2"), "{said}");
}

#[test]
fn reports_hold_every_answer() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (items, json, html) = (file("items.jsonl"), file("report.json"), file("report.html"));
    let long = "word ".repeat(2000);
    let lines = [("one two three", "three"), (&long, "word"), ("<b>four</b>", "four")];
    let lines: Vec<String> = lines
        .iter()
        .map(|(prompt, end)| format!("{}\n", serde_json::json!({"prompt": prompt, "completion": end})))
        .collect();
    std::fs::write(&items, lines.concat() + "{}\n").unwrap();
    let model = TinyModel::default().write();
    let mut command = wardrobe(&["eval", model.path().to_str().unwrap(), "--task", "last-words", "--raw"]);
    command.args(["--data", &items, "--max-tokens", "8", "--kv-memory", "16MiB"]);
    let shown = succeeds(command.args(["--report", &json, "--report", &html]));
    for expected in ["ratio", "length_difference_words", "1 items failed", "line 2", "line 4"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let result = &report["results"][0];
    assert_eq!((result["num_scored"].as_u64(), result["failed"][0]["line"].as_u64()), (Some(2), Some(2)));
    assert_eq!(report["problems"][0]["line"], 4);
    assert_eq!(result["outcomes"].as_array().unwrap().len(), 3);
    assert!(result["mistakes"].as_array().unwrap().iter().any(|one| one["mistake"] == "cut_off"));
    let html = std::fs::read_to_string(&html).unwrap();
    assert!(html.contains("&lt;b&gt;four") && !html.contains("<b>") && !html.contains("http://"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing unfinished stays");
}

#[test]
fn texts_are_weighed_by_an_engine_and_over_http_alike() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let book = file("book.txt", &"one two three four five six seven eight nine ten ".repeat(8));
    let arc = file(
        "arc.jsonl",
        &["one two", "three four", "five six", "seven"]
            .map(|stem| {
                let choices = serde_json::json!({"text": ["eight", "nine ten", "one two three"], "label": ["A", "B", "C"]});
                serde_json::json!({"id": stem, "question": stem, "choices": choices, "answerKey": "B"}).to_string() + "\n"
            })
            .concat(),
    );
    let prices = file("prices.toml", "[tiny]\ninput_per_million = 2.0\noutput_per_million = 8.0\n");
    let model = TinyModel::default().write();
    let path = model.path().to_str().unwrap();
    let server = Serving::start(wardrobe(&[
        "serve",
        path,
        "--served-model-name",
        "tiny",
        "--port",
        "0",
        "--kv-memory",
        "16MiB",
    ]));
    let run = |who: &str, args: &[&str], name: &str| -> Value {
        let json = folder.path().join(name);
        let mut command = wardrobe(&[&["eval", who], args].concat());
        succeeds(command.args(["--prices", &prices, "--report", json.to_str().unwrap()]));
        serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
    };
    for (task, data) in [("perplexity", &book), ("choices", &arc)] {
        let mut args = vec!["--task", task, "--data", data.as_str()];
        if task == "perplexity" {
            args.extend(["--contexts", "16,32", "--stride", "5"]);
        }
        let over_http = run(&server.base, &args, "http.json");
        let here = run(path, &[args.as_slice(), &["--kv-memory", "16MiB"]].concat(), "here.json");
        let outcomes = |report: &Value| -> Vec<Value> {
            report["results"][0]["outcomes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| one["answered"].clone())
                .collect()
        };
        let (a, b) = (outcomes(&here), outcomes(&over_http));
        assert_eq!((a.len(), b.len()), if task == "choices" { (4, 4) } else { (2, 2) });
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a["text"], &a["prompt_tokens"]), (&b["text"], &b["prompt_tokens"]));
            for (a, b) in a["score"].as_array().unwrap().iter().zip(b["score"].as_array().unwrap()) {
                let (left, right) = (a[1].as_f64().unwrap(), b[1].as_f64().unwrap());
                assert!((left - right).abs() <= 1e-5 * left.abs(), "{a} {b}");
            }
        }
        let cost = over_http["results"][0]["cost"]["total"].as_f64().unwrap();
        let tokens = over_http["results"][0]["prompt_tokens"].as_f64().unwrap();
        assert!((cost - tokens * 2e-6).abs() < 1e-12 && here["results"][0]["cost"].is_null());
        if task == "perplexity" {
            let cells = over_http["groups"][0]["cells"].as_array().unwrap();
            let at: Vec<_> = cells.iter().map(|cell| cell["at"][0]["from"].as_f64().unwrap()).collect();
            assert_eq!(at, [16.0, 32.0]);
        }
    }
}

#[test]
fn an_adapter_is_better_at_its_task_than_the_base() {
    let Some(model) = smollm2::path("an_adapter_is_better_at_its_task_than_the_base") else { return };
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let tuned = format!("tuned={}", adapter("biography-json").display());
    let (test, train) = (data("biographies/test.jsonl"), data("biographies/train.jsonl"));
    let mut command = wardrobe(&["eval", model.to_str().unwrap(), "--data", &test, "--train-data", &train]);
    command.args(["--adapter", &tuned, "--limit", "12", "--max-tokens", "64", "--report"]).arg(&json);
    let shown = succeeds(&mut command);
    assert!(shown.contains("majority (of the training set)"), "{shown}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let value = |idx: usize, name: &str| {
        let metrics = report["results"][idx]["metrics"].as_array().unwrap();
        metrics.iter().find(|metric| metric["name"] == name).unwrap()["value"].as_f64().unwrap()
    };
    assert!(value(1, "valid") >= 0.9 && value(1, "fields") >= 0.5, "{shown}");
    assert!(value(0, "fields") < value(1, "fields"), "{shown}");
}
