//! The device tier's limit in bytes, on a real decoder: adapters take turns within it, and what never fits is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use support::assert_nothing_is_held;
use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use wardrobe::{
    AdapterError, Engine, EngineConfig, EngineOptions, LoadOptions, Model, ModelOptions, Request,
    SamplingParams, adapter_source,
};

#[test]
fn a_limit_in_bytes_on_the_device_changes_no_answer() {
    let folder = TinyModel::default().write();
    let model = Model::open(folder.path(), &ModelOptions::default()).unwrap();
    let start = |max_adapters_device_bytes| {
        let config = EngineConfig { max_adapters_device_bytes, ..EngineConfig::default() };
        let options =
            EngineOptions { config, kv_bytes: Some(16 << 20), num_slots: 3, ..EngineOptions::default() };
        model.engine(&options).unwrap()
    };
    let names = ["a", "b", "c"];
    let load = |engine: &Engine, name: &str| {
        let kind = RandomLora { seed: name.as_bytes()[0].into(), ..RandomLora::default() };
        engine.load_adapter(name, adapter_source(kind.build(model.config())), LoadOptions::default())
    };
    let answers = |engine: &Engine| {
        let of_each = names.iter().map(|name| {
            let request = Request::new(Rng::new(3).tokens(20, 320)).with_adapter(*name).with_max_tokens(12);
            Request { ignore_eos: true, ..request.with_sampling(SamplingParams::greedy()) }
        });
        let streams = engine.submit_all(of_each.clone().chain(of_each).collect()).unwrap();
        streams.into_iter().map(|stream| stream.completion_blocking().choices).collect::<Vec<_>>()
    };

    let roomy = start(None);
    let [size, ..] = names.map(|name| load(&roomy, name).unwrap().device_bytes);
    let expected = answers(&roomy);
    assert!(expected[0] != expected[1] && expected[1] != expected[2]);
    let stats = roomy.stats();
    assert_eq!((stats.bound_slots, stats.bound_bytes), (3, 3 * size));

    let tight = start(Some(3 * size - 1));
    for name in names {
        let info = load(&tight, name).unwrap();
        assert_eq!((info.device_bytes, info.host_bytes), (size, size), "one memory on the CPU");
    }
    assert_eq!(answers(&tight), expected);
    let stats = tight.stats();
    assert_eq!((stats.total_slots, stats.bound_slots, stats.bound_bytes), (3, 2, 2 * size));
    assert_nothing_is_held(&tight);

    let refused = load(&start(Some(size - 1)), "a").unwrap_err();
    let (name, limit_bytes) = ("a".to_owned(), size - 1);
    let expected =
        AdapterError::DeviceMemory { name, needed_bytes: size, available_bytes: limit_bytes, limit_bytes };
    assert_eq!(refused, expected);
}
