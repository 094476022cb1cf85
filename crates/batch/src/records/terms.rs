//! What a resumption must agree with, and the file that keeps it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::{RecordsError, Result};
use crate::files::sync_folder;

/// Version of the file.
const VERSION: u32 = 1;
/// Longer values are kept as their digests.
const MAX_VALUE_CHARS: usize = 120;

/// Terms of a run: names with values. A run goes on only on the terms on which it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms(serde_json::Map<String, serde_json::Value>);

#[derive(Serialize, Deserialize)]
struct SideFile {
    version: u32,
    terms: Terms,
}

impl Terms {
    /// No terms.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a term. Of a long value the digest is kept.
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let text = value.to_string();
        let kept = match text.chars().nth(MAX_VALUE_CHARS) {
            None => text,
            Some(_) => format!("{} bytes, sha256 {}", text.len(), hex(&Sha256::digest(text.as_bytes()))),
        };
        self.0.insert(name.to_owned(), kept.into());
        self
    }

    /// Where `self`, which is asked for, differs from what was begun.
    fn differences(&self, begun: &Self) -> Vec<String> {
        let shown = |terms: &Self, name: &str| match terms.0.get(name) {
            Some(serde_json::Value::String(text)) => with_short_digests(text),
            Some(other) => other.to_string(),
            None => "none".to_owned(),
        };
        let names = begun.0.keys().chain(self.0.keys().filter(|name| !begun.0.contains_key(*name)));
        names
            .filter(|name| self.0.get(*name) != begun.0.get(*name))
            .map(|name| format!("another `{name}`: {} then, {} now", shown(begun, name), shown(self, name)))
            .collect()
    }

    /// Refuses an output that was begun on other terms, which lie beside `named`.
    pub(super) fn check(&self, output: &Path, named: &Path) -> Result<()> {
        let side = side_path(named);
        let bytes = match fs::read(&side) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RecordsError::Foreign { path: output.to_owned(), side });
            }
            Err(error) => return Err(RecordsError::io(&side, error)),
        };
        let unusable = |reason: String| RecordsError::io(&side, std::io::Error::other(reason));
        let file: SideFile =
            serde_json::from_slice(&bytes).map_err(|error| unusable(format!("is damaged: {error}")))?;
        if file.version != VERSION {
            return Err(unusable(format!("has version {}; this version knows {VERSION}", file.version)));
        }
        match self.differences(&file.terms) {
            differences if differences.is_empty() => Ok(()),
            differences => Err(RecordsError::OtherTerms { path: output.to_owned(), differences }),
        }
    }

    /// Keeps the terms beside `named`: whole or not at all.
    pub(super) fn write(&self, named: &Path) -> Result<()> {
        let side = side_path(named);
        let unfinished = beside(named, &format!(".run.json.{}.part", std::process::id()));
        let file = SideFile { version: VERSION, terms: self.clone() };
        let write = || {
            let mut text = serde_json::to_vec_pretty(&file)?;
            text.push(b'\n');
            let mut file = File::create(&unfinished)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&unfinished, &side)
        };
        if let Err(error) = write() {
            // The error that counts is the first one.
            let _ = fs::remove_file(&unfinished);
            return Err(RecordsError::io(&side, error));
        }
        sync_parent(named)
    }
}

/// The file of terms.
fn side_path(named: &Path) -> PathBuf {
    beside(named, ".run.json")
}

/// A file beside another: its name with an ending.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Makes names in an output's folder durable.
pub(super) fn sync_parent(output: &Path) -> Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    sync_folder(folder).map_err(|error| RecordsError::io(folder, std::io::Error::other(error.to_string())))
}

/// A value as people read it: the beginning of a digest tells it from another.
fn with_short_digests(text: &str) -> String {
    let short = |word: &str| match word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => format!("{}…", word.chars().take(12).collect::<String>()),
        false => word.to_owned(),
    };
    text.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
