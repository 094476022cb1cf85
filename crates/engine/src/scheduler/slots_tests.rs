use super::*;
use crate::adapter::limits::RegistryLimits;
use crate::adapter::{AdapterLevel, LoadOptions};
use crate::simulation::SimAdapter;

/// A registry with room for all, and three slots within `max_device_bytes`.
struct Bench {
    registry: Arc<AdapterRegistry>,
    slots: SlotTable,
    next_content: u64,
}

impl Bench {
    fn new(max_device_bytes: u64) -> Self {
        let registry = Arc::new(AdapterRegistry::new(RegistryLimits {
            max_host_bytes: u64::MAX,
            max_device_bytes,
            max_adapters: 16,
            max_name_bytes: 16,
            num_slots: 3,
        }));
        Self { slots: SlotTable::new(3, registry.clone()), registry, next_content: 0 }
    }

    fn load(&mut self, name: &str, device_bytes: u64, pinned: bool) -> Arc<Lease> {
        self.next_content += 1;
        let adapter = SimAdapter { device_bytes, ..SimAdapter::new(self.next_content) };
        let source = adapter.clone().in_process(name);
        let options = LoadOptions { replace: true, pinned: Some(pinned), ..LoadOptions::default() };
        self.registry.publish(name, source, Arc::new(adapter), &options).unwrap();
        self.registry.lease(name, None).unwrap()
    }

    /// The slot that a new running sequence gets, and the slots that are emptied for it.
    fn acquire(&mut self, lease: &Lease) -> Option<(u32, Vec<u32>)> {
        let got = match self.slots.acquire(lease) {
            SlotAnswer::Ready(slot) => Some((slot.0, vec![])),
            SlotAnswer::Bind { bind, clears } => Some((bind.slot.0, clears.iter().map(|s| s.0).collect())),
            SlotAnswer::NoneFree => None,
            SlotAnswer::NotResident | SlotAnswer::Failed(_) => panic!("every adapter is in memory"),
        };
        assert!(self.slots.bound_bytes() <= self.slots.max_bytes);
        got
    }

    /// As a sequence that runs and ends.
    fn pass(&mut self, lease: &Lease) -> Option<(u32, Vec<u32>)> {
        let got = self.acquire(lease);
        if let Some((slot, _)) = got {
            self.slots.release(SlotIdx(slot));
        }
        got
    }

    /// Names of adapters in slots, sorted.
    fn bound(&self) -> String {
        let on_device = self.registry.list().into_iter().filter(|a| a.level == AdapterLevel::Device);
        on_device.map(|a| a.name).collect()
    }
}

#[test]
fn the_least_recently_used_leave_until_slot_and_bytes_suffice() {
    let mut bench = Bench::new(100);
    let [a, b, c] = ["a", "b", "c"].map(|name| bench.load(name, 30, false));
    let [d, e, f] = [("d", 30), ("e", 50), ("f", 100)].map(|(name, bytes)| bench.load(name, bytes, false));
    for (lease, slot) in [(&a, 0), (&b, 1), (&c, 2), (&a, 0)] {
        assert_eq!(bench.pass(lease), Some((slot, vec![])));
    }
    // The bytes of one adapter are free, a slot is not: b was used longest ago.
    assert_eq!(bench.pass(&d), Some((1, vec![1])));
    assert_eq!(bench.bound(), "acd");
    // 10 bytes are free: c and a leave, though one slot would do.
    assert_eq!(bench.pass(&e), Some((2, vec![2, 0])));
    assert_eq!((bench.bound().as_str(), bench.slots.bound_bytes()), ("de", 80));
    // A slot is free, 20 bytes are: d leaves, and the free slot is taken.
    assert_eq!(bench.pass(&a), Some((0, vec![1])));
    assert_eq!(bench.bound(), "ae");
    assert_eq!(bench.pass(&f), Some((1, vec![2, 0])));
    assert_eq!((bench.bound().as_str(), bench.slots.bound_bytes()), ("f", 100));
}

#[test]
fn what_is_in_use_or_pinned_stays_and_nothing_leaves_in_vain() {
    let mut bench = Bench::new(100);
    let (pinned, a) = (bench.load("p", 20, true), bench.load("a", 40, false));
    let (b, large) = (bench.load("b", 30, false), bench.load("l", 80, false));
    bench.pass(&pinned);
    bench.pass(&b);
    assert_eq!(bench.acquire(&a), Some((2, vec![])));
    // Without b there would be 40 bytes, which is not enough.
    assert_eq!(bench.pass(&large), None);
    assert_eq!(bench.bound(), "abp");
    bench.slots.release(SlotIdx(2));
    assert_eq!(bench.pass(&large), Some((1, vec![1, 2])));
    assert_eq!(bench.bound(), "lp");
}

#[test]
fn slots_are_freed_for_an_adapter_only_if_it_then_fits() {
    let mut bench = Bench::new(100);
    let (a, b) = (bench.load("a", 40, false), bench.load("b", 40, false));
    let (large, pinned) = (bench.load("l", 80, false), bench.load("p", 20, true));
    bench.acquire(&a);
    bench.acquire(&b);
    bench.pass(&pinned);
    let in_the_way = |bench: &Bench, may_be_freed: &[u32]| {
        let slots = bench.slots.in_the_way(&large, |slot| may_be_freed.contains(&slot.0));
        slots.iter().map(|slot| slot.0).collect::<Vec<_>>()
    };
    assert!(in_the_way(&bench, &[0]).is_empty());
    assert!(in_the_way(&bench, &[0, 2]).is_empty(), "what is pinned stays");
    assert_eq!(in_the_way(&bench, &[0, 1]), [0, 1]);
    // One that nobody uses leaves before those that are in use, and is in nobody's way.
    bench.slots.release(SlotIdx(0));
    assert_eq!(in_the_way(&bench, &[1]), [1]);
}

#[test]
fn an_adapter_that_could_not_be_bound_takes_no_bytes() {
    let mut bench = Bench::new(100);
    let (a, b) = (bench.load("a", 60, false), bench.load("b", 60, false));
    bench.acquire(&a);
    bench.slots.release(SlotIdx(0));
    bench.slots.unbind(SlotIdx(0));
    assert_eq!((bench.slots.bound_bytes(), bench.slots.counts()), (0, (3, 0, 0)));
    assert_eq!(bench.pass(&b), Some((0, vec![])));
    // Nor does one that is gone, once its slot is swept.
    bench.registry.unload("b", None).unwrap();
    drop(b);
    assert_eq!(bench.slots.sweep(), [SlotIdx(0)]);
    assert_eq!(bench.slots.bound_bytes(), 0);
}
