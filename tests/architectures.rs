//! Every architecture beside Llama's: logits, generation, adapters, gradients, merging and GGUF files, against each one's
//! definition in f64 (`support/families.rs`) and against candle-transformers' models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

mod support;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType as CandleType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma2, phi3, qwen2, qwen3};
use serde_json::json;
use support::answer;
use support::families::{self, Family, Reference, VOCAB};
use support::random::Rng;
use support::reference::argmax;
use wardrobe::data::{Dataset, Example};
use wardrobe::train::{BatchSize, Gradients, LoraConfig, ModuleGradients};
use wardrobe::{
    AdapterPrecision, DType, Engine, EngineOptions, LoraOptions, MergeOptions, Model, ModelOptions, Request,
    SamplingParams, TokenId, TrainConfig, adapter_source,
};
use wardrobe_device::cpu::{CpuDevice, CpuOptions};
use wardrobe_device::{Ctx, CtxConfig, StepLimits};
use wardrobe_formats::{ModelFiles, PeftAdapter};
use wardrobe_models::{LoadOptions, RopeSpec};

/// Bound on the difference of a logit in f32.
const BOUND: f64 = 1e-3;

fn texts() -> Vec<Vec<TokenId>> {
    let mut rng = Rng::new(7);
    [1, 15, 17, 90].map(|n| rng.tokens(n, VOCAB)).into()
}

fn open(path: &Path) -> Model {
    Model::open(path, &ModelOptions::default()).unwrap()
}

fn engine(model: &Model, max_batch_tokens: usize) -> Engine {
    let mut options =
        EngineOptions { kv_dtype: Some(DType::F32), kv_bytes: Some(64 << 20), ..EngineOptions::default() };
    options.config.max_batch_tokens = max_batch_tokens;
    options.config.max_num_sequences = 4;
    model.engine(&options).unwrap()
}

fn difference<'a>(got: &[Vec<f32>], want: impl IntoIterator<Item = &'a Vec<f64>>) -> f64 {
    let rows = got.iter().zip(want);
    let each = rows.flat_map(|(got, want)| got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()));
    each.fold(0.0, |most, d| if d.is_nan() { f64::INFINITY } else { most.max(d) })
}

fn logits(model: &Model, text: &[TokenId], adapter: Option<&PeftAdapter>) -> Vec<Vec<f32>> {
    let exact = LoraOptions { precision: AdapterPrecision::AsStored, ..LoraOptions::default() };
    let adapter = adapter.map(|a| model.fit_adapter(a, &exact).unwrap());
    model.logits(text, adapter.as_ref()).unwrap().to_vec2().unwrap()
}

#[test]
fn logits_are_those_of_the_definition() {
    for family in families::all() {
        let dir = family.write();
        let model = open(dir.path());
        let adapter = family.adapter(&dir.path().join("adapter"), true);
        let (base, adapted) = (Reference::new(&family, None), Reference::new(&family, Some(&adapter)));
        let mut moved = 0.0f64;
        for text in texts() {
            let (of_base, of_adapter) = (base.rows(&text), adapted.rows(&text));
            let pairs = of_base.iter().flatten().zip(of_adapter.iter().flatten());
            moved = pairs.map(|(a, b)| (a - b).abs()).fold(moved, f64::max);
            let off = difference(&logits(&model, &text, None), &of_base);
            assert!(off <= BOUND, "{}, {} tokens: off by {off:e}", family.name, text.len());
            let off = difference(&logits(&model, &text, Some(&adapter)), &of_adapter);
            assert!(off <= BOUND, "{} with an adapter, {} tokens: off by {off:e}", family.name, text.len());
        }
        assert!(moved > 0.5, "{}: the adapter moves logits by at most {moved}", family.name);
    }
}

/// What sets architectures apart is not without effect on the models here, so that comparing them means something.
#[test]
fn peculiarities_count() {
    let text = texts().pop().unwrap();
    let apart = |a: &Family, b: &Family| {
        let (a, b) = (Reference::new(a, None).rows(&text), Reference::new(b, None).rows(&text));
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let long = [("rope_scaling", families::longrope(8)), ("max_position_embeddings", json!(512))];
    let short = [("rope_scaling", families::longrope(8)), ("max_position_embeddings", json!(64))];
    for (what, a, b) in [
        ("late windows", families::qwen2("a", None), families::qwen2("b", Some(20))),
        ("a window", families::phi3("a", &[]), families::phi3("b", &[("sliding_window", json!(20))])),
        ("the long factors", families::phi3("a", &long), families::phi3("b", &short)),
        ("the residual", families::gpt_neox("a", &[]), {
            families::gpt_neox("b", &[("use_parallel_residual", json!(false))])
        }),
        ("a part that rotates", families::gpt_neox("a", &[]), {
            families::gpt_neox("b", &[("rotary_pct", json!(1.0))])
        }),
        (
            "bounded scores",
            families::gemma2(&[]),
            families::gemma2(&[("attn_logit_softcapping", json!(null))]),
        ),
        (
            "bounded logits",
            families::gemma2(&[]),
            families::gemma2(&[("final_logit_softcapping", json!(null))]),
        ),
        ("what queries are divided by", families::gemma2(&[]), {
            families::gemma2(&[("query_pre_attn_scalar", json!(32))])
        }),
        ("every other window", families::gemma2(&[]), families::gemma2(&[("sliding_window", json!(9999))])),
    ] {
        let moved = apart(&a, &b);
        assert!(moved > 0.02, "{what} moves logits by {moved} only");
    }
}

/// Prompts in pieces give the bits of whole ones, and tokens drawn in recorded steps are the likeliest by definition.
#[test]
fn chunks_and_recorded_steps_change_nothing() {
    for family in families::all() {
        let dir = family.write();
        let model = open(dir.path());
        let adapter = family.adapter(&dir.path().join("adapter"), false);
        let engines = [engine(&model, 512), engine(&model, 16)];
        for engine in &engines {
            engine.load_adapter("a", adapter_source(adapter.clone()), Default::default()).unwrap();
        }
        for (name, reference) in
            [(None, Reference::new(&family, None)), (Some("a"), Reference::new(&family, Some(&adapter)))]
        {
            let text = texts().pop().unwrap();
            let [whole, pieces] = engines.each_ref().map(|engine| {
                let request = Request {
                    adapter: name.map(str::to_owned),
                    prompt_logprobs: Some(5),
                    ..Request::new(text.clone())
                };
                answer(engine, request.with_sampling(SamplingParams::greedy()).with_max_tokens(24))
            });
            assert_eq!(whole.prompt_logprobs, pieces.prompt_logprobs, "{}", family.name);
            assert_eq!(whole.choices[0].token_ids, pieces.choices[0].token_ids, "{}", family.name);
            let drawn: Vec<TokenId> = whole.choices[0].token_ids.clone();
            assert!(drawn.len() > 3, "{}: {drawn:?}", family.name);
            let all: Vec<TokenId> = text.iter().chain(&drawn).copied().collect();
            let rows = reference.rows(&all);
            for (i, token) in drawn.iter().enumerate() {
                let row: Vec<f32> = rows[text.len() + i - 1].iter().map(|v| *v as f32).collect();
                let best = row[argmax(&row)];
                let own = row[token.0 as usize];
                assert!(best - own < 2e-3, "{}: token {i} has {own}, the likeliest {best}", family.name);
            }
        }
    }
}

fn examples(lens: &[usize]) -> Vec<Example> {
    let mut rng = Rng::new(5);
    let example = |&len: &usize| {
        let token_ids = rng.tokens(len, VOCAB);
        let mut loss: Vec<bool> = (0..len).map(|i| i > 0 && rng.below(3) > 0).collect();
        loss[len - 1] = true;
        Example { token_ids, loss }
    };
    lens.iter().map(example).collect()
}

/// The mean loss over supervised tokens, and its gradients, by candle's autograd in f64.
fn reference_gradients(reference: &Reference, examples: &[Example]) -> Gradients {
    let (mut sum, mut count) = (Tensor::new(0f64, &Device::Cpu).unwrap(), 0);
    for example in examples {
        let logits = reference.logits(&example.token_ids);
        let most = logits.max_keepdim(1).unwrap().detach();
        let shifted = logits.broadcast_sub(&most).unwrap();
        let log_sum = shifted.exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
        let log_probs = shifted.broadcast_sub(&log_sum).unwrap();
        for (i, token) in example.token_ids.iter().enumerate().filter(|(i, _)| example.loss[*i]) {
            let row = log_probs.narrow(0, i - 1, 1).unwrap().narrow(1, token.0 as usize, 1).unwrap();
            sum = (sum - row.reshape(()).unwrap()).unwrap();
            count += 1;
        }
    }
    let loss = (sum / f64::from(count)).unwrap();
    let store = loss.backward().unwrap();
    let values = |var: &Tensor| -> Vec<f32> {
        let gradient = store.get(var).expect("a gradient").to_dtype(CandleType::F32).unwrap();
        gradient.flatten_all().unwrap().to_vec1().unwrap()
    };
    let modules = reference.factors.iter().map(|(path, (a, b, _))| ModuleGradients {
        path: path.clone(),
        a: values(a),
        b: values(b),
        magnitude: None,
    });
    Gradients { loss: loss.to_scalar().unwrap(), modules: modules.collect() }
}

fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
    off / norm(&mut want.iter().map(|&v| f64::from(v))).max(1e-20)
}

#[test]
fn gradients_are_those_of_autograd() {
    for family in families::all() {
        let dir = family.write();
        let model = open(dir.path());
        // All linear layers, which is what is trained unless something else is asked for; and the head beside them.
        for with_head in [false, true] {
            let adapter = family.adapter(&dir.path().join(format!("adapter-{with_head}")), with_head);
            let examples = examples(&[70, 2, 33]);
            let want = reference_gradients(&Reference::new(&family, Some(&adapter)), &examples);
            let mut lora = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
            if with_head {
                let last = |path: &String| path.rsplit('.').next().unwrap().to_owned();
                lora.target_modules = want.modules.iter().map(|m| last(&m.path)).collect();
                lora.target_modules.sort();
                lora.target_modules.dedup();
            }
            // Nothing kept, in one micro-batch; and everything kept, in several.
            for (kept_bytes, micro_batch_tokens) in [(0, 4096), (1 << 30, 64)] {
                let config = TrainConfig {
                    lora: lora.clone(),
                    batch_size: BatchSize::Examples(64),
                    threads: Some(2),
                    kept_bytes,
                    micro_batch_tokens,
                    ..TrainConfig::default()
                };
                let (device, decoder) = (model.device().clone(), model.decoder().clone());
                let trainer = wardrobe::train::Trainer::new(device, decoder, config).unwrap();
                let data = Dataset::from_examples(examples.clone()).unwrap();
                let got = trainer.with_start(adapter.clone()).gradients(&data).unwrap();
                assert_eq!(got.modules.len(), want.modules.len(), "{}", family.name);
                let mut off = (got.loss - want.loss).abs() / want.loss;
                for got in &got.modules {
                    let want = want.modules.iter().find(|m| m.path == got.path).expect("the same modules");
                    off = off.max(relative(&got.a, &want.a)).max(relative(&got.b, &want.b));
                }
                assert!(off < 1e-4, "{}, head {with_head}: gradients are off by {off:e}", family.name);
            }
        }
    }
}

/// A merged model gives what the adapter gave: as a folder, as a GGUF file, and as a folder that was made of that.
#[test]
fn merged_models_give_what_the_adapter_gave() {
    let mut gemma = families::gemma2(&[("query_pre_attn_scalar", json!(32))]);
    gemma.name = "gemma2 divided by the width of a head";
    for family in families::all().into_iter().chain([gemma]) {
        let dir = family.write();
        let adapter = family.adapter(&dir.path().join("adapter"), family.name != "gemma2");
        let reference = Reference::new(&family, Some(&adapter));
        let out = tempfile::tempdir().unwrap();
        let merge = |base: &Path, adapter: &PeftAdapter, name: &str| {
            let output = out.path().join(name);
            wardrobe::merge(base, adapter, &output, &MergeOptions::default(), &|_, _| {})
                .map(|_| output)
                .map_err(Box::new)
        };
        let text = texts().pop().unwrap();
        let want = reference.rows(&text);
        let folder = merge(dir.path(), &adapter, "folder").unwrap();
        let off = difference(&logits(&open(&folder), &text, None), &want);
        assert!(off <= BOUND, "{} merged into a folder: off by {off:e}", family.name);
        let file = merge(dir.path(), &adapter, "merged.gguf");
        // What GGUF has no keys for is refused by name.
        let refused = match family.name {
            "qwen2 with windows" => Some("sliding windows"),
            "gpt_neox, one after the other" => Some("GeluTanh"),
            "gemma2" => Some("query_pre_attn_scalar"),
            _ => None,
        };
        if let Some(named) = refused {
            let reason = file.unwrap_err().to_string();
            assert!(reason.contains(named), "{}: {reason}", family.name);
            continue;
        }
        let file = file.unwrap();
        let off = difference(&logits(&open(&file), &text, None), &want);
        assert!(off <= BOUND, "{} merged into a file: off by {off:e}", family.name);
        // Back again, with another adapter on top.
        let config = ModelFiles::open(&file).unwrap().config;
        let second = family.adapter(&dir.path().join("second"), false);
        let back = merge(&file, &second, "back").unwrap();
        let of_file = logits(&open(&file), &text, Some(&second));
        let of_file: Vec<Vec<f64>> =
            of_file.iter().map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect();
        let off = difference(&logits(&open(&back), &text, None), &of_file);
        assert!(off <= BOUND, "{} merged back into a folder: off by {off:e}", family.name);
        let returned = ModelFiles::open(&back).unwrap().config;
        assert_eq!(
            (returned.architecture, returned.partial_rotary_dim),
            (config.architecture, config.partial_rotary_dim)
        );
    }
}

/// Files as llama.cpp's converter writes them.
#[test]
fn gguf_files_give_what_folders_give() {
    for family in families::all() {
        // GGUF says neither which layers have windows, nor the activation, nor what Gemma's queries are divided by.
        let family = match family.name {
            "qwen2 with windows" | "gpt_neox, one after the other" => continue,
            "gemma2" => families::gemma2(&[("query_pre_attn_scalar", json!(32))]),
            _ => family,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        family.write_gguf(&path);
        let files = ModelFiles::open(&path).unwrap();
        let device: Arc<dyn wardrobe_device::Device> =
            Arc::new(CpuDevice::new(CpuOptions::default()).unwrap());
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(device.clone(), CtxConfig { arena_bytes: 0, step }).unwrap();
        let model = wardrobe_models::load(&mut ctx, &files, &LoadOptions::default()).unwrap();
        let reference = Reference::new(&family, None);
        for text in texts() {
            let ids: Vec<u32> = text.iter().map(|t| t.0).collect();
            let rope = RopeSpec::of(model.config());
            let got = wardrobe_models::logits(device.clone(), model.as_ref(), &ids, None, &rope).unwrap();
            let got: Vec<Vec<f32>> = got.chunks(VOCAB).map(<[f32]>::to_vec).collect();
            let off = difference(&got, &reference.rows(&text));
            assert!(off <= BOUND, "{} as a file, {} tokens: off by {off:e}", family.name, text.len());
        }
    }
}

fn var_builder(family: &Family) -> VarBuilder<'static> {
    let tensors = family.tensors.iter().map(|(name, shape, values)| {
        (name.clone(), Tensor::from_slice(values, shape.as_slice(), &Device::Cpu).unwrap())
    });
    VarBuilder::from_tensors(tensors.collect(), CandleType::F32, &Device::Cpu)
}

/// A second witness, where candle-transformers has the architecture and agrees with transformers on it: it has no GPT-NeoX, divides
/// LongRoPE's factors the other way, and takes Gemma's windows for all layers.
#[test]
fn candles_models_agree() {
    let check = |family: &Family, last: &mut dyn FnMut(&Tensor) -> Tensor| {
        let dir = family.write();
        let model = open(dir.path());
        for text in texts() {
            let ids: Vec<u32> = text.iter().map(|t| t.0).collect();
            let input = Tensor::from_vec(ids, (1, text.len()), &Device::Cpu).unwrap();
            let want: Vec<f32> = last(&input).flatten_all().unwrap().to_vec1().unwrap();
            let got = logits(&model, &text, None).pop().unwrap();
            let off = got.iter().zip(&want).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
            assert!(got.len() == want.len() && off <= BOUND, "{}: candle's is off by {off:e}", family.name);
        }
    };

    let family = families::qwen2("qwen2", None);
    let config = qwen2::Config {
        vocab_size: VOCAB,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 512,
        sliding_window: 512,
        max_window_layers: 3,
        tie_word_embeddings: true,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let mut model = qwen2::ModelForCausalLM::new(&config, var_builder(&family)).unwrap();
    check(&family, &mut |input| {
        model.clear_kv_cache();
        model.forward(input, 0).unwrap()
    });

    let family = families::qwen3();
    let config = qwen3::Config {
        vocab_size: VOCAB,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        head_dim: 32,
        attention_bias: false,
        num_key_value_heads: 2,
        max_position_embeddings: 512,
        sliding_window: None,
        max_window_layers: 3,
        tie_word_embeddings: false,
        rope_theta: 1e6,
        rms_norm_eps: 1e-6,
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let mut model = qwen3::ModelForCausalLM::new(&config, var_builder(&family)).unwrap();
    check(&family, &mut |input| {
        model.clear_kv_cache();
        model.forward(input, 0).unwrap()
    });

    for (name, partial) in [("phi3", None), ("phi3 of which a part rotates", Some(0.75))] {
        let family = families::phi3(name, &[("partial_rotary_factor", json!(partial))]);
        let config = phi3::Config {
            vocab_size: VOCAB,
            hidden_act: Activation::Silu,
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: 512,
            original_max_position_embeddings: None,
            partial_rotary_factor: partial,
            tie_word_embeddings: false,
        };
        let mut model = phi3::Model::new(&config, var_builder(&family)).unwrap();
        check(&family, &mut |input| {
            model.clear_kv_cache();
            model.forward(input, 0).unwrap()
        });
    }

    let family = families::gemma2(&[("sliding_window", json!(null)), ("query_pre_attn_scalar", json!(32))]);
    let config = gemma2::Config {
        attention_bias: false,
        head_dim: 32,
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: 64,
        intermediate_size: 96,
        num_attention_heads: 4,
        num_hidden_layers: 3,
        num_key_value_heads: 2,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        vocab_size: VOCAB,
        final_logit_softcapping: Some(6.0),
        attn_logit_softcapping: Some(3.0),
        query_pre_attn_scalar: 32,
        sliding_window: None,
        max_position_embeddings: 512,
    };
    let mut model = gemma2::Model::new(false, &config, var_builder(&family)).unwrap();
    check(&family, &mut |input| {
        model.clear_kv_cache();
        model.forward(input, 0).unwrap()
    });
}
