//! A hub on the loopback interface: the paths of the Hugging Face hub over a few files in memory, a storage host of
//! another origin that large files are redirected to, and a hook to misbehave in any way a test wants.
// Each test binary uses its part; and clippy knows test functions, but not the helpers they call.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use wardrobe_hub::{Cache, HubError, ModelRef, Progress, PullOptions, Token, pull};

pub const COMMIT: &str = "1111111111111111111111111111111111111111";
pub const TOKEN: &str = "hf_s3cret";

#[derive(Debug, Clone)]
pub struct Request {
    /// "hub" or "storage".
    pub host: &'static str,
    /// With the query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte asked for.
    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is closed after this many bytes of the body.
    pub cut_after_bytes: Option<usize>,
    /// Sent in place of the true length.
    pub content_length: Option<u64>,
    /// Sent in chunks, without a length.
    pub chunked: bool,
    /// Silence before the last byte of the body.
    pub stall: Option<Duration>,
    /// A pause after each 16 KiB of the body.
    pub pace: Option<Duration>,
}

impl Response {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Response + Send + Sync;
type Hook = Box<dyn Fn(&Request, Response) -> Response + Send + Sync>;

/// A tiny HTTP/1.1 server: one request a connection.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn start(listener: TcpListener, host: &'static str, handler: Arc<Handler>) -> Self {
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || {
                    // A client that goes away is part of the tests.
                    let _ = stream.and_then(|stream| serve(stream, host, &*handler));
                });
            }
        });
        Self { address, stop }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: TcpStream, host: &'static str, handler: &Handler) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let mut lines = BufReader::new((&stream).take(16 * 1024)).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let response = handler(&Request { host, path, headers });
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", response.status);
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if response.chunked {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    } else {
        let length = response.content_length.unwrap_or(response.body.len() as u64);
        head.push_str(&format!("Content-Length: {length}\r\n\r\n"));
    }
    let mut out = &stream;
    out.write_all(head.as_bytes())?;
    let body = &response.body[..response.cut_after_bytes.unwrap_or(usize::MAX).min(response.body.len())];
    let (body, last) =
        body.split_at(if response.stall.is_some() { body.len().saturating_sub(1) } else { body.len() });
    for piece in body.chunks(16 * 1024) {
        write_piece(out, piece, response.chunked)?;
        std::thread::sleep(response.pace.unwrap_or_default());
    }
    if let Some(stall) = response.stall {
        std::thread::sleep(stall);
        write_piece(out, last, response.chunked)?;
    }
    if response.chunked && response.cut_after_bytes.is_none() {
        out.write_all(b"0\r\n\r\n")?;
    }
    out.flush()
}

fn write_piece(mut out: &TcpStream, piece: &[u8], chunked: bool) -> std::io::Result<()> {
    if chunked {
        out.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
    }
    out.write_all(piece)?;
    if chunked { out.write_all(b"\r\n") } else { Ok(()) }
}

#[derive(Clone)]
pub struct Repo {
    pub commit: String,
    /// Content, and whether it is in large-file storage.
    pub files: BTreeMap<String, (Vec<u8>, bool)>,
    /// Whether the listing has sizes and checksums.
    pub blobs: bool,
}

/// The hub `o/n`, its storage host, and a client's side: a cache and options that know both.
pub struct Hub {
    pub repo: Arc<Mutex<Repo>>,
    pub requests: Arc<Mutex<Vec<Request>>>,
    hook: Arc<Mutex<Option<Hook>>>,
    _servers: [Server; 2],
    pub endpoint: String,
    pub folder: tempfile::TempDir,
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that no compression or accident repeats.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Hub {
    /// A repository with a safetensors model, a GGUF file and a pickle.
    pub fn start() -> Self {
        let file = |content: &[u8], large| (content.to_vec(), large);
        let mut gguf = b"GGUF".to_vec();
        gguf.extend(noise(200_000));
        let files = BTreeMap::from([
            ("config.json".to_owned(), file(b"{\"model_type\":\"llama\"}", false)),
            ("tokenizer.json".to_owned(), file(b"{}", false)),
            ("README.md".to_owned(), file(b"# n", false)),
            ("pytorch_model.bin".to_owned(), file(b"pickle", true)),
            ("model.safetensors".to_owned(), file(&noise(300_000), true)),
            ("q/m.Q4_1.gguf".to_owned(), (gguf, true)),
        ]);
        let repo = Arc::new(Mutex::new(Repo { commit: COMMIT.to_owned(), files, blobs: true }));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let hook: Arc<Mutex<Option<Hook>>> = Arc::new(Mutex::new(None));
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let storage = format!("http://{}", listeners[1].local_addr().unwrap());
        let handler: Arc<Handler> = {
            let (repo, requests, hook) = (Arc::clone(&repo), Arc::clone(&requests), Arc::clone(&hook));
            Arc::new(move |request: &Request| {
                requests.lock().unwrap().push(request.clone());
                let response = answer(&repo.lock().unwrap(), request, &storage);
                match &*hook.lock().unwrap() {
                    Some(hook) => hook(request, response),
                    None => response,
                }
            })
        };
        let [hub, storage] = listeners;
        let servers =
            [Server::start(hub, "hub", Arc::clone(&handler)), Server::start(storage, "storage", handler)];
        let endpoint = format!("http://{}", servers[0].address);
        Self { repo, requests, hook, _servers: servers, endpoint, folder: tempfile::tempdir().unwrap() }
    }

    /// Changes what the servers answer.
    pub fn hook(&self, hook: impl Fn(&Request, Response) -> Response + Send + Sync + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub fn unhook(&self) {
        *self.hook.lock().unwrap() = None;
    }

    pub fn cache(&self) -> Cache {
        Cache::open(self.folder.path().join("cache"))
    }

    pub fn options(&self) -> PullOptions {
        let mut options = PullOptions::default();
        options.cache = Some(self.cache());
        options.hub.endpoint = Some(self.endpoint.clone());
        options.hub.token = Some(Token::new(TOKEN).unwrap());
        options.hub.use_environment = false;
        options.hub.retry.base_delay = Duration::from_millis(1);
        options.hub.retry.max_retries = 2;
        options.hub.retry.read_timeout = Duration::from_secs(10);
        options.pip.commands = Vec::new();
        options
    }

    pub fn pull(&self, text: &str) -> Result<PathBuf, HubError> {
        pull(&ModelRef::parse(text).unwrap(), &self.options(), &())
    }

    pub fn content(&self, name: &str) -> Vec<u8> {
        self.repo.lock().unwrap().files[name].0.clone()
    }

    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// The files of unfinished pulls.
    pub fn parts(&self) -> Vec<PathBuf> {
        files_below(&self.cache().root().join("partial"))
    }
}

fn answer(repo: &Repo, request: &Request, storage: &str) -> Response {
    let path = request.path.split('?').next().unwrap_or_default();
    // A data set of the same name has the same files, under other addresses.
    let as_model;
    let path = match (path.strip_prefix("/api/datasets/"), path.strip_prefix("/datasets/")) {
        (Some(rest), _) => {
            as_model = format!("/api/models/{rest}");
            &as_model
        }
        (None, Some(rest)) => {
            as_model = format!("/{rest}");
            &as_model
        }
        _ => path,
    };
    let missing = |code: &str| Response::new(404, "").with("X-Error-Code", code);
    if let Some(revision) = path.strip_prefix("/api/models/o/n/revision/") {
        if !["main", "v1", "refs%2Fpr%2F1", &repo.commit].contains(&revision) {
            return missing("RevisionNotFound");
        }
        let files = repo.files.iter().map(|(name, (content, large))| {
            let name = serde_json::to_string(name).unwrap();
            match (repo.blobs, large) {
                (true, true) => format!(
                    r#"{{"rfilename":{name},"size":{0},"blobId":"x","lfs":{{"sha256":"{1}","size":{0},"pointerSize":135}}}}"#,
                    content.len(),
                    sha256_hex(content)
                ),
                (true, false) => format!(r#"{{"rfilename":{name},"size":{},"blobId":"x"}}"#, content.len()),
                (false, _) => format!(r#"{{"rfilename":{name}}}"#),
            }
        });
        let files = files.collect::<Vec<_>>().join(",");
        return Response::new(200, format!(r#"{{"id":"o/n","sha":"{}","siblings":[{files}]}}"#, repo.commit));
    }
    if let Some(name) = path.strip_prefix("/storage/") {
        let Some((content, _)) = repo.files.get(name) else { return missing("NoSuchKey") };
        return ranged(request, content).with("ETag", "\"d41d8cd98f00b204e9800998ecf8427e-1\"");
    }
    let Some((revision, name)) = path.strip_prefix("/o/n/resolve/").and_then(|rest| rest.split_once('/'))
    else {
        return missing("RepoNotFound");
    };
    let Some((content, large)) = repo.files.get(name).filter(|_| revision == repo.commit) else {
        return missing("EntryNotFound");
    };
    if *large {
        Response::new(302, "moved")
            .with("Location", format!("{storage}/storage/{name}?X-Signature=s1gned"))
            .with("X-Linked-Size", content.len())
            .with("X-Linked-ETag", format!("\"{}\"", sha256_hex(content)))
            .with("X-Repo-Commit", &repo.commit)
    } else {
        ranged(request, content)
            .with("ETag", "\"b6f6c65ae3e1cbb1f1d1b9a6c5d5f6a6c3b5a1d0\"")
            .with("X-Repo-Commit", &repo.commit)
    }
}

fn ranged(request: &Request, content: &[u8]) -> Response {
    match request.range_start() {
        Some(start) if start >= content.len() => Response::new(416, ""),
        Some(start) => Response::new(206, &content[start..])
            .with("Content-Range", format!("bytes {start}-{}/{}", content.len() - 1, content.len())),
        None => Response::new(200, content),
    }
}

/// All files below a folder, sorted.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// The error of the only source that was tried.
pub fn cause(result: Result<PathBuf, HubError>) -> HubError {
    match result.unwrap_err() {
        HubError::NoSource { mut attempts, .. } => attempts.pop().unwrap().error.unwrap(),
        error => error,
    }
}

/// Keeps what it is told.
#[derive(Default)]
pub struct Told {
    pub totals: Mutex<Vec<Option<u64>>>,
    pub bytes: Mutex<i64>,
    pub messages: Mutex<Vec<String>>,
    pub finished: Mutex<usize>,
    /// Cancel once so many bytes are in place.
    pub cancel_at_bytes: Option<i64>,
}

impl Progress for Told {
    fn started(&self, _what: &str, total_bytes: Option<u64>) {
        self.totals.lock().unwrap().push(total_bytes);
        *self.bytes.lock().unwrap() = 0;
    }
    fn advanced(&self, bytes: u64) {
        *self.bytes.lock().unwrap() += bytes as i64;
    }
    fn rewound(&self, bytes: u64) {
        *self.bytes.lock().unwrap() -= bytes as i64;
    }
    fn message(&self, text: &str) {
        self.messages.lock().unwrap().push(text.to_owned());
    }
    fn finished(&self) {
        *self.finished.lock().unwrap() += 1;
    }
    fn cancelled(&self) -> bool {
        self.cancel_at_bytes.is_some_and(|limit| *self.bytes.lock().unwrap() >= limit)
    }
}
