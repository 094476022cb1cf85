//! Data that is made: selected, mixed, taken out of conversations, repeated; whole or not at all, and the same again.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "made/mod.rs"]
mod made;
#[path = "../../text/tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use made::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use wardrobe_data::prepare::{
    InputFile, Output, RepetitionOptions, SelectOptions, Source, Span, Take, TurnsOptions, repetition,
    select, turns,
};
use wardrobe_data::{DataError, Limits};
use wardrobe_text::Tokenizer;

fn tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(support::byte_level_vocab()).unwrap()
}

fn select_options(source: Source, path: PathBuf) -> SelectOptions<'static> {
    SelectOptions {
        source,
        text_column: "text".to_owned(),
        tokens: None,
        chars: None,
        conditions: Vec::new(),
        distinct: false,
        take: Take::All,
        output: output(path),
    }
}

fn span(text: &str) -> Span {
    text.parse().unwrap()
}

/// A Parquet file with a text and a number in each row; `text` is a number in the third column's stead.
fn parquet(path: &Path, rows: &[(&str, i64)], text_is_number: bool) {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;

    let text = if text_is_number { "REQUIRED INT64 text;" } else { "REQUIRED BYTE_ARRAY text (UTF8);" };
    let schema = format!("message m {{ {text} REQUIRED INT64 n; }}");
    let schema = parquet::schema::parser::parse_message_type(&schema).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let numbers: Vec<i64> = rows.iter().map(|(_, n)| *n).collect();
    let mut column = group.next_column().unwrap().unwrap();
    if text_is_number {
        column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
    } else {
        let texts: Vec<ByteArray> = rows.iter().map(|(text, _)| ByteArray::from(*text)).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    }
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn documents_of_all_formats_are_selected_and_lines_are_copied() {
    let folder = tempfile::tempdir().unwrap();
    let input = |name: &str| folder.path().join("in").join(name);
    // Odd spaces and a number that would be written otherwise: JSONL is copied, not written anew.
    let line = "{ \"text\" : \"the first\",  \"meta\": {\"score\": 0.90}, \"big\": 12345678901234567890123 }";
    write(
        folder.path(),
        "in/a.jsonl",
        format!("{line}\n\n{{\"text\": \"low\", \"meta\": {{\"score\": 0.1}}}}\r\n{{\"text\": \"none\"}}\n"),
    );
    write(folder.path(), "in/b.csv", "text,meta\n\"in, quotes\",x\n");
    write(folder.path(), "in/deep/c.txt", "the whole\n\nfile é");
    write(folder.path(), "in/deep/README.md", "about");
    write(folder.path(), "in/.hidden.jsonl", "{");
    parquet(&input("d.parquet"), &[("of parquet", 7)], false);
    let out = folder.path().join("out.jsonl");
    let options = select_options(source(&[&folder.path().join("in")]), out.clone());
    let report = select(&options).unwrap();
    assert_eq!((report.num_written, report.num_qualified, report.dropped.total()), (6, 6, 0));
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.starts_with(&format!("{line}\n{{\"text\": \"low\"")), "{text}");
    let texts: Vec<Value> = records(&out).iter().map(|record| record["text"].clone()).collect();
    assert_eq!(texts, ["the first", "low", "none", "in, quotes", "of parquet", "the whole\n\nfile é"]);
    assert_eq!(records(&out)[4]["n"], 7);
    let inputs = [input("a.jsonl"), input("b.csv"), input("d.parquet"), input("deep/c.txt")];
    check_manifest(&out, &[(&inputs[0], 3), (&inputs[1], 1), (&inputs[2], 1), (&inputs[3], 1)]);

    // Fields, lengths, duplicates; what is left out is counted by reason.
    let quality = folder.path().join("quality.jsonl");
    let mut options = select_options(source(&[&inputs[0]]), quality.clone());
    options.conditions = vec!["meta.score >= 0.5".parse().unwrap()];
    let report = select(&options).unwrap();
    assert_eq!(std::fs::read_to_string(&quality).unwrap(), format!("{line}\n"));
    let reasons: Vec<(&str, u64)> =
        report.dropped.0.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(
        reasons,
        [("meta.score >= 0.5: a field is missing, null or of another type", 1), ("not meta.score >= 0.5", 1)]
    );
    assert_eq!(manifest(&quality)["dropped"]["not meta.score >= 0.5"], 1);
    assert_eq!(manifest(&quality)["settings"]["where"], json!(["meta.score >= 0.5"]));
}

#[test]
fn lengths_are_those_of_the_tokenizer() {
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let texts: Vec<String> = (1..40).map(|words| "the and é".repeat(words)).collect();
    let lines: String = texts.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
    let input = write(folder.path(), "in.jsonl", lines);
    let out = folder.path().join("out.jsonl");
    let mut options = select_options(source(&[&input]), out.clone());
    options.tokens = Some((span("40-100"), counting(&tokenizer)));
    options.chars = Some(span("100-"));
    let report = select(&options).unwrap();
    let fits = |text: &String| {
        text.chars().count() >= 100 && (40..=100).contains(&tokenizer.encode_ordinary(text).unwrap().len())
    };
    let expected: Vec<&String> = texts.iter().filter(|text| fits(text)).collect();
    let found: Vec<Value> = records(&out).iter().map(|record| record["text"].clone()).collect();
    assert_eq!(found, expected.iter().map(|text| json!(text)).collect::<Vec<_>>());
    assert!(expected.len() > 3 && report.dropped.total() as usize == texts.len() - expected.len());
}

#[test]
fn a_seed_draws_and_the_same_seed_draws_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let lines: String = (0..200).map(|n| format!("{{\"text\": \"{n}\"}}\n")).collect();
    let input = write(folder.path(), "in.jsonl", lines);
    let drawn = |name: &str, take: Take| {
        let out = folder.path().join(name);
        std::fs::create_dir_all(out.parent().unwrap()).unwrap();
        let mut options = select_options(source(&[&input]), out.clone());
        options.take = take;
        select(&options).unwrap();
        (std::fs::read(&out).unwrap(), std::fs::read(out.with_extension("manifest.json")).unwrap())
    };
    let seeded = |name: &str, seed| drawn(name, Take::Drawn { count: 20, seed });
    let (first, again, other) = (seeded("a/x.jsonl", 1), seeded("b/x.jsonl", 1), seeded("c.jsonl", 2));
    assert_eq!(first, again);
    assert_ne!(first.0, other.0);
    let numbers: Vec<u32> = String::from_utf8(first.0)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().parse().unwrap())
        .collect();
    assert!(numbers.len() == 20 && numbers.is_sorted() && numbers.last() > Some(&100));
    assert_eq!(drawn("d.jsonl", Take::First(2)).0, b"{\"text\": \"0\"}\n{\"text\": \"1\"}\n");
}

#[test]
fn what_is_not_needed_is_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let fetched = Arc::new(AtomicUsize::new(0));
    let files = (0..5).map(|idx| {
        let path = write(folder.path(), &format!("{idx}.jsonl"), "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        let fetched = fetched.clone();
        InputFile::remote(format!("far/{idx}.jsonl"), move || {
            fetched.fetch_add(1, Ordering::SeqCst);
            Ok(path.clone())
        })
    });
    let source = Source { files: files.collect(), ..Source::default() };
    let mut options = select_options(source, folder.path().join("out.jsonl"));
    options.take = Take::First(3);
    let report = select(&options).unwrap();
    assert_eq!((fetched.load(Ordering::SeqCst), report.inputs.len(), report.num_written), (2, 2, 3));
    assert_eq!(report.inputs[1].name, "far/1.jsonl");

    let gone = Source {
        files: vec![InputFile::remote("far/gone.jsonl", || Err("no network".into()))],
        ..Source::default()
    };
    let error = select(&select_options(gone, folder.path().join("none.jsonl"))).unwrap_err();
    assert_eq!(error.to_string(), "cannot get far/gone.jsonl: no network");
}

#[test]
fn hostile_inputs_are_told_or_counted_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let run = |path: &Path| select(&select_options(source(&[path]), out.clone()));
    let good = "{\"text\": \"a\"}\n";
    for (name, bytes, said) in [
        ("broken.jsonl", format!("{good}{{\"text\": \n"), "broken.jsonl:2: "),
        ("list.jsonl", "[1, 2]\n".to_owned(), "list"),
        ("empty.jsonl", String::new(), "of 0 records none qualifies"),
        ("empty.csv", String::new(), "no header"),
        ("nul.txt", "a\0b".to_owned(), "NUL"),
        ("what.bin", "abc".to_owned(), "no known format"),
    ] {
        let path = write(folder.path(), name, bytes);
        fails(folder.path(), run(&path), said);
    }
    let bytes = write(folder.path(), "bytes.txt", b"a\xff\xfe");
    fails(folder.path(), run(&bytes), "UTF-8");
    let error = Source::local(&folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
    std::fs::create_dir(folder.path().join("bare")).unwrap();
    assert!(Source::local(&folder.path().join("bare")).unwrap_err().to_string().contains(".jsonl"));

    // A line of 100 MB is passed over without being held, and can be counted instead.
    let long = folder.path().join("long.jsonl");
    let mut text = format!("{good}{{\"text\": \"").into_bytes();
    text.resize(100 << 20, b'x');
    text.extend(b"\"}\n{\"text\": \"b\"}\n{broken\n");
    std::fs::write(&long, text).unwrap();
    fails(folder.path(), run(&long), "long.jsonl:2: ");
    let mut options = select_options(source(&[&long]), out.clone());
    options.source.skip_unreadable = true;
    let report = select(&options).unwrap();
    assert_eq!((report.num_written, report.dropped.0["cannot be read"], report.inputs[0].records), (2, 2, 4));
    std::fs::remove_file(&long).unwrap();
    std::fs::remove_file(&out).unwrap();
    std::fs::remove_file(out.with_extension("manifest.json")).unwrap();

    // Parquet whose text is a number: a reason, not a panic; and one that is none.
    let numbers = folder.path().join("numbers.parquet");
    parquet(&numbers, &[("", 1), ("", 2)], true);
    let mut options = select_options(source(&[&numbers]), out.clone());
    options.chars = Some(span("1-"));
    fails(folder.path(), select(&options), "2 (text: its text is no string)");
    let bytes = std::fs::read(&numbers).unwrap();
    let cut = write(folder.path(), "cut.parquet", &bytes[..bytes.len() / 2]);
    fails(folder.path(), run(&cut), "cannot be read as Parquet");

    // Limits hold for documents, too.
    let big = write(folder.path(), "big.txt", "a".repeat(2000));
    let mut options = select_options(source(&[&big]), out.clone());
    options.source.limits = Limits { max_record_bytes: 1000, ..Limits::default() };
    fails(folder.path(), select(&options), "over the limit of 1000");
}

#[test]
fn an_output_is_never_replaced_unasked_nor_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let input = write(folder.path(), "in.jsonl", "{\"text\": \"a\"}\n");
    let out = write(folder.path(), "out.jsonl", "kept");
    let error = select(&select_options(source(&[&input]), out.clone())).unwrap_err();
    assert!(matches!(error, DataError::OutputExists(path) if path == out));
    std::fs::remove_file(&out).unwrap();
    let beside = write(folder.path(), "out.manifest.json", "kept");
    let error = select(&select_options(source(&[&input]), out.clone())).unwrap_err();
    assert!(matches!(error, DataError::OutputExists(path) if path == beside));
    assert_eq!(names(folder.path()), ["in.jsonl", "out.manifest.json"]);
    let mut options = select_options(source(&[&input]), input.clone());
    options.output = Output { path: input.clone(), replace: true };
    assert!(select(&options).unwrap_err().to_string().contains("is also an input"));
    options.output = Output { path: out.clone(), replace: true };
    select(&options).unwrap();
    select(&options).unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), b"{\"text\": \"a\"}\n");
}

#[test]
fn a_file_that_changes_between_two_readings_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "in.jsonl", "{\"text\": \"a\"}\n".repeat(10));
    let calls = Arc::new(Mutex::new(0));
    let file = InputFile::remote("in.jsonl", {
        let path = path.clone();
        move || {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            if *calls == 2 {
                std::fs::write(&path, "{\"text\": \"b\"}\n".repeat(3)).unwrap();
            }
            Ok(path.clone())
        }
    });
    let mut options =
        select_options(Source { files: vec![file], ..Source::default() }, folder.path().join("out.jsonl"));
    options.take = Take::Drawn { count: 5, seed: 1 };
    fails(folder.path(), select(&options), "changed while it was read");
}

fn turns_options(source: Source, path: PathBuf) -> TurnsOptions<'static> {
    TurnsOptions {
        source,
        turns: None,
        first_turns: None,
        chars: None,
        tokens: None,
        take: Take::All,
        output: output(path),
    }
}

#[test]
fn questions_of_conversations() {
    let folder = tempfile::tempdir().unwrap();
    let lines = [
        json!({"id": "x", "conversations": [{"from": "human", "value": " one "}, {"from": "gpt", "value": "A"}, {"from": "human", "value": "two"}]}),
        json!({"id": "y", "conversations": [{"from": "human", "value": "ONE"}, {"from": "gpt", "value": "B"}, {"from": "human", "value": "Two  "}]}),
        json!({"id": "x", "messages": [{"role": "user", "content": "three"}]}),
        json!({"data": ["four", "A", "five", "B", "six", "C"]}),
        json!({"messages": [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "seven"}]}),
        json!({"messages": [{"role": "user", "content": " "}]}),
        json!({"messages": [{"role": "system", "content": "S"}]}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let input = write(folder.path(), "chats.jsonl", text);
    let out = folder.path().join("out.jsonl");
    let report = turns(&turns_options(source(&[&input]), out.clone())).unwrap();
    assert_eq!(
        records(&out),
        [
            json!({"id": "x", "turns": ["one", "two"]}),
            json!({"id": "x#2", "turns": ["three"]}),
            json!({"id": "chats.jsonl:4", "turns": ["four", "five", "six"]}),
        ]
    );
    assert_eq!((report.num_conversations, report.num_turns, report.dropped.total()), (3, 6, 4));
    check_manifest(&out, &[(&input, 7)]);

    // The same as one list, as many dumps are.
    let list = write(folder.path(), "list/chats.json", format!("{:#}", Value::Array(lines.to_vec())));
    let from_list = folder.path().join("from_list.jsonl");
    turns(&turns_options(source(&[&list]), from_list.clone())).unwrap();
    let ids = |path: &Path| records(path).iter().map(|record| record["turns"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&from_list), ids(&out));

    let with = |name: &str, change: &dyn Fn(&mut TurnsOptions<'static>)| {
        let path = folder.path().join(name);
        let mut options = turns_options(source(&[&input]), path.clone());
        change(&mut options);
        turns(&options).map(|_| records(&path).iter().map(|r| r["turns"].clone()).collect::<Vec<_>>())
    };
    assert_eq!(with("1.jsonl", &|o| o.turns = Some(span("2-2"))).unwrap(), [json!(["one", "two"])]);
    let first = with("2.jsonl", &|o| (o.first_turns, o.turns) = (Some(2), Some(span("2-")))).unwrap();
    assert_eq!(first, [json!(["one", "two"]), json!(["four", "five"])]);
    assert_eq!(with("3.jsonl", &|o| o.chars = Some(span("4-"))).unwrap(), [json!(["three"])]);
    fails(
        folder.path().join("none").parent().unwrap(),
        with("4.jsonl", &|o| o.chars = Some(span("9-"))).inspect_err(|_| {
            std::fs::remove_file(&out).unwrap();
            std::fs::remove_file(out.with_extension("manifest.json")).unwrap();
        }),
        "none is left",
    );
    let seeds: BTreeSet<String> = (0..12)
        .map(|seed| {
            let name = format!("seed{seed}.jsonl");
            let drawn = with(&name, &|o| o.take = Take::Drawn { count: 1, seed }).unwrap();
            assert_eq!(drawn.len(), 1);
            drawn[0].to_string()
        })
        .collect();
    assert!(seeds.len() > 1);
}

fn repetition_options<'a>(source: Source, tokenizer: &'a Tokenizer, path: PathBuf) -> RepetitionOptions<'a> {
    RepetitionOptions {
        source,
        text_column: "text".to_owned(),
        counting: counting(tokenizer),
        tokens: span("60"),
        words: span("1-9"),
        per_document: 1,
        take: None,
        draw: false,
        seed: 3,
        output: output(path),
    }
}

/// Holds an item against its own words and a count of its own.
fn check_repetition(item: &Value, tokenizer: &Tokenizer, max_tokens: usize) {
    let (prompt, n) = (item["prompt"].as_str().unwrap(), item["n"].as_u64().unwrap() as usize);
    let document = prompt.strip_prefix(&format!("Return last {n} words from this text: \n\n")).unwrap();
    let words: Vec<&str> = document.split_whitespace().collect();
    assert_eq!(document, words.join(" "));
    assert_eq!(item["completion"], words[words.len() - n..].join(" "));
    assert_eq!(item["document_words"], words.len());
    let tokens = tokenizer.encode_ordinary(document).unwrap().len();
    assert_eq!(item["tokens"], tokens);
    assert!(tokens <= max_tokens, "{tokens} > {max_tokens}");
}

#[test]
fn the_last_words_of_documents_cut_by_tokens() {
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let text = |idx: usize| {
        (0..60).map(|n| format!("w{}  the\nand{}", n * idx, "é".repeat(n % 3))).collect::<Vec<_>>().join(" ")
    };
    for idx in 0..12 {
        write(folder.path(), &format!("docs/{idx:02}.txt"), text(idx));
    }
    write(folder.path(), "docs/short.txt", "too short a text");
    write(folder.path(), "docs/twice.txt", text(3));
    let docs = folder.path().join("docs");
    let out = folder.path().join("out.jsonl");
    let report = repetition(&repetition_options(source(&[&docs]), &tokenizer, out.clone())).unwrap();
    assert_eq!((report.num_items, report.dropped.total()), (12, 2));
    let items = records(&out);
    let ns: BTreeSet<u64> = items.iter().map(|item| item["n"].as_u64().unwrap()).collect();
    assert!(ns.len() > 3 && ns.iter().all(|n| (1..=9).contains(n)), "{ns:?}");
    for (idx, item) in items.iter().enumerate() {
        check_repetition(item, &tokenizer, 60);
        // One word more would have been too much.
        let words = item["document_words"].as_u64().unwrap() as usize;
        let all = text(idx);
        let longer = all.split_whitespace().take(words + 1).collect::<Vec<_>>().join(" ");
        assert!(tokenizer.encode_ordinary(&longer).unwrap().len() > 60);
    }

    let mut options = repetition_options(source(&[&docs]), &tokenizer, folder.path().join("parts.jsonl"));
    (options.tokens, options.per_document, options.take, options.draw) = (span("30-50"), 4, Some(10), true);
    repetition(&options).unwrap();
    let parts = records(&options.output.path);
    assert_eq!(parts.len(), 10);
    parts.iter().for_each(|item| check_repetition(item, &tokenizer, 50));
    let again = RepetitionOptions { output: output(folder.path().join("again.jsonl")), ..options.clone() };
    repetition(&again).unwrap();
    assert_eq!(std::fs::read(&options.output.path).unwrap(), std::fs::read(&again.output.path).unwrap());

    let none = folder.path().join("none");
    std::fs::create_dir(&none).unwrap();
    let run = |change: &dyn Fn(&mut RepetitionOptions<'_>)| {
        let mut options = repetition_options(source(&[&docs]), &tokenizer, none.join("out.jsonl"));
        change(&mut options);
        repetition(&options)
    };
    fails(&none, run(&|o| o.tokens = span("5000")), "fewer than 5000 tokens");
    fails(&none, run(&|o| o.words = span("1-500")), "fewer than 500 words");
    fails(&none, run(&|o| o.words = span("0-5")), "begins at 1");
    fails(&none, run(&|o| o.tokens = span("5-")), "greatest length");
    fails(&none, run(&|o| o.text_column = "body".to_owned()), "no such column");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_text_is_cut_too_long_or_needlessly_short(
        words in prop::collection::vec("[a-zé ,.]{1,12}|the|and|\u{1f600}{1,3}", 1..80), max in 1_usize..120,
    ) {
        let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
        let text = words.join(" ");
        let input = write(folder.path(), "in.jsonl", json!({"text": text}).to_string());
        let out = folder.path().join("out.jsonl");
        let mut options = repetition_options(source(&[&input]), &tokenizer, out.clone());
        (options.tokens, options.words) = (Span { min: 1, max }, span("1"));
        let count = |words: &[&str]| tokenizer.encode_ordinary(&words.join(" ")).unwrap().len();
        let all: Vec<&str> = text.split_whitespace().collect();
        match repetition(&options) {
            Ok(_) => records(&out).iter().for_each(|item| check_repetition(item, &tokenizer, max)),
            // The length is drawn, so that the first word may be too long for it where it would fit the range.
            Err(_) => prop_assert!(all.is_empty() || count(&all[..1]) > 1),
        }
    }
}
