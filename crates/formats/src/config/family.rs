//! What architectures' configurations have of their own: names, and defaults of keys that are absent.
//!
//! Defaults are those of transformers' configuration classes.

/// An architecture that configurations are read and written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen3,
    Phi3,
    GptNeoX,
    Gemma2,
}

/// `architectures`, `model_type` and `general.architecture`. GGUF has Mistral and Mixtral as `llama`.
const NAMES: &[(Family, &str, &str, &str)] = &[
    (Family::Llama, "LlamaForCausalLM", "llama", "llama"),
    (Family::Mistral, "MistralForCausalLM", "mistral", "llama"),
    (Family::Mixtral, "MixtralForCausalLM", "mixtral", "llama"),
    (Family::Qwen2, "Qwen2ForCausalLM", "qwen2", "qwen2"),
    (Family::Qwen3, "Qwen3ForCausalLM", "qwen3", "qwen3"),
    (Family::Phi3, "Phi3ForCausalLM", "phi3", "phi3"),
    (Family::GptNeoX, "GPTNeoXForCausalLM", "gpt_neox", "gptneox"),
    (Family::Gemma2, "Gemma2ForCausalLM", "gemma2", "gemma2"),
];

impl Family {
    fn names(self) -> (&'static str, &'static str, &'static str) {
        let found = NAMES.iter().find(|(family, ..)| *family == self);
        found.map_or(("", "", ""), |(_, hf, model_type, gguf)| (hf, model_type, gguf))
    }

    /// By the name in `architectures`.
    pub(crate) fn of(architecture: &str) -> Option<Self> {
        NAMES.iter().find(|(_, hf, ..)| *hf == architecture).map(|(family, ..)| *family)
    }

    /// By `model_type`.
    pub(crate) fn of_model_type(model_type: &str) -> Option<Self> {
        NAMES.iter().find(|(_, _, name, _)| *name == model_type).map(|(family, ..)| *family)
    }

    /// By `general.architecture`.
    pub(crate) fn of_gguf(architecture: &str) -> Option<Self> {
        NAMES.iter().find(|(.., gguf)| *gguf == architecture).map(|(family, ..)| *family)
    }

    /// As `architectures` has it.
    pub(crate) fn hf(self) -> &'static str {
        self.names().0
    }

    /// As `model_type` has it.
    pub(crate) fn model_type(self) -> &'static str {
        self.names().1
    }

    /// As `general.architecture` has it.
    pub(crate) fn gguf(self) -> &'static str {
        self.names().2
    }

    /// The key of the norms' epsilon.
    pub(crate) fn norm_eps_key(self) -> &'static str {
        if self == Family::GptNeoX { "layer_norm_eps" } else { "rms_norm_eps" }
    }

    /// Whether a GGUF file of the family's name may have experts: those of Mixtral are called as Llama's are.
    pub(crate) fn may_have_experts(self) -> bool {
        self.gguf() == Family::Llama.gguf()
    }

    /// Whether there are heads of which only a part rotates.
    pub(crate) fn has_partial_rotary(self) -> bool {
        matches!(self, Family::Phi3 | Family::GptNeoX)
    }

    /// What absent keys of a `config.json` mean.
    pub(crate) fn defaults(self) -> Defaults {
        let plain = Defaults::default();
        match self {
            Family::Llama => plain,
            Family::Mistral => Defaults {
                num_kv_heads: Some(8),
                max_position_embeddings: 131_072,
                sliding_window: Some(4096),
                ..plain
            },
            Family::Mixtral => Defaults {
                num_kv_heads: Some(8),
                max_position_embeddings: 131_072,
                rope_theta: 1e6,
                norm_eps: 1e-5,
                ..plain
            },
            Family::Qwen2 => Defaults {
                max_position_embeddings: 32_768,
                sliding_window: Some(4096),
                uses_window: false,
                attention_bias: true,
                ..plain
            },
            Family::Qwen3 => Defaults {
                head_dim: Some(128),
                max_position_embeddings: 32_768,
                sliding_window: Some(4096),
                uses_window: false,
                ..plain
            },
            Family::Phi3 => Defaults { max_position_embeddings: 4096, norm_eps: 1e-5, ..plain },
            Family::GptNeoX => Defaults {
                norm_eps: 1e-5,
                hidden_act: "gelu",
                attention_bias: true,
                mlp_bias: true,
                partial_rotary_factor: 0.25,
                ..plain
            },
            Family::Gemma2 => Defaults {
                num_kv_heads: Some(4),
                head_dim: Some(256),
                max_position_embeddings: 8192,
                hidden_act: "gelu_pytorch_tanh",
                tie_word_embeddings: true,
                sliding_window: Some(4096),
                query_scalar: Some(256.0),
                attention_softcap: Some(50.0),
                logit_softcap: Some(30.0),
                ..plain
            },
        }
    }

    /// Whether a layer that no `layer_types` tells of has a sliding window. `first_windowed` is `max_window_layers`.
    pub(crate) fn is_windowed(self, layer_idx: usize, first_windowed: usize) -> bool {
        match self {
            Family::Qwen2 | Family::Qwen3 => layer_idx >= first_windowed,
            Family::Gemma2 => layer_idx.is_multiple_of(2),
            Family::Llama | Family::Mistral | Family::Mixtral | Family::Phi3 | Family::GptNeoX => true,
        }
    }
}

/// See [`Family::defaults`]; its own are Llama's.
pub(crate) struct Defaults {
    /// `None`: as many as there are query heads.
    pub(crate) num_kv_heads: Option<usize>,
    /// `None`: the width of the residual stream over the query heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: usize,
    pub(crate) norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) tie_word_embeddings: bool,
    pub(crate) attention_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) sliding_window: Option<usize>,
    /// `use_sliding_window`.
    pub(crate) uses_window: bool,
    /// `max_window_layers`.
    pub(crate) first_windowed: usize,
    pub(crate) hidden_act: &'static str,
    pub(crate) partial_rotary_factor: f64,
    pub(crate) query_scalar: Option<f64>,
    pub(crate) attention_softcap: Option<f64>,
    pub(crate) logit_softcap: Option<f64>,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            num_kv_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            norm_eps: 1e-6,
            rope_theta: 10_000.0,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            uses_window: true,
            first_windowed: 28,
            hidden_act: "silu",
            partial_rotary_factor: 1.0,
            query_scalar: None,
            attention_softcap: None,
            logit_softcap: None,
        }
    }
}
