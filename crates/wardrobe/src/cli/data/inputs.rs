//! What commands that make data sets have in common: where they read, where they write, how much they take.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use wardrobe::data::Format;
use wardrobe::data::prepare::{Dropped, FetchError, InputFile, InputRecord, Output, Source, Take};
use wardrobe_hub::{Dataset, DatasetRef, PullOptions};

use super::{format, hinted};
use crate::cli::output;
use crate::cli::progress::PullProgress;

/// How inputs are read.
#[derive(Debug, Clone, clap::Args)]
pub struct SourceArgs {
    /// The format of files of records, if their names do not tell: jsonl, csv or parquet
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Format>,
    /// Leave out records that cannot be read, and count them; without this the first is an error
    #[arg(long)]
    skip_unreadable: bool,
    /// Ask the hub for the files of a data set even if the cache has their list: a branch may have moved
    #[arg(long)]
    refresh: bool,
}

/// What is read.
#[derive(Debug, clap::Args)]
pub struct InputArgs {
    /// Files and folders of .jsonl, .csv, .parquet, .txt, .md and .rst, or hub:OWNER/NAME[/PATH][@REVISION]
    #[arg(value_name = "INPUT", required = true)]
    inputs: Vec<String>,
    #[command(flatten)]
    source: SourceArgs,
}

/// Where it goes.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// Where to write; NAME.manifest.json beside it says what was made of what
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Replace an output that is there
    #[arg(long)]
    force: bool,
}

impl InputArgs {
    pub fn source(&self) -> anyhow::Result<Source> {
        self.source.source(&self.inputs)
    }
}

impl SourceArgs {
    /// The files that texts of the command line name.
    pub fn source(&self, inputs: &[String]) -> anyhow::Result<Source> {
        let mut files = Vec::new();
        for input in inputs {
            files.extend(match DatasetRef::is_one(input) {
                true => self.on_the_hub(input)?,
                false => Source::local(Path::new(input)).map_err(hinted)?,
            });
        }
        Ok(Source { files, format: self.format, skip_unreadable: self.skip_unreadable, ..Source::default() })
    }

    fn on_the_hub(&self, input: &str) -> anyhow::Result<Vec<InputFile>> {
        let reference = DatasetRef::parse(input)?;
        let mut options = PullOptions::default();
        options.refresh = self.refresh;
        let dataset = Arc::new(Dataset::open(&reference, &options, &PullProgress::new(false))?);
        let names: Vec<String> = dataset.files().into_iter().map(|file| file.path).collect();
        let chosen = match names.as_slice() {
            // A file that was named is what was meant.
            [_] => vec![true],
            names => InputFile::choose(names),
        };
        if !chosen.contains(&true) {
            let some: Vec<&str> = names.iter().take(12).map(String::as_str).collect();
            let some = if some.is_empty() { "nothing of that path".to_owned() } else { some.join(", ") };
            anyhow::bail!("{reference} has no file of records or text: there is {some}");
        }
        let files = names.into_iter().zip(chosen).filter(|(_, is_chosen)| *is_chosen).map(|(path, _)| {
            let dataset = dataset.clone();
            InputFile::remote(dataset.name_of(&path), move || {
                dataset.fetch(&path, &PullProgress::new(false)).map_err(FetchError::from)
            })
        });
        Ok(files.collect())
    }
}

impl OutputArgs {
    pub fn output(&self) -> Output {
        Output { path: self.output.clone(), replace: self.force }
    }

    pub fn path(&self) -> &Path {
        &self.output
    }
}

/// How many are taken: the first, or with a seed drawn ones.
pub fn take(count: Option<usize>, seed: Option<u64>) -> Take {
    match (count, seed) {
        (None, _) => Take::All,
        (Some(count), None) => Take::First(count),
        (Some(count), Some(seed)) => Take::Drawn { count, seed },
    }
}

/// Says on standard output what was written, and what was left out.
pub fn tell(
    written: &str,
    args: &OutputArgs,
    inputs: &[InputRecord],
    dropped: &Dropped,
) -> anyhow::Result<()> {
    let read: u64 = inputs.iter().map(|input| input.records).sum();
    let mut text = format!("{written}: {}\n", args.path().display());
    text.push_str(&format!("read {read} records of {} files\n", inputs.len()));
    let rows: Vec<Vec<String>> =
        dropped.0.iter().map(|(reason, count)| vec![format!("  {count}"), reason.clone()]).collect();
    if !rows.is_empty() {
        text.push_str(&format!("left out {}:\n{}", dropped.total(), output::table(&rows)));
    }
    output::write_stdout(text.as_bytes())
}
