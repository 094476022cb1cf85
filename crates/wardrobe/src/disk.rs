//! Places on the disk, before anything is written to them.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The path with its links followed, as far as it exists.
pub(crate) fn real_path(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = path.ancestors().find_map(|part| Some((part, part.canonicalize().ok()?)));
    match existing {
        Some((part, real)) => match path.strip_prefix(part) {
            Ok(rest) if rest.as_os_str().is_empty() => real,
            Ok(rest) => real.join(rest),
            Err(_) => path,
        },
        None => path,
    }
}

/// Whether a folder has nothing in it.
pub(crate) fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Refuses before the first byte what does not fit the disk.
pub(crate) fn check_space(output: &Path, needed_bytes: u64) -> Result<()> {
    // Headers, configuration and the file system's own.
    const BESIDE_BYTES: u64 = 4 << 20;
    let needed_bytes = needed_bytes.saturating_add(BESIDE_BYTES);
    let real = real_path(output);
    let folder = real.ancestors().find(|part| part.is_dir()).unwrap_or(Path::new("."));
    match free_bytes(folder) {
        Some(free_bytes) if free_bytes < needed_bytes => {
            Err(Error::DiskSpace { path: folder.to_owned(), needed_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

/// Bytes that this process may still write to the file system of `folder`; `None` where the system does not tell.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Bytes that this process may still write to the file system of `folder`; `None` where the system does not tell.
#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}
