//! Adapters that are replaced while requests run: each answer is that of the adapter it began with.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::Serialize;
use wardrobe_device::Device;
use wardrobe_engine::{AdapterSource, Engine, LoadOptions, Request, SamplingParams, TokenId};

use super::goldens::open;
use crate::bench::adapters::random_adapter;
use crate::error::Result;
use crate::model::{EngineOptions, Model};

/// Threads that ask.
const ASKING: usize = 6;
/// Replacements meanwhile, and answers, at least.
const REPLACEMENTS: usize = 40;
const ANSWERS: usize = 4 * ASKING;
const NAME: &str = "swapped";
const ANSWER_TOKENS: usize = 24;

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Swaps {
    /// Replacements.
    pub num_replacements: usize,
    /// Answers.
    pub num_answers: usize,
    /// Answers that are neither adapter's.
    pub num_wrong: usize,
    /// Requests that failed, and why the first did.
    pub num_failed: usize,
    /// Its words.
    pub first_failure: Option<String>,
}

impl Swaps {
    pub(super) fn failures(&self) -> Option<String> {
        let wrong = self.num_wrong > 0 || self.num_failed > 0 || self.num_answers == 0;
        wrong.then(|| {
            let Swaps { num_answers, num_wrong, num_failed, .. } = self;
            let first = self.first_failure.as_deref().unwrap_or("");
            format!(
                "of {num_answers} answers during swaps {num_wrong} are wrong, and {num_failed} failed {first}"
            )
        })
    }
}

pub(super) fn run(config: &Path, device: Arc<dyn Device>, seed: u64) -> Result<Swaps> {
    let model = open(config, device, seed)?;
    let engine = model.engine(&EngineOptions {
        kv_bytes: Some(64 << 20),
        num_slots: 4,
        ..EngineOptions::default()
    })?;
    let load = |which: u64| load(&engine, &model, which, if which.is_multiple_of(2) { 8 } else { 32 });
    let mut wanted = Vec::new();
    for which in [0, 1] {
        load(which)?;
        wanted.push(answer(&engine)?);
    }
    let (is_over, num_done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (num_replacements, answers) = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..ASKING)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        answers.push(answer(&engine));
                        num_done.fetch_add(1, Ordering::Relaxed);
                    }
                    answers
                })
            })
            .collect();
        let mut num_replacements = 0;
        let mut replaced = Ok(());
        while replaced.is_ok()
            && (num_replacements < REPLACEMENTS || num_done.load(Ordering::Relaxed) < ANSWERS)
        {
            replaced = load(num_replacements as u64 % 2);
            num_replacements += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        let answers: Vec<_> = asking.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect();
        replaced.map(|()| (num_replacements, answers))
    })?;
    let failed: Vec<String> =
        answers.iter().filter_map(|a| a.as_ref().err().map(ToString::to_string)).collect();
    let num_wrong = answers.iter().flatten().filter(|answer| !wanted.contains(answer)).count();
    Ok(Swaps {
        num_replacements,
        num_answers: answers.len(),
        num_wrong,
        num_failed: failed.len(),
        first_failure: failed.into_iter().next(),
    })
}

fn load(engine: &Engine, model: &Model, seed: u64, rank: usize) -> Result<()> {
    let payload = Arc::new(random_adapter(model.decoder().as_ref(), rank, seed + 1)?);
    let source = AdapterSource::InProcess { label: format!("random adapter {seed}"), payload };
    engine.load_adapter(NAME, source, LoadOptions { replace: true, ..LoadOptions::default() })?;
    Ok(())
}

/// What the adapter under the name answers.
fn answer(engine: &Engine) -> Result<Vec<TokenId>> {
    let prompt: Vec<TokenId> = (0..40).map(|i| TokenId(i * 101 % 8000 + 3)).collect();
    let request = Request::new(prompt)
        .with_sampling(SamplingParams::greedy())
        .with_max_tokens(ANSWER_TOKENS)
        .with_adapter(NAME);
    let completion = engine.generate(Request { ignore_eos: true, ..request })?;
    Ok(completion.choices.into_iter().flat_map(|choice| choice.token_ids).collect())
}
