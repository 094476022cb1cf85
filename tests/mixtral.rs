//! A model with experts through the whole: its files in both formats, adapters of experts, bits that neither neighbours nor
//! chunks nor threads change, merging, training; and what is refused, by name. That its numbers are those of an independent
//! implementation is `parity.rs`'s to say, and its gradients `training_gradients.rs`'s.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.

#[path = "../crates/device-cuda/tests/support/mod.rs"]
mod emulated;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use support::lora::{MIXTRAL_MODULES, RandomLora};
use support::random::Rng;
use support::reference::{Logits, Reference};
use support::tiny::TinyModel;
use support::{answer, assert_nothing_is_held};
use wardrobe::data::{Dataset, Example};
use wardrobe::train::{BatchSize, LoraConfig, OptimizerConfig};
use wardrobe::{
    AdapterSource, Completion, CpuOptions, DType, Engine, EngineConfig, EngineOptions, LoadOptions,
    LoraOptions, MergeOptions, Model, ModelOptions, PeftAdapter, Request, SamplingParams, TokenId,
    TrainConfig, TrainInto, Trainer, WeightPrecision, merge,
};
use wardrobe_device_cuda::driver::emulated::EmulatedDriver;
use wardrobe_device_cuda::{CudaDevice, CudaOptions};
use wardrobe_formats::gguf::{self, GgufTensor};
use wardrobe_formats::safetensors::{self, TensorData};
use wardrobe_formats::{ModelFiles, StorageType, convert};

/// Bound on the difference of a logit in f32.
const F32_BOUND: f32 = 1e-3;

fn open(path: &Path, precision: WeightPrecision) -> Model {
    Model::open(path, &ModelOptions { precision, ..ModelOptions::default() }).unwrap()
}

fn logits(model: &Model, adapter: Option<&PeftAdapter>, texts: &[Vec<TokenId>]) -> Logits {
    let adapter = adapter.map(|a| model.fit_adapter(a, &LoraOptions::default()).unwrap());
    texts.iter().map(|t| model.logits(t, adapter.as_ref()).unwrap().to_vec2().unwrap()).collect()
}

fn difference(a: &Logits, b: &Logits) -> f32 {
    let values = |l: &Logits| l.iter().flatten().flatten().copied().collect::<Vec<f32>>();
    let (a, b) = (values(a), values(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn texts() -> Vec<Vec<TokenId>> {
    let mut rng = Rng::new(7);
    [1, 16, 45].map(|n| rng.tokens(n, 320)).into()
}

/// Writes a folder's model as a GGUF file, matrices of blocks in `storage`: rotary rows as llama.cpp has them, experts in one
/// tensor for each part or, as older files, in one each.
fn write_gguf(folder: &Path, to: &Path, storage: StorageType, stacked: bool) {
    let files = ModelFiles::open(folder).unwrap();
    let config = &files.config;
    let mut tensors: BTreeMap<String, (StorageType, Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for info in files.tensors.tensors() {
        let bytes = files.tensors.read(&info.name).unwrap();
        let mut values = convert::to_f32(info.storage, &bytes, info.numel()).unwrap();
        let heads = match &info.name {
            name if name.ends_with("q_proj.weight") => config.num_heads,
            name if name.ends_with("k_proj.weight") => config.num_kv_heads,
            _ => 0,
        };
        let (dim, cols) = (config.head_dim, info.row_numel());
        let given = values.clone();
        for (head, half, j) in
            (0..heads).flat_map(|h| (0..2).flat_map(move |s| (0..dim / 2).map(move |j| (h, s, j))))
        {
            let (from, to) = (head * dim + half * dim / 2 + j, head * dim + 2 * j + half);
            values[to * cols..(to + 1) * cols].copy_from_slice(&given[from * cols..(from + 1) * cols]);
        }
        let of_layer = info.name.strip_prefix("model.layers.").map(|rest| rest.split_once('.').unwrap());
        let parts = [
            ("self_attn.q_proj.", "attn_q."),
            ("self_attn.k_proj.", "attn_k."),
            ("self_attn.v_proj.", "attn_v."),
            ("self_attn.o_proj.", "attn_output."),
            ("input_layernorm.", "attn_norm."),
            ("post_attention_layernorm.", "ffn_norm."),
            ("block_sparse_moe.gate.", "ffn_gate_inp."),
        ];
        let is_block_matrix = of_layer.is_some() && info.shape.len() == 2 && !info.name.contains(".gate.");
        let storage = if is_block_matrix { storage } else { StorageType::F32 };
        let (name, shape) = match (of_layer, info.name.as_str()) {
            (None, "model.embed_tokens.weight") => ("token_embd.weight".to_owned(), info.shape.clone()),
            (None, "model.norm.weight") => ("output_norm.weight".to_owned(), info.shape.clone()),
            (None, _) => ("output.weight".to_owned(), info.shape.clone()),
            (Some((layer, rest)), _) => match rest.strip_prefix("block_sparse_moe.experts.") {
                Some(rest) => {
                    let [expert, part, _]: [&str; 3] =
                        rest.split('.').collect::<Vec<_>>().try_into().unwrap();
                    let part = match part {
                        "w1" => "ffn_gate",
                        "w2" => "ffn_down",
                        _ => "ffn_up",
                    };
                    if stacked {
                        // They come in order, being fewer than ten.
                        let name = format!("blk.{layer}.{part}_exps.weight");
                        let entry = tensors.entry(name).or_insert((storage, vec![0; 3], Vec::new()));
                        entry.1 = vec![expert.parse::<usize>().unwrap() + 1, info.shape[0], info.shape[1]];
                        entry.2.extend(values);
                        continue;
                    }
                    (format!("blk.{layer}.{part}.{expert}.weight"), info.shape.clone())
                }
                None => {
                    let (hf, own) = parts.into_iter().find(|(hf, _)| rest.starts_with(hf)).unwrap();
                    (format!("blk.{layer}.{own}{}", &rest[hf.len()..]), info.shape.clone())
                }
            },
        };
        tensors.insert(name, (storage, shape, values));
    }
    let described: Vec<GgufTensor> = tensors
        .iter()
        .map(|(name, (storage, shape, _))| GgufTensor {
            name: name.clone(),
            storage: *storage,
            shape: shape.clone(),
        })
        .collect();
    let mut metadata = vec![("general.architecture".to_owned(), gguf::Value::String("llama".to_owned()))];
    metadata.extend(config.to_gguf(to).unwrap());
    let values: Vec<_> = tensors.into_values().collect();
    gguf::write(to, &metadata, &described, |idx| {
        let (storage, shape, values) = &values[idx];
        convert::from_f32(*storage, values, *shape.last().unwrap())
    })
    .unwrap();
}

/// A GGUF file with the folder's tokenizer beside it.
fn gguf_beside(folder: &Path, storage: StorageType, stacked: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder.join(name), dir.path().join(name)).unwrap();
    }
    write_gguf(folder, &dir.path().join("model.gguf"), storage, stacked);
    dir
}

#[test]
fn a_gguf_file_of_either_layout_is_the_same_model() {
    let folder = TinyModel::mixtral().write();
    let texts = texts();
    let model = open(folder.path(), WeightPrecision::AsStored);
    let want = logits(&model, None, &texts);
    let adapter = RandomLora { targets: MIXTRAL_MODULES.to_vec(), ..RandomLora::default() };
    let adapter = adapter.build(model.config());
    let adapted = logits(&model, Some(&adapter), &texts);
    for stacked in [true, false] {
        let gguf = gguf_beside(folder.path(), StorageType::F32, stacked);
        let found = open(gguf.path(), WeightPrecision::AsStored);
        assert_eq!(found.config().architecture, "MixtralForCausalLM");
        assert_eq!(found.config().experts, model.config().experts);
        assert_eq!(logits(&found, None, &texts), want, "stacked: {stacked}");
        assert_eq!(logits(&found, Some(&adapter), &texts), adapted, "stacked: {stacked}");
    }
}

#[test]
fn quantised_experts_answer_as_their_dequantised_weights_do() {
    let tiny = TinyModel {
        hidden_size: 256,
        intermediate_size: 256,
        head_dim: 64,
        num_layers: 1,
        ..TinyModel::mixtral()
    };
    let folder = tiny.write();
    let texts = texts();
    for storage in [StorageType::Q8_0, StorageType::Q4_K, StorageType::Q6_K] {
        let gguf = gguf_beside(folder.path(), storage, true);
        let reference = Reference::open(gguf.path());
        let want = reference.mixtral_logits(&texts);
        let exact = logits(&open(gguf.path(), WeightPrecision::F32), None, &texts);
        let off = difference(&exact, &want);
        assert!(off <= F32_BOUND, "{storage} dequantised: {off}");
        let held = open(gguf.path(), WeightPrecision::AsStored);
        let off = difference(&logits(&held, None, &texts), &want);
        // Activations are rounded to 12 bits.
        assert!(off <= 0.03, "{storage}: {off}");
        // And with an adapter of experts, in f16 beside quantised weights.
        let adapter = RandomLora { targets: MIXTRAL_MODULES.to_vec(), ..RandomLora::default() };
        let adapter = adapter.build(held.config());
        let want = reference.merged(&adapter).mixtral_logits(&texts);
        let off = difference(&logits(&held, Some(&adapter), &texts), &want);
        assert!(off <= 0.05, "{storage}, adapted: {off}");
    }
}

#[derive(Debug, PartialEq)]
struct Bits(Vec<(TokenId, u32)>);

fn bits(completion: &Completion) -> Bits {
    let rows = completion.prompt_logprobs.iter().flatten().flatten();
    let rows = rows.chain(completion.choices.iter().flat_map(|c| &c.logprobs));
    Bits(rows.map(|l| (l.token, l.logprob.to_bits())).collect())
}

/// Rows of one step go to different experts with different adapters; what each gets is what it gets alone.
#[test]
fn neighbours_chunks_and_threads_change_no_bit() {
    for storage in [StorageType::F32, StorageType::BF16] {
        let tiny = TinyModel { storage, max_position_embeddings: 256, ..TinyModel::mixtral() };
        let folder = tiny.write();
        let config = ModelFiles::open(folder.path()).unwrap().config;
        let kinds = [
            (
                "all",
                RandomLora { rank: 3, seed: 11, targets: MIXTRAL_MODULES.to_vec(), ..RandomLora::default() },
            ),
            (
                "some",
                RandomLora { rank: 16, seed: 12, targets: vec!["q_proj", "w2"], ..RandomLora::default() },
            ),
        ];
        let dirs = kinds.map(|(name, kind)| {
            let dir = folder.path().join(name);
            kind.write(&config, &dir);
            (name, dir)
        });
        let mut rng = Rng::new(5);
        let requests: Vec<Request> = (0..9)
            .map(|i| Request {
                prompt_token_ids: rng.tokens([33, 64, 7][i % 3], config.vocab_size).into(),
                adapter: [None, Some("all"), Some("some")][i / 3].map(str::to_owned),
                adapter_scale: if i == 4 { 0.75 } else { 1.0 },
                sampling: SamplingParams::greedy(),
                max_tokens: Some(12),
                ignore_eos: true,
                logprobs: Some(3),
                prompt_logprobs: (i % 3 == 1).then_some(3),
                ..Request::default()
            })
            .collect();
        let model = |threads| {
            let cpu = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
            Model::open(folder.path(), &ModelOptions { cpu, ..ModelOptions::default() }).unwrap()
        };
        let engine = |model: &Model, config: EngineConfig| -> Engine {
            let options = EngineOptions {
                config,
                kv_bytes: Some(32 << 20),
                kv_dtype: Some(DType::F32),
                ..EngineOptions::default()
            };
            let engine = model.engine(&options).unwrap();
            for (name, dir) in &dirs {
                let source = AdapterSource::Path(dir.clone());
                engine.load_adapter(name, source, LoadOptions::default()).unwrap();
            }
            engine
        };
        let without_cache = || EngineConfig { prefix_cache: false, ..EngineConfig::default() };
        let one = model(1);
        let alone_engine = engine(&one, without_cache());
        let alone: Vec<Bits> = requests.iter().map(|r| bits(&answer(&alone_engine, r.clone()))).collect();
        assert!(alone[0] != alone[3] && alone.iter().all(|b| !b.0.is_empty()));
        let batching = |max_chunk_tokens, max_batch_tokens, max_num_sequences| EngineConfig {
            max_chunk_tokens,
            max_batch_tokens,
            max_num_sequences,
            ..EngineConfig::default()
        };
        for threads in [1, 3] {
            let model = model(threads);
            for (case, config) in [
                ("alone", without_cache()),
                ("with neighbours", EngineConfig::default()),
                ("chunks of 5", batching(5, 64, 32)),
                ("steps of 13 tokens", batching(256, 13, 12)),
                ("chunks of one token", batching(1, 12, 12)),
            ] {
                let engine = engine(&model, config);
                let streams: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
                let together: Vec<Bits> =
                    streams.into_iter().map(|s| bits(&s.completion_blocking())).collect();
                assert_eq!(together, alone, "{storage}, {case}, {threads} threads");
                assert_nothing_is_held(&engine);
            }
        }
    }
}

#[test]
fn merged_models_answer_as_base_and_adapter_do() {
    let base = TinyModel::mixtral().write();
    let model = open(base.path(), WeightPrecision::AsStored);
    let texts = texts();
    let kind = RandomLora { targets: MIXTRAL_MODULES.to_vec(), ..RandomLora::default() };
    let out = tempfile::tempdir().unwrap();
    kind.write(model.config(), &out.path().join("adapter"));
    let adapter = PeftAdapter::open(&out.path().join("adapter")).unwrap();
    let want = Reference::open(base.path()).merged(&adapter).mixtral_logits(&texts);
    let moved = difference(&want, &logits(&model, None, &texts));
    assert!(moved > 0.5, "the adapter moves logits by {moved}");
    let options = MergeOptions::default();
    for name in ["folder", "model.gguf"] {
        let path = out.path().join(name);
        let report = merge(base.path(), &adapter, &path, &options, &|_, _| {}).unwrap();
        assert_eq!(report.merged.len(), adapter.modules().len());
        let merged = open(&path, WeightPrecision::AsStored);
        assert_eq!(merged.config().experts, model.config().experts);
        let off = difference(&logits(&merged, None, &texts), &want);
        assert!(off <= F32_BOUND, "{name}: {off}");
    }
    // From a file whose experts are stacked to a folder, with one more adapter.
    let again = out.path().join("again");
    merge(out.path().join("model.gguf"), &adapter, &again, &options, &|_, _| {}).unwrap();
    let want = Reference::open(base.path()).merged(&adapter).merged(&adapter).mixtral_logits(&texts);
    let off = difference(&logits(&open(&again, WeightPrecision::AsStored), None, &texts), &want);
    assert!(off <= F32_BOUND, "again: {off}");
}

/// Transformers 5 holds all experts of a block in one parameter, and adapters of that are of another shape.
#[test]
fn fused_experts_are_refused_by_name() {
    let folder = TinyModel::mixtral().write();
    let model = open(folder.path(), WeightPrecision::AsStored);
    let engine =
        model.engine(&EngineOptions { kv_bytes: Some(1 << 22), ..EngineOptions::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let values = |n: usize| convert::from_f32(StorageType::F32, &vec![0.5; n], 1).unwrap();
    let (a, b) = (values(20 * 64), values(192 * 20));
    let write = |config: serde_json::Value, module: &str| {
        let name = |part: &str| format!("base_model.model.model.layers.0.{module}.lora_{part}.weight");
        let (name_a, name_b) = (name("A"), name("B"));
        let tensors = [
            TensorData { name: &name_a, storage: StorageType::F32, shape: &[20, 64], bytes: &a },
            TensorData { name: &name_b, storage: StorageType::F32, shape: &[192, 20], bytes: &b },
        ];
        safetensors::write(&dir.path().join("adapter_model.safetensors"), &tensors, &BTreeMap::new())
            .unwrap();
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        let source = AdapterSource::Path(dir.path().to_owned());
        engine.load_adapter("fused", source, LoadOptions::default()).unwrap_err().to_string()
    };
    let config = |more: serde_json::Value| {
        let mut config = serde_json::json!({ "peft_type": "LORA", "r": 20, "lora_alpha": 20, "target_modules": ["experts"] });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    for (module, named) in [
        ("mlp.experts", "model.layers.0.mlp.experts"),
        ("block_sparse_moe.experts", "model.layers.0.block_sparse_moe.experts"),
    ] {
        let error = write(config(serde_json::json!({})), module);
        assert!(error.contains(named), "{error}");
    }
    let parameters = serde_json::json!({ "target_parameters": ["mlp.experts.gate_up_proj"] });
    let error = write(config(parameters), "mlp.experts");
    assert!(error.contains("target_parameters"), "{error}");

    // An expert's factors that are missing are missed.
    let kind = RandomLora { targets: vec!["w1"], ..RandomLora::default() };
    let mut modules = kind.modules(model.config());
    modules.retain(|m| m.module_path != "model.layers.1.block_sparse_moe.experts.3.w1");
    let partial = dir.path().join("partial");
    support::lora::write(&kind.config(), &modules, &partial);
    let error = engine.load_adapter("partial", AdapterSource::Path(partial), LoadOptions::default());
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("model.layers.1.block_sparse_moe.experts.3.w1.lora_A.weight is missing"),
        "{error}"
    );
}

#[test]
fn broken_files_are_refused_by_name() {
    let folder = TinyModel::mixtral().write();
    let dir = gguf_beside(folder.path(), StorageType::F32, true);
    let path = dir.path().join("model.gguf");
    let file = gguf::GgufFile::open(&path).unwrap();
    use wardrobe_formats::TensorSource;
    type Change<'a> = &'a dyn Fn(&mut Vec<(String, gguf::Value)>, &mut Vec<GgufTensor>);
    let rewrite = |change: Change<'_>| {
        let mut metadata: Vec<(String, gguf::Value)> =
            file.metadata().iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
        let mut tensors: Vec<GgufTensor> = file
            .tensors()
            .iter()
            .map(|t| GgufTensor { name: t.name.clone(), storage: t.storage, shape: t.shape.clone() })
            .collect();
        change(&mut metadata, &mut tensors);
        let spoilt = dir.path().join("spoilt");
        gguf::write(&spoilt, &metadata, &tensors, |idx| {
            let t = &tensors[idx];
            Ok(vec![0; t.storage.bytes_for(t.shape.iter().product()).unwrap()])
        })
        .unwrap();
        let opened = Model::open(&spoilt, &ModelOptions::default());
        opened.map(drop).unwrap_err().to_string()
    };
    let set = |metadata: &mut Vec<(String, gguf::Value)>, key: &str, value: u32| {
        metadata.retain(|(k, _)| k != key);
        metadata.push((key.to_owned(), gguf::Value::U32(value)));
    };
    let error = rewrite(&|metadata, _| set(metadata, "llama.expert_count", 4));
    assert!(error.contains("_exps.weight") && error.contains("5 experts"), "{error}");
    let error = rewrite(&|metadata, _| set(metadata, "llama.expert_used_count", 6));
    assert!(error.contains("num_experts_per_tok"), "{error}");
    let error = rewrite(&|metadata, _| set(metadata, "llama.expert_count", 0));
    assert!(error.contains("_exps.weight"), "{error}");
    let error = rewrite(&|_, tensors| {
        tensors.iter_mut().find(|t| t.name == "blk.1.ffn_up_exps.weight").unwrap().shape.pop();
    });
    assert!(error.contains("blk.1.ffn_up_exps.weight"), "{error}");
    let error = rewrite(&|_, tensors| {
        let shape =
            tensors.iter().find(|t| t.name == "blk.1.ffn_up_exps.weight").unwrap().shape[1..].to_vec();
        let name = "blk.1.ffn_up.2.weight".to_owned();
        tensors.push(GgufTensor { name, storage: StorageType::F32, shape });
    });
    assert!(error.contains("is there twice"), "{error}");
    let error = rewrite(&|_, tensors| tensors.retain(|t| t.name != "blk.0.ffn_gate_inp.weight"));
    assert!(error.contains("model.layers.0.block_sparse_moe.gate.weight"), "{error}");
}

/// Texts that count up by one: something to learn.
fn counting(num: usize, len: usize) -> Dataset {
    let mut rng = Rng::new(9);
    let examples = (0..num).map(|_| {
        let first = rng.below(300);
        let token_ids = (0..len).map(|i| TokenId(((first + i) % 318) as u32)).collect();
        Example { token_ids, loss: (0..len).map(|i| i > 1).collect() }
    });
    Dataset::from_examples(examples.collect()).unwrap()
}

#[test]
fn attention_is_trained_by_default_and_experts_by_name() {
    let folder = TinyModel::mixtral().write();
    let model = Arc::new(open(folder.path(), WeightPrecision::AsStored));
    let data = counting(40, 30);
    let config = |targets: &[&str], dropout, threads| TrainConfig {
        lora: LoraConfig {
            rank: 8,
            dropout,
            target_modules: targets.iter().map(|t| (*t).to_owned()).collect(),
            ..LoraConfig::default()
        },
        optimizer: OptimizerConfig { learning_rate: 5e-3, ..OptimizerConfig::default() },
        batch_size: BatchSize::Examples(6),
        epochs: 3,
        threads: Some(threads),
        ..TrainConfig::default()
    };
    let engine =
        model.engine(&EngineOptions { kv_bytes: Some(1 << 22), ..EngineOptions::default() }).unwrap();
    let mut flops = Vec::new();
    // Per block: attention's four; with the router and three of each of five experts.
    for (targets, num_modules) in
        [(&[][..], 2 * 4), (&["all-linear"], 2 * 20), (&["w2"], 2 * 5), (&["gate"], 2)]
    {
        let one_step = TrainConfig { max_steps: Some(1), ..config(targets, 0.0, 2) };
        let trainer = Trainer::new(model.clone(), one_step).unwrap();
        flops.push(trainer.plan(&data, None).unwrap().estimate.flops);
        let name = format!("tuned-{num_modules}");
        let info = engine.train(&trainer, &data, &name, LoadOptions::default()).unwrap();
        assert_eq!(info.num_modules, num_modules, "{targets:?}");
    }
    // Factors of all experts count as those that a token takes.
    let per_token = |attention: u64, experts: u64| attention < experts && experts < 2 * attention;
    assert!(per_token(flops[0], flops[1]), "{flops:?}");

    // With dropout before the experts' factors, on any number of threads the same adapter; and it learns.
    let trained = |threads| {
        let trainer = Trainer::new(model.clone(), config(&["all-linear"], 0.1, threads)).unwrap();
        trainer.train(&data).unwrap()
    };
    let (one, two) = (trained(1), trained(2));
    assert_eq!(one.adapter().tensors_digest(), two.adapter().tensors_digest());
    let text: Vec<TokenId> = (40..80).map(TokenId).collect();
    let loss = |adapter: Option<&PeftAdapter>| {
        let rows = &logits(&model, adapter, std::slice::from_ref(&text))[0];
        let of =
            |(row, token): (&Vec<f32>, &TokenId)| -support::reference::log_softmax(row)[token.0 as usize];
        rows.iter().zip(&text[1..]).map(of).sum::<f64>() / (text.len() - 1) as f64
    };
    let (before, after) = (loss(None), loss(Some(one.adapter())));
    assert!(after < 0.8 * before, "from {before} to {after}");
}

/// The CUDA device, whose kernels run on the CPU: prompts, recorded steps with adapters, and gradients. Rows go to both of two
/// experts, so that no rounding sends one elsewhere.
#[test]
fn the_cuda_device_agrees_but_for_its_rounding() {
    let Some(kernels) = emulated::kernels() else { return };
    let tiny = TinyModel {
        experts: Some((2, 2)),
        hidden_size: 128,
        head_dim: 64,
        num_heads: 2,
        num_kv_heads: 1,
        storage: StorageType::BF16,
        ..TinyModel::mixtral()
    };
    let folder = tiny.write();
    let device = CudaDevice::over(Arc::new(EmulatedDriver::new(kernels, 1 << 30)), &CudaOptions::default());
    let model = Model::open_on(Arc::new(device.unwrap()), folder.path(), &ModelOptions::default()).unwrap();
    let kind = RandomLora { targets: MIXTRAL_MODULES.to_vec(), ..RandomLora::default() };
    let dir = folder.path().join("adapter");
    kind.write(model.config(), &dir);
    let adapter = PeftAdapter::open(&dir).unwrap();
    let reference = Reference::open(folder.path());
    let engine =
        model.engine(&EngineOptions { kv_bytes: Some(4 << 20), ..EngineOptions::default() }).unwrap();
    let source = AdapterSource::Path(dir.clone());
    engine.load_adapter("a", source, LoadOptions::default()).unwrap();
    // Prompts of fewer rows than are read back, and of more; and some steps of generation.
    for (name, reference) in [(None, reference.clone()), (Some("a"), reference.merged(&adapter))] {
        for len in [5, 50] {
            let request = Request {
                prompt_token_ids: Rng::new(3).tokens(len, 320).into(),
                adapter: name.map(str::to_owned),
                sampling: SamplingParams::greedy(),
                max_tokens: Some(6),
                ignore_eos: true,
                logprobs: Some(0),
                prompt_logprobs: Some(0),
                ..Request::default()
            };
            let completion = answer(&engine, request.clone());
            let mut text = request.prompt_token_ids.to_vec();
            text.extend(&completion.choices[0].token_ids);
            let rows = completion.prompt_logprobs.iter().flatten().flatten();
            let rows: Vec<_> = rows.chain(&completion.choices[0].logprobs).collect();
            assert_eq!(rows.len(), text.len() - 1);
            let want = &reference.mixtral_logits(&[text])[0];
            for (i, (row, want)) in rows.iter().zip(want).enumerate() {
                let want = support::reference::log_softmax(want)[row.token.0 as usize];
                let off = (f64::from(row.logprob) - want).abs();
                // Likelihoods of the least likely tokens are of the largest logits, with bf16's relative error.
                assert!(
                    off < 0.1 + 0.01 * want.abs(),
                    "{name:?}, {len} tokens, position {i}: {} and {want}",
                    row.logprob
                );
            }
        }
    }
    let config = TrainConfig {
        lora: LoraConfig {
            rank: kind.rank,
            alpha: kind.alpha,
            target_modules: MIXTRAL_MODULES.map(str::to_owned).into(),
            ..LoraConfig::default()
        },
        threads: Some(2),
        ..TrainConfig::default()
    };
    let data = counting(3, 40);
    let gradients = |model: &Model| {
        let trainer =
            wardrobe::train::Trainer::new(model.device().clone(), model.decoder().clone(), config.clone());
        trainer.unwrap().with_start(adapter.clone()).gradients(&data).unwrap()
    };
    let (got, want) = (gradients(&model), gradients(&open(folder.path(), WeightPrecision::AsStored)));
    assert!((got.loss / want.loss - 1.0).abs() < 0.01, "{} and {}", got.loss, want.loss);
    // The same model, its weights not rounded to BF16. What that changes is what rounding does to a gradient; a router's, which is a
    // difference of much larger numbers, it changes by a tenth.
    let unrounded = TinyModel { storage: StorageType::F32, ..tiny }.write();
    let unrounded = gradients(&open(unrounded.path(), WeightPrecision::AsStored));
    let norm =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let apart = |a: &[f32], b: &[f32]| norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    for wanted in &want.modules {
        let of = |all: &wardrobe::train::Gradients| {
            all.modules.iter().position(|m| m.path == wanted.path).unwrap()
        };
        let (got, unrounded) = (&got.modules[of(&got)], &unrounded.modules[of(&unrounded)]);
        for (got, want, unrounded) in [(&got.a, &wanted.a, &unrounded.a), (&got.b, &wanted.b, &unrounded.b)] {
            let (off, by_rounding) = (apart(got, want), apart(unrounded, want));
            let own = norm(&mut want.iter().copied());
            // A factor that was forgotten would be off by all of it.
            assert!(
                off < 2.0 * by_rounding && off < own / 4.0,
                "{}: {off} of {own}, by rounding {by_rounding}",
                wanted.path
            );
        }
    }
}
