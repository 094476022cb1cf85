//! Requests to the hub through the `hf-hub` client.
//!
//! `hf-hub` knows the endpoint and the paths and sends the headers. Redirects are followed here, hop by hop, because the
//! hub names commit, size and checksum on the redirect itself, and because the token must stay behind when a redirect
//! leaves the hub's origin (scheme, host and port).

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Repo, RepoType};
use serde::{Deserialize, Serialize};
use ureq::http::header::{self, HeaderMap};
use ureq::http::uri::{Scheme, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

use super::address::{checked_endpoint, is_loopback, percent_encoded, resolve, same_origin, shown_url};
use super::{RetryPolicy, Token};
use crate::error::HubError;
use crate::names::is_hex;
use crate::progress::Progress;
use crate::reference::RepoRef;

/// A listing of ten thousand files takes a few MB.
const MAX_LISTING_BYTES: u64 = 32 * 1024 * 1024;
const MAX_REDIRECTS: usize = 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const LISTING_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a wait looks whether it is cancelled.
const WAIT_SLICE: Duration = Duration::from_millis(50);

/// What holds for one pull.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) endpoint: Option<String>,
    pub(super) token: Option<Token>,
    /// PEM file with the certificates to trust in place of the built-in ones.
    pub(super) certificates: Option<PathBuf>,
    pub(super) use_proxy: bool,
    pub(super) retry: RetryPolicy,
}

/// One repository at one revision.
pub(super) struct HubClient {
    api: Api,
    repo: ApiRepo,
    name: String,
    repo_id: String,
    kind: RepoType,
    has_token: bool,
    tls: Option<TlsConfig>,
    use_proxy: bool,
    retry: RetryPolicy,
}

/// A file of the repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ListedFile {
    pub(super) path: String,
    pub(super) bytes: Option<u64>,
    /// Lower-case hex; the hub names it for files in large-file storage.
    pub(super) sha256: Option<String>,
}

/// The repository at the revision asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<ListedFile>,
}

/// A response that is not a redirect.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The address without user, password and query.
    pub(super) url: String,
    /// Headers of the last response.
    pub(super) headers: HeaderMap,
    /// Headers of the hub's own response, which may have been a redirect to a storage host.
    pub(super) hub_headers: HeaderMap,
    pub(super) body: ureq::Body,
}

/// An error and whether a repetition can help.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: HubError,
    pub(super) retry: Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    Never,
    /// No connection could be made: pointless at first contact, worth it in the middle of a download.
    Reconnect,
    Yes,
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Failure { error, retry: Retry::Never }
    }
}

#[derive(Deserialize)]
struct RawListing {
    sha: String,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    size: Option<u64>,
    #[serde(alias = "oid")]
    sha256: Option<String>,
}

impl HubClient {
    pub(super) fn new(settings: Settings, repo: &RepoRef, kind: RepoType) -> Result<Self, HubError> {
        let tls = settings.certificates.as_deref().map(trusted).transpose()?;
        // hf-hub looks for a token file beside its own cache. The settings have found the token already, so it is given a
        // path that no system can open.
        let mut builder = ApiBuilder::from_cache(hf_hub::Cache::new(PathBuf::from("\0/hub")))
            .with_progress(false)
            .with_user_agent("wardrobe", env!("CARGO_PKG_VERSION"))
            .with_token(settings.token.as_ref().map(|token| token.reveal().to_owned()));
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(checked_endpoint(endpoint)?);
        }
        let api = builder.build().map_err(|error| HubError::BadSetting {
            setting: "the hub client".to_owned(),
            reason: error.to_string(),
        })?;
        let handle = api.repo(Repo::with_revision(repo.repo().to_owned(), kind, repo.revision().to_owned()));
        let shown =
            if matches!(kind, RepoType::Dataset) { format!("datasets/{repo}") } else { repo.to_string() };
        Ok(Self {
            repo: handle,
            api,
            name: shown,
            repo_id: repo.repo().to_owned(),
            kind,
            has_token: settings.token.is_some(),
            tls,
            use_proxy: settings.use_proxy,
            retry: settings.retry,
        })
    }

    /// The same repository at exactly this commit, so that all files are of one state.
    pub(super) fn at_commit(&self, commit: &str) -> Self {
        let handle = Repo::with_revision(self.repo_id.clone(), self.kind, commit.to_owned());
        Self {
            repo: self.api.repo(handle),
            api: self.api.clone(),
            name: self.name.clone(),
            repo_id: self.repo_id.clone(),
            kind: self.kind,
            has_token: self.has_token,
            tls: self.tls.clone(),
            use_proxy: self.use_proxy,
            retry: self.retry,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn retry(&self) -> RetryPolicy {
        self.retry
    }

    /// The address of a file.
    pub(super) fn file_url(&self, path: &str) -> String {
        self.repo.url(&percent_encoded(path))
    }

    /// The commit behind the revision, and its files with sizes and checksums.
    pub(super) fn list(&self, progress: &dyn Progress) -> Result<Listing, HubError> {
        let mut backoff = Backoff::new(self.retry);
        loop {
            match self.try_list() {
                Ok(listing) => return Ok(listing),
                Err(failure) if failure.retry == Retry::Yes => backoff.wait(failure, progress)?,
                Err(failure) => return Err(failure.error),
            }
        }
    }

    fn try_list(&self) -> Result<Listing, Failure> {
        let request = self.repo.info_request();
        let url = request.uri_ref().map(Uri::to_string).unwrap_or_default();
        let mut answer = self.get(&format!("{url}?blobs=true"), None, Some(LISTING_TIMEOUT))?;
        if answer.status != 200 {
            return Err(self.refused(&answer, None));
        }
        let unusable = |reason: String| HubError::BadAnswer { url: answer.url.clone(), reason };
        let body =
            answer.body.with_config().limit(MAX_LISTING_BYTES).read_to_vec().map_err(
                |error| match error {
                    ureq::Error::BodyExceedsLimit(_) => Failure::from(HubError::TooLarge {
                        what: format!("the list of files of {}", self.name),
                        limit_bytes: MAX_LISTING_BYTES,
                    }),
                    error => transport(&answer.url, error),
                },
            )?;
        let raw: RawListing =
            serde_json::from_slice(&body).map_err(|e| unusable(format!("not a list of files: {e}")))?;
        if !is_hex(&raw.sha, 40) && !is_hex(&raw.sha, 64) {
            return Err(unusable("it names no commit".to_owned()).into());
        }
        let climbs = |path: &str| {
            path.starts_with(['/', '\\'])
                || path.split(['/', '\\']).any(|part| part == "..")
                || path.contains('\0')
        };
        if let Some(file) = raw.siblings.iter().find(|file| climbs(&file.rfilename)) {
            let name: String = file.rfilename.chars().take(200).collect();
            return Err(unusable(format!("it lists a file outside the repository: {name:?}")).into());
        }
        let files = raw.siblings.into_iter().map(|file| {
            let lfs = file.lfs.as_ref();
            let sha256 =
                lfs.and_then(|lfs| lfs.sha256.as_deref()).map(|text| text.trim_start_matches("sha256:"));
            ListedFile {
                bytes: file.size.or_else(|| lfs.and_then(|lfs| lfs.size)),
                sha256: sha256.filter(|text| is_hex(text, 64)).map(str::to_ascii_lowercase),
                path: file.rfilename,
            }
        });
        Ok(Listing { commit: raw.sha.to_ascii_lowercase(), files: files.collect() })
    }

    /// Sends a GET and follows redirects. `from_byte` asks for the rest of a file from there.
    pub(super) fn get(
        &self,
        url: &str,
        from_byte: Option<u64>,
        limit: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let unusable = |url: &str, reason: &str| {
            Failure::from(HubError::BadAnswer { url: shown_url(url), reason: reason.to_owned() })
        };
        let start: Uri = url.parse().map_err(|_| unusable(url, "it is not an address"))?;
        let mut current = start.clone();
        let mut hub_headers = HeaderMap::new();
        for _ in 0..=MAX_REDIRECTS {
            let shown = shown_url(&current.to_string());
            let at_hub = same_origin(&start, &current);
            let mut request =
                self.repo.info_request().uri(current.clone()).header(header::ACCEPT_ENCODING, "identity");
            if let Some(from) = from_byte {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            if !at_hub && let Some(headers) = request.headers_mut() {
                headers.remove(header::AUTHORIZATION);
            }
            let mut config = request
                .config()
                .max_redirects(0)
                .http_status_as_error(false)
                .timeout_global(limit)
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(self.retry.read_timeout.saturating_mul(2)))
                .timeout_per_read(Some(self.retry.read_timeout))
                .timeout_per_write(Some(self.retry.read_timeout));
            if !self.use_proxy || is_loopback(&current) {
                config = config.proxy(None);
            }
            if let Some(tls) = &self.tls {
                config = config.tls_config(tls.clone());
            }
            let response = config.build().call().map_err(|error| transport(&shown, error))?;
            let (parts, body) = response.into_parts();
            if at_hub {
                for (name, value) in &parts.headers {
                    hub_headers.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
            if !matches!(parts.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                let (status, headers) = (parts.status.as_u16(), parts.headers);
                return Ok(Answer { status, url: shown, headers, hub_headers, body });
            }
            let target = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| resolve(&current, target));
            let next =
                next.ok_or_else(|| unusable(&shown, "it redirects to something that is not an address"))?;
            if current.scheme() == Some(&Scheme::HTTPS) && next.scheme() != Some(&Scheme::HTTPS) {
                return Err(unusable(&shown, "it redirects from https to http"));
            }
            current = next;
        }
        Err(unusable(url, "it redirects too often"))
    }

    /// The error for a status that is not success. `file` is what was asked for; `None` is the repository.
    pub(super) fn refused(&self, answer: &Answer, file: Option<&str>) -> Failure {
        let detail = detail(&answer.hub_headers);
        let what = match file {
            Some(file) => format!("{file} in {}", self.name),
            None => self.name.clone(),
        };
        let (error, retry) = match answer.status {
            status @ (401 | 403) => {
                let remedy = if self.has_token {
                    "the token may lack the right to read it; if the repository asks to accept its terms, do that on its page \
                     with the same account"
                } else {
                    "set HF_TOKEN to an access token of an account that may read it (and check the spelling: the hub \
                     answers the same for a repository that does not exist)"
                };
                let remedy = remedy.to_owned();
                (HubError::AccessDenied { repo: self.name.clone(), status, detail, remedy }, Retry::Never)
            }
            404 | 410 => (HubError::NotFound { what, detail }, Retry::Never),
            429 => (HubError::RateLimited { retry_after_s: retry_after_s(&answer.headers) }, Retry::Yes),
            status => {
                let retry = if status == 408 || status >= 500 { Retry::Yes } else { Retry::Never };
                (HubError::Status { url: answer.url.clone(), status, detail }, retry)
            }
        };
        Failure { error, retry }
    }
}

/// Counts failures without progress, and waits between them.
pub(super) struct Backoff {
    policy: RetryPolicy,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(policy: RetryPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// There was progress.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits before a repetition, or gives the error back if there were enough.
    pub(super) fn wait(&mut self, failure: Failure, progress: &dyn Progress) -> Result<(), HubError> {
        if self.failures >= self.policy.max_retries {
            return Err(failure.error);
        }
        let doubled =
            self.policy.base_delay.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        let mut delay = doubled.min(self.policy.max_delay);
        if let HubError::RateLimited { retry_after_s: Some(seconds) } = failure.error {
            let asked = Duration::from_secs(seconds);
            if asked > self.policy.max_delay {
                return Err(failure.error);
            }
            delay = asked;
        }
        self.failures += 1;
        progress.message(&format!(
            "{}; trying again in {} ms",
            failure.error.full_message(),
            delay.as_millis()
        ));
        tracing::debug!(error = %failure.error.full_message(), failures = self.failures, "a request to the hub is repeated");
        while !delay.is_zero() {
            if progress.cancelled() {
                return Err(HubError::Cancelled);
            }
            let slice = delay.min(WAIT_SLICE);
            std::thread::sleep(slice);
            delay = delay.saturating_sub(slice);
        }
        Ok(())
    }
}

impl fmt::Debug for HubClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not derived: the inner client's headers hold the token.
        f.debug_struct("HubClient").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The error of a request that got no answer.
pub(super) fn transport(url: &str, error: ureq::Error) -> Failure {
    let retry = match &error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Retry::Reconnect,
        ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Retry::Reconnect,
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => Retry::Reconnect,
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::Protocol(_) => Retry::Yes,
        _ => Retry::Never,
    };
    Failure { error: HubError::Transport { url: shown_url(url), source: Box::new(error) }, retry }
}

/// A number in a header.
pub(super) fn header_number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn retry_after_s(headers: &HeaderMap) -> Option<u64> {
    header_number(headers, header::RETRY_AFTER.as_str())
}

/// What the hub says about an error, made fit for one line of a terminal.
fn detail(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parts = [text("x-error-code"), text("x-error-message")];
    let joined = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
    joined.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn trusted(path: &Path) -> Result<TlsConfig, HubError> {
    let bad = |reason: String| HubError::BadSetting {
        setting: format!("the certificate file {} (SSL_CERT_FILE, REQUESTS_CA_BUNDLE)", path.display()),
        reason,
    };
    let pem = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| bad(e.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(bad("it holds no certificate in PEM form".to_owned()));
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::new_with_certs(&certificates)).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_files_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(trusted(&path).unwrap_err().to_string().contains("ca.pem"));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(trusted(&path).unwrap_err().to_string().contains("no certificate"));
        // The content need not be a valid certificate to be counted as one; rustls judges it when it connects.
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        trusted(&path).unwrap();
    }

    #[test]
    fn what_the_hub_says_is_cut_to_one_line() {
        let mut headers = HeaderMap::new();
        headers.insert("x-error-code", "GatedRepo".parse().unwrap());
        headers.insert("x-error-message", "x\t".repeat(5000).parse().unwrap());
        let text = detail(&headers);
        assert!(text.starts_with("GatedRepo, xx") && text.len() == 300);
        assert_eq!(detail(&HeaderMap::new()), "");
    }
}
