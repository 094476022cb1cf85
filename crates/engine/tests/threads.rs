//! The engine under real threads: clients, a replacer, streams dropped at random.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wardrobe_engine::simulation::{SIM_EOS, SimAdapter, SimCodec, SimControl, SimExecutor, SimLoader};
use wardrobe_engine::{
    AdapterError, AdapterSource, Completion, Engine, EngineConfig, EngineObserver, Finish, GenerationId,
    LoadOptions, Request, RequestRecord, Speculation, StepRecord, SubmitError, TokenId,
};

const NAMES: [&str; 8] = ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7"];

fn start(num_blocks: usize, num_slots: usize, config: EngineConfig) -> (Engine, SimControl, Arc<SimLoader>) {
    let executor = SimExecutor::new(num_blocks, num_slots, 200, 512);
    let control = executor.control();
    let loader = Arc::new(SimLoader::new());
    let config = EngineConfig { eos_token_ids: vec![SIM_EOS], ..config };
    let engine = Engine::start(Box::new(executor), loader.clone(), Arc::new(SimCodec), config).unwrap();
    (engine, control, loader)
}

fn request(kind: u64) -> Request {
    let prompt: Vec<TokenId> = (0..20 + 5 * (kind as u32 % 5)).map(|i| TokenId(1 + i % 150)).collect();
    Request { ignore_eos: true, ..Request::new(prompt).with_max_tokens(24).with_seed(kind) }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn assert_idle(engine: &Engine) {
    wait_until("all requests closed", || engine.stats().open_requests == 0);
    let stats = engine.stats();
    assert_eq!((stats.running_sequences, stats.waiting_sequences), (0, 0));
    assert_eq!((stats.used_blocks, stats.leased_slots), (0, 0));
    assert!(stats.running_adapters.is_empty() && stats.waiting_adapters.is_empty());
    assert!(engine.adapters().iter().all(|adapter| adapter.open_requests == 0));
}

/// One request's prompts are all answered by one generation, however fast the adapter is replaced meanwhile.
#[test]
fn requests_submitted_together_share_a_generation() {
    let config = EngineConfig { max_adapters_host_bytes: 1 << 20, ..EngineConfig::default() };
    let (engine, _control, loader) = start(400, 4, config);
    let load = |content: u64| {
        let path = format!("/adapters/{content}");
        loader.put(&path, SimAdapter::new(content));
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        engine.load_adapter("a", AdapterSource::Path(path.into()), options).unwrap();
    };
    load(1);
    let stop = AtomicBool::new(false);
    let mut generations = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| (2..).take_while(|_| !stop.load(Ordering::Relaxed)).for_each(load));
        for _ in 0..20 {
            // Whatever else the machine does: the answers of two rounds are by different generations.
            let answered = generations.last().copied().flatten();
            wait_until("a replacement", || engine.adapters().iter().all(|a| Some(a.generation) != answered));
            let together = (0..40).map(|_| request(3).with_adapter("a").with_max_tokens(2)).collect();
            let streams = engine.submit_all(together).unwrap();
            let answers: Vec<Completion> = streams.into_iter().map(|s| s.completion_blocking()).collect();
            for answer in &answers {
                assert_eq!(answer.summary.generation, answers[0].summary.generation);
                assert_eq!(answer.choices, answers[0].choices);
            }
            generations.push(answers[0].summary.generation);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(generations.windows(2).all(|pair| pair[0] < pair[1]), "{generations:?}");
    assert_idle(&engine);
}

/// Replaces adapters in a loop while 16 clients ask; every answer is that of the generation it reports.
#[test]
fn replacing_under_load() {
    let config = EngineConfig { max_adapters_host_bytes: 6 * 1024, ..EngineConfig::default() };
    let (engine, control, loader) = start(160, 4, config);
    let stop = AtomicBool::new(false);
    let next_content = AtomicU64::new(1);
    let load = |name: &str| {
        let content = next_content.fetch_add(1, Ordering::Relaxed);
        let path = format!("/adapters/{content}");
        loader.put(&path, SimAdapter::new(content));
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        (
            engine.load_adapter(name, AdapterSource::Path(path.into()), options).map(|info| info.generation),
            content,
        )
    };
    let mut contents = BTreeMap::new();
    for name in NAMES {
        let (generation, content) = load(name);
        contents.insert(generation.unwrap(), content);
    }
    let client = |idx: u64| {
        let mut answers = Vec::new();
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                return answers;
            }
            let kind = (idx * 7 + round) % 11;
            let name = NAMES[(idx + round) as usize % NAMES.len()];
            let mut stream = match engine.submit(request(kind).with_adapter(name)) {
                Ok(stream) => stream,
                Err(error) => panic!("{error}"),
            };
            if (idx + round).is_multiple_of(9) {
                stream.next();
                drop(stream);
                continue;
            }
            answers.push((kind, stream.completion_blocking()));
        }
        answers
    };
    let answers: Vec<(u64, Completion)> = std::thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..16).map(|idx| scope.spawn(move || client(idx))).collect();
        let started = Instant::now();
        let mut refused = 0;
        for round in 0.. {
            if started.elapsed() > Duration::from_millis(1500) && contents.len() > 50 {
                break;
            }
            let name = NAMES[round % NAMES.len()];
            match load(name) {
                (Ok(generation), content) => drop(contents.insert(generation, content)),
                // All the host memory may be leased for a moment; the name then stays as it was.
                (Err(AdapterError::HostMemory { .. }), _) => refused += 1,
                (Err(error), _) => panic!("{error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        stop.store(true, Ordering::Relaxed);
        eprintln!("{} loads, {refused} refused", contents.len());
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(control.violation(), None);
    assert_idle(&engine);
    let (alone, _, _) = start(64, 1, EngineConfig::default());
    let mut expected: BTreeMap<(u64, u64), String> = BTreeMap::new();
    for (kind, completion) in &answers {
        let content = contents[&completion.summary.generation.unwrap()];
        let text = expected.entry((*kind, content)).or_insert_with(|| {
            let options = LoadOptions { replace: true, ..LoadOptions::default() };
            alone.load_adapter("x", SimAdapter::new(content).in_process("x"), options).unwrap();
            alone.generate(request(*kind).with_adapter("x")).unwrap().choices.remove(0).text
        });
        assert_eq!(completion.choices[0].finish, Some(Finish::Length), "no request fails");
        assert_eq!(&completion.choices[0].text, text);
    }
    println!("{} answers over {} generations", answers.len(), contents.len());
    assert!(answers.len() > 100, "{} answers", answers.len());
}

#[test]
fn the_last_handle_ends_the_engine_and_its_streams() {
    let (engine, control, _) = start(64, 0, EngineConfig::default());
    control.set_step_delay(Duration::from_millis(5));
    let mut stream = engine.submit(Request { max_tokens: Some(400), ..request(1) }).unwrap();
    assert!(stream.next().is_some());
    let second = engine.clone();
    drop(engine);
    assert!(second.stats().unhealthy.is_none());
    drop(second);
    let completion = stream.completion_blocking();
    assert!(matches!(completion.choices[0].finish, Some(Finish::Cancelled { .. })));
}

#[test]
fn shutdown_drains() {
    let (engine, control, _) = start(64, 0, EngineConfig::default());
    control.set_step_delay(Duration::from_millis(2));
    let stream = engine.submit(request(1)).unwrap();
    engine.shutdown(Duration::from_secs(60));
    assert_eq!(stream.completion_blocking().choices[0].finish, Some(Finish::Length));
    assert_eq!(engine.submit(request(1)).map(drop), Err(SubmitError::ShuttingDown));
    let load = engine.load_adapter("x", SimAdapter::new(1).in_process("x"), LoadOptions::default());
    assert!(load.is_err());
    engine.shutdown(Duration::ZERO);
}

#[test]
fn an_evicted_adapter_is_read_again_by_itself() {
    let config = EngineConfig { max_adapters_host_bytes: 2048, ..EngineConfig::default() };
    let (engine, _, loader) = start(64, 1, config);
    for (name, content) in [("a", 1), ("b", 2), ("c", 3)] {
        loader.put(name, SimAdapter::new(content));
        engine.load_adapter(name, AdapterSource::Path(name.into()), LoadOptions::default()).unwrap();
    }
    let first = engine.generate(request(1).with_adapter("a")).unwrap();
    for name in ["b", "c", "a"] {
        let completion = engine.generate(request(1).with_adapter(name)).unwrap();
        assert_eq!(completion.choices[0].finish, Some(Finish::Length));
        assert_eq!(completion.choices == first.choices, name == "a");
    }
    // `b` is the one on disk now. What is there changes: that is not what was loaded under the name.
    loader.put("b", SimAdapter::new(9));
    let changed = engine.generate(request(1).with_adapter("b")).unwrap();
    let Some(Finish::Error { message }) = &changed.choices[0].finish else { panic!("{changed:?}") };
    assert!(message.contains("changed on disk"), "{message}");
    assert_idle(&engine);
}

#[test]
fn a_failing_loader_is_an_error_and_nothing_else() {
    struct Panics;
    impl wardrobe_engine::AdapterLoader for Panics {
        fn load(&self, _: &AdapterSource) -> Result<Arc<dyn wardrobe_engine::PreparedAdapter>, AdapterError> {
            panic!("a bug in the loader")
        }
    }
    let executor = SimExecutor::new(16, 2, 200, 128);
    let engine =
        Engine::start(Box::new(executor), Arc::new(Panics), Arc::new(SimCodec), EngineConfig::default())
            .unwrap();
    let error =
        engine.load_adapter("x", AdapterSource::Path("x".into()), LoadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("a bug in the loader"), "{error}");
    assert!(engine.generate(request(1)).is_ok());
    let unknown = engine.submit(request(1).with_adapter("x")).map(drop).unwrap_err();
    assert_eq!(unknown, SubmitError::UnknownAdapter { name: "x".into() });
}

#[test]
fn observers_see_every_request_and_step() {
    #[derive(Default)]
    struct Seen {
        requests: AtomicU64,
        tokens: AtomicU64,
        first_tokens: AtomicU64,
        gaps: AtomicU64,
    }
    impl EngineObserver for Seen {
        fn on_request_finished(&self, record: &RequestRecord) {
            assert_eq!(record.finished, ["length", "length"]);
            assert_eq!(record.generation, Some(GenerationId(1)));
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
        fn on_step(&self, record: &StepRecord) {
            self.tokens.fetch_add(record.tokens as u64, Ordering::Relaxed);
            self.first_tokens.fetch_add(record.time_to_first_token.len() as u64, Ordering::Relaxed);
            self.gaps.fetch_add(record.inter_token.len() as u64, Ordering::Relaxed);
        }
    }
    // Without drafts, whose tokens are computed too.
    let config =
        EngineConfig { prefix_cache: false, speculation: Speculation::Off, ..EngineConfig::default() };
    let (engine, _, _) = start(64, 1, config);
    let seen = Arc::new(Seen::default());
    engine.add_observer(seen.clone());
    engine.load_adapter("x", SimAdapter::new(1).in_process("x"), LoadOptions::default()).unwrap();
    engine.generate(request(0).with_adapter("x").with_n(2)).unwrap();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    // Each choice: 20 tokens of prompt, 24 sampled, of which the last is never computed.
    assert_eq!((count(&seen.requests), count(&seen.tokens)), (1, 2 * 43));
    assert_eq!((count(&seen.first_tokens), count(&seen.gaps)), (1, 2 * 23));
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.generation_tokens, stats.finished_length), (20, 48, 2));
}
