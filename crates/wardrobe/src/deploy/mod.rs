//! A folder that serves fine-tuned adapters: the adapters, the settings of `wardrobe serve`, an API key, and what runs them by
//! hand, under systemd or in a container, with a test that asks the running endpoint.
//!
//! Purpose: from an adapter that was trained to an endpoint, without a setting that was forgotten.
//! State owned: a temporary folder beside the output, which gets its name when everything in it is on the disk.
//! Invariants: the output is there whole or as it was; what is checked against the base model are the copies that will be
//! served; what no deployment has written, and what was changed since, is never deleted; the key is in its file and nowhere
//! else.
//! Not done here: finding models and jobs, starting anything, building images.

mod adapters;
mod container;
mod error;
mod files;
mod quote;
mod readme;
mod settings;
mod smoke;
mod unit;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use wardrobe_formats::Staging;
use wardrobe_models::LoraOptions;

pub use adapters::DeployedAdapter;
pub use error::DeployError;
pub use quote::shell_word;

use self::adapters::Prepared;
use self::error::Result;
use self::files::{Files, KEY_FILE, Mode};
use crate::disk::{check_space, is_empty, real_path};
use crate::model::Model;

const SETTINGS_FILE: &str = "wardrobe.toml";
const PROGRAM: &str = "bin/wardrobe";
const CONTAINER_FILE: &str = "Containerfile";
const SMOKE_TEST: &str = "smoke-test.sh";
const README: &str = "README.md";
/// The folder of jobs in a deployment that has one.
pub const JOB_FOLDER: &str = "jobs";
/// How long a job may take to stop, as `serve` gives it.
const JOB_STOP_SECONDS: u64 = 60;
/// What a supervisor waits beyond that before it kills.
const SPARE_SECONDS: u64 = 15;

/// Where the base model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseModel {
    /// A file or folder of this machine.
    Local(PathBuf),
    /// A name that the endpoint pulls by itself.
    Pulled {
        /// The name.
        name: String,
        /// Whether pulling it takes `python3` with pip.
        needs_pip: bool,
    },
}

/// An adapter that is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterToDeploy {
    /// The name that clients ask for.
    pub name: String,
    /// Its PEFT folder.
    pub path: PathBuf,
}

/// What is to be served, and how.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The base model.
    pub base: BaseModel,
    /// Names under which clients ask for the base, at least one.
    pub base_names: Vec<String>,
    /// The adapters, at least one.
    pub adapters: Vec<AdapterToDeploy>,
    /// Address to listen on.
    pub host: String,
    /// Port to listen on.
    pub port: u16,
    /// Where to compute, as `serve --device` has it; `None` leaves it to `serve`.
    pub device: Option<String>,
    /// How long the endpoint says that it is going before it refuses connections.
    pub drain_delay_seconds: u64,
    /// How long running requests may take to end after that.
    pub drain_seconds: u64,
    /// Folder of files, jobs and batches, if the endpoint has one. A relative one lies in the deployment.
    pub job_folder: Option<PathBuf>,
    /// Further keys of the settings file, as they stand there: texts, numbers, truth values and lists of texts.
    pub settings: Map<String, Value>,
    /// The `wardrobe` program.
    pub program: PathBuf,
    /// The text of the file of API keys; `None` makes one key.
    pub keys: Option<String>,
}

/// How a deployment is written.
#[derive(Debug)]
pub struct DeployOptions<'a> {
    /// Whether to replace what is in the output.
    pub force: bool,
    /// The open base model, to hold the adapters against; without it their files alone are checked.
    pub model: Option<&'a Model>,
    /// The limits that they are held to.
    pub lora: LoraOptions,
}

/// A deployment that was written.
#[derive(Debug)]
pub struct Deployed {
    /// Its folder.
    pub dir: PathBuf,
    /// The name of its systemd unit.
    pub unit: String,
    /// The file of its API keys.
    pub key_file: PathBuf,
    /// Its adapters.
    pub adapters: Vec<DeployedAdapter>,
    /// Names below the folder of what others had put there, or had changed.
    pub carried: Vec<PathBuf>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// What the texts are made of.
struct Endpoint<'a> {
    deployment: &'a Deployment,
    /// Of the folder's name: names unit, image, cache.
    name: String,
    dir: &'a Path,
    adapters: &'a [Prepared],
    /// Whether requests are messages; a base without a chat template takes plain prompts.
    chats: bool,
}

impl Endpoint<'_> {
    fn unit(&self) -> String {
        format!("{}.service", self.name)
    }

    /// The address that clients on this machine use.
    fn url(&self) -> String {
        let bare = self.deployment.host.trim_start_matches('[').trim_end_matches(']');
        let host = match bare.parse::<std::net::IpAddr>() {
            Ok(ip) if ip.is_unspecified() && ip.is_ipv6() => "[::1]".to_owned(),
            Ok(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            Ok(ip) if ip.is_ipv6() => format!("[{ip}]"),
            _ => bare.to_owned(),
        };
        format!("http://{host}:{}", self.deployment.port)
    }

    /// How long a supervisor waits for the endpoint to stop.
    fn stop_seconds(&self) -> u64 {
        let jobs = if self.deployment.job_folder.is_some() { JOB_STOP_SECONDS } else { 0 };
        let drain = self.deployment.drain_delay_seconds.saturating_add(self.deployment.drain_seconds);
        drain.saturating_add(jobs).saturating_add(SPARE_SECONDS)
    }

    /// Whether a GPU may be used.
    fn may_use_gpu(&self) -> bool {
        self.deployment.device.as_deref() != Some("cpu")
    }
}

impl Deployment {
    /// Writes the folder `dir`.
    ///
    /// # Errors
    /// [`DeployError`], with which `dir` is as it was before: it has something in it and `force` is not given; it lies in an
    /// adapter; an adapter is damaged, vouched for with other tensors, or does not fit the base model; two adapters have one
    /// name; the disk is full.
    pub fn write(&self, dir: &Path, options: &DeployOptions<'_>) -> Result<Deployed> {
        let dir = self.check(dir, options.force)?;
        let sources = adapters::open(&self.adapters)?;
        let program_bytes = std::fs::metadata(&self.program).map_err(DeployError::io(&self.program))?.len();
        let adapter_bytes: u64 = sources.iter().map(|source| source.total_bytes()).sum();
        check_space(&dir, adapter_bytes.saturating_add(program_bytes))?;

        let staging = Staging::folder(&dir, true)?;
        open_to_others(staging.path())?;
        let mut files = Files::new(staging.path());
        let mut notes: Vec<String> = closed_to_others(&dir).into_iter().collect();
        let mut prepared = adapters::copy(&self.adapters, &sources, &mut files)?;
        drop(sources);
        adapters::verify(&mut prepared, staging.path(), options, &mut notes)?;
        let name = format!("wardrobe-{}", quote::slug(&file_name(&dir), "endpoint"));
        let chats = options.model.is_none_or(|model| model.chat_template().is_some());
        let endpoint = Endpoint { deployment: self, name, dir: &dir, adapters: &prepared, chats };
        files.copy(&self.program, PROGRAM, Mode::Program)?;
        files.write(SETTINGS_FILE, &settings::text(&endpoint)?, Mode::Plain)?;
        files.write(CONTAINER_FILE, &container::text(&endpoint), Mode::Plain)?;
        files.write(container::IGNORE_FILE, container::IGNORED, Mode::Plain)?;
        files.write(&endpoint.unit(), &unit::text(&endpoint), Mode::Plain)?;
        files.write(SMOKE_TEST, &smoke::text(&endpoint), Mode::Program)?;
        files.write(README, &readme::text(&endpoint), Mode::Plain)?;
        let keys = match self.keys.clone().or_else(|| kept_keys(&dir)) {
            Some(keys) => keys,
            None => format!("{}\n", files::random_key()?),
        };
        files.write(KEY_FILE, &keys, Mode::Secret)?;
        let unit = endpoint.unit();
        files.finish(self.about(&prepared))?;

        let carried = match staging.publish_beside_old()? {
            Some(old) => files::carry_over(&old, &dir)?,
            None => Vec::new(),
        };
        let adapters = prepared.into_iter().map(|adapter| adapter.deployed).collect();
        Ok(Deployed { unit, key_file: dir.join(KEY_FILE), dir, adapters, carried, notes })
    }

    /// What can be refused before anything is read; gives the folder's path with its links followed.
    ///
    /// # Errors
    /// As [`Deployment::write`], as far as no file is needed to tell.
    pub fn check(&self, dir: &Path, force: bool) -> Result<PathBuf> {
        let dir = &real_path(dir);
        let output =
            |reason: &str| Err(DeployError::Output { dir: dir.to_owned(), reason: reason.to_owned() });
        if dir.file_name().is_none() {
            return output("names no folder to write");
        }
        match dir.to_str() {
            Some(text) if !text.contains(|c: char| c.is_control() || matches!(c, '"' | '\'' | '\\')) => {}
            _ => {
                return output(
                    "has a quotation mark or another character in its path that a systemd unit cannot have",
                );
            }
        }
        if dir.exists() && !dir.is_dir() {
            return output("is no folder");
        }
        if dir.is_dir() && !is_empty(dir) && !force {
            return Err(DeployError::NotEmpty { dir: dir.to_owned() });
        }
        if std::env::current_dir().and_then(|current| current.canonicalize()).is_ok_and(|c| c == *dir) {
            return output("is the working folder, which cannot be replaced as a whole; name another");
        }
        for adapter in &self.adapters {
            if let Ok(path) = adapter.path.canonicalize()
                && dir.starts_with(&path)
            {
                return Err(DeployError::Inside { dir: dir.to_owned(), adapter: path });
            }
        }
        if self.adapters.is_empty() {
            return Err(DeployError::Setting("no adapter is given".to_owned()));
        }
        if self.port == 0 {
            let reason = "port 0 is another port at each start; a deployment needs one that stays";
            return Err(DeployError::Setting(reason.to_owned()));
        }
        adapters::check_names(&self.adapters, &self.base_names)?;
        Ok(dir.to_owned())
    }

    /// What the list of files says besides.
    fn about(&self, prepared: &[Prepared]) -> Value {
        let adapters: Vec<Value> = prepared
            .iter()
            .map(|adapter| {
                let deployed = &adapter.deployed;
                json!({
                    "name": deployed.name,
                    "folder": adapter.folder,
                    "digest": deployed.digest,
                    "verified": deployed.is_verified,
                })
            })
            .collect();
        json!({ "wardrobe": env!("CARGO_PKG_VERSION"), "model": self.model(), "adapters": adapters })
    }

    /// The base as the settings file names it.
    fn model(&self) -> String {
        match &self.base {
            BaseModel::Local(path) => path.display().to_string(),
            BaseModel::Pulled { name, .. } => name.clone(),
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Lets everybody read the folder, whatever the process's mask makes of new ones: the service's user has to.
fn open_to_others(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, mode).map_err(DeployError::io(dir))?;
    }
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

/// A word on the first folder on the way to `dir` that only its owner gets through.
fn closed_to_others(dir: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        let is_closed = |folder: &&Path| {
            let mode =
                folder.metadata().map(|meta| std::os::unix::fs::PermissionsExt::mode(&meta.permissions()));
            mode.is_ok_and(|mode| mode & 0o001 == 0)
        };
        let parents: Vec<&Path> = dir.ancestors().skip(1).collect();
        let closed = parents.into_iter().rev().find(is_closed)?;
        Some(format!(
            "{} is closed to other users, so that the systemd unit's own cannot reach {}",
            closed.display(),
            dir.display()
        ))
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        None
    }
}

/// The keys of the deployment that is replaced: clients have them.
fn kept_keys(dir: &Path) -> Option<String> {
    const MAX_KEY_BYTES: u64 = 1 << 20;
    let path = dir.join(KEY_FILE);
    let meta = path.symlink_metadata().ok()?;
    let is_list = !files::listed(dir).is_empty() && meta.is_file() && meta.len() <= MAX_KEY_BYTES;
    let text = if is_list { std::fs::read_to_string(&path).ok()? } else { return None };
    text.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).then_some(text)
}
