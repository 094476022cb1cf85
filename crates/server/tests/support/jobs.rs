//! A server that fine-tunes, and forms with files.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use tempfile::TempDir;
use wardrobe_batch::{JobRunner, RunnerConfig};
use wardrobe_engine::Engine;
use wardrobe_server::{Server, ServerConfig};

use super::support::{Behaviour, engine, fine_tuner, served};
use super::support_http::{Answer, Bench};

pub const RECORDS: &str =
    "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"c\", \"completion\": \"d\"}\n";

pub struct JobBench {
    pub bench: Bench,
    pub runner: Arc<JobRunner>,
    pub folder: TempDir,
}

impl JobBench {
    pub fn new(config: ServerConfig) -> Self {
        Self::with(config, |_| {})
    }

    pub fn with(config: ServerConfig, change: impl FnOnce(&mut RunnerConfig)) -> Self {
        Self::over(engine(Behaviour::default(), |_| {}), config, change)
    }

    pub fn over(engine: Engine, config: ServerConfig, change: impl FnOnce(&mut RunnerConfig)) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), engine, config, change)
    }

    pub fn in_folder(
        folder: TempDir,
        engine: Engine,
        config: ServerConfig,
        change: impl FnOnce(&mut RunnerConfig),
    ) -> Self {
        let mut settings = RunnerConfig::new(folder.path());
        change(&mut settings);
        let trainer = fine_tuner(&engine, Duration::from_millis(2));
        let runner = Arc::new(JobRunner::open(settings, Arc::new(trainer)).unwrap());
        runner.start().unwrap();
        let mut model = served(engine.clone());
        model.fine_tuning = Some(runner.clone());
        let server = Server::new(model, config).unwrap();
        server.start_batches(tokio::runtime::Handle::current()).unwrap();
        let bench = Bench { router: server.router(), engine, server };
        Self { bench, runner, folder }
    }
}

/// A form with these fields, and a file if it has a name.
pub fn form(fields: &[(&str, &str)], file: Option<(&str, &str)>) -> Request<Body> {
    let mut body = String::new();
    for (name, value) in fields {
        body += &format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    }
    if let Some((name, content)) = file {
        body += &format!(
            "--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{content}\r\n"
        );
    }
    body += "--XX--\r\n";
    let request = Request::post("/v1/files").header(header::HOST, "wardrobe.test");
    request.header(header::CONTENT_TYPE, "multipart/form-data; boundary=XX").body(Body::from(body)).unwrap()
}

pub async fn upload(bench: &Bench, name: &str, content: &str) -> Answer {
    bench.send(form(&[("purpose", "fine-tune")], Some((name, content)))).await
}
