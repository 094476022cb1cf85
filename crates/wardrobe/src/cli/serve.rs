//! `serve`: a model and adapters behind an OpenAI-compatible endpoint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use wardrobe::{AdapterInfo, AdapterSource, Engine, EngineOptions, LoadOptions, Model, ModelFineTuner};
use wardrobe_batch::{JobRunner, RunnerConfig};
use wardrobe_server::{ServedModel, Server};

use super::failure::{UsageError, with_hint};
use super::output::{self, Style};
use super::settings::Settings;
use super::{check, log, open, signals};

/// Keys are lines; a file of more than this is another file.
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;
/// How long a job may take for its last step and a checkpoint.
const JOB_STOP_LIMIT: Duration = Duration::from_secs(60);
/// Requests of batches at once: each has a thread.
const MAX_BATCH_REQUESTS: usize = 256;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    #[command(flatten)]
    settings: Settings,
    /// TOML file with any of these settings; one whose name ends in .json is taken for --model-config
    #[arg(long, value_name = "FILE.toml", env = "WARDROBE_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
    /// Print the settings that hold and where each comes from, and end
    #[arg(long)]
    show_settings: bool,
}

const EXAMPLES: &str = "\
Every option is also an environment variable (--kv-memory is WARDROBE_KV_MEMORY) and a key in the file (kv_memory).
An option wins over the variable, that over the file, that over the default.

Examples:
  wardrobe serve smollm2-135m
  wardrobe serve ./model.gguf --adapter sql=./adapters/sql --adapter-root ./adapters --host 0.0.0.0 --api-key-file keys
  wardrobe serve --config wardrobe.toml
  wardrobe serve --load-format dummy --model-config benches/configs/smollm2-135m.json

wardrobe.toml:
  model = \"smollm2-135m\"
  port = 8080
  kv_memory = \"1GiB\"
  [adapters]
  sql = \"adapters/sql\"";

/// Serves until a signal.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let mut flags = args.settings;
    let config = settings_file(args.config, &mut flags)?;
    let file = config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
    let settings = flags.clone().resolve(file.clone());
    if args.show_settings {
        return show(&settings, &flags, &file);
    }
    let _export = log::init(settings.log.as_deref().unwrap_or("info"), settings.otlp_endpoint.as_deref())?;
    let Some(chosen) = settings.choose()? else {
        return Err(with_hint(UsageError("no model is given".to_owned()), "wardrobe serve smollm2-135m"));
    };
    // What can be wrong without a model is found before one is pulled and read.
    let api_keys = settings.api_key_file.as_deref().map(read_keys).transpose()?.unwrap_or_default();
    let (host, port) = (settings.host.as_deref().unwrap_or_default(), settings.port.unwrap_or_default());
    let mut names = settings.served_model_name.clone();
    if names.is_empty() {
        names.push(chosen.name()?);
    }
    check::settings(&settings, &names)?;
    drop(bind(host, port)?);

    let found = chosen.find()?;
    let style = Style::stdout();
    let started = Instant::now();
    output::line(&format!("opening {}", style.dim(&found.path.display().to_string())))?;
    let model = chosen.open(&found, &settings.model_options())?;
    if chosen.dummy_options().is_some() {
        output::note(&format!("{} the weights are made up: answers make no sense", style.note("note:")));
    }
    let options = model.settled(&settings.engine_options());
    let engine = open::engine(&model, &options)?;
    note_limits(&settings, &options, &model, &engine, style);
    for spec in &settings.adapter {
        // As the adapter root resolves paths, so that both tell one adapter's place alike.
        let path = spec.path.canonicalize().unwrap_or_else(|_| spec.path.clone());
        let options =
            LoadOptions { pinned: Some(settings.pin.contains(&spec.name)), ..LoadOptions::default() };
        engine
            .load_adapter(&spec.name, AdapterSource::Path(path), options)
            .with_context(|| format!("cannot load the adapter {spec}"))?;
    }
    let secured = !api_keys.is_empty();
    let mut served = served_model(&model, &engine, &names, &found.path)?;
    let jobs = settings.job_folder.as_deref().map(|folder| jobs(folder, &settings, &model, &engine, &names));
    let jobs = jobs.transpose()?;
    served.fine_tuning = jobs.clone();
    let server = Server::new(served, settings.server_config(api_keys)).map_err(check::server_error)?;
    let listener = bind(host, port)?;
    let address = listener.local_addr()?;
    let banner =
        Banner { model: &model, engine: &engine, options: &options, names: &names, address, secured };
    output::write_stdout(banner.text(style, started).as_bytes())?;
    serve(server, listener, signals::stop_requested())?;
    if let Some(jobs) = jobs
        && !jobs.shutdown(JOB_STOP_LIMIT)
    {
        output::note("a job has not stopped in time; it goes on from its last checkpoint");
    }
    output::line("stopped")
}

/// The settings file that `--config` names. What is a model's configuration instead, as other commands have it, goes where
/// it belongs: no settings file is JSON.
fn settings_file(config: Option<PathBuf>, flags: &mut Settings) -> anyhow::Result<Option<PathBuf>> {
    let is_json = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let Some(path) = config.as_ref().filter(|path| is_json(path)) else { return Ok(config) };
    if let Some(other) = &flags.model_config {
        let (path, other) = (path.display(), other.display());
        return Err(
            UsageError(format!("--config {path} and --model-config {other}: which model is it?")).into()
        );
    }
    flags.model_config = config;
    Ok(None)
}

/// Opens the folder of jobs and lets them run.
fn jobs(
    folder: &Path,
    settings: &Settings,
    model: &Model,
    engine: &Engine,
    names: &[String],
) -> anyhow::Result<Arc<JobRunner>> {
    let threads = settings.training_threads.or(settings.threads);
    let sharing = settings.training_rest.unwrap_or_default().0;
    let fine_tuner =
        ModelFineTuner::new(model.clone(), engine.clone(), names.to_vec()).with_sharing(threads, sharing);
    let context = || format!("cannot open the job folder {}", folder.display());
    let mut config = RunnerConfig::new(folder);
    // The other half stays free, so that a client's request need not wait until one of a batch has ended.
    config.batches.requests_at_once = (engine.config().max_num_sequences / 2).clamp(1, MAX_BATCH_REQUESTS);
    let runner = JobRunner::open(config, Arc::new(fine_tuner)).with_context(context)?;
    runner.start().with_context(context)?;
    Ok(Arc::new(runner))
}

/// Runs the server on this thread until `shutdown` is ready and it has drained.
pub fn serve(
    server: Server,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    // One thread: the engine has its own, and more would only take cores from it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        server.serve(listener, shutdown).await
    })?;
    Ok(())
}

/// A listener that a runtime can take.
pub fn bind(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let listener = TcpListener::bind((bare, port)).and_then(|l| l.set_nonblocking(true).map(|()| l));
    listener.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program listens there; choose another --port, or 0 for a free one"
            }
            std::io::ErrorKind::PermissionDenied => {
                "ports below 1024 need privileges; choose a higher --port"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; --host 0.0.0.0 listens on all"
            }
            _ => "--host takes an address of this machine, such as 127.0.0.1 or 0.0.0.0",
        };
        with_hint(anyhow::Error::new(error).context(format!("cannot listen on {host}:{port}")), hint)
    })
}

/// What the server gets of a model.
pub fn served_model(
    model: &Model,
    engine: &Engine,
    names: &[String],
    path: &Path,
) -> anyhow::Result<ServedModel> {
    Ok(ServedModel {
        engine: engine.clone(),
        tokenizer: model.tokenizer().clone(),
        compiler: model.compiler().clone(),
        chat_template: model.chat_template().cloned(),
        model_id: names.first().cloned().unwrap_or_default(),
        aliases: names.get(1..).unwrap_or_default().to_vec(),
        root: Some(path.display().to_string()),
        created: SystemTime::now(),
        fine_tuning: None,
    })
}

/// The keys of a file.
pub fn read_keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = open::read_text(path, MAX_KEY_FILE_BYTES).context("the file of API keys")?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    if keys.is_empty() {
        anyhow::bail!("the file of API keys {} holds no key; write one a line", path.display());
    }
    if let Some(mode) = open_mode(path) {
        let note = Style::stderr().note("note:");
        let path = path.display();
        output::note(&format!(
            "{note} the file of API keys {path} can be read by others (mode {mode:o}); chmod 600 closes it"
        ));
    }
    Ok(keys)
}

/// The mode of a file that others than its owner can read, unless a supervisor has put it where they cannot reach it.
#[cfg(unix)]
fn open_mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;

    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    if credentials.is_some_and(|folder| path.starts_with(folder)) {
        return None;
    }
    let mode = path.metadata().ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

/// The mode of a file that others than its owner can read.
#[cfg(not(unix))]
fn open_mode(_path: &Path) -> Option<u32> {
    None
}

/// Says what was asked for and does not hold, and what may not fit.
fn note_limits(settings: &Settings, options: &EngineOptions, model: &Model, engine: &Engine, style: Style) {
    let holds = engine.max_context_tokens();
    if let Some(asked) = settings.max_context.filter(|asked| *asked > holds) {
        let of_model = model.config().max_position_embeddings;
        let reason = if of_model <= holds {
            "the model's; adapters with RoPE scaling may use more"
        } else {
            "all that --kv-memory has room for"
        };
        output::note(&format!("{} --max-context {asked} becomes {holds}, {reason}", style.note("note:")));
    }
    let plan = model.memory_plan(options);
    // The engine's own memory is taken already, but only what was written to counts as used. On a device with memory of its own it is
    // there.
    let of_host = if model.device().free_bytes().is_some() { 0 } else { plan.engine_bytes() };
    let needed = plan.max_adapters_bytes.saturating_add(of_host);
    if let Some(free) = wardrobe::available_memory_bytes().filter(|free| needed > *free) {
        output::note(&format!(
            "{} keys, values, scratch and adapters may take {}; {} are free",
            style.note("note:"),
            output::size(needed),
            output::size(free)
        ));
    }
}

fn show(resolved: &Settings, flags: &Settings, file: &Settings) -> anyhow::Result<()> {
    let map = |settings: &Settings| serde_json::to_value(settings);
    let (resolved, flags, file) = (map(resolved)?, map(flags)?, map(file)?);
    let is_set =
        |value: &serde_json::Value| !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty());
    let mut rows = Vec::new();
    for (key, value) in resolved.as_object().into_iter().flatten().filter(|(_, value)| is_set(value)) {
        let from = |settings: &serde_json::Value| settings.get(key).is_some_and(is_set);
        let origin = match (from(&flags), from(&file)) {
            (true, _) => "option or environment",
            (false, true) => "file",
            (false, false) => "default",
        };
        rows.push(vec![format!("{key} = {value}"), format!("# {origin}")]);
    }
    output::write_stdout(output::table(&rows).as_bytes())
}

/// What a person needs to know once the server is up.
pub struct Banner<'a> {
    /// The base model.
    pub model: &'a Model,
    /// The engine, for what is loaded.
    pub engine: &'a Engine,
    /// Its settings.
    pub options: &'a EngineOptions,
    /// Names of the base model, the first of which is its id.
    pub names: &'a [String],
    /// Where the server listens.
    pub address: SocketAddr,
    /// Whether it asks for keys.
    pub secured: bool,
}

impl Banner<'_> {
    fn text(&self, style: Style, started: Instant) -> String {
        let plan = self.model.memory_plan(self.options);
        let adapters = self.engine.adapters();
        let adapter_bytes: u64 = adapters.iter().map(|adapter| adapter.host_bytes).sum();
        let config = self.engine.config();
        let on_device = config.max_adapters_device_bytes;
        let on_device = on_device.map(|bytes| format!(", on the device {}", output::mib(bytes)));
        let mut rows = vec![
            row("device", self.model.device().name()),
            row("memory", format!("{} weights", output::mib(plan.weight_bytes))),
            row(
                "",
                format!("{} keys and values, room for {} tokens", output::mib(plan.kv_bytes), plan.kv_tokens),
            ),
            row("", format!("{} scratch", output::mib(plan.arena_bytes))),
            row(
                "",
                format!(
                    "{} adapters ({} loaded; at most {}{})",
                    output::mib(adapter_bytes),
                    adapters.len(),
                    output::mib(plan.max_adapters_bytes),
                    on_device.unwrap_or_default()
                ),
            ),
            row(
                "limits",
                format!(
                    "{} tokens of context, {} sequences at once, {} waiting, {} adapters in one step",
                    self.engine.max_context_tokens(),
                    config.max_num_sequences,
                    config.queue_capacity,
                    self.engine.limits().num_slots
                ),
            ),
            row("model", self.names.join(", ")),
        ];
        rows.extend(adapters.iter().map(|adapter| row("adapter", describe(adapter))));
        let ready = format!("ready after {}", output::duration(started.elapsed()));
        let mut text = output::table(&rows);
        text.push_str(&format!(
            "{} {}\n",
            style.good("listening on"),
            style.bold(&format!("http://{}", self.address))
        ));
        text.push_str(&format!("{}\n\n", style.dim(&ready)));
        if !self.address.ip().is_loopback() && !self.secured {
            let warning = "every machine that reaches this address may use it: --api-key-file asks for keys";
            text.push_str(&format!("{} {warning}\n\n", style.note("note:")));
        }
        for command in self.curl_lines() {
            text.push_str(&command);
            text.push('\n');
        }
        text
    }

    /// A command for the base model and each adapter that works as it is.
    pub fn curl_lines(&self) -> Vec<String> {
        let names = self.names.first().cloned().into_iter();
        let adapters = self.engine.adapters().into_iter().map(|adapter| adapter.name);
        names.chain(adapters).map(|name| self.curl_line(&name)).collect()
    }

    fn curl_line(&self, name: &str) -> String {
        let (route, body) = match self.model.chat_template() {
            Some(_) => {
                let messages = serde_json::json!([{"role": "user", "content": "Hello!"}]);
                (
                    "chat/completions",
                    serde_json::json!({"model": name, "messages": messages, "max_tokens": 64}),
                )
            }
            None => {
                ("completions", serde_json::json!({"model": name, "prompt": "Once upon", "max_tokens": 64}))
            }
        };
        let key = if self.secured { " -H \"Authorization: Bearer $KEY\"" } else { "" };
        let url = format!("http://{}/v1/{route}", reachable(self.address));
        format!(
            "curl -s {url}{key} -H 'Content-Type: application/json' -d {}",
            output::shell_word(&body.to_string())
        )
    }
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn describe(adapter: &AdapterInfo) -> String {
    let size = output::mib(adapter.host_bytes);
    let context = adapter.max_context_tokens.map_or(String::new(), |n| format!("{n} tokens of context, "));
    format!(
        "{} (rank {}, {} modules, {size}, {context}{})",
        adapter.name, adapter.rank, adapter.num_modules, adapter.source
    )
}

/// The address to ask, for one that stands for all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# ours\n alpha \n\nbeta\n").unwrap();
        assert_eq!(read_keys(&path).unwrap(), ["alpha", "beta"]);
        std::fs::write(&path, "# none\n").unwrap();
        assert!(read_keys(&path).unwrap_err().to_string().contains("holds no key"));
        assert!(read_keys(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn a_port_in_use_is_an_error_with_a_hint() {
        let taken = bind("127.0.0.1", 0).unwrap();
        let error = bind("127.0.0.1", taken.local_addr().unwrap().port()).unwrap_err();
        assert!(error.to_string().contains("cannot listen on"), "{error}");
        assert!(bind("not an address", 0).is_err());
    }

    #[test]
    fn curl_gets_an_address_that_can_be_asked() {
        assert_eq!(reachable("0.0.0.0:80".parse().unwrap()).to_string(), "127.0.0.1:80");
        assert_eq!(reachable("[::]:80".parse().unwrap()).to_string(), "[::1]:80");
        assert_eq!(reachable("10.1.2.3:80".parse().unwrap()).to_string(), "10.1.2.3:80");
    }
}
