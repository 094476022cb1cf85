//! Tests of the cache by itself.

use super::*;

/// An entry with one file, published under `name`.
fn add(cache: &Cache, id: &str, name: &str, content: &[u8]) -> Entry {
    let staging = cache.staging(id, "origin").unwrap();
    fs::write(staging.join("m.gguf"), content).unwrap();
    fs::write(staging.join("left-over.part"), b"x").unwrap();
    let record = FileRecord {
        path: "m.gguf".to_owned(),
        bytes: content.len() as u64,
        sha256: hex(&sha2::Sha256::digest(content)),
    };
    let manifest =
        Manifest::new(ModelKind::Gguf, "origin".to_owned(), Some("m.gguf".to_owned()), vec![record]);
    let entry = cache.publish(id, &manifest).unwrap();
    cache.set_ref(name, id).unwrap();
    entry
}

fn new_cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().join("not/yet/there"));
    (dir, cache)
}

#[test]
fn the_root_follows_the_environment() {
    let var = |pairs: &'static [(&str, &str)]| {
        move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
    };
    let home = || Some(PathBuf::from("/h"));
    let root = |pairs, home| Cache::from_variables(&var(pairs), home).unwrap().root;
    assert_eq!(root(&[("WARDROBE_CACHE", "/w"), ("XDG_CACHE_HOME", "/x")], home()), Path::new("/w"));
    assert_eq!(root(&[("WARDROBE_CACHE", ""), ("XDG_CACHE_HOME", "/x")], home()), Path::new("/x/wardrobe"));
    assert_eq!(root(&[("XDG_CACHE_HOME", "relative")], home()), Path::new("/h/.cache/wardrobe"));
    let error = Cache::from_variables(&var(&[]), None).unwrap_err();
    assert!(matches!(error, HubError::NoCacheFolder));
}

#[test]
fn entries_are_listed_looked_up_verified_and_removed() {
    let (_dir, cache) = new_cache();
    assert!(cache.list().unwrap().is_empty());
    assert_eq!(cache.prune().unwrap(), 0);
    add(&cache, "a--1", "first", b"one");
    add(&cache, "b--2", "second", b"three");
    cache.set_ref("also second", "b--2").unwrap();
    let list = cache.list().unwrap();
    assert_eq!(list.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(), ["a--1", "b--2"]);
    let entry = cache.lookup("second").unwrap();
    assert_eq!(
        (entry.names.clone(), entry.size_bytes),
        (vec!["also second".to_owned(), "second".to_owned()], 5)
    );
    assert_eq!(fs::read(&entry.path).unwrap(), b"three");
    assert!(!entry.path.with_file_name("left-over.part").exists());
    assert!(entry.created.elapsed().unwrap() < Duration::from_secs(60));
    cache.verify(&entry).unwrap();
    assert_eq!(cache.lookup("b--2").unwrap().id, "b--2");

    // Same size, other bytes: only the checksum can tell.
    fs::write(&entry.path, b"threx").unwrap();
    let error = cache.verify(&entry).unwrap_err();
    assert!(matches!(&error, HubError::Damaged { path, .. } if *path == entry.path), "{error:?}");

    let error = cache.remove("third").unwrap_err();
    assert!(error.to_string().contains("also second, second"), "{error}");
    assert_eq!(cache.remove("also second").unwrap(), 5);
    assert!(cache.lookup("second").is_none() && cache.lookup("b--2").is_none());
    assert!(!entry.path.exists());
    assert_eq!(cache.list().unwrap().len(), 1);
    assert_eq!(disk::tree_bytes(&cache.partials()), 0);
    assert_eq!(names_in(&cache.refs()).unwrap().len(), 1);
}

#[test]
fn a_damaged_entry_is_passed_over_replaced_and_pruned() {
    let (_dir, cache) = new_cache();
    let entry = add(&cache, "a--1", "first", b"one");
    fs::write(&entry.path, b"on").unwrap();
    assert!(cache.lookup("first").is_none() && cache.list().unwrap().is_empty());
    let entry = add(&cache, "a--1", "first", b"one");
    assert!(cache.lookup("first").is_some());
    for manifest in ["", "{}", "[1", r#"{"format":9}"#, "\u{0}"] {
        fs::write(entry.path.with_file_name(MANIFEST_FILE), manifest).unwrap();
        assert!(cache.lookup("first").is_none(), "{manifest:?}");
    }
    assert!(cache.prune().unwrap() >= 3);
    assert!(names_in(&cache.models()).unwrap().is_empty() && names_in(&cache.refs()).unwrap().is_empty());
}

#[test]
fn a_manifest_cannot_point_outside() {
    let (_dir, cache) = new_cache();
    let entry = add(&cache, "a--1", "first", b"one");
    let path = entry.path.with_file_name(MANIFEST_FILE);
    let text = fs::read_to_string(&path).unwrap();
    for name in ["../a--1/m.gguf", "/etc/passwd", "m.gguf\\u0000"] {
        fs::write(&path, text.replace("m.gguf", name)).unwrap();
        assert!(cache.lookup("first").is_none(), "{name}");
    }
    for id in ["../models/a--1", "a--1/", "", ".", "..", "/"] {
        assert!(cache.entry(id).is_none() && cache.lookup(id).is_none(), "{id}");
    }
}

#[test]
fn a_staging_folder_is_not_an_entry_and_prune_spares_one_at_work() {
    let (_dir, cache) = new_cache();
    let lock = cache.lock("busy origin", Duration::ZERO, &()).unwrap();
    let busy = cache.staging("busy", "busy origin").unwrap();
    fs::write(busy.join("m.gguf.part"), vec![0; 1000]).unwrap();
    let idle = cache.staging("idle", "idle origin").unwrap();
    fs::write(idle.join("m.gguf.part"), vec![0; 500]).unwrap();
    assert!(cache.list().unwrap().is_empty());
    let freed = cache.prune().unwrap();
    assert!((500..1000).contains(&freed), "{freed}");
    assert!(busy.exists() && !idle.exists());
    let error = cache.lock("busy origin", Duration::from_millis(120), &()).err().unwrap();
    assert!(matches!(error, HubError::Busy { .. }), "{error:?}");
    drop(lock);
    cache.lock("busy origin", Duration::ZERO, &()).unwrap();
}
