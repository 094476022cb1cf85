//! `merge`: an adapter merged into its base model's weights.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;
use wardrobe::{Error, MergeDtype, MergeFormat, MergeOptions, MergeReport, MergedWeight, PeftAdapter};

use super::failure::with_hint;
use super::log;
use super::open;
use super::output::{self, Style};
use super::progress::MergeProgress;
use super::values::ByteSize;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct MergeArgs {
    /// The base model: a name, a folder or a GGUF file
    #[arg(value_name = "MODEL")]
    model: String,
    /// The adapter: a folder as PEFT's save_pretrained writes it
    #[arg(long, value_name = "PATH")]
    adapter: PathBuf,
    /// What to write: a file whose name ends in .gguf, or a folder of safetensors
    #[arg(long, short, value_name = "PATH")]
    output: PathBuf,
    /// safetensors or gguf [default: as the output's name says]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// How matrices are stored: f32, bf16, f16, q8_0, q4_0, q4_1, or as-base
    #[arg(long, value_name = "TYPE", default_value = "as-base")]
    dtype: Dtype,
    /// Largest file of a safetensors folder
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    max_shard_size: ByteSize,
    /// Replace an output of the same kind that is there
    #[arg(long)]
    force: bool,
    /// Accept an adapter that changes nothing
    #[arg(long)]
    allow_noop: bool,
    /// Print JSON, with every tensor
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
The sums are W + scale * B * A, made in f64 and rounded once. A quantised type rounds coarsely: the report shows what the
adapter changed in each kind of layer, beside what rounding lost. A base in GGUF becomes a folder in bf16 unless --dtype
says otherwise.

Examples:
  wardrobe merge smollm2-135m --adapter ./my-adapter --output my-model.gguf --dtype q8_0
  wardrobe merge ./Llama-3.2-1B --adapter ./my-adapter --output ./my-model";

/// [`MergeFormat`] as an option has it.
#[derive(Debug, Clone, Copy)]
struct Format(MergeFormat);

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "safetensors" => Ok(Format(MergeFormat::Safetensors)),
            "gguf" => Ok(Format(MergeFormat::Gguf)),
            _ => Err(format!("unknown format {text:?}: safetensors or gguf")),
        }
    }
}

/// [`MergeDtype`] as an option has it.
#[derive(Debug, Clone, Copy)]
struct Dtype(MergeDtype);

impl FromStr for Dtype {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Dtype(match text {
            "as-base" => MergeDtype::AsBase,
            "f32" => MergeDtype::F32,
            "bf16" => MergeDtype::Bf16,
            "f16" => MergeDtype::F16,
            "q8_0" => MergeDtype::Q8_0,
            "q4_0" => MergeDtype::Q4_0,
            "q4_1" => MergeDtype::Q4_1,
            _ => return Err(format!("unknown type {text:?}: f32, bf16, f16, q8_0, q4_0, q4_1 or as-base")),
        }))
    }
}

/// Merges.
pub fn run(args: &MergeArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    open::check_adapter(&args.adapter)?;
    let adapter = PeftAdapter::open(&args.adapter)
        .with_context(|| format!("the adapter {} cannot be used", args.adapter.display()))?;
    let base = open::find(&args.model)?;
    let options = MergeOptions {
        format: args.format.map(|format| format.0),
        dtype: args.dtype.0,
        max_shard_bytes: args.max_shard_size.0,
        replace: args.force,
        allow_noop: args.allow_noop,
    };
    let started = Instant::now();
    let progress = MergeProgress::new(&base.name);
    let tell = |written: u64, total: u64| progress.at(written, total);
    let merged = wardrobe::merge(&base.path, &adapter, &args.output, &options, &tell);
    drop(progress);
    let report = merged.map_err(|error| match error {
        Error::Setting(_) if !args.force && args.output.symlink_metadata().is_ok() => {
            with_hint(error, "--force replaces it")
        }
        error => error.into(),
    })?;
    if args.json {
        return output::line(&serde_json::to_string_pretty(&json_report(args, &report))?);
    }
    let style = Style::stdout();
    let text = format!(
        "{}: {} tensors, {}, {} of them merged, in {}\n{}",
        style.name(&args.output.display().to_string()),
        report.num_tensors,
        output::size(report.size_bytes),
        report.merged.len(),
        output::duration(started.elapsed()),
        table(&report.merged)
    );
    output::write_stdout(text.as_bytes())?;
    for note in &report.notes {
        output::note(&format!("{} {note}", Style::stderr().note("note:")));
    }
    Ok(())
}

/// By kind of layer and type: what the adapter changed, and what rounding lost, at most and where.
fn table(weights: &[MergedWeight]) -> String {
    let mut kinds: BTreeMap<(&str, &str), Vec<&MergedWeight>> = BTreeMap::new();
    for weight in weights {
        let path = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
        let kind = path.rsplit('.').next().unwrap_or(path);
        kinds.entry((kind, weight.storage.name())).or_default().push(weight);
    }
    let heads = ["layer", "type", "tensors", "changed by", "rounding loses", "at most, in"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for ((kind, storage), weights) in kinds {
        let median = |of: fn(&MergedWeight) -> f64| {
            let mut values: Vec<f64> = weights.iter().map(|weight| of(weight)).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let worst = weights.iter().max_by(|a, b| a.rounding.total_cmp(&b.rounding));
        rows.push(vec![
            kind.to_owned(),
            storage.to_owned(),
            weights.len().to_string(),
            percent(median(|weight| weight.change)),
            percent(median(|weight| weight.rounding)),
            worst.map_or_else(String::new, |w| format!("{} {}", percent(w.rounding), w.name)),
        ]);
    }
    output::table(&rows)
}

fn percent(share: f64) -> String {
    format!("{:.3} %", 100.0 * share)
}

fn json_report(args: &MergeArgs, report: &MergeReport) -> serde_json::Value {
    let tensors: Vec<_> = report
        .merged
        .iter()
        .map(|weight| {
            json!({
                "name": weight.name,
                "dtype": weight.storage.name(),
                "relative_change": weight.change,
                "relative_rounding_error": weight.rounding,
            })
        })
        .collect();
    json!({
        "output": args.output.display().to_string(),
        "format": match report.format {
            MergeFormat::Safetensors => "safetensors",
            MergeFormat::Gguf => "gguf",
        },
        "num_tensors": report.num_tensors,
        "size_bytes": report.size_bytes,
        "merged": tensors,
        "notes": report.notes,
    })
}
