//! Files over HTTP: uploads in one request and in three, hostile ones, ranges, deletion.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, header};
use futures_util::stream;
use serde_json::json;
use wardrobe_server::ServerConfig;

use crate::support_jobs::{JobBench, RECORDS, form, upload};

/// Files that are kept or arriving.
fn count(jobs: &JobBench) -> [usize; 2] {
    ["files", "uploads"].map(|name| std::fs::read_dir(jobs.folder.path().join(name)).unwrap().count())
}

#[tokio::test]
async fn a_file_is_kept_listed_given_back_and_deleted() {
    let jobs = JobBench::new(ServerConfig::default());
    let bench = &jobs.bench;
    let file = upload(bench, "../../a \\\"b\\\".jsonl", RECORDS).await.ok();
    assert_eq!(file["filename"], "a \"b\".jsonl");
    assert_eq!(
        (&file["object"], &file["status"], &file["LineCount"]),
        (&json!("file"), &json!("processed"), &json!(2))
    );
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(bench.get(&path).await.ok(), file);
    assert_eq!(bench.get("/v1/files?purpose=fine-tune").await.ok()["data"], json!([file]));
    assert_eq!(bench.get("/v1/files?purpose=batch").await.ok()["data"], json!([]));
    let content = bench.get(&format!("{path}/content")).await;
    assert_eq!(content.body, RECORDS.as_bytes());
    assert_eq!(content.headers["content-disposition"], "attachment; filename=\"a__b_.jsonl\"");
    assert_eq!(content.headers["x-content-type-options"], "nosniff");
    let part = bench.call(&Method::GET, &format!("{path}/content"), &[("range", "bytes=2-7")]).await;
    assert_eq!((part.status.as_u16(), part.body.as_slice()), (206, &RECORDS.as_bytes()[2..8]));
    assert_eq!(part.headers["content-range"], format!("bytes 2-7/{}", RECORDS.len()));
    let outside = bench.call(&Method::GET, &format!("{path}/content"), &[("range", "bytes=999-")]).await;
    outside.error(416);
    assert_eq!(bench.call(&Method::DELETE, &path, &[]).await.ok()["deleted"], true);
    assert_eq!(bench.get(&path).await.error(404)["code"], "file_not_found");
    bench.call(&Method::DELETE, &path, &[]).await.error(404);
    assert_eq!(count(&jobs), [0, 0]);
}

#[tokio::test]
async fn forms_that_are_wrong_leave_nothing() {
    let jobs = JobBench::with(ServerConfig::default(), |config| config.max_file_bytes = 1000);
    let bench = &jobs.bench;
    let purpose = [("purpose", "fine-tune")];
    let large = "x".repeat(1001);
    for (request, status, param) in [
        (form(&[], Some(("a.jsonl", RECORDS))), 400, "purpose"),
        (form(&[("purpose", "vision")], Some(("a.jsonl", RECORDS))), 400, "purpose"),
        (form(&[("purpose", "fine-tune-results")], Some(("a.jsonl", RECORDS))), 400, "purpose"),
        (form(&purpose, None), 400, "file"),
        (form(&[("purpose", "fine-tune"), ("file", "text")], None), 400, "file"),
        (form(&[("file_name", "a.jsonl")], None), 400, "purpose"),
        (
            form(&[("purpose", "user_data"), ("expires_after[anchor]", "created_at")], Some(("a", "a"))),
            400,
            "expires_after",
        ),
        (form(&[("purpose", "user_data")], Some(("a", &large))), 413, "file"),
        (form(&purpose, Some(("a.jsonl", ""))), 400, "file"),
        (form(&purpose, Some(("a.csv", RECORDS))), 400, "file"),
        (form(&[("purpose", "fine-tune"), ("checksum", "00")], Some(("a.jsonl", RECORDS))), 400, "checksum"),
    ] {
        let error = bench.send(request).await.error(status);
        assert_eq!(error["param"], param, "{error}");
    }
    let error =
        upload(bench, "a.jsonl", "{\"text\": \"fine\"}\n\n[1]\n{\"messages\": []}\n").await.error(400);
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("line 3: ") && message.contains("line 4: ") && !message.contains("line 1"),
        "{message}"
    );
    let cut = Request::post("/v1/files")
        .header(header::CONTENT_TYPE, "multipart/form-data; boundary=XX")
        .body(Body::from("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc"));
    bench.send(cut.unwrap()).await.error(400);
    bench.post("/v1/files", &json!({})).await.error(415);
    let declared = Request::post("/v1/files")
        .header(header::CONTENT_TYPE, "multipart/form-data; boundary=XX")
        .header(header::CONTENT_LENGTH, "99999999999")
        .body(Body::empty());
    bench.send(declared.unwrap()).await.error(413);
    assert_eq!(count(&jobs), [0, 0]);
}

#[tokio::test]
async fn a_file_that_stalls_or_breaks_off_leaves_nothing() {
    let config = ServerConfig { read_timeout: Duration::from_millis(100), ..ServerConfig::default() };
    let jobs = JobBench::new(config);
    let head = "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc";
    let request = |body: Body| {
        let request = Request::post("/v1/files");
        request.header(header::CONTENT_TYPE, "multipart/form-data; boundary=XX").body(body).unwrap()
    };
    let start = || stream::iter([Ok::<_, std::io::Error>(head.to_owned())]);
    let stalled = futures_util::StreamExt::chain(start(), stream::pending());
    jobs.bench.send(request(Body::from_stream(stalled))).await.error(408);
    let broken = futures_util::StreamExt::chain(start(), stream::iter([Err(std::io::Error::other("gone"))]));
    jobs.bench.send(request(Body::from_stream(broken))).await.error(400);
    // A client that goes away in the middle.
    let stalled = futures_util::StreamExt::chain(start(), stream::pending());
    let sending = jobs.bench.send(request(Body::from_stream(stalled)));
    assert!(tokio::time::timeout(Duration::from_millis(50), sending).await.is_err());
    for _ in 0..100 {
        if count(&jobs) == [0, 0] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", count(&jobs));
}

#[tokio::test]
async fn uploads_at_once_have_a_limit() {
    let jobs = JobBench::new(ServerConfig { max_concurrent_uploads: 1, ..ServerConfig::default() });
    let head = "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc";
    let start = stream::iter([Ok::<_, std::io::Error>(head.to_owned())]);
    let stalled = Body::from_stream(futures_util::StreamExt::chain(start, stream::pending()));
    let request = Request::post("/v1/files").header(header::CONTENT_TYPE, "multipart/form-data; boundary=XX");
    let first = jobs.bench.send(request.body(stalled).unwrap());
    let second = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        upload(&jobs.bench, "a.jsonl", RECORDS).await.error(429)
    };
    tokio::select! {
        _ = first => panic!("it ended"),
        error = second => assert_eq!(error["code"], "rate_limit_exceeded"),
    }
    upload(&jobs.bench, "a.jsonl", RECORDS).await.ok();
}

#[tokio::test]
async fn an_announced_file_is_taken_once_and_without_a_key() {
    let jobs = JobBench::new(ServerConfig { api_keys: vec!["key".into()], ..ServerConfig::default() });
    let bench = &jobs.bench;
    let announce = async |checksum: &str| {
        let fields = [
            ("purpose", "fine-tune"),
            ("file_name", "a.jsonl"),
            ("file_type", "jsonl"),
            ("checksum", checksum),
        ];
        let mut request = form(&fields, None);
        request.headers_mut().insert(header::AUTHORIZATION, "Bearer key".parse().unwrap());
        request.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
        let answer = bench.send(request).await;
        assert_eq!(answer.status, 302, "{}", answer.text());
        let text = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        (text("location"), text("x-together-file-id"))
    };
    let put = async |path: &str, content: &str| {
        bench.send(Request::put(path).body(Body::from(content.to_owned())).unwrap()).await
    };
    // `printf '{"text": "a"}\n' | sha256sum`
    let content = "{\"text\": \"a\"}\n";
    let digest = "7c24616314d4c7ddcc755cd2cb42baf4e49ac41b1492fa02c30adc34e1cb2e5d";
    let (location, _) = announce(&"0".repeat(64)).await;
    let path = location.strip_prefix("https://wardrobe.test").unwrap().to_owned();
    assert_eq!(put(&path, content).await.error(400)["code"], "checksum_mismatch");
    // Used up: from now on it is as any other path without a key.
    put(&path, content).await.error(401);
    put("/v1/files/uploads/guess", content).await.error(401);
    assert_eq!(count(&jobs), [0, 0]);
    let (location, id) = announce(digest).await;
    let path = location.strip_prefix("https://wardrobe.test").unwrap();
    // The secret opens this one request and nothing else.
    bench.call(&Method::GET, path, &[]).await.error(401);
    assert_eq!(put(path, content).await.ok()["id"], id);
    let key = [("authorization", "Bearer key")];
    let done = bench.call(&Method::POST, &format!("/v1/files/{id}/preprocess"), &key).await.ok();
    assert_eq!((&done["id"], &done["FileType"]), (&json!(id), &json!("jsonl")));
}
