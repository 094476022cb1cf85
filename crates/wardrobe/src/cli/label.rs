//! `label`: a label for every record of a file, held to a JSON schema, by a model here or an endpoint anywhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use wardrobe::label::{LabelError, LabelJob, LabelOptions, LabelProgress, LabelReport, RecordsError, Start};

use super::asked::{self, AskedArgs};
use super::failure::{UsageError, with_hint};
use super::open;
use super::output::{self, Style};
use super::progress::{RecordsProgress, time_left};
use super::{log, signals};

/// No prompt is longer.
const MAX_PROMPT_BYTES: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LabelArgs {
    #[command(flatten)]
    asked: AskedArgs,
    /// File with the JSON schema that every label is held to
    #[arg(long, value_name = "FILE")]
    schema: PathBuf,
    /// The prompt, or a file with it: a Jinja template over a record's fields, such as "Classify: {{ text }}"
    #[arg(long, value_name = "TEMPLATE")]
    prompt: String,
    /// Records: a JSONL, CSV or Parquet file
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Where the labels go, a line for each record; if it is there, the run goes on after its last line
    #[arg(long = "out", value_name = "FILE")]
    output: PathBuf,
    /// Text of the system message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Give the prompts to the model as they are, without its chat template
    #[arg(long)]
    raw: bool,
    /// The most tokens of a label; what they end is whole nevertheless
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 takes the likeliest label
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// With a temperature: the same seed, the same labels
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Fields of the record that its line repeats
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    keep: Vec<String>,
    /// Label the first N records; a later run may label more
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Records at once [default: what fills the engine; 64 of an endpoint]
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// How long a record is asked again while the endpoint cannot be reached or is busy, before the run ends
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    patience: u64,
    /// Give records that cannot be asked a line with their error, instead of refusing to begin
    #[arg(long)]
    allow_bad_records: bool,
    /// Ask the records again whose lines are errors
    #[arg(long, conflicts_with = "restart")]
    retry_errors: bool,
    /// Begin anew, and lose the labels in the output
    #[arg(long)]
    restart: bool,
    /// Write what the labels are like: a web page (.html) or JSON (.json); may be repeated
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
}

const EXAMPLES: &str = "\
Ctrl-C ends a run; the same command goes on where it ended, also after a kill. Beside the output lies NAME.run.json,
which says what a run must agree with to go on. WARDROBE_ENDPOINT_API_KEY is an API key without a file.

Each line of the output is {\"index\", \"label\", \"finish_reason\", \"usage\"}, with \"id\" where the record has one, or
{\"index\", \"label\": null, \"error\": {\"type\", \"message\"}}.

Examples:
  wardrobe label smollm2-135m --schema topic.json --prompt 'What is this about? {{ text }}' \\
    --in texts.jsonl --out labels.jsonl --report labels.html
  wardrobe label smollm2-135m --adapter tuned=./tuned --schema s.json --prompt prompt.txt --in d.csv --out labels.jsonl
  wardrobe label http://127.0.0.1:8000 --served-model tuned --schema s.json --prompt prompt.txt --in d.csv --out l.jsonl";

/// Labels, and prints what the labels are like.
pub fn run(args: &LabelArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    // What can be wrong without a model is found before one is pulled and read.
    args.check()?;
    let schema = Value::Object(open::read_schema(&args.schema)?);
    let job = LabelJob::new(args.options(schema)?).map_err(explained)?;
    if let (num @ 1.., first) = job.bad_records() {
        let note = Style::stderr().note("note:");
        output::note(&format!("{note} {num} records cannot be asked: {}", first.join("; ")));
    }
    let generator = args.asked.open_one()?;
    let stop = signals::stop_flag("stopping; the same command goes on from here; once more to stop at once")?;
    let mut shown = RecordsProgress::new(job.num_records())?;
    let report = job.run(&*generator, &stop, &mut |progress| {
        shown.at(progress.summary.num_records(), || said(progress));
    });
    shown.end();
    let report = report.map_err(explained)?;
    output::write_stdout(report.to_text().as_bytes())?;
    args.write(&report, &format!("{} by {}", args.input.display(), generator.name()))?;
    output::note(&Style::stderr().dim(&ended(&report, &args.output)));
    match report.ended {
        wardrobe::label::Ended::Complete => Ok(()),
        wardrobe::label::Ended::Stopped => std::process::exit(signals::INTERRUPTED),
    }
}

impl LabelArgs {
    fn check(&self) -> anyhow::Result<()> {
        self.asked.check()?;
        for path in &self.report {
            let shown = path.display();
            if !is_html(path) && !is_json(path) {
                return Err(UsageError(format!("--report {shown} ends in neither .html nor .json")).into());
            }
            if *path == self.output || *path == self.input {
                return Err(UsageError(format!("--report {shown} is the input or the output")).into());
            }
        }
        Ok(())
    }

    fn options(&self, schema: Value) -> anyhow::Result<LabelOptions> {
        let mut options = LabelOptions::new(&self.input, &self.output, self.prompt()?, schema);
        options.system = self.system.clone();
        options.raw = self.raw;
        options.max_tokens = self.max_tokens;
        options.temperature = self.temperature;
        options.seed = self.seed;
        options.keep = self.keep.clone();
        options.limit = self.limit;
        options.allow_bad_records = self.allow_bad_records;
        options.concurrency = self.concurrency;
        options.retry.patience = Duration::from_secs(self.patience);
        options.start = match (self.restart, self.retry_errors) {
            (true, _) => Start::Restart,
            (_, true) => Start::RetryFailures,
            _ => Start::Resume,
        };
        Ok(options)
    }

    /// The template: a file's text, or what was given.
    fn prompt(&self) -> anyhow::Result<String> {
        let path = Path::new(&self.prompt);
        if path.is_file() {
            return open::read_text(path, MAX_PROMPT_BYTES).context("the prompt");
        }
        if self.prompt.contains("{{") || self.prompt.contains("{%") {
            return Ok(self.prompt.clone());
        }
        let shown = output::one_line(&self.prompt, 60);
        let error = UsageError(format!("--prompt {shown:?} is no file, and as a text it names no field"));
        Err(with_hint(error, "write {{ field }} where a record's field shall stand"))
    }

    fn write(&self, report: &LabelReport, title: &str) -> anyhow::Result<()> {
        for path in &self.report {
            let text = match is_html(path) {
                true => report.to_html(title),
                false => format!("{}\n", serde_json::to_string_pretty(&report.summary)?),
            };
            output::write_whole(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            output::note(&format!("wrote {}", path.display()));
        }
        Ok(())
    }
}

fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| wanted.contains(&ending))
}

fn is_html(path: &Path) -> bool {
    has_extension(path, &["html", "htm"])
}

fn is_json(path: &Path) -> bool {
    has_extension(path, &["json"])
}

/// The library's refusal, with what helps.
fn explained(error: LabelError) -> anyhow::Error {
    let hint = match &error {
        LabelError::Setting { field, reason } => {
            return UsageError(format!("--{} {reason}", field.replace('_', "-"))).into();
        }
        LabelError::SamePrompt => "a field stands in double braces: {{ text }}",
        LabelError::BadRecords { .. } => "--allow-bad-records gives them lines with their errors",
        LabelError::Records(RecordsError::OtherTerms { .. }) => {
            "give the same to go on, another --out, or --restart to begin anew and lose these labels"
        }
        LabelError::Records(RecordsError::Foreign { .. } | RecordsError::Damaged { .. }) => {
            "give another --out, or --restart to write over it"
        }
        LabelError::Records(RecordsError::GaveUp { .. } | RecordsError::Fatal(_)) => {
            "what was labelled is kept; the same command goes on from there"
        }
        LabelError::Records(RecordsError::DiskFull { .. }) => {
            "what was labelled is kept; with more space the same command goes on from there"
        }
        LabelError::Ask(refused) => match asked::explained(refused) {
            Some(hint) => hint,
            None => return error.into(),
        },
        _ => return error.into(),
    };
    with_hint(error, hint)
}

/// One line on what the run did.
fn ended(report: &LabelReport, path: &Path) -> String {
    let path = path.display();
    let Some(rate) = report.labels_per_second() else {
        return format!("{path} was finished already: {} lines", report.num_before);
    };
    let before = match report.num_before {
        0 => String::new(),
        num => format!(" after {num} of earlier runs"),
    };
    let took = output::duration(report.elapsed);
    format!("{} lines in {took}{before}, {rate:.1} a second, in {path}", report.num_written)
}

/// `41.3 labels/s · 2 errors · 3 min 20 s left`.
fn said(progress: &LabelProgress<'_>) -> String {
    let done = progress.summary.num_records();
    let rate = done.saturating_sub(progress.num_before) as f64 / progress.elapsed.as_secs_f64().max(1e-3);
    let mut text = format!("{rate:.1} labels/s");
    if progress.summary.num_errors > 0 {
        text.push_str(&format!(" · {} errors", progress.summary.num_errors));
    }
    text.push_str(&time_left(progress.num_records.saturating_sub(done), rate));
    text
}
