//! Server-sent events, as far as a benchmark needs them (HTML standard, section 9.2.6): the data of each event.

use std::io::{self, BufRead, Read as _};

/// No event of a token stream is longer; a server that sends more is not believed.
const MAX_LINE_BYTES: u64 = 8 << 20;

/// Yields the data of each event.
#[derive(Debug)]
pub(super) struct SseEvents<R> {
    reader: R,
}

impl<R: BufRead> SseEvents<R> {
    /// Events from `reader`.
    pub(super) fn new(reader: R) -> Self {
        SseEvents { reader }
    }

    /// The next event's data, lines joined by newlines; `None` at the end.
    pub(super) fn next_data(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            let mut line = Vec::new();
            let read = self.reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            if read as u64 == MAX_LINE_BYTES {
                return Err(io::Error::other("an event is too long"));
            }
            if read == 0 {
                // An event that no empty line ends does not count.
                return Ok(None);
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                if data.is_some() {
                    return Ok(data);
                }
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut data {
                    Some(data) if (data.len() + value.len()) as u64 > MAX_LINE_BYTES => {
                        return Err(io::Error::other("an event is too long"));
                    }
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        let mut events = SseEvents::new(text.as_bytes());
        std::iter::from_fn(|| events.next_data().unwrap()).collect()
    }

    #[test]
    fn data_lines_comments_and_line_ends() {
        assert_eq!(all("data: a\n\ndata:b\n\n"), ["a", "b"]);
        assert_eq!(all(": ping\n\nevent: x\ndata: a\r\ndata:  b\r\n\r\n"), ["a\n b"]);
        assert_eq!(all("data: a\n\ndata: cut off"), ["a"]);
        assert_eq!(all(""), Vec::<String>::new());
    }

    #[test]
    fn endless_lines_and_events_are_refused() {
        let line = [b'x'; 1024];
        let endless = std::iter::repeat_n(&line[..], 9 << 10).collect::<Vec<_>>().concat();
        assert!(SseEvents::new(&endless[..]).next_data().is_err());
        let lines = "data: 0123456789\n".repeat(1 << 20);
        assert!(SseEvents::new(lines.as_bytes()).next_data().is_err());
    }
}
