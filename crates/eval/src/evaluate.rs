//! The run: every item to every target, and what came of it.

use std::cell::Cell;
use std::time::Instant;

use wardrobe_generator::{
    Answer as Given, AskError, Generator, Held, Message, Prompt, Question, RetryPolicy, Scorer, Stopped,
    patiently, run_all,
};

use crate::error::EvalError;
use crate::items::Item;
use crate::mistakes::{Given as Compared, Mistake, mistakes};
use crate::report::{Answer, Asked, BaselineResult, Outcome, Report, Run, shortened};
use crate::settings::TaskSettings;
use crate::tasks::{Scored, Task, Way};
use crate::weighing::Weighing;

/// More of an answer is not kept.
const MAX_ANSWER_CHARS: usize = 50_000;

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
    /// What the task is told beside its items.
    pub settings: TaskSettings,
    /// Numbers of items by which measures are grouped, beside the task's own: one, or two for a map.
    pub group_by: Vec<Vec<String>>,
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
            settings: TaskSettings::default(),
            group_by: Vec::new(),
            train_golds: None,
            concurrency: None,
            retry: RetryPolicy::default(),
            stopped: &|| false,
            progress: None,
        }
    }
}

/// Asks every item of every target, greedily and all at once, and scores what comes.
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
    let mut progress = options.progress.take();
    let asking = Asking {
        task,
        max_tokens: options.max_tokens,
        system: options.system,
        raw: options.raw,
        settings: &options.settings,
        retry: options.retry,
    };
    for target in targets {
        let checked = asking.check(target, first);
        checked.map_err(|source| EvalError::Target { target: target.name.clone(), source })?;
    }
    let started = Instant::now();
    let mut outcomes: Vec<Vec<Option<Outcome>>> = targets.iter().map(|_| vec![None; items.len()]).collect();
    let mut times: Vec<Option<(Instant, Instant)>> = vec![None; targets.len()];
    let num_all = items.len().saturating_mul(targets.len());
    let mut num_done = 0;
    let mut fatal = None;
    let jobs = targets.iter().enumerate().flat_map(|(target_idx, target)| {
        items.iter().enumerate().map(move |(item_idx, item)| {
            ((target_idx, item_idx), Job { target, item, salt: item_idx as u64 })
        })
    });
    let most = targets.iter().map(|target| target.generator.concurrency()).max().unwrap_or(1);
    let concurrency = options.concurrency.unwrap_or(most).min(num_all);
    let run = |job: Job<'_>, stopped: &Stopped<'_>| {
        let started = Instant::now();
        let answered = asking.ask(&job, stopped);
        // An item that failed took its time too.
        Ok((answered, started, Instant::now()))
    };
    let asked = run_all(jobs, concurrency, options.stopped, run, |(target_idx, item_idx), ran| {
        let answered = ran.and_then(|(answered, began, ended)| {
            if let Some(times) = times.get_mut(target_idx) {
                let (first, last) = times.unwrap_or((began, ended));
                *times = Some((first.min(began), last.max(ended)));
            }
            answered.map(|answer| Answer { seconds: (ended - began).as_secs_f64(), ..answer })
        });
        let outcome = match answered {
            Ok(answer) => Outcome::Answered(answer),
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
    let seconds = started.elapsed().as_secs_f64();
    let of_target = |((target, outcomes), times): ((&Target<'_>, Vec<Option<Outcome>>), _)| Asked {
        name: target.name.clone(),
        outcomes: outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(Outcome::not_asked)).collect(),
        seconds: Option::map_or(times, 0.0, |(first, last): (Instant, Instant)| (last - first).as_secs_f64()),
    };
    let asked: Vec<Asked> = targets.iter().zip(outcomes).zip(times).map(of_target).collect();
    let run = Run { max_tokens: options.max_tokens, seconds, group_by: &options.group_by };
    let mut report = Report::of(task, items, asked, &run);
    report.baseline = baseline(items, task, &options);
    Ok(report)
}

/// One item to one target.
struct Job<'a> {
    target: &'a Target<'a>,
    item: &'a Item,
    salt: u64,
}

/// What is asked, and how.
struct Asking<'a> {
    task: &'a dyn Task,
    max_tokens: usize,
    system: Option<&'a str>,
    raw: bool,
    settings: &'a TaskSettings,
    retry: RetryPolicy,
}

impl Asking<'_> {
    /// What is asked for an item.
    fn question(&self, item: &Item, held: &Held) -> Question {
        let prompt = if self.raw {
            Prompt::Text(item.question())
        } else {
            let has_system = item.turns.iter().any(|turn| turn.role == "system");
            let system = self.system.filter(|_| !has_system).map(|text| Message::text("system", text));
            let turns = item.turns.iter().map(|turn| Message::text(&turn.role, &turn.content));
            Prompt::Chat(system.into_iter().chain(turns).collect())
        };
        Question::new(prompt, self.max_tokens).held(held.clone())
    }

    /// Whether a target can be asked such things at all.
    fn check(&self, target: &Target<'_>, item: &Item) -> Result<(), AskError> {
        match self.task.way() {
            Way::Answers(_) => target.generator.check(&self.question(item, &target.held)),
            Way::Likelihoods(_) => scorer(target).map(drop),
        }
    }

    fn ask(&self, job: &Job<'_>, stopped: &Stopped<'_>) -> Result<Answer, AskError> {
        let Job { target, item, salt } = job;
        let mut answer = match self.task.way() {
            Way::Answers(compare) => {
                let question = self.question(item, &target.held);
                let retry = self.retry.start(*salt);
                let given = patiently(retry, stopped, || target.generator.generate(&question, stopped))?;
                Answer {
                    score: compare.compare(item, &given.text, self.settings),
                    mistakes: match compare.has_text_golds() {
                        true => self.mistakes(item, &given),
                        false => Vec::new(),
                    },
                    is_cut: given.is_cut(),
                    text: given.text,
                    likelihoods: Vec::new(),
                    prompt_tokens: given.usage.prompt_tokens,
                    cached_tokens: given.usage.cached_tokens,
                    completion_tokens: given.usage.completion_tokens,
                    seconds: 0.0,
                }
            }
            Way::Likelihoods(weigh) => {
                let weighing = Weighing {
                    scorer: scorer(target)?,
                    settings: self.settings,
                    retry: self.retry,
                    salt: *salt,
                    stopped,
                    num_tokens: Cell::new(0),
                };
                let weighed = weigh.weigh(item, &weighing)?;
                let prompt_tokens = weighing.num_tokens.get();
                Answer {
                    score: weighed.score,
                    text: weighed.text,
                    likelihoods: weighed.likelihoods,
                    prompt_tokens,
                    ..Answer::default()
                }
            }
        };
        answer.score.0.retain(|(_, value)| value.is_finite());
        // JSON has no infinities: a choice that cannot be has the least number that it has.
        for likelihood in &mut answer.likelihoods {
            *likelihood = if likelihood.is_nan() { f64::MIN } else { likelihood.clamp(f64::MIN, f64::MAX) };
        }
        answer.text = shortened(answer.text, MAX_ANSWER_CHARS);
        Ok(answer)
    }

    fn mistakes(&self, item: &Item, given: &Given) -> Vec<Mistake> {
        let question = item.question();
        let given =
            Compared { question: &question, golds: &item.golds, answer: &given.text, is_cut: given.is_cut() };
        mistakes(&given, &self.settings.words)
    }
}

fn scorer<'a>(target: &Target<'a>) -> Result<&'a dyn Scorer, AskError> {
    target.generator.scorer().ok_or_else(|| AskError::Unsupported {
        who: target.name.clone(),
        what: "cannot tell how likely a text is".to_owned(),
    })
}

fn baseline(items: &[Item], task: &dyn Task, options: &EvalOptions<'_>) -> Option<BaselineResult> {
    let Way::Answers(compare) = task.way() else { return None };
    let golds: Vec<&str> = match options.train_golds {
        Some(golds) => golds.iter().map(String::as_str).collect(),
        None => items.iter().map(Item::gold).collect(),
    };
    let answer = compare.majority_answer(&golds)?;
    let scores: Vec<_> = items.iter().map(|item| compare.compare(item, &answer, &options.settings)).collect();
    let scored: Vec<_> =
        items.iter().zip(&scores).map(|(item, score)| Scored { item, answer: &answer, score }).collect();
    let metrics = task.summarise(&scored);
    Some(BaselineResult {
        from_train: options.train_golds.is_some(),
        num_items: items.len(),
        metrics,
        answer,
    })
}
