//! The fuzz targets' bodies on stable: seeded mutations of valid files, within a time that CI can spare.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wardrobe_formats::gguf::{self, Array, GgufTensor, Value};
use wardrobe_formats::safetensors::{self, TensorData};
use wardrobe_formats::{StorageType, fuzzing};

const ITERATIONS: u64 = 3000;
/// Over this the loop stops; under a debugger or on a loaded machine fewer iterations are no failure.
const MAX_TIME: Duration = Duration::from_secs(5);
const MIN_ITERATIONS: u64 = 200;

/// xorshift64*: deterministic, so that a failure's seed can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One to four changes: flipped bits, extreme numbers, a cut, a run copied elsewhere. Mostly in the head, where the
/// structure is.
fn mutate(valid: &[u8], head: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            break;
        }
        let range = if random.below(8) == 0 { bytes.len() } else { head.min(bytes.len()) };
        let at = random.below(range);
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => {
                let extremes = [0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 1 << 40, 31, random.next()];
                let value = extremes[random.below(extremes.len())].to_le_bytes();
                let width = [1, 4, 8][random.below(3)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&value[..width]);
            }
            3 => bytes.truncate(at),
            4 => {
                let len = random.below(32).min(bytes.len() - at);
                let run = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, run);
            }
            _ => {
                let len = random.below(16).min(bytes.len() - at);
                bytes.drain(at..at + len);
            }
        }
    }
    bytes
}

/// Runs `body` on mutations of `valid`; gives how many were accepted and how many refused.
fn run(valid: &[u8], head: usize, seed: u64, body: impl Fn(&[u8]) -> bool) -> (u64, u64) {
    assert!(body(valid), "the valid file has to be accepted");
    let started = Instant::now();
    let (mut accepted, mut refused) = (0, 0);
    for i in 0..ITERATIONS {
        if i >= MIN_ITERATIONS && started.elapsed() > MAX_TIME {
            eprintln!("stopped after {i} iterations");
            break;
        }
        let mut random = Random(seed ^ (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let bytes = mutate(valid, head, &mut random);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&bytes)));
        match outcome {
            Ok(true) => accepted += 1,
            Ok(false) => refused += 1,
            Err(_) => panic!("iteration {i} of seed {seed:#x} panicked"),
        }
    }
    (accepted, refused)
}

fn on_file(dir: &Path, body: fn(&Path) -> bool) -> impl Fn(&[u8]) -> bool {
    let path: PathBuf = dir.join("fuzzed");
    move |bytes| {
        std::fs::write(&path, bytes).unwrap();
        body(&path)
    }
}

fn valid_gguf(dir: &Path) -> Vec<u8> {
    let text = |s: &str| Value::String(s.into());
    let metadata: Vec<(String, Value)> = [
        ("general.architecture", text("llama")),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(128)),
        ("llama.embedding_length", Value::U32(64)),
        ("llama.feed_forward_length", Value::U32(96)),
        ("llama.attention.head_count", Value::U32(4)),
        ("llama.attention.head_count_kv", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.scaling.type", text("linear")),
        ("llama.rope.scaling.factor", Value::F32(2.0)),
        ("tokenizer.ggml.tokens", Value::Array(Array::String((0..10).map(|i| i.to_string()).collect()))),
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1; 10]))),
        ("x.nested", Value::Array(Array::Array(vec![Array::U8(vec![1, 2]), Array::Bool(vec![true])]))),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .to_vec();
    let tensor = |name: &str, storage, shape: &[usize]| GgufTensor {
        name: name.into(),
        storage,
        shape: shape.to_vec(),
    };
    let tensors = [
        tensor("token_embd.weight", StorageType::Q8_0, &[10, 64]),
        tensor("blk.0.attn_q.weight", StorageType::Q4_1, &[64, 64]),
        tensor("blk.0.attn_k.weight", StorageType::F16, &[32, 64]),
        tensor("blk.0.attn_norm.weight", StorageType::F32, &[64]),
        tensor("blk.0.ffn_down.weight", StorageType::Q6_K, &[2, 256]),
    ];
    let path = dir.join("valid.gguf");
    gguf::write(&path, &metadata, &tensors, |i| {
        let numel: usize = tensors[i].shape.iter().product();
        Ok(vec![7; tensors[i].storage.bytes_for(numel).unwrap()])
    })
    .unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn gguf_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let valid = valid_gguf(dir.path());
    let (accepted, refused) = run(&valid, 1400, 0x6767_7566, on_file(dir.path(), fuzzing::gguf));
    assert!(accepted > 0 && refused > accepted, "{accepted} accepted, {refused} refused");
}

#[test]
fn safetensors_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("valid");
    let bytes = [5; 64];
    let tensors = [
        TensorData { name: "a", storage: StorageType::F32, shape: &[4, 4], bytes: &bytes },
        TensorData { name: "b", storage: StorageType::BF16, shape: &[3], bytes: &bytes[..6] },
        TensorData { name: "c", storage: StorageType::F8_E5M2, shape: &[], bytes: &bytes[..1] },
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::write(&path, &tensors, &metadata).unwrap();
    let valid = std::fs::read(path).unwrap();
    let (accepted, refused) =
        run(&valid, valid.len() - 71, 0x7361_6665, on_file(dir.path(), fuzzing::safetensors));
    assert!(accepted > 0 && refused > accepted, "{accepted} accepted, {refused} refused");
}

#[test]
fn peft_configurations_never_panic() {
    let valid = br#"{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1,
        "target_modules": "model\\.layers\\.\\d+\\.(q|v)_proj", "exclude_modules": ["k_proj"], "bias": "none",
        "rank_pattern": {"q_proj": 4, "layers\\.[0-3]\\.x": 2}, "alpha_pattern": {"^v_proj": 1.5}, "use_rslora": true,
        "layers_to_transform": [0, 1], "layers_pattern": "layers", "modules_to_save": ["lm_head"],
        "init_lora_weights": "gaussian", "eva_config": {"rho": 2.0}, "kasa_config": null, "inference_mode": true}"#;
    let body = |bytes: &[u8]| fuzzing::peft_config(&String::from_utf8_lossy(bytes));
    let (accepted, refused) = run(valid, valid.len(), 0x7065_6674, body);
    assert!(accepted > 0 && refused > accepted, "{accepted} accepted, {refused} refused");
}

#[test]
fn adapter_records_never_panic() {
    let valid = br#"{"version": 1, "rope": {"rope_theta": 500000.0, "max_position_embeddings": 32768, "rope_scaling":
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.7, "mscale_all_dim": 1.0, "truncate": true}}}"#;
    let body = |bytes: &[u8]| fuzzing::adapter_record(&String::from_utf8_lossy(bytes));
    let (accepted, refused) = run(valid, valid.len(), 0x726f_7065, body);
    assert!(accepted > 0 && refused > accepted, "{accepted} accepted, {refused} refused");
}
