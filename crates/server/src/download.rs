//! Files as answers: whole, or the range that was asked for (RFC 9110, section 14), read as the client takes them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;

use crate::error::{ApiError, Result};

const PIECE_BYTES: u64 = 256 << 10;

/// The part of a file that was asked for, as its first byte and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range(u64, u64),
    /// It lies behind the file's end.
    Outside,
}

/// Reads a `Range` with one range of bytes. Anything else means the whole file, as the standard allows.
fn part(headers: &HeaderMap, size_bytes: u64) -> Part {
    let value = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some(range) = value.and_then(|value| value.strip_prefix("bytes=")) else { return Part::Whole };
    let Some((first, last)) = range.split_once('-') else { return Part::Whole };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Part::Outside,
            Ok(len) if size_bytes > 0 => Part::Range(size_bytes.saturating_sub(len), len.min(size_bytes)),
            Ok(_) => Part::Outside,
            Err(_) => Part::Whole,
        };
    }
    let Ok(first) = first.parse::<u64>() else { return Part::Whole };
    let last = match last {
        "" => u64::MAX,
        last => match last.parse::<u64>() {
            Ok(last) if last >= first => last,
            _ => return Part::Whole,
        },
    };
    if first >= size_bytes {
        return Part::Outside;
    }
    let end = last.saturating_add(1).min(size_bytes);
    Part::Range(first, end - first)
}

/// Answers with a file of a kind, under a name.
pub(crate) fn answer(
    headers: &HeaderMap,
    mut file: File,
    content_type: &'static str,
    name: &str,
) -> Result<Response> {
    let unreadable = |error: std::io::Error| {
        tracing::error!(%error, "a file could not be read");
        ApiError::internal("the file could not be read")
    };
    let size_bytes = file.metadata().map_err(unreadable)?.len();
    let (first, len, status) = match part(headers, size_bytes) {
        Part::Whole => (0, size_bytes, StatusCode::OK),
        Part::Range(first, len) => (first, len, StatusCode::PARTIAL_CONTENT),
        Part::Outside => {
            let message = format!("the file has {size_bytes} bytes, and the range lies behind them");
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let mut response = ApiError::new(status, "invalid_request_error", message).into_response();
            if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size_bytes}")) {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return Ok(response);
        }
    };
    file.seek(SeekFrom::Start(first)).map_err(unreadable)?;
    let mut response = (status, Body::from_stream(pieces(file, len))).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // What clients uploaded is never shown as a page of this server.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = name.chars().map(plain).collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{size_bytes}", first + len - 1);
        if let Ok(value) = HeaderValue::from_str(&range) {
            headers.insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(response)
}

/// The next `len` bytes of a file, in pieces. A thread is held for a piece at a time, never for a slow client.
fn pieces(file: File, len: u64) -> impl stream::Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold((file, len), async |(mut file, left)| {
        if left == 0 {
            return Ok(None);
        }
        let piece = usize::try_from(left.min(PIECE_BYTES)).unwrap_or(usize::MAX);
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; piece];
            file.read_exact(&mut bytes).map(|()| (file, bytes))
        });
        let (file, bytes) = read.await.map_err(std::io::Error::other)??;
        Ok(Some((Bytes::from(bytes), (file, left - piece as u64))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_the_standard_has_them() {
        let of = |value: &'static str, size_bytes| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_static(value));
            part(&headers, size_bytes)
        };
        // The examples of RFC 9110, 14.1.2, for 10,000 bytes.
        assert_eq!(of("bytes=0-499", 10_000), Part::Range(0, 500));
        assert_eq!(of("bytes=500-999", 10_000), Part::Range(500, 500));
        assert_eq!(of("bytes=-500", 10_000), Part::Range(9500, 500));
        assert_eq!(of("bytes=9500-", 10_000), Part::Range(9500, 500));
        assert_eq!(of("bytes=0-1", 1), Part::Range(0, 1));
        assert_eq!(of("bytes=-20000", 10_000), Part::Range(0, 10_000));
        assert_eq!(of("bytes=0-18446744073709551615", 10), Part::Range(0, 10));
        for outside in ["bytes=10-", "bytes=18446744073709551615-", "bytes=-0"] {
            assert_eq!(of(outside, 10), Part::Outside, "{outside}");
        }
        assert_eq!(of("bytes=-5", 0), Part::Outside);
        for whole in ["bytes=0-1,3-4", "bytes=5-3", "lines=0-1", "bytes=a-b", "bytes=", "bytes=-"] {
            assert_eq!(of(whole, 10), Part::Whole, "{whole}");
        }
        assert_eq!(part(&HeaderMap::new(), 10), Part::Whole);
    }
}
