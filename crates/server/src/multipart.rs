//! `multipart/form-data` (RFC 7578), read as it arrives.
//!
//! State: at most one frame of the body and a delimiter. A part's data is given out in pieces, so that a file of any size
//! takes no memory; headers and the values of fields have limits.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::error::{ApiError, Result};

const MAX_BOUNDARY_BYTES: usize = 70;
const MAX_HEADER_BYTES: usize = 8 << 10;
const MAX_FIELD_BYTES: usize = 64 << 10;
/// Parts in one body.
const MAX_PARTS: usize = 64;

/// What a part says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartHeader {
    pub name: String,
    /// Set for files.
    pub file_name: Option<String>,
}

/// A body that is being read.
pub(crate) struct Multipart {
    body: Body,
    /// Longest wait for more of it.
    patience: Duration,
    buffer: BytesMut,
    /// CR LF, two hyphens, and the boundary.
    delimiter: Vec<u8>,
    parts: usize,
    in_part: bool,
    ended: bool,
}

fn malformed(reason: &str) -> ApiError {
    ApiError::bad_request(format!("the request body is not valid multipart/form-data: {reason}"))
}

/// The next bytes of a body that has to keep coming.
pub(crate) async fn next_frame(body: &mut Body, patience: Duration) -> Result<Option<Bytes>> {
    loop {
        let Ok(frame) = tokio::time::timeout(patience, body.frame()).await else {
            let message = "the request body did not arrive in time";
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout_error", message));
        };
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(ApiError::bad_request("the request body could not be read")),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                _ => {}
            },
        }
    }
}

impl Multipart {
    /// Reads the boundary from the headers.
    pub fn new(headers: &HeaderMap, body: Body, patience: Duration) -> Result<Self> {
        let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
        if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
            let message = "the request body must be sent with `Content-Type: multipart/form-data`";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message));
        }
        let boundary = parameter(parameters, "boundary").unwrap_or_default();
        if boundary.is_empty() || boundary.len() > MAX_BOUNDARY_BYTES || !boundary.is_ascii() {
            return Err(malformed("its content type has no usable boundary"));
        }
        Ok(Self {
            body,
            patience,
            // The first delimiter has no line before it.
            buffer: BytesMut::from(&b"\r\n"[..]),
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            parts: 0,
            in_part: true,
            ended: false,
        })
    }

    async fn more(&mut self) -> Result<()> {
        match next_frame(&mut self.body, self.patience).await? {
            Some(data) => {
                self.buffer.extend_from_slice(&data);
                Ok(())
            }
            None => Err(malformed("it ends before its last boundary")),
        }
    }

    /// Goes to the next part; what is left of the current one is skipped.
    pub async fn next_part(&mut self) -> Result<Option<PartHeader>> {
        while self.chunk().await?.is_some() {}
        if self.ended {
            return Ok(None);
        }
        while self.buffer.len() < 2 {
            self.more().await?;
        }
        if self.buffer.starts_with(b"--") {
            self.ended = true;
            return Ok(None);
        }
        self.parts += 1;
        if self.parts > MAX_PARTS {
            return Err(malformed("it has too many parts"));
        }
        // Blanks after the delimiter, the end of its line, headers, and an empty line.
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if self.buffer.len() > MAX_HEADER_BYTES {
                return Err(malformed("a part's header is too long"));
            }
            self.more().await?;
        };
        if end > MAX_HEADER_BYTES {
            return Err(malformed("a part's header is too long"));
        }
        let head = self.buffer.split_to(end);
        self.buffer.advance(4);
        // Data that is empty begins with the delimiter's own line end.
        self.in_part = true;
        let head = std::str::from_utf8(&head).map_err(|_| malformed("a part's header is not UTF-8"))?;
        let mut lines = head.split("\r\n");
        if !lines.next().unwrap_or("").trim().is_empty() {
            return Err(malformed("a boundary is followed by something else"));
        }
        part_header(lines)
    }

    /// The next piece of the current part's data; `None` at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        if !self.in_part {
            return Ok(None);
        }
        loop {
            if let Some(at) = find(&self.buffer, &self.delimiter) {
                if at > 0 {
                    return Ok(Some(self.buffer.split_to(at).freeze()));
                }
                self.buffer.advance(self.delimiter.len());
                self.in_part = false;
                return Ok(None);
            }
            // The end may be the start of the delimiter.
            let safe = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
            if safe > 0 {
                return Ok(Some(self.buffer.split_to(safe).freeze()));
            }
            self.more().await?;
        }
    }

    /// The value of a field.
    pub async fn text(&mut self, name: &str) -> Result<String> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if bytes.len() + chunk.len() > MAX_FIELD_BYTES {
                return Err(ApiError::invalid(name, "is too long"));
            }
            bytes.extend_from_slice(&chunk);
        }
        String::from_utf8(bytes).map_err(|_| ApiError::invalid(name, "is not UTF-8"))
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let rest = haystack.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// The name and file name of a part.
fn part_header<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Option<PartHeader>> {
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if !name.trim().eq_ignore_ascii_case("content-disposition") {
            continue;
        }
        let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
        if !kind.trim().eq_ignore_ascii_case("form-data") {
            return Err(malformed("a part is no form data"));
        }
        let name = parameter(parameters, "name").ok_or_else(|| malformed("a part has no name"))?;
        return Ok(Some(PartHeader { name, file_name: parameter(parameters, "filename") }));
    }
    Err(malformed("a part has no Content-Disposition"))
}

/// A parameter of a header's value, which may be quoted. Clients write quotes in names as `%22` or `\"`.
fn parameter(mut text: &str, wanted: &str) -> Option<String> {
    loop {
        let (name, rest) = text.split_once('=')?;
        let name = name.trim_matches([' ', '\t', ';']);
        let rest = rest.trim_start();
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted)?,
            None => {
                let (value, after) = rest.split_once(';').unwrap_or((rest, ""));
                (value.trim().to_owned(), after)
            }
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        text = after;
    }
}

/// The text up to the closing quote, and what follows it.
fn quoted_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value.replace("%22", "\""), text.get(at + 1..)?)),
            // Only a quote or a backslash is escaped: others are part of a name of Windows.
            '\\' => match text.get(at + 1..)?.chars().next()? {
                next @ ('"' | '\\') => {
                    value.push(next);
                    chars.next();
                }
                _ => value.push(c),
            },
            _ => value.push(c),
        }
    }
    None
}

#[cfg(test)]
#[path = "multipart_tests.rs"]
mod tests;
