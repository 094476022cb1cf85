//! The handle that callers hold: submit requests, change adapters, look at numbers, shut down.
//!
//! Cheap to clone. Behind it are two threads: the engine thread, which owns scheduler, blocks and slots, and one
//! that reads evicted adapters again. When the last handle is dropped, both end. Nothing here installs signal
//! handlers or loggers, or needs an async runtime.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::adapter::generation::Lease;
use crate::adapter::limits::RegistryLimits;
use crate::adapter::registry::{AdapterRegistry, Wanted};
use crate::adapter::{AdapterInfo, AdapterLoader, AdapterSource, LoadOptions, reload};
use crate::codec::TextCodec;
use crate::config::{BLOCK_SIZE_TOKENS, EngineConfig};
use crate::core;
use crate::error::{AdapterError, EngineError, SubmitError};
use crate::executor::{Executor, ExecutorLimits};
use crate::ids::GenerationId;
use crate::mailbox::{Mailbox, Submission};
use crate::request::Request;
use crate::response::Completion;
use crate::stats::{EngineObserver, EngineStats};
use crate::stream::{ResponseStream, WakeEngine, response_stream};
use crate::validate::{Bounds, validate};

/// What callers and the engine's threads share.
pub(crate) struct Shared {
    pub config: EngineConfig,
    pub limits: ExecutorLimits,
    pub mailbox: Arc<Mailbox>,
    pub registry: Arc<AdapterRegistry>,
    pub codec: Arc<dyn TextCodec>,
    pub stats: Mutex<EngineStats>,
    pub observers: RwLock<Vec<Arc<dyn EngineObserver>>>,
}

impl Shared {
    /// Checks configuration and limits, and makes what the threads share.
    pub fn new(
        limits: ExecutorLimits,
        codec: Arc<dyn TextCodec>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        config.validate()?;
        check_limits(&limits)?;
        let num_slots = config.num_slots.unwrap_or(limits.num_slots).min(limits.num_slots);
        let registry = AdapterRegistry::new(RegistryLimits {
            max_host_bytes: config.max_adapters_host_bytes,
            max_device_bytes: config.max_adapters_device_bytes.unwrap_or(u64::MAX),
            max_adapters: config.max_adapters,
            max_name_bytes: config.limits.max_name_bytes,
            num_slots,
        });
        let stats =
            EngineStats { total_blocks: limits.num_blocks, total_slots: num_slots, ..EngineStats::default() };
        Ok(Self {
            limits: ExecutorLimits { num_slots, ..limits },
            mailbox: Arc::new(Mailbox::new(config.max_open_sequences())),
            registry: Arc::new(registry),
            codec,
            stats: Mutex::new(stats),
            observers: RwLock::default(),
            config,
        })
    }

    /// The most tokens that one sequence may have.
    fn max_context_tokens(&self, of_adapter: Option<usize>) -> usize {
        let pool_tokens = self.limits.num_blocks.saturating_mul(BLOCK_SIZE_TOKENS);
        of_adapter.unwrap_or(self.limits.max_context_tokens).min(pool_tokens)
    }

    /// Checks requests, resolves their adapters to generations at one instant, and queues all of them or none.
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<ResponseStream>, SubmitError> {
        let wanted = requests.iter().map(|request| request.n).fold(0, usize::saturating_add);
        self.check_size(&requests, wanted)?;
        self.mailbox.check_open()?;
        let adapters: Vec<Wanted<'_>> = (requests.iter())
            .filter_map(|request| Some((request.adapter.as_deref()?, request.expected_generation)))
            .collect();
        let mut leases = self.registry.leases(&adapters)?.into_iter();
        let mut submissions = Vec::with_capacity(requests.len());
        let mut streams = Vec::with_capacity(requests.len());
        for request in requests {
            let lease = if request.adapter.is_some() { leases.next() } else { None };
            let (submission, stream) = self.prepare(request, lease)?;
            submissions.push(submission);
            streams.push(stream);
        }
        self.mailbox.submit_all(submissions)?;
        Ok(streams)
    }

    /// Refuses what could never be queued, however long it waits.
    fn check_size(&self, requests: &[Request], wanted: usize) -> Result<(), SubmitError> {
        let capacity = self.config.max_open_sequences();
        // A value of `n` that no request may have is told as such later on.
        if wanted <= capacity || requests.iter().any(|request| request.n > self.config.limits.max_n) {
            return Ok(());
        }
        let (field, what) = match requests {
            [_] => ("n", format!("asks for {wanted} answers")),
            _ => ("prompt", format!("has {} prompts, which ask for {wanted} answers", requests.len())),
        };
        let reason = format!("{what}; at most {capacity} can run and wait at once");
        Err(SubmitError::InvalidField { field, reason })
    }

    /// Checks a request and makes both ends of its stream.
    fn prepare(
        &self,
        mut request: Request,
        lease: Option<Arc<Lease>>,
    ) -> Result<(Submission, ResponseStream), SubmitError> {
        let free = request.without_adapter_schema
            || request.ignore_eos
            || request.sampling.allowed_token_ids.is_some();
        if let Some(lease) = lease.as_ref().filter(|_| request.constraint.is_none() && !free) {
            request.constraint.clone_from(&lease.generation.constraint);
        }
        let of_adapter = lease.as_ref().and_then(|lease| lease.generation.max_context_tokens);
        let bounds = Bounds {
            limits: &self.config.limits,
            vocab_size: self.limits.vocab_size,
            max_context_tokens: self.max_context_tokens(of_adapter),
            eos_token_ids: &self.config.eos_token_ids,
        };
        let valid = validate(request, &bounds)?;
        let bell = self.mailbox.clone();
        let wake: WakeEngine = Arc::new(move || bell.ring());
        let (sender, stream) = response_stream(valid.request.n, self.config.stream_buffer_tokens, wake);
        let seed = valid.request.sampling.seed.unwrap_or_else(draw_seed);
        let span = tracing::info_span!(
            "request",
            request_id = valid.request.request_id.as_deref(),
            adapter = valid.request.adapter.as_deref(),
            generation = lease.as_ref().map(|lease| lease.generation.id.0),
        );
        let submission = Submission { valid, lease, seed, sender, submitted_at: Instant::now(), span };
        Ok((submission, stream))
    }
}

fn check_limits(limits: &ExecutorLimits) -> Result<(), EngineError> {
    let config = |field, reason: String| Err(EngineError::Config { field, reason });
    if limits.block_size_tokens != BLOCK_SIZE_TOKENS {
        let reason = format!("is {}, not {BLOCK_SIZE_TOKENS}", limits.block_size_tokens);
        return config("executor.block_size_tokens", reason);
    }
    for (field, value) in [
        ("executor.num_blocks", limits.num_blocks),
        ("executor.vocab_size", limits.vocab_size),
        ("executor.max_context_tokens", limits.max_context_tokens),
        ("executor.num_slots", limits.num_slots.saturating_add(1)),
    ] {
        if value == 0 || value > u32::MAX as usize {
            return config(field, format!("is {value}, not in 1..={}", u32::MAX));
        }
    }
    Ok(())
}

/// A seed that no caller can foresee, from the standard library's random hash keys.
fn draw_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A running engine. See the crate's documentation for an example.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    loader: Arc<dyn AdapterLoader>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Checks the configuration and starts the engine's threads.
    pub fn start(
        executor: Box<dyn Executor>,
        loader: Arc<dyn AdapterLoader>,
        codec: Arc<dyn TextCodec>,
        config: EngineConfig,
    ) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared::new(executor.limits(), codec, config)?);
        let inner = Inner { shared: shared.clone(), loader: loader.clone(), threads: Mutex::new(Vec::new()) };
        let engine = Self { inner: Arc::new(inner) };
        let (registry, bell) = (shared.registry.clone(), shared.mailbox.clone());
        engine.inner.spawn("wardrobe-engine", move || core::run(shared, executor))?;
        engine.inner.spawn("wardrobe-reload", move || reload::run(&registry, &*loader, &|| bell.ring()))?;
        Ok(engine)
    }

    /// Checks a request and queues it. Its adapter's generation is fixed here.
    pub fn submit(&self, request: Request) -> Result<ResponseStream, SubmitError> {
        let mut streams = self.submit_all(vec![request])?;
        streams.pop().ok_or(SubmitError::ShuttingDown)
    }

    /// Checks requests and queues all of them or none; the streams are in their order. Requests of the same adapter
    /// get the same generation, also if the adapter is replaced meanwhile.
    ///
    /// # Errors
    /// The first reason to refuse one of them; [`SubmitError::Overloaded`] if not all have room, and
    /// [`SubmitError::InvalidField`] if they never could ([`EngineConfig::max_open_sequences`]).
    pub fn submit_all(&self, requests: Vec<Request>) -> Result<Vec<ResponseStream>, SubmitError> {
        self.inner.shared.submit_all(requests)
    }

    /// Submits a request and waits for the whole answer.
    pub fn generate(&self, request: Request) -> Result<Completion, SubmitError> {
        Ok(self.submit(request)?.completion_blocking())
    }

    /// Submits a request and waits for the whole answer without blocking the thread.
    pub async fn generate_async(&self, request: Request) -> Result<Completion, SubmitError> {
        Ok(self.submit(request)?.completion().await)
    }

    /// Reads and checks an adapter on the caller's thread, then points `name` at it. New requests take it from
    /// then on; open ones finish on what they started with.
    pub fn load_adapter(
        &self,
        name: &str,
        source: AdapterSource,
        options: LoadOptions,
    ) -> Result<AdapterInfo, AdapterError> {
        let shared = &self.inner.shared;
        shared.registry.check_load(name, &options)?;
        let started = Instant::now();
        let adapter = reload::load_caught(&*self.inner.loader, &source)?;
        let info = shared.registry.publish(name, source, adapter, &options)?;
        shared.mailbox.ring();
        tracing::info!(
            adapter = name, generation = %info.generation, source = %info.source, rank = info.rank,
            elapsed_ms = started.elapsed().as_millis() as u64, "adapter loaded"
        );
        Ok(info)
    }

    /// Takes `name` away at once; open requests finish on its generation. With `expected_generation` only if the
    /// name is at it.
    pub fn unload_adapter(
        &self,
        name: &str,
        expected_generation: Option<GenerationId>,
    ) -> Result<AdapterInfo, AdapterError> {
        let info = self.inner.shared.registry.unload(name, expected_generation)?;
        self.inner.shared.mailbox.ring();
        tracing::info!(adapter = name, generation = %info.generation, "adapter unloaded");
        Ok(info)
    }

    /// Keeps an adapter from eviction, or no longer.
    pub fn pin_adapter(&self, name: &str, pinned: bool) -> Result<AdapterInfo, AdapterError> {
        self.inner.shared.registry.pin(name, pinned)
    }

    /// All loaded adapters, by name.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.inner.shared.registry.list()
    }

    /// Numbers as of the last step. Requests whose stream has given its summary are no longer in the gauges.
    pub fn stats(&self) -> EngineStats {
        self.inner.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds a watcher of steps and finished requests.
    pub fn add_observer(&self, observer: Arc<dyn EngineObserver>) {
        self.inner.shared.observers.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    /// What the executor can hold; `num_slots` is what the engine uses of it.
    pub fn limits(&self) -> ExecutorLimits {
        self.inner.shared.limits
    }

    /// The settings that the engine was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.inner.shared.config
    }

    /// The most tokens, prompt and output, that one sequence of the base model may have.
    pub fn max_context_tokens(&self) -> usize {
        self.inner.shared.max_context_tokens(None)
    }

    /// Takes no more requests, gives open ones `drain` to finish, cancels the rest, and waits for the threads.
    /// Later calls, also on other handles, find the engine stopped.
    pub fn shutdown(&self, drain: Duration) {
        self.inner.shutdown(drain);
    }
}

impl Inner {
    fn spawn(&self, name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.map_err(|error| EngineError::Thread { name, reason: error.to_string() })?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    fn shutdown(&self, drain: Duration) {
        let now = Instant::now();
        self.shared.mailbox.stop(now.checked_add(drain).unwrap_or(now + Duration::from_secs(86_400)));
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The last handle may be dropped by an observer, on one of these threads. They then end by themselves.
        let here = std::thread::current().id();
        if threads.iter().any(|thread| thread.thread().id() == here) {
            return;
        }
        // The engine thread first: the reload thread serves requests that drain, and ends after it.
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("an engine thread ended by a panic");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}
