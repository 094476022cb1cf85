//! Text for people: colours where they are wanted, sizes, durations, tables, and writing that survives a closed pipe.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
pub use wardrobe::deploy::shell_word;

/// Standard output was closed by its reader, as `wardrobe list | head -1` does.
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct ClosedStdout;

/// Writes to standard output at once.
pub fn write_stdout(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClosedStdout.into()),
        result => result.context("cannot write to standard output"),
    }
}

/// Writes one line to standard output.
pub fn line(text: &str) -> anyhow::Result<()> {
    write_stdout(format!("{text}\n").as_bytes())
}

/// Writes one line to standard error. That it cannot be written is nothing that could be told.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colours: bool,
}

impl Style {
    /// For standard output.
    pub fn stdout() -> Self {
        Self { colours: io::stdout().is_terminal() && wanted() }
    }

    /// For standard error.
    pub fn stderr() -> Self {
        Self { colours: io::stderr().is_terminal() && wanted() }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub fn note(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub fn name(self, text: &str) -> String {
        self.paint("36", text)
    }
}

/// `NO_COLOR` (no-color.org) and a terminal that cannot.
fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `512.0 MiB`.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A size as file managers show it: `98.4 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

/// `0.8 ms`, `340 ms`, `2.4 s`, `3 min 20 s`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 90.0 => format!("{s:.1} s"),
        _ => format!("{} min {} s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

/// Tokens a second; `-` where no time has passed.
pub fn rate(tokens: usize, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { format!("{:.1} tok/s", tokens as f64 / seconds) } else { "-".to_owned() }
}

/// Text on one line, of at most `max_chars`.
pub fn one_line(text: &str, max_chars: usize) -> String {
    let mut flat = String::new();
    for word in text.split_whitespace() {
        if !flat.is_empty() {
            flat.push(' ');
        }
        flat.extend(word.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
    }
    if flat.chars().count() <= max_chars {
        return flat;
    }
    let mut short: String = flat.chars().take(max_chars.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Text on one line, of at most `max_chars`, with its middle left out.
pub fn both_ends(text: &str, max_chars: usize) -> String {
    let flat: Vec<char> = one_line(text, usize::MAX).chars().collect();
    if flat.len() <= max_chars {
        return flat.into_iter().collect();
    }
    let half = max_chars.saturating_sub(3) / 2;
    let (start, end) = (flat.iter().take(half), flat.iter().skip(flat.len() - half));
    start.chain(&[' ', '…', ' ']).chain(end).collect()
}

/// Rows in columns as wide as needed, parted by two spaces; the last column is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Whether a person sits at standard error, so that bars may move.
pub fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Writes a file as a whole or not at all: a reader never sees half of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}.part", std::process::id()));
    let unfinished = PathBuf::from(unfinished);
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    });
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(98_362_432), "98.4 MB");
        assert_eq!(size(999_999), "1.0 MB");
        assert_eq!(mib(512 << 20), "512.0 MiB");
        assert_eq!(duration(Duration::from_micros(840)), "0.8 ms");
        assert_eq!(duration(Duration::from_millis(2400)), "2.4 s");
        assert_eq!(duration(Duration::from_secs(200)), "3 min 20 s");
        assert_eq!(rate(10, Duration::ZERO), "-");
    }

    #[test]
    fn long_text_is_cut_to_one_line() {
        assert_eq!(one_line("a\n b\tc", 10), "a b c");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(both_ends("abcdefghij", 7), "ab … ij");
        assert_eq!(both_ends("a\nb", 7), "a b");
        assert_eq!(one_line("esc \x1b[31m", 20), "esc \u{fffd}[31m");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "x".to_owned()], vec!["long".to_owned(), "y".to_owned()]];
        assert_eq!(table(&rows), "a     x\nlong  y\n");
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert!(write_whole(folder.path(), b"three").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
