//! Files and folders that get their name only when they are whole.
//!
//! State owned: a temporary file or folder beside the target, removed again unless it is published. Invariants: what
//! has the target's name is never half written, and is on disk before it gets it.
//! Not done here: making room on a full disk, locks against others who write the same target.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};

/// A file or folder in the making.
#[derive(Debug)]
pub struct Staging {
    temporary: Temporary,
    target: PathBuf,
    replace: bool,
}

impl Staging {
    /// Makes an empty folder that is to become `target`. Its parents are created.
    ///
    /// # Errors
    /// [`FormatError::Io`]; without `replace` that `target` exists.
    pub fn folder(target: &Path, replace: bool) -> Result<Self> {
        let parent = prepare(target, replace)?;
        let temporary = Temporary::folder(&parent, target, "new")?;
        Ok(Self { temporary, target: target.to_owned(), replace })
    }

    /// Makes an empty file that is to become `target`. Its parents are created.
    ///
    /// # Errors
    /// As [`Staging::folder`].
    pub fn file(target: &Path, replace: bool) -> Result<Self> {
        let parent = prepare(target, replace)?;
        let temporary = Temporary::file(&parent, target, "new")?;
        Ok(Self { temporary, target: target.to_owned(), replace })
    }

    /// Where to write until then.
    pub fn path(&self) -> &Path {
        &self.temporary.path
    }

    /// Gives what was written the target's name. The files must have been synced. A target that is there is moved
    /// aside, then removed; for a folder, between its move and the rename of the new one the target is missing for a
    /// moment.
    ///
    /// # Errors
    /// [`FormatError::Io`]; without `replace` that something has taken the name meanwhile.
    pub fn publish(self) -> Result<()> {
        self.swap().map(drop)
    }

    /// As [`Staging::publish`], but what was there is not removed: tells where it is now, if anything was.
    ///
    /// # Errors
    /// As [`Staging::publish`].
    pub fn publish_beside_old(self) -> Result<Option<PathBuf>> {
        let old = self.swap()?;
        Ok(old.map(|old| {
            let path = old.path.clone();
            old.keep();
            path
        }))
    }

    /// Gives the target's name away; what had it is removed when the result is dropped.
    fn swap(self) -> Result<Option<Temporary>> {
        let Self { temporary, target, replace } = self;
        let target = target.as_path();
        let parent = parent_of(target);
        if temporary.path.is_dir() {
            sync_folder(&temporary.path)?;
        }
        let is_there = target.symlink_metadata().is_ok();
        if is_there && !replace {
            return Err(FormatError::io(target, std::io::ErrorKind::AlreadyExists.into()));
        }
        // A file's rename replaces a file by itself, without a moment in which there is none.
        let old = if is_there && (temporary.path.is_dir() || target.is_dir()) {
            let old = Temporary::folder(&parent, target, "old")?;
            // The folder that reserved the name makes room: a rename onto an empty folder is not portable.
            std::fs::remove_dir(&old.path).map_err(|e| FormatError::io(&old.path, e))?;
            std::fs::rename(target, &old.path).map_err(|e| FormatError::io(target, e))?;
            Some(old)
        } else {
            None
        };
        if let Err(e) = std::fs::rename(&temporary.path, target) {
            if let Some(old) = old {
                // Put the old one back; if that fails too, it stays under its temporary name rather than being removed.
                let old_path = old.path.clone();
                old.keep();
                std::fs::rename(&old_path, target).map_err(|e| FormatError::io(&old_path, e))?;
            }
            return Err(FormatError::io(target, e));
        }
        temporary.keep();
        if let Err(e) = sync_folder(&parent) {
            // Whether the new one lasts is not known, so the old one stays.
            old.into_iter().for_each(Temporary::keep);
            return Err(e);
        }
        Ok(old)
    }
}

fn parent_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn prepare(target: &Path, replace: bool) -> Result<PathBuf> {
    if !replace && target.symlink_metadata().is_ok() {
        return Err(FormatError::io(target, std::io::ErrorKind::AlreadyExists.into()));
    }
    let parent = parent_of(target);
    std::fs::create_dir_all(&parent).map_err(|e| FormatError::io(&parent, e))?;
    Ok(parent)
}

/// Writes a JSON file and syncs it to disk.
///
/// # Errors
/// [`FormatError::Io`], [`FormatError::Json`].
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| FormatError::Json { path: path.to_owned(), source })?;
    write_file(path, &text)
}

/// Writes a small file and syncs it to disk.
///
/// # Errors
/// [`FormatError::Io`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |e| FormatError::io(path, e);
    let mut file = File::create(path).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)
}

/// Makes renames and new names in a folder durable, where the system has that.
///
/// # Errors
/// [`FormatError::Io`].
pub fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| FormatError::io(path, e))?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

/// A file or folder beside the target that is removed again unless it is kept.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    is_kept: bool,
}

impl Temporary {
    fn folder(parent: &Path, target: &Path, role: &str) -> Result<Self> {
        Self::create(parent, target, role, |path| std::fs::create_dir(path))
    }

    fn file(parent: &Path, target: &Path, role: &str) -> Result<Self> {
        Self::create(parent, target, role, |path| File::create_new(path).map(drop))
    }

    fn create(
        parent: &Path,
        target: &Path,
        role: &str,
        make: impl Fn(&Path) -> std::io::Result<()>,
    ) -> Result<Self> {
        const MAX_TRIES: u32 = 1000;
        let name = target.file_name().and_then(|n| n.to_str()).ok_or_else(|| FormatError::Escapes {
            path: target.to_owned(),
            name: target.display().to_string(),
        })?;
        for attempt in 0..MAX_TRIES {
            let path = parent.join(format!(".{name}.{role}-{}-{attempt}", std::process::id()));
            match make(&path) {
                Ok(()) => return Ok(Self { path, is_kept: false }),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(FormatError::io(&path, e)),
            }
        }
        Err(FormatError::io(target, std::io::ErrorKind::AlreadyExists.into()))
    }

    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Nothing depends on it any more; what cannot be removed is a leftover with a name that tells.
        let _ = match self.path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(&self.path),
            Ok(_) => std::fs::remove_file(&self.path),
            Err(_) => Ok(()),
        };
    }
}
