//! Files of a deployment: copied and written so that they last, listed with their digests, and, where an earlier
//! deployment is replaced, told apart from what others have put there.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wardrobe_formats::staging::{sync_folder, write_json};

use super::error::{DeployError, Result};

/// The list of what a deployment has written, in its folder.
pub(super) const LIST_FILE: &str = "deployment.json";
/// The file of API keys.
pub(super) const KEY_FILE: &str = "api-key";
const VERSION: u64 = 1;
const MAX_LIST_BYTES: u64 = 4 << 20;
/// Tries for a free name beside one that is taken.
const MAX_NAMES: usize = 1000;

/// Modes of what is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    /// For everybody to read.
    Plain,
    /// The same, and to run.
    Program,
    /// For nobody but the owner.
    Secret,
}

impl Mode {
    #[cfg(unix)]
    fn bits(self) -> u32 {
        match self {
            Mode::Plain => 0o644,
            Mode::Program => 0o755,
            Mode::Secret => 0o600,
        }
    }
}

/// The folder in the making.
pub(super) struct Files<'a> {
    root: &'a Path,
    /// Relative paths with `/`, and SHA-256.
    digests: BTreeMap<String, String>,
}

impl<'a> Files<'a> {
    pub fn new(root: &'a Path) -> Self {
        Self { root, digests: BTreeMap::new() }
    }

    /// A file that is new, with its mode from the beginning, so that no one reads it in between.
    fn create(&self, name: &str, mode: Mode) -> Result<(PathBuf, File)> {
        let path = self.root.join(name);
        if let Some(parent) = path.parent() {
            make_folders(self.root, parent)?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode.bits());
        let file = options.open(&path).map_err(DeployError::io(&path))?;
        // Whatever the process's mask leaves of it: others have to read, and run, what is theirs.
        #[cfg(unix)]
        {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode.bits());
            file.set_permissions(mode).map_err(DeployError::io(&path))?;
        }
        #[cfg(not(unix))]
        let _ = mode;
        Ok((path, file))
    }

    /// Writes a text.
    pub fn write(&mut self, name: &str, text: &str, mode: Mode) -> Result<()> {
        let (path, mut file) = self.create(name, mode)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(DeployError::io(&path))?;
        if !matches!(mode, Mode::Secret) {
            self.digests.insert(name.to_owned(), hex(&Sha256::digest(text)));
        }
        Ok(())
    }

    /// Copies a file.
    pub fn copy(&mut self, source: &Path, name: &str, mode: Mode) -> Result<()> {
        let mut from = File::open(source).map_err(DeployError::io(source))?;
        let (path, mut to) = self.create(name, mode)?;
        io::copy(&mut from, &mut to).and_then(|_| to.sync_all()).map_err(DeployError::io(&path))?;
        self.digests.insert(name.to_owned(), digest(&path)?);
        Ok(())
    }

    /// Makes the folders of the files last, and writes the list.
    pub fn finish(self, about: Value) -> Result<()> {
        let list = json!({ "version": VERSION, "deployment": about, "files": self.digests });
        write_json(&self.root.join(LIST_FILE), &list)?;
        let folders = self.digests.keys().flat_map(|name| Path::new(name).ancestors().skip(1));
        let folders: std::collections::BTreeSet<&Path> = folders.collect();
        folders.into_iter().try_for_each(|folder| sync_folder(&self.root.join(folder)))?;
        Ok(())
    }
}

/// Makes the folders down to `folder`, for everybody to read.
fn make_folders(root: &Path, folder: &Path) -> Result<()> {
    if folder.is_dir() || !folder.starts_with(root) {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folders(root, parent)?;
    }
    fs::create_dir(folder).map_err(DeployError::io(folder))?;
    super::open_to_others(folder)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file.
fn digest(path: &Path) -> Result<String> {
    let mut sum = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut Sum(&mut sum)))
        .map_err(DeployError::io(path))?;
    Ok(hex(&sum.finalize()))
}

struct Sum<'a>(&'a mut Sha256);

impl io::Write for Sum<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the list of an earlier deployment in `dir` names. A list that cannot be read names nothing: then nothing counts as
/// written by us.
pub(super) fn listed(dir: &Path) -> BTreeMap<String, String> {
    let read = || -> Option<BTreeMap<String, String>> {
        let path = dir.join(LIST_FILE);
        let meta = path.symlink_metadata().ok()?;
        if !meta.is_file() || meta.len() > MAX_LIST_BYTES {
            return None;
        }
        let list: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        if list.get("version")?.as_u64()? != VERSION {
            return None;
        }
        serde_json::from_value(list.get("files")?.clone()).ok()
    };
    read().unwrap_or_default()
}

/// Brings from the folder `old` to the folder `new` what an earlier deployment has not written, or not as it is now: what
/// has a name that is taken gets another. Then removes `old`. Gives the names that were brought.
pub(super) fn carry_over(old: &Path, new: &Path) -> Result<Vec<PathBuf>> {
    let mut carried = Vec::new();
    let listed = listed(old);
    carry_folder(&Carrying { old, new, listed: &listed }, Path::new(""), &mut carried)?;
    sync_folder(new)?;
    Ok(carried)
}

struct Carrying<'a> {
    old: &'a Path,
    new: &'a Path,
    listed: &'a BTreeMap<String, String>,
}

impl Carrying<'_> {
    /// Whether there are listed files below a folder.
    fn is_ours(&self, folder: &Path) -> bool {
        self.listed.keys().any(|name| Path::new(name).starts_with(folder))
    }

    /// Whether a file is as a deployment has written it, or as this one has.
    fn is_written(&self, name: &Path) -> Result<bool> {
        let old = self.old.join(name);
        if !old.symlink_metadata().map_err(DeployError::io(&old))?.is_file() {
            return Ok(false);
        }
        if name == Path::new(LIST_FILE) && !self.listed.is_empty() {
            return Ok(true);
        }
        let listed = self.listed.iter().find(|(listed, _)| Path::new(listed.as_str()) == name);
        let new = self.new.join(name);
        let is_known = listed.is_some() || new.is_file();
        if !is_known {
            return Ok(false);
        }
        let digest_old = digest(&old)?;
        Ok(listed.is_some_and(|(_, digest)| *digest == digest_old)
            || (new.is_file() && digest(&new)? == digest_old))
    }
}

fn carry_folder(what: &Carrying<'_>, folder: &Path, carried: &mut Vec<PathBuf>) -> Result<()> {
    let at = what.old.join(folder);
    let entries = fs::read_dir(&at).map_err(DeployError::io(&at))?;
    for entry in entries {
        let entry = entry.map_err(DeployError::io(&at))?;
        let (name, path) = (folder.join(entry.file_name()), entry.path());
        let kind = entry.file_type().map_err(DeployError::io(&path))?;
        if kind.is_dir() && what.is_ours(&name) {
            carry_folder(what, &name, carried)?;
        } else if what.is_written(&name)? {
            fs::remove_file(&path).map_err(DeployError::io(&path))?;
        } else {
            carried.push(bring(what, &name)?);
        }
    }
    fs::remove_dir(&at).map_err(DeployError::io(&at))
}

/// Moves one entry, under its name or one beside it.
fn bring(what: &Carrying<'_>, name: &Path) -> Result<PathBuf> {
    let old = what.old.join(name);
    if let Some(parent) = what.new.join(name).parent() {
        fs::create_dir_all(parent).map_err(DeployError::io(parent))?;
    }
    for attempt in 0..MAX_NAMES {
        let mut candidate = name.as_os_str().to_owned();
        if attempt > 0 {
            candidate.push(format!(".kept-{attempt}"));
        }
        let new = what.new.join(&candidate);
        if new.symlink_metadata().is_ok() {
            continue;
        }
        fs::rename(&old, &new).map_err(DeployError::io(&old))?;
        return Ok(candidate.into());
    }
    Err(DeployError::io(&old)(io::ErrorKind::AlreadyExists.into()))
}

/// A key: 32 random bytes of the operating system's, in hexadecimal digits.
#[cfg(unix)]
pub(super) fn random_key() -> Result<String> {
    let mut bytes = [0u8; 32];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let got = rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty());
        filled += got.map_err(|error| DeployError::io(Path::new("random bytes"))(error.into()))?;
    }
    Ok(hex(&bytes))
}

/// A key: 32 random bytes of the operating system's, in hexadecimal digits.
#[cfg(not(unix))]
pub(super) fn random_key() -> Result<String> {
    Err(DeployError::Setting("no API key can be made on this system; name a file of keys".to_owned()))
}
