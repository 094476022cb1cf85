//! Against libraries that are not ours: Parquet as pyarrow writes it, CSV as Python's csv module does, and the tokens and
//! masks of conversations as transformers has them.
//!
//! `WARDROBE_PYTHON`: a Python with the packages that `independent_data.py` names. `WARDROBE_SMOLLM2`: the GGUF file of
//! SmolLM2. Without them, or without one of these packages, the tests that need it say that they were skipped.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../text/tests/support/mod.rs"]
mod support;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::{Value, json};
use support::{gguf_vocab, skip, variable};
use wardrobe_data::{
    CheckOptions, DataError, DataOptions, Encoded, Encoder, ReadOptions, Record, Records, check,
};
use wardrobe_text::{ChatTemplate, TemplateLimits, Tokenizer};

/// A Python that has these modules.
fn python(test: &str, modules: &str) -> Option<String> {
    let python = variable(test, "WARDROBE_PYTHON")?;
    let import = ["-c", &format!("import {modules}")];
    let found = Command::new(&python).args(import).stderr(Stdio::null()).status().unwrap().success();
    if !found {
        skip(test, &format!("{python} lacks one of: {modules}"));
    }
    found.then_some(python)
}

fn run(python: &str, arguments: &[&str], given: &Value) -> Vec<u8> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent_data.py");
    let mut child = Command::new(python)
        .arg(script)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script} failed");
    output.stdout
}

fn read(path: &Path) -> Result<Vec<Record>, DataError> {
    let mut records = Records::open(path, &ReadOptions::default())?;
    std::iter::from_fn(|| records.next_record()).map(|entry| entry.map(|entry| entry.record)).collect()
}

/// What the rows are as JSONL, which both sides know.
fn as_jsonl(folder: &Path, rows: &Value) -> Vec<Record> {
    let path = folder.join("same.jsonl");
    let lines: String = rows.as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    read(&path).unwrap()
}

fn tables() -> Value {
    let texts = ["", "a", "é\u{1f600}", "two\nlines\r\n", "\"quoted\"", "x".repeat(500).leak(), "[1]"];
    let pairs: Vec<Value> = (0..40)
        .map(|idx| json!({"prompt": format!("{idx}{}", texts[idx % texts.len()]), "completion": texts[(idx * 3) % texts.len()]}))
        .collect();
    let messages: Vec<Value> = (0..25)
        .map(|idx| {
            let mut messages = vec![json!({"role": "user", "content": texts[idx % 7]})];
            if idx % 3 == 0 {
                messages.insert(0, json!({"role": "system", "content": "S"}));
            }
            for turn in 0..=idx % 4 {
                messages.push(json!({"role": "assistant", "content": texts[(idx + turn) % 7], "weight": i32::from(turn == 0)}));
                messages.push(json!({"role": "user", "content": format!("{turn}")}));
            }
            json!({"id": idx, "score": 0.5, "messages": messages, "tags": ["a", null]})
        })
        .collect();
    let optional: Vec<Value> = (0..10)
        .map(|idx| json!({"instruction": format!("{idx}"), "input": (idx % 2 == 0).then_some("I"), "output": "A"}))
        .collect();
    json!({"pairs": pairs, "messages": messages, "optional": optional})
}

#[test]
fn parquet_as_pyarrow_writes_it() {
    let test = "parquet_as_pyarrow_writes_it";
    let Some(python) = python(test, "pyarrow") else { return };
    let folder = tempfile::tempdir().unwrap();
    let tables = tables();
    run(&python, &["parquet", folder.path().to_str().unwrap()], &tables);
    let mut compared = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "zstd" {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("ZSTD") && error.contains("snappy"), "{error}");
            continue;
        }
        let rows = &tables[name.split('-').next().unwrap()];
        let records = read(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(records, as_jsonl(folder.path(), rows), "{name}");
        std::fs::remove_file(folder.path().join("same.jsonl")).unwrap();
        assert!(check(&path, &CheckOptions::default()).unwrap().is_ok());
        compared += 1;
    }
    assert_eq!(compared, 14);

    // What no writer wrote: bytes changed, files cut off. Whatever it is, it ends in records or an error.
    let whole: Vec<Vec<u8>> = ["messages-small_pages", "pairs-v2", "pairs-deltas"]
        .map(|name| std::fs::read(folder.path().join(format!("{name}.parquet"))).unwrap())
        .into();
    let path = folder.path().join("changed.parquet");
    let mut refused = 0;
    let changes = (
        any::<prop::sample::Index>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    );
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..600 {
        let (which, bytes) = changes.new_tree(&mut runner).unwrap().current();
        let mut file = whole[which.index(whole.len())].clone();
        for (at, byte) in bytes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        std::fs::write(&path, file).unwrap();
        refused += usize::from(!check(&path, &CheckOptions::default()).unwrap().is_ok());
    }
    assert!(refused > 50, "{refused}");
}

#[test]
fn csv_as_python_writes_it() {
    let test = "csv_as_python_writes_it";
    let Some(python) = python(test, "csv") else { return };
    let folder = tempfile::tempdir().unwrap();
    let rows = &tables()["pairs"];
    run(&python, &["csv", folder.path().to_str().unwrap()], rows);
    let expected = as_jsonl(folder.path(), rows);
    for dialect in ["excel", "unix", "semicolon", "tab"] {
        assert_eq!(read(&folder.path().join(format!("{dialect}.csv"))).unwrap(), expected, "{dialect}");
    }
}

#[test]
fn tokens_and_masks_as_transformers_has_them() {
    let test = "tokens_and_masks_as_transformers_has_them";
    let (Some(python), Some(path)) =
        (python(test, "transformers, tokenizers, jinja2"), variable(test, "WARDROBE_SMOLLM2"))
    else {
        return;
    };
    let (vocab, source) = gguf_vocab(&path);
    let source = source.unwrap();
    // The same template with the answers marked, as that library wants it for its mask.
    let message = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}";
    let marked = "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>'}}{% endif %}{{'\n'}}";
    let marked = source.replace(message, marked);
    assert_ne!(marked, source, "the template is another");
    let texts = [
        "Hello.",
        "Two words",
        "Zahlen: 12345 und 6,7",
        "{\"a\": [1, 2], \"b\": null}",
        "line\nline\n\nend",
        "été \u{1f600} 日本語",
        "def f(x):\n    return x",
        "trailing space ",
    ];
    let conversations: Vec<Value> = (0..texts.len() * 3)
        .map(|idx| {
            let text = |of: usize| texts[(idx + of) % texts.len()];
            let mut messages = vec![];
            if idx % 3 == 1 {
                messages.push(json!({"role": "system", "content": text(5)}));
            }
            for turn in 0..=idx % 4 {
                messages.push(json!({"role": "user", "content": text(turn)}));
                messages.push(json!({"role": "assistant", "content": text(turn + 3)}));
            }
            json!(messages)
        })
        .collect();
    let special: Vec<usize> =
        vocab.token_types.iter().enumerate().filter(|(_, kind)| **kind == 3).map(|(idx, _)| idx).collect();
    let given = json!({
        "tokens": vocab.tokens, "merges": vocab.merges, "special": special,
        "template": marked, "conversations": conversations,
    });
    let theirs: Vec<Value> = serde_json::from_slice(&run(&python, &["chat"], &given)).unwrap();

    let tokenizer = Tokenizer::from_gguf(vocab).unwrap();
    let template = ChatTemplate::new(&source, TemplateLimits::default()).unwrap();
    let encoder = Encoder::new(&tokenizer, Some(&template), &DataOptions::default()).unwrap();
    for (messages, theirs) in conversations.iter().zip(&theirs) {
        let messages = messages.as_array().unwrap().iter();
        let record = Record::chat(
            messages.clone().map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap())),
        );
        let Encoded::Example(example) = encoder.encode(&record).unwrap() else { panic!() };
        let list = |key: &str| -> Vec<u64> {
            theirs[key].as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
        };
        let (mut ids, mut mask) = (list("ids"), list("mask"));
        // The line's end after the last answer, which is not learnt.
        assert_eq!(
            (
                tokenizer.decode(&[wardrobe_text::TokenId(ids.pop().unwrap() as u32)], false).unwrap(),
                mask.pop()
            ),
            ("\n".into(), Some(0))
        );
        assert_eq!(example.token_ids.iter().map(|id| u64::from(id.0)).collect::<Vec<_>>(), ids, "{record:?}");
        assert_eq!(
            example.loss.iter().map(|learnt| u64::from(*learnt)).collect::<Vec<_>>(),
            mask,
            "{record:?}"
        );
        assert!(mask.contains(&1));
    }
}
