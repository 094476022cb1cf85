//! Qwen2, Qwen2.5 and Qwen3 (Yang et al., arXiv 2407.10671, 2412.15115 and 2505.09388).
//!
//! Llama's blocks with biases on queries, keys and values (Qwen2), or with norms of each of their heads before the rotation
//! (Qwen3); late layers may have a sliding window.

use std::sync::Arc;

use wardrobe_device::{Ctx, Result as DeviceResult, Step, Tensor};
use wardrobe_formats::{HiddenAct, ModelConfig};

use super::parts::{self, Attention, Block, Frame, GatedMlp, Norm, Stack};
use crate::error::Result;
use crate::loader::Loader;
use crate::{BlockState, Decoder};

#[derive(Debug)]
struct Layer {
    input_norm: Norm,
    attention: Attention,
    post_attention_norm: Norm,
    mlp: GatedMlp,
}

/// Loads one.
pub(super) fn load(mut l: Loader<'_>, config: ModelConfig) -> Result<Arc<dyn Decoder>> {
    if config.hidden_act != HiddenAct::Silu {
        return Err(parts::unsupported_act(&config));
    }
    let is_qwen2 = config.architecture == "Qwen2ForCausalLM";
    let (embed, head) = parts::ENDS;
    let embedding = l.weight(&format!("{embed}.weight"), config.vocab_size, config.hidden_size)?;
    let layers = (0..config.num_layers)
        .map(|i| {
            let at = |part: &str| format!("model.layers.{i}.{part}");
            let input_norm = Norm::rms(&mut l, &config, &at("input_layernorm"))?;
            let mut attention = Attention::load(&mut l, &config, i, is_qwen2 || config.attention_bias)?;
            if !is_qwen2 {
                attention = attention.with_head_norms(&mut l, &config, i)?;
            }
            let post_attention_norm = Norm::rms(&mut l, &config, &at("post_attention_layernorm"))?;
            let mlp = GatedMlp::load(&mut l, &config, i)?;
            Ok(Layer { input_norm, attention, post_attention_norm, mlp })
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = Norm::rms(&mut l, &config, "model.norm")?;
    let (head, tied) = parts::head(&mut l, &config, head, &embedding)?;
    let frame = Frame { embedding, embedding_scale: 1.0, norm, head, tied };
    Stack::finish(l, config, frame, layers, |_| false)
}

impl Block for Layer {
    fn row_elements(c: &ModelConfig) -> [usize; 3] {
        let (h, q, kv, inner) = (c.hidden_size, c.q_size(), c.kv_size(), c.intermediate_size);
        // As Llama's, and the normed heads.
        let gradients = h + (2 * inner + h).max(5 * q + 3 * kv + h);
        [5 * h + 4 * q + 4 * kv + 3 * inner, q + 2 * kv + h + 2 * inner, gradients]
    }

    fn forward(&self, ctx: &mut Ctx, x: &Tensor, step: &Step, state: BlockState<'_>) -> DeviceResult<Tensor> {
        let lora = state.lora.map(|table| step.lora(table));
        let lora = lora.as_ref();
        let normed = self.input_norm.apply(ctx, x)?;
        let attended = self.attention.attend(ctx, &normed, step, state, lora)?;
        let [x] = ctx.linear(&attended, [self.attention.o.projection(Some(x))], lora)?;
        let normed = self.post_attention_norm.apply(ctx, &x)?;
        self.mlp.forward(ctx, &normed, Some(&x), lora)
    }
}
