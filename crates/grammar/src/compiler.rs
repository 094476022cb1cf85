//! From specs to templates, within limits, each once.

use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::closed::ClosedSchema;
use crate::error::{GrammarError, Result};
use crate::guidance::Guidance;
use crate::schema::{self, OneOf, Prepared};
use crate::spec::{Spec, Whitespace};
use crate::stats::{CompilerStats, Counters};
use crate::template::{Compiled, EngineKind, Template};
use crate::tools;
use crate::vocabulary::Vocabulary;
use wardrobe_text::{TokenId, Tokenizer};

/// Bytes of a spec that is no schema.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Of a thread that compiles: schemas and expressions are gone through by recursion. What is not touched costs nothing.
const STACK_BYTES: usize = 64 << 20;

/// Bounds on compiling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long a caller waits. What takes longer may still end up among the templates that are kept.
    pub deadline: Duration,
    /// Specs that are compiled at once; more wait.
    pub max_compiling: usize,
    /// Templates (and refusals) that are kept, the least recently used leaving first.
    pub max_kept: usize,
    /// Bytes of the specs that they were made of.
    pub max_kept_bytes: usize,
    /// Tokens of the shortest text that a spec allows.
    pub max_shortest_tokens: usize,
    /// The engine to use, for tests and comparisons. `None`: a closed schema's automaton where there is one, since its
    /// masks are looked up, else `llguidance`.
    pub engine: Option<EngineKind>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            deadline: Duration::from_secs(2),
            max_compiling: 2,
            max_kept: 512,
            max_kept_bytes: 16 << 20,
            max_shortest_tokens: 16_384,
            engine: None,
        }
    }
}

/// Compiles specs for one vocabulary. Shared by all threads.
pub struct Compiler {
    shared: Arc<Shared>,
}

struct Shared {
    /// What the vocabulary is made of, when it is first needed.
    source: Option<(Tokenizer, Box<[TokenId]>)>,
    vocabulary: OnceLock<Result<Vocabulary>>,
    limits: Limits,
    guidance: OnceLock<Result<Guidance>>,
    kept: Mutex<Kept>,
    compiling: Mutex<usize>,
    one_less: Condvar,
    counters: Counters,
}

type Outcome = Result<Arc<Template>>;

/// A spec as it is told apart from others.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    spec: Box<str>,
    whitespace: Whitespace,
}

impl Key {
    fn new(spec: &Spec, whitespace: Whitespace) -> Self {
        let text = match spec {
            Spec::JsonSchema { schema, strict } => format!("{}{schema}", if *strict { 's' } else { 'l' }),
            Spec::JsonObject => "o".to_owned(),
            Spec::Regex(regex) => format!("r{regex}"),
            Spec::Choice(choices) => format!("c{choices:?}"),
            Spec::Lark(lark) => format!("g{lark}"),
            Spec::Gbnf(gbnf) => format!("b{gbnf}"),
            Spec::ToolCalls(calls) => format!("t{calls:?}"),
        };
        Key { spec: text.into(), whitespace }
    }
}

#[derive(Default)]
struct Kept {
    outcomes: HashMap<Key, (Outcome, u64)>,
    bytes: usize,
    clock: u64,
}

impl Kept {
    fn get(&mut self, key: &Key) -> Option<Outcome> {
        self.clock += 1;
        let (outcome, used) = self.outcomes.get_mut(key)?;
        *used = self.clock;
        Some(outcome.clone())
    }

    fn put(&mut self, key: Key, outcome: Outcome, limits: &Limits) {
        self.clock += 1;
        self.bytes += key.spec.len();
        if let Some((_, _)) = self.outcomes.insert(key.clone(), (outcome, self.clock)) {
            self.bytes -= key.spec.len();
        }
        while self.outcomes.len() > limits.max_kept || self.bytes > limits.max_kept_bytes {
            let oldest = self.outcomes.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.outcomes.remove(&oldest);
            self.bytes -= oldest.spec.len();
        }
    }
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

impl Compiler {
    /// For a vocabulary.
    pub fn new(vocabulary: Vocabulary, limits: Limits) -> Self {
        Self::with(None, OnceLock::from(Ok(vocabulary)), limits)
    }

    /// For the vocabulary of a tokenizer whose texts end with any of `ends`; others than the tokenizer knows are passed over.
    /// Nothing is computed before it is needed.
    pub fn of_tokenizer(tokenizer: Tokenizer, ends: &[TokenId], limits: Limits) -> Self {
        Self::with(Some((tokenizer, ends.into())), OnceLock::new(), limits)
    }

    fn with(
        source: Option<(Tokenizer, Box<[TokenId]>)>,
        vocabulary: OnceLock<Result<Vocabulary>>,
        limits: Limits,
    ) -> Self {
        let shared = Shared {
            source,
            vocabulary,
            limits,
            guidance: OnceLock::new(),
            kept: Mutex::default(),
            compiling: Mutex::new(0),
            one_less: Condvar::new(),
            counters: Counters::default(),
        };
        Compiler { shared: Arc::new(shared) }
    }

    /// The tokens that its masks are over.
    ///
    /// # Errors
    /// None of the tokens that are to end texts is one of the tokenizer's.
    pub fn vocabulary(&self) -> Result<&Vocabulary> {
        self.shared.vocabulary()
    }

    /// What it has done so far.
    pub fn stats(&self) -> CompilerStats {
        let kept = lock(&self.shared.kept);
        self.shared.counters.read(kept.outcomes.len(), kept.bytes)
    }

    /// Compiles a spec, or gives the template, or the refusal, that was made of it before. Blocks, for the deadline at
    /// most.
    ///
    /// # Errors
    /// The spec is refused; see [`GrammarError`].
    pub fn compile(&self, spec: &Spec, whitespace: Whitespace) -> Result<Arc<Template>> {
        let outcome = self.compile_or_find(spec, whitespace);
        self.shared.counters.asked(&outcome);
        outcome
    }

    fn compile_or_find(&self, spec: &Spec, whitespace: Whitespace) -> Outcome {
        let shared = &self.shared;
        let limit = shared.limits.deadline;
        let until = Instant::now() + limit;
        check_size(spec)?;
        let key = Key::new(spec, whitespace);
        if let Some(outcome) = lock(&shared.kept).get(&key) {
            return outcome;
        }
        if !shared.enter(until) {
            return Err(GrammarError::Deadline { limit });
        }
        let (sender, receiver) = sync_channel(1);
        let (worker, spec) = (shared.clone(), spec.clone());
        let thread = std::thread::Builder::new().name("wardrobe-grammar".to_owned()).stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || {
            let leave = Leave(&worker);
            // Another caller may have compiled it while this one waited.
            let before = lock(&worker.kept).get(&key);
            let outcome = before.unwrap_or_else(|| {
                let started = Instant::now();
                let outcome = worker.compile(&spec, whitespace);
                worker.counters.compiled(&outcome, started.elapsed());
                lock(&worker.kept).put(key, outcome.clone(), &worker.limits);
                outcome
            });
            drop(leave);
            // The caller may be gone.
            let _ = sender.send(outcome);
        });
        if let Err(error) = spawned {
            drop(Leave(shared));
            return Err(GrammarError::Engine { message: format!("no thread to compile it: {error}") });
        }
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(GrammarError::Deadline { limit }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(GrammarError::Engine { message: "the compiling thread panicked".to_owned() })
            }
        }
    }
}

/// Refuses what is too large to be looked at.
fn check_size(spec: &Spec) -> Result<()> {
    let bytes = match spec {
        Spec::JsonSchema { schema, .. } => return schema::check_size(schema),
        Spec::JsonObject => 0,
        Spec::Regex(text) | Spec::Lark(text) | Spec::Gbnf(text) => text.len(),
        Spec::Choice(choices) => choices.iter().map(|choice| choice.len() + 1).sum(),
        Spec::ToolCalls(calls) => return tools::check_size(calls),
    };
    if bytes <= MAX_TEXT_BYTES {
        return Ok(());
    }
    let message = format!("{bytes} bytes are over the limit of {MAX_TEXT_BYTES}");
    Err(GrammarError::TooLarge { kind: spec.kind(), message })
}

impl Shared {
    /// The tokens that masks are over.
    fn vocabulary(&self) -> Result<&Vocabulary> {
        let made = self.vocabulary.get_or_init(|| {
            let nothing = || GrammarError::Engine { message: "there is no vocabulary".to_owned() };
            let (tokenizer, ends) = self.source.as_ref().ok_or_else(nothing)?;
            let known = ends.iter().copied().filter(|&id| tokenizer.token_bytes(id).is_some());
            Vocabulary::new(tokenizer.clone(), &known.collect::<Vec<_>>())
        });
        made.as_ref().map_err(Clone::clone)
    }

    /// Waits for a place among those who compile.
    fn enter(&self, until: Instant) -> bool {
        let compiling = lock(&self.compiling);
        let left = until.saturating_duration_since(Instant::now());
        let full = |n: &mut usize| *n >= self.limits.max_compiling;
        let waited = self.one_less.wait_timeout_while(compiling, left, full);
        let (mut compiling, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return false;
        }
        *compiling += 1;
        true
    }

    fn compile(&self, spec: &Spec, whitespace: Whitespace) -> Outcome {
        let prepared = |one_of| match spec {
            Spec::JsonSchema { schema, strict } => Ok(vec![schema::prepare(schema, *strict, one_of)?]),
            Spec::ToolCalls(calls) => tools::prepare(calls, one_of),
            _ => Ok(Vec::new()),
        };
        match self.compile_prepared(spec, &prepared(OneOf::AsItIs)?, whitespace) {
            // Schemas that may hold at once; and splitting what need not be split makes grammars larger.
            Err(GrammarError::Invalid { message, .. }) if message.contains("oneOf") => {
                self.compile_prepared(spec, &prepared(OneOf::Split)?, whitespace)
            }
            outcome => outcome,
        }
    }

    /// With the schemas that are in the spec.
    fn compile_prepared(&self, spec: &Spec, prepared: &[Prepared], whitespace: Whitespace) -> Outcome {
        let mut warnings = Vec::new();
        let closed = match (spec, prepared) {
            (Spec::JsonSchema { .. }, [prepared]) if self.limits.engine != Some(EngineKind::Guidance) => {
                ClosedSchema::new(self.vocabulary()?, &prepared.schema, whitespace)
            }
            _ => None,
        };
        let compiled = match closed {
            Some(schema) => Compiled::Closed(schema),
            None if self.limits.engine.is_some_and(|engine| engine != EngineKind::Guidance) => {
                let message = "it is no closed schema, which this engine takes alone".to_owned();
                return Err(GrammarError::Invalid { kind: spec.kind(), message });
            }
            None => {
                let guidance = self.guidance.get_or_init(|| Guidance::new(self.vocabulary()?.clone()));
                let guidance = guidance.as_ref().map_err(Clone::clone)?;
                let (grammar, more) = guidance.compile(spec, prepared, whitespace)?;
                warnings = more;
                Compiled::Guidance(Box::new(grammar))
            }
        };
        warnings.extend(prepared.iter().flat_map(|prepared| prepared.warnings.iter().cloned()));
        let max_tokens = self.limits.max_shortest_tokens;
        let message = match compiled.session().shortest_end(max_tokens) {
            Ok(Some(shortest)) => return Ok(Template::new(compiled, shortest, warnings)),
            Ok(None) => format!("no text of at most {max_tokens} tokens was found that it allows"),
            Err(error) => format!("no text was found that it allows; {error}"),
        };
        Err(GrammarError::Unsatisfiable { kind: spec.kind(), message })
    }
}

/// Gives a place back, also when its thread panics.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        *lock(&self.0.compiling) -= 1;
        self.0.one_less.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
