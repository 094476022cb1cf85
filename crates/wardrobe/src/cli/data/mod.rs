//! `data`: data sets, checked, measured and parted; and made ([`wardrobe::data::prepare`]).
//!
//! Tokens are counted with a model's tokenizer; its weights are not read.

mod bios;
mod check;
mod filter;
mod haystack;
mod inputs;
mod mix;
mod repetition;
mod select;
mod stats;
mod turns;

use std::path::PathBuf;

use anyhow::Context as _;
use wardrobe::ModelText;
use wardrobe::data::{
    ColumnMap, DataError, DataOptions, Format, LossOn, PromptTemplate, ReadOptions, Truncation,
};

use super::failure::{UsageError, with_hint};
use super::{log, open};

/// Characters of the longest bar.
const BAR_WIDTH: usize = 50;

#[derive(Debug, clap::Subcommand)]
pub enum DataCommand {
    /// Check a file, with the line of every error
    Check(check::CheckArgs),
    /// Count records and tokens, and draw their lengths
    Stats(stats::StatsArgs),
    /// Leave out records that would not fit the model's context
    Filter(filter::FilterArgs),
    /// Part a file into one to train on and one to test with
    Split(filter::SplitArgs),
    /// Take documents by length and quality, from files here or a data set on the hub
    Select(select::SelectArgs),
    /// Mix several sources in shares, shuffled
    Mix(mix::MixArgs),
    /// Take the human's questions out of conversations
    Turns(turns::TurnsArgs),
    /// Make the task of repeating the last words of a text
    Repetition(repetition::RepetitionArgs),
    /// Make the task of finding one person's facts among many biographies
    Haystack(haystack::HaystackArgs),
    /// Make biographies with gold records from WordNet
    Bios(bios::BiosArgs),
}

/// How a file is read.
#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    /// A .jsonl, .csv or .parquet file
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: PathBuf,
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
pub struct EncodeArgs {
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

/// Runs a command on data.
pub fn run(command: &DataCommand) -> anyhow::Result<()> {
    log::init_quiet()?;
    match command {
        DataCommand::Check(args) => check::check(args),
        DataCommand::Stats(args) => stats::stats(args),
        DataCommand::Filter(args) => filter::filter(args),
        DataCommand::Split(args) => filter::split(args),
        DataCommand::Select(args) => select::select(args),
        DataCommand::Mix(args) => mix::mix(args),
        DataCommand::Turns(args) => turns::turns(args),
        DataCommand::Repetition(args) => repetition::repetition(args),
        DataCommand::Haystack(args) => haystack::haystack(args),
        DataCommand::Bios(args) => bios::bios(args),
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
    pub(in crate::cli) fn options(&self, read: &ReadArgs) -> DataOptions {
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

pub(super) fn model_text(model: &str) -> anyhow::Result<ModelText> {
    let found = open::find(model)?;
    ModelText::open(&found.path).with_context(|| format!("cannot open the model {}", found.path.display()))
}

/// An error with what helps against it.
pub(in crate::cli) fn hinted(error: DataError) -> anyhow::Error {
    match error {
        DataError::OutputExists(_) => with_hint(error, "--force replaces it"),
        DataError::Record { ref finding, .. } if finding.place.is_some() => {
            with_hint(error, "`wardrobe data check` lists all errors of a file")
        }
        DataError::Options(message) => UsageError(message).into(),
        error => error.into(),
    }
}
