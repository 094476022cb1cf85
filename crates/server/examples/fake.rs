//! Serves a model that computes nothing, for trying clients: `fake [ADDRESS] [ADAPTER_ROOT]
//! [MAX_CONCURRENT_REQUESTS] [JOB_FOLDER]`.
//!
//! Every answer counts through the alphabet. Folders of the adapter root that hold a file `letter` are loaded as
//! adapters under their names; their answers begin with that letter. `WARDROBE_API_KEY` sets a key. With a folder for jobs it
//! fine-tunes, which computes nothing either: see `wardrobe_batch::simulation`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wardrobe_batch::{JobRunner, RunnerConfig};
use wardrobe_engine::{AdapterSource, LoadOptions};
use wardrobe_server::{Server, ServerConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8000".to_owned());
    let adapter_root = arguments.next().map(PathBuf::from);
    let behaviour = support::Behaviour {
        step: Duration::from_millis(1),
        num_blocks: 4096,
        max_context_tokens: 8192,
        fail_at: None,
    };
    let engine = support::engine(behaviour, |_| {});
    if let Some(root) = &adapter_root {
        for entry in std::fs::read_dir(root)? {
            let path = entry?.path().canonicalize()?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            engine.load_adapter(&name, AdapterSource::Path(path), LoadOptions::default())?;
        }
    }
    let mut config = ServerConfig { adapter_root, ..ServerConfig::default() };
    config.api_keys.extend(std::env::var("WARDROBE_API_KEY"));
    if let Some(max) = arguments.next() {
        config.max_concurrent_requests = max.parse()?;
    }
    let mut model = support::served(engine);
    if let Some(folder) = arguments.next() {
        let trainer = support::fine_tuner(&model.engine, Duration::from_millis(20));
        let runner = JobRunner::open(RunnerConfig::new(folder), Arc::new(trainer))?;
        runner.start()?;
        model.fine_tuning = Some(Arc::new(runner));
    }
    let server = Server::new(model, config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(&address).await?;
        println!("http://{}", listener.local_addr()?);
        server.serve(listener, std::future::pending()).await?;
        Ok(())
    })
}
