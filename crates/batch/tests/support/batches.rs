//! A folder with batches, and an endpoint that does what the names of requests say.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wardrobe_batch::simulation::SimulatedFineTuner;
use wardrobe_batch::{
    Batch, BatchAnswer, BatchEndpoint, BatchReply, BatchRequest, BatchRoute, BatchSpec, Clock,
    CompletionWindow, FilePurpose, Interrupt, JobRunner, NewFile, RunnerConfig,
};

/// Answers by the first word of a request's name: `refused`, `busy`, `gate` (until [`Endpoint::open`] or it is not wanted), `panics`; others
/// are answered with their body.
#[derive(Default)]
pub struct Endpoint {
    /// How long an answer takes.
    pub delay: Duration,
    /// Every request as it was asked.
    pub asked: Mutex<Vec<String>>,
    pub open: AtomicBool,
    /// Keeps those waiting who ask for a model.
    pub hold_checks: AtomicBool,
    pub num_checks: AtomicUsize,
    pub at_once: AtomicUsize,
    pub most_at_once: AtomicUsize,
    pub tries: Mutex<BTreeMap<String, u32>>,
}

impl BatchEndpoint for Endpoint {
    fn has_model(&self, name: &str) -> bool {
        self.num_checks.fetch_add(1, Ordering::SeqCst);
        while self.hold_checks.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        name == "base"
    }

    fn answer(&self, batch: &str, request: &BatchRequest, interrupt: &Interrupt<'_>) -> BatchReply {
        self.asked.lock().unwrap().push(request.custom_id.clone());
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(self.delay);
        let reply = self.reply(batch, request, interrupt);
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        reply
    }
}

impl Endpoint {
    fn reply(&self, batch: &str, request: &BatchRequest, interrupt: &Interrupt<'_>) -> BatchReply {
        let answered = |status: u16, body: Value| {
            BatchReply::Answered(BatchAnswer {
                status,
                request_id: format!("{batch}/{}", request.custom_id),
                body,
            })
        };
        match request.custom_id.split('-').next().unwrap() {
            "refused" => answered(400, json!({"error": {"message": "no", "code": null}})),
            "busy" => {
                let mut tries = self.tries.lock().unwrap();
                let tried = tries.entry(request.custom_id.clone()).or_default();
                *tried += 1;
                if *tried < 4 {
                    return BatchReply::Busy(Some(Duration::from_millis(1)));
                }
                answered(200, json!({"echo": request.body}))
            }
            "gate" => loop {
                if self.open.load(Ordering::SeqCst) {
                    break answered(200, json!({"echo": request.body}));
                }
                if interrupt() {
                    break BatchReply::Interrupted;
                }
                std::thread::sleep(Duration::from_millis(1));
            },
            "panics" => std::panic::resume_unwind(Box::new("the endpoint panics")),
            _ => answered(
                200,
                json!({"echo": request.body, "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
            ),
        }
    }
}

/// A line of an input file.
pub fn line(name: &str) -> String {
    let body = json!({"model": "base", "prompt": name, "b": 1, "a": 2.5});
    json!({"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}).to_string() + "\n"
}

pub fn lines<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| line(name.as_ref())).collect()
}

pub fn upload(runner: &JobRunner, text: &str, purpose: FilePurpose) -> String {
    let new = NewFile { id: None, file_name: "input.jsonl".to_owned(), purpose, sha256: None };
    let mut upload = runner.begin_upload(new).unwrap();
    upload.write(text.as_bytes()).unwrap();
    upload.finish().unwrap().id
}

pub fn spec(input_file: &str) -> BatchSpec {
    BatchSpec {
        input_file: input_file.to_owned(),
        route: BatchRoute::Completions,
        window: CompletionWindow::Day,
        metadata: Some([("for".to_owned(), "a test".to_owned())].into()),
    }
}

pub fn create(runner: &JobRunner, text: &str) -> String {
    runner.create_batch(&spec(&upload(runner, text, FilePurpose::Batch))).unwrap().id
}

/// Lines of a file by the name of their request; fails if one is there twice.
pub fn by_name(runner: &JobRunner, file: &Option<String>) -> BTreeMap<String, Value> {
    let Some(id) = file else { return BTreeMap::new() };
    let (stored, _) = runner.open_file(id).unwrap();
    assert_eq!(stored.purpose, FilePurpose::BatchOutput);
    let text = std::io::read_to_string(runner.open_file(id).unwrap().1).unwrap();
    assert!(text.ends_with('\n'));
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let name = value["custom_id"].as_str().unwrap().to_owned();
        assert!(found.insert(name, value).is_none(), "{line}");
    }
    found
}

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub now_ms: Arc<AtomicI64>,
}

impl Bench {
    pub fn new() -> Self {
        let now_ms = Arc::new(AtomicI64::new(1_700_000_000_000));
        Self { folder: tempfile::tempdir().unwrap(), now_ms }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("jobs")
    }

    pub fn open(&self, change: impl FnOnce(&mut RunnerConfig)) -> JobRunner {
        let mut config = config(&self.root());
        let now_ms = self.now_ms.clone();
        config.batches.clock = Clock::new(move || now_ms.load(Ordering::SeqCst));
        change(&mut config);
        open(config)
    }

    pub fn start(&self, endpoint: &Arc<Endpoint>) -> JobRunner {
        let runner = self.open(|_| {});
        runner.start_batches(endpoint.clone()).unwrap();
        runner
    }

    pub fn wait(&self, runner: &JobRunner, id: &str) -> Batch {
        wait_for(runner, id, |batch| batch.status.has_ended())
    }
}

pub fn config(root: &Path) -> RunnerConfig {
    let mut config = RunnerConfig::new(root);
    config.batches.requests_at_once = 4;
    config
}

pub fn open(config: RunnerConfig) -> JobRunner {
    JobRunner::open(config, Arc::new(SimulatedFineTuner::new("base", Duration::from_millis(1)))).unwrap()
}

pub fn wait_for(runner: &JobRunner, id: &str, what: impl Fn(&Batch) -> bool) -> Batch {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let batch = runner.batch(id).unwrap();
        if what(&batch) {
            return batch;
        }
        assert!(Instant::now() < deadline, "{batch:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
