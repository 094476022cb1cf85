//! Bytes on the device: who waits for them gets them, and holds up nobody else.

use super::*;
use crate::AdapterError;

fn bench(max_adapters_device_bytes: u64, config: EngineConfig) -> Bench {
    let config = EngineConfig { max_adapters_device_bytes: Some(max_adapters_device_bytes), ..config };
    Bench::new(ROOMY, config)
}

fn load(bench: &Bench, name: &str, device_bytes: u64) -> Result<(), AdapterError> {
    let content = u64::from(name.as_bytes()[0]);
    bench.load(name, SimAdapter { device_bytes, ..adapter(content) }.in_process(name), true)
}

fn of(name: &str, max_tokens: usize) -> Request {
    Request { ignore_eos: true, ..Request::new(tokens(1..5)).with_adapter(name).with_max_tokens(max_tokens) }
}

#[test]
fn waiting_for_bytes_holds_up_nobody_else_and_ends() {
    let mut bench = bench(100, EngineConfig { max_slot_skips: 3, ..plain() });
    for (name, device_bytes) in [("ada", 40), ("bob", 30), ("cyd", 80)] {
        load(&bench, name, device_bytes).unwrap();
    }
    let _first = bench.submit(of("ada", 20));
    bench.turn();
    let mut large = bench.submit(of("cyd", 20));
    let small = bench.submit(of("bob", 1));
    let base = bench.submit(Request { adapter: None, ..of("ada", 1) });
    bench.turn();
    bench.turn();
    assert_eq!((finished(small).1, finished(base).1), (vec![1], vec![1]), "what fits passes what does not");
    let stats = bench.stats();
    assert_eq!((stats.bound_bytes, stats.bound_slots, stats.total_slots), (70, 2, 4));
    assert_eq!(stats.waiting_adapters, ["cyd"], "slots are free, bytes are not");
    // A stream of requests that fit may pass it only so often.
    let mut others = Vec::new();
    for idx in 0..200 {
        others.push(bench.submit(of(["ada", "bob"][idx % 2], 20)));
        bench.turn();
        if large.try_next().is_some() {
            break;
        }
    }
    assert!(others.len() < 100, "it had to wait for {} requests", others.len());
    assert_eq!((bench.stats().bound_bytes, bench.stats().bound_slots), (80, 1), "two left for one");
    bench.settle();
    assert!(others.into_iter().all(|stream| finished(stream).1 == [1]));
    bench.assert_at_rest();
}

#[test]
fn pinned_adapters_starve_nobody() {
    let mut bench = bench(100, plain());
    for (name, device_bytes) in [("ada", 40), ("bob", 40), ("cyd", 60)] {
        load(&bench, name, device_bytes).unwrap();
    }
    bench.shared.registry.pin("ada", true).unwrap();
    bench.ask(of("ada", 2));
    let refused = bench.shared.registry.pin("bob", true).unwrap_err();
    assert!(matches!(refused, AdapterError::PinnedMemory { .. }), "{refused}");
    let refused = load(&bench, "dot", 61).unwrap_err();
    assert!(matches!(refused, AdapterError::DeviceMemory { .. }), "{refused}");
    let streams = ["bob", "cyd", "ada", "cyd", "bob"].map(|name| bench.submit(of(name, 8)));
    bench.settle();
    assert!(streams.into_iter().all(|stream| finished(stream).1 == [1]));
    bench.assert_at_rest();
}

#[test]
fn a_pin_waits_for_requests_on_what_it_replaces() {
    let mut bench = bench(100, plain());
    load(&bench, "ada", 60).unwrap();
    bench.shared.registry.pin("ada", true).unwrap();
    let running = bench.submit(of("ada", 4));
    bench.turn();
    // Both at once would leave whoever comes second without bytes for ever.
    let refused = load(&bench, "ada", 50).unwrap_err();
    assert!(matches!(refused, AdapterError::PinnedMemory { .. }), "{refused}");
    bench.settle();
    assert_eq!(finished(running).1, [1]);
    load(&bench, "ada", 50).unwrap();
    assert!(bench.shared.registry.list()[0].pinned);
    bench.ask(of("ada", 2));
    assert_eq!(bench.stats().bound_bytes, 50);
}

#[test]
fn slow_readers_do_not_keep_bytes() {
    let config = EngineConfig { stream_buffer_tokens: 4, ..plain() };
    let mut bench = bench(100, config);
    for (name, device_bytes) in [("ada", 40), ("bob", 40), ("cyd", 90)] {
        load(&bench, name, device_bytes).unwrap();
    }
    let slow = [bench.submit(of("ada", 8)), bench.submit(of("bob", 8))];
    bench.settle();
    assert_eq!((bench.stats().leased_slots, bench.stats().bound_bytes), (2, 80));
    // Both have to leave for it, in one turn.
    let large = bench.submit(of("cyd", 3));
    bench.settle();
    assert_eq!(finished(large).1, [1]);
    assert_eq!(bench.stats().preemptions, 2);
    drop(slow);
    bench.settle();
    bench.assert_at_rest();
}
