//! Data sets on a hub: what is asked for is fetched, nothing else, and once.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::path::PathBuf;

use support::{Hub, TOKEN, files_below};
use wardrobe_hub::{Cache, Dataset, DatasetRef, HubError, ModelKind, ModelRef, pull};

fn hub() -> Hub {
    let hub = Hub::start();
    let mut repo = hub.repo.lock().unwrap();
    let mut add =
        |name: &str, content: &[u8], large| repo.files.insert(name.to_owned(), (content.to_vec(), large));
    add("data/train-0.jsonl", b"{\"text\": \"a\"}\n", false);
    add("data/train-1.jsonl", &support::noise(100_000), true);
    add("data/test.jsonl", b"{\"text\": \"b\"}\n", false);
    drop(repo);
    hub
}

fn open(hub: &Hub, reference: &str) -> Result<Dataset, HubError> {
    Dataset::open(&DatasetRef::parse(reference).unwrap(), &hub.options(), &())
}

fn paths(dataset: &Dataset) -> Vec<String> {
    dataset.files().into_iter().map(|file| file.path).collect()
}

#[test]
fn only_the_files_that_are_asked_for_are_fetched_and_once() {
    let hub = hub();
    let dataset = open(&hub, "hub:o/n/data/train-*").unwrap();
    assert_eq!(paths(&dataset), ["data/train-0.jsonl", "data/train-1.jsonl"]);
    assert_eq!(dataset.files()[1].bytes, Some(100_000));
    let asked: Vec<String> = hub.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(asked, ["/api/datasets/o/n/revision/main?blobs=true"]);
    let path = dataset.fetch("data/train-1.jsonl", &()).unwrap();
    assert!(path.ends_with("data/train-1.jsonl"));
    assert_eq!(std::fs::read(&path).unwrap(), hub.content("data/train-1.jsonl"));
    let requests = hub.requests();
    let resolve = format!("/datasets/o/n/resolve/{}/data/train-1.jsonl", dataset.commit());
    assert_eq!(requests[0].path, resolve);
    assert!(requests[0].header("authorization").unwrap().contains(TOKEN));
    // The storage host is another origin.
    assert!(
        requests.iter().all(|request| request.host == "hub" || request.header("authorization").is_none())
    );

    // Again: nobody is asked, not even for the list, and not by another process with no way to the hub.
    assert_eq!(dataset.fetch("data/train-1.jsonl", &()).unwrap(), path);
    let mut options = hub.options();
    options.hub.endpoint = Some("http://127.0.0.1:1".to_owned());
    let reference = DatasetRef::parse("hub:o/n/data/train-1.jsonl").unwrap();
    let offline = Dataset::open(&reference, &options, &()).unwrap();
    assert_eq!(offline.fetch("data/train-1.jsonl", &()).unwrap(), path);
    assert!(hub.requests().is_empty());
    assert!(matches!(offline.fetch("data/test.jsonl", &()), Err(HubError::Transport { .. })));
}

#[test]
fn folders_files_revisions_and_what_is_not_there() {
    let hub = hub();
    assert_eq!(paths(&open(&hub, "hub:o/n/data").unwrap()).len(), 3);
    assert_eq!(paths(&open(&hub, "hub:o/n/data/test.jsonl@v1").unwrap()), ["data/test.jsonl"]);
    assert_eq!(paths(&open(&hub, "hub:o/n@refs/pr/1").unwrap()).len(), 9);
    assert_eq!(paths(&open(&hub, "hub:o/n/nothing").unwrap()), Vec::<String>::new());
    for reference in ["hub:o/n@gone", "hub:o/other"] {
        assert!(matches!(open(&hub, reference), Err(HubError::NotFound { .. })), "{reference}");
    }
    let dataset = open(&hub, "hub:o/n").unwrap();
    for path in ["data/none.jsonl", "../x", "/etc/passwd", ""] {
        assert!(matches!(dataset.fetch(path, &()), Err(HubError::NotFound { .. })), "{path}");
    }
}

#[test]
fn a_branch_that_moves_changes_nothing_until_it_is_asked_for() {
    let hub = hub();
    let old = open(&hub, "hub:o/n").unwrap();
    {
        let mut repo = hub.repo.lock().unwrap();
        repo.commit = "2".repeat(40);
        repo.files.insert("data/test.jsonl".to_owned(), (b"new".to_vec(), false));
    }
    assert_eq!(open(&hub, "hub:o/n").unwrap().commit(), old.commit());
    let mut options = hub.options();
    options.refresh = true;
    let reference = DatasetRef::parse("hub:o/n").unwrap();
    let new = Dataset::open(&reference, &options, &()).unwrap();
    assert_eq!(new.commit(), "2".repeat(40));
    assert_eq!(std::fs::read(new.fetch("data/test.jsonl", &()).unwrap()).unwrap(), b"new");
    assert_eq!(open(&hub, "hub:o/n").unwrap().commit(), new.commit());
}

#[test]
fn what_is_not_what_was_announced_is_refused() {
    let hub = hub();
    let dataset = open(&hub, "hub:o/n/data").unwrap();
    hub.hook(|request, mut response| {
        if request.path.contains("train-1") && request.host == "storage" {
            response.body.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        }
        response
    });
    let error = dataset.fetch("data/train-1.jsonl", &()).unwrap_err();
    assert!(matches!(error, HubError::WrongChecksum { .. }), "{error:?}");
    hub.unhook();
    dataset.fetch("data/train-1.jsonl", &()).unwrap();
    // A connection that ends early is taken up again.
    let first = std::sync::atomic::AtomicBool::new(true);
    hub.hook(move |request, mut response| {
        if request.path.contains("test.jsonl") && first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            response.cut_after_bytes = Some(3);
        }
        response
    });
    let path = dataset.fetch("data/test.jsonl", &()).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), hub.content("data/test.jsonl"));
}

#[test]
fn a_model_of_the_same_name_is_another_entry() {
    let hub = hub();
    let model: PathBuf = pull(&ModelRef::parse("o/n").unwrap(), &hub.options(), &()).unwrap();
    let dataset = open(&hub, "hub:o/n").unwrap();
    let file = dataset.fetch("config.json", &()).unwrap();
    assert!(!file.starts_with(&model));
    let cache: Cache = hub.cache();
    let entries = cache.list().unwrap();
    let kinds: Vec<ModelKind> = entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == ModelKind::Dataset).count(), 2);
    let name = dataset.name_of("config.json");
    assert!(entries.iter().any(|entry| entry.names == [name.clone()] && entry.origin == "datasets/o/n"));
    cache.remove(&name).unwrap();
    cache.remove("hub:o/n").unwrap();
    assert_eq!(cache.prune().unwrap(), 0);
    assert!(model.join("config.json").exists() && !file.exists());
    assert!(!files_below(cache.root()).iter().any(|path| path.ends_with("files.json")));
}
