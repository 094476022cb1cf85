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
    fn device_bytes(&self) -> u64 {
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
    registry_within(max_host_bytes, u64::MAX)
}

fn registry_within(max_host_bytes: u64, max_device_bytes: u64) -> Arc<AdapterRegistry> {
    Arc::new(AdapterRegistry::new(RegistryLimits {
        max_host_bytes,
        max_device_bytes,
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
fn what_does_not_fit_on_the_device_is_refused_at_load() {
    let registry = registry_within(1000, 50);
    registry.publish("a", path("a"), fake(50, 1), &LoadOptions::default()).unwrap();
    let error = registry.publish("b", path("b"), fake(51, 2), &LoadOptions::default()).unwrap_err();
    let name = "b".to_owned();
    let refused = AdapterError::DeviceMemory { name, needed_bytes: 51, available_bytes: 50, limit_bytes: 50 };
    assert_eq!(error, refused);
    for part in ["`b`", "51", "50 of 50"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // A refused replacement leaves what was there.
    let before = registry.list()[0].generation;
    assert!(registry.publish("a", path("a"), fake(u64::MAX, 2), &replace()).is_err());
    assert_eq!(registry.list()[0].generation, before);
    registry.publish("b", path("b"), fake(50, 2), &LoadOptions::default()).unwrap();
}

#[test]
fn pinned_adapters_leave_room_on_the_device_for_each_of_the_others() {
    let registry = registry_within(1000, 100);
    let pinned = LoadOptions { pinned: Some(true), ..LoadOptions::default() };
    registry.publish("a", path("a"), fake(40, 1), &pinned).unwrap();
    let other = registry.publish("b", path("b"), fake(60, 2), &LoadOptions::default()).unwrap();
    let error = registry.publish("c", path("c"), fake(61, 3), &LoadOptions::default()).unwrap_err();
    let name = "c".to_owned();
    let refused =
        AdapterError::DeviceMemory { name, needed_bytes: 61, available_bytes: 60, limit_bytes: 100 };
    assert_eq!(error, refused);

    // Beside what is pinned, c has to leave 60 bytes to b.
    let error = registry.publish("c", path("c"), fake(1, 3), &pinned).unwrap_err();
    let refused = AdapterError::PinnedMemory {
        name: "c".to_owned(),
        left_bytes: 59,
        limit_bytes: 100,
        other: other.name,
        generation: other.generation,
        needed_bytes: 60,
    };
    assert_eq!(error, refused);
    registry.publish("c", path("c"), fake(1, 3), &LoadOptions::default()).unwrap();
    assert_eq!(registry.pin("c", true).unwrap_err(), refused);
    // Alone with a it fits: what is pinned itself needs no further room.
    registry.pin("b", true).unwrap_err();
    registry.unload("c", None).unwrap();
    registry.pin("b", true).unwrap();
    registry.pin("a", true).unwrap();
}

#[test]
fn generations_that_requests_hold_keep_their_room_on_the_device() {
    let registry = registry_within(1000, 70);
    let pinned = LoadOptions { pinned: Some(true), ..replace() };
    registry.publish("a", path("a"), fake(40, 1), &pinned).unwrap();
    // Nobody holds what is replaced: it goes.
    let other = registry.publish("a", path("a"), fake(40, 2), &pinned).unwrap();
    let held = registry.lease("a", None).unwrap();
    let error = registry.publish("a", path("a"), fake(40, 3), &pinned).unwrap_err();
    let refused = AdapterError::PinnedMemory {
        name: "a".to_owned(),
        left_bytes: 30,
        limit_bytes: 70,
        other: other.name,
        generation: other.generation,
        needed_bytes: 40,
    };
    assert_eq!(error, refused);
    let unpinned = LoadOptions { pinned: Some(false), ..replace() };
    registry.publish("a", path("a"), fake(40, 3), &unpinned).unwrap();
    assert_eq!(registry.pin("a", true).unwrap_err(), refused);
    drop(held);
    registry.pin("a", true).unwrap();
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
