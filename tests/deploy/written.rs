//! What is written, from what, and what is kept of what was there.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wardrobe_batch::simulation::SimulatedFineTuner;
use wardrobe_batch::{FilePurpose, JobApi, JobRunner, JobSpec, NewFile, RunnerConfig};

use super::*;

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
