//! Batches: a whole life, refused inputs, cancellation, expiry, restarts.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/batches.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;
use support::{Bench, Endpoint, by_name, create, line, lines, spec, upload, wait_for};
use wardrobe_batch::{BatchError, BatchStatus, BatchUsage, FilePurpose, JobRunner, RequestCounts};

fn codes(lines: &std::collections::BTreeMap<String, Value>) -> Vec<(&str, &str)> {
    lines.iter().map(|(name, line)| (name.as_str(), line["error"]["code"].as_str().unwrap_or(""))).collect()
}

#[test]
fn a_batch_ends_with_every_request_in_one_of_its_files() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.start(&endpoint);
    let names: Vec<String> = (0..20).map(|idx| format!("a-{idx:02}")).collect();
    let more = ["refused-1", "busy-1", "panics-1", "busy-2"];
    let id = create(&runner, &lines(names.iter().map(String::as_str).chain(more)));
    let made = runner.batch(&id).unwrap();
    assert_eq!(made.expires_at_ms - made.created_at_ms, 24 * 60 * 60 * 1000);
    bench.now_ms.fetch_add(5000, Ordering::SeqCst);
    let batch = bench.wait(&runner, &id);
    assert_eq!((batch.status, batch.problems.len()), (BatchStatus::Completed, 0), "{batch:?}");
    assert_eq!(batch.counts, RequestCounts { total: 24, completed: 22, failed: 2 });
    assert_eq!(batch.usage, Some(BatchUsage { input_tokens: 60, cached_tokens: 0, output_tokens: 40 }));
    assert_eq!((batch.model.as_deref(), batch.cancelling_at_ms), (Some("base"), None));
    assert_eq!(batch.spec.metadata.as_ref().unwrap()["for"], "a test");
    assert!(batch.in_progress_at_ms <= batch.finalizing_at_ms && batch.finalizing_at_ms <= batch.ended_at_ms);

    let (answers, errors) = (by_name(&runner, &batch.output_file), by_name(&runner, &batch.error_file));
    assert_eq!(answers.len(), 22);
    let first = &answers["a-00"];
    let keys: Vec<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["id", "custom_id", "response", "error"]);
    assert!(first["id"].as_str().unwrap().starts_with("batch_req_") && first["error"].is_null());
    assert_eq!(first["response"]["status_code"], 200);
    assert_eq!(first["response"]["request_id"], format!("{id}/a-00"));
    // Exactly as it was, in its order.
    assert_eq!(
        first["response"]["body"]["echo"].to_string(),
        r#"{"model":"base","prompt":"a-00","b":1,"a":2.5}"#
    );
    assert_eq!(codes(&errors), [("panics-1", "server_error"), ("refused-1", "")]);
    assert_eq!(errors["refused-1"]["response"]["status_code"], 400);
    assert_eq!(errors["refused-1"]["response"]["body"]["error"]["message"], "no");
    // In the order of the input.
    let (_, file) = runner.open_file(batch.output_file.as_ref().unwrap()).unwrap();
    let text = std::io::read_to_string(file).unwrap();
    let order: Vec<_> = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    let order: Vec<_> = order.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    assert_eq!(order[..20], names[..]);
    assert!((2..=4).contains(&endpoint.most_at_once.load(Ordering::SeqCst)));
    let counts = runner.batch_counts().unwrap();
    assert_eq!((counts.batches[4], counts.requests), (1, batch.counts));
    assert!(matches!(runner.cancel_batch(&id), Err(BatchError::JobEnded { status: "completed", .. })));
    runner.delete_file(&batch.spec.input_file).unwrap();
    assert!(runner.shutdown(Duration::from_secs(5)));
    assert_eq!(std::fs::read_dir(bench.root().join("batches")).unwrap().count(), 0);
}

#[test]
fn inputs_that_cannot_be_run_are_refused_by_line() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.start(&endpoint);
    let text = line("a") + "no json\n" + &line("a") + &line("b").replace("base", "none");
    let batch = bench.wait(&runner, &create(&runner, &text));
    assert_eq!(batch.status, BatchStatus::Failed);
    let problems: Vec<_> =
        batch.problems.iter().map(|p| (p.code.as_str(), p.line, p.param.as_deref())).collect();
    assert_eq!(
        problems,
        [
            ("invalid_json_line", Some(2), None),
            ("duplicate_custom_id", Some(3), Some("custom_id")),
            ("model_not_found", Some(4), Some("body.model"))
        ]
    );
    assert_eq!((batch.output_file, batch.error_file, batch.usage), (None, None, None));
    assert_eq!(bench.wait(&runner, &create(&runner, "\n")).problems[0].code, "empty_file");
    assert!(endpoint.asked.lock().unwrap().is_empty());

    let refused = |spec| match runner.create_batch(&spec) {
        Err(BatchError::Refused(refusal)) => refusal.field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(spec("file-none")), "input_file_id");
    assert_eq!(refused(spec(&upload(&runner, "a", FilePurpose::UserData))), "input_file_id");
    let mut noted = spec(&upload(&runner, "a", FilePurpose::Batch));
    noted.metadata = Some([("a".to_owned(), "b".repeat(513))].into());
    assert_eq!(refused(noted), "metadata");
    assert!(matches!(runner.batch("batch_none"), Err(BatchError::UnknownBatch { .. })));
    assert!(matches!(runner.cancel_batch("batch_none"), Err(BatchError::UnknownBatch { .. })));
}

#[test]
fn limits_of_files_and_batches() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.open(|config| {
        config.batches.max_input_bytes = 300;
        config.batches.max_requests = 2;
        config.batches.max_open = 3;
        config.batches.max_kept = 4;
    });
    let ids =
        [lines(["a"]), lines(["a", "b", "c", "d"]), lines(["a", "b"])].map(|text| create(&runner, &text));
    let full = runner.create_batch(&spec(&upload(&runner, "a", FilePurpose::Batch)));
    assert!(matches!(full, Err(BatchError::StoreFull { limit: 3, .. })), "{full:?}");
    runner.start_batches(endpoint).unwrap();
    let codes =
        ids.clone().map(|id| bench.wait(&runner, &id).problems.first().map(|problem| problem.code.clone()));
    assert_eq!(codes, [None, Some("file_too_large".to_owned()), None]);
    for _ in 0..3 {
        bench.wait(&runner, &create(&runner, &line("a")));
    }
    let page = runner.batches(None, 3).unwrap();
    assert_eq!((page.items.len(), page.has_more), (3, true));
    let rest = runner.batches(Some(&page.items[2].id), 3).unwrap();
    assert_eq!((rest.items.len(), rest.has_more), (1, false));
    assert_eq!(rest.items[0].id, ids[2], "the two oldest are forgotten");
    assert!(matches!(runner.batches(Some(&ids[0]), 3), Err(BatchError::UnknownCursor { .. })));
}

#[test]
fn a_cancelled_batch_keeps_what_it_has() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.start(&endpoint);
    let id = create(&runner, &lines(["a", "gate-1", "b", "c", "gate-2", "gate-3", "gate-4", "d"]));
    let behind = create(&runner, &lines(["e"]));
    while endpoint.asked.lock().unwrap().len() < 7 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let input = runner.batch(&id).unwrap().spec.input_file;
    assert!(matches!(runner.delete_file(&input), Err(BatchError::FileInUse { .. })));
    // Nobody works on it yet.
    assert_eq!(runner.cancel_batch(&behind).unwrap().status, BatchStatus::Cancelled);
    let cancelling = runner.cancel_batch(&id).unwrap();
    assert_eq!(cancelling.status, BatchStatus::Cancelling);
    let batch = bench.wait(&runner, &id);
    assert_eq!(batch.status, BatchStatus::Cancelled);
    assert!(batch.cancelling_at_ms.is_some() && batch.finalizing_at_ms.is_none());
    // What was answered behind an open request is kept too.
    assert_eq!(by_name(&runner, &batch.output_file).into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let errors = by_name(&runner, &batch.error_file);
    assert!(errors.values().all(|line| line["response"].is_null()));
    assert_eq!(codes(&errors)[0], ("d", "batch_cancelled"));
    assert_eq!(codes(&errors).len(), 5);
    assert_eq!(batch.counts, RequestCounts { total: 8, completed: 3, failed: 0 });
    runner.delete_file(&input).unwrap();
    let next = create(&runner, &lines(["f"]));
    assert_eq!(bench.wait(&runner, &next).status, BatchStatus::Completed);
}

#[test]
fn an_expired_batch_keeps_what_it_has() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.start(&endpoint);
    let id = create(&runner, &lines(["a", "gate-1", "b", "refused-1"]));
    let behind = create(&runner, &lines(["e"]));
    while endpoint.asked.lock().unwrap().len() < 4 {
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.now_ms.fetch_add(24 * 60 * 60 * 1000, Ordering::SeqCst);
    let batch = bench.wait(&runner, &id);
    assert_eq!(batch.status, BatchStatus::Expired);
    assert_eq!(batch.ended_at_ms, Some(batch.expires_at_ms));
    assert_eq!(by_name(&runner, &batch.output_file).into_keys().collect::<Vec<_>>(), ["a", "b"]);
    let errors = by_name(&runner, &batch.error_file);
    assert_eq!(codes(&errors), [("gate-1", "batch_expired"), ("refused-1", "")]);
    assert_eq!(batch.counts, RequestCounts { total: 4, completed: 2, failed: 1 });
    // Its time has run out as well, before its first request.
    let batch = bench.wait(&runner, &behind);
    assert_eq!((batch.status, batch.output_file), (BatchStatus::Expired, None));
    assert_eq!(by_name(&runner, &batch.error_file).len(), 1);
}

#[test]
fn a_batch_goes_on_after_a_restart() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.start(&endpoint);
    let id = create(&runner, &lines(["a", "b", "gate-1", "c", "d", "e", "gate-2", "f"]));
    let behind = create(&runner, &lines(["g"]));
    wait_for(&runner, &id, |batch| batch.counts.completed == 2);
    assert!(runner.shutdown(Duration::from_secs(5)));
    assert_eq!(runner.batch(&id).unwrap().status, BatchStatus::InProgress);
    assert!(matches!(runner.create_batch(&spec("file-1")), Err(BatchError::ShuttingDown)));
    drop(runner);
    let again = Arc::new(Endpoint::default());
    again.open.store(true, Ordering::SeqCst);
    let runner = bench.start(&again);
    let batch = bench.wait(&runner, &id);
    assert_eq!((batch.status, batch.counts.completed), (BatchStatus::Completed, 8));
    assert_eq!(by_name(&runner, &batch.output_file).len(), 8);
    let asked = again.asked.lock().unwrap().clone();
    assert!(!asked.contains(&"a".to_owned()) && !asked.contains(&"b".to_owned()), "{asked:?}");
    assert_eq!(bench.wait(&runner, &behind).status, BatchStatus::Completed);
}

#[test]
fn a_cancellation_outlives_the_process() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.start(&endpoint);
    let id = create(&runner, &lines(["a", "gate-1", "b"]));
    wait_for(&runner, &id, |batch| batch.counts.completed == 1);
    assert!(runner.shutdown(Duration::from_secs(5)));
    drop(runner);
    // Nobody works on it, but it has answers to keep.
    let runner = bench.open(|_| {});
    assert_eq!(runner.cancel_batch(&id).unwrap().status, BatchStatus::Cancelling);
    drop(runner);
    let runner = bench.start(&endpoint);
    let batch = bench.wait(&runner, &id);
    assert_eq!((batch.status, batch.counts.completed), (BatchStatus::Cancelled, 1));
    assert_eq!(by_name(&runner, &batch.error_file).len(), 2);
}

#[test]
fn what_was_damaged_or_taken_by_hand_holds_nobody_up() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let runner = bench.start(&endpoint);
    let ids = ["damaged", "gone"].map(|name| create(&runner, &lines([name, "gate-1", "b"])));
    wait_for(&runner, &ids[0], |batch| batch.counts.completed == 1);
    assert!(runner.shutdown(Duration::from_secs(5)));
    let input = runner.batch(&ids[1]).unwrap().spec.input_file;
    drop(runner);
    let outcomes = bench.root().join("batches").join(&ids[0]).join("outcomes.jsonl");
    let text = std::fs::read_to_string(&outcomes).unwrap();
    assert_eq!(text.lines().count(), 1);
    std::fs::write(&outcomes, format!("nothing of ours\n{text}")).unwrap();
    std::fs::remove_file(bench.root().join("files").join(input)).unwrap();
    endpoint.open.store(true, Ordering::SeqCst);
    let runner = bench.start(&endpoint);
    let damaged = bench.wait(&runner, &ids[0]);
    assert_eq!((damaged.status, damaged.counts.completed), (BatchStatus::Completed, 3));
    assert_eq!(by_name(&runner, &damaged.output_file).len(), 3);
    let gone = bench.wait(&runner, &ids[1]);
    assert_eq!((gone.status, gone.problems[0].code.as_str()), (BatchStatus::Failed, "file_not_found"));
}

/// A batch whose check does not get on.
fn held_in_check(bench: &Bench, endpoint: &Arc<Endpoint>) -> (JobRunner, String) {
    endpoint.hold_checks.store(true, Ordering::SeqCst);
    let before = endpoint.num_checks.load(Ordering::SeqCst);
    let runner = bench.start(endpoint);
    let id = create(&runner, &lines(["a", "b"]));
    while endpoint.num_checks.load(Ordering::SeqCst) == before {
        std::thread::sleep(Duration::from_millis(1));
    }
    (runner, id)
}

#[test]
fn a_check_is_cancelled_or_begun_anew() {
    let (bench, endpoint) = (Bench::new(), Arc::new(Endpoint::default()));
    let (runner, id) = held_in_check(&bench, &endpoint);
    assert_eq!(runner.cancel_batch(&id).unwrap().status, BatchStatus::Cancelling);
    endpoint.hold_checks.store(false, Ordering::SeqCst);
    let batch = bench.wait(&runner, &id);
    assert_eq!((batch.status, batch.counts.total), (BatchStatus::Cancelled, 0));
    assert_eq!((batch.output_file, batch.error_file), (None, None));
    assert!(runner.shutdown(Duration::from_secs(5)));
    drop(runner);

    // The process ends while one is checked, cancelled or not.
    for cancelled in [true, false] {
        let (runner, id) = held_in_check(&bench, &endpoint);
        runner.request_shutdown();
        if cancelled {
            runner.cancel_batch(&id).unwrap();
        }
        endpoint.hold_checks.store(false, Ordering::SeqCst);
        assert!(runner.shutdown(Duration::from_secs(5)));
        assert!(!runner.batch(&id).unwrap().status.has_ended());
        drop(runner);
        let runner = bench.start(&endpoint);
        let ends = if cancelled { BatchStatus::Cancelled } else { BatchStatus::Completed };
        assert_eq!(bench.wait(&runner, &id).status, ends);
        assert!(runner.shutdown(Duration::from_secs(5)));
    }
}
