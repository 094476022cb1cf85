//! GGUF files as llama.cpp's converter writes them, from its description.

use std::path::Path;

use serde_json::Value;
use wardrobe_formats::gguf::{self, GgufTensor, Value as Meta};
use wardrobe_formats::{StorageType, convert};

use super::{Family, HEADS, HIDDEN, INNER, LAYERS};

impl Family {
    fn number(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    /// Writes a GGUF file as llama.cpp's converter does.
    pub fn write_gguf(&self, path: &Path) {
        let arch = match self.config["model_type"].as_str().unwrap() {
            "gpt_neox" => "gptneox",
            other => other,
        };
        let key = |name: &str| format!("{arch}.{name}");
        let number = |name: &str, value: usize| (key(name), Meta::U32(value as u32));
        let float = |name: &str, value: &Value| (key(name), Meta::F32(value.as_f64().unwrap() as f32));
        let c = &self.config;
        let head_dim = c["head_dim"].as_u64().map_or(HIDDEN / HEADS, |d| d as usize);
        let mut metadata = vec![
            ("general.architecture".to_owned(), Meta::String(arch.to_owned())),
            number("block_count", LAYERS),
            number("context_length", self.number("max_position_embeddings")),
            number("embedding_length", HIDDEN),
            number("feed_forward_length", INNER),
            number("attention.head_count", HEADS),
        ];
        let rotary = c["rotary_pct"].as_f64().or(c["partial_rotary_factor"].as_f64()).unwrap_or(1.0);
        let rotary = (head_dim as f64 * rotary) as usize;
        if arch == "gptneox" {
            metadata.push(float("attention.layer_norm_epsilon", &c["layer_norm_eps"]));
            metadata.push(float("rope.freq_base", &c["rotary_emb_base"]));
            metadata.push(number("rope.dimension_count", rotary));
            let parallel = c["use_parallel_residual"].as_bool().unwrap();
            metadata.push((key("use_parallel_residual"), Meta::Bool(parallel)));
        } else {
            metadata.push(number("attention.head_count_kv", 2));
            metadata.push(float("attention.layer_norm_rms_epsilon", &c["rms_norm_eps"]));
            metadata.push(float("rope.freq_base", &c["rope_theta"]));
        }
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        match arch {
            "qwen3" => metadata.push(number("attention.key_length", head_dim)),
            "phi3" => {
                metadata.push(number("rope.dimension_count", rotary));
                metadata.push(number(
                    "attention.sliding_window",
                    c["sliding_window"].as_u64().unwrap_or(0) as usize,
                ));
                let original = self.number("original_max_position_embeddings");
                metadata.push(number("rope.scaling.original_context_length", original));
                if let Some(scaling) = c["rope_scaling"].as_object() {
                    let scale = self.number("max_position_embeddings") as f64 / original as f64;
                    let attention =
                        if scale > 1.0 { (1.0 + scale.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
                    metadata.push((key("rope.scaling.attn_factor"), Meta::F32(attention as f32)));
                    for kind in ["long", "short"] {
                        let values: Vec<f32> = scaling[&format!("{kind}_factor")]
                            .as_array()
                            .unwrap()
                            .iter()
                            .map(|v| v.as_f64().unwrap() as f32)
                            .collect();
                        tensors.push((format!("rope_factors_{kind}.weight"), vec![values.len()], values));
                    }
                }
            }
            "gemma2" => {
                metadata.push(number("attention.key_length", head_dim));
                metadata.push(number("attention.value_length", head_dim));
                metadata.push(number("attention.sliding_window", self.number("sliding_window")));
                metadata.push(float("attn_logit_softcapping", &c["attn_logit_softcapping"]));
                metadata.push(float("final_logit_softcapping", &c["final_logit_softcapping"]));
            }
            _ => {}
        }
        for (name, shape, values) in &self.tensors {
            let mut values = values.clone();
            if name.contains("query_key_value") {
                // [head][q, k, v][width] to [q, k, v][head][width].
                let row: usize = shape.iter().skip(1).product();
                let piece = HIDDEN / HEADS * row;
                let parts = (0..3).flat_map(|part| (0..HEADS).map(move |head| 3 * head + part));
                values = parts.flat_map(|i| values[i * piece..(i + 1) * piece].to_vec()).collect();
            }
            if arch == "gemma2" && name.ends_with("norm.weight") {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            tensors.push((gguf_name(arch, name), shape.clone(), values));
        }
        let described: Vec<GgufTensor> = (tensors.iter())
            .map(|(name, shape, _)| GgufTensor {
                name: name.clone(),
                storage: StorageType::F32,
                shape: shape.clone(),
            })
            .collect();
        gguf::write(path, &metadata, &described, |i| convert::from_f32(StorageType::F32, &tensors[i].2, 1))
            .unwrap();
    }
}

fn gguf_name(arch: &str, name: &str) -> String {
    let (module, parameter) = name.rsplit_once('.').unwrap();
    let module = match module {
        "model.embed_tokens" | "gpt_neox.embed_in" => "token_embd".to_owned(),
        "lm_head" | "embed_out" => "output".to_owned(),
        "model.norm" | "gpt_neox.final_layer_norm" => "output_norm".to_owned(),
        _ => {
            let (_, rest) = module.split_once("layers.").unwrap();
            let (layer, part) = rest.split_once('.').unwrap();
            let part = match part {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" if arch == "gemma2" => "post_attention_norm",
                "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
                "post_feedforward_layernorm" => "post_ffw_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "self_attn.qkv_proj" | "attention.query_key_value" => "attn_qkv",
                "self_attn.o_proj" | "attention.dense" => "attn_output",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" | "mlp.gate_up_proj" | "mlp.dense_h_to_4h" => "ffn_up",
                "mlp.down_proj" | "mlp.dense_4h_to_h" => "ffn_down",
                other => panic!("{other}"),
            };
            format!("blk.{layer}.{part}")
        }
    };
    format!("{module}.{parameter}")
}
