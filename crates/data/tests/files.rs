//! Files: formats, columns, errors by line, copies byte by byte.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../text/tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use wardrobe_data::{
    CheckOptions, ColumnMap, CustomTemplate, DataError, DataOptions, Dataset, FilterOptions, Format, Limits,
    PromptTemplate, ReadOptions, Record, Records, Report, SplitOptions, TestSize, check, filter, split,
};
use wardrobe_text::Tokenizer;

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Record>, DataError> {
    let mut records = Records::open(path, options)?;
    std::iter::from_fn(|| records.next_record()).map(|entry| entry.map(|entry| entry.record)).collect()
}

fn check_bytes(name: &str, bytes: impl AsRef<[u8]>) -> Report {
    check_with(name, bytes, ReadOptions::default())
}

fn check_with(name: &str, bytes: impl AsRef<[u8]>, read: ReadOptions) -> Report {
    let folder = folder();
    let path = write(folder.path(), name, bytes);
    check(&path, &CheckOptions { read, ..CheckOptions::default() }).unwrap()
}

/// Errors as `line: message`.
fn errors(report: &Report) -> Vec<String> {
    report.errors.iter().map(|finding| finding.in_file(Path::new("f"))).collect()
}

#[test]
fn all_column_sets() {
    let pair = Record::pair("Q", "A");
    let about = Record::Pair(wardrobe_data::Pair {
        input: Some("I".into()),
        prompt: "Q".into(),
        completion: "A".into(),
        system: None,
    });
    let chat = Record::chat([("user", "Q"), ("assistant", "A")]);
    let cases = [
        (r#"{"prompt":"Q","completion":"A"}"#, &pair),
        (r#"{"question":"Q","answer":"A"}"#, &pair),
        (r#"{"instruction":"Q","response":"A"}"#, &pair),
        (r#"{"input":"Q","output":"A"}"#, &pair),
        (r#"{"instruction":"Q","input":"","output":"A"}"#, &pair),
        (r#"{"instruction":"Q","input":"I","output":"A","text":"all"}"#, &about),
        (r#"{"instruction":"Q","context":"I","response":"A"}"#, &about),
        (r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}"#, &chat),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Q"}]},{"role":"assistant","content":"A","weight":1}]}"#,
            &chat,
        ),
        (r#"{"conversations":[{"from":"human","value":"Q"},{"from":"gpt","value":"A"}]}"#, &chat),
        (r#"{"text":"<s>[INST] Q [/INST] A </s>"}"#, &chat),
        (r#"{"text":"Q"}"#, &Record::Text("Q".into())),
    ];
    let folder = folder();
    for (line, expected) in cases {
        let path = write(folder.path(), "a.jsonl", line);
        assert_eq!(read(&path, &ReadOptions::default()).unwrap(), std::slice::from_ref(expected), "{line}");
        // What is written of a record is read as the same.
        let path = write(folder.path(), "b.jsonl", expected.to_json().to_string());
        assert_eq!(read(&path, &ReadOptions::default()).unwrap(), std::slice::from_ref(expected), "{line}");
    }
    let line =
        r#"{"prompt":[{"role":"user","content":"Q"}],"completion":[{"role":"assistant","content":"A"}]}"#;
    let path = write(folder.path(), "c.jsonl", line);
    let [Record::Chat(parts)] = &read(&path, &ReadOptions::default()).unwrap()[..] else { panic!() };
    assert_eq!(parts.messages.len(), 2);
}

#[test]
fn weights_tools_and_roles() {
    let line = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"Q"},{"role":"assistant","content":"A","weight":0},
        {"role":"user","content":"R"},{"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f","arguments":"{\"x\":1}"}}]},
        {"role":"tool","content":"T","name":null},{"role":"assistant","content":"B","weight":1}],"tools":[{"name":"f"}]}"#
        .replace('\n', "");
    let folder = folder();
    let path = write(folder.path(), "a.jsonl", line);
    let [Record::Chat(chat)] = &read(&path, &ReadOptions::default()).unwrap()[..] else { panic!() };
    let learnt: Vec<bool> =
        chat.messages.iter().filter(|turn| turn.is_answer()).map(|turn| turn.is_learnt).collect();
    assert_eq!(learnt, [false, true, true]);
    assert!(chat.messages.iter().all(|turn| !turn.message.extra.contains_key("weight")));
    assert!(chat.messages[5].message.name.is_none());
    assert_eq!(chat.messages[4].message.tool_calls.as_ref().unwrap()[0]["function"]["arguments"]["x"], 1);
    assert!(chat.tools.is_some());
}

#[test]
fn own_columns_and_templates() {
    let folder = folder();
    let path =
        write(folder.path(), "a.jsonl", r#"{"title":"T","n":3,"label":"L","prompt":"x","completion":"y"}"#);
    let with = |columns: ColumnMap, template: Option<&str>| {
        let template = template.map(|text| CustomTemplate::parse(text).unwrap());
        read(&path, &ReadOptions { columns, template, ..ReadOptions::default() })
    };
    let named = |prompt: Option<&str>, completion: Option<&str>| ColumnMap {
        prompt: prompt.map(str::to_owned),
        completion: completion.map(str::to_owned),
        ..ColumnMap::default()
    };
    assert_eq!(with(named(Some("title"), Some("label")), None).unwrap(), [Record::pair("T", "L")]);
    assert_eq!(with(named(None, Some("label")), None).unwrap(), [Record::pair("x", "L")]);
    assert_eq!(with(named(Some("title"), None), None).unwrap(), [Record::pair("T", "y")]);
    let text = ColumnMap { text: Some("title".into()), ..ColumnMap::default() };
    assert_eq!(with(text, None).unwrap(), [Record::Text("T".into())]);
    let formatted =
        |completion: &str| Record::Formatted { prompt: "T 3\n".into(), completion: completion.into() };
    assert_eq!(with(ColumnMap::default(), Some(r"{title} {n}\n")).unwrap(), [formatted("y")]);
    assert_eq!(with(named(None, Some("label")), Some(r"{title} {n}\n")).unwrap(), [formatted("L")]);
    let said = |result: Result<Vec<Record>, DataError>| result.unwrap_err().to_string();
    assert!(said(with(named(Some("n"), None), None)).contains("\"n\" is a number"));
    assert!(said(with(named(Some("no"), None), None)).contains("\"no\" is missing"));
    let both = ColumnMap { text: Some("title".into()), ..named(Some("title"), None) };
    assert!(said(with(both, None)).contains("not for several"));
    let error = said(with(ColumnMap::default(), Some("{titel}")));
    assert!(error.contains("\"titel\"") && error.contains("\"title\""), "{error}");
    let error = said(with(named(Some("title"), None), Some("{title}")));
    assert!(error.contains("names its columns itself"), "{error}");
}

#[test]
fn errors_name_line_and_key() {
    let good = r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]}"#;
    let message = |message: &str| format!(r#"{{"messages":[{{"role":"user","content":"Q"}},{message}]}}"#);
    let cases = [
        ("{", "is no JSON: EOF while parsing an object at column 1", None),
        ("[1]", "is a list and no JSON object", None),
        (
            r#"{"prompt":"a","completion":"b"}"#,
            "key \"messages\" is missing: the columns are \"prompt\", \"completion\", and records are messages since line 2",
            Some("messages"),
        ),
        (r#"{"messages":"text"}"#, "key \"messages\" is a string, not a list of messages", Some("messages")),
        (r#"{"messages":[]}"#, "key \"messages\" is an empty list", Some("messages")),
        (
            r#"{"messages":[{"role":"user","content":"Q"}]}"#,
            "key \"messages\" has no message of the assistant",
            Some("messages"),
        ),
        (&message("7"), "key \"messages[1]\" is a number, not a message", Some("messages[1]")),
        (&message(r#"{"content":"A"}"#), "key \"messages[1].role\" is missing", Some("messages[1].role")),
        (
            &message(r#"{"role":"bot","content":"A"}"#),
            "key \"messages[1].role\" is \"bot\", not one of system, developer, user, assistant, tool",
            Some("messages[1].role"),
        ),
        (
            &message(r#"{"role":"assistant"}"#),
            "key \"messages[1].content\" is missing",
            Some("messages[1].content"),
        ),
        (
            &message(r#"{"role":"assistant","content":null}"#),
            "key \"messages[1].content\" is null, not a string",
            Some("messages[1].content"),
        ),
        (
            &message(r#"{"role":"assistant","content":"A","weight":2}"#),
            "key \"messages[1].weight\" is 2, not 0 or 1",
            Some("messages[1].weight"),
        ),
        (
            &message(r#"{"role":"user","content":"A","weight":1}"#),
            "key \"messages[1].weight\" is only for messages of the assistant",
            Some("messages[1].weight"),
        ),
        (
            &message(r#"{"role":"assistant","content":[{"type":"image_url"}]}"#),
            "key \"messages[1].content\" has a part of type \"image_url\"; only text is learnt",
            Some("messages[1].content"),
        ),
        (
            &message(r#"{"role":"assistant","content":"A","weight":0}"#),
            "key \"messages\" has no message of the assistant that is learnt: all have weight 0",
            Some("messages"),
        ),
    ];
    for (line, expected, key) in cases {
        let report = check_bytes("a.jsonl", format!("\n{good}\r\n{line}\n{good}\n"));
        assert_eq!(errors(&report), [format!("f:3: {expected}")]);
        assert_eq!(report.errors[0].key.as_deref(), key);
        assert_eq!((report.num_records, report.num_warnings, report.is_ok()), (2, 1, false), "{line}");
        assert_eq!(report.warnings[0].in_file(Path::new("f")), "f:4: says the same as line 2");
    }
}

#[test]
fn all_errors_are_found_up_to_a_limit() {
    let folder = folder();
    let path = write(folder.path(), "a.jsonl", "{}\n".repeat(70));
    let report = check(&path, &CheckOptions::default()).unwrap();
    assert_eq!((report.errors.len(), report.num_errors), (50, 70));
    let message = &report.errors[0].message;
    assert!(
        message.contains("there are none") && message.contains("instruction/[input]/output"),
        "{message}"
    );
    let path = write(folder.path(), "b.jsonl", "\n \n");
    assert_eq!(errors(&check(&path, &CheckOptions::default()).unwrap()), ["f: has no records"]);
}

#[test]
fn bytes_that_are_no_text() {
    let good = r#"{"text":"é"}"#;
    let mut bytes = format!("\u{feff}{good}\n").into_bytes();
    bytes.extend(b"{\"text\":\"\xff\"}\n{\"text\":\"a\0\"}\n");
    bytes.extend(format!("{{\"text\":\"{}\"}}\n", "x".repeat(100)).into_bytes());
    let limits = Limits { max_record_bytes: 80, ..Limits::default() };
    let report = check_with("a.jsonl", bytes, ReadOptions { limits, ..ReadOptions::default() });
    assert_eq!(report.num_records, 1);
    assert_eq!(
        errors(&report),
        [
            "f:2: is not UTF-8 at byte 10",
            "f:3: has a NUL byte at byte 11",
            "f:4: is over the limit of 80 bytes"
        ]
    );
    let records = Limits { max_records: 2, ..Limits::default() };
    let report = check_with(
        "a.jsonl",
        format!("{good}\n").repeat(3),
        ReadOptions { limits: records, ..ReadOptions::default() },
    );
    assert_eq!(errors(&report), ["f: has more than 2 records"]);
    let bytes = Limits { max_file_bytes: 5, ..Limits::default() };
    let report = check_with("a.jsonl", good, ReadOptions { limits: bytes, ..ReadOptions::default() });
    assert!(errors(&report)[0].contains("over the limit of 5"));
}

#[test]
fn formats_are_told_by_content_and_name() {
    let jsonl = r#"{"text":"a"}"#;
    assert_eq!(check_bytes("upload", jsonl).format, Format::Jsonl);
    assert_eq!(check_bytes("a.JSON", jsonl).format, Format::Jsonl);
    assert_eq!(check_bytes("a.csv", "text\na\n").format, Format::Csv);
    for (name, bytes, said) in [
        ("a.parquet", &b"{}"[..], "does not begin with PAR1"),
        ("a.jsonl", b"\x1f\x8b\x08", "gzip"),
        ("a.jsonl", b"\xff\xfe{\0", "UTF-16"),
        ("a", b"text", "no known format"),
        ("a.json", b"[\n{\"text\": \"a\"}]", "JSON list"),
        ("a.jsonl", b"PAR1 is no whole file", "Parquet"),
        ("a.csv", b"", "no header"),
    ] {
        let report = check_bytes(name, bytes);
        assert!(!report.is_ok() && errors(&report)[0].contains(said), "{:?}", errors(&report));
    }
    let folder = folder();
    assert!(check(folder.path(), &CheckOptions::default()).is_ok_and(|report| !report.is_ok()), "a folder");
    let missing = check(&folder.path().join("none.jsonl"), &CheckOptions::default());
    assert!(matches!(missing, Err(DataError::Io { .. })));
}

#[test]
fn csv_as_it_is_written() {
    let folder = folder();
    let csv = "\u{feff}prompt,completion,note\r\n\"a \"\"b\"\"\r\nc\",\"x,y\",\r\n\r\nit's 5\",z,n\r\n";
    let path = write(folder.path(), "a.csv", csv);
    assert_eq!(
        read(&path, &ReadOptions::default()).unwrap(),
        [Record::pair("a \"b\"\r\nc", "x,y"), Record::pair("it's 5\"", "z")]
    );
    for (name, text) in [("a.tsv", "prompt\tcompletion\nQ\tA"), ("b.csv", "\"prompt\";\"completion\"\nQ;A")] {
        let path = write(folder.path(), name, text);
        assert_eq!(read(&path, &ReadOptions::default()).unwrap(), [Record::pair("Q", "A")]);
    }
    let chat = "messages\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"Q\"\"},{\"\"role\"\":\"\"assistant\"\",\"\"content\"\":\"\"A\"\"}]\"\n";
    let path = write(folder.path(), "c.csv", chat);
    assert_eq!(
        read(&path, &ReadOptions::default()).unwrap(),
        [Record::chat([("user", "Q"), ("assistant", "A")])]
    );
    let wrong = "prompt,completion\na,b\n\"x\ny\"z,b\na\na,b,c\nq,\"open\nend";
    assert_eq!(
        errors(&check_bytes("a.csv", wrong)),
        [
            "f:4: has text after a closing quote, at column 3",
            "f:5: has 1 values, and the header 2 columns",
            "f:6: has 3 values, and the header 2 columns",
            "f:7: a quote is opened here and never closed"
        ]
    );
    assert!(errors(&check_bytes("a.csv", "a,,b\n"))[0].contains("column 2 of the header has no name"));
    assert!(errors(&check_bytes("a.csv", "a,b,a\n"))[0].contains("\"a\" is twice"));
}

#[test]
fn doubts_are_warnings() {
    let cases = [
        (r#"{"prompt":"a","completion":" "}"#, "the completion is empty"),
        (r#"{"prompt":"","completion":"b"}"#, "the prompt is empty"),
        (
            r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":""}]}"#,
            "the answer messages[1] is empty",
        ),
        (
            r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"A"},{"role":"user","content":"R"}]}"#,
            "what follows the last answer is not learnt",
        ),
    ];
    for (line, expected) in cases {
        let report = check_bytes("a.jsonl", line);
        assert!(report.is_ok());
        assert_eq!(report.warnings.len(), 1, "{line}");
        assert_eq!(report.warnings[0].message, expected);
    }
    let template = Some(CustomTemplate::parse("{prompt} ").unwrap());
    let line = r#"{"prompt":"a","completion":"b"}"#;
    let report = check_with("a.jsonl", line, ReadOptions { template, ..ReadOptions::default() });
    assert!(report.warnings[0].message.contains("ends with a space"));
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(support::byte_level_vocab()).unwrap()
}

#[test]
fn filter_copies_what_fits_byte_by_byte() {
    let folder = folder();
    // Bytes that another writer would write differently; x is a token each.
    let line = |len: usize, end: &str| {
        format!(
            "{{ \"note\":\"\\u00e9\",\"prompt\":\"{}\", \"completion\":\"{}\" }}{end}",
            "x".repeat(len),
            "x".repeat(2)
        )
    };
    let text = [line(3, "\n"), "\n".into(), line(9, "\r\n"), line(8, "\r\n"), line(1, "")].concat();
    let path = write(folder.path(), "a.jsonl", text);
    let out = folder.path().join("out.jsonl");
    let options = FilterOptions {
        read: ReadOptions::default(),
        max_context_tokens: 13,
        safety_buffer_tokens: 3,
        replace: false,
    };
    let report = filter(&path, &out, &tokenizer(), &options).unwrap();
    let kept = [line(3, "\n"), line(8, "\r\n"), line(1, "\n")].concat();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), kept);
    assert_eq!((report.before.count(), report.before.max(), report.before.total()), (4, 11, 29));
    assert_eq!((report.after.count(), report.after.max(), report.after.total()), (3, 10, 18));

    let again = filter(&path, &out, &tokenizer(), &options);
    assert!(matches!(again, Err(DataError::OutputExists(path)) if path == out));
    let nothing = FilterOptions { max_context_tokens: 4, replace: true, ..options.clone() };
    assert!(matches!(filter(&path, &out, &tokenizer(), &nothing), Err(DataError::NoExamples(_))));
    let buffer = FilterOptions { safety_buffer_tokens: 14, ..options.clone() };
    assert!(matches!(filter(&path, &out, &tokenizer(), &buffer), Err(DataError::Options(_))));
    let bad = write(folder.path(), "bad.jsonl", "{\"text\":\"a\"}\n{\n");
    let other = folder.path().join("other.jsonl");
    assert!(filter(&bad, &other, &tokenizer(), &options).unwrap_err().to_string().contains("bad.jsonl:2:"));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), kept, "a failure leaves what was there");
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.jsonl", "bad.jsonl", "out.jsonl"], "and nothing half-written");
}

#[test]
fn split_parts_by_seed_and_keeps_equal_records_together() {
    let folder = folder();
    let line = |idx: usize| format!("{{\"prompt\":\"{idx}\",\"completion\":\"é\"}}\r\n");
    // 60 records, of which 20 are there twice, the second time written differently.
    let mut text: String = (0..40).map(line).collect();
    text.extend((0..20).map(|idx| format!("{{\"completion\": \"\\u00e9\", \"prompt\": \"{idx}\"}}\n")));
    let path = write(folder.path(), "a.jsonl", &text);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..8 {
        let options = SplitOptions {
            read: ReadOptions::default(),
            test_size: TestSize::Fraction(0.25),
            seed,
            replace: true,
        };
        let (train, test) = (folder.path().join("train.jsonl"), folder.path().join("test.jsonl"));
        let report = split(&path, &train, &test, &options).unwrap();
        assert_eq!((report.num_train, report.num_test, report.num_duplicates), (45, 15, 20));
        let texts = [&train, &test].map(|path| std::fs::read_to_string(path).unwrap());
        let lines = |text: &str| text.split_inclusive('\n').map(str::to_owned).collect::<Vec<_>>();
        let [train_lines, test_lines] = [lines(&texts[0]), lines(&texts[1])];
        let mut all = [train_lines, test_lines].concat();
        let mut expected = lines(&text);
        all.sort();
        expected.sort();
        assert_eq!(all, expected, "every line once, byte by byte");
        let [train, test] = [train, test].map(|path| read(&path, &ReadOptions::default()).unwrap());
        assert!(test.iter().all(|record| !train.contains(record)));
        seen.insert(texts[1].clone());
        assert_eq!(
            split(&path, &folder.path().join("t"), &folder.path().join("u"), &options).unwrap(),
            report
        );
        assert_eq!(
            std::fs::read_to_string(folder.path().join("u")).unwrap(),
            texts[1],
            "the same seed, the same lines"
        );
    }
    assert!(seen.len() > 5, "seeds differ");
    let options =
        |test_size| SplitOptions { read: ReadOptions::default(), test_size, seed: 1, replace: true };
    let (train, test) = (folder.path().join("x"), folder.path().join("y"));
    for size in [
        TestSize::Records(0),
        TestSize::Records(60),
        TestSize::Fraction(1.0),
        TestSize::Fraction(f64::NAN),
        TestSize::Fraction(-0.1),
    ] {
        let error = split(&path, &train, &test, &options(size)).unwrap_err();
        assert!(matches!(error, DataError::Options(_)) && !train.exists() && !test.exists(), "{error}");
    }
    assert!(split(&path, &train, &train, &options(TestSize::Records(3))).is_err());
}

#[test]
fn split_keeps_the_header_of_csv() {
    let folder = folder();
    let rows: String = (0..10).map(|idx| format!("\"line\n{idx}\",b\n")).collect();
    let path = write(folder.path(), "a.csv", format!("prompt,completion\n{rows}"));
    let (train, test) = (folder.path().join("train.csv"), folder.path().join("test.csv"));
    let options = SplitOptions {
        read: ReadOptions::default(),
        test_size: TestSize::Records(3),
        seed: 7,
        replace: false,
    };
    split(&path, &train, &test, &options).unwrap();
    let [train, test] = [train, test].map(|path| read(&path, &ReadOptions::default()).unwrap());
    assert_eq!((train.len(), test.len()), (7, 3));
}

#[test]
fn data_sets_are_loaded_from_files() {
    let folder = folder();
    let path = write(
        folder.path(),
        "a.jsonl",
        "{\"q\":\"the\",\"answer\":\"and\"}\n{\"q\":\"in\",\"answer\":\"o\"}\n",
    );
    let template = PromptTemplate::Custom(CustomTemplate::parse("Q: {q}").unwrap());
    let options = DataOptions { template, ..DataOptions::default() };
    let set = Dataset::load(&path, &tokenizer(), None, &options).unwrap();
    assert_eq!(tokenizer().decode(&set.examples()[1].token_ids, false).unwrap(), "Q: ino<|end|>");
    let bad = write(folder.path(), "b.jsonl", "{\"q\":\"the\",\"answer\":\"and\"}\n{\"q\":\"in\"}\n");
    let error = Dataset::load(&bad, &tokenizer(), None, &options).unwrap_err().to_string();
    assert!(error.contains("b.jsonl:2: key \"answer\" is missing"), "{error}");
}

#[test]
fn a_few_megabytes_are_checked_at_once() {
    let line =
        format!("{{\"prompt\":\"{}\",\"completion\":\"{}\"}}\n", "word ".repeat(100), "word ".repeat(20));
    let started = std::time::Instant::now();
    let report = check_bytes("a.jsonl", line.repeat((8 << 20) / line.len()));
    assert!(report.is_ok());
    // Some 50 ms; the bound leaves room for a slow machine under load.
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
}

proptest! {
    #[test]
    fn nothing_in_a_file_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), name in "a\\.(jsonl|csv|tsv|parquet)") {
        let _ = check_bytes(&name, bytes);
    }

    #[test]
    fn nothing_in_a_record_panics(
        text in r#"([\[\]{}",:\\a01 \n]|"messages":|"role":|"content":|"user"|"assistant"|"weight":|\{"text":"|\[INST\]|\[/INST\]|<<SYS>>){0,40}"#,
        name in "a\\.(jsonl|csv)",
    ) {
        let _ = check_bytes(&name, text);
    }

    #[test]
    fn csv_gives_back_what_was_quoted(
        rows in prop::collection::vec(("[a-z\",;\n\r\té ]{1,12}", "[a-z\",;\n\r\té ]{0,12}"), 1..8),
    ) {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let lines: String = rows.iter().map(|(a, b)| format!("{},{}\n", quoted(a), quoted(b))).collect();
        let folder = folder();
        let path = write(folder.path(), "a.csv", format!("prompt,completion\n{lines}"));
        let expected: Vec<Record> = rows.iter().map(|(a, b)| Record::pair(a, b)).collect();
        prop_assert_eq!(read(&path, &ReadOptions::default()).unwrap(), expected);
    }
}
