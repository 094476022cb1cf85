//! Writing an adapter folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::config::AdapterConfig;
use super::contents::{AdapterTensor, LoraEmbedding, LoraModule, SavedModule};
use super::key::PREFIX;
use super::record::{self, AdapterRope};
use super::{CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE};
use crate::error::{FormatError, Result};
use crate::paths;
use crate::safetensors::{self, TensorData};

/// Everything that goes into an adapter folder.
#[derive(Clone, Copy, Debug)]
pub struct PeftContents<'a> {
    /// The configuration.
    pub config: &'a AdapterConfig,
    /// Factors of linear modules.
    pub modules: &'a [LoraModule],
    /// Factors of embeddings.
    pub embeddings: &'a [LoraEmbedding],
    /// Parameters stored whole.
    pub saved: &'a [SavedModule],
    /// Rotary positions of its own.
    pub rope: Option<&'a AdapterRope>,
    /// Further files of the folder: plain names and contents.
    pub extra_files: &'a [(&'a str, &'a [u8])],
}

/// The tensors of an adapter under PEFT's names.
pub(super) fn named_tensors<'a>(
    contents: &PeftContents<'a>,
) -> impl Iterator<Item = (String, &'a AdapterTensor)> + use<'a> {
    let modules = contents.modules.iter().flat_map(|m| {
        let name = |suffix: &str| format!("{PREFIX}{}.{suffix}", m.module_path);
        let factors = [(name("lora_A.weight"), &m.a), (name("lora_B.weight"), &m.b)];
        let magnitude = m.magnitude.as_ref().map(|t| (name("lora_magnitude_vector"), t));
        factors.into_iter().chain(magnitude)
    });
    let embeddings = contents.embeddings.iter().flat_map(|e| {
        let name = |suffix: &str| format!("{PREFIX}{}.{suffix}", e.module_path);
        [(name("lora_embedding_A"), &e.a), (name("lora_embedding_B"), &e.b)]
    });
    let saved = contents.saved.iter().map(|s| {
        let below = if s.is_base_layer { ".base_layer" } else { "" };
        (format!("{PREFIX}{}{below}.{}", s.module_path, s.parameter), &s.tensor)
    });
    modules.chain(embeddings).chain(saved)
}

/// Writes the folder `dir` as PEFT does, by way of a temporary folder beside it, so that `dir` is never seen half
/// written. All files are on disk before the folder gets its name. With `replace` a folder that is there is moved
/// aside, then removed; between its move and the rename of the new one `dir` is missing for a moment.
///
/// # Errors
/// [`FormatError::Io`]; without `replace` that `dir` exists; [`FormatError::Escapes`] for an extra file whose name is
/// no plain name; [`FormatError::Tensor`] for a name that is there twice.
pub fn write_peft(dir: &Path, contents: &PeftContents<'_>, replace: bool) -> Result<()> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |e| FormatError::io(&path, e)
    };
    if !replace && dir.symlink_metadata().is_ok() {
        return Err(FormatError::io(dir, std::io::ErrorKind::AlreadyExists.into()));
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(io(parent))?;
    let staging = Staging::create(dir, "new")?;
    write_files(&staging.path, contents)?;
    sync_folder(&staging.path)?;

    let old = if dir.symlink_metadata().is_ok() {
        let old = Staging::create(dir, "old")?;
        // The folder that reserved the name makes room: a rename onto an empty folder is not portable.
        std::fs::remove_dir(&old.path).map_err(io(&old.path))?;
        std::fs::rename(dir, &old.path).map_err(io(dir))?;
        Some(old)
    } else {
        None
    };
    if let Err(e) = std::fs::rename(&staging.path, dir) {
        if let Some(old) = old {
            // Put the old one back; if that fails too, it stays under its temporary name rather than being removed.
            let old_path = old.path.clone();
            old.keep();
            std::fs::rename(&old_path, dir).map_err(io(&old_path))?;
        }
        return Err(FormatError::io(dir, e));
    }
    staging.keep();
    drop(old);
    sync_folder(parent)
}

fn write_files(dir: &Path, contents: &PeftContents<'_>) -> Result<()> {
    write_json(&dir.join(CONFIG_FILE), &contents.config.to_json())?;
    if let Some(record) = record::to_json(contents.rope) {
        write_json(&dir.join(RECORD_FILE), &record)?;
    }
    for (name, bytes) in contents.extra_files {
        paths::check_relative(dir, name)?;
        if name.contains('/') || [CONFIG_FILE, WEIGHTS_FILE, RECORD_FILE].contains(name) {
            return Err(FormatError::Escapes { path: dir.to_owned(), name: (*name).to_owned() });
        }
        write_file(&dir.join(name), bytes)?;
    }
    let named: Vec<(String, &AdapterTensor)> = named_tensors(contents).collect();
    let tensors: Vec<TensorData<'_>> = named
        .iter()
        .map(|(name, t)| TensorData { name, storage: t.storage(), shape: t.shape(), bytes: t.bytes() })
        .collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::write(&dir.join(WEIGHTS_FILE), &tensors, &metadata)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| FormatError::Json { path: path.to_owned(), source })?;
    write_file(path, &text)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |e| FormatError::io(path, e);
    let mut file = File::create(path).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)
}

/// Makes renames and new names in a folder durable, where the system has that.
fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| FormatError::io(path, e))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// A folder beside the target that is removed again unless it is kept.
struct Staging {
    path: PathBuf,
    is_kept: bool,
}

impl Staging {
    fn create(dir: &Path, role: &str) -> Result<Self> {
        const MAX_TRIES: u32 = 1000;
        let name = dir
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| FormatError::Escapes { path: dir.to_owned(), name: dir.display().to_string() })?;
        for attempt in 0..MAX_TRIES {
            let path = dir.with_file_name(format!(".{name}.{role}-{}-{attempt}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, is_kept: false }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(FormatError::io(&path, e)),
            }
        }
        Err(FormatError::io(dir, std::io::ErrorKind::AlreadyExists.into()))
    }

    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.is_kept {
            // Nothing depends on it any more; what cannot be removed is a leftover with a name that tells.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
