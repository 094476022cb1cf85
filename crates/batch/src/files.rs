//! Uploaded files: written beside, checked, made to last, then named.
//!
//! State: `uploads/` holds what is arriving and nothing that outlives a restart; `files/` holds one file for each row of
//! the store, under its id. The name that a client gave is kept as text and never becomes a path.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{BatchError, Result};
use crate::fine_tuner::{FileCheck, FineTuner, Problem};
use crate::ids::now_ms;
use crate::store::Store;

/// Longest name that is kept.
const MAX_NAME_BYTES: usize = 255;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePurpose {
    /// Training data: checked when it arrives.
    FineTune,
    /// Metrics of a job.
    FineTuneResults,
    /// Requests of a batch.
    Batch,
    /// What became of them.
    BatchOutput,
    /// Data for evaluation.
    Evals,
    /// Anything else.
    UserData,
}

impl FilePurpose {
    const NAMES: [(Self, &'static str); 6] = [
        (Self::FineTune, "fine-tune"),
        (Self::FineTuneResults, "fine-tune-results"),
        (Self::Batch, "batch"),
        (Self::BatchOutput, "batch_output"),
        (Self::Evals, "evals"),
        (Self::UserData, "user_data"),
    ];

    /// Its name, as OpenAI has it.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(purpose, _)| *purpose == self).map_or("user_data", |(_, name)| name)
    }

    /// The purpose of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(purpose, _)| *purpose)
    }
}

/// A file that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// `file-` and 32 hexadecimal digits.
    pub id: String,
    /// The name that it was uploaded under, without folders and control characters. It is no path.
    pub file_name: String,
    /// What it is for.
    pub purpose: FilePurpose,
    /// Its size.
    pub size_bytes: u64,
    /// Its SHA-256 in hexadecimal digits.
    pub sha256: String,
    /// When it was complete, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// What its check found, for training data.
    pub check: Option<FileCheck>,
}

/// A file that is about to arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// An id that [`crate::JobRunner::reserve_file_id`] gave; `None` makes one.
    pub id: Option<String>,
    /// Its name, as the client gives it.
    pub file_name: String,
    /// What it is for.
    pub purpose: FilePurpose,
    /// Its SHA-256 in hexadecimal digits, if the client announced it.
    pub sha256: Option<String>,
}

/// The folders of a runner.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    pub files: PathBuf,
    pub uploads: PathBuf,
    pub jobs: PathBuf,
    pub batches: PathBuf,
}

impl Folders {
    /// Where they are below `root`.
    pub fn below(root: &Path) -> Self {
        Self {
            files: root.join("files"),
            uploads: root.join("uploads"),
            jobs: root.join("jobs"),
            batches: root.join("batches"),
        }
    }

    /// Makes what is missing below `root`.
    pub fn make(root: &Path) -> Result<Self> {
        let folders = Self::below(root);
        for path in [&folders.files, &folders.uploads, &folders.jobs, &folders.batches] {
            fs::create_dir_all(path).map_err(|error| BatchError::io(path, &error))?;
        }
        Ok(folders)
    }

    pub fn file(&self, id: &str) -> PathBuf {
        self.files.join(id)
    }

    pub fn job(&self, id: &str) -> PathBuf {
        self.jobs.join(id)
    }

    pub fn batch(&self, id: &str) -> PathBuf {
        self.batches.join(id)
    }

    /// Removes what belongs to nothing: uploads that broke off, files and folders without a row, and folders of batches
    /// that have ended.
    pub fn sweep(&self, store: &Store) -> Result<()> {
        remove_all_but(&self.uploads, &[])?;
        remove_all_but(&self.files, &store.file_ids()?)?;
        remove_all_but(&self.jobs, &store.job_ids()?)?;
        remove_all_but(&self.batches, &store.open_batches()?)
    }
}

fn remove_all_but(folder: &Path, kept: &[String]) -> Result<()> {
    let map = |error: std::io::Error| BatchError::io(folder, &error);
    let kept: std::collections::HashSet<&str> = kept.iter().map(String::as_str).collect();
    for entry in fs::read_dir(folder).map_err(map)? {
        let entry = entry.map_err(map)?;
        if entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().map_err(map)?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| BatchError::io(&path, &error))?;
    }
    Ok(())
}

/// A client's name for a file, as it can be shown: its last part, without control characters, of bounded length.
pub(crate) fn shown_name(given: &str) -> String {
    let last = given.rsplit(['/', '\\']).next().unwrap_or("");
    let mut name = String::new();
    for c in last.chars().filter(|c| !c.is_control()) {
        if name.len() + c.len_utf8() > MAX_NAME_BYTES {
            break;
        }
        name.push(c);
    }
    match name.trim() {
        "" | "." | ".." => "file".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

/// Makes a rename or a new name in `folder` last.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    // Other systems cannot open folders, and do not need it.
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| BatchError::io(folder, &error))?;
    Ok(())
}

/// A file that is arriving. Dropped before [`Upload::finish`], it leaves nothing.
pub struct Upload {
    pub(crate) store: Arc<Store>,
    pub(crate) fine_tuner: Arc<dyn FineTuner>,
    pub(crate) folders: Folders,
    pub(crate) id: String,
    pub(crate) new: NewFile,
    pub(crate) limit_bytes: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) size_bytes: u64,
    pub(crate) hash: Sha256,
    pub(crate) finished: bool,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("id", &self.id).field("size_bytes", &self.size_bytes).finish()
    }
}

impl Upload {
    /// The id that the file will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Sets what the file is for, if that became known only while it arrived.
    pub fn set_purpose(&mut self, purpose: FilePurpose) {
        self.new.purpose = purpose;
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// The file is over its limit, or the disk refuses more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        if size_bytes > self.limit_bytes {
            return Err(BatchError::FileTooLarge { limit_bytes: self.limit_bytes });
        }
        self.file.write_all(bytes).map_err(|error| BatchError::io(&self.path, &error))?;
        self.hash.update(bytes);
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// Checks the file and makes it last.
    ///
    /// # Errors
    /// It is not what was announced, it is no training data though it should be, or it could not be written.
    pub fn finish(self) -> Result<StoredFile> {
        let (store, target) = (self.store.clone(), self.folders.file(&self.id));
        let stored = self.place()?;
        store.add_file(&stored).inspect_err(|_| {
            // Without a row nobody will find it.
            let _ = fs::remove_file(&target);
        })?;
        Ok(stored)
    }

    /// Checks the file and puts it in its place, where it needs a row before the next start.
    pub(crate) fn place(mut self) -> Result<StoredFile> {
        let map = |error: std::io::Error| BatchError::io(&self.path, &error);
        let digest = std::mem::take(&mut self.hash).finalize();
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if let Some(expected) = self.new.sha256.as_ref().filter(|given| !given.eq_ignore_ascii_case(&sha256))
        {
            return Err(BatchError::Checksum {
                expected: expected.chars().take(80).collect(),
                found: sha256,
            });
        }
        let file_name = shown_name(&self.new.file_name);
        let check = match self.new.purpose {
            FilePurpose::FineTune if self.size_bytes == 0 => {
                let problem = Problem { line: None, message: "the file is empty".to_owned() };
                return Err(BatchError::BadFile(vec![problem]));
            }
            FilePurpose::FineTune => {
                let check = self.fine_tuner.check_file(&self.path, &file_name);
                Some(check.map_err(BatchError::BadFile)?)
            }
            _ => None,
        };
        self.file.sync_all().map_err(map)?;
        let target = self.folders.file(&self.id);
        fs::rename(&self.path, &target).map_err(map)?;
        self.finished = true;
        sync_folder(&self.folders.files)?;
        Ok(StoredFile {
            id: self.id.clone(),
            file_name,
            purpose: self.new.purpose,
            size_bytes: self.size_bytes,
            sha256,
            created_at_ms: now_ms(),
            check,
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_texts_and_never_paths() {
        for (given, shown) in [
            ("train.jsonl", "train.jsonl"),
            ("../../etc/passwd", "passwd"),
            ("C:\\data\\train.csv", "train.csv"),
            ("a\nb\0c.jsonl", "abc.jsonl"),
            ("..", "file"),
            ("/", "file"),
            (" ", "file"),
            ("日本.jsonl", "日本.jsonl"),
        ] {
            assert_eq!(shown_name(given), shown, "{given:?}");
        }
        let long = shown_name(&"é".repeat(1000));
        assert!(long.len() <= MAX_NAME_BYTES && long.chars().all(|c| c == 'é'));
    }
}
