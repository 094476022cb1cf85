//! `bench`: how fast a model in this process or an endpoint is, beside what the machine can do.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use wardrobe::bench::{self, Load, LocalOptions, Parts, RemoteOptions, Report};

use super::dummy::{self, Chosen, DummyArgs};
use super::failure::UsageError;
use super::open::{self, ModelArgs};
use super::output::{self, Style};
use super::{log, values::KvDtype};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// A short name, a hub repository, a folder or a .gguf file, measured in this process
    #[arg(value_name = "MODEL", conflicts_with = "url")]
    target: Option<String>,
    /// Measure an OpenAI-compatible endpoint instead, such as http://127.0.0.1:8000
    #[arg(long, value_name = "URL", requires = "model")]
    url: Option<String>,
    /// Models (or adapters) of the endpoint, which requests take in turn
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "url")]
    model: Vec<String>,
    /// File with the endpoint's API key in its first line
    #[arg(long, value_name = "FILE", requires = "url")]
    api_key_file: Option<PathBuf>,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// Requests at once, one measurement each
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,8,32")]
    concurrency: Vec<usize>,
    /// Random adapters that requests take in turn, one measurement each; 0 is the base model
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0,8", conflicts_with = "url")]
    adapters: Vec<usize>,
    /// Rank of the random adapters
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with = "url")]
    rank: usize,
    /// Rounds of each step, and requests of each worker under load
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// What to measure: steps, serving, swaps, limits (of an endpoint serving, and limits if it is on this machine)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "steps,serving,swaps,limits")]
    parts: Vec<Part>,
    /// Element type of keys and values: f16, bf16 or f32 [default: f16, on a GPU bf16]
    #[arg(long, value_name = "TYPE", conflicts_with = "url")]
    kv_dtype: Option<KvDtype>,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the results as a web page with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    dummy: DummyArgs,
    #[command(flatten)]
    compute: ModelArgs,
}

const EXAMPLES: &str = "\
Examples:
  wardrobe bench smollm2-135m
  wardrobe bench smollm2-135m --html bench.html --json bench.json
  wardrobe bench smollm2-135m --parts steps,limits --repeat 10
  wardrobe bench --load-format dummy --config benches/configs/llama-3.1-8b.json --dummy-dtype q4_0
  wardrobe bench --url http://127.0.0.1:8000 --model smollm2-135m,my-adapter --concurrency 1,16";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Steps,
    Serving,
    Swaps,
    Limits,
}

impl std::str::FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "steps" => Ok(Part::Steps),
            "serving" => Ok(Part::Serving),
            "swaps" => Ok(Part::Swaps),
            "limits" => Ok(Part::Limits),
            _ => Err(format!("unknown part {text:?}: steps, serving, swaps or limits")),
        }
    }
}

/// Measures and prints.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    if args.repeat == 0 {
        return Err(UsageError("--repeat is at least 1".to_owned()).into());
    }
    if args.prompt_tokens == 0 {
        return Err(UsageError("--prompt-tokens is at least 1".to_owned()).into());
    }
    args.compute.check()?;
    let style = Style::stderr();
    let mut progress = |what: &str| output::note(&style.dim(what));
    let report = match (&args.url, args.dummy.choose(args.target.as_deref())?) {
        (Some(url), None) => bench::run_remote(&remote_options(args, url)?, &mut progress)?,
        (Some(_), Some(_)) => {
            let error = "--url measures an endpoint, which has its own weights: not with --load-format dummy";
            return Err(UsageError(error.to_owned()).into());
        }
        (None, Some(chosen)) => {
            let path = chosen.find()?.path;
            let context =
                || format!("cannot measure {}", args.target.clone().unwrap_or(path.display().to_string()));
            bench::run_local(&path, &local_options(args, &chosen), &mut progress)
                .map_err(dummy::too_large)
                .with_context(context)?
        }
        (None, None) => {
            let error = "give a MODEL, --url or --load-format dummy, to say what to measure";
            return Err(UsageError(error.to_owned()).into());
        }
    };
    output::write_stdout(report.to_text().as_bytes())?;
    write_files(args, &report)
}

fn load(args: &BenchArgs) -> Load {
    Load {
        prompt_tokens: args.prompt_tokens,
        max_tokens: args.max_tokens,
        concurrency: args.concurrency.clone(),
        requests_per_worker: args.repeat,
    }
}

fn local_options(args: &BenchArgs, chosen: &Chosen) -> LocalOptions {
    let has = |part| args.parts.contains(&part);
    let mut engine = args.compute.engine_options();
    engine.config.speculation =
        args.compute.speculation.map_or(wardrobe::Speculation::Off, |drafts| drafts.0);
    engine.kv_dtype = args.kv_dtype.map(|dtype| dtype.0);
    engine.config.max_num_sequences = wardrobe::EngineConfig::default().max_num_sequences;
    LocalOptions {
        model: args.compute.model_options(),
        dummy: chosen.dummy_options(),
        engine,
        load: load(args),
        num_adapters: args.adapters.clone(),
        rank: args.rank,
        rounds: args.repeat,
        parts: Parts {
            steps: has(Part::Steps),
            serving: has(Part::Serving),
            swaps: has(Part::Swaps),
            limits: has(Part::Limits),
        },
    }
}

fn remote_options(args: &BenchArgs, url: &str) -> anyhow::Result<RemoteOptions> {
    let key = |path: &PathBuf| -> anyhow::Result<String> {
        let text = open::read_text(path, 64 << 10)?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    };
    let mut options = RemoteOptions {
        url: url.to_owned(),
        models: args.model.clone(),
        api_key: args.api_key_file.as_ref().map(key).transpose()?,
        load: load(args),
        limits: None,
    };
    // What this machine can do says nothing about another.
    let wanted = args.parts.contains(&Part::Limits) && options.is_on_this_machine();
    options.limits = wanted.then(|| args.compute.model_options().cpu);
    Ok(options)
}

fn write_files(args: &BenchArgs, report: &Report) -> anyhow::Result<()> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        output::note(&format!("wrote {}", path.display()));
        anyhow::Ok(())
    };
    if let Some(path) = &args.json {
        write(path, format!("{}\n", serde_json::to_string_pretty(report)?))?;
    }
    if let Some(path) = &args.html {
        write(path, report.to_html())?;
    }
    Ok(())
}
