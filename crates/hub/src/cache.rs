//! The cache: complete models in one folder, under the names they were asked for by.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::disk;
use crate::error::HubError;
use crate::manifest::{FileRecord, MANIFEST_FILE, Manifest, ModelKind};
use crate::names::{folder_name, hex, is_safe_relative_path};
use crate::progress::Progress;

/// How often a waiting process looks again.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The model cache.
///
/// Layout under the root:
///
/// ```text
/// CACHEDIR.TAG                      tells backup tools to leave the folder out
/// models/ENTRY/                     a complete model: its files, and wardrobe-entry.json (origin, commit, sizes, SHA-256)
/// refs/REF.json                     a name that was asked for ("owner/name@main") -> ENTRY
/// partial/ORIGIN/ENTRY/             a pull at work, or cut off: FILE (complete), FILE.part (the next pull goes on there)
/// locks/ORIGIN.lock                 held while partial/ORIGIN is in use; the lock files stay, empty
/// ```
///
/// ENTRY, REF and ORIGIN are made of the name's letters and a part of its SHA-256. A commit or package version is part of
/// ENTRY, so an entry never changes: pulling a branch anew makes another entry and then moves the ref, and a process that
/// still reads the older one goes on undisturbed.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A complete model in the cache.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// Its folder's name under `models/`; unique.
    pub id: String,
    /// The names it was asked for by; any of them gets it again without a network. Empty if a newer one took them over.
    pub names: Vec<String>,
    /// What it holds.
    pub kind: ModelKind,
    /// Where it came from: `owner/name` or `package==version`.
    pub origin: String,
    /// The branch, tag or commit asked for, for a hub repository.
    pub revision: Option<String>,
    /// The commit it stood for, for a hub repository.
    pub commit: Option<String>,
    /// What a loader opens: the `.gguf` file, or the folder.
    pub path: PathBuf,
    /// All its files.
    pub files: Vec<FileRecord>,
    /// The sum of their sizes.
    pub size_bytes: u64,
    /// When it was fetched.
    pub created: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct RefRecord {
    name: String,
    entry: String,
}

/// The lock of one origin, held until dropped (or until the process ends, however it ends).
pub(crate) struct OriginLock {
    _file: File,
}

impl Cache {
    /// The cache in `root`. Nothing is created before something is pulled.
    pub fn open(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The cache of this user: `$WARDROBE_CACHE`, else `$XDG_CACHE_HOME/wardrobe`, else `~/.cache/wardrobe`.
    ///
    /// # Errors
    /// [`HubError::NoCacheFolder`] if none of the variables and no home folder is set.
    pub fn open_default() -> Result<Self, HubError> {
        Self::from_variables(&|name| std::env::var_os(name).map(PathBuf::from), std::env::home_dir())
    }

    fn from_variables(
        var: &dyn Fn(&str) -> Option<PathBuf>,
        home: Option<PathBuf>,
    ) -> Result<Self, HubError> {
        let set = |name: &str| var(name).filter(|value| !value.as_os_str().is_empty());
        if let Some(root) = set("WARDROBE_CACHE") {
            return Ok(Self::open(root));
        }
        // The XDG specification: a relative path there is to be ignored.
        if let Some(base) = set("XDG_CACHE_HOME").filter(|path| path.is_absolute()) {
            return Ok(Self::open(base.join("wardrobe")));
        }
        let home = home.filter(|path| !path.as_os_str().is_empty()).ok_or(HubError::NoCacheFolder)?;
        Ok(Self::open(home.join(".cache").join("wardrobe")))
    }

    /// The cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The entry that was pulled under `name` (as [`ModelRef`](crate::ModelRef) displays itself), or that has this id.
    /// `None` if it is not there or is damaged.
    pub fn lookup(&self, name: &str) -> Option<Entry> {
        let path = self.ref_path(name);
        let record = read_ref(&path).filter(|record| record.name == name);
        let id = record.map_or_else(|| name.to_owned(), |record| record.entry);
        self.entry(&id)
    }

    /// All complete entries, oldest first.
    ///
    /// # Errors
    /// [`HubError::Io`] if the cache's folder cannot be read. A cache that is not there yet is empty.
    pub fn list(&self) -> Result<Vec<Entry>, HubError> {
        let mut entries: Vec<Entry> =
            names_in(&self.models())?.iter().filter_map(|id| self.entry(id)).collect();
        entries.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(entries)
    }

    /// Removes the entry of that name or id, with all its names. Returns the bytes it held.
    ///
    /// # Errors
    /// [`HubError::NotCached`] naming what is there; [`HubError::Busy`] if a pull of the same origin runs;
    /// [`HubError::Io`].
    pub fn remove(&self, name: &str) -> Result<u64, HubError> {
        let Some(entry) = self.lookup(name) else {
            let known = self.list()?.into_iter().flat_map(|entry| entry.names).collect();
            return Err(HubError::NotCached { name: name.to_owned(), known });
        };
        let _lock = self.lock(&entry.origin, Duration::ZERO, &())?;
        self.remove_entry(&entry.id)?;
        Ok(entry.size_bytes)
    }

    /// Reads every file of the entry and compares its SHA-256 with the recorded one.
    ///
    /// # Errors
    /// [`HubError::Damaged`] naming the first file that differs; [`HubError::Io`].
    pub fn verify(&self, entry: &Entry) -> Result<(), HubError> {
        let folder = self.models().join(&entry.id);
        for file in &entry.files {
            let path = folder.join(&file.path);
            let (hasher, bytes) = disk::hash_file(&path, u64::MAX)?;
            let actual = hex(&hasher.finalize());
            if bytes != file.bytes || actual != file.sha256 {
                let reason = format!("SHA-256 {} expected, {actual} there", file.sha256);
                return Err(HubError::Damaged { path, reason });
            }
        }
        Ok(())
    }

    /// Removes what no pull needs: downloads that were cut off, damaged entries, and names without an entry. Leaves alone
    /// what a running pull works on. Returns the bytes that were freed.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn prune(&self) -> Result<u64, HubError> {
        let mut freed = 0u64;
        for origin in names_in(&self.partials())? {
            let path = self.partials().join(&origin);
            let _lock = match self.lock_folder(&origin, Duration::ZERO, &()) {
                Ok(lock) => lock,
                Err(HubError::Busy { .. }) => continue,
                Err(error) => return Err(error),
            };
            freed = freed.saturating_add(disk::tree_bytes(&path));
            disk::remove_all(&path)?;
        }
        for id in names_in(&self.models())? {
            if self.entry(&id).is_none() {
                freed = freed.saturating_add(disk::tree_bytes(&self.models().join(&id)));
                self.remove_entry(&id)?;
            }
        }
        for name in names_in(&self.refs())? {
            let path = self.refs().join(name);
            if read_ref(&path).is_none_or(|record| self.entry(&record.entry).is_none()) {
                disk::remove_all(&path)?;
            }
        }
        Ok(freed)
    }

    /// Takes the lock of an origin, waiting up to `wait` for another process.
    pub(crate) fn lock(
        &self,
        origin: &str,
        wait: Duration,
        progress: &dyn Progress,
    ) -> Result<OriginLock, HubError> {
        self.lock_folder(&folder_name(origin), wait, progress)
    }

    fn lock_folder(
        &self,
        name: &str,
        wait: Duration,
        progress: &dyn Progress,
    ) -> Result<OriginLock, HubError> {
        let folder = self.root.join("locks");
        disk::create_dir(&folder)?;
        let path = folder.join(format!("{name}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| disk::io_error("open the lock", &path, None, e))?;
        let start = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(OriginLock { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    // Some network file systems have no locks. The rename into place still makes entries whole.
                    tracing::warn!(path = %path.display(), "the file system has no locks; do not pull one model twice at once");
                    return Ok(OriginLock { _file: file });
                }
                Err(TryLockError::Error(error)) => return Err(disk::io_error("lock", &path, None, error)),
            }
            if progress.cancelled() {
                return Err(HubError::Cancelled);
            }
            if start.elapsed() >= wait {
                return Err(HubError::Busy { path, waited_s: start.elapsed().as_secs() });
            }
            if !told {
                told = true;
                progress.message("waiting for another process that works on the same model");
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    /// The folder where the files of entry `id` are gathered. Call with the origin's lock held.
    pub(crate) fn staging(&self, id: &str, origin: &str) -> Result<PathBuf, HubError> {
        disk::create_dir(&self.models())?;
        disk::create_dir(&self.refs())?;
        let tag = self.root.join("CACHEDIR.TAG");
        if !tag.exists() {
            // The signature is fixed by the Cache Directory Tagging Specification.
            disk::write_atomically(&tag, b"Signature: 8a477f597d28d172789f06886806bc55\n")?;
        }
        let folder = self.staging_path(id, origin);
        disk::create_dir(&folder)?;
        Ok(folder)
    }

    /// Turns a staging folder, whose files are complete and flushed, into the entry `id`. Call with the lock held.
    pub(crate) fn publish(&self, id: &str, manifest: &Manifest) -> Result<Entry, HubError> {
        let staging = self.staging_path(id, &manifest.origin);
        self.clear_staging(&staging, manifest)?;
        manifest.write(&staging)?;
        sync_tree(&staging)?;
        let target = self.models().join(id);
        if target.exists() {
            // Damaged, or it would have been taken; move it away so that the rename stays one step.
            self.discard(id)?;
        }
        disk::rename(&staging, &target)?;
        // Checks what lies there now, with the reason if it is not what was written.
        Manifest::read(&target)?;
        self.entry(id)
            .ok_or_else(|| HubError::Damaged { path: target, reason: "it cannot be read".to_owned() })
    }

    /// Makes `name` mean entry `id`.
    pub(crate) fn set_ref(&self, name: &str, id: &str) -> Result<(), HubError> {
        let path = self.ref_path(name);
        if read_ref(&path).is_some_and(|record| record.name == name && record.entry == id) {
            return Ok(());
        }
        disk::create_dir(&self.refs())?;
        let record = RefRecord { name: name.to_owned(), entry: id.to_owned() };
        let text = serde_json::to_vec(&record)
            .map_err(|e| disk::io_error("write", &path, None, io::Error::other(e)))?;
        disk::write_atomically(&path, &text)
    }

    /// The complete entry with that id.
    pub(crate) fn entry(&self, id: &str) -> Option<Entry> {
        if id.contains('/') || !is_safe_relative_path(id) {
            return None;
        }
        let folder = self.models().join(id);
        let manifest = match Manifest::read(&folder) {
            Ok(manifest) => manifest,
            Err(HubError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(entry = id, error = %error.full_message(), "a cache entry is passed over");
                return None;
            }
        };
        let size_bytes = manifest.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.bytes));
        Some(Entry {
            id: id.to_owned(),
            names: self.names_of(id),
            kind: manifest.kind,
            created: manifest.created(),
            path: manifest.main_file.as_ref().map_or_else(|| folder.clone(), |file| folder.join(file)),
            origin: manifest.origin,
            revision: manifest.revision,
            commit: manifest.commit,
            files: manifest.files,
            size_bytes,
        })
    }

    /// Names first, then the folder in one step, then its content: at no moment does a name lead to half an entry.
    fn remove_entry(&self, id: &str) -> Result<(), HubError> {
        for name in self.names_of(id) {
            disk::remove_all(&self.ref_path(&name))?;
        }
        self.discard(id)
    }

    /// Moves an entry's folder away in one step, then deletes it.
    fn discard(&self, id: &str) -> Result<(), HubError> {
        let folder = self.partials().join(REMOVED);
        disk::create_dir(&folder)?;
        let old = folder.join(format!("{id}-{}", disk::unique_suffix()));
        disk::remove_all(&old)?;
        disk::rename(&self.models().join(id), &old)?;
        disk::remove_all(&old)
    }

    fn staging_path(&self, id: &str, origin: &str) -> PathBuf {
        self.partials().join(folder_name(origin)).join(id)
    }

    /// Removes from the staging folder what is not part of the entry.
    fn clear_staging(&self, staging: &Path, manifest: &Manifest) -> Result<(), HubError> {
        for name in names_in(staging)? {
            let wanted = manifest.files.iter().any(|file| file.path.split('/').next() == Some(name.as_str()));
            if !wanted {
                disk::remove_all(&staging.join(name))?;
            }
        }
        Ok(())
    }

    fn names_of(&self, id: &str) -> Vec<String> {
        let mut names: Vec<String> = names_in(&self.refs())
            .unwrap_or_default()
            .iter()
            .filter_map(|name| read_ref(&self.refs().join(name)))
            .filter(|record| record.entry == id)
            .map(|record| record.name)
            .collect();
        names.sort();
        names
    }

    fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn ref_path(&self, name: &str) -> PathBuf {
        self.refs().join(format!("{}.json", folder_name(name)))
    }
}

/// The folder under `partial/` through which entries go when they are removed.
const REMOVED: &str = "_removed";

fn read_ref(path: &Path) -> Option<RefRecord> {
    // A ref holds two short texts; whatever is larger was not written by this crate.
    if fs::metadata(path).ok()?.len() > 16 * 1024 {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The names in a folder, sorted; none if the folder is not there.
fn names_in(folder: &Path) -> Result<Vec<String>, HubError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(disk::io_error("read the folder", folder, None, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| disk::io_error("read the folder", folder, None, e))?;
        names.extend(entry.file_name().into_string().ok().filter(|name| name != MANIFEST_FILE));
    }
    names.sort();
    Ok(names)
}

/// Flushes a folder and the folders in it. Its files were flushed as they were completed.
fn sync_tree(folder: &Path) -> Result<(), HubError> {
    for name in names_in(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            sync_tree(&path)?;
        }
    }
    disk::sync_dir(folder)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
