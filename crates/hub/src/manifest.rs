//! The record that lies in every cache entry and makes it one.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::error::HubError;
use crate::names::{is_hex, is_safe_relative_path};

/// The manifest's file name in the entry's folder.
pub(crate) const MANIFEST_FILE: &str = "wardrobe-entry.json";
/// The only layout so far; another number is refused, not guessed at.
const FORMAT: u32 = 1;
/// A manifest is a few hundred bytes a file.
const MAX_MANIFEST_BYTES: u64 = 8 * 1024 * 1024;

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ModelKind {
    /// One GGUF file.
    Gguf,
    /// A folder with `config.json` and safetensors.
    Safetensors,
    /// A PEFT adapter folder (`adapter_config.json`).
    Adapter,
    /// One file of a data set, or the list of its files.
    Dataset,
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ModelKind::Gguf => "gguf",
            ModelKind::Safetensors => "safetensors",
            ModelKind::Adapter => "adapter",
            ModelKind::Dataset => "dataset",
        })
    }
}

/// One file of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path inside the entry's folder, parted by `/`.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256, lower-case hex, computed while the file was written.
    pub sha256: String,
}

/// The content of `wardrobe-entry.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) kind: ModelKind,
    /// Where it came from: `owner/name` or `package==version`.
    pub(crate) origin: String,
    /// The revision asked for when it was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<String>,
    /// The commit that the revision stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
    /// The file that is the model, if it is one file; else the folder is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) main_file: Option<String>,
    pub(crate) created_unix_ms: u64,
    pub(crate) files: Vec<FileRecord>,
}

impl Manifest {
    /// A manifest dated now.
    pub(crate) fn new(
        kind: ModelKind,
        origin: String,
        main_file: Option<String>,
        files: Vec<FileRecord>,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            format: FORMAT,
            kind,
            origin,
            revision: None,
            commit: None,
            main_file,
            created_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            files,
        }
    }

    /// When the entry was made.
    pub(crate) fn created(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.created_unix_ms)).unwrap_or(UNIX_EPOCH)
    }

    /// Reads and checks the manifest of the entry in `folder`: its form, and that each file is there with its size.
    pub(crate) fn read(folder: &Path) -> Result<Self, HubError> {
        let path = folder.join(MANIFEST_FILE);
        let damaged = |path: &Path, reason: String| HubError::Damaged { path: path.to_path_buf(), reason };
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes))
            .map_err(|e| disk::io_error("read", &path, None, e))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| damaged(&path, e.to_string()))?;
        if manifest.format != FORMAT {
            return Err(damaged(
                &path,
                format!("its format is {}, this version reads {FORMAT}", manifest.format),
            ));
        }
        let names = manifest.files.iter().map(|file| &file.path).chain(&manifest.main_file);
        if let Some(name) = names.into_iter().find(|name| !is_safe_relative_path(name)) {
            return Err(damaged(&path, format!("it names the file {name:?}")));
        }
        for file in &manifest.files {
            let path = folder.join(&file.path);
            if !is_hex(&file.sha256, 64) {
                return Err(damaged(&path, "its manifest has no SHA-256".to_owned()));
            }
            match fs::metadata(&path) {
                Ok(meta) if meta.is_file() && meta.len() == file.bytes => {}
                Ok(meta) => {
                    return Err(damaged(
                        &path,
                        format!("{} bytes expected, {} there", file.bytes, meta.len()),
                    ));
                }
                Err(error) => return Err(damaged(&path, error.to_string())),
            }
        }
        Ok(manifest)
    }

    /// Writes the manifest into `folder` and flushes it.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), HubError> {
        let path = folder.join(MANIFEST_FILE);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| disk::io_error("write", &path, None, std::io::Error::other(e)))?;
        disk::write_atomically(&path, &text)
    }
}
