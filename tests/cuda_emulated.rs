//! An engine and an endpoint over the CUDA device, whose kernels run on the CPU: what a client sees of a card, and of one that is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "../crates/device-cuda/tests/support/mod.rs"]
mod emulated;
mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::tiny::TinyModel;
use wardrobe::{
    DType, DeviceSpec, Engine, EngineConfig, EngineOptions, Event, Finish, LoraOptions, Model, ModelOptions,
    Request, SamplingParams, SubmitError, TokenId,
};
use wardrobe_device::{Ctx, CtxConfig, Device, StepLimits};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};
use wardrobe_engine::model::{ModelExecutor, ModelExecutorConfig, PeftLoader};
use wardrobe_formats::ModelFiles;
use wardrobe_models::LoadOptions;
use wardrobe_server::{ServedModel, Server, ServerConfig};

/// A small model with heads of a length that the card's fast kernels take.
fn model() -> tempfile::TempDir {
    TinyModel { head_dim: 64, num_heads: 2, num_kv_heads: 1, ..TinyModel::default() }.write()
}

fn on_the_cpu(path: &Path) -> Model {
    Model::open(path, &ModelOptions { device: DeviceSpec::Cpu, ..ModelOptions::default() }).unwrap()
}

/// An engine on a card of 256 MiB.
fn engine(path: &Path, text: &Model) -> Option<(Engine, Arc<EmulatedDriver>)> {
    let driver = Arc::new(EmulatedDriver::new(emulated::kernels()?, 256 << 20));
    let device: Arc<dyn Device> =
        Arc::new(CudaDevice::over(driver.clone(), &CudaOptions::default()).unwrap());
    let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
    let mut ctx = Ctx::new(device.clone(), CtxConfig { arena_bytes: 0, step }).unwrap();
    let files = ModelFiles::open(path).unwrap();
    let load = LoadOptions { precision: Default::default(), progress: &|_, _, _| {} };
    let decoder = wardrobe_models::load(&mut ctx, &files, &load).unwrap();
    let config = ModelExecutorConfig {
        kv_bytes: 4 << 20,
        kv_dtype: DType::BF16,
        num_slots: 2,
        max_batch_tokens: 128,
        max_num_sequences: 8,
        max_context_tokens: 512,
    };
    let digest = *decoder.content_digest().as_bytes();
    let executor = ModelExecutor::new(device.clone(), decoder.clone(), digest, &config).unwrap();
    let loader = PeftLoader::new(device, decoder, LoraOptions::default());
    let codec = Arc::new(text.tokenizer().clone());
    let config = EngineConfig { max_num_sequences: 8, max_batch_tokens: 128, ..EngineConfig::default() };
    let engine = Engine::start(Box::new(executor), Arc::new(loader), codec, config).unwrap();
    Some((engine, driver))
}

fn request(max_tokens: usize) -> Request {
    let prompt: Vec<TokenId> = (0..20).map(|i| TokenId(i * 13 % 300)).collect();
    let request = Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(max_tokens);
    Request { ignore_eos: true, ..request }
}

#[test]
fn answers_are_the_same_alone_and_in_company() {
    let folder = model();
    let text = on_the_cpu(folder.path());
    let Some((engine, driver)) = engine(folder.path(), &text) else { return };
    let tokens = |engine: &Engine| engine.generate(request(40)).unwrap().choices[0].token_ids.clone();
    let first = tokens(&engine);
    assert_eq!(first.len(), 40);
    // Random weights leave no close race at the first token, so the CPU's choice is the card's.
    let cpu = text.engine(&EngineOptions { kv_bytes: Some(4 << 20), ..EngineOptions::default() }).unwrap();
    assert_eq!(tokens(&cpu)[0], first[0]);
    assert!(driver.num_graphs() > 0, "steps of generation are recorded");
    // The prompt's blocks are shared now, and what was recorded is replayed.
    assert_eq!(tokens(&engine), first);
}

/// The endpoint on a thread of its own; it ends when the result's sender is dropped.
fn serve(
    engine: Engine,
    text: &Model,
) -> (SocketAddr, tokio::sync::oneshot::Sender<()>, JoinHandle<std::io::Result<()>>) {
    let served = ServedModel {
        engine,
        tokenizer: text.tokenizer().clone(),
        compiler: text.compiler().clone(),
        chat_template: None,
        model_id: "tiny".to_owned(),
        aliases: Vec::new(),
        root: None,
        created: SystemTime::now(),
        fine_tuning: None,
    };
    let server = Server::new(served, ServerConfig::default()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let stopped = async {
                let _ = stopped.await;
            };
            server.serve(listener, stopped).await
        })
    });
    (address, stop, thread)
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
    config.timeout_global(Some(Duration::from_secs(60))).build().into()
}

fn get(address: SocketAddr, path: &str) -> u16 {
    agent().get(format!("http://{address}{path}")).call().unwrap().status().as_u16()
}

fn complete(address: SocketAddr, max_tokens: usize) -> (u16, Value) {
    let body = json!({"model": "tiny", "prompt": [1, 2, 3], "max_tokens": max_tokens, "ignore_eos": true});
    let mut response = agent().post(format!("http://{address}/v1/completions")).send_json(body).unwrap();
    (response.status().as_u16(), response.body_mut().read_json().unwrap())
}

#[test]
fn a_lost_card_fails_what_is_open_and_is_told() {
    let folder = model();
    let text = on_the_cpu(folder.path());
    let Some((engine, driver)) = engine(folder.path(), &text) else { return };
    let (address, stop, thread) = serve(engine.clone(), &text);
    assert_eq!((get(address, "/ready"), get(address, "/health")), (200, 200));
    let (status, answer) = complete(address, 3);
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(3)), "{answer}");

    // The card goes while two requests run: one of the library's and one of the endpoint's.
    let client = std::thread::spawn(move || complete(address, 400));
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while engine.stats().running_sequences == 0 {
        assert!(std::time::Instant::now() < deadline, "the endpoint's request does not start");
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut finishes = Vec::new();
    let mut is_lost = false;
    for event in engine.submit(request(400)).unwrap() {
        if let Event::Update(update) = event {
            finishes.extend(update.finish);
        }
        if !is_lost {
            is_lost = true;
            driver.lose_after(25);
        }
    }
    let [Finish::Error { message }] = finishes.as_slice() else { panic!("{finishes:?}") };
    assert!(message.contains("device lost"), "{message}");
    let (status, answer) = client.join().unwrap();
    assert!(status >= 500, "{status}: {answer}");

    // From then on: unready, and refused.
    assert_eq!((get(address, "/ready"), get(address, "/health")), (503, 503));
    let (status, answer) = complete(address, 3);
    assert_eq!(status, 503, "{answer}");
    assert!(matches!(engine.submit(request(1)), Err(SubmitError::Unhealthy { .. })));
    assert_eq!(get(address, "/version"), 200, "the process lives");

    // And it ends as it should, with nothing left on the card.
    drop(stop);
    thread.join().unwrap().unwrap();
    drop(engine);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while driver.used_bytes() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} bytes are still in use", driver.used_bytes());
        std::thread::sleep(Duration::from_millis(10));
    }
}
