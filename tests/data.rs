//! `wardrobe data`, and that what is trained on is what is served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;

use std::path::{Path, PathBuf};

use command::*;
use serde_json::Value;
use wardrobe::data::{DataOptions, Dataset};
use wardrobe::{Message, ModelText};

fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn biographies(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters").join(name)
}

#[test]
fn check_tells_every_line_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let bad = write(
        &folder,
        "bad.jsonl",
        "{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"prompt\": 1, \"completion\": \"b\"}\n{\"prompt\": \"a\"\n{\"prompt\": \"a\", \"completion\": \"b\"}\n",
    );
    let output = output(&mut wardrobe(&["data", "check", &bad]));
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    for said in [
        format!("error: {bad}:3: key \"prompt\" is a number, not a string\n"),
        format!("error: {bad}:4: is no JSON: "),
        format!("warning: {bad}:5: says the same as line 1\n"),
        format!("{bad}: JSONL, 2 records (prompt/completion), 2 errors, 1 warnings\n"),
    ] {
        assert!(text.contains(&said), "{said} in {text}");
    }
    assert!(stderr(&output).contains("has 2 errors"));

    let mut json = wardrobe(&["data", "check", &bad, "--json", "--max-errors", "1"]);
    let report: Value = serde_json::from_slice(&json.output().unwrap().stdout).unwrap();
    assert_eq!(report["num_errors"], 2);
    assert_eq!(report["errors"].as_array().unwrap().len(), 1);
    assert_eq!((&report["errors"][0]["line"], &report["errors"][0]["key"]), (&3.into(), &"prompt".into()));

    let good = biographies("bio_train.jsonl");
    let text = succeeds(&mut wardrobe(&["data", "check", good.to_str().unwrap()]));
    assert!(text.ends_with("400 records (prompt/completion), 0 errors, 0 warnings\n"), "{text}");

    let own = write(&folder, "own.csv", "title,label\na,b\n");
    fails(&mut wardrobe(&["data", "check", &own]), 1);
    succeeds(&mut wardrobe(&[
        "data",
        "check",
        &own,
        "--prompt-column",
        "title",
        "--completion-column",
        "label",
    ]));
    let said = fails(&mut wardrobe(&["data", "check", &own, "--prompt-template", "alpacca"]), 2);
    assert!(said.contains("llama2-inst"), "{said}");
}

#[test]
fn split_refuses_what_is_there_and_what_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String =
        (0..20).map(|idx| format!("{{\"prompt\": \"{idx}\", \"completion\": \"b\"}}\n")).collect();
    let file = write(&folder, "all.jsonl", &lines);
    let split = |args: &[&str]| wardrobe(&[&["data", "split", &file], args].concat());
    let text = succeeds(&mut split(&["--seed", "3", "--test-fraction", "0.2"]));
    assert!(text.contains("16 records to train on") && text.contains("4 to test with"), "{text}");
    let part = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let first = [part("all.train.jsonl"), part("all.test.jsonl")];
    assert_eq!(first.concat().len(), lines.len());
    let said = fails(&mut split(&["--seed", "4"]), 1);
    assert!(said.contains("exists") && said.contains("--force"), "{said}");
    assert_eq!([part("all.train.jsonl"), part("all.test.jsonl")], first);
    succeeds(&mut split(&["--seed", "4", "--test-size", "4", "--force"]));
    assert_ne!(part("all.test.jsonl"), first[1]);
    fails(&mut split(&["--test-size", "20", "--force"]), 2);
    fails(&mut split(&["--test-size", "2", "--test-fraction", "0.1"]), 2);
    let bad = write(&folder, "bad.jsonl", "{\"prompt\": \"a\"}\n");
    let said = fails(&mut wardrobe(&["data", "split", &bad]), 1);
    assert!(said.contains("bad.jsonl:1") && said.contains("wardrobe data check"), "{said}");
}

#[test]
fn prompts_are_trained_on_as_they_are_served() {
    let Some(path) = smollm2("prompts_are_trained_on_as_they_are_served") else { return };
    let text = ModelText::open(path).unwrap();
    let file = biographies("bio_test.jsonl");
    let options = DataOptions::default();
    let set = Dataset::load(&file, &text.tokenizer, text.chat_template.as_deref(), &options).unwrap();
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(set.len(), lines.lines().count());
    let end = text.tokenizer.token_to_id("<|im_end|>").unwrap();
    for (line, example) in lines.lines().zip(set.examples()) {
        let record: Value = serde_json::from_str(line).unwrap();
        let served = text.chat_prompt(&[Message::text("user", record["prompt"].as_str().unwrap())]).unwrap();
        let mut answer = text.tokenizer.encode(record["completion"].as_str().unwrap(), false).unwrap();
        answer.push(end);
        assert_eq!(example.token_ids, [served.clone(), answer].concat());
        let expected: Vec<bool> = (0..example.token_ids.len()).map(|idx| idx >= served.len()).collect();
        assert_eq!(example.loss, expected);
    }
}

#[test]
fn stats_and_filter_count_with_the_models_tokenizer() {
    let Some(model) = smollm2("stats_and_filter_count_with_the_models_tokenizer") else { return };
    let file = biographies("bio_train.jsonl");
    let file = file.to_str().unwrap();
    let json = succeeds(&mut wardrobe(&["data", "stats", file, "--model", &model, "--json"]));
    let stats: Value = serde_json::from_str(&json).unwrap();
    let text = ModelText::open(&model).unwrap();
    let set = Dataset::load(
        Path::new(file),
        &text.tokenizer,
        text.chat_template.as_deref(),
        &DataOptions::default(),
    );
    let lengths = set.unwrap().lengths_tokens();
    assert_eq!(stats["tokens"]["total"], lengths.iter().sum::<usize>());
    assert_eq!(stats["tokens"]["max"], *lengths.iter().max().unwrap());
    assert_eq!(stats["tokens"]["min"], *lengths.iter().min().unwrap());
    let shown = succeeds(&mut wardrobe(&["data", "stats", file, "--model", &model]));
    assert!(shown.starts_with("400 records, 400 examples\n") && shown.contains(" ####"), "{shown}");

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("kept.jsonl");
    let out = out.to_str().unwrap();
    let args = ["data", "filter", file, "--model", &model, "-o", out, "--max-context", "700"];
    let shown = succeeds(&mut wardrobe(&args));
    assert!(shown.contains("of 400 records"), "{shown}");
    let (all, kept) = (std::fs::read_to_string(file).unwrap(), std::fs::read_to_string(out).unwrap());
    let fits = |line: &&str| {
        let record: Value = serde_json::from_str(line).unwrap();
        let tokens = |key: &str| text.tokenizer.encode(record[key].as_str().unwrap(), false).unwrap().len();
        tokens("prompt") + tokens("completion") + 500 <= 700
    };
    let expected: String = all.split_inclusive('\n').filter(fits).collect();
    assert_eq!(kept, expected);
    assert!(!kept.is_empty() && kept.len() < all.len());
    fails(&mut wardrobe(&args), 1);
}
