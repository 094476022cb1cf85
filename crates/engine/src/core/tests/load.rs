//! Load at random: every answer equals the one that the same request gives alone.

use super::*;
use crate::request::SamplingParams;
use crate::response::Finish;
use crate::simulation::SimFailure;
use crate::{AdapterError, GenerationId, SubmitError};

/// SplitMix64.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

const NAMES: [&str; 5] = ["ada", "bob", "cyd", "dot", "eve"];
/// What the smallest adapter takes on the device.
const MIN_DEVICE_BYTES: u64 = 10;

/// A request in the test's hands.
struct Client {
    request: Request,
    stream: Option<ResponseStream>,
    completion: Completion,
    terminals: Vec<usize>,
    summaries: usize,
    /// Reads in one of this many turns; 0 never.
    reads_one_in: u64,
}

impl Client {
    fn read(&mut self) {
        while let Some(event) = self.stream.as_mut().and_then(ResponseStream::try_next) {
            note(&event, &mut self.terminals, &mut self.summaries);
            self.completion.apply(event);
        }
    }
}

pub(super) fn random_request(random: &mut Random) -> Request {
    // Few prompts, so that prefixes are shared; some of their own.
    let base = random.below(4) as u32;
    let len = 1 + random.below(70);
    let own = if random.one_in(3) { random.below(97) as u32 } else { 0 };
    let prompt = tokens((0..len as u32).map(|i| 1 + (base * 31 + i * (7 + base) + own * (i / 20)) % 100));
    let sampling = SamplingParams {
        temperature: if random.one_in(3) { 0.0 } else { 0.8 },
        frequency_penalty: if random.one_in(4) { 0.5 } else { 0.0 },
        logit_bias: if random.one_in(5) { vec![(TokenId(5), 1.5)] } else { Vec::new() },
        bad_words: if random.one_in(4) { vec![tokens([9]), tokens([3, 4])] } else { Vec::new() },
        seed: Some(random.below(1 << 40)),
        ..SamplingParams::default()
    };
    let adapter = random.one_in(3).then_some(()).map_or_else(|| Some(random.below(5) as usize), |()| None);
    Request {
        adapter: adapter.map(|idx| NAMES[idx].to_owned()),
        adapter_scale: if adapter.is_some() && random.one_in(3) { 0.5 } else { 1.0 },
        max_tokens: Some(random.below(40) as usize),
        min_tokens: 0,
        ignore_eos: random.one_in(2),
        stop_strings: if random.one_in(3) { vec!["ab".into(), "q".into()] } else { Vec::new() },
        stop_token_ids: if random.one_in(4) { tokens([42]) } else { Vec::new() },
        n: if random.one_in(4) { 1 + random.below(3) as usize } else { 1 },
        logprobs: random.one_in(3).then_some(2),
        prompt_logprobs: random.one_in(6).then_some(1),
        priority: random.below(3) as i32 - 1,
        cache_salt: random.one_in(4).then(|| "tenant".to_owned()),
        sampling,
        ..Request::new(prompt)
    }
}

/// Contents of generations, to find the reference for an answer.
type Contents = std::collections::BTreeMap<GenerationId, u64>;

fn load_random(
    bench: &Bench,
    random: &mut Random,
    contents: &mut Contents,
    next_content: &mut u64,
    seen: &mut Seen,
) {
    let name = NAMES[random.below(5) as usize];
    *next_content += 1;
    let path = format!("/adapters/{next_content}");
    // On the device it may take more than on the host, or less.
    let (host_bytes, device_bytes) = (10 + random.below(20), MIN_DEVICE_BYTES + random.below(20));
    let sim = SimAdapter { host_bytes, device_bytes, ..adapter(*next_content) };
    bench.loader.put(&path, sim.clone());
    let in_process = random.one_in(8);
    let source = if in_process { sim.in_process("trained") } else { source(&path) };
    // Refusals for lack of memory are expected.
    if let Err(AdapterError::DeviceMemory { .. }) = bench.load(name, source, true) {
        seen.refused_by_device_bytes += 1;
    }
    for info in bench.shared.registry.list() {
        let content = u64::from_le_bytes(info.digest[..8].try_into().unwrap());
        contents.insert(info.generation, content);
    }
}

/// The answer to the client's request when nothing else runs.
fn alone(client: &Client, contents: &Contents, echo: u64) -> Completion {
    let summary = &client.completion.summary;
    let mut bench = Bench::echoing(echo, ROOMY, plain());
    let mut request = client.request.clone();
    if let Some(name) = &request.adapter {
        let content = contents[&summary.generation.unwrap()];
        bench.load(name, adapter(content).in_process("alone"), false).unwrap();
    }
    request.priority = 0;
    let completion = bench.ask(request);
    bench.assert_at_rest();
    completion
}

pub(super) struct Scenario {
    pub seed: u64,
    pub requests: usize,
    pub size: Size,
    pub config: EngineConfig,
    pub failures: bool,
    /// See [`Bench::echoing`].
    pub echo: u64,
}

#[derive(Default)]
pub(super) struct Seen {
    pub compared: usize,
    pub partial: usize,
    pub preemptions: u64,
    pub hits: u64,
    pub failed: u64,
    pub cancelled: u64,
    pub drafted: u64,
    pub accepted: u64,
    /// Adapters too large for the device beside what is pinned.
    refused_by_device_bytes: u64,
    pins_refused_by_device_bytes: u64,
    /// Turns in which bytes ran short before slots did.
    short_of_device_bytes: u64,
}

pub(super) fn run(scenario: &Scenario) -> Seen {
    let mut random = Random(scenario.seed);
    let mut bench = Bench::echoing(scenario.echo, scenario.size, scenario.config.clone());
    let (mut contents, mut next_content) = (Contents::new(), scenario.seed * 1000);
    let mut clients: Vec<Client> = Vec::new();
    let mut seen = Seen::default();
    let mut turns = 0;
    loop {
        turns += 1;
        assert!(turns < 200_000, "seed {}: the load is never done", scenario.seed);
        let submitting = clients.len() < scenario.requests;
        if submitting && random.one_in(2) {
            let request = random_request(&mut random);
            match bench.try_submit(request.clone()) {
                Ok(stream) => clients.push(Client {
                    request,
                    stream: Some(stream),
                    completion: Completion::default(),
                    terminals: Vec::new(),
                    summaries: 0,
                    reads_one_in: [1, 1, 1, 20, 0][random.below(5) as usize],
                }),
                Err(SubmitError::UnknownAdapter { .. } | SubmitError::Overloaded { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        if submitting {
            match random.below(40) {
                0..=3 => load_random(&bench, &mut random, &mut contents, &mut next_content, &mut seen),
                4 => drop(bench.shared.registry.unload(NAMES[random.below(5) as usize], None)),
                5 => {
                    let pinned = bench.shared.registry.pin(NAMES[random.below(5) as usize], true);
                    let refused = matches!(
                        pinned,
                        Err(AdapterError::DeviceMemory { .. } | AdapterError::PinnedMemory { .. })
                    );
                    seen.pins_refused_by_device_bytes += u64::from(refused);
                }
                6..=8 => drop(bench.shared.registry.pin(NAMES[random.below(5) as usize], false)),
                9 => {
                    // An adapter changes on disk: what was read before must not be served from it.
                    let path = format!("/adapters/{next_content}");
                    let changed = SimAdapter { host_bytes: 11, ..adapter(u64::MAX - next_content) };
                    bench.loader.put(path, changed);
                }
                10 if scenario.failures => {
                    bench.control.fail_next(SimFailure::Sequence(random.below(9) as usize))
                }
                11 if scenario.failures => bench.control.fail_next(SimFailure::Bind),
                _ => {}
            }
        }
        for client in &mut clients {
            if client.reads_one_in > 0 && random.one_in(client.reads_one_in) {
                client.read();
            }
            if random.one_in(400) {
                client.stream = None;
            }
        }
        let next = bench.turn();
        assert_ne!(next, Next::Stop);
        let stats = bench.stats();
        let limit_bytes = scenario.config.max_adapters_device_bytes;
        let is_short = limit_bytes.is_some_and(|limit| stats.bound_bytes + MIN_DEVICE_BYTES > limit);
        let waits = !stats.waiting_adapters.is_empty() && stats.bound_slots < stats.total_slots;
        seen.short_of_device_bytes += u64::from(is_short && waits);
        if let Next::Wait(until) = next {
            // Time passes; it must never wait for ever while requests are open and readable.
            bench.now += Duration::from_millis(5);
            if !submitting && bench.stats().open_requests == 0 {
                break;
            }
            let all_read = clients.iter().all(|client| client.reads_one_in == 1 || client.stream.is_none());
            assert!(until.is_some() || !all_read || bench.stats().open_requests == 0, "stuck");
        }
    }
    bench.assert_at_rest();
    let stats = bench.stats();
    seen.preemptions = stats.preemptions;
    seen.hits = stats.prefix_hit_tokens;
    seen.failed = stats.finished_error;
    seen.cancelled = stats.finished_cancelled;
    seen.drafted = stats.drafted_tokens;
    seen.accepted = stats.accepted_tokens;
    for client in &mut clients {
        client.read();
        if client.stream.is_none() {
            continue;
        }
        assert_eq!(client.summaries, 1);
        assert_eq!(client.terminals, vec![1; client.request.n], "one end for each choice");
        let expected = alone(client, &contents, scenario.echo);
        for (choice, expected) in client.completion.choices.iter().zip(&expected.choices) {
            match choice.finish.as_ref().unwrap() {
                Finish::Stop(_) | Finish::Length => {
                    assert_eq!(choice, expected, "{:?}", client.request);
                    seen.compared += 1;
                }
                _ => {
                    // Cut off: what there is must be the start of the answer.
                    assert!(expected.token_ids.starts_with(&choice.token_ids));
                    assert!(expected.logprobs.starts_with(&choice.logprobs));
                    seen.partial += usize::from(!choice.token_ids.is_empty());
                }
            }
        }
        if client.completion.prompt_logprobs.is_some() {
            assert_eq!(client.completion.prompt_logprobs, expected.prompt_logprobs);
        }
    }
    seen
}

pub(super) fn tight() -> EngineConfig {
    EngineConfig {
        max_num_sequences: 6,
        max_batch_tokens: 32,
        max_chunk_tokens: 20,
        queue_capacity: 40,
        max_adapters_host_bytes: 75,
        max_slot_skips: 4,
        stream_buffer_tokens: 6,
        stream_stall_timeout: Duration::from_millis(150),
        ..plain()
    }
}

#[test]
fn every_answer_equals_the_one_given_alone() {
    // WARDROBE_SIM_SEEDS asks for a longer run.
    let seeds = std::env::var("WARDROBE_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let mut total = Seen::default();
    for seed in 1..=seeds.unwrap_or(16).max(16) {
        let size = Size {
            num_blocks: 9 + 3 * (seed as usize % 4),
            num_slots: 1 + seed as usize % 3,
            max_context_tokens: 112,
        };
        // From less than the largest adapter takes to nearly what two of them do; every fourth run has no limit.
        let max_adapters_device_bytes = (seed % 4 != 0).then(|| 20 + Random(seed).below(36));
        let config = EngineConfig { prefix_cache: seed != 5, max_adapters_device_bytes, ..tight() };
        let seen = run(&Scenario { seed, requests: 100, size, config, failures: seed % 2 == 0, echo: 0 });
        total.compared += seen.compared;
        total.partial += seen.partial;
        total.preemptions += seen.preemptions;
        total.hits += seen.hits;
        total.failed += seen.failed;
        total.cancelled += seen.cancelled;
        total.refused_by_device_bytes += seen.refused_by_device_bytes;
        total.pins_refused_by_device_bytes += seen.pins_refused_by_device_bytes;
        total.short_of_device_bytes += seen.short_of_device_bytes;
    }
    println!(
        "{} answers equal, {} cut off, {} preemptions, {} tokens from the prefix cache, {} failed, {} cancelled",
        total.compared, total.partial, total.preemptions, total.hits, total.failed, total.cancelled
    );
    println!(
        "bytes on the device: {} adapters and {} pins refused, {} turns short of them",
        total.refused_by_device_bytes, total.pins_refused_by_device_bytes, total.short_of_device_bytes
    );
    // The scenarios must really have met what they are about.
    assert!(total.compared > 500, "{} compared", total.compared);
    assert!(total.partial > 50, "{} cut off", total.partial);
    assert!(total.preemptions > 200, "{} preemptions", total.preemptions);
    assert!(total.refused_by_device_bytes > 10 && total.pins_refused_by_device_bytes > 5);
    assert!(total.short_of_device_bytes > 100, "{} turns", total.short_of_device_bytes);
    assert!(total.hits > 1000, "{} tokens from the prefix cache", total.hits);
    assert!(
        total.failed > 50 && total.cancelled > 50,
        "{} failed, {} cancelled",
        total.failed,
        total.cancelled
    );
}

#[test]
fn the_same_events_give_the_same_run() {
    let size = Size { num_blocks: 10, num_slots: 2, max_context_tokens: 112 };
    let steps = || {
        let mut random = Random(99);
        let mut bench = Bench::new(size, tight());
        let mut streams: Vec<_> = (0..12)
            .map(|seed| {
                let request = Request { adapter: None, adapter_scale: 1.0, ..random_request(&mut random) };
                bench.submit(request.with_seed(seed))
            })
            .collect();
        let mut trace = Vec::new();
        for turn in 0..150 {
            if turn % 4 == 0 {
                streams.iter_mut().for_each(|stream| while stream.try_next().is_some() {});
            }
            bench.turn();
            let stats = bench.stats();
            trace.push((
                stats.last_step_tokens,
                stats.used_blocks,
                stats.preemptions,
                stats.running_sequences,
            ));
        }
        assert_eq!(bench.stats().open_requests, 0);
        assert!(bench.stats().preemptions > 0);
        drop(streams);
        trace
    };
    assert_eq!(steps(), steps());
}

#[test]
fn a_lost_device_ends_everything() {
    for failure in [SimFailure::Device, SimFailure::Panic] {
        let mut random = Random(5);
        let mut bench = Bench::new(Size { num_blocks: 12, ..ROOMY }, plain());
        bench.load("ada", adapter(1).in_process("a"), false).unwrap();
        let streams: Vec<_> = (0..30)
            .map(|idx| {
                let name = (idx % 2 == 0).then(|| "ada".to_owned());
                let max_tokens = Some(40);
                let request =
                    Request { adapter: name, adapter_scale: 1.0, max_tokens, ..random_request(&mut random) };
                bench.submit(Request {
                    ignore_eos: true,
                    stop_strings: vec![],
                    stop_token_ids: vec![],
                    ..request
                })
            })
            .collect();
        for _ in 0..5 {
            bench.turn();
        }
        bench.control.fail_next(failure);
        while bench.turn() != Next::Stop {}
        let refused = bench.try_submit(Request::new(tokens([1]))).map(drop).unwrap_err();
        assert!(matches!(refused, SubmitError::Unhealthy { .. }), "{refused}");
        let loaded = bench.shared.registry.check_load("x", &LoadOptions::default());
        assert!(matches!(loaded, Err(crate::AdapterError::NotRunning { .. })));
        for stream in streams {
            let (completion, terminals) = finished(stream);
            assert!(terminals.iter().all(|count| *count == 1));
            let lost = |choice: &crate::Choice| matches!(choice.finish, Some(Finish::Error { .. }));
            assert!(completion.choices.iter().all(lost));
        }
        bench.assert_at_rest();
        assert!(bench.stats().unhealthy.is_some());
    }
}
