//! The run: every item to every target, and what came of it.

use std::sync::Arc;
use std::time::Instant;

use wardrobe_engine::{Constraint, Engine, Finish, Request, SamplingParams, SubmitError, TokenId};

use crate::asking::{ask_all, failure};
use crate::error::EvalError;
use crate::items::{Item, LineProblem, Turn};
use crate::report::{Answer, BaselineResult, ItemShown, Outcome, Report, TargetResult};
use crate::tasks::{Scored, Task};

/// Turns a question into the tokens of a prompt: the model's chat template, as a rule. Its error is told with the item.
pub type RenderPrompt<'a> = dyn Fn(&[Turn]) -> Result<Vec<TokenId>, String> + 'a;

/// Hears how many answers there are, of how many.
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// Who is asked: the base model or an adapter that the engine has loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its name in the report.
    pub name: String,
    /// Name of the adapter in the engine; `None` is the base model.
    pub adapter: Option<String>,
    /// What its answers are held to.
    pub held: Held,
}

/// What answers are held to.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Held {
    /// As the adapter says, if it carries a schema.
    #[default]
    ByAdapter,
    /// Nothing, also where the adapter carries a schema.
    Free,
    /// This.
    To(Constraint),
}

impl Target {
    /// The base model.
    pub fn base(name: impl Into<String>) -> Self {
        Self { name: name.into(), adapter: None, held: Held::default() }
    }

    /// An adapter, under its own name.
    pub fn adapter(name: impl Into<String>) -> Self {
        let name = name.into();
        Self { adapter: Some(name.clone()), name, held: Held::default() }
    }

    /// The same, held to something else.
    pub fn held(self, held: Held) -> Self {
        Self { held, ..self }
    }

    /// The same under another name in the report.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }
}

/// How to ask.
pub struct EvalOptions<'a> {
    /// The most tokens of an answer. A base model that does not know when to stop is cut off here.
    pub max_tokens: usize,
    /// Gold answers of the training set, for the majority baseline; without them the items' own are taken.
    pub train_golds: Option<&'a [String]>,
    /// Hears of progress.
    pub progress: Option<Box<Progress<'a>>>,
}

impl Default for EvalOptions<'_> {
    fn default() -> Self {
        Self { max_tokens: 256, train_golds: None, progress: None }
    }
}

/// Asks every item of every target, greedily and in one batch, and scores the answers.
///
/// Which answers a target gives does not depend on the others, nor on the number of items. An item whose prompt cannot be
/// rendered or does not fit the context has failed for that target: it is counted, told, and in no mean.
///
/// # Errors
/// [`EvalError::NoItems`], [`EvalError::NoTargets`]; [`EvalError::Target`] if an adapter is not loaded or the engine has
/// stopped.
pub fn evaluate(
    engine: &Engine,
    render_prompt: &RenderPrompt<'_>,
    items: &[Item],
    task: &dyn Task,
    targets: &[Target],
    mut options: EvalOptions<'_>,
) -> Result<Report, EvalError> {
    if items.is_empty() {
        return Err(EvalError::NoItems { first: None });
    }
    if targets.is_empty() {
        return Err(EvalError::NoTargets);
    }
    let started = Instant::now();
    // Shared between the targets' requests.
    let prompts: Vec<Result<Arc<[TokenId]>, String>> =
        items.iter().map(|item| render_prompt(&item.turns).map(Arc::from)).collect();
    let mut outcomes: Vec<Vec<Option<Outcome>>> = targets.iter().map(|_| vec![None; items.len()]).collect();
    let num_all = items.len().saturating_mul(targets.len());
    let mut num_done = 0;
    let mut fatal = None;
    let requests = targets.iter().enumerate().flat_map(|(target_idx, target)| {
        let max_tokens = options.max_tokens;
        prompts.iter().enumerate().filter_map(move |(item_idx, prompt)| {
            let request = Request {
                prompt_token_ids: prompt.as_ref().ok()?.clone(),
                adapter: target.adapter.clone(),
                sampling: SamplingParams { seed: Some(0), ..SamplingParams::greedy() },
                max_tokens: Some(max_tokens),
                constraint: match &target.held {
                    Held::To(constraint) => Some(constraint.clone()),
                    Held::Free | Held::ByAdapter => None,
                },
                without_adapter_schema: target.held == Held::Free,
                ..Request::default()
            };
            Some(((target_idx, item_idx), request))
        })
    });
    ask_all(engine, requests, |(target_idx, item_idx), answered| {
        let outcome = match answered {
            Ok(completion) => outcome_of(completion, items.get(item_idx), task),
            Err(error) => {
                if is_fatal(&error) && fatal.is_none() {
                    fatal = Some((target_idx, error.clone()));
                }
                Outcome::Failed { message: error.to_string() }
            }
        };
        if let Some(slot) = outcomes.get_mut(target_idx).and_then(|own| own.get_mut(item_idx)) {
            *slot = Some(outcome);
        }
        num_done += 1;
        if let Some(progress) = &mut options.progress {
            progress(num_done, num_all);
        }
        fatal.is_none()
    });
    if let Some((target_idx, source)) = fatal {
        let target = targets.get(target_idx).map(|target| target.name.clone()).unwrap_or_default();
        return Err(EvalError::Target { target, source });
    }
    let results = targets
        .iter()
        .zip(outcomes)
        .map(|(target, outcomes)| result(target, items, &prompts, outcomes, task))
        .collect();
    Ok(Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        task: task.name().to_owned(),
        about: task.about().to_owned(),
        model: None,
        data: None,
        max_tokens: options.max_tokens,
        seconds: started.elapsed().as_secs_f64(),
        problems: Vec::new(),
        baseline: baseline(items, task, options.train_golds),
        results,
        items: items.iter().map(ItemShown::of).collect(),
    })
}

/// Whether no other request of the target can succeed either.
fn is_fatal(error: &SubmitError) -> bool {
    matches!(
        error,
        SubmitError::UnknownAdapter { .. } | SubmitError::ShuttingDown | SubmitError::Unhealthy { .. }
    )
}

fn outcome_of(completion: wardrobe_engine::Completion, item: Option<&Item>, task: &dyn Task) -> Outcome {
    let usage = completion.summary.usage;
    let choice = completion.choices.into_iter().next().unwrap_or_default();
    if let Some(message) = failure(choice.finish.as_ref()) {
        return Outcome::Failed { message };
    }
    let gold = item.map(|item| item.gold.as_str()).unwrap_or_default();
    Outcome::Answered(Answer {
        score: task.score(gold, &choice.text),
        text: choice.text,
        is_cut: matches!(choice.finish, Some(Finish::Length)),
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
    })
}

fn result(
    target: &Target,
    items: &[Item],
    prompts: &[Result<Arc<[TokenId]>, String>],
    outcomes: Vec<Option<Outcome>>,
    task: &dyn Task,
) -> TargetResult {
    let outcomes: Vec<Outcome> = outcomes
        .into_iter()
        .zip(prompts)
        .map(|(outcome, prompt)| match (outcome, prompt) {
            (Some(outcome), _) => outcome,
            (None, Err(message)) => Outcome::Failed { message: message.clone() },
            (None, Ok(_)) => Outcome::Failed { message: "was not asked".to_owned() },
        })
        .collect();
    let answers = || outcomes.iter().filter_map(Outcome::answer);
    let scored: Vec<Scored<'_>> = items
        .iter()
        .zip(&outcomes)
        .filter_map(|(item, outcome)| {
            let answer = outcome.answer()?;
            Some(Scored { gold: &item.gold, answer: &answer.text, score: &answer.score })
        })
        .collect();
    let failed = items.iter().zip(&outcomes).filter_map(|(item, outcome)| match outcome {
        Outcome::Failed { message } => Some(LineProblem { line: item.line, message: message.clone() }),
        Outcome::Answered(_) => None,
    });
    TargetResult {
        name: target.name.clone(),
        adapter: target.adapter.clone(),
        num_scored: scored.len(),
        num_cut: answers().filter(|answer| answer.is_cut).count(),
        prompt_tokens: answers().map(|answer| answer.prompt_tokens).sum(),
        completion_tokens: answers().map(|answer| answer.completion_tokens).sum(),
        metrics: task.summarise(&scored),
        failed: failed.collect(),
        outcomes,
    }
}

fn baseline(items: &[Item], task: &dyn Task, train_golds: Option<&[String]>) -> Option<BaselineResult> {
    let golds: Vec<&str> = match train_golds {
        Some(golds) => golds.iter().map(String::as_str).collect(),
        None => items.iter().map(|item| item.gold.as_str()).collect(),
    };
    let answer = task.majority_answer(&golds)?;
    let scores: Vec<_> = items.iter().map(|item| task.score(&item.gold, &answer)).collect();
    let scored: Vec<_> = items
        .iter()
        .zip(&scores)
        .map(|(item, score)| Scored { gold: &item.gold, answer: &answer, score })
        .collect();
    let metrics = task.summarise(&scored);
    Some(BaselineResult { from_train: train_golds.is_some(), num_items: items.len(), metrics, answer })
}
