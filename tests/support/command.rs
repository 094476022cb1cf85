//! The `wardrobe` command as tests run it: with no settings from outside, and no network.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub fn wardrobe(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wardrobe"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WARDROBE_") {
            command.env_remove(name);
        }
    }
    command
        .args(args)
        .env("WARDROBE_CACHE", "/nonexistent/wardrobe-cache")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

pub fn output(command: &mut Command) -> Output {
    command.output().expect("the binary starts")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(&output));
    stdout(&output)
}

/// Runs a command that must fail with this code, and gives what it says.
#[track_caller]
pub fn fails(command: &mut Command, code: i32) -> String {
    let output = output(command);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}{}", stdout(&output));
    assert!(said.starts_with("error:"), "{said}");
    said
}

pub fn adapter(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters").join(name)
}

pub const ADAPTERS: [&str; 2] = ["biography-json", "last-words"];

/// What a command writes to a terminal, as both of its outputs.
#[cfg(unix)]
pub fn on_terminal(mut command: Command) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::os::unix::ffi::OsStrExt;

    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("its other end");
    let name = ptsname(&master, Vec::new()).expect("a name");
    let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let end = std::fs::File::options().read(true).write(true).open(path).expect("its other end");
    command.env("TERM", "xterm").stdout(end.try_clone().expect("a copy")).stderr(end);
    let mut child = command.spawn().expect("it starts");
    // Holds copies of the other end, without which reading would not end.
    drop(command);
    let mut written = Vec::new();
    // Linux reports the closed other end as an error, after everything was read.
    let _ = std::fs::File::from(master).read_to_end(&mut written);
    let text = String::from_utf8(written).expect("UTF-8");
    assert!(child.wait().expect("it ends").success(), "{text}");
    text
}

/// The model's file, or a loud word that the test is left out.
pub fn smollm2(test: &str) -> Option<String> {
    let path = std::env::var("WARDROBE_SMOLLM2").ok().filter(|path| !path.is_empty());
    if path.is_none() {
        eprintln!("SKIPPED {test}: set WARDROBE_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf to run it");
    }
    path
}

/// A running `serve`, killed when dropped.
pub struct Serving {
    pub child: Child,
    pub base: String,
    /// What it has written to its standard error.
    log: Arc<Mutex<String>>,
}

impl Serving {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut seen = Vec::new();
        let base = loop {
            let Some(Ok(line)) = lines.next() else {
                let mut said = String::new();
                let _ = child.stderr.take().expect("a pipe").read_to_string(&mut said);
                panic!("it ended before it served: {seen:?} {said}");
            };
            if let Some(address) = line.strip_prefix("listening on ") {
                break address.to_owned();
            }
            seen.push(line);
        };
        // What it prints later has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let log = Arc::new(Mutex::new(String::new()));
        let written = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                *written.lock().expect("a lock") += &format!("{line}\n");
            }
        });
        Self { child, base, log }
    }

    pub fn chat(&self, model: &str, prompt: &str, key: &str) -> (u16, Value) {
        let body = json!({"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 48, "temperature": 0});
        let request = Self::agent().post(format!("{}/v1/chat/completions", self.base));
        let mut response =
            request.header("authorization", format!("Bearer {key}")).send_json(body).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_json().expect("JSON"))
    }

    pub fn agent() -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into()
    }

    /// Waits until it has written this to its standard error, which another thread reads.
    pub fn logs(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let log = self.log.lock().expect("a lock").clone();
            if log.contains(text) {
                return;
            }
            assert!(Instant::now() < deadline, "{text} is not in its log: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The status of a route that needs no body.
    pub fn status(&self, path: &str, key: &str) -> u16 {
        let request = Self::agent().get(format!("{}{path}", self.base));
        request.header("authorization", format!("Bearer {key}")).call().expect("an answer").status().as_u16()
    }

    /// Waits until it has ended by itself; gives its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
