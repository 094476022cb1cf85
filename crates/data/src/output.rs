//! Files that are written whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{DataError, Result};

/// A file on its way: under another name in the same folder until [`finish`](Self::finish).
#[derive(Debug)]
pub struct Output {
    writer: BufWriter<NamedTempFile>,
    path: PathBuf,
    replace: bool,
}

impl Output {
    /// Begins a file. Without `replace` it must not be there.
    ///
    /// # Errors
    /// It is there; it cannot be made.
    pub fn create(path: &Path, replace: bool) -> Result<Self> {
        if !replace && path.symlink_metadata().is_ok() {
            return Err(DataError::OutputExists(path.to_owned()));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".wardrobe-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // As files are made elsewhere: what the user's mask leaves.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder(path)).map_err(|source| DataError::io(path, source))?;
        Ok(Self { writer: BufWriter::with_capacity(1 << 16, file), path: path.to_owned(), replace })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|source| DataError::io(&self.path, source))
    }

    /// Appends a record, with the end of its line if it has none.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn write_record(&mut self, raw: &[u8]) -> Result<()> {
        self.write(raw)?;
        if raw.ends_with(b"\n") { Ok(()) } else { self.write(b"\n") }
    }

    /// Puts everything on disk and gives the file its name.
    ///
    /// # Errors
    /// [`DataError::Io`]; that the file was made by someone else meanwhile.
    pub fn finish(self) -> Result<()> {
        let Self { writer, path, replace } = self;
        let io = |source| DataError::io(&path, source);
        let file = writer.into_inner().map_err(|error| io(error.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        let named = if replace { file.persist(&path) } else { file.persist_noclobber(&path) };
        match named {
            Ok(_) => {}
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(DataError::OutputExists(path));
            }
            Err(error) => return Err(io(error.error)),
        }
        #[cfg(unix)]
        File::open(folder(&path)).and_then(|folder| folder.sync_all()).map_err(io)?;
        Ok(())
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
