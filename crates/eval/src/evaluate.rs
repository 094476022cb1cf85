//! The run: every item to every target, and what came of it.

use std::time::Instant;

use wardrobe_generator::{
    Answer as Given, AskAll, AskError, Generator, Held, Message, Prompt, Question, RetryPolicy, Stopped,
    ask_all,
};

use crate::error::EvalError;
use crate::items::{Item, LineProblem};
use crate::report::{Answer, BaselineResult, ItemShown, Outcome, Report, TargetResult};
use crate::tasks::{Scored, Task};

/// Hears how many answers there are, of how many.
pub type Progress<'a> = dyn FnMut(usize, usize) + 'a;

/// Who is asked.
#[derive(Clone)]
pub struct Target<'a> {
    /// Its name in the report.
    pub name: String,
    /// Who answers.
    pub generator: &'a dyn Generator,
    /// What its answers are held to.
    pub held: Held,
}

impl<'a> Target<'a> {
    /// A generator under its own name, its answers held to what it carries.
    pub fn new(generator: &'a dyn Generator) -> Self {
        Self { name: generator.name().to_owned(), generator, held: Held::default() }
    }

    /// The same, held to something else.
    #[must_use]
    pub fn held(self, held: Held) -> Self {
        Self { held, ..self }
    }

    /// The same under another name in the report.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }
}

/// How to ask.
pub struct EvalOptions<'a> {
    /// The most tokens of an answer. A base model that does not know when to stop is cut off here.
    pub max_tokens: usize,
    /// Text of the system message, for items that have none.
    pub system: Option<&'a str>,
    /// Give the questions to the models as they are, without a chat template.
    pub raw: bool,
    /// Gold answers of the training set, for the majority baseline; without them the items' own are taken.
    pub train_golds: Option<&'a [String]>,
    /// Questions at once; `None` asks the targets what keeps them busy.
    pub concurrency: Option<usize>,
    /// How long items are asked again that cannot be answered now.
    pub retry: RetryPolicy,
    /// Whether to stop.
    pub stopped: &'a Stopped<'a>,
    /// Hears of progress.
    pub progress: Option<Box<Progress<'a>>>,
}

impl Default for EvalOptions<'_> {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            system: None,
            raw: false,
            train_golds: None,
            concurrency: None,
            retry: RetryPolicy::default(),
            stopped: &|| false,
            progress: None,
        }
    }
}

impl EvalOptions<'_> {
    /// What is asked for an item.
    fn question(&self, item: &Item, held: &Held) -> Question {
        let prompt = if self.raw {
            let texts: Vec<&str> = item.turns.iter().map(|turn| turn.content.as_str()).collect();
            Prompt::Text(texts.join("\n\n"))
        } else {
            let has_system = item.turns.iter().any(|turn| turn.role == "system");
            let system = self.system.filter(|_| !has_system).map(|text| Message::text("system", text));
            let turns = item.turns.iter().map(|turn| Message::text(&turn.role, &turn.content));
            Prompt::Chat(system.into_iter().chain(turns).collect())
        };
        Question::new(prompt, self.max_tokens).held(held.clone())
    }
}

/// Asks every item of every target, greedily and all at once, and scores the answers.
///
/// Which answers a target gives does not depend on the others, nor on the number of items. An item whose prompt cannot be
/// rendered or does not fit the context has failed for that target: it is counted, told, and in no mean.
///
/// # Errors
/// [`EvalError::NoItems`], [`EvalError::NoTargets`]; [`EvalError::Target`] if one can answer no question at all,
/// [`EvalError::Stopped`].
pub fn evaluate(
    items: &[Item],
    task: &dyn Task,
    targets: &[Target<'_>],
    mut options: EvalOptions<'_>,
) -> Result<Report, EvalError> {
    let Some(first) = items.first() else { return Err(EvalError::NoItems { first: None }) };
    if targets.is_empty() {
        return Err(EvalError::NoTargets);
    }
    for target in targets {
        let checked = target.generator.check(&options.question(first, &target.held));
        checked.map_err(|source| EvalError::Target { target: target.name.clone(), source })?;
    }
    let started = Instant::now();
    let mut outcomes: Vec<Vec<Option<Outcome>>> = targets.iter().map(|_| vec![None; items.len()]).collect();
    let num_all = items.len().saturating_mul(targets.len());
    let mut num_done = 0;
    let mut fatal = None;
    let mut progress = options.progress.take();
    let questions = targets.iter().enumerate().flat_map(|(target_idx, target)| {
        let options = &options;
        items.iter().enumerate().map(move |(item_idx, item)| {
            ((target_idx, item_idx), target.generator, options.question(item, &target.held))
        })
    });
    let most = targets.iter().map(|target| target.generator.concurrency()).max().unwrap_or(1);
    let asking = AskAll {
        concurrency: options.concurrency.unwrap_or(most).min(num_all),
        retry: options.retry,
        stopped: options.stopped,
    };
    let asked = ask_all(questions, asking, |(target_idx, item_idx), answered| {
        let outcome = match answered {
            Ok(answer) => outcome_of(answer, items.get(item_idx), task),
            Err(error) => {
                let message = error.to_string();
                if (error.is_fatal() || error == AskError::Stopped) && fatal.is_none() {
                    fatal = Some((target_idx, error));
                }
                Outcome::Failed { message }
            }
        };
        if let Some(slot) = outcomes.get_mut(target_idx).and_then(|own| own.get_mut(item_idx)) {
            *slot = Some(outcome);
        }
        num_done += 1;
        if let Some(progress) = &mut progress {
            progress(num_done, num_all);
        }
        fatal.is_none()
    });
    if let Some((target_idx, source)) = fatal.or_else(|| asked.err().map(|error| (0, error))) {
        let target = targets.get(target_idx).map(|target| target.name.clone()).unwrap_or_default();
        return Err(match source {
            AskError::Stopped => EvalError::Stopped,
            source => EvalError::Target { target, source },
        });
    }
    if (options.stopped)() {
        return Err(EvalError::Stopped);
    }
    let results = targets
        .iter()
        .zip(outcomes)
        .map(|(target, outcomes)| result(target, items, outcomes, task))
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

fn outcome_of(given: Given, item: Option<&Item>, task: &dyn Task) -> Outcome {
    let gold = item.map(|item| item.gold.as_str()).unwrap_or_default();
    Outcome::Answered(Answer {
        score: task.score(gold, &given.text),
        is_cut: given.is_cut(),
        text: given.text,
        prompt_tokens: given.usage.prompt_tokens,
        completion_tokens: given.usage.completion_tokens,
    })
}

fn result(
    target: &Target<'_>,
    items: &[Item],
    outcomes: Vec<Option<Outcome>>,
    task: &dyn Task,
) -> TargetResult {
    let not_asked = || Outcome::Failed { message: "was not asked".to_owned() };
    let outcomes: Vec<Outcome> =
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(not_asked)).collect();
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
