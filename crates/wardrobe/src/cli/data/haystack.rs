//! `data haystack`: one person among many.

use wardrobe::data::prepare::{Counting, HaystackOptions, Span};

use super::inputs::{InputArgs, OutputArgs, tell};
use super::{hinted, model_text};
use crate::cli::output;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct HaystackArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Measure with this model's tokenizer
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Tokens of a prompt, with its question
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "500,1000,2000,4000")]
    lengths: Vec<usize>,
    /// Where the needle is: 0 at the front, 1 at the end
    #[arg(long, value_name = "DEPTH", value_delimiter = ',', default_value = "0,0.25,0.5,0.75,1")]
    depths: Vec<f64>,
    /// Items of each length and depth
    #[arg(long, value_name = "N", default_value_t = 10)]
    per_cell: usize,
    /// Tokens of a biography that is asked for
    #[arg(long, value_name = "MIN-MAX", default_value = "10-400", allow_hyphen_values = true)]
    needle_tokens: Span,
    /// The part of the items of which a fact was taken out of the text, so that "unknown" is right
    #[arg(long, value_name = "FRACTION", default_value_t = 0.0)]
    unknown_share: f64,
    /// What is drawn
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

const HELP: &str = "\
The input is what `wardrobe data bios` writes, or records of the same columns: name, text, nationality, born, died,
sportsperson, politician, and names, a list, where a person has several. Everyone gets a name that is not theirs, wherever
it stands. Nobody is asked for whose record or name is in doubt. Beside the output is NAME.schema.json for answers.
`wardrobe eval --task record` takes the items.

Example:
  wardrobe data bios --wordnet wordnet/ -o bios.jsonl
  wardrobe data haystack bios.jsonl --model smollm2-135m --lengths 500,1000,2000 --depths 0,0.5,1 --per-cell 20 \\
    --unknown-share 0.1 -o haystack.jsonl";

pub fn haystack(args: &HaystackArgs) -> anyhow::Result<()> {
    let text = model_text(&args.model)?;
    let options = HaystackOptions {
        source: args.input.source()?,
        counting: Counting { tokenizer: &text.tokenizer, model: &args.model },
        lengths: args.lengths.clone(),
        depths: args.depths.clone(),
        per_cell: args.per_cell,
        needle_tokens: args.needle_tokens,
        unknown_share: args.unknown_share,
        seed: args.seed,
        output: args.output.output(),
    };
    let report = wardrobe::data::prepare::haystack(&options).map_err(hinted)?;
    let written = format!("{} items, {} with something unknown", report.num_items, report.num_unknown);
    tell(&written, &args.output, &report.inputs, &report.dropped)?;
    let mut text =
        format!("{} biographies, of which {} can be asked for", report.num_biographies, report.num_needles);
    let doubts: Vec<Vec<String>> =
        report.not_asked.0.iter().map(|(reason, count)| vec![format!("  {count}"), reason.clone()]).collect();
    text.push_str(&format!(
        "{}\n{}\n",
        if doubts.is_empty() { "" } else { "; not asked for:" },
        output::table(&doubts)
    ));
    let mut rows =
        vec![["length", "depth", "tokens", "off by", "depth got", "off by"].map(str::to_owned).to_vec()];
    rows.extend(report.cells.iter().map(|cell| {
        vec![
            cell.length.to_string(),
            cell.depth.to_string(),
            format!("{:.1}", cell.mean_tokens),
            cell.worst_tokens.to_string(),
            format!("{:.3}", cell.mean_depth),
            format!("{:.3}", cell.worst_depth),
        ]
    }));
    text.push_str(&output::table(&rows));
    output::write_stdout(text.as_bytes())
}
