//! Hot-swap under load: sixteen clients stream from eight names while ten times a second a name gets another adapter.
//! No request may fail, and every answer must be the one that its generation gives when it is alone.
//!
//! Lasts five seconds for each model, or `WARDROBE_HOT_SWAP_SECONDS` (60 for the full proof). A small random model
//! always; SmolLM2-135M-Instruct where `WARDROBE_SMOLLM2` names its GGUF file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use support::{answer, assert_nothing_is_held, smollm2};
use wardrobe::{
    AdapterSource, Completion, Engine, EngineOptions, Event, Finish, GenerationId, LoadOptions, Message,
    Model, ModelOptions, Request, SamplingParams, TokenId,
};

const NUM_CLIENTS: usize = 16;
const NUM_NAMES: usize = 8;
/// Contents that each name alternates between.
const NUM_CONTENTS: usize = 2;
const REPLACEMENTS_PER_S: u32 = 10;
/// Fewer than names, so that adapters also move in and out of slots.
const NUM_SLOTS: usize = 6;

const PROMPTS: [&str; 3] = [
    "Write one sentence about the sea.",
    "Name three rivers in Europe.",
    "Tell me about a lighthouse keeper.",
];

/// A content digest.
type Digest = [u8; 32];

/// What a client asks: which prompt, and greedily or sampled with a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Question {
    prompt: usize,
    is_greedy: bool,
}

/// What must not change: text and tokens.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<TokenId>,
}

/// What a client got.
struct Record {
    question: Question,
    generation: GenerationId,
    answer: Answer,
}

struct Proof {
    model: Model,
    prompts: Vec<Vec<TokenId>>,
    max_tokens: usize,
    /// Adapter folders, by name and content.
    folders: Vec<Vec<PathBuf>>,
}

fn name(idx: usize) -> String {
    format!("adapter-{idx}")
}

fn questions() -> impl Iterator<Item = Question> {
    (0..PROMPTS.len()).flat_map(|prompt| [true, false].map(|is_greedy| Question { prompt, is_greedy }))
}

impl Proof {
    fn new(path: &Path, adapters: &Path, max_tokens: usize) -> Self {
        let model = Model::open(path, &ModelOptions::default()).unwrap();
        let prompts = PROMPTS.map(|p| model.chat_prompt(&[Message::text("user", p)]).unwrap()).into();
        let folders = (0..NUM_NAMES).map(|i| {
            (0..NUM_CONTENTS)
                .map(|content| {
                    let dir = adapters.join(format!("{i}-{content}"));
                    let seed = (100 + i * NUM_CONTENTS + content) as u64;
                    // Ranks differ too: a step mixes them.
                    let kind = RandomLora { rank: 2 + i, strength: 0.7, seed, ..RandomLora::default() };
                    kind.write(model.config(), &dir);
                    dir
                })
                .collect()
        });
        let folders = folders.collect();
        Proof { model, prompts, max_tokens, folders }
    }

    fn engine(&self) -> Engine {
        let options = EngineOptions {
            kv_bytes: Some(64 << 20),
            num_slots: NUM_SLOTS,
            max_context_tokens: Some(256),
            ..EngineOptions::default()
        };
        self.model.engine(&options).unwrap()
    }

    fn load(&self, engine: &Engine, name_idx: usize, content: usize) -> (GenerationId, Digest) {
        let source = AdapterSource::Path(self.folders[name_idx][content].clone());
        let options = LoadOptions { replace: true, ..LoadOptions::default() };
        let info = engine.load_adapter(&name(name_idx), source, options).unwrap();
        (info.generation, info.digest)
    }

    fn request(&self, question: Question, name_idx: usize) -> Request {
        let sampling = if question.is_greedy {
            SamplingParams::greedy()
        } else {
            SamplingParams { temperature: 0.9, top_k: 50, seed: Some(40), ..SamplingParams::default() }
        };
        Request {
            ignore_eos: true,
            ..Request::new(self.prompts[question.prompt].clone())
                .with_adapter(name(name_idx))
                .with_sampling(sampling)
                .with_max_tokens(self.max_tokens)
        }
    }

    /// What each content answers when it is alone, checked to differ pairwise in text.
    fn answers_alone(&self) -> HashMap<(Digest, Question), Answer> {
        let engine = self.engine();
        let mut alone = HashMap::new();
        for name_idx in 0..NUM_NAMES {
            for content in 0..NUM_CONTENTS {
                let (_, digest) = self.load(&engine, name_idx, content);
                for question in questions() {
                    let completion = answer(&engine, self.request(question, name_idx));
                    alone.insert((digest, question), collected(completion));
                }
            }
        }
        let mut texts: Vec<(Question, &str)> =
            alone.iter().map(|((_, q), a)| (*q, a.text.as_str())).collect();
        let all = texts.len();
        assert_eq!(all, NUM_NAMES * NUM_CONTENTS * questions().count());
        texts.sort_by_key(|(q, text)| (q.prompt, q.is_greedy, *text));
        texts.dedup();
        assert_eq!(texts.len(), all, "two adapters give the same text");
        alone
    }
}

fn collected(completion: Completion) -> Answer {
    let choice = completion.choices.into_iter().next().unwrap();
    Answer { text: choice.text, tokens: choice.token_ids }
}

/// Asks and reads the stream event by event.
fn stream(engine: &Engine, request: Request, question: Question) -> Record {
    let max_tokens = request.max_tokens.unwrap();
    let mut got = Answer { text: String::new(), tokens: Vec::new() };
    let (mut finish, mut generation) = (None, None);
    for event in engine.submit(request).unwrap() {
        match event {
            Event::Update(update) => {
                assert_eq!(finish, None, "an update after the last one");
                got.text.push_str(&update.text);
                got.tokens.extend(update.token_ids);
                finish = update.finish;
            }
            Event::Summary(summary) => generation = summary.generation,
            Event::PromptLogprobs(_) => panic!("nobody asked for them"),
        }
    }
    assert_eq!(finish, Some(Finish::Length));
    assert_eq!(got.tokens.len(), max_tokens);
    Record { question, generation: generation.expect("an adapter answered"), answer: got }
}

/// Bytes of this process in memory, where the system tells.
fn resident_bytes() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(statm.split_whitespace().nth(1)?.parse::<usize>().ok()? * 4096)
}

fn duration() -> Duration {
    let seconds = std::env::var("WARDROBE_HOT_SWAP_SECONDS").ok().map(|s| s.parse().unwrap());
    Duration::from_secs_f64(seconds.unwrap_or(5.0))
}

fn prove(case: &str, proof: &Proof) {
    let alone = proof.answers_alone();
    let engine = proof.engine();
    let mut digests: HashMap<GenerationId, Digest> = HashMap::new();
    // Which generation a name is at, for counting answers that outlived theirs.
    let current: Vec<Mutex<GenerationId>> = (0..NUM_NAMES)
        .map(|i| {
            let (generation, digest) = proof.load(&engine, i, 0);
            digests.insert(generation, digest);
            Mutex::new(generation)
        })
        .collect();

    let is_over = AtomicBool::new(false);
    let (answered, outlived) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    // A slow machine takes as long as it needs to answer every client a few times.
    let is_enough = || {
        let many =
            answered.load(Ordering::Relaxed) >= 4 * NUM_CLIENTS && outlived.load(Ordering::Relaxed) > 0;
        let elapsed = started.elapsed();
        elapsed >= duration() && many || elapsed >= 20 * duration()
    };
    let (records, (replacements, replaced_for), resident) = std::thread::scope(|scope| {
        let (engine, current, is_over) = (&engine, &current, &is_over);
        let (answered, outlived) = (&answered, &outlived);
        let clients: Vec<_> = (0..NUM_CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let mut rng = Rng::new(client as u64);
                    let mut records = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        let name_idx = rng.below(NUM_NAMES);
                        let question =
                            Question { prompt: rng.below(PROMPTS.len()), is_greedy: rng.below(2) == 0 };
                        let record = stream(engine, proof.request(question, name_idx), question);
                        let now = *current[name_idx].lock().unwrap();
                        outlived.fetch_add(usize::from(now != record.generation), Ordering::Relaxed);
                        answered.fetch_add(1, Ordering::Relaxed);
                        records.push(record);
                    }
                    records
                })
            })
            .collect();

        let mut replacements = 0u32;
        let mut resident = [None; 2];
        let mut contents = [0; NUM_NAMES];
        let mut rng = Rng::new(99);
        // By the clock and not by sleeping in between, so that a late one is made up for.
        loop {
            let due = started + Duration::from_secs(1) * (replacements + 1) / REPLACEMENTS_PER_S;
            if is_enough() || clients.iter().any(|c| c.is_finished()) {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let name_idx = rng.below(NUM_NAMES);
            contents[name_idx] = (contents[name_idx] + 1) % NUM_CONTENTS;
            let (generation, digest) = proof.load(engine, name_idx, contents[name_idx]);
            *current[name_idx].lock().unwrap() = generation;
            assert_eq!(digests.insert(generation, digest), None, "generations are never reused");
            replacements += 1;
            if resident[0].is_none() && Instant::now() > started + duration() / 2 {
                resident[0] = resident_bytes();
            }
        }
        let replaced_for = started.elapsed();
        resident[1] = resident_bytes();
        is_over.store(true, Ordering::Relaxed);
        let records: Vec<Record> = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
        (records, (replacements, replaced_for), resident)
    });
    let elapsed = started.elapsed();

    assert!(f64::from(replacements) >= 0.9 * f64::from(REPLACEMENTS_PER_S) * replaced_for.as_secs_f64());
    let mut generations = std::collections::HashSet::new();
    for (i, record) in records.iter().enumerate() {
        let digest = digests[&record.generation];
        generations.insert(record.generation);
        let wanted = &alone[&(digest, record.question)];
        assert_eq!(&record.answer, wanted, "answer {i}, generation {}", record.generation);
    }
    assert!(
        records.len() >= NUM_CLIENTS && generations.len() > NUM_NAMES,
        "{} generations answered",
        generations.len()
    );
    assert!(outlived.load(Ordering::Relaxed) > 0, "no answer was overtaken by a replacement");

    assert_nothing_is_held(&engine);
    let stats = engine.stats();
    assert_eq!((stats.finished_error, stats.finished_cancelled), (0, 0));
    assert_eq!(stats.finished_length, records.len() as u64);
    assert!(stats.bound_slots <= NUM_SLOTS, "{stats:?}");
    assert_eq!(engine.adapters().len(), NUM_NAMES);
    for i in 0..NUM_NAMES {
        engine.unload_adapter(&name(i), None).unwrap();
    }
    assert!(engine.adapters().is_empty());

    let mib = |bytes: Option<usize>| bytes.map_or_else(|| "?".to_owned(), |b| (b >> 20).to_string());
    let line = format!(
        "hot swap, {case}: {} answers in {:.1} s by {} of {} generations, {} of them replaced meanwhile; {replacements} \
         replacements; resident {} MiB half-way, {} MiB at the end\n",
        records.len(),
        elapsed.as_secs_f64(),
        generations.len(),
        digests.len(),
        outlived.load(Ordering::Relaxed),
        mib(resident[0]),
        mib(resident[1]),
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// One proof at a time: each takes the whole machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn a_small_model_under_load() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let model = TinyModel { num_layers: 3, ..TinyModel::default() }.write();
    let adapters = tempfile::tempdir().unwrap();
    prove("small model", &Proof::new(model.path(), adapters.path(), 24));
}

#[test]
fn smollm2_under_load() {
    let Some(path) = smollm2::path("smollm2_under_load") else { return };
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let adapters = tempfile::tempdir().unwrap();
    prove("SmolLM2", &Proof::new(&path, adapters.path(), 12));
}
