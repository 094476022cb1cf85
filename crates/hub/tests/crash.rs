//! Processes that are killed, that race, and that run out of disk.
#![cfg(unix)]
// Clippy knows test functions, but not the helpers they call.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::{Hub, Response, files_below, noise};
use wardrobe_hub::{Cache, HubError, ModelRef, pull};

/// The body of the child processes of the tests below: one pull from a hub that the parent runs.
#[test]
fn child() {
    let Ok(endpoint) = std::env::var("WARDROBE_TEST_ENDPOINT") else { return };
    let mut options = wardrobe_hub::PullOptions::default();
    options.hub.endpoint = Some(endpoint);
    options.hub.use_environment = false;
    pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap();
}

fn start_child(hub: &Hub) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("WARDROBE_TEST_ENDPOINT", &hub.endpoint)
        .env("WARDROBE_CACHE", hub.cache().root())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Every file of every entry is whole; there is no other state an entry may be in.
fn assert_whole(hub: &Hub) -> usize {
    let cache = hub.cache();
    let entries = cache.list().unwrap();
    for entry in &entries {
        cache.verify(entry).unwrap();
        assert_eq!(fs::read(entry.path.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    }
    let folders = fs::read_dir(cache.root().join("models")).map_or(0, Iterator::count);
    assert_eq!(folders, entries.len(), "a folder among the entries is no entry");
    entries.len()
}

#[test]
fn a_process_killed_at_any_moment_leaves_nothing_that_is_taken_for_complete() {
    let hub = Hub::start();
    hub.repo.lock().unwrap().files.insert("model.safetensors".to_owned(), (noise(1_000_000), true));
    hub.hook(|_, response| Response { pace: Some(Duration::from_millis(3)), ..response });
    let mut kills = 0;
    // The download takes about 200 ms; the moments are spread over it and over the steps around it.
    for delay_ms in (15..).step_by(23) {
        let mut child = start_child(&hub);
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        if assert_whole(&hub) == 1 {
            break;
        }
        assert!(hub.cache().lookup("o/n").is_none());
        kills += 1;
        assert!(kills < 100, "the pull never ends");
    }
    assert!(kills >= 2, "only {kills} kills came before the end");
    let starts: Vec<usize> =
        hub.requests().iter().filter(|r| r.host == "storage").filter_map(|r| r.range_start()).collect();
    assert!(!starts.is_empty(), "no download was resumed");
    assert!(starts.is_sorted(), "a resumed download lost bytes: {starts:?}");
    // A kill after the rename and before the name was written leaves an entry without a name; then one listing helps.
    hub.unhook();
    hub.pull("o/n").unwrap();
    assert_eq!(assert_whole(&hub), 1);
    hub.cache().prune().unwrap();
    assert_eq!(files_below(&hub.cache().root().join("partial")), Vec::<std::path::PathBuf>::new());
}

#[test]
fn processes_that_pull_the_same_model_download_it_once() {
    let hub = Hub::start();
    hub.hook(|_, response| Response { pace: Some(Duration::from_millis(2)), ..response });
    let mut children: Vec<Child> = (0..3).map(|_| start_child(&hub)).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(assert_whole(&hub), 1);
    let downloads = hub.requests().iter().filter(|request| request.host == "storage").count();
    assert_eq!(downloads, 1);
}

#[test]
fn an_entry_that_is_being_pulled_is_not_removed_under_the_pull() {
    let hub = Hub::start();
    let old = hub.pull("o/n").unwrap();
    hub.repo.lock().unwrap().commit = "3".repeat(40);
    hub.hook(|_, response| Response { pace: Some(Duration::from_millis(10)), ..response });
    let mut options = hub.options();
    options.refresh = true;
    std::thread::scope(|scope| {
        let refresh = scope.spawn(|| pull(&ModelRef::parse("o/n").unwrap(), &options, &()).unwrap());
        while hub.parts().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let error = hub.cache().remove("o/n").unwrap_err();
        assert!(matches!(error, HubError::Busy { .. }), "{error:?}");
        hub.cache().prune().unwrap();
        assert!(old.exists());
        refresh.join().unwrap();
    });
    assert_eq!(assert_whole(&hub), 2);
}

/// A file system of 256 KiB, unmounted at the end.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(path))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_named_and_the_rest_is_kept_for_later() {
    let hub = Hub::start();
    let root = hub.cache().root().to_path_buf();
    let Some(_disk) = SmallDisk::mount(&root) else {
        eprintln!("SKIPPED a_full_disk_is_named_and_the_rest_is_kept_for_later: mounting a tmpfs needs root");
        return;
    };
    // Sizes are known: refused before the first byte.
    let error = hub.pull("o/n").unwrap_err();
    let HubError::DiskFull { path, needed_bytes: Some(needed), free_bytes: Some(free) } = &error else {
        panic!("{error:?}")
    };
    assert!(path.starts_with(&root) && needed > free && *free <= 256 * 1024, "{error}");
    assert!(error.to_string().contains(&root.display().to_string()), "{error}");
    assert!(!hub.requests().iter().any(|request| request.host == "storage"));
    assert!(Cache::open(&root).list().unwrap().is_empty());

    // Sizes are not known: the disk itself says it, in the middle of a file.
    {
        let mut repo = hub.repo.lock().unwrap();
        repo.blobs = false;
        repo.files.values_mut().for_each(|file| file.1 = false);
    }
    hub.hook(|_, response| Response { chunked: true, ..response });
    let error = hub.pull("o/n").unwrap_err();
    assert!(matches!(&error, HubError::DiskFull { path, .. } if path.starts_with(&root)), "{error:?}");
    assert!(Cache::open(&root).list().unwrap().is_empty());
    assert!(hub.cache().prune().unwrap() > 0);
    // With room again (a smaller model), the same cache works.
    hub.repo.lock().unwrap().files.insert("model.safetensors".to_owned(), (noise(1000), false));
    let path = hub.pull("o/n").unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), noise(1000));
}
