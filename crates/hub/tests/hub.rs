//! Pulling from a hub that behaves.

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{COMMIT, Hub, Response, TOKEN, Told, cause, sha256_hex};
use wardrobe_hub::{HubError, ModelKind, ModelRef, pull};

#[test]
fn a_repository_becomes_an_entry_and_the_second_pull_asks_nobody() {
    let hub = Hub::start();
    let told = Told::default();
    let path = pull(&ModelRef::parse("o/n").unwrap(), &hub.options(), &told).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        assert_eq!(fs::read(path.join(name)).unwrap(), hub.content(name), "{name}");
    }
    for name in ["pytorch_model.bin", "README.md", "q"] {
        assert!(!path.join(name).exists(), "{name} was fetched");
    }
    let size = ["config.json", "tokenizer.json", "model.safetensors"]
        .iter()
        .map(|name| hub.content(name).len())
        .sum::<usize>();
    assert_eq!(*told.totals.lock().unwrap(), [Some(size as u64)]);
    assert_eq!((*told.bytes.lock().unwrap(), *told.finished.lock().unwrap()), (size as i64, 1));

    let requests = hub.requests();
    assert!(requests.len() > 4);
    for request in &requests {
        // The token is for the hub alone: not for the storage host that it redirects to.
        let expected = (request.host == "hub").then(|| format!("Bearer {TOKEN}"));
        assert_eq!(request.header("authorization").map(str::to_owned), expected, "{request:?}");
        assert!(request.header("user-agent").unwrap().contains("wardrobe/"));
        // After the listing, everything is asked for at the one commit.
        assert!(request.host == "storage" || request.path.contains("/api/") || request.path.contains(COMMIT));
    }
    assert!(requests.iter().any(|request| request.host == "storage"));

    assert_eq!(hub.pull("o/n").unwrap(), path);
    assert_eq!(hub.pull("o/n@main").unwrap(), path);
    assert!(hub.requests().is_empty());
    let entry = hub.cache().lookup("o/n").unwrap();
    assert_eq!(
        (entry.kind, entry.size_bytes, entry.commit.as_deref()),
        (ModelKind::Safetensors, size as u64, Some(COMMIT))
    );
    assert_eq!(
        (entry.origin.as_str(), entry.revision.as_deref(), entry.path.clone()),
        ("o/n", Some("main"), path)
    );
    let weights = entry.files.iter().find(|file| file.path == "model.safetensors").unwrap();
    assert_eq!(weights.sha256, sha256_hex(&hub.content("model.safetensors")));
    hub.cache().verify(&entry).unwrap();
    assert!(hub.parts().is_empty());
    hub.cache().remove("o/n").unwrap();
    assert!(!entry.path.exists());
}

#[test]
fn one_gguf_file_revisions_and_a_shared_entry() {
    let hub = Hub::start();
    let path = hub.pull("o/n@refs/pr/1:q/m.Q4_1.gguf").unwrap();
    assert_eq!(fs::read(&path).unwrap(), hub.content("q/m.Q4_1.gguf"));
    assert!(path.ends_with("q/m.Q4_1.gguf"));
    assert!(hub.requests()[0].path.starts_with("/api/models/o/n/revision/refs%2Fpr%2F1"));
    // Another name for the same commit needs the listing and no download.
    assert_eq!(hub.pull("hf://o/n@v1:q/m.Q4_1.gguf").unwrap(), path);
    assert_eq!(hub.requests().len(), 1);
    let names = hub.cache().lookup("o/n@v1:q/m.Q4_1.gguf").unwrap().names;
    assert_eq!(names, ["o/n@refs/pr/1:q/m.Q4_1.gguf", "o/n@v1:q/m.Q4_1.gguf"]);
    hub.pull("o/n").unwrap();
    assert_eq!(hub.cache().list().unwrap().len(), 2);
}

#[test]
fn sharded_weights_follow_the_index() {
    let hub = Hub::start();
    {
        let mut repo = hub.repo.lock().unwrap();
        let weights = repo.files.remove("model.safetensors").unwrap().0;
        let (a, b) = weights.split_at(100_000);
        repo.files.insert("model-00001-of-00002.safetensors".to_owned(), (a.to_vec(), true));
        repo.files.insert("model-00002-of-00002.safetensors".to_owned(), (b.to_vec(), true));
        repo.files.insert("consolidated.safetensors".to_owned(), (weights, true));
        let index = r#"{"weight_map":{"x":"model-00001-of-00002.safetensors","y":"model-00002-of-00002.safetensors"}}"#;
        repo.files.insert("model.safetensors.index.json".to_owned(), (index.into(), false));
    }
    let path = hub.pull("o/n").unwrap();
    for name in [
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ] {
        assert_eq!(fs::read(path.join(name)).unwrap(), hub.content(name), "{name}");
    }
    assert!(!path.join("consolidated.safetensors").exists());
}

#[test]
fn a_moved_branch_is_a_new_entry_on_refresh() {
    let hub = Hub::start();
    let old = hub.pull("o/n").unwrap();
    let mut options = hub.options();
    options.refresh = true;
    let model = ModelRef::parse("o/n").unwrap();
    hub.requests();
    assert_eq!(pull(&model, &options, &()).unwrap(), old);
    assert_eq!(hub.requests().len(), 1);
    {
        let mut repo = hub.repo.lock().unwrap();
        repo.commit = "2".repeat(40);
        repo.files.insert("config.json".to_owned(), (b"{\"new\":1}".to_vec(), false));
    }
    assert_eq!(hub.pull("o/n").unwrap(), old);
    let new = pull(&model, &options, &()).unwrap();
    assert_ne!(new, old);
    assert_eq!(fs::read(new.join("config.json")).unwrap(), b"{\"new\":1}");
    // Whoever still reads the old one is left alone; the name means the new one.
    assert!(old.join("model.safetensors").exists());
    assert_eq!(hub.pull("o/n").unwrap(), new);
    let list = hub.cache().list().unwrap();
    assert_eq!(list.iter().map(|entry| entry.names.len()).collect::<Vec<_>>(), [0, 1]);
    hub.cache().remove(&list[0].id).unwrap();
    assert!(!old.exists() && new.exists());
}

#[test]
fn a_mirror_without_sizes_and_redirects_works() {
    let hub = Hub::start();
    {
        let mut repo = hub.repo.lock().unwrap();
        repo.blobs = false;
        repo.files.values_mut().for_each(|file| file.1 = false);
    }
    let told = Told::default();
    let path = pull(&ModelRef::parse("o/n").unwrap(), &hub.options(), &told).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    assert_eq!(*told.totals.lock().unwrap(), [None]);
    // Not even a Content-Length.
    hub.cache().remove("o/n").unwrap();
    hub.hook(|_, response| Response { chunked: true, ..response });
    let path = hub.pull("o/n").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
}

#[test]
fn a_renamed_repository_is_followed_and_the_token_stays_with_the_origin() {
    let hub = Hub::start();
    hub.hook(|request, response| match request.path.strip_prefix("/api/models/old/name/") {
        Some(rest) => Response::new(307, "").with("Location", format!("/api/models/o/n/{rest}")),
        None => match request.path.strip_prefix("/old/name/") {
            Some(rest) => Response::new(307, "").with("Location", format!("/o/n/{rest}")),
            None => response,
        },
    });
    let path = hub.pull("old/name").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    for request in hub.requests() {
        assert_eq!(request.header("authorization").is_some(), request.host == "hub", "{request:?}");
    }
}

#[test]
fn without_a_token_none_is_sent() {
    let hub = Hub::start();
    let mut options = hub.options();
    options.hub.token = None;
    pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap();
    assert!(hub.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn threads_that_pull_the_same_model_download_it_once() {
    let hub = Hub::start();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.pull("o/n").unwrap())).collect();
        let paths: std::collections::BTreeSet<_> =
            pulls.into_iter().map(|pull| pull.join().unwrap()).collect();
        assert_eq!(paths.len(), 1);
    });
    let downloads = hub.requests().iter().filter(|request| request.path.contains("/storage/")).count();
    assert_eq!(downloads, 1);
}

#[test]
fn a_pull_can_be_cancelled_and_goes_on_where_it_was() {
    let hub = Hub::start();
    let model = ModelRef::parse("o/n").unwrap();
    let told = Told { cancel_at_bytes: Some(100_000), ..Told::default() };
    let error = pull(&model, &hub.options(), &told).unwrap_err();
    assert!(matches!(error, HubError::Cancelled), "{error:?}");
    assert_eq!(*told.finished.lock().unwrap(), 1);
    assert!(hub.cache().list().unwrap().is_empty());
    hub.requests();
    hub.pull("o/n").unwrap();
    let resumed =
        hub.requests().into_iter().find(|request| request.path.starts_with("/storage/model.")).unwrap();
    assert!(resumed.range_start().unwrap() >= 90_000, "{resumed:?}");
}

#[test]
fn a_catalogue_model_falls_back_to_the_hub_and_else_says_what_helps() {
    let hub = Hub::start();
    let model = wardrobe_hub::CatalogueModel {
        name: "tiny",
        description: "a test",
        sources: &[
            wardrobe_hub::CatalogueSource::Package(wardrobe_hub::PackageModel {
                package: "tiny-model",
                version: "1.0",
                wheel: "tiny_model-1.0-py3-none-any.whl",
                wheel_bytes: 100,
                member: "tiny/m.gguf",
                bytes: 10,
                sha256: "00",
            }),
            wardrobe_hub::CatalogueSource::Hub(wardrobe_hub::HubModel {
                repo: "o/n",
                revision: "main",
                file: None,
            }),
        ],
    };
    let model = ModelRef::Catalogue(Box::leak(Box::new(model)));
    let mut options = hub.options();
    options.pip.commands = vec![vec!["/no/such/pip".to_owned()]];
    let down = std::sync::Arc::new(AtomicBool::new(true));
    let is_down = std::sync::Arc::clone(&down);
    hub.hook(move |_, response| {
        if is_down.load(Ordering::SeqCst) {
            Response::new(503, "").with("X-Error-Message", "maintenance")
        } else {
            response
        }
    });
    let error = pull(&model, &options, &()).unwrap_err();
    let HubError::NoSource { attempts, remedies, .. } = &error else { panic!("{error:?}") };
    assert_eq!(attempts.len(), 3);
    assert!(matches!(attempts[1].error, Some(HubError::PipMissing { .. })));
    assert!(!remedies.is_empty());
    let text = error.to_string();
    for part in [
        "the cache",
        "not there",
        "tiny-model==1.0",
        "/no/such/pip",
        "o/n",
        "HTTP 503",
        "maintenance",
        "wardrobe pull tiny --from",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
    down.store(false, Ordering::SeqCst);
    let path = pull(&model, &options, &()).unwrap();
    assert!(path.join("model.safetensors").exists());
    assert_eq!(hub.cache().lookup("tiny").unwrap().path, path);
    assert_eq!(
        cause(pull(&ModelRef::parse("o/none").unwrap(), &options, &())).to_string(),
        "the hub has no o/none: RepoNotFound"
    );
}
