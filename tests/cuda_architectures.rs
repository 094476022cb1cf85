//! Every architecture beside Llama's on the CUDA device, whose kernels run on the CPU: served in recorded steps and trained, against
//! the definitions in f64 (`support/families`). What enters products is rounded to bf16 there, which bounds what can be asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "../crates/device-cuda/tests/support/mod.rs"]
mod emulated;
mod support;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType as CandleType, Tensor};
use serde_json::json;
use support::answer;
use support::families::{self, Family, Reference, VOCAB};
use support::random::Rng;
use wardrobe::data::{Dataset, Example};
use wardrobe::train::{BatchSize, LoraConfig, Trainer};
use wardrobe::{
    EngineOptions, Model, ModelOptions, Request, SamplingParams, TokenId, TrainConfig, adapter_source,
};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};

/// Of the sum of squares: eight layers' rounding to bf16, and room.
const BOUND: f64 = 0.03;

fn open(path: &Path) -> Option<Model> {
    let driver = Arc::new(EmulatedDriver::new(emulated::kernels()?, 256 << 20));
    let device = CudaDevice::over(driver, &CudaOptions::default()).unwrap();
    Some(Model::open_on(Arc::new(device), path, &ModelOptions::default()).unwrap())
}

fn relative(got: impl IntoIterator<Item = f64>, want: &[f64]) -> f64 {
    let off: f64 = got.into_iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
    (off / want.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

fn families() -> Vec<Family> {
    let long = [("rope_scaling", families::longrope(8))];
    vec![
        families::qwen2("qwen2", Some(20)),
        families::qwen3(),
        families::phi3("phi3 with the long factors", &long),
        families::gpt_neox("gpt_neox", &[]),
        families::gemma2(&[("query_pre_attn_scalar", json!(24))]),
    ]
}

#[test]
fn architectures_are_served_and_trained_on_a_card() {
    let text = Rng::new(7).tokens(40, VOCAB);
    for family in families() {
        let dir = family.write();
        let Some(model) = open(dir.path()) else { return };
        let adapter = family.adapter(&dir.path().join("adapter"), false);
        let reference = Reference::new(&family, Some(&adapter));

        // A prompt beside another, and steps of generation: run plainly, recorded, replayed.
        let options = EngineOptions { kv_bytes: Some(4 << 20), ..EngineOptions::default() };
        let engine = model.engine(&options).unwrap();
        engine.load_adapter("a", adapter_source(adapter.clone()), Default::default()).unwrap();
        let request = Request {
            adapter: Some("a".to_owned()),
            prompt_logprobs: Some(1),
            ignore_eos: true,
            ..Request::new(text.clone())
        };
        let completion = answer(&engine, request.with_sampling(SamplingParams::greedy()).with_max_tokens(8));
        let drawn = completion.choices[0].token_ids.clone();
        let all: Vec<TokenId> = text.iter().chain(&drawn).copied().collect();
        let rows = reference.rows(&all);
        let spread = |row: &[f64]| (row.iter().map(|v| v * v).sum::<f64>() / VOCAB as f64).sqrt();
        for (i, token) in drawn.iter().enumerate() {
            let row = &rows[text.len() + i - 1];
            let best = row.iter().copied().fold(f64::MIN, f64::max);
            let behind = best - row[token.0 as usize];
            assert!(behind < 0.3 * spread(row), "{}: token {i} is {behind} behind", family.name);
        }
        drop(engine);

        // Logits, and gradients of all linear layers.
        let fitted = model.fit_adapter(&adapter, &Default::default()).unwrap();
        let got =
            model.logits(&text, Some(&fitted)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let want: Vec<f64> = rows[..text.len()].concat();
        let off = relative(got.into_iter().map(f64::from), &want);
        assert!(off < BOUND, "{}: logits are off by {off:e}", family.name);

        let loss: Vec<bool> = (0..text.len()).map(|i| i > 0).collect();
        let example = Example { token_ids: text.clone(), loss };
        let config = TrainConfig {
            lora: LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() },
            batch_size: BatchSize::Examples(1),
            ..TrainConfig::default()
        };
        let trainer = Trainer::new(model.device().clone(), model.decoder().clone(), config).unwrap();
        let data = Dataset::from_examples(vec![example]).unwrap();
        let got = trainer.with_start(adapter).gradients(&data).unwrap();
        let want = gradients(&reference, &text);
        let (mut gots, mut wants) = (Vec::new(), Vec::new());
        for module in &got.modules {
            let (a, b) = &want[&module.path];
            gots.extend(module.a.iter().chain(&module.b).map(|v| f64::from(*v)));
            wants.extend(a.iter().chain(b));
        }
        let off = relative(gots, &wants);
        assert!(off < 2.0 * BOUND, "{}: gradients are off by {off:e}", family.name);
    }
}

/// Of the mean loss of all tokens after the first, by module.
fn gradients(
    reference: &Reference,
    text: &[TokenId],
) -> std::collections::BTreeMap<String, (Vec<f64>, Vec<f64>)> {
    let logits = reference.logits(text);
    let most = logits.max_keepdim(1).unwrap().detach();
    let shifted = logits.broadcast_sub(&most).unwrap();
    let log_sum = shifted.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
    let log_probs = shifted.broadcast_sub(&log_sum).unwrap();
    let own = |i: usize| log_probs.narrow(0, i - 1, 1).unwrap().narrow(1, text[i].0 as usize, 1).unwrap();
    let losses: Vec<Tensor> = (1..text.len()).map(|i| own(i).reshape(1).unwrap()).collect();
    let loss = Tensor::cat(&losses, 0).unwrap().mean_all().unwrap().neg().unwrap();
    let store = loss.backward().unwrap();
    let values = |var: &Tensor| -> Vec<f64> {
        let gradient = store.get(var).expect("a gradient").to_dtype(CandleType::F64).unwrap();
        gradient.flatten_all().unwrap().to_vec1().unwrap()
    };
    reference.factors.iter().map(|(path, (a, b, _))| (path.clone(), (values(a), values(b)))).collect()
}
