//! A folder as a `.tar.gz`, the form in which adapters are given out.
//!
//! The format is POSIX.1-1988's ustar: regular files only, in the order of their names, without owners and times, so that
//! the same folder gives the same bytes. Links are not followed and not written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

const BLOCK_BYTES: usize = 512;
/// Folders below folders.
const MAX_DEPTH: usize = 8;

/// Writes the folder into `out`, compressed; gives `out` back.
pub(crate) fn write_tar_gz<W: Write>(folder: &Path, out: W) -> io::Result<W> {
    // Weights hardly get smaller, whatever one tries.
    let mut gzip = GzEncoder::new(out, Compression::fast());
    write_folder(&mut gzip, folder, "", 0)?;
    gzip.write_all(&[0; 2 * BLOCK_BYTES])?;
    gzip.finish()
}

fn write_folder(out: &mut impl Write, folder: &Path, prefix: &str, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the folder is too deep"));
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        names.push(name.into_string().map_err(|_| io::Error::other("a file's name is not UTF-8"))?);
    }
    names.sort();
    for name in names {
        let path = folder.join(&name);
        let kind = fs::symlink_metadata(&path)?.file_type();
        let shown = format!("{prefix}{name}");
        if kind.is_dir() {
            write_folder(out, &path, &format!("{shown}/"), depth + 1)?;
        } else if kind.is_file() {
            write_file(out, &path, &shown)?;
        }
    }
    Ok(())
}

fn write_file(out: &mut impl Write, path: &Path, name: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    out.write_all(&header(name, size_bytes)?)?;
    let copied = io::copy(&mut file.take(size_bytes), out)?;
    if copied != size_bytes {
        return Err(io::Error::other("a file became shorter while it was read"));
    }
    let rest = usize::try_from(size_bytes % BLOCK_BYTES as u64).unwrap_or(0);
    let padding = (BLOCK_BYTES - rest) % BLOCK_BYTES;
    out.write_all(&vec![0; padding])
}

/// The header of a file: fields of fixed width, numbers in octal digits.
fn header(name: &str, size_bytes: u64) -> io::Result<[u8; BLOCK_BYTES]> {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, len: usize, bytes: &[u8]| -> io::Result<()> {
        let field = block.get_mut(at..at + len).and_then(|field| field.get_mut(..bytes.len()));
        let field = field.ok_or_else(|| io::Error::other("a name or size does not fit into the archive"))?;
        field.copy_from_slice(bytes);
        Ok(())
    };
    put(0, 100, name.as_bytes())?;
    put(100, 7, b"0000644")?;
    put(108, 7, b"0000000")?;
    put(116, 7, b"0000000")?;
    put(124, 11, format!("{size_bytes:011o}").as_bytes())?;
    put(136, 11, b"00000000000")?;
    put(156, 1, b"0")?;
    put(257, 8, b"ustar\x0000")?;
    // The checksum is over the header with blanks in its place.
    put(148, 8, b"        ")?;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(field) = block.get_mut(148..156) {
        field.copy_from_slice(sum.as_bytes());
    }
    Ok(block)
}
