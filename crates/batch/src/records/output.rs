//! The output: a file of lines that is only ever added to, and repaired when it is opened.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use super::Observer;
use super::error::{RecordsError, Result};
use super::terms::{Terms, beside, sync_parent};

/// No line is longer.
const MAX_LINE_BYTES: u64 = 64 << 20;
/// Lines after which the file is synced at the latest.
const SYNC_LINES: u64 = 1000;
/// Time after which it is.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);
/// Where lines are while failed records are asked again.
const BEFORE: &str = ".before";

/// What to do with an output that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Go on after its last line.
    Resume,
    /// Go on, and ask the records again whose lines are failures. One that was begun this way goes on so.
    RetryFailures,
    /// Begin anew.
    Restart,
}

/// An output that is open, and locked against others.
#[derive(Debug)]
pub struct Output {
    pub(super) file: File,
    path: PathBuf,
    num_lines: u64,
    num_bytes: u64,
    unsynced_lines: u64,
    synced_at: Instant,
    /// Lines of before, while failed records are asked again.
    earlier: Option<Lines>,
}

impl Output {
    /// Opens or makes an output. What a kill has left of a last line is cut off; the lines that are there are handed to
    /// `observer`.
    ///
    /// # Errors
    /// Its folder is not there, another process has it, it was begun on other terms or by something else, a line of it is
    /// no line of such a run, or the file system refuses.
    pub fn open(path: &Path, terms: &Terms, start: Start, observer: &mut dyn Observer) -> Result<Self> {
        Self::open_for(path, path, terms, start, observer)
    }

    /// The same for an output from which another file, `named`, is made: that one's name is the one that the terms have.
    ///
    /// # Errors
    /// As for [`Output::open`].
    pub fn open_for(
        path: &Path,
        named: &Path,
        terms: &Terms,
        start: Start,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        // What a link leads to is the output, so that it is what is renamed, and what lies beside it.
        let (target, named_target) = (behind_link(path), behind_link(named));
        let path = target.as_deref().unwrap_or(path);
        let named = named_target.as_deref().unwrap_or(named);
        let mut output = Self::locked(path)?;
        let before = beside(path, BEFORE);
        if start == Start::Restart {
            output.truncate(0)?;
            remove(&before)?;
        }
        let is_begun = output.num_bytes > 0 || before.exists();
        match is_begun {
            true => terms.check(path, named)?,
            false => terms.write(named)?,
        }
        if start == Start::RetryFailures && output.num_bytes > 0 && !before.exists() {
            output.cut_half_line(&mut Silent)?;
            fs::rename(path, &before).map_err(|error| RecordsError::io(&before, error))?;
            sync_parent(path)?;
            // The old handle keeps its lock until the new one has its own.
            output = Self::locked(path)?;
        }
        output.cut_half_line(observer)?;
        if before.exists() {
            let mut earlier = Lines::open(&before)?;
            for _ in 0..output.num_lines {
                earlier.next_line()?;
            }
            output.earlier = Some(earlier);
        }
        Ok(output)
    }

    /// Whether there is anything of an output at `path`.
    pub fn is_begun(path: &Path) -> bool {
        path.exists() || beside(path, BEFORE).exists()
    }

    fn locked(path: &Path) -> Result<Self> {
        let io = |error: io::Error| RecordsError::io(path, error);
        let mut options = File::options();
        let file = match options.read(true).write(true).create(true).truncate(false).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RecordsError::NoFolder { path: path.to_owned() });
            }
            other => other.map_err(io)?,
        };
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(io(io::Error::other("is no regular file")));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RecordsError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        // Whoever had the lock may have put another file in its place meanwhile.
        if !is_same_file(&file, path).map_err(io)? {
            return Err(RecordsError::InUse { path: path.to_owned() });
        }
        Ok(Self {
            num_bytes: file.metadata().map_err(io)?.len(),
            file,
            path: path.to_owned(),
            num_lines: 0,
            unsynced_lines: 0,
            synced_at: Instant::now(),
            earlier: None,
        })
    }

    /// Counts the whole lines and removes what follows them.
    fn cut_half_line(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let mut lines = Lines::open(&self.path)?;
        let mut good_bytes = 0;
        let mut num_lines = 0;
        loop {
            let at = num_lines + 1;
            let damaged =
                |reason: String| RecordsError::Damaged { path: self.path.clone(), number: at, reason };
            let is_whole = match lines.next_line()? {
                Next::End | Next::Half => break,
                Next::TooLong => return Err(damaged(format!("is longer than {MAX_LINE_BYTES} bytes"))),
                Next::Whole(line) => match std::str::from_utf8(line) {
                    Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => {
                        observer.line(num_lines, text).map_err(damaged)?;
                        true
                    }
                    // Where the power went, blocks that never reached the disk read as zeros.
                    _ if line.contains(&0) => break,
                    _ => false,
                },
            };
            if !is_whole {
                match lines.is_at_end()? {
                    true => break,
                    false => return Err(damaged("is no JSON".to_owned())),
                }
            }
            num_lines += 1;
            good_bytes = lines.num_bytes;
        }
        self.num_lines = num_lines;
        self.truncate(good_bytes)
    }

    fn truncate(&mut self, num_bytes: u64) -> Result<()> {
        let cut = || {
            if self.num_bytes != num_bytes {
                self.file.set_len(num_bytes)?;
                self.file.sync_data()?;
            }
            (&self.file).seek(SeekFrom::Start(num_bytes))
        };
        cut().map_err(|error| RecordsError::io(&self.path, error))?;
        self.num_bytes = num_bytes;
        Ok(())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lines that it has: so many records are done.
    pub fn num_lines(&self) -> u64 {
        self.num_lines
    }

    /// Whether lines of before are left whose failures are asked again.
    pub fn is_retrying(&self) -> bool {
        self.earlier.is_some()
    }

    /// The line of the next record from before, if it is there.
    pub(super) fn earlier_line(&mut self) -> Result<Option<String>> {
        let Some(lines) = &mut self.earlier else { return Ok(None) };
        match lines.next_line()? {
            Next::Whole(line) => Ok(String::from_utf8(line.to_vec()).ok()),
            Next::End | Next::Half | Next::TooLong => Ok(None),
        }
    }

    /// Adds whole lines, each with its end.
    pub(super) fn append(&mut self, lines: &[u8], num_lines: u64) -> Result<()> {
        if let Err(error) = self.file.write_all(lines) {
            // What was written of them is no whole line. If this fails too, it is cut off when it is opened again.
            let _ = self.file.set_len(self.num_bytes);
            return Err(RecordsError::io(&self.path, error));
        }
        self.num_bytes += lines.len() as u64;
        self.num_lines += num_lines;
        self.unsynced_lines += num_lines;
        if self.unsynced_lines >= SYNC_LINES || self.synced_at.elapsed() >= SYNC_INTERVAL {
            self.sync()?;
        }
        Ok(())
    }

    /// Makes what was added last.
    pub(super) fn sync(&mut self) -> Result<()> {
        if self.unsynced_lines > 0 {
            self.file.sync_data().map_err(|error| RecordsError::io(&self.path, error))?;
            self.unsynced_lines = 0;
        }
        self.synced_at = Instant::now();
        Ok(())
    }

    /// All records are done: lines of before are no longer needed.
    pub(super) fn complete(&mut self) -> Result<()> {
        self.sync()?;
        let Some(lines) = &mut self.earlier else { return Ok(()) };
        // Fewer records than before were asked for: the lines of the others stay for the next time.
        if lines.is_at_end()? {
            self.earlier = None;
            remove(&beside(&self.path, BEFORE))?;
        }
        Ok(())
    }
}

/// What a link leads to.
fn behind_link(path: &Path) -> Option<PathBuf> {
    path.is_symlink().then(|| path.canonicalize().ok()).flatten()
}

#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let (ours, named) = (file.metadata()?, fs::metadata(path)?);
    Ok((ours.dev(), ours.ino()) == (named.dev(), named.ino()))
}

#[cfg(not(unix))]
fn is_same_file(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RecordsError::io(path, error)),
        _ => Ok(()),
    }
}

/// Takes any line.
struct Silent;

impl Observer for Silent {
    fn line(&mut self, _idx: u64, _line: &str) -> std::result::Result<(), String> {
        Ok(())
    }

    fn is_failure(&self, _line: &str) -> bool {
        false
    }
}

/// Reads a file line by line.
#[derive(Debug)]
struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    line: Vec<u8>,
    /// Bytes that were read.
    num_bytes: u64,
}

/// What was read; a line comes without its end.
enum Next<'a> {
    Whole(&'a [u8]),
    Half,
    TooLong,
    End,
}

impl Lines {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| RecordsError::io(path, error))?;
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(Self { reader, path: path.to_owned(), line: Vec::new(), num_bytes: 0 })
    }

    fn next_line(&mut self) -> Result<Next<'_>> {
        self.line.clear();
        let mut limited = (&mut self.reader).take(MAX_LINE_BYTES + 1);
        let read = limited.read_until(b'\n', &mut self.line);
        let read = read.map_err(|error| RecordsError::io(&self.path, error))? as u64;
        self.num_bytes += read;
        Ok(match self.line.strip_suffix(b"\n") {
            Some(line) => Next::Whole(line),
            None if read == 0 => Next::End,
            None if read > MAX_LINE_BYTES => Next::TooLong,
            None => Next::Half,
        })
    }

    fn is_at_end(&mut self) -> Result<bool> {
        let left = self.reader.fill_buf().map_err(|error| RecordsError::io(&self.path, error))?;
        Ok(left.is_empty())
    }
}
