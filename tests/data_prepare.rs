//! `wardrobe data`'s commands that make data sets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
#[path = "../crates/hub/tests/support/mod.rs"]
mod hub;

use std::path::{Path, PathBuf};

use command::*;
use serde_json::{Value, json};
use wardrobe::ModelText;

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn at(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

fn records(path: &str) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// People who never lived, in WordNet's format.
fn wordnet() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/data/tests/wordnet");
    path.to_str().unwrap().to_owned()
}

#[test]
fn documents_are_selected_by_fields_and_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let a = write(
        folder,
        "a.jsonl",
        "{\"text\": \"one\", \"q\": {\"s\": 0.9}}\n{\"text\": \"two\", \"q\": {\"s\": 0.2}}\n{\"text\": \"three\"}\n",
    );
    let out = at(folder, "good.jsonl");
    let text = succeeds(&mut wardrobe(&["data", "select", &a, "--where", "q.s >= 0.5", "-o", &out]));
    assert!(
        text.starts_with(&format!("1 records: {out}\nread 3 records of 1 files\nleft out 2:\n")),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "{\"text\": \"one\", \"q\": {\"s\": 0.9}}\n");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(folder.join("good.manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["command"], &manifest["output"]["records"]), (&json!("select"), &json!(1)));
    let said = fails(&mut wardrobe(&["data", "select", &a, "-o", &out]), 1);
    assert!(said.contains("exists") && said.contains("--force"), "{said}");
    let said = fails(&mut wardrobe(&["data", "select", &a, "--tokens", "1-", "-o", &out]), 2);
    assert!(said.contains("--model"), "{said}");
    fails(&mut wardrobe(&["data", "select", &a, "--where", "q.s >>", "-o", &out]), 2);
    fails(&mut wardrobe(&["data", "select", &a, "--chars", "9-1", "-o", &out]), 2);
    let none = at(folder, "none.jsonl");
    let said = fails(&mut wardrobe(&["data", "select", &a, "--chars", "-2", "-o", &none]), 1);
    assert!(said.contains("3 (more than 2 characters)"), "{said}");

    let mixed = at(folder, "mixed.jsonl");
    let source = |share: &str| format!("{a}={share}");
    let mix = |shares: &[String], more: &[&str]| {
        let mut args = vec!["data", "mix", "-o", &mixed];
        shares.iter().for_each(|share| args.extend(["--source", share]));
        wardrobe(&[&args, more].concat())
    };
    let b = write(folder, "b.csv", "text,completion\nx,1\ny,2\n");
    let text = succeeds(&mut mix(&[source("2"), format!("{b}=50%")], &["--seed", "3"]));
    assert!(text.starts_with("4 records: ") && text.contains("of 3  "), "{text}");
    assert_eq!(records(&mixed).len(), 4);
    let said = fails(&mut mix(&[source("5")], &["--force"]), 1);
    assert!(said.contains("2 fewer than the 5 asked for"), "{said}");
    fails(&mut mix(std::slice::from_ref(&a), &["--force"]), 2);
    fails(&mut mix(&[source("60%")], &["--total", "5", "--force"]), 2);
}

#[test]
fn questions_are_taken_out_of_conversations() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = json!({"id": "x", "conversations": [
        {"from": "human", "value": "first?"}, {"from": "gpt", "value": "A"}, {"from": "human", "value": "second?"}]});
    let input = write(folder, "chats.jsonl", &format!("{line}\n{line}\n"));
    let out = at(folder, "questions.jsonl");
    let text = succeeds(&mut wardrobe(&["data", "turns", &input, "--turns", "2-", "-o", &out]));
    assert!(text.starts_with("1 conversations with 2 questions"), "{text}");
    assert_eq!(records(&out), [json!({"id": "x", "turns": ["first?", "second?"]})]);
    fails(&mut wardrobe(&["data", "turns", &input, "--turns", "3-", "-o", &at(folder, "none.jsonl")]), 1);
}

#[test]
fn biographies_are_made_of_wordnet() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let out = at(folder, "bios.jsonl");
    let text = succeeds(&mut wardrobe(&["data", "bios", "--wordnet", &wordnet(), "-o", &out]));
    assert!(text.starts_with("53 people, 15 of sports and 15 politicians"), "{text}");
    assert!(folder.join("bios.LICENSE-WordNet.txt").exists());
    let items = at(folder, "items");
    let args =
        ["data", "bios", "--wordnet", &wordnet(), "--items", "--train", "12", "--test", "7", "-o", &items];
    succeeds(&mut wardrobe(&args));
    assert_eq!(records(&at(Path::new(&items), "train.jsonl")).len(), 12);
    let checked = at(Path::new(&items), "test.jsonl");
    succeeds(&mut wardrobe(&["data", "check", &checked]));
    fails(&mut wardrobe(&["data", "bios", "--wordnet", &wordnet(), "--train", "9", "-o", &out]), 2);
    let said = fails(&mut wardrobe(&["data", "bios", "--wordnet", &items, "-o", &at(folder, "x.jsonl")]), 1);
    assert!(said.contains("wordnet-base"), "{said}");
}

/// The schema beside a haystack is one that answers are held to, and every gold answer is one that it allows.
#[test]
fn answers_can_be_held_to_the_schema_of_a_haystack() {
    use wardrobe::data::prepare::{self, BiosOptions, Counting, HaystackOptions, Output, Source};
    use wardrobe_grammar::{Compiler, EngineKind, Limits, Spec, Whitespace};
    use wardrobe_text::{TokenId, Tokenizer};

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let end = TokenId(256);
    let tokenizer = Tokenizer::made_up(257, None, &[end]).unwrap();
    let output = |name: &str| Output { path: folder.join(name), replace: false };
    let (doubtful, balanced) = (false, false);
    prepare::bios(&BiosOptions {
        wordnet: wordnet().into(),
        doubtful,
        balanced,
        seed: 1,
        output: output("b.jsonl"),
    })
    .unwrap();
    let options = HaystackOptions {
        source: Source { files: Source::local(&folder.join("b.jsonl")).unwrap(), ..Source::default() },
        counting: Counting { tokenizer: &tokenizer, model: "made up" },
        lengths: vec![900],
        depths: vec![0.5],
        per_cell: 30,
        needle_tokens: "10-400".parse().unwrap(),
        unknown_share: 0.5,
        seed: 1,
        output: output("hay.jsonl"),
    };
    prepare::haystack(&options).unwrap();
    let schema: Value =
        serde_json::from_slice(&std::fs::read(folder.join("hay.schema.json")).unwrap()).unwrap();
    let compiler = Compiler::of_tokenizer(tokenizer.clone(), &[end], Limits::default());
    let spec = Spec::JsonSchema { schema, strict: true };
    let template = compiler.compile(&spec, Whitespace::default()).unwrap();
    assert_eq!((template.engine(), template.warnings()), (EngineKind::Closed, &[][..]));
    let allows = |answer: &str| {
        let ids = tokenizer.encode_ordinary(answer).unwrap();
        let mut session = template.session();
        session.validate(&ids).unwrap() == ids.len() && {
            ids.iter().for_each(|id| session.accept(*id).unwrap());
            session.may_end().unwrap()
        }
    };
    let golds: Vec<String> = records(&at(folder, "hay.jsonl"))
        .iter()
        .map(|item| item["completion"].as_str().unwrap().to_owned())
        .collect();
    assert!(golds.iter().all(|gold| allows(gold)), "{golds:?}");
    assert!(golds.iter().any(|gold| gold.contains("\"died\": \"unknown\"")));
    let other = golds[0].replace("false", "\"unknown\"");
    assert!(!allows(&other), "{other}");
}

/// From a hub of this process, by the command line's own client.
#[test]
fn a_data_set_on_the_hub_is_read_file_by_file() {
    let server = hub::Hub::start();
    {
        let mut repo = server.repo.lock().unwrap();
        repo.files.insert("data/a.jsonl".to_owned(), (b"{\"text\": \"one\"}\n".to_vec(), false));
        repo.files.insert("data/b.jsonl".to_owned(), (b"{\"text\": \"two\"}\n".to_vec(), true));
        repo.files.insert("data/README.md".to_owned(), (b"# about".to_vec(), false));
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = |args: &[&str]| {
        let mut command = wardrobe(&[&["data", "select"], args].concat());
        command.env("WARDROBE_CACHE", server.cache().root()).env("HF_ENDPOINT", &server.endpoint);
        command.env("HF_HUB_OFFLINE", "").env("HF_TOKEN", hub::TOKEN);
        command
    };
    let out = at(folder, "first.jsonl");
    succeeds(&mut run(&["hub:o/n/data", "--take", "1", "-o", &out]));
    assert_eq!(records(&out), [json!({"text": "one"})]);
    let asked: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].ends_with("/data/a.jsonl"), "{asked:?}");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(folder.join("first.manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["inputs"][0]["name"], format!("hub:o/n/data/a.jsonl@{}", hub::COMMIT));

    let out = at(folder, "all.jsonl");
    succeeds(&mut run(&["hub:o/n/data", "-o", &out]));
    assert_eq!(records(&out), [json!({"text": "one"}), json!({"text": "two"})]);
    let said = fails(&mut run(&["hub:o/n/nothing", "-o", &at(folder, "none.jsonl")]), 1);
    assert!(said.contains("nothing of that path"), "{said}");
    let other = output(&mut run(&["hub:o/other", "-o", &at(folder, "none.jsonl")]));
    assert_eq!(other.status.code(), Some(1));
    assert!(stderr(&other).contains("error: the hub has no datasets/o/other"), "{}", stderr(&other));
    fails(&mut run(&["hub:o", "-o", &at(folder, "none.jsonl")]), 1);
}

/// A command that is killed leaves neither output nor manifest, and the next one is not in its way.
#[test]
#[cfg(unix)]
fn a_command_that_is_killed_leaves_nothing_under_the_outputs_name() {
    use std::io::Write as _;

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let input = at(folder, "in.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&input).unwrap());
    (0..400_000).for_each(|n| writeln!(file, "{{\"text\": \"{n} {}\"}}", "word ".repeat(20)).unwrap());
    file.into_inner().unwrap();
    let out = at(folder, "out.jsonl");
    let mut child = wardrobe(&["data", "select", &input, "--distinct", "-o", &out]).spawn().unwrap();
    let begun = || std::fs::read_dir(folder).unwrap().count() > 1;
    while !begun() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!Path::new(&out).exists() && !folder.join("out.manifest.json").exists());
    let text = succeeds(&mut wardrobe(&["data", "select", &input, "--take", "5", "-o", &out]));
    assert!(text.starts_with("5 records"), "{text}");
}

#[test]
fn lengths_and_depths_are_those_of_the_models_tokenizer() {
    let Some(model) = smollm2("lengths_and_depths_are_those_of_the_models_tokenizer") else { return };
    let tokenizer = ModelText::open(&model).unwrap().tokenizer;
    let count = |text: &str| tokenizer.encode_ordinary(text).unwrap().len();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bios = at(folder, "bios.jsonl");
    let made = std::env::var("WARDROBE_WORDNET").unwrap_or_else(|_| wordnet());
    succeeds(&mut wardrobe(&["data", "bios", "--wordnet", &made, "-o", &bios]));
    let longest = records(&bios).iter().map(|bio| count(bio["text"].as_str().unwrap())).max().unwrap() + 10;
    let hay = at(folder, "hay.jsonl");
    let args = ["data", "haystack", &bios, "--model", &model, "--lengths", "300,900", "--depths", "0,0.5,1"];
    let text = succeeds(&mut wardrobe(
        &[&args[..], &["--per-cell", "4", "--unknown-share", "0.25", "-o", &hay]].concat(),
    ));
    assert!(text.contains("24 items, 6 with something unknown"), "{text}");
    for item in records(&hay) {
        let (prompt, length) = (item["prompt"].as_str().unwrap(), item["length"].as_u64().unwrap() as usize);
        assert_eq!(item["tokens"], count(prompt));
        assert!(count(prompt) <= length && count(prompt) + longest > length);
        let (hay, question) = prompt.split_once("\n\nWrite the JSON record of ").unwrap();
        let at = hay.find(question.split('.').next().unwrap()).unwrap();
        let needle = hay[at..].find(" . ").map_or(&hay[at..], |end| &hay[at..at + end]);
        let depth = count(&hay[..at]) as f64 / (count(hay) - count(needle)) as f64;
        let one = longest as f64 / (count(hay) - count(needle)) as f64;
        assert!((depth - item["depth"].as_f64().unwrap()).abs() <= one, "{depth}: {item}");
    }
    let document = "It is the way of the world that words follow words. ".repeat(60);
    let docs = write(folder, "doc.txt", &document);
    let out = at(folder, "words.jsonl");
    let args = ["data", "repetition", &docs, "--model", &model, "--tokens", "200", "--n", "5-20", "-o", &out];
    succeeds(&mut wardrobe(&[&args[..], &["--per-document", "3"]].concat()));
    let items = records(&out);
    assert_eq!(items.len(), 3);
    for item in items {
        let document = item["prompt"].as_str().unwrap().split_once("\n\n").unwrap().1;
        assert_eq!(item["tokens"], count(document));
        assert!((190..=200).contains(&count(document)));
        assert!(document.ends_with(item["completion"].as_str().unwrap()));
    }
    let dropped = PathBuf::from(&out).with_extension("manifest.json");
    assert!(std::fs::read_to_string(dropped).unwrap().contains("vocabulary_sha256"));
}
