//! Lines of bounded length, counted from 1, with their ends.

use std::io::{self, BufRead, Read};

use super::BOM;

/// Reads a file line by line.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: u64,
    max_bytes: usize,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// A whole line; the last one may lack its end.
    Whole,
    /// A line over the limit, which was skipped.
    TooLong,
    /// There are no more.
    End,
}

impl<R: BufRead> Lines<R> {
    pub fn new(reader: R, max_bytes: usize) -> Self {
        Self { reader, number: 0, max_bytes }
    }

    /// The number of the line that was read last.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The longest line, in bytes.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Appends the next line to `buffer`, as long as that stays within the limit.
    pub fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<Line> {
        let start = buffer.len();
        let room = self.max_bytes.saturating_sub(start);
        let limit = u64::try_from(room).unwrap_or(u64::MAX).saturating_add(1);
        let read = (&mut self.reader).take(limit).read_until(b'\n', buffer)?;
        if read == 0 {
            return Ok(Line::End);
        }
        self.number += 1;
        if self.number == 1 && buffer.get(start..).is_some_and(|line| line.starts_with(BOM)) {
            buffer.drain(start..start + BOM.len());
        }
        if read <= room {
            return Ok(Line::Whole);
        }
        let mut ended = buffer.last() == Some(&b'\n');
        buffer.truncate(start);
        let mut skipped = Vec::new();
        while !ended {
            skipped.clear();
            let read = (&mut self.reader).take(1 << 16).read_until(b'\n', &mut skipped)?;
            ended = read == 0 || skipped.last() == Some(&b'\n');
        }
        Ok(Line::TooLong)
    }
}

/// A line without its end.
pub fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A line as text.
///
/// # Errors
/// Which byte is none.
pub fn text(line: &[u8]) -> Result<&str, String> {
    if let Some(idx) = line.iter().position(|byte| *byte == 0) {
        return Err(format!("has a NUL byte at byte {}", idx + 1));
    }
    std::str::from_utf8(line).map_err(|error| format!("is not UTF-8 at byte {}", error.valid_up_to() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], max_bytes: usize) -> Vec<(Line, u64, Vec<u8>)> {
        let mut lines = Lines::new(bytes, max_bytes);
        let mut all = Vec::new();
        loop {
            let mut line = Vec::new();
            match lines.read(&mut line).unwrap() {
                Line::End => return all,
                kind => all.push((kind, lines.number(), line)),
            }
        }
    }

    #[test]
    fn long_lines_are_skipped_and_counted() {
        let whole = |number, line: &[u8]| (Line::Whole, number, line.to_vec());
        assert_eq!(
            read(b"\xef\xbb\xbfa\n12345\nab\r\n\nx", 5),
            [
                whole(1, b"a\n"),
                (Line::TooLong, 2, Vec::new()),
                whole(3, b"ab\r\n"),
                whole(4, b"\n"),
                whole(5, b"x")
            ]
        );
        let long = [b"a\n".to_vec(), vec![b'x'; 200_000], b"\nb".to_vec()].concat();
        assert_eq!(read(&long, 10), [whole(1, b"a\n"), (Line::TooLong, 2, Vec::new()), whole(3, b"b")]);
    }

    #[test]
    fn ends_and_bytes() {
        assert_eq!(without_end(b"a\r\n"), b"a");
        assert_eq!(without_end(b"a\n"), b"a");
        assert_eq!(without_end(b"a"), b"a");
        assert_eq!(text("é".as_bytes()), Ok("é"));
        assert_eq!(text(b"ab\xff").unwrap_err(), "is not UTF-8 at byte 3");
        assert_eq!(text(b"a\0b").unwrap_err(), "has a NUL byte at byte 2");
    }
}
