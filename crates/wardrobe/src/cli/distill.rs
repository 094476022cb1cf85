//! `distill`: a teacher is asked the questions of a file, and its answers become data to train on.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use wardrobe::ModelText;
use wardrobe::distill::{
    DataFormat, DistillError, DistillJob, DistillOptions, DistillProgress, DistillReport, Ended, Price,
    RecordsError, SchemaTurns, Start,
};

use super::asked::TeacherArgs;
use super::failure::{UsageError, with_hint};
use super::open;
use super::output::{self, Style};
use super::progress::{RecordsProgress, time_left};
use super::{log, signals};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DistillArgs {
    #[command(flatten)]
    teacher: TeacherArgs,
    /// Questions: a JSONL, CSV or Parquet file with turns, messages, prompt, instruction or question
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Where the data goes; if it is there, the run goes on after its last record
    #[arg(long = "out", value_name = "FILE")]
    output: PathBuf,
    /// File that keeps every answer; runs may share one [default: OUT.answers.sqlite]
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
    /// Text of the system message of records that have none
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// 0 takes the likeliest answer
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// The share of likelihood that tokens are drawn from
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// With a temperature: the same seed, the same answers, of a teacher that can promise that
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// File with the JSON schema that answers are held to
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Which answers the schema is for
    #[arg(long, value_name = "WHICH", default_value = "each", requires = "schema")]
    schema_turns: Turns,
    /// Keep answers that records have, as context that is not learnt, and ask the other questions [default: ask all anew]
    #[arg(long)]
    keep_answers: bool,
    /// Keep answers whose tokens ran out
    #[arg(long)]
    keep_cut: bool,
    /// What a line of the data is: messages, or text in the turns of --template
    #[arg(long, value_name = "FORMAT", default_value = "messages")]
    format: Format,
    /// With --format text: chat (the chat template of --template-model) or inst ([INST] question [/INST] answer)
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<Template>,
    /// The model whose chat template is taken; its weights are not read
    #[arg(long, value_name = "MODEL")]
    template_model: Option<String>,
    /// Lines also have the answers' tokens and how they ended
    #[arg(long)]
    with_usage: bool,
    /// What a million tokens cost: of prompts, of answers, and of prompts that were computed before
    #[arg(long, value_name = "IN/OUT[/CACHED]")]
    price: Option<Price>,
    /// Ask the first N records; a later run may ask more
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Records at once [default: what fills the engine; 64 of an endpoint]
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// How long a question is asked again while the endpoint cannot be reached or is busy, before the run ends
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    patience: u64,
    /// Count records that ask nothing as errors, instead of refusing to begin
    #[arg(long)]
    allow_bad_records: bool,
    /// Ask the records again that are errors
    #[arg(long, conflicts_with = "restart")]
    retry_errors: bool,
    /// Begin anew; answers that are kept are not asked for again
    #[arg(long)]
    restart: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Turns {
    Each,
    Last,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Messages,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Template {
    Chat,
    Inst,
}

const EXAMPLES: &str = "\
Questions are {\"turns\": [\"first\", \"second\"]}, {\"messages\": [...]}, {\"prompt\"}, {\"instruction\", \"input\"} or
{\"question\"}, each with \"system\" and \"id\" if they like. Every question is asked with the answers to those before it.

Ctrl-C ends a run; the same command goes on where it ended, also after a kill: no answer that came is asked for again.
OUT is made when a run ends, OUT.errors.jsonl has the records without data. OUT.lines and OUT.run.json are what a run goes
on from. WARDROBE_ENDPOINT_API_KEY is an API key without a file.

Examples:
  wardrobe distill --teacher http://127.0.0.1:8000 --in questions.jsonl --out data.jsonl --price 0.5/1.5
  wardrobe distill --teacher smollm2-135m --in questions.jsonl --out data.jsonl --format text --template inst
  wardrobe train smollm2-135m data.jsonl --output pupil";

/// Asks, and prints what came of it.
pub fn run(args: &DistillArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    // What can be wrong without a teacher is found before one is pulled and read.
    args.teacher.check()?;
    let job = DistillJob::new(args.options()?).map_err(explained)?;
    if let (num @ 1.., first) = job.bad_records() {
        let note = Style::stderr().note("note:");
        output::note(&format!("{note} {num} records cannot be asked: {}", first.join("; ")));
    }
    let teacher = args.teacher.open_one()?;
    let stop = signals::stop_flag("stopping; the same command goes on from here; once more to stop at once")?;
    let mut shown = RecordsProgress::new(job.num_records())?;
    let report = job.run(&*teacher, &stop, &mut |progress| {
        shown.at(progress.summary.num_records(), || said(progress));
    });
    shown.end();
    let report = report.map_err(explained)?;
    output::write_stdout(report.to_text().as_bytes())?;
    output::note(&Style::stderr().dim(&ended(&report, args)));
    match report.ended {
        Ended::Complete => Ok(()),
        Ended::Stopped => std::process::exit(signals::INTERRUPTED),
    }
}

impl DistillArgs {
    fn options(&self) -> anyhow::Result<DistillOptions> {
        let mut options = DistillOptions::new(&self.input, &self.output);
        options.cache = self.cache.clone();
        options.system = self.system.clone();
        options.schema = self.schema.as_deref().map(open::read_schema).transpose()?.map(Value::Object);
        options.schema_turns = match self.schema_turns {
            Turns::Each => SchemaTurns::Each,
            Turns::Last => SchemaTurns::Last,
        };
        options.max_tokens = self.max_tokens;
        options.temperature = self.temperature;
        options.top_p = self.top_p;
        options.seed = self.seed;
        options.keep_answers = self.keep_answers;
        options.keep_cut = self.keep_cut;
        options.limit = self.limit;
        options.allow_bad_records = self.allow_bad_records;
        options.concurrency = self.concurrency;
        options.retry.patience = Duration::from_secs(self.patience);
        options.start = match (self.restart, self.retry_errors) {
            (true, _) => Start::Restart,
            (_, true) => Start::RetryFailures,
            _ => Start::Resume,
        };
        options.format = self.format()?;
        options.with_usage = self.with_usage;
        options.price = self.price;
        Ok(options)
    }

    fn format(&self) -> anyhow::Result<DataFormat> {
        let wrong = |text: &str| Err(UsageError(text.to_owned()).into());
        if self.template_model.is_some() && self.template != Some(Template::Chat) {
            return wrong("--template-model goes with --format text --template chat");
        }
        match (self.format, self.template) {
            (Format::Messages, None) => Ok(DataFormat::Messages),
            (Format::Messages, Some(_)) => wrong("--template goes with --format text"),
            (Format::Text, None) => wrong("--format text needs --template chat or --template inst"),
            (Format::Text, Some(Template::Inst)) => Ok(DataFormat::Inst),
            (Format::Text, Some(Template::Chat)) => {
                let Some(model) = &self.template_model else {
                    return wrong("--template chat needs --template-model: a model with a chat template");
                };
                Ok(DataFormat::Chat(ModelText::open(&open::find(model)?.path)?))
            }
        }
    }
}

/// The library's refusal, with what helps.
fn explained(error: DistillError) -> anyhow::Error {
    let hint = match &error {
        DistillError::Setting { field, reason } => {
            return UsageError(format!("--{} {reason}", field.replace('_', "-"))).into();
        }
        DistillError::BadRecords { .. } => "--allow-bad-records counts them as errors",
        DistillError::Records(RecordsError::OtherTerms { .. }) => {
            "give the same to go on, another --out, or --restart to begin anew: answers that are kept are not asked for \
             again"
        }
        DistillError::Records(RecordsError::Foreign { .. } | RecordsError::Damaged { .. }) => {
            "give another --out, or --restart to write over it"
        }
        DistillError::Records(RecordsError::GaveUp { .. } | RecordsError::Fatal(_)) => {
            "every answer that came is kept; the same command goes on from there"
        }
        DistillError::Records(RecordsError::DiskFull { .. }) => {
            "every answer that came is kept; with more space the same command goes on from there"
        }
        DistillError::Answers(_) => "--cache names another file",
        _ => return error.into(),
    };
    with_hint(error, hint)
}

/// One line on what the run did.
fn ended(report: &DistillReport, args: &DistillArgs) -> String {
    let path = args.output.display();
    if report.num_written == 0 && report.ended == Ended::Complete {
        return format!("{path} was finished already: {} records", report.num_before);
    }
    let before = match report.num_before {
        0 => String::new(),
        num => format!(" after {num} of earlier runs"),
    };
    let took = output::duration(report.elapsed);
    let rate = report.tally.asked.num as f64 / report.elapsed.as_secs_f64().max(1e-3);
    format!("{} records in {took}{before}, {rate:.1} answers a second, in {path}", report.num_written)
}

/// `41.3 answers/s · 81 k tokens · cost 0.12 · 2 errors · 3 min 20 s left`.
fn said(progress: &DistillProgress<'_>) -> String {
    let done = progress.summary.num_records();
    let seconds = progress.elapsed.as_secs_f64().max(1e-3);
    let asked = &progress.tally.asked;
    let num_tokens = asked.usage.prompt_tokens + asked.usage.completion_tokens;
    let mut text = format!("{:.1} answers/s · {} tokens", asked.num as f64 / seconds, thousands(num_tokens));
    if let Some(price) = &progress.price {
        text.push_str(&format!(" · cost {:.4}", price.of(&asked.usage)));
    }
    if progress.summary.num_errors > 0 {
        text.push_str(&format!(" · {} errors", progress.summary.num_errors));
    }
    let rate = done.saturating_sub(progress.num_before) as f64 / seconds;
    text.push_str(&time_left(progress.num_records.saturating_sub(done), rate));
    text
}

/// `812`, `81.3 k`, `4.1 M`.
fn thousands(num: u64) -> String {
    match num {
        0..1_000 => num.to_string(),
        1_000..1_000_000 => format!("{:.1} k", num as f64 / 1e3),
        _ => format!("{:.1} M", num as f64 / 1e6),
    }
}
