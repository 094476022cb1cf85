//! `deploy`: a folder that serves a fine-tuned adapter.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Map, Value};
use wardrobe::PeftAdapter;
use wardrobe::deploy::{
    AdapterToDeploy, BaseModel, DeployError, DeployOptions, Deployed, Deployment, JOB_FOLDER,
};
use wardrobe_batch::FinishedJob;
use wardrobe_hub::{CATALOGUE, CatalogueModel, CatalogueSource, ModelRef};

use super::dummy::LoadFormat;
use super::failure::{UsageError, with_hint};
use super::output::{self, Style};
use super::settings::Settings;
use super::values::{AdapterSpec, Device};
use super::{check, log, open, serve};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct DeployArgs {
    /// What to serve: an adapter's folder, as `wardrobe train` or PEFT writes it, or the id of a finished job of --job-folder;
    /// NAME=… says what clients are to call it
    #[arg(value_name = "JOB_OR_ADAPTER")]
    adapters: Vec<String>,
    /// Where the endpoint's folder goes
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The base model: a short name, a hub repository, a folder or a .gguf file [default: the one that the adapters name]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Where jobs are looked up: the --job-folder of a server
    #[arg(long, value_name = "DIR")]
    job_folder: Option<PathBuf>,
    /// Address to listen on; 0.0.0.0 for all [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Port to listen on [default: 8000]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Where to compute: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Device>,
    /// Let the endpoint keep files, run fine-tuning jobs and batches
    #[arg(long)]
    with_jobs: bool,
    /// A settings file of `serve` to begin with: its limits, adapters and keys
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Check the adapters' files alone, without opening the base model
    #[arg(long)]
    skip_model_check: bool,
    /// Replace the endpoint that is in DIR; what it has not written is kept, and so are its keys
    #[arg(long)]
    force: bool,
}

const EXAMPLES: &str = "\
DIR gets the adapters, checked against the base model, settings, an API key, a systemd unit, a Containerfile, a test of the
running endpoint and a page that tells how to run it. It is written as a whole or not at all.

Examples:
  wardrobe deploy biographies --model smollm2-135m --to endpoint
  wardrobe deploy bio=ft-0123… --job-folder jobs --to endpoint --port 9000 --device cpu
  wardrobe deploy --config endpoint/wardrobe.toml --to endpoint --force --host 0.0.0.0
  endpoint/bin/wardrobe serve --config endpoint/wardrobe.toml & endpoint/smoke-test.sh";

/// An adapter, and what is known of its base.
struct Found {
    adapter: AdapterToDeploy,
    /// Names of the base model, the likeliest first.
    bases: Vec<String>,
}

/// Writes an endpoint.
pub fn run(args: &DeployArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    let file = args.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
    let file = with_absolute_paths(file)?;
    let mut found = Vec::new();
    for spec in &file.adapter {
        found.push(folder(Some(spec.name.clone()), &spec.path)?);
    }
    for text in &args.adapters {
        found.push(find(text, args.job_folder.as_deref())?);
    }
    if found.is_empty() {
        let error = UsageError("no adapter is given".to_owned());
        return Err(with_hint(error, "wardrobe deploy ./my-adapter --to endpoint"));
    }
    let model = match args.model.clone().or_else(|| file.model.clone()) {
        Some(model) => model,
        None => common_base(&found)?,
    };
    let settings = settings(args, &file);
    let mut base_names = settings.served_model_name.clone();
    if base_names.is_empty() {
        base_names.push(open::name(&model)?);
    }
    check_settings(args, &settings, &base_names)?;
    let deployment = Deployment {
        base: base(&model)?,
        base_names,
        adapters: found.into_iter().map(|found| found.adapter).collect(),
        host: settings.host.clone().unwrap_or_default(),
        port: settings.port.unwrap_or_default(),
        device: settings.device.map(|device| device.to_string()),
        drain_delay_seconds: settings.drain_delay_seconds.unwrap_or_default(),
        drain_seconds: settings.drain_seconds.unwrap_or_default(),
        job_folder: job_folder(args, &settings),
        settings: further(&settings)?,
        program: std::env::current_exe().context("this program's own file")?,
        keys: settings.api_key_file.as_deref().map(keys).transpose()?,
    };
    deployment.check(&args.to, args.force).map_err(told)?;

    let opened = match args.skip_model_check {
        true => None,
        false => {
            let found = open::find(&model)?;
            Some(open::open(&found, &settings.model_options())?)
        }
    };
    let lora = settings.engine_options().lora;
    let options = DeployOptions { force: args.force, model: opened.as_ref(), lora };
    let deployed = deployment.write(&args.to, &options).map_err(told)?;
    show(&deployment, &deployed)
}

/// A deployment's refusal, with what helps.
fn told(error: DeployError) -> anyhow::Error {
    match &error {
        DeployError::NotEmpty { .. } => {
            with_hint(error, "--force replaces an endpoint, and keeps what it has not written")
        }
        DeployError::Setting(text) => UsageError(text.clone()).into(),
        DeployError::Refused { .. } => with_hint(error, "is --model the adapter's base model?"),
        _ => error.into(),
    }
}

/// The file's settings, whose paths will be read from another folder.
fn with_absolute_paths(mut file: Settings) -> anyhow::Result<Settings> {
    let adapters = file.adapter.iter_mut().map(|spec| &mut spec.path);
    for path in
        adapters.chain(&mut file.adapter_root).chain(&mut file.job_folder).chain(&mut file.api_key_file)
    {
        *path = std::path::absolute(&*path).with_context(|| format!("the path {}", path.display()))?;
    }
    let is_dummy = file.load_format.is_some_and(|format| format == LoadFormat::Dummy)
        || file.model_config.is_some()
        || file.dummy_dtype.is_some()
        || file.dummy_seed.is_some();
    if is_dummy {
        return Err(UsageError(
            "--config is for a model that is made up, which no adapter is for".to_owned(),
        )
        .into());
    }
    Ok(file)
}

/// An adapter by what a person wrote for it.
fn find(text: &str, job_folder: Option<&Path>) -> anyhow::Result<Found> {
    if Path::new(text).exists() {
        return folder(None, Path::new(text));
    }
    let (name, wanted) = match text.parse::<AdapterSpec>() {
        Ok(spec) => (Some(spec.name), spec.path),
        Err(_) => (None, PathBuf::from(text)),
    };
    if wanted.exists() {
        return folder(name, &wanted);
    }
    let Some(root) = job_folder else {
        let error = anyhow::anyhow!("there is no adapter at {}", wanted.display());
        return Err(with_hint(
            error,
            "if it is a job's id, --job-folder says where the server keeps its jobs",
        ));
    };
    let id = wanted.display().to_string();
    let found = FinishedJob::find(root, &id)
        .with_context(|| format!("there is no adapter at {id}, and the job folder has none",))?;
    let mut adapter = folder(Some(name.unwrap_or(found.job.name)), &found.adapter_dir)?;
    adapter.bases.push(found.job.spec.model);
    Ok(adapter)
}

/// An adapter's folder, or the folder of the run that has written one.
fn folder(name: Option<String>, path: &Path) -> anyhow::Result<Found> {
    let path = match path
        .join("run.json")
        .is_file()
        .then(|| path.to_str()?.trim_end_matches('/').strip_suffix(".run"))
    {
        Some(Some(output)) => {
            let output = PathBuf::from(output);
            if !output.join("adapter_config.json").is_file() {
                let error = anyhow::anyhow!("the run {} has not written its adapter yet", path.display());
                return Err(with_hint(error, "the same `wardrobe train` command goes on from it"));
            }
            output
        }
        _ => path.to_owned(),
    };
    open::check_adapter(&path)?;
    let real = path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?;
    let name = name.or_else(|| real.file_name().map(|name| name.to_string_lossy().into_owned()));
    let adapter =
        PeftAdapter::open(&real).with_context(|| format!("the adapter {} cannot be used", path.display()))?;
    let bases = adapter.config().base_model_name_or_path.clone().into_iter().collect();
    Ok(Found { adapter: AdapterToDeploy { name: name.unwrap_or_default(), path: real }, bases })
}

/// The model that all adapters name as theirs, as far as it can be found by that.
fn common_base(found: &[Found]) -> anyhow::Result<String> {
    let mut common: Option<(String, &str)> = None;
    for Found { adapter, bases } in found {
        let Some(base) = bases.iter().find_map(|name| known_base(name)) else {
            let named = match bases.first().filter(|name| !name.trim().is_empty()) {
                Some(name) => {
                    format!("names {:?}, which is nothing that can be pulled,", output::one_line(name, 100))
                }
                None => "names no base model".to_owned(),
            };
            let error = UsageError(format!("the adapter {} {named} and --model is not given", adapter.name));
            return Err(with_hint(error, "--model says which model it was trained on"));
        };
        match &common {
            Some((other, of)) if *other != base => {
                let name = &adapter.name;
                let text =
                    format!("{of} is for {other}, and {name} for {base}: an endpoint has one base model");
                return Err(with_hint(UsageError(text), "if both are the same model, name it with --model"));
            }
            Some(_) => {}
            None => common = Some((base, &adapter.name)),
        }
    }
    Ok(common.map(|(base, _)| base).unwrap_or_default())
}

/// A model by what a trainer called it: a name or file of the catalogue, a repository on the hub, or a path.
fn known_base(named: &str) -> Option<String> {
    let named = named.trim();
    if Path::new(named).is_absolute() {
        return Path::new(named).exists().then(|| named.to_owned());
    }
    let stem = |file: &'static str| Path::new(file).file_stem().and_then(|stem| stem.to_str());
    let is_of = |model: &&CatalogueModel| {
        let of_source = |source: &CatalogueSource| match source {
            CatalogueSource::Package(package) => stem(package.file_name()) == Some(named),
            CatalogueSource::Hub(hub) => hub.repo == named,
        };
        model.name == named || model.sources.iter().any(of_source)
    };
    if let Some(model) = CATALOGUE.iter().find(is_of) {
        return Some(model.name.to_owned());
    }
    ModelRef::parse(&format!("hf://{named}")).is_ok().then(|| named.to_owned())
}

fn base(model: &str) -> anyhow::Result<BaseModel> {
    Ok(match ModelRef::parse(model)? {
        ModelRef::Local(path) => {
            let real = path.canonicalize();
            BaseModel::Local(real.with_context(|| format!("there is no model at {}", path.display()))?)
        }
        ModelRef::Catalogue(row) => BaseModel::Pulled {
            name: model.to_owned(),
            needs_pip: row.sources.iter().any(|source| matches!(source, CatalogueSource::Package(_))),
        },
        _ => BaseModel::Pulled { name: model.to_owned(), needs_pip: false },
    })
}

/// The endpoint's settings: flags over the file, and those limits that an operator looks for first.
fn settings(args: &DeployArgs, file: &Settings) -> Settings {
    let flags =
        Settings { host: args.host.clone(), port: args.port, device: args.device, ..Settings::default() };
    let all = Settings::defaults();
    let limits = Settings {
        host: all.host,
        port: all.port,
        drain_seconds: all.drain_seconds,
        drain_delay_seconds: all.drain_delay_seconds,
        max_body: all.max_body,
        queue: all.queue,
        max_num_seqs: all.max_num_seqs,
        max_slots: all.max_slots,
        max_adapters_memory: all.max_adapters_memory,
        ..Settings::default()
    };
    flags.or(file.clone()).or(limits)
}

/// Refuses what `serve` would refuse.
fn check_settings(args: &DeployArgs, settings: &Settings, base_names: &[String]) -> anyhow::Result<()> {
    let mut checked = settings.clone();
    if args.skip_model_check {
        // Perhaps another machine will serve.
        checked.kv_memory = None;
    }
    // Adapters are looked at by themselves.
    checked.adapter = Vec::new();
    checked.pin = Vec::new();
    check::settings(&checked, base_names)
}

fn job_folder(args: &DeployArgs, settings: &Settings) -> Option<PathBuf> {
    let within = |folder: &Path| Some(folder.strip_prefix(args.to.canonicalize().ok()?).ok()?.to_owned());
    match &settings.job_folder {
        Some(folder) => Some(within(folder).unwrap_or_else(|| folder.clone())),
        None => args.with_jobs.then(|| PathBuf::from(JOB_FOLDER)),
    }
}

/// The settings that a deployment has no field for, as they stand in a file.
fn further(settings: &Settings) -> anyhow::Result<Map<String, Value>> {
    let others = Settings {
        model: None,
        served_model_name: Vec::new(),
        host: None,
        port: None,
        api_key_file: None,
        device: None,
        drain_delay_seconds: None,
        drain_seconds: None,
        adapter: Vec::new(),
        job_folder: None,
        ..settings.clone()
    };
    let Value::Object(mut keys) = serde_json::to_value(&others)? else { return Ok(Map::new()) };
    keys.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|values| !values.is_empty()));
    Ok(keys)
}

/// The text of a file of keys.
fn keys(path: &Path) -> anyhow::Result<String> {
    Ok(serve::read_keys(path)?.into_iter().map(|key| format!("{key}\n")).collect())
}

fn show(deployment: &Deployment, deployed: &Deployed) -> anyhow::Result<()> {
    let style = Style::stdout();
    for note in &deployed.notes {
        output::note(&format!("{} {note}", Style::stderr().note("note:")));
    }
    for name in &deployed.carried {
        output::note(&format!("{} kept {}", Style::stderr().note("note:"), name.display()));
    }
    let dir = &deployed.dir;
    let at = |name: &str| output::shell_word(&dir.join(name).display().to_string());
    let mut rows = vec![vec!["endpoint".to_owned(), style.name(&dir.display().to_string())]];
    rows.push(vec!["base model".to_owned(), deployment.base_names.join(", ")]);
    for adapter in &deployed.adapters {
        let mut about = vec![format!("rank {}", adapter.rank), output::size(adapter.size_bytes)];
        if adapter.has_schema {
            about.push("answers held to its schema".to_owned());
        }
        about.push(match (adapter.is_verified, adapter.has_parity_record) {
            (true, true) => "behaves as in training".to_owned(),
            (true, false) => "fits the base model".to_owned(),
            (false, _) => "not held against the base model".to_owned(),
        });
        rows.push(vec!["adapter".to_owned(), format!("{} ({})", adapter.name, about.join(", "))]);
    }
    rows.push(vec!["API key".to_owned(), format!("in {}", deployed.key_file.display())]);
    rows.push(vec![
        "run it".to_owned(),
        format!("{} serve --config {}", at("bin/wardrobe"), at("wardrobe.toml")),
    ]);
    rows.push(vec!["test it".to_owned(), at("smoke-test.sh")]);
    rows.push(vec![
        "more".to_owned(),
        format!("{}: systemd ({}), containers", at("README.md"), deployed.unit),
    ]);
    output::write_stdout(output::table(&rows).as_bytes())
}
