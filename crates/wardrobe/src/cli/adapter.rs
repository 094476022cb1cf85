//! `adapter inspect`: what an adapter folder holds, and whether it fits a model.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;
use wardrobe::{AdapterSource, LoraOptions};
use wardrobe_engine::AdapterLoader as _;
use wardrobe_engine::model::PeftLoader;
use wardrobe_formats::PeftAdapter;
use wardrobe_formats::peft::{AdapterRope, LoraModule, ModuleSelector};

use super::log;
use super::open::{self, ComputeArgs};
use super::output::{self, Style};

#[derive(Debug, clap::Subcommand)]
pub enum AdapterCommand {
    /// Show what an adapter folder holds, and whether it fits a model
    Inspect(InspectArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// A folder as PEFT's save_pretrained writes it
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Check that it fits this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

const EXAMPLES: &str = "\
The size of a change is the Frobenius norm of scale * B * A: 0 means that the adapter leaves these layers as they are.
Exit code 1 if the adapter cannot be read or does not fit.

Example:
  wardrobe adapter inspect ./my-adapter --model smollm2-135m";

/// Runs a command on adapters.
pub fn run(command: &AdapterCommand) -> anyhow::Result<()> {
    let AdapterCommand::Inspect(args) = command;
    log::init_quiet()?;
    open::check_adapter(&args.path)?;
    let adapter = PeftAdapter::open(&args.path)
        .with_context(|| format!("the adapter {} cannot be used", args.path.display()))?;
    let report = Report::new(&adapter)?;
    let fit = args.model.as_deref().map(|model| fits(args, model)).transpose()?;
    if args.json {
        output::line(&serde_json::to_string_pretty(&report.json(&adapter, args, fit.as_ref()))?)?;
    } else {
        output::write_stdout(report.text(&adapter, args, fit.as_ref(), Style::stdout()).as_bytes())?;
    }
    match fit.and_then(Result::err) {
        Some(reason) => anyhow::bail!("{} does not fit: {reason}", args.path.display()),
        None => Ok(()),
    }
}

/// `Err` with the reason if the adapter does not fit.
fn fits(args: &InspectArgs, model: &str) -> anyhow::Result<Result<String, String>> {
    let found = open::find(model)?;
    let model = open::open(&found, &args.compute.model_options())?;
    let loader = PeftLoader::new(model.device().clone(), model.decoder().clone(), LoraOptions::default())
        .with_compiler(model.compiler().clone());
    Ok(match loader.load(&AdapterSource::Path(args.path.clone())) {
        Ok(prepared) => Ok(format!(
            "{} of {} modules of {}",
            prepared.num_modules(),
            model.decoder().modules().len(),
            found.name
        )),
        Err(error) => Err(error.to_string()),
    })
}

/// The same kind of module over all layers.
struct Kind {
    name: String,
    modules: usize,
    /// Frobenius norms of `scale * B * A`, sorted.
    norms: Vec<f64>,
    shape: String,
}

struct Report {
    kinds: Vec<Kind>,
    dtypes: Vec<String>,
    num_tensors: usize,
    notes: Vec<String>,
}

impl Report {
    fn new(adapter: &PeftAdapter) -> anyhow::Result<Self> {
        let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
        let mut dtypes: BTreeMap<&'static str, usize> = BTreeMap::new();
        for module in adapter.modules() {
            for tensor in [&module.a, &module.b].into_iter().chain(&module.magnitude) {
                *dtypes.entry(tensor.storage().name()).or_default() += 1;
            }
            let name = module.module_path.rsplit('.').next().unwrap_or_default().to_owned();
            let kind = kinds.entry(name.clone()).or_insert_with(|| Kind {
                name,
                modules: 0,
                norms: Vec::new(),
                shape: format!("{} -> {}", dim(module.a.shape(), 1), dim(module.b.shape(), 0)),
            });
            kind.modules += 1;
            kind.norms.push(change_norm(module)?);
        }
        let others = adapter.embeddings().iter().flat_map(|e| [&e.a, &e.b]);
        for tensor in others.chain(adapter.saved().iter().map(|saved| &saved.tensor)) {
            *dtypes.entry(tensor.storage().name()).or_default() += 1;
        }
        let mut kinds: Vec<Kind> = kinds.into_values().collect();
        kinds.iter_mut().for_each(|kind| kind.norms.sort_by(f64::total_cmp));
        let num_tensors = dtypes.values().sum();
        let dtypes = dtypes.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let notes = notes(adapter, &kinds);
        Ok(Self { kinds, dtypes, num_tensors, notes })
    }

    fn text(
        &self,
        adapter: &PeftAdapter,
        args: &InspectArgs,
        fit: Option<&Result<String, String>>,
        style: Style,
    ) -> String {
        let config = adapter.config();
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        let mut rows = vec![
            row("adapter", args.path.display().to_string()),
            row(
                "base model",
                config.base_model_name_or_path.clone().unwrap_or_else(|| "not named".to_owned()),
            ),
            row("kind", kind_name(adapter)),
            row(
                "rank",
                format!(
                    "{} (alpha {}, scale {})",
                    config.r,
                    config.alpha,
                    config.scale(config.alpha, config.r)
                ),
            ),
            row("targets", targets(&config.target_modules)),
            row("tensors", format!("{} ({})", self.num_tensors, self.dtypes.join(", "))),
            row("size", output::size(adapter.total_bytes())),
            row("digest", format!("{}", adapter.digest())),
        ];
        if !config.rank_pattern.is_empty() {
            rows.push(row(
                "rank pattern",
                format!("{} patterns, largest rank {}", config.rank_pattern.len(), adapter.max_rank()),
            ));
        }
        if let Some(rope) = adapter.rope() {
            rows.push(row("positions", rope.to_string()));
        }
        match fit {
            Some(Ok(what)) => rows.push(row("fits", style.good(what))),
            Some(Err(_)) => rows.push(row("fits", style.bad("no"))),
            None => {}
        }
        let mut text = output::table(&rows);
        if !self.kinds.is_empty() {
            let titles = ["module", "layers", "shape", "smallest", "median", "largest change"];
            let mut table = vec![titles.map(str::to_owned).to_vec()];
            table.extend(self.kinds.iter().map(|kind| {
                let (min, median, max) = kind.spread();
                let number = |value: f64| format!("{value:.3}");
                vec![
                    kind.name.clone(),
                    kind.modules.to_string(),
                    kind.shape.clone(),
                    number(min),
                    number(median),
                    number(max),
                ]
            }));
            text.push('\n');
            text.push_str(&output::table(&table));
        }
        for note in &self.notes {
            text.push_str(&format!("{} {note}\n", style.note("note:")));
        }
        text
    }

    fn json(
        &self,
        adapter: &PeftAdapter,
        args: &InspectArgs,
        fit: Option<&Result<String, String>>,
    ) -> serde_json::Value {
        let config = adapter.config();
        let modules: Vec<_> = self
            .kinds
            .iter()
            .map(|kind| {
                let (min, median, max) = kind.spread();
                json!({"name": kind.name, "layers": kind.modules, "shape": kind.shape,
                       "change_norm": {"min": min, "median": median, "max": max}})
            })
            .collect();
        json!({
            "path": args.path.display().to_string(),
            "base_model": config.base_model_name_or_path,
            "kind": kind_name(adapter),
            "rank": config.r,
            "max_rank": adapter.max_rank(),
            "alpha": config.alpha,
            "scale": config.scale(config.alpha, config.r),
            "targets": targets(&config.target_modules),
            "rope": adapter.rope().map(AdapterRope::to_json),
            "num_modules": adapter.modules().len(),
            "num_tensors": self.num_tensors,
            "dtypes": self.dtypes,
            "size_bytes": adapter.total_bytes(),
            "digest": adapter.digest().to_string(),
            "modules": modules,
            "notes": self.notes,
            "fits": fit.map(Result::is_ok),
            "misfit": fit.and_then(|fit| fit.as_ref().err()),
        })
    }
}

impl Kind {
    fn spread(&self) -> (f64, f64, f64) {
        let at = |idx: usize| self.norms.get(idx).copied().unwrap_or(0.0);
        (at(0), at(self.norms.len() / 2), at(self.norms.len().saturating_sub(1)))
    }
}

fn dim(shape: &[usize], idx: usize) -> usize {
    shape.get(idx).copied().unwrap_or(0)
}

fn kind_name(adapter: &PeftAdapter) -> String {
    let config = adapter.config();
    let mut name = "LoRA".to_owned();
    if config.use_rslora {
        name.push_str(", rank-stabilised");
    }
    if config.use_dora {
        name.push_str(", DoRA");
    }
    name
}

fn targets(selector: &ModuleSelector) -> String {
    match selector {
        ModuleSelector::List(names) => names.join(", "),
        ModuleSelector::Regex(pattern) => format!("modules that match {pattern}"),
        ModuleSelector::AllLinear => "all linear layers".to_owned(),
    }
}

fn notes(adapter: &PeftAdapter, kinds: &[Kind]) -> Vec<String> {
    let mut notes = Vec::new();
    if adapter.is_noop() {
        notes.push(
            "it changes nothing: every pair has a factor of zeros; loading it needs --allow-noop".to_owned(),
        );
    } else {
        for kind in kinds.iter().filter(|kind| kind.norms.contains(&0.0)) {
            let zeros = kind.norms.iter().filter(|norm| **norm == 0.0).count();
            notes.push(format!(
                "{zeros} of {} {} are left as they are (a factor is zero)",
                kind.modules, kind.name
            ));
        }
    }
    if !adapter.embeddings().is_empty() {
        notes.push("it adapts an embedding, which is not served".to_owned());
    }
    for saved in adapter.saved() {
        notes.push(format!(
            "it replaces {}.{} whole, which is not served",
            saved.module_path, saved.parameter
        ));
    }
    let limit = LoraOptions::default().max_rank;
    if adapter.max_rank() > limit {
        notes.push(format!("rank {} is over the limit of {limit}; --max-rank raises it", adapter.max_rank()));
    }
    if adapter.config().base_model_name_or_path.is_none() {
        notes.push("it does not name its base model".to_owned());
    }
    notes
}

/// `‖scale B A‖` (Frobenius), without the product: `‖BA‖² = Σ (BᵀB) ∘ (A Aᵀ)`, both of rank by rank.
fn change_norm(module: &LoraModule) -> anyhow::Result<f64> {
    let (rank, a, b) = (module.rank.max(1), module.a.to_f32()?, module.b.to_f32()?);
    let mut of_b = vec![0f64; rank * rank];
    for row in b.chunks_exact(rank) {
        for (sums, x) in of_b.chunks_exact_mut(rank).zip(row) {
            sums.iter_mut().zip(row).for_each(|(sum, y)| *sum += f64::from(*x) * f64::from(*y));
        }
    }
    let rows: Vec<&[f32]> = a.chunks_exact((a.len() / rank).max(1)).collect();
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let of_a = rows.iter().flat_map(|x| rows.iter().map(|y| dot(x, y)));
    let squared: f64 = of_a.zip(&of_b).map(|(a, b)| a * b).sum();
    Ok(module.scale.abs() * squared.max(0.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardrobe_formats::AdapterTensor;

    #[test]
    fn the_norm_is_that_of_the_product() {
        let (rank, input, out) = (2, 3, 4);
        let a: Vec<f32> = (0..rank * input).map(|i| (i as f32 - 2.5) * 0.5).collect();
        let b: Vec<f32> = (0..out * rank).map(|i| (i as f32 * 0.7).sin()).collect();
        let module = LoraModule {
            module_path: "model.layers.0.self_attn.q_proj".to_owned(),
            a: AdapterTensor::from_f32("a", vec![rank, input], &a).unwrap(),
            b: AdapterTensor::from_f32("b", vec![out, rank], &b).unwrap(),
            magnitude: None,
            rank,
            scale: 2.0,
        };
        let mut expected = 0f64;
        for o in 0..out {
            for i in 0..input {
                let entry: f64 =
                    (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * input + i])).sum();
                expected += (2.0 * entry).powi(2);
            }
        }
        assert!((change_norm(&module).unwrap() - expected.sqrt()).abs() < 1e-9);
    }
}
