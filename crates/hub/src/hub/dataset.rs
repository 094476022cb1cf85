//! Data sets on the hub: which files there are, and each of them when it is needed.
//!
//! Every file becomes an entry of the cache by itself, and so does the list of them, which says the commit: what was
//! listed once is read without a network, and a branch that moves changes nothing until the list is asked for anew.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use hf_hub::RepoType;

use super::client::{HubClient, Listing};
use super::transfer::{self, Job};
use crate::cache::{Cache, Entry};
use crate::disk;
use crate::error::HubError;
use crate::manifest::{FileRecord, Manifest, ModelKind};
use crate::names::{hex, is_safe_relative_path, named_folder};
use crate::progress::Progress;
use crate::pull::PullOptions;
use crate::reference::RepoRef;
use sha2::{Digest as _, Sha256};

/// What a reference begins with.
const PREFIX: &str = "hub:";
/// One file. Data sets come in parts of some GB at most.
const MAX_FILE_BYTES: u64 = 1 << 40;
const MAX_LISTING_BYTES: u64 = 64 << 20;
const LISTING_FILE: &str = "files.json";
/// What the list has in the place of a path: none that a repository can have.
const LISTING_ID: &str = "//files";

/// A data set on the hub, or a part of it: `hub:OWNER/NAME[/PATH][@REVISION]`. The path is a file, a folder, or a pattern in
/// which `*` stands for any characters but `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetRef {
    repo: RepoRef,
    path: Option<String>,
}

impl DatasetRef {
    /// Whether a text is meant to be one.
    pub fn is_one(text: &str) -> bool {
        text.trim().starts_with(PREFIX)
    }

    /// Reads a reference.
    ///
    /// # Errors
    /// [`HubError::BadReference`] with what is wrong.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let text = text.trim();
        let bad = |reason: &str| HubError::BadReference {
            input: text.chars().filter(|c| !c.is_control()).take(200).collect(),
            reason: format!("{reason}; a data set is hub:OWNER/NAME[/PATH][@REVISION]"),
        };
        let rest = text.strip_prefix(PREFIX).ok_or_else(|| bad("it does not begin with hub:"))?;
        // A path may hold an @, a revision does not.
        let (place, revision) = match rest.rsplit_once('@') {
            Some((place, revision)) => (place, Some(revision)),
            None => (rest, None),
        };
        let mut parts = place.splitn(3, '/');
        let (Some(owner), Some(name)) = (parts.next(), parts.next()) else {
            return Err(bad("it has no owner"));
        };
        let path = parts.next().map(|path| path.trim_end_matches('/')).filter(|path| !path.is_empty());
        // An asterisk is no character of a safe path, and stands for such.
        if path.is_some_and(|path| !is_safe_relative_path(&path.replace('*', "x"))) {
            return Err(bad("the part behind OWNER/NAME is no path in it"));
        }
        let repo = RepoRef::new(&format!("{owner}/{name}"), revision, None).map_err(|error| match error {
            HubError::BadReference { reason, .. } => bad(&reason),
            error => error,
        })?;
        Ok(Self { repo, path: path.map(str::to_owned) })
    }

    /// Whether a file belongs to what is asked for.
    fn holds(&self, file: &str) -> bool {
        match &self.path {
            None => true,
            Some(path) => {
                matches(path, file)
                    || (!path.contains('*')
                        && file.strip_prefix(path.as_str()).is_some_and(|rest| rest.starts_with('/')))
            }
        }
    }

    /// The name of the whole data set.
    fn whole(&self) -> String {
        format!("{PREFIX}{}", self.repo)
    }
}

/// The form that [`DatasetRef::parse`] reads back.
impl fmt::Display for DatasetRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
        let whole = self.whole();
        match whole.split_once('@') {
            Some((repo, revision)) => write!(f, "{repo}{path}@{revision}"),
            // What follows the last one is a revision.
            None if path.contains('@') => write!(f, "{whole}{path}@{}", self.repo.revision()),
            None => write!(f, "{whole}{path}"),
        }
    }
}

/// Whether a path fits a pattern. Steps back to the last asterisk only, which is enough: an earlier one that took more
/// would leave the later one less.
fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<char>, Vec<char>) = (pattern.chars().collect(), path.chars().collect());
    let (mut at, mut in_path) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while let Some(&c) = path.get(in_path) {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at, in_path));
                at += 1;
            }
            Some(&wanted) if wanted == c => (at, in_path) = (at + 1, in_path + 1),
            _ => match retry {
                Some((star, from)) if path.get(from).is_some_and(|c| *c != '/') => {
                    retry = Some((star, from + 1));
                    (at, in_path) = (star + 1, from + 1);
                }
                _ => return false,
            },
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

/// A file of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DatasetFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size, if the hub names it.
    pub bytes: Option<u64>,
}

/// A data set whose files are known.
#[derive(Debug)]
pub struct Dataset {
    reference: DatasetRef,
    listing: Listing,
    cache: Cache,
    options: PullOptions,
    /// Made when the first file is fetched, so that what is in the cache needs neither settings nor a network.
    client: Mutex<Option<HubClient>>,
}

impl Dataset {
    /// Finds out which files there are: from the cache if it has the list, unless `options` ask for a fresh one.
    ///
    /// # Errors
    /// [`HubError`]: there is no such data set or revision, it may not be read, the hub cannot be reached.
    pub fn open(
        reference: &DatasetRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Self, HubError> {
        let cache = match &options.cache {
            Some(cache) => cache.clone(),
            None => Cache::open_default()?,
        };
        let mut dataset = Self {
            reference: reference.clone(),
            listing: Listing { commit: String::new(), files: Vec::new() },
            cache,
            options: options.clone(),
            client: Mutex::new(None),
        };
        let known = dataset.cache.lookup(&reference.whole()).filter(|_| !options.refresh);
        dataset.listing = match known {
            Some(entry) => read_listing(&entry.path)?,
            None => dataset.list(progress)?,
        };
        Ok(dataset)
    }

    /// The files that were asked for, in the order of their paths.
    pub fn files(&self) -> Vec<DatasetFile> {
        let wanted = self.listing.files.iter().filter(|file| self.reference.holds(&file.path));
        let mut files: Vec<DatasetFile> =
            wanted.map(|file| DatasetFile { path: file.path.clone(), bytes: file.bytes }).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// The commit that the revision stood for when it was listed.
    pub fn commit(&self) -> &str {
        &self.listing.commit
    }

    /// What a file of it is called: a reference to it at its commit.
    pub fn name_of(&self, path: &str) -> String {
        format!("{PREFIX}{}/{path}@{}", self.reference.repo.repo(), self.listing.commit)
    }

    /// Brings a file onto this machine, if it is not there. A download that was cut off goes on where it was.
    ///
    /// # Errors
    /// [`HubError`]: there is no such file; it is not what the hub announced; the hub or the disk fails.
    pub fn fetch(&self, path: &str, progress: &dyn Progress) -> Result<PathBuf, HubError> {
        let name = self.name_of(path);
        if let Some(entry) = self.cache.lookup(&name) {
            return Ok(entry.path);
        }
        let file = self.listing.files.iter().find(|file| file.path == path && is_safe_relative_path(path));
        let Some(file) = file else {
            let what = format!("{path} in {}", self.reference.whole());
            return Err(HubError::NotFound { what, detail: String::new() });
        };
        let job = Job {
            path: path.to_owned(),
            bytes: file.bytes,
            sha256: file.sha256.clone(),
            limit_bytes: MAX_FILE_BYTES,
        };
        if file.bytes.is_some_and(|bytes| bytes > MAX_FILE_BYTES) {
            return Err(HubError::TooLarge { what: path.to_owned(), limit_bytes: MAX_FILE_BYTES });
        }
        let origin = self.origin();
        let _lock = self.cache.lock(&origin, self.options.lock_wait, progress)?;
        let id = self.id(path);
        let entry = match self.cache.entry(&id) {
            // Another process may have brought it while this one waited.
            Some(entry) => entry,
            None => {
                let staging = self.cache.staging(&id, &origin)?;
                if let Some(bytes) = file.bytes {
                    disk::ensure_space(&staging, bytes.saturating_sub(disk::tree_bytes(&staging)))?;
                }
                progress.started(path, file.bytes);
                let record = self.with_client(|client| {
                    transfer::fetch(&client.at_commit(&self.listing.commit), &job, &staging, progress)
                });
                progress.finished();
                self.publish(&id, path, record?)?
            }
        };
        self.cache.set_ref(&name, &entry.id)?;
        Ok(entry.path)
    }

    /// Asks the hub for the list and keeps it.
    fn list(&mut self, progress: &dyn Progress) -> Result<Listing, HubError> {
        let origin = self.origin();
        let _lock = self.cache.lock(&origin, self.options.lock_wait, progress)?;
        progress.message(&format!("asking the hub for {}", self.reference.whole()));
        self.listing = self.with_client(|client| client.list(progress))?;
        let listing = self.listing.clone();
        let id = self.id(LISTING_ID);
        if self.cache.entry(&id).is_none() {
            let staging = self.cache.staging(&id, &origin)?;
            let path = staging.join(LISTING_FILE);
            let bytes = serde_json::to_vec(&listing)
                .map_err(|error| disk::io_error("write", &path, None, std::io::Error::other(error)))?;
            disk::write_atomically(&path, &bytes)?;
            let record = FileRecord {
                path: LISTING_FILE.to_owned(),
                bytes: bytes.len() as u64,
                sha256: hex(&Sha256::digest(&bytes)),
            };
            self.publish(&id, LISTING_FILE, record)?;
        }
        self.cache.set_ref(&self.reference.whole(), &id)?;
        Ok(listing)
    }

    fn publish(&self, id: &str, path: &str, record: FileRecord) -> Result<Entry, HubError> {
        let manifest = Manifest {
            revision: Some(self.reference.repo.revision().to_owned()),
            commit: Some(self.listing.commit.clone()),
            ..Manifest::new(ModelKind::Dataset, self.origin(), Some(path.to_owned()), vec![record])
        };
        self.cache.publish(id, &manifest)
    }

    /// A model of the same name is something else.
    fn origin(&self) -> String {
        format!("datasets/{}", self.reference.repo.repo())
    }

    /// The entry of a file at the commit.
    fn id(&self, path: &str) -> String {
        let short_commit = self.listing.commit.get(..12).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let identity = format!("{} {} {path}", self.origin(), self.listing.commit);
        named_folder(&format!("{} {short_commit} {name}", self.origin()), &identity)
    }

    fn with_client<T>(&self, act: impl FnOnce(&HubClient) -> Result<T, HubError>) -> Result<T, HubError> {
        let mut client = self.client.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if client.is_none() {
            let home = std::env::home_dir();
            let settings = self.options.hub.resolve(&|name| std::env::var(name).ok(), home.as_deref())?;
            *client = Some(HubClient::new(settings, &self.reference.repo, RepoType::Dataset)?);
        }
        match &*client {
            Some(client) => act(client),
            None => Err(HubError::Offline),
        }
    }
}

fn read_listing(path: &std::path::Path) -> Result<Listing, HubError> {
    let damaged = |reason: String| HubError::Damaged { path: path.to_owned(), reason };
    let length = fs::metadata(path).map_err(|e| disk::io_error("read", path, None, e))?.len();
    if length > MAX_LISTING_BYTES {
        return Err(damaged(format!("it has {length} bytes")));
    }
    let bytes = fs::read(path).map_err(|e| disk::io_error("read", path, None, e))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (text, repo, revision, path) in [
            ("hub:o/n", "o/n", "main", None),
            ("hub:o/n@v1", "o/n", "v1", None),
            ("hub:o/n/data/train-*.parquet", "o/n", "main", Some("data/train-*.parquet")),
            ("hub:o/n/data@refs/convert/parquet", "o/n", "refs/convert/parquet", Some("data")),
            ("hub:o/n/a@b.jsonl@main", "o/n", "main", Some("a@b.jsonl")),
        ] {
            let parsed = DatasetRef::parse(text).unwrap();
            assert_eq!(
                (parsed.repo.repo(), parsed.repo.revision(), parsed.path.as_deref()),
                (repo, revision, path)
            );
            assert_eq!(DatasetRef::parse(&parsed.to_string()).unwrap(), parsed, "{parsed}");
        }
        for text in [
            "o/n",
            "hub:",
            "hub:n",
            "hub:o/n/../x",
            "hub:o/n//x",
            "hub:o/n@",
            "hub:o/n@../x",
            "hub:/n/x",
            "hub:o/n/a\\b",
        ] {
            assert!(matches!(DatasetRef::parse(text), Err(HubError::BadReference { .. })), "{text}");
        }
        assert!(DatasetRef::is_one("hub:x") && !DatasetRef::is_one("hubble.jsonl"));
    }

    #[test]
    fn files_folders_and_patterns() {
        let holds =
            |path: &str, file: &str| DatasetRef::parse(&format!("hub:o/n/{path}")).unwrap().holds(file);
        assert!(
            holds("data", "data/a.jsonl") && holds("data/", "data/a/b.jsonl") && holds("a.jsonl", "a.jsonl")
        );
        assert!(!holds("data", "data2/a.jsonl") && !holds("data", "database"));
        assert!(holds("data/train-*", "data/train-00001.parquet") && holds("*.jsonl", "a.jsonl"));
        assert!(!holds("data/train-*", "data/test-1") && !holds("*", "a/b") && !holds("a*b", "ab/b"));
        assert!(holds("*/*-of-*.p", "x/1-of-2-of-3.p") && !holds("*.jsonl", "a/b.jsonl"));
        let started = std::time::Instant::now();
        assert!(!matches(&"*a".repeat(200), &"a".repeat(100_000).replace("aa", "ab")));
        assert!(started.elapsed().as_secs() < 5);
    }
}
