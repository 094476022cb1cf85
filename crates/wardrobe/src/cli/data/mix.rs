//! `data mix`: several sources in one file.

use std::str::FromStr;

use wardrobe::data::prepare::{MixOptions, MixSource, Share};

use super::hinted;
use super::inputs::{OutputArgs, SourceArgs, tell};
use crate::cli::output;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct MixArgs {
    /// A source and how much of it: INPUT=1000 records, INPUT=30% of all, or INPUT=all
    #[arg(long = "source", value_name = "INPUT=SHARE", required = true)]
    sources: Vec<SourceShare>,
    /// Records of the output; needed where all shares are percentages
    #[arg(long, value_name = "N")]
    total: Option<u64>,
    /// Take the records of a source that runs short several times
    #[arg(long)]
    repeat: bool,
    /// Which records are taken, and their order
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    read: SourceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// One `--source`.
#[derive(Debug, Clone)]
struct SourceShare {
    input: String,
    share: Share,
}

impl FromStr for SourceShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name may hold an =, a share does not.
        match text.rsplit_once('=') {
            Some((input, share)) if !input.is_empty() => {
                Ok(Self { input: input.to_owned(), share: share.parse()? })
            }
            _ => Err(format!(
                "{text:?} does not say how much; write it like a.jsonl=1000, a.jsonl=30% or a.jsonl=all"
            )),
        }
    }
}

const HELP: &str = "\
A source is a file, a folder or hub:OWNER/NAME[/PATH][@REVISION]. Percentages are of all records that are written: without
counts they are 100 % together, and beside counts what the counts leave. Nothing is taken twice without --repeat. Lines of
JSONL are copied byte by byte; other formats become JSONL.

Examples:
  wardrobe data mix --source chat.jsonl=70% --source docs.jsonl=30% --total 10000 --seed 1 -o mixed.jsonl
  wardrobe data mix --source a.jsonl=all --source b.csv=500 -o both.jsonl";

pub fn mix(args: &MixArgs) -> anyhow::Result<()> {
    let sources = args.sources.iter().map(|source| {
        Ok(MixSource {
            name: source.input.clone(),
            source: args.read.source(std::slice::from_ref(&source.input))?,
            share: source.share,
        })
    });
    let options = MixOptions {
        sources: sources.collect::<anyhow::Result<_>>()?,
        total: args.total,
        repeat: args.repeat,
        seed: args.seed,
        output: args.output.output(),
    };
    let report = wardrobe::data::prepare::mix(&options).map_err(hinted)?;
    let written: u64 = report.sources.iter().map(|(_, written)| written).sum();
    tell(&format!("{written} records"), &args.output, &report.inputs, &report.dropped)?;
    let rows: Vec<Vec<String>> = options
        .sources
        .iter()
        .zip(&report.sources)
        .map(|(source, (available, written))| {
            vec![format!("  {written}"), format!("of {available}"), source.name.clone()]
        })
        .collect();
    output::write_stdout(output::table(&rows).as_bytes())?;
    if !report.layouts.is_empty() {
        let layouts: Vec<&str> =
            report.layouts.iter().map(|layout| layout.as_deref().unwrap_or("of no known columns")).collect();
        output::note(&format!(
            "warning: the sources' records are not alike ({}): training takes records of one kind",
            layouts.join(", ")
        ));
    }
    Ok(())
}
