//! A model in this process: start, load, adapters, steps, limits.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wardrobe_engine::{AdapterSource, Engine, Event, Finish, LoadOptions, Request, SamplingParams, TokenId};

use super::Load;
use super::adapters::{TemporaryFolder, random_adapter, write_random};
use super::load::{Timeline, closed_loop};
use super::machine::{Limits, Machine};
use super::memory::peak_resident_bytes;
use super::report::{AdapterResult, MemoryResult, ModelInfo, Report, ServingResult, StartupResult, Target};
use super::stats::Percentiles;
use super::steps::{self, StepOptions};
use crate::candle::adapter_source;
use crate::dummy::{DummyModel, DummyOptions};
use crate::error::{Error, Result};
use crate::model::{EngineOptions, Model, ModelOptions};

/// Tokens of the prompt for the first token.
const FIRST_PROMPT_TOKENS: usize = 16;
/// Replacements of an adapter that are timed.
const REPLACEMENTS: usize = 10;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Single steps, and what adapters add to them.
    pub steps: bool,
    /// The engine under load.
    pub serving: bool,
    /// Loading and replacing adapters.
    pub swaps: bool,
    /// What the machine can do.
    pub limits: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Parts { steps: true, serving: true, swaps: true, limits: true }
    }
}

/// How to measure a model in this process.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// How to open the model.
    pub model: ModelOptions,
    /// Set: weights are made up, and the model's path is that of its `config.json`.
    pub dummy: Option<DummyOptions>,
    /// How to run the engine.
    pub engine: EngineOptions,
    /// The load on the engine.
    pub load: Load,
    /// Numbers of adapters that requests take in turn, one load each; 0 is the base model. The largest is also how many
    /// are mixed in the timing of steps.
    pub num_adapters: Vec<usize>,
    /// Their rank.
    pub rank: usize,
    /// Rounds of the timing of steps.
    pub rounds: usize,
    /// What to measure.
    pub parts: Parts,
}

impl Default for LocalOptions {
    fn default() -> Self {
        LocalOptions {
            model: ModelOptions::default(),
            dummy: None,
            engine: EngineOptions::default(),
            load: Load::default(),
            num_adapters: vec![0, 8],
            rank: 16,
            rounds: 5,
            parts: Parts::default(),
        }
    }
}

/// Measures the model at `path`, or one that is made up; `progress` is told what comes next.
///
/// # Errors
/// Those of the model, the engine and adapters; [`Error::Setting`] for options that do not fit the model.
pub fn run_local(path: &Path, options: &LocalOptions, progress: &mut dyn FnMut(&str)) -> Result<Report> {
    let machine = Machine::this();
    progress("opening the model");
    let started = Instant::now();
    let dummy = options.dummy.map(|dummy| DummyModel::read(path, &dummy)).transpose()?;
    let model = match &dummy {
        Some(dummy) => dummy.open(&options.model, &|_, _| {})?,
        None => Model::open(path, &options.model)?,
    };
    let open = started.elapsed();
    let max_adapters = options.num_adapters.iter().copied().max().unwrap_or(0);
    check(&model, options, max_adapters)?;
    let mut engine_options = options.engine.clone();
    engine_options.num_slots = engine_options.num_slots.max(max_adapters);
    let config = &mut engine_options.config;
    config.max_num_sequences =
        options.load.concurrency.iter().copied().fold(config.max_num_sequences, usize::max);
    config.max_batch_tokens = config.max_batch_tokens.max(config.max_num_sequences);
    let engine_options = model.settled(&engine_options);
    let engine = model.engine(&engine_options)?;
    let engine_started = started.elapsed();
    // Made-up weights have no file, and are as large as it would be.
    let file_bytes = if dummy.is_some() { model.decoder().weight_bytes() as u64 } else { file_bytes(path) };
    let mut report = Report::new(
        Target::Local(ModelInfo {
            path: path.display().to_string(),
            dummy: dummy.map(|dummy| dummy.description()),
            file_bytes,
            weight_bytes: model.decoder().weight_bytes(),
            device: model.device().name(),
        }),
        machine,
    );
    let bench = EngineBench { engine: &engine, model: &model, options };
    let submitted = Instant::now();
    bench.first_token()?;
    report.startup = Some(StartupResult {
        open_ms: ms(open),
        engine_ms: ms(engine_started - open),
        first_token_ms: ms(submitted.elapsed()),
        total_ms: ms(engine_started + submitted.elapsed()),
    });

    let mut swaps = AdapterResult::default();
    if options.parts.serving || options.parts.swaps {
        let folder = TemporaryFolder::new()?;
        let names = bench.load_adapters(folder.path(), max_adapters, progress)?;
        if options.parts.serving {
            report.serving = bench.serving(&names, progress)?;
            report.memory =
                peak_resident_bytes().map(|peak| memory(peak, file_bytes, &engine, &engine_options, &model));
        }
        if options.parts.swaps && max_adapters > 0 {
            progress("replacing adapters");
            swaps = bench.swaps(folder.path())?;
        }
    }
    engine.shutdown(Duration::ZERO);
    drop(engine);
    if options.parts.steps {
        let step_options = StepOptions {
            rounds: options.rounds,
            num_adapters: max_adapters,
            rank: options.rank,
            kv_dtype: model.kv_dtype(&options.engine),
        };
        let (steps, adapters) = steps::measure(&model, &step_options, progress)?;
        report.steps = steps;
        report.adapters = adapters;
    }
    if options.parts.swaps && max_adapters > 0 {
        let adapters =
            report.adapters.get_or_insert_with(|| AdapterResult { rank: options.rank, ..Default::default() });
        adapters.replace_in_process_ms = swaps.replace_in_process_ms;
        adapters.load_from_disk_ms = swaps.load_from_disk_ms;
    }
    if options.parts.limits {
        // At the end, so that the buffers do not count as memory of the model; twice, since what disturbs a measurement
        // only makes it slower.
        progress("what the machine can do");
        let cpu = options.model.cpu;
        report.set_limits(Limits::measure(cpu)?.best(&Limits::measure(cpu)?));
    }
    Ok(report)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn check(model: &Model, options: &LocalOptions, max_adapters: usize) -> Result<()> {
    let refused = |what: String| Err(Error::Setting(what));
    let load = &options.load;
    if options.parts.serving {
        let needed = load.prompt_tokens.saturating_add(load.max_tokens);
        let context = options
            .engine
            .max_context_tokens
            .unwrap_or(usize::MAX)
            .min(model.config().max_position_embeddings);
        if load.prompt_tokens == 0 || load.max_tokens == 0 || needed > context {
            return refused(format!(
                "prompt and answer of {needed} tokens: at least 1 each, and {context} in all"
            ));
        }
        if load.concurrency.is_empty() || load.concurrency.iter().any(|&c| c == 0 || c > 1024) {
            return refused("concurrency is a list of numbers from 1 to 1024".to_owned());
        }
    }
    if max_adapters > 32 {
        return refused(format!("{max_adapters} adapters: at most 32"));
    }
    Ok(())
}

/// Bytes of a file, or of a folder's weights.
fn file_bytes(path: &Path) -> u64 {
    let len = |path: &Path| path.metadata().map_or(0, |m| m.len());
    if !path.is_dir() {
        return len(path);
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).map(|p| len(&p)).sum()
}

fn memory(
    peak: u64,
    file_bytes: u64,
    engine: &Engine,
    options: &EngineOptions,
    model: &Model,
) -> MemoryResult {
    let stats = engine.stats();
    let plan = model.memory_plan(options);
    let block_bytes = plan.kv_bytes / (stats.total_blocks.max(1) as u64);
    let kv_touched_bytes =
        block_bytes * (stats.used_blocks + stats.cached_blocks).min(stats.total_blocks) as u64;
    let adapter_bytes = engine.adapters().iter().map(|a| a.host_bytes).sum();
    let rest = peak as i128 - i128::from(file_bytes) - i128::from(kv_touched_bytes);
    MemoryResult {
        peak_bytes: peak,
        file_bytes,
        kv_limit_bytes: plan.kv_bytes,
        kv_touched_bytes,
        adapter_bytes,
        rest_bytes: i64::try_from(rest).unwrap_or(i64::MAX),
    }
}

struct EngineBench<'a> {
    engine: &'a Engine,
    model: &'a Model,
    options: &'a LocalOptions,
}

impl EngineBench<'_> {
    /// Tokens that no other request has in this order.
    fn prompt(&self, seed: usize, len: usize) -> Vec<TokenId> {
        let vocab = self.model.config().vocab_size.max(2);
        // The first token keeps prompts apart for the prefix cache.
        let token = |i: usize| (seed.wrapping_mul(104_729) + i * 7919 + i * i * 31) % (vocab - 1) + 1;
        (0..len).map(|i| TokenId(token(i) as u32)).collect()
    }

    fn request(&self, seed: usize, prompt_tokens: usize, max_tokens: usize) -> Request {
        Request {
            prompt_token_ids: self.prompt(seed, prompt_tokens).into(),
            sampling: SamplingParams::greedy(),
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..Request::default()
        }
    }

    fn ask(&self, request: Request) -> Result<Timeline> {
        let mut timeline = Timeline::start();
        for event in self.engine.submit(request)? {
            match event {
                Event::Update(update) => {
                    if !update.token_ids.is_empty() {
                        timeline.arrived();
                    }
                    if let Some(Finish::Error { message } | Finish::Cancelled { reason: message }) =
                        update.finish
                    {
                        return Err(Error::Setting(format!("an answer was cut off: {message}")));
                    }
                }
                Event::Summary(summary) => {
                    timeline.prompt_tokens = summary.usage.prompt_tokens;
                    timeline.output_tokens = summary.usage.completion_tokens;
                }
                Event::PromptLogprobs(_) => {}
            }
        }
        Ok(timeline)
    }

    fn first_token(&self) -> Result<()> {
        self.ask(self.request(0, FIRST_PROMPT_TOKENS, 1)).map(drop)
    }

    /// Writes adapters and loads them; their names.
    fn load_adapters(
        &self,
        folder: &Path,
        num_adapters: usize,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<String>> {
        let decoder = self.model.decoder().as_ref();
        let mut names = Vec::new();
        for i in 0..num_adapters {
            progress(&format!("adapter {} of {num_adapters}", i + 1));
            let name = format!("random-{i}");
            let path = folder.join(&name);
            write_random(decoder, self.options.rank, i as u64 + 1, &path)?;
            self.engine.load_adapter(&name, AdapterSource::Path(path), LoadOptions::default())?;
            names.push(name);
        }
        Ok(names)
    }

    fn serving(&self, names: &[String], progress: &mut dyn FnMut(&str)) -> Result<Vec<ServingResult>> {
        let load = &self.options.load;
        let mut results = Vec::new();
        let mut seed = 1;
        for &num_adapters in &self.options.num_adapters {
            for &concurrency in &load.concurrency {
                progress(&format!("{concurrency} at once, {num_adapters} adapters"));
                let first_seed = seed;
                seed += concurrency * load.requests_per_worker;
                let result = closed_loop(concurrency, load.requests_per_worker, |i| {
                    let mut request = self.request(first_seed + i, load.prompt_tokens, load.max_tokens);
                    request.adapter =
                        names.get(i % num_adapters.max(1)).filter(|_| num_adapters > 0).cloned();
                    self.ask(request)
                })?;
                results.push(ServingResult { num_adapters, ..result });
            }
        }
        Ok(results)
    }

    /// Replaces one adapter, from memory and from disk, and asks it each time.
    fn swaps(&self, folder: &Path) -> Result<AdapterResult> {
        let decoder = self.model.decoder().as_ref();
        let replace = LoadOptions { replace: true, ..LoadOptions::default() };
        let paths: [PathBuf; 2] = ["swap-0", "swap-1"].map(|name| folder.join(name));
        for (i, path) in paths.iter().enumerate() {
            write_random(decoder, self.options.rank, 100 + i as u64, path)?;
        }
        let (mut in_process, mut from_disk) = (Vec::new(), Vec::new());
        for i in 0..=REPLACEMENTS {
            let source = adapter_source(random_adapter(decoder, self.options.rank, 200 + i as u64)?);
            for (source, times) in [
                (source, &mut in_process),
                (AdapterSource::Path(paths.get(i % 2).cloned().unwrap_or_default()), &mut from_disk),
            ] {
                let started = Instant::now();
                self.engine.load_adapter("swapped", source, replace)?;
                // The first load finds nothing to replace.
                if i > 0 {
                    times.push(ms(started.elapsed()));
                }
                self.ask(self.request(10_000 + i, FIRST_PROMPT_TOKENS, 1).with_adapter("swapped"))?;
            }
        }
        Ok(AdapterResult {
            replace_in_process_ms: Percentiles::of(&in_process),
            load_from_disk_ms: Percentiles::of(&from_disk),
            ..AdapterResult::default()
        })
    }
}
