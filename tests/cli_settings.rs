//! What the `wardrobe` command makes of settings: faults are told by the flag and before a model is needed, limits that do
//! not hold are said, and variables and file reach every command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "support/command.rs"]
mod command;
#[allow(dead_code, reason = "the tiny model uses a part of it")]
#[path = "support/random.rs"]
mod random;
#[path = "support/tiny.rs"]
mod tiny;

use std::io::Write as _;
use std::process::Stdio;

use command::*;
use serde_json::Value;
use tiny::TinyModel;

#[test]
fn an_adapter_may_not_take_a_name_of_the_base_model() {
    let path = adapter("last-words").display().to_string();
    for args in [
        &["./words.gguf", "--adapter", &format!("words={path}")][..],
        &["smollm2-135m", "--adapter", &format!("smollm2-135m={path}")],
        &["./x.gguf", "--served-model-name", "a,b", "--adapter", &format!("b={path}")],
    ] {
        let said = fails(&mut wardrobe(&[&["serve", "--port", "0"], args].concat()), 2);
        assert!(said.contains("name of the base model") && said.contains("hint:"), "{args:?}: {said}");
    }
}

#[test]
fn settings_that_cannot_hold_are_told_by_their_flag() {
    for (flag, value) in [
        ("--max-num-seqs", "0"),
        ("--max-num-seqs", "100000"),
        ("--queue", "0"),
        ("--max-batch-tokens", "3"),
        ("--max-context", "0"),
        ("--max-rank", "0"),
        ("--max-slots", "99999999999"),
        ("--max-adapters-device-memory", "0"),
        ("--threads", "0"),
        ("--kv-memory", "900TiB"),
        ("--max-body", "0"),
        ("--request-timeout-seconds", "0"),
        ("--cors-origin", "a\u{7f}b"),
        ("--adapter-root", "/nonexistent"),
        ("--adapter-root", "/etc/passwd"),
        ("--pin", "nobody"),
    ] {
        let said = fails(&mut wardrobe(&["serve", "./no-model.gguf", "--port", "0", flag, value]), 2);
        assert!(said.contains(flag) && !said.contains('_'), "{flag} {value}: {said}");
    }
    for command in [&["run", "./no-model.gguf", "hello"][..], &["chat", "./no-model.gguf"], &["quickstart"]] {
        let said = fails(&mut wardrobe(&[command, &["--kv-memory", "900TiB"]].concat()), 2);
        assert!(said.contains("--kv-memory is") && said.contains("are free"), "{command:?}: {said}");
    }
    let said = fails(&mut wardrobe(&["bench", "./no-model.gguf", "--prompt-tokens", "0"]), 2);
    assert!(said.contains("--prompt-tokens"), "{said}");
}

#[test]
fn what_only_the_model_tells_is_told_by_the_flag_too() {
    let model = TinyModel::default().write();
    let model = model.path().to_str().unwrap();
    for command in [&["serve", model, "--port", "0"][..], &["run", model, "hello"]] {
        let said = fails(&mut wardrobe(&[command, &["--kv-memory", "100"]].concat()), 2);
        assert!(said.contains("--kv-memory is 100 bytes"), "{said}");
    }
}

#[test]
fn limits_that_do_not_hold_are_said() {
    let model = TinyModel::default().write();
    for (kv_memory, note) in [
        ("1MiB", "--max-context 99999999 becomes 512, the model's"),
        ("64KiB", "--max-context 99999999 becomes 256, all that --kv-memory has room for"),
    ] {
        let mut command = wardrobe(&["serve", model.path().to_str().unwrap(), "--port", "0"]);
        command.args(["--max-context", "99999999", "--kv-memory", kv_memory]);
        let serving = Serving::start(command);
        assert_eq!(serving.status("/health", ""), 200);
        serving.logs(note);
    }
}

#[test]
fn variables_that_are_empty_are_not_set() {
    let mut command = wardrobe(&["serve", "m", "--show-settings"]);
    for name in ["PORT", "HOST", "KV_MEMORY", "DEVICE", "ADAPTER", "CONFIG", "LOG", "ALLOW_NOOP"] {
        command.env(format!("WARDROBE_{name}"), "");
    }
    let shown = succeeds(&mut command);
    assert!(shown.contains("port = 8000") && shown.contains("host = \"127.0.0.1\""), "{shown}");
    assert!(!shown.contains("environment") || shown.matches("environment").count() == 1, "{shown}");
    let listed = succeeds(wardrobe(&["list"]).env("WARDROBE_LIST_JSON", ""));
    assert!(serde_json::from_str::<Value>(&listed).is_err(), "{listed}");
}

#[test]
fn variables_and_file_reach_every_command() {
    let model = TinyModel::default().write();
    let model = model.path().to_str().unwrap();
    let answered = |command: &mut std::process::Command| -> String {
        let output = output(command);
        assert!(output.status.success(), "{}", stderr(&output));
        let said = stderr(&output);
        let tokens = said.split("answer ").nth(1).and_then(|rest| rest.split(' ').next());
        tokens.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    let run = || wardrobe(&["run", model, "hello", "--raw"]);
    assert_eq!(answered(run().env("WARDROBE_RUN_MAX_TOKENS", "3")), "3");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wardrobe.toml");
    std::fs::write(&file, "port = 1\nthreads = 1\n[run]\nmax_tokens = 2\n").unwrap();
    assert_eq!(answered(run().env("WARDROBE_CONFIG", &file)), "2");
    assert_eq!(answered(run().env("WARDROBE_CONFIG", &file).env("WARDROBE_RUN_MAX_TOKENS", "4")), "4");
    assert_eq!(answered(run().env("WARDROBE_CONFIG", &file).args(["--max-tokens", "5"])), "5");
    let shown = succeeds(wardrobe(&["serve", "m", "--show-settings"]).env("WARDROBE_CONFIG", &file));
    assert!(shown.contains("port = 1 "), "{shown}");
    std::fs::write(&file, "[run]\nmax_token = 2\n").unwrap();
    let said = fails(run().env("WARDROBE_CONFIG", &file), 2);
    assert!(said.contains("max_token") && said.contains("wardrobe.toml"), "{said}");
    let said = fails(run().env("WARDROBE_CONFIG", folder.path().join("missing.toml")), 1);
    assert!(said.contains("missing.toml"), "{said}");
    succeeds(wardrobe(&["list"]).env("WARDROBE_CONFIG", folder.path().join("missing.toml")));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = fails(wardrobe(&["quickstart"]).env("WARDROBE_QUICKSTART_PORT", &port), 1);
    assert!(said.contains(&port), "{said}");
    let listed = succeeds(wardrobe(&["list"]).env("WARDROBE_LIST_JSON", "1"));
    assert!(serde_json::from_str::<Value>(&listed).is_ok(), "{listed}");
    // How to compute is one thing for all commands that open a model.
    let path = adapter("last-words").display().to_string();
    for command in [
        &["quickstart"][..],
        &["doctor"],
        &["adapter", "inspect", &path, "--model", model],
        &["bench", model],
    ] {
        let said = fails(wardrobe(command).env("WARDROBE_DEVICE", "tpu"), 2);
        assert!(said.contains("tpu"), "{command:?}: {said}");
    }
}

#[test]
fn a_negative_temperature_is_refused_by_its_name() {
    let model = TinyModel::default().write();
    let said = fails(
        &mut wardrobe(&[
            "run",
            model.path().to_str().unwrap(),
            "hello",
            "--max-tokens",
            "4",
            "--temperature",
            "-1",
        ]),
        1,
    );
    assert!(said.contains("`temperature` is -1"), "{said}");
}

#[test]
fn a_conversation_outlives_a_line_that_is_not_text() {
    let model = TinyModel::default().write();
    let mut command = wardrobe(&["chat", model.path().to_str().unwrap(), "--max-tokens", "4"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"caf\xe9\n/adapter nobody\n/load x /nonexistent\n/reset\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let (said, faults) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{faults}");
    assert!(faults.contains("not UTF-8") && faults.contains("no adapter nobody"), "{faults}");
    assert!(faults.contains("/nonexistent") && said.contains("forgotten"), "{faults}{said}");
}

#[test]
fn what_run_is_asked_has_to_be_text() {
    let model = TinyModel::default().write();
    let mut command = wardrobe(&["run", model.path().to_str().unwrap(), "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"caf\xe9\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("not UTF-8"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn a_terminal_is_shown_how_far_a_model_is_opened() {
    let model = TinyModel::default().write();
    let command = wardrobe(&["run", model.path().to_str().unwrap(), "hello", "--max-tokens", "1"]);
    let text = on_terminal(command);
    assert!(text.contains("opening"), "{text:?}");
}
