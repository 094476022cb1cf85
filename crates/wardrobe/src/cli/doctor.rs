//! `doctor`: what this machine offers, and whether everything is in place.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use wardrobe::{
    DeviceOptions, DeviceSpec, EngineOptions, Isa, Message, Request, SamplingParams, Survey, open_device,
};
use wardrobe_hub::{CATALOGUE, Cache, ModelKind};

use super::log;
use super::open::{self, ComputeArgs, Found};
use super::output::{self, Style};

/// Below this, a pull of a small model does not fit.
const LOW_DISK_BYTES: u64 = 500_000_000;

#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Do not try a cached model
    #[arg(long)]
    no_test: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Note,
    Bad,
}

struct Check {
    verdict: Verdict,
    name: &'static str,
    found: String,
}

/// Looks at everything and prints what it finds; an error only if something that is needed is broken.
pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    log::init_quiet()?;
    let mut checks = vec![processor(), instructions(), memory(), gpu()];
    checks.extend(cache());
    checks.push(pip());
    checks.push(hub());
    if !args.no_test {
        checks.push(self_test(&args.compute));
    }
    let style = Style::stdout();
    let rows: Vec<Vec<String>> =
        checks.iter().map(|check| vec![check.name.to_owned(), check.found.clone()]).collect();
    // The mark comes before the table's columns, so that its colour does not count as width.
    let mut text = String::new();
    for (check, line) in checks.iter().zip(output::table(&rows).lines()) {
        let mark = match check.verdict {
            Verdict::Good => style.good("ok  "),
            Verdict::Note => style.note("note"),
            Verdict::Bad => style.bad("BAD "),
        };
        text.push_str(&format!("{mark}  {line}\n"));
    }
    output::write_stdout(text.as_bytes())?;
    let bad = checks.iter().filter(|check| check.verdict == Verdict::Bad).count();
    anyhow::ensure!(bad == 0, "{bad} of {} checks failed", checks.len());
    Ok(())
}

fn good(name: &'static str, found: String) -> Check {
    Check { verdict: Verdict::Good, name, found }
}

fn note(name: &'static str, found: String) -> Check {
    Check { verdict: Verdict::Note, name, found }
}

fn bad(name: &'static str, found: String) -> Check {
    Check { verdict: Verdict::Bad, name, found }
}

fn processor() -> Check {
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    good("processor", format!("{model}, {threads} threads to use"))
}

fn instructions() -> Check {
    let available: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
    match open_device(DeviceSpec::Cpu, &DeviceOptions::default()) {
        Ok(device) => {
            let forced = std::env::var("WARDROBE_ISA").ok().filter(|v| !v.is_empty());
            let forced = forced.map_or_else(String::new, |isa| format!("; WARDROBE_ISA forces {isa}"));
            let found = format!("{} (kernels for: {}{forced})", device.name(), available.join(", "));
            if available.len() > 1 {
                good("kernels", found)
            } else {
                note("kernels", format!("{found}: slow"))
            }
        }
        Err(error) => bad("kernels", error.to_string()),
    }
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    match (kib("MemAvailable:"), kib("MemTotal:")) {
        (Some(free), Some(total)) => {
            let found = format!("{} of {} free", output::size(free * 1024), output::size(total * 1024));
            if free < 1 << 20 {
                note("memory", format!("{found}: little; lower --kv-memory"))
            } else {
                good("memory", found)
            }
        }
        _ => note("memory", "this system does not tell".to_owned()),
    }
}

fn gpu() -> Check {
    let survey = Survey::new();
    let (cards, nvrtc) = (&survey.cards, survey.nvrtc);
    let cards = match cards {
        Ok(cards) => cards,
        Err(absent) => return note("gpu", format!("{absent}; the CPU computes")),
    };
    let cards = cards.iter().map(|card| {
        let (major, minor) = card.capability;
        format!(
            "{} ({}, compute capability {major}.{minor})",
            card.name,
            output::size(card.memory_bytes as u64)
        )
    });
    let mut found = vec![cards.collect::<Vec<_>>().join(", ")];
    found.extend(survey.driver_cuda.map(|v| format!("driver of CUDA {}.{}", v / 1000, v % 1000 / 10)));
    found.extend(survey.has_kernels.then(|| "kernels built in".to_owned()));
    found.extend(nvrtc.map(|(major, minor)| format!("NVRTC {major}.{minor}")));
    found.push(
        if survey.has_blas { "cuBLASLt" } else { "no cuBLASLt, so long prompts are slower" }.to_owned(),
    );
    found.extend(
        survey.failed_libraries.iter().map(|(file, why)| format!("{} did not load: {why}", file.display())),
    );
    if !survey.has_kernels && nvrtc.is_none() {
        found.push(format!(
            "but neither kernels nor NVRTC, without which it cannot be used: install NVRTC (the Python package \
             nvidia-cuda-nvrtc has it) and name its folder in {}",
            wardrobe::CUDA_LIBRARIES_ENV
        ));
        return bad("gpu", found.join(", "));
    }
    match open_device(DeviceSpec::Cuda { ordinal: 0 }, &DeviceOptions::default()) {
        Ok(_) => good("gpu", found.join(", ")),
        Err(error) => bad("gpu", format!("{}, but {error}", found.join(", "))),
    }
}

fn cache() -> Vec<Check> {
    let cache = match Cache::open_default() {
        Ok(cache) => cache,
        Err(error) => return vec![bad("cache", error.to_string())],
    };
    let root = cache.root();
    let place = if root.exists() { String::new() } else { " (not there yet)".to_owned() };
    let mut checks = vec![match writable(root) {
        Ok(()) => good("cache", format!("{}{place}", root.display())),
        Err(error) => bad("cache", format!("{} cannot be written: {error}", root.display())),
    }];
    if let Some(free) = nearest(root).and_then(|folder| free_bytes(&folder)) {
        let found = format!("{} free", output::size(free));
        checks.push(if free < LOW_DISK_BYTES {
            note("disk", format!("{found}: little"))
        } else {
            good("disk", found)
        });
    }
    match cache.list() {
        Ok(entries) if entries.is_empty() => {
            checks.push(note("models", "none yet; wardrobe pull smollm2-135m gets a small one".to_owned()));
        }
        Ok(entries) => {
            let total: u64 = entries.iter().map(|entry| entry.size_bytes).sum();
            checks.push(good("models", format!("{} in the cache, {}", entries.len(), output::size(total))));
        }
        Err(error) => checks.push(bad("models", error.full_message())),
    }
    checks
}

/// The folder itself, or the nearest one above it that exists.
fn nearest(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|folder| folder.is_dir()).map(Path::to_path_buf)
}

/// Whether files can be made where the cache is or will be.
fn writable(root: &Path) -> std::io::Result<()> {
    let folder = nearest(root).ok_or_else(|| std::io::Error::other("no folder above it exists"))?;
    let probe = folder.join(format!(".wardrobe-probe-{}", std::process::id()));
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(&probe)
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// The client that gets models out of packages.
fn pip() -> Check {
    for python in ["python3", "python"] {
        let output = Command::new(python).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
        if let Ok(output) = output.as_ref()
            && output.status.success()
        {
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            return good("pip", format!("{version}, for models that packages ship"));
        }
    }
    note(
        "pip",
        "not found: models that packages ship cannot be pulled (on Debian: apt-get install python3-pip)"
            .to_owned(),
    )
}

/// Settings of the hub. A token is named and never shown.
fn hub() -> Check {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let mut parts = Vec::new();
    let endpoint = set("HF_ENDPOINT").map(|_| "HF_ENDPOINT is set, so a mirror is asked".to_owned());
    parts.push(endpoint.unwrap_or_else(|| "the default hub".to_owned()));
    let token = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find(|name| set(name).is_some());
    parts.push(token.map_or_else(|| "no HF_TOKEN".to_owned(), |name| format!("a token in {name}")));
    let offline = set("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "off"));
    if offline {
        parts.push("HF_HUB_OFFLINE forbids asking it".to_owned());
    }
    let found = parts.join(", ");
    if offline { note("hub", found) } else { good("hub", found) }
}

/// A few tokens from a cached model, of the catalogue before others.
fn self_test(compute: &ComputeArgs) -> Check {
    let found = match cached_model() {
        Some(found) => found,
        None => return note("self-test", "left out: no model is in the cache".to_owned()),
    };
    let started = Instant::now();
    match answer(&found, compute) {
        Ok((opened, tokens, rate)) => {
            let (opened, total) = (output::duration(opened), output::duration(started.elapsed()));
            good(
                "self-test",
                format!("{}: open in {opened}, {tokens} tokens at {rate}, {total} in all", found.name),
            )
        }
        Err(error) => bad("self-test", format!("{}: {error:#}", found.name)),
    }
}

fn cached_model() -> Option<Found> {
    let cache = Cache::open_default().ok()?;
    let known = CATALOGUE.iter().find_map(|model| {
        let entry = cache.lookup(model.name)?;
        Some(Found { path: entry.path, name: model.name.to_owned() })
    });
    known.or_else(|| {
        let entries = cache.list().ok()?.into_iter();
        let smallest = entries
            .filter(|entry| matches!(entry.kind, ModelKind::Gguf | ModelKind::Safetensors))
            .min_by_key(|entry| entry.size_bytes)?;
        Some(Found { path: smallest.path, name: smallest.names.first().cloned().unwrap_or(smallest.id) })
    })
}

fn answer(found: &Found, compute: &ComputeArgs) -> anyhow::Result<(std::time::Duration, usize, String)> {
    let started = Instant::now();
    let model = open::open(found, &compute.model_options())?;
    let engine = model.engine(&EngineOptions { kv_bytes: Some(64 << 20), ..EngineOptions::default() })?;
    let opened = started.elapsed();
    let prompt = match model.chat_template() {
        Some(_) => model.chat_prompt(&[Message::text("user", "Say hello.")])?,
        None => model.tokenizer().encode("Hello", true)?,
    };
    let request = Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(16);
    let completion = engine.generate(Request { ignore_eos: true, ..request })?;
    let usage = completion.summary.usage;
    anyhow::ensure!(usage.completion_tokens == 16, "it gave {} tokens and not 16", usage.completion_tokens);
    let rate = output::rate(usage.completion_tokens - 1, completion.summary.timings.decode);
    Ok((opened, usage.completion_tokens, rate))
}
