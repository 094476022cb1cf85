//! One file from the hub to the staging folder: resumed, bounded, checked.
//!
//! A file is written as `NAME.part`, flushed, compared with the expected size and SHA-256, and then renamed to `NAME`.
//! Addresses name a commit, so what a file holds never changes between two requests.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use ureq::http::header::{self, HeaderMap};

use super::client::{Answer, Backoff, Failure, HubClient, Retry, header_number, transport};
use crate::disk::{self, CopyError};
use crate::error::HubError;
use crate::manifest::FileRecord;
use crate::names::{hex, is_hex};
use crate::progress::Progress;

/// A connection that brought this much was worth it: failures are counted anew.
const PROGRESS_BYTES: u64 = 64 * 1024;

/// A file to fetch.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) path: String,
    pub(super) bytes: Option<u64>,
    /// Lower-case hex.
    pub(super) sha256: Option<String>,
    /// More is refused, whatever the server says.
    pub(super) limit_bytes: u64,
}

/// Fetches a file into `folder`, going on where an earlier pull was cut off.
pub(super) fn fetch(
    client: &HubClient,
    job: &Job,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<FileRecord, HubError> {
    let target = folder.join(&job.path);
    if let Some(parent) = target.parent() {
        disk::create_dir(parent)?;
    }
    if let Some(record) = complete_already(job, &target)? {
        progress.advanced(record.bytes);
        return Ok(record);
    }
    progress.message(&format!("fetching {}", job.path));
    let mut part = Part::open(job, &target)?;
    progress.advanced(part.bytes);
    let resumed = part.bytes > 0;
    match download(client, job, &mut part, progress) {
        // What an earlier pull left may have been damaged since (a disk that lost power): once more from the start.
        Err(HubError::WrongChecksum { .. } | HubError::WrongSize { .. }) if resumed => {
            progress.message(&format!("what was left of {} is damaged; fetching all of it", job.path));
            part.clear(progress)?;
            download(client, job, &mut part, progress)
        }
        result => result,
    }
    .inspect_err(|error| {
        if matches!(error, HubError::WrongChecksum { .. } | HubError::WrongSize { .. }) {
            // The error that matters is the one being returned.
            let _ = fs::remove_file(&part.path);
        }
    })?;
    part.finish(job, &target)
}

/// The record of `target` if an earlier pull completed it.
fn complete_already(job: &Job, target: &Path) -> Result<Option<FileRecord>, HubError> {
    let Some(expected) = job.bytes else { return Ok(None) };
    if !fs::metadata(target).is_ok_and(|meta| meta.is_file() && meta.len() == expected) {
        return Ok(None);
    }
    let (hasher, bytes) = disk::hash_file(target, expected)?;
    let sha256 = hex(&hasher.finalize());
    let right = bytes == expected && job.sha256.as_ref().is_none_or(|expected| *expected == sha256);
    Ok(right.then(|| FileRecord { path: job.path.clone(), bytes, sha256 }))
}

/// A file at work.
struct Part {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    bytes: u64,
}

impl Part {
    fn open(job: &Job, target: &Path) -> Result<Self, HubError> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = target.with_file_name(name);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(&path)
            .map_err(|e| disk::io_error("create", &path, job.bytes, e))?;
        let length = file.metadata().map_err(|e| disk::io_error("read", &path, None, e))?.len();
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        // Without a checksum nothing would tell whether what lies there is right.
        if job.sha256.is_some() && length > 0 && job.bytes.is_some_and(|expected| length <= expected) {
            (hasher, bytes) = disk::hash_file(&path, length)?;
        }
        file.set_len(bytes).map_err(|e| disk::io_error("shorten", &path, None, e))?;
        file.seek(SeekFrom::Start(bytes)).map_err(|e| disk::io_error("write", &path, None, e))?;
        Ok(Self { path, file, hasher, bytes })
    }

    /// Back to an empty file.
    fn clear(&mut self, progress: &dyn Progress) -> Result<(), HubError> {
        progress.rewound(self.bytes);
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)).map(|_| ()))
            .map_err(|e| disk::io_error("shorten", &self.path, None, e))?;
        (self.hasher, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }

    fn finish(self, job: &Job, target: &Path) -> Result<FileRecord, HubError> {
        self.file.sync_all().map_err(|e| disk::io_error("flush", &self.path, None, e))?;
        drop(self.file);
        disk::rename(&self.path, target)?;
        Ok(FileRecord { path: job.path.clone(), bytes: self.bytes, sha256: hex(&self.hasher.finalize()) })
    }
}

/// Brings the rest of the file and checks the whole.
fn download(client: &HubClient, job: &Job, part: &mut Part, progress: &dyn Progress) -> Result<(), HubError> {
    let mut backoff = Backoff::new(client.retry());
    let mut expected = Expected { bytes: job.bytes, sha256: job.sha256.clone() };
    while !(expected.bytes == Some(part.bytes) && (part.bytes > 0 || job.bytes == Some(0))) {
        let before = part.bytes;
        match attempt(client, job, part, &mut expected, progress) {
            Ok(()) => break,
            Err(failure) if failure.retry == Retry::Never => return Err(failure.error),
            Err(failure) => {
                if part.bytes.saturating_sub(before) >= PROGRESS_BYTES {
                    backoff.reset();
                }
                backoff.wait(failure, progress)?;
            }
        }
    }
    if let Some(expected_bytes) = expected.bytes
        && expected_bytes != part.bytes
    {
        return Err(HubError::WrongSize { what: job.path.clone(), expected_bytes, actual_bytes: part.bytes });
    }
    let actual = hex(&part.hasher.clone().finalize());
    match expected.sha256 {
        Some(expected) if expected != actual => {
            Err(HubError::WrongChecksum { what: job.path.clone(), expected, actual })
        }
        _ => Ok(()),
    }
}

/// What the whole file has to be, as far as it is known so far.
struct Expected {
    bytes: Option<u64>,
    sha256: Option<String>,
}

impl Expected {
    /// Takes what a response says; a contradiction is an error.
    fn learn(&mut self, job: &Job, bytes: Option<u64>, sha256: Option<String>) -> Result<(), HubError> {
        match (self.bytes, bytes) {
            (Some(expected_bytes), Some(actual_bytes)) if expected_bytes != actual_bytes => {
                return Err(HubError::WrongSize { what: job.path.clone(), expected_bytes, actual_bytes });
            }
            (None, Some(bytes)) => self.bytes = Some(bytes),
            _ => {}
        }
        match (&self.sha256, sha256) {
            (Some(expected), Some(actual)) if *expected != actual => Err(HubError::WrongChecksum {
                what: format!("{}, as announced by the hub,", job.path),
                expected: expected.clone(),
                actual,
            }),
            (None, Some(sha256)) => {
                self.sha256 = Some(sha256);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// One request, and all the bytes it brings.
fn attempt(
    client: &HubClient,
    job: &Job,
    part: &mut Part,
    expected: &mut Expected,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let from = (part.bytes > 0).then_some(part.bytes);
    let mut answer = client.get(&client.file_url(&job.path), from, None)?;
    let total = match (answer.status, from) {
        (200, _) => {
            // The server sends everything again, whatever was asked for.
            if from.is_some() {
                part.clear(progress)?;
            }
            if answer.headers.contains_key(header::CONTENT_ENCODING) {
                None
            } else {
                header_number(&answer.headers, header::CONTENT_LENGTH.as_str())
            }
        }
        (206, Some(from)) => {
            let unusable =
                |reason: &str| HubError::BadAnswer { url: answer.url.clone(), reason: reason.to_owned() };
            let range = answer.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            let (start, total) = range
                .and_then(content_range)
                .ok_or_else(|| unusable("it sends a part of the file without saying which"))?;
            if start != from {
                return Err(unusable("it sends another part of the file than asked for").into());
            }
            total
        }
        (416, Some(_)) => {
            part.clear(progress)?;
            let error = HubError::WrongSize {
                what: job.path.clone(),
                expected_bytes: expected.bytes.unwrap_or_default(),
                actual_bytes: from.unwrap_or_default(),
            };
            return Err(Failure { error, retry: Retry::Yes });
        }
        _ => return Err(client.refused(&answer, Some(&job.path))),
    };
    check_commit(client, job, &answer)?;
    let announced = header_number(&answer.hub_headers, "x-linked-size");
    expected.learn(job, announced, announced_sha256(&answer.hub_headers))?;
    expected.learn(job, total, None)?;
    if expected.bytes.is_some_and(|bytes| bytes > job.limit_bytes) {
        return Err(HubError::TooLarge { what: job.path.clone(), limit_bytes: job.limit_bytes }.into());
    }
    let left = expected.bytes.unwrap_or(job.limit_bytes).saturating_sub(part.bytes);
    if expected.bytes.is_some() && job.bytes.is_none() {
        disk::ensure_space(part.path.parent().unwrap_or(&part.path), left)?;
    }
    let mut reader = answer.body.as_reader();
    let result = disk::copy(&mut reader, &mut part.file, left, &mut part.hasher, &mut part.bytes, progress);
    match (result, expected.bytes) {
        (Ok(()), Some(bytes)) if part.bytes < bytes => {
            Err(cut_off(job, part.bytes, expected, &answer.url, std::io::ErrorKind::UnexpectedEof.into()))
        }
        (Ok(()), _) => Ok(()),
        (Err(CopyError::TooLong), Some(expected_bytes)) => {
            let actual_bytes = expected_bytes.saturating_add(1);
            Err(HubError::WrongSize { what: job.path.clone(), expected_bytes, actual_bytes }.into())
        }
        (Err(CopyError::TooLong), None) => {
            Err(HubError::TooLarge { what: job.path.clone(), limit_bytes: job.limit_bytes }.into())
        }
        (Err(CopyError::Cancelled), _) => Err(HubError::Cancelled.into()),
        (Err(CopyError::Read(error)), _) => Err(cut_off(job, part.bytes, expected, &answer.url, error)),
        (Err(CopyError::Write(error)), bytes) => {
            let needed = bytes.map(|bytes| bytes.saturating_sub(part.bytes));
            Err(disk::io_error("write", &part.path, needed, error).into())
        }
    }
}

/// A connection that ended before the file did.
fn cut_off(job: &Job, bytes: u64, expected: &Expected, url: &str, error: std::io::Error) -> Failure {
    let of = expected.bytes.map_or_else(String::new, |total| format!(" of {total}"));
    let text = format!("the connection ended after {bytes}{of} bytes of {}: {error}", job.path);
    transport(url, ureq::Error::Io(std::io::Error::new(error.kind(), text)))
}

/// A file asked for at a commit has to come from it.
fn check_commit(client: &HubClient, job: &Job, answer: &Answer) -> Result<(), HubError> {
    let said = answer.hub_headers.get("x-repo-commit").and_then(|value| value.to_str().ok());
    match said {
        Some(commit)
            if is_hex(commit, 40) && !client.file_url(&job.path).contains(&commit.to_ascii_lowercase()) =>
        {
            Err(HubError::BadAnswer {
                url: answer.url.clone(),
                reason: format!("it comes from commit {commit}, which is not the one asked for"),
            })
        }
        _ => Ok(()),
    }
}

/// The SHA-256 that the hub announces for files in large-file storage; other files have another kind of ETag.
fn announced_sha256(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get("x-linked-etag").or_else(|| headers.get(header::ETAG))?.to_str().ok()?;
    let etag = etag.trim().trim_start_matches("W/").trim_matches('"');
    is_hex(etag, 64).then(|| etag.to_ascii_lowercase())
}

/// First byte and total of `bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse::<u64>().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        for text in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes */10",
            "bytes 9-5/10",
            "bytes 5-10/10",
            "items 5-9/10",
            "bytes -5-9/10",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
