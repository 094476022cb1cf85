//! What all requests share.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wardrobe_batch::IdSource;
use wardrobe_engine::{Digest, Summary};

use crate::adapter_path::AdapterRoot;
use crate::admission::BodyBudget;
use crate::auth::ApiKeys;
use crate::config::{ServedModel, ServerConfig};
use crate::cors::Cors;
use crate::error::{ApiError, Result, ServerError};
use crate::metrics::Metrics;
use crate::offload::Offload;
use crate::tools::TemplateTools;
use crate::uploads::Uploads;

const MAX_ADAPTER_LOADS: usize = 2;
const MAX_JOB_CALLS: usize = 16;

/// What all requests share.
pub(crate) struct ServerState {
    pub model: ServedModel,
    pub config: ServerConfig,
    pub keys: ApiKeys,
    pub cors: Cors,
    pub adapter_root: Option<AdapterRoot>,
    pub ids: IdSource,
    pub metrics: Metrics,
    pub offload: Offload,
    /// Text of the tokens that templates ask for.
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    /// Adapters that are read at once: each holds its files in memory before limits on adapters count.
    pub adapter_loads: Arc<Semaphore>,
    /// Calls into the store of jobs at once: each has a thread while it waits for the disk.
    pub job_calls: Arc<Semaphore>,
    pub uploads: Uploads,
    /// How the model's own chat template has tools, once it was asked; and how it has calls of earlier turns where none are
    /// offered, if it is another template then.
    pub template_tools: OnceLock<Arc<TemplateTools>>,
    pub template_history: OnceLock<Arc<TemplateTools>>,
    base_fingerprint: String,
    open_requests: Arc<Semaphore>,
    open_tokenizations: Arc<Semaphore>,
    /// Bytes of bodies that are held.
    pub bodies: BodyBudget,
    draining: AtomicBool,
}

impl ServerState {
    pub fn new(model: ServedModel, config: ServerConfig) -> Result<Self, ServerError> {
        config.validate()?;
        let names: BTreeSet<&str> =
            std::iter::once(&model.model_id).chain(&model.aliases).map(String::as_str).collect();
        if names.iter().any(|name| name.trim().is_empty() || name.chars().any(char::is_control)) {
            let reason = "is empty or has control characters".to_owned();
            return Err(ServerError::Config { field: "model_id", reason });
        }
        if let Some(adapter) = model.engine.adapters().iter().find(|a| names.contains(a.name.as_str())) {
            let reason = format!("has {:?}, which is the name of a loaded adapter too", adapter.name);
            return Err(ServerError::Config { field: "model_id", reason });
        }
        let cors = Cors::new(&config.cors_allow_origins).ok_or_else(|| ServerError::Config {
            field: "cors_allow_origins",
            reason: "has an origin that is no header value".to_owned(),
        })?;
        let adapter_root = config.adapter_root.as_deref().map(AdapterRoot::new).transpose()?;
        let text = |id| model.tokenizer.token_str(id).map(std::borrow::Cow::into_owned);
        let digest = model.engine.limits().model_digest;
        Ok(Self {
            keys: ApiKeys::new(&config.api_keys),
            cors,
            adapter_root,
            ids: IdSource::new(),
            metrics: Metrics::new(model.engine.clone(), model.compiler.clone(), &model.model_id),
            offload: Offload::new(config.max_text_threads, config.inline_text_bytes),
            bos_token: model.tokenizer.bos().and_then(text),
            eos_token: model.tokenizer.eos().and_then(text),
            adapter_loads: Arc::new(Semaphore::new(MAX_ADAPTER_LOADS)),
            job_calls: Arc::new(Semaphore::new(MAX_JOB_CALLS)),
            uploads: Uploads::new(config.max_concurrent_uploads),
            template_tools: OnceLock::new(),
            template_history: OnceLock::new(),
            base_fingerprint: format!("fp_{}", short_digest(&digest)),
            open_requests: Arc::new(Semaphore::new(config.max_concurrent_requests)),
            open_tokenizations: Arc::new(Semaphore::new(config.max_concurrent_tokenizations)),
            bodies: BodyBudget::new(config.total_body_bytes),
            draining: AtomicBool::new(false),
            model,
            config,
        })
    }

    /// Whether a name means the base model.
    pub fn is_base_name(&self, name: &str) -> bool {
        name == self.model.model_id || self.model.aliases.iter().any(|alias| alias == name)
    }

    /// `system_fingerprint`: changes with whatever may change the answer to the same request and seed, and with nothing
    /// else: it is made of the contents of the model and the adapter and of the formats that they are held in.
    pub fn fingerprint(&self, summary: &Summary) -> String {
        match &summary.adapter_digest {
            None => self.base_fingerprint.clone(),
            Some(digest) => format!("{}-{}", self.base_fingerprint, short_digest(digest)),
        }
    }

    /// A place among the open generation requests.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit> {
        if self.is_draining() {
            return Err(ApiError::shutting_down());
        }
        place(&self.open_requests, self.config.max_concurrent_requests)
    }

    /// A place among the open tokenize and detokenize requests.
    pub fn admit_tokenization(&self) -> Result<OwnedSemaphorePermit> {
        place(&self.open_tokenizations, self.config.max_concurrent_tokenizations)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }
}

/// The first 48 bits in hexadecimal digits.
fn short_digest(digest: &Digest) -> String {
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn place(places: &Arc<Semaphore>, limit: usize) -> Result<OwnedSemaphorePermit> {
    places.clone().try_acquire_owned().map_err(|_| {
        ApiError::overloaded(format!("{limit} requests are open already"), Duration::from_secs(1))
    })
}

/// Seconds since 1970, as `created` has them.
pub(crate) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
