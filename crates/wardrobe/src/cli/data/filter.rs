//! `data filter` and `data split`: one file into a shorter one, or into two.

use std::path::PathBuf;

use wardrobe::data::{FilterOptions, LengthStats, SplitOptions, TestSize};

use super::{BAR_WIDTH, ReadArgs, hinted, model_text};
use crate::cli::output;

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

pub fn filter(args: &FilterArgs) -> anyhow::Result<()> {
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

pub fn split(args: &SplitArgs) -> anyhow::Result<()> {
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
