//! The `wardrobe` command as a person or a script runs it.
//!
//! Those tests that need a model run with the GGUF file that `WARDROBE_SMOLLM2` names, and say loudly when they do not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use command::*;
use serde_json::{Value, json};

#[test]
fn help_names_every_command_and_each_has_its_own() {
    let help = succeeds(&mut wardrobe(&["--help"]));
    for command in [
        "quickstart",
        "serve",
        "run",
        "chat",
        "pull",
        "list",
        "rm",
        "adapter",
        "eval",
        "merge",
        "data",
        "train",
        "jobs",
        "bench",
        "doctor",
        "completions",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        assert!(succeeds(&mut wardrobe(&[command, "--help"])).contains("Usage: wardrobe"), "{command}");
    }
    assert!(help.contains("Examples:"));
    assert_eq!(succeeds(&mut wardrobe(&["--version"])), format!("wardrobe {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_command_line_is_checked() {
    for args in [
        &["serve", "m", "--port", "99999"][..],
        &["serve", "m", "--kv-memory", "lots"],
        &["serve", "m", "--device", "tpu"],
        &["serve", "m", "--adapter", "no-path"],
        &["serve", "m", "--adapter", "=path"],
        &["serve", "m", "--no-such-flag"],
        &["serve"],
        &["serve", "m", "--log", "=;="],
        &["run", "m"],
        &["no-such-command"],
    ] {
        fails(&mut wardrobe(args), 2);
    }
    let said = fails(&mut wardrobe(&["serve", "m", "--adapter", "no-path"]), 2);
    assert!(said.contains("NAME=PATH"), "{said}");
    let said = fails(wardrobe(&["serve", "m"]).env("WARDROBE_PORT", "many"), 2);
    assert!(said.contains("many"), "{said}");
}

#[test]
fn options_win_over_environment_over_file_over_defaults() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("settings.toml");
    let text =
        "model = \"from-file\"\nport = 1\nqueue = 2\nkv_memory = \"64MiB\"\n[adapters]\nmine = \"a\"\n";
    std::fs::write(&file, text).expect("a file");
    let file = file.to_str().expect("UTF-8");
    let shown = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = wardrobe(&[&["serve", "--show-settings", "--config", file], args].concat());
        let lines = succeeds(command.envs(env.iter().copied()));
        move |key: &str| -> String {
            let line = lines.lines().find(|line| line.starts_with(&format!("{key} = ")));
            line.unwrap_or_else(|| panic!("{key} in {lines}"))
                .split_whitespace()
                .skip(2)
                .collect::<Vec<_>>()
                .join(" ")
        }
    };
    let all = shown(&["--port", "3"], &[("WARDROBE_PORT", "4"), ("WARDROBE_QUEUE", "5")]);
    assert_eq!(all("port"), "3 # option or environment");
    assert_eq!(all("queue"), "5 # option or environment");
    assert_eq!(all("kv_memory"), "\"64MiB\" # file");
    assert_eq!(all("max_num_seqs"), "64 # default");
    assert_eq!(all("model"), "\"from-file\" # file");
    assert!(
        all("adapter").contains(&format!("mine={}", folder.path().join("a").display())),
        "{}",
        all("adapter")
    );
    let all = shown(&["given"], &[("WARDROBE_MODEL", "from-env"), ("WARDROBE_ADAPTER", "x=1,y=2")]);
    assert_eq!(all("model"), "\"given\" # option or environment");
    assert_eq!(all("adapter"), "[\"x=1\",\"y=2\"] # option or environment");
}

#[test]
fn a_settings_file_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("settings.toml");
    let serve = || wardrobe(&["serve", "m", "--config", file.to_str().expect("UTF-8")]);
    std::fs::write(&file, "prot = 8000").expect("a file");
    let said = fails(&mut serve(), 2);
    assert!(said.contains("prot") && said.contains("settings.toml"), "{said}");
    std::fs::write(&file, "port = [").expect("a file");
    fails(&mut serve(), 2);
    std::fs::remove_file(&file).expect("it is there");
    let said = fails(&mut serve(), 1);
    assert!(said.contains("settings.toml"), "{said}");
}

#[test]
fn serve_finds_faults_before_it_needs_the_model() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let said = fails(&mut wardrobe(&["serve", "./no-model.gguf", "--port", &port]), 1);
    assert!(said.contains("cannot listen on 127.0.0.1") && said.contains("hint:"), "{said}");

    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    let keys = keys.to_str().expect("UTF-8");
    let said = fails(&mut wardrobe(&["serve", "./m.gguf", "--port", "0", "--api-key-file", keys]), 1);
    assert!(said.contains("keys"), "{said}");
    std::fs::write(keys, "# nothing\n").expect("a file");
    let said = fails(&mut wardrobe(&["serve", "./m.gguf", "--port", "0", "--api-key-file", keys]), 1);
    assert!(said.contains("holds no key"), "{said}");

    let said = fails(&mut wardrobe(&["serve", "./m.gguf", "--port", "0", "--adapter", "a=/nonexistent"]), 1);
    assert!(said.contains("/nonexistent"), "{said}");
    let twice = adapter("last-words").display().to_string();
    let (first, second) = (format!("a={twice}"), format!("a={twice}"));
    let said = fails(
        &mut wardrobe(&["serve", "./m.gguf", "--port", "0", "--adapter", &first, "--adapter", &second]),
        2,
    );
    assert!(said.contains("two adapters"), "{said}");
    let said = fails(&mut wardrobe(&["serve", "./no-model.gguf", "--port", "0"]), 1);
    assert!(said.contains("no-model.gguf"), "{said}");
}

#[test]
fn an_empty_cache_is_listed() {
    let cache = tempfile::tempdir().expect("a folder");
    let list = |args: &[&str]| succeeds(wardrobe(args).env("WARDROBE_CACHE", cache.path()));
    let all: Value = serde_json::from_str(&list(&["list", "--json"])).expect("JSON");
    assert_eq!(all["cached"], json!([]));
    assert_eq!(all["catalogue"][0]["name"], "smollm2-135m");
    assert_eq!(all["catalogue"][0]["cached"], false);
    assert!(list(&["list"]).contains("smollm2-135m"));
    let said = fails(wardrobe(&["rm", "smollm2-135m"]).env("WARDROBE_CACHE", cache.path()), 1);
    assert!(said.contains("not in the cache"), "{said}");
}

#[test]
fn the_shipped_adapters_are_inspected() {
    for name in ADAPTERS {
        let path = adapter(name);
        let path = path.to_str().expect("UTF-8");
        let seen: Value =
            serde_json::from_str(&succeeds(&mut wardrobe(&["adapter", "inspect", path, "--json"])))
                .expect("JSON");
        assert_eq!((&seen["rank"], &seen["alpha"], &seen["scale"]), (&json!(8), &json!(16.0), &json!(2.0)));
        assert_eq!((&seen["num_modules"], &seen["num_tensors"]), (&json!(120), &json!(240)));
        assert_eq!(seen["dtypes"], json!(["240 F16"]));
        assert_eq!(seen["notes"], json!([]));
        assert_eq!(seen["modules"].as_array().map(Vec::len), Some(4));
        for kind in seen["modules"].as_array().expect("a list") {
            assert_eq!(kind["layers"], 30);
            assert!(kind["change_norm"]["min"].as_f64() > Some(0.0), "{kind}");
        }
        let text = succeeds(&mut wardrobe(&["adapter", "inspect", path]));
        assert!(text.contains("q_proj") && text.contains("240 F16"), "{text}");
    }
    let said = fails(&mut wardrobe(&["adapter", "inspect", "/nonexistent"]), 1);
    assert!(said.contains("/nonexistent"), "{said}");
}

#[test]
fn doctor_never_shows_a_token() {
    let cache = tempfile::tempdir().expect("a folder");
    let mut command = wardrobe(&["doctor"]);
    let output = output(command.env("WARDROBE_CACHE", cache.path()).env("HF_TOKEN", "hf_secretsecret"));
    let text = format!("{}{}", stdout(&output), stderr(&output));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("a token in HF_TOKEN") && !text.contains("secretsecret"), "{text}");
    // Without a GPU it says why; with one, which.
    assert!(text.contains("; the CPU computes") || text.contains("compute capability"), "{text}");
    assert!(text.contains("no model is in the cache"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_terminal_gets_colours() {
    let listed = |no_color: &str| {
        let mut command = wardrobe(&["list"]);
        command.env("NO_COLOR", no_color);
        on_terminal(command)
    };
    let text = listed("");
    assert!(text.contains("\x1b[1m") && text.contains("smollm2-135m"), "{text}");
    let text = listed("1");
    assert!(!text.contains('\x1b') && text.contains("smollm2-135m"), "{text}");
}

#[test]
fn completions_know_the_commands() {
    assert!(succeeds(&mut wardrobe(&["completions", "bash"])).contains("quickstart"));
}

#[test]
fn run_answers() {
    let Some(model) = smollm2("run_answers") else { return };
    let ask = ["run", &model, "Name the capital of France in one sentence.", "--max-tokens", "24"];
    let mut plain = wardrobe(&ask);
    let first = output(&mut plain);
    assert!(first.status.success(), "{}", stderr(&first));
    assert!(stdout(&first).contains("Paris"), "{}", stdout(&first));
    assert!(stderr(&first).contains("tok/s"), "{}", stderr(&first));
    let path = adapter("last-words").display().to_string();
    let prompt = "Return last 3 words from this text: \n\nthe quick brown fox jumps over the lazy dog";
    let adapted =
        succeeds(&mut wardrobe(&["run", &model, prompt, "--adapter", &path, "--max-tokens", "24", "-q"]));
    // It returns the end of the text, if not always three words of it; the base model says more.
    assert!(!adapted.trim().is_empty() && prompt.ends_with(adapted.trim()), "{adapted}");
    let fits = succeeds(&mut wardrobe(&["adapter", "inspect", &path, "--model", &model]));
    assert!(fits.contains("120 of"), "{fits}");
}

#[test]
fn chat_switches_adapters() {
    let Some(model) = smollm2("chat_switches_adapters") else { return };
    let path = adapter("last-words").display().to_string();
    let mut command = wardrobe(&["chat", &model, "--max-tokens", "16", "--temperature", "0"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let script = format!(
        "/adapter words\n/load words {path}\n/adapter words\n/adapters\n\
         Return last 2 words from this text: the quick brown fox jumps over the lazy dog\n/stats\n/adapter none\n/quit\n"
    );
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), script.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let (said, faults) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{faults}");
    assert!(faults.contains("no adapter words is loaded"), "{faults}");
    for expected in ["words answers", "lazy dog", "tok/s", "the base model answers"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[cfg(unix)]
#[test]
fn serve_answers_with_each_adapter_and_drains() {
    let Some(model) = smollm2("serve_answers_with_each_adapter_and_drains") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "alpha\n").expect("a file");
    let mut command =
        wardrobe(&["serve", &model, "--port", "0", "--served-model-name", "base", "--kv-memory", "64MiB"]);
    for name in ADAPTERS {
        command.arg("--adapter").arg(format!("{name}={}", adapter(name).display()));
    }
    command.arg("--api-key-file").arg(&keys).args(["--pin", "last-words", "--drain-delay-seconds", "3"]);
    command.args(["--drain-seconds", "300"]);
    let mut serving = Serving::start(command);
    assert_eq!(serving.status("/health", ""), 200);
    let prompt = "Return last 3 words from this text: \n\nthe quick brown fox jumps over the lazy dog";
    assert_eq!(serving.chat("base", prompt, "wrong").0, 401);
    let text = |model: &str| {
        let (status, answer) = serving.chat(model, prompt, "alpha");
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
    };
    let (base, json, words) = (text("base"), text("biography-json"), text("last-words"));
    assert!(!words.trim().is_empty() && prompt.ends_with(words.trim()), "{words}");
    assert!(base != json && base != words && json != words, "{base:?} {json:?}");
    assert_eq!(serving.chat("nobody", prompt, "alpha").0, 404);

    let agent = Serving::agent();
    let post = |path: &str, body: Value| {
        let request = agent.post(format!("{}{path}", serving.base)).header("authorization", "Bearer alpha");
        request.send_json(body).expect("an answer")
    };
    let mut list = agent.get(format!("{}/v1/lora_adapters", serving.base));
    list = list.header("authorization", "Bearer alpha");
    let cards: Value = list.call().expect("an answer").body_mut().read_json().expect("JSON");
    let pins: Vec<_> = cards["data"].as_array().expect("a list").iter().map(|card| &card["pinned"]).collect();
    assert_eq!(pins, [&json!(false), &json!(true)], "{cards}");
    assert_eq!(post("/v1/unload_lora_adapter", json!({"lora_name": "last-words"})).status(), 403);

    // A stream that runs when the signal comes goes on to its end; meanwhile /ready tells balancers to go elsewhere.
    let body =
        json!({"model": "base", "prompt": "Once", "max_tokens": 300, "ignore_eos": true, "stream": true});
    let mut lines = BufReader::new(post("/v1/completions", body).into_body().into_reader()).lines();
    assert!(lines.next().expect("a line").expect("text").starts_with("data: "));
    let pid = serving.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    let deadline = Instant::now() + Duration::from_millis(2900);
    while serving.status("/ready", "alpha") != 503 {
        assert!(Instant::now() < deadline, "/ready does not say that it stops");
    }
    assert_eq!(post("/v1/completions", json!({"model": "base", "prompt": "x"})).status(), 503);
    let rest: Vec<String> = lines.map(|line| line.expect("text")).collect();
    let last: Vec<_> = rest.iter().rev().filter(|line| !line.is_empty()).take(3).collect();
    assert!(rest.iter().any(|line| line.contains("\"finish_reason\":\"length\"")), "{last:?}");
    assert!(rest.contains(&"data: [DONE]".to_owned()), "{last:?}");
    assert_eq!(serving.ended(), Some(0));
}

#[test]
fn quickstart_shows_it_all() {
    let Some(model) = smollm2("quickstart_shows_it_all") else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let wardrobe = |args: &[&str]| {
        let mut command = wardrobe(args);
        command.env("WARDROBE_CACHE", cache.path());
        command
    };
    succeeds(&mut wardrobe(&["pull", "smollm2-135m", "--from", &model]));
    let all: Value = serde_json::from_str(&succeeds(&mut wardrobe(&["list", "--json"]))).expect("JSON");
    assert_eq!(all["catalogue"][0]["cached"], true);
    let shown = succeeds(wardrobe(&["quickstart", "--no-train"]).env("WARDROBE_THREADS", "1"));
    assert!(shown.contains("1 thread"), "{shown}");
    for expected in
        ["hot-loaded biography-json", "hot-loaded last-words", "12 requests at once", "Nothing failed."]
    {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(!shown.contains('\x1b'), "colours without a terminal: {shown}");
    assert!(succeeds(&mut wardrobe(&["rm", "smollm2-135m"])).contains("removed"));
}
