//! What is served, and within which limits.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use wardrobe_batch::JobRunner;
use wardrobe_engine::Engine;
use wardrobe_grammar::Compiler;
use wardrobe_text::{ChatTemplate, Tokenizer};

use crate::cors::Cors;
use crate::error::ServerError;

/// The model behind the endpoint. End-of-sequence ids, context length and limits on single requests are the engine's.
pub struct ServedModel {
    /// The engine; the server shuts it down when it drains.
    pub engine: Engine,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// Compiles what answers are held to, for the model's vocabulary.
    pub compiler: Arc<Compiler>,
    /// The model's chat template. Without one, chat requests are refused.
    pub chat_template: Option<Arc<ChatTemplate>>,
    /// The name under which clients ask for the base model.
    pub model_id: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// What the model was loaded from, shown as `root` on its card; `None` shows the name.
    pub root: Option<String>,
    /// When it was loaded.
    pub created: SystemTime,
    /// Files, fine-tuning jobs, already started, and batches, which the server starts. Without it their routes are
    /// refused. The server shuts it down when it drains.
    pub fine_tuning: Option<Arc<JobRunner>>,
}

/// Settings of a [`crate::Server`]. `Default` is right for one machine without a proxy.
#[derive(Clone)]
pub struct ServerConfig {
    /// Keys that clients send as `Authorization: Bearer …`; none means that everybody may ask.
    pub api_keys: Vec<String>,
    /// Whether holders of different keys share no cached prefixes, so that none can time another's prompts.
    pub isolate_keys: bool,
    /// The largest request body.
    pub body_limit_bytes: usize,
    /// Bodies held at once, over all requests, until they are tokenized; more get 429. At least `body_limit_bytes`.
    pub total_body_bytes: usize,
    /// The folder from which adapters may be loaded at run time. `None` refuses such loads. Only adapters that can be
    /// loaded from here can be unloaded by clients.
    pub adapter_root: Option<PathBuf>,
    /// How long one request may take from its first byte to its last token. `None` is without limit.
    pub request_timeout: Option<Duration>,
    /// How long a client may take to send its header, and then its body.
    pub read_timeout: Duration,
    /// How long a client may leave an answer unread before its connection is closed.
    pub write_timeout: Duration,
    /// Open connections; more wait to be accepted.
    pub max_connections: usize,
    /// Generation requests that are open at once, over all states; more get 429.
    pub max_concurrent_requests: usize,
    /// Tokenize and detokenize requests that are open at once; more get 429.
    pub max_concurrent_tokenizations: usize,
    /// Files that arrive at once; more get 429.
    pub max_concurrent_uploads: usize,
    /// Prompts in one completions request.
    pub max_prompts: usize,
    /// Time without an event after which a stream gets a comment, so that proxies keep it open.
    pub keep_alive_interval: Duration,
    /// How long `/ready` says 503 before connections are refused, when the server stops.
    pub drain_delay: Duration,
    /// How long requests that run may take to finish, when the server stops.
    pub drain_limit: Duration,
    /// Whether a request may bring its own chat template.
    pub allow_request_chat_template: bool,
    /// Text up to this length is tokenized where it arrives; longer text on another thread.
    pub inline_text_bytes: usize,
    /// Threads that tokenize and render long text at once.
    pub max_text_threads: usize,
    /// Origins whose web pages may call the server (`https://app.example`), or `*`. None by default.
    pub cors_allow_origins: Vec<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            isolate_keys: true,
            body_limit_bytes: 8 << 20,
            total_body_bytes: 64 << 20,
            adapter_root: None,
            request_timeout: None,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            max_connections: 2048,
            max_concurrent_requests: 2048,
            max_concurrent_tokenizations: 64,
            max_concurrent_uploads: 8,
            max_prompts: 1024,
            keep_alive_interval: Duration::from_secs(15),
            drain_delay: Duration::ZERO,
            drain_limit: Duration::from_secs(30),
            allow_request_chat_template: false,
            inline_text_bytes: 4096,
            max_text_threads: 1,
            cors_allow_origins: Vec::new(),
        }
    }
}

impl ServerConfig {
    /// Checks every field against its range, as [`crate::Server::new`] does.
    ///
    /// # Errors
    /// [`ServerError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), ServerError> {
        let bad = |field, reason: &str| Err(ServerError::Config { field, reason: reason.to_owned() });
        if self.api_keys.iter().any(|key| key.trim().is_empty()) {
            return bad("api_keys", "has an empty key");
        }
        if self.api_keys.iter().any(|key| key.bytes().any(|byte| !(0x21..=0x7e).contains(&byte))) {
            return bad("api_keys", "has a key with characters that no header can carry");
        }
        for (field, value) in [
            ("body_limit_bytes", self.body_limit_bytes),
            ("max_connections", self.max_connections),
            ("total_body_bytes", self.total_body_bytes),
            ("max_concurrent_requests", self.max_concurrent_requests),
            ("max_concurrent_tokenizations", self.max_concurrent_tokenizations),
            ("max_concurrent_uploads", self.max_concurrent_uploads),
            ("max_prompts", self.max_prompts),
            ("max_text_threads", self.max_text_threads),
        ] {
            if value == 0 || value > u32::MAX as usize {
                return bad(field, "is 0 or too large");
            }
        }
        if self.total_body_bytes < self.body_limit_bytes {
            return bad("total_body_bytes", "is less than one body may have");
        }
        if Cors::new(&self.cors_allow_origins).is_none() {
            return bad("cors_allow_origins", "has an origin that is no header value");
        }
        for (field, value) in [
            ("read_timeout", self.read_timeout),
            ("write_timeout", self.write_timeout),
            ("keep_alive_interval", self.keep_alive_interval),
            ("request_timeout", self.request_timeout.unwrap_or(Duration::MAX)),
        ] {
            if value < Duration::from_millis(1) {
                return bad(field, "is below one millisecond");
            }
        }
        Ok(())
    }
}
