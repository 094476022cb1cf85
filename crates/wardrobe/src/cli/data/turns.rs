//! `data turns`: what the human asked.

use wardrobe::data::prepare::{Counting, Span, TurnsOptions};

use super::inputs::{InputArgs, OutputArgs, take, tell};
use super::{hinted, model_text};
use crate::cli::failure::UsageError;

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct TurnsArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Turns of the human in a conversation, such as 2-8
    #[arg(long, value_name = "MIN-MAX", allow_hyphen_values = true)]
    turns: Option<Span>,
    /// Of longer conversations take the first so many turns
    #[arg(long, value_name = "N")]
    first_turns: Option<usize>,
    /// Characters of every turn
    #[arg(long, value_name = "MIN-MAX", allow_hyphen_values = true)]
    chars: Option<Span>,
    /// Tokens of every turn; counted with the tokenizer of --model
    #[arg(long, value_name = "MIN-MAX", allow_hyphen_values = true, requires = "model")]
    tokens: Option<Span>,
    /// The model that --tokens counts for
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Take so many conversations: the first ones, or with --seed drawn ones
    #[arg(long, value_name = "N")]
    take: Option<usize>,
    /// Draw which ones are taken
    #[arg(long, value_name = "SEED", requires = "take")]
    seed: Option<u64>,
}

const HELP: &str = "\
Reads conversations (from and value, as ShareGPT), messages (role and content), data (texts in turn, as UltraChat) and trees
of prompts and replies (OpenAssistant), of which the best reply is followed. Writes {\"id\", \"turns\": [\"first question\", …]}
for each conversation; those that ask what an earlier one asks are left out, and so are those that begin with an answer.

Example:
  wardrobe data turns sharegpt.jsonl --turns 1-6 --chars 10-4000 --take 2000 --seed 1 -o questions.jsonl";

pub fn turns(args: &TurnsArgs) -> anyhow::Result<()> {
    if args.first_turns == Some(0) || args.take == Some(0) {
        return Err(UsageError("nothing is to be taken".to_owned()).into());
    }
    let text = args.model.as_deref().map(model_text).transpose()?;
    let tokens = match (&text, &args.model, args.tokens) {
        (Some(text), Some(model), Some(span)) => Some((span, Counting { tokenizer: &text.tokenizer, model })),
        (Some(_), _, None) => return Err(UsageError("--model is only for --tokens".to_owned()).into()),
        _ => None,
    };
    let options = TurnsOptions {
        source: args.input.source()?,
        turns: args.turns,
        first_turns: args.first_turns,
        chars: args.chars,
        tokens,
        take: take(args.take, args.seed),
        output: args.output.output(),
    };
    let report = wardrobe::data::prepare::turns(&options).map_err(hinted)?;
    let written = format!("{} conversations with {} questions", report.num_conversations, report.num_turns);
    tell(&written, &args.output, &report.inputs, &report.dropped)
}
