//! Models on the hub: settings, and the steps from a repository to a cache entry.

mod address;
mod client;
mod dataset;
mod select;
mod transfer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::{Cache, Entry};
use crate::disk;
use crate::error::HubError;
use crate::local;
use crate::manifest::{FileRecord, Manifest, ModelKind};
use crate::names::named_folder;
use crate::progress::Progress;
use crate::reference::RepoRef;

pub use dataset::{Dataset, DatasetFile, DatasetRef};

use client::{HubClient, Listing, Settings};
use select::Selection;
use transfer::Job;

/// Text files of a model: tokenizers of large vocabularies take tens of MB.
const MAX_TEXT_FILE_BYTES: u64 = 256 * 1024 * 1024;
/// One weight file. Far above any in use; keeps a server that lies about sizes from being believed.
const MAX_WEIGHT_FILE_BYTES: u64 = 1 << 40;

/// An access token for the hub. Its `Debug` output hides it, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as it stands in the variable or file; white space around it is dropped.
    ///
    /// # Errors
    /// [`HubError::BadSetting`] if it is empty or has characters that no HTTP header carries.
    pub fn new(text: &str) -> Result<Self, HubError> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HubError::BadSetting {
                setting: "the hub's access token (HF_TOKEN)".to_owned(),
                reason: "it is empty or holds characters other than letters, digits and punctuation"
                    .to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }

    fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// How often and how patiently requests are repeated.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Repetitions without progress before giving up. A download that brought bytes starts counting anew.
    pub max_retries: u32,
    /// The wait before the first repetition; it doubles each time.
    pub base_delay: Duration,
    /// The longest wait. If the hub asks for a longer one (`Retry-After`), the pull ends and says so.
    pub max_delay: Duration,
    /// How long a connection may be silent.
    pub read_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 5,
            base_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(60),
            read_timeout: Duration::from_secs(30),
        }
    }
}

/// How the hub is reached.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// The hub's address. Default: `HF_ENDPOINT`, else that of the `hf-hub` client.
    pub endpoint: Option<String>,
    /// The access token. Default: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, `$HF_HOME/token`,
    /// `$XDG_CACHE_HOME/huggingface/token`, `~/.cache/huggingface/token`, in this order.
    pub token: Option<Token>,
    /// Whether the variables and token files above, `HF_HUB_OFFLINE`, `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` and the
    /// proxy variables are looked at. Default: yes.
    pub use_environment: bool,
    /// Repetition of failed requests.
    pub retry: RetryPolicy,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { endpoint: None, token: None, use_environment: true, retry: RetryPolicy::default() }
    }
}

impl HubOptions {
    /// The settings that hold for one pull.
    fn resolve(
        &self,
        var: &dyn Fn(&str) -> Option<String>,
        home: Option<&Path>,
    ) -> Result<Settings, HubError> {
        let set = |name: &str| {
            Some(name).filter(|_| self.use_environment).and_then(var).filter(|v| !v.trim().is_empty())
        };
        if set("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on"))
        {
            return Err(HubError::Offline);
        }
        let hub_home = set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|base| PathBuf::from(base).join("huggingface")))
            .or_else(|| {
                home.filter(|_| self.use_environment).map(|home| home.join(".cache").join("huggingface"))
            });
        let token = match (&self.token, set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"))) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(text)) => Some(Token::new(&text)?),
            (None, None) => {
                let file = set("HF_TOKEN_PATH")
                    .map(PathBuf::from)
                    .or_else(|| hub_home.map(|home| home.join("token")));
                let text = file.and_then(|file| std::fs::read_to_string(file).ok());
                text.filter(|text| !text.trim().is_empty()).map(|text| Token::new(&text)).transpose()?
            }
        };
        Ok(Settings {
            endpoint: self.endpoint.clone().or_else(|| set("HF_ENDPOINT")),
            token,
            certificates: set("SSL_CERT_FILE").or_else(|| set("REQUESTS_CA_BUNDLE")).map(PathBuf::from),
            use_proxy: self.use_environment,
            retry: self.retry,
        })
    }
}

/// Brings a repository's model into the cache.
pub(crate) fn fetch(
    cache: &Cache,
    repo: &RepoRef,
    options: &HubOptions,
    lock_wait: Duration,
    progress: &dyn Progress,
) -> Result<Entry, HubError> {
    let home = std::env::home_dir();
    let settings = options.resolve(&|name| std::env::var(name).ok(), home.as_deref())?;
    let client = HubClient::new(settings, repo, hf_hub::RepoType::Model)?;
    let origin = repo.repo().to_owned();
    let _lock = cache.lock(&origin, lock_wait, progress)?;
    progress.message(&format!("asking the hub for {repo}"));
    let listing = client.list(progress)?;
    let selection = Selection::choose(repo, &listing)?;
    let short_commit = listing.commit.get(..12).unwrap_or_default();
    let identity = format!("{origin} {} {}", listing.commit, repo.file().unwrap_or_default());
    let id = named_folder(&format!("{origin} {short_commit}"), &identity);
    // Another process may have brought it while this one waited, or the branch has not moved.
    if let Some(entry) = cache.entry(&id) {
        return Ok(entry);
    }
    let staging = cache.staging(&id, &origin)?;
    let files = download(&client, &listing, &selection, &staging, progress)?;
    let manifest = Manifest {
        revision: Some(repo.revision().to_owned()),
        commit: Some(listing.commit.clone()),
        ..Manifest::new(selection.kind, origin, selection.main_file.clone(), files)
    };
    cache.publish(&id, &manifest)
}

/// Downloads the selected files into `staging`.
fn download(
    client: &HubClient,
    listing: &Listing,
    selection: &Selection,
    staging: &Path,
    progress: &dyn Progress,
) -> Result<Vec<FileRecord>, HubError> {
    let mut names = selection.files.clone();
    let mut records = Vec::new();
    let client = client.at_commit(&listing.commit);
    if let Some(index) = &selection.index {
        // The index comes first, because it says which of the weight files belong to the model.
        let record = transfer::fetch(&client, &job(listing, index)?, staging, &())?;
        names.extend(selection.shards(listing, &staging.join(index))?);
        records.push(record);
    }
    let jobs = names.iter().map(|name| job(listing, name)).collect::<Result<Vec<_>, _>>()?;
    let total = jobs.iter().try_fold(0u64, |sum, job| sum.checked_add(job.bytes?));
    if let Some(total) = total {
        disk::ensure_space(staging, total.saturating_sub(disk::tree_bytes(staging)))?;
    }
    progress.started(client.name(), total);
    let fetched: Result<Vec<_>, _> =
        jobs.iter().map(|job| transfer::fetch(&client, job, staging, progress)).collect();
    progress.finished();
    records.extend(fetched?);
    if selection.kind == ModelKind::Gguf
        && let Some(file) = &selection.main_file
        && let Err(error) = local::check_gguf_magic(&staging.join(file))
    {
        disk::remove_all(&staging.join(file))?;
        return Err(error);
    }
    Ok(records)
}

fn job(listing: &Listing, name: &str) -> Result<Job, HubError> {
    let file = listing.files.iter().find(|file| file.path == name);
    let weights = name.ends_with(".safetensors") || name.to_ascii_lowercase().ends_with(".gguf");
    let limit_bytes = if weights { MAX_WEIGHT_FILE_BYTES } else { MAX_TEXT_FILE_BYTES };
    let (bytes, sha256) = file.map_or((None, None), |file| (file.bytes, file.sha256.clone()));
    if bytes.is_some_and(|bytes| bytes > limit_bytes) {
        return Err(HubError::TooLarge { what: name.to_owned(), limit_bytes });
    }
    Ok(Job { path: name.to_owned(), bytes, sha256, limit_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(
        pairs: &[(&str, &str)],
        home: Option<&Path>,
        options: &HubOptions,
    ) -> Result<Settings, HubError> {
        let var =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        options.resolve(&var, home)
    }

    #[test]
    fn settings_come_from_options_then_variables_then_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        file("home/.cache/huggingface/token", "from-home\n");
        file("hf/token", " from-hf-home ");
        file("xdg/huggingface/token", "from-xdg");
        let named = file("named", "from-path");
        let (home, hf, xdg) = (dir.path().join("home"), dir.path().join("hf"), dir.path().join("xdg"));
        let (hf, xdg) = (hf.to_str().unwrap(), xdg.to_str().unwrap());
        let options = HubOptions::default();
        let token = |pairs: &[(&str, &str)], options: &HubOptions| {
            settings(pairs, Some(&home), options).unwrap().token.map(|token| token.reveal().to_owned())
        };
        assert_eq!(token(&[], &options).unwrap(), "from-home");
        assert_eq!(token(&[("XDG_CACHE_HOME", xdg)], &options).unwrap(), "from-xdg");
        assert_eq!(token(&[("XDG_CACHE_HOME", xdg), ("HF_HOME", hf)], &options).unwrap(), "from-hf-home");
        assert_eq!(token(&[("HF_HOME", hf), ("HF_TOKEN_PATH", &named)], &options).unwrap(), "from-path");
        let variables =
            [("HF_TOKEN_PATH", named.as_str()), ("HF_TOKEN", "from-variable"), ("HF_ENDPOINT", "http://e")];
        assert_eq!(token(&variables, &options).unwrap(), "from-variable");
        let explicit = HubOptions {
            token: Some(Token::new("explicit").unwrap()),
            endpoint: Some("http://x".to_owned()),
            ..HubOptions::default()
        };
        assert_eq!(token(&variables, &explicit).unwrap(), "explicit");
        assert_eq!(settings(&variables, None, &explicit).unwrap().endpoint.unwrap(), "http://x");
        assert_eq!(settings(&variables, None, &options).unwrap().endpoint.unwrap(), "http://e");
        let alone = HubOptions { use_environment: false, ..HubOptions::default() };
        assert_eq!(token(&variables, &alone), None);
        assert!(settings(&variables, Some(&home), &alone).unwrap().endpoint.is_none());
        let error = settings(&[("HF_HUB_OFFLINE", "1")], None, &options).err().unwrap();
        assert!(matches!(error, HubError::Offline));
    }

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::new("hf_s3cret").unwrap();
        let options = HubOptions { token: Some(token), ..HubOptions::default() };
        let resolved = settings(&[], None, &options).unwrap();
        assert!(!format!("{options:?}").contains("s3cret") && !format!("{resolved:?}").contains("s3cret"));
        for text in ["", " \n", "two words", "hf_s3cret\r\nX-Header: 1", "hf_s3crét"] {
            let error = Token::new(text).unwrap_err();
            assert!(!error.full_message().contains("s3cr"), "{error}");
        }
    }
}
