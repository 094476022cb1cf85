//! Writing to the disk: free space, flushing, folders, and the one loop that copies bytes under a limit while it hashes.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::error::HubError;
use crate::progress::Progress;

/// Bytes moved per turn of [`copy`]; between two turns the caller's cancellation is looked at.
const CHUNK_BYTES: usize = 128 * 1024;

/// Why [`copy`] stopped early. What was written until then is counted in its `done` argument.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The source failed.
    Read(io::Error),
    /// The destination failed.
    Write(io::Error),
    /// The source holds more than the limit. Exactly the limit was written.
    TooLong,
    /// The caller wants no more.
    Cancelled,
}

/// Copies all of `reader` to `writer`, at most `limit_bytes`, feeding `hasher` with what was written. `done` grows by
/// what was written, also on an error.
pub(crate) fn copy(
    reader: &mut dyn Read,
    writer: &mut dyn Write,
    limit_bytes: u64,
    hasher: &mut Sha256,
    done: &mut u64,
    progress: &dyn Progress,
) -> Result<(), CopyError> {
    let mut buffer = vec![0u8; CHUNK_BYTES];
    let mut left = limit_bytes;
    loop {
        if progress.cancelled() {
            return Err(CopyError::Cancelled);
        }
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CopyError::Read(error)),
        };
        let allowed = usize::try_from(left).unwrap_or(usize::MAX).min(read);
        let chunk = buffer.get(..allowed).unwrap_or_default();
        writer.write_all(chunk).map_err(CopyError::Write)?;
        hasher.update(chunk);
        let written = chunk.len() as u64;
        left = left.saturating_sub(written);
        *done = done.saturating_add(written);
        progress.advanced(written);
        if allowed < read {
            return Err(CopyError::TooLong);
        }
    }
}

/// SHA-256 of what a file holds up to `limit_bytes`, and how many bytes those are.
pub(crate) fn hash_file(path: &Path, limit_bytes: u64) -> Result<(Sha256, u64), HubError> {
    let mut file = File::open(path).map_err(|e| io_error("read", path, None, e))?.take(limit_bytes);
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    match copy(&mut file, &mut io::sink(), u64::MAX, &mut hasher, &mut bytes, &()) {
        Ok(()) | Err(CopyError::TooLong | CopyError::Cancelled) => Ok((hasher, bytes)),
        Err(CopyError::Read(error) | CopyError::Write(error)) => Err(io_error("read", path, None, error)),
    }
}

/// The error of a file operation: [`HubError::DiskFull`] where the system says so, else [`HubError::Io`].
/// `needed_bytes` is what was still to be written.
pub(crate) fn io_error(
    action: &'static str,
    path: &Path,
    needed_bytes: Option<u64>,
    source: io::Error,
) -> HubError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
            HubError::DiskFull { path: folder.to_path_buf(), needed_bytes, free_bytes: free_bytes(folder) }
        }
        _ => HubError::Io { action, path: path.to_path_buf(), source },
    }
}

/// Bytes that this process may still write to the file system of `folder`; `None` where the system does not tell.
#[cfg(unix)]
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Bytes that this process may still write to the file system of `folder`; `None` where the system does not tell.
#[cfg(not(unix))]
pub(crate) fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// Refuses before the first byte if `needed_bytes` do not fit.
pub(crate) fn ensure_space(folder: &Path, needed_bytes: u64) -> Result<(), HubError> {
    match free_bytes(folder) {
        Some(free) if free < needed_bytes => Err(HubError::DiskFull {
            path: folder.to_path_buf(),
            needed_bytes: Some(needed_bytes),
            free_bytes: Some(free),
        }),
        _ => Ok(()),
    }
}

/// Creates a folder and its parents.
pub(crate) fn create_dir(path: &Path) -> Result<(), HubError> {
    fs::create_dir_all(path).map_err(|e| io_error("create the folder", path, None, e))
}

/// Removes a folder or file with all it holds; one that is not there is fine.
pub(crate) fn remove_all(path: &Path) -> Result<(), HubError> {
    let result = match fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, None, error)),
        _ => Ok(()),
    }
}

/// Moves a file or folder within one file system and makes the move durable.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), HubError> {
    fs::rename(from, to).map_err(|e| io_error("move into place", to, None, e))?;
    if let Some(parent) = to.parent() {
        sync_dir(parent)?;
    }
    Ok(())
}

/// The end of a name that nobody else takes: no other process, and no other thread of this one.
pub(crate) fn unique_suffix() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Writes a small file so that readers see the old content or the new, and never a part.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<(), HubError> {
    let temporary = path.with_extension(format!("tmp-{}", unique_suffix()));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&temporary);
        return Err(io_error("write", path, Some(content.len() as u64), error));
    }
    rename(&temporary, path)
}

/// Flushes a folder's own content (its list of names) to the disk.
pub(crate) fn sync_dir(path: &Path) -> Result<(), HubError> {
    // Windows has no handle for this, and journals the rename by itself.
    if cfg!(unix) {
        File::open(path)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| io_error("flush the folder", path, None, e))?;
    }
    Ok(())
}

/// The sizes of all files below `path`, added up; what cannot be read counts as 0. Follows no links.
pub(crate) fn tree_bytes(path: &Path) -> u64 {
    let mut total = 0u64;
    let mut folders = vec![path.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if meta.is_file() => total = total.saturating_add(meta.len()),
                _ => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::hex;

    /// A disk with room for so many bytes.
    struct SmallDisk(usize);

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            let fits = bytes.len().min(self.0);
            self.0 -= fits;
            Ok(fits)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_that_names_folder_and_bytes() {
        let (mut hasher, mut done) = (Sha256::new(), 0);
        let mut source = io::repeat(7).take(1_000_000);
        let result = copy(&mut source, &mut SmallDisk(200_000), u64::MAX, &mut hasher, &mut done, &());
        let Err(CopyError::Write(error)) = result else { panic!("{result:?}") };
        let dir = tempfile::tempdir().unwrap();
        let error = io_error("write", &dir.path().join("x.part"), Some(1_000_000 - done), error);
        let HubError::DiskFull { path, needed_bytes, free_bytes } = &error else { panic!("{error:?}") };
        assert_eq!(path, dir.path());
        assert_eq!(*needed_bytes, Some(1_000_000 - done));
        assert!(!cfg!(unix) || free_bytes.is_some());
        assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    }

    #[test]
    fn threads_that_write_one_file_do_not_take_each_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ref.json");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| write_atomically(&path, b"whole").unwrap()));
            }
        });
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn copying_stops_at_the_limit_and_hashes_what_it_wrote() {
        let (mut hasher, mut done, mut out) = (Sha256::new(), 0, Vec::new());
        let result = copy(&mut &b"abcdef"[..], &mut out, 3, &mut hasher, &mut done, &());
        assert!(matches!(result, Err(CopyError::TooLong)));
        assert_eq!((out.as_slice(), done), (&b"abc"[..], 3));
        // FIPS 180-4's own example.
        assert_eq!(
            hex(&hasher.finalize()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let (mut hasher, mut done, mut out) = (Sha256::new(), 0, Vec::new());
        assert!(copy(&mut &b"abc"[..], &mut out, 3, &mut hasher, &mut done, &()).is_ok());
        assert_eq!(done, 3);
    }

    #[test]
    fn space_is_checked_beforehand() {
        let dir = tempfile::tempdir().unwrap();
        ensure_space(dir.path(), 1).unwrap();
        if cfg!(unix) {
            let error = ensure_space(dir.path(), u64::MAX).unwrap_err();
            assert!(matches!(error, HubError::DiskFull { free_bytes: Some(_), .. }), "{error:?}");
        }
    }

    #[test]
    fn small_files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        remove_all(&path).unwrap();
        remove_all(&path).unwrap();
    }
}
