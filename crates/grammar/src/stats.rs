//! What a compiler has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Result;
use crate::template::{EngineKind, Template};

/// How a spec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpecOutcome {
    /// A template of the engine that looks masks up.
    Closed,
    /// A template of the engine that computes masks.
    Guidance,
    /// A refusal.
    Refused,
}

impl SpecOutcome {
    /// All of them.
    pub const ALL: [SpecOutcome; 3] = [Self::Closed, Self::Guidance, Self::Refused];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Guidance => "guidance",
            Self::Refused => "refused",
        }
    }

    fn of<T: AsRef<Template>>(outcome: &Result<T>) -> Self {
        match outcome.as_ref().map(|template| template.as_ref().engine()) {
            Ok(EngineKind::Closed) => Self::Closed,
            Ok(_) => Self::Guidance,
            Err(_) => Self::Refused,
        }
    }
}

/// What a compiler has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompilerStats {
    /// Specs that were asked for, by how they ended, in the order of [`SpecOutcome::ALL`].
    pub asked: [u64; 3],
    /// Those of them that were compiled then; the others were kept from before.
    pub compiled: [u64; 3],
    /// Time that compiling took, of all threads together.
    pub compile_time: Duration,
    /// Templates and refusals that are kept.
    pub kept: usize,
    /// Bytes of the specs that they were made of.
    pub kept_bytes: usize,
}

/// The same while it counts.
#[derive(Default)]
pub(crate) struct Counters {
    asked: [AtomicU64; 3],
    compiled: [AtomicU64; 3],
    compile_ns: AtomicU64,
}

impl Counters {
    pub fn asked<T: AsRef<Template>>(&self, outcome: &Result<T>) {
        add(&self.asked, SpecOutcome::of(outcome));
    }

    pub fn compiled<T: AsRef<Template>>(&self, outcome: &Result<T>, took: Duration) {
        add(&self.compiled, SpecOutcome::of(outcome));
        self.compile_ns.fetch_add(took.as_nanos().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn read(&self, kept: usize, kept_bytes: usize) -> CompilerStats {
        let read =
            |counters: &[AtomicU64; 3]| counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        CompilerStats {
            asked: read(&self.asked),
            compiled: read(&self.compiled),
            compile_time: Duration::from_nanos(self.compile_ns.load(Ordering::Relaxed)),
            kept,
            kept_bytes,
        }
    }
}

fn add(counters: &[AtomicU64; 3], outcome: SpecOutcome) {
    for (counter, _) in counters.iter().zip(SpecOutcome::ALL).filter(|(_, known)| *known == outcome) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
