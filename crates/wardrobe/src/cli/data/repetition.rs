//! `data repetition`: the last words of a text.

use wardrobe::data::prepare::{Counting, RepetitionOptions, Span};

use super::inputs::{InputArgs, OutputArgs, tell};
use super::{hinted, model_text};

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct RepetitionArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The column of the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Measure texts with this model's tokenizer
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Tokens of a text, such as 1000, or 200-1000 to draw a length for each
    #[arg(long, value_name = "MIN-MAX")]
    tokens: Span,
    /// How many words are asked for; drawn for each text
    #[arg(long, value_name = "MIN-MAX", default_value = "1-99")]
    n: Span,
    /// Texts of one document, one behind the other
    #[arg(long, value_name = "N", default_value_t = 1)]
    per_document: usize,
    /// Make so many items
    #[arg(long, value_name = "N")]
    take: Option<usize>,
    /// Draw which items these are, instead of the first ones
    #[arg(long, requires = "take")]
    draw: bool,
    /// What is drawn
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

const HELP: &str = "\
Documents are cut between words so that they have the tokens at most; those with fewer are left out. Words are what white space
parts, and the text of an item has one space between them. `wardrobe eval --task last-words` takes the items.

Example:
  wardrobe data repetition docs/ --model smollm2-135m --tokens 1000 --take 500 --seed 1 -o last-words.jsonl";

pub fn repetition(args: &RepetitionArgs) -> anyhow::Result<()> {
    let text = model_text(&args.model)?;
    let options = RepetitionOptions {
        source: args.input.source()?,
        text_column: args.text_column.clone(),
        counting: Counting { tokenizer: &text.tokenizer, model: &args.model },
        tokens: args.tokens,
        words: args.n,
        per_document: args.per_document,
        take: args.take,
        draw: args.draw,
        seed: args.seed,
        output: args.output.output(),
    };
    let report = wardrobe::data::prepare::repetition(&options).map_err(hinted)?;
    let written = format!("{} items with {} tokens of text", report.num_items, report.num_tokens);
    tell(&written, &args.output, &report.inputs, &report.dropped)
}
