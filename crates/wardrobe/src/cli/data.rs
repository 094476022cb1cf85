//! `data check`, `data stats`, `data filter`, `data split`: data before it is trained on.
//!
//! Tokens are counted with a model's tokenizer; its weights are not read.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use wardrobe::ModelText;
use wardrobe::data::{
    CheckOptions, ColumnMap, DataError, DataOptions, DataStats, Encoder, FilterOptions, Finding, Format,
    LengthStats, LossOn, PromptTemplate, ReadOptions, Report, SplitOptions, TestSize, Truncation,
};

use super::failure::{UsageError, with_hint};
use super::log;
use super::open;
use super::output::{self, Style};

#[derive(Debug, clap::Subcommand)]
pub enum DataCommand {
    /// Check a file, with the line of every error
    Check(CheckArgs),
    /// Count records and tokens, and draw their lengths
    Stats(StatsArgs),
    /// Leave out records that would not fit the model's context
    Filter(FilterArgs),
    /// Part a file into one to train on and one to test with
    Split(SplitArgs),
}

/// How a file is read.
#[derive(Debug, clap::Args)]
pub(super) struct ReadArgs {
    /// A .jsonl, .csv or .parquet file
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Its format, if the name does not tell: jsonl, csv or parquet
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// The column of messages
    #[arg(long, value_name = "NAME")]
    messages_column: Option<String>,
    /// The column of prompts
    #[arg(long, value_name = "NAME")]
    prompt_column: Option<String>,
    /// The column of completions
    #[arg(long, value_name = "NAME")]
    completion_column: Option<String>,
    /// The column of text without prompts
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
}

/// How records become tokens.
#[derive(Debug, clap::Args)]
pub(super) struct EncodeArgs {
    /// auto (the model's chat template), plain, alpaca, chatml, llama2-inst, zephyr, vicuna, or a text with {column} in it
    #[arg(long, value_name = "TEMPLATE", default_value = "auto")]
    prompt_template: PromptTemplate,
    /// What is learnt: completions or everything
    #[arg(long, value_name = "PART", default_value = "completions")]
    loss: LossOn,
    /// The longest example, in tokens
    #[arg(long, value_name = "TOKENS")]
    max_context: Option<usize>,
    /// What becomes of longer ones: drop, left or right (where they are cut), or error
    #[arg(long, value_name = "HOW", default_value = "drop")]
    truncation: Truncation,
}

#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_HELP)]
pub struct CheckArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Tokenize for this model, too: tells what its template refuses, and what is too long
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    encode: EncodeArgs,
    /// Errors, and warnings, that are printed; the rest are counted
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_errors: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = STATS_HELP)]
pub struct StatsArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Count with this model's tokenizer and template
    #[arg(long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    encode: EncodeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = FILTER_HELP)]
pub struct FilterArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Count with this model's tokenizer
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// The model's context, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 8192)]
    max_context: usize,
    /// Tokens that are kept free, for what the template adds
    #[arg(long, value_name = "TOKENS", default_value_t = 500)]
    safety_buffer: usize,
    /// Where to write [default: FILE with .filtered before its ending]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an output that is there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = SPLIT_HELP)]
pub struct SplitArgs {
    #[command(flatten)]
    read: ReadArgs,
    /// Which records are for testing
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// The part for testing [default: 0.1]
    #[arg(long, value_name = "FRACTION", conflicts_with = "test_size")]
    test_fraction: Option<f64>,
    /// The records for testing
    #[arg(long, value_name = "N")]
    test_size: Option<usize>,
    /// Where to write what is trained on [default: FILE with .train before its ending]
    #[arg(long, value_name = "FILE")]
    train_output: Option<PathBuf>,
    /// Where to write what is tested with [default: FILE with .test before its ending]
    #[arg(long, value_name = "FILE")]
    test_output: Option<PathBuf>,
    /// Replace outputs that are there
    #[arg(long)]
    force: bool,
}

const CHECK_HELP: &str = "\
Records are messages, conversations (ShareGPT), prompt/completion, instruction/[input]/output, instruction/response,
question/answer, input/output, or text. Exit code 1 if there is an error; warnings alone are none.

Examples:
  wardrobe data check train.jsonl
  wardrobe data check train.csv --prompt-column title --completion-column label --model smollm2-135m";
const STATS_HELP: &str = "\
Example:
  wardrobe data stats train.jsonl --model smollm2-135m --prompt-template '### Q: {question}\\n### A:'";
const FILTER_HELP: &str = "\
A record is left out if the tokens of its texts and the safety buffer are together more than the context. Lines that are
kept are copied byte by byte.

Example:
  wardrobe data filter train.jsonl --model smollm2-135m --max-context 8192 --safety-buffer 500";
const SPLIT_HELP: &str = "\
The seed chooses the lines for testing; both files keep the order of the first and are copies of its lines, byte by byte.
Records that say the same go to the same side.

Example:
  wardrobe data split train.jsonl --seed 1 --test-fraction 0.1";

/// Runs a command on data.
pub fn run(command: &DataCommand) -> anyhow::Result<()> {
    log::init_quiet()?;
    match command {
        DataCommand::Check(args) => check(args),
        DataCommand::Stats(args) => stats(args),
        DataCommand::Filter(args) => filter(args),
        DataCommand::Split(args) => split(args),
    }
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "jsonl" => Ok(Format::Jsonl),
        "csv" => Ok(Format::Csv),
        "parquet" => Ok(Format::Parquet),
        _ => Err(format!("unknown format {text:?}: jsonl, csv or parquet")),
    }
}

impl ReadArgs {
    fn options(&self) -> ReadOptions {
        let columns = ColumnMap {
            messages: self.messages_column.clone(),
            prompt: self.prompt_column.clone(),
            completion: self.completion_column.clone(),
            text: self.text_column.clone(),
        };
        ReadOptions { format: self.format, columns, ..ReadOptions::default() }
    }

    /// The file's name with a word before its ending; what Parquet becomes is JSONL.
    fn beside(&self, word: &str) -> PathBuf {
        let ending = self.file.extension().map(|ending| ending.to_string_lossy().into_owned());
        let is_parquet = self.format == Some(Format::Parquet) || ending.as_deref() == Some("parquet");
        match ending {
            _ if is_parquet => self.file.with_extension(format!("{word}.jsonl")),
            Some(ending) => self.file.with_extension(format!("{word}.{ending}")),
            None => self.file.with_extension(word),
        }
    }
}

impl EncodeArgs {
    pub(super) fn options(&self, read: &ReadArgs) -> DataOptions {
        DataOptions {
            read: read.options(),
            template: self.prompt_template.clone(),
            loss: self.loss,
            max_tokens: self.max_context,
            truncation: self.truncation,
            ..DataOptions::default()
        }
    }
}

fn model_text(model: &str) -> anyhow::Result<ModelText> {
    let found = open::find(model)?;
    ModelText::open(&found.path).with_context(|| format!("cannot open the model {}", found.path.display()))
}

/// An error with what helps against it.
pub(super) fn hinted(error: DataError) -> anyhow::Error {
    match error {
        DataError::OutputExists(_) => with_hint(error, "--force replaces it"),
        DataError::Record { ref finding, .. } if finding.place.is_some() => {
            with_hint(error, "`wardrobe data check` lists all errors of a file")
        }
        DataError::Options(message) => UsageError(message).into(),
        error => error.into(),
    }
}

fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let options = args.encode.options(&args.read);
    let text = args.model.as_deref().map(model_text).transpose()?;
    let encoder =
        text.as_ref().map(|text| Encoder::new(&text.tokenizer, text.chat_template.as_deref(), &options));
    let encoder = encoder.transpose().map_err(hinted)?;
    let check = CheckOptions { read: options.read_options(), max_findings: args.max_errors };
    let path = &args.read.file;
    let report = wardrobe::data::check_encoded(path, &check, encoder.as_ref()).map_err(hinted)?;
    if args.json {
        output::line(&serde_json::to_string_pretty(&report_json(path, &report))?)?;
    } else {
        output::write_stdout(report_text(path, &report, Style::stdout()).as_bytes())?;
    }
    match report.num_errors {
        0 => Ok(()),
        1 => anyhow::bail!("{} has an error", path.display()),
        count => anyhow::bail!("{} has {count} errors", path.display()),
    }
}

fn report_text(path: &Path, report: &Report, style: Style) -> String {
    let mut text = String::new();
    let mut list = |findings: &[Finding], all: u64, kind: &str| {
        for finding in findings {
            text.push_str(&format!("{kind} {}\n", finding.in_file(path)));
        }
        let more = all - findings.len() as u64;
        if more > 0 {
            text.push_str(&format!("{kind} … {more} more\n"));
        }
    };
    list(&report.errors, report.num_errors, &style.bad("error:"));
    list(&report.warnings, report.num_warnings, &style.note("warning:"));
    let layout = report.layout.as_deref().map_or_else(String::new, |layout| format!(" ({layout})"));
    text.push_str(&format!(
        "{}: {}, {} records{layout}, {} errors, {} warnings\n",
        path.display(),
        report.format.name(),
        report.num_records,
        report.num_errors,
        report.num_warnings
    ));
    text
}

fn report_json(path: &Path, report: &Report) -> Value {
    let findings = |findings: &[Finding]| -> Vec<Value> {
        let one = |finding: &Finding| {
            let (kind, number) = place(finding);
            json!({ kind: number, "key": finding.key, "message": finding.message })
        };
        findings.iter().map(one).collect()
    };
    json!({
        "file": path.to_string_lossy(),
        "format": report.format.name(),
        "layout": report.layout,
        "records": report.num_records,
        "num_errors": report.num_errors,
        "num_warnings": report.num_warnings,
        "errors": findings(&report.errors),
        "warnings": findings(&report.warnings),
    })
}

/// The name and number of a finding's place.
fn place(finding: &Finding) -> (&'static str, Option<u64>) {
    use wardrobe::data::Place;
    match finding.place {
        Some(Place::Row(number)) => ("row", Some(number)),
        Some(Place::Line(number)) => ("line", Some(number)),
        _ => ("line", None),
    }
}

fn stats(args: &StatsArgs) -> anyhow::Result<()> {
    let options = args.encode.options(&args.read);
    let text = model_text(&args.model)?;
    let encoder = Encoder::new(&text.tokenizer, text.chat_template.as_deref(), &options).map_err(hinted)?;
    let stats = wardrobe::data::measure(&args.read.file, &encoder, &options).map_err(hinted)?;
    if args.json {
        output::line(&serde_json::to_string_pretty(&stats_json(&stats))?)
    } else {
        output::write_stdout(stats_text(&stats).as_bytes())
    }
}

/// Characters of the longest bar.
const BAR_WIDTH: usize = 50;
const PERCENTILES: [usize; 3] = [50, 90, 99];

fn stats_text(stats: &DataStats) -> String {
    let names = ["", "minimum", "mean", "median", "90 %", "99 %", "maximum", "total"];
    let rows = [
        names.map(str::to_owned).to_vec(),
        figures("tokens", &stats.tokens),
        figures("learnt", &stats.supervised_tokens),
    ];
    format!("{}\n\n{}\n{}", stats.counts, output::table(&rows), stats.tokens.histogram_text(BAR_WIDTH))
}

/// A row of a table.
fn figures(name: &str, lengths: &LengthStats) -> Vec<String> {
    let mut row = vec![name.to_owned(), lengths.min().to_string(), format!("{:.1}", lengths.mean())];
    row.extend(PERCENTILES.map(|percent| lengths.percentile(percent).to_string()));
    row.extend([lengths.max().to_string(), lengths.total().to_string()]);
    row
}

fn stats_json(stats: &DataStats) -> Value {
    let lengths = |lengths: &LengthStats| {
        let histogram: Vec<Value> = lengths
            .histogram()
            .iter()
            .map(|bucket| json!({"from": bucket.from, "to": bucket.to, "count": bucket.count}))
            .collect();
        let [p50, p90, p99] = PERCENTILES.map(|percent| lengths.percentile(percent));
        json!({
            "min": lengths.min(), "mean": lengths.mean(), "max": lengths.max(), "total": lengths.total(),
            "p50": p50, "p90": p90, "p99": p99, "histogram": histogram,
        })
    };
    let dropped: serde_json::Map<String, Value> =
        stats.counts.dropped.iter().map(|(reason, count)| (reason.to_string(), (*count).into())).collect();
    json!({
        "records": stats.counts.records,
        "examples": stats.counts.examples,
        "dropped": dropped,
        "tokens": lengths(&stats.tokens),
        "supervised_tokens": lengths(&stats.supervised_tokens),
    })
}

fn filter(args: &FilterArgs) -> anyhow::Result<()> {
    let output = args.output.clone().unwrap_or_else(|| args.read.beside("filtered"));
    let text = model_text(&args.model)?;
    let options = FilterOptions {
        read: args.read.options(),
        max_context_tokens: args.max_context,
        safety_buffer_tokens: args.safety_buffer,
        replace: args.force,
    };
    let report =
        wardrobe::data::filter(&args.read.file, &output, &text.tokenizer, &options).map_err(hinted)?;
    let names = ["", "records", "minimum", "mean", "maximum", "total"].map(str::to_owned).to_vec();
    let row = |name: &str, lengths: &LengthStats| {
        vec![
            name.to_owned(),
            lengths.count().to_string(),
            lengths.min().to_string(),
            format!("{:.1}", lengths.mean()),
            lengths.max().to_string(),
            lengths.total().to_string(),
        ]
    };
    let (before, after) = (&report.before, &report.after);
    let table = output::table(&[names, row("before", before), row("after", after)]);
    let dropped = before.count() - after.count();
    output::write_stdout(
        format!(
            "{table}\n{}\nkept {} of {} records, left out {dropped}: {}\n",
            before.histogram_text(BAR_WIDTH),
            after.count(),
            before.count(),
            output.display()
        )
        .as_bytes(),
    )
}

fn split(args: &SplitArgs) -> anyhow::Result<()> {
    let train = args.train_output.clone().unwrap_or_else(|| args.read.beside("train"));
    let test = args.test_output.clone().unwrap_or_else(|| args.read.beside("test"));
    let test_size = match (args.test_size, args.test_fraction) {
        (Some(records), _) => TestSize::Records(records),
        (None, fraction) => TestSize::Fraction(fraction.unwrap_or(0.1)),
    };
    let options = SplitOptions { read: args.read.options(), test_size, seed: args.seed, replace: args.force };
    let report = wardrobe::data::split(&args.read.file, &train, &test, &options).map_err(hinted)?;
    let mut text = format!(
        "{} records to train on: {}\n{} to test with: {}\n",
        report.num_train,
        train.display(),
        report.num_test,
        test.display()
    );
    if report.num_duplicates > 0 {
        text.push_str(&format!(
            "{} say the same as an earlier one and went to its side\n",
            report.num_duplicates
        ));
    }
    output::write_stdout(text.as_bytes())
}
