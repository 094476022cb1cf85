use super::*;
use axum::http::HeaderValue;
use futures_util::stream;

/// A body that comes in pieces of this size.
fn reader(content_type: &str, text: &[u8], piece_bytes: usize) -> Result<Multipart> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
    let pieces: Vec<_> =
        text.chunks(piece_bytes).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    Multipart::new(&headers, Body::from_stream(stream::iter(pieces)), Duration::from_secs(1))
}

async fn read_all(mut reader: Multipart) -> Result<Vec<(PartHeader, Vec<u8>)>> {
    let mut parts = Vec::new();
    while let Some(part) = reader.next_part().await? {
        let mut data = Vec::new();
        while let Some(chunk) = reader.chunk().await? {
            data.extend_from_slice(&chunk);
        }
        parts.push((part, data));
    }
    Ok(parts)
}

/// As Python's `email` package and RFC 7578's examples write it.
const FORM: &[u8] = b"preamble\r\n--xYz\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n\
--xYz \r\ncontent-disposition: form-data; filename=\"a \\\"b\\\" %22c%22.jsonl\"; name=file\r\nContent-Type: application/octet-stream\r\n\r\n\
line\r\n--xY\r\n--xY\r\n\r\n--xYz\r\nContent-Disposition: form-data; name=\"empty\"\r\n\r\n\r\n--xYz--\r\nepilogue";

#[tokio::test]
async fn parts_are_the_same_however_they_arrive() {
    for piece_bytes in 1..=FORM.len() {
        let reader = reader("multipart/form-data; boundary=xYz", FORM, piece_bytes).unwrap();
        let parts = read_all(reader).await.unwrap();
        let part = |name: &str, file_name: Option<&str>, data: &[u8]| {
            let header = PartHeader { name: name.to_owned(), file_name: file_name.map(str::to_owned) };
            (header, data.to_vec())
        };
        let expected = [
            part("purpose", None, b"fine-tune"),
            part("file", Some("a \"b\" \"c\".jsonl"), b"line\r\n--xY\r\n--xY\r\n"),
            part("empty", None, b""),
        ];
        assert_eq!(parts, expected, "in pieces of {piece_bytes}");
    }
}

#[tokio::test]
async fn what_is_cut_off_is_refused() {
    let whole = FORM.len() - "--\r\nepilogue".len();
    for len in 0..whole {
        let reader = reader("multipart/form-data; boundary=\"xYz\"", &FORM[..len], 7).unwrap();
        assert!(read_all(reader).await.is_err(), "{len} bytes");
    }
}

#[tokio::test]
async fn bodies_without_end_take_no_memory() {
    let mut reader = reader("multipart/form-data; boundary=b", &[b'x'; 1 << 20], 1 << 10).unwrap();
    assert!(reader.next_part().await.is_err());
    assert!(reader.buffer.capacity() < 1 << 14, "{}", reader.buffer.capacity());

    let mut head = b"--b\r\nContent-Disposition: form-data; name=\"".to_vec();
    head.resize(1 << 20, b'n');
    let mut reader = self::reader("multipart/form-data; boundary=b", &head, 1 << 10).unwrap();
    let error = reader.next_part().await.unwrap_err();
    assert!(error.message.contains("header is too long"), "{}", error.message);
    assert!(reader.buffer.capacity() < 1 << 15, "{}", reader.buffer.capacity());

    let mut field = b"--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n".to_vec();
    field.resize(1 << 20, b'v');
    let mut reader = self::reader("multipart/form-data; boundary=b", &field, 1 << 10).unwrap();
    reader.next_part().await.unwrap();
    assert!(reader.text("purpose").await.unwrap_err().message.contains("too long"));
}

#[tokio::test]
async fn boundaries_and_headers_are_checked() {
    for content_type in
        ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; charset=b"]
    {
        assert_eq!(reader(content_type, b"", 1).err().unwrap().status, 400, "{content_type}");
    }
    let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
    assert_eq!(reader(&long, b"", 1).err().unwrap().status, 400);
    for other in ["application/json", "multipart/mixed; boundary=b"] {
        assert_eq!(reader(other, b"", 1).err().unwrap().status, 415, "{other}");
    }
    for body in [
        &b"--b junk\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\r\n--b--"[..],
        b"--b\r\nContent-Type: text/plain\r\n\r\n\r\n--b--",
        b"--b\r\nContent-Disposition: form-data\r\n\r\n\r\n--b--",
        b"--b\r\nContent-Disposition: attachment; name=\"a\"\r\n\r\n\r\n--b--",
        b"--b\r\nContent-Disposition: form-data; name=\"a\r\n\r\n\r\n--b--",
        b"--b\r\nContent-Disposition: form-data; name=\"\xff\"\r\n\r\n\r\n--b--",
    ] {
        let reader = reader("multipart/form-data; boundary=b", body, 64).unwrap();
        assert_eq!(read_all(reader).await.unwrap_err().status, 400, "{}", String::from_utf8_lossy(body));
    }
    let many = b"--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\r\n".repeat(65);
    assert!(read_all(reader("multipart/form-data; boundary=b", &many, 64).unwrap()).await.is_err());
}
