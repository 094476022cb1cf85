//! From GGUF tensor names to Hugging Face's.
//!
//! Both schemes are the ones of the Llama family: `gguf-py/gguf/tensor_mapping.py` of llama.cpp lists the pairs.

/// Where a GGUF tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HfName {
    /// It is a tensor of the model, under this name.
    Tensor(String),
    /// `rope_freqs.weight`: the divisors of the rotary frequencies, `[head_dim / 2]`; part of the configuration.
    RopeFactors,
    /// It is the same part of all experts of a block, `[experts, out, in]`: expert `e`'s is
    /// [`expert_name`]`(layer_idx, e, part)`.
    Experts {
        /// Number of the block.
        layer_idx: u32,
        /// `w1`, `w2` or `w3`.
        part: &'static str,
    },
    /// A table that can be computed (`blk.N.attn_rot_embd.weight`), left out as other readers do.
    Derived,
}

/// Parts of experts in GGUF's naming and in Hugging Face's.
const EXPERT_PARTS: [(&str, &str); 3] = [("ffn_gate", "w1"), ("ffn_down", "w2"), ("ffn_up", "w3")];

/// The Hugging Face name of an expert's weight; `part` is `w1`, `w2` or `w3`.
pub fn expert_name(layer_idx: u32, expert: usize, part: &str) -> String {
    format!("model.layers.{layer_idx}.block_sparse_moe.experts.{expert}.{part}.weight")
}

/// The GGUF name of the tensor that has the same part of all experts of a block, for one of them, the expert and the
/// Hugging Face name `name`; `None` for the name of another tensor.
pub fn gguf_experts_name(name: &str) -> Option<(String, usize)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (expert, part) =
        rest.strip_prefix("block_sparse_moe.experts.")?.strip_suffix(".weight")?.split_once('.')?;
    let (layer_idx, expert) = (layer.parse::<u32>().ok()?, expert.parse::<usize>().ok()?);
    let (gguf, _) = EXPERT_PARTS.iter().find(|(_, hf)| *hf == part)?;
    (expert_name(layer_idx, expert, part) == name)
        .then(|| (format!("blk.{layer_idx}.{gguf}_exps.weight"), expert))
}

/// The Hugging Face name of the Llama-family tensor `gguf_name`; `None` if the family has no such tensor.
pub fn hf_name(gguf_name: &str) -> Option<HfName> {
    let whole = match gguf_name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output.weight" => Some("lm_head.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "rope_freqs.weight" => return Some(HfName::RopeFactors),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(HfName::Tensor(name.to_owned()));
    }
    let (layer, rest) = gguf_name.strip_prefix("blk.")?.split_once('.')?;
    let layer_idx: u32 = layer.parse().ok()?;
    // "01" or "+1" would give a second name to layer 1.
    if layer_idx.to_string() != layer {
        return None;
    }
    let (part, parameter) = rest.rsplit_once('.')?;
    if parameter == "weight" {
        // All experts in one tensor, or, in older files, one tensor each.
        let of_all = EXPERT_PARTS.iter().find(|(gguf, _)| part.strip_suffix("_exps") == Some(gguf));
        if let Some(&(_, part)) = of_all {
            return Some(HfName::Experts { layer_idx, part });
        }
        if let Some((part, expert)) = part.split_once('.') {
            let (_, part) = EXPERT_PARTS.iter().find(|(gguf, _)| *gguf == part)?;
            let expert_idx: usize = expert.parse().ok()?;
            let is_plain = expert_idx.to_string() == expert;
            return is_plain.then(|| HfName::Tensor(expert_name(layer_idx, expert_idx, part)));
        }
    }
    let module = match (part, parameter) {
        ("ffn_gate_inp", "weight") => "block_sparse_moe.gate",
        ("attn_rot_embd", "weight") => return Some(HfName::Derived),
        ("attn_norm", "weight") => "input_layernorm",
        ("ffn_norm", "weight") => "post_attention_layernorm",
        ("attn_q", "weight" | "bias") => "self_attn.q_proj",
        ("attn_k", "weight" | "bias") => "self_attn.k_proj",
        ("attn_v", "weight" | "bias") => "self_attn.v_proj",
        ("attn_output", "weight" | "bias") => "self_attn.o_proj",
        ("ffn_gate", "weight" | "bias") => "mlp.gate_proj",
        ("ffn_up", "weight" | "bias") => "mlp.up_proj",
        ("ffn_down", "weight" | "bias") => "mlp.down_proj",
        _ => return None,
    };
    Some(HfName::Tensor(format!("model.layers.{layer_idx}.{module}.{parameter}")))
}

/// The GGUF name of the Llama-family tensor `hf_name`, the inverse of [`hf_name`]; `None` if GGUF has no such tensor.
pub fn gguf_name(name: &str) -> Option<String> {
    let whole = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "lm_head.weight" => Some("output.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        _ => None,
    };
    if let Some(name) = whole {
        return Some(name.to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, parameter) = rest.rsplit_once('.')?;
    let part = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "block_sparse_moe.gate" => "ffn_gate_inp",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    let gguf = format!("blk.{layer}.{part}.{parameter}");
    // The other direction knows which parameters and layers there are.
    (hf_name(&gguf) == Some(HfName::Tensor(name.to_owned()))).then_some(gguf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_llama_family() {
        let tensor = |name: &str| match hf_name(name) {
            Some(HfName::Tensor(hf)) => hf,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(tensor("token_embd.weight"), "model.embed_tokens.weight");
        assert_eq!(tensor("output.weight"), "lm_head.weight");
        assert_eq!(tensor("output_norm.weight"), "model.norm.weight");
        assert_eq!(tensor("blk.3.attn_q.weight"), "model.layers.3.self_attn.q_proj.weight");
        assert_eq!(tensor("blk.3.attn_k.bias"), "model.layers.3.self_attn.k_proj.bias");
        assert_eq!(tensor("blk.12.attn_v.weight"), "model.layers.12.self_attn.v_proj.weight");
        assert_eq!(tensor("blk.0.attn_output.weight"), "model.layers.0.self_attn.o_proj.weight");
        assert_eq!(tensor("blk.0.attn_norm.weight"), "model.layers.0.input_layernorm.weight");
        assert_eq!(tensor("blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(tensor("blk.0.ffn_gate.weight"), "model.layers.0.mlp.gate_proj.weight");
        assert_eq!(tensor("blk.0.ffn_up.weight"), "model.layers.0.mlp.up_proj.weight");
        assert_eq!(tensor("blk.0.ffn_down.bias"), "model.layers.0.mlp.down_proj.bias");
        assert_eq!(hf_name("rope_freqs.weight"), Some(HfName::RopeFactors));
        assert_eq!(hf_name("blk.1.attn_rot_embd.weight"), Some(HfName::Derived));
    }

    #[test]
    fn names_lead_back() {
        let mut found = 0;
        for part in
            ["attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"]
        {
            for parameter in ["weight", "bias"] {
                let gguf = format!("blk.7.{part}.{parameter}");
                if let Some(HfName::Tensor(hf)) = hf_name(&gguf) {
                    assert_eq!(gguf_name(&hf), Some(gguf));
                    found += 1;
                }
            }
        }
        assert_eq!(found, 14);
        assert_eq!(gguf_name("lm_head.weight").as_deref(), Some("output.weight"));
        for name in
            ["lm_head.bias", "model.layers.01.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.scale", "x"]
        {
            assert_eq!(gguf_name(name), None, "{name}");
        }
    }

    #[test]
    fn names_of_experts() {
        let of_all = |part| Some(HfName::Experts { layer_idx: 3, part });
        assert_eq!(hf_name("blk.3.ffn_gate_exps.weight"), of_all("w1"));
        assert_eq!(hf_name("blk.3.ffn_down_exps.weight"), of_all("w2"));
        assert_eq!(hf_name("blk.3.ffn_up_exps.weight"), of_all("w3"));
        for (gguf, hf) in [
            ("blk.3.ffn_gate_inp.weight", "model.layers.3.block_sparse_moe.gate.weight"),
            ("blk.3.ffn_gate.7.weight", "model.layers.3.block_sparse_moe.experts.7.w1.weight"),
            ("blk.3.ffn_down.0.weight", "model.layers.3.block_sparse_moe.experts.0.w2.weight"),
            ("blk.3.ffn_up.12.weight", "model.layers.3.block_sparse_moe.experts.12.w3.weight"),
        ] {
            assert_eq!(hf_name(gguf), Some(HfName::Tensor(hf.to_owned())));
        }
        let gate = "model.layers.3.block_sparse_moe.gate.weight";
        assert_eq!(gguf_name(gate).as_deref(), Some("blk.3.ffn_gate_inp.weight"));
        assert_eq!(gguf_experts_name(gate), None);
        let up = expert_name(3, 12, "w3");
        assert_eq!(gguf_experts_name(&up), Some(("blk.3.ffn_up_exps.weight".to_owned(), 12)));
        assert_eq!(gguf_name(&up), None);
        for name in [
            "model.layers.03.block_sparse_moe.experts.1.w3.weight",
            "model.layers.3.block_sparse_moe.experts.01.w3.weight",
            "model.layers.3.block_sparse_moe.experts.1.w4.weight",
            "model.layers.3.block_sparse_moe.experts.1.w3.bias",
        ] {
            assert_eq!(gguf_experts_name(name), None, "{name}");
        }
    }

    #[test]
    fn other_names_are_not_guessed() {
        for name in [
            "",
            "blk",
            "blk.",
            "blk.0",
            "blk.0.",
            "blk.0.attn_q",
            "blk.01.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.-1.attn_q.weight",
            "blk.99999999999.attn_q.weight",
            "blk.0.attn_norm.bias",
            "blk.0.ffn_gate_exps.bias",
            "blk.0.ffn_gate_shexp.weight",
            "blk.0.attn_q_exps.weight",
            "blk.0.ffn_gate.01.weight",
            "blk.0.ffn_gate.1.bias",
            "blk.0.attn_q.1.weight",
            "blk.0.ffn_gate_inp.bias",
            "blk.0.attn_q.weight.extra",
            "output.bias",
        ] {
            assert_eq!(hf_name(name), None, "{name}");
        }
    }
}
