//! `data select`: documents by length and quality.

use wardrobe::data::prepare::{Condition, Counting, SelectOptions, Span};

use super::inputs::{InputArgs, OutputArgs, take, tell};
use super::{hinted, model_text};
use crate::cli::failure::UsageError;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct SelectArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// The column of the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Tokens of a text, such as 500-2000, 500- or -2000; counted with the tokenizer of --model
    #[arg(long, value_name = "MIN-MAX", allow_hyphen_values = true, requires = "model")]
    tokens: Option<Span>,
    /// The model that --tokens counts for
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Characters of a text
    #[arg(long, value_name = "MIN-MAX", allow_hyphen_values = true)]
    chars: Option<Span>,
    /// What must be true of a record; may be given several times
    #[arg(long = "where", value_name = "CONDITION")]
    conditions: Vec<Condition>,
    /// Leave out documents whose text was there before
    #[arg(long)]
    distinct: bool,
    /// Take so many: the first ones, or with --seed drawn ones
    #[arg(long, value_name = "N")]
    take: Option<usize>,
    /// Draw which ones are taken
    #[arg(long, value_name = "SEED", requires = "take")]
    seed: Option<u64>,
}

const HELP: &str = "\
A condition compares a field with a number, a text in quotes, true, false or null: = != < <= > >= contains; or is `FIELD
exists`, `FIELD missing` or a field alone, which must be true. They are joined by and, or, not and parentheses. A field is a
path, such as meta.scores[0].value or \"full name\". A record without the field does not qualify. Lines of JSONL are copied
byte by byte; other formats become JSONL. Of a data set on the hub only the files that are read are fetched.

Examples:
  wardrobe data select docs/ --tokens 500-4000 --model smollm2-135m --distinct -o docs.jsonl
  wardrobe data select hub:OWNER/NAME/data/train-*@main --where 'quality.score >= 0.5 and lang = \"en\"' --take 1000 --seed 1 \\
    -o selected.jsonl";

pub fn select(args: &SelectArgs) -> anyhow::Result<()> {
    let text = args.model.as_deref().map(model_text).transpose()?;
    let counting = match (&text, &args.model, args.tokens) {
        (Some(text), Some(model), Some(span)) => Some((span, Counting { tokenizer: &text.tokenizer, model })),
        (Some(_), _, None) => return Err(UsageError("--model is only for --tokens".to_owned()).into()),
        _ => None,
    };
    let options = SelectOptions {
        source: args.input.source()?,
        text_column: args.text_column.clone(),
        tokens: counting,
        chars: args.chars,
        conditions: args.conditions.clone(),
        distinct: args.distinct,
        take: take(args.take, args.seed),
        output: args.output.output(),
    };
    let report = wardrobe::data::prepare::select(&options).map_err(hinted)?;
    let written = match args.take {
        Some(take) if report.num_written < take as u64 => {
            format!("{} records, all that qualify", report.num_written)
        }
        Some(_) if args.seed.is_some() => {
            format!("{} records, drawn of {} that qualify", report.num_written, report.num_qualified)
        }
        _ => format!("{} records", report.num_written),
    };
    tell(&written, &args.output, &report.inputs, &report.dropped)
}
