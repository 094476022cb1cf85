//! Gradients of the trainer, against candle's autograd over a Llama written here out of plain tensor operations.
//!
//! The reference keeps every value and knows neither checkpoints, packing, chunks of the head nor frozen layers without
//! gradients: what the trainer leaves out must make no difference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use support::lora::RandomLora;
use support::random::Rng;
use support::tiny::TinyModel;
use wardrobe::data::{Dataset, Example};
use wardrobe::train::{BatchSize, Gradients, LoraConfig};
use wardrobe::{Model, ModelConfig, ModelOptions, PeftAdapter, TokenId, TrainConfig};
use wardrobe_formats::{ModelFiles, convert};

/// A model's weights in f32 and an adapter's factors as variables.
struct Reference {
    config: ModelConfig,
    weights: BTreeMap<String, Tensor>,
    factors: BTreeMap<String, Factors>,
}

struct Factors {
    a: Var,
    b: Var,
    magnitude: Option<Var>,
    scale: f64,
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

impl Reference {
    fn open(path: &std::path::Path, adapter: &PeftAdapter) -> Self {
        let files = ModelFiles::open(path).unwrap();
        let source = files.tensors.as_ref();
        let weights = source.tensors().iter().map(|info| {
            let bytes = source.read(&info.name).unwrap();
            let values = convert::to_f32(info.storage, &bytes, info.numel()).unwrap();
            (info.name.clone(), tensor(&values, &info.shape))
        });
        let var = |t: &wardrobe_formats::AdapterTensor| {
            Var::from_tensor(&tensor(&t.to_f32().unwrap(), t.shape())).unwrap()
        };
        let factors = adapter.modules().iter().map(|m| {
            let magnitude = m.magnitude.as_ref().map(var);
            (m.module_path.clone(), Factors { a: var(&m.a), b: var(&m.b), magnitude, scale: m.scale })
        });
        Reference { config: files.config.clone(), weights: weights.collect(), factors: factors.collect() }
    }

    fn weight(&self, name: &str) -> &Tensor {
        &self.weights[name]
    }

    fn linear(&self, x: &Tensor, path: &str) -> Tensor {
        let name = format!("{path}.weight");
        let tied = path == "lm_head" && !self.weights.contains_key(&name);
        let weight = if tied { self.weight("model.embed_tokens.weight") } else { self.weight(&name) };
        let base = x.matmul(&weight.t().unwrap()).unwrap();
        let Some(f) = self.factors.get(path) else { return base };
        let low = x.matmul(&f.a.t().unwrap()).unwrap();
        let out = (base + (low.matmul(&f.b.t().unwrap()).unwrap() * f.scale).unwrap()).unwrap();
        let Some(magnitude) = &f.magnitude else { return out };
        // The norm is a constant.
        let update = (f.b.matmul(&f.a).unwrap() * f.scale).unwrap();
        let norm = (weight + update).unwrap().sqr().unwrap().sum(D::Minus1).unwrap().sqrt().unwrap().detach();
        out.broadcast_mul(&magnitude.div(&norm).unwrap()).unwrap()
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let mean = x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let factor = (mean + self.config.rms_norm_eps).unwrap().sqrt().unwrap();
        x.broadcast_div(&factor).unwrap().broadcast_mul(self.weight(name)).unwrap()
    }

    fn rope(&self, x: &Tensor) -> Tensor {
        let (_, seq, dim) = x.dims3().unwrap();
        let half = dim / 2;
        let angle = |p: usize, i: usize| {
            p as f32 * (self.config.rope_theta.powf(-2.0 * i as f64 / dim as f64) as f32)
        };
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> =
                (0..seq).flat_map(|p| (0..half).map(move |i| (p, i))).map(|(p, i)| f(angle(p, i))).collect();
            tensor(&values, &[seq, half])
        };
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let (a, b) = (x.narrow(2, 0, half).unwrap(), x.narrow(2, half, half).unwrap());
        let part = |x: &Tensor, t: &Tensor| x.broadcast_mul(t).unwrap();
        let first = (part(&a, &cos) - part(&b, &sin)).unwrap();
        let second = (part(&b, &cos) + part(&a, &sin)).unwrap();
        Tensor::cat(&[first, second], 2).unwrap()
    }

    fn attention(&self, x: &Tensor, layer: usize) -> Tensor {
        let c = &self.config;
        let at = |part: &str| format!("model.layers.{layer}.self_attn.{part}_proj");
        let seq = x.dim(0).unwrap();
        let heads = |part: &str, heads: usize| {
            let y = self.linear(x, &at(part)).reshape((seq, heads, c.head_dim)).unwrap();
            y.transpose(0, 1).unwrap().contiguous().unwrap()
        };
        let q = self.rope(&heads("q", c.num_heads));
        let (k, v) = (self.rope(&heads("k", c.num_kv_heads)), heads("v", c.num_kv_heads));
        let group = c.num_heads / c.num_kv_heads;
        let repeat = |t: Tensor| {
            let parts: Vec<Tensor> = (0..c.num_heads).map(|h| t.narrow(0, h / group, 1).unwrap()).collect();
            Tensor::cat(&parts, 0).unwrap()
        };
        let (k, v) = (repeat(k), repeat(v));
        let scores = (q.matmul(&k.transpose(1, 2).unwrap().contiguous().unwrap()).unwrap()
            / (c.head_dim as f64).sqrt())
        .unwrap();
        let window = c.sliding_window.unwrap_or(usize::MAX);
        let mask: Vec<f32> = (0..seq)
            .flat_map(|i| (0..seq).map(move |j| if j <= i && i - j < window { 0.0 } else { -1e9 }))
            .collect();
        let scores = scores.broadcast_add(&tensor(&mask, &[seq, seq])).unwrap();
        // candle's own softmax has no gradient on the CPU.
        let most = scores.max_keepdim(D::Minus1).unwrap().detach();
        let e = scores.broadcast_sub(&most).unwrap().exp().unwrap();
        let weights = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let out = weights.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        self.linear(&out.reshape((seq, c.q_size())).unwrap(), &at("o"))
    }

    fn mlp(&self, x: &Tensor, layer: usize) -> Tensor {
        let Some(experts) = self.config.experts else {
            let parent = format!("model.layers.{layer}.mlp");
            return self.gated(x, &parent, ["gate_proj", "up_proj", "down_proj"]);
        };
        let parent = format!("model.layers.{layer}.block_sparse_moe");
        let logits = self.linear(x, &format!("{parent}.gate"));
        // Ones where an expert is among a row's.
        let rows = logits.to_vec2::<f32>().unwrap();
        let is_taken = |row: &Vec<f32>, e: usize| {
            let before = (0..row.len()).filter(|&o| row[o] > row[e] || (row[o] == row[e] && o < e)).count();
            f32::from(u8::from(before < experts.num_experts_per_tok))
        };
        let taken: Vec<f32> =
            rows.iter().flat_map(|row| (0..row.len()).map(move |e| is_taken(row, e))).collect();
        let taken = tensor(&taken, &[rows.len(), experts.num_experts]);
        let most = logits.max_keepdim(D::Minus1).unwrap().detach();
        let softmax = logits.broadcast_sub(&most).unwrap().exp().unwrap();
        let softmax = softmax.broadcast_div(&softmax.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let weights = (softmax * taken).unwrap();
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1).unwrap()).unwrap();
        // Every expert of every row: what a row does not take counts nothing.
        let mut sum = x.zeros_like().unwrap();
        for e in 0..experts.num_experts {
            let out = self.gated(x, &format!("{parent}.experts.{e}"), ["w1", "w3", "w2"]);
            let weight = weights.narrow(1, e, 1).unwrap();
            sum = (sum + out.broadcast_mul(&weight).unwrap()).unwrap();
        }
        sum
    }

    fn gated(&self, x: &Tensor, parent: &str, [gate, up, down]: [&str; 3]) -> Tensor {
        let at = |part: &str| format!("{parent}.{part}");
        let gate = self.linear(x, &at(gate));
        let sigmoid = ((gate.neg().unwrap().exp().unwrap() + 1.0).unwrap()).recip().unwrap();
        let inner = ((gate * sigmoid).unwrap() * self.linear(x, &at(up))).unwrap();
        self.linear(&inner, &at(down))
    }

    fn logits(&self, tokens: &[TokenId]) -> Tensor {
        let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
        let ids = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
        let mut x = self.weight("model.embed_tokens.weight").index_select(&ids, 0).unwrap();
        for layer in 0..self.config.num_layers {
            let at = |part: &str| format!("model.layers.{layer}.{part}.weight");
            x = (&x + self.attention(&self.norm(&x, &at("input_layernorm")), layer)).unwrap();
            x = (&x + self.mlp(&self.norm(&x, &at("post_attention_layernorm")), layer)).unwrap();
        }
        self.linear(&self.norm(&x, "model.norm.weight"), "lm_head")
    }

    /// Mean loss over all supervised tokens, and its gradients.
    fn gradients(&self, examples: &[Example]) -> Gradients {
        let (mut sum, mut count) = (Tensor::new(0f32, &Device::Cpu).unwrap(), 0);
        for example in examples {
            let logits = self.logits(&example.token_ids);
            let most = logits.max_keepdim(D::Minus1).unwrap().detach();
            let shifted = logits.broadcast_sub(&most).unwrap();
            let log_sum = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
            let log_probs = shifted.broadcast_sub(&log_sum).unwrap();
            for (i, token) in example.token_ids.iter().enumerate().filter(|(i, _)| example.loss[*i]) {
                let row = log_probs.narrow(0, i - 1, 1).unwrap().narrow(1, token.0 as usize, 1).unwrap();
                sum = (sum - row.reshape(()).unwrap()).unwrap();
                count += 1;
            }
        }
        let loss = (sum / f64::from(count)).unwrap();
        let store = loss.backward().unwrap();
        let values = |var: &Var| {
            let gradient = store.get(var).expect("a gradient").to_dtype(DType::F32).unwrap();
            gradient.flatten_all().unwrap().to_vec1().unwrap()
        };
        let modules = self.factors.iter().map(|(path, f)| wardrobe::train::ModuleGradients {
            path: path.clone(),
            a: values(&f.a),
            b: values(&f.b),
            magnitude: f.magnitude.as_ref().map(values),
        });
        Gradients { loss: f64::from(loss.to_scalar::<f32>().unwrap()), modules: modules.collect() }
    }
}

/// Random texts, some of whose tokens are learnt.
fn examples(vocab: usize, lens: &[usize]) -> Vec<Example> {
    let mut rng = Rng::new(5);
    lens.iter()
        .map(|&len| {
            let token_ids = (0..len).map(|_| TokenId(rng.below(vocab) as u32)).collect();
            let mut loss: Vec<bool> = (0..len).map(|i| i > 0 && rng.below(3) > 0).collect();
            loss[len - 1] = true;
            Example { token_ids, loss }
        })
        .collect()
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
    off / norm(&mut want.iter().map(|&v| f64::from(v))).max(1e-20)
}

/// The largest relative difference of any module's gradients.
fn largest_difference(got: &Gradients, want: &Gradients) -> f64 {
    assert_eq!(got.modules.len(), want.modules.len());
    let mut largest: f64 = (got.loss - want.loss).abs() / want.loss;
    for got in &got.modules {
        let want = want.modules.iter().find(|m| m.path == got.path).expect("the same modules");
        largest = largest.max(relative(&got.a, &want.a)).max(relative(&got.b, &want.b));
        if let (Some(got), Some(want)) = (&got.magnitude, &want.magnitude) {
            largest = largest.max(relative(got, want));
        }
    }
    largest
}

fn config(kind: &RandomLora) -> TrainConfig {
    TrainConfig {
        lora: LoraConfig {
            rank: kind.rank,
            alpha: kind.alpha,
            target_modules: kind.targets.iter().map(|t| (*t).to_owned()).collect(),
            use_rslora: kind.use_rslora,
            use_dora: kind.use_dora,
            ..LoraConfig::default()
        },
        batch_size: BatchSize::Examples(64),
        threads: Some(2),
        ..TrainConfig::default()
    }
}

fn gradients(model: &Model, adapter: &PeftAdapter, config: TrainConfig, examples: &[Example]) -> Gradients {
    let trainer =
        wardrobe::train::Trainer::new(model.device().clone(), model.decoder().clone(), config).unwrap();
    let examples = Dataset::from_examples(examples.to_vec()).unwrap();
    trainer.with_start(adapter.clone()).gradients(&examples).unwrap()
}

#[test]
fn gradients_are_those_of_candles_autograd() {
    let models = [
        TinyModel::default(),
        TinyModel { num_heads: 4, num_kv_heads: 4, tied: false, num_layers: 3, ..TinyModel::default() },
        TinyModel { model_type: "mistral", sliding_window: Some(20), seed: 3, ..TinyModel::default() },
    ];
    let all = || support::lora::ALL_MODULES.to_vec();
    let kinds = [
        RandomLora { rank: 4, ..RandomLora::default() },
        RandomLora {
            rank: 16,
            alpha: 5.0,
            use_rslora: true,
            targets: vec!["q_proj", "down_proj"],
            ..RandomLora::default()
        },
        RandomLora { rank: 3, use_dora: true, targets: all(), ..RandomLora::default() },
    ];
    for model in models {
        let folder = model.write();
        let opened = Model::open(folder.path(), &ModelOptions::default()).unwrap();
        let examples = examples(model.vocab_size, &[70, 2, 33, 131, 8]);
        for kind in &kinds {
            let dir = folder.path().join("adapter");
            let _ = std::fs::remove_dir_all(&dir);
            kind.write(opened.config(), &dir);
            let adapter = PeftAdapter::open(&dir).unwrap();
            let want = Reference::open(folder.path(), &adapter).gradients(&examples);
            let got = gradients(&opened, &adapter, config(kind), &examples);
            let off = largest_difference(&got, &want);
            assert!(off < 1e-4, "{model:?} with {kind:?}: off by {off:e}");
        }
    }
}

#[test]
fn gradients_reach_experts_and_their_router() {
    let model = TinyModel::mixtral();
    let folder = model.write();
    let opened = Model::open(folder.path(), &ModelOptions::default()).unwrap();
    let examples = examples(model.vocab_size, &[70, 2, 33, 131, 8]);
    let all = || support::lora::MIXTRAL_MODULES.to_vec();
    for kind in [
        RandomLora { rank: 4, targets: all(), ..RandomLora::default() },
        RandomLora { rank: 3, targets: vec!["gate", "w2"], ..RandomLora::default() },
        RandomLora { rank: 3, targets: vec!["q_proj", "o_proj"], ..RandomLora::default() },
        RandomLora { rank: 3, use_dora: true, targets: all(), ..RandomLora::default() },
    ] {
        let dir = folder.path().join("adapter");
        let _ = std::fs::remove_dir_all(&dir);
        kind.write(opened.config(), &dir);
        let adapter = PeftAdapter::open(&dir).unwrap();
        let want = Reference::open(folder.path(), &adapter).gradients(&examples);
        let got = gradients(&opened, &adapter, config(&kind), &examples);
        let off = largest_difference(&got, &want);
        assert!(off < 1e-3, "{kind:?}: off by {off:e}");
    }
}

#[test]
fn how_examples_are_divided_makes_no_difference() {
    divided(&TinyModel::default(), &RandomLora::default());
}

#[test]
fn how_examples_are_divided_makes_no_difference_to_experts() {
    let targets = support::lora::MIXTRAL_MODULES.to_vec();
    divided(&TinyModel::mixtral(), &RandomLora { targets, ..RandomLora::default() });
}

fn divided(model: &TinyModel, kind: &RandomLora) {
    let folder = model.write();
    let opened = Model::open(folder.path(), &ModelOptions::default()).unwrap();
    let dir = folder.path().join("adapter");
    kind.write(opened.config(), &dir);
    let adapter = PeftAdapter::open(&dir).unwrap();
    let examples = examples(model.vocab_size, &[40, 9, 33, 17, 64, 5, 28]);
    let whole = TrainConfig { micro_batch_tokens: 4096, threads: Some(1), ..config(kind) };
    let want = gradients(&opened, &adapter, whole.clone(), &examples);
    for (micro_batch_tokens, threads) in [(1, 1), (50, 1), (100, 3), (4096, 2)] {
        let divided = TrainConfig { micro_batch_tokens, threads: Some(threads), ..whole.clone() };
        let got = gradients(&opened, &adapter, divided, &examples);
        let off = largest_difference(&got, &want);
        assert!(off < 1e-5, "{micro_batch_tokens} tokens on {threads} threads: off by {off:e}");
    }
    // Values that are kept are those that would be computed again.
    let kept = |kept_bytes| {
        let config = TrainConfig { kept_bytes, micro_batch_tokens: 64, ..whole.clone() };
        gradients(&opened, &adapter, config, &examples)
    };
    assert_eq!(kept(0), kept(1 << 30));
    // The number of threads changes no bit.
    let parted = |threads| {
        let config = TrainConfig { micro_batch_tokens: 50, threads: Some(threads), ..whole.clone() };
        gradients(&opened, &adapter, config, &examples)
    };
    assert_eq!(parted(1), parted(3));
}
