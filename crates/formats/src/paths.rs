//! Names inside a folder that must not lead out of it, and bounded reads of text files.

use std::path::{Component, Path, PathBuf};

use crate::error::{FormatError, Result, shorten};
use crate::source::FileReader;

/// Checks that `name` is relative and has no `..`; `owner` is the file or folder that names it.
pub(crate) fn check_relative(owner: &Path, name: &str) -> Result<()> {
    let escapes = || FormatError::Escapes { path: owner.to_owned(), name: shorten(name) };
    // A backslash separates on Windows only; refusing it everywhere keeps the answer the same on every system.
    if name.is_empty() || name.contains(['\0', '\\', ':']) {
        return Err(escapes());
    }
    if Path::new(name).components().all(|c| matches!(c, Component::Normal(_))) {
        Ok(())
    } else {
        Err(escapes())
    }
}

/// Whether `folder` has an entry `name` (also a link that leads nowhere, so that it is reported and not passed over).
pub(crate) fn exists(folder: &Path, name: &str) -> bool {
    folder.join(name).symlink_metadata().is_ok()
}

/// The path of `name` in `folder`, after following links: it must stay inside the folder.
///
/// One layout with links is accepted: the Hugging Face cache, where `snapshots/<revision>/<file>` links to
/// `blobs/<hash>` of the same repository folder.
pub(crate) fn confined(folder: &Path, name: &str) -> Result<PathBuf> {
    check_relative(folder, name)?;
    let joined = folder.join(name);
    let real = joined.canonicalize().map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            FormatError::NotFound { path: folder.to_owned(), what: shorten(name) }
        } else {
            FormatError::io(&joined, e)
        }
    })?;
    let root = folder.canonicalize().map_err(|e| FormatError::io(folder, e))?;
    if real.starts_with(&root) || hub_blobs(&root).is_some_and(|blobs| real.starts_with(blobs)) {
        return Ok(joined);
    }
    Err(FormatError::Escapes { path: folder.to_owned(), name: shorten(name) })
}

/// `<repo>/blobs` for a root `<repo>/snapshots/<revision>`, if it is a folder and no link itself.
fn hub_blobs(root: &Path) -> Option<PathBuf> {
    let snapshots = root.parent()?;
    if snapshots.file_name()? != "snapshots" {
        return None;
    }
    let blobs = snapshots.parent()?.join("blobs");
    blobs.symlink_metadata().ok()?.is_dir().then_some(blobs)
}

/// The whole of a file of at most `max_bytes`.
pub(crate) fn read_bytes(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = FileReader::open(path)?;
    if file.len() > max_bytes {
        return Err(FormatError::limit(path, "file size in bytes", max_bytes, file.len()));
    }
    let len = usize::try_from(file.len())
        .map_err(|_| FormatError::limit(path, "file size in bytes", max_bytes, file.len()))?;
    file.read_vec(0, len, "file")
}

/// The whole of a UTF-8 file of at most `max_bytes`.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    String::from_utf8(read_bytes(path, max_bytes)?)
        .map_err(|e| FormatError::malformed(path, format!("not UTF-8: {}", e.utf8_error())))
}

/// A JSON object from a file of at most `max_bytes`.
pub(crate) fn read_json_object(
    path: &Path,
    max_bytes: u64,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let text = read_text(path, max_bytes)?;
    parse_json_object(path, &text)
}

/// A JSON object from `text`; `path` is for messages.
pub(crate) fn parse_json_object(
    path: &Path,
    text: &str,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(map)) => Ok(map),
        Ok(_) => Err(FormatError::malformed(path, "not a JSON object")),
        Err(source) => Err(FormatError::Json { path: path.to_owned(), source }),
    }
}
