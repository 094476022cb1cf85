//! What is made up is what the configuration says, the same each time, and numbers that a model could have.

use std::cell::Cell;

use wardrobe_device::cpu::{CpuDevice, CpuOptions};
use wardrobe_device::{CtxConfig, Device, StepLimits, Weight};
use wardrobe_formats::{HiddenAct, RopeScaling};

use super::*;

const HELD: [StorageType; 8] = {
    use StorageType::*;
    [F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K]
};

/// Rows are whole blocks of every type, and whole panels of the CPU.
fn config() -> ModelConfig {
    ModelConfig {
        architecture: "LlamaForCausalLM".to_owned(),
        hidden_size: 256,
        intermediate_size: 512,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 64,
        vocab_size: 320,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 64,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
        sliding_window: None,
        full_attention_layers: Vec::new(),
        partial_rotary_dim: None,
        parallel_residual: false,
        query_scalar: None,
        attention_softcap: None,
        logit_softcap: None,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        hidden_act: HiddenAct::Silu,
        experts: None,
    }
}

/// Every other architecture, with what sets it apart.
fn others() -> Vec<ModelConfig> {
    let of = |architecture: &str| ModelConfig { architecture: architecture.to_owned(), ..config() };
    let neox = || ModelConfig { num_kv_heads: 4, hidden_act: HiddenAct::Gelu, ..of("GPTNeoXForCausalLM") };
    let gemma = || ModelConfig { hidden_act: HiddenAct::GeluTanh, ..of("Gemma2ForCausalLM") };
    vec![
        ModelConfig { attention_bias: true, ..of("Qwen2ForCausalLM") },
        of("Qwen3ForCausalLM"),
        ModelConfig { attention_bias: true, tie_word_embeddings: false, ..of("Qwen3ForCausalLM") },
        ModelConfig { tie_word_embeddings: false, ..of("Phi3ForCausalLM") },
        ModelConfig { attention_bias: true, mlp_bias: true, tie_word_embeddings: false, ..neox() },
        ModelConfig { mlp_bias: true, ..neox() },
        gemma(),
    ]
}

struct Loaded {
    device: Arc<dyn Device>,
    decoder: Arc<dyn Decoder>,
}

impl Loaded {
    fn of(config: &ModelConfig, storage: StorageType, seed: u64) -> Result<Self> {
        Self::with(config, DummySpec { storage, seed }, &LoadOptions::default())
    }

    fn with(config: &ModelConfig, spec: DummySpec, options: &LoadOptions<'_>) -> Result<Self> {
        let device: Arc<dyn Device> = Arc::new(CpuDevice::new(CpuOptions::default())?);
        let step = StepLimits { max_rows: 1, max_seqs: 1, max_blocks: 1 };
        let mut ctx = Ctx::new(device.clone(), CtxConfig { arena_bytes: 0, step })?;
        Ok(Self { device, decoder: load_dummy(&mut ctx, config, &spec, options)? })
    }

    fn values(&self, weight: &Weight) -> Vec<f32> {
        let mut values = vec![0.0; weight.rows() * weight.cols()];
        self.device.dequantise_rows(weight, 0, &mut values).unwrap();
        values
    }

    fn module(&self, path: &str) -> Vec<f32> {
        self.values(&self.decoder.modules().iter().find(|m| m.path == path).unwrap().weight)
    }
}

const FIRST: &str = "model.layers.0.self_attn.q_proj";
const SECOND: &str = "model.layers.1.self_attn.q_proj";

#[test]
fn numbers_follow_from_configuration_type_and_seed() {
    for storage in HELD {
        let (one, again) =
            (Loaded::of(&config(), storage, 7).unwrap(), Loaded::of(&config(), storage, 7).unwrap());
        assert_eq!(one.module(FIRST), again.module(FIRST), "{storage}");
        assert_eq!(one.decoder.content_digest(), again.decoder.content_digest(), "{storage}");
        assert_ne!(one.module(FIRST), one.module(SECOND), "{storage}");
        let other = Loaded::of(&config(), storage, 8).unwrap();
        assert_ne!(one.module(FIRST), other.module(FIRST), "{storage}");
        assert_ne!(one.decoder.content_digest(), other.decoder.content_digest(), "{storage}");
    }
    let digest =
        |config: &ModelConfig, storage| Loaded::of(config, storage, 7).unwrap().decoder.content_digest();
    let first = digest(&config(), StorageType::BF16);
    assert_ne!(first, digest(&config(), StorageType::F16));
    assert_ne!(first, digest(&ModelConfig { rope_theta: 20_000.0, ..config() }, StorageType::BF16));
}

#[test]
fn sizes_of_every_architecture_are_known_before() {
    for config in others() {
        let read = Cell::new((0, 0));
        let progress = |_: &str, bytes, total| read.set((bytes, total));
        let spec = DummySpec { storage: StorageType::BF16, seed: 0 };
        let options = LoadOptions { precision: WeightPrecision::AsStored, progress: &progress };
        let loaded = Loaded::with(&config, spec, &options).unwrap();
        let size = spec.size(&config, options.precision);
        assert_eq!(size.weight_bytes, loaded.decoder.weight_bytes() as u64, "{config:?}");
        assert_eq!(read.get().0, read.get().1, "{config:?}");
    }
}

#[test]
fn numbers_are_of_the_size_of_a_new_models() {
    for storage in HELD {
        let values = Loaded::of(&config(), storage, 1).unwrap().module(FIRST);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 5e-4, "{storage}: mean {mean}");
        let deviation = (square - mean * mean).sqrt();
        assert!((0.018..0.022).contains(&deviation), "{storage}: deviation {deviation}");
        assert!(values.iter().all(|v| v.is_finite() && v.abs() < 0.1), "{storage}");
    }
}

#[test]
fn sizes_are_known_before() {
    let stored = HELD.map(|storage| (storage, WeightPrecision::AsStored, false, true));
    let others = [(true, false), (true, true)].map(|(biased, tied)| {
        [WeightPrecision::AsStored, WeightPrecision::F32].map(|p| (StorageType::BF16, p, biased, tied))
    });
    for (storage, precision, biased, tied) in stored.into_iter().chain(others.into_iter().flatten()) {
        let config =
            ModelConfig { tie_word_embeddings: tied, attention_bias: biased, mlp_bias: biased, ..config() };
        let (read, total) = (Cell::new(0), Cell::new(0));
        let progress = |_: &str, read_bytes, total_bytes| {
            read.set(read_bytes);
            total.set(total_bytes);
        };
        let spec = DummySpec { storage, seed: 0 };
        let loaded = Loaded::with(&config, spec, &LoadOptions { precision, progress: &progress }).unwrap();
        let size = spec.size(&config, precision);
        let what = format!("{storage}, {precision:?}, biases {biased}, tied {tied}");
        assert_eq!(size.weight_bytes, loaded.decoder.weight_bytes() as u64, "{what}");
        assert_eq!(read.get(), total.get(), "{what}");
    }
}

/// Experts count by their number, and a token goes to those of its choice.
#[test]
fn experts_are_counted() {
    // As many as a panel has rows, which devices fill up.
    let experts = Some(wardrobe_formats::ExpertsConfig { num_experts: 16, num_experts_per_tok: 2 });
    let config = ModelConfig { architecture: "MixtralForCausalLM".to_owned(), experts, ..config() };
    for storage in HELD {
        let loaded = Loaded::of(&config, storage, 3).unwrap();
        let size = DummySpec { storage, seed: 3 }.size(&config, WeightPrecision::AsStored);
        assert_eq!(size.weight_bytes, loaded.decoder.weight_bytes() as u64, "{storage}");
        // Per block: attention's four, the router, three of each expert; and the head.
        assert_eq!(loaded.decoder.modules().len(), config.num_layers * (4 + 1 + 3 * 16) + 1);
        let part = |e: usize| loaded.module(&format!("model.layers.0.block_sparse_moe.experts.{e}.w1"));
        assert_ne!(part(0), part(4));
    }
    let dense = ModelConfig { experts: None, ..config };
    let refused = Loaded::of(&dense, StorageType::F32, 3).err().unwrap().to_string();
    assert!(refused.contains("without experts"), "{refused}");
}

#[test]
fn the_largest_configuration_has_a_size() {
    let largest = ModelConfig {
        hidden_size: 1 << 18,
        intermediate_size: 1 << 20,
        num_layers: 2048,
        num_heads: 4096,
        num_kv_heads: 4096,
        head_dim: 2048,
        vocab_size: 1 << 24,
        attention_bias: true,
        mlp_bias: true,
        ..config()
    };
    largest.check("config.json".as_ref()).unwrap();
    let size = DummySpec { storage: StorageType::F32, seed: 0 }.size(&largest, WeightPrecision::F32);
    assert!(size.weight_bytes > 1 << 50 && size.staging_bytes > 1 << 40, "{size:?}");
}

#[test]
fn there_is_what_the_configuration_says() {
    let has = |config: ModelConfig, name: &str| {
        DummyWeights::new(&config, &DummySpec { storage: StorageType::F32, seed: 0 }).unwrap().has(name)
    };
    let (q, up) = ("model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.bias");
    for name in [q, up, "lm_head.bias", "lm_head.weight"] {
        assert!(!has(config(), name), "{name}");
    }
    let biased = || ModelConfig { attention_bias: true, ..config() };
    assert!(has(biased(), q) && !has(biased(), up));
    let biased = || ModelConfig { mlp_bias: true, ..config() };
    assert!(!has(biased(), q) && has(biased(), up));
    let untied = || ModelConfig { tie_word_embeddings: false, ..config() };
    assert!(has(untied(), "lm_head.weight") && !has(untied(), "lm_head.bias"));
    let loaded = Loaded::of(&untied(), StorageType::BF16, 0).unwrap();
    assert_ne!(loaded.module("lm_head")[..256], loaded.module(FIRST)[..256]);
}

#[test]
fn a_tensor_larger_than_the_pattern_begins_it_again() {
    let storage = StorageType::Q4_K;
    let mut weights = DummyWeights::new(&config(), &DummySpec { storage, seed: 3 }).unwrap();
    let (rows, cols) = (70_000, 256);
    let (_, bytes) = weights.read("large.weight", &[rows, cols]).unwrap();
    let pattern = weights.pattern.clone();
    assert_eq!(bytes.len(), storage.bytes_for(rows * cols).unwrap());
    let end = bytes.windows(64).position(|part| part == &pattern[pattern.len() - 64..]).unwrap() + 64;
    assert_eq!(bytes[end..end + pattern.len()], pattern);
    assert_eq!(bytes[..end], pattern[pattern.len() - end..]);
    // A smaller one after it is not what was there before.
    let info = TensorInfo { name: String::new(), storage, shape: vec![rows, cols] };
    weights.used(info, bytes);
    let (_, small) = weights.read("small.weight", &[2, cols]).unwrap();
    assert_eq!(small.len(), storage.bytes_for(2 * cols).unwrap());
    assert_ne!(small, pattern[..small.len()]);
}

#[test]
fn rows_of_a_matrix_differ() {
    // A row for each number of the pattern's length and more: none is another one.
    let mut weights =
        DummyWeights::new(&config(), &DummySpec { storage: StorageType::Q8_0, seed: 0 }).unwrap();
    let (rows, cols) = (100_000, 128);
    let (info, bytes) = weights.read("model.embed_tokens.weight", &[rows, cols]).unwrap();
    let rows: std::collections::HashSet<&[u8]> = bytes.chunks(info.row_bytes().unwrap()).collect();
    assert_eq!(rows.len(), 100_000);
}

#[test]
fn what_cannot_be_made_up_is_said() {
    let refused =
        |config: &ModelConfig, storage| Loaded::of(config, storage, 0).map(|_| ()).unwrap_err().to_string();
    let narrow = ModelConfig { intermediate_size: 100, ..config() };
    let said = refused(&narrow, StorageType::Q4_0);
    assert!(
        said.contains("model.layers.0.mlp.down_proj.weight") && said.contains("100") && said.contains("Q4_0"),
        "{said}"
    );
    assert!(Loaded::of(&narrow, StorageType::BF16, 0).is_ok());
    let said = refused(&config(), StorageType::Q5_0);
    assert!(said.contains("Q5_0"), "{said}");
    let other = ModelConfig { architecture: "GPT2LMHeadModel".to_owned(), ..config() };
    let said = refused(&other, StorageType::BF16);
    assert!(said.contains("GPT2LMHeadModel") && said.contains("LlamaForCausalLM"), "{said}");
}

#[test]
#[ignore = "measures the time that making up takes; for a machine at rest"]
fn time_of_making_up() {
    for storage in [StorageType::BF16, StorageType::Q4_0] {
        let started = std::time::Instant::now();
        let mut weights = DummyWeights::new(&config(), &DummySpec { storage, seed: 0 }).unwrap();
        println!("{storage}: the pattern in {:?}", started.elapsed());
        // The matrices of Llama-3.1-8B.
        let block = [
            (4096, 4096),
            (1024, 4096),
            (1024, 4096),
            (4096, 4096),
            (14336, 4096),
            (14336, 4096),
            (4096, 14336),
        ];
        let blocks = std::iter::repeat_n(block, 32).flatten();
        let (started, mut made_bytes) = (std::time::Instant::now(), 0);
        for (i, (rows, cols)) in [(128_256, 4096); 2].into_iter().chain(blocks).enumerate() {
            let (info, bytes) = weights.read(&format!("{i}.weight"), &[rows, cols]).unwrap();
            made_bytes += bytes.len();
            weights.used(info, bytes);
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{storage}: {made_bytes} bytes in {seconds:.2} s, {:.1} GB/s",
            made_bytes as f64 / seconds / 1e9
        );
    }
}
