//! `wardrobe deploy`: what it writes is run as it is, and asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.
#![cfg(unix)]

#[path = "support/command.rs"]
mod command;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/lora.rs"]
mod lora;
#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/random.rs"]
mod random;
#[path = "support/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use command::*;
use lora::RandomLora;
use tempfile::TempDir;
use tiny::TinyModel;
use wardrobe::{CpuOptions, Model, ModelOptions};
use wardrobe_batch::simulation::SimulatedFineTuner;
use wardrobe_batch::{FilePurpose, JobApi, JobRunner, JobSpec, NewFile, RunnerConfig};

const SCHEMA: &str = r#"{"type":"object","properties":{"kind":{"enum":["a","b"]},"sure":{"type":"boolean"}},"required":["kind","sure"],"additionalProperties":false}"#;

/// A tiny model and, in a folder beside it, adapters of it.
struct Wardrobe {
    model: TempDir,
    folder: TempDir,
}

impl Wardrobe {
    fn new() -> Self {
        let model = TinyModel { max_position_embeddings: 2048, ..TinyModel::default() }.write();
        let wardrobe = Self { model, folder: tempfile::tempdir().unwrap() };
        let options =
            ModelOptions { cpu: CpuOptions { threads: Some(1), ..Default::default() }, ..Default::default() };
        let opened = Model::open(wardrobe.model.path(), &options).unwrap();
        for (seed, name) in [(1, "plain"), (2, "with schema")] {
            let adapter = RandomLora { seed, ..RandomLora::default() };
            adapter.write(opened.decoder().config(), &wardrobe.path(name));
        }
        std::fs::write(wardrobe.path("with schema/schema.json"), SCHEMA).unwrap();
        wardrobe
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `deploy` of these adapters, over the model.
    fn deploy(&self, args: &[&str]) -> Command {
        let model = self.model.path().to_str().unwrap();
        wardrobe(&[&["deploy", "--model", model, "--device", "cpu"], args].concat())
    }
}

/// A port that is free now.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The endpoint of a folder, run as its README says, without settings from outside.
fn serve(dir: &Path) -> Serving {
    let mut command = Command::new(dir.join("bin/wardrobe"));
    command.args(["serve", "--config"]).arg(dir.join("wardrobe.toml"));
    for (name, value) in wardrobe(&[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Serving::start(command)
}

/// Whether it is one by itself, and no script that calls others, as some tools for versions put first in the path.
fn is_program(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| !bytes.starts_with(b"#!"))
}

fn smoke_test(dir: &Path) -> Command {
    let mut command = Command::new(dir.join("smoke-test.sh"));
    command.env_remove("WARDROBE_API_KEY").env("WAIT_SECONDS", "60");
    command
}

/// Every path below a folder with its content, or where it links to.
fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            let name = path.strip_prefix(folder).unwrap().to_owned();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() {
                found.insert(name, format!("-> {}", std::fs::read_link(&path).unwrap().display()));
            } else if !name.starts_with("bin") {
                found.insert(name, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned());
            }
        }
    }
    found
}

#[test]
fn it_serves_what_it_was_given_and_its_test_says_so() {
    let wardrobe_of = Wardrobe::new();
    let (dir, port) = (wardrobe_of.path("end point"), port());
    let (plain, held) = (wardrobe_of.text("plain"), format!("it's held={}", wardrobe_of.text("with schema")));
    let to = dir.display().to_string();
    let said = succeeds(&mut wardrobe_of.deploy(&[&plain, &held, "--to", &to, "--port", &port.to_string()]));
    assert!(said.contains("plain (rank 4") && said.contains("fits the base model"), "{said}");
    assert!(said.contains("it's held (rank 4") && said.contains("held to its schema"), "{said}");
    let keys = std::fs::read_to_string(dir.join("api-key")).unwrap();
    let key = keys.trim_end();
    assert!(key.len() == 64 && key.bytes().all(|digit| digit.is_ascii_hexdigit()), "{key}");
    assert!(!said.contains(key), "{said}");
    let mode = |name: &str| dir.join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("api-key"), mode("smoke-test.sh"), mode("wardrobe.toml")), (0o600, 0o755, 0o644));
    for (name, text) in tree(&dir) {
        assert!(name == Path::new("api-key") || !text.contains(key), "{} has the key", name.display());
    }

    let mut serving = serve(&dir);
    assert_eq!(serving.base, format!("http://127.0.0.1:{port}"));
    let said = succeeds(&mut smoke_test(&dir));
    for line in [
        "ok: a wrong key is refused",
        "ok: plain is listed",
        "ok: plain answers",
        "ok: it's held answers",
        "ok: it's held is held to its schema",
        "all is as it should be",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // The same without jq, and without python3 too: a folder with nothing but what the script needs.
    let tools = wardrobe_of.path("tools");
    std::fs::create_dir(&tools).unwrap();
    for (tool, skipped) in [("", true), ("python3", false), ("jq", false)] {
        let needed =
            ["sh", "curl", "sed", "head", "mktemp", "rm", "date", "sleep", "cat", "grep", "dirname", tool];
        for name in needed.into_iter().filter(|name| !name.is_empty()) {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
                .map(|folder| folder.join(name))
                .find(|path| is_program(path));
            match found {
                Some(path) => drop(symlink(path, tools.join(name))),
                None => eprintln!("SKIPPED the endpoint's test with {name}: it is not installed"),
            }
        }
        if tool.is_empty() || tools.join(tool).exists() {
            let output = output(smoke_test(&dir).env("PATH", &tools));
            assert!(output.status.success(), "{tool}: {}", stderr(&output));
            assert_eq!(stderr(&output).contains("SKIPPED"), skipped, "{tool}: {}", stderr(&output));
        }
        let _ = std::fs::remove_file(tools.join(tool));
    }

    let refused = output(smoke_test(&dir).env("WARDROBE_API_KEY", "another"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("refuses the key"), "{}", stderr(&refused));
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    let gone = output(smoke_test(&dir).env("WAIT_SECONDS", "1"));
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("is not ready after 1 s"), "{}", stderr(&gone));
    let wrong = output(smoke_test(&dir).env("WAIT_SECONDS", "soon"));
    assert!(stderr(&wrong).contains("whole numbers"), "{}", stderr(&wrong));
}

#[test]
fn its_test_notices_another_endpoint() {
    let wardrobe_of = Wardrobe::new();
    let dir = wardrobe_of.path("endpoint");
    let to = dir.display().to_string();
    let (plain, held) = (wardrobe_of.text("plain"), format!("held={}", wardrobe_of.text("with schema")));
    succeeds(&mut wardrobe_of.deploy(&[&plain, &held, "--to", &to]));
    let key = dir.join("api-key").display().to_string();
    let model = wardrobe_of.model.path().to_str().unwrap();
    let name = format!("{}", wardrobe_of.model.path().file_name().unwrap().display());
    let with_plain = format!("plain={plain}");
    // An adapter that should be held to a schema, and is not, since it is another one.
    let unheld = format!("held={plain}");
    for (args, said) in [
        (vec!["--adapter", &with_plain, "--adapter", &unheld], "a wrong key gets status 200"),
        (vec!["--adapter", &with_plain, "--api-key-file", &key], "held is not in the list"),
        (
            vec!["--adapter", &with_plain, "--adapter", &unheld, "--api-key-file", &key],
            "the answer is not held to its schema",
        ),
    ] {
        let mut command = wardrobe(&[&["serve", model, "--port", "0"], args.as_slice()].concat());
        command.args(["--served-model-name", &name]);
        let serving = Serving::start(command);
        let output = output(smoke_test(&dir).arg(format!("{}/", serving.base)));
        assert_eq!(output.status.code(), Some(1), "{said}: {}", stdout(&output));
        assert!(stderr(&output).contains(said), "{said}: {}", stderr(&output));
    }
}

#[test]
fn writing_again_deletes_nothing_of_others() {
    let wardrobe_of = Wardrobe::new();
    let dir = wardrobe_of.path("endpoint");
    let to = dir.display().to_string();
    let plain = wardrobe_of.text("plain");
    std::fs::create_dir(&dir).unwrap();
    succeeds(&mut wardrobe_of.deploy(&[&plain, "--to", &to, "--with-jobs"]));
    let before = tree(&dir);
    let said = fails(&mut wardrobe_of.deploy(&[&plain, "--to", &to]), 1);
    assert!(said.contains("is not empty") && said.contains("--force"), "{said}");
    assert_eq!(tree(&dir), before);

    // Others' files, an own folder of the endpoint, a changed file, and links.
    std::fs::create_dir_all(dir.join("jobs/files")).unwrap();
    std::fs::write(dir.join("jobs/files/f"), "an upload").unwrap();
    std::fs::write(dir.join("adapters/note.txt"), "a note").unwrap();
    std::fs::write(dir.join("README.md"), "mine now").unwrap();
    symlink("/nonexistent", dir.join("adapters/link")).unwrap();
    symlink(wardrobe_of.folder.path(), dir.join("elsewhere")).unwrap();
    std::fs::create_dir(dir.join("empty")).unwrap();
    let again = wardrobe_of
        .deploy(&["--config", &format!("{to}/wardrobe.toml"), "--to", &to, "--force", "--port", "9001"])
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", stderr(&again));
    for kept in
        ["kept jobs", "kept adapters/note.txt", "kept README.md.kept-1", "kept elsewhere", "kept empty"]
    {
        assert!(stderr(&again).contains(kept), "{kept}: {}", stderr(&again));
    }
    let mut after = tree(&dir);
    let brought: Vec<_> = [
        ("jobs/files/f", "an upload"),
        ("adapters/note.txt", "a note"),
        ("README.md.kept-1", "mine now"),
        ("adapters/link", "-> /nonexistent"),
    ]
    .into_iter()
    .map(|(name, text)| (PathBuf::from(name), text.to_owned()))
    .collect();
    for (name, text) in &brought {
        assert_eq!(after.remove(name).as_ref(), Some(text), "{}", name.display());
    }
    assert_eq!(
        after.remove(Path::new("elsewhere")),
        Some(format!("-> {}", wardrobe_of.folder.path().display()))
    );
    assert!(dir.join("empty").is_dir());
    assert!(plain_is_there(&wardrobe_of), "what a link leads to is not touched");
    // The key and the job folder are as they were, and the rest is what the second call asked for.
    let names = |tree: &BTreeMap<PathBuf, String>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    assert_eq!(after.get(Path::new("api-key")), before.get(Path::new("api-key")));
    let settings = after.get(Path::new("wardrobe.toml")).unwrap();
    assert!(settings.contains("port = 9001") && settings.contains("job_folder = \"jobs\""), "{settings}");
    // Beside it nothing is left.
    let names: Vec<_> =
        std::fs::read_dir(wardrobe_of.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with('.')), "{names:?}");
}

fn plain_is_there(wardrobe_of: &Wardrobe) -> bool {
    wardrobe_of.path("plain/adapter_config.json").is_file()
}

#[test]
fn what_cannot_be_served_is_told_and_nothing_is_written() {
    let wardrobe_of = Wardrobe::new();
    let before = tree(wardrobe_of.folder.path());
    let (to, plain) = (wardrobe_of.text("out/endpoint"), wardrobe_of.text("plain"));
    let inside = wardrobe_of.text("plain/endpoint");
    let held = format!("plain={}", wardrobe_of.text("with schema"));
    let base = wardrobe_of.model.path().file_name().unwrap().to_str().unwrap().to_owned();
    let as_base = format!("{base}={plain}");
    let quoted = wardrobe_of.text("it's");
    let missing = wardrobe_of.text("missing");
    let texts = [&to, &plain, &inside, &held, &as_base, &quoted, &missing];
    let [to, plain, inside, held, as_base, quoted, missing] = texts.map(String::as_str);
    for (args, code, said) in [
        (vec!["--to", to], 2, "no adapter is given"),
        (vec![missing, "--to", to], 1, "there is no adapter at"),
        (vec!["ft-1", "--to", to, "--job-folder", plain], 1, "jobs.sqlite"),
        (vec![wardrobe_of.folder.path().to_str().unwrap(), "--to", to], 1, "no adapter_config.json"),
        (vec![plain, held, "--to", to], 2, "would both be called plain"),
        (vec![as_base, "--to", to], 2, "has a name of the base model"),
        (vec![plain, "--to", inside], 1, "lies in the adapter"),
        (vec![plain, "--to", plain, "--force"], 1, "is or lies in the adapter"),
        (vec![plain, "--to", "/"], 1, "names no folder"),
        (vec![plain, "--to", "/proc/endpoint"], 1, "/proc"),
        (vec![plain, "--to", quoted], 1, "quotation mark"),
        (vec![plain, "--to", "/etc/passwd"], 1, "is no folder"),
        (vec![plain, "--to", to, "--port", "0"], 2, "port 0"),
        (vec![plain, "--to", to, "--config", "/nonexistent.toml"], 1, "/nonexistent.toml"),
    ] {
        let output = output(&mut wardrobe_of.deploy(&args));
        let (found, text) = (output.status.code(), stderr(&output));
        assert_eq!(found, Some(code), "{args:?}: {text}");
        assert!(text.starts_with("error:") && text.contains(said), "{args:?}: {text}");
        assert_eq!(tree(wardrobe_of.folder.path()), before, "{args:?}");
    }
    assert!(!wardrobe_of.path("out/endpoint").exists());
}

#[test]
fn the_base_is_the_one_that_the_adapters_name() {
    let wardrobe_of = Wardrobe::new();
    let to = wardrobe_of.text("endpoint");
    let rename = |adapter: &str, base: serde_json::Value| {
        let path = wardrobe_of.path(adapter).join("adapter_config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["base_model_name_or_path"] = base;
        std::fs::write(&path, config.to_string()).unwrap();
    };
    let (plain, held) = (wardrobe_of.text("plain"), wardrobe_of.text("with schema"));
    let deploy = |args: &[&str]| wardrobe(&[&["deploy", "--to", &to, "--skip-model-check"], args].concat());
    rename("plain", serde_json::Value::Null);
    let said = fails(&mut deploy(&[&plain]), 2);
    assert!(said.contains("the adapter plain names no base model") && said.contains("--model"), "{said}");
    rename("plain", "made up".into());
    let said = fails(&mut deploy(&[&plain]), 2);
    assert!(said.contains("\"made up\", which is nothing that can be pulled"), "{said}");
    rename("plain", "someone/base".into());
    rename("with schema", "someone/other".into());
    let said = fails(&mut deploy(&[&plain, &held]), 2);
    assert!(said.contains("plain is for someone/base, and with schema for someone/other"), "{said}");

    // As our trainer writes the catalogue's model down, and as its repository is called.
    rename("plain", "SmolLM2-135M-Instruct.Q4_1".into());
    rename("with schema", "HuggingFaceTB/SmolLM2-135M-Instruct".into());
    let said = succeeds(&mut deploy(&[&plain, &held]));
    assert!(said.contains("not held against the base model"), "{said}");
    let settings = std::fs::read_to_string(wardrobe_of.path("endpoint/wardrobe.toml")).unwrap();
    assert!(
        settings.contains("model = \"smollm2-135m\"\nserved_model_name = [\"smollm2-135m\"]"),
        "{settings}"
    );
    let image = std::fs::read_to_string(wardrobe_of.path("endpoint/Containerfile")).unwrap();
    assert!(image.contains("python3-pip") && !image.contains("WARDROBE_MODEL"), "{image}");
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let wardrobe_of = Wardrobe::new();
    let other = TinyModel { hidden_size: 96, ..TinyModel::default() }.write();
    let (to, plain) = (wardrobe_of.text("endpoint"), wardrobe_of.text("plain"));
    let model = other.path().to_str().unwrap();
    let said = fails(&mut wardrobe(&["deploy", &plain, "--model", model, "--to", &to]), 1);
    assert!(said.contains("the adapter plain is refused") && said.contains("base model?"), "{said}");
    // A record that vouches for other tensors is found without a model, too.
    let digest = "0".repeat(64);
    let record = format!(
        r#"{{"version":1,"parity":{{"base_digest":"{digest}","tensors_digest":"{digest}","device":"x","canaries":[]}}}}"#
    );
    std::fs::write(wardrobe_of.path("plain/wardrobe.json"), record).unwrap();
    let said = fails(&mut wardrobe_of.deploy(&[&plain, "--to", &to, "--skip-model-check"]), 1);
    assert!(said.contains("other tensors than its parity record"), "{said}");
    std::fs::remove_file(wardrobe_of.path("plain/wardrobe.json")).unwrap();
    std::fs::write(wardrobe_of.path("plain/schema.json"), "[1]").unwrap();
    let said = fails(&mut wardrobe_of.deploy(&[&plain, "--to", &to, "--skip-model-check"]), 1);
    assert!(said.contains("schema.json"), "{said}");
    assert!(!wardrobe_of.path("endpoint").exists());
}

#[test]
fn a_job_is_deployed_once_it_has_finished() {
    let wardrobe_of = Wardrobe::new();
    let jobs = wardrobe_of.path("jobs");
    let trainer = Arc::new(SimulatedFineTuner::new("base", Duration::ZERO));
    let runner = JobRunner::open(RunnerConfig::new(&jobs), trainer).unwrap();
    let (file_name, purpose) = ("a.jsonl".to_owned(), FilePurpose::FineTune);
    let mut upload = runner.begin_upload(NewFile { id: None, file_name, purpose, sha256: None }).unwrap();
    upload.write(b"{\"text\": \"a\"}\n").unwrap();
    let spec = JobSpec {
        api: JobApi::FineTunes,
        model: "base".to_owned(),
        training_file: upload.finish().unwrap().id,
        validation_file: None,
        suffix: Some("mine".to_owned()),
        seed: None,
        hyperparameters: Default::default(),
        metadata: None,
    };
    let id = runner.create_job(spec).unwrap().id;
    let (to, folder) = (wardrobe_of.text("endpoint"), jobs.display().to_string());
    let args = |id: &'static str| vec![id, "--job-folder", &folder, "--to", &to];
    let said = fails(&mut wardrobe_of.deploy(&args("ft-0")), 1);
    assert!(said.contains("there is no fine-tuning job \"ft-0\""), "{said}");
    let id: &'static str = id.leak();
    let said = fails(&mut wardrobe_of.deploy(&args(id)), 1);
    assert!(said.contains("is queued"), "{said}");
    runner.start().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !runner.job(id).unwrap().status.has_ended() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    // The simulation trains nothing: an adapter of the model takes its place.
    let found = wardrobe_batch::FinishedJob::find(&jobs, id).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(wardrobe_of.path("plain").join(name), found.adapter_dir.join(name)).unwrap();
    }
    // While the server has the folder open.
    succeeds(&mut wardrobe_of.deploy(&args(id)));
    let settings = std::fs::read_to_string(wardrobe_of.path("endpoint/wardrobe.toml")).unwrap();
    assert!(
        settings.contains(&format!("\"{}\" = \"adapters/ft-base-wardrobe-mine", found.job.name)),
        "{settings}"
    );
}

#[test]
fn a_runs_folder_stands_for_its_adapter() {
    let wardrobe_of = Wardrobe::new();
    let (to, run) = (wardrobe_of.text("endpoint"), wardrobe_of.path("plain.run"));
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("run.json"), "{}").unwrap();
    succeeds(&mut wardrobe_of.deploy(&[run.to_str().unwrap(), "--to", &to]));
    let settings = std::fs::read_to_string(wardrobe_of.path("endpoint/wardrobe.toml")).unwrap();
    assert!(settings.contains("\"plain\" = \"adapters/plain\""), "{settings}");
    std::fs::rename(&run, wardrobe_of.path("unfinished.run")).unwrap();
    let said =
        fails(&mut wardrobe_of.deploy(&[&wardrobe_of.text("unfinished.run"), "--to", &to, "--force"]), 1);
    assert!(said.contains("has not written its adapter yet"), "{said}");
}

/// Runs a tool, or says loudly that it is not there.
fn tool(name: &str, args: &[&str]) -> Option<std::process::Output> {
    match Command::new(name).args(args).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED what {name} says of the written files: {error}");
            None
        }
    }
}

#[test]
fn systemd_and_shellcheck_are_content() {
    let wardrobe_of = Wardrobe::new();
    // Whatever a folder may be called.
    for name in ["endpoint", "50% off, its $HOME (x); #1"] {
        let dir = wardrobe_of.path(name);
        let plain = wardrobe_of.text("plain");
        let args = [plain.as_str(), "--to", dir.to_str().unwrap(), "--with-jobs", "--port", "80"];
        succeeds(&mut wardrobe_of.deploy(&args));
        let unit = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let unit = unit.into_iter().find(|path| path.extension().is_some_and(|e| e == "service")).unwrap();
        // A name that systemd-analyze takes as a path of a file, whatever the folder is called.
        let place = wardrobe_of.folder.path().join(unit.file_name().unwrap());
        std::fs::copy(&unit, &place).unwrap();
        if let Some(verified) = tool("systemd-analyze", &["verify", place.to_str().unwrap()]) {
            let said = stderr(&verified);
            let own: Vec<&str> = said.lines().filter(|line| line.contains("wardrobe")).collect();
            assert!(verified.status.success() && own.is_empty(), "{name}: {said}");
        }
        let text = std::fs::read_to_string(&unit).unwrap();
        for line in ["DynamicUser=yes", "NoNewPrivileges=yes", "PrivateDevices=yes", "TimeoutStopSec=105"] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        let script = dir.join("smoke-test.sh");
        if let Some(checked) = tool("shellcheck", &[script.to_str().unwrap()]) {
            assert!(checked.status.success(), "{}", stdout(&checked));
        }
        let parsed = Command::new("sh").arg("-n").arg(&script).output().unwrap();
        assert!(parsed.status.success(), "{}", stderr(&parsed));
    }
}

#[test]
fn the_image_has_what_it_copies_and_its_variables_win() {
    let wardrobe_of = Wardrobe::new();
    let dir = wardrobe_of.path("endpoint");
    let plain = wardrobe_of.text("plain");
    let args = [plain.as_str(), "--to", dir.to_str().unwrap(), "--with-jobs"];
    succeeds(&mut wardrobe_of.deploy(&args));
    let image = std::fs::read_to_string(dir.join("Containerfile")).unwrap();
    let ignored = std::fs::read_to_string(dir.join(".dockerignore")).unwrap();
    let lines: Vec<String> = image.replace("\\\n", " ").lines().map(str::to_owned).collect();
    for line in &lines {
        if let Some(copied) = line.strip_prefix("COPY ") {
            let source = copied.split_whitespace().next().unwrap();
            assert!(dir.join(source).exists(), "{source}");
            let top = source.split('/').next().unwrap();
            assert!(
                ignored.lines().any(|kept| kept == format!("!{top}")),
                "{source} is not sent to the builder"
            );
        }
    }
    assert!(ignored.starts_with("*\n") && !ignored.contains("api-key"), "{ignored}");
    assert!(lines.iter().any(|line| line == "USER 10001"), "{image}");
    assert!(
        lines.iter().any(|line| line.starts_with("HEALTHCHECK") && line.contains(":8000/health")),
        "{image}"
    );
    let variables = lines.iter().find_map(|line| line.strip_prefix("ENV ")).unwrap();
    let config = dir.join("wardrobe.toml").display().to_string();
    let mut shown = wardrobe(&["serve", "--config", &config, "--show-settings"]);
    for variable in variables.split_whitespace() {
        let (name, value) = variable.split_once('=').unwrap();
        shown.env(name, value.trim_matches('"'));
    }
    let shown = succeeds(&mut shown);
    let mounted = format!("/models/{}", wardrobe_of.model.path().file_name().unwrap().to_str().unwrap());
    for (key, value) in [
        ("host", "0.0.0.0"),
        ("api_key_file", "/run/secrets/wardrobe-api-key"),
        ("job_folder", "/var/lib/wardrobe/jobs"),
        ("model", &mounted),
    ] {
        let row = shown.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        assert!(row.contains(value) && row.contains("environment"), "{row}");
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let wardrobe_of = Wardrobe::new();
    let small = wardrobe_of.path("small");
    std::fs::create_dir(&small).unwrap();
    // Room for what is asked for beforehand, but not for it all: the program's size is in the way, so the disk is full either way.
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(&small).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk_leaves_nothing: mounting a tmpfs needs root");
        return;
    }
    let to = small.join("endpoint").display().to_string();
    let said = stderr(&output(&mut wardrobe_of.deploy(&[&wardrobe_of.text("plain"), "--to", &to])));
    let left = std::fs::read_dir(&small).unwrap().count();
    let _ = Command::new("umount").arg(&small).output();
    assert!(said.starts_with("error:") && said.contains("bytes would be written"), "{said}");
    assert_eq!(left, 0);
}

#[test]
fn a_key_file_that_others_can_read_is_noted() {
    let wardrobe_of = Wardrobe::new();
    let keys = wardrobe_of.path("keys");
    std::fs::write(&keys, "secret\n").unwrap();
    for (mode, noted) in [(0o644, true), (0o640, true), (0o600, false), (0o400, false)] {
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(mode)).unwrap();
        let args = ["serve", "./missing.gguf", "--port", "0", "--api-key-file", keys.to_str().unwrap()];
        let said = stderr(&output(&mut wardrobe(&args)));
        assert_eq!(said.contains("can be read by others"), noted, "{mode:o}: {said}");
        assert!(!said.contains("secret"), "{said}");
    }
    // systemd lends credentials with a mode that an access list explains.
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o440)).unwrap();
    let args = ["serve", "./missing.gguf", "--port", "0", "--api-key-file", keys.to_str().unwrap()];
    let said = stderr(&output(wardrobe(&args).env("CREDENTIALS_DIRECTORY", wardrobe_of.folder.path())));
    assert!(!said.contains("can be read by others"), "{said}");
}

#[test]
fn the_packaged_model_is_served_with_its_adapters() {
    let Some(model) = smollm2("the_packaged_model_is_served_with_its_adapters") else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("biographies");
    let bio = folder.path().join("bio");
    std::fs::create_dir(&bio).unwrap();
    for entry in std::fs::read_dir(adapter("biography-json")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), bio.join(entry.file_name())).unwrap();
    }
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/biographies/schema.json");
    std::fs::copy(schema, bio.join("schema.json")).unwrap();
    let words = format!("words={}", adapter("last-words").display());
    let port = port().to_string();
    let to = dir.display().to_string();
    let args = ["deploy", bio.to_str().unwrap(), &words, "--model", &model, "--to", &to, "--port", &port];
    succeeds(&mut wardrobe(&args));
    let mut serving = serve(&dir);
    let said = succeeds(&mut smoke_test(&dir));
    assert!(said.contains("ok: bio is held to its schema") && said.contains("ok: words answers"), "{said}");
    // Stopped as a supervisor does.
    let pid = serving.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(serving.ended(), Some(0));
}
