//! An endpoint over the CUDA device, whose kernels run on the CPU: what clients see of a card that is lost while they wait.
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
    Engine, EngineOptions, Event, Finish, Model, ModelOptions, Request, SamplingParams, StorageType,
    SubmitError, TokenId,
};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};
use wardrobe_server::{ServedModel, Server, ServerConfig};

/// A small model with heads of a length that the card's fast kernels take.
fn model() -> tempfile::TempDir {
    let storage = StorageType::BF16;
    TinyModel { head_dim: 64, num_heads: 2, num_kv_heads: 1, storage, ..TinyModel::default() }.write()
}

/// The model on a card.
fn open(path: &Path) -> Option<(Model, Arc<EmulatedDriver>)> {
    let driver = Arc::new(EmulatedDriver::new(emulated::kernels()?, 256 << 20));
    let device = CudaDevice::over(driver.clone(), &CudaOptions::default()).unwrap();
    Some((Model::open_on(Arc::new(device), path, &ModelOptions::default()).unwrap(), driver))
}

fn request(max_tokens: usize) -> Request {
    let prompt: Vec<TokenId> = (0..20).map(|i| TokenId(i * 13 % 300)).collect();
    let request = Request::new(prompt).with_sampling(SamplingParams::greedy()).with_max_tokens(max_tokens);
    Request { ignore_eos: true, ..request }
}

/// The endpoint on a thread of its own; it ends when the result's sender is dropped.
fn serve(
    engine: Engine,
    model: &Model,
) -> (SocketAddr, tokio::sync::oneshot::Sender<()>, JoinHandle<std::io::Result<()>>) {
    let served = ServedModel {
        engine,
        tokenizer: model.tokenizer().clone(),
        compiler: model.compiler().clone(),
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
    let Some((model, driver)) = open(folder.path()) else { return };
    let engine =
        model.engine(&EngineOptions { kv_bytes: Some(4 << 20), ..EngineOptions::default() }).unwrap();
    let (address, stop, thread) = serve(engine.clone(), &model);
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
    drop((engine, model));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while driver.used_bytes() > 0 {
        assert!(std::time::Instant::now() < deadline, "{} bytes are still in use", driver.used_bytes());
        std::thread::sleep(Duration::from_millis(10));
    }
}
