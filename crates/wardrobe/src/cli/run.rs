//! `run`: one answer, streamed to standard output.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use wardrobe::{
    AdapterSource, Event, Finish, LoadOptions, Message, Request, SamplingParams, Summary, TokenId,
};

use super::failure::{UsageError, with_hint};
use super::log;
use super::open::{self, ModelArgs};
use super::output::{self, Style};

/// More than any context holds.
const MAX_STDIN_BYTES: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// A short name, a hub repository, a folder or a .gguf file
    #[arg(value_name = "MODEL")]
    model: String,
    /// The prompt; `-` reads it from standard input
    #[arg(value_name = "PROMPT", allow_hyphen_values = true)]
    prompt: String,
    /// Answer with this adapter (a PEFT folder)
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,
    /// Text of the system message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// The most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Same seed, same answer
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Continue the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Print the answer and nothing else
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    compute: ModelArgs,
}

const EXAMPLES: &str = "\
Examples:
  wardrobe run smollm2-135m 'What is gravity?'
  wardrobe run smollm2-135m - < question.txt
  wardrobe run ./model.gguf 'Once upon a time' --raw --temperature 0.8 --seed 1
  wardrobe run smollm2-135m 'Summarise: ...' --adapter ./my-adapter";

/// Answers one prompt.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    args.compute.check()?;
    args.adapter.as_deref().map(open::check_adapter).transpose()?;
    let text = read_prompt(&args.prompt)?;
    let model = open::open(&open::find(&args.model)?, &args.compute.model_options())?;
    let engine = open::engine(&model, &args.compute.engine_options())?;
    let adapter = match &args.adapter {
        None => None,
        Some(path) => {
            let source = AdapterSource::Path(path.clone());
            let loaded = engine.load_adapter("adapter", source, LoadOptions::default());
            Some(loaded.with_context(|| format!("cannot load the adapter {}", path.display()))?.name)
        }
    };
    let prompt = if args.raw {
        model.tokenizer().encode(&text, true)?
    } else {
        let system = args.system.as_ref().map(|text| Message::text("system", text));
        let messages: Vec<Message> = system.into_iter().chain([Message::text("user", text)]).collect();
        match model.chat_template() {
            Some(_) => model.chat_prompt(&messages)?,
            None => {
                let error = anyhow::anyhow!("{} has no chat template", args.model);
                return Err(with_hint(error, "--raw continues the prompt as it is"));
            }
        }
    };
    let prompt_tokens: Vec<TokenId> = prompt;
    let stream = engine.submit(Request {
        prompt_token_ids: prompt_tokens.into(),
        adapter,
        sampling: SamplingParams {
            temperature: args.temperature,
            seed: args.seed,
            ..SamplingParams::default()
        },
        max_tokens: Some(args.max_tokens),
        ..Request::default()
    })?;
    let mut finish = None;
    let mut summary = None;
    for event in stream {
        match event {
            Event::Update(update) => {
                output::write_stdout(update.text.as_bytes())?;
                finish = update.finish.or(finish);
            }
            Event::Summary(end) => summary = Some(end),
            Event::PromptLogprobs(_) => {}
        }
    }
    output::line("")?;
    if let Some(Finish::Error { message } | Finish::Cancelled { reason: message }) = &finish {
        anyhow::bail!("the answer was cut off: {message}");
    }
    if let (Some(summary), false) = (summary, args.quiet) {
        output::note(&Style::stderr().dim(&stats(&summary, finish.as_ref())));
    }
    Ok(())
}

fn read_prompt(given: &str) -> anyhow::Result<String> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_STDIN_BYTES + 1)
        .read_to_end(&mut bytes)
        .context("cannot read standard input")?;
    if bytes.len() as u64 > MAX_STDIN_BYTES {
        return Err(UsageError(format!("the prompt is over {MAX_STDIN_BYTES} bytes")).into());
    }
    let text = String::from_utf8(bytes).map_err(|_| UsageError("the prompt is not UTF-8".to_owned()))?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// One line on what an answer took.
pub fn stats(summary: &Summary, finish: Option<&Finish>) -> String {
    let (usage, timings) = (&summary.usage, &summary.timings);
    let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
    let first = timings.time_to_first_token.map_or_else(|| "-".to_owned(), output::duration);
    let cached = match usage.cached_tokens {
        0 => String::new(),
        cached => format!(" and {cached} cached"),
    };
    format!(
        "prompt {computed} tokens{cached} at {} · answer {} tokens at {} · first token after {first} · {}",
        output::rate(computed, timings.prefill),
        usage.completion_tokens,
        output::rate(usage.completion_tokens.saturating_sub(1), timings.decode),
        match finish {
            Some(Finish::Length) => "cut at the limit of tokens",
            Some(Finish::Stop(_)) => "complete",
            Some(Finish::Cancelled { .. }) => "stopped",
            _ => "ended",
        }
    )
}
