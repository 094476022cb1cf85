//! From GGUF tensor names to Hugging Face's, and in what layout GGUF has the tensors.
//!
//! Both schemes are those of `gguf-py/gguf/tensor_mapping.py` and `convert_hf_to_gguf.py` of llama.cpp.

use super::RowOrder;
use crate::config::{ModelConfig, family::Family};

/// Where a GGUF tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HfName {
    /// It is a tensor of the model, under this name.
    Tensor(String),
    /// Divisors of the rotary frequencies (`rope_freqs.weight`, `rope_factors_long.weight`, `rope_factors_short.weight`),
    /// `[rotary_dim / 2]`; part of the configuration.
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

/// What a part of a block with experts is: the router, or all experts' or one expert's weight.
fn of_experts(layer_idx: u32, part: &str) -> Option<HfName> {
    if part == "ffn_gate_inp" {
        return Some(HfName::Tensor(format!("{LAYERS}{layer_idx}.{ROUTER}.weight")));
    }
    // All experts in one tensor, or, in older files, one tensor each.
    if let Some(&(_, part)) = EXPERT_PARTS.iter().find(|(gguf, _)| part.strip_suffix("_exps") == Some(gguf)) {
        return Some(HfName::Experts { layer_idx, part });
    }
    let (part, expert) = part.split_once('.')?;
    let (_, part) = EXPERT_PARTS.iter().find(|(gguf, _)| *gguf == part)?;
    let expert_idx: usize = expert.parse().ok()?;
    let is_plain = expert_idx.to_string() == expert;
    is_plain.then(|| HfName::Tensor(expert_name(layer_idx, expert_idx, part)))
}

/// How GGUF names and lays out the tensors of an architecture.
#[derive(Debug)]
pub struct Scheme {
    family: Family,
    /// Pairs of modules outside of the layers.
    whole: &'static [(&'static str, &'static str)],
    /// What Hugging Face's names of layers begin with.
    layers: &'static str,
    /// Pairs of modules in a layer, and whether they may have a bias.
    parts: &'static [(&'static str, &'static str, bool)],
}

const WHOLE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output", "lm_head"), ("output_norm", "model.norm")];
const LAYERS: &str = "model.layers.";
/// The router of a block with experts, in a layer.
const ROUTER: &str = "block_sparse_moe.gate";
const LLAMA: &[(&str, &str, bool)] = &[
    ("attn_norm", "input_layernorm", false),
    ("ffn_norm", "post_attention_layernorm", false),
    ("attn_q", "self_attn.q_proj", true),
    ("attn_k", "self_attn.k_proj", true),
    ("attn_v", "self_attn.v_proj", true),
    ("attn_output", "self_attn.o_proj", true),
    ("ffn_gate", "mlp.gate_proj", true),
    ("ffn_up", "mlp.up_proj", true),
    ("ffn_down", "mlp.down_proj", true),
];
const QWEN3: &[(&str, &str, bool)] = &[
    ("attn_norm", "input_layernorm", false),
    ("ffn_norm", "post_attention_layernorm", false),
    ("attn_q", "self_attn.q_proj", true),
    ("attn_k", "self_attn.k_proj", true),
    ("attn_v", "self_attn.v_proj", true),
    ("attn_output", "self_attn.o_proj", true),
    ("attn_q_norm", "self_attn.q_norm", false),
    ("attn_k_norm", "self_attn.k_norm", false),
    ("ffn_gate", "mlp.gate_proj", false),
    ("ffn_up", "mlp.up_proj", false),
    ("ffn_down", "mlp.down_proj", false),
];
const PHI3: &[(&str, &str, bool)] = &[
    ("attn_norm", "input_layernorm", false),
    ("ffn_norm", "post_attention_layernorm", false),
    ("attn_qkv", "self_attn.qkv_proj", false),
    ("attn_output", "self_attn.o_proj", false),
    ("ffn_up", "mlp.gate_up_proj", false),
    ("ffn_down", "mlp.down_proj", false),
];
const GPT_NEOX: &[(&str, &str, bool)] = &[
    ("attn_norm", "input_layernorm", true),
    ("ffn_norm", "post_attention_layernorm", true),
    ("attn_qkv", "attention.query_key_value", true),
    ("attn_output", "attention.dense", true),
    ("ffn_up", "mlp.dense_h_to_4h", true),
    ("ffn_down", "mlp.dense_4h_to_h", true),
];
const GEMMA2: &[(&str, &str, bool)] = &[
    ("attn_norm", "input_layernorm", false),
    ("post_attention_norm", "post_attention_layernorm", false),
    ("ffn_norm", "pre_feedforward_layernorm", false),
    ("post_ffw_norm", "post_feedforward_layernorm", false),
    ("attn_q", "self_attn.q_proj", false),
    ("attn_k", "self_attn.k_proj", false),
    ("attn_v", "self_attn.v_proj", false),
    ("attn_output", "self_attn.o_proj", false),
    ("ffn_gate", "mlp.gate_proj", false),
    ("ffn_up", "mlp.up_proj", false),
    ("ffn_down", "mlp.down_proj", false),
];
const WHOLE_NEOX: &[(&str, &str)] = &[
    ("token_embd", "gpt_neox.embed_in"),
    ("output", "embed_out"),
    ("output_norm", "gpt_neox.final_layer_norm"),
];

const fn scheme(family: Family, parts: &'static [(&'static str, &'static str, bool)]) -> Scheme {
    Scheme { family, whole: WHOLE, layers: LAYERS, parts }
}

static SCHEMES: &[Scheme] = &[
    scheme(Family::Llama, LLAMA),
    scheme(Family::Mistral, LLAMA),
    scheme(Family::Mixtral, LLAMA),
    scheme(Family::Qwen2, LLAMA),
    scheme(Family::Qwen3, QWEN3),
    scheme(Family::Phi3, PHI3),
    Scheme { family: Family::GptNeoX, whole: WHOLE_NEOX, layers: "gpt_neox.layers.", parts: GPT_NEOX },
    scheme(Family::Gemma2, GEMMA2),
];

impl Scheme {
    /// That of an architecture by its name in GGUF files (`llama`); `None` if it is not known here.
    pub fn of_gguf(architecture: &str) -> Option<&'static Self> {
        let family = Family::of_gguf(architecture)?;
        SCHEMES.iter().find(|scheme| scheme.family == family)
    }

    /// That of an architecture by Hugging Face's name (`LlamaForCausalLM`).
    pub fn of(architecture: &str) -> Option<&'static Self> {
        let family = Family::of(architecture)?;
        SCHEMES.iter().find(|scheme| scheme.family == family)
    }

    /// The architecture's name in GGUF files, which is what its metadata's keys begin with.
    pub fn gguf_architecture(&self) -> &'static str {
        self.family.gguf()
    }

    /// The Hugging Face name of the tensor `gguf_name`; `None` if the architecture has no such tensor.
    pub fn hf_name(&self, gguf_name: &str) -> Option<HfName> {
        if ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"].contains(&gguf_name)
        {
            return Some(HfName::RopeFactors);
        }
        let (module, parameter) = gguf_name.rsplit_once('.')?;
        if let Some((gguf, hf)) = self.whole.iter().find(|(gguf, _)| *gguf == module) {
            let has_bias = *gguf == "output_norm" && self.family == Family::GptNeoX;
            let is_known = parameter == "weight" || (parameter == "bias" && has_bias);
            return is_known.then(|| HfName::Tensor(format!("{hf}.{parameter}")));
        }
        let (layer, part) = module.strip_prefix("blk.")?.split_once('.')?;
        let layer_idx: u32 = layer.parse().ok()?;
        // "01" or "+1" would give a second name to layer 1.
        if layer_idx.to_string() != layer {
            return None;
        }
        if (part, parameter) == ("attn_rot_embd", "weight") {
            return Some(HfName::Derived);
        }
        if parameter == "weight"
            && self.family.may_have_experts()
            && let Some(name) = of_experts(layer_idx, part)
        {
            return Some(name);
        }
        let (_, hf, has_bias) = self.parts.iter().find(|(gguf, ..)| *gguf == part)?;
        let is_known = parameter == "weight" || (parameter == "bias" && *has_bias);
        is_known.then(|| HfName::Tensor(format!("{}{layer_idx}.{hf}.{parameter}", self.layers)))
    }

    /// The GGUF name of the tensor `hf_name`, the inverse of [`Scheme::hf_name`]; `None` if GGUF has no such tensor.
    pub fn gguf_name(&self, hf_name: &str) -> Option<String> {
        // transformers 5 calls GPT-NeoX' head by the name that others have.
        let is_renamed = self.family == Family::GptNeoX && hf_name == "lm_head.weight";
        let hf_name = if is_renamed { "embed_out.weight" } else { hf_name };
        let (module, parameter) = hf_name.rsplit_once('.')?;
        let gguf = match self.whole.iter().find(|(_, hf)| *hf == module) {
            Some((gguf, _)) => format!("{gguf}.{parameter}"),
            None => {
                let (layer, part) = module.strip_prefix(self.layers)?.split_once('.')?;
                let found = self.parts.iter().find(|(_, hf, _)| *hf == part);
                let gguf = match found {
                    Some((gguf, ..)) => gguf,
                    None if part == ROUTER => "ffn_gate_inp",
                    None => return None,
                };
                format!("blk.{layer}.{gguf}.{parameter}")
            }
        };
        // The other direction knows which parameters and layers there are.
        (self.hf_name(&gguf) == Some(HfName::Tensor(hf_name.to_owned()))).then_some(gguf)
    }

    /// The order in which a file has the rows of the tensor `hf_name`.
    pub fn order(&self, hf_name: &str, config: &ModelConfig) -> RowOrder {
        let head_dim = config.head_dim;
        match self.family {
            Family::Llama | Family::Mistral | Family::Mixtral
                if hf_name.contains(".q_proj.") || hf_name.contains(".k_proj.") =>
            {
                RowOrder::InterleavedPairs { head_dim }
            }
            Family::GptNeoX if hf_name.contains(".query_key_value.") => {
                RowOrder::PartsOfHeads { head_dim, num_heads: config.num_heads }
            }
            _ => RowOrder::Same,
        }
    }

    /// What a file has added to every element of the tensor `hf_name`: Gemma's norms multiply by one more than their
    /// weights, which files have with the one.
    pub fn offset(&self, hf_name: &str) -> f32 {
        let is_norm = hf_name.ends_with("norm.weight");
        if self.family == Family::Gemma2 && is_norm { 1.0 } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_llama_family() {
        let llama = Scheme::of_gguf("llama").unwrap();
        let tensor = |name: &str| match llama.hf_name(name) {
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
        assert_eq!(llama.hf_name("rope_freqs.weight"), Some(HfName::RopeFactors));
        assert_eq!(llama.hf_name("blk.1.attn_rot_embd.weight"), Some(HfName::Derived));
    }

    #[test]
    fn names_of_the_others() {
        let tensor = |arch: &str, name: &str| match Scheme::of_gguf(arch).unwrap().hf_name(name) {
            Some(HfName::Tensor(hf)) => hf,
            other => panic!("{arch} {name}: {other:?}"),
        };
        assert_eq!(tensor("qwen2", "blk.1.attn_q.bias"), "model.layers.1.self_attn.q_proj.bias");
        assert_eq!(tensor("qwen3", "blk.1.attn_k_norm.weight"), "model.layers.1.self_attn.k_norm.weight");
        assert_eq!(tensor("phi3", "blk.2.ffn_up.weight"), "model.layers.2.mlp.gate_up_proj.weight");
        let post = "model.layers.0.post_feedforward_layernorm.weight";
        assert_eq!(tensor("gemma2", "blk.0.post_ffw_norm.weight"), post);
        let qkv = "gpt_neox.layers.5.attention.query_key_value.bias";
        assert_eq!(tensor("gptneox", "blk.5.attn_qkv.bias"), qkv);
        assert_eq!(tensor("gptneox", "output_norm.bias"), "gpt_neox.final_layer_norm.bias");
        assert_eq!(
            Scheme::of("GPTNeoXForCausalLM").unwrap().gguf_name("lm_head.weight").unwrap(),
            "output.weight"
        );
        assert!(Scheme::of_gguf("llama").unwrap().hf_name("blk.0.attn_q_norm.weight").is_none());
        assert!(Scheme::of_gguf("qwen3").unwrap().hf_name("blk.0.attn_qkv.weight").is_none());
        assert!(Scheme::of_gguf("gpt2").is_none() && Scheme::of("GPT2LMHeadModel").is_none());
    }

    #[test]
    fn names_lead_back() {
        for scheme in SCHEMES {
            for (part, _, has_bias) in scheme.parts {
                for parameter in ["weight", "bias"] {
                    let gguf = format!("blk.7.{part}.{parameter}");
                    let hf = scheme.hf_name(&gguf);
                    assert_eq!(hf.is_some(), parameter == "weight" || *has_bias, "{gguf}");
                    if let Some(HfName::Tensor(hf)) = hf {
                        assert_eq!(scheme.gguf_name(&hf), Some(gguf));
                    }
                }
            }
        }
        let llama = Scheme::of("LlamaForCausalLM").unwrap();
        assert_eq!(llama.gguf_name("lm_head.weight").as_deref(), Some("output.weight"));
        for name in
            ["lm_head.bias", "model.layers.01.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.scale", "x"]
        {
            assert_eq!(llama.gguf_name(name), None, "{name}");
        }
    }

    #[test]
    fn names_of_experts() {
        let scheme = Scheme::of("MixtralForCausalLM").unwrap();
        let of_all = |part| Some(HfName::Experts { layer_idx: 3, part });
        assert_eq!(scheme.hf_name("blk.3.ffn_gate_exps.weight"), of_all("w1"));
        assert_eq!(scheme.hf_name("blk.3.ffn_down_exps.weight"), of_all("w2"));
        assert_eq!(scheme.hf_name("blk.3.ffn_up_exps.weight"), of_all("w3"));
        for (gguf, hf) in [
            ("blk.3.ffn_gate_inp.weight", "model.layers.3.block_sparse_moe.gate.weight"),
            ("blk.3.ffn_gate.7.weight", "model.layers.3.block_sparse_moe.experts.7.w1.weight"),
            ("blk.3.ffn_down.0.weight", "model.layers.3.block_sparse_moe.experts.0.w2.weight"),
            ("blk.3.ffn_up.12.weight", "model.layers.3.block_sparse_moe.experts.12.w3.weight"),
        ] {
            assert_eq!(scheme.hf_name(gguf), Some(HfName::Tensor(hf.to_owned())));
        }
        let gate = "model.layers.3.block_sparse_moe.gate.weight";
        assert_eq!(scheme.gguf_name(gate).as_deref(), Some("blk.3.ffn_gate_inp.weight"));
        assert_eq!(gguf_experts_name(gate), None);
        let up = expert_name(3, 12, "w3");
        assert_eq!(gguf_experts_name(&up), Some(("blk.3.ffn_up_exps.weight".to_owned(), 12)));
        assert_eq!(scheme.gguf_name(&up), None);
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
            assert_eq!(Scheme::of_gguf("llama").unwrap().hf_name(name), None, "{name}");
        }
    }
}
