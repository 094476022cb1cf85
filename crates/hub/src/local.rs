//! Models that are on this machine already.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::error::HubError;

/// The first bytes of every GGUF file (GGUF specification).
const GGUF_MAGIC: [u8; 4] = *b"GGUF";

/// Looks whether `path` can be a model, and returns it as it is: a readable `.gguf` file that begins as one, or a folder
/// with `config.json` (a model), `adapter_config.json` (an adapter) or a `.gguf` file. What the files hold is for the
/// loader to judge.
pub(crate) fn check(path: &Path) -> Result<PathBuf, HubError> {
    let not_a_model =
        |reason: &str| HubError::NotAModel { path: path.to_path_buf(), reason: reason.to_owned() };
    let meta = fs::metadata(path).map_err(|e| disk::io_error("open", path, None, e))?;
    if meta.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| disk::io_error("read the folder", path, None, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| disk::io_error("read the folder", path, None, e))?;
            let name = entry.file_name();
            if name == "config.json" || name == "adapter_config.json" || is_gguf_name(Path::new(&name)) {
                return Ok(path.to_path_buf());
            }
        }
        return Err(not_a_model("the folder holds no config.json, no adapter_config.json and no .gguf file"));
    }
    if !meta.is_file() || !is_gguf_name(path) {
        return Err(not_a_model("it is neither a folder nor a .gguf file"));
    }
    check_gguf_magic(path)?;
    Ok(path.to_path_buf())
}

/// Whether the file begins as a GGUF file does.
pub(crate) fn check_gguf_magic(path: &Path) -> Result<(), HubError> {
    let mut magic = [0u8; 4];
    let mut file = File::open(path).map_err(|e| disk::io_error("open", path, None, e))?;
    match file.read_exact(&mut magic) {
        Ok(()) if magic == GGUF_MAGIC => Ok(()),
        Ok(()) => Err(HubError::NotAModel {
            path: path.to_path_buf(),
            reason: "it does not begin with GGUF".to_owned(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(HubError::NotAModel {
            path: path.to_path_buf(),
            reason: "it has fewer than 4 bytes".to_owned(),
        }),
        Err(error) => Err(disk::io_error("read", path, None, error)),
    }
}

fn is_gguf_name(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_returned_as_it_is_or_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let refused = |path: &Path| check(path).unwrap_err().full_message();
        assert!(refused(dir.path()).contains("no config.json"));
        fs::write(path("a.gguf"), b"GGUF\x03\0\0\0").unwrap();
        assert_eq!(check(&path("a.gguf")).unwrap(), path("a.gguf"));
        assert_eq!(check(dir.path()).unwrap(), dir.path());
        fs::write(path("short.gguf"), b"GG").unwrap();
        assert!(refused(&path("short.gguf")).contains("fewer than 4 bytes"));
        fs::write(path("page.GGUF"), b"<html>").unwrap();
        assert!(refused(&path("page.GGUF")).contains("does not begin with GGUF"));
        fs::write(path("a.bin"), b"GGUF").unwrap();
        assert!(refused(&path("a.bin")).contains("neither a folder nor a .gguf file"));
        let missing = refused(&path("missing.gguf"));
        assert!(missing.contains("missing.gguf") && missing.contains("cannot open"), "{missing}");
    }
}
