//! `wardrobe eval` as a person runs it: what is wrong is told before a model is opened, reports are written whole, and with
//! SmolLM2 an adapter is better at its task than the base.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
#[path = "support/kills.rs"]
mod kills;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/random.rs"]
mod random;
#[allow(dead_code, reason = "only its path is needed")]
#[path = "support/smollm2.rs"]
mod smollm2;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/teacher.rs"]
mod teacher;
#[path = "support/tiny.rs"]
mod tiny;

use std::time::Duration;

use command::*;
use serde_json::{Value, json};
use teacher::{Reply, Teacher};
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

/// A report but for the times in it.
fn timeless(mut report: Value) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.remove("seconds");
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut report);
    report
}

#[test]
fn runs_that_are_killed_again_and_again_report_what_one_that_is_not_does() {
    const ITEMS: usize = 120;
    let folder = tempfile::tempdir().unwrap();
    let line =
        |i: usize| json!({"prompt": format!("question {i}"), "completion": format!("answer {}", i % 7)});
    let lines: String = (0..ITEMS).map(|i| format!("{}\n", line(i))).collect();
    std::fs::write(folder.path().join("items.jsonl"), lines).unwrap();
    let behaviour = |body: &Value, _| {
        let asked = body["messages"][0]["content"].as_str().unwrap();
        let number: usize = asked.rsplit(' ').next().unwrap().parse().unwrap();
        Reply::Answer(format!("answer {}", number % 5), "stop", Duration::from_millis(15))
    };
    let eval = |teacher: &Teacher, report: &str, args: &[&str]| {
        let mut command = wardrobe(&["eval", &teacher.url, "--task", "exact-match", "--data", "items.jsonl"]);
        command.args(["--concurrency", "4", "--report", report]).args(args).current_dir(folder.path());
        command
    };
    let read = |report: &str| {
        let text = std::fs::read(folder.path().join(report)).unwrap();
        timeless(serde_json::from_slice(&text).unwrap())
    };
    let undisturbed = Teacher::start(behaviour);
    succeeds(&mut eval(&undisturbed, "whole.json", &[]));
    let whole = read("whole.json");
    assert_eq!((whole["items"].as_array().unwrap().len(), undisturbed.num_asked()), (ITEMS, ITEMS));

    let teacher = Teacher::start(behaviour);
    let kills = kills::until_done(
        &teacher,
        || eval(&teacher, "pieces.json", &[]),
        || assert!(!folder.path().join("pieces.json").exists()),
    );
    assert_eq!(read("pieces.json"), whole);
    kills::nothing_twice(&teacher, &kills, ITEMS, 4);

    // With the report the kept answers go, and the next run asks; those in a file of one's own stay.
    let files = || {
        let names = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(files(), ["items.jsonl", "pieces.json", "whole.json"]);
    for (report, num_asked) in [("mine.json", ITEMS), ("again.json", 0)] {
        let before = undisturbed.num_asked();
        let done = output(&mut eval(&undisturbed, report, &["--answers", "mine.sqlite"]));
        assert!(done.status.success(), "{}", stderr(&done));
        assert_eq!(undisturbed.num_asked() - before, num_asked, "{report}");
        assert_eq!(stderr(&done).contains("120 of the answers were kept from before"), num_asked == 0);
        assert_eq!(read(report), whole);
    }
    assert!(files().contains(&"mine.sqlite".to_owned()));
    // A file that is none is named before anything is asked.
    let said = fails(&mut eval(&undisturbed, "x.json", &["--answers", "items.jsonl"]), 1);
    assert!(said.contains("items.jsonl"), "{said}");
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
        // What was weighed once is kept to the bit.
        let kept = file("kept.sqlite", "");
        for _ in 0..2 {
            let again = run(
                path,
                &[args.as_slice(), &["--kv-memory", "16MiB", "--answers", &kept]].concat(),
                "kept.json",
            );
            assert_eq!(timeless(again), timeless(here.clone()));
        }
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

/// The base's context is told for what is too long for it; an adapter that was trained for more has its figures.
#[test]
fn an_adapter_of_a_longer_context_is_weighed_where_the_base_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (texts, adapter, report) = (path("texts.jsonl"), path("adapter"), path("report.json"));
    let line = json!({ "text": "one two three four five six seven eight nine ten ".repeat(20) });
    std::fs::write(&texts, format!("{line}\n")).unwrap();
    let model = TinyModel { max_position_embeddings: 64, ..TinyModel::default() }.write();
    let model = model.path().to_str().unwrap();
    succeeds(&mut wardrobe(&[
        "train",
        model,
        &texts,
        "--text-column",
        "text",
        "--loss",
        "everything",
        "--max-context",
        "128",
        "--truncation",
        "right",
        "--context",
        "128",
        "--context-extension",
        "linear",
        "--max-steps",
        "1",
        "--batch-size",
        "1",
        "--output",
        &adapter,
    ]));
    let long = format!("long={adapter}");
    let eval = |more: &[&str]| {
        let args = [
            "eval",
            model,
            "--adapter",
            &long,
            "--task",
            "perplexity",
            "--contexts",
            "32,128",
            "--data",
            &texts,
        ];
        wardrobe(&[&args, more].concat())
    };
    succeeds(&mut eval(&["--max-context", "128", "--report", &report]));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
    let outcomes = |who: usize| report["results"][who]["outcomes"].as_array().unwrap();
    let is_weighed =
        |who: usize| outcomes(who).iter().map(|one| one["answered"]["score"].is_array()).collect();
    let (base, tuned): (Vec<bool>, Vec<bool>) = (is_weighed(0), is_weighed(1));
    assert_eq!((base, tuned), (vec![true, false], vec![true, true]), "{report}");
    assert!(outcomes(0)[1].to_string().contains("64 tokens at most, not at 128"), "{report}");
    // No endpoint has it, and no context is of no tokens.
    for (args, named) in [
        (&["eval", "http://127.0.0.1:1", "--data", &texts, "--max-context", "128"][..], "--max-context"),
        (&["eval", model, "--data", &texts, "--max-context", "0"], "--max-context"),
    ] {
        assert!(fails(&mut wardrobe(args), 2).contains(named));
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
