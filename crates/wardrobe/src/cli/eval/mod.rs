//! `eval`: how good a model and its adapters are at a task, on the same items.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use wardrobe::answers::Remembering;
use wardrobe::eval::{
    self, EvalError, EvalOptions, Item, LineProblem, Price, Report, Target, Task, TaskSettings, Way,
};
use wardrobe::generate::Held;

use self::kept::Kept;
use self::task::TaskArgs;
use super::asked::{self, AskedArgs};
use super::failure::{UsageError, with_hint};
use super::output::{self, Style};
use super::{log, open, signals};

mod kept;
mod task;

/// Bad lines that are printed one by one; reports have all of them.
const MAX_PROBLEMS_SHOWN: usize = 5;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct EvalArgs {
    #[command(flatten)]
    asked: AskedArgs,
    #[command(flatten)]
    task: TaskArgs,
    /// JSONL file of items, such as {"prompt", "completion"} or {"messages"}; for perplexity {"text"}, or a .txt file
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The training set, whose most frequent answers are the majority baseline [default: those of the items themselves]
    #[arg(long, value_name = "FILE")]
    train_data: Option<PathBuf>,
    /// Ask each once free and once held to this JSON schema
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Leave the base model out
    #[arg(long, requires = "adapter")]
    no_base: bool,
    /// Ask this many items: the first, or with --seed ones drawn by it
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Draws the items of --limit, and documents of --distractors
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Text of the system message, for items that have none
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Give the prompts to the model as they are, without the chat template
    #[arg(long)]
    raw: bool,
    /// Questions at once [default: what keeps the models busy]
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// Show measures by a number that items have, or by two; may be repeated. Every item has prompt_tokens
    #[arg(long, value_name = "NAME[,NAME]", value_parser = task::parse_group)]
    group_by: Vec<Vec<String>>,
    /// What a million tokens cost; may be repeated
    #[arg(long, value_name = "NAME=IN/OUT[/CACHED]", value_parser = eval::parse_price)]
    price: Vec<(String, Price)>,
    /// JSON or TOML file of prices: input_per_million, output_per_million and cached_input_per_million by name
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Keep every answer in this SQLite file, and ask nothing that it has the answer to [default: a file beside the
    /// first --report, which goes when the reports are written: a run that was ended goes on there]
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Write every answer and its score: a web page (.html) or JSON (.json); may be repeated
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
}

const EXAMPLES: &str = "\
Answers are greedy: the same command gives the same numbers.

Examples:
  wardrobe eval smollm2-135m --data datasets/biographies/test.jsonl --train-data datasets/biographies/train.jsonl \\
    --adapter tuned=./tuned --report report.html
  wardrobe eval smollm2-135m --task last-words --data datasets/last-words/test.jsonl --limit 20 --seed 1
  wardrobe eval smollm2-135m --task perplexity --data book.txt --contexts 512,2048 --adapter tuned=./tuned
  wardrobe eval http://127.0.0.1:8000 --served-model base --served-model tuned --task choices --data arc.jsonl";

/// Asks, scores and prints.
pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    // What can be wrong without a model is found before one is pulled and read.
    args.check()?;
    let task = args.task.task()?;
    let prices = task::prices(args.prices.as_deref(), &args.price)?;
    let settings = args.task.settings(args.seed)?;
    let (items, problems) = read(&args.data, task, &settings)?;
    show_problems(&args.data, &problems);
    if items.is_empty() {
        let error = EvalError::NoItems { first: problems.into_iter().next() };
        return Err(anyhow::Error::new(error).context(format!("nothing to ask in {}", args.data.display())));
    }
    let train_golds =
        args.train_data.as_deref().map(|path| train_golds(path, task, &settings)).transpose()?;
    let items = eval::draw(items, args.limit, args.seed);

    let generators = args.asked.open()?;
    let base = generators.first().map(|base| base.name().to_owned());
    let generators = generators.iter().skip(usize::from(args.no_base));
    let kept = Kept::open(args.answers.as_deref(), &args.report)?;
    let remembering: Vec<Remembering<'_>> =
        kept.iter().flat_map(|kept| generators.clone().map(|own| kept.remembering(&**own))).collect();
    let mut targets: Vec<Target<'_>> = match kept {
        Some(_) => remembering.iter().map(|own| Target::new(own)).collect(),
        None => generators.map(|own| Target::new(&**own)).collect(),
    };
    if let Some(path) = &args.schema {
        let held = Held::Schema(open::read_schema(path)?.into());
        targets = targets
            .into_iter()
            .flat_map(|target| {
                let name = format!("{}, held to the schema", target.name);
                [target.clone().held(Held::Free), target.held(held.clone()).named(name)]
            })
            .collect();
    }
    let stop = signals::stop_flag("stopping; once more to stop at once")?;
    let bar = progress();
    let options = EvalOptions {
        max_tokens: args.max_tokens,
        system: args.system.as_deref(),
        raw: args.raw,
        settings,
        group_by: args.group_by.clone(),
        train_golds: train_golds.as_deref(),
        concurrency: args.concurrency,
        stopped: &|| stop.load(Ordering::Acquire),
        progress: Some(Box::new(|done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })),
        ..EvalOptions::default()
    };
    let report = eval::evaluate(&items, task, &targets, options);
    bar.finish_and_clear();
    let mut report = report.map_err(|error| {
        kept.iter().for_each(Kept::tell);
        explained(error)
    })?;
    report.model = base;
    report.data = Some(args.data.display().to_string());
    report.problems = problems;
    report.set_prices(&prices);
    for name in report.unused_prices(&args.price) {
        output::note(&format!("{} --price {name} is no model's of this run", Style::stderr().note("note:")));
    }
    output::write_stdout(report.to_text().as_bytes())?;
    output::note(&Style::stderr().dim(&took(&report)));
    let num_kept: u64 = remembering.iter().map(|own| own.tally().kept.num).sum();
    if num_kept > 0 {
        output::note(&format!("{num_kept} of the answers were kept from before, and took no time now"));
    }
    args.write(&report)?;
    drop(targets);
    drop(remembering);
    kept.map_or(Ok(()), Kept::done)
}

impl EvalArgs {
    fn check(&self) -> anyhow::Result<()> {
        self.asked.check()?;
        self.task.check()?;
        let task = self.task.task()?;
        if self.seed.is_some() && self.limit.is_none() && !self.task.draws() {
            return Err(
                UsageError("--seed draws what --limit or --distractors leave to draw".to_owned()).into()
            );
        }
        if matches!(task.way(), Way::Likelihoods(_)) {
            for (flag, is_given) in [
                ("--schema", self.schema.is_some()),
                ("--system", self.system.is_some()),
                ("--train-data", self.train_data.is_some()),
            ] {
                if is_given {
                    let text =
                        format!("{flag} is for tasks that models answer; {} weighs texts", task.name());
                    return Err(UsageError(text).into());
                }
            }
        }
        let numbers = [
            ("--max-tokens", Some(self.max_tokens)),
            ("--limit", self.limit),
            ("--concurrency", self.concurrency),
        ];
        for (name, value) in numbers {
            if value == Some(0) {
                return Err(UsageError(format!("{name} is at least 1")).into());
            }
        }
        let unknown = self.report.iter().find(|path| extension(path).is_none());
        match unknown {
            Some(path) => {
                let message = format!("--report {} ends in neither .html nor .json", path.display());
                Err(UsageError(message).into())
            }
            None => Ok(()),
        }
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        for path in &self.report {
            let text = match extension(path) {
                Some(Extension::Html) => report.to_html(),
                _ => format!("{}\n", serde_json::to_string_pretty(report)?),
            };
            output::write_whole(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            output::note(&format!("wrote {}", path.display()));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    Html,
    Json,
}

fn extension(path: &Path) -> Option<Extension> {
    match path.extension()?.to_str()? {
        "html" | "htm" => Some(Extension::Html),
        "json" => Some(Extension::Json),
        _ => None,
    }
}

/// The library's refusal, with what helps.
fn explained(error: EvalError) -> anyhow::Error {
    let hint = match &error {
        EvalError::Target { source, .. } => asked::explained(source),
        _ => None,
    };
    match hint {
        Some(hint) => with_hint(error, hint),
        None => error.into(),
    }
}

fn read(
    path: &Path,
    task: &dyn Task,
    settings: &TaskSettings,
) -> anyhow::Result<(Vec<Item>, Vec<LineProblem>)> {
    let unread = || format!("cannot read {}", path.display());
    let file = BufReader::new(File::open(path).with_context(unread)?);
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt")) {
        return Ok((eval::read_text(file, task, settings).with_context(unread)?, Vec::new()));
    }
    eval::read_items(file, task, settings).with_context(unread)
}

fn train_golds(path: &Path, task: &dyn Task, settings: &TaskSettings) -> anyhow::Result<Vec<String>> {
    let (items, problems) = read(path, task, settings)?;
    show_problems(path, &problems);
    if items.is_empty() {
        anyhow::bail!("there is no item in the training set {}", path.display());
    }
    Ok(items.iter().map(|item| item.gold().to_owned()).collect())
}

fn show_problems(path: &Path, problems: &[LineProblem]) {
    let note = Style::stderr().note("note:");
    for problem in problems.iter().take(MAX_PROBLEMS_SHOWN) {
        let text = output::one_line(&problem.to_string(), 200);
        output::note(&format!("{note} {}, {text}", path.display()));
    }
    if let Some(more) = problems.len().checked_sub(MAX_PROBLEMS_SHOWN).filter(|more| *more > 0) {
        output::note(&format!("{note} {}: {more} more lines are no items", path.display()));
    }
}

fn progress() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if !output::stderr_is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos} of {len} answers · {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn took(report: &Report) -> String {
    let sum = |of: fn(&eval::TargetResult) -> u64| report.results.iter().map(of).fold(0, u64::saturating_add);
    format!(
        "{} prompt and {} answer tokens in {}",
        sum(|result| result.prompt_tokens),
        sum(|result| result.completion_tokens),
        output::duration(std::time::Duration::from_secs_f64(report.seconds))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_known_by_their_endings() {
        assert_eq!(extension(Path::new("a/b.html")), Some(Extension::Html));
        assert_eq!(extension(Path::new("b.json")), Some(Extension::Json));
        for path in ["b", "b.txt", ".html", "html"] {
            assert_eq!(extension(Path::new(path)), None, "{path}");
        }
    }
}
