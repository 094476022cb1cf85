use std::path::PathBuf;

use super::*;
use crate::adapter::AdapterLevel;
use crate::ids::Digest;

#[derive(Clone)]
struct Fake {
    bytes: u64,
    digest: u8,
}

impl PreparedAdapter for Fake {
    fn host_bytes(&self) -> u64 {
        self.bytes
    }
    fn digest(&self) -> Digest {
        [self.digest; 32]
    }
    fn rank(&self) -> usize {
        8
    }
    fn num_modules(&self) -> usize {
        1
    }
}

fn registry(max_host_bytes: u64) -> Arc<AdapterRegistry> {
    Arc::new(AdapterRegistry::new(RegistryLimits {
        max_host_bytes,
        max_adapters: 4,
        max_name_bytes: 64,
        num_slots: 3,
    }))
}

fn fake(bytes: u64, digest: u8) -> Arc<dyn PreparedAdapter> {
    Arc::new(Fake { bytes, digest })
}

fn path(name: &str) -> AdapterSource {
    AdapterSource::Path(PathBuf::from(name))
}

fn replace() -> LoadOptions {
    LoadOptions { replace: true, ..LoadOptions::default() }
}

#[test]
fn replacing_is_atomic_and_leases_keep_the_old_generation() {
    let registry = registry(100);
    let first = registry.publish("a", path("a"), fake(30, 1), &LoadOptions::default()).unwrap();
    let old = registry.lease("a", None).unwrap();
    let taken = registry.publish("a", path("a"), fake(30, 2), &LoadOptions::default()).unwrap_err();
    assert_eq!(taken, AdapterError::AlreadyLoaded { name: "a".into(), generation: first.generation });
    let second = registry.publish("a", path("a"), fake(30, 2), &replace()).unwrap();
    assert_ne!(first.generation, second.generation);
    let new = registry.lease("a", Some(second.generation)).unwrap();
    assert_eq!((old.generation.digest[0], new.generation.digest[0]), (1, 2));
    assert_eq!(registry.host_bytes(), 60);
    drop(old);
    assert_eq!(registry.host_bytes(), 30);
    registry.unload("a", None).unwrap();
    assert!(matches!(registry.lease("a", None), Err(SubmitError::UnknownAdapter { .. })));
    assert!(matches!(new.residency(), Residency::Ready(_)));
    drop(new);
    assert_eq!((registry.host_bytes(), registry.num_leases_and_hidden()), (0, (0, 0)));
}

#[test]
fn compare_and_swap() {
    let registry = registry(100);
    let first = registry.publish("a", path("a"), fake(1, 1), &LoadOptions::default()).unwrap().generation;
    let swap = LoadOptions { expected_generation: Some(first), ..replace() };
    let second = registry.publish("a", path("a"), fake(1, 2), &swap).unwrap().generation;
    let error = registry.publish("a", path("a"), fake(1, 3), &swap).unwrap_err();
    let mismatch =
        AdapterError::GenerationMismatch { name: "a".into(), expected: first, actual: Some(second) };
    assert_eq!(error, mismatch);
    assert!(registry.lease("a", Some(first)).is_err());
    assert_eq!(registry.unload("a", Some(first)).unwrap_err(), mismatch);
}

#[test]
fn the_least_recently_used_goes_to_disk_and_comes_back_unchanged() {
    let registry = registry(100);
    registry.publish("a", path("a"), fake(40, 1), &LoadOptions::default()).unwrap();
    registry.publish("b", path("b"), fake(40, 2), &LoadOptions::default()).unwrap();
    drop(registry.lease("a", None).unwrap());
    registry.publish("c", path("c"), fake(40, 3), &LoadOptions::default()).unwrap();
    let levels: Vec<_> = registry.list().iter().map(|a| a.level).collect();
    assert_eq!(levels, [AdapterLevel::Host, AdapterLevel::Disk, AdapterLevel::Host]);
    let lease = registry.lease("b", None).unwrap();
    assert!(matches!(lease.residency(), Residency::Loading));
    let generation = registry.next_reload().unwrap();
    registry.finish_reload(&generation, Ok(fake(40, 2)));
    assert!(matches!(lease.residency(), Residency::Ready(_)));
    assert_eq!(registry.host_bytes(), 80);
    let lease = registry.lease("c", None).unwrap();
    let other = registry.lease("a", None).unwrap();
    assert_eq!(registry.host_bytes(), 80, "only one of a and c had to go");
    drop((lease, other));
}

#[test]
fn changed_content_is_an_error_and_never_served() {
    let registry = registry(50);
    registry.publish("a", path("a"), fake(40, 1), &LoadOptions::default()).unwrap();
    registry.publish("b", path("b"), fake(40, 2), &LoadOptions::default()).unwrap();
    let lease = registry.lease("a", None).unwrap();
    let generation = registry.next_reload().unwrap();
    registry.finish_reload(&generation, Ok(fake(40, 9)));
    assert!(matches!(lease.residency(), Residency::Failed(AdapterError::ContentChanged { .. })));
}

#[test]
fn a_reload_without_room_waits_for_a_lease_to_drop() {
    let registry = registry(50);
    registry.publish("a", path("a"), fake(40, 1), &LoadOptions::default()).unwrap();
    registry.publish("b", path("b"), fake(40, 2), &LoadOptions::default()).unwrap();
    let held = registry.lease("b", None).unwrap();
    let lease = registry.lease("a", None).unwrap();
    let generation = registry.next_reload().unwrap();
    registry.finish_reload(&generation, Ok(fake(40, 1)));
    assert!(matches!(lease.residency(), Residency::Loading));
    drop(held);
    let generation = registry.next_reload().unwrap();
    registry.finish_reload(&generation, Ok(fake(40, 1)));
    assert!(matches!(lease.residency(), Residency::Ready(_)));
    assert_eq!(registry.host_bytes(), 40);
}

#[test]
fn what_cannot_leave_host_memory_is_refused_at_load() {
    let registry = registry(50);
    let in_process = AdapterSource::InProcess { label: "trained".into(), payload: Arc::new(()) };
    registry.publish("a", in_process, fake(30, 1), &LoadOptions::default()).unwrap();
    let error = registry.publish("b", path("b"), fake(40, 2), &LoadOptions::default()).unwrap_err();
    assert_eq!(error, AdapterError::HostMemory { needed_bytes: 40, available_bytes: 20, limit_bytes: 50 });
    let error = registry.publish("b", path("b"), fake(u64::MAX, 2), &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, AdapterError::HostMemory { .. }));
    registry.publish("a", path("a"), fake(50, 2), &replace()).unwrap();
    assert_eq!(registry.host_bytes(), 50);
}

#[test]
fn a_replacement_is_pinned_as_what_it_replaces_unless_told_otherwise() {
    let registry = registry(100);
    let load = |digest, pinned| {
        let options = LoadOptions { pinned, ..replace() };
        registry.publish("a", path("a"), fake(1, digest), &options).unwrap().pinned
    };
    assert!(!load(1, None));
    assert!(load(2, Some(true)));
    assert!(load(3, None));
    assert!(!load(4, Some(false)));
    assert!(!load(5, None));
}

#[test]
fn limits_on_names_numbers_and_pins() {
    let registry = registry(100);
    for name in ["", " ", "a\nb", &"x".repeat(65)] {
        let error = registry.check_load(name, &LoadOptions::default()).unwrap_err();
        assert!(matches!(error, AdapterError::InvalidName { .. }), "{name:?}");
    }
    let pinned = LoadOptions { pinned: Some(true), ..LoadOptions::default() };
    for name in ["a", "b"] {
        registry.publish(name, path(name), fake(1, 1), &pinned).unwrap();
    }
    let error = registry.publish("c", path("c"), fake(1, 1), &pinned).unwrap_err();
    assert_eq!(error, AdapterError::TooManyPinned { limit: 2, num_slots: 3 });
    registry.pin("a", false).unwrap();
    registry.publish("c", path("c"), fake(1, 1), &pinned).unwrap();
    registry.publish("d", path("d"), fake(1, 1), &LoadOptions::default()).unwrap();
    let error = registry.publish("e", path("e"), fake(1, 1), &LoadOptions::default()).unwrap_err();
    assert_eq!(error, AdapterError::TooMany { limit: 4 });
    registry.close("test");
    assert!(matches!(registry.check_load("f", &replace()), Err(AdapterError::NotRunning { .. })));
    assert!(registry.next_reload().is_none());
}
