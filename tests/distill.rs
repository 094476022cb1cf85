//! `wardrobe distill` as a person runs it, against a teacher that counts what it is asked: killed at random instants it
//! makes the data of an undisturbed run, and asks nothing again that was answered.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
#[path = "support/kills.rs"]
mod kills;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/random.rs"]
mod random;
#[path = "support/teacher.rs"]
mod teacher;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/tiny.rs"]
mod tiny;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command::*;
use serde_json::{Value, json};
use teacher::{Reply, Teacher};
use tiny::TinyModel;

/// A folder with questions.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new(questions: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("in.jsonl"), questions).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        self.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn by(&self, teacher: &str, out: &str, args: &[&str]) -> Command {
        let mut command = wardrobe(&["distill", "--teacher", teacher, "--out", out]);
        if !args.contains(&"--in") {
            command.args(["--in", "in.jsonl"]);
        }
        command.args(args).current_dir(self.0.path());
        command
    }
}

/// Records of one to four questions.
fn questions(num: usize) -> String {
    let mut text = String::new();
    for i in 0..num {
        let turns: Vec<String> =
            (0..1 + i % 4).map(|turn| format!("question {turn} of {i}: é \u{1f600}?")).collect();
        writeln!(text, "{}", json!({"id": format!("r{i}"), "turns": turns})).unwrap();
    }
    text
}

/// An answer that says all that was said before, so that wrong context is seen.
fn echo(body: &Value) -> String {
    let messages = body["messages"].as_array().unwrap();
    let last = messages.last().unwrap()["content"].as_str().unwrap();
    format!("answer {} to \u{ab}{last}\u{bb}\n\tü", messages.len())
}

fn said(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// What the data of `questions` by `echo` must be, made here.
fn expected(num: usize) -> Vec<Value> {
    let record = |i: usize| {
        let mut messages = Vec::new();
        for turn in 0..1 + i % 4 {
            messages.push(said("user", &format!("question {turn} of {i}: é \u{1f600}?")));
            let answer = echo(&json!({"messages": messages}));
            messages.push(said("assistant", &answer));
        }
        json!({"id": format!("r{i}"), "messages": messages})
    };
    (0..num).map(record).collect()
}

#[test]
fn runs_that_are_killed_again_and_again_make_the_data_of_one_that_is_not() {
    const RECORDS: usize = 120;
    let behaviour = |body: &Value, _| Reply::Answer(echo(body), "stop", Duration::from_millis(15));
    let bench = Bench::new(&questions(RECORDS));
    let args = ["--concurrency", "4", "--price", "2/8"];
    let undisturbed = Teacher::start(behaviour);
    let whole = succeeds(&mut bench.by(&undisturbed.url, "whole.jsonl", &args));
    assert!(whole.contains("120 of 120 records: 120 conversations, 0 errors; 300 answers"), "{whole}");
    assert!(
        whole.contains("asked now: 300 answers") && whole.contains("kept from before: 0 answers"),
        "{whole}"
    );
    assert_eq!(undisturbed.num_asked(), 300);
    assert_eq!(bench.lines("whole.jsonl"), expected(RECORDS));

    let teacher = Teacher::start(behaviour);
    let again = || bench.by(&teacher.url, "pieces.jsonl", &args);
    let kills = kills::until_done(&teacher, again, || {
        // What is there under the data's name is all of it, or it is not there.
        if bench.path("pieces.jsonl").exists() {
            assert_eq!(bench.read("pieces.jsonl"), bench.read("whole.jsonl"));
        }
    });
    assert_eq!(bench.read("pieces.jsonl"), bench.read("whole.jsonl"));
    assert!(!bench.path("pieces.jsonl.errors.jsonl").exists());
    let num_asked = kills::nothing_twice(&teacher, &kills, 300, 4);

    // The answers are kept for others, and a finished run asks nothing.
    let done = output(&mut bench.by(&teacher.url, "pieces.jsonl", &args));
    assert!(stderr(&done).contains("finished already: 120 records"), "{}", stderr(&done));
    let shared = [&args[..], &["--cache", "pieces.jsonl.answers.sqlite"]].concat();
    let text = succeeds(&mut bench.by(&teacher.url, "other.jsonl", &shared));
    assert!(
        text.contains("asked now: 0 answers") && text.contains("kept from before: 300 answers"),
        "{text}"
    );
    assert_eq!(bench.read("other.jsonl"), bench.read("whole.jsonl"));
    let cost = |text: &str, line: &str| {
        let line = text.lines().find(|told| told.starts_with(line)).unwrap();
        line.rsplit("cost ").next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!((cost(&text, "asked now"), cost(&text, "kept")), (0.0, cost(&whole, "asked now")));
    // Tokens are counted as the teacher said: 2 a million of prompts, 8 of answers.
    let tokens: Vec<f64> = whole
        .lines()
        .find(|told| told.starts_with("asked now"))
        .unwrap()
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!((cost(&whole, "asked now") - (2.0 * tokens[1] + 8.0 * tokens[2]) / 1e6).abs() < 1e-4, "{whole}");
    assert!(tokens[1] > 1000.0 && tokens[2] > 1000.0, "{whole}");
    assert_eq!(teacher.num_asked(), num_asked);
}

#[test]
fn conversations_are_asked_with_what_was_answered_and_every_setting() {
    let bench = Bench::new("");
    let chat = [said("system", "own"), said("user", "a"), said("assistant", "before"), said("user", "b")];
    bench.write(
        "in.jsonl",
        &[
            json!({"messages": chat}).to_string(),
            json!({"question": "c", "id": 7}).to_string(),
            json!({"instruction": "d", "input": "about", "system": "mine"}).to_string(),
        ]
        .join("\n"),
    );
    let teacher = Teacher::start(|body, _| Reply::Answer(echo(body), "stop", Duration::ZERO));
    let settings =
        ["--system", "all", "--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--max-tokens", "77"];
    let usage = [&settings[..], &["--with-usage"]].concat();
    succeeds(&mut bench.by(&teacher.url, "out.jsonl", &usage));
    let answer = |len: usize, last: &str| format!("answer {len} to \u{ab}{last}\u{bb}\n\tü");
    let lines = bench.lines("out.jsonl");
    let expected = [
        said("system", "own"),
        said("user", "a"),
        said("assistant", &answer(2, "a")),
        said("user", "b"),
        said("assistant", &answer(4, "b")),
    ];
    assert_eq!(lines[0]["messages"], json!(expected));
    assert_eq!(lines[0]["finish_reasons"], json!(["stop", "stop"]));
    assert!(lines[0]["usage"]["completion_tokens"].as_u64().unwrap() >= 8 && lines[0].get("id").is_none());
    let expected = [said("system", "all"), said("user", "c"), said("assistant", &answer(2, "c"))];
    assert_eq!((&lines[1]["id"], &lines[1]["messages"]), (&json!(7), &json!(expected)));
    assert_eq!(lines[2]["messages"][0], said("system", "mine"));
    assert_eq!(lines[2]["messages"][1], said("user", "d\n\nabout"));
    let asked = teacher.asked();
    assert_eq!(asked.len(), 4);
    for asked in asked.values() {
        let number = |name: &str| asked.body[name].as_f64().unwrap();
        assert!((number("temperature") - 0.5).abs() < 1e-6 && (number("top_p") - 0.9).abs() < 1e-6);
        assert_eq!((number("seed"), number("max_tokens")), (3.0, 77.0));
        assert_eq!((&asked.body["model"], asked.asks.len()), (&json!("teacher"), 1));
    }
    // Each setting is a question of its own to the kept answers; without another setting nothing is asked.
    for (name, value) in
        [("--temperature", "0.6"), ("--top-p", "0.8"), ("--seed", "4"), ("--max-tokens", "78")]
    {
        let mut other = settings;
        let at = other.iter().position(|word| *word == name).unwrap();
        other[at + 1] = value;
        let told = fails(&mut bench.by(&teacher.url, "out.jsonl", &other), 1);
        assert!(told.contains(&name[2..].replace('-', "_")) && told.contains("--restart"), "{told}");
        let before = teacher.num_asked();
        succeeds(&mut bench.by(&teacher.url, "out.jsonl", &[&other[..], &["--restart"]].concat()));
        assert_eq!(teacher.num_asked(), before + 4, "{name}");
        succeeds(&mut bench.by(&teacher.url, "out.jsonl", &[&settings[..], &["--restart"]].concat()));
        assert_eq!(teacher.num_asked(), before + 4, "{name}");
    }
    // Answers that are there stay, are context, and are not learnt.
    succeeds(&mut bench.by(&teacher.url, "kept.jsonl", &["--keep-answers", "--limit", "1"]));
    let kept = json!({"role": "assistant", "content": "before", "weight": 0});
    let expected = json!([
        said("system", "own"),
        said("user", "a"),
        kept,
        said("user", "b"),
        said("assistant", &answer(4, "b"))
    ]);
    assert_eq!(bench.lines("kept.jsonl")[0]["messages"], expected);
    // The data is data.
    let told = succeeds(wardrobe(&["data", "check", "kept.jsonl"]).current_dir(bench.0.path()));
    assert!(told.contains("(messages), 0 errors"), "{told}");
}

#[test]
fn a_teacher_that_fails_stalls_or_answers_nonsense() {
    let mut text = String::new();
    for word in [
        "good", "busy", "down", "stalls", "empty", "cut", "refuses", "filtered", "nonsense", "long", "broken",
    ] {
        writeln!(text, "{}", json!({"id": word, "turns": ["first", word, "after"]})).unwrap();
    }
    let bench = Bench::new(&text);
    let is_well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let well = is_well.clone();
    let teacher = Teacher::start(move |body, before| {
        let last = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
        let answer = |text: &str, finish| Reply::Answer(text.to_owned(), finish, Duration::ZERO);
        let refusal = |status, headers, body: Value| Reply::Refusal(status, headers, body.to_string());
        match last {
            _ if well.load(std::sync::atomic::Ordering::Acquire) => answer("{\"well\": true}", "stop"),
            "busy" if before == 0 => refusal(
                "429 Too Many Requests",
                "retry-after: 1\r\n",
                json!({"error": {"message": "slow down"}}),
            ),
            "down" if before < 2 => Reply::Refusal("503 Service Unavailable", "", "starting".to_owned()),
            "stalls" if before == 0 => Reply::Stall(Duration::from_secs(60)),
            "empty" => answer(" \n", "stop"),
            "cut" => answer("{\"a\": 1}", "length"),
            "refuses" => Reply::Refusal(
                "200 OK",
                "",
                json!({"choices": [{"message": {"content": null, "refusal": "No."}}]}).to_string(),
            ),
            "filtered" => answer("{}", "content_filter"),
            "nonsense" => answer("Sure! {", "stop"),
            "long" => refusal(
                "400 Bad Request",
                "",
                json!({"error": {"message": "too long", "code": "context_length_exceeded"}}),
            ),
            "broken" => Reply::Refusal("200 OK", "", "<html>".to_owned()),
            _ => answer("{\"a\": 1}", "stop"),
        }
    });
    bench.write("schema.json", r#"{"type": "object"}"#);
    let args = ["--request-timeout", "2", "--schema", "schema.json"];
    let started = Instant::now();
    let told = succeeds(&mut bench.by(&teacher.url, "out.jsonl", &args));
    assert!(started.elapsed() >= Duration::from_secs(2), "the stall was waited for");
    assert!(told.contains("11 of 11 records: 4 conversations, 7 errors"), "{told}");
    let ids = |name: &str| {
        bench.lines(name).iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(ids("out.jsonl"), ["good", "busy", "down", "stalls"]);
    let errors = bench.lines("out.jsonl.errors.jsonl");
    let kinds: Vec<_> = errors
        .iter()
        .map(|line| (line["id"].as_str().unwrap(), line["error"]["type"].as_str().unwrap()))
        .collect();
    let expected = [
        ("empty", "empty"),
        ("cut", "cut"),
        ("refuses", "refusal"),
        ("filtered", "refusal"),
        ("nonsense", "invalid_json"),
        ("long", "context_length_exceeded"),
        ("broken", "endpoint"),
    ];
    assert_eq!(kinds, expected);
    assert_eq!((&errors[1]["index"], errors[1]["messages"].as_array().unwrap().len()), (&json!(5), 3));
    // "retry-after" was honoured; nothing after a failure was asked.
    let asked = teacher.asked();
    let of = |word: &str| {
        asked
            .values()
            .filter(|asked| asked.body["messages"].as_array().unwrap().last().unwrap()["content"] == word)
            .collect::<Vec<_>>()
    };
    let busy = of("busy")[0];
    assert!(busy.asks[1].asked_at.duration_since(busy.asks[0].asked_at) >= Duration::from_millis(990));
    let tries: Vec<usize> = ["busy", "down", "stalls"].map(|word| of(word)[0].asks.len()).to_vec();
    assert_eq!(tries, [2, 3, 2]);
    assert_eq!(of("first").len(), 1, "what all records begin with is asked once");
    assert_eq!(of("first")[0].asks.len(), 1);
    assert_eq!(of("after").len(), 4);
    assert_eq!(of("good")[0].body["response_format"]["json_schema"]["schema"], json!({"type": "object"}));

    // A further run leaves errors as they are; asked again, they alone are asked.
    let before = teacher.num_asked();
    succeeds(&mut bench.by(&teacher.url, "out.jsonl", &args));
    assert_eq!(teacher.num_asked(), before);
    is_well.store(true, std::sync::atomic::Ordering::Release);
    let told = succeeds(&mut bench.by(&teacher.url, "out.jsonl", &[&args[..], &["--retry-errors"]].concat()));
    assert!(told.contains("11 conversations, 0 errors"), "{told}");
    assert_eq!(
        teacher.num_asked(),
        before + 14,
        "the question that failed and the one after it, seven times"
    );
    assert!(!bench.path("out.jsonl.errors.jsonl").exists() && !bench.path("out.jsonl.lines.before").exists());
    assert_eq!(ids("out.jsonl").len(), 11);

    // Cut answers may be kept; the schema may be for the last answer alone.
    is_well.store(false, std::sync::atomic::Ordering::Release);
    bench.write("cut.jsonl", &json!({"turns": ["cut", "after"]}).to_string());
    let args = ["--in", "cut.jsonl", "--keep-cut", "--schema", "schema.json", "--schema-turns", "last"];
    let told = succeeds(&mut bench.by(&teacher.url, "kept.jsonl", &args));
    assert!(told.contains("1 conversations, 0 errors"), "{told}");
    let asked = teacher.asked();
    let mut held: Vec<_> = asked
        .values()
        .filter(|asked| asked.body["messages"][0]["content"] == "cut")
        .map(|asked| asked.body["response_format"]["type"].as_str().unwrap())
        .collect();
    held.sort_unstable();
    assert_eq!(held, ["json_schema", "text"]);

    // One that is gone for good ends the run, which goes on later.
    let gone = Teacher::start(|_, _| Reply::Refusal("503 Service Unavailable", "", "gone".to_owned()));
    let told = fails(&mut bench.by(&gone.url, "gone.jsonl", &["--patience", "1"]), 1);
    assert!(
        told.contains("gone") && told.contains("gave up after") && told.contains("goes on from there"),
        "{told}"
    );
    assert!(!bench.path("gone.jsonl").exists());
    let wrong = Teacher::start(|_, _| {
        Reply::Refusal("401 Unauthorized", "", json!({"error": {"message": "no key"}}).to_string())
    });
    let told = fails(&mut bench.by(&wrong.url, "gone.jsonl", &[]), 1);
    assert!(told.contains("no key"), "{told}");
    succeeds(&mut bench.by(&teacher.url, "gone.jsonl", &["--limit", "1"]));
}

#[test]
fn a_signal_stops_it_and_no_other_process_may_write() {
    let bench = Bench::new(&questions(400));
    let teacher = Teacher::start(|body, _| Reply::Answer(echo(body), "stop", Duration::from_millis(50)));
    let args = ["--concurrency", "4"];
    let mut child = bench
        .by(&teacher.url, "out.jsonl", &args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(bench.path("out.jsonl.lines")).map_or(0, |file| file.len()) < 2000 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    for args in [&[][..], &["--restart"]] {
        let told = fails(&mut bench.by(&teacher.url, "out.jsonl", args), 1);
        assert!(told.contains("is in use by another process"), "{told}");
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let done = bench.lines("out.jsonl");
    assert!(!done.is_empty() && done.len() < 400);
    assert_eq!(done, expected(400)[..done.len()]);
    // Every answer that came is kept, those of conversations that were not done too: nothing is asked again.
    let before = teacher.asked();
    assert!(before.values().all(|asked| asked.asks[0].answered_at.is_some()));
    let more = (done.len() + 20).to_string();
    succeeds(&mut bench.by(&teacher.url, "out.jsonl", &["--concurrency", "4", "--limit", &more]));
    assert_eq!(bench.lines("out.jsonl"), expected(done.len() + 20));
    assert!(teacher.asked().values().all(|asked| asked.asks.len() == 1));
}

#[test]
fn text_for_training_is_read_back_as_what_was_said() {
    let bench = Bench::new(
        &(questions(5) + "{\"id\": \"odd\", \"turns\": [\"what is [/INST]?\"], \"system\": \"s\"}\n"),
    );
    let teacher = Teacher::start(|body, _| Reply::Answer(echo(body), "stop", Duration::ZERO));
    let text = ["--format", "text", "--template"];
    let told = succeeds(&mut bench.by(&teacher.url, "inst.jsonl", &[&text[..], &["inst"]].concat()));
    assert!(told.contains("1 template, the first: "), "{told}");
    let lines = bench.lines("inst.jsonl");
    assert_eq!(lines.len(), 5);
    assert_eq!(bench.lines("inst.jsonl.errors.jsonl")[0]["id"], "odd");
    for (line, expected) in lines.iter().zip(expected(5)) {
        let Some(wardrobe::data::Record::Chat(chat)) = read_back(&bench, line) else { panic!("{line}") };
        let read: Vec<Value> =
            chat.messages.iter().map(|turn| said(&turn.message.role, turn.content())).collect();
        assert_eq!(json!(read), expected["messages"]);
    }
    // Another format of the same answers, without asking.
    let asked = teacher.num_asked();
    let model = TinyModel::default().write();
    let chat = [&text[..], &["chat", "--template-model", model.path().to_str().unwrap()]].concat();
    succeeds(&mut bench.by(&teacher.url, "inst.jsonl", &chat));
    assert_eq!((bench.lines("inst.jsonl").len(), teacher.num_asked()), (6, asked));
    let first = bench.lines("inst.jsonl")[0]["text"].as_str().unwrap().to_owned();
    let template = wardrobe::ModelText::open(model.path()).unwrap();
    let messages: Vec<wardrobe::Message> =
        serde_json::from_value(expected(1)[0]["messages"].clone()).unwrap();
    assert_eq!(first, template.chat_text(&messages).unwrap());
    assert!(first.contains("question 0 of 0: é \u{1f600}?") && first.contains("answer 1 to"), "{first}");
    assert!(!bench.path("inst.jsonl.errors.jsonl").exists());
}

fn read_back(bench: &Bench, line: &Value) -> Option<wardrobe::data::Record> {
    bench.write("one.jsonl", &format!("{line}\n"));
    let mut records = wardrobe::data::Records::open(&bench.path("one.jsonl"), &Default::default()).unwrap();
    Some(records.next_record()?.unwrap().record)
}

#[test]
fn what_is_wrong_is_told_before_anything_is_asked() {
    let teacher = Teacher::start(|body, _| Reply::Answer(echo(body), "stop", Duration::ZERO));
    let bench = Bench::new(&questions(3));
    bench.write("bad.jsonl", "{\"question\": \"a\"}\nno json\n{\"text\": 1}\n{\"turns\": []}\n");
    bench.write("in.csv", "id,question\n1,\"one\ntwo\"\n2,three\n");
    bench.write("mine.jsonl", "{\"mine\": true}\n");
    bench.write("half.json", "{\"type\": ");
    for (args, code, named) in [
        (&["--in", "missing.jsonl"][..], 1, "missing.jsonl"),
        (&["--in", "bad.jsonl"], 1, "3 records of bad.jsonl cannot be asked: line 2"),
        (&["--schema", "half.json"], 1, "half.json is no JSON"),
        (&["--out", "nowhere/out.jsonl"], 1, "does not exist"),
        (&["--out", "in.jsonl"], 1, "in.jsonl cannot be two of"),
        (&["--cache", "out.jsonl"], 1, "out.jsonl cannot be two of"),
        (&["--out", "mine.jsonl"], 1, "mine.jsonl exists and was not begun"),
        (&["--out", "/dev/null", "--restart"], 2, "no regular file"),
        (&["--limit", "0"], 2, "--limit"),
        (&["--temperature", "-1"], 2, "--temperature"),
        (&["--top-p", "0"], 2, "--top-p"),
        (&["--price", "1"], 2, "IN/OUT"),
        (&["--request-timeout", "0"], 2, "request-timeout"),
        (&["--format", "text"], 2, "--template"),
        (&["--template", "inst"], 2, "--format text"),
        (&["--format", "text", "--template", "chat"], 2, "--template-model"),
        (&["--schema-turns", "last"], 2, "--schema"),
        (&["--adapter", "x=/nonexistent"], 1, "/nonexistent"),
    ] {
        let mut command = wardrobe(&["distill", "--teacher", &teacher.url]);
        for (name, value) in [("--in", "in.jsonl"), ("--out", "out.jsonl")] {
            if !args.contains(&name) {
                command.args([name, value]);
            }
        }
        let told = fails(command.args(args).current_dir(bench.0.path()), code);
        assert!(told.contains(named), "{args:?}: {told}");
    }
    assert_eq!(bench.read("mine.jsonl"), "{\"mine\": true}\n");
    assert_eq!((teacher.num_asked(), bench.path("out.jsonl").exists()), (0, false));
    let told = fails(
        wardrobe(&["distill", "--teacher", "mistralrs:x", "--in", "in.jsonl", "--out", "o.jsonl"])
            .current_dir(bench.0.path()),
        1,
    );
    assert!(told.contains("mistralrs"), "{told}");

    let told =
        succeeds(&mut bench.by(&teacher.url, "bad-out.jsonl", &["--in", "bad.jsonl", "--allow-bad-records"]));
    assert!(told.contains("1 conversations, 3 errors") && told.contains("3 bad_record"), "{told}");
    succeeds(&mut bench.by(&teacher.url, "csv.jsonl", &["--in", "in.csv"]));
    let lines = bench.lines("csv.jsonl");
    assert_eq!((&lines[0]["id"], &lines[0]["messages"][0]["content"]), (&json!("1"), &json!("one\ntwo")));

    // A file of kept answers that is none, or of a later version.
    succeeds(&mut bench.by(&teacher.url, "out.jsonl", &[]));
    let good = std::fs::read(bench.path("out.jsonl.answers.sqlite")).unwrap();
    let mut later = good.clone();
    later[60..64].copy_from_slice(&99_u32.to_be_bytes());
    let mut damaged = good.clone();
    damaged[100..].fill(0x5a);
    for (name, bytes, named) in [
        ("later.sqlite", later.as_slice(), "has schema 99; this version knows up to 2"),
        ("damaged.sqlite", &damaged, "damaged or no database"),
        ("none.sqlite", b"this is no database at all, whatever else it may be", "damaged or no database"),
    ] {
        std::fs::write(bench.path(name), bytes).unwrap();
        let before = teacher.num_asked();
        let told = fails(&mut bench.by(&teacher.url, "other.jsonl", &["--cache", name]), 1);
        assert!(told.contains(named) && told.contains(name) && told.contains("--cache"), "{told}");
        assert_eq!(teacher.num_asked(), before);
    }
}

#[test]
fn a_model_in_this_process_teaches_too() {
    let model = TinyModel::default().write();
    let bench = Bench::new(&questions(6));
    let here = model.path().to_str().unwrap();
    let args = ["--max-tokens", "12", "--keep-cut", "--threads", "2", "--kv-memory", "32MiB"];
    let told = succeeds(&mut bench.by(here, "here.jsonl", &args));
    assert!(told.contains("6 of 6 records"), "{told}");
    let mut command = wardrobe(&["serve", here, "--served-model-name", "tiny", "--port", "0"]);
    command.args(["--threads", "2", "--kv-memory", "32MiB"]);
    let server = Serving::start(command);
    succeeds(&mut bench.by(&server.base, "there.jsonl", &["--max-tokens", "12", "--keep-cut"]));
    assert_eq!(bench.read("there.jsonl"), bench.read("here.jsonl"));
    assert!(!bench.lines("here.jsonl").is_empty());
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_and_costs_nothing() {
    // A small disk of its own, in a namespace that ends with the command.
    let alone = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script]);
        command.stdin(Stdio::null());
        command
    };
    let long = |body: &Value, _| Reply::Answer(echo(body).repeat(60), "stop", Duration::ZERO);
    let bench = Bench::new(&questions(60));
    let can = alone("mkdir -p small && mount -t tmpfs tmpfs small").current_dir(bench.0.path()).output();
    if !can.is_ok_and(|can| can.status.success()) {
        eprintln!(
            "SKIPPED a_full_disk_is_named_and_costs_nothing: no mounts in namespaces of one's own here"
        );
        return;
    }
    let undisturbed = Teacher::start(long);
    succeeds(&mut bench.by(&undisturbed.url, "whole.jsonl", &[]));
    for room_kib in [64, 200, 400, 700, 1000] {
        let teacher = Teacher::start(long);
        let command = bench.by(&teacher.url, "small/pieces.jsonl", &["--concurrency", "2"]);
        let words: Vec<_> = command.get_args().map(|arg| arg.to_str().unwrap()).collect();
        let command = format!("{} {}", env!("CARGO_BIN_EXE_wardrobe"), words.join(" "));
        let script = format!(
            "mount -t tmpfs -o size={room_kib}k tmpfs small; if {command} 2>first; then exit 9; fi
            mount -o remount,size=64m small; {command} 2>second; cp small/pieces.jsonl pieces.jsonl"
        );
        let done = alone(&script).current_dir(bench.0.path()).output().unwrap();
        let said = |name: &str| std::fs::read_to_string(bench.path(name)).unwrap_or_default();
        let (first, second) = (said("first"), said("second"));
        assert!(done.status.success(), "{room_kib}: {done:?}\n{first}\n{second}");
        let error = first.lines().find(|line| line.starts_with("error:")).unwrap_or_default();
        let is_named =
            ["no space is left", "No space left", "disk I/O error"].iter().any(|words| error.contains(words));
        assert!(error.contains("small/pieces") && is_named, "{room_kib}: {first}");
        assert_eq!(bench.read("pieces.jsonl"), bench.read("whole.jsonl"), "{room_kib}");
        // What was under way when the disk was full was asked again, and nothing else.
        let again = teacher.num_asked() - teacher.asked().len();
        assert!(again <= 2, "{room_kib}: {again} again");
    }
}
