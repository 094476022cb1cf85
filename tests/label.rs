//! `wardrobe label` as a person runs it: killed at random instants it gives the labels of an undisturbed run; an endpoint
//! gives the same labels as a model in the process; what is wrong is told before anything is asked.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/random.rs"]
mod random;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/tiny.rs"]
mod tiny;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command::*;
use random::Rng;
use serde_json::{Value, json};
use tiny::TinyModel;

const PROMPT: &str = "Sort it into one of three kinds: {{ text }}\nAs JSON.";

/// A folder with a model, records and a schema.
struct Bench {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Bench {
    fn new(model: &Path, num_records: usize, schema: &Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut records = String::new();
        for i in 0..num_records {
            let words = ["sea", "stone", "bird", "letter", "storm"];
            let text = format!("{} {} and a {}", i, words[i % 5], words[(i * 7 + 3) % 5]);
            writeln!(records, "{}", json!({"id": format!("r{i}"), "text": text, "n": i})).unwrap();
        }
        std::fs::write(folder.path().join("in.jsonl"), records).unwrap();
        std::fs::write(folder.path().join("schema.json"), schema.to_string()).unwrap();
        Self { folder, model: model.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// A run over what is in the folder, by `target`: a model or an endpoint.
    fn by(&self, target: &[&str], out: &str, args: &[&str]) -> Command {
        let mut command = wardrobe(&["label"]);
        command.args(target).args(["--schema", "schema.json", "--out", out]);
        for (name, value) in [("--in", "in.jsonl"), ("--prompt", PROMPT), ("--max-tokens", "80")] {
            if !args.contains(&name) {
                command.args([name, value]);
            }
        }
        command.args(args).current_dir(self.folder.path());
        command
    }

    fn label(&self, out: &str, args: &[&str]) -> Command {
        let mut command = self.by(&[self.model.to_str().unwrap()], out, args);
        command.args(["--kv-memory", "32MiB", "--threads", "2"]);
        command
    }

    fn lines(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out)).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The lines without what depends on what was computed before.
    fn labels(&self, out: &str) -> Vec<Value> {
        let mut lines = self.lines(out);
        for (idx, line) in lines.iter_mut().enumerate() {
            assert_eq!(line["index"], idx);
            if let Some(usage) = line.get_mut("usage") {
                usage.as_object_mut().unwrap().remove("cached_tokens");
            }
        }
        lines
    }

    /// Kills runs at random instants until one of them ends by itself, and gives how many were killed. Some of the kills
    /// come at any time, a run's start among them; others once it has written up to so many more lines.
    fn kill_again_and_again(&self, out: &str, args: &[&str], max_lines: usize, rng: &mut Rng) -> usize {
        let lines_of = |text: Vec<u8>| text.iter().filter(|byte| **byte == b'\n').count();
        let num_lines = || std::fs::read(self.path(out)).map_or(0, lines_of);
        let mut killed = 0;
        loop {
            let mut command = self.label(out, args);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let deadline = Instant::now() + Duration::from_millis(rng.below(100) as u64);
            let (by_time, enough) = (rng.below(4) == 0, num_lines() + 1 + rng.below(max_lines));
            let is_time = || if by_time { Instant::now() >= deadline } else { num_lines() >= enough };
            let is_last = killed >= 12;
            while (is_last || !is_time()) && child.try_wait().unwrap().is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
            // SIGKILL: nothing can be caught.
            let _ = child.kill();
            let done = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(!said.contains("error:"), "{said}");
            if done.status.success() {
                return killed;
            }
            killed += 1;
        }
    }
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["animal", "thing", "weather"]},
            "is_loud": {"type": "boolean"},
            "score": {"type": "integer", "minimum": 1, "maximum": 5}
        },
        "required": ["kind", "is_loud", "score"],
        "additionalProperties": false
    })
}

fn assert_holds(line: &Value) {
    let label = &line["label"];
    assert_eq!(label.as_object().unwrap().len(), 3, "{line}");
    assert!(["animal", "thing", "weather"].contains(&label["kind"].as_str().unwrap()), "{line}");
    assert!(label["is_loud"].is_boolean() && (1..=5).contains(&label["score"].as_i64().unwrap()), "{line}");
}

#[test]
fn runs_that_are_killed_again_and_again_give_the_labels_of_one_that_is_not() {
    let model = TinyModel::default().write();
    let bench = Bench::new(model.path(), 150, &schema());
    let said = succeeds(&mut bench.label("whole.jsonl", &["--report", "page.html", "--report", "page.json"]));
    assert!(said.contains("150 of 150 records: 150 labels, 0 errors") && said.contains("is_loud"), "{said}");
    let whole = bench.labels("whole.jsonl");
    assert_eq!(whole.len(), 150);
    whole.iter().for_each(assert_holds);
    assert_eq!((&whole[7]["id"], &whole[7]["finish_reason"]), (&json!("r7"), &json!("stop")));
    // What all prompts begin with is computed once.
    let cached = |line: &Value| line["usage"]["cached_tokens"].as_u64().unwrap();
    let lines = bench.lines("whole.jsonl");
    assert!(cached(&lines[0]) == 0 && lines[1..].iter().all(|line| cached(line) >= 16), "{:?}", lines[1]);
    let page = std::fs::read_to_string(bench.path("page.html")).unwrap();
    assert!(page.contains("is_loud") && !page.contains("<script"), "{page}");
    let report: Value = serde_json::from_slice(&std::fs::read(bench.path("page.json")).unwrap()).unwrap();
    assert_eq!(report["fields"][0]["num"], 150);

    let killed = bench.kill_again_and_again("pieces.jsonl", &[], 40, &mut Rng::new(5));
    assert!(killed > 2, "only {killed} kills");
    assert_eq!(bench.labels("pieces.jsonl"), whole);
    // A finished run says so, and its summary is that of the whole.
    let done = output(&mut bench.label("pieces.jsonl", &[]));
    assert!(stderr(&done).contains("finished already: 150 lines"), "{}", stderr(&done));
    let fields = |said: &str| said.lines().filter(|line| line.starts_with("  ")).map(str::to_owned).collect();
    let (of_pieces, of_whole): (Vec<String>, Vec<String>) = (fields(&stdout(&done)), fields(&said));
    assert_eq!(of_pieces, of_whole);

    // The first records, and then more of them.
    for (limit, num) in [("10", 10), ("30", 30), ("20", 30)] {
        succeeds(&mut bench.label("some.jsonl", &["--limit", limit]));
        assert_eq!(bench.labels("some.jsonl"), whole[..num]);
    }
    // Other terms do not go on; what is there stays until it is to go.
    for (args, named) in [
        (&["--prompt", "{{ text }}"][..], "`prompt`"),
        (&["--temperature", "0.5"], "`temperature`: 0 then, 0.5 now"),
        (&["--keep", "n"], "`keep`"),
        (&["--system", "Be brief."], "`system`"),
    ] {
        let said = fails(&mut bench.label("some.jsonl", args), 1);
        assert!(said.contains(named) && said.contains("--restart"), "{said}");
    }
    assert_eq!(bench.lines("some.jsonl").len(), 30);
    succeeds(&mut bench.label("some.jsonl", &["--keep", "n,text", "--limit", "3", "--restart"]));
    let kept = bench.lines("some.jsonl");
    assert_eq!((kept.len(), &kept[2]["input"]["n"]), (3, &json!(2)));
    // With a seed, drawn labels are the same, and not all alike.
    let drawn = |out: &str, seed: &str| {
        succeeds(&mut bench.label(out, &["--limit", "20", "--temperature", "1", "--seed", seed]));
        bench.labels(out)
    };
    let [a, b, c] = [drawn("a.jsonl", "1"), drawn("b.jsonl", "1"), drawn("c.jsonl", "2")];
    assert!(a == b && a != c);
}

#[test]
fn a_signal_stops_it_and_no_other_process_may_write() {
    let model = TinyModel::default().write();
    let bench = Bench::new(model.path(), 4000, &schema());
    let start = || bench.label("out.jsonl", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut child = start();
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::fs::metadata(bench.path("out.jsonl")).map_or(0, |file| file.len()) < 1000 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    for args in [&[][..], &["--restart"]] {
        let said = fails(&mut bench.label("out.jsonl", args), 1);
        assert!(said.contains("out.jsonl is in use by another process"), "{said}");
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let done = bench.labels("out.jsonl");
    assert!(!done.is_empty() && done.len() < 4000);
    done.iter().for_each(assert_holds);
    // Cut to a whole and a half line, as a kill may leave it.
    let text = std::fs::read_to_string(bench.path("out.jsonl")).unwrap();
    let cut = text.find('\n').unwrap() + 20;
    bench.write("out.jsonl", &text[..cut]);
    succeeds(&mut bench.label("out.jsonl", &["--limit", "5"]));
    assert_eq!(bench.labels("out.jsonl"), done[..5]);
}

#[test]
fn records_that_cannot_be_asked_are_named_or_have_their_lines() {
    let model = TinyModel::default().write();
    let bench = Bench::new(model.path(), 4, &schema());
    let long = "word ".repeat(3000);
    bench.write(
        "bad.jsonl",
        &format!(
            "{{\"text\": \"one\"}}\n\nno json\n{{\"other\": 1}}\n[1]\n{{\"text\": \"{long}\", \"id\": 5}}\n{{\"text\": \"two\"}}\n"
        ),
    );
    bench.write(
        "bad.csv",
        "text,n\n\"a, \"\"quoted\"\" one\n over two lines\",1\nonly one\n\"x\" y,2\nlast,3\n\"open,4\n",
    );
    let said = fails(&mut bench.label("out.jsonl", &["--in", "bad.jsonl"]), 1);
    for named in [
        "3 records of bad.jsonl",
        "line 3: is no JSON",
        "line 4: the template names the field \"text\"",
        "line 5",
    ] {
        assert!(said.contains(named), "{named}: {said}");
    }
    assert!(!bench.path("out.jsonl").exists());
    let said = succeeds(&mut bench.label("out.jsonl", &["--in", "bad.jsonl", "--allow-bad-records"]));
    assert!(said.contains("2 labels, 4 errors") && said.contains("1 context_length_exceeded"), "{said}");
    let lines = bench.labels("out.jsonl");
    let kinds: Vec<&str> = lines.iter().map(|line| line["error"]["type"].as_str().unwrap_or("-")).collect();
    assert_eq!(kinds, ["-", "bad_record", "bad_record", "bad_record", "context_length_exceeded", "-"]);
    assert_eq!((&lines[4]["id"], &lines[4]["label"]), (&json!(5), &Value::Null));
    // Asked again they fail again, and the others are not asked.
    succeeds(&mut bench.label("out.jsonl", &["--in", "bad.jsonl", "--allow-bad-records", "--retry-errors"]));
    assert_eq!(bench.labels("out.jsonl"), lines);
    assert!(!bench.path("out.jsonl.before").exists());

    let said = succeeds(
        &mut bench.label("csv.jsonl", &["--in", "bad.csv", "--allow-bad-records", "--keep", "text"]),
    );
    assert!(said.contains("2 labels, 3 errors"), "{said}");
    let lines = bench.labels("csv.jsonl");
    assert_eq!(lines[0]["input"]["text"], "a, \"quoted\" one\n over two lines");
    assert!(
        lines[1]["error"]["message"].as_str().unwrap().starts_with("line 4: has 1 values"),
        "{}",
        lines[1]
    );
}

#[test]
fn what_is_wrong_is_told_before_a_model_is_opened() {
    let bench = Bench::new(Path::new("./no-model.gguf"), 3, &schema());
    bench.write("empty.jsonl", "\n\n");
    bench.write("list.json", "[1]");
    bench.write("half.json", "{\"type\": ");
    bench.write("same.txt", "Sort it.");
    for (args, code, named) in [
        (&["--in", "missing.jsonl"][..], 1, "missing.jsonl"),
        (&["--in", "empty.jsonl"], 1, "no records in empty.jsonl"),
        (&["--in", "."], 1, "."),
        (&["--schema", "missing.json"], 1, "missing.json"),
        (&["--schema", "half.json"], 1, "half.json is no JSON"),
        (&["--schema", "list.json"], 1, "no JSON object"),
        (
            &["--prompt", "{{ txt }}"],
            1,
            "line 1: the template names the field \"txt\", and there are \"id\", \"text\"",
        ),
        (&["--prompt", "{{ text"], 1, "the prompt"),
        (&["--prompt", "{text}"], 2, "names no field"),
        (&["--prompt", "same.txt"], 1, "names no field"),
        (&["--prompt", "{% if x"], 1, "the prompt"),
        (&["--out", "nowhere/out.jsonl"], 1, "nowhere/out.jsonl does not exist"),
        (&["--out", "in.jsonl"], 1, "in.jsonl is the input as well as the output"),
        (&["--limit", "0"], 2, "--limit"),
        (&["--concurrency", "0"], 2, "--concurrency"),
        (&["--temperature", "101"], 2, "--temperature"),
        (&["--temperature", "-1"], 2, "--temperature"),
        (&["--report", "out.txt"], 2, "out.txt"),
        (&["--report", "o.json", "--out", "o.json"], 2, "o.json is the input or the output"),
        (&["--adapter", "x=/nonexistent"], 1, "/nonexistent"),
        (&["--served-model", "x"], 2, "--served-model"),
        (&[], 1, "no-model.gguf"),
    ] {
        let mut command = wardrobe(&["label", "./no-model.gguf"]);
        for (name, value) in
            [("--in", "in.jsonl"), ("--prompt", PROMPT), ("--out", "out.jsonl"), ("--schema", "schema.json")]
        {
            if !args.contains(&name) {
                command.args([name, value]);
            }
        }
        let said = fails(command.args(args).current_dir(bench.folder.path()), code);
        assert!(said.contains(named), "{args:?}: {said}");
    }
    assert!(!bench.path("out.jsonl").exists());

    let model = TinyModel::default().write();
    let odd = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": true}}, "required": ["a"], "additionalProperties": false});
    let bench = Bench::new(model.path(), 3, &odd);
    let said = fails(&mut bench.label("out.jsonl", &[]), 1);
    assert!(said.contains("`uniqueItems`") && said.contains("$.properties.a"), "{said}");
    bench.write("schema.json", &schema().to_string());
    let said = fails(&mut bench.label("out.jsonl", &["--max-tokens", "2"]), 1);
    assert!(said.contains("max_tokens"), "{said}");
    bench.write("mine.jsonl", "{\"mine\": true}\n");
    let said = fails(&mut bench.label("mine.jsonl", &[]), 1);
    assert!(said.contains("mine.jsonl exists and was not begun"), "{said}");
}

fn serve(model: &Path, port: &str, args: &[&str]) -> Serving {
    let mut command =
        wardrobe(&["serve", model.to_str().unwrap(), "--served-model-name", "tiny", "--port", port]);
    command.args(["--threads", "2", "--kv-memory", "32MiB"]).args(args);
    Serving::start(command)
}

#[test]
fn an_endpoint_gives_the_same_labels_and_may_go_away_meanwhile() {
    let model = TinyModel::default().write();
    let bench = Bench::new(model.path(), 40, &schema());
    succeeds(&mut bench.label("here.jsonl", &[]));
    let here = bench.labels("here.jsonl");
    bench.write("key", "the-key\n");
    let key_file = bench.path("key");
    let server = serve(model.path(), "0", &["--api-key-file", key_file.to_str().unwrap()]);
    let by = |url: &str, out: &str, args: &[&str]| bench.by(&[url], out, args);
    let with_key = ["--api-key-file", "key"];
    let said = succeeds(&mut by(&format!("{}/v1/", server.base), "there.jsonl", &with_key));
    assert!(said.contains("40 labels, 0 errors"), "{said}");
    assert_eq!(bench.labels("there.jsonl"), here);
    // Refusals that concern all records end the run at once, with what the endpoint said.
    let said = fails(&mut by(&server.base, "no.jsonl", &["--served-model", "tiny"]), 1);
    assert!(said.contains("401"), "{said}");
    let said =
        fails(&mut by(&server.base, "no.jsonl", &[&with_key[..], &["--served-model", "other"]].concat()), 1);
    assert!(said.contains("404") && said.contains("other"), "{said}");
    bench.write("schema.json", r#"{"type": "array", "uniqueItems": true}"#);
    let said = fails(&mut by(&server.base, "schema.jsonl", &with_key), 1);
    assert!(said.contains("uniqueItems") && said.contains("at $"), "{said}");
    bench.write("schema.json", &schema().to_string());

    // It ends while it is asked; later another one goes on.
    let (base, port) = (server.base.clone(), server.base.rsplit(':').next().unwrap().to_owned());
    drop(server);
    let gone = ["--served-model", "tiny", "--patience", "1", "--api-key-file", "key"];
    let said = fails(&mut by(&base, "pieces.jsonl", &gone), 1);
    assert!(said.contains("cannot be asked") && said.contains("given up, tries: "), "{said}");
    let mut child = by(&base, "pieces.jsonl", &["--served-model", "tiny"])
        .env("WARDROBE_ENDPOINT_API_KEY", "the-key")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let _server = serve(model.path(), &port, &["--api-key-file", key_file.to_str().unwrap()]);
    assert!(child.wait().unwrap().success());
    assert_eq!(bench.labels("pieces.jsonl"), here);
}

/// An endpoint that answers each request in turn with a status, further headers and a body.
fn scripted(answers: &'static [(&'static str, &'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut answers = answers.iter();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let Some((status, headers, body)) = answers.next() else { return };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n"
            );
            stream.write_all((head + body).as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn what_other_endpoints_answer() {
    let bench = Bench::new(Path::new("none"), 8, &schema());
    const GOOD: &str = r#"{"choices":[{"message":{"content":"{\n \"a\": 1}"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#;
    let url = scripted(&[
        ("429 Too Many Requests", "retry-after-ms: 20\r\n", r#"{"error":{"message":"slow down"}}"#),
        ("503 Service Unavailable", "", "starting"),
        ("200 OK", "", GOOD),
        ("200 OK", "", r#"{"choices":[{"message":{"content":"Sure! {"},"finish_reason":"length"}]}"#),
        (
            "200 OK",
            "",
            r#"{"choices":[{"message":{"content":null,"refusal":"I will not."},"finish_reason":"stop"}]}"#,
        ),
        ("400 Bad Request", "", r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#),
        ("400 Bad Request", "", r#"{"error":{"message":"odd text"}}"#),
        ("500 Internal Server Error", "", "<html>"),
        ("200 OK", "", r#"{"choices":[]}"#),
        ("402 Payment Required", "", r#"{"error":{"message":"no money","code":"insufficient_quota"}}"#),
    ]);
    let args = ["--served-model", "m", "--concurrency", "1"];
    let said = fails(&mut bench.by(&[&url], "out.jsonl", &args), 1);
    assert!(said.contains("no money") && said.contains("goes on from there"), "{said}");
    let lines = bench.labels("out.jsonl");
    let kinds: Vec<&str> = lines.iter().map(|line| line["error"]["type"].as_str().unwrap_or("-")).collect();
    let expected =
        ["-", "invalid_json", "refusal", "context_length_exceeded", "endpoint", "endpoint", "endpoint"];
    assert_eq!(kinds, expected);
    assert_eq!((&lines[0]["label"], &lines[0]["usage"]["prompt_tokens"]), (&json!({"a": 1}), &json!(9)));

    // The errors alone are asked again, and the record that had no line.
    // One answer goes to the question for the endpoint's models.
    let url = scripted(&[("200 OK", "", GOOD); 8]);
    let said = succeeds(&mut bench.by(&[&url], "out.jsonl", &["--served-model", "m", "--retry-errors"]));
    assert!(said.contains("8 labels, 0 errors"), "{said}");
}

#[test]
fn a_real_model_labels_the_same_however_often_it_is_killed() {
    let Some(model) = smollm2("a_real_model_labels_the_same_however_often_it_is_killed") else { return };
    let bench = Bench::new(Path::new(&model), 24, &schema());
    let tuned = format!("tuned={}", adapter("biography-json").display());
    succeeds(&mut bench.label("whole.jsonl", &["--adapter", &tuned]));
    let whole = bench.labels("whole.jsonl");
    whole.iter().for_each(assert_holds);
    let args = ["--adapter", &tuned, "--concurrency", "4"];
    bench.kill_again_and_again("pieces.jsonl", &args, 8, &mut Rng::new(7));
    assert_eq!(bench.labels("pieces.jsonl"), whole);
    let said = fails(&mut bench.label("pieces.jsonl", &[]), 1);
    assert!(said.contains("another `adapter`"), "{said}");
}
