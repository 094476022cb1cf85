//! The independent reference: candle-transformers' models on the same weights, dequantised to f32.
//!
//! Adapters are merged into the weights by plain candle matmuls. candle's Llama gives the logits of the last position
//! only, so texts are fed a token at a time into its key-value cache, all texts side by side as one batch; texts that
//! end earlier are padded at their end, which causal attention does not see. That is slow for a real model, where
//! candle's Qwen2, which is a Llama with biases and gives every position, computes the same with biases of zero; the
//! two are compared at the end of every text.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, mixtral, qwen2};
use wardrobe::{ModelConfig, TokenId};
use wardrobe_formats::{AdapterTensor, ModelFiles, PeftAdapter, RopeScaling, convert};

/// Logits of every position of every text: `[text][position][vocab]`.
pub type Logits = Vec<Vec<Vec<f32>>>;

/// A model's weights in f32.
#[derive(Clone)]
pub struct Reference {
    pub config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Reference {
    /// Reads a folder or GGUF file and dequantises everything.
    pub fn open(path: &Path) -> Self {
        let files = ModelFiles::open(path).unwrap();
        let source = files.tensors.as_ref();
        let tensors = source.tensors().iter().map(|info| {
            let values =
                convert::to_f32(info.storage, &source.read(&info.name).unwrap(), info.numel()).unwrap();
            let tensor = Tensor::from_vec(values, info.shape.as_slice(), &Device::Cpu).unwrap();
            (info.name.clone(), tensor)
        });
        Reference { config: files.config.clone(), tensors: tensors.collect() }
    }

    /// The same with an adapter merged into the weights: `W + scale B A`, and with DoRA's magnitudes `m` the rows of
    /// that scaled to length `m`.
    pub fn merged(&self, adapter: &PeftAdapter) -> Self {
        let mut merged = self.clone();
        for module in adapter.modules() {
            let name = format!("{}.weight", module.module_path);
            let weight = merged.tensors.get(&name).unwrap_or_else(|| panic!("no {name} in the model"));
            let update =
                (to_candle(&module.b).matmul(&to_candle(&module.a)).unwrap() * module.scale).unwrap();
            let mut sum = (weight + update).unwrap();
            if let Some(magnitude) = &module.magnitude {
                let norm = sum.sqr().unwrap().sum_keepdim(D::Minus1).unwrap().sqrt().unwrap();
                let factor = to_candle(magnitude).unsqueeze(1).unwrap().div(&norm).unwrap();
                sum = sum.broadcast_mul(&factor).unwrap();
            }
            merged.tensors.insert(name, sum);
        }
        merged
    }

    fn var_builder(&self) -> VarBuilder<'static> {
        let tensors = self.tensors.iter().map(|(name, t)| (name.clone(), t.clone())).collect();
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    }

    /// candle's Llama and its cache, for texts of up to `longest` tokens.
    fn llama(&self, longest: usize) -> (llama::Llama, llama::Cache) {
        let c = &self.config;
        assert_eq!(c.head_dim * c.num_heads, c.hidden_size, "candle's Llama has no head width of its own");
        let rope_scaling = match &c.rope_scaling {
            RopeScaling::None => None,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                Some(llama::Llama3RopeConfig {
                    factor: *factor as f32,
                    low_freq_factor: *low_freq_factor as f32,
                    high_freq_factor: *high_freq_factor as f32,
                    original_max_position_embeddings: *original_max_position,
                    rope_type: llama::Llama3RopeType::Llama3,
                })
            }
            // candle has no linear scaling by name: it is Llama 3's with every wavelength over the longest kept.
            RopeScaling::Linear { factor } => Some(llama::Llama3RopeConfig {
                factor: *factor as f32,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 1,
                rope_type: llama::Llama3RopeType::Llama3,
            }),
            other => panic!("candle's Llama has no {other:?}"),
        };
        let config = llama::Config {
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            vocab_size: c.vocab_size,
            num_hidden_layers: c.num_layers,
            num_attention_heads: c.num_heads,
            num_key_value_heads: c.num_kv_heads,
            use_flash_attn: false,
            rms_norm_eps: c.rms_norm_eps,
            rope_theta: c.rope_theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling,
            max_position_embeddings: longest,
            tie_word_embeddings: c.tie_word_embeddings,
        };
        let model = llama::Llama::load(self.var_builder(), &config).unwrap();
        (model, llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap())
    }

    /// Logits by candle's Llama.
    pub fn logits(&self, texts: &[Vec<TokenId>]) -> Logits {
        let longest = texts.iter().map(Vec::len).max().unwrap();
        let (model, mut cache) = self.llama(longest);
        let mut logits: Logits = vec![Vec::new(); texts.len()];
        for position in 0..longest {
            let column: Vec<u32> = texts.iter().map(|t| t.get(position).map_or(0, |id| id.0)).collect();
            let input = Tensor::from_vec(column, (texts.len(), 1), &Device::Cpu).unwrap();
            let rows = model.forward(&input, position, &mut cache).unwrap().to_vec2::<f32>().unwrap();
            for ((row, text), out) in rows.into_iter().zip(texts).zip(&mut logits) {
                if position < text.len() {
                    out.push(row);
                }
            }
        }
        logits
    }

    /// The same for a tied model with plain RoPE, every text in one pass, by candle's Qwen2 without biases; checked
    /// against candle's Llama at the last position of every text.
    pub fn logits_in_one_pass(&self, texts: &[Vec<TokenId>]) -> Logits {
        let c = &self.config;
        assert!(c.tie_word_embeddings && c.rope_scaling == RopeScaling::None);
        let longest = texts.iter().map(Vec::len).max().unwrap();
        let config = qwen2::Config {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_layers,
            num_attention_heads: c.num_heads,
            num_key_value_heads: c.num_kv_heads,
            max_position_embeddings: longest,
            sliding_window: longest,
            max_window_layers: c.num_layers,
            tie_word_embeddings: true,
            rope_theta: c.rope_theta,
            rms_norm_eps: c.rms_norm_eps,
            use_sliding_window: false,
            hidden_act: candle_nn::Activation::Silu,
        };
        let mut unbiased = self.clone();
        for layer in 0..c.num_layers {
            for (part, size) in [("q_proj", c.q_size()), ("k_proj", c.kv_size()), ("v_proj", c.kv_size())] {
                let zeros = Tensor::zeros(size, DType::F32, &Device::Cpu).unwrap();
                unbiased.tensors.insert(format!("model.layers.{layer}.self_attn.{part}.bias"), zeros);
            }
        }
        let mut model = qwen2::Model::new(&config, unbiased.var_builder()).unwrap();
        let head = self.tensors["model.embed_tokens.weight"].t().unwrap();
        let (llama, mut cache) = self.llama(longest);
        let input = |text: &[TokenId]| {
            let ids: Vec<u32> = text.iter().map(|t| t.0).collect();
            Tensor::from_vec(ids, (1, text.len()), &Device::Cpu).unwrap()
        };
        let of_text = |text: &Vec<TokenId>| {
            model.clear_kv_cache();
            let hidden = model.forward(&input(text), 0, None).unwrap().i(0).unwrap();
            let logits = hidden.matmul(&head).unwrap().to_vec2::<f32>().unwrap();
            cache.use_kv_cache = false;
            let last: Vec<f32> =
                llama.forward(&input(text), 0, &mut cache).unwrap().i(0).unwrap().to_vec1().unwrap();
            let differences = logits.last().unwrap().iter().zip(&last).map(|(a, b)| (a - b).abs());
            let difference = differences.fold(0.0, f32::max);
            assert!(difference < 5e-4, "candle's Qwen2 and Llama differ by {difference}");
            logits
        };
        texts.iter().map(of_text).collect()
    }

    /// Logits by candle's Mixtral, a token at a time as [`Reference::logits`].
    pub fn mixtral_logits(&self, texts: &[Vec<TokenId>]) -> Logits {
        let c = &self.config;
        assert_eq!(c.head_dim * c.num_heads, c.hidden_size, "candle's Mixtral has no head width of its own");
        assert_eq!((c.sliding_window, &c.rope_scaling), (None, &RopeScaling::None));
        let experts = c.experts.unwrap();
        let longest = texts.iter().map(Vec::len).max().unwrap();
        let config: mixtral::Config = serde_json::from_value(serde_json::json!({
            "vocab_size": c.vocab_size,
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_layers,
            "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": longest,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": c.rope_theta,
            "sliding_window": longest,
            "num_experts_per_tok": experts.num_experts_per_tok,
            "num_local_experts": experts.num_experts,
            "use_flash_attn": false,
        }))
        .unwrap();
        let mut with_head = self.clone();
        if c.tie_word_embeddings {
            let embedding = self.tensors["model.embed_tokens.weight"].clone();
            with_head.tensors.insert("lm_head.weight".to_owned(), embedding);
        }
        let mut model = mixtral::Model::new(&config, with_head.var_builder()).unwrap();
        let mut logits: Logits = vec![Vec::new(); texts.len()];
        for position in 0..longest {
            let column: Vec<u32> = texts.iter().map(|t| t.get(position).map_or(0, |id| id.0)).collect();
            let input = Tensor::from_vec(column, (texts.len(), 1), &Device::Cpu).unwrap();
            let rows = model.forward(&input, position).unwrap().squeeze(1).unwrap();
            let rows = rows.to_vec2::<f32>().unwrap();
            for ((row, text), out) in rows.into_iter().zip(texts).zip(&mut logits) {
                if position < text.len() {
                    out.push(row);
                }
            }
        }
        logits
    }

    /// Logits by candle's Mistral, which knows a head width of its own and a sliding window. Every prefix is computed
    /// anew, because with its cache candle applies no window.
    pub fn mistral_logits(&self, texts: &[Vec<TokenId>]) -> Logits {
        let c = &self.config;
        let config = mistral::Config {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_layers,
            num_attention_heads: c.num_heads,
            head_dim: Some(c.head_dim),
            num_key_value_heads: c.num_kv_heads,
            hidden_act: candle_nn::Activation::Silu,
            max_position_embeddings: c.max_position_embeddings,
            rms_norm_eps: c.rms_norm_eps,
            rope_theta: c.rope_theta,
            // candle masks keys that are *more* than this many positions back, transformers those that are this many
            // or more: a window of n tokens, the own one included, is n - 1 here.
            sliding_window: c.sliding_window.map(|n| n - 1),
            use_flash_attn: false,
        };
        let mut model = mistral::Model::new(&config, self.var_builder()).unwrap();
        let mut prefix = |tokens: &[TokenId]| -> Vec<f32> {
            let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
            let input = Tensor::from_vec(ids, (1, tokens.len()), &Device::Cpu).unwrap();
            model.clear_kv_cache();
            model.forward(&input, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        texts.iter().map(|text| (1..=text.len()).map(|n| prefix(&text[..n])).collect()).collect()
    }
}

fn to_candle(tensor: &AdapterTensor) -> Tensor {
    Tensor::from_vec(tensor.to_f32().unwrap(), tensor.shape(), &Device::Cpu).unwrap()
}

/// Log-probabilities of a row of logits, summed in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
}

/// Index of the largest.
pub fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}
