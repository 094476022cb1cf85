//! Each architecture's definition in candle's plain tensor operations, in f64, with gradients. It reads the model's `config.json`
//! itself and shares no code with ours.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use serde_json::{Value, json};
use wardrobe::TokenId;
use wardrobe_formats::PeftAdapter;

use super::{Family, HEADS, HIDDEN, INNER, LAYERS};

/// A model in f64, with an adapter's factors as variables.
pub struct Reference {
    config: Value,
    weights: BTreeMap<String, Tensor>,
    pub factors: BTreeMap<String, (Var, Var, f64)>,
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

impl Reference {
    pub fn new(family: &Family, adapter: Option<&PeftAdapter>) -> Self {
        let weights =
            family.tensors.iter().map(|(name, shape, values)| (name.clone(), tensor(values, shape)));
        let var = |t: &wardrobe_formats::AdapterTensor| {
            Var::from_tensor(&tensor(&t.to_f32().unwrap(), t.shape())).unwrap()
        };
        let factors = adapter.iter().flat_map(|a| a.modules());
        let factors = factors.map(|m| (m.module_path.clone(), (var(&m.a), var(&m.b), m.scale)));
        Reference { config: family.config.clone(), weights: weights.collect(), factors: factors.collect() }
    }

    fn float(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("{key}"))
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.weights.get(name).unwrap_or_else(|| panic!("{name}"))
    }

    fn linear(&self, x: &Tensor, path: &str) -> Tensor {
        let name = format!("{path}.weight");
        let is_tied = !self.weights.contains_key(&name);
        let weight = self.weight(if is_tied { "model.embed_tokens.weight" } else { &name });
        let mut out = x.matmul(&weight.t().unwrap()).unwrap();
        if let Some(bias) = self.weights.get(&format!("{path}.bias")) {
            out = out.broadcast_add(bias).unwrap();
        }
        let Some((a, b, scale)) = self.factors.get(path) else { return out };
        let low = x.matmul(&a.t().unwrap()).unwrap();
        (out + (low.matmul(&b.t().unwrap()).unwrap() * *scale).unwrap()).unwrap()
    }

    /// Over the last extent, with `one` added to the weights.
    fn rms_norm(&self, x: &Tensor, path: &str, one: f64) -> Tensor {
        let mean = x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let root = (mean + self.float("rms_norm_eps")).unwrap().sqrt().unwrap();
        let weight = (self.weight(&format!("{path}.weight")) + one).unwrap();
        x.broadcast_div(&root).unwrap().broadcast_mul(&weight).unwrap()
    }

    fn layer_norm(&self, x: &Tensor, path: &str) -> Tensor {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let root = (variance + self.float("layer_norm_eps")).unwrap().sqrt().unwrap();
        let scaled = centred.broadcast_div(&root).unwrap();
        let scaled = scaled.broadcast_mul(self.weight(&format!("{path}.weight"))).unwrap();
        scaled.broadcast_add(self.weight(&format!("{path}.bias"))).unwrap()
    }

    fn act(&self, x: &Tensor) -> Tensor {
        let key =
            if self.config["hidden_activation"].is_string() { "hidden_activation" } else { "hidden_act" };
        let half = (x * 0.5).unwrap();
        let odd = match self.config[key].as_str().unwrap_or("silu") {
            "silu" => {
                let sigmoid = (x.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap();
                return (x * sigmoid).unwrap();
            }
            "gelu" => (x / 2f64.sqrt()).unwrap().erf().unwrap(),
            "gelu_new" | "gelu_pytorch_tanh" => {
                let cube = (x.sqr().unwrap() * x).unwrap();
                let inner = (x + (cube * 0.044715).unwrap()).unwrap();
                (inner * (2.0 / std::f64::consts::PI).sqrt()).unwrap().tanh().unwrap()
            }
            other => panic!("{other}"),
        };
        (&half * (odd + 1.0).unwrap()).unwrap()
    }

    /// Radians a position of each pair, and the factor on cosines and sines.
    fn frequencies(&self, rotary: usize, theta: f64) -> (Vec<f64>, f64) {
        let plain = (0..rotary).step_by(2).map(|i| theta.powf(-(i as f64) / rotary as f64));
        let Some(scaling) = self.config["rope_scaling"].as_object() else { return (plain.collect(), 1.0) };
        let (context, original) =
            (self.float("max_position_embeddings"), self.float("original_max_position_embeddings"));
        let factors = &scaling[if context > original { "long_factor" } else { "short_factor" }];
        let attention = (1.0 + (context / original).ln() / original.ln()).sqrt();
        let factors = factors.as_array().unwrap().iter().map(|f| f64::from(f.as_f64().unwrap() as f32));
        (plain.zip(factors).map(|(f, by)| f / by).collect(), attention)
    }

    /// Of `[heads, seq, dim]`.
    fn rope(&self, x: &Tensor, (frequencies, factor): &(Vec<f64>, f64)) -> Tensor {
        let (_, seq, dim) = x.dims3().unwrap();
        let half = frequencies.len();
        let table = |f: fn(f64) -> f64| {
            let angles = (0..seq).flat_map(|p| frequencies.iter().map(move |w| p as f64 * w));
            let values: Vec<f64> = angles.map(|a| factor * f(a)).collect();
            Tensor::from_vec(values, (seq, half), &Device::Cpu).unwrap()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let (a, b) = (x.narrow(2, 0, half).unwrap(), x.narrow(2, half, half).unwrap());
        let by = |x: &Tensor, t: &Tensor| x.broadcast_mul(t).unwrap();
        let mut parts = vec![(by(&a, &cos) - by(&b, &sin)).unwrap(), (by(&b, &cos) + by(&a, &sin)).unwrap()];
        if dim > 2 * half {
            parts.push(x.narrow(2, 2 * half, dim - 2 * half).unwrap());
        }
        Tensor::cat(&parts, 2).unwrap()
    }

    /// Causal attention of `[heads, seq, dim]`, `[seq, heads * dim]`.
    fn attend(&self, [q, k, v]: [Tensor; 3], scale: f64, window: Option<usize>) -> Tensor {
        let (heads, seq, dim) = q.dims3().unwrap();
        let group = heads / k.dim(0).unwrap();
        let repeat = |t: Tensor| {
            let parts: Vec<Tensor> = (0..heads).map(|h| t.narrow(0, h / group, 1).unwrap()).collect();
            Tensor::cat(&parts, 0).unwrap()
        };
        let (k, v) = (repeat(k), repeat(v));
        let keys = k.transpose(1, 2).unwrap().contiguous().unwrap();
        let mut scores = (q.matmul(&keys).unwrap() * scale).unwrap();
        if let Some(cap) = self.config["attn_logit_softcapping"].as_f64() {
            scores = ((scores / cap).unwrap().tanh().unwrap() * cap).unwrap();
        }
        let window = window.unwrap_or(usize::MAX);
        let mask: Vec<f64> = (0..seq)
            .flat_map(|i| (0..seq).map(move |j| if j <= i && i - j < window { 0.0 } else { -1e9 }))
            .collect();
        let mask = Tensor::from_vec(mask, (seq, seq), &Device::Cpu).unwrap();
        let scores = scores.broadcast_add(&mask).unwrap();
        let most = scores.max_keepdim(D::Minus1).unwrap().detach();
        let e = scores.broadcast_sub(&most).unwrap().exp().unwrap();
        let weights = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let out = weights.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        out.reshape((seq, heads * dim)).unwrap()
    }

    /// `[seq, heads * dim]` to `[heads, seq, dim]`.
    fn heads(x: &Tensor, heads: usize) -> Tensor {
        let (seq, len) = x.dims2().unwrap();
        let x = x.reshape((seq, heads, len / heads)).unwrap();
        x.transpose(0, 1).unwrap().contiguous().unwrap()
    }

    fn columns(x: &Tensor, first: usize, len: usize) -> Tensor {
        x.narrow(1, first, len).unwrap().contiguous().unwrap()
    }

    fn window(&self, layer: usize) -> Option<usize> {
        let window = self.config["sliding_window"].as_u64().map(|w| w as usize);
        match self.config["model_type"].as_str().unwrap() {
            "qwen2" | "qwen3" => window.filter(|_| {
                self.config["use_sliding_window"] == json!(true)
                    && layer as u64 >= self.config["max_window_layers"].as_u64().unwrap()
            }),
            "gemma2" => window.filter(|_| layer.is_multiple_of(2)),
            _ => window,
        }
    }

    /// Separate projections: Qwen's and Gemma's.
    fn attention(&self, x: &Tensor, layer: usize, head_norms: bool, scalar: Option<f64>) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.self_attn.{part}");
        let mut q = Self::heads(&self.linear(x, &at("q_proj")), HEADS);
        let mut k = Self::heads(&self.linear(x, &at("k_proj")), 2);
        let v = Self::heads(&self.linear(x, &at("v_proj")), 2);
        if head_norms {
            q = self.rms_norm(&q, &at("q_norm"), 0.0);
            k = self.rms_norm(&k, &at("k_norm"), 0.0);
        }
        let dim = q.dim(2).unwrap();
        let rope = self.frequencies(dim, self.float("rope_theta"));
        let scale = scalar.unwrap_or(dim as f64).sqrt().recip();
        let out = self.attend([self.rope(&q, &rope), self.rope(&k, &rope), v], scale, self.window(layer));
        self.linear(&out, &at("o_proj"))
    }

    fn gated_mlp(&self, x: &Tensor, layer: usize) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.mlp.{part}_proj");
        let inner = (self.act(&self.linear(x, &at("gate"))) * self.linear(x, &at("up"))).unwrap();
        self.linear(&inner, &at("down"))
    }

    fn qwen_block(&self, x: &Tensor, layer: usize, is_third: bool) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let normed = self.rms_norm(x, &at("input_layernorm"), 0.0);
        let x = (x + self.attention(&normed, layer, is_third, None)).unwrap();
        let normed = self.rms_norm(&x, &at("post_attention_layernorm"), 0.0);
        (&x + self.gated_mlp(&normed, layer)).unwrap()
    }

    fn phi3_block(&self, x: &Tensor, layer: usize) -> Tensor {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let dim = HIDDEN / HEADS;
        let normed = self.rms_norm(x, &at("input_layernorm"), 0.0);
        let qkv = self.linear(&normed, &at("self_attn.qkv_proj"));
        let q = Self::heads(&Self::columns(&qkv, 0, HIDDEN), HEADS);
        let k = Self::heads(&Self::columns(&qkv, HIDDEN, 2 * dim), 2);
        let v = Self::heads(&Self::columns(&qkv, HIDDEN + 2 * dim, 2 * dim), 2);
        let rotary = (dim as f64 * self.config["partial_rotary_factor"].as_f64().unwrap_or(1.0)) as usize;
        let rope = self.frequencies(rotary, self.float("rope_theta"));
        let scale = (dim as f64).sqrt().recip();
        let out = self.attend([self.rope(&q, &rope), self.rope(&k, &rope), v], scale, self.window(layer));
        let x = (x + self.linear(&out, &at("self_attn.o_proj"))).unwrap();
        let normed = self.rms_norm(&x, &at("post_attention_layernorm"), 0.0);
        let both = self.linear(&normed, &at("mlp.gate_up_proj"));
        let inner = (self.act(&Self::columns(&both, 0, INNER)) * Self::columns(&both, INNER, INNER)).unwrap();
        (&x + self.linear(&inner, &at("mlp.down_proj"))).unwrap()
    }

    fn neox_block(&self, x: &Tensor, layer: usize) -> Tensor {
        let at = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        let dim = HIDDEN / HEADS;
        let qkv = self.linear(&self.layer_norm(x, &at("input_layernorm")), &at("attention.query_key_value"));
        // [seq, heads, 3 * dim].
        let seq = qkv.dim(0).unwrap();
        let by_head = qkv.reshape((seq, HEADS, 3 * dim)).unwrap().transpose(0, 1).unwrap();
        let part = |i: usize| by_head.narrow(2, i * dim, dim).unwrap().contiguous().unwrap();
        let rotary = (dim as f64 * self.float("rotary_pct")) as usize;
        let rope = self.frequencies(rotary, self.float("rotary_emb_base"));
        let qkv = [self.rope(&part(0), &rope), self.rope(&part(1), &rope), part(2)];
        let attended =
            self.linear(&self.attend(qkv, (dim as f64).sqrt().recip(), None), &at("attention.dense"));
        let mlp = |x: &Tensor| {
            let normed = self.layer_norm(x, &at("post_attention_layernorm"));
            let inner = self.act(&self.linear(&normed, &at("mlp.dense_h_to_4h")));
            self.linear(&inner, &at("mlp.dense_4h_to_h"))
        };
        if self.config["use_parallel_residual"] == json!(true) {
            return ((mlp(x) + attended).unwrap() + x).unwrap();
        }
        let x = (x + attended).unwrap();
        (&x + mlp(&x)).unwrap()
    }

    fn gemma_block(&self, x: &Tensor, layer: usize) -> Tensor {
        let norm =
            |x: &Tensor, part: &str| self.rms_norm(x, &format!("model.layers.{layer}.{part}_layernorm"), 1.0);
        let scalar = Some(self.float("query_pre_attn_scalar"));
        let attended = self.attention(&norm(x, "input"), layer, false, scalar);
        let x = (x + norm(&attended, "post_attention")).unwrap();
        let out = self.gated_mlp(&norm(&x, "pre_feedforward"), layer);
        (&x + norm(&out, "post_feedforward")).unwrap()
    }

    /// Logits of every position, `[seq, vocabulary]`.
    pub fn logits(&self, tokens: &[TokenId]) -> Tensor {
        let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
        let ids = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap();
        let kind = self.config["model_type"].as_str().unwrap();
        let embed = if kind == "gpt_neox" { "gpt_neox.embed_in.weight" } else { "model.embed_tokens.weight" };
        let mut x = self.weight(embed).index_select(&ids, 0).unwrap();
        if kind == "gemma2" {
            x = (x * (HIDDEN as f64).sqrt()).unwrap();
        }
        for layer in 0..LAYERS {
            x = match kind {
                "qwen2" => self.qwen_block(&x, layer, false),
                "qwen3" => self.qwen_block(&x, layer, true),
                "phi3" => self.phi3_block(&x, layer),
                "gpt_neox" => self.neox_block(&x, layer),
                "gemma2" => self.gemma_block(&x, layer),
                other => panic!("{other}"),
            };
        }
        let logits = match kind {
            "gpt_neox" => self.linear(&self.layer_norm(&x, "gpt_neox.final_layer_norm"), "embed_out"),
            "gemma2" => self.linear(&self.rms_norm(&x, "model.norm", 1.0), "lm_head"),
            _ => self.linear(&self.rms_norm(&x, "model.norm", 0.0), "lm_head"),
        };
        match self.config["final_logit_softcapping"].as_f64() {
            Some(cap) => ((logits / cap).unwrap().tanh().unwrap() * cap).unwrap(),
            None => logits,
        }
    }

    /// The same as rows of numbers.
    pub fn rows(&self, tokens: &[TokenId]) -> Vec<Vec<f64>> {
        self.logits(tokens).to_dtype(DType::F64).unwrap().to_vec2().unwrap()
    }
}
